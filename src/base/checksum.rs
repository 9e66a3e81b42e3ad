//! Block checksums: crc32c (Castagnoli), computed once when a block enters a site and compared wherever it is read.

use crate::base::units::BLOCK_BYTES;

/// A block's crc32c. Zero is kept for "this block reads as zeros", so a real crc of zero is stored as all ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSum(pub u32);

impl BlockSum {
    /// The block reads as zeros: never written, or zeroed since.
    pub const ZEROS: BlockSum = BlockSum(0);
}

/// The checksum of a block with data; a block of zeros may also be given `BlockSum::ZEROS` by who knows it is one.
pub fn sum_of_block(block: &[u8; BLOCK_BYTES]) -> BlockSum {
    match crc32c::crc32c(block) {
        0 => BlockSum(u32::MAX),
        crc => BlockSum(crc),
    }
}

/// The checksum of an update's payload: the crc32c of its blocks' sums (little-endian), so that the one pass over the
/// data that yields the block sums serves journal, wire and volume alike.
pub fn sum_of_sums(sums: impl Iterator<Item = BlockSum>) -> u32 {
    sums.fold(0, |crc, sum| crc32c::crc32c_append(crc, &sum.0.to_le_bytes()))
}

/// Of what many blocks hold, for two sites to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest128(pub [u64; 2]);

impl Digest128 {
    /// None: of a block that cannot be read, and equal to nobody's.
    pub const NONE: Digest128 = Digest128([0; 2]);
}

/// The xxh3-128 of what a block holds.
pub fn digest_of_block(block: &[u8; BLOCK_BYTES]) -> Digest128 {
    let digest = xxhash_rust::xxh3::xxh3_128(block);
    Digest128([digest as u64, (digest >> 64) as u64])
}

/// The xxh3-128 of blocks' sums (little-endian).
pub fn digest_of_sums(sums: impl Iterator<Item = BlockSum>) -> Digest128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
    sums.for_each(|sum| hasher.update(&sum.0.to_le_bytes()));
    let digest = hasher.digest128();
    Digest128([digest as u64, (digest >> 64) as u64])
}
