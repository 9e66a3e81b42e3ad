//! How long the scheduler lets a reactor's thread and its neighbours run at a stretch.
#![allow(unsafe_code)]

use std::io;

/// A thread's slice, in nanoseconds: the shortest that the kernel gives. One that wakes preempts at once whoever has a longer one (2.8 ms by default), as long as
/// it has not had more than its share; so that a reactor waits for a completion, and not for what else shares its CPU.
const SLICE_NS: u64 = 100_000;

/// Keeps the thread under whatever policy its operator has put it.
const SCHED_FLAG_KEEP_POLICY: u64 = 0x08;

/// Asks for short slices for the calling thread, which needs no privilege. Returns whether it has them: kernels before 6.12 have one length for all,
/// and under a real-time policy there are none.
pub(super) fn shorten() -> io::Result<bool> {
    let mut attributes = attributes()?;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(false);
    }
    attributes.sched_flags = SCHED_FLAG_KEEP_POLICY;
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: the kernel reads as many bytes of the structure as its first field says, which is its size.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(self::attributes()?.sched_runtime == SLICE_NS)
}

/// Those of the calling thread.
fn attributes() -> io::Result<libc::sched_attr> {
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size: SIZE,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most the number of bytes that it is told, the structure's size.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    if got == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_short_slices_and_keeps_its_priority() {
        let thread = std::thread::spawn(|| {
            rustix::process::setpriority_process(None, 3).expect("a thread may always stand back");
            let shortened = shorten().expect("no privilege is needed");
            let attributes = attributes().expect("known");
            assert_eq!(attributes.sched_nice, 3);
            assert_eq!(shortened, attributes.sched_runtime == SLICE_NS);
            shortened
        });
        let shortened = thread.join().expect("no panic");
        let release = rustix::system::uname();
        let release = release.release().to_str().expect("text").to_owned();
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        assert_eq!(shortened, version >= (6, 12), "Linux {release}");
    }
}
