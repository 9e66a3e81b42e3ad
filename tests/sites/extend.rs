//! Volumes made larger while hosts are connected, as docs/OPERATIONS.md says to.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;
use crate::stopped::*;

const SIZE_MIB: u64 = 16;
const LARGER_MIB: u64 = 24;
const ROOM_MIB: u64 = 32;

const WRITES: u64 = 2000;

/// The secondary tells its clients within this time; other tests' builds may hold the CPUs.
const TOLD_MAX: Duration = Duration::from_secs(10);

fn options() -> Options {
    Options {
        volumes: vec![("data", SIZE_MIB)],
        room_mib: Some(ROOM_MIB),
        differential_mib: 64,
        ..Options::default()
    }
}

fn extend(site: &Site, mib: u64) -> std::process::Output {
    command("extend", site, &["data", &format!("{mib}MiB")])
}

/// Clients that come see so much.
fn shows(site: &mut Site, mib: u64) {
    let deadline = Instant::now() + TOLD_MAX;
    while site.connect_when_served("data").size() != mib * MIB {
        assert!(Instant::now() < deadline, "{} does not show {mib} MiB", site.name);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_volume_is_extended_under_load_and_survives_whatever_dies_then() {
    let mut sites = Sites::start(&options());
    let file = sites.left.directory.join("data.volume");
    assert_eq!(length(&file), ROOM_MIB * MIB);
    let taken = |file| fs::metadata(file).expect("a file").blocks() * 512;
    assert!(taken(&file) < (SIZE_MIB + 1) * MIB, "room takes no disk: {}", taken(&file));
    let mut checker = Checker::new(blocks(0..SIZE_MIB), seed());
    let mut client = sites.left.connect("data");
    assert_eq!(client.size(), SIZE_MIB * MIB);
    let left = sites.left.config.clone();
    let mut done = false;
    let session = checker.drive(&mut client, DEPTH, |progress| {
        if !done && progress.acknowledged >= WRITES {
            done = true;
            let larger = format!("{LARGER_MIB}MiB");
            let said = succeeds(lockstep(&["extend", "--config", path(&left), "data", &larger]));
            assert!(said.contains("volume data has 24MiB"), "{said}");
        }
        if progress.acknowledged < 2 * WRITES { Next::GoOn } else { Next::Drain }
    });
    assert_eq!((session.refused, session.disconnected), (0, false), "hosts notice nothing: {session:?}");
    assert!(taken(&file) >= LARGER_MIB * MIB, "the space is reserved: {}", taken(&file));
    drop(client);

    assert_eq!(sites.left.connect("data").size(), LARGER_MIB * MIB, "at once where it was asked for");
    shows(&mut sites.right, LARGER_MIB);
    let status = sites.left.status();
    assert_eq!(status["volumes"][0]["size_bytes"], LARGER_MIB * MIB);
    assert_eq!(status["volumes"][0]["room_bytes"], ROOM_MIB * MIB);
    let mut beyond = Checker::new(blocks(SIZE_MIB..LARGER_MIB), seed());
    writes(&mut beyond, &mut sites.left, "data", WRITES);
    succeeds(lockstep(&["snapshot", "create", "--config", path(&sites.left.config), "larger"]));
    writes(&mut beyond, &mut sites.left, "data", WRITES);
    sites.wait("--settled");
    let digests = [&sites.left, &sites.right]
        .map(|site| succeeds(lockstep(&["snapshot", "digest", "--config", path(&site.config), "larger"])));
    assert_eq!(digests[0], digests[1]);
    succeeds(command("verify", &sites.left, &["--rate", "1GiB"]));

    // Whoever takes over shows it, though the primary died a moment after it was told.
    succeeds(extend(&sites.left, ROOM_MIB));
    kill(&mut sites.left);
    succeeds(command("promote", &sites.right, &["--fenced"]));
    assert_eq!(sites.right.connect_when_served("data").size(), ROOM_MIB * MIB);
    let mut last = Checker::new(blocks(LARGER_MIB..ROOM_MIB), seed());
    writes(&mut last, &mut sites.right, "data", WRITES);
    sites.left.start();
    sites.right.wait("--in-sync");
    kill(&mut sites.left);
    kill(&mut sites.right);
    sites.start_both();
    sites.right.wait("--settled");
    for (site, what) in [(&mut sites.right, "the primary"), (&mut sites.left, "the secondary")] {
        shows(site, ROOM_MIB);
        for checker in [&mut checker, &mut beyond, &mut last] {
            checker.verify(&mut site.connect_when_served("data"), what);
        }
    }
}

#[test]
fn a_third_shows_what_the_pair_does_and_serves_it_when_both_are_gone() {
    let mut sites = Sites::start(&Options { third: true, ..options() });
    let [left, right, third] = sites.three();
    succeeds(extend(left, LARGER_MIB));
    let mut beyond = Checker::new(blocks(SIZE_MIB..LARGER_MIB), seed());
    writes(&mut beyond, left, "data", WRITES);
    left.wait("--settled");
    shows(third, LARGER_MIB);
    third.wait("--in-sync");
    third.wait("--settled");
    kill(left);
    kill(right);
    third.until("it knows that both are gone", |third| {
        let status = third.status();
        status["sources"].as_array().expect("a list").iter().all(|source| source["state"] == "disconnected")
    });
    succeeds(command("promote", third, &["--fenced", "--accept-loss", "0"]));
    beyond.verify(&mut third.connect_when_served("data"), "the third");
}

#[test]
fn both_sites_have_the_space_or_none_is_extended() {
    // The first reservation at each site fails.
    let faults = "[[rule]]\ndisk = \"volume:0\"\nop = \"reserve\"\ntimes = 1\nerrno = 28\n";
    let mut sites = Sites::start(&Options { faults, ..options() });
    let here = fails(extend(&sites.left, LARGER_MIB));
    assert!(here.contains("this site cannot reserve the space: No space left"), "{here}");
    let there = fails(extend(&sites.left, LARGER_MIB));
    assert!(there.contains("the other site cannot reserve the space: No space left"), "{there}");
    assert_eq!(sites.left.connect("data").size(), SIZE_MIB * MIB);
    assert_eq!(sites.right.connect("data").size(), SIZE_MIB * MIB);
    let secondary = fails(extend(&sites.right, LARGER_MIB));
    assert!(secondary.contains("ask the primary"), "{secondary}");
    let beyond = fails(extend(&sites.left, ROOM_MIB + 1));
    assert!(beyond.contains("`room` is less"), "{beyond}");
    let smaller = fails(extend(&sites.left, SIZE_MIB));
    assert!(smaller.contains("do not become smaller"), "{smaller}");
    let odd = fails(command("extend", &sites.left, &["data", "20000001B"]));
    assert!(odd.contains("not whole blocks"), "{odd}");
    let unknown = fails(command("extend", &sites.left, &["dato", "20MiB"]));
    assert!(unknown.contains("has no volume dato"), "{unknown}");
    succeeds(extend(&sites.left, LARGER_MIB));
    sites.right.stop();
    let alone = fails(extend(&sites.left, ROOM_MIB));
    assert!(alone.contains("not in lockstep"), "{alone}");
}

#[test]
fn room_is_added_in_a_stop_and_what_was_extended_stays() {
    let mut sites = Sites::start(&options());
    succeeds(extend(&sites.left, LARGER_MIB));
    let mut checker = Checker::new(blocks(0..LARGER_MIB), seed());
    writes(&mut checker, &mut sites.left, "data", WRITES);
    assert!(sites.left.stop().success() && sites.right.stop().success());
    for site in [&sites.left, &sites.right] {
        let text = fs::read_to_string(&site.config).expect("a configuration");
        fs::write(&site.config, text.replace("room = \"32MiB\"", "room = \"48MiB\"")).expect("a file");
        succeeds(command("grow", site, &[]));
    }
    sites.start_both();
    sites.wait("--in-sync");
    shows(&mut sites.left, LARGER_MIB);
    succeeds(extend(&sites.left, 48));
    checker.verify(&mut sites.left.connect("data"), "the primary");
    let mut beyond = Checker::new(blocks(LARGER_MIB..48), seed());
    writes(&mut beyond, &mut sites.left, "data", WRITES);
    sites.wait("--settled");
    shows(&mut sites.right, 48);
    beyond.verify(&mut sites.right.connect("data"), "the secondary");
}
