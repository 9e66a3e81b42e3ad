//! Replay: superblock, checksums, the journal's chain, and then its updates after the checkpoint, through the same window
//! and cache as live ones, so that destage makes room while it goes.

use super::capture::Room;
use super::catch_up::{Found, ReadFor};
use super::differential::MetadataIo;
use super::install::Install;
use super::promoted::Recovered;
use super::storage::VolumeIo;
use super::{Alone, Group, Phase, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::journal::doubtful_blocks;
use crate::core::messages::*;
use crate::core::outbox::{Event, WriteStamps};
use crate::core::sums::Sums;
use crate::format::journal::{claims_of, decode_batch, digest_of, payload_is_whole};
use crate::format::metadata::{BITS_PAGE_MAX, bit_at};
use crate::format::snapshot::{SNAPSHOTS_PAGE_MAX, SnapshotRecord, decode_snapshots};
use crate::format::superblock::{Left, RING_FIRST_BLOCK, Superblock, newest_of};
use crate::format::update::{Update, UpdateKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Superblock {
        slot: SlotId,
    },
    /// The staging file's mark.
    StagingMark,
    /// The next checksum block to load, and the loads in flight.
    Sums {
        volume: usize,
        block: u64,
        in_flight: usize,
    },
    /// Reading from the management information.
    Metadata(Load),
    /// Reading at `block` what may be the next batches; `wrapped` if the ring's start is being tried in place of the head.
    Scan {
        slot: SlotId,
        block: u64,
        count: u32,
        wrapped: bool,
    },
    /// The chain has ended; looking for a later batch that proves it should not have.
    RotScan {
        slot: SlotId,
        block: u64,
        count: u32,
        left: u64,
    },
    Flush,
    /// The mark that was read may have been written by a process that died before it was flushed: volumes are only touched under one
    /// that no power failure takes back.
    MarkFlush,
    /// What was staged comes to the volumes.
    Install,
    Ingest {
        next: UpdateNumber,
    },
}

/// What is read next: snapshots from the nth on, blocks that are captured already, slots that are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    Marks { volume: VolumeId, chunk: u64 },
    Snapshots { first: u32 },
    Captured { volume: u16, first: u64 },
    Slots { first: u64 },
}

#[derive(Debug)]
pub(super) struct Recovery {
    step: Step,
    superblock_settled: UpdateNumber,
    known_durable: UpdateNumber,
    /// What of that the superblock knows.
    superblock_durable: UpdateNumber,
    checkpoint: UpdateNumber,
    /// The generation of the last update seen in the chain.
    scanned: Generation,
    /// The highest number seen in the chain, cut or not.
    seen: UpdateNumber,
    /// The highest sequence of a batch behind the chain's end.
    left_behind: u64,
    settled_bound: UpdateNumber,
    solo: bool,
    /// The last `SoloEnd`: what is before it may have been acknowledged alone.
    solo_ended: UpdateNumber,
    /// This site has given way: what it has, it has alone.
    gave_way: bool,
    /// What its disk says that this site is while it is not primary.
    follower: Role,
    replayed: u64,
    pub descriptors: Box<[Update; BATCH_DESCRIPTORS_MAX]>,
    /// What is to be installed before anything else; and whether that is over.
    pub install: Option<Box<Install>>,
    pub installed: bool,
}

/// Updates replayed in a turn: more than of live ones, since no host waits for the turn's end.
const REPLAYED_A_TURN_MAX: usize = 64;

/// Sequences from here on are no site's, but of a header that a host forged: they would run out.
const SEQUENCE_MAX: u64 = 1 << 63;

/// Checksum reads in flight at start.
const SUMS_READS: usize = 8;

impl Recovery {
    pub fn new() -> Recovery {
        Recovery {
            step: Step::Flush,
            superblock_settled: UpdateNumber::NONE,
            known_durable: UpdateNumber::NONE,
            superblock_durable: UpdateNumber::NONE,
            checkpoint: UpdateNumber::NONE,
            scanned: Generation::NONE,
            seen: UpdateNumber::NONE,
            left_behind: 0,
            settled_bound: UpdateNumber::NONE,
            solo: false,
            solo_ended: UpdateNumber::NONE,
            gave_way: false,
            follower: Role::Secondary,
            replayed: 0,
            descriptors: Box::new([Update::EMPTY; BATCH_DESCRIPTORS_MAX]),
            install: None,
            installed: false,
        }
    }
}

impl Recovery {
    /// The volumes are brought to `upto` by what was staged: whatever else was found does not count.
    pub fn installs(&mut self, upto: UpdateNumber) {
        (self.checkpoint, self.superblock_settled, self.settled_bound) = (upto, upto, upto);
        (self.solo, self.solo_ended) = (false, UpdateNumber::NONE);
    }

    pub fn is_replaying(&self) -> bool {
        matches!(self.step, Step::Ingest { .. })
    }
}

impl Group {
    pub(super) fn recovery(&mut self) -> &mut Recovery {
        let Phase::Recovering(recovery) = &mut self.phase else { panic!("not recovering") };
        recovery
    }

    /// Whether what the disks hold is still being read: replay has not begun.
    pub(super) fn is_loading(&self) -> bool {
        matches!(&self.phase, Phase::Recovering(recovery) if !recovery.is_replaying())
    }

    /// While replay is under way: what the journal said was settled, and whether this site was alone. Superblocks written
    /// meanwhile must not know less than the ones before.
    pub(super) fn found_in_journal(&self) -> (UpdateNumber, bool) {
        match &self.phase {
            Phase::Recovering(recovery) => (recovery.settled_bound, recovery.solo),
            _ => (UpdateNumber::NONE, false),
        }
    }

    pub(super) fn recovery_start(&mut self, turn: &mut Turn<impl Memory>) {
        let slot = self.recovery_read(turn, IoTarget::Journal, 0, 2);
        self.recovery().step = Step::Superblock { slot };
    }

    /// Whether what is being read is staged.
    pub(super) fn reads_staging(&self) -> bool {
        matches!(&self.phase, Phase::Recovering(recovery) if matches!(recovery.step, Step::StagingMark | Step::MarkFlush | Step::Install))
    }

    pub(super) fn recovery_read(
        &mut self,
        turn: &mut Turn<impl Memory>,
        target: IoTarget,
        block: u64,
        count: u32,
    ) -> SlotId {
        let slot = self.journal.take_slot().expect("recovery reads alone");
        for index in 0..count as usize {
            let page = self.pages.take().expect("pages are reserved for recovery's reads");
            turn.tables.journal_io.set(slot, index, page, BlockSum::ZEROS);
        }
        turn.out.to_journal.push(IoRequest { slot, target, op: IoOp::Read, block, count });
        slot
    }

    pub(super) fn recovery_release(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId, count: u32) {
        for index in 0..count as usize {
            self.pages.release(turn.tables.journal_io.page(slot, index), turn.memory);
        }
        self.journal.return_slot(slot);
    }

    pub(super) fn recovery_journal_done(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId) {
        let Phase::Recovering(recovery) = &self.phase else {
            panic!("completion of journal I/O {slot:?}, which is not in flight")
        };
        match recovery.step {
            Step::Superblock { .. } => self.superblock_read(turn, slot),
            Step::StagingMark => {
                let mark = *turn.memory.bytes(turn.tables.journal_io.page(slot, 0));
                self.recovery_release(turn, slot, 1);
                self.recovery().install = self.staging_mark_read(&mark);
                self.note_empty_mark(&mark);
                self.recovery().step = Step::Sums { volume: 0, block: 0, in_flight: 0 };
            }
            Step::MarkFlush => {
                self.journal.return_slot(slot);
                self.recovery().step = Step::Install;
            }
            Step::Install => self.log_read(turn, slot),
            Step::Scan { block, count, wrapped, .. } => self.scanned(turn, slot, block, count, wrapped),
            Step::RotScan { block, count, left, .. } => self.rot_scanned(turn, slot, block, count, left),
            Step::Flush => {
                self.journal.return_slot(slot);
                self.flushed_after_scan(turn);
            }
            Step::Sums { .. } | Step::Metadata(_) | Step::Ingest { .. } => {
                panic!("journal I/O {slot:?} completed in {:?}", recovery.step)
            }
        }
    }

    fn superblock_read(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId) {
        let page = |index| turn.tables.journal_io.page(slot, index);
        let slots = [0, 1].map(|index| Superblock::decode(turn.memory.bytes(page(index))));
        let [a, b] = slots;
        let newest = newest_of(a, b);
        self.recovery_release(turn, slot, 2);
        let Ok(superblock) = newest else {
            return self.fail_on_disk(turn, IoTarget::Journal, IoFault::Corrupt, 0);
        };
        let sizes: bool = superblock.volume_blocks().len() == self.config.volumes.len()
            && superblock
                .volume_blocks()
                .iter()
                .zip(&self.config.volumes)
                .all(|(have, want)| *have == want.blocks);
        let ours = superblock.group == self.config.group && superblock.site == self.config.site;
        if !ours || !sizes || superblock.journal_blocks != self.config.journal_blocks {
            return self.fail_on_disk(turn, IoTarget::Journal, IoFault::Foreign, 0);
        }
        self.journal.recover_begin(superblock.position, superblock.checkpoint);
        self.destage.recovered(superblock.sequence);
        self.extending.found(superblock.sizes);
        self.history = superblock.history;
        self.generation = superblock.history.last().map_or(Generation::NONE, |(generation, _)| generation);
        self.role = superblock.role;
        self.left = superblock.left.map(|left| (superblock.checkpoint, left));
        self.ended = self.left;
        self.heir = superblock.heir;
        self.checkpoint = superblock.checkpoint;
        self.settled = superblock.checkpoint;
        self.acknowledged = superblock.checkpoint;
        self.window.restart(superblock.checkpoint);
        let site = self.config.site;
        let recovery = self.recovery();
        recovery.checkpoint = superblock.checkpoint;
        recovery.superblock_settled = superblock.settled;
        (recovery.known_durable, recovery.superblock_durable) =
            (superblock.known_durable, superblock.known_durable);
        recovery.solo = superblock.solo;
        recovery.follower = if superblock.role == Role::Third { Role::Third } else { Role::Secondary };
        let own = superblock.checkpoint_generation.opener() == site;
        recovery.gave_way = own && matches!(superblock.left, Some(Left::GaveWay(_)));
        recovery.step = Step::Sums { volume: 0, block: 0, in_flight: 0 };
        // What replay brings back, a peer may lack; a set that is loaded begins earlier.
        if self.may_resync() {
            self.changed.begin(superblock.checkpoint);
        }
        if let Some(block) = self.staging_mark() {
            self.recovery_read(turn, IoTarget::Staging, block, 1);
            self.recovery().step = Step::StagingMark;
        }
    }

    pub(super) fn recovery_sums_loaded(&mut self) {
        if let Step::Sums { in_flight, .. } = &mut self.recovery().step {
            *in_flight -= 1;
        }
    }

    /// What recovery does without a completion to drive it.
    pub(super) fn recovery_turn(&mut self, turn: &mut Turn<impl Memory>) {
        match self.recovery().step {
            Step::Sums { .. } => self.load_sums(turn),
            Step::Install => self.install_turn(turn),
            Step::Ingest { next } => self.replay(turn, next),
            _ => {}
        }
        if matches!(self.phase, Phase::Recovering(_)) {
            self.advance(turn);
        }
    }

    fn load_sums(&mut self, turn: &mut Turn<impl Memory>) {
        let Step::Sums { mut volume, mut block, mut in_flight } = self.recovery().step else { return };
        while in_flight < SUMS_READS && volume < self.config.volumes.len() {
            let blocks = Sums::file_blocks(self.config.volumes[volume].blocks);
            if block >= blocks {
                (volume, block) = (volume + 1, 0);
                continue;
            }
            let count = (blocks - block).min(VOLUME_IO_BLOCKS_MAX as u64) as u32;
            let slot = self.volume_slots.pop().expect("nothing else uses volume slots yet");
            for index in 0..count as usize {
                let page = self.pages.take().expect("pages are reserved for recovery's reads");
                turn.tables.volume_io.set(slot, index, page, BlockSum::ZEROS);
            }
            let id = VolumeId(volume as u16);
            let request = IoRequest { slot, target: IoTarget::Checksums(id), op: IoOp::Read, block, count };
            self.submit_volume(turn, slot, VolumeIo::SumsLoad { volume: id, block, count }, request);
            block += u64::from(count);
            in_flight += 1;
        }
        self.recovery().step = Step::Sums { volume, block, in_flight };
        if volume == self.config.volumes.len() && in_flight == 0 {
            self.load_metadata(turn, Load::Marks { volume: VolumeId(0), chunk: 0 });
        }
    }

    // ------------------------------------------------------------------------------------ the management information

    fn marks_loaded(&mut self, turn: &mut Turn<impl Memory>) {
        // What is to be installed replaces the tables.
        let installs = self.recovery().install.is_some();
        match self.config.differential_blocks == 0 || installs {
            true => self.scan_at_head(turn),
            false => self.load_metadata(turn, Load::Snapshots { first: 0 }),
        }
    }

    /// The tables are in memory: the journal is next, unless what was installed is newer than all it has.
    pub(super) fn tables_loaded(&mut self, turn: &mut Turn<impl Memory>) {
        if !self.recovery().installed {
            return self.scan_at_head(turn);
        }
        let next = self.checkpoint.next();
        self.recovery().step = Step::Ingest { next };
    }

    pub(super) fn load_metadata(&mut self, turn: &mut Turn<impl Memory>, load: Load) {
        let op = match load {
            Load::Marks { volume, chunk } => MetadataOp::LoadMarks { volume, chunk },
            Load::Snapshots { first } => MetadataOp::LoadSnapshots { first },
            Load::Captured { volume, first } => {
                let volume = VolumeId(volume);
                MetadataOp::LoadCaptured { volume, since: self.snapshots.newest(volume), first: Lba(first) }
            }
            Load::Slots { first } => MetadataOp::LoadSlots { first: Slot(first) },
        };
        self.recovery().step = Step::Metadata(load);
        let slot = self.metadata_slots.pop().expect("recovery loads one page at a time");
        let page = self.pages.take().expect("pages are reserved for recovery's reads");
        turn.tables.metadata_io.set(slot, 0, page, BlockSum::ZEROS);
        self.submit_metadata(turn, slot, MetadataIo::Load, op);
    }

    pub(super) fn metadata_loaded(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        answer: MetadataAnswer,
    ) {
        let Step::Metadata(load) = self.recovery().step else { panic!("{answer:?} was not asked for") };
        let page = turn.tables.metadata_io.page(slot, 0);
        let next = match (load, answer) {
            (Load::Marks { .. }, MetadataAnswer::Marks { base, found }) => {
                if let Some(base) = base {
                    self.changed.load(base);
                }
                if !self.may_resync() {
                    // Of a time when this site had a peer: what it changes from here on is not in it.
                    self.changed.forget();
                    self.pages.release(page, turn.memory);
                    return self.marks_loaded(turn);
                }
                let more = found.then(|| self.changed.load_page(turn.memory.bytes(page)));
                self.pages.release(page, turn.memory);
                return match more {
                    Some(None) => {
                        turn.event(Event::MetadataFailed { fault: MetadataFault::Corrupt });
                        self.fail(turn)
                    }
                    Some(Some((volume, chunk))) => self.load_metadata(turn, Load::Marks { volume, chunk }),
                    None => self.marks_loaded(turn),
                };
            }
            (Load::Snapshots { first }, MetadataAnswer::Snapshots { count, total, applied, entries }) => {
                let mut records = [SnapshotRecord::EMPTY; SNAPSHOTS_PAGE_MAX];
                let read = decode_snapshots(turn.memory.bytes(page), &mut records);
                if read != Ok(count as usize)
                    || total as usize > SNAPSHOTS_MAX
                    || (count == 0 && first < total)
                {
                    turn.event(Event::MetadataFailed { fault: MetadataFault::Corrupt });
                    return self.fail(turn);
                }
                records[..count as usize].iter().for_each(|record| self.snapshots.load(*record));
                // What a sweep had nothing to commit for is not said to be applied, but is.
                self.applied = applied.max(self.checkpoint);
                match first + count < total {
                    true => Some(Load::Snapshots { first: first + count }),
                    false if entries > 0 => {
                        self.owe_reclaim();
                        self.next_captured(0, 0)
                    }
                    false => None,
                }
            }
            (Load::Captured { volume, first }, MetadataAnswer::Bits) => {
                let blocks = self.config.volumes[volume as usize].blocks;
                for bit in
                    (0..BITS_PAGE_MAX.min(blocks - first)).filter(|&bit| bit_at(turn.memory.bytes(page), bit))
                {
                    self.captured[volume as usize].insert(first + bit);
                }
                self.next_captured(volume, first + BITS_PAGE_MAX)
            }
            (Load::Slots { first }, MetadataAnswer::Bits) => {
                let total = self.slots.total();
                for bit in
                    (0..BITS_PAGE_MAX.min(total - first)).filter(|&bit| bit_at(turn.memory.bytes(page), bit))
                {
                    self.slots.take(Slot(first + bit));
                }
                let first = first + BITS_PAGE_MAX;
                (first < total).then_some(Load::Slots { first })
            }
            (load, answer) => panic!("{load:?} was answered with {answer:?}"),
        };
        self.pages.release(page, turn.memory);
        match next {
            Some(load) => self.load_metadata(turn, load),
            None => self.tables_loaded(turn),
        }
    }

    /// The next page of captured blocks from there on, of volumes that have a snapshot; slots come after the last.
    fn next_captured(&self, volume: u16, first: u64) -> Option<Load> {
        let mut first = first;
        for volume in volume..self.config.volumes.len() as u16 {
            let more = first < self.config.volumes[volume as usize].blocks;
            if more && self.snapshots.newest(VolumeId(volume)) != UpdateNumber::NONE {
                return Some(Load::Captured { volume, first });
            }
            first = 0;
        }
        Some(Load::Slots { first: 0 })
    }

    // -------------------------------------------------------------------------------------------------- the chain

    fn scan_at_head(&mut self, turn: &mut Turn<impl Memory>) {
        let block = self.journal.head().block;
        self.scan_at(turn, block, false);
    }

    fn scan_at(&mut self, turn: &mut Turn<impl Memory>, block: u64, wrapped: bool) {
        let count = (self.journal.ring_end() - block).min(BATCH_BLOCKS_MAX as u64) as u32;
        let slot = self.recovery_read(turn, IoTarget::Journal, block, count);
        self.recovery().step = Step::Scan { slot, block, count, wrapped };
    }

    fn scanned(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId, block: u64, count: u32, wrapped: bool) {
        let mut offset = 0;
        while offset < count {
            match self.accept_batch(turn, slot, block, offset, count) {
                Some(blocks) => offset += blocks,
                None => break,
            }
        }
        self.recovery_release(turn, slot, count);
        if offset > 0 {
            self.scan_at_head(turn);
        } else if !wrapped && block != RING_FIRST_BLOCK {
            self.scan_at(turn, RING_FIRST_BLOCK, true);
        } else {
            self.chain_ended(turn);
        }
    }

    /// Takes the batch at `offset` of the pages read if it continues the chain and is whole; returns its blocks.
    fn accept_batch(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        block: u64,
        offset: u32,
        count: u32,
    ) -> Option<u32> {
        let group = self.config.group;
        let Phase::Recovering(recovery) = &mut self.phase else { return None };
        let follower = recovery.follower;
        let page = |index: u32| turn.tables.journal_io.page(slot, index as usize);
        let bytes = turn.memory.bytes(page(offset));
        let header = decode_batch(bytes, &mut recovery.descriptors).ok()?;
        let blocks = 1 + u32::from(header.payload_blocks);
        if header.group != group || !self.journal.recover_continues(&header) || offset + blocks > count {
            return None;
        }
        let updates = &recovery.descriptors[..header.count as usize];
        if !payload_is_whole(updates, |index| turn.memory.sum(page(offset + 1 + index as u32))) {
            return None;
        }
        let (first, last) = match updates {
            [cut] if cut.kind == UpdateKind::Cut => (cut.number.next(), cut.number),
            _ => (updates.first()?.number, updates.last()?.number),
        };
        for update in updates {
            // The superblock may know of generations that come later in the journal, and what the site is in the newest of them.
            let newest = update.generation >= self.generation;
            let seen_before = recovery.scanned > Generation::NONE;
            let before = if seen_before { recovery.scanned } else { self.generation };
            recovery.scanned = update.generation;
            match update.kind {
                UpdateKind::GenerationOpen => {
                    // Who takes over is not alone because the one before was, whether the superblock knows of that or not.
                    recovery.solo &= update.generation.opener() == before.opener();
                    recovery.gave_way = false;
                    // One that is to be cut is no part of a history in which something else was opened since.
                    let follows = self.history.last().is_none_or(|(_, first)| update.number >= first);
                    if update.generation > self.generation && follows {
                        let opened_here = update.generation.opener() == self.config.site;
                        self.role = if opened_here { Role::Primary } else { follower };
                        self.generation = update.generation;
                        self.history.push(update.generation, update.number);
                    }
                }
                // Who hands over leads its peer until that has opened the next generation.
                UpdateKind::StepDown if newest => self.role = follower,
                UpdateKind::GiveWay => {
                    recovery.solo = false;
                    if newest {
                        self.role = follower;
                        recovery.gave_way = update.generation.opener() == self.config.site;
                    }
                }
                UpdateKind::SoloBegin => recovery.solo = true,
                UpdateKind::SoloEnd => (recovery.solo, recovery.solo_ended) = (false, update.number),
                UpdateKind::Cut => {
                    // What was seen and durable after it is gone; the same numbers come again.
                    recovery.seen = update.number;
                    recovery.solo_ended = recovery.solo_ended.min(update.number);
                    // Nothing settled is ever cut, so a cut from before the checkpoint is older than what the superblock knows.
                    if update.number >= recovery.checkpoint {
                        recovery.superblock_durable = recovery.superblock_durable.min(update.number);
                    }
                    recovery.known_durable =
                        recovery.known_durable.min(update.number).max(recovery.superblock_durable);
                    // Who follows is not alone.
                    recovery.solo = false;
                    self.history.truncate_after(update.number);
                    // Only who follows drops anything.
                    self.role = follower;
                    self.generation =
                        self.history.last().map_or(Generation::NONE, |(generation, _)| generation);
                }
                _ => {}
            }
        }
        recovery.seen = recovery.seen.max(last);
        recovery.settled_bound = recovery.settled_bound.max(header.settled);
        recovery.known_durable = recovery.known_durable.max(header.known_durable);
        let digest = digest_of(bytes);
        self.journal.recover_batch(block + u64::from(offset), &header, digest, first, last);
        Some(blocks)
    }

    /// A torn tail has nothing valid after it that was built when the missing batch was already durable.
    fn chain_ended(&mut self, turn: &mut Turn<impl Memory>) {
        let recovery = self.recovery();
        if recovery.known_durable > recovery.seen.max(recovery.checkpoint) {
            return self.rot(turn);
        }
        let left = doubtful_blocks(self.config.journal_volatile);
        let block = self.journal.head().block;
        self.rot_scan_at(turn, block, left.min(self.journal.ring_blocks()));
    }

    fn rot(&mut self, turn: &mut Turn<impl Memory>) {
        let block = self.journal.head().block;
        self.fail_on_disk(turn, IoTarget::Journal, IoFault::Corrupt, block);
    }

    fn rot_scan_at(&mut self, turn: &mut Turn<impl Memory>, block: u64, left: u64) {
        let count = (self.journal.ring_end() - block).min(BATCH_BLOCKS_MAX as u64).min(left) as u32;
        let slot = self.recovery_read(turn, IoTarget::Journal, block, count);
        self.recovery().step = Step::RotScan { slot, block, count, left };
    }

    fn rot_scanned(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId, block: u64, count: u32, left: u64) {
        let head = self.journal.head();
        let group = self.config.group;
        let Phase::Recovering(recovery) = &mut self.phase else { return };
        let last = recovery.seen.max(recovery.checkpoint);
        let mut rotten = false;
        for index in 0..count as usize {
            let page = turn.tables.journal_io.page(slot, index);
            // Nearly every block is payload, or a header from before the head.
            if claims_of(&turn.memory.first(page)).is_none_or(|(sequence, _)| sequence <= head.sequence) {
                continue;
            }
            let bytes = turn.memory.bytes(page);
            let Ok(header) = decode_batch(bytes, &mut recovery.descriptors) else { continue };
            if header.group == group {
                rotten |= header.known_durable > last;
                if header.sequence < SEQUENCE_MAX {
                    recovery.left_behind = recovery.left_behind.max(header.sequence);
                }
            }
        }
        self.recovery_release(turn, slot, count);
        if rotten {
            return self.rot(turn);
        }
        let left = left - u64::from(count);
        if left > 0 {
            let next = block + u64::from(count);
            let next = if next == self.journal.ring_end() { RING_FIRST_BLOCK } else { next };
            return self.rot_scan_at(turn, next, left);
        }
        // What the scan found may still be in a volatile cache; from here on it is relied on.
        let slot = self.journal.take_slot().expect("recovery's I/O is one at a time");
        self.recovery().step = Step::Flush;
        turn.out.to_journal.push(IoRequest {
            slot,
            target: IoTarget::Journal,
            op: IoOp::Flush,
            block: 0,
            count: 0,
        });
    }

    fn flushed_after_scan(&mut self, turn: &mut Turn<impl Memory>) {
        let checkpoint = self.checkpoint;
        let left_behind = self.recovery().left_behind;
        self.journal.recover_end(left_behind);
        let last = self.journal.appended();
        let gave_way = self.recovery().gave_way;
        let solo = self.role == Role::Primary && self.recovery().solo;
        let found = self.recovery().settled_bound.max(self.recovery().superblock_settled).min(last);
        // The joint prefix a restarting site may rely on: all of it if no peer has a say, or if nothing else was taken.
        let alone = self.config.peer.is_none() || self.role == Role::Third || solo || gave_way;
        match self.role_as_configured(Recovered { solo, gave_way, last, settled: found }) {
            Ok(role) => self.role = role,
            Err(why) => {
                turn.event(Event::RoleRefused { why });
                return self.fail(turn);
            }
        }
        if self.role == Role::Secondary && !gave_way {
            self.changed.forget();
        }
        if self.recovery().install.is_some() {
            let slot = self.journal.take_slot().expect("recovery's I/O is one at a time");
            self.recovery().step = Step::MarkFlush;
            return self.flush_staging(turn, slot);
        }
        let recovery = self.recovery();
        let bound = if alone { last } else { found };
        recovery.settled_bound = bound;
        recovery.step = Step::Ingest { next: checkpoint.next() };
        self.peer.told_settled = bound;
        self.replay(turn, checkpoint.next());
    }

    // ------------------------------------------------------------------------------------------------- its updates

    fn replay(&mut self, turn: &mut Turn<impl Memory>, mut next: UpdateNumber) {
        let last = self.journal.appended();
        let mut budget = REPLAYED_A_TURN_MAX;
        while next <= last && budget > 0 {
            budget -= 1;
            if !self.replay_has_room(turn) {
                break;
            }
            let (update, slot, page) = match self.read_back(turn, ReadFor::Peer, next) {
                Found::Update { update, slot, page } => (update, slot, page),
                Found::Later => break,
                Found::Gone => return self.rot(turn),
            };
            let tables = turn.tables;
            let row = &tables.journal_io;
            match self.room_to_follow(&update) {
                Room::Enough => self.follow_slots(&update),
                Room::Later => break,
                // The journal and the management information contradict each other.
                Room::Never => {
                    turn.event(Event::MetadataFailed { fault: MetadataFault::Corrupt });
                    return self.fail(turn);
                }
            }
            let block = |index| (row.page(slot, page + index), row.sum(slot, page + index));
            self.append(turn, update, None, WriteStamps::default(), block, None);
            // It came from the journal, so it is not appended again.
            self.unappended_blocks = 0;
            self.read_back_taken(turn, ReadFor::Peer, &update);
            self.recovery().replayed += 1;
            next = next.next();
        }
        if matches!(self.phase, Phase::Failed) {
            return;
        }
        self.recovery().step = Step::Ingest { next };
        if next > last {
            self.replay_done(turn);
        }
    }

    fn replay_has_room(&mut self, turn: &mut Turn<impl Memory>) -> bool {
        let (entries, pages) = (ZERO_BLOCKS_MAX, UPDATE_BLOCKS_MAX);
        if self.cache.free_entries() < entries {
            self.cache.evict(pages, entries, 4 * ZERO_BLOCKS_MAX, &mut self.pages, turn.memory);
        }
        self.window.room() > 0 && self.cache.free_entries() >= entries
    }

    fn replay_done(&mut self, turn: &mut Turn<impl Memory>) {
        self.read_back_end(turn, ReadFor::Peer);
        let recovery = self.recovery();
        let (checkpoint, replayed, solo, solo_ended, settled) = (
            recovery.checkpoint,
            recovery.replayed,
            recovery.solo,
            recovery.solo_ended,
            recovery.settled_bound,
        );
        let last = self.window.last();
        self.counters.replayed_updates = replayed;
        self.replayed = last;
        self.advance(turn);
        self.phase = Phase::Running;
        self.acknowledged = self.settled;
        if self.role == Role::Primary {
            self.alone = if solo { Alone::Yes } else { Alone::No };
            self.solo_ended = solo_ended;
        }
        // Until the peer says where it is, the journal keeps all it still has for it.
        self.peer.durable = self.journal.oldest().map_or(last, UpdateNumber::previous);
        if self.changed.tracking() {
            self.peer.durable = self.peer.durable.min(self.changed.base());
        }
        self.peer.told_settled = settled;
        self.peer.consumed = last;
        self.peer.sent = last;
        self.begin_feeding(last);
        if self.role != Role::Primary {
            self.refuse_hosts_of_primary(turn);
        }
        turn.event(Event::Recovered { checkpoint, last, replayed, role: self.role });
    }
}
