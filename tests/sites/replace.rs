//! A site's disks are replaced: it is formatted anew, and comes back by itself, with all blocks, while hosts write.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;
use crate::snapshots::{listed, snapshot};

const VOLUME_MIB: u64 = 64;

fn options() -> Options {
    Options {
        volumes: vec![("data", VOLUME_MIB), ("log", 8)],
        journal_mib: 16,
        differential_mib: 3 * VOLUME_MIB,
        group: "on_peer_loss = \"solo\"\nlatency_budget = \"500ms\"\nheartbeat_interval = \"50ms\"\nresync_p99_budget = \"50ms\"".to_owned(),
        ..Options::default()
    }
}

fn drive(checker: &mut Checker, site: &Site, count: u64) {
    let session = checker.drive(&mut site.connect("data"), 16, |progress| {
        if progress.acknowledged < count { Next::GoOn } else { Next::Drain }
    });
    assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
}

/// Everything that the site had is gone, but for who it is.
fn replace_disks(site: &mut Site) {
    // The kernel closes what a killed process had open a little later; locks on new files do not show when.
    site.until("its old process is gone", |site| UnixStream::connect(&site.nbd).is_err());
    let identity = ("identity.pem", site.config.with_extension("pem"));
    fs::rename(site.directory.join(identity.0), &identity.1).expect("an identity");
    fs::remove_dir_all(&site.directory).expect("a folder that is there");
    fs::create_dir(&site.directory).expect("a folder");
    fs::rename(&identity.1, site.directory.join(identity.0)).expect("an identity");
    succeeds(lockstep(&["format", "--config", path(&site.config)]));
}

/// Hosts go on until the other site is back.
fn drive_until_back(checker: &mut Checker, site: &Site) -> u64 {
    let mut turns = 0;
    while site.status()["peer"]["state"] != "in_sync" {
        drive(checker, site, 50);
        rest(turns);
        turns += 1;
        assert!(turns < 200, "{}", site.status());
    }
    turns
}

#[test]
fn a_secondary_that_lost_its_disks_comes_back_while_hosts_write() {
    let mut sites = Sites::start(&options());
    let mut checker = Checker::new(0..VOLUME_MIB * MIB / 4096, seed());
    succeeds(snapshot(&sites.left, &["create", "empty"]));
    drive(&mut checker, &sites.left, 4000);
    succeeds(snapshot(&sites.left, &["create", "early"]));
    drive(&mut checker, &sites.left, 1000);
    sites.left.connect("log").write(0, &[7; 65536], true).expect("a write");
    sites.wait("--settled");
    sites.right.kill();
    replace_disks(&mut sites.right);
    drive(&mut checker, &sites.left, 300);
    sites.right.start();
    // It is nobody's successor before it has something, however it is asked.
    sites
        .right
        .until("it is being copied to", |right| right.log_text().contains("a resync of all blocks begins"));
    sites.right.kill();
    sites.left.pause();
    sites.right.start();
    sites.right.until("it has replayed", |site| site.status()["state"] == "serving");
    assert_eq!(sites.right.status()["watermarks"]["last"], 0);
    let said = fails(lockstep(&["promote", "--config", path(&sites.right.config), "--fenced"]));
    assert!(said.contains("holds nothing yet"), "{said}");
    sites.left.resume();
    let turns = drive_until_back(&mut checker, &sites.left);
    sites.wait("--in-sync");
    succeeds(snapshot(&sites.left, &["create", "late"]));
    drive(&mut checker, &sites.left, 300);
    sites.wait("--settled");
    for site in [&sites.left, &sites.right] {
        assert!(site.log_text().contains("a resync of all blocks begins"), "{}", site.name);
    }
    checker.verify(&mut sites.left.connect("data"), "the primary");
    sites.right.until_it_shows(&sites.left);
    checker.verify(&mut sites.right.connect_when_served("data"), "the secondary");
    let log = sites.right.connect("log").read(0, 65536).expect("a read");
    assert!(log.iter().all(|byte| *byte == 7));
    assert_eq!(listed(&sites.right), listed(&sites.left));
    for name in ["empty", "early", "late"] {
        let digests = [&sites.left, &sites.right].map(|site| succeeds(snapshot(site, &["digest", name])));
        assert_eq!(digests[0], digests[1], "{name}");
    }
    succeeds(lockstep(&["verify", "--config", path(&sites.left.config), "--rate", "1GiB"]));
    println!("back after {turns} turns: {}", sites.left.status()["totals"]);
    // It is as good as any: the other one's disks may go next.
    succeeds(lockstep(&["switchover", "--config", path(&sites.left.config)]));
    sites.left.kill();
    replace_disks(&mut sites.left);
    drive(&mut checker, &sites.right, 300);
    sites.left.start();
    drive_until_back(&mut checker, &sites.right);
    sites.right.wait("--in-sync");
    sites.left.until_it_shows(&sites.right);
    checker.verify(&mut sites.left.connect_when_served("data"), "the one that was primary");
}

#[test]
fn a_site_with_older_disks_is_copied_what_differs() {
    const PIECE: usize = 65536;
    const CHANGED: u64 = 64;
    let mut sites = Sites::start(&options());
    let mut client = sites.left.connect("data");
    let pieces = VOLUME_MIB * MIB / PIECE as u64;
    let mut write = |piece: u64, byte: u8| {
        client.write(piece * PIECE as u64, &[byte; PIECE], false).expect("a write");
    };
    (0..pieces).for_each(|piece| write(piece, 1));
    sites.wait("--settled");
    sites.right.stop();
    let (disks, older) = (sites.right.directory.clone(), sites.path("older"));
    let copy =
        |from: &Path, to: &Path| succeeds(tool("cp", &["-a", "--sparse=always", path(from), path(to)]));
    copy(&disks, &older);
    sites.right.start();
    sites.wait("--in-sync");
    // More than the journal holds, and a part of the volume only.
    (0..6).for_each(|round| (0..CHANGED).for_each(|piece| write(piece * 7, 2 + round)));
    sites.wait("--settled");
    sites.left.until("all is in the volumes", |left| {
        let marks = &left.status()["watermarks"];
        marks["checkpoint"] == marks["last"]
    });
    sites.right.kill();
    sites.right.until("its old process is gone", |site| UnixStream::connect(&site.nbd).is_err());
    fs::remove_dir_all(&disks).expect("a folder that is there");
    fs::rename(&older, &disks).expect("the older folder");
    (0..CHANGED).for_each(|piece| write(piece * 7, 9));
    sites.right.start();
    sites.wait("--in-sync");
    sites.wait("--settled");
    assert!(sites.left.log_text().contains("a resync of all blocks begins"));
    let total = |what: &str| sites.left.status()["totals"][what].as_u64().expect("a number");
    let (copied, equal) = (total("resync_bytes"), total("resync_equal_bytes"));
    let differs = CHANGED * PIECE as u64;
    println!("{differs} bytes differ, {copied} copied, {equal} equal");
    assert!(copied >= differs && copied <= differs + MIB, "{differs} differ, {copied} copied");
    assert!(equal >= (VOLUME_MIB * MIB - differs) * 9 / 10, "{equal} equal");
    sites.right.until_it_shows(&sites.left);
    let mut reader = sites.right.connect_when_served("data");
    for piece in 0..pieces {
        let due = if piece % 7 == 0 && piece < 7 * CHANGED { 9 } else { 1 };
        let found = reader.read(piece * PIECE as u64, PIECE as u32).expect("a read");
        assert!(found.iter().all(|byte| *byte == due), "piece {piece} is not {due}");
    }
}

#[test]
fn a_primary_that_is_not_alone_says_how_its_peer_can_be_copied_to() {
    let group =
        "latency_budget = \"500ms\"\nheartbeat_interval = \"50ms\"\nhost_deadline = \"2s\"".to_owned();
    let mut sites = Sites::start(&Options { journal_mib: 16, group, ..options() });
    let mut checker = Checker::new(0..VOLUME_MIB * MIB / 4096, seed());
    drive(&mut checker, &sites.left, 2000);
    sites.wait("--settled");
    sites.left.stop();
    sites.right.kill();
    replace_disks(&mut sites.right);
    sites.left.start();
    sites.right.start();
    sites.left.until("it refuses", |left| left.log_text().contains("promote --fenced"));
    assert_eq!(sites.left.status()["state"], "awaiting_peer");
    succeeds(lockstep(&["promote", "--config", path(&sites.left.config), "--fenced"]));
    drive_until_back(&mut checker, &sites.left);
    sites.wait("--in-sync");
    sites.right.until_it_shows(&sites.left);
    checker.verify(&mut sites.right.connect_when_served("data"), "the secondary");
}
