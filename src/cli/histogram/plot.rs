use std::fmt::Write;

use super::svg::{Scale, curve, duration_label, percentile_label};
use crate::node::telemetry::{Report, StageReport};

const COLUMNS: usize = 72;
const ROWS: usize = 20;
/// A stage's; that of the whole is drawn last, so that it is on top.
pub(super) fn mark(stage: &str) -> char {
    match stage {
        "client_read" => 'R',
        "client_write" => 'W',
        "write" => '#',
        "front_ring" => 'f',
        "admission" => 'a',
        "old_read" => 'o',
        "batch" => 'b',
        "journal" => 'j',
        "link_ring" => 'l',
        "send" => 's',
        "peer_journal" => 'p',
        "wire" => 'w',
        "acknowledge" => 'k',
        "reply_ring" => 'r',
        _ => '*',
    }
}

/// The percentile plot in characters: one mark a stage, 1/(1-p) across, latency up, both logarithmic.
pub fn plot(report: &Report) -> String {
    let stages: Vec<&StageReport> =
        report.stages.iter().filter(|stage| stage.distribution.count() > 0).collect();
    if stages.is_empty() {
        return "nothing was recorded\n".to_owned();
    }
    let scale = Scale::of(&stages);
    let row_of = |micros: f64| ROWS - 1 - (scale.up(micros) * (ROWS - 1) as f64).round() as usize;
    let mut cells = [[' '; COLUMNS]; ROWS];
    for stage in stages.iter().rev() {
        for (nines, value) in curve(stage) {
            let column = (scale.across(nines) * (COLUMNS - 1) as f64).round() as usize;
            cells[row_of(value)][column.min(COLUMNS - 1)] = mark(&stage.name);
        }
    }
    let mut out = String::new();
    for (row, line) in cells.iter().enumerate() {
        let tick = scale.ticks().find(|tick| row_of(*tick) == row);
        let label = tick.map(duration_label).unwrap_or_default();
        let line: String = line.iter().collect();
        writeln!(out, "{label:>8} |{}", line.trim_end()).expect("a string takes all");
    }
    writeln!(out, "{:>8} +{}", "", "-".repeat(COLUMNS)).expect("a string takes all");
    let mut axis = vec![' '; COLUMNS + 18];
    for nines in 0..=scale.whole_nines() {
        let at = 10 + (scale.across(f64::from(nines)) * (COLUMNS - 1) as f64).round() as usize;
        let label = percentile_label(nines);
        let start = (at + 1).saturating_sub(label.len() / 2 + 1).min(axis.len() - label.len());
        axis.splice(start..start + label.len(), label.chars());
    }
    writeln!(out, "{}", axis.iter().collect::<String>().trim_end()).expect("a string takes all");
    let legend: Vec<String> =
        stages.iter().map(|stage| format!("{} {}", mark(&stage.name), stage.name)).collect();
    for line in legend.chunks(6) {
        writeln!(out, "          {}", line.join("  ")).expect("a string takes all");
    }
    out
}
