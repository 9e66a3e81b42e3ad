//! The production driver: one io_uring per reactor, safe to use from any actor.
//!
//! Whatever the kernel may touch while an operation is in flight belongs to the ring or is an arena page that the ring
//! keeps mapped and marked as under I/O. Operations are bounded: each holds a slot until its last completion.
#![allow(unsafe_code)]

mod buffer;
mod features;
mod files;
mod operations;
mod setup;
mod slice;
mod submit;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode, squeue, types};

use crate::base::{JOURNAL_IO_SLOTS, Nanos, VOLUME_IO_SLOTS};
use crate::io::arena::Arena;
use crate::reactor::{Clock, Completion, Driver, Port};

pub use buffer::OwnedBuf;
pub use features::Features;
pub use files::FileId;
pub use setup::RingError;
pub use submit::Segment;

use files::Files;
use operations::{Kind, Operations};

/// Operations in flight on one ring by default: a journal's, a volume executor's, and as many again for sockets.
pub const OPERATIONS_DEFAULT: u32 = 2 * (JOURNAL_IO_SLOTS + VOLUME_IO_SLOTS) as u32;

/// Files and sockets of one ring by default: several hundred connections and a site's disks.
pub const FILES_DEFAULT: u32 = 1024;

/// Operations of more than [`operations::ROW_VECTORS`] segments in flight by default: each group has at most
/// [`JOURNAL_IO_SLOTS`] on its journal; gathered sends take the rest.
pub const LONG_VECTORS_DEFAULT: u32 = 4 * JOURNAL_IO_SLOTS as u32;

/// One of the arenas that the ring was made with, by its place in [`RingConfig::arenas`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaId(pub u16);

#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Operations in flight at most; submitting more is a broken invariant.
    pub operations: u32,
    pub files: u32,
    pub long_vectors: u32,
    pub arenas: Vec<Arc<Arena>>,
    /// Features that may be used; all, but for tests and for finding out which one a kernel gets wrong.
    pub allowed: Features,
}

impl RingConfig {
    pub fn new(arenas: Vec<Arc<Arena>>) -> RingConfig {
        RingConfig {
            operations: OPERATIONS_DEFAULT,
            files: FILES_DEFAULT,
            long_vectors: LONG_VECTORS_DEFAULT,
            arenas,
            allowed: Features::ALL,
        }
    }
}

/// User data of the read that waits for the doorbell, and of cancellations, whose outcome is the cancelled operation's.
const DOORBELL: u64 = u64::MAX;
const CANCELLATION: u64 = u64::MAX - 1;

/// How often a full submission queue is offered to a kernel that is out of memory before that is an emergency.
const SUBMIT_ATTEMPTS_MAX: usize = 1_000_000;

/// How long the end of a ring waits for cancelled operations before it leaves their memory to them.
const DRAIN_MAX: Nanos = Nanos::from_millis(5_000);

/// See the module. Made and used on one thread.
pub struct Ring {
    uring: IoUring,
    features: Features,
    clock: Clock,
    port: Port,
    actor: u16,
    operations: Operations,
    files: Files,
    arenas: Vec<Registered>,
    /// Where the doorbell's count is read to.
    doorbell_count: Box<[u8; 8]>,
    doorbell_armed: bool,
    /// What came with the completion that `next_completion` returned last.
    delivered_buffer: Option<OwnedBuf>,
    delivered_fd: Option<OwnedFd>,
}

struct Registered {
    arena: Arc<Arena>,
    /// Index of its first registered buffer; meaningless unless buffers are registered.
    first_buffer: u16,
}

impl Ring {
    /// What is in use; its `Display` is the start-up line.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Operations that can be submitted now.
    pub fn room(&self) -> usize {
        self.operations.room()
    }

    /// The buffer that came back with the completion being delivered: received bytes are in its filled part, sent bytes no
    /// longer. Dropped if not taken before the next completion.
    pub fn take_buffer(&mut self) -> Option<OwnedBuf> {
        self.delivered_buffer.take()
    }

    /// The connection that came with the completion of an accept. Closed if not taken before the next completion.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.delivered_fd.take()
    }

    /// Queues an entry; the kernel gets it at the next `poll` or `park`, or now if the queue is full.
    fn push(&mut self, entry: squeue::Entry) {
        let mut attempts = 0;
        // SAFETY: every caller builds its entry from memory that the operation's slot, the ring or a mapped arena holds
        // until the operation's last completion.
        while unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.enter(0, EnterFlags::GETEVENTS, None);
            attempts += 1;
            assert!(attempts < SUBMIT_ATTEMPTS_MAX, "the kernel takes no submissions");
        }
    }

    /// One system call: submits everything queued and waits for `want` completions.
    fn enter(&mut self, want: u32, mut flags: EnterFlags, timeout: Option<Nanos>) {
        use rustix::io::Errno;
        let queued = self.uring.submission().len() as u32;
        let timespec = timeout
            .map(|nanos| Timespec::new().sec(nanos.0 / 1_000_000_000).nsec((nanos.0 % 1_000_000_000) as u32));
        let args = match &timespec {
            Some(timespec) => SubmitArgs::new().timespec(timespec),
            None => SubmitArgs::new(),
        };
        flags |= EnterFlags::EXT_ARG;
        // SAFETY: with EXT_ARG the argument is a `SubmitArgs`, which lives, with its timespec, until the call returns.
        let entered = unsafe { self.uring.submitter().enter(queued, want, flags.bits(), Some(&args)) };
        if let Err(error) = entered {
            let errno = Errno::from_io_error(&error);
            // A passed deadline, a signal, a kernel out of memory, or one that wants its completions reaped first: the
            // caller looks at the completions and comes again.
            let harmless = [Errno::TIME, Errno::INTR, Errno::BUSY, Errno::AGAIN, Errno::NOMEM];
            assert!(
                errno.is_some_and(|errno| harmless.contains(&errno)),
                "io_uring_enter of {queued} entries failed: {error}"
            );
        }
    }

    /// Whether the kernel has completions that only an `enter` makes visible.
    fn kernel_waits(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    fn arm_doorbell(&mut self) {
        if self.doorbell_armed {
            return;
        }
        let fd = self.port.doorbell().bell().as_fd().as_raw_fd();
        let entry = opcode::Read::new(types::Fd(fd), self.doorbell_count.as_mut_ptr(), 8).build();
        self.push(entry.user_data(DOORBELL));
        self.doorbell_armed = true;
    }

    /// Drops what the last completion brought and was not taken.
    fn forget_delivered(&mut self) {
        self.delivered_buffer = None;
        self.delivered_fd = None;
    }
}

impl Driver for Ring {
    fn now(&mut self) -> Nanos {
        self.clock.now()
    }

    fn set_actor(&mut self, actor: usize) {
        self.actor = u16::try_from(actor).expect("a reactor has a few actors");
    }

    fn poll(&mut self) -> bool {
        let queued = !self.uring.submission().is_empty();
        let waits = self.kernel_waits();
        if !queued && !waits {
            return false;
        }
        // With deferred task running, asking for events costs nothing more and may return what completed at once.
        let gather = waits || self.features.deferred_task_run;
        self.enter(0, if gather { EnterFlags::GETEVENTS } else { EnterFlags::empty() }, None);
        true
    }

    fn next_completion(&mut self) -> Option<(usize, Completion)> {
        self.forget_delivered();
        loop {
            let entry = self.uring.completion().next()?;
            match entry.user_data() {
                DOORBELL => self.doorbell_armed = false,
                CANCELLATION => {}
                user_data => {
                    let completion = self.complete(user_data, entry.result(), entry.flags());
                    return Some(completion);
                }
            }
        }
    }

    fn park(&mut self, deadline: Option<Nanos>) {
        self.arm_doorbell();
        if !self.uring.completion().is_empty() {
            return;
        }
        let mut flags = EnterFlags::GETEVENTS;
        if self.features.no_iowait {
            flags |= EnterFlags::NO_IOWAIT;
        }
        let now = self.clock.now();
        self.enter(1, flags, deadline.map(|deadline| deadline.since(now)));
    }
}

impl Ring {
    /// Ends one completion's part of its operation: memory comes home, the slot is freed after the last one.
    fn complete(&mut self, user_data: u64, result: i32, flags: u32) -> (usize, Completion) {
        let slot = self.operations.slot_of(user_data);
        let (actor, token) = self.operations.owner(slot);
        let completion = Completion { token, result, flags };
        match self.operations.kind(slot) {
            Kind::FillPages(arena) => {
                let arena = &self.arenas[arena.0 as usize].arena;
                self.operations.pages(slot, arena).for_each(|page| arena.end_filling(page));
            }
            Kind::ReadPages(arena) => {
                let arena = &self.arenas[arena.0 as usize].arena;
                self.operations.pages(slot, arena).for_each(|page| arena.end_reading(page));
                self.delivered_buffer = self.operations.take_buffer(slot);
            }
            Kind::Receive => {
                let mut buffer = self.operations.take_buffer(slot);
                if let (Some(buffer), Ok(count)) = (&mut buffer, usize::try_from(result)) {
                    buffer.commit(count);
                }
                self.delivered_buffer = buffer;
            }
            Kind::Send => {
                let mut buffer = self.operations.take_buffer(slot);
                if let (Some(buffer), Ok(count)) = (&mut buffer, usize::try_from(result)) {
                    buffer.consume(count);
                }
                self.delivered_buffer = buffer;
            }
            Kind::Accept => self.delivered_fd = accepted(result),
            Kind::Plain => {}
        }
        if !completion.more() {
            let file = self.operations.end(slot);
            self.release_file(file);
        }
        (actor, completion)
    }
}

/// The descriptor in an accept's result.
fn accepted(result: i32) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel has just opened this descriptor for us and told nobody else.
    (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) })
}

impl Ring {
    /// The kernel may still write to what operations have, so that is never given back.
    fn leave_memory(&mut self) {
        std::mem::forget(std::mem::take(&mut self.operations));
        std::mem::forget(std::mem::take(&mut self.arenas));
        std::mem::forget(std::mem::replace(&mut self.doorbell_count, Box::new([0; 8])));
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Other reactors go on until the process ends, so nothing is waited for on the way there.
        if std::thread::panicking() {
            return self.leave_memory();
        }
        self.forget_delivered();
        for user_data in self.operations.in_flight() {
            self.push(opcode::AsyncCancel::new(user_data).build().user_data(CANCELLATION));
        }
        if self.doorbell_armed {
            self.push(opcode::AsyncCancel::new(DOORBELL).build().user_data(CANCELLATION));
        }
        let deadline = self.clock.now().plus(DRAIN_MAX);
        while !self.operations.is_empty() || self.doorbell_armed {
            let now = self.clock.now();
            if now >= deadline {
                tracing::error!(
                    "{} operations did not end; their memory stays with them",
                    self.operations.len()
                );
                return self.leave_memory();
            }
            self.enter(1, EnterFlags::GETEVENTS, Some(deadline.since(now)));
            while self.next_completion().is_some() {}
        }
        // The kernel would do both in the background, and keep the files locked until it gets to them.
        let submitter = self.uring.submitter();
        let _ = submitter.unregister_files();
        let _ = submitter.unregister_buffers();
    }
}
