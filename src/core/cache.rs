//! The cache's index: which blocks have a value in memory, how new it is, and whether the volume has it.
//!
//! A block may have two values: the newest numbered one, whose page the window holds until it settles, and the newest
//! settled one, whose page the index holds. Destage, and reads on a secondary, see only the second (INV-4). The *local write pending*
//! indicator of US 6,647,474 is `dirty`, plus the window for what is not settled; the remote one is in the window.

use crate::base::{Bitmap, BlockSum, Lba, Memory, PageId, UpdateNumber, VolumeId};
use crate::core::pages::Pages;

/// A row of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId(u32);

const NIL: u32 = u32::MAX;

/// A block's content and the update that gave it. Values read from the volume have number `NONE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    pub page: PageId,
    pub sum: BlockSum,
    pub number: UpdateNumber,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    volume: VolumeId,
    lba: Lba,
    next: u32,
    newest: Option<Value>,
    settled: Option<Value>,
    /// Reads from the volume in flight for this block; while above zero the entry stays, so that a value that arrives
    /// meanwhile is preferred over what the disk returned.
    fetching: u16,
    /// A destage write of this block is in flight.
    writing: bool,
    /// Used since the eviction hand last passed.
    recent: bool,
    occupied: bool,
}

const EMPTY: Entry = Entry {
    volume: VolumeId(0),
    lba: Lba(0),
    next: NIL,
    newest: None,
    settled: None,
    fetching: 0,
    writing: false,
    recent: false,
    occupied: false,
};

/// A fixed table of entries, chained by hash: no operation ever rehashes, so none has a slow turn.
#[derive(Debug)]
pub struct Cache {
    heads: Box<[u32]>,
    /// Those in use so far; the rest of the capacity is free as well.
    entries: Vec<Entry>,
    capacity: usize,
    /// Entries given back, the last one first to be used again.
    free: Vec<u32>,
    /// Per volume, the blocks whose settled value is not in the volume.
    dirty: Vec<Bitmap>,
    hand: u32,
}

impl Cache {
    pub fn new(entries: usize, volume_blocks: impl Iterator<Item = u64>) -> Cache {
        assert!(entries > 0 && entries < NIL as usize);
        Cache {
            heads: vec![NIL; entries.next_power_of_two()].into_boxed_slice(),
            entries: Vec::with_capacity(entries),
            capacity: entries,
            free: Vec::with_capacity(entries),
            dirty: volume_blocks.map(Bitmap::new).collect(),
            hand: 0,
        }
    }

    /// Bytes an index of `entries` takes, bitmaps apart.
    pub fn bytes(entries: usize) -> usize {
        entries * (size_of::<Entry>() + 4) + entries.next_power_of_two() * 4
    }

    fn bucket(&self, volume: VolumeId, lba: Lba) -> usize {
        // Fibonacci hashing: neighbours spread, and one multiplication is all it costs.
        let key = (lba.0 ^ (u64::from(volume.0) << 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (key >> 32) as usize & (self.heads.len() - 1)
    }

    fn find(&self, volume: VolumeId, lba: Lba) -> Option<u32> {
        let mut at = self.heads[self.bucket(volume, lba)];
        while at != NIL {
            let entry = &self.entries[at as usize];
            if entry.lba == lba && entry.volume == volume {
                return Some(at);
            }
            at = entry.next;
        }
        None
    }

    /// Finds or makes the entry; `None` when the index is full.
    fn obtain(&mut self, volume: VolumeId, lba: Lba) -> Option<u32> {
        if let Some(at) = self.find(volume, lba) {
            return Some(at);
        }
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.entries.len() < self.capacity => {
                self.entries.push(EMPTY);
                self.entries.len() as u32 - 1
            }
            None => return None,
        };
        let bucket = self.bucket(volume, lba);
        self.entries[at as usize] =
            Entry { volume, lba, next: self.heads[bucket], occupied: true, recent: true, ..EMPTY };
        self.heads[bucket] = at;
        Some(at)
    }

    fn remove(&mut self, at: u32) {
        let Entry { volume, lba, next, .. } = self.entries[at as usize];
        let bucket = self.bucket(volume, lba);
        if self.heads[bucket] == at {
            self.heads[bucket] = next;
        } else {
            let mut before = self.heads[bucket];
            while self.entries[before as usize].next != at {
                before = self.entries[before as usize].next;
            }
            self.entries[before as usize].next = next;
        }
        self.entries[at as usize] = EMPTY;
        self.free.push(at);
    }

    pub fn free_entries(&self) -> usize {
        self.capacity - self.entries.len() + self.free.len()
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The newest numbered value, settled or not: what a primary's hosts read (once it is acknowledged).
    pub fn newest(&mut self, volume: VolumeId, lba: Lba) -> Option<Value> {
        let at = self.find(volume, lba)?;
        let entry = &mut self.entries[at as usize];
        entry.recent = true;
        entry.newest
    }

    /// What is cached of a block, for who only asks: it does not count as use.
    pub fn peek(&self, volume: VolumeId, lba: Lba) -> Option<Value> {
        let entry = &self.entries[self.find(volume, lba)? as usize];
        entry.newest.or(entry.settled)
    }

    /// What is cached of a block as it was settled last, for who only asks.
    pub fn peek_settled(&self, volume: VolumeId, lba: Lba) -> Option<Value> {
        self.entries[self.find(volume, lba)? as usize].settled
    }

    /// Whether the volume has the block's newest value, too.
    pub fn is_clean(&self, volume: VolumeId, lba: Lba) -> bool {
        let Some(at) = self.find(volume, lba) else { return true };
        let entry = &self.entries[at as usize];
        entry.newest == entry.settled && !self.dirty[volume.0 as usize].contains(lba.0)
    }

    /// Whether a write of the block to its volume is in flight.
    pub fn is_being_written(&self, volume: VolumeId, lba: Lba) -> bool {
        self.find(volume, lba).is_some_and(|at| self.entries[at as usize].writing)
    }

    /// The newest settled value: what a secondary's readers see.
    pub fn settled(&mut self, volume: VolumeId, lba: Lba) -> Option<Value> {
        let at = self.find(volume, lba)?;
        let entry = &mut self.entries[at as usize];
        entry.recent = true;
        entry.settled
    }

    /// An update gave the block a value. Its page is the window's until [`Cache::settle`].
    pub fn number(&mut self, volume: VolumeId, lba: Lba, value: Value) {
        let at = self.obtain(volume, lba).expect("admission reserved an index entry for each block");
        let entry = &mut self.entries[at as usize];
        if let Some(newest) = entry.newest {
            assert!(
                newest.number < value.number,
                "block {lba:?} numbered {} after {}",
                value.number,
                newest.number
            );
        }
        entry.newest = Some(value);
        entry.recent = true;
    }

    /// The update that gave the block this value is settled: destage may take it, and the index holds its page from here.
    pub fn settle(
        &mut self,
        volume: VolumeId,
        lba: Lba,
        value: Value,
        pages: &mut Pages,
        memory: &mut impl Memory,
    ) {
        let at = self.find(volume, lba).expect("a numbered block stays indexed until it is destaged");
        let entry = &mut self.entries[at as usize];
        assert!(
            entry.newest.is_some_and(|newest| newest.number >= value.number),
            "settling what was not numbered"
        );
        pages.share(value.page);
        if let Some(old) = entry.settled.replace(value) {
            assert!(old.number < value.number, "block {lba:?} settled {} after {}", value.number, old.number);
            pages.release(old.page, memory);
        }
        self.dirty[volume.0 as usize].insert(lba.0);
    }

    /// Forgets an unsettled value because its update was cut from the stream; the block is again what it was settled as.
    pub fn unnumber(&mut self, volume: VolumeId, lba: Lba, number: UpdateNumber) {
        // The cut goes from the newest update down: a newer one of this block may have taken the entry with it.
        let Some(at) = self.find(volume, lba) else { return };
        let entry = &mut self.entries[at as usize];
        if entry.newest.is_some_and(|newest| newest.number >= number) {
            entry.newest = entry.settled;
            if entry.newest.is_none() && entry.fetching == 0 {
                self.remove(at);
            }
        }
    }

    /// After a cut: a kept update is again the newest of its block, if no newer kept one is.
    pub fn renumber(&mut self, volume: VolumeId, lba: Lba, value: Value) {
        let at = self.obtain(volume, lba).expect("the cut freed at least as many entries as it kept");
        let entry = &mut self.entries[at as usize];
        if entry.newest.is_none_or(|newest| newest.number < value.number) {
            entry.newest = Some(value);
        }
    }

    /// A read of the block from the volume begins; false when the index is full.
    pub fn fetch_begin(&mut self, volume: VolumeId, lba: Lba) -> bool {
        let Some(at) = self.obtain(volume, lba) else { return false };
        self.entries[at as usize].fetching += 1;
        true
    }

    /// Whether the block is on its way from the disk.
    pub fn is_being_read(&self, volume: VolumeId, lba: Lba) -> bool {
        self.find(volume, lba).is_some_and(|at| self.entries[at as usize].fetching > 0)
    }

    /// The read ended. With `value`, the page (one reference of it) becomes the index's, unless the block got a settled
    /// value meanwhile, which is then the one to use. Without, the read failed.
    pub fn fetch_end(
        &mut self,
        volume: VolumeId,
        lba: Lba,
        value: Option<(PageId, BlockSum)>,
        pages: &mut Pages,
        memory: &mut impl Memory,
    ) {
        let at = self.find(volume, lba).expect("a block being fetched stays indexed");
        let entry = &mut self.entries[at as usize];
        assert!(entry.fetching > 0, "a fetch of {lba:?} ended twice");
        entry.fetching -= 1;
        match value {
            // On a secondary the newest may be unsettled while the disk's value is the settled one.
            Some((page, sum)) if entry.settled.is_none() => {
                let value = Value { page, sum, number: UpdateNumber::NONE };
                entry.settled = Some(value);
                entry.newest.get_or_insert(value);
            }
            Some((page, _)) => pages.release(page, memory),
            None => {}
        }
        let entry = &self.entries[at as usize];
        if entry.newest.is_none() && entry.settled.is_none() && entry.fetching == 0 {
            self.remove(at);
        }
    }

    /// Blocks whose settled value is not in the volume.
    pub fn dirty_blocks(&self) -> u64 {
        self.dirty.iter().map(Bitmap::count).sum()
    }

    /// The next dirty block of `volume` at or after `from`.
    pub fn next_dirty(&self, volume: VolumeId, from: Lba) -> Option<Lba> {
        self.dirty[volume.0 as usize].next_from(from.0).map(Lba)
    }

    /// Begins the destage of a dirty block: its settled value, with one page reference for the write in flight. `None`
    /// when it is not dirty or already being written.
    pub fn destage_begin(&mut self, volume: VolumeId, lba: Lba, pages: &mut Pages) -> Option<Value> {
        if !self.dirty[volume.0 as usize].contains(lba.0) {
            return None;
        }
        let at = self.find(volume, lba).expect("a dirty block stays indexed");
        (!self.entries[at as usize].writing).then(|| self.write_begin(at, pages))
    }

    /// A write of the settled value to the volume begins, with one page reference for it.
    fn write_begin(&mut self, at: u32, pages: &mut Pages) -> Value {
        let entry = &mut self.entries[at as usize];
        assert!(!entry.writing, "block {:?} is being written already", entry.lba);
        entry.writing = true;
        let value = entry.settled.expect("a block that is dirty or may be bridged has a settled value");
        pages.share(value.page);
        value
    }

    /// Whether [`Cache::bridge_begin`] would find what the volume holds of a block.
    pub fn may_bridge(&self, volume: VolumeId, lba: Lba) -> bool {
        let Some(at) = self.find(volume, lba) else { return false };
        let entry = &self.entries[at as usize];
        entry.settled.is_some() && !entry.writing && !self.dirty[volume.0 as usize].contains(lba.0)
    }

    /// Begins to write a clean block as the volume already has it, because the blocks before and after it are destaged. Ends
    /// like any destage, by [`Cache::destage_end`].
    pub fn bridge_begin(&mut self, volume: VolumeId, lba: Lba, pages: &mut Pages) -> Value {
        let at = self.find(volume, lba).expect("the caller asked whether it may be bridged");
        self.write_begin(at, pages)
    }

    /// The destage that began with `value` does not happen now; the block stays dirty.
    pub fn destage_cancel(
        &mut self,
        volume: VolumeId,
        lba: Lba,
        value: Value,
        pages: &mut Pages,
        memory: &mut impl Memory,
    ) {
        self.write_end(volume, lba);
        pages.release(value.page, memory);
    }

    /// The write of a block to its volume is over, or not to be.
    fn write_end(&mut self, volume: VolumeId, lba: Lba) -> &mut Entry {
        let at = self.find(volume, lba).expect("a block being written stays indexed");
        let entry = &mut self.entries[at as usize];
        assert!(entry.writing, "a destage of {lba:?} ended twice");
        entry.writing = false;
        entry
    }

    /// The destage write of `value` is complete; the block is clean unless a newer value settled meanwhile.
    pub fn destage_end(
        &mut self,
        volume: VolumeId,
        lba: Lba,
        value: Value,
        pages: &mut Pages,
        memory: &mut impl Memory,
    ) {
        let entry = self.write_end(volume, lba);
        if entry.settled.is_some_and(|settled| settled.number == value.number) {
            self.dirty[volume.0 as usize].remove(lba.0);
        }
        pages.release(value.page, memory);
    }

    /// Evicts clean blocks, second chance, until `wanted_pages` and `wanted_entries` are free or the hand has made
    /// `steps`, so that no turn walks the whole index.
    pub fn evict(
        &mut self,
        wanted_pages: usize,
        wanted_entries: usize,
        steps: usize,
        pages: &mut Pages,
        memory: &mut impl Memory,
    ) {
        let mut left = steps;
        while left > 0 {
            if pages.free() >= wanted_pages && self.free_entries() >= wanted_entries {
                return;
            }
            let at = self.hand;
            if at as usize >= self.entries.len() {
                // Nothing has been there yet, so the hand passes in one go what it would in steps.
                let passed = (self.capacity - at as usize).min(left);
                self.hand = ((at as usize + passed) % self.capacity) as u32;
                left -= passed;
                continue;
            }
            left -= 1;
            self.hand = (self.hand + 1) % self.capacity as u32;
            let entry = &mut self.entries[at as usize];
            if !entry.occupied || entry.fetching > 0 || entry.writing {
                continue;
            }
            if entry.settled.is_none() || self.dirty[entry.volume.0 as usize].contains(entry.lba.0) {
                continue;
            }
            if entry.recent {
                entry.recent = false;
                continue;
            }
            let value = entry.settled.take().expect("looked at it");
            pages.release(value.page, memory);
            // The volume has it, so it need not stay beneath a newer value that waits to be settled: otherwise a secondary whose
            // updates cannot settle without a page for what its peer says has none to give (INV-12).
            if entry.newest == Some(value) {
                self.remove(at);
            }
        }
    }
}
