//! The group's account of the arena: which pages are free, and how many hold a reference to each of the others.
//!
//! Only the group counts; fronts, link and disks borrow, and their completions bring the page home.

use crate::base::{Memory, PageId};

#[derive(Debug)]
pub struct Pages {
    free: Vec<PageId>,
    references: Box<[u16]>,
}

impl Pages {
    /// All of an arena of `pages`, except page zero, which nobody owns.
    pub fn new(pages: u32) -> Pages {
        assert!(pages > 1, "an arena needs more than the zero page");
        Pages {
            // Popped from the end, so pages go out in ascending order and neighbours merge into one I/O segment.
            free: (1..pages).rev().map(PageId).collect(),
            references: vec![0; pages as usize].into_boxed_slice(),
        }
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages in use by anyone.
    pub fn used(&self) -> usize {
        self.references.len() - 1 - self.free.len()
    }

    pub fn total(&self) -> usize {
        self.references.len() - 1
    }

    /// An open page with one reference.
    pub fn take(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        assert_eq!(self.references[page.0 as usize], 0, "free {page:?} is referenced");
        self.references[page.0 as usize] = 1;
        Some(page)
    }

    /// One more holder of `page`.
    pub fn share(&mut self, page: PageId) {
        if page == PageId::ZERO {
            return;
        }
        let count = &mut self.references[page.0 as usize];
        assert!(*count > 0, "sharing {page:?}, which is free");
        *count = count.checked_add(1).expect("more references to a page than there are kinds of holders");
    }

    /// One holder less; the last one frees the page.
    pub fn release(&mut self, page: PageId, memory: &mut impl Memory) {
        if page == PageId::ZERO {
            return;
        }
        let count = &mut self.references[page.0 as usize];
        assert!(*count > 0, "releasing {page:?}, which is free");
        *count -= 1;
        if *count == 0 {
            memory.reopen(page);
            self.free.push(page);
        }
    }
}
