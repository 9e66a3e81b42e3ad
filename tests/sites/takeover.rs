//! The other site takes over from a killed primary, under a client that knows what it was promised; then the old one follows.

use std::time::{Duration, Instant};

use lockstep::format::nbd::flags::READ_ONLY;

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;

const DEPTH: usize = 24;
const WRITES_BEFORE_MAX: u64 = 3000;
const WRITES_AFTER: u64 = 1000;

/// Takeovers, there and back.
const TAKEOVERS: usize = 4;

/// From the command to a write's reply; a takeover itself takes some flushes. Other tests' builds may hold the CPUs.
const TAKEOVER_MAX: Duration = Duration::from_secs(5);

fn promote(site: &Site) {
    succeeds(lockstep(&["promote", "--config", path(&site.config), "--fenced"]));
}

fn role(site: &Site) -> String {
    site.status()["role"].as_str().expect("a role").to_owned()
}

fn wait(site: &Site, what: &str) {
    let seconds = format!("{}s", PATIENCE.as_secs());
    succeeds(lockstep(&["wait", "--config", path(&site.config), what, "--timeout", &seconds]));
}

fn writes(checker: &mut Checker, site: &Site, count: u64) {
    let session = checker.drive(&mut site.connect("data"), DEPTH, |progress| {
        if progress.acknowledged < count { Next::GoOn } else { Next::Drain }
    });
    assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
}

#[test]
fn every_acknowledged_write_is_at_the_site_that_takes_over_and_the_old_one_follows() {
    let options = Options { volumes: vec![("data", 32)], journal_mib: 32, ..Options::default() };
    let mut sites = Sites::start(&options);
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    let (mut primary, mut other) = (&mut sites.left, &mut sites.right);
    for round in 0..TAKEOVERS {
        let before = checker.random(WRITES_BEFORE_MAX);
        let mut client = primary.connect("data");
        let mut killed = false;
        let session = checker.drive(&mut client, DEPTH, |progress| {
            if !killed && progress.acknowledged >= before {
                primary.kill();
                killed = true;
            }
            // Until the connection's end is seen: all that was under way may have been answered before.
            Next::GoOn
        });
        assert!(session.disconnected, "round {round}: {session:?}");
        let begun = Instant::now();
        promote(other);
        let mut client = other.connect("data");
        writes(&mut checker, other, 1);
        let took = begun.elapsed();
        println!("takeover {round}: {} ms to the first write's reply", took.as_millis());
        assert!(took < TAKEOVER_MAX, "round {round}: the takeover took {took:?}");
        checker.verify(&mut client, "the new primary");
        drop(client);
        assert_eq!((role(other).as_str(), other.status()["solo"].as_bool()), ("primary", Some(true)));
        // The old one comes back while hosts write.
        writes(&mut checker, other, WRITES_AFTER);
        primary.start();
        writes(&mut checker, other, WRITES_AFTER);
        wait(other, "--in-sync");
        writes(&mut checker, other, WRITES_AFTER);
        wait(other, "--settled");
        checker.all_is_flushed();
        checker.verify(&mut primary.connect("data"), "the old primary");
        assert_eq!((role(primary).as_str(), role(other).as_str()), ("secondary", "primary"));
        std::mem::swap(&mut primary, &mut other);
    }
    // The configuration of neither says what it is now, if the number of takeovers is odd, and both restart as they are.
    let last = role(primary);
    primary.stop();
    other.stop();
    other.start();
    primary.start();
    wait(primary, "--in-sync");
    assert_eq!((role(primary), role(other)), (last, "secondary".to_owned()));
}

#[test]
fn hosts_at_a_site_that_takes_over_have_to_come_again() {
    let mut sites = Sites::format(&Options::default());
    let told = sites.note_roles();
    sites.start_both();
    let why = fails(lockstep(&["promote", "--config", path(&sites.right.config)]));
    assert!(why.contains("the primary is alive"), "{why}");
    let why = fails(lockstep(&["promote", "--config", path(&sites.left.config), "--fenced"]));
    assert!(why.contains("primary already"), "{why}");
    let reader = sites.right.connect("data");
    assert_ne!(reader.flags() & READ_ONLY, 0);
    sites.left.kill();
    let loses = |site: &Site| site.status()["peer"]["state"] == "disconnected";
    sites.right.until("it has lost the primary", loses);
    // What it knew of its primary it has forgotten with its process.
    sites.right.kill();
    sites.right.start();
    sites.right.until("it has replayed", |site| site.status()["state"] == "serving");
    let mut reader = sites.right.connect("data");
    let why = fails(lockstep(&["promote", "--config", path(&sites.right.config)]));
    assert!(why.contains("--fenced"), "{why}");
    assert_eq!(role(&sites.right), "secondary");
    promote(&sites.right);
    assert!(reader.read(0, 4096).is_err(), "a connection of before goes on");
    let mut client = sites.right.connect("data");
    assert_eq!(client.flags() & READ_ONLY, 0);
    client.write(0, &[7; 4096], true).expect("a write");
    sites.left.start();
    wait(&sites.right, "--in-sync");
    let mut reader = sites.left.connect_when_served("data");
    assert_ne!(reader.flags() & READ_ONLY, 0);
    wait(&sites.right, "--settled");
    assert_eq!(reader.read(0, 4096).expect("a read"), [7; 4096]);
    // A program of its own tells, when it gets to it.
    sites.left.until("both sites have told of their roles", |_| {
        let told = std::fs::read_to_string(&told).expect("one has told of its role");
        assert!(told.starts_with("right primary\n"), "{told}");
        told == "right primary\nleft secondary\n"
    });
}

/// Nobody says that the primary is fenced, and it is not: its host asks it again as soon as it goes on.
#[test]
fn a_primary_that_stood_still_reads_nothing_once_the_other_site_has_taken_over() {
    // Promises of 4.2 s: long enough for a busy machine, and short enough to be waited for.
    let group = "latency_budget = \"1s\"\nheartbeat_interval = \"50ms\"".to_owned();
    let sites = Sites::start(&Options { group, ..Options::default() });
    let mut behind = sites.left.connect("data");
    behind.write(0, &[1; 4096], true).expect("a write");
    assert_eq!(behind.read(0, 4096).expect("a read"), [1; 4096]);
    sites.left.pause();
    // Until it notices that nothing comes any more, the primary is alive as far as it knows.
    let begun = Instant::now();
    while !lockstep(&["promote", "--config", path(&sites.right.config)]).status.success() {
        assert!(begun.elapsed() < PATIENCE, "it does not take over");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("takeover of a silent primary: {} ms", begun.elapsed().as_millis());
    sites.right.connect("data").write(0, &[2; 4096], true).expect("a write");
    let asks = std::thread::spawn(move || behind.read(0, 4096));
    std::thread::sleep(Duration::from_millis(100));
    sites.left.resume();
    let read = asks.join().expect("it does not panic");
    assert!(read.is_err(), "the old primary read {:?}", read.map(|bytes| bytes[0]));
    wait(&sites.right, "--in-sync");
    assert_eq!((role(&sites.left).as_str(), role(&sites.right).as_str()), ("secondary", "primary"));
}

#[test]
fn nobody_takes_over_unasked_from_a_primary_that_may_go_on_alone() {
    let group = format!("{}\non_peer_loss = \"solo\"", Options::default().group);
    let mut sites = Sites::start(&Options { group, ..Options::default() });
    sites.left.pause();
    let loses = |site: &Site| site.status()["peer"]["state"] == "disconnected";
    sites.right.until("it has lost the primary", loses);
    let why = fails(lockstep(&["promote", "--config", path(&sites.right.config)]));
    assert!(why.contains("--fenced"), "{why}");
    sites.left.resume();
    sites.wait("--in-sync");
}
