//! The handshake: greeting, client flags, options and their replies.

use super::{Malformed, OPTION_BYTES_MAX, STRING_BYTES_MAX, Sink, u16_at, u32_at, u64_at};

const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Handshake flag and client flag: options other than EXPORT_NAME are understood.
pub const FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag and client flag: no 124 zero bytes after the answer to EXPORT_NAME.
pub const NO_ZEROES: u16 = 1 << 1;

/// Transmission flags (proto.md, "Transmission flags").
pub mod flags {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Option codes.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Information types of INFO and GO.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// The kind of an option reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OptionReply {
    Ack = 1,
    Server = 2,
    Info = 3,
    MetaContext = 4,
    Unsupported = 1 << 31 | 1,
    Policy = 1 << 31 | 2,
    Invalid = 1 << 31 | 3,
    Unknown = 1 << 31 | 6,
    Shutdown = 1 << 31 | 7,
    TooBig = 1 << 31 | 9,
}

/// The metadata context that every export has: which ranges are known to read as zeros.
pub const BASE_ALLOCATION: &[u8] = b"base:allocation";

/// What begins the name of a metadata context of this server's own; a snapshot's name follows. It tells which ranges were changed
/// since that snapshot.
pub const DIFF_CONTEXT: &[u8] = b"lockstep:diff:";

pub const GREETING_BYTES: usize = 18;
pub const CLIENT_FLAGS_BYTES: usize = 4;
pub const OPTION_HEADER_BYTES: usize = 16;
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;

/// The server's first words.
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    bytes
}

/// The handshake flags of a server's greeting.
pub fn parse_greeting(bytes: &[u8; GREETING_BYTES]) -> Result<u16, Malformed> {
    for (at, magic) in [(0, GREETING_MAGIC), (8, OPTION_MAGIC)] {
        if u64_at(bytes, at) != magic {
            return Err(Malformed::Greeting(u64_at(bytes, at)));
        }
    }
    Ok(u16_at(bytes, 16))
}

/// What the client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFlags {
    pub fixed_newstyle: bool,
    pub no_zeroes: bool,
}

impl ClientFlags {
    pub fn parse(bytes: &[u8; CLIENT_FLAGS_BYTES]) -> Result<ClientFlags, Malformed> {
        let flags = u32_at(bytes, 0);
        if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Err(Malformed::ClientFlags(flags));
        }
        Ok(ClientFlags {
            fixed_newstyle: flags & u32::from(FIXED_NEWSTYLE) != 0,
            no_zeroes: flags & u32::from(NO_ZEROES) != 0,
        })
    }

    pub fn encode(self) -> [u8; CLIENT_FLAGS_BYTES] {
        let fixed = u32::from(FIXED_NEWSTYLE) * u32::from(self.fixed_newstyle);
        let zeroes = u32::from(NO_ZEROES) * u32::from(self.no_zeroes);
        (fixed | zeroes).to_be_bytes()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    pub option: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    pub fn parse(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<OptionHeader, Malformed> {
        if u64_at(bytes, 0) != OPTION_MAGIC {
            return Err(Malformed::OptionMagic(u64_at(bytes, 0)));
        }
        Ok(OptionHeader { option: u32_at(bytes, 8), length: u32_at(bytes, 12) })
    }

    pub fn encode(self) -> [u8; OPTION_HEADER_BYTES] {
        let mut bytes = [0; OPTION_HEADER_BYTES];
        bytes[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.to_be_bytes());
        bytes[12..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// An option with its data taken apart. Names are whatever bytes the client sent; they are only ever compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionRequest<'a> {
    ExportName(&'a [u8]),
    Abort,
    List,
    StartTls,
    /// INFO, or GO when `go`.
    Info {
        go: bool,
        name: &'a [u8],
        block_size: bool,
        canonical_name: bool,
    },
    StructuredReply,
    ListMetaContext {
        name: &'a [u8],
        queries: Queries<'a>,
    },
    SetMetaContext {
        name: &'a [u8],
        queries: Queries<'a>,
    },
    Unknown(u32),
}

/// The queries of a metadata context option, already checked to be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queries<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> Queries<'a> {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = Fields(self.bytes);
        (0..self.count).map_while(move |_| rest.string().ok())
    }
}

/// Why an option is refused with `NBD_REP_ERR_INVALID`; the text goes to the client.
pub type InvalidOption = &'static str;

/// A cursor over option data.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], InvalidOption> {
        let (head, rest) =
            self.0.split_at_checked(length).ok_or("the option's data is shorter than it says")?;
        self.0 = rest;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, InvalidOption> {
        Ok(u16_at(self.take(2)?, 0))
    }

    fn u32(&mut self) -> Result<u32, InvalidOption> {
        Ok(u32_at(self.take(4)?, 0))
    }

    fn string(&mut self) -> Result<&'a [u8], InvalidOption> {
        let length = self.u32()? as usize;
        if length > STRING_BYTES_MAX {
            return Err("a string is longer than 4096 bytes");
        }
        self.take(length)
    }

    fn end(&self) -> Result<(), InvalidOption> {
        if self.0.is_empty() { Ok(()) } else { Err("the option's data is longer than its fields") }
    }
}

impl<'a> OptionRequest<'a> {
    /// Takes the data of `option` apart.
    pub fn parse(option: u32, data: &'a [u8]) -> Result<OptionRequest<'a>, InvalidOption> {
        assert!(data.len() <= OPTION_BYTES_MAX, "{} bytes of option data were read whole", data.len());
        let mut fields = Fields(data);
        let request = match option {
            option::EXPORT_NAME => OptionRequest::ExportName(fields.take(data.len())?),
            // The protocol lets a client say anything with these two; what it says is not read.
            option::ABORT => return Ok(OptionRequest::Abort),
            option::LIST => OptionRequest::List,
            option::STARTTLS => OptionRequest::StartTls,
            option::INFO | option::GO => {
                let name = fields.string()?;
                let (mut block_size, mut canonical_name) = (false, false);
                for _ in 0..fields.u16()? {
                    match fields.u16()? {
                        info::BLOCK_SIZE => block_size = true,
                        info::NAME => canonical_name = true,
                        _ => {}
                    }
                }
                OptionRequest::Info { go: option == option::GO, name, block_size, canonical_name }
            }
            option::STRUCTURED_REPLY => OptionRequest::StructuredReply,
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                let name = fields.string()?;
                let count = fields.u32()?;
                let queries = Queries { count, bytes: fields.0 };
                for _ in 0..count {
                    fields.string()?;
                }
                if option == option::SET_META_CONTEXT {
                    OptionRequest::SetMetaContext { name, queries }
                } else {
                    OptionRequest::ListMetaContext { name, queries }
                }
            }
            unknown => return Ok(OptionRequest::Unknown(unknown)),
        };
        fields.end()?;
        Ok(request)
    }
}

/// Appends an option reply whose data is `parts`, one after the other.
pub fn put_option_reply(out: &mut impl Sink, option: u32, reply: OptionReply, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.put(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.put(&option.to_be_bytes());
    out.put(&(reply as u32).to_be_bytes());
    out.put(&u32::try_from(length).expect("option replies are short").to_be_bytes());
    for part in parts {
        out.put(part);
    }
}

/// Appends one `NBD_REP_SERVER` of a LIST.
pub fn put_server(out: &mut impl Sink, name: &[u8]) {
    let length = (name.len() as u32).to_be_bytes();
    put_option_reply(out, option::LIST, OptionReply::Server, &[&length, name]);
}

/// Appends `NBD_INFO_EXPORT`: size in bytes and transmission flags.
pub fn put_info_export(out: &mut impl Sink, option: u32, size: u64, flags: u16) {
    let parts: [&[u8]; 3] = [&info::EXPORT.to_be_bytes(), &size.to_be_bytes(), &flags.to_be_bytes()];
    put_option_reply(out, option, OptionReply::Info, &parts);
}

/// Appends `NBD_INFO_NAME`.
pub fn put_info_name(out: &mut impl Sink, option: u32, name: &[u8]) {
    put_option_reply(out, option, OptionReply::Info, &[&info::NAME.to_be_bytes(), name]);
}

/// Appends `NBD_INFO_BLOCK_SIZE`.
pub fn put_info_block_size(out: &mut impl Sink, option: u32, min: u32, preferred: u32, max: u32) {
    let parts: [&[u8]; 4] =
        [&info::BLOCK_SIZE.to_be_bytes(), &min.to_be_bytes(), &preferred.to_be_bytes(), &max.to_be_bytes()];
    put_option_reply(out, option, OptionReply::Info, &parts);
}

/// Appends one `NBD_REP_META_CONTEXT`.
pub fn put_meta_context(out: &mut impl Sink, option: u32, id: u32, name: &[u8]) {
    put_option_reply(out, option, OptionReply::MetaContext, &[&id.to_be_bytes(), name]);
}

/// Appends the answer to EXPORT_NAME, the one option that is answered without a reply header.
pub fn put_export_name_answer(out: &mut impl Sink, size: u64, flags: u16, client: ClientFlags) {
    out.put(&size.to_be_bytes());
    out.put(&flags.to_be_bytes());
    if !client.no_zeroes {
        out.put(&[0; 124]);
    }
}

/// The header of an option reply, as a client reads it. `kind` is as sent; see [`OptionReply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    pub option: u32,
    pub kind: u32,
    pub length: u32,
}

impl OptionReplyHeader {
    pub fn parse(bytes: &[u8; OPTION_REPLY_HEADER_BYTES]) -> Result<OptionReplyHeader, Malformed> {
        if u64_at(bytes, 0) != OPTION_REPLY_MAGIC {
            return Err(Malformed::OptionReplyMagic(u64_at(bytes, 0)));
        }
        Ok(OptionReplyHeader { option: u32_at(bytes, 8), kind: u32_at(bytes, 12), length: u32_at(bytes, 16) })
    }

    pub fn is_error(&self) -> bool {
        self.kind >> 31 == 1
    }
}

/// The data of an INFO or GO option.
pub fn info_request(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut data = Vec::with_capacity(6 + name.len() + 2 * infos.len());
    data.extend_from_slice(&(name.len() as u32).to_be_bytes());
    data.extend_from_slice(name);
    data.extend_from_slice(&(infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| data.extend_from_slice(&info.to_be_bytes()));
    data
}

/// The data of a LIST_META_CONTEXT or SET_META_CONTEXT option.
pub fn meta_context_request(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut string = |bytes: &[u8], before: Option<u32>| {
        before.iter().for_each(|count| data.extend_from_slice(&count.to_be_bytes()));
        data.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        data.extend_from_slice(bytes);
    };
    string(name, None);
    for (index, query) in queries.iter().enumerate() {
        string(query, (index == 0).then_some(queries.len() as u32));
    }
    if queries.is_empty() {
        data.extend_from_slice(&0u32.to_be_bytes());
    }
    data
}

/// One item of information a server gave about an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Info {
    Export { size: u64, flags: u16 },
    BlockSize { min: u32, preferred: u32, max: u32 },
    Other(u16),
}

impl Info {
    pub fn parse(data: &[u8]) -> Result<Info, Malformed> {
        let wrong = |kind: u32| Malformed::ReplyLength { kind, length: data.len() as u32 };
        if data.len() < 2 {
            return Err(wrong(OptionReply::Info as u32));
        }
        match (u16_at(data, 0), data.len()) {
            (info::EXPORT, 12) => Ok(Info::Export { size: u64_at(data, 2), flags: u16_at(data, 10) }),
            (info::BLOCK_SIZE, 14) => Ok(Info::BlockSize {
                min: u32_at(data, 2),
                preferred: u32_at(data, 6),
                max: u32_at(data, 10),
            }),
            (info::EXPORT | info::BLOCK_SIZE, _) => Err(wrong(OptionReply::Info as u32)),
            (other, _) => Ok(Info::Other(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_greeting_is_the_protocols() {
        assert_eq!(&greeting(), b"NBDMAGICIHAVEOPT\0\x03");
        assert_eq!(parse_greeting(&greeting()), Ok(FIXED_NEWSTYLE | NO_ZEROES));
        assert!(parse_greeting(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\x03").is_err(), "oldstyle");
    }

    /// Both ends of our tests share the constants, so these stand apart, as other implementations have them.
    #[test]
    fn numbers_are_the_protocols() {
        use super::{flags::*, option::*};
        assert_eq!([EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO], [1, 2, 3, 5, 6, 7]);
        assert_eq!([STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT], [8, 9, 10]);
        let all = HAS_FLAGS | READ_ONLY | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | SEND_DF;
        assert_eq!((all, CAN_MULTI_CONN, SEND_CACHE, SEND_FAST_ZERO), (0xef, 0x100, 0x400, 0x800));
        assert_eq!(OptionReply::Unknown as u32, 0x8000_0006);
        assert_eq!(OptionReply::TooBig as u32, 0x8000_0009);
        let mut out = Vec::new();
        put_option_reply(&mut out, GO, OptionReply::Unsupported, &[b"no"]);
        assert_eq!(out, b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\x80\0\0\x01\0\0\0\x02no");
    }

    #[test]
    fn client_flags_that_were_not_offered_are_refused() {
        assert_eq!(ClientFlags::parse(&[0, 0, 0, 4]), Err(Malformed::ClientFlags(4)));
        let both = ClientFlags { fixed_newstyle: true, no_zeroes: true };
        assert_eq!(ClientFlags::parse(&both.encode()), Ok(both));
    }

    #[test]
    fn go_data_is_taken_apart_and_padding_refused() {
        let mut data = info_request(b"disk", &[info::EXPORT, info::BLOCK_SIZE]);
        let expected =
            OptionRequest::Info { go: true, name: b"disk", block_size: true, canonical_name: false };
        assert_eq!(OptionRequest::parse(option::GO, &data), Ok(expected));
        for length in 0..data.len() {
            assert!(OptionRequest::parse(option::GO, &data[..length]).is_err(), "cut at {length}");
        }
        data.push(0);
        assert!(OptionRequest::parse(option::GO, &data).is_err());
    }

    #[test]
    fn meta_context_queries_come_back() {
        for queries in [&[][..], &[b"base:allocation".as_slice()], &[b"a:".as_slice(), b"", b"b:c"]] {
            let data = meta_context_request(b"disk", queries);
            match OptionRequest::parse(option::SET_META_CONTEXT, &data) {
                Ok(OptionRequest::SetMetaContext { name, queries: parsed }) => {
                    assert_eq!(name, b"disk");
                    assert_eq!(parsed.iter().collect::<Vec<_>>(), queries);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_query_count_beyond_the_data_is_refused() {
        let mut data = meta_context_request(b"", &[]);
        let at = data.len() - 4;
        data[at..].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(OptionRequest::parse(option::LIST_META_CONTEXT, &data).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_option_data_never_panics(option in 0u32..20, data in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = OptionRequest::parse(option, &data);
            let _ = Info::parse(&data);
        }
    }
}
