//! Takeovers without the word that the primary is fenced: an operator who asks for one at any moment, and hosts that stay at the old
//! primary and read there for as long as it answers.

use crate::core::config::{OnPeerLoss, Role};
use crate::core::messages::AdminOp;
use crate::sim::audit::peer_of;
use crate::sim::plan::{Fault, Plan, Planned};
use crate::sim::rng::Rng;
use crate::sim::takeover::follows;
use crate::sim::world::{Event, Stage, World};

/// Tells this generator from the others of its seed.
const FORK: u64 = 0x6c65_6173_6573_2121;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

impl Plan {
    /// Some promotions are asked for without the word, whoever lives. A promise lasts at most five latency budgets, and
    /// partitions outlast that.
    pub fn take_over_unasked(&mut self, rng: &mut Rng) {
        let Some(takeover) = self.takeover.as_mut().filter(|_| rng.once_in(2)) else { return };
        takeover.unasked_percent = rng.pick(&[30, 70, 100]);
        takeover.after_partition_percent = takeover.after_partition_percent.max(60);
        let peer = self.configs[0].peer.as_ref().expect("takeovers are of pairs");
        let partitions = if peer.on_peer_loss == OnPeerLoss::Suspend { rng.between(1, 3) } else { 0 };
        let budget_ns = peer.latency_budget.0;
        for _ in 0..partitions {
            let fault = Fault::Partition { ns: rng.pick(&[6, 10, 20]) * budget_ns };
            let after_ops = rng.between(20, self.operations - 20);
            self.faults.push(Planned { after_ops, events: rng.below(400), fault });
        }
        self.faults.sort_by_key(|planned| planned.after_ops);
    }
}

impl World {
    /// Whether hosts read at this site because they do not know that the other one has taken over.
    pub(super) fn stays_behind(&self, site: usize) -> bool {
        self.left_behind == Some(site)
            && site != self.home
            && self.stage == Stage::Working
            && self.standing(site).is_some_and(|status| status.role == Role::Primary)
    }

    /// It has heard, and is a primary like any other if it becomes one again. What it is while it recovers says nothing of that.
    pub(super) fn note_left_behind(&mut self, site: usize) {
        if self.left_behind == Some(site) && self.standing(site).is_some_and(|status| follows(&status)) {
            self.left_behind = None;
        }
    }

    /// An operator who is told that the primary is alive, or to wait, asks again when a promise has run out.
    pub(super) fn ask_again(&mut self, site: usize) {
        if self.plan.takeover.is_some_and(|plan| plan.unasked_percent > 0) {
            let budget_ns = self.plan.configs[0].peer.as_ref().map_or(0, |peer| peer.latency_budget.0);
            let budgets = self.lease_rng.between(4, 8);
            self.schedule(self.now + budgets * budget_ns, Event::Promote { site });
        }
    }

    /// Whether a promotion of `site` is asked for without the word; then the group alone decides whether it may be.
    pub(super) fn promotes_unasked(&mut self, site: usize) -> bool {
        let percent = self.plan.takeover.map_or(0, |plan| plan.unasked_percent);
        if percent == 0
            || self.stage != Stage::Working
            || !self.lease_rng.percent(percent)
            || !self.standing(site).is_some_and(|status| follows(&status))
            || self.may_not_be_asked(site)
        {
            return false;
        }
        self.trace.note(self.now, || format!("operator asks site {site} to take over, nobody being fenced"));
        self.administer(site, AdminOp::Promote { fenced: false });
        self.audit.ordered_to_take_over(site);
        self.left_behind = Some(peer_of(site));
        true
    }
}
