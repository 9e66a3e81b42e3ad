//! Old blocks that updates have overwritten in the stream and snapshots need: from the update's number until they are in
//! the differential volume and the management information says so.

use crate::base::{BlockSum, Lba, PageId, Slot, UpdateNumber, VolumeId};

/// Where the old content is until then. Decided when the update is numbered, since that is when it is certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In this page, to which the capture holds a reference.
    Page(PageId),
    /// In the volume, which keeps it until the capture is durable.
    Volume,
    /// In the volume, and in this page, read from there for the write to the slot. Whoever else wants it reads the volume: the page
    /// may be other than what was written, and goes to the slot under the sum that it should have.
    Read(PageId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// The update that overwrites the block.
    pub number: UpdateNumber,
    pub volume: VolumeId,
    pub lba: Lba,
    /// The newest snapshot of the volume before that update.
    pub snapshot: UpdateNumber,
    pub slot: Slot,
    /// Of the old content.
    pub sum: BlockSum,
    pub source: Source,
    /// The update that gave the block its old content; `NONE` if it came from the volume.
    pub given_by: UpdateNumber,
}

#[cfg(test)]
const EMPTY: Capture = Capture {
    number: UpdateNumber::NONE,
    volume: VolumeId(0),
    lba: Lba(0),
    snapshot: UpdateNumber::NONE,
    slot: Slot::NONE,
    sum: BlockSum::ZEROS,
    source: Source::Volume,
    given_by: UpdateNumber::NONE,
};

/// A queue in stream order, with a hash of blocks beside it: a snapshot's readers and destage ask for single blocks.
#[derive(Debug)]
pub struct Captures {
    /// As long as it has ever been filled, so that a start does not touch all of it; it never grows beyond its capacity.
    ring: Vec<Capture>,
    capacity: usize,
    /// By place in the ring: one more than the place of the one before it with the same hash, or 0.
    older: Box<[u32]>,
    /// By hash: one more than the place of the newest one, or 0.
    heads: Box<[u32]>,
    first: usize,
    len: usize,
    pages: usize,
}

impl Captures {
    pub fn new(capacity: usize) -> Captures {
        Captures {
            ring: Vec::with_capacity(capacity),
            capacity,
            older: vec![0; capacity].into_boxed_slice(),
            heads: vec![0; capacity.next_power_of_two()].into_boxed_slice(),
            first: 0,
            len: 0,
            pages: 0,
        }
    }

    /// Bytes that a queue of this capacity takes.
    pub fn bytes(capacity: usize) -> usize {
        capacity * (size_of::<Capture>() + 4) + capacity.next_power_of_two() * 4
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn room(&self) -> usize {
        self.capacity - self.len
    }

    /// Pages they hold references to, other than the zero page.
    pub fn pages(&self) -> usize {
        self.pages
    }

    fn bucket(&self, volume: VolumeId, lba: Lba) -> usize {
        let key = (lba.0 ^ (u64::from(volume.0) << 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (key >> 32) as usize & (self.heads.len() - 1)
    }

    fn place(&self, index: usize) -> usize {
        (self.first + index) % self.capacity
    }

    /// The `index`th oldest.
    pub fn get(&self, index: usize) -> Option<&Capture> {
        (index < self.len).then(|| &self.ring[self.place(index)])
    }

    pub fn front(&self) -> Option<&Capture> {
        self.get(0)
    }

    pub fn back(&self) -> Option<&Capture> {
        self.get(self.len.checked_sub(1)?)
    }

    /// Whether a block is on its way to this slot.
    pub fn fills(&self, slot: Slot) -> bool {
        (0..self.len).any(|index| self.ring[self.place(index)].slot == slot)
    }

    /// How many are of updates up to `number`.
    pub fn count_through(&self, number: UpdateNumber) -> usize {
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = low.midpoint(high);
            if self.ring[self.place(middle)].number <= number {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The old content of the `index`th oldest was read from its volume, or the page is not needed any more. Its page
    /// reference is the caller's.
    pub fn set_read(&mut self, index: usize, page: Option<PageId>) {
        assert!(index < self.len, "capture {index} of {}", self.len);
        let place = self.place(index);
        let source = &mut self.ring[place].source;
        assert_eq!(matches!(source, Source::Read(_)), page.is_none(), "capture {index} is from {source:?}");
        *source = page.map_or(Source::Volume, Source::Read);
        match page {
            Some(_) => self.pages += 1,
            None => self.pages -= 1,
        }
    }

    #[track_caller]
    pub fn push(&mut self, capture: Capture) {
        assert!(self.room() > 0, "more captures than {}", self.capacity);
        let place = self.place(self.len);
        let bucket = self.bucket(capture.volume, capture.lba);
        self.older[place] = self.heads[bucket];
        self.heads[bucket] = place as u32 + 1;
        self.pages += usize::from(holds_page(&capture));
        match self.ring.get_mut(place) {
            Some(cell) => *cell = capture,
            None => self.ring.push(capture),
        }
        self.len += 1;
    }

    /// Removes the oldest: it is kept. Its page reference is the caller's.
    pub fn pop_front(&mut self) -> Option<Capture> {
        let capture = *self.front()?;
        let (link, bucket) = (self.first as u32 + 1, self.bucket(capture.volume, capture.lba));
        // The oldest of all ends its chain.
        if self.heads[bucket] == link {
            self.heads[bucket] = 0;
        } else {
            let mut at = self.heads[bucket] as usize - 1;
            while self.older[at] != link {
                at = self.older[at] as usize - 1;
            }
            self.older[at] = 0;
        }
        self.first = self.place(1);
        self.len -= 1;
        self.pages -= usize::from(holds_page(&capture));
        Some(capture)
    }

    /// Removes the newest: its update was cut from the stream. Its page reference is the caller's.
    pub fn pop_back(&mut self) -> Option<Capture> {
        let capture = *self.back()?;
        let place = self.place(self.len - 1);
        let bucket = self.bucket(capture.volume, capture.lba);
        self.heads[bucket] = self.older[place];
        self.len -= 1;
        self.pages -= usize::from(holds_page(&capture));
        Some(capture)
    }

    /// The captures of a block, newest first.
    pub fn of_block(&self, volume: VolumeId, lba: Lba) -> impl Iterator<Item = &Capture> {
        let mut link = if self.len == 0 { 0 } else { self.heads[self.bucket(volume, lba)] };
        std::iter::from_fn(move || {
            let place = (link as usize).checked_sub(1)?;
            link = self.older[place];
            Some(&self.ring[place])
        })
        .filter(move |capture| capture.lba == lba && capture.volume == volume)
    }
}

fn holds_page(capture: &Capture) -> bool {
    matches!(capture.source, Source::Page(page) | Source::Read(page) if page != PageId::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn queue_and_hash_agree_with_a_plain_queue(acts in prop::collection::vec((0u8..5, 0u64..6), 1..300)) {
            let mut captures = Captures::new(7);
            let mut plain: VecDeque<Capture> = VecDeque::new();
            let mut number = 0;
            for (act, lba) in acts {
                if act == 4 {
                    // Every block that only the volume has is read, and then needed no more.
                    for (index, capture) in plain.iter().enumerate().filter(|(_, capture)| capture.source == Source::Volume) {
                        captures.set_read(index, Some(PageId(9)));
                        prop_assert_eq!(captures.get(index).map(|read| read.source), Some(Source::Read(PageId(9))));
                        prop_assert_eq!(captures.get(index).map(|read| read.lba), Some(capture.lba));
                    }
                    prop_assert_eq!(captures.pages(), plain.iter().filter(|capture| capture.source != Source::Page(PageId::ZERO)).count());
                    for (index, _) in plain.iter().enumerate().filter(|(_, capture)| capture.source == Source::Volume) {
                        captures.set_read(index, None);
                    }
                }
                match act {
                    0 | 1 if captures.room() > 0 => {
                        number += 1;
                        let source = if lba == 0 { Source::Volume } else { Source::Page(PageId(lba as u32 - 1)) };
                        let capture = Capture { number: UpdateNumber(number), lba: Lba(lba), source, ..EMPTY };
                        captures.push(capture);
                        plain.push_back(capture);
                    }
                    2 => prop_assert_eq!(captures.pop_front(), plain.pop_front()),
                    4 => (),
                    _ => prop_assert_eq!(captures.pop_back(), plain.pop_back()),
                }
                prop_assert_eq!(captures.len(), plain.len());
                prop_assert_eq!(captures.pages(), plain.iter().filter(|capture| holds_page(capture)).count());
                prop_assert_eq!(captures.get(1), plain.get(1));
                let older = plain.iter().filter(|capture| capture.number.0 <= number / 2).count();
                prop_assert_eq!(captures.count_through(UpdateNumber(number / 2)), older);
                for lba in 0..6 {
                    let found: Vec<_> = captures.of_block(VolumeId(0), Lba(lba)).collect();
                    let due: Vec<_> = plain.iter().rev().filter(|capture| capture.lba.0 == lba).collect();
                    prop_assert_eq!(found, due);
                }
            }
        }
    }
}
