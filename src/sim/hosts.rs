//! The hosts of one front: several operations outstanding, over a few hot blocks, each with content of its own.

use std::collections::VecDeque;

use crate::base::*;
use crate::core::messages::*;
use crate::sim::audit::{Auditor, OpKind, OpSpec, THIRD};
use crate::sim::content::{Content, Print};
use crate::sim::heir::Inheriting;
use crate::sim::memory::SimMemory;
use crate::sim::plan::Plan;
use crate::sim::rng::Rng;
use crate::sim::site::Site;
use crate::sim::split::Part;
use crate::sim::world::{Stage, World};

const MS: u64 = 1_000_000;

/// Reads that are questions for changes instead, where there are snapshots.
const CHANGES_ONE_IN: u64 = 6;

/// What a front remembers of an operation inside the group.
#[derive(Debug)]
struct Flight {
    /// The auditor's id; `None` for an operation that must be refused.
    op: Option<u64>,
    wrong: Option<HostError>,
    request: HostOp,
    /// A host's, and no reader's at a secondary.
    host: bool,
    asked_at: u64,
    /// Pages lent for a read.
    pages: Vec<PageId>,
    answered: bool,
}

#[derive(Debug)]
pub struct Front {
    site: usize,
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    pages: Vec<PageId>,
    pub replies: VecDeque<(u64, HostReply)>,
    /// Requests on their way to the group.
    pub ring: VecDeque<(u64, HostRequest)>,
    /// When the hosts of this front ask next.
    pub next_at: u64,
}

/// What an error may be an answer to.
#[derive(Clone, Copy, Debug)]
pub struct Excuses {
    /// A host that asked by then has waited for its deadline.
    pub asked_by: Option<u64>,
    /// What a disk holds could not be read, or has gone bad.
    pub unread: bool,
}

/// What the run counts of the primary's hosts; the reader at the secondary is an extra.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostCounts {
    pub submitted: u64,
    pub succeeded: u64,
    pub failed: u64,
}

impl Front {
    pub fn new(site: usize, depth: usize) -> Front {
        Front {
            site,
            flights: (0..depth).map(|_| None).collect(),
            free: (0..depth as u32).collect(),
            pages: Vec::new(),
            replies: VecDeque::new(),
            ring: VecDeque::new(),
            next_at: 0,
        }
    }

    pub fn grant(&mut self, page: PageId) {
        self.pages.push(page);
        assert!(self.pages.len() <= STAGING_PAGES, "INV-12: more pages than a front's ring holds");
    }

    pub fn pages_held(&self) -> usize {
        self.pages.len() + self.flights.iter().flatten().map(|flight| flight.pages.len()).sum::<usize>()
    }

    pub fn outstanding(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Whether nothing excuses an error in answer to this.
    pub fn expects_success(&self, reply: &HostReply) -> bool {
        self.flights[reply.ticket.0 as usize].as_ref().is_some_and(|flight| flight.wrong.is_none())
    }

    /// The group lets a reply go: it is judged now, whenever it arrives. Returns what it
    /// answers, for the trace.
    pub fn judge(
        &mut self,
        reply: &HostReply,
        heard: bool,
        excuses: Excuses,
        memory: &SimMemory,
        audit: &mut Auditor,
        counts: &mut HostCounts,
    ) -> (Option<u64>, HostOp) {
        let flight = self.flights[reply.ticket.0 as usize].as_mut();
        let flight = flight.filter(|flight| !flight.answered).expect("INV-11: a reply without a request");
        flight.answered = true;
        let excused = match reply.result {
            Err(HostError::Deadline) => excuses.asked_by.is_some_and(|by| flight.asked_at <= by),
            Err(HostError::Io) => excuses.unread,
            _ => true,
        };
        assert!(
            excused,
            "site {}: {:?}, asked at {} ns, is answered with {:?} for no reason",
            self.site, flight.request, flight.asked_at, reply.result
        );
        if let Some(expected) = flight.wrong {
            let allowed = [expected, HostError::NotServing, HostError::Deadline].map(Err);
            assert!(
                allowed.contains(&reply.result),
                "INV-13: {:?} was answered with {:?}",
                flight.request,
                reply.result
            );
        }
        let told = flight.wrong.is_none() && flight.host && self.site != THIRD;
        assert!(
            !told || reply.result != Err(HostError::OutOfRange),
            "a host was refused what it had been told that the volume has: {:?}",
            flight.request
        );
        if let Some(op) = flight.op {
            let count_of_site = u64::from(flight.host);
            match reply.result {
                // Where nothing that was acknowledged can be lost, it holds whether anybody hears of it or not.
                Ok(()) if flight.host && !heard && !audit.outlives_crashes(op) => audit.failed(op),
                Ok(()) if let HostOp::Changes { count, .. } = flight.request => {
                    let bits = memory.bytes(flight.pages[0]);
                    let told: Vec<bool> =
                        (0..count as usize).map(|bit| bits[bit / 8] >> (bit % 8) & 1 == 1).collect();
                    audit.told_changes(op, &told);
                    counts.succeeded += count_of_site;
                }
                Ok(()) => {
                    let prints: Vec<Print> = flight.pages.iter().map(|page| memory.print(*page)).collect();
                    audit.succeeded(op, &prints);
                    counts.succeeded += count_of_site;
                }
                Err(_) => {
                    audit.failed(op);
                    counts.failed += count_of_site;
                }
            }
        }
        (flight.op, flight.request)
    }

    /// A reply reaches the host: ticket and pages are free.
    pub fn take_reply(&mut self, reply: HostReply) {
        let flight = self.flights[reply.ticket.0 as usize].take().expect("it was judged");
        self.free.push(reply.ticket.0);
        self.pages.extend(flight.pages);
    }

    /// Sends one operation if a ticket and pages are free, a read of the block that is wanted if one is; returns it for the trace. Only
    /// hosts write, unless they are told not to.
    #[allow(clippy::too_many_arguments)]
    pub fn submit(
        &mut self,
        now: u64,
        plan: &Plan,
        sizes: &VolumeSizes,
        host: bool,
        writes: bool,
        rng: &mut Rng,
        changes: &mut Rng,
        wanted: Option<(u16, u64)>,
        memory: &mut SimMemory,
        table: &PageTable,
        audit: &mut Auditor,
        counts: &mut HostCounts,
    ) -> Option<(Option<u64>, HostRequest)> {
        // Pages are looked at first: no draw may depend on whether the last one was used.
        if self.free.is_empty() || self.pages.len() < UPDATE_BLOCKS_MAX {
            return None;
        }
        let ticket = SlotId(self.free.swap_remove(rng.below(self.free.len() as u64) as usize));
        let volume = rng.below(plan.configs[0].volumes.len() as u64) as u16;
        let laid_out = plan.configs[0].volumes[usize::from(volume)].blocks;
        let blocks = sizes.get(VolumeId(volume));
        let wrong = rng.percent(plan.mix.wrong);
        let mut spec = self.draw(plan, host && writes, rng, volume, blocks);
        if let Some(snapshots) = &plan.snapshots {
            if matches!(spec.kind, OpKind::Zero { .. }) || spec.zeros {
                // Zeros do not say whose they are, so the auditor could not tell the parts of one operation from others.
                (spec.count, spec.zeros) = (1, false);
            }
            if spec.kind == OpKind::Read && rng.percent(snapshots.read_percent) {
                spec.snapshot = draw_snapshot(rng, audit, volume);
            }
            if spec.kind == OpKind::Read && changes.once_in(CHANGES_ONE_IN) {
                ask_for_changes(&mut spec, changes, audit, blocks);
            }
        }
        let volume = wanted.map_or(volume, |(volume, _)| volume);
        let wrong = wrong && wanted.is_none();
        if let Some((volume, lba)) = wanted {
            spec = OpSpec { volume, lba, count: 1, kind: OpKind::Read, zeros: false, snapshot: 0 };
        }
        let (request, expected) = if wrong {
            draw_wrong(host || plan.takeover.is_some(), rng, laid_out)
        } else {
            (host_op(&spec), None)
        };
        let op = (!wrong).then(|| {
            counts.submitted += u64::from(host);
            audit.submitted(self.site, host, spec)
        });
        let mut lent = Vec::new();
        let mut hand_over = |front: &mut Front, index: usize, print: Print, partial: bool| {
            let page = front.pages.pop().expect("counted above");
            memory.fill_content(page, Content { print, bytes: None });
            let sum = if partial { BlockSum::ZEROS } else { memory.sum(page) };
            memory.give_back(page);
            table.set(ticket, index, page, sum);
        };
        match request {
            HostOp::Read { count, .. } => {
                for index in 0..count.min(UPDATE_BLOCKS_MAX as u32) {
                    let page = self.pages.pop().expect("counted above");
                    table.set(ticket, index as usize, page, BlockSum::ZEROS);
                    lent.push(page);
                }
            }
            HostOp::Changes { .. } => {
                let page = self.pages.pop().expect("counted above");
                table.set(ticket, 0, page, BlockSum::ZEROS);
                lent.push(page);
            }
            HostOp::Write { lba, count, .. } => {
                for index in 0..u64::from(count) {
                    let print = match op {
                        Some(op) if !spec.zeros => Print::of_write(volume, lba.0 + index, op),
                        _ => Print::ZERO,
                    };
                    hand_over(self, index as usize, print, false);
                }
            }
            HostOp::WritePartial { lba, .. } => {
                let print = op.map_or(Print::ZERO, |op| Print::of_write(volume, lba.0, op));
                hand_over(self, 0, print, true);
            }
            HostOp::Zero { .. } | HostOp::ZeroPartial { .. } | HostOp::Flush => (),
        }
        self.flights[ticket.0 as usize] =
            Some(Flight { op, wrong: expected, request, host, asked_at: now, pages: lent, answered: false });
        let ready = self.ring.back().map_or(now, |(ready, _)| *ready).max(now + rng.below(plan.ring_ns + 1));
        let message = HostRequest {
            ticket,
            volume: VolumeId(volume),
            snapshot: UpdateNumber(if wrong { 0 } else { spec.snapshot }),
            of_primary: host && plan.takeover.is_some(),
            op: request,
            received_at: Nanos(now),
        };
        self.ring.push_back((ready, message));
        Some((op, message))
    }

    fn draw(&self, plan: &Plan, host: bool, rng: &mut Rng, volume: u16, blocks: u64) -> OpSpec {
        let mix = &plan.mix;
        let mut count = rng.between(1, plan.op_blocks_max);
        if rng.once_in(64) {
            count = rng.between(1, UPDATE_BLOCKS_MAX as u64);
        }
        let fua = rng.percent(mix.fua);
        let inside = |rng: &mut Rng| {
            // Whole words, sectors, and ranges of any alignment.
            let grain = rng.pick(&[1, 8, 512]);
            let offset = rng.below(BLOCK_BYTES as u64 / grain) * grain;
            let length = rng.between(1, (BLOCK_BYTES as u64 - offset) / grain) * grain;
            (offset as usize, length as usize)
        };
        let mut draw = rng.below(100);
        let mut is = |share: u64| {
            let hit = draw < share;
            draw = draw.saturating_sub(share);
            hit
        };
        let kind = if !host || is(mix.read) {
            OpKind::Read
        } else if is(mix.partial) {
            let (offset, length) = inside(rng);
            count = 1;
            OpKind::WritePartial { offset, length, fua }
        } else if is(mix.zero) {
            count = if rng.once_in(4) { rng.between(1, blocks) } else { count };
            OpKind::Zero { fua }
        } else if is(mix.zero_partial) {
            let (offset, length) = inside(rng);
            count = 1;
            OpKind::ZeroPartial { offset, length, fua }
        } else if is(mix.flush) {
            OpKind::Flush
        } else {
            OpKind::Write { fua }
        };
        let count = count.min(blocks);
        let room = blocks - count;
        let lba = if rng.once_in(8) { rng.between(0, room) } else { rng.below(plan.hot_blocks).min(room) };
        let zeros = matches!(kind, OpKind::Write { .. }) && rng.percent(mix.zeros);
        OpSpec { volume, lba, count, kind, zeros, snapshot: 0 }
    }
}

impl World {
    /// Replies that are there are taken, and operations are sent as the stage has it.
    pub(super) fn front_turn(&mut self, index: usize, number: usize) {
        let now = self.now;
        if self.far.is_some() && index != self.home {
            return;
        }
        let before = self.counts.submitted;
        let lacked = self.slots_lacked();
        let (asked, behind) = (self.is_asked(index), self.stays_behind(index));
        let host = behind || self.is_host(index);
        let writes = !behind || self.writes_behind();
        let plan = &self.plan;
        let wanted = match self.stage {
            Stage::Settling { .. } => self.next_rotten(index),
            _ => None,
        };
        // A secondary that lacks slots may be lost even then, and its peer's blocks with it.
        let calm = matches!(self.stage, Stage::Calm { .. } | Stage::Settling { .. });
        let bad = calm && !self.rotten.is_empty() && !self.in_lockstep();
        let sizes = self.counted_on(index);
        let (rng, changes) = (&mut self.rng, &mut self.changes_rng);
        let Site { fronts, memory, tables, .. } = &mut self.sites[index];
        let front = &mut fronts[number];
        while front.replies.front().is_some_and(|(ready, _)| *ready <= now) {
            let (_, reply) = front.replies.pop_front().expect("looked at it");
            if reply.result.is_err() {
                // Hosts that got an error pause before they try again.
                front.next_at = front.next_at.max(now + rng.below(4 * MS));
                if calm
                    && front.expects_success(&reply)
                    && !(bad && reply.result == Err(HostError::Io))
                    && !reply
                        .result
                        .is_err_and(|error| World::snapshots_excuse(&plan.snapshots, error, lacked))
                {
                    panic!("in lockstep and undisturbed, but an operation failed: {reply:?}");
                }
            }
            front.take_reply(reply);
        }
        let more = match self.stage {
            _ if !asked => false,
            Stage::Working => self.far.is_none() || before < plan.operations,
            Stage::Parted { part: Part::Apart, .. } => true,
            Stage::Parted { part: Part::Joining, .. } => self.counts.submitted < self.joining_operations,
            Stage::Calm { operations, .. } => self.counts.submitted < operations,
            Stage::Inherited { step: Inheriting::Serving { operations }, .. } => {
                self.counts.submitted < operations
            }
            Stage::Settling { .. } => wanted.is_some(),
            _ => false,
        };
        let mut next = front.replies.front().map(|(ready, _)| *ready);
        if !asked {
            // Its role may change without anybody telling its fronts.
            next = Some(next.map_or(now + MS, |at| at.min(now + MS)));
        }
        let mut submitted = false;
        if more && now < front.next_at {
            next = Some(next.map_or(front.next_at, |at| at.min(front.next_at)));
        } else if more {
            let table = &tables.fronts[number];
            let depth = if wanted.is_some() { 1 } else { rng.between(1, plan.depth as u64) };
            for _ in 0..depth {
                let sent = front.submit(
                    now,
                    plan,
                    &sizes,
                    host,
                    writes,
                    rng,
                    changes,
                    wanted,
                    memory,
                    table,
                    self.audit.of(index),
                    &mut self.counts,
                );
                let Some((op, HostRequest { ticket, volume, op: request, .. })) = sent else { break };
                if let Some(far) = &mut self.far {
                    far.asked(now, number, ticket, request);
                }
                self.trace.note(now, || {
                    format!("site {index} front {number}: op {op:?} {request:?} of volume {}", volume.0)
                });
                submitted = true;
                self.outcome.written_behind += u64::from(behind && !request.reads());
                if op.is_some() {
                    self.audit.pass_by(index);
                }
            }
            if submitted {
                // The reader at the secondary looks in now and then.
                let at_work = host && wanted.is_none();
                front.next_at = now + rng.latency(if at_work { plan.think_ns } else { MS });
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
        if submitted && host {
            self.perhaps_pause(index, before);
            self.perhaps_administer();
            self.perhaps_switch_over();
            self.perhaps_extend();
            self.perhaps_rot();
            self.perhaps_compare();
            self.perhaps_scrub();
        }
    }
}

/// One of the volume's snapshots, or 0 if it has none.
fn draw_snapshot(rng: &mut Rng, audit: &Auditor, volume: u16) -> u64 {
    let of_volume = audit.snapshots().filter(|(_, volumes)| volumes >> volume & 1 == 1);
    let numbers: Vec<u64> = of_volume.map(|(number, _)| number).collect();
    match numbers.len() as u64 {
        0 => 0,
        count => numbers[rng.below(count) as usize],
    }
}

/// What must be refused. A site whose role is sure not to change is also asked for writes that a secondary refuses.
fn draw_wrong(writes: bool, rng: &mut Rng, blocks: u64) -> (HostOp, Option<HostError>) {
    let beyond = Some(HostError::OutOfRange);
    match rng.below(if writes { 4 } else { 6 }) {
        0 => (HostOp::Read { lba: Lba(blocks), count: 1 }, beyond),
        1 => (HostOp::Write { lba: Lba(blocks - 1), count: 2, fua: false }, beyond),
        2 => (HostOp::Zero { lba: Lba(u64::MAX - 1), count: 3, fua: false }, beyond),
        3 => (HostOp::WritePartial { lba: Lba(0), offset: 4000, length: 97, fua: true }, beyond),
        4 => (HostOp::Write { lba: Lba(0), count: 1, fua: false }, Some(HostError::ReadOnly)),
        _ => (HostOp::Zero { lba: Lba(0), count: 1, fua: true }, Some(HostError::ReadOnly)),
    }
}

/// Makes a read a question: what was changed between two snapshots of the volume, or since one, if it has any.
fn ask_for_changes(spec: &mut OpSpec, rng: &mut Rng, audit: &Auditor, blocks: u64) {
    let [since, seen] = [0; 2].map(|_| draw_snapshot(rng, audit, spec.volume));
    if since == 0 {
        return;
    }
    spec.kind = OpKind::Changes { since: since.min(seen) };
    spec.snapshot = since.max(seen);
    if rng.once_in(3) {
        (spec.kind, spec.snapshot) = (OpKind::Changes { since }, 0);
    }
    spec.lba = rng.below(blocks);
    spec.count = rng.between(1, blocks - spec.lba);
}

fn host_op(spec: &OpSpec) -> HostOp {
    let (lba, count) = (Lba(spec.lba), spec.count as u32);
    match spec.kind {
        OpKind::Read => HostOp::Read { lba, count },
        OpKind::Changes { since } => HostOp::Changes { since: UpdateNumber(since), lba, count },
        OpKind::Write { fua } => HostOp::Write { lba, count, fua },
        OpKind::WritePartial { offset, length, fua } => {
            HostOp::WritePartial { lba, offset: offset as u16, length: length as u16, fua }
        }
        OpKind::Zero { fua } => HostOp::Zero { lba, count, fua },
        OpKind::ZeroPartial { offset, length, fua } => {
            HostOp::ZeroPartial { lba, offset: offset as u16, length: length as u16, fua }
        }
        OpKind::Flush => HostOp::Flush,
    }
}
