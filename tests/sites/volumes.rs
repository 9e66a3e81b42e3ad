//! Volumes added to a group, and removed from it, while its sites are stopped for a moment, as docs/OPERATIONS.md says to.

use std::fs;
use std::time::Instant;

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;
use crate::stopped::*;

const WRITES: u64 = 1000;

const DATA_MIB: u64 = 32;
const MORE_MIB: u64 = 16;

fn options() -> Options {
    Options {
        volumes: vec![("data", DATA_MIB), ("log", 8)],
        journal_mib: 16,
        differential_mib: 80,
        ..Options::default()
    }
}

/// Its configuration has one more volume behind the others.
fn set_added(site: &Site, name: &str, mib: u64) {
    let text = fs::read_to_string(&site.config).expect("a configuration");
    let volume = format!("[[volume]]\nname = \"{name}\"\nsize = \"{mib}MiB\"\n[journal]");
    fs::write(&site.config, text.replace("[journal]", &volume)).expect("a configuration");
}

fn adds(site: &Site, name: &str, mib: u64) {
    set_added(site, name, mib);
    succeeds(command("add-volume", site, &[]));
    assert_eq!(length(&site.directory.join(format!("{name}.volume"))), mib * MIB);
}

fn same_digests(sites: &Sites, names: &[&str]) {
    for name in names {
        let digests = [&sites.left, &sites.right]
            .map(|site| succeeds(lockstep(&["snapshot", "digest", "--config", path(&site.config), name])));
        assert_eq!(digests[0], digests[1], "{name}");
    }
}

/// The primary has all of it, and the others show it.
fn all_hold_all(primary: &mut Site, others: [&mut Site; 2], data: &mut Checker, more: &mut Checker) {
    primary.wait("--settled");
    for site in others {
        site.until_it_shows(primary);
        data.verify(&mut site.connect_when_served("data"), site.name);
        more.verify(&mut site.connect_when_served("more"), site.name);
    }
    data.verify(&mut primary.connect_when_served("data"), "the primary");
    more.verify(&mut primary.connect_when_served("more"), "the primary");
}

fn snapshot(site: &Site, name: &str) {
    succeeds(lockstep(&["snapshot", "create", "--config", path(&site.config), name]));
}

#[test]
fn a_volume_is_added_to_a_pair_in_a_short_stop_under_load_and_nothing_is_copied() {
    let mut sites = Sites::start(&Options { third: true, ..options() });
    let (mut data, mut more) =
        (Checker::new(blocks(0..DATA_MIB), seed()), Checker::new(blocks(0..MORE_MIB), seed()));
    writes(&mut data, &mut sites.left, "data", WRITES);
    snapshot(&sites.left, "before");
    let mut client = sites.left.connect("data");
    let [left, right, far] = sites.three();
    let mut begun = None;
    let session = data.drive(&mut client, DEPTH, |progress| {
        if begun.is_none() && progress.acknowledged >= WRITES {
            begun = Some(Instant::now());
            succeeds(lockstep(&["stop", "--config", path(&left.config)]));
        }
        Next::GoOn
    });
    assert!(session.disconnected, "{session:?}");
    assert!(left.exited().success());
    assert!(right.stop().success() && far.stop().success());
    for site in [&*left, &*right, &*far] {
        adds(site, "more", MORE_MIB);
    }
    right.start();
    left.start();
    let mut client = left.connect_when_served("more");
    assert_eq!(client.size(), MORE_MIB * MIB);
    client.write(MORE_MIB * MIB - 4096, &[9; 4096], true).expect("a write");
    let pause = begun.expect("it was begun").elapsed();
    println!("hosts saw a pause of {} ms", pause.as_millis());
    assert!(pause < PAUSE_MAX, "{pause:?}");
    client.trim(MORE_MIB * MIB - 4096, 4096).expect("a trim");
    drop(client);
    far.start();
    left.wait("--in-sync");
    data.verify(&mut left.connect("data"), "the primary");
    more.verify(&mut left.connect("more"), "what is new reads as zeros");
    writes(&mut more, left, "more", WRITES);
    writes(&mut data, left, "data", WRITES);
    snapshot(left, "after");
    writes(&mut more, left, "more", WRITES);
    left.wait("--settled");
    far.wait("--in-sync");
    far.until_it_shows(left);
    assert_eq!(copied(&sites.left), 0);
    same_digests(&sites, &["before", "after"]);
    succeeds(command("verify", &sites.left, &["--rate", "1GiB"]));

    succeeds(command("switchover", &sites.left, &[]));
    writes(&mut more, &mut sites.right, "more", WRITES);
    sites.right.wait("--in-sync");
    kill(&mut sites.right);
    kill(&mut sites.left);
    sites.start_both();
    let [left, right, far] = sites.three();
    all_hold_all(right, [left, far], &mut data, &mut more);
    assert_eq!(copied(right), 0);
}

#[test]
fn sites_with_different_volumes_refuse_each_other_until_both_have_them() {
    let mut sites = Sites::start(&options());
    let mut data = Checker::new(blocks(0..DATA_MIB), seed());
    writes(&mut data, &mut sites.left, "data", WRITES);
    assert!(sites.left.stop().success() && sites.right.stop().success());
    adds(&sites.right, "more", MORE_MIB);
    sites.right.start();
    sites.left.start();
    sites.left.until("it names both", |left| left.log_text().contains("2 volumes here and 3 there"));
    assert_eq!(sites.left.status()["state"], "awaiting_peer");
    set_added(&sites.left, "more", MORE_MIB);
    assert!(fails(command("add-volume", &sites.left, &[])).contains("locked by another process"));
    assert!(succeeds(command("add-volume", &sites.left, &["--check"])).contains("more.volume"));
    sites.left.stop();
    assert!(!sites.left.try_start());
    assert!(sites.left.log_text().contains("lockstep add-volume"), "{}", sites.left.log_text());
    succeeds(command("add-volume", &sites.left, &[]));
    sites.left.start();
    sites.wait("--in-sync");
    data.verify(&mut sites.left.connect("data"), "the primary");
    assert_eq!(copied(&sites.left), 0);
}

#[test]
fn a_peer_that_was_away_for_long_is_copied_what_it_lacks_once_both_have_the_volume() {
    let mut sites = Sites::start(&solo(options()));
    let (mut data, mut more) =
        (Checker::new(blocks(0..DATA_MIB), seed()), Checker::new(blocks(0..MORE_MIB), seed()));
    writes(&mut data, &mut sites.left, "data", WRITES);
    snapshot(&sites.left, "before");
    sites.wait("--settled");
    assert!(sites.right.stop().success());
    // Some times what the journal holds: what has changed is in a set of marks from here on, slots behind the volumes.
    for _ in 0..6 {
        writes(&mut data, &mut sites.left, "data", WRITES);
    }
    assert!(sites.left.stop().success());
    for site in [&sites.left, &sites.right] {
        adds(site, "more", MORE_MIB);
    }
    sites.left.start();
    writes(&mut more, &mut sites.left, "more", WRITES);
    sites.start_both();
    assert!(copied(&sites.left) > 0 && sites.right.log_text().contains("are installed"));
    sites.wait("--settled");
    for site in [&mut sites.left, &mut sites.right] {
        data.verify(&mut site.connect_when_served("data"), site.name);
        more.verify(&mut site.connect_when_served("more"), site.name);
    }
    same_digests(&sites, &["before"]);
    succeeds(command("verify", &sites.left, &["--rate", "1GiB"]));
}

/// Its configuration has this volume no longer.
fn set_removed(site: &Site, name: &str) {
    let text = fs::read_to_string(&site.config).expect("a configuration");
    let at = text.find(&format!("[[volume]]\nname = \"{name}\"\n")).expect("the volume");
    let (before, after) = text.split_at(at);
    let end = at + after.match_indices('\n').nth(2).expect("three lines").0 + 1;
    fs::write(&site.config, format!("{before}{}", &text[end..])).expect("a configuration");
}

fn removes(site: &Site, name: &str) {
    set_removed(site, name);
    let said = succeeds(command("remove-volume", site, &["--check", name]));
    assert!(said.contains("can be removed from this site; nothing was changed"), "{said}");
    succeeds(command("remove-volume", site, &[name]));
    assert!(site.directory.join(format!("{name}.volume")).exists(), "its file stays");
}

#[test]
fn a_volume_is_removed_from_a_pair_in_a_short_stop_and_the_others_are_what_they_were() {
    let mut sites = Sites::start(&Options { third: true, ..options() });
    let (mut data, mut more) =
        (Checker::new(blocks(0..DATA_MIB), seed()), Checker::new(blocks(0..MORE_MIB), seed()));
    assert!(sites.left.stop().success() && sites.right.stop().success());
    let [left, right, far] = sites.three();
    assert!(far.stop().success());
    for site in [&*left, &*right, &*far] {
        adds(site, "more", MORE_MIB);
    }
    right.start();
    left.start();
    far.start();
    let mut log = Checker::new(blocks(0..8), seed());
    writes(&mut data, left, "data", WRITES);
    writes(&mut log, left, "log", WRITES);
    succeeds(lockstep(&[
        "snapshot",
        "create",
        "--config",
        path(&left.config),
        "--volume",
        "more",
        "--volume",
        "data",
        "kept",
    ]));
    // What it keeps of the volume that goes is garbage, and its snapshot is deleted.
    snapshot(left, "of-all");
    writes(&mut log, left, "log", WRITES);
    writes(&mut data, left, "data", WRITES);
    writes(&mut more, left, "more", WRITES);
    let every = |left: &Site, right: &Site, far: &mut Site| {
        left.wait("--in-sync");
        left.wait("--settled");
        right.wait("--settled");
        far.wait("--in-sync");
        far.until_it_shows(left);
    };
    every(left, right, far);
    let written = fs::read_to_string(&left.config).expect("a configuration");
    for site in [&mut *left, &mut *right, &mut *far] {
        assert!(site.stop().success());
    }
    set_removed(left, "log");
    let why = fails(command("remove-volume", left, &["log"]));
    assert!(why.contains("snapshot of-all has the volume \"log\""), "{why}");
    fs::write(&left.config, written).expect("a configuration");
    right.start();
    left.start();
    far.start();
    left.wait("--in-sync");
    succeeds(lockstep(&["snapshot", "delete", "--config", path(&left.config), "of-all"]));
    writes(&mut more, left, "more", WRITES);
    every(left, right, far);
    for site in [&mut *left, &mut *right, &mut *far] {
        assert!(site.stop().success());
        removes(site, "log");
        let why = fails(command("remove-volume", site, &["log"]));
        assert!(why.contains("has no volume \"log\""), "{why}");
    }
    right.start();
    left.start();
    far.start();
    left.wait("--in-sync");
    assert!(left.try_connect("log").is_err());
    data.verify(&mut left.connect_when_served("data"), "the primary");
    more.verify(&mut left.connect_when_served("more"), "the primary");
    writes(&mut more, left, "more", WRITES);
    writes(&mut data, left, "data", WRITES);
    snapshot(left, "after");
    writes(&mut more, left, "more", WRITES);
    every(left, right, far);
    assert_eq!(copied(&sites.left), 0);
    same_digests(&sites, &["kept", "after"]);
    succeeds(command("verify", &sites.left, &["--rate", "1GiB"]));
    for site in [&sites.left, &sites.right] {
        succeeds(command("scrub", site, &["--rate", "1GiB"]));
    }
    kill(&mut sites.right);
    kill(&mut sites.left);
    sites.start_both();
    let [left, right, far] = sites.three();
    all_hold_all(left, [right, far], &mut data, &mut more);
    // One of that name would be taken for the old one by a site that still has that.
    assert!(left.stop().success());
    set_added(left, "log", 8);
    let why = fails(command("add-volume", left, &[]));
    assert!(why.contains("Give it another name"), "{why}");
}

#[test]
fn a_volume_is_not_removed_while_anybody_may_need_updates_of_it() {
    let mut sites = Sites::start(&solo(options()));
    let (mut data, mut log) = (Checker::new(blocks(0..DATA_MIB), seed()), Checker::new(blocks(0..8), seed()));
    writes(&mut data, &mut sites.left, "data", WRITES);
    sites.wait("--settled");
    assert!(sites.right.stop().success());
    let left = &mut sites.left;
    let written = fs::read_to_string(&left.config).expect("a configuration");
    let refused = |site: &Site, names: &[&str], what: &str| {
        for names in [names, &[names, &["--check"]].concat()] {
            let why = fails(command("remove-volume", site, names));
            assert!(why.contains(what), "{what:?} is not in {why}");
        }
    };
    refused(left, &["log"], "locked by another process");
    let mut client = left.connect_when_served("log");
    log.drive(
        &mut client,
        DEPTH,
        |progress| {
            if progress.acknowledged < 50 { Next::GoOn } else { Next::Drain }
        },
    );
    drop(client);
    // In its volume by then, but the other site lacks it.
    assert!(left.stop().success());
    refused(left, &["log"], "the configuration still has the volume \"log\"");
    refused(left, &["lag"], "the site has no volume \"lag\"");
    set_removed(left, "log");
    refused(left, &["data"], "still has the volume \"data\"");
    refused(left, &["log"], "which another site lacks");
    fs::write(&left.config, written).expect("a configuration");
    sites.start_both();
    sites.wait("--settled");
    log.verify(&mut sites.left.connect_when_served("log"), "the primary");
    for site in [&mut sites.left, &mut sites.right] {
        assert!(site.stop().success());
        removes(site, "log");
    }
    sites.start_both();
    data.verify(&mut sites.left.connect_when_served("data"), "the primary");
    assert_eq!(copied(&sites.left), 0);
}
