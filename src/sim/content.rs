//! What the simulated hosts write: every block says who wrote it and where it belongs, so that a block found anywhere
//! (journal, frame, volume, read) can be named, and a misplaced or torn one is seen.

use std::cell::RefCell;
use std::rc::Rc;

use crate::base::BLOCK_BYTES;

pub type Block = [u8; BLOCK_BYTES];

/// Names a block's content: `ZERO`, a whole block of one host write, or a hash of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Print(pub u64);

/// Words in a block; each word of a host's block carries its own index.
const WORDS: usize = BLOCK_BYTES / 8;

const MARK: u64 = 0b101_0101 << 57;
const MARK_MASK: u64 = 0x7f << 57;
pub const INDEX_SHIFT: u32 = 48;

impl Print {
    pub const ZERO: Print = Print(0);

    /// The content of block `lba` of `volume` as host operation `op` writes it.
    pub fn of_write(volume: u16, lba: u64, op: u64) -> Print {
        assert!(volume < 16 && lba < 1 << 16 && op < 1 << 28, "beyond the pattern: {volume} {lba} {op}");
        Print(MARK | op << 20 | u64::from(volume) << 16 | lba)
    }

    /// The operation that wrote the whole block, if one did.
    pub fn op(self) -> Option<u64> {
        (self.0 & MARK_MASK == MARK).then_some(self.0 >> 20 & ((1 << 28) - 1))
    }

    /// Whether the name says what every byte is.
    pub fn is_whole(self) -> bool {
        self == Print::ZERO || self.op().is_some()
    }

    pub fn describe(self) -> String {
        match self.op() {
            Some(op) => format!("op {op} for volume {} block {}", self.0 >> 16 & 15, self.0 & 0xffff),
            None if self == Print::ZERO => "zeros".into(),
            None => format!("mixture {:x}", self.0),
        }
    }

    /// Writes the content out, or its beginning; it must be one that its name fully describes.
    pub fn fill(self, block: &mut [u8]) {
        assert!(self.is_whole(), "a mixture cannot be made from its hash");
        if self == Print::ZERO {
            block.fill(0);
            return;
        }
        let (words, rest) = block.as_chunks_mut::<8>();
        assert!(words.len() <= WORDS && rest.is_empty(), "a block has {WORDS} whole words");
        for (index, word) in words.iter_mut().enumerate() {
            *word = (self.0 | (index as u64) << INDEX_SHIFT).to_le_bytes();
        }
    }

    pub fn of(block: &Block) -> Print {
        let words = block.as_chunks::<8>().0;
        let first = u64::from_le_bytes(words[0]);
        if first & MARK_MASK == MARK {
            let expected = |index: usize| first | (index as u64) << INDEX_SHIFT;
            let differing =
                (0..WORDS).fold(0, |seen, index| seen | (u64::from_le_bytes(words[index]) ^ expected(index)));
            if differing == 0 {
                return Print(first);
            }
        } else if first == 0 && words.iter().fold(0, |seen, word| seen | u64::from_le_bytes(*word)) == 0 {
            return Print::ZERO;
        }
        Print(xxhash_rust::xxh3::xxh3_64(block) & !MARK_MASK | 1 << 57)
    }
}

/// A block's content: its name, and the bytes only if the name does not give them. What hosts write needs none, wherever it
/// lies.
#[derive(Clone, Debug)]
pub struct Content {
    pub print: Print,
    pub bytes: Option<Rc<Block>>,
}

impl Content {
    pub const ZERO: Content = Content { print: Print::ZERO, bytes: None };

    pub fn of(block: &Block) -> Content {
        let print = Print::of(block);
        Content { print, bytes: (!print.is_whole()).then(|| Rc::new(*block)) }
    }

    pub fn write_to(&self, block: &mut Block) {
        match &self.bytes {
            Some(bytes) => block.copy_from_slice(&bytes[..]),
            None => self.print.fill(block),
        }
    }
}

/// Blocks kept for reuse in each thread: about what pages and disks of two sites hold of mixtures.
const SPARE_MAX: usize = 4096;

thread_local! {
    static SPARE: RefCell<Vec<Rc<Block>>> = const { RefCell::new(Vec::new()) };
}

/// A block that nobody else refers to, with whatever bytes its last use left.
pub fn fresh() -> Rc<Block> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Rc::new([0; BLOCK_BYTES]))
}

/// Keeps a block for the next use if this was the last one.
pub fn recycle(mut block: Rc<Block>) {
    if Rc::get_mut(&mut block).is_some() {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MAX {
                spare.push(block);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_name_themselves() {
        let mut block = [0; BLOCK_BYTES];
        assert_eq!(Print::of(&block), Print::ZERO);
        let print = Print::of_write(3, 255, 1 << 20);
        print.fill(&mut block);
        assert_eq!(Print::of(&block), print);
        assert_eq!(print.op(), Some(1 << 20));
    }

    #[test]
    fn a_shifted_or_mixed_block_has_another_name() {
        let mut block = [0; BLOCK_BYTES];
        let print = Print::of_write(0, 9, 77);
        print.fill(&mut block);
        let mut shifted = block;
        shifted.rotate_left(512);
        assert_eq!(Print::of(&shifted).op(), None);
        for at in [0, 1, 7, 8, 511, 4095] {
            let mut mixed = block;
            mixed[at] ^= 1;
            assert_eq!(Print::of(&mixed).op(), None, "byte {at}");
            assert_ne!(Print::of(&mixed), Print::ZERO);
        }
        let mut nearly_zero = [0; BLOCK_BYTES];
        nearly_zero[4000] = 1;
        assert_ne!(Print::of(&nearly_zero), Print::ZERO);
    }
}
