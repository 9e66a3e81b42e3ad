//! The unsettled window: every update from its number until it is durable on both sites and no helper reads its pages.
//!
//! An update here is *remote write pending* (US 6,647,474) until the peer's acknowledgement covers it. Its slot is its
//! number modulo the window's size, which journal and link use to find its pages.

use crate::base::{BlockSum, FixedQueue, Nanos, PageId, PageTable, SlotId, UpdateNumber, WINDOW_UPDATES_MAX};
use crate::core::messages::Ticket;
use crate::core::outbox::WriteStamps;
use crate::format::update::Update;

/// The host operation that an update completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub front: u8,
    pub ticket: Ticket,
    /// Reply only when settled (INV-2).
    pub fua: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Pending {
    pub update: Update,
    pub waiter: Option<Waiter>,
    pub stamps: WriteStamps,
    /// When the link was last given it.
    pub given_to_link_at: Nanos,
}

#[derive(Debug)]
struct Held {
    pending: Pending,
    /// Payload blocks of everything pushed before it.
    blocks_before: u64,
}

#[derive(Debug)]
pub struct Window {
    /// The updates after `retired`, in order.
    held: FixedQueue<Held>,
    /// Updates up to here are gone from the window.
    retired: UpdateNumber,
    last: UpdateNumber,
    /// Payload blocks between the two.
    payload_blocks: usize,
    blocks_pushed: u64,
}

impl Window {
    /// An empty window whose next update is `after + 1`.
    pub fn new(after: UpdateNumber) -> Window {
        Window {
            held: FixedQueue::new(WINDOW_UPDATES_MAX),
            retired: after,
            last: after,
            payload_blocks: 0,
            blocks_pushed: 0,
        }
    }

    /// Empties it for a stream that continues after `after`.
    pub fn restart(&mut self, after: UpdateNumber) {
        assert!(self.is_empty(), "restarting a window that holds {} to {}", self.retired.next(), self.last);
        self.retired = after;
        self.last = after;
    }

    pub fn slot_of(number: UpdateNumber) -> SlotId {
        SlotId((number.0 % WINDOW_UPDATES_MAX as u64) as u32)
    }

    pub fn retired(&self) -> UpdateNumber {
        self.retired
    }

    pub fn last(&self) -> UpdateNumber {
        self.last
    }

    pub fn len(&self) -> usize {
        (self.last.0 - self.retired.0) as usize
    }

    pub fn is_empty(&self) -> bool {
        self.last == self.retired
    }

    pub fn room(&self) -> usize {
        WINDOW_UPDATES_MAX - self.len()
    }

    pub fn payload_blocks(&self) -> usize {
        self.payload_blocks
    }

    /// Blocks that the updates hold back after `after`, as far as they are in the window, and up to `upto`, which is.
    pub fn blocks_between(&self, after: UpdateNumber, upto: UpdateNumber) -> u64 {
        let first = after.max(self.retired).next();
        if first > upto {
            return 0;
        }
        let newest = self.held(upto);
        newest.blocks_before + newest.pending.update.held_blocks() as u64 - self.held(first).blocks_before
    }

    pub fn contains(&self, number: UpdateNumber) -> bool {
        number > self.retired && number <= self.last
    }

    /// Adds the next update; its pages are already in the table's row.
    pub fn push(&mut self, pending: Pending) {
        let number = pending.update.number;
        assert_eq!(number, self.last.next(), "update numbers are dense");
        assert!(self.room() > 0, "window full at {number}");
        self.payload_blocks += pending.update.payload_blocks();
        let blocks_before = self.blocks_pushed;
        self.blocks_pushed += pending.update.held_blocks() as u64;
        self.held.push(Held { pending, blocks_before });
        self.last = number;
    }

    #[track_caller]
    fn index_of(&self, number: UpdateNumber) -> usize {
        assert!(self.contains(number), "{number} is not in the window ({}, {}]", self.retired, self.last);
        (number.0 - self.retired.0 - 1) as usize
    }

    #[track_caller]
    fn held(&self, number: UpdateNumber) -> &Held {
        self.held.get(self.index_of(number)).expect("everything between retired and last is held")
    }

    #[track_caller]
    pub fn get(&self, number: UpdateNumber) -> &Pending {
        &self.held(number).pending
    }

    #[track_caller]
    pub fn get_mut(&mut self, number: UpdateNumber) -> &mut Pending {
        let index = self.index_of(number);
        &mut self.held.get_mut(index).expect("everything between retired and last is held").pending
    }

    /// Removes the oldest update.
    pub fn retire(&mut self) -> Pending {
        let Held { pending, .. } = self.held.pop().expect("the caller left an update to retire");
        self.payload_blocks -= pending.update.payload_blocks();
        self.retired = self.retired.next();
        pending
    }

    /// Removes the newest update (a tail cut).
    pub fn cut_last(&mut self) -> Pending {
        let Held { pending, .. } = self.held.pop_back().expect("the caller left an update to cut");
        self.blocks_pushed -= pending.update.held_blocks() as u64;
        self.payload_blocks -= pending.update.payload_blocks();
        self.last = self.last.previous();
        pending
    }

    /// Page and sum of an update's `index`th block; blocks of a `Zero` have the zero page.
    pub fn block(table: &PageTable, update: &Update, index: usize) -> (PageId, BlockSum) {
        if update.payload_blocks() == 0 {
            return (PageId::ZERO, BlockSum::ZEROS);
        }
        let slot = Window::slot_of(update.number);
        (table.page(slot, index), table.sum(slot, index))
    }

    /// When the oldest update in the window was numbered.
    pub fn oldest_numbered_at(&self) -> Option<Nanos> {
        (!self.is_empty()).then(|| self.get(self.retired.next()).stamps.numbered_at)
    }
}
