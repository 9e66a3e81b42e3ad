//! An arena that knows what may be done with each page, and shows every use of a page after its time.
//!
//! Blocks are shared with the simulated disks, not copied: who may still change a page gets bytes of its own first.

use std::ops::Range;
use std::rc::Rc;

use crate::base::{BLOCK_BYTES, Memory, PageId};
use crate::sim::content::{Block, Print};

/// What a page holds between its uses: no host writes it, no checksum matches it.
const POISON: u8 = 0xdb;

/// Blocks kept for reuse, so that a write costs no allocation; more than are in use by pages at once are not needed.
const SPARE_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
struct State {
    sealed: bool,
    /// A front or the link holds it: granted, or lent for a read.
    lent: bool,
    /// Disks and links that read or write it at this moment.
    pins: u16,
}

#[derive(Debug)]
struct Page {
    data: Rc<Block>,
    /// The name of what it holds, once somebody has asked; whoever may change the bytes clears it.
    print: Option<Print>,
}

#[derive(Debug)]
pub struct SimMemory {
    pages: Vec<Page>,
    states: Vec<State>,
    poison: Rc<Block>,
    zeros: Rc<Block>,
    /// Blocks that nobody else refers to.
    spare: Vec<Rc<Block>>,
}

impl SimMemory {
    pub fn new(pages: u32) -> SimMemory {
        let zeros = Rc::new([0; BLOCK_BYTES]);
        let page = |_| Page { data: zeros.clone(), print: None };
        let mut memory = SimMemory {
            pages: (0..pages).map(page).collect(),
            states: vec![State::default(); pages as usize],
            poison: Rc::new([POISON; BLOCK_BYTES]),
            zeros,
            spare: Vec::new(),
        };
        memory.restart();
        memory
    }

    /// The process died: its next incarnation finds nothing that the last one left.
    pub fn restart(&mut self) {
        self.states.fill(State::default());
        (0..self.pages.len()).for_each(|page| self.forget(page));
        self.pages[0] = Page { data: self.zeros.clone(), print: Some(Print::ZERO) };
        self.states[0].sealed = true;
    }

    /// The page holds poison.
    fn forget(&mut self, page: usize) {
        let page = &mut self.pages[page];
        page.print = None;
        let mut old = std::mem::replace(&mut page.data, self.poison.clone());
        if self.spare.len() < SPARE_MAX && Rc::get_mut(&mut old).is_some() {
            self.spare.push(old);
        }
    }

    /// Bytes of the page's own, still those it had.
    fn own(&mut self, page: PageId) -> &mut Block {
        let page = &mut self.pages[page.0 as usize];
        page.print = None;
        if Rc::get_mut(&mut page.data).is_none() {
            page.data = match self.spare.pop() {
                Some(mut block) => {
                    *Rc::get_mut(&mut block).expect("nobody refers to a spare block") = *page.data;
                    block
                }
                None => Rc::new(*page.data),
            };
        }
        Rc::get_mut(&mut page.data).expect("it is the page's own")
    }

    /// Bytes of the page's own that are about to be written from end to end.
    fn own_anew(&mut self, page: PageId) -> &mut Block {
        let page = &mut self.pages[page.0 as usize];
        page.print = None;
        if Rc::get_mut(&mut page.data).is_none() {
            page.data = self.spare.pop().unwrap_or_else(|| self.poison.clone());
        }
        Rc::make_mut(&mut page.data)
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

    fn may_change(&mut self, page: PageId) {
        let state = *self.state(page);
        assert!(!state.sealed, "{page:?} is shared and would change under its readers");
        assert!(state.pins == 0, "{page:?} is being filled by a disk");
    }

    fn may_fill(&mut self, page: PageId) {
        let state = *self.state(page);
        assert!(!state.sealed && (state.lent || state.pins == 1), "filling {page:?}, which is {state:?}");
    }

    /// What a front or the link puts into a page that was lent to it.
    pub fn fill(&mut self, page: PageId) -> &mut Block {
        self.may_fill(page);
        self.own(page)
    }

    /// The same for a whole block.
    pub fn fill_whole(&mut self, page: PageId, block: &Block) {
        self.may_fill(page);
        *self.own_anew(page) = *block;
    }

    /// A host's content for a whole block.
    pub fn fill_print(&mut self, page: PageId, print: Print) {
        self.may_fill(page);
        print.fill(self.own_anew(page));
        self.pages[page.0 as usize].print = Some(print);
    }

    /// What a disk puts into a page it has pinned.
    pub fn fill_shared(&mut self, page: PageId, data: Rc<Block>, print: Print) {
        self.may_fill(page);
        self.pages[page.0 as usize] = Page { data, print: Some(print) };
    }

    /// The content of a page and its name, for who keeps both.
    pub fn shared(&mut self, page: PageId) -> (Rc<Block>, Print) {
        let print = self.print(page);
        (self.pages[page.0 as usize].data.clone(), print)
    }

    pub fn print(&mut self, page: PageId) -> Print {
        let Page { data, print } = &mut self.pages[page.0 as usize];
        *print.get_or_insert_with(|| Print::of(data))
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
        &self.pages[page.0 as usize].data
    }

    fn bytes_mut(&mut self, page: PageId) -> &mut Block {
        self.may_change(page);
        self.own(page)
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
        self.forget(page.0 as usize);
    }

    fn copy(&mut self, from: PageId, to: PageId, range: Range<usize>) {
        if range == (0..BLOCK_BYTES) {
            self.may_change(to);
            let Page { data, print } = &self.pages[from.0 as usize];
            self.pages[to.0 as usize] = Page { data: data.clone(), print: *print };
        } else {
            let data = self.pages[from.0 as usize].data.clone();
            self.bytes_mut(to)[range.clone()].copy_from_slice(&data[range]);
        }
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
    fn pages_that_share_a_block_change_apart() {
        let mut memory = SimMemory::new(4);
        let print = Print::of_write(1, 2, 3);
        memory.lend(PageId(1));
        memory.fill_print(PageId(1), print);
        memory.copy(PageId(1), PageId(2), 0..BLOCK_BYTES);
        let (kept, named) = memory.shared(PageId(2));
        assert_eq!((Print::of(&kept), named), (print, print));
        memory.bytes_mut(PageId(2))[7] ^= 1;
        assert_eq!(memory.print(PageId(2)), Print::of(memory.bytes(PageId(2))));
        memory.copy(PageId(1), PageId(2), 0..8);
        assert_eq!((memory.print(PageId(1)), memory.print(PageId(2))), (print, print));
        memory.give_back(PageId(1));
        memory.seal(PageId(1));
        memory.reopen(PageId(1));
        memory.reopen(PageId(2));
        memory.bytes_mut(PageId(3))[0] = 1;
        assert_eq!(memory.bytes(PageId(3))[1..], [POISON; BLOCK_BYTES - 1]);
        assert_eq!(Print::of(&kept), print);
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
