//! The process's monotonic clock: the invariant TSC where the processor has one, else the system's monotonic clock.

use crate::base::Nanos;

/// Clones share their zero, so stamps from different reactors can be subtracted.
#[derive(Clone, Debug)]
pub struct Clock {
    clock: quanta::Clock,
    origin: u64,
}

impl Clock {
    /// Zero is now. The first clock of a process takes some milliseconds to calibrate.
    #[expect(clippy::new_without_default, reason = "two defaults would not share their zero")]
    pub fn new() -> Clock {
        let clock = quanta::Clock::new();
        let origin = clock.raw();
        Clock { clock, origin }
    }

    pub fn now(&self) -> Nanos {
        Nanos(self.clock.delta_as_nanos(self.origin, self.clock.raw()))
    }
}
