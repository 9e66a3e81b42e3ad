//! An update's descriptor: the same 64 bytes in a journal batch header and in a wire frame.

use crate::base::{Generation, Lba, UpdateNumber, VolumeId};

/// Bytes of an encoded descriptor.
pub const DESCRIPTOR_BYTES: usize = 64;

/// What an update does. The codes of kinds that later versions add are refused as unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum UpdateKind {
    /// `count` blocks of payload at `lba`.
    Write = 1,
    /// `count` blocks at `lba` read as zeros from here on; no payload.
    Zero = 2,
    /// A site became or resumed primary: the generation field is the one that starts at this number.
    GenerationOpen = 7,
    /// From here on the primary acknowledges alone.
    SoloBegin = 8,
    /// The peer is back: from here on acknowledgements need it again.
    SoloEnd = 9,
    /// Journal only: this site dropped every update after `number`, which is not a new number but the last one kept.
    Cut = 10,
}

/// An update without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    pub number: UpdateNumber,
    pub generation: Generation,
    pub lba: Lba,
    /// Blocks; 0 for kinds that touch none.
    pub count: u32,
    /// [`crate::base::sum_of_sums`] of the payload's block sums; 0 without payload.
    pub sum: u32,
    pub volume: VolumeId,
    pub kind: UpdateKind,
}

impl Update {
    /// Payload blocks that travel with the update.
    pub fn payload_blocks(&self) -> usize {
        if self.kind == UpdateKind::Write { self.count as usize } else { 0 }
    }

    /// Whether the update changes blocks of a volume.
    pub fn touches_blocks(&self) -> bool {
        matches!(self.kind, UpdateKind::Write | UpdateKind::Zero)
    }
}
