//! One host's connection: a session, its socket, and the three buffers between them.

use crate::base::Nanos;
use crate::core::nbd::{Farewell, Limits, Session, Stall, Station};
use crate::io::arena::ArenaView;
use crate::io::ring::{FileId, OwnedBuf, Ring};

/// Buffers of one connection: one receives, one collects replies, one is being sent.
const BUFFERS: usize = 3;

/// Bytes of a buffer of the first connections: two of the longest pieces, so that one comes while one is worked on.
const LARGE_BYTES: usize = 256 << 10;

/// Bytes of a buffer of the others: a fragment of 64 KiB, which the protocol promises, with its edges.
const SMALL_BYTES: usize = 80 << 10;

/// Connections with large buffers (48 MiB in all, of which only what is ever filled takes memory).
const LARGE_MAX: usize = 64;

const _: () = assert!(SMALL_BYTES >= Limits::MIN.receive_bytes);
const _: () = assert!(SMALL_BYTES >= Limits::MIN.send_bytes);

/// The buffers of connections that are over, for those to come.
#[derive(Debug)]
pub(super) struct Buffers {
    small: Vec<[OwnedBuf; BUFFERS]>,
    large: Vec<[OwnedBuf; BUFFERS]>,
    large_taken: usize,
}

impl Buffers {
    pub fn new(connections_max: usize) -> Buffers {
        let small = Vec::with_capacity(connections_max);
        Buffers { small, large: Vec::with_capacity(LARGE_MAX), large_taken: 0 }
    }

    fn take(&mut self) -> [OwnedBuf; BUFFERS] {
        let make = |bytes: usize| [(); BUFFERS].map(|()| OwnedBuf::new(bytes));
        if self.large_taken == LARGE_MAX {
            return self.small.pop().unwrap_or_else(|| make(SMALL_BYTES));
        }
        self.large_taken += 1;
        self.large.pop().unwrap_or_else(|| make(LARGE_BYTES))
    }

    fn put_back(&mut self, mut buffers: [OwnedBuf; BUFFERS]) {
        buffers.iter_mut().for_each(OwnedBuf::clear);
        if buffers[0].capacity() == LARGE_BYTES {
            self.large_taken -= 1;
            self.large.push(buffers);
        } else {
            self.small.push(buffers);
        }
    }
}

/// What a completion was of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Accept { listener: usize },
    Receive { connection: usize },
    Send { connection: usize },
}

impl Operation {
    pub fn token(self) -> u64 {
        match self {
            Operation::Accept { listener } => (listener as u64) << 2,
            Operation::Receive { connection } => (connection as u64) << 2 | 1,
            Operation::Send { connection } => (connection as u64) << 2 | 2,
        }
    }

    pub fn of_token(token: u64) -> Operation {
        let index = (token >> 2) as usize;
        match token & 3 {
            0 => Operation::Accept { listener: index },
            1 => Operation::Receive { connection: index },
            2 => Operation::Send { connection: index },
            kind => unreachable!("no operation of kind {kind} was submitted"),
        }
    }
}

/// A connection is over when its file was removed and nothing of it is in flight; only then is its place free.
#[derive(Debug)]
pub(super) struct Connection {
    pub session: Session,
    index: usize,
    file: FileId,
    /// Unread input; away while a receive is in flight.
    input: Option<OwnedBuf>,
    /// Replies that are not being sent yet.
    replies: OwnedBuf,
    /// The other send buffer; away while a send is in flight.
    spare: Option<OwnedBuf>,
    removed: bool,
    /// It waits for its turn.
    pub queued: bool,
    /// Something happened to it in this turn.
    pub touched: bool,
    /// When it must have ended the handshake.
    pub haggle_until: Nanos,
}

impl Connection {
    pub fn new(index: usize, file: FileId, buffers: &mut Buffers, haggle_until: Nanos) -> Connection {
        let [input, mut replies, spare] = buffers.take();
        let limits = Limits { receive_bytes: input.capacity(), send_bytes: replies.capacity() };
        let session = Session::new(u16::try_from(index).expect("a few hundred connections"), limits);
        session.greet(&mut replies);
        Connection {
            session,
            index,
            file,
            input: Some(input),
            replies,
            spare: Some(spare),
            removed: false,
            queued: false,
            touched: false,
            haggle_until,
        }
    }

    /// The session and where its replies go.
    pub fn answering(&mut self) -> (&mut Session, &mut OwnedBuf) {
        (&mut self.session, &mut self.replies)
    }

    /// Whether there is input that the session might go on with.
    pub fn has_input(&self) -> bool {
        self.input.is_some()
    }

    /// Lets the session go on until it needs something, and receives if that is input.
    pub fn advance(&mut self, station: &mut Station<'_, ArenaView>, ring: &mut Ring) -> Stall {
        // Without a buffer a receive is in flight: the session asked for more input before it can do anything.
        let Some(input) = &mut self.input else { return Stall::Input };
        let stall = loop {
            let (taken, stall) = self.session.advance(station, input.filled(), &mut self.replies);
            input.consume(taken);
            let sendable = !self.removed && !self.replies.filled().is_empty();
            if stall != Stall::Room || !sendable || self.spare.is_none() {
                break stall;
            }
            // The other buffer is empty, and its room is there at once.
            send(&mut self.replies, &mut self.spare, ring, self.file, self.index);
        };
        if stall == Stall::Input && !self.removed {
            let mut input = self.input.take().expect("it was just there");
            // What the session waits for begins where its input does, and fits the buffer from there.
            let spare = input.spare_mut().len();
            let consumed = input.capacity() - input.filled().len() - spare;
            if consumed > 0 && spare < input.capacity() / 2 {
                input.compact();
            }
            ring.recv(Operation::Receive { connection: self.index }.token(), self.file, input);
        }
        stall
    }

    /// Sends what was replied, unless a send is in flight: then when that is done.
    pub fn flush(&mut self, ring: &mut Ring) {
        if !self.removed && self.spare.is_some() && !self.replies.filled().is_empty() {
            send(&mut self.replies, &mut self.spare, ring, self.file, self.index);
        }
    }

    /// A receive completed with this result, as io_uring reports it.
    pub fn received(&mut self, result: i32, input: OwnedBuf) {
        self.input = Some(input);
        match result {
            0 => self.session.leave(Farewell::HungUp),
            1.. => {}
            _ => self.session.abandon(Farewell::Failed),
        }
    }

    /// A send completed with this result; whatever it did not send stays in the buffer. Kernels before 5.19 may send a part.
    pub fn sent(&mut self, ring: &mut Ring, result: i32, mut buffer: OwnedBuf) {
        if result > 0 && !buffer.filled().is_empty() && !self.removed {
            let connection = self.index;
            return ring.send(Operation::Send { connection }.token(), self.file, buffer);
        }
        if result < 0 || !buffer.filled().is_empty() {
            self.session.abandon(Farewell::Failed);
            buffer.clear();
        }
        self.spare = Some(buffer);
    }

    /// Closes the socket when the session is over and its last reply is sent, or can not be. Returns whether nothing of
    /// the connection is in flight any more.
    pub fn close_when_over(&mut self, ring: &mut Ring) -> bool {
        let Some(farewell) = self.session.farewell() else { return false };
        let unsent = self.spare.is_none() || !self.replies.filled().is_empty();
        if !self.removed && (farewell == Farewell::Failed || (self.session.pieces() == 0 && !unsent)) {
            self.close(ring);
        }
        self.removed && self.session.pieces() == 0 && self.input.is_some() && self.spare.is_some()
    }

    /// Closes the socket now: nobody is there to read more, or nobody is waited for any longer.
    pub fn close(&mut self, ring: &mut Ring) {
        self.session.abandon(Farewell::Failed);
        if !self.removed {
            self.removed = true;
            ring.remove_file(self.file);
        }
    }

    /// Gives back the buffers of a connection that is over.
    pub fn end(self, buffers: &mut Buffers) {
        let (Some(input), Some(spare)) = (self.input, self.spare) else {
            panic!("connection {} ends with an operation in flight", self.index);
        };
        buffers.put_back([input, self.replies, spare]);
    }
}

fn send(
    replies: &mut OwnedBuf,
    spare: &mut Option<OwnedBuf>,
    ring: &mut Ring,
    file: FileId,
    connection: usize,
) {
    let empty = spare.take().expect("no send is in flight");
    let full = std::mem::replace(replies, empty);
    ring.send(Operation::Send { connection }.token(), file, full);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        for operation in [
            Operation::Accept { listener: 1 },
            Operation::Receive { connection: 511 },
            Operation::Send { connection: 0 },
        ] {
            assert_eq!(Operation::of_token(operation.token()), operation);
        }
    }

    #[test]
    fn the_first_connections_have_large_buffers_and_all_are_used_again() {
        let mut buffers = Buffers::new(100);
        let taken: Vec<_> = (0..100).map(|_| buffers.take()).collect();
        let large = taken.iter().filter(|taken| taken[2].capacity() == LARGE_BYTES).count();
        assert_eq!(large, LARGE_MAX);
        taken.into_iter().for_each(|taken| buffers.put_back(taken));
        assert_eq!((buffers.large.len(), buffers.small.len()), (LARGE_MAX, 100 - LARGE_MAX));
        assert_eq!(buffers.take()[0].capacity(), LARGE_BYTES);
    }
}
