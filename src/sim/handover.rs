//! Planned changes of role in a run: an operator who switches over, at either site, and deaths at any moment of it.

use crate::core::messages::{AdminOp, AdminRequest};
use crate::sim::plan::Plan;
use crate::sim::rng::Rng;
use crate::sim::takeover::PROMOTION_IDS;
use crate::sim::world::{Event, Stage, World};

/// What one seed does with switchovers. Only seeds with takeovers have any, since hosts have to move.
#[derive(Clone, Copy, Debug)]
pub struct HandoverPlan {
    /// One in so many of the hosts' turns is followed by one.
    pub once_in: u64,
    /// Those that are followed by the death of a site within so many events, in a hundred.
    pub crash_percent: u64,
    pub crash_events: u64,
    /// Those of which the group hears that hosts are gone, in a hundred; it waits no longer than it likes.
    pub told_percent: u64,
}

/// A switchover is over after so long, whether it was given up or not: until then hosts may be refused.
pub(super) const SWITCHOVER_NS_MAX: u64 = 200_000_000;

/// Tells the generator of planned changes from the others of its seed.
const FORK: u64 = 0x6861_6e64_6f76_6572;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

impl Plan {
    pub fn hand_over(&mut self, rng: &mut Rng) {
        let Some(takeover) = self.takeover.as_mut().filter(|_| rng.once_in(2)) else { return };
        takeover.handover = Some(HandoverPlan {
            once_in: rng.pick(&[40, 150, 400]),
            crash_percent: rng.pick(&[0, 30, 70]),
            crash_events: rng.pick(&[40, 150, 600]),
            told_percent: rng.pick(&[0, 70, 100]),
        });
    }
}

impl World {
    /// After hosts have asked for something.
    pub(super) fn perhaps_switch_over(&mut self) {
        let Some(plan) = self.plan.takeover.and_then(|plan| plan.handover) else { return };
        if self.stage != Stage::Working || !self.handover_rng.once_in(plan.once_in) {
            return;
        }
        let site = self.handover_rng.below(2) as usize;
        self.trace.note(self.now, || format!("operator switches over at site {site}"));
        self.operator_until = self.now + SWITCHOVER_NS_MAX;
        self.schedule(self.now, Event::Administer { site, op: AdminOp::Switchover });
        if self.handover_rng.percent(plan.told_percent) {
            let at = self.now + self.handover_rng.latency(10 * self.plan.network_ns);
            self.schedule(at, Event::Administer { site: self.home, op: AdminOp::HostsGone });
        }
        if self.handover_rng.percent(plan.crash_percent) {
            let (site, events) = (self.handover_rng.below(2), self.handover_rng.below(plan.crash_events));
            self.crash_soon(site as usize, events);
        }
    }

    /// What an operator asks of a site reaches it, if it lives.
    pub(super) fn administer(&mut self, site: usize, op: AdminOp) {
        if self.alive(site) {
            self.promotions += 1;
            let request = AdminRequest { id: PROMOTION_IDS + self.promotions, op };
            self.extensions.asks(request.id, &op, self.outcome.replaced);
            self.sites[site].admin.push_back((self.now, request));
            self.wake_group(site, self.now);
        }
    }
}
