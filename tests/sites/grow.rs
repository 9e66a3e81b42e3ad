//! Volumes made larger while their sites are stopped for a moment, as docs/OPERATIONS.md says to.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use lockstep::node::config::Config;
use lockstep::node::stopped::{ChangeError, Reached, grow};

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;
use crate::stopped::*;

const WRITES: u64 = 2000;

const SMALL_MIB: u64 = 32;
/// Checksums of the larger one need a block more than those of the smaller.
const LARGE_MIB: u64 = 33;

fn options() -> Options {
    Options {
        volumes: vec![("data", SMALL_MIB), ("log", 8)],
        journal_mib: 16,
        differential_mib: 80,
        ..Options::default()
    }
}

/// What its configuration says of a volume's size.
fn set_size(site: &Site, volume: &str, size: &str) {
    let text = fs::read_to_string(&site.config).expect("a configuration");
    let at = text.find(&format!("name = \"{volume}\"\nsize = ")).expect("the volume");
    let (before, after) = text.split_at(at);
    let end = at + after.match_indices('\n').nth(1).expect("two lines").0;
    let text = format!("{before}name = \"{volume}\"\nsize = \"{size}\"{}", &text[end..]);
    fs::write(&site.config, text).expect("a configuration");
}

#[test]
fn a_pair_grows_in_a_short_stop_under_load_and_both_sites_hold_all_of_it() {
    let mut sites = Sites::start(&options());
    let mut checker = Checker::new(blocks(0..SMALL_MIB), seed());
    writes(&mut checker, &mut sites.left, "data", WRITES);
    succeeds(lockstep(&["snapshot", "create", "--config", path(&sites.left.config), "before"]));

    for site in [&sites.left, &sites.right] {
        set_size(site, "data", &format!("{LARGE_MIB}MiB"));
        let said = succeeds(command("grow", site, &["--check"]));
        assert!(said.contains("data.volume") && said.contains("there is room"), "{said}");
        assert_eq!(length(&site.directory.join("data.volume")), SMALL_MIB * MIB, "nothing is changed yet");
    }
    let mut client = sites.left.connect("data");
    let left = sites.left.config.clone();
    let mut begun = None;
    let session = checker.drive(&mut client, DEPTH, |progress| {
        if begun.is_none() && progress.acknowledged >= WRITES {
            begun = Some(Instant::now());
            succeeds(lockstep(&["stop", "--config", path(&left)]));
        }
        Next::GoOn
    });
    assert!(session.disconnected, "{session:?}");
    assert!(sites.left.exited().success());
    assert!(sites.right.stop().success());
    succeeds(command("grow", &sites.right, &[]));
    succeeds(command("grow", &sites.left, &[]));
    sites.right.start();
    sites.left.start();
    let mut client = loop {
        match sites.left.try_connect("data") {
            Ok(client) => break client,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    assert_eq!(client.size(), LARGE_MIB * MIB, "whoever connects sees the new size");
    client.write(LARGE_MIB * MIB - 4096, &[9; 4096], true).expect("a write at the new end");
    let pause = begun.expect("it was begun").elapsed();
    println!("hosts saw a pause of {} ms", pause.as_millis());
    assert!(pause < PAUSE_MAX, "{pause:?}");
    client.trim(LARGE_MIB * MIB - 4096, 4096).expect("a trim");
    client.flush().expect("a flush");
    drop(client);

    sites.wait("--in-sync");
    checker.verify(&mut sites.left.connect("data"), "the primary");
    let mut beyond = Checker::new(blocks(SMALL_MIB..LARGE_MIB), seed());
    writes(&mut beyond, &mut sites.left, "data", WRITES);
    writes(&mut checker, &mut sites.left, "data", WRITES);
    succeeds(lockstep(&["snapshot", "create", "--config", path(&sites.left.config), "after"]));
    writes(&mut beyond, &mut sites.left, "data", WRITES);
    sites.wait("--settled");
    for name in ["before", "after"] {
        let digests = [&sites.left, &sites.right]
            .map(|site| succeeds(lockstep(&["snapshot", "digest", "--config", path(&site.config), name])));
        assert_eq!(digests[0], digests[1], "{name}");
    }
    succeeds(command("verify", &sites.left, &["--rate", "1GiB"]));
    succeeds(command("scrub", &sites.right, &["--rate", "1GiB"]));

    succeeds(command("switchover", &sites.left, &[]));
    assert_eq!(sites.right.connect("data").size(), LARGE_MIB * MIB);
    writes(&mut beyond, &mut sites.right, "data", WRITES);
    sites.right.wait("--in-sync");
    kill(&mut sites.right);
    kill(&mut sites.left);
    sites.start_both();
    for (site, what) in [(&mut sites.right, "the primary"), (&mut sites.left, "the secondary")] {
        site.wait("--settled");
        checker.verify(&mut site.connect_when_served("data"), what);
        beyond.verify(&mut site.connect_when_served("data"), what);
    }
}

#[test]
fn sites_of_different_sizes_refuse_each_other_until_both_have_grown() {
    let mut sites = Sites::start(&options());
    let mut checker = Checker::new(blocks(0..SMALL_MIB), seed());
    writes(&mut checker, &mut sites.left, "data", WRITES);
    assert!(sites.left.stop().success() && sites.right.stop().success());
    set_size(&sites.right, "data", &format!("{LARGE_MIB}MiB"));
    succeeds(command("grow", &sites.right, &[]));
    sites.right.start();
    sites.left.start();
    let (small, large) = (SMALL_MIB * MIB / 4096, LARGE_MIB * MIB / 4096);
    let both = format!("volume data of {small} blocks here is data of {large} blocks there");
    sites.left.until("it names both sizes", |left| left.log_text().contains(&both));
    assert_eq!(sites.left.status()["state"], "awaiting_peer");
    sites.left.stop();
    set_size(&sites.left, "data", &format!("{LARGE_MIB}MiB"));
    succeeds(command("grow", &sites.left, &[]));
    sites.left.start();
    sites.wait("--in-sync");
    checker.verify(&mut sites.left.connect("data"), "the primary");
    assert_eq!(copied(&sites.left), 0);
}

#[test]
fn a_peer_that_was_away_for_long_is_copied_what_it_lacks_once_both_have_grown() {
    let mut sites = Sites::start(&solo(options()));
    let mut checker = Checker::new(blocks(0..SMALL_MIB), seed());
    writes(&mut checker, &mut sites.left, "data", WRITES);
    succeeds(lockstep(&["snapshot", "create", "--config", path(&sites.left.config), "before"]));
    sites.wait("--settled");
    assert!(sites.right.stop().success());
    // Some times what the journal holds: what has changed is in a set of marks from here on, slots behind the volumes.
    for _ in 0..3 {
        writes(&mut checker, &mut sites.left, "data", WRITES);
    }
    assert!(sites.left.stop().success());
    for site in [&sites.left, &sites.right] {
        set_size(site, "data", &format!("{LARGE_MIB}MiB"));
        set_size(site, "log", "9MiB");
        succeeds(command("grow", site, &[]));
    }
    sites.left.start();
    let mut beyond = Checker::new(blocks(SMALL_MIB..LARGE_MIB), seed());
    writes(&mut beyond, &mut sites.left, "data", WRITES);
    sites.start_both();
    assert!(copied(&sites.left) > 0 && sites.right.log_text().contains("are installed"));
    sites.wait("--settled");
    for site in [&mut sites.left, &mut sites.right] {
        checker.verify(&mut site.connect_when_served("data"), site.name);
        beyond.verify(&mut site.connect_when_served("data"), site.name);
        assert_eq!(site.connect("log").size(), 9 * MIB);
    }
    let digests = [&sites.left, &sites.right]
        .map(|site| succeeds(lockstep(&["snapshot", "digest", "--config", path(&site.config), "before"])));
    assert_eq!(digests[0], digests[1]);
    succeeds(command("verify", &sites.left, &["--rate", "1GiB"]));
}

#[test]
fn a_growth_that_cannot_be_is_refused_and_changes_nothing() {
    let mut sites = Sites::format(&Options { pair: false, ..options() });
    let left = &mut sites.left;
    left.start();
    left.connect("data").write(0, &[5; 4096], true).expect("a write");
    let written = fs::read_to_string(&left.config).expect("a configuration");
    let files = ["data.volume", "data.checksums", "log.volume", "log.checksums"];
    let lengths = |site: &Site| files.map(|name| length(&site.directory.join(name)));
    let before = lengths(left);
    let refused = |site: &Site, more: &[&str], what: &str| {
        let why = fails(command("grow", site, more));
        assert!(why.contains(what), "{what:?} is not in {why}");
        fs::write(&site.config, &written).expect("a configuration");
        assert_eq!(lengths(site), before);
    };
    assert_eq!(left.status()["volumes"][0]["size_bytes"], SMALL_MIB * MIB);
    set_size(left, "data", "33MiB");
    refused(left, &[], "locked by another process");
    assert!(left.stop().success());
    refused(left, &[], "nothing to grow");
    refused(left, &["--check"], "nothing to grow");
    // One that could does not grow without the other.
    set_size(left, "log", "7MiB");
    set_size(left, "data", "33MiB");
    refused(left, &[], "does not become smaller");
    let text = written.replace("[journal]\nsize = \"16MiB\"", "[journal]\nsize = \"17MiB\"");
    fs::write(&left.config, text).expect("a configuration");
    set_size(left, "data", "33MiB");
    refused(left, &[], "the journal's blocks was formatted as");
    let figures = rustix::fs::statvfs(&left.directory).expect("the filesystem");
    let beyond = ((figures.f_bavail * figures.f_frsize) >> 20) + 1024;
    for more in [&["--check"][..], &[]] {
        // The index of so large a volume needs a larger cache.
        let cache = 256 + beyond / 256;
        let text = written.replace("[cache]\nsize = \"64MiB\"", &format!("[cache]\nsize = \"{cache}MiB\""));
        fs::write(&left.config, text).expect("a configuration");
        set_size(left, "data", &format!("{}MiB", SMALL_MIB + beyond));
        set_size(left, "log", "9MiB");
        refused(left, more, "bytes more are needed");
    }
    // A file that somebody has made longer, and something in it.
    let file = left.directory.join("data.volume");
    let mut bytes = fs::File::options().write(true).open(&file).expect("the volume");
    bytes.seek(SeekFrom::End(8192)).and_then(|_| bytes.write_all(&[1; 4096])).expect("written");
    set_size(left, "data", "33MiB");
    let why = fails(command("grow", left, &[]));
    assert!(why.contains("holds data behind"), "{why}");
    succeeds(command("grow", left, &["--force"]));
    left.start();
    let mut client = left.connect("data");
    assert_eq!(client.read(0, 4096).expect("a read"), [5; 4096]);
    assert_eq!(client.read(SMALL_MIB * MIB, 65536).expect("a read"), [0; 65536]);
}

#[test]
fn a_growth_that_was_interrupted_is_done_again_before_the_site_starts() {
    for at in [Reached::Files, Reached::Slot, Reached::Superblock] {
        let mut sites = Sites::format(&Options { pair: false, ..options() });
        let left = &mut sites.left;
        left.start();
        let mut checker = Checker::new(blocks(0..SMALL_MIB), seed());
        writes(&mut checker, left, "data", WRITES);
        // With updates in its journal that are in no volume yet.
        kill(left);
        set_size(left, "data", &format!("{LARGE_MIB}MiB"));
        let config = Config::load(&left.config).expect("a configuration");
        let ended = grow(&config, false, &mut |_| {}, &mut |reached| match reached == at {
            true => Err(ChangeError::NothingToGrow),
            false => Ok(()),
        });
        assert!(matches!(ended, Err(ChangeError::NothingToGrow)), "{ended:?}");
        assert!(!left.try_start(), "{at:?}: it starts half grown");
        assert!(left.log_text().contains("lockstep grow"), "{}", left.log_text());
        succeeds(command("grow", left, &[]));
        fails(command("grow", left, &[]));
        left.start();
        let mut client = left.connect("data");
        assert_eq!(client.size(), LARGE_MIB * MIB);
        checker.verify(&mut client, "the grown site");
        let mut beyond = Checker::new(blocks(SMALL_MIB..LARGE_MIB), seed());
        beyond.verify(&mut client, "what is new reads as zeros");
        writes(&mut beyond, left, "data", WRITES);
        kill(left);
        left.start();
        beyond.verify(&mut left.connect("data"), "after a crash");
        checker.verify(&mut left.connect("data"), "after a crash");
    }
}
