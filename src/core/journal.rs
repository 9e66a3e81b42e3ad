//! The journal's state: where the next batch goes, which batches are in flight, how far the stream is journaled and
//! durable, and which ring blocks the checkpoint still needs. The layout is `format::journal`'s.

use crate::base::*;
use crate::core::messages::{IoOp, IoRequest, IoTarget};
use crate::format::journal::{BatchHeader, Digest, encode_batch};
use crate::format::superblock::{JournalPosition, RING_FIRST_BLOCK};
use crate::format::update::{Update, UpdateKind};

/// A batch in the ring, oldest first in the index.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Its updates; empty (`last` before `first`) for a cut record and for batches cut away whole.
    pub first: UpdateNumber,
    pub last: UpdateNumber,
    pub position: JournalPosition,
    pub blocks: u32,
    /// Ring blocks it takes, with those skipped before it at the ring's end.
    span: u32,
    /// What all batches before this one would take at worst, each update with a header of its own.
    cost_before: u64,
}

#[derive(Clone, Copy, Debug)]
struct Writing {
    slot: SlotId,
    header: PageId,
    /// The stream is journaled this far once this batch and all before it are written.
    last: UpdateNumber,
    blocks: u32,
    done: bool,
}

/// What a new batch is formed with; `header` is an open page.
#[derive(Clone, Copy, Debug)]
pub struct Forming {
    pub group: GroupId,
    pub settled: UpdateNumber,
    pub header: PageId,
    pub now: Nanos,
}

/// What `form_batch` tells the caller to submit.
#[derive(Clone, Copy, Debug)]
pub struct BatchWrite {
    pub slot: SlotId,
    pub block: u64,
    pub count: u32,
    /// The updates it holds; none (`last` before `first`) for a cut record.
    pub first: UpdateNumber,
    pub last: UpdateNumber,
}

impl BatchWrite {
    pub fn request(&self) -> IoRequest {
        let BatchWrite { slot, block, count, .. } = *self;
        IoRequest { slot, target: IoTarget::Journal, op: IoOp::Write, block, count }
    }
}

/// Blocks kept free for generation, solo and cut records, which are written without admission.
const CONTROL_BLOCKS: u64 = 16;

/// Sequences skipped at a start: more than a ring can hold of batches that came after a torn one. Those stay on the disk, and
/// must never look newer than what this life of the site writes.
const RESTART_LEAP: u64 = 1 << 32;

/// Ring blocks that updates never take: the waste before a wrap, and the control records.
const SPARE_BLOCKS: u64 = BATCH_BLOCKS_MAX as u64 + CONTROL_BLOCKS;

#[derive(Debug)]
pub struct Journal {
    ring_end: u64,
    head: JournalPosition,
    used: u64,
    cost: u64,
    batches: FixedQueue<Batch>,
    writing: FixedQueue<Writing>,
    free_slots: FixedQueue<SlotId>,
    descriptors: Box<[Update; BATCH_DESCRIPTORS_MAX]>,
    volatile: bool,
    appended: UpdateNumber,
    journaled: UpdateNumber,
    durable: UpdateNumber,
    /// The flush in flight covers this number.
    flushing: Option<(SlotId, UpdateNumber)>,
    unflushed_since: Option<Nanos>,
    unflushed_blocks: u64,
}

impl Journal {
    pub fn new(journal_blocks: u64, volatile: bool) -> Journal {
        assert!(journal_blocks >= journal_blocks_min(), "journal of {journal_blocks} blocks");
        let mut free_slots = FixedQueue::new(JOURNAL_IO_SLOTS);
        (0..JOURNAL_IO_SLOTS as u32).for_each(|slot| free_slots.push(SlotId(slot)));
        Journal {
            ring_end: journal_blocks,
            head: JournalPosition { block: RING_FIRST_BLOCK, sequence: 1, previous: Digest(0) },
            used: 0,
            cost: 0,
            // A batch takes at least its header block.
            batches: FixedQueue::new((journal_blocks - RING_FIRST_BLOCK) as usize),
            writing: FixedQueue::new(BATCHES_IN_FLIGHT_MAX),
            free_slots,
            descriptors: Box::new([Update::EMPTY; BATCH_DESCRIPTORS_MAX]),
            volatile,
            appended: UpdateNumber::NONE,
            journaled: UpdateNumber::NONE,
            durable: UpdateNumber::NONE,
            flushing: None,
            unflushed_since: None,
            unflushed_blocks: 0,
        }
    }

    pub fn appended(&self) -> UpdateNumber {
        self.appended
    }
    pub fn journaled(&self) -> UpdateNumber {
        self.journaled
    }
    pub fn durable(&self) -> UpdateNumber {
        self.durable
    }
    pub fn head(&self) -> JournalPosition {
        self.head
    }
    pub fn ring_blocks(&self) -> u64 {
        self.ring_end - RING_FIRST_BLOCK
    }
    pub fn ring_end(&self) -> u64 {
        self.ring_end
    }
    pub fn used_blocks(&self) -> u64 {
        self.used
    }
    pub fn writes_in_flight(&self) -> usize {
        self.writing.len()
    }
    pub fn flush_in_flight(&self) -> bool {
        self.flushing.is_some()
    }
    pub fn unflushed_since(&self) -> Option<Nanos> {
        self.unflushed_since
    }
    /// Since when a flush could do something and none is under way.
    pub fn flushable_since(&self) -> Option<Nanos> {
        self.unflushed_since.filter(|_| self.flushing.is_none() && self.durable < self.journaled)
    }
    pub fn unflushed_blocks(&self) -> u64 {
        self.unflushed_blocks
    }
    pub fn has_slot(&self) -> bool {
        !self.free_slots.is_empty()
    }

    /// An I/O slot for a read, a superblock write or a flush.
    pub fn take_slot(&mut self) -> Option<SlotId> {
        self.free_slots.pop()
    }
    pub fn return_slot(&mut self, slot: SlotId) {
        self.free_slots.push(slot);
    }

    /// Ring blocks left for updates not yet appended; each may need a header of its own.
    pub fn free_blocks(&self) -> u64 {
        Journal::usable_blocks(self.ring_blocks()).saturating_sub(self.used)
    }

    /// Blocks that updates may take in a ring of `ring_blocks` that holds nothing else.
    pub fn usable_blocks(ring_blocks: u64) -> u64 {
        ring_blocks.saturating_sub(SPARE_BLOCKS)
    }

    /// Ring blocks that the updates after `number` take at worst in any journal, however they are batched there.
    pub fn cost_since(&self, number: UpdateNumber) -> u64 {
        // A batch that `number` cuts through counts whole.
        self.batches.get(self.partition(number.next())).map_or(0, |batch| self.cost - batch.cost_before)
    }

    /// Payload blocks of the updates after `number`, at most: a batch that `number` cuts through counts whole, and so do updates that were
    /// cut away.
    pub fn payload_since(&self, number: UpdateNumber) -> u64 {
        let first = self.batches.get(self.partition(number.next()));
        // The worst case has a header for each update.
        let headers = |batch: &Batch| (self.appended.0 + 1).saturating_sub(batch.first.0);
        first.map_or(0, |batch| (self.cost - batch.cost_before).saturating_sub(headers(batch)))
    }

    /// Ring blocks that stay in use if what is before the updates after `number` is let go of.
    pub fn used_after(&self, number: UpdateNumber) -> u64 {
        let Some(batch) = self.batches.get(self.partition(number.next())) else { return 0 };
        let from = batch.position.block;
        let wrapped = if self.head.block > from { 0 } else { self.ring_blocks() };
        self.head.block + wrapped - from + u64::from(batch.span - batch.blocks)
    }

    /// Where a batch of `blocks` goes and how much of the ring that takes; `None` if the ring has no room.
    fn place(&self, blocks: u64) -> Option<(u64, u64)> {
        let to_end = self.ring_end - self.head.block;
        let (block, span) =
            if blocks <= to_end { (self.head.block, blocks) } else { (RING_FIRST_BLOCK, to_end + blocks) };
        (self.used + span <= self.ring_blocks()).then_some((block, span))
    }

    /// Whether a cut record fits: it may take of what admission keeps free, since it is what makes room again.
    pub fn has_room_for_cut(&self) -> bool {
        self.place(1).is_some()
    }

    /// Writes a batch of the updates after `appended`, as many as `next` gives and fit, into a free slot's row and
    /// `header`. `next` returns an update and its blocks; `None` ends the batch.
    pub fn form_batch<'a>(
        &mut self,
        forming: Forming,
        table: &PageTable,
        memory: &mut impl Memory,
        mut next: impl FnMut(UpdateNumber) -> Option<(Update, &'a PageTable)>,
    ) -> Option<BatchWrite> {
        if self.writing.room() == 0 || self.free_slots.is_empty() {
            return None;
        }
        let mut count = 0;
        let mut payload = 0;
        while count < BATCH_DESCRIPTORS_MAX {
            let number = UpdateNumber(self.appended.0 + 1 + count as u64);
            let Some((update, _)) = next(number) else { break };
            assert_eq!(update.number, number, "the journal takes updates in order");
            let blocks = update.payload_blocks();
            if payload + blocks > BATCH_PAYLOAD_BLOCKS_MAX
                || self.place((1 + payload + blocks) as u64).is_none()
            {
                break;
            }
            self.descriptors[count] = update;
            payload += blocks;
            count += 1;
        }
        if count == 0 {
            return None;
        }
        let slot = self.free_slots.pop().expect("checked above");
        table.set(slot, 0, forming.header, BlockSum::ZEROS);
        let mut row = 1;
        for index in 0..count {
            let update = self.descriptors[index];
            let (_, source) = next(update.number).expect("it was there a moment ago");
            let from = crate::core::window::Window::slot_of(update.number);
            for block in 0..update.payload_blocks() {
                table.set(slot, row, source.page(from, block), source.sum(from, block));
                row += 1;
            }
        }
        let first = self.descriptors[0].number;
        let last = self.descriptors[count - 1].number;
        Some(self.seal_batch(forming, memory, slot, count, row, (first, last)))
    }

    /// Writes a batch that holds one `Cut` record: the stream continues after `keep`.
    pub fn form_cut(
        &mut self,
        forming: Forming,
        keep: UpdateNumber,
        generation: Generation,
        table: &PageTable,
        memory: &mut impl Memory,
    ) -> BatchWrite {
        assert!(self.writing.is_empty(), "a cut waits for the batches before it");
        assert!(
            keep <= self.journaled && keep >= forming.settled,
            "cut to {keep} outside {} to {}",
            forming.settled,
            self.journaled
        );
        // Batches above the cut keep their place in the chain but hold nothing any more.
        for index in (0..self.batches.len()).rev() {
            let batch = self.batches.get_mut(index).expect("index below the length");
            if batch.last <= keep {
                break;
            }
            batch.last = keep;
            batch.first = batch.first.min(keep.next());
        }
        self.appended = keep;
        self.journaled = keep;
        self.durable = self.durable.min(keep);
        self.descriptors[0] = Update { kind: UpdateKind::Cut, number: keep, generation, ..Update::EMPTY };
        let slot = self.free_slots.pop().expect("a cut is alone and slots exceed all other uses");
        table.set(slot, 0, forming.header, BlockSum::ZEROS);
        self.seal_batch(forming, memory, slot, 1, 1, (keep.next(), keep))
    }

    fn seal_batch(
        &mut self,
        forming: Forming,
        memory: &mut impl Memory,
        slot: SlotId,
        count: usize,
        blocks: usize,
        (first, last): (UpdateNumber, UpdateNumber),
    ) -> BatchWrite {
        let Forming { group, settled, header, now } = forming;
        let (block, span) = self.place(blocks as u64).expect("the caller left room for this batch");
        let position = JournalPosition { block, ..self.head };
        let fields = BatchHeader {
            group,
            sequence: position.sequence,
            previous: position.previous,
            known_durable: self.durable,
            settled,
            count: count as u16,
            payload_blocks: blocks as u16 - 1,
        };
        let digest = encode_batch(&fields, &self.descriptors[..count], memory.bytes_mut(header));
        memory.seal(header);
        self.push_batch(Batch {
            first,
            last,
            position,
            blocks: blocks as u32,
            span: span as u32,
            cost_before: 0,
        });
        self.writing.push(Writing { slot, header, last, blocks: blocks as u32, done: false });
        self.used += span;
        let after = block + blocks as u64;
        self.head = JournalPosition {
            block: if after == self.ring_end { RING_FIRST_BLOCK } else { after },
            sequence: position.sequence + 1,
            previous: digest,
        };
        self.appended = last;
        self.unflushed_since.get_or_insert(now);
        BatchWrite { slot, block, count: blocks as u32, first, last }
    }

    /// Whether `slot` is a batch write in flight.
    pub fn is_batch(&self, slot: SlotId) -> bool {
        self.writing.iter().any(|writing| writing.slot == slot && !writing.done)
    }

    /// A batch write completed: returns its header page, and the stream is journaled through the longest written prefix.
    pub fn batch_done(&mut self, slot: SlotId) -> PageId {
        let index = (0..self.writing.len())
            .find(|&i| self.writing.get(i).is_some_and(|w| w.slot == slot && !w.done))
            .expect("a completion names a batch in flight");
        let writing = self.writing.get_mut(index).expect("found above");
        writing.done = true;
        let header = writing.header;
        self.unflushed_blocks += u64::from(writing.blocks);
        self.free_slots.push(slot);
        while self.writing.front().is_some_and(|writing| writing.done) {
            let written = self.writing.pop().expect("looked at it");
            self.journaled = written.last;
        }
        if !self.volatile {
            self.durable = self.journaled;
            self.unflushed_since = None;
            self.unflushed_blocks = 0;
        }
        header
    }

    /// Begins a flush of what is journaled so far; `None` if one is in flight or no slot is free.
    pub fn flush_begin(&mut self) -> Option<SlotId> {
        if self.flushing.is_some() {
            return None;
        }
        let slot = self.free_slots.pop()?;
        self.flushing = Some((slot, self.journaled));
        // What is submitted from here on waits for the next one.
        self.unflushed_since = None;
        self.unflushed_blocks = 0;
        Some(slot)
    }

    pub fn is_flush(&self, slot: SlotId) -> bool {
        self.flushing.is_some_and(|(flushing, _)| flushing == slot)
    }

    pub fn flush_done(&mut self, now: Nanos) {
        let (slot, covers) = self.flushing.take().expect("a flush completion names the flush in flight");
        self.free_slots.push(slot);
        // A cut meanwhile may have shortened the stream below what the flush covered.
        self.durable = self.durable.max(covers.min(self.journaled));
        if self.durable < self.appended {
            self.unflushed_since.get_or_insert(now);
        }
    }

    fn push_batch(&mut self, batch: Batch) {
        self.batches.push(Batch { cost_before: self.cost, ..batch });
        let updates = (batch.last.0 + 1).saturating_sub(batch.first.0).max(1);
        self.cost += u64::from(batch.blocks) - 1 + updates;
    }

    /// The index of the first batch that ends at or after `number`.
    fn partition(&self, number: UpdateNumber) -> usize {
        let (mut low, mut high) = (0, self.batches.len());
        while low < high {
            let middle = (low + high) / 2;
            let below = self.batches.get(middle).expect("between the bounds").last < number;
            (low, high) = if below { (middle + 1, high) } else { (low, middle) };
        }
        low
    }

    /// Oldest first.
    pub fn batches(&self) -> impl Iterator<Item = &Batch> {
        self.batches.iter()
    }

    /// The batch that holds `number`, or the first after it.
    pub fn find(&self, number: UpdateNumber) -> Option<Batch> {
        self.batches.get(self.partition(number)).copied()
    }

    /// The first batch of this sequence or a later one that is written.
    pub fn written_from(&self, sequence: u64) -> Option<Batch> {
        let written = self.batches.len() - self.writing.len();
        let (mut low, mut high) = (0, written);
        while low < high {
            let middle = (low + high) / 2;
            let batch = self.batches.get(middle).expect("between the bounds");
            (low, high) = if batch.position.sequence < sequence { (middle + 1, high) } else { (low, middle) };
        }
        self.batches.get(low).filter(|_| low < written).copied()
    }

    /// Whether a start would read the batch of this sequence, which was written.
    pub fn holds(&self, sequence: u64) -> bool {
        self.batches.front().is_some_and(|batch| batch.position.sequence <= sequence)
    }

    /// The oldest update from a position on, if any.
    pub fn oldest_from(&self, position: JournalPosition) -> Option<UpdateNumber> {
        let kept = self.batches.iter().filter(|batch| batch.position.sequence >= position.sequence);
        kept.filter(|batch| batch.first <= batch.last).map(|batch| batch.first).next()
    }

    /// The oldest update still in the ring, if any.
    pub fn oldest(&self) -> Option<UpdateNumber> {
        self.batches.iter().find(|batch| batch.first <= batch.last).map(|batch| batch.first)
    }

    /// Where replay must begin to find everything after `floor`.
    pub fn position_after(&self, floor: UpdateNumber) -> JournalPosition {
        self.batches.iter().find(|batch| batch.last > floor).map_or(self.head, |batch| batch.position)
    }

    /// A superblock that begins replay at `position` is durable: the batches before it are free.
    pub fn release_before(&mut self, position: JournalPosition) {
        while self.batches.front().is_some_and(|batch| batch.position.sequence < position.sequence) {
            let batch = self.batches.pop().expect("looked at it");
            self.used -= u64::from(batch.span);
        }
    }

    // ---------------------------------------------------------------------------------------------- recovery

    /// The scan starts at the superblock's position; updates through its checkpoint need no journal.
    pub fn recover_begin(&mut self, position: JournalPosition, checkpoint: UpdateNumber) {
        assert!(self.batches.is_empty() && self.writing.is_empty());
        self.head = position;
        self.appended = checkpoint;
        self.journaled = checkpoint;
        self.durable = checkpoint;
    }

    /// The volumes were brought to `number` by other means: the ring's batches are of no use, and the next one goes behind them.
    pub fn begin_at(&mut self, number: UpdateNumber) {
        assert!(
            self.writing.is_empty() && self.flushing.is_none(),
            "the journal is at rest during an install"
        );
        self.batches.clear();
        self.used = 0;
        (self.appended, self.journaled, self.durable) = (number, number, number);
    }

    /// Where the batch after those found so far may be: at the head, or at the ring's start if it did not fit before the end.
    pub fn recover_candidates(&self) -> [Option<u64>; 2] {
        let wrapped = (self.head.block != RING_FIRST_BLOCK).then_some(RING_FIRST_BLOCK);
        [Some(self.head.block), wrapped]
    }

    /// Whether a header found at a candidate continues the chain.
    pub fn recover_continues(&self, header: &BatchHeader) -> bool {
        header.sequence >= self.head.sequence && header.previous == self.head.previous
    }

    /// The scan found the next batch at `block` to be whole. `first..=last` are its updates, empty for a cut record to `last`.
    pub fn recover_batch(
        &mut self,
        block: u64,
        header: &BatchHeader,
        digest: Digest,
        first: UpdateNumber,
        last: UpdateNumber,
    ) {
        let blocks = 1 + u32::from(header.payload_blocks);
        let position = JournalPosition { block, sequence: header.sequence, previous: header.previous };
        let waste = if block == self.head.block { 0 } else { self.ring_end - self.head.block };
        let span = waste + u64::from(blocks);
        if last < first {
            for index in (0..self.batches.len()).rev() {
                let batch = self.batches.get_mut(index).expect("index below the length");
                if batch.last <= last {
                    break;
                }
                batch.last = last;
                batch.first = batch.first.min(last.next());
            }
        }
        self.push_batch(Batch { first, last, position, blocks, span: span as u32, cost_before: 0 });
        self.used += span;
        assert!(self.used <= self.ring_blocks(), "recovered batches overlap");
        let after = block + u64::from(blocks);
        self.head = JournalPosition {
            block: if after == self.ring_end { RING_FIRST_BLOCK } else { after },
            sequence: header.sequence + 1,
            previous: digest,
        };
        // Batches kept for the peer may end before the checkpoint.
        self.appended = last.max(self.durable);
    }

    /// The scan is over and what it found was flushed: all of it is journaled and durable. Batches up to the sequence
    /// `left_behind` lie behind its end.
    pub fn recover_end(&mut self, left_behind: u64) {
        self.journaled = self.appended;
        self.durable = self.appended;
        // From above those too: a header that is byte for byte one of theirs would make what followed that one follow it.
        self.head.sequence = self.head.sequence.max(left_behind) + RESTART_LEAP;
    }
}

/// The smallest journal: superblocks, and a ring in which the largest batch, its wrap waste and the control records leave
/// room for updates.
pub const fn journal_blocks_min() -> u64 {
    RING_FIRST_BLOCK + 3 * BATCH_BLOCKS_MAX as u64 + CONTROL_BLOCKS
}

/// How far beyond a missing batch one that knows it was durable can be.
pub const fn doubtful_blocks(volatile: bool) -> u64 {
    // A disk that loses nothing makes a batch durable by completing it, and only those in flight beside it were formed before.
    let in_flight = (BATCHES_IN_FLIGHT_MAX * BATCH_BLOCKS_MAX) as u64;
    // Where durable means flushed, the window fills at worst, one batch an update, before the flush ends.
    let window = ((WINDOW_UPDATES_MAX + 1) * (1 + UPDATE_BLOCKS_MAX)) as u64;
    if volatile { window + in_flight } else { in_flight }
}
