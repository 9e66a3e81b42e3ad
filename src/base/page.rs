//! Pages: the arena's 4 KiB buffers, named by id. Cores see ids; bytes stay behind [`Memory`].

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::base::checksum::{BlockSum, sum_of_block};
use crate::base::units::BLOCK_BYTES;

/// One 4 KiB page of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

impl PageId {
    /// The page that always reads as zeros; nobody owns, writes or releases it.
    pub const ZERO: PageId = PageId(0);
    /// No page.
    pub const NONE: PageId = PageId(u32::MAX);
}

/// A row of a [`PageTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId(pub u32);

/// What cores may do with page contents: pure memory, no I/O. The production arena and the simulator implement it.
///
/// A page is *open* while one owner fills it, *sealed* from the moment it is shared (numbered, or handed to a disk),
/// immutable until it is retired. Implementations assert these states.
pub trait Memory {
    fn bytes(&self, page: PageId) -> &[u8; BLOCK_BYTES];
    /// Panics if the page is not open: a shared page would change under its readers.
    fn bytes_mut(&mut self, page: PageId) -> &mut [u8; BLOCK_BYTES];
    /// The page becomes immutable. Panics if it is not open.
    fn seal(&mut self, page: PageId);
    /// The page, sealed or open, becomes open again for its next owner.
    fn reopen(&mut self, page: PageId);

    /// The first bytes of the page.
    fn first<const BYTES: usize>(&self, page: PageId) -> [u8; BYTES] {
        *self.bytes(page).first_chunk().expect("fewer than a block has")
    }

    /// The checksum of the page's block.
    fn sum(&self, page: PageId) -> BlockSum {
        sum_of_block(self.bytes(page))
    }

    /// Whether the page is zeros from end to end.
    fn is_zeros(&self, page: PageId) -> bool {
        self.bytes(page).iter().fold(0, |seen, byte| seen | byte) == 0
    }

    /// Copies the bytes of `range` from one page to the same place in another, which must be open.
    fn copy(&mut self, from: PageId, to: PageId, range: Range<usize>) {
        let bytes = *self.bytes(from);
        self.bytes_mut(to)[range.clone()].copy_from_slice(&bytes[range]);
    }
}

/// Page lists shared between two actors: a message names a slot, its row holds up to `width` pages with their sums.
///
/// The sender fills a row before it pushes the message, the receiver reads it after the pop; the ring's release and
/// acquire order the two, so relaxed loads and stores suffice.
#[derive(Debug)]
pub struct PageTable {
    width: usize,
    pages: Box<[AtomicU32]>,
    sums: Box<[AtomicU32]>,
}

impl PageTable {
    pub fn new(slots: usize, width: usize) -> PageTable {
        let cells = |value: u32| (0..slots * width).map(|_| AtomicU32::new(value)).collect();
        PageTable { width, pages: cells(PageId::NONE.0), sums: cells(0) }
    }

    /// Names no page any more. Rows are filled from their first cell on, so one that names none there is empty.
    pub fn clear(&mut self) {
        let rows = self.pages.chunks_exact_mut(self.width).zip(self.sums.chunks_exact_mut(self.width));
        for (pages, sums) in rows {
            if *pages[0].get_mut() != PageId::NONE.0 {
                pages.iter_mut().for_each(|page| *page.get_mut() = PageId::NONE.0);
                sums.iter_mut().for_each(|sum| *sum.get_mut() = 0);
            }
        }
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn slots(&self) -> usize {
        self.pages.len() / self.width
    }

    fn cell(&self, slot: SlotId, index: usize) -> usize {
        assert!(index < self.width, "page table row of {} has no index {index}", self.width);
        slot.0 as usize * self.width + index
    }

    pub fn set(&self, slot: SlotId, index: usize, page: PageId, sum: BlockSum) {
        let cell = self.cell(slot, index);
        self.pages[cell].store(page.0, Relaxed);
        self.sums[cell].store(sum.0, Relaxed);
    }

    pub fn page(&self, slot: SlotId, index: usize) -> PageId {
        PageId(self.pages[self.cell(slot, index)].load(Relaxed))
    }

    pub fn sum(&self, slot: SlotId, index: usize) -> BlockSum {
        BlockSum(self.sums[self.cell(slot, index)].load(Relaxed))
    }

    /// Bytes of memory the table takes.
    pub fn bytes(slots: usize, width: usize) -> usize {
        slots * width * 8
    }
}
