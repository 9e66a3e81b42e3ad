//! The link: a group's messages to frames on a QUIC stream, and back.

mod actor;
mod incoming;
mod outgoing;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::base::{FixedQueue, LINK_GATHER_MAX, Memory, Nanos, PageId, SlotId, UpdateNumber};
use crate::core::messages::{FromLink, ToLink, UpdateSource};
use crate::core::outbox::Tables;
use crate::io::quic::connection::{Change, Connector, LinkConfig, LinkError, Problem};
use crate::io::quic::keys::{KeysError, KeysInUse, NewKeys};
use crate::io::quic::stats::LinkStats;
use crate::reactor::{Clock, Receiver, Sender};

pub use actor::LinkActor;
use incoming::{Incoming, Next};
use outgoing::Outgoing;

/// Bytes of the stream taken apart in one turn, exceeded by at most one read.
const RECEIVE_BYTES_A_TURN_MAX: usize = 256 << 10;

/// Messages to the group that one turn may leave for lack of room: one for each message popped, the window's `Consumed`,
/// a change of connection, and one that was received.
const REPORTS_MAX: usize = LINK_GATHER_MAX + 8;

/// How long to sleep before the group's ring is tried again: popping from it wakes nobody.
const REPORT_RETRY: Nanos = Nanos::from_micros(100);

/// How often figures are published.
const STATS_INTERVAL: Nanos = Nanos::from_millis(100);

/// Pause between log lines about failed connections: strangers can cause them at will.
const LOG_INTERVAL: Nanos = Nanos::from_millis(1_000);

/// The link's ends of its rings with the group.
pub struct LinkEdges {
    pub from_group: Receiver<ToLink>,
    /// Connections whose end is in `from_group`, by number: behind what a peer that reads nothing does not let through.
    pub closes: Receiver<u32>,
    pub to_group: Sender<FromLink>,
    /// Open pages to receive into.
    pub pages: Receiver<PageId>,
}

/// One group's link to its peer.
pub struct Link<M> {
    connector: Connector,
    edges: LinkEdges,
    memory: M,
    tables: Arc<Tables>,
    /// The link's number, if it is not the peer's.
    remote: Option<usize>,
    clock: Clock,
    /// Connections so far; the current one's number.
    connection: u32,
    /// Whether the group has begun to use the current connection.
    begun: bool,
    /// The connection that the group has had enough of, though it has not been told all.
    closing: Option<u32>,
    outgoing: Outgoing,
    incoming: Incoming,
    copied: Copied,
    /// Messages that the group's ring had no room for, oldest first.
    reports: FixedQueue<FromLink>,
    log: ProblemLog,
    stats: Arc<LinkStats>,
    stats_at: Nanos,
    stopping: bool,
}

impl<M: Memory> Link<M> {
    /// Binds the socket and, at the dialing site, starts to dial with the first turn.
    pub fn new(
        config: &LinkConfig,
        edges: LinkEdges,
        memory: M,
        tables: Arc<Tables>,
        clock: Clock,
    ) -> Result<Link<M>, LinkError> {
        let unpopped = edges.to_group.capacity() + REPORTS_MAX;
        assert!(tables.inbound.slots() > unpopped, "a row would be filled again before it is read");
        Ok(Link {
            connector: Connector::new(config)?,
            edges,
            memory,
            tables,
            remote: None,
            clock,
            connection: 0,
            begun: false,
            closing: None,
            outgoing: Outgoing::new(),
            incoming: Incoming::new(),
            copied: Copied { popped_at: Nanos(0), window: None, catch_up: FixedQueue::new(LINK_GATHER_MAX) },
            reports: FixedQueue::new(REPORTS_MAX),
            log: ProblemLog::default(),
            stats: Arc::new(LinkStats::new()),
            stats_at: Nanos(0),
            stopping: false,
        })
    }

    /// The link of that number beside the peer's.
    pub fn beside(mut self, index: usize) -> Link<M> {
        self.remote = Some(index);
        self
    }

    pub(super) fn remote(&self) -> Option<usize> {
        self.remote
    }

    pub fn stats(&self) -> Arc<LinkStats> {
        self.stats.clone()
    }

    pub fn keys(&self) -> KeysInUse {
        self.connector.keys()
    }

    /// Whether a connection goes on or is made anew: [`Connector::take_keys`]. The group only sees that one has ended.
    pub fn take_keys(&mut self, now: Nanos, keys: NewKeys) -> Result<(), KeysError> {
        if let Some(problem) = self.connector.take_keys(now, keys)? {
            self.lost(problem);
        }
        Ok(())
    }

    /// The bound address, its port chosen by the system if the configuration said 0.
    pub fn local_address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.connector.local_address()
    }

    /// Datagrams may have arrived.
    pub fn set_readable(&self) {
        self.connector.set_readable();
    }

    /// Receives, runs QUIC, moves messages both ways, sends. Bounded. Returns whether anything was done.
    pub fn turn(&mut self, now: Nanos) -> bool {
        let mut worked = self.flush_reports();
        worked |= self.connector.begin(now);
        // What changes is told to the group at once, or not yet looked at.
        if self.reports.is_empty()
            && let Some(change) = self.connector.change(now)
        {
            self.change(now, change);
            worked = true;
        }
        worked |= self.receive(now);
        worked |= self.send();
        self.close_blocked(now);
        if self.stopping && self.edges.from_group.is_closed() {
            self.connector.close(now);
            self.write();
        }
        // What was written is stamped with the time at which it is sent, for QUIC's round trips.
        let sending_at = if worked { self.clock.now() } else { now };
        worked |= self.connector.end(sending_at);
        self.report_copied();
        if now >= self.stats_at {
            self.publish(now);
        }
        worked
    }

    /// Whether a turn now would find work.
    pub fn ready(&self) -> bool {
        self.connector.ready()
            || (!self.reports.is_empty() && self.edges.to_group.room() > 0)
            || (self.reports.is_empty() && !self.outgoing.blocked() && !self.edges.from_group.is_empty())
            || !self.edges.closes.is_empty()
            || (self.incoming.wants_page() && !self.edges.pages.is_empty())
            || (self.stopping && self.edges.from_group.is_closed() && self.connector.is_open())
    }

    /// When a turn is due though nothing happens.
    pub fn deadline(&self) -> Option<Nanos> {
        let retry = (!self.reports.is_empty()).then(|| self.clock.now().plus(REPORT_RETRY));
        [self.connector.deadline(), retry].into_iter().flatten().min()
    }

    /// Ends, in an orderly way, once the group has sent its last message and dropped its end of the ring.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.connector.stop();
    }

    pub fn stopped(&self) -> bool {
        self.stopping && self.edges.from_group.is_closed() && !self.connector.is_up()
    }

    fn change(&mut self, now: Nanos, change: Change) {
        match change {
            Change::Up { peer, replaced } => {
                if replaced {
                    self.lost(Problem::Replaced { peer });
                }
                self.connection += 1;
                self.stats.connections.store(self.connection, Relaxed);
                self.stats.connected.store(true, Relaxed);
                tracing::info!(%peer, connection = self.connection, "connected to the peer");
                self.deliver(FromLink::Connected { connection: self.connection });
            }
            Change::Down(problem) => self.lost(problem),
            Change::Failed(problem) => {
                self.log.failed(now, &problem);
                self.stats.set_problem(problem);
            }
        }
    }

    /// The current connection is gone.
    fn lost(&mut self, problem: Problem) {
        self.begun = false;
        self.outgoing.reset();
        self.incoming.reset(self.tables.of_link(self.remote).0);
        self.stats.connected.store(false, Relaxed);
        self.log.lost(&problem);
        self.stats.set_problem(problem);
        self.deliver(FromLink::Disconnected { connection: self.connection });
    }

    /// Takes the stream apart for as long as the group has room for what is in it.
    fn receive(&mut self, now: Nanos) -> bool {
        let (mut worked, mut bytes) = (false, 0);
        while self.reports.is_empty() && bytes < RECEIVE_BYTES_A_TURN_MAX {
            let inbound = self.tables.of_link(self.remote).0;
            let next = self.incoming.next(&mut self.memory, inbound, &mut self.edges.pages);
            match next {
                Ok(Next::Message(message)) => {
                    worked = true;
                    self.deliver(message);
                }
                Ok(Next::Page) => break,
                Ok(Next::Bytes) => match self.connector.read(now, self.incoming.room()) {
                    Ok(0) => break,
                    Ok(chunks) => bytes += self.incoming.received(chunks),
                    Err(problem) => {
                        self.lost(problem);
                        return true;
                    }
                },
                Err(fault) => {
                    if let Some(problem) = self.connector.refuse(now, fault.to_string()) {
                        self.lost(problem);
                    }
                    return true;
                }
            }
        }
        if bytes >= RECEIVE_BYTES_A_TURN_MAX {
            self.connector.wake();
        }
        worked || bytes > 0
    }

    /// Pops messages, gathers their frames, and writes them.
    fn send(&mut self) -> bool {
        let blocked = self.outgoing.blocked();
        if blocked {
            self.write();
        }
        if self.outgoing.blocked() || !self.reports.is_empty() || self.edges.from_group.is_empty() {
            return blocked && !self.outgoing.blocked();
        }
        self.copied.popped_at = self.clock.now();
        for _ in 0..LINK_GATHER_MAX {
            if !self.outgoing.has_room() {
                break;
            }
            let Some(message) = self.edges.from_group.pop() else { break };
            self.gather(message);
        }
        self.write();
        true
    }

    /// Ends a connection that is to end and takes nothing more; what was to be sent before is left out, and given back at once.
    fn close_blocked(&mut self, now: Nanos) {
        while let Some(connection) = self.edges.closes.pop() {
            self.closing = Some(connection);
        }
        if self.begun && self.closing == Some(self.connection) && self.outgoing.blocked() {
            self.begun = false;
            self.outgoing.reset();
            self.connector.close(now);
        }
    }

    fn gather(&mut self, message: ToLink) {
        match message {
            ToLink::Begin { connection } => {
                self.begun = self.connector.is_up() && connection == self.connection;
            }
            ToLink::Update { update, settled, slot, source, with_old } => {
                let table = match source {
                    UpdateSource::Window => &self.tables.window,
                    UpdateSource::CatchUp | UpdateSource::Copy => self.tables.of_link(self.remote).1,
                };
                if self.begun {
                    let old = with_old.then_some(&self.tables.old_blocks);
                    self.outgoing.update(&update, settled, &self.memory, table, SlotId(slot), old);
                }
                match source {
                    UpdateSource::Window => self.copied.window = Some((update.number, slot)),
                    UpdateSource::CatchUp | UpdateSource::Copy => {
                        self.copied.catch_up.push((update.number, slot))
                    }
                }
            }
            ToLink::Control(control) => {
                if self.begun {
                    self.outgoing.control(&control);
                }
            }
            ToLink::Page { frame, page, length } => {
                if self.begun {
                    self.outgoing.page(frame, &self.memory, page, length);
                }
                self.deliver(FromLink::PageReturned { page });
            }
            ToLink::Close => {
                if self.begun {
                    self.begun = false;
                    self.connector.close(self.copied.popped_at);
                }
            }
        }
    }

    fn write(&mut self) {
        let connector = &mut self.connector;
        self.outgoing.write(|pieces| connector.write(pieces));
        if !self.outgoing.blocked() {
            self.connector.written();
        }
    }

    /// Tells the group which pages are copied, and so its own again.
    fn report_copied(&mut self) {
        if self.copied.window.is_none() && self.copied.catch_up.is_empty() {
            return;
        }
        let (popped_at, sent_at) = (self.copied.popped_at, self.clock.now());
        if let Some((number, slot)) = self.copied.window.take() {
            let source = UpdateSource::Window;
            self.deliver(FromLink::Consumed { number, slot, source, popped_at, sent_at });
        }
        while let Some((number, slot)) = self.copied.catch_up.pop() {
            let source = UpdateSource::CatchUp;
            self.deliver(FromLink::Consumed { number, slot, source, popped_at, sent_at });
        }
    }

    /// Sends to the group, behind what had to wait.
    fn deliver(&mut self, message: FromLink) {
        if !self.reports.is_empty() {
            self.reports.push(message);
        } else if let Err(message) = self.edges.to_group.try_push(message)
            && !self.edges.to_group.is_closed()
        {
            self.reports.push(message);
        }
    }

    fn flush_reports(&mut self) -> bool {
        let waiting = self.reports.len();
        if waiting > 0 && self.edges.to_group.is_closed() {
            // The group is gone, and nobody else needs to know.
            self.reports.clear();
        }
        while let Some(message) = self.reports.front() {
            if self.edges.to_group.try_push(*message).is_err() {
                break;
            }
            self.reports.pop();
        }
        self.reports.len() < waiting
    }

    fn publish(&mut self, now: Nanos) {
        self.stats_at = now.plus(STATS_INTERVAL);
        if let Some(statistics) = self.connector.statistics() {
            self.stats.update(&statistics);
        }
    }
}

impl<M> AsFd for Link<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connector.as_fd()
    }
}

/// Updates whose pages were copied this turn.
struct Copied {
    popped_at: Nanos,
    /// The last of the window's.
    window: Option<(UpdateNumber, u32)>,
    catch_up: FixedQueue<(UpdateNumber, u32)>,
}

/// Says what goes wrong, but not at the rate at which it does.
#[derive(Default)]
struct ProblemLog {
    last: Option<Problem>,
    quiet_until: Nanos,
    unsaid: u64,
}

impl ProblemLog {
    /// A connection did not come about. The same reason as before is said once.
    fn failed(&mut self, now: Nanos, problem: &Problem) {
        if now < self.quiet_until || self.last.as_ref() == Some(problem) {
            self.unsaid += 1;
            return;
        }
        self.quiet_until = now.plus(LOG_INTERVAL);
        match problem {
            // A dialer tried it beside the connection that it has.
            Problem::NewIdentityRefused { .. } => tracing::warn!(unsaid = self.unsaid, "{problem}"),
            _ => tracing::warn!(unsaid = self.unsaid, "no connection: {problem}"),
        }
        self.unsaid = 0;
        self.last = Some(problem.clone());
    }

    fn lost(&mut self, problem: &Problem) {
        match problem {
            Problem::Closed { .. }
            | Problem::ClosedByPeer { .. }
            | Problem::Renewed { .. }
            | Problem::RenewedByPeer { .. } => tracing::info!("{problem}"),
            _ => tracing::warn!("{problem}"),
        }
        self.last = None;
    }
}
