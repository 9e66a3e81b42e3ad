//! Scrubbing: what this site has on its disks is read and compared with its checksums, whether somebody asks for it or not: volumes,
//! checksum files, snapshot tables, what snapshots keep, and the journal as far as a start would read it. What has gone bad is repaired
//! as it is when somebody reads it, or, of the journal, made unneeded.

pub(super) mod journal;
mod slots;
mod sums;

use super::host::DESTAGE_SLOTS;
use super::mending::Outlook;
use super::storage::VolumeIo;
use super::{Group, Phase, Turn};
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::Event;
use crate::core::sums::Sums;

/// While hosts are at work, the disk is left to them for so many times as long as the read before took: a scrub takes a tenth of it.
const YIELDS: u64 = 9;

/// A journal batch this recent says that hosts are at work, here or at the primary.
const BUSY_FOR: Nanos = Nanos::from_millis(10);

/// When to look again if a page, a slot or a repair's place is lacking.
const LOOKS_AGAIN_AFTER: Nanos = Nanos::from_millis(5);

/// What a pass reads, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Volumes,
    Checksums,
    Tables,
    Differential,
    Journal,
}

impl Part {
    pub const ALL: [Part; 5] =
        [Part::Volumes, Part::Checksums, Part::Tables, Part::Differential, Part::Journal];
}

/// What a pass has come to in one part. Of the bad ones, those that are neither repaired nor could not be are being repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartStatus {
    /// Blocks; of the tables, entries.
    pub read: u64,
    /// As far as it is known before the part is read; of the tables it never is.
    pub total: u64,
    /// Blocks; of the journal, batches.
    pub bad: u64,
    /// Or not needed any more.
    pub repaired: u64,
    pub unrepaired: u64,
}

/// Where something is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPlace {
    Volume(VolumeId, Lba),
    /// A block of a volume's checksum file.
    Checksums(VolumeId, u64),
    Tables,
    /// A block that is kept for this snapshot.
    Kept(UpdateNumber, VolumeId, Lba),
    /// A batch that begins there.
    Journal(u64),
}

/// What the last pass, or the one under way, has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubStatus {
    pub active: bool,
    /// Whether the last pass was carried to its end.
    pub complete: bool,
    parts: [PartStatus; Part::ALL.len()],
    /// The first of those that could not be repaired.
    named: [BadPlace; SCRUB_NAMED_MAX],
    /// How long it has taken so far.
    pub for_ns: u64,
}

impl ScrubStatus {
    const NONE: ScrubStatus = ScrubStatus {
        active: false,
        complete: false,
        parts: [PartStatus { read: 0, total: 0, bad: 0, repaired: 0, unrepaired: 0 }; Part::ALL.len()],
        named: [BadPlace::Tables; SCRUB_NAMED_MAX],
        for_ns: 0,
    };

    pub fn part(&self, part: Part) -> PartStatus {
        self.parts[part as usize]
    }

    /// All parts together; what is read and is to be read, in blocks.
    pub fn sum(&self) -> PartStatus {
        Part::ALL.iter().fold(PartStatus::default(), |sum, &part| {
            let PartStatus { read, total, bad, repaired, unrepaired } = self.part(part);
            let blocks = if part == Part::Tables { 0 } else { 1 };
            PartStatus {
                read: sum.read + blocks * read,
                total: sum.total + blocks * total,
                bad: sum.bad + bad,
                repaired: sum.repaired + repaired,
                unrepaired: sum.unrepaired + unrepaired,
            }
        })
    }

    /// The first of what could not be repaired.
    pub fn named(&self) -> &[BadPlace] {
        &self.named[..(self.sum().unrepaired as usize).min(SCRUB_NAMED_MAX)]
    }
}

#[derive(Debug)]
pub(super) struct Scrub {
    status: ScrubStatus,
    began_at: Nanos,
    blocks_per_second: u64,
    /// What is read now; nothing once all is read, and what was found is being repaired.
    part: Option<Part>,
    /// Of the volumes, or of their checksum files: what is read next.
    next: (u16, u64),
    /// What hosts saw of the volumes when it began.
    sizes: VolumeSizes,
    sums: sums::SumsPass,
    slots: slots::SlotsPass,
    pub journal: journal::JournalPass,
    /// When the read that is under way began, if one is; and whether it is of a pass that has ended.
    reading_since: Option<Nanos>,
    dropped: bool,
    due_at: Nanos,
}

impl Scrub {
    pub fn new() -> Scrub {
        Scrub {
            status: ScrubStatus::NONE,
            began_at: Nanos(0),
            blocks_per_second: 0,
            part: None,
            next: (0, 0),
            sizes: VolumeSizes::default(),
            sums: sums::SumsPass::default(),
            slots: slots::SlotsPass::new(),
            journal: journal::JournalPass::new(),
            reading_since: None,
            dropped: false,
            due_at: Nanos(0),
        }
    }

    pub fn is_reading(&self) -> bool {
        self.reading_since.is_some()
    }

    fn begin_reading(&mut self, now: Nanos) {
        self.reading_since = Some(now);
    }

    /// What was asked for has come: when it was asked for, unless the pass it was for has ended.
    fn end_reading(&mut self) -> Option<Nanos> {
        let since = self.reading_since.take().expect("one read at a time");
        (!std::mem::take(&mut self.dropped)).then_some(since)
    }

    fn of(&mut self, part: Part) -> &mut PartStatus {
        &mut self.status.parts[part as usize]
    }

    fn looks_again(&mut self, now: Nanos) {
        self.due_at = now.plus(LOOKS_AGAIN_AFTER);
    }

    /// Something bad is whole or unneeded, or cannot be repaired now.
    fn note(&mut self, place: BadPlace, repaired: bool) {
        let part = match place {
            BadPlace::Volume(..) => Part::Volumes,
            BadPlace::Checksums(..) => Part::Checksums,
            BadPlace::Tables => Part::Tables,
            BadPlace::Kept(..) => Part::Differential,
            BadPlace::Journal(_) => Part::Journal,
        };
        if repaired {
            self.of(part).repaired += 1;
            return;
        }
        let before = self.status.sum().unrepaired as usize;
        if let Some(named) = self.status.named.get_mut(before) {
            *named = place;
        }
        self.of(part).unrepaired += 1;
    }

    /// A block of a volume that it had found is whole, or cannot be repaired now.
    pub fn note_block(&mut self, volume: VolumeId, lba: Lba, repaired: bool) {
        self.note(BadPlace::Volume(volume, lba), repaired);
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
            self.scrub.status = ScrubStatus { active: true, ..ScrubStatus::NONE };
            self.scrub.sizes = *self.extending.in_force();
            self.scrub.of(Part::Volumes).total = self.scrub.sizes.iter().sum();
            let volumes = self.config.volumes.iter().map(|volume| volume.blocks);
            self.scrub.of(Part::Checksums).total = volumes.map(Sums::file_blocks).sum();
            self.scrub.of(Part::Differential).total = self.slots.total() - self.slots.free();
            self.scrub.of(Part::Journal).total = self.journal.used_blocks();
            (self.scrub.began_at, self.scrub.due_at) = (turn.now, turn.now);
            (self.scrub.part, self.scrub.next) = (Some(Part::Volumes), (0, 0));
            self.scrub.sums = sums::SumsPass::default();
            self.forget_scrubbed();
        }
        self.scrub.blocks_per_second = rate;
        turn.out.to_admin.push(AdminReply { id: request.id, result: Ok(UpdateNumber::NONE) });
    }

    fn end_scrub(&mut self, turn: &mut Turn<impl Memory>, complete: bool) {
        if !std::mem::take(&mut self.scrub.status.active) {
            return;
        }
        self.scrub.dropped = self.scrub.is_reading();
        self.end_slots(turn);
        self.scrub.journal.forget();
        self.scrub.status.complete = complete;
        self.scrub.status.for_ns = turn.now.since(self.scrub.began_at).0;
        let PartStatus { read: blocks, bad, unrepaired, .. } = self.scrub.status.sum();
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
        if !self.scrub.status.active || self.scrub.is_reading() || turn.now < self.scrub.due_at {
            return;
        }
        if !matches!(self.phase, Phase::Running) || self.stopping {
            return self.end_scrub(turn, false);
        }
        // Staged blocks reach their volumes in an order of their own.
        if self.staging.installing() {
            return self.scrub.looks_again(turn.now);
        }
        match self.scrub.part {
            Some(Part::Volumes) => self.scrub_volumes(turn),
            Some(Part::Checksums) => self.scrub_sums(turn),
            Some(Part::Tables) => self.scrub_tables(turn),
            Some(Part::Differential) => self.scrub_slots(turn),
            Some(Part::Journal) => self.scrub_journal(turn),
            // What it has found is repaired before it ends.
            None if self.mends_scrubbed() => self.scrub.looks_again(turn.now),
            None => match self.sums_are_rewritten(turn) {
                true => self.end_scrub(turn, true),
                false => self.scrub.looks_again(turn.now),
            },
        }
    }

    /// A part is read to its end.
    fn next_part(&mut self, after: Part) {
        let status = self.scrub.of(after);
        status.total = status.read;
        let next = after as usize + 1;
        self.scrub.part = Part::ALL.get(next).copied();
        self.scrub.next = (0, 0);
        if self.scrub.part == Some(Part::Differential) {
            self.begin_slots();
        }
        if self.scrub.part == Some(Part::Journal) {
            self.scrub.journal.begin(&self.journal);
        }
    }

    /// So many blocks were read since then: when the next ones are.
    fn pace_scrub(&mut self, now: Nanos, began: Nanos, blocks: u64) {
        let paced = Nanos(blocks * 1_000_000_000 / self.scrub.blocks_per_second.max(1));
        self.scrub.due_at = began.plus(paced).max(now.plus(self.yields_since(now, began)));
    }

    /// How long a read that began then is followed by none: not at all, unless hosts are at work.
    pub(super) fn yields_since(&self, now: Nanos, began: Nanos) -> Nanos {
        let busy = self.ops_live > 0 || now.since(self.batched_at) < BUSY_FOR;
        if busy { Nanos(now.since(began).0 * YIELDS) } else { Nanos(0) }
    }

    /// Whether there are a slot and so many pages for a read: of what is reserved, as a read for a host, since a small cache never has
    /// more to spare.
    fn room_to_scrub(&self, count: usize) -> bool {
        self.pages.free() >= BATCH_BLOCKS_MAX + count && self.volume_slots.len() > DESTAGE_SLOTS
    }

    /// Whether so many sweeps have ended; asks for one if not. A superblock that is no sweep's leaves checksums and checkpoint as they were.
    fn checkpointed(&mut self, sweeps: u64) -> bool {
        let idle = self.destage_idle();
        let reached = idle && self.destage.sweeps() >= sweeps;
        if idle && !reached {
            self.destage.owe_checkpoint();
        }
        reached
    }

    // ---------------------------------------------------------------------------------------------------- the volumes

    fn scrub_volumes(&mut self, turn: &mut Turn<impl Memory>) {
        let (volume, lba) = self.scrub.next;
        if usize::from(volume) == self.config.volumes.len() {
            return self.next_part(Part::Volumes);
        }
        let count = (self.scrub.sizes.get(VolumeId(volume)) - lba).min(VOLUME_IO_BLOCKS_MAX as u64) as usize;
        if !self.room_to_scrub(count) {
            return self.scrub.looks_again(turn.now);
        }
        let (volume, lba, count) = (VolumeId(volume), Lba(lba), count as u32);
        self.scrub.begin_reading(turn.now);
        self.read_to_judge(turn, (volume, lba, count), VolumeIo::Scrub { volume, lba, count });
    }

    /// Whether the `index`th block of a row that [`Group::read_to_judge`] filled has gone bad; its page is released. What was written
    /// meanwhile, is being written or is to be says nothing: a crash amid a sweep leaves blocks that are newer than their sums, and replay has
    /// them written again.
    pub(super) fn found_bad(
        &mut self,
        turn: &mut Turn<impl Memory>,
        (slot, index): (SlotId, usize),
        (volume, lba): (VolumeId, Lba),
        was_read: bool,
    ) -> bool {
        let (page, sum) = (turn.tables.volume_io.page(slot, index), turn.tables.volume_io.sum(slot, index));
        let steady = self.sums[usize::from(volume.0)].get(lba) == sum
            && self.cache.is_clean(volume, lba)
            && !self.cache.is_being_written(volume, lba);
        let sound = was_read && super::mending::holds(turn.memory, page, sum);
        self.pages.release(page, turn.memory);
        steady && !sound
    }

    /// Blocks were read.
    pub(super) fn scrubbed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        (volume, lba, count): (VolumeId, Lba, u32),
        result: Result<(), IoFault>,
    ) {
        let began = self.scrub.end_reading();
        if let Err(fault) = result {
            turn.event(Event::ReadFailed { target: IoTarget::Volume(volume), fault, block: lba.0 });
        }
        let mut read = 0;
        for index in 0..u64::from(count) {
            let block = lba.plus(index);
            let counts = began.is_some() && read == index;
            let bad = self.found_bad(turn, (slot, index as usize), (volume, block), result.is_ok());
            if !counts {
                continue;
            }
            if bad && result.is_err() {
                self.scrub.of(Part::Volumes).bad += 1;
                self.scrub.note_block(volume, block, false);
            } else if bad && !self.scrub_found(turn, volume, block) {
                // There is no place to repair it: from here on again.
                continue;
            }
            read += 1;
        }
        let Some(began) = began else { return };
        let (at, blocks) = (lba.0 + read, self.scrub.sizes.get(volume));
        self.scrub.next = if at == blocks { (volume.0 + 1, 0) } else { (volume.0, at) };
        self.scrub.of(Part::Volumes).read += read;
        self.pace_scrub(turn.now, began, read);
        if read < u64::from(count) {
            self.scrub.due_at = self.scrub.due_at.max(turn.now.plus(LOOKS_AGAIN_AFTER));
        }
    }

    /// A block is bad; false if it is to be read again.
    fn scrub_found(&mut self, turn: &mut Turn<impl Memory>, volume: VolumeId, lba: Lba) -> bool {
        match self.mend(turn, volume, lba) {
            Outlook::Full => return false,
            Outlook::Hopeless => {
                self.scrub.of(Part::Volumes).bad += 1;
                self.scrub.note_block(volume, lba, false);
            }
            Outlook::UnderWay if self.note_scrubbed(volume, lba) => self.scrub.of(Part::Volumes).bad += 1,
            Outlook::UnderWay => {}
        }
        true
    }
}
