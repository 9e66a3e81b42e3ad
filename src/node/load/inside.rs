//! A load from inside the process: an actor beside the NBD front, on the same rings, so that what a front costs can be told
//! from what the rest does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::engine::Doing;
use super::{Check, Engine, Ledger, Outcome, Plan, Step};
use crate::base::*;
use crate::core::group::status::GroupState;
use crate::core::messages::{HostOp, HostRequest};
use crate::io::nbd::FrontEdges;
use crate::io::ring::Ring;
use crate::node::config::Config;
use crate::node::control::LineError;
use crate::node::run::{Extras, FrontPlace, RunError, Site};
use crate::node::telemetry::Report;
use crate::reactor::{Actor, Completion, Driver};

/// How often an idle load looks whether it is to begin.
const LOOK_EVERY: Nanos = Nanos::from_millis(1);

/// How often the main thread shows progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Without any answer: what is in flight ends by the hosts' deadline, at most an hour but usually far less.
const DRAIN_MAX: Duration = Duration::from_secs(120);

/// The load begins after this long even if the cache is still reading the volumes it holds.
const WARM_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Line(#[from] LineError),
    #[error("{0}")]
    Plan(String),
    #[error("the site serves no hosts after {} s; `lockstep status` says what it waits for", .0.as_secs())]
    NotServing(Duration),
    #[error("the load did not end; the site does not answer its operations")]
    Stuck,
}

impl InsideError {
    /// Why the site did not run, if that is what it is.
    pub fn of_run(&self) -> Option<&RunError> {
        match self {
            InsideError::Run(error) => Some(error),
            _ => None,
        }
    }
}

/// What the load's actor and the main thread share.
#[derive(Debug, Default)]
struct Shared {
    /// It is to begin, or to read back what it wrote.
    go: AtomicBool,
    completed: AtomicU64,
}

/// What the load's actor tells the main thread.
enum Told {
    Measured(Box<Outcome>),
    ReadBack(Check),
}

/// Every block that was written, read one by one.
struct ReadBack {
    ledger: Ledger,
    /// Blocks to be read yet, the last first.
    blocks: Vec<u64>,
    /// What each ticket reads.
    reading: Vec<Option<u64>>,
    check: Check,
}

impl ReadBack {
    fn new(ledger: Ledger, depth: usize) -> ReadBack {
        let mut blocks: Vec<u64> = ledger.written().collect();
        blocks.reverse();
        ReadBack { ledger, blocks, reading: vec![None; depth], check: Check::default() }
    }

    fn under_way(&self) -> usize {
        self.reading.iter().flatten().count()
    }
}

struct LoadActor {
    plan: Plan,
    volume: VolumeId,
    engine: Option<Engine>,
    /// What was promised, once that was measured, if it is to be read back.
    written: Option<Ledger>,
    read_back: Option<ReadBack>,
    place: FrontPlace,
    edges: FrontEdges,
    stock: FixedQueue<PageId>,
    doing: Vec<Option<Doing>>,
    /// Pages of the largest operation.
    pages_max: usize,
    shared: Arc<Shared>,
    told: mpsc::Sender<Told>,
    /// When there will be something to do though nothing happens.
    due: Nanos,
    stopping: bool,
}

impl LoadActor {
    fn take(&mut self, now: Nanos) -> bool {
        let mut taken = false;
        while self.stock.room() > 0
            && let Some(page) = self.edges.pages.pop()
        {
            self.stock.push(page);
            taken = true;
        }
        for _ in 0..TURN_MESSAGES_MAX {
            let Some(reply) = self.edges.from_group.pop() else { break };
            taken = true;
            let index = reply.ticket.0 as usize;
            if let Some(read_back) = &mut self.read_back {
                let page = self.place.tables.fronts[self.place.front].page(reply.ticket, 0);
                let block = read_back.reading[index].take().expect("a ticket is answered once");
                let bytes = reply.result.is_ok().then(|| &self.place.view.bytes(page)[..]);
                read_back.check.note(&read_back.ledger, block, bytes);
                self.stock.push(page);
                self.shared.completed.fetch_add(1, Relaxed);
                continue;
            }
            let engine = self.engine.as_mut().expect("replies come to a load that began");
            let doing = self.doing[index].take().expect("a ticket is answered once");
            if !doing.write {
                let table = &self.place.tables.fronts[self.place.front];
                for (at, block) in Engine::blocks_of(&doing).enumerate() {
                    let page = table.page(reply.ticket, at);
                    if reply.result.is_ok() {
                        engine.check(block, self.place.view.bytes(page));
                    }
                    self.stock.push(page);
                }
            }
            engine.complete(now, index, reply.result.map_err(|error| format!("{error:?}")));
            self.shared.completed.store(engine.completed(), Relaxed);
        }
        taken
    }

    fn give(&mut self, ring: &mut Ring) -> bool {
        let Some(engine) = &mut self.engine else { return false };
        let mut given = false;
        for _ in 0..TURN_MESSAGES_MAX {
            if self.stopping || self.stock.len() < self.pages_max {
                break;
            }
            let now = ring.now();
            let (index, doing) = match engine.next(now) {
                Step::Begin(index, doing) => (index, doing),
                Step::Wait(until) => {
                    self.due = until;
                    break;
                }
                Step::Full | Step::Over => break,
            };
            given = true;
            let ticket = SlotId(index as u32);
            let table = &self.place.tables.fronts[self.place.front];
            let lba = Lba(doing.offset / BLOCK_BYTES as u64);
            let count = doing.length / BLOCK_BYTES as u32;
            for (at, block) in Engine::blocks_of(&doing).enumerate() {
                let page = self.stock.pop().expect("counted above");
                let mut sum = BlockSum::ZEROS;
                if doing.write {
                    let bytes = self.place.view.bytes_mut(page);
                    engine.fill(block, bytes);
                    sum = sum_of_block(bytes);
                }
                table.set(ticket, at, page, sum);
            }
            let op = match doing.write {
                true => HostOp::Write { lba, count, fua: false },
                false => HostOp::Read { lba, count },
            };
            self.doing[index] = Some(doing);
            self.edges.to_group.push(request(ticket, self.volume, op, now));
        }
        if engine.in_flight() == 0 && (self.stopping || engine.is_over(ring.now())) {
            let mut outcome = self.engine.take().expect("it is there").finish();
            self.written = outcome.ledger.take();
            // Nobody listens any more only if the main thread gave up.
            let _ = self.told.send(Told::Measured(Box::new(outcome)));
        }
        given
    }

    /// Asks for more of what was written.
    fn ask(&mut self, now: Nanos) -> bool {
        let Some(read_back) = &mut self.read_back else { return false };
        let mut given = false;
        for index in 0..read_back.reading.len() {
            if self.stopping || self.stock.is_empty() || read_back.reading[index].is_some() {
                continue;
            }
            let Some(block) = read_back.blocks.pop() else { break };
            read_back.reading[index] = Some(block);
            let page = self.stock.pop().expect("it is not empty");
            let ticket = SlotId(index as u32);
            self.place.tables.fronts[self.place.front].set(ticket, 0, page, BlockSum::ZEROS);
            let op = HostOp::Read { lba: Lba(block), count: 1 };
            self.edges.to_group.push(request(ticket, self.volume, op, now));
            given = true;
        }
        if read_back.under_way() == 0 && (self.stopping || read_back.blocks.is_empty()) {
            let _ = self.told.send(Told::ReadBack(read_back.check));
            self.read_back = None;
        }
        given
    }
}

fn request(ticket: SlotId, volume: VolumeId, op: HostOp, received_at: Nanos) -> HostRequest {
    HostRequest { ticket, volume, snapshot: UpdateNumber::NONE, of_primary: false, op, received_at }
}

impl Actor<Ring> for LoadActor {
    fn name(&self) -> &'static str {
        "load"
    }

    fn turn(&mut self, now: Nanos, ring: &mut Ring) -> bool {
        self.due = now.plus(LOOK_EVERY);
        if self.shared.go.swap(false, Relaxed) {
            match self.written.take() {
                Some(ledger) => self.read_back = Some(ReadBack::new(ledger, self.plan.depth)),
                None => self.engine = Some(Engine::new(self.plan.clone(), now)),
            }
        }
        let taken = self.take(now);
        let given = self.give(ring) | self.ask(now);
        taken || given
    }

    fn complete(&mut self, _: Nanos, _: &mut Ring, completion: Completion) {
        panic!("a load submits nothing to the ring, yet {completion:?} came");
    }

    fn ready(&self) -> bool {
        !self.edges.from_group.is_empty() || (self.stock.room() > 0 && !self.edges.pages.is_empty())
    }

    fn deadline(&self) -> Option<Nanos> {
        Some(self.due)
    }

    fn stop(&mut self, _: Nanos) {
        self.stopping = true;
    }

    fn stopped(&self) -> bool {
        self.stopping && self.engine.is_none() && self.read_back.is_none()
    }
}

/// Runs a site with a load on one of its volumes, then stops it. Returns the client's view, the target's own histograms, and what reading
/// everything back found, of a plan that verifies. `progress` is told the number of operations completed, often.
pub fn inside(
    config: &Config,
    volume: usize,
    plan: &Plan,
    progress: &mut dyn FnMut(u64),
) -> Result<(Outcome, Report, Option<Check>), InsideError> {
    let bytes = config.volumes[volume].size_bytes;
    let most = plan.lengths.iter().copied().max().unwrap_or(0) as usize;
    let whole = plan.lengths.iter().all(|length| (*length as usize).is_multiple_of(BLOCK_BYTES));
    if let Some(problem) = plan.problem(bytes) {
        return Err(InsideError::Plan(problem));
    }
    let whole = whole && plan.offset.is_multiple_of(BLOCK_BYTES as u64);
    if !whole || most > UPDATE_BLOCKS_MAX * BLOCK_BYTES || plan.depth > FRONT_TICKETS_MAX {
        let (longest, depth) = (UPDATE_BLOCKS_MAX * 4, FRONT_TICKETS_MAX);
        let problem = format!(
            "from inside, operations are whole 4 KiB blocks up to {longest} KiB, {depth} at once, and begin at one"
        );
        return Err(InsideError::Plan(problem));
    }
    let shared = Arc::new(Shared::default());
    let (told, tells) = mpsc::channel();
    let (theirs, plan_of) = (shared.clone(), plan.clone());
    let make = move |place: FrontPlace, edges: FrontEdges| -> Box<dyn Actor<Ring>> {
        Box::new(LoadActor {
            doing: vec![None; plan_of.depth],
            plan: plan_of,
            volume: VolumeId(volume as u16),
            engine: None,
            written: None,
            read_back: None,
            place,
            edges,
            stock: FixedQueue::new(STAGING_PAGES),
            pages_max: most / BLOCK_BYTES,
            shared: theirs,
            told,
            due: Nanos(0),
            stopping: false,
        })
    };
    let site = Site::start(config, Extras { front: Some(Box::new(make)), ..Extras::default() })?;
    let handle = site.handle();
    let measured = (|| {
        let serving_max = Duration::from_nanos(config.group.host_deadline.0);
        let begun = Instant::now();
        while handle.control().group_status()?.state != GroupState::Serving {
            if begun.elapsed() > serving_max {
                return Err(InsideError::NotServing(serving_max));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let begun = Instant::now();
        while handle.control().group_status()?.warming_up && begun.elapsed() < WARM_MAX {
            std::thread::sleep(Duration::from_millis(1));
        }
        handle.control().report(true)?;
        let mut next = |silent_max: Duration| {
            shared.go.store(true, Relaxed);
            let (mut seen, mut since) = (0, Instant::now());
            loop {
                match tells.recv_timeout(PROGRESS_EVERY) {
                    Ok(told) => return Ok(told),
                    Err(_) if since.elapsed() > silent_max => return Err(InsideError::Stuck),
                    Err(_) => {}
                }
                let completed = shared.completed.load(Relaxed);
                progress(completed);
                if completed != seen {
                    (seen, since) = (completed, Instant::now());
                }
            }
        };
        let Told::Measured(outcome) = next(Duration::from_secs_f64(plan.seconds) + DRAIN_MAX)? else {
            unreachable!("it measures first")
        };
        let report = handle.control().report(false)?;
        let check = match plan.verify.then(|| next(DRAIN_MAX)).transpose()? {
            Some(Told::ReadBack(check)) => Some(check),
            Some(Told::Measured(_)) => unreachable!("it has measured"),
            None => None,
        };
        Ok((*outcome, report, check))
    })();
    handle.stop();
    let ended = site.wait();
    let measured = measured?;
    ended?;
    Ok(measured)
}
