//! What hosts' operations are told, and when they run out of time.

use std::cmp::Reverse;

use super::host::{Op, OpState};
use super::{Group, Turn, Wakeup};
use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::Event;

/// Deadlines are looked at this many times in a deadline's span: an operation is late by a sixteenth at most.
const DEADLINE_SCANS: u64 = 16;

impl Group {
    pub(super) fn answer(
        &mut self,
        turn: &mut Turn<impl Memory>,
        at: (u8, Ticket),
        result: Result<(), HostError>,
    ) {
        let op = self.op_mut(at);
        assert_ne!(op.state, OpState::Free, "ticket {:?} of front {} answered twice", at.1, at.0);
        op.state = OpState::Free;
        if result.is_ok() && matches!(op.request.op, HostOp::Read { .. }) {
            self.counters.reads += 1;
        }
        self.ops_live -= 1;
        turn.out.to_front[at.0 as usize].push(HostReply { ticket: at.1, result, replied_at: turn.now });
    }

    /// Answers an operation that has no number with an error.
    pub(super) fn refuse_operation(
        &mut self,
        turn: &mut Turn<impl Memory>,
        at: (u8, Ticket),
        error: HostError,
    ) {
        self.drop_payload(turn, at);
        self.answer(turn, at, Err(error));
    }

    /// Lets go of the pages a write brought that will not be numbered.
    fn drop_payload(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket)) {
        for index in 0..handed_over(&self.op(at).request.op) {
            let page = turn.tables.fronts[at.0 as usize].page(at.1, index);
            self.pages.release(page, turn.memory);
        }
    }

    /// Wakes what waited for a watermark that has been reached. A read or flush answered by its deadline, or a ticket used
    /// anew since, is passed over.
    pub(super) fn wake_watchers(&mut self, turn: &mut Turn<impl Memory>) {
        loop {
            let acknowledged = self.on_acknowledged.peek().is_some_and(|Reverse(w)| w.0 <= self.acknowledged);
            let settled = self.on_settled.peek().is_some_and(|Reverse(w)| w.0 <= self.settled);
            let heap = match (acknowledged, settled) {
                (true, _) => &mut self.on_acknowledged,
                (_, true) => &mut self.on_settled,
                _ => return,
            };
            let Reverse((_, front, ticket, serial)) = heap.pop().expect("peeked");
            let at = (front, SlotId(ticket));
            if self.op(at).serial == serial && self.op(at).state == OpState::Watching {
                self.answer(turn, at, Ok(()));
            }
        }
    }

    pub(super) fn deadline_scan_span(&self) -> Nanos {
        Nanos((self.config.host_deadline.0 / DEADLINE_SCANS).max(1))
    }

    /// INV-11: an operation past its deadline gets an error. A numbered write stays in the stream: it may still take effect.
    pub(super) fn expire_operations(&mut self, turn: &mut Turn<impl Memory>) {
        if self.ops_live == 0 || turn.now < self.deadline_scan_at {
            return;
        }
        self.deadline_scan_at = turn.now.plus(self.deadline_scan_span());
        let mut oldest_ns = 0;
        for front in 0..self.ops.len() {
            for ticket in 0..FRONT_TICKETS_MAX {
                let op = self.ops[front][ticket];
                let age = turn.now.since(op.taken_at);
                if op.state != OpState::Free && age >= self.config.host_deadline {
                    oldest_ns = oldest_ns.max(age.0);
                    self.give_up(turn, (front as u8, SlotId(ticket as u32)), HostError::Deadline);
                }
            }
        }
        if oldest_ns > 0 {
            turn.event(Event::HostDeadline { oldest_ns });
            self.forget_answered();
        }
    }

    /// Drops the wake-ups of operations that their deadline answered: while a watermark stands still they would pile up.
    pub(super) fn forget_answered(&mut self) {
        let ops = &self.ops;
        let waits = |Reverse((_, front, ticket, serial)): &Wakeup| {
            let op = &ops[*front as usize][*ticket as usize];
            op.serial == *serial && op.state == OpState::Watching
        };
        self.on_acknowledged.retain(waits);
        self.on_settled.retain(waits);
    }

    /// Operations that are inside and do not wait for room.
    pub(super) fn operations_under_way(&self) -> usize {
        let under_way = |op: &&Op| !matches!(op.state, OpState::Free | OpState::Waiting);
        self.ops.iter().flatten().filter(under_way).count()
    }

    pub(super) fn answer_all(&mut self, turn: &mut Turn<impl Memory>, error: HostError) {
        for front in 0..self.ops.len() {
            for ticket in 0..FRONT_TICKETS_MAX {
                if self.ops[front][ticket].state != OpState::Free {
                    self.give_up(turn, (front as u8, SlotId(ticket as u32)), error);
                }
            }
        }
    }

    /// Replay found that this site is a secondary: what was asked of it meanwhile may have been let in for a primary's.
    pub(super) fn refuse_hosts_of_primary(&mut self, turn: &mut Turn<impl Memory>) {
        for front in 0..self.ops.len() {
            for ticket in 0..FRONT_TICKETS_MAX {
                let op = self.ops[front][ticket];
                if op.state != OpState::Free
                    && let Err(error) = self.judge(&op.request)
                {
                    self.give_up(turn, (front as u8, SlotId(ticket as u32)), error);
                }
            }
        }
    }

    fn give_up(&mut self, turn: &mut Turn<impl Memory>, at: (u8, Ticket), error: HostError) {
        match self.op(at).state {
            OpState::Free => return,
            OpState::Numbered(number) => {
                if self.window.contains(number) {
                    self.window.get_mut(number).waiter = None;
                }
            }
            OpState::Waiting | OpState::Fetching { .. } | OpState::Mending => self.drop_payload(turn, at),
            OpState::LookingUp | OpState::FetchingSnapshot { .. } | OpState::Watching => {}
        }
        // The ticket may come back before its queue entry is reached, so the entry goes now.
        remove(&mut self.queued, at);
        remove(&mut self.stalled, at);
        self.counters.expired += 1;
        self.answer(turn, at, Err(error));
    }
}

/// Pages that pass from front to group with the operation.
pub(super) fn handed_over(op: &HostOp) -> usize {
    match op {
        HostOp::Write { count, .. } => *count as usize,
        HostOp::WritePartial { .. } => 1,
        HostOp::Read { .. }
        | HostOp::Changes { .. }
        | HostOp::Zero { .. }
        | HostOp::ZeroPartial { .. }
        | HostOp::Flush => 0,
    }
}

fn remove(queue: &mut FixedQueue<(u8, Ticket)>, at: (u8, Ticket)) {
    for _ in 0..queue.len() {
        let item = queue.pop().expect("counted");
        if item != at {
            queue.push(item);
        }
    }
}
