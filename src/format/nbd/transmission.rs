//! The transmission phase: requests, simple replies and structured reply chunks.

use super::{Malformed, NbdError, STRING_BYTES_MAX, Sink, u16_at, u32_at, u64_at};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

pub const REQUEST_BYTES: usize = 28;
pub const SIMPLE_REPLY_BYTES: usize = 16;
pub const CHUNK_HEADER_BYTES: usize = 20;
/// A data chunk's header with the offset that begins its payload.
pub const DATA_CHUNK_HEADER_BYTES: usize = CHUNK_HEADER_BYTES + 8;

/// Command codes.
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags.
pub mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Structured reply chunk types.
pub mod chunk {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = 1 << 15 | 1;
    pub const ERROR_OFFSET: u16 = 1 << 15 | 2;
}

/// Structured reply flag: the last chunk of its reply.
pub const CHUNK_DONE: u16 = 1 << 0;

/// Block status flags of `base:allocation`.
pub const STATE_HOLE: u32 = 1 << 0;
pub const STATE_ZERO: u32 = 1 << 1;

/// Block status flag of `lockstep:diff:SNAPSHOT`: changed since then. The same bit as of QEMU's dirty bitmaps.
pub const STATE_CHANGED: u32 = 1 << 0;

/// A client's 64-bit name for its request, echoed in the reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(pub u64);

/// A request's header. `flags` and `command` are as sent: whether they are known is for the session to say, with an
/// error the client can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: Cookie,
    /// Bytes.
    pub offset: u64,
    /// Bytes; that many follow a WRITE.
    pub length: u32,
}

impl Request {
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Request, Malformed> {
        if u32_at(bytes, 0) != REQUEST_MAGIC {
            return Err(Malformed::RequestMagic(u32_at(bytes, 0)));
        }
        Ok(Request {
            flags: u16_at(bytes, 4),
            command: u16_at(bytes, 6),
            cookie: Cookie(u64_at(bytes, 8)),
            offset: u64_at(bytes, 16),
            length: u32_at(bytes, 24),
        })
    }

    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.0.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// Appends a simple reply's header; a successful READ's data follows it.
pub fn put_simple_reply(out: &mut impl Sink, cookie: Cookie, result: Result<(), NbdError>) {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&result.err().map_or(0, |error| error as u32).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.0.to_be_bytes());
    out.put(&bytes);
}

fn put_chunk_header(out: &mut impl Sink, cookie: Cookie, kind: u16, done: bool, length: u32) {
    let mut bytes = [0; CHUNK_HEADER_BYTES];
    bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&(if done { CHUNK_DONE } else { 0 }).to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.0.to_be_bytes());
    bytes[16..].copy_from_slice(&length.to_be_bytes());
    out.put(&bytes);
}

/// Appends the header of an OFFSET_DATA chunk; `length` bytes of data follow it.
pub fn put_data_chunk_header(out: &mut impl Sink, cookie: Cookie, done: bool, offset: u64, length: u32) {
    put_chunk_header(out, cookie, chunk::OFFSET_DATA, done, length + 8);
    out.put(&offset.to_be_bytes());
}

/// Appends an ERROR chunk, or an ERROR_OFFSET chunk when an offset is given. `message` is for people.
pub fn put_error_chunk(
    out: &mut impl Sink,
    cookie: Cookie,
    done: bool,
    error: NbdError,
    message: &str,
    offset: Option<u64>,
) {
    let kind = if offset.is_some() { chunk::ERROR_OFFSET } else { chunk::ERROR };
    let length = error_chunk_bytes(message, offset.is_some()) - CHUNK_HEADER_BYTES;
    put_chunk_header(out, cookie, kind, done, length as u32);
    out.put(&(error as u32).to_be_bytes());
    out.put(&(message.len() as u16).to_be_bytes());
    out.put(message.as_bytes());
    offset.iter().for_each(|offset| out.put(&offset.to_be_bytes()));
}

/// Bytes of an error chunk with its header.
pub const fn error_chunk_bytes(message: &str, with_offset: bool) -> usize {
    CHUNK_HEADER_BYTES + 6 + message.len() + if with_offset { 8 } else { 0 }
}

/// Appends the header of a BLOCK_STATUS chunk; `extents` pairs of length and flags follow it.
pub fn put_block_status_header(out: &mut impl Sink, cookie: Cookie, done: bool, context: u32, extents: u32) {
    put_chunk_header(out, cookie, chunk::BLOCK_STATUS, done, 4 + 8 * extents);
    out.put(&context.to_be_bytes());
}

/// Appends one extent of a BLOCK_STATUS chunk.
pub fn put_extent(out: &mut impl Sink, length: u32, state: u32) {
    out.put(&length.to_be_bytes());
    out.put(&state.to_be_bytes());
}

/// The beginning of a reply, as a client reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// The data of a successful READ follows, as long as was asked for.
    Simple {
        cookie: Cookie,
        error: Option<NbdError>,
    },
    Chunk {
        cookie: Cookie,
        kind: u16,
        done: bool,
        length: u32,
    },
}

impl ReplyHeader {
    /// The header at the start of `bytes` and its length; `None` when more bytes are needed to tell.
    pub fn parse(bytes: &[u8]) -> Result<Option<(ReplyHeader, usize)>, Malformed> {
        if bytes.len() < 4 {
            return Ok(None);
        }
        match u32_at(bytes, 0) {
            SIMPLE_REPLY_MAGIC if bytes.len() < SIMPLE_REPLY_BYTES => Ok(None),
            SIMPLE_REPLY_MAGIC => {
                let (error, cookie) = (NbdError::from_wire(u32_at(bytes, 4)), Cookie(u64_at(bytes, 8)));
                Ok(Some((ReplyHeader::Simple { cookie, error }, SIMPLE_REPLY_BYTES)))
            }
            CHUNK_MAGIC if bytes.len() < CHUNK_HEADER_BYTES => Ok(None),
            CHUNK_MAGIC => {
                let header = ReplyHeader::Chunk {
                    cookie: Cookie(u64_at(bytes, 8)),
                    kind: u16_at(bytes, 6),
                    done: u16_at(bytes, 4) & CHUNK_DONE != 0,
                    length: u32_at(bytes, 16),
                };
                Ok(Some((header, CHUNK_HEADER_BYTES)))
            }
            magic => Err(Malformed::ReplyMagic(magic)),
        }
    }
}

/// A small chunk's payload: everything but data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkBody {
    None,
    Hole { offset: u64, length: u32 },
    BlockStatus { context: u32, extents: Vec<(u32, u32)> },
    Error { error: NbdError, message: String },
}

impl ChunkBody {
    /// Takes the whole payload of a chunk of `kind` apart. `kind` is not OFFSET_DATA.
    pub fn parse(kind: u16, payload: &[u8]) -> Result<ChunkBody, Malformed> {
        let wrong = Malformed::ReplyLength { kind: u32::from(kind), length: payload.len() as u32 };
        match (kind, payload.len()) {
            (chunk::NONE, 0) => Ok(ChunkBody::None),
            (chunk::OFFSET_HOLE, 12) => {
                Ok(ChunkBody::Hole { offset: u64_at(payload, 0), length: u32_at(payload, 8) })
            }
            (chunk::BLOCK_STATUS, length) if length >= 12 && (length - 4) % 8 == 0 => {
                let extents = payload[4..].chunks_exact(8).map(|at| (u32_at(at, 0), u32_at(at, 4))).collect();
                Ok(ChunkBody::BlockStatus { context: u32_at(payload, 0), extents })
            }
            (kind, length) if kind >> 15 == 1 && length >= 6 => {
                let error = NbdError::from_wire(u32_at(payload, 0)).unwrap_or(NbdError::Inval);
                let message = usize::from(u16_at(payload, 4));
                if message > length - 6 || message > STRING_BYTES_MAX {
                    return Err(wrong);
                }
                let message = String::from_utf8_lossy(&payload[6..6 + message]).into_owned();
                Ok(ChunkBody::Error { error, message })
            }
            _ => Err(wrong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_laid_out_as_the_protocol_says() {
        let request = Request {
            flags: command_flag::FUA,
            command: command::WRITE,
            cookie: Cookie(0x0102_0304_0506_0708),
            offset: 0x1112_1314_1516_1718,
            length: 0x2122_2324,
        };
        let expected = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16,
            0x17, 0x18, 0x21, 0x22, 0x23, 0x24,
        ];
        assert_eq!(request.encode(), expected);
        assert_eq!(Request::parse(&expected), Ok(request));
    }

    #[test]
    fn replies_are_read_back_and_wait_for_their_whole_header() {
        let mut out = Vec::new();
        put_simple_reply(&mut out, Cookie(7), Err(NbdError::NoSpc));
        let simple = ReplyHeader::Simple { cookie: Cookie(7), error: Some(NbdError::NoSpc) };
        assert_eq!(ReplyHeader::parse(&out), Ok(Some((simple, 16))));
        out.clear();
        put_error_chunk(&mut out, Cookie(9), true, NbdError::Io, "a disk failed", Some(4096));
        assert_eq!(out.len(), error_chunk_bytes("a disk failed", true));
        for length in 0..CHUNK_HEADER_BYTES {
            assert_eq!(ReplyHeader::parse(&out[..length]), Ok(None));
        }
        let length = (out.len() - CHUNK_HEADER_BYTES) as u32;
        let header = ReplyHeader::Chunk { cookie: Cookie(9), kind: chunk::ERROR_OFFSET, done: true, length };
        assert_eq!(ReplyHeader::parse(&out), Ok(Some((header, CHUNK_HEADER_BYTES))));
        let body = ChunkBody::Error { error: NbdError::Io, message: "a disk failed".into() };
        assert_eq!(ChunkBody::parse(chunk::ERROR_OFFSET, &out[CHUNK_HEADER_BYTES..]), Ok(body));
    }

    #[test]
    fn block_status_is_read_back() {
        let mut out = Vec::new();
        put_block_status_header(&mut out, Cookie(1), true, 5, 2);
        put_extent(&mut out, 4096, 0);
        put_extent(&mut out, 8192, STATE_HOLE | STATE_ZERO);
        let body = ChunkBody::BlockStatus { context: 5, extents: vec![(4096, 0), (8192, 3)] };
        assert_eq!(ChunkBody::parse(chunk::BLOCK_STATUS, &out[CHUNK_HEADER_BYTES..]), Ok(body));
    }

    #[test]
    fn an_error_message_longer_than_its_chunk_is_refused() {
        let payload = [0, 0, 0, 5, 0, 9, b'x'];
        assert!(ChunkBody::parse(chunk::ERROR, &payload).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_replies_never_panic(kind: u16, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = ReplyHeader::parse(&bytes);
            if kind != chunk::OFFSET_DATA {
                let _ = ChunkBody::parse(kind, &bytes);
            }
        }
    }
}
