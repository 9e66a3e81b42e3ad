//! The changed-block set of a primary that is, or was, alone: its pages in redb.

use std::panic::AssertUnwindSafe;
use std::path::Path;

use redb::{ReadableDatabase, ReadableTable, TableDefinition};

use super::store::{RequestPages, Store, StoreError};
use super::{Metadata, MetadataError, NUMBERS, begin_write};
use crate::base::*;
use crate::core::messages::MetadataAnswer;
use crate::format::metadata::take_marks;

/// Pages of the changed-block set, by volume and place.
pub(super) const CHANGED: TableDefinition<(u16, u64), &[u8; BLOCK_BYTES]> = TableDefinition::new("changed");

const CHANGED_AFTER: &str = "changed_after";

impl Store {
    pub(super) fn load_marks(
        &self,
        volume: VolumeId,
        chunk: u64,
        page: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        let transaction = self.database.begin_read()?;
        let numbers = transaction.open_table(NUMBERS)?;
        let Some(base) = numbers.get(CHANGED_AFTER)?.map(|value| UpdateNumber(value.value())) else {
            return Ok(MetadataAnswer::Marks { base: None, found: false });
        };
        let base = Some(base);
        let found = transaction.open_table(CHANGED)?.range((volume.0, chunk)..)?.next();
        let Some(found) = found else { return Ok(MetadataAnswer::Marks { base, found: false }) };
        *page = *found?.1.value();
        Ok(MetadataAnswer::Marks { base, found: true })
    }

    pub(super) fn save_marks(
        &self,
        base: UpdateNumber,
        count: usize,
        pages: &mut dyn RequestPages,
    ) -> Result<MetadataAnswer, StoreError> {
        let transaction = begin_write(&self.database)?;
        {
            let mut changed = transaction.open_table(CHANGED)?;
            for index in 1..=count {
                let page = pages.page(index);
                let (volume, chunk, _) = take_marks(page).ok_or(StoreError::Marks)?;
                changed.insert((volume.0, chunk), page)?;
            }
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert(CHANGED_AFTER, base.0)?;
        }
        transaction.commit()?;
        Ok(MetadataAnswer::Saved)
    }

    pub(super) fn drop_marks(&self) -> Result<MetadataAnswer, StoreError> {
        let transaction = begin_write(&self.database)?;
        {
            transaction.delete_table(CHANGED)?;
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.remove(CHANGED_AFTER)?;
        }
        transaction.commit()?;
        Ok(MetadataAnswer::Saved)
    }
}

/// All of a set: where it begins, and its pages.
#[derive(Debug)]
pub struct ChangedSet {
    base: UpdateNumber,
    pages: Vec<[u8; BLOCK_BYTES]>,
}

impl Metadata {
    /// The set of a file that may be damaged, if there is one and each page of it is what was written.
    pub fn changed_set(path: &Path) -> Option<ChangedSet> {
        // Pages that make no sense to the database may end in a panic of its own.
        let read =
            std::panic::catch_unwind(AssertUnwindSafe(|| Metadata::open(path).ok()?.read_changed_set().ok()));
        read.ok()??.filter(|set| set.pages.iter().all(|page| take_marks(page).is_some()))
    }

    fn read_changed_set(&self) -> Result<Option<ChangedSet>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let base =
            transaction.open_table(NUMBERS)?.get(CHANGED_AFTER)?.map(|value| UpdateNumber(value.value()));
        let Some(base) = base else { return Ok(None) };
        let mut pages = Vec::new();
        for page in transaction.open_table(CHANGED)?.iter()? {
            pages.push(*page?.1.value());
        }
        Ok(Some(ChangedSet { base, pages }))
    }

    /// Puts the set of another file into this one.
    pub fn take_changed_set(&self, set: &ChangedSet) -> Result<(), MetadataError> {
        let put = || -> Result<(), redb::Error> {
            let transaction = begin_write(&self.database)?;
            {
                let mut changed = transaction.open_table(CHANGED)?;
                for page in &set.pages {
                    if let Some((volume, chunk, _)) = take_marks(page) {
                        changed.insert((volume.0, chunk), page)?;
                    }
                }
                transaction.open_table(NUMBERS)?.insert(CHANGED_AFTER, set.base.0)?;
            }
            Ok(transaction.commit()?)
        };
        put().map_err(|error| Metadata::failed(&self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::messages::MetadataOp;
    use crate::format::metadata::{Captured, put_marks};
    use crate::io::metadata::store::tests::Site;

    #[test]
    fn a_changed_block_set_is_kept_until_it_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut site = Site::new(&folder);
        let load = |site: &mut Site, volume: u16, chunk: u64| {
            site.ask(MetadataOp::LoadMarks { volume: VolumeId(volume), chunk })
        };
        let nothing = MetadataAnswer::Marks { base: None, found: false };
        assert_eq!(load(&mut site, 0, 0), nothing);
        site.ask(MetadataOp::DropMarks);
        put_marks(&mut site.row.0[1], VolumeId(0), 3, &[5]);
        put_marks(&mut site.row.0[2], VolumeId(1), 0, &[u64::MAX]);
        let save = |base: u64, pages: u32| MetadataOp::SaveMarks { base: UpdateNumber(base), pages };
        assert_eq!(site.ask(save(8, 2)), MetadataAnswer::Saved);
        let base = Some(UpdateNumber(8));
        assert_eq!(load(&mut site, 0, 0), MetadataAnswer::Marks { base, found: true });
        let read =
            take_marks(&site.row.0[0]).map(|(volume, chunk, mut words)| (volume.0, chunk, words.next()));
        assert_eq!(read, Some((0, 3, Some(5))));
        assert_eq!(load(&mut site, 0, 4), MetadataAnswer::Marks { base, found: true });
        assert_eq!(take_marks(&site.row.0[0]).map(|(volume, chunk, _)| (volume.0, chunk)), Some((1, 0)));
        assert_eq!(load(&mut site, 1, 1), MetadataAnswer::Marks { base, found: false });
        put_marks(&mut site.row.0[1], VolumeId(0), 3, &[7]);
        site.ask(save(9, 1));
        let base = Some(UpdateNumber(9));
        assert_eq!(load(&mut site, 0, 0), MetadataAnswer::Marks { base, found: true });
        assert_eq!(take_marks(&site.row.0[0]).and_then(|(.., mut words)| words.next()), Some(7));
        site.ask(MetadataOp::DropMarks);
        assert_eq!(load(&mut site, 0, 0), nothing);
    }

    #[test]
    fn a_set_is_taken_over_from_a_damaged_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metadata.redb");
        let mut site = Site::with_a_snapshot(&folder);
        put_marks(&mut site.row.0[1], VolumeId(0), 3, &[5]);
        site.ask(MetadataOp::SaveMarks { base: UpdateNumber(8), pages: 1 });
        drop(site);
        let mut bytes = std::fs::read(&path).expect("read");
        // The entry that the snapshot's block has.
        let value = Captured {
            volume: VolumeId(0),
            lba: Lba(1),
            snapshot: UpdateNumber(4),
            slot: Slot(0),
            sum: BlockSum(7),
        }
        .value();
        for at in 0..bytes.len() - value.len() {
            if bytes[at..].starts_with(&value) {
                bytes[at] ^= 1;
            }
        }
        std::fs::write(&path, &bytes).expect("written");
        let set = Metadata::changed_set(&path).expect("a set");
        let folder = tempfile::tempdir().expect("a folder");
        drop(Site::new(&folder));
        let path = folder.path().join("metadata.redb");
        assert!(Metadata::changed_set(&path).is_none());
        Metadata::open(&path).expect("opened").take_changed_set(&set).expect("taken");
        let taken = Metadata::changed_set(&path).expect("a set");
        assert_eq!((taken.base, taken.pages.len()), (UpdateNumber(8), 1));
        assert_eq!(taken.pages, set.pages);
    }
}
