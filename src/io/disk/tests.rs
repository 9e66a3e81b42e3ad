use std::path::PathBuf;

use super::*;
use crate::base::{BlockSum, Memory, VolumeId};
use crate::io::arena::Arena;
use crate::io::ring::{Features, RingConfig};
use crate::reactor::{Clock, Driver, edge, mesh};

/// An executor stepped by hand, with the group's ends of its rings.
struct Rig {
    ring: Ring,
    executor: DiskExecutor,
    requests: Option<Sender<IoRequest>>,
    done: Receiver<IoDone>,
    tables: Arc<Tables>,
    view: ArenaView,
    _directory: tempfile::TempDir,
    journal: PathBuf,
}

const JOURNAL_BLOCKS: u64 = 64;

impl Rig {
    fn new(plan: FaultPlan) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("journal");
        let disk = Disk::create(&journal, JOURNAL_BLOCKS * 4096, Space::Reserved, false).unwrap();
        disk.pre_write(JOURNAL_BLOCKS * 4096, |_| ()).unwrap();
        Rig::reopened(directory, journal, disk, plan)
    }

    fn reopened(directory: tempfile::TempDir, journal: PathBuf, disk: Disk, plan: FaultPlan) -> Rig {
        let port = mesh(1).unwrap().remove(0);
        let arena = Arena::new(256).unwrap();
        let config = RingConfig { allowed: Features::ALL, ..RingConfig::new(vec![arena.clone()]) };
        let mut ring = Ring::new(config, Clock::new(), port.clone()).unwrap();
        let tables = Arc::new(Tables::new(1));
        let (requests, their_requests) = edge(JOURNAL_IO_SLOTS, &port, &port);
        let (their_done, done) = edge(JOURNAL_IO_SLOTS, &port, &port);
        let executor = DiskExecutor::new(
            &mut ring,
            Executor::Journal,
            DiskEdges { requests: their_requests, done: their_done },
            tables.clone(),
            (ArenaId(0), arena.view()),
            vec![(IoTarget::Journal, disk)],
            plan,
        )
        .unwrap();
        let view = arena.view();
        Rig { ring, executor, requests: Some(requests), done, tables, view, _directory: directory, journal }
    }

    /// The next life of the same disk, with nothing but what reached it.
    fn restart(self) -> Rig {
        let Rig { ring, executor, _directory, journal, .. } = self;
        drop(executor);
        drop(ring);
        let disk = Disk::open(&journal).unwrap();
        Rig::reopened(_directory, journal, disk, FaultPlan::default())
    }

    fn ask(&mut self, slot: u32, op: IoOp, block: u64, pages: &[u32]) {
        for (index, page) in pages.iter().enumerate() {
            self.tables.journal_io.set(SlotId(slot), index, PageId(*page), BlockSum::ZEROS);
        }
        let count = pages.len() as u32;
        let request = IoRequest { slot: SlotId(slot), target: IoTarget::Journal, op, block, count };
        self.requests.as_mut().unwrap().push(request);
    }

    /// Turns until a result arrives.
    fn result(&mut self) -> IoDone {
        loop {
            let now = self.ring.now();
            assert!(now < Nanos::from_millis(30_000), "no result in 30 s");
            self.executor.turn(now, &mut self.ring);
            self.ring.poll();
            while let Some((_, completion)) = self.ring.next_completion() {
                self.executor.complete(now, &mut self.ring, completion);
            }
            if let Some(done) = self.done.pop() {
                return done;
            }
        }
    }

    fn fill(&mut self, page: u32, byte: u8) {
        self.view.bytes_mut(PageId(page)).fill(byte);
        self.view.seal(PageId(page));
    }

    /// Writes one block and waits for it.
    fn write(&mut self, block: u64, byte: u8) -> Result<(), IoFault> {
        self.view.reopen(PageId(1));
        self.fill(1, byte);
        self.ask(0, IoOp::Write, block, &[1]);
        self.result().result
    }

    fn read(&mut self, block: u64) -> u8 {
        self.ask(0, IoOp::Read, block, &[2]);
        self.result().result.unwrap();
        let bytes = *self.view.bytes(PageId(2));
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a block is whole");
        bytes[0]
    }

    fn flush(&mut self) -> Result<(), IoFault> {
        self.ask(0, IoOp::Flush, 0, &[]);
        self.result().result
    }
}

fn rule(op: IoOp, after: u64, times: u64, effect: FaultEffect) -> FaultPlan {
    FaultPlan { rules: vec![FaultRule { target: None, op, after, times, effect }], ..FaultPlan::default() }
}

#[test]
fn blocks_are_written_and_read_back_across_a_restart() {
    let mut rig = Rig::new(FaultPlan::default());
    (10..14).for_each(|page| rig.fill(page, page as u8));
    rig.ask(5, IoOp::Write, 60, &[13, 10, 11, 12]);
    assert_eq!(rig.result(), IoDone { slot: SlotId(5), result: Ok(()) });
    rig.flush().unwrap();
    let mut rig = rig.restart();
    assert_eq!([60, 61, 62, 63].map(|block| rig.read(block)), [13, 10, 11, 12]);
    assert_eq!(rig.read(59), 0);
}

#[test]
fn a_short_transfer_is_continued() {
    for op in [IoOp::Write, IoOp::Read] {
        let mut rig = Rig::new(rule(op, 0, 1, FaultEffect::Short));
        (10..17).for_each(|page| rig.fill(page, page as u8));
        rig.ask(0, IoOp::Write, 8, &[10, 11, 12, 13, 14, 15, 16]);
        rig.result().result.unwrap();
        rig.ask(0, IoOp::Read, 8, &[30, 31, 32, 33, 34, 35, 36]);
        rig.result().result.unwrap();
        let read: Vec<u8> = (30..37).map(|page| rig.view.bytes(PageId(page))[0]).collect();
        assert_eq!(read, [10, 11, 12, 13, 14, 15, 16]);
    }
}

#[test]
fn errors_come_when_ordered_and_stop() {
    let mut rig = Rig::new(rule(IoOp::Write, 1, 2, FaultEffect::Errno(libc::EIO)));
    let written: Vec<_> = (0..4).map(|block| rig.write(block, 7)).collect();
    let eio = Err(IoFault::Errno(libc::EIO));
    assert_eq!(written, [Ok(()), eio, eio, Ok(())]);
    assert_eq!([0, 1, 2, 3].map(|block| rig.read(block)), [7, 0, 0, 7], "a failed write did nothing");
    rig.flush().unwrap();
}

#[test]
fn a_delayed_request_waits_its_time_and_others_pass() {
    let delay = Nanos::from_millis(30);
    let mut rig = Rig::new(rule(IoOp::Write, 0, 1, FaultEffect::Delay(delay)));
    rig.fill(10, 1);
    let began = rig.ring.now();
    rig.ask(1, IoOp::Write, 0, &[10]);
    rig.ask(2, IoOp::Write, 1, &[10]);
    assert_eq!(rig.result().slot, SlotId(2));
    assert!(rig.executor.deadline().is_some());
    assert_eq!(rig.result().slot, SlotId(1));
    assert!(rig.ring.now().since(began) >= delay);
}

#[test]
fn reading_beyond_the_file_is_short_and_ends() {
    let mut rig = Rig::new(FaultPlan::default());
    let file = std::fs::OpenOptions::new().write(true).open(&rig.journal).unwrap();
    file.set_len(10 * 4096).unwrap();
    rig.ask(0, IoOp::Read, 8, &[2, 3, 4, 5]);
    assert_eq!(rig.result().result, Err(IoFault::Short));
}

#[test]
fn what_was_not_flushed_may_be_lost_and_what_was_is_not() {
    let mut rig = Rig::new(FaultPlan { discard_unflushed: Some(42), ..FaultPlan::default() });
    (0..32).for_each(|block| rig.write(block, 1).unwrap());
    rig.flush().unwrap();
    (0..64).for_each(|block| rig.write(block, 2).unwrap());
    assert!((0..64).all(|block| rig.read(block) == 2), "the cache is coherent");
    let mut rig = rig.restart();
    let after: Vec<u8> = (0..64).map(|block| rig.read(block)).collect();
    assert!(after[..32].iter().all(|byte| [1, 2].contains(byte)), "{after:?}");
    assert!(after.contains(&0) && after.contains(&1) && after.contains(&2), "some of each: {after:?}");
}

#[test]
fn it_stops_after_its_group() {
    let mut rig = Rig::new(FaultPlan::default());
    rig.executor.stop(Nanos(0));
    assert!(!rig.executor.stopped(), "the group may still write");
    rig.fill(10, 1);
    rig.ask(0, IoOp::Write, 0, &[10]);
    rig.requests = None;
    assert!(!rig.executor.stopped(), "a request waits");
    rig.result().result.unwrap();
    assert!(rig.executor.stopped());
}

#[test]
#[should_panic(expected = "on a disk of 64 blocks")]
fn a_request_beyond_the_end_is_a_broken_invariant() {
    let mut rig = Rig::new(FaultPlan::default());
    rig.ask(0, IoOp::Read, 63, &[2, 3]);
    rig.result();
}

#[test]
#[should_panic(expected = "does not have")]
fn a_request_for_another_disk_is_a_broken_invariant() {
    let mut rig = Rig::new(FaultPlan::default());
    let target = IoTarget::Volume(VolumeId(0));
    let request = IoRequest { slot: SlotId(0), target, op: IoOp::Flush, block: 0, count: 0 };
    rig.requests.as_mut().unwrap().push(request);
    rig.result();
}

#[test]
fn a_disk_is_opened_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("volume");
    assert!(matches!(Disk::open(&path), Err(DiskError::Missing { .. })));
    let first = Disk::create(&path, 1 << 20, Space::Sparse, false).unwrap();
    assert_eq!((first.bytes(), first.blocks(), first.is_device()), (1 << 20, 256, false));
    assert!(matches!(Disk::open(&path), Err(DiskError::Locked { .. })));
    assert!(matches!(Disk::create(&path, 4096, Space::Sparse, false), Err(DiskError::Exists { .. })));
    let overwritten = Disk::create(&path, 4096, Space::Sparse, true);
    assert!(matches!(overwritten, Err(DiskError::Locked { .. })), "a running site's file is not emptied");
    drop(first);
    assert_eq!(Disk::open(&path).unwrap().blocks(), 256);
    assert_eq!(Disk::create(&path, 4096, Space::Reserved, true).unwrap().blocks(), 1);
    assert!(matches!(Disk::open(directory.path()), Err(DiskError::NotADisk { .. })));
    assert!(matches!(Disk::open(std::path::Path::new("/dev/null")), Err(DiskError::NotADisk { .. })));
}

#[test]
fn a_filesystem_without_direct_io_is_refused_with_a_remedy() {
    // procfs never does direct I/O; what tmpfs does depends on the kernel.
    let error = Disk::open(std::path::Path::new("/proc/self/coredump_filter")).unwrap_err();
    assert!(matches!(error, DiskError::NoDirectIo { .. }), "{error}");
    assert!(error.to_string().contains("put it on ext4"));
}

#[test]
fn pre_writing_reaches_the_end_and_tells_how_far_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = (5 << 20) + 4096;
    let disk = Disk::create(&directory.path().join("journal"), bytes, Space::Reserved, false).unwrap();
    let mut told = Vec::new();
    disk.pre_write(bytes, |written| told.push(written)).unwrap();
    assert_eq!(told.last(), Some(&bytes));
    assert!(told.is_sorted() && told.len() >= 6);
    disk.write_blocks(bytes / 4096 - 1, &[9; 4096]).unwrap();
    let mut read = vec![1; 8192];
    disk.read_blocks(bytes / 4096 - 2, &mut read).unwrap();
    assert_eq!((read[4095], read[4096], read[8191]), (0, 9, 9));
    assert!(matches!(disk.read_blocks(bytes / 4096 - 1, &mut read), Err(DiskError::TooSmall { .. })));
}
