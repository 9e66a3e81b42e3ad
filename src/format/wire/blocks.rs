//! Blocks that the sites of a pair ask each other for, and compare.

use crate::base::{Lba, Slot, VOLUMES_MAX, VolumeId};
use crate::format::bytes::{nonzero_in, put, u16_at, u32_at, u64_at};
use crate::format::wire::WireError;

/// Where a block is that a site wants from its peer: the same place at both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockPlace {
    /// A slot of the differential volume.
    Slot(Slot),
    Volume(VolumeId, Lba),
}

/// Why a site does not send the block that its peer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Lacking {
    /// It holds other content there.
    Other = 1,
    /// Its own block is not what was written there either.
    Damaged = 2,
    /// It cannot look now.
    Busy = 3,
}

impl Lacking {
    pub(super) fn from_code(code: u8) -> Option<Lacking> {
        [Lacking::Other, Lacking::Damaged, Lacking::Busy].into_iter().find(|why| *why as u8 == code)
    }
}

/// Blocks that both sites compare; of digests that one is asked for, the slots are those of one more volume behind the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub volume: VolumeId,
    pub first: Lba,
    pub count: u32,
    /// Each site is to read what it has on its disk, too.
    pub reads: bool,
}

/// Bytes of an extent in a body, and where it says whether blocks are to be read.
pub(super) const EXTENT_BYTES: usize = 16;
const EXTENT_READS: usize = 14;

pub(super) fn put_extent(body: &mut [u8], Extent { volume, first, count, reads }: Extent) {
    put(body, 0, &first.0.to_le_bytes());
    put(body, 8, &count.to_le_bytes());
    put(body, 12, &volume.0.to_le_bytes());
    body[EXTENT_READS] = u8::from(reads);
    body[EXTENT_READS + 1] = 0;
}

pub(super) fn extent_at(body: &[u8], frame: &'static str) -> Result<Extent, WireError> {
    if let Some(offset) = nonzero_in(body, EXTENT_READS + 1, EXTENT_BYTES) {
        return Err(WireError::Reserved { frame, offset, found: body[offset] });
    }
    let reads = flag_at(body, EXTENT_READS, "whether an extent is read")?;
    Ok(Extent {
        volume: VolumeId(u16_at(body, 12)),
        first: Lba(u64_at(body, 0)),
        count: u32_at(body, 8),
        reads,
    })
}

/// Where a comparison's answer says whether there is one.
pub(super) const COMPARED_ANSWERS: usize = 28;

pub(super) fn flag_at(body: &[u8], at: usize, field: &'static str) -> Result<bool, WireError> {
    match body[at] {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(WireError::Field { field, expected: "0 or 1", found: u64::from(found) }),
    }
}

/// Where a wanted block's body says what its number counts: 0 slots, *n* blocks of the *n*th volume.
pub(super) const PLACE_OF: usize = 14;

pub(super) fn put_place(body: &mut [u8], place: BlockPlace) {
    let (block, of) = match place {
        BlockPlace::Slot(slot) => (slot.0, 0),
        BlockPlace::Volume(volume, lba) => (lba.0, volume.0 + 1),
    };
    put(body, 0, &block.to_le_bytes());
    put(body, PLACE_OF, &of.to_le_bytes());
}

pub(super) fn place_at(body: &[u8]) -> Result<BlockPlace, WireError> {
    let (block, of) = (u64_at(body, 0), u16_at(body, PLACE_OF));
    match of {
        0 => Ok(BlockPlace::Slot(Slot(block))),
        _ if usize::from(of) <= VOLUMES_MAX => Ok(BlockPlace::Volume(VolumeId(of - 1), Lba(block))),
        _ => Err(WireError::Field {
            field: "a wanted block's place",
            expected: "0, or a volume's place in the group from 1 on",
            found: u64::from(of),
        }),
    }
}
