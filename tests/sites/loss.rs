//! A peer that goes away, goes silent, or loses datagrams: what hosts see meanwhile, and that it ends in lockstep.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::checker::{Checker, Next, Session};
use crate::pair::*;
use crate::relay::Relay;

const DEPTH: usize = 16;
const VOLUME_MIB: u64 = 32;

fn options(group: &str) -> Options {
    Options {
        volumes: vec![("data", VOLUME_MIB)],
        journal_mib: 64,
        group: group.to_owned(),
        ..Options::default()
    }
}

fn checker(seed: u64) -> Checker {
    Checker::new(0..VOLUME_MIB * MIB / 4096, seed)
}

fn writes(checker: &mut Checker, site: &Site, count: u64) -> Session {
    let mut client = site.connect("data");
    let session = checker.drive(&mut client, DEPTH, |progress| {
        if progress.acknowledged < count { Next::GoOn } else { Next::Drain }
    });
    assert!(!session.disconnected, "{session:?}");
    session
}

fn both_hold_it(checker: &mut Checker, sites: &Sites) {
    sites.wait("--in-sync");
    sites.wait("--settled");
    checker.verify(&mut sites.left.connect("data"), "the primary");
    checker.verify(&mut sites.right.connect("data"), "the secondary");
}

fn peer_state(site: &Site) -> String {
    site.status()["peer"]["state"].as_str().expect("a state").to_owned()
}

#[test]
fn suspended_writes_wait_for_a_secondary_that_comes_back() {
    let group = "on_peer_loss = \"suspend\"\nhost_deadline = \"5min\"\nlatency_budget = \"500ms\"";
    let mut sites = Sites::start(&options(group));
    let mut checker = checker(11);
    writes(&mut checker, &sites.left, 500);
    sites.right.kill();
    let mut client = sites.left.connect("data");
    let mut restarted_at = None;
    let session = checker.drive(&mut client, DEPTH, |progress| {
        match restarted_at {
            // All in flight, none answered: nothing more can happen until the secondary is back.
            None if progress.writes_in_flight >= 8 => {
                sites.left.until("it knows that its peer is lost", |left| peer_state(left) != "in_sync");
                sites.right.start();
                restarted_at = Some(progress.acknowledged);
            }
            Some(before) if progress.acknowledged >= before + 500 => return Next::Drain,
            _ => {}
        }
        Next::GoOn
    });
    assert_eq!(restarted_at, Some(0), "a write was acknowledged without the secondary");
    assert!(!session.disconnected && session.refused == 0, "{session:?}");
    both_hold_it(&mut checker, &sites);
}

#[test]
fn suspended_writes_end_in_errors_at_their_deadline_and_nothing_is_lost() {
    let group = "on_peer_loss = \"suspend\"\nhost_deadline = \"1s\"\nlatency_budget = \"500ms\"";
    let mut sites = Sites::start(&options(group));
    let mut checker = checker(12);
    writes(&mut checker, &sites.left, 500);
    sites.right.kill();
    let mut client = sites.left.connect("data");
    let mut enough = 0;
    let session = checker.drive(&mut client, DEPTH, |progress| {
        enough += 1;
        assert_eq!(progress.acknowledged, 0, "a write was acknowledged without the secondary");
        if enough < 4 * DEPTH { Next::GoOn } else { Next::Drain }
    });
    assert!(session.refused > 0 && !session.disconnected, "{session:?}");
    sites.right.start();
    sites.wait("--in-sync");
    let session = writes(&mut checker, &sites.left, 500);
    assert_eq!(session.refused, 0, "{session:?}");
    both_hold_it(&mut checker, &sites);
}

/// SIGSTOP: the process is alive and its sockets are open, which no connection check would notice.
#[test]
fn a_silent_secondary_is_lost_and_a_solo_primary_goes_on_and_is_joined_again() {
    let group = "on_peer_loss = \"solo\"\nhost_deadline = \"5min\"\nlatency_budget = \"500ms\"";
    let mut sites = Sites::start(&options(group));
    let mut checker = checker(13);
    writes(&mut checker, &sites.left, 500);
    sites.right.pause();
    let session = writes(&mut checker, &sites.left, 1000);
    assert_eq!(session.refused, 0, "{session:?}");
    let status = sites.left.status();
    assert_eq!(status["solo"], true, "{status}");
    checker.verify(&mut sites.left.connect("data"), "the primary alone");
    sites.right.resume();
    sites.wait("--in-sync");
    sites.left.until("solo has ended", |left| left.status()["solo"] == false);
    writes(&mut checker, &sites.left, 500);
    both_hold_it(&mut checker, &sites);
}

/// Solo is durable: the primary knows after a crash that it was alone, and serves without asking.
#[test]
fn a_solo_primary_restarts_alone_and_its_secondary_catches_up_while_the_host_writes() {
    let group = "on_peer_loss = \"solo\"\nhost_deadline = \"5min\"\nlatency_budget = \"500ms\"";
    let mut sites = Sites::start(&options(group));
    let mut checker = checker(14);
    writes(&mut checker, &sites.left, 500);
    sites.right.kill();
    writes(&mut checker, &sites.left, 500);
    sites.left.kill();
    sites.left.start();
    let mut client = sites.left.connect_when_served("data");
    checker.verify(&mut client, "the primary alone");
    let mut started = false;
    let session = checker.drive(&mut client, DEPTH, |progress| {
        if !started && progress.acknowledged >= 200 {
            sites.right.start();
            started = true;
        }
        if started && peer_state(&sites.left) == "in_sync" && progress.acknowledged >= 1000 {
            return Next::Drain;
        }
        Next::GoOn
    });
    assert!(!session.disconnected && session.refused == 0, "{session:?}");
    both_hold_it(&mut checker, &sites);
}

/// A primary that was in lockstep cannot know what happened meanwhile, so it asks before it serves.
#[test]
fn a_restarted_primary_serves_nothing_until_its_secondary_has_answered() {
    let mut sites = Sites::start(&options("latency_budget = \"5s\"\nhost_deadline = \"1s\""));
    let mut checker = checker(15);
    writes(&mut checker, &sites.left, 500);
    sites.left.kill();
    sites.right.kill();
    sites.left.start();
    sites.left.until("it waits for its peer", |left| left.status()["state"] == "awaiting_peer");
    if let Ok(mut client) = sites.left.try_connect("data") {
        client.read(0, 4096).expect_err("a read was served by a primary that may be behind");
        client.write(0, &[1; 4096], false).expect_err("a write was acknowledged by one site");
    }
    sites.right.start();
    sites.wait("--in-sync");
    let mut client = sites.left.connect_when_served("data");
    checker.verify(&mut client, "the primary");
    drop(client);
    both_hold_it(&mut checker, &sites);
}

/// Seconds that the lossy link is used, if not a few; `tests/torture` uses it for ten minutes.
fn relay_seconds() -> Option<u64> {
    std::env::var("LOCKSTEP_RELAY_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"))
}

#[test]
fn one_lost_datagram_in_a_thousand_is_no_loss_of_the_peer() {
    let seconds = Duration::from_secs(relay_seconds().unwrap_or(3));
    let mut relay = None;
    let mut start = |right: SocketAddr| {
        let started = Relay::start(right, 16).expect("a relay");
        let address = started.address();
        relay = Some(started);
        address
    };
    // The long run is made on a quiet machine, with the latency budget that sites have if nobody says otherwise.
    let budget = if relay_seconds().is_some() { "" } else { "\nlatency_budget = \"5s\"" };
    // Solo would show in the log for ever; a suspension would pass.
    let options = options(&format!("on_peer_loss = \"solo\"{budget}"));
    let mut sites = Sites::format_behind(&options, &mut start);
    let relay = relay.expect("it was started");
    sites.start_both();
    let mut checker = checker(17);
    let mut p99_99_ms = Vec::new();
    for lost_ppm in [0, 1000] {
        for way in relay.both() {
            way.lost_ppm.store(lost_ppm, Relaxed);
        }
        let mut client = sites.left.connect("data");
        let session =
            checker.drive(
                &mut client,
                1,
                |progress| {
                    if progress.elapsed < seconds { Next::GoOn } else { Next::Drain }
                },
            );
        assert!(session.acknowledged > 0 && session.refused == 0 && !session.disconnected, "{session:?}");
        let latency = |quantile| session.latency_ns.0.value_at_quantile(quantile) as f64 / 1e6;
        println!(
            "{lost_ppm} of a million lost, QD1: {} changes, p50 {:.2} ms, p99.9 {:.2} ms, p99.99 {:.2} ms",
            session.acknowledged,
            latency(0.5),
            latency(0.999),
            latency(0.9999)
        );
        p99_99_ms.push(latency(0.9999));
    }
    // A short run has too few operations for this percentile, and company that shows in it.
    if relay_seconds().is_some() {
        let costs_ms = p99_99_ms[1] - p99_99_ms[0];
        assert!(costs_ms < 10.0, "p99.99 is {costs_ms:.2} ms above that of the same relay without loss");
    }
    writes(&mut checker, &sites.left, 5000);
    for (whose, way) in [("the primary's", relay.to_listener()), ("the secondary's", relay.to_dialer())] {
        let (dropped, forwarded) = (way.dropped.load(Relaxed), way.forwarded.load(Relaxed));
        println!("{dropped} datagrams of {whose} lost, {forwarded} not");
        assert!(dropped > 0, "nothing of {whose} was dropped, so nothing was tested");
    }
    let log = sites.left.log_text();
    assert!(!log.contains("is lost") && !log.contains("solo"), "the peer was lost:\n{log}");
    both_hold_it(&mut checker, &sites);
}
