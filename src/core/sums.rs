//! The checksums of every block of a volume as it is on disk, in memory (4 bytes a block: 0.1% of the volume), and which
//! blocks of the checksum file they have changed since the last checkpoint.

use crate::base::{BLOCK_BYTES, Bitmap, BlockSum, Lba};

/// Sums in one block of the checksum file.
pub const SUMS_PER_BLOCK: u64 = (BLOCK_BYTES / 4) as u64;

#[derive(Debug)]
pub struct Sums {
    sums: Box<[BlockSum]>,
    changed: Bitmap,
}

impl Sums {
    pub fn new(blocks: u64) -> Sums {
        let file_blocks = Sums::file_blocks(blocks);
        Sums {
            sums: vec![BlockSum::ZEROS; (file_blocks * SUMS_PER_BLOCK) as usize].into_boxed_slice(),
            changed: Bitmap::new(file_blocks),
        }
    }

    /// Blocks of the checksum file of a volume of `blocks`.
    pub fn file_blocks(blocks: u64) -> u64 {
        blocks.div_ceil(SUMS_PER_BLOCK)
    }

    pub fn get(&self, lba: Lba) -> BlockSum {
        self.sums[lba.0 as usize]
    }

    /// The block was written to the volume with content of this sum.
    pub fn set(&mut self, lba: Lba, sum: BlockSum) {
        if self.sums[lba.0 as usize] == sum {
            return;
        }
        self.sums[lba.0 as usize] = sum;
        self.changed.insert(lba.0 / SUMS_PER_BLOCK);
    }

    pub fn load(&mut self, file_block: u64, bytes: &[u8; BLOCK_BYTES]) {
        let first = (file_block * SUMS_PER_BLOCK) as usize;
        for (sum, raw) in self.sums[first..].iter_mut().zip(bytes.chunks_exact(4)) {
            *sum = BlockSum(u32::from_le_bytes(raw.try_into().expect("chunks of four")));
        }
    }

    pub fn store(&self, file_block: u64, bytes: &mut [u8; BLOCK_BYTES]) {
        let first = (file_block * SUMS_PER_BLOCK) as usize;
        for (sum, raw) in self.sums[first..].iter().zip(bytes.chunks_exact_mut(4)) {
            raw.copy_from_slice(&sum.0.to_le_bytes());
        }
    }

    /// Whether that is what a block of the checksum file should hold.
    pub fn is_stored(&self, file_block: u64, bytes: &[u8; BLOCK_BYTES]) -> bool {
        let first = (file_block * SUMS_PER_BLOCK) as usize;
        self.sums[first..].iter().zip(bytes.chunks_exact(4)).all(|(sum, raw)| raw == sum.0.to_le_bytes())
    }

    /// A block of the checksum file that has not changed is to be written all the same; false if it is to be anyway.
    pub fn write_again(&mut self, file_block: u64) -> bool {
        self.changed.insert(file_block)
    }

    /// Takes the next changed block of the checksum file at or after `from`.
    pub fn take_changed(&mut self, from: u64) -> Option<u64> {
        let block = self.changed.next_from(from)?;
        self.changed.remove(block);
        Some(block)
    }

    /// Takes this block of the checksum file if it has changed.
    pub fn take_if_changed(&mut self, block: u64) -> bool {
        self.changed.next_from(block) == Some(block) && self.changed.remove(block)
    }
}
