//! Tables that come from the peer page by page and take the place of a site's own, in one transaction.

use redb::WriteTransaction;

use super::captured::{CAPTURED, Rows};
use super::store::{APPLIED, SNAPSHOTS, Store, StoreError, insert_record};
use super::{NUMBERS, begin_write};
use crate::base::*;
use crate::core::messages::MetadataAnswer;
use crate::format::tables::{TablesKind, entry_at, header_of, record_at};

/// The transaction that they are put into, and the page that comes next.
pub(super) struct Taking {
    transaction: WriteTransaction,
    /// Of the run that came last: a page may end within it.
    rows: Rows,
    next: u32,
}

impl std::fmt::Debug for Taking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taking").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Store {
    pub(super) fn take_tables(&mut self, page: &[u8; BLOCK_BYTES]) -> Result<MetadataAnswer, StoreError> {
        let header = header_of(page)?;
        // A first page begins anew: whatever came of others is given up.
        let going_on = self.taking.take().filter(|_| header.index > 0);
        let mut taking = match going_on {
            Some(taking) => taking,
            None => {
                let transaction = begin_write(&self.database)?;
                transaction.delete_table(SNAPSHOTS)?;
                transaction.delete_table(CAPTURED)?;
                Taking { transaction, rows: Rows::default(), next: 0 }
            }
        };
        if header.index != taking.next {
            return Err(StoreError::TablesOrder { expected: taking.next, found: header.index });
        }
        taking.next += 1;
        {
            let mut records = taking.transaction.open_table(SNAPSHOTS)?;
            let mut captured = taking.transaction.open_table(CAPTURED)?;
            for row in 0..header.count {
                match header.kind {
                    TablesKind::Snapshots => {
                        insert_record(&mut records, &record_at(page, row)?)?;
                    }
                    TablesKind::Entries => {
                        taking.rows.put(&mut captured, &entry_at(page, row)?)?;
                    }
                }
            }
            if header.last {
                taking.rows.write(&mut captured)?;
            }
        }
        if header.last {
            taking.transaction.open_table(NUMBERS)?.insert(APPLIED, header.applied.0)?;
            taking.transaction.commit()?;
            // Pages that are being lent are of tables that are gone.
            self.lent = None;
        } else {
            self.taking = Some(taking);
        }
        Ok(MetadataAnswer::Taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::messages::MetadataOp;
    use crate::format::metadata::Captured;
    use crate::format::snapshot::{SnapshotName, SnapshotRecord};
    use crate::format::tables::{TablesHeader, put_entry, put_header, put_record};
    use crate::io::metadata::store::tests::Site;

    fn entry(lba: u64) -> Captured {
        let (volume, snapshot) = (VolumeId(0), UpdateNumber(3));
        Captured { volume, lba: Lba(lba), snapshot, slot: Slot(100 + lba), sum: BlockSum(9) }
    }

    /// Gives the site a page of tables of #8: the record of snapshot 3, or entries of these blocks.
    fn give(site: &mut Site, index: u32, blocks: std::ops::Range<u64>, last: bool) {
        let kind = if index == 0 { TablesKind::Snapshots } else { TablesKind::Entries };
        let count = if index == 0 { 1 } else { (blocks.end - blocks.start) as usize };
        let page = &mut site.row.0[1];
        put_header(page, &TablesHeader { applied: UpdateNumber(8), index, kind, count, last });
        match kind {
            TablesKind::Snapshots => {
                let (number, volumes) = (UpdateNumber(3), VolumeSet(1));
                let name = SnapshotName::new("copied");
                put_record(page, 0, &SnapshotRecord { number, volumes, name, ..SnapshotRecord::EMPTY });
            }
            TablesKind::Entries => {
                (0..).zip(blocks).for_each(|(at, lba)| put_entry(page, at, &entry(lba)));
            }
        }
        assert_eq!(site.ask(MetadataOp::TakeTables), MetadataAnswer::Taken);
    }

    #[test]
    fn tables_take_the_place_of_others_with_their_last_page() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut site = Site::with_a_snapshot(&folder);
        let has = |site: &mut Site| {
            let MetadataAnswer::Snapshots { total, applied, entries, .. } =
                site.ask(MetadataOp::LoadSnapshots { first: 0 })
            else {
                panic!("not loaded")
            };
            (total, applied.0, entries)
        };
        let before = has(&mut site);
        assert_ne!(before, (1, 8, 7));
        give(&mut site, 0, 0..0, false);
        give(&mut site, 1, 0..5, false);
        assert_eq!(has(&mut site), before, "not before the last page");
        // The copy was interrupted, and begins anew.
        give(&mut site, 0, 0..0, false);
        give(&mut site, 1, 0..4, false);
        give(&mut site, 2, 4..7, true);
        assert_eq!(has(&mut site), (1, 8, 7));
        let found: Vec<_> = (0..8).map(|lba| site.look_up(3, lba)).collect();
        let due: Vec<_> = (0..8).map(|lba| (lba < 7).then_some((3, 100 + lba))).collect();
        assert_eq!(found, due);
        // Once more, as after a crash.
        give(&mut site, 0, 0..0, false);
        give(&mut site, 1, 0..7, true);
        assert_eq!(has(&mut site), (1, 8, 7));
    }
}
