//! What a group tells of itself.

use super::peering::Talk;
pub use super::pulling::{SourceState, SourceStatus};
pub use super::readiness::{Delta, LAPSE_WARN_PERCENT, NoDelta, Resumed, ThirdState, ThirdStatus};
pub use super::resync::ResyncStatus;
pub use super::scrub::{BadPlace, Part, PartStatus, ScrubStatus};
use super::split::SplitBrain;
use super::{Alone, Group, Phase};
use crate::base::*;
use crate::core::config::Role;

/// An operator hears of a differential volume that is this full, in percent, and again only after it was emptier.
pub const DIFFERENTIAL_WARN_PERCENT: u64 = 80;

/// Counts since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub reads: u64,
    pub writes: u64,
    pub write_bytes: u64,
    /// Operations answered with an error by their deadline or the site's failure.
    pub expired: u64,
    pub volume_reads: u64,
    pub journal_batches: u64,
    pub journal_blocks: u64,
    pub journal_flushes: u64,
    pub destage_writes: u64,
    /// Dirty blocks written to their volumes, and clean ones written again between them.
    pub destage_blocks: u64,
    pub bridged_blocks: u64,
    /// Blocks read at start before anybody asked for them.
    pub warmed_blocks: u64,
    /// Old blocks written to the differential volume, and slots that became free again.
    pub captured_blocks: u64,
    /// Old blocks read before their update was numbered, and sent with one: differential data by value.
    pub old_block_reads: u64,
    pub old_blocks_sent: u64,
    pub reclaimed_blocks: u64,
    /// Updates sent to the peer from the journal instead of memory.
    pub catch_up_updates: u64,
    /// Updates sent to a third, of these from the journal, and pulled by one.
    pub fed_updates: u64,
    pub fed_from_journal: u64,
    pub pulled_updates: u64,
    /// Bytes of all frames given to a third's link, headers and payload; payload blocks pulled by one.
    pub fed_bytes: u64,
    pub pulled_blocks: u64,
    /// Blocks that the peer was copied because its position was no longer in the journal.
    pub resync_blocks: u64,
    /// Blocks that a resync of all of them left out, since they are equal at both sites, or zeros.
    pub resync_equal_blocks: u64,
    /// Bad blocks that are whole again, and those found that could not be repaired then.
    pub repaired_blocks: u64,
    pub unrepaired_blocks: u64,
    /// Blocks that had gone bad, as a comparison of both sites found, on the disks of this one and of the other.
    pub damaged_here: u64,
    pub damaged_there: u64,
    /// Updates found in the journal after the checkpoint when the site started.
    pub replayed_updates: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    Recovering,
    /// A primary whose secondary has not answered since it started.
    AwaitingPeer,
    /// A primary whose third was made primary, and that has nothing which this lacks: it serves nobody.
    Superseded,
    /// A primary that hands over to its peer, or steps down: its hosts are disconnected.
    Leaving,
    Serving,
    Failed,
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    NotConfigured,
    Disconnected,
    Greeting,
    /// Tail cut, fetch or comparison of marks under way.
    Reconciling,
    CatchingUp,
    /// What it lacks beyond the journal is being copied.
    Resyncing,
    InSync,
}

/// What a sweep is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestageState {
    Idle,
    /// Old blocks go to the differential volume.
    Keeping,
    /// Their management information becomes durable.
    Committing,
    /// Blocks go to their volumes.
    Sweeping,
    /// Checksums, flushes and the superblock.
    Checkpointing,
}

/// Pending work of one indicator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingWork {
    pub count: u64,
    pub bytes: u64,
    pub oldest_ns: u64,
}

/// How far a third is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    pub updates: u64,
    /// Payload of these updates, at most.
    pub bytes: u64,
    /// How long the first of them has been settled, at most: since this site started, of what was settled before.
    pub age: Nanos,
}

/// Where a group stands: the part of its status that costs nothing to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub role: Role,
    pub state: GroupState,
    pub peer: PeerState,
    pub solo: bool,
    pub generation: Generation,
    pub last: UpdateNumber,
    pub settled: UpdateNumber,
    pub checkpoint: UpdateNumber,
}

#[derive(Clone, Copy, Debug)]
pub struct GroupStatus {
    pub role: Role,
    /// What hosts see of the volumes.
    pub sizes: VolumeSizes,
    pub state: GroupState,
    pub peer: PeerState,
    pub solo: bool,
    /// Nobody is primary as far as this site knows: the last one has stepped down.
    pub vacant: bool,
    /// What this site has that the other one has not is to go, by an operator's word.
    pub gives_way: bool,
    /// What keeps the sites apart that both went on alone, as of when they last met.
    pub split: Option<SplitBrain>,
    pub generation: Generation,
    pub last: UpdateNumber,
    pub journaled: UpdateNumber,
    pub durable: UpdateNumber,
    pub acknowledged: UpdateNumber,
    pub settled: UpdateNumber,
    pub checkpoint: UpdateNumber,
    pub destage: DestageState,
    pub peer_received: UpdateNumber,
    pub peer_journaled: UpdateNumber,
    pub peer_durable: UpdateNumber,
    pub peer_applied: UpdateNumber,
    /// Blocks not yet in the volume (US 6,647,474's first indicator).
    pub local_pending: PendingWork,
    /// Updates the peer has not acknowledged (its second indicator).
    pub remote_pending: PendingWork,
    pub pages_total: u64,
    pub pages_free: u64,
    /// The cache still reads the volumes it holds.
    pub warming_up: bool,
    /// Pages lent to fronts and link to receive into.
    pub pages_staged: u64,
    pub journal_blocks: u64,
    pub journal_used_blocks: u64,
    /// Snapshots that live; slots of the differential volume, and those in use.
    pub snapshots: u64,
    pub differential_blocks: u64,
    pub differential_used_blocks: u64,
    /// Old blocks that are not in their slots yet.
    pub captures: u64,
    /// The management information has everything up to here.
    pub applied: UpdateNumber,
    /// Blocks of volumes that are being repaired.
    pub repairing_blocks: u64,
    pub scrub: ScrubStatus,
    pub operations: u64,
    pub operations_waiting: u64,
    pub resync: ResyncStatus,
    /// How a third site does that pulls from this one, if there is one.
    pub third: Option<ThirdStatus>,
    /// At a third: the sites that it pulls from, in its order of preference.
    pub sources: [Option<SourceStatus>; SOURCES_MAX],
    pub counters: Counters,
}

impl Group {
    pub fn standing(&self) -> Standing {
        let state = match self.phase {
            Phase::Recovering(_) => GroupState::Recovering,
            Phase::Running if self.is_leaving() => GroupState::Leaving,
            Phase::Running if self.serving() => GroupState::Serving,
            Phase::Running if self.is_superseded() => GroupState::Superseded,
            Phase::Running => GroupState::AwaitingPeer,
            Phase::Failed => GroupState::Failed,
            Phase::Stopped => GroupState::Stopped,
        };
        Standing {
            role: self.role,
            state,
            peer: self.peer_state(),
            solo: self.alone == Alone::Yes,
            generation: self.generation,
            last: self.window.last(),
            settled: self.settled,
            checkpoint: self.checkpoint,
        }
    }

    pub fn status(&self, now: Nanos) -> GroupStatus {
        let Standing { role, state, peer, solo, generation, last, settled, checkpoint } = self.standing();
        GroupStatus {
            role,
            sizes: *self.extending.in_force(),
            state,
            peer,
            solo,
            vacant: self.is_vacant(),
            gives_way: self.has_given_way(),
            split: self.split,
            generation,
            last,
            journaled: self.journal.journaled(),
            durable: self.journal.durable(),
            acknowledged: self.visible(),
            settled,
            checkpoint,
            destage: self.destage.state(),
            peer_received: self.peer.received,
            peer_journaled: self.peer.journaled,
            peer_durable: self.peer.durable,
            peer_applied: self.peer.applied,
            local_pending: self.local_pending(now),
            remote_pending: self.remote_pending(now),
            pages_total: self.pages.total() as u64,
            pages_free: self.pages.free() as u64,
            warming_up: self.warming_up(),
            pages_staged: self.staged_pages(),
            journal_blocks: self.journal.ring_blocks(),
            journal_used_blocks: self.journal.used_blocks(),
            snapshots: self.snapshots.living().count() as u64,
            differential_blocks: self.slots.total(),
            differential_used_blocks: self.slots.total() - self.slots.free(),
            captures: self.captures.len() as u64,
            applied: self.applied,
            repairing_blocks: self.mending.len() as u64,
            scrub: self.scrub_status(now),
            operations: self.ops_live as u64,
            operations_waiting: (self.queued.len() + self.stalled.len()) as u64,
            resync: self.resync_status(now),
            third: self.third_status(now),
            sources: self.source_status(now),
            counters: self.counters,
        }
    }

    /// What readers of this site may see goes up to here.
    pub(super) fn visible(&self) -> UpdateNumber {
        match self.role {
            Role::Primary => self.acknowledged,
            Role::Secondary | Role::Third => self.settled,
        }
    }

    pub(super) fn peer_state(&self) -> PeerState {
        match self.peer.talk {
            _ if self.config.peer.is_none() => PeerState::NotConfigured,
            Talk::Absent => PeerState::Disconnected,
            Talk::Greeting { .. } => PeerState::Greeting,
            Talk::Cutting { .. } | Talk::Fetching { .. } | Talk::CutPending { .. } => PeerState::Reconciling,
            Talk::Merging | Talk::Yielding => PeerState::Reconciling,
            Talk::Streaming if self.in_set() && self.peer_level() >= self.joint_from.previous() => {
                if self.peer_level().0 + WINDOW_UPDATES_MAX as u64 / 2 >= self.window.last().0 {
                    PeerState::InSync
                } else {
                    PeerState::CatchingUp
                }
            }
            Talk::Streaming => PeerState::CatchingUp,
            Talk::Copying | Talk::Staging => PeerState::Resyncing,
            Talk::Following if self.is_counted_on() && self.peer.told_settled <= self.window.last() => {
                PeerState::InSync
            }
            Talk::Following => PeerState::CatchingUp,
        }
    }

    fn local_pending(&self, now: Nanos) -> PendingWork {
        let count = self.cache.dirty_blocks() + self.window.last().0 - self.settled.0;
        // What is settled came before what is not.
        let since = self.destage.dirty_since().or_else(|| self.numbered_at(self.settled.next()));
        PendingWork {
            count,
            bytes: self.cache.dirty_blocks() * BLOCK_BYTES as u64
                + self.window.payload_blocks() as u64 * BLOCK_BYTES as u64,
            oldest_ns: since.map_or(0, |since| now.since(since).0),
        }
    }

    fn remote_pending(&self, now: Nanos) -> PendingWork {
        if self.role != Role::Primary || self.config.peer.is_none() {
            return PendingWork::default();
        }
        let level = self.peer_level().min(self.window.last());
        let oldest = level.next();
        let mut bytes = 0;
        for number in oldest.max(self.window.retired().next()).0..=self.window.last().0 {
            bytes += (self.window.get(UpdateNumber(number)).update.payload_blocks() * BLOCK_BYTES) as u64;
        }
        // What left the window is not weighed, since the peer may lack millions; it may be sent each block once instead.
        if oldest <= self.window.retired() {
            bytes = bytes.max(self.changed.count() * BLOCK_BYTES as u64);
        }
        PendingWork {
            count: self.window.last().0 - level.0,
            bytes,
            oldest_ns: match self.numbered_at(oldest) {
                Some(since) => now.since(since).0,
                None => self.peer.ages.beyond(now, level).0,
            },
        }
    }

    /// When an update that is in the window was numbered.
    fn numbered_at(&self, number: UpdateNumber) -> Option<Nanos> {
        self.window.contains(number).then(|| self.window.get(number).stamps.numbered_at)
    }

    /// Free pages, and pages that somebody holds: what an audit adds up.
    pub fn pages(&self) -> (usize, usize) {
        (self.pages.free(), self.pages.used())
    }
}
