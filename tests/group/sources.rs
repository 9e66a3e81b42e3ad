//! From which of its sources a third pulls, and when it leaves one for the other.

use super::*;

#[test]
fn a_third_goes_on_from_the_second_by_the_delta() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 20, 1);
    trio.third_is_equal(FIRST, &expected);
    // It is behind when the first dies.
    trio.set_link(1, false);
    trio.set_link(2, false);
    trio.exercise(FIRST, &mut expected, 6, 2);
    trio.steps(200);
    trio.kill(FIRST);
    let behind = trio.status(THIRD).last;
    assert!(behind < trio.status(SECOND).last);
    trio.promote(SECOND);
    // The second serves its hosts while the third reads what it lacks.
    trio.set_link(2, true);
    trio.exercise(SECOND, &mut expected, 10, 4);
    trio.third_is_equal(SECOND, &expected);
    assert_eq!(trio.pulls_from(), Some(SECOND));
    assert_eq!(trio.status(SECOND).counters.fed_updates, trio.status(THIRD).last.0 - behind.0);
    // What it lacked when the second took over is what moved for that, and the first was asked for nothing.
    let resumed = trio.third_at(SECOND).resumed.expect("it went on from there");
    let (lacked, frames) = (resumed.upto.0 - behind.0, PLAIN_UPDATE_FRAME_BYTES as u64);
    assert!(resumed.after == behind && lacked > 96 && lacked < 100, "{resumed:?}");
    assert!(resumed.lacked_bytes >= 96 * 4096 && resumed.lacked_bytes < 112 * 4096, "{resumed:?}");
    assert_eq!(resumed.sent_bytes, 96 * 4096 + lacked * frames, "{resumed:?}");
    assert!(resumed.took > Some(Nanos(0)) && trio.resumed.last() == Some(&SECOND), "{resumed:?}");
    assert!(trio.refused.is_empty() && trio.lapsed.is_empty());
    // The first returns as a secondary; the third is with the second still, and tells both where it is.
    trio.set_link(1, true);
    trio.restart(FIRST);
    trio.until("the first follows", |trio| {
        trio.status(FIRST).role == Role::Secondary && trio.status(SECOND).peer == PeerState::InSync
    });
    trio.exercise(SECOND, &mut expected, 5, 6);
    trio.third_is_equal(SECOND, &expected);
    trio.until("the first knows it", |trio| trio.third_at(FIRST).position == trio.status(THIRD).durable);
    assert_eq!(trio.third_at(FIRST).state, ThirdState::Standing);
    assert!(matches!(trio.third_at(FIRST).delta, Delta::Yes { .. }));
    // It prefers the first, and goes back to it when that has stood for a while.
    trio.until("it goes back", |trio| trio.pulls_from() == Some(FIRST));
    trio.exercise(SECOND, &mut expected, 5, 7);
    trio.third_is_equal(SECOND, &expected);
    assert_eq!(trio.pulls_from(), Some(FIRST));
}

/// A dead site's connection outlives it by seconds, in which the second's journal may let go of what the third lacks.
#[test]
fn a_third_does_not_wait_for_a_connection_that_says_nothing() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 5, 1);
    trio.third_is_equal(FIRST, &expected);
    // It is gone, but nobody's link has noticed: what is sent to it is on its way for ever.
    trio.alive[FIRST] = false;
    trio.set_link(0, false);
    trio.promote(SECOND);
    trio.exercise(SECOND, &mut expected, 2, 2);
    let gone_at = trio.now;
    trio.until("it pulls from the second", |trio| trio.pulls_from() == Some(SECOND));
    assert!(trio.now.since(gone_at) < Nanos::from_millis(20), "after {:?}", trio.now.since(gone_at));
    trio.third_is_equal(SECOND, &expected);
}

/// A primary that restarted and cannot reach its peer is lively, and will never send anything if that peer has taken over.
#[test]
fn a_third_leaves_a_source_that_waits_for_its_peer_once_the_other_one_goes_on() {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 5, 1);
    trio.third_is_equal(FIRST, &expected);
    trio.kill(FIRST);
    trio.set_link(0, false);
    trio.restart(FIRST);
    trio.set_link(2, false);
    trio.until("it is back with the first", |trio| trio.pulls_from() == Some(FIRST));
    trio.set_link(2, true);
    trio.steps(100);
    assert_eq!(trio.pulls_from(), Some(FIRST));
    trio.promote(SECOND);
    trio.exercise(SECOND, &mut expected, 2, 2);
    let ahead_at = trio.now;
    trio.until("it pulls from the second", |trio| trio.pulls_from() == Some(SECOND));
    assert!(trio.now.since(ahead_at) <= Nanos::from_millis(60), "after {:?}", trio.now.since(ahead_at));
    assert!(!trio.sites[FIRST].group.serving());
    trio.third_is_equal(SECOND, &expected);
    // They meet again, and it goes back to the one it prefers, which follows now.
    trio.set_link(0, true);
    trio.until("the first follows", |trio| trio.status(SECOND).peer == PeerState::InSync);
    trio.until("it goes back", |trio| trio.pulls_from() == Some(FIRST));
    trio.exercise(SECOND, &mut expected, 2, 3);
    trio.third_is_equal(SECOND, &expected);
}
