//! Which slots of the differential volume are free. The primary gives them in runs; its secondary takes what it is told.

use crate::base::{Bitmap, Slot};

#[derive(Debug)]
pub struct Slots {
    /// Those that are given next.
    free: Bitmap,
    /// Those given back since: they are given when no others are left, so that the secondary has long freed them too.
    given_back: Bitmap,
    total: u64,
    /// Where the next run is looked for: old ones are reclaimed in clumps, and following them keeps runs long.
    next: u64,
}

impl Slots {
    /// All of them free.
    pub fn new(total: u64) -> Slots {
        Slots { free: Bitmap::full(total), given_back: Bitmap::new(total), total, next: 0 }
    }

    pub fn free(&self) -> u64 {
        self.free.count() + self.given_back.count()
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// Takes at most `most` consecutive slots; returns the first and how many. None if no slot is free.
    pub fn take_run(&mut self, most: usize) -> Option<(Slot, usize)> {
        if self.free.count() == 0 {
            std::mem::swap(&mut self.free, &mut self.given_back);
        }
        let first = self.free.next_from(self.next).or_else(|| self.free.next_from(0))?;
        let mut count = 0;
        while count < most && first + (count as u64) < self.total && self.free.remove(first + count as u64) {
            count += 1;
        }
        self.next = first + count as u64;
        Some((Slot(first), count))
    }

    pub fn has(&self, first: Slot, count: usize) -> bool {
        first.0.checked_add(count as u64).is_some_and(|end| end <= self.total)
    }

    /// Whether the `count` slots from `first` on, which exist, are all free.
    pub fn are_free(&self, first: Slot, count: usize) -> bool {
        (first.0..first.0 + count as u64)
            .all(|slot| self.free.contains(slot) || self.given_back.contains(slot))
    }

    /// Makes a set of as many those that are in use.
    pub fn put_taken(&self, set: &mut Bitmap) {
        set.fill();
        set.remove_all(&self.free);
        set.remove_all(&self.given_back);
    }

    /// Takes the one that somebody else chose.
    #[track_caller]
    pub fn take(&mut self, slot: Slot) {
        let was_free = self.free.remove(slot.0) || self.given_back.remove(slot.0);
        assert!(was_free, "{slot:?} is taken twice");
    }

    #[track_caller]
    pub fn give(&mut self, slot: Slot) {
        let was_taken = !self.free.contains(slot.0) && self.given_back.insert(slot.0);
        assert!(was_taken, "{slot:?} is given back twice");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn no_slot_is_given_twice(acts in prop::collection::vec((any::<bool>(), 1usize..40), 1..200)) {
            let mut slots = Slots::new(100);
            let mut taken = BTreeSet::new();
            for (take, amount) in acts {
                if take {
                    match slots.take_run(amount) {
                        Some((first, count)) => {
                            prop_assert!(count > 0 && count <= amount && slots.has(first, count));
                            prop_assert!(!(0..count as u64).any(|index| !taken.insert(first.0 + index)));
                        }
                        None => prop_assert_eq!(taken.len(), 100),
                    }
                } else if let Some(slot) = taken.iter().copied().nth(amount % taken.len().max(1)) {
                    taken.remove(&slot);
                    slots.give(Slot(slot));
                }
                prop_assert_eq!(slots.free(), 100 - taken.len() as u64);
            }
        }
    }

    #[test]
    fn what_was_given_back_last_is_given_last() {
        let mut slots = Slots::new(8);
        assert_eq!(slots.take_run(6), Some((Slot(0), 6)));
        (0..4).for_each(|slot| slots.give(Slot(slot)));
        assert!(slots.are_free(Slot(0), 4) && !slots.are_free(Slot(3), 2) && slots.are_free(Slot(6), 2));
        slots.take(Slot(1));
        assert_eq!(slots.take_run(8), Some((Slot(6), 2)));
        assert_eq!(slots.take_run(8), Some((Slot(0), 1)));
        assert_eq!(slots.take_run(8), Some((Slot(2), 2)));
        assert_eq!((slots.take_run(8), slots.free()), (None, 0));
    }

    #[test]
    fn what_is_not_there_is_not_had() {
        let slots = Slots::new(10);
        assert!(slots.has(Slot(8), 2) && !slots.has(Slot(9), 2) && !slots.has(Slot::NONE, 1));
    }
}
