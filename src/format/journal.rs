//! The journal's batch: one header block with the descriptors, then their payload blocks in the same order.

use crate::base::{
    BATCH_DESCRIPTORS_MAX, BATCH_PAYLOAD_BLOCKS_MAX, BLOCK_BYTES, BlockSum, GroupId, UpdateNumber,
    sum_of_sums,
};
use crate::format::bytes::{array_at, crc_around, nonzero_in, put, u16_at, u32_at, u64_at, u128_at};
use crate::format::update::{
    DESCRIPTOR_BYTES, DescriptorError, Update, decode_descriptor, encode_descriptor,
};

/// The first eight bytes of a batch header.
pub const BATCH_MAGIC: [u8; 8] = *b"LSTPBTCH";
pub const BATCH_VERSION: u16 = 2;

/// The xxh3-64 of a whole batch header block. Each header holds its predecessor's, so an old batch that lies where the
/// chain would go on is told from the real one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(pub u64);

impl Digest {
    /// What the first batch after formatting names as its predecessor.
    pub const NONE: Digest = Digest(0);
}

/// Whether a batch's payload is what its descriptors say, by the checksums of its blocks in their order.
pub fn payload_is_whole(updates: &[Update], sum_of_block: impl Fn(usize) -> BlockSum) -> bool {
    let mut at = 0;
    updates.iter().all(|update| {
        let first = at;
        at += update.payload_blocks();
        first == at || sum_of_sums((first..at).map(&sum_of_block)) == update.sum
    })
}

/// The fields of a batch header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub group: GroupId,
    /// Counts batches; it leaps at each start, so that what an earlier life left behind a torn batch is always lower.
    pub sequence: u64,
    /// Digest of the batch before this one.
    pub previous: Digest,
    /// What was durable here when the batch was formed: damage at or below it is rot, not a torn tail.
    pub known_durable: UpdateNumber,
    /// What was settled, as far as this site knew.
    pub settled: UpdateNumber,
    /// Descriptors, at most [`BATCH_DESCRIPTORS_MAX`].
    pub count: u16,
    /// Blocks that follow the header, at most [`BATCH_PAYLOAD_BLOCKS_MAX`].
    pub payload_blocks: u16,
}

/// Why a block is not a batch header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    #[error("batch magic {found:02x?}, expected {BATCH_MAGIC:02x?}")]
    Magic { found: [u8; 8] },
    #[error("batch version {found}, expected {BATCH_VERSION}")]
    Version { found: u16 },
    #[error("batch header crc {found:#010x}, expected {expected:#010x}")]
    Crc { expected: u32, found: u32 },
    #[error("batch of {found} descriptors, expected at most {BATCH_DESCRIPTORS_MAX}")]
    Count { found: u16 },
    #[error("batch of {found} payload blocks, expected at most {BATCH_PAYLOAD_BLOCKS_MAX}")]
    PayloadBound { found: u16 },
    #[error("batch of {found} payload blocks, expected {expected} for its descriptors")]
    PayloadBlocks { expected: usize, found: u16 },
    #[error("descriptor {index} of a batch: {error}")]
    Descriptor { index: usize, error: DescriptorError },
    #[error("reserved byte {offset} of a batch header is {found:#04x}, expected 0")]
    Reserved { offset: usize, found: u8 },
}

const VERSION: usize = 8;
const COUNT: usize = 10;
const PAYLOAD_BLOCKS: usize = 12;
const RESERVED_A: usize = 14;
const GROUP: usize = 16;
const SEQUENCE: usize = 32;
const PREVIOUS: usize = 40;
const KNOWN_DURABLE: usize = 48;
const SETTLED: usize = 56;
const RESERVED_B: usize = 64;
const CRC: usize = 252;
const DESCRIPTORS: usize = 256;

const _: () = assert!(DESCRIPTORS + BATCH_DESCRIPTORS_MAX * DESCRIPTOR_BYTES == BLOCK_BYTES);

/// Writes the whole header block and returns its digest, for the next batch to name.
///
/// Panics if the header's counts are not those of `updates` or beyond their bounds, or an update breaks its own.
pub fn encode_batch(header: &BatchHeader, updates: &[Update], out: &mut [u8; BLOCK_BYTES]) -> Digest {
    assert!(updates.len() <= BATCH_DESCRIPTORS_MAX, "a batch of {} descriptors", updates.len());
    assert!(usize::from(header.count) == updates.len(), "{header:?} for {} descriptors", updates.len());
    let payload: usize = updates.iter().map(Update::payload_blocks).sum();
    assert!(payload <= BATCH_PAYLOAD_BLOCKS_MAX, "a batch of {payload} payload blocks");
    assert!(usize::from(header.payload_blocks) == payload, "{header:?} for {payload} payload blocks");
    out.fill(0);
    put(out, 0, &BATCH_MAGIC);
    put(out, VERSION, &BATCH_VERSION.to_le_bytes());
    put(out, COUNT, &header.count.to_le_bytes());
    put(out, PAYLOAD_BLOCKS, &header.payload_blocks.to_le_bytes());
    put(out, GROUP, &header.group.0.to_le_bytes());
    put(out, SEQUENCE, &header.sequence.to_le_bytes());
    put(out, PREVIOUS, &header.previous.0.to_le_bytes());
    put(out, KNOWN_DURABLE, &header.known_durable.0.to_le_bytes());
    put(out, SETTLED, &header.settled.0.to_le_bytes());
    let (descriptors, _) = out[DESCRIPTORS..].as_chunks_mut::<DESCRIPTOR_BYTES>();
    for (update, descriptor) in updates.iter().zip(descriptors) {
        encode_descriptor(update, descriptor);
    }
    let crc = crc_around(out, CRC);
    put(out, CRC, &crc.to_le_bytes());
    digest_of(out)
}

/// Checks a block as a batch header and writes its `count` updates to the front of `out`; the rest of `out` stays as it
/// was. Whether the batch belongs here (group, sequence, previous) is the reader's to compare, and the payload is
/// protected by each update's `sum`.
pub fn decode_batch(
    bytes: &[u8; BLOCK_BYTES],
    out: &mut [Update; BATCH_DESCRIPTORS_MAX],
) -> Result<BatchHeader, JournalError> {
    let magic = array_at(bytes, 0);
    if magic != BATCH_MAGIC {
        return Err(JournalError::Magic { found: magic });
    }
    let version = u16_at(bytes, VERSION);
    if version != BATCH_VERSION {
        return Err(JournalError::Version { found: version });
    }
    let (expected, found) = (crc_around(bytes, CRC), u32_at(bytes, CRC));
    if expected != found {
        return Err(JournalError::Crc { expected, found });
    }
    let header = BatchHeader {
        group: GroupId(u128_at(bytes, GROUP)),
        sequence: u64_at(bytes, SEQUENCE),
        previous: Digest(u64_at(bytes, PREVIOUS)),
        known_durable: UpdateNumber(u64_at(bytes, KNOWN_DURABLE)),
        settled: UpdateNumber(u64_at(bytes, SETTLED)),
        count: u16_at(bytes, COUNT),
        payload_blocks: u16_at(bytes, PAYLOAD_BLOCKS),
    };
    let count = usize::from(header.count);
    if count > BATCH_DESCRIPTORS_MAX {
        return Err(JournalError::Count { found: header.count });
    }
    if usize::from(header.payload_blocks) > BATCH_PAYLOAD_BLOCKS_MAX {
        return Err(JournalError::PayloadBound { found: header.payload_blocks });
    }
    let unused = DESCRIPTORS + count * DESCRIPTOR_BYTES;
    for (from, to) in [(RESERVED_A, GROUP), (RESERVED_B, CRC), (unused, BLOCK_BYTES)] {
        if let Some(offset) = nonzero_in(bytes, from, to) {
            return Err(JournalError::Reserved { offset, found: bytes[offset] });
        }
    }
    let (descriptors, _) = bytes[DESCRIPTORS..unused].as_chunks::<DESCRIPTOR_BYTES>();
    let mut payload = 0;
    for (index, descriptor) in descriptors.iter().enumerate() {
        out[index] =
            decode_descriptor(descriptor).map_err(|error| JournalError::Descriptor { index, error })?;
        payload += out[index].payload_blocks();
    }
    if payload != usize::from(header.payload_blocks) {
        return Err(JournalError::PayloadBlocks { expected: payload, found: header.payload_blocks });
    }
    Ok(header)
}

/// Bytes at the start of a header that say what it claims.
pub const CLAIMS_BYTES: usize = SETTLED;

/// The sequence and the known-durable number that a block claims if it begins as a batch header does. Nothing else of it is
/// checked, so this only says which blocks are worth decoding.
pub fn claims_of(bytes: &[u8; CLAIMS_BYTES]) -> Option<(u64, UpdateNumber)> {
    (array_at(bytes, 0) == BATCH_MAGIC)
        .then(|| (u64_at(bytes, SEQUENCE), UpdateNumber(u64_at(bytes, KNOWN_DURABLE))))
}

pub fn digest_of(bytes: &[u8; BLOCK_BYTES]) -> Digest {
    Digest(xxhash_rust::xxh3::xxh3_64(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::update::UpdateKind;
    use crate::format::update::tests::any_update;
    use proptest::prelude::*;

    fn any_batch() -> impl Strategy<Value = (BatchHeader, Vec<Update>)> {
        let updates = prop::collection::vec(any_update(), 0..=BATCH_DESCRIPTORS_MAX);
        (updates, any::<u128>(), any::<[u64; 4]>()).prop_map(|(mut updates, group, numbers)| {
            let mut payload = 0;
            updates.retain(|update| {
                let fits = payload + update.payload_blocks() <= BATCH_PAYLOAD_BLOCKS_MAX;
                payload += if fits { update.payload_blocks() } else { 0 };
                fits
            });
            let header = BatchHeader {
                group: GroupId(group),
                sequence: numbers[0],
                previous: Digest(numbers[1]),
                known_durable: UpdateNumber(numbers[2]),
                settled: UpdateNumber(numbers[3]),
                count: updates.len() as u16,
                payload_blocks: payload as u16,
            };
            (header, updates)
        })
    }

    fn encoded(header: &BatchHeader, updates: &[Update]) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0xaa; BLOCK_BYTES];
        let digest = encode_batch(header, updates, &mut bytes);
        assert_eq!(digest, digest_of(&bytes));
        bytes
    }

    fn decoded(bytes: &[u8; BLOCK_BYTES]) -> Result<BatchHeader, JournalError> {
        decode_batch(bytes, &mut [Update::EMPTY; BATCH_DESCRIPTORS_MAX])
    }

    fn with_crc(mut bytes: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
        let crc = crc_around(&bytes, CRC);
        put(&mut bytes, CRC, &crc.to_le_bytes());
        bytes
    }

    fn small() -> [u8; BLOCK_BYTES] {
        let update = Update {
            number: UpdateNumber(9),
            generation: crate::base::Generation(1 << 16),
            count: 2,
            kind: UpdateKind::Write,
            ..Update::EMPTY
        };
        let header = BatchHeader {
            group: GroupId(5),
            sequence: 3,
            previous: Digest(77),
            known_durable: UpdateNumber(8),
            settled: UpdateNumber(8),
            count: 1,
            payload_blocks: 2,
        };
        encoded(&header, &[update])
    }

    proptest! {
        #[test]
        fn encoding_comes_back((header, updates) in any_batch()) {
            let bytes = encoded(&header, &updates);
            let mut out = [Update::EMPTY; BATCH_DESCRIPTORS_MAX];
            prop_assert_eq!(decode_batch(&bytes, &mut out), Ok(header));
            prop_assert_eq!(&out[..updates.len()], &updates[..]);
        }

        #[test]
        fn arbitrary_fields_never_panic(tail in prop::collection::vec(any::<u8>(), BLOCK_BYTES - COUNT)) {
            let mut bytes = small();
            put(&mut bytes, COUNT, &tail);
            let _ = decoded(&bytes);
            let _ = decoded(&with_crc(bytes));
        }

        #[test]
        fn arbitrary_field_changes_with_a_right_crc_never_panic(
            changes in prop::collection::vec((COUNT..BLOCK_BYTES, any::<u8>()), 1..4),
            (header, updates) in any_batch(),
        ) {
            let mut bytes = encoded(&header, &updates);
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            let bytes = with_crc(bytes);
            let mut out = [Update::EMPTY; BATCH_DESCRIPTORS_MAX];
            if let Ok(header) = decode_batch(&bytes, &mut out) {
                prop_assert_eq!(encoded(&header, &out[..usize::from(header.count)]), bytes);
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let bytes = small();
        assert!(decoded(&bytes).is_ok());
        for bit in 0..BLOCK_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decoded(&flipped).is_err(), "bit {bit} of a batch header");
            assert_ne!(digest_of(&flipped), digest_of(&bytes));
        }
    }

    #[test]
    fn counts_are_checked_though_the_crc_is_right() {
        let refused = |at: usize, value: u16| {
            let mut bytes = small();
            put(&mut bytes, at, &value.to_le_bytes());
            decoded(&with_crc(bytes)).expect_err("the count is wrong")
        };
        assert_eq!(refused(COUNT, 61), JournalError::Count { found: 61 });
        assert_eq!(refused(COUNT, 0), JournalError::Reserved { offset: DESCRIPTORS, found: 9 });
        assert!(matches!(refused(COUNT, 2), JournalError::Descriptor { index: 1, .. }));
        assert_eq!(refused(PAYLOAD_BLOCKS, 1), JournalError::PayloadBlocks { expected: 2, found: 1 });
        assert_eq!(refused(PAYLOAD_BLOCKS, 257), JournalError::PayloadBound { found: 257 });
        assert_eq!(refused(RESERVED_A, 1), JournalError::Reserved { offset: RESERVED_A, found: 1 });
        assert_eq!(refused(VERSION, 1), JournalError::Version { found: 1 });
        assert!(matches!(decoded(&[0; BLOCK_BYTES]), Err(JournalError::Magic { .. })));
    }

    #[test]
    #[should_panic(expected = "payload blocks")]
    fn a_header_that_disagrees_with_its_updates_is_not_written() {
        let mut out = [Update::EMPTY; BATCH_DESCRIPTORS_MAX];
        let mut header = decode_batch(&small(), &mut out).expect("encoded just now");
        header.payload_blocks = 3;
        encoded(&header, &out[..1]);
    }
}
