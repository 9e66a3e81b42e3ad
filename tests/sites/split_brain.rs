//! Two sites that both went on alone, cut off from each other: each keeps what it has, and says what the other one has.

use std::sync::atomic::Ordering::Relaxed;

use lockstep::format::nbd::flags::READ_ONLY;
use lockstep::io::nbd_client::NbdClient;

use crate::checker::{Checker, Next};
use crate::crashes::seed;
use crate::pair::*;
use crate::relay::Relay;

const DEPTH: usize = 8;

fn writes(checker: &mut Checker, site: &mut Site, count: u64) {
    let mut client = site.connect_when_served("data");
    let session = checker.drive(&mut client, DEPTH, |progress| {
        if progress.acknowledged < count { Next::GoOn } else { Next::Drain }
    });
    assert_eq!((session.refused, session.disconnected), (0, false), "{session:?}");
}

fn split(site: &Site, whose: &str, what: &str) -> u64 {
    site.status()["split_brain"][whose][what].as_u64().expect("a count")
}

#[test]
fn both_sites_show_both_histories_and_neither_is_changed() {
    let group = "on_peer_loss = \"solo\"\nlatency_budget = \"1s\"\nheartbeat_interval = \"50ms\"";
    let options = Options { volumes: vec![("data", 16)], group: group.to_owned(), ..Options::default() };
    let mut relay = None;
    let mut sites = Sites::format_behind(&options, |right| {
        let started = Relay::start(right, seed()).expect("a relay");
        relay.insert(started).address()
    });
    let relay = relay.expect("it was started");
    sites.start_both();
    // The two write to ranges of their own, so that what each has can be told from the other's.
    let (mut left, mut right) = (Checker::new(0..2048, seed()), Checker::new(2048..4096, seed() + 1));
    writes(&mut left, &mut sites.left, 100);
    writes(&mut right, &mut sites.left, 100);
    sites.wait("--settled");
    relay.both().iter().for_each(|way| way.cut.store(true, Relaxed));
    sites.right.until("it has lost the primary", |site| site.status()["peer"]["state"] == "disconnected");
    // The operator's word is wrong: the primary goes on.
    succeeds(lockstep(&["promote", "--config", path(&sites.right.config), "--fenced"]));
    writes(&mut left, &mut sites.left, 300);
    writes(&mut right, &mut sites.right, 200);
    relay.both().iter().for_each(|way| way.cut.store(false, Relaxed));
    for site in [&mut sites.left, &mut sites.right] {
        site.until("it has met the other", |site| !site.status()["split_brain"].is_null());
    }
    for (site, own, other) in [(&sites.left, 300, 200), (&sites.right, 200, 300)] {
        for (whose, least) in [("ours", own), ("theirs", other)] {
            let (updates, acknowledged) = (split(site, whose, "updates"), split(site, whose, "acknowledged"));
            assert!((least..least + 50).contains(&updates) && acknowledged >= least, "{}", site.status());
        }
        let text = succeeds(lockstep(&["status", "--config", path(&site.config)]));
        assert!(text.contains("SPLIT BRAIN") && text.contains("discarding it loses"), "{text}");
        assert!(site.log_text().contains("SplitBrain"), "{}", site.log_text());
    }
    let common = |site: &Site| site.status()["split_brain"]["common"].clone();
    assert_eq!(common(&sites.left), common(&sites.right));
    for _ in 0..2 {
        left.verify(&mut sites.left.connect_when_served("data"), "the old primary");
        right.verify(&mut sites.right.connect_when_served("data"), "the new primary");
        // Nor does a restart choose.
        for site in [&mut sites.left, &mut sites.right] {
            site.kill();
            site.start();
            // Until the site knows its role again, it serves what its configuration says that it is, and sends those hosts away.
            let takes_writes = |client: NbdClient| client.flags() & READ_ONLY == 0;
            site.until("it takes writes again", |site| site.try_connect("data").is_ok_and(takes_writes));
        }
    }
}
