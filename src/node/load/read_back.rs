//! What a load has written, read back at its end.

use super::{Ledger, Verdict};

/// What was found when a ledger was compared with a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Check {
    pub blocks: u64,
    /// Acknowledged writes that are not there.
    pub lost: u64,
    /// Blocks that are no one write as a whole.
    pub torn: u64,
    /// Blocks whose read failed.
    pub unreadable: u64,
}

impl Check {
    pub fn broken(&self) -> u64 {
        self.lost + self.torn + self.unreadable
    }

    /// Notes a block that was read; without its contents if that failed.
    pub fn note(&mut self, ledger: &Ledger, block: u64, read: Option<&[u8]>) {
        self.blocks += 1;
        match read.map(|bytes| ledger.judge(block, bytes)) {
            Some(Verdict::Kept) => {}
            Some(Verdict::Lost { .. }) => self.lost += 1,
            Some(Verdict::Torn) => self.torn += 1,
            None => self.unreadable += 1,
        }
    }
}
