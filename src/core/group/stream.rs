//! The stream: numbering, journal batches, and the watermarks that gate replies, destage and reuse.

use super::old_blocks::Blocks;
use super::peering::Talk;
use super::{Alone, Group, Phase, Turn};
use crate::base::*;
use crate::core::config::{AckLevel, Role};
use crate::core::journal::Forming;
use crate::core::messages::*;
use crate::core::outbox::{Event, WriteStamps};
use crate::core::window::{Pending, Waiter, Window};
use crate::format::superblock::Left;
use crate::format::update::{Update, UpdateKind};

/// Window places kept for updates that no host asks for: generation, solo begin and end.
pub(super) const CONTROL_UPDATES: usize = 8;

impl Group {
    /// Gives `update` its place in the stream: window, index, and (by `end_turn`) link and journal. `block` names the page
    /// and sum of each payload block; the pages become the window's. `old` is what its blocks held before, if that came with it,
    /// whose pages become the captures'.
    pub(super) fn append(
        &mut self,
        turn: &mut Turn<impl Memory>,
        update: Update,
        waiter: Option<Waiter>,
        stamps: WriteStamps,
        block: impl Fn(usize) -> (PageId, BlockSum),
        old: Option<&Blocks>,
    ) {
        let slot = Window::slot_of(update.number);
        for index in 0..update.payload_blocks() {
            let (page, sum) = block(index);
            turn.memory.seal(page);
            turn.tables.window.set(slot, index, page, sum);
        }
        self.window.push(Pending { update, waiter, stamps, given_to_link_at: turn.now });
        self.unappended_blocks += update.payload_blocks() as u64;
        if update.captures() && update.number > self.applied {
            self.capture(turn, &update, old);
        }
        self.index(turn, &update);
        self.note_control(turn, &update);
        self.note_changed(&update);
        self.note_written(&update);
    }

    fn index(&mut self, turn: &mut Turn<impl Memory>, update: &Update) {
        if !update.touches_blocks() {
            return;
        }
        for index in 0..update.count {
            let (page, sum) = Window::block(&turn.tables.window, update, index as usize);
            let value = crate::core::cache::Value { page, sum, number: update.number };
            self.cache.number(update.volume, update.lba.plus(u64::from(index)), value);
        }
    }

    /// What generation and solo records change in the group itself, on every site that takes them.
    fn note_control(&mut self, turn: &mut Turn<impl Memory>, update: &Update) {
        match update.kind {
            UpdateKind::GenerationOpen => {
                self.left = None;
                // Replay knows the newest one before it comes to it.
                if update.generation > self.generation {
                    let (generation, first) = (update.generation, update.number);
                    self.generation = generation;
                    self.history.push(generation, first);
                    turn.event(Event::GenerationOpened { generation, first });
                    if generation.opener() == self.config.site {
                        self.note_takeover_for_third(turn.now, first);
                    }
                }
            }
            UpdateKind::Rewrite => self.rewritten = update.number,
            UpdateKind::StepDown | UpdateKind::HandOver | UpdateKind::GiveWay => {
                self.left = end_of(update).map(|left| (update.number, left));
            }
            kind if (kind == UpdateKind::SnapshotCreate || kind.names_snapshot())
                && update.number > self.applied =>
            {
                self.note_snapshot(turn, update);
            }
            _ => {}
        }
    }

    /// Numbers an update of the group's own.
    pub(super) fn append_control(
        &mut self,
        turn: &mut Turn<impl Memory>,
        kind: UpdateKind,
        generation: Generation,
    ) -> UpdateNumber {
        self.append_naming(turn, kind, generation, Lba(0))
    }

    /// Numbers one that names something in place of a block.
    pub(super) fn append_naming(
        &mut self,
        turn: &mut Turn<impl Memory>,
        kind: UpdateKind,
        generation: Generation,
        lba: Lba,
    ) -> UpdateNumber {
        let number = self.window.last().next();
        let update = Update { number, generation, lba, kind, ..Update::EMPTY };
        let stamps = WriteStamps { numbered_at: turn.now, ..WriteStamps::default() };
        self.append(turn, update, None, stamps, |_| unreachable!("{kind:?} has no payload"), None);
        number
    }

    /// What the journal has room for behind all that is numbered and not appended, each update with a header of its own.
    pub(super) fn journal_room(&self) -> u64 {
        let pending = self.window.last().0 - self.journal.appended().0 + self.unappended_blocks;
        self.journal.free_blocks().saturating_sub(pending)
    }

    /// Whether `payload` more blocks, and a header for each of so many updates, are sure to fit behind all that is numbered but
    /// not appended, here and at the peer (INV-12).
    pub(super) fn journal_has_room(&self, updates: usize, payload: usize) -> bool {
        let pending: u64 = self.window.last().0 - self.journal.appended().0;
        let pending_blocks = pending + self.unappended_blocks + (payload + updates) as u64;
        self.journal.free_blocks() >= pending_blocks && self.peer_has_room(pending_blocks)
    }

    /// Whether the peer's journal is sure to take `blocks` more behind what it has not said it received (INV-12).
    pub(super) fn peer_has_room(&self, blocks: u64) -> bool {
        if !self.in_set() || self.peer.talk != Talk::Streaming {
            return true;
        }
        self.journal.cost_since(self.peer.received) + blocks <= self.peer.journal_free_blocks
    }

    /// Submits as many batches as there are updates and places for.
    pub(super) fn append_batches(&mut self, turn: &mut Turn<impl Memory>) {
        while self.journal.appended() < self.window.last() {
            // While the disk is busy with others, a batch waits to fill: fewer, larger writes at high queue depth.
            let waiting = self.window.last().0 - self.journal.appended().0;
            if self.journal.writes_in_flight() >= EAGER_BATCHES && waiting < BATCH_DESCRIPTORS_MAX as u64 {
                return;
            }
            let Some(header) = self.pages.take() else { return };
            let (window, tables) = (&self.window, turn.tables);
            let written = self.journal.form_batch(
                Forming { group: self.config.group, settled: self.settled, header, now: turn.now },
                &tables.journal_io,
                turn.memory,
                |number| window.contains(number).then(|| (window.get(number).update, &tables.window)),
            );
            let Some(write) = written else {
                self.pages.release(header, turn.memory);
                return;
            };
            turn.out.to_journal.push(write.request());
            self.unappended_blocks -= u64::from(write.count) - 1;
            self.counters.journal_batches += 1;
            self.batched_at = turn.now;
            self.counters.journal_blocks += u64::from(write.count);
            for number in write.first.0..=write.last.0 {
                self.window.get_mut(UpdateNumber(number)).stamps.journal_submitted_at = turn.now;
            }
        }
    }

    /// Moves `acknowledged` and `settled` as far as journals and peer allow, and tells those who wait.
    pub(super) fn advance(&mut self, turn: &mut Turn<impl Memory>) {
        if let Alone::Beginning(at) = self.alone
            && self.journal.durable() >= at
        {
            self.alone = Alone::Yes;
            turn.event(Event::SoloBegan { at });
        }
        if self.role == Role::Primary && matches!(self.phase, Phase::Running) {
            let acknowledged = self.may_acknowledge();
            while self.acknowledged < acknowledged {
                self.acknowledged = self.acknowledged.next();
                self.release_reply(turn, self.acknowledged);
            }
        }
        let settled = self.may_settle();
        while self.settled < settled {
            let number = self.settled.next();
            self.settle(turn, number);
            self.settled = number;
            if self.comparing.awaits(number) {
                self.note_compared();
            }
        }
        self.wake_watchers(turn);
    }

    /// The prefix that is held at the configured level by every site of the synchronous set (INV-1).
    fn may_acknowledge(&self) -> UpdateNumber {
        let local = match self.config.ack {
            AckLevel::Received | AckLevel::Journaled => self.journal.journaled(),
            AckLevel::Durable | AckLevel::Applied => self.journal.durable(),
        };
        if !self.in_set() {
            return match self.alone {
                Alone::Beginning(at) => local.min(at.previous()),
                _ => local,
            };
        }
        // A `SoloEnd` that a crash undid, or a `SoloBegin` that it did not, would let this site go on alone, without what it
        // acknowledged with its peer.
        let joint = match self.alone {
            _ if self.rejoining() => UpdateNumber::NONE,
            Alone::Beginning(at) => self.peer_level().min(at.previous()),
            _ => self.peer_level(),
        };
        local.min(joint.max(self.joint_from.previous()))
    }

    /// Whether `SoloEnd` is not durable yet.
    fn rejoining(&self) -> bool {
        self.in_set() && self.journal.durable() < self.joint_from
    }

    /// The prefix that is durable on every site of the synchronous set (INV-4).
    fn may_settle(&self) -> UpdateNumber {
        let bound = match self.role {
            Role::Secondary => self.peer.told_settled,
            // It is given nothing else (INV-4).
            Role::Third => UpdateNumber(u64::MAX),
            Role::Primary if matches!(self.phase, Phase::Recovering(_)) => self.peer.told_settled,
            Role::Primary if self.in_set() => self.peer.durable.max(self.joint_from.previous()),
            Role::Primary => UpdateNumber(u64::MAX),
        };
        self.journal.durable().min(bound).min(self.window.last())
    }

    /// The remote write pending indicator of this update is reset: its host may have its reply.
    fn release_reply(&mut self, turn: &mut Turn<impl Memory>, number: UpdateNumber) {
        if !self.window.contains(number) {
            return;
        }
        let pending = self.window.get_mut(number);
        pending.stamps.replied_at = turn.now;
        let Some(waiter) = pending.waiter.filter(|waiter| !waiter.fua || number <= self.settled) else {
            return;
        };
        pending.waiter = None;
        let stamps = pending.stamps;
        self.note_write_latency(turn.now.since(stamps.taken_at));
        self.answer(turn, (waiter.front, waiter.ticket), Ok(()));
        if turn.out.stamps.room() > 0 {
            turn.out.stamps.push(stamps);
        }
    }

    /// The update is durable wherever it must be: destage may have it, and a forced write its reply.
    fn settle(&mut self, turn: &mut Turn<impl Memory>, number: UpdateNumber) {
        let pending = *self.window.get(number);
        let update = pending.update;
        if let Some(left) = end_of(&update) {
            self.ended = Some((number, left));
        }
        if update.touches_blocks() {
            for index in 0..update.count {
                let (page, sum) = Window::block(&turn.tables.window, &update, index as usize);
                let value = crate::core::cache::Value { page, sum, number };
                let lba = update.lba.plus(u64::from(index));
                self.cache.settle(update.volume, lba, value, &mut self.pages, turn.memory);
            }
        }
        // A control update leaves nothing to write, but the checkpoint is to pass it too.
        self.destage.note_dirty(turn.now);
        if let Some(waiter) = pending.waiter.filter(|waiter| waiter.fua && number <= self.acknowledged) {
            self.window.get_mut(number).waiter = None;
            self.answer(turn, (waiter.front, waiter.ticket), Ok(()));
        }
    }

    /// Drops from the window what is settled and no longer read by the link.
    pub(super) fn retire(&mut self, turn: &mut Turn<impl Memory>) {
        let mut limit = self.settled;
        if self.peer.consumed < self.peer.sent {
            limit = limit.min(self.peer.consumed);
        }
        if self.role == Role::Primary && matches!(self.phase, Phase::Running) {
            limit = limit.min(self.acknowledged);
        }
        while self.window.retired() < limit.min(self.journal.journaled()) {
            let pending = self.window.retire();
            assert!(pending.waiter.is_none(), "{} retired with its host waiting", pending.update.number);
            for index in 0..pending.update.payload_blocks() {
                let (page, _) = Window::block(&turn.tables.window, &pending.update, index);
                self.pages.release(page, turn.memory);
            }
        }
    }

    /// Flushes the journal when a host waits, the level asks for it, or enough time or data has gone by.
    pub(super) fn flush_if_due(&mut self, turn: &mut Turn<impl Memory>) {
        let journal = &self.journal;
        if journal.flush_in_flight() || journal.durable() >= journal.journaled() {
            return;
        }
        let wanted = self.flush_wanted.max(self.peer.flush_requested) > journal.durable();
        let level = self.config.ack >= AckLevel::Durable;
        let opening = self.history.last().is_some_and(|(_, first)| first > journal.durable())
            || self.left.is_some_and(|(at, _)| at > journal.durable());
        let control =
            matches!(self.alone, Alone::Beginning(_)) || opening || self.rejoining() || self.stopping;
        let old = journal
            .unflushed_since()
            .is_some_and(|since| turn.now.since(since) >= self.config.flush_interval);
        let large = journal.unflushed_blocks() >= self.config.flush_blocks;
        if !(wanted || level || control || old || large) {
            return;
        }
        if let Some(slot) = self.journal.flush_begin() {
            turn.out.to_journal.push(IoRequest {
                slot,
                target: IoTarget::Journal,
                op: IoOp::Flush,
                block: 0,
                count: 0,
            });
            self.counters.journal_flushes += 1;
        }
    }
}

/// Batches written at once before the next one waits to fill.
const EAGER_BATCHES: usize = 3;

/// How an update ends its generation, if it does.
pub(super) fn end_of(update: &Update) -> Option<Left> {
    match update.kind {
        UpdateKind::StepDown => Some(Left::SteppedDown),
        UpdateKind::HandOver => Some(Left::HandedOver),
        UpdateKind::GiveWay => Some(Left::GaveWay(Generation(update.lba.0))),
        _ => None,
    }
}
