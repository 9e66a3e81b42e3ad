//! What has to hold however long a site runs: its memory stays within what it was given.

use std::fs;
use std::time::Duration;

use crate::checker::{Checker, Next};
use crate::pair::*;

/// What a site may take beyond its cache: code, stacks, rings, connections, metadata.
const BEYOND_CACHE: u64 = 64 * MIB;

/// Seconds of load, if not a few; `tests/torture` gives it an hour.
fn seconds() -> u64 {
    std::env::var("LOCKSTEP_SOAK_SECONDS").map_or(5, |text| text.parse().expect("a number of seconds"))
}

#[test]
fn memory_stays_within_the_cache_and_its_allowance() {
    let options =
        Options { volumes: vec![("data", 256)], journal_mib: 64, cache_mib: 96, ..Options::default() };
    let mut sites = Sites::start(&options);
    let mut checker = Checker::new(0..256 * MIB / 4096, 21);
    let mut client = sites.left.connect("data");
    let session = checker.drive(&mut client, 64, |progress| {
        if progress.elapsed < Duration::from_secs(seconds()) { Next::GoOn } else { Next::Drain }
    });
    assert!(session.acknowledged > 0 && session.refused == 0 && !session.disconnected, "{session:?}");
    for site in [&sites.left, &sites.right] {
        let peak = peak_bytes(site);
        println!("{}: peak {} MiB after {} changes", site.name, peak / MIB, session.acknowledged);
        let allowed = options.cache_mib * MIB + BEYOND_CACHE;
        assert!(peak <= allowed, "{} took {peak} bytes, beyond {allowed}", site.name);
    }
    checker.verify(&mut client, "the primary");
    sites.wait("--settled");
    checker.verify(&mut sites.right.connect("data"), "the secondary");
    drop(client);
    for site in [&mut sites.left, &mut sites.right] {
        assert!(site.stop().success(), "{}", site.name);
    }
}

/// The most memory that was resident at any time (VmHWM, proc(5)).
fn peak_bytes(site: &Site) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", site.process_id())).expect("the process's status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    let kibibytes: u64 = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number");
    kibibytes << 10
}
