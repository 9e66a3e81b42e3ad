//! Destage: settled blocks go to their volumes in sweeps over the address space, so that neighbours become one write and
//! a block written often is written once. A sweep's order is volume blocks, their checksums, flush, superblock, flush; then the
//! checkpoint is what was settled when the sweep began, and the journal before it is free.

use super::status::DestageState;
use super::storage::VolumeIo;
use super::targets::Target;
use super::{Alone, Group, RESERVED_PAGES, Turn, third_pages};
use crate::base::*;
use crate::core::cache::Value;
use crate::core::captures::Source;
use crate::core::config::{AckLevel, Role};
use crate::core::journal::Journal;
use crate::core::messages::*;
use crate::core::outbox::Event;
use crate::format::superblock::{JournalPosition, Left, SUPERBLOCK_SLOTS, Superblock};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Idle,
    /// Old blocks go to the differential volume: the next capture to write, and the next to look at whether its block is
    /// to be read from the volume first.
    Captures {
        next: usize,
        read: usize,
    },
    DifferentialFlush {
        begun: bool,
    },
    /// The management information is brought up to the target.
    Commit,
    /// What the peer lacks of all that the checkpoint is to cover becomes durable.
    Marks,
    /// The next place to look for a dirty block.
    Sweep {
        volume: u16,
        lba: u64,
    },
    /// Every block of the sweep is submitted; the next checksum block to write.
    Sums {
        volume: u16,
        block: u64,
    },
    /// Volumes and checksum files are being flushed, beginning with this volume.
    Flush {
        volume: u16,
    },
    Superblock(Ending),
    SuperblockFlush(Ending),
}

/// The superblock on its way: its I/O slot, its page, where it lets replay begin, and up to where nobody but a third needs the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    slot: SlotId,
    page: PageId,
    position: JournalPosition,
    floor: UpdateNumber,
}

#[derive(Debug)]
pub(super) struct Destage {
    step: Step,
    /// What was settled when the sweep began: the checkpoint at its end.
    target: UpdateNumber,
    in_flight: usize,
    /// The pressure at which the next sweep begins.
    begins_percent: u64,
    /// What the sweep is paced by: the pressure, the captures and the dirty blocks when it began, and the blocks written since.
    began_percent: u64,
    began_captures: u64,
    began_dirty: u64,
    swept: u64,
    /// The block numbers each destage write carries, by slot.
    numbers: Box<[[UpdateNumber; VOLUME_IO_BLOCKS_MAX]]>,
    /// When the oldest and the newest of what no sweep has begun with became dirty.
    dirty_since: Option<Nanos>,
    dirtied_at: Nanos,
    /// When the oldest of what the sweep under way brings to the volumes became dirty.
    sweeps_from: Option<Nanos>,
    superblock_sequence: u64,
    /// The one found at start.
    found_sequence: u64,
    /// Whether replay begins later since the last superblock: there is ring space to gain without any block to write.
    retention_moved: bool,
    /// As of the last superblock, nobody but a third needs what the journal has up to here.
    floor: UpdateNumber,
    /// The superblock is written for the journal's sake, or for what it says of volumes, and the checkpoint stays.
    trims: bool,
    /// Somebody waits for a superblock, though there may be no block to write.
    owed: bool,
    /// Sweeps that have ended in this life: superblocks that left the checkpoint where it was are none.
    sweeps: u64,
    /// Writes to checksum files so far.
    sums_writes: u64,
}

/// Nothing was written for this long: the disks are free, and an idle group is soon clean.
const IDLE_SWEEP_AFTER: Nanos = Nanos::from_millis(1_000);

/// A dirty block waits this long at most for company when nothing else asks for a sweep.
const DIRTY_MAX: Nanos = Nanos::from_millis(30_000);

/// Sweeps are to end before this share of journal or cache is in use, in percent, so that admission never waits for one.
const SWEEP_ENDS_PERCENT: u64 = 85;

/// They begin as late as the last one allows, since blocks written twice meanwhile are destaged once and the others have
/// more neighbours; but not so late that a load which sets in suddenly would find no room.
const SWEEP_BEGINS_PERCENT: std::ops::RangeInclusive<u64> = 50..=65;

/// A sweep that is on time submits its writes together with the journal's, whose next batch it awaits for this long: one
/// call and one notice to the disk serve both.
const COMPANY_MAX: Nanos = Nanos::from_micros(200);

/// Writes in flight of a sweep that is on time. Every one more makes the journal's writes wait longer in the disk's queue.
const PACED_DEPTH: u64 = 1;

/// Clean blocks between two dirty ones that are written again with them. An I/O of its own for the second costs the disk as much as six
/// blocks more in one that it has begun (5.5 µs against 0.85 µs a block where this was measured), and the reactor, the interrupt and
/// whoever waits for the journal as much again twice over.
const BRIDGE_BLOCKS_MAX: u64 = 16;

impl Destage {
    pub fn new() -> Destage {
        Destage {
            step: Step::Idle,
            target: UpdateNumber::NONE,
            in_flight: 0,
            begins_percent: *SWEEP_BEGINS_PERCENT.start(),
            began_percent: 0,
            began_captures: 0,
            began_dirty: 0,
            swept: 0,
            numbers: vec![[UpdateNumber::NONE; VOLUME_IO_BLOCKS_MAX]; VOLUME_IO_SLOTS].into_boxed_slice(),
            dirty_since: None,
            dirtied_at: Nanos(0),
            sweeps_from: None,
            superblock_sequence: 0,
            found_sequence: 0,
            retention_moved: false,
            floor: UpdateNumber::NONE,
            trims: false,
            owed: false,
            sweeps: 0,
            sums_writes: 0,
        }
    }

    pub fn note_dirty(&mut self, now: Nanos) {
        self.dirty_since.get_or_insert(now);
        self.dirtied_at = now;
    }

    /// When a sweep is due although neither journal nor cache asks for one.
    fn sweep_at(&self) -> Option<Nanos> {
        let since = self.dirty_since?;
        Some(since.plus(DIRTY_MAX).min(self.dirtied_at.plus(IDLE_SWEEP_AFTER)))
    }

    /// Since when something settled has not been in the volumes.
    pub fn dirty_since(&self) -> Option<Nanos> {
        self.sweeps_from.or(self.dirty_since)
    }

    pub fn set_step(&mut self, step: Step) {
        self.step = step;
    }

    pub fn state(&self) -> DestageState {
        match self.step {
            Step::Idle => DestageState::Idle,
            Step::Captures { .. } | Step::DifferentialFlush { .. } => DestageState::Keeping,
            Step::Commit | Step::Marks => DestageState::Committing,
            Step::Sweep { .. } => DestageState::Sweeping,
            Step::Sums { .. } | Step::Flush { .. } | Step::Superblock(_) | Step::SuperblockFlush(_) => {
                DestageState::Checkpointing
            }
        }
    }

    pub fn target(&self) -> UpdateNumber {
        self.target
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub fn write_begun(&mut self) {
        self.in_flight += 1;
    }

    pub fn write_done(&mut self) {
        self.in_flight -= 1;
    }

    pub fn is_superblock(&self, slot: SlotId) -> bool {
        matches!(self.step, Step::Superblock(e) | Step::SuperblockFlush(e) if e.slot == slot)
    }

    /// Whether checksum files may be being written.
    pub fn writes_sums(&self) -> bool {
        matches!(self.step, Step::Sums { .. })
    }

    pub fn sums_writes(&self) -> u64 {
        self.sums_writes
    }

    pub fn retention_moved(&self) -> bool {
        self.retention_moved
    }

    /// Sweeps that have ended.
    pub fn sweeps(&self) -> u64 {
        self.sweeps
    }

    /// How many have ended once one has that is yet to begin: one that is under way may have gone by what somebody waits for.
    pub fn next_sweep(&self) -> u64 {
        let to_begin = self.step == Step::Idle || self.trims;
        self.sweeps + if to_begin { 1 } else { 2 }
    }

    /// A sweep is to begin, whether there is anything for it or not.
    pub fn owe_checkpoint(&mut self) {
        self.owed = true;
    }

    /// Of the last superblock.
    pub fn sequence(&self) -> u64 {
        self.superblock_sequence
    }

    /// A sweep to `target` that has all its blocks in the volumes already.
    pub fn end_at(&mut self, target: UpdateNumber, step: Step) {
        assert!(self.step == Step::Idle, "one sweep at a time");
        (self.target, self.step) = (target, step);
    }

    /// The superblock found at start; the next one goes to the other slot.
    pub fn recovered(&mut self, sequence: u64) {
        (self.superblock_sequence, self.found_sequence) = (sequence, sequence);
    }

    /// As of the last superblock, nobody but a third needs what the journal has up to here.
    pub fn floor(&self) -> UpdateNumber {
        self.floor
    }

    /// Whether this life has written a superblock, or is writing its first.
    pub fn has_written(&self) -> bool {
        self.superblock_sequence > self.found_sequence
    }
}

impl Group {
    pub(super) fn destage_idle(&self) -> bool {
        self.destage.step == Step::Idle
    }

    pub(super) fn destage_deadline(&self) -> Option<Nanos> {
        match self.destage.step {
            Step::Idle if self.checkpoint < self.settled && !self.mending.writes() => self.destage.sweep_at(),
            Step::Sweep { .. } if self.destage.in_flight == 0 => Some(self.batched_at.plus(COMPANY_MAX)),
            _ => None,
        }
    }

    /// How full the fuller of journal, cache pages and index is, in percent of what updates may use. What the journal keeps for a third alone
    /// does not count: it is let go of without a sweep, and a third that is behind is to hurry none.
    fn pressure_percent(&self) -> u64 {
        let used = match self.feed {
            Some(_) => self.journal.used_after(self.needed_by_others()),
            None => self.journal.used_blocks(),
        };
        let journal = used * 100 / Journal::usable_blocks(self.journal.ring_blocks());
        let usable = (self.pages.total() - RESERVED_PAGES - third_pages(&self.config)) as u64;
        let dirty = (self.held_pages() + self.staged_pages()) * 100 / usable;
        let entries =
            (self.cache.dirty_blocks() + self.window.len() as u64) * 100 / self.cache.capacity() as u64;
        let captures = self.captures.len() as u64 * 100 / self.captures.capacity() as u64;
        journal.max(dirty).max(entries).max(captures)
    }

    /// Volume writes that may be in flight now: few as long as the sweep gets on faster than journal and cache fill, one more
    /// for every percent it is behind.
    pub(super) fn destage_depth(&self, now: Nanos) -> usize {
        let max = self.config.destage_depth_max.clamp(1, VOLUME_IO_SLOTS / 2);
        let nobody_waits = self.ops_live == 0 && now.since(self.destage.dirtied_at) >= IDLE_SWEEP_AFTER;
        let copy_ends = self.resyncs[Target::Peer].is_held();
        let extends = self.extending.is_superblock_due();
        if self.config.ack == AckLevel::Applied || self.stopping || nobody_waits || copy_ends || extends {
            return max;
        }
        let filled = self.pressure_percent().saturating_sub(self.destage.began_percent);
        let span = SWEEP_ENDS_PERCENT.saturating_sub(self.destage.began_percent).max(1);
        let behind = (filled * 100 / span).saturating_sub(self.swept_percent());
        ((PACED_DEPTH + behind) as usize).min(max)
    }

    /// How far the sweep is, in blocks to keep and blocks to write. Of the second by address or by what was dirty when it
    /// began, whichever is less: new dirt makes the second run ahead, dirt that lies at the end the first.
    fn swept_percent(&self) -> u64 {
        let Destage { began_captures: captures, began_dirty, swept, .. } = self.destage;
        let dirty = began_dirty.max(1);
        let done = match self.destage.step {
            Step::Captures { next, .. } => next as u64,
            Step::DifferentialFlush { .. } | Step::Commit | Step::Marks => captures,
            Step::Sweep { volume, lba } => {
                let (before, from) = self.config.volumes.split_at(volume as usize);
                let before: u64 = before.iter().map(|volume| volume.blocks).sum();
                let total = before + from.iter().map(|volume| volume.blocks).sum::<u64>();
                captures + (dirty * (before + lba) / total).min(swept)
            }
            _ => captures + dirty,
        };
        done * 100 / (captures + dirty)
    }

    fn sweep_due(&self, now: Nanos) -> bool {
        if self.destage.owed {
            return true;
        }
        if self.checkpoint >= self.settled {
            return self.destage.retention_moved && self.pressure_percent() >= self.destage.begins_percent;
        }
        let old = self.destage.sweep_at().is_some_and(|at| now >= at);
        old || self.stopping
            || self.sweep_wanted
            || self.config.ack == AckLevel::Applied
            || self.pressure_percent() >= self.destage.begins_percent
    }

    /// Somebody is to see what is settled in the checkpoint.
    pub fn want_sweep(&mut self) {
        self.sweep_wanted = true;
    }

    /// The peer's position moved: the journal's tail may follow at the next checkpoint.
    pub(super) fn note_retention(&mut self) {
        self.destage.retention_moved = true;
    }

    pub(super) fn destage_turn(&mut self, turn: &mut Turn<impl Memory>) {
        let may_begin =
            self.destage.step == Step::Idle && !self.staging.installing() && !self.mending.writes();
        // With `applied` one sweep follows another, hosts wait for them, and each lets go of what is kept for too long.
        let trims = may_begin
            && (self.extending.is_superblock_due()
                || (self.config.ack != AckLevel::Applied && self.keeps_too_much(self.needed_by_others())));
        if trims {
            let volume = self.config.volumes.len() as u16;
            (self.destage.target, self.destage.trims) = (self.checkpoint, true);
            self.destage.step = Step::Flush { volume };
        } else if may_begin && self.sweep_due(turn.now) {
            self.destage.target = self.settled;
            self.destage.began_percent = self.pressure_percent();
            self.destage.began_captures = self.captures_through(self.settled);
            self.destage.began_dirty = self.cache.dirty_blocks();
            self.destage.swept = 0;
            self.destage.sweeps_from = self.destage.dirty_since.take();
            self.destage.retention_moved = false;
            self.destage.owed = false;
            self.destage.step = match self.has_changes(self.settled) {
                true => Step::Captures { next: 0, read: 0 },
                false => self.marks_are_due(),
            };
            self.sweep_wanted = false;
        }
        if let Step::Captures { next, read } = self.destage.step {
            self.copy_captures(turn, next, read);
        }
        if let Step::DifferentialFlush { begun } = self.destage.step {
            self.flush_differential(turn, begun);
        }
        if self.destage.step == Step::Commit {
            self.commit_changes(turn);
        }
        if self.destage.step == Step::Marks && self.save_changes(turn) {
            self.destage.step = Step::Sweep { volume: 0, lba: 0 };
        }
        if let Step::Sweep { .. } = self.destage.step {
            self.sweep(turn);
        }
        if let Step::Sums { .. } = self.destage.step {
            self.write_sums(turn);
        }
        if let Step::Flush { .. } = self.destage.step {
            self.flush_volumes(turn);
        }
    }

    fn sweep(&mut self, turn: &mut Turn<impl Memory>) {
        let depth = self.destage_depth(turn.now);
        let Step::Sweep { mut volume, mut lba } = self.destage.step else { return };
        let on_time = depth <= PACED_DEPTH as usize;
        if on_time && self.batched_at < turn.now && turn.now < self.batched_at.plus(COMPANY_MAX) {
            return;
        }
        while self.destage.in_flight < depth && !self.volume_slots.is_empty() {
            if volume as usize == self.config.volumes.len() {
                // The checksums are of what has been written, so the writes come first.
                if self.destage.in_flight == 0 {
                    self.destage.step = Step::Sums { volume: 0, block: 0 };
                    return;
                }
                break;
            }
            let Some(first) = self.cache.next_dirty(VolumeId(volume), Lba(lba)) else {
                (volume, lba) = (volume + 1, 0);
                continue;
            };
            lba = self.destage_run(turn, VolumeId(volume), first);
        }
        self.destage.step = Step::Sweep { volume, lba };
    }

    /// Writes the run of dirty blocks that begins at `first`, across short gaps of clean ones; returns where to look next.
    fn destage_run(&mut self, turn: &mut Turn<impl Memory>, volume: VolumeId, first: Lba) -> u64 {
        let slot = self.volume_slots.pop().expect("the caller left slots");
        let blocks = self.config.volumes[volume.0 as usize].blocks;
        let end = blocks.min(first.0 + VOLUME_IO_BLOCKS_MAX as u64);
        let mut lba = first;
        while lba.0 < end {
            let value = self.cache.destage_begin(volume, lba, &mut self.pages);
            if let Some(value) = value.and_then(|value| self.before_captures(turn, volume, lba, value)) {
                self.destage_block(turn, slot, (lba.0 - first.0) as usize, value);
                self.counters.destage_blocks += 1;
                self.destage.swept += 1;
                lba = lba.plus(1);
                continue;
            }
            let Some(dirty) = self.bridge_to(volume, lba, end) else { break };
            while lba < dirty {
                let value = self.cache.bridge_begin(volume, lba, &mut self.pages);
                self.destage_block(turn, slot, (lba.0 - first.0) as usize, value);
                self.counters.bridged_blocks += 1;
                lba = lba.plus(1);
            }
        }
        let count = (lba.0 - first.0) as u32;
        if count == 0 {
            // Another write of this block is in flight; the version it lacks is for the next sweep.
            self.volume_slots.push(slot);
            return first.0 + 1;
        }
        self.destage.in_flight += 1;
        self.counters.destage_writes += 1;
        let request =
            IoRequest { slot, target: IoTarget::Volume(volume), op: IoOp::Write, block: first.0, count };
        self.submit_volume(turn, slot, VolumeIo::Destage { volume, lba: first, count }, request);
        first.0 + u64::from(count)
    }

    /// Puts a block into the write being put together in `slot`.
    fn destage_block(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId, index: usize, value: Value) {
        assert!(value.number <= self.settled, "destaging {} beyond settled {}", value.number, self.settled);
        turn.tables.volume_io.set(slot, index, value.page, value.sum);
        self.destage.numbers[slot.0 as usize][index] = value.number;
    }

    /// The next dirty block before `end`, if the clean ones from `from` on to it are few and in the cache.
    fn bridge_to(&self, volume: VolumeId, from: Lba, end: u64) -> Option<Lba> {
        let dirty = self.cache.next_dirty(volume, from).filter(|dirty| dirty.0 < end)?;
        let gap = dirty.0 - from.0;
        let short = gap > 0 && gap <= BRIDGE_BLOCKS_MAX;
        (short && (0..gap).all(|index| self.cache.may_bridge(volume, from.plus(index)))).then_some(dirty)
    }

    /// What may go to the volume where `value` is due: if it is newer than the sweep's target and something it overwrote is not
    /// durable for a snapshot yet, what it overwrote first (INV-3), or nothing if the volume has that.
    fn before_captures(
        &mut self,
        turn: &mut Turn<impl Memory>,
        volume: VolumeId,
        lba: Lba,
        value: Value,
    ) -> Option<Value> {
        if self.captures.is_empty() {
            return Some(value);
        }
        let Some(&capture) = self.capture_before(volume, lba, value.number) else { return Some(value) };
        assert!(
            capture.number > self.destage.target,
            "INV-3: the capture of {} is not durable, and {} is next",
            capture.number,
            value.number
        );
        match capture.source {
            Source::Page(page) => {
                self.pages.share(page);
                self.pages.release(value.page, turn.memory);
                Some(Value { page, sum: capture.sum, number: capture.given_by })
            }
            Source::Volume | Source::Read(_) => {
                self.cache.destage_cancel(volume, lba, value, &mut self.pages, turn.memory);
                None
            }
        }
    }

    /// A destage write is complete: the local write pending indicators of its blocks are reset, unless newer data came.
    pub(super) fn destaged(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        volume: VolumeId,
        lba: Lba,
        count: u32,
    ) {
        for index in 0..count as usize {
            let value = Value {
                page: turn.tables.volume_io.page(slot, index),
                sum: turn.tables.volume_io.sum(slot, index),
                number: self.destage.numbers[slot.0 as usize][index],
            };
            let block = lba.plus(index as u64);
            self.sums[volume.0 as usize].set(block, value.sum);
            self.cache.destage_end(volume, block, value, &mut self.pages, turn.memory);
        }
        self.destage.write_done();
    }

    fn write_sums(&mut self, turn: &mut Turn<impl Memory>) {
        let depth = self.destage_depth(turn.now);
        let Step::Sums { mut volume, mut block } = self.destage.step else { return };
        while self.destage.in_flight < depth {
            if volume as usize == self.config.volumes.len() {
                if self.destage.in_flight == 0 {
                    self.destage.step = Step::Flush { volume: 0 };
                    return;
                }
                break;
            }
            if self.volume_slots.is_empty() || self.pages.free() == 0 {
                break;
            }
            let Some(changed) = self.sums[volume as usize].take_changed(block) else {
                (volume, block) = (volume + 1, 0);
                continue;
            };
            block = self.write_sums_run(turn, VolumeId(volume), changed);
        }
        self.destage.step = Step::Sums { volume, block };
    }

    /// Writes the checksum block `first`, which is taken, and the changed ones right behind it; returns where to look next.
    fn write_sums_run(&mut self, turn: &mut Turn<impl Memory>, volume: VolumeId, first: u64) -> u64 {
        let slot = self.volume_slots.pop().expect("the caller left a slot");
        let sums = &mut self.sums[volume.0 as usize];
        let mut count = 0;
        loop {
            let page = self.pages.take().expect("the caller left a page, and the loop looks");
            let block = first + count as u64;
            sums.store(block, turn.memory.bytes_mut(page));
            turn.memory.seal(page);
            turn.tables.volume_io.set(slot, count, page, BlockSum::ZEROS);
            count += 1;
            let more = count < VOLUME_IO_BLOCKS_MAX && self.pages.free() > 0;
            if !more || !sums.take_if_changed(first + count as u64) {
                break;
            }
        }
        self.destage.in_flight += 1;
        self.destage.sums_writes += 1;
        let count = count as u32;
        let target = IoTarget::Checksums(volume);
        let request = IoRequest { slot, target, op: IoOp::Write, block: first, count };
        self.submit_volume(turn, slot, VolumeIo::SumsWrite { volume, count }, request);
        first + u64::from(count)
    }

    fn flush_volumes(&mut self, turn: &mut Turn<impl Memory>) {
        let Step::Flush { mut volume } = self.destage.step else { return };
        while (volume as usize) < self.config.volumes.len() && self.volume_slots.len() >= 2 {
            for target in [IoTarget::Volume(VolumeId(volume)), IoTarget::Checksums(VolumeId(volume))] {
                let slot = self.volume_slots.pop().expect("checked above");
                self.destage.in_flight += 1;
                let request = IoRequest { slot, target, op: IoOp::Flush, block: 0, count: 0 };
                self.submit_volume(turn, slot, VolumeIo::Flush { target }, request);
            }
            volume += 1;
        }
        self.destage.step = Step::Flush { volume };
        if volume as usize == self.config.volumes.len() && self.destage.in_flight == 0 {
            self.write_superblock(turn);
        }
    }

    fn write_superblock(&mut self, turn: &mut Turn<impl Memory>) {
        if self.pages.free() == 0 || !self.journal.has_slot() {
            return;
        }
        let slot = self.journal.take_slot().expect("checked above");
        let page = self.pages.take().expect("checked above");
        let floor = match self.destage.trims {
            true => self.needed_by_others(),
            false => self.retention_floor(turn).min(self.destage.target),
        };
        let held = self.held_for_third(turn, floor);
        let held = self.held_for_former_sources(held);
        let position = self.journal.position_after(held);
        self.destage.superblock_sequence += 1;
        let sizes = self.extending.write();
        let superblock = Superblock { sizes, ..self.superblock(position) };
        self.heir = superblock.heir;
        superblock.encode(turn.memory.bytes_mut(page));
        turn.memory.seal(page);
        turn.tables.journal_io.set(slot, 0, page, BlockSum::ZEROS);
        let block = self.destage.superblock_sequence % SUPERBLOCK_SLOTS;
        self.destage.step = Step::Superblock(Ending { slot, page, position, floor });
        turn.out.to_journal.push(IoRequest {
            slot,
            target: IoTarget::Journal,
            op: IoOp::Write,
            block,
            count: 1,
        });
    }

    /// The oldest update that the journal has for the peer, whatever the superblock on its way lets go of.
    pub(super) fn oldest_kept(&self) -> UpdateNumber {
        let oldest = match self.destage.step {
            Step::Superblock(ending) | Step::SuperblockFlush(ending) => {
                self.journal.oldest_from(ending.position)
            }
            _ => self.journal.oldest(),
        };
        // Of an empty journal: what is numbered, and not in a batch yet, is still to come.
        oldest.unwrap_or(self.journal.appended().next())
    }

    pub(super) fn superblock(&self, position: JournalPosition) -> Superblock {
        let (found_settled, found_solo) = self.found_in_journal();
        // A generation whose opening is not durable may turn out never to have been opened.
        let mut history = self.history;
        history.truncate_after(self.journal.durable());
        let at_checkpoint = history.iter().rev().find(|(_, first)| *first <= self.destage.target);
        // As long as a crash may undo what followed the end of a generation, that end is what this site knows. Of another's end it would take
        // over on nobody's word, so that is not said once it follows somebody who has gone on since.
        let (newest, begun) = history.last().unwrap_or((Generation::NONE, UpdateNumber::NONE));
        let gone_on = self.leaving.led_by() > newest;
        let ended = self.ended.filter(|(at, left)| {
            let stands = *at == self.destage.target && begun <= *at;
            stands && (!gone_on || matches!(left, Left::GaveWay(_)))
        });
        let role = self.durable_role();
        let alone = self.alone == Alone::Yes || found_solo || self.solo_ended > self.journal.durable();
        let mut superblock = Superblock {
            group: self.config.group,
            site: self.config.site,
            sequence: self.destage.superblock_sequence,
            journal_blocks: self.config.journal_blocks,
            checkpoint: self.destage.target,
            checkpoint_generation: at_checkpoint.map_or(Generation::NONE, |(generation, _)| generation),
            position,
            known_durable: self.journal.durable(),
            settled: self.settled.max(found_settled),
            // It is alone until the end of that is durable. Who is no primary by its disk is not alone by it.
            solo: role == Role::Primary && alone,
            role,
            left: ended.map(|(_, left)| left),
            heir: self.heir_of(&history),
            history,
            volumes: [0; VOLUMES_MAX],
            volume_count: self.config.volumes.len(),
            sizes: *self.extending.in_force(),
        };
        for (index, volume) in self.config.volumes.iter().enumerate() {
            superblock.volumes[index] = volume.blocks;
        }
        superblock
    }

    /// The journal keeps what a peer may still have to be sent.
    fn retention_floor(&mut self, turn: &mut Turn<impl Memory>) -> UpdateNumber {
        match self.role {
            Role::Primary if self.config.peer.is_some() => self.held_for_peer(turn),
            _ => UpdateNumber(u64::MAX),
        }
    }

    pub(super) fn superblock_done(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId) {
        match self.destage.step {
            Step::Superblock(ending) => {
                self.destage.step = Step::SuperblockFlush(ending);
                turn.out.to_journal.push(IoRequest {
                    slot,
                    target: IoTarget::Journal,
                    op: IoOp::Flush,
                    block: 0,
                    count: 0,
                });
            }
            Step::SuperblockFlush(Ending { page, position, floor, .. }) => {
                self.journal.return_slot(slot);
                self.pages.release(page, turn.memory);
                self.destage.step = Step::Idle;
                self.note_shown(turn);
                if std::mem::take(&mut self.destage.trims) {
                    return self.journal.release_before(position);
                }
                self.destage.sweeps_from = None;
                self.destage.sweeps += 1;
                let grew = self.pressure_percent().saturating_sub(self.destage.began_percent);
                self.destage.begins_percent = SWEEP_ENDS_PERCENT
                    .saturating_sub(grew)
                    .clamp(*SWEEP_BEGINS_PERCENT.start(), *SWEEP_BEGINS_PERCENT.end());
                self.journal.release_before(position);
                (self.checkpoint, self.destage.floor) = (self.destage.target, floor);
                turn.event(Event::Checkpointed { number: self.checkpoint });
            }
            _ => unreachable!("is_superblock matched"),
        }
    }
}
