//! The changed-block set as a group keeps it: what enters the stream while the peer may lack it is marked, marks become durable
//! before a sweep goes on to the volumes, and the set ends when the peer has all of it (INV-9).

use super::destage::Step as Destaging;
use super::differential::{COMMIT_LEAVES_PAGES, MetadataIo};
use super::peering::Talk;
use super::resync::Step;
use super::targets::{TARGETS, Target};
use super::{Alone, Group, Phase, Turn};
use crate::base::*;
use crate::core::changed::Unsaved;
use crate::core::messages::*;
use crate::format::update::Update;

impl Group {
    /// Whether the peer may be copied what it lacks.
    pub(super) fn may_resync(&self) -> bool {
        self.config.peer.is_some() && self.config.resync.staging_blocks > 0
    }

    /// This site may go on alone: from here on it remembers what it changes. The peer has everything up to `base`.
    pub(super) fn track_changes(&mut self, base: UpdateNumber) {
        if !self.may_resync() {
            return;
        }
        let retired = self.window.retired();
        assert!(self.changed.tracking() || base >= retired, "INV-9: {base} to {retired} would not be marked");
        self.changed.begin(base);
        for number in self.window.retired().max(base).0 + 1..=self.window.last().0 {
            let update = self.window.get(UpdateNumber(number)).update;
            self.mark_changed(&update);
        }
        // A sweep that is about to go on covers some of these.
        self.changed.want_saved();
    }

    /// An update enters the stream.
    pub(super) fn note_changed(&mut self, update: &Update) {
        for to in TARGETS {
            if self.resyncs[to].step != Step::None {
                self.resyncs[to].note_recent(update);
            }
        }
        if !self.changed.tracking() {
            return;
        }
        let joint = matches!(self.phase, Phase::Running)
            && self.alone == Alone::No
            && update.number >= self.joint_from;
        // What the peer gets now is marked as well: as long as there is a set it has everything that came after it began, for a peer that
        // has come by new disks meanwhile. It is over when the peer has what it lacked.
        self.mark_blocks(update);
        if !joint {
            self.changed.note(update.number);
        }
    }

    fn mark_changed(&mut self, update: &Update) {
        self.mark_blocks(update);
        self.changed.note(update.number);
    }

    fn mark_blocks(&mut self, update: &Update) {
        if update.touches_blocks() {
            self.changed.mark(update.volume, update.lba, update.count);
        }
        if update.captures() {
            self.changed.mark(self.slots_id(), Lba(update.slot.0), update.count);
        }
    }

    /// The peer is durable through everything that was marked, and is in the set again.
    pub(super) fn forget_changes_if_caught_up(&mut self) {
        let caught_up = self.changed.tracking()
            && self.alone == Alone::No
            && self.peer.talk == Talk::Streaming
            && self.peer.durable >= self.changed.through().max(self.joint_from.previous());
        if caught_up {
            self.changed.end(self.peer.durable);
            self.resyncs[Target::Peer].step = Step::None;
        }
    }

    /// What a sweep's checkpoint covers is in the stream by now, and marked.
    pub(super) fn marks_are_due(&mut self) -> Destaging {
        self.changed.want_saved();
        Destaging::Marks
    }

    /// Saves what is due of the set; whether all of that is durable.
    pub(super) fn save_changes(&mut self, turn: &mut Turn<impl Memory>) -> bool {
        if self.committing {
            return false;
        }
        let unsaved = self.changed.unsaved();
        if unsaved == Unsaved::Nothing {
            return true;
        }
        if self.pages.free() < COMMIT_LEAVES_PAGES + 2 {
            return false;
        }
        let Some(slot) = self.metadata_slots.pop() else { return false };
        let answer = self.pages.take().expect("counted above");
        turn.tables.metadata_io.set(slot, 0, answer, BlockSum::ZEROS);
        self.committing = true;
        if unsaved == Unsaved::Stale {
            self.submit_metadata(turn, slot, MetadataIo::DropMarks, MetadataOp::DropMarks);
            return false;
        }
        let most = METADATA_PAGES_MAX.min(self.pages.free() - COMMIT_LEAVES_PAGES);
        self.changed.save_base();
        let mut pages = 0;
        while pages < most {
            let page = self.pages.take().expect("counted above");
            if !self.changed.save_page(turn.memory.bytes_mut(page)) {
                self.pages.release(page, turn.memory);
                break;
            }
            turn.memory.seal(page);
            pages += 1;
            turn.tables.metadata_io.set(slot, pages, page, BlockSum::ZEROS);
        }
        let op = MetadataOp::SaveMarks { base: self.changed.base(), pages: pages as u32 };
        self.submit_metadata(turn, slot, MetadataIo::SaveMarks { pages }, op);
        false
    }

    pub(super) fn marks_saved(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId, pages: usize) {
        for index in 0..=pages {
            self.pages.release(turn.tables.metadata_io.page(slot, index), turn.memory);
        }
        self.committing = false;
    }

    pub(super) fn marks_dropped(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId) {
        self.changed.dropped();
        self.marks_saved(turn, slot, 0);
    }
}
