use std::path::PathBuf;

use super::*;
use crate::base::{BlockSum, Memory, VolumeId};
use crate::io::arena::Arena;
use crate::io::ring::{Features, RingConfig};
use crate::reactor::{Clock, Driver, IdlePolicy, Loads, Port, Reactor, edge, mesh};

/// An executor stepped by hand, with the group's ends of its rings.
struct Rig {
    ring: Ring,
    executor: DiskExecutor,
    requests: Option<Sender<IoRequest>>,
    done: Receiver<IoDone>,
    tables: Arc<Tables>,
    view: ArenaView,
    target: IoTarget,
    _directory: tempfile::TempDir,
    journal: PathBuf,
}

const JOURNAL_BLOCKS: u64 = 64;

impl Rig {
    fn new(plan: FaultPlan) -> Rig {
        Rig::of(IoTarget::Journal, plan)
    }

    fn of(target: IoTarget, plan: FaultPlan) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("journal");
        let disk =
            Disk::create(&journal, JOURNAL_BLOCKS * 4096, Space::ReservedTo(JOURNAL_BLOCKS * 4096), false)
                .unwrap();
        disk.pre_write(JOURNAL_BLOCKS * 4096, |_| ()).unwrap();
        Rig::reopened(target, directory, journal, disk, plan)
    }

    fn reopened(
        target: IoTarget,
        directory: tempfile::TempDir,
        journal: PathBuf,
        disk: Disk,
        plan: FaultPlan,
    ) -> Rig {
        let kind = if target == IoTarget::Journal { Executor::Journal } else { Executor::Volumes };
        let slots = slots_of(kind);
        let port = mesh(1).unwrap().remove(0);
        let arena = Arena::new(256).unwrap();
        let config = RingConfig { allowed: Features::ALL, ..RingConfig::new(vec![arena.clone()]) };
        let mut ring = Ring::new(config, Clock::new(), port.clone()).unwrap();
        let tables = Arc::new(Tables::new(1));
        let (requests, their_requests) = edge(slots, &port, &port);
        let (their_done, done) = edge(slots, &port, &port);
        let executor = DiskExecutor::new(
            &mut ring,
            kind,
            DiskEdges { requests: their_requests, done: their_done },
            tables.clone(),
            (ArenaId(0), arena.view()),
            vec![(target, disk)],
            plan,
        )
        .unwrap();
        let view = arena.view();
        let requests = Some(requests);
        Rig { ring, executor, requests, done, tables, view, target, _directory: directory, journal }
    }

    /// The next life of the same disk, with nothing but what reached it.
    fn restart(self) -> Rig {
        let Rig { ring, executor, target, _directory, journal, .. } = self;
        drop(executor);
        drop(ring);
        let disk = Disk::open(&journal).unwrap();
        Rig::reopened(target, _directory, journal, disk, FaultPlan::default())
    }

    fn ask(&mut self, slot: u32, op: IoOp, block: u64, pages: &[u32]) {
        for (index, page) in pages.iter().enumerate() {
            let table = table_of(&self.tables, self.executor.executor);
            table.set(SlotId(slot), index, PageId(*page), BlockSum::ZEROS);
        }
        let count = pages.len() as u32;
        let request = IoRequest { slot: SlotId(slot), target: self.target, op, block, count };
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
    let rule = FaultRule { target: None, op, block: None, after, times, effect };
    FaultPlan { rules: vec![rule], ..FaultPlan::default() }
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

/// The plan's rules for such sectors, on whichever disk there is.
fn bad_sectors(blocks: &[u64]) -> FaultPlan {
    let rule = |block: &u64| format!("[[rule]]\nop = 'read'\nblock = {block}\nerrno = {}\n", libc::EIO);
    FaultPlan::parse(&blocks.iter().map(rule).collect::<String>()).unwrap()
}

#[test]
fn of_a_read_across_bad_sectors_all_other_blocks_come_and_a_write_heals_them() {
    let mut rig = Rig::of(IoTarget::Volume(VolumeId(0)), bad_sectors(&[9, 12, 13, 15]));
    let pages: Vec<u32> = (10..18).collect();
    pages.iter().for_each(|&page| rig.fill(page, page as u8));
    // Written before it goes bad, as far as the disk is concerned.
    let heals = |rig: &mut Rig, block: u64| {
        let page = 10 + block as u32 - 8;
        rig.ask(0, IoOp::Write, block, &[page]);
        rig.result().result.unwrap();
    };
    [8, 10, 11, 14].iter().for_each(|&block| heals(&mut rig, block));
    let into: Vec<u32> = (30..38).collect();
    let read = |rig: &mut Rig| {
        into.iter().for_each(|&page| rig.view.bytes_mut(PageId(page)).fill(0xff));
        rig.ask(0, IoOp::Read, 8, &into);
        let result = rig.result().result;
        (result, into.iter().map(|&page| rig.view.bytes(PageId(page))[0]).collect::<Vec<u8>>())
    };
    let unread = |blocks| Err(IoFault::Unreadable { blocks, errno: libc::EIO });
    assert_eq!(read(&mut rig), (unread(0b1011_0010), vec![10, 0xff, 12, 13, 0xff, 0xff, 16, 0xff]));
    heals(&mut rig, 12);
    assert_eq!(read(&mut rig), (unread(0b1010_0010), vec![10, 0xff, 12, 13, 14, 0xff, 16, 0xff]));
    rig.ask(0, IoOp::Read, 9, &[30]);
    assert_eq!(rig.result().result, unread(1));
    [9, 13, 15].iter().for_each(|&block| heals(&mut rig, block));
    assert_eq!(read(&mut rig), (Ok(()), vec![10, 11, 12, 13, 14, 15, 16, 17]));
}

#[test]
fn a_batch_of_the_journal_is_read_whole_or_not_at_all() {
    let mut rig = Rig::new(bad_sectors(&[9]));
    rig.ask(0, IoOp::Read, 8, &[30, 31, 32]);
    assert_eq!(rig.result().result, Err(IoFault::Errno(libc::EIO)));
    rig.ask(0, IoOp::Read, 10, &[30]);
    assert_eq!(rig.result().result, Ok(()));
}

#[test]
fn a_delayed_request_waits_its_time_and_others_pass() {
    // Longer than a busy disk takes for the other one.
    let delay = Nanos::from_millis(300);
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
    assert_eq!(Disk::create(&path, 4096, Space::ReservedTo(4096), true).unwrap().blocks(), 1);
    assert!(matches!(Disk::open(directory.path()), Err(DiskError::NotADisk { .. })));
    assert!(matches!(Disk::open(std::path::Path::new("/dev/null")), Err(DiskError::NotADisk { .. })));
}

/// A device that is not there yet leaves a link that leads nowhere.
#[test]
fn a_link_that_leads_nowhere_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("volume");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    for overwrite in [false, true] {
        let refused = Disk::create(&link, 1 << 20, Space::Sparse, overwrite);
        assert!(matches!(refused, Err(DiskError::Exists { .. })));
        assert!(link.symlink_metadata().unwrap().is_symlink());
    }
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
    let disk =
        Disk::create(&directory.path().join("journal"), bytes, Space::ReservedTo(bytes), false).unwrap();
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

#[test]
fn a_fault_plan_is_read_from_text() {
    let text = r#"
        discard_unflushed = 7
        [[rule]]
        disk = "checksums:3"
        op = "read"
        errno = 5
        [[rule]]
        op = "flush"
        after = 10
        times = 2
        delay_us = 20000
    "#;
    let plan = FaultPlan::parse(text).unwrap();
    let rotten = FaultRule {
        target: Some(IoTarget::Checksums(VolumeId(3))),
        op: IoOp::Read,
        block: None,
        after: 0,
        times: u64::MAX,
        effect: FaultEffect::Errno(5),
    };
    let slow = FaultRule {
        target: None,
        op: IoOp::Flush,
        block: None,
        after: 10,
        times: 2,
        effect: FaultEffect::Delay(Nanos::from_millis(20)),
    };
    assert_eq!(plan, FaultPlan { rules: vec![rotten, slow], discard_unflushed: Some(7) });
    assert_eq!(FaultPlan::parse("").unwrap(), FaultPlan::default());
}

#[test]
fn a_fault_plan_that_means_nothing_is_refused() {
    let error = |text: &str| FaultPlan::parse(text).unwrap_err();
    assert!(matches!(error("[[rule]]\nop = 'erase'\nerrno = 5"), FaultPlanError::Syntax(_)));
    assert!(matches!(error("[[rule]]\nop = 'read'\nerrno = 5\nerno = 5"), FaultPlanError::Syntax(_)));
    assert!(matches!(error("[[rule]]\nop = 'read'"), FaultPlanError::Effect(1)));
    assert!(matches!(error("[[rule]]\nop = 'read'\nerrno = 5\nshort = true"), FaultPlanError::Effect(1)));
    assert!(matches!(error("[[rule]]\nop = 'read'\nerrno = 0"), FaultPlanError::Effect(1)));
    assert!(matches!(error("[[rule]]\nop = 'write'\nblock = 3\nerrno = 5"), FaultPlanError::Block(1)));
    assert!(matches!(error("[[rule]]\nop = 'read'\nblock = 3\nshort = true"), FaultPlanError::Block(1)));
    let both = error("discard_unflushed = 1\n[[rule]]\nop = 'read'\nblock = 3\nerrno = 5");
    assert!(matches!(both, FaultPlanError::Block(1)));
    assert!(matches!(error("[[rule]]\nop = 'read'\nshort = true\ndisk = 'volume'"), FaultPlanError::Disk(_)));
}

/// Writes numbered blocks over a ring from another core, reads each back, and ends with a flush.
struct Group {
    requests: Option<Sender<IoRequest>>,
    done: Receiver<IoDone>,
    tables: Arc<Tables>,
    view: ArenaView,
    begun: bool,
    next: u64,
    stopping: bool,
}

const LAST: u64 = 500;

impl Group {
    fn ask(&mut self, op: IoOp, block: u64, page: u32, count: u32) {
        self.tables.journal_io.set(SlotId(0), 0, PageId(page), BlockSum::ZEROS);
        let request = IoRequest { slot: SlotId(0), target: IoTarget::Journal, op, block, count };
        self.requests.as_mut().unwrap().push(request);
    }

    fn step(&mut self) {
        let block = self.next / 2 % JOURNAL_BLOCKS;
        match self.next {
            LAST => self.ask(IoOp::Flush, 0, 0, 0),
            even if even % 2 == 0 => {
                self.view.reopen(PageId(1));
                self.view.bytes_mut(PageId(1))[..8].copy_from_slice(&even.to_le_bytes());
                self.view.seal(PageId(1));
                self.ask(IoOp::Write, block, 1, 1);
            }
            _ => {
                self.view.reopen(PageId(2));
                self.ask(IoOp::Read, block, 2, 1);
            }
        }
    }
}

impl<D> Actor<D> for Group {
    fn name(&self) -> &'static str {
        "group"
    }

    fn turn(&mut self, _now: Nanos, _driver: &mut D) -> bool {
        if !self.begun {
            self.begun = true;
            self.step();
            return true;
        }
        let Some(done) = self.done.pop() else { return false };
        done.result.unwrap();
        if self.next % 2 == 1 {
            assert_eq!(self.view.bytes(PageId(2))[..8], (self.next - 1).to_le_bytes());
        }
        self.next += 1;
        if self.next <= LAST {
            self.step();
        }
        true
    }

    fn complete(&mut self, _now: Nanos, _driver: &mut D, _completion: Completion) {
        unreachable!("it submits nothing");
    }

    fn ready(&self) -> bool {
        !self.begun || !self.done.is_empty()
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn stop(&mut self, _now: Nanos) {
        self.stopping = true;
    }

    fn stopped(&self) -> bool {
        self.stopping && self.next > LAST
    }
}

#[test]
fn an_executor_serves_a_group_on_another_core() {
    for idle in [IdlePolicy::Park, IdlePolicy::default()] {
        for allowed in [Features::ALL, Features::NONE] {
            serve_from_another_core(idle, allowed);
        }
    }
}

fn serve_from_another_core(idle: IdlePolicy, allowed: Features) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let disk =
        Disk::create(&path, JOURNAL_BLOCKS * 4096, Space::ReservedTo(JOURNAL_BLOCKS * 4096), false).unwrap();
    let ports = mesh(2).unwrap();
    let (clock, arena, tables) = (Clock::new(), Arena::new(16).unwrap(), Arc::new(Tables::new(1)));
    let (requests, asked) = edge(1, &ports[0], &ports[1]);
    let (answers, done) = edge(JOURNAL_IO_SLOTS, &ports[1], &ports[0]);
    let group = Group {
        requests: Some(requests),
        done,
        tables: tables.clone(),
        view: arena.view(),
        begun: false,
        next: 0,
        stopping: false,
    };
    let loads = [(); 2].map(|()| Arc::new(Loads::default()));
    let ring = |port: &Port| {
        let config = RingConfig { allowed, ..RingConfig::new(vec![arena.clone()]) };
        Ring::new(config, clock.clone(), port.clone()).unwrap()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut reactor = Reactor::new(ports[0].clone(), ring(&ports[0]), idle, loads[0].clone());
            reactor.add(group);
            reactor.run();
        });
        scope.spawn(|| {
            let mut ring = ring(&ports[1]);
            let (edges, memory) = (DiskEdges { requests: asked, done: answers }, (ArenaId(0), arena.view()));
            let (disks, plan) = (vec![(IoTarget::Journal, disk)], FaultPlan::default());
            let executor =
                DiskExecutor::new(&mut ring, Executor::Journal, edges, tables.clone(), memory, disks, plan);
            let mut reactor = Reactor::new(ports[1].clone(), ring, idle, loads[1].clone());
            reactor.add(executor.unwrap());
            reactor.run();
        });
        // Stopping before the work is done: the group finishes first, then its executor.
        ports[0].request_stop();
    });
    let served = loads[1].snapshot();
    assert_eq!(served.actors[0].name, "journal");
    assert!(served.actors[0].turns > LAST / 2);
}
