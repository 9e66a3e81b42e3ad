//! The auditor and the disks: journals, superblocks, destage, crashes, and what the volumes hold in the end.

use crate::sim::audit::journal::{KIND_CUT, KIND_SOLO_BEGIN, RING_FIRST, Seen, batch, superblock};
use crate::sim::audit::{Auditor, Lack, Level, Media, PRIMARY, Place, SECONDARY, SITES_MAX, THIRD};
use crate::sim::content::{Content, Print};
use crate::sim::disk::IoId;

impl Auditor {
    /// A site submits a write.
    pub fn writes(
        &mut self,
        site: usize,
        io: IoId,
        place: Place,
        block: u64,
        blocks: &[Content],
        media: &dyn Media,
    ) {
        match place {
            Place::Journal => self.writes_journal(site, io, block, blocks, media),
            Place::Volume(volume) => {
                for (lba, content) in (block..).zip(blocks) {
                    self.check_destage(site, volume, lba, content.print, media);
                }
            }
            // What its journal does not have may be staged, until all of it is installed.
            Place::Differential if self.installing[site].is_some() => (),
            Place::Differential => {
                for (slot, content) in (block..).zip(blocks) {
                    self.check_kept_block(site, slot, content.print, media);
                }
            }
            Place::Checksums(_) | Place::Staging => (),
        }
    }

    pub(super) fn writes_journal(
        &mut self,
        site: usize,
        io: IoId,
        block: u64,
        blocks: &[Content],
        media: &dyn Media,
    ) {
        // What a host wrote is no header.
        let header = blocks[0].bytes.as_deref();
        if let Some(seen) = header.and_then(superblock) {
            assert!(blocks.len() == 1 && block == seen.sequence % 2, "superblock {seen:?} at block {block}");
            self.check_claim(site, "settled", seen.settled);
            // The first one after a mark is that of the install, which may go back.
            if self.installing[site].is_some() || seen.checkpoint > self.sites[site].written() {
                self.installs(site, &seen, media);
            }
            self.check_tail(site, &seen, media);
            self.check_checkpoint(site, seen.checkpoint, media);
            self.applied[site] = self.applied[site].max(seen.checkpoint);
            self.sites[site].submits_superblock(io, seen);
            self.check_let_go(site);
            return;
        }
        let Some(seen) = header.and_then(batch) else {
            panic!("site {site} writes {} blocks at journal block {block} that are no batch", blocks.len());
        };
        assert!(block >= RING_FIRST, "a batch over the superblocks");
        if seen.known_durable > self.sites[site].durable() {
            panic!(
                "site {site} claims #{} durable in {seen:?}, has {}",
                seen.known_durable,
                self.sites[site].durable()
            );
        }
        self.check_claim(site, "settled", seen.settled);
        let updates = seen.updates.iter().filter(|update| update.kind != KIND_CUT);
        assert!(
            !self.pulls_only(site) || seen.updates.iter().all(|update| update.kind != KIND_CUT),
            "INV-6: the third cuts its journal"
        );
        self.sites[site].forms(updates.map(|update| (update.number, update.generation)));
        let mut payload = &blocks[1..];
        for update in seen.updates.iter().filter(|update| update.kind != KIND_CUT) {
            let (mine, rest) = payload.split_at(update.payload());
            payload = rest;
            if self.pulls_only(site) {
                self.third_journals(update, mine);
            } else {
                self.sees(site, *update, mine);
            }
        }
        self.sites[site].forms(std::iter::empty());
        let prints = blocks.iter().map(|content| content.print).collect();
        if let Err(why) = self.sites[site].submits_batch(io, block, prints, &seen) {
            panic!("site {site}: {why}");
        }
    }

    pub fn check_claim(&self, site: usize, what: &str, number: u64) {
        if let Err(why) = self.settled(number) {
            panic!("INV-4: site {site} takes #{number} for {what}, but {why}");
        }
    }

    /// Only what is settled reaches a volume (INV-4).
    pub(super) fn check_destage(&self, site: usize, volume: u16, lba: u64, print: Print, media: &dyn Media) {
        let Some(block) = self.blocks[usize::from(volume)].get(lba as usize) else {
            panic!("INV-13: site {site} writes block {lba} beyond volume {volume}");
        };
        let mut reason = None;
        let allowed = block.numbers_of(print).any(|number| {
            // Staged blocks may be older and newer than what is installed, until all of them are, and so may what snapshots keep.
            let installs = self.installing[site].is_some();
            let own = if installs { number } else { self.durable(site) };
            let lack = Lack { site, has: own, what: "durable", number };
            let check = if own < number { Err(lack) } else { self.settled(number) };
            let check = check.map_err(|why| format!("INV-4: {why}"));
            let check = check
                .and_then(|()| if installs { Ok(()) } else { self.check_needs(volume, lba, number, media) });
            check.map_err(|why| reason = Some(why)).is_ok()
        });
        assert!(
            allowed,
            "site {site} writes {} to volume {volume} block {lba}: {}",
            print.describe(),
            reason.unwrap_or("INV-4: it is no version of the block".into())
        );
    }

    /// A checkpoint needs, in each durable volume block, a version at or above the block's latest update up to it.
    pub(super) fn check_checkpoint(&self, site: usize, checkpoint: u64, media: &dyn Media) {
        assert!(
            checkpoint <= self.durable(site),
            "INV-4: site {site} checkpoints #{checkpoint} beyond what is durable"
        );
        for (volume, blocks) in (0u16..).zip(&self.blocks) {
            let durable = media.all_durable(Place::Volume(volume));
            assert_eq!(durable.len(), blocks.len(), "a volume's size");
            for (lba, (block, stored)) in (0u64..).zip(blocks.iter().zip(durable)) {
                let print = stored.as_ref().map_or(Print::ZERO, |stored| stored.content.print);
                let print = self.as_written(site, volume, lba, print);
                // The newest version of all is at or above whatever is due.
                if print == block.newest_print {
                    continue;
                }
                let due = block.latest_at(checkpoint);
                assert!(
                    due == 0 || block.numbers_of(print).any(|number| number >= due),
                    "site {site} checkpoints #{checkpoint} while volume {volume} block {lba} durably has {}, where #{due} \
                     is due",
                    print.describe()
                );
            }
        }
    }

    pub fn written_io(&mut self, site: usize, io: IoId, place: Place) {
        if place == Place::Journal {
            self.sites[site].written_io(io);
        }
    }

    pub fn flushed(&mut self, site: usize, covers: &[IoId], place: Place) {
        if place == Place::Journal {
            self.sites[site].flushed(covers);
        }
    }

    /// A site's group takes an update that its peer sent.
    pub fn receives(&mut self, site: usize, number: u64, generation: u64) {
        self.sites[site].receives(number, generation);
        self.found(site, number, generation);
        self.deposed[site] &= Auditor::opener(generation) == site;
        // The primary takes up again what it had lost and its peer kept; and its peer what was still under way when it died.
        let last = self.stream.last().map_or(0, |entry| entry.seen.generation);
        if number == self.stream.len() as u64 + 1
            && generation >= last
            && let Some(entry) = self.replaced.remove(&(generation, number))
        {
            self.append(entry);
        }
    }

    /// The secondary tells its primary what it has.
    pub fn acknowledges(
        &mut self,
        site: usize,
        journaled: u64,
        durable: u64,
        applied: u64,
        media: &dyn Media,
    ) {
        let (written, flushed) = (self.sites[site].written(), self.sites[site].durable());
        assert!(journaled <= written, "INV-1: site {site} reports #{journaled} journaled, has #{written}");
        assert!(durable <= flushed, "INV-1: site {site} reports #{durable} durable, has #{flushed}");
        if applied > self.applied[site] {
            self.check_claim(site, "applied", applied);
            for entry in &self.stream[self.applied[site] as usize..applied as usize] {
                let Seen { number, volume, lba, .. } = entry.seen;
                for lba in lba..lba + entry.contents.len() as u64 {
                    let block = &self.blocks[usize::from(volume)][lba as usize];
                    let print = media
                        .visible(Place::Volume(volume), lba)
                        .map_or(Print::ZERO, |stored| stored.content.print);
                    let print = self.as_written(site, volume, lba, print);
                    assert!(
                        block.numbers_of(print).any(|has| has >= number),
                        "site {site} reports #{applied} applied, but volume {volume} block {lba} has {}, not #{number}",
                        print.describe()
                    );
                }
            }
            self.applied[site] = applied;
        }
    }

    /// A site that ran has stopped as it was told to: what it has is on its disks.
    pub fn has_stopped(&self, site: usize) {
        let (has, durable) = (self.sites[site].last(), self.sites[site].durable());
        assert!(has == durable, "INV-1: site {site} stops with #{has}, and has only #{durable} durable");
    }

    /// A site died; `media` is what its disks hold now.
    pub fn crashed(&mut self, site: usize, media: &dyn Media) {
        if self.pulls_only(site) {
            return self.third_crashed(media);
        }
        self.check_waits(site);
        self.lets_go[site].clear();
        let had = self.has(site);
        if site == self.leader {
            self.before_death = [[0; 4]; SITES_MAX];
        }
        for (before, had) in self.before_death[site].iter_mut().zip(had) {
            *before = if site == self.leader { 0 } else { (*before).max(had) };
        }
        self.installing[site] = if site == THIRD { None } else { self.mark_of(media) };
        self.journal_crashed(site, media);
        self.lost(site, had[0]);
        for op in self.ops.iter_mut().filter(|op| op.site == site) {
            op.outstanding = false;
        }
        // What it was asked is gone with it, but for what its journal has though another took over: that may turn out to be no takeover.
        let mut unnumbered = std::mem::take(&mut self.unnumbered);
        let journaled = |id: u64| {
            let mut updates = self.replaced.iter();
            updates.any(|(&(generation, number), entry)| {
                let there = entry.seen.touches() > 0 && self.sites[site].has(number, generation);
                there && self.fits(id, entry)
            })
        };
        unnumbered.retain(|&id| self.ops[id as usize].site != site || journaled(id));
        self.unnumbered = unnumbered;
        self.first_op[site] = self.ops.len() as u64;
        self.resumed[site] = false;
        self.unread[site] = false;
        if site == THIRD {
            // Readers found it on its way to being primary again, and what it acknowledges it may lose as its level allows.
            self.blocks.iter_mut().flatten().for_each(|block| block.read_at_third = 0);
        }
        if site == self.leader {
            self.acknowledged = 0;
        }
        if site != THIRD {
            self.blocks.iter_mut().flatten().for_each(|block| block.read_at_secondary[site] = 0);
        }
        self.alive[site] = false;
        if self.leader_has_all() {
            return;
        }
        // What was acknowledged alone needs no peer: a primary that lost it goes on without it, whoever else has it.
        let own = self.written(self.leader);
        let may_lose = self.config.level < Level::Durable;
        for entry in &mut self.stream[own as usize..] {
            if site == self.leader && entry.promised && entry.alone && !entry.excused {
                assert!(may_lose, "INV-1: {:?} was acknowledged as durable, and a crash took it", entry.seen);
                entry.excused = true;
                self.excused_writes += 1;
                // Nor need its next life read it, before it says by a generation of its own that it goes on without.
                let Seen { volume, lba, .. } = entry.seen;
                for lba in lba..lba + entry.contents.len() as u64 {
                    let block = &mut self.blocks[usize::from(volume)][lba as usize];
                    let has = block.latest_at(own);
                    (block.acknowledged, block.read) = (block.acknowledged.min(has), block.read.min(has));
                }
            }
        }
        self.forget_what_nobody_has();
        self.takeover_undone();
        if site == self.leader {
            self.take_up_again(u64::MAX);
        }
    }

    /// What a site had durably it has after any crash, in its journal or in a log that it is about to install.
    pub(super) fn journal_crashed(&mut self, site: usize, media: &dyn Media) {
        let had = self.sites[site].durable_log().to_vec();
        self.applied[site] = self.sites[site].crashed(media);
        let has = self.sites[site].durable_log();
        assert!(
            self.installing[site].is_some() || has.starts_with(&had),
            "INV-1: site {site} had #{} durable, and has #{} after a crash",
            had.len(),
            has.len()
        );
    }

    /// A primary that has numbered updates since it started has all the stream; before, only what it has read or been sent.
    fn leader_has_all(&self) -> bool {
        self.alive[self.leader] && self.resumed[self.leader]
    }

    /// What neither site has is gone; the level allowed it, or acknowledging it would have been the violation.
    fn forget_what_nobody_has(&mut self) {
        let held = match self.inherited {
            Some(_) => self.received(THIRD),
            None => self.received(PRIMARY).max(self.received(SECONDARY)),
        };
        // What a third has inherited the pair had promised; it may be in its memory alone.
        let (level, inherited) = (self.config.level, self.inherited.unwrap_or(0));
        for entry in &mut self.stream[held as usize..] {
            if entry.promised && !entry.excused {
                assert!(
                    level < Level::Durable || entry.seen.number <= inherited,
                    "INV-1: {:?} was acknowledged as durable, and nobody has it",
                    entry.seen
                );
                entry.excused = true;
                self.excused_writes += 1;
            }
        }
        self.replace_from(held + 1);
    }

    /// A site's connection is over, and with it what waited for room: it took no more than this number, of this generation.
    pub(super) fn took_no_more_than(&mut self, site: usize, number: u64, generation: u64) {
        let (received, _) = self.sites[site].received();
        if number < received {
            self.sites[site].receives(number, generation);
            if !self.leader_has_all() {
                self.forget_what_nobody_has();
                self.takeover_undone();
            }
        }
    }

    /// The crash undid what the primary had written over an older tail, which is its stream again.
    pub(super) fn take_up_again(&mut self, upto: u64) {
        while (self.stream.len() as u64) < upto
            && let Some(generation) = self.sites[self.leader].submits(self.stream.len() as u64 + 1)
            && let Some(entry) = self.replaced.remove(&(generation, self.stream.len() as u64 + 1))
        {
            self.append(entry);
        }
    }

    pub fn restarted(&mut self, site: usize) {
        self.alive[site] = true;
    }

    /// Everything is drained: both volumes must hold the last version of every block.
    pub fn check_volumes(&self, site: usize, media: &dyn Media) {
        for (volume, blocks) in (0u16..).zip(&self.blocks) {
            for (lba, block) in (0u64..).zip(blocks) {
                let print = media
                    .durable(Place::Volume(volume), lba)
                    .map_or(Print::ZERO, |stored| stored.content.print);
                let due = block.newest().print;
                assert!(
                    print == due,
                    "site {site} ends with {} in volume {volume} block {lba}, not {} (#{})",
                    print.describe(),
                    due.describe(),
                    block.latest_at(u64::MAX)
                );
            }
        }
    }

    /// The last update of the stream.
    pub fn last(&self) -> u64 {
        self.stream.len() as u64
    }

    /// Whether the write kinds and levels of this run were all on the peer: for the runner's statistics.
    pub fn solo_ranges(&self) -> usize {
        self.stream.iter().filter(|entry| entry.seen.kind == KIND_SOLO_BEGIN).count()
    }
}
