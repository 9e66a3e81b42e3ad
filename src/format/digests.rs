//! Pages of digests: what blocks of one site hold, for another one to leave out of a copy what it has the same.

use crate::base::{BLOCK_BYTES, DIGEST_BLOCKS_MAX, Digest128, Lba, VolumeId};
use crate::format::bytes::{nonzero_in, put, u16_at, u64_at};

const FIRST: usize = 0;
const VOLUME: usize = 8;
const COUNT: usize = 10;
const RESERVED: usize = 12;
const DIGESTS: usize = 16;
const DIGEST_BYTES: usize = 16;

const _: () = assert!(DIGESTS + DIGEST_BYTES * DIGEST_BLOCKS_MAX <= BLOCK_BYTES);

/// Writes the digests of the blocks from `first` on. Panics if they are more than a page holds.
pub fn put_digests(page: &mut [u8; BLOCK_BYTES], volume: VolumeId, first: Lba, digests: &[Digest128]) {
    assert!(digests.len() <= DIGEST_BLOCKS_MAX, "{} digests for a page", digests.len());
    page.fill(0);
    put(page, FIRST, &first.0.to_le_bytes());
    put(page, VOLUME, &volume.0.to_le_bytes());
    put(page, COUNT, &(digests.len() as u16).to_le_bytes());
    for (index, Digest128(halves)) in digests.iter().enumerate() {
        for (half, value) in halves.iter().enumerate() {
            put(page, DIGESTS + DIGEST_BYTES * index + 8 * half, &value.to_le_bytes());
        }
    }
}

/// Whose they are, and the digests; `None` if no site of this build wrote the page.
pub fn take_digests(
    page: &[u8; BLOCK_BYTES],
) -> Option<(VolumeId, Lba, impl ExactSizeIterator<Item = Digest128>)> {
    let count = usize::from(u16_at(page, COUNT));
    let end = DIGESTS + DIGEST_BYTES * count.min(DIGEST_BLOCKS_MAX);
    let sound = count <= DIGEST_BLOCKS_MAX
        && nonzero_in(page, RESERVED, DIGESTS).is_none()
        && nonzero_in(page, end, BLOCK_BYTES).is_none();
    let half = |index: usize, half: usize| u64_at(page, DIGESTS + DIGEST_BYTES * index + 8 * half);
    sound.then(|| {
        let digests = (0..count).map(move |index| Digest128([half(index, 0), half(index, 1)]));
        (VolumeId(u16_at(page, VOLUME)), Lba(u64_at(page, FIRST)), digests)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_is_taken(
            volume in any::<u16>(),
            first in any::<u64>(),
            digests in prop::collection::vec(any::<[u64; 2]>().prop_map(Digest128), 0..=DIGEST_BLOCKS_MAX),
        ) {
            let mut page = [0xaa; BLOCK_BYTES];
            put_digests(&mut page, VolumeId(volume), Lba(first), &digests);
            let (of, from, taken) = take_digests(&page).expect("a page of digests");
            prop_assert_eq!((of, from), (VolumeId(volume), Lba(first)));
            prop_assert_eq!(taken.collect::<Vec<_>>(), digests);
        }

        #[test]
        fn no_page_panics(page in prop::collection::vec(any::<u8>(), BLOCK_BYTES)) {
            let page: [u8; BLOCK_BYTES] = page.try_into().expect("as long");
            if let Some((_, _, digests)) = take_digests(&page) {
                prop_assert!(digests.count() <= DIGEST_BLOCKS_MAX);
            }
        }
    }

    #[test]
    fn more_than_was_put_is_refused() {
        let mut page = [0; BLOCK_BYTES];
        put_digests(&mut page, VolumeId(1), Lba(2), &[Digest128([3, 4])]);
        for (offset, value) in [(RESERVED, 1), (DIGESTS + DIGEST_BYTES, 1), (COUNT + 1, 2)] {
            let mut other = page;
            other[offset] = value;
            assert!(take_digests(&other).is_none(), "byte {offset}");
        }
    }
}
