//! A peer whose disk hung, and that is back with updates in its memory which it does not have durably.

use super::*;

#[test]
fn a_peer_that_was_away_for_long_is_not_lost_for_what_it_owed_before() {
    let mut split = Split::strangers([None, None], 1, OnPeerLoss::Suspend);
    split.link();
    split.until("they are in lockstep", |split| split.over());
    split.write(0, 1, 1);
    let received = split.status(1).last;
    split.pair.sites[1].journal_hangs = true;
    split.pair.sites[0].write(split.pair.now, 7, 2, 2, false);
    split.until("the peer has it in memory", |split| split.status(1).last > received);
    split.until("the peer is lost", |split| !split.linked);
    let budget = split.pair.sites[0].config.peer.as_ref().expect("a pair").latency_budget;
    let back = split.pair.now.plus(Nanos(10 * budget.0));
    split.until("time has passed", |split| split.pair.now >= back);
    split.link();
    let until = split.pair.now.plus(Nanos(budget.0 / 2));
    split.until("time has passed", |split| split.pair.now >= until);
    split.pair.sites[1].journal_hangs = false;
    assert_eq!(split.reply(0, 7), Ok(()));
    assert!(split.linked, "it was given its time again");
    split.holds = [HashMap::from([(1, 1), (2, 2)]), HashMap::new()];
    split.finish();
}
