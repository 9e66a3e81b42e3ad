//! What of io_uring and the scheduler is in use: probed at start, shown on one line.

use std::fmt;

/// Each is used if the kernel has it and the configuration allows it; without any of them everything works, slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// One thread submits, and completions are prepared when it asks for them, with a flag that says when to ask (6.1).
    pub deferred_task_run: bool,
    /// Completions do not interrupt the thread, with the same flag (5.19). Part of the above.
    pub cooperative_task_run: bool,
    /// Files are looked up once (5.19, sparse table).
    pub registered_files: bool,
    /// The arena's pages are pinned once; needs `RLIMIT_MEMLOCK` of the arena's size or CAP_IPC_LOCK.
    pub registered_buffers: bool,
    /// Vectored I/O on registered buffers (6.15).
    pub registered_vectors: bool,
    /// One accept serves all connections (5.19).
    pub multishot_accept: bool,
    /// One poll serves all readiness (5.13).
    pub multishot_poll: bool,
    /// Parking does not count as waiting for a disk in the system's statistics (6.15).
    pub no_iowait: bool,
    /// The thread preempts at once whoever runs in its place when it has something to do (6.12).
    pub short_slices: bool,
}

impl Features {
    pub const ALL: Features = Features::uniform(true);
    pub const NONE: Features = Features::uniform(false);

    const fn uniform(on: bool) -> Features {
        Features {
            deferred_task_run: on,
            cooperative_task_run: on,
            registered_files: on,
            registered_buffers: on,
            registered_vectors: on,
            multishot_accept: on,
            multishot_poll: on,
            no_iowait: on,
            short_slices: on,
        }
    }
}

/// `io_uring: +deferred_task_run +registered_files -registered_buffers ...; scheduler: +short_slices`
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [
            ("deferred_task_run", self.deferred_task_run),
            ("cooperative_task_run", self.cooperative_task_run),
            ("registered_files", self.registered_files),
            ("registered_buffers", self.registered_buffers),
            ("registered_vectors", self.registered_vectors),
            ("multishot_accept", self.multishot_accept),
            ("multishot_poll", self.multishot_poll),
            ("no_iowait", self.no_iowait),
        ];
        let sign = |on| if on { '+' } else { '-' };
        f.write_str("io_uring:")?;
        named.iter().try_for_each(|(name, on)| write!(f, " {}{name}", sign(*on)))?;
        write!(f, "; scheduler: {}short_slices", sign(self.short_slices))
    }
}
