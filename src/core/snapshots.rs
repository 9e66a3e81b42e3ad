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
    /// Created, or else deleted.
    pub created: bool,
}

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
            pending: FixedQueue::new(2 * SNAPSHOTS_MAX),
        }
    }

    /// Places for new ones. What is deleted keeps its place until the management information follows.
    pub fn room(&self) -> usize {
        SNAPSHOTS_MAX - self.entries.len()
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
        self.pending.push(Pending { number, snapshot: number, created: true });
        self.changed();
    }

    /// The update `number` deletes `snapshot`, which lives.
    pub fn delete(&mut self, snapshot: UpdateNumber, number: UpdateNumber) {
        let index = self.entries.iter().position(|entry| entry.record.number == snapshot && entry.lives());
        self.entries[index.expect("only what lives is deleted")].deleted_at = number;
        self.pending.push(Pending { number, snapshot, created: false });
        self.changed();
    }

    /// Everything after `keep` is gone from the stream.
    pub fn cut(&mut self, keep: UpdateNumber) {
        while self.pending.back().is_some_and(|pending| pending.number > keep) {
            self.pending.pop_back();
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
        if !pending.created {
            self.entries.retain(|entry| entry.record.number != pending.snapshot);
        }
        !pending.created
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
    #[should_panic(expected = "only what lives")]
    fn nothing_is_deleted_twice() {
        let mut snapshots = Snapshots::new();
        snapshots.create(record(3, 1));
        snapshots.delete(UpdateNumber(3), UpdateNumber(4));
        snapshots.delete(UpdateNumber(3), UpdateNumber(5));
    }
}
