//! The table of captured blocks. A row has what one snapshot keeps of a run of blocks ([`crate::format::runs`]), and the rows of a run lie
//! together, oldest snapshot first.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use redb::{AccessGuard, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use super::begin_write;
use super::space::Needed;
use super::store::{Store, StoreError, snapshots};
use crate::base::*;
use crate::core::messages::{EntriesFrom, MetadataAnswer};
use crate::format::metadata::*;
use crate::format::runs::*;
use crate::format::snapshot::SnapshotRecord;
use crate::format::tables::{TABLE_ENTRIES_MAX, put_entry};

/// Volume, run of blocks, snapshot.
pub(super) type Key = (u16, u64, u64);

pub(super) const CAPTURED: TableDefinition<Key, &[u8]> = TableDefinition::new("captured");

/// Entries that one step of a pass looks at.
const RECLAIM_STEP: usize = 4096;

/// For each block of a run.
type OfRun = [UpdateNumber; RUN_BLOCKS as usize];

const NO_ENTRIES: OfRun = [UpdateNumber::NONE; RUN_BLOCKS as usize];

fn key_of(run: Run, snapshot: UpdateNumber) -> Key {
    (run.volume.0, run.index, snapshot.0)
}

/// The rows of a run for snapshots from `since` on.
pub(super) fn rows_from(run: Run, since: UpdateNumber) -> Range<Key> {
    key_of(run, since)..(run.volume.0, run.index + 1, 0)
}

/// The rows of a volume.
pub(super) fn rows_of(volume: u16) -> Range<Key> {
    (volume, 0, 0)..(volume + 1, 0, 0)
}

/// A row as a range of the table has it.
pub(super) struct Found<'a>(AccessGuard<'a, Key>, AccessGuard<'a, &'static [u8]>);

impl<'a> Found<'a> {
    pub fn of(
        found: Result<(AccessGuard<'a, Key>, AccessGuard<'a, &'static [u8]>), StorageError>,
    ) -> Result<Found<'a>, StorageError> {
        found.map(|(key, value)| Found(key, value))
    }

    pub fn row(&self) -> Result<Row<'_>, RowError> {
        let (volume, index, snapshot) = self.0.value();
        Row::decode(Run { volume: VolumeId(volume), index }, UpdateNumber(snapshot), self.1.value())
    }
}

/// Rows of a run that are being changed, of which the table knows once they are written.
#[derive(Debug, Default)]
pub(super) struct Rows {
    run: Run,
    changes: BTreeMap<u64, RowChange>,
}

impl Rows {
    /// Puts an entry of whatever run. Those of a run come together, or its rows are written more than once.
    pub fn put(
        &mut self,
        table: &mut redb::Table<Key, &'static [u8]>,
        entry: &Captured,
    ) -> Result<(), StoreError> {
        let run = Run::of(entry.volume, entry.lba);
        if run != self.run {
            self.write(table)?;
            self.run = run;
        }
        self.row(table, entry.snapshot)?.put(entry);
        Ok(())
    }

    /// A row as it will be.
    fn row(
        &mut self,
        table: &impl ReadableTable<Key, &'static [u8]>,
        snapshot: UpdateNumber,
    ) -> Result<&mut RowChange, StoreError> {
        Ok(match self.changes.entry(snapshot.0) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let value = table.get(key_of(self.run, snapshot))?;
                entry.insert(match &value {
                    Some(value) => Row::decode(self.run, snapshot, value.value())?.into(),
                    None => RowChange::new(self.run, snapshot),
                })
            }
        })
    }

    pub fn write(&mut self, table: &mut redb::Table<Key, &'static [u8]>) -> Result<(), StoreError> {
        for (snapshot, row) in std::mem::take(&mut self.changes) {
            let key = key_of(self.run, UpdateNumber(snapshot));
            match row.row().blocks() {
                0 => drop(table.remove(key)?),
                _ => drop(table.insert(key, row.value().as_slice())?),
            }
        }
        Ok(())
    }
}

/// What became of an entry that was to be inserted.
pub(super) enum Insertion {
    /// It is there now; the block's entry before it is for the snapshot `since`, or there is none.
    New { since: UpdateNumber },
    /// It was there, in the same slot: a commit that is repeated after a crash.
    There,
    /// The block is kept for its snapshot or a later one already, in another slot.
    Redundant,
}

/// Captures of one run on their way into the table, in the stream's order.
pub(super) struct Inserting {
    rows: Rows,
    /// The snapshot of each block's newest entry.
    newest: OfRun,
}

impl Inserting {
    /// For captures of these blocks, a bit for each.
    pub fn begin(
        table: &impl ReadableTable<Key, &'static [u8]>,
        run: Run,
        blocks: u64,
    ) -> Result<Inserting, StoreError> {
        let mut newest = NO_ENTRIES;
        let mut left = blocks;
        let mut rows = table.range(rows_from(run, UpdateNumber::NONE))?;
        while left != 0
            && let Some(found) = rows.next_back()
        {
            let found = Found::of(found)?;
            let row = found.row()?;
            bits(row.blocks() & left).for_each(|bit| newest[bit as usize] = row.snapshot());
            left &= !row.blocks();
        }
        Ok(Inserting { rows: Rows { run, ..Rows::default() }, newest })
    }

    pub fn insert(
        &mut self,
        table: &impl ReadableTable<Key, &'static [u8]>,
        entry: &Captured,
    ) -> Result<Insertion, StoreError> {
        let newest = &mut self.newest[bit_of(entry.lba) as usize];
        if *newest < entry.snapshot {
            let since = std::mem::replace(newest, entry.snapshot);
            self.rows.row(table, entry.snapshot)?.put(entry);
            return Ok(Insertion::New { since });
        }
        let kept = self.rows.row(table, entry.snapshot)?.row().entry(bit_of(entry.lba));
        Ok(match kept.transpose()? {
            Some(kept) if kept.slot == entry.slot => Insertion::There,
            _ => Insertion::Redundant,
        })
    }

    pub fn write(mut self, table: &mut redb::Table<Key, &'static [u8]>) -> Result<(), StoreError> {
        self.rows.write(table)
    }
}

/// What all entries say together.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub entries: u64,
    /// Slots in use, by bit: the table is not ordered by them.
    pub slots: Vec<u64>,
    pub needed: Needed,
}

impl Counted {
    /// Reads every entry, and finds whether each is what was written.
    pub fn of(transaction: &ReadTransaction, records: &[SnapshotRecord]) -> Result<Counted, StoreError> {
        let mut counted = Counted::default();
        records.iter().for_each(|record| counted.needed.created(record));
        let mut before = Before::NOTHING;
        for found in transaction.open_table(CAPTURED)?.iter()? {
            let found = Found::of(found)?;
            let row = found.row()?;
            let before = before.row(&row);
            for entry in row.entries() {
                let Captured { volume, lba, snapshot, slot, .. } = entry?;
                counted.take_slot(slot)?;
                let since = std::mem::replace(&mut before[bit_of(lba) as usize], snapshot);
                counted.needed.captured(volume, since, snapshot);
                counted.entries += 1;
            }
        }
        Ok(counted)
    }

    fn take_slot(&mut self, slot: Slot) -> Result<(), StoreError> {
        let word = (slot.0 / 64) as usize;
        if word >= self.slots.len() {
            self.slots.resize(word + 1, 0);
        }
        if self.slots[word] >> (slot.0 % 64) & 1 == 1 {
            return Err(StoreError::Slot(slot));
        }
        self.slots[word] |= 1 << (slot.0 % 64);
        Ok(())
    }
}

/// The entries that come before a row's: rows come in the table's order.
struct Before {
    run: Option<Run>,
    snapshots: OfRun,
}

impl Before {
    const NOTHING: Before = Before { run: None, snapshots: NO_ENTRIES };

    /// Of each block, the snapshot of its newest entry before this row; whoever looks at the row's entries sets theirs.
    fn row(&mut self, row: &Row) -> &mut OfRun {
        if self.run != Some(row.run()) {
            *self = Before { run: Some(row.run()), ..Before::NOTHING };
        }
        &mut self.snapshots
    }
}

/// Gives `each` the rows of snapshots from `since` on, with those of the blocks that no row before it has; until it returns false, or each
/// block of the run had its first.
fn first_rows(
    table: &impl ReadableTable<Key, &'static [u8]>,
    (volume, lba, count): (VolumeId, Lba, u32),
    since: UpdateNumber,
    mut each: impl FnMut(&Row, u64) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    for (run, mut wanted) in runs(volume, lba, u64::from(count)) {
        let mut rows = table.range(rows_from(run, since))?;
        while wanted != 0
            && let Some(found) = rows.next()
        {
            let found = Found::of(found)?;
            let row = found.row()?;
            if !each(&row, row.blocks() & wanted)? {
                break;
            }
            wanted &= !row.blocks();
        }
    }
    Ok(())
}

impl Store {
    pub(super) fn load_captured(
        &self,
        volume: VolumeId,
        since: UpdateNumber,
        first: Lba,
        page: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        page.fill(0);
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(CAPTURED)?;
        let blocks = first.0..first.0.saturating_add(BITS_PAGE_MAX);
        let runs = blocks.start / RUN_BLOCKS..blocks.end.div_ceil(RUN_BLOCKS);
        for found in table.range((volume.0, runs.start, 0)..(volume.0, runs.end, 0))? {
            let found = Found::of(found)?;
            let row = found.row()?;
            if row.snapshot() >= since {
                let kept = bits(row.blocks()).map(|bit| row.run().block(bit).0);
                kept.filter(|lba| blocks.contains(lba)).for_each(|lba| set_bit(page, lba - first.0));
            }
        }
        Ok(MetadataAnswer::Bits)
    }

    pub(super) fn reclaim(
        &self,
        volume: VolumeId,
        lba: Lba,
        page: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        let reading = self.database.begin_read()?;
        let living = snapshots(&reading)?;
        // Rows, and which of their blocks stay.
        let mut stays: Vec<(Run, UpdateNumber, u64)> = Vec::new();
        let (mut seen, mut freed, mut next) = (0, 0, None);
        let mut before = Before::NOTHING;
        let from = Run::of(volume, lba);
        for found in reading.open_table(CAPTURED)?.range((volume.0, from.index, 0)..)? {
            let found = Found::of(found)?;
            let row = found.row()?;
            let (run, snapshot) = (row.run(), row.snapshot());
            // A run's entries are judged in one step, unless the answer is full. Without those that are garbage, the others are needed by
            // the same snapshots, so the next step judges what is left of the run as this one would.
            if seen >= RECLAIM_STEP && before.run != Some(run) {
                next = Some((run.volume, run.block(0)));
                break;
            }
            let of_volume =
                |record: &&SnapshotRecord| record.volumes.contains(run.volume) && record.number <= snapshot;
            let newest = living.iter().rfind(of_volume).map_or(UpdateNumber::NONE, |record| record.number);
            let mut garbage = 0;
            let before = before.row(&row);
            for bit in bits(row.blocks()) {
                // Needed by snapshots after the entry before, and up to this one.
                if newest <= before[bit as usize] {
                    if freed == SLOTS_PAGE_MAX {
                        next = Some((run.volume, run.block(0)));
                        break;
                    }
                    let entry = row.entry(bit).expect("it is one of the row's")?;
                    put_slot(page, freed, entry.slot);
                    freed += 1;
                    garbage |= 1 << bit;
                }
                before[bit as usize] = snapshot;
            }
            if garbage != 0 {
                stays.push((run, snapshot, !garbage));
            }
            if next.is_some() {
                break;
            }
            seen += row.blocks().count_ones() as usize;
        }
        if !stays.is_empty() {
            let transaction = begin_write(&self.database)?;
            {
                let mut captured = transaction.open_table(CAPTURED)?;
                for (run, snapshot, stays) in stays {
                    let mut rows = Rows { run, ..Rows::default() };
                    rows.row(&captured, snapshot)?.retain(stays);
                    rows.write(&mut captured)?;
                }
            }
            transaction.commit()?;
        }
        Ok(MetadataAnswer::Reclaimed { freed: freed as u32, next })
    }

    pub(super) fn look_up(
        &self,
        snapshot: UpdateNumber,
        volume: VolumeId,
        lba: Lba,
        count: u32,
        page: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        (0..count as usize).for_each(|index| put_kept(page, index, None));
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(CAPTURED)?;
        first_rows(&table, (volume, lba, count), snapshot, |row, blocks| {
            for bit in bits(blocks) {
                let entry = row.entry(bit).expect("it is one of the row's")?;
                let Captured { snapshot, slot, sum, .. } = entry;
                put_kept(page, (entry.lba.0 - lba.0) as usize, Some(Kept { snapshot, slot, sum }));
            }
            Ok(true)
        })?;
        Ok(MetadataAnswer::Found)
    }

    pub(super) fn entries(
        &self,
        from: EntriesFrom,
        page: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(CAPTURED)?;
        let (mut count, mut next) = (0, None);
        for found in table.range(key_of(Run::of(from.volume, from.lba), from.snapshot)..)? {
            let found = Found::of(found)?;
            let row = found.row()?;
            if count + row.blocks().count_ones() as usize > TABLE_ENTRIES_MAX {
                let Run { volume, .. } = row.run();
                next = Some(EntriesFrom { volume, lba: row.run().block(0), snapshot: row.snapshot() });
                break;
            }
            for entry in row.entries() {
                put_entry(page, count, &entry?);
                count += 1;
            }
        }
        Ok(MetadataAnswer::Entries { count: count as u32, next })
    }

    pub(super) fn changed(
        &self,
        volume: VolumeId,
        (since, before): (UpdateNumber, UpdateNumber),
        lba: Lba,
        count: u32,
        page: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        page.fill(0);
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(CAPTURED)?;
        first_rows(&table, (volume, lba, count), since, |row, blocks| {
            let is_before = row.snapshot() < before;
            if is_before {
                bits(blocks).for_each(|bit| set_bit(page, row.run().block(bit).0 - lba.0));
            }
            Ok(is_before)
        })?;
        Ok(MetadataAnswer::Bits)
    }
}

/// The rows of a run fit a page, so that each page has some.
const _: () = assert!(TABLE_ENTRIES_MAX as u64 >= RUN_BLOCKS);

#[cfg(test)]
mod tests;
