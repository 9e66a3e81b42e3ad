//! The part of a sweep that snapshots need: old blocks go to the differential volume, then the management information that
//! names them becomes durable, and only then are the blocks overwritten (INV-3). And slots that no snapshot needs any more.

use super::destage::Step;
use super::snapshot_reads::Reader;
use super::storage::VolumeIo;
use super::targets::Target;
use super::{Group, Turn};
use crate::base::*;
use crate::core::captures::{Capture, Source};
use crate::core::messages::*;
use crate::core::outbox::Event;
use crate::core::snapshots::{Pending, PendingChange};
use crate::format::metadata::{
    BITS_PAGE_MAX, CHANGES_PAGE_MAX, Captured, Change, bit_at, put_change, slot_at,
};
use crate::format::snapshot::encode_snapshots;

/// What a slot of the metadata executor's table is in use for.
#[derive(Clone, Copy, Debug)]
pub(super) enum MetadataIo {
    Free,
    Load,
    Commit(Commit),
    Reclaim,
    LookUp(Reader),
    Lend,
    SaveMarks {
        pages: usize,
    },
    DropMarks,
    /// A page of tables for the peer's log, into this row of the catch-up table; see [`super::copy_kept`].
    CopyTables {
        to: Target,
        row: u32,
        page: u32,
        moves: u64,
    },
    TakeTables,
    /// All of them, and entries, for a scrub.
    Check,
    Entries,
}

/// A commit under way: so many of the oldest captures and changes, in so many pages beside the answer's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commit {
    applied: UpdateNumber,
    captures: usize,
    changes: usize,
    pages: usize,
}

/// Garbage among the captured blocks is looked for in passes over all of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reclaim {
    /// A snapshot was deleted since the pass began, or before the first.
    owed: bool,
    /// Where the pass goes on.
    next: Option<(VolumeId, Lba)>,
    in_flight: bool,
}

/// Captures whose old blocks are read from their volumes ahead of the write that takes them to their slots: two writes' worth,
/// one being filled while the other is under way.
const READ_AHEAD_BLOCKS_MAX: usize = 2 * VOLUME_IO_BLOCKS_MAX;

/// Pages that a commit leaves to others.
pub(super) const COMMIT_LEAVES_PAGES: usize = 16;

impl Group {
    /// Whether a sweep to `target` has old blocks to keep, or snapshots to record.
    pub(super) fn has_changes(&self, target: UpdateNumber) -> bool {
        self.captures.front().is_some_and(|capture| capture.number <= target)
            || self.snapshots.pending(0).is_some_and(|pending| pending.number <= target)
    }

    /// Old blocks that a sweep to `target` has to keep.
    pub(super) fn captures_through(&self, target: UpdateNumber) -> u64 {
        self.captures.count_through(target) as u64
    }

    // ------------------------------------------------------------------------------------------ old blocks

    /// Copies old blocks to their slots, in the order in which they were captured. Those that only the volume has are read
    /// a little ahead, each wherever it lies, so that the write to their slots, which lie together, is one.
    pub(super) fn copy_captures(&mut self, turn: &mut Turn<impl Memory>, mut next: usize, mut read: usize) {
        let depth = self.destage_depth(turn.now);
        read = read.max(next);
        while self.destage.in_flight() < depth && !self.volume_slots.is_empty() {
            if let Some((first, count)) = self.run_to_keep(next, read) {
                self.keep(turn, next, first.slot, count);
                next += count;
                read = read.max(next);
            } else if let Some((first, count)) = self.run_to_read(read) {
                let wanted = next + READ_AHEAD_BLOCKS_MAX > read;
                let count = count.min(self.pages.free());
                if !wanted || count == 0 {
                    break;
                }
                if first.source == Source::Volume {
                    self.read_captures(turn, read, &first, count);
                }
                read += count;
            } else {
                if self.destage.in_flight() > 0 {
                    break;
                }
                // All of them are in their slots.
                let step = if next > 0 { Step::DifferentialFlush { begun: false } } else { Step::Commit };
                self.destage.set_step(step);
                return;
            }
        }
        self.destage.set_step(Step::Captures { next, read });
    }

    /// The capture at `index`, if the sweep includes it.
    fn due_capture(&self, index: usize) -> Option<&Capture> {
        self.captures.get(index).filter(|capture| capture.number <= self.destage.target())
    }

    /// The capture at `index` and how many from there on one write takes to their slots now: those in pages, unless what is being
    /// read will make it more.
    fn run_to_keep(&self, index: usize, read: usize) -> Option<(Capture, usize)> {
        let first = *self.due_capture(index)?;
        let mut count = 0;
        while count < VOLUME_IO_BLOCKS_MAX {
            let at = index + count;
            let Some(capture) = self.due_capture(at) else { break };
            if capture.slot != first.slot.plus(count as u64) {
                break;
            }
            if capture.source == Source::Volume {
                // More become one write with it once it is read, which takes a page that only the write may set free.
                let comes = at < read || self.pages.free() > 0;
                return (count > 0 && !comes).then_some((first, count));
            }
            count += 1;
        }
        (count > 0).then_some((first, count))
    }

    /// The capture at `index`, if the sweep includes it, and how many from there on one read brings, or are in pages.
    fn run_to_read(&self, index: usize) -> Option<(Capture, usize)> {
        let first = *self.due_capture(index)?;
        let mut count = 1;
        while first.source == Source::Volume
            && count < VOLUME_IO_BLOCKS_MAX
            && let Some(capture) = self.due_capture(index + count)
            && capture.source == Source::Volume
            && capture.volume == first.volume
            && capture.lba == first.lba.plus(count as u64)
        {
            count += 1;
        }
        Some((first, count))
    }

    fn read_captures(&mut self, turn: &mut Turn<impl Memory>, at: usize, first: &Capture, count: usize) {
        let slot = self.volume_slots.pop().expect("the caller left slots");
        for index in 0..count {
            let page = self.pages.take().expect("the caller counted");
            turn.tables.volume_io.set(slot, index, page, BlockSum::ZEROS);
        }
        let count = count as u32;
        let (target, block) = (IoTarget::Volume(first.volume), first.lba.0);
        self.destage.write_begun();
        let request = IoRequest { slot, target, op: IoOp::Read, block, count };
        self.submit_volume(turn, slot, VolumeIo::CaptureRead { first: at as u32, count }, request);
    }

    /// Old blocks were read from their volume.
    pub(super) fn capture_read(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        first: usize,
        count: u32,
    ) {
        for index in 0..count as usize {
            let capture = *self.captures.get(first + index).expect("captures stay until they are committed");
            let page = turn.tables.volume_io.page(slot, index);
            if sum_of_block(turn.memory.bytes(page)) != capture.sum {
                let Capture { volume, lba, sum, .. } = capture;
                self.mend(turn, volume, lba);
                if self.await_for_capture(volume, lba, first + index, page) {
                    continue;
                }
                if let Some(known) = self.mending.known(volume, lba, sum) {
                    self.pages.share(known);
                    self.pages.release(page, turn.memory);
                    self.captures.set_read(first + index, Some(known));
                    continue;
                }
                // It goes to the slot as it is, under the sum it should have: who reads the snapshot's block gets an error.
            }
            turn.memory.seal(page);
            self.captures.set_read(first + index, Some(page));
        }
        self.destage.write_done();
    }

    fn keep(&mut self, turn: &mut Turn<impl Memory>, first: usize, at: Slot, count: usize) {
        let slot = self.volume_slots.pop().expect("the caller left slots");
        for index in 0..count {
            let capture = self.captures.get(first + index).expect("counted");
            let (Source::Page(page) | Source::Read(page)) = capture.source else {
                unreachable!("{} is not in a page", capture.lba.0)
            };
            turn.tables.volume_io.set(slot, index, page, capture.sum);
        }
        let count = count as u32;
        self.destage.write_begun();
        let request = IoRequest { slot, target: IoTarget::Differential, op: IoOp::Write, block: at.0, count };
        self.submit_volume(turn, slot, VolumeIo::Keep { first: first as u32, count }, request);
    }

    /// Old blocks are in their slots; pages that they were read into for it are free again.
    pub(super) fn kept(&mut self, turn: &mut Turn<impl Memory>, first: usize, count: u32) {
        for index in first..first + count as usize {
            let capture = self.captures.get(index).expect("captures stay until they are committed");
            if let Source::Read(page) = capture.source {
                self.captures.set_read(index, None);
                self.pages.release(page, turn.memory);
            }
        }
        self.counters.captured_blocks += u64::from(count);
        self.destage.write_done();
    }

    pub(super) fn flush_differential(&mut self, turn: &mut Turn<impl Memory>, begun: bool) {
        if begun {
            if self.destage.in_flight() == 0 {
                self.destage.set_step(Step::Commit);
            }
            return;
        }
        let Some(slot) = self.volume_slots.pop() else { return };
        let target = IoTarget::Differential;
        self.destage.write_begun();
        let request = IoRequest { slot, target, op: IoOp::Flush, block: 0, count: 0 };
        self.submit_volume(turn, slot, VolumeIo::Flush { target }, request);
        self.destage.set_step(Step::DifferentialFlush { begun: true });
    }

    // ------------------------------------------------------------------------------------------ commits

    /// Commits what the sweep includes, in as many transactions as its pages need; then the volumes' turn comes.
    pub(super) fn commit_changes(&mut self, turn: &mut Turn<impl Memory>) {
        if self.committing {
            return;
        }
        let target = self.destage.target();
        if !self.has_changes(target) {
            let next = self.marks_are_due();
            self.destage.set_step(next);
            return;
        }
        if self.pages.free() < COMMIT_LEAVES_PAGES + 4 {
            return;
        }
        let Some(slot) = self.metadata_slots.pop() else { return };
        let commit = self.fill_commit(turn, slot, target);
        self.committing = true;
        self.submit_metadata(
            turn,
            slot,
            MetadataIo::Commit(commit),
            MetadataOp::Commit { applied: commit.applied, pages: commit.pages as u32 },
        );
    }

    /// Writes changes in stream order into pages of the row; an update's are never split, so that a commit ends with it.
    fn fill_commit(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId, target: UpdateNumber) -> Commit {
        let answer = self.pages.take().expect("the caller counted");
        turn.tables.metadata_io.set(slot, 0, answer, BlockSum::ZEROS);
        let most = METADATA_PAGES_MAX.min(self.pages.free() - COMMIT_LEAVES_PAGES);
        let mut commit = Commit { applied: UpdateNumber::NONE, captures: 0, changes: 0, pages: 0 };
        // The page being filled and how far.
        let mut filling: Option<(PageId, usize)> = None;
        loop {
            let capture = self.captures.get(commit.captures).filter(|capture| capture.number <= target);
            let change = self.snapshots.pending(commit.changes).filter(|change| change.number <= target);
            let number = match (capture, change) {
                (None, None) => {
                    commit.applied = target;
                    break;
                }
                (Some(capture), Some(change)) => capture.number.min(change.number),
                (Some(capture), None) => capture.number,
                (None, Some(change)) => change.number,
            };
            let left = filling.map_or(0, |(_, used)| CHANGES_PAGE_MAX - used);
            let captured = (commit.captures..)
                .take_while(|&index| self.captures.get(index).is_some_and(|capture| capture.number == number))
                .count();
            // A record takes a page of its own, and what comes after it another.
            let fits = match captured {
                0 => commit.pages + usize::from(left == 0) < most,
                cells => left + (most - commit.pages) * CHANGES_PAGE_MAX >= cells,
            };
            if !fits {
                break;
            }
            commit.applied = number;
            let changes = captured.max(1);
            for _ in 0..changes {
                let (change, record) = if captured > 0 {
                    let capture = self.captures.get(commit.captures).expect("counted");
                    commit.captures += 1;
                    (Change::Captured(entry_of(capture)), None)
                } else {
                    let index = commit.changes;
                    let Pending { snapshot, change, .. } =
                        *self.snapshots.pending(index).expect("looked at it");
                    commit.changes += 1;
                    match change {
                        PendingChange::Created => {
                            (Change::Created(snapshot), Some(self.snapshots.created(index)))
                        }
                        PendingChange::Deleted => (Change::Deleted(snapshot), None),
                        PendingChange::Protection { now, .. } => (Change::Protected(snapshot, now), None),
                    }
                };
                let (page, used) =
                    filling.filter(|(_, used)| *used < CHANGES_PAGE_MAX).unwrap_or_else(|| {
                        commit.pages += 1;
                        (self.pages.take().expect("counted above"), 0)
                    });
                put_change(turn.memory.bytes_mut(page), used, &change);
                turn.tables.metadata_io.set(slot, commit.pages, page, BlockSum::ZEROS);
                filling = Some((page, used + 1));
                if let Some(record) = record {
                    commit.pages += 1;
                    let page = self.pages.take().expect("counted above");
                    encode_snapshots([record].iter(), turn.memory.bytes_mut(page));
                    turn.tables.metadata_io.set(slot, commit.pages, page, BlockSum::ZEROS);
                    filling = None;
                }
            }
        }
        for index in 1..=commit.pages {
            turn.memory.seal(turn.tables.metadata_io.page(slot, index));
        }
        commit
    }

    fn committed(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId, commit: Commit) {
        let answer = turn.tables.metadata_io.page(slot, 0);
        for index in 0..commit.captures {
            let capture = self.captures.pop_front().expect("committed, so it was there");
            let redundant = bit_at(turn.memory.bytes(answer), index as u64);
            self.let_go(turn, &capture);
            if redundant {
                self.slots.give(capture.slot);
            }
        }
        for _ in 0..commit.changes {
            self.reclaim.owed |= self.snapshots.committed();
        }
        for index in 0..=commit.pages {
            self.pages.release(turn.tables.metadata_io.page(slot, index), turn.memory);
        }
        self.applied = commit.applied;
        self.committing = false;
    }

    // ------------------------------------------------------------------------------------------ reclaim

    pub(super) fn owe_reclaim(&mut self) {
        self.reclaim.owed = true;
    }

    pub(super) fn reclaim_in_flight(&self) -> bool {
        self.reclaim.in_flight
    }

    /// Whether slots may come free by it.
    pub(super) fn reclaiming(&self) -> bool {
        self.reclaim.owed || self.reclaim.next.is_some()
    }

    /// Looks for garbage a piece at a time, so that nobody feels it.
    pub(super) fn reclaim_turn(&mut self, turn: &mut Turn<impl Memory>) {
        // Until everything is loaded, nobody knows which slots are in use.
        let loading = self.is_loading();
        if !self.reclaiming()
            || loading
            || self.reclaim.in_flight
            // A slot that is being repaired stays what it is, and so do those that are being copied.
            || self.repairing(turn.now)
            || self.copies_kept()
            || self.stopping
            || self.pages.free() < COMMIT_LEAVES_PAGES
        {
            return;
        }
        let Some(slot) = self.metadata_slots.pop() else { return };
        let from = self.reclaim.next.unwrap_or_else(|| {
            self.reclaim.owed = false;
            (VolumeId(0), Lba(0))
        });
        self.reclaim.next = Some(from);
        self.reclaim.in_flight = true;
        let page = self.pages.take().expect("counted above");
        turn.tables.metadata_io.set(slot, 0, page, BlockSum::ZEROS);
        let (volume, lba) = from;
        self.submit_metadata(turn, slot, MetadataIo::Reclaim, MetadataOp::Reclaim { volume, lba });
    }

    fn reclaimed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        freed: u32,
        next: Option<(VolumeId, Lba)>,
    ) {
        let page = turn.tables.metadata_io.page(slot, 0);
        for index in 0..freed as usize {
            self.slots.give(slot_at(turn.memory.bytes(page), index));
        }
        self.pages.release(page, turn.memory);
        self.counters.reclaimed_blocks += u64::from(freed);
        self.reclaim.in_flight = false;
        self.reclaim.next = next;
    }

    // ------------------------------------------------------------------------------------------ the executor

    pub(super) fn submit_metadata(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        io: MetadataIo,
        op: MetadataOp,
    ) {
        self.metadata_io[slot.0 as usize] = io;
        turn.out.to_metadata.push(MetadataRequest { slot, op });
    }

    pub fn on_metadata(&mut self, turn: &mut Turn<impl Memory>, done: MetadataDone) {
        if self.stopped() {
            return;
        }
        let slot = done.slot;
        let io = std::mem::replace(&mut self.metadata_io[slot.0 as usize], MetadataIo::Free);
        let answer = match done.result {
            Ok(answer) => answer,
            // When nothing is changed, damage leaves what a snapshot keeps in doubt, and nothing else.
            Err(fault) => {
                match (io, fault) {
                    (MetadataIo::LookUp(reader), MetadataFault::Corrupt) => {
                        self.look_up_failed(turn, slot, reader);
                    }
                    (MetadataIo::Lend, MetadataFault::Corrupt) => self.cannot_lend(turn, slot),
                    (MetadataIo::CopyTables { to, row, .. }, MetadataFault::Corrupt) => {
                        self.cannot_copy_tables(turn, to, row);
                    }
                    (MetadataIo::Check, fault) | (MetadataIo::Entries, fault @ MetadataFault::Corrupt) => {
                        self.tables_not_scrubbed(turn, slot, fault);
                    }
                    _ => {
                        turn.event(Event::MetadataFailed { fault });
                        return self.fail(turn);
                    }
                }
                return self.metadata_slots.push(slot);
            }
        };
        match (io, answer) {
            (MetadataIo::Load, answer) => self.metadata_loaded(turn, slot, answer),
            (MetadataIo::Commit(commit), MetadataAnswer::Committed) => self.committed(turn, slot, commit),
            (MetadataIo::Reclaim, MetadataAnswer::Reclaimed { freed, next }) => {
                self.reclaimed(turn, slot, freed, next);
            }
            (MetadataIo::LookUp(reader), MetadataAnswer::Found | MetadataAnswer::Bits) => {
                self.looked_up(turn, slot, reader);
            }
            (MetadataIo::Lend, MetadataAnswer::Lent) => self.lent(turn, slot),
            (MetadataIo::SaveMarks { pages }, MetadataAnswer::Saved) => self.marks_saved(turn, slot, pages),
            (MetadataIo::DropMarks, MetadataAnswer::Saved) => self.marks_dropped(turn, slot),
            (MetadataIo::CopyTables { to, row, page, moves }, MetadataAnswer::Lent) => {
                self.tables_read(turn, to, row, page, moves);
            }
            (MetadataIo::TakeTables, MetadataAnswer::Taken) => self.tables_taken(turn, slot),
            (MetadataIo::Check, MetadataAnswer::Checked { entries }) => {
                self.tables_scrubbed(turn, slot, entries)
            }
            (MetadataIo::Entries, MetadataAnswer::Entries { count, next }) => {
                self.entries_scrubbed(turn, slot, count, next);
            }
            (io, answer) => panic!("the metadata executor answered {io:?} with {answer:?}"),
        }
        self.metadata_slots.push(slot);
    }
}

fn entry_of(capture: &Capture) -> Captured {
    let Capture { volume, lba, snapshot, slot, sum, .. } = *capture;
    Captured { volume, lba, snapshot, slot, sum }
}

/// A commit's answer has a bit for each capture.
const _: () = assert!((METADATA_PAGES_MAX * CHANGES_PAGE_MAX) as u64 <= BITS_PAGE_MAX);
