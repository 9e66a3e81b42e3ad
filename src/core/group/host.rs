//! Hosts' operations: admission, reads, read-modify-write of partial blocks, flushes.

use std::cmp::Reverse;

use super::answering::handed_over;
use super::capture::{Piece, Room};
use super::mending::Outlook;
use super::storage::VolumeIo;
use super::{Group, Phase, RESERVED_PAGES, Turn};
use crate::base::*;
use crate::core::cache::Value;
use crate::core::config::Role;
use crate::core::messages::*;
use crate::core::outbox::{Event, WriteStamps};
use crate::core::window::Waiter;
use crate::format::update::{Update, UpdateKind};

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpState {
    Free,
    /// In `queued` or `stalled`.
    Waiting,
    /// Blocks are being read from the volume; `visible_at` is the newest update among those already copied (INV-5).
    Fetching {
        remaining: u32,
        visible_at: UpdateNumber,
        failed: bool,
        /// One is bad, and may be repaired.
        mends: bool,
    },
    /// A block that has gone bad is being repaired, see `mending`.
    Mending,
    /// The metadata executor is asked where blocks of a snapshot are.
    LookingUp,
    /// They are being read; some may have been elsewhere.
    FetchingSnapshot {
        remaining: u32,
        failed: bool,
        stale: bool,
        mends: bool,
    },
    /// Its update is numbered.
    Numbered(UpdateNumber),
    /// A read or flush that waits for a watermark.
    Watching,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Op {
    pub request: HostRequest,
    pub state: OpState,
    pub taken_at: Nanos,
    /// Counts the operations of this ticket, so that what was begun for one is never finished for the next.
    pub serial: u32,
    /// Blocks of it that are numbered.
    pub numbered: u32,
    /// Since when old blocks are being read that are to be sent with it, and how long that has taken before.
    pub old_since: Option<Nanos>,
    pub old_read_ns: u64,
    /// They could not be read: the peer captures from its own blocks.
    pub old_unread: bool,
}

impl Op {
    pub const FREE: Op = Op {
        request: HostRequest {
            ticket: SlotId(0),
            volume: VolumeId(0),
            snapshot: UpdateNumber::NONE,
            of_primary: false,
            op: HostOp::Flush,
            received_at: Nanos(0),
        },
        state: OpState::Free,
        taken_at: Nanos(0),
        serial: 0,
        numbered: 0,
        old_since: None,
        old_read_ns: 0,
        old_unread: false,
    };
}

/// Slots of the volumes' table that read misses leave to destage, so that readers alone cannot stop writers.
pub(super) const DESTAGE_SLOTS: usize = VOLUME_IO_SLOTS / 4;

impl Group {
    pub fn on_host(&mut self, turn: &mut Turn<impl Memory>, front: usize, request: HostRequest) {
        let op = &mut self.ops[front][request.ticket.0 as usize];
        assert_eq!(
            op.state,
            OpState::Free,
            "front {front} reused ticket {:?} before its reply",
            request.ticket
        );
        let serial = op.serial.wrapping_add(1);
        *op = Op { request, state: OpState::Waiting, taken_at: turn.now, serial, ..Op::FREE };
        if self.ops_live == 0 {
            self.deadline_scan_at = turn.now.plus(self.deadline_scan_span());
        }
        self.ops_live += 1;
        self.front_pages[front] -= handed_over(&request.op);
        let at = (front as u8, request.ticket);
        if let Err(error) = self.judge(&request) {
            return self.refuse_operation(turn, at, error);
        }
        let is_write = !request.op.reads() && request.op != HostOp::Flush;
        if !self.serving() || (is_write && !self.queued.is_empty()) {
            return self.queued.push(at);
        }
        self.attempt(turn, at);
    }

    pub(super) fn judge(&self, request: &HostRequest) -> Result<(), HostError> {
        if matches!(self.phase, Phase::Failed | Phase::Stopped) || self.stopping {
            return Err(HostError::NotServing);
        }
        if self.role != Role::Primary && request.of_primary {
            return Err(HostError::NotServing);
        }
        if self.role == Role::Primary && (self.left.is_some() || self.is_superseded()) {
            return Err(HostError::NotServing);
        }
        if request.op == HostOp::Flush {
            return Ok(());
        }
        let (lba, count, bound, within) = match request.op {
            HostOp::Read { lba, count } | HostOp::Write { lba, count, .. } => {
                (lba, count, UPDATE_BLOCKS_MAX, true)
            }
            HostOp::Zero { lba, count, .. } => (lba, count, ZERO_BLOCKS_MAX, true),
            HostOp::Changes { lba, count, .. } => (lba, count, CHANGES_BLOCKS_MAX, true),
            HostOp::WritePartial { lba, offset, length, .. }
            | HostOp::ZeroPartial { lba, offset, length, .. } => {
                (lba, 1, 1, length > 0 && usize::from(offset) + usize::from(length) <= BLOCK_BYTES)
            }
            HostOp::Flush => unreachable!("answered above"),
        };
        let whole = lba.0.checked_add(u64::from(count)).is_some();
        if count == 0 || count as usize > bound || !within || !whole || !self.is_shown(request) {
            return Err(HostError::OutOfRange);
        }
        let reads = request.op.reads();
        if request.snapshot != UpdateNumber::NONE && !reads {
            return Err(HostError::ReadOnly);
        }
        if self.role != Role::Primary && !reads {
            return Err(HostError::ReadOnly);
        }
        Ok(())
    }

    /// Whether hosts see all blocks of it. What comes before the superblock was read waits, and is asked for again.
    fn is_shown(&self, request: &HostRequest) -> bool {
        let size = match self.phase {
            Phase::Recovering(_) => {
                self.config.volumes.get(usize::from(request.volume.0)).map_or(0, |volume| volume.blocks)
            }
            _ => self.extending.in_force().get(request.volume),
        };
        request.op.blocks().end <= size
    }

    /// Carries an operation on that waited outside the queues.
    pub(super) fn try_again(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket)) {
        self.op_mut(at).state = OpState::Waiting;
        let request = self.op(at).request;
        if let Err(error) = self.judge(&request) {
            return self.refuse_operation(turn, at, error);
        }
        if !self.serving() {
            return self.queued.push(at);
        }
        self.attempt(turn, at);
    }

    /// Carries an operation as far as it goes now, queueing it if it lacks room.
    fn attempt(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket)) {
        let request = self.op(at).request;
        match request.op {
            HostOp::Read { .. } | HostOp::Changes { .. } => {
                if !self.begin_read(turn, at) {
                    self.op_mut(at).state = OpState::Waiting;
                    self.stalled.push(at);
                }
            }
            HostOp::Flush => self.start_flush(turn, at),
            _ => {
                if !self.start_write(turn, at) {
                    self.op_mut(at).state = OpState::Waiting;
                    self.queued.push(at);
                }
            }
        }
    }

    /// Gives waiting operations another try, oldest first, until one still lacks room.
    pub(super) fn retry_waiting(&mut self, turn: &mut Turn<impl Memory>) {
        if !self.serving() {
            return;
        }
        self.lease.wanted = false;
        while let Some(&at) = self.queued.front() {
            if self.op(at).state == OpState::Waiting {
                let request = self.op(at).request;
                match request.op {
                    _ if !self.is_shown(&request) => {
                        self.refuse_operation(turn, at, HostError::OutOfRange);
                    }
                    HostOp::Read { .. } | HostOp::Changes { .. } | HostOp::Flush => self.attempt(turn, at),
                    _ if !self.start_write(turn, at) => break,
                    _ => {}
                }
            }
            self.queued.pop();
        }
        while let Some(&at) = self.stalled.front() {
            let read = self.op(at).request.op.reads();
            if self.op(at).state == OpState::Waiting && read && !self.begin_read(turn, at) {
                break;
            }
            self.stalled.pop();
        }
    }

    // ------------------------------------------------------------------------------------------------- reads

    /// What a reader of this site sees of a block in the cache.
    fn readable(&mut self, volume: VolumeId, lba: Lba) -> Option<Value> {
        match self.role {
            Role::Primary => self.cache.newest(volume, lba),
            Role::Secondary | Role::Third => self.cache.settled(volume, lba),
        }
    }

    fn begin_read(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket)) -> bool {
        let HostRequest { volume, snapshot, op, .. } = self.op(at).request;
        if snapshot == UpdateNumber::NONE && !self.may_read(turn.now) {
            return false;
        }
        let HostOp::Read { lba, count } = op else { return self.start_changes(turn, at) };
        match snapshot {
            UpdateNumber::NONE => self.start_read(turn, at, volume, lba, count),
            _ => self.start_snapshot_read(turn, at),
        }
    }

    /// Whether the volume may have a version of the block that this site does not know to be settled: one that replay found,
    /// destaged before the restart. Its primary will say so; until then the disk's content is neither here nor there.
    pub(super) fn is_uncertain(&self, volume: VolumeId, lba: Lba) -> bool {
        self.settled < self.replayed
            && self.role == Role::Secondary
            && self.cache.peek(volume, lba).is_some_and(|newest| newest.number > self.settled)
    }

    /// Copies what is cached, fetches the rest; false when pages, entries or I/O slots are short, or content is uncertain.
    fn start_read(
        &mut self,
        turn: &mut Turn<impl Memory>,
        at: (u8, Ticket),
        volume: VolumeId,
        lba: Lba,
        count: u32,
    ) -> bool {
        if !self.mending.is_empty() && self.awaits_mend(at) {
            self.op_mut(at).state = OpState::Mending;
            return true;
        }
        let mut missing = 0;
        for block in (0..count).map(|index| lba.plus(u64::from(index))) {
            if self.readable(volume, block).is_none() {
                if self.is_uncertain(volume, block) {
                    return false;
                }
                missing += 1;
            }
        }
        // Each run of missing blocks takes a slot; there are at most as many runs as missing blocks.
        if missing > 0 && !self.room_to_fetch(turn, missing) {
            return false;
        }
        let mut visible_at = UpdateNumber::NONE;
        let mut remaining = 0;
        let mut run: Option<(u32, u32)> = None;
        for index in 0..count {
            match self.readable(volume, lba.plus(u64::from(index))) {
                Some(value) => {
                    visible_at = visible_at.max(value.number);
                    let to = turn.tables.fronts[at.0 as usize].page(at.1, index as usize);
                    turn.memory.copy(value.page, to, 0..BLOCK_BYTES);
                    if let Some((first, length)) = run.take() {
                        self.fetch(turn, at, volume, lba.plus(u64::from(first)), length, first);
                        remaining += 1;
                    }
                }
                None => run = Some(run.map_or((index, 1), |(first, length)| (first, length + 1))),
            }
        }
        if let Some((first, length)) = run {
            self.fetch(turn, at, volume, lba.plus(u64::from(first)), length, first);
            remaining += 1;
        }
        if remaining > 0 {
            self.op_mut(at).state = OpState::Fetching { remaining, visible_at, failed: false, mends: false };
        } else {
            self.finish_read(turn, at, visible_at);
        }
        true
    }

    pub(super) fn room_to_fetch(&mut self, turn: &mut Turn<impl Memory>, blocks: usize) -> bool {
        let pages = blocks + BATCH_BLOCKS_MAX;
        if self.pages.free() < pages || self.cache.free_entries() < blocks {
            self.cache.evict(pages, blocks, 4 * UPDATE_BLOCKS_MAX, &mut self.pages, turn.memory);
        }
        self.pages.free() >= pages
            && self.cache.free_entries() >= blocks
            && self.volume_slots.len() >= blocks + DESTAGE_SLOTS
    }

    pub(super) fn fetch(
        &mut self,
        turn: &mut Turn<impl Memory>,
        at: (u8, Ticket),
        volume: VolumeId,
        lba: Lba,
        count: u32,
        first: u32,
    ) {
        let serial = self.op(at).serial;
        let io = VolumeIo::Fetch { front: at.0, ticket: at.1, serial, volume, lba, count, first };
        self.fetch_blocks(turn, volume, lba, count, io);
        self.counters.volume_reads += 1;
    }

    /// Reads blocks for the cache; the caller has seen to it that there is room.
    pub(super) fn fetch_blocks(
        &mut self,
        turn: &mut Turn<impl Memory>,
        volume: VolumeId,
        lba: Lba,
        count: u32,
        io: VolumeIo,
    ) {
        let slot = self.volume_slots.pop().expect("room was checked");
        for index in 0..count {
            let began = self.cache.fetch_begin(volume, lba.plus(u64::from(index)));
            assert!(began, "room was checked");
            let page = self.pages.take().expect("room was checked");
            turn.tables.volume_io.set(slot, index as usize, page, BlockSum::ZEROS);
        }
        let target = IoTarget::Volume(volume);
        self.submit_volume(turn, slot, io, IoRequest { slot, target, op: IoOp::Read, block: lba.0, count });
    }

    /// One of them enters the cache, if it was read and is what was written. Returns whether it may be once it is repaired.
    pub(super) fn enter_fetched(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        volume: VolumeId,
        first: Lba,
        index: u32,
        read: bool,
    ) -> bool {
        let block = first.plus(u64::from(index));
        let page = turn.tables.volume_io.page(slot, index as usize);
        let value = self.verified(turn, volume, block, page, read);
        // A destage of this block may have been under way: then the cache has the block and the disk does not count.
        let bad = value.is_none() && read && self.cache.peek_settled(volume, block).is_none();
        if value.is_none() {
            self.pages.release(page, turn.memory);
        }
        self.cache.fetch_end(volume, block, value, &mut self.pages, turn.memory);
        bad && self.mend(turn, volume, block) != Outlook::Hopeless
    }

    /// A fetch completed: its blocks enter the cache, and what its operation waited for is given to it.
    pub(super) fn fetched(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        io: VolumeIo,
        result: Result<(), IoFault>,
    ) {
        let VolumeIo::Fetch { front, ticket, serial, volume, lba, count, first } = io else {
            unreachable!("the caller matched a fetch")
        };
        let at = (front, ticket);
        let current = self.op(at).serial == serial && matches!(self.op(at).state, OpState::Fetching { .. });
        if let Err(fault) = result {
            turn.event(Event::ReadFailed { target: IoTarget::Volume(volume), fault, block: lba.0 });
        }
        let mut good = true;
        let mut mends = false;
        let mut visible_at = UpdateNumber::NONE;
        for index in 0..count {
            let may_be_mended = self.enter_fetched(turn, slot, volume, lba, index, result.is_ok());
            match self.readable(volume, lba.plus(u64::from(index))) {
                Some(value) => {
                    visible_at = visible_at.max(value.number);
                    if current && let HostOp::Read { .. } = self.op(at).request.op {
                        let to = turn.tables.fronts[front as usize].page(ticket, (first + index) as usize);
                        turn.memory.copy(value.page, to, 0..BLOCK_BYTES);
                    }
                }
                None if may_be_mended => mends = true,
                None => good = false,
            }
        }
        if !current {
            return;
        }
        let OpState::Fetching { remaining, visible_at: before, failed, mends: others } = self.op(at).state
        else {
            unreachable!("checked above")
        };
        let (visible_at, failed, mends) = (visible_at.max(before), failed || !good, mends || others);
        if remaining > 1 {
            self.op_mut(at).state = OpState::Fetching { remaining: remaining - 1, visible_at, failed, mends };
        } else if let Some(since) = self.op_mut(at).old_since.take() {
            let op = self.op_mut(at);
            op.old_read_ns += turn.now.since(since).0;
            // The write does not wait for a repair.
            op.old_unread |= failed || mends;
            self.go_on(turn, at);
        } else if failed {
            self.refuse_operation(turn, at, HostError::Io);
        } else if mends {
            self.await_mend(turn, at);
        } else if let HostOp::Read { .. } = self.op(at).request.op {
            self.finish_read(turn, at, visible_at);
        } else {
            self.go_on(turn, at);
        }
    }

    /// What was to be read for a write is here. Nothing is numbered in a generation that was ended meanwhile.
    fn go_on(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket)) {
        self.op_mut(at).state = OpState::Waiting;
        match self.left {
            Some(_) => self.refuse_operation(turn, at, HostError::NotServing),
            None => self.attempt(turn, at),
        }
    }

    fn finish_read(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket), visible_at: UpdateNumber) {
        if self.role != Role::Primary || visible_at <= self.acknowledged {
            return self.answer(turn, at, Ok(()));
        }
        let op = self.op_mut(at);
        op.state = OpState::Watching;
        let wakeup = Reverse((visible_at, at.0, at.1.0, op.serial));
        self.on_acknowledged.push(wakeup);
    }

    fn start_flush(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket)) {
        // Whatever is before this generation may have been acknowledged by the last one.
        let inherited = self.history.last().map_or(UpdateNumber::NONE, |(_, first)| first);
        let number = self.acknowledged.max(inherited);
        if self.role != Role::Primary || number <= self.settled {
            return self.answer(turn, at, Ok(()));
        }
        self.flush_wanted = self.flush_wanted.max(number);
        let op = self.op_mut(at);
        op.state = OpState::Watching;
        let wakeup = Reverse((number, at.0, at.1.0, self.op(at).serial));
        self.on_settled.push(wakeup);
    }

    // ------------------------------------------------------------------------------------------------ writes

    /// Numbers a write or zero. Returns whether it left the queue: numbered, answered, or waiting for blocks to be read.
    fn start_write(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket)) -> bool {
        while self.op(at).state == OpState::Waiting {
            if !self.number_next(turn, at) {
                return false;
            }
        }
        true
    }

    /// Numbers what is next of a write or zero: nearly always all of it. False when it lacks room.
    fn number_next(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket)) -> bool {
        let Op { request, numbered, .. } = *self.op(at);
        let (lba, total, payload) = match request.op {
            HostOp::Write { lba, count, .. } => (lba, count, count as usize),
            HostOp::Zero { lba, count, .. } => (lba, count, 0),
            HostOp::WritePartial { lba, .. } | HostOp::ZeroPartial { lba, .. } => (lba, 1, 1),
            HostOp::Read { .. } | HostOp::Changes { .. } | HostOp::Flush => unreachable!("not a write"),
        };
        let (lba, count) = (lba.plus(u64::from(numbered)), self.step_of(request.volume, total - numbered));
        if !self.room_to_number(turn, count as usize, payload) {
            return false;
        }
        let partial = matches!(request.op, HostOp::WritePartial { .. } | HostOp::ZeroPartial { .. });
        if partial && self.cache.newest(request.volume, lba).is_none() {
            return self.fetch_base(turn, at, request.volume, lba);
        }
        let lacking = self.old_blocks_lacking(request.volume, lba, count);
        if lacking > 0 && !self.op(at).old_unread {
            return self.fetch_old_blocks(turn, at, lba, count, lacking);
        }
        self.pieces.clear();
        if self.snapshots.newest(request.volume) == UpdateNumber::NONE {
            self.pieces.push(Piece { count, slot: Slot::NONE });
        } else {
            match self.cut_in_pieces(turn, request.volume, lba, count, payload) {
                Room::Enough => {}
                Room::Later => return false,
                Room::Never => {
                    self.refuse_operation(turn, at, HostError::NoSpace);
                    return true;
                }
            }
        }
        let row = &turn.tables.fronts[at.0 as usize];
        let (kind, fua) = match request.op {
            HostOp::Write { fua, .. } => (UpdateKind::Write, fua),
            HostOp::Zero { fua, .. } => (UpdateKind::Zero, fua),
            HostOp::WritePartial { offset, length, fua, .. } => {
                let base = self.cache.newest(request.volume, lba).expect("it was there above");
                let page = row.page(at.1, 0);
                let (start, end) = (usize::from(offset), usize::from(offset) + usize::from(length));
                turn.memory.copy(base.page, page, 0..start);
                turn.memory.copy(base.page, page, end..BLOCK_BYTES);
                row.set(at.1, 0, page, turn.memory.sum(page));
                (UpdateKind::Write, fua)
            }
            HostOp::ZeroPartial { offset, length, fua, .. } => {
                let base = self.cache.newest(request.volume, lba).expect("it was there above");
                let page = self.pages.take().expect("room_to_number left pages");
                turn.memory.copy(base.page, page, 0..BLOCK_BYTES);
                let (start, end) = (usize::from(offset), usize::from(offset) + usize::from(length));
                turn.memory.bytes_mut(page)[start..end].fill(0);
                row.set(at.1, 0, page, turn.memory.sum(page));
                (UpdateKind::Write, fua)
            }
            HostOp::Read { .. } | HostOp::Changes { .. } | HostOp::Flush => unreachable!("not a write"),
        };
        let stamps = WriteStamps {
            received_at: request.received_at,
            taken_at: self.op(at).taken_at,
            numbered_at: turn.now,
            old_read_ns: self.op(at).old_read_ns,
            ..WriteStamps::default()
        };
        let waiter = Waiter { front: at.0, ticket: at.1, fua };
        let mut done = 0;
        for index in 0..self.pieces.len() {
            let piece = self.pieces[index];
            let first = done;
            done += piece.count;
            let blocks = first as usize..done as usize;
            let update = Update {
                number: self.window.last().next(),
                generation: self.generation,
                lba: lba.plus(u64::from(first)),
                count: piece.count,
                slot: piece.slot,
                sum: match kind {
                    UpdateKind::Write => sum_of_sums(blocks.map(|i| row.sum(at.1, i))),
                    _ => 0,
                },
                volume: request.volume,
                kind,
            };
            // Acknowledgements are cumulative: the last one answers for all.
            let waiter = (numbered + done == total).then_some(waiter);
            let block =
                |index| (row.page(at.1, first as usize + index), row.sum(at.1, first as usize + index));
            self.append(turn, update, waiter, stamps, block, None);
        }
        self.counters.write_bytes += u64::from(count) * BLOCK_BYTES as u64;
        let op = self.op_mut(at);
        op.numbered += count;
        if op.numbered < total {
            return true;
        }
        let number = self.window.last();
        self.op_mut(at).state = OpState::Numbered(number);
        if fua {
            self.flush_wanted = self.flush_wanted.max(number);
        }
        self.counters.writes += 1;
        true
    }

    /// Reads the block that a partial write changes; the write tries again when it is there. Returns whether it left the
    /// queue: a fetch without room keeps it there.
    fn fetch_base(
        &mut self,
        turn: &mut Turn<impl Memory>,
        at: (u8, Ticket),
        volume: VolumeId,
        lba: Lba,
    ) -> bool {
        if !self.mending.is_empty() && self.awaits_mend(at) {
            self.op_mut(at).state = OpState::Mending;
            return true;
        }
        if !self.room_to_fetch(turn, 1) {
            return false;
        }
        let visible_at = UpdateNumber::NONE;
        self.op_mut(at).state = OpState::Fetching { remaining: 1, visible_at, failed: false, mends: false };
        self.fetch(turn, at, volume, lba, 1, 0);
        true
    }

    /// Whether an update of `blocks`, `payload` of them with data, can be numbered, journaled and sent without waiting.
    pub(super) fn room_to_number(
        &mut self,
        turn: &mut Turn<impl Memory>,
        blocks: usize,
        payload: usize,
    ) -> bool {
        if self.cache.free_entries() < blocks {
            self.cache.evict(0, blocks, 4 * ZERO_BLOCKS_MAX, &mut self.pages, turn.memory);
        }
        // What waits here is dropped at its deadline, what is numbered is not: if it took the last pages while the peer is
        // away, hosts could not even be refused (INV-11).
        let held = self.held_pages();
        (payload == 0 || held + payload as u64 <= self.holdable_pages as u64)
            && self.cache.free_entries() >= blocks
            && self.window.room() > super::stream::CONTROL_UPDATES
            && self.journal_has_room(1, payload)
            && self.pages.free() > BATCH_BLOCKS_MAX.min(RESERVED_PAGES)
    }

    pub(super) fn op(&self, at: (u8, Ticket)) -> &Op {
        &self.ops[at.0 as usize][at.1.0 as usize]
    }

    pub(super) fn op_mut(&mut self, at: (u8, Ticket)) -> &mut Op {
        &mut self.ops[at.0 as usize][at.1.0 as usize]
    }
}
