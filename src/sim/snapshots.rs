//! Snapshots in a run: administrators who take and delete them at any moment, and the sites' management information.

use crate::base::*;
use crate::core::config::{DifferentialBy, OnDifferentialFull};
use crate::core::messages::*;
use crate::format::snapshot::SnapshotName;
use crate::sim::audit::{Media, Place, peer_of};
use crate::sim::content::{Content, Print};
use crate::sim::disk::Stored;
use crate::sim::metadata::Metadata;
use crate::sim::rng::Rng;
use crate::sim::takeover::PROMOTION_IDS;
use crate::sim::world::{Event, Stage, World};

/// What a request to the metadata takes where there are no snapshots.
const METADATA_NS: u64 = 200 * US;
const US: u64 = 1_000;

/// What one seed does with snapshots. Drawn from a generator of its own, so that seeds without them are what they were.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotPlan {
    pub differential_blocks: u64,
    pub on_differential_full: OnDifferentialFull,
    pub differential: DifferentialBy,
    /// After a host's operation an administrator acts, in a thousand.
    pub act_permille: u64,
    /// Acts that take a snapshot; the others delete one.
    pub create_percent: u64,
    pub protected_percent: u64,
    /// Hosts' reads that are of a snapshot.
    pub read_percent: u64,
    pub metadata_ns: u64,
    /// Entries a step of a reclaim looks at.
    pub reclaim_step: usize,
}

/// Tells the generator of snapshots from the others of its seed.
const FORK: u64 = 0x736e_6170_7368_6f74;

/// Tells the generator of damage from the others of its seed.
const DAMAGE_FORK: u64 = 0x6461_6d61_6765_6421;
/// The same of how old blocks travel: seeds by reference are what they were.
const FORK_DIFFERENTIAL: u64 = 0x6469_6666_6572_656e;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

/// The same of hosts who ask what was changed.
const FORK_CHANGES: u64 = 0x6368_616e_6765_7321;

pub fn generator_of_changes(seed: u64) -> Rng {
    Rng::new(seed ^ FORK_CHANGES)
}

impl SnapshotPlan {
    pub fn new(seed: u64, rng: &mut Rng) -> Option<SnapshotPlan> {
        if rng.once_in(3) {
            return None;
        }
        Some(SnapshotPlan {
            differential_blocks: rng.pick(&[24, 100, 600, 4000]),
            on_differential_full: rng.pick(&[
                OnDifferentialFull::DeleteOldest,
                OnDifferentialFull::DeleteOldest,
                OnDifferentialFull::Error,
            ]),
            differential: Rng::new(seed ^ FORK_DIFFERENTIAL)
                .pick(&[DifferentialBy::Reference, DifferentialBy::Value]),
            act_permille: rng.pick(&[5, 20, 60]),
            create_percent: rng.pick(&[50, 70, 90]),
            protected_percent: rng.pick(&[0, 0, 10]),
            read_percent: rng.pick(&[0, 20, 50]),
            metadata_ns: rng.pick(&[30, 200, 500]) * US,
            reclaim_step: rng.pick(&[3, 16, 300]) as usize,
        })
    }
}

impl World {
    /// After a turn of a group in a stage in which nothing is to fail.
    pub(super) fn note_slots(&mut self, index: usize) {
        let calm = matches!(self.stage, Stage::Calm { .. } | Stage::Settling { .. });
        if self.plan.snapshots.is_none() || !calm {
            return;
        }
        let lacks = self.status(index).is_some_and(|status| {
            status.differential_blocks - status.differential_used_blocks < UPDATE_BLOCKS_MAX as u64
        });
        if lacks {
            self.slots_lacked_at = Some(self.now);
        }
    }

    /// Whether an operation that its deadline ends now may have waited for slots, which reclaiming frees at its own pace on
    /// each site.
    pub(super) fn slots_lacked(&self) -> bool {
        self.slots_lacked_at.is_some_and(|at| self.now <= at + self.audit.wait_ns_max())
    }

    /// Whether an error is what snapshots may bring, though nothing fails: no space for what a write overwrites, or so little
    /// that its host's deadline passes while an old snapshot makes room; a snapshot that was deleted before it was read.
    pub(super) fn snapshots_excuse(plan: &Option<SnapshotPlan>, error: HostError, lacked: bool) -> bool {
        match error {
            HostError::NoSpace => plan.is_some(),
            HostError::NoSuchSnapshot => plan.is_some(),
            HostError::Deadline => lacked,
            _ => false,
        }
    }

    /// A host has just asked something; perhaps an administrator does, too.
    pub(super) fn perhaps_administer(&mut self) {
        let Some(plan) = self.plan.snapshots else { return };
        let rng = &mut self.snapshot_rng;
        if self.stage != Stage::Working || rng.below(1000) >= plan.act_permille {
            return;
        }
        self.administered += 1;
        let op = if rng.percent(plan.create_percent) {
            let all = VolumeSet::first(self.plan.configs[0].volumes.len());
            let some = VolumeSet(rng.draw() as u32 & all.0);
            AdminOp::CreateSnapshot {
                name: SnapshotName::new(&format!("snapshot-{}", self.administered)),
                volumes: if some.is_empty() { all } else { some },
                protected: rng.percent(plan.protected_percent),
                taken_at_ns: self.now,
            }
        } else {
            let living: Vec<u64> = self.audit.snapshots().map(|(number, _)| number).collect();
            let Some(index) = (living.len() as u64).checked_sub(1).map(|last| rng.between(0, last)) else {
                return;
            };
            let snapshot = UpdateNumber(living[index as usize]);
            if rng.once_in(4) {
                AdminOp::ProtectSnapshot { snapshot, protected: rng.once_in(2) }
            } else {
                self.audit.unwanted(snapshot.0);
                AdminOp::DeleteSnapshot { snapshot }
            }
        };
        let ready = self.now + rng.below(self.plan.ring_ns + 1);
        let home = self.home;
        let admin = &mut self.sites[home].admin;
        if admin.len() < ADMIN_REQUESTS_MAX {
            self.trace.note(self.now, || format!("administrator asks {op:?}"));
            admin.push_back((ready, AdminRequest { id: self.administered, op }));
            self.wake_group(home, ready);
        }
    }

    /// Perhaps a site that is to start finds its tables damaged. Then it takes its peer's, if they have what its own had, and the old
    /// blocks that it has not: what a repair does while the site does not run.
    pub(super) fn perhaps_repair_tables(&mut self, index: usize) {
        let other = peer_of(index);
        let incarnation = u64::from(self.sites[index].incarnation);
        let mut damage = Rng::new(self.plan.seed ^ DAMAGE_FORK);
        let seldom =
            !damage.once_in(3) || Rng::new(damage.draw() ^ incarnation << 1 ^ index as u64).once_in(2);
        if seldom || self.plan.snapshots.is_none() || !self.plan.has_peer() || !self.alive(other) {
            return;
        }
        // A site that has what its peer went on without is refused.
        if self.audit.journals_part() {
            return;
        }
        if self.audit.is_installing(index) {
            // They come with what is staged.
            let step = self.plan.snapshots.map_or(1, |plan| plan.reclaim_step);
            self.sites[index].disk.metadata = Metadata::new(step);
            return;
        }
        // Who installs what it was copied greets nobody before that is over, and has tables whose slots are not flushed.
        if self.audit.is_installing(other) {
            return;
        }
        let [site, peer] = self.sites.get_disjoint_mut([index, other]).expect("two sites");
        if peer.disk.metadata.applied < site.disk.metadata.applied {
            return;
        }
        let mut fetched = 0;
        for &(slot, _) in peer.disk.metadata.captured.values() {
            let print = |stored: Option<&Stored>| stored.map_or(Print::ZERO, |stored| stored.content.print);
            let there = peer.disk.durable(Place::Differential, slot);
            let content = there.map_or(Content::ZERO, |stored| stored.content.clone());
            let here = [
                print(site.disk.visible(Place::Differential, slot)),
                print(site.disk.durable(Place::Differential, slot)),
            ];
            if here != [content.print; 2] {
                site.disk.restore(IoTarget::Differential, slot, &content);
                fetched += 1;
            }
        }
        site.disk.metadata.take_from(&peer.disk.metadata);
        let applied = site.disk.metadata.applied;
        self.trace.note(self.now, || {
            format!("site {index} has its tables from its peer, as of #{applied}, and {fetched} old blocks")
        });
    }

    /// Takes the group's requests to its metadata executor, and its answers to administrators.
    pub(super) fn drain_snapshots(&mut self, index: usize) {
        while let Some(reply) = self.sites[index].out.to_admin.pop() {
            self.trace.note(self.now, || format!("administrator of site {index} hears {reply:?}"));
            self.hear_compared(index, &reply);
            self.hear_extended(index, &reply);
            self.hear_promoted(index, reply.id);
            if let (Ok(number), true) = (reply.result, reply.id < PROMOTION_IDS) {
                self.audit.of(index).administered(index, number.0);
            }
        }
        let typical_ns = self.plan.snapshots.map_or(METADATA_NS, |plan| plan.metadata_ns);
        while let Some(request) = self.sites[index].out.to_metadata.pop() {
            let even = self.far.is_some();
            let latency = if even { typical_ns } else { self.snapshot_rng.latency(typical_ns) };
            self.trace.note(self.now, || format!("site {index} asks its metadata {request:?}"));
            let site = &mut self.sites[index];
            site.disk.metadata.submit(self.now, latency, request, &mut site.memory, &site.tables);
            let (at, incarnation) = (site.disk.metadata.busy_until(), site.incarnation);
            self.schedule(at, Event::Metadata { site: index, incarnation });
        }
    }

    pub(super) fn complete_metadata(&mut self, index: usize) {
        let site = &mut self.sites[index];
        let done = site.disk.metadata.complete(&mut site.memory, &site.tables);
        self.trace.note(self.now, || format!("site {index} metadata: {done:?}"));
        let site = &mut self.sites[index];
        let after = site.metadata_done.back().map_or(self.now, |(ready, _)| *ready);
        let ready = after.max(self.now + self.snapshot_rng.below(self.plan.ring_ns + 1));
        site.metadata_done.push_back((ready, done));
        assert!(site.metadata_done.len() <= METADATA_IO_SLOTS, "INV-12: more completions than slots");
        self.wake_group(index, ready);
    }
}
