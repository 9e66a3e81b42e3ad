//! The ring of a site that does not run, read as a start reads it.

use crate::base::*;
use crate::core::journal::{Journal, doubtful_blocks};
use crate::format::journal::{BatchHeader, CLAIMS_BYTES, claims_of, decode_batch, digest_of};
use crate::format::superblock::{RING_FIRST_BLOCK, Superblock};
use crate::format::update::{Update, UpdateKind};
use crate::io::disk::{Disk, DiskError};

/// Told of each batch, in order.
pub type OnBatch<'a> = &'a mut dyn FnMut(&BatchHeader, &[Update]);

/// The chain of whole batches behind the superblock's position.
pub fn chain(disk: &Disk, superblock: &Superblock, each: OnBatch<'_>) -> Result<Journal, DiskError> {
    // Nothing is written with it.
    let volatile = true;
    let mut journal = Journal::new(superblock.journal_blocks, volatile);
    journal.recover_begin(superblock.position, superblock.checkpoint);
    loop {
        let mut candidates = journal.recover_candidates().into_iter().flatten();
        let taken = candidates.try_fold(false, |taken, block| {
            Ok::<bool, DiskError>(
                taken || take_batch(disk, superblock.group, &mut journal, block, &mut *each)?,
            )
        });
        if !taken? {
            return Ok(journal);
        }
    }
}

/// Takes the batch at this block if it continues the chain and is whole.
fn take_batch(
    disk: &Disk,
    group: GroupId,
    journal: &mut Journal,
    block: u64,
    each: OnBatch<'_>,
) -> Result<bool, DiskError> {
    let mut header_block = [0; BLOCK_BYTES];
    disk.read_blocks(block, &mut header_block)?;
    let mut descriptors = [Update::EMPTY; BATCH_DESCRIPTORS_MAX];
    let Ok(header) = decode_batch(&header_block, &mut descriptors) else { return Ok(false) };
    let updates = &descriptors[..header.count as usize];
    let end = block + 1 + u64::from(header.payload_blocks);
    let continues = header.group == group && journal.recover_continues(&header);
    if !continues || end > journal.ring_end() || !whole(disk, block, &header, updates)? {
        return Ok(false);
    }
    let (first, last) = match updates {
        [cut] if cut.kind == UpdateKind::Cut => (cut.number.next(), cut.number),
        [first, .., last] => (first.number, last.number),
        [one] => (one.number, one.number),
        [] => return Ok(false),
    };
    each(&header, updates);
    journal.recover_batch(block, &header, digest_of(&header_block), first, last);
    Ok(true)
}

fn whole(disk: &Disk, block: u64, header: &BatchHeader, updates: &[Update]) -> Result<bool, DiskError> {
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

/// What lies behind the chain's end and is newer than it: batches that were under way when the site died, behind one that is torn.
#[derive(Debug, Default)]
pub struct LeftBehind {
    /// Their headers.
    pub blocks: Vec<u64>,
    /// What was durable when they were formed: more than the chain has is rot.
    pub known_durable: UpdateNumber,
}

/// Blocks that are looked at in one read.
const LOOK_BLOCKS: u64 = 256;

pub fn left_behind(
    disk: &Disk,
    group: GroupId,
    journal: &Journal,
    volatile: bool,
) -> Result<LeftBehind, DiskError> {
    let mut found = LeftBehind::default();
    let mut updates = [Update::EMPTY; BATCH_DESCRIPTORS_MAX];
    let head = journal.head();
    // What a batch of the chain holds is a host's, whatever it looks like.
    let mut left = doubtful_blocks(volatile).min(journal.ring_blocks() - journal.used_blocks());
    let mut first = head.block;
    while left > 0 {
        let count = LOOK_BLOCKS.min(left).min(journal.ring_end() - first);
        let mut bytes = vec![0; count as usize * BLOCK_BYTES];
        disk.read_blocks(first, &mut bytes)?;
        for (block, bytes) in (first..).zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
            let claims = bytes.first_chunk::<CLAIMS_BYTES>().and_then(claims_of);
            if claims.is_none_or(|(sequence, _)| sequence <= head.sequence) {
                continue;
            }
            let Ok(header) = decode_batch(bytes, &mut updates) else { continue };
            if header.group == group {
                found.blocks.push(block);
                found.known_durable = found.known_durable.max(header.known_durable);
            }
        }
        left -= count;
        first = if first + count == journal.ring_end() { RING_FIRST_BLOCK } else { first + count };
    }
    Ok(found)
}
