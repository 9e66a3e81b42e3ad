//! What a group is told at start. Checked by `node::config`; the cores assert it.

use crate::base::{GroupId, Nanos, SiteId};
pub use crate::format::wire::{AckLevel, DifferentialBy, Role};

/// What a primary does when its peer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OnPeerLoss {
    /// Hold writes until the peer returns or their deadline passes.
    Suspend = 1,
    /// Make `SoloBegin` durable, then acknowledge alone.
    Solo = 2,
}

/// What a primary does when a host's write needs a slot of the differential volume and there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OnDifferentialFull {
    /// Delete the oldest snapshot that is not protected; the write waits for its slots.
    DeleteOldest = 1,
    /// The host gets an error: snapshots are worth more than new data.
    Error = 2,
}

/// A volume of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    pub name: String,
    /// Size in blocks.
    pub blocks: u64,
}

/// Everything a group needs to know; `Clone` so that a simulated site can restart with it.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    pub group: GroupId,
    pub site: SiteId,
    /// What a newly formatted site starts as; afterwards what its disk says counts.
    pub role: Role,
    /// Whether a secondary is configured at all; without one the group acknowledges alone. A third has none.
    pub peer: Option<PeerConfig>,
    /// The third site that pulls from this one, if there is one.
    pub third: Option<ThirdConfig>,
    /// Of a third: the sites that it pulls from, in its order of preference. Empty at every other site.
    pub sources: Vec<SourceConfig>,
    /// How what no journal has is copied, to this site and from it.
    pub resync: ResyncConfig,
    pub volumes: Vec<VolumeSpec>,
    pub journal_blocks: u64,
    /// Slots for old blocks that snapshots keep; both sites have the same. Zero if the group takes no snapshots.
    pub differential_blocks: u64,
    pub on_differential_full: OnDifferentialFull,
    /// How old blocks come to the secondary; both sites have the same.
    pub differential: DifferentialBy,
    /// Whether the journal's device may lose completed writes at power loss. If not, journaled is durable.
    pub journal_volatile: bool,
    /// Pages of the arena, page zero included. Everything the group caches or stages lives in them.
    pub pages: u32,
    pub ack: AckLevel,
    /// Longest a host's operation may wait for the group before it gets an error (INV-11).
    pub host_deadline: Nanos,
    /// Longest completed journal writes stay unflushed while no host asks.
    pub flush_interval: Nanos,
    /// Journal bytes that start a flush before the interval is over, in blocks.
    pub flush_blocks: u64,
    /// Volume writes in flight when destage is in a hurry.
    pub destage_depth_max: usize,
    /// Whether a cache that holds all volumes reads them at start.
    pub warm_up: bool,
    pub fronts: usize,
}

impl GroupConfig {
    /// Links beside the peer's: to the third, or of a third to its sources. They are numbered from 0, in that order.
    pub fn remotes(&self) -> usize {
        usize::from(self.third.is_some()) + self.sources.len()
    }

    /// Fronts and links that have a pool of pages to receive blocks into, at most; a third sends none.
    pub fn receivers(&self) -> usize {
        self.fronts + self.sources.len().max(1)
    }
}

/// A site outside the synchronous set. It pulls what is settled, and nobody ever waits for it.
#[derive(Clone, Debug)]
pub struct ThirdConfig {
    pub site: SiteId,
    /// It is told this often what is settled, and tells its position in return.
    pub heartbeat_interval: Nanos,
    /// A connection on which it does not answer for this long is closed.
    pub silence_max: Nanos,
    /// It is sent no more than so much a second, if that is limited; other frames than updates are not counted.
    pub bandwidth_max: Option<u64>,
}

/// A site that a third pulls from.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    pub site: SiteId,
    /// A connection on which it says nothing for this long is closed.
    pub silence_max: Nanos,
}

#[derive(Clone, Debug)]
pub struct PeerConfig {
    pub site: SiteId,
    pub on_peer_loss: OnPeerLoss,
    /// The peer is lost when an update or heartbeat goes unanswered for this long.
    pub latency_budget: Nanos,
    /// A silent link carries a heartbeat this often.
    pub heartbeat_interval: Nanos,
}

/// A promise not to take over lasts so many of the longest silences after which a peer is lost, so that a primary which has its peer never
/// lacks one.
const SILENCES: u64 = 4;

/// It is kept longer than it is relied on, by the part of it by which two sites' clocks may differ in rate.
const RATES_DIFFER_BY: u64 = 16;

impl PeerConfig {
    /// What an acknowledgement of a site so configured promises: by the bounds of a configuration under five minutes, where a hello can say
    /// an hour.
    pub fn promise(&self) -> Nanos {
        Nanos(SILENCES * (self.latency_budget.0 + self.heartbeat_interval.0))
    }

    /// How long such a site keeps it.
    pub fn promise_kept(&self) -> Nanos {
        let promise = self.promise();
        promise.plus(Nanos(promise.0 / RATES_DIFFER_BY))
    }
}

/// How a site that lacks more than the journal holds comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResyncConfig {
    /// Blocks of the staging file, where a site keeps what it is copied until it has all of it. Without one the journal waits
    /// for a peer however long it is away, and a third that lapsed stays what it is.
    pub staging_blocks: u64,
    /// While somebody is copied what it lacks, one in a hundred writes of the hosts may take longer.
    pub p99_budget: Nanos,
}

impl ResyncConfig {
    /// The journal waits.
    pub const NONE: ResyncConfig = ResyncConfig { staging_blocks: 0, p99_budget: Nanos(0) };
}
