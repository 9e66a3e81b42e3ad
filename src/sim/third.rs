//! A third site in a run: it pulls what is settled from either of the two that are in lockstep, and is struck by faults of its own while
//! nobody waits for it.

use crate::base::{Nanos, SiteId};
use crate::core::config::{GroupConfig, Role, SourceConfig, ThirdConfig};
use crate::core::group::status::{GroupState, SourceState};
use crate::core::group::{PAGES_MIN, THIRD_PAGES};
use crate::core::journal::journal_blocks_min;
use crate::core::messages::Control;
use crate::sim::audit::{PRIMARY, SECONDARY, THIRD, peer_of};
use crate::sim::coverage::Struck;
use crate::sim::network::End;
use crate::sim::plan::{CRASHES_MAX, Crash, Fault, Plan, Planned};
use crate::sim::readiness::Loss;
use crate::sim::rng::Rng;
use crate::sim::split::Audits;
use crate::sim::world::{Event, Stage, World};

const MS: u64 = 1_000_000;

/// Seeds with a peer that have a third site, one in so many.
const ONE_IN: u64 = 8;

/// Faults of the third beside its crashes.
const FAULTS_MAX: u64 = 8;

/// What one seed does with a third site. Drawn from a generator of its own, so that seeds without one are what they were.
#[derive(Clone, Copy, Debug)]
pub struct ThirdPlan {
    /// It prefers the site that was formatted as secondary.
    pub prefers_second: bool,
    /// How long it stays dead, typically (ns).
    pub down_ns: u64,
    /// Its deaths that are followed by another one within so many events after its restart, in a hundred.
    pub crash_again_percent: u64,
    pub crash_again_events: u64,
    /// Promotions at which something strikes it, in a hundred.
    pub strike_percent: u64,
    /// Starts of it before which it is formatted anew, in a hundred.
    pub replace_percent: u64,
}

/// What strikes the third, or one of its two paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThirdFault {
    Crash(Crash),
    SlowDisk {
        ns: u64,
    },
    DiskError {
        journal: bool,
        errno: i32,
    },
    Break {
        leg: usize,
    },
    Garble {
        leg: usize,
        to_third: bool,
    },
    Partition {
        leg: usize,
        ns: u64,
    },
    /// From both of the others at once.
    CutOff {
        ns: u64,
    },
    Gray {
        leg: usize,
        delay_ns: u64,
        ns: u64,
    },
    /// It loses one of the two others, that where hosts are or its peer, for good.
    Loses {
        home: bool,
        loss: Loss,
    },
}

/// Tells the generator of third sites from the others of its seed.
const FORK: u64 = 0x0074_6869_7264;

/// And that of thirds whose disks are replaced.
const REPLACE_FORK: u64 = 0x3372_6470_6c61;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

impl ThirdFault {
    fn any(rng: &mut Rng) -> ThirdFault {
        let leg = rng.below(2) as usize;
        let ns = rng.pick(&[3, 30, 300]) * MS;
        match rng.below(8) {
            0 => ThirdFault::Crash(if rng.once_in(2) { Crash::Power } else { Crash::Process }),
            1 => ThirdFault::SlowDisk { ns },
            2 => ThirdFault::DiskError { journal: rng.once_in(2), errno: rng.pick(&[5, 28]) },
            3 => ThirdFault::Break { leg },
            4 => ThirdFault::Garble { leg, to_third: rng.once_in(2) },
            5 => ThirdFault::Partition { leg, ns },
            6 => ThirdFault::CutOff { ns },
            _ => ThirdFault::Gray { leg, delay_ns: rng.pick(&[3, 30, 300]) * MS, ns },
        }
    }
}

impl Plan {
    /// A third site comes besides. Of two that both go on alone nobody knows yet which of them it is to follow.
    pub fn follow(&mut self, rng: &mut Rng) {
        if !self.has_peer() || !rng.once_in(ONE_IN) {
            return;
        }
        self.split = None;
        let third = ThirdPlan {
            prefers_second: rng.once_in(4),
            down_ns: rng.pick(&[2, 40, 400]) * MS,
            crash_again_percent: rng.pick(&[0, 30, 60]),
            crash_again_events: rng.pick(&[100, 1000, 4000]),
            strike_percent: rng.pick(&[0, 50, 100]),
            replace_percent: Rng::new(self.seed ^ REPLACE_FORK).pick(&[0, 0, 0, 20, 60]),
        };
        self.third = Some(third);
        let silence_max = Nanos(rng.pick(&[40, 150, 600]) * MS);
        let heartbeat_interval = Nanos(rng.pick(&[1, 5, 10]) * MS);
        self.add_third(third.prefers_second, heartbeat_interval, silence_max, rng);
        let crashes = rng.pick(&[0, 1, 3]);
        for number in 0..crashes + rng.below(FAULTS_MAX) {
            let crash = ThirdFault::Crash(if rng.once_in(2) { Crash::Power } else { Crash::Process });
            let fault = Fault::Third(if number < crashes { crash } else { ThirdFault::any(rng) });
            let after_ops = rng.between(20, self.operations - 20);
            self.faults.push(Planned { after_ops, events: rng.below(400), fault });
        }
        self.faults.sort_by_key(|planned| planned.after_ops);
        for _ in 0..rng.pick(&[0, 1, 2, 3]) {
            let loss = match rng.below(3) {
                0 => Loss::Dead(Crash::Power),
                1 => Loss::Dead(Crash::Process),
                _ => Loss::CutOff,
            };
            let fault = Fault::Third(ThirdFault::Loses { home: rng.once_in(2), loss });
            let after_ops = rng.between(20, self.operations - 20);
            self.faults.push(Planned { after_ops, events: rng.below(400), fault });
        }
        self.faults.sort_by_key(|planned| planned.after_ops);
        let bandwidth_max = rng.pick(&[None, None, None, Some(1 << 20), Some(16 << 20)]);
        for third in self.configs.iter_mut().flat_map(|config| &mut config.third) {
            third.bandwidth_max = bandwidth_max;
        }
    }
}

impl Plan {
    /// The third's configuration, and what the other two are told of it.
    pub(super) fn add_third(
        &mut self,
        prefers_second: bool,
        heartbeat_interval: Nanos,
        silence_max: Nanos,
        rng: &mut Rng,
    ) {
        let site = SiteId(THIRD as u16 + 1);
        let config = self.configs[PRIMARY].clone();
        let source = |at: usize| SourceConfig { site: SiteId(at as u16 + 1), silence_max };
        let order = if prefers_second { [SECONDARY, PRIMARY] } else { [PRIMARY, SECONDARY] };
        for config in &mut self.configs {
            config.third = Some(ThirdConfig { site, heartbeat_interval, silence_max, bandwidth_max: None });
            config.pages += THIRD_PAGES as u32;
        }
        self.configs.push(GroupConfig {
            site,
            role: Role::Third,
            peer: None,
            sources: order.map(source).to_vec(),
            journal_blocks: journal_blocks_min() + rng.pick(&[0, 40, 300, 1500]),
            journal_volatile: !rng.once_in(4),
            pages: PAGES_MIN + rng.pick(&[0, 100, 800]) as u32,
            flush_interval: Nanos(rng.pick(&[MS / 5, 2 * MS, 5 * MS])),
            destage_depth_max: rng.pick(&[1, 4, 32]) as usize,
            fronts: 1,
            ..config
        });
    }
}

impl Audits {
    /// What the third says to a source, or a source to it.
    pub(super) fn says(&mut self, site: usize, control: &Control) {
        match *control {
            Control::Pull { after, generation, durable, .. } => self.pulls(after.0, generation.0, durable.0),
            Control::Heartbeat { settled, .. } => self.check_claim(site, "settled", settled.0),
            Control::Lapsed { oldest } => self.lapses(site, oldest.0),
            Control::Install { upto } => self.check_claim(site, "settled", upto.0),
            Control::BlockWanted { .. } if site == THIRD => {}
            Control::BlockLacking { .. } if site != THIRD => {}
            // What they lead to is looked at where it is written.
            Control::CopyWanted
            | Control::CopyOffer { .. }
            | Control::DigestsWanted { .. }
            | Control::Staged { .. } => {}
            _ => panic!("site {site} says {control:?} on the third's link"),
        }
    }
}

impl World {
    pub(super) fn strike_third(&mut self, fault: ThirdFault) {
        let end_of = |world: &World, leg: usize| -> End { world.sites[THIRD].legs[leg].end };
        let (struck, leg) = match fault {
            ThirdFault::Crash(crash) => return self.crash_third(crash),
            ThirdFault::Loses { home, loss } => {
                let victim = if home { self.home } else { peer_of(self.home) };
                return self.lose_for_good(victim, loss);
            }
            ThirdFault::SlowDisk { ns } => {
                self.sites[THIRD].slow_until = self.now + ns;
                (Struck::SlowDisk, None)
            }
            ThirdFault::DiskError { journal, errno } => {
                self.sites[THIRD].errors[usize::from(!journal)] = Some(errno);
                (if journal { Struck::JournalError } else { Struck::VolumeError }, None)
            }
            ThirdFault::Break { leg } => (Struck::Break, Some(leg)),
            ThirdFault::Garble { leg, .. } => (Struck::Garble, Some(leg)),
            ThirdFault::Partition { leg, .. } => (Struck::Partition, Some(leg)),
            ThirdFault::CutOff { .. } => (Struck::Partition, None),
            ThirdFault::Gray { leg, .. } => (Struck::Gray, Some(leg)),
        };
        self.cover(THIRD, struck);
        let end = leg.map(|leg| end_of(self, leg));
        match (fault, end) {
            (ThirdFault::Break { .. }, Some(end)) => self.break_connection(end.path),
            (ThirdFault::Garble { to_third, .. }, Some(end)) => {
                self.network.garble(if to_third { end } else { end.other() });
            }
            (ThirdFault::Partition { ns, .. }, Some(end)) => self.partition(end.path, ns),
            (ThirdFault::CutOff { ns }, _) => {
                for leg in 0..self.sites[THIRD].legs.len() {
                    self.partition(end_of(self, leg).path, ns);
                }
            }
            (ThirdFault::Gray { delay_ns, ns, .. }, Some(end)) => {
                self.network.gray(end.path, delay_ns, self.now + ns);
            }
            _ => {}
        }
    }

    fn crash_third(&mut self, crash: Crash) {
        let Some(plan) = self.plan.third.filter(|_| self.alive(THIRD)) else { return };
        self.cover(THIRD, if crash == Crash::Power { Struck::Power } else { Struck::Process });
        self.outcome.third_crashes += 1;
        self.end(THIRD, crash);
        let down = self.third_rng.latency(plan.down_ns);
        self.schedule(self.now + down, Event::Restart { site: THIRD });
    }

    /// The third has started: perhaps it does not live long.
    pub(super) fn perhaps_crash_third_again(&mut self) {
        let Some(plan) = self.plan.third.filter(|_| self.stage == Stage::Working) else { return };
        if self.outcome.third_crashes < CRASHES_MAX && self.third_rng.percent(plan.crash_again_percent) {
            let crash = if self.third_rng.once_in(2) { Crash::Power } else { Crash::Process };
            let events = self.third_rng.below(plan.crash_again_events);
            self.armed.push((events, Fault::Third(ThirdFault::Crash(crash))));
        }
    }

    /// Its disk has failed: an operator replaces the cable and starts it again.
    pub(super) fn restart_failed_third(&mut self) {
        let events = self.third_rng.below(300);
        self.armed.push((events, Fault::Third(ThirdFault::Crash(Crash::Process))));
    }

    /// One of the two others takes over: the third goes on from there, unless something keeps it from that for a while.
    pub(super) fn perhaps_strike_third(&mut self) {
        let Some(plan) = self.plan.third else { return };
        if self.third_rng.percent(plan.strike_percent) {
            let fault = Fault::Third(ThirdFault::any(&mut self.third_rng));
            self.armed.push((self.third_rng.below(400), fault));
        }
    }

    /// The third is about to start: perhaps its disks are new, and an operator has formatted them. Nobody promised anything with them; but what
    /// a site that is lost left it, it has to have had.
    pub(super) fn perhaps_replace_third(&mut self) {
        let Some(plan) = self.plan.third.filter(|plan| plan.replace_percent > 0) else { return };
        let may = self.stage == Stage::Working && self.disaster.is_none();
        if !may || !self.third_rng.percent(plan.replace_percent) {
            return;
        }
        self.format_anew(THIRD);
        self.outcome.thirds_replaced += 1;
    }

    /// Whether the third, if there is one, is sent what is settled: one that lapsed, or lost its disks, has been copied what it lacked.
    pub(super) fn third_follows(&self) -> bool {
        self.plan.third.is_none()
            || self.status(THIRD).is_some_and(|status| {
                status.sources.iter().flatten().any(|source| source.state == SourceState::Pulling)
            })
    }

    /// Everything is settled on the other two, and the third has all of it; and is not just installing that.
    pub(super) fn third_has_all(&self) -> bool {
        self.plan.third.is_none()
            || self.standing(THIRD).is_some_and(|status| {
                status.state == GroupState::Serving
                    && status.checkpoint == status.settled
                    && status.settled.0 == self.audit.last()
            })
    }
}
