//! An arena that knows what may be done with each page, and shows every use of a page after its time.
//!
//! A page whose content a name gives in full has bytes only once somebody asks for them, and blocks are shared, not copied:
//! who may change a page gets bytes of its own first.

use std::cell::{Cell, OnceCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::LazyLock;

use crate::base::{BLOCK_BYTES, BlockSum, Memory, PageId, sum_of_block};
use crate::sim::content::{Block, Content, INDEX_SHIFT, Print, fresh, recycle};

/// What a page holds between its uses: no host writes it, no checksum matches it.
const POISON: u8 = 0xdb;

/// Places of [`Sums`]: more than the blocks that are on their way at once.
const SUMS: usize = 1024;

type KnownSum = Option<(Print, BlockSum)>;

/// What each byte of a name adds to the checksum of a host's block, and the checksum of one without a name: every word of such a
/// block is its name and its index, and crc32c is linear.
struct NameSums {
    unnamed: u32,
    bytes: [[u32; 256]; 8],
}

static NAME_SUMS: LazyLock<NameSums> = LazyLock::new(|| {
    let sum = |word: &dyn Fn(u64) -> u64| {
        let mut block = [0; BLOCK_BYTES];
        for (index, bytes) in (0..).zip(block.as_chunks_mut::<8>().0) {
            *bytes = word(index).to_le_bytes();
        }
        crc32c::crc32c(&block)
    };
    let zeros = sum(&|_| 0);
    let byte = |at: usize| std::array::from_fn(|value| sum(&|_| (value as u64) << (8 * at)) ^ zeros);
    NameSums { unnamed: sum(&|index| index << INDEX_SHIFT), bytes: std::array::from_fn(byte) }
});

/// The checksum of a host's block.
fn sum_of_named(print: Print) -> BlockSum {
    let NameSums { unnamed, bytes } = &*NAME_SUMS;
    let named = bytes.iter().zip(print.0.to_le_bytes());
    match named.fold(*unnamed, |sum, (added, byte)| sum ^ added[usize::from(byte)]) {
        0 => BlockSum(u32::MAX),
        sum => BlockSum(sum),
    }
}

/// Checksums of other blocks by content, since a block is summed again at every station of its way.
#[derive(Debug)]
pub struct Sums(Box<[Cell<KnownSum>]>);

impl Default for Sums {
    fn default() -> Sums {
        Sums((0..SUMS).map(|_| Cell::default()).collect())
    }
}

impl Sums {
    fn get(&self, print: Print, sum: impl FnOnce() -> BlockSum) -> BlockSum {
        let place = &self.0[print.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 40 & (SUMS - 1)];
        match place.get() {
            Some((known, sum)) if known == print => sum,
            _ => {
                let sum = sum();
                place.set(Some((print, sum)));
                sum
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    sealed: bool,
    /// A front or the link holds it: granted, or lent for a read.
    lent: bool,
    /// Disks and links that read or write it at this moment.
    pins: u16,
}

/// With neither of the two it holds poison.
#[derive(Debug, Default)]
struct Page {
    print: OnceCell<Print>,
    bytes: OnceCell<Rc<Block>>,
}

impl Page {
    fn named(print: Print) -> Page {
        Page { print: OnceCell::from(print), bytes: OnceCell::new() }
    }

    fn print(&self) -> Print {
        *self.print.get_or_init(|| Print::of(self.bytes()))
    }

    fn bytes(&self) -> &Rc<Block> {
        self.bytes.get_or_init(|| {
            let mut block = fresh();
            let bytes = Rc::get_mut(&mut block).expect("nobody else refers to it");
            match self.print.get() {
                Some(print) => print.fill(&mut bytes[..]),
                None => bytes.fill(POISON),
            }
            block
        })
    }

    fn content(&self) -> Content {
        let print = self.print();
        Content { print, bytes: (!print.is_whole()).then(|| self.bytes().clone()) }
    }
}

impl From<Content> for Page {
    fn from(Content { print, bytes }: Content) -> Page {
        Page { print: OnceCell::from(print), bytes: bytes.map_or_else(OnceCell::new, OnceCell::from) }
    }
}

#[derive(Debug)]
pub struct SimMemory {
    pages: Vec<Page>,
    states: Vec<State>,
    sums: Rc<Sums>,
}

impl SimMemory {
    pub fn new(pages: u32, sums: &Rc<Sums>) -> SimMemory {
        let mut memory = SimMemory {
            pages: (0..pages).map(|_| Page::named(Print::ZERO)).collect(),
            states: vec![State::default(); pages as usize],
            sums: sums.clone(),
        };
        memory.restart();
        memory
    }

    /// The process died: its next incarnation finds nothing that the last one left.
    pub fn restart(&mut self) {
        self.states.fill(State::default());
        (1..self.pages.len()).for_each(|page| self.forget(PageId(page as u32)));
        self.put(PageId::ZERO, Page::named(Print::ZERO));
        self.states[0].sealed = true;
    }

    fn page(&self, page: PageId) -> &Page {
        &self.pages[page.0 as usize]
    }

    fn put(&mut self, page: PageId, content: Page) {
        let old = std::mem::replace(&mut self.pages[page.0 as usize], content);
        old.bytes.into_inner().into_iter().for_each(recycle);
    }

    /// The page holds poison.
    fn forget(&mut self, page: PageId) {
        self.put(page, Page::default());
    }

    /// Bytes of the page's own, still those it had.
    fn own(&mut self, page: PageId) -> &mut Block {
        let page = &mut self.pages[page.0 as usize];
        page.bytes();
        page.print.take();
        let bytes = page.bytes.get_mut().expect("made above");
        if Rc::get_mut(bytes).is_none() {
            let mut own = fresh();
            *Rc::get_mut(&mut own).expect("nobody else refers to it") = **bytes;
            *bytes = own;
        }
        Rc::get_mut(bytes).expect("it is the page's own")
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
        let print = Print::of(block);
        let content = Page::named(print);
        if !print.is_whole() {
            let mut bytes = fresh();
            *Rc::get_mut(&mut bytes).expect("nobody else refers to it") = *block;
            content.bytes.set(bytes).expect("a new page has no bytes");
        }
        self.put(page, content);
    }

    /// A host's block, or what a disk puts into a page it has pinned.
    pub fn fill_content(&mut self, page: PageId, content: Content) {
        self.may_fill(page);
        self.put(page, Page::from(content));
    }

    pub fn print(&self, page: PageId) -> Print {
        self.page(page).print()
    }

    /// What a page holds, for who keeps it.
    pub fn content(&self, page: PageId) -> Content {
        self.page(page).content()
    }

    /// Appends the page's bytes.
    pub fn append_to(&self, page: PageId, out: &mut Vec<u8>) {
        let Page { print, bytes } = self.page(page);
        match (bytes.get(), print.get()) {
            (None, Some(print)) => {
                let mut block = [0; BLOCK_BYTES];
                print.fill(&mut block);
                out.extend_from_slice(&block);
            }
            _ => out.extend_from_slice(&self.bytes(page)[..]),
        }
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
        self.page(page).bytes()
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
        self.forget(page);
    }

    fn copy(&mut self, from: PageId, to: PageId, range: Range<usize>) {
        if range == (0..BLOCK_BYTES) {
            self.may_change(to);
            self.put(to, Page::from(self.content(from)));
        } else {
            let bytes = self.page(from).bytes().clone();
            self.bytes_mut(to)[range.clone()].copy_from_slice(&bytes[range]);
        }
    }

    fn first<const BYTES: usize>(&self, page: PageId) -> [u8; BYTES] {
        let Page { print, bytes } = self.page(page);
        match (bytes.get(), print.get()) {
            (None, Some(print)) => {
                let mut first = [0; BYTES];
                print.fill(&mut first);
                first
            }
            _ => *self.bytes(page).first_chunk().expect("fewer than a block has"),
        }
    }

    fn is_zeros(&self, page: PageId) -> bool {
        self.print(page) == Print::ZERO
    }

    fn sum(&self, page: PageId) -> BlockSum {
        let page = self.page(page);
        if page.print().op().is_some() {
            return sum_of_named(page.print());
        }
        self.sums.get(page.print(), || match page.bytes.get() {
            Some(bytes) => sum_of_block(bytes),
            None => {
                let mut block = [0; BLOCK_BYTES];
                page.print().fill(&mut block);
                sum_of_block(&block)
            }
        })
    }
}

impl Drop for SimMemory {
    fn drop(&mut self) {
        for page in &mut self.pages {
            page.bytes.take().into_iter().for_each(recycle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reopened_pages_are_poisoned() {
        let mut memory = SimMemory::new(4, &Rc::default());
        memory.bytes_mut(PageId(2)).fill(1);
        memory.seal(PageId(2));
        memory.reopen(PageId(2));
        assert_eq!(memory.bytes(PageId(2)), &[POISON; BLOCK_BYTES]);
        assert_eq!(memory.bytes(PageId::ZERO), &[0; BLOCK_BYTES]);
    }

    #[test]
    fn pages_that_share_a_block_change_apart() {
        let mut memory = SimMemory::new(5, &Rc::default());
        let print = Print::of_write(1, 2, 3);
        let bytes = |content: &Content| {
            let mut block = [0; BLOCK_BYTES];
            content.write_to(&mut block);
            block
        };
        memory.lend(PageId(1));
        memory.fill_content(PageId(1), Content { print, bytes: None });
        memory.copy(PageId(1), PageId(2), 0..BLOCK_BYTES);
        assert_eq!((Print::of(memory.bytes(PageId(2))), memory.print(PageId(2))), (print, print));
        // A mixture has bytes, which pages share until one of them changes.
        memory.bytes_mut(PageId(2))[7] ^= 1;
        memory.copy(PageId(2), PageId(4), 0..BLOCK_BYTES);
        let mixture = memory.content(PageId(4));
        assert_eq!(Print::of(&bytes(&mixture)), mixture.print);
        memory.copy(PageId(1), PageId(2), 0..8);
        assert_eq!((memory.print(PageId(1)), memory.print(PageId(2))), (print, print));
        memory.bytes_mut(PageId(4))[7] ^= 2;
        assert_ne!(memory.print(PageId(4)), mixture.print);
        memory.seal(PageId(4));
        memory.reopen(PageId(4));
        memory.bytes_mut(PageId(3))[0] = 1;
        assert_eq!(memory.bytes(PageId(3))[1..], [POISON; BLOCK_BYTES - 1]);
        assert_eq!(Print::of(&bytes(&mixture)), mixture.print);
    }

    #[test]
    fn sums_and_bytes_are_those_of_the_content() {
        let mut memory = SimMemory::new(4, &Rc::default());
        memory.lend(PageId(1));
        for op in 0..2 * SUMS as u64 {
            let print = Print::of_write(0, 1, op / 2);
            memory.fill_content(PageId(1), Content { print, bytes: None });
            let mut whole = Vec::new();
            memory.append_to(PageId(1), &mut whole);
            assert_eq!(memory.sum(PageId(1)), sum_of_block(memory.bytes(PageId(1))));
            assert_eq!(memory.bytes(PageId(1))[..], whole);
            memory.fill(PageId(1))[9] ^= 1;
            assert_eq!(memory.sum(PageId(1)), sum_of_block(memory.bytes(PageId(1))));
        }
    }

    #[test]
    #[should_panic(expected = "under its readers")]
    fn sealed_pages_do_not_change() {
        let mut memory = SimMemory::new(4, &Rc::default());
        memory.seal(PageId(2));
        memory.bytes_mut(PageId(2));
    }

    #[test]
    #[should_panic(expected = "taken from its users")]
    fn pages_in_use_are_not_reopened() {
        let mut memory = SimMemory::new(4, &Rc::default());
        memory.seal(PageId(2));
        memory.pin_for_reading(PageId(2));
        memory.reopen(PageId(2));
    }
}
