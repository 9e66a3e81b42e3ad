//! What a third has and what has gone bad there: a site that it pulls from has it, too.

use super::*;
use crate::mending::{BLOCKS, due};
use lockstep::core::group::status::{Part, PartStatus};

/// All three have everything in their volumes, and these of them nothing in memory.
fn rested(cold: &[usize]) -> Trio {
    let mut trio = Trio::new();
    trio.rots = true;
    for lba in 0..BLOCKS {
        trio.begin_write(FIRST, lba as u32, lba, due(lba));
        assert_eq!(trio.reply(FIRST, lba as u32), Ok(()));
    }
    let has_all = |trio: &Trio| {
        let last = trio.status(FIRST).last;
        (0..3).all(|site| trio.status(site).checkpoint == last)
    };
    trio.until("checkpoints of everything", has_all);
    for &site in cold {
        trio.kill(site);
        trio.restart(site);
    }
    trio.until("all are back", |trio| {
        let met = |it: &lockstep::core::group::status::SourceStatus| it.state != SourceState::Disconnected;
        trio.status(FIRST).peer == PeerState::InSync
            && trio.sites[FIRST].group.serving()
            && trio.pulls_from().is_some()
            && trio.status(THIRD).sources.iter().flatten().all(met)
    });
    trio.steps(200);
    trio
}

fn try_read(trio: &mut Trio, site: usize, lba: u64) -> Result<u8, HostError> {
    let pages = trio.sites[site].begin_read(trio.now, 901, lba, 1);
    let result = trio.reply(site, 901);
    let (byte, _) = trio.sites[site].end_read(pages)[0];
    result.map(|()| byte)
}

#[test]
fn what_has_gone_bad_at_a_third_is_lent_by_a_source() {
    // Out of memory, or from the volume.
    for cold in [&[THIRD][..], &[FIRST, SECOND, THIRD]] {
        let mut trio = rested(cold);
        [3, 4, 100].iter().for_each(|&lba| trio.sites[THIRD].flip(lba));
        trio.sites[THIRD].unreadable.extend([key(9), key(10)]);
        for lba in [3, 4, 100, 9, 10] {
            assert_eq!(try_read(&mut trio, THIRD, lba), Ok(due(lba)), "block {lba}");
            trio.until("the disk has it", |trio| trio.sites[THIRD].holds(lba, due(lba)));
        }
        let counters = trio.status(THIRD).counters;
        assert_eq!((counters.repaired_blocks, counters.unrepaired_blocks), (5, 0));
        // Nobody was lost over it.
        assert!(trio.pulls_from().is_some() && trio.refused.is_empty());
    }
}

#[test]
fn a_scrub_of_a_third_finds_and_repairs_what_nobody_reads() {
    let mut trio = rested(&[]);
    [0, 7, 39, 300].iter().for_each(|&lba| trio.sites[THIRD].flip(lba));
    trio.sites[THIRD].unreadable.extend([key(20), key(511)]);
    trio.ask(THIRD, AdminOp::Scrub { blocks_per_second: 1_000_000 });
    assert_eq!(trio.sites[THIRD].out.to_admin.pop().map(|reply| reply.result.is_ok()), Some(true));
    trio.until("the scrub is over", |trio| !trio.status(THIRD).scrub.active);
    let PartStatus { bad, repaired, unrepaired, .. } = trio.status(THIRD).scrub.part(Part::Volumes);
    assert_eq!((bad, repaired, unrepaired), (6, 6, 0));
    assert!([0, 7, 39, 300, 20, 511].iter().all(|&lba| trio.sites[THIRD].holds(lba, due(lba))));
}

#[test]
fn what_one_source_has_lost_too_the_other_one_lends_and_repairs_there() {
    let mut trio = rested(&[FIRST, SECOND, THIRD]);
    let pulled = trio.pulls_from().expect("it pulls");
    [pulled, THIRD].iter().for_each(|&site| trio.sites[site].flip(5));
    assert_eq!(try_read(&mut trio, THIRD, 5), Ok(due(5)));
    trio.until("all disks have it", |trio| (0..3).all(|site| trio.sites[site].holds(5, due(5))));
}

#[test]
fn without_a_source_it_is_refused_and_repaired_when_one_is_back() {
    let mut trio = rested(&[THIRD]);
    trio.sites[THIRD].flip(6);
    trio.set_link(1, false);
    trio.set_link(2, false);
    assert_eq!(try_read(&mut trio, THIRD, 6), Err(HostError::Io));
    assert_eq!(try_read(&mut trio, THIRD, 7), Ok(due(7)));
    trio.set_link(2, true);
    trio.until("it pulls again", |trio| trio.pulls_from().is_some());
    assert_eq!(try_read(&mut trio, THIRD, 6), Ok(due(6)));
    trio.until("the disk has it", |trio| trio.sites[THIRD].holds(6, due(6)));
}

#[test]
fn what_all_three_have_lost_is_refused_everywhere() {
    let mut trio = rested(&[FIRST, SECOND, THIRD]);
    (0..3).for_each(|site| trio.sites[site].flip(8));
    for site in 0..3 {
        assert_eq!(try_read(&mut trio, site, 8), Err(HostError::Io), "site {site}");
        assert_eq!(try_read(&mut trio, site, 9), Ok(due(9)));
    }
}

/// A third that was away while hosts wrote this, and lacks it.
fn third_away() -> (Trio, HashMap<u64, u8>) {
    let mut trio = Trio::new();
    let mut expected = HashMap::new();
    trio.exercise(FIRST, &mut expected, 2, 1);
    trio.third_is_equal(FIRST, &expected);
    trio.kill(THIRD);
    trio.exercise(FIRST, &mut expected, 8, 2);
    trio.until("all is settled", |trio| trio.status(FIRST).settled == trio.status(FIRST).last);
    (trio, expected)
}

/// What the disk gives the second time, it has.
#[test]
fn a_third_for_which_the_journal_cannot_be_read_once_goes_on() {
    let (mut trio, expected) = third_away();
    for site in &mut trio.sites[..THIRD] {
        site.unread_once.extend(site.ring());
    }
    trio.restart(THIRD);
    trio.third_is_equal(FIRST, &expected);
    let untried = [FIRST, SECOND].map(|site| trio.sites[site].unread_once.len());
    assert!(untried[0] != untried[1], "one of them had its journal read: {untried:?}");
    assert!(trio.lapsed.is_empty());
}

/// A third costs nobody anything, and so does what only it needs.
#[test]
fn a_journal_that_cannot_be_read_back_for_a_third_fails_nobody() {
    let (mut trio, mut expected) = third_away();
    for site in &mut trio.sites[..THIRD] {
        site.unreadable.extend(site.ring());
    }
    let ready = |trio: &Trio, site: usize| matches!(trio.third_at(site).delta, Delta::Yes { .. });
    assert!(ready(&trio, FIRST) && ready(&trio, SECOND));
    trio.restart(THIRD);
    trio.until("it hears that it has lapsed", |trio| trio.lapsed.contains(&THIRD));
    let unread = |site: &usize| trio.third_at(*site).delta == Delta::No(NoDelta::Unread);
    assert_ne!([FIRST, SECOND].iter().filter(|site| unread(site)).count(), 0, "one was asked, and says so");
    trio.exercise(FIRST, &mut expected, 2, 3);
    let serves = |site: usize| trio.status(site).state == GroupState::Serving;
    assert!(serves(FIRST) && serves(SECOND));
}

/// What it brings is no rot: nobody is told that a disk does not give what it has.
#[test]
fn a_read_for_a_third_that_the_ring_overtakes_is_a_lapse() {
    let (mut trio, mut expected) = third_away();
    trio.set_link(2, false);
    trio.sites[FIRST].slow_reads = Some(Vec::new());
    trio.restart(THIRD);
    let reads = |trio: &Trio| trio.sites[FIRST].slow_reads.iter().flatten().count() > 0;
    trio.until("its source reads the journal", reads);
    trio.exercise(FIRST, &mut expected, 300, 3);
    assert!(reads(&trio));
    trio.sites[FIRST].end_slow_reads();
    trio.until("it hears that it has lapsed", |trio| trio.third_at(FIRST).state == ThirdState::Lapsed);
    assert_eq!(trio.third_at(FIRST).delta, Delta::No(NoDelta::Lapsed));
    trio.steps(10);
    assert!(trio.read_failed.is_empty());
}

/// What a sweep wrote before a crash is newer than the checksums that a start finds, until replay has it settled.
#[test]
fn what_replay_has_yet_to_write_again_is_not_bad_for_a_third_that_wants_what_was_there_before() {
    let mut trio = rested(&[]);
    trio.rots = false;
    trio.begin_write(FIRST, 1, 0, 0xa1);
    assert_eq!(trio.reply(FIRST, 1), Ok(()));
    let journaled = |trio: &Trio| trio.status(SECOND).durable == trio.status(FIRST).last;
    trio.until("the second has it", journaled);
    assert!(trio.sites[SECOND].holds(0, due(0)));
    trio.sites[SECOND].disks.insert(key(0), Box::new([0xa1; BLOCK_BYTES]));
    trio.set_link(0, false);
    trio.kill(SECOND);
    trio.restart(SECOND);
    // Without its primary it does not know that what it replays is settled.
    trio.until("the third is back", |trio| trio.third_at(SECOND).state == ThirdState::Standing);
    let status = trio.status(SECOND);
    assert!(status.settled < status.last, "{status:#?}");
    let place = BlockPlace::Volume(VolumeId(0), Lba(0));
    let wanted = Control::BlockWanted { place, sum: sum_of_block(&[due(0); BLOCK_BYTES]) };
    let now = trio.now;
    trio.sites[SECOND].with(now, |group, turn| group.on_remote(turn, 0, FromLink::Control(wanted)));
    trio.steps(50);
    assert_eq!(trio.status(SECOND).counters.unrepaired_blocks, 0);
    trio.set_link(0, true);
    trio.until("both disks have it", |trio| {
        [SECOND, THIRD].iter().all(|&site| trio.sites[site].holds(0, 0xa1))
    });
}
