//! An NBD client for the load generator and the tests: pipelined, on one thread, over a blocking or a polled socket.
//!
//! Requests are submitted with [`NbdClient::submit`] and come back, in any order, from [`NbdClient::poll`]. Sending and
//! receiving go on side by side, so neither end can wait for the other.

mod handshake;
mod stream;
mod uri;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::format::nbd::*;
use crate::io::ring::OwnedBuf;
use stream::Stream;

pub use uri::{NbdAddress, NbdUri, UriError};

/// Received bytes that are looked at together.
const RECEIVE_BYTES: usize = 256 << 10;

/// How long the server may take for each step of the handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{uri} cannot be connected to: {source}")]
    Connect { uri: String, source: std::io::Error },
    #[error("the connection to the NBD server failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("the NBD server closed the connection with {0} requests unanswered")]
    Closed(usize),
    #[error("the NBD server broke the protocol: {0}")]
    Malformed(#[from] Malformed),
    #[error("the NBD server broke the protocol: {0}")]
    Unexpected(&'static str),
    #[error("the NBD server refused the export {export:?}: {message}")]
    Refused { export: String, message: String },
    #[error("the NBD server has no metadata context {0} for this export")]
    NoContext(String),
    #[error("the NBD server did not answer within {0:?}")]
    Timeout(Duration),
    #[error("{operation} failed: {error}{}{message}", if message.is_empty() { "" } else { ": " })]
    Failed { operation: &'static str, error: NbdError, message: String },
}

/// What to negotiate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    pub structured_replies: bool,
    /// Select `base:allocation`; needs structured replies.
    pub allocation: bool,
    /// Ask for the block sizes, and so promise to keep to them.
    pub block_sizes: bool,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions { structured_replies: true, allocation: false, block_sizes: true }
    }
}

/// A request. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    Read { offset: u64, length: u32 },
    Write { offset: u64, data: &'a [u8], fua: bool },
    Trim { offset: u64, length: u32, fua: bool },
    WriteZeroes { offset: u64, length: u32, fua: bool, no_hole: bool, fast: bool },
    Cache { offset: u64, length: u32 },
    BlockStatus { offset: u64, length: u32, one: bool },
    Flush,
}

impl Operation<'_> {
    fn request(&self, cookie: Cookie) -> Request {
        use command_flag::*;
        let when = |condition: bool, flag: u16| if condition { flag } else { 0 };
        let (command, flags, offset, length) = match *self {
            Operation::Read { offset, length } => (command::READ, 0, offset, length),
            Operation::Write { offset, data, fua } => {
                let length = u32::try_from(data.len()).expect("a request is at most 32 MiB");
                (command::WRITE, when(fua, FUA), offset, length)
            }
            Operation::Trim { offset, length, fua } => (command::TRIM, when(fua, FUA), offset, length),
            Operation::WriteZeroes { offset, length, fua, no_hole, fast } => {
                let flags = when(fua, FUA) | when(no_hole, NO_HOLE) | when(fast, FAST_ZERO);
                (command::WRITE_ZEROES, flags, offset, length)
            }
            Operation::Cache { offset, length } => (command::CACHE, 0, offset, length),
            Operation::BlockStatus { offset, length, one } => {
                (command::BLOCK_STATUS, when(one, REQ_ONE), offset, length)
            }
            Operation::Flush => (command::FLUSH, 0, 0, 0),
        };
        Request { flags, command, cookie, offset, length }
    }
}

/// A request that was answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Completed {
    pub cookie: Cookie,
    /// The error, and what the server says about it if it does.
    pub result: Result<(), (NbdError, String)>,
    /// What a successful read returned. Give it back by [`NbdClient::recycle`] if many are to come.
    pub data: Vec<u8>,
    /// What a block status returned: lengths and flags, from the request's offset on.
    pub extents: Vec<(u32, u32)>,
}

#[derive(Debug)]
struct Pending {
    cookie: Cookie,
    request: Request,
    data: Vec<u8>,
    /// Bytes of data that have come.
    received: usize,
    extents: Vec<(u32, u32)>,
    error: Option<(NbdError, String)>,
}

/// Where received data goes.
#[derive(Clone, Copy, Debug)]
struct Filling {
    slot: usize,
    at: usize,
    left: usize,
    /// The request is complete with it.
    last: bool,
}

/// A connection in the transmission phase.
#[derive(Debug)]
pub struct NbdClient {
    stream: Stream,
    options: ClientOptions,
    size: u64,
    flags: u16,
    /// Sent requests and the free places among them.
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    in_flight: usize,
    sequence: u64,
    unsent: Vec<u8>,
    /// Bytes of `unsent` that were sent after all.
    sent: usize,
    received: OwnedBuf,
    filling: Option<Filling>,
    spare: Vec<Vec<u8>>,
}

impl NbdClient {
    /// Connects, negotiates and enters the export.
    pub fn connect(uri: &NbdUri, options: ClientOptions) -> Result<NbdClient, ClientError> {
        let context = options.allocation.then_some(BASE_ALLOCATION);
        NbdClient::connect_for(uri, options, context)
    }

    /// The same with one metadata context, whichever: what block status then tells of.
    pub fn connect_for(
        uri: &NbdUri,
        options: ClientOptions,
        context: Option<&[u8]>,
    ) -> Result<NbdClient, ClientError> {
        let mut stream = Stream::connect(&uri.address)
            .map_err(|source| ClientError::Connect { uri: uri.to_string(), source })?;
        let entered = handshake::enter(&mut stream, &uri.export, options, context)?;
        stream.set_nonblocking()?;
        Ok(NbdClient {
            stream,
            options: ClientOptions { structured_replies: entered.structured, ..options },
            size: entered.size,
            flags: entered.flags,
            pending: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            sequence: 0,
            unsent: Vec::new(),
            sent: 0,
            received: OwnedBuf::new(RECEIVE_BYTES),
            filling: None,
            spare: Vec::new(),
        })
    }

    /// The exports that a server lists.
    pub fn list(address: &NbdAddress) -> Result<Vec<String>, ClientError> {
        let uri = NbdUri { address: address.clone(), export: String::new() };
        let mut stream = Stream::connect(address)
            .map_err(|source| ClientError::Connect { uri: uri.to_string(), source })?;
        handshake::list(&mut stream)
    }

    /// The export's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The transmission flags; see [`crate::format::nbd::flags`].
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Requests submitted and not yet returned by `poll`.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether `poll` would want to wait for room to send.
    pub fn wants_to_send(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Queues a request and sends as much as goes without waiting.
    pub fn submit(&mut self, operation: Operation<'_>) -> Result<Cookie, ClientError> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.pending.push(None);
            self.pending.len() - 1
        });
        self.sequence += 1;
        let cookie = Cookie(self.sequence << 20 | slot as u64);
        let request = operation.request(cookie);
        let mut data = Vec::new();
        if let Operation::Read { length, .. } = operation {
            data = self.spare.pop().unwrap_or_default();
            data.resize(length as usize, 0);
        }
        let extents = Vec::new();
        self.pending[slot] = Some(Pending { cookie, request, data, received: 0, extents, error: None });
        self.in_flight += 1;
        self.unsent.extend_from_slice(&request.encode());
        if let Operation::Write { data, .. } = operation {
            self.unsent.extend_from_slice(data);
        }
        self.send()?;
        Ok(cookie)
    }

    /// The next answered request; waits for one at most `timeout`, for ever without. `None` when time is up, or when
    /// nothing is in flight.
    pub fn poll(&mut self, timeout: Option<Duration>) -> Result<Option<Completed>, ClientError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if let Some(completed) = self.next_received()? {
                return Ok(Some(completed));
            }
            if self.in_flight == 0 {
                return Ok(None);
            }
            self.send()?;
            if self.receive()? {
                continue;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            self.stream.wait(self.wants_to_send(), left)?;
        }
    }

    /// Submits one request and waits for it alone: nothing else may be in flight.
    pub fn call(&mut self, operation: Operation<'_>) -> Result<Completed, ClientError> {
        assert_eq!(self.in_flight, 0, "call() is for one request at a time");
        self.submit(operation)?;
        let completed = self.poll(None)?.expect("one request is in flight and poll waits for it");
        match completed.result {
            Ok(()) => Ok(completed),
            Err((error, message)) => {
                let operation = match operation {
                    Operation::Read { .. } => "read",
                    Operation::Write { .. } => "write",
                    Operation::Trim { .. } => "trim",
                    Operation::WriteZeroes { .. } => "write zeroes",
                    Operation::Cache { .. } => "cache",
                    Operation::BlockStatus { .. } => "block status",
                    Operation::Flush => "flush",
                };
                Err(ClientError::Failed { operation, error, message })
            }
        }
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, ClientError> {
        Ok(self.call(Operation::Read { offset, length })?.data)
    }

    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        self.call(Operation::Write { offset, data, fua }).map(|_| ())
    }

    pub fn trim(&mut self, offset: u64, length: u32) -> Result<(), ClientError> {
        self.call(Operation::Trim { offset, length, fua: false }).map(|_| ())
    }

    pub fn write_zeroes(&mut self, offset: u64, length: u32) -> Result<(), ClientError> {
        let operation = Operation::WriteZeroes { offset, length, fua: false, no_hole: false, fast: false };
        self.call(operation).map(|_| ())
    }

    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.call(Operation::Flush).map(|_| ())
    }

    /// A buffer of a completed read, to be used for a later one.
    pub fn recycle(&mut self, data: Vec<u8>) {
        self.spare.push(data);
    }

    /// Tells the server that this is the end, and waits until it has closed.
    pub fn disconnect(mut self) -> Result<(), ClientError> {
        let request = Request { flags: 0, command: command::DISC, cookie: Cookie(0), offset: 0, length: 0 };
        self.unsent.extend_from_slice(&request.encode());
        let deadline = Instant::now() + HANDSHAKE_MAX;
        loop {
            self.send()?;
            self.received.clear();
            self.filling = None;
            match self.receive() {
                Ok(true) => {}
                Ok(false) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(ClientError::Timeout(HANDSHAKE_MAX));
                    }
                    self.stream.wait(self.wants_to_send(), Some(left))?;
                }
                Err(ClientError::Closed(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends without waiting.
    fn send(&mut self) -> Result<(), ClientError> {
        while self.sent < self.unsent.len() {
            let Some(count) = self.stream.send(&self.unsent[self.sent..])? else { return Ok(()) };
            self.sent += count;
        }
        self.unsent.clear();
        self.sent = 0;
        Ok(())
    }

    /// Receives without waiting. Returns whether anything came.
    fn receive(&mut self) -> Result<bool, ClientError> {
        // Data goes where it belongs without being copied from here first.
        if let Some(filling) = self.filling
            && self.received.filled().is_empty()
        {
            let pending = self.pending[filling.slot].as_mut().expect("what is filled is pending");
            let place = &mut pending.data[filling.at..filling.at + filling.left];
            return match self.stream.receive(place)? {
                None => Ok(false),
                Some(0) => Err(ClientError::Closed(self.in_flight)),
                Some(count) => {
                    self.filled(filling, count);
                    Ok(true)
                }
            };
        }
        self.received.compact();
        match self.stream.receive(self.received.spare_mut())? {
            None => Ok(false),
            Some(0) => Err(ClientError::Closed(self.in_flight)),
            Some(count) => {
                self.received.commit(count);
                Ok(true)
            }
        }
    }

    fn filled(&mut self, filling: Filling, count: usize) {
        let pending = self.pending[filling.slot].as_mut().expect("what is filled is pending");
        pending.received += count;
        self.filling = Some(Filling { at: filling.at + count, left: filling.left - count, ..filling });
    }

    /// Goes on with what was received until a request is complete.
    fn next_received(&mut self) -> Result<Option<Completed>, ClientError> {
        loop {
            if let Some(filling) = self.filling {
                let bytes = self.received.filled();
                let count = bytes.len().min(filling.left);
                let pending = self.pending[filling.slot].as_mut().expect("what is filled is pending");
                pending.data[filling.at..filling.at + count].copy_from_slice(&bytes[..count]);
                self.received.consume(count);
                self.filled(filling, count);
                if filling.left > count {
                    return Ok(None);
                }
                self.filling = None;
                if filling.last {
                    return self.complete(filling.slot).map(Some);
                }
            }
            let Some((header, length)) = ReplyHeader::parse(self.received.filled())? else {
                return Ok(None);
            };
            match header {
                ReplyHeader::Simple { cookie, error } => {
                    let slot = self.slot(cookie)?;
                    self.received.consume(length);
                    let pending = self.pending[slot].as_mut().expect("slot() found it");
                    pending.error = error.map(|error| (error, String::new()));
                    if pending.request.command == command::READ && error.is_none() {
                        if self.options.structured_replies {
                            return Err(ClientError::Unexpected("a read was answered without structure"));
                        }
                        let left = pending.data.len();
                        self.filling = Some(Filling { slot, at: 0, left, last: true });
                    } else {
                        return self.complete(slot).map(Some);
                    }
                }
                ReplyHeader::Chunk { cookie, kind: chunk::OFFSET_DATA, done, length: payload } => {
                    let slot = self.slot(cookie)?;
                    let Some(offset) = self.received.filled()[length..].first_chunk() else {
                        return Ok(None);
                    };
                    let offset = u64::from_be_bytes(*offset);
                    self.received.consume(length + 8);
                    let pending = self.pending[slot].as_ref().expect("slot() found it");
                    let left = (payload as usize).saturating_sub(8);
                    let at = offset.checked_sub(pending.request.offset).unwrap_or(u64::MAX);
                    if left == 0 || at.saturating_add(left as u64) > pending.data.len() as u64 {
                        return Err(ClientError::Unexpected("data outside of what was asked for"));
                    }
                    self.filling = Some(Filling { slot, at: at as usize, left, last: done });
                }
                ReplyHeader::Chunk { cookie, kind, done, length: payload } => {
                    let slot = self.slot(cookie)?;
                    let payload = payload as usize;
                    if payload > RECEIVE_BYTES / 2 {
                        return Err(ClientError::Unexpected("a chunk is too long for its kind"));
                    }
                    let Some(bytes) = self.received.filled().get(length..length + payload) else {
                        return Ok(None);
                    };
                    let body = ChunkBody::parse(kind, bytes)?;
                    self.received.consume(length + payload);
                    self.chunk(slot, body)?;
                    if done {
                        return self.complete(slot).map(Some);
                    }
                }
            }
        }
    }

    fn chunk(&mut self, slot: usize, body: ChunkBody) -> Result<(), ClientError> {
        let pending = self.pending[slot].as_mut().expect("slot() found it");
        match body {
            ChunkBody::None => {}
            ChunkBody::Hole { offset, length } => {
                let at = offset.checked_sub(pending.request.offset).unwrap_or(u64::MAX);
                let end = at.saturating_add(u64::from(length));
                if end > pending.data.len() as u64 {
                    return Err(ClientError::Unexpected("a hole outside of what was asked for"));
                }
                pending.data[at as usize..end as usize].fill(0);
                pending.received += length as usize;
            }
            ChunkBody::BlockStatus { extents, .. } => pending.extents = extents,
            ChunkBody::Error { error, message } => {
                pending.error.get_or_insert((error, message));
            }
        }
        Ok(())
    }

    fn slot(&self, cookie: Cookie) -> Result<usize, ClientError> {
        let slot = (cookie.0 & 0xf_ffff) as usize;
        let known = self.pending.get(slot).and_then(Option::as_ref);
        match known {
            Some(pending) if pending.cookie == cookie => Ok(slot),
            _ => Err(ClientError::Unexpected("an answer to nothing that was asked")),
        }
    }

    fn complete(&mut self, slot: usize) -> Result<Completed, ClientError> {
        let pending = self.pending[slot].take().expect("a request completes once");
        self.free.push(slot);
        self.in_flight -= 1;
        if pending.error.is_none() && pending.received != pending.data.len() {
            return Err(ClientError::Unexpected("a read was called complete with data missing"));
        }
        let Pending { cookie, data, extents, error, .. } = pending;
        Ok(Completed { cookie, result: error.map_or(Ok(()), Err), data, extents })
    }
}

impl AsFd for NbdClient {
    /// For waiting on several clients at once.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
