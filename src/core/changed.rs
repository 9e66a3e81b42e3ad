//! The changed-block set: what a primary that goes on alone has changed since its peer had everything. It becomes durable before
//! every checkpoint, so that the journal's tail may pass the peer, and is cleared only when the peer has all of it (INV-9). The
//! slots of the differential volume, into which updates capture, are in it like the blocks of one more volume behind the last.

use crate::base::*;
use crate::format::metadata::{MARKS_PAGE_MAX, put_marks, take_marks};

/// What the management information has of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saved {
    Nothing,
    /// A set, but for the chunks that are unsaved.
    Set,
    /// One that is over.
    Stale,
}

/// What a sweep brings to the management information next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsaved {
    Nothing,
    /// Where the set begins, or pages of it.
    Marks,
    /// The set is over.
    Stale,
}

#[derive(Debug)]
pub struct Changed {
    tracking: bool,
    /// The set has every block that an update after this one changed.
    base: UpdateNumber,
    /// The last update that was looked at.
    through: UpdateNumber,
    blocks: Vec<Bitmap>,
    /// By volume: pages of the set that have changed since they were saved.
    unsaved: Vec<Bitmap>,
    /// Of those, the pages that somebody waits for: hosts may be marking others faster than any are saved.
    due: Vec<Bitmap>,
    base_unsaved: bool,
    saved: Saved,
}

impl Changed {
    pub fn new(volume_blocks: impl Iterator<Item = u64> + Clone) -> Changed {
        let chunks = volume_blocks.clone().map(|blocks| Bitmap::new(blocks.div_ceil(MARKS_PAGE_MAX)));
        Changed {
            tracking: false,
            base: UpdateNumber::NONE,
            through: UpdateNumber::NONE,
            unsaved: chunks.clone().collect(),
            due: chunks.collect(),
            blocks: volume_blocks.map(Bitmap::new).collect(),
            base_unsaved: false,
            saved: Saved::Nothing,
        }
    }

    pub fn tracking(&self) -> bool {
        self.tracking
    }

    /// Whether the set has all that was changed after this number.
    pub fn covers(&self, number: UpdateNumber) -> bool {
        self.tracking && self.base <= number
    }

    pub fn base(&self) -> UpdateNumber {
        self.base
    }

    pub fn through(&self) -> UpdateNumber {
        self.through
    }

    pub fn blocks(&self) -> &[Bitmap] {
        &self.blocks
    }

    pub fn count(&self) -> u64 {
        self.blocks.iter().map(Bitmap::count).sum()
    }

    /// The peer has everything up to `base`; what comes after is to be marked. A set that is there already goes on.
    pub fn begin(&mut self, base: UpdateNumber) {
        if !self.tracking {
            self.blocks.iter_mut().for_each(Bitmap::clear);
            (self.tracking, self.base, self.through) = (true, base, base);
            self.base_unsaved = true;
        }
    }

    pub fn mark(&mut self, volume: VolumeId, lba: Lba, count: u32) {
        let (blocks, unsaved) = (&mut self.blocks[volume.0 as usize], &mut self.unsaved[volume.0 as usize]);
        for block in lba.0..lba.0 + u64::from(count) {
            if blocks.insert(block) {
                unsaved.insert(block / MARKS_PAGE_MAX);
            }
        }
    }

    pub fn note(&mut self, number: UpdateNumber) {
        self.through = self.through.max(number);
    }

    /// The peer has everything up to `durable`, durably. INV-9: that is all that is marked.
    pub fn end(&mut self, durable: UpdateNumber) {
        assert!(
            durable >= self.through,
            "INV-9: a changed-block set through {} is cleared, and the peer has {durable}",
            self.through
        );
        self.forget();
    }

    /// Somebody else is primary: its peer has what this site lacks, not the other way round.
    pub fn forget(&mut self) {
        self.tracking = false;
        self.blocks.iter_mut().chain(&mut self.unsaved).chain(&mut self.due).for_each(Bitmap::clear);
        self.base_unsaved = false;
        if self.saved == Saved::Set {
            self.saved = Saved::Stale;
        }
    }

    /// The peer has been copied everything up to `base`, durably; `recent` has what came after.
    pub fn shrink(&mut self, base: UpdateNumber, recent: &[Bitmap]) {
        assert!(self.tracking && base >= self.base, "INV-9: {base} is before {}", self.base);
        for ((blocks, unsaved), recent) in self.blocks.iter_mut().zip(&mut self.unsaved).zip(recent) {
            note_pages(blocks, unsaved);
            blocks.clear();
            blocks.insert_all(recent);
        }
        self.base = base;
        self.base_unsaved = true;
    }

    // --------------------------------------------------------------------------------------------------- the peer's marks

    /// Writes the first page of the set from this one on that has a mark, and returns its place.
    pub fn page_from(
        &self,
        (volume, chunk): (VolumeId, u64),
        page: &mut [u8; BLOCK_BYTES],
    ) -> Option<(VolumeId, u64)> {
        let mut first = chunk * MARKS_PAGE_MAX;
        for volume in volume.0..self.blocks.len() as u16 {
            let blocks = &self.blocks[volume as usize];
            if let Some(block) = blocks.next_from(first) {
                let chunk = block / MARKS_PAGE_MAX;
                self.put_page(VolumeId(volume), chunk, page);
                return Some((VolumeId(volume), chunk));
            }
            first = 0;
        }
        None
    }

    fn put_page(&self, volume: VolumeId, chunk: u64, page: &mut [u8; BLOCK_BYTES]) {
        let blocks = &self.blocks[volume.0 as usize];
        let words = blocks.words_from(chunk * MARKS_PAGE_MAX, (MARKS_PAGE_MAX / 64) as usize);
        put_marks(page, volume, chunk, words);
    }

    /// Marks what a page of the peer's set has too, and returns its place; `None`, and nothing is marked, if it is none, or reaches
    /// beyond a volume.
    pub fn merge_page(&mut self, page: &[u8; BLOCK_BYTES]) -> Option<(VolumeId, u64)> {
        self.mark_page(page, true)
    }

    /// As [`Changed::merge_page`]; whether what is new by it is to be saved.
    fn mark_page(&mut self, page: &[u8; BLOCK_BYTES], unsaved: bool) -> Option<(VolumeId, u64)> {
        let (volume, chunk, _) = take_marks(page)?;
        let blocks = self.blocks.get_mut(volume.0 as usize)?;
        let first = chunk.checked_mul(MARKS_PAGE_MAX).filter(|first| *first < blocks.bits())?;
        if marks_in(page)?.any(|mark| first + mark >= blocks.bits()) {
            return None;
        }
        for mark in marks_in(page)? {
            if blocks.insert(first + mark) && unsaved {
                self.unsaved[volume.0 as usize].insert(chunk);
            }
        }
        Some((volume, chunk))
    }

    // ------------------------------------------------------------------------------------- the management information

    /// Somebody waits until all that is marked by now is saved.
    pub fn want_saved(&mut self) {
        self.due.iter_mut().zip(&self.unsaved).for_each(|(due, unsaved)| due.insert_all(unsaved));
    }

    /// What is to be saved yet before whoever waits may go on.
    pub fn unsaved(&self) -> Unsaved {
        match self.saved {
            Saved::Stale => Unsaved::Stale,
            _ if !self.tracking => Unsaved::Nothing,
            _ if self.base_unsaved || self.due.iter().any(|chunks| chunks.count() > 0) => Unsaved::Marks,
            _ => Unsaved::Nothing,
        }
    }

    /// What is being saved now includes where the set begins.
    pub fn save_base(&mut self) {
        self.base_unsaved = false;
        self.saved = Saved::Set;
    }

    /// Writes the next page of the set that is due; false if there is none.
    pub fn save_page(&mut self, page: &mut [u8; BLOCK_BYTES]) -> bool {
        for (volume, chunks) in (0u16..).zip(&mut self.due) {
            if let Some(chunk) = chunks.next_from(0) {
                chunks.remove(chunk);
                self.unsaved[usize::from(volume)].remove(chunk);
                self.put_page(VolumeId(volume), chunk, page);
                return true;
            }
        }
        false
    }

    /// The stale set is gone from the management information.
    pub fn dropped(&mut self) {
        if self.saved == Saved::Stale {
            self.saved = Saved::Nothing;
        }
        // A new one that began meanwhile is saved whole.
        if self.tracking {
            self.base_unsaved = true;
            for (blocks, unsaved) in self.blocks.iter().zip(&mut self.unsaved) {
                note_pages(blocks, unsaved);
            }
            self.want_saved();
        }
    }

    /// At start: the management information has a set that begins there.
    pub fn load(&mut self, base: UpdateNumber) {
        self.base = base;
        self.base_unsaved = false;
        self.saved = Saved::Set;
    }

    /// A page of it; none that a site of this group wrote if that returns none. Otherwise where the next one may begin.
    pub fn load_page(&mut self, page: &[u8; BLOCK_BYTES]) -> Option<(VolumeId, u64)> {
        let (volume, chunk) = self.mark_page(page, false)?;
        Some((volume, chunk + 1))
    }
}

/// The blocks that are marked in a page, from its first block on.
fn marks_in(page: &[u8; BLOCK_BYTES]) -> Option<impl Iterator<Item = u64>> {
    let (_, _, words) = take_marks(page)?;
    Some((0u64..).zip(words).flat_map(|(index, word)| {
        let lowest = |rest: u64| (rest != 0).then_some(rest);
        let words = std::iter::successors(lowest(word), move |rest| lowest(rest & (rest - 1)));
        words.map(move |rest| index * 64 + u64::from(rest.trailing_zeros()))
    }))
}

/// Every page that has a mark is to be saved.
fn note_pages(blocks: &Bitmap, unsaved: &mut Bitmap) {
    let mut next = blocks.next_from(0);
    while let Some(block) = next {
        let page = block / MARKS_PAGE_MAX;
        unsaved.insert(page);
        next = blocks.next_from((page + 1) * MARKS_PAGE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(changed: &mut Changed) -> Vec<[u8; BLOCK_BYTES]> {
        changed.want_saved();
        assert_eq!(changed.unsaved(), Unsaved::Marks);
        changed.save_base();
        let mut pages = Vec::new();
        let mut page = [0xaa; BLOCK_BYTES];
        while changed.save_page(&mut page) {
            pages.push(page);
        }
        assert_eq!(changed.unsaved(), Unsaved::Nothing);
        pages
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let sizes = [100_000, 50];
        let mut changed = Changed::new(sizes.into_iter());
        changed.begin(UpdateNumber(7));
        changed.mark(VolumeId(0), Lba(3), 2);
        changed.mark(VolumeId(0), Lba(MARKS_PAGE_MAX - 1), 2);
        changed.mark(VolumeId(1), Lba(49), 1);
        let pages = saved(&mut changed);
        assert_eq!(pages.len(), 3);
        changed.mark(VolumeId(0), Lba(3), 2);
        assert_eq!(changed.unsaved(), Unsaved::Nothing, "nothing new");
        let mut loaded = Changed::new(sizes.into_iter());
        loaded.begin(UpdateNumber(20));
        loaded.load(UpdateNumber(7));
        for page in &pages {
            assert!(loaded.load_page(page).is_some());
        }
        assert!(loaded.covers(UpdateNumber(7)) && !loaded.covers(UpdateNumber(6)));
        assert_eq!(loaded.count(), changed.count());
        let blocks = [(0, 3), (0, 4), (0, MARKS_PAGE_MAX - 1), (0, MARKS_PAGE_MAX), (1, 49)];
        assert!(blocks.iter().all(|(volume, block)| loaded.blocks()[*volume].contains(*block)));
        let mut garbled = pages[0];
        garbled[100] ^= 1;
        assert!(loaded.load_page(&garbled).is_none());
    }

    #[test]
    fn what_is_marked_meanwhile_is_not_waited_for_and_saved_the_next_time() {
        let mut changed = Changed::new([10 * MARKS_PAGE_MAX].into_iter());
        changed.begin(UpdateNumber(1));
        changed.mark(VolumeId(0), Lba(5), 1);
        changed.want_saved();
        changed.save_base();
        let mut page = [0; BLOCK_BYTES];
        assert!(changed.save_page(&mut page));
        // On the page that is on its way, and on another one.
        changed.mark(VolumeId(0), Lba(6), 1);
        changed.mark(VolumeId(0), Lba(MARKS_PAGE_MAX), 1);
        assert!(!changed.save_page(&mut page));
        assert_eq!(changed.unsaved(), Unsaved::Nothing);
        assert_eq!(saved(&mut changed).len(), 2);
    }

    #[test]
    fn a_set_that_is_over_is_dropped_before_another_is_saved() {
        let mut changed = Changed::new([1000].into_iter());
        changed.begin(UpdateNumber(1));
        changed.mark(VolumeId(0), Lba(5), 1);
        changed.note(UpdateNumber(2));
        saved(&mut changed);
        changed.end(UpdateNumber(2));
        assert_eq!((changed.unsaved(), changed.count()), (Unsaved::Stale, 0));
        changed.begin(UpdateNumber(4));
        changed.mark(VolumeId(0), Lba(6), 1);
        assert_eq!(changed.unsaved(), Unsaved::Stale);
        changed.dropped();
        assert_eq!(changed.unsaved(), Unsaved::Marks, "whoever waited for that waits for the new one");
        assert_eq!(saved(&mut changed).len(), 1);
    }

    #[test]
    fn what_was_copied_is_no_longer_in_the_set() {
        let mut changed = Changed::new([100_000].into_iter());
        changed.begin(UpdateNumber(1));
        changed.mark(VolumeId(0), Lba(5), 1);
        changed.mark(VolumeId(0), Lba(90_000), 1);
        saved(&mut changed);
        let mut recent = Bitmap::new(100_000);
        recent.insert(5);
        changed.shrink(UpdateNumber(9), &[recent]);
        assert_eq!((changed.count(), changed.base()), (1, UpdateNumber(9)));
        assert_eq!(saved(&mut changed).len(), 2, "the page that became empty is saved too");
    }

    #[test]
    fn a_peers_marks_are_added_and_saved() {
        let sizes = [100_000, 50];
        let mut theirs = Changed::new(sizes.into_iter());
        theirs.begin(UpdateNumber(3));
        theirs.mark(VolumeId(0), Lba(MARKS_PAGE_MAX + 1), 2);
        theirs.mark(VolumeId(0), Lba(99_999), 1);
        theirs.mark(VolumeId(1), Lba(49), 1);
        let mut ours = Changed::new(sizes.into_iter());
        ours.begin(UpdateNumber(5));
        ours.mark(VolumeId(0), Lba(MARKS_PAGE_MAX + 2), 2);
        saved(&mut ours);
        let mut page = [0xaa; BLOCK_BYTES];
        let (mut at, mut places) = ((VolumeId(0), 0), Vec::new());
        while let Some(place) = theirs.page_from(at, &mut page) {
            assert_eq!(ours.merge_page(&page), Some(place));
            places.push((place.0.0, place.1));
            at = (place.0, place.1 + 1);
        }
        assert_eq!(places, [(0, 1), (0, 3), (1, 0)]);
        assert_eq!(ours.count(), 5);
        assert_eq!(saved(&mut ours).len(), 3);
    }

    #[test]
    fn marks_beyond_a_volume_are_refused_whole() {
        let mut ours = Changed::new([100_000, 50].into_iter());
        ours.begin(UpdateNumber(5));
        let mut page = [0; BLOCK_BYTES];
        for (volume, chunk, words) in [
            (2, 0, [1, 0]),
            (1, 1, [1, 0]),
            (1, 0, [1, 1]),
            (1, 0, [1 << 50, 0]),
            (0, 4, [1, 0]),
            (0, u64::MAX, [1, 0]),
        ] {
            put_marks(&mut page, VolumeId(volume), chunk, &words);
            assert_eq!(ours.merge_page(&page), None, "{volume} {chunk} {words:?}");
        }
        put_marks(&mut page, VolumeId(1), 0, &[1]);
        page[2] = 1;
        assert_eq!(ours.merge_page(&page), None, "a reserved byte");
        assert_eq!(
            (ours.count(), ours.unsaved()),
            (0, Unsaved::Marks),
            "where it begins is all there is to save"
        );
    }

    #[test]
    #[should_panic(expected = "INV-9")]
    fn a_set_is_not_cleared_before_the_peer_has_all_of_it() {
        let mut changed = Changed::new([1000].into_iter());
        changed.begin(UpdateNumber(1));
        changed.note(UpdateNumber(3));
        changed.end(UpdateNumber(2));
    }
}
