//! The lines on the control socket.

use serde::{Deserialize, Serialize};

use super::{KeysReloaded, Status, Verified};
use crate::node::telemetry::WireReport;

/// Longest request line, in bytes; the requests below need a few dozen.
pub const REQUEST_BYTES_MAX: u64 = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
    /// `reset` begins the histograms anew after this answer.
    Histogram {
        reset: bool,
    },
    /// Answered once the goal is reached, or with an error after `timeout_ms`.
    Wait {
        goal: Goal,
        timeout_ms: u64,
    },
    /// Take a snapshot of the volumes named, or of all if none is, at one number; primaries only.
    SnapshotCreate {
        name: String,
        volumes: Vec<String>,
        protected: bool,
    },
    /// Primaries only.
    SnapshotDelete {
        name: String,
    },
    /// Whether it may be deleted to make room; primaries only.
    SnapshotProtect {
        name: String,
        protected: bool,
    },
    SnapshotList,
    /// Make the volumes named, or all that the snapshot has, what they were when it was taken; primaries only, and only while no
    /// host has them open. Answered by `Progress` now and then before the last answer.
    SnapshotRollback {
        name: String,
        volumes: Vec<String>,
    },
    /// Take over as primary, or begin without the peer. `fenced` says that the other site is dead or cut off from its hosts.
    Promote {
        fenced: bool,
        /// At a third: so many updates are given up, which it was told are lost at least.
        #[serde(default)]
        accept_loss: Option<u64>,
    },
    /// The secondary becomes primary and the primary follows it, at either site; answered when this one is what it becomes.
    Switchover,
    /// This site stops being primary, and nobody is.
    Demote,
    /// The sites both went on alone: what this site has that the other one has not is to go. `discard` is this site's name, as a word
    /// that it is meant.
    Resolve {
        discard: String,
    },
    /// Hosts are to see so many bytes of the volume at all sites, of what is laid out for it; primaries only.
    Extend {
        volume: String,
        bytes: u64,
    },
    /// Read all that the site has on its disks, so much a second at most, and repair what has gone bad; 0 ends that. Answered at once: the
    /// status says how far it is.
    Scrub {
        bytes_per_second: u64,
    },
    /// Compare the volumes named, or all, with the other site's, so much a second at most; primaries only. Answered by `Progress` now and
    /// then before the last answer; whoever goes away ends it.
    Verify {
        volumes: Vec<String>,
        bytes_per_second: u64,
        /// The site whose content is to be at both where they differ.
        #[serde(default)]
        repair: Option<String>,
    },
    /// Read the identity and the other sites' fingerprints from their files anew. `disconnect` ends the connection to a site that has shown what
    /// is not in its list any more; without it such a list is refused.
    KeysReload {
        #[serde(default)]
        disconnect: bool,
    },
    /// Drain, checkpoint, and end the process; answered at once.
    Stop,
}

/// What `lockstep wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Every update up to the request's moment is durable on both sites and in the secondary's volumes, so that its
    /// exports show it; while solo, and without a peer, durable here.
    Settled,
    /// The peer holds every acknowledged update and gates acknowledgements.
    InSync,
    /// A cache that holds all volumes has read them; one that does not is as warm as it gets.
    Warm,
}

/// A snapshot as the control plane shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotShown {
    pub name: String,
    /// The update that took it, and its place in the stream on every site.
    pub number: u64,
    /// Nanoseconds since 1970, by the clock of the site that took it.
    pub taken_at_ns: u64,
    pub volumes: Vec<String>,
    pub protected: bool,
    /// Whether this site can show its content yet.
    pub readable: bool,
    /// What deleting it alone would give back of the differential volume.
    pub held_bytes: u64,
}

/// A group's snapshots, and the room there is for what they keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotList {
    /// Oldest first.
    pub snapshots: Vec<SnapshotShown>,
    /// What each holds is counted of every update up to here.
    pub as_of: u64,
    pub differential: DifferentialShown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferentialShown {
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub free_bytes: u64,
    pub used_percent: u64,
    /// So much is in use that the log warned.
    pub filling: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Status(Box<Status>),
    Histogram(WireReport),
    Done,
    /// In bytes.
    Progress {
        done: u64,
        total: u64,
    },
    Snapshots(SnapshotList),
    Verified(Verified),
    Keys(KeysReloaded),
    /// The goal was not reached in time; what is missing.
    TimedOut(String),
    Failed(String),
}
