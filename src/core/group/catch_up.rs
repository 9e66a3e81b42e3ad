//! The journal read back: for a peer that was away, for a primary that asks for what it lacks, for a third, and for replay.

use super::feeding::LINK as FED_LINK;
use super::targets::Target;
use super::{Alone, Group, Phase, RESERVED_PAGES, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::journal::Batch;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::core::pages::Pages;
use crate::format::journal::decode_batch;
use crate::format::update::{Update, UpdateKind};

/// So often a batch is read before it counts as one that the disk does not give: what a cable or a controller lost once is still there.
const READS_MAX: u8 = 2;

#[derive(Debug)]
pub(super) struct CatchUp {
    state: State,
    /// The end of a batch that the disk did not give, unless it has since.
    unread: UpdateNumber,
    descriptors: Box<[Update; BATCH_DESCRIPTORS_MAX]>,
    /// Rows of the catch-up table the link does not hold, and the payload blocks in those it does.
    free_rows: FixedQueue<u32>,
    row_blocks: Box<[u8; CATCH_UP_SLOTS]>,
}

/// One batch at a time, in a row of the journal's I/O table.
#[derive(Clone, Copy, Debug)]
enum State {
    Empty,
    Reading {
        slot: SlotId,
        batch: Batch,
        /// How often it was read, with this time.
        reads: u8,
        /// Nobody wants it any more.
        dropped: bool,
    },
    Loaded {
        slot: SlotId,
        batch: Batch,
        count: usize,
        /// The next descriptor, and the row's page its payload begins at.
        next: usize,
        page: usize,
    },
}

/// Who reads the journal back: each has a reader of its own, and is in nobody's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadFor {
    /// The peer, or replay before there is one.
    Peer,
    Third,
}

/// What asking for an update of the journal brings.
#[derive(Debug)]
pub(super) enum Found {
    /// The update; its payload begins at `page` of the row `slot`.
    Update { update: Update, slot: SlotId, page: usize },
    /// It is being read, or pages to read into are short.
    Later,
    /// The ring no longer has it.
    Gone,
}

impl CatchUp {
    pub fn new() -> CatchUp {
        let mut free_rows = FixedQueue::new(CATCH_UP_SLOTS);
        (0..CATCH_UP_SLOTS as u32).for_each(|row| free_rows.push(row));
        CatchUp {
            state: State::Empty,
            unread: UpdateNumber::NONE,
            descriptors: Box::new([Update::EMPTY; BATCH_DESCRIPTORS_MAX]),
            free_rows,
            row_blocks: Box::new([0; CATCH_UP_SLOTS]),
        }
    }

    pub fn is_read(&self, slot: SlotId) -> bool {
        matches!(self.state, State::Reading { slot: s, .. } if s == slot)
    }

    /// Whether a completion will bring the next batch.
    pub fn is_reading(&self) -> bool {
        matches!(self.state, State::Reading { .. })
    }

    /// Whether whoever has everything up to there cannot go on from this journal, for what the disk does not give.
    pub fn is_unread_after(&self, number: UpdateNumber) -> bool {
        self.unread > number
    }

    /// The tail of the journal was cut: nobody lacks what it had.
    pub fn unread_cut_to(&mut self, keep: UpdateNumber) {
        self.unread = self.unread.min(keep);
    }

    /// Whether the link holds none of our rows and no read is under way.
    pub fn idle(&self) -> bool {
        self.free_rows.room() == 0 && matches!(self.state, State::Empty)
    }

    pub fn take_row(&mut self, blocks: usize) -> Option<u32> {
        let row = self.free_rows.pop()?;
        self.row_blocks[row as usize] = blocks as u8;
        Some(row)
    }

    pub fn has_row(&self) -> bool {
        !self.free_rows.is_empty()
    }

    /// The link has read the row's pages: they are released. Returns how many.
    pub fn give_row_back(
        &mut self,
        table: &PageTable,
        row: u32,
        pages: &mut Pages,
        memory: &mut impl Memory,
    ) -> usize {
        let blocks = self.row_blocks[row as usize] as usize;
        for index in 0..blocks {
            pages.release(table.page(SlotId(row), index), memory);
        }
        self.free_rows.push(row);
        blocks
    }
}

impl Group {
    fn reader(&self, whose: ReadFor) -> &CatchUp {
        match whose {
            ReadFor::Peer => &self.catch_up,
            ReadFor::Third => &self.feed.as_ref().expect("a third is configured").reader,
        }
    }

    fn reader_mut(&mut self, whose: ReadFor) -> &mut CatchUp {
        match whose {
            ReadFor::Peer => &mut self.catch_up,
            ReadFor::Third => &mut self.feed.as_mut().expect("a third is configured").reader,
        }
    }

    /// The tail of the journal was cut: no reader counts what it had as unread.
    pub(super) fn readers_cut_to(&mut self, keep: UpdateNumber) {
        self.catch_up.unread_cut_to(keep);
        if let Some(feed) = &mut self.feed {
            feed.reader.unread_cut_to(keep);
        }
    }

    /// Whose read this is, if it is one of these.
    pub(super) fn read_back_by(&self, slot: SlotId) -> Option<ReadFor> {
        let third = self.feed.as_ref().is_some_and(|feed| feed.reader.is_read(slot));
        match self.catch_up.is_read(slot) {
            true => Some(ReadFor::Peer),
            false => third.then_some(ReadFor::Third),
        }
    }

    /// The update `number` of the journal, which must be journaled. Ask in ascending order.
    pub(super) fn read_back(
        &mut self,
        turn: &mut Turn<impl Memory>,
        whose: ReadFor,
        number: UpdateNumber,
    ) -> Found {
        loop {
            match self.reader(whose).state {
                State::Reading { .. } => return Found::Later,
                State::Loaded { slot, batch, count, next, page } => {
                    let update = self.reader(whose).descriptors[next.min(count - 1)];
                    if next < count
                        && update.kind != UpdateKind::Cut
                        && update.number == number
                        && number <= batch.last
                    {
                        return Found::Update { update, slot, page };
                    }
                    if next >= count || update.number > number || number > batch.last {
                        self.read_back_end(turn, whose);
                        continue;
                    }
                    self.read_back_next(whose, update.payload_blocks());
                }
                State::Empty => {
                    let Some(batch) = self.journal.find(number).filter(|batch| batch.first <= number) else {
                        return Found::Gone;
                    };
                    let blocks = batch.blocks as usize;
                    if self.pages.free() < blocks + RESERVED_PAGES / 4 {
                        self.cache.evict(
                            blocks + RESERVED_PAGES / 4,
                            0,
                            4 * BATCH_BLOCKS_MAX,
                            &mut self.pages,
                            turn.memory,
                        );
                    }
                    if self.pages.free() < blocks + RESERVED_PAGES / 4 {
                        return Found::Later;
                    }
                    if let Some(slot) = self.read_batch(turn, &batch) {
                        self.reader_mut(whose).state =
                            State::Reading { slot, batch, reads: 1, dropped: false };
                    }
                    return Found::Later;
                }
            }
        }
    }

    /// Reads a batch of the journal into pages of a row, if the journal has one left; the caller has seen to it that there are enough pages.
    pub(super) fn read_batch(&mut self, turn: &mut Turn<impl Memory>, batch: &Batch) -> Option<SlotId> {
        let slot = self.journal.take_slot()?;
        for index in 0..batch.blocks as usize {
            let page = self.pages.take().expect("counted by the caller");
            turn.tables.journal_io.set(slot, index, page, BlockSum::ZEROS);
        }
        read_row(turn, slot, batch);
        Some(slot)
    }

    fn read_back_next(&mut self, whose: ReadFor, payload_blocks: usize) {
        if let State::Loaded { next, page, .. } = &mut self.reader_mut(whose).state {
            *next += 1;
            *page += payload_blocks;
        }
    }

    /// The update that `read_back` found at `page` of the row `slot` goes to the link: its pages move to the row `row` of the table that the
    /// link reads.
    pub(super) fn give_read_back(
        &mut self,
        turn: &mut Turn<impl Memory>,
        whose: ReadFor,
        (update, slot, page): (&Update, SlotId, usize),
        row: u32,
    ) {
        let remote = (whose == ReadFor::Third).then_some(FED_LINK);
        let (_, table) = turn.tables.of_link(remote);
        for index in 0..update.payload_blocks() {
            let from = turn.tables.journal_io.page(slot, page + index);
            let sum = turn.tables.journal_io.sum(slot, page + index);
            turn.memory.seal(from);
            table.set(SlotId(row), index, from, sum);
        }
        self.read_back_taken(turn, whose, update);
    }

    /// The update that `read_back` found is taken: its pages belong to the caller, who has moved them out of the row.
    pub(super) fn read_back_taken(&mut self, turn: &mut Turn<impl Memory>, whose: ReadFor, update: &Update) {
        let State::Loaded { slot, page, .. } = self.reader(whose).state else {
            unreachable!("an update was found in a loaded batch")
        };
        for index in 0..update.payload_blocks() {
            turn.tables.journal_io.set(slot, page + index, PageId::NONE, BlockSum::ZEROS);
        }
        self.read_back_next(whose, update.payload_blocks());
    }

    /// Lets go of the loaded batch.
    pub(super) fn read_back_end(&mut self, turn: &mut Turn<impl Memory>, whose: ReadFor) {
        match &mut self.reader_mut(whose).state {
            State::Empty => {}
            State::Reading { dropped, .. } => *dropped = true,
            State::Loaded { slot, batch, .. } => {
                let (slot, blocks) = (*slot, batch.blocks);
                self.release_row(turn, slot, blocks);
                self.reader_mut(whose).state = State::Empty;
            }
        }
    }

    pub(super) fn release_row(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId, blocks: u32) {
        for index in 0..blocks as usize {
            let page = turn.tables.journal_io.page(slot, index);
            if page != PageId::NONE {
                self.pages.release(page, turn.memory);
            }
        }
        self.journal.return_slot(slot);
    }

    pub(super) fn read_back_done(
        &mut self,
        turn: &mut Turn<impl Memory>,
        whose: ReadFor,
        result: Result<(), IoFault>,
    ) {
        let State::Reading { slot, batch, reads, dropped } = self.reader(whose).state else {
            unreachable!("is_read matched")
        };
        let (target, block) = (IoTarget::Journal, batch.position.block);
        let found = result.and_then(|()| {
            let descriptors = &mut self.reader_mut(whose).descriptors;
            updates_of_batch(turn, slot, &batch, descriptors).ok_or(IoFault::Corrupt)
        });
        // What is read where a batch was, once the journal has let go of that, says nothing about the disk.
        let is_overtaken = found.is_err() && !self.journal.holds(batch.position.sequence);
        if dropped || is_overtaken {
            self.release_row(turn, slot, batch.blocks);
            self.reader_mut(whose).state = State::Empty;
            return;
        }
        match found {
            Ok(count) => {
                let reader = self.reader_mut(whose);
                reader.state = State::Loaded { slot, batch, count, next: 0, page: 1 };
                if reader.unread == batch.last {
                    reader.unread = UpdateNumber::NONE;
                }
            }
            Err(fault) if reads < READS_MAX => {
                turn.event(Event::ReadAgain { target, fault, block });
                self.reader_mut(whose).state = State::Reading { slot, batch, reads: reads + 1, dropped };
                read_row(turn, slot, &batch);
            }
            // Below known-durable this is rot: served to nobody, and not ours to cut.
            Err(fault) if whose == ReadFor::Peer && !self.can_copy_instead() => {
                self.fail_on_disk(turn, target, fault, block);
            }
            Err(fault) => {
                self.release_row(turn, slot, batch.blocks);
                let reader = self.reader_mut(whose);
                (reader.state, reader.unread) = (State::Empty, reader.unread.max(batch.last));
                turn.event(Event::ReadFailed { target, fault, block });
                // This site has these updates in its volumes, or in memory, and goes on.
                match whose {
                    ReadFor::Third => self.lapse(turn, batch.last.next()),
                    ReadFor::Peer => self.copy_instead(turn),
                }
            }
        }
    }

    /// Whether the peer may be copied what the journal has and the disk does not give.
    fn can_copy_instead(&self) -> bool {
        let leads = self.role == Role::Primary && matches!(self.phase, Phase::Running);
        leads && self.alone == Alone::Yes && self.may_resync() && self.resync_covers(self.peer.durable)
    }

    /// When the peer is back it is copied what it lacks; and copied again, if it was to get that behind a copy.
    fn copy_instead(&mut self, turn: &mut Turn<impl Memory>) {
        if self.copies_to(Target::Peer) {
            self.move_floor(Target::Peer);
        }
        self.lose_peer(
            turn,
            LossReason::Protocol(
                "it cannot be sent what this site's disk does not give, and is to be copied that",
            ),
        );
    }

    /// The link has read the row's pages.
    pub(super) fn catch_up_consumed(&mut self, turn: &mut Turn<impl Memory>, row: u32) {
        self.catch_up.give_row_back(&turn.tables.catch_up, row, &mut self.pages, turn.memory);
    }
}

/// Asks for a batch of the journal, into the pages of the row.
fn read_row(turn: &mut Turn<impl Memory>, slot: SlotId, batch: &Batch) {
    let (target, block, count) = (IoTarget::Journal, batch.position.block, batch.blocks);
    turn.out.to_journal.push(IoRequest { slot, target, op: IoOp::Read, block, count });
}

/// How many updates a batch that was read into the row has, if it is what was written there.
pub(super) fn updates_of_batch(
    turn: &Turn<impl Memory>,
    slot: SlotId,
    batch: &Batch,
    descriptors: &mut [Update; BATCH_DESCRIPTORS_MAX],
) -> Option<usize> {
    let header = turn.memory.bytes(turn.tables.journal_io.page(slot, 0));
    let header = decode_batch(header, descriptors).ok()?;
    let count = header.count as usize;
    let whole = header.sequence == batch.position.sequence
        && header.previous == batch.position.previous
        && u32::from(header.payload_blocks) + 1 == batch.blocks
        && payload_is_whole(turn, slot, &descriptors[..count]);
    whole.then_some(count)
}

/// Whether each update's payload has the sum its descriptor names; the row of the journal's table gets the block sums.
fn payload_is_whole(turn: &Turn<impl Memory>, slot: SlotId, updates: &[Update]) -> bool {
    let table = &turn.tables.journal_io;
    let mut row = 1;
    updates.iter().filter(|update| update.payload_blocks() > 0).all(|update| {
        let first = row;
        row += update.payload_blocks();
        for index in first..row {
            let page = table.page(slot, index);
            table.set(slot, index, page, turn.memory.sum(page));
        }
        sum_of_sums((first..row).map(|index| table.sum(slot, index))) == update.sum
    })
}
