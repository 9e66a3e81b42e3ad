//! Pairs that begin with contents: the volumes of one site hold what was there before it was formatted, and the other one's hold nothing.
//! Nobody is to be told that both have it before the other one has been copied it.

use crate::base::{BLOCK_BYTES, Generation, VolumeId, sum_of_block};
use crate::core::messages::IoTarget;
use crate::format::superblock::Superblock;
use crate::sim::audit::{Auditor, PRIMARY};
use crate::sim::content::{Block, Content};
use crate::sim::disk::Disk;
use crate::sim::plan::Plan;
use crate::sim::rng::Rng;

/// Pairs without a third that begin so, one in so many.
const ADOPTS_ONE_IN: u64 = 6;

/// Tells the generator of contents from the others of its seed.
const FORK: u64 = 0x0061_646f_7074;

/// Sums in a block of a checksum file.
const SUMS: usize = BLOCK_BYTES / 4;

/// What one seed begins with. Drawn from a generator of its own.
#[derive(Clone, Copy, Debug)]
pub struct AdoptPlan {
    /// Blocks with data, in a hundred.
    pub percent: u64,
}

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

impl AdoptPlan {
    pub fn new(rng: &mut Rng, plan: &Plan) -> Option<AdoptPlan> {
        let pair = plan.has_peer() && plan.third.is_none();
        (pair && rng.once_in(ADOPTS_ONE_IN)).then(|| AdoptPlan { percent: rng.pick(&[3, 30, 100]) })
    }

    /// The primary's disks as its operator's `format --adopt` leaves them; the auditor is told what they hold.
    pub fn adopt(self, rng: &mut Rng, plan: &Plan, disk: &mut Disk, audit: &mut Auditor) {
        let config = &plan.configs[PRIMARY];
        let volumes: Vec<u64> = config.volumes.iter().map(|volume| volume.blocks).collect();
        let generation = Generation::of_adoption(config.site, 1 + rng.below(1 << 20));
        for sequence in 0..2 {
            let (group, site, role) = (config.group, config.site, config.role);
            let superblock =
                Superblock::formatted(group, site, role, sequence, config.journal_blocks, &volumes);
            let superblock = Superblock { sizes: plan.sizes(), ..superblock };
            let mut block = [0; BLOCK_BYTES];
            superblock.adopting(generation, true).encode(&mut block);
            disk.put(IoTarget::Journal, superblock.slot(), &block);
        }
        let mut contents = Vec::new();
        for (volume, blocks) in (0u16..).zip(volumes) {
            let mut sums = vec![0; blocks.div_ceil(SUMS as u64) as usize * BLOCK_BYTES];
            for lba in (0..blocks).filter(|_| rng.percent(self.percent)).collect::<Vec<_>>() {
                let block = no_hosts(rng);
                sums[4 * lba as usize..][..4].copy_from_slice(&sum_of_block(&block).0.to_le_bytes());
                disk.put(IoTarget::Volume(VolumeId(volume)), lba, &block);
                contents.push((volume, lba, Content::of(&block)));
            }
            for (at, block) in (0u64..).zip(sums.as_chunks::<BLOCK_BYTES>().0) {
                disk.put(IoTarget::Checksums(VolumeId(volume)), at, block);
            }
        }
        audit.begins_with(PRIMARY, generation.0, contents);
    }
}

/// A block that no host of the run writes, and that is like no other.
fn no_hosts(rng: &mut Rng) -> Block {
    let mut block = [0; BLOCK_BYTES];
    for word in block.as_chunks_mut::<8>().0 {
        *word = rng.draw().to_le_bytes();
    }
    // Theirs have a mark in each word.
    block[..8].copy_from_slice(&1u64.to_le_bytes());
    block
}
