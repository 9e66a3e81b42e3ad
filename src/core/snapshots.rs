//! The snapshots of a group, as the stream has them: created and deleted at their numbers, and forgotten once the management
//! information has followed.

use crate::base::{FixedQueue, SNAPSHOTS_MAX, UpdateNumber, VOLUMES_MAX, VolumeId};
use crate::format::snapshot::SnapshotRecord;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub record: SnapshotRecord,
    /// The number that deletes it; `NONE` while it lives.
    pub deleted_at: UpdateNumber,
}

impl Snapshot {
    pub fn lives(&self) -> bool {
        self.deleted_at == UpdateNumber::NONE
    }
}

/// What the management information does not have yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    pub number: UpdateNumber,
    pub snapshot: UpdateNumber,
    pub change: PendingChange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingChange {
    Created,
    Deleted,
    /// Protected, or not any more; and what it was before.
    Protection {
        now: bool,
        before: bool,
    },
}

/// Changes of protection that may be pending at once: more than people make between two checkpoints.
const PROTECTIONS_MAX: usize = 2 * SNAPSHOTS_MAX;

#[derive(Debug)]
pub struct Snapshots {
    /// In the order of their numbers.
    entries: Vec<Snapshot>,
    /// By volume: the newest one that lives.
    newest: [UpdateNumber; VOLUMES_MAX],
    /// In stream order.
    pending: FixedQueue<Pending>,
}

impl Snapshots {
    pub fn new() -> Snapshots {
        Snapshots {
            entries: Vec::with_capacity(SNAPSHOTS_MAX),
            newest: [UpdateNumber::NONE; VOLUMES_MAX],
            // Each is created once and deleted once.
            pending: FixedQueue::new(2 * SNAPSHOTS_MAX + PROTECTIONS_MAX),
        }
    }

    /// Places for new ones. What is deleted keeps its place until the management information follows.
    pub fn room(&self) -> usize {
        SNAPSHOTS_MAX - self.entries.len()
    }

    /// Whether one more change of protection leaves room for every creation and deletion there can be.
    pub fn room_to_protect(&self) -> bool {
        self.pending.room() > 2 * SNAPSHOTS_MAX
    }

    /// The newest snapshot of the volume: what updates capture for. `NONE` without one.
    pub fn newest(&self, volume: VolumeId) -> UpdateNumber {
        self.newest[volume.0 as usize]
    }

    pub fn find(&self, number: UpdateNumber) -> Option<&Snapshot> {
        let index = self.entries.binary_search_by_key(&number, |snapshot| snapshot.record.number).ok()?;
        Some(&self.entries[index])
    }

    pub fn lives(&self, number: UpdateNumber) -> bool {
        self.find(number).is_some_and(Snapshot::lives)
    }

    /// Whether there is none, nor one whose deletion the management information does not have yet.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.pending.is_empty()
    }

    /// Those that live, oldest first.
    pub fn living(&self) -> impl Iterator<Item = &SnapshotRecord> {
        self.entries.iter().filter(|snapshot| snapshot.lives()).map(|snapshot| &snapshot.record)
    }

    fn changed(&mut self) {
        for (volume, newest) in self.newest.iter_mut().enumerate() {
            let of_volume = |snapshot: &&Snapshot| {
                snapshot.lives() && snapshot.record.volumes.contains(VolumeId(volume as u16))
            };
            let found = self.entries.iter().rev().find(of_volume);
            *newest = found.map_or(UpdateNumber::NONE, |snapshot| snapshot.record.number);
        }
    }

    /// One that the management information has already.
    pub fn load(&mut self, record: SnapshotRecord) {
        self.create(record);
        self.pending.pop_back();
    }

    /// Its number is above all others'.
    pub fn create(&mut self, record: SnapshotRecord) {
        let number = record.number;
        assert!(self.room() > 0, "more snapshots than {SNAPSHOTS_MAX}");
        assert!(
            self.entries.last().is_none_or(|last| last.record.number < number),
            "{number} comes too late"
        );
        self.entries.push(Snapshot { record, deleted_at: UpdateNumber::NONE });
        self.pending.push(Pending { number, snapshot: number, change: PendingChange::Created });
        self.changed();
    }

    /// The update `number` deletes `snapshot`, which lives.
    pub fn delete(&mut self, snapshot: UpdateNumber, number: UpdateNumber) {
        let index = self.entries.iter().position(|entry| entry.record.number == snapshot && entry.lives());
        self.entries[index.expect("only what lives is deleted")].deleted_at = number;
        self.pending.push(Pending { number, snapshot, change: PendingChange::Deleted });
        self.changed();
    }

    /// The update `number` protects `snapshot`, which lives, or ends that.
    pub fn protect(&mut self, snapshot: UpdateNumber, number: UpdateNumber, now: bool) {
        let entry = self.entries.iter_mut().find(|entry| entry.record.number == snapshot && entry.lives());
        let entry = entry.expect("only what lives is protected");
        let before = std::mem::replace(&mut entry.record.protected, now);
        self.pending.push(Pending { number, snapshot, change: PendingChange::Protection { now, before } });
    }

    /// What the `index`th pending change created: as it was then, whatever has been changed since.
    pub fn created(&self, index: usize) -> SnapshotRecord {
        let number = self.pending.get(index).expect("it is pending").snapshot;
        let record = self.find(number).expect("pending, so it is there").record;
        let later = (index + 1..).map_while(|at| self.pending.get(at)).filter(|it| it.snapshot == number);
        let mut protections = later.filter_map(|pending| match pending.change {
            PendingChange::Protection { before, .. } => Some(before),
            _ => None,
        });
        SnapshotRecord { protected: protections.next().unwrap_or(record.protected), ..record }
    }

    /// Everything after `keep` is gone from the stream.
    pub fn cut(&mut self, keep: UpdateNumber) {
        while let Some(pending) = self.pending.back().copied().filter(|pending| pending.number > keep) {
            self.pending.pop_back();
            let entry = self.entries.iter_mut().find(|entry| entry.record.number == pending.snapshot);
            if let (PendingChange::Protection { before, .. }, Some(entry)) = (pending.change, entry) {
                entry.record.protected = before;
            }
        }
        while self.entries.last().is_some_and(|entry| entry.record.number > keep) {
            self.entries.pop();
        }
        for entry in self.entries.iter_mut().filter(|entry| entry.deleted_at > keep) {
            entry.deleted_at = UpdateNumber::NONE;
        }
        self.changed();
    }

    /// The oldest change that the management information lacks.
    pub fn pending(&self, index: usize) -> Option<&Pending> {
        self.pending.get(index)
    }

    /// The management information has the oldest change. Returns whether it deleted a snapshot.
    pub fn committed(&mut self) -> bool {
        let pending = self.pending.pop().expect("what was committed was pending");
        let deleted = pending.change == PendingChange::Deleted;
        if deleted {
            self.entries.retain(|entry| entry.record.number != pending.snapshot);
        }
        deleted
    }
}

impl Default for Snapshots {
    fn default() -> Snapshots {
        Snapshots::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::VolumeSet;

    fn record(number: u64, volumes: u32) -> SnapshotRecord {
        SnapshotRecord { number: UpdateNumber(number), volumes: VolumeSet(volumes), ..SnapshotRecord::EMPTY }
    }

    #[test]
    fn the_newest_of_each_volume_is_known_through_creating_deleting_and_cutting() {
        let mut snapshots = Snapshots::new();
        let newest = |snapshots: &Snapshots| [0, 1].map(|volume| snapshots.newest(VolumeId(volume)).0);
        snapshots.load(record(3, 0b01));
        assert_eq!((newest(&snapshots), snapshots.pending(0)), ([3, 0], None));
        snapshots.create(record(5, 0b11));
        assert_eq!(newest(&snapshots), [5, 5]);
        snapshots.delete(UpdateNumber(5), UpdateNumber(8));
        assert_eq!(newest(&snapshots), [3, 0]);
        assert_eq!(snapshots.living().count(), 1);
        snapshots.cut(UpdateNumber(7));
        assert_eq!(newest(&snapshots), [5, 5]);
        snapshots.cut(UpdateNumber(4));
        assert_eq!((newest(&snapshots), snapshots.pending(0)), ([3, 0], None));
        snapshots.delete(UpdateNumber(3), UpdateNumber(6));
        assert_eq!(snapshots.room(), SNAPSHOTS_MAX - 1);
        assert!(snapshots.committed());
        assert_eq!((snapshots.room(), snapshots.find(UpdateNumber(3))), (SNAPSHOTS_MAX, None));
    }

    #[test]
    fn protection_is_what_it_was_at_each_number() {
        let mut snapshots = Snapshots::new();
        snapshots.create(record(3, 1));
        for (number, now) in [(4, true), (5, false), (6, true)] {
            snapshots.protect(UpdateNumber(3), UpdateNumber(number), now);
        }
        let protected =
            |snapshots: &Snapshots| snapshots.find(UpdateNumber(3)).expect("there").record.protected;
        assert!(protected(&snapshots) && !snapshots.created(0).protected, "not yet when it was taken");
        snapshots.cut(UpdateNumber(5));
        assert!(!protected(&snapshots));
        snapshots.cut(UpdateNumber(4));
        assert!(protected(&snapshots));
        assert!(!snapshots.committed(), "the creation");
        assert!(!snapshots.committed(), "the protection");
        assert_eq!(snapshots.pending(0), None);
    }

    #[test]
    #[should_panic(expected = "only what lives")]
    fn nothing_is_deleted_twice() {
        let mut snapshots = Snapshots::new();
        snapshots.create(record(3, 1));
        snapshots.delete(UpdateNumber(3), UpdateNumber(4));
        snapshots.delete(UpdateNumber(3), UpdateNumber(5));
    }
}
