//! What snapshots keep: how many blocks each of them needs that no other one does. Kept with every commit, so that asking
//! costs nothing, and read by the control plane, which is no reactor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::base::*;
use crate::format::snapshot::SnapshotRecord;

/// What the snapshots of a group keep, as of a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Every update up to here is counted, and none after it.
    pub applied: UpdateNumber,
    /// By snapshot: blocks that deleting it alone would set free. Those without any are left out.
    pub alone: Vec<(UpdateNumber, u64)>,
}

impl Space {
    /// Blocks that deleting this snapshot alone would set free.
    pub fn of(&self, snapshot: UpdateNumber) -> u64 {
        let found = self.alone.binary_search_by_key(&snapshot, |(number, _)| *number);
        found.map_or(0, |index| self.alone[index].1)
    }
}

/// Where the metadata thread leaves what it has counted.
#[derive(Clone, Debug, Default)]
pub struct SharedSpace(Arc<Mutex<Space>>);

impl SharedSpace {
    pub fn get(&self) -> Space {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, space: Space) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = space;
    }
}

/// Entries, counted by who needs them. A block's entry is found by the snapshots after the block's entry before it, and up to its
/// own; so two numbers say who they are, however many there are between, and removing what no snapshot needs changes nothing.
#[derive(Debug, Default)]
pub(super) struct Needed {
    /// By volume: the snapshots that live.
    living: BTreeMap<u16, BTreeSet<u64>>,
    /// By volume, oldest and newest snapshot that needs it.
    entries: BTreeMap<(u16, u64, u64), u64>,
}

impl Needed {
    pub fn created(&mut self, record: &SnapshotRecord) {
        for volume in (0..VOLUMES_MAX as u16).filter(|&volume| record.volumes.contains(VolumeId(volume))) {
            self.living.entry(volume).or_default().insert(record.number.0);
        }
    }

    /// What this one alone needed is nobody's any more; the rest is its neighbours'.
    pub fn deleted(&mut self, snapshot: UpdateNumber) {
        let snapshot = snapshot.0;
        for (&volume, living) in &mut self.living {
            if !living.remove(&snapshot) {
                continue;
            }
            let at_an_end = |(oldest, newest): (u64, u64)| oldest == snapshot || newest == snapshot;
            let range = (volume, 0, 0)..(volume + 1, 0, 0);
            let keys: Vec<_> = self
                .entries
                .range(range)
                .map(|(key, _)| *key)
                .filter(|key| at_an_end((key.1, key.2)))
                .collect();
            for key in keys {
                let count = self.entries.remove(&key).expect("listed above");
                if let Some(needed) = needed_by(living, key.1..=key.2) {
                    *self.entries.entry((volume, needed.0, needed.1)).or_default() += count;
                }
            }
        }
    }

    /// An entry for `snapshot`; the block's entry before it is for `since`.
    pub fn captured(&mut self, volume: VolumeId, since: UpdateNumber, snapshot: UpdateNumber) {
        let needed =
            self.living.get(&volume.0).and_then(|living| needed_by(living, since.0 + 1..=snapshot.0));
        if let Some((oldest, newest)) = needed {
            *self.entries.entry((volume.0, oldest, newest)).or_default() += 1;
        }
    }

    pub fn space(&self, applied: UpdateNumber) -> Space {
        let mut alone: BTreeMap<u64, u64> = BTreeMap::new();
        for (&(_, oldest, newest), count) in &self.entries {
            if oldest == newest {
                *alone.entry(oldest).or_default() += count;
            }
        }
        let alone = alone.into_iter().map(|(snapshot, count)| (UpdateNumber(snapshot), count));
        Space { applied, alone: alone.collect() }
    }
}

/// The oldest and the newest of those that live within the range.
fn needed_by(living: &BTreeSet<u64>, range: std::ops::RangeInclusive<u64>) -> Option<(u64, u64)> {
    let mut needed = living.range(range);
    let oldest = *needed.next()?;
    Some((oldest, needed.next_back().copied().unwrap_or(oldest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every block of two volumes: the snapshots its entries are for.
    #[derive(Default)]
    struct Model {
        living: BTreeMap<u64, u32>,
        entries: BTreeMap<(u16, u64), BTreeSet<u64>>,
    }

    impl Model {
        /// Entries that somebody needs, if `without` did not live.
        fn needed(&self, without: u64) -> usize {
            let mut needed = 0;
            for (&(volume, _), entries) in &self.entries {
                let mut since = 0;
                for &entry in entries {
                    let finds = |(&number, volumes): (&u64, &u32)| {
                        number != without && volumes >> volume & 1 == 1 && number > since && number <= entry
                    };
                    needed += usize::from(self.living.iter().any(finds));
                    since = entry;
                }
            }
            needed
        }
    }

    proptest! {
        #[test]
        fn what_deleting_a_snapshot_gives_back_is_known(
            acts in prop::collection::vec((0u8..8, any::<prop::sample::Index>(), 1u32..4, 0u64..6), 1..120),
        ) {
            let (mut needed, mut model) = (Needed::default(), Model::default());
            for (number, (act, index, volumes, lba)) in (1u64..).zip(acts) {
                match act {
                    0 => {
                        let (snapshot, volumes_of) = (UpdateNumber(number), VolumeSet(volumes));
                        needed.created(&SnapshotRecord {
                            number: snapshot,
                            volumes: volumes_of,
                            ..SnapshotRecord::EMPTY
                        });
                        model.living.insert(number, volumes);
                    }
                    1 if !model.living.is_empty() => {
                        let gone = *model.living.keys().nth(index.index(model.living.len())).expect("one lives");
                        needed.deleted(UpdateNumber(gone));
                        model.living.remove(&gone);
                    }
                    // Captured for the newest snapshot of the volume, once.
                    _ => {
                        let volume = (volumes % 2) as u16;
                        let newest = model.living.iter().rev().find(|(_, volumes)| *volumes >> volume & 1 == 1);
                        let Some((&newest, _)) = newest else { continue };
                        let entries = model.entries.entry((volume, lba)).or_default();
                        let since = entries.last().copied().unwrap_or(0);
                        if since < newest {
                            entries.insert(newest);
                            needed.captured(VolumeId(volume), UpdateNumber(since), UpdateNumber(newest));
                        }
                    }
                }
                let space = needed.space(UpdateNumber(number));
                for &snapshot in model.living.keys() {
                    let frees = model.needed(0) - model.needed(snapshot);
                    prop_assert_eq!(space.of(UpdateNumber(snapshot)), frees as u64, "snapshot {}", snapshot);
                }
                prop_assert!(space.alone.iter().all(|(snapshot, _)| model.living.contains_key(&snapshot.0)));
            }
        }
    }
}
