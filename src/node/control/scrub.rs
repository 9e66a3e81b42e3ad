//! Scrubbing as the control plane asks for it and shows it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Control, LineError, Response};
use crate::base::{BLOCK_BYTES, SCRUB_NAMED_MAX};
use crate::core::group::status::ScrubStatus;
use crate::core::messages::AdminOp;
use crate::node::config::Config;

/// The last pass over all volumes, or the one under way. Of the bad blocks that were found, the ones that are neither repaired nor
/// could not be are being repaired.
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
    pub unrepaired: Vec<BlockShown>,
    pub seconds: f64,
    /// At the rate so far, of a pass that is under way; none before there is one.
    pub left_seconds: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockShown {
    pub volume: String,
    pub block: u64,
}

impl ScrubShown {
    /// Nothing before the first pass.
    pub(super) fn new(config: &Config, scrub: &ScrubStatus) -> Option<ScrubShown> {
        let block = BLOCK_BYTES as u64;
        let named = (scrub.unrepaired as usize).min(SCRUB_NAMED_MAX);
        let unrepaired = scrub.named[..named].iter().map(|(volume, lba)| BlockShown {
            volume: config.volumes[usize::from(volume.0)].name.clone(),
            block: lba.0,
        });
        let seconds = scrub.for_ns as f64 / 1e9;
        let left = scrub.blocks_total.saturating_sub(scrub.blocks_read);
        let known = scrub.active && scrub.blocks_read > 0;
        (scrub.blocks_total > 0).then(|| ScrubShown {
            active: scrub.active,
            complete: scrub.complete,
            read_bytes: scrub.blocks_read * block,
            total_bytes: scrub.blocks_total * block,
            bad_blocks: scrub.bad,
            repaired_blocks: scrub.repaired,
            unrepaired_blocks: scrub.unrepaired,
            unrepaired: unrepaired.collect(),
            seconds,
            left_seconds: known.then(|| seconds * left as f64 / scrub.blocks_read as f64),
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
