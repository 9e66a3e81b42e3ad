//! The sites' disks at work: requests as executors take them, and completions on their way back.

use crate::base::*;
use crate::core::messages::*;
use crate::sim::audit::journal::RING_FIRST;
use crate::sim::disk::{IoId, place_of};
use crate::sim::site::{Done, Site};
use crate::sim::world::{Event, World};

/// What a bad sector says.
const EIO: i32 = 5;
/// What a full filesystem says.
const ENOSPC: i32 = 28;

impl World {
    pub(super) fn submit_io(&mut self, index: usize, executor: Executor, request: IoRequest) {
        let now = self.now;
        let no_space = request.op == IoOp::Reserve && !self.has_space();
        let (stands_still_ns, refuses) = (self.stands_still_ns(index, executor), self.refuses(index));
        let plan = &self.plan;
        let Site { memory, tables, disk, slow_until, disturbed_io_until, errors, incarnation, .. } =
            &mut self.sites[index];
        let table = if executor == Executor::Journal { &tables.journal_io } else { &tables.volume_io };
        let IoRequest { slot, target, op, block, count } = request;
        let count = u64::from(count);
        let of_journal = matches!(target, IoTarget::Journal | IoTarget::Staging);
        assert_eq!(executor == Executor::Journal, of_journal, "{request:?} at {executor:?}");
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
                    blocks.push(memory.content(page));
                }
                let io = disk.write(target, block, blocks.iter().cloned());
                self.trace.note(now, || {
                    let names: Vec<_> = blocks.iter().map(|content| content.print.describe()).collect();
                    format!("site {index} writes {target:?} at {block}: {names:?}")
                });
                self.audit.of(index).writes(index, io, place_of(target), block, &blocks, disk);
                (io, plan.write_ns)
            }
            IoOp::Flush => (disk.flush(target), plan.flush_ns),
            IoOp::Reserve => (disk.reserve(target), plan.write_ns),
        };
        let slow = if now < *slow_until { 100 } else { 1 };
        let latency = self.rng.latency(typical * slow) + stands_still_ns;
        let result = match errors[executor as usize].take().or(refuses) {
            Some(errno) => Err(IoFault::Errno(errno)),
            None if no_space => Err(IoFault::Errno(ENOSPC)),
            None => Ok(()),
        };
        if slow > 1 || result.is_err() {
            *disturbed_io_until = (*disturbed_io_until).max(now + latency);
        }
        let incarnation = *incarnation;
        self.schedule(
            now + latency,
            Event::Complete { site: index, incarnation, executor, request, io, result },
        );
        if target == IoTarget::Journal && op == IoOp::Write && block >= RING_FIRST {
            let before = std::mem::replace(&mut self.sites[index].batch_at, block);
            if block < before {
                self.perhaps_crash_at_wrap(index);
            }
        }
    }

    pub(super) fn complete_io(
        &mut self,
        index: usize,
        executor: Executor,
        request: IoRequest,
        io: IoId,
        result: Result<(), IoFault>,
    ) {
        let now = self.now;
        let Site { memory, tables, disk, journal_done, volume_done, reads_failed, .. } =
            &mut self.sites[index];
        let (table, ring) = match executor {
            Executor::Journal => (&tables.journal_io, journal_done),
            Executor::Volumes => (&tables.volume_io, volume_done),
        };
        let IoRequest { slot, target, op, .. } = request;
        let page = |at: usize| table.page(slot, at);
        let (mut write, mut unread) = (None, 0);
        match (op, result) {
            (IoOp::Read, Ok(())) => {
                unread = disk.complete_read(io, |at, content| memory.fill_content(page(at), content));
            }
            (IoOp::Write, Ok(())) => {
                disk.complete_write(io);
                self.audit.of(index).written_io(index, io, place_of(target));
                write = Some((target, io));
            }
            (IoOp::Flush, Ok(())) => {
                let covers = disk.complete_flush(io);
                self.audit.of(index).flushed(index, &covers, place_of(target));
            }
            (IoOp::Reserve, _) => disk.end_other(io),
            (IoOp::Write, Err(_)) => disk.fail_write(io, &mut self.rng),
            (IoOp::Read | IoOp::Flush, Err(_)) => {
                self.audit.of(index).reads_fail(index);
                if (op, target) == (IoOp::Read, IoTarget::Journal) {
                    self.audit.of(index).journal_read_fails(index, request.block);
                }
                disk.end_other(io);
            }
        }
        if op.has_pages() {
            (0..request.count as usize).for_each(|at| memory.unpin(page(at)));
        }
        let result = match unread {
            0 => result,
            blocks => Err(IoFault::Unreadable { blocks, errno: EIO }),
        };
        *reads_failed |= op == IoOp::Read && result.is_err();
        let after = ring.back().map_or(now, |done| done.ready).max(now);
        let ready = after.max(now + self.rng.below(self.plan.ring_ns + 1));
        ring.push_back(Done { ready, done: IoDone { slot, result }, write });
        let bound = if executor == Executor::Journal { JOURNAL_IO_SLOTS } else { VOLUME_IO_SLOTS };
        assert!(ring.len() <= bound, "INV-12: more completions than slots");
        self.wake_group(index, ready);
    }
}
