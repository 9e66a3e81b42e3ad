//! Scrubbing: every block of the volumes is read from its disk and compared with its checksum, whether somebody asks for it or not.
//! What has gone bad is repaired as it is when a host reads it.

use super::host::DESTAGE_SLOTS;
use super::mending::Outlook;
use super::storage::VolumeIo;
use super::{Group, Phase, Turn};
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::Event;

/// While hosts are at work, the disk is left to them for so many times as long as the read before took: a scrub takes a tenth of it.
const YIELDS: u64 = 9;

/// A journal batch this recent says that hosts are at work, here or at the primary.
const BUSY_FOR: Nanos = Nanos::from_millis(10);

/// When to look again if a page, a slot or a repair's place is lacking.
const LOOKS_AGAIN_AFTER: Nanos = Nanos::from_millis(5);

/// What the last pass, or the one under way, has come to. Of the blocks found bad, those that are neither repaired nor could not be are
/// being repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubStatus {
    pub active: bool,
    /// Whether the last pass was carried to its end.
    pub complete: bool,
    pub blocks_read: u64,
    pub blocks_total: u64,
    pub bad: u64,
    pub repaired: u64,
    pub unrepaired: u64,
    /// The first of those that could not be repaired.
    pub named: [(VolumeId, Lba); SCRUB_NAMED_MAX],
    /// How long it has taken so far.
    pub for_ns: u64,
}

impl ScrubStatus {
    const NONE: ScrubStatus = ScrubStatus {
        active: false,
        complete: false,
        blocks_read: 0,
        blocks_total: 0,
        bad: 0,
        repaired: 0,
        unrepaired: 0,
        named: [(VolumeId(0), Lba(0)); SCRUB_NAMED_MAX],
        for_ns: 0,
    };
}

#[derive(Debug)]
pub(super) struct Scrub {
    status: ScrubStatus,
    began_at: Nanos,
    blocks_per_second: u64,
    /// What is read next.
    next: (u16, u64),
    /// When the read that is under way began, if one is.
    reading_since: Option<Nanos>,
    due_at: Nanos,
}

impl Scrub {
    pub fn new() -> Scrub {
        Scrub {
            status: ScrubStatus::NONE,
            began_at: Nanos(0),
            blocks_per_second: 0,
            next: (0, 0),
            reading_since: None,
            due_at: Nanos(0),
        }
    }

    pub fn is_reading(&self) -> bool {
        self.reading_since.is_some()
    }

    /// A block that it had found is whole, or cannot be repaired now.
    pub fn note(&mut self, volume: VolumeId, lba: Lba, repaired: bool) {
        let status = &mut self.status;
        if repaired {
            status.repaired += 1;
            return;
        }
        if let Some(named) = status.named.get_mut(status.unrepaired as usize) {
            *named = (volume, lba);
        }
        status.unrepaired += 1;
    }
}

impl Group {
    /// A pass begins, unless one is under way: then its rate changes. Without a rate, it ends where it is.
    pub(super) fn on_scrub(&mut self, turn: &mut Turn<impl Memory>, request: AdminRequest, rate: u64) {
        let running = matches!(self.phase, Phase::Running) && !self.stopping;
        if !running {
            let recovering = matches!(self.phase, Phase::Recovering(_));
            let why = if recovering { AdminError::Recovering } else { AdminError::NotServing };
            return turn.out.to_admin.push(AdminReply { id: request.id, result: Err(why) });
        }
        if rate == 0 {
            self.end_scrub(turn, false);
        } else if !self.scrub.status.active {
            let blocks_total = self.config.volumes.iter().map(|volume| volume.blocks).sum();
            self.scrub.status = ScrubStatus { active: true, blocks_total, ..ScrubStatus::NONE };
            (self.scrub.began_at, self.scrub.due_at, self.scrub.next) = (turn.now, turn.now, (0, 0));
            self.forget_scrubbed();
        }
        self.scrub.blocks_per_second = rate;
        turn.out.to_admin.push(AdminReply { id: request.id, result: Ok(UpdateNumber::NONE) });
    }

    fn end_scrub(&mut self, turn: &mut Turn<impl Memory>, complete: bool) {
        if !std::mem::take(&mut self.scrub.status.active) {
            return;
        }
        self.scrub.status.complete = complete;
        self.scrub.status.for_ns = turn.now.since(self.scrub.began_at).0;
        let ScrubStatus { blocks_read: blocks, bad, unrepaired, .. } = self.scrub.status;
        turn.event(Event::Scrubbed { complete, blocks, bad, unrepaired });
    }

    pub(super) fn scrub_status(&self, now: Nanos) -> ScrubStatus {
        let for_ns = match self.scrub.status.active {
            true => now.since(self.scrub.began_at).0,
            false => self.scrub.status.for_ns,
        };
        ScrubStatus { for_ns, ..self.scrub.status }
    }

    pub(super) fn scrub_deadline(&self) -> Option<Nanos> {
        let waits = self.scrub.status.active && !self.scrub.is_reading();
        (waits && matches!(self.phase, Phase::Running)).then_some(self.scrub.due_at)
    }

    /// Reads on, one I/O at a time, out of everybody's way.
    pub(super) fn scrub_turn(&mut self, turn: &mut Turn<impl Memory>) {
        let Scrub { next: (volume, lba), .. } = self.scrub;
        if !self.scrub.status.active || self.scrub.is_reading() || turn.now < self.scrub.due_at {
            return;
        }
        if !matches!(self.phase, Phase::Running) || self.stopping {
            return self.end_scrub(turn, false);
        }
        let Some(spec) = self.config.volumes.get(volume as usize) else {
            // What it has found is repaired before it ends.
            match self.mends_scrubbed() {
                true => self.scrub.due_at = turn.now.plus(LOOKS_AGAIN_AFTER),
                false => self.end_scrub(turn, true),
            }
            return;
        };
        let count = (spec.blocks - lba).min(VOLUME_IO_BLOCKS_MAX as u64) as usize;
        // Of what is reserved, as a read for a host: a small cache never has more to spare. Staged blocks reach their volumes in an order
        // of their own.
        let room = self.pages.free() >= BATCH_BLOCKS_MAX + count && self.volume_slots.len() > DESTAGE_SLOTS;
        if !room || self.staging.installing() {
            self.scrub.due_at = turn.now.plus(LOOKS_AGAIN_AFTER);
            return;
        }
        let slot = self.volume_slots.pop().expect("room was checked");
        let (volume, lba) = (VolumeId(volume), Lba(lba));
        for index in 0..count {
            let page = self.pages.take().expect("room was checked");
            let sum = self.sums[volume.0 as usize].get(lba.plus(index as u64));
            turn.tables.volume_io.set(slot, index, page, sum);
        }
        self.scrub.reading_since = Some(turn.now);
        let (target, count) = (IoTarget::Volume(volume), count as u32);
        let request = IoRequest { slot, target, op: IoOp::Read, block: lba.0, count };
        self.submit_volume(turn, slot, VolumeIo::Scrub { volume, lba, count }, request);
    }

    /// Blocks were read. A block that was written meanwhile, or is being written, says nothing.
    pub(super) fn scrubbed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        (volume, lba, count): (VolumeId, Lba, u32),
        result: Result<(), IoFault>,
    ) {
        let began = self.scrub.reading_since.take().expect("one read at a time");
        if let Err(fault) = result {
            turn.event(Event::Failed { target: IoTarget::Volume(volume), fault, block: lba.0 });
        }
        let mut read = 0;
        for index in 0..u64::from(count) {
            let block = lba.plus(index);
            let page = turn.tables.volume_io.page(slot, index as usize);
            let sum = turn.tables.volume_io.sum(slot, index as usize);
            let counts = self.scrub.status.active && read == index;
            let steady =
                self.sums[volume.0 as usize].get(block) == sum && !self.cache.is_being_written(volume, block);
            let sound = result.is_ok() && super::mending::holds(turn.memory, page, sum);
            self.pages.release(page, turn.memory);
            if !counts {
                continue;
            }
            if steady && result.is_err() {
                self.scrub.status.bad += 1;
                self.scrub.note(volume, block, false);
            } else if steady && !sound && !self.scrub_found(turn, volume, block) {
                // There is no place to repair it: from here on again.
                continue;
            }
            read += 1;
        }
        let (at, blocks) = (lba.0 + read, self.config.volumes[volume.0 as usize].blocks);
        self.scrub.next = if at == blocks { (volume.0 + 1, 0) } else { (volume.0, at) };
        self.scrub.status.blocks_read += read;
        let paced = Nanos(read * 1_000_000_000 / self.scrub.blocks_per_second.max(1));
        let took = turn.now.since(began);
        let busy = self.ops_live > 0 || turn.now.since(self.batched_at) < BUSY_FOR;
        let yields = if busy { Nanos(took.0 * YIELDS) } else { Nanos(0) };
        self.scrub.due_at = began.plus(paced).max(turn.now.plus(yields));
        if read < u64::from(count) {
            self.scrub.due_at = self.scrub.due_at.max(turn.now.plus(LOOKS_AGAIN_AFTER));
        }
    }

    /// A block is bad; false if it is to be read again.
    fn scrub_found(&mut self, turn: &mut Turn<impl Memory>, volume: VolumeId, lba: Lba) -> bool {
        match self.mend(turn, volume, lba) {
            Outlook::Full => return false,
            Outlook::Hopeless => {
                self.scrub.status.bad += 1;
                self.scrub.note(volume, lba, false);
            }
            Outlook::UnderWay if self.note_scrubbed(volume, lba) => self.scrub.status.bad += 1,
            Outlook::UnderWay => {}
        }
        true
    }
}
