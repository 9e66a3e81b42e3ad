//! Reading snapshots: a block is in the slot of its first entry at or after the snapshot; or among the captures that have no
//! entry yet; or, if neither has it, unchanged since. And what was changed since one.

use super::host::{DESTAGE_SLOTS, OpState};
use super::mending::Outlook;
use super::repair::Damaged;
use super::storage::VolumeIo;
use super::{Group, Turn};
use crate::base::*;
use crate::core::captures::Source;
use crate::core::messages::*;
use crate::core::outbox::Event;
use crate::format::metadata::{kept_at, set_bit};

/// Slots of the metadata's table that readers leave to commits and reclaims.
const OTHERS_SLOTS: usize = 4;

/// Where a block of a snapshot is now.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In this page.
    Page(PageId),
    /// There, with this checksum.
    Disk(IoTarget, u64, BlockSum),
}

/// The read of a host that an I/O is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    pub front: u8,
    pub ticket: Ticket,
    pub serial: u32,
}

impl Group {
    /// Why a snapshot cannot be read here, now.
    fn judge_snapshot(&self, volume: VolumeId, snapshot: UpdateNumber) -> Result<(), HostError> {
        let visible = self.visible();
        let found = self.snapshots.find(snapshot).filter(|found| found.lives() && snapshot <= visible);
        match found {
            Some(found) if found.record.volumes.contains(volume) => Ok(()),
            _ => Err(HostError::NoSuchSnapshot),
        }
    }

    /// Asks where the blocks are; false when a slot or page is short.
    pub(super) fn start_snapshot_read(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket)) -> bool {
        let request = self.op(at).request;
        let HostOp::Read { lba, count } = request.op else { unreachable!("only reads see snapshots") };
        if let Err(error) = self.judge_snapshot(request.volume, request.snapshot) {
            self.answer(turn, at, Err(error));
            return true;
        }
        let HostRequest { volume, snapshot, .. } = request;
        self.ask_metadata(turn, at, MetadataOp::LookUp { snapshot, volume, lba, count })
    }

    /// Asks the metadata executor on behalf of a reader; false when a slot or page is short.
    fn ask_metadata(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket), op: MetadataOp) -> bool {
        if self.metadata_slots.len() <= OTHERS_SLOTS || self.pages.free() <= BATCH_BLOCKS_MAX {
            return false;
        }
        let slot = self.metadata_slots.pop().expect("checked above");
        let page = self.pages.take().expect("checked above");
        turn.tables.metadata_io.set(slot, 0, page, BlockSum::ZEROS);
        let reader = Reader { front: at.0, ticket: at.1, serial: self.op(at).serial };
        self.op_mut(at).state = OpState::LookingUp;
        self.submit_metadata(turn, slot, super::differential::MetadataIo::LookUp(reader), op);
        true
    }

    // ----------------------------------------------------------------------------------------------- changes

    /// Why changes since a snapshot cannot be told here, now.
    fn judge_changes(&self, request: &HostRequest, since: UpdateNumber) -> Result<(), HostError> {
        let HostRequest { volume, snapshot, .. } = *request;
        self.judge_snapshot(volume, since)?;
        match snapshot {
            UpdateNumber::NONE => Ok(()),
            snapshot if snapshot < since => Err(HostError::NoSuchSnapshot),
            snapshot => self.judge_snapshot(volume, snapshot),
        }
    }

    /// Asks which blocks were captured for a snapshot from `since` on and before the one that is to be seen: those and no others
    /// were changed between the two. False when a slot or page is short.
    pub(super) fn start_changes(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket)) -> bool {
        let request = self.op(at).request;
        let HostOp::Changes { since, lba, count } = request.op else { unreachable!("it asks for changes") };
        if let Err(error) = self.judge_changes(&request, since) {
            self.answer(turn, at, Err(error));
            return true;
        }
        let before = before(&request);
        self.ask_metadata(turn, at, MetadataOp::Changed { since, before, volume: request.volume, lba, count })
    }

    /// The entries are known: adds what has none yet.
    fn tell_changes(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket), answer: PageId) {
        let request = self.op(at).request;
        let HostOp::Changes { since, lba, count } = request.op else { unreachable!("it asks for changes") };
        // Entries of a snapshot that was deleted meanwhile may be gone.
        if let Err(error) = self.judge_changes(&request, since) {
            return self.answer(turn, at, Err(error));
        }
        let to = turn.tables.fronts[at.0 as usize].page(at.1, 0);
        turn.memory.copy(answer, to, 0..BLOCK_BYTES);
        let range = since..before(&request);
        let bits = turn.memory.bytes_mut(to);
        for index in (0..u64::from(count)).filter(|_| !self.captures.is_empty()) {
            let mut pending = self.captures.of_block(request.volume, lba.plus(index));
            if pending.any(|capture| range.contains(&capture.snapshot)) {
                set_bit(bits, index);
            }
        }
        self.answer(turn, at, Ok(()));
    }

    // ------------------------------------------------------------------------------------------------- reads

    /// The entries are known: copies what is in memory and reads the rest.
    pub(super) fn looked_up(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId, reader: Reader) {
        let at = (reader.front, reader.ticket);
        let answer = turn.tables.metadata_io.page(slot, 0);
        let current = self.op(at).serial == reader.serial && self.op(at).state == OpState::LookingUp;
        match self.op(at).request.op {
            HostOp::Changes { .. } if current => self.tell_changes(turn, at, answer),
            _ if current => self.read_places(turn, at, reader, answer),
            _ => {}
        }
        self.pages.release(answer, turn.memory);
    }

    /// An entry is damaged: what it says is not believed.
    pub(super) fn look_up_failed(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId, reader: Reader) {
        let at = (reader.front, reader.ticket);
        turn.event(Event::TablesDamaged);
        if self.op(at).serial == reader.serial && self.op(at).state == OpState::LookingUp {
            self.answer(turn, at, Err(HostError::Io));
        }
        self.pages.release(turn.tables.metadata_io.page(slot, 0), turn.memory);
    }

    fn read_places(
        &mut self,
        turn: &mut Turn<impl Memory>,
        at: (u8, Ticket),
        reader: Reader,
        answer: PageId,
    ) {
        let request = self.op(at).request;
        let HostOp::Read { lba, count } = request.op else { unreachable!("only reads see snapshots") };
        let blocks = count as usize;
        if self.pages.free() < blocks + BATCH_BLOCKS_MAX || self.volume_slots.len() < blocks + DESTAGE_SLOTS {
            self.op_mut(at).state = OpState::Waiting;
            return self.stalled.push(at);
        }
        if let Err(error) = self.judge_snapshot(request.volume, request.snapshot) {
            return self.answer(turn, at, Err(error));
        }
        let mut remaining = 0;
        // The I/O that the next block may become part of: its target, first block, slot, and the blocks in it.
        let mut run: Option<(IoTarget, u64, SlotId, u32)> = None;
        for index in 0..count {
            let block = lba.plus(u64::from(index));
            match self.place_of(turn, &request, block, answer, index as usize) {
                Place::Page(page) => {
                    let to = turn.tables.fronts[at.0 as usize].page(at.1, index as usize);
                    turn.memory.copy(page, to, 0..BLOCK_BYTES);
                }
                Place::Disk(target, place, sum) => {
                    let follows = run
                        .filter(|(of, first, _, count)| *of == target && first + u64::from(*count) == place);
                    let (first, slot, length) = match follows {
                        Some((_, first, slot, length)) => (first, slot, length),
                        None => {
                            remaining += u32::from(run.is_some());
                            self.submit_snapshot_read(turn, run.take());
                            (place, self.volume_slots.pop().expect("checked above"), 0)
                        }
                    };
                    let page = self.pages.take().expect("checked above");
                    turn.tables.volume_io.set(slot, length as usize, page, sum);
                    if length == 0 {
                        self.volume_io[slot.0 as usize] =
                            VolumeIo::SnapshotFetch { reader, target, block: place, first: index, count: 0 };
                    }
                    run = Some((target, first, slot, length + 1));
                    continue;
                }
            }
            remaining += u32::from(run.is_some());
            self.submit_snapshot_read(turn, run.take());
        }
        remaining += u32::from(run.is_some());
        self.submit_snapshot_read(turn, run);
        if remaining == 0 {
            return self.answer(turn, at, Ok(()));
        }
        self.op_mut(at).state =
            OpState::FetchingSnapshot { remaining, failed: false, stale: false, mends: false };
    }

    fn submit_snapshot_read(
        &mut self,
        turn: &mut Turn<impl Memory>,
        run: Option<(IoTarget, u64, SlotId, u32)>,
    ) {
        let Some((target, block, slot, blocks)) = run else { return };
        if let VolumeIo::SnapshotFetch { count, .. } = &mut self.volume_io[slot.0 as usize] {
            *count = blocks;
        }
        self.counters.volume_reads += 1;
        turn.out.to_volumes.push(IoRequest { slot, target, op: IoOp::Read, block, count: blocks });
    }

    fn place_of(
        &self,
        turn: &Turn<impl Memory>,
        request: &HostRequest,
        lba: Lba,
        answer: PageId,
        index: usize,
    ) -> Place {
        let HostRequest { volume, snapshot, .. } = *request;
        let on_disk = |target, block, sum| match sum {
            BlockSum::ZEROS => Place::Page(PageId::ZERO),
            sum => Place::Disk(target, block, sum),
        };
        // Entries are of captures before all those that are pending; among these the oldest is the one that counts.
        if let Some(kept) = kept_at(turn.memory.bytes(answer), index) {
            return on_disk(IoTarget::Differential, kept.slot.0, kept.sum);
        }
        let pending =
            self.captures.of_block(volume, lba).filter(|capture| capture.snapshot >= snapshot).last();
        if let Some(capture) = pending {
            return match capture.source {
                Source::Page(page) => Place::Page(page),
                Source::Volume | Source::Read(_) => on_disk(IoTarget::Volume(volume), lba.0, capture.sum),
            };
        }
        match self.cache.peek(volume, lba) {
            Some(value) => {
                // What is written because the sites differed counts as having been there all along.
                assert!(
                    value.number < snapshot || value.number <= self.rewritten,
                    "INV-8: {} changed a block of {snapshot} and captured nothing",
                    value.number
                );
                Place::Page(value.page)
            }
            None => on_disk(IoTarget::Volume(volume), lba.0, self.sums[volume.0 as usize].get(lba)),
        }
    }

    /// Blocks of a snapshot were read: each is what was looked for, or its place was given to something else meanwhile.
    pub(super) fn snapshot_fetched(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        io: VolumeIo,
        result: Result<(), IoFault>,
    ) {
        let VolumeIo::SnapshotFetch { reader, target, block, first, count } = io else {
            unreachable!("the caller matched a snapshot's fetch")
        };
        let at = (reader.front, reader.ticket);
        let request = self.op(at).request;
        let current = self.op(at).serial == reader.serial
            && matches!(self.op(at).state, OpState::FetchingSnapshot { .. });
        if let Err(fault) = result {
            turn.event(Event::ReadFailed { target, fault, block });
        }
        let (mut bad, mut moved, mut mends) = (result.is_err(), false, false);
        for index in 0..count {
            let page = turn.tables.volume_io.page(slot, index as usize);
            let sum = turn.tables.volume_io.sum(slot, index as usize);
            if current && result.is_ok() {
                if sum_of_block(turn.memory.bytes(page)) == sum {
                    let to = turn.tables.fronts[at.0 as usize].page(at.1, (first + index) as usize);
                    turn.memory.copy(page, to, 0..BLOCK_BYTES);
                } else if let IoTarget::Volume(volume) = target
                    && self.is_due_there(volume, Lba(block + u64::from(index)), sum)
                {
                    let lba = Lba(block + u64::from(index));
                    if let Some(known) = self.mending.known(volume, lba, sum) {
                        let to = turn.tables.fronts[at.0 as usize].page(at.1, (first + index) as usize);
                        turn.memory.copy(known, to, 0..BLOCK_BYTES);
                    } else if self.mend(turn, volume, lba) == Outlook::Hopeless {
                        bad = true;
                    } else {
                        mends = true;
                    }
                } else if self.has_moved(&request, target, block + u64::from(index), sum) {
                    moved = true;
                } else {
                    bad = true;
                    let HostOp::Read { lba, .. } = request.op else {
                        unreachable!("only reads see snapshots")
                    };
                    let found = self.snapshots.find(request.snapshot);
                    let snapshot = found.map(|found| found.record.name).unwrap_or_default();
                    let volume = request.volume;
                    let lba = lba.plus(u64::from(first + index));
                    turn.event(Event::SnapshotMismatch { snapshot, volume, lba });
                    let slot = Slot(block + u64::from(index));
                    self.begin_repair(turn, Damaged { snapshot, volume, lba, slot, sum });
                }
            }
            self.pages.release(page, turn.memory);
        }
        if !current {
            return;
        }
        let OpState::FetchingSnapshot { remaining, failed, stale, mends: others } = self.op(at).state else {
            unreachable!("checked above")
        };
        let (failed, stale, mends) = (failed || bad, stale || moved, mends || others);
        if remaining > 1 {
            self.op_mut(at).state =
                OpState::FetchingSnapshot { remaining: remaining - 1, failed, stale, mends };
        } else if failed {
            self.answer(turn, at, Err(HostError::Io));
        } else if mends {
            self.await_mend(turn, at);
        } else if stale {
            // Once more: what was overwritten has been captured before.
            self.op_mut(at).state = OpState::Waiting;
            if !self.start_snapshot_read(turn, at) {
                self.stalled.push(at);
            }
        } else {
            self.answer(turn, at, Ok(()));
        }
    }

    /// Whether the volume should hold content of this sum: nothing newer is in memory, or it waits until this is kept.
    fn is_due_there(&self, volume: VolumeId, lba: Lba, sum: BlockSum) -> bool {
        let mut captures = self.captures.of_block(volume, lba).filter(|capture| capture.sum == sum);
        let waits = captures.any(|capture| !matches!(capture.source, Source::Page(_)));
        let newest = self.cache.peek_settled(volume, lba).is_none();
        self.sums[volume.0 as usize].get(lba) == sum && (waits || newest)
    }

    /// Whether the block that was looked for may be elsewhere by now: it was overwritten in its volume, or its snapshot is gone.
    fn has_moved(&self, request: &HostRequest, target: IoTarget, block: u64, sum: BlockSum) -> bool {
        match target {
            IoTarget::Volume(volume) => {
                self.sums[volume.0 as usize].get(Lba(block)) != sum
                    || self.cache.peek(volume, Lba(block)).is_some()
            }
            _ => self.judge_snapshot(request.volume, request.snapshot).is_err(),
        }
    }
}

/// The number before which changes are asked for: the snapshot that is to be seen, or any number.
fn before(request: &HostRequest) -> UpdateNumber {
    match request.snapshot {
        UpdateNumber::NONE => UpdateNumber(u64::MAX),
        snapshot => snapshot,
    }
}
