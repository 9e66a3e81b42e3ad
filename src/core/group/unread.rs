//! Blocks that a disk cannot read. Where what is read is compared with a checksum, such a block counts as one that has gone bad: its page is
//! filled with what nobody wrote, so whoever wanted it finds that out, and has it repaired or refused as any other. The write that repairs
//! it is what heals a sector. Elsewhere the whole read has failed.

use super::storage::VolumeIo;
use super::{Group, Turn};
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::Event;

/// What the pages of such blocks are filled with. Should a host have written just this there, it is read as it was written.
const UNREAD: [u8; 8] = *b"unread!\n";

/// The places, in its read, of the blocks that could not be read.
pub(super) fn unread_blocks(fault: IoFault) -> impl Iterator<Item = u64> {
    let blocks = if let IoFault::Unreadable { blocks, .. } = fault { blocks } else { 0 };
    (0..u64::from(u32::BITS)).filter(move |place| blocks >> place & 1 == 1)
}

impl Group {
    /// What the read has come to: if its blocks are compared with checksums, those that could not be read are found bad by that.
    pub(super) fn spoil_unread(
        &mut self,
        turn: &mut Turn<impl Memory>,
        io: VolumeIo,
        done: IoDone,
    ) -> Result<(), IoFault> {
        let IoDone { slot, result } = done;
        let Err(fault @ IoFault::Unreadable { errno, .. }) = result else { return result };
        let Some((target, first)) = self.compared_with_sums(io) else { return result };
        for place in unread_blocks(fault) {
            let page = turn.tables.volume_io.page(slot, place as usize);
            turn.memory.bytes_mut(page).as_chunks_mut().0.fill(UNREAD);
            turn.event(Event::BlockUnreadable { target, block: first + place, errno });
        }
        Ok(())
    }

    /// Where a read begins whose blocks are compared with checksums, each on its own.
    fn compared_with_sums(&self, io: VolumeIo) -> Option<(IoTarget, u64)> {
        match io {
            VolumeIo::Fetch { volume, lba, .. }
            | VolumeIo::WarmUp { volume, lba, .. }
            | VolumeIo::Copy { volume, lba, .. }
            | VolumeIo::CompareCopy { volume, lba, .. }
            | VolumeIo::LendBlock { volume, lba, .. }
            | VolumeIo::Scrub { volume, lba, .. }
            | VolumeIo::Compare { volume, lba, .. }
            | VolumeIo::Equalise { volume, lba } => Some((IoTarget::Volume(volume), lba.0)),
            VolumeIo::CaptureRead { first, .. } => {
                let capture = self.captures.get(first as usize)?;
                Some((IoTarget::Volume(capture.volume), capture.lba.0))
            }
            VolumeIo::SnapshotFetch { target, block, .. } => Some((target, block)),
            VolumeIo::ScrubSums { volume, block, .. } => Some((IoTarget::Checksums(volume), block)),
            VolumeIo::ScrubSlots { first: slot, .. } | VolumeIo::LendSlot { slot, .. } => {
                Some((IoTarget::Differential, slot.0))
            }
            _ => None,
        }
    }
}
