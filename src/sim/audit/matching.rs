//! Which host operation each update carries out.
//!
//! Content names its operation nearly always, but not where zeros are concerned (a `Zero`, a write of zeros, a `ZeroPartial`
//! over zeros) or a few bytes of a block: then several operations fit one update, and which one it is shows only later, when
//! another update fits one of them alone or when a host gets its reply. So the auditor asks what is certain: that all
//! updates and all replies together have an explanation, in which each update is an operation of its own, and each
//! operation that a host was answered an update that was where the reply says it was. That is a matching in a bipartite
//! graph, kept by augmenting paths, which find an explanation whenever there is one; nothing is forgiven beyond that. An
//! update too many, a reply too many or a reply too early leaves none.

use crate::base::BLOCK_BYTES;
use crate::sim::audit::journal::Seen;
use crate::sim::audit::{Auditor, Entry, Op, OpKind, OpSpec};
use crate::sim::content::{Content, Print};

impl Auditor {
    /// Finds the operation of the stream's newest update.
    pub(super) fn claim(&mut self, number: u64) {
        if self.is_piece(number) {
            return;
        }
        let mut moved = Vec::new();
        if self.find_op(number, &mut moved) {
            return self.promise_again(&moved);
        }
        let entry = &self.stream[number as usize - 1];
        let late = entry
            .known_ops
            .clone()
            .find(|&id| self.is_of(id, entry) && self.ops[id as usize].floor >= number);
        if let Some(id) = late {
            let floor = self.ops[id as usize].floor;
            panic!("INV-5: op {id} came after #{floor} was acknowledged, but is #{number}");
        }
        let found: Vec<_> = entry.contents.iter().map(|content| content.print.describe()).collect();
        panic!("INV-5: {:?} with {found:?} is no host's operation", entry.seen);
    }

    /// The host of `id` has its reply: finds the update that it is, and returns its number.
    pub(super) fn confirm(&mut self, id: u64) -> u64 {
        let Op { spec, site, .. } = self.ops[id as usize];
        let numbers = self.numbers_for(id);
        let Some(&newest) = numbers.last() else {
            panic!("INV-1: op {id} {spec:?} acknowledged, but no journal or frame has it");
        };
        let in_place = |number: u64| {
            self.held(site, number).map_err(|why| ("INV-1", why))?;
            if spec.kind.fua() { self.settled(number).map_err(|why| ("INV-2", why)) } else { Ok(()) }
        };
        // Whatever holds for a number holds for those before it.
        let Some(&limit) = numbers.iter().rev().find(|&&number| in_place(number).is_ok()) else {
            let oldest = numbers[0];
            let (invariant, why) = in_place(oldest).expect_err("none is");
            panic!("{invariant}: op {id} {spec:?} acknowledged as #{oldest} to #{newest}, but {why}");
        };
        self.ops[id as usize].limit = limit;
        // The oldest update that explains the reply promises least.
        let before = self.ops[id as usize].number.take();
        if let Some(before) = before {
            self.stream[before as usize - 1].op = None;
        } else {
            self.unnumbered.retain(|&unnumbered| unnumbered != id);
        }
        // Not by moving this one on again, if there is another way.
        let (mut moved, mut displaced, mut kept) = (Vec::new(), Vec::new(), vec![id]);
        // Nor further than some explanation needs, since as much is promised.
        let first = self.promised.max(numbers[0]);
        let found = (first..=self.last().max(first)).any(|upto| {
            moved = vec![id];
            self.find_number(id, upto, &mut Vec::new(), &mut moved)
        });
        let explained = found
            && before.is_none_or(|before| {
                self.stream[before as usize - 1].op.is_some()
                    || self.find_op(before, &mut kept)
                    || self.find_op(before, &mut displaced)
            });
        assert!(
            explained,
            "INV-1: op {id} {spec:?} acknowledged as #{}, but all updates up to it are other operations",
            numbers[0]
        );
        self.promise_again(&moved);
        self.promise_again(&kept);
        self.promise_again(&displaced);
        self.ops[id as usize].number.expect("find_number gave it one")
    }

    fn give(&mut self, id: u64, number: u64) {
        self.ops[id as usize].number = Some(number);
        self.stream[number as usize - 1].op = Some(id);
    }

    /// Operations that a host was answered may have changed their updates.
    fn promise_again(&mut self, moved: &[u64]) {
        for &id in moved {
            if let (true, Some(number)) = (self.ops[id as usize].succeeded, self.ops[id as usize].number) {
                self.promise(number);
            }
        }
    }

    /// Gives the update an operation: a free one, or that of another update for which there is a further one.
    fn find_op(&mut self, number: u64, moved: &mut Vec<u64>) -> bool {
        let entry = &self.stream[number as usize - 1];
        // Operations that were given up may still happen, but are the less likely ones.
        let waiting = |&id: &u64| self.ops[id as usize].outstanding && self.fits(id, entry);
        let free = self
            .unnumbered
            .iter()
            .position(waiting)
            .or_else(|| self.unnumbered.iter().position(|&id| self.fits(id, entry)));
        if let Some(free) = free {
            let id = self.unnumbered.remove(free);
            self.give(id, number);
            return true;
        }
        let taken = |&id: &u64| self.ops[id as usize].number.is_some() && self.fits(id, entry);
        let taken: Vec<u64> = entry.known_ops.clone().filter(taken).collect();
        for id in taken {
            if moved.contains(&id) {
                continue;
            }
            moved.push(id);
            let other = self.ops[id as usize].number.expect("filtered above, and only moved since");
            if self.find_op(other, moved) {
                self.give(id, number);
                return true;
            }
        }
        false
    }

    /// Gives the answered operation an update up to this one: of no operation, of one without a reply, or of one that has another.
    fn find_number(&mut self, id: u64, upto: u64, tried: &mut Vec<u64>, moved: &mut Vec<u64>) -> bool {
        for number in self.numbers_for(id) {
            if number > upto || tried.contains(&number) {
                continue;
            }
            tried.push(number);
            match self.stream[number as usize - 1].op {
                None => {}
                Some(owner) if !self.ops[owner as usize].succeeded => {
                    self.ops[owner as usize].number = None;
                    self.unnumbered.push(owner);
                }
                Some(owner) => {
                    moved.push(owner);
                    if !self.find_number(owner, upto, tried, moved) {
                        continue;
                    }
                }
            }
            self.give(id, number);
            return true;
        }
        false
    }

    /// The updates that the operation may be, ascending.
    fn numbers_for(&self, id: u64) -> Vec<u64> {
        let op = &self.ops[id as usize];
        let last = op.spec.lba + op.spec.count - 1;
        let block = &self.blocks[usize::from(op.spec.volume)][last as usize];
        let newer = block.versions.iter().rev().map(|version| version.number).take_while(|&n| n > op.floor);
        let mut numbers: Vec<u64> =
            newer.filter(|&number| self.fits(id, &self.stream[number as usize - 1])).collect();
        numbers.reverse();
        numbers
    }

    /// Whether the update may be operation `id`, by its place in the stream and by what it is.
    pub(super) fn fits(&self, id: u64, entry: &Entry) -> bool {
        let op = &self.ops[id as usize];
        (op.floor + 1..=op.limit).contains(&entry.seen.number) && self.is_of(id, entry)
    }

    /// Whether the update has the range and the content that operation `id` gives.
    fn is_of(&self, id: u64, entry: &Entry) -> bool {
        let op = &self.ops[id as usize];
        let (seen, spec) = (&entry.seen, &op.spec);
        entry.known_ops.contains(&id)
            // A site acknowledges in generations of its own alone.
            && op.host
            && op.site == Auditor::opener(seen.generation)
            && spec.volume == seen.volume
            && spec.lba + spec.count == seen.lba + u64::from(seen.count)
            && (spec.lba == seen.lba || (spec.lba < seen.lba && self.follows_pieces(id, seen)))
            && self.is_result_of(id, spec, seen.number, seen.lba, &entry.contents)
    }

    /// Whether the update is the beginning or the middle of a write whose blocks are not all captured alike, so that it takes
    /// several updates. The operation is that of the last one. Content names it: nothing else takes several.
    fn is_piece(&self, number: u64) -> bool {
        let Entry { seen, contents, known_ops, .. } = &self.stream[number as usize - 1];
        let Some(id) = contents[0].print.op().filter(|id| known_ops.contains(id)) else { return false };
        let Op { spec, floor, .. } = &self.ops[id as usize];
        let whole = |(lba, content): (u64, &Content)| content.print == Print::of_write(seen.volume, lba, id);
        matches!(spec.kind, OpKind::Write { .. })
            && spec.volume == seen.volume
            && seen.lba + u64::from(seen.count) < spec.lba + spec.count
            && *floor < number
            && (spec.lba == seen.lba || (spec.lba < seen.lba && self.follows_pieces(id, seen)))
            && (seen.lba..).zip(contents).all(whole)
    }

    /// Whether the updates right before this one are the operation's blocks before its own.
    fn follows_pieces(&self, id: u64, seen: &Seen) -> bool {
        let Some(before) = self.stream.get((seen.number as usize).wrapping_sub(2)) else { return false };
        before.seen.volume == seen.volume
            && before.seen.generation == seen.generation
            && before.seen.touches() > 0
            && before.seen.lba + u64::from(before.seen.count) == seen.lba
            && before.contents[0].print.op() == Some(id)
            && self.is_piece(before.seen.number)
    }

    fn is_result_of(&self, id: u64, spec: &OpSpec, number: u64, lba: u64, contents: &[Content]) -> bool {
        let whole = |lba: u64| if spec.zeros { Print::ZERO } else { Print::of_write(spec.volume, lba, id) };
        let merged = |offset: usize, length: usize, with: Print| {
            let mut block = [0; BLOCK_BYTES];
            let mut patch = [0; BLOCK_BYTES];
            self.blocks[usize::from(spec.volume)][spec.lba as usize].before(number).write_to(&mut block);
            with.fill(&mut patch);
            block[offset..offset + length].copy_from_slice(&patch[offset..offset + length]);
            Print::of(&block) == contents[0].print
        };
        match spec.kind {
            OpKind::Read | OpKind::Changes { .. } | OpKind::Flush => false,
            OpKind::Write { .. } => {
                (0..).zip(contents).all(|(index, content)| content.print == whole(lba + index))
            }
            OpKind::Zero { .. } => contents.iter().all(|content| content.print == Print::ZERO),
            OpKind::WritePartial { offset, length, .. } => merged(offset, length, whole(spec.lba)),
            OpKind::ZeroPartial { offset, length, .. } => merged(offset, length, Print::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::audit::journal::{BatchSeen, KIND_GENERATION_OPEN, KIND_WRITE, KIND_ZERO};
    use crate::sim::audit::{AuditConfig, JournalSeen, Level, PRIMARY, Place};
    use crate::sim::content::Block;
    use crate::sim::disk::IoId;

    const GENERATION: u64 = 1;
    const ZERO: OpKind = OpKind::Zero { fua: false };
    const WRITE: OpKind = OpKind::Write { fua: false };
    const ZERO_PARTIAL: OpKind = OpKind::ZeroPartial { offset: 512, length: 512, fua: false };

    /// A site without a peer and with one volume, so that what is in its journal is held. Update 1 opens its generation.
    struct Watched {
        audit: Auditor,
        /// Updates sent and not journaled yet.
        waiting: Vec<Seen>,
        batches: u64,
    }

    impl Watched {
        fn new() -> Watched {
            let audit = Auditor::new(AuditConfig {
                volumes: vec![8],
                level: Level::Journaled,
                peer: false,
                journals: vec![JournalSeen { blocks: 64, volatile: false }; 2],
                by_value: false,
                wait_ns_max: 1,
            });
            let mut watched = Watched { audit, waiting: Vec::new(), batches: 0 };
            watched.update(KIND_GENERATION_OPEN, &[]);
            watched
        }

        /// A host's operation on block 0.
        fn op(&mut self, kind: OpKind) -> u64 {
            self.audit.submitted(
                PRIMARY,
                true,
                OpSpec { volume: 0, lba: 0, count: 1, kind, zeros: false, snapshot: 0 },
            )
        }

        fn update(&mut self, kind: u8, blocks: &[Block]) -> u64 {
            let number = self.audit.last() + 1;
            let count = u32::from(kind == KIND_WRITE || kind == KIND_ZERO);
            let seen = Seen { number, generation: GENERATION, kind, volume: 0, lba: 0, count, slot: 0 };
            let blocks: Vec<_> = blocks.iter().map(Content::of).collect();
            self.audit.sends(PRIMARY, seen, &blocks);
            self.waiting.push(seen);
            number
        }

        fn zero(&mut self) -> u64 {
            self.update(KIND_ZERO, &[])
        }

        /// What was sent so far is in the journal.
        fn journal(&mut self) {
            let updates = std::mem::take(&mut self.waiting);
            self.batches += 1;
            let io = IoId(self.batches);
            let blocks = 1 + updates.iter().map(Seen::payload).sum::<usize>();
            let batch = BatchSeen {
                sequence: self.batches,
                previous: 0,
                digest: 0,
                known_durable: 0,
                settled: 0,
                updates,
            };
            let prints = vec![Print::ZERO; blocks];
            self.audit.sites[PRIMARY]
                .submits_batch(io, 2 + 4 * self.batches, prints, &batch)
                .expect("a batch");
            self.audit.written_io(PRIMARY, io, Place::Journal);
        }

        fn reply(&mut self, id: u64) {
            self.audit.succeeded(id, &[]);
        }
    }

    fn content(id: u64) -> Block {
        let mut block = [0; BLOCK_BYTES];
        Print::of_write(0, 0, id).fill(&mut block);
        block
    }

    fn with_zeros(mut block: Block) -> Block {
        block[512..1024].fill(0);
        block
    }

    #[test]
    fn what_zeros_are_shows_later() {
        let mut watched = Watched::new();
        let partial = watched.op(ZERO_PARTIAL);
        let whole = watched.op(ZERO);
        let write = watched.op(WRITE);
        // Over zeros, the update of `whole` might be the one of `partial`, until that one comes.
        watched.zero();
        watched.update(KIND_WRITE, &[content(write)]);
        watched.update(KIND_WRITE, &[with_zeros(content(write))]);
        watched.journal();
        [partial, whole, write].into_iter().for_each(|id| watched.reply(id));
    }

    #[test]
    fn twins_may_have_their_replies_in_any_order() {
        let mut watched = Watched::new();
        let (first, second) = (watched.op(ZERO), watched.op(ZERO));
        watched.zero();
        watched.journal();
        watched.zero();
        // Only one update is held, and either may be it.
        watched.reply(second);
        watched.journal();
        watched.reply(first);
    }

    #[test]
    fn no_more_is_promised_than_some_explanation_needs() {
        let mut watched = Watched::new();
        let (whole, partial, late) = (watched.op(ZERO), watched.op(ZERO_PARTIAL), watched.op(ZERO_PARTIAL));
        let (write, last) = (watched.op(WRITE), watched.op(ZERO));
        watched.zero();
        watched.zero();
        watched.update(KIND_WRITE, &[content(write)]);
        // Over what was written, this is no `ZeroPartial`; the last update may be any of the four.
        let needed = watched.zero();
        watched.zero();
        watched.journal();
        [whole, partial, late].into_iter().for_each(|id| watched.reply(id));
        assert_eq!(watched.audit.promised, needed);
        watched.reply(last);
    }

    #[test]
    #[should_panic(expected = "all updates up to it are other operations")]
    fn two_replies_need_two_updates() {
        let mut watched = Watched::new();
        let (first, second) = (watched.op(ZERO), watched.op(ZERO));
        watched.zero();
        watched.journal();
        watched.zero();
        watched.reply(first);
        watched.reply(second);
    }

    #[test]
    #[should_panic(expected = "INV-1: op 0")]
    fn a_reply_needs_an_update_that_is_held() {
        let mut watched = Watched::new();
        let (first, _second) = (watched.op(ZERO), watched.op(ZERO));
        watched.zero();
        watched.zero();
        watched.reply(first);
    }

    #[test]
    #[should_panic(expected = "no journal or frame has it")]
    fn what_was_acknowledged_before_is_no_update_of_a_later_operation() {
        let mut watched = Watched::new();
        let (first, _given_up) = (watched.op(ZERO), watched.op(ZERO));
        watched.zero();
        watched.zero();
        watched.journal();
        watched.reply(first);
        let other = watched.op(WRITE);
        watched.update(KIND_WRITE, &[content(other)]);
        watched.journal();
        watched.reply(other);
        let late = watched.op(ZERO);
        watched.reply(late);
    }

    #[test]
    #[should_panic(expected = "is no host's operation")]
    fn an_operation_is_one_update() {
        let mut watched = Watched::new();
        watched.op(ZERO);
        watched.zero();
        watched.zero();
    }

    #[test]
    #[should_panic(expected = "is no host's operation")]
    fn a_partial_write_keeps_the_newest_rest() {
        let mut watched = Watched::new();
        let (old, new) = (watched.op(WRITE), watched.op(WRITE));
        watched.op(ZERO_PARTIAL);
        watched.update(KIND_WRITE, &[content(old)]);
        watched.update(KIND_WRITE, &[content(new)]);
        watched.update(KIND_WRITE, &[with_zeros(content(old))]);
    }
}
