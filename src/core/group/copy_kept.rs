//! What snapshots keep, copied to a peer that lacks more than the journal holds: slots of the differential volume, and the tables whole.
//!
//! Tables change with commits only, and a sweep commits what updates up to its target changed. So when a sweep is over, the tables
//! are exactly those of its checkpoint; lent at that moment, they stay that whatever is committed later. The slots that they
//! name hold what they say until a reclaim frees one, and none begins before all of them are read.
//!
//! A slot is copied once its capture is committed: before, what is in it is somebody else's. Until then it is recent, as a block is
//! that was changed after `floor`; unlike a block it is made good by no update, and so it is copied as of the checkpoint.

use super::differential::{COMMIT_LEAVES_PAGES, MetadataIo};
use super::peering::LINK_SPARE;
use super::resync::{Pages, Step};
use super::storage::VolumeIo;
use super::targets::{TARGETS, Target, room_to, rows_to};
use super::{Group, Turn};
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::format::tables::{TablesKind, entry_at, header_of, record_at, table_pages_max};
use crate::format::update::{Update, UpdateKind};

/// Slots on their way from the differential volume, and how often the floor had moved when they were asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotsRead {
    pub to: Target,
    pub first: Slot,
    pub count: u32,
    pub moves: u64,
}

impl Group {
    /// The slots' place among the volumes of a changed-block set: behind the last.
    pub(super) fn slots_id(&self) -> VolumeId {
        VolumeId(self.config.volumes.len() as u16)
    }

    /// Pages that the tables take now, at most.
    pub(super) fn table_pages(&self) -> u64 {
        match self.config.differential_blocks {
            0 => 0,
            _ => table_pages_max(self.slots.total() - self.slots.free()),
        }
    }

    /// What is captured and not committed yet is not in its slot, or not surely.
    pub(super) fn put_off_pending_slots(&mut self, to: Target) {
        let slots = usize::from(self.slots_id().0);
        for index in 0..self.captures.len() {
            let slot = self.captures.get(index).expect("counted").slot.0;
            self.resyncs[to].to_copy[slots].remove(slot);
            self.resyncs[to].recent[slots].insert(slot);
        }
    }

    /// Whether slots that are named stay what they are until they are copied.
    pub(super) fn copies_kept(&self) -> bool {
        TARGETS.into_iter().any(|to| self.resyncs[to].is_at_kept())
    }

    /// Hosts need slots that only a reclaim frees: the copy of what snapshots keep begins anew after it, unless they can wait for its end.
    pub(super) fn let_reclaim_pass(&mut self, turn: &mut Turn<impl Memory>) {
        for to in TARGETS {
            if self.resyncs[to].is_at_kept() && !(to == Target::Peer && self.holds_for_end(turn)) {
                self.move_floor(to);
            }
        }
    }

    // ------------------------------------------------------------------------------------------------------- the slots

    /// Copies a run of slots that begins there; false if there is no room for it now.
    pub(super) fn copy_slots(&mut self, turn: &mut Turn<impl Memory>, to: Target, first: Lba) -> bool {
        if !self.room_to_read(turn, to) {
            return false;
        }
        let volume = self.slots_id();
        let most = if first.0 < self.resyncs[to].singly_before { 1 } else { UPDATE_BLOCKS_MAX as u64 };
        let to_copy = &mut self.resyncs[to].to_copy[volume.0 as usize];
        let end = self.config.differential_blocks.min(first.0 + most);
        let count = (first.0..end).take_while(|&slot| to_copy.remove(slot)).count() as u32;
        self.resyncs[to].next = (volume.0, first.0 + u64::from(count));
        self.resyncs[to].begin_read(count);
        let read = SlotsRead { to, first: Slot(first.0), count, moves: self.resyncs[to].moves };
        self.read_blocks(turn, IoTarget::Differential, first.0, count, VolumeIo::CopySlots(read));
        true
    }

    /// A run of slots was read. Their entries say what is in them, so the target finds out what has gone bad as this site does; and so with a slot
    /// that cannot be read, which is left out: what the target has there is no worse.
    pub(super) fn slots_read(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        read: SlotsRead,
        result: Result<(), IoFault>,
    ) {
        let SlotsRead { to, first, count, moves } = read;
        self.resyncs[to].end_read(count);
        let (succeeded, alone) = (result.is_ok(), count == 1);
        let unreadable = if let Err(IoFault::Unreadable { errno, .. }) = result { Some(errno) } else { None };
        if let Some(errno) = unreadable {
            self.resyncs[to].singly_before = first.0 + u64::from(count);
            if alone {
                turn.event(Event::BlockUnreadable { target: IoTarget::Differential, block: first.0, errno });
            }
        }
        let goes_on =
            self.copies_to(to) && matches!(self.resyncs[to].step, Step::Copying | Step::Kept { .. });
        // One that was read before the floor moved may come behind what was read after.
        let sent = goes_on && succeeded && moves == self.resyncs[to].moves && room_to(turn, to) > LINK_SPARE;
        let row = if sent { self.take_copy_row(to, count as usize) } else { None };
        for index in 0..count as usize {
            let page = turn.tables.volume_io.page(slot, index);
            match row {
                Some(row) => {
                    turn.memory.seal(page);
                    rows_to(turn.tables, to).set(SlotId(row), index, page, turn.memory.sum(page));
                }
                None => self.pages.release(page, turn.memory),
            }
        }
        let (volume, lba) = (self.slots_id(), Lba(first.0));
        match row {
            Some(row) => {
                let slots = Update { lba, count, kind: UpdateKind::Slots, ..Update::EMPTY };
                self.send_copy(turn, to, slots, row, Some((volume, lba)));
            }
            None if alone && unreadable.is_some() => {}
            None => self.resyncs[to].copy_again(volume, lba, count),
        }
        if goes_on && !succeeded && unreadable.is_none() {
            self.lose_target(turn, to, LossReason::Protocol("a slot that it lacks cannot be read here"));
        }
    }

    // ------------------------------------------------------------------------------------------------------ the tables

    /// Every version that is staged is in a checkpoint: the tables are those of its number, until the next commit.
    pub(super) fn copy_kept_when_swept(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        past: UpdateNumber,
    ) {
        if self.checkpoint < past || !self.destage_idle() {
            self.sweep_wanted = true;
            return;
        }
        // Tables are lent to one at a time; a third waits, whoever came first.
        if self.resyncs[to.other()].is_at_kept() {
            match to {
                Target::Peer => self.move_floor(Target::Third),
                Target::Third => return,
            }
        }
        let at = self.checkpoint;
        if !self.ask_for_tables(turn, to, at, 0) {
            return;
        }
        // What is captured now is of later updates, and named by none of these tables.
        let slots = usize::from(self.slots_id().0);
        let resync = &mut self.resyncs[to];
        resync.to_copy[slots].insert_all(&resync.recent[slots]);
        resync.recent[slots].clear();
        self.put_off_pending_slots(to);
    }

    /// Copies slots and tables as the pace allows; the updates follow when all of it is staged.
    pub(super) fn copy_kept(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        at: UpdateNumber,
        tables: Pages,
    ) {
        let slots_copied = self.copy_blocks(turn, to);
        match tables {
            Pages::Next(page) if self.has_pace(turn.now, to) => drop(self.ask_for_tables(turn, to, at, page)),
            Pages::Whole if slots_copied => self.begin_tail(to, at),
            _ => {}
        }
    }

    fn ask_for_tables(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        at: UpdateNumber,
        page: u32,
    ) -> bool {
        if !self.room_to_copy(turn, to) || self.pages.free() <= COMMIT_LEAVES_PAGES {
            return false;
        }
        let Some(slot) = self.metadata_slots.pop() else { return false };
        let answer = self.pages.take().expect("counted above");
        turn.tables.metadata_io.set(slot, 0, answer, BlockSum::ZEROS);
        let row = self.take_copy_row(to, 1).expect("checked above");
        rows_to(turn.tables, to).set(SlotId(row), 0, answer, BlockSum::ZEROS);
        self.resyncs[to].begin_read(1);
        self.resyncs[to].step = Step::Kept { at, tables: Pages::Asked };
        let io = MetadataIo::CopyTables { to, row, page, moves: self.resyncs[to].moves };
        self.submit_metadata(turn, slot, io, MetadataOp::Lend { page, applied: at });
        true
    }

    /// A page of tables was read into the row.
    pub(super) fn tables_read(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        row: u32,
        page: u32,
        moves: u64,
    ) {
        self.resyncs[to].end_read(1);
        let place = rows_to(turn.tables, to).page(SlotId(row), 0);
        let header = header_of(turn.memory.bytes(place)).expect("this site's own page of tables");
        turn.memory.seal(place);
        let at = match self.resyncs[to].step {
            Step::Kept { at, tables: Pages::Asked }
                if self.copies_to(to) && moves == self.resyncs[to].moves =>
            {
                at
            }
            _ => return self.copy_row_consumed(turn, to, row),
        };
        // Tables of a later number, or from their beginning: too much was committed since the first page was lent.
        let goes_on = header.applied == at && header.index == page;
        if !goes_on || room_to(turn, to) <= LINK_SPARE {
            self.copy_row_consumed(turn, to, row);
            return self.move_floor(to);
        }
        rows_to(turn.tables, to).set(SlotId(row), 0, place, turn.memory.sum(place));
        let kind = UpdateKind::Tables;
        let update = Update { lba: Lba(u64::from(page)), count: 1, kind, ..Update::EMPTY };
        self.send_copy(turn, to, update, row, None);
        let tables = if header.last { Pages::Whole } else { Pages::Next(page + 1) };
        self.resyncs[to].step = Step::Kept { at, tables };
    }

    /// They are damaged, so nobody can be given them.
    pub(super) fn cannot_copy_tables(&mut self, turn: &mut Turn<impl Memory>, to: Target, row: u32) {
        self.resyncs[to].end_read(1);
        self.copy_row_consumed(turn, to, row);
        turn.event(Event::TablesDamaged);
        if self.copies_to(to) {
            self.lose_target(turn, to, LossReason::Protocol("this site's snapshot tables are damaged"));
        }
    }

    // --------------------------------------------------------------------------------------------- the peer that has them

    /// Whether a page of tables that was copied can be this group's.
    pub(super) fn judge_tables(&self, page: &[u8; BLOCK_BYTES], index: u64) -> Result<(), &'static str> {
        let wrong = "tables that make no sense";
        let header = header_of(page).map_err(|_| wrong)?;
        let volumes = VolumeSet::first(self.config.volumes.len());
        for row in 0..header.count {
            let known = match header.kind {
                TablesKind::Snapshots => {
                    let record = record_at(page, row).map_err(|_| wrong)?;
                    record.volumes.is_within(volumes) && record.number <= header.applied
                }
                TablesKind::Entries => {
                    let entry = entry_at(page, row).map_err(|_| wrong)?;
                    let volume = self.config.volumes.get(usize::from(entry.volume.0));
                    volume.is_some_and(|volume| entry.lba.0 < volume.blocks)
                        && self.slots.has(entry.slot, 1)
                        && entry.snapshot <= header.applied
                }
            };
            if !known {
                return Err(wrong);
            }
        }
        if u64::from(header.index) != index { Err(wrong) } else { Ok(()) }
    }
}
