//! kill -9 at random moments with writes in flight, under a client that knows what it was promised.

use std::time::{Duration, Instant};

use crate::checker::{Checker, Next};
use crate::pair::*;

/// Requests that the checking client keeps in flight, and how many of them have to be writes when the process dies.
const DEPTH: usize = 24;
const WRITES_IN_FLIGHT_MIN: usize = 8;

/// Writes before a crash, at random below this.
const WRITES_BEFORE_MAX: u64 = 4000;

/// Both sites without power have lost something that was not flushed by then.
const FORGETFUL_ROUNDS: u64 = 20;

/// `tests/torture` asks for more.
fn rounds() -> u64 {
    std::env::var("LOCKSTEP_TORTURE_ROUNDS").map_or(3, |text| text.parse().expect("a number of rounds"))
}

pub fn seed() -> u64 {
    std::env::var("LOCKSTEP_TORTURE_SEED").map_or(1, |text| text.parse().expect("a number"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disks {
    /// What was written is there after kill -9, as the kernel keeps it.
    Keep,
    /// What was not flushed is gone with the process, but for a block in four, as after power loss.
    Forget,
}

fn crash(victim: Victim, disks: Disks) {
    let mut options = Options { volumes: vec![("data", 32)], journal_mib: 32, ..Options::default() };
    if disks == Disks::Forget {
        options.faults = "discard_unflushed = 42\n";
        // Flushes come when a host asks, and hardly of themselves, so that there is something to forget.
        options.group += "\nflush_interval = \"1s\"\nflush_bytes = \"16MiB\"";
    }
    let mut sites = Sites::start(&options);
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    let (mut replayed, mut acknowledged, mut unknown) = (0, 0, 0);
    for round in 0..rounds() {
        let writes_before = checker.random(WRITES_BEFORE_MAX);
        let mut client = sites.left.connect("data");
        let mut crashed = None;
        let session = checker.drive(&mut client, DEPTH, |progress| match crashed {
            None => {
                let now = progress.acknowledged >= writes_before
                    && progress.writes_in_flight >= WRITES_IN_FLIGHT_MIN;
                if now {
                    sites.strike(victim);
                    crashed = Some(progress.acknowledged);
                }
                Next::GoOn
            }
            // After the secondary's death the host only waits; it goes on once both have it again.
            Some(before) if progress.acknowledged < before + 1000 => Next::GoOn,
            Some(_) => Next::Drain,
        });
        assert!(crashed.is_some(), "round {round}: nothing crashed: {session:?}");
        assert_eq!(session.disconnected, victim != Victim::Secondary, "round {round}: {session:?}");
        assert_eq!(session.refused, 0, "round {round}: an error where there was time left: {session:?}");
        drop(client);
        acknowledged += session.acknowledged;
        unknown += session.unanswered;
        sites.right.start();
        sites.left.start();
        let mut client = sites.left.connect_when_served("data");
        // One site alone loses nothing even of what it had not flushed: the other one has it.
        if victim == Victim::Both && disks == Disks::Forget {
            checker.verify_flushed(&mut client, "the primary");
        } else {
            checker.verify(&mut client, "the primary");
        }
        drop(client);
        sites.wait("--in-sync");
        sites.wait("--settled");
        checker.all_is_flushed();
        checker.verify(&mut sites.right.connect("data"), "the secondary");
        for (site, died) in
            [(&sites.left, victim != Victim::Secondary), (&sites.right, victim != Victim::Primary)]
        {
            if died {
                replayed += replayed_updates(site);
            }
        }
    }
    println!(
        "{victim:?}, disks {disks:?}: {} rounds, {acknowledged} writes acknowledged, {unknown} unknown, {replayed} updates \
         replayed, {} blocks gone back",
        rounds(),
        checker.gone_back
    );
    assert!(replayed > 0, "no crash left anything to replay, so nothing was tested");
    // What one site forgets the other may have kept, so a few rounds may show nothing.
    let forgetful = victim == Victim::Both && disks == Disks::Forget && rounds() >= FORGETFUL_ROUNDS;
    assert!(!forgetful || checker.gone_back > 0, "nothing unflushed was lost either, so nothing was tested");
}

/// Updates that the site found after its checkpoint when it started.
fn replayed_updates(site: &Site) -> u64 {
    let status = site.status();
    status["totals"]["replayed_updates"]
        .as_u64()
        .unwrap_or_else(|| panic!("no count of replayed updates in {status}"))
}

#[test]
fn a_killed_primary_loses_nothing_acknowledged() {
    crash(Victim::Primary, Disks::Keep);
}

#[test]
fn a_killed_secondary_loses_nothing_acknowledged() {
    crash(Victim::Secondary, Disks::Keep);
}

#[test]
fn two_sites_killed_at_once_lose_nothing_acknowledged() {
    crash(Victim::Both, Disks::Keep);
}

#[test]
fn a_primary_without_power_loses_nothing_acknowledged() {
    crash(Victim::Primary, Disks::Forget);
}

#[test]
fn a_secondary_without_power_loses_nothing_acknowledged() {
    crash(Victim::Secondary, Disks::Forget);
}

#[test]
fn two_sites_without_power_lose_nothing_flushed() {
    crash(Victim::Both, Disks::Forget);
}

#[test]
fn a_site_alone_loses_nothing_acknowledged() {
    let mut sites = Sites::format(&Options { pair: false, ..Options::default() });
    let mut checker = Checker::new(0..64 * MIB / 4096, seed());
    sites.left.start();
    for _ in 0..rounds() {
        let writes_before = checker.random(WRITES_BEFORE_MAX);
        let mut client = sites.left.connect_when_served("data");
        let mut crashed = false;
        let session = checker.drive(&mut client, DEPTH, |progress| {
            if !crashed
                && progress.acknowledged >= writes_before
                && progress.writes_in_flight >= WRITES_IN_FLIGHT_MIN
            {
                crashed = true;
                sites.left.kill();
            }
            Next::GoOn
        });
        assert!(session.disconnected, "{session:?}");
        sites.left.start();
        checker.verify(&mut sites.left.connect_when_served("data"), "the site");
    }
}

#[test]
fn sigterm_drains_checkpoints_and_leaves_nothing_to_replay() {
    let mut sites = Sites::start(&Options::default());
    let mut checker = Checker::new(0..64 * MIB / 4096, seed());
    let mut client = sites.left.connect("data");
    let session = checker.drive(&mut client, DEPTH, |progress| {
        if progress.acknowledged < 2000 { Next::GoOn } else { Next::Drain }
    });
    assert!(!session.disconnected && session.refused == 0, "{session:?}");
    client.disconnect().expect("a clean end");
    let began = Instant::now();
    for site in [&mut sites.left, &mut sites.right] {
        let status = site.stop();
        assert!(status.success(), "{} ended with {status}", site.name);
    }
    println!("stopped within {:?}", began.elapsed());
    sites.start_both();
    for site in [&sites.left, &sites.right] {
        assert_eq!(replayed_updates(site), 0, "{}", site.name);
    }
    checker.verify(&mut sites.left.connect("data"), "the primary");
    checker.verify(&mut sites.right.connect("data"), "the secondary");
}

/// A host that goes away in the middle, with requests in flight, leaves nothing behind.
#[test]
fn clients_that_vanish_take_nothing_with_them() {
    const CLIENTS: u64 = 16;
    let sites = Sites::start(&Options::default());
    // A range for each: what is in flight when a client vanishes may be carried out as late as the server likes.
    let blocks = 64 * MIB / 4096 / CLIENTS;
    let mut checkers: Vec<Checker> = (0..CLIENTS)
        .map(|index| Checker::new(index * blocks..(index + 1) * blocks, seed() + index))
        .collect();
    for checker in &mut checkers {
        let writes_before = checker.random(200);
        let mut client = sites.left.connect("data");
        let session = checker.drive(&mut client, DEPTH, |progress| {
            let vanish =
                progress.acknowledged >= writes_before && progress.writes_in_flight >= WRITES_IN_FLIGHT_MIN;
            if vanish { Next::Abandon } else { Next::GoOn }
        });
        assert!(session.unanswered >= WRITES_IN_FLIGHT_MIN as u64, "{session:?}");
    }
    let deadline = Instant::now() + PATIENCE;
    while sites.left.status()["operations"] != 0 {
        assert!(Instant::now() < deadline, "operations of clients that are gone: {}", sites.left.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut client = sites.left.connect("data");
    for checker in &mut checkers {
        checker.verify(&mut client, "the primary");
    }
    sites.wait("--settled");
    let mut client = sites.right.connect("data");
    for checker in &mut checkers {
        checker.verify(&mut client, "the secondary");
    }
}
