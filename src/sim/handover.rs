//! Planned changes of role in a run: an operator who switches over, at either site, or lets the primary step down and one of them be primary
//! again, and deaths at any moment of it. One whose successor died is told to go on.

use crate::core::config::Role;
use crate::core::group::status::GroupState;
use crate::core::messages::{AdminOp, AdminRequest};
use crate::format::wire::{Refusal, RefusalCode};
use crate::sim::audit::peer_of;
use crate::sim::plan::{Fault, Plan};
use crate::sim::rng::Rng;
use crate::sim::takeover::{PROMOTION_IDS, follows, serves};
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
    /// Those in which the primary is to step down instead, in a hundred.
    pub demotes_percent: u64,
    /// Those of them in which its disks get slow and its peer dies, so that it does not come to rest, in a hundred.
    pub lonely_percent: u64,
    /// Those whose successor is dead, and whose predecessor is told to go on, in a hundred.
    pub forced_percent: u64,
}

/// A switchover is over after so long, whether it was given up or not: until then hosts may be refused.
pub(super) const SWITCHOVER_NS_MAX: u64 = 200_000_000;

/// What an operator has ordered of the two sites of a pair.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// The promotion that each has not answered.
    promotions: [Option<u64>; 2],
    /// He gave his word that this one is cut off from hosts, so it may not be asked to serve any before it follows again.
    fenced: Option<usize>,
    /// He looks whether anybody is primary now and then, since he let one step down.
    looks: bool,
}

/// How long its disks are slow, and when its peer dies, if a primary that steps down is not to come to rest.
const LONELY_NS: u64 = 20_000_000;
const LONELY_EVENTS: u64 = 30;

/// How often an operator looks whether anybody is primary, after he let the primary step down.
const LOOKS_EVERY_NS: u64 = 15_000_000;

/// Tells the generator of stepping down from the others of its seed.
const FORK_OF_STEPPING_DOWN: u64 = 0x7374_6570_2064_6f77;

pub fn generator_of_stepping_down(seed: u64) -> Rng {
    Rng::new(seed ^ FORK_OF_STEPPING_DOWN)
}

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
            demotes_percent: 0,
            lonely_percent: 0,
            forced_percent: 0,
        });
    }

    /// Drawn apart, so that what was drawn before stays what it is.
    pub fn step_down(&mut self, rng: &mut Rng) {
        if let Some(plan) = self.takeover.as_mut().and_then(|takeover| takeover.handover.as_mut()) {
            plan.demotes_percent = rng.pick(&[0, 0, 30, 60]);
            plan.forced_percent = rng.pick(&[0, 30, 100]);
            plan.lonely_percent = rng.pick(&[0, 30, 70]);
        }
    }
}

/// What sites tell each other after one has stepped down.
pub(super) fn nobody_is_primary(refusal: &Refusal) -> bool {
    refusal.code == RefusalCode::Role && refusal.text.as_str().contains("neither site is primary")
}

impl World {
    /// After hosts have asked for something.
    pub(super) fn perhaps_switch_over(&mut self) {
        let Some(plan) = self.plan.takeover.and_then(|plan| plan.handover) else { return };
        if self.stage != Stage::Working || !self.handover_rng.once_in(plan.once_in) {
            return;
        }
        let site = self.handover_rng.below(2) as usize;
        self.operator_until = self.now + SWITCHOVER_NS_MAX;
        if self.step_down_rng.percent(plan.demotes_percent) {
            let site = self.home;
            self.outcome.stepped_down += 1;
            self.trace.note(self.now, || format!("operator lets site {site} step down"));
            self.schedule(self.now, Event::Administer { site, op: AdminOp::Demote });
            self.look_after_vacancy();
            if self.step_down_rng.percent(plan.lonely_percent) {
                self.armed.push((0, Fault::SlowDisk { site, ns: LONELY_NS }));
                self.crash_soon(peer_of(site), LONELY_EVENTS);
            }
        } else {
            self.trace.note(self.now, || format!("operator switches over at site {site}"));
            self.schedule(self.now, Event::Administer { site, op: AdminOp::Switchover });
        }
        if self.handover_rng.percent(plan.told_percent) {
            let at = self.now + self.handover_rng.latency(10 * self.plan.network_ns);
            self.schedule(at, Event::Administer { site: self.home, op: AdminOp::HostsGone });
        }
        if self.handover_rng.percent(plan.crash_percent) {
            let (site, events) = (self.handover_rng.below(2), self.handover_rng.below(plan.crash_events));
            self.crash_soon(site as usize, events);
        }
    }

    /// An operator looks whether anybody is primary; if nobody is, one of them is to be. It has all that the other one promised.
    pub(super) fn end_vacancy(&mut self) {
        if !matches!(self.stage, Stage::Working | Stage::Healing { .. }) {
            return;
        }
        self.schedule(self.now + LOOKS_EVERY_NS, Event::Vacancy);
        let site = self.step_down_rng.below(2) as usize;
        let (other, fenced) = (peer_of(site), self.step_down_rng.once_in(2));
        let has = self.standing(site).map_or(0, |status| status.last.0);
        let whole = self.audit.leads(site) || self.audit.may_be_taken_over(other, has);
        // If both follow, the word that the other one is fenced is true, unless that is about to be told otherwise.
        let follow = self.pair().all(|site| self.standing(site).is_some_and(|status| follows(&status)));
        if !follow || !whole || self.orders.promotions.iter().any(Option::is_some) {
            return;
        }
        self.trace.note(self.now, || format!("operator lets site {site} be primary, since nobody is"));
        self.operator_until = self.now + SWITCHOVER_NS_MAX;
        self.administer(site, AdminOp::Promote { fenced });
        self.audit.ordered_to_take_over(site);
        self.orders.fenced = fenced.then_some(other);
    }

    /// Whether the site may not be asked to take over without the word that the other one is fenced: an operator has said just that of itself,
    /// or lets the other one take over.
    pub(super) fn may_not_be_asked(&mut self, site: usize) -> bool {
        let follows = self.standing(peer_of(site)).is_some_and(|primary| {
            serves(&primary) && self.standing(site).is_some_and(|it| it.generation == primary.generation)
        });
        if self.orders.fenced == Some(site) && follows {
            self.orders.fenced = None;
        }
        self.orders.fenced == Some(site) || self.orders.promotions[peer_of(site)].is_some()
    }

    /// The site is dead, and with it what it was asked.
    pub(super) fn forget_orders(&mut self, site: usize) {
        if let Some(order) = self.orders.promotions.get_mut(site) {
            *order = None;
        }
    }

    pub(super) fn hear_promoted(&mut self, site: usize, id: u64) {
        if self.orders.promotions.get(site) == Some(&Some(id)) {
            self.orders.promotions[site] = None;
        }
    }

    /// The site has died; if the one where hosts are has handed over to it, an operator may let that go on.
    pub(super) fn perhaps_force(&mut self, dead: usize) {
        let site = peer_of(dead);
        let Some(plan) = self.plan.takeover.and_then(|plan| plan.handover) else { return };
        let leaves =
            self.standing(site).is_some_and(|it| (it.role, it.state) == (Role::Primary, GroupState::Leaving));
        // The dead one may have opened the next generation, which nobody has heard of, and leads with that when it is back: the auditor
        // knows only who opens one.
        if leaves
            && self.audit.leads(site)
            && site == self.home
            && self.stage == Stage::Working
            && self.step_down_rng.percent(plan.forced_percent)
        {
            self.outcome.forced += 1;
            self.trace
                .note(self.now, || format!("operator lets site {site} go on, though it was about to leave"));
            self.operator_until = self.now + SWITCHOVER_NS_MAX;
            self.administer(site, AdminOp::Promote { fenced: true });
            self.audit.ordered_to_take_over(site);
            self.orders.fenced = Some(dead);
            // It has not gone on before that is durable, and may have stepped down.
            self.look_after_vacancy();
        }
    }

    fn look_after_vacancy(&mut self) {
        if !std::mem::replace(&mut self.orders.looks, true) {
            self.schedule(self.now + LOOKS_EVERY_NS, Event::Vacancy);
        }
    }

    /// What an operator asks of a site reaches it, if it lives.
    pub(super) fn administer(&mut self, site: usize, op: AdminOp) {
        if self.alive(site) {
            self.promotions += 1;
            let request = AdminRequest { id: PROMOTION_IDS + self.promotions, op };
            if let (AdminOp::Promote { .. }, Some(order)) = (op, self.orders.promotions.get_mut(site)) {
                *order = Some(request.id);
            }
            self.extensions.asks(request.id, &op, self.outcome.replaced);
            self.sites[site].admin.push_back((self.now, request));
            self.wake_group(site, self.now);
        }
    }
}
