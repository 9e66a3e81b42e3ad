//! What operators do to sites that are well: they stop them, whatever is under way, and start them again, and have them scrubbed while hosts
//! are at work. And hosts that have stayed at a primary which was taken over from, and write there.

use crate::base::Nanos;
use crate::core::group::Turn;
use crate::core::group::status::GroupState;
use crate::core::messages::AdminOp;
use crate::core::outbox::Event as GroupEvent;
use crate::sim::audit::{THIRD, peer_of};
use crate::sim::coverage::Struck;
use crate::sim::plan::{Crash, Fault, Plan, Planned};
use crate::sim::rng::Rng;
use crate::sim::site::Site;
use crate::sim::world::{Event, Stage, World};

const MS: u64 = 1_000_000;

/// Seeds with any of it, one in so many.
const ONE_IN: u64 = 4;

/// A site that is to stop gives what its hosts wait for five seconds, and then has its last sweep to do, on disks that may be slow.
const STOPS_IN_NS_MAX: u64 = 7_000 * MS;

/// Tells this generator from the others of its seed.
const FORK: u64 = 0x7570_6b65_6570;

/// What one seed does of it. Drawn from a generator of its own, so that seeds without it are what they were.
#[derive(Clone, Copy, Debug)]
pub struct UpkeepPlan {
    /// Stops of a site that has just started, or has begun to catch up or to be copied to, so many; others are faults of the plan.
    pub aimed_stops: u32,
    /// After a host's operation a site is scrubbed, one in so many times; 0 for never.
    pub scrubs_once_in: u64,
    /// Turns of hosts that have stayed behind in which they write, in a hundred.
    pub writes_behind_percent: u64,
}

/// A site was told to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stops {
    since: u64,
    /// One that recovers stops at once, and its journal is what the life before left.
    recovering: bool,
}

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

impl Plan {
    pub fn keep_up(&mut self, rng: &mut Rng) {
        if !rng.once_in(ONE_IN) {
            return;
        }
        self.upkeep = Some(UpkeepPlan {
            aimed_stops: rng.pick(&[0, 1, 3]),
            scrubs_once_in: rng.pick(&[0, 20, 100]),
            writes_behind_percent: rng.pick(&[0, 30, 100]),
        });
        let sites = if self.has_peer() { self.configs.len() as u64 } else { 1 };
        for _ in 0..rng.below(4) {
            let fault = Fault::Stop { site: rng.below(sites) as usize };
            let after_ops = rng.between(20, self.operations - 20);
            self.faults.push(Planned { after_ops, events: rng.below(400), fault });
        }
        self.faults.sort_by_key(|planned| planned.after_ops);
    }
}

impl World {
    /// An operator stops a site. It is to come to rest in bounded time, whatever it is doing.
    pub(super) fn stop(&mut self, index: usize) {
        let stops = self.sites[index].stops.is_some();
        let Some(status) = self.standing(index).filter(|_| !stops && self.stage == Stage::Working) else {
            return;
        };
        self.cover(index, Struck::Stop);
        let Site { group, memory, tables, out, stops, .. } = &mut self.sites[index];
        *stops = Some(Stops { since: self.now, recovering: status.state == GroupState::Recovering });
        let group = group.as_mut().expect("it is alive");
        group.stop(&mut Turn { now: Nanos(self.now), memory, tables, out });
        self.drain(index);
        self.wake_group(index, self.now);
    }

    /// A site starts, or its peer begins to catch up or to be copied to: perhaps an operator stops one of them just then.
    pub(super) fn perhaps_stop(&mut self, index: usize) {
        if self.stage != Stage::Working || !self.upkeep_rng.once_in(3) {
            return;
        }
        let Some(plan) = self.plan.upkeep.as_mut().filter(|plan| plan.aimed_stops > 0) else { return };
        plan.aimed_stops -= 1;
        let other = self.plan.has_peer() && index != THIRD && self.upkeep_rng.once_in(3);
        let site = if other { peer_of(index) } else { index };
        self.armed.push((self.upkeep_rng.below(100), Fault::Stop { site }));
    }

    /// After each event: sites that were to stop and have done so are started again some time. What they had is on their disks, so that it
    /// makes no difference if power is lost, too.
    pub(super) fn watch_stops(&mut self) {
        for index in 0..self.sites.len() {
            let Some(Stops { since, recovering }) = self.sites[index].stops else { continue };
            if !self.stopped(index) {
                assert!(
                    self.now <= since + STOPS_IN_NS_MAX,
                    "liveness: site {index} does not stop: {:#?}",
                    self.status(index)
                );
                continue;
            }
            if self.sites[index].group.as_ref().is_some_and(|group| group.failed()) {
                // An operator is at it already.
                continue;
            }
            self.trace.note(self.now, || format!("site {index} has stopped"));
            if !recovering {
                self.audit.of(index).has_stopped(index);
            }
            let crash = if self.upkeep_rng.once_in(2) { Crash::Power } else { Crash::Process };
            self.outcome.stops += 1;
            self.end(index, crash);
            let down = self.upkeep_rng.latency(self.plan.down_ns);
            self.schedule(self.now + down, Event::Restart { site: index });
            if index == self.home {
                self.perhaps_promote(true);
            }
        }
    }

    /// A host has asked something; perhaps an operator has a site scrubbed meanwhile.
    pub(super) fn perhaps_scrub(&mut self) {
        let Some(plan) = self.plan.upkeep.filter(|plan| plan.scrubs_once_in > 0) else { return };
        if self.stage != Stage::Working || !self.upkeep_rng.once_in(plan.scrubs_once_in) {
            return;
        }
        let sites = if self.plan.has_peer() { self.sites.len() as u64 } else { 1 };
        let site = self.upkeep_rng.below(sites) as usize;
        let blocks_per_second = self.upkeep_rng.pick(&[2_000, 20_000, 1_000_000]);
        self.administer(site, AdminOp::Scrub { blocks_per_second });
    }

    /// Whether hosts that do not know that another site has taken over write this time.
    pub(super) fn writes_behind(&mut self) -> bool {
        let percent = self.plan.upkeep.map_or(0, |plan| plan.writes_behind_percent);
        percent > 0 && self.upkeep_rng.percent(percent)
    }

    /// A scrub finds nothing where nothing has gone bad.
    pub(super) fn judge_scrub(&mut self, index: usize, event: &GroupEvent) {
        let GroupEvent::Scrubbed { complete, bad, .. } = *event else { return };
        self.outcome.scrubs += u64::from(complete && self.stage == Stage::Working);
        let excused = self.sites[index].reads_failed || self.has_rotten(index);
        assert!(bad == 0 || excused, "site {index} finds something bad where nothing is: {event:?}");
    }
}
