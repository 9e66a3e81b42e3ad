//! The auditor and checksums: when everything is drained, each is that of its block.

use crate::base::BLOCK_BYTES;
use crate::sim::audit::{Auditor, Media, Place};
use crate::sim::content::{Block, Content, Print};
use crate::sim::disk::Stored;

/// Sums in a block of a checksum file.
const SUMS: u64 = BLOCK_BYTES as u64 / 4;

fn bytes_of(stored: Option<&Stored>) -> Block {
    let mut block = [0; BLOCK_BYTES];
    stored.map_or(&Content::ZERO, |stored| &stored.content).write_to(&mut block);
    block
}

/// Whether docs/FORMATS.md lets this be the sum of what is stored there.
fn is_sum_of(sum: u32, stored: Option<&Stored>) -> bool {
    let zeros = stored.is_none_or(|stored| stored.content.print == Print::ZERO);
    let crc = match crc32c::crc32c(&bytes_of(stored)) {
        0 => u32::MAX,
        crc => crc,
    };
    sum == crc || (sum == 0 && zeros)
}

impl Auditor {
    /// The checksum files of a site, and the sums of its snapshots' entries, say what is there: the next read of any of it goes by that.
    pub fn check_sums(&self, site: usize, media: &dyn Media) {
        for volume in (0u16..).take(self.blocks.len()) {
            let files: Vec<Block> = media
                .all_durable(Place::Checksums(volume))
                .iter()
                .map(|stored| bytes_of(stored.as_ref()))
                .collect();
            for (lba, stored) in (0u64..).zip(media.all_durable(Place::Volume(volume))) {
                let sum = files[(lba / SUMS) as usize].as_chunks::<4>().0[(lba % SUMS) as usize];
                let sum = u32::from_le_bytes(sum);
                assert!(
                    is_sum_of(sum, stored.as_ref()),
                    "site {site} ends with {sum:x} as the checksum of volume {volume} block {lba}, which is another's"
                );
            }
        }
        for (volume, lba, slot, sum) in media.all_kept() {
            // Zeros need no slot's content.
            assert!(
                sum == 0 || is_sum_of(sum, media.durable(Place::Differential, slot)),
                "site {site} ends with {sum:x} as the checksum of slot {slot}, for volume {volume} block {lba}, which is another's"
            );
        }
    }
}
