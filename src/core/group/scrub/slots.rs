//! The snapshot tables, read from the disk whole; and the slots of the differential volume that they name. An entry stays what it is
//! until a reclaim removes it, and its slot until then: so a slot that is not what an entry says is bad if the entry is still there
//! afterwards.

use super::{BadPlace, Part};
use crate::base::*;
use crate::core::group::differential::MetadataIo;
use crate::core::group::repair::Damaged;
use crate::core::group::storage::VolumeIo;
use crate::core::group::{Group, Turn};
use crate::core::messages::*;
use crate::core::outbox::{Event, NotRepaired};
use crate::format::metadata::Captured;
use crate::format::snapshot::SnapshotName;
use crate::format::tables::entry_at;

/// Slots of the metadata's table that are left to commits and reclaims.
const OTHERS_SLOTS: usize = 4;

/// A peer that has other things to do is asked again for so long.
const BUSY_MAX: Nanos = Nanos::from_millis(1_000);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// Its entry may be gone.
    Entry,
    /// It is bad, and the peer is to be asked for it.
    Bad,
    /// The peer was asked for it; it is read again when that is over.
    Asked,
    /// And it is bad still, if the entry is there still.
    StillBad,
}

/// A slot that is not what its entry says.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    entry: Captured,
    doubt: Doubt,
    since: Nanos,
    /// Slots that had been reclaimed when its entry was last seen: it may be one of those that came free since.
    reclaimed: u64,
}

#[derive(Debug)]
pub(super) struct SlotsPass {
    /// The row of entries to ask for next; none behind the last.
    from: Option<EntriesFrom>,
    /// The page with those that are being read, how many it has, and which comes next.
    page: PageId,
    count: usize,
    at: usize,
    suspect: Option<Suspect>,
}

impl SlotsPass {
    pub fn new() -> SlotsPass {
        SlotsPass { from: None, page: PageId::NONE, count: 0, at: 0, suspect: None }
    }
}

impl Group {
    // ------------------------------------------------------------------------------------------------------ the tables

    /// Asks the metadata executor, once there are a slot and a page.
    fn ask_for_scrub(&mut self, turn: &mut Turn<impl Memory>, io: MetadataIo, op: MetadataOp) {
        if self.metadata_slots.len() <= OTHERS_SLOTS || self.pages.free() <= BATCH_BLOCKS_MAX {
            return self.scrub.looks_again(turn.now);
        }
        let slot = self.metadata_slots.pop().expect("checked above");
        let page = self.pages.take().expect("checked above");
        turn.tables.metadata_io.set(slot, 0, page, BlockSum::ZEROS);
        self.scrub.begin_reading(turn.now);
        self.submit_metadata(turn, slot, io, op);
    }

    pub(super) fn scrub_tables(&mut self, turn: &mut Turn<impl Memory>) {
        self.ask_for_scrub(turn, MetadataIo::Check, MetadataOp::Check);
    }

    /// They are what was written there.
    pub(in crate::core::group) fn tables_scrubbed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        entries: u64,
    ) {
        self.pages.release(turn.tables.metadata_io.page(slot, 0), turn.memory);
        if self.scrub.end_reading().is_some() {
            self.scrub.of(Part::Tables).read = entries;
            self.next_part(Part::Tables);
        }
    }

    /// They are not, or cannot be read: what they say is not gone by.
    pub(in crate::core::group) fn tables_not_scrubbed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        fault: MetadataFault,
    ) {
        self.pages.release(turn.tables.metadata_io.page(slot, 0), turn.memory);
        turn.event(match fault {
            MetadataFault::Corrupt => Event::TablesDamaged,
            MetadataFault::Storage => Event::TablesUnreadable,
        });
        if self.scrub.end_reading().is_some() {
            self.end_slots(turn);
            self.scrub.of(Part::Tables).bad += 1;
            self.scrub.note(BadPlace::Tables, false);
            self.next_part(Part::Differential);
        }
    }

    // ------------------------------------------------------------------------------------------------------- the slots

    pub(super) fn begin_slots(&mut self) {
        self.scrub.slots.from = (self.slots.total() > 0).then(EntriesFrom::default);
    }

    pub(super) fn end_slots(&mut self, turn: &mut Turn<impl Memory>) {
        let SlotsPass { page, .. } = std::mem::replace(&mut self.scrub.slots, SlotsPass::new());
        if page != PageId::NONE {
            self.pages.release(page, turn.memory);
        }
    }

    pub(super) fn scrub_slots(&mut self, turn: &mut Turn<impl Memory>) {
        if let Some(suspect) = self.scrub.slots.suspect {
            return self.scrub_suspect(turn, suspect);
        }
        if self.scrub.slots.page == PageId::NONE {
            return match self.scrub.slots.from {
                Some(from) => {
                    self.ask_for_scrub(turn, MetadataIo::Entries, MetadataOp::Entries { from });
                }
                None => self.next_part(Part::Differential),
            };
        }
        let SlotsPass { page, count, mut at, .. } = self.scrub.slots;
        let entry = |index| entry_at(turn.memory.bytes(page), index).expect("this site's own entries");
        // What reads as zeros needs no disk.
        let skipped = (at..count).take_while(|&index| entry(index).sum == BlockSum::ZEROS).count();
        at += skipped;
        self.scrub.slots.at = at;
        let first = (at < count).then(|| entry(at));
        let follows = |(index, slot): (usize, Slot)| {
            let entry = entry(index);
            entry.slot == slot && entry.sum != BlockSum::ZEROS
        };
        let run = first.map_or(0, |first| {
            let places = (at..count).zip((first.slot.0..).map(Slot)).take(VOLUME_IO_BLOCKS_MAX);
            places.take_while(|&place| follows(place)).count()
        });
        self.scrub.of(Part::Differential).read += skipped as u64;
        match first {
            Some(first) => self.read_slots(turn, first.slot, run as u32),
            None => {
                self.pages.release(page, turn.memory);
                self.scrub.slots.page = PageId::NONE;
            }
        }
    }

    fn read_slots(&mut self, turn: &mut Turn<impl Memory>, first: Slot, count: u32) {
        if !self.room_to_scrub(count as usize) {
            return self.scrub.looks_again(turn.now);
        }
        self.scrub.begin_reading(turn.now);
        self.read_blocks(turn, IoTarget::Differential, first.0, count, VolumeIo::ScrubSlots { first, count });
    }

    /// Entries have come: those of the next rows, or of a row that somebody is in doubt of.
    pub(in crate::core::group) fn entries_scrubbed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        count: u32,
        next: Option<EntriesFrom>,
    ) {
        let page = turn.tables.metadata_io.page(slot, 0);
        if self.scrub.end_reading().is_none() {
            return self.pages.release(page, turn.memory);
        }
        let Some(suspect) = self.scrub.slots.suspect else {
            let slots = &mut self.scrub.slots;
            (slots.from, slots.page, slots.count, slots.at) = (next, page, count as usize, 0);
            return;
        };
        let bytes = turn.memory.bytes(page);
        let there = (0..count as usize).any(|index| entry_at(bytes, index) == Ok(suspect.entry));
        self.pages.release(page, turn.memory);
        self.judge_suspect(turn, suspect, there);
    }

    /// Slots were read.
    pub(in crate::core::group) fn slots_scrubbed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        (first, count): (Slot, u32),
        result: Result<(), IoFault>,
    ) {
        let began = self.scrub.end_reading();
        if let Err(fault) = result {
            turn.event(Event::ReadFailed { target: IoTarget::Differential, fault, block: first.0 });
        }
        let mut read = 0;
        for index in 0..count as usize {
            let page = turn.tables.volume_io.page(slot, index);
            let goes_on = began.is_some() && read == index as u64;
            let suspected = self.scrub.slots.suspect;
            if goes_on {
                let entries = turn.memory.bytes(self.scrub.slots.page);
                let entry = entry_at(entries, self.scrub.slots.at).expect("this site's own entries");
                let sound = result.is_ok() && turn.memory.sum(page) == entry.sum;
                match (sound, suspected) {
                    (true, None) => self.scrub.slots.at += 1,
                    (true, Some(suspect)) => self.end_suspect(suspect, Some(true)),
                    (false, None) if result.is_err() => {
                        self.scrub.of(Part::Differential).bad += 1;
                        let Captured { snapshot, volume, lba, .. } = entry;
                        self.scrub.note(BadPlace::Kept(snapshot, volume, lba), false);
                        self.scrub.slots.at += 1;
                    }
                    (false, None) => {
                        let suspect = Suspect { entry, doubt: Doubt::Entry, since: turn.now, reclaimed: 0 };
                        self.scrub.slots.suspect = Some(suspect);
                    }
                    (false, Some(suspect)) => {
                        self.scrub.slots.suspect = Some(Suspect { doubt: Doubt::StillBad, ..suspect });
                    }
                }
                read += u64::from(sound || (suspected.is_none() && result.is_err()));
            }
            self.pages.release(page, turn.memory);
        }
        let Some(began) = began else { return };
        self.scrub.of(Part::Differential).read += read;
        self.pace_scrub(turn.now, began, u64::from(count));
    }

    fn scrub_suspect(&mut self, turn: &mut Turn<impl Memory>, suspect: Suspect) {
        let Suspect { entry, doubt, .. } = suspect;
        match doubt {
            Doubt::Entry | Doubt::StillBad => {
                let Captured { volume, lba, snapshot, .. } = entry;
                let from = EntriesFrom { volume, lba, snapshot };
                self.ask_for_scrub(turn, MetadataIo::Entries, MetadataOp::Entries { from });
            }
            Doubt::Bad => {
                if let Some(why) = self.nobody_lends() {
                    return self.suspect_stays(turn, suspect, Some(why));
                }
                let Captured { volume, lba, slot, sum, .. } = entry;
                let damaged = Damaged { snapshot: self.kept_for(&entry), volume, lba, slot, sum };
                // Whatever was said before, to whomever, is not the answer to this.
                self.repair.forget_lacked();
                // Another one is being repaired, or a reclaim may set this one free, or has.
                let there = suspect.reclaimed == self.counters.reclaimed_blocks;
                if there && self.begin_repair(turn, damaged) {
                    self.scrub.slots.suspect = Some(Suspect { doubt: Doubt::Asked, ..suspect });
                } else {
                    // The entry may be gone by then.
                    self.scrub.slots.suspect = Some(Suspect { doubt: Doubt::StillBad, ..suspect });
                }
                self.scrub.looks_again(turn.now);
            }
            Doubt::Asked if self.repairing(turn.now) => self.scrub.looks_again(turn.now),
            Doubt::Asked => self.read_slots(turn, entry.slot, 1),
        }
    }

    /// The tables were asked whether its entry is still there.
    fn judge_suspect(&mut self, turn: &mut Turn<impl Memory>, suspect: Suspect, there: bool) {
        let suspect = Suspect { reclaimed: self.counters.reclaimed_blocks, ..suspect };
        let Suspect { entry, doubt, since, .. } = suspect;
        let lacked = self.repair.lacked(entry.slot);
        match doubt {
            Doubt::Entry if !there => self.end_suspect(suspect, None),
            Doubt::Entry => {
                self.scrub.of(Part::Differential).bad += 1;
                let (snapshot, Captured { volume, lba, .. }) = (self.kept_for(&entry), entry);
                turn.event(Event::SnapshotMismatch { snapshot, volume, lba });
                self.scrub.slots.suspect = Some(Suspect { doubt: Doubt::Bad, ..suspect });
            }
            // Nobody needs it any more.
            _ if !there => self.end_suspect(suspect, Some(true)),
            _ if matches!(lacked, None | Some(Lacking::Busy)) && turn.now.since(since) < BUSY_MAX => {
                self.scrub.slots.suspect = Some(Suspect { doubt: Doubt::Bad, ..suspect });
                self.scrub.looks_again(turn.now);
            }
            // What the peer has said is known.
            _ => {
                let why = match lacked {
                    None => Some(NotRepaired::NoAnswer),
                    Some(Lacking::Busy) => Some(NotRepaired::Busy),
                    Some(_) => None,
                };
                self.suspect_stays(turn, suspect, why);
            }
        }
    }

    fn suspect_stays(&mut self, turn: &mut Turn<impl Memory>, suspect: Suspect, why: Option<NotRepaired>) {
        let Captured { volume, lba, .. } = suspect.entry;
        if let Some(why) = why {
            let snapshot = self.kept_for(&suspect.entry);
            self.counters.unrepaired_blocks += 1;
            turn.event(Event::SnapshotNotRepaired { snapshot, volume, lba, why });
        }
        self.end_suspect(suspect, Some(false));
    }

    /// The pass goes on behind it. It was bad, and is repaired or not; or it never was, as far as anybody knows.
    fn end_suspect(&mut self, suspect: Suspect, repaired: Option<bool>) {
        let Captured { snapshot, volume, lba, .. } = suspect.entry;
        if let Some(repaired) = repaired {
            self.scrub.note(BadPlace::Kept(snapshot, volume, lba), repaired);
        }
        if suspect.doubt != Doubt::Asked {
            self.scrub.of(Part::Differential).read += 1;
        }
        self.scrub.slots.suspect = None;
        self.scrub.slots.at += 1;
    }

    /// A snapshot that reads the entry's block, by name: the one that it was captured for may be deleted.
    fn kept_for(&self, entry: &Captured) -> SnapshotName {
        let needs = self
            .snapshots
            .living()
            .filter(|record| record.volumes.contains(entry.volume) && record.number <= entry.snapshot);
        needs.last().map(|record| record.name).unwrap_or_default()
    }
}
