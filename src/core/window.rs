//! The unsettled window: every update from its number until it is durable on both sites and no helper reads its pages.
//!
//! An update here is *remote write pending* (US 6,647,474) until the peer's acknowledgement covers it. Its slot is its
//! number modulo the window's size, which journal and link use to find its pages.

use crate::base::{BlockSum, Nanos, PageId, PageTable, SlotId, UpdateNumber, WINDOW_UPDATES_MAX};
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
pub struct Window {
    slots: Box<[Option<Pending>]>,
    /// Updates up to here are gone from the window.
    retired: UpdateNumber,
    last: UpdateNumber,
    /// Payload blocks between the two.
    payload_blocks: usize,
    /// By slot, the payload blocks of everything pushed before the update that is there.
    blocks_before: Box<[u64]>,
    blocks_pushed: u64,
}

impl Window {
    /// An empty window whose next update is `after + 1`.
    pub fn new(after: UpdateNumber) -> Window {
        Window {
            slots: vec![None; WINDOW_UPDATES_MAX].into_boxed_slice(),
            retired: after,
            last: after,
            payload_blocks: 0,
            blocks_before: vec![0; WINDOW_UPDATES_MAX].into_boxed_slice(),
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

    /// Payload blocks of the updates after `after`, as far as they are in the window, and up to `upto`, which is.
    pub fn blocks_between(&self, after: UpdateNumber, upto: UpdateNumber) -> u64 {
        let first = after.max(self.retired).next();
        if first > upto {
            return 0;
        }
        let before = self.blocks_before[Window::slot_of(first).0 as usize];
        let upto_before = self.blocks_before[Window::slot_of(upto).0 as usize];
        upto_before - before + self.get(upto).update.payload_blocks() as u64
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
        self.blocks_before[Window::slot_of(number).0 as usize] = self.blocks_pushed;
        self.blocks_pushed += pending.update.payload_blocks() as u64;
        self.slots[Window::slot_of(number).0 as usize] = Some(pending);
        self.last = number;
    }

    #[track_caller]
    pub fn get(&self, number: UpdateNumber) -> &Pending {
        assert!(self.contains(number), "{number} is not in the window ({}, {}]", self.retired, self.last);
        self.slots[Window::slot_of(number).0 as usize]
            .as_ref()
            .expect("slots between retired and last are filled")
    }

    #[track_caller]
    pub fn get_mut(&mut self, number: UpdateNumber) -> &mut Pending {
        assert!(self.contains(number), "{number} is not in the window ({}, {}]", self.retired, self.last);
        self.slots[Window::slot_of(number).0 as usize]
            .as_mut()
            .expect("slots between retired and last are filled")
    }

    /// Removes the oldest update.
    pub fn retire(&mut self) -> Pending {
        let number = self.retired.next();
        let pending = *self.get(number);
        self.slots[Window::slot_of(number).0 as usize] = None;
        self.payload_blocks -= pending.update.payload_blocks();
        self.retired = number;
        pending
    }

    /// Removes the newest update (a tail cut).
    pub fn cut_last(&mut self) -> Pending {
        let number = self.last;
        let pending = *self.get(number);
        self.slots[Window::slot_of(number).0 as usize] = None;
        self.blocks_pushed -= pending.update.payload_blocks() as u64;
        self.payload_blocks -= pending.update.payload_blocks();
        self.last = number.previous();
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
