//! A third that no journal reaches any more, as real processes: one that was formatted anew under load, and one that was away for longer than
//! small journals last. It comes back by itself, by a comparison of all blocks, and what that moved is told.

use serde_json::Value;

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;
use crate::third::{has_everything, identical, number, options};

const DEPTH: usize = 24;
const VOLUME_MIB: u64 = 32;

/// Hosts write to this much of it; the rest was written once, before.
const BUSY_MIB: u64 = 4;

const WRITES: u64 = 500;
/// While the third is away: more than half of the journal keeps.
const AWAY_WRITES: u64 = 6_000;

pub struct Copied {
    pub sites: Sites,
    checker: Checker,
}

impl Copied {
    fn start() -> Copied {
        Copied::start_with(options())
    }

    pub fn start_with(options: Options) -> Copied {
        let sites =
            Sites::start(&Options { volumes: vec![("data", VOLUME_MIB)], journal_mib: 16, ..options });
        let mut client = sites.left.connect("data");
        for mib in BUSY_MIB..VOLUME_MIB {
            let data: Vec<u8> = (0..MIB).map(|byte| (mib + byte / 4096 + 1) as u8).collect();
            client.write(mib * MIB, &data, false).expect("written");
        }
        client.disconnect().expect("it ends");
        Copied { sites, checker: Checker::new(0..BUSY_MIB * MIB / 4096, seed()) }
    }

    /// Hosts write at the first; `meanwhile` happens in the middle of it.
    fn load(&mut self, count: u64, meanwhile: impl FnOnce(&mut Site)) {
        let [left, _, far] = self.sites.three();
        let mut client = left.connect("data");
        let mut meanwhile = Some(meanwhile);
        let session = self.checker.drive(&mut client, DEPTH, |progress| {
            if progress.acknowledged >= count / 2
                && let Some(meanwhile) = meanwhile.take()
            {
                meanwhile(far);
            }
            if progress.acknowledged >= count { Next::Drain } else { Next::GoOn }
        });
        assert!(!session.disconnected && session.refused == 0, "{session:?}");
    }

    /// The first copied to the third, which is in the pull, and holds what the others do; what was copied, and what was equal, in bytes.
    fn comes_back(&mut self, what: &str) -> [u64; 2] {
        let [left, _, _] = self.sites.three();
        left.until("the third has it", |left| left.log_text().contains("far has been copied what it lacked"));
        self.follows_again();
        let [left, _, _] = self.sites.three();
        let totals = |name| number(&left.status(), ["totals", name]);
        let [copied, equal] = [totals("resync_bytes"), totals("resync_equal_bytes")];
        eprintln!("{what}: {} KiB copied, {} KiB equal or zeros", copied / 1024, equal / 1024);
        [copied, equal]
    }

    pub fn follows_again(&mut self) {
        let [_, _, far] = self.sites.three();
        // It starts anew in between, and answers nobody then: again, if hosts wrote more than journals keep meanwhile.
        far.until("it pulls what follows", |far| {
            let sources = |status: &Value| status["sources"].as_array().cloned().unwrap_or_default();
            let pulls = |source: &Value| source["state"] == "pulling" && source["behind"] == 0;
            far.try_status().is_some_and(|status| sources(&status).iter().any(pulls))
        });
        self.load(200, |_| ());
        let [left, right, far] = self.sites.three();
        left.wait("--settled");
        has_everything(far, left);
        identical(left, far, "data");
        identical(left, right, "data");
        self.checker.all_is_flushed();
        let [_, _, far] = self.sites.three();
        let mut client = far.connect("data");
        self.checker.verify(&mut client, "the third");
    }

    /// The third is stopped, and hosts write more than journals keep for it.
    pub fn lapses(&mut self) {
        self.load(WRITES, |_| ());
        let [left, _, far] = self.sites.three();
        left.wait("--settled");
        has_everything(far, left);
        assert!(far.stop().success());
        self.load(AWAY_WRITES, |_| ());
        let [left, _, _] = self.sites.three();
        left.until("it has lapsed", |left| left.status()["third"]["delta"] == "no");
    }
}

fn state_of(status: &Value) -> String {
    status["third"]["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_third_that_is_formatted_anew_under_load_is_copied_everything() {
    let mut copied = Copied::start();
    copied.load(WRITES, |_| ());
    copied.load(AWAY_WRITES, |far| {
        far.kill();
        succeeds(lockstep(&["format", "--force", "--config", path(&far.config)]));
        far.start();
    });
    // Through the start that brings to its volumes what it was copied.
    let [_, _, far] = copied.sites.three();
    far.wait("--in-sync");
    let [bytes, equal] = copied.comes_back("formatted anew under load");
    assert!(
        bytes >= (VOLUME_MIB - BUSY_MIB) * MIB && bytes + equal >= VOLUME_MIB * MIB,
        "{bytes} copied, {equal} equal"
    );
    let [left, _, far] = copied.sites.three();
    let log = left.log_text();
    assert!(
        log.contains("a copy to far begins, not a delta: it has nothing"),
        "the log says what goes on:\n{log}"
    );
    let log = far.log_text();
    assert!(log.contains("copies to this site, and sends no delta"), "the log says what goes on:\n{log}");
}

#[test]
fn a_third_that_was_away_for_longer_than_journals_last_is_copied_what_differs() {
    let mut copied = Copied::start();
    copied.lapses();
    let [left, _, far] = copied.sites.three();
    assert_eq!(state_of(&left.status()), "disconnected");
    far.start();
    let [bytes, equal] = copied.comes_back("away past the journals");
    assert!(bytes > 0 && bytes <= 2 * BUSY_MIB * MIB, "{bytes} copied, {equal} equal");
    assert!(equal >= (VOLUME_MIB - BUSY_MIB) * MIB, "{bytes} copied, {equal} equal");
}
