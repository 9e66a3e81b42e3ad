//! A staging log found again: a secondary that died while it was copied to reads what its log holds of the same resync, and the copy
//! goes on behind that.
//!
//! Batches are chained, and the first one names its resync; so what is whole from the first one on is what was staged. What the primary
//! was told of was flushed, so it is among that. Behind the end of the chain may lie batches of the life before: sequences go on so
//! far above that none of them ever continues it.

use super::{Group, RESERVED_PAGES, Turn};
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::Event;
use crate::format::journal::{decode_batch, digest_of, payload_is_whole};
use crate::format::superblock::JournalPosition;
use crate::format::tables::header_of;
use crate::format::update::UpdateKind;

/// Where the scan of a log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// Nobody knows what is in the file.
    Owed,
    /// What comes next is to be read, as soon as there are pages.
    Due,
    Reading {
        slot: SlotId,
        count: u32,
    },
    /// What the log holds is known.
    Done,
}

impl Group {
    /// Reads on in a log that is being looked at.
    pub(super) fn scan_log(&mut self, turn: &mut Turn<impl Memory>) {
        if self.staging.scan != Scan::Due {
            return;
        }
        let left = self.config.resync.staging_blocks.saturating_sub(self.staging.head.block);
        let count = left.min(BATCH_BLOCKS_MAX as u64) as u32;
        if count == 0 {
            return self.log_scanned(turn);
        }
        if self.pages.free() < count as usize + RESERVED_PAGES / 4 {
            return;
        }
        let Some(slot) = self.journal.take_slot() else { return };
        for index in 0..count as usize {
            let page = self.pages.take().expect("counted above");
            turn.tables.journal_io.set(slot, index, page, BlockSum::ZEROS);
        }
        self.staging.scan = Scan::Reading { slot, count };
        let (target, block) = (IoTarget::Staging, self.staging.head.block);
        turn.out.to_journal.push(IoRequest { slot, target, op: IoOp::Read, block, count });
    }

    /// A part of the log was read, or could not be.
    pub(super) fn log_part_read(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        count: u32,
        read: bool,
    ) {
        let mut offset = 0;
        while read && offset < count {
            match self.accept_staged(turn, slot, offset, count) {
                Some(blocks) => offset += blocks,
                None => break,
            }
        }
        for index in 0..count as usize {
            self.pages.release(turn.tables.journal_io.page(slot, index), turn.memory);
        }
        self.journal.return_slot(slot);
        self.staging.scan = Scan::Due;
        if offset == 0 {
            self.log_scanned(turn);
        }
    }

    /// Takes the batch at `offset` of the blocks read, if it continues the log and is whole; returns its blocks.
    fn accept_staged(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        offset: u32,
        count: u32,
    ) -> Option<u32> {
        let leap = self.config.resync.staging_blocks;
        let page = |index: u32| turn.tables.journal_io.page(slot, index as usize);
        let header = decode_batch(turn.memory.bytes(page(offset)), &mut self.staging.descriptors).ok()?;
        let (head, blocks) = (self.staging.head, 1 + u32::from(header.payload_blocks));
        let follows = header.group == self.config.group
            && header.previous == head.previous
            && (head.sequence..=head.sequence + leap).contains(&header.sequence);
        if !follows || offset + blocks > count {
            return None;
        }
        let updates = &self.staging.descriptors[..usize::from(header.count)];
        if !payload_is_whole(updates, |index| turn.memory.sum(page(offset + 1 + index as u32))) {
            return None;
        }
        let mut at = offset + 1;
        for index in 0..usize::from(header.count) {
            let update = self.staging.descriptors[index];
            if update.kind == UpdateKind::Tables {
                let header = header_of(turn.memory.bytes(page(at))).ok()?;
                self.staging.note_tables(&header);
            }
            at += update.payload_blocks() as u32;
        }
        let staging = &mut self.staging;
        staging.head = JournalPosition {
            block: head.block + u64::from(blocks),
            sequence: header.sequence + 1,
            previous: digest_of(turn.memory.bytes(page(offset))),
        };
        staging.appended += u64::from(header.count);
        staging.blocks += u64::from(blocks);
        Some(blocks)
    }

    /// The chain has ended: what it holds is written, and flushed before anybody hears of it.
    fn log_scanned(&mut self, turn: &mut Turn<impl Memory>) {
        let leap = self.config.resync.staging_blocks;
        let staging = &mut self.staging;
        staging.scan = Scan::Done;
        staging.head.sequence += leap;
        staging.written = staging.appended;
        if staging.appended > 0 {
            let blocks = staging.blocks;
            turn.event(Event::LogFound { blocks });
        }
    }
}
