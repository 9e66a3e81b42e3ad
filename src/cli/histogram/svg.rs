use std::fmt::Write;

use super::micros;
use crate::node::telemetry::{Report, STAGES, StageKind, StageReport};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 790.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 500.0;

/// Colours that people who see few of them still tell apart (Okabe and Ito), then darker ones.
const COLOURS: [&str; STAGES.len() + CLIENT_STAGES] = [
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#8C6D00", "#5B5BA5",
    "#7A3E00", "#6B6B6B", "#A50026", "#00441B", "#542788",
];

/// Reads and writes as the client of a load saw them.
const CLIENT_STAGES: usize = 2;

/// A percentile plot: 1/(1-p) across, latency up, both logarithmic; waits dashed.
pub fn svg(report: &Report) -> String {
    let stages: Vec<&StageReport> =
        report.stages.iter().filter(|stage| stage.distribution.count() > 0).collect();
    let scale = Scale::of(&stages);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"17\">Latency by percentile</text>\n"
    );
    let mut put = |text: String| writeln!(out, "{text}").expect("a string takes all");
    for nines in 0..=scale.whole_nines() {
        let x = scale.x(f64::from(nines));
        let label = percentile_label(nines);
        put(format!("<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{BOTTOM}\" stroke=\"#dddddd\"/>"));
        put(format!("<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>", BOTTOM + 20.0));
    }
    for tick in scale.ticks() {
        let y = scale.y(tick);
        put(format!("<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>"));
        let label = duration_label(tick);
        put(format!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, y + 4.0));
    }
    put(format!(
        "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#888888\"/>",
        RIGHT - LEFT,
        BOTTOM - TOP
    ));
    put(format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">percentile</text>",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 44.0
    ));
    for (index, stage) in stages.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let dash = if stage.kind == StageKind::Wait { " stroke-dasharray=\"5 4\"" } else { "" };
        let width = if stage.kind == StageKind::Total { 2.6 } else { 1.6 };
        let mut points = String::new();
        for (nines, value) in curve(stage) {
            write!(points, "{:.1},{:.1} ", scale.x(nines), scale.y(value)).expect("a string takes all");
        }
        let line = format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"{dash}");
        put(format!("<polyline {line} points=\"{}\"/>", points.trim_end()));
        let y = TOP + 12.0 + 24.0 * index as f64;
        let (from, to, text) = (RIGHT + 16.0, RIGHT + 46.0, RIGHT + 54.0);
        put(format!("<line x1=\"{from}\" y1=\"{y}\" x2=\"{to}\" y2=\"{y}\" {line}/>"));
        let p99 = micros(stage.distribution.at_percentile_ns(99.0));
        put(format!("<text x=\"{text}\" y=\"{}\">{} (p99 {p99:.0} µs)</text>", y + 4.0, stage.name));
    }
    out.push_str("</svg>\n");
    out
}

/// Points of a stage's line: number of nines (log10 of 1/(1-p)) and latency in microseconds.
pub(super) fn curve(stage: &StageReport) -> Vec<(f64, f64)> {
    const POINTS: usize = 200;
    let nines = (stage.distribution.count() as f64).log10();
    let at = |nines: f64| {
        let percentile = 100.0 * (1.0 - 10f64.powf(-nines));
        (nines, micros(stage.distribution.at_percentile_ns(percentile)))
    };
    (0..=POINTS).map(|step| at(nines * step as f64 / POINTS as f64)).collect()
}

pub(super) struct Scale {
    /// Nines that the x axis reaches: the longest line's.
    pub nines: f64,
    /// Microseconds at the y axis's ends, both from [`ticks`](Scale::ticks).
    low: f64,
    high: f64,
}

impl Scale {
    pub fn of(stages: &[&StageReport]) -> Scale {
        let most = stages.iter().map(|stage| stage.distribution.count()).max().unwrap_or(0);
        let values = || stages.iter().flat_map(|stage| curve(stage)).map(|(_, value)| value.max(0.1));
        let (low, high) = values().fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = if most == 0 { (1.0, 1000.0) } else { (low, high) };
        let low = steps().take_while(|step| *step <= low).last().unwrap_or(0.1);
        let high = steps().find(|step| *step >= high && *step > low).unwrap_or(f64::from(u32::MAX));
        Scale { nines: (most.max(10) as f64).log10(), low, high }
    }

    /// Round latencies that the y axis shows, in microseconds.
    pub fn ticks(&self) -> impl Iterator<Item = f64> {
        let (low, high) = (self.low, self.high);
        steps().filter(move |step| *step >= low && *step <= high)
    }

    /// Whole nines that the x axis shows.
    pub fn whole_nines(&self) -> u32 {
        self.nines.floor() as u32
    }

    /// 0 to 1, left to right.
    pub fn across(&self, nines: f64) -> f64 {
        nines / self.nines
    }

    /// 0 to 1, bottom to top.
    pub fn up(&self, micros: f64) -> f64 {
        ((micros.max(1e-9) / self.low).log10() / (self.high / self.low).log10()).clamp(0.0, 1.0)
    }

    fn x(&self, nines: f64) -> f64 {
        LEFT + self.across(nines) * (RIGHT - LEFT)
    }

    fn y(&self, micros: f64) -> f64 {
        BOTTOM - self.up(micros) * (BOTTOM - TOP)
    }
}

/// 0.1, 0.2, 0.5, 1, 2, 5 and so on to 500 s, in microseconds.
fn steps() -> impl Iterator<Item = f64> {
    (-1..9).flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(decade)))
}

/// `0%`, `90%`, `99%`, `99.9%`.
pub(super) fn percentile_label(nines: u32) -> String {
    match nines {
        0 => "0%".to_owned(),
        1 => "90%".to_owned(),
        2 => "99%".to_owned(),
        nines => format!("99.{}%", "9".repeat(nines as usize - 2)),
    }
}

/// A round number of microseconds, with the unit that keeps it short.
pub(super) fn duration_label(micros: f64) -> String {
    match micros {
        ..0.99 => format!("{:.0} ns", micros * 1e3),
        ..999.0 => format!("{micros:.0} µs"),
        ..999e3 => format!("{:.0} ms", micros / 1e3),
        _ => format!("{:.0} s", micros / 1e6),
    }
}
