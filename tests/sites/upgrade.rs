//! Sites of the release before and of this one, together: the pair is upgraded a site at a time, under load, and goes back.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;
use crate::third::options as of_three;
use crate::third_copied::Copied;

const DEPTH: usize = 24;
const WRITES: u64 = 1500;

/// The binary of the release before, built once.
fn previous() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        println!("building the release before this one");
        // What cargo tells a test is not for the build of another tree.
        let cargo = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_"));
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/previous"));
        cargo.for_each(|(name, _)| {
            script.env_remove(name);
        });
        let output = script.stderr(Stdio::inherit()).output().expect("bash is there");
        succeeds(output).trim().into()
    })
}

fn this() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_lockstep"))
}

fn writes(checker: &mut Checker, site: &mut Site, count: u64) {
    let mut client = site.connect_when_served("data");
    let session = checker.drive(&mut client, DEPTH, |progress| {
        if progress.acknowledged < count { Next::GoOn } else { Next::Drain }
    });
    assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
}

/// Hosts write on at `primary` while the other one is stopped and comes back as another release, by the journal.
fn upgrade_secondary(checker: &mut Checker, primary: &Site, other: &mut Site, release: &Path) {
    let mut upgraded = false;
    let session = checker.drive(&mut primary.connect("data"), DEPTH, |progress| {
        if !upgraded && progress.acknowledged >= WRITES / 3 {
            assert!(other.stop().success());
            other.binary = release.to_owned();
            other.start();
            upgraded = true;
        }
        if progress.acknowledged < WRITES { Next::GoOn } else { Next::Drain }
    });
    assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
    primary.wait("--in-sync");
    assert!(!other.log_text().contains("refused"), "{}", other.log_text());
}

fn change_roles(checker: &mut Checker, from: &mut Site, to: &mut Site) {
    succeeds(from.lockstep(&["switchover"]));
    writes(checker, to, WRITES / 3);
    from.wait("--in-sync");
}

fn both_hold(checker: &mut Checker, primary: &mut Site, other: &mut Site) {
    primary.wait("--settled");
    other.until_it_shows(primary);
    for site in [primary, other] {
        checker.verify(&mut site.connect_when_served("data"), site.name);
    }
}

fn options(binary: &Path) -> Options {
    Options {
        volumes: vec![("data", 32)],
        journal_mib: 64,
        // Nobody waits for a site that is being upgraded.
        group: "on_peer_loss = \"solo\"\nlatency_budget = \"5s\"\nheartbeat_interval = \"50ms\"".to_owned(),
        binary: binary.to_owned(),
        ..Options::default()
    }
}

/// As docs/OPERATIONS.md says it is done; and the way back, for whoever is not content.
#[test]
fn a_pair_is_upgraded_a_site_at_a_time_and_back() {
    let mut sites = Sites::start(&options(previous()));
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    writes(&mut checker, &mut sites.left, WRITES);
    for release in [this(), previous()] {
        let (left, right) = (&mut sites.left, &mut sites.right);
        upgrade_secondary(&mut checker, left, right, release);
        change_roles(&mut checker, left, right);
        upgrade_secondary(&mut checker, right, left, release);
        change_roles(&mut checker, right, left);
        both_hold(&mut checker, left, right);
    }
}

/// What one release has acknowledged is there when the other takes over.
#[test]
fn each_release_takes_over_from_the_other() {
    for (first, second) in [(previous(), this()), (this(), previous())] {
        let mut sites = Sites::format(&options(first));
        sites.right.binary = second.to_owned();
        sites.start_both();
        let mut checker = Checker::new(0..32 * MIB / 4096, seed());
        let (mut primary, mut other) = (&mut sites.left, &mut sites.right);
        for round in 0..2 {
            let mut killed = false;
            let session = checker.drive(&mut primary.connect("data"), DEPTH, |progress| {
                if !killed && progress.acknowledged >= WRITES {
                    primary.kill();
                    killed = true;
                }
                // Until the connection's end is seen: all that was under way may have been answered before.
                Next::GoOn
            });
            assert!(session.disconnected, "round {round}: {session:?}");
            succeeds(other.lockstep(&["promote", "--fenced"]));
            let mut client = other.connect_when_served("data");
            checker.verify(&mut client, other.name);
            drop(client);
            writes(&mut checker, other, WRITES / 3);
            primary.start();
            primary.wait("--in-sync");
            std::mem::swap(&mut primary, &mut other);
            both_hold(&mut checker, primary, other);
        }
    }
}

/// What it would ask for is not asked of sources that do not know it, and is as soon as one of them does.
#[test]
fn a_third_that_lapsed_is_copied_to_once_a_source_of_it_is_upgraded() {
    let mut copied = Copied::start_with(Options { binary: previous().to_owned(), ..of_three() });
    copied.lapses();
    let [left, right, far] = copied.sites.three();
    far.binary = this().to_owned();
    far.start();
    let lapsed = |far: &Site| {
        let sources = far.status()["sources"].as_array().cloned().expect("sources");
        sources.iter().all(|source| source["state"] == "lapsed")
    };
    far.until("both have let go of what it lacks", lapsed);
    // Longer than it awaits a source that is away before it asks another.
    std::thread::sleep(Duration::from_secs(6));
    assert!(lapsed(far), "{}", far.status());
    assert!(right.stop().success());
    right.binary = this().to_owned();
    right.start();
    left.wait("--in-sync");
    right.until("it has copied", |right| right.log_text().contains("far has been copied what it lacked"));
    copied.follows_again();
}
