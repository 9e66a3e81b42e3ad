//! The checksum files: what lies there is what is in memory, or is being written. What is not is written anew, out of memory, with the
//! next checkpoint.

use super::Part;
use crate::base::*;
use crate::core::group::storage::VolumeIo;
use crate::core::group::{Group, Turn};
use crate::core::messages::*;
use crate::core::outbox::Event;
use crate::core::sums::Sums;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SumsPass {
    /// Blocks that are to be written anew, and how many sweeps have ended once they are.
    rewriting: u64,
    checkpoint: u64,
}

impl Group {
    pub(super) fn scrub_sums(&mut self, turn: &mut Turn<impl Memory>) {
        let (volume, block) = self.scrub.next;
        let Some(spec) = self.config.volumes.get(volume as usize) else {
            return self.next_part(Part::Checksums);
        };
        let left = Sums::file_blocks(spec.blocks) - block;
        let count = left.min(VOLUME_IO_BLOCKS_MAX as u64) as u32;
        // What is being written may be read as what it was.
        if !self.room_to_scrub(count as usize) || self.destage.writes_sums() {
            return self.scrub.looks_again(turn.now);
        }
        self.scrub.begin_reading(turn.now);
        let volume = VolumeId(volume);
        let io = VolumeIo::ScrubSums { volume, block, count, writes: self.destage.sums_writes() };
        self.read_blocks(turn, IoTarget::Checksums(volume), block, count, io);
    }

    /// Blocks of a checksum file were read, after so many writes of such.
    pub(in crate::core::group) fn sums_scrubbed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        (volume, block, count): (VolumeId, u64, u32),
        writes: u64,
        result: Result<(), IoFault>,
    ) {
        let began = self.scrub.end_reading();
        let target = IoTarget::Checksums(volume);
        if let Err(fault) = result {
            turn.event(Event::ReadFailed { target, fault, block });
        }
        let steady = self.destage.sums_writes() == writes;
        let mut bad = 0;
        for index in 0..u64::from(count) {
            let page = turn.tables.volume_io.page(slot, index as usize);
            let sums = &mut self.sums[volume.0 as usize];
            let sound = result.is_ok() && sums.is_stored(block + index, turn.memory.bytes(page));
            self.pages.release(page, turn.memory);
            if steady && !sound && sums.write_again(block + index) {
                turn.event(Event::ChecksumsDamaged { volume, block: block + index });
                bad += 1;
            }
        }
        // At once, whatever becomes of the pass: the only good copy is in memory, and the next start would load the bad one.
        if bad > 0 {
            self.destage.owe_checkpoint();
        }
        let Some(began) = began else { return };
        if !steady {
            return self.scrub.looks_again(turn.now);
        }
        if bad > 0 {
            self.scrub.of(Part::Checksums).bad += bad;
            self.scrub.sums.rewriting += bad;
            self.scrub.sums.checkpoint = self.destage.next_sweep();
        }
        let (at, blocks) =
            (block + u64::from(count), Sums::file_blocks(self.config.volumes[volume.0 as usize].blocks));
        self.scrub.next = if at == blocks { (volume.0 + 1, 0) } else { (volume.0, at) };
        self.scrub.of(Part::Checksums).read += u64::from(count);
        self.pace_scrub(turn.now, began, u64::from(count));
    }

    /// Whether those that were bad are durably what they are to be.
    pub(super) fn sums_are_rewritten(&mut self, turn: &mut Turn<impl Memory>) -> bool {
        let SumsPass { rewriting, checkpoint } = self.scrub.sums;
        if rewriting == 0 {
            return true;
        }
        if !self.checkpointed(checkpoint) {
            return false;
        }
        self.scrub.sums.rewriting = 0;
        self.scrub.of(Part::Checksums).repaired += rewriting;
        turn.event(Event::ChecksumsRewritten { blocks: rewriting });
        true
    }
}
