//! What the three know of how far the third is behind, and for how long yet it can go on.

use super::*;
use lockstep::core::group::status::Behind;

/// How far it is behind, wherever one asks; and a limit of what it may be sent, which is what makes it so.
#[test]
fn a_third_that_is_sent_no_more_than_so_much_is_behind_and_all_three_know_it() {
    const A_SECOND: u64 = 1 << 20;
    let mut configs = configs();
    for third in configs.iter_mut().flat_map(|config| &mut config.third) {
        third.bandwidth_max = Some(A_SECOND);
    }
    let mut trio = Trio::with(configs);
    let mut expected = HashMap::new();
    let (begun, before) = (trio.now, trio.status(FIRST).counters.fed_bytes);
    trio.exercise(FIRST, &mut expected, 12, 1);
    trio.steps(20);
    let frame = 4096 + PLAIN_UPDATE_FRAME_BYTES as u64;
    let lacks = trio.status(FIRST).settled.0 - trio.status(THIRD).durable.0;
    assert!(lacks > 50, "{lacks}");
    for site in [FIRST, SECOND] {
        let Behind { updates, bytes, age } = trio.third_at(site).behind;
        // It was told some milliseconds ago.
        assert!(updates >= lacks && updates <= lacks + 20, "{updates} of {lacks} at site {site}");
        assert!(bytes >= updates * 4096 && bytes <= (updates + 16) * 4096, "{bytes} for {updates}");
        assert!(age > Nanos(0) && age <= trio.now.since(begun), "{age:?} at site {site}");
    }
    let source = trio.status(THIRD).sources[FIRST].expect("it pulls from the first");
    let Behind { updates, bytes, age } = source.behind;
    assert!(updates + 20 >= lacks && updates <= lacks, "{updates} of {lacks}");
    assert!(bytes > updates * 2000 && bytes <= updates * 4096, "{bytes} for {updates}");
    assert!(age > Nanos(0) && age <= trio.now.since(begun), "{age:?}");
    trio.until("it has everything", |trio| trio.status(THIRD).durable == trio.status(FIRST).settled);
    let took = trio.now.since(begun).0 as f64 / 1e9;
    // Heartbeats are not counted by the limit.
    let sent = trio.status(FIRST).counters.fed_bytes - before;
    let (most, least) = (192 * frame + 200 * 40, 192 * frame);
    assert!((least..=most).contains(&sent), "{sent} bytes for 192 updates");
    let at_rate = (192 * frame) as f64 / A_SECOND as f64;
    assert!(took > 0.95 * at_rate - 0.02 && took < 1.1 * at_rate + 0.05, "{took} s for {at_rate} s");
    trio.third_is_equal(FIRST, &expected);
    trio.steps(100);
    assert_eq!([FIRST, SECOND].map(|site| trio.third_at(site).behind), [Behind::default(); 2]);
}

#[test]
fn a_site_warns_before_the_delta_is_gone() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 5, 1);
    trio.third_is_equal(FIRST, &expected);
    trio.steps(100);
    assert!(trio.third_at(FIRST).kept_percent <= 5 && !trio.third_at(FIRST).lapses_soon());
    trio.kill(THIRD);
    while trio.warned.is_empty() {
        trio.exercise(FIRST, &mut expected, 1, 2);
        trio.steps(20);
        assert!(trio.lapsed.is_empty(), "a third lapsed without a warning");
    }
    assert!(trio.third_at(FIRST).lapses_soon() && matches!(trio.third_at(FIRST).delta, Delta::Yes { .. }));
    trio.exercise(FIRST, &mut expected, 250, 3);
    // The second batches otherwise, and warns in its own time.
    assert!(trio.lapsed.contains(&FIRST) && trio.lapsed.contains(&SECOND));
    let sites: Vec<_> = trio.warned.iter().map(|(site, _)| *site).collect();
    assert_eq!(sites, [FIRST, SECOND]);
    assert!(trio.warned.iter().all(|(_, kept)| (80..95).contains(kept)), "{:?}", trio.warned);
    let third = trio.third_at(FIRST);
    assert!(!third.lapses_soon() && third.kept_percent == 100, "{third:?}");
}

/// A site that was away reads what was still there when it came, though that was kept for the third alone by then.
#[test]
fn what_a_peer_reads_that_has_come_back_is_not_let_go_of_with_what_is_the_thirds() {
    let mut configs = configs();
    for config in &mut configs[..2] {
        config.peer.as_mut().expect("a pair").on_peer_loss = OnPeerLoss::Solo;
        config.resync = ResyncConfig { staging_blocks: 4096, p99_budget: Nanos::from_millis(10) };
    }
    let mut trio = Trio::with(configs);
    let mut expected = HashMap::new();
    trio.kill(SECOND);
    trio.exercise(FIRST, &mut expected, 28, 0);
    trio.restart(SECOND);
    trio.until("it has got on", |trio| trio.status(SECOND).durable > UpdateNumber(40));
    trio.steps(2);
    trio.kill(SECOND);
    assert!(trio.status(SECOND).last < trio.status(FIRST).last, "it has got all");
    trio.third_is_equal(FIRST, &expected);
    trio.steps(100);
    trio.sites[FIRST].group.want_sweep();
    trio.until("its journal begins later", |trio| trio.status(FIRST).checkpoint == trio.status(FIRST).last);
    trio.kill(THIRD);
    // It knows only from where on it was alone, and that its journal begins later: that lets the next superblock's tail pass the peer, all of
    // which is in the changed-block set.
    trio.kill(FIRST);
    trio.restart(FIRST);
    trio.until("it serves", |trio| trio.sites[FIRST].group.serving());
    while trio.third_at(FIRST).kept_percent < 90 {
        trio.exercise(FIRST, &mut expected, 1, 2);
        trio.sites[FIRST].group.want_sweep();
        trio.until("it is swept", |trio| trio.status(FIRST).checkpoint == trio.status(FIRST).last);
    }
    trio.restart(SECOND);
    trio.until("it reads what it lacks", |trio| trio.status(FIRST).peer == PeerState::CatchingUp);
    for ticket in 0..64 {
        trio.begin_write(FIRST, ticket, u64::from(ticket), 77);
    }
    trio.until("the third is let go of", |trio| trio.third_at(FIRST).kept_percent == 100);
    assert!(trio.status(SECOND).last < trio.status(FIRST).checkpoint, "it still reads what it lacked");
    for ticket in 0..64 {
        assert_eq!(trio.reply(FIRST, ticket), Ok(()));
    }
    trio.until("it has it", |trio| trio.status(FIRST).peer == PeerState::InSync);
    assert!(trio.refused.is_empty(), "{:?}", trio.refused);
    assert_eq!(trio.status(FIRST).counters.resync_blocks, 0);
}
