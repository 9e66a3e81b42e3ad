//! Parking without lost wake-ups: Dekker's pattern on a flag and a queue.
//!
//! The sleeper stores `parked`, fences, then looks at its queues once more; the waker pushes, fences, then looks at
//! `parked`. With both fences sequentially consistent, at least one sees the other. Only the waker whose swap finds the
//! flag set pays for the system call.
//!
//! This file stands alone so that its model does not have to build the product: `tests/loom` explores every
//! interleaving of it with a stand-in queue.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// What wakes the sleeper once it is, or is about to be, in the kernel. A ring before the sleep must not be lost.
pub trait Bell {
    fn ring(&self);
}

/// One sleeper's flag and bell. Only its owner calls `announce` and `retract`; anyone may call `wake`.
#[derive(Debug)]
pub struct Parking<B> {
    parked: AtomicU32,
    bell: B,
}

impl<B: Bell> Parking<B> {
    pub fn new(bell: B) -> Parking<B> {
        Parking { parked: AtomicU32::new(0), bell }
    }

    pub fn bell(&self) -> &B {
        &self.bell
    }

    /// The owner intends to sleep. It must look for work once more before it does: what was pushed before this
    /// returned may have found the flag clear.
    pub fn announce(&self) {
        // A swap here and in `retract`, where a store would do: then all changes of the flag are one chain, which the model
        // can follow (it takes a store and a concurrent swap for unordered), and parking is slow anyway.
        self.parked.swap(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The owner is awake, or found work after all. A bell that was rung meanwhile is heard at the next sleep, which
    /// then ends at once.
    pub fn retract(&self) {
        self.parked.swap(0, Ordering::Relaxed);
    }

    /// To be called after pushing. Wakes the owner if it announced that it sleeps.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        self.wake_fenced();
    }

    /// `wake` without its fence, for a caller that fences once for several sleepers after all its pushes.
    pub fn wake_fenced(&self) {
        // The load spares a locked instruction on the usual path, where nobody sleeps.
        if self.parked.load(Ordering::Relaxed) == 1 && self.parked.swap(0, Ordering::AcqRel) == 1 {
            self.bell.ring();
        }
    }
}
