//! Old blocks that have gone bad in their slots: a site that keeps the same block in the same slot is asked for it, and what
//! it sends is written anew if its checksum is the one that the block was kept under. One at a time.

use super::origins::Origin;
use super::storage::VolumeIo;
use super::{Group, Turn};
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::{Event, NotRepaired};
use crate::format::snapshot::SnapshotName;

/// A peer that does not answer is not waited for: slots cannot be reclaimed meanwhile.
const ANSWER_MAX: Nanos = Nanos::from_millis(1_000);

/// A block of a snapshot that is not what was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged {
    pub snapshot: SnapshotName,
    pub volume: VolumeId,
    pub lba: Lba,
    /// Where it is kept, and the checksum that it was kept under.
    pub slot: Slot,
    pub sum: BlockSum,
}

/// Where the repair stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    None,
    /// That site was asked for it then.
    Asked { damaged: Damaged, of: Origin, at: Nanos },
    /// What it sent is being written from this page.
    Writing { damaged: Damaged, page: PageId },
}

#[derive(Debug, Default)]
pub(super) struct Repair {
    step: Step,
    /// The slot that was last asked for and was not there, and why.
    lacked: Option<(Slot, Lacking)>,
}

impl Repair {
    /// Why what was asked for last was not there, if that was this slot.
    pub fn lacked(&self, slot: Slot) -> Option<Lacking> {
        self.lacked.filter(|(lacked, _)| *lacked == slot).map(|(_, why)| why)
    }

    pub fn forget_lacked(&mut self) {
        self.lacked = None;
    }
}

impl Group {
    /// Asks for the block, and says whether it did: not while another one is being repaired. Whoever reads this one again asks again.
    pub(super) fn begin_repair(&mut self, turn: &mut Turn<impl Memory>, damaged: Damaged) -> bool {
        // What a reclaim under way sets free may be this slot.
        let free = !self.repairing(turn.now) && !self.reclaim_in_flight() && !self.stopping;
        let lender = self.lender(|_| true).filter(|&lender| free && lender.has_room(turn));
        if let Some(lender) = lender {
            self.repair.step = Step::Asked { damaged, of: lender, at: turn.now };
            self.repair.lacked = None;
            lender.ask_for_block(turn, BlockPlace::Slot(damaged.slot), damaged.sum);
        }
        lender.is_some()
    }

    /// Whether a slot must stay what it is.
    pub(super) fn repairing(&mut self, now: Nanos) -> bool {
        if let Step::Asked { at, .. } = self.repair.step
            && now.since(at) >= ANSWER_MAX
        {
            self.repair.step = Step::None;
        }
        self.repair.step != Step::None
    }

    /// A site is gone, and with it an answer that was awaited.
    pub(super) fn forget_repair(&mut self, gone: Origin) {
        if let Step::Asked { of, .. } = self.repair.step
            && of == gone
        {
            self.repair.step = Step::None;
        }
    }

    /// The site has no such block, or cannot look for it now: then whoever reads it again asks again.
    pub(super) fn repair_lacks(&mut self, turn: &mut Turn<impl Memory>, slot: Slot, lacking: Lacking) {
        if let Step::Asked { damaged, .. } = self.repair.step
            && damaged.slot == slot
        {
            self.repair.step = Step::None;
            self.repair.lacked = Some((slot, lacking));
            if lacking == Lacking::Busy {
                return;
            }
            let Damaged { snapshot, volume, lba, .. } = damaged;
            self.counters.unrepaired_blocks += 1;
            let why = match lacking {
                Lacking::Other => NotRepaired::OtherContent,
                _ => NotRepaired::DamagedToo,
            };
            turn.event(Event::SnapshotNotRepaired { snapshot, volume, lba, why });
        }
    }

    /// A site sent a block. It may be the answer to what is not asked any more.
    pub(super) fn repair_with(&mut self, turn: &mut Turn<impl Memory>, received: PageId, length: u16) {
        let Step::Asked { damaged, .. } = self.repair.step else { return };
        let whole = usize::from(length) == BLOCK_BYTES;
        if !whole || sum_of_block(turn.memory.bytes(received)) != damaged.sum {
            return;
        }
        if self.volume_slots.is_empty() || self.pages.free() <= BATCH_BLOCKS_MAX {
            self.repair.step = Step::None;
            return;
        }
        let (slot, page) = (self.volume_slots.pop().expect("checked"), self.pages.take().expect("checked"));
        turn.memory.copy(received, page, 0..BLOCK_BYTES);
        turn.memory.seal(page);
        turn.tables.volume_io.set(slot, 0, page, damaged.sum);
        self.repair.step = Step::Writing { damaged, page };
        let (target, block) = (IoTarget::Differential, damaged.slot.0);
        let request = IoRequest { slot, target, op: IoOp::Write, block, count: 1 };
        self.submit_volume(turn, slot, VolumeIo::Repair { flushing: false }, request);
    }

    pub(super) fn flush_repair(&mut self, turn: &mut Turn<impl Memory>, slot: SlotId) {
        let request = IoRequest { slot, target: IoTarget::Differential, op: IoOp::Flush, block: 0, count: 0 };
        self.submit_volume(turn, slot, VolumeIo::Repair { flushing: true }, request);
    }

    pub(super) fn repaired(&mut self, turn: &mut Turn<impl Memory>) {
        let Step::Writing { damaged, page } = std::mem::take(&mut self.repair.step) else {
            unreachable!("only what was received is written")
        };
        self.pages.release(page, turn.memory);
        let Damaged { snapshot, volume, lba, .. } = damaged;
        self.counters.repaired_blocks += 1;
        turn.event(Event::SnapshotRepaired { snapshot, volume, lba });
    }
}
