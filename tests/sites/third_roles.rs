//! A third as a process of its own that is made primary, and three sites that change their roles.

use std::fs;

use lockstep::base::BLOCK_BYTES;
use lockstep::core::config::Role;
use lockstep::format::superblock::Superblock;
use lockstep::node::config::Config;
use serde_json::Value;

use crate::checker::Checker;
use crate::crashes::seed;
use crate::pair::*;
use crate::snapshots::{listed, snapshot};
use crate::third::{has_everything, identical, number, options, writes};

fn promote(site: &Site, arguments: &[&str]) -> std::process::Output {
    lockstep(&[&["promote", "--config", path(&site.config)], arguments].concat())
}

/// Waits until no site that this third pulls from is connected.
fn is_deserted(far: &mut Site) {
    far.until("nobody is there", |far| {
        far.status()["sources"]
            .as_array()
            .expect("sources")
            .iter()
            .all(|source| source["state"] == "disconnected")
    });
}

fn source(far: &Site, name: &str) -> Value {
    let status = far.status();
    let sources = status["sources"].as_array().expect("sources");
    sources.iter().find(|source| source["name"] == name).expect("a source").clone()
}

#[test]
fn a_third_is_promoted_when_both_are_gone_and_shows_them_what_each_has_when_they_return() {
    let mut sites = Sites::start(&options());
    let told = sites.note_roles();
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    let [left, right, far] = sites.three();
    far.stop();
    far.start();
    far.wait("--in-sync");
    writes(&mut checker, left, 600);
    succeeds(snapshot(left, &["create", "one"]));
    writes(&mut checker, left, 300);
    left.wait("--settled");
    has_everything(far, left);
    let said = fails(promote(far, &["--fenced", "--accept-loss", "0"]));
    assert!(said.contains("promote that one in place of this"), "{said}");
    left.kill();
    right.kill();
    is_deserted(far);
    let before = far.status();
    assert!(source(far, "left")["heard_seconds_ago"].as_f64().expect("heard") > 0.0, "{before}");
    for (arguments, next) in [(&[][..], "--fenced"), (&["--fenced"], "--accept-loss 0")] {
        let said = fails(promote(far, arguments));
        let position = format!("up to #{}", before["watermarks"]["last"]);
        for part in
            [next, &position, "left was last heard", "At least 0 updates are lost", "Nothing is changed"]
        {
            assert!(said.contains(part), "{part} in {said}");
        }
    }
    assert_eq!(far.status()["role"], "third");
    succeeds(promote(far, &["--fenced", "--accept-loss", "0"]));
    assert_eq!(far.status()["role"], "primary");
    writes(&mut checker, far, 500);
    let position = number(&before, ["watermarks", "last"]);
    // Killed and started as what it is by now, whatever it was formatted as.
    far.kill();
    far.start();
    far.until("it serves", |far| far.status()["state"] == "serving");
    assert_eq!(far.status()["role"], "primary");
    writes(&mut checker, far, 200);
    checker.all_is_flushed();
    checker.verify(&mut far.connect("data"), "the promoted third");
    let snapshots = listed(far);
    assert_eq!(snapshots.len(), 1);
    far.until("the hook has run", |_| {
        fs::read_to_string(&told).is_ok_and(|told| told.contains("far primary"))
    });
    // The others return as what they were.
    right.start();
    left.start();
    for site in [left, right] {
        let name = site.name;
        far.until("it has met them", |far| source(far, name)["parted"] != Value::Null);
        site.until("it has met the third", |site| site.status()["third"]["state"] == "promoted");
        let (here, there) = (site.status()["third"]["promoted"].clone(), source(far, name)["parted"].clone());
        assert_eq!((&here["common"], &there["common"]), (&position.into(), &position.into()), "{name}");
        assert!(here["theirs"]["updates"].as_u64().expect("a number") >= 700, "{here}");
        let shown = succeeds(lockstep(&["status", "--config", path(&site.config)]));
        assert!(shown.contains("TWO HISTORIES: far was made primary"), "{shown}");
        assert!(site.log_text().contains("far was made primary over what this site has up to"), "{name}");
    }
    let shown = succeeds(lockstep(&["status", "--config", path(&far.config)]));
    assert!(shown.contains("TWO HISTORIES: this site was made primary in place of left"), "{shown}");
    checker.verify(&mut far.connect("data"), "the promoted third, which they changed nothing of");
}

/// The third becomes primary, one of the old pair its secondary, the other one the third of both; and back. Nothing is copied.
#[test]
fn three_sites_change_their_roles_as_planned_and_move_nothing_but_what_is_written() {
    let mut sites = Sites::start(&options());
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    {
        let [left, _, far] = sites.three();
        writes(&mut checker, left, 800);
        succeeds(lockstep(&["demote", "--config", path(&left.config)]));
        has_everything(far, left);
        let said = fails(promote(far, &[]));
        assert!(said.contains("--fenced"), "{said}");
        // Nothing is lost, so nothing has to be given up.
        succeeds(promote(far, &["--fenced"]));
        writes(&mut checker, far, 300);
    }
    for site in sites.three() {
        assert!(site.stop().success());
    }
    sites.assign("far", "left", "right");
    {
        let [left, right, far] = sites.three();
        for site in [&mut *far, left, right] {
            site.start();
        }
        far.wait("--in-sync");
        for (site, role) in [(&mut *left, "secondary"), (right, "third"), (far, "primary")] {
            site.until("it is what its file says", |site| site.status()["role"] == role);
        }
        writes(&mut checker, far, 300);
        far.wait("--settled");
        has_everything(right, far);
        let status = far.status();
        let moved = [["totals", "catch_up_updates"], ["totals", "fed_updates"], ["totals", "resync_bytes"]];
        let [caught_up, fed, copied] = moved.map(|keys| number(&status, keys));
        eprintln!(
            "planned: {caught_up} updates to the secondary from the journal, {fed} to the third, {copied} bytes copied"
        );
        assert_eq!(copied, 0, "{status}");
        checker.all_is_flushed();
        checker.verify(&mut far.connect("data"), "the new primary");
        identical(left, far, "data");
        identical(right, far, "data");
        // And back: the pair as it was first.
        succeeds(lockstep(&["switchover", "--config", path(&far.config)]));
        writes(&mut checker, left, 200);
        left.wait("--settled");
        has_everything(right, left);
        for site in [right, far, left] {
            assert!(site.stop().success());
        }
    }
    sites.assign("left", "right", "far");
    let [left, right, far] = sites.three();
    for site in [&mut *far, right, left] {
        site.start();
    }
    left.wait("--in-sync");
    for (site, role) in [(&mut *left, "primary"), (right, "secondary"), (far, "third")] {
        site.until("it is what its file says", |site| site.status()["role"] == role);
    }
    writes(&mut checker, left, 200);
    left.wait("--settled");
    has_everything(far, left);
    assert_eq!(number(&left.status(), ["totals", "resync_bytes"]), 0);
    checker.all_is_flushed();
    checker.verify(&mut far.connect("data"), "the third again");
    identical(right, left, "data");
    identical(far, left, "data");
}

#[test]
fn a_configuration_whose_role_the_disk_does_not_allow_is_refused_with_the_reason() {
    let mut sites = Sites::start(&options());
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    {
        let [left, _, far] = sites.three();
        writes(&mut checker, left, 300);
        has_everything(far, left);
    }
    for site in sites.three() {
        site.kill();
    }
    // The primary of a pair as a third, and a third as a primary that nobody promoted.
    sites.assign("far", "right", "left");
    let [left, right, far] = sites.three();
    for (site, why) in [(left, "this site is the primary of a pair"), (far, "this site is a third")] {
        // It may answer its control socket before it has read its journal.
        if site.try_start() {
            assert_eq!(site.exited().code(), Some(4), "{}", site.name);
        }
        assert!(site.log_text().contains(why), "{} does not say {why}", site.name);
    }
    assert!(right.try_start());
}

/// A crash may leave volumes half of what they were and half of what was copied to them; the file that tells the rest is a peer's matter.
#[test]
fn a_site_whose_peer_is_taken_from_its_configuration_does_not_start_before_what_was_copied_is_installed() {
    let mut sites = Sites::format(&Options { pair: false, ..Options::default() });
    let left = &mut sites.left;
    let config = Config::load(&left.config).expect("a configuration");
    let volumes: Vec<u64> = config.volumes.iter().map(|volume| volume.blocks()).collect();
    let (group, site) = (config.group_id(), config.site.id);
    let mark =
        Superblock::formatted(group, site, Role::Secondary, 1000, config.journal.bytes / 4096, &volumes);
    let mut block = [0; BLOCK_BYTES];
    mark.encode(&mut block);
    fs::write(&config.staging, block).expect("a mark");
    assert!(!left.try_start());
    assert!(
        left.log_text().contains("start the site once with the [peer] that it had"),
        "{}",
        left.log_text()
    );
    fs::remove_file(&config.staging).expect("it was there");
    assert!(left.try_start());
}
