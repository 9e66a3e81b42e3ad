//! How far a site has come, from its journal alone: the superblock, and the chain of whole batches behind it.

use super::Wrong;
use crate::base::*;
use crate::format::history::History;
use crate::format::update::{Update, UpdateKind};
use crate::io::disk::Disk;
use crate::node::config::Config;
use crate::node::run::superblock;
use crate::node::stopped::ring;

/// What the journal says.
pub(super) struct Position {
    pub history: History,
    /// The newest update that it holds.
    pub last: UpdateNumber,
    /// Whether the site acknowledged alone, and its peer had not caught up.
    pub solo: bool,
}

/// Reads it, and makes durable what it reads: what is told to the peer must not be undone by a power loss.
pub(super) fn position(config: &Config, disk: &Disk) -> Result<Position, Wrong> {
    let path = disk.path().display();
    let unusable = |why: &str| Wrong::Refused(format!("the journal {path} {why}; see its repair first"));
    let superblock = superblock(disk)?.ok_or_else(|| unusable("has no whole superblock"))?;
    if superblock.group != config.group_id() || superblock.site != config.site.id {
        return Err(unusable("is another site's"));
    }
    let mut found =
        Position { history: superblock.history, last: superblock.checkpoint, solo: superblock.solo };
    let journal = ring::chain(disk, &superblock, &mut |_, updates| {
        updates.iter().for_each(|update| found.note(update))
    })?;
    found.last = journal.appended();
    if superblock.known_durable > found.last {
        return Err(unusable(&format!(
            "ends at {}, though {} was durable",
            found.last, superblock.known_durable
        )));
    }
    disk.sync()?;
    Ok(found)
}

impl Position {
    fn note(&mut self, update: &Update) {
        match update.kind {
            UpdateKind::GenerationOpen => {
                let newer = self.history.last().is_none_or(|(newest, _)| newest < update.generation);
                if newer {
                    self.history.push(update.generation, update.number);
                }
            }
            UpdateKind::SoloBegin => self.solo = true,
            UpdateKind::SoloEnd => self.solo = false,
            UpdateKind::Cut => self.history.truncate_after(update.number),
            _ => {}
        }
    }
}
