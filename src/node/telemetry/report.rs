//! Histograms on their way to a person: over the control socket as JSON, and into every output format.

use serde::{Deserialize, Serialize};

use super::{Counters, Distribution, STAGES, StageKind, Totals};

/// Named distributions, in the order in which they are shown.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub stages: Vec<StageReport>,
    pub counters: Counters,
    /// Time since recording began.
    pub seconds: f64,
}

#[derive(Clone, Debug)]
pub struct StageReport {
    pub name: String,
    pub kind: StageKind,
    pub distribution: Distribution,
}

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("stage kind \"{0}\" is unknown; both ends must be the same version of lockstep")]
    Kind(String),
    #[error("stage {0} has a latency beyond what a histogram holds")]
    Range(String),
}

/// A report as it travels. Buckets are value (nanoseconds) and count.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireReport {
    stages: Vec<WireStage>,
    counters: Counters,
    seconds: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct WireStage {
    name: String,
    kind: String,
    sum_ns: u64,
    buckets: Vec<(u64, u64)>,
}

impl Report {
    pub fn of(totals: &Totals, seconds: f64) -> Report {
        let stages = STAGES.into_iter().map(|stage| StageReport {
            name: stage.name().to_owned(),
            kind: stage.kind(),
            distribution: totals.stage(stage).clone(),
        });
        Report { stages: stages.collect(), counters: totals.counters, seconds }
    }

    pub fn stage(&self, name: &str) -> Option<&Distribution> {
        self.stages.iter().find(|stage| stage.name == name).map(|stage| &stage.distribution)
    }

    /// What was recorded since `earlier`; all of it, if that is not an earlier state (somebody reset it).
    pub fn since(&self, earlier: &Report) -> Report {
        let stages = self.stages.iter().map(|stage| {
            let difference = earlier.stage(&stage.name).and_then(|before| stage.distribution.since(before));
            Some(StageReport { distribution: difference?, ..stage.clone() })
        });
        match stages.collect::<Option<Vec<_>>>() {
            Some(stages) if self.seconds >= earlier.seconds => Report {
                stages,
                counters: self.counters.since(&earlier.counters),
                seconds: self.seconds - earlier.seconds,
            },
            _ => self.clone(),
        }
    }
}

impl From<&Report> for WireReport {
    fn from(report: &Report) -> WireReport {
        let stages = report.stages.iter().map(|stage| WireStage {
            name: stage.name.clone(),
            kind: stage.kind.name().to_owned(),
            sum_ns: stage.distribution.sum_ns(),
            buckets: stage.distribution.buckets(),
        });
        WireReport { stages: stages.collect(), counters: report.counters, seconds: report.seconds }
    }
}

impl TryFrom<WireReport> for Report {
    type Error = ReportError;

    fn try_from(wire: WireReport) -> Result<Report, ReportError> {
        let stages = wire.stages.into_iter().map(|stage| {
            let kinds = [StageKind::Total, StageKind::Wait, StageKind::Service];
            let kind = kinds
                .into_iter()
                .find(|kind| kind.name() == stage.kind)
                .ok_or(ReportError::Kind(stage.kind))?;
            let distribution = Distribution::from_buckets(&stage.buckets, stage.sum_ns)
                .ok_or_else(|| ReportError::Range(stage.name.clone()))?;
            Ok(StageReport { name: stage.name, kind, distribution })
        });
        Ok(Report {
            stages: stages.collect::<Result<_, _>>()?,
            counters: wire.counters,
            seconds: wire.seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Nanos;
    use crate::node::telemetry::{Recorder, Stage};

    fn report(recorder: &Recorder, seconds: f64) -> Report {
        let mut totals = Totals::default();
        totals.add(recorder);
        Report::of(&totals, seconds)
    }

    #[test]
    fn a_report_survives_its_way_over_the_socket() {
        let mut recorder = Recorder::new();
        recorder.record(Stage::Write, Nanos(123_456));
        recorder.record(Stage::Wire, Nanos(77));
        recorder.counters.writes = 1;
        let report = report(&recorder, 2.0);
        let text = serde_json::to_string(&WireReport::from(&report)).expect("serializes");
        let back: WireReport = serde_json::from_str(&text).expect("parses");
        let back = Report::try_from(back).expect("valid");
        assert_eq!(back.stages.len(), STAGES.len());
        for (mine, theirs) in report.stages.iter().zip(&back.stages) {
            assert_eq!((&mine.name, mine.kind), (&theirs.name, theirs.kind));
            assert_eq!(mine.distribution.summary(), theirs.distribution.summary());
        }
        let unknown = text.replace("\"wait\"", "\"wobble\"");
        let wire: WireReport = serde_json::from_str(&unknown).expect("parses");
        assert!(matches!(Report::try_from(wire), Err(ReportError::Kind(_))));
    }

    #[test]
    fn an_interval_after_a_reset_is_the_whole() {
        let mut recorder = Recorder::new();
        recorder.record(Stage::Write, Nanos(10));
        let before = report(&recorder, 5.0);
        let mut recorder = Recorder::new();
        recorder.record(Stage::Wire, Nanos(10));
        let after = report(&recorder, 1.0);
        let shown = after.since(&before);
        assert_eq!((shown.seconds, shown.stage("wire").map(Distribution::count)), (1.0, Some(1)));
    }
}
