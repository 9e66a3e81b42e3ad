//! A group's effects, collected in one call and drained by the driver: in production onto rings, in the simulator onto
//! its event queue. Every queue is as large as the credits of its edge, so pushing cannot fail.

use crate::base::*;
use crate::core::config::GroupConfig;
use crate::core::messages::*;
use crate::format::snapshot::{SnapshotName, SnapshotRecord};
use crate::format::wire::{Refusal, Role};

/// The tables of pages a group shares with its helpers.
#[derive(Debug)]
pub struct Tables {
    /// One a front; rows are its tickets.
    pub fronts: Vec<PageTable>,
    /// Rows of updates that the link has received.
    pub inbound: PageTable,
    /// The unsettled window: row is `number % WINDOW_UPDATES_MAX`.
    pub window: PageTable,
    pub catch_up: PageTable,
    /// What blocks of updates on their way to the peer held before: row is `number % OLD_BLOCK_SLOTS`.
    pub old_blocks: PageTable,
    pub journal_io: PageTable,
    pub volume_io: PageTable,
    /// The answer's page, then the commit's.
    pub metadata_io: PageTable,
    /// By the number of the link: [`GroupConfig::remotes`].
    pub remotes: Vec<RemoteTables>,
}

/// What a link to a site outside the synchronous set, or of a third to one inside, has rows of its own for.
#[derive(Debug)]
pub struct RemoteTables {
    /// Updates that the link has received.
    pub inbound: PageTable,
    /// Updates on their way to a third.
    pub catch_up: PageTable,
}

impl RemoteTables {
    fn new() -> RemoteTables {
        RemoteTables {
            inbound: PageTable::new(2 * LINK_INBOUND_SLOTS, 2 * UPDATE_BLOCKS_MAX),
            catch_up: PageTable::new(CATCH_UP_SLOTS, UPDATE_BLOCKS_MAX),
        }
    }

    /// Bytes of one link's.
    pub fn bytes() -> usize {
        PageTable::bytes(2 * LINK_INBOUND_SLOTS, 2 * UPDATE_BLOCKS_MAX)
            + PageTable::bytes(CATCH_UP_SLOTS, UPDATE_BLOCKS_MAX)
    }
}

impl Tables {
    /// Of a group of this configuration.
    pub fn of(config: &GroupConfig) -> Tables {
        let remotes = (0..config.remotes()).map(|_| RemoteTables::new()).collect();
        Tables { remotes, ..Tables::new(config.fronts) }
    }

    /// Of a group without a third.
    pub fn new(fronts: usize) -> Tables {
        assert!(fronts <= FRONTS_MAX);
        Tables {
            fronts: (0..fronts).map(|_| PageTable::new(FRONT_TICKETS_MAX, UPDATE_BLOCKS_MAX)).collect(),
            // New content, then old.
            inbound: PageTable::new(2 * LINK_INBOUND_SLOTS, 2 * UPDATE_BLOCKS_MAX),
            window: PageTable::new(WINDOW_UPDATES_MAX, UPDATE_BLOCKS_MAX),
            catch_up: PageTable::new(CATCH_UP_SLOTS, UPDATE_BLOCKS_MAX),
            old_blocks: PageTable::new(OLD_BLOCK_SLOTS, UPDATE_BLOCKS_MAX),
            journal_io: PageTable::new(JOURNAL_IO_SLOTS, BATCH_BLOCKS_MAX),
            volume_io: PageTable::new(VOLUME_IO_SLOTS, VOLUME_IO_BLOCKS_MAX),
            metadata_io: PageTable::new(METADATA_IO_SLOTS, 1 + METADATA_PAGES_MAX),
            remotes: Vec::new(),
        }
    }
}

impl Tables {
    /// The rows of updates that a link has received, and of those that it is given from the journal: the peer's link, or the one of that
    /// number beside it.
    pub fn of_link(&self, remote: Option<usize>) -> (&PageTable, &PageTable) {
        match remote {
            None => (&self.inbound, &self.catch_up),
            Some(index) => (&self.remotes[index].inbound, &self.remotes[index].catch_up),
        }
    }

    /// As new, for another group.
    pub fn clear(&mut self) {
        let Tables {
            fronts,
            inbound,
            window,
            catch_up,
            old_blocks,
            journal_io,
            volume_io,
            metadata_io,
            remotes,
        } = self;
        fronts.iter_mut().for_each(PageTable::clear);
        for RemoteTables { inbound, catch_up } in remotes {
            inbound.clear();
            catch_up.clear();
        }
        [inbound, window, catch_up, old_blocks, journal_io, volume_io, metadata_io]
            .into_iter()
            .for_each(PageTable::clear);
    }
}

/// Where a write's time went: the stamps of one update's way, for the histograms. Zero means "not on its way".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteStamps {
    /// The front had the whole request.
    pub received_at: Nanos,
    /// The group took it from the ring.
    pub taken_at: Nanos,
    /// It got its number (after admission).
    pub numbered_at: Nanos,
    /// How long it waited before that for old blocks to be read, which go to the peer with it.
    pub old_read_ns: u64,
    /// Its journal batch was submitted, and completed.
    pub journal_submitted_at: Nanos,
    pub journaled_at: Nanos,
    /// The link popped it, and handed it to QUIC.
    pub link_popped_at: Nanos,
    pub sent_at: Nanos,
    /// The peer's acknowledgement that covers it reached the group, and the peer's journal time that came with it.
    pub peer_acknowledged_at: Nanos,
    pub peer_journal_ns: u32,
    /// The reply was let go.
    pub replied_at: Nanos,
}

/// Why a site does not start as what its configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleRefused {
    /// A third, and the primary of a pair until now, which may have acknowledged what only its peer has.
    WasPrimary,
    /// A third, and a secondary until now, which does not know whether these are settled.
    Unsettled { after: UpdateNumber, last: UpdateNumber },
    /// A third, and it has given way to its peer.
    GaveWay,
    /// A primary, and a third that was never promoted.
    NotPromoted,
}

/// What an operator should hear of; the driver logs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a refusal brings its text; a box would be allocated in the group"
)]
pub enum Event {
    /// Replay finished: `replayed` updates were after `checkpoint`.
    Recovered {
        checkpoint: UpdateNumber,
        last: UpdateNumber,
        replayed: u64,
        role: Role,
    },
    /// A secondary has taken over, and serves; or a primary was taken over from.
    RoleChanged {
        role: Role,
    },
    /// The site leaves its role as primary: its hosts are to be disconnected.
    HostsToGo,
    /// It does not after all, and its hosts may come again.
    LeavingAbandoned {
        why: AdminError,
    },
    /// The configuration wants a site to be what its disk does not let it be: it does not start.
    RoleRefused {
        why: RoleRefused,
    },
    GenerationOpened {
        generation: Generation,
        first: UpdateNumber,
    },
    PeerInSync,
    PeerCatchingUp {
        from: UpdateNumber,
        to: UpdateNumber,
    },
    PeerLost {
        reason: LossReason,
    },
    SoloBegan {
        at: UpdateNumber,
    },
    SoloEnded {
        at: UpdateNumber,
    },
    TailCut {
        keep: UpdateNumber,
        dropped: u64,
    },
    /// That site refused us or we it. None if its refusal could not be read.
    Refused {
        site: SiteId,
        by_us: bool,
        refusal: Option<Refusal>,
    },
    Failed {
        target: IoTarget,
        fault: IoFault,
        block: u64,
    },
    /// It could not be read, and is read once more.
    ReadAgain {
        target: IoTarget,
        fault: IoFault,
        block: u64,
    },
    /// What could not be read was not needed: the site goes on, and whoever wanted it got an error.
    ReadFailed {
        target: IoTarget,
        fault: IoFault,
        block: u64,
    },
    /// It counts as one that has gone bad.
    BlockUnreadable {
        target: IoTarget,
        block: u64,
        errno: i32,
    },
    ChecksumMismatch {
        volume: VolumeId,
        lba: Lba,
    },
    /// Such a block is whole again.
    BlockRepaired {
        volume: VolumeId,
        lba: Lba,
        by: RepairedBy,
    },
    /// A scrub has ended, at its end or before.
    Scrubbed {
        complete: bool,
        blocks: u64,
        bad: u64,
        unrepaired: u64,
    },
    /// A block of a volume's checksum file is not what was written there; memory has what it is to be.
    ChecksumsDamaged {
        volume: VolumeId,
        block: u64,
    },
    /// So many of them were written anew.
    ChecksumsRewritten {
        blocks: u64,
    },
    /// A batch of the journal, which begins there, is not what was written there.
    BatchDamaged {
        block: u64,
        first: UpdateNumber,
        last: UpdateNumber,
    },
    /// Nothing needs it any more.
    BatchPassed {
        block: u64,
    },
    BatchStays {
        block: u64,
        first: UpdateNumber,
        last: UpdateNumber,
        why: BatchStays,
    },
    BlockNotRepaired {
        volume: VolumeId,
        lba: Lba,
        why: NotRepaired,
    },
    /// What the primary sent as a block's old content for a snapshot is not what this site has: their images differ.
    ImagesDiffer {
        volume: VolumeId,
        lba: Lba,
        snapshot: SnapshotName,
    },
    /// Hosts that connect from here on see more of the volume: these blocks, where it was those.
    VolumeExtended {
        volume: VolumeId,
        from: u64,
        to: u64,
    },
    Checkpointed {
        number: UpdateNumber,
    },
    SnapshotCreated {
        snapshot: SnapshotRecord,
    },
    SnapshotDeleted {
        snapshot: SnapshotRecord,
    },
    /// Whether it is protected now is in the record.
    SnapshotProtected {
        snapshot: SnapshotRecord,
    },
    /// The oldest snapshot is being deleted because a host's write needed its slots.
    SnapshotGivenUp {
        snapshot: SnapshotRecord,
    },
    /// Most slots of the differential volume are in use.
    DifferentialFilling {
        role: Role,
        used: u64,
        total: u64,
    },
    /// A block that a snapshot keeps is not what was written there.
    SnapshotMismatch {
        snapshot: SnapshotName,
        volume: VolumeId,
        lba: Lba,
    },
    /// Such a block is again what it was: the peer had it.
    SnapshotRepaired {
        snapshot: SnapshotName,
        volume: VolumeId,
        lba: Lba,
    },
    /// It is not.
    SnapshotNotRepaired {
        snapshot: SnapshotName,
        volume: VolumeId,
        lba: Lba,
        why: NotRepaired,
    },
    MetadataFailed {
        fault: MetadataFault,
    },
    /// An entry of the snapshot tables is not what was written there; whoever needed it got an error, and the site goes on.
    TablesDamaged,
    /// They could not be looked at; the site goes on.
    TablesUnreadable,
    HostDeadline {
        oldest_ns: u64,
    },
    /// A third site is sent what is settled, from this update on.
    ThirdFed {
        from: UpdateNumber,
    },
    /// The third was made primary, and what is common to both ends with this update. `stays` if this site has promised hosts more than that.
    ThirdPromoted {
        common: UpdateNumber,
        stays: bool,
    },
    /// It went on from here, and has all of what it lacked: what follows `after`, up to `upto`.
    ThirdResumed {
        after: UpdateNumber,
        upto: UpdateNumber,
        sent_bytes: u64,
        took: Nanos,
    },
    /// Of what the journal keeps for a third at most, so much is kept now.
    ThirdLapsesSoon {
        position: UpdateNumber,
        kept_percent: u64,
    },
    ThirdLost {
        reason: LossReason,
    },
    /// The journal no longer has what the third lacks, which has everything up to `position`.
    ThirdLapsed {
        position: UpdateNumber,
        oldest: UpdateNumber,
    },
    /// This third pulls from that site, from this update on.
    SourceFollowed {
        site: SiteId,
        from: UpdateNumber,
    },
    SourceLost {
        site: SiteId,
        reason: LossReason,
    },
    /// That site no longer has what this third lacks.
    SourceLapsed {
        site: SiteId,
        position: UpdateNumber,
        oldest: UpdateNumber,
    },
    /// The peer lacks more than the journal holds: so many blocks are to be copied, or compared, if nobody knows what it lacks: then these are
    /// all there are.
    ResyncBegan {
        blocks: u64,
        whole: bool,
    },
    /// Hosts write faster than the peer is copied that: the journal holds what the copy needs to end, and whoever has no room meanwhile
    /// waits, for so long at most.
    HostsAwaitCopy {
        at_most: Nanos,
    },
    /// It has them, and follows from there.
    ResyncEnded {
        at: UpdateNumber,
        blocks: u64,
        /// Blocks that were left out.
        equal: u64,
        took_ns: u64,
    },
    /// The third has everything up to `position`, the journal begins with `oldest`, and so many blocks are compared, so that it is copied what
    /// differs; or what is left of them, if it `goes_on`.
    CopyToThirdBegan {
        position: UpdateNumber,
        oldest: UpdateNumber,
        blocks: u64,
        goes_on: bool,
    },
    /// The third has installed what it was copied, and follows from there; so many blocks were left out.
    CopyToThirdEnded {
        at: UpdateNumber,
        blocks: u64,
        equal: u64,
        took_ns: u64,
    },
    /// This third is copied to by that site, which compares so many blocks.
    CopyBegan {
        site: SiteId,
        blocks: u64,
    },
    /// Both sites went on alone after `common`, and an operator has decided: this site's stream is kept, or goes.
    SplitResolved {
        common: UpdateNumber,
        here: bool,
    },
    /// So many blocks of the same resync were staged before this site's last start, and it goes on behind them.
    LogFound {
        blocks: u64,
    },
    /// Everything that this site lacked is staged; it starts anew to install that.
    StagedWhole {
        upto: UpdateNumber,
    },
    Installed {
        upto: UpdateNumber,
        blocks: u64,
    },
    /// The staging file cannot be written, with so many blocks in it; the volumes are what they were.
    StagingFailed {
        fault: IoFault,
        blocks: u64,
    },
    Stopped,
}

/// What has made a bad block of a volume whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairedBy {
    /// The peer's block.
    Peer,
    /// The cache had it, as a scrub found.
    Memory,
    /// Newer data was written over it.
    NewerData,
}

/// Why a bad batch of the journal is still needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchStays {
    /// The peer is away, and has not all of its updates durably.
    Unsettled,
    /// It is held for the peer, which is away.
    ForPeer,
}

/// Why a bad block stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRepaired {
    NoPeer,
    /// The peer is not connected.
    Away,
    /// It did not answer in time.
    NoAnswer,
    /// It holds other content there.
    OtherContent,
    DamagedToo,
    /// It could not look.
    Busy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    Disconnected,
    LatencyBudget { unanswered_ns: u64 },
    Protocol(&'static str),
}

#[derive(Debug)]
pub struct Outbox {
    pub to_front: Vec<FixedQueue<HostReply>>,
    /// Pages granted to each front's pool, and to the link's.
    pub front_pages: Vec<FixedQueue<PageId>>,
    pub link_pages: FixedQueue<PageId>,
    pub to_link: FixedQueue<ToLink>,
    /// By the number of the link: [`GroupConfig::remotes`].
    pub remotes: Vec<RemoteOutbox>,
    pub to_journal: FixedQueue<IoRequest>,
    pub to_volumes: FixedQueue<IoRequest>,
    pub to_metadata: FixedQueue<MetadataRequest>,
    pub to_admin: FixedQueue<AdminReply>,
    /// Drained every turn; a full queue drops the sample, which only thins the histogram.
    pub stamps: FixedQueue<WriteStamps>,
    pub events: FixedQueue<Event>,
}

/// For a link to a site outside the synchronous set, or of a third to one inside.
#[derive(Debug)]
pub struct RemoteOutbox {
    pub to_link: FixedQueue<ToLink>,
    /// Pages granted to it.
    pub pages: FixedQueue<PageId>,
}

impl RemoteOutbox {
    fn new() -> RemoteOutbox {
        RemoteOutbox {
            to_link: FixedQueue::new(CATCH_UP_SLOTS + LINK_CONTROL_MAX),
            pages: FixedQueue::new(STAGING_PAGES),
        }
    }
}

/// Stamps and events one turn may leave.
pub const SAMPLES_A_TURN_MAX: usize = 4096;
pub const EVENTS_A_TURN_MAX: usize = 256;
/// Messages to the link that are not updates: acknowledgements, heartbeats, flush requests, handshakes.
pub const LINK_CONTROL_MAX: usize = 64;

/// Connections that are to end and of which the link has not heard so: it hears of one before it makes the next but one.
pub const LINK_CLOSES_MAX: usize = 2;

impl Outbox {
    /// Of a group of this configuration.
    pub fn of(config: &GroupConfig) -> Outbox {
        let remotes = (0..config.remotes()).map(|_| RemoteOutbox::new()).collect();
        Outbox { remotes, ..Outbox::new(config.fronts) }
    }

    /// Of a group without a third.
    pub fn new(fronts: usize) -> Outbox {
        let each = |capacity: usize| (0..fronts).map(move |_| capacity);
        Outbox {
            to_front: each(FRONT_TICKETS_MAX).map(FixedQueue::new).collect(),
            front_pages: each(STAGING_PAGES).map(FixedQueue::new).collect(),
            link_pages: FixedQueue::new(STAGING_PAGES),
            to_link: FixedQueue::new(WINDOW_UPDATES_MAX + CATCH_UP_SLOTS + LINK_CONTROL_MAX),
            remotes: Vec::new(),
            to_journal: FixedQueue::new(JOURNAL_IO_SLOTS),
            to_volumes: FixedQueue::new(VOLUME_IO_SLOTS),
            to_metadata: FixedQueue::new(METADATA_IO_SLOTS),
            to_admin: FixedQueue::new(2 * ADMIN_REQUESTS_MAX),
            stamps: FixedQueue::new(SAMPLES_A_TURN_MAX),
            events: FixedQueue::new(EVENTS_A_TURN_MAX),
        }
    }
}
