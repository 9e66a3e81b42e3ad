//! The bell of a thread that sleeps in the kernel: an eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::base::Nanos;
use crate::reactor::park::{Bell, Parking};

/// A reactor's, or a plain thread's, way to be woken.
pub type Doorbell = Parking<EventBell>;

/// A blocking eventfd: io_uring waits for a read of it with its own poll; a thread polls, then reads.
#[derive(Debug)]
pub struct EventBell(OwnedFd);

impl EventBell {
    /// Fails when the process or the system has no file descriptors left.
    pub fn new() -> io::Result<EventBell> {
        Ok(EventBell(eventfd(0, EventfdFlags::CLOEXEC)?))
    }

    /// Sleeps until the bell is rung, `timeout` has passed, or a signal came; what rang is used up.
    pub fn wait(&self, timeout: Option<Nanos>) -> io::Result<()> {
        let timeout = timeout.map(|nanos| Timespec {
            tv_sec: (nanos.0 / 1_000_000_000) as i64,
            tv_nsec: (nanos.0 % 1_000_000_000) as _,
        });
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            Ok(_) => {
                rustix::io::read(&self.0, &mut [0; 8])?;
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Bell for EventBell {
    fn ring(&self) {
        // Fails only if the counter would pass 2^64 - 2, and then the sleeper is awake anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for EventBell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
