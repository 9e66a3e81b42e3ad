//! One connection: bytes in, replies out, and in between pieces for the group.
//!
//! A request becomes pieces of whole blocks, with `WritePartial` and `ZeroPartial` for unaligned ends. A piece takes a
//! ticket, its pages and the room of its reply in the connection's own send buffer before it is issued, all or nothing,
//! and a write's pages are taken only once its bytes are here. So nothing a client does or leaves undone holds a ticket
//! or a page for longer than the group takes to answer, and no connection can starve another.

use super::desk::{Desk, Job};
use super::handshake::{self, Contexts, Negotiated, OPTION_REPLY_BYTES_MAX, Outcome};
use super::replies::put_allocation;
use super::{AllocationMap, Catalog, Exported, Failure};
use crate::base::*;
use crate::core::messages::{HostOp, Ticket};
use crate::format::nbd::*;

/// Requests one connection may have unanswered: a quarter of a front's tickets. More wait in the socket.
pub const SESSION_REQUESTS_MAX: usize = FRONT_TICKETS_MAX / 4;

/// Pieces one connection may have in the group: the same quarter, so that one client's huge trim leaves tickets.
pub const SESSION_PIECES_MAX: usize = FRONT_TICKETS_MAX / 4;

/// Pieces of a streamed read in the group at once (1 MiB): enough to keep disks busy.
pub const STREAM_PIECES_MAX: usize = 8;

/// Steps of one connection in one call, so that a busy one does not starve the others of the turn.
pub const STEPS_MAX: usize = 2 * TURN_MESSAGES_MAX;

/// Extents in one block status reply; a client asks again for what follows.
pub const EXTENTS_MAX: usize = 128;

/// Bytes of an error's text.
pub const MESSAGE_BYTES_MAX: usize = 80;

/// Bytes of the payload of a refused WRITE that are skipped to answer it; beyond, the client is dropped.
pub const SKIP_BYTES_MAX: u32 = 2 * REQUEST_BYTES_MAX;

/// Room that every reply without data needs: an error chunk with its text and offset.
pub(super) const REPLY_BYTES_MAX: usize = CHUNK_HEADER_BYTES + 6 + MESSAGE_BYTES_MAX + 8;

/// One block status chunk; a reply has one for each context that was selected.
const STATUS_BYTES_MAX: usize = CHUNK_HEADER_BYTES + 4 + 8 * EXTENTS_MAX;
const STATUSES_BYTES_MAX: usize = 2 * STATUS_BYTES_MAX;

/// The protocol has every server send up to 64 KiB unfragmented; unaligned that touches 17 blocks.
const PIECE_BLOCKS_MIN: usize = 17;

/// Sizes of a connection's buffers, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Unread input that the front can hold.
    pub receive_bytes: usize,
    /// Replies that one send buffer can hold.
    pub send_bytes: usize,
}

impl Limits {
    /// The least a session works with.
    pub const MIN: Limits = Limits {
        receive_bytes: PIECE_BLOCKS_MIN * BLOCK_BYTES + REQUEST_BYTES,
        send_bytes: PIECE_BLOCKS_MIN * BLOCK_BYTES + REPLY_BYTES_MAX,
    };

    fn piece_blocks(&self) -> u64 {
        let bytes = (self.receive_bytes - REQUEST_BYTES).min(self.send_bytes - REPLY_BYTES_MAX);
        ((bytes / BLOCK_BYTES) as u64).min(UPDATE_BLOCKS_MAX as u64)
    }
}

const _: () = assert!(Limits::MIN.receive_bytes >= OPTION_HEADER_BYTES + OPTION_BYTES_MAX);
const _: () = assert!(Limits::MIN.send_bytes >= OPTION_REPLY_BYTES_MAX);

/// What the sessions of a front work with, for the time of one call.
pub struct Station<'a, M: Memory> {
    pub now: Nanos,
    pub catalog: Catalog<'a>,
    pub allocation: &'a dyn AllocationMap,
    pub memory: &'a mut M,
    /// The front's table; rows are its tickets.
    pub table: &'a PageTable,
    pub desk: &'a mut Desk,
}

/// Why a session stopped reading its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// More bytes are needed.
    Input,
    /// Room in the send buffer is needed: go on when it was sent, or when one of its own pieces completed.
    Room,
    /// One of its own pieces must complete first.
    Completion,
    /// A ticket, or this many pages, are needed from the desk.
    Resources { pages: u32 },
    /// It had its share of the turn and could go on at once.
    Turn,
    /// It reads nothing any more: close once [`Session::pieces`] is zero and the send buffer is sent.
    Leaving(Farewell),
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Farewell {
    #[error("the client disconnected")]
    Disconnected,
    #[error("the client aborted the handshake")]
    Aborted,
    #[error("the client closed the connection without a word")]
    HungUp,
    #[error("the connection failed")]
    Failed,
    #[error("the site stops")]
    Stopping,
    #[error("the site's role changed")]
    RoleChanged,
    #[error("the client did not finish the handshake in time")]
    TooSlow,
    #[error("the client broke the protocol: {0}")]
    Malformed(#[from] Malformed),
    #[error("the client asked for an export that does not exist")]
    UnknownExport,
    #[error("the client used options without fixed newstyle")]
    NotFixedNewstyle,
    #[error("the client sent too many options")]
    TooManyOptions,
    #[error("a read failed after a part of its data was sent, which a simple reply cannot say")]
    ReadFailed,
}

#[derive(Debug)]
enum Phase {
    Greeting,
    Haggle { client: ClientFlags, options: u32 },
    SkipOption { client: ClientFlags, options: u32, option: u32, left: u32 },
    Serve { export: Exported, aligned: bool, doing: Doing },
    Left(Farewell),
}

/// What the next bytes or resources are for.
#[derive(Clone, Copy, Debug)]
enum Doing {
    Header,
    /// The payload of a refused write is read and dropped, then the refusal sent.
    Skip {
        cookie: Cookie,
        left: u32,
        failure: Failure,
    },
    /// Pieces from `next` to `end` (bytes in the volume) are still to be issued.
    Issue {
        request: u16,
        verb: Verb,
        next: u64,
        end: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Read,
    /// A simple reply whose data is sent as it comes, in order and alone.
    Stream,
    Write {
        fua: bool,
    },
    Zero {
        fua: bool,
    },
    Flush,
    /// Which blocks were changed since a snapshot; `one` extent is wanted, or as many as there are.
    Changes {
        since: UpdateNumber,
        one: bool,
    },
}

impl Verb {
    pub(super) fn reads(self) -> bool {
        matches!(self, Verb::Read | Verb::Stream)
    }

    /// Room that the one reply needs; each piece of a read needs its own.
    pub(super) fn reply_bytes(self) -> usize {
        match self {
            Verb::Read | Verb::Stream => 0,
            Verb::Changes { .. } => STATUSES_BYTES_MAX,
            Verb::Write { .. } | Verb::Zero { .. } | Verb::Flush => REPLY_BYTES_MAX,
        }
    }
}

/// A request whose reply is not yet complete.
#[derive(Clone, Copy, Debug)]
pub(super) struct Active {
    pub cookie: Cookie,
    pub verb: Verb,
    pub length: u32,
    /// Pieces in the group.
    pub pieces: u32,
    /// No more pieces are to be issued.
    pub issued: bool,
    /// Some pieces never were issued, so the reply is never completed: the session ends, or has already said why.
    pub cut: bool,
    pub failure: Option<Failure>,
}

#[derive(Debug)]
pub(super) struct StreamPiece {
    pub ticket: Ticket,
    pub done: bool,
}

enum Step {
    Took(usize),
    Stall(Stall),
}

/// The protocol state of one connection; nothing in it allocates after `new`.
#[derive(Debug)]
pub struct Session {
    pub(super) connection: u16,
    piece_blocks: u64,
    pub(super) send_bytes: usize,
    phase: Phase,
    pub(super) negotiated: Negotiated,
    pub(super) active: Box<[Option<Active>]>,
    pub(super) free: Vec<u16>,
    /// Pieces in the group.
    pub(super) pieces: usize,
    /// Bytes of the send buffer that replies to come may take.
    pub(super) reserved: usize,
    pub(super) stream: FixedQueue<StreamPiece>,
    /// Bytes of the streamed read that were put into send buffers; its header goes with the first.
    pub(super) streamed: u64,
    /// The peer is gone: replies are dropped.
    pub(super) muted: bool,
    /// What its client had open when it left.
    left: Option<Exported>,
}

impl Session {
    /// A session for the front's connection number `connection`. Panics below [`Limits::MIN`].
    pub fn new(connection: u16, limits: Limits) -> Session {
        assert!(limits.receive_bytes >= Limits::MIN.receive_bytes, "{limits:?}");
        assert!(limits.send_bytes >= Limits::MIN.send_bytes, "{limits:?}");
        Session {
            connection,
            piece_blocks: limits.piece_blocks(),
            send_bytes: limits.send_bytes,
            phase: Phase::Greeting,
            negotiated: Negotiated::default(),
            active: vec![None; SESSION_REQUESTS_MAX].into_boxed_slice(),
            free: (0..SESSION_REQUESTS_MAX as u16).rev().collect(),
            pieces: 0,
            reserved: 0,
            stream: FixedQueue::new(STREAM_PIECES_MAX),
            streamed: 0,
            muted: false,
            left: None,
        }
    }

    /// The server speaks first.
    pub fn greet(&self, out: &mut impl Sink) {
        out.put(&greeting());
    }

    /// Pieces in the group. A session is only dropped when there are none.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// Requests read and not fully answered.
    pub fn requests(&self) -> usize {
        SESSION_REQUESTS_MAX - self.free.len()
    }

    pub fn is_haggling(&self) -> bool {
        matches!(self.phase, Phase::Greeting | Phase::Haggle { .. } | Phase::SkipOption { .. })
    }

    /// What its client has open.
    pub fn export(&self) -> Option<Exported> {
        match self.phase {
            Phase::Serve { export, .. } => Some(export),
            _ => None,
        }
    }

    /// What its client has open, or had, while some of its requests are still inside.
    pub fn is_inside(&self) -> Option<Exported> {
        self.export().or(self.left.filter(|_| self.pieces > 0))
    }

    pub fn farewell(&self) -> Option<Farewell> {
        match self.phase {
            Phase::Left(farewell) => Some(farewell),
            _ => None,
        }
    }

    /// Reads nothing more; what is in the group is still answered.
    pub fn leave(&mut self, farewell: Farewell) {
        if self.farewell().is_none() {
            self.cut();
            self.left = self.export();
            self.phase = Phase::Left(farewell);
        }
    }

    /// The peer is gone: as [`Session::leave`], and nothing is answered.
    pub fn abandon(&mut self, farewell: Farewell) {
        self.leave(farewell);
        self.muted = true;
    }

    /// Reads `input`, which begins where the last call stopped, and returns how much of it was taken and why no more.
    /// Replies are appended to `out`, never beyond `Limits::send_bytes`.
    pub fn advance<M: Memory>(
        &mut self,
        station: &mut Station<'_, M>,
        input: &[u8],
        out: &mut impl Sink,
    ) -> (usize, Stall) {
        let mut taken = 0;
        for _ in 0..STEPS_MAX {
            match self.step(station, &input[taken..], out) {
                Step::Took(bytes) => taken += bytes,
                Step::Stall(stall) => return (taken, stall),
            }
        }
        (taken, Stall::Turn)
    }

    /// Issues no more of the request being issued, if one is.
    pub(super) fn cut(&mut self) {
        let Phase::Serve { doing, .. } = &mut self.phase else { return };
        if let Doing::Issue { request, .. } = *doing {
            *doing = Doing::Header;
            let active = self.active[usize::from(request)].as_mut().expect("the request is being issued");
            (active.issued, active.cut) = (true, true);
            self.retire(request);
        }
    }

    fn room(&self, out: &impl Sink) -> usize {
        self.send_bytes - out.len() - self.reserved
    }

    fn step<M: Memory>(&mut self, station: &mut Station<'_, M>, input: &[u8], out: &mut impl Sink) -> Step {
        match self.phase {
            Phase::Greeting => {
                let Some(bytes) = input.first_chunk() else { return Step::Stall(Stall::Input) };
                match ClientFlags::parse(bytes) {
                    Ok(client) => self.phase = Phase::Haggle { client, options: 0 },
                    Err(malformed) => self.leave(malformed.into()),
                }
                Step::Took(CLIENT_FLAGS_BYTES)
            }
            Phase::Haggle { client, options } => self.option(station, client, options, input, out),
            Phase::SkipOption { client, options, option, left } => {
                if left == 0 {
                    if self.room(out) < OPTION_REPLY_BYTES_MAX {
                        return Step::Stall(Stall::Room);
                    }
                    handshake::refuse_too_big(out, option);
                    self.phase = Phase::Haggle { client, options };
                    return Step::Took(0);
                }
                let bytes = input.len().min(left as usize);
                if bytes == 0 {
                    return Step::Stall(Stall::Input);
                }
                self.phase = Phase::SkipOption { client, options, option, left: left - bytes as u32 };
                Step::Took(bytes)
            }
            Phase::Serve { export, aligned, doing } => match doing {
                Doing::Header => self.header(station, export, aligned, input, out),
                Doing::Skip { cookie, left, failure } => self.skip(cookie, left, failure, input, out),
                Doing::Issue { request, verb, next, end } => {
                    self.issue(station, export, (request, verb, next, end), input, out)
                }
            },
            Phase::Left(farewell) => Step::Stall(Stall::Leaving(farewell)),
        }
    }

    fn option<M: Memory>(
        &mut self,
        station: &mut Station<'_, M>,
        client: ClientFlags,
        options: u32,
        input: &[u8],
        out: &mut impl Sink,
    ) -> Step {
        let Some((header, rest)) = input.split_first_chunk() else { return Step::Stall(Stall::Input) };
        let header = match OptionHeader::parse(header) {
            Ok(header) => header,
            Err(malformed) => return self.end(malformed.into()),
        };
        if !client.fixed_newstyle && header.option != option::EXPORT_NAME {
            return self.end(Farewell::NotFixedNewstyle);
        }
        if options == handshake::OPTIONS_MAX {
            return self.end(Farewell::TooManyOptions);
        }
        let length = header.length as usize;
        if length > OPTION_BYTES_MAX {
            if header.length > handshake::OPTION_SKIP_BYTES_MAX || header.option == option::EXPORT_NAME {
                return self.end(Malformed::Oversize { what: "option", length: length as u64 }.into());
            }
            let (option, left) = (header.option, header.length);
            self.phase = Phase::SkipOption { client, options: options + 1, option, left };
            return Step::Took(OPTION_HEADER_BYTES);
        }
        if rest.len() < length {
            return Step::Stall(Stall::Input);
        }
        if self.room(out) < OPTION_REPLY_BYTES_MAX {
            return Step::Stall(Stall::Room);
        }
        let option = (header.option, &rest[..length]);
        self.phase = match handshake::answer(&mut self.negotiated, station.catalog, client, option, out) {
            Outcome::Haggle => Phase::Haggle { client, options: options + 1 },
            Outcome::Enter { export, aligned } => Phase::Serve { export, aligned, doing: Doing::Header },
            Outcome::Abort => Phase::Left(Farewell::Aborted),
            Outcome::UnknownExport => Phase::Left(Farewell::UnknownExport),
        };
        Step::Took(OPTION_HEADER_BYTES + length)
    }

    fn end(&mut self, farewell: Farewell) -> Step {
        self.leave(farewell);
        Step::Stall(Stall::Leaving(farewell))
    }

    fn doing(&mut self, next: Doing) {
        match &mut self.phase {
            Phase::Serve { doing, .. } => *doing = next,
            phase => unreachable!("in {phase:?} nothing is served"),
        }
    }

    fn header<M: Memory>(
        &mut self,
        station: &mut Station<'_, M>,
        export: Exported,
        aligned: bool,
        input: &[u8],
        out: &mut impl Sink,
    ) -> Step {
        let Some(bytes) = input.first_chunk() else { return Step::Stall(Stall::Input) };
        let request = match Request::parse(bytes) {
            Ok(request) => request,
            Err(malformed) => return self.end(malformed.into()),
        };
        if request.command == command::DISC {
            return self.end(Farewell::Disconnected);
        }
        if !self.stream.is_empty() {
            return Step::Stall(Stall::Completion);
        }
        if self.room(out) < STATUSES_BYTES_MAX {
            return Step::Stall(Stall::Room);
        }
        let verb = match self.judge(&request, &export, aligned) {
            Ok(verb) => verb,
            Err(failure) if request.command == command::WRITE => {
                if request.length > SKIP_BYTES_MAX {
                    let length = u64::from(request.length);
                    return self.end(Malformed::Oversize { what: "write", length }.into());
                }
                self.doing(Doing::Skip { cookie: request.cookie, left: request.length, failure });
                return Step::Took(REQUEST_BYTES);
            }
            Err(failure) => {
                self.put_result(request.cookie, Some(failure), out);
                return Step::Took(REQUEST_BYTES);
            }
        };
        let Some(verb) = verb else {
            match request.command {
                command::BLOCK_STATUS => {
                    let one = request.flags & command_flag::REQ_ONE != 0;
                    let end = request.offset + u64::from(request.length);
                    put_allocation(station, &export, request.cookie, (request.offset..end, one), true, out);
                }
                _ => self.put_result(request.cookie, None, out),
            }
            return Step::Took(REQUEST_BYTES);
        };
        if verb == Verb::Stream && self.requests() > 0 {
            return Step::Stall(Stall::Completion);
        }
        let Some(index) = self.free.pop() else { return Step::Stall(Stall::Completion) };
        self.reserved += verb.reply_bytes();
        self.streamed = 0;
        let (cookie, offset, length) = (request.cookie, request.offset, request.length);
        let active = Active { cookie, verb, length, pieces: 0, issued: false, cut: false, failure: None };
        self.active[usize::from(index)] = Some(active);
        let end = offset + u64::from(length);
        self.doing(Doing::Issue { request: index, verb, next: offset, end });
        Step::Took(REQUEST_BYTES)
    }

    /// The metadata contexts that were selected for the export.
    fn contexts(&self, export: &Exported) -> Option<Contexts> {
        self.negotiated.contexts.filter(|(selected, _)| selected == export).map(|(_, contexts)| contexts)
    }

    /// What a request asks of the group; `None` when it is answered here.
    fn judge(&self, request: &Request, export: &Exported, aligned: bool) -> Result<Option<Verb>, Failure> {
        use command_flag::*;
        let refuse = |error, message| Err(Failure::new(error, message));
        let structured = self.negotiated.structured;
        let known = match request.command {
            command::READ if structured => FUA | DF,
            command::WRITE_ZEROES => FUA | NO_HOLE | FAST_ZERO,
            command::BLOCK_STATUS => FUA | REQ_ONE,
            command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => FUA,
            _ => return refuse(NbdError::Inval, "this command is not known"),
        };
        if request.flags & !known != 0 {
            return refuse(NbdError::Inval, "a flag does not belong to this command");
        }
        if request.command == command::FLUSH {
            if (request.offset, request.length) != (0, 0) {
                return refuse(NbdError::Inval, "a flush has neither offset nor length");
            }
            return Ok(Some(Verb::Flush));
        }
        let writes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if writes && export.read_only {
            return refuse(NbdError::Perm, "the volume or snapshot is exported read-only");
        }
        let moves_bytes = matches!(request.command, command::READ | command::WRITE | command::CACHE);
        if moves_bytes && request.length > REQUEST_BYTES_MAX {
            return refuse(NbdError::Inval, "the request is longer than 32 MiB");
        }
        if request.length == 0 {
            return refuse(NbdError::Inval, "the request has no length");
        }
        let end = request.offset.checked_add(u64::from(request.length));
        if end.is_none_or(|end| end > export.bytes()) {
            let error = if writes { NbdError::NoSpc } else { NbdError::Inval };
            return refuse(error, "beyond the end of the volume");
        }
        let grain = u64::from(BLOCK_SIZE_MIN);
        let multiple = |bytes: u64| bytes.is_multiple_of(grain);
        if aligned && !(multiple(request.offset) && multiple(u64::from(request.length))) {
            return refuse(NbdError::Inval, "offset and length must be multiples of 512");
        }
        let fua = request.flags & FUA != 0;
        Ok(match request.command {
            command::READ if blocks_touched(request.offset, request.length) <= self.piece_blocks => {
                Some(Verb::Read)
            }
            command::READ if request.flags & DF != 0 => {
                return refuse(NbdError::Overflow, "too long to be read in one fragment");
            }
            command::READ => Some(if structured { Verb::Read } else { Verb::Stream }),
            command::WRITE => Some(Verb::Write { fua }),
            // Discarded blocks read as zeros on every site: a site that kept old bytes would differ from its peer.
            // Zeroing takes no payload, so it is always as fast as FAST_ZERO asks, and keeps nothing allocated.
            command::TRIM | command::WRITE_ZEROES => Some(Verb::Zero { fua }),
            command::BLOCK_STATUS => match self.contexts(export) {
                None => return refuse(NbdError::Inval, "no metadata context was selected for this export"),
                Some(Contexts { since: Some(since), .. }) => {
                    Some(Verb::Changes { since, one: request.flags & REQ_ONE != 0 })
                }
                Some(_) => None,
            },
            _ => None,
        })
    }

    fn skip(
        &mut self,
        cookie: Cookie,
        left: u32,
        failure: Failure,
        input: &[u8],
        out: &mut impl Sink,
    ) -> Step {
        if left > 0 {
            let bytes = input.len().min(left as usize);
            if bytes == 0 {
                return Step::Stall(Stall::Input);
            }
            self.doing(Doing::Skip { cookie, left: left - bytes as u32, failure });
            return Step::Took(bytes);
        }
        if self.room(out) < REPLY_BYTES_MAX {
            return Step::Stall(Stall::Room);
        }
        self.put_result(cookie, Some(failure), out);
        self.doing(Doing::Header);
        Step::Took(0)
    }

    /// Issues the next piece of the request being read, once everything it takes is there.
    fn issue<M: Memory>(
        &mut self,
        station: &mut Station<'_, M>,
        export: Exported,
        (request, verb, next, end): (u16, Verb, u64, u64),
        input: &[u8],
        out: &impl Sink,
    ) -> Step {
        if self.pieces == SESSION_PIECES_MAX || (verb == Verb::Stream && self.stream.room() == 0) {
            return Step::Stall(Stall::Completion);
        }
        let stop = match verb {
            Verb::Flush => end,
            Verb::Read | Verb::Stream => read_stop(next, end, self.piece_blocks),
            Verb::Write { .. } => change_stop(next, end, self.piece_blocks),
            Verb::Zero { .. } => change_stop(next, end, ZERO_BLOCKS_MAX as u64),
            Verb::Changes { .. } => read_stop(next, end, CHANGES_BLOCKS_MAX as u64),
        };
        let length = (stop - next) as u32;
        let blocks = if verb == Verb::Flush { 0 } else { blocks_touched(next, length) as u32 };
        let payload = match verb {
            Verb::Write { .. } => match input.get(..length as usize) {
                Some(payload) => payload,
                None => return Step::Stall(Stall::Input),
            },
            _ => &[],
        };
        // Writes reserved the room of their one reply when they began; a read's pieces each have their own data.
        let reply = if verb.reads() { read_reply_bytes(length) } else { 0 };
        if reply > self.room(out) {
            return Step::Stall(Stall::Room);
        }
        let pages = match verb {
            Verb::Zero { .. } | Verb::Flush => 0,
            Verb::Changes { .. } => 1,
            Verb::Read | Verb::Stream | Verb::Write { .. } => blocks,
        };
        if !station.desk.affords(pages) {
            return Step::Stall(Stall::Resources { pages });
        }
        let ticket = station.desk.ticket();
        let lba = Lba(next / BLOCK_BYTES as u64);
        let (offset, partial) = ((next % BLOCK_BYTES as u64) as u16, length < BLOCK_BYTES as u32);
        let op = match verb {
            Verb::Flush => HostOp::Flush,
            Verb::Read | Verb::Stream => {
                station.desk.lend(station.table, ticket, pages);
                HostOp::Read { lba, count: blocks }
            }
            Verb::Changes { since, .. } => {
                station.desk.lend(station.table, ticket, pages);
                HostOp::Changes { since, lba, count: blocks }
            }
            Verb::Write { fua } if partial => {
                let (page, at) = (station.desk.page(), usize::from(offset));
                station.memory.bytes_mut(page)[at..at + payload.len()].copy_from_slice(payload);
                station.table.set(ticket, 0, page, BlockSum::ZEROS);
                HostOp::WritePartial { lba, offset, length: length as u16, fua }
            }
            Verb::Write { fua } => {
                for (index, block) in payload.chunks_exact(BLOCK_BYTES).enumerate() {
                    let page = station.desk.page();
                    let bytes = station.memory.bytes_mut(page);
                    bytes.copy_from_slice(block);
                    station.table.set(ticket, index, page, sum_of_block(bytes));
                }
                HostOp::Write { lba, count: blocks, fua }
            }
            Verb::Zero { fua } if partial => HostOp::ZeroPartial { lba, offset, length: length as u16, fua },
            Verb::Zero { fua } => HostOp::Zero { lba, count: blocks, fua },
        };
        let lent = if op.reads() { pages } else { 0 };
        let job = Job { connection: self.connection, request, offset: next, length, lent };
        station.desk.submit(ticket, job, &export, op, station.now);
        self.pieces += 1;
        self.reserved += reply;
        if verb == Verb::Stream {
            self.stream.push(StreamPiece { ticket, done: false });
        }
        let active = self.active[usize::from(request)].as_mut().expect("the request is being issued");
        active.pieces += 1;
        // The reply to a block status may end before what was asked for; the client asks again for the rest.
        let issued = stop == end || matches!(verb, Verb::Changes { .. });
        active.issued = issued;
        self.doing(if issued { Doing::Header } else { Doing::Issue { request, verb, next: stop, end } });
        Step::Took(payload.len())
    }
}

/// Blocks that `length` bytes at `offset` touch; `length` is not zero.
fn blocks_touched(offset: u64, length: u32) -> u64 {
    let block = BLOCK_BYTES as u64;
    (offset + u64::from(length) - 1) / block - offset / block + 1
}

/// Where a read's piece that begins at `next` ends: it touches at most `blocks` blocks.
fn read_stop(next: u64, end: u64, blocks: u64) -> u64 {
    end.min((next / BLOCK_BYTES as u64 + blocks) * BLOCK_BYTES as u64)
}

/// Where a changing piece that begins at `next` ends: part of one block, or at most `blocks` whole ones.
fn change_stop(next: u64, end: u64, blocks: u64) -> u64 {
    let block = BLOCK_BYTES as u64;
    if !next.is_multiple_of(block) {
        return end.min((next / block + 1) * block);
    }
    match (end - next) / block {
        0 => end,
        whole => next + whole.min(blocks) * block,
    }
}

/// Room that the reply to one piece of a read needs.
pub(super) fn read_reply_bytes(length: u32) -> usize {
    (DATA_CHUNK_HEADER_BYTES + length as usize).max(REPLY_BYTES_MAX)
}
