//! Volume blocks that have gone bad: the peer is asked for them, or by a third its sources, and what they send counts if it has the checksum
//! that this site holds for the block, wherever in the stream they are. Whoever needs the block has it then, as if it had been read; the volume
//! has it again once nothing newer is due there.

use super::host::OpState;
use super::origins::Origin;
use super::storage::VolumeIo;
use super::targets::{TARGETS, Target};
use super::{Group, Turn};
use crate::base::*;
use crate::core::cache::Value;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason, NotRepaired, RepairedBy};

/// A peer that does not answer, or always has other things to do, is asked for no longer: hosts wait for the block, and a sweep may.
const ANSWER_MAX: Nanos = Nanos::from_millis(1_000);

/// When a peer that was busy is asked again, and when the ring to the link is looked at again that had no place for a question.
pub(super) const ASK_AGAIN_AFTER: Nanos = Nanos::from_millis(1);

/// What becomes of a bad block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// It is being repaired: who needs it may wait.
    UnderWay,
    /// As many as can be are being repaired: it is to be read again once one of them is.
    Full,
    Hopeless,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Somebody is to be asked, not before this.
    Wanted {
        from: Nanos,
    },
    Asked {
        of: Origin,
    },
    /// What the block holds is known, and the volume is to have it.
    Known,
    /// The volume gets it, as the version of this update.
    Writing {
        number: UpdateNumber,
    },
    /// And is to keep it.
    Flushing,
    Failed(NotRepaired),
}

#[derive(Clone, Copy, Debug)]
struct Mend {
    volume: VolumeId,
    lba: Lba,
    sum: BlockSum,
    step: Step,
    found_at: Nanos,
    /// Where it is asked for, if the cache does not have it; and who has said that it is not there.
    place: BlockPlace,
    lacked_by: u8,
    by: RepairedBy,
    /// What it holds, from when that is known on.
    page: PageId,
    /// The capture that a sweep wants it for, and what it read instead.
    capture: Option<(usize, PageId)>,
    /// Those that it is to be copied to, by `TARGETS`.
    copied_to: [bool; TARGETS.len()],
    /// A scrub found it, and counts what becomes of it.
    scrubbed: bool,
}

#[derive(Debug)]
pub(super) struct Mending {
    mends: Vec<Mend>,
    /// Some have ended, or are known: who waits looks again.
    news: bool,
}

impl Mending {
    pub fn new() -> Mending {
        Mending { mends: Vec::with_capacity(REPAIRS_MAX), news: false }
    }

    pub fn len(&self) -> usize {
        self.mends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.mends.is_empty()
    }

    fn find(&self, volume: VolumeId, lba: Lba) -> Option<usize> {
        self.mends.iter().position(|mend| mend.volume == volume && mend.lba == lba)
    }

    /// Whether there is no place, before one of the repairs has got on.
    fn is_busy(&self) -> bool {
        self.len() == REPAIRS_MAX && self.mends.iter().all(|mend| mend.step != Step::Known)
    }

    /// Whether a volume is being written: a sweep that begins now would leave the block out, and may not.
    pub fn writes(&self) -> bool {
        self.mends.iter().any(|mend| matches!(mend.step, Step::Writing { .. }))
    }

    /// Whether what a block holds is awaited.
    pub fn awaits(&self, volume: VolumeId, lba: Lba) -> bool {
        self.find(volume, lba)
            .is_some_and(|at| matches!(self.mends[at].step, Step::Wanted { .. } | Step::Asked { .. }))
    }

    /// What a bad block holds, if that is known.
    pub fn known(&self, volume: VolumeId, lba: Lba, sum: BlockSum) -> Option<PageId> {
        let mend = self.mends[self.find(volume, lba)?];
        let known = matches!(mend.step, Step::Known | Step::Writing { .. } | Step::Flushing);
        (known && mend.sum == sum).then_some(mend.page)
    }
}

/// Whether a page holds what the sum is of.
pub(super) fn holds(memory: &impl Memory, page: PageId, sum: BlockSum) -> bool {
    match sum {
        BlockSum::ZEROS => memory.is_zeros(page),
        sum => memory.sum(page) == sum,
    }
}

impl Group {
    /// The page as the index may keep it, or `None` if the disk failed or returned other bytes than were written. A block of
    /// zeros needs no page of its own.
    pub(super) fn verified(
        &mut self,
        turn: &mut Turn<impl Memory>,
        volume: VolumeId,
        lba: Lba,
        page: PageId,
        read: bool,
    ) -> Option<(PageId, BlockSum)> {
        if !read {
            return None;
        }
        let expected = self.sums[volume.0 as usize].get(lba);
        if expected == BlockSum::ZEROS {
            if turn.memory.is_zeros(page) {
                self.pages.release(page, turn.memory);
                return Some((PageId::ZERO, BlockSum::ZEROS));
            }
        } else if turn.memory.sum(page) == expected {
            turn.memory.seal(page);
            return Some((page, expected));
        }
        let known = self.mending.known(volume, lba, expected)?;
        self.pages.share(known);
        self.pages.release(page, turn.memory);
        Some((known, expected))
    }

    /// A block of a volume was read and is not what was written there: no newer one is in memory, or something older is
    /// wanted.
    pub(super) fn mend(&mut self, turn: &mut Turn<impl Memory>, volume: VolumeId, lba: Lba) -> Outlook {
        if self.mending.find(volume, lba).is_some() {
            return Outlook::UnderWay;
        }
        turn.event(Event::ChecksumMismatch { volume, lba });
        let sum = self.sums[volume.0 as usize].get(lba);
        let cached = self.cache.peek_settled(volume, lba).filter(|value| value.sum == sum);
        let hopeless = match cached {
            Some(_) => None,
            None if self.stopping => Some(NotRepaired::Away),
            None => self.nobody_lends(),
        };
        if let Some(why) = hopeless {
            self.counters.unrepaired_blocks += 1;
            turn.event(Event::BlockNotRepaired { volume, lba, why });
            return Outlook::Hopeless;
        }
        if self.mending.is_busy() {
            return Outlook::Full;
        }
        if self.mending.len() == REPAIRS_MAX {
            // One that only its volume lacks gives way: it will be found again.
            let known = self.mending.mends.iter().position(|mend| mend.step == Step::Known);
            self.end_mend(turn, known.expect("it is not busy"), false);
        }
        let (step, page, by) = match cached {
            Some(value) => (Step::Known, value.page, RepairedBy::Memory),
            None => (Step::Wanted { from: turn.now }, PageId::NONE, RepairedBy::Peer),
        };
        if step == Step::Known {
            self.pages.share(page);
        }
        let place = BlockPlace::Volume(volume, lba);
        self.mending.mends.push(Mend {
            volume,
            lba,
            sum,
            step,
            found_at: turn.now,
            place,
            lacked_by: 0,
            by,
            page,
            capture: None,
            copied_to: [false; TARGETS.len()],
            scrubbed: false,
        });
        Outlook::UnderWay
    }

    fn end_mend(&mut self, turn: &mut Turn<impl Memory>, at: usize, repaired: bool) {
        let mend = self.mending.mends.remove(at);
        if mend.scrubbed {
            self.scrub.note_block(mend.volume, mend.lba, repaired);
        }
        if mend.page != PageId::NONE {
            self.pages.release(mend.page, turn.memory);
        }
        self.mending.news = true;
    }

    /// A sweep has read `bad` for the capture at this place, and waits for what is to be there instead. False if that is not
    /// awaited.
    pub(super) fn await_for_capture(
        &mut self,
        volume: VolumeId,
        lba: Lba,
        index: usize,
        bad: PageId,
    ) -> bool {
        let awaited = self.mending.awaits(volume, lba);
        let at = self.mending.find(volume, lba).filter(|_| awaited);
        let Some(at) = at.filter(|&at| self.mending.mends[at].capture.is_none()) else { return false };
        self.mending.mends[at].capture = Some((index, bad));
        self.destage.write_begun();
        true
    }

    /// What the capture needs is in this page, or cannot be had: then it is what was read.
    fn end_capture(&mut self, turn: &mut Turn<impl Memory>, at: usize, page: Option<PageId>) {
        let Some((index, bad)) = self.mending.mends[at].capture.take() else { return };
        let page = match page {
            Some(page) => {
                self.pages.share(page);
                self.pages.release(bad, turn.memory);
                page
            }
            None => {
                turn.memory.seal(bad);
                bad
            }
        };
        self.captures.set_read(index, Some(page));
        self.destage.write_done();
    }

    /// A scrub found the block, which is being repaired. False if it had found it before.
    pub(super) fn note_scrubbed(&mut self, volume: VolumeId, lba: Lba) -> bool {
        let at = self.mending.find(volume, lba).expect("it is being repaired");
        !std::mem::replace(&mut self.mending.mends[at].scrubbed, true)
    }

    /// Whether what a scrub has found is being repaired.
    pub(super) fn mends_scrubbed(&self) -> bool {
        self.mending.mends.iter().any(|mend| mend.scrubbed)
    }

    /// Another pass begins: what the last one had found is not of it.
    pub(super) fn forget_scrubbed(&mut self) {
        self.mending.mends.iter_mut().for_each(|mend| mend.scrubbed = false);
    }

    /// A block that the target lacks is bad. Returns whether it may be copied later.
    pub(super) fn mends_for_copy(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        volume: VolumeId,
        lba: Lba,
    ) -> bool {
        let outlook = self.mend(turn, volume, lba);
        if let Some(at) = self.mending.find(volume, lba) {
            self.mending.mends[at].copied_to[to as usize] = true;
        }
        outlook != Outlook::Hopeless
    }

    /// An operation that met a bad block waits for it, or tries again at once if nothing is awaited any more.
    pub(super) fn await_mend(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket)) {
        if self.mending.is_busy() || self.awaits_mend(at) {
            self.op_mut(at).state = OpState::Mending;
        } else {
            self.try_again(turn, at);
        }
    }

    /// Whether a block of the operation is awaited.
    pub(super) fn awaits_mend(&self, at: (u8, Ticket)) -> bool {
        let request = &self.op(at).request;
        let blocks = request.op.blocks();
        self.mending.mends.iter().any(|mend| {
            mend.volume == request.volume
                && blocks.contains(&mend.lba.0)
                && self.mending.awaits(mend.volume, mend.lba)
        })
    }

    /// A site is gone, and with it the answers that were awaited: another one is asked, if there is one.
    pub(super) fn forget_mending(&mut self, now: Nanos, gone: Origin) {
        for mend in &mut self.mending.mends {
            if mend.step == (Step::Asked { of: gone }) {
                mend.step = Step::Wanted { from: now };
            }
        }
    }

    /// The site that was asked has no such block, or cannot look for it now.
    pub(super) fn mend_lacks(&mut self, now: Nanos, by: Origin, place: BlockPlace, why: Lacking) {
        for at in 0..self.mending.len() {
            let mend = self.mending.mends[at];
            if mend.step == (Step::Asked { of: by }) && mend.place == place {
                let lacked_by = mend.lacked_by | by.bit();
                let others = self.lender(|lender| lacked_by & lender.bit() == 0).is_some();
                let mend = &mut self.mending.mends[at];
                let mut captures = self.captures.of_block(mend.volume, mend.lba);
                mend.step = match captures.find(|capture| capture.sum == mend.sum) {
                    _ if why == Lacking::Busy && now.since(mend.found_at) < ANSWER_MAX => {
                        Step::Wanted { from: now.plus(ASK_AGAIN_AFTER) }
                    }
                    _ if others => {
                        mend.lacked_by = lacked_by;
                        Step::Wanted { from: now }
                    }
                    // It may have overwritten the block already: then it keeps what that held, in the same slot.
                    Some(capture) if mend.place != BlockPlace::Slot(capture.slot) => {
                        (mend.place, mend.lacked_by) = (BlockPlace::Slot(capture.slot), 0);
                        Step::Wanted { from: now }
                    }
                    _ => Step::Failed(match why {
                        Lacking::Other => NotRepaired::OtherContent,
                        Lacking::Damaged => NotRepaired::DamagedToo,
                        Lacking::Busy => NotRepaired::Busy,
                    }),
                };
            }
        }
    }

    /// A site sent a block. It may be the answer to what is not asked any more.
    pub(super) fn mend_with(&mut self, turn: &mut Turn<impl Memory>, received: PageId, length: u16) {
        if usize::from(length) != BLOCK_BYTES {
            return;
        }
        let mut sealed = false;
        for at in 0..self.mending.len() {
            let Mend { volume, lba, sum, step, .. } = self.mending.mends[at];
            // Destage may have written something newer meanwhile, and then nothing is bad any more: `write_mended` finds that out.
            if !matches!(step, Step::Asked { .. }) || !holds(turn.memory, received, sum) {
                continue;
            }
            let page = if sum == BlockSum::ZEROS { PageId::ZERO } else { received };
            if page == received && !sealed {
                turn.memory.seal(received);
                sealed = true;
            }
            self.pages.share(page);
            let mend = &mut self.mending.mends[at];
            (mend.page, mend.step) = (page, Step::Known);
            self.mending.news = true;
            self.end_capture(turn, at, Some(page));
            self.enter_mended(turn, volume, lba, page, sum);
        }
    }

    /// What a bad block holds enters the cache, as if it had been read.
    fn enter_mended(
        &mut self,
        turn: &mut Turn<impl Memory>,
        volume: VolumeId,
        lba: Lba,
        page: PageId,
        sum: BlockSum,
    ) {
        let current = self.sums[volume.0 as usize].get(lba) == sum;
        let lacks = self.cache.peek_settled(volume, lba).is_none() && !self.is_uncertain(volume, lba);
        if current && lacks && self.room_to_fetch(turn, 1) && self.cache.fetch_begin(volume, lba) {
            self.pages.share(page);
            self.cache.fetch_end(volume, lba, Some((page, sum)), &mut self.pages, turn.memory);
        }
    }

    /// Asks, gives up, tells who waits, and writes what is known to its volume.
    pub(super) fn mend_turn(&mut self, turn: &mut Turn<impl Memory>) {
        let mut at = 0;
        while at < self.mending.len() {
            at += usize::from(!self.go_on_mending(turn, at));
        }
        if std::mem::take(&mut self.mending.news) {
            self.wake_mending(turn, None);
        }
    }

    /// Returns whether this one has ended.
    fn go_on_mending(&mut self, turn: &mut Turn<impl Memory>, at: usize) -> bool {
        let Mend { place, lacked_by, sum, step, found_at, .. } = self.mending.mends[at];
        match step {
            Step::Wanted { from } => {
                match self.lender(|lender| lacked_by & lender.bit() == 0) {
                    // Of a pair whose sites change places, as they greet each other anew: in a moment it lends again.
                    None if self.greets() && turn.now.since(found_at) < ANSWER_MAX => {}
                    None => {
                        self.not_mended(turn, at, NotRepaired::Away);
                        return true;
                    }
                    Some(of) if turn.now >= from && of.has_room(turn) => {
                        of.ask_for_block(turn, place, sum);
                        self.mending.mends[at].step = Step::Asked { of };
                    }
                    Some(_) => {}
                }
                false
            }
            Step::Asked { .. } if turn.now.since(found_at) >= ANSWER_MAX => {
                self.mending.mends[at].step = Step::Failed(NotRepaired::NoAnswer);
                false
            }
            Step::Known => self.write_mended(turn, at),
            Step::Failed(why) => {
                self.not_mended(turn, at, why);
                true
            }
            _ => false,
        }
    }

    fn not_mended(&mut self, turn: &mut Turn<impl Memory>, at: usize, why: NotRepaired) {
        self.end_capture(turn, at, None);
        let Mend { volume, lba, copied_to, .. } = self.mending.mends[at];
        self.end_mend(turn, at, false);
        self.counters.unrepaired_blocks += 1;
        turn.event(Event::BlockNotRepaired { volume, lba, why });
        self.wake_mending(turn, Some((volume, lba)));
        for to in TARGETS {
            if copied_to[to as usize] && self.copies_to(to) {
                let why = "a block that it lacks cannot be read here";
                self.lose_target(turn, to, LossReason::Protocol(why));
            }
        }
    }

    /// Writes the block to its volume, unless something newer is there or is due: of two writes the newer must stay. Returns whether
    /// this repair has ended.
    fn write_mended(&mut self, turn: &mut Turn<impl Memory>, at: usize) -> bool {
        let Mend { volume, lba, sum, page, .. } = self.mending.mends[at];
        if self.sums[volume.0 as usize].get(lba) != sum {
            self.counters.repaired_blocks += 1;
            turn.event(Event::BlockRepaired { volume, lba, by: RepairedBy::NewerData });
            self.end_mend(turn, at, true);
            return true;
        }
        if self.stopping && self.mending.mends[at].capture.is_none() && !self.cache.may_bridge(volume, lba) {
            self.end_mend(turn, at, false);
            return true;
        }
        self.enter_mended(turn, volume, lba, page, sum);
        // Clean, so a sweep under way has nothing for it; and none begins before this write ends.
        let clean = self.cache.may_bridge(volume, lba) && !self.staging.installing();
        let settled = self.cache.peek_settled(volume, lba);
        if !clean || self.volume_slots.is_empty() || settled.is_none_or(|value| value.sum != sum) {
            return false;
        }
        let slot = self.volume_slots.pop().expect("checked");
        let value = self.cache.bridge_begin(volume, lba, &mut self.pages);
        turn.tables.volume_io.set(slot, 0, value.page, value.sum);
        self.mending.mends[at].step = Step::Writing { number: value.number };
        let request =
            IoRequest { slot, target: IoTarget::Volume(volume), op: IoOp::Write, block: lba.0, count: 1 };
        self.submit_volume(turn, slot, VolumeIo::Mend { volume, lba }, request);
        false
    }

    /// The volume has the block, or keeps it. Returns whether the slot is free.
    pub(super) fn mend_written(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        volume: VolumeId,
        lba: Lba,
    ) -> bool {
        let at = self.mending.find(volume, lba).expect("it stays until it is written");
        if let Step::Writing { number } = self.mending.mends[at].step {
            let (page, sum) = (turn.tables.volume_io.page(slot, 0), turn.tables.volume_io.sum(slot, 0));
            let value = Value { page, sum, number };
            self.cache.destage_end(volume, lba, value, &mut self.pages, turn.memory);
            self.mending.mends[at].step = Step::Flushing;
            let target = IoTarget::Volume(volume);
            let request = IoRequest { slot, target, op: IoOp::Flush, block: 0, count: 0 };
            self.submit_volume(turn, slot, VolumeIo::Mend { volume, lba }, request);
            return false;
        }
        self.counters.repaired_blocks += 1;
        let by = self.mending.mends[at].by;
        turn.event(Event::BlockRepaired { volume, lba, by });
        self.end_mend(turn, at, true);
        true
    }

    /// Operations that wait for bad blocks look again; those that need the one that cannot be had get their error.
    fn wake_mending(&mut self, turn: &mut Turn<impl Memory>, lost: Option<(VolumeId, Lba)>) {
        for front in 0..self.ops.len() {
            for ticket in 0..FRONT_TICKETS_MAX {
                let op = &self.ops[front][ticket];
                if op.state != OpState::Mending {
                    continue;
                }
                let at = (front as u8, SlotId(ticket as u32));
                let needs = |(volume, lba): (VolumeId, Lba)| {
                    op.request.volume == volume && op.request.op.blocks().contains(&lba.0)
                };
                // What is newer may settle, or what was wanted be kept, before the next try.
                let newer = |(volume, lba)| self.cache.peek(volume, lba).is_some();
                match lost {
                    Some(lost) if needs(lost) && newer(lost) => self.try_again(turn, at),
                    Some(lost) if needs(lost) => self.refuse_operation(turn, at, HostError::Io),
                    Some(_) => {}
                    None if self.awaits_mend(at) => {}
                    None => self.try_again(turn, at),
                }
            }
        }
    }

    pub(super) fn mend_deadline(&self) -> Option<Nanos> {
        let asked = self.mending.mends.iter().filter_map(|mend| match mend.step {
            Step::Asked { .. } => Some(mend.found_at.plus(ANSWER_MAX)),
            Step::Wanted { from } => Some(from.max(self.turned_at.plus(ASK_AGAIN_AFTER))),
            _ => None,
        });
        asked.min()
    }
}
