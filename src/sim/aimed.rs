//! Faults and orders that are aimed: at moments which those of the plan, at any point of anything, rarely meet.

use crate::base::Generation;
use crate::core::config::Role;
use crate::core::group::status::PeerState;
use crate::core::messages::AdminOp;
use crate::sim::audit::SITES_MAX;
use crate::sim::handover::SWITCHOVER_NS_MAX;
use crate::sim::plan::{CRASHES_MAX, Crash, Fault, Plan};
use crate::sim::rng::Rng;
use crate::sim::split::Part;
use crate::sim::world::{Event, Stage, World};

const MS: u64 = 1_000_000;

/// What one seed aims at. Drawn from a generator of its own.
#[derive(Clone, Copy, Debug)]
pub struct AimedPlan {
    /// So many times something strikes a site that has just begun to reconcile its history with its peer's, to catch up
    /// or to be copied to.
    pub reconciling: u32,
    /// So many times the disks of a site get slow when it opens a generation, which is journaled then long before it is durable;
    /// and it loses power when its peer is there to be sent what follows.
    pub openings: u32,
    /// Sites that have dropped a tail to which an operator switches over, while hosts are quiet, in a hundred: what they know by the
    /// tail and forgot with it, they need as primaries.
    pub returns_percent: u64,
}

/// What came of it so far.
#[derive(Debug)]
pub(super) struct Aim {
    rng: Rng,
    /// Which of the states aimed at each site was in.
    state: [Option<(Role, PeerState)>; SITES_MAX],
    /// The site whose opening takes long.
    opens: Option<usize>,
}

/// What is struck of those that are no reconciling secondaries.
const OTHERS_ONE_IN: u64 = 8;

/// Events within which a site that opens a generation loses power once its peer is there.
const OPENING_EVENTS: u64 = 200;

/// An operator asks so often for a switchover, which is refused until the sites are in lockstep again.
const ASKED: u64 = 6;

/// Tells the generator of aimed faults from the others of its seed.
const FORK: u64 = 0x0061_696d_6564;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

impl AimedPlan {
    pub fn new(rng: &mut Rng, plan: &Plan) -> Option<AimedPlan> {
        if !plan.has_peer() || rng.once_in(4) {
            return None;
        }
        Some(AimedPlan {
            reconciling: rng.pick(&[0, 2, 5]),
            openings: rng.pick(&[0, 1, 3, 6]),
            returns_percent: rng.pick(&[0, 100, 100]),
        })
    }
}

impl Aim {
    pub fn new(rng: Rng) -> Aim {
        Aim { rng, state: [None; SITES_MAX], opens: None }
    }

    fn fault(&mut self, site: usize) -> Fault {
        let ns = self.rng.pick(&[2, 30, 300]) * MS;
        let errno = self.rng.pick(&[5, 28]);
        match self.rng.below(8) {
            0 => Fault::Crash { site, crash: Crash::Process },
            1 => Fault::Crash { site, crash: Crash::Power },
            2 => Fault::SlowDisk { site, ns: ns.min(50 * MS) },
            3 => Fault::DiskError { site, journal: self.rng.once_in(2), errno },
            4 => Fault::Break,
            5 => Fault::Garble { site },
            6 => Fault::Partition { ns },
            _ => Fault::Gray { delay_ns: ns, ns: ns.min(200 * MS) },
        }
    }
}

impl World {
    /// After a turn of a group.
    pub(super) fn perhaps_strike_again(&mut self, site: usize) {
        if self.plan.aimed.is_none_or(|plan| plan.reconciling == 0) {
            return;
        }
        let state = self.standing(site).map(|status| (status.role, status.peer));
        let state = state.filter(|(role, peer)| match peer {
            PeerState::Reconciling => true,
            PeerState::CatchingUp | PeerState::Resyncing => *role == Role::Secondary,
            _ => false,
        });
        let was = std::mem::replace(&mut self.aim.state[site], state);
        // A primary begins first, and takes longer; and a secondary often has something to catch up with.
        if state.is_none()
            || state == was
            || (state != Some((Role::Secondary, PeerState::Reconciling))
                && !self.aim.rng.once_in(OTHERS_ONE_IN))
        {
            return;
        }
        let joins = matches!(self.stage, Stage::Parted { part: Part::Asked { .. } | Part::Joining, .. });
        let may = joins || (self.stage == Stage::Working && self.outcome.crashes < CRASHES_MAX);
        if let Some(plan) = self.plan.aimed.as_mut().filter(|_| may) {
            plan.reconciling -= 1;
            let fault = self.aim.fault(site);
            self.armed.push((0, fault));
        }
    }

    /// A site has opened a generation, or learned of one.
    pub(super) fn perhaps_slow_opening(&mut self, site: usize, generation: Generation) {
        let own = generation.opener() == self.plan.configs[site].site;
        let Some(plan) = self.plan.aimed.as_mut().filter(|plan| own && plan.openings > 0) else { return };
        if self.stage == Stage::Working && self.outcome.crashes < CRASHES_MAX {
            plan.openings -= 1;
            self.aim.opens = Some(site);
            let ns = self.aim.rng.pick(&[20, 100]) * MS;
            self.armed.push((0, Fault::SlowDisk { site, ns }));
        }
    }

    /// The site's peer begins to catch up.
    pub(super) fn perhaps_undo_opening(&mut self, site: usize) {
        if self.stage == Stage::Working && self.aim.opens == Some(site) {
            self.aim.opens = None;
            let events = self.aim.rng.below(OPENING_EVENTS);
            self.armed.push((events, Fault::Crash { site, crash: Crash::Power }));
        }
    }

    /// Hosts take their time until they ask again: what the new primary has not overwritten by then, the tail of the old one may have.
    pub(super) fn perhaps_quieten(&mut self) -> Option<u64> {
        let plan =
            self.plan.aimed.filter(|_| self.plan.takeover.is_some() && self.stage == Stage::Working)?;
        if !self.aim.rng.percent(plan.returns_percent) {
            return None;
        }
        let quiet_ns = self.aim.rng.pick(&[5, 20, 60]) * MS;
        for front in self.sites.iter_mut().flat_map(|site| &mut site.fronts) {
            front.next_at = front.next_at.max(self.now + quiet_ns);
        }
        Some(quiet_ns)
    }

    /// The site has dropped its tail.
    pub(super) fn perhaps_return(&mut self, site: usize) {
        let Some(quiet_ns) = self.perhaps_quieten() else { return };
        self.trace.note(self.now, || format!("operator switches over at site {site} while hosts are quiet"));
        self.operator_until = self.operator_until.max(self.now + quiet_ns + SWITCHOVER_NS_MAX);
        for step in 1..=ASKED {
            let at = self.now + quiet_ns * step / ASKED;
            self.schedule(at, Event::Administer { site, op: AdminOp::Switchover });
        }
    }
}
