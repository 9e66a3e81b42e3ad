//! Snapshot tables on their way to a site whose own are damaged: pages of snapshots' records, then of captured blocks' entries in
//! the order of their keys. Records and entries bring the checksums they have at rest, so that nothing on the way goes unnoticed.

use crate::base::{BLOCK_BYTES, Lba, SNAPSHOTS_MAX, UpdateNumber, VolumeId};
use crate::format::bytes::{array_at, nonzero_in, put, u16_at, u32_at, u64_at};
use crate::format::metadata::{Captured, ENTRY_BYTES, EntryError};
use crate::format::snapshot::{SNAPSHOT_RECORD_BYTES, SnapshotError, SnapshotRecord};

/// Records, and entries, in one page.
pub const TABLE_RECORDS_MAX: usize = (BLOCK_BYTES - CELLS) / SNAPSHOT_RECORD_BYTES;
pub const TABLE_ENTRIES_MAX: usize = (BLOCK_BYTES - CELLS) / CELL_BYTES;

/// Pages that tables with so many entries take at most.
pub fn table_pages_max(entries: u64) -> u64 {
    2 + entries / TABLE_ENTRIES_MAX as u64 + (SNAPSHOTS_MAX / TABLE_RECORDS_MAX) as u64
}

const CELLS: usize = 64;
const CELL_BYTES: usize = 40;

const APPLIED: usize = 0;
const INDEX: usize = 8;
const KIND: usize = 12;
const LAST: usize = 13;
const COUNT: usize = 14;
const RESERVED: usize = 16;

// In an entry's cell.
const LBA: usize = 0;
const SNAPSHOT: usize = 8;
const VALUE: usize = 16;
const VOLUME: usize = VALUE + ENTRY_BYTES;
const CELL_RESERVED: usize = VOLUME + 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TablesKind {
    Snapshots = 1,
    Entries = 2,
}

/// What a page is of its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablesHeader {
    /// The tables have everything up to here.
    pub applied: UpdateNumber,
    /// Pages before this one.
    pub index: u32,
    pub kind: TablesKind,
    pub count: usize,
    pub last: bool,
}

/// Why bytes are not a page of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TablesError {
    #[error("page of tables of kind {found}, expected 1 or 2")]
    Kind { found: u8 },
    #[error("page of tables whose last flag is {found}, expected 0 or 1")]
    Last { found: u8 },
    #[error("page of {found} rows of tables, expected at most {max}")]
    Count { found: u16, max: usize },
    #[error("reserved byte {offset} of a page of tables is {found:#04x}, expected 0")]
    Reserved { offset: usize, found: u8 },
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    #[error("{0}")]
    Entry(#[from] EntryError),
}

impl TablesKind {
    fn max(self) -> usize {
        match self {
            TablesKind::Snapshots => TABLE_RECORDS_MAX,
            TablesKind::Entries => TABLE_ENTRIES_MAX,
        }
    }
}

/// Makes an empty page: rows are put behind the header in their order, and the header is written again to count them.
pub fn put_header(page: &mut [u8; BLOCK_BYTES], header: &TablesHeader) {
    assert!(header.count <= header.kind.max(), "{header:?}");
    page[..CELLS].fill(0);
    put(page, APPLIED, &header.applied.0.to_le_bytes());
    put(page, INDEX, &header.index.to_le_bytes());
    page[KIND] = header.kind as u8;
    page[LAST] = u8::from(header.last);
    put(page, COUNT, &(header.count as u16).to_le_bytes());
}

pub fn put_record(page: &mut [u8; BLOCK_BYTES], index: usize, record: &SnapshotRecord) {
    let (places, _) = page[CELLS..].as_chunks_mut::<SNAPSHOT_RECORD_BYTES>();
    record.encode(&mut places[index]);
}

pub fn put_entry(page: &mut [u8; BLOCK_BYTES], index: usize, entry: &Captured) {
    let (places, _) = page[CELLS..].as_chunks_mut::<CELL_BYTES>();
    let cell = &mut places[index];
    cell.fill(0);
    put(cell, LBA, &entry.lba.0.to_le_bytes());
    put(cell, SNAPSHOT, &entry.snapshot.0.to_le_bytes());
    put(cell, VALUE, &entry.value());
    put(cell, VOLUME, &entry.volume.0.to_le_bytes());
}

pub fn header_of(page: &[u8; BLOCK_BYTES]) -> Result<TablesHeader, TablesError> {
    let kind = match page[KIND] {
        1 => TablesKind::Snapshots,
        2 => TablesKind::Entries,
        found => return Err(TablesError::Kind { found }),
    };
    let last = match page[LAST] {
        0 => false,
        1 => true,
        found => return Err(TablesError::Last { found }),
    };
    let (found, max) = (u16_at(page, COUNT), kind.max());
    if usize::from(found) > max {
        return Err(TablesError::Count { found, max });
    }
    if let Some(offset) = nonzero_in(page, RESERVED, CELLS) {
        return Err(TablesError::Reserved { offset, found: page[offset] });
    }
    let (applied, index) = (UpdateNumber(u64_at(page, APPLIED)), u32_at(page, INDEX));
    Ok(TablesHeader { applied, index, kind, count: usize::from(found), last })
}

/// The record at `index` of a page of snapshots.
pub fn record_at(page: &[u8; BLOCK_BYTES], index: usize) -> Result<SnapshotRecord, TablesError> {
    let (places, _) = page[CELLS..].as_chunks::<SNAPSHOT_RECORD_BYTES>();
    Ok(SnapshotRecord::decode(&places[index])?)
}

/// The entry at `index` of a page of entries.
pub fn entry_at(page: &[u8; BLOCK_BYTES], index: usize) -> Result<Captured, TablesError> {
    let (places, _) = page[CELLS..].as_chunks::<CELL_BYTES>();
    let cell = &places[index];
    if let Some(offset) = nonzero_in(cell, CELL_RESERVED, CELL_BYTES) {
        return Err(TablesError::Reserved {
            offset: CELLS + index * CELL_BYTES + offset,
            found: cell[offset],
        });
    }
    let volume = VolumeId(u16_at(cell, VOLUME));
    let key = (volume, Lba(u64_at(cell, LBA)), UpdateNumber(u64_at(cell, SNAPSHOT)));
    Ok(Captured::of_value(key, &array_at(cell, VALUE))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BlockSum, Slot, VolumeSet};
    use crate::format::snapshot::SnapshotName;

    const HEADER: TablesHeader = TablesHeader {
        applied: UpdateNumber(77),
        index: 3,
        kind: TablesKind::Entries,
        count: TABLE_ENTRIES_MAX,
        last: true,
    };

    fn entry(lba: u64) -> Captured {
        let (volume, snapshot) = (VolumeId(1), UpdateNumber(9));
        Captured { volume, lba: Lba(lba), snapshot, slot: Slot(lba + 5), sum: BlockSum(lba as u32) }
    }

    #[test]
    fn pages_come_back_and_any_flipped_bit_in_them_is_found() {
        let mut page = [0xaa; BLOCK_BYTES];
        put_header(&mut page, &HEADER);
        (0..TABLE_ENTRIES_MAX).for_each(|index| put_entry(&mut page, index, &entry(index as u64)));
        assert_eq!(header_of(&page), Ok(HEADER));
        assert!((0..TABLE_ENTRIES_MAX).all(|index| entry_at(&page, index) == Ok(entry(index as u64))));
        for bit in 0..8 * CELL_BYTES {
            let mut flipped = page;
            flipped[CELLS + 2 * CELL_BYTES + bit / 8] ^= 1 << (bit % 8);
            assert!(entry_at(&flipped, 2).is_err(), "bit {bit}");
        }
        let record = SnapshotRecord {
            number: UpdateNumber(9),
            volumes: VolumeSet(2),
            name: SnapshotName::new("nightly"),
            ..SnapshotRecord::EMPTY
        };
        let header = TablesHeader { kind: TablesKind::Snapshots, count: 31, last: false, ..HEADER };
        put_header(&mut page, &header);
        put_record(&mut page, 30, &record);
        assert_eq!((header_of(&page), record_at(&page, 30)), (Ok(header), Ok(record)));
    }

    #[test]
    fn each_bound_is_checked() {
        let refused = |at: usize, byte: u8| {
            let mut page = [0; BLOCK_BYTES];
            put_header(&mut page, &HEADER);
            page[at] = byte;
            header_of(&page).expect_err("the field is out of bounds")
        };
        assert_eq!(refused(KIND, 0), TablesError::Kind { found: 0 });
        assert_eq!(refused(LAST, 2), TablesError::Last { found: 2 });
        assert!(matches!(refused(COUNT, 101), TablesError::Count { found: 101, .. }));
        assert!(matches!(refused(RESERVED, 1), TablesError::Reserved { .. }));
    }
}
