//! From messages to the stream: frames are gathered, payload copied in, and written in one go a turn.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::base::{
    BLOCK_BYTES, Memory, OLD_BLOCK_SLOTS, PageId, PageTable, SlotId, UpdateNumber, sum_of_sums,
};
use crate::core::messages::{Control, PageFrame};
use crate::format::update::Update;
use crate::format::wire::{
    self, CONTROL_FRAME_BYTES_MAX, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, OldBlocks,
    UPDATE_FRAME_BLOCKS_MAX, UPDATE_FRAME_BYTES,
};

/// Frames are gathered in allocations of this size, from which turns cut their pieces; quinn keeps one until the last of
/// its pieces is acknowledged. A single larger frame gets its own.
const GATHER_BYTES: usize = 64 << 10;

/// Bytes gathered in one turn, reached by at most one frame more: 100 µs of encryption.
const GATHER_BYTES_A_TURN_MAX: usize = 128 << 10;

/// Bytes of the longest frame.
const FRAME_BYTES_MAX: usize = UPDATE_FRAME_BYTES + UPDATE_FRAME_BLOCKS_MAX * BLOCK_BYTES;

/// Pieces of a turn: each but the last ends where the next frame did not fit.
const PIECES_MAX: usize = GATHER_BYTES_A_TURN_MAX / (GATHER_BYTES / 2) + 2;

const _: () = assert!(FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX <= FRAME_BYTES_MAX);

pub(super) struct Outgoing {
    gather: BytesMut,
    /// Gathered this turn.
    bytes: usize,
    /// Gathered and not yet taken by quinn.
    pieces: VecDeque<Bytes>,
}

impl Outgoing {
    pub(super) fn new() -> Outgoing {
        Outgoing {
            gather: BytesMut::with_capacity(GATHER_BYTES),
            bytes: 0,
            pieces: VecDeque::with_capacity(PIECES_MAX),
        }
    }

    /// Forgets what a connection that is gone did not take.
    pub(super) fn reset(&mut self) {
        self.gather.clear();
        self.pieces.clear();
        self.bytes = 0;
    }

    /// Whether the connection has not taken all of what earlier turns wrote.
    pub(super) fn blocked(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Whether this turn may gather more.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < GATHER_BYTES_A_TURN_MAX
    }

    pub(super) fn update(
        &mut self,
        update: &Update,
        settled: UpdateNumber,
        memory: &impl Memory,
        table: &PageTable,
        slot: SlotId,
        old_blocks: Option<&PageTable>,
    ) {
        let blocks = update.payload_blocks();
        let old_row = SlotId((update.number.0 % OLD_BLOCK_SLOTS as u64) as u32);
        let old = old_blocks.map(|table| old_blocks_of(update, table, old_row));
        let old_count = old.map_or(0, |old| old.sent(update.count).count());
        self.reserve(UPDATE_FRAME_BYTES + (blocks + old_count) * BLOCK_BYTES);
        let mut frame = [0; UPDATE_FRAME_BYTES];
        let length = wire::encode_update(update, settled, old, &mut frame);
        self.gather.extend_from_slice(&frame[..length]);
        for index in 0..blocks {
            self.gather.extend_from_slice(memory.bytes(table.page(slot, index)));
        }
        if let (Some(table), Some(old)) = (old_blocks, old) {
            for index in old.sent(update.count) {
                self.gather.extend_from_slice(memory.bytes(table.page(old_row, index)));
            }
        }
    }

    pub(super) fn control(&mut self, control: &Control) {
        self.reserve(CONTROL_FRAME_BYTES_MAX);
        let mut frame = [0; CONTROL_FRAME_BYTES_MAX];
        let length = wire::encode_control(control, &mut frame);
        self.gather.extend_from_slice(&frame[..length]);
    }

    pub(super) fn page(&mut self, frame: PageFrame, memory: &impl Memory, page: PageId, length: u16) {
        self.reserve(FRAME_HEADER_BYTES + usize::from(length));
        let mut bytes = [0; FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX];
        let length = wire::encode_page_frame(frame, &memory.bytes(page)[..usize::from(length)], &mut bytes);
        self.gather.extend_from_slice(&bytes[..length]);
    }

    /// Offers everything gathered to `write`, which empties what it takes from the front.
    pub(super) fn write(&mut self, write: impl FnOnce(&mut [Bytes])) {
        self.cut();
        self.bytes = 0;
        if self.pieces.is_empty() {
            return;
        }
        write(self.pieces.make_contiguous());
        while self.pieces.front().is_some_and(Bytes::is_empty) {
            self.pieces.pop_front();
        }
    }

    fn reserve(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.gather.capacity() - self.gather.len() < bytes {
            self.cut();
            self.gather.reserve(bytes.max(GATHER_BYTES));
        }
    }

    fn cut(&mut self) {
        if !self.gather.is_empty() {
            self.pieces.push_back(self.gather.split().freeze());
        }
    }
}

/// What the frame says of the old blocks that a row names.
fn old_blocks_of(update: &Update, table: &PageTable, row: SlotId) -> OldBlocks {
    let is_zero = |index: &u32| table.page(row, *index as usize) == PageId::ZERO;
    let zeros = (0..update.count).filter(is_zero).fold(0, |zeros, index| zeros | 1 << index);
    let old = OldBlocks { sum: 0, zeros };
    OldBlocks { sum: sum_of_sums(old.sent(update.count).map(|index| table.sum(row, index))), ..old }
}
