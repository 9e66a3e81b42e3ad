//! Wire frames between two sites: a header of 32 bytes, a body that depends on the frame's type, and an update's payload
//! blocks. One crc32c covers header and body; the payload is covered by the update's own sum.

mod blocks;
mod extended;
mod frame_type;
mod handshake;
mod reader;

pub use blocks::{BlockPlace, Extent, Lacking};
pub use frame_type::FrameType;
pub use handshake::{
    HELLO_BYTES_MAX, Hello, HelloVolume, REFUSAL_TEXT_BYTES_MAX, Refusal, RefusalCode, VolumeName,
};
pub use reader::FrameReader;

use std::fmt;

use blocks::{COMPARED_ANSWERS, PLACE_OF, extent_at, flag_at, place_at, put_extent, put_place};
use extended::{extended_at, put_extended};
use frame_type::*;

use crate::base::{
    BLOCK_BYTES, BlockSum, Digest128, Generation, NUMBER_MAX, UPDATE_BLOCKS_MAX, UpdateNumber, VolumeId,
};
use crate::format::bytes::{array_at, nonzero_in, put, u16_at, u32_at, u64_at};
use crate::format::history::HistoryError;
use crate::format::text::TextError;
use crate::format::update::{
    DESCRIPTOR_BYTES, DescriptorError, Update, UpdateKind, decode_descriptor, encode_descriptor,
};

/// Versions of the protocol that this build speaks; `Hello` carries them, and the highest common one is used.
pub const PROTOCOL_MIN: u16 = 17;
pub const PROTOCOL_MAX: u16 = 19;
/// From this version on a third may ask for more than updates: for a copy, and for blocks that have gone bad there.
pub const PROTOCOL_SERVES_THIRDS: u16 = 18;
/// From this version on a site can be asked to show more of a volume.
pub const PROTOCOL_EXTENDS: u16 = 19;

/// The first four bytes of a frame.
pub const FRAME_MAGIC: [u8; 4] = *b"LSTP";
/// The layout of the header itself, which every protocol version shares.
pub const FRAME_VERSION: u8 = 1;

/// Bytes of every frame's header.
pub const FRAME_HEADER_BYTES: usize = 32;
/// Bytes of an update's frame before its payload, without old blocks.
pub const PLAIN_UPDATE_FRAME_BYTES: usize = FRAME_HEADER_BYTES + DESCRIPTOR_BYTES;
/// Bytes of an update's frame before its payload, at most: with what is said of its old blocks.
pub const UPDATE_FRAME_BYTES: usize = FRAME_HEADER_BYTES + WITH_OLD_BLOCKS_BYTES;
/// Blocks that follow an update's frame, at most: new and old content of all that it may capture.
pub const UPDATE_FRAME_BLOCKS_MAX: usize = 2 * UPDATE_BLOCKS_MAX;
/// The longest body: a page's worth, because a handshake frame travels inside the process as a page.
pub const FRAME_BODY_BYTES_MAX: usize = BLOCK_BYTES;
/// Bytes of an encoded control frame at most.
pub const CONTROL_FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES + ACK_BYTES;

/// Which place a site has: in its pair, or beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    Primary = 1,
    Secondary = 2,
    /// Outside the synchronous set: it pulls what the two others have settled.
    Third = 3,
}

impl Role {
    pub fn from_code(code: u8) -> Option<Role> {
        [Role::Primary, Role::Secondary, Role::Third].into_iter().find(|role| *role as u8 == code)
    }

    /// As it is written in configurations and shown to operators.
    pub fn name(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Secondary => "secondary",
            Role::Third => "third",
        }
    }
}

/// How far the peer must be before a host's write is acknowledged. Ordered: each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum AckLevel {
    /// In the peer's memory; in the local journal.
    Received = 1,
    /// In both journals, written (they survive the process).
    Journaled = 2,
    /// In both journals, flushed (they survive power loss).
    Durable = 3,
    /// In the secondary's volume, differential and management information (US 7,103,713 to the letter); flushed here.
    Applied = 4,
}

/// As in a configuration.
impl fmt::Display for AckLevel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            AckLevel::Received => "received",
            AckLevel::Journaled => "journaled",
            AckLevel::Durable => "durable",
            AckLevel::Applied => "applied",
        })
    }
}

/// How old blocks that snapshots need come to the secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DifferentialBy {
    /// It is told which ones, and has them: its own block is identical.
    Reference = 1,
    /// They travel with the update that overwrites them.
    Value = 2,
}

/// As in a configuration.
impl fmt::Display for DifferentialBy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            DifferentialBy::Reference => "reference",
            DifferentialBy::Value => "value",
        })
    }
}

/// What an update's frame says of the old blocks behind its payload: the differential data by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldBlocks {
    /// [`crate::base::sum_of_sums`] of those that are sent; 0 if none is.
    pub sum: u32,
    /// Bit n is set if the update's nth block read as zeros before, and is not sent.
    pub zeros: u32,
}

impl OldBlocks {
    /// Which of the update's `count` blocks have their old content in the frame, in order.
    pub fn sent(self, count: u32) -> impl Iterator<Item = usize> {
        (0..count as usize).filter(move |index| self.zeros >> index & 1 == 0)
    }
}

const _: () = assert!(UPDATE_BLOCKS_MAX <= u32::BITS as usize, "each captured block has its bit");

/// A control frame that fits a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Secondary to primary, cumulative: the stream's prefix it has in memory, in its journal, flushed, and applied to
    /// its volumes. `journal_ns` is its own latest journal write, submission to completion; `journal_free_blocks` is what
    /// its journal has room for after `received`, headers included. `heard` is the sequence of the last heartbeat in this
    /// conversation, or 0: the secondary promises not to take over unasked for as long as its hello said (DESIGN section 5).
    Ack {
        received: UpdateNumber,
        journaled: UpdateNumber,
        durable: UpdateNumber,
        applied: UpdateNumber,
        journal_ns: u32,
        journal_free_blocks: u32,
        heard: u64,
    },
    /// Primary to secondary: `settled`, when no update carries it; always answered by an `Ack`, which echoes `sequence`.
    Heartbeat { settled: UpdateNumber, sequence: u64 },
    /// Primary to secondary: flush your journal now; a host waits for `number` to settle.
    FlushRequest { number: UpdateNumber },
    /// Primary to a secondary that is ahead in the same history: send me these, inclusive, as updates.
    Fetch { from: UpdateNumber, to: UpdateNumber },
    /// Primary to secondary: drop every update after `keep`, then continue from there. Answered by an `Ack`.
    CutTo { keep: UpdateNumber },
    /// Either way: send me what you have in this place, if it has this checksum; mine has gone bad.
    BlockWanted { place: BlockPlace, sum: BlockSum },
    /// The answer if it has not, or cannot; otherwise a [`PageFrame::Block`] is.
    BlockLacking { place: BlockPlace, why: Lacking },
    /// Either way, in place of a hello: my snapshot tables are damaged, so send me this page of yours, as [`PageFrame::Tables`], once
    /// they cover `settled`, up to which I have every update durably; page 0 begins anew.
    TablesWanted { settled: UpdateNumber, page: u32 },
    /// Secondary to primary: an administrator here wants this site to be primary; hand over.
    SwitchoverWanted,
    /// The answer of a primary that does not, or gave it up: a code of [`crate::core::messages::AdminError`].
    SwitchoverRefused { code: u8 },
    /// Primary to secondary, or either to a third: you lack more than my journal holds. What follows as updates, `blocks` blocks or more, is for your
    /// staging log, not your stream, until you are told to install it. Generation and serial name the resync. `whole`: these are all
    /// blocks there are, since nobody knows what you lack.
    CopyOffer { generation: Generation, serial: u64, blocks: u64, whole: bool },
    /// The answer, and again later: so many of the updates of this resync are in its log, durably.
    Staged { updates: u64 },
    /// Behind a [`PageFrame::Hello`]: with what is staged your volumes are as mine were at `upto`.
    Install { upto: UpdateNumber },
    /// Secondary that gives way to primary, behind so many [`PageFrame::Marks`]: these are all the blocks that it has changed, and they
    /// are to be copied too.
    MarksEnd { pages: u64 },
    /// Third to a site that it may pull from: I have everything up to `after`, which is of this generation, and everything up to
    /// `durable` durably, so your journal need not keep that for me. Send me what follows `after` and is settled, but nothing beyond
    /// `upto`; 0: I pull from another site, and only tell you where I am.
    Pull { after: UpdateNumber, generation: Generation, durable: UpdateNumber, upto: UpdateNumber },
    /// Primary to secondary: what do these blocks hold as of `at`, which is what this site has settled.
    Compare { at: UpdateNumber, extent: Extent },
    /// The answer: [`crate::base::digest_of_sums`] of them, or of a single one its checksum, and how many were damaged on the disk; nothing if
    /// the secondary had settled more.
    Compared { at: UpdateNumber, answer: Option<(Digest128, u32)> },
    /// The answer if this site's journal begins with `oldest`, and what the third lacks was before that.
    Lapsed { oldest: UpdateNumber },
    /// To a site that is copied all blocks: what do you hold there; answered by [`PageFrame::Digests`].
    DigestsWanted { extent: Extent },
    /// Third to a site that said [`Control::Lapsed`]: so do all others that I can ask, so copy to me what differs. The answer is an offer.
    CopyWanted,
    /// Primary to secondary: reserve what this volume lacks of so many blocks, and show them from here on, as I will.
    Extend { volume: VolumeId, blocks: u64 },
    /// The answer: they are reserved, and your superblock says so durably; or an error number says why not, and nothing is changed.
    Extended { volume: VolumeId, blocks: u64, errno: i32 },
}

/// A control frame too large for a message: its encoded body is in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFrame {
    /// [`Hello`].
    Hello,
    /// [`Refusal`]; the sender closes after it.
    Refusal,
    /// A block that was wanted.
    Block,
    /// A page of [`crate::format::tables`].
    Tables,
    /// Secondary that gives way to primary: a page of its changed-block set, as [`crate::format::metadata::put_marks`] writes them, in
    /// ascending order.
    Marks,
    /// Digests that were wanted: a page of [`crate::format::digests`].
    Digests,
}

/// A header whose magic, version, type and lengths are good; its checksum is compared once the body is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub frame: FrameType,
    /// Bytes of the body that follows.
    pub body_bytes: u16,
    /// Bytes of payload that follow the body, whole blocks; zero but for updates.
    pub payload_bytes: u32,
    /// The sender's settled number; zero but in updates and heartbeats.
    pub settled: UpdateNumber,
    crc: u32,
}

/// A whole frame but for its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Followed by `update.payload_blocks()` blocks, and then by the old blocks that are sent.
    Update {
        update: Update,
        settled: UpdateNumber,
        old: Option<OldBlocks>,
    },
    Control(Control),
    /// The body is for [`Hello::decode`] or [`Refusal::decode`], or is the block, the page of tables or that of marks.
    Page(PageFrame, &'a [u8]),
}

/// Why bytes from a peer are not a frame. The connection cannot go on after any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("frame magic {found:02x?}, expected {FRAME_MAGIC:02x?}")]
    Magic { found: [u8; 4] },
    #[error("frame version {found}, expected {FRAME_VERSION}")]
    Version { found: u8 },
    #[error("frame type {found}, expected one from 1 to {}", FrameType::LAST as u8)]
    Type { found: u8 },
    #[error("{frame:?} frame with a body of {found} bytes, expected {min} to {max}")]
    BodyBytes { frame: FrameType, min: usize, max: usize, found: usize },
    #[error("{frame:?} frame with {found} bytes of payload, expected whole blocks and at most {max} bytes")]
    PayloadBytes { frame: FrameType, max: usize, found: u32 },
    #[error("{update} with {found} bytes of payload, expected {expected}")]
    PayloadOfUpdate { update: UpdateNumber, expected: usize, found: u32 },
    #[error("{frame:?} frame with settled {found}, expected 0")]
    Settled { frame: FrameType, found: UpdateNumber },
    #[error("{frame:?} frame with the number {found}, expected at most {NUMBER_MAX}")]
    Number { frame: FrameType, found: u64 },
    #[error("{frame:?} frame's crc {found:#010x}, expected {expected:#010x}")]
    Crc { frame: FrameType, expected: u32, found: u32 },
    #[error("reserved byte {offset} of a {frame} is {found:#04x}, expected 0")]
    Reserved { frame: &'static str, offset: usize, found: u8 },
    #[error("update frame: {0}")]
    Descriptor(#[from] DescriptorError),
    #[error(
        "update frame with a Cut after {keep}, expected a kind that is sent; a Cut stays in its own journal"
    )]
    CutOnWire { keep: UpdateNumber },
    #[error("frame with old blocks of {update}, which captures none, expected one that does")]
    OldBlocksOfNone { update: UpdateNumber },
    #[error("old blocks of {update} are zeros by {zeros:#010x}, expected no bit from its block {count} on")]
    OldZeros { update: UpdateNumber, zeros: u32, count: u32 },
    #[error("old blocks of {update} have the sum {found:#010x} and none is sent, expected 0")]
    OldSum { update: UpdateNumber, found: u32 },
    #[error("Fetch frame for {from} to {to}, expected a range from 1 or later that is not empty")]
    FetchRange { from: UpdateNumber, to: UpdateNumber },
    #[error("{frame} of {found} bytes, expected {expected}")]
    Length { frame: &'static str, expected: usize, found: usize },
    #[error("{field} is {found}, expected {expected}")]
    Field { field: &'static str, expected: &'static str, found: u64 },
    #[error("Hello's {lower_name} {lower} is above its {upper_name} {upper}, expected it at or below")]
    Order { lower_name: &'static str, lower: u64, upper_name: &'static str, upper: u64 },
    #[error("{field}: {error}")]
    Text { field: &'static str, error: TextError },
    #[error("Hello: {0}")]
    History(#[from] HistoryError),
}

const VERSION: usize = 4;
const TYPE: usize = 5;
const BODY_BYTES: usize = 6;
const PAYLOAD_BYTES: usize = 8;
const CRC: usize = 12;
const SETTLED: usize = 16;
const RESERVED: usize = 24;

/// Completes a frame whose body is already in place behind the header's 32 bytes, and returns its length.
fn seal(frame: FrameType, payload_bytes: usize, settled: UpdateNumber, out: &mut [u8]) -> usize {
    let (header_bytes, body) = out.split_at_mut(FRAME_HEADER_BYTES);
    let (body_bytes, payload_bytes) = (body.len() as u16, payload_bytes as u32);
    let header = FrameHeader { frame, body_bytes, payload_bytes, settled, crc: 0 };
    header_bytes.copy_from_slice(&FrameHeader { crc: header.crc_over(body), ..header }.encode());
    out.len()
}

/// Writes the frame of an update, at most [`UPDATE_FRAME_BYTES`] long, and returns its length. On the wire its payload blocks
/// follow it, and then the old blocks that are sent.
///
/// Panics if `out` is too short, the update breaks its bounds, is a `Cut`, which never leaves its journal, or does not capture
/// the blocks of which there are old ones.
pub fn encode_update(
    update: &Update,
    settled: UpdateNumber,
    old: Option<OldBlocks>,
    out: &mut [u8],
) -> usize {
    assert!(update.kind != UpdateKind::Cut, "a cut stays in its own journal: {update:?}");
    let frame = if old.is_some() { FrameType::UpdateWithOldBlocks } else { FrameType::Update };
    let (body_bytes, _) = frame.body_bounds();
    let out = &mut out[..FRAME_HEADER_BYTES + body_bytes];
    let (body, rest) = out[FRAME_HEADER_BYTES..].as_chunks_mut::<DESCRIPTOR_BYTES>();
    encode_descriptor(update, &mut body[0]);
    let mut blocks = update.payload_blocks();
    if let Some(old) = old {
        if let Err(error) = check_old_blocks(update, old) {
            panic!("a frame that no site would accept was about to be sent: {error}");
        }
        put(rest, 0, &old.sum.to_le_bytes());
        put(rest, 4, &old.zeros.to_le_bytes());
        blocks += old.sent(update.count).count();
    }
    seal(frame, blocks * BLOCK_BYTES, settled, out)
}

fn check_old_blocks(update: &Update, old: OldBlocks) -> Result<(), WireError> {
    let Update { number, count, .. } = *update;
    if !update.captures() {
        return Err(WireError::OldBlocksOfNone { update: number });
    }
    if count < u32::BITS && old.zeros >> count != 0 {
        return Err(WireError::OldZeros { update: number, zeros: old.zeros, count });
    }
    if old.sum != 0 && old.sent(count).next().is_none() {
        return Err(WireError::OldSum { update: number, found: old.sum });
    }
    Ok(())
}

/// Writes a control frame, at most [`CONTROL_FRAME_BYTES_MAX`] long, and returns its length. Panics if it does not fit.
pub fn encode_control(control: &Control, out: &mut [u8]) -> usize {
    let (frame, settled) = match *control {
        Control::Ack { .. } => (FrameType::Ack, UpdateNumber::NONE),
        Control::Heartbeat { settled, .. } => (FrameType::Heartbeat, settled),
        Control::FlushRequest { .. } => (FrameType::FlushRequest, UpdateNumber::NONE),
        Control::Fetch { .. } => (FrameType::Fetch, UpdateNumber::NONE),
        Control::CutTo { .. } => (FrameType::CutTo, UpdateNumber::NONE),
        Control::BlockWanted { .. } => (FrameType::BlockWanted, UpdateNumber::NONE),
        Control::BlockLacking { .. } => (FrameType::BlockLacking, UpdateNumber::NONE),
        Control::TablesWanted { .. } => (FrameType::TablesWanted, UpdateNumber::NONE),
        Control::SwitchoverWanted => (FrameType::SwitchoverWanted, UpdateNumber::NONE),
        Control::SwitchoverRefused { .. } => (FrameType::SwitchoverRefused, UpdateNumber::NONE),
        Control::CopyOffer { .. } => (FrameType::CopyOffer, UpdateNumber::NONE),
        Control::Staged { .. } => (FrameType::Staged, UpdateNumber::NONE),
        Control::Install { .. } => (FrameType::Install, UpdateNumber::NONE),
        Control::MarksEnd { .. } => (FrameType::MarksEnd, UpdateNumber::NONE),
        Control::Pull { .. } => (FrameType::Pull, UpdateNumber::NONE),
        Control::Lapsed { .. } => (FrameType::Lapsed, UpdateNumber::NONE),
        Control::Compare { .. } => (FrameType::Compare, UpdateNumber::NONE),
        Control::Compared { .. } => (FrameType::Compared, UpdateNumber::NONE),
        Control::DigestsWanted { .. } => (FrameType::DigestsWanted, UpdateNumber::NONE),
        Control::CopyWanted => (FrameType::CopyWanted, UpdateNumber::NONE),
        Control::Extend { .. } => (FrameType::Extend, UpdateNumber::NONE),
        Control::Extended { .. } => (FrameType::Extended, UpdateNumber::NONE),
    };
    let (body_bytes, _) = frame.body_bounds();
    let out = &mut out[..FRAME_HEADER_BYTES + body_bytes];
    let body = &mut out[FRAME_HEADER_BYTES..];
    match *control {
        Control::Ack { received, journaled, durable, applied, journal_ns, journal_free_blocks, heard } => {
            for (index, number) in [received, journaled, durable, applied].iter().enumerate() {
                put(body, 8 * index, &number.0.to_le_bytes());
            }
            put(body, 32, &journal_ns.to_le_bytes());
            put(body, 36, &journal_free_blocks.to_le_bytes());
            put(body, 40, &heard.to_le_bytes());
        }
        Control::Heartbeat { sequence, .. } => put(body, 0, &sequence.to_le_bytes()),
        Control::FlushRequest { number } => put(body, 0, &number.0.to_le_bytes()),
        Control::Fetch { from, to } => {
            assert!(UpdateNumber::NONE < from && from <= to, "a fetch of {from} to {to}");
            put(body, 0, &from.0.to_le_bytes());
            put(body, 8, &to.0.to_le_bytes());
        }
        Control::CutTo { keep } => put(body, 0, &keep.0.to_le_bytes()),
        Control::BlockWanted { place, sum } => {
            body.fill(0);
            put_place(body, place);
            put(body, 8, &sum.0.to_le_bytes());
        }
        Control::BlockLacking { place, why } => {
            body.fill(0);
            put_place(body, place);
            body[8] = why as u8;
        }
        Control::TablesWanted { settled, page } => {
            body.fill(0);
            put(body, 0, &settled.0.to_le_bytes());
            put(body, 8, &page.to_le_bytes());
        }
        Control::SwitchoverWanted | Control::CopyWanted => {}
        Control::SwitchoverRefused { code } => {
            body.fill(0);
            body[0] = code;
        }
        Control::CopyOffer { generation, serial, blocks, whole } => {
            body.fill(0);
            put(body, 0, &generation.0.to_le_bytes());
            put(body, 8, &serial.to_le_bytes());
            put(body, 16, &blocks.to_le_bytes());
            body[COPY_OFFER_WHOLE] = u8::from(whole);
        }
        Control::Staged { updates } => put(body, 0, &updates.to_le_bytes()),
        Control::Install { upto } => put(body, 0, &upto.0.to_le_bytes()),
        Control::MarksEnd { pages } => put(body, 0, &pages.to_le_bytes()),
        Control::Pull { after, generation, durable, upto } => {
            for (index, number) in [after.0, generation.0, durable.0, upto.0].iter().enumerate() {
                put(body, 8 * index, &number.to_le_bytes());
            }
        }
        Control::Lapsed { oldest } => put(body, 0, &oldest.0.to_le_bytes()),
        Control::Compare { at, extent } => {
            put(body, 0, &at.0.to_le_bytes());
            put_extent(&mut body[8..], extent);
        }
        Control::DigestsWanted { extent } => put_extent(body, extent),
        Control::Extend { volume, blocks } => put_extended(body, volume, blocks, 0),
        Control::Extended { volume, blocks, errno } => put_extended(body, volume, blocks, errno),
        Control::Compared { at, answer } => {
            body.fill(0);
            put(body, 0, &at.0.to_le_bytes());
            if let Some((Digest128([low, high]), damaged)) = answer {
                put(body, 8, &low.to_le_bytes());
                put(body, 16, &high.to_le_bytes());
                put(body, 24, &damaged.to_le_bytes());
                body[COMPARED_ANSWERS] = 1;
            }
        }
    }
    seal(frame, 0, settled, out)
}

/// Writes the frame around a body that [`Hello::encode`] or [`Refusal::encode`] wrote, and returns the frame's length.
///
/// Panics if `out` does not hold [`FRAME_HEADER_BYTES`] more than `body`, or `body` is above [`FRAME_BODY_BYTES_MAX`].
pub fn encode_page_frame(frame: PageFrame, body: &[u8], out: &mut [u8]) -> usize {
    assert!(body.len() <= FRAME_BODY_BYTES_MAX, "a {frame:?} body of {} bytes", body.len());
    let out = &mut out[..FRAME_HEADER_BYTES + body.len()];
    put(out, FRAME_HEADER_BYTES, body);
    seal(frame.into(), 0, UpdateNumber::NONE, out)
}

/// Checks what a reader must know before it waits for more bytes. The checksum is [`decode_body`]'s to compare.
pub fn decode_header(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<FrameHeader, WireError> {
    let magic = array_at(bytes, 0);
    if magic != FRAME_MAGIC {
        return Err(WireError::Magic { found: magic });
    }
    if bytes[VERSION] != FRAME_VERSION {
        return Err(WireError::Version { found: bytes[VERSION] });
    }
    let frame = FrameType::from_code(bytes[TYPE]).ok_or(WireError::Type { found: bytes[TYPE] })?;
    if let Some(offset) = nonzero_in(bytes, RESERVED, FRAME_HEADER_BYTES) {
        return Err(WireError::Reserved { frame: "frame header", offset, found: bytes[offset] });
    }
    let header = FrameHeader {
        frame,
        body_bytes: u16_at(bytes, BODY_BYTES),
        payload_bytes: u32_at(bytes, PAYLOAD_BYTES),
        settled: UpdateNumber(number(frame, u64_at(bytes, SETTLED))?),
        crc: u32_at(bytes, CRC),
    };
    let (min, max) = frame.body_bounds();
    let found = usize::from(header.body_bytes);
    if found < min || found > max {
        return Err(WireError::BodyBytes { frame, min, max, found });
    }
    let max = frame.payload_blocks_max() * BLOCK_BYTES;
    let payload = header.payload_bytes as usize;
    if payload > max || !payload.is_multiple_of(BLOCK_BYTES) {
        return Err(WireError::PayloadBytes { frame, max, found: header.payload_bytes });
    }
    let tells = matches!(frame, FrameType::Update | FrameType::UpdateWithOldBlocks | FrameType::Heartbeat);
    if header.settled != UpdateNumber::NONE && !tells {
        return Err(WireError::Settled { frame, found: header.settled });
    }
    Ok(header)
}

/// A number that can be counted on from.
fn number(frame: FrameType, found: u64) -> Result<u64, WireError> {
    if found > NUMBER_MAX {
        return Err(WireError::Number { frame, found });
    }
    Ok(found)
}

/// The frame of a header and its body. Panics if `body` is not `header.body_bytes` long, which the reader sees to.
pub fn decode_body<'a>(header: &FrameHeader, body: &'a [u8]) -> Result<Frame<'a>, WireError> {
    assert!(body.len() == usize::from(header.body_bytes), "{} bytes for {header:?}", body.len());
    let FrameHeader { frame, settled, .. } = *header;
    let expected = header.crc_over(body);
    if expected != header.crc {
        return Err(WireError::Crc { frame, expected, found: header.crc });
    }
    let number_at = |at: usize| number(frame, u64_at(body, at)).map(UpdateNumber);
    let generation_at = |at: usize| number(frame, u64_at(body, at)).map(Generation);
    let control = match frame {
        FrameType::Update | FrameType::UpdateWithOldBlocks => {
            let update = decode_descriptor(&array_at(body, 0))?;
            if update.kind == UpdateKind::Cut {
                return Err(WireError::CutOnWire { keep: update.number });
            }
            let old = (frame == FrameType::UpdateWithOldBlocks).then(|| OldBlocks {
                sum: u32_at(body, DESCRIPTOR_BYTES),
                zeros: u32_at(body, DESCRIPTOR_BYTES + 4),
            });
            let mut blocks = update.payload_blocks();
            if let Some(old) = old {
                check_old_blocks(&update, old)?;
                blocks += old.sent(update.count).count();
            }
            let expected = blocks * BLOCK_BYTES;
            if expected != header.payload_bytes as usize {
                let found = header.payload_bytes;
                return Err(WireError::PayloadOfUpdate { update: update.number, expected, found });
            }
            return Ok(Frame::Update { update, settled, old });
        }
        FrameType::Hello => return Ok(Frame::Page(PageFrame::Hello, body)),
        FrameType::Refusal => return Ok(Frame::Page(PageFrame::Refusal, body)),
        FrameType::Block => return Ok(Frame::Page(PageFrame::Block, body)),
        FrameType::Tables => return Ok(Frame::Page(PageFrame::Tables, body)),
        FrameType::Marks => return Ok(Frame::Page(PageFrame::Marks, body)),
        FrameType::Digests => return Ok(Frame::Page(PageFrame::Digests, body)),
        FrameType::DigestsWanted => Control::DigestsWanted { extent: extent_at(body, "DigestsWanted")? },
        FrameType::Ack => Control::Ack {
            received: number_at(0)?,
            journaled: number_at(8)?,
            durable: number_at(16)?,
            applied: number_at(24)?,
            journal_ns: u32_at(body, 32),
            journal_free_blocks: u32_at(body, 36),
            heard: u64_at(body, 40),
        },
        FrameType::Heartbeat => Control::Heartbeat { settled, sequence: u64_at(body, 0) },
        FrameType::FlushRequest => Control::FlushRequest { number: number_at(0)? },
        FrameType::Fetch => {
            let (from, to) = (number_at(0)?, number_at(8)?);
            if from == UpdateNumber::NONE || from > to {
                return Err(WireError::FetchRange { from, to });
            }
            Control::Fetch { from, to }
        }
        FrameType::CutTo => Control::CutTo { keep: number_at(0)? },
        FrameType::BlockWanted => {
            if let Some(offset) = nonzero_in(body, 12, PLACE_OF) {
                return Err(WireError::Reserved { frame: "BlockWanted", offset, found: body[offset] });
            }
            Control::BlockWanted { place: place_at(body)?, sum: BlockSum(u32_at(body, 8)) }
        }
        FrameType::BlockLacking => {
            if let Some(offset) = nonzero_in(body, 9, PLACE_OF) {
                return Err(WireError::Reserved { frame: "BlockLacking", offset, found: body[offset] });
            }
            let found = u64::from(body[8]);
            let why = Lacking::from_code(body[8]).ok_or(WireError::Field {
                field: "BlockLacking's reason",
                expected: "1, 2 or 3",
                found,
            })?;
            Control::BlockLacking { place: place_at(body)?, why }
        }
        FrameType::TablesWanted => {
            if let Some(offset) = nonzero_in(body, 12, TABLES_WANTED_BYTES) {
                return Err(WireError::Reserved { frame: "TablesWanted", offset, found: body[offset] });
            }
            Control::TablesWanted { settled: number_at(0)?, page: u32_at(body, 8) }
        }
        FrameType::SwitchoverWanted => Control::SwitchoverWanted,
        FrameType::CopyWanted => Control::CopyWanted,
        FrameType::SwitchoverRefused => {
            if let Some(offset) = nonzero_in(body, 1, SWITCHOVER_REFUSED_BYTES) {
                return Err(WireError::Reserved { frame: "SwitchoverRefused", offset, found: body[offset] });
            }
            Control::SwitchoverRefused { code: body[0] }
        }
        FrameType::CopyOffer => {
            if let Some(offset) = nonzero_in(body, COPY_OFFER_WHOLE + 1, COPY_OFFER_BYTES) {
                return Err(WireError::Reserved { frame: "CopyOffer", offset, found: body[offset] });
            }
            Control::CopyOffer {
                generation: generation_at(0)?,
                serial: u64_at(body, 8),
                blocks: u64_at(body, 16),
                whole: flag_at(body, COPY_OFFER_WHOLE, "CopyOffer's whole")?,
            }
        }
        FrameType::Staged => Control::Staged { updates: u64_at(body, 0) },
        FrameType::Install => Control::Install { upto: number_at(0)? },
        FrameType::MarksEnd => Control::MarksEnd { pages: u64_at(body, 0) },
        FrameType::Pull => Control::Pull {
            after: number_at(0)?,
            generation: generation_at(8)?,
            durable: number_at(16)?,
            upto: number_at(24)?,
        },
        FrameType::Lapsed => Control::Lapsed { oldest: number_at(0)? },
        FrameType::Compare => {
            Control::Compare { at: number_at(0)?, extent: extent_at(&body[8..], "Compare")? }
        }
        FrameType::Compared => {
            let answers = flag_at(body, COMPARED_ANSWERS, "whether Compared answers")?;
            let reserved_from = if answers { COMPARED_ANSWERS + 1 } else { 8 };
            let set = |offset: usize| offset != COMPARED_ANSWERS && body[offset] != 0;
            if let Some(offset) = (reserved_from..COMPARED_BYTES).find(|&offset| set(offset)) {
                return Err(WireError::Reserved { frame: "Compared", offset, found: body[offset] });
            }
            let digest = Digest128([u64_at(body, 8), u64_at(body, 16)]);
            let answer = answers.then(|| (digest, u32_at(body, 24)));
            Control::Compared { at: number_at(0)?, answer }
        }
        FrameType::Extend => {
            let (volume, blocks, _) = extended_at(body, false)?;
            Control::Extend { volume, blocks }
        }
        FrameType::Extended => {
            let (volume, blocks, errno) = extended_at(body, true)?;
            Control::Extended { volume, blocks, errno }
        }
    };
    Ok(Frame::Control(control))
}

impl FrameHeader {
    fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        put(&mut bytes, 0, &FRAME_MAGIC);
        bytes[VERSION] = FRAME_VERSION;
        bytes[TYPE] = self.frame as u8;
        put(&mut bytes, BODY_BYTES, &self.body_bytes.to_le_bytes());
        put(&mut bytes, PAYLOAD_BYTES, &self.payload_bytes.to_le_bytes());
        put(&mut bytes, CRC, &self.crc.to_le_bytes());
        put(&mut bytes, SETTLED, &self.settled.0.to_le_bytes());
        bytes
    }

    /// The checksum that this header with `body` should carry. A header has one encoding, so it is made again.
    fn crc_over(&self, body: &[u8]) -> u32 {
        let header = FrameHeader { crc: 0, ..*self }.encode();
        crc32c::crc32c_append(crc32c::crc32c(&header), body)
    }
}

#[cfg(test)]
mod tests;
