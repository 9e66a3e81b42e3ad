//! One connection at a time between two sites: dialed with backoff by one, accepted by the other, replaced when the peer
//! comes anew. Both directions of one stream are open, and both sites know it, before a connection counts.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use quinn::{ClientConfig, ConnectionError, Endpoint, Incoming, ReadError, RecvStream, SendStream, VarInt};
use quinn::{ServerConfig, TransportConfig, WriteError};
use rustls::pki_types::CertificateDer;

use super::identity::{Fingerprint, Fingerprints, Identity, SERVER_NAME};
use super::keys::{KeysError, KeysInUse, NewKeys};
use super::runtime::Executor;
use super::tls::{Credentials, WrongIdentities, WrongIdentity};
use super::transport::{self, Congestion, PayloadSize, Window};
use super::udp::Socket;
use crate::base::Nanos;

/// The first bytes each way: they tell both sites that both took the other's identity, which TLS tells only the listener.
const GREETING: [u8; 8] = *b"lockstep";

/// Pause before the first redial, doubled by each that fails.
const REDIAL_MIN: Nanos = Nanos::from_millis(100);
const REDIAL_MAX: Nanos = Nanos::from_millis(2_000);

/// A connection that lasted this long, or carried so much, was good: the next redial's pause is the shortest again. One that ends in
/// a refusal carries some hellos; a peer that starts anew to install what it was copied has been sent far more, and hosts write on
/// until it is back.
const GOOD_CONNECTION: Nanos = Nanos::from_millis(5_000);
const GOOD_CONNECTION_BYTES: u64 = 1 << 20;

/// Connections that are shaking hands at once. More are refused: there is one peer.
const ATTEMPTS_MAX: usize = 8;

/// Connections shaking hands from which on a newcomer must first prove that its address is its own (a retry, RFC 9000,
/// section 8.1.2), so that forged datagrams cannot keep the peer out.
const ATTEMPTS_UNPROVEN_MAX: usize = 2;

/// Bytes that quinn may hold for a connection between its first datagram and our turn to accept it.
const INCOMING_BYTES_MAX: u64 = 64 << 10;

/// From the first datagram to the greeting: some round trips, and a lost datagram or two.
const ATTEMPT_DEADLINE: Nanos = Nanos::from_millis(3_000);

/// Tasks kept free for connections that drain after they were closed.
const TASKS_RESERVED: usize = 8;

/// Longest an orderly close waits for the peer's acknowledgement.
const CLOSE_DEADLINE: Nanos = Nanos::from_millis(1_000);

/// Codes of a closed connection, for traces of the peer's.
const CODE_CLOSED: VarInt = VarInt::from_u32(0);
const CODE_REPLACED: VarInt = VarInt::from_u32(1);
const CODE_GREETING: VarInt = VarInt::from_u32(2);
const CODE_PROTOCOL: VarInt = VarInt::from_u32(3);
/// The listener has a new identity, and is to be dialed again at once.
const CODE_RENEWED: VarInt = VarInt::from_u32(4);

/// What a link is told at start.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// UDP address of this site; both the listener's and the one the dialer sends from.
    pub local: SocketAddr,
    /// The peer's address, at the site that dials.
    pub dial: Option<SocketAddr>,
    pub identity: Identity,
    pub peer: Fingerprints,
    pub payload: PayloadSize,
    pub congestion: Congestion,
    /// Bytes in flight each way, at most: at least the path's bandwidth times its round trip.
    pub window_bytes: u32,
}

/// Why a link could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot use {address} for the link: {source}; set an address and port of this host that is free")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("the link's identity {identity} is unusable: {source}; make one with `lockstep keygen`")]
    Identity { identity: Fingerprint, source: rustls::Error },
}

/// Why there is no connection, or no longer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("{peer} was refused: {wrong}")]
    WrongPeer { peer: SocketAddr, wrong: Box<WrongIdentity> },
    #[error("{peer} refuses this site's identity {identity}; configure it at the peer")]
    RefusedByPeer { peer: SocketAddr, identity: Fingerprint },
    #[error(
        "{peer} refuses this site's new identity {identity}, so {kept} stays in use; configure the new one at the peer, too, then \
         give `lockstep keys reload` here again"
    )]
    NewIdentityRefused { peer: SocketAddr, identity: Fingerprint, kept: Fingerprint },
    #[error("the connection to {peer} was closed, since its identity {presented} is not accepted any more")]
    NoLongerAccepted { peer: SocketAddr, presented: Fingerprint },
    #[error("the connection to {peer} was closed to show it this site's new identity")]
    Renewed { peer: SocketAddr },
    #[error("the connection to {peer} was closed by it to show its new identity")]
    RenewedByPeer { peer: SocketAddr },
    #[error("{peer} speaks another protocol version; run the same version of lockstep on both sites")]
    Version { peer: SocketAddr },
    #[error(
        "{peer} did not answer within {} s; check that it runs, that this is its address, and that the path takes the \
         configured datagram size",
        ATTEMPT_DEADLINE.0 / 1_000_000_000
    )]
    Silent { peer: SocketAddr },
    #[error("the connection to {peer} was lost: {reason}")]
    Lost { peer: SocketAddr, reason: String },
    #[error("the connection to {peer} was closed by it")]
    ClosedByPeer { peer: SocketAddr },
    #[error("the connection to {peer} was closed as asked")]
    Closed { peer: SocketAddr },
    #[error("the connection to {peer} was replaced by a newer one")]
    Replaced { peer: SocketAddr },
    #[error("{peer} broke the protocol: {reason}; the connection was closed")]
    Protocol { peer: SocketAddr, reason: String },
}

/// What [`Connector::change`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The connection is up; one before it is gone.
    Up { peer: SocketAddr, replaced: bool },
    /// The connection is gone.
    Down(Problem),
    /// A connection did not come about.
    Failed(Problem),
}

type Opened = Result<(SendStream, RecvStream), ConnectionError>;
type Opening = Pin<Box<dyn Future<Output = Opened> + Send>>;
type Accepting = Pin<Box<dyn Future<Output = Option<Incoming>> + Send>>;

enum Stage {
    Connecting(quinn::Connecting),
    Opening(quinn::Connection, Opening),
    Greeting(quinn::Connection, SendStream, RecvStream, usize),
}

/// A connection that does not count yet.
struct Attempt {
    peer: SocketAddr,
    deadline: Nanos,
    stage: Stage,
}

/// The connection that counts.
struct Current {
    connection: quinn::Connection,
    /// What the peer has shown.
    presented: Fingerprint,
    send: SendStream,
    recv: RecvStream,
    since: Nanos,
    closing: Option<Closing>,
}

/// An orderly close under way: our end of the stream is finished, the peer is to acknowledge all of it.
struct Closing {
    deadline: Nanos,
    /// Once our end is finished.
    acknowledged: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// The connection, and all that brings one about.
pub struct Connector {
    executor: Executor,
    waker: Waker,
    socket: Arc<Socket>,
    endpoint: Endpoint,
    accepting: Option<Accepting>,
    dial: Option<(SocketAddr, ClientConfig)>,
    redial_at: Nanos,
    redial_pause: Nanos,
    attempts: Vec<Attempt>,
    current: Option<Current>,
    /// Whether reading and writing may find something to do: cleared when quinn says no, set when it wakes the link.
    readable: bool,
    writable: bool,
    transport: Arc<TransportConfig>,
    identity: Identity,
    accepted: Fingerprints,
    /// The identity before, as long as the peer has not taken the new one: it is gone back to if the peer refuses that.
    previous: Option<Identity>,
    /// The new one that the peer has refused.
    refused: Option<Fingerprint>,
    wrong: WrongIdentities,
}

impl Connector {
    pub fn new(config: &LinkConfig) -> Result<Connector, LinkError> {
        let executor = Executor::new();
        let bind = |source| LinkError::Bind { address: config.local, source };
        let payload = config.payload.largest();
        let socket = Socket::bind(config.local, payload, executor.shared()).map_err(bind)?;
        let granted = socket.receive_buffer_bytes().map_err(bind)?;
        // The peer may send what the window says while this reactor is busy elsewhere: it has to fit the socket.
        let receive_window = config.window_bytes.min(u32::try_from(granted / 2).unwrap_or(u32::MAX));
        if receive_window < config.window_bytes {
            tracing::warn!(
                granted_bytes = granted,
                window_bytes = receive_window,
                "the system limits the link's receive buffer, and so its window; raise net.core.rmem_max or grant CAP_NET_ADMIN"
            );
        }

        let window = Window { send_bytes: config.window_bytes, receive_bytes: receive_window };
        let transport = Arc::new(transport::transport(config.payload, config.congestion, window));
        let unusable = |source| LinkError::Identity { identity: config.identity.fingerprint(), source };
        let wrong: WrongIdentities = Arc::new(ArrayQueue::new(1));
        let credentials = Credentials::new(&config.identity, config.peer, wrong.clone());
        let dial = match config.dial {
            Some(peer) => Some((peer, dials_with(&credentials, &transport).map_err(unusable)?)),
            None => None,
        };
        let server = match dial {
            Some(_) => None,
            None => Some(listens_with(&credentials, &transport).map_err(unusable)?),
        };
        let listens = server.is_some();
        let endpoint = Endpoint::new_with_abstract_socket(
            transport::endpoint(config.payload, &config.identity),
            server,
            socket.clone(),
            executor.handle(),
        )
        .map_err(bind)?;
        let waker = executor.link_waker();
        // The first turn looks for incoming connections, and so asks to be woken for the next.
        waker.wake_by_ref();
        Ok(Connector {
            waker,
            executor,
            socket,
            accepting: listens.then(|| accept(&endpoint)),
            endpoint,
            dial,
            redial_at: Nanos(0),
            redial_pause: REDIAL_MIN,
            attempts: Vec::with_capacity(ATTEMPTS_MAX),
            current: None,
            readable: false,
            writable: false,
            transport,
            identity: config.identity.clone(),
            accepted: config.peer,
            previous: None,
            refused: None,
            wrong,
        })
    }

    pub fn keys(&self) -> KeysInUse {
        KeysInUse {
            identity: self.identity.fingerprint(),
            unproven: self.previous.is_some(),
            refused: self.refused,
            accepted: self.accepted,
            presented: self.current.as_ref().map(|current| current.presented),
        }
    }

    /// Shows another identity, or accepts other ones, from here on. A dialer keeps its connection until one with the new identity is up; a
    /// listener has to close it, and is dialed again at once. Either goes back to the identity before if the peer refuses the new one.
    /// Returns why there is no connection any more, if there was one.
    pub fn take_keys(&mut self, now: Nanos, keys: NewKeys) -> Result<Option<Problem>, KeysError> {
        let connected =
            self.current.as_ref().map(|current| (current.connection.remote_address(), current.presented));
        let unaccepted = connected.filter(|(_, presented)| !keys.accepted.contain(presented));
        if let Some((_, presented)) = unaccepted
            && !keys.disconnect
        {
            return Err(KeysError::PeerUses(presented));
        }
        let before = self.identity.clone();
        let identity = keys.identity.fingerprint();
        self.use_keys(keys.identity, keys.accepted)
            .map_err(|error| KeysError::Unusable { identity, reason: error.to_string() })?;
        let renewed = before.fingerprint() != identity;
        if renewed {
            self.refused = None;
            // Not one in between that the peer never took.
            let taken = self.previous.take().unwrap_or(before);
            self.previous = (taken.fingerprint() != identity).then_some(taken);
            self.redial_at = now;
        }
        self.wake();
        if let Some((peer, presented)) = unaccepted {
            self.drop_current(now, CODE_CLOSED);
            return Ok(Some(Problem::NoLongerAccepted { peer, presented }));
        }
        if renewed
            && self.dial.is_none()
            && let Some((peer, _)) = connected
        {
            self.drop_current(now, CODE_RENEWED);
            return Ok(Some(Problem::Renewed { peer }));
        }
        Ok(None)
    }

    /// Errs, and changes nothing, if the key does not fit its certificate.
    fn use_keys(&mut self, identity: Identity, accepted: Fingerprints) -> Result<(), rustls::Error> {
        let credentials = Credentials::new(&identity, accepted, self.wrong.clone());
        match &mut self.dial {
            Some((_, client)) => *client = dials_with(&credentials, &self.transport)?,
            None => self.endpoint.set_server_config(Some(listens_with(&credentials, &self.transport)?)),
        }
        (self.identity, self.accepted) = (identity, accepted);
        // They began with the keys before.
        self.attempts.clear();
        Ok(())
    }

    /// A new identity that the peer refuses is of no use before the peer is told of it.
    fn go_back_if_refused(&mut self, problem: Problem) -> Problem {
        let Problem::RefusedByPeer { peer, identity } = problem else { return problem };
        let Some(previous) = self.previous.take() else { return problem };
        let kept = previous.fingerprint();
        self.use_keys(previous, self.accepted).expect("an identity that was in use");
        self.refused = Some(identity);
        Problem::NewIdentityRefused { peer, identity, kept }
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Datagrams may have arrived.
    pub fn set_readable(&self) {
        self.socket.set_readable();
    }

    /// Receives, runs quinn's tasks, and dials when it is time. Bounded. Returns whether anything was done.
    pub fn begin(&mut self, now: Nanos) -> bool {
        self.executor.set_now(now);
        if self.socket.begin_turn() {
            self.socket.set_readable();
        }
        let worked = self.executor.drain();
        self.dial(now) || worked
    }

    /// What has become of connections, one thing a call.
    pub fn change(&mut self, now: Nanos) -> Option<Change> {
        if !self.executor.take_link_wake() && !self.due(now) {
            return None;
        }
        self.readable = true;
        self.writable = true;
        self.accept(now);
        let change = self.advance(now);
        if change.is_some() {
            // There may be more than one.
            self.wake();
        }
        change
    }

    /// There is something to do next turn.
    pub fn wake(&self) {
        self.waker.wake_by_ref();
    }

    /// Sends what the turn has written. Bounded. Returns whether anything was done.
    pub fn end(&mut self, now: Nanos) -> bool {
        self.executor.set_now(now);
        self.executor.drain()
    }

    /// Whether `begin` or `change` would find work.
    pub fn ready(&self) -> bool {
        self.executor.ready() || self.socket.turn_is_over()
    }

    pub fn deadline(&self) -> Option<Nanos> {
        let redial = (self.dial.is_some() && self.may_dial()).then_some(self.redial_at);
        let attempts = self.attempts.iter().map(|attempt| attempt.deadline);
        let closing = self.current.iter().filter_map(|current| Some(current.closing.as_ref()?.deadline));
        attempts.chain(closing).chain(redial).chain(self.executor.next_deadline()).min()
    }

    /// Writes what the connection takes of `chunks`, emptying them from the front. It takes nothing while the peer does
    /// not keep up or there is no connection.
    pub fn write(&mut self, chunks: &mut [Bytes]) {
        let Some(current) = self.current.as_mut().filter(|_| self.writable) else { return };
        let mut context = Context::from_waker(&self.waker);
        let mut taken = 0;
        while taken < chunks.len() {
            let polled = pin!(current.send.write_chunks(&mut chunks[taken..])).poll(&mut context);
            match polled {
                Poll::Ready(Ok(written)) => taken += written.chunks,
                Poll::Pending => {
                    self.writable = false;
                    return;
                }
                // The next read finds a stream that fails, with the reason.
                Poll::Ready(Err(
                    WriteError::ConnectionLost(_)
                    | WriteError::Stopped(_)
                    | WriteError::ClosedStream
                    | WriteError::ZeroRttRejected,
                )) => return,
            }
        }
    }

    /// Reads what arrived into `chunks`, in order. Returns how many were filled, zero when nothing is there, or why there
    /// will be nothing more (then the connection is gone).
    pub fn read(&mut self, now: Nanos, chunks: &mut [Bytes]) -> Result<usize, Problem> {
        let Some(current) = self.current.as_mut().filter(|_| self.readable) else { return Ok(0) };
        let mut context = Context::from_waker(&self.waker);
        let peer = current.connection.remote_address();
        let polled = pin!(current.recv.read_chunks(chunks)).poll(&mut context);
        let problem = match polled {
            Poll::Pending => {
                self.readable = false;
                return Ok(0);
            }
            Poll::Ready(Ok(Some(count))) => return Ok(count),
            Poll::Ready(Ok(None) | Err(ReadError::Reset(_))) => match current.closing {
                Some(_) => Problem::Closed { peer },
                None => Problem::ClosedByPeer { peer },
            },
            Poll::Ready(Err(ReadError::ConnectionLost(error))) => self.problem(peer, &error),
            Poll::Ready(Err(error)) => Problem::Lost { peer, reason: error.to_string() },
        };
        let was_good = self.drop_current(now, CODE_CLOSED);
        if was_good && matches!(problem, Problem::RenewedByPeer { .. }) {
            self.redial_at = now;
        }
        Err(problem)
    }

    /// Ends the connection because the peer sent what cannot be.
    pub fn refuse(&mut self, now: Nanos, reason: String) -> Option<Problem> {
        let peer = self.current.as_ref()?.connection.remote_address();
        self.drop_current(now, CODE_PROTOCOL);
        Some(Problem::Protocol { peer, reason })
    }

    /// Ends the connection once all that is still to be written was, and the peer has acknowledged it; or in a second.
    pub fn close(&mut self, now: Nanos) {
        let Some(current) = self.current.as_mut().filter(|current| current.closing.is_none()) else { return };
        current.closing = Some(Closing { deadline: now.plus(CLOSE_DEADLINE), acknowledged: None });
        self.wake();
    }

    /// Nothing is left to be written: a close goes on.
    pub fn written(&mut self) {
        let Some(Current { send, closing: Some(closing), .. }) = &mut self.current else { return };
        if closing.acknowledged.is_none() {
            // Fails only if the stream is gone, and then nothing is left to wait for.
            let _ = send.finish();
            let stopped = send.stopped();
            closing.acknowledged = Some(Box::pin(async move { drop(stopped.await) }));
            self.wake();
        }
    }

    /// No new connections from here on.
    pub fn stop(&mut self) {
        self.dial = None;
        self.accepting = None;
        self.attempts.clear();
    }

    pub fn is_up(&self) -> bool {
        self.current.is_some()
    }

    /// Whether there is a connection that is not being closed.
    pub fn is_open(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.closing.is_none())
    }

    pub fn statistics(&self) -> Option<quinn::ConnectionStats> {
        Some(self.current.as_ref()?.connection.stats())
    }

    /// There is no connection, or none with the new identity yet.
    fn may_dial(&self) -> bool {
        let wanted =
            self.current.as_ref().is_none_or(|current| self.previous.is_some() && current.closing.is_none());
        wanted && self.attempts.is_empty()
    }

    /// Whether an attempt or a close has run out of time.
    fn due(&self, now: Nanos) -> bool {
        let closing = self.current.iter().filter_map(|current| Some(current.closing.as_ref()?.deadline));
        self.attempts.iter().map(|attempt| attempt.deadline).chain(closing).any(|deadline| deadline <= now)
    }

    fn room(&self) -> bool {
        self.attempts.len() < ATTEMPTS_MAX && self.executor.room() > TASKS_RESERVED
    }

    fn dial(&mut self, now: Nanos) -> bool {
        if !self.may_dial() || now < self.redial_at || !self.room() {
            return false;
        }
        let Some((peer, config)) = &self.dial else { return false };
        self.redial_at = now.plus(self.redial_pause);
        self.redial_pause = Nanos((self.redial_pause.0 * 2).min(REDIAL_MAX.0));
        match self.endpoint.connect_with(config.clone(), *peer, SERVER_NAME) {
            Ok(connecting) => {
                self.start(*peer, connecting, now);
                true
            }
            Err(error) => {
                tracing::warn!(%peer, %error, "cannot dial the peer");
                false
            }
        }
    }

    fn start(&mut self, peer: SocketAddr, connecting: quinn::Connecting, now: Nanos) {
        let deadline = now.plus(ATTEMPT_DEADLINE);
        self.attempts.push(Attempt { peer, deadline, stage: Stage::Connecting(connecting) });
        self.waker.wake_by_ref();
    }

    fn accept(&mut self, now: Nanos) {
        let mut context = Context::from_waker(&self.waker);
        while let Some(Poll::Ready(incoming)) =
            self.accepting.as_mut().map(|accepting| accepting.as_mut().poll(&mut context))
        {
            self.accepting = Some(accept(&self.endpoint));
            let Some(incoming) = incoming else { break };
            let peer = incoming.remote_address();
            if self.attempts.len() >= ATTEMPTS_UNPROVEN_MAX && incoming.may_retry() {
                // Fails only for addresses that were proven, which `may_retry` excludes.
                let _ = incoming.retry();
            } else if !self.room() {
                incoming.refuse();
            } else if let Ok(connecting) = incoming.accept() {
                self.start(peer, connecting, now);
                return;
            }
        }
    }

    /// Moves attempts and an orderly close on until something changes.
    fn advance(&mut self, now: Nanos) -> Option<Change> {
        let mut context = Context::from_waker(&self.waker);
        if let Some(current) = &mut self.current
            && let Some(closing) = &mut current.closing
            && (closing.deadline <= now
                || closing
                    .acknowledged
                    .as_mut()
                    .is_some_and(|acknowledged| acknowledged.as_mut().poll(&mut context).is_ready()))
        {
            let peer = current.connection.remote_address();
            self.drop_current(now, CODE_CLOSED);
            return Some(Change::Down(Problem::Closed { peer }));
        }
        for index in 0..self.attempts.len() {
            let Attempt { peer, deadline, stage } = self.attempts.swap_remove(index);
            let step = match progress(stage, self.dial.is_some(), &mut context) {
                Ok(Step::Wait(_)) if deadline <= now => Err(Problem::Silent { peer }),
                Err(ConnectionError::TimedOut) => Err(Problem::Silent { peer }),
                Ok(step) => Ok(step),
                Err(error) => Err(self.problem(peer, &error)),
            };
            match step {
                Ok(Step::Wait(stage)) => {
                    self.attempts.push(Attempt { peer, deadline, stage });
                    let last = self.attempts.len() - 1;
                    self.attempts.swap(index, last);
                }
                Ok(Step::Greeted(connection, send, recv)) => {
                    let Some(presented) = presented_on(&connection) else {
                        connection.close(CODE_PROTOCOL, b"no identity");
                        let reason = "it has shown no identity".to_owned();
                        return Some(Change::Failed(Problem::Protocol { peer, reason }));
                    };
                    let replaced = self.current.is_some();
                    self.drop_current(now, CODE_REPLACED);
                    // The peer has taken the identity that this site shows now.
                    self.previous = None;
                    self.current =
                        Some(Current { connection, presented, send, recv, since: now, closing: None });
                    return Some(Change::Up { peer, replaced });
                }
                Err(problem) => return Some(Change::Failed(self.go_back_if_refused(problem))),
            }
        }
        None
    }

    /// Returns whether there was a good one.
    fn drop_current(&mut self, now: Nanos, code: VarInt) -> bool {
        let Some(current) = self.current.take() else { return false };
        current.connection.close(code, b"");
        let carried = current.connection.stats();
        let good = now.since(current.since) >= GOOD_CONNECTION
            || carried.udp_tx.bytes + carried.udp_rx.bytes >= GOOD_CONNECTION_BYTES;
        if good {
            self.redial_pause = REDIAL_MIN;
        }
        self.redial_at = now.plus(self.redial_pause);
        good
    }

    /// Names what ended a connection or an attempt.
    fn problem(&self, peer: SocketAddr, error: &ConnectionError) -> Problem {
        // RFC 9001, section 4.8: 0x100 and the alert's number (RFC 8446, section 6).
        const ACCESS_DENIED: u64 = 0x100 + 49;
        const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
        if matches!(error, ConnectionError::TransportError(_))
            && let Some(wrong) = self.wrong.pop()
        {
            return Problem::WrongPeer { peer, wrong: Box::new(wrong) };
        }
        let code = match error {
            ConnectionError::TransportError(error) => Some(u64::from(error.code)),
            ConnectionError::ConnectionClosed(close) => Some(u64::from(close.error_code)),
            _ => None,
        };
        match (code, error) {
            (Some(ACCESS_DENIED), _) => {
                Problem::RefusedByPeer { peer, identity: self.identity.fingerprint() }
            }
            (Some(NO_APPLICATION_PROTOCOL), _) | (_, ConnectionError::VersionMismatch) => {
                Problem::Version { peer }
            }
            (_, ConnectionError::ApplicationClosed(close)) if close.error_code == CODE_RENEWED => {
                Problem::RenewedByPeer { peer }
            }
            (_, ConnectionError::ApplicationClosed(_)) => Problem::ClosedByPeer { peer },
            // A peer's text may hold anything.
            _ => Problem::Lost { peer, reason: error.to_string().escape_debug().to_string() },
        }
    }
}

impl AsFd for Connector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn dials_with(
    credentials: &Credentials,
    transport: &Arc<TransportConfig>,
) -> Result<ClientConfig, rustls::Error> {
    let mut client = ClientConfig::new(Arc::new(credentials.client()?));
    client.transport_config(transport.clone());
    Ok(client)
}

fn listens_with(
    credentials: &Credentials,
    transport: &Arc<TransportConfig>,
) -> Result<ServerConfig, rustls::Error> {
    let mut server = ServerConfig::with_crypto(Arc::new(credentials.server()?));
    server
        .transport_config(transport.clone())
        .max_incoming(ATTEMPTS_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX * ATTEMPTS_MAX as u64)
        .migration(false);
    Ok(server)
}

/// The fingerprint of what the peer has shown; TLS has seen to it that there is one.
fn presented_on(connection: &quinn::Connection) -> Option<Fingerprint> {
    let shown = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    shown.first().map(Fingerprint::of)
}

fn accept(endpoint: &Endpoint) -> Accepting {
    let endpoint = endpoint.clone();
    Box::pin(async move { endpoint.accept().await })
}

enum Step {
    Wait(Stage),
    Greeted(quinn::Connection, SendStream, RecvStream),
}

/// Takes an attempt as far as it goes.
fn progress(mut stage: Stage, dials: bool, context: &mut Context<'_>) -> Result<Step, ConnectionError> {
    loop {
        stage = match stage {
            Stage::Connecting(mut connecting) => match Pin::new(&mut connecting).poll(context) {
                Poll::Pending => return Ok(Step::Wait(Stage::Connecting(connecting))),
                Poll::Ready(connection) => {
                    let connection = connection?;
                    let opening = open(connection.clone(), dials);
                    Stage::Opening(connection, opening)
                }
            },
            Stage::Opening(connection, mut opening) => match opening.as_mut().poll(context) {
                Poll::Pending => return Ok(Step::Wait(Stage::Opening(connection, opening))),
                Poll::Ready(opened) => {
                    let (mut send, recv) = opened?;
                    // A new stream takes eight bytes whole; one that failed fails the read below.
                    let _ = pin!(send.write(&GREETING)).poll(context);
                    Stage::Greeting(connection, send, recv, 0)
                }
            },
            Stage::Greeting(connection, send, mut recv, had) => {
                let mut bytes = [0; GREETING.len()];
                match recv.poll_read(context, &mut bytes[had..]) {
                    Poll::Pending => return Ok(Step::Wait(Stage::Greeting(connection, send, recv, had))),
                    Poll::Ready(Ok(count))
                        if count > 0 && bytes[had..had + count] == GREETING[had..had + count] =>
                    {
                        if had + count == GREETING.len() {
                            return Ok(Step::Greeted(connection, send, recv));
                        }
                        Stage::Greeting(connection, send, recv, had + count)
                    }
                    Poll::Ready(Err(ReadError::ConnectionLost(error))) => return Err(error),
                    Poll::Ready(_) => {
                        connection.close(CODE_GREETING, b"not a greeting");
                        return Err(ConnectionError::VersionMismatch);
                    }
                }
            }
        }
    }
}

/// The dialer opens the stream; the listener has it once the dialer's greeting arrives.
fn open(connection: quinn::Connection, dials: bool) -> Opening {
    Box::pin(async move {
        match dials {
            true => connection.open_bi().await,
            false => connection.accept_bi().await,
        }
    })
}
