//! When each operation of a load began and ended: what a moment of the run was like for those that lived through it.

use super::ledger::SplitMix;
use crate::base::Nanos;
use crate::node::telemetry::Distribution;

#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// When each operation should have begun, and when it ended.
    lives: Vec<(Nanos, Nanos)>,
}

impl Timeline {
    pub fn push(&mut self, begun: Nanos, ended: Nanos) {
        self.lives.push((begun, ended));
    }

    /// From the first beginning to the last end.
    fn span(&self) -> Option<(Nanos, Nanos)> {
        let begun = self.lives.iter().map(|life| life.0).min()?;
        Some((begun, self.lives.iter().map(|life| life.1).max()?))
    }

    /// Latencies of the operations that were under way at any time from `at` on for `length`. Not only of those that ended then:
    /// what a pause holds up ends after it.
    pub fn around(&self, at: Nanos, length: Nanos) -> Distribution {
        let mut latencies = Distribution::new();
        let until = at.plus(length);
        for (begun, ended) in self.lives.iter().filter(|(begun, ended)| *begun < until && *ended >= at) {
            latencies.record(ended.since(*begun));
        }
        latencies
    }

    /// The p99 of all windows of `length` that begin at `moments`, over the p99 of as many windows at random moments of the
    /// run. `None` without operations in either.
    pub fn pause_ratio(&self, moments: &[Nanos], length: Nanos, seed: u64) -> Option<f64> {
        let p99 = |windows: &mut dyn Iterator<Item = Nanos>| {
            let mut all = Distribution::new();
            windows.for_each(|at| all.add(&self.around(at, length)));
            (all.count() > 0).then(|| all.at_percentile_ns(99.0) as f64)
        };
        let (begun, ended) = self.span()?;
        let room = ended.since(begun).0.saturating_sub(length.0).max(1);
        let mut random = SplitMix(seed);
        let after = p99(&mut moments.iter().copied())?;
        let usual = p99(&mut moments.iter().map(|_| begun.plus(Nanos(random.below(room)))))?;
        Some(after / usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Nanos = Nanos::from_millis(50);

    /// One operation a millisecond, of 100 µs each, but that those of every tenth of a second last as long as `pause`.
    fn run(pause: Nanos) -> (Timeline, Vec<Nanos>) {
        let mut timeline = Timeline::default();
        let mut moments = Vec::new();
        for at in (0..5000).map(Nanos::from_millis) {
            let paused = at.0 % Nanos::from_millis(500).0 == 0;
            timeline.push(at, at.plus(if paused { pause } else { Nanos::from_micros(100) }));
            if paused {
                moments.push(at.plus(Nanos(1)));
            }
        }
        (timeline, moments)
    }

    #[test]
    fn a_pause_shows_though_it_outlasts_its_window() {
        let (timeline, moments) = run(Nanos::from_millis(80));
        assert_eq!(timeline.around(moments[1], WINDOW).at_percentile_ns(100.0) / 1_000_000, 80);
        assert!(timeline.pause_ratio(&moments, WINDOW, 1).expect("operations") > 100.0);
        let (timeline, moments) = run(Nanos::from_micros(100));
        assert_eq!(timeline.pause_ratio(&moments, WINDOW, 1), Some(1.0));
        assert_eq!(Timeline::default().pause_ratio(&moments, WINDOW, 1), None);
    }
}
