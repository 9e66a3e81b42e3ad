//! The front: accepts hosts, lets their sessions work, and carries messages between them and the group.
//!
//! Connections that can go on stand in one line. Whoever is at its head goes first; if it lacks a ticket or pages the
//! whole line waits, so that small requests do not take what a large one is waiting for. Handshakes need neither, and do not stand in it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use socket2::{SockRef, TcpKeepalive};

use crate::base::*;
use crate::core::messages::{HostReply, HostRequest};
use crate::core::nbd::{AllocationMap, Catalog, Desk, Export, Farewell, Stall, Station};
use crate::core::outbox::Tables;
use crate::format::snapshot::SnapshotRecord;
use crate::io::arena::ArenaView;
use crate::io::nbd::connection::{Buffers, Connection, Operation};
use crate::io::nbd::listen::{self, ListenError, SocketFile};
use crate::io::ring::{FileId, Ring};
use crate::reactor::{Actor, Completion, Receiver, Sender};

/// Connections by default: a kernel client opens one a core, QEMU one a disk.
pub const CONNECTIONS_DEFAULT: usize = 512;

/// Longest a handshake may take, so that nobody keeps a place by saying nothing.
const HAGGLE_MAX: Nanos = Nanos::from_millis(30_000);

/// How long no connection is accepted after the system had no room for one.
const ACCEPT_PAUSE: Nanos = Nanos::from_millis(100);

/// Longest a stop waits for requests in flight and replies unsent; half of what a site's stop may take.
const STOP_MAX: Nanos = Nanos::from_millis(5_000);

/// A TCP peer that has been silent for this long is asked whether it is still there.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct FrontConfig {
    /// Where the Unix socket is made.
    pub unix: Option<PathBuf>,
    pub tcp: Option<SocketAddr>,
    /// Addresses that others reach are meant, though NBD asks nobody who they are.
    pub tcp_beyond_loopback: bool,
    pub exports: Vec<Export>,
    pub connections_max: usize,
}

/// A front's ends of the rings to its group.
#[derive(Debug)]
pub struct FrontEdges {
    /// As many places as tickets, [`FRONT_TICKETS_MAX`].
    pub to_group: Sender<HostRequest>,
    pub from_group: Receiver<HostReply>,
    /// Open pages that the group grants: [`UPDATE_BLOCKS_MAX`] at least in the end, or the longest piece waits for ever.
    pub pages: Receiver<PageId>,
}

/// See the module.
pub struct NbdFront {
    exports: Vec<Export>,
    snapshots: Vec<SnapshotRecord>,
    /// Volumes that nobody may open.
    held: VolumeSet,
    allocation: Box<dyn AllocationMap + Send>,
    view: ArenaView,
    tables: Arc<Tables>,
    front: usize,
    desk: Desk,
    edges: FrontEdges,
    listeners: Vec<Listener>,
    tcp_address: Option<SocketAddr>,
    /// Goes when the front does, and takes the file along.
    _socket_file: Option<SocketFile>,
    connections: Vec<Option<Connection>>,
    open: usize,
    buffers: Buffers,
    /// Connections that can go on, each once: those that still haggle, and the others.
    haggling: FixedQueue<usize>,
    line: FixedQueue<usize>,
    /// The head of the line, which waits for this many pages and a ticket.
    head: Option<(usize, u32)>,
    /// Connections to which something happened in this turn, each once.
    touched: FixedQueue<usize>,
    /// How long each reply of the last turn had been in its ring.
    reply_waits: FixedQueue<Nanos>,
    haggle_check_at: Option<Nanos>,
    stopping: Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    No,
    Asked {
        until: Nanos,
    },
    /// Nothing new is read; what is in flight is answered and sent.
    Draining {
        until: Nanos,
    },
    /// Nobody is waited for but the group, which has pages of ours.
    Forced,
}

struct Listener {
    /// Until the first turn gives it to the ring.
    fd: Option<OwnedFd>,
    file: Option<FileId>,
    tcp: bool,
    accept_again_at: Option<Nanos>,
}

impl NbdFront {
    /// Opens the listening sockets; they are served from the first turn on. `front` is the index of its table.
    pub fn new(
        config: FrontConfig,
        front: usize,
        tables: Arc<Tables>,
        edges: FrontEdges,
        view: ArenaView,
        allocation: Box<dyn AllocationMap + Send>,
    ) -> Result<NbdFront, ListenError> {
        assert!((1..=usize::from(u16::MAX)).contains(&config.connections_max), "{}", config.connections_max);
        assert!(config.exports.len() <= VOLUMES_MAX, "{} exports", config.exports.len());
        assert!(config.exports.iter().all(|export| export.name.len() <= NAME_BYTES_MAX), "an export's name");
        assert_eq!(edges.to_group.capacity(), FRONT_TICKETS_MAX, "places on the group's ring");
        let listener = |fd, tcp| Listener { fd: Some(fd), file: None, tcp, accept_again_at: None };
        let mut listeners = Vec::new();
        let mut socket_file = None;
        if let Some(path) = &config.unix {
            let unix = listen::unix(path)?;
            socket_file = Some(unix.file);
            listeners.push(listener(unix.fd, false));
        }
        let mut tcp_address = None;
        if let Some(address) = config.tcp {
            let (fd, bound) = listen::tcp(address, config.tcp_beyond_loopback)?;
            tcp_address = Some(bound);
            listeners.push(listener(fd, true));
        }
        Ok(NbdFront {
            exports: config.exports,
            snapshots: Vec::new(),
            held: VolumeSet(0),
            allocation,
            view,
            tables,
            front,
            desk: Desk::new(),
            edges,
            listeners,
            tcp_address,
            _socket_file: socket_file,
            connections: (0..config.connections_max).map(|_| None).collect(),
            open: 0,
            buffers: Buffers::new(config.connections_max),
            haggling: FixedQueue::new(config.connections_max),
            line: FixedQueue::new(config.connections_max),
            head: None,
            touched: FixedQueue::new(config.connections_max),
            reply_waits: FixedQueue::new(TURN_MESSAGES_MAX),
            haggle_check_at: None,
            stopping: Stopping::No,
        })
    }

    /// Ring operations that a front needs at most: an accept a listener, a receive and a send a connection.
    pub fn operations(connections_max: usize) -> u32 {
        2 + 2 * connections_max as u32
    }

    /// Ring files that a front needs at most.
    pub fn files(connections_max: usize) -> u32 {
        2 + connections_max as u32
    }

    /// Where TCP clients connect; the port that the system chose if the configured one was 0.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp_address
    }

    /// The snapshots that clients may ask for from here on; gives the ones before back, for their memory.
    pub fn show_snapshots(&mut self, snapshots: Vec<SnapshotRecord>) -> Vec<SnapshotRecord> {
        std::mem::replace(&mut self.snapshots, snapshots)
    }

    /// From here on nobody gets in who wants one of these volumes itself, rather than a snapshot. Returns how many clients have one, or have left
    /// while their requests are still inside.
    pub fn hold(&mut self, volumes: VolumeSet) -> usize {
        self.held = volumes;
        let exports =
            self.connections.iter().flatten().filter_map(|connection| connection.session.is_inside());
        exports.filter(|export| export.is_one_of(volumes)).count()
    }

    /// Whether clients may only read the volumes from here on. Whoever has one open as it was before is sent away, to come again.
    /// Returns how many are.
    pub fn set_read_only(&mut self, read_only: bool) -> usize {
        let mut changed = VolumeSet(0);
        for export in self.exports.iter_mut().filter(|export| export.read_only != read_only) {
            export.read_only = read_only;
            changed = VolumeSet(changed.0 | 1 << export.volume.0);
        }
        let mut clients = 0;
        for index in 0..self.connections.len() {
            let Some(connection) = &mut self.connections[index] else { continue };
            if connection.session.export().is_some_and(|export| export.is_one_of(changed)) {
                connection.session.leave(Farewell::RoleChanged);
                clients += 1;
                self.touch(index);
            }
        }
        clients
    }

    /// What clients that come from here on see of the volumes; those that are there keep the size that they were told.
    pub fn set_sizes(&mut self, sizes: &VolumeSizes) {
        for export in &mut self.exports {
            export.blocks = sizes.get(export.volume);
        }
    }

    /// How long the replies taken in the last turn had waited in their ring.
    pub fn reply_waits(&self) -> impl Iterator<Item = Nanos> {
        self.reply_waits.iter().copied()
    }

    /// The station of the sessions, and the connections they belong to.
    fn parts(&mut self, now: Nanos) -> (Station<'_, ArenaView>, &mut [Option<Connection>]) {
        let station = Station {
            now,
            catalog: Catalog { volumes: &self.exports, snapshots: &self.snapshots, held: self.held },
            allocation: &*self.allocation,
            memory: &mut self.view,
            table: &self.tables.fronts[self.front],
            desk: &mut self.desk,
        };
        (station, &mut self.connections)
    }

    fn touch(&mut self, index: usize) {
        let connection = self.connections[index].as_mut().expect("only open connections are touched");
        if !connection.touched {
            connection.touched = true;
            self.touched.push(index);
        }
    }

    /// Puts a connection at the end of the line, if it has something to go on with.
    fn enqueue(&mut self, index: usize) {
        let connection = self.connections[index].as_mut().expect("only open connections stand in line");
        if !connection.queued && connection.has_input() {
            connection.queued = true;
            let haggles = connection.session.is_haggling();
            (if haggles { &mut self.haggling } else { &mut self.line }).push(index);
        }
    }

    fn listen(&mut self, ring: &mut Ring) {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if let Some(fd) = listener.fd.take() {
                let file = ring.add_file(fd).expect("a ring is made with room for its listeners");
                listener.file = Some(file);
                ring.accept_multishot(Operation::Accept { listener: index }.token(), file);
            }
        }
    }

    fn stop_listening(&mut self, ring: &mut Ring) {
        for listener in &mut self.listeners {
            listener.fd = None;
            listener.accept_again_at = None;
            if let Some(file) = listener.file.take() {
                ring.remove_file(file);
            }
        }
    }

    fn accepted(&mut self, now: Nanos, ring: &mut Ring, listener: usize, completion: Completion) {
        let fd = ring.take_fd();
        let place = &mut self.listeners[listener];
        let Some(file) = place.file else { return };
        let tcp = place.tcp;
        match fd {
            Some(fd) => self.admit(now, ring, fd, tcp),
            None => tracing::warn!("an NBD connection could not be accepted: error {}", -completion.result),
        }
        if completion.more() {
            return;
        }
        if completion.result < 0 {
            self.listeners[listener].accept_again_at = Some(now.plus(ACCEPT_PAUSE));
        } else {
            ring.accept_multishot(Operation::Accept { listener }.token(), file);
        }
    }

    fn accept_again(&mut self, now: Nanos, ring: &mut Ring) {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if let (Some(at), Some(file)) = (listener.accept_again_at, listener.file)
                && at <= now
            {
                listener.accept_again_at = None;
                ring.accept_multishot(Operation::Accept { listener: index }.token(), file);
            }
        }
    }

    fn admit(&mut self, now: Nanos, ring: &mut Ring, fd: OwnedFd, tcp: bool) {
        let Some(index) = self.connections.iter().position(Option::is_none) else {
            let max = self.connections.len();
            tracing::warn!("an NBD connection was refused: there are {max} already, which is the limit");
            return;
        };
        if tcp {
            let socket = SockRef::from(&fd);
            let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
            let set = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive));
            if let Err(error) = set {
                tracing::debug!("a new NBD connection was gone at once: {error}");
                return;
            }
        }
        let Some(file) = ring.add_file(fd) else {
            tracing::warn!("an NBD connection was refused: the reactor has no room for more files");
            return;
        };
        let haggle_until = now.plus(HAGGLE_MAX);
        self.connections[index] = Some(Connection::new(index, file, &mut self.buffers, haggle_until));
        self.open += 1;
        self.haggle_check_at.get_or_insert(haggle_until);
        tracing::debug!(connection = index, tcp, "an NBD client connected");
        self.touch(index);
        self.enqueue(index);
    }

    fn take_grants(&mut self) -> bool {
        let mut taken = false;
        while self.desk.page_room() > 0
            && let Some(page) = self.edges.pages.pop()
        {
            self.desk.grant(page);
            taken = true;
        }
        taken
    }

    fn take_replies(&mut self, now: Nanos) -> bool {
        let mut taken = false;
        self.reply_waits.clear();
        for _ in 0..TURN_MESSAGES_MAX {
            let Some(reply) = self.edges.from_group.pop() else { break };
            taken = true;
            self.reply_waits.push(now.since(reply.replied_at));
            let index = self.desk.connection_of(reply.ticket);
            let (mut station, connections) = self.parts(now);
            let connection = connections[index].as_mut().expect("a connection outlives its pieces");
            let (session, replies) = connection.answering();
            session.complete(&mut station, reply, replies);
            self.touch(index);
            self.enqueue(index);
        }
        taken
    }

    /// Whether the line moves: its head has what it lacked, or does not want it any more.
    fn head_can_go(&self) -> bool {
        self.head.is_none_or(|(index, pages)| {
            let head = self.connections[index].as_ref().expect("only open connections stand in line");
            self.desk.affords(pages) || head.session.farewell().is_some()
        })
    }

    /// Lets handshakes go on, and everybody in the line once, or until whoever is its head needs what is not there.
    fn serve(&mut self, now: Nanos, ring: &mut Ring) -> bool {
        let mut served = false;
        for _ in 0..self.haggling.len() {
            let Some(index) = self.haggling.pop() else { break };
            served = true;
            // A request right behind its handshake stands in line as any other.
            if self.advance(now, ring, index).is_some() {
                self.enqueue(index);
            }
        }
        if !self.head_can_go() {
            return served;
        }
        for _ in 0..self.line.len() + 1 {
            let head = self.head.take().map(|(index, _)| index);
            let Some(index) = head.or_else(|| self.line.pop()) else { break };
            served = true;
            if let Some(pages) = self.advance(now, ring, index) {
                self.connections[index].as_mut().expect("it was advanced").queued = true;
                self.head = Some((index, pages));
                break;
            }
        }
        served
    }

    /// Lets a connection go on. Returns how many pages it waits for, if that is what it waits for, or for a ticket.
    fn advance(&mut self, now: Nanos, ring: &mut Ring, index: usize) -> Option<u32> {
        let (mut station, connections) = self.parts(now);
        let connection = connections[index].as_mut().expect("only open connections stand in line");
        let stall = connection.advance(&mut station, ring);
        connection.queued = false;
        self.touch(index);
        match stall {
            Stall::Resources { pages } => return Some(pages),
            Stall::Turn => self.enqueue(index),
            Stall::Input | Stall::Room | Stall::Completion | Stall::Leaving(_) => {}
        }
        None
    }

    /// Sends what was replied in this turn, and ends connections that are over.
    fn finish_touched(&mut self, ring: &mut Ring) {
        while let Some(index) = self.touched.pop() {
            let connection = self.connections[index].as_mut().expect("only open connections are touched");
            connection.touched = false;
            connection.flush(ring);
            if !connection.queued && connection.close_when_over(ring) {
                self.forget(index);
            }
        }
    }

    fn forget(&mut self, index: usize) {
        let Some(connection) = self.connections[index].take() else { return };
        if let Some(farewell) = connection.session.farewell() {
            tracing::debug!(connection = index, "an NBD connection ended: {farewell}");
        }
        connection.end(&mut self.buffers);
        self.open -= 1;
        if self.open == 0 {
            self.desk.assert_at_rest();
        }
    }

    /// Ends handshakes that took too long.
    fn expire(&mut self, now: Nanos, ring: &mut Ring) {
        if self.haggle_check_at.is_none_or(|at| at > now) {
            return;
        }
        let mut next = None::<Nanos>;
        for index in 0..self.connections.len() {
            let Some(connection) = &mut self.connections[index] else { continue };
            if !connection.session.is_haggling() {
                continue;
            }
            if connection.haggle_until <= now {
                connection.session.leave(Farewell::TooSlow);
                connection.close(ring);
                self.touch(index);
            } else {
                let until = connection.haggle_until;
                next = Some(next.map_or(until, |next| next.min(until)));
            }
        }
        self.haggle_check_at = next;
    }

    fn stop_turn(&mut self, now: Nanos, ring: &mut Ring) {
        let due = match self.stopping {
            Stopping::No | Stopping::Forced => return,
            Stopping::Asked { until } => {
                self.stop_listening(ring);
                self.stopping = Stopping::Draining { until };
                false
            }
            Stopping::Draining { until } if until <= now => {
                self.stopping = Stopping::Forced;
                true
            }
            Stopping::Draining { .. } => return,
        };
        for index in 0..self.connections.len() {
            let Some(connection) = &mut self.connections[index] else { continue };
            connection.session.leave(Farewell::Stopping);
            if due {
                connection.close(ring);
            }
            self.touch(index);
        }
    }

    fn submit(&mut self) {
        while let Some(request) = self.desk.outgoing() {
            self.edges.to_group.push(request);
        }
    }
}

impl Actor<Ring> for NbdFront {
    fn name(&self) -> &'static str {
        "nbd"
    }

    fn turn(&mut self, now: Nanos, ring: &mut Ring) -> bool {
        self.listen(ring);
        self.accept_again(now, ring);
        self.expire(now, ring);
        self.stop_turn(now, ring);
        let mut worked = self.take_grants();
        worked |= self.take_replies(now);
        worked |= self.serve(now, ring);
        self.submit();
        worked |= !self.touched.is_empty();
        self.finish_touched(ring);
        worked
    }

    fn complete(&mut self, now: Nanos, ring: &mut Ring, completion: Completion) {
        let buffer = ring.take_buffer();
        let index = match Operation::of_token(completion.token) {
            Operation::Accept { listener } => return self.accepted(now, ring, listener, completion),
            Operation::Receive { connection } | Operation::Send { connection } => connection,
        };
        let buffer = buffer.expect("sends and receives bring their buffer back");
        let connection = self.connections[index].as_mut().expect("a connection outlives its operations");
        match Operation::of_token(completion.token) {
            Operation::Receive { .. } => connection.received(completion.result, buffer),
            _ => connection.sent(ring, completion.result, buffer),
        }
        self.touch(index);
        self.enqueue(index);
    }

    fn ready(&self) -> bool {
        let granted = !self.edges.pages.is_empty() && self.desk.page_room() > 0;
        let line = (self.head.is_some() || !self.line.is_empty()) && self.head_can_go();
        let haggles = !self.haggling.is_empty();
        granted || line || haggles || !self.edges.from_group.is_empty() || !self.touched.is_empty()
    }

    fn deadline(&self) -> Option<Nanos> {
        let accepts = self.listeners.iter().filter_map(|listener| listener.accept_again_at);
        let stop = match self.stopping {
            Stopping::Asked { until } | Stopping::Draining { until } => Some(until),
            Stopping::No | Stopping::Forced => None,
        };
        accepts.chain(self.haggle_check_at).chain(stop).min()
    }

    fn stop(&mut self, now: Nanos) {
        self.stopping = Stopping::Asked { until: now.plus(STOP_MAX) };
    }

    fn stopped(&self) -> bool {
        matches!(self.stopping, Stopping::Draining { .. } | Stopping::Forced) && self.open == 0
    }
}
