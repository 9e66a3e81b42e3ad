use super::*;
use crate::core::messages::{MetadataFault, MetadataOp};
use crate::format::tables::{TablesHeader, header_of};
use crate::io::metadata::Metadata;
use crate::io::metadata::store::tests::Site;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::panic::catch_unwind;

/// On both sides of where runs meet, and apart.
const BLOCKS: [u64; 8] = [0, 1, 62, 63, 64, 65, 127, 300];

fn entry(volume: u16, lba: u64, snapshot: u64, slot: u64) -> Captured {
    let (volume, snapshot) = (VolumeId(volume), UpdateNumber(snapshot));
    Captured { volume, lba: Lba(lba), snapshot, slot: Slot(slot), sum: BlockSum(slot as u32 ^ 77) }
}

/// What the table is to say, an entry at a time.
#[derive(Clone, Debug, Default)]
struct Model {
    living: BTreeSet<u64>,
    /// By volume, block and snapshot.
    entries: BTreeMap<Key, Captured>,
}

impl Model {
    fn first_from(&self, volume: u16, lba: u64, snapshot: u64) -> Option<Captured> {
        let range = (volume, lba, snapshot)..=(volume, lba, u64::MAX);
        self.entries.range(range).next().map(|(_, entry)| *entry)
    }

    /// Returns which captures are redundant.
    fn commit(&mut self, changes: &[Change]) -> Vec<bool> {
        let mut redundant = Vec::new();
        for change in changes {
            match *change {
                Change::Captured(entry) => {
                    let key = (entry.volume.0, entry.lba.0, entry.snapshot.0);
                    let kept = self.first_from(key.0, key.1, key.2);
                    let there = |kept: Captured| (kept.snapshot, kept.slot) == (entry.snapshot, entry.slot);
                    redundant.push(kept.is_some_and(|kept| !there(kept)));
                    if kept.is_none() {
                        self.entries.insert(key, entry);
                    }
                }
                Change::Created(number) => drop(self.living.insert(number.0)),
                Change::Deleted(number) => drop(self.living.remove(&number.0)),
                Change::Protected(..) => {}
            }
        }
        redundant
    }

    /// Returns the slots of what nobody needs.
    fn reclaim(&mut self) -> BTreeSet<u64> {
        let keys: Vec<Key> = self.entries.keys().copied().collect();
        let mut freed = BTreeSet::new();
        let mut before = (0, 0, 0);
        for key in keys {
            let since = if (before.0, before.1) == (key.0, key.1) { before.2 } else { 0 };
            if self.living.range(since + 1..=key.2).next().is_none() {
                freed.insert(self.entries.remove(&key).expect("listed above").slot.0);
            }
            before = key;
        }
        freed
    }
}

/// A pass over everything: its slots, each freed once, and how many steps it takes.
fn reclaim(site: &mut Site) -> (BTreeSet<u64>, usize) {
    let (mut freed, mut steps) = (BTreeSet::new(), 0);
    let mut from = Some((VolumeId(0), Lba(0)));
    while let Some((volume, lba)) = from {
        let MetadataAnswer::Reclaimed { freed: count, next } = site.ask(MetadataOp::Reclaim { volume, lba })
        else {
            panic!("not reclaimed")
        };
        let slots = (0..count as usize).map(|index| slot_at(&site.row.0[0], index).0);
        slots.for_each(|slot| assert!(freed.insert(slot), "slot {slot} twice"));
        (from, steps) = (next, steps + 1);
    }
    (freed, steps)
}

fn bits_in(page: &[u8; BLOCK_BYTES]) -> Vec<u64> {
    (0..BITS_PAGE_MAX).filter(|&bit| bit_at(page, bit)).collect()
}

/// Whatever can be asked of the table is as the model has it.
fn compare(site: &mut Site, model: &Model) {
    assert_eq!(site.entries(), model.entries.values().copied().collect::<Vec<_>>());
    let numbers: BTreeSet<u64> = model.entries.keys().flat_map(|key| [key.2, key.2 + 1]).collect();
    for volume in [0, 1] {
        for &number in &numbers {
            let (snapshot, volume) = (UpdateNumber(number), VolumeId(volume));
            // Across three runs, from within the first.
            site.ask(MetadataOp::LookUp { snapshot, volume, lba: Lba(60), count: 75 });
            for index in 0..75 {
                let due = model.first_from(volume.0, 60 + index as u64, number);
                let due = due.map(|Captured { snapshot, slot, sum, .. }| Kept { snapshot, slot, sum });
                assert_eq!(kept_at(&site.row.0[0], index), due, "block {} from #{number}", 60 + index);
            }
            for before in numbers.iter().copied().chain([u64::MAX]) {
                let before = UpdateNumber(before);
                let (lba, count) = (Lba(1), 200);
                site.ask(MetadataOp::Changed { since: snapshot, before, volume, lba, count });
                let first = |lba| model.first_from(volume.0, lba, number);
                let changed = |bit: &u64| first(1 + bit).is_some_and(|entry| entry.snapshot < before);
                let due: Vec<u64> = (0..200).filter(changed).collect();
                assert_eq!(bits_in(&site.row.0[0]), due, "from #{number} to {before}");
            }
            site.ask(MetadataOp::LoadCaptured { volume, since: snapshot, first: Lba(1) });
            let due: Vec<u64> =
                (0..1000).filter(|bit| model.first_from(volume.0, 1 + bit, number).is_some()).collect();
            assert_eq!(bits_in(&site.row.0[0]), due, "from #{number}");
        }
    }
    let loaded = site.ask(MetadataOp::LoadSnapshots { first: 0 });
    let MetadataAnswer::Snapshots { entries, .. } = loaded else { panic!("not loaded") };
    assert_eq!(entries, model.entries.len() as u64);
    site.ask(MetadataOp::LoadSlots { first: Slot(0) });
    let slots: BTreeSet<u64> = model.entries.values().map(|entry| entry.slot.0).collect();
    assert_eq!(bits_in(&site.row.0[0]), slots.into_iter().collect::<Vec<_>>());
}

/// Gives another site the tables of this one, page by page.
fn copy(site: &mut Site, to: &mut Site) {
    let mut page = 0;
    loop {
        site.ask(MetadataOp::Lend { page, applied: UpdateNumber(0) });
        let TablesHeader { last, .. } = header_of(&site.row.0[0]).expect("a page");
        to.row.0[1] = site.row.0[0];
        to.ask(MetadataOp::TakeTables);
        page += 1;
        if last {
            break;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn the_table_says_what_a_model_says_that_has_an_entry_a_row(
        acts in prop::collection::vec(
            (0u8..20, any::<prop::sample::Index>(), 0u16..2, prop::sample::select(&BLOCKS[..])),
            1..200,
        ),
    ) {
        let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let [mut site, mut other] = [0, 1].map(|at| Site::new(&folders[at]));
        let mut model = Model::default();
        // What lives once the changes are committed that are to be.
        let mut living: Vec<u64> = Vec::new();
        let (mut changes, mut last) = (Vec::new(), Vec::new());
        for (number, (act, index, volume, lba)) in (1u64..).zip(acts) {
            match (act, living.last()) {
                (0 | 1, _) => {
                    living.push(number);
                    changes.push(Change::Created(UpdateNumber(number)));
                }
                (2, Some(_)) => {
                    let gone = living.remove(index.index(living.len()));
                    changes.push(Change::Deleted(UpdateNumber(gone)));
                }
                (3 | 4, _) => {
                    // Some of them once more, as after a crash.
                    if act == 4 {
                        changes.extend(last.iter().filter(|change| matches!(change, Change::Captured(_))));
                    }
                    prop_assert_eq!(site.commit(number, &changes), model.commit(&changes));
                    last = std::mem::take(&mut changes);
                }
                (5, _) => {
                    prop_assert_eq!(reclaim(&mut site).0, model.reclaim());
                    // What was freed is not captured again.
                    last.clear();
                }
                (_, Some(&newest)) => changes.push(Change::Captured(entry(volume, lba, newest, number))),
                (_, None) => {}
            }
            // A commit's pages are few here.
            if changes.len() > 12 {
                prop_assert_eq!(site.commit(number, &changes), model.commit(&changes));
                last = std::mem::take(&mut changes);
            }
        }
        compare(&mut site, &model);
        copy(&mut site, &mut other);
        compare(&mut other, &model);
        prop_assert_eq!(reclaim(&mut other).0, model.reclaim());
        compare(&mut other, &model);
    }
}

/// Each of these snapshots keeps each of these blocks.
fn kept_by_all(site: &mut Site, snapshots: impl Iterator<Item = u64>, blocks: std::ops::Range<u64>) {
    let blocks: Vec<u64> = blocks.collect();
    let mut slot = 0;
    for snapshot in snapshots {
        site.commit(snapshot, &[Change::Created(UpdateNumber(snapshot))]);
        for part in blocks.chunks(CHANGES_PAGE_MAX) {
            let captured = |(slot, lba): (u64, &u64)| Change::Captured(entry(0, *lba, snapshot, slot));
            let changes: Vec<_> = (slot..).zip(part).map(captured).collect();
            assert!(site.commit(snapshot, &changes).iter().all(|redundant| !redundant));
            slot += part.len() as u64;
        }
    }
}

#[test]
fn what_fills_more_than_an_answer_is_freed_once_and_nothing_else_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut site = Site::new(&folder);
    // A run of 16 rows, in one of which the answer fills, and some of the next run.
    kept_by_all(&mut site, 1..=16, 4..70);
    let gone: Vec<u64> = (2..=16).filter(|number| number % 8 != 0).collect();
    let deleted: Vec<_> = gone.iter().map(|&number| Change::Deleted(UpdateNumber(number))).collect();
    for part in deleted.chunks(10) {
        site.commit(20, part);
    }
    let entries = site.entries().into_iter().map(|entry| ((0, entry.lba.0, entry.snapshot.0), entry));
    let mut model = Model { living: [1, 8, 16].into(), entries: entries.collect() };
    let due = model.reclaim();
    assert!(due.len() > SLOTS_PAGE_MAX, "{} of one answer", due.len());
    assert_eq!(reclaim(&mut site), (due, 2));
    compare(&mut site, &model);
    assert_eq!(model.entries.len(), 3 * 66);
}

#[test]
fn a_step_of_a_pass_ends_where_a_run_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut site = Site::new(&folder);
    kept_by_all(&mut site, 3..=4, 0..3000);
    let reclaim =
        |site: &mut Site, lba: u64| site.ask(MetadataOp::Reclaim { volume: VolumeId(0), lba: Lba(lba) });
    let next = Some((VolumeId(0), Lba(RECLAIM_STEP as u64 / 2)));
    assert_eq!(reclaim(&mut site, 0), MetadataAnswer::Reclaimed { freed: 0, next });
    assert_eq!(reclaim(&mut site, 2048), MetadataAnswer::Reclaimed { freed: 0, next: None });
}

#[test]
fn pages_that_make_no_sense_fail_the_reads_that_need_them_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("metadata.redb");
    let mut site = Site::new(&folder);
    kept_by_all(&mut site, 3..=3, 0..2000);
    drop(site);
    let whole = std::fs::read(&path).expect("read");
    let mut flipped = whole.clone();
    let first = entry(0, 0, 3, 0).value();
    let at = (0..whole.len() - first.len()).filter(|at| whole[*at..].starts_with(&first));
    for leaf in at.map(|at| at / BLOCK_BYTES * BLOCK_BYTES).collect::<BTreeSet<_>>() {
        // Where its first value ends.
        flipped[leaf + 7] ^= 0x40;
    }
    std::fs::write(&path, &flipped).expect("written");
    let mut row = Site::new(&tempfile::tempdir().expect("a folder")).row;
    let store = catch_unwind(|| Metadata::open(&path).expect("opened").into_store());
    let mut store = store.expect("what is damaged is not read yet");
    let volume = VolumeId(0);
    let look_up = |lba| MetadataOp::LookUp { snapshot: UpdateNumber(1), volume, lba: Lba(lba), count: 1 };
    let lend = MetadataOp::Lend { page: 0, applied: UpdateNumber(0) };
    store.perform(&lend, &mut row).expect("snapshots only");
    for op in [
        look_up(0),
        MetadataOp::Changed {
            since: UpdateNumber(1),
            before: UpdateNumber(9),
            volume,
            lba: Lba(0),
            count: 1,
        },
        MetadataOp::LoadCaptured { volume, since: UpdateNumber(1), first: Lba(0) },
        MetadataOp::LoadSnapshots { first: 0 },
        MetadataOp::Lend { page: 1, applied: UpdateNumber(0) },
    ] {
        let error = store.perform(&op, &mut row).expect_err("damaged");
        assert_eq!(error.fault(), MetadataFault::Corrupt, "{op:?}");
        assert!(store.describe(&error).contains("metadata.redb: its pages make no sense"), "{error}");
    }
    store.perform(&look_up(1999), &mut row).expect("in another page");
    assert_eq!(kept_at(&row.0[0], 0).map(|kept| kept.slot), Some(Slot(1999)));
    let mut site = Site { store, row };
    assert_eq!(site.commit(9, &[Change::Captured(entry(0, 1999, 3, 5000))]), [true]);
    assert_eq!(site.commit(9, &[Change::Captured(entry(0, 2500, 3, 5000))]), [false]);
}
