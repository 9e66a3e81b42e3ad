//! The arena: one anonymous mapping of 4 KiB pages that every actor of a group shares by id.
//!
//! Pages are handed from actor to actor by messages, and a page's id is its ownership: whoever was handed an open page
//! is alone in touching it until it is handed on or sealed. The arena checks what it can of that in every call: nobody
//! writes a sealed page, nobody touches a page the kernel is filling, and no page under I/O is reopened.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::base::{BLOCK_BYTES, Memory, PageId};

/// Bytes of one buffer registered with io_uring: the kernel's limit. Segments of one I/O do not straddle two.
pub const REGISTERED_BYTES_MAX: usize = 1 << 30;

/// Pages in one registered buffer.
pub const REGISTERED_PAGES_MAX: u32 = (REGISTERED_BYTES_MAX / BLOCK_BYTES) as u32;

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// State of a page: sealed or open, and what the kernel does with it.
const SEALED: u8 = 0x80;
/// The kernel is filling the page.
const FILLING: u8 = 0x40;
/// The low bits count the writes and sends in flight that read the page: journal, link, destage, each once or twice.
const READERS: u8 = 0x3f;

/// The mapping. Shared by `Arc`; touched through [`ArenaView`]s.
#[derive(Debug)]
pub struct Arena {
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    /// Page 0, aligned to a huge page inside the mapping.
    base: NonNull<u8>,
    pages: u32,
    huge: bool,
    states: Box<[AtomicU8]>,
}

// SAFETY: the pointers name memory that the arena owns until it is dropped, and the struct's own methods only compute
// addresses and change atomics; access to the bytes goes through `ArenaView`, which states its own conditions.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `pages` pages, page 0 (the zeros) included; all are open but that one. Huge pages are asked for and done
    /// without if the system has none. Fails with the system's error when the memory is not to be had.
    pub fn new(pages: u32) -> io::Result<Arc<Arena>> {
        assert!(pages > 0 && pages < PageId::NONE.0, "an arena of {pages} pages");
        let bytes = pages as usize * BLOCK_BYTES;
        let mapping_bytes = bytes + HUGE_PAGE_BYTES;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let mapping = unsafe {
            mmap_anonymous(std::ptr::null_mut(), mapping_bytes, ProtFlags::READ | ProtFlags::WRITE, flags)?
        };
        let mapping =
            NonNull::new(mapping.cast::<u8>()).expect("mmap succeeded and address 0 is never given");
        // SAFETY: the offset is below one huge page, and the mapping is that much longer than the pages.
        let base = unsafe { mapping.add(mapping.as_ptr().align_offset(HUGE_PAGE_BYTES)) };
        // SAFETY: the range lies inside the mapping; the advice changes how it is backed, not what it holds.
        let huge = unsafe { madvise(base.as_ptr().cast(), bytes, Advice::LinuxHugepage) }.is_ok();
        let states = (0..pages).map(|page| AtomicU8::new(if page == 0 { SEALED } else { 0 })).collect();
        Ok(Arc::new(Arena { mapping, mapping_bytes, base, pages, huge, states }))
    }

    /// Pages, page 0 included.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Whether the kernel took the advice to use huge pages.
    pub fn huge(&self) -> bool {
        self.huge
    }

    /// A handle for one actor.
    pub fn view(self: &Arc<Arena>) -> ArenaView {
        ArenaView { arena: self.clone() }
    }

    /// Backs every page with memory now, so that no first touch faults on the data path and a machine without enough
    /// memory says so at start. Kernels before 5.14 cannot; then pages are backed at first touch.
    pub fn populate(&self) -> io::Result<()> {
        let bytes = self.pages as usize * BLOCK_BYTES;
        // SAFETY: the range lies inside the mapping; populating does not change its contents.
        match unsafe { madvise(self.base.as_ptr().cast(), bytes, Advice::LinuxPopulateWrite) } {
            Err(rustix::io::Errno::INVAL) => Ok(()),
            other => Ok(other?),
        }
    }

    fn state(&self, page: PageId) -> &AtomicU8 {
        match self.states.get(page.0 as usize) {
            Some(state) => state,
            None => panic!("page {} of an arena of {}", page.0, self.pages),
        }
    }

    /// The page's address, for an I/O of `io::ring`, which keeps the arena alive until the I/O is over.
    pub(in crate::io) fn address(&self, page: PageId) -> *mut u8 {
        assert!(page.0 < self.pages, "page {} of an arena of {}", page.0, self.pages);
        // SAFETY: the page lies inside the mapping, as just checked.
        unsafe { self.base.as_ptr().add(page.0 as usize * BLOCK_BYTES) }
    }

    /// The page that holds an address, if one of this arena does.
    pub(in crate::io) fn page_at(&self, address: *const u8) -> Option<PageId> {
        let offset = address.addr().checked_sub(self.base.as_ptr().addr())?;
        let page = offset / BLOCK_BYTES;
        (page < self.pages as usize).then_some(PageId(page as u32))
    }

    /// The buffers to register with an io_uring: the pages in pieces of [`REGISTERED_BYTES_MAX`].
    pub(in crate::io) fn registrations(&self) -> impl Iterator<Item = (*mut u8, usize)> {
        (0..self.pages).step_by(REGISTERED_PAGES_MAX as usize).map(|first| {
            let pages = (self.pages - first).min(REGISTERED_PAGES_MAX);
            (self.address(PageId(first)), pages as usize * BLOCK_BYTES)
        })
    }

    /// The kernel starts to fill an open page.
    pub(in crate::io) fn begin_filling(&self, page: PageId) {
        let begun = self.state(page).compare_exchange(0, FILLING, Ordering::Acquire, Ordering::Relaxed);
        if let Err(state) = begun {
            panic!("page {} is to be read into in state {state:#x} (sealed or under I/O)", page.0);
        }
    }

    pub(in crate::io) fn end_filling(&self, page: PageId) {
        let before = self.state(page).fetch_and(!FILLING, Ordering::Release);
        assert!(before == FILLING, "page {} was read into in state {before:#x}", page.0);
    }

    /// The kernel starts to read a page: sealed, or open and not touched until the read ends.
    pub(in crate::io) fn begin_reading(&self, page: PageId) {
        if page == PageId::ZERO {
            return;
        }
        let before = self.state(page).fetch_add(1, Ordering::Acquire);
        assert!(
            before & FILLING == 0 && before & READERS < READERS,
            "page {} is to be written from in state {before:#x}",
            page.0
        );
    }

    pub(in crate::io) fn end_reading(&self, page: PageId) {
        if page == PageId::ZERO {
            return;
        }
        let before = self.state(page).fetch_sub(1, Ordering::Release);
        assert!(before & READERS > 0, "page {} ended a read that it did not begin", page.0);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: views and rings hold the arena by `Arc`, so nothing refers to the mapping any more. A ring with an I/O
        // that would not end forgets its reference instead.
        let unmapped = unsafe { munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// One actor's access to the arena. `Send`, so that an actor can be built on one thread and run on another.
#[derive(Debug)]
pub struct ArenaView {
    arena: Arc<Arena>,
}

impl ArenaView {
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }
}

impl Memory for ArenaView {
    fn bytes(&self, page: PageId) -> &[u8; BLOCK_BYTES] {
        let state = self.arena.state(page).load(Ordering::Acquire);
        assert!(state & FILLING == 0, "page {} is looked at while a read fills it", page.0);
        // SAFETY: the address is that of a whole page inside the mapping, which outlives the view. A sealed page is
        // immutable until it is retired; an open one belongs to the actor that was handed its id, and that actor has
        // one view, borrowed here. The kernel does not write the page, as just checked.
        unsafe { &*self.arena.address(page).cast::<[u8; BLOCK_BYTES]>() }
    }

    fn bytes_mut(&mut self, page: PageId) -> &mut [u8; BLOCK_BYTES] {
        let state = self.arena.state(page).load(Ordering::Acquire);
        assert!(state == 0, "page {} is written in state {state:#x} (sealed or under I/O)", page.0);
        // SAFETY: as for `bytes`; the page is open and under no I/O, so its owner is alone with it, and that owner's only
        // view is borrowed mutably.
        unsafe { &mut *self.arena.address(page).cast::<[u8; BLOCK_BYTES]>() }
    }

    fn seal(&mut self, page: PageId) {
        let before = self.arena.state(page).fetch_or(SEALED, Ordering::Release);
        assert!(before & (SEALED | FILLING) == 0, "page {} is sealed in state {before:#x}", page.0);
    }

    fn reopen(&mut self, page: PageId) {
        assert!(page != PageId::ZERO, "the page of zeros is nobody's to reopen");
        let reopened =
            self.arena.state(page).compare_exchange(SEALED, 0, Ordering::AcqRel, Ordering::Acquire);
        let state = reopened.unwrap_or_else(|state| state);
        assert!(state & !SEALED == 0, "page {} is reopened under I/O, in state {state:#x}", page.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> ArenaView {
        Arena::new(8).unwrap().view()
    }

    #[test]
    fn pages_are_apart_and_begin_as_zeros() {
        let mut view = view();
        for page in 1..8 {
            assert_eq!(view.bytes(PageId(page)), &[0; BLOCK_BYTES]);
            view.bytes_mut(PageId(page)).fill(page as u8);
        }
        for page in 0..8 {
            assert_eq!(view.bytes(PageId(page)), &[page as u8; BLOCK_BYTES]);
            let address = view.arena().address(PageId(page));
            assert_eq!(view.arena().page_at(address.wrapping_add(4095)), Some(PageId(page)));
        }
        assert_eq!(view.arena().page_at(view.arena().address(PageId(7)).wrapping_add(4096)), None);
        view.arena().populate().unwrap();
        assert_eq!(view.bytes(PageId(7)), &[7; BLOCK_BYTES]);
    }

    #[test]
    fn a_page_goes_round() {
        let (mut view, page) = (view(), PageId(3));
        view.bytes_mut(page)[0] = 1;
        view.seal(page);
        view.arena().begin_reading(page);
        view.arena().begin_reading(page);
        assert_eq!(view.bytes(page)[0], 1, "what is being written may be read");
        view.arena().end_reading(page);
        view.arena().end_reading(page);
        view.reopen(page);
        view.reopen(page);
        view.arena().begin_filling(page);
        view.arena().end_filling(page);
        view.bytes_mut(page)[0] = 2;
    }

    #[test]
    fn registrations_cover_the_arena_once() {
        let arena = Arena::new(REGISTERED_PAGES_MAX + 3).unwrap();
        let pieces: Vec<_> = arena.registrations().map(|(_, bytes)| bytes / BLOCK_BYTES).collect();
        assert_eq!(pieces, [REGISTERED_PAGES_MAX as usize, 3]);
    }

    #[test]
    #[should_panic(expected = "sealed or under I/O")]
    fn a_sealed_page_is_not_written() {
        let mut view = view();
        view.seal(PageId(1));
        view.bytes_mut(PageId(1));
    }

    #[test]
    #[should_panic(expected = "sealed or under I/O")]
    fn the_zeros_are_not_written() {
        view().bytes_mut(PageId::ZERO);
    }

    #[test]
    #[should_panic(expected = "nobody's to reopen")]
    fn the_zeros_are_not_reopened() {
        view().reopen(PageId::ZERO);
    }

    #[test]
    #[should_panic(expected = "is sealed in state")]
    fn a_page_is_sealed_once() {
        let mut view = view();
        view.seal(PageId(1));
        view.seal(PageId(1));
    }

    #[test]
    #[should_panic(expected = "is to be read into in state")]
    fn a_sealed_page_is_not_read_into() {
        let mut view = view();
        view.seal(PageId(1));
        view.arena().begin_filling(PageId(1));
    }

    #[test]
    #[should_panic(expected = "page 8 of an arena of 8")]
    fn a_page_beyond_the_arena_is_no_page() {
        view().bytes(PageId(8));
    }
}
