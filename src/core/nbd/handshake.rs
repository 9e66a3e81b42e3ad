//! The option phase of a session: which export, which replies, which metadata.

use super::{Catalog, Exported};
use crate::base::{NAME_BYTES_MAX, VOLUMES_MAX};
use crate::format::nbd::*;
use crate::format::snapshot::SnapshotRecord;

/// Metadata context id of `base:allocation`, the only one.
pub(super) const ALLOCATION_CONTEXT: u32 = 1;

/// Snapshots that LIST names, the newest of each volume first; others can be asked for all the same.
const LISTED_SNAPSHOTS_MAX: usize = 32;

/// Bytes that the replies to one option take at most: a LIST is the longest, and INFO with all its kinds the longest of
/// the others.
pub(super) const OPTION_REPLY_BYTES_MAX: usize = (VOLUMES_MAX + 1)
    * (OPTION_REPLY_HEADER_BYTES + 4 + NAME_BYTES_MAX)
    + LISTED_SNAPSHOTS_MAX * (OPTION_REPLY_HEADER_BYTES + 4 + SNAPSHOT_EXPORT_BYTES_MAX)
    + 512;

/// Bytes of `volume@snapshot`.
const SNAPSHOT_EXPORT_BYTES_MAX: usize = 2 * NAME_BYTES_MAX + 1;

/// Options one client may send: enough for any client's haggling over every volume, few enough to end.
pub(super) const OPTIONS_MAX: u32 = 1024;

/// Bytes of an option that is too big to be read which are skipped to answer it; beyond, the client is dropped.
pub(super) const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;

/// What was negotiated so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Negotiated {
    pub structured: bool,
    /// The export whose `base:allocation` was selected.
    pub context: Option<Exported>,
}

/// What follows an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Haggle,
    /// On to the transmission phase. `aligned`: the client was told the block sizes and is held to them.
    Enter {
        export: Exported,
        aligned: bool,
    },
    Abort,
    /// EXPORT_NAME named nothing, and has no error reply.
    UnknownExport,
}

fn transmission_flags(export: &Exported, structured: bool) -> u16 {
    use flags::*;
    let always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    let writing = if export.read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO };
    always | writing | if structured { SEND_DF } else { 0 }
}

fn list_snapshots(catalog: Catalog<'_>, out: &mut impl Sink) {
    let of = |record: &SnapshotRecord| {
        let record = *record;
        catalog.volumes.iter().filter(move |export| record.volumes.contains(export.volume))
    };
    let newest_first = catalog.snapshots.iter().rev().flat_map(|record| of(record).map(move |v| (record, v)));
    for (record, export) in newest_first.take(LISTED_SNAPSHOTS_MAX) {
        let mut name = [0; SNAPSHOT_EXPORT_BYTES_MAX];
        let parts = [export.name.as_bytes(), b"@", record.name.as_bytes()];
        let length = parts.iter().fold(0, |at, part| {
            name[at..at + part.len()].copy_from_slice(part);
            at + part.len()
        });
        put_server(out, &name[..length]);
    }
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
    catalog: Catalog<'_>,
    client: ClientFlags,
    (option, data): (u32, &[u8]),
    out: &mut impl Sink,
) -> Outcome {
    let request = match OptionRequest::parse(option, data) {
        Ok(request) => request,
        Err(why) => return refuse(out, option, OptionReply::Invalid, why),
    };
    match request {
        OptionRequest::ExportName(name) => match catalog.find(name) {
            None => Outcome::UnknownExport,
            Some((export, _)) => {
                let flags = transmission_flags(&export, negotiated.structured);
                put_export_name_answer(out, export.bytes(), flags, client);
                Outcome::Enter { export, aligned: false }
            }
        },
        OptionRequest::Abort => {
            acknowledge(out, option);
            Outcome::Abort
        }
        OptionRequest::List => {
            catalog.volumes.iter().for_each(|export| put_server(out, export.name.as_bytes()));
            list_snapshots(catalog, out);
            acknowledge(out, option)
        }
        OptionRequest::StartTls => refuse(
            out,
            option,
            OptionReply::Unsupported,
            "TLS is not offered; use the Unix socket or a tunnel",
        ),
        OptionRequest::Info { go, name, block_size, canonical_name } => {
            let Some((export, listed)) = catalog.find(name) else { return unknown_export(out, option) };
            let flags = transmission_flags(&export, negotiated.structured);
            put_info_export(out, option, export.bytes(), flags);
            if canonical_name {
                put_info_name(out, option, listed);
            }
            if block_size {
                put_info_block_size(out, option, BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, REQUEST_BYTES_MAX);
            }
            acknowledge(out, option);
            if go { Outcome::Enter { export, aligned: block_size } } else { Outcome::Haggle }
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
            if catalog.find(name).is_none() {
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
            let Some((export, _)) = catalog.find(name) else { return unknown_export(out, option) };
            if queries.iter().any(|query| query == BASE_ALLOCATION) {
                negotiated.context = Some(export);
                put_meta_context(out, option, ALLOCATION_CONTEXT, BASE_ALLOCATION);
            }
            acknowledge(out, option)
        }
        OptionRequest::Unknown(_) => {
            refuse(out, option, OptionReply::Unsupported, "this option is not supported")
        }
    }
}
