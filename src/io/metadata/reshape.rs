//! What the tables say of a site whose journal or volumes become others while it does not run, in one transaction.

use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};

use super::captured::{CAPTURED, Found, Key, rows_of};
use super::marks::CHANGED;
use super::store::{SNAPSHOTS, StoreError, insert_record, snapshots};
use super::{Metadata, MetadataError, NAMES, NUMBERS, SiteRecord, VOLUMES, begin_write, put_volumes};
use crate::base::*;
use crate::format::metadata::{Captured, put_marks, take_marks};
use crate::format::runs::{RowChange, Run};
use crate::format::snapshot::SnapshotRecord;

/// The place that each of the volumes that there were has from now on, if it is still one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places(Vec<Option<u16>>);

impl Places {
    /// Of volumes that keep theirs.
    pub fn kept(volumes: usize) -> Places {
        Places((0..volumes as u16).map(Some).collect())
    }

    /// Of volumes of which only some are kept, in their order.
    pub fn kept_if(volumes: impl Iterator<Item = bool>) -> Places {
        let mut next = 0..;
        Places(volumes.map(|kept| kept.then(|| next.next().expect("it has no end"))).collect())
    }

    /// Those of the volumes that are kept, by the places that they have.
    pub fn only_kept<T>(&self, volumes: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
        self.0.iter().zip(volumes).filter(|(place, _)| place.is_some()).map(|(_, volume)| volume)
    }

    fn of(&self, volume: u16) -> Option<u16> {
        self.0.get(usize::from(volume)).copied().flatten()
    }

    /// The same of the differential volume's slots, which are marked as the blocks of one more volume behind the last.
    fn of_marked(&self, volume: u16, volumes: usize) -> Option<u16> {
        if usize::from(volume) == self.0.len() { Some(volumes as u16) } else { self.of(volume) }
    }
}

/// What the names of volumes begin with that were removed.
const REMOVED: &str = "removed/";

impl Metadata {
    pub fn snapshots(&self) -> Result<Vec<SnapshotRecord>, MetadataError> {
        let read = || snapshots(&self.database.begin_read()?);
        read().map_err(|error| self.failed_to(error))
    }

    /// Whether the site had a volume of this name once, which was removed.
    pub fn has_removed(&self, name: &str) -> Result<bool, MetadataError> {
        let read = || {
            let names = self.database.begin_read()?.open_table(NAMES)?;
            Ok(names.get(format!("{REMOVED}{name}").as_str())?.is_some())
        };
        read().map_err(|error| self.failed_to(error))
    }

    fn failed_to(&self, error: StoreError) -> MetadataError {
        match error {
            StoreError::Database(error) => Metadata::failed(&self.path, *error),
            error => MetadataError::Damaged { what: format!("{}: {error}", self.path.display()) },
        }
    }

    /// The site is this one from here on, durably.
    pub fn reshape(&self, record: &SiteRecord, places: &Places) -> Result<(), MetadataError> {
        reshape(&self.database, record, places).map_err(|error| self.failed_to(error))
    }
}

fn reshape(database: &Database, record: &SiteRecord, places: &Places) -> Result<(), StoreError> {
    let transaction = begin_write(database)?;
    transaction.open_table(NUMBERS)?.insert("journal_blocks", record.journal_blocks)?;
    note_removed(&transaction, places)?;
    transaction.open_table(VOLUMES)?.retain(|_, _| false)?;
    put_volumes(&transaction, &record.volumes).map_err(|error| StoreError::Database(Box::new(error)))?;
    move_snapshots(&transaction, places)?;
    move_captured(&transaction, places)?;
    move_marks(&transaction, record.volumes.len(), places)?;
    transaction.commit()?;
    Ok(())
}

/// Another volume of that name at one site could be taken for the old one at the other.
fn note_removed(transaction: &WriteTransaction, places: &Places) -> Result<(), StoreError> {
    let (volumes, mut names) = (transaction.open_table(VOLUMES)?, transaction.open_table(NAMES)?);
    for (place, _) in (0..).zip(&places.0).filter(|(_, new)| new.is_none()) {
        if let Some(volume) = volumes.get(place)? {
            let (name, _) = volume.value();
            names.insert(format!("{REMOVED}{name}").as_str(), "")?;
        }
    }
    Ok(())
}

fn move_snapshots(transaction: &WriteTransaction, places: &Places) -> Result<(), StoreError> {
    let mut table = transaction.open_table(SNAPSHOTS)?;
    let mut moved = Vec::new();
    for found in table.iter()? {
        let (_, bytes) = found?;
        let record = SnapshotRecord::decode(bytes.value())?;
        let volumes = (0..VOLUMES_MAX as u16).filter(|volume| record.volumes.contains(VolumeId(*volume)));
        let set = volumes.filter_map(|volume| places.of(volume)).fold(0, |set, place| set | 1 << place);
        if set != record.volumes.0 {
            moved.push(SnapshotRecord { volumes: VolumeSet(set), ..record });
        }
    }
    for record in &moved {
        insert_record(&mut table, record)?;
    }
    Ok(())
}

/// As [`move_marks`]. What is left of a volume that goes is garbage.
fn move_captured(transaction: &WriteTransaction, places: &Places) -> Result<(), StoreError> {
    let mut captured = transaction.open_table(CAPTURED)?;
    for old in 0..places.0.len() as u16 {
        let new = places.of(old);
        if new == Some(old) {
            continue;
        }
        while let Some((run, snapshot, entries)) = first_row(&captured, old)? {
            captured.remove((old, run.index, snapshot.0))?;
            if let Some(volume) = new.map(VolumeId) {
                let mut moved = RowChange::new(Run { volume, ..run }, snapshot);
                entries.iter().for_each(|entry| moved.put(&Captured { volume, ..*entry }));
                captured.insert((volume.0, run.index, snapshot.0), moved.value().as_slice())?;
            }
        }
    }
    Ok(())
}

type FirstRow = (Run, UpdateNumber, Vec<Captured>);

fn first_row(
    captured: &impl ReadableTable<Key, &'static [u8]>,
    volume: u16,
) -> Result<Option<FirstRow>, StoreError> {
    let Some(found) = captured.range(rows_of(volume))?.next() else { return Ok(None) };
    let found = Found::of(found)?;
    let row = found.row()?;
    let entries = row.entries().collect::<Result<Vec<Captured>, _>>()?;
    Ok(Some((row.run(), row.snapshot(), entries)))
}

/// Volumes only move towards places that are free by then: those behind one that goes, in their order; or the slots alone, behind new ones.
fn move_marks(transaction: &WriteTransaction, volumes: usize, places: &Places) -> Result<(), StoreError> {
    let mut changed = transaction.open_table(CHANGED)?;
    for old in 0..=places.0.len() as u16 {
        let new = places.of_marked(old, volumes);
        if new == Some(old) {
            continue;
        }
        let mut next = 0;
        loop {
            let found = changed.range((old, next)..(old + 1, 0))?.next().transpose()?;
            let Some(page) = found.map(|(_, page)| *page.value()) else { break };
            let (_, chunk, words) = take_marks(&page).ok_or(StoreError::Marks)?;
            changed.remove((old, chunk))?;
            if let Some(new) = new {
                let mut moved = [0; BLOCK_BYTES];
                put_marks(&mut moved, VolumeId(new), chunk, &words.collect::<Vec<u64>>());
                changed.insert((new, chunk), &moved)?;
            }
            next = chunk + 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::VolumeSpec;
    use crate::core::messages::{MetadataAnswer, MetadataOp};
    use crate::io::metadata::store::tests::{Row, Site};
    use crate::io::metadata::tests::record as metadata_record;

    fn record(volumes: &[&str]) -> SiteRecord {
        let volume = |name: &&str| VolumeSpec { name: (*name).to_owned(), blocks: 100 };
        SiteRecord { volumes: volumes.iter().map(volume).collect(), ..metadata_record() }
    }

    /// A file with this record, and a set of marks: volume, chunk and first word of each page.
    fn marked(path: &std::path::Path, volumes: &[&str], marks: &[(u16, u64, u64)]) {
        drop(Metadata::create(path, &record(volumes)).expect("created"));
        let store = Metadata::open(path).expect("opened").into_store();
        let mut site = Site { store, row: Row(vec![[0; BLOCK_BYTES]; 8]) };
        for (index, (volume, chunk, word)) in marks.iter().enumerate() {
            put_marks(&mut site.row.0[index + 1], VolumeId(*volume), *chunk, &[*word]);
        }
        let op = MetadataOp::SaveMarks { base: UpdateNumber(8), pages: marks.len() as u32 };
        assert_eq!(site.ask(op), MetadataAnswer::Saved);
    }

    fn marks(metadata: &Metadata) -> Vec<(u16, u64, u64)> {
        let transaction = metadata.database.begin_read().expect("begun");
        let table = transaction.open_table(CHANGED).expect("opened");
        let pages = table.iter().expect("read").map(|found| {
            let (key, page) = found.expect("read");
            let (volume, chunk, mut words) = take_marks(page.value()).expect("a page");
            assert_eq!(key.value(), (volume.0, chunk));
            (volume.0, chunk, words.next().expect("a word"))
        });
        pages.collect()
    }

    #[test]
    fn slots_stay_behind_the_last_volume() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metadata.redb");
        marked(&path, &["data", "log"], &[(0, 3, 5), (1, 0, 6), (2, 0, 7), (2, 9, 8)]);
        let metadata = Metadata::open(&path).expect("opened");
        metadata.reshape(&record(&["data", "log", "more", "most"]), &Places::kept(2)).expect("reshaped");
        assert_eq!(metadata.record().expect("whole"), record(&["data", "log", "more", "most"]));
        assert_eq!(marks(&metadata), [(0, 3, 5), (1, 0, 6), (4, 0, 7), (4, 9, 8)]);
        // The same again, as after an interruption.
        metadata.reshape(&record(&["data", "log", "more", "most"]), &Places::kept(4)).expect("reshaped");
        assert_eq!(marks(&metadata), [(0, 3, 5), (1, 0, 6), (4, 0, 7), (4, 9, 8)]);
    }

    #[test]
    fn what_is_known_of_volumes_behind_one_that_goes_moves_with_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metadata.redb");
        let entry = |volume: u16, lba: u64, slot: u64| Captured {
            volume: VolumeId(volume),
            lba: Lba(lba),
            snapshot: UpdateNumber(7),
            slot: Slot(slot),
            sum: BlockSum(5),
        };
        let of = |volumes: u32| SnapshotRecord {
            number: UpdateNumber(7),
            volumes: VolumeSet(volumes),
            name: crate::format::snapshot::SnapshotName::new("nightly"),
            ..SnapshotRecord::EMPTY
        };
        let marks_before = [(0, 3, 5), (1, 0, 6), (2, 0, 7), (2, 9, 8), (3, 0, 9), (4, 1, 10)];
        marked(&path, &["data", "log", "more", "most"], &marks_before);
        let metadata = Metadata::open(&path).expect("opened");
        // The volume that goes has garbage only.
        let mut entries = vec![entry(0, 1, 0), entry(1, 1, 1), entry(2, 1, 2)];
        entries.extend((0..200).map(|lba| entry(3, lba * 3, 10 + lba)));
        metadata.fill(UpdateNumber(9), &[of(0b1101)], &entries).expect("filled");
        let places = Places::kept_if([true, false, true, true].into_iter());
        metadata.reshape(&record(&["data", "more", "most"]), &places).expect("reshaped");
        assert_eq!(metadata.record().expect("whole"), record(&["data", "more", "most"]));
        assert_eq!(metadata.snapshots().expect("read"), [of(0b111)]);
        assert_eq!(marks(&metadata), [(0, 3, 5), (1, 0, 7), (1, 9, 8), (2, 0, 9), (3, 1, 10)]);
        assert!(metadata.has_removed("log").expect("read") && !metadata.has_removed("more").expect("read"));
        let mut due = vec![entry(0, 1, 0), entry(1, 1, 2)];
        due.extend((0..200).map(|lba| entry(2, lba * 3, 10 + lba)));
        let transaction = metadata.database.begin_read().expect("begun");
        let table = transaction.open_table(CAPTURED).expect("opened");
        let rows = table.iter().expect("read").map(|found| Found::of(found).expect("read"));
        let found: Vec<Captured> = rows
            .flat_map(|found| {
                let entries = found.row().expect("a row").entries().collect::<Result<Vec<_>, _>>();
                entries.expect("entries")
            })
            .collect();
        assert_eq!(found, due);
    }
}
