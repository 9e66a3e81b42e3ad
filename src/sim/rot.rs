//! Bits that flip on the disks of volumes, and sectors that cannot be read. A block that has gone bad is never served, and as long as the other site has what it held it is
//! whole again once somebody reads it.
//!
//! While faults strike, only in seeds in which both sites always hold the same: those that may not go on alone, take over or keep old
//! blocks could not tell what is lost from what is not repaired. When all is calm, in all seeds with a peer: then every operation must
//! succeed, and every block that has gone bad must be whole before the sites stop.
//!
//! When hosts have come to rest, and a scrub looks for what is bad, bits flip in checksum files and in slots that snapshots need, too.

use crate::base::{Lba, VolumeId};
use crate::core::config::OnPeerLoss;
use crate::core::group::status::GroupStatus;
use crate::core::messages::{AdminOp, IoTarget};
use crate::sim::audit::{Media, THIRD};
use crate::sim::content::Print;
use crate::sim::disk::place_of;
use crate::sim::plan::Plan;
use crate::sim::rng::Rng;
use crate::sim::world::{Stage, World};

#[derive(Clone, Copy, Debug)]
pub struct RotPlan {
    /// Bits that flip while faults strike, one in so many visits of a host; and when all is calm.
    pub working: u32,
    pub visits: u64,
    pub calm: u32,
    /// In the end a scrub finds what is bad, also where nobody would read it, and not readers.
    pub scrubs: bool,
    /// Before it, bits flip where nobody but a scrub finds them.
    pub aside: bool,
}

/// Some hundred blocks are read in some milliseconds.
const SCRUB_BLOCKS_PER_SECOND: u64 = 100_000;

/// A bit that has flipped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotten {
    pub site: usize,
    pub volume: u16,
    pub lba: u64,
}

/// A block beside the volumes in which a bit has flipped, and what it holds since.
#[derive(Clone, Copy, Debug)]
pub(super) struct RottenAside {
    site: usize,
    target: IoTarget,
    block: u64,
    now: Print,
}

/// Tells the generator of rot from the others of its seed.
const FORK: u64 = 0x0072_6f74;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

impl RotPlan {
    pub const NONE: RotPlan = RotPlan { working: 0, visits: 1, calm: 0, scrubs: false, aside: false };

    pub fn new(rng: &mut Rng, plan: &Plan) -> RotPlan {
        let suspends =
            plan.configs[0].peer.as_ref().is_some_and(|peer| peer.on_peer_loss == OnPeerLoss::Suspend);
        let same = suspends && plan.takeover.is_none() && plan.snapshots.is_none();
        let working = if same { rng.below(12) as u32 } else { 0 };
        let visits = rng.pick(&[3, 20]);
        let calm = if plan.has_peer() { rng.below(6) as u32 } else { 0 };
        let scrubs = rng.once_in(2);
        RotPlan { working, visits, calm, scrubs, aside: scrubs }
    }
}

impl World {
    /// A host is at work: perhaps a bit flips meanwhile.
    pub(super) fn perhaps_rot(&mut self) {
        let left = match self.stage {
            Stage::Working => &mut self.rot.working,
            Stage::Calm { .. } => &mut self.rot.calm,
            _ => return,
        };
        if *left == 0 || (self.stage == Stage::Working && !self.rot_rng.once_in(self.rot.visits)) {
            return;
        }
        *left -= 1;
        let site = self.rot_rng.below(2) as usize;
        let volume = self.rot_rng.below(self.plan.configs[0].volumes.len() as u64) as u16;
        let blocks = self.extensions.told().get(VolumeId(volume));
        let near = self.rot_rng.once_in(2);
        let lba = self.rot_rng.below(if near { self.plan.hot_blocks.min(blocks) } else { blocks });
        self.rot(Rotten { site, volume, lba });
    }

    fn rot(&mut self, rotten: Rotten) {
        let Rotten { site, volume, lba } = rotten;
        let taken = self.rotten.iter().any(|other| other.volume == volume && other.lba == lba);
        let (at, lba_at) = (VolumeId(volume), Lba(lba));
        // Nobody would read what is in memory, but a scrub.
        let cached = !self.rot.scrubs
            && self.sites[site].group.as_ref().is_none_or(|group| group.has_in_memory(at, lba_at));
        if taken || cached || self.audit.is_installing(site) {
            return;
        }
        let Some((was, now)) = self.sites[site].disk.rot(IoTarget::Volume(at), lba, &mut self.rot_rng) else {
            return;
        };
        self.trace.note(self.now, || format!("site {site}: a bit of {at:?} {lba_at:?} flips"));
        self.perhaps_spoil(site, IoTarget::Volume(at), lba);
        self.audit.rots(site, volume, lba, was, now);
        self.rotten.push(rotten);
        self.outcome.rotten_blocks += 1;
    }

    /// Of the blocks that go bad, every other one cannot be read at all.
    fn perhaps_spoil(&mut self, site: usize, target: IoTarget, block: u64) {
        if (block + site as u64) % 2 == 1 {
            self.sites[site].disk.spoil(target, block);
        }
    }

    /// Whether the block went bad on either site's disk, so that events may name it.
    pub(super) fn was_rotten(rotten: &[Rotten], volume: VolumeId, lba: Lba) -> bool {
        rotten.iter().any(|rotten| rotten.volume == volume.0 && rotten.lba == lba.0)
    }

    /// Everything is settled: bits flip where a scrub alone finds them.
    pub(super) fn perhaps_rot_aside(&mut self) {
        if !std::mem::take(&mut self.rot.aside) {
            return;
        }
        for site in self.pair() {
            self.rot_beside_volumes(site);
        }
        // A third that has all that the others have is lent by them what it held.
        let has_all = |status: GroupStatus| status.settled.0 == self.audit.last();
        if self.plan.third.is_some() && self.status(THIRD).is_some_and(has_all) {
            for _ in 0..self.rot_rng.below(5) {
                let volume = self.rot_rng.below(self.plan.configs[0].volumes.len() as u64) as u16;
                let blocks = self.extensions.told().get(VolumeId(volume));
                let lba = self.rot_rng.below(self.plan.hot_blocks.min(blocks));
                self.rot(Rotten { site: THIRD, volume, lba });
            }
            self.rot_beside_volumes(THIRD);
        }
    }

    fn rot_beside_volumes(&mut self, site: usize) {
        for _ in 0..self.rot_rng.below(3) {
            let volume = self.rot_rng.below(self.plan.configs[0].volumes.len() as u64) as u16;
            self.rot_aside(site, IoTarget::Checksums(VolumeId(volume)), 0);
        }
        let named = self.sites[site].disk.metadata.captured.values();
        let named: Vec<u64> = named.filter(|(_, sum)| *sum != 0).map(|(slot, _)| *slot).collect();
        if !named.is_empty() && self.plan.has_peer() {
            for _ in 0..self.rot_rng.below(4) {
                let slot = self.rot_rng.pick(&named);
                self.rot_aside(site, IoTarget::Differential, slot);
            }
        }
    }

    fn rot_aside(&mut self, site: usize, target: IoTarget, block: u64) {
        // Of a slot, the other site's is what repairs it.
        let taken = |other: &RottenAside| {
            (other.target, other.block) == (target, block)
                && (other.site == site || target == IoTarget::Differential)
        };
        if self.rotten_aside.iter().any(taken) {
            return;
        }
        let Some((_, now)) = self.sites[site].disk.rot(target, block, &mut self.rot_rng) else { return };
        self.trace.note(self.now, || format!("site {site}: a bit of {target:?} {block} flips"));
        self.perhaps_spoil(site, target, block);
        if target == IoTarget::Differential {
            self.audit.slot_rots(site, block, now);
        }
        self.rotten_aside.push(RottenAside { site, target, block, now });
        self.outcome.rotten_blocks += 1;
    }

    /// Whether anything of a site has gone bad, be it whole again or not.
    pub(super) fn has_rotten(&self, site: usize) -> bool {
        self.rotten.iter().any(|rotten| rotten.site == site)
            || self.rotten_aside.iter().any(|rotten| rotten.site == site)
    }

    /// Whether a bit of the block beside the volumes has flipped, whatever it holds since.
    pub(super) fn rots_aside(&self, site: usize, target: IoTarget, block: u64) -> bool {
        let at = |rotten: &RottenAside| (rotten.site, rotten.target, rotten.block);
        self.rotten_aside.iter().any(|rotten| at(rotten) == (site, target, block))
    }

    /// Whether something beside the volumes is bad and not whole again, nor unneeded.
    fn is_bad_aside(&self, site: usize) -> bool {
        self.rotten_aside.iter().filter(|rotten| rotten.site == site).any(|rotten| {
            let RottenAside { target, block, now, .. } = *rotten;
            let disk = &self.sites[site].disk;
            let needed = target != IoTarget::Differential || disk.slot_is_named(block);
            let durable = disk.durable(place_of(target), block);
            needed && durable.is_some_and(|stored| stored.content.print == now)
        })
    }

    /// Blocks of this site that have gone bad and are not whole again.
    fn bad(&self, site: usize) -> impl Iterator<Item = &Rotten> {
        let bad = move |rotten: &&Rotten| {
            let Rotten { volume, lba, .. } = **rotten;
            rotten.site == site && self.audit.is_rotten(site, volume, lba, &self.sites[site].disk)
        };
        self.rotten.iter().filter(bad)
    }

    /// One of them that a read would find: what is in memory is on its way to the disk.
    pub(super) fn next_rotten(&self, site: usize) -> Option<(u16, u64)> {
        let group = self.sites[site].group.as_ref().filter(|_| !self.rot.scrubs)?;
        let found = self.bad(site).find(|bad| !group.has_in_memory(VolumeId(bad.volume), Lba(bad.lba)));
        found.map(|bad| (bad.volume, bad.lba))
    }

    /// Everything is settled and something is bad: an operator has it looked for.
    pub(super) fn scrub_when_due(&mut self) {
        for site in self.members() {
            let asked = !self.sites[site].admin.is_empty();
            let active = asked || self.status(site).is_some_and(|status| status.scrub.active);
            let bad = self.bad(site).next().is_some() || self.is_bad_aside(site);
            if self.rot.scrubs && !active && bad {
                self.administer(site, AdminOp::Scrub { blocks_per_second: SCRUB_BLOCKS_PER_SECOND });
            }
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.members().all(|site| self.bad(site).next().is_none() && !self.is_bad_aside(site))
    }
}
