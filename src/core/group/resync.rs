//! A site that lacks more than the journal holds: it is copied what has changed since it left, block by block as hosts' latency allows,
//! then the updates of the meantime, and then it is told to install that (decision 0022). `staging` is its side. It may be the other of the
//! pair, to which a primary copies that is alone, or a third, to which either of the pair does: `targets` has what is different there,
//! `copying` how blocks get on their way, and `copy_third` when a third is copied to.
//!
//! The journal is held for the target from `floor` on. Every block that an update up to `floor` changed is copied as it was at `floor`
//! or later; the updates after it, up to where the copying ended, make that exact. If the ring needs the room, `floor` moves, and
//! what was changed up to there is copied again. What snapshots keep is copied as of a checkpoint, before those updates: `copy_kept`.
//! Where nobody knows what it lacks, all blocks are compared first, and what is equal is left out: `digests`.

use super::digests::Digests;
use super::pace::{PIECES_MAX, Pace};
use super::peering::{LINK_SPARE, Talk, refusal};
use super::targets::{TARGETS, Target, room_to};
use super::{Alone, Group, Phase, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::journal::Journal;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::format::update::Update;
use crate::format::wire::{Hello, RefusalCode};

/// The tail passes a peer that is away, or is being copied to, when what is kept for it takes so much of the ring, in percent. Sweeps,
/// which are what lets it pass, begin before that and hosts wait for room only well behind it.
const PASS_AT_PERCENT: u64 = 75;

/// Near its end a copy is given time to come to it: hosts may have to wait for room until then, for as long as they wait for a peer that is
/// lost, and for twice as long whenever that was too little, so that it ends though they write faster than is copied. Never for more than
/// this part of their deadline, so that none of them gets an error for it; where even that is too little they wait no more.
const HOLD_OF_DEADLINE: u64 = 4;

/// A peer that is being copied to, or tells what it has changed, and says nothing for so long is gone: it flushes its disk before it
/// answers.
pub(super) const SILENCE_MAX: Nanos = Nanos::from_millis(30_000);

/// Pages that copying leaves to everybody else.
pub(super) const LEAVES_PAGES: usize = super::RESERVED_PAGES / 2;

/// Where a resync stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There is none.
    None,
    /// The peer was offered it, or is away.
    Offered,
    Copying,
    /// All blocks are staged, in versions up to `past`: a checkpoint that covers them is awaited, for what snapshots keep as of it.
    Sweeping {
        past: UpdateNumber,
    },
    /// The slots and tables of the checkpoint `at` follow; no slot that the tables name is freed meanwhile.
    Kept {
        at: UpdateNumber,
        tables: Pages,
    },
    /// Everything is staged: the updates after `floor` up to `upto` follow, behind `before` others.
    Tail {
        upto: UpdateNumber,
        before: u64,
    },
    /// The peer was told to install it.
    Installing {
        upto: UpdateNumber,
    },
}

/// Pages of tables on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    Next(u32),
    /// One is being read.
    Asked,
    Whole,
}

/// Copied blocks on their way to the peer's log, as its `at`th update. Tables are copied anew when they do not arrive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub at: u64,
    pub blocks: Option<(VolumeId, Lba)>,
    pub count: u32,
    pub payload_blocks: usize,
}

impl Piece {
    /// Blocks that have to be copied again if it does not arrive.
    fn blocks_at_stake(&self) -> u64 {
        self.blocks.map_or(0, |_| u64::from(self.count))
    }
}

#[derive(Debug)]
pub(super) struct Resync {
    pub step: Step,
    /// The target has not heard of it since it was met.
    pub offer_due: bool,
    generation: Generation,
    pub serial: u64,
    /// Where a third was when it began: what is equal there is so as long as it stays there.
    pub target_at: UpdateNumber,
    /// It has the marks of a peer that gave way with this newest generation; `NONE` without any.
    merged: Generation,
    /// Nobody knows what the peer lacks: every block is compared, and not those of the changed-block set copied.
    pub whole: bool,
    pub digests: Digests,
    /// The journal is held from behind this one on.
    pub floor: UpdateNumber,
    /// Blocks that are to be copied; changed after `floor`; and where the next one is looked for. Slots of the differential volume
    /// are those of one more volume behind the last: recent while what was captured into them may not be there yet.
    pub to_copy: Vec<Bitmap>,
    pub recent: Vec<Bitmap>,
    pub next: (u16, u64),
    /// Reads of volumes, and of tables, under way, and the blocks that they bring.
    pub reading: usize,
    reading_blocks: usize,
    /// How often `floor` has moved.
    pub moves: u64,
    /// Since when it stays though the ring wants the room, so that the copy comes to its end.
    held_since: Option<Nanos>,
    /// For how long, now or the last time, in this resync.
    hold: Nanos,
    pub on_their_way: FixedQueue<Piece>,
    /// Slots before this one are read one by one: somewhere among them is one that cannot be read.
    pub singly_before: u64,
    /// Updates for the peer's log that were sent, and those that it has durably.
    pub sent: u64,
    staged: u64,
    pub heard_at: Nanos,
    pace: Pace,
    pub copied_blocks: u64,
    pub began_at: Nanos,
}

impl Resync {
    pub fn new(volume_blocks: impl Iterator<Item = u64> + Clone, pace: Pace) -> Resync {
        Resync {
            step: Step::None,
            offer_due: false,
            generation: Generation::NONE,
            serial: 0,
            target_at: UpdateNumber::NONE,
            merged: Generation::NONE,
            whole: false,
            digests: Digests::new(volume_blocks.clone()),
            floor: UpdateNumber::NONE,
            to_copy: volume_blocks.clone().map(Bitmap::new).collect(),
            recent: volume_blocks.map(Bitmap::new).collect(),
            next: (0, 0),
            reading: 0,
            reading_blocks: 0,
            moves: 0,
            held_since: None,
            hold: Nanos(0),
            on_their_way: FixedQueue::new(PIECES_MAX),
            singly_before: 0,
            sent: 0,
            staged: 0,
            heard_at: Nanos(0),
            pace,
            copied_blocks: 0,
            began_at: Nanos(0),
        }
    }

    pub fn left(&self) -> u64 {
        let under_way: u64 = self.on_their_way.iter().map(Piece::blocks_at_stake).sum();
        self.to_copy.iter().map(Bitmap::count).sum::<u64>() + self.digests.left() + under_way
    }

    /// Whether it was changed after `floor`.
    pub fn is_recent(&self, volume: VolumeId, lba: Lba) -> bool {
        self.recent[volume.0 as usize].contains(lba.0)
    }

    /// It changes blocks after `floor`, and captures into slots.
    pub fn note_recent(&mut self, update: &Update) {
        let insert = |recent: &mut Bitmap, first: u64| {
            for block in first..first + u64::from(update.count) {
                recent.insert(block);
            }
        };
        if update.touches_blocks() {
            insert(&mut self.recent[update.volume.0 as usize], update.lba.0);
        }
        if update.captures() {
            insert(self.recent.last_mut().expect("slots come last"), update.slot.0);
        }
    }

    pub fn begin_read(&mut self, blocks: u32) {
        self.reading += 1;
        self.reading_blocks += blocks as usize;
    }

    pub fn end_read(&mut self, blocks: u32) {
        self.reading -= 1;
        self.reading_blocks -= blocks as usize;
    }

    pub fn under_way(&self) -> usize {
        self.on_their_way.len() + self.reading
    }

    /// Whether what snapshots keep is on its way, as of a checkpoint.
    pub fn is_at_kept(&self) -> bool {
        matches!(self.step, Step::Kept { .. })
    }

    pub fn blocks_being_read(&self) -> usize {
        self.reading_blocks
    }

    /// Whether one more piece may be on its way: as many as there can be while hosts wait for the end.
    pub fn has_pace(&self) -> bool {
        let sent: usize = self.on_their_way.iter().map(|piece| piece.payload_blocks).sum();
        self.pace.allows(self.under_way(), sent + self.reading_blocks, self.is_held())
    }

    /// Whether hosts may be waiting for its end.
    pub fn is_held(&self) -> bool {
        self.held_since.is_some()
    }

    /// What was on its way when the conversation ended, and has not arrived.
    fn copy_rest_again(&mut self) {
        while let Some(Piece { blocks, count, .. }) = self.on_their_way.pop() {
            if let Some((volume, lba)) = blocks {
                self.copy_again(volume, lba, count);
            }
        }
    }

    /// What was read or is on its way has not arrived.
    pub fn copy_again(&mut self, volume: VolumeId, lba: Lba, count: u32) {
        for block in lba.0..lba.0 + u64::from(count) {
            self.to_copy[volume.0 as usize].insert(block);
        }
    }
}

/// What a status says of a resync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResyncStatus {
    pub active: bool,
    /// It is of all blocks, since what the peer lacks is in no set of changed ones.
    pub whole: bool,
    pub blocks_left: u64,
    pub blocks_copied: u64,
    /// Blocks that were not, since they are equal at both sites, or zeros.
    pub blocks_equal: u64,
    /// Since it began.
    pub for_ns: u64,
    /// Blocks that the peer lacks beside what the journal holds for it, or would if its tail passed the peer now, or if it came by new disks.
    pub changed_blocks: u64,
}

impl Group {
    /// Somebody else leads now.
    pub(super) fn drop_resync(&mut self) {
        if !self.has_given_way() {
            self.changed.forget();
        }
        self.resyncs[Target::Peer].step = Step::None;
    }

    // ------------------------------------------------------------------------------------------------ the journal's tail

    /// What the journal keeps for the peer begins behind this number. Called when a superblock is about to be written.
    pub(super) fn held_for_peer(&mut self, turn: &mut Turn<impl Memory>) -> UpdateNumber {
        let held = self.peer_needs();
        // What cannot be read back is of no use to it.
        let lacking = held.next() < self.oldest_kept() || self.scrub.journal.is_bad_after(held);
        if !self.may_pass() || (!lacking && self.ring_percent_after(held) < PASS_AT_PERCENT) {
            return held;
        }
        if let Step::None | Step::Installing { .. } = self.resyncs[Target::Peer].step {
            return UpdateNumber(u64::MAX);
        }
        if !lacking && self.holds_for_end(turn) {
            return held;
        }
        self.move_floor(Target::Peer);
        self.resyncs[Target::Peer].floor
    }

    /// Whether the floor stays, though the ring wants the room, until the copy is over: nothing is left of it but what one ring may have
    /// changed, and hosts have not waited for that too long.
    pub(super) fn holds_for_end(&mut self, turn: &mut Turn<impl Memory>) -> bool {
        let resync = &self.resyncs[Target::Peer];
        let near = match resync.step {
            Step::Sweeping { .. } | Step::Kept { .. } | Step::Tail { .. } => true,
            Step::Copying => resync.left() <= self.journal.ring_blocks(),
            Step::None | Step::Offered | Step::Installing { .. } => false,
        };
        if !near || self.stopping || !self.copies_to(Target::Peer) {
            return false;
        }
        let Resync { held_since, hold, .. } = &mut self.resyncs[Target::Peer];
        let most = self.config.host_deadline.0 / HOLD_OF_DEADLINE;
        if held_since.is_none() {
            if hold.0 >= most {
                return false;
            }
            let budget = self.config.peer.as_ref().expect("it is copied to").latency_budget;
            *hold = Nanos((2 * hold.0).max(budget.0).min(most));
            *held_since = Some(turn.now);
            turn.event(Event::HostsAwaitCopy { at_most: *hold });
        }
        self.held_until().is_some_and(|until| turn.now < until)
    }

    /// Until when hosts may have to wait for room so that the copy ends.
    fn held_until(&self) -> Option<Nanos> {
        let Resync { held_since, hold, .. } = self.resyncs[Target::Peer];
        Some(held_since?.plus(hold))
    }

    /// The ring may have the room: its next superblock is due, whether hosts write or wait for it.
    fn end_hold(&mut self) {
        if self.resyncs[Target::Peer].held_since.take().is_some() {
            self.note_retention();
        }
    }

    /// The peer has, or is copied, everything up to there.
    fn peer_needs(&self) -> UpdateNumber {
        match self.resyncs[Target::Peer].step {
            Step::None => self.peer.durable,
            Step::Installing { upto } => upto.max(self.peer.durable),
            _ => self.resyncs[Target::Peer].floor.max(self.peer.durable),
        }
    }

    /// Only a third needs what the journal has up to there: others needed nothing of it at the last superblock, and no peer has come back since
    /// that reads what was still kept for the third.
    pub(super) fn needed_by_others(&self) -> UpdateNumber {
        let floor = self.destage.floor();
        match self.role == Role::Primary && self.engaged() {
            true => floor.min(self.peer_needs()),
            false => floor,
        }
    }

    /// Whether nobody would be forgotten if the tail passed the peer: it is not being sent what is in the journal, and what it lacks
    /// is in a set that the sweep has just made durable (INV-9).
    fn may_pass(&self) -> bool {
        let listens =
            !matches!(self.peer.talk, Talk::Absent | Talk::Greeting { .. } | Talk::Merging | Talk::Copying);
        // Whoever the journal cannot serve any more is copied everything if the set does not have what it lacks.
        let beyond = self.changed.tracking() && self.peer.durable.next() < self.oldest_kept();
        let covered = beyond || self.resync_covers(self.peer.durable);
        self.alone == Alone::Yes && matches!(self.phase, Phase::Running) && covered && !listens
    }

    /// What stays in use of the ring if it is held from there on.
    fn ring_percent_after(&self, held: UpdateNumber) -> u64 {
        self.journal.used_after(held) * 100 / Journal::usable_blocks(self.journal.ring_blocks())
    }

    /// The journal need not be held from before what is settled now: whatever changed since `floor` is copied (again) instead.
    pub(super) fn move_floor(&mut self, to: Target) {
        let resync = &mut self.resyncs[to];
        for (to_copy, recent) in resync.to_copy.iter_mut().zip(&mut resync.recent) {
            to_copy.insert_all(recent);
            recent.clear();
        }
        resync.floor = self.settled;
        resync.moves += 1;
        resync.held_since = None;
        self.put_off_pending_slots(to);
        for number in self.settled.max(self.window.retired()).0 + 1..=self.window.last().0 {
            let update = self.window.get(UpdateNumber(number)).update;
            self.resyncs[to].note_recent(&update);
        }
        if let Step::Sweeping { .. } | Step::Kept { .. } | Step::Tail { .. } = self.resyncs[to].step {
            self.resyncs[to].step = Step::Copying;
            if to == Target::Peer {
                self.peer.send_to = UpdateNumber::NONE;
            }
        }
    }

    // ------------------------------------------------------------------------------------------------------ the copying

    /// Whether a peer that has everything up to this number is copied all that it lacks.
    pub(super) fn resync_covers(&self, number: UpdateNumber) -> bool {
        self.changed.covers(number)
            || (self.resyncs[Target::Peer].step != Step::None && self.resyncs[Target::Peer].whole)
    }

    /// The peer has the stream up to `common`, and the journal begins later. If the changed-block set begins later too, or it was formatted
    /// anew, nobody knows what it lacks: it is copied all blocks, as it is if it `compares` for another reason.
    pub(super) fn offer_resync(
        &mut self,
        turn: &mut Turn<impl Memory>,
        common: UpdateNumber,
        compares: bool,
    ) {
        if let Alone::Beginning(_) = self.alone {
            return self.lose_peer(turn, LossReason::Protocol("this site is about to go on alone"));
        }
        if self.alone == Alone::No || !self.may_resync() {
            return self.refuse_resync(turn, common);
        }
        if !self.resync_covers(common) || (compares && !self.resyncs[Target::Peer].whole) {
            self.resyncs[Target::Peer].step = Step::None;
        }
        self.peer.talk = Talk::Copying;
        self.peer.waiting_since = None;
        self.resyncs[Target::Peer].heard_at = turn.now;
        self.resyncs[Target::Peer].offer_due = true;
        match self.resyncs[Target::Peer].step {
            // It was told to install, and did not get to it: its log is what it would have installed, so what follows comes on top.
            Step::Installing { upto } => {
                self.resyncs[Target::Peer].step = Step::Offered;
                self.resyncs[Target::Peer].floor = upto;
                if upto.next() < self.oldest_kept() {
                    self.move_floor(Target::Peer);
                }
            }
            Step::None => {
                self.resyncs[Target::Peer].whole = compares || !self.changed.covers(common);
                self.begin_resync(Target::Peer, turn.now);
            }
            _ => {}
        }
    }

    /// What is copied is settled, and this site settles alone what it acknowledges alone.
    fn refuse_resync(&mut self, turn: &mut Turn<impl Memory>, common: UpdateNumber) {
        let held = self.oldest_kept();
        let way = match self.may_resync() {
            true => {
                "can be copied all blocks once this one goes on alone: configure on_peer_loss = \"solo\" here and restart, or restart and \
                 `lockstep promote --fenced`"
            }
            false => "cannot be copied what it lacks: no staging file is configured",
        };
        let refusal = refusal(
            RefusalCode::ResyncRequired,
            format_args!(
                "your site has the stream to {common} and this site's journal begins at {held}; it {way}"
            ),
        );
        self.refuse(turn, refusal);
    }

    /// The marks of a peer that gives way are among this site's: what was begun without them does not count.
    pub(super) fn offer_merged(
        &mut self,
        turn: &mut Turn<impl Memory>,
        common: UpdateNumber,
        theirs: Generation,
        compares: bool,
    ) {
        if self.resyncs[Target::Peer].merged != theirs {
            self.resyncs[Target::Peer].step = Step::None;
        }
        self.offer_resync(turn, common, compares);
        self.resyncs[Target::Peer].merged = theirs;
    }

    /// A resync is named by the generation that it begins in, so that is to be open, durably: another life of this site might open it
    /// again, and name another resync so.
    fn offer_if_open(&mut self, turn: &mut Turn<impl Memory>) {
        let to = Target::Peer;
        let opened = self.history.last().map_or(UpdateNumber::NONE, |(_, first)| first);
        let open = (self.serving || self.left.is_some()) && self.journal.durable() >= opened;
        if !self.resyncs[to].offer_due || !open || room_to(turn, to) <= LINK_SPARE {
            return;
        }
        if self.resyncs[to].generation != self.generation {
            self.begin_resync(to, turn.now);
        }
        let whole = self.resyncs[to].whole;
        let blocks = self.offer(turn, to);
        turn.event(Event::ResyncBegan { blocks, whole });
    }

    /// Offers what there is to copy, and says how much that is.
    pub(super) fn offer(&mut self, turn: &mut Turn<impl Memory>, to: Target) -> u64 {
        self.resyncs[to].offer_due = false;
        let Resync { generation, serial, whole, .. } = self.resyncs[to];
        let blocks = self.resyncs[to].left() + self.table_pages();
        let offer = Control::CopyOffer { generation, serial, blocks, whole };
        self.give_target(turn, to, ToLink::Control(offer));
        blocks
    }

    pub(super) fn begin_resync(&mut self, to: Target, now: Nanos) {
        let resync = &mut self.resyncs[to];
        resync.step = Step::Offered;
        resync.generation = self.generation;
        resync.serial += 1;
        resync.merged = Generation::NONE;
        resync.copied_blocks = 0;
        resync.began_at = now;
        resync.hold = Nanos(0);
        self.begin_anew(to);
    }

    /// All that has changed is to be copied, or all there is compared; of slots, those that anybody may look into.
    fn begin_anew(&mut self, to: Target) {
        let Group { resyncs, slots, changed, .. } = self;
        let resync = &mut resyncs[to];
        resync.on_their_way.clear();
        resync.singly_before = 0;
        (resync.sent, resync.staged, resync.next) = (0, 0, (0, 0));
        resync.digests.begin(resync.whole, |set| slots.put_taken(set));
        if !resync.whole {
            for (to_copy, changed) in resync.to_copy.iter_mut().zip(changed.blocks()) {
                to_copy.insert_all(changed);
            }
        }
        self.move_floor(to);
    }

    /// The conversation is over; what of that was on its way has arrived, the target says when it goes on.
    pub(super) fn interrupt_resync(&mut self, to: Target) {
        let resync = &mut self.resyncs[to];
        resync.offer_due = false;
        resync.digests.interrupt();
        if !matches!(resync.step, Step::None | Step::Installing { .. }) {
            resync.step = Step::Offered;
        }
        if to == Target::Peer {
            self.end_hold();
        }
    }

    /// The target's log has so many updates of this resync, durably.
    pub(super) fn on_staged(&mut self, turn: &mut Turn<impl Memory>, to: Target, updates: u64) {
        self.resyncs[to].heard_at = turn.now;
        let Resync { step, sent, staged, .. } = self.resyncs[to];
        let answers = step == Step::Offered;
        if !self.copies_to(to) || self.resyncs[to].offer_due || (!answers && updates > sent) {
            return self.lose_target(turn, to, LossReason::Protocol("it staged what it was not sent"));
        }
        if answers {
            // A log with less than it once had is another one, and one with more is another life's. A name is for one log from its
            // beginning, so that nothing of an older one ever continues it. Without one, nothing says whose disks the digests were of.
            let told = sent > 0 || self.resyncs[to].digests.equal > 0;
            if updates < staged || updates > sent || (updates == 0 && told) {
                self.begin_resync(to, turn.now);
                self.resyncs[to].offer_due = true;
                return;
            }
            (self.resyncs[to].sent, self.resyncs[to].staged) = (updates, updates);
            self.resyncs[to].step = Step::Copying;
            self.count_staged(to, updates);
            return self.resyncs[to].copy_rest_again();
        }
        self.resyncs[to].staged = self.resyncs[to].staged.max(updates);
        self.count_staged(to, updates);
    }

    /// So many updates have arrived: what was on its way with them has.
    fn count_staged(&mut self, to: Target, updates: u64) {
        while self.resyncs[to].on_their_way.front().is_some_and(|piece| piece.at <= updates) {
            let piece = self.resyncs[to].on_their_way.pop().expect("looked at it");
            // Of all blocks, those that are zeros cost nothing.
            let (copied, counted) = match self.resyncs[to].whole && piece.payload_blocks == 0 {
                true => (&mut self.resyncs[to].digests.equal, &mut self.counters.resync_equal_blocks),
                false => (&mut self.resyncs[to].copied_blocks, &mut self.counters.resync_blocks),
            };
            *copied += u64::from(piece.count);
            *counted += u64::from(piece.count);
        }
    }

    /// A host's write was answered after so long.
    pub(super) fn note_write_latency(&mut self, took: Nanos) {
        let late = took > self.config.resync.p99_budget;
        for to in TARGETS {
            if self.copies_to(to) {
                self.resyncs[to].pace.note_write(late);
            }
        }
    }

    /// Whether the peer has said nothing since then for too long, and is gone.
    pub(super) fn lose_if_silent(&mut self, turn: &mut Turn<impl Memory>, heard_at: Nanos) -> bool {
        let unanswered_ns = turn.now.since(heard_at).0;
        let silent = unanswered_ns >= SILENCE_MAX.0;
        if silent {
            self.lose_peer(turn, LossReason::LatencyBudget { unanswered_ns });
        }
        silent
    }

    pub(super) fn copy_turn(&mut self, turn: &mut Turn<impl Memory>, to: Target) {
        match to {
            Target::Peer if self.lose_if_silent(turn, self.resyncs[to].heard_at) => return,
            Target::Peer => self.offer_if_open(turn),
            Target::Third if !self.offer_to_third(turn) => return,
            Target::Third => {}
        }
        // What a site that stops has read by then, nobody would judge.
        if self.stopping {
            return;
        }
        self.resyncs[to].pace.keep(turn.now);
        if to == Target::Peer && self.held_until().is_some_and(|until| until <= turn.now) {
            self.note_retention();
        }
        if self.resyncs[to].step == Step::Copying {
            let compared = self.leave_out_equal(turn, to);
            if self.copy_blocks(turn, to) && compared {
                self.blocks_copied(to);
            }
        }
        if let Step::Sweeping { past } = self.resyncs[to].step {
            self.copy_kept_when_swept(turn, to, past);
        }
        if let Step::Kept { at, tables } = self.resyncs[to].step {
            self.copy_kept(turn, to, at, tables);
        }
        if let Step::Tail { upto, before } = self.resyncs[to].step {
            match to {
                Target::Peer => self.send_updates(turn),
                Target::Third => self.send_settled(turn),
            }
            self.order_install_if_staged(turn, to, upto, before);
        }
    }

    pub(super) fn copy_deadline(&self, to: Target) -> Nanos {
        let silence = match to {
            Target::Peer => self.resyncs[to].heard_at.plus(SILENCE_MAX),
            // Heartbeats find out.
            Target::Third => Nanos(u64::MAX),
        };
        // Once it has gone by, the next superblock is on its way.
        let held = self.held_until().filter(|until| to == Target::Peer && *until > self.turned_at);
        let silence = held.map_or(silence, |until| until.min(silence));
        match self.resyncs[to].step {
            Step::Copying if self.leaves_out_at_once(to) => self.turned_at,
            Step::Copying | Step::Sweeping { .. } | Step::Kept { .. } => {
                silence.min(self.resyncs[to].pace.looks_at())
            }
            _ => silence,
        }
    }

    // ------------------------------------------------------------------------------------------------------ the ending

    /// Everything is staged as it was after `floor`: the updates up to here make that what this site held then.
    pub(super) fn begin_tail(&mut self, to: Target, upto: UpdateNumber) {
        let floor = self.resyncs[to].floor;
        // That this site has left its generation, the target takes from the stream; nothing follows it there.
        let upto = match (self.left, to) {
            // Whoever leads next goes on.
            (Some(_), Target::Third) => return,
            (left, _) => left.map_or(upto, |(at, _)| at.previous().min(upto)),
        };
        self.resyncs[to].step = Step::Tail { upto, before: self.resyncs[to].sent };
        match to {
            Target::Peer => {
                (self.peer.next_to_send, self.peer.send_to) = (floor.next(), upto);
                (self.peer.sent, self.peer.consumed) = (floor, floor);
            }
            Target::Third => self.feed_mut().next = floor.next(),
        }
    }

    fn order_install_if_staged(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        upto: UpdateNumber,
        before: u64,
    ) {
        // Sending may have ended the conversation.
        if !matches!(self.resyncs[to].step, Step::Tail { .. }) {
            return;
        }
        let tail = upto.0.saturating_sub(self.resyncs[to].floor.0);
        let room = room_to(turn, to) > LINK_SPARE && self.pages.free() > LEAVES_PAGES;
        if self.resyncs[to].staged < before + tail || !room {
            return;
        }
        let hello = self.our_hello();
        if let Some(message) = self.page_with(turn, PageFrame::Hello, |out| hello.encode(out)) {
            self.give_target(turn, to, message);
            self.give_target(turn, to, ToLink::Control(Control::Install { upto }));
            self.resyncs[to].step = Step::Installing { upto };
            if to == Target::Peer {
                self.peer.send_to = UpdateNumber::NONE;
                self.end_hold();
            }
        }
    }

    /// One more update was sent for the peer's log.
    pub(super) fn note_tail_sent(&mut self) {
        if self.peer.talk == Talk::Copying {
            self.resyncs[Target::Peer].sent += 1;
        }
    }

    /// Whether updates of the stream are being sent for the peer's log.
    pub(super) fn sends_tail(&self) -> bool {
        self.peer.talk == Talk::Copying && matches!(self.resyncs[Target::Peer].step, Step::Tail { .. })
    }

    /// A peer that follows has the stream up to `common`: perhaps because it has installed what it was copied.
    pub(super) fn note_installed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        hello: &Hello,
        common: UpdateNumber,
    ) {
        if let Step::Installing { upto } = self.resyncs[Target::Peer].step
            && common >= upto
            && hello.durable >= upto
        {
            self.changed.shrink(upto, &self.resyncs[Target::Peer].recent);
            self.resyncs[Target::Peer].step = Step::None;
            let Resync { copied_blocks: blocks, began_at, .. } = self.resyncs[Target::Peer];
            let (equal, took_ns) = (self.resyncs[Target::Peer].digests.equal, turn.now.since(began_at).0);
            turn.event(Event::ResyncEnded { at: upto, blocks, equal, took_ns });
        }
    }

    pub(super) fn resync_status(&self, now: Nanos) -> ResyncStatus {
        let active = self.role == Role::Primary && self.resyncs[Target::Peer].step != Step::None;
        ResyncStatus {
            active,
            whole: active && self.resyncs[Target::Peer].whole,
            blocks_left: if active { self.resyncs[Target::Peer].left() } else { 0 },
            blocks_copied: self.resyncs[Target::Peer].copied_blocks,
            blocks_equal: self.resyncs[Target::Peer].digests.equal,
            for_ns: if active { now.since(self.resyncs[Target::Peer].began_at).0 } else { 0 },
            changed_blocks: self.changed.count(),
        }
    }
}
