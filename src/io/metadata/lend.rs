//! Tables that are lent to the peer page by page, as they were at one moment.

use redb::{ReadOnlyTable, ReadableDatabase};

use super::NUMBERS;
use super::captured::{CAPTURED, Found, Key, rows_from};
use super::store::{APPLIED, Store, StoreError, snapshots};
use crate::base::*;
use crate::core::messages::MetadataAnswer;
use crate::format::metadata::Captured;
use crate::format::snapshot::SnapshotRecord;
use crate::format::tables::{
    TABLE_ENTRIES_MAX, TABLE_RECORDS_MAX, TablesHeader, TablesKind, put_entry, put_header, put_record,
};

/// Commits after which tables that are being lent are let go: until then nothing that they name is freed in the file. Whoever wants
/// more of them begins anew.
const LENT_COMMITS_MAX: usize = 1000;

/// Tables on their way to the peer, as they were at one moment.
pub(super) struct Lent {
    applied: UpdateNumber,
    records: Vec<SnapshotRecord>,
    captured: ReadOnlyTable<Key, &'static [u8]>,
    page: u32,
    /// Entries of a run that are in no page yet, by block and snapshot; and the rows of the runs after it.
    entries: std::vec::IntoIter<Captured>,
    next: Key,
    commits: usize,
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lent").field("applied", &self.applied).field("page", &self.page).finish()
    }
}

impl Lent {
    /// Whether there are entries that are in no page yet; those of a run are there then.
    fn has_more(&mut self) -> Result<bool, StoreError> {
        if self.entries.len() == 0 {
            self.entries = self.next_run()?.into_iter();
        }
        Ok(self.entries.len() > 0)
    }

    fn next_run(&mut self) -> Result<Vec<Captured>, StoreError> {
        let mut entries = Vec::new();
        let Some(first) = self.captured.range(self.next..)?.next() else { return Ok(entries) };
        let run = Found::of(first)?.row()?.run();
        let rows = rows_from(run, UpdateNumber::NONE);
        self.next = rows.end;
        for found in self.captured.range(rows)? {
            for entry in Found::of(found)?.row()?.entries() {
                entries.push(entry?);
            }
        }
        entries.sort_by_key(|entry| (entry.lba, entry.snapshot));
        Ok(entries)
    }
}

impl Store {
    fn begin_lending(&self, applied: UpdateNumber) -> Result<Lent, StoreError> {
        let transaction = self.database.begin_read()?;
        let committed = transaction.open_table(NUMBERS)?.get(APPLIED)?.map_or(0, |value| value.value());
        Ok(Lent {
            applied: applied.max(UpdateNumber(committed)),
            records: snapshots(&transaction)?,
            captured: transaction.open_table(CAPTURED)?,
            page: 0,
            entries: Vec::new().into_iter(),
            next: (0, 0, 0),
            commits: 0,
        })
    }

    pub(super) fn lend(
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
        while header.count < TABLE_ENTRIES_MAX && lent.has_more()? {
            for entry in lent.entries.by_ref().take(TABLE_ENTRIES_MAX - header.count) {
                put_entry(out, header.count, &entry);
                header.count += 1;
            }
        }
        header.last = !lent.has_more()?;
        put_header(out, &header);
        self.lent = (!header.last).then_some(lent);
        Ok(MetadataAnswer::Lent)
    }

    /// A commit begins.
    pub(super) fn age_lent(&mut self) {
        if let Some(lent) = &mut self.lent {
            lent.commits += 1;
        }
        self.lent = self.lent.take().filter(|lent| lent.commits <= LENT_COMMITS_MAX);
    }
}
