//! The NBD protocol (`doc/proto.md` of the reference implementation): fixed newstyle handshake, simple and structured
//! replies. Both directions of each message, since the target, its load generator and the tests share them.
//! Everything on the wire is big-endian.

pub mod handshake;
pub mod transmission;

pub use handshake::*;
pub use transmission::*;

/// Longest READ, WRITE, CACHE request served, in bytes; advertised as the maximum block size (the protocol's default).
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// Advertised minimum block size: offsets and lengths are multiples of it.
pub const BLOCK_SIZE_MIN: u32 = 512;

/// Advertised preferred block size: the grain of cache, journal and volume.
pub const BLOCK_SIZE_PREFERRED: u32 = 4096;

/// Longest export name or other string the protocol allows, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;

/// Longest option data read whole (a name of the longest kind with its queries); longer options are refused as too big.
pub const OPTION_BYTES_MAX: usize = 2 * STRING_BYTES_MAX;

/// The errors that may travel in a reply (proto.md, "Error values").
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
pub enum NbdError {
    #[error("operation not permitted")]
    Perm = 1,
    #[error("input/output error")]
    Io = 5,
    #[error("cannot allocate memory")]
    NoMem = 12,
    #[error("invalid argument")]
    Inval = 22,
    #[error("no space left on device")]
    NoSpc = 28,
    #[error("value too large")]
    Overflow = 75,
    #[error("operation not supported")]
    NotSup = 95,
    #[error("server is shutting down")]
    Shutdown = 108,
}

impl NbdError {
    /// The error a reply's field names; an unknown value counts as `Inval`, as the protocol asks of clients.
    pub fn from_wire(value: u32) -> Option<NbdError> {
        Some(match value {
            0 => return None,
            1 => NbdError::Perm,
            5 => NbdError::Io,
            12 => NbdError::NoMem,
            28 => NbdError::NoSpc,
            75 => NbdError::Overflow,
            95 => NbdError::NotSup,
            108 => NbdError::Shutdown,
            _ => NbdError::Inval,
        })
    }
}

/// A message that breaks the protocol so that what follows it cannot be understood: the connection is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("client flags {0:#x} include some that were not offered")]
    ClientFlags(u32),
    #[error("magic {0:#x} does not begin an NBD option")]
    OptionMagic(u64),
    #[error("magic {0:#x} does not begin an NBD request")]
    RequestMagic(u32),
    #[error("magic {0:#x} does not begin an NBD reply")]
    ReplyMagic(u32),
    #[error("magic {0:#x} does not begin an NBD option reply")]
    OptionReplyMagic(u64),
    #[error("magic {0:#x} is not an NBD server's greeting")]
    Greeting(u64),
    #[error("a {what} of {length} bytes is beyond what is read or skipped")]
    Oversize { what: &'static str, length: u64 },
    #[error("a reply of kind {kind} has {length} bytes, which that kind cannot have")]
    ReplyLength { kind: u32, length: u32 },
}

/// Where encoded messages are put, one after the other.
pub trait Sink {
    /// Appends the bytes. A sink of fixed capacity panics when they do not fit: whoever encodes has asked for room.
    fn put(&mut self, bytes: &[u8]);

    /// Bytes put and not yet taken away.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn len(&self) -> usize {
        Vec::len(self)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}
