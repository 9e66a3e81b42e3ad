//! Journals made larger and smaller while their sites are stopped for a moment, as docs/OPERATIONS.md says to.

use std::fs;
use std::time::Instant;

use lockstep::node::config::Config;
use lockstep::node::stopped::{ChangeError, Reached, resize};

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;
use crate::stopped::*;

const VOLUME_MIB: u64 = 32;

/// Writes of a session at rest.
const WRITES: u64 = 1000;

/// What a site misses while it is away: some MiB, which any of the journals here has room for in its half.
const MISSED: u64 = 300;

fn options() -> Options {
    Options { volumes: vec![("data", VOLUME_MIB)], journal_mib: 32, ..Options::default() }
}

fn checker() -> Checker {
    Checker::new(blocks(0..VOLUME_MIB), seed())
}

fn set_journal(site: &Site, mib: u64) {
    let text = fs::read_to_string(&site.config).expect("a configuration");
    let at = text.find("[journal]\nsize = ").expect("a journal");
    let (before, after) = text.split_at(at);
    let end = at + after.match_indices('\n').nth(1).expect("two lines").0;
    let text = format!("{before}[journal]\nsize = \"{mib}MiB\"{}", &text[end..]);
    fs::write(&site.config, text).expect("a configuration");
}

/// Its journal has this size from its next start on.
fn resizes(site: &Site, mib: u64) -> String {
    set_journal(site, mib);
    let said = succeeds(command("resize-journal", site, &[]));
    assert_eq!(length(&site.directory.join("journal")), mib * MIB, "{said}");
    said
}

/// Nothing was copied: whoever was away caught up from a journal.
fn nothing_is_copied(sites: &Sites) {
    for site in [&sites.left, &sites.right] {
        assert_eq!(copied(site), 0, "{}", site.name);
        assert!(!site.log_text().contains("resync begins"), "{}", site.log_text());
    }
}

fn both_hold_all(sites: &mut Sites, checker: &mut Checker) {
    sites.wait("--in-sync");
    sites.wait("--settled");
    let Sites { left, right, .. } = sites;
    right.until_it_shows(left);
    for site in [left, right] {
        checker.verify(&mut site.connect_when_served("data"), site.name);
    }
    succeeds(command("verify", &sites.left, &["--rate", "1GiB"]));
    nothing_is_copied(sites);
}

#[test]
fn journals_are_resized_one_site_after_the_other_under_load_and_nothing_is_copied() {
    let mut sites = Sites::start(&options());
    let mut checker = checker();
    for mib in [48, 16] {
        set_journal(&sites.right, mib);
        succeeds(command("resize-journal", &sites.right, &["--check"]));
        // Hosts wait for the secondary.
        let (mut client, mut pause) = (sites.left.connect("data"), None);
        let Sites { left, right, .. } = &mut sites;
        let session = checker.drive(&mut client, DEPTH, |progress| {
            if pause.is_none() && progress.acknowledged >= WRITES {
                let begun = Instant::now();
                assert!(right.stop().success());
                resizes(right, mib);
                right.start();
                pause = Some(begun.elapsed());
            }
            if progress.acknowledged < 2 * WRITES { Next::GoOn } else { Next::Drain }
        });
        assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
        let pause = pause.expect("it was stopped");
        println!("the secondary was away for {} ms", pause.as_millis());
        assert!(pause < PAUSE_MAX, "{pause:?}");
        left.wait("--in-sync");
        // They connect to the primary again.
        let mut begun = None;
        let session = checker.drive(&mut client, DEPTH, |progress| {
            if begun.is_none() && progress.acknowledged >= WRITES {
                begun = Some(Instant::now());
                succeeds(lockstep(&["stop", "--config", path(&left.config)]));
            }
            Next::GoOn
        });
        assert!(session.disconnected, "{session:?}");
        assert!(left.exited().success());
        resizes(left, mib);
        left.start();
        writes(&mut checker, left, "data", 1);
        let pause = begun.expect("it was begun").elapsed();
        println!("hosts saw a pause of {} ms", pause.as_millis());
        assert!(pause < PAUSE_MAX, "{pause:?}");
        both_hold_all(&mut sites, &mut checker);
    }
    writes(&mut checker, &mut sites.left, "data", WRITES);
    kill(&mut sites.right);
    kill(&mut sites.left);
    sites.start_both();
    both_hold_all(&mut sites, &mut checker);
}

#[test]
fn what_a_journal_keeps_for_a_site_that_is_away_is_kept_at_every_size() {
    let mut sites = Sites::start(&solo(options()));
    let mut checker = checker();
    // Its ring has been around.
    writes(&mut checker, &mut sites.left, "data", 2 * WRITES);
    sites.wait("--settled");
    assert!(sites.right.stop().success());
    for (turn, mib) in [48, 24, 20, 64].into_iter().enumerate() {
        writes(&mut checker, &mut sites.left, "data", MISSED / 4);
        // In its volumes, or not yet.
        match turn % 2 {
            0 => assert!(sites.left.stop().success()),
            _ => kill(&mut sites.left),
        }
        let said = resizes(&sites.left, mib);
        assert!(said.contains("for another site"), "{said}");
        sites.left.start();
    }
    sites.start_both();
    both_hold_all(&mut sites, &mut checker);
    let caught_up = sites.left.status()["totals"]["catch_up_updates"].as_u64().expect("a number");
    assert!(caught_up >= MISSED, "{caught_up} updates");
}

#[test]
fn what_a_journal_keeps_for_a_third_is_kept_at_every_size() {
    let mut sites = Sites::start(&Options { third: true, ..options() });
    let mut checker = checker();
    writes(&mut checker, &mut sites.left, "data", 2 * WRITES);
    let [left, right, far] = sites.three();
    far.until_it_shows(left);
    assert!(far.stop().success());
    writes(&mut checker, left, "data", MISSED);
    left.wait("--in-sync");
    for mib in [24, 48] {
        for site in [&mut *left, &mut *right] {
            assert!(site.stop().success());
            resizes(site, mib);
        }
        right.start();
        left.start();
        left.wait("--in-sync");
    }
    resizes(far, 16);
    far.start();
    far.wait("--in-sync");
    far.until_it_shows(left);
    checker.verify(&mut far.connect_when_served("data"), "the third");
    assert_eq!(left.status()["third"]["delta"], "yes");
    both_hold_all(&mut sites, &mut checker);
}

#[test]
fn a_change_that_was_interrupted_is_done_again_before_the_site_starts() {
    for (mib, at) in [
        (48, Reached::Files),
        (48, Reached::Records),
        (16, Reached::Slot),
        (48, Reached::Slot),
        (16, Reached::Superblock),
        (16, Reached::Cut),
    ] {
        let mut sites = Sites::format(&Options { pair: false, ..options() });
        let left = &mut sites.left;
        left.start();
        let mut checker = checker();
        writes(&mut checker, left, "data", MISSED);
        // With updates in its journal that are in no volume yet.
        kill(left);
        set_journal(left, mib);
        let config = Config::load(&left.config).expect("a configuration");
        let ended = resize(&config, false, &mut |_| {}, &mut |reached| match reached == at {
            true => Err(ChangeError::NothingToResize),
            false => Ok(()),
        });
        assert!(matches!(ended, Err(ChangeError::NothingToResize)), "{ended:?}");
        assert!(!left.try_start(), "{at:?}: it starts half changed");
        assert!(left.log_text().contains("lockstep resize-journal"), "{}", left.log_text());
        if !matches!(at, Reached::Files | Reached::Records) {
            set_journal(left, 32);
            assert!(!left.try_start(), "{at:?}: it starts half changed");
            assert!(left.log_text().contains("was interrupted"), "{}", left.log_text());
            set_journal(left, mib);
        }
        succeeds(command("resize-journal", left, &[]));
        fails(command("resize-journal", left, &[]));
        left.start();
        checker.verify(&mut left.connect("data"), "the changed site");
        writes(&mut checker, left, "data", WRITES);
        kill(left);
        left.start();
        checker.verify(&mut left.connect("data"), "after a crash");
    }
}

#[test]
fn a_change_that_cannot_be_is_refused_and_changes_nothing() {
    let mut sites = Sites::start(&solo(options()));
    let mut checker = checker();
    writes(&mut checker, &mut sites.left, "data", WRITES);
    sites.wait("--settled");
    assert!(sites.right.stop().success());
    let left = &mut sites.left;
    let written = fs::read_to_string(&left.config).expect("a configuration");
    let journal = left.directory.join("journal");
    let refused = |site: &Site, more: &[&str], what: &str| {
        let why = fails(command("resize-journal", site, more));
        assert!(why.contains(what), "{what:?} is not in {why}");
        fs::write(&site.config, &written).expect("a configuration");
        assert_eq!(length(&journal), 32 * MIB);
    };
    set_journal(left, 48);
    refused(left, &[], "locked by another process");
    // More than half of what the smaller one would be.
    let kept = |site: &Site| site.status()["watermarks"]["last"].as_u64().expect("a number");
    let before = kept(left);
    while kept(left) < before + 600 {
        writes(&mut checker, left, "data", 100);
    }
    assert!(left.stop().success());
    set_journal(left, 16);
    refused(left, &[], "another site lacks");
    refused(left, &[], "nothing to resize");
    let figures = rustix::fs::statvfs(&left.directory).expect("the filesystem");
    let beyond = ((figures.f_bavail * figures.f_frsize) >> 20) + 1024;
    for more in [&["--check"][..], &[]] {
        // The index of so large a journal needs a larger cache.
        let cache = 256 + beyond / 32;
        let text = written.replace("[cache]\nsize = \"64MiB\"", &format!("[cache]\nsize = \"{cache}MiB\""));
        fs::write(&left.config, text).expect("a configuration");
        set_journal(left, 32 + beyond);
        refused(left, more, "bytes more are needed");
    }
    let text = written.replace("[differential]\nsize = \"4MiB\"", "[differential]\nsize = \"5MiB\"");
    fs::write(&left.config, text).expect("a configuration");
    set_journal(left, 48);
    refused(left, &[], "nothing but the size of the journal is changed");
    sites.start_both();
    both_hold_all(&mut sites, &mut checker);
}
