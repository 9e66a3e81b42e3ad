//! The types of frames, and how long they may be.

use super::blocks::EXTENT_BYTES;
use super::{FRAME_BODY_BYTES_MAX, PageFrame, UPDATE_FRAME_BLOCKS_MAX};
use crate::base::{BLOCK_BYTES, UPDATE_BLOCKS_MAX};
use crate::format::update::DESCRIPTOR_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    Update = 1,
    Ack = 2,
    Heartbeat = 3,
    FlushRequest = 4,
    Fetch = 5,
    CutTo = 6,
    Hello = 7,
    Refusal = 8,
    BlockWanted = 9,
    BlockLacking = 10,
    Block = 11,
    UpdateWithOldBlocks = 12,
    TablesWanted = 13,
    Tables = 14,
    SwitchoverWanted = 15,
    SwitchoverRefused = 16,
    CopyOffer = 17,
    Staged = 18,
    Install = 19,
    Marks = 20,
    MarksEnd = 21,
    Pull = 22,
    Lapsed = 23,
    Compare = 24,
    Compared = 25,
    DigestsWanted = 26,
    Digests = 27,
    CopyWanted = 28,
    Extend = 29,
    Extended = 30,
}

pub(super) const WITH_OLD_BLOCKS_BYTES: usize = DESCRIPTOR_BYTES + 8;
pub(super) const ACK_BYTES: usize = 48;
pub(super) const HEARTBEAT_BYTES: usize = 8;
pub(super) const FLUSH_REQUEST_BYTES: usize = 8;
pub(super) const FETCH_BYTES: usize = 16;
pub(super) const CUT_TO_BYTES: usize = 8;
pub(super) const BLOCK_WANTED_BYTES: usize = 16;
pub(super) const BLOCK_LACKING_BYTES: usize = 16;
pub(super) const TABLES_WANTED_BYTES: usize = 16;
pub(super) const SWITCHOVER_REFUSED_BYTES: usize = 8;
pub(super) const COPY_OFFER_BYTES: usize = 32;
/// Where a CopyOffer says whether it is of all blocks.
pub(super) const COPY_OFFER_WHOLE: usize = 24;
pub(super) const STAGED_BYTES: usize = 8;
pub(super) const INSTALL_BYTES: usize = 8;
pub(super) const MARKS_END_BYTES: usize = 8;
pub(super) const PULL_BYTES: usize = 32;
pub(super) const LAPSED_BYTES: usize = 8;
pub(super) const COMPARE_BYTES: usize = 8 + EXTENT_BYTES;
pub(super) const COMPARED_BYTES: usize = 32;
pub(super) const EXTENDED_BYTES: usize = 16;

impl FrameType {
    pub(super) const LAST: FrameType = FrameType::Extended;

    pub(super) fn from_code(code: u8) -> Option<FrameType> {
        [
            FrameType::Update,
            FrameType::Ack,
            FrameType::Heartbeat,
            FrameType::FlushRequest,
            FrameType::Fetch,
            FrameType::CutTo,
            FrameType::Hello,
            FrameType::Refusal,
            FrameType::BlockWanted,
            FrameType::BlockLacking,
            FrameType::Block,
            FrameType::UpdateWithOldBlocks,
            FrameType::TablesWanted,
            FrameType::Tables,
            FrameType::SwitchoverWanted,
            FrameType::SwitchoverRefused,
            FrameType::CopyOffer,
            FrameType::Staged,
            FrameType::Install,
            FrameType::Marks,
            FrameType::MarksEnd,
            FrameType::Pull,
            FrameType::Lapsed,
            FrameType::Compare,
            FrameType::Compared,
            FrameType::DigestsWanted,
            FrameType::Digests,
            FrameType::CopyWanted,
            FrameType::Extend,
            FrameType::Extended,
        ]
        .into_iter()
        .find(|frame| *frame as u8 == code)
    }

    /// The fewest and the most bytes of this type's body.
    pub(super) const fn body_bounds(self) -> (usize, usize) {
        match self {
            FrameType::Update => (DESCRIPTOR_BYTES, DESCRIPTOR_BYTES),
            FrameType::UpdateWithOldBlocks => (WITH_OLD_BLOCKS_BYTES, WITH_OLD_BLOCKS_BYTES),
            FrameType::Ack => (ACK_BYTES, ACK_BYTES),
            FrameType::Heartbeat => (HEARTBEAT_BYTES, HEARTBEAT_BYTES),
            FrameType::FlushRequest => (FLUSH_REQUEST_BYTES, FLUSH_REQUEST_BYTES),
            FrameType::Fetch => (FETCH_BYTES, FETCH_BYTES),
            FrameType::CutTo => (CUT_TO_BYTES, CUT_TO_BYTES),
            FrameType::BlockWanted => (BLOCK_WANTED_BYTES, BLOCK_WANTED_BYTES),
            FrameType::BlockLacking => (BLOCK_LACKING_BYTES, BLOCK_LACKING_BYTES),
            FrameType::TablesWanted => (TABLES_WANTED_BYTES, TABLES_WANTED_BYTES),
            FrameType::SwitchoverWanted | FrameType::CopyWanted => (0, 0),
            FrameType::SwitchoverRefused => (SWITCHOVER_REFUSED_BYTES, SWITCHOVER_REFUSED_BYTES),
            FrameType::CopyOffer => (COPY_OFFER_BYTES, COPY_OFFER_BYTES),
            FrameType::Staged => (STAGED_BYTES, STAGED_BYTES),
            FrameType::Install => (INSTALL_BYTES, INSTALL_BYTES),
            FrameType::MarksEnd => (MARKS_END_BYTES, MARKS_END_BYTES),
            FrameType::Pull => (PULL_BYTES, PULL_BYTES),
            FrameType::Lapsed => (LAPSED_BYTES, LAPSED_BYTES),
            FrameType::Compare => (COMPARE_BYTES, COMPARE_BYTES),
            FrameType::Compared => (COMPARED_BYTES, COMPARED_BYTES),
            FrameType::DigestsWanted => (EXTENT_BYTES, EXTENT_BYTES),
            FrameType::Extend | FrameType::Extended => (EXTENDED_BYTES, EXTENDED_BYTES),
            FrameType::Block | FrameType::Tables | FrameType::Marks | FrameType::Digests => {
                (BLOCK_BYTES, BLOCK_BYTES)
            }
            FrameType::Hello | FrameType::Refusal => (0, FRAME_BODY_BYTES_MAX),
        }
    }

    /// The most blocks that follow this type's body.
    pub(super) const fn payload_blocks_max(self) -> usize {
        match self {
            FrameType::Update => UPDATE_BLOCKS_MAX,
            FrameType::UpdateWithOldBlocks => UPDATE_FRAME_BLOCKS_MAX,
            _ => 0,
        }
    }
}

impl From<PageFrame> for FrameType {
    fn from(frame: PageFrame) -> FrameType {
        match frame {
            PageFrame::Hello => FrameType::Hello,
            PageFrame::Refusal => FrameType::Refusal,
            PageFrame::Block => FrameType::Block,
            PageFrame::Tables => FrameType::Tables,
            PageFrame::Marks => FrameType::Marks,
            PageFrame::Digests => FrameType::Digests,
        }
    }
}
