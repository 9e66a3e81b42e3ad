//! Comparing both sites as the control plane asks for it: extent by extent, and where they differ in halves, down to blocks.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Control, LineError, Response};
use crate::base::{BLOCK_BYTES, COMPARE_BLOCKS_MAX, Lba, UpdateNumber, VolumeId};
use crate::core::config::Role;
use crate::core::messages::{AdminError, AdminOp, Extent};

/// Extents that are listed; what differs beyond them is counted.
const EXTENTS_MAX: usize = 4096;

/// Pause before an extent is asked for again if the group was busy.
const ASKS_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// How often an extent is asked for while the group has no place for the question.
const BUSY_MAX: usize = 100;

/// Beyond what the group takes for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// What comparing came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    pub compared_bytes: u64,
    pub differing_bytes: u64,
    /// Of these, those that are the same now.
    pub repaired_bytes: u64,
    /// Blocks that were not repaired, because they had gone bad at the site that they were to be taken from.
    pub unrepaired_blocks: u64,
    /// By volume and offset, the first of them.
    pub differing: Vec<DifferingShown>,
    /// Some that differ are not listed.
    pub more: bool,
    /// The updates as of which the first and the last extent were compared.
    pub first_as_of: u64,
    pub last_as_of: u64,
    /// Blocks that had gone bad on the disks of this site and the other one; their logs say what became of them.
    pub damaged_blocks_here: u64,
    pub damaged_blocks_there: u64,
    pub seconds: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingShown {
    pub volume: String,
    pub offset: u64,
    pub length: u64,
    pub repaired: bool,
}

#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error(transparent)]
    Line(#[from] LineError),
    #[error(transparent)]
    Refused(#[from] AdminError),
    #[error("{0}")]
    Asked(String),
}

impl Verified {
    /// Blocks differ; they come in order.
    fn differ(&mut self, volume: &str, blocks: std::ops::Range<u64>, repaired: bool) {
        let (offset, length) =
            (blocks.start * BLOCK_BYTES as u64, (blocks.end - blocks.start) * BLOCK_BYTES as u64);
        self.differing_bytes += length;
        self.repaired_bytes += if repaired { length } else { 0 };
        let full = self.differing.len() == EXTENTS_MAX;
        let last = self.differing.last_mut().filter(|last| last.repaired == repaired);
        match last.filter(|last| last.volume == volume && last.offset + last.length == offset) {
            // What is not listed may lie between.
            Some(last) if !self.more => last.length += length,
            _ if full => self.more = true,
            _ => self.differing.push(DifferingShown { volume: volume.to_owned(), offset, length, repaired }),
        }
    }
}

impl Control {
    /// `repair` names the site whose content is to be at both where they differ. `progress` is told how many bytes of how many are compared,
    /// and says whether whoever asked is still there.
    pub(super) fn verify(
        &self,
        volumes: &[String],
        bytes_per_second: u64,
        repair: Option<&str>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Response {
        match self.compare_sites(volumes, bytes_per_second, repair, progress) {
            Ok(verified) => Response::Verified(verified),
            Err(wrong) => Response::Failed(wrong.to_string()),
        }
    }

    fn compare_sites(
        &self,
        names: &[String],
        bytes_per_second: u64,
        repair: Option<&str>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Verified, Wrong> {
        let before = self.group_status()?;
        if before.role != Role::Primary {
            let why = "this site is not the primary, which does the comparing; ask there";
            return Err(Wrong::Asked(why.to_owned()));
        }
        let theirs = repair.map(|site| self.is_of_peer(site)).transpose()?;
        let known = |name: &&String| self.config.volumes.iter().any(|volume| volume.name == **name);
        if let Some(name) = names.iter().find(|name| !known(name)) {
            let group = &self.config.group.name;
            return Err(Wrong::Asked(format!("group {group} has no volume {name}")));
        }
        let wanted = |name: &String| names.is_empty() || names.contains(name);
        let volumes = (0..).map(VolumeId).zip(&self.config.volumes);
        let volumes: Vec<_> = volumes.filter(|(_, volume)| wanted(&volume.name)).collect();
        let total = volumes.iter().map(|(id, _)| before.sizes.get(*id)).sum::<u64>() * BLOCK_BYTES as u64;
        let begun = Instant::now();
        let mut verified = Verified::default();
        for (id, volume) in volumes {
            let blocks = before.sizes.get(id);
            for first in (0..blocks).step_by(COMPARE_BLOCKS_MAX as usize) {
                let end = blocks.min(first + u64::from(COMPARE_BLOCKS_MAX));
                self.compare_blocks((id, &volume.name), first..end, (true, theirs), &mut verified)?;
                verified.compared_bytes += (end - first) * BLOCK_BYTES as u64;
                if !progress(verified.compared_bytes, total) {
                    return Err(Wrong::Asked("whoever asked is gone".to_owned()));
                }
                let due = verified.compared_bytes as f64 / bytes_per_second.max(1) as f64;
                std::thread::sleep(Duration::from_secs_f64(due).saturating_sub(begun.elapsed()));
                if self.stopping() {
                    return Err(Wrong::Asked("the site stops".to_owned()));
                }
            }
        }
        let after = self.group_status()?.counters;
        verified.damaged_blocks_here = after.damaged_here - before.counters.damaged_here;
        verified.damaged_blocks_there = after.damaged_there - before.counters.damaged_there;
        verified.seconds = begun.elapsed().as_secs_f64();
        let Verified { compared_bytes, differing_bytes, repaired_bytes, .. } = verified;
        match differing_bytes {
            0 => tracing::info!("both sites were compared: {compared_bytes} bytes, all the same"),
            _ => tracing::error!(
                "both sites were compared: of {compared_bytes} bytes {differing_bytes} differed, of which {repaired_bytes} are the same now{}: {:?}",
                repair.map_or(String::new(), |site| format!(", by what {site} had")),
                verified.differing
            ),
        }
        Ok(verified)
    }

    /// Whether what is to be at both sites is the peer's content.
    fn is_of_peer(&self, site: &str) -> Result<bool, Wrong> {
        let here = &self.config.site.name;
        let peer = self.config.replication.as_ref().map(|pair| &pair.peer.name);
        match peer {
            _ if site == here => Ok(false),
            Some(peer) if site == peer => Ok(true),
            peer => Err(Wrong::Asked(format!(
                "there is no site {site} that could be repaired by: this one is {here}, the other one {}; nothing is changed",
                peer.map_or("none", String::as_str)
            ))),
        }
    }

    /// Compares, and where there is a difference looks closer. What is looked at again is not read again. `theirs` says whose content is to
    /// be at both.
    fn compare_blocks(
        &self,
        (volume, name): (VolumeId, &str),
        blocks: std::ops::Range<u64>,
        (reads, theirs): (bool, Option<bool>),
        verified: &mut Verified,
    ) -> Result<(), Wrong> {
        let count = (blocks.end - blocks.start) as u32;
        match self.compare(Extent { volume, first: Lba(blocks.start), count, reads })? {
            Some(at) => {
                if verified.first_as_of == 0 {
                    verified.first_as_of = at.0;
                }
                verified.last_as_of = at.0;
            }
            None if count == 1 => {
                let repaired = match theirs {
                    Some(theirs) => {
                        self.equalise(AdminOp::Equalise { volume, lba: Lba(blocks.start), theirs })?
                    }
                    None => false,
                };
                verified.unrepaired_blocks += u64::from(theirs.is_some() && !repaired);
                verified.differ(name, blocks, repaired);
            }
            None => {
                let middle = blocks.start + u64::from(count / 2);
                self.compare_blocks((volume, name), blocks.start..middle, (false, theirs), verified)?;
                self.compare_blocks((volume, name), middle..blocks.end, (false, theirs), verified)?;
            }
        }
        Ok(())
    }

    /// The update as of which both sites are the same there; nothing if they are not.
    fn compare(&self, extent: Extent) -> Result<Option<UpdateNumber>, Wrong> {
        match self.asked_until_free(AdminOp::Compare { extent })? {
            Ok(at) => Ok(Some(at)),
            Err(AdminError::Differ) => Ok(None),
            Err(why) => Err(why.into()),
        }
    }

    /// Whether the block is the same at both sites now; it is not if it had gone bad where it is to be taken from.
    fn equalise(&self, op: AdminOp) -> Result<bool, Wrong> {
        match self.asked_until_free(op)? {
            Ok(_) => Ok(true),
            Err(AdminError::SourceDamaged) => Ok(false),
            Err(why) => Err(why.into()),
        }
    }

    fn asked_until_free(&self, op: AdminOp) -> Result<Result<UpdateNumber, AdminError>, Wrong> {
        for _ in 0..BUSY_MAX {
            match self.carried_out(op, ANSWER_MAX)? {
                Err(AdminError::Busy) => std::thread::sleep(ASKS_AGAIN_AFTER),
                answer => return Ok(answer),
            }
        }
        Ok(Err(AdminError::Busy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_side_by_side_is_one_extent() {
        let mut verified = Verified::default();
        for (volume, block) in [("a", 3), ("a", 4), ("a", 6), ("b", 7)] {
            verified.differ(volume, block..block + 1, false);
        }
        let shown = |volume: &str, offset: u64, length: u64| {
            let volume = volume.to_owned();
            DifferingShown { volume, offset: offset * 4096, length: length * 4096, repaired: false }
        };
        assert_eq!(verified.differing, [shown("a", 3, 2), shown("a", 6, 1), shown("b", 7, 1)]);
        assert_eq!(verified.differing_bytes, 4 * 4096);
        (0..EXTENTS_MAX as u64).for_each(|block| verified.differ("c", 2 * block..2 * block + 1, false));
        assert!(verified.more && verified.differing.len() == EXTENTS_MAX);
    }
}
