//! A third that lapsed, or was formatted anew, asks a site for a copy: no journal has what it lacks, and nobody knows what that is, so all
//! blocks are compared, and what differs is copied. Either of the pair does that, whether its peer is there or not: what is copied is settled.
//! Nobody waits for it: the journal is held for the copy as long as for a third that is behind, and then what changed is copied again.

use super::feeding::Talk;
use super::resync::{ResyncStatus, Step};
use super::targets::Target;
use super::{Group, Turn};
use crate::base::*;
use crate::core::outbox::{Event, LossReason};

/// A name is the number of the superblock that this life had written by then, and a count: a restart goes on above all of its.
const SERIAL_BITS: u32 = 20;

impl Group {
    /// The third asks for a copy: it has been told, here and wherever else it could ask, that no journal has what it lacks.
    pub(super) fn on_copy_wanted(&mut self, turn: &mut Turn<impl Memory>) {
        if !matches!(self.feed().talk, Talk::Standing | Talk::Lapsed { .. }) {
            return self.lose_third(turn, LossReason::Protocol("a copy that it cannot want"));
        }
        let feed = self.feed_mut();
        (feed.talk, feed.resumed) = (Talk::Copying, None);
        let at = feed.pull.after;
        let resync = &mut self.resyncs[Target::Third];
        resync.offer_due = true;
        // It has got on elsewhere, or its disks are others: what was equal then need not be now.
        if resync.target_at != at {
            resync.step = Step::None;
        }
        // It was told to install, and did not get to it: its log is what it would have installed, so what follows comes on top.
        if let Step::Installing { upto } = resync.step {
            (resync.step, resync.floor) = (Step::Offered, upto);
            if upto.next() < self.oldest_kept() {
                self.move_floor(Target::Third);
            }
        }
    }

    /// Whether what is settled here may be copied to a third: not what is about to go.
    fn may_copy_to_third(&self) -> bool {
        !self.has_given_way() && !self.stages() && !self.staging.installing()
    }

    /// Offers a copy that is due; false if the copying has to wait.
    pub(super) fn offer_to_third(&mut self, turn: &mut Turn<impl Memory>) -> bool {
        let to = Target::Third;
        if !self.may_copy_to_third() {
            self.resyncs[to].step = Step::None;
            self.lose_third(turn, LossReason::Protocol("this site is about to be another"));
            return false;
        }
        if !self.resyncs[to].offer_due {
            return true;
        }
        // Until it knows all to be settled that it found at its start, its volumes may have what it does not know to be, and its checksums not.
        if self.settled < self.replayed {
            return false;
        }
        if self.stopping || super::targets::room_to(turn, to) <= super::peering::LINK_SPARE {
            return false;
        }
        if self.resyncs[to].step == Step::None {
            // The name has to be this life's.
            if !self.destage.has_written() || !self.destage_idle() {
                self.destage.owe_checkpoint();
                return false;
            }
            let resync = &mut self.resyncs[to];
            resync.serial = resync.serial.max(self.destage.sequence() << SERIAL_BITS);
            (resync.whole, resync.target_at) =
                (true, self.feed.as_ref().map_or(UpdateNumber::NONE, |feed| feed.pull.after));
            self.begin_resync(to, turn.now);
        }
        let (position, oldest) = (self.resyncs[to].target_at, self.oldest_kept());
        let goes_on = self.resyncs[to].sent > 0;
        let blocks = self.offer(turn, to);
        turn.event(Event::CopyToThirdBegan { position, oldest, blocks, goes_on });
        true
    }

    /// The third says that it has everything up to there durably: perhaps because it has installed what it was copied.
    pub(super) fn note_third_installed(&mut self, turn: &mut Turn<impl Memory>, durable: UpdateNumber) {
        let resync = &mut self.resyncs[Target::Third];
        if let Step::Installing { upto: at } = resync.step
            && durable >= at
        {
            resync.step = Step::None;
            let (blocks, equal) = (resync.copied_blocks, resync.digests.equal);
            let took_ns = turn.now.since(resync.began_at).0;
            turn.event(Event::CopyToThirdEnded { at, blocks, equal, took_ns });
        }
    }

    /// It goes on from the journal: whatever was copied is void.
    pub(super) fn drop_copy_to_third(&mut self) {
        self.resyncs[Target::Third].step = Step::None;
    }

    /// What the journal keeps for a third that is being copied to begins behind this number.
    pub(super) fn held_for_copy(&mut self) -> Option<UpdateNumber> {
        let to = Target::Third;
        match self.resyncs[to].step {
            Step::None => None,
            Step::Installing { upto } => Some(upto),
            _ => {
                let floor = self.resyncs[to].floor;
                if floor.next() < self.oldest_kept() || !self.may_keep_after(floor) {
                    self.move_floor(to);
                }
                Some(self.resyncs[to].floor)
            }
        }
    }

    pub(super) fn copy_status(&self, now: Nanos) -> ResyncStatus {
        let resync = &self.resyncs[Target::Third];
        let active = resync.step != Step::None;
        ResyncStatus {
            active,
            whole: active,
            blocks_left: if active { resync.left() } else { 0 },
            blocks_copied: resync.copied_blocks,
            blocks_equal: resync.digests.equal,
            for_ns: if active { now.since(resync.began_at).0 } else { 0 },
            changed_blocks: 0,
        }
    }
}
