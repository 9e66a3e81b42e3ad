//! The option phase of a session: which export, which replies, which metadata.

use super::Export;
use crate::base::{NAME_BYTES_MAX, VOLUMES_MAX};
use crate::format::nbd::*;

/// Metadata context id of `base:allocation`, the only one.
pub(super) const ALLOCATION_CONTEXT: u32 = 1;

/// Bytes that the replies to one option take at most: a LIST of every volume is the longest, and INFO with all its
/// kinds the longest of the others.
pub(super) const OPTION_REPLY_BYTES_MAX: usize =
    (VOLUMES_MAX + 1) * (OPTION_REPLY_HEADER_BYTES + 4 + NAME_BYTES_MAX) + 512;

/// Options one client may send: enough for any client's haggling over every volume, few enough to end.
pub(super) const OPTIONS_MAX: u32 = 1024;

/// Bytes of an option that is too big to be read which are skipped to answer it; beyond, the client is dropped.
pub(super) const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;

/// What was negotiated so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Negotiated {
    pub structured: bool,
    /// The export whose `base:allocation` was selected.
    pub context: Option<usize>,
}

/// What follows an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Haggle,
    /// On to the transmission phase. `aligned`: the client was told the block sizes and is held to them.
    Enter {
        export: usize,
        aligned: bool,
    },
    Abort,
    /// EXPORT_NAME named nothing, and has no error reply.
    UnknownExport,
}

/// The export a name means: the empty one is the only export there is.
fn find(exports: &[Export], name: &[u8]) -> Option<usize> {
    if name.is_empty() && exports.len() == 1 {
        return Some(0);
    }
    exports.iter().position(|export| export.name.as_bytes() == name)
}

fn transmission_flags(export: &Export, structured: bool) -> u16 {
    use flags::*;
    let always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    let writing = if export.read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO };
    always | writing | if structured { SEND_DF } else { 0 }
}

fn refuse(out: &mut impl Sink, option: u32, reply: OptionReply, why: &str) -> Outcome {
    put_option_reply(out, option, reply, &[why.as_bytes()]);
    Outcome::Haggle
}

fn acknowledge(out: &mut impl Sink, option: u32) -> Outcome {
    put_option_reply(out, option, OptionReply::Ack, &[]);
    Outcome::Haggle
}

fn unknown_export(out: &mut impl Sink, option: u32) -> Outcome {
    refuse(out, option, OptionReply::Unknown, "no volume of that name is exported; LIST names those that are")
}

/// The option was not read because its data is too long.
pub(super) fn refuse_too_big(out: &mut impl Sink, option: u32) {
    refuse(out, option, OptionReply::TooBig, "the option's data is longer than 8192 bytes");
}

/// Answers one option. `out` has room for [`OPTION_REPLY_BYTES_MAX`] more bytes.
pub(super) fn answer(
    negotiated: &mut Negotiated,
    exports: &[Export],
    client: ClientFlags,
    (option, data): (u32, &[u8]),
    out: &mut impl Sink,
) -> Outcome {
    let request = match OptionRequest::parse(option, data) {
        Ok(request) => request,
        Err(why) => return refuse(out, option, OptionReply::Invalid, why),
    };
    match request {
        OptionRequest::ExportName(name) => match find(exports, name) {
            None => Outcome::UnknownExport,
            Some(index) => {
                let export = &exports[index];
                let flags = transmission_flags(export, negotiated.structured);
                put_export_name_answer(out, export.bytes(), flags, client);
                Outcome::Enter { export: index, aligned: false }
            }
        },
        OptionRequest::Abort => {
            acknowledge(out, option);
            Outcome::Abort
        }
        OptionRequest::List => {
            exports.iter().for_each(|export| put_server(out, export.name.as_bytes()));
            acknowledge(out, option)
        }
        OptionRequest::StartTls => refuse(
            out,
            option,
            OptionReply::Unsupported,
            "TLS is not offered; use the Unix socket or a tunnel",
        ),
        OptionRequest::Info { go, name, block_size, canonical_name } => {
            let Some(index) = find(exports, name) else { return unknown_export(out, option) };
            let export = &exports[index];
            let flags = transmission_flags(export, negotiated.structured);
            put_info_export(out, option, export.bytes(), flags);
            if canonical_name {
                put_info_name(out, option, export.name.as_bytes());
            }
            if block_size {
                put_info_block_size(out, option, BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, REQUEST_BYTES_MAX);
            }
            acknowledge(out, option);
            if go { Outcome::Enter { export: index, aligned: block_size } } else { Outcome::Haggle }
        }
        OptionRequest::StructuredReply => {
            negotiated.structured = true;
            acknowledge(out, option)
        }
        OptionRequest::ListMetaContext { .. } | OptionRequest::SetMetaContext { .. }
            if !negotiated.structured =>
        {
            refuse(out, option, OptionReply::Invalid, "structured replies come first")
        }
        OptionRequest::ListMetaContext { name, queries } => {
            if find(exports, name).is_none() {
                return unknown_export(out, option);
            }
            // A namespace alone asks for all that is in it.
            let wanted = |query: &[u8]| query == BASE_ALLOCATION || query == b"base:";
            if queries.is_empty() || queries.iter().any(wanted) {
                put_meta_context(out, option, 0, BASE_ALLOCATION);
            }
            acknowledge(out, option)
        }
        OptionRequest::SetMetaContext { name, queries } => {
            // Whatever happens now, what was selected before is not any more.
            negotiated.context = None;
            let Some(index) = find(exports, name) else { return unknown_export(out, option) };
            if queries.iter().any(|query| query == BASE_ALLOCATION) {
                negotiated.context = Some(index);
                put_meta_context(out, option, ALLOCATION_CONTEXT, BASE_ALLOCATION);
            }
            acknowledge(out, option)
        }
        OptionRequest::Unknown(_) => {
            refuse(out, option, OptionReply::Unsupported, "this option is not supported")
        }
    }
}
