//! The auditor and takeovers: what the new primary may go on without, and what the old one does before it knows.

use crate::sim::audit::journal::{KIND_GENERATION_OPEN, KIND_HAND_OVER, Seen};
use crate::sim::audit::{Auditor, Entry, Level, SITES_MAX, peer_of};
use crate::sim::content::Content;

impl Auditor {
    /// Whether what the operation was promised holds whoever takes over: it is a write that both sites had to keep durably.
    pub fn outlives_crashes(&self, id: u64) -> bool {
        self.config.level >= Level::Durable && self.ops[id as usize].spec.kind.changes()
    }

    /// Whether an operator may let the other site, which took updates up to `other_took`, take over from `site`, which is dead or
    /// cut from its hosts. Not if it acknowledged anything alone that the other has not, or would go on alone when it starts again.
    pub fn may_be_taken_over(&self, site: usize, other_took: u64) -> bool {
        let (written, other_has) = (self.written(site), self.received(peer_of(site)).min(other_took));
        let own = |has: u64| self.solo.iter().rev().find(|(number, _)| *number <= has);
        let ended = |last: Option<&(u64, bool)>| last.is_none_or(|(at, begins)| !begins && *at <= other_has);
        // Power may take from it yet what it has not flushed, an end among that.
        let ends = [own(written), own(self.durable(site)), self.solo.last()];
        site == self.leader && ends.into_iter().all(ended)
    }

    /// Whether it opened the newest generation that there is.
    pub fn leads(&self, site: usize) -> bool {
        site == self.leader
    }

    /// An operator lets the site take over, which he can only when it follows.
    pub fn ordered_to_take_over(&mut self, site: usize) {
        self.deposed[site] = false;
    }

    /// Whether each journal has something that the other has not.
    pub fn journals_part(&self) -> bool {
        let shared = self.sites[0].written().min(self.sites[1].written());
        shared > 0 && self.sites[0].submits(shared) != self.sites[1].submits(shared)
    }

    /// A crash took from the site what it had beyond its journal, up to `had`.
    pub(super) fn lost(&mut self, site: usize, had: u64) {
        let has = self.written(site) as usize;
        for entry in self.stream.iter_mut().take(had as usize).skip(has) {
            entry.lost[site] = true;
        }
    }

    /// The site has this update, for the first time or again.
    pub(super) fn found(&mut self, site: usize, number: u64, generation: u64) {
        let entry = self.stream.get_mut(number as usize - 1);
        if let Some(entry) = entry.filter(|entry| entry.seen.generation == generation) {
            entry.lost[site] = false;
        }
    }

    /// The site opens a generation after another's: what comes after its own stream is no more. That must be nothing that a host
    /// was told of, unless a crash took it from this site, which the level allows.
    pub(super) fn take_over(&mut self, site: usize, first: u64) {
        let level = self.config.level;
        let mut common = (first - 1).min(self.stream.len() as u64);
        while common > 0
            && self.sites[site].submits(common) != Some(self.stream[common as usize - 1].seen.generation)
        {
            common -= 1;
        }
        // Whoever succeeds goes by what its predecessor has said, which that is to know of after any crash.
        let before = (first as usize).checked_sub(2).and_then(|index| self.stream.get(index));
        if before.is_some_and(|entry| entry.seen.kind == KIND_HAND_OVER) && common == first - 1 {
            let had = self.durable(self.leader);
            assert!(had >= common, "INV-7: site {site} succeeds one that has only #{had} durable");
        }
        for entry in self.stream.iter_mut().skip(common as usize) {
            if entry.promised && !entry.excused {
                assert!(
                    entry.lost[site] && level < Level::Durable,
                    "INV-1: {:?} was promised to a host, but site {site} takes over without it",
                    entry.seen
                );
                entry.excused = true;
                self.excused_writes += 1;
            }
            // Until this turns out to have been no takeover, its operation has no number.
            if let Some(op) = entry.op {
                self.ops[op as usize].number = None;
            }
        }
        self.replace_from(common + 1);
        self.leader = site;
        (self.deposed[site], self.deposed[peer_of(site)]) = (false, true);
        self.take_up_own(first - 1);
        self.newest_generation = self.stream.last().map_or(0, |entry| entry.seen.generation);
        self.takeovers += 1;
        self.acknowledged = 0;
        self.before_death = [[0; 4]; SITES_MAX];
        self.blocks.iter_mut().flatten().for_each(|block| block.read_at_secondary = [0; 2]);
    }

    /// A primary that was taken over from numbers an update before it knows. Nobody else will ever have it.
    pub(super) fn goes_on_unaware(&mut self, seen: Seen, blocks: &[Content]) {
        let site = Auditor::opener(seen.generation);
        let entry = self.entry(site, seen, blocks);
        self.replaced.insert((seen.generation, seen.number), entry);
    }

    /// A crash may have undone the opening of the newest generation: then the one before is in force, and all that its primary has.
    pub(super) fn takeover_undone(&mut self) {
        // There is nobody else.
        if self.inherited.is_some() {
            return;
        }
        let leader = match self.stream.last() {
            _ if self.succeeds(peer_of(self.leader)) => peer_of(self.leader),
            Some(newest) => Auditor::opener(newest.seen.generation),
            // There was nothing before it.
            None if self.deposed[peer_of(self.leader)] => peer_of(self.leader),
            None => self.leader,
        };
        if leader != self.leader {
            self.leader = leader;
            self.deposed[leader] = false;
            self.take_up_own(u64::MAX);
            self.newest_generation = self.stream.last().map_or(0, |newest| newest.seen.generation);
        }
    }

    /// Whether the site has all of the stream, and opened a generation of its own over that, which a takeover had replaced.
    fn succeeds(&self, site: usize) -> bool {
        let last = self.stream.len() as u64;
        let opening = self.sites[site].submits(last + 1).and_then(|own| self.replaced.get(&(own, last + 1)));
        opening.is_some_and(|Entry { seen, .. }| {
            seen.kind == KIND_GENERATION_OPEN && Auditor::opener(seen.generation) == site
        }) && self.common(site, self.sites[site].written().min(last)) == last
    }

    /// What the new leader's journal has up to a number is in force, whatever it was before.
    fn take_up_own(&mut self, upto: u64) {
        let first = self.stream.len() as u64 + 1;
        self.take_up_again(upto);
        for number in first..=self.stream.len() as u64 {
            let Entry { seen, op, .. } = &self.stream[number as usize - 1];
            match *op {
                Some(op) => self.ops[op as usize].number = Some(number),
                None if seen.touches() > 0 => self.claim(number),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::audit::journal::{BatchSeen, KIND_WRITE, RING_FIRST};
    use crate::sim::audit::{AuditConfig, JournalSeen, OpKind, OpSpec, PRIMARY, Place, SECONDARY};
    use crate::sim::content::Print;
    use crate::sim::disk::{Disk, IoId};

    const JOURNAL_BLOCKS: u64 = 64;

    /// Two sites with one volume, whose journals are on one disk: it stays as it was formatted, and batches are zeros.
    struct Pair {
        audit: Auditor,
        disk: Disk,
        batches: u64,
        /// Where each site's next batch goes.
        ends: [u64; 2],
    }

    impl Pair {
        fn new() -> Pair {
            let audit = Auditor::new(AuditConfig {
                volumes: vec![8],
                level: Level::Received,
                peer: true,
                journals: vec![JournalSeen { blocks: JOURNAL_BLOCKS, volatile: false }; 2],
                by_value: false,
                wait_ns_max: 1,
            });
            let disk = Disk::formatted(JOURNAL_BLOCKS, &[8]);
            Pair { audit, disk, batches: 0, ends: [RING_FIRST; 2] }
        }

        fn op(&mut self, site: usize) -> u64 {
            let kind = OpKind::Write { fua: false };
            self.audit.submitted(
                site,
                true,
                OpSpec { volume: 0, lba: 0, count: 1, kind, zeros: false, snapshot: 0 },
            )
        }

        /// The site numbers an update, which its peer is sent: an operation's, or one of another kind.
        fn update(&mut self, generation: u64, kind: u8, op: Option<u64>) -> Seen {
            let (number, count) = (self.audit.last() + 1, u32::from(op.is_some()));
            let seen = Seen { number, generation, kind, volume: 0, lba: 0, count, slot: 0 };
            let blocks: Vec<_> =
                op.iter().map(|id| Content { print: Print::of_write(0, 0, *id), bytes: None }).collect();
            self.audit.sends(Auditor::opener(generation), seen, &blocks);
            seen
        }

        fn journal(&mut self, site: usize, updates: &[Seen]) {
            self.batches += 1;
            let io = IoId(self.batches);
            let prints = vec![Print::ZERO; 1 + updates.iter().map(Seen::payload).sum::<usize>()];
            let (sequence, updates) = (self.batches, updates.to_vec());
            let batch = BatchSeen { sequence, previous: 0, digest: 0, known_durable: 0, settled: 0, updates };
            let block = self.ends[site];
            self.ends[site] += prints.len() as u64;
            self.audit.sites[site].submits_batch(io, block, prints, &batch).expect("a batch");
            self.audit.written_io(site, io, Place::Journal);
        }

        fn crash(&mut self, site: usize) {
            self.audit.crashed(site, &self.disk);
        }
    }

    /// Simulator seed 453814.
    #[test]
    fn what_was_under_way_when_its_primary_died_is_in_the_stream_once_it_arrives() {
        let mut pair = Pair::new();
        let first = 1 << 16 | 1;
        let opening = pair.update(first, KIND_GENERATION_OPEN, None);
        let op = pair.op(PRIMARY);
        let write = pair.update(first, KIND_WRITE, Some(op));
        pair.audit.receives(SECONDARY, opening.number, first);
        pair.crash(PRIMARY);
        assert_eq!(pair.audit.last(), opening.number);
        pair.audit.receives(SECONDARY, write.number, first);
        assert_eq!((pair.audit.last(), pair.audit.received(SECONDARY)), (write.number, write.number));
    }

    /// Simulator seed 441250.
    #[test]
    fn a_takeover_undone_leaves_the_successor_of_a_handover_in_force() {
        let mut pair = Pair::new();
        let (first, second, third) = (1 << 16 | 1, 2 << 16 | 2, 3 << 16 | 1);
        for kind in [KIND_GENERATION_OPEN, KIND_HAND_OVER] {
            let update = pair.update(first, kind, None);
            [PRIMARY, SECONDARY].into_iter().for_each(|site| pair.journal(site, &[update]));
        }
        pair.audit.receives(SECONDARY, 2, first);
        let op = pair.op(SECONDARY);
        let opening = pair.update(second, KIND_GENERATION_OPEN, None);
        let write = pair.update(second, KIND_WRITE, Some(op));
        pair.journal(SECONDARY, &[opening, write]);
        assert_eq!(pair.audit.leader, SECONDARY);
        pair.audit.ordered_to_take_over(PRIMARY);
        pair.audit.sends(PRIMARY, Seen { generation: third, ..opening }, &[]);
        assert_eq!((pair.audit.leader, pair.audit.last()), (PRIMARY, opening.number));
        pair.crash(PRIMARY);
        assert_eq!((pair.audit.leader, pair.audit.last()), (SECONDARY, write.number));
        assert_eq!(pair.audit.ops[op as usize].number, Some(write.number));
    }
}
