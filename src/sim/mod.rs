//! Floor 4, feature `sim`: all sites in one thread, in virtual nanoseconds, from one seed; see
//! `docs/SIMULATOR.md`.

mod adopt;
mod aimed;
pub mod audit;
mod breaches;
mod compare;
pub mod content;
mod coverage;
pub mod disk;
mod extend;
mod far;
mod faults;
mod handover;
mod heir;
mod hosts;
mod io;
mod lease;
mod link;
mod links;
pub mod memory;
pub mod metadata;
mod minimise;
mod network;
mod outcome;
mod plan;
mod queue;
mod readiness;
mod resync;
pub mod rng;
mod rot;
mod run;
mod site;
mod snapshots;
mod split;
mod stages;
mod stock;
mod takeover;
mod third;
mod trace;
mod world;

pub use coverage::Coverage;
pub use far::{FarSeen, TROUBLES};
pub use minimise::{Case, Tried, minimise};
pub use plan::{CRASHES_MIN, HOST_OPERATIONS_MIN, Plan};
pub use run::{Violation, keep_panics, run_case, run_far, run_seed};
pub use world::{Outcome, World};
