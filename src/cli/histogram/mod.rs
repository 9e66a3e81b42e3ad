//! Reports as a person or a program wants them: table, JSON, CSV, HdrHistogram's text, an SVG plot, a plot of characters.

mod plot;
mod svg;
mod text;

use std::fmt::Write;

use clap::ValueEnum;
use serde_json::json;

use crate::node::telemetry::{PERCENTILES, Report, StageReport};

pub use plot::plot;
pub use svg::svg;
pub use text::{hgrm, table};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table of percentiles a stage, in microseconds
    Table,
    Json,
    Csv,
    /// HdrHistogram's percentile text, for its plotter and others
    Hgrm,
    /// A percentile plot, one line a stage
    Svg,
}

impl Format {
    pub fn render(self, report: &Report) -> String {
        match self {
            Format::Table => table(report),
            Format::Json => format!("{:#}\n", json(report)),
            Format::Csv => csv(report),
            Format::Hgrm => hgrm(report),
            Format::Svg => svg(report),
        }
    }
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// Percentiles and maximum in microseconds, by name.
pub fn latency_us(stage: &StageReport) -> serde_json::Map<String, serde_json::Value> {
    let summary = stage.distribution.summary();
    let percentiles = PERCENTILES.iter().zip(summary.percentiles_ns).map(|((name, _), nanos)| (*name, nanos));
    percentiles
        .chain([("max", summary.max_ns)])
        .map(|(name, nanos)| (name.to_owned(), json!(micros(nanos))))
        .collect()
}

/// All stages with their percentiles, as `--format json` and the demo print them.
pub fn stages_json(report: &Report) -> serde_json::Value {
    let stages = report.stages.iter().map(|stage| {
        let summary = stage.distribution.summary();
        json!({
            "name": stage.name,
            "kind": stage.kind.name(),
            "count": summary.count,
            "mean_us": summary.mean_ns / 1000.0,
            "latency_us": latency_us(stage),
        })
    });
    stages.collect()
}

fn json(report: &Report) -> serde_json::Value {
    json!({ "seconds": report.seconds, "counters": report.counters, "stages": stages_json(report) })
}

fn csv(report: &Report) -> String {
    let mut out = String::from("stage,kind,count,mean_us");
    PERCENTILES.iter().for_each(|(name, _)| write!(out, ",{name}_us").expect("a string takes all"));
    out.push_str(",max_us\n");
    for stage in &report.stages {
        let summary = stage.distribution.summary();
        let mean = summary.mean_ns / 1000.0;
        write!(out, "{},{},{},{mean:.3}", stage.name, stage.kind.name(), summary.count)
            .expect("a string takes all");
        for nanos in summary.percentiles_ns.into_iter().chain([summary.max_ns]) {
            write!(out, ",{:.3}", micros(nanos)).expect("a string takes all");
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Nanos;
    use crate::node::telemetry::{Recorder, STAGES, Stage, Totals};

    /// A write whose stages differ by powers of ten, so that a mix-up shows.
    fn report() -> Report {
        let mut recorder = Recorder::new();
        for index in 1..=10_000u64 {
            recorder.record(Stage::Write, Nanos(100_000 + index * 40));
            recorder.record(Stage::Journal, Nanos(90_000 + index * 30));
            recorder.record(Stage::FrontRing, Nanos(500 + index));
        }
        recorder.counters.writes = 10_000;
        let mut totals = Totals::default();
        totals.add(&recorder);
        Report::of(&totals, 10.0)
    }

    fn empty() -> Report {
        Report::of(&Totals::default(), 0.0)
    }

    #[test]
    fn the_table_keeps_waits_apart_from_service() {
        let shown = table(&report());
        let line = |name: &str| shown.lines().position(|line| line.trim_start().starts_with(name));
        let (total, service, wait) = (line("write"), line("journal"), line("front_ring"));
        assert!(total < service && service < wait && total.is_some(), "{shown}");
        assert!(shown.contains("waiting"), "{shown}");
        let write = shown.lines().find(|line| line.trim_start().starts_with("write")).unwrap_or_default();
        assert!(write.contains("10000") && write.contains("300.0"), "{shown}");
    }

    #[test]
    fn csv_has_one_row_a_stage_and_the_same_columns_in_each() {
        let shown = csv(&report());
        let columns: Vec<usize> = shown.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(columns, vec![4 + PERCENTILES.len() + 1; 1 + STAGES.len()], "{shown}");
        let write: Vec<&str> = shown.lines().nth(1).unwrap_or_default().split(',').collect();
        assert_eq!((write[0], write[2], write[3]), ("write", "10000", "300.020"));
    }

    #[test]
    fn json_names_what_the_table_shows() {
        let value = json(&report());
        assert_eq!(value["stages"][0]["name"], "write");
        assert_eq!(value["counters"]["writes"], 10_000);
        let p50 = value["stages"][0]["latency_us"]["p50"].as_f64().unwrap_or_default();
        assert!((297.0..303.0).contains(&p50), "{value}");
    }

    #[test]
    fn hgrm_ends_each_stage_with_its_total() {
        let shown = hgrm(&report());
        assert_eq!(shown.matches("TotalCount").count(), 3, "{shown}");
        assert!(shown.contains("Total count    =        10000"), "{shown}");
    }

    #[test]
    fn the_svg_has_a_line_and_a_legend_for_each_stage_that_has_data() {
        let shown = svg(&report());
        assert_eq!(shown.matches("<polyline").count(), 3, "{shown}");
        for name in ["write", "journal", "front_ring", "99.99%", "µs"] {
            assert!(shown.contains(name), "{name} is not in the plot");
        }
        assert!(!shown.contains("NaN") && !shown.contains("inf"), "{shown}");
        let empty = svg(&empty());
        assert!(empty.starts_with("<svg") && !empty.contains("NaN"), "{empty}");
    }

    #[test]
    fn every_stage_has_a_mark_of_its_own() {
        let names = STAGES.iter().map(|stage| stage.name()).chain(["client_read", "client_write"]);
        let mut marks: Vec<char> = names.map(plot::mark).collect();
        marks.sort_unstable();
        marks.dedup();
        assert_eq!(marks.len(), STAGES.len() + 2);
        assert!(!marks.contains(&'*'), "a stage has no mark");
    }

    #[test]
    fn the_plot_fits_a_terminal() {
        let shown = plot(&report());
        assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
        assert!(shown.contains("99.9%") && shown.contains("journal"), "{shown}");
        assert!(plot(&empty()).contains("nothing"));
    }
}
