//! A third that no journal reaches any more: it lapsed, or was formatted anew. All blocks are compared, and it is copied what differs.

use super::*;
use crate::resolve::adopting::adopted;
use std::ops::Range;

/// Blocks that are written before the third is gone; few enough that most of the volume is equal then.
const HELD: u64 = 256;

/// Those of them that change while it is away, again and again.
const CHANGED: u64 = 24;

impl Trio {
    fn copying() -> [GroupConfig; 3] {
        let mut configs = configs();
        configs[THIRD].resync.staging_blocks = 4096;
        for config in &mut configs[..2] {
            config.resync.p99_budget = Nanos::from_millis(10);
        }
        configs
    }

    fn write_all(&mut self, site: usize, expected: &mut HashMap<u64, u8>, blocks: Range<u64>, fill: u8) {
        for first in blocks.clone().step_by(16) {
            let count = 16.min(blocks.end - first);
            for ticket in 0..count {
                self.begin_write(site, ticket as u32, first + ticket, fill);
                expected.insert(first + ticket, fill);
            }
            for ticket in 0..count {
                assert_eq!(self.reply(site, ticket as u32), Ok(()));
            }
        }
    }

    /// The third is sent no more than so much a second.
    fn slow(bytes: u64) -> [GroupConfig; 3] {
        let mut configs = Trio::copying();
        for third in configs.iter_mut().filter_map(|config| config.third.as_mut()) {
            third.bandwidth_max = Some(bytes);
        }
        configs
    }

    /// The third has everything, and dies.
    fn parted(configs: [GroupConfig; 3], expected: &mut HashMap<u64, u8>) -> Trio {
        let mut trio = Trio::with(configs);
        trio.write_all(FIRST, expected, 0..HELD, 1);
        trio.third_is_equal(FIRST, expected);
        trio.sites[THIRD].group.want_sweep();
        trio.until("it is in the volumes", |trio| trio.status(THIRD).checkpoint == trio.status(THIRD).last);
        trio.kill(THIRD);
        trio
    }

    /// And then more is written than journals keep, to few blocks.
    fn lapsed(configs: [GroupConfig; 3], expected: &mut HashMap<u64, u8>) -> Trio {
        let mut trio = Trio::parted(configs, expected);
        trio.outrun(FIRST, expected);
        trio
    }

    fn outrun(&mut self, site: usize, expected: &mut HashMap<u64, u8>) {
        for round in 0..100 {
            self.write_all(site, expected, 0..CHANGED, 2 + round);
        }
        for source in (0..2).filter(|source| self.alive[*source]).collect::<Vec<_>>() {
            self.until("it has lapsed", |trio| {
                matches!(trio.third_at(source).delta, Delta::No(NoDelta::Lapsed | NoDelta::Unheard))
            });
        }
    }

    /// It has lost its disks, and is formatted.
    fn format_third(&mut self) {
        let config = self.sites[THIRD].config.clone();
        self.sites[THIRD].disks = Site::formatted(config).disks;
    }

    /// What the first has in its journal, and had not when it had these blocks, cannot be read any more.
    fn spoil(&mut self, before: &[(IoTarget, u64)]) {
        for (key, block) in &mut self.sites[FIRST].disks {
            if key.0 == IoTarget::Journal && key.1 >= SUPERBLOCK_SLOTS && !before.contains(key) {
                block[100] ^= 1;
            }
        }
    }

    fn is_copied_to(&self) -> bool {
        let sources = self.status(THIRD).sources;
        sources.iter().flatten().any(|source| source.state == SourceState::Copying)
    }

    fn begins(&mut self) {
        self.until("it is copied to", |trio| trio.is_copied_to());
    }

    /// What was copied, and what was equal, in the end.
    fn ends(&mut self, expected: &HashMap<u64, u8>) -> [u64; 2] {
        self.until("it has been copied what it lacked", |trio| !trio.copied.is_empty());
        self.third_is_equal(FIRST, expected);
        let (_, copied, equal) = self.copied[0];
        [copied, equal]
    }
}

#[test]
fn a_third_that_lapsed_is_copied_what_differs_and_nothing_else() {
    let mut expected = HashMap::new();
    let mut trio = Trio::lapsed(Trio::copying(), &mut expected);
    trio.restart(THIRD);
    trio.begins();
    assert_eq!(trio.third_at(FIRST).state, ThirdState::Copying);
    trio.until("something is equal", |trio| trio.third_at(FIRST).copy.blocks_equal > 0);
    assert_eq!(trio.read(THIRD, 0), 1, "its volume is what it was");
    let [copied, equal] = trio.ends(&expected);
    assert_eq!([copied, equal], [CHANGED, VOLUME_BLOCKS - CHANGED]);
    assert_eq!(trio.copies, [(FIRST, false)]);
    assert!(trio.refused.is_empty());
}

#[test]
fn a_third_that_was_formatted_anew_is_copied_everything_and_not_promoted_before() {
    let mut expected = HashMap::new();
    let mut trio = Trio::lapsed(Trio::copying(), &mut expected);
    trio.format_third();
    trio.restart(THIRD);
    trio.begins();
    trio.until("something is staged", |trio| trio.third_at(FIRST).copy.blocks_copied > 0);
    for site in [FIRST, SECOND] {
        trio.kill(site);
    }
    for id in 10..12 {
        let op = AdminOp::PromoteThird { fenced: true, accepted: Some(u64::MAX) };
        let now = trio.now;
        trio.sites[THIRD].with(now, |group, turn| group.on_admin(turn, AdminRequest { id, op }));
        let reply = std::iter::from_fn(|| {
            trio.step();
            Some(trio.sites[THIRD].out.to_admin.pop())
        });
        let reply = reply.take(1000).flatten().next().expect("an answer");
        assert_eq!((reply.id, reply.result), (id, Err(AdminError::HoldsNothing)));
        // And nobody is there to tell it again that there is more.
        trio.kill(THIRD);
        trio.restart(THIRD);
        trio.until("it runs", |trio| trio.status(THIRD).state == GroupState::Serving);
    }
    trio.restart(FIRST);
    trio.restart(SECOND);
    let [copied, equal] = trio.ends(&expected);
    assert!(copied >= HELD && copied + equal >= VOLUME_BLOCKS, "{copied} copied, {equal} equal");
}

/// The second has everything settled that the first has, and copies that while the first serves, and is in lockstep with it.
#[test]
fn a_secondary_copies_to_a_third_that_does_not_reach_the_first() {
    let mut expected = HashMap::new();
    let mut trio = Trio::lapsed(Trio::copying(), &mut expected);
    trio.set_link(1, false);
    trio.restart(THIRD);
    trio.until("it is told", |trio| trio.third_at(SECOND).state == ThirdState::Lapsed);
    let lapsed_at = trio.now;
    trio.begins();
    let waited = trio.now.since(lapsed_at);
    assert!(waited >= Nanos::from_millis(4_000), "{waited:?}: the first may have what the second let go of");
    assert_eq!(trio.third_at(SECOND).state, ThirdState::Copying);
    trio.exercise(FIRST, &mut expected, 20, 3);
    trio.ends(&expected);
    assert_eq!(trio.copies, [(SECOND, false)]);
    assert_eq!((trio.status(SECOND).role, trio.status(FIRST).peer), (Role::Secondary, PeerState::InSync));
}

/// Its volumes may have what it does not know to be settled: that is in no copy as of what it knows.
#[test]
fn a_site_that_restarted_copies_when_it_knows_all_that_it_found_to_be_settled() {
    let mut expected = HashMap::new();
    let mut trio = Trio::lapsed(Trio::copying(), &mut expected);
    trio.kill(SECOND);
    for link in 0..2 {
        trio.set_link(link, false);
    }
    trio.restart(SECOND);
    trio.restart(THIRD);
    trio.until("it is asked", |trio| trio.third_at(SECOND).state == ThirdState::Copying);
    trio.steps(500);
    let second = trio.status(SECOND);
    assert!(second.settled < second.last, "it has no doubts: {second:#?}");
    assert!(trio.copies.is_empty() && trio.third_at(SECOND).state == ThirdState::Copying);
    trio.set_link(0, true);
    trio.ends(&expected);
    assert_eq!(trio.copies, [(SECOND, false)]);
}

/// What a site adopted is in no journal, and no site that was formatted has it.
#[test]
fn a_third_of_a_pair_that_adopted_is_copied_what_that_holds() {
    let mut expected: HashMap<u64, u8> = (0..HELD).map(|lba| (lba, 7)).collect();
    let mut configs = Trio::copying();
    configs.iter_mut().for_each(|config| config.resync.staging_blocks = 4096);
    let mut trio = Trio::formatted(configs);
    trio.sites[FIRST] = adopted(trio.sites[FIRST].config.clone(), 1_000_000, &expected);
    trio.sites[FIRST].may_refuse = true;
    trio.sites[FIRST].with(Nanos(0), |group, turn| group.start(turn));
    trio.until("the pair is in lockstep", |trio| trio.status(FIRST).peer == PeerState::InSync);
    trio.write_all(FIRST, &mut expected, HELD - 8..HELD + 8, 9);
    let [copied, equal] = trio.ends(&expected);
    assert!(copied >= HELD && copied + equal >= VOLUME_BLOCKS, "{copied} copied, {equal} equal");
    assert!(trio.refused.is_empty(), "{:?}", trio.refused);
}

#[test]
fn hosts_that_write_more_than_journals_keep_meanwhile_wait_for_nobody() {
    let mut expected = HashMap::new();
    let mut trio = Trio::lapsed(Trio::copying(), &mut expected);
    let calm = trio.exercise(FIRST, &mut expected, 10, 1);
    trio.format_third();
    trio.third_disks.journal_steps = 100;
    trio.restart(THIRD);
    trio.begins();
    let before = trio.status(FIRST).counters.journal_blocks;
    for round in 0..30 {
        let took = trio.exercise(FIRST, &mut expected, 10, round);
        assert!(took <= 2 * calm, "{took} steps, and {calm} before");
    }
    assert!(trio.copied.is_empty() && trio.is_copied_to());
    assert!(trio.status(FIRST).counters.journal_blocks - before > trio.status(FIRST).journal_blocks);
    trio.third_disks.journal_steps = 0;
    trio.ends(&expected);
}

/// A delta is cheaper, whenever it turns up.
#[test]
fn a_source_that_comes_with_the_delta_ends_the_copy() {
    let mut expected = HashMap::new();
    let mut trio = Trio::parted(Trio::copying(), &mut expected);
    let before: Vec<_> = trio.sites[FIRST].disks.keys().copied().collect();
    trio.exercise(FIRST, &mut expected, 8, 2);
    trio.steps(100);
    trio.spoil(&before);
    trio.set_link(2, false);
    trio.third_disks.journal_steps = 20;
    trio.restart(THIRD);
    trio.begins();
    trio.until("something is equal", |trio| trio.third_at(FIRST).copy.blocks_equal > 0);
    trio.set_link(2, true);
    trio.until("it pulls from the second", |trio| trio.pulls_from() == Some(SECOND));
    trio.third_disks.journal_steps = 0;
    trio.third_is_equal(FIRST, &expected);
    assert!(trio.copied.is_empty() && !trio.is_copied_to(), "{:?}", trio.copied);
}

/// What was equal to what the third had then need not be equal to what it has got from elsewhere since.
#[test]
fn a_log_from_before_a_delta_counts_for_nothing() {
    let mut expected = HashMap::new();
    let mut trio = Trio::parted(Trio::slow(20_000_000), &mut expected);
    let before: Vec<_> = trio.sites[FIRST].disks.keys().copied().collect();
    // To something else, and most of it back to what the third has.
    trio.write_all(FIRST, &mut expected, 0..64, 9);
    let other = trio.status(FIRST).last;
    trio.write_all(FIRST, &mut expected, 0..64, 1);
    trio.write_all(FIRST, &mut expected, 0..8, 8);
    trio.write_all(FIRST, &mut expected, 300..332, 8);
    trio.until("both have it", |trio| trio.status(SECOND).settled == trio.status(FIRST).last);
    trio.steps(100);
    trio.spoil(&before);
    trio.set_link(2, false);
    trio.restart(THIRD);
    trio.begins();
    trio.until("some is staged", |trio| trio.third_at(FIRST).copy.blocks_copied > 0);
    let copy = trio.third_at(FIRST).copy;
    assert!(copy.blocks_equal > 0 && copy.blocks_left > 0, "{copy:?}");
    trio.kill(THIRD);
    // From the second it gets as far as where all was something else.
    trio.set_link(1, false);
    trio.set_link(2, true);
    trio.restart(THIRD);
    trio.until("it has that", |trio| trio.status(THIRD).durable >= other);
    trio.kill(THIRD);
    trio.outrun(FIRST, &mut expected);
    trio.set_link(1, true);
    trio.restart(THIRD);
    trio.until("it runs", |trio| trio.status(THIRD).state == GroupState::Serving);
    let at = trio.status(THIRD).last;
    assert!(at.0 < other.0 + 64, "it is at {at}, and has got on to what it had before, behind {other}");
    let [copied, _] = trio.ends(&expected);
    assert!(copied >= 64, "{copied} copied");
}

#[test]
fn whoever_dies_while_it_is_copied_to_it_is_whole_in_the_end() {
    for (run, steps) in (0..45).map(|run: usize| (run, run * run / 8)) {
        let mut expected = HashMap::new();
        let mut trio = Trio::lapsed(Trio::copying(), &mut expected);
        if run % 2 == 0 {
            trio.format_third();
        }
        if run % 5 == 0 {
            trio.set_link(1, false);
        }
        trio.restart(THIRD);
        trio.begins();
        trio.steps(steps);
        let victim = [THIRD, SECOND, FIRST][run % 3];
        trio.kill(victim);
        trio.steps(20);
        trio.restart(victim);
        trio.set_link(1, true);
        trio.until("all is well", |trio| {
            trio.pulls_from().is_some() && trio.status(FIRST).peer == PeerState::InSync
        });
        trio.write_all(FIRST, &mut expected, 0..16, 77);
        trio.third_is_equal(FIRST, &expected);
        assert!(trio.refused.is_empty(), "run {run}: {:?}", trio.refused);
    }
}

/// A broken connection, and a death of the third.
#[test]
fn a_copy_that_was_interrupted_goes_on_behind_what_is_staged() {
    let mut expected = HashMap::new();
    let mut trio = Trio::lapsed(Trio::slow(4_000_000), &mut expected);
    trio.format_third();
    trio.restart(THIRD);
    for dies in [false, true] {
        trio.begins();
        let before = trio.third_at(FIRST).copy.blocks_copied;
        trio.until("more is staged", |trio| trio.third_at(FIRST).copy.blocks_copied > before);
        match dies {
            true => {
                trio.kill(THIRD);
                trio.restart(THIRD);
            }
            false => trio.disconnect(1),
        }
        trio.until("it is gone", |trio| trio.third_at(FIRST).state != ThirdState::Copying);
        assert!(trio.third_at(FIRST).copy.active, "status goes on to tell of it");
    }
    let before = trio.third_at(FIRST).copy.blocks_copied;
    trio.begins();
    trio.until("more is staged", |trio| trio.third_at(FIRST).copy.blocks_copied > before);
    let [copied, _] = trio.ends(&expected);
    assert_eq!(trio.copies, [(FIRST, false), (FIRST, true), (FIRST, true)]);
    assert!((HELD..HELD + 64).contains(&copied), "{copied} copied: some of what was on its way, twice");
}

/// A secondary that is parted from a primary which goes on alone says nothing of what it does not have, whether the third has a part of that or not.
#[test]
fn a_third_that_lapsed_is_copied_though_a_source_that_has_no_more_than_it_cannot_tell() {
    for has_more in [true, false] {
        let mut configs = Trio::copying();
        for config in &mut configs[..2] {
            config.peer.as_mut().expect("a pair").on_peer_loss = OnPeerLoss::Solo;
            config.resync.staging_blocks = 4096;
        }
        let mut expected = HashMap::new();
        let mut trio = Trio::with(configs);
        trio.write_all(FIRST, &mut expected, 0..HELD, 1);
        trio.third_is_equal(FIRST, &expected);
        trio.set_link(0, false);
        if has_more {
            trio.write_all(FIRST, &mut expected, 0..CHANGED, 2);
            let has = |trio: &Trio| trio.status(THIRD).last == trio.status(FIRST).last;
            trio.until("the third has what the first wrote alone", has);
        }
        assert_eq!(trio.status(SECOND).last < trio.status(THIRD).last, has_more);
        trio.kill(THIRD);
        for round in 0..100 {
            trio.write_all(FIRST, &mut expected, 0..CHANGED, 3 + round);
        }
        trio.until("it has lapsed", |trio| trio.third_at(FIRST).delta == Delta::No(NoDelta::Lapsed));
        trio.restart(THIRD);
        let [copied, equal] = trio.ends(&expected);
        assert_eq!([copied, equal], [CHANGED, VOLUME_BLOCKS - CHANGED]);
    }
}
