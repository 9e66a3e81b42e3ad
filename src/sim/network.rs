//! The network between the sites: a path for each pair of them that talk, on it one connection at a time, ordered bytes, and
//! everything that can happen to them.

use std::collections::VecDeque;

use crate::sim::audit::{PRIMARY, SECONDARY, THIRD};
use crate::sim::link::Said;
use crate::sim::plan::Plan;
use crate::sim::world::{Event, World};

const MS: u64 = 1_000_000;

/// What one datagram carries.
const DATAGRAM_BYTES: usize = 1_400;

const MILLION: u64 = 1_000_000;

/// The path between the two sites that are in lockstep.
pub const PAIR: usize = 0;

/// One end of a path; side 0 dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub path: usize,
    pub side: usize,
}

impl End {
    pub fn other(self) -> End {
        End { side: 1 - self.side, ..self }
    }
}

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

/// What lies between two sites.
struct Path {
    delay_ns: u64,
    /// Datagrams that are lost, of a million: what they carry comes a round trip later.
    lost_ppm: u64,
    /// The site at each end, and which of its legs this is.
    ends: [(usize, usize); 2],
    connection: Option<Connection>,
    connections: u64,
    /// Nothing arrives before this.
    partitioned_until: u64,
    gray_ns: u64,
    gray_until: u64,
    /// The next bytes to this side have a flipped bit.
    garble: [bool; 2],
    dialing: bool,
}

impl Path {
    fn current(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("the caller looked")
    }

    fn doom(&mut self) {
        self.connection.iter_mut().for_each(|connection| connection.doomed = true);
    }
}

pub struct Network {
    notice_ns: u64,
    paths: Vec<Path>,
}

/// The sites at both ends of each path, those that dial first.
fn sites_of_paths(plan: &Plan) -> impl Iterator<Item = [usize; 2]> + use<> {
    // A third dials both of the others; its legs are in the order of its sources.
    let sources = plan.configs.get(THIRD).into_iter().flat_map(|third| third.sources.clone());
    let of_third = sources.map(|source| [THIRD, usize::from(source.site.0) - 1]);
    std::iter::once([PRIMARY, SECONDARY]).chain(of_third.collect::<Vec<_>>())
}

/// The ends of paths at a site, in the order of its legs.
pub fn ends_of(plan: &Plan, site: usize) -> impl Iterator<Item = End> + use<> {
    let paths = sites_of_paths(plan).enumerate();
    paths.filter_map(move |(path, sites)| {
        sites.iter().position(|at| *at == site).map(|side| End { path, side })
    })
}

/// The path between two sites.
pub fn path_between(plan: &Plan, one: usize, other: usize) -> usize {
    let joins = |sites: [usize; 2]| sites.contains(&one) && sites.contains(&other);
    sites_of_paths(plan).position(joins).expect("each two sites have a path")
}

impl Network {
    pub fn new(plan: &Plan) -> Network {
        let leg = |site: usize, path: usize| {
            ends_of(plan, site).position(|end| end.path == path).expect("it is an end of this path")
        };
        let path = |(path, sites): (usize, [usize; 2])| Path {
            delay_ns: if path == PAIR { plan.network_ns } else { plan.way_of_third_ns() },
            lost_ppm: if path == PAIR { 0 } else { plan.lost_to_third_ppm() },
            ends: sites.map(|site| (site, leg(site, path))),
            connection: None,
            connections: 0,
            partitioned_until: 0,
            gray_ns: 0,
            gray_until: 0,
            garble: [false; 2],
            dialing: true,
        };
        Network { notice_ns: plan.notice_ns, paths: sites_of_paths(plan).enumerate().map(path).collect() }
    }

    pub fn paths(&self) -> usize {
        self.paths.len()
    }

    pub fn garble(&mut self, end: End) {
        self.paths[end.path].garble[end.side] = true;
    }

    pub fn gray(&mut self, path: usize, delay_ns: u64, until: u64) {
        (self.paths[path].gray_ns, self.paths[path].gray_until) = (delay_ns, until);
    }

    /// Faults of the path are over.
    pub fn calm(&mut self, path: usize) {
        self.paths[path].gray_until = 0;
        self.paths[path].garble = [false; 2];
    }

    /// Whether nothing that a fault did to the path is still to be felt.
    pub fn is_whole(&self, path: usize, now: u64) -> bool {
        let path = &self.paths[path];
        now >= path.partitioned_until
            && path.connection.as_ref().is_some_and(|connection| {
                !connection.doomed && connection.arrives.iter().all(|at| *at <= now + 10 * path.delay_ns)
            })
    }

    /// Whether both ends of the path are there, and nothing is between them.
    pub fn has_both(&self, path: usize, now: u64, is_there: impl Fn(usize) -> bool) -> bool {
        self.paths[path].ends.iter().all(|(site, _)| is_there(*site)) && !self.is_partitioned(path, now)
    }

    pub fn is_partitioned(&self, path: usize, now: u64) -> bool {
        now < self.paths[path].partitioned_until
    }

    fn is_current(&self, path: usize, number: u64) -> bool {
        self.paths[path].connection.as_ref().is_some_and(|connection| connection.number == number)
    }
}

impl World {
    /// The connection that the site at this end knows of.
    fn connection_at(&self, end: End) -> Option<u64> {
        let (site, leg) = self.network.paths[end.path].ends[end.side];
        self.sites[site].legs[leg].link.connection()
    }

    /// The dialling side dials whenever it has no connection; both ends of a new one get to know of it in any order.
    pub(super) fn dial(&mut self, path: usize) {
        self.network.paths[path].dialing = false;
        let sides = [0, 1].map(|side| End { path, side });
        if self.connection_at(sides[0]).is_some() {
            return;
        }
        let alive = self.network.paths[path].ends.iter().all(|(site, _)| self.alive(*site));
        if !alive || self.now < self.network.paths[path].partitioned_until {
            return self.dial_later(path);
        }
        let delay = self.network.paths[path].delay_ns;
        let ready = [0, 1].map(|_| self.now + 2 * delay + self.rng.latency(2 * delay));
        let at = &mut self.network.paths[path];
        at.connections += 1;
        let number = at.connections;
        let never = u64::MAX;
        at.connection = Some(Connection {
            number,
            ready,
            arrives: ready,
            cut: [never; 2],
            pieces: Default::default(),
            doomed: false,
        });
        for end in sides {
            self.schedule(ready[end.side], Event::Established { end, connection: number });
        }
        // If an end dies before it knows, somebody must dial again.
        self.dial_later(path);
    }

    pub(super) fn dial_later(&mut self, path: usize) {
        if self.may_be_dialled(path) && !std::mem::replace(&mut self.network.paths[path].dialing, true) {
            // Not before what was dialled may be there.
            let typical = (4 * MS).max(16 * self.network.paths[path].delay_ns);
            let at = self.now + self.rng.latency(typical);
            self.schedule(at, Event::Dial { path });
        }
    }

    pub(super) fn established(&mut self, end: End, connection: u64) {
        if !self.network.is_current(end.path, connection) {
            return;
        }
        let (site, leg) = self.network.paths[end.path].ends[end.side];
        if !self.alive(site) {
            return self.abandon(end, connection);
        }
        self.sites[site].legs[leg].link.connected(connection);
        self.wake_link(site, leg, self.now);
    }

    pub(super) fn transmit(&mut self, from: End, said: Said) {
        let (path, to) = (from.path, from.other());
        let Said { connection: number, bytes, close } = said;
        if !self.network.is_current(path, number) {
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
                let at = self.arrival(to, piece.len());
                self.network.paths[path].current().pieces[to.side].push_back(piece);
                self.schedule(at, Event::Arrive { end: to, connection: number });
            }
        }
        if close {
            let at = self.arrival(to, 0);
            self.schedule(at, Event::Lost { end: to, connection: number });
            self.network.paths[path].doom();
            self.after_loss(from);
        }
    }

    fn arrival(&mut self, to: End, bytes: usize) -> u64 {
        let path = &mut self.network.paths[to.path];
        let gray = if self.now < path.gray_until { path.gray_ns } else { 0 };
        // The pair's own path has no jitter then: a heartbeat that is sent otherwise would move what is behind it.
        let even = self.far.is_some() && to.path == PAIR;
        let way = if even { path.delay_ns } else { self.rng.latency(path.delay_ns) };
        let mut at = self.now + way + gray;
        let datagrams = bytes.div_ceil(DATAGRAM_BYTES) as u64;
        if path.lost_ppm > 0 && self.rng.below(MILLION) < path.lost_ppm * datagrams {
            at += 2 * path.delay_ns;
        }
        let connection = path.current();
        connection.arrives[to.side] = at.max(connection.arrives[to.side]).max(connection.ready[to.side]);
        connection.arrives[to.side]
    }

    pub(super) fn arrive(&mut self, end: End, connection: u64) {
        if !self.network.is_current(end.path, connection) {
            return;
        }
        let path = &mut self.network.paths[end.path];
        if self.now < path.partitioned_until {
            // Sent again once the network is whole.
            let at = path.partitioned_until;
            return self.schedule(at, Event::Arrive { end, connection });
        }
        let (site, leg) = path.ends[end.side];
        let current = path.current();
        let mut bytes = current.pieces[end.side].pop_front().expect("an arrival for each piece");
        let lost = self.now > current.cut[end.side];
        if lost || !self.alive(site) {
            return;
        }
        if std::mem::take(&mut self.network.paths[end.path].garble[end.side]) {
            let bit = self.rng.below(8 * bytes.len() as u64);
            bytes[bit as usize / 8] ^= 1 << (bit % 8);
        }
        self.sites[site].legs[leg].link.arrive(connection, bytes);
        self.wake_link(site, leg, self.now);
    }

    /// A side notices that its connection is over.
    pub(super) fn lost(&mut self, end: End, connection: u64) {
        let (site, leg) = self.network.paths[end.path].ends[end.side];
        if self.alive(site) && self.connection_at(end) == Some(connection) {
            self.sites[site].legs[leg].link.disconnected();
            self.wake_link(site, leg, self.now);
        }
        self.after_loss(end);
    }

    fn after_loss(&mut self, end: End) {
        if end.side == 0 && self.plan.has_peer() {
            self.dial_later(end.path);
        }
    }

    /// One end died: what it sent may still arrive; the other end notices some time.
    pub(super) fn abandon(&mut self, end: End, connection: u64) {
        if self.network.is_current(end.path, connection) {
            let other = end.other();
            let notice = self.now + self.rng.latency(self.network.notice_ns);
            let cut = self.now + if self.rng.once_in(2) { self.rng.below(MS) } else { 0 };
            let current = self.network.paths[end.path].current();
            current.cut[other.side] = current.cut[other.side].min(cut);
            self.schedule(notice, Event::Lost { end: other, connection });
            self.network.paths[end.path].doom();
        }
        self.after_loss(End { side: 0, ..end });
    }

    pub(super) fn break_connection(&mut self, path: usize) {
        let Some(number) = self.network.paths[path].connection.as_ref().map(|connection| connection.number)
        else {
            return;
        };
        for side in 0..2 {
            let cut = self.now + self.rng.below(MS / 4);
            let notice = cut + self.rng.latency(self.network.notice_ns);
            let current = self.network.paths[path].current();
            current.cut[side] = current.cut[side].min(cut);
            self.schedule(notice, Event::Lost { end: End { path, side }, connection: number });
        }
        self.network.paths[path].doom();
    }

    pub(super) fn partition(&mut self, path: usize, ns: u64) {
        let at = &mut self.network.paths[path];
        at.partitioned_until = at.partitioned_until.max(self.now + ns);
        let until = at.partitioned_until;
        let number = at.connection.as_ref().map(|connection| connection.number);
        self.schedule(until, Event::Healed { path });
        // A side whose peer is silent for the idle timeout gives the connection up, each for itself.
        let Some(number) = number else { return };
        for side in 0..2 {
            let idle = 10 * MS + self.rng.latency(20 * self.network.notice_ns);
            if idle < ns {
                self.schedule(self.now + idle, Event::Lost { end: End { path, side }, connection: number });
                self.network.paths[path].doom();
            }
        }
    }

    pub(super) fn end_partition(&mut self, path: usize) {
        self.network.paths[path].partitioned_until = self.now;
        self.healed(path);
    }

    pub(super) fn healed(&mut self, path: usize) {
        // A side that gave up leaves its peer with a dead connection, which the peer notices now.
        let Some((number, ready)) = self.network.paths[path]
            .connection
            .as_ref()
            .map(|connection| (connection.number, connection.ready))
        else {
            return;
        };
        let ends = [0, 1].map(|side| self.connection_at(End { path, side }) == Some(number));
        for side in 0..2 {
            if ends[side] && !ends[1 - side] && self.now >= ready[1 - side] {
                let at = self.now + self.rng.latency(self.network.notice_ns);
                self.schedule(at, Event::Lost { end: End { path, side }, connection: number });
                self.network.paths[path].doom();
            }
        }
        if self.plan.has_peer() {
            self.dial_later(path);
        }
    }
}
