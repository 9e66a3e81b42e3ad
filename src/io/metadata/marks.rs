//! The changed-block set of a primary that is, or was, alone: its pages in redb.

use redb::{ReadableDatabase, TableDefinition};

use super::store::{RequestPages, Store, StoreError};
use super::{NUMBERS, begin_write};
use crate::base::*;
use crate::core::messages::MetadataAnswer;
use crate::format::metadata::take_marks;

/// Pages of the changed-block set, by volume and place.
const CHANGED: TableDefinition<(u16, u64), &[u8; BLOCK_BYTES]> = TableDefinition::new("changed");

const CHANGED_BASE: &str = "changed_base";
const CHANGED_PLAIN: &str = "changed_plain";

impl Store {
    pub(super) fn load_marks(
        &self,
        volume: VolumeId,
        chunk: u64,
        page: &mut [u8; BLOCK_BYTES],
    ) -> Result<MetadataAnswer, StoreError> {
        let transaction = self.database.begin_read()?;
        let numbers = transaction.open_table(NUMBERS)?;
        let Some(base) = numbers.get(CHANGED_BASE)?.map(|value| UpdateNumber(value.value())) else {
            return Ok(MetadataAnswer::Marks { set: None, found: false });
        };
        let plain = numbers.get(CHANGED_PLAIN)?.is_some_and(|value| value.value() == 1);
        let set = Some((base, plain));
        let found = transaction.open_table(CHANGED)?.range((volume.0, chunk)..)?.next();
        let Some(found) = found else { return Ok(MetadataAnswer::Marks { set, found: false }) };
        *page = *found?.1.value();
        Ok(MetadataAnswer::Marks { set, found: true })
    }

    pub(super) fn save_marks(
        &self,
        base: UpdateNumber,
        plain: bool,
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
            numbers.insert(CHANGED_BASE, base.0)?;
            numbers.insert(CHANGED_PLAIN, u64::from(plain))?;
        }
        transaction.commit()?;
        Ok(MetadataAnswer::Saved)
    }

    pub(super) fn drop_marks(&self) -> Result<MetadataAnswer, StoreError> {
        let transaction = begin_write(&self.database)?;
        {
            transaction.delete_table(CHANGED)?;
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.remove(CHANGED_BASE)?;
            numbers.remove(CHANGED_PLAIN)?;
        }
        transaction.commit()?;
        Ok(MetadataAnswer::Saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::messages::MetadataOp;
    use crate::format::metadata::put_marks;
    use crate::io::metadata::store::tests::Site;

    #[test]
    fn a_changed_block_set_is_kept_until_it_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut site = Site::new(&folder);
        let load = |site: &mut Site, volume: u16, chunk: u64| {
            site.ask(MetadataOp::LoadMarks { volume: VolumeId(volume), chunk })
        };
        let nothing = MetadataAnswer::Marks { set: None, found: false };
        assert_eq!(load(&mut site, 0, 0), nothing);
        site.ask(MetadataOp::DropMarks);
        put_marks(&mut site.row.0[1], VolumeId(0), 3, &[5]);
        put_marks(&mut site.row.0[2], VolumeId(1), 0, &[u64::MAX]);
        let save =
            |base: u64, pages: u32| MetadataOp::SaveMarks { base: UpdateNumber(base), plain: true, pages };
        assert_eq!(site.ask(save(8, 2)), MetadataAnswer::Saved);
        let set = Some((UpdateNumber(8), true));
        assert_eq!(load(&mut site, 0, 0), MetadataAnswer::Marks { set, found: true });
        let read =
            take_marks(&site.row.0[0]).map(|(volume, chunk, mut words)| (volume.0, chunk, words.next()));
        assert_eq!(read, Some((0, 3, Some(5))));
        assert_eq!(load(&mut site, 0, 4), MetadataAnswer::Marks { set, found: true });
        assert_eq!(take_marks(&site.row.0[0]).map(|(volume, chunk, _)| (volume.0, chunk)), Some((1, 0)));
        assert_eq!(load(&mut site, 1, 1), MetadataAnswer::Marks { set, found: false });
        put_marks(&mut site.row.0[1], VolumeId(0), 3, &[7]);
        site.ask(save(9, 1));
        let set = Some((UpdateNumber(9), true));
        assert_eq!(load(&mut site, 0, 0), MetadataAnswer::Marks { set, found: true });
        assert_eq!(take_marks(&site.row.0[0]).and_then(|(.., mut words)| words.next()), Some(7));
        site.ask(MetadataOp::DropMarks);
        assert_eq!(load(&mut site, 0, 0), nothing);
    }
}
