//! Floor 3: the turn. One thread per core runs a reactor; a reactor runs its actors over a driver. Production's driver is
//! an io_uring with a monotonic clock, a test's is whatever it likes.

mod bell;
mod clock;
mod load;
mod park;
mod ring;
#[cfg(test)]
mod tests;
mod turn;

pub use bell::{Doorbell, EventBell};
pub use clock::Clock;
pub use load::{ActorLoad, Loads, LoadsSnapshot};
pub use park::{Bell, Parking};
pub use ring::{PORTS_MAX, Port, Receiver, Sender, edge, mesh};
pub use turn::{ACTORS_MAX, COMPLETIONS_A_TURN_MAX, Driver, IdlePolicy, Reactor};

use crate::base::Nanos;

/// What the driver delivers: `token` is what the actor gave when it submitted.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub token: u64,
    /// As io_uring reports it: non-negative on success, a negated errno otherwise.
    pub result: i32,
    pub flags: u32,
}

impl Completion {
    /// Whether the operation goes on and will complete again (a multishot accept or poll).
    pub fn more(&self) -> bool {
        const IORING_CQE_F_MORE: u32 = 1 << 1;
        self.flags & IORING_CQE_F_MORE != 0
    }
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

    /// Asked after each turn once `stop` was called. The reactor drops an actor that says yes, and with it the senders
    /// it holds: so a helper knows that nothing more will be asked of it when its receivers are closed and drained.
    fn stopped(&self) -> bool;
}
