//! A third that takes over in a run: at its end both sites of the pair die for good, an operator promotes the third and gives up what it
//! lacks, and hosts go on there, through deaths of it.

use crate::base::SiteId;
use crate::core::config::Role;
use crate::core::group::status::{GroupState, SourceState};
use crate::core::messages::AdminOp;
use crate::format::wire::RefusalCode;
use crate::sim::audit::{PRIMARY, SECONDARY, THIRD};
use crate::sim::plan::{Crash, Fault, Plan};
use crate::sim::rng::Rng;
use crate::sim::third::ThirdFault;
use crate::sim::world::{Stage, World};

const MS: u64 = 1_000_000;

/// Longest that any of it takes.
const INHERITED_NS_MAX: u64 = 60_000 * MS;

/// An operator asks again after this, if the third has died meanwhile, or thought a source to be there.
const ASKS_AGAIN_NS: u64 = 20 * MS;

/// Seeds with a third in which it is promoted, one in so many.
const ONE_IN: u64 = 2;

/// What one seed does with it. Drawn from a generator of its own, so that seeds without are what they were.
#[derive(Clone, Copy, Debug)]
pub struct HeirPlan {
    /// Operations of hosts at the promoted third.
    pub operations: u64,
    /// Its deaths, within so many events from the moment that it is asked.
    pub crashes: u64,
    pub crash_events: u64,
}

/// Tells the generator of heirs from the others of its seed.
const FORK: u64 = 0x6865_6972;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

impl HeirPlan {
    pub fn new(rng: &mut Rng, plan: &Plan) -> Option<HeirPlan> {
        if plan.third.is_none() || !rng.once_in(ONE_IN) {
            return None;
        }
        Some(HeirPlan {
            operations: rng.pick(&[20, 100, 300]),
            crashes: rng.pick(&[0, 1, 2, 4]),
            crash_events: rng.pick(&[30, 200, 1500]),
        })
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inheriting {
    /// The third has yet to learn that nobody is there.
    Deserted,
    /// The operator has asked, since then.
    Asked { since: u64 },
    /// Hosts are there, up to so many operations.
    Serving { operations: u64 },
}

impl World {
    pub(super) fn is_inherited(&self) -> bool {
        self.outcome.heirs > 0
    }

    fn inheriting(&mut self, step: Inheriting) {
        self.trace.note(self.now, || format!("inheriting: {step:?}"));
        self.stage = Stage::Inherited { step, until: self.now + INHERITED_NS_MAX };
    }

    /// Everything is settled: perhaps the pair dies.
    pub(super) fn perhaps_inherit(&mut self) -> bool {
        if self.plan.heir.is_none() || self.is_inherited() {
            return false;
        }
        self.outcome.heirs += 1;
        self.end_faults();
        for site in [PRIMARY, SECONDARY] {
            let crash = if self.heir_rng.once_in(2) { Crash::Power } else { Crash::Process };
            self.end(site, crash);
        }
        self.inheriting(Inheriting::Deserted);
        true
    }

    pub(super) fn go_on_inheriting(&mut self, step: Inheriting) {
        let Some(plan) = self.plan.heir else { return };
        let Some(status) = self.status(THIRD) else { return };
        match step {
            Inheriting::Deserted => {
                let gone = |state| state == SourceState::Disconnected;
                if status.state == GroupState::Serving
                    && status.sources.iter().flatten().all(|source| gone(source.state))
                {
                    self.audit.inherits(status.last.0);
                    for _ in 0..plan.crashes {
                        let events = self.heir_rng.below(plan.crash_events);
                        let crash = if self.heir_rng.once_in(2) { Crash::Power } else { Crash::Process };
                        self.armed.push((events, Fault::Third(ThirdFault::Crash(crash))));
                    }
                    self.ask_third();
                }
            }
            Inheriting::Asked { since } => {
                if (status.role, status.state) == (Role::Primary, GroupState::Serving) {
                    self.home = THIRD;
                    let operations = self.counts.submitted + plan.operations;
                    self.inheriting(Inheriting::Serving { operations });
                    self.wake_fronts();
                } else if status.role == Role::Third && self.now >= since + ASKS_AGAIN_NS {
                    self.ask_third();
                }
            }
            Inheriting::Serving { operations } => {
                let over = self.counts.submitted >= operations && self.armed.is_empty();
                let served = (status.role, status.state) == (Role::Primary, GroupState::Serving);
                if status.role == Role::Third && status.state == GroupState::Serving {
                    panic!("INV-7: hosts were served by a third that is not primary any more");
                }
                if over && served && self.undisturbed() {
                    self.stage = Stage::Settling { until: self.now + INHERITED_NS_MAX };
                    self.wake_fronts();
                }
            }
        }
    }

    /// Whether the third refuses what a dead site of the pair said: its hello was under way when it died, and came to a third that is
    /// primary and took over with all that it tells of. Nobody hears the refusal.
    pub(super) fn refuses_the_dead(&self, source: SiteId, code: RefusalCode) -> bool {
        let gone = self.is_inherited() && !self.alive(usize::from(source.0) - 1);
        if !gone || code != RefusalCode::Role {
            return false;
        }
        let Some(third) = self.status(THIRD).filter(|third| third.role == Role::Primary) else {
            return false;
        };
        let met = third.sources.iter().flatten().find(|met| met.site == source);
        met.and_then(|met| met.parted).is_some_and(|parted| self.audit.was_inherited(parted.theirs.last.0))
    }

    fn ask_third(&mut self) {
        self.inheriting(Inheriting::Asked { since: self.now });
        self.administer(THIRD, AdminOp::PromoteThird { fenced: true, accepted: Some(u64::MAX) });
    }
}
