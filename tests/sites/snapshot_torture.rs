//! Snapshots created and deleted in random order while a client writes and sites die: each survivor holds what its create
//! allows, on both sites.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::checker::{Checker, Frozen, Next, Progress};
use crate::crashes::seed;
use crate::pair::*;

/// Requests that the client keeps in flight.
const DEPTH: usize = 24;

/// Snapshots at a time.
const LIVE: std::ops::RangeInclusive<usize> = 3..=24;

/// Snapshots created between two deaths, at most.
const CREATES_A_LIFE_MAX: u64 = 60;

/// Writes acknowledged between two commands, at random below this.
const WRITES_BETWEEN_MAX: u64 = 300;

/// Steps of the client between the last create's beginning and a death, on average.
const STEPS_BEFORE_DEATH: u64 = 200;

/// Writes that a client goes on for when the secondary has died.
const WRITES_AFTER: u64 = 200;

/// Room for what so many snapshots capture, on either scale.
const DIFFERENTIAL_MIB: u64 = 1024;

struct Scale {
    snapshots: usize,
    volume_mib: u64,
}

/// `tests/torture` asks for more snapshots, and gets a larger volume with them.
fn scale() -> Scale {
    match std::env::var("LOCKSTEP_SNAPSHOTS") {
        Ok(text) => Scale { snapshots: text.parse().expect("a number of snapshots"), volume_mib: 1024 },
        Err(_) => Scale { snapshots: 40, volume_mib: 32 },
    }
}

fn command(site: &Site, verb: &str, name: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["snapshot", verb, "--config", path(&site.config), name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("lockstep starts")
}

fn names(site: &Site) -> Vec<String> {
    let text = succeeds(lockstep(&["snapshot", "list", "--config", path(&site.config), "--json"]));
    let list: Value = serde_json::from_str(&text).expect("a list");
    let list = list["snapshots"].as_array().expect("snapshots");
    let mut names: Vec<String> =
        list.iter().map(|snapshot| snapshot["name"].as_str().expect("a name").to_owned()).collect();
    names.sort();
    names
}

fn digest(site: &Site, name: &str) -> String {
    succeeds(lockstep(&["snapshot", "digest", "--config", path(&site.config), name]))
}

/// A command under way.
enum Doing {
    Nothing,
    /// The checker knows of it, and it is to be sent.
    ToCreate(String),
    Creating(String, Child),
    Deleting(String, Child),
}

/// The operator, who gives one command after the other.
struct Operator {
    random: Random,
    doing: Doing,
    /// What exists, as far as commands have ended.
    existing: Vec<String>,
    /// Since the last death, in order.
    created: Vec<String>,
    deleted: Vec<String>,
    /// Snapshots named so far.
    named: usize,
    /// Writes acknowledged when the next command is due.
    due: u64,
}

impl Operator {
    fn step(&mut self, progress: Progress, primary: &Site) -> Next {
        match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Nothing if progress.acknowledged >= self.due => return self.begin(progress, primary),
            Doing::Nothing => {}
            Doing::ToCreate(name) => {
                let child = command(primary, "create", &name);
                self.doing = Doing::Creating(name, child);
            }
            Doing::Creating(name, mut child) => {
                if child.try_wait().expect("the child's state").is_none() {
                    self.doing = Doing::Creating(name, child);
                    return Next::GoOn;
                }
                succeeds(child.wait_with_output().expect("what it said"));
                self.existing.push(name.clone());
                self.created.push(name);
                return Next::Frozen;
            }
            Doing::Deleting(name, mut child) => {
                if child.try_wait().expect("the child's state").is_none() {
                    self.doing = Doing::Deleting(name, child);
                    return Next::GoOn;
                }
                succeeds(child.wait_with_output().expect("what it said"));
                self.deleted.push(name);
            }
        }
        Next::GoOn
    }

    fn begin(&mut self, progress: Progress, primary: &Site) -> Next {
        self.due = progress.acknowledged + self.random.below(WRITES_BETWEEN_MAX);
        let (full, few) = (self.existing.len() >= *LIVE.end(), self.existing.len() <= *LIVE.start());
        if full || (!few && self.random.below(2) == 0) {
            let place = self.random.below(self.existing.len() as u64) as usize;
            let name = self.existing.swap_remove(place);
            let child = command(primary, "delete", &name);
            self.doing = Doing::Deleting(name, child);
            return Next::GoOn;
        }
        self.doing = Doing::ToCreate(format!("s{:05}", self.named));
        self.named += 1;
        Next::Freeze
    }
}

/// What should be there.
#[derive(Default)]
struct Expected {
    live: BTreeMap<String, Frozen>,
    /// Those whose create or delete was under way when the primary died.
    unsure: BTreeMap<String, Frozen>,
    created: usize,
    deleted: usize,
}

impl Expected {
    /// Takes over what the operator did in a life that has ended.
    fn learn(&mut self, operator: &mut Operator, checker: &mut Checker) {
        // A create that was under way has its image last.
        checker.end_freeze();
        for name in operator.created.drain(..) {
            self.live.insert(name, checker.take_frozen().expect("an image for every create"));
            self.created += 1;
        }
        for name in operator.deleted.drain(..) {
            self.live.remove(&name).expect("it existed");
            self.deleted += 1;
        }
        match std::mem::replace(&mut operator.doing, Doing::Nothing) {
            Doing::Nothing => {}
            Doing::ToCreate(_) => {
                checker.take_frozen().expect("an image for every create");
            }
            Doing::Creating(name, child) => {
                child.wait_with_output().expect("its end");
                self.unsure.insert(name, checker.take_frozen().expect("an image for every create"));
            }
            Doing::Deleting(name, child) => {
                child.wait_with_output().expect("its end");
                let frozen = self.live.remove(&name).expect("it existed");
                self.unsure.insert(name, frozen);
            }
        }
        assert!(checker.take_frozen().is_none(), "an image that nobody asked for");
    }

    /// What was unsure is seen now; everything else must be as expected.
    fn compare(&mut self, site: &Site) {
        let names = names(site);
        while let Some((name, frozen)) = self.unsure.pop_first() {
            if names.contains(&name) {
                self.live.insert(name, frozen);
            }
        }
        let expected: Vec<&String> = self.live.keys().collect();
        assert_eq!(names.iter().collect::<Vec<_>>(), expected, "{}", site.name);
    }
}

#[test]
fn snapshots_hold_what_they_should_whoever_dies() {
    torture(scale(), "reference");
}

#[test]
fn snapshots_by_value_hold_what_they_should_whoever_dies() {
    torture(scale(), "value");
}

/// With differential data by reference or by value.
fn torture(scale: Scale, differential: &str) {
    let policy = "on_differential_full = \"error\"";
    let mut sites = Sites::start(&Options {
        volumes: vec![("data", scale.volume_mib)],
        journal_mib: scale.volume_mib.min(256),
        differential_mib: DIFFERENTIAL_MIB,
        group: format!("{}\n{policy}\ndifferential = \"{differential}\"", Options::default().group),
        ..Options::default()
    });
    let mut checker = Checker::new(0..scale.volume_mib * MIB / 4096, seed());
    let mut operator = Operator {
        random: Random(seed()),
        doing: Doing::Nothing,
        existing: Vec::new(),
        created: Vec::new(),
        deleted: Vec::new(),
        named: 0,
        due: 0,
    };
    let mut expected = Expected::default();
    let mut deaths = BTreeMap::new();
    while operator.named < scale.snapshots {
        let last = operator.named + 1 + operator.random.below(CREATES_A_LIFE_MAX) as usize;
        let victim = [Victim::Primary, Victim::Secondary, Victim::Both][operator.random.below(3) as usize];
        *deaths.entry(format!("{victim:?}")).or_insert(0) += 1;
        die_after(&mut sites, &mut checker, &mut operator, last.min(scale.snapshots), victim);
        expected.learn(&mut operator, &mut checker);
        sites.start_both();
        checker.verify(&mut sites.left.connect_when_served("data"), "the primary");
        expected.compare(&sites.left);
        operator.existing = expected.live.keys().cloned().collect();
        println!("{} of {} created; {victim:?} died", operator.named, scale.snapshots);
    }
    sites.wait("--in-sync");
    sites.wait("--settled");
    checker.verify(&mut sites.right.connect("data"), "the secondary");
    expected.compare(&sites.right);
    for (name, frozen) in &mut expected.live {
        let export = format!("data@{name}");
        for site in [&mut sites.left, &mut sites.right] {
            let whose = format!("{export} of {}", site.name);
            checker.verify_frozen(frozen, &mut site.connect_when_served(&export), &whose);
        }
        assert_eq!(digest(&sites.left, name), digest(&sites.right, name), "{name}");
    }
    assert!(!expected.live.is_empty(), "no snapshot survived, so nothing was tested");
    for site in [&sites.left, &sites.right] {
        assert!(!site.log_text().contains("images differ"), "{}", site.name);
    }
    println!(
        "snapshots: {} created and {} deleted on {} MiB, {} survivors whole and alike; killed {deaths:?}",
        operator.named,
        expected.deleted,
        scale.volume_mib,
        expected.live.len(),
    );
}

/// Writes while the operator creates and deletes; once `last` snapshots are named the victim dies, at whatever moment that is.
fn die_after(sites: &mut Sites, checker: &mut Checker, operator: &mut Operator, last: usize, victim: Victim) {
    let mut client = sites.left.connect_when_served("data");
    operator.due = 0;
    let mut dead_at = None;
    let session = checker.drive(&mut client, DEPTH, |progress| {
        if let Some(dead_at) = dead_at {
            let enough = progress.acknowledged >= dead_at + WRITES_AFTER;
            return if enough { Next::Drain } else { Next::GoOn };
        }
        if operator.named >= last && operator.random.below(STEPS_BEFORE_DEATH) == 0 {
            sites.strike(victim);
            dead_at = Some(progress.acknowledged);
            return Next::GoOn;
        }
        operator.step(progress, &sites.left)
    });
    assert_eq!(session.refused, 0, "{session:?}");
    assert_eq!(session.disconnected, victim != Victim::Secondary, "{session:?}");
}

/// A linear congruential generator (Knuth, MMIX); its upper bits are used.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % bound
    }
}
