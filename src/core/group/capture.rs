//! Capture: which blocks an update overwrites that a snapshot needs, where their old content is, and which slots of the
//! differential volume they get.

use super::old_blocks::Blocks;
use super::status::DIFFERENTIAL_WARN_PERCENT;
use super::{Group, Turn};
use crate::base::*;
use crate::core::captures::{Capture, Source};
use crate::core::config::OnDifferentialFull;
use crate::core::outbox::Event;
use crate::format::update::{Update, UpdateKind};

/// Consecutive blocks of an operation that become one update.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub count: u32,
    pub slot: Slot,
}

/// Whether something has what it needs of slots and captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Enough,
    /// What is under way makes it.
    Later,
    /// Nothing will.
    Never,
}

/// A differential volume that was this full, in percent, is worth a second warning.
const WARN_AGAIN_PERCENT: u64 = 70;

/// Clean blocks' pages are held for a snapshot only while this share of what updates may hold is in use, in percent: the
/// volume has the block, and reading it again costs less than an admission that waits.
const HOLD_CLEAN_PERCENT: u64 = 75;

impl Group {
    /// Pages that updates hold back: unsettled payload, blocks not in their volume, and old content that snapshots need.
    pub(super) fn held_pages(&self) -> u64 {
        let old = (self.captures.pages() + self.lent.pages()) as u64;
        self.window.payload_blocks() as u64 + self.cache.dirty_blocks() + old
    }

    /// Cuts an operation at the borders of what is to be captured, and takes slots for it: into `pieces`, if there is room
    /// for all of them. Only for volumes that have a snapshot.
    pub(super) fn cut_in_pieces(
        &mut self,
        turn: &mut Turn<impl Memory>,
        volume: VolumeId,
        lba: Lba,
        count: u32,
        payload: usize,
    ) -> Room {
        let captured = &self.captured[volume.0 as usize];
        let needs = |index: u32| !captured.contains(lba.0 + u64::from(index));
        let wanted = (0..count).filter(|&index| needs(index)).count();
        let by_value = self.sends_old_blocks();
        let holds = |index: &u32| {
            needs(*index) && (by_value || !self.cache.is_clean(volume, lba.plus(u64::from(*index))))
        };
        let held = self.held_pages() + payload as u64 + (0..count).filter(holds).count() as u64;
        if wanted > self.captures.room() || held > self.holdable_pages as u64 {
            self.sweep_wanted = true;
            return Room::Later;
        }
        if wanted as u64 > self.slots.free() {
            return self.make_room(turn);
        }
        self.pieces.clear();
        let mut index = 0;
        while index < count {
            let captures = needs(index);
            let most = if captures { UPDATE_BLOCKS_MAX as u32 } else { ZERO_BLOCKS_MAX as u32 };
            let mut run =
                (index..count.min(index + most)).take_while(|&at| needs(at) == captures).count() as u32;
            let mut slot = Slot::NONE;
            if captures {
                let (first, slots) = self.slots.take_run(run as usize).expect("there are enough");
                (slot, run) = (first, slots as u32);
            }
            self.pieces.push(Piece { count: run, slot });
            index += run;
        }
        let updates = self.pieces.len();
        if self.window.room() <= super::stream::CONTROL_UPDATES + updates
            || !self.journal_has_room(updates, payload)
        {
            self.give_pieces_back();
            return Room::Later;
        }
        Room::Enough
    }

    /// The slots of pieces that are not numbered after all.
    fn give_pieces_back(&mut self) {
        for piece in self.pieces.drain(..).filter(|piece| piece.slot != Slot::NONE) {
            (0..u64::from(piece.count)).for_each(|index| self.slots.give(piece.slot.plus(index)));
        }
    }

    /// No slots are left: the oldest snapshot goes, or new data is refused.
    fn make_room(&mut self, turn: &mut Turn<impl Memory>) -> Room {
        if self.slots_are_coming() {
            self.let_reclaim_pass(turn);
            self.sweep_wanted = true;
            return Room::Later;
        }
        if self.config.on_differential_full == OnDifferentialFull::Error {
            return Room::Never;
        }
        let Some(oldest) = self.snapshots.living().find(|record| !record.protected).copied() else {
            return Room::Never;
        };
        if self.room_for_control(0) {
            self.append_delete(turn, oldest.number);
            turn.event(Event::SnapshotGivenUp { snapshot: oldest });
        }
        Room::Later
    }

    /// Whether captures, deletions or a reclaim that are under way may free slots.
    pub(super) fn slots_are_coming(&self) -> bool {
        !self.captures.is_empty() || self.snapshots.pending(0).is_some() || self.reclaiming()
    }

    /// An update is about to give its blocks new values: what they have now goes to its slots. On every site that takes
    /// the update, and in replay, unless the management information has it already. With `old`, that is what it is: the pages
    /// become the captures'.
    pub(super) fn capture(&mut self, turn: &mut Turn<impl Memory>, update: &Update, old: Option<&Blocks>) {
        let snapshot = self.snapshots.newest(update.volume);
        assert!(snapshot != UpdateNumber::NONE, "{} captures for no snapshot", update.number);
        let roomy = self.sends_old_blocks()
            || self.held_pages() * 100 < self.holdable_pages as u64 * HOLD_CLEAN_PERCENT;
        for index in 0..u64::from(update.count) {
            let (lba, slot) = (update.lba.plus(index), update.slot.plus(index));
            let expected = self.sums[update.volume.0 as usize].get(lba);
            let (source, sum, given_by) = match self.cache.peek(update.volume, lba) {
                cached if let Some(old) = old => {
                    let (sum, given_by) =
                        cached.map_or((expected, UpdateNumber::NONE), |value| (value.sum, value.number));
                    let page = self.keep_old_block(turn, old[index as usize].0, sum);
                    (Source::Page(page), sum, given_by)
                }
                Some(value) if roomy || !self.cache.is_clean(update.volume, lba) => {
                    self.pages.share(value.page);
                    (Source::Page(value.page), value.sum, value.number)
                }
                _ if expected == BlockSum::ZEROS => {
                    (Source::Page(PageId::ZERO), BlockSum::ZEROS, UpdateNumber::NONE)
                }
                _ => (Source::Volume, expected, UpdateNumber::NONE),
            };
            self.captures.push(Capture {
                number: update.number,
                volume: update.volume,
                lba,
                snapshot,
                slot,
                sum,
                source,
                given_by,
            });
            self.captured[update.volume.0 as usize].insert(lba.0);
        }
        self.warn_if_filling();
    }

    fn warn_if_filling(&mut self) {
        let used = (self.slots.total() - self.slots.free()) * 100 / self.slots.total().max(1);
        if used < WARN_AGAIN_PERCENT {
            self.differential_warned = false;
        } else if used >= DIFFERENTIAL_WARN_PERCENT && !self.differential_warned {
            self.differential_warned = true;
            self.differential_warning = true;
        }
    }

    /// Tells of a differential volume that fills.
    pub(super) fn tell_of_filling(&mut self, turn: &mut Turn<impl Memory>) {
        if std::mem::take(&mut self.differential_warning) {
            let total = self.slots.total();
            turn.event(Event::DifferentialFilling {
                role: self.role,
                used: total - self.slots.free(),
                total,
            });
        }
    }

    /// Whether an update that this site did not number has what it needs here: a place for each capture, and slots that
    /// are free. This site may be behind the one that gave them in freeing what they held before.
    pub(super) fn room_to_follow(&mut self, update: &Update) -> Room {
        let room = match update.kind {
            _ if update.number <= self.applied => Room::Enough,
            UpdateKind::SnapshotCreate if self.snapshots.room() == 0 => Room::Later,
            UpdateKind::SnapshotProtect | UpdateKind::SnapshotUnprotect
                if !self.snapshots.room_to_protect() =>
            {
                Room::Later
            }
            UpdateKind::Write | UpdateKind::Zero if update.captures() => {
                let count = update.count as usize;
                if !self.slots.has(update.slot, count) {
                    Room::Never
                } else if self.captures.room() < count || !self.slots.are_free(update.slot, count) {
                    Room::Later
                } else {
                    Room::Enough
                }
            }
            _ => Room::Enough,
        };
        match room {
            Room::Later if !self.slots_are_coming() => Room::Never,
            Room::Later => {
                self.sweep_wanted = true;
                Room::Later
            }
            room => room,
        }
    }

    /// Takes the slots that an update names, which `room_to_follow` found free.
    pub(super) fn follow_slots(&mut self, update: &Update) {
        if update.captures() && update.number > self.applied {
            (0..u64::from(update.count)).for_each(|index| self.slots.take(update.slot.plus(index)));
        }
    }

    /// The updates after `keep` are cut from the stream: what they captured is not needed.
    pub(super) fn uncapture(&mut self, turn: &mut Turn<impl Memory>, keep: UpdateNumber) {
        while self.captures.back().is_some_and(|capture| capture.number > keep) {
            let capture = self.captures.pop_back().expect("looked at it");
            self.let_go(turn, &capture);
            self.slots.give(capture.slot);
            // A mark too few costs a capture that turns out to be redundant; one too many would lose a block.
            self.captured[capture.volume.0 as usize].remove(capture.lba.0);
        }
        // What the tables have is of the stream that goes on, even if they are ahead of it here.
        self.snapshots.cut(keep.max(self.applied));
    }

    pub(super) fn let_go(&mut self, turn: &mut Turn<impl Memory>, capture: &Capture) {
        if let Source::Page(page) | Source::Read(page) = capture.source {
            self.pages.release(page, turn.memory);
        }
    }

    /// The oldest capture of a block that is not durable yet, of updates up to `number`.
    pub(super) fn capture_before(
        &self,
        volume: VolumeId,
        lba: Lba,
        number: UpdateNumber,
    ) -> Option<&Capture> {
        self.captures.of_block(volume, lba).filter(|capture| capture.number <= number).last()
    }
}
