//! A latency histogram with an exact sum, so that means add up where percentiles cannot.

use hdrhistogram::Histogram;

use crate::base::Nanos;

/// Longest latency told apart; longer ones count as this. Four times the longest wait that a default configuration allows.
pub const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// Two digits (buckets under 1% wide): 31 KiB a histogram, of which a steady load touches a few cache lines.
const DIGITS: u8 = 2;

/// The percentiles that every table shows.
pub const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99)];

/// Values below this have a bucket each; above, each doubling has half as many, which is two digits.
const FINE: u64 = 256;
const BUCKETS: usize = bucket_of(LATENCY_NS_MAX) + 1;

const fn bucket_of(nanos: u64) -> usize {
    if nanos < FINE {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - (FINE.ilog2() - 1);
    ((shift as u64 + 1) * (FINE / 2) + (nanos >> shift) - FINE / 2) as usize
}

/// The highest value of a bucket.
fn bucket_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < FINE {
        return bucket;
    }
    let shift = bucket / (FINE / 2) - 1;
    ((bucket % (FINE / 2) + FINE / 2 + 1) << shift) - 1
}

/// What a reactor records into: a histogram that only counts. An `hdrhistogram` keeps more with each value than a reactor
/// has time for (15 ns against 2); [`Distribution::add_tally`] turns one into the other elsewhere.
#[derive(Clone, Debug)]
pub struct Tally {
    counts: Box<[u64; BUCKETS]>,
    sum_ns: u64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { counts: Box::new([0; BUCKETS]), sum_ns: 0 }
    }
}

impl Tally {
    /// Allocates nothing.
    #[inline]
    pub fn record(&mut self, span: Nanos) {
        self.counts[bucket_of(span.0.min(LATENCY_NS_MAX))] += 1;
        self.sum_ns = self.sum_ns.wrapping_add(span.0);
    }
}

#[derive(Clone, Debug)]
pub struct Distribution {
    histogram: Histogram<u64>,
    sum_ns: u64,
}

/// What a table shows of a distribution, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    pub count: u64,
    pub mean_ns: f64,
    /// In the order of [`PERCENTILES`].
    pub percentiles_ns: [u64; PERCENTILES.len()],
    pub max_ns: u64,
}

impl Default for Distribution {
    fn default() -> Distribution {
        Distribution::new()
    }
}

impl Distribution {
    pub fn new() -> Distribution {
        let histogram =
            Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).expect("constant bounds are valid");
        Distribution { histogram, sum_ns: 0 }
    }

    /// Allocates nothing.
    pub fn record(&mut self, span: Nanos) {
        self.histogram.saturating_record(span.0.max(1));
        self.sum_ns = self.sum_ns.saturating_add(span.0);
    }

    pub fn add_tally(&mut self, tally: &Tally) {
        for (bucket, &count) in tally.counts.iter().enumerate() {
            if count > 0 {
                self.histogram.saturating_record_n(bucket_end(bucket).max(1), count);
            }
        }
        self.sum_ns = self.sum_ns.saturating_add(tally.sum_ns);
    }

    pub fn clear(&mut self) {
        self.histogram.reset();
        self.sum_ns = 0;
    }

    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    pub fn add(&mut self, other: &Distribution) {
        self.histogram.add(&other.histogram).expect("all distributions have the same bounds");
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// What was recorded since `earlier`, which is an earlier state of this one. `None` if it is not.
    pub fn since(&self, earlier: &Distribution) -> Option<Distribution> {
        let mut histogram = self.histogram.clone();
        histogram.subtract(&earlier.histogram).ok()?;
        Some(Distribution { histogram, sum_ns: self.sum_ns.checked_sub(earlier.sum_ns)? })
    }

    /// The latency that `percentile` percent do not exceed; 0 when empty.
    pub fn at_percentile_ns(&self, percentile: f64) -> u64 {
        self.histogram.value_at_percentile(percentile).min(self.histogram.max())
    }

    pub fn summary(&self) -> Summary {
        let count = self.count();
        Summary {
            count,
            mean_ns: if count == 0 { 0.0 } else { self.sum_ns as f64 / count as f64 },
            percentiles_ns: PERCENTILES.map(|(_, percentile)| self.at_percentile_ns(percentile)),
            max_ns: self.histogram.max(),
        }
    }

    /// Buckets that hold something: highest value of each (nanoseconds) and its count.
    pub fn buckets(&self) -> Vec<(u64, u64)> {
        self.histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }

    /// The inverse of [`Self::buckets`] with the sum; `None` for values beyond what can be recorded.
    pub fn from_buckets(buckets: &[(u64, u64)], sum_ns: u64) -> Option<Distribution> {
        let mut distribution = Distribution::new();
        for (value, count) in buckets {
            distribution.histogram.record_n((*value).max(1), *count).ok()?;
        }
        distribution.sum_ns = sum_ns;
        Some(distribution)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_hundredth_and_the_mean_is_exact() {
        let mut distribution = Distribution::new();
        for span in 1..=100_000 {
            distribution.record(Nanos(span));
        }
        let summary = distribution.summary();
        assert_eq!(summary.mean_ns, 50_000.5);
        for ((name, percentile), shown) in PERCENTILES.iter().zip(summary.percentiles_ns) {
            let exact = percentile * 1000.0;
            assert!(
                (shown as f64 - exact).abs() <= exact * 0.01,
                "{name} is {shown}, should be about {exact}"
            );
        }
        assert!((100_000..101_000).contains(&summary.max_ns));
    }

    #[test]
    fn a_tally_becomes_the_distribution_of_its_values() {
        let (mut tally, mut exact) = (Tally::default(), Distribution::new());
        let mut value = 1u64;
        while value < LATENCY_NS_MAX / 2 {
            for span in [value - 1, value, value + value / 3] {
                tally.record(Nanos(span));
                exact.record(Nanos(span));
            }
            value = value * 5 / 4 + 1;
        }
        let mut distribution = Distribution::new();
        distribution.add_tally(&tally);
        assert_eq!(distribution.buckets(), exact.buckets());
        assert_eq!(distribution.summary(), exact.summary());
        tally.record(Nanos(u64::MAX));
        distribution.clear();
        distribution.add_tally(&tally);
        assert!(distribution.summary().max_ns >= LATENCY_NS_MAX, "the longest waits saturate");
    }

    #[test]
    fn the_longest_waits_saturate_and_zero_counts() {
        let mut distribution = Distribution::new();
        distribution.record(Nanos(u64::MAX));
        distribution.record(Nanos(0));
        assert_eq!(distribution.count(), 2);
        assert!(distribution.summary().max_ns >= LATENCY_NS_MAX);
    }

    #[test]
    fn buckets_carry_everything_and_differences_are_what_came_later() {
        let mut early = Distribution::new();
        (1..1000).for_each(|span| early.record(Nanos(span * 977)));
        let mut late = early.clone();
        (1..50).for_each(|span| late.record(Nanos(span * 50_000_000)));
        let copy = Distribution::from_buckets(&late.buckets(), late.sum_ns()).expect("recorded values fit");
        assert_eq!(copy.summary(), late.summary());
        let between = late.since(&early).expect("early is an earlier state");
        assert_eq!((between.count(), between.sum_ns()), (49, 49 * 50 / 2 * 50_000_000));
        assert!(early.since(&late).is_none());
    }
}
