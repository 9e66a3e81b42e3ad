use super::*;
use crate::format::snapshot::SnapshotName;
use crate::format::tables::TABLE_ENTRIES_MAX;
use crate::io::metadata::captured::Found;
use proptest::prelude::*;

/// Pages of a request here: a creation takes two, and each commit has some.
const PAGES: usize = 32;

pub struct Row(pub Vec<[u8; BLOCK_BYTES]>);

impl RequestPages for Row {
    fn answer(&mut self) -> &mut [u8; BLOCK_BYTES] {
        &mut self.0[0]
    }
    fn page(&self, index: usize) -> &[u8; BLOCK_BYTES] {
        &self.0[index]
    }
}

fn record(number: u64) -> SnapshotRecord {
    SnapshotRecord {
        number: UpdateNumber(number),
        taken_at_ns: 0,
        volumes: VolumeSet(3),
        protected: false,
        name: SnapshotName::new("a"),
    }
}

fn captured(lba: u64, snapshot: u64, slot: u64) -> Change {
    let (lba, snapshot, slot) = (Lba(lba), UpdateNumber(snapshot), Slot(slot));
    Change::Captured(Captured { volume: VolumeId(0), lba, snapshot, slot, sum: BlockSum(7) })
}

pub struct Site {
    pub store: Store,
    pub row: Row,
}

impl Site {
    pub fn new(folder: &tempfile::TempDir) -> Site {
        let database = Database::create(folder.path().join("metadata.redb")).expect("created");
        let transaction = database.begin_write().expect("begun");
        super::super::make_tables(&transaction).expect("made");
        transaction.commit().expect("committed");
        let names = TableNames { volumes: vec!["data".to_owned()] };
        let store = Store::new(database, folder.path().join("metadata.redb"), names);
        Site { store, row: Row(vec![[0xdb; BLOCK_BYTES]; PAGES]) }
    }

    /// With one that keeps a block.
    pub fn with_a_snapshot(folder: &tempfile::TempDir) -> Site {
        let mut site = Site::new(folder);
        site.commit(5, &[Change::Created(UpdateNumber(4)), captured(1, 4, 0)]);
        site
    }

    pub fn ask(&mut self, op: MetadataOp) -> MetadataAnswer {
        self.store.perform(&op, &mut self.row).expect("carried out")
    }

    /// Commits and returns which captures were redundant.
    pub fn commit(&mut self, applied: u64, changes: &[Change]) -> Vec<bool> {
        let (mut page, mut at) = (1, 0);
        for change in changes {
            put_change(&mut self.row.0[page], at, change);
            at += 1;
            if let Change::Created(number) = change {
                encode_snapshots([record(number.0)].iter(), &mut self.row.0[page + 1]);
                (page, at) = (page + 2, 0);
            }
        }
        let pages = if at == 0 { page - 1 } else { page };
        let op = MetadataOp::Commit { applied: UpdateNumber(applied), pages: pages as u32 };
        assert_eq!(self.ask(op), MetadataAnswer::Committed);
        let captures = changes.iter().filter(|change| matches!(change, Change::Captured(_))).count() as u64;
        (0..captures).map(|bit| bit_at(&self.row.0[0], bit)).collect()
    }

    pub fn look_up(&mut self, snapshot: u64, lba: u64) -> Option<(u64, u64)> {
        let (snapshot, lba) = (UpdateNumber(snapshot), Lba(lba));
        self.ask(MetadataOp::LookUp { snapshot, volume: VolumeId(0), lba, count: 2 });
        kept_at(&self.row.0[0], 0).map(|kept| (kept.snapshot.0, kept.slot.0))
    }

    /// What the table has, in the order in which entries are lent.
    pub fn entries(&self) -> Vec<Captured> {
        let transaction = self.store.database.begin_read().expect("begun");
        let mut entries = Vec::new();
        for found in transaction.open_table(CAPTURED).expect("opened").iter().expect("read") {
            let found = Found::of(found).expect("read");
            entries.extend(found.row().expect("a row").entries().map(|entry| entry.expect("an entry")));
        }
        entries.sort_by_key(|entry| (entry.volume, entry.lba, entry.snapshot));
        entries
    }

    fn reclaim(&mut self) -> Vec<u64> {
        let op = MetadataOp::Reclaim { volume: VolumeId(0), lba: Lba(0) };
        let MetadataAnswer::Reclaimed { freed, next: None } = self.ask(op) else { panic!("not one step") };
        (0..freed as usize).map(|index| slot_at(&self.row.0[0], index).0).collect()
    }
}

#[test]
fn what_was_committed_is_found_and_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut site = Site::new(&folder);
    let first = [Change::Created(UpdateNumber(3)), captured(5, 3, 70), captured(6, 3, 1)];
    assert_eq!(site.commit(9, &first), [false, false]);
    // The same again after a crash, another slot for what is kept already, and a later snapshot.
    let again =
        [captured(5, 3, 70), captured(6, 3, 2), Change::Created(UpdateNumber(11)), captured(5, 11, 9)];
    assert_eq!(site.commit(12, &again), [false, true, false]);
    assert_eq!([site.look_up(3, 5), site.look_up(4, 5)], [Some((3, 70)), Some((11, 9))]);
    assert_eq!([site.look_up(3, 6), site.look_up(4, 6), site.look_up(3, 7)], [Some((3, 1)), None, None]);
    let loaded = site.ask(MetadataOp::LoadSnapshots { first: 0 });
    let applied = UpdateNumber(12);
    assert_eq!(loaded, MetadataAnswer::Snapshots { count: 2, total: 2, applied, entries: 3 });
    site.ask(MetadataOp::LoadSlots { first: Slot(0) });
    let used: Vec<u64> = (0..BITS_PAGE_MAX).filter(|&bit| bit_at(&site.row.0[0], bit)).collect();
    assert_eq!(used, [1, 9, 70]);
    let since = UpdateNumber(11);
    site.ask(MetadataOp::LoadCaptured { volume: VolumeId(0), since, first: Lba(5) });
    assert!(bit_at(&site.row.0[0], 0) && !bit_at(&site.row.0[0], 1));
    let mut changed = |since: u64, before: u64| {
        let (since, before) = (UpdateNumber(since), UpdateNumber(before));
        site.ask(MetadataOp::Changed { since, before, volume: VolumeId(0), lba: Lba(4), count: 3 });
        (0..4).filter(|&bit| bit_at(&site.row.0[0], bit)).map(|bit| bit + 4).collect::<Vec<_>>()
    };
    assert_eq!([changed(3, 11), changed(4, 11), changed(3, u64::MAX)], [vec![5, 6], vec![], vec![5, 6]]);
    assert_eq!([changed(11, 12), changed(12, u64::MAX), changed(2, 3)], [vec![5], vec![], vec![]]);
}

#[test]
fn a_deleted_snapshot_leaves_what_older_ones_need() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut site = Site::new(&folder);
    let [three, five, eight] = [3, 5, 8].map(|number| Change::Created(UpdateNumber(number)));
    site.commit(9, &[three, captured(0, 3, 30), five]);
    site.commit(9, &[captured(0, 5, 50), captured(1, 5, 51), eight, captured(0, 8, 80)]);
    assert!(site.reclaim().is_empty());
    site.commit(10, &[Change::Deleted(UpdateNumber(5))]);
    assert_eq!(site.look_up(3, 1), Some((5, 51)), "kept for a snapshot that is gone, needed by an older one");
    assert_eq!(site.reclaim(), [50]);
    assert_eq!(site.look_up(3, 1), Some((5, 51)));
    // What is kept for a later one makes a capture for an older one redundant, though that has no entry of its own.
    site.commit(11, &[Change::Deleted(UpdateNumber(8))]);
    assert_eq!(site.reclaim(), [80]);
    assert_eq!(site.commit(12, &[captured(1, 3, 31)]), [true]);
    site.commit(13, &[Change::Deleted(UpdateNumber(3))]);
    assert_eq!(site.reclaim(), [30, 51]);
}

#[test]
fn what_a_deleted_snapshot_keeps_is_not_kept_again_by_the_same_commit() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut site = Site::new(&folder);
    let [three, five] = [3, 5].map(|number| Change::Created(UpdateNumber(number)));
    let deleted = Change::Deleted(UpdateNumber(5));
    let redundant = site.commit(9, &[three, five, captured(7, 5, 50), deleted, captured(7, 3, 30)]);
    assert_eq!(redundant, [false, true]);
    assert_eq!(site.look_up(3, 7), Some((5, 50)), "what it was at #3, not what was written after #5");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn tables_are_the_same_however_changes_are_cut_into_commits(
        acts in prop::collection::vec((0u8..8, any::<prop::sample::Index>(), 0u64..2), 1..60),
        cuts in prop::collection::vec(1usize..12, 60),
    ) {
        let (mut changes, mut living) = (Vec::new(), Vec::new());
        for (number, (act, index, lba)) in (1u64..).zip(acts) {
            match (act, living.last()) {
                (0 | 1, _) => {
                    living.push(number);
                    changes.push(Change::Created(UpdateNumber(number)));
                }
                (2 | 3, Some(_)) => {
                    let gone = living.remove(index.index(living.len()));
                    changes.push(Change::Deleted(UpdateNumber(gone)));
                }
                // Whatever the block's mark says: marks may be missing.
                (_, Some(&newest)) => changes.push(captured(lba, newest, number)),
                (_, None) => {}
            }
        }
        let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let [mut one, mut many] = [0, 1].map(|at| Site::new(&folders[at]));
        let mut redundant = [Vec::new(), Vec::new()];
        let mut left = changes.as_slice();
        for (applied, cut) in (1u64..).zip(cuts) {
            let (now, rest) = left.split_at(cut.min(left.len()));
            redundant[0].extend(one.commit(applied, now));
            left = rest;
        }
        for (applied, change) in (1u64..).zip(&changes) {
            redundant[1].extend(many.commit(applied, std::slice::from_ref(change)));
        }
        prop_assert_eq!(&redundant[0], &redundant[1]);
        prop_assert_eq!(one.entries(), many.entries());
    }
}

#[test]
fn a_flipped_bit_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut site = Site::new(&folder);
    site.commit(9, &[Change::Created(UpdateNumber(3)), captured(69, 3, 70)]);
    let mut damaged = |at: usize, named: &str| {
        let transaction = site.store.database.begin_write().expect("begun");
        {
            let mut table = transaction.open_table(CAPTURED).expect("opened");
            let mut value = table.get((0, 1, 3)).expect("read").expect("there").value().to_vec();
            value[at] ^= 1;
            table.insert((0, 1, 3), value.as_slice()).expect("written");
        }
        transaction.commit().expect("committed");
        let op = MetadataOp::LoadSnapshots { first: 0 };
        let error = site.store.perform(&op, &mut site.row).expect_err("damaged");
        assert_eq!(error.fault(), MetadataFault::Corrupt);
        assert_eq!(site.store.check().map_err(|error| error.to_string()), Err(error.to_string()));
        let said = site.store.describe(&error);
        let named = ["metadata.redb: table captured", named, "snapshot a (#3)"];
        assert!(named.iter().all(|name| said.contains(name)), "{said}");
    };
    let of_its_entry = 12;
    damaged(of_its_entry, "entry of volume data block 69");
    damaged(0, "row of volume data blocks 64 to 127");
}

#[test]
fn tables_are_lent_as_they_were_when_that_began() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut site = Site::new(&folder);
    let entries: Vec<Change> = (0..250).map(|lba| captured(lba, 3, lba + 1000)).collect();
    site.commit(3, &[Change::Created(UpdateNumber(3))]);
    for (index, part) in entries.chunks(100).enumerate() {
        site.commit(4 + index as u64, part);
    }
    let lend = |site: &mut Site, page: u32| {
        site.ask(MetadataOp::Lend { page, applied: UpdateNumber(5) });
        let header = crate::format::tables::header_of(&site.row.0[0]).expect("a page");
        (header.index, header.applied.0, header.count, header.last)
    };
    assert_eq!(lend(&mut site, 0), (0, 6, 1, false));
    assert_eq!(lend(&mut site, 1), (1, 6, TABLE_ENTRIES_MAX, false));
    site.commit(9, &[Change::Deleted(UpdateNumber(3)), captured(777, 3, 9)]);
    assert_eq!(site.reclaim().len(), 251);
    assert_eq!(lend(&mut site, 2), (2, 6, TABLE_ENTRIES_MAX, false));
    assert_eq!(lend(&mut site, 3), (3, 6, 250 - 2 * TABLE_ENTRIES_MAX, true));
    assert_eq!(
        crate::format::tables::entry_at(&site.row.0[0], 0).map(|entry| (entry.lba.0, entry.slot.0)),
        Ok((200, 1200))
    );
    // Whoever asks for something else begins anew, with what there is now.
    assert_eq!(lend(&mut site, 2), (0, 9, 0, true));
}
