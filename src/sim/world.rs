//! The event loop: the sites, their disks, the network between them, and time.

use std::collections::BTreeSet;
use std::rc::Rc;

use crate::base::*;
use crate::core::config::{AckLevel, DifferentialBy};
use crate::core::group::Turn;
use crate::core::messages::*;
use crate::core::outbox::Event as GroupEvent;
use crate::format::wire::RefusalCode;
use crate::sim::adopt::{self, AdoptPlan};
use crate::sim::aimed::{self, Aim, AimedPlan};
use crate::sim::audit::{AuditConfig, Auditor, JournalSeen, Level, PRIMARY, SECONDARY, THIRD};
use crate::sim::compare;
use crate::sim::disk::IoId;
use crate::sim::extend::Extensions;
use crate::sim::far::{self, Far};
use crate::sim::handover::{self, Orders};
use crate::sim::heir::{self, HeirPlan, Inheriting};
use crate::sim::hosts::{Excuses, HostCounts};
use crate::sim::lease;
use crate::sim::minimise::{Case, Ingredient};
use crate::sim::network::{End, Network, PAIR};
pub use crate::sim::outcome::Outcome;
use crate::sim::plan::{Crash, Fault, Plan};
use crate::sim::queue::Queue;
use crate::sim::readiness::Disaster;
use crate::sim::resync::{self, ReplacePlan, ResyncPlan};
use crate::sim::rng::Rng;
use crate::sim::rot::{self, RotPlan, Rotten, RottenAside};
use crate::sim::site::{Alarm, Done, Site};
use crate::sim::snapshots::{self, SnapshotPlan};
use crate::sim::split::{self, Audits, Part, SplitPlan};
use crate::sim::takeover;
use crate::sim::third;
use crate::sim::trace::Trace;
use crate::sim::upkeep;

const MS: u64 = 1_000_000;

/// What happens at an instant. Everything of a process names its incarnation, and dies with it.
#[derive(Debug)]
pub(super) enum Event {
    Turn {
        site: usize,
        token: u64,
    },
    Link {
        site: usize,
        leg: usize,
        token: u64,
    },
    Front {
        site: usize,
        front: usize,
        token: u64,
    },
    Submit {
        site: usize,
        incarnation: u32,
        executor: Executor,
        request: IoRequest,
    },
    Complete {
        site: usize,
        incarnation: u32,
        executor: Executor,
        request: IoRequest,
        io: IoId,
        result: Result<(), IoFault>,
    },
    /// The oldest request of a site's management information is done.
    Metadata {
        site: usize,
        incarnation: u32,
    },
    Restart {
        site: usize,
    },
    Dial {
        path: usize,
    },
    Established {
        end: End,
        connection: u64,
    },
    Arrive {
        end: End,
        connection: u64,
    },
    Lost {
        end: End,
        connection: u64,
    },
    Healed {
        path: usize,
    },
    /// An operator's command reaches a site.
    Promote {
        site: usize,
    },
    Administer {
        site: usize,
        op: AdminOp,
    },
    /// An operator looks whether anybody is primary.
    Vacancy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Hosts and faults.
    Working,
    /// Faults are over; the group has until then to be in lockstep again.
    Healing {
        until: u64,
    },
    /// In lockstep, and nothing disturbs: every operation must succeed.
    Calm {
        operations: u64,
        until: u64,
    },
    Settling {
        until: u64,
    },
    /// The operator's word was wrong: both sites serve, until one of them gives way.
    Parted {
        part: Part,
        until: u64,
    },
    /// Both sites of the pair are dead for good, and the third takes over.
    Inherited {
        step: Inheriting,
        until: u64,
    },
    Stopping {
        until: u64,
    },
}

/// Events of one run; a run beyond is spinning.
const EVENTS_MAX: u64 = 4_000_000;
/// Events of one instant; beyond, those who wake each other keep time from going on.
const INSTANT_EVENTS_MAX: u64 = 10_000;
/// A group that asks to be called again at once gets its turn after this.
const TURN_GAP_NS: u64 = 300;
/// What turns, rings and the deadline scan may add to a host's deadline.
const SLACK_NS: u64 = 5 * MS;

pub struct World {
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    /// Snapshots' own, so that seeds without them are not changed by them.
    pub(super) snapshot_rng: Rng,
    /// Volumes that become larger.
    pub(super) extensions: Extensions,
    /// That of hosts who ask what was changed.
    pub(super) changes_rng: Rng,
    /// Takeovers' own, for the same reason.
    pub(super) takeover_rng: Rng,
    pub(super) handover_rng: Rng,
    pub(super) step_down_rng: Rng,
    pub(super) orders: Orders,
    pub(super) lease_rng: Rng,
    /// The primary from which the other site was asked to take over, nobody being fenced.
    pub(super) left_behind: Option<usize>,
    /// And resyncs' own.
    pub(super) resync_rng: Rng,
    /// And that of disks that are replaced.
    pub(super) replace_rng: Rng,
    /// And split brains'.
    pub(super) split_rng: Rng,
    /// And the third site's.
    pub(super) third_rng: Rng,
    /// A site is lost for good, as far as the others can tell.
    pub(super) disaster: Option<Disaster>,
    /// And that of a third that takes over.
    pub(super) heir_rng: Rng,
    /// And that of comparisons.
    pub(super) compare_rng: Rng,
    /// And that of bits that flip.
    pub(super) rot_rng: Rng,
    pub(super) rot: RotPlan,
    /// And that of what operators do to sites that are well.
    pub(super) upkeep_rng: Rng,
    pub(super) rotten: Vec<Rotten>,
    pub(super) rotten_aside: Vec<RottenAside>,
    pub(super) aim: Aim,
    /// Writes that each side had acknowledged when they parted.
    pub(super) apart_from: [u64; 2],
    /// And operations submitted.
    pub(super) apart_since: u64,
    /// Operations after which hosts wait until one site follows the other again.
    pub(super) joining_operations: u64,
    /// A staging file could not be written, or hosts outran a copy, so its site may refuse to go on.
    pub(super) copies_may_fail: bool,
    /// What an operator asked for last may go on until then.
    pub(super) operator_until: u64,
    /// The site where hosts are, and the newest generation that served them.
    pub(super) home: usize,
    pub(super) home_generation: Generation,
    /// Promotions asked for so far.
    pub(super) promotions: u64,
    /// When a site last had fewer free slots than one operation may need.
    pub(super) slots_lacked_at: Option<u64>,
    /// Administrators' acts so far.
    pub(super) administered: u64,
    pub(super) now: u64,
    queue: Queue<Event>,
    pub(super) sites: Vec<Site>,
    pub(super) network: Network,
    pub(super) audit: Audits,
    pub(super) trace: Trace,
    pub(super) stage: Stage,
    pub(super) next_fault: usize,
    /// A fault that happens after this many more events.
    pub(super) armed: Vec<(u64, Fault)>,
    /// Faults that were to strike so far, and those of them that do not.
    pub strikes: u32,
    pub(super) spared: BTreeSet<u32>,
    pub(super) counts: HostCounts,
    pub(super) outcome: Outcome,
    /// What hosts are told, where that is to be the same without a third.
    pub far: Option<Box<Far>>,
}

impl World {
    pub fn new(case: &Case, print: bool) -> World {
        let seed = case.seed;
        let has = |ingredient: Ingredient| !case.without.contains(&ingredient);
        let mut rng = Rng::new(seed);
        let mut snapshot_rng = snapshots::generator(seed);
        let snapshots = SnapshotPlan::new(seed, &mut snapshot_rng);
        let mut plan = Plan::new(seed, &mut rng, snapshots);
        let mut takeover_rng = takeover::generator(seed);
        plan.take_over(&mut takeover_rng);
        let mut handover_rng = handover::generator(seed);
        if has(Ingredient::Handover) {
            plan.hand_over(&mut handover_rng);
        }
        let mut step_down_rng = handover::generator_of_stepping_down(seed);
        if has(Ingredient::StepDown) {
            plan.step_down(&mut step_down_rng);
        }
        let mut lease_rng = lease::generator(seed);
        if has(Ingredient::Unasked) {
            plan.take_over_unasked(&mut lease_rng);
        }
        let mut resync_rng = resync::generator(seed);
        plan.resync = ResyncPlan::new(&mut resync_rng, &plan).filter(|_| has(Ingredient::Resync));
        let mut replace_rng = resync::generator_of_replacing(seed);
        plan.replace = ReplacePlan::new(&mut replace_rng, &plan).filter(|_| has(Ingredient::Replace));
        let mut split_rng = split::generator(seed);
        plan.split = SplitPlan::new(&mut split_rng, &plan).filter(|_| has(Ingredient::Split));
        let mut rot_rng = rot::generator(seed);
        let rotten = has(Ingredient::Rot) && !case.far;
        let mut rot = if rotten { RotPlan::new(&mut rot_rng, &plan) } else { RotPlan::NONE };
        let mut aimed_rng = aimed::generator(seed);
        plan.aimed = AimedPlan::new(&mut aimed_rng, &plan).filter(|_| has(Ingredient::Aimed));
        let mut third_rng = third::generator(seed);
        if has(Ingredient::Third) && !case.far {
            plan.follow(&mut third_rng);
        }
        let mut heir_rng = heir::generator(seed);
        plan.heir = HeirPlan::new(&mut heir_rng, &plan);
        let mut adopt_rng = adopt::generator(seed);
        plan.adopt = AdoptPlan::new(&mut adopt_rng, &plan).filter(|_| has(Ingredient::Adopt));
        if plan.adopt.is_some() {
            // Nobody could repair what one site alone has.
            rot.working = 0;
        }
        if case.far {
            plan.far(&mut far::generator(seed), has(Ingredient::Third));
        }
        let extensions = Extensions::new(seed, &mut plan, has(Ingredient::Extend) && !case.far);
        let mut upkeep_rng = upkeep::generator(seed);
        if has(Ingredient::Upkeep) && !case.far {
            plan.keep_up(&mut upkeep_rng);
        }
        plan.end_after(case.operations);
        let mut trace = Trace::new(print);
        trace.note(0, || format!("{plan:#?}"));
        let config = &plan.configs[0];
        let volumes: Vec<u64> = config.volumes.iter().map(|volume| volume.blocks).collect();
        let level = match config.ack {
            AckLevel::Received => Level::Received,
            AckLevel::Journaled => Level::Journaled,
            AckLevel::Durable => Level::Durable,
            AckLevel::Applied => Level::Applied,
        };
        let mut audit = Auditor::new(AuditConfig {
            volumes: volumes.clone(),
            level,
            peer: plan.has_peer(),
            journals: plan
                .configs
                .iter()
                .map(|config| JournalSeen {
                    blocks: config.journal_blocks,
                    volatile: config.journal_volatile,
                })
                .collect(),
            by_value: config.differential == DifferentialBy::Value,
            wait_ns_max: config.host_deadline.0 + config.host_deadline.0 / 8 + SLACK_NS,
        });
        let sums = Rc::default();
        let mut sites: Vec<Site> =
            (0..plan.configs.len()).map(|index| Site::new(&plan, index, &volumes, &sums)).collect();
        if let Some(adopts) = plan.adopt {
            adopts.adopt(&mut adopt_rng, &plan, &mut sites[PRIMARY].disk, &mut audit);
        }
        let mut world = World {
            rng,
            snapshot_rng,
            changes_rng: snapshots::generator_of_changes(seed),
            takeover_rng,
            handover_rng,
            step_down_rng,
            orders: Orders::default(),
            extensions,
            lease_rng,
            left_behind: None,
            resync_rng,
            replace_rng,
            split_rng,
            third_rng,
            disaster: None,
            heir_rng,
            compare_rng: compare::generator(seed),
            rot_rng,
            rot,
            upkeep_rng,
            rotten: Vec::new(),
            rotten_aside: Vec::new(),
            aim: Aim::new(aimed_rng),
            apart_from: [0; 2],
            apart_since: 0,
            joining_operations: 0,
            copies_may_fail: false,
            home: PRIMARY,
            operator_until: 0,
            home_generation: Generation::NONE,
            promotions: 0,
            slots_lacked_at: None,
            administered: 0,
            now: 0,
            queue: Queue::new(),
            sites,
            network: Network::new(&plan),
            audit: Audits::new(audit),
            trace,
            stage: Stage::Working,
            next_fault: 0,
            armed: Vec::new(),
            strikes: 0,
            spared: case.spared.clone(),
            counts: HostCounts::default(),
            outcome: Outcome { adopted: u64::from(plan.adopt.is_some()), ..Outcome::default() },
            far: plan.far.filter(|_| plan.has_peer()).map(|_| Box::new(Far::new(&plan))),
            plan,
        };
        world.schedule(0, Event::Restart { site: PRIMARY });
        if world.plan.has_peer() {
            let at = world.rng.below(MS);
            world.schedule(at, Event::Restart { site: SECONDARY });
            world.schedule(MS, Event::Dial { path: PAIR });
        }
        if world.plan.third.is_some() {
            let at = world.third_rng.below(20 * MS);
            world.schedule(at, Event::Restart { site: THIRD });
            (PAIR + 1..world.network.paths()).for_each(|path| world.schedule(2 * MS, Event::Dial { path }));
        }
        world
    }

    /// Runs to the end. A violation panics.
    pub fn run(&mut self) -> Outcome {
        let mut instant = 0;
        while !self.finished() {
            let Some((at, event)) = self.queue.pop() else {
                // Faults are counted in events; where there are none any more, the next one is due.
                if self.strike_next() {
                    continue;
                }
                panic!("nothing is going to happen any more, in {:?}", self.stage);
            };
            assert!(at >= self.now, "time goes on");
            instant = if at > self.now { 0 } else { instant + 1 };
            assert!(instant < INSTANT_EVENTS_MAX, "livelock: time stands still, in {:?}", self.stage);
            self.now = at;
            self.audit.set_now(at);
            self.outcome.events += 1;
            assert!(self.outcome.events < EVENTS_MAX, "livelock: {EVENTS_MAX} events, in {:?}", self.stage);
            self.trace.event(at, &event);
            self.draw_in_place(&event);
            self.happen(event);
            self.fire_armed();
            self.watch_stops();
            self.watch_readiness();
            self.watch_far();
            self.advance_stage();
        }
        self.check_end()
    }

    pub(super) fn schedule(&mut self, at: u64, event: Event) {
        self.queue.push(at.max(self.now), event);
    }

    pub(super) fn wake_group(&mut self, site: usize, at: u64) {
        let at = at.max(self.now);
        let alarm = &mut self.sites[site].alarm;
        if alarm.at.is_none_or(|set| at < set) {
            *alarm = Alarm { at: Some(at), token: alarm.token + 1 };
            let token = alarm.token;
            self.schedule(at, Event::Turn { site, token });
        }
    }

    pub(super) fn wake_link(&mut self, site: usize, leg: usize, at: u64) {
        let at = at.max(self.now);
        let alarm = &mut self.sites[site].legs[leg].alarm;
        if alarm.at.is_none_or(|set| at < set) {
            *alarm = Alarm { at: Some(at), token: alarm.token + 1 };
            let token = alarm.token;
            self.schedule(at, Event::Link { site, leg, token });
        }
    }

    pub(super) fn wake_front(&mut self, site: usize, front: usize, at: u64) {
        let at = at.max(self.now);
        let alarm = &mut self.sites[site].front_alarms[front];
        if alarm.at.is_none_or(|set| at < set) {
            *alarm = Alarm { at: Some(at), token: alarm.token + 1 };
            let token = alarm.token;
            self.schedule(at, Event::Front { site, front, token });
        }
    }

    /// Whoever asks to be called again at once is called after this.
    pub(super) fn turn_gap_ns(&self) -> u64 {
        if self.far.is_some() { 0 } else { TURN_GAP_NS }
    }

    pub(super) fn alive(&self, site: usize) -> bool {
        self.sites[site].group.is_some()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn { site, token } => {
                if self.alive(site) && self.sites[site].alarm.token == token {
                    self.sites[site].alarm.at = None;
                    self.group_turn(site);
                }
            }
            Event::Link { site, leg, token } => {
                if self.alive(site) && self.sites[site].legs[leg].alarm.token == token {
                    self.sites[site].legs[leg].alarm.at = None;
                    self.link_turn(site, leg);
                }
            }
            Event::Front { site, front, token } => {
                if self.alive(site) && self.sites[site].front_alarms[front].token == token {
                    self.sites[site].front_alarms[front].at = None;
                    self.front_turn(site, front);
                }
            }
            Event::Submit { site, incarnation, executor, request } => {
                if self.sites[site].incarnation == incarnation {
                    self.submit_io(site, executor, request);
                }
            }
            Event::Complete { site, incarnation, executor, request, io, result } => {
                if self.sites[site].incarnation == incarnation {
                    self.complete_io(site, executor, request, io, result);
                }
            }
            Event::Metadata { site, incarnation } => {
                if self.sites[site].incarnation == incarnation {
                    self.complete_metadata(site);
                }
            }
            Event::Restart { site } => self.restart(site),
            Event::Dial { path } => self.dial(path),
            Event::Established { end, connection } => self.established(end, connection),
            Event::Arrive { end, connection } => self.arrive(end, connection),
            Event::Lost { end, connection } => self.lost(end, connection),
            Event::Healed { path } => self.healed(path),
            Event::Promote { site } => self.promote(site),
            Event::Administer { site, op } => self.administer(site, op),
            Event::Vacancy => self.end_vacancy(),
        }
    }

    // ------------------------------------------------------------------------------------------------ the group

    fn group_turn(&mut self, index: usize) {
        let now = self.now;
        let rng = &mut self.rng;
        let bound = self.plan.turn_messages;
        let Site {
            group,
            memory,
            tables,
            out,
            legs,
            fronts,
            journal_done,
            volume_done,
            metadata_done,
            admin,
            disk,
            ..
        } = &mut self.sites[index];
        let group = group.as_mut().expect("the caller looked");
        let mut turn = Turn { now: Nanos(now), memory, tables, out };
        while metadata_done.front().is_some_and(|(ready, _)| *ready <= now) {
            let (_, done) = metadata_done.pop_front().expect("looked at it");
            group.on_metadata(&mut turn, done);
        }
        while admin.front().is_some_and(|(ready, _)| *ready <= now) {
            let (_, request) = admin.pop_front().expect("looked at it");
            group.on_admin(&mut turn, request);
        }
        let mut disconnected = false;
        let first_leg = 2;
        let first_front = first_leg + legs.len();
        let edges = first_front + fronts.len();
        let all = self.far.is_some();
        let (start, backwards) =
            if all { (0, false) } else { (rng.below(edges as u64) as usize, rng.once_in(2)) };
        for step in 0..edges {
            let edge = if backwards { start + edges - step } else { start + step } % edges;
            for _ in 0..if all { u64::MAX } else { rng.between(1, bound) } {
                match edge {
                    0 | 1 => {
                        let (ring, executor) = match edge {
                            0 => (&mut *journal_done, Executor::Journal),
                            _ => (&mut *volume_done, Executor::Volumes),
                        };
                        if ring.front().is_none_or(|done| done.ready > now) {
                            break;
                        }
                        let Done { done, write, .. } = ring.pop_front().expect("looked at it");
                        if let Some((target, io)) = write {
                            disk.delivered(target, io);
                        }
                        group.on_io(&mut turn, executor, done);
                    }
                    _ if edge < first_front => {
                        let leg = &mut legs[edge - first_leg];
                        let Some(message) = leg.take_for(group, now) else { break };
                        match message {
                            FromLink::Update { .. } if leg.remote.is_some_and(|at| group.stages_from(at)) => {
                            }
                            FromLink::Update { update, .. } if index == THIRD => {
                                self.audit.third_receives(update.number.0, update.generation.0);
                            }
                            _ if leg.remote.is_some() => (),
                            FromLink::Update { .. } if group.stages() => (),
                            FromLink::Update { update, .. } => {
                                self.audit.of(index).receives(index, update.number.0, update.generation.0);
                            }
                            FromLink::Connected { .. } | FromLink::Disconnected { .. } => {
                                // What came before it on the ring still counts, and is answered by this turn.
                                disconnected = true;
                            }
                            _ => (),
                        }
                        self.trace.note(now, || format!("site {index} takes {message:?}"));
                        leg.hand_over(group, &mut turn, message);
                    }
                    _ => {
                        let front = edge - first_front;
                        if fronts[front].ring.front().is_none_or(|(ready, _)| *ready > now) {
                            break;
                        }
                        let (_, request) = fronts[front].ring.pop_front().expect("looked at it");
                        group.on_host(&mut turn, front, request);
                    }
                }
            }
        }
        group.end_turn(&mut turn);
        let deadline = group.next_deadline();
        let stopped = group.stopped();
        let links = legs.iter().filter_map(|leg| leg.due(group)).min();
        self.drain(index);
        self.note_slots(index);
        self.note_home(index);
        self.check_follower();
        self.perhaps_strike_again(index);
        if let Some(status) = self.standing(index).filter(|_| disconnected) {
            self.audit.of(index).disconnected(index, status.last.0, status.generation.0);
        }
        let gap = self.turn_gap_ns();
        let site = &self.sites[index];
        let rings = [
            site.journal_done.front().map(|done| done.ready),
            site.volume_done.front().map(|done| done.ready),
            links,
            site.metadata_done.front().map(|(ready, _)| *ready),
            site.admin.front().map(|(ready, _)| *ready),
        ];
        let hosts = site.fronts.iter().map(|front| front.ring.front().map(|(ready, _)| *ready));
        let next = rings.into_iter().chain(hosts).flatten().map(|at| at.max(now + gap)).min();
        let due = deadline.map(|deadline| deadline.0.max(now + gap)).filter(|_| !stopped);
        if let Some(at) = next.into_iter().chain(due).min() {
            self.wake_group(index, at);
        }
        // The rings from the links may have places again.
        (0..self.sites[index].legs.len()).for_each(|leg| self.wake_link(index, leg, now));
    }

    /// Takes the group's effects onto the rings.
    pub(super) fn drain(&mut self, index: usize) {
        let now = self.now;
        let ring_ns = self.plan.ring_ns;
        // What a site that was taken over from says does not reach its hosts.
        let parted = self.is_parted();
        let heard = self.plan.takeover.is_none() || index == self.home || parted || self.stays_behind(index);
        let excuses = Excuses {
            asked_by: now.checked_sub(self.plan.configs[index].host_deadline.0),
            unread: self.sites[index].reads_failed || self.has_rotten(index),
        };
        let Site { out, memory, fronts, .. } = &mut self.sites[index];
        let mut woken = [false; FRONTS_MAX];
        for (number, front) in fronts.iter_mut().enumerate() {
            while let Some(page) = out.front_pages[number].pop() {
                memory.lend(page);
                front.grant(page);
                woken[number] = true;
            }
            while let Some(reply) = out.to_front[number].pop() {
                let after = front.replies.back().map_or(now, |(ready, _)| *ready).max(now);
                let ready = after.max(now + self.rng.below(ring_ns + 1));
                let (op, request) =
                    front.judge(&reply, heard, excuses, memory, self.audit.of(index), &mut self.counts);
                if let Some(far) = &mut self.far {
                    far.answered(now, number, &reply);
                }
                self.trace.note(now, || {
                    format!("site {index} front {number}: op {op:?} {request:?} -> {:?}", reply.result)
                });
                front.replies.push_back((ready, reply));
                woken[number] = true;
            }
        }
        (0..self.sites[index].legs.len()).for_each(|leg| self.drain_to_link(index, leg));
        let out = &mut self.sites[index].out;
        while out.stamps.pop().is_some() {}
        let mut failed = false;
        let mut catches_up = false;
        let mut dropped = false;
        let mut opened = None;
        let mut resyncs = false;
        let mut third_copied = false;
        while let Some(event) = self.sites[index].out.events.pop() {
            self.trace.note(now, || format!("site {index}: {event:?}"));
            if let Some(far) = &mut self.far {
                far.hears(index, &event);
            }
            self.judge_event(index, &event);
            match event {
                GroupEvent::CopyBegan { .. } | GroupEvent::StagedWhole { .. } if index == THIRD => {
                    third_copied = true;
                }
                GroupEvent::ResyncBegan { .. }
                | GroupEvent::StagedWhole { .. }
                | GroupEvent::CopyToThirdBegan { .. } => resyncs = true,
                GroupEvent::CopyToThirdEnded { .. } => self.outcome.thirds_copied += 1,
                GroupEvent::Recovered { replayed, .. } => self.outcome.replayed += replayed,
                GroupEvent::Checkpointed { .. } => self.outcome.checkpoints += 1,
                GroupEvent::PeerCatchingUp { .. } => {
                    self.outcome.catch_ups += 1;
                    catches_up = true;
                }
                GroupEvent::TailCut { .. } => {
                    self.outcome.cuts += 1;
                    dropped = true;
                }
                GroupEvent::GenerationOpened { generation, .. } => opened = Some(generation),
                GroupEvent::LogFound { .. } => self.outcome.logs_found += 1,
                GroupEvent::StagingFailed { .. } => self.copies_may_fail = true,
                GroupEvent::HostsAwaitCopy { at_most } => {
                    self.copies_may_fail |= resync::outruns(&self.plan, at_most)
                }
                GroupEvent::ReadFailed { target: IoTarget::Journal, block, .. } => {
                    self.audit.of(index).could_not_read_journal(index, block);
                }
                GroupEvent::Refused { refusal: Some(refusal), .. }
                    if parted && refusal.code == RefusalCode::SplitBrain => {}
                GroupEvent::Refused { site, refusal: Some(refusal), .. }
                    if (self.copies_may_fail
                        || resync::nobody_waits_for([index, usize::from(site.0) - 1], &self.stage))
                        && refusal.code == RefusalCode::ResyncRequired
                        && refusal.text.as_str().contains("this site's staging file") => {}
                GroupEvent::Refused { refusal: Some(refusal), .. }
                    if self.outcome.stepped_down > 0 && handover::nobody_is_primary(&refusal) => {}
                GroupEvent::Refused { site, by_us: true, refusal: Some(refusal) }
                    if index == THIRD && self.refuses_the_dead(site, refusal.code) => {}
                GroupEvent::Refused { refusal, .. } => {
                    // Not even for a resync of all blocks: the journal or a changed-block set has what a peer lacks (INV-9).
                    panic!("INV-7, INV-9: sites of one pair refuse each other: {refusal:?}");
                }
                GroupEvent::SnapshotMismatch { snapshot, volume, lba } if self.rotten_aside.is_empty() => {
                    panic!(
                        "site {index} reads other bytes than it kept for {snapshot:?}: {volume:?} {lba:?}"
                    );
                }
                GroupEvent::ImagesDiffer { volume, lba, .. } => {
                    panic!(
                        "INV-8: site {index} had other content than its primary overwrites: {volume:?} {lba:?}"
                    );
                }
                GroupEvent::ChecksumMismatch { volume, lba }
                    if !World::was_rotten(&self.rotten, volume, lba) =>
                {
                    panic!("site {index} reads other bytes than it wrote: {volume:?} {lba:?}");
                }
                GroupEvent::Failed { .. } | GroupEvent::MetadataFailed { .. } => failed = true,
                _ => (),
            }
        }
        self.drain_snapshots(index);
        for executor in [Executor::Journal, Executor::Volumes] {
            loop {
                let site = &mut self.sites[index];
                let queue = match executor {
                    Executor::Journal => &mut site.out.to_journal,
                    Executor::Volumes => &mut site.out.to_volumes,
                };
                let Some(request) = queue.pop() else { break };
                let drained = &mut site.submitted_at[executor as usize];
                *drained = (*drained).max(now + self.rng.below(ring_ns + 1));
                let (at, incarnation) = (*drained, site.incarnation);
                self.schedule(at, Event::Submit { site: index, incarnation, executor, request });
            }
        }
        for (front, woken) in woken.into_iter().enumerate() {
            if woken {
                let replies = self.sites[index].fronts[front].replies.front().map(|(ready, _)| *ready);
                self.wake_front(index, front, replies.unwrap_or(now));
            }
        }
        if resyncs {
            self.perhaps_stop(index);
            self.perhaps_crash_at_resync();
        }
        if third_copied {
            self.perhaps_crash_third_again();
        }
        if catches_up {
            self.perhaps_stop(index);
            self.perhaps_crash_at_catch_up();
            self.perhaps_undo_opening(index);
        }
        if dropped {
            self.perhaps_return(index);
        }
        if let Some(generation) = opened {
            self.perhaps_slow_opening(index, generation);
        }
        if self.sites[index].group.as_ref().is_some_and(|group| group.starts_anew()) {
            self.start_anew(index);
            return;
        }
        if failed && self.sites[index].group.as_ref().is_some_and(|group| group.failed()) {
            // An operator replaces the disk's cable and starts the site again.
            self.trace.note(now, || format!("site {index} has failed"));
            self.sites[index].errors = [None; 2];
            if index == THIRD {
                return self.restart_failed_third();
            }
            self.armed.push((self.rng.below(300), Fault::Crash { site: index, crash: Crash::Process }));
        }
    }
}
