//! Which blocks may hold data, for `base:allocation`: a bit a block, set by the group's reactor before a write can complete,
//! cleared only where the group, at rest, knows the block to read as zeros.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::base::{FixedQueue, Lba, VolumeId};
use crate::core::group::Group;
use crate::core::messages::{AdminOp, AdminRequest, FromLink, HostOp, HostRequest};
use crate::core::nbd::{AllocationMap, Run};
use crate::format::update::UpdateKind;

/// Blocks looked at in one turn: some tens of microseconds.
const SURVEYED_A_TURN: u64 = 2048;

/// Zeroed ranges remembered until the group rests; those beyond stay marked, which is always right.
const ZEROED_MAX: usize = 1024;

/// Blocks that one answer covers at most, so that a client's question holds up nobody.
const RUN_MAX: u64 = 1 << 20;

/// The bits of all volumes. Written by one thread; rings between it and the readers order what matters.
#[derive(Debug)]
pub struct Allocation {
    volumes: Vec<Bits>,
}

#[derive(Debug)]
struct Bits {
    blocks: u64,
    words: Box<[AtomicU64]>,
}

impl Allocation {
    /// Every block may hold data until it is known not to.
    pub fn new(volume_blocks: impl Iterator<Item = u64>) -> Arc<Allocation> {
        let bits = |blocks: u64| {
            let words = (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(u64::MAX)).collect();
            Bits { blocks, words }
        };
        Arc::new(Allocation { volumes: volume_blocks.map(bits).collect() })
    }

    /// Only the group's reactor calls this and `clear`, so a load and a store do.
    fn mark(&self, volume: VolumeId, lba: Lba, count: u32) {
        let Some(bits) = self.volumes.get(volume.0 as usize) else { return };
        // What lies beyond the end will be refused.
        let end = lba.0.saturating_add(u64::from(count)).min(bits.blocks);
        for block in lba.0..end {
            let word = &bits.words[(block / 64) as usize];
            word.store(word.load(Relaxed) | 1 << (block % 64), Relaxed);
        }
    }

    fn clear(&self, volume: VolumeId, lba: Lba) {
        let word = &self.volumes[volume.0 as usize].words[(lba.0 / 64) as usize];
        word.store(word.load(Relaxed) & !(1 << (lba.0 % 64)), Relaxed);
    }
}

/// A front's view.
#[derive(Clone, Debug)]
pub struct SharedMap(pub Arc<Allocation>);

impl AllocationMap for SharedMap {
    fn run(&self, volume: VolumeId, lba: Lba, blocks_max: u64) -> Run {
        let words = &self.0.volumes[volume.0 as usize].words;
        let end = lba.0 + blocks_max.min(RUN_MAX);
        let marked = |block: u64| words[(block / 64) as usize].load(Relaxed) >> (block % 64) & 1 == 1;
        let zeros = !marked(lba.0);
        let mut at = lba.0 + 1;
        while at < end {
            let word = words[(at / 64) as usize].load(Relaxed);
            let differs = (if zeros { word } else { !word }) >> (at % 64);
            if differs != 0 {
                at += u64::from(differs.trailing_zeros());
                break;
            }
            at = (at / 64 + 1) * 64;
        }
        Run { blocks: at.min(end) - lba.0, zeros }
    }
}

/// Keeps the bits as the group's reactor sees operations pass.
#[derive(Debug)]
pub struct Survey {
    allocation: Arc<Allocation>,
    /// The first look at every block: the volume, and the block in it. Done when there is no such volume.
    at: (usize, u64),
    zeroed: FixedQueue<(VolumeId, Lba, u32)>,
}

impl Survey {
    pub fn new(allocation: Arc<Allocation>) -> Survey {
        Survey { allocation, at: (0, 0), zeroed: FixedQueue::new(ZEROED_MAX) }
    }

    /// A host's operation is about to be given to the group.
    pub fn host(&mut self, request: &HostRequest) {
        match request.op {
            HostOp::Write { lba, count, .. } => self.allocation.mark(request.volume, lba, count),
            HostOp::WritePartial { lba, .. } => self.allocation.mark(request.volume, lba, 1),
            HostOp::Zero { lba, count, .. } => self.zeroed(request.volume, lba, count),
            HostOp::Read { .. } | HostOp::Changes { .. } | HostOp::ZeroPartial { .. } | HostOp::Flush => {}
        }
    }

    /// A message of the peer is about to be given to the group.
    pub fn peer(&mut self, message: &FromLink) {
        let FromLink::Update { update, .. } = message else { return };
        match update.kind {
            UpdateKind::Write | UpdateKind::Rewrite => {
                self.allocation.mark(update.volume, update.lba, update.count)
            }
            UpdateKind::Zero => self.zeroed(update.volume, update.lba, update.count),
            _ => {}
        }
    }

    /// An administrator's request is about to be given to the group.
    pub fn admin(&mut self, request: &AdminRequest) {
        if let AdminOp::Equalise { volume, lba, .. } = request.op {
            self.allocation.mark(volume, lba, 1);
        }
    }

    fn zeroed(&mut self, volume: VolumeId, lba: Lba, count: u32) {
        if self.zeroed.room() > 0 {
            self.zeroed.push((volume, lba, count));
        }
    }

    /// Whether a group at rest would be asked something.
    pub fn is_open(&self) -> bool {
        self.at.0 < self.allocation.volumes.len() || !self.zeroed.is_empty()
    }

    /// Looks at some blocks, if the group rests. Returns whether it did.
    pub fn turn(&mut self, group: &Group) -> bool {
        if !self.is_open() || !group.at_rest() {
            return false;
        }
        let mut left = SURVEYED_A_TURN;
        while left > 0
            && let Some((volume, lba, count)) = self.zeroed.pop()
        {
            let blocks = self.allocation.volumes.get(volume.0 as usize).map_or(0, |bits| bits.blocks);
            let end = lba.0.saturating_add(u64::from(count)).min(blocks);
            (lba.0..end).for_each(|block| self.look(group, volume, Lba(block)));
            left = left.saturating_sub(u64::from(count));
        }
        while left > 0 && self.at.0 < self.allocation.volumes.len() {
            let (index, block) = self.at;
            let blocks = self.allocation.volumes[index].blocks;
            let end = blocks.min(block + left);
            (block..end).for_each(|block| self.look(group, VolumeId(index as u16), Lba(block)));
            left -= end - block;
            self.at = if end == blocks { (index + 1, 0) } else { (index, end) };
        }
        true
    }

    fn look(&self, group: &Group, volume: VolumeId, lba: Lba) {
        if group.reads_as_zeros(volume, lba) {
            self.allocation.clear(volume, lba);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_what_the_bits_say(marks in prop::collection::vec((0u64..500, 1u32..40), 0..20), blocks in 1u64..500) {
            let allocation = Allocation::new([blocks].into_iter());
            let volume = VolumeId(0);
            (0..blocks).for_each(|block| allocation.clear(volume, Lba(block)));
            let mut expected = vec![true; blocks as usize];
            for (lba, count) in marks {
                allocation.mark(volume, Lba(lba), count);
                (lba..(lba + u64::from(count)).min(blocks)).for_each(|block| expected[block as usize] = false);
            }
            let map = SharedMap(allocation);
            let mut at = 0;
            while at < blocks {
                let run = map.run(volume, Lba(at), blocks - at);
                prop_assert!(run.blocks > 0 && at + run.blocks <= blocks);
                let range = at as usize..(at + run.blocks) as usize;
                prop_assert!(expected[range].iter().all(|zeros| *zeros == run.zeros), "at {at}: {run:?}");
                at += run.blocks;
            }
        }
    }

    #[test]
    fn what_lies_beyond_a_volume_is_ignored() {
        let allocation = Allocation::new([10].into_iter());
        allocation.mark(VolumeId(0), Lba(u64::MAX - 1), 5);
        allocation.mark(VolumeId(0), Lba(9), u32::MAX);
        allocation.mark(VolumeId(7), Lba(0), 1);
    }
}
