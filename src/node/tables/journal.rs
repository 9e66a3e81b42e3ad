//! How far a site has come, from its journal alone: the superblock, and the chain of whole batches behind it.

use super::Wrong;
use crate::base::*;
use crate::core::journal::Journal;
use crate::format::history::History;
use crate::format::journal::{BatchHeader, decode_batch, digest_of};
use crate::format::superblock::{SUPERBLOCK_SLOTS, Superblock, newest_of};
use crate::format::update::{Update, UpdateKind};
use crate::io::disk::Disk;
use crate::node::config::Config;

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
    let mut slots = vec![0; SUPERBLOCK_SLOTS as usize * BLOCK_BYTES];
    disk.read_blocks(0, &mut slots)?;
    let (blocks, _) = slots.as_chunks::<BLOCK_BYTES>();
    let newest = newest_of(Superblock::decode(&blocks[0]), Superblock::decode(&blocks[1]));
    let Ok(superblock) = newest else { return Err(unusable("has no whole superblock")) };
    if superblock.group != config.group_id() || superblock.site != config.site.id {
        return Err(unusable("is another site's"));
    }
    let mut journal = Journal::new(superblock.journal_blocks, config.journal.volatile);
    journal.recover_begin(superblock.position, superblock.checkpoint);
    let mut found =
        Position { history: superblock.history, last: superblock.checkpoint, solo: superblock.solo };
    loop {
        let candidates = journal.recover_candidates();
        let taken = candidates.into_iter().flatten().try_fold(false, |taken, block| {
            Ok::<bool, Wrong>(taken || take_batch(config, disk, &mut journal, block, &mut found)?)
        });
        if !taken? {
            break;
        }
    }
    if superblock.known_durable > found.last {
        return Err(unusable(&format!(
            "ends at {}, though {} was durable",
            found.last, superblock.known_durable
        )));
    }
    disk.sync()?;
    Ok(found)
}

/// Takes the batch at this block if it continues the chain and is whole.
fn take_batch(
    config: &Config,
    disk: &Disk,
    journal: &mut Journal,
    block: u64,
    found: &mut Position,
) -> Result<bool, Wrong> {
    let mut header_block = [0; BLOCK_BYTES];
    disk.read_blocks(block, &mut header_block)?;
    let mut descriptors = [Update::EMPTY; BATCH_DESCRIPTORS_MAX];
    let Ok(header) = decode_batch(&header_block, &mut descriptors) else { return Ok(false) };
    let updates = &descriptors[..header.count as usize];
    let end = block + 1 + u64::from(header.payload_blocks);
    let continues = header.group == config.group_id() && journal.recover_continues(&header);
    if !continues || end > journal.ring_end() || !whole(disk, block, &header, updates)? {
        return Ok(false);
    }
    let (first, last) = match updates {
        [cut] if cut.kind == UpdateKind::Cut => (cut.number.next(), cut.number),
        [first, .., last] => (first.number, last.number),
        [one] => (one.number, one.number),
        [] => return Ok(false),
    };
    for update in updates {
        match update.kind {
            UpdateKind::GenerationOpen => {
                let newer = found.history.last().is_none_or(|(newest, _)| newest < update.generation);
                if newer {
                    found.history.push(update.generation, update.number);
                }
            }
            UpdateKind::SoloBegin => found.solo = true,
            UpdateKind::SoloEnd => found.solo = false,
            UpdateKind::Cut => {
                found.history.truncate_after(update.number);
                found.last = update.number;
            }
            _ => {}
        }
    }
    found.last = found.last.max(last);
    journal.recover_batch(block, &header, digest_of(&header_block), first, last);
    Ok(true)
}

fn whole(disk: &Disk, block: u64, header: &BatchHeader, updates: &[Update]) -> Result<bool, Wrong> {
    let mut payload = vec![0; usize::from(header.payload_blocks) * BLOCK_BYTES];
    disk.read_blocks(block + 1, &mut payload)?;
    let (blocks, _) = payload.as_chunks::<BLOCK_BYTES>();
    let mut at = 0;
    for update in updates.iter().filter(|update| update.payload_blocks() > 0) {
        let Some(own) = blocks.get(at..at + update.payload_blocks()) else { return Ok(false) };
        if sum_of_sums(own.iter().map(sum_of_block)) != update.sum {
            return Ok(false);
        }
        at += update.payload_blocks();
    }
    Ok(true)
}
