//! Floor 3: the turn. One thread per core runs a reactor; a reactor runs its actors over a driver. Production's driver is
//! an io_uring with a monotonic clock, a test's is whatever it likes.

use crate::base::Nanos;

/// What the driver delivers: `token` is what the actor gave when it submitted.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub token: u64,
    /// As io_uring reports it: non-negative on success, a negated errno otherwise.
    pub result: i32,
    pub flags: u32,
}

/// A part of the process that lives on one reactor: a front, a group, a link, a disk executor.
pub trait Actor<D> {
    fn name(&self) -> &'static str;

    /// One bounded slice: pop rings, work, push rings, submit. Returns whether anything was done.
    fn turn(&mut self, now: Nanos, driver: &mut D) -> bool;

    /// A completion of something this actor submitted; `turn` follows.
    fn complete(&mut self, now: Nanos, driver: &mut D, completion: Completion);

    /// Whether a `turn` now would find work: asked after the reactor has announced that it parks.
    fn ready(&self) -> bool;

    /// When `turn` is due though nothing happens.
    fn deadline(&self) -> Option<Nanos>;

    /// The process is to end: finish what was begun, then say so by `stopped`.
    fn stop(&mut self, now: Nanos);

    fn stopped(&self) -> bool;
}
