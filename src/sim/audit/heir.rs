//! The auditor and a third that takes over: what the pair had and the third has not is given up, whatever was promised of it; from there on
//! the third alone is the set.

use crate::sim::audit::{Auditor, THIRD};

impl Auditor {
    /// Whether the site follows the two others.
    pub(super) fn pulls_only(&self, site: usize) -> bool {
        site == THIRD && self.inherited.is_none()
    }

    /// Both others are dead for good, and the third, which has taken updates up to `last`, is to take over.
    pub fn inherits(&mut self, last: u64) {
        // What waited for room when a source was lost it never took.
        let generation = (last as usize).checked_sub(1).and_then(|index| self.stream.get(index));
        let generation = generation.map_or(0, |entry| entry.seen.generation);
        if last < self.sites[THIRD].received().0 {
            self.sites[THIRD].receives(last, generation);
        }
        let has = self.received(THIRD).min(last);
        for entry in &mut self.stream[has as usize..] {
            if entry.promised && !entry.excused {
                entry.excused = true;
                self.given_up += 1;
            }
        }
        self.replace_from(has + 1);
        self.unnumbered.clear();
        self.leader = THIRD;
        self.newest_generation = self.stream.last().map_or(0, |entry| entry.seen.generation);
        (self.acknowledged, self.inherited) = (0, Some(has));
    }

    /// What it had pulled was settled at the pair, and it knows that.
    pub fn was_inherited(&self, number: u64) -> bool {
        self.inherited.is_some_and(|has| number <= has)
    }
}
