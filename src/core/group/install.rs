//! What was staged comes to the volumes, at a start that finds the mark: each update of the log in order, then the checksums and a
//! superblock, by which it is over. Until then it begins anew after every crash, and does the same again. What snapshots keep
//! comes the same way: slots to the differential volume, and tables in one transaction; they are loaded when all of it is over.

use super::destage::Step as Destaging;
use super::differential::MetadataIo;
use super::recovery::Load;
use super::staging::MARK_BLOCK;
use super::storage::VolumeIo;
use super::{Group, Phase, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::messages::*;
use crate::core::outbox::Event;
use crate::format::journal::{Digest, decode_batch, digest_of, payload_is_whole};
use crate::format::superblock::{JournalPosition, RING_FIRST_BLOCK, Superblock};
use crate::format::update::{Update, UpdateKind};

/// Writes to volumes under way.
const WRITES_MAX: usize = 16;

/// Blocks of the log that were read, and how far they are brought to the volumes.
#[derive(Clone, Copy, Debug)]
struct Row {
    slot: SlotId,
    count: u32,
    /// The batch's header in the row, and its next descriptor; the payload block of that, and how much of it is written.
    header: u32,
    descriptors: usize,
    next: usize,
    page: u32,
    written: u32,
}

#[derive(Clone, Copy, Debug)]
enum At {
    /// Whether a part of the log is being read.
    Reading(bool),
    Applying(Row),
    /// All of it is written; the volumes from this one on are yet to be flushed. A checksum that is durable before its block would have
    /// another start take the block for zeros that need not be written.
    Flushing {
        volume: u16,
    },
    /// All of it is in the volumes.
    Ending,
}

/// Where a page of tables is that comes next in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    None,
    /// The management information is being given it.
    Given,
    Taken,
}

#[derive(Debug)]
pub(super) struct Install {
    mark: Box<Superblock>,
    head: JournalPosition,
    at: At,
    /// By target, first block and end: what is being written, or flushed.
    writing: FixedQueue<(IoTarget, u64, u64)>,
    page: Page,
    blocks: u64,
}

impl Install {
    fn overlaps(&self, target: IoTarget, first: u64, end: u64) -> bool {
        self.writing.iter().any(|(other, from, to)| *other == target && *from < end && first < *to)
    }
}

impl Group {
    /// The mark of the staging file was read. It counts if no superblock came after it.
    pub(super) fn staging_mark_read(&self, page: &[u8; BLOCK_BYTES]) -> Option<Box<Install>> {
        // Its log ends within the file that it names; that may have another size by what the configuration says now.
        let mark = Superblock::decode(page).ok()?;
        let ours = mark.group == self.config.group
            && mark.site == self.config.site
            && mark.volume_blocks().iter().eq(self.config.volumes.iter().map(|volume| &volume.blocks));
        let due = mark.sequence == self.destage.sequence() + 1;
        let head = JournalPosition { block: RING_FIRST_BLOCK, sequence: 1, previous: Digest::NONE };
        (ours && due).then(|| {
            Box::new(Install {
                mark: Box::new(mark),
                head,
                at: At::Reading(false),
                writing: FixedQueue::new(WRITES_MAX),
                page: Page::None,
                blocks: 0,
            })
        })
    }

    fn install(&mut self) -> &mut Install {
        self.recovery().install.as_mut().expect("the step is to install")
    }

    pub(super) fn install_turn(&mut self, turn: &mut Turn<impl Memory>) {
        loop {
            let at = self.install().at;
            let goes_on = match at {
                At::Reading(true) => false,
                At::Reading(false) => self.read_log(turn),
                At::Applying(row) => self.apply_row(turn, row),
                At::Flushing { volume } => self.flush_installed(turn, volume),
                At::Ending => {
                    self.end_install_if_durable(turn);
                    false
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    fn read_log(&mut self, turn: &mut Turn<impl Memory>) -> bool {
        let Install { mark, head, writing, .. } = self.install();
        let (head, end) = (*head, mark.position);
        if head.block == end.block {
            if !writing.is_empty() {
                return false;
            }
            // Of an empty log, in which nothing had to come, the end names the resync.
            let ends = head.block == RING_FIRST_BLOCK || head.previous == end.previous;
            if head.sequence > end.sequence || !ends {
                self.log_is_rotten(turn, head.block);
                return false;
            }
            self.install().at = At::Flushing { volume: 0 };
            return true;
        }
        let count = (end.block - head.block).min(BATCH_BLOCKS_MAX as u64) as u32;
        self.recovery_read(turn, IoTarget::Staging, head.block, count);
        self.install().at = At::Reading(true);
        false
    }

    fn flush_installed(&mut self, turn: &mut Turn<impl Memory>, volume: u16) -> bool {
        if usize::from(volume) == self.config.volumes.len() {
            let flushed = self.install().writing.is_empty();
            if flushed {
                self.end_log();
            }
            return flushed;
        }
        if self.install().writing.room() == 0 || self.volume_slots.is_empty() {
            return false;
        }
        let slot = self.volume_slots.pop().expect("checked above");
        let target = IoTarget::Volume(VolumeId(volume));
        let install = self.install();
        install.writing.push((target, 0, 0));
        install.at = At::Flushing { volume: volume + 1 };
        let request = IoRequest { slot, target, op: IoOp::Flush, block: 0, count: 0 };
        self.submit_volume(turn, slot, VolumeIo::Install { target, block: 0 }, request);
        true
    }

    fn log_is_rotten(&mut self, turn: &mut Turn<impl Memory>, block: u64) {
        self.fail_on_disk(turn, IoTarget::Staging, IoFault::Corrupt, block);
    }

    pub(super) fn log_read(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId) {
        let Install { mark, head, .. } = self.install();
        let count = (mark.position.block - head.block).min(BATCH_BLOCKS_MAX as u64) as u32;
        let row = Row { slot, count, header: 0, descriptors: 0, next: 0, page: 0, written: 0 };
        match self.open_batch(turn, row) {
            Some(row) => self.install().at = At::Applying(row),
            None => {
                let block = self.install().head.block;
                self.log_is_rotten(turn, block);
            }
        }
    }

    /// The batch at the row's header, if all of it is there and is what continues the log.
    fn open_batch(&mut self, turn: &mut Turn<impl Memory>, row: Row) -> Option<Row> {
        let group = self.config.group;
        let Phase::Recovering(recovery) = &mut self.phase else { return None };
        let table = &turn.tables.journal_io;
        let page = |index: u32| table.page(row.slot, index as usize);
        if row.header >= row.count {
            return None;
        }
        let header = decode_batch(turn.memory.bytes(page(row.header)), &mut recovery.descriptors).ok()?;
        let install = recovery.install.as_mut().expect("the step is to install");
        let head = install.head;
        let end = row.header + 1 + u32::from(header.payload_blocks);
        // What the first batch names tells only which resync it is of; and sequences leap where a log was found again.
        let follows = head.block == RING_FIRST_BLOCK || header.previous == head.previous;
        if header.group != group || header.sequence < head.sequence || !follows || end > row.count {
            return None;
        }
        for index in row.header + 1..end {
            table.set(row.slot, index as usize, page(index), turn.memory.sum(page(index)));
        }
        let sum_of_block = |index| table.sum(row.slot, row.header as usize + 1 + index);
        if !payload_is_whole(&recovery.descriptors[..header.count as usize], sum_of_block) {
            return None;
        }
        install.head = JournalPosition {
            block: head.block + u64::from(end - row.header),
            sequence: header.sequence + 1,
            previous: digest_of(turn.memory.bytes(page(row.header))),
        };
        for index in row.header + 1..end {
            turn.memory.seal(page(index));
        }
        let descriptors = header.count as usize;
        Some(Row { descriptors, next: 0, page: row.header + 1, written: 0, ..row })
    }

    /// Writes what comes next; false if that has to wait.
    fn apply_row(&mut self, turn: &mut Turn<impl Memory>, mut row: Row) -> bool {
        if row.next == row.descriptors {
            row.header = row.page;
            if let Some(row) = self.open_batch(turn, row) {
                self.install().at = At::Applying(row);
                return true;
            }
            // Writes under way are from its pages.
            if !self.install().writing.is_empty() {
                return false;
            }
            self.recovery_release(turn, row.slot, row.count);
            self.install().at = At::Reading(false);
            return true;
        }
        let update = self.recovery().descriptors[row.next];
        let payload = update.payload_blocks() as u32;
        let target = match update.kind {
            UpdateKind::Slots => Some(IoTarget::Differential),
            UpdateKind::Tables if !self.give_tables(turn, &row) => return false,
            _ => update.touches_blocks().then_some(IoTarget::Volume(update.volume)),
        };
        if let Some(target) = target {
            let Some(count) = self.apply(turn, &update, target, &row) else { return false };
            row.written += count;
        }
        if target.is_none() || row.written == update.count {
            (row.next, row.page, row.written) = (row.next + 1, row.page + payload, 0);
        }
        self.install().at = At::Applying(row);
        true
    }

    /// Writes the part of an update that comes next, unless what is being written there came before it.
    fn apply(
        &mut self,
        turn: &mut Turn<impl Memory>,
        update: &Update,
        target: IoTarget,
        row: &Row,
    ) -> Option<u32> {
        let count = (update.count - row.written).min(VOLUME_IO_BLOCKS_MAX as u32);
        let lba = update.lba.plus(u64::from(row.written));
        let end = lba.0 + u64::from(count);
        let install = self.recovery().install.as_ref().expect("the step is to install");
        let room = install.writing.room() > 0 && !install.overlaps(target, lba.0, end);
        if !room || self.volume_slots.is_empty() {
            return None;
        }
        let volume = match target {
            IoTarget::Volume(volume) => self.config.volumes.get(volume.0 as usize).map(|spec| spec.blocks),
            _ => Some(self.config.differential_blocks),
        };
        if volume.is_none_or(|blocks| end > blocks) {
            // It was judged when it came.
            let block = self.install().head.block;
            self.log_is_rotten(turn, block);
            return None;
        }
        // What reads as zeros already, and nothing in the log has changed, is left alone.
        if let IoTarget::Volume(volume) = target
            && update.payload_blocks() == 0
            && (0..count)
                .all(|index| self.sums[volume.0 as usize].get(lba.plus(u64::from(index))) == BlockSum::ZEROS)
        {
            return Some(count);
        }
        let slot = self.volume_slots.pop().expect("checked above");
        for index in 0..count {
            let (page, sum) = match update.payload_blocks() {
                0 => (PageId::ZERO, BlockSum::ZEROS),
                _ => {
                    let at = (row.page + row.written + index) as usize;
                    (turn.tables.journal_io.page(row.slot, at), turn.tables.journal_io.sum(row.slot, at))
                }
            };
            turn.tables.volume_io.set(slot, index as usize, page, sum);
            // In the order of the log, whenever the write is done.
            if let IoTarget::Volume(volume) = target {
                self.sums[volume.0 as usize].set(lba.plus(u64::from(index)), sum);
            }
        }
        let install = self.install();
        install.writing.push((target, lba.0, end));
        install.blocks += u64::from(count);
        let request = IoRequest { slot, target, op: IoOp::Write, block: lba.0, count };
        self.submit_volume(turn, slot, VolumeIo::Install { target, block: lba.0 }, request);
        Some(count)
    }

    pub(super) fn installed(&mut self, target: IoTarget, block: u64) {
        let install = self.install();
        for _ in 0..install.writing.len() {
            let write = install.writing.pop().expect("counted");
            if (write.0, write.1) != (target, block) {
                install.writing.push(write);
            }
        }
    }

    /// Gives the management information the page of tables that comes next; whether it has taken it.
    fn give_tables(&mut self, turn: &mut Turn<impl Memory>, row: &Row) -> bool {
        match self.install().page {
            Page::Given => false,
            Page::Taken => {
                self.install().page = Page::None;
                true
            }
            Page::None => {
                let slot = self.metadata_slots.pop().expect("nothing else is asked while a log is installed");
                let answer = self.pages.take().expect("pages are reserved for recovery's reads");
                turn.tables.metadata_io.set(slot, 0, answer, BlockSum::ZEROS);
                let page = turn.tables.journal_io.page(row.slot, row.page as usize);
                turn.tables.metadata_io.set(slot, 1, page, BlockSum::ZEROS);
                self.install().page = Page::Given;
                self.submit_metadata(turn, slot, MetadataIo::TakeTables, MetadataOp::TakeTables);
                false
            }
        }
    }

    pub(super) fn tables_taken(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId) {
        self.pages.release(turn.tables.metadata_io.page(slot, 0), turn.memory);
        self.install().page = Page::Taken;
    }

    /// The volumes hold what the primary's held at the mark's number; the journal goes on from there.
    fn end_log(&mut self) {
        let mark = *self.install().mark;
        let upto = mark.checkpoint;
        self.install().at = At::Ending;
        self.history = mark.history;
        self.generation = mark.history.last().map_or(Generation::NONE, |(generation, _)| generation);
        // What it is by its configuration was judged before.
        self.role = if self.role == Role::Third { Role::Third } else { Role::Secondary };
        (self.left, self.ended) = (None, None);
        self.journal.begin_at(upto);
        self.window.restart(upto);
        (self.settled, self.acknowledged) = (upto, upto);
        // A site that gave way may go back.
        self.checkpoint = self.checkpoint.min(upto);
        self.applied = self.applied.max(upto);
        self.recovery().installs(upto);
        self.peer.told_settled = upto;
        self.changed.forget();
        let step = match self.config.differential_blocks {
            0 => Destaging::Sums { volume: 0, block: 0 },
            _ => Destaging::DifferentialFlush { begun: false },
        };
        self.destage.end_at(upto, step);
    }

    fn end_install_if_durable(&mut self, turn: &mut Turn<impl Memory>) {
        let mark = *self.install().mark;
        if !self.destage_idle() || self.checkpoint < mark.checkpoint {
            return;
        }
        assert_eq!(self.destage.sequence(), mark.sequence, "the mark is for the superblock after the last");
        let blocks = self.install().blocks;
        self.recovery().install = None;
        self.recovery().installed = true;
        turn.event(Event::Installed { upto: mark.checkpoint, blocks });
        match self.config.differential_blocks {
            0 => self.tables_loaded(turn),
            _ => self.load_metadata(turn, Load::Snapshots { first: 0 }),
        }
    }

    /// The place of the mark, to be read before anything else is.
    pub(super) fn staging_mark(&self) -> Option<u64> {
        (self.config.resync.staging_blocks > 0).then_some(MARK_BLOCK)
    }
}
