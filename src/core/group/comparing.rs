//! Comparing both sites while hosts write: extent by extent, the primary and its secondary each say what the blocks hold as of one and
//! the same number, by a digest of their checksums; and each reads what of them it does not have in memory, so that the checksums are
//! worth what they say ([decision 0029](../../../docs/decisions/0029-sites-are-compared-as-of-a-number.md)).
//!
//! Updates settle one by one on either site, in the same order, so there is a moment at which exactly those up to the number have. The
//! primary takes what it has settled for the number, and its question comes to the secondary before any word of a later one.

use super::equalising::Equalising;
use super::host::DESTAGE_SLOTS;
use super::peering::{LINK_SPARE, Talk};
use super::status::PeerState;
use super::storage::VolumeIo;
use super::{Alone, Group, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};

/// Whoever asked is told nothing later than this: an extent is some reads at either site, each with a pause that is nine times as long.
const ANSWER_MAX: Nanos = Nanos::from_millis(10_000);

/// When to look again if a page or a slot is lacking.
pub(super) const LOOKS_AGAIN_AFTER: Nanos = Nanos::from_millis(5);

/// An extent that is being looked at.
#[derive(Clone, Copy, Debug)]
struct Look {
    extent: Extent,
    at: UpdateNumber,
    /// What the checksums say of it as of then, once that is settled here.
    digest: Option<Digest128>,
    /// Blocks that need no more reading, and how many of those that were read had gone bad.
    read: u32,
    damaged: u32,
    reading: bool,
    due_at: Nanos,
}

/// Who asked the primary, and what the peer has answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    request: u64,
    since: Nanos,
    answer: Option<(Digest128, u32)>,
}

/// One extent at a time.
#[derive(Debug)]
pub(super) struct Comparing {
    look: Option<Look>,
    asked: Option<Asked>,
    /// What is asked is more: that block is to become the same.
    pub equalising: Option<Equalising>,
    /// Looks so far, and reads in flight: those of a look that is over are of no use.
    serial: u32,
    reads: u32,
    /// Of a block of zeros that was written as one with data.
    zeros: BlockSum,
}

impl Comparing {
    pub fn new() -> Comparing {
        let zeros = sum_of_block(&[0; BLOCK_BYTES]);
        Comparing { look: None, asked: None, equalising: None, serial: 0, reads: 0, zeros }
    }

    pub fn is_reading(&self) -> bool {
        self.reads > 0
    }

    pub fn begin_read(&mut self) {
        self.reads += 1;
    }

    pub fn end_read(&mut self) {
        self.reads -= 1;
    }

    /// Whether what is settled up to this number is to be looked at before anything is settled behind it.
    pub fn awaits(&self, settled: UpdateNumber) -> bool {
        self.look.is_some_and(|look| look.digest.is_none() && look.at == settled)
    }
}

impl Group {
    // ------------------------------------------------------------------------------------------------------ the primary

    /// With `theirs`, the extent's only block is to become the same, see `equalising`.
    pub(super) fn on_compare(
        &mut self,
        turn: &mut Turn<impl Memory>,
        request: AdminRequest,
        extent: Extent,
        theirs: Option<bool>,
    ) {
        let verdict = self.judge_compare(&extent);
        let room = self.comparing.asked.is_none() && turn.out.to_link.room() > LINK_SPARE;
        let verdict = verdict.and_then(|()| room.then_some(()).ok_or(AdminError::Busy));
        if let Err(why) = verdict {
            return turn.out.to_admin.push(AdminReply { id: request.id, result: Err(why) });
        }
        self.comparing.asked = Some(Asked { request: request.id, since: turn.now, answer: None });
        self.comparing.equalising = theirs.map(|theirs| self.watched(extent.volume, extent.first, theirs));
        self.begin_look(turn.now, extent, self.settled);
        self.ask_peer_to_compare(turn);
    }

    fn judge_compare(&self, extent: &Extent) -> Result<(), AdminError> {
        let joint = self.alone == Alone::No && self.peer_state() == PeerState::InSync;
        match self.role {
            _ if !self.serving() || self.stopping => Err(AdminError::NotServing),
            Role::Secondary | Role::Third => Err(AdminError::ReadOnly),
            Role::Primary if self.config.peer.is_none() => Err(AdminError::NoPeer),
            Role::Primary if !joint || self.peer.talk != Talk::Streaming => Err(AdminError::NotInLockstep),
            // It can count as in lockstep before it has been sent again what is settled, and cannot look at what it has not.
            Role::Primary if self.peer.durable < self.settled => Err(AdminError::NotInLockstep),
            Role::Primary if !self.has_extent(extent) => Err(AdminError::NoSuchVolume),
            Role::Primary => Ok(()),
        }
    }

    fn has_extent(&self, extent: &Extent) -> bool {
        let Extent { volume, first, count, .. } = *extent;
        let blocks = self.config.volumes.get(usize::from(volume.0)).map_or(0, |volume| volume.blocks);
        let end = first.0.checked_add(u64::from(count));
        (1..=COMPARE_BLOCKS_MAX).contains(&count) && end.is_some_and(|end| end <= blocks)
    }

    fn ask_peer_to_compare(&mut self, turn: &mut Turn<impl Memory>) {
        let Look { extent, at, .. } = self.comparing.look.expect("it has begun");
        turn.out.to_link.push(ToLink::Control(Control::Compare { at, extent }));
    }

    /// The peer has looked; it may be the answer to what is not asked any more.
    pub(super) fn on_compared(
        &mut self,
        turn: &mut Turn<impl Memory>,
        at: UpdateNumber,
        answer: Option<(Digest128, u32)>,
    ) {
        let (Some(look), Some(asked)) = (self.comparing.look, &mut self.comparing.asked) else { return };
        if look.at != at || asked.answer.is_some() {
            return;
        }
        if answer.is_some() {
            asked.answer = answer;
        } else if turn.out.to_link.room() > LINK_SPARE {
            // It had settled more; what was read here need not be read again.
            let digest = Some(self.digest_of(&look.extent));
            self.comparing.look = Some(Look { at: self.settled, digest, ..look });
            self.ask_peer_to_compare(turn);
        }
    }

    pub(super) fn end_compare(
        &mut self,
        turn: &mut Turn<impl Memory>,
        result: Result<UpdateNumber, AdminError>,
    ) {
        self.comparing.look = None;
        self.forget_equalising(turn);
        if let Some(asked) = self.comparing.asked.take() {
            turn.out.to_admin.push(AdminReply { id: asked.request, result });
        }
    }

    /// The peer is gone.
    pub(super) fn forget_comparing(&mut self, turn: &mut Turn<impl Memory>) {
        self.end_compare(turn, Err(AdminError::LinkLost));
    }

    // ---------------------------------------------------------------------------------------------------- the secondary

    pub(super) fn on_compare_wanted(
        &mut self,
        turn: &mut Turn<impl Memory>,
        at: UpdateNumber,
        extent: Extent,
    ) {
        if self.peer.talk != Talk::Following {
            return;
        }
        if !self.has_extent(&extent) || at > self.window.last() {
            return self.lose_peer(turn, LossReason::Protocol("a comparison of what there is not"));
        }
        if at < self.settled {
            self.comparing.look = None;
            return self.tell_compared(turn, at, None);
        }
        self.begin_look(turn.now, extent, at);
    }

    fn tell_compared(
        &self,
        turn: &mut Turn<impl Memory>,
        at: UpdateNumber,
        answer: Option<(Digest128, u32)>,
    ) {
        if turn.out.to_link.room() > LINK_SPARE {
            turn.out.to_link.push(ToLink::Control(Control::Compared { at, answer }));
        }
    }

    // ----------------------------------------------------------------------------------------------------------- both

    fn begin_look(&mut self, now: Nanos, extent: Extent, at: UpdateNumber) {
        let digest = (at == self.settled).then(|| self.digest_of(&extent));
        let read = if extent.reads { 0 } else { extent.count };
        self.comparing.serial = self.comparing.serial.wrapping_add(1);
        self.comparing.look =
            Some(Look { extent, at, digest, read, damaged: 0, reading: false, due_at: now });
    }

    /// Everything up to the number is settled, and nothing behind it.
    pub(super) fn note_compared(&mut self) {
        if let Some(look) = self.comparing.look {
            let digest = Some(self.digest_of(&look.extent));
            self.comparing.look = Some(Look { digest, ..look });
        }
    }

    /// Of what the blocks hold as of what is settled. Zeros are zeros, however they came there.
    fn digest_of(&self, extent: &Extent) -> Digest128 {
        let Extent { volume, first, count, .. } = *extent;
        let sum = |lba| match self.cache.peek_settled(volume, lba) {
            Some(value) => value.sum,
            None => self.sums[usize::from(volume.0)].get(lba),
        };
        let sums = (0..u64::from(count)).map(|index| sum(first.plus(index)));
        let mut sums = sums.map(|sum| if sum == self.comparing.zeros { BlockSum::ZEROS } else { sum });
        match count {
            // Whoever is to have the block asks for it by that.
            1 => Digest128([u64::from(sums.next().expect("one").0), 0]),
            _ => digest_of_sums(sums),
        }
    }

    pub(super) fn compare_turn(&mut self, turn: &mut Turn<impl Memory>) {
        if self.comparing.asked.is_some_and(|asked| turn.now.since(asked.since) >= ANSWER_MAX) {
            return self.end_compare(turn, Err(AdminError::Deadline));
        }
        let Some(look) = self.comparing.look else { return };
        if look.reading || turn.now < look.due_at {
            return;
        }
        if look.read < look.extent.count {
            return self.read_to_compare(turn, look);
        }
        let Some(digest) = look.digest else { return };
        match self.comparing.asked {
            None => {
                self.comparing.look = None;
                self.counters.damaged_here += u64::from(look.damaged);
                self.tell_compared(turn, look.at, Some((digest, look.damaged)));
            }
            Some(Asked { answer: Some((theirs, damaged)), .. }) => {
                self.counters.damaged_here += u64::from(look.damaged);
                self.counters.damaged_there += u64::from(damaged);
                if digest == theirs {
                    self.end_compare(turn, Ok(look.at));
                } else if self.comparing.equalising.is_some() {
                    self.comparing.look = None;
                    self.begin_equalising(turn, look.damaged, (theirs, damaged));
                } else {
                    self.end_compare(turn, Err(AdminError::Differ));
                }
            }
            Some(_) => {}
        }
    }

    pub(super) fn compare_deadline(&self) -> Option<Nanos> {
        let look = self.comparing.look.filter(|look| !look.reading);
        let reads = look.filter(|look| look.read < look.extent.count).map(|look| look.due_at);
        let late = self.comparing.asked.map(|asked| asked.since.plus(ANSWER_MAX));
        // What is read and was answered waits for its pause alone.
        let pause = look.filter(|look| self.turned_at < look.due_at).map(|look| look.due_at);
        [reads, late, pause, self.equalise_deadline()].into_iter().flatten().min()
    }

    fn read_to_compare(&mut self, turn: &mut Turn<impl Memory>, look: Look) {
        let Extent { volume, first, count, .. } = look.extent;
        let count = (count - look.read).min(VOLUME_IO_BLOCKS_MAX as u32);
        let lba = first.plus(u64::from(look.read));
        let room = self.pages.free() >= BATCH_BLOCKS_MAX + count as usize
            && self.volume_slots.len() > DESTAGE_SLOTS
            && !self.staging.installing();
        if !room {
            let due_at = turn.now.plus(LOOKS_AGAIN_AFTER);
            self.comparing.look = Some(Look { due_at, ..look });
            return;
        }
        // When it began is told by when it was due.
        self.comparing.look = Some(Look { reading: true, due_at: turn.now, ..look });
        self.comparing.reads += 1;
        let serial = self.comparing.serial;
        self.read_to_judge(turn, (volume, lba, count), VolumeIo::Compare { volume, lba, count, serial });
    }

    /// Blocks were read. What has gone bad is repaired as it is when a host reads it; what was written meanwhile says nothing.
    pub(super) fn read_for_compare(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        (volume, lba, count): (VolumeId, Lba, u32),
        serial: u32,
        result: Result<(), IoFault>,
    ) {
        self.comparing.reads -= 1;
        let look = self.comparing.look.filter(|look| look.reading && serial == self.comparing.serial);
        if let Err(fault) = result {
            turn.event(Event::ReadFailed { target: IoTarget::Volume(volume), fault, block: lba.0 });
        }
        let mut damaged = 0;
        for index in 0..u64::from(count) {
            let block = lba.plus(index);
            let bad = self.found_bad(turn, (slot, index as usize), (volume, block), result.is_ok());
            if look.is_some() && bad {
                damaged += 1;
                if result.is_ok() {
                    self.mend(turn, volume, block);
                }
            }
        }
        // A repair may have lost the peer, and the look with it.
        let Some(look) = look.filter(|_| self.comparing.look.is_some()) else { return };
        let due_at = turn.now.plus(self.yields_since(turn.now, look.due_at));
        let (read, damaged) = (look.read + count, look.damaged + damaged);
        self.comparing.look = Some(Look { read, damaged, reading: false, due_at, ..look });
    }
}
