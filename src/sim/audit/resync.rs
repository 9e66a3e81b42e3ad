//! The auditor and resyncs: what is copied, what its target's volumes are until all of it is there, and what they are then.

use crate::sim::audit::journal::{SuperblockSeen, superblock};
use crate::sim::audit::site::Site;
use crate::sim::audit::{Auditor, JournalSeen, Media, Place, peer_of};
use crate::sim::content::{Content, Print};

impl Auditor {
    /// A site copies blocks to its peer: as they were settled, at some time.
    pub fn copies(&mut self, volume: u16, lba: u64, blocks: &[Content]) {
        for (lba, content) in (lba..).zip(blocks) {
            let block = &self.blocks[usize::from(volume)][lba as usize];
            let settled = block.numbers_of(content.print).any(|number| self.settled(number).is_ok());
            assert!(
                settled,
                "INV-4: what is copied of volume {volume} block {lba}, {}, was not settled",
                content.print.describe()
            );
        }
        self.copied_blocks += blocks.len() as u64;
    }

    /// Whether a site that is dead may lose its disks: the other one leads, and has on its own what anybody was promised.
    pub fn may_be_replaced(&self, site: usize) -> bool {
        let has = self.durable(self.leader);
        site != self.leader && has >= self.promised && has >= self.durable(site)
    }

    /// A site that is dead is formatted anew.
    pub fn replaced(&mut self, site: usize) {
        self.replaced_at[site] = self.replaced_at[site].max(self.durable(site));
        let JournalSeen { blocks, volatile } = self.config.journals[site];
        self.sites[site] = Site::new(blocks, volatile);
        self.applied[site] = 0;
        self.before_death[site] = [0; 4];
        self.installing[site] = None;
        self.rotten.retain(|rotten| rotten.0 != site);
        self.rotten_slots.retain(|rotten| rotten.0 != site);
    }

    /// The number that a site which starts now will install: it has a durable mark that no superblock came after.
    pub(super) fn mark_of(&self, media: &dyn Media) -> Option<u64> {
        if !self.config.peer {
            return None;
        }
        let read = |place, block| {
            media.visible(place, block).and_then(|stored| superblock(stored.content.bytes.as_deref()?))
        };
        let newest = (0..2).filter_map(|slot| read(Place::Journal, slot)).map(|seen| seen.sequence).max()?;
        read(Place::Staging, 0).filter(|mark| mark.sequence > newest).map(|mark| mark.checkpoint)
    }

    /// A superblock of a site that has just installed what it was copied: each block is exactly what the stream has at its number
    /// (INV-10), whenever it was copied, and so is each block of each snapshot (INV-8).
    pub(super) fn installs(&mut self, site: usize, seen: &SuperblockSeen, media: &dyn Media) {
        let upto = seen.checkpoint;
        assert!(
            self.installing[site] == Some(upto),
            "site {site} checkpoints #{upto}, which its journal does not have, and installs {:?}",
            self.installing[site]
        );
        for (volume, blocks) in (0u16..).zip(&self.blocks) {
            for (lba, block) in (0u64..).zip(blocks) {
                let print = media
                    .durable(Place::Volume(volume), lba)
                    .map_or(Print::ZERO, |stored| stored.content.print);
                let print = self.as_written(site, volume, lba, print);
                let due = block.latest_at(upto);
                assert!(
                    block.numbers_of(print).any(|number| number == due),
                    "INV-10: site {site} has installed #{upto}, and volume {volume} block {lba} durably has {}, where #{due} is due",
                    print.describe()
                );
            }
        }
        assert!(upto <= self.stream.len() as u64, "site {site} installs #{upto}, which nobody has");
        self.check_snapshots(site, upto, media);
        let generations = self.stream[..upto as usize].iter().map(|entry| entry.seen.generation).collect();
        self.sites[site].installs(generations);
        self.installing[site] = None;
        self.installs += 1;
        let living = self.snapshots.iter().filter(|snapshot| snapshot.is_there_at(upto));
        self.installed_snapshots += living.count() as u64;
    }

    /// The tail of the leader's journal may pass its peer only when a durable set has every block that the peer lacks (INV-9).
    pub(super) fn check_tail(&self, site: usize, seen: &SuperblockSeen, media: &dyn Media) {
        if site != self.leader || !self.config.peer || self.inherited.is_some() {
            return;
        }
        // One that was formatted anew lacks what nobody marks: it is copied everything.
        let peer = peer_of(site);
        let peer_has = self.durable(peer).max(self.replaced_at[peer]);
        let kept_from = self.sites[site].first_from(seen.position_sequence).unwrap_or(seen.checkpoint + 1);
        for entry in self.stream.iter().take(kept_from as usize - 1).skip(peer_has as usize) {
            let seen = entry.seen;
            for lba in seen.lba..seen.lba + seen.touches() as u64 {
                assert!(
                    media.is_marked(seen.volume, lba),
                    "INV-9: site {site} lets go of #{}, its peer has #{peer_has}, and block {lba} of volume {} is in no durable set",
                    seen.number,
                    seen.volume
                );
            }
            // Slots are in the set like the blocks of one more volume.
            let slots =
                if seen.slot == 0 { 0..0 } else { seen.slot - 1..seen.slot - 1 + u64::from(seen.count) };
            for slot in slots {
                assert!(
                    media.is_marked(self.blocks.len() as u16, slot),
                    "INV-9: site {site} lets go of #{}, its peer has #{peer_has}, and slot {slot} is in no durable set",
                    seen.number
                );
            }
        }
    }
}
