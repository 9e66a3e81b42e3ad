//! Containers whose capacity is set at start: nothing here allocates afterwards.

use std::collections::VecDeque;

/// A FIFO that never grows: pushing into a full one is a broken invariant, because admission reserved the place.
#[derive(Debug)]
pub struct FixedQueue<T> {
    items: VecDeque<T>,
    capacity: usize,
}

impl<T> FixedQueue<T> {
    pub fn new(capacity: usize) -> FixedQueue<T> {
        FixedQueue { items: VecDeque::with_capacity(capacity), capacity }
    }

    #[track_caller]
    pub fn push(&mut self, item: T) {
        assert!(self.items.len() < self.capacity, "a queue of {} is full", self.capacity);
        self.items.push_back(item);
    }

    pub fn pop(&mut self) -> Option<T> {
        self.items.pop_front()
    }

    pub fn front(&self) -> Option<&T> {
        self.items.front()
    }

    pub fn back(&self) -> Option<&T> {
        self.items.back()
    }

    pub fn back_mut(&mut self) -> Option<&mut T> {
        self.items.back_mut()
    }

    pub fn pop_back(&mut self) -> Option<T> {
        self.items.pop_back()
    }

    pub fn get(&self, index: usize) -> Option<&T> {
        self.items.get(index)
    }

    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.items.get_mut(index)
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.items.iter()
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn room(&self) -> usize {
        self.capacity - self.items.len()
    }

    pub fn clear(&mut self) {
        self.items.clear();
    }
}

/// A set of small integers with a summary level, so that finding the next member skips empty stretches of 4096.
#[derive(Debug)]
pub struct Bitmap {
    words: Box<[u64]>,
    summary: Box<[u64]>,
    bits: u64,
    count: u64,
}

impl Bitmap {
    pub fn new(bits: u64) -> Bitmap {
        let words = bits.div_ceil(64) as usize;
        Bitmap {
            words: vec![0; words].into_boxed_slice(),
            summary: vec![0; words.div_ceil(64)].into_boxed_slice(),
            bits,
            count: 0,
        }
    }

    /// Members are below this.
    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// With every bit set.
    pub fn full(bits: u64) -> Bitmap {
        let mut bitmap = Bitmap::new(bits);
        bitmap.fill();
        bitmap
    }

    /// From here on it has all of them.
    pub fn fill(&mut self) {
        let Bitmap { words, summary, bits, count } = self;
        words.fill(u64::MAX);
        if !bits.is_multiple_of(64) {
            *words.last_mut().expect("some bits, so some words") = (1 << (*bits % 64)) - 1;
        }
        summary.fill(u64::MAX);
        if !words.len().is_multiple_of(64) {
            *summary.last_mut().expect("some words") = (1 << (words.len() % 64)) - 1;
        }
        *count = *bits;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn contains(&self, bit: u64) -> bool {
        assert!(bit < self.bits, "bit {bit} of a bitmap of {}", self.bits);
        self.words[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }

    /// Returns whether the bit was newly set.
    pub fn insert(&mut self, bit: u64) -> bool {
        if self.contains(bit) {
            return false;
        }
        let word = (bit / 64) as usize;
        self.words[word] |= 1 << (bit % 64);
        self.summary[word / 64] |= 1 << (word % 64);
        self.count += 1;
        true
    }

    /// Returns whether the bit was set before.
    pub fn remove(&mut self, bit: u64) -> bool {
        if !self.contains(bit) {
            return false;
        }
        let word = (bit / 64) as usize;
        self.words[word] &= !(1 << (bit % 64));
        if self.words[word] == 0 {
            self.summary[word / 64] &= !(1 << (word % 64));
        }
        self.count -= 1;
        true
    }

    /// Sets every bit that `other`, of the same size, has set.
    pub fn insert_all(&mut self, other: &Bitmap) {
        assert_eq!(self.bits, other.bits, "bitmaps of different sizes");
        for (index, summary) in other.summary.iter().enumerate() {
            let mut rest = *summary;
            while rest != 0 {
                let word = index * 64 + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                let added = other.words[word] & !self.words[word];
                self.words[word] |= added;
                self.count += u64::from(added.count_ones());
            }
            self.summary[index] |= *summary;
        }
    }

    /// Takes out every bit that `other`, of the same size, has set.
    pub fn remove_all(&mut self, other: &Bitmap) {
        assert_eq!(self.bits, other.bits, "bitmaps of different sizes");
        for (index, summary) in other.summary.iter().enumerate() {
            let mut rest = *summary;
            while rest != 0 {
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                let word = index * 64 + bit as usize;
                let removed = other.words[word] & self.words[word];
                self.words[word] &= !removed;
                self.count -= u64::from(removed.count_ones());
                if self.words[word] == 0 {
                    self.summary[index] &= !(1 << bit);
                }
            }
        }
    }

    /// Takes every bit out.
    pub fn clear(&mut self) {
        for (index, summary) in self.summary.iter_mut().enumerate() {
            let mut rest = std::mem::take(summary);
            while rest != 0 {
                self.words[index * 64 + rest.trailing_zeros() as usize] = 0;
                rest &= rest - 1;
            }
        }
        self.count = 0;
    }

    /// The words that hold the bits from `first`, a multiple of 64, on: at most `words` of them.
    pub fn words_from(&self, first: u64, words: usize) -> &[u64] {
        assert!(first.is_multiple_of(64) && first < self.bits, "bit {first} of {}", self.bits);
        let from = (first / 64) as usize;
        &self.words[from..self.words.len().min(from + words)]
    }

    /// The first set bit at or after `from`.
    pub fn next_from(&self, from: u64) -> Option<u64> {
        if from >= self.bits {
            return None;
        }
        let word = (from / 64) as usize;
        let head = self.words[word] & (u64::MAX << (from % 64));
        if head != 0 {
            return Some(word as u64 * 64 + u64::from(head.trailing_zeros()));
        }
        let mut word = word + 1;
        while word < self.words.len() {
            let rest = self.summary[word / 64] & (u64::MAX << (word % 64));
            if rest != 0 {
                let found = word / 64 * 64 + rest.trailing_zeros() as usize;
                return Some(found as u64 * 64 + u64::from(self.words[found].trailing_zeros()));
            }
            word = (word / 64 + 1) * 64;
        }
        None
    }
}

/// A set of small integers that is emptied at once, however large it is: each stretch of it remembers when it was last
/// emptied, and what is older counts as empty.
#[derive(Debug)]
pub struct Marks {
    words: Box<[u64]>,
    /// By stretch of `STRETCH_WORDS`.
    epochs: Box<[u32]>,
    epoch: u32,
    bits: u64,
}

const STRETCH_WORDS: usize = 64;

impl Marks {
    pub fn new(bits: u64) -> Marks {
        let words = bits.div_ceil(64) as usize;
        Marks {
            words: vec![0; words].into_boxed_slice(),
            epochs: vec![0; words.div_ceil(STRETCH_WORDS)].into_boxed_slice(),
            epoch: 0,
            bits,
        }
    }

    pub fn contains(&self, bit: u64) -> bool {
        assert!(bit < self.bits, "mark {bit} of {}", self.bits);
        let word = (bit / 64) as usize;
        self.epochs[word / STRETCH_WORDS] == self.epoch && self.words[word] >> (bit % 64) & 1 == 1
    }

    pub fn insert(&mut self, bit: u64) {
        assert!(bit < self.bits, "mark {bit} of {}", self.bits);
        let word = (bit / 64) as usize;
        let stretch = word / STRETCH_WORDS;
        if self.epochs[stretch] != self.epoch {
            let end = self.words.len().min((stretch + 1) * STRETCH_WORDS);
            self.words[stretch * STRETCH_WORDS..end].fill(0);
            self.epochs[stretch] = self.epoch;
        }
        self.words[word] |= 1 << (bit % 64);
    }

    pub fn remove(&mut self, bit: u64) {
        if self.contains(bit) {
            self.words[(bit / 64) as usize] &= !(1 << (bit % 64));
        }
    }

    pub fn clear(&mut self) {
        match self.epoch.checked_add(1) {
            Some(epoch) => self.epoch = epoch,
            // Once in four billion times it takes as long as it takes.
            None => {
                self.words.fill(0);
                self.epochs.fill(0);
                self.epoch = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bitmap_agrees_with_a_tree_set(ops in prop::collection::vec((any::<bool>(), 0u64..20_000), 1..300), from in 0u64..20_100) {
            let mut bitmap = Bitmap::new(20_000);
            let mut set = std::collections::BTreeSet::new();
            for (add, bit) in ops {
                if add { assert_eq!(bitmap.insert(bit), set.insert(bit)); } else { assert_eq!(bitmap.remove(bit), set.remove(&bit)); }
            }
            prop_assert_eq!(bitmap.count(), set.len() as u64);
            prop_assert_eq!(bitmap.next_from(from), set.range(from..).next().copied());
        }
    }

    proptest! {
        #[test]
        fn marks_agree_with_a_tree_set(ops in prop::collection::vec((0u8..16, 0u64..9_000), 1..300)) {
            let mut marks = Marks::new(9_000);
            marks.epoch = u32::MAX - 2;
            let mut set = std::collections::BTreeSet::new();
            for (op, bit) in ops {
                match op {
                    0 => { marks.clear(); set.clear(); }
                    1..4 => { marks.remove(bit); set.remove(&bit); }
                    _ => { marks.insert(bit); set.insert(bit); }
                }
                let near = bit.saturating_sub(70)..(bit + 70).min(9_000);
                prop_assert!(near.clone().all(|bit| marks.contains(bit) == set.contains(&bit)));
            }
        }

        #[test]
        fn a_full_bitmap_has_every_bit(bits in 1u64..9_000) {
            let mut bitmap = Bitmap::full(bits);
            for bit in 0..bits {
                prop_assert_eq!(bitmap.next_from(bit), Some(bit));
            }
            prop_assert_eq!((bitmap.count(), bitmap.next_from(bits)), (bits, None));
            (0..bits).for_each(|bit| assert!(bitmap.remove(bit)));
            prop_assert_eq!((bitmap.count(), bitmap.next_from(0)), (0, None));
        }
    }

    proptest! {
        #[test]
        fn bitmaps_join_and_clear(ours in prop::collection::vec(0u64..9_000, 0..200), theirs in prop::collection::vec(0u64..9_000, 0..200)) {
            let (mut bitmap, mut other) = (Bitmap::new(9_000), Bitmap::new(9_000));
            let mut set: std::collections::BTreeSet<u64> = ours.iter().copied().collect();
            ours.into_iter().for_each(|bit| { bitmap.insert(bit); });
            set.extend(&theirs);
            theirs.into_iter().for_each(|bit| { other.insert(bit); });
            bitmap.insert_all(&other);
            prop_assert_eq!(bitmap.count(), set.len() as u64);
            prop_assert!((0..9_000).all(|bit| bitmap.contains(bit) == set.contains(&bit)));
            prop_assert_eq!(bitmap.next_from(0), set.first().copied());
            let mut rest = Bitmap::full(9_000);
            rest.remove_all(&bitmap);
            prop_assert!((0..9_000).all(|bit| rest.contains(bit) != set.contains(&bit)));
            prop_assert_eq!(rest.next_from(0), (0..9_000).find(|bit| !set.contains(bit)));
            rest.remove_all(&Bitmap::full(9_000));
            prop_assert_eq!((rest.count(), rest.next_from(0)), (0, None));
            bitmap.clear();
            prop_assert_eq!((bitmap.count(), bitmap.next_from(0)), (0, None));
            prop_assert!((0..9_000).all(|bit| !bitmap.contains(bit)));
        }
    }

    #[test]
    #[should_panic(expected = "is full")]
    fn a_full_queue_refuses() {
        let mut queue = FixedQueue::new(1);
        queue.push(1);
        queue.push(2);
    }
}
