//! An operator has both sites compared, whatever befalls them meanwhile: as of one number they are never different (INV-8).

use crate::base::{COMPARE_BLOCKS_MAX, Lba, VolumeId};
use crate::core::messages::{AdminError, AdminOp, AdminReply, AdminRequest, Extent};
use crate::sim::rng::Rng;
use crate::sim::world::World;

/// Requests of this operator, by their numbers.
const COMPARE_IDS: u64 = 1 << 40;

/// One in so many visits of a host.
const VISITS: u64 = 16;

/// Tells the generator of comparisons from the others of its seed.
const FORK: u64 = 0x0063_6d70;

pub fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ FORK)
}

impl World {
    /// A host is at work: perhaps the sites are compared meanwhile.
    pub(super) fn perhaps_compare(&mut self) {
        if !self.plan.has_peer() || !self.compare_rng.once_in(VISITS) || !self.alive(self.home) {
            return;
        }
        let volumes = &self.plan.configs[0].volumes;
        let volume = self.compare_rng.below(volumes.len() as u64);
        let blocks = volumes[volume as usize].blocks;
        let first = self.compare_rng.below(blocks);
        let most = (blocks - first).min(u64::from(COMPARE_BLOCKS_MAX));
        let count = 1 + self.compare_rng.below(most) as u32;
        let reads = self.compare_rng.once_in(2);
        let extent = Extent { volume: VolumeId(volume as u16), first: Lba(first), count, reads };
        let (site, id) = (self.home, COMPARE_IDS + self.outcome.comparisons);
        let request = AdminRequest { id, op: AdminOp::Compare { extent } };
        self.sites[site].admin.push_back((self.now, request));
        self.wake_group(site, self.now);
    }

    pub(super) fn hear_compared(&mut self, index: usize, reply: &AdminReply) {
        if reply.id < COMPARE_IDS {
            return;
        }
        match reply.result {
            Ok(_) => self.outcome.comparisons += 1,
            Err(AdminError::Differ) => {
                panic!("INV-8: site {index} finds that the sites differ as of one number")
            }
            Err(_) => {}
        }
    }
}
