//! A secondary that was away for longer than the journal lasts: it comes back by itself, by what has changed, while hosts write; and until
//! it has all of it, it can take over as what it was.

use std::time::{Duration, Instant};

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;
use crate::snapshots::{listed, snapshot};

const BLOCK: usize = 4096;
const VOLUME_MIB: u64 = 64;

/// A journal that the writes of an absence do not fit.
fn options() -> Options {
    Options {
        volumes: vec![("data", VOLUME_MIB)],
        journal_mib: 16,
        group: "on_peer_loss = \"solo\"\nlatency_budget = \"500ms\"\nheartbeat_interval = \"50ms\"\nresync_p99_budget = \"50ms\"".to_owned(),
        ..Options::default()
    }
}

fn peer(site: &Site, what: &str) -> u64 {
    site.status()["peer"][what].as_u64().expect("a number")
}

fn copied(site: &Site) -> u64 {
    site.status()["totals"]["resync_bytes"].as_u64().expect("a number")
}

#[test]
fn a_secondary_comes_back_by_what_has_changed_while_hosts_write() {
    let mut sites = Sites::start(&options());
    let mut checker = Checker::new(0..VOLUME_MIB * MIB / BLOCK as u64, seed());
    let drive = |checker: &mut Checker, site: &Site, count: u64| {
        let session = checker.drive(&mut site.connect("data"), 16, |progress| {
            if progress.acknowledged < count { Next::GoOn } else { Next::Drain }
        });
        assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
    };
    drive(&mut checker, &sites.left, 500);
    sites.wait("--settled");
    sites.right.kill();
    drive(&mut checker, &sites.left, 8000);
    let changed = peer(&sites.left, "changed_bytes");
    assert!(changed > 20 * MIB, "{changed} bytes changed");
    sites.right.start();
    // Hosts go on until the secondary is back.
    let mut waited = 0;
    while sites.left.status()["peer"]["state"] != "in_sync" {
        drive(&mut checker, &sites.left, 50);
        rest(waited);
        waited += 1;
        assert!(waited < 200, "{}", sites.left.status());
    }
    sites.wait("--in-sync");
    sites.wait("--settled");
    checker.verify(&mut sites.left.connect("data"), "the primary");
    sites.right.until_it_shows(&sites.left);
    checker.verify(&mut sites.right.connect_when_served("data"), "the secondary");
    // What hosts changed meanwhile may have been copied too: fifty writes a turn at most.
    let (copied, meanwhile) = (copied(&sites.left), waited * 50 * 64 * 1024);
    println!("{changed} bytes changed, {copied} copied, {waited} turns");
    assert!(
        copied >= changed * 9 / 10 && copied <= changed * 105 / 100 + meanwhile,
        "{changed} changed, {copied} copied"
    );
    assert_eq!(peer(&sites.left, "changed_bytes"), 0);
    // The next absence, a short one, is the journal's again.
    sites.right.kill();
    drive(&mut checker, &sites.left, 100);
    sites.right.start();
    sites.wait("--in-sync");
    sites.wait("--settled");
    sites.right.until_it_shows(&sites.left);
    checker.verify(&mut sites.right.connect_when_served("data"), "the secondary");
}

#[test]
fn a_secondary_comes_back_with_the_snapshots_that_were_taken_meanwhile() {
    let mut sites = Sites::start(&Options { differential_mib: 3 * VOLUME_MIB, ..options() });
    let mut checker = Checker::new(0..VOLUME_MIB * MIB / BLOCK as u64, seed());
    let drive = |checker: &mut Checker, site: &Site, count: u64| {
        let session = checker.drive(&mut site.connect("data"), 16, |progress| {
            if progress.acknowledged < count { Next::GoOn } else { Next::Drain }
        });
        assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
    };
    let take = |sites: &Sites, name: &str| succeeds(snapshot(&sites.left, &["create", name]));
    take(&sites, "oldest");
    drive(&mut checker, &sites.left, 1000);
    take(&sites, "old");
    drive(&mut checker, &sites.left, 300);
    sites.wait("--settled");
    sites.right.kill();
    // What deleting sets free is used again, for what is captured meanwhile.
    succeeds(snapshot(&sites.left, &["delete", "oldest"]));
    drive(&mut checker, &sites.left, 4000);
    take(&sites, "meanwhile");
    drive(&mut checker, &sites.left, 4000);
    sites.right.start();
    let (mut waited, mut taken) = (0, 0);
    while sites.left.status()["peer"]["state"] != "in_sync" {
        drive(&mut checker, &sites.left, 50);
        if waited % 8 == 0 && taken < 4 {
            taken += 1;
            take(&sites, &format!("resyncing-{taken}"));
        }
        rest(waited);
        waited += 1;
        assert!(waited < 200, "{}", sites.left.status());
    }
    sites.wait("--in-sync");
    drive(&mut checker, &sites.left, 300);
    sites.wait("--settled");
    assert!(copied(&sites.left) > 20 * MIB, "the journal sufficed");
    checker.verify(&mut sites.left.connect("data"), "the primary");
    sites.right.until_it_shows(&sites.left);
    checker.verify(&mut sites.right.connect_when_served("data"), "the secondary");
    let names = listed(&sites.left);
    assert_eq!(names.len(), 2 + taken, "{names:?}");
    assert_eq!(listed(&sites.right), names);
    for (name, _) in &names {
        let digests = [&sites.left, &sites.right].map(|site| succeeds(snapshot(site, &["digest", name])));
        assert_eq!(digests[0], digests[1], "{name}");
    }
    println!("{taken} snapshots taken in {waited} turns of the resync");
}

#[test]
fn a_copy_goes_on_where_it_was_after_the_secondary_died() {
    let mut sites = Sites::start(&options());
    let mut client = sites.left.connect("data");
    sites.right.kill();
    for index in 0..VOLUME_MIB * 16 {
        client
            .write(index * 16 * BLOCK as u64, &[1 + (index % 250) as u8; 16 * BLOCK], false)
            .expect("a write");
    }
    let changed = peer(&sites.left, "changed_bytes");
    assert_eq!(changed, VOLUME_MIB * MIB);
    sites.right.start();
    let mut deaths = 0;
    while sites.left.status()["peer"]["state"] != "in_sync" {
        if deaths < 2 && copied(&sites.left) > changed * (1 + deaths) / 4 {
            sites.right.kill();
            sites.right.start();
            deaths += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    sites.wait("--in-sync");
    sites.wait("--settled");
    // What was on its way at a death was not counted; what was staged is not copied again.
    let copied = copied(&sites.left);
    println!("{changed} bytes changed, {copied} copied, {deaths} deaths");
    assert!(deaths > 0, "too fast to be interrupted");
    assert!(copied >= changed && copied <= changed + MIB, "{changed} changed, {copied} copied");
    sites.right.until_it_shows(&sites.left);
    let mut reader = sites.right.connect_when_served("data");
    for index in 0..VOLUME_MIB * 16 {
        let found = reader.read(index * 16 * BLOCK as u64, 16 * BLOCK as u32).expect("a read");
        assert!(found.iter().all(|byte| *byte == 1 + (index % 250) as u8), "piece {index}");
    }
}

#[test]
fn no_more_is_copied_than_has_changed() {
    let mut sites = Sites::start(&options());
    let mut client = sites.left.connect("data");
    let write = |client: &mut lockstep::io::nbd_client::NbdClient, block: u64, byte: u8| {
        client.write(block * BLOCK as u64, &[byte; 16 * BLOCK], false).expect("a write");
    };
    (0..1024).for_each(|index| write(&mut client, 16 * index, 1));
    sites.wait("--settled");
    sites.right.kill();
    // Every third piece, twice.
    for round in 2..4 {
        (0..1024).step_by(3).for_each(|index| write(&mut client, 16 * index, round));
    }
    let changed = peer(&sites.left, "changed_bytes");
    assert_eq!(changed, 342 * 16 * BLOCK as u64);
    sites.right.start();
    sites.wait("--in-sync");
    sites.wait("--settled");
    let copied = copied(&sites.left);
    assert!(copied >= changed && copied <= changed * 105 / 100, "{changed} changed, {copied} copied");
    sites.right.until_it_shows(&sites.left);
    let mut reader = sites.right.connect_when_served("data");
    for index in 0..1024 {
        let due = if index % 3 == 0 { 3 } else { 1 };
        let found = reader.read(index * 16 * BLOCK as u64, 16 * BLOCK as u32).expect("a read");
        assert!(found.iter().all(|byte| *byte == due), "piece {index} is not {due}");
    }
}

const PIECES: u64 = 256;

/// The `number`th write: its piece, and its content, which says so.
fn write_of(number: u64) -> (u64, Vec<u8>) {
    let piece = number * 77 % PIECES;
    (piece, number.to_le_bytes().repeat(16 * BLOCK / 8))
}

#[test]
fn a_secondary_can_take_over_at_any_moment_of_a_resync() {
    for round in 0..4u64 {
        let mut sites = Sites::start(&options());
        let mut client = sites.left.connect("data");
        let mut number = 0;
        let mut write = |client: &mut lockstep::io::nbd_client::NbdClient, count: u64| {
            for _ in 0..count {
                number += 1;
                let (piece, content) = write_of(number);
                client.write(piece * content.len() as u64, &content, false).expect("a write");
            }
            number
        };
        let before = write(&mut client, 300);
        sites.wait("--settled");
        sites.right.kill();
        write(&mut client, 600);
        sites.right.start();
        let until = Instant::now() + Duration::from_millis(seed() % 400 + 300 * round);
        let mut last = 0;
        while Instant::now() < until {
            last = write(&mut client, 5);
        }
        drop(client);
        sites.left.kill();
        // While it installs, it has to be asked again.
        let config = path(&sites.right.config).to_owned();
        sites.right.until("it takes over", |_| {
            lockstep(&["promote", "--config", &config, "--fenced"]).status.success()
        });
        let mut client = sites.right.connect_when_served("data");
        let found: Vec<u64> = (0..PIECES)
            .map(|piece| {
                let read = client.read(piece * 16 * BLOCK as u64, 16 * BLOCK as u32).expect("a read");
                let (stamps, _) = read.as_chunks::<8>();
                let first = u64::from_le_bytes(stamps[0]);
                assert!(
                    stamps.iter().all(|stamp| u64::from_le_bytes(*stamp) == first),
                    "piece {piece} is torn"
                );
                first
            })
            .collect();
        let newest = *found.iter().max().expect("pieces");
        println!("round {round}: {before} writes before, {last} in all, it took over with {newest}");
        assert!(newest >= before, "{newest} of {before}");
        for (piece, found) in (0..).zip(found) {
            let due = (1..=newest).rev().find(|number| write_of(*number).0 == piece).unwrap_or(0);
            assert_eq!(
                found, due,
                "round {round}: piece {piece} of a site that took over with {newest} writes"
            );
        }
    }
}
