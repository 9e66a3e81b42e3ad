//! What travels on the rings between a group and its helpers. Every message is `Copy` and fits a cache line; page lists
//! travel beside it in a [`PageTable`](crate::base::PageTable) row that the message names.

use crate::base::{Lba, Nanos, PageId, Slot, SlotId, UpdateNumber, VolumeId, VolumeSet};
use crate::format::snapshot::SnapshotName;
use crate::format::update::Update;
pub use crate::format::wire::{BlockPlace, Control, Extent, Lacking, PageFrame};

// ------------------------------------------------------------------------------------------ hosts: front <-> group

/// One of a front's places inside the group, and the row of its page table. The front owns it from reply to request.
pub type Ticket = SlotId;

/// A host's operation. Blocks are whole and at most [`crate::base::UPDATE_BLOCKS_MAX`]; the front splits larger requests
/// and cuts off unaligned ends, which become `WritePartial` and `ZeroPartial` inside one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostOp {
    /// The row names `count` open pages of the front's, which are filled and stay the front's.
    Read { lba: Lba, count: u32 },
    /// The row names one open page of the front's, which is filled and stays the front's: a bit for each block, whether it was
    /// changed after the snapshot `since`, and before what the request is to see. At most
    /// [`crate::base::CHANGES_BLOCKS_MAX`] blocks.
    Changes { since: UpdateNumber, lba: Lba, count: u32 },
    /// The row names `count` open, filled pages with their sums; they become the group's.
    Write { lba: Lba, count: u32, fua: bool },
    /// The row names one open page holding the bytes at `offset..offset + length` of the block; it becomes the group's.
    WritePartial { lba: Lba, offset: u16, length: u16, fua: bool },
    /// No pages; at most [`crate::base::ZERO_BLOCKS_MAX`] blocks.
    Zero { lba: Lba, count: u32, fua: bool },
    /// No pages.
    ZeroPartial { lba: Lba, offset: u16, length: u16, fua: bool },
    /// Everything replied to before this is to be settled; group-wide, whatever the volume.
    Flush,
}

impl HostOp {
    /// Whether it only asks for something.
    pub fn reads(&self) -> bool {
        matches!(self, HostOp::Read { .. } | HostOp::Changes { .. })
    }

    /// The blocks that it is about.
    pub fn blocks(&self) -> std::ops::Range<u64> {
        let (lba, count) = match *self {
            HostOp::Read { lba, count }
            | HostOp::Changes { lba, count, .. }
            | HostOp::Write { lba, count, .. }
            | HostOp::Zero { lba, count, .. } => (lba, count),
            HostOp::WritePartial { lba, .. } | HostOp::ZeroPartial { lba, .. } => (lba, 1),
            HostOp::Flush => (Lba(0), 0),
        };
        lba.0..lba.0 + u64::from(count)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRequest {
    pub ticket: Ticket,
    pub volume: VolumeId,
    /// What a `Read` or `Changes` is to see: this snapshot of the volume, or with `NONE` the volume itself. Nothing else may name one.
    pub snapshot: UpdateNumber,
    /// The host was let in by a primary, and takes what it reads for the newest there is: a secondary refuses it.
    pub of_primary: bool,
    pub op: HostOp,
    /// When the request's last byte was received, for the histogram of the first ring.
    pub received_at: Nanos,
}

/// Why a host's operation failed. Fronts map it to their protocol's errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    /// Beyond the volume's end, or more blocks than an operation may have.
    OutOfRange,
    /// This site is a secondary, or the volume was opened read-only.
    ReadOnly,
    /// The operation's deadline passed before the sites could agree (INV-11). A write may still take effect later.
    Deadline,
    /// The site has left the group (a disk failed, or it was told to); it serves nothing.
    NotServing,
    /// A disk returned an error, or a block's checksum did not match.
    Io,
    /// The snapshot does not exist (any more), or is not of this volume.
    NoSuchSnapshot,
    /// The differential volume is full, and no snapshot may be deleted to make room.
    NoSpace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostReply {
    pub ticket: Ticket,
    pub result: Result<(), HostError>,
    /// When the group let the reply go, for the histogram of the last ring.
    pub replied_at: Nanos,
}

// -------------------------------------------------------------------------------------------- peer: group <-> link

/// The table whose row holds an outgoing update's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateSource {
    /// The window's table: row is `number % WINDOW_UPDATES_MAX`.
    Window,
    /// The catch-up table, filled by journal reads.
    CatchUp,
    /// The same table, filled with what blocks hold now: no update of the stream, but for the log of a resync.
    Copy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToLink {
    /// The group has seen `Connected { connection }`; what follows is for it. Until then the link discards what it pops,
    /// while still reporting it `Consumed`.
    Begin {
        connection: u32,
    },
    Update {
        update: Update,
        settled: UpdateNumber,
        slot: u32,
        source: UpdateSource,
        /// Whether a row of [`old_blocks`](crate::core::outbox::Tables::old_blocks) names what its blocks held before, which
        /// goes with it. The zero page is not sent but said.
        with_old: bool,
    },
    Control(Control),
    /// The page goes back by `PageReturned`.
    Page {
        frame: PageFrame,
        page: PageId,
        length: u16,
    },
    /// Close the connection once what was sent before this is acknowledged or a second has passed.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromLink {
    /// A peer with the configured identity is connected. `connection` counts up.
    Connected {
        connection: u32,
    },
    Disconnected {
        connection: u32,
    },
    /// The link's inbound table row `slot` names `update.payload_blocks()` open pages with their sums, already checked
    /// against `update.sum`; they become the group's, which answers nothing: the row is free once this is popped, so the
    /// link has twice as many rows as this ring has places.
    Update {
        update: Update,
        settled: UpdateNumber,
        slot: SlotId,
        /// Whether the row names what its blocks held before, too, from place [`crate::base::UPDATE_BLOCKS_MAX`] on.
        with_old: bool,
    },
    Control(Control),
    /// The page becomes the group's.
    Page {
        frame: PageFrame,
        page: PageId,
        length: u16,
    },
    /// The pages of this outgoing update are no longer read by the link. For `Window`, cumulative up to `number`; for
    /// `CatchUp` the one in row `slot`. `popped_at` and `sent_at` are for the histograms.
    Consumed {
        number: UpdateNumber,
        slot: u32,
        source: UpdateSource,
        popped_at: Nanos,
        sent_at: Nanos,
    },
    PageReturned {
        page: PageId,
    },
}

// ------------------------------------------------------------------------------------------ disks: group <-> executor

/// A file or device of the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IoTarget {
    Journal,
    /// What a resync brings, until it is whole. It is written and read by the journal's executor.
    Staging,
    Volume(VolumeId),
    /// The volume's checksum file: 1024 little-endian sums a block.
    Checksums(VolumeId),
    /// Old blocks that snapshots keep.
    Differential,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOp {
    /// Into the row's pages.
    Read,
    /// From the row's pages.
    Write,
    /// Everything whose completion was delivered before this was submitted is on stable media when it completes.
    Flush,
    /// No pages: space of a volume is allocated, so that no write into it fails for want of some. What is there stays.
    Reserve,
}

impl IoOp {
    /// Whether the request's row has a page for each of its blocks.
    pub fn has_pages(self) -> bool {
        matches!(self, IoOp::Read | IoOp::Write)
    }
}

/// One block I/O. `slot` is the row of the executor's page table and names the request in its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoRequest {
    pub slot: SlotId,
    pub target: IoTarget,
    pub op: IoOp,
    /// First block in the target; 0 for `Flush`.
    pub block: u64,
    /// Blocks, as many as pages in the row if it has any; 0 for `Flush`.
    pub count: u32,
}

/// Why an I/O failed. Short reads and writes are continued by the executor; one that makes no progress is `Short`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFault {
    /// The operating system's error number.
    Errno(i32),
    /// Of a read of volumes' disks: these of its blocks, by their bits, and the error number of the last of them. The others were read.
    Unreadable {
        blocks: u32,
        errno: i32,
    },
    Short,
    /// Bytes came back that are not what was written; found by the group, never by an executor.
    Corrupt,
    /// The disk belongs to another group or site, or was formatted with other sizes; found by the group.
    Foreign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoDone {
    pub slot: SlotId,
    pub result: Result<(), IoFault>,
}

// ------------------------------------------------------------------------------- management information: group <-> executor

/// What the metadata executor is asked. The row `slot` of its table names an open page for the answer, and for a commit the
/// sealed pages behind it. Each request is carried out whole or not at all, in the order of the ring, and is durable when answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataOp {
    /// Records of snapshots, from the `first`th on, as many as fit the page.
    LoadSnapshots { first: u32 },
    /// Bits of the volume's blocks from `first` on: whether there is an entry for `since` or a later snapshot.
    LoadCaptured { volume: VolumeId, since: UpdateNumber, first: Lba },
    /// Bits of the slots from `first` on: whether there is an entry that names it.
    LoadSlots { first: Slot },
    /// The changes in so many pages, each at most once: what is there already stays. The answer has a bit for each captured block:
    /// whether it was redundant, because the block is kept in another slot for this snapshot or a later one.
    Commit { applied: UpdateNumber, pages: u32 },
    /// Removes entries that no snapshot needs, among the next ones from this block on; the answer has their slots.
    Reclaim { volume: VolumeId, lba: Lba },
    /// For each of the blocks: the entry of the first snapshot from `snapshot` on that has one.
    LookUp { snapshot: UpdateNumber, volume: VolumeId, lba: Lba, count: u32 },
    /// Entries in a page of [`crate::format::tables`], in the order of the table, which has a run of blocks and a snapshot a row: whole
    /// rows from this one on, as many as fit.
    Entries { from: EntriesFrom },
    /// Finds whether everything that is durable is what was written there, as a start does. Nothing else is carried out meanwhile.
    Check,
    /// Bits of the blocks from `lba` on: whether there is an entry for a snapshot from `since` on and before `before`.
    Changed { since: UpdateNumber, before: UpdateNumber, volume: VolumeId, lba: Lba, count: u32 },
    /// A page of [`crate::format::tables`], all of one moment: they have everything up to `applied` at least. The first page begins anew,
    /// and so does another one if that was too long ago.
    Lend { page: u32, applied: UpdateNumber },
    /// The first page of the changed-block set from this one on, and where the set begins.
    LoadMarks { volume: VolumeId, chunk: u64 },
    /// So many pages of the set, which begins at `base`.
    SaveMarks { base: UpdateNumber, pages: u32 },
    /// The set is over.
    DropMarks,
    /// A page of [`crate::format::tables`] that are to be this site's, from the first page to the last: with that they take the place of
    /// what there is, and are not there before. Nothing else is asked between two of them but the first page again.
    TakeTables,
}

impl MetadataOp {
    /// Pages behind the answer's that a request gives.
    pub fn given_pages(&self) -> usize {
        match *self {
            MetadataOp::Commit { pages, .. } | MetadataOp::SaveMarks { pages, .. } => pages as usize,
            MetadataOp::TakeTables => 1,
            _ => 0,
        }
    }
}

/// A row of the entries: of a volume, the run of blocks that begins with this one, or has it, and a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntriesFrom {
    pub volume: VolumeId,
    pub lba: Lba,
    pub snapshot: UpdateNumber,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataRequest {
    pub slot: SlotId,
    pub op: MetadataOp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataAnswer {
    /// So many records in the page, of so many in all; the number up to which updates are applied; and how many entries there are.
    Snapshots {
        count: u32,
        total: u32,
        applied: UpdateNumber,
        entries: u64,
    },
    Bits,
    Committed,
    /// So many slots in the page; where to go on, unless the pass is over.
    Reclaimed {
        freed: u32,
        next: Option<(VolumeId, Lba)>,
    },
    Found,
    /// So many entries in the page; the row behind them, if there is one.
    Entries {
        count: u32,
        next: Option<EntriesFrom>,
    },
    /// So many entries are sound, and so is all else.
    Checked {
        entries: u64,
    },
    Lent,
    /// Where the set begins, if there is one; and whether the page holds a page of it.
    Marks {
        base: Option<UpdateNumber>,
        found: bool,
    },
    Saved,
    Taken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataFault {
    /// The database's storage failed.
    Storage,
    /// What it holds is not what was written there.
    Corrupt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataDone {
    pub slot: SlotId,
    pub result: Result<MetadataAnswer, MetadataFault>,
}

// ------------------------------------------------------------------------------------------ administrators: control -> group

/// What an administrator asks of a group. Control is no ring of the data path, so this may be longer than a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminOp {
    CreateSnapshot {
        name: SnapshotName,
        volumes: VolumeSet,
        protected: bool,
        /// Nanoseconds since 1970, by the asking site's clock.
        taken_at_ns: u64,
    },
    DeleteSnapshot {
        snapshot: UpdateNumber,
    },
    ProtectSnapshot {
        snapshot: UpdateNumber,
        protected: bool,
    },
    /// This site takes over, or begins without its peer. `fenced` is the operator's word that the other site is dead or cut off
    /// from its hosts, for good or until it has followed this one.
    Promote {
        fenced: bool,
    },
    /// A third becomes primary in place of the pair that it pulled from. `accepted` is how many updates the operator was told are lost
    /// with that at least, and gives up.
    PromoteThird {
        fenced: bool,
        accepted: Option<u64>,
    },
    /// The site that follows becomes primary, and this one follows, or the other way round: at either site.
    Switchover,
    /// This site stops being primary, and nobody is.
    Demote,
    /// What this site has that the other one has not is to go: they both went on alone, and the other one is kept. It follows that, and
    /// keeps what it has until it has been copied what is to be there instead.
    GiveWay,
    /// Read everything that this site has on its disks, so much a second at most, and repair what has gone bad. 0: end that.
    Scrub {
        blocks_per_second: u64,
    },
    /// Both sites are to be the same there, as of one number; answered with that, or with [`AdminError::Differ`].
    Compare {
        extent: Extent,
    },
    /// If the sites differ in this block, both are to hold what this primary has of it, or with `theirs` what its peer has, unless a host
    /// writes it meanwhile: then they are the same by that. Answered once it is settled.
    Equalise {
        volume: VolumeId,
        lba: Lba,
        theirs: bool,
    },
    /// Hosts are to see so many blocks of the volume, of those that are laid out, on all sites.
    Extend {
        volume: VolumeId,
        blocks: u64,
    },
    /// No host is connected any more that could write: what a site that leaves its role waits for, but not for long.
    HostsGone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminRequest {
    /// Names the request in its reply.
    pub id: u64,
    pub op: AdminOp,
}

/// Why an administrator's request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    #[error("this site is not the primary, and only follows; ask the primary")]
    ReadOnly,
    #[error(
        "a site that this third pulls from is connected, and has all that hosts were told of: promote that one in place of this. One that is \
         not to serve any more is to be stopped first; the connection of one that died lasts some seconds longer"
    )]
    SourceConnected,
    #[error(
        "the other sites may be serving hosts at this moment: make sure that both are dead or cut off from their hosts, then promote with \
         --fenced"
    )]
    ThirdNotFenced,
    #[error("give up what is lost by --accept-loss {least}, or a higher number")]
    LossNotAccepted { least: u64 },
    #[error("the site does not serve its hosts")]
    NotServing,
    #[error("the site has no differential volume, so it takes no snapshots")]
    NoDifferential,
    #[error("a snapshot of that name exists")]
    NameTaken,
    #[error("a snapshot needs a name")]
    NoName,
    #[error("a snapshot is of one volume or more of the group's")]
    NoSuchVolume,
    #[error("there is no such snapshot")]
    NoSuchSnapshot,
    #[error("there are as many snapshots as a group keeps; delete one first")]
    TooMany,
    #[error("too many requests at once")]
    Busy,
    #[error(
        "the site is still replaying its journal; wait for `lockstep status` to show it following, then promote again"
    )]
    Recovering,
    #[error(
        "this site's snapshot tables were brought from the other one, and cover updates that it lacks: only the other one can go on"
    )]
    Behind,
    #[error(
        "this site was formatted anew and is being copied everything: it holds nothing yet that could be served; wait until it is in lockstep \
         (`lockstep wait --in-sync`), or promote the site that has the data. If there is none any more, format this one again, then promote it"
    )]
    HoldsNothing,
    #[error("this site is the primary already, and serves its hosts")]
    PrimaryAlready,
    #[error(
        "the primary is alive and sends this site its updates, so nothing is to be taken over; stop it, or cut it off from its hosts, \
         then promote with --fenced. If it fell silent only now, ask again in a few seconds"
    )]
    PrimaryAlive,
    #[error(
        "the other site cannot be asked: it may be serving hosts at this moment, and what it acknowledged without this site would be \
         lost. This site knows better only of a primary with on_peer_loss = \"suspend\" that it has followed since it was started; make sure \
         that it is dead or cut off from its hosts, then promote with --fenced"
    )]
    NotFenced,
    #[error(
        "this site's third took over from it, and may be serving hosts at this moment: with this site promoted there are two histories. Make \
         sure that the third serves nobody, and that its history is the one to go, then promote with --fenced"
    )]
    ThirdTookOver,
    #[error(
        "this site was still catching up when the other one was lost: what it lacks was acknowledged, and would be lost; bring the other \
         site back, or, if it is gone for good, promote with --fenced"
    )]
    LacksUpdates,
    #[error("the sites did not agree in time; it may still happen")]
    Deadline,
    #[error("this site is not the primary; ask the other one")]
    NotPrimary,
    #[error("this site has no peer, so nobody could be primary in its place")]
    NoPeer,
    #[error(
        "the sites are not in lockstep, so the other one does not have everything; wait for it (`lockstep wait --in-sync` at the \
         primary), then ask again. If one of them is dead or cut off, `lockstep status` at both says what each holds, and `lockstep \
         promote` is the way"
    )]
    NotInLockstep,
    #[error(
        "this site has acknowledged writes alone that the other one does not have; wait until it has caught up (`lockstep wait \
         --in-sync`), then ask again"
    )]
    Alone,
    #[error(
        "hosts' operations and both journals did not come to rest in time, so the primary stays what it is; ask again"
    )]
    NotDrained,
    #[error("the primary hands over already, or steps down")]
    LeavesAlready,
    #[error(
        "the link was lost while the primary was asked; `lockstep status` at both sites shows which of them is primary"
    )]
    LinkLost,
    #[error(
        "this site knows of no split brain: nothing keeps the sites apart, or they have not met since this one started; wait until \
         `lockstep status` shows what each has that the other has not"
    )]
    NoSplitBrain,
    #[error(
        "this site marks no block that it changes (it has no staging file), so the other one cannot be copied onto it; save what is worth saving \
         through NBD, and format both anew"
    )]
    DifferenceUnknownHere,
    #[error(
        "the other site does not mark what it changes, so nobody can tell what to copy: if it is not alone, `lockstep promote --fenced` there, let both \
         meet, and ask again; if it has no staging file, discard the other one, or save what is worth saving through NBD and format both anew"
    )]
    DifferenceUnknownThere,
    #[error("the sites hold different content there")]
    Differ,
    #[error("the volume is as large already; volumes do not become smaller")]
    NotLarger,
    #[error(
        "the volume's `room` is less: that is what it can come to while sites run. Stop them, configure more room at each, give `lockstep grow` there, \
         and start them; nothing is changed"
    )]
    BeyondRoom,
    #[error(
        "the other site's lockstep is older, and cannot do that: bring it up to this one's version, and ask again"
    )]
    PeerTooOld,
    #[error("this site cannot reserve the space")]
    CannotReserve { errno: i32 },
    #[error("the other site cannot reserve the space")]
    PeerCannotReserve { errno: i32 },
    #[error("the block has gone bad at the site that it is to be taken from")]
    SourceDamaged,
    #[error("the primary refuses, and this version does not know why")]
    Unknown,
}

/// Those that a primary may answer its peer with, by their code on the wire less one.
const PEER_ERRORS: [AdminError; 7] = [
    AdminError::NotServing,
    AdminError::Recovering,
    AdminError::NotPrimary,
    AdminError::NotInLockstep,
    AdminError::Alone,
    AdminError::NotDrained,
    AdminError::LeavesAlready,
];

impl AdminError {
    pub fn code(self) -> u8 {
        PEER_ERRORS.iter().position(|error| *error == self).map_or(0, |index| index as u8 + 1)
    }

    pub fn of_code(code: u8) -> AdminError {
        let index = usize::from(code).checked_sub(1);
        index.and_then(|index| PEER_ERRORS.get(index)).copied().unwrap_or(AdminError::Unknown)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminReply {
    pub id: u64,
    /// The number of the update that did it: of a created snapshot, its own.
    pub result: Result<UpdateNumber, AdminError>,
}

/// Which executor an I/O message belongs to: the journal's on the group's core, the volumes' wherever it was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    Journal,
    Volumes,
}

const _: () = assert!(size_of::<HostRequest>() <= 64);
const _: () = assert!(size_of::<HostReply>() <= 64);
const _: () = assert!(size_of::<ToLink>() <= 64);
const _: () = assert!(size_of::<FromLink>() <= 64);
const _: () = assert!(size_of::<IoRequest>() <= 64);
const _: () = assert!(size_of::<MetadataRequest>() <= 64);
const _: () = assert!(size_of::<MetadataDone>() <= 64);
