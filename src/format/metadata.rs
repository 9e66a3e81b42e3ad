//! Management information of snapshots: which slot of the differential volume keeps which old block. What is durable of it
//! is in the database; the pages here carry it between a group and its metadata executor.

use crate::base::{BLOCK_BYTES, BlockSum, Lba, Slot, UpdateNumber, VolumeId};
use crate::format::bytes::{nonzero_in, put, u16_at, u32_at, u64_at};

/// Bytes of a captured block's entry in the database beside its key.
pub const ENTRY_BYTES: usize = 16;

/// An old block that a snapshot keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    pub volume: VolumeId,
    pub lba: Lba,
    pub snapshot: UpdateNumber,
    pub slot: Slot,
    /// Of the block in the slot; a block of zeros may have [`BlockSum::ZEROS`].
    pub sum: BlockSum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("entry of volume {volume} block {lba} for snapshot {snapshot} has crc {found:#010x}, expected {expected:#010x}", lba = lba.0, volume = volume.0)]
    Crc { volume: VolumeId, lba: Lba, snapshot: UpdateNumber, expected: u32, found: u32 },
}

impl Captured {
    /// The entry's value in the database. Its crc covers the key too, so that a value under another key is found out.
    pub fn value(&self) -> [u8; ENTRY_BYTES] {
        let mut value = [0; ENTRY_BYTES];
        put(&mut value, 0, &self.slot.0.to_le_bytes());
        put(&mut value, 8, &self.sum.0.to_le_bytes());
        put(&mut value, 12, &self.crc().to_le_bytes());
        value
    }

    fn crc(&self) -> u32 {
        let crc = crc32c::crc32c(&self.volume.0.to_le_bytes());
        [self.lba.0, self.snapshot.0, self.slot.0, u64::from(self.sum.0)]
            .iter()
            .fold(crc, |crc, field| crc32c::crc32c_append(crc, &field.to_le_bytes()))
    }

    pub fn of_value(
        (volume, lba, snapshot): (VolumeId, Lba, UpdateNumber),
        value: &[u8; ENTRY_BYTES],
    ) -> Result<Captured, EntryError> {
        let (slot, sum) = (Slot(u64_at(value, 0)), BlockSum(u32_at(value, 8)));
        let entry = Captured { volume, lba, snapshot, slot, sum };
        let (expected, found) = (entry.crc(), u32_at(value, 12));
        if expected != found {
            return Err(EntryError::Crc { volume, lba, snapshot, expected, found });
        }
        Ok(entry)
    }
}

/// One thing that a commit brings into the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Unless the block is kept for this snapshot or a later one already.
    Captured(Captured),
    /// The snapshot's record is in the next page of the commit.
    Created(UpdateNumber),
    Deleted(UpdateNumber),
    /// Whether the snapshot may be deleted to make room from now on.
    Protected(UpdateNumber, bool),
}

/// Changes in one page.
pub const CHANGES_PAGE_MAX: usize = (BLOCK_BYTES - CELLS) / CELL_BYTES;

const CELLS: usize = 64;
const CELL_BYTES: usize = 32;
const COUNT: usize = 0;

const LBA: usize = 0;
const SNAPSHOT: usize = 8;
const SLOT: usize = 16;
const SUM: usize = 24;
const VOLUME: usize = 28;
const KIND: usize = 30;
const RESERVED: usize = 31;

/// Puts `change` at `index` of a page, of which the ones before are written already.
pub fn put_change(page: &mut [u8; BLOCK_BYTES], index: usize, change: &Change) {
    assert!(index < CHANGES_PAGE_MAX, "change {index} of a page");
    if index == 0 {
        page.fill(0);
    }
    put(page, COUNT, &(index as u16 + 1).to_le_bytes());
    let cell = &mut page[CELLS + index * CELL_BYTES..][..CELL_BYTES];
    let (kind, snapshot) = match change {
        Change::Captured(entry) => {
            put(cell, LBA, &entry.lba.0.to_le_bytes());
            put(cell, SLOT, &entry.slot.0.to_le_bytes());
            put(cell, SUM, &entry.sum.0.to_le_bytes());
            put(cell, VOLUME, &entry.volume.0.to_le_bytes());
            (1, entry.snapshot)
        }
        Change::Created(snapshot) => (2, *snapshot),
        Change::Deleted(snapshot) => (3, *snapshot),
        Change::Protected(snapshot, true) => (4, *snapshot),
        Change::Protected(snapshot, false) => (5, *snapshot),
    };
    put(cell, SNAPSHOT, &snapshot.0.to_le_bytes());
    cell[KIND] = kind;
}

/// How many changes a page holds.
pub fn changes_in(page: &[u8; BLOCK_BYTES]) -> usize {
    usize::from(u16_at(page, COUNT)).min(CHANGES_PAGE_MAX)
}

/// The change at `index`, or `None` if there is none: these pages are made and read by one process.
pub fn change_at(page: &[u8; BLOCK_BYTES], index: usize) -> Option<Change> {
    if index >= changes_in(page) {
        return None;
    }
    let cell = &page[CELLS + index * CELL_BYTES..][..CELL_BYTES];
    let snapshot = UpdateNumber(u64_at(cell, SNAPSHOT));
    nonzero_in(cell, RESERVED, CELL_BYTES).is_none().then_some(())?;
    match cell[KIND] {
        1 => Some(Change::Captured(Captured {
            volume: VolumeId(u16_at(cell, VOLUME)),
            lba: Lba(u64_at(cell, LBA)),
            snapshot,
            slot: Slot(u64_at(cell, SLOT)),
            sum: BlockSum(u32_at(cell, SUM)),
        })),
        2 => Some(Change::Created(snapshot)),
        3 => Some(Change::Deleted(snapshot)),
        4 => Some(Change::Protected(snapshot, true)),
        5 => Some(Change::Protected(snapshot, false)),
        _ => None,
    }
}

/// Blocks whose marks a page of the changed-block set has: whole words of 64.
pub const MARKS_PAGE_MAX: u64 = 8 * (BLOCK_BYTES - MARKS) as u64;

const MARKS_VOLUME: usize = 0;
const MARKS_RESERVED: usize = 2;
const MARKS_CRC: usize = 4;
const MARKS_CHUNK: usize = 8;
const MARKS: usize = 16;

const _: () = assert!((BLOCK_BYTES - MARKS).is_multiple_of(8));

/// Writes the `chunk`th page of a volume's part of the changed-block set; words that are not given are zero.
pub fn put_marks(page: &mut [u8; BLOCK_BYTES], volume: VolumeId, chunk: u64, words: &[u64]) {
    page.fill(0);
    put(page, MARKS_VOLUME, &volume.0.to_le_bytes());
    put(page, MARKS_CHUNK, &chunk.to_le_bytes());
    for (index, word) in words.iter().enumerate() {
        put(page, MARKS + 8 * index, &word.to_le_bytes());
    }
    let crc = crc32c::crc32c(&page[MARKS_CHUNK..]);
    put(page, MARKS_CRC, &crc.to_le_bytes());
}

/// The volume and chunk of a page, and its words; `None` if it is not what was written.
pub fn take_marks(page: &[u8; BLOCK_BYTES]) -> Option<(VolumeId, u64, impl Iterator<Item = u64>)> {
    let reserved = nonzero_in(page, MARKS_RESERVED, MARKS_CRC).is_some();
    if reserved || u32_at(page, MARKS_CRC) != crc32c::crc32c(&page[MARKS_CHUNK..]) {
        return None;
    }
    let words = (MARKS..BLOCK_BYTES).step_by(8).map(|at| u64_at(page, at));
    Some((VolumeId(u16_at(page, MARKS_VOLUME)), u64_at(page, MARKS_CHUNK), words))
}

/// Bits in a page that answers a load, or tells which captures of a commit were redundant.
pub const BITS_PAGE_MAX: u64 = 8 * BLOCK_BYTES as u64;

pub fn bit_at(page: &[u8; BLOCK_BYTES], bit: u64) -> bool {
    page[(bit / 8) as usize] >> (bit % 8) & 1 == 1
}

pub fn set_bit(page: &mut [u8; BLOCK_BYTES], bit: u64) {
    page[(bit / 8) as usize] |= 1 << (bit % 8);
}

/// Slots in a page that tells which ones were reclaimed.
pub const SLOTS_PAGE_MAX: usize = BLOCK_BYTES / 8;

pub fn slot_at(page: &[u8; BLOCK_BYTES], index: usize) -> Slot {
    Slot(u64_at(page, 8 * index))
}

pub fn put_slot(page: &mut [u8; BLOCK_BYTES], index: usize, slot: Slot) {
    put(page, 8 * index, &slot.0.to_le_bytes());
}

/// Where a snapshot's block is kept, at `index` of a page that answers a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The snapshot it was captured for, which may be a later one.
    pub snapshot: UpdateNumber,
    pub slot: Slot,
    pub sum: BlockSum,
}

const KEPT_BYTES: usize = 32;

pub fn put_kept(page: &mut [u8; BLOCK_BYTES], index: usize, kept: Option<Kept>) {
    let cell = &mut page[index * KEPT_BYTES..][..KEPT_BYTES];
    cell.fill(0);
    if let Some(kept) = kept {
        put(cell, 0, &kept.snapshot.0.to_le_bytes());
        put(cell, 8, &kept.slot.0.to_le_bytes());
        put(cell, 16, &kept.sum.0.to_le_bytes());
    }
}

pub fn kept_at(page: &[u8; BLOCK_BYTES], index: usize) -> Option<Kept> {
    let cell = &page[index * KEPT_BYTES..][..KEPT_BYTES];
    let snapshot = UpdateNumber(u64_at(cell, 0));
    (snapshot != UpdateNumber::NONE).then(|| Kept {
        snapshot,
        slot: Slot(u64_at(cell, 8)),
        sum: BlockSum(u32_at(cell, 16)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: Captured = Captured {
        volume: VolumeId(1),
        lba: Lba(77),
        snapshot: UpdateNumber(9),
        slot: Slot(3),
        sum: BlockSum(0xdead_beef),
    };

    #[test]
    fn an_entry_is_known_by_its_key_and_every_bit() {
        let key = (ENTRY.volume, ENTRY.lba, ENTRY.snapshot);
        assert_eq!(Captured::of_value(key, &ENTRY.value()), Ok(ENTRY));
        for at in 0..8 * ENTRY_BYTES {
            let mut value = ENTRY.value();
            value[at / 8] ^= 1 << (at % 8);
            assert!(Captured::of_value(key, &value).is_err(), "bit {at}");
        }
        assert!(Captured::of_value((ENTRY.volume, Lba(78), ENTRY.snapshot), &ENTRY.value()).is_err());
    }

    #[test]
    fn changes_come_back() {
        let mut page = [0xaa; BLOCK_BYTES];
        let change = |index: usize| match index % 4 {
            0 => Change::Captured(Captured { lba: Lba(index as u64), ..ENTRY }),
            1 => Change::Created(UpdateNumber(index as u64)),
            2 => Change::Protected(UpdateNumber(index as u64), index.is_multiple_of(3)),
            _ => Change::Deleted(UpdateNumber(index as u64)),
        };
        (0..CHANGES_PAGE_MAX).for_each(|index| put_change(&mut page, index, &change(index)));
        assert_eq!(changes_in(&page), CHANGES_PAGE_MAX);
        assert!((0..CHANGES_PAGE_MAX).all(|index| change_at(&page, index) == Some(change(index))));
        put_change(&mut page, 0, &change(1));
        assert_eq!((changes_in(&page), change_at(&page, 1)), (1, None));
    }

    #[test]
    fn answers_come_back() {
        let mut page = [0; BLOCK_BYTES];
        set_bit(&mut page, BITS_PAGE_MAX - 1);
        assert!(bit_at(&page, BITS_PAGE_MAX - 1) && !bit_at(&page, 0));
        put_slot(&mut page, SLOTS_PAGE_MAX - 1, Slot(5));
        assert_eq!(slot_at(&page, SLOTS_PAGE_MAX - 1), Slot(5));
        let kept = Kept { snapshot: UpdateNumber(3), slot: Slot(0), sum: BlockSum(1) };
        put_kept(&mut page, 31, Some(kept));
        put_kept(&mut page, 30, None);
        assert_eq!((kept_at(&page, 30), kept_at(&page, 31)), (None, Some(kept)));
    }
}
