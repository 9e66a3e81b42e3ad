//! NBD without sockets: what one connection's bytes mean ([`Session`]), and the tickets and pages that all connections of
//! a front share ([`Desk`]). A front moves bytes and messages between sockets, sessions and the group.

mod desk;
mod handshake;
mod replies;
mod session;

pub use desk::Desk;
pub use session::{Farewell, Limits, Session, Stall, Station};

use crate::base::{BLOCK_BYTES, Lba, UpdateNumber, VolumeId, VolumeSet};
use crate::core::messages::HostError;
use crate::format::nbd::NbdError;
use crate::format::snapshot::SnapshotRecord;

/// A volume as hosts see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// What clients ask for; at most [`crate::base::NAME_BYTES_MAX`] bytes.
    pub name: String,
    pub volume: VolumeId,
    /// Size in blocks.
    pub blocks: u64,
    pub read_only: bool,
}

/// What a client was given: a volume as it is, or as it was when a snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    pub volume: VolumeId,
    /// `NONE` for the volume itself.
    pub snapshot: UpdateNumber,
    /// Size in blocks.
    pub blocks: u64,
    pub read_only: bool,
}

impl Exported {
    /// Whether it is one of these volumes itself, and not a snapshot.
    pub fn is_one_of(&self, volumes: VolumeSet) -> bool {
        self.snapshot == UpdateNumber::NONE && volumes.contains(self.volume)
    }

    /// Size in bytes. Panics if that is beyond u64: no volume was formatted like that.
    pub fn bytes(&self) -> u64 {
        self.blocks.checked_mul(BLOCK_BYTES as u64).expect("a volume's size in bytes fits u64")
    }
}

/// What clients may ask for by name: volumes, and each of their snapshots as `volume@snapshot`.
#[derive(Clone, Copy, Debug)]
pub struct Catalog<'a> {
    pub volumes: &'a [Export],
    /// Those that can be read at this site, oldest first.
    pub snapshots: &'a [SnapshotRecord],
    /// Volumes that nobody may open for now; their snapshots can be read.
    pub held: VolumeSet,
}

impl<'a> Catalog<'a> {
    /// What a name means, and the name it is listed by: the empty one is the only volume there is.
    fn find(&self, name: &'a [u8]) -> Option<(Exported, &'a [u8])> {
        let volume = |name: &[u8]| self.volumes.iter().find(|export| export.name.as_bytes() == name);
        let whole = match self.volumes {
            [only] if name.is_empty() => Some(only),
            _ => volume(name),
        };
        let exported = |export: &Export, snapshot| Exported {
            volume: export.volume,
            snapshot,
            blocks: export.blocks,
            read_only: export.read_only || snapshot != UpdateNumber::NONE,
        };
        if let Some(export) = whole {
            return Some((exported(export, UpdateNumber::NONE), export.name.as_bytes()));
        }
        let at = name.iter().rposition(|byte| *byte == b'@')?;
        let export = volume(&name[..at])?;
        let snapshot = self.snapshots.iter().find(|record| {
            record.name.as_bytes() == &name[at + 1..] && record.volumes.contains(export.volume)
        })?;
        Some((exported(export, snapshot.number), name))
    }

    /// The snapshots of an export's volume that are older than it, newest first.
    fn all_older(&self, export: &Exported) -> impl Iterator<Item = &'a SnapshotRecord> + use<'a> {
        let Exported { volume, snapshot, .. } = *export;
        let is_older = move |record: &&SnapshotRecord| {
            record.volumes.contains(volume) && (snapshot == UpdateNumber::NONE || record.number < snapshot)
        };
        self.snapshots.iter().rev().filter(is_older)
    }

    fn older(&self, export: &Exported, name: &[u8]) -> Option<&'a SnapshotRecord> {
        self.all_older(export).find(|record| record.name.as_bytes() == name)
    }
}

/// A run of blocks that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// At least 1.
    pub blocks: u64,
    /// The blocks are known to read as zeros. When false nothing is known.
    pub zeros: bool,
}

/// Which blocks are known to read as zeros, for `base:allocation`. An answer may be stale in one way only: a block that a
/// write completed to must not be called zeros.
pub trait AllocationMap {
    /// The run that begins at `lba`, at most `blocks_max` long. It may be shorter than it could be, so that looking is
    /// bounded: the session asks again for what follows.
    fn run(&self, volume: VolumeId, lba: Lba, blocks_max: u64) -> Run;
}

/// Knows nothing: every block may hold data, which is always a correct answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllAllocated;

impl AllocationMap for AllAllocated {
    fn run(&self, _volume: VolumeId, _lba: Lba, blocks_max: u64) -> Run {
        Run { blocks: blocks_max, zeros: false }
    }
}

/// Why a request failed, and in words for the client that can read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    error: NbdError,
    /// At most [`session::MESSAGE_BYTES_MAX`] bytes.
    message: &'static str,
}

impl Failure {
    const fn new(error: NbdError, message: &'static str) -> Failure {
        assert!(message.len() <= session::MESSAGE_BYTES_MAX);
        Failure { error, message }
    }

    /// NBD has no error for a deadline, so that is `EIO` like a failed disk; the message tells them apart.
    fn of(error: HostError, writing: bool) -> Failure {
        match error {
            HostError::OutOfRange if writing => Failure::new(NbdError::NoSpc, "beyond the end of the volume"),
            HostError::OutOfRange => Failure::new(NbdError::Inval, "beyond the end of the volume"),
            HostError::ReadOnly => Failure::new(NbdError::Perm, "the volume is read-only on this site"),
            HostError::Deadline => {
                Failure::new(NbdError::Io, "the sites did not agree before the deadline; see lockstep status")
            }
            HostError::NoSpace => Failure::new(
                NbdError::NoSpc,
                "the differential volume is full, and no snapshot may be deleted",
            ),
            HostError::NoSuchSnapshot => {
                Failure::new(NbdError::Shutdown, "the snapshot does not exist any more")
            }
            HostError::NotServing => Failure::new(NbdError::Shutdown, "this site does not serve the volume"),
            HostError::Io => {
                Failure::new(NbdError::Io, "a disk failed or a checksum did not match; see the log")
            }
        }
    }
}
