//! A peer that lacks more than the journal holds: the primary copies to it what has changed since it left, block by block as hosts'
//! latency allows, then the updates of the meantime, and then tells it to install that (decision 0022). `staging` is the peer's side.
//!
//! The journal is held for the peer from `floor` on. Every block that an update up to `floor` changed is copied as it was at `floor`
//! or later; the updates after it, up to where the copying ended, make that exact. If the ring needs the room, `floor` moves, and
//! what was changed up to there is copied again. What snapshots keep is copied as of a checkpoint, before those updates: `copy_kept`.
//! Where nobody knows what the peer lacks, all blocks are compared first, and what is equal is left out: `digests`.
use super::digests::Digests;
use super::pace::{PIECES_MAX, Pace};
use super::peering::{LINK_SPARE, Talk, refusal};
use super::storage::VolumeIo;
use super::{Alone, Group, Phase, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::journal::Journal;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::format::update::{Update, UpdateKind};
use crate::format::wire::{Hello, RefusalCode};

/// The tail passes a peer that is away, or is being copied to, when so much of the ring is in use, in percent. Sweeps, which are
/// what lets it pass, begin before that and hosts wait for room only well behind it.
const PASS_AT_PERCENT: u64 = 75;

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
struct Piece {
    at: u64,
    blocks: Option<(VolumeId, Lba)>,
    count: u32,
    payload_blocks: usize,
}

#[derive(Debug)]
pub(super) struct Resync {
    pub step: Step,
    /// The peer has not heard of it since it was met.
    offer_due: bool,
    generation: Generation,
    serial: u64,
    /// It has the marks of a peer that gave way with this newest generation; `NONE` without any.
    merged: Generation,
    /// Nobody knows what the peer lacks: every block is compared, and not those of the changed-block set copied.
    whole: bool,
    pub digests: Digests,
    /// The journal is held from behind this one on.
    floor: UpdateNumber,
    /// Blocks that are to be copied; changed after `floor`; and where the next one is looked for. Slots of the differential volume
    /// are those of one more volume behind the last: recent while what was captured into them may not be there yet.
    pub to_copy: Vec<Bitmap>,
    pub recent: Vec<Bitmap>,
    pub next: (u16, u64),
    /// Reads of volumes, and of tables, under way, and the blocks that they bring.
    reading: usize,
    reading_blocks: usize,
    /// How often `floor` has moved.
    pub moves: u64,
    on_their_way: FixedQueue<Piece>,
    /// Updates for the peer's log that were sent, and those that it has durably.
    sent: u64,
    staged: u64,
    pub heard_at: Nanos,
    pace: Pace,
    copied_blocks: u64,
    began_at: Nanos,
}

impl Resync {
    pub fn new(volume_blocks: impl Iterator<Item = u64> + Clone) -> Resync {
        Resync {
            step: Step::None,
            offer_due: false,
            generation: Generation::NONE,
            serial: 0,
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
            on_their_way: FixedQueue::new(PIECES_MAX),
            sent: 0,
            staged: 0,
            heard_at: Nanos(0),
            pace: Pace::new(),
            copied_blocks: 0,
            began_at: Nanos(0),
        }
    }

    fn left(&self) -> u64 {
        self.to_copy.iter().map(Bitmap::count).sum::<u64>() + self.digests.left()
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

    fn under_way(&self) -> usize {
        self.on_their_way.len() + self.reading
    }

    /// Whether one more piece may be on its way.
    pub fn has_pace(&self) -> bool {
        let sent: usize = self.on_their_way.iter().map(|piece| piece.payload_blocks).sum();
        self.pace.allows(self.under_way(), sent + self.reading_blocks)
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
    /// Blocks that the peer lacks beside what the journal holds for it, or would if its tail passed the peer now.
    pub changed_blocks: u64,
}

impl Group {
    /// Somebody else leads now.
    pub(super) fn drop_resync(&mut self) {
        if !self.has_given_way() {
            self.changed.forget();
        }
        self.resync.step = Step::None;
    }

    // ------------------------------------------------------------------------------------------------ the journal's tail

    /// What the journal keeps for the peer begins behind this number. Called when a superblock is about to be written.
    pub(super) fn held_for_peer(&mut self) -> UpdateNumber {
        let held = match self.resync.step {
            Step::None => self.peer.durable,
            Step::Installing { upto } => upto.max(self.peer.durable),
            _ => self.resync.floor.max(self.peer.durable),
        };
        let passed = held.next() < self.oldest_kept();
        // What cannot be read back is of no use to it.
        let full = self.ring_percent() >= PASS_AT_PERCENT || self.scrub.journal.is_bad_after(held);
        if !self.may_pass() || (!passed && !full) {
            return held;
        }
        match self.resync.step {
            Step::None | Step::Installing { .. } => UpdateNumber(u64::MAX),
            Step::Offered | Step::Copying | Step::Sweeping { .. } | Step::Kept { .. } | Step::Tail { .. } => {
                self.move_floor();
                self.resync.floor
            }
        }
    }

    /// Whether nobody would be forgotten if the tail passed the peer: it is not being sent what is in the journal, and what it lacks
    /// is in a set that the sweep has just made durable (INV-9).
    fn may_pass(&self) -> bool {
        let listens =
            !matches!(self.peer.talk, Talk::Absent | Talk::Greeting { .. } | Talk::Merging | Talk::Copying);
        let covered = self.resync_covers(self.peer.durable);
        self.alone == Alone::Yes && matches!(self.phase, Phase::Running) && covered && !listens
    }

    fn ring_percent(&self) -> u64 {
        self.journal.used_blocks() * 100 / Journal::usable_blocks(self.journal.ring_blocks())
    }

    /// The journal need not be held from before what is settled now: whatever changed since `floor` is copied (again) instead.
    pub(super) fn move_floor(&mut self) {
        let resync = &mut self.resync;
        for (to_copy, recent) in resync.to_copy.iter_mut().zip(&mut resync.recent) {
            to_copy.insert_all(recent);
            recent.clear();
        }
        resync.floor = self.settled;
        resync.moves += 1;
        self.put_off_pending_slots();
        for number in self.settled.max(self.window.retired()).0 + 1..=self.window.last().0 {
            let update = self.window.get(UpdateNumber(number)).update;
            self.resync.note_recent(&update);
        }
        if let Step::Sweeping { .. } | Step::Kept { .. } | Step::Tail { .. } = self.resync.step {
            self.resync.step = Step::Copying;
            self.peer.send_to = UpdateNumber::NONE;
        }
    }

    // ------------------------------------------------------------------------------------------------------ the copying

    /// Whether a peer that has everything up to this number is copied all that it lacks.
    fn resync_covers(&self, number: UpdateNumber) -> bool {
        self.changed.covers(number) || (self.resync.step != Step::None && self.resync.whole)
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
        if !self.resync_covers(common) || (compares && !self.resync.whole) {
            self.resync.step = Step::None;
        }
        self.peer.talk = Talk::Copying;
        self.peer.waiting_since = None;
        self.resync.heard_at = turn.now;
        self.resync.offer_due = true;
        match self.resync.step {
            // It was told to install, and did not get to it: its log is what it would have installed, so what follows comes on top.
            Step::Installing { upto } => {
                self.resync.step = Step::Offered;
                self.resync.floor = upto;
                if upto.next() < self.oldest_kept() {
                    self.move_floor();
                }
            }
            Step::None => {
                self.resync.whole = compares || !self.changed.covers(common);
                self.begin_resync(turn.now);
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
        if self.resync.merged != theirs {
            self.resync.step = Step::None;
        }
        self.offer_resync(turn, common, compares);
        self.resync.merged = theirs;
    }

    /// A resync is named by the generation that it begins in, so that is to be open, durably: another life of this site might open it
    /// again, and name another resync so.
    fn offer_if_open(&mut self, turn: &mut Turn<impl Memory>) {
        let opened = self.history.last().map_or(UpdateNumber::NONE, |(_, first)| first);
        let open = (self.serving || self.left.is_some()) && self.journal.durable() >= opened;
        if !self.resync.offer_due || !open || turn.out.to_link.room() <= LINK_SPARE {
            return;
        }
        self.resync.offer_due = false;
        if self.resync.generation != self.generation {
            self.begin_resync(turn.now);
        }
        let Resync { generation, serial, whole, .. } = self.resync;
        let blocks = self.resync.left() + self.table_pages();
        turn.out.to_link.push(ToLink::Control(Control::CopyOffer { generation, serial, blocks, whole }));
        turn.event(Event::ResyncBegan { blocks, whole });
    }

    fn begin_resync(&mut self, now: Nanos) {
        let resync = &mut self.resync;
        resync.step = Step::Offered;
        resync.generation = self.generation;
        resync.serial += 1;
        resync.merged = Generation::NONE;
        resync.copied_blocks = 0;
        resync.began_at = now;
        self.begin_anew();
    }

    /// All that has changed is to be copied, or all there is compared; of slots, those that anybody may look into.
    fn begin_anew(&mut self) {
        let Group { resync, slots, changed, .. } = self;
        resync.on_their_way.clear();
        (resync.sent, resync.staged, resync.next) = (0, 0, (0, 0));
        resync.digests.begin(resync.whole, |set| slots.put_taken(set));
        if !resync.whole {
            for (to_copy, changed) in resync.to_copy.iter_mut().zip(changed.blocks()) {
                to_copy.insert_all(changed);
            }
        }
        self.move_floor();
    }

    /// The conversation is over; what was on its way is not known to have arrived.
    pub(super) fn interrupt_resync(&mut self) {
        let resync = &mut self.resync;
        resync.offer_due = false;
        resync.digests.interrupt();
        while let Some(Piece { blocks, count, .. }) = resync.on_their_way.pop() {
            if let Some((volume, lba)) = blocks {
                resync.copy_again(volume, lba, count);
            }
        }
        if !matches!(resync.step, Step::None | Step::Installing { .. }) {
            resync.step = Step::Offered;
        }
    }

    /// The peer's log has so many updates of this resync, durably.
    pub(super) fn on_staged(&mut self, turn: &mut Turn<impl Memory>, updates: u64) {
        self.resync.heard_at = turn.now;
        let Resync { step, sent, staged, .. } = self.resync;
        let answers = step == Step::Offered;
        if self.peer.talk != Talk::Copying || self.resync.offer_due || (!answers && updates > sent) {
            return self.lose_peer(turn, LossReason::Protocol("it staged what it was not sent"));
        }
        if answers {
            // A log with less than it once had is another one, and one with more is another life's. A name is for one log from its
            // beginning, so that nothing of an older one ever continues it. Without one, nothing says whose disks the digests were of.
            let told = sent > 0 || self.resync.digests.equal > 0;
            if updates < staged || updates > sent || (updates == 0 && told) {
                self.begin_resync(turn.now);
                self.resync.offer_due = true;
                return;
            }
            (self.resync.sent, self.resync.staged) = (updates, updates);
            self.resync.step = Step::Copying;
            return;
        }
        self.resync.staged = self.resync.staged.max(updates);
        while self.resync.on_their_way.front().is_some_and(|piece| piece.at <= updates) {
            let piece = self.resync.on_their_way.pop().expect("looked at it");
            // Of all blocks, those that are zeros cost nothing.
            let (copied, counted) = match self.resync.whole && piece.payload_blocks == 0 {
                true => (&mut self.resync.digests.equal, &mut self.counters.resync_equal_blocks),
                false => (&mut self.resync.copied_blocks, &mut self.counters.resync_blocks),
            };
            *copied += u64::from(piece.count);
            *counted += u64::from(piece.count);
        }
    }

    /// A host's write was answered after so long.
    pub(super) fn note_write_latency(&mut self, took: Nanos) {
        if self.peer.talk == Talk::Copying {
            let late = took > self.peer_config().resync.p99_budget;
            self.resync.pace.note_write(late);
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

    pub(super) fn copy_turn(&mut self, turn: &mut Turn<impl Memory>) {
        if self.lose_if_silent(turn, self.resync.heard_at) {
            return;
        }
        self.offer_if_open(turn);
        self.resync.pace.keep(turn.now);
        if self.resync.step == Step::Copying {
            let compared = self.leave_out_equal(turn);
            if self.copy_blocks(turn) && compared {
                self.blocks_copied();
            }
        }
        if let Step::Sweeping { past } = self.resync.step {
            self.copy_kept_when_swept(turn, past);
        }
        if let Step::Kept { at, tables } = self.resync.step {
            self.copy_kept(turn, at, tables);
        }
        if let Step::Tail { upto, before } = self.resync.step {
            self.send_updates(turn);
            self.order_install_if_staged(turn, upto, before);
        }
    }

    pub(super) fn copy_deadline(&self) -> Nanos {
        let silence = self.resync.heard_at.plus(SILENCE_MAX);
        match self.resync.step {
            Step::Copying if self.leaves_out_at_once() => self.turned_at,
            Step::Copying | Step::Sweeping { .. } | Step::Kept { .. } => {
                silence.min(self.resync.pace.looks_at())
            }
            _ => silence,
        }
    }

    /// Copies what there is to copy, as the pace allows; true if all of it is staged.
    pub(super) fn copy_blocks(&mut self, turn: &mut Turn<impl Memory>) -> bool {
        loop {
            if !self.resync.has_pace() {
                return false;
            }
            let Some((volume, lba)) = self.next_to_copy() else { return self.resync.under_way() == 0 };
            let copies = match volume == self.slots_id() {
                true => self.copy_slots(turn, lba),
                false => self.copy_from(turn, volume, lba),
            };
            if !copies {
                return false;
            }
        }
    }

    /// Nothing is left to copy: where snapshots may keep something, what they keep is next.
    fn blocks_copied(&mut self) {
        match self.config.differential_blocks {
            0 => self.begin_tail(self.settled),
            _ => self.resync.step = Step::Sweeping { past: self.settled.max(self.applied) },
        }
    }

    fn next_to_copy(&mut self) -> Option<(VolumeId, Lba)> {
        let (volume, from) = self.resync.next;
        let volumes = self.resync.to_copy.len() as u16;
        // Around once, and the first volume's beginning again.
        for step in 0..=volumes {
            let at = (volume + step) % volumes;
            let from = if step == 0 { from } else { 0 };
            if let Some(block) = self.resync.to_copy[at as usize].next_from(from) {
                return Some((VolumeId(at), Lba(block)));
            }
        }
        None
    }

    /// Whether there is room for one more message about what is copied.
    pub(super) fn room_to_copy(&self, turn: &Turn<impl Memory>) -> bool {
        self.catch_up.has_row() && turn.out.to_link.room() > LINK_SPARE + self.resync.reading
    }

    /// And for one more read of blocks to copy.
    pub(super) fn room_to_read(&mut self, turn: &mut Turn<impl Memory>) -> bool {
        self.room_to_copy(turn)
            && self.room_to_fetch(turn, UPDATE_BLOCKS_MAX)
            && self.pages.free() > LEAVES_PAGES + UPDATE_BLOCKS_MAX
    }

    /// Copies a run of blocks that begins there; false if there is no room for it now.
    fn copy_from(&mut self, turn: &mut Turn<impl Memory>, volume: VolumeId, lba: Lba) -> bool {
        if !self.room_to_read(turn) {
            return false;
        }
        let kind = self.kind_of(volume, lba);
        let most = if kind == Kind::Zeros { ZERO_BLOCKS_MAX as u64 } else { UPDATE_BLOCKS_MAX as u64 };
        let end = self.config.volumes[volume.0 as usize].blocks.min(lba.0 + most);
        let wanted = |group: &Group, block: u64| {
            group.resync.to_copy[volume.0 as usize].contains(block)
                && group.kind_of(volume, Lba(block)) == kind
                && !group.mending.awaits(volume, Lba(block))
        };
        let count = (lba.0..end).take_while(|&block| wanted(self, block)).count() as u32;
        if count == 0 {
            return false;
        }
        for block in lba.0..lba.0 + u64::from(count) {
            self.resync.to_copy[volume.0 as usize].remove(block);
        }
        self.resync.next = (volume.0, lba.0 + u64::from(count));
        match kind {
            Kind::Zeros => self.send_piece(turn, volume, lba, count, None),
            Kind::InMemory => {
                let row = self.catch_up.take_row(count as usize).expect("checked above");
                for index in 0..count {
                    let value = self.cache.peek_settled(volume, lba.plus(u64::from(index)));
                    let value = value.expect("it is in memory");
                    self.pages.share(value.page);
                    let sum = sum_to_send(turn.memory, value.page, value.sum);
                    turn.tables.catch_up.set(SlotId(row), index as usize, value.page, sum);
                }
                self.send_piece(turn, volume, lba, count, Some(row));
            }
            Kind::OnDisk => {
                self.resync.begin_read(count);
                self.fetch_blocks(turn, volume, lba, count, VolumeIo::Copy { volume, lba, count });
            }
        }
        true
    }

    /// Where the settled content of a block is.
    pub(super) fn kind_of(&self, volume: VolumeId, lba: Lba) -> Kind {
        match self.cache.peek_settled(volume, lba) {
            Some(value) if value.page == PageId::ZERO => Kind::Zeros,
            Some(_) => Kind::InMemory,
            None if self.sums[volume.0 as usize].get(lba) == BlockSum::ZEROS => Kind::Zeros,
            None => Kind::OnDisk,
        }
    }

    /// A run of blocks was read. What settled meanwhile counts for more.
    pub(super) fn copy_read(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        (volume, lba, count): (VolumeId, Lba, u32),
        read: bool,
    ) {
        self.resync.end_read(count);
        let goes_on = self.peer.talk == Talk::Copying && self.resync.step == Step::Copying;
        let row = if goes_on && turn.out.to_link.room() > LINK_SPARE {
            self.catch_up.take_row(count as usize)
        } else {
            None
        };
        let (mut whole, mut lost) = (true, false);
        for index in 0..count as usize {
            let block = lba.plus(index as u64);
            let page = turn.tables.volume_io.page(slot, index);
            let found = self.found_to_copy(turn, volume, block, page, read);
            let (page, sum) = found.unwrap_or((PageId::ZERO, BlockSum::ZEROS));
            whole &= found.is_some();
            lost |= found.is_none() && !(read && self.mends_for_copy(turn, volume, block));
            match row {
                Some(row) => {
                    let sum = sum_to_send(turn.memory, page, sum);
                    turn.tables.catch_up.set(SlotId(row), index, page, sum);
                }
                None => self.pages.release(page, turn.memory),
            }
        }
        match row {
            Some(row) if whole => self.send_piece(turn, volume, lba, count, Some(row)),
            _ => {
                if let Some(row) = row {
                    self.catch_up_consumed(turn, row);
                }
                self.resync.copy_again(volume, lba, count);
                if lost && goes_on {
                    self.lose_peer(turn, LossReason::Protocol("a block that it lacks cannot be read here"));
                }
            }
        }
    }

    /// What a block holds that was read into the page, which is given up for it, if that is known.
    pub(super) fn found_to_copy(
        &mut self,
        turn: &mut Turn<impl Memory>,
        volume: VolumeId,
        block: Lba,
        page: PageId,
        read: bool,
    ) -> Option<(PageId, BlockSum)> {
        let found = match self.cache.peek_settled(volume, block) {
            Some(value) => {
                self.pages.share(value.page);
                self.pages.release(page, turn.memory);
                Some((value.page, value.sum))
            }
            None => match self.verified(turn, volume, block, page, read) {
                Some(found) => Some(found),
                None => {
                    self.pages.release(page, turn.memory);
                    None
                }
            },
        };
        // Hosts did not ask for it, so it does not stay.
        self.cache.fetch_end(volume, block, None, &mut self.pages, turn.memory);
        found
    }

    /// Sends copied blocks; without a row they are zeros.
    fn send_piece(
        &mut self,
        turn: &mut Turn<impl Memory>,
        volume: VolumeId,
        lba: Lba,
        count: u32,
        row: Option<u32>,
    ) {
        let kind = if row.is_some() { UpdateKind::Write } else { UpdateKind::Zero };
        let row = row.unwrap_or_else(|| self.catch_up.take_row(0).expect("checked above"));
        self.send_copy(turn, Update { lba, count, volume, kind, ..Update::EMPTY }, row, Some((volume, lba)));
    }

    /// Sends what is in the row for the peer's log; `blocks` is what has to be copied again if it does not arrive.
    pub(super) fn send_copy(
        &mut self,
        turn: &mut Turn<impl Memory>,
        what: Update,
        row: u32,
        blocks: Option<(VolumeId, Lba)>,
    ) {
        let sum = match what.payload_blocks() {
            0 => 0,
            count => sum_of_sums((0..count).map(|index| turn.tables.catch_up.sum(SlotId(row), index))),
        };
        let (number, generation) = (self.settled.max(UpdateNumber(1)), self.generation);
        let update = Update { number, generation, sum, ..what };
        turn.out.to_link.push(ToLink::Update {
            update,
            settled: self.settled,
            slot: row,
            source: UpdateSource::Copy,
            with_old: false,
        });
        self.resync.sent += 1;
        let (at, payload_blocks) = (self.resync.sent, what.payload_blocks());
        self.resync.on_their_way.push(Piece { at, blocks, count: what.count, payload_blocks });
    }

    // ------------------------------------------------------------------------------------------------------ the ending

    /// Everything is staged as it was after `floor`: the updates up to here make that what this site held then.
    pub(super) fn begin_tail(&mut self, upto: UpdateNumber) {
        // That this site has left its generation, the peer takes from the stream; nothing follows it there.
        let upto = self.left.map_or(upto, |(at, _)| at.previous().min(upto));
        self.resync.step = Step::Tail { upto, before: self.resync.sent };
        let floor = self.resync.floor;
        (self.peer.next_to_send, self.peer.send_to) = (floor.next(), upto);
        (self.peer.sent, self.peer.consumed) = (floor, floor);
    }

    fn order_install_if_staged(&mut self, turn: &mut Turn<impl Memory>, upto: UpdateNumber, before: u64) {
        // Sending may have ended the conversation.
        if !matches!(self.resync.step, Step::Tail { .. }) {
            return;
        }
        let tail = upto.0.saturating_sub(self.resync.floor.0);
        let room = turn.out.to_link.room() > LINK_SPARE && self.pages.free() > LEAVES_PAGES;
        if self.resync.staged < before + tail || !room {
            return;
        }
        let hello = self.our_hello();
        if self.send_page(turn, PageFrame::Hello, |out| hello.encode(out)) {
            turn.out.to_link.push(ToLink::Control(Control::Install { upto }));
            self.resync.step = Step::Installing { upto };
            self.peer.send_to = UpdateNumber::NONE;
        }
    }

    /// One more update was sent for the peer's log.
    pub(super) fn note_tail_sent(&mut self) {
        if self.peer.talk == Talk::Copying {
            self.resync.sent += 1;
        }
    }

    /// Whether updates of the stream are being sent for the peer's log.
    pub(super) fn sends_tail(&self) -> bool {
        self.peer.talk == Talk::Copying && matches!(self.resync.step, Step::Tail { .. })
    }

    /// A peer that follows has the stream up to `common`: perhaps because it has installed what it was copied.
    pub(super) fn note_installed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        hello: &Hello,
        common: UpdateNumber,
    ) {
        if let Step::Installing { upto } = self.resync.step
            && common >= upto
            && hello.durable >= upto
        {
            self.changed.shrink(upto, &self.resync.recent);
            self.resync.step = Step::None;
            let Resync { copied_blocks: blocks, began_at, .. } = self.resync;
            let (equal, took_ns) = (self.resync.digests.equal, turn.now.since(began_at).0);
            turn.event(Event::ResyncEnded { at: upto, blocks, equal, took_ns });
        }
    }

    pub(super) fn resync_status(&self, now: Nanos) -> ResyncStatus {
        let active = self.role == Role::Primary && self.resync.step != Step::None;
        ResyncStatus {
            active,
            whole: active && self.resync.whole,
            blocks_left: if active { self.resync.left() } else { 0 },
            blocks_copied: self.resync.copied_blocks,
            blocks_equal: self.resync.digests.equal,
            for_ns: if active { now.since(self.resync.began_at).0 } else { 0 },
            changed_blocks: self.changed.count(),
        }
    }
}

/// Where a block's settled content is, and so how it is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Zeros,
    InMemory,
    OnDisk,
}

/// The receiver computes the checksum of what it gets; the one that stands for zeros is not among those.
fn sum_to_send(memory: &impl Memory, page: PageId, sum: BlockSum) -> BlockSum {
    if sum == BlockSum::ZEROS { sum_of_block(memory.bytes(page)) } else { sum }
}
