//! The disk executor: carries out a group's block I/O on files and devices. One for the journal on the group's core, one
//! for the volumes wherever it was placed.

mod fault;
mod open;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::base::{
    BLOCK_BYTES, JOURNAL_IO_SLOTS, Nanos, PageId, PageTable, SlotId, TURN_MESSAGES_MAX, VOLUME_IO_BLOCKS_MAX,
    VOLUME_IO_SLOTS, VOLUMES_MAX,
};
use crate::core::messages::{Executor, IoDone, IoFault, IoOp, IoRequest, IoTarget};
use crate::core::outbox::Tables;
use crate::io::arena::ArenaView;
use crate::io::ring::{ArenaId, FileId, Ring};
use crate::reactor::{Actor, Completion, Receiver, Sender};

pub use fault::{FaultEffect, FaultPlan, FaultPlanError, FaultRule};
pub use open::{Disk, DiskError, Space};

use fault::{Faults, VolatileCache};

/// Submissions of one request that may end in EINTR, EAGAIN or without a whole block before it counts as failed.
const STALLS_MAX: u8 = 16;

/// A file of the executor.
#[derive(Clone, Copy, Debug)]
struct Target {
    file: FileId,
    blocks: u64,
    /// Whether there is anything to reserve.
    reserves: bool,
}

/// A request that the kernel works on.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    request: IoRequest,
    /// Blocks done by earlier submissions.
    done: u32,
    /// Of a read, one of whose blocks cannot be read: the others are read one by one, and these are not.
    singly: bool,
    unread: u32,
    errno: i32,
    stalls: u8,
    /// Completes no earlier, if a fault delays it.
    not_before: Nanos,
}

impl InFlight {
    /// What it has come to when all of its blocks were tried.
    fn result(&self) -> Result<(), IoFault> {
        match self.unread {
            0 => Ok(()),
            blocks => Err(IoFault::Unreadable { blocks, errno: self.errno }),
        }
    }
}

/// A result that a fault holds back.
#[derive(Clone, Copy, Debug)]
struct Held {
    due: Nanos,
    done: IoDone,
}

pub struct DiskExecutor {
    executor: Executor,
    requests: Receiver<IoRequest>,
    done: Sender<IoDone>,
    tables: Arc<Tables>,
    arena: ArenaId,
    view: ArenaView,
    targets: Vec<Option<Target>>,
    in_flight: Box<[Option<InFlight>]>,
    in_flight_count: usize,
    faults: Faults,
    held: Vec<Held>,
    cache: Option<VolatileCache>,
    stopping: bool,
}

/// Journal, then volume and checksums of each volume, then the differential volume and the staging file.
const TARGETS_MAX: usize = 3 + 2 * VOLUMES_MAX;

fn index_of(target: IoTarget) -> usize {
    match target {
        IoTarget::Journal => 0,
        IoTarget::Volume(volume) => 1 + 2 * volume.0 as usize,
        IoTarget::Checksums(volume) => 2 + 2 * volume.0 as usize,
        IoTarget::Differential => 1 + 2 * VOLUMES_MAX,
        IoTarget::Staging => 2 + 2 * VOLUMES_MAX,
    }
}

/// An executor's ends of its rings: requests one way, results the other.
pub struct DiskEdges {
    pub requests: Receiver<IoRequest>,
    pub done: Sender<IoDone>,
}

/// Slots of an executor's page table, which is how many requests its rings must hold.
pub fn slots_of(executor: Executor) -> usize {
    match executor {
        Executor::Journal => JOURNAL_IO_SLOTS,
        Executor::Volumes => VOLUME_IO_SLOTS,
    }
}

impl DiskExecutor {
    /// The disks become the ring's. `view` is of the ring's arena `arena`, whose pages the tables name.
    pub fn new(
        ring: &mut Ring,
        executor: Executor,
        edges: DiskEdges,
        tables: Arc<Tables>,
        (arena, view): (ArenaId, ArenaView),
        disks: Vec<(IoTarget, Disk)>,
        plan: FaultPlan,
    ) -> Result<DiskExecutor, DiskError> {
        let slots = slots_of(executor);
        assert!(edges.done.capacity() >= slots, "{} results for {slots} slots", edges.done.capacity());
        let mut cache = plan.discard_unflushed.map(VolatileCache::new);
        let mut targets = vec![None; TARGETS_MAX];
        for (target, disk) in disks {
            let (blocks, path, reserves) = (disk.blocks(), disk.path().to_owned(), disk.reserves());
            let system =
                |source| DiskError::System { path: path.clone(), action: "hand it to io_uring", source };
            let fd = disk.into_fd();
            if let Some(cache) = &mut cache {
                cache.add(target, fd.try_clone().map_err(system)?);
            }
            let full = || std::io::Error::other("the ring's file table is full");
            let file = ring.add_file(fd).ok_or_else(|| system(full()))?;
            targets[index_of(target)] = Some(Target { file, blocks, reserves });
        }
        Ok(DiskExecutor {
            executor,
            requests: edges.requests,
            done: edges.done,
            tables,
            arena,
            view,
            targets,
            in_flight: vec![None; slots].into_boxed_slice(),
            in_flight_count: 0,
            faults: Faults::new(plan.rules),
            held: Vec::with_capacity(slots),
            cache,
            stopping: false,
        })
    }

    fn begin(&mut self, now: Nanos, ring: &mut Ring, request: IoRequest) {
        let target = self.targets[index_of(request.target)];
        let Some(target) = target else {
            panic!("{request:?} is for a disk that this executor does not have")
        };
        let end = request.block.checked_add(u64::from(request.count));
        assert!(
            end.is_some_and(|end| end <= target.blocks),
            "{request:?} on a disk of {} blocks",
            target.blocks
        );
        assert!((request.op == IoOp::Flush) == (request.count == 0), "{request:?} has a wrong count");

        let mut first_count = request.count;
        let mut not_before = Nanos(0);
        match self.faults.on(&request) {
            Some(FaultEffect::Errno(errno)) => {
                return self.finish(now, request.slot, Err(IoFault::Errno(errno)), Nanos(0));
            }
            Some(FaultEffect::Delay(delay)) => not_before = now.plus(delay),
            Some(FaultEffect::Short) => first_count = request.count.div_ceil(2),
            None => {}
        }
        if request.op == IoOp::Reserve && !target.reserves {
            return self.finish(now, request.slot, Ok(()), not_before);
        }
        if let Some(cache) = &mut self.cache {
            let table = table_of(&self.tables, self.executor);
            let pages = if request.op.has_pages() { request.count as usize } else { 0 };
            let pages = (0..pages).map(|index| table.page(request.slot, index));
            let result = cache.perform(&request, pages, &mut self.view);
            return self.finish(now, request.slot, result, not_before);
        }

        let place = &mut self.in_flight[request.slot.0 as usize];
        assert!(place.is_none(), "slot {} of {:?} is used twice", request.slot.0, self.executor);
        *place =
            Some(InFlight { request, done: 0, singly: false, unread: 0, errno: 0, stalls: 0, not_before });
        self.in_flight_count += 1;
        self.go_on(now, ring, request.slot, first_count);
    }

    /// Submits up to `count` blocks of what is left of a request.
    fn go_on(&mut self, now: Nanos, ring: &mut Ring, slot: SlotId, count: u32) {
        let in_flight = self.in_flight[slot.0 as usize].expect("it is in flight");
        let InFlight { request, done, singly, .. } = in_flight;
        let count = if singly { 1 } else { count.min(request.count - done) };
        match self.faults.on_blocks(&request, done, count) {
            Some(errno) => self.submission_ended(now, ring, slot, -errno),
            None => self.submit(ring, in_flight, count),
        }
    }

    fn submit(&mut self, ring: &mut Ring, in_flight: InFlight, count: u32) {
        let InFlight { request, done, .. } = in_flight;
        let target = self.targets[index_of(request.target)].expect("checked when the request began");
        let token = u64::from(request.slot.0);
        let table = table_of(&self.tables, self.executor);
        let left = done as usize..(done + count) as usize;
        let pages = left.map(|index| -> PageId { table.page(request.slot, index) });
        let offset = (request.block + u64::from(done)) * BLOCK_BYTES as u64;
        match request.op {
            IoOp::Read => ring.readv_pages(token, target.file, self.arena, offset, pages),
            IoOp::Write => ring.writev_pages(token, target.file, self.arena, offset, pages),
            IoOp::Flush => ring.fsync(token, target.file, true),
            // Done at once, or not at all.
            IoOp::Reserve => {
                let bytes = u64::from(count) * BLOCK_BYTES as u64;
                ring.fallocate(token, target.file, 0, offset, bytes);
            }
        }
    }

    fn submission_ended(&mut self, now: Nanos, ring: &mut Ring, slot: SlotId, result: i32) {
        let place = &mut self.in_flight[slot.0 as usize];
        let in_flight = place.as_mut().expect("it is in flight");
        let request = in_flight.request;
        // A journal's batch is read whole or not at all.
        let by_blocks = self.executor == Executor::Volumes && request.op == IoOp::Read;
        let result = match outcome(&request, result) {
            Outcome::Progress(blocks) => {
                in_flight.done += blocks;
                in_flight.stalls = 0;
                (in_flight.done >= request.count).then(|| in_flight.result())
            }
            Outcome::Stalled(fault) => {
                in_flight.stalls += 1;
                (in_flight.stalls > STALLS_MAX).then_some(Err(fault))
            }
            Outcome::Failed(IoFault::Errno(errno)) if by_blocks => {
                in_flight.errno = errno;
                if in_flight.singly || request.count == 1 {
                    in_flight.unread |= 1 << in_flight.done;
                    in_flight.done += 1;
                }
                in_flight.singly = true;
                (in_flight.done >= request.count).then(|| in_flight.result())
            }
            Outcome::Failed(fault) => Some(Err(fault)),
        };
        match result {
            None => self.go_on(now, ring, slot, request.count),
            Some(result) => {
                let not_before = in_flight.not_before;
                *place = None;
                self.in_flight_count -= 1;
                self.finish(now, slot, result, not_before);
            }
        }
    }

    fn finish(&mut self, now: Nanos, slot: SlotId, result: Result<(), IoFault>, not_before: Nanos) {
        let done = IoDone { slot, result };
        if not_before > now {
            self.held.push(Held { due: not_before, done });
        } else {
            self.done.push(done);
        }
    }

    fn release_held(&mut self, now: Nanos) -> bool {
        let mut released = false;
        while let Some(index) = self.held.iter().position(|held| held.due <= now) {
            self.done.push(self.held.swap_remove(index).done);
            released = true;
        }
        released
    }
}

fn table_of(tables: &Tables, executor: Executor) -> &PageTable {
    match executor {
        Executor::Journal => &tables.journal_io,
        Executor::Volumes => &tables.volume_io,
    }
}

/// The blocks of a read that cannot be read are told by bits.
const _: () = assert!(VOLUME_IO_BLOCKS_MAX <= u32::BITS as usize);

/// What a completion means for its request.
enum Outcome {
    /// So many more whole blocks are done.
    Progress(u32),
    /// Nothing was done, and trying again may help.
    Stalled(IoFault),
    Failed(IoFault),
}

fn outcome(request: &IoRequest, result: i32) -> Outcome {
    match result {
        // A filesystem that cannot reserve allocates as blocks are written.
        errno if request.op == IoOp::Reserve && (errno == 0 || errno == -libc::EOPNOTSUPP) => {
            Outcome::Progress(request.count)
        }
        errno if errno == -libc::EINTR || errno == -libc::EAGAIN => Outcome::Stalled(IoFault::Errno(-errno)),
        errno if errno < 0 => Outcome::Failed(IoFault::Errno(-errno)),
        _ if request.op == IoOp::Flush => Outcome::Progress(0),
        // Part of a block is done again with the rest.
        bytes if bytes as usize >= BLOCK_BYTES => Outcome::Progress((bytes as usize / BLOCK_BYTES) as u32),
        _ => Outcome::Stalled(IoFault::Short),
    }
}

impl Actor<Ring> for DiskExecutor {
    fn name(&self) -> &'static str {
        match self.executor {
            Executor::Journal => "journal",
            Executor::Volumes => "volumes",
        }
    }

    fn turn(&mut self, now: Nanos, ring: &mut Ring) -> bool {
        let mut worked = self.release_held(now);
        for _ in 0..TURN_MESSAGES_MAX {
            if ring.room() == 0 {
                break;
            }
            let Some(request) = self.requests.pop() else { break };
            self.begin(now, ring, request);
            worked = true;
        }
        worked
    }

    fn complete(&mut self, now: Nanos, ring: &mut Ring, completion: Completion) {
        let slot = SlotId(completion.token as u32);
        if self.in_flight[slot.0 as usize].is_none() {
            panic!("slot {} of {:?} completed and was not in flight", completion.token, self.executor);
        }
        self.submission_ended(now, ring, slot, completion.result);
    }

    fn ready(&self) -> bool {
        !self.requests.is_empty()
    }

    fn deadline(&self) -> Option<Nanos> {
        self.held.iter().map(|held| held.due).min()
    }

    fn stop(&mut self, _now: Nanos) {
        self.stopping = true;
    }

    /// The group may still checkpoint: the executor ends after it.
    fn stopped(&self) -> bool {
        self.stopping && self.requests.is_closed() && self.in_flight_count == 0 && self.held.is_empty()
    }
}
