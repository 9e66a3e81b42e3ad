//! The auditor and contents from before: they are what the first update of their site's stream stands for, which no journal has.

use crate::sim::audit::journal::{KIND_GENERATION_OPEN, Seen};
use crate::sim::audit::{Auditor, Version};
use crate::sim::content::Content;

impl Auditor {
    /// The site has adopted these blocks, and serves them alone until its peer has them; all others read as zeros.
    pub fn begins_with(&mut self, site: usize, generation: u64, contents: Vec<(u16, u64, Content)>) {
        let seen =
            Seen { number: 1, generation, kind: KIND_GENERATION_OPEN, volume: 0, lba: 0, count: 0, slot: 0 };
        let mut entry = self.entry(site, seen, &[]);
        (entry.promised, entry.alone) = (true, true);
        self.append(entry);
        for (volume, lba, content) in contents {
            self.blocks[usize::from(volume)][lba as usize].push(Version { number: 1, content });
        }
        self.solo.push((1, true));
        self.newest_generation = generation;
        self.leader = site;
        self.sites[site].installs(vec![generation]);
        self.applied[site] = 1;
        self.promised = 1;
    }
}
