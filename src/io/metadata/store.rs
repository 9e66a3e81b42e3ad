//! The tables of snapshots and captured blocks: what a metadata executor is asked, carried out in redb.

use std::path::PathBuf;

use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition,
};

use super::backend::give_way;
use super::space::{Needed, SharedSpace};
use super::take::Taking;
use super::{NUMBERS, TableNames, begin_write};
use crate::base::*;
use crate::core::messages::{MetadataAnswer, MetadataFault, MetadataOp};
use crate::format::metadata::*;
use crate::format::snapshot::{
    SNAPSHOT_RECORD_BYTES, SNAPSHOTS_PAGE_MAX, SnapshotError, SnapshotRecord, decode_payload,
    encode_snapshots, readable_name,
};
use crate::format::tables::{
    TABLE_ENTRIES_MAX, TABLE_RECORDS_MAX, TablesError, TablesHeader, TablesKind, put_entry, put_header,
    put_record,
};

/// By number.
pub(super) const SNAPSHOTS: TableDefinition<u64, &[u8; SNAPSHOT_RECORD_BYTES]> =
    TableDefinition::new("snapshots");
/// By volume, block and snapshot.
pub(super) const CAPTURED: TableDefinition<(u16, u64, u64), &[u8; ENTRY_BYTES]> =
    TableDefinition::new("captured");

pub(super) const APPLIED: &str = "applied";

/// Entries that one step of a pass looks at.
const RECLAIM_STEP: usize = 4096;

/// Commits after which tables that are being lent are let go: until then nothing that they name is freed in the file. Whoever wants
/// more of them begins anew.
const LENT_COMMITS_MAX: usize = 1000;

/// Tables on their way to the peer, as they were at one moment.
pub(super) struct Lent {
    applied: UpdateNumber,
    records: Vec<SnapshotRecord>,
    entries: ReadOnlyTable<Key, &'static [u8; ENTRY_BYTES]>,
    /// The next page, and the first entry that is not in one yet.
    page: u32,
    next: Key,
    commits: usize,
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lent").field("applied", &self.applied).field("page", &self.page).finish()
    }
}

#[derive(Debug)]
pub struct Store {
    pub(super) database: Database,
    /// Slots in use, by bit: gathered when loading begins, since the tables are not ordered by them.
    slots: Vec<u64>,
    needed: Needed,
    space: SharedSpace,
    path: PathBuf,
    names: TableNames,
    pub(super) lent: Option<Lent>,
    pub(super) taking: Option<Taking>,
}

/// Why a request was not carried out, for the log; the group hears of the kind only.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Database(Box<redb::Error>),
    #[error("{0}")]
    Entry(#[from] EntryError),
    #[error("record of snapshot {number}: {error}")]
    Snapshot { number: UpdateNumber, name: String, error: SnapshotError },
    #[error("snapshot in a commit: {0}")]
    Payload(#[from] SnapshotError),
    #[error("slot {} is named by two entries", .0.0)]
    Slot(Slot),
    #[error("a page of the changed-block set is not what was put there")]
    Marks,
    #[error("page of tables: {0}")]
    Tables(#[from] TablesError),
    #[error("page {found} of tables, expected {expected}")]
    TablesOrder { expected: u32, found: u32 },
}

macro_rules! of_database {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> StoreError {
                StoreError::Database(Box::new(error.into()))
            }
        })*
    };
}

of_database!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError);

impl StoreError {
    pub fn fault(&self) -> MetadataFault {
        match self {
            StoreError::Database(error) if !matches!(**error, redb::Error::Corrupted(_)) => {
                MetadataFault::Storage
            }
            _ => MetadataFault::Corrupt,
        }
    }
}

/// The pages of a request: the open one for the answer, and the commit's.
pub trait RequestPages {
    fn answer(&mut self) -> &mut [u8; BLOCK_BYTES];
    /// `index` counts from 1.
    fn page(&self, index: usize) -> &[u8; BLOCK_BYTES];
}

type Key = (u16, u64, u64);

impl Store {
    pub(super) fn new(database: Database, path: PathBuf, names: TableNames) -> Store {
        let (slots, needed, space) = (Vec::new(), Needed::default(), SharedSpace::default());
        Store { database, slots, needed, space, path, names, lent: None, taking: None }
    }

    pub(super) fn into_database(self) -> Database {
        self.database
    }

    /// Reads every record and entry, and finds whether each is what was written.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let transaction = self.database.begin_read()?;
        let records = snapshots(&transaction)?;
        count_entries(&transaction, &records).map(|_| ())
    }

    /// An error with the names of file, table, volume and snapshot.
    pub fn describe(&self, error: &StoreError) -> String {
        let path = self.path.display();
        match error {
            StoreError::Entry(EntryError::Crc { volume, lba, snapshot, .. }) => {
                let volume = self.names.volumes.get(usize::from(volume.0));
                let volume = volume.map_or("that does not exist", String::as_str);
                let name = self.name_of(*snapshot).map_or_else(
                    || format!("{snapshot}, which was deleted or is damaged too"),
                    |name| format!("{name} ({snapshot})"),
                );
                format!(
                    "{path}: table captured: the entry of volume {volume} block {} for snapshot {name} is not what was written there",
                    lba.0
                )
            }
            StoreError::Snapshot { number, name, .. } => format!(
                "{path}: table snapshots: the record of snapshot {name} ({number}) is not what was written there"
            ),
            error => format!("{path}: {error}"),
        }
    }

    fn name_of(&self, snapshot: UpdateNumber) -> Option<String> {
        let transaction = self.database.begin_read().ok()?;
        let record = *transaction.open_table(SNAPSHOTS).ok()?.get(snapshot.0).ok()??.value();
        Some(SnapshotRecord::decode(&record).ok()?.name.as_str().to_owned())
    }

    /// What each snapshot keeps, as of the latest commit; known once loading has begun.
    pub fn space(&self) -> SharedSpace {
        self.space.clone()
    }

    pub fn perform(
        &mut self,
        op: &MetadataOp,
        pages: &mut dyn RequestPages,
    ) -> Result<MetadataAnswer, StoreError> {
        match *op {
            MetadataOp::LoadSnapshots { first } => self.load_snapshots(first as usize, pages.answer()),
            MetadataOp::LoadCaptured { volume, since, first } => {
                self.load_captured(volume, since, first, pages.answer())
            }
            MetadataOp::LoadSlots { first } => {
                let page = pages.answer();
                page.fill(0);
                for bit in 0..BITS_PAGE_MAX {
                    let slot = first.0 + bit;
                    let word = self.slots.get((slot / 64) as usize).copied().unwrap_or(0);
                    if word >> (slot % 64) & 1 == 1 {
                        set_bit(page, bit);
                    }
                }
                Ok(MetadataAnswer::Bits)
            }
            MetadataOp::Commit { applied, pages: count } => self.commit(applied, count as usize, pages),
            MetadataOp::Reclaim { volume, lba } => self.reclaim(volume, lba, pages.answer()),
            MetadataOp::LookUp { snapshot, volume, lba, count } => {
                self.look_up(snapshot, volume, lba, count, pages.answer())
            }
            MetadataOp::Changed { since, before, volume, lba, count } => {
                self.changed(volume, (since, before), lba, count, pages.answer())
            }
            MetadataOp::Lend { page, applied } => self.lend(page, applied, pages.answer()),
            MetadataOp::LoadMarks { volume, chunk } => self.load_marks(volume, chunk, pages.answer()),
            MetadataOp::SaveMarks { base, pages: count } => self.save_marks(base, count as usize, pages),
            MetadataOp::DropMarks => self.drop_marks(),
            MetadataOp::TakeTables => self.take_tables(pages.page(1)),
        }
    }

    fn begin_lending(&self, applied: UpdateNumber) -> Result<Lent, StoreError> {
        let transaction = self.database.begin_read()?;
        let committed = transaction.open_table(NUMBERS)?.get(APPLIED)?.map_or(0, |value| value.value());
        Ok(Lent {
            applied: applied.max(UpdateNumber(committed)),
            records: snapshots(&transaction)?,
            entries: transaction.open_table(CAPTURED)?,
            page: 0,
            next: (0, 0, 0),
            commits: 0,
        })
    }

    fn lend(
        &mut self,
        page: u32,
        applied: UpdateNumber,
        out: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        let going_on = self.lent.take().filter(|lent| page > 0 && lent.page == page);
        let mut lent = match going_on {
            Some(lent) => lent,
            None => self.begin_lending(applied)?,
        };
        let (applied, index) = (lent.applied, lent.page);
        let mut header = TablesHeader { applied, index, kind: TablesKind::Snapshots, count: 0, last: false };
        lent.page += 1;
        let mut records = lent.records.chunks(TABLE_RECORDS_MAX).skip(index as usize);
        if let Some(part) = records.next() {
            header.count = part.len();
            put_header(out, &header);
            part.iter().enumerate().for_each(|(at, record)| put_record(out, at, record));
            self.lent = Some(lent);
            return Ok(MetadataAnswer::Lent);
        }
        header.kind = TablesKind::Entries;
        let mut entries = lent.entries.range(lent.next..)?;
        for found in entries.by_ref().take(TABLE_ENTRIES_MAX) {
            let (key, value) = found?;
            let (volume, lba, snapshot) = key.value();
            let key = (VolumeId(volume), Lba(lba), UpdateNumber(snapshot));
            put_entry(out, header.count, &Captured::of_value(key, value.value())?);
            header.count += 1;
            lent.next = (volume, lba, snapshot + 1);
        }
        header.last = entries.next().is_none();
        put_header(out, &header);
        self.lent = (!header.last).then_some(lent);
        Ok(MetadataAnswer::Lent)
    }

    fn load_snapshots(
        &mut self,
        first: usize,
        page: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        let transaction = self.database.begin_read()?;
        let applied = transaction.open_table(NUMBERS)?.get(APPLIED)?.map_or(0, |value| value.value());
        let records = snapshots(&transaction)?;
        if first == 0 {
            (self.slots, self.needed) = count_entries(&transaction, &records)?;
            self.space.set(self.needed.space(UpdateNumber(applied)));
        }
        let part = &records[first.min(records.len())..records.len().min(first + SNAPSHOTS_PAGE_MAX)];
        encode_snapshots(part.iter(), page);
        Ok(MetadataAnswer::Snapshots {
            count: part.len() as u32,
            total: records.len() as u32,
            applied: UpdateNumber(applied),
            entries: transaction.open_table(CAPTURED)?.len()?,
        })
    }

    fn load_captured(
        &self,
        volume: VolumeId,
        since: UpdateNumber,
        first: Lba,
        page: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        page.fill(0);
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(CAPTURED)?;
        let end = first.0.saturating_add(BITS_PAGE_MAX);
        for entry in table.range((volume.0, first.0, 0)..(volume.0, end, 0))? {
            let (_, lba, snapshot) = entry?.0.value();
            if snapshot >= since.0 {
                set_bit(page, lba - first.0);
            }
        }
        Ok(MetadataAnswer::Bits)
    }

    fn commit(
        &mut self,
        applied: UpdateNumber,
        count: usize,
        pages: &mut dyn RequestPages,
    ) -> Result<MetadataAnswer, StoreError> {
        pages.answer().fill(0);
        if let Some(lent) = &mut self.lent {
            lent.commits += 1;
        }
        self.lent = self.lent.take().filter(|lent| lent.commits <= LENT_COMMITS_MAX);
        let transaction = begin_write(&self.database)?;
        {
            let mut captured = transaction.open_table(CAPTURED)?;
            let mut records = transaction.open_table(SNAPSHOTS)?;
            let mut entries = Vec::new();
            let mut index = 1;
            while index <= count {
                let page = *pages.page(index);
                index += 1;
                for change in (0..changes_in(&page)).filter_map(|at| change_at(&page, at)) {
                    match change {
                        Change::Captured(entry) => entries.push(entry),
                        Change::Created(snapshot) => {
                            let record = decode_payload(pages.page(index))?;
                            assert_eq!(
                                record.number, snapshot,
                                "a snapshot's record was judged when it was numbered"
                            );
                            insert_record(&mut records, &record)?;
                            self.needed.created(&record);
                            index += 1;
                        }
                        Change::Deleted(snapshot) => {
                            records.remove(snapshot.0)?;
                            self.needed.deleted(snapshot);
                        }
                        Change::Protected(snapshot, protected) => {
                            let found = records.get(snapshot.0)?.map(|value| *value.value());
                            // Without a record, the snapshot's deletion was committed before a crash repeats this.
                            if let Some(bytes) = found {
                                let record = decode_record(snapshot.0, &bytes)?;
                                insert_record(&mut records, &SnapshotRecord { protected, ..record })?;
                            }
                        }
                    }
                }
            }
            // By block, neighbours share the table's pages. A block's captures stay in stream order: after a deletion, one for an older
            // snapshot may follow, and is redundant. Who needs an entry does not depend on whether that is asked before or after
            // snapshots of this commit come and go.
            let mut by_block: Vec<usize> = (0..entries.len()).collect();
            by_block.sort_by_key(|&index| (entries[index].volume, entries[index].lba));
            for index in by_block {
                give_way();
                let entry = &entries[index];
                match insert(&mut captured, entry)? {
                    Insertion::New { since } => self.needed.captured(entry.volume, since, entry.snapshot),
                    Insertion::There => {}
                    Insertion::Redundant => set_bit(pages.answer(), index as u64),
                }
            }
            transaction.open_table(NUMBERS)?.insert(APPLIED, applied.0)?;
        }
        transaction.commit()?;
        self.space.set(self.needed.space(applied));
        Ok(MetadataAnswer::Committed)
    }

    fn reclaim(
        &self,
        volume: VolumeId,
        lba: Lba,
        page: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        let reading = self.database.begin_read()?;
        let living = snapshots(&reading)?;
        let mut garbage: Vec<Key> = Vec::new();
        let mut next = None;
        // The entry before, if it is of the same block.
        let mut before: Option<Key> = None;
        let table = reading.open_table(CAPTURED)?;
        for (seen, entry) in table.range((volume.0, lba.0, 0)..)?.enumerate() {
            let (key, value) = entry?;
            let key = key.value();
            let (volume, lba, snapshot) = key;
            let same = before.is_some_and(|(v, l, _)| (v, l) == (volume, lba));
            // A block's entries are judged in one step, unless they alone fill the answer.
            if (seen >= RECLAIM_STEP && !same) || garbage.len() == SLOTS_PAGE_MAX {
                next = Some((VolumeId(volume), Lba(lba)));
                break;
            }
            let since = before.filter(|_| same).map_or(0, |(_, _, snapshot)| snapshot);
            let needed = living.iter().any(|record| {
                record.volumes.contains(VolumeId(volume))
                    && record.number.0 > since
                    && record.number.0 <= snapshot
            });
            if !needed {
                let entry =
                    Captured::of_value((VolumeId(volume), Lba(lba), UpdateNumber(snapshot)), value.value())?;
                put_slot(page, garbage.len(), entry.slot);
                garbage.push(key);
            }
            before = Some(key);
        }
        if !garbage.is_empty() {
            let transaction = begin_write(&self.database)?;
            {
                let mut captured = transaction.open_table(CAPTURED)?;
                for key in &garbage {
                    captured.remove(key)?;
                }
            }
            transaction.commit()?;
        }
        Ok(MetadataAnswer::Reclaimed { freed: garbage.len() as u32, next })
    }

    fn look_up(
        &self,
        snapshot: UpdateNumber,
        volume: VolumeId,
        lba: Lba,
        count: u32,
        page: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(CAPTURED)?;
        for index in 0..u64::from(count) {
            let block = lba.plus(index);
            let from = (volume.0, block.0, snapshot.0);
            let kept = match table.range(from..(volume.0, block.0 + 1, 0))?.next() {
                None => None,
                Some(entry) => {
                    let (key, value) = entry?;
                    let kept_for = UpdateNumber(key.value().2);
                    let Captured { snapshot, slot, sum, .. } =
                        Captured::of_value((volume, block, kept_for), value.value())?;
                    Some(Kept { snapshot, slot, sum })
                }
            };
            put_kept(page, index as usize, kept);
        }
        Ok(MetadataAnswer::Found)
    }

    fn changed(
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
        let end = lba.0 + u64::from(count);
        let mut block = lba.0;
        // From one block with entries to the next, however many entries each has.
        while block < end {
            let Some(entry) = table.range((volume.0, block, since.0)..(volume.0, end, 0))?.next() else {
                break;
            };
            let (_, found, snapshot) = entry?.0.value();
            if found == block {
                if snapshot < before.0 {
                    set_bit(page, block - lba.0);
                }
                block += 1;
            } else {
                block = found;
            }
        }
        Ok(MetadataAnswer::Bits)
    }
}

pub(super) fn insert_record(
    records: &mut redb::Table<u64, &'static [u8; SNAPSHOT_RECORD_BYTES]>,
    record: &SnapshotRecord,
) -> Result<(), redb::StorageError> {
    let mut bytes = [0; SNAPSHOT_RECORD_BYTES];
    record.encode(&mut bytes);
    records.insert(record.number.0, &bytes).map(drop)
}

pub(super) fn key_of(entry: &Captured) -> Key {
    (entry.volume.0, entry.lba.0, entry.snapshot.0)
}

/// What became of an entry that was to be inserted.
enum Insertion {
    /// It is there now; the block's entry before it is for the snapshot `since`, or there is none.
    New { since: UpdateNumber },
    /// It was there, in the same slot: a commit that is repeated after a crash.
    There,
    /// The block is kept for its snapshot or a later one already, in another slot.
    Redundant,
}

fn insert(
    table: &mut redb::Table<Key, &'static [u8; ENTRY_BYTES]>,
    entry: &Captured,
) -> Result<Insertion, StoreError> {
    let of_block = (entry.volume, entry.lba);
    let key = key_of(entry);
    let end = (entry.volume.0, entry.lba.0 + 1, 0);
    let newest = match table.range((entry.volume.0, entry.lba.0, 0)..end)?.next_back() {
        None => UpdateNumber::NONE,
        Some(found) => UpdateNumber(found?.0.value().2),
    };
    if newest < entry.snapshot {
        table.insert(key, &entry.value())?;
        return Ok(Insertion::New { since: newest });
    }
    let found = table.range(key..end)?.next().expect("the newest is one of them")?;
    let (at, value) = (found.0.value(), found.1);
    let kept = Captured::of_value((of_block.0, of_block.1, UpdateNumber(at.2)), value.value())?;
    Ok(if at == key && kept.slot == entry.slot { Insertion::There } else { Insertion::Redundant })
}

fn snapshots(transaction: &ReadTransaction) -> Result<Vec<SnapshotRecord>, StoreError> {
    let mut records = Vec::new();
    for entry in transaction.open_table(SNAPSHOTS)?.iter()? {
        let (number, record) = entry?;
        records.push(decode_record(number.value(), record.value())?);
    }
    Ok(records)
}

fn decode_record(number: u64, bytes: &[u8; SNAPSHOT_RECORD_BYTES]) -> Result<SnapshotRecord, StoreError> {
    let number = UpdateNumber(number);
    let name = || readable_name(bytes).map_or("?".to_owned(), |name| name.as_str().to_owned());
    let record = SnapshotRecord::decode(bytes);
    let record = record.and_then(|record| match record.number == number {
        true => Ok(record),
        false => Err(SnapshotError::Number),
    });
    record.map_err(|error| StoreError::Snapshot { number, name: name(), error })
}

/// The slots in use, and who needs what, of all entries.
fn count_entries(
    transaction: &ReadTransaction,
    records: &[SnapshotRecord],
) -> Result<(Vec<u64>, Needed), StoreError> {
    let (mut slots, mut needed) = (Vec::new(), Needed::default());
    records.iter().for_each(|record| needed.created(record));
    let mut before: Option<Key> = None;
    for entry in transaction.open_table(CAPTURED)?.iter()? {
        let (key, value) = entry?;
        let key = key.value();
        let (volume, lba, snapshot) = (VolumeId(key.0), Lba(key.1), UpdateNumber(key.2));
        let entry = Captured::of_value((volume, lba, snapshot), value.value())?;
        let word = (entry.slot.0 / 64) as usize;
        if word >= slots.len() {
            slots.resize(word + 1, 0);
        }
        if slots[word] >> (entry.slot.0 % 64) & 1 == 1 {
            return Err(StoreError::Slot(entry.slot));
        }
        slots[word] |= 1 << (entry.slot.0 % 64);
        let since = before.filter(|before| (before.0, before.1) == (key.0, key.1)).map_or(0, |it| it.2);
        needed.captured(volume, UpdateNumber(since), snapshot);
        before = Some(key);
    }
    Ok((slots, needed))
}

#[cfg(test)]
pub(super) mod tests;
