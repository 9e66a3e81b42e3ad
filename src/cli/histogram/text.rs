use std::fmt::Write;

use super::micros;
use crate::node::telemetry::{PERCENTILES, Report, StageKind, StageReport};

/// The whole first, then what was worked on, then what was waited for; microseconds. `share` is a stage's part of all the time that writes took.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    let line = |out: &mut String, cells: &[String]| {
        let (name, rest) = cells.split_first().expect("a row has a name");
        write!(out, "{name:<16}").expect("a string takes all");
        rest.iter().for_each(|cell| write!(out, " {cell:>9}").expect("a string takes all"));
        out.push('\n');
    };
    let titles =
        ["µs", "count", "mean", "share"].into_iter().chain(PERCENTILES.iter().map(|(name, _)| *name));
    let titles: Vec<String> = titles.chain(["max"]).map(str::to_owned).collect();
    line(&mut out, &titles);
    // Of the totals (a client's, then the target's) the last is the one that the stages are parts of.
    let whole = of_kind(report, StageKind::Total).last().map_or(0, |stage| stage.distribution.sum_ns());
    let sections = [(StageKind::Total, ""), (StageKind::Service, "service"), (StageKind::Wait, "waiting")];
    for (kind, title) in sections {
        if !title.is_empty() && of_kind(report, kind).next().is_some() {
            writeln!(out, "{title}").expect("a string takes all");
        }
        for stage in of_kind(report, kind) {
            let indent = if title.is_empty() { "" } else { "  " };
            let mut cells = vec![format!("{indent}{}", stage.name), stage.distribution.count().to_string()];
            cells.extend(figures(stage, whole));
            line(&mut out, &cells);
        }
    }
    out
}

fn of_kind(report: &Report, kind: StageKind) -> impl Iterator<Item = &StageReport> {
    report.stages.iter().filter(move |stage| stage.kind == kind)
}

fn figures(stage: &StageReport, whole: u64) -> Vec<String> {
    let summary = stage.distribution.summary();
    if summary.count == 0 {
        return vec!["-".to_owned(); PERCENTILES.len() + 3];
    }
    let share = match whole {
        0 => "-".to_owned(),
        _ if stage.kind == StageKind::Total => String::new(),
        whole => format!("{:.1}%", 100.0 * stage.distribution.sum_ns() as f64 / whole as f64),
    };
    let mut cells = vec![format!("{:.1}", summary.mean_ns / 1000.0), share];
    let values = summary.percentiles_ns.into_iter().chain([summary.max_ns]);
    cells.extend(values.map(|nanos| format!("{:.1}", micros(nanos))));
    cells
}

/// HdrHistogram's percentile distribution, one a stage that has data; values in microseconds.
pub fn hgrm(report: &Report) -> String {
    let mut out = String::new();
    for stage in report.stages.iter().filter(|stage| stage.distribution.count() > 0) {
        let summary = stage.distribution.summary();
        writeln!(out, "# {} ({}), microseconds", stage.name, stage.kind.name()).expect("a string takes all");
        writeln!(
            out,
            "{:>12} {:>14} {:>10} {:>14}\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        )
        .expect("a string takes all");
        let mut below = 0;
        for (value, count) in stage.distribution.buckets() {
            below += count;
            let fraction = below as f64 / summary.count as f64;
            let inverse = match fraction {
                fraction if fraction < 1.0 => format!("{:.2}", 1.0 / (1.0 - fraction)),
                _ => "inf".to_owned(),
            };
            writeln!(out, "{:>12.3} {fraction:>14.12} {below:>10} {inverse:>14}", micros(value))
                .expect("a string takes all");
        }
        writeln!(
            out,
            "#[Mean    = {:>12.3}, Max            = {:>12.3}]\n#[Total count    = {:>12}]\n",
            summary.mean_ns / 1000.0,
            micros(summary.max_ns),
            summary.count
        )
        .expect("a string takes all");
    }
    out
}
