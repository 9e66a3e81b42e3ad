//! The tables of snapshots and captured blocks: what a metadata executor is asked, carried out in redb.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};

use super::backend::give_way;
use super::captured::{CAPTURED, Counted, Inserting, Insertion};
use super::check::of_file;
use super::lend::Lent;
use super::space::SharedSpace;
use super::take::Taking;
use super::{NUMBERS, TableNames, begin_write, is_damage};
use crate::base::*;
use crate::core::messages::{MetadataAnswer, MetadataFault, MetadataOp};
use crate::format::metadata::*;
use crate::format::runs::{RUN_BLOCKS, RowError, Run, bit_of};
use crate::format::snapshot::{
    SNAPSHOT_RECORD_BYTES, SNAPSHOTS_PAGE_MAX, SnapshotError, SnapshotRecord, decode_payload,
    encode_snapshots, readable_name,
};
use crate::format::tables::TablesError;

/// By number.
pub(super) const SNAPSHOTS: TableDefinition<u64, &[u8; SNAPSHOT_RECORD_BYTES]> =
    TableDefinition::new("snapshots");
pub(super) const APPLIED: &str = "applied";

#[derive(Debug)]
pub struct Store {
    pub(super) database: Database,
    /// As of when loading began, but for what is needed, which goes on with each commit.
    counted: Counted,
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
    Row(#[from] RowError),
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
    #[error("its pages make no sense to the database")]
    Pages,
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

impl From<EntryError> for StoreError {
    fn from(error: EntryError) -> StoreError {
        StoreError::Row(error.into())
    }
}

of_database!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::DatabaseError,
    std::io::Error
);

impl StoreError {
    pub fn fault(&self) -> MetadataFault {
        match self {
            StoreError::Database(error) if !is_damage(error) => MetadataFault::Storage,
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

impl Store {
    pub(super) fn new(database: Database, path: PathBuf, names: TableNames) -> Store {
        let (counted, space) = (Counted::default(), SharedSpace::default());
        Store { database, counted, space, path, names, lent: None, taking: None }
    }

    pub(super) fn into_database(self) -> Database {
        self.database
    }

    /// Reads every record and entry, and finds whether each is what was written.
    pub(super) fn check(&self) -> Result<u64, StoreError> {
        let transaction = self.database.begin_read()?;
        let records = snapshots(&transaction)?;
        Ok(Counted::of(&transaction, &records)?.entries)
    }

    /// The same of the file as it lies on the disk, whatever is in memory, and of every page of it.
    fn check_file(&self) -> Result<MetadataAnswer, StoreError> {
        let store = Store::new(of_file(&self.path)?, self.path.clone(), self.names.clone());
        let entries = store.check()?;
        store.into_database().check_integrity()?;
        Ok(MetadataAnswer::Checked { entries })
    }

    /// An error with the names of file, table, volume and snapshot.
    pub fn describe(&self, error: &StoreError) -> String {
        let path = self.path.display();
        match error {
            StoreError::Row(RowError::Entry(EntryError::Crc { volume, lba, snapshot, .. })) => {
                let (volume, snapshot) = (self.volume_name(*volume), self.snapshot_name(*snapshot));
                format!(
                    "{path}: table captured: the entry of volume {volume} block {} for snapshot {snapshot} is not what was written there",
                    lba.0
                )
            }
            StoreError::Row(RowError::Blocks { run, snapshot, .. }) => {
                let (volume, snapshot) = (self.volume_name(run.volume), self.snapshot_name(*snapshot));
                let [first, last] = [0, RUN_BLOCKS as u32 - 1].map(|bit| run.block(bit).0);
                format!(
                    "{path}: table captured: the row of volume {volume} blocks {first} to {last} for snapshot {snapshot} is not what was written there"
                )
            }
            StoreError::Snapshot { number, name, .. } => format!(
                "{path}: table snapshots: the record of snapshot {name} ({number}) is not what was written there"
            ),
            error => format!("{path}: {error}"),
        }
    }

    fn volume_name(&self, volume: VolumeId) -> &str {
        self.names.volumes.get(usize::from(volume.0)).map_or("that does not exist", String::as_str)
    }

    fn snapshot_name(&self, snapshot: UpdateNumber) -> String {
        self.name_of(snapshot).map_or_else(
            || format!("{snapshot}, which was deleted or is damaged too"),
            |name| format!("{name} ({snapshot})"),
        )
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
        let only_reads = matches!(
            op,
            MetadataOp::LoadSnapshots { .. }
                | MetadataOp::LoadCaptured { .. }
                | MetadataOp::LookUp { .. }
                | MetadataOp::Changed { .. }
                | MetadataOp::Entries { .. }
                | MetadataOp::Check
                | MetadataOp::Lend { .. }
        );
        if !only_reads {
            return self.carry_out(op, pages);
        }
        // Pages that make no sense to the database may end in a panic of its own; who only reads is told, and nothing else happens.
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| self.carry_out(op, pages)));
        result.unwrap_or(Err(StoreError::Pages))
    }

    fn carry_out(
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
                    let word = self.counted.slots.get((slot / 64) as usize).copied().unwrap_or(0);
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
            MetadataOp::Entries { from } => self.entries(from, pages.answer()),
            MetadataOp::Check => self.check_file(),
            MetadataOp::Lend { page, applied } => self.lend(page, applied, pages.answer()),
            MetadataOp::LoadMarks { volume, chunk } => self.load_marks(volume, chunk, pages.answer()),
            MetadataOp::SaveMarks { base, pages: count } => self.save_marks(base, count as usize, pages),
            MetadataOp::DropMarks => self.drop_marks(),
            MetadataOp::TakeTables => self.take_tables(pages.page(1)),
        }
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
            self.counted = Counted::of(&transaction, &records)?;
            self.space.set(self.counted.needed.space(UpdateNumber(applied)));
        }
        let part = &records[first.min(records.len())..records.len().min(first + SNAPSHOTS_PAGE_MAX)];
        encode_snapshots(part.iter(), page);
        Ok(MetadataAnswer::Snapshots {
            count: part.len() as u32,
            total: records.len() as u32,
            applied: UpdateNumber(applied),
            entries: self.counted.entries,
        })
    }

    fn commit(
        &mut self,
        applied: UpdateNumber,
        count: usize,
        pages: &mut dyn RequestPages,
    ) -> Result<MetadataAnswer, StoreError> {
        pages.answer().fill(0);
        self.age_lent();
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
                            self.counted.needed.created(&record);
                            index += 1;
                        }
                        Change::Deleted(snapshot) => {
                            records.remove(snapshot.0)?;
                            self.counted.needed.deleted(snapshot);
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
            // By run, blocks share rows, and neighbours the table's pages. A block's captures stay in stream order: after a deletion, one
            // for an older snapshot may follow, and is redundant. Who needs an entry does not depend on whether that is asked before or
            // after snapshots of this commit come and go.
            let run_of = |index: &usize| Run::of(entries[*index].volume, entries[*index].lba);
            let mut by_run: Vec<usize> = (0..entries.len()).collect();
            by_run.sort_by_key(run_of);
            for part in by_run.chunk_by(|one, next| run_of(one) == run_of(next)) {
                give_way();
                let blocks = part.iter().fold(0, |word, &index| word | 1 << bit_of(entries[index].lba));
                let mut inserting = Inserting::begin(&captured, run_of(&part[0]), blocks)?;
                for &index in part {
                    let entry = &entries[index];
                    match inserting.insert(&captured, entry)? {
                        Insertion::New { since } => {
                            self.counted.needed.captured(entry.volume, since, entry.snapshot);
                        }
                        Insertion::There => {}
                        Insertion::Redundant => set_bit(pages.answer(), index as u64),
                    }
                }
                inserting.write(&mut captured)?;
            }
            transaction.open_table(NUMBERS)?.insert(APPLIED, applied.0)?;
        }
        transaction.commit()?;
        self.space.set(self.counted.needed.space(applied));
        Ok(MetadataAnswer::Committed)
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

pub(super) fn snapshots(transaction: &ReadTransaction) -> Result<Vec<SnapshotRecord>, StoreError> {
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

#[cfg(test)]
pub(super) mod tests;
