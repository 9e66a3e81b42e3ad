//! Split brains in a run: at its end, an operator promotes the secondary while the primary lives, both serve hosts and cannot see each other;
//! then they meet, and an operator lets one of them give way. Each of the two histories has an auditor of its own, until one is left.

use std::ops::{Deref, DerefMut};

use crate::core::config::{OnPeerLoss, Role};
use crate::core::messages::AdminOp;
use crate::sim::audit::{Auditor, Media, PRIMARY, Place, SECONDARY, peer_of};
use crate::sim::disk::Stored;
use crate::sim::network::PAIR;
use crate::sim::plan::{Crash, Fault, Plan};
use crate::sim::rng::Rng;
use crate::sim::world::{Stage, World};

const MS: u64 = 1_000_000;

/// Longest that any of it takes.
const PARTED_NS_MAX: u64 = 60_000 * MS;

/// Operations of both sites' hosts, at most, until they meet.
const APART_OPERATIONS_MAX: u64 = 2_000;

/// Operations of the kept site's hosts meanwhile: what they write is to fit the staging file.
const JOINING_OPERATIONS: u64 = 60;

/// An operator asks again after this, if the site has died meanwhile.
const ASKS_AGAIN_NS: u64 = 200 * MS;

/// What one seed does with them. Drawn from a generator of its own.
#[derive(Clone, Copy, Debug)]
pub struct SplitPlan {
    /// Writes that each side acknowledges alone, at least.
    pub writes: u64,
    /// The site that is primary at the end is kept, and not the other one.
    pub keeps_home: bool,
    /// Deaths of either site while one gives way, within so many events from one to the next.
    pub crashes: u64,
    pub crash_events: u64,
}

/// Tells the generator of split brains from the others of its seed.
const FORK: u64 = 0x0073_706c_6974;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

impl SplitPlan {
    pub fn new(rng: &mut Rng, plan: &Plan) -> Option<SplitPlan> {
        let solo = plan.configs[0].peer.as_ref().is_some_and(|peer| peer.on_peer_loss == OnPeerLoss::Solo);
        // Hosts have to be at both sites.
        if !solo || plan.takeover.is_none() || rng.once_in(4) {
            return None;
        }
        Some(SplitPlan {
            writes: rng.pick(&[1, 20, 150]),
            keeps_home: rng.once_in(2),
            crashes: rng.pick(&[0, 1, 3, 6]),
            crash_events: rng.pick(&[50, 300, 1500]),
        })
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The other site is being promoted.
    Promoting,
    Apart,
    /// Hosts wait for their replies, and the sites meet.
    Meeting,
    /// One is told to give way, since then.
    Asked {
        since: u64,
    },
    /// It follows the other one, or will.
    Joining,
}

/// The auditors: one for each history.
pub(super) struct Audits {
    main: Auditor,
    /// That of the other history, and the site that has it.
    other: Option<(usize, Box<Auditor>)>,
    /// The site whose history is to go.
    pub(super) gone: usize,
}

impl Deref for Audits {
    type Target = Auditor;
    fn deref(&self) -> &Auditor {
        &self.main
    }
}

impl DerefMut for Audits {
    fn deref_mut(&mut self) -> &mut Auditor {
        &mut self.main
    }
}

impl Audits {
    pub(super) fn new(main: Auditor) -> Audits {
        Audits { main, other: None, gone: 0 }
    }

    pub(super) fn set_now(&mut self, now: u64) {
        self.main.now = now;
        self.other.iter_mut().for_each(|(_, other)| other.now = now);
    }

    /// The one that watches the site.
    pub(super) fn of(&mut self, site: usize) -> &mut Auditor {
        match &mut self.other {
            Some((at, other)) if *at == site => other,
            _ => &mut self.main,
        }
    }

    fn part(&mut self, site: usize) {
        self.other = Some((site, Box::new(self.main.clone())));
    }

    pub(super) fn are_two(&self) -> bool {
        self.other.is_some()
    }

    /// A host of the site has asked something.
    pub(super) fn pass_by(&mut self, site: usize) {
        match &mut self.other {
            Some((at, _)) if *at == site => self.main.skips_operation(),
            Some((_, other)) => other.skips_operation(),
            None => {}
        }
    }

    /// The site's process is over. If it is to install the history that is kept, its own is one no more.
    pub(super) fn perhaps_adopt(&mut self, site: usize, media: &dyn Media) {
        if site != self.gone || !self.are_two() || !self.of(site).is_marked(media) {
            return;
        }
        self.of(site).crashed(site, media);
        let (at, other) = self.other.take().expect("there are two");
        let (mut kept, own) = match at == site {
            true => (self.main.clone(), *other),
            false => (*other, self.main.clone()),
        };
        kept.adopts(site, &own);
        self.main = kept;
    }
}

impl World {
    pub(super) fn is_parted(&self) -> bool {
        matches!(self.stage, Stage::Parted { .. })
    }

    fn part_goes_on(&mut self, part: Part) {
        self.trace.note(self.now, || format!("parted: {part:?}"));
        self.stage = Stage::Parted { part, until: self.now + PARTED_NS_MAX };
        for site in self.members() {
            for front in 0..self.sites[site].fronts.len() {
                self.wake_front(site, front, self.now);
            }
        }
    }

    /// Everything is settled: perhaps it is not over yet.
    pub(super) fn perhaps_part(&mut self) -> bool {
        if self.plan.split.is_none() || self.outcome.splits > 0 {
            return false;
        }
        self.outcome.splits += 1;
        let other = peer_of(self.home);
        self.audit.part(other);
        self.audit.of(other).ordered_to_take_over(other);
        self.partition(PAIR, PARTED_NS_MAX);
        self.part_goes_on(Part::Promoting);
        self.administer(other, AdminOp::Promote { fenced: true });
        true
    }

    pub(super) fn go_on_parted(&mut self, part: Part) {
        let Some(plan) = self.plan.split else { return };
        let gone = if plan.keeps_home { peer_of(self.home) } else { self.home };
        let serves = |world: &World, site: usize| {
            world.standing(site).is_some_and(|status| status.role == Role::Primary && status.solo)
        };
        match part {
            Part::Promoting => {
                if serves(self, PRIMARY) && serves(self, SECONDARY) {
                    let writes = [PRIMARY, SECONDARY].map(|site| self.audit.of(site).acknowledged_writes);
                    self.apart_from = writes;
                    self.apart_since = self.counts.submitted;
                    self.part_goes_on(Part::Apart);
                }
            }
            Part::Apart => {
                let enough = |world: &mut World, site: usize| {
                    world.audit.of(site).acknowledged_writes >= world.apart_from[site] + plan.writes
                };
                // Writes may all fail where snapshots keep too much.
                let tired = self.counts.submitted >= self.apart_since + APART_OPERATIONS_MAX;
                if (enough(self, PRIMARY) && enough(self, SECONDARY)) || tired {
                    self.audit.gone = gone;
                    self.end_partition(PAIR);
                    self.part_goes_on(Part::Meeting);
                }
            }
            Part::Meeting => {
                let idle =
                    self.sites.iter().flat_map(|site| &site.fronts).all(|front| front.outstanding() == 0);
                let met = |site| self.status(site).is_some_and(|status| status.split.is_some());
                if idle && met(PRIMARY) && met(SECONDARY) {
                    self.home = peer_of(gone);
                    for _ in 0..plan.crashes {
                        let events = self.split_rng.below(plan.crash_events);
                        let crash = if self.split_rng.once_in(2) { Crash::Power } else { Crash::Process };
                        let site = self.split_rng.below(2) as usize;
                        self.armed.push((events, Fault::Crash { site, crash }));
                    }
                    self.ask_to_give_way();
                }
            }
            Part::Asked { since } => {
                let gone = self.audit.gone;
                if self.status(gone).is_some_and(|status| status.gives_way) {
                    self.joining_operations = self.counts.submitted + JOINING_OPERATIONS;
                    self.part_goes_on(Part::Joining);
                } else if self.now >= since + ASKS_AGAIN_NS
                    && self.status(gone).is_some_and(|status| status.split.is_some())
                {
                    self.ask_to_give_way();
                }
            }
            Part::Joining => {
                if !self.audit.are_two() && self.armed.is_empty() && self.in_lockstep() {
                    self.end_faults();
                    if self.undisturbed() {
                        self.stage = Stage::Settling { until: self.now + PARTED_NS_MAX };
                    }
                }
            }
        }
    }

    /// As long as a mark is not flushed, a loss of power may undo it, and which history the site has is not decided: then its process
    /// dies, and nothing else. Losses of power with marks of one history come without this.
    pub(super) fn crash_that_decides(&self, site: usize, crash: Crash) -> Crash {
        if !self.is_parted() {
            return crash;
        }
        let disk = &self.sites[site].disk;
        let mark = |stored: Option<&Stored>| stored.map(|stored| stored.io);
        let flushed = mark(disk.visible(Place::Staging, 0)) == mark(disk.durable(Place::Staging, 0));
        if flushed { crash } else { Crash::Process }
    }

    fn ask_to_give_way(&mut self) {
        let gone = self.audit.gone;
        self.part_goes_on(Part::Asked { since: self.now });
        self.administer(gone, AdminOp::GiveWay);
        self.administer(gone, AdminOp::HostsGone);
    }
}
