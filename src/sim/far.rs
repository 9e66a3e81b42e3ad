//! The same hosts with a third site and without it. A third that is far away, or away for days, whose disks are slow, whose journal is full or
//! whose disks refuse is none of their business: what they ask is answered at the same instant and with the same words.
//!
//! In such a run chance belongs to where and when it strikes: every event draws from a generator of its own, of its seed, its place and its
//! instant. What is drawn for a third then moves nothing else, and whatever differs between the two runs is the product's doing. Sites work
//! off what there is before time goes on, for the same reason. The pair itself is spared all faults.

use std::collections::BTreeMap;

use crate::base::{BLOCK_BYTES, Nanos, SlotId, VolumeId};
use crate::core::group::status::Behind;
use crate::core::journal::journal_blocks_min;
use crate::core::messages::{Executor, HostError, HostOp, HostReply, IoRequest, IoTarget};
use crate::core::outbox::Event as GroupEvent;
use crate::format::superblock::SUPERBLOCK_SLOTS;
use crate::sim::audit::{PRIMARY, THIRD};
use crate::sim::network::{self, PAIR};
use crate::sim::plan::{Crash, Plan};
use crate::sim::rng::Rng;
use crate::sim::third::ThirdPlan;
use crate::sim::world::{Event, World};

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const HOUR: u64 = 3_600_000 * MS;

/// Tells the generator of these runs from the others of its seed.
const FORK: u64 = 0x0066_6172;

/// The way to a third, one way, and datagrams lost of a million.
const WAY_NS: u64 = 40 * MS;
const LOST_PPM: u64 = 1_000;

/// Times that hosts pause while a third is away, so that days go by.
const PAUSES: u64 = 12;

/// Hosts come when the third is there.
pub(super) const HOSTS_COME_AT: u64 = 1_000 * MS;

/// What is said of the third is judged once in so many events.
const JUDGED_EVERY_EVENTS: u64 = 64;

/// An age is right to this share of the longest lately, and to as much as a site takes to look at it.
const AGE_SHARE: u64 = 32;
const AGE_SLACK_NS: u64 = 2 * MS;

/// Operations that a host may have under way: its next one comes when it comes.
pub(super) const TICKETS: usize = 256;

/// An I/O takes at most so many times what it takes typically.
const LATENCY_TIMES_MAX: u64 = 17;

/// Kinds of trouble.
pub const TROUBLES: [&str; 6] =
    ["far away", "dead for days", "cut off for days", "slow disks", "a full journal", "disks that refuse"];

/// An I/O that never ends while the disks stand still.
const STANDSTILL_NS: u64 = 1_000_000 * HOUR;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

/// What befalls the third.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is there, as far away as it is.
    Distance,
    /// It is dead for days.
    Dead(Crash),
    /// Nothing gets to it for days, nor from it.
    CutOff,
    /// Its disks take a hundred times as long.
    SlowDisks,
    /// No block gets into its volumes any more, so its journal fills up.
    FullJournal,
    /// Its disks refuse whatever they are asked.
    Refusal { errno: i32 },
}

/// What one seed does to a third that hosts are not to notice.
#[derive(Clone, Copy, Debug)]
pub struct FarPlan {
    pub trouble: Trouble,
    /// From when to when, in hosts' operations.
    from: u64,
    until: u64,
    /// How long hosts pause, each time.
    pause_ns: u64,
    prefers_second: bool,
}

/// An operation of a host's: what it was, when it was asked, and when it was answered with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lived {
    op: HostOp,
    asked_at: u64,
    answered: Option<(u64, Result<(), HostError>)>,
}

/// What a run keeps of its hosts, to be compared with one that has no third, and of what an operator is told of that.
#[derive(Debug, Default)]
pub struct Far {
    lived: Vec<Lived>,
    /// By so much an answer may come at another moment: a sweep that hosts wait for may begin behind the superblock that lets go of what was
    /// kept for a third (INV-12).
    moved_ns_max: u64,
    /// How many of them were asked before hosts paused for the run's end.
    worked: usize,
    /// Operations that are under way, by front and ticket.
    under_way: BTreeMap<(usize, u32), usize>,
    trouble: Stretch,
    /// When each of the pair had settled how much.
    settled_at: [Vec<(u64, u64)>; 2],
    /// Sites that have warned of a third that may lapse.
    warned: [bool; 2],
    /// The longest that each has said that the third was behind since it last was not.
    longest_ns: [u64; 2],
    seen: FarSeen,
}

/// How far the trouble is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stretch {
    #[default]
    Ahead,
    Since(u64),
    Over,
}

/// What an operator was told in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct FarSeen {
    /// Operations of hosts that were compared.
    pub operations: u64,
    /// Those of them that were answered at another instant than without a third, and by how much at most; and seeds that have none.
    pub moved: u64,
    pub later_ns_max: u64,
    pub earlier_ns_max: u64,
    pub alike: u64,
    pub virtual_ns: u64,
    pub troubles: [u64; TROUBLES.len()],
    /// Thirds that were lost, warnings that one may lapse soon, and those that did, as both sites of the pair told it.
    pub lost: u64,
    pub warnings: u64,
    pub lapses: u64,
    /// Times that what a site said of its third was compared with what there is, and the longest that one was behind (ns).
    pub judged: u64,
    pub age_ns_max: u64,
    /// How often the primary's journal went round.
    pub rounds: u64,
}

impl FarSeen {
    pub fn add(&mut self, one: &FarSeen) {
        let all = self;
        for (sum, value) in [
            (&mut all.operations, one.operations),
            (&mut all.moved, one.moved),
            (&mut all.alike, one.alike),
            (&mut all.virtual_ns, one.virtual_ns),
            (&mut all.lost, one.lost),
            (&mut all.warnings, one.warnings),
            (&mut all.lapses, one.lapses),
            (&mut all.judged, one.judged),
            (&mut all.rounds, one.rounds),
        ] {
            *sum += value;
        }
        all.troubles.iter_mut().zip(one.troubles).for_each(|(sum, seeds)| *sum += seeds);
        all.later_ns_max = all.later_ns_max.max(one.later_ns_max);
        all.earlier_ns_max = all.earlier_ns_max.max(one.earlier_ns_max);
        all.age_ns_max = all.age_ns_max.max(one.age_ns_max);
    }
}

impl Plan {
    /// Neither faults nor operators, and a third far away that has trouble; `third` says whether it is there.
    pub fn far(&mut self, rng: &mut Rng, third: bool) {
        (self.takeover, self.resync, self.replace) = (None, None, None);
        (self.split, self.aimed, self.heir) = (None, None, None);
        self.adopt = None;
        self.faults.clear();
        (self.crash_again_percent, self.crashes_at_catch_up, self.crashes_at_wrap) = (0, 0, 0);
        (self.ring_ns, self.turn_messages) = (0, u64::MAX);
        self.think_ns = rng.pick(&[300, 2000, 10_000]) * US;
        self.depth = self.depth.min(8);
        let trouble = match rng.below(8) {
            0 | 1 => Trouble::Distance,
            2 => Trouble::Dead(if rng.once_in(2) { Crash::Power } else { Crash::Process }),
            3 => Trouble::CutOff,
            4 | 5 => Trouble::SlowDisks,
            6 => Trouble::FullJournal,
            _ => Trouble::Refusal { errno: rng.pick(&[5, 28]) },
        };
        let away = matches!(trouble, Trouble::Dead(_) | Trouble::CutOff);
        let from = rng.between(50, 300);
        let far = FarPlan {
            trouble,
            from,
            until: 3 * self.operations - rng.between(20, 150),
            pause_ns: if away { rng.pick(&[4, 9, 20]) * HOUR } else { 0 },
            prefers_second: rng.once_in(4),
        };
        self.far = Some(far);
        let journal_blocks = journal_blocks_min() + rng.pick(&[1500, 3000]);
        self.operations *= 3;
        for config in &mut self.configs {
            config.journal_blocks = journal_blocks;
            config.pages += 4000;
            config.differential_blocks *= 100;
            // A copy of all of it has room.
            config.resync.staging_blocks += 4 * config.differential_blocks;
            // Days go by, in which lockstep is nothing but its heartbeats.
            let Some(peer) = config.peer.as_mut().filter(|_| away) else { continue };
            (peer.latency_budget, peer.heartbeat_interval) = (Nanos(12 * HOUR), Nanos(HOUR));
            config.host_deadline = Nanos(24 * HOUR);
        }
        if self.has_peer() {
            self.add_far_third(rng, far);
        }
        if !third {
            // The pair has a third by its configuration, and nobody comes.
            self.third = None;
            self.configs.truncate(THIRD);
        }
    }

    /// The way between a third and the others, and datagrams lost on it of a million.
    pub fn way_of_third_ns(&self) -> u64 {
        if self.far.is_some() { WAY_NS } else { self.network_ns }
    }

    pub fn lost_to_third_ppm(&self) -> u64 {
        if self.far.is_some() { LOST_PPM } else { 0 }
    }

    fn add_far_third(&mut self, rng: &mut Rng, far: FarPlan) {
        self.third = Some(ThirdPlan {
            replace_percent: 0,
            prefers_second: far.prefers_second,
            down_ns: 40 * MS,
            crash_again_percent: 0,
            crash_again_events: 1,
            strike_percent: 0,
        });
        // Longer than a round trip with a loss in it, and than what a slow disk takes.
        let (heartbeat_interval, silence_max) = (Nanos(rng.pick(&[50, 200]) * MS), Nanos(10_000 * MS));
        self.add_third(far.prefers_second, heartbeat_interval, silence_max, rng);
    }
}

/// Where an event happens, and as what: events that differ only in what the third had done before are the same.
fn place_of(event: &Event) -> [u64; 4] {
    match event {
        Event::Turn { site, .. } => [1, *site as u64, 0, 0],
        Event::Link { site, leg, .. } => [2, *site as u64, *leg as u64, 0],
        Event::Front { site, front, .. } => [3, *site as u64, *front as u64, 0],
        Event::Submit { site, executor, request, .. } => [
            4 | (*executor as u64) << 8 | (request.op as u64) << 16,
            *site as u64,
            number_of(request.target),
            block_of(request),
        ],
        Event::Complete { site, executor, request, .. } => [
            5 | (*executor as u64) << 8 | (request.op as u64) << 16,
            *site as u64,
            number_of(request.target),
            block_of(request),
        ],
        Event::Metadata { site, .. } => [6, *site as u64, 0, 0],
        Event::Restart { site } => [7, *site as u64, 0, 0],
        Event::Dial { path } => [8, *path as u64, 0, 0],
        Event::Established { end, .. } => [9, end.path as u64, end.side as u64, 0],
        Event::Arrive { end, .. } => [10, end.path as u64, end.side as u64, 0],
        Event::Lost { end, .. } => [11, end.path as u64, end.side as u64, 0],
        Event::Healed { path } => [12, *path as u64, 0, 0],
        Event::Promote { site } => [13, *site as u64, 0, 0],
        Event::Administer { site, .. } => [14, *site as u64, 0, 0],
        Event::Vacancy => [15, 0, 0, 0],
    }
}

/// Both slots of the superblock are one place.
fn block_of(request: &IoRequest) -> u64 {
    let superblock = request.target == IoTarget::Journal && request.block < SUPERBLOCK_SLOTS;
    if superblock { 0 } else { request.block }
}

fn number_of(target: IoTarget) -> u64 {
    match target {
        IoTarget::Journal => 0,
        IoTarget::Staging => 1,
        IoTarget::Differential => 2,
        IoTarget::Volume(VolumeId(volume)) => 3 + 2 * u64::from(volume),
        IoTarget::Checksums(VolumeId(volume)) => 4 + 2 * u64::from(volume),
    }
}

impl Trouble {
    fn number(self) -> usize {
        match self {
            Trouble::Distance => 0,
            Trouble::Dead(_) => 1,
            Trouble::CutOff => 2,
            Trouble::SlowDisks => 3,
            Trouble::FullJournal => 4,
            Trouble::Refusal { .. } => 5,
        }
    }
}

impl FarPlan {
    /// Pauses between two counts of operations.
    fn pauses(&self, before: u64, after: u64) -> u64 {
        let mark = |pause: u64| self.from + (self.until - self.from) * pause / (PAUSES + 1);
        (1..=PAUSES).filter(|pause| (before + 1..=after).contains(&mark(*pause))).count() as u64
    }
}

impl Far {
    pub(super) fn new(plan: &Plan) -> Far {
        Far { moved_ns_max: LATENCY_TIMES_MAX * (plan.write_ns + plan.flush_ns), ..Far::default() }
    }

    pub(super) fn asked(&mut self, now: u64, front: usize, ticket: SlotId, op: HostOp) {
        self.under_way.insert((front, ticket.0), self.lived.len());
        self.lived.push(Lived { op, asked_at: now, answered: None });
    }

    pub(super) fn answered(&mut self, now: u64, front: usize, reply: &HostReply) {
        let index = self.under_way.remove(&(front, reply.ticket.0)).expect("it was asked");
        self.lived[index].answered = Some((now, reply.result));
    }

    /// What a site of the pair tells its operator of the third.
    pub(super) fn hears(&mut self, site: usize, event: &GroupEvent) {
        match event {
            GroupEvent::ThirdLost { .. } => self.seen.lost += 1,
            GroupEvent::ThirdLapsesSoon { .. } => {
                self.seen.warnings += 1;
                self.warned[site] = true;
            }
            GroupEvent::ThirdLapsed { position, oldest } => {
                self.seen.lapses += 1;
                let warned = std::mem::take(&mut self.warned[site]);
                assert!(
                    warned,
                    "site {site} lets go of what follows {position} up to {oldest}, and warned nobody"
                );
            }
            _ => {}
        }
    }

    /// Hosts at work are told the same in the run without a third, and when.
    ///
    /// # Errors
    /// Where the runs part.
    pub fn compare(&self, alone: &Far) -> Result<FarSeen, String> {
        let moved_max = self.moved_ns_max;
        let mut seen = FarSeen { operations: self.worked as u64, ..self.seen };
        if self.worked != alone.worked {
            return Err(format!("{} operations with a third, {} without", self.worked, alone.worked));
        }
        let both = self.lived.iter().zip(&alone.lived).take(self.worked);
        for (index, (with, without)) in both.enumerate() {
            let (Some((at, result)), Some((at_alone, result_alone))) = (with.answered, without.answered)
            else {
                return Err(format!(
                    "operation {index} is not answered: {with:?} with a third, {without:?} without"
                ));
            };
            let asked_alike = (with.op, with.asked_at) == (without.op, without.asked_at);
            let moved = at.abs_diff(at_alone);
            if !asked_alike || result != result_alone || moved > moved_max {
                return Err(format!(
                    "a host notices the third, operation {index}: {with:?} with it, {without:?} without"
                ));
            }
            seen.moved += u64::from(moved > 0);
            seen.later_ns_max = seen.later_ns_max.max(at.saturating_sub(at_alone));
            seen.earlier_ns_max = seen.earlier_ns_max.max(at_alone.saturating_sub(at));
        }
        seen.alike = u64::from(seen.moved == 0);
        Ok(seen)
    }
}

impl World {
    /// An event draws from generators of its own.
    pub(super) fn draw_in_place(&mut self, event: &Event) {
        if self.far.is_none() {
            return;
        }
        let mix = |state: u64, word: u64| Rng::new(state ^ word).draw();
        // An I/O takes as long whenever it comes: what moves by a microsecond is not to become another draw.
        let at = if matches!(event, Event::Submit { .. }) { 0 } else { self.now };
        let mut own = Rng::new(place_of(event).into_iter().fold(mix(self.plan.seed, at), mix));
        for rng in [&mut self.rng, &mut self.snapshot_rng, &mut self.changes_rng, &mut self.compare_rng] {
            *rng = Rng::new(own.draw());
        }
    }

    /// Hosts have asked; perhaps they pause now.
    pub(super) fn perhaps_pause(&mut self, index: usize, before: u64) {
        let Some(plan) = self.plan.far else { return };
        let pause_ns = plan.pause_ns * plan.pauses(before, self.counts.submitted);
        for front in self.sites[index].fronts.iter_mut().filter(|_| pause_ns > 0) {
            front.next_at = front.next_at.max(self.now) + pause_ns;
        }
    }

    /// Whether it makes sense to dial: days of somebody's absence are not to be days of trying.
    pub(super) fn may_be_dialled(&self, path: usize) -> bool {
        self.far.is_none() || self.network.has_both(path, self.now, |site| self.alive(site))
    }

    /// Whoever is back is dialled then.
    pub(super) fn dial_at_once(&mut self, site: usize) {
        if self.far.is_some() {
            network::ends_of(&self.plan, site)
                .collect::<Vec<_>>()
                .iter()
                .for_each(|end| self.dial_later(end.path));
        }
    }

    fn paths_of_third(&self) -> impl Iterator<Item = usize> + use<> {
        PAIR + 1..self.network.paths()
    }

    fn in_trouble(&self, site: usize, trouble: Trouble) -> bool {
        let under_way = || self.far.as_ref().is_some_and(|far| matches!(far.trouble, Stretch::Since(_)));
        site == THIRD && self.plan.far.is_some_and(|plan| plan.trouble == trouble) && under_way()
    }

    /// How much longer an I/O takes than it would.
    pub(super) fn stands_still_ns(&self, site: usize, executor: Executor) -> u64 {
        let stands = executor == Executor::Volumes && self.in_trouble(site, Trouble::FullJournal);
        if stands { STANDSTILL_NS } else { 0 }
    }

    /// The error that an I/O fails with.
    pub(super) fn refuses(&self, site: usize) -> Option<i32> {
        match self.plan.far?.trouble {
            Trouble::Refusal { errno } => {
                Some(errno).filter(|errno| self.in_trouble(site, Trouble::Refusal { errno: *errno }))
            }
            _ => None,
        }
    }

    /// After each event.
    pub(super) fn watch_far(&mut self) {
        let (Some(plan), Some(far)) = (self.plan.far, &self.far) else { return };
        let trouble = far.trouble;
        if self.plan.third.is_none() {
            return;
        }
        if trouble == Stretch::Ahead && self.counts.submitted >= plan.from {
            self.begin_trouble(plan.trouble);
        }
        for site in self.pair() {
            let settled = self.standing(site).map_or(0, |status| status.settled.0);
            let far = self.far.as_mut().expect("looked at it");
            if far.settled_at[site].last().is_none_or(|(number, _)| *number < settled) {
                far.settled_at[site].push((settled, self.now));
            }
        }
        let ends = matches!(trouble, Stretch::Since(_)) && self.counts.submitted >= plan.until;
        if ends || self.outcome.events.is_multiple_of(JUDGED_EVERY_EVENTS) {
            self.pair().for_each(|site| self.judge_lag(site));
        }
        if ends {
            self.end_trouble(plan.trouble);
        }
    }

    fn begin_trouble(&mut self, trouble: Trouble) {
        self.trace.note(self.now, || format!("the third has trouble: {trouble:?}"));
        let far = self.far.as_mut().expect("the caller looked");
        far.trouble = Stretch::Since(self.now);
        far.seen.troubles[trouble.number()] += 1;
        match trouble {
            Trouble::Dead(crash) => {
                assert!(self.alive(THIRD), "nothing else kills it");
                self.end(THIRD, crash);
            }
            Trouble::CutOff => self.paths_of_third().for_each(|path| self.partition(path, STANDSTILL_NS)),
            Trouble::SlowDisks => self.sites[THIRD].slow_until = u64::MAX,
            Trouble::Distance | Trouble::FullJournal | Trouble::Refusal { .. } => {}
        }
    }

    fn end_trouble(&mut self, trouble: Trouble) {
        self.trace.note(self.now, || format!("the third has no trouble any more: {trouble:?}"));
        self.far.as_mut().expect("the caller looked").trouble = Stretch::Over;
        match trouble {
            Trouble::Dead(_) => self.restart(THIRD),
            Trouble::CutOff => {
                self.paths_of_third().for_each(|path| self.end_partition(path));
                self.dial_at_once(THIRD);
            }
            Trouble::SlowDisks => self.sites[THIRD].slow_until = 0,
            Trouble::FullJournal => {
                self.end(THIRD, Crash::Process);
                self.restart(THIRD);
            }
            Trouble::Distance | Trouble::Refusal { .. } => {}
        }
    }

    /// Hosts have asked all that is compared.
    pub(super) fn end_work(&mut self) {
        if let Some(far) = &mut self.far {
            far.worked = far.lived.len();
        }
    }

    /// The run is over.
    pub(super) fn end_far(&mut self) {
        let rounds =
            self.status(PRIMARY).map_or(0, |status| status.counters.journal_blocks / status.journal_blocks);
        if let Some(far) = &mut self.far {
            far.seen.rounds = rounds;
        }
    }

    /// What a site of the pair says of how far the third is behind is never too little, and as much as it knows.
    fn judge_lag(&mut self, site: usize) {
        let Some(status) = self.status(site) else { return };
        let third = status.third.expect("each of the pair has a third");
        let (has, position) = (self.audit.third_durable(), third.position.0);
        let Behind { updates, bytes, age } = third.behind;
        let far = self.far.as_mut().expect("only called then");
        far.seen.judged += 1;
        let longest = &mut far.longest_ns[site];
        *longest = if updates == 0 { 0 } else { age.0.max(*longest) };
        let longest = *longest;
        far.seen.age_ns_max = far.seen.age_ns_max.max(age.0);
        assert!(
            updates + has >= status.settled.0,
            "site {site} says that its third, at #{has}, is {updates} updates behind {}",
            status.settled
        );
        let since = |number: u64| {
            let first = far.settled_at[site].partition_point(|(settled, _)| *settled <= number);
            far.settled_at[site].get(first).map_or(0, |(_, at)| self.now - at)
        };
        let (least, most) = (since(has), since(position));
        assert!(
            age.0 >= least && age.0 <= most + longest / AGE_SHARE + AGE_SLACK_NS,
            "site {site} says that its third is {age:?} behind: it is by {least} ns, and by {most} ns as far as is known"
        );
        // What the third has in memory alone may be gone from the journal.
        if self.audit.kept_from(site) <= position + 1 {
            let blocks = self.audit.payload_between(position, status.settled.0);
            assert!(
                bytes >= blocks * BLOCK_BYTES as u64,
                "site {site} says that its third lacks {bytes} bytes, and it lacks {blocks} blocks"
            );
        }
    }
}
