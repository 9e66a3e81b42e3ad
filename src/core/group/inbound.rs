//! An update received from the peer and waiting for room.

use super::old_blocks::Blocks;
use super::{Group, Turn};
use crate::base::*;
use crate::format::update::Update;

/// Its pages are the group's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inbound {
    pub update: Update,
    pub pages: Blocks,
    /// What its blocks held before, if that came with it.
    pub old: Option<Blocks>,
}

impl Inbound {
    /// The one that a row of the link's table holds.
    pub fn of_row(table: &PageTable, slot: SlotId, update: Update, with_old: bool) -> Inbound {
        let cells = |from: usize, blocks: usize| {
            let mut cells: Blocks = [(PageId::NONE, BlockSum::ZEROS); UPDATE_BLOCKS_MAX];
            for (index, cell) in (from..).zip(&mut cells[..blocks]) {
                *cell = (table.page(slot, index), table.sum(slot, index));
            }
            cells
        };
        let pages = cells(0, update.payload_blocks());
        let old = with_old.then(|| cells(UPDATE_BLOCKS_MAX, update.count as usize));
        Inbound { update, pages, old }
    }

    /// All pages that came with it, the zero page among them.
    pub fn all_pages(&self) -> impl Iterator<Item = PageId> {
        let new = &self.pages[..self.update.payload_blocks()];
        new.iter().map(|(page, _)| *page).chain(self.old_pages())
    }

    pub fn old_pages(&self) -> impl Iterator<Item = PageId> {
        let old = self.old.as_ref().map_or(&[][..], |old| &old[..self.update.count as usize]);
        old.iter().map(|(page, _)| *page)
    }

    /// Those of them that had been granted to the link.
    pub fn granted(&self) -> usize {
        self.all_pages().filter(|page| *page != PageId::ZERO).count()
    }
}

impl Group {
    /// Lets go of the pages of one that is not taken.
    pub(super) fn drop_inbound(&mut self, turn: &mut Turn<impl Memory>, inbound: &Inbound) {
        for page in inbound.all_pages() {
            self.pages.release(page, turn.memory);
        }
    }
}
