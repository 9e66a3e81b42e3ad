//! The blocks of a copy on their way: what is to be copied is taken as it is settled, out of memory, or read, and sent for the target's log
//! as the pace allows.

use super::peering::LINK_SPARE;
use super::resync::{LEAVES_PAGES, Piece, Step};
use super::storage::VolumeIo;
use super::targets::{Target, room_to, rows_to};
use super::{Group, Turn};
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::LossReason;
use crate::format::update::{Update, UpdateKind};

impl Group {
    /// Copies what there is to copy, as the pace allows; true if all of it is staged.
    pub(super) fn copy_blocks(&mut self, turn: &mut Turn<impl Memory>, to: Target) -> bool {
        loop {
            if !self.has_pace(turn.now, to) {
                return false;
            }
            let Some((volume, lba)) = self.next_to_copy(to) else { return self.resyncs[to].under_way() == 0 };
            let copies = match volume == self.slots_id() {
                true => self.copy_slots(turn, to, lba),
                false => self.copy_from(turn, to, volume, lba),
            };
            if !copies {
                return false;
            }
        }
    }

    /// Nothing is left to copy: where snapshots may keep something, what they keep is next.
    pub(super) fn blocks_copied(&mut self, to: Target) {
        match self.config.differential_blocks {
            0 => self.begin_tail(to, self.settled),
            _ => self.resyncs[to].step = Step::Sweeping { past: self.settled.max(self.applied) },
        }
    }

    fn next_to_copy(&mut self, to: Target) -> Option<(VolumeId, Lba)> {
        let (volume, from) = self.resyncs[to].next;
        let volumes = self.resyncs[to].to_copy.len() as u16;
        // Around once, and the first volume's beginning again.
        for step in 0..=volumes {
            let at = (volume + step) % volumes;
            let from = if step == 0 { from } else { 0 };
            if let Some(block) = self.resyncs[to].to_copy[at as usize].next_from(from) {
                return Some((VolumeId(at), Lba(block)));
            }
        }
        None
    }

    /// Whether there is room for one more message about what is copied.
    pub(super) fn room_to_copy(&self, turn: &Turn<impl Memory>, to: Target) -> bool {
        self.has_copy_row(to) && room_to(turn, to) > LINK_SPARE + self.resyncs[to].reading
    }

    /// And for one more read of blocks to copy.
    pub(super) fn room_to_read(&mut self, turn: &mut Turn<impl Memory>, to: Target) -> bool {
        self.room_to_copy(turn, to)
            && self.room_to_fetch(turn, UPDATE_BLOCKS_MAX)
            && self.pages.free() > LEAVES_PAGES + UPDATE_BLOCKS_MAX
    }

    /// Copies a run of blocks that begins there; false if there is no room for it now.
    fn copy_from(&mut self, turn: &mut Turn<impl Memory>, to: Target, volume: VolumeId, lba: Lba) -> bool {
        if !self.room_to_read(turn, to) {
            return false;
        }
        let kind = self.kind_of(volume, lba);
        let most = if kind == Kind::Zeros { ZERO_BLOCKS_MAX as u64 } else { UPDATE_BLOCKS_MAX as u64 };
        let end = self.config.volumes[volume.0 as usize].blocks.min(lba.0 + most);
        let wanted = |group: &Group, block: u64| {
            group.resyncs[to].to_copy[volume.0 as usize].contains(block)
                && group.kind_of(volume, Lba(block)) == kind
                && !group.mending.awaits(volume, Lba(block))
        };
        let count = (lba.0..end).take_while(|&block| wanted(self, block)).count() as u32;
        if count == 0 {
            return false;
        }
        for block in lba.0..lba.0 + u64::from(count) {
            self.resyncs[to].to_copy[volume.0 as usize].remove(block);
        }
        self.resyncs[to].next = (volume.0, lba.0 + u64::from(count));
        match kind {
            Kind::Zeros => self.send_piece(turn, to, volume, lba, count, None),
            Kind::InMemory => {
                let row = self.take_copy_row(to, count as usize).expect("checked above");
                for index in 0..count {
                    let value = self.cache.peek_settled(volume, lba.plus(u64::from(index)));
                    let value = value.expect("it is in memory");
                    self.pages.share(value.page);
                    let sum = sum_to_send(turn.memory, value.page, value.sum);
                    rows_to(turn.tables, to).set(SlotId(row), index as usize, value.page, sum);
                }
                self.send_piece(turn, to, volume, lba, count, Some(row));
            }
            Kind::OnDisk => {
                self.resyncs[to].begin_read(count);
                self.fetch_blocks(turn, volume, lba, count, VolumeIo::Copy { to, volume, lba, count });
            }
        }
        true
    }

    /// Where the settled content of a block is.
    pub(super) fn kind_of(&self, volume: VolumeId, lba: Lba) -> Kind {
        match self.cache.peek_settled(volume, lba) {
            Some(value) if value.page == PageId::ZERO => Kind::Zeros,
            Some(_) => Kind::InMemory,
            None if self.sums[volume.0 as usize].get(lba) == BlockSum::ZEROS => Kind::Zeros,
            None => Kind::OnDisk,
        }
    }

    /// A run of blocks was read. What settled meanwhile counts for more.
    pub(super) fn copy_read(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        slot: SlotId,
        (volume, lba, count): (VolumeId, Lba, u32),
        read: bool,
    ) {
        self.resyncs[to].end_read(count);
        let goes_on = self.copies_to(to) && self.resyncs[to].step == Step::Copying;
        let row = if goes_on && room_to(turn, to) > LINK_SPARE {
            self.take_copy_row(to, count as usize)
        } else {
            None
        };
        let (mut whole, mut lost) = (true, false);
        for index in 0..count as usize {
            let block = lba.plus(index as u64);
            let page = turn.tables.volume_io.page(slot, index);
            let found = self.found_to_copy(turn, volume, block, page, read);
            let (page, sum) = found.unwrap_or((PageId::ZERO, BlockSum::ZEROS));
            whole &= found.is_some();
            lost |= found.is_none() && !(read && self.mends_for_copy(turn, to, volume, block));
            match row {
                Some(row) => {
                    let sum = sum_to_send(turn.memory, page, sum);
                    rows_to(turn.tables, to).set(SlotId(row), index, page, sum);
                }
                None => self.pages.release(page, turn.memory),
            }
        }
        match row {
            Some(row) if whole => self.send_piece(turn, to, volume, lba, count, Some(row)),
            _ => {
                if let Some(row) = row {
                    self.copy_row_consumed(turn, to, row);
                }
                self.resyncs[to].copy_again(volume, lba, count);
                if lost && goes_on {
                    self.lose_target(
                        turn,
                        to,
                        LossReason::Protocol("a block that it lacks cannot be read here"),
                    );
                }
            }
        }
    }

    /// What a block holds that was read into the page, which is given up for it, if that is known.
    pub(super) fn found_to_copy(
        &mut self,
        turn: &mut Turn<impl Memory>,
        volume: VolumeId,
        block: Lba,
        page: PageId,
        read: bool,
    ) -> Option<(PageId, BlockSum)> {
        let found = match self.cache.peek_settled(volume, block) {
            Some(value) => {
                self.pages.share(value.page);
                self.pages.release(page, turn.memory);
                Some((value.page, value.sum))
            }
            None => match self.verified(turn, volume, block, page, read) {
                Some(found) => Some(found),
                None => {
                    self.pages.release(page, turn.memory);
                    None
                }
            },
        };
        // Hosts did not ask for it, so it does not stay.
        self.cache.fetch_end(volume, block, None, &mut self.pages, turn.memory);
        found
    }

    /// Sends copied blocks; without a row they are zeros.
    fn send_piece(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        volume: VolumeId,
        lba: Lba,
        count: u32,
        row: Option<u32>,
    ) {
        let kind = if row.is_some() { UpdateKind::Write } else { UpdateKind::Zero };
        let row = row.unwrap_or_else(|| self.take_copy_row(to, 0).expect("checked above"));
        self.send_copy(
            turn,
            to,
            Update { lba, count, volume, kind, ..Update::EMPTY },
            row,
            Some((volume, lba)),
        );
    }

    /// Sends what is in the row for the peer's log; `blocks` is what has to be copied again if it does not arrive.
    pub(super) fn send_copy(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        what: Update,
        row: u32,
        blocks: Option<(VolumeId, Lba)>,
    ) {
        let sum = match what.payload_blocks() {
            0 => 0,
            count => sum_of_sums((0..count).map(|index| rows_to(turn.tables, to).sum(SlotId(row), index))),
        };
        let (number, generation) = (self.settled.max(UpdateNumber(1)), self.generation);
        let update = Update { number, generation, sum, ..what };
        self.give_target(
            turn,
            to,
            ToLink::Update {
                update,
                settled: self.settled,
                slot: row,
                source: UpdateSource::Copy,
                with_old: false,
            },
        );
        if to == Target::Third {
            self.feed_mut().note_bytes(turn.now, &update);
        }
        self.resyncs[to].sent += 1;
        let (at, payload_blocks) = (self.resyncs[to].sent, what.payload_blocks());
        self.resyncs[to].on_their_way.push(Piece { at, blocks, count: what.count, payload_blocks });
    }
}

/// Where a block's settled content is, and so how it is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Zeros,
    InMemory,
    OnDisk,
}

/// The receiver computes the checksum of what it gets; the one that stands for zeros is not among those.
fn sum_to_send(memory: &impl Memory, page: PageId, sum: BlockSum) -> BlockSum {
    if sum == BlockSum::ZEROS { sum_of_block(memory.bytes(page)) } else { sum }
}
