//! A third site as a process of its own: it pulls from a pair, is killed, comes back, and goes on from the second when the first is gone.

use serde_json::Value;

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;
use crate::snapshots::{listed, snapshot};

const DEPTH: usize = 24;

pub fn options() -> Options {
    Options {
        volumes: vec![("data", 32)],
        // Half of it keeps all that a test writes while the third is away, however large its writes come out.
        journal_mib: 256,
        differential_mib: 64,
        third: true,
        ..Options::default()
    }
}

pub fn writes(checker: &mut Checker, site: &Site, count: u64) {
    let session = checker.drive(&mut site.connect("data"), DEPTH, |progress| {
        if progress.acknowledged < count { Next::GoOn } else { Next::Drain }
    });
    assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
}

pub fn number(status: &Value, keys: [&str; 2]) -> u64 {
    status[keys[0]][keys[1]].as_u64().unwrap_or_else(|| panic!("no {keys:?} in {status}"))
}

/// Waits until the third has durably all that this site has settled, which is all it has.
pub fn has_everything(third: &mut Site, site: &Site) {
    let last = number(&site.status(), ["watermarks", "last"]);
    third.until("it has everything", |third| number(&third.status(), ["watermarks", "durable"]) == last);
}

pub fn pulls_from(third: &Site) -> Option<String> {
    let sources = third.status()["sources"].as_array().expect("sources").clone();
    let pulled = sources.into_iter().find(|source| source["state"] == "pulling");
    pulled.map(|source| source["name"].as_str().expect("a name").to_owned())
}

pub fn identical(one: &Site, other: &Site, export: &str) {
    let compared =
        tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &one.uri(export), &other.uri(export)]);
    assert!(succeeds(compared).contains("identical"), "{export} of {} and {}", one.name, other.name);
}

#[test]
fn a_third_that_is_killed_comes_back_and_reads_what_it_lacks() {
    let mut sites = Sites::start(&options());
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    let [left, right, far] = sites.three();
    writes(&mut checker, left, 1500);
    succeeds(snapshot(left, &["create", "one"]));
    writes(&mut checker, left, 1500);
    has_everything(far, left);
    // Whichever it met first: it prefers this one.
    far.until("it pulls from the first", |far| pulls_from(far).as_deref() == Some("left"));
    // Killed while it pulls.
    let mut killed = false;
    let session = checker.drive(&mut left.connect("data"), DEPTH, |progress| {
        if !killed && progress.acknowledged >= 800 {
            far.kill();
            killed = true;
        }
        if progress.acknowledged < 2500 { Next::GoOn } else { Next::Drain }
    });
    assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
    left.wait("--settled");
    left.until("it is gone", |left| left.status()["third"]["state"] == "disconnected");
    let fed = |status: &Value| number(status, ["totals", "fed_updates"]);
    let (before, lacking) = (fed(&left.status()) + fed(&right.status()), left.status()["third"].clone());
    assert_eq!(lacking["delta"], "yes", "{lacking}");
    let delta = lacking["delta_updates"].as_u64().expect("a number");
    assert!(delta >= 1000, "{lacking}");
    far.start();
    has_everything(far, left);
    let again = fed(&left.status()) + fed(&right.status()) - before;
    // What it had made durable when it died it may not have told yet.
    assert!(again <= delta && again > delta / 2, "{again} updates for a delta of {delta}");
    let from_journal = |site: &Site| number(&site.status(), ["totals", "fed_from_journal"]);
    assert!(from_journal(left) + from_journal(right) > 0);
    writes(&mut checker, left, 500);
    has_everything(far, left);
    checker.all_is_flushed();
    checker.verify(&mut far.connect("data"), "the third");
    assert_eq!(listed(far), listed(left));
    for export in ["data", "data@one"] {
        identical(left, far, export);
        identical(right, far, export);
    }
    // An orderly end, and another start.
    far.stop();
    writes(&mut checker, left, 500);
    far.start();
    has_everything(far, left);
    checker.all_is_flushed();
    checker.verify(&mut far.connect("data"), "the third, started again");
}

#[test]
fn a_third_goes_on_from_the_second_when_the_first_is_gone() {
    let mut sites = Sites::start(&options());
    let mut checker = Checker::new(0..32 * MIB / 4096, seed());
    let [left, right, far] = sites.three();
    writes(&mut checker, left, 1000);
    // The second knows where the third is, and that it could go on from here.
    left.wait("--settled");
    has_everything(far, left);
    right.until("the second says that the delta is there", |right| {
        let third = right.status()["third"].clone();
        third["delta"] == "yes" && third["state"] == "standing" && third["behind"] == 0
    });
    let mut client = left.connect("data");
    let mut killed = false;
    let session = checker.drive(&mut client, DEPTH, |progress| {
        if !killed && progress.acknowledged >= 1500 {
            left.kill();
            killed = true;
        }
        // Until the connection's end is seen: all that was under way may have been answered before.
        Next::GoOn
    });
    assert!(session.disconnected, "{session:?}");
    succeeds(lockstep(&["promote", "--config", path(&right.config), "--fenced"]));
    writes(&mut checker, right, 1000);
    far.until("it pulls from the second", |far| pulls_from(far).as_deref() == Some("right"));
    has_everything(far, right);
    let fed = number(&right.status(), ["totals", "fed_updates"]);
    assert!(fed < number(&right.status(), ["watermarks", "last"]), "{fed} updates are not a delta");
    checker.all_is_flushed();
    checker.verify(&mut far.connect("data"), "the third");
    identical(right, far, "data");
    // The old primary follows; the third, which prefers it, goes back to it, and tells both where it is.
    left.start();
    right.wait("--in-sync");
    writes(&mut checker, right, 500);
    has_everything(far, right);
    far.until("it pulls from the first", |far| pulls_from(far).as_deref() == Some("left"));
    right.until("the second knows where the third is", |right| {
        let third = right.status()["third"].clone();
        third["state"] == "standing" && third["delta"] == "yes" && third["behind"] == 0
    });
    identical(left, far, "data");
}

/// What an operator would try.
#[test]
fn a_third_takes_no_writes_and_is_not_promoted_while_its_sources_are_there() {
    let mut sites = Sites::start(&options());
    let [_, _, far] = sites.three();
    let output = lockstep(&["promote", "--config", path(&far.config), "--fenced"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("This third has everything up to") && said.contains("promote that one"), "{said}");
    let info = tool("nbdinfo", &["--json", &far.uri("data")]);
    let info: Value = serde_json::from_str(&succeeds(info)).expect("JSON");
    assert_eq!(info["exports"][0]["is_read_only"], true, "{info}");
    let shown = succeeds(lockstep(&["status", "--config", path(&far.config)]));
    assert!(shown.contains("source left at") && shown.contains(": pulling"), "{shown}");
}
