//! A site's link: what `ToLink` and `FromLink` promise, carried out over a simulated connection with the production
//! codecs. Bytes come in pieces of any size; pages and rows are the group's.

use std::collections::VecDeque;

use crate::base::*;
use crate::core::messages::*;
use crate::format::update::Update;
use crate::format::wire::{
    CONTROL_FRAME_BYTES_MAX, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameReader, OldBlocks,
    UPDATE_FRAME_BYTES, encode_control, encode_page_frame, encode_update,
};
use crate::sim::links::LinkTables;
use crate::sim::memory::SimMemory;
use crate::sim::rng::Rng;

/// Buffers kept for reuse.
const SPARE_MAX: usize = 16;

/// An update whose payload is being received.
struct Receiving {
    update: Update,
    settled: UpdateNumber,
    old: Option<OldBlocks>,
    pages: Vec<PageId>,
    /// Bytes in the last page.
    filled: usize,
}

/// One end of a connection.
struct Session {
    /// Which connection of the network this is.
    connection: u64,
    /// Its number as the group knows it.
    local: u32,
    /// The group has said `Begin` for it.
    begun: bool,
    reader: Box<FrameReader>,
    arrived: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that are taken.
    taken: usize,
    receiving: Option<Receiving>,
    /// A handshake frame that waits for a page.
    greeting: Option<(PageFrame, Vec<u8>)>,
}

/// What a turn of the link did to its connection.
pub struct Said {
    pub connection: u64,
    pub bytes: Vec<u8>,
    pub close: bool,
}

struct Outgoing {
    ready: u64,
    message: ToLink,
    /// Pages of an update, pinned since the group named them.
    pages: Vec<PageId>,
}

struct Reading {
    until: u64,
    done: FromLink,
    pages: Vec<PageId>,
}

pub struct Link {
    session: Option<Session>,
    connections: u32,
    outgoing: VecDeque<Outgoing>,
    /// Messages whose pages the connection still reads, in order.
    reading: VecDeque<Reading>,
    /// What the ring had no place for.
    news: VecDeque<FromLink>,
    pages: Vec<PageId>,
    /// Buffers of pieces that were read, for what is said next.
    spare: Vec<Vec<u8>>,
    pub ring: VecDeque<(u64, FromLink)>,
    ring_capacity: usize,
    next_row: u32,
}

fn keep(spare: &mut Vec<Vec<u8>>, mut buffer: Vec<u8>) {
    if spare.len() < SPARE_MAX && buffer.capacity() > 0 {
        buffer.clear();
        spare.push(buffer);
    }
}

impl Link {
    pub fn new(ring_capacity: usize) -> Link {
        Link {
            session: None,
            connections: 0,
            outgoing: VecDeque::new(),
            reading: VecDeque::new(),
            news: VecDeque::new(),
            pages: Vec::new(),
            spare: Vec::new(),
            ring: VecDeque::new(),
            ring_capacity,
            next_row: 0,
        }
    }

    pub fn connection(&self) -> Option<u64> {
        self.session.as_ref().map(|session| session.connection)
    }

    pub fn grant(&mut self, page: PageId) {
        self.pages.push(page);
        assert!(self.pages.len() <= STAGING_PAGES, "INV-12: more pages than the link's ring holds");
    }

    /// Whether nothing of the group's is in the link's hands, granted pages apart.
    pub fn idle(&self) -> bool {
        self.outgoing.is_empty() && self.reading.is_empty() && self.news.is_empty() && self.ring.is_empty()
    }

    /// Pages the link holds to receive into.
    pub fn pages_held(&self) -> usize {
        let receiving = self.session.as_ref().and_then(|session| session.receiving.as_ref());
        self.pages.len() + receiving.map_or(0, |receiving| receiving.pages.len())
    }

    pub fn push(&mut self, ready: u64, message: ToLink, pages: Vec<PageId>) {
        self.outgoing.push_back(Outgoing { ready, message, pages });
        let bound = WINDOW_UPDATES_MAX + CATCH_UP_SLOTS + crate::core::outbox::LINK_CONTROL_MAX;
        assert!(self.outgoing.len() <= bound, "INV-12: more messages than the ring to the link holds");
    }

    /// A peer with the configured identity is connected; an older connection is over.
    pub fn connected(&mut self, connection: u64) {
        self.disconnected();
        self.connections += 1;
        self.session = Some(Session {
            connection,
            local: self.connections,
            begun: false,
            reader: Box::default(),
            arrived: VecDeque::new(),
            taken: 0,
            receiving: None,
            greeting: None,
        });
        self.news.push_back(FromLink::Connected { connection: self.connections });
    }

    pub fn disconnected(&mut self) {
        let Some(session) = self.session.take() else { return };
        if let Some(receiving) = session.receiving {
            self.pages.extend(receiving.pages);
        }
        self.reading.iter_mut().for_each(|reading| reading.until = 0);
        self.news.push_back(FromLink::Disconnected { connection: session.local });
    }

    pub fn arrive(&mut self, connection: u64, bytes: Vec<u8>) {
        if let Some(session) = self.session.as_mut().filter(|session| session.connection == connection) {
            session.arrived.push_back(bytes);
        }
    }

    /// One bounded slice of the link's work. Returns what it said and when it next has something to do.
    pub fn turn(
        &mut self,
        now: u64,
        messages: u64,
        ring_ns: u64,
        rng: &mut Rng,
        memory: &mut SimMemory,
        tables: &LinkTables,
    ) -> (Option<Said>, Option<u64>) {
        let connection = self.connection();
        let mut bytes = self.spare.pop().unwrap_or_default();
        let mut close = false;
        for _ in 0..messages {
            if self.outgoing.front().is_none_or(|outgoing| outgoing.ready > now) {
                break;
            }
            let Outgoing { message, pages, .. } = self.outgoing.pop_front().expect("looked at it");
            close |= self.say(now, message, pages, rng, memory, tables, &mut bytes);
        }
        while self.reading.front().is_some_and(|reading| reading.until <= now) {
            let Reading { done, pages, .. } = self.reading.pop_front().expect("looked at it");
            pages.into_iter().for_each(|page| memory.unpin(page));
            // Window completions are cumulative, so an older one may be left out.
            let cumulative =
                |news: &FromLink| matches!(news, FromLink::Consumed { source: UpdateSource::Window, .. });
            if cumulative(&done) && self.news.back().is_some_and(cumulative) && rng.once_in(2) {
                self.news.pop_back();
            }
            self.news.push_back(done);
        }
        self.publish_news(now, ring_ns, rng);
        if self.read(now, ring_ns, rng, memory, tables).is_err() {
            close = true;
        }
        if close {
            self.disconnected();
        }
        self.publish_news(now, ring_ns, rng);
        let said = connection.filter(|_| close || !bytes.is_empty());
        let said = match said {
            Some(connection) => Some(Said { connection, bytes, close }),
            None => {
                keep(&mut self.spare, bytes);
                None
            }
        };
        let next = [
            self.outgoing.front().map(|outgoing| outgoing.ready),
            self.reading.front().map(|reading| reading.until),
        ];
        (said, next.into_iter().flatten().min())
    }

    fn publish(&mut self, now: u64, ring_ns: u64, rng: &mut Rng, message: FromLink) {
        let after = self.ring.back().map_or(now, |(ready, _)| *ready).max(now);
        self.ring.push_back((after.max(now + rng.below(ring_ns + 1)), message));
    }

    fn publish_news(&mut self, now: u64, ring_ns: u64, rng: &mut Rng) {
        while self.ring.len() < self.ring_capacity {
            let Some(message) = self.news.pop_front() else { return };
            self.publish(now, ring_ns, rng, message);
        }
    }

    /// Carries out one message; returns whether the connection is to be closed.
    #[allow(clippy::too_many_arguments)]
    fn say(
        &mut self,
        now: u64,
        message: ToLink,
        pages: Vec<PageId>,
        rng: &mut Rng,
        memory: &SimMemory,
        tables: &LinkTables,
        bytes: &mut Vec<u8>,
    ) -> bool {
        let begun = self.session.as_ref().is_some_and(|session| session.begun);
        // Zero-copy reads last until the peer has the bytes; copies end at once.
        let held_ns = if begun && rng.once_in(2) { rng.below(200_000) } else { 0 };
        let until = self.reading.back().map_or(0, |reading| reading.until).max(now + held_ns);
        match message {
            ToLink::Begin { connection } => {
                if let Some(session) = &mut self.session {
                    session.begun = session.local == connection;
                }
            }
            ToLink::Update { update, settled, slot, source, with_old } => {
                let (table, cumulative) = match source {
                    UpdateSource::Window => (tables.window, true),
                    UpdateSource::CatchUp | UpdateSource::Copy => (tables.catch_up, false),
                };
                let old_row = SlotId((update.number.0 % OLD_BLOCK_SLOTS as u64) as u32);
                for (index, page) in pages.iter().enumerate() {
                    let named = match index.checked_sub(update.payload_blocks()) {
                        None => table.page(SlotId(slot), index),
                        Some(index) => tables.old_blocks.page(old_row, index),
                    };
                    assert_eq!(named, *page, "the row of {update:?} changed before the link read it");
                }
                if begun {
                    let mut frame = [0; UPDATE_FRAME_BYTES];
                    let (new, olds) = pages.split_at(update.payload_blocks());
                    let sent = || olds.iter().filter(|page| **page != PageId::ZERO);
                    let old = with_old.then(|| OldBlocks {
                        sum: sum_of_sums(sent().map(|page| memory.sum(*page))),
                        zeros: (0..).zip(olds).fold(0, |zeros, (index, page)| {
                            zeros | u32::from(*page == PageId::ZERO) << index
                        }),
                    });
                    let length = encode_update(&update, settled, old, &mut frame);
                    bytes.extend_from_slice(&frame[..length]);
                    new.iter().chain(sent()).for_each(|page| memory.append_to(*page, bytes));
                }
                let number = update.number;
                assert!(!cumulative || u64::from(slot) == number.0 % WINDOW_UPDATES_MAX as u64);
                let done =
                    FromLink::Consumed { number, slot, source, popped_at: Nanos(now), sent_at: Nanos(now) };
                self.reading.push_back(Reading { until, done, pages });
            }
            ToLink::Control(control) if begun => {
                let mut frame = [0; CONTROL_FRAME_BYTES_MAX];
                let length = encode_control(&control, &mut frame);
                bytes.extend_from_slice(&frame[..length]);
            }
            ToLink::Control(_) => (),
            ToLink::Page { frame: kind, page, length } => {
                if begun {
                    let body = &memory.bytes(page)[..usize::from(length)];
                    let mut frame = [0; FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX];
                    let length = encode_page_frame(kind, body, &mut frame);
                    bytes.extend_from_slice(&frame[..length]);
                }
                self.reading.push_back(Reading { until, done: FromLink::PageReturned { page }, pages });
            }
            ToLink::Close => return begun,
        }
        false
    }

    /// Reads frames while ring and pages last. An error means that the connection cannot go on.
    fn read(
        &mut self,
        now: u64,
        ring_ns: u64,
        rng: &mut Rng,
        memory: &mut SimMemory,
        tables: &LinkTables,
    ) -> Result<(), ()> {
        loop {
            if self.ring.len() >= self.ring_capacity || !self.news.is_empty() {
                return Ok(());
            }
            let Some(session) = &mut self.session else { return Ok(()) };
            if let Some((frame, body)) = session.greeting.take() {
                let Some(page) = self.pages.pop() else {
                    session.greeting = Some((frame, body));
                    return Ok(());
                };
                memory.fill(page)[..body.len()].copy_from_slice(&body);
                memory.give_back(page);
                self.publish(now, ring_ns, rng, FromLink::Page { frame, page, length: body.len() as u16 });
                continue;
            }
            let Some(piece) = session.arrived.front() else { return Ok(()) };
            let mut input = &piece[session.taken..];
            let before = input.len();
            let mut news = None;
            if let Some(receiving) = &mut session.receiving
                && session.reader.payload_left() > 0
            {
                if receiving.pages.is_empty() || receiving.filled == BLOCK_BYTES {
                    let Some(page) = self.pages.pop() else { return Ok(()) };
                    receiving.pages.push(page);
                    receiving.filled = 0;
                }
                let page = *receiving.pages.last().expect("one was pushed");
                let room = BLOCK_BYTES - receiving.filled;
                let (head, rest) = input.split_at(input.len().min(room));
                match head.try_into() {
                    Ok(block) => memory.fill_whole(page, block),
                    Err(_) => {
                        let part = receiving.filled..receiving.filled + head.len();
                        memory.fill(page)[part].copy_from_slice(head);
                    }
                }
                receiving.filled += head.len();
                session.reader.take_payload(head.len());
                input = rest;
            } else {
                match session.reader.feed(&mut input) {
                    Err(_) => return Err(()),
                    Ok(None) => (),
                    Ok(Some(Frame::Update { update, settled, old })) => {
                        session.receiving =
                            Some(Receiving { update, settled, old, pages: Vec::new(), filled: 0 });
                    }
                    Ok(Some(Frame::Control(control))) => news = Some(FromLink::Control(control)),
                    Ok(Some(Frame::Page(frame, body))) => session.greeting = Some((frame, body.to_vec())),
                }
            }
            session.taken += before - input.len();
            if session.taken == piece.len() {
                let piece = session.arrived.pop_front().expect("looked at it");
                session.taken = 0;
                keep(&mut self.spare, piece);
            }
            if session.reader.payload_left() == 0
                && let Some(Receiving { update, settled, old, pages, .. }) = session.receiving.take()
            {
                let row = SlotId(self.next_row);
                self.next_row = (self.next_row + 1) % tables.inbound.slots() as u32;
                let sums: Vec<BlockSum> = pages.iter().map(|page| memory.sum(*page)).collect();
                let (new, olds) = sums.split_at(update.payload_blocks());
                let right =
                    |sums: &[BlockSum], sum| sums.is_empty() || sum == sum_of_sums(sums.iter().copied());
                if !right(new, update.sum) || !old.is_none_or(|old| right(olds, old.sum)) {
                    self.pages.extend(pages);
                    return Err(());
                }
                let old_places = UPDATE_BLOCKS_MAX..UPDATE_BLOCKS_MAX + update.count as usize;
                for index in old_places.filter(|_| old.is_some()) {
                    tables.inbound.set(row, index, PageId::ZERO, BlockSum::ZEROS);
                }
                let of_old = old.into_iter().flat_map(|old| old.sent(update.count));
                let places = (0..new.len()).chain(of_old.map(|index| UPDATE_BLOCKS_MAX + index));
                for (index, (page, sum)) in places.zip(pages.iter().zip(sums.iter())) {
                    tables.inbound.set(row, index, *page, *sum);
                    memory.give_back(*page);
                }
                news = Some(FromLink::Update { update, settled, slot: row, with_old: old.is_some() });
            }
            if let Some(message) = news {
                self.publish(now, ring_ns, rng, message);
            }
        }
    }
}
