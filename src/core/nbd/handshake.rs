//! The option phase of a session: which export, which replies, which metadata.

use super::{Catalog, Exported};
use crate::base::{NAME_BYTES_MAX, UpdateNumber, VOLUMES_MAX};
use crate::format::nbd::*;
use crate::format::snapshot::SnapshotRecord;

/// Metadata context ids: of `base:allocation`, and of the one `lockstep:diff:SNAPSHOT` that a client may select.
pub(super) const ALLOCATION_CONTEXT: u32 = 1;
pub(super) const CHANGES_CONTEXT: u32 = 2;

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
    /// The export of which metadata contexts were selected, and which.
    pub contexts: Option<(Exported, Contexts)>,
}

/// Metadata contexts of an export; at least one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contexts {
    pub allocation: bool,
    /// The snapshot since which changes are told.
    pub since: Option<UpdateNumber>,
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

/// Names the contexts that tell changes of an export, as far as they are asked for.
fn list_changes(catalog: Catalog<'_>, export: &Exported, queries: &Queries<'_>, out: &mut impl Sink) {
    let all = |query: &[u8]| query == DIFF_CONTEXT || query == b"lockstep:";
    let everything = queries.is_empty() || queries.iter().any(all);
    let named = |record: &SnapshotRecord| {
        queries.iter().any(|query| query.strip_prefix(DIFF_CONTEXT) == Some(record.name.as_bytes()))
    };
    let wanted = catalog.all_older(export).filter(|record| everything || named(record));
    for record in wanted.take(LISTED_SNAPSHOTS_MAX) {
        put_changes_context(out, option::LIST_META_CONTEXT, 0, record);
    }
}

fn put_changes_context(out: &mut impl Sink, option: u32, id: u32, since: &SnapshotRecord) {
    let mut name = [0; DIFF_CONTEXT.len() + NAME_BYTES_MAX];
    let (prefix, rest) = name.split_at_mut(DIFF_CONTEXT.len());
    prefix.copy_from_slice(DIFF_CONTEXT);
    rest[..since.name.len()].copy_from_slice(since.name.as_bytes());
    put_meta_context(out, option, id, &name[..DIFF_CONTEXT.len() + since.name.len()]);
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
            Some((export, _)) if export.is_one_of(catalog.held) => Outcome::UnknownExport,
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
            if go && export.is_one_of(catalog.held) {
                let why = "the volume is being rolled back; try again when that is over";
                return refuse(out, option, OptionReply::Policy, why);
            }
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
            let Some((export, _)) = catalog.find(name) else { return unknown_export(out, option) };
            // A namespace alone asks for all that is in it.
            let wanted = |query: &[u8]| query == BASE_ALLOCATION || query == b"base:";
            if queries.is_empty() || queries.iter().any(wanted) {
                put_meta_context(out, option, 0, BASE_ALLOCATION);
            }
            list_changes(catalog, &export, &queries, out);
            acknowledge(out, option)
        }
        OptionRequest::SetMetaContext { name, queries } => {
            // Whatever happens now, what was selected before is not any more.
            negotiated.contexts = None;
            let Some((export, _)) = catalog.find(name) else { return unknown_export(out, option) };
            let mut contexts = Contexts::default();
            if queries.iter().any(|query| query == BASE_ALLOCATION) {
                contexts.allocation = true;
                put_meta_context(out, option, ALLOCATION_CONTEXT, BASE_ALLOCATION);
            }
            let older = |query: &[u8]| catalog.older(&export, query.strip_prefix(DIFF_CONTEXT)?);
            if let Some(older) = queries.iter().find_map(older) {
                contexts.since = Some(older.number);
                put_changes_context(out, option, CHANGES_CONTEXT, older);
            }
            negotiated.contexts = (contexts != Contexts::default()).then_some((export, contexts));
            acknowledge(out, option)
        }
        OptionRequest::Unknown(_) => {
            refuse(out, option, OptionReply::Unsupported, "this option is not supported")
        }
    }
}
