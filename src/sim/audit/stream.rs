//! The auditor's stream: which updates are in force, and what they hold.

use crate::sim::audit::journal::{
    KIND_GENERATION_OPEN, KIND_GIVE_WAY, KIND_HAND_OVER, KIND_SNAPSHOT_CREATE, KIND_SOLO_BEGIN,
    KIND_SOLO_END, KIND_STEP_DOWN, KIND_ZERO, Seen,
};
use crate::sim::audit::snapshots::record_of;
use crate::sim::audit::{Auditor, Entry, SITES_MAX, Version};
use crate::sim::content::Content;

impl Auditor {
    /// An update leaves the primary in a frame; `blocks` are its payload.
    pub fn sends(&mut self, site: usize, seen: Seen, blocks: &[Content]) {
        self.sees(site, seen, blocks);
    }

    pub(super) fn sees(&mut self, site: usize, seen: Seen, blocks: &[Content]) {
        assert_eq!(blocks.len(), seen.payload(), "payload of {seen:?}");
        self.found(site, seen.number, seen.generation);
        let known = self.stream.get(seen.number as usize - 1);
        if let Some(entry) = known
            && entry.seen.generation == seen.generation
        {
            return self.check_same(site, entry, &seen, blocks);
        }
        let opens = seen.kind == KIND_GENERATION_OPEN && Auditor::opener(seen.generation) == site;
        let again = self.replaced.contains_key(&(seen.generation, seen.number))
            && self.sites[site].has(seen.number, seen.generation);
        if opens && site != self.leader && !again && !self.deposed[site] {
            self.take_over(site, seen.number);
        }
        if let Some(entry) = self.replaced.get(&(seen.generation, seen.number)) {
            let held = (0..self.sites.len()).any(|site| self.sites[site].has(seen.number, seen.generation));
            // One that it numbered in this life is that still, in its journal or not.
            let numbered = entry.known_ops.start == self.first_op[site];
            if site != self.leader && (held || numbered || Auditor::opener(seen.generation) != site) {
                return self.check_same(site, entry, &seen, blocks);
            }
            assert!(
                !held,
                "INV-7: {seen:?} has a number and generation that are taken by another update on some site"
            );
            // Nobody has the old one any more, so its number and generation are free.
            let gone = self.replaced.remove(&(seen.generation, seen.number));
            // It was sent, and a takeover that came to nothing took its operation's number, or left it that of an update which is gone.
            if let Some(op) = gone.and_then(|entry| entry.op)
                && site == self.leader
                && self.ops[op as usize].number.is_none_or(|number| number == seen.number)
                && !self.unnumbered.contains(&op)
            {
                self.ops[op as usize].number = None;
                self.unnumbered.push(op);
            }
        }
        if site != self.leader {
            // Started again, it opens a generation when a hello comes that its peer said before it took over.
            self.resumed[site] |= opens && self.deposed[site];
            assert!(
                Auditor::opener(seen.generation) == site && self.resumed[site],
                "the secondary has {seen:?}, which its primary never had"
            );
            return self.goes_on_unaware(seen, blocks);
        }
        if seen.number <= self.stream.len() as u64 {
            // One that no site has any more was never sent, and its id is free.
            let held = |entry: &Entry| {
                entry.seen.generation == self.newest_generation
                    && self.sites.iter().any(|site| site.has(entry.seen.number, entry.seen.generation))
            };
            let newer = seen.generation > self.newest_generation
                || (seen.generation == self.newest_generation && !self.stream.iter().any(held));
            assert!(
                seen.kind == KIND_GENERATION_OPEN && newer,
                "INV-7: the primary replaces an update by {seen:?} without opening a generation"
            );
            self.replace_from(seen.number);
        }
        assert_eq!(seen.number, self.stream.len() as u64 + 1, "update numbers are dense");
        assert!(seen.generation >= self.newest_generation, "{seen:?} in an old generation");
        let before = self.stream.last().map_or(0, |entry| entry.seen.generation);
        assert!(
            (seen.kind == KIND_GENERATION_OPEN) == (seen.generation != before),
            "INV-7: {seen:?} follows an update of generation {before:x}"
        );
        self.check_end_of_generation(&seen);
        self.newest_generation = seen.generation;
        self.resumed[site] = true;
        let entry = self.entry(site, seen, blocks);
        self.check_captures(&seen);
        self.append(entry);
        if seen.touches() > 0 {
            self.claim(seen.number);
        }
    }

    /// A primary that leaves its generation numbers nothing more in it; one that hands over has everything settled.
    fn check_end_of_generation(&self, seen: &Seen) {
        let before = self.stream.last().map(|entry| entry.seen.kind);
        let left = matches!(before, Some(KIND_STEP_DOWN | KIND_HAND_OVER | KIND_GIVE_WAY));
        assert!(
            !left || seen.kind == KIND_GENERATION_OPEN,
            "INV-7: {seen:?} in a generation that its primary has left"
        );
        if seen.kind == KIND_HAND_OVER
            && let Err(why) = self.settled(seen.number - 1)
        {
            panic!("INV-1: {seen:?} hands over what is not settled: {why}");
        }
    }

    pub(super) fn entry(&self, site: usize, seen: Seen, blocks: &[Content]) -> Entry {
        let contents: Vec<Content> = match seen.kind {
            KIND_SNAPSHOT_CREATE => Vec::new(),
            KIND_ZERO => vec![Content::ZERO; seen.count as usize],
            _ => blocks.to_vec(),
        };
        Entry {
            seen,
            contents,
            record: record_of(&seen, blocks),
            known_ops: self.first_op[site]..self.ops.len() as u64,
            op: None,
            promised: false,
            alone: false,
            lost: [false; SITES_MAX],
            excused: false,
        }
    }

    pub(super) fn check_same(&self, site: usize, entry: &Entry, seen: &Seen, blocks: &[Content]) {
        assert_eq!(entry.seen, *seen, "site {site} has another update of the same number and generation");
        let record = record_of(seen, blocks);
        assert_eq!(entry.record, record, "INV-8: site {site} has another record of {seen:?}");
        for (index, (known, Content { print, .. })) in entry.contents.iter().zip(blocks).enumerate() {
            assert!(
                known.print == *print,
                "site {site} has {} as block {index} of {seen:?}, not {}",
                print.describe(),
                known.print.describe()
            );
        }
    }

    pub(super) fn append(&mut self, entry: Entry) {
        let Seen { number, volume, lba, .. } = entry.seen;
        for (index, content) in entry.contents.iter().enumerate() {
            let volume = &mut self.blocks[usize::from(volume)];
            let Some(block) = volume.get_mut(lba as usize + index) else {
                panic!("INV-13: {:?} reaches beyond its volume", entry.seen);
            };
            block.push(Version { number, content: content.clone() });
        }
        if entry.seen.kind == KIND_SOLO_BEGIN || entry.seen.kind == KIND_SOLO_END {
            self.solo.push((number, entry.seen.kind == KIND_SOLO_BEGIN));
        }
        self.note_snapshot(&entry);
        self.stream.push(entry);
    }

    /// Updates from `first` on are no longer in the stream.
    pub(super) fn replace_from(&mut self, first: u64) {
        self.check_third_keeps(first);
        self.replacements += 1;
        for entry in self.stream.split_off(first as usize - 1) {
            let Seen { number, generation, volume, lba, .. } = entry.seen;
            assert!(
                !entry.promised || entry.excused,
                "INV-1: {:?} (op {:?}) was promised to a host and a site still held it, but the primary goes on without it",
                entry.seen,
                entry.op
            );
            for index in 0..entry.contents.len() {
                let block = &mut self.blocks[usize::from(volume)][lba as usize + index];
                block.cut(first);
            }
            self.replaced.insert((generation, number), entry);
        }
        self.forget_snapshots(first);
        self.solo.retain(|(number, _)| *number < first);
        self.promised = self.promised.min(first - 1);
        self.acknowledged = self.acknowledged.min(first - 1);
        // What a primary's hosts asked before it could know rests on less now.
        let first_op = self.first_op[0].min(self.first_op[1]);
        for op in self.ops[first_op as usize..].iter_mut().filter(|op| op.host) {
            op.floor = op.floor.min(first - 1);
            let blocks = &self.blocks[usize::from(op.spec.volume)][op.spec.lba as usize..];
            for (floor, block) in op.read_floors.iter_mut().zip(blocks) {
                *floor = (*floor).min(block.latest_at(first - 1));
            }
        }
    }
}
