//! Completions from the disks.

use super::copy_kept::SlotsRead;
use super::digests::DigestRead;
use super::snapshot_reads::Reader;
use super::targets::Target;
use super::unread::unread_blocks;
use super::{Group, Phase, Turn};
use crate::base::*;
use crate::core::messages::*;

/// What a volume I/O slot is in use for.
#[derive(Clone, Copy, Debug)]
pub(super) enum VolumeIo {
    Free,
    /// Blocks a host's operation lacks; `first` is the first one's place in the operation.
    Fetch {
        front: u8,
        ticket: Ticket,
        serial: u32,
        volume: VolumeId,
        lba: Lba,
        count: u32,
        first: u32,
    },
    /// Blocks read before anybody asks for them.
    WarmUp {
        volume: VolumeId,
        lba: Lba,
        count: u32,
    },
    /// Blocks read because somebody lacks them.
    Copy {
        to: Target,
        volume: VolumeId,
        lba: Lba,
        count: u32,
    },
    /// Blocks read because somebody may lack them, to be compared with what is there.
    CompareCopy {
        to: Target,
        volume: VolumeId,
        lba: Lba,
        count: u32,
        read: DigestRead,
    },
    /// Slots read for that.
    CompareSlots {
        to: Target,
        first: Slot,
        count: u32,
        read: DigestRead,
    },
    /// Blocks, or slots, that a site which is copied to tells digests of.
    Digest {
        volume: VolumeId,
        count: u32,
        read: DigestRead,
    },
    /// Slots read because somebody lacks them.
    CopySlots(SlotsRead),
    /// Staged blocks on their way to the volume, or the differential volume.
    Install {
        target: IoTarget,
        block: u64,
    },
    /// Settled blocks on their way to the volume.
    Destage {
        volume: VolumeId,
        lba: Lba,
        count: u32,
    },
    /// Blocks of the checksum file, being written.
    SumsWrite {
        volume: VolumeId,
        count: u32,
    },
    /// Blocks of the checksum file, being loaded.
    SumsLoad {
        volume: VolumeId,
        block: u64,
        count: u32,
    },
    /// Old blocks being read from their volume for their slots; the first one's place among the captures.
    CaptureRead {
        first: u32,
        count: u32,
    },
    /// Old blocks on their way to their slots; the first one's place among the captures.
    Keep {
        first: u32,
        count: u32,
    },
    /// Blocks of a snapshot that a host reads, with the sums they should have in the row; `first` is the first one's place in
    /// the operation.
    SnapshotFetch {
        reader: Reader,
        target: IoTarget,
        block: u64,
        first: u32,
        count: u32,
    },
    Flush {
        target: IoTarget,
    },
    /// Space of a volume that is being extended.
    Reserve {
        count: u32,
    },
    /// An old block that another site wants, out of this slot, with this sum.
    LendSlot {
        to: Target,
        slot: Slot,
        sum: BlockSum,
    },
    /// A block that another site wants, out of its volume, with this sum.
    LendBlock {
        to: Target,
        volume: VolumeId,
        lba: Lba,
        sum: BlockSum,
    },
    /// Blocks read to see whether they are sound, with the sums they should have in the row.
    Scrub {
        volume: VolumeId,
        lba: Lba,
        count: u32,
    },
    /// Blocks of a checksum file read for that, after so many writes of such.
    ScrubSums {
        volume: VolumeId,
        block: u64,
        count: u32,
        writes: u64,
    },
    /// Slots read for that.
    ScrubSlots {
        first: Slot,
        count: u32,
    },
    /// Blocks read for a comparison, with the sums they should have in the row.
    Compare {
        volume: VolumeId,
        lba: Lba,
        count: u32,
        serial: u32,
    },
    /// A block in which the sites differ, for what this one has of it.
    Equalise {
        volume: VolumeId,
        lba: Lba,
    },
    /// A block that had gone bad on its way to its volume, and then the flush behind it.
    Mend {
        volume: VolumeId,
        lba: Lba,
    },
    /// A block from the peer on its way to the slot where it had gone bad, and then the flush behind it.
    Repair {
        flushing: bool,
    },
}

impl Group {
    pub fn on_io(&mut self, turn: &mut Turn<impl Memory>, executor: Executor, done: IoDone) {
        if matches!(self.phase, Phase::Failed | Phase::Stopped) {
            return;
        }
        match executor {
            Executor::Journal => self.on_journal_io(turn, done),
            Executor::Volumes => self.on_volume_io(turn, done),
        }
    }

    fn on_journal_io(&mut self, turn: &mut Turn<impl Memory>, done: IoDone) {
        let slot = done.slot;
        if self.staging.is_io(slot) {
            return self.staging_io_done(turn, slot, done.result);
        }
        if self.scrub.journal.is_read(slot) {
            return self.journal_scrubbed(turn, slot, done.result);
        }
        if let Some(whose) = self.read_back_by(slot) {
            self.read_back_done(turn, whose, done.result);
            return self.advance(turn);
        }
        if let Err(fault) = done.result {
            // The superblock behind an install goes to the journal.
            let staging = self.reads_staging() && !self.destage.is_superblock(slot);
            let target = if staging { IoTarget::Staging } else { IoTarget::Journal };
            return self.fail_on_disk(turn, target, fault, 0);
        }
        if self.journal.is_batch(slot) {
            let before = self.journal.journaled();
            let header = self.journal.batch_done(slot);
            self.pages.release(header, turn.memory);
            for number in before.0 + 1..=self.journal.journaled().0 {
                self.window.get_mut(UpdateNumber(number)).stamps.journaled_at = turn.now;
            }
            let first = UpdateNumber(before.0 + 1);
            if self.journal.journaled() >= first && self.window.contains(first) {
                let stamps = self.window.get(first).stamps;
                self.journal_latency_ns =
                    turn.now.since(stamps.journal_submitted_at).0.min(u64::from(u32::MAX)) as u32;
            }
        } else if self.journal.is_flush(slot) {
            self.journal.flush_done(turn.now);
        } else if self.destage.is_superblock(slot) {
            self.superblock_done(turn, slot);
        } else {
            self.recovery_journal_done(turn, slot);
        }
        self.advance(turn);
    }

    fn on_volume_io(&mut self, turn: &mut Turn<impl Memory>, done: IoDone) {
        let slot = done.slot;
        let io = std::mem::replace(&mut self.volume_io[slot.0 as usize], VolumeIo::Free);
        match (io, self.spoil_unread(turn, io, done)) {
            (VolumeIo::Free, _) => panic!("completion of volume I/O {slot:?}, which is not in flight"),
            (VolumeIo::Fetch { .. }, result) => {
                // The row is read by `fetched`, so the slot is free only after it.
                self.fetched(turn, slot, io, result);
                self.volume_slots.push(slot);
                return;
            }
            (VolumeIo::WarmUp { volume, lba, count }, result) => {
                self.warmed(turn, slot, (volume, lba, count), result.is_ok());
            }
            (VolumeIo::Copy { to, volume, lba, count }, result) => {
                self.copy_read(turn, to, slot, (volume, lba, count), result.is_ok());
            }
            (VolumeIo::CompareCopy { to, volume, lba, count, read }, result) => {
                self.read_to_leave_out(turn, to, slot, (volume, lba, count), read, result.is_ok());
            }
            (VolumeIo::CompareSlots { to, first, count, read }, result) => {
                self.slots_compared(turn, to, slot, (first, count), read, result.is_ok());
            }
            (VolumeIo::Digest { volume, count, read }, result) => {
                self.digested(turn, slot, (volume, count), read, result.is_ok());
            }
            (VolumeIo::CopySlots(read), result) => self.slots_read(turn, slot, read, result),
            (VolumeIo::Install { target, block }, Err(fault)) => {
                return self.fail_on_disk(turn, target, fault, block);
            }
            (VolumeIo::Install { target, block }, Ok(())) => self.installed(target, block),
            (VolumeIo::SnapshotFetch { .. }, result) => {
                self.snapshot_fetched(turn, slot, io, result);
                self.volume_slots.push(slot);
                return;
            }
            (VolumeIo::Destage { volume, lba, .. }, Err(fault)) => {
                return self.fail_on_disk(turn, IoTarget::Volume(volume), fault, lba.0);
            }
            (VolumeIo::SumsWrite { volume, .. }, Err(fault)) => {
                return self.fail_on_disk(turn, IoTarget::Checksums(volume), fault, 0);
            }
            (VolumeIo::SumsLoad { volume, block, .. }, Err(fault)) => {
                let block = block + unread_blocks(fault).next().unwrap_or(0);
                return self.fail_on_disk(turn, IoTarget::Checksums(volume), fault, block);
            }
            (VolumeIo::CaptureRead { first, .. }, Err(fault)) => {
                let (target, block) =
                    self.captures.get(first as usize).map_or((IoTarget::Differential, 0), |capture| {
                        (IoTarget::Volume(capture.volume), capture.lba.0)
                    });
                return self.fail_on_disk(turn, target, fault, block);
            }
            (VolumeIo::Keep { .. }, Err(fault)) => {
                return self.fail_on_disk(turn, IoTarget::Differential, fault, 0);
            }
            (VolumeIo::CaptureRead { first, count }, Ok(())) => {
                self.capture_read(turn, slot, first as usize, count);
            }
            (VolumeIo::Keep { first, count }, Ok(())) => self.kept(turn, first as usize, count),
            (VolumeIo::Flush { target }, Err(fault)) => return self.fail_on_disk(turn, target, fault, 0),
            (VolumeIo::Destage { volume, lba, count }, Ok(())) => {
                self.destaged(turn, slot, volume, lba, count);
            }
            (VolumeIo::SumsWrite { count, .. }, Ok(())) => {
                for index in 0..count as usize {
                    self.pages.release(turn.tables.volume_io.page(slot, index), turn.memory);
                }
                self.destage.write_done();
            }
            (VolumeIo::SumsLoad { volume, block, count }, Ok(())) => {
                for index in 0..count {
                    let page = turn.tables.volume_io.page(slot, index as usize);
                    self.sums[volume.0 as usize].load(block + u64::from(index), turn.memory.bytes(page));
                    self.pages.release(page, turn.memory);
                }
                self.recovery_sums_loaded();
            }
            (VolumeIo::Flush { .. }, Ok(())) => self.destage.write_done(),
            (VolumeIo::Reserve { count }, result) => self.reserved(turn, count, result),
            (VolumeIo::Repair { .. }, Err(fault)) => {
                return self.fail_on_disk(turn, IoTarget::Differential, fault, 0);
            }
            // The flush takes over the slot.
            (VolumeIo::Repair { flushing: false }, Ok(())) => return self.flush_repair(turn, slot),
            (VolumeIo::Repair { flushing: true }, Ok(())) => self.repaired(turn),
            (VolumeIo::LendSlot { to, slot: wanted, sum }, result) => {
                self.slot_read_to_lend(turn, slot, to, (wanted, sum), result);
            }
            (VolumeIo::LendBlock { to, volume, lba, sum }, result) => {
                self.block_read_to_lend(turn, slot, to, (volume, lba, sum), result);
            }
            (VolumeIo::Scrub { volume, lba, count }, result) => {
                self.scrubbed(turn, slot, (volume, lba, count), result);
            }
            (VolumeIo::Compare { volume, lba, count, serial }, result) => {
                self.read_for_compare(turn, slot, (volume, lba, count), serial, result);
            }
            (VolumeIo::Equalise { volume, lba }, result) => {
                self.read_to_equalise(turn, slot, (volume, lba), result);
            }
            (VolumeIo::ScrubSums { volume, block, count, writes }, result) => {
                self.sums_scrubbed(turn, slot, (volume, block, count), writes, result);
            }
            (VolumeIo::ScrubSlots { first, count }, result) => {
                self.slots_scrubbed(turn, slot, (first, count), result);
            }
            (VolumeIo::Mend { volume, lba }, Err(fault)) => {
                return self.fail_on_disk(turn, IoTarget::Volume(volume), fault, lba.0);
            }
            (VolumeIo::Mend { volume, lba }, Ok(())) => {
                if !self.mend_written(turn, slot, volume, lba) {
                    return;
                }
            }
        }
        self.volume_slots.push(slot);
    }

    /// Reads blocks into pages that nobody else knows; the caller has seen to it that there are enough, and a slot.
    pub(super) fn read_blocks(
        &mut self,
        turn: &mut Turn<impl Memory>,
        target: IoTarget,
        block: u64,
        count: u32,
        io: VolumeIo,
    ) {
        self.read_with_sums(turn, (target, block, count), io, |_, _| BlockSum::ZEROS);
    }

    /// The same of a volume's blocks, with the sums that they should have now in the row, for [`Group::found_bad`].
    pub(super) fn read_to_judge(
        &mut self,
        turn: &mut Turn<impl Memory>,
        (volume, lba, count): (VolumeId, Lba, u32),
        io: VolumeIo,
    ) {
        let target = IoTarget::Volume(volume);
        let sum = |group: &Group, block| group.sums[usize::from(volume.0)].get(Lba(block));
        self.read_with_sums(turn, (target, lba.0, count), io, sum);
    }

    fn read_with_sums(
        &mut self,
        turn: &mut Turn<impl Memory>,
        (target, block, count): (IoTarget, u64, u32),
        io: VolumeIo,
        sum: impl Fn(&Group, u64) -> BlockSum,
    ) {
        let slot = self.volume_slots.pop().expect("room was checked");
        for index in 0..count as usize {
            let page = self.pages.take().expect("room was checked");
            turn.tables.volume_io.set(slot, index, page, sum(self, block + index as u64));
        }
        self.submit_volume(turn, slot, io, IoRequest { slot, target, op: IoOp::Read, block, count });
    }

    /// Submits a volume I/O whose row is filled.
    pub(super) fn submit_volume(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        io: VolumeIo,
        request: IoRequest,
    ) {
        self.volume_io[slot.0 as usize] = io;
        turn.out.to_volumes.push(request);
    }
}
