//! The network between the two sites: one connection at a time, ordered bytes, and everything that can happen to them.

use std::collections::VecDeque;

use crate::sim::audit::{PRIMARY, SECONDARY};
use crate::sim::link::Said;
use crate::sim::world::{Event, World};

const MS: u64 = 1_000_000;

/// A connection as the network sees it.
struct Connection {
    number: u64,
    /// When each side has its end; bytes wait for it.
    ready: [u64; 2],
    /// When the last bytes to each side arrive.
    arrives: [u64; 2],
    /// Bytes to each side that would arrive later than this are lost.
    cut: [u64; 2],
    /// Pieces under way to each side; an `Arrive` takes the first.
    pieces: [VecDeque<Vec<u8>>; 2],
    /// A side is going to notice that it is over.
    doomed: bool,
}

pub struct Network {
    delay_ns: u64,
    notice_ns: u64,
    connection: Option<Connection>,
    connections: u64,
    /// Nothing arrives before this.
    partitioned_until: u64,
    gray_ns: u64,
    gray_until: u64,
    /// The next bytes to this site have a flipped bit.
    garble: [bool; 2],
    dialing: bool,
}

impl Network {
    pub fn new(delay_ns: u64, notice_ns: u64) -> Network {
        Network {
            delay_ns,
            notice_ns,
            connection: None,
            connections: 0,
            partitioned_until: 0,
            gray_ns: 0,
            gray_until: 0,
            garble: [false; 2],
            dialing: true,
        }
    }

    pub fn garble(&mut self, site: usize) {
        self.garble[site] = true;
    }

    pub fn gray(&mut self, delay_ns: u64, until: u64) {
        self.gray_ns = delay_ns;
        self.gray_until = until;
    }

    /// Faults are over.
    pub fn calm(&mut self) {
        self.gray_until = 0;
        self.garble = [false; 2];
    }

    /// Whether nothing that a fault did is still to be felt.
    pub fn is_whole(&self, now: u64) -> bool {
        now >= self.partitioned_until
            && self.connection.as_ref().is_some_and(|connection| {
                !connection.doomed && connection.arrives.iter().all(|at| *at <= now + 10 * self.delay_ns)
            })
    }

    pub fn is_partitioned(&self, now: u64) -> bool {
        now < self.partitioned_until
    }

    fn doom(&mut self) {
        self.connection.iter_mut().for_each(|connection| connection.doomed = true);
    }
}

impl World {
    /// The primary dials whenever it has no connection; both ends of a new one get to know of it in any order.
    pub(super) fn dial(&mut self) {
        self.network.dialing = false;
        if self.sites[PRIMARY].link.connection().is_some() {
            return;
        }
        if !self.alive(PRIMARY) || !self.alive(SECONDARY) || self.now < self.network.partitioned_until {
            return self.dial_later();
        }
        self.network.connections += 1;
        let number = self.network.connections;
        let delay = self.network.delay_ns;
        let ready = [0, 1].map(|_| self.now + 2 * delay + self.rng.latency(2 * delay));
        let never = u64::MAX;
        self.network.connection = Some(Connection {
            number,
            ready,
            arrives: ready,
            cut: [never; 2],
            pieces: Default::default(),
            doomed: false,
        });
        for site in [PRIMARY, SECONDARY] {
            self.schedule(ready[site], Event::Established { site, connection: number });
        }
        // If an end dies before it knows, somebody must dial again.
        self.dial_later();
    }

    fn dial_later(&mut self) {
        if !self.network.dialing {
            self.network.dialing = true;
            let at = self.now + self.rng.latency(4 * MS);
            self.schedule(at, Event::Dial);
        }
    }

    fn is_current(&self, number: u64) -> bool {
        self.network.connection.as_ref().is_some_and(|connection| connection.number == number)
    }

    pub(super) fn established(&mut self, site: usize, connection: u64) {
        if !self.is_current(connection) {
            return;
        }
        if !self.alive(site) {
            return self.abandon(site, connection);
        }
        self.sites[site].link.connected(connection);
        self.wake_link(site, self.now);
    }

    pub(super) fn transmit(&mut self, from: usize, said: Said) {
        let to = 1 - from;
        let Said { connection: number, bytes, close } = said;
        if !self.is_current(number) {
            return;
        }
        // Pieces of any size, in order.
        let pieces = if self.rng.once_in(8) && bytes.len() > 1 { self.rng.between(2, 4) as usize } else { 1 };
        let mut rest = bytes;
        for piece in 0..pieces {
            let tail = if piece + 1 < pieces && rest.len() > 1 {
                rest.split_off(self.rng.between(1, rest.len() as u64 - 1) as usize)
            } else {
                Vec::new()
            };
            let piece = std::mem::replace(&mut rest, tail);
            if !piece.is_empty() {
                let at = self.arrival(to);
                let connection = self.network.connection.as_mut().expect("it is current");
                connection.pieces[to].push_back(piece);
                self.schedule(at, Event::Arrive { site: to, connection: number });
            }
        }
        if close {
            let at = self.arrival(to);
            self.schedule(at, Event::Lost { site: to, connection: number });
            self.network.doom();
            self.after_loss(from);
        }
    }

    fn arrival(&mut self, to: usize) -> u64 {
        let gray = if self.now < self.network.gray_until { self.network.gray_ns } else { 0 };
        let at = self.now + self.rng.latency(self.network.delay_ns) + gray;
        let connection = self.network.connection.as_mut().expect("the caller looked");
        connection.arrives[to] = at.max(connection.arrives[to]).max(connection.ready[to]);
        connection.arrives[to]
    }

    pub(super) fn arrive(&mut self, site: usize, connection: u64) {
        if !self.is_current(connection) {
            return;
        }
        if self.now < self.network.partitioned_until {
            // Sent again once the network is whole.
            return self.schedule(self.network.partitioned_until, Event::Arrive { site, connection });
        }
        let current = self.network.connection.as_mut().expect("it is current");
        let mut bytes = current.pieces[site].pop_front().expect("an arrival for each piece");
        if !self.alive(site)
            || self.now > self.network.connection.as_ref().map_or(0, |current| current.cut[site])
        {
            return;
        }
        if std::mem::take(&mut self.network.garble[site]) {
            let bit = self.rng.below(8 * bytes.len() as u64);
            bytes[bit as usize / 8] ^= 1 << (bit % 8);
        }
        self.sites[site].link.arrive(connection, bytes);
        self.wake_link(site, self.now);
    }

    /// A side notices that its connection is over.
    pub(super) fn lost(&mut self, site: usize, connection: u64) {
        if self.alive(site) && self.sites[site].link.connection() == Some(connection) {
            self.sites[site].link.disconnected();
            self.wake_link(site, self.now);
        }
        if site == PRIMARY {
            self.after_loss(site);
        }
    }

    fn after_loss(&mut self, site: usize) {
        if site == PRIMARY && self.plan.has_peer() {
            self.dial_later();
        }
    }

    /// One end died: what it sent may still arrive; the other end notices some time.
    pub(super) fn abandon(&mut self, site: usize, connection: u64) {
        if self.is_current(connection) {
            let other = 1 - site;
            let notice = self.now + self.rng.latency(self.network.notice_ns);
            let cut = self.now + if self.rng.once_in(2) { self.rng.below(MS) } else { 0 };
            if let Some(current) = &mut self.network.connection {
                current.cut[other] = current.cut[other].min(cut);
            }
            self.schedule(notice, Event::Lost { site: other, connection });
            self.network.doom();
        }
        self.after_loss(PRIMARY);
    }

    pub(super) fn break_connection(&mut self) {
        let Some(number) = self.network.connection.as_ref().map(|connection| connection.number) else {
            return;
        };
        for site in [PRIMARY, SECONDARY] {
            let cut = self.now + self.rng.below(MS / 4);
            let notice = cut + self.rng.latency(self.network.notice_ns);
            if let Some(current) = &mut self.network.connection {
                current.cut[site] = current.cut[site].min(cut);
            }
            self.schedule(notice, Event::Lost { site, connection: number });
            self.network.doom();
        }
    }

    pub(super) fn partition(&mut self, ns: u64) {
        self.network.partitioned_until = self.network.partitioned_until.max(self.now + ns);
        self.schedule(self.network.partitioned_until, Event::Healed);
        // A side whose peer is silent for the idle timeout gives the connection up, each for itself.
        let Some(number) = self.network.connection.as_ref().map(|connection| connection.number) else {
            return;
        };
        for site in [PRIMARY, SECONDARY] {
            let idle = 10 * MS + self.rng.latency(20 * self.network.notice_ns);
            if idle < ns {
                self.schedule(self.now + idle, Event::Lost { site, connection: number });
                self.network.doom();
            }
        }
    }

    pub(super) fn end_partition(&mut self) {
        self.network.partitioned_until = self.now;
        self.healed();
    }

    pub(super) fn healed(&mut self) {
        // A side that gave up leaves its peer with a dead connection, which the peer notices now.
        let Some(number) = self.network.connection.as_ref().map(|connection| connection.number) else {
            return;
        };
        let ends = [0, 1].map(|site: usize| self.sites[site].link.connection() == Some(number));
        for site in [PRIMARY, SECONDARY] {
            if ends[site]
                && !ends[1 - site]
                && self.now >= self.network.connection.as_ref().expect("seen").ready[1 - site]
            {
                let at = self.now + self.rng.latency(self.network.notice_ns);
                self.schedule(at, Event::Lost { site, connection: number });
                self.network.doom();
            }
        }
        if self.plan.has_peer() {
            self.dial_later();
        }
    }
}
