//! Blocks that have gone bad at one site are another one's to lend: the peer's, or for a third one of its sources'. Who is asked, and what a
//! site does that is asked itself, by its peer or by its third. What a third needs it gets from whichever of the pair it has met: the sum
//! says what counts, wherever in the stream either is (decision 0025).

use super::feeding::Talk as FeedTalk;
use super::origins::Origin;
use super::peering::LINK_SPARE;
use super::storage::VolumeIo;
use super::targets::{Target, room_to};
use super::{Group, Phase, Turn};
use crate::base::*;
use crate::core::captures::Source;
use crate::core::messages::*;
use crate::core::outbox::{Event, NotRepaired};

/// What is being read for others.
#[derive(Debug, Default)]
pub(super) struct Loans {
    blocks: usize,
    slot: bool,
}

impl Group {
    /// Who can be asked for a block now, of those that may be: of sources, rather the one that is pulled from.
    pub(super) fn lender(&self, may_be: impl Fn(Origin) -> bool) -> Option<Origin> {
        if !matches!(self.phase, Phase::Running) {
            return None;
        }
        match self.config.peer {
            Some(_) => Some(Origin::Peer).filter(|&peer| self.engaged() && may_be(peer)),
            None => self.source_to_ask(|index| may_be(Origin::Source(index))).map(Origin::Source),
        }
    }

    /// Why nobody can be asked, if so.
    pub(super) fn nobody_lends(&self) -> Option<NotRepaired> {
        if self.config.peer.is_none() && self.sources.is_empty() {
            return Some(NotRepaired::NoPeer);
        }
        self.lender(|_| true).is_none().then_some(NotRepaired::Away)
    }

    /// What was asked for is not there.
    pub(super) fn lender_lacks(
        &mut self,
        turn: &mut Turn<impl Memory>,
        by: Origin,
        place: BlockPlace,
        why: Lacking,
    ) {
        if let BlockPlace::Slot(slot) = place {
            self.repair_lacks(turn, slot, why);
        }
        self.mend_lacks(turn.now, by, place, why);
    }

    /// A block has come. It may be the answer to what is not asked any more.
    pub(super) fn block_lent(&mut self, turn: &mut Turn<impl Memory>, page: PageId, length: u16) {
        self.repair_with(turn, page, length);
        self.mend_with(turn, page, length);
    }

    /// Nothing comes from there any more.
    pub(super) fn forget_lender(&mut self, now: Nanos, gone: Origin) {
        self.forget_repair(gone);
        self.forget_mending(now, gone);
    }

    // ------------------------------------------------------------------------------------------------- for others

    fn room_to_lend(&self, turn: &Turn<impl Memory>, to: Target) -> bool {
        room_to(turn, to) > LINK_SPARE
    }

    fn converses_with(&self, whom: Target) -> bool {
        match whom {
            Target::Peer => self.converses(),
            Target::Third => !matches!(self.feed().talk, FeedTalk::Absent | FeedTalk::Greeting { .. }),
        }
    }

    fn send_block(&mut self, turn: &mut Turn<impl Memory>, to: Target, page: PageId) {
        let length = BLOCK_BYTES as u16;
        self.give_target(turn, to, ToLink::Page { frame: PageFrame::Block, page, length });
    }

    fn lack(&mut self, turn: &mut Turn<impl Memory>, to: Target, place: BlockPlace, why: Lacking) {
        if self.converses_with(to) && self.room_to_lend(turn, to) {
            self.give_target(turn, to, ToLink::Control(Control::BlockLacking { place, why }));
        }
    }

    /// Whether one more block may be read for others.
    fn may_read_to_lend(&self) -> bool {
        !self.stopping && !self.volume_slots.is_empty() && self.pages.free() > BATCH_BLOCKS_MAX
    }

    /// Sends the block that is wanted, out of memory or of the volume.
    pub(super) fn lend_block(
        &mut self,
        turn: &mut Turn<impl Memory>,
        to: Target,
        place: BlockPlace,
        sum: BlockSum,
    ) {
        let (volume, lba) = match place {
            BlockPlace::Slot(slot) => return self.lend_slot(turn, to, slot, sum),
            BlockPlace::Volume(volume, lba) => (volume, lba),
        };
        let within = self.config.volumes.get(volume.0 as usize).is_some_and(|spec| lba.0 < spec.blocks);
        if !within || !matches!(self.phase, Phase::Running) {
            let why = if within { Lacking::Busy } else { Lacking::Other };
            return self.lack(turn, to, place, why);
        }
        let cached = [self.cache.peek(volume, lba), self.cache.peek_settled(volume, lba)];
        let cached = cached.into_iter().flatten().find(|value| value.sum == sum).map(|value| value.page);
        let kept = || {
            let mut captures = self.captures.of_block(volume, lba).filter(|capture| capture.sum == sum);
            captures.find_map(|capture| match capture.source {
                Source::Page(page) => Some(page),
                Source::Volume | Source::Read(_) => None,
            })
        };
        if let Some(page) = cached.or_else(kept) {
            if self.room_to_lend(turn, to) {
                self.pages.share(page);
                self.send_block(turn, to, page);
            }
            return;
        }
        if self.sums[volume.0 as usize].get(lba) != sum {
            return self.lack(turn, to, place, Lacking::Other);
        }
        if self.loans.blocks == REPAIRS_MAX || !self.may_read_to_lend() {
            return self.lack(turn, to, place, Lacking::Busy);
        }
        self.loans.blocks += 1;
        let io = VolumeIo::LendBlock { to, volume, lba, sum };
        self.read_blocks(turn, IoTarget::Volume(volume), lba.0, 1, io);
    }

    /// It was read; its page goes to the link and comes back from there.
    pub(super) fn block_read_to_lend(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        to: Target,
        (volume, lba, sum): (VolumeId, Lba, BlockSum),
        result: Result<(), IoFault>,
    ) {
        self.loans.blocks -= 1;
        let page = turn.tables.volume_io.page(slot, 0);
        let good = result.is_ok() && super::mending::holds(turn.memory, page, sum);
        if good && self.converses_with(to) && self.room_to_lend(turn, to) {
            turn.memory.seal(page);
            return self.send_block(turn, to, page);
        }
        self.pages.release(page, turn.memory);
        // After a crash, what replay has yet to write again may be in the volume already.
        let overwritten = self.sums[volume.0 as usize].get(lba) != sum
            || !self.cache.is_clean(volume, lba)
            || self.cache.peek_settled(volume, lba).is_some();
        if !good && !overwritten {
            self.found_bad_for(turn, to, volume, lba);
        }
        let why = match (good, overwritten) {
            (true, _) => Lacking::Busy,
            (false, true) => Lacking::Other,
            (false, false) => Lacking::Damaged,
        };
        self.lack(turn, to, BlockPlace::Volume(volume, lba), why);
    }

    fn found_bad_for(&mut self, turn: &mut Turn<impl Memory>, whom: Target, volume: VolumeId, lba: Lba) {
        if whom == Target::Third {
            // The peer may have it.
            self.mend(turn, volume, lba);
            return;
        }
        // The peer asked because its own is damaged, so it is not asked in turn.
        turn.event(Event::ChecksumMismatch { volume, lba });
        turn.event(Event::BlockNotRepaired { volume, lba, why: NotRepaired::DamagedToo });
    }

    /// Reads the block that is wanted out of its slot.
    fn lend_slot(&mut self, turn: &mut Turn<impl Memory>, to: Target, wanted: Slot, sum: BlockSum) {
        if to == Target::Peer {
            self.keep_greeting(turn.now);
        }
        // What is on its way there may get there while the slot is read.
        let fills = self.captures.fills(wanted);
        if self.loans.slot || fills || !self.slots.has(wanted, 1) || !self.may_read_to_lend() {
            return self.lack(turn, to, BlockPlace::Slot(wanted), Lacking::Busy);
        }
        self.loans.slot = true;
        self.read_blocks(
            turn,
            IoTarget::Differential,
            wanted.0,
            1,
            VolumeIo::LendSlot { to, slot: wanted, sum },
        );
    }

    /// It was read; its page goes to the link and comes back from there.
    pub(super) fn slot_read_to_lend(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        to: Target,
        (wanted, sum): (Slot, BlockSum),
        result: Result<(), IoFault>,
    ) {
        self.loans.slot = false;
        let page = turn.tables.volume_io.page(slot, 0);
        let good = result.is_ok() && sum_of_block(turn.memory.bytes(page)) == sum;
        if good && self.converses_with(to) && self.room_to_lend(turn, to) {
            turn.memory.seal(page);
            return self.send_block(turn, to, page);
        }
        self.pages.release(page, turn.memory);
        // Whether a slot in use is damaged or has another block, only the tables say.
        let why = match good {
            false if self.captures.fills(wanted) => Lacking::Busy,
            false if self.slots.are_free(wanted, 1) => Lacking::Other,
            false => Lacking::Damaged,
            true => Lacking::Busy,
        };
        self.lack(turn, to, BlockPlace::Slot(wanted), why);
    }
}
