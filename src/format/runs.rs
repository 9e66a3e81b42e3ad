//! What one snapshot keeps of a run of blocks, as one value in the database: which blocks, and the entry of each. A commit's blocks
//! lie close together, and by run few rows take them all, however many snapshots keep something of the same blocks.

use crate::base::{Lba, UpdateNumber, VolumeId};
use crate::format::bytes::{put, u32_at, u64_at};
use crate::format::metadata::{Captured, ENTRY_BYTES, EntryError};

/// Blocks of a run: a word has a bit for each, and three full rows fit a page of the database.
pub const RUN_BLOCKS: u64 = 64;

const BLOCKS: usize = 0;
const CRC: usize = 8;
const ENTRIES: usize = 12;

/// Blocks of a volume that share their rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    pub volume: VolumeId,
    pub index: u64,
}

impl Run {
    pub fn of(volume: VolumeId, lba: Lba) -> Run {
        Run { volume, index: lba.0 / RUN_BLOCKS }
    }

    /// The block that `bit` of a word stands for. A run whose row was never read may have any index.
    pub fn block(self, bit: u32) -> Lba {
        Lba(self.index.saturating_mul(RUN_BLOCKS).saturating_add(u64::from(bit)))
    }
}

/// The bit that stands for a block in its run's word.
pub fn bit_of(lba: Lba) -> u32 {
    (lba.0 % RUN_BLOCKS) as u32
}

/// The bits that are set, lowest first.
pub fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(bit)
    })
}

/// The runs of so many blocks, and which blocks of each are among them.
pub fn runs(volume: VolumeId, first: Lba, count: u64) -> impl Iterator<Item = (Run, u64)> {
    let end = first.0.saturating_add(count);
    (first.0 / RUN_BLOCKS..end.div_ceil(RUN_BLOCKS)).filter_map(move |index| {
        let begin = index * RUN_BLOCKS;
        let (from, to) = (first.0.max(begin) - begin, (end - begin).min(RUN_BLOCKS));
        (from < to).then(|| (Run { volume, index }, u64::MAX >> (RUN_BLOCKS - (to - from)) << from))
    })
}

/// Why a value is not a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("row of volume {volume} blocks {first} to {last} for snapshot {snapshot} has {bytes} bytes and blocks {blocks:#018x} with crc {found:#010x}, expected {expected:#010x}", volume = run.volume.0, first = run.block(0).0, last = run.block(RUN_BLOCKS as u32 - 1).0)]
    Blocks { run: Run, snapshot: UpdateNumber, bytes: usize, blocks: u64, expected: u32, found: u32 },
    #[error("{0}")]
    Entry(#[from] EntryError),
}

/// The crc of which blocks a row has covers its key too, so that a row under another key is found out whatever is asked of it.
fn crc_of(run: Run, snapshot: UpdateNumber, blocks: u64) -> u32 {
    let crc = crc32c::crc32c(&run.volume.0.to_le_bytes());
    [run.index, snapshot.0, blocks]
        .iter()
        .fold(crc, |crc, field| crc32c::crc32c_append(crc, &field.to_le_bytes()))
}

/// A row as it lies in the database. Each entry is checked when it is looked at, so that a bad one is nobody else's trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    run: Run,
    snapshot: UpdateNumber,
    blocks: u64,
    /// One for each block, in their order.
    entries: &'a [[u8; ENTRY_BYTES]],
}

impl<'a> Row<'a> {
    pub fn decode(run: Run, snapshot: UpdateNumber, value: &'a [u8]) -> Result<Row<'a>, RowError> {
        let wrong = |blocks, expected, found| RowError::Blocks {
            run,
            snapshot,
            bytes: value.len(),
            blocks,
            expected,
            found,
        };
        let Some((head, rest)) = value.split_first_chunk::<ENTRIES>() else { return Err(wrong(0, 0, 0)) };
        let blocks = u64_at(head, BLOCKS);
        let (expected, found) = (crc_of(run, snapshot, blocks), u32_at(head, CRC));
        let (entries, left) = rest.as_chunks();
        if expected != found || !left.is_empty() || entries.len() != blocks.count_ones() as usize {
            return Err(wrong(blocks, expected, found));
        }
        Ok(Row { run, snapshot, blocks, entries })
    }

    pub fn run(&self) -> Run {
        self.run
    }

    pub fn snapshot(&self) -> UpdateNumber {
        self.snapshot
    }

    /// A bit for each block that has an entry.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The entry of the block that `bit` stands for, if it has one.
    pub fn entry(&self, bit: u32) -> Option<Result<Captured, EntryError>> {
        let has = self.blocks >> bit & 1 == 1;
        has.then(|| self.checked(bit, &self.entries[place_in(self.blocks, bit)]))
    }

    /// The entries by block.
    pub fn entries(&self) -> impl Iterator<Item = Result<Captured, EntryError>> {
        bits(self.blocks).zip(self.entries).map(|(bit, value)| self.checked(bit, value))
    }

    fn checked(&self, bit: u32, value: &[u8; ENTRY_BYTES]) -> Result<Captured, EntryError> {
        Captured::of_value((self.run.volume, self.run.block(bit), self.snapshot), value)
    }
}

/// How many entries come before the one that `bit` stands for.
fn place_in(blocks: u64, bit: u32) -> usize {
    (blocks & !(u64::MAX << bit)).count_ones() as usize
}

/// A row that is being made or changed; what it had is as it lay there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    run: Run,
    snapshot: UpdateNumber,
    blocks: u64,
    entries: Vec<[u8; ENTRY_BYTES]>,
}

impl From<Row<'_>> for RowChange {
    fn from(Row { run, snapshot, blocks, entries }: Row<'_>) -> RowChange {
        RowChange { run, snapshot, blocks, entries: entries.to_vec() }
    }
}

impl RowChange {
    pub fn new(run: Run, snapshot: UpdateNumber) -> RowChange {
        RowChange { run, snapshot, blocks: 0, entries: Vec::new() }
    }

    pub fn row(&self) -> Row<'_> {
        let RowChange { run, snapshot, blocks, entries } = self;
        Row { run: *run, snapshot: *snapshot, blocks: *blocks, entries }
    }

    /// In place of the block's entry, if it has one. The entry is of this run and snapshot.
    pub fn put(&mut self, entry: &Captured) {
        let bit = bit_of(entry.lba);
        let place = place_in(self.blocks, bit);
        if self.blocks >> bit & 1 == 1 {
            self.entries[place] = entry.value();
        } else {
            self.entries.insert(place, entry.value());
            self.blocks |= 1 << bit;
        }
    }

    /// Keeps the entries of these blocks only.
    pub fn retain(&mut self, kept: u64) {
        let mut of = bits(self.blocks);
        self.entries.retain(|_| of.next().is_some_and(|bit| kept >> bit & 1 == 1));
        self.blocks &= kept;
    }

    /// The value in the database.
    pub fn value(&self) -> Vec<u8> {
        let entries = self.entries.as_flattened();
        let mut value = vec![0; ENTRIES + entries.len()];
        put(&mut value, BLOCKS, &self.blocks.to_le_bytes());
        put(&mut value, CRC, &crc_of(self.run, self.snapshot, self.blocks).to_le_bytes());
        put(&mut value, ENTRIES, entries);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BlockSum, Slot};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const RUN: Run = Run { volume: VolumeId(3), index: 9 };
    const SNAPSHOT: UpdateNumber = UpdateNumber(77);

    fn entry(bit: u32, slot: u64) -> Captured {
        let (slot, sum) = (Slot(slot), BlockSum(bit));
        Captured { volume: RUN.volume, lba: RUN.block(bit), snapshot: SNAPSHOT, slot, sum }
    }

    fn value_of(blocks: u64) -> Vec<u8> {
        let mut row = RowChange::new(RUN, SNAPSHOT);
        bits(blocks).for_each(|bit| row.put(&entry(bit, u64::from(bit) + 1000)));
        row.value()
    }

    proptest! {
        #[test]
        fn a_row_has_what_was_put_into_it(
            acts in prop::collection::vec((0u32..64, any::<u64>(), any::<u64>()), 0..100),
        ) {
            let (mut row, mut model) = (RowChange::new(RUN, SNAPSHOT), BTreeMap::new());
            for (bit, slot, kept) in acts {
                if slot.is_multiple_of(8) {
                    row.retain(kept);
                    model.retain(|bit, _| kept >> bit & 1 == 1);
                } else {
                    row.put(&entry(bit, slot));
                    model.insert(bit, entry(bit, slot));
                }
            }
            prop_assert_eq!(row.row().blocks() == 0, model.is_empty());
            let value = row.value();
            let read = Row::decode(RUN, SNAPSHOT, &value).expect("a row");
            prop_assert_eq!(read.blocks(), model.keys().fold(0, |word, bit| word | 1 << bit));
            prop_assert_eq!(bits(read.blocks()).collect::<Vec<_>>(), model.keys().copied().collect::<Vec<_>>());
            for bit in 0..64 {
                prop_assert_eq!(read.entry(bit).transpose(), Ok(model.get(&bit).copied()));
            }
            let entries: Result<Vec<_>, _> = read.entries().collect();
            prop_assert_eq!(entries, Ok(model.into_values().collect()));
            prop_assert_eq!(read, row.row());
            prop_assert_eq!(RowChange::from(read), row);
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..100), blocks in any::<u64>()) {
            prop_assert!(Row::decode(RUN, SNAPSHOT, &bytes).is_err());
            // Behind a head that is what it should be, too; and behind one that has the blocks for them.
            let entries = &bytes[..bytes.len() / ENTRY_BYTES * ENTRY_BYTES];
            let fitting = bits(blocks).take(entries.len() / ENTRY_BYTES).fold(0, |word, bit| word | 1 << bit);
            for (blocks, rest) in [(blocks, &bytes[..]), (fitting, entries)] {
                let mut value = value_of(0);
                put(&mut value, BLOCKS, &blocks.to_le_bytes());
                put(&mut value, CRC, &crc_of(RUN, SNAPSHOT, blocks).to_le_bytes());
                value.extend(rest);
                let row = Row::decode(RUN, SNAPSHOT, &value);
                prop_assert!(row.is_ok() || blocks.count_ones() as usize * ENTRY_BYTES != rest.len());
                if let Ok(row) = row {
                    prop_assert!((0..64).all(|bit| row.entry(bit).is_none_or(|entry| entry.is_err())));
                }
            }
        }

        #[test]
        fn any_flipped_bit_is_found_and_only_where_it_is(blocks in any::<u64>(), at in any::<prop::sample::Index>()) {
            let whole = value_of(blocks);
            let mut value = whole.clone();
            let at = at.index(8 * value.len());
            value[at / 8] ^= 1 << (at % 8);
            match Row::decode(RUN, SNAPSHOT, &value) {
                Err(_) => prop_assert!(at < 8 * ENTRIES),
                Ok(row) => {
                    let bad = (at / 8 - ENTRIES) / ENTRY_BYTES;
                    for (place, found) in row.entries().enumerate() {
                        prop_assert_eq!(found.is_err(), place == bad);
                    }
                }
            }
            let other = Run { index: 8, ..RUN };
            prop_assert!(Row::decode(other, SNAPSHOT, &whole).is_err());
            prop_assert!(Row::decode(RUN, UpdateNumber(78), &whole).is_err());
            for length in 0..whole.len() {
                prop_assert!(Row::decode(RUN, SNAPSHOT, &whole[..length]).is_err());
            }
        }

        #[test]
        fn runs_have_each_block_once(first in prop_oneof![0u64..300, u64::MAX - 300..u64::MAX], count in 0u64..300) {
            let found: Vec<(Run, u32)> = runs(RUN.volume, Lba(first), count)
                .flat_map(|(run, blocks)| bits(blocks).map(move |bit| (run, bit)))
                .collect();
            let due = (first..first.saturating_add(count)).map(Lba);
            prop_assert!(found.iter().map(|(run, bit)| run.block(*bit)).eq(due.clone()));
            let of = |lba| (Run::of(RUN.volume, lba), bit_of(lba));
            prop_assert!(found.iter().copied().eq(due.map(of)));
        }
    }
}
