//! Takeovers in a run: an operator who promotes the other site when the primary has died, or is cut off from its peer and its
//! hosts, and hosts that move to whoever serves.

use crate::base::Generation;
use crate::core::config::{OnPeerLoss, Role};
use crate::core::group::status::{GroupState, Standing};
use crate::core::messages::AdminOp;
use crate::sim::audit::{THIRD, peer_of};
use crate::sim::handover::HandoverPlan;
use crate::sim::network::PAIR;
use crate::sim::plan::Plan;
use crate::sim::rng::Rng;
use crate::sim::world::{Event, Stage, World};

const MS: u64 = 1_000_000;

/// What one seed does with takeovers. Drawn from a generator of its own, so that seeds without them are what they were.
#[derive(Clone, Copy, Debug)]
pub struct TakeoverPlan {
    /// Deaths of the primary, and partitions, after which the other site is promoted, in a hundred.
    pub after_crash_percent: u64,
    pub after_partition_percent: u64,
    /// Partitions beside those of the plan, for seeds whose policy lets nobody go on alone.
    pub partitions: u64,
    /// Promotions that are followed by the death of the promoted site within so many events; 0 for none.
    pub crash_events: u64,
    pub delay_ns: u64,
    /// Nobody goes on alone because a partition lasts.
    pub suspends: bool,
    pub handover: Option<HandoverPlan>,
    /// Promotions for which nobody is fenced, in a hundred.
    pub unasked_percent: u64,
}

/// Tells the generator of takeovers from the others of its seed.
const FORK: u64 = 0x7461_6b65_6f76_6572;

/// Names promotions among administrators' requests.
pub(super) const PROMOTION_IDS: u64 = 1 << 32;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

impl TakeoverPlan {
    pub fn new(rng: &mut Rng, plan: &Plan) -> Option<TakeoverPlan> {
        let peer = plan.configs[0].peer.as_ref()?;
        if rng.once_in(2) {
            return None;
        }
        let suspends = peer.on_peer_loss == OnPeerLoss::Suspend;
        Some(TakeoverPlan {
            after_crash_percent: rng.pick(&[30, 70, 100]),
            // Who may go on alone does so in a partition, whatever its hosts do.
            after_partition_percent: if suspends { rng.pick(&[0, 60, 100]) } else { 0 },
            partitions: if suspends { rng.pick(&[0, 1, 3]) } else { 0 },
            crash_events: rng.pick(&[0, 0, 60, 600]),
            delay_ns: rng.pick(&[1, 5, 40]) * MS,
            suspends,
            handover: None,
            unasked_percent: 0,
        })
    }
}

pub(super) fn serves(status: &Standing) -> bool {
    (status.role, status.state) == (Role::Primary, GroupState::Serving)
}

/// Whether it may be told to take over.
pub(super) fn follows(status: &Standing) -> bool {
    (status.role, status.state) == (Role::Secondary, GroupState::Serving)
}

impl World {
    /// Whether hosts ask this site for anything: the one where they are, and as readers one that follows. One that has not heard
    /// yet that it was taken over from is cut off from everybody.
    pub(super) fn is_asked(&self, site: usize) -> bool {
        self.plan.takeover.is_none()
            || self.is_parted()
            || site == self.home
            || self.stays_behind(site)
            || self.standing(site).is_some_and(|status| status.role != Role::Primary)
    }

    /// Whether those who ask this site are hosts. Where they are going to be, and what follows yet, is as good as any reader's.
    pub(super) fn is_host(&self, site: usize) -> bool {
        let primary = |status: Standing| status.role == Role::Primary;
        if self.is_parted() {
            return self.standing(site).is_some_and(primary);
        }
        site == self.home && (self.plan.takeover.is_none() || self.standing(site).is_some_and(primary))
    }

    /// The site is dead, or partitioned; perhaps an operator lets the other take over.
    pub(super) fn perhaps_promote(&mut self, dead: bool) {
        let Some(plan) = self.plan.takeover else { return };
        let percent = if dead { plan.after_crash_percent } else { plan.after_partition_percent };
        if self.stage == Stage::Working && self.takeover_rng.percent(percent) {
            let at = self.now + self.takeover_rng.latency(plan.delay_ns);
            self.schedule(at, Event::Promote { site: peer_of(self.home) });
            self.ask_again(peer_of(self.home));
        }
    }

    /// The operator's word that the other site is fenced is true: it is dead, or cut off from its peer and from now on from its
    /// hosts. One that has acknowledged alone is not taken over from.
    pub(super) fn promote(&mut self, site: usize) {
        if self.promotes_unasked(site) {
            return;
        }
        let old = peer_of(site);
        let follows = self.standing(site).is_some_and(|status| follows(&status));
        let alone = self.standing(old).is_some_and(|status| status.solo);
        let cut = self.plan.takeover.is_some_and(|plan| plan.suspends)
            && self.network.is_partitioned(PAIR, self.now);
        let gone = !self.alive(old) || (cut && !alone);
        let may = self.stage == Stage::Working && old == self.home && follows && gone;
        // What waits in it for room is nothing that it has.
        let has = self.standing(site).map_or(0, |status| status.last.0);
        if !may || !self.audit.may_be_taken_over(old, has) {
            return;
        }
        self.trace.note(self.now, || format!("operator lets site {site} take over"));
        self.administer(site, AdminOp::Promote { fenced: true });
        self.audit.ordered_to_take_over(site);
        // Hosts of the old primary are cut off at once, and come to the new one when it serves.
        self.left_behind = None;
        self.home = site;
        self.home_generation = self.standing(site).map_or(Generation::NONE, |status| status.generation);
        (0..self.sites[site].fronts.len()).for_each(|front| self.wake_front(site, front, self.now));
        self.perhaps_quieten();
        self.perhaps_strike_third();
        if let Some(plan) = self.plan.takeover.filter(|plan| plan.crash_events > 0) {
            let events = self.takeover_rng.below(plan.crash_events);
            self.crash_soon(site, events);
        }
    }

    /// After a turn of a group: hosts go where a newer generation serves, and come back where no other was opened after all.
    pub(super) fn note_home(&mut self, site: usize) {
        if self.plan.takeover.is_none() || self.is_parted() || site == THIRD {
            return;
        }
        self.note_left_behind(site);
        let Some(status) = self.standing(site).filter(serves) else { return };
        if self.stays_behind(site) {
            return;
        }
        let other = self.standing(peer_of(site)).filter(serves);
        if let Some(other) = other {
            assert!(
                other.generation != status.generation,
                "INV-1: both sites serve hosts in generation {}",
                status.generation
            );
        }
        let newest = other.is_none_or(|other| other.generation < status.generation);
        // The one left behind may have opened a generation that nobody else has heard of.
        let unasked = self.left_behind == Some(self.home) && status.solo;
        // What the one where hosts are had opened last a crash may have undone: now it follows.
        let undone = status.generation < self.home_generation
            && self.standing(self.home).is_some_and(|it| follows(&it) && it.generation == status.generation);
        if site == self.home {
            self.home_generation = self.home_generation.max(status.generation);
        } else if unasked
            || undone
            || (newest && status.generation >= self.home_generation && !self.is_promoting())
        {
            self.trace.note(self.now, || format!("hosts go to site {site}"));
            self.outcome.unasked += u64::from(unasked);
            self.home = site;
            self.home_generation = status.generation;
            (0..self.sites[site].fronts.len()).for_each(|front| self.wake_front(site, front, self.now));
        }
    }

    /// Whether the site where hosts are going may yet serve them, or may have: only one that runs and follows does not.
    fn is_promoting(&self) -> bool {
        !self.standing(self.home).is_some_and(|status| follows(&status))
            || !self.sites[self.home].admin.is_empty()
    }
}
