//! An arena that knows what may be done with each page, and shows every use of a page after its time.

use crate::base::{BLOCK_BYTES, Memory, PageId};
use crate::sim::content::Block;

/// What a page holds between its uses: no host writes it, no checksum matches it.
const POISON: u8 = 0xdb;

#[derive(Clone, Copy, Debug, Default)]
struct State {
    sealed: bool,
    /// A front or the link holds it: granted, or lent for a read.
    lent: bool,
    /// Disks and links that read or write it at this moment.
    pins: u16,
}

#[derive(Debug)]
pub struct SimMemory {
    pages: Vec<Block>,
    states: Vec<State>,
}

impl SimMemory {
    pub fn new(pages: u32) -> SimMemory {
        let mut memory = SimMemory {
            pages: vec![[0; BLOCK_BYTES]; pages as usize],
            states: vec![State::default(); pages as usize],
        };
        memory.restart();
        memory
    }

    /// The process died: its next incarnation finds nothing that the last one left.
    pub fn restart(&mut self) {
        self.states.fill(State::default());
        self.pages[1..].iter_mut().for_each(|page| page.fill(POISON));
        self.pages[0].fill(0);
        self.states[0].sealed = true;
    }

    fn state(&mut self, page: PageId) -> &mut State {
        assert!(page != PageId::NONE, "no page where one was expected");
        &mut self.states[page.0 as usize]
    }

    /// The group gives the page to a front or the link.
    pub fn lend(&mut self, page: PageId) {
        let state = self.state(page);
        assert!(
            page != PageId::ZERO && !state.sealed && !state.lent && state.pins == 0,
            "granted {page:?} is {state:?}"
        );
        state.lent = true;
    }

    /// The page becomes the group's again.
    pub fn give_back(&mut self, page: PageId) {
        let state = self.state(page);
        assert!(state.lent, "{page:?} was not lent");
        state.lent = false;
    }

    /// A disk or the link begins to read the page: shared pages only.
    pub fn pin_for_reading(&mut self, page: PageId) {
        let state = self.state(page);
        assert!(state.sealed, "{page:?} goes to a disk or link while it may still change");
        state.pins += 1;
    }

    /// A disk begins to fill the page.
    pub fn pin_for_writing(&mut self, page: PageId) {
        let state = self.state(page);
        assert!(
            !state.sealed && state.pins == 0 && page != PageId::ZERO,
            "a read fills {page:?}, which is {state:?}"
        );
        state.pins += 1;
    }

    pub fn unpin(&mut self, page: PageId) {
        let state = self.state(page);
        assert!(state.pins > 0, "{page:?} was not in use");
        state.pins -= 1;
    }

    /// What a disk or link puts into a page it has pinned or that was lent to it.
    pub fn fill(&mut self, page: PageId) -> &mut Block {
        let state = *self.state(page);
        assert!(!state.sealed && (state.lent || state.pins == 1), "filling {page:?}, which is {state:?}");
        &mut self.pages[page.0 as usize]
    }

    /// Pages held by fronts and link.
    pub fn lent(&self) -> usize {
        self.states.iter().filter(|state| state.lent).count()
    }

    pub fn pinned(&self) -> usize {
        self.states[1..].iter().filter(|state| state.pins > 0).count()
    }
}

impl Memory for SimMemory {
    fn bytes(&self, page: PageId) -> &Block {
        &self.pages[page.0 as usize]
    }

    fn bytes_mut(&mut self, page: PageId) -> &mut Block {
        let state = *self.state(page);
        assert!(!state.sealed, "{page:?} is shared and would change under its readers");
        assert!(state.pins == 0, "{page:?} is being filled by a disk");
        &mut self.pages[page.0 as usize]
    }

    fn seal(&mut self, page: PageId) {
        let state = self.state(page);
        assert!(!state.sealed && state.pins == 0, "sealing {page:?}, which is {state:?}");
        state.sealed = true;
    }

    fn reopen(&mut self, page: PageId) {
        let state = self.state(page);
        assert!(page != PageId::ZERO, "page zero is nobody's");
        assert!(!state.lent && state.pins == 0, "{page:?} is taken from its users: {state:?}");
        state.sealed = false;
        self.pages[page.0 as usize].fill(POISON);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reopened_pages_are_poisoned() {
        let mut memory = SimMemory::new(4);
        memory.bytes_mut(PageId(2)).fill(1);
        memory.seal(PageId(2));
        memory.reopen(PageId(2));
        assert_eq!(memory.bytes(PageId(2)), &[POISON; BLOCK_BYTES]);
        assert_eq!(memory.bytes(PageId::ZERO), &[0; BLOCK_BYTES]);
    }

    #[test]
    #[should_panic(expected = "under its readers")]
    fn sealed_pages_do_not_change() {
        let mut memory = SimMemory::new(4);
        memory.seal(PageId(2));
        memory.bytes_mut(PageId(2));
    }

    #[test]
    #[should_panic(expected = "taken from its users")]
    fn pages_in_use_are_not_reopened() {
        let mut memory = SimMemory::new(4);
        memory.seal(PageId(2));
        memory.pin_for_reading(PageId(2));
        memory.reopen(PageId(2));
    }
}
