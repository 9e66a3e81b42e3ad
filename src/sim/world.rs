//! The event loop: two sites, their disks, the network between them, and time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

use crate::base::*;
use crate::core::config::AckLevel;
use crate::core::group::status::{GroupState, PeerState};
use crate::core::group::{Group, Turn};
use crate::core::messages::*;
use crate::core::outbox::{Event as GroupEvent, Outbox, Tables};
use crate::format::superblock::Superblock;
use crate::format::wire::RefusalCode;
use crate::sim::audit::journal::Seen;
use crate::sim::audit::{AuditConfig, Auditor, Level, PRIMARY, SECONDARY};
use crate::sim::content::{Block, Print};
use crate::sim::disk::{Disk, IoId, place_of};
use crate::sim::hosts::{Front, HostCounts};
use crate::sim::link::Link;
use crate::sim::memory::SimMemory;
use crate::sim::network::Network;
use crate::sim::plan::{Crash, Fault, Plan};
use crate::sim::rng::Rng;
use crate::sim::trace::Trace;

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
    Restart {
        site: usize,
    },
    Dial,
    Established {
        site: usize,
        connection: u64,
    },
    Arrive {
        site: usize,
        connection: u64,
    },
    Lost {
        site: usize,
        connection: u64,
    },
    Healed,
}

struct Scheduled {
    at: u64,
    tie: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        (self.at, self.tie) == (other.at, other.tie)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.tie).cmp(&(other.at, other.tie))
    }
}

/// The next time somebody is to be woken; an event with an older token is void.
#[derive(Clone, Copy, Debug, Default)]
struct Alarm {
    at: Option<u64>,
    token: u64,
}

/// A completion on its way to the group.
struct Done {
    ready: u64,
    done: IoDone,
    /// The write it completes, which the next flush then covers.
    write: Option<(IoTarget, IoId)>,
}

pub(super) struct Site {
    pub group: Option<Box<Group>>,
    memory: SimMemory,
    tables: Tables,
    out: Outbox,
    pub disk: Disk,
    pub link: Link,
    fronts: Vec<Front>,
    journal_done: VecDeque<Done>,
    volume_done: VecDeque<Done>,
    incarnation: u32,
    alarm: Alarm,
    link_alarm: Alarm,
    front_alarms: Vec<Alarm>,
    /// When each executor's ring is drained of what was pushed so far.
    submitted_at: [u64; 2],
    slow_until: u64,
    /// Errors to inject: journal, volumes.
    errors: [Option<i32>; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
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
    Stopping {
        until: u64,
    },
}

/// What a run did, for statistics and the ledger.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub hosts: HostCounts,
    pub crashes: u64,
    pub replayed: u64,
    pub updates: u64,
    pub events: u64,
    pub virtual_ns: u64,
    pub acknowledged_writes: u64,
    /// Acknowledged below `durable`, and lost with both sites' power as that level allows.
    pub excused_writes: u64,
    pub solo_ranges: u64,
    pub checkpoints: u64,
    pub catch_ups: u64,
    pub cuts: u64,
    pub resync_required: bool,
    pub trace_hash: u64,
}

/// Time for both sites to be in lockstep once nothing fails any more.
const HEAL_NS_MAX: u64 = 20_000 * MS;
/// Operations of the calm stage.
const CALM_OPERATIONS: u64 = 20;
/// Events of one run; a run beyond is spinning.
const EVENTS_MAX: u64 = 4_000_000;
/// A group that asks to be called again at once gets its turn after this.
const TURN_GAP_NS: u64 = 300;
/// What turns, rings and the deadline scan may add to a host's deadline.
const SLACK_NS: u64 = 5 * MS;

pub struct World {
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    pub(super) now: u64,
    heap: BinaryHeap<Reverse<Scheduled>>,
    ties: u64,
    pub(super) sites: [Site; 2],
    pub(super) network: Network,
    audit: Auditor,
    pub(super) trace: Trace,
    stage: Stage,
    next_fault: usize,
    /// A fault that happens after this many more events.
    armed: Vec<(u64, Fault)>,
    counts: HostCounts,
    outcome: Outcome,
}

impl World {
    pub fn new(seed: u64, print: bool) -> World {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(seed, &mut rng);
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
        let audit = Auditor::new(AuditConfig {
            volumes: volumes.clone(),
            level,
            peer: plan.has_peer(),
            journal_blocks: [0, 1].map(|site| plan.configs[site].journal_blocks),
            journal_volatile: [0, 1].map(|site| plan.configs[site].journal_volatile),
            wait_ns_max: config.host_deadline.0 + config.host_deadline.0 / 8 + SLACK_NS,
        });
        let sites = [0, 1].map(|index| Site::new(&plan, index, &volumes));
        let mut world = World {
            rng,
            now: 0,
            heap: BinaryHeap::new(),
            ties: 0,
            sites,
            network: Network::new(plan.network_ns, plan.notice_ns),
            audit,
            trace,
            stage: Stage::Working,
            next_fault: 0,
            armed: Vec::new(),
            counts: HostCounts::default(),
            outcome: Outcome::default(),
            plan,
        };
        world.schedule(0, Event::Restart { site: PRIMARY });
        if world.plan.has_peer() {
            let at = world.rng.below(MS);
            world.schedule(at, Event::Restart { site: SECONDARY });
            world.schedule(MS, Event::Dial);
        }
        world
    }

    /// Runs to the end. A violation panics.
    pub fn run(mut self) -> Outcome {
        while !self.finished() {
            let Some(Reverse(Scheduled { at, event, .. })) = self.heap.pop() else {
                panic!("nothing is going to happen any more, in {:?}", self.stage);
            };
            assert!(at >= self.now, "time goes on");
            self.now = at;
            self.audit.now = at;
            self.outcome.events += 1;
            assert!(self.outcome.events < EVENTS_MAX, "livelock: {EVENTS_MAX} events, in {:?}", self.stage);
            self.trace.event(at, &event);
            self.happen(event);
            self.fire_armed();
            self.advance_stage();
        }
        self.check_end()
    }

    pub(super) fn schedule(&mut self, at: u64, event: Event) {
        self.ties += 1;
        self.heap.push(Reverse(Scheduled { at: at.max(self.now), tie: self.ties, event }));
    }

    fn wake_group(&mut self, site: usize, at: u64) {
        let at = at.max(self.now);
        let alarm = &mut self.sites[site].alarm;
        if alarm.at.is_none_or(|set| at < set) {
            *alarm = Alarm { at: Some(at), token: alarm.token + 1 };
            let token = alarm.token;
            self.schedule(at, Event::Turn { site, token });
        }
    }

    pub(super) fn wake_link(&mut self, site: usize, at: u64) {
        let at = at.max(self.now);
        let alarm = &mut self.sites[site].link_alarm;
        if alarm.at.is_none_or(|set| at < set) {
            *alarm = Alarm { at: Some(at), token: alarm.token + 1 };
            let token = alarm.token;
            self.schedule(at, Event::Link { site, token });
        }
    }

    fn wake_front(&mut self, site: usize, front: usize, at: u64) {
        let at = at.max(self.now);
        let alarm = &mut self.sites[site].front_alarms[front];
        if alarm.at.is_none_or(|set| at < set) {
            *alarm = Alarm { at: Some(at), token: alarm.token + 1 };
            let token = alarm.token;
            self.schedule(at, Event::Front { site, front, token });
        }
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
            Event::Link { site, token } => {
                if self.alive(site) && self.sites[site].link_alarm.token == token {
                    self.sites[site].link_alarm.at = None;
                    self.link_turn(site);
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
            Event::Restart { site } => self.restart(site),
            Event::Dial => self.dial(),
            Event::Established { site, connection } => self.established(site, connection),
            Event::Arrive { site, connection } => self.arrive(site, connection),
            Event::Lost { site, connection } => self.lost(site, connection),
            Event::Healed => self.healed(),
        }
    }

    // ------------------------------------------------------------------------------------------------ the group

    fn group_turn(&mut self, index: usize) {
        let now = self.now;
        let rng = &mut self.rng;
        let bound = self.plan.turn_messages;
        let Site { group, memory, tables, out, link, fronts, journal_done, volume_done, disk, .. } =
            &mut self.sites[index];
        let group = group.as_mut().expect("the caller looked");
        let mut turn = Turn { now: Nanos(now), memory, tables, out };
        let first_front = 3;
        let edges = first_front + fronts.len();
        let start = rng.below(edges as u64) as usize;
        let backwards = rng.once_in(2);
        for step in 0..edges {
            let edge = if backwards { start + edges - step } else { start + step } % edges;
            for _ in 0..rng.between(1, bound) {
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
                    2 => {
                        if group.link_room() == 0 || link.ring.front().is_none_or(|(ready, _)| *ready > now) {
                            break;
                        }
                        let (_, message) = link.ring.pop_front().expect("looked at it");
                        match message {
                            FromLink::Update { update, .. } => {
                                self.audit.receives(index, update.number.0, update.generation.0);
                            }
                            FromLink::Connected { .. } | FromLink::Disconnected { .. }
                                if index == PRIMARY =>
                            {
                                self.audit.primary_disconnected();
                            }
                            _ => (),
                        }
                        self.trace.note(now, || format!("site {index} takes {message:?}"));
                        group.on_link(&mut turn, message);
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
        self.drain(index);
        let site = &self.sites[index];
        let rings = [
            site.journal_done.front().map(|done| done.ready),
            site.volume_done.front().map(|done| done.ready),
            site.link.ring.front().map(|(ready, _)| *ready),
        ];
        let hosts = site.fronts.iter().map(|front| front.ring.front().map(|(ready, _)| *ready));
        let next = rings.into_iter().chain(hosts).flatten().map(|at| at.max(now + TURN_GAP_NS)).min();
        let due = deadline.map(|deadline| deadline.0.max(now + TURN_GAP_NS)).filter(|_| !stopped);
        if let Some(at) = next.into_iter().chain(due).min() {
            self.wake_group(index, at);
        }
        // The ring from the link may have places again.
        self.wake_link(index, now);
    }

    /// Takes the group's effects onto the rings.
    fn drain(&mut self, index: usize) {
        let now = self.now;
        let ring_ns = self.plan.ring_ns;
        let Site { out, memory, tables, link, fronts, disk, .. } = &mut self.sites[index];
        let mut woken = vec![false; fronts.len()];
        for (number, front) in fronts.iter_mut().enumerate() {
            while let Some(page) = out.front_pages[number].pop() {
                memory.lend(page);
                front.grant(page);
                woken[number] = true;
            }
            while let Some(reply) = out.to_front[number].pop() {
                let after = front.replies.back().map_or(now, |(ready, _)| *ready).max(now);
                let ready = after.max(now + self.rng.below(ring_ns + 1));
                front.replies.push_back((ready, reply));
                woken[number] = true;
            }
        }
        while let Some(page) = out.link_pages.pop() {
            memory.lend(page);
            link.grant(page);
        }
        let mut after = now;
        while let Some(message) = out.to_link.pop() {
            after = after.max(now + self.rng.below(ring_ns + 1));
            self.trace.note(now, || format!("site {index} says {message:?}"));
            let mut pages = Vec::new();
            match message {
                ToLink::Update { update, slot, source, .. } => {
                    let table = match source {
                        UpdateSource::Window => &tables.window,
                        UpdateSource::CatchUp => &tables.catch_up,
                    };
                    let mut blocks = Vec::with_capacity(update.payload_blocks());
                    for block in 0..update.payload_blocks() {
                        let page = table.page(SlotId(slot), block);
                        memory.pin_for_reading(page);
                        pages.push(page);
                        blocks.push(shared(memory.bytes(page)));
                    }
                    self.audit.sends(index, seen(&update), &blocks);
                }
                ToLink::Page { page, .. } => {
                    memory.pin_for_reading(page);
                    pages.push(page);
                }
                ToLink::Control(Control::Ack { journaled, durable, applied, .. }) => {
                    self.audit.acknowledges(index, journaled.0, durable.0, applied.0, disk);
                }
                ToLink::Begin { .. } | ToLink::Control(_) | ToLink::Close => (),
            }
            link.push(after, message, pages);
        }
        while out.stamps.pop().is_some() {}
        let mut submits = Vec::new();
        for executor in [Executor::Journal, Executor::Volumes] {
            let queue = match executor {
                Executor::Journal => &mut out.to_journal,
                Executor::Volumes => &mut out.to_volumes,
            };
            while let Some(request) = queue.pop() {
                submits.push((executor, request));
            }
        }
        let mut failed = false;
        while let Some(event) = out.events.pop() {
            self.trace.note(now, || format!("site {index}: {event:?}"));
            match event {
                GroupEvent::Recovered { replayed, .. } => self.outcome.replayed += replayed,
                GroupEvent::Checkpointed { .. } => self.outcome.checkpoints += 1,
                GroupEvent::PeerCatchingUp { .. } => self.outcome.catch_ups += 1,
                GroupEvent::TailCut { .. } => self.outcome.cuts += 1,
                GroupEvent::Refused { refusal, .. } => {
                    let code = refusal.map(|refusal| refusal.code);
                    assert!(
                        code.is_none_or(|code| code == RefusalCode::ResyncRequired),
                        "INV-7: sites of one pair refuse each other: {code:?}"
                    );
                    self.outcome.resync_required = true;
                }
                GroupEvent::ChecksumMismatch { volume, lba } => {
                    panic!("site {index} reads other bytes than it wrote: {volume:?} {lba:?}");
                }
                GroupEvent::Failed { .. } => failed = true,
                _ => (),
            }
        }
        for (executor, request) in submits {
            let site = &mut self.sites[index];
            let drained = &mut site.submitted_at[executor as usize];
            *drained = (*drained).max(now + self.rng.below(ring_ns + 1));
            let (at, incarnation) = (*drained, site.incarnation);
            self.schedule(at, Event::Submit { site: index, incarnation, executor, request });
        }
        for (front, woken) in woken.into_iter().enumerate() {
            if woken {
                let replies = self.sites[index].fronts[front].replies.front().map(|(ready, _)| *ready);
                self.wake_front(index, front, replies.unwrap_or(now));
            }
        }
        if failed && self.sites[index].group.as_ref().is_some_and(|group| group.failed()) {
            // An operator replaces the disk's cable and starts the site again.
            self.trace.note(now, || format!("site {index} has failed"));
            self.sites[index].errors = [None; 2];
            self.armed.push((self.rng.below(300), Fault::Crash { site: index, crash: Crash::Process }));
        }
    }

    fn link_turn(&mut self, index: usize) {
        let Site { link, memory, tables, .. } = &mut self.sites[index];
        let messages = self.rng.between(1, self.plan.turn_messages.max(8));
        let (said, next) = link.turn(self.now, messages, self.plan.ring_ns, &mut self.rng, memory, tables);
        if let Some(at) = link.ring.front().map(|(ready, _)| *ready) {
            self.wake_group(index, at);
        }
        if let Some(said) = said {
            self.transmit(index, said);
        }
        if let Some(at) = next {
            self.wake_link(index, at.max(self.now + TURN_GAP_NS));
        }
    }

    fn front_turn(&mut self, index: usize, number: usize) {
        let now = self.now;
        let plan = &self.plan;
        let rng = &mut self.rng;
        let Site { fronts, memory, tables, .. } = &mut self.sites[index];
        let front = &mut fronts[number];
        while front.replies.front().is_some_and(|(ready, _)| *ready <= now) {
            let (_, reply) = front.replies.pop_front().expect("looked at it");
            if reply.result.is_err() {
                // Hosts that got an error pause before they try again.
                front.next_at = front.next_at.max(now + rng.below(4 * MS));
                if let Stage::Calm { .. } = self.stage
                    && !self.outcome.resync_required
                    && front.expects_success(&reply)
                {
                    panic!("in lockstep and undisturbed, but an operation failed: {reply:?}");
                }
            }
            let described = front.take_reply(reply, memory, &mut self.audit, &mut self.counts);
            self.trace.note(now, || format!("site {index} front {number}: {described}"));
        }
        let more = match self.stage {
            Stage::Working => true,
            Stage::Calm { operations, .. } => self.counts.submitted < operations,
            _ => false,
        };
        let mut next = front.replies.front().map(|(ready, _)| *ready);
        let mut submitted = false;
        if more && now < front.next_at {
            next = Some(next.map_or(front.next_at, |at| at.min(front.next_at)));
        } else if more {
            let table = &tables.fronts[number];
            for _ in 0..rng.between(1, plan.depth as u64) {
                let sent = front.submit(now, plan, rng, memory, table, &mut self.audit, &mut self.counts);
                let Some(described) = sent else { break };
                self.trace.note(now, || format!("site {index} front {number}: {described}"));
                submitted = true;
            }
            if submitted {
                // The reader at the secondary looks in now and then.
                front.next_at = now + rng.latency(if index == PRIMARY { plan.think_ns } else { MS });
                next = Some(next.map_or(front.next_at, |at| at.min(front.next_at)));
            }
        }
        if let Some((ready, _)) = front.ring.front() {
            let ready = *ready;
            self.wake_group(index, ready);
        }
        if let Some(at) = next {
            self.wake_front(index, number, at.max(now + 1));
        }
    }

    // ------------------------------------------------------------------------------------------------ disks

    fn submit_io(&mut self, index: usize, executor: Executor, request: IoRequest) {
        let now = self.now;
        let plan = &self.plan;
        let Site { memory, tables, disk, slow_until, errors, incarnation, .. } = &mut self.sites[index];
        let table = if executor == Executor::Journal { &tables.journal_io } else { &tables.volume_io };
        let IoRequest { slot, target, op, block, count } = request;
        let count = u64::from(count);
        assert_eq!(executor == Executor::Journal, target == IoTarget::Journal, "{request:?} at {executor:?}");
        assert!(disk.has(target, block, count), "INV-13: site {index} reaches beyond a disk: {request:?}");
        assert_eq!(op == IoOp::Flush, count == 0, "{request:?}");
        let (io, typical) = match op {
            IoOp::Read => {
                (0..count as usize).for_each(|at| memory.pin_for_writing(table.page(slot, at)));
                (disk.read(target, block, count), plan.read_ns)
            }
            IoOp::Write => {
                let mut blocks = Vec::with_capacity(count as usize);
                for at in 0..count as usize {
                    let page = table.page(slot, at);
                    memory.pin_for_reading(page);
                    blocks.push(shared(memory.bytes(page)));
                }
                let io = disk.write(target, block, blocks.iter().cloned());
                self.trace.note(now, || {
                    let names: Vec<_> = blocks.iter().map(|(_, print)| print.describe()).collect();
                    format!("site {index} writes {target:?} at {block}: {names:?}")
                });
                self.audit.writes(index, io, place_of(target), block, &blocks, disk);
                (io, plan.write_ns)
            }
            IoOp::Flush => (disk.flush(target), plan.flush_ns),
        };
        let slow = if now < *slow_until { 100 } else { 1 };
        let latency = self.rng.latency(typical * slow);
        let result = match errors[executor as usize].take() {
            Some(errno) => Err(IoFault::Errno(errno)),
            None => Ok(()),
        };
        let incarnation = *incarnation;
        self.schedule(
            now + latency,
            Event::Complete { site: index, incarnation, executor, request, io, result },
        );
    }

    fn complete_io(
        &mut self,
        index: usize,
        executor: Executor,
        request: IoRequest,
        io: IoId,
        result: Result<(), IoFault>,
    ) {
        let now = self.now;
        let Site { memory, tables, disk, journal_done, volume_done, .. } = &mut self.sites[index];
        let (table, ring) = match executor {
            Executor::Journal => (&tables.journal_io, journal_done),
            Executor::Volumes => (&tables.volume_io, volume_done),
        };
        let IoRequest { slot, target, op, .. } = request;
        let page = |at: usize| table.page(slot, at);
        let mut write = None;
        match (op, result) {
            (IoOp::Read, Ok(())) => disk.complete_read(io, |at, data| *memory.fill(page(at)) = *data),
            (IoOp::Write, Ok(())) => {
                disk.complete_write(io);
                self.audit.written_io(index, io);
                write = Some((target, io));
            }
            (IoOp::Flush, Ok(())) => {
                let covers = disk.complete_flush(io);
                self.audit.flushed(index, &covers);
            }
            (IoOp::Write, Err(_)) => disk.fail_write(io, &mut self.rng),
            (IoOp::Read | IoOp::Flush, Err(_)) => disk.fail(io),
        }
        if op != IoOp::Flush {
            (0..request.count as usize).for_each(|at| memory.unpin(page(at)));
        }
        let after = ring.back().map_or(now, |done| done.ready).max(now);
        let ready = after.max(now + self.rng.below(self.plan.ring_ns + 1));
        ring.push_back(Done { ready, done: IoDone { slot, result }, write });
        let bound = if executor == Executor::Journal { JOURNAL_IO_SLOTS } else { VOLUME_IO_SLOTS };
        assert!(ring.len() <= bound, "INV-12: more completions than slots");
        self.wake_group(index, ready);
    }

    // ------------------------------------------------------------------------------------------------ faults

    fn fire_armed(&mut self) {
        while let Some(planned) = self.plan.faults.get(self.next_fault)
            && self.counts.submitted >= planned.after_ops
        {
            self.armed.push((planned.events, planned.fault));
            self.next_fault += 1;
        }
        let mut due = Vec::new();
        self.armed.retain_mut(|(events, fault)| {
            if *events == 0 {
                due.push(*fault);
                return false;
            }
            *events -= 1;
            true
        });
        for fault in due {
            self.trace.note(self.now, || format!("fault: {fault:?}"));
            self.strike(fault);
        }
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Crash { site, crash } => {
                let other = 1 - site;
                let site = if self.alive(site) || !self.alive(other) { site } else { other };
                self.crash(site, crash);
            }
            Fault::CrashBoth { crashes } => {
                self.crash(PRIMARY, crashes[PRIMARY]);
                self.crash(SECONDARY, crashes[SECONDARY]);
            }
            Fault::SlowDisk { site, ns } => self.sites[site].slow_until = self.now + ns,
            Fault::DiskError { site, journal, errno } => {
                self.sites[site].errors[usize::from(!journal)] = Some(errno);
            }
            Fault::Break => self.break_connection(),
            Fault::Garble { site } => self.network.garble(site),
            Fault::Partition { ns } => self.partition(ns),
            Fault::Gray { delay_ns, ns } => self.network.gray(delay_ns, self.now + ns),
        }
    }

    fn crash(&mut self, index: usize, crash: Crash) {
        if !self.alive(index) {
            return;
        }
        self.outcome.crashes += 1;
        let site = &mut self.sites[index];
        site.group = None;
        site.incarnation += 1;
        match crash {
            Crash::Process => site.disk.crash_process(&mut self.rng),
            Crash::Power => site.disk.crash_power(&mut self.rng),
        }
        self.audit.crashed(index, &site.disk);
        let link = std::mem::replace(&mut site.link, Link::new(1));
        if let Some(connection) = link.connection() {
            self.abandon(index, connection);
        }
        let down = self.rng.latency(self.plan.down_ns);
        self.schedule(self.now + down, Event::Restart { site: index });
    }

    fn restart(&mut self, index: usize) {
        let site = &mut self.sites[index];
        assert!(site.group.is_none());
        self.audit.restarted(index);
        self.trace.note(self.now, || format!("site {index} starts"));
        site.memory.restart();
        let ring = if self.plan.turn_messages == 1 { 1 } else { LINK_INBOUND_SLOTS };
        site.link = Link::new(ring);
        site.fronts = (0..site.fronts.len()).map(|_| Front::new(index, self.plan.depth)).collect();
        site.journal_done.clear();
        site.volume_done.clear();
        site.out = Outbox::new(site.fronts.len());
        site.submitted_at = [self.now; 2];
        site.errors = [None; 2];
        for alarm in [&mut site.alarm, &mut site.link_alarm].into_iter().chain(&mut site.front_alarms) {
            *alarm = Alarm { at: None, token: alarm.token + 1 };
        }
        let mut group = Box::new(Group::new(self.plan.configs[index].clone()));
        let Site { memory, tables, out, .. } = &mut self.sites[index];
        group.start(&mut Turn { now: Nanos(self.now), memory, tables, out });
        self.sites[index].group = Some(group);
        self.drain(index);
        self.wake_group(index, self.now);
        if self.stage == Stage::Working
            && self.rng.percent(self.plan.crash_again_percent)
            && self.outcome.crashes < 12
        {
            let crash = if self.rng.once_in(2) { Crash::Power } else { Crash::Process };
            self.armed.push((self.rng.below(600), Fault::Crash { site: index, crash }));
        }
    }

    // ------------------------------------------------------------------------------------------------ the end

    fn finished(&self) -> bool {
        matches!(self.stage, Stage::Stopping { .. }) && self.members().all(|site| self.stopped(site))
    }

    fn members(&self) -> impl Iterator<Item = usize> + use<> {
        0..if self.plan.has_peer() { 2 } else { 1 }
    }

    fn stopped(&self, site: usize) -> bool {
        let Site { group, disk, link, journal_done, volume_done, .. } = &self.sites[site];
        group.as_ref().is_some_and(|group| group.stopped())
            && disk.in_flight() == 0
            && journal_done.is_empty()
            && volume_done.is_empty()
            && link.idle()
    }

    fn status(&self, site: usize) -> Option<crate::core::group::status::GroupStatus> {
        self.sites[site].group.as_ref().map(|group| group.status(Nanos(self.now)))
    }

    /// A pair that needs a resync, which this build refuses to fake, ends as two sites that go on apart.
    fn in_lockstep(&self) -> bool {
        let Some(primary) = self.status(PRIMARY) else { return false };
        let serving = primary.state == GroupState::Serving;
        if !self.plan.has_peer() || self.outcome.resync_required {
            return serving && self.members().all(|site| self.alive(site));
        }
        serving
            && primary.peer == PeerState::InSync
            && !primary.solo
            && self.status(SECONDARY).is_some_and(|secondary| secondary.peer == PeerState::InSync)
    }

    fn settled(&self) -> bool {
        self.members().all(|site| {
            let fronts = &self.sites[site].fronts;
            let left_alone = self.outcome.resync_required && site == SECONDARY;
            fronts.iter().all(|front| front.outstanding() == 0)
                && self.status(site).is_some_and(|status| {
                    left_alone
                        || (status.settled.0 == self.audit.last() && status.checkpoint == status.settled)
                })
        })
    }

    fn advance_stage(&mut self) {
        let late = |until: u64| self.now > until;
        match self.stage {
            Stage::Working => {
                let faults_over = self.next_fault == self.plan.faults.len() && self.armed.is_empty();
                if self.counts.submitted < self.plan.operations || !faults_over {
                    return;
                }
                self.trace.note(self.now, || "faults are over".into());
                self.end_faults();
                self.stage = Stage::Healing { until: self.now + HEAL_NS_MAX };
            }
            Stage::Healing { until } => {
                assert!(
                    !late(until),
                    "liveness: not in lockstep {HEAL_NS_MAX} ns after the last fault: {:#?} {:#?}",
                    self.status(PRIMARY),
                    self.status(SECONDARY)
                );
                let idle =
                    self.sites.iter().flat_map(|site| &site.fronts).all(|front| front.outstanding() == 0);
                if idle && self.armed.is_empty() && self.in_lockstep() {
                    self.trace.note(self.now, || "in lockstep again".into());
                    let operations = self.counts.submitted + CALM_OPERATIONS;
                    self.stage = Stage::Calm { operations, until: self.now + HEAL_NS_MAX };
                    for site in self.members() {
                        for front in 0..self.sites[site].fronts.len() {
                            self.sites[site].fronts[front].next_at = self.now;
                            self.wake_front(site, front, self.now);
                        }
                    }
                }
            }
            Stage::Calm { operations, until } => {
                assert!(!late(until), "liveness: hosts cannot submit in lockstep");
                if self.counts.submitted >= operations {
                    self.stage = Stage::Settling { until: self.now + HEAL_NS_MAX };
                }
            }
            Stage::Settling { until } => {
                assert!(
                    !late(until),
                    "liveness: not settled {HEAL_NS_MAX} ns after the last operation, last is #{}: {:#?} {:#?}",
                    self.audit.last(),
                    self.status(PRIMARY),
                    self.status(SECONDARY)
                );
                if self.settled() {
                    self.trace.note(self.now, || "settled; stopping".into());
                    self.stage = Stage::Stopping { until: self.now + HEAL_NS_MAX };
                    for site in self.members() {
                        let Site { group, memory, tables, out, .. } = &mut self.sites[site];
                        let group = group.as_mut().expect("settled, so it runs");
                        group.stop(&mut Turn { now: Nanos(self.now), memory, tables, out });
                        self.wake_group(site, self.now);
                    }
                }
            }
            Stage::Stopping { until } => {
                assert!(
                    !late(until),
                    "liveness: not stopped after {HEAL_NS_MAX} ns: {:#?} {:#?}",
                    self.status(PRIMARY),
                    self.status(SECONDARY)
                );
            }
        }
    }

    fn end_faults(&mut self) {
        self.sites.iter_mut().for_each(|site| {
            site.slow_until = 0;
            site.errors = [None; 2];
        });
        self.network.calm();
        self.healed();
    }

    fn check_end(mut self) -> Outcome {
        for site in self.members() {
            if self.outcome.resync_required && site == SECONDARY {
                continue;
            }
            self.audit.check_volumes(site, &self.sites[site].disk);
            let Site { group, memory, fronts, link, .. } = &self.sites[site];
            let (free, used) = group.as_ref().expect("stopped, not dead").pages();
            let held = fronts.iter().map(Front::pages_held).sum::<usize>() + link.pages_held();
            let status = self.status(site).expect("stopped, not dead");
            assert_eq!(free + used, self.plan.configs[site].pages as usize - 1, "site {site} lost pages");
            assert_eq!(memory.lent(), held, "site {site}: pages lent and pages held");
            assert_eq!(status.pages_staged as usize, held, "site {site}: pages granted and pages held");
            assert_eq!(memory.pinned(), 0, "site {site}: pages still in use");
        }
        self.outcome.hosts = self.counts;
        self.outcome.virtual_ns = self.now;
        self.outcome.updates = self.audit.last();
        self.outcome.acknowledged_writes = self.audit.acknowledged_writes;
        self.outcome.excused_writes = self.audit.excused_writes;
        self.outcome.solo_ranges = self.audit.solo_ranges() as u64;
        self.outcome.trace_hash = self.trace.hash();
        self.outcome
    }
}

impl Site {
    fn new(plan: &Plan, index: usize, volumes: &[u64]) -> Site {
        let config = &plan.configs[index];
        let mut disk = Disk::new(config.journal_blocks, config.journal_volatile, volumes);
        for sequence in 0..2 {
            let formatted =
                Superblock::formatted(config.group, config.site, sequence, config.journal_blocks, volumes);
            let mut block = [0; BLOCK_BYTES];
            formatted.encode(&mut block);
            disk.put(IoTarget::Journal, formatted.slot(), &block);
        }
        Site {
            group: None,
            memory: SimMemory::new(config.pages),
            tables: Tables::new(config.fronts),
            out: Outbox::new(config.fronts),
            disk,
            link: Link::new(1),
            fronts: (0..config.fronts).map(|_| Front::new(index, plan.depth)).collect(),
            journal_done: VecDeque::new(),
            volume_done: VecDeque::new(),
            incarnation: 0,
            alarm: Alarm::default(),
            link_alarm: Alarm::default(),
            front_alarms: vec![Alarm::default(); config.fronts],
            submitted_at: [0; 2],
            slow_until: 0,
            errors: [None; 2],
        }
    }
}

fn shared(bytes: &Block) -> (Rc<Block>, Print) {
    (Rc::new(*bytes), Print::of(bytes))
}

fn seen(update: &crate::format::update::Update) -> Seen {
    Seen {
        number: update.number.0,
        generation: update.generation.0,
        kind: update.kind as u8,
        volume: update.volume.0,
        lba: update.lba.0,
        count: update.count,
    }
}
