//! So many bytes a second, and no more: a token bucket in time.

use crate::base::Nanos;

/// What was not used may be made up for, up to this much: timers and turns come late, and one update is as long as this at 13 MB/s.
const BURST: Nanos = Nanos::from_millis(10);

#[derive(Debug)]
pub(super) struct Allowance {
    bytes_per_second: u64,
    /// What was taken so far is paid for by then.
    paid_at: Nanos,
}

impl Allowance {
    pub fn new(bytes_per_second: u64) -> Allowance {
        assert!(bytes_per_second > 0, "nothing would ever be allowed");
        Allowance { bytes_per_second, paid_at: Nanos(0) }
    }

    /// When more may be taken, if not now.
    pub fn wait_until(&self, now: Nanos) -> Option<Nanos> {
        (self.paid_at > now).then_some(self.paid_at)
    }

    /// Takes as much as one frame is long; what is more than there was left is waited for afterwards.
    pub fn take(&mut self, now: Nanos, bytes: usize) {
        let from = self.paid_at.max(Nanos(now.0.saturating_sub(BURST.0)));
        self.paid_at = from.plus(Nanos(bytes as u64 * 1_000_000_000 / self.bytes_per_second));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_than_what_is_allowed_and_a_burst() {
        for (rate, frame) in [(1 << 20, 4200), (20 << 20, 131_000), (1 << 16, 131_000)] {
            let mut allowance = Allowance::new(rate);
            let (mut now, mut taken) = (Nanos(1_000_000_000), 0u64);
            let from = now;
            while now.since(from) < Nanos::from_millis(4000) {
                if allowance.wait_until(now).is_none() {
                    allowance.take(now, frame);
                    taken += frame as u64;
                }
                now = now.plus(Nanos::from_micros(100));
            }
            let (due, burst) = (4 * rate, rate / 100 + frame as u64);
            assert!(taken <= due + burst && taken + burst >= due, "{taken} of {due}");
        }
    }

    #[test]
    fn who_waits_is_told_when_to_come_again() {
        let mut allowance = Allowance::new(1000);
        let now = Nanos(1_000_000_000);
        assert_eq!(allowance.wait_until(now), None);
        allowance.take(now, 500);
        let again = allowance.wait_until(now).expect("half a second's worth was taken");
        assert_eq!(again, now.plus(Nanos::from_millis(490)));
        assert_eq!(allowance.wait_until(again), None);
    }
}
