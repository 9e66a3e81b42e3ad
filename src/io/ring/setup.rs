//! Making a ring: the best setup the kernel takes, feature by feature.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroU64;

use io_uring::{IoUring, Probe, opcode};

use crate::io::ring::files::Files;
use crate::io::ring::operations::Operations;
use crate::io::ring::{Features, Registered, Ring, RingConfig, slice};
use crate::reactor::{Clock, Port};

/// Entries of the completion queue for each operation: multishot operations complete more than once.
const COMPLETIONS_PER_OPERATION: u32 = 4;

/// How late a park's deadline may be noticed, in nanoseconds: well below any of our timers.
const TIMER_SLACK_NS: u64 = 1_000;

/// The kernel's largest submission queue.
const QUEUE_ENTRIES_MAX: u32 = 32_768;

#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error(
        "io_uring is not to be had: {0}. It needs Linux 5.11 or newer, sysctl kernel.io_uring_disabled=0, and in a \
         container a seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Unavailable(#[source] io::Error),
    #[error("this kernel's io_uring cannot wait with a timeout; Linux 5.11 or newer is needed")]
    TooOld,
}

impl Ring {
    /// To be called on the reactor's own thread: the kernel remembers it as the only submitter.
    pub fn new(config: RingConfig, clock: Clock, port: Port) -> Result<Ring, RingError> {
        // Threads sleep up to 50 µs past their deadline by default, so that the system can wake several at once.
        if let Err(errno) = rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS)) {
            tracing::warn!("deadlines may be 50 µs late: the timer slack could not be set: {errno}");
        }
        let (uring, mut features) = build(&config)?;
        if !uring.params().is_feature_ext_arg() {
            return Err(RingError::TooOld);
        }
        probe(&uring, &config, &mut features);
        features.short_slices = features.short_slices
            && slice::shorten().unwrap_or_else(|error| {
                tracing::warn!("what shares a reactor's CPU may hold it up for milliseconds: its slices could not be shortened: {error}");
                false
            });

        let mut arenas = Vec::with_capacity(config.arenas.len());
        let mut buffers = Vec::new();
        for arena in config.arenas {
            let first_buffer =
                u16::try_from(buffers.len()).expect("an arena is a few GiB, 65535 are not to be had");
            let vector =
                |(address, bytes): (*mut u8, usize)| libc::iovec { iov_base: address.cast(), iov_len: bytes };
            buffers.extend(arena.registrations().map(vector));
            arenas.push(Registered { arena, first_buffer });
        }
        if features.registered_buffers && !buffers.is_empty() {
            // SAFETY: the buffers lie in arenas, which the ring keeps mapped for as long as it lives.
            if let Err(error) = unsafe { uring.submitter().register_buffers(&buffers) } {
                tracing::warn!(
                    "the arena's pages could not be registered with io_uring: {error}; raise RLIMIT_MEMLOCK (or give \
                     CAP_IPC_LOCK) for a little less work in the kernel"
                );
                features.registered_buffers = false;
            }
        }
        features.registered_vectors &= features.registered_buffers;

        Ok(Ring {
            uring,
            features,
            clock,
            port,
            actor: 0,
            operations: Operations::new(config.operations, config.long_vectors),
            files: Files::new(config.files),
            arenas,
            doorbell_count: Box::new([0; 8]),
            doorbell_armed: false,
            delivered_buffer: None,
            delivered_fd: None,
        })
    }
}

/// Tries the task-run modes from the best to none.
fn build(config: &RingConfig) -> Result<(IoUring, Features), RingError> {
    let entries = config.operations.next_power_of_two().clamp(64, QUEUE_ENTRIES_MAX);
    let completions = entries.saturating_mul(COMPLETIONS_PER_OPERATION).min(2 * QUEUE_ENTRIES_MAX);
    let mut features = config.allowed;
    if features.deferred_task_run {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(completions).setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        if let Ok(uring) = builder.build(entries) {
            return Ok((uring, features));
        }
        features.deferred_task_run = false;
    }
    if features.cooperative_task_run {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(completions).setup_coop_taskrun().setup_taskrun_flag();
        if let Ok(uring) = builder.build(entries) {
            return Ok((uring, features));
        }
        features.cooperative_task_run = false;
    }
    let uring =
        IoUring::builder().setup_cqsize(completions).build(entries).map_err(RingError::Unavailable)?;
    Ok((uring, features))
}

fn probe(uring: &IoUring, config: &RingConfig, features: &mut Features) {
    let mut probe = Probe::new();
    let probed = uring.submitter().register_probe(&mut probe).is_ok();
    let has = |code: u8| probed && probe.is_supported(code);
    features.registered_vectors &= has(opcode::WritevFixed::CODE) && has(opcode::ReadvFixed::CODE);
    // The multishot accept came with the same kernel (5.19) as the socket opcode, the multishot poll (5.13) with no
    // opcode of its own; 5.15 brought linkat.
    features.multishot_accept &= has(opcode::Socket::CODE);
    features.multishot_poll &= has(opcode::LinkAt::CODE);
    features.no_iowait &= uring.params().is_feature_no_iowait();
    features.registered_files =
        features.registered_files && uring.submitter().register_files_sparse(config.files).is_ok();
}
