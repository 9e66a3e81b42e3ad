//! The journal read back: for a peer that was away, for a primary that asks for what it lacks, and for replay.

use super::{Group, RESERVED_PAGES, Turn};
use crate::base::*;
use crate::core::journal::Batch;
use crate::core::messages::*;
use crate::format::journal::decode_batch;
use crate::format::update::{Update, UpdateKind};

#[derive(Debug)]
pub(super) struct CatchUp {
    state: State,
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
}

impl Group {
    /// The update `number` of the journal, which must be journaled. Ask in ascending order.
    pub(super) fn read_back(&mut self, turn: &mut Turn<impl Memory>, number: UpdateNumber) -> Found {
        loop {
            match self.catch_up.state {
                State::Reading { .. } => return Found::Later,
                State::Loaded { slot, batch, count, next, page } => {
                    let update = self.catch_up.descriptors[next.min(count - 1)];
                    if next < count
                        && update.kind != UpdateKind::Cut
                        && update.number == number
                        && number <= batch.last
                    {
                        return Found::Update { update, slot, page };
                    }
                    if next >= count || update.number > number || number > batch.last {
                        self.read_back_end(turn);
                        continue;
                    }
                    self.read_back_next(update.payload_blocks());
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
                    let Some(slot) = self.journal.take_slot() else { return Found::Later };
                    for index in 0..blocks {
                        let page = self.pages.take().expect("counted above");
                        turn.tables.journal_io.set(slot, index, page, BlockSum::ZEROS);
                    }
                    self.catch_up.state = State::Reading { slot, batch, dropped: false };
                    turn.out.to_journal.push(IoRequest {
                        slot,
                        target: IoTarget::Journal,
                        op: IoOp::Read,
                        block: batch.position.block,
                        count: batch.blocks,
                    });
                    return Found::Later;
                }
            }
        }
    }

    fn read_back_next(&mut self, payload_blocks: usize) {
        if let State::Loaded { next, page, .. } = &mut self.catch_up.state {
            *next += 1;
            *page += payload_blocks;
        }
    }

    /// The update that `read_back` found is taken: its pages belong to the caller, who has moved them out of the row.
    pub(super) fn read_back_taken(&mut self, turn: &mut Turn<impl Memory>, update: &Update) {
        let State::Loaded { slot, page, .. } = self.catch_up.state else {
            unreachable!("an update was found in a loaded batch")
        };
        for index in 0..update.payload_blocks() {
            turn.tables.journal_io.set(slot, page + index, PageId::NONE, BlockSum::ZEROS);
        }
        self.read_back_next(update.payload_blocks());
    }

    /// Lets go of the loaded batch.
    pub(super) fn read_back_end(&mut self, turn: &mut Turn<impl Memory>) {
        match &mut self.catch_up.state {
            State::Empty => {}
            State::Reading { dropped, .. } => *dropped = true,
            State::Loaded { slot, batch, .. } => {
                let (slot, blocks) = (*slot, batch.blocks);
                self.release_row(turn, slot, blocks);
                self.catch_up.state = State::Empty;
            }
        }
    }

    fn release_row(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId, blocks: u32) {
        for index in 0..blocks as usize {
            let page = turn.tables.journal_io.page(slot, index);
            if page != PageId::NONE {
                self.pages.release(page, turn.memory);
            }
        }
        self.journal.return_slot(slot);
    }

    pub(super) fn catch_up_read_done(&mut self, turn: &mut Turn<impl Memory>) {
        let State::Reading { slot, batch, dropped } = self.catch_up.state else {
            unreachable!("is_read matched")
        };
        if dropped {
            self.release_row(turn, slot, batch.blocks);
            self.catch_up.state = State::Empty;
            return;
        }
        let header = turn.tables.journal_io.page(slot, 0);
        let decoded = decode_batch(turn.memory.bytes(header), &mut self.catch_up.descriptors);
        let good = decoded.is_ok_and(|header| {
            header.sequence == batch.position.sequence
                && header.previous == batch.position.previous
                && u32::from(header.payload_blocks) + 1 == batch.blocks
                && self.payload_is_whole(turn, slot, header.count as usize)
        });
        if !good {
            // Below known-durable this is rot: served to nobody, and not ours to cut.
            return self.fail_on_disk(turn, IoTarget::Journal, IoFault::Corrupt, batch.position.block);
        }
        let count = decoded.expect("checked above").count as usize;
        self.catch_up.state = State::Loaded { slot, batch, count, next: 0, page: 1 };
    }

    /// Whether each update's payload has the sum its descriptor names; the row gets the block sums.
    fn payload_is_whole(&self, turn: &Turn<impl Memory>, slot: SlotId, count: usize) -> bool {
        let table = &turn.tables.journal_io;
        let mut row = 1;
        self.catch_up.descriptors[..count].iter().filter(|update| update.payload_blocks() > 0).all(|update| {
            let first = row;
            row += update.payload_blocks();
            for index in first..row {
                let page = table.page(slot, index);
                table.set(slot, index, page, turn.memory.sum(page));
            }
            sum_of_sums((first..row).map(|index| table.sum(slot, index))) == update.sum
        })
    }

    /// The link has read the row's pages.
    pub(super) fn catch_up_consumed(&mut self, turn: &mut Turn<impl Memory>, row: u32) {
        for index in 0..self.catch_up.row_blocks[row as usize] as usize {
            let page = turn.tables.catch_up.page(SlotId(row), index);
            self.pages.release(page, turn.memory);
        }
        self.catch_up.free_rows.push(row);
    }
}
