//! Two sites that both went on alone, cut off from each other: each keeps what it has, and says what the other one has, until an operator
//! lets one of them give way.

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

/// Two sites that are cut off from each other, and have both gone on: the left one by 300 writes, the right one by 200.
struct Parted {
    sites: Sites,
    relay: Relay,
    /// What the clients of each know: they write to ranges of their own, so that what each has can be told from the other's.
    left: Checker,
    right: Checker,
    /// The volume as both had it before.
    before: Vec<u8>,
}

impl Parted {
    /// With snapshots, one that both have, and one of each.
    fn new(snapshots: bool) -> Parted {
        let group = "on_peer_loss = \"solo\"\nlatency_budget = \"1s\"\nheartbeat_interval = \"50ms\"";
        let options = Options {
            volumes: vec![("data", 16)],
            differential_mib: 48,
            group: group.to_owned(),
            ..Options::default()
        };
        let mut relay = None;
        let mut sites = Sites::format_behind(&options, |right| {
            let started = Relay::start(right, seed()).expect("a relay");
            relay.insert(started).address()
        });
        let relay = relay.expect("it was started");
        sites.start_both();
        let (mut left, mut right) = (Checker::new(0..2048, seed()), Checker::new(2048..4096, seed() + 1));
        writes(&mut left, &mut sites.left, 100);
        writes(&mut right, &mut sites.left, 100);
        if snapshots {
            snapshot(&sites.left, &["create"], "shared");
        }
        writes(&mut left, &mut sites.left, 50);
        sites.wait("--settled");
        let before = image(&mut sites.left);
        relay.both().iter().for_each(|way| way.cut.store(true, Relaxed));
        sites.right.until("it has lost the primary", |site| site.status()["peer"]["state"] == "disconnected");
        // The operator's word is wrong: the primary goes on.
        succeeds(lockstep(&["promote", "--config", path(&sites.right.config), "--fenced"]));
        for site in [&mut sites.left, &mut sites.right] {
            site.until("it serves alone", |site| site.status()["solo"] == true);
            if snapshots {
                snapshot(site, &["create"], &format!("of-{}", site.name));
            }
        }
        writes(&mut left, &mut sites.left, 300);
        writes(&mut right, &mut sites.right, 200);
        Parted { sites, relay, left, right, before }
    }

    fn cut(&self, cut: bool) {
        self.relay.both().iter().for_each(|way| way.cut.store(cut, Relaxed));
    }

    /// They meet, and refuse each other.
    fn meet(&mut self) {
        self.cut(false);
        for site in [&mut self.sites.left, &mut self.sites.right] {
            site.until("it has met the other", |site| !site.status()["split_brain"].is_null());
        }
    }

    fn verify(&mut self) {
        self.left.verify(&mut self.sites.left.connect_when_served("data"), "the old primary");
        self.right.verify(&mut self.sites.right.connect_when_served("data"), "the new primary");
    }
}

fn snapshot(site: &Site, act: &[&str], name: &str) -> String {
    succeeds(lockstep(&[&["snapshot"], act, &["--config", path(&site.config), name]].concat()))
}

fn image(site: &mut Site) -> Vec<u8> {
    let mut client = site.connect_when_served("data");
    (0..16).flat_map(|mib| client.read(mib * MIB, MIB as u32).expect("a read")).collect()
}

#[test]
fn both_sites_show_both_histories_and_neither_is_changed() {
    let mut parted = Parted::new(false);
    parted.meet();
    let sites = &parted.sites;
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
        parted.verify();
        // Nor does a restart choose.
        for site in [&mut parted.sites.left, &mut parted.sites.right] {
            site.kill();
            site.start();
            // Until the site knows its role again, it serves what its configuration says that it is, and sends those hosts away.
            let takes_writes = |client: NbdClient| client.flags() & READ_ONLY == 0;
            site.until("it takes writes again", |site| site.try_connect("data").is_ok_and(takes_writes));
        }
    }
}

fn resolve(site: &Site, arguments: &[&str]) -> std::process::Output {
    let config = path(&site.config);
    lockstep(&[&["resolve", "--config", config], arguments].concat())
}

/// Lets `gone` give way, whose clients know `theirs`, killing it now and then.
fn discards(
    gone: &mut Site,
    kept: &mut Site,
    relay: &Relay,
    mut theirs: Checker,
    mut ours: Checker,
    before: &[u8],
) {
    let why = fails(resolve(kept, &["--discard", gone.name, "--yes"]));
    assert!(why.contains("is the other site"), "{why}");
    let why = fails(resolve(gone, &["--discard", "nowhere", "--yes"]));
    assert!(why.contains("there is no site nowhere"), "{why}");
    let told = fails(resolve(gone, &["--discard", gone.name]));
    assert!(told.contains("discarding") && told.contains("nothing is changed"), "{told}");
    assert_eq!(gone.status()["role"], "primary");
    relay.both().iter().for_each(|way| way.cut.store(true, Relaxed));
    let told = succeeds(resolve(gone, &["--discard", gone.name, "--yes"]));
    assert!(told.contains("loses what it has after update") && told.contains("gives way"), "{told}");
    for restarts in [false, true] {
        if restarts {
            gone.kill();
            gone.start();
        }
        gone.until("it gives way", |site| {
            site.status()["gives_way"] == true && site.status()["state"] == "serving"
        });
        let mut client = gone.connect_when_served("data");
        assert_ne!(client.flags() & READ_ONLY, 0);
        theirs.verify(&mut client, "a site that gives way");
    }
    writes(&mut ours, kept, 100);
    relay.both().iter().for_each(|way| way.cut.store(false, Relaxed));
    let mut kills = 0;
    while kept.status()["peer"]["state"] != "in_sync" || kept.status()["solo"] == true {
        writes(&mut ours, kept, 10);
        if kept.status()["peer"]["state"] == "resyncing" && kills < 3 {
            kills += 1;
            gone.kill();
            gone.start();
        }
    }
    assert!(kills > 0, "it was never seen copying");
    let seconds = format!("{}s", PATIENCE.as_secs());
    let wait =
        |what| succeeds(lockstep(&["wait", "--config", path(&kept.config), what, "--timeout", &seconds]));
    wait("--in-sync");
    wait("--settled");
    let (status, of_kept) = (gone.status(), image(kept));
    assert_eq!((&status["role"], &status["gives_way"]), (&"secondary".into(), &false.into()));
    assert!(image(gone) == of_kept, "the sites differ");
    ours.verify(&mut kept.connect("data"), "the kept site");
    // Nothing of the other history is left.
    let range = if gone.name == "right" { 2048 * 4096..4096 * 4096 } else { 0..2048 * 4096 };
    assert!(of_kept[range.clone()] == before[range], "what was discarded is somewhere");
    for name in ["shared", &format!("of-{}", kept.name)] {
        assert_eq!(snapshot(gone, &["digest"], name), snapshot(kept, &["digest"], name), "snapshot {name}");
    }
    let list = succeeds(lockstep(&["snapshot", "list", "--config", path(&gone.config)]));
    assert!(!list.contains(&format!("of-{}", gone.name)), "{list}");
    println!("{} of {kills} kills; {} bytes copied", gone.name, kept.status()["totals"]["resync_bytes"]);
}

#[test]
fn the_right_site_gives_way_and_is_what_it_was_until_it_has_what_the_left_one_has() {
    let mut parted = Parted::new(true);
    parted.meet();
    let Parted { mut sites, relay, left, right, before } = parted;
    discards(&mut sites.right, &mut sites.left, &relay, right, left, &before);
}

#[test]
fn the_left_site_gives_way_and_is_what_it_was_until_it_has_what_the_right_one_has() {
    let mut parted = Parted::new(true);
    parted.meet();
    let Parted { mut sites, relay, left, right, before } = parted;
    discards(&mut sites.left, &mut sites.right, &relay, left, right, &before);
}
