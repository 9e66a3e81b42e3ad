//! The first block of a staging file in which a site that held nothing is being copied everything: until that is installed it is nobody's
//! successor, whatever happens meanwhile.

use crate::base::{BLOCK_BYTES, GroupId, SiteId};
use crate::format::bytes::{crc_around, nonzero_in, put, u16_at, u32_at, u128_at};

const MAGIC: [u8; 8] = *b"LSTPNONE";
const VERSION: u16 = 1;

const VERSION_AT: usize = 8;
const SITE: usize = 10;
const CRC: usize = 12;
const GROUP: usize = 16;
const RESERVED: usize = 32;

pub fn put_empty_mark(page: &mut [u8; BLOCK_BYTES], group: GroupId, site: SiteId) {
    page.fill(0);
    put(page, 0, &MAGIC);
    put(page, VERSION_AT, &VERSION.to_le_bytes());
    put(page, SITE, &site.0.to_le_bytes());
    put(page, GROUP, &group.0.to_le_bytes());
    let crc = crc_around(page, CRC);
    put(page, CRC, &crc.to_le_bytes());
}

/// Whose it is; `None` if the block is none.
pub fn take_empty_mark(page: &[u8; BLOCK_BYTES]) -> Option<(GroupId, SiteId)> {
    let sound = page[..MAGIC.len()] == MAGIC
        && u16_at(page, VERSION_AT) == VERSION
        && nonzero_in(page, RESERVED, BLOCK_BYTES).is_none()
        && u32_at(page, CRC) == crc_around(page, CRC);
    sound.then(|| (GroupId(u128_at(page, GROUP)), SiteId(u16_at(page, SITE))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_makes_it_none() {
        let mut page = [0xaa; BLOCK_BYTES];
        let (group, site) = (GroupId(7 << 100 | 3), SiteId(2));
        put_empty_mark(&mut page, group, site);
        assert_eq!(take_empty_mark(&page), Some((group, site)));
        for bit in (0..8 * 64).chain([8 * BLOCK_BYTES - 1]) {
            let mut flipped = page;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(take_empty_mark(&flipped), None, "bit {bit}");
        }
        assert_eq!(take_empty_mark(&[0; BLOCK_BYTES]), None);
    }
}
