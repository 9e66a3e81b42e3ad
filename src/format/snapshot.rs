//! What a snapshot is: the payload block of a `SnapshotCreate`, and the list of snapshots in the management information.

use crate::base::{BLOCK_BYTES, NAME_BYTES_MAX, UpdateNumber, VolumeSet};
use crate::format::bytes::{crc_around, nonzero_in, put, u16_at, u32_at, u64_at};
use crate::format::text::{Text, TextError};

/// The first eight bytes of a page of snapshots.
pub const SNAPSHOTS_MAGIC: [u8; 8] = *b"LSTPSNAP";
pub const SNAPSHOTS_VERSION: u16 = 1;

/// Bytes of one snapshot's record, and the most of them in a page.
pub const SNAPSHOT_RECORD_BYTES: usize = 128;
pub const SNAPSHOTS_PAGE_MAX: usize = (BLOCK_BYTES - RECORDS) / SNAPSHOT_RECORD_BYTES;

pub type SnapshotName = Text<NAME_BYTES_MAX>;

/// A snapshot: the content of its volumes at its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// The number of the `SnapshotCreate`, and the snapshot's own from then on.
    pub number: UpdateNumber,
    /// When the administrator asked for it: nanoseconds since 1970 on the clock of the site that took it.
    pub taken_at_ns: u64,
    pub volumes: VolumeSet,
    /// Never deleted to make room, only on request.
    pub protected: bool,
    pub name: SnapshotName,
}

/// Why bytes are not a snapshot's record, or a page of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot page magic {found:02x?}, expected {SNAPSHOTS_MAGIC:02x?}")]
    Magic { found: [u8; 8] },
    #[error("snapshot page version {found}, expected {SNAPSHOTS_VERSION}")]
    Version { found: u16 },
    #[error("snapshot page of {found} records, expected at most {SNAPSHOTS_PAGE_MAX}")]
    Count { found: u16 },
    #[error("snapshot record crc {found:#010x}, expected {expected:#010x}")]
    Crc { expected: u32, found: u32 },
    #[error("snapshot of number 0, expected 1 or higher")]
    Number,
    #[error("snapshot {number} of no volume")]
    Volumes { number: UpdateNumber },
    #[error("snapshot {number}'s protected flag is {found}, expected 0 or 1")]
    Protected { number: UpdateNumber, found: u8 },
    #[error("snapshot {number}'s name is of {found} bytes, expected 1 to {NAME_BYTES_MAX}")]
    NameLength { number: UpdateNumber, found: usize },
    #[error("snapshot {number}'s name: {error}")]
    Name { number: UpdateNumber, error: TextError },
    #[error("reserved byte {offset} of a snapshot page is {found:#04x}, expected 0")]
    Reserved { offset: usize, found: u8 },
}

const VERSION: usize = 8;
const COUNT: usize = 10;
const RESERVED: usize = 12;
const RECORDS: usize = 128;

// In a record.
const NUMBER: usize = 0;
const TAKEN_AT: usize = 8;
const VOLUMES: usize = 16;
const PROTECTED: usize = 20;
const NAME_LENGTH: usize = 21;
const RECORD_RESERVED_A: usize = 22;
const NAME: usize = 24;
const RECORD_CRC: usize = SNAPSHOT_RECORD_BYTES - 4;

impl SnapshotRecord {
    /// Fills arrays that are to hold records. Not a valid record: its number is zero.
    pub const EMPTY: SnapshotRecord = SnapshotRecord {
        number: UpdateNumber::NONE,
        taken_at_ns: 0,
        volumes: VolumeSet(0),
        protected: false,
        name: SnapshotName::EMPTY,
    };

    pub fn encode(&self, out: &mut [u8; SNAPSHOT_RECORD_BYTES]) {
        out.fill(0);
        put(out, NUMBER, &self.number.0.to_le_bytes());
        put(out, TAKEN_AT, &self.taken_at_ns.to_le_bytes());
        put(out, VOLUMES, &self.volumes.0.to_le_bytes());
        out[PROTECTED] = u8::from(self.protected);
        out[NAME_LENGTH] = self.name.len() as u8;
        put(out, NAME, self.name.as_bytes());
        let crc = crc_around(out, RECORD_CRC);
        put(out, RECORD_CRC, &crc.to_le_bytes());
    }

    pub fn decode(bytes: &[u8; SNAPSHOT_RECORD_BYTES]) -> Result<SnapshotRecord, SnapshotError> {
        let (found, expected) = (u32_at(bytes, RECORD_CRC), crc_around(bytes, RECORD_CRC));
        if found != expected {
            return Err(SnapshotError::Crc { expected, found });
        }
        let number = UpdateNumber(u64_at(bytes, NUMBER));
        if number == UpdateNumber::NONE {
            return Err(SnapshotError::Number);
        }
        let volumes = VolumeSet(u32_at(bytes, VOLUMES));
        if volumes.is_empty() {
            return Err(SnapshotError::Volumes { number });
        }
        let protected = match bytes[PROTECTED] {
            0 => false,
            1 => true,
            found => return Err(SnapshotError::Protected { number, found }),
        };
        let length = usize::from(bytes[NAME_LENGTH]);
        if length == 0 || length > NAME_BYTES_MAX {
            return Err(SnapshotError::NameLength { number, found: length });
        }
        for (from, to) in [(RECORD_RESERVED_A, NAME), (NAME + length, RECORD_CRC)] {
            if let Some(offset) = nonzero_in(bytes, from, to) {
                return Err(SnapshotError::Reserved { offset, found: bytes[offset] });
            }
        }
        let name = Text::decode(&bytes[NAME..NAME + length])
            .map_err(|error| SnapshotError::Name { number, error })?;
        Ok(SnapshotRecord { number, taken_at_ns: u64_at(bytes, TAKEN_AT), volumes, protected, name })
    }
}

/// The name in a record that may be damaged, for messages.
pub fn readable_name(bytes: &[u8; SNAPSHOT_RECORD_BYTES]) -> Option<SnapshotName> {
    let length = usize::from(bytes[NAME_LENGTH]).min(NAME_BYTES_MAX);
    Text::decode(&bytes[NAME..NAME + length]).ok()
}

/// Writes a page of at most [`SNAPSHOTS_PAGE_MAX`] records.
pub fn encode_snapshots<'a>(
    records: impl ExactSizeIterator<Item = &'a SnapshotRecord>,
    out: &mut [u8; BLOCK_BYTES],
) {
    assert!(records.len() <= SNAPSHOTS_PAGE_MAX, "{} records for one page", records.len());
    out.fill(0);
    put(out, 0, &SNAPSHOTS_MAGIC);
    put(out, VERSION, &SNAPSHOTS_VERSION.to_le_bytes());
    put(out, COUNT, &(records.len() as u16).to_le_bytes());
    let places = out[RECORDS..].as_chunks_mut::<SNAPSHOT_RECORD_BYTES>().0;
    for (record, place) in records.zip(places) {
        record.encode(place);
    }
}

/// Reads a page into the first places of `out`; returns how many records it holds.
pub fn decode_snapshots(
    bytes: &[u8; BLOCK_BYTES],
    out: &mut [SnapshotRecord; SNAPSHOTS_PAGE_MAX],
) -> Result<usize, SnapshotError> {
    if bytes[..8] != SNAPSHOTS_MAGIC {
        return Err(SnapshotError::Magic { found: bytes[..8].try_into().expect("eight bytes") });
    }
    let version = u16_at(bytes, VERSION);
    if version != SNAPSHOTS_VERSION {
        return Err(SnapshotError::Version { found: version });
    }
    let found = u16_at(bytes, COUNT);
    let count = usize::from(found);
    if count > SNAPSHOTS_PAGE_MAX {
        return Err(SnapshotError::Count { found });
    }
    for (from, to) in [(RESERVED, RECORDS), (RECORDS + count * SNAPSHOT_RECORD_BYTES, BLOCK_BYTES)] {
        if let Some(offset) = nonzero_in(bytes, from, to) {
            return Err(SnapshotError::Reserved { offset, found: bytes[offset] });
        }
    }
    let places = bytes[RECORDS..].as_chunks::<SNAPSHOT_RECORD_BYTES>().0;
    for (place, out) in places[..count].iter().zip(out.iter_mut()) {
        *out = SnapshotRecord::decode(place)?;
    }
    Ok(count)
}

/// The one record in a `SnapshotCreate`'s payload.
pub fn decode_payload(bytes: &[u8; BLOCK_BYTES]) -> Result<SnapshotRecord, SnapshotError> {
    let mut records = [SnapshotRecord::EMPTY; SNAPSHOTS_PAGE_MAX];
    match decode_snapshots(bytes, &mut records)? {
        1 => Ok(records[0]),
        found => Err(SnapshotError::Count { found: found as u16 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_record() -> impl Strategy<Value = SnapshotRecord> {
        (1..=u64::MAX, any::<u64>(), 1..=u32::MAX, any::<bool>(), "[a-z0-9é-]{1,20}").prop_map(
            |(number, taken_at_ns, volumes, protected, name)| SnapshotRecord {
                number: UpdateNumber(number),
                taken_at_ns,
                volumes: VolumeSet(volumes),
                protected,
                name: SnapshotName::new(&name),
            },
        )
    }

    fn page(records: &[SnapshotRecord]) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0xaa; BLOCK_BYTES];
        encode_snapshots(records.iter(), &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn encoding_comes_back(records in prop::collection::vec(any_record(), 0..=SNAPSHOTS_PAGE_MAX)) {
            let mut out = [SnapshotRecord::EMPTY; SNAPSHOTS_PAGE_MAX];
            let count = decode_snapshots(&page(&records), &mut out).expect("valid");
            prop_assert_eq!(&out[..count], &records[..]);
        }

        #[test]
        fn any_flipped_bit_is_found(record in any_record(), at in 0..RECORDS + SNAPSHOT_RECORD_BYTES, bit in 0..8u32) {
            let mut bytes = page(&[record]);
            bytes[at] ^= 1 << bit;
            prop_assert!(decode_payload(&bytes).is_err());
        }
    }

    #[test]
    fn each_bound_is_checked() {
        let record = SnapshotRecord {
            number: UpdateNumber(7),
            taken_at_ns: 1,
            volumes: VolumeSet(1),
            protected: true,
            name: SnapshotName::new("nightly"),
        };
        let refused = |at: usize, byte: u8| {
            let mut bytes = page(&[record]);
            let place = bytes[RECORDS..].first_chunk_mut::<SNAPSHOT_RECORD_BYTES>().expect("one record");
            place[at] = byte;
            let crc = crc_around(place, RECORD_CRC);
            put(place, RECORD_CRC, &crc.to_le_bytes());
            decode_payload(&bytes).expect_err("the field is out of bounds")
        };
        assert_eq!(refused(NUMBER, 0), SnapshotError::Number);
        assert!(matches!(refused(VOLUMES, 0), SnapshotError::Volumes { .. }));
        assert!(matches!(refused(PROTECTED, 2), SnapshotError::Protected { found: 2, .. }));
        assert!(matches!(refused(NAME_LENGTH, 0), SnapshotError::NameLength { found: 0, .. }));
        assert!(matches!(refused(NAME_LENGTH, 65), SnapshotError::NameLength { found: 65, .. }));
        assert!(matches!(refused(NAME_LENGTH, 3), SnapshotError::Reserved { offset: 27, .. }));
        assert!(matches!(refused(NAME, 7), SnapshotError::Name { .. }));
        let mut bytes = page(&[record]);
        bytes[COUNT] = 0;
        assert!(matches!(decode_payload(&bytes), Err(SnapshotError::Reserved { offset: RECORDS, .. })));
        assert_eq!(decode_payload(&page(&[])), Err(SnapshotError::Count { found: 0 }));
        assert_eq!(decode_payload(&page(&[record; 2])), Err(SnapshotError::Count { found: 2 }));
    }
}
