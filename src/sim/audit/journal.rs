//! The auditor's own reading of a journal, from docs/FORMATS.md: it shares no code with the codecs it watches over.

use crate::sim::content::Block;

const BATCH_MAGIC: &[u8; 8] = b"LSTPBTCH";
const SUPERBLOCK_MAGIC: &[u8; 8] = b"LSTPSUPR";

/// The ring's first block, behind the superblocks.
pub const RING_FIRST: u64 = 2;

pub const KIND_WRITE: u8 = 1;
pub const KIND_ZERO: u8 = 2;
pub const KIND_SNAPSHOT_CREATE: u8 = 3;
pub const KIND_SNAPSHOT_DELETE: u8 = 4;
pub const KIND_GENERATION_OPEN: u8 = 7;
pub const KIND_SOLO_BEGIN: u8 = 8;
pub const KIND_SOLO_END: u8 = 9;
pub const KIND_CUT: u8 = 10;
pub const KIND_SNAPSHOT_PROTECT: u8 = 11;
pub const KIND_SNAPSHOT_UNPROTECT: u8 = 12;
pub const KIND_STEP_DOWN: u8 = 13;
pub const KIND_HAND_OVER: u8 = 14;
pub const KIND_GIVE_WAY: u8 = 15;

/// One update as a journal or a frame describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub number: u64,
    pub generation: u64,
    pub kind: u8,
    pub volume: u16,
    pub lba: u64,
    pub count: u32,
    /// One more than the first of its slots, 0 for none.
    pub slot: u64,
}

impl Seen {
    /// Blocks that follow it in a journal or frame.
    pub fn payload(&self) -> usize {
        if self.kind == KIND_WRITE || self.kind == KIND_SNAPSHOT_CREATE { self.count as usize } else { 0 }
    }

    /// Blocks of the volume that it changes.
    pub fn touches(&self) -> usize {
        if self.kind == KIND_WRITE || self.kind == KIND_ZERO { self.count as usize } else { 0 }
    }
}

/// The header of a batch.
#[derive(Clone, Debug)]
pub struct BatchSeen {
    pub sequence: u64,
    /// Of the header before it, and of its own.
    pub previous: u64,
    pub digest: u64,
    pub known_durable: u64,
    pub settled: u64,
    pub updates: Vec<Seen>,
}

#[derive(Clone, Copy, Debug)]
pub struct SuperblockSeen {
    pub sequence: u64,
    pub checkpoint: u64,
    pub position_block: u64,
    pub position_sequence: u64,
    pub position_previous: u64,
    pub settled: u64,
}

fn number_at<const BYTES: usize>(block: &Block, at: usize) -> u64 {
    (0..BYTES).rev().fold(0, |value, index| value << 8 | u64::from(block[at + index]))
}

/// The batch that starts with this block, if one does.
pub fn batch(block: &Block) -> Option<BatchSeen> {
    if &block[..8] != BATCH_MAGIC {
        return None;
    }
    let count = number_at::<2>(block, 10) as usize;
    let update = |index: usize| {
        let at = 256 + 64 * index;
        Seen {
            number: number_at::<8>(block, at),
            generation: number_at::<8>(block, at + 8),
            lba: number_at::<8>(block, at + 16),
            count: number_at::<4>(block, at + 24) as u32,
            volume: number_at::<2>(block, at + 32) as u16,
            kind: block[at + 34],
            slot: number_at::<8>(block, at + 40),
        }
    };
    Some(BatchSeen {
        sequence: number_at::<8>(block, 32),
        previous: number_at::<8>(block, 40),
        digest: xxhash_rust::xxh3::xxh3_64(block),
        known_durable: number_at::<8>(block, 48),
        settled: number_at::<8>(block, 56),
        updates: (0..count).map(update).collect(),
    })
}

/// The volumes of the snapshot whose record is in this payload block, as bits.
pub fn snapshot_volumes(block: &Block) -> u32 {
    assert!(&block[..8] == b"LSTPSNAP" && block[10] == 1, "no page of one snapshot's record");
    number_at::<4>(block, 128 + 16) as u32
}

/// Whether that record says that the snapshot is protected.
pub fn snapshot_protected(block: &Block) -> bool {
    block[128 + 20] == 1
}

/// Blocks of the volume that this superblock does not show to hosts.
pub fn room_in_superblock(block: &Block, volume: u16) -> u64 {
    number_at::<8>(block, 1536 + 8 * usize::from(volume))
}

/// The superblock in this block, if there is one.
pub fn superblock(block: &Block) -> Option<SuperblockSeen> {
    (&block[..8] == SUPERBLOCK_MAGIC).then(|| SuperblockSeen {
        sequence: number_at::<8>(block, 32),
        checkpoint: number_at::<8>(block, 48),
        position_block: number_at::<8>(block, 64),
        position_sequence: number_at::<8>(block, 72),
        position_previous: number_at::<8>(block, 80),
        settled: number_at::<8>(block, 96),
    })
}
