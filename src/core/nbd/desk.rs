//! A front's tickets and pages, shared by all its connections, and the requests on their way to the group.

use crate::base::{BlockSum, FRONT_TICKETS_MAX, FixedQueue, Nanos, PageId, PageTable, STAGING_PAGES, SlotId};
use crate::core::messages::{HostOp, HostRequest, Ticket};
use crate::core::nbd::Exported;

/// Whose a ticket is while the group has it: a piece of one request of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub connection: u16,
    /// The request's place in its session.
    pub request: u16,
    /// The piece's bytes in the volume. Zero length for pieces without data to return.
    pub offset: u64,
    pub length: u32,
    /// Pages lent for a read, which come back with the ticket.
    pub lent: u32,
}

/// The front's side of the edge to its group. A ticket is free, or names a [`Job`]; a page is free, or in the group.
#[derive(Debug)]
pub struct Desk {
    tickets: FixedQueue<Ticket>,
    pages: Vec<PageId>,
    jobs: Box<[Option<Job>]>,
    outgoing: FixedQueue<HostRequest>,
    lent: usize,
}

impl Desk {
    pub fn new() -> Desk {
        let mut tickets = FixedQueue::new(FRONT_TICKETS_MAX);
        (0..FRONT_TICKETS_MAX).for_each(|ticket| tickets.push(SlotId(ticket as u32)));
        Desk {
            tickets,
            pages: Vec::with_capacity(STAGING_PAGES),
            jobs: vec![None; FRONT_TICKETS_MAX].into_boxed_slice(),
            outgoing: FixedQueue::new(FRONT_TICKETS_MAX),
            lent: 0,
        }
    }

    /// Takes an open page that the group granted. Panics if that is more than [`STAGING_PAGES`] of them.
    pub fn grant(&mut self, page: PageId) {
        let held = self.pages.len() + self.lent;
        assert!(held < STAGING_PAGES, "the group granted a page beyond {STAGING_PAGES}");
        self.pages.push(page);
    }

    /// Pages the group may still grant.
    pub fn page_room(&self) -> usize {
        STAGING_PAGES - self.pages.len() - self.lent
    }

    pub fn free_pages(&self) -> usize {
        self.pages.len()
    }

    pub fn free_tickets(&self) -> usize {
        self.tickets.len()
    }

    /// The next request for the group's ring, which has a place for every ticket.
    pub fn outgoing(&mut self) -> Option<HostRequest> {
        self.outgoing.pop()
    }

    /// The connection whose piece `ticket` is.
    pub fn connection_of(&self, ticket: Ticket) -> usize {
        usize::from(self.job(ticket).connection)
    }

    pub(super) fn job(&self, ticket: Ticket) -> Job {
        let job = self.jobs.get(ticket.0 as usize).copied().flatten();
        job.unwrap_or_else(|| panic!("the group replied to ticket {}, which it does not have", ticket.0))
    }

    /// Whether a piece that needs `pages` pages can be issued now.
    pub fn affords(&self, pages: u32) -> bool {
        !self.tickets.is_empty() && self.pages.len() >= pages as usize
    }

    /// Takes a ticket; [`Desk::affords`] was asked.
    pub(super) fn ticket(&mut self) -> Ticket {
        self.tickets.pop().expect("affords() was asked")
    }

    /// Takes a page; [`Desk::affords`] was asked.
    pub(super) fn page(&mut self) -> PageId {
        self.pages.pop().expect("affords() was asked")
    }

    /// Puts `count` free pages into the ticket's row for the group to fill.
    pub(super) fn lend(&mut self, table: &PageTable, ticket: Ticket, count: u32) {
        for index in 0..count as usize {
            let page = self.page();
            table.set(ticket, index, page, BlockSum::ZEROS);
        }
        self.lent += count as usize;
    }

    pub(super) fn submit(&mut self, ticket: Ticket, job: Job, from: &Exported, op: HostOp, now: Nanos) {
        let place = &mut self.jobs[ticket.0 as usize];
        assert!(place.is_none(), "ticket {} is used twice", ticket.0);
        *place = Some(job);
        self.outgoing.push(HostRequest {
            ticket,
            volume: from.volume,
            snapshot: from.snapshot,
            of_primary: !from.read_only,
            op,
            received_at: now,
        });
    }

    /// The ticket and the pages lent with it are free again.
    pub(super) fn release(&mut self, table: &PageTable, ticket: Ticket) {
        let job = self.job(ticket);
        self.jobs[ticket.0 as usize] = None;
        self.tickets.push(ticket);
        for index in 0..job.lent as usize {
            self.pages.push(table.page(ticket, index));
        }
        self.lent -= job.lent as usize;
    }

    /// Panics unless every ticket and every page is back: nothing is in the group for this front.
    pub fn assert_at_rest(&self) {
        assert_eq!(self.tickets.len(), FRONT_TICKETS_MAX, "tickets leaked");
        assert_eq!(self.lent, 0, "lent pages leaked");
        assert!(self.outgoing.is_empty(), "requests were left behind");
    }
}

impl Default for Desk {
    fn default() -> Desk {
        Desk::new()
    }
}
