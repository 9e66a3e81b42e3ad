//! The auditor and a third site: it is given nothing that is not settled (INV-4), and what it has is a beginning of the stream in force,
//! whatever happens to the two others (INV-6).

use crate::sim::audit::journal::{KIND_CUT, Seen};
use crate::sim::audit::{Auditor, Media, Place, THIRD};
use crate::sim::content::{Content, Print};

impl Auditor {
    fn has_third(&self) -> bool {
        self.sites.len() > THIRD
    }

    /// What the third's journal has.
    pub fn third_written(&self) -> u64 {
        self.sites[THIRD].written()
    }

    /// And what it would have after a loss of power.
    pub fn third_durable(&self) -> u64 {
        self.sites[THIRD].durable()
    }

    /// Payload of the updates after one and up to another, in blocks.
    pub fn payload_between(&self, after: u64, upto: u64) -> u64 {
        self.stream[after as usize..upto.max(after) as usize]
            .iter()
            .map(|entry| entry.seen.payload() as u64)
            .sum()
    }

    /// The first update that a site's journal keeps.
    pub fn kept_from(&self, site: usize) -> u64 {
        self.sites[site].kept_from()
    }

    /// Whether the third, which has everything up to `at`, lacks nothing but what the journal has of that site, which has `last` in its stream.
    pub fn can_go_on(&self, site: usize, last: u64, at: u64) -> bool {
        let site = &self.sites[site];
        let stream = |number: u64| {
            self.stream.get((number as usize).wrapping_sub(1)).map(|entry| entry.seen.generation)
        };
        let in_journal = || stream(at).is_some() && site.submitted(at) == stream(at);
        // What it was sent is in its memory first; and if the latest of that is in the stream, so is all before.
        let (received, generation) = site.received();
        let in_memory = at > site.last() && at <= received.min(last) && stream(received) == Some(generation);
        let has = at == 0 || in_memory || in_journal();
        has && (site.last() <= at || site.kept_from() <= at + 1)
    }

    /// A site sends the third an update.
    pub fn feeds(&mut self, site: usize, seen: Seen, blocks: &[Content], settled: u64) {
        self.check_given(site, &seen, blocks);
        self.check_claim(site, "settled", settled);
        assert!(settled >= seen.number, "INV-4: {seen:?} goes to the third, and #{settled} is settled");
        self.fed += 1;
    }

    /// What is to be on the third is settled, and is what the stream has at its number.
    fn check_given(&self, site: usize, seen: &Seen, blocks: &[Content]) {
        assert_eq!(blocks.len(), seen.payload(), "payload of {seen:?}");
        assert!(seen.kind != KIND_CUT, "INV-6: a cut on its way to the third");
        let Some(entry) = self.stream.get(seen.number as usize - 1) else {
            panic!(
                "INV-6: site {site} gives the third {seen:?}, and the stream ends with #{}",
                self.stream.len()
            );
        };
        assert!(
            entry.seen.generation == seen.generation,
            "INV-6: site {site} gives the third {seen:?}, and the stream has {:?}",
            entry.seen
        );
        self.check_same(site, entry, seen, blocks);
        if let Err(why) = self.settled(seen.number) {
            panic!("INV-4: {seen:?} goes to the third, but {why}");
        }
    }

    /// The third's group takes an update.
    pub fn third_receives(&mut self, number: u64, generation: u64) {
        let entry = self.stream.get(number as usize - 1);
        assert!(
            entry.is_some_and(|entry| entry.seen.generation == generation),
            "INV-6: the third takes #{number} of generation {generation:x}, which the stream does not have"
        );
        self.sites[THIRD].receives(number, generation);
    }

    /// An update in a batch that the third journals.
    pub(super) fn third_journals(&mut self, seen: &Seen, blocks: &[Content]) {
        self.check_given(THIRD, seen, blocks);
    }

    /// Where the third said last that it is, in memory at least.
    pub fn third_told(&self) -> u64 {
        self.third_told
    }

    /// The third tells where it is: the others keep their journals by that.
    pub fn pulls(&mut self, after: u64, generation: u64, durable: u64) {
        let has = self.sites[THIRD].durable();
        self.third_told = after;
        assert!(durable <= has, "INV-9: the third says that it has #{durable} durable, and has #{has}");
        let of = |number: u64| {
            self.stream.get((number as usize).wrapping_sub(1)).map(|entry| entry.seen.generation)
        };
        assert!(
            after == 0 || of(after) == Some(generation),
            "INV-6: the third is at #{after} of generation {generation:x}, which the stream does not have"
        );
    }

    /// A site tells the third that its journal begins with `oldest`, which is behind what the third has.
    pub fn lapses(&mut self, site: usize, oldest: u64) {
        self.lapsed += 1;
        // The superblock that lets go of what is before may be on its way to the disk.
        if oldest > self.sites[site].kept_from() {
            self.lets_go[site].push(oldest);
        }
    }

    /// A site's disk has not given what begins there in its journal.
    pub fn journal_read_fails(&mut self, site: usize, block: u64) {
        self.sites[site].read_fails(block);
    }

    /// A site says that it cannot read a batch of its journal. If it has told the third that it lacks what is in that, it lets go of nothing.
    pub fn could_not_read_journal(&mut self, site: usize, block: u64) {
        let Some(unread) = self.sites[site].unread_at(block) else {
            panic!(
                "site {site} says that it cannot read its journal at block {block}, and the disk gave it that"
            );
        };
        self.lets_go[site].retain(|oldest| !unread.contains(&(oldest - 1)));
        self.sites[site].gives_up_reading(block);
    }

    /// Whether its disk did not give a site what a third at this number lacks.
    pub fn does_without(&self, site: usize, at: u64) -> bool {
        self.sites[site].does_without_after(at)
    }

    /// A site has submitted a superblock: it is to have let go of all that it told the third it has not.
    pub(super) fn check_let_go(&mut self, site: usize) {
        let kept_from = self.sites[site].kept_from();
        for oldest in self.lets_go[site].drain(..) {
            assert!(
                oldest <= kept_from,
                "site {site} told the third that it has lapsed behind #{oldest}, and its journal has #{kept_from}"
            );
        }
    }

    /// The third died; `media` is what its disks hold now.
    pub(super) fn third_crashed(&mut self, media: &dyn Media) {
        self.check_waits(THIRD);
        self.installing[THIRD] = self.mark_of(media);
        self.journal_crashed(THIRD, media);
        for op in self.ops.iter_mut().filter(|op| op.site == THIRD) {
            op.outstanding = false;
        }
        self.first_op[THIRD] = self.ops.len() as u64;
        self.unread[THIRD] = false;
        self.alive[THIRD] = false;
        self.blocks.iter_mut().flatten().for_each(|block| block.read_at_third = 0);
        self.check_third();
    }

    /// What the third's journal has is a beginning of the stream (INV-6).
    pub(super) fn check_third(&self) {
        let written = self.sites[THIRD].written();
        let common = self.common(THIRD, written);
        assert!(
            common == written,
            "INV-6: the third has #{written}, and only #{common} of that is in the stream"
        );
    }

    /// Updates from `first` on are no longer in the stream.
    pub(super) fn check_third_keeps(&self, first: u64) {
        if !self.has_third() || self.inherited.is_some() {
            return;
        }
        let (received, generation) = self.sites[THIRD].received();
        let in_memory = self.stream.get((received as usize).wrapping_sub(1));
        let received =
            if in_memory.is_some_and(|entry| entry.seen.generation == generation) { received } else { 0 };
        let has = self.common(THIRD, self.sites[THIRD].written()).max(received);
        assert!(first > has, "INV-6: the stream goes on without #{first}, and the third has #{has} of it");
    }

    /// The third is drained, and has everything up to `upto`: each block is exactly what the stream has at that number.
    pub fn check_third_volumes(&self, upto: u64, media: &dyn Media) {
        for (volume, blocks) in (0u16..).zip(&self.blocks) {
            for (lba, block) in (0u64..).zip(blocks) {
                let print = media
                    .durable(Place::Volume(volume), lba)
                    .map_or(Print::ZERO, |stored| stored.content.print);
                let due = block.latest_at(upto);
                assert!(
                    block.numbers_of(print).any(|number| number == due),
                    "INV-6: the third ends at #{upto} with {} in volume {volume} block {lba}, where #{due} is due",
                    print.describe()
                );
            }
        }
    }
}
