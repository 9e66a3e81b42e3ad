//! A site's configuration: one TOML file, read whole and checked whole before anything is opened. Every mistake is
//! reported at once, each with file, line, key and what to write instead.

mod problems;
pub mod quantity;
mod raw;
mod sample;
mod validate;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::base::*;
use crate::core::config::{
    AckLevel, DifferentialBy, GroupConfig, OnDifferentialFull, OnPeerLoss, PeerConfig, ResyncConfig, Role,
    SourceConfig, ThirdConfig, VolumeSpec,
};
use crate::core::group::{Group as CoreGroup, pages_min};
use crate::core::outbox::RemoteTables;
use crate::format::superblock::RING_FIRST_BLOCK;
use crate::format::tables::table_pages_max;
use crate::io::quic::identity::Fingerprints;
use crate::io::quic::transport::{Congestion, PAYLOAD_BYTES_MAX};

pub use problems::{ConfigError, Problem};
pub use sample::SAMPLE;

/// Defaults and limits of what a user may set; each is in `docs/OPERATIONS.md`.
pub mod limits {
    /// Smallest journal: a catch-up window and several batches beside it.
    pub const JOURNAL_BYTES_MIN: u64 = 16 << 20;
    /// Largest journal: its block numbers stay far from overflow, and replaying it stays a matter of minutes.
    pub const JOURNAL_BYTES_MAX: u64 = 1 << 40;
    /// Largest volume (16 TiB), which keeps block indexes of a volume below 2^32.
    pub const VOLUME_BYTES_MAX: u64 = 16 << 40;
    /// Smallest differential volume.
    pub const DIFFERENTIAL_BYTES_MIN: u64 = 1 << 20;
    /// Smallest cache: staging of front and link, the shared tables, and something to cache in.
    pub const CACHE_BYTES_MIN: u64 = 64 << 20;
    /// Largest cache (8 TiB): page ids are 32 bits, one value means none.
    pub const CACHE_BYTES_MAX: u64 = 8 << 40;
    pub const CACHE_BYTES: u64 = 1 << 30;
    /// Fronts that the cache must have room for: NBD, and a load from inside.
    pub const FRONTS: usize = 2;
    /// Cores one group can use: group, link, capture and front.
    pub const CORES_MAX: usize = 4;
    /// Linux's `CPU_SETSIZE`.
    pub const CPU_MAX: i64 = 1023;
    pub const HOST_DEADLINE_NS: u64 = 30_000_000_000;
    /// Fifty milliseconds are more than four probe timeouts on a route of up to 3 ms, so one lost datagram never counts.
    pub const LATENCY_BUDGET_NS: u64 = 50_000_000;
    /// Four probe timeouts of a route without any delay of its own: the link's acknowledgement delay dominates them.
    pub const LATENCY_BUDGET_MIN_NS: u64 = 10_000_000;
    /// Twenty a second notice an idle pair's lost peer within a tenth of a second, and cost it under 1% of a core.
    pub const HEARTBEAT_INTERVAL_NS: u64 = 50_000_000;
    /// A third is told what is settled this often when nothing else tells it, and answers with its position: its lag is known to a few
    /// tenths of a second, and an idle link far away costs nothing.
    pub const THIRD_HEARTBEAT_NS: u64 = 200_000_000;
    /// Above QUIC's own idle timeout, which notices a dead path; this is for a site that lives and answers nothing.
    pub const THIRD_SILENCE_NS: u64 = 10_000_000_000;
    /// The longest update is on its way for two seconds then, well below the silence after which a connection is given up.
    pub const THIRD_BANDWIDTH_MIN: u64 = 64 << 10;
    /// More than any network has: the key's upper end is there to refuse slips of the pen.
    pub const THIRD_BANDWIDTH_MAX: u64 = 1 << 40;
    /// Some times what a write takes on disks and a network that are not slow.
    pub const RESYNC_P99_BUDGET_NS: u64 = 5_000_000;
    /// Never: how long a scrub takes, and when it may, only the operator knows.
    pub const SCRUB_EVERY_NS: u64 = 0;
    pub const FLUSH_INTERVAL_NS: u64 = 5_000_000;
    pub const FLUSH_BYTES: u64 = 4 << 20;
    pub const DESTAGE_DEPTH: i64 = 64;
    pub const SPIN_NS: u64 = crate::reactor::IdlePolicy::ADAPTIVE_SPIN.0;
    pub const SCHEDULE_EVERY_NS_MIN: u64 = 1_000_000_000;
    /// A year.
    pub const SCHEDULE_EVERY_NS_MAX: u64 = 365 * 86_400 * 1_000_000_000;
    /// The time of a scheduled snapshot takes the other 17 bytes of its name.
    pub const SCHEDULE_NAME_BYTES_MAX: usize = super::NAME_BYTES_MAX - 17;
    /// `sockaddr_un` holds 108 bytes, the last one zero.
    pub const SOCKET_PATH_BYTES_MAX: usize = 107;
    /// IPv6's minimum, which QUIC's 1200-byte datagrams need.
    pub const MTU_MIN: i64 = 1280;
    /// What the link's largest datagram needs with IPv6 and UDP headers.
    pub const MTU_MAX: i64 = super::PAYLOAD_BYTES_MAX as i64 + 48;
}

/// A whole, checked configuration. All paths are absolute or relative to the working directory, ready to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it was read from, for messages.
    pub file: PathBuf,
    pub site: Site,
    pub group: Group,
    pub volumes: Vec<Volume>,
    pub journal: Journal,
    pub differential: Differential,
    /// Where a secondary keeps what it is copied until it has all of it.
    pub staging: PathBuf,
    /// The redb file of management information.
    pub metadata: PathBuf,
    /// Snapshots that a primary takes by itself.
    pub schedules: Vec<Schedule>,
    /// Bytes for cached data, its index, and staging together.
    pub cache_bytes: u64,
    /// Whether a cache that holds all volumes reads them at start.
    pub warm_up: bool,
    pub replication: Option<Replication>,
    /// The third site that pulls from this one.
    pub third: Option<Remote>,
    /// Of a third: the sites that it pulls from, in its order of preference.
    pub sources: Vec<Remote>,
    pub nbd: Nbd,
    pub reactors: Reactors,
    pub log: Log,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    pub name: String,
    pub id: SiteId,
    pub role: Role,
    pub directory: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// A program and its arguments, run when the role has changed; empty for none.
    pub on_role_change: Vec<String>,
    /// How often all volumes are read and what has gone bad is repaired; 0 for never.
    pub scrub_every: Nanos,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub ack: AckLevel,
    pub on_peer_loss: OnPeerLoss,
    pub on_differential_full: OnDifferentialFull,
    pub differential: DifferentialBy,
    pub host_deadline: Nanos,
    pub latency_budget: Nanos,
    pub heartbeat_interval: Nanos,
    /// What one in a hundred writes of the hosts may exceed while the peer is copied what it lacks.
    pub resync_p99_budget: Nanos,
    pub flush_interval: Nanos,
    pub flush_bytes: u64,
    pub destage_depth: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    /// What it is formatted with, and hosts see at first.
    pub size_bytes: u64,
    /// What is laid out for it: what it may be extended to while the site runs.
    pub room_bytes: u64,
    /// Of what hosts see.
    pub space: FileSpace,
    pub path: PathBuf,
    /// One crc32c (4 bytes) a block.
    pub checksums: PathBuf,
}

/// What `lockstep format` does about a file's space; a device has all of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSpace {
    /// Only the size is set: blocks are allocated as they are written, and the filesystem may run out of them.
    Sparse,
    /// Blocks are allocated.
    Reserved,
    /// Blocks are allocated and written, so that later writes change nothing of the filesystem's own.
    Written,
}

impl Volume {
    /// That are laid out.
    pub fn blocks(&self) -> u64 {
        self.room_bytes / BLOCK_BYTES as u64
    }

    /// Its size and its room, for people.
    pub fn shown_size(&self) -> String {
        let size = quantity::show_size(self.size_bytes);
        match self.room_bytes > self.size_bytes {
            true => format!("{size} (room for {})", quantity::show_size(self.room_bytes)),
            false => size,
        }
    }

    /// That hosts see at first.
    pub fn size_blocks(&self) -> u64 {
        self.size_bytes / BLOCK_BYTES as u64
    }

    /// Bytes of the checksum file: whole blocks of 1024 sums.
    pub fn checksum_bytes(&self) -> u64 {
        (self.blocks() * 4).next_multiple_of(BLOCK_BYTES as u64)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    pub path: PathBuf,
    pub bytes: u64,
    /// Whether the device may lose completed writes at power loss, so that they need a flush to be durable.
    pub volatile: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differential {
    pub path: PathBuf,
    pub bytes: u64,
    pub space: FileSpace,
}

/// Snapshots at regular times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// What the names of its snapshots begin with; the time they were taken follows.
    pub name: String,
    pub every: Nanos,
    /// As many of the newest are kept.
    pub keep: usize,
    /// All of the group's if empty.
    pub volumes: Vec<String>,
}

/// The other site, and this one's end of the link to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replication {
    pub peer: Peer,
    pub link: Link,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub id: SiteId,
    pub address: SocketAddr,
    /// Of the peer's certificate, as `lockstep keygen` printed it there; more than one while its key is being replaced.
    pub fingerprints: Fingerprints,
}

/// A site outside the synchronous set, or of a third one inside, and this one's end of the link to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub name: String,
    pub id: SiteId,
    /// Where a third dials.
    pub address: Option<SocketAddr>,
    pub fingerprints: Fingerprints,
    pub link: Link,
    /// Bytes a second of updates that a third is sent at most, if that is limited.
    pub bandwidth_max: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub listen: SocketAddr,
    pub identity: PathBuf,
    /// Largest IP packet of the route, in bytes; the route's own when not given.
    pub mtu: Option<u16>,
    pub congestion: Congestion,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nbd {
    pub socket: PathBuf,
    pub tcp: Option<SocketAddr>,
    /// That `tcp` may be an address that others reach is meant.
    pub allow_unauthenticated_tcp: bool,
}

/// Which core runs what, and what an idle core does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reactors {
    /// CPU numbers; one pinned thread each.
    pub cores: Vec<usize>,
    /// CPUs of the group with its journal, the link, the volumes (capture and destage), and the front.
    pub group: usize,
    pub link: usize,
    pub capture: usize,
    pub front: usize,
    pub idle: Idle,
    /// How long an adaptive reactor spins before it parks.
    pub spin: Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    Spin,
    Adaptive,
    Park,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A `tracing` filter: `info`, or `info,lockstep::io=debug`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Config {
    /// Reads and checks a file. Relative paths in it start at the site's directory, which starts at the file's folder.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::new(file, vec![Problem::unreadable(&source)]))?;
        Config::parse(&text, file)
    }

    /// Checks a configuration's text; opens nothing. `file` names it in errors and is where relative paths start.
    pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
        validate::config(text, file).map_err(|problems| ConfigError::new(file, problems))
    }

    pub fn peer_config(&self) -> Option<PeerConfig> {
        self.replication.as_ref().map(|replication| PeerConfig {
            site: replication.peer.id,
            on_peer_loss: self.group.on_peer_loss,
            latency_budget: self.group.latency_budget,
            heartbeat_interval: self.group.heartbeat_interval,
        })
    }

    /// What the group is told. `pages` is the arena's size, which `cache` bounds; `fronts` counts NBD and any load.
    pub fn group_config(&self, pages: u32, fronts: usize) -> GroupConfig {
        GroupConfig {
            group: self.group_id(),
            site: self.site.id,
            role: self.site.role,
            peer: self.peer_config(),
            third: self.third.as_ref().map(|third| ThirdConfig {
                site: third.id,
                heartbeat_interval: Nanos(limits::THIRD_HEARTBEAT_NS),
                silence_max: Nanos(limits::THIRD_SILENCE_NS),
                bandwidth_max: third.bandwidth_max,
            }),
            sources: self
                .sources
                .iter()
                .map(|source| SourceConfig { site: source.id, silence_max: Nanos(limits::THIRD_SILENCE_NS) })
                .collect(),
            resync: ResyncConfig {
                staging_blocks: if self.is_copied_to() { self.staging_blocks() } else { 0 },
                p99_budget: self.group.resync_p99_budget,
            },
            volumes: self
                .volumes
                .iter()
                .map(|volume| VolumeSpec { name: volume.name.clone(), blocks: volume.blocks() })
                .collect(),
            journal_blocks: self.journal.bytes / BLOCK_BYTES as u64,
            differential_blocks: self.differential.bytes / BLOCK_BYTES as u64,
            on_differential_full: self.group.on_differential_full,
            differential: self.group.differential,
            journal_volatile: self.journal.volatile,
            pages,
            ack: self.group.ack,
            host_deadline: self.group.host_deadline,
            flush_interval: self.group.flush_interval,
            flush_blocks: self.group.flush_bytes / BLOCK_BYTES as u64,
            destage_depth_max: self.group.destage_depth,
            warm_up: self.warm_up,
            fronts,
        }
    }

    /// Pages that fit the cache beside their index and the group's tables. None if too few to work with.
    pub fn pages(&self, fronts: usize) -> Option<u32> {
        let fits = |pages: u32| self.memory_bytes(pages, fronts) <= self.cache_bytes;
        let fewest = self.pages_min();
        if !fits(fewest) {
            return None;
        }
        let (mut fit, mut beyond) =
            (fewest, u32::try_from(self.cache_bytes / BLOCK_BYTES as u64).ok()?.max(fewest) + 1);
        while beyond - fit > 1 {
            let middle = fit + (beyond - fit) / 2;
            if fits(middle) { fit = middle } else { beyond = middle }
        }
        Some(fit)
    }

    /// The fewest pages that the group works with.
    pub fn pages_min(&self) -> u32 {
        pages_min(self.third.is_some())
    }

    /// The third, or what a third pulls from, in the order in which the group numbers their links.
    pub fn remotes(&self) -> impl Iterator<Item = &Remote> {
        self.third.iter().chain(&self.sources)
    }

    /// Memory of a group with this many pages: they, their index, and its tables.
    pub fn memory_bytes(&self, pages: u32, fronts: usize) -> u64 {
        let volume_blocks = self.volumes.iter().map(Volume::blocks).sum();
        let journal_blocks = self.journal.bytes / BLOCK_BYTES as u64;
        let differential_blocks = self.differential.bytes / BLOCK_BYTES as u64;
        u64::from(pages) * BLOCK_BYTES as u64
            + volume_blocks / 8
            + (self.remotes().count() * RemoteTables::bytes()) as u64
            + CoreGroup::overhead_bytes(
                pages,
                fronts,
                journal_blocks,
                volume_blocks,
                differential_blocks,
                self.third.is_some(),
            )
    }

    /// Whether there is anybody who may copy to this site what it lacks, so that it has a staging file.
    pub fn is_copied_to(&self) -> bool {
        self.replication.is_some() || !self.sources.is_empty()
    }

    /// Blocks that the staging file may grow to: every block and slot with a header of its own, tables that name all slots, and as much
    /// as a journal holds.
    pub fn staging_blocks(&self) -> u64 {
        let volume_blocks: u64 = self.volumes.iter().map(Volume::blocks).sum();
        let journal_blocks = self.journal.bytes / BLOCK_BYTES as u64;
        let differential_blocks = self.differential.bytes / BLOCK_BYTES as u64;
        let kept_blocks = differential_blocks + table_pages_max(differential_blocks);
        2 * (volume_blocks + kept_blocks + journal_blocks) + RING_FIRST_BLOCK
    }

    pub fn group_id(&self) -> GroupId {
        GroupId(xxhash_rust::xxh3::xxh3_128(self.group.name.as_bytes()))
    }
}
