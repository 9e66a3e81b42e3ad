//! Where the time goes: a write's stamps cut into segments, histograms of them, and their way off the reactor.

mod distribution;
mod recorder;
mod report;
mod segments;

pub use distribution::{Distribution, LATENCY_NS_MAX, PERCENTILES, Summary, Tally};
pub use recorder::{Counters, Recorder, Totals};
pub use report::{Report, ReportError, StageReport, WireReport};
pub use segments::{STAGES, Segments, Stage, StageKind, segments};
