//! Resyncs in a run: secondaries that are away for long, deaths of either site while one is copied to, and a site that has staged all it
//! lacked and starts anew to install that.

use crate::base::Nanos;
use crate::core::config::{OnPeerLoss, Role};
use crate::core::group::status::{GroupState, Standing};
use crate::sim::audit::{THIRD, peer_of};
use crate::sim::plan::{CRASHES_MAX, Crash, Fault, Plan};
use crate::sim::rng::Rng;
use crate::sim::site::Site;
use crate::sim::world::{Event, Stage, World};

/// What one seed does with resyncs, beside what comes by itself. Drawn from a generator of its own.
#[derive(Clone, Copy, Debug)]
pub struct ResyncPlan {
    /// How many times longer a secondary that died stays away.
    pub away_factor: u64,
    /// Resyncs that are offered, or ordered to be installed, after which a site dies within so many events, in a hundred.
    pub crash_percent: u64,
    pub crash_events: u64,
}

/// Seeds whose sites may go on alone in which disks are replaced, one in so many.
const REPLACED_ONE_IN: u64 = 4;

/// What one seed does with disks that are lost as a whole. Drawn from a generator of its own.
#[derive(Clone, Copy, Debug)]
pub struct ReplacePlan {
    /// Starts of a site whose peer has everything, before which it is formatted anew, in a hundred.
    pub percent: u64,
}

/// Tells the generator of resyncs from the others of its seed.
const FORK: u64 = 0x7265_7379_6e63;

/// And that of disks that are replaced.
const REPLACE_FORK: u64 = 0x7265_706c_6163;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

pub fn generator_of_replacing(seed: u64) -> Rng {
    Rng::new(seed ^ REPLACE_FORK)
}

impl ReplacePlan {
    pub fn new(rng: &mut Rng, plan: &Plan) -> Option<ReplacePlan> {
        let solo = plan.configs[0].peer.as_ref().is_some_and(|peer| peer.on_peer_loss == OnPeerLoss::Solo);
        (solo && rng.once_in(REPLACED_ONE_IN)).then(|| ReplacePlan { percent: rng.pick(&[20, 60]) })
    }
}

impl ResyncPlan {
    pub fn new(rng: &mut Rng, plan: &Plan) -> Option<ResyncPlan> {
        let solo = plan.configs[0].peer.as_ref().is_some_and(|peer| peer.on_peer_loss == OnPeerLoss::Solo);
        if !solo || rng.once_in(4) {
            return None;
        }
        Some(ResyncPlan {
            away_factor: rng.pick(&[1, 5, 20]),
            crash_percent: rng.pick(&[0, 30, 70]),
            crash_events: rng.pick(&[20, 200, 1000]),
        })
    }
}

/// Whether hosts wait for the end of a copy for as long as they ever do: if that is too little, its log may fill (decision 0040).
pub(super) fn outruns(plan: &Plan, at_most: Nanos) -> bool {
    at_most.0 >= plan.configs[0].host_deadline.0 / 4
}

/// Whether hosts may fill the log of a copy between these two: they never wait for one to a third (decision 0040).
pub(super) fn nobody_waits_for(sites: [usize; 2], stage: &Stage) -> bool {
    sites.contains(&THIRD) && matches!(stage, Stage::Working)
}

impl World {
    /// How long a site stays dead that would be there again after `down_ns`.
    pub(super) fn away_ns(&self, site: usize, down_ns: u64) -> u64 {
        let factor = self.plan.resync.map_or(1, |plan| plan.away_factor);
        if site != self.home && self.stage == Stage::Working { down_ns * factor } else { down_ns }
    }

    /// A site is about to start: perhaps its disks are new, and an operator has formatted them. Its peer serves hosts alone, and has on its
    /// own disks all that anybody was told of.
    pub(super) fn perhaps_replace(&mut self, index: usize) {
        let Some(plan) = self.plan.replace.filter(|_| self.stage == Stage::Working && index != THIRD) else {
            return;
        };
        let other = peer_of(index);
        let serves =
            |at: Standing| (at.role, at.state, at.solo) == (Role::Primary, GroupState::Serving, true);
        let has_all = other == self.home
            && self.standing(other).is_some_and(serves)
            && self.audit.may_be_replaced(index);
        if !has_all || !self.replace_rng.percent(plan.percent) {
            return;
        }
        self.format_anew(index);
        self.outcome.replaced += 1;
    }

    /// A dead site's disks are new, and formatted.
    pub(super) fn format_anew(&mut self, index: usize) {
        self.trace.note(self.now, || format!("site {index} has new disks"));
        let volumes: Vec<u64> = self.plan.configs[index].volumes.iter().map(|volume| volume.blocks).collect();
        let site = &mut self.sites[index];
        site.disk = Site::formatted(&self.plan, index, &volumes).after(&site.disk);
        self.rotten.retain(|rotten| rotten.site != index);
        self.audit.replaced(index);
    }

    /// A site says something of a resync: perhaps one of the two does not live to see its end.
    pub(super) fn perhaps_crash_at_resync(&mut self) {
        let Some(plan) = self.plan.resync.filter(|_| self.stage == Stage::Working) else { return };
        if self.outcome.crashes < CRASHES_MAX && self.resync_rng.percent(plan.crash_percent) {
            let site = self.resync_rng.below(2) as usize;
            let crash = if self.resync_rng.once_in(2) { Crash::Power } else { Crash::Process };
            self.armed.push((self.resync_rng.below(plan.crash_events), Fault::Crash { site, crash }));
        }
    }

    /// The site's process goes on with another group, as if it had died and were there again at once.
    pub(super) fn start_anew(&mut self, site: usize) {
        self.trace.note(self.now, || format!("site {site} starts anew to install"));
        self.end(site, Crash::Process);
        self.schedule(self.now, Event::Restart { site });
    }
}
