//! Volumes that become larger while hosts are at work, and deaths, full disks and losses at any moment of it.

use crate::base::*;
use crate::core::config::Role;
use crate::core::group::status::PeerState;
use crate::core::messages::{AdminOp, AdminReply};
use crate::sim::audit::{PRIMARY, THIRD, peer_of};
use crate::sim::plan::Plan;
use crate::sim::rng::Rng;
use crate::sim::world::{Event, Stage, World};

/// What one seed does with sizes.
#[derive(Clone, Debug)]
pub struct ExtendPlan {
    /// One in so many of the hosts' turns is followed by an extension.
    pub once_in: u64,
    /// Those that are followed by the death of a site within so many events, in a hundred.
    pub crash_percent: u64,
    pub crash_events: u64,
    /// Space that cannot be reserved, in a hundred.
    pub full_percent: u64,
    /// What each volume is formatted with.
    pub formatted: VolumeSizes,
}

/// Tells the generator of extensions from the others of its seed.
const FORK: u64 = 0x6578_7465_6e64;

/// Seeds in which volumes have room.
const EXTENDS_ONE_IN: u64 = 4;

impl Plan {
    pub fn extend(&mut self, rng: &mut Rng) {
        if !rng.once_in(EXTENDS_ONE_IN) {
            return;
        }
        let volumes = self.configs[PRIMARY].volumes.iter();
        let formatted = VolumeSizes::of(volumes.map(|volume| rng.between(volume.blocks / 4, volume.blocks)));
        self.extend = Some(ExtendPlan {
            once_in: rng.pick(&[20, 60, 200]),
            crash_percent: rng.pick(&[0, 10, 50]),
            crash_events: rng.pick(&[40, 150, 600]),
            full_percent: rng.pick(&[0, 0, 30]),
            formatted,
        });
    }

    /// What hosts see of volumes that are formatted.
    pub fn sizes(&self) -> VolumeSizes {
        let laid_out = self.configs[PRIMARY].volumes.iter().map(|volume| volume.blocks);
        self.extend.as_ref().map_or_else(|| VolumeSizes::of(laid_out), |plan| plan.formatted)
    }
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    id: u64,
    volume: VolumeId,
    blocks: u64,
    /// How many sites had been formatted anew by then.
    replaced: u64,
}

/// What hosts may count on.
#[derive(Debug)]
pub struct Extensions {
    rng: Rng,
    /// As it was formatted, or an operator was told.
    told: VolumeSizes,
    /// Requests that were not answered.
    asked: Vec<Asked>,
}

impl Extensions {
    pub fn new(seed: u64, plan: &mut Plan, has: bool) -> Extensions {
        let mut rng = Rng::new(seed ^ FORK);
        if has {
            plan.extend(&mut rng);
        }
        Extensions { rng, told: plan.sizes(), asked: Vec::new() }
    }

    pub fn told(&self) -> &VolumeSizes {
        &self.told
    }

    pub fn asks(&mut self, id: u64, op: &AdminOp, replaced: u64) {
        if let AdminOp::Extend { volume, blocks } = *op {
            self.asked.push(Asked { id, volume, blocks, replaced });
        }
    }
}

impl World {
    /// After hosts have asked for something.
    pub(super) fn perhaps_extend(&mut self) {
        let Some(plan) = &self.plan.extend else { return };
        let (rng, told) = (&mut self.extensions.rng, &self.extensions.told);
        if self.stage != Stage::Working || !rng.once_in(plan.once_in) {
            return;
        }
        let volumes = &self.plan.configs[PRIMARY].volumes;
        let volume = VolumeId(rng.below(volumes.len() as u64) as u16);
        let (now, laid_out) = (told.get(volume), volumes[usize::from(volume.0)].blocks);
        // Now and then more than there is.
        let blocks = if rng.once_in(16) { laid_out + 1 } else { rng.between(now, laid_out) };
        let dies = rng.percent(plan.crash_percent).then(|| (rng.below(2), rng.below(plan.crash_events)));
        self.trace.note(self.now, || format!("operator extends {volume:?} to {blocks}"));
        self.schedule(
            self.now,
            Event::Administer { site: self.home, op: AdminOp::Extend { volume, blocks } },
        );
        if let Some((site, events)) = dies.filter(|_| self.plan.has_peer()) {
            self.crash_soon(site as usize, events);
        }
    }

    /// Space is to be reserved: whether there is any.
    pub(super) fn has_space(&mut self) -> bool {
        let full_percent = self.plan.extend.as_ref().map_or(0, |plan| plan.full_percent);
        !self.extensions.rng.percent(full_percent)
    }

    pub(super) fn hear_extended(&mut self, index: usize, reply: &AdminReply) {
        let Some(at) = self.extensions.asked.iter().position(|asked| asked.id == reply.id) else { return };
        let Asked { volume, blocks, replaced, .. } = self.extensions.asked.swap_remove(at);
        if reply.result.is_err() {
            self.outcome.extensions_refused += 1;
            return;
        }
        self.outcome.extensions += 1;
        self.extensions.told = self.extensions.told.extended(volume, blocks);
        let laid_out = self.plan.configs[index].volumes[usize::from(volume.0)].blocks;
        assert!(blocks <= laid_out, "{volume:?} of {laid_out} blocks was extended to {blocks}");
        if self.outcome.replaced != replaced {
            // One that has new disks since then holds nothing, and learns of it when it meets the other one.
            return;
        }
        // Whoever is promoted shows it, whatever dies now.
        for site in self.pair() {
            let shown = laid_out - self.sites[site].disk.durable_room(volume);
            assert!(
                shown >= blocks,
                "{volume:?} was extended to {blocks}, and site {site} would show {shown}"
            );
        }
    }

    /// What hosts at this site may count on. A third that took over shows what it knew of.
    pub(super) fn counted_on(&self, index: usize) -> VolumeSizes {
        match &self.sites[index].group {
            Some(group) if index == THIRD && group.serving() => *group.sizes(),
            _ => self.extensions.told,
        }
    }

    /// A secondary that takes what comes shows all that its primary's hosts may write to.
    pub(super) fn check_follower(&self) {
        if self.plan.extend.is_none() || !self.plan.has_peer() || self.home == THIRD {
            return;
        }
        let (Some(leads), Some(follows)) = (self.standing(self.home), self.standing(peer_of(self.home)))
        else {
            return;
        };
        let met = matches!(leads.peer, PeerState::InSync | PeerState::CatchingUp);
        let pair = (leads.role, follows.role) == (Role::Primary, Role::Secondary);
        if !pair || !met || follows.peer != PeerState::InSync {
            return;
        }
        let shown = |site: usize| self.sites[site].group.as_ref().expect("it has a standing").sizes();
        let (ours, theirs) = (shown(self.home), shown(peer_of(self.home)));
        assert!(theirs.cover(ours), "a primary shows {ours:?}, and its secondary {theirs:?}");
    }

    /// Sites that have everything show what an operator was told, and nobody's hosts see more than whoever would take over shows.
    pub(super) fn check_sizes(&self, sites: impl Iterator<Item = usize>) {
        let shown = |site: usize| self.sites[site].group.as_ref().map(|group| group.sizes());
        for site in sites {
            let sizes = shown(site).expect("it runs");
            assert!(sizes.cover(&self.extensions.told), "site {site} shows {sizes:?}");
            assert!(shown(self.home).is_some_and(|home| sizes.cover(home)), "site {site} shows {sizes:?}");
        }
    }
}
