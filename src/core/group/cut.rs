//! A secondary drops its tail: what the primary never had, or had and lost.

use super::peering::{Talk, refusal};
use super::stream::end_of;
use super::{Group, Turn};
use crate::base::*;
use crate::core::cache::Value;
use crate::core::journal::Forming;
use crate::core::outbox::Event;
use crate::core::window::Window;
use crate::format::wire::RefusalCode;

impl Group {
    pub(super) fn on_cut_to(&mut self, turn: &mut Turn<impl Memory>, keep: UpdateNumber) {
        if !self.may_cut_to(keep) {
            let refusal = refusal(
                RefusalCode::SplitBrain,
                format_args!(
                    "asked to drop everything after {keep}, but this site settled {} (split brain)",
                    self.settled
                ),
            );
            return self.refuse(turn, refusal);
        }
        self.peer.talk = Talk::CutPending { keep };
    }

    /// INV-7: drops the tail after the last common point, here and in the journal, once no write of it is in flight.
    pub(super) fn cut_if_pending(&mut self, turn: &mut Turn<impl Memory>) {
        let Talk::CutPending { keep } = self.peer.talk else { return };
        // What was on its way to the disk when the cut was asked for may have settled since.
        if !self.may_cut_to(keep) {
            return self.on_cut_to(turn, keep);
        }
        let quiet = self.journal.appended() == self.window.last()
            && self.journal.writes_in_flight() == 0
            && !self.journal.flush_in_flight()
            && self.peer.consumed >= self.peer.sent;
        if !quiet || !self.journal.has_slot() || !self.journal.has_room_for_cut() {
            return;
        }
        let Some(header) = self.pages.take() else { return };
        let dropped = self.window.last().0 - keep.0;
        while self.window.last() > keep {
            let update = self.window.cut_last().update;
            for index in 0..if update.touches_blocks() { update.count } else { 0 } {
                let lba = update.lba.plus(u64::from(index));
                self.cache.unnumber(update.volume, lba, update.number);
            }
            for index in 0..update.payload_blocks() {
                let (page, _) = Window::block(&turn.tables.window, &update, index);
                self.pages.release(page, turn.memory);
            }
        }
        for number in self.settled.0 + 1..=keep.0 {
            let update = self.window.get(UpdateNumber(number)).update;
            for index in 0..if update.touches_blocks() { update.count } else { 0 } {
                let (page, sum) = Window::block(&turn.tables.window, &update, index as usize);
                let value = Value { page, sum, number: update.number };
                self.cache.renumber(update.volume, update.lba.plus(u64::from(index)), value);
            }
        }
        self.replayed = self.replayed.min(keep);
        self.note_cut_for_third(turn);
        self.readers_cut_to(keep);
        self.scrub.journal.bad_batches_cut_to(keep);
        self.uncapture(turn, keep);
        // With an opening goes what it took back.
        let end = match self.window.contains(keep) {
            true => end_of(&self.window.get(keep).update).map(|left| (keep, left)),
            false => self.ended.filter(|(at, _)| *at == keep),
        };
        self.history.truncate_after(keep);
        self.left = self.left.filter(|(at, _)| *at <= keep).or(end);
        // What made it a secondary may be among what is dropped: it is one, of the site that it is connected to.
        self.role_at = self.role_at.min(keep);
        self.generation = self.history.last().map_or(Generation::NONE, |(generation, _)| generation);
        let write = self.journal.form_cut(
            Forming { group: self.config.group, settled: self.settled, header, now: turn.now },
            keep,
            self.generation,
            &turn.tables.journal_io,
            turn.memory,
        );
        turn.out.to_journal.push(write.request());
        // Batches cut away whole take ring space that the next superblock gives back.
        self.note_retention();
        self.peer.told_settled = self.peer.told_settled.min(keep);
        self.peer.flush_requested = UpdateNumber::NONE;
        self.peer.sent = self.peer.sent.min(keep);
        self.peer.consumed = self.peer.consumed.min(keep);
        self.peer.talk = Talk::Following;
        self.peer.ack_owed = true;
        turn.event(Event::TailCut { keep, dropped });
    }
}
