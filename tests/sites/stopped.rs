//! What tests of sites that are changed while they are stopped have in common.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::checker::{Checker, Next};
use crate::pair::*;

pub const DEPTH: usize = 24;

/// From the first command to the first reply after it. A takeover has ten seconds; other tests' builds may hold the CPUs.
pub const PAUSE_MAX: Duration = Duration::from_secs(10);

/// One that loses its peer goes on alone.
pub fn solo(options: Options) -> Options {
    let group = "on_peer_loss = \"solo\"\nlatency_budget = \"500ms\"\nheartbeat_interval = \"50ms\"";
    Options { group: group.to_owned(), ..options }
}

pub fn blocks(mib: Range<u64>) -> Range<u64> {
    mib.start * MIB / 4096..mib.end * MIB / 4096
}

pub fn command(name: &str, site: &Site, more: &[&str]) -> Output {
    lockstep(&[&[name, "--config", path(&site.config)], more].concat())
}

/// kill -9, and until nothing of it holds its files: the kernel takes a process apart in the background, on a busy disk for seconds.
pub fn kill(site: &mut Site) {
    site.kill();
    let journal = fs::File::open(site.directory.join("journal")).expect("a journal");
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = rustix::fs::flock(&journal, FlockOperation::NonBlockingLockExclusive) {
        assert!(Instant::now() < deadline, "{}: {error}", site.name);
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn length(file: &Path) -> u64 {
    fs::metadata(file).expect("a file").len()
}

/// So many writes to a volume, each with its reply.
pub fn writes(checker: &mut Checker, site: &mut Site, volume: &str, count: u64) {
    let mut client = site.connect_when_served(volume);
    let session = checker.drive(&mut client, DEPTH, |progress| {
        if progress.acknowledged < count { Next::GoOn } else { Next::Drain }
    });
    assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
}

/// Bytes that its peer was copied.
pub fn copied(site: &Site) -> u64 {
    site.status()["totals"]["resync_bytes"].as_u64().expect("a number")
}
