//! The auditor and snapshots: what each must hold, whether that is kept before it is overwritten, and what readers of it got.

use crate::sim::audit::journal::{
    KIND_SNAPSHOT_CREATE, KIND_SNAPSHOT_DELETE, KIND_SNAPSHOT_PROTECT, KIND_SNAPSHOT_UNPROTECT, Seen,
    snapshot_protected, snapshot_volumes,
};
use crate::sim::audit::{Auditor, BlockHistory, Entry, Media, Op, OpKind, Place};
use crate::sim::content::{Content, Print};

#[derive(Clone, Copy, Debug)]
pub(super) struct SnapshotSeen {
    number: u64,
    volumes: u32,
    deleted_at: Option<u64>,
}

impl SnapshotSeen {
    fn has(&self, volume: u16) -> bool {
        self.volumes >> volume & 1 == 1
    }

    /// Whether whoever has this much of the stream has it.
    pub(super) fn is_there_at(&self, upto: u64) -> bool {
        self.number <= upto && self.deleted_at.is_none_or(|deleted| deleted > upto)
    }

    fn lives_at(&self, number: u64) -> bool {
        self.number < number && self.deleted_at.is_none_or(|deleted| deleted > number)
    }
}

/// What the payload of an update says of a snapshot.
pub(super) fn record_of(seen: &Seen, blocks: &[Content]) -> Option<(Print, u32, bool)> {
    let Content { print, bytes } = blocks.first().filter(|_| seen.kind == KIND_SNAPSHOT_CREATE)?;
    let data = bytes.as_deref().expect("a snapshot's record is nothing that a host wrote");
    Some((*print, snapshot_volumes(data), snapshot_protected(data)))
}

impl BlockHistory {
    /// What the block held at a number.
    fn print_at(&self, number: u64) -> Print {
        let version = self.versions.iter().rev().find(|version| version.number <= number);
        version.map_or(Print::ZERO, |version| version.content.print)
    }
}

impl Auditor {
    /// An update enters the stream: what it overwrites first since the volume's newest snapshot must have a slot.
    pub(super) fn check_captures(&self, seen: &Seen) {
        let newest = self.snapshots.iter().rev().find(|snapshot| {
            seen.touches() > 0 && snapshot.has(seen.volume) && snapshot.lives_at(seen.number)
        });
        let Some(newest) = newest else {
            assert!(seen.slot == 0, "{seen:?} captures for no snapshot");
            return;
        };
        for lba in seen.lba..seen.lba + seen.touches() as u64 {
            let block = &self.blocks[usize::from(seen.volume)][lba as usize];
            assert!(
                seen.slot > 0 || block.latest_at(u64::MAX) > newest.number,
                "INV-3: {seen:?} overwrites block {lba}, which #{} needs, and captures nothing",
                newest.number
            );
        }
    }

    /// An update goes to the link, perhaps with what it overwrites. That is what the stream says the blocks held; and it is with it
    /// if the sites agreed on that and the primary had it in memory: it numbered the update itself, was not alone, and has not
    /// recorded it as kept yet.
    pub fn sends_old(
        &mut self,
        site: usize,
        seen: &Seen,
        old: Option<&Vec<Print>>,
        live: bool,
        media: &dyn Media,
    ) {
        let in_force = self.stream.get(seen.number as usize - 1);
        let in_force = in_force.filter(|entry| entry.seen.generation == seen.generation);
        let Some(entry) = in_force.filter(|_| site == self.leader) else {
            // One that was superseded and does not know it yet: its peer will not take it.
            return;
        };
        let Some(old) = old else {
            let its_own = entry.known_ops.start == self.first_op[site];
            let before = |(at, _): &&(u64, bool)| *at <= seen.number;
            let alone = self.solo.iter().rev().find(before).is_some_and(|(_, begins)| *begins);
            let excused = alone || self.unread[site] || media.applied() >= seen.number;
            let due = self.config.by_value && live && seen.slot > 0 && its_own;
            assert!(!due || excused, "{seen:?} goes to the secondary without what it overwrites");
            return;
        };
        assert!(self.config.by_value, "old blocks of {seen:?} by value");
        assert!(seen.slot > 0 && old.len() == seen.touches(), "{} old blocks of {seen:?}", old.len());
        for (lba, print) in (seen.lba..).zip(old) {
            let due = self.blocks[usize::from(seen.volume)][lba as usize].print_at(seen.number - 1);
            assert!(
                *print == due,
                "INV-8: {seen:?} is sent with {} as what block {lba} held before, not {}",
                print.describe(),
                due.describe()
            );
        }
        self.sent_by_value += 1;
    }

    /// A read of a site's disk fails.
    pub fn reads_fail(&mut self, site: usize) {
        self.unread[site] = true;
    }

    pub(super) fn note_snapshot(&mut self, entry: &Entry) {
        let seen = &entry.seen;
        match seen.kind {
            KIND_SNAPSHOT_CREATE => {
                let (_, volumes, _) = entry.record.expect("a creation has a record");
                self.snapshots.push(SnapshotSeen { number: seen.number, volumes, deleted_at: None });
            }
            KIND_SNAPSHOT_DELETE => {
                assert!(
                    self.unwanted.contains(&seen.lba) || !self.protected_at(seen.lba, seen.number),
                    "{seen:?} deletes a protected snapshot to make room"
                );
                let alive = |snapshot: &&mut SnapshotSeen| {
                    snapshot.number == seen.lba && snapshot.deleted_at.is_none()
                };
                let Some(deleted) = self.snapshots.iter_mut().find(alive) else {
                    panic!("{seen:?} deletes a snapshot that is not there");
                };
                deleted.deleted_at = Some(seen.number);
            }
            _ => (),
        }
    }

    /// Whether the stream has protected the snapshot before a number.
    fn protected_at(&self, snapshot: u64, number: u64) -> bool {
        let before = &self.stream[..(number as usize - 1).min(self.stream.len())];
        let since = before.get(snapshot as usize - 1..).unwrap_or_default();
        let last = since.iter().rev().find(|entry| match entry.seen.kind {
            KIND_SNAPSHOT_PROTECT | KIND_SNAPSHOT_UNPROTECT => entry.seen.lba == snapshot,
            _ => false,
        });
        match last {
            Some(entry) => entry.seen.kind == KIND_SNAPSHOT_PROTECT,
            None => since.first().and_then(|entry| entry.record).is_some_and(|(_, _, protected)| protected),
        }
    }

    /// An administrator asks for the snapshot's deletion.
    pub fn unwanted(&mut self, snapshot: u64) {
        self.unwanted.insert(snapshot);
    }

    pub(super) fn forget_snapshots(&mut self, first: u64) {
        self.snapshots.retain(|snapshot| snapshot.number < first);
        for snapshot in &mut self.snapshots {
            snapshot.deleted_at = snapshot.deleted_at.filter(|deleted| *deleted < first);
        }
    }

    /// Whether the block may be overwritten with version `number` (INV-3): every snapshot that needs what it held has it,
    /// durably, and the entry that says where.
    pub(super) fn check_needs(
        &self,
        volume: u16,
        lba: u64,
        number: u64,
        media: &dyn Media,
    ) -> Result<(), String> {
        let block = &self.blocks[usize::from(volume)][lba as usize];
        for snapshot in self.snapshots.iter().filter(|snapshot| snapshot.has(volume)) {
            let gone = snapshot.deleted_at.is_some_and(|deleted| deleted <= media.applied());
            if !snapshot.lives_at(number) || gone {
                continue;
            }
            let due = block.print_at(snapshot.number);
            let Some(slot) = media.kept(volume, lba, snapshot.number) else {
                return Err(format!("INV-3: snapshot #{} needs the block and has no entry", snapshot.number));
            };
            let kept =
                media.durable(Place::Differential, slot).map_or(Print::ZERO, |stored| stored.content.print);
            // A bit has flipped since it was written, as the auditor knows.
            let rotten = self.rotten_slots.iter().any(|&(_, of, now)| (of, now) == (slot, kept));
            if kept != due && !rotten {
                return Err(format!(
                    "INV-3: snapshot #{} needs {}, slot {slot} durably has {}",
                    snapshot.number,
                    due.describe(),
                    kept.describe()
                ));
            }
        }
        Ok(())
    }

    /// A block goes to a slot: it is what a settled update overwrote, and no snapshot needs what the slot holds.
    pub(super) fn check_kept_block(&self, site: usize, slot: u64, print: Print, media: &dyn Media) {
        let repaired = self.rotten_slots.iter().any(|&(of, rotten, _)| (of, rotten) == (site, slot));
        assert!(
            repaired || !media.slot_is_named(slot),
            "INV-3: site {site} writes slot {slot}, which an entry names"
        );
        let mut reason = "no update captures into it".to_owned();
        let allowed = self.stream.iter().rev().any(|entry| {
            let seen = &entry.seen;
            if seen.slot == 0 || !(seen.slot - 1..seen.slot - 1 + u64::from(seen.count)).contains(&slot) {
                return false;
            }
            let lba = seen.lba + slot - (seen.slot - 1);
            let due = self.blocks[usize::from(seen.volume)][lba as usize].print_at(seen.number - 1);
            let check = if due != print {
                Err(format!("#{} overwrote {}", seen.number, due.describe()))
            } else if self.durable(site) < seen.number {
                Err(format!("INV-4: #{} is not durable here", seen.number))
            } else {
                self.settled(seen.number).map_err(|why| format!("INV-4: {why}"))
            };
            check.map_err(|why| reason = why).is_ok()
        });
        assert!(allowed, "site {site} writes {} to slot {slot}: {reason}", print.describe());
    }

    pub(super) fn check_snapshot_read(&mut self, id: u64, prints: &[Print]) {
        let spec = self.ops[id as usize].spec;
        let known = self.snapshots.iter().find(|snapshot| snapshot.number == spec.snapshot);
        assert!(
            known.is_some_and(|snapshot| snapshot.has(spec.volume)),
            "read {id} of snapshot #{}, which the stream does not have",
            spec.snapshot
        );
        for (lba, print) in (spec.lba..).zip(prints) {
            let due = self.blocks[usize::from(spec.volume)][lba as usize].print_at(spec.snapshot);
            assert!(
                *print == due,
                "INV-8: read {id} at site {} of snapshot #{} volume {} block {lba} returned {}, not {}",
                self.ops[id as usize].site,
                spec.snapshot,
                spec.volume,
                print.describe(),
                due.describe()
            );
        }
        self.snapshot_reads += 1;
    }

    /// A host was told, of each block it asked for, whether it was changed between two snapshots, or since one. Between two that is
    /// certain; since one, what was there when it asked has to be told, and what came later may be.
    pub fn told_changes(&mut self, id: u64, told: &[bool]) {
        self.end(id);
        let Op { spec, floor, replacements, .. } = self.ops[id as usize];
        let OpKind::Changes { since } = spec.kind else {
            panic!("op {id} {spec:?} is answered with changes")
        };
        for snapshot in [since, spec.snapshot].into_iter().filter(|number| *number > 0) {
            let known = self.snapshots.iter().find(|seen| seen.number == snapshot);
            assert!(
                known.is_some_and(|seen| seen.has(spec.volume)),
                "op {id} is told of snapshot #{snapshot}, which the stream does not have"
            );
        }
        assert_eq!(told.len() as u64, spec.count);
        for (lba, &told) in (spec.lba..).zip(told) {
            let block = &self.blocks[usize::from(spec.volume)][lba as usize];
            let changed = |upto: u64| block.versions.iter().any(|it| it.number > since && it.number <= upto);
            let right = match spec.snapshot {
                0 => told || replacements != self.replacements || !changed(floor),
                snapshot => told == changed(snapshot),
            };
            assert!(
                right,
                "INV-8: op {id} at site {} is told {told} of volume {} block {lba} between #{since} and #{} (floor #{floor}); \
                 its versions are {:?}",
                self.ops[id as usize].site,
                spec.volume,
                spec.snapshot,
                block.versions.iter().map(|version| version.number).collect::<Vec<_>>()
            );
        }
        self.changes_told += told.len() as u64;
    }

    /// An administrator was told that the update did what was asked.
    pub fn administered(&mut self, site: usize, number: u64) {
        if let Err(why) = self.held(site, number) {
            panic!("INV-1: a snapshot's update #{number} acknowledged, but {why}");
        }
        let kind = self.stream[number as usize - 1].seen.kind;
        let kinds =
            [KIND_SNAPSHOT_CREATE, KIND_SNAPSHOT_DELETE, KIND_SNAPSHOT_PROTECT, KIND_SNAPSHOT_UNPROTECT];
        assert!(kinds.contains(&kind), "#{number} is of kind {kind}");
        self.promise(number);
    }

    /// Snapshots that live, by number, and their volumes as bits.
    pub fn snapshots(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        let living = self.snapshots.iter().filter(|snapshot| snapshot.deleted_at.is_none());
        living.map(|snapshot| (snapshot.number, snapshot.volumes))
    }

    pub fn snapshots_taken(&self) -> usize {
        self.snapshots.len()
    }

    /// A site has this of the stream, and no more, in its volumes: each snapshot that lives then holds what the stream says it does,
    /// and there is no other (INV-8).
    pub fn check_snapshots(&self, site: usize, upto: u64, media: &dyn Media) {
        for seen in &self.snapshots {
            let SnapshotSeen { number: snapshot, volumes, .. } = *seen;
            let lives = seen.is_there_at(upto);
            let due = lives.then(|| self.protected_at(snapshot, upto.saturating_add(1)));
            assert_eq!(
                media.protected(snapshot),
                due,
                "INV-8: whether site {site} has snapshot #{snapshot} at #{upto}, and whether it protects it"
            );
            if !lives {
                continue;
            }
            for (volume, blocks) in
                (0u16..).zip(&self.blocks).filter(|(volume, _)| volumes >> volume & 1 == 1)
            {
                for (lba, block) in (0u64..).zip(blocks) {
                    let (place, at) = match media.kept(volume, lba, snapshot) {
                        Some(slot) => (Place::Differential, slot),
                        None => (Place::Volume(volume), lba),
                    };
                    let has = media.durable(place, at).map_or(Print::ZERO, |stored| stored.content.print);
                    let due = block.print_at(snapshot);
                    assert!(
                        has == due,
                        "INV-8: site {site} has {} at #{upto} in snapshot #{snapshot} volume {volume} block {lba} ({place:?} {at}), \
                         not {}",
                        has.describe(),
                        due.describe()
                    );
                }
            }
        }
    }
}
