//! The client's side of the handshake, over a stream that still blocks.

use std::io::{self, Read, Write};

use super::stream::Stream;
use super::{ClientError, ClientOptions, HANDSHAKE_MAX};
use crate::format::nbd::*;

/// Longest option reply read: a name of the longest kind with its description.
const REPLY_BYTES_MAX: u32 = 2 * STRING_BYTES_MAX as u32 + 64;

/// What the server agreed to.
pub(super) struct Entered {
    pub size: u64,
    pub flags: u16,
    pub structured: bool,
}

struct Reply {
    kind: u32,
    is_error: bool,
    data: Vec<u8>,
}

fn failed(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Timeout(HANDSHAKE_MAX),
        io::ErrorKind::UnexpectedEof => ClientError::Closed(0),
        _ => error.into(),
    }
}

fn receive<const N: usize>(stream: &mut Stream) -> Result<[u8; N], ClientError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn begin(stream: &mut Stream) -> Result<(), ClientError> {
    stream.set_timeout(HANDSHAKE_MAX)?;
    let offered = parse_greeting(&receive(stream)?)?;
    if offered & FIXED_NEWSTYLE == 0 {
        return Err(ClientError::Unexpected("it does not speak fixed newstyle"));
    }
    let flags = ClientFlags { fixed_newstyle: true, no_zeroes: offered & NO_ZEROES != 0 };
    stream.write_all(&flags.encode()).map_err(failed)
}

fn ask(stream: &mut Stream, option: u32, data: &[u8]) -> Result<(), ClientError> {
    let mut message = OptionHeader { option, length: data.len() as u32 }.encode().to_vec();
    message.extend_from_slice(data);
    stream.write_all(&message).map_err(failed)
}

fn reply(stream: &mut Stream, option: u32) -> Result<Reply, ClientError> {
    let header = OptionReplyHeader::parse(&receive(stream)?)?;
    if header.option != option {
        return Err(ClientError::Unexpected("it replied to another option"));
    }
    if header.length > REPLY_BYTES_MAX {
        return Err(Malformed::ReplyLength { kind: header.kind, length: header.length }.into());
    }
    let mut data = vec![0; header.length as usize];
    stream.read_exact(&mut data).map_err(failed)?;
    Ok(Reply { kind: header.kind, is_error: header.is_error(), data })
}

/// Every reply to an option, up to and with the last.
fn replies(stream: &mut Stream, option: u32) -> Result<Vec<Reply>, ClientError> {
    let mut replies = Vec::new();
    loop {
        let reply = reply(stream, option)?;
        let last = reply.is_error || reply.kind == OptionReply::Ack as u32;
        replies.push(reply);
        if last {
            return Ok(replies);
        }
    }
}

fn refused(export: &str, reply: &Reply) -> ClientError {
    let message = match String::from_utf8_lossy(&reply.data) {
        text if text.is_empty() => format!("error {:#x}", reply.kind),
        text => text.into_owned(),
    };
    ClientError::Refused { export: export.into(), message }
}

pub(super) fn enter(
    stream: &mut Stream,
    export: &str,
    options: ClientOptions,
    context: Option<&[u8]>,
) -> Result<Entered, ClientError> {
    begin(stream)?;
    let mut structured = false;
    if options.structured_replies {
        ask(stream, option::STRUCTURED_REPLY, &[])?;
        structured = !replies(stream, option::STRUCTURED_REPLY)?.iter().any(|reply| reply.is_error);
    }
    if let Some(context) = context
        && structured
    {
        let data = meta_context_request(export.as_bytes(), &[context]);
        ask(stream, option::SET_META_CONTEXT, &data)?;
        let replies = replies(stream, option::SET_META_CONTEXT)?;
        if let Some(reply) = replies.iter().find(|reply| reply.is_error) {
            return Err(refused(export, reply));
        }
        if !replies.iter().any(|reply| reply.kind == OptionReply::MetaContext as u32) {
            return Err(ClientError::NoContext(String::from_utf8_lossy(context).into_owned()));
        }
    }
    let infos: &[u16] = if options.block_sizes { &[info::BLOCK_SIZE] } else { &[] };
    ask(stream, option::GO, &info_request(export.as_bytes(), infos))?;
    let mut entered = None;
    for reply in replies(stream, option::GO)? {
        if reply.is_error {
            return Err(refused(export, &reply));
        }
        if reply.kind == OptionReply::Info as u32
            && let Info::Export { size, flags } = Info::parse(&reply.data)?
        {
            entered = Some(Entered { size, flags, structured });
        }
    }
    entered.ok_or(ClientError::Unexpected("it did not tell the export's size"))
}

pub(super) fn list(stream: &mut Stream) -> Result<Vec<String>, ClientError> {
    begin(stream)?;
    ask(stream, option::LIST, &[])?;
    let mut names = Vec::new();
    for reply in replies(stream, option::LIST)? {
        if reply.is_error {
            return Err(refused("", &reply));
        }
        if reply.kind == OptionReply::Server as u32 {
            let length = reply.data.first_chunk().map(|length| u32::from_be_bytes(*length) as usize);
            let name = length.and_then(|length| reply.data.get(4..4 + length));
            let name = name.ok_or(ClientError::Unexpected("a listed name is longer than its reply"))?;
            names.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    ask(stream, option::ABORT, &[])?;
    Ok(names)
}
