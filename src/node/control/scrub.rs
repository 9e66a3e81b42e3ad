//! Scrubbing as the control plane asks for it and shows it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Control, LineError, Response};
use crate::base::{BLOCK_BYTES, VolumeId};
use crate::core::group::status::{BadPlace, Part, PartStatus, ScrubStatus};
use crate::core::messages::AdminOp;
use crate::node::config::Config;

/// The last pass over all that is on this site's disks, or the one under way. Of the bad blocks that were found, the ones that are
/// neither repaired nor could not be are being repaired.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScrubShown {
    pub active: bool,
    /// Whether the last pass was carried to its end.
    pub complete: bool,
    pub read_bytes: u64,
    pub total_bytes: u64,
    pub bad_blocks: u64,
    pub repaired_blocks: u64,
    pub unrepaired_blocks: u64,
    /// The first of those; the log names all.
    pub unrepaired: Vec<BadShown>,
    pub volumes: PartShown,
    /// The volumes' checksum files.
    pub checksums: PartShown,
    pub tables: TablesShown,
    /// What snapshots keep.
    pub differential: PartShown,
    /// Bad batches, each as one block.
    pub journal: PartShown,
    pub seconds: f64,
    /// At the rate so far, of a pass that is under way; none before there is one.
    pub left_seconds: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartShown {
    pub read_bytes: u64,
    pub total_bytes: u64,
    pub bad_blocks: u64,
    /// Or not needed any more.
    pub repaired_blocks: u64,
    pub unrepaired_blocks: u64,
}

/// The snapshot tables, which are looked at whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablesShown {
    pub entries: u64,
    pub damaged: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "in", rename_all = "snake_case")]
pub enum BadShown {
    Volume {
        volume: String,
        block: u64,
    },
    Checksums {
        volume: String,
        block: u64,
    },
    Tables,
    /// A block as of the snapshot of this number.
    Differential {
        volume: String,
        block: u64,
        snapshot: u64,
    },
    Journal {
        block: u64,
    },
}

impl BadShown {
    fn new(config: &Config, place: &BadPlace) -> BadShown {
        let name = |volume: VolumeId| config.volumes[usize::from(volume.0)].name.clone();
        match *place {
            BadPlace::Volume(volume, lba) => BadShown::Volume { volume: name(volume), block: lba.0 },
            BadPlace::Checksums(volume, block) => BadShown::Checksums { volume: name(volume), block },
            BadPlace::Tables => BadShown::Tables,
            BadPlace::Kept(snapshot, volume, lba) => {
                BadShown::Differential { volume: name(volume), block: lba.0, snapshot: snapshot.0 }
            }
            BadPlace::Journal(block) => BadShown::Journal { block },
        }
    }
}

impl std::fmt::Display for BadShown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BadShown::Volume { volume, block } => write!(f, "{volume} block {block}"),
            BadShown::Checksums { volume, block } => write!(f, "the checksums of {volume}, block {block}"),
            BadShown::Tables => write!(f, "the snapshot tables"),
            BadShown::Differential { volume, block, snapshot } => {
                write!(f, "{volume} block {block} as of snapshot #{snapshot}")
            }
            BadShown::Journal { block } => write!(f, "the journal at block {block}"),
        }
    }
}

impl From<PartStatus> for PartShown {
    fn from(part: PartStatus) -> PartShown {
        let PartStatus { read, total, bad, repaired, unrepaired } = part;
        PartShown {
            read_bytes: read * BLOCK_BYTES as u64,
            total_bytes: total * BLOCK_BYTES as u64,
            bad_blocks: bad,
            repaired_blocks: repaired,
            unrepaired_blocks: unrepaired,
        }
    }
}

impl ScrubShown {
    /// Nothing before the first pass.
    pub(super) fn new(config: &Config, scrub: &ScrubStatus) -> Option<ScrubShown> {
        let part = |part| PartShown::from(scrub.part(part));
        let sum = scrub.sum();
        let seconds = scrub.for_ns as f64 / 1e9;
        let known = scrub.active && sum.read > 0;
        let left = sum.total.saturating_sub(sum.read);
        let tables = scrub.part(Part::Tables);
        let PartShown { read_bytes, total_bytes, bad_blocks, repaired_blocks, unrepaired_blocks } =
            sum.into();
        (sum.total > 0).then(|| ScrubShown {
            active: scrub.active,
            complete: scrub.complete,
            read_bytes,
            total_bytes,
            bad_blocks,
            repaired_blocks,
            unrepaired_blocks,
            unrepaired: scrub.named().iter().map(|place| BadShown::new(config, place)).collect(),
            volumes: part(Part::Volumes),
            checksums: part(Part::Checksums),
            tables: TablesShown { entries: tables.read, damaged: tables.bad > 0 },
            differential: part(Part::Differential),
            journal: part(Part::Journal),
            seconds,
            left_seconds: known.then(|| seconds * left as f64 / sum.read as f64),
        })
    }
}

/// What a scrub that nobody asked for reads in a second.
pub const SCRUB_BYTES_PER_SECOND: u64 = 64 << 20;

/// How often it is looked whether one is due.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

impl Control {
    /// Scrubs as often as the configuration says, until the process ends.
    pub fn scrub_now_and_then(self: &Arc<Control>) -> std::io::Result<()> {
        let every = Duration::from_nanos(self.config.site.scrub_every.0);
        if every.is_zero() {
            return Ok(());
        }
        let control = self.clone();
        std::thread::Builder::new().name("scrub".to_owned()).spawn(move || {
            let mut last = Instant::now();
            while !control.stopping() {
                std::thread::sleep(LOOKS_EVERY);
                let idle = || control.group_status().is_ok_and(|status| !status.scrub.active);
                if last.elapsed() >= every
                    && idle()
                    && let Ok(Response::Done) = control.scrub(SCRUB_BYTES_PER_SECOND)
                {
                    last = Instant::now();
                }
            }
        })?;
        Ok(())
    }

    pub(super) fn scrub(&self, bytes_per_second: u64) -> Result<Response, LineError> {
        let blocks_per_second = bytes_per_second.div_ceil(BLOCK_BYTES as u64);
        self.administer(AdminOp::Scrub { blocks_per_second })
    }
}
