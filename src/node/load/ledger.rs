//! What a client was promised: each block's last acknowledged contents. Every write is unlike every other, so what is read
//! back tells which write it came from.

use crate::base::BLOCK_BYTES;

const MAGIC: [u8; 8] = *b"LSTPLOAD";
/// Magic, seed, block, sequence; the rest follows from the last three.
const HEADER_BYTES: usize = 32;

/// Per block: the sequence of the last write that was acknowledged, and of the last that was sent. Zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    acknowledged: u32,
    sent: u32,
}

#[derive(Clone, Debug)]
pub struct Ledger {
    seed: u64,
    /// The first block of the range that is kept account of.
    first: u64,
    entries: Vec<Entry>,
}

/// What a block's contents say about the promises made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The last acknowledged write, or one sent after it.
    Kept,
    /// An older write than the last acknowledged one, or none at all.
    Lost { acknowledged: u32, found: u32 },
    /// No write of this ledger as a whole: parts of several, or somebody else's.
    Torn,
}

impl Ledger {
    pub fn new(seed: u64, first: u64, blocks: u64) -> Ledger {
        let blocks = usize::try_from(blocks).expect("a range of blocks that memory can keep account of");
        Ledger { seed, first, entries: vec![Entry::default(); blocks] }
    }

    fn entry(&mut self, block: u64) -> &mut Entry {
        &mut self.entries[(block - self.first) as usize]
    }

    /// The next write of a block begins; its contents are `fill`'s with the sequence returned. One at a time a block.
    pub fn begin(&mut self, block: u64) -> u32 {
        let entry = self.entry(block);
        entry.sent += 1;
        entry.sent
    }

    /// The write begun last is acknowledged.
    pub fn acknowledge(&mut self, block: u64) {
        let entry = self.entry(block);
        entry.acknowledged = entry.sent;
    }

    /// Blocks of which a write was sent.
    pub fn written(&self) -> impl Iterator<Item = u64> + '_ {
        let entries = (self.first..).zip(&self.entries);
        entries.filter(|(_, entry)| entry.sent > 0).map(|(block, _)| block)
    }

    /// The contents of a write.
    pub fn fill(&self, block: u64, sequence: u32, out: &mut [u8]) {
        assert_eq!(out.len(), BLOCK_BYTES, "a ledger is of whole blocks");
        out[..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&self.seed.to_le_bytes());
        out[16..24].copy_from_slice(&block.to_le_bytes());
        out[24..32].copy_from_slice(&u64::from(sequence).to_le_bytes());
        let mut random = SplitMix(self.seed ^ block.wrapping_mul(0x9e37_79b9) ^ (u64::from(sequence) << 40));
        for word in out[HEADER_BYTES..].chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
    }

    /// Compares a block that was read, while no write of it is under way.
    pub fn judge(&self, block: u64, bytes: &[u8]) -> Verdict {
        let Entry { acknowledged, sent } = self.entries[(block - self.first) as usize];
        if sent == 0 {
            // Nothing was promised about what was there before.
            return Verdict::Kept;
        }
        let found = match self.sequence_of(block, bytes) {
            Some(found) => found,
            None if bytes.iter().all(|byte| *byte == 0) => 0,
            None => return Verdict::Torn,
        };
        match found {
            found if found < acknowledged => Verdict::Lost { acknowledged, found },
            found if found <= sent => Verdict::Kept,
            _ => Verdict::Torn,
        }
    }

    /// The write of this block that the bytes are, every one of them.
    fn sequence_of(&self, block: u64, bytes: &[u8]) -> Option<u32> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if bytes[..8] != MAGIC || word(8) != self.seed || word(16) != block {
            return None;
        }
        let sequence = u32::try_from(word(24)).ok()?;
        let mut expected = [0; BLOCK_BYTES];
        self.fill(block, sequence, &mut expected);
        (expected == bytes).then_some(sequence)
    }
}

/// Sebastiano Vigna's SplitMix64: good enough numbers for loads, from any seed.
#[derive(Clone, Debug)]
pub(super) struct SplitMix(pub u64);

impl SplitMix {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, evenly but for the last bit.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_of(ledger: &Ledger, block: u64, sequence: u32) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        ledger.fill(block, sequence, &mut bytes);
        bytes
    }

    #[test]
    fn every_kind_of_loss_is_told_apart() {
        let mut ledger = Ledger::new(9, 100, 10);
        assert_eq!(ledger.begin(105), 1);
        assert_eq!(ledger.judge(105, &[0; BLOCK_BYTES]), Verdict::Kept, "nothing was promised yet");
        ledger.acknowledge(105);
        assert_eq!(ledger.judge(105, &[0; BLOCK_BYTES]), Verdict::Lost { acknowledged: 1, found: 0 });
        assert_eq!(ledger.begin(105), 2);
        for sequence in [1, 2] {
            assert_eq!(ledger.judge(105, &block_of(&ledger, 105, sequence)), Verdict::Kept);
        }
        ledger.acknowledge(105);
        let old = block_of(&ledger, 105, 1);
        assert_eq!(ledger.judge(105, &old), Verdict::Lost { acknowledged: 2, found: 1 });
        assert_eq!(ledger.judge(105, &block_of(&ledger, 105, 3)), Verdict::Torn, "never sent");
        assert_eq!(ledger.judge(105, &block_of(&ledger, 106, 2)), Verdict::Torn, "another block's");
        let other = Ledger::new(10, 100, 10);
        assert_eq!(ledger.judge(105, &block_of(&other, 105, 2)), Verdict::Torn, "another run's");
        let mut torn = block_of(&ledger, 105, 2);
        torn[2048..].copy_from_slice(&old[2048..]);
        assert_eq!(ledger.judge(105, &torn), Verdict::Torn);
        assert_eq!(ledger.written().collect::<Vec<_>>(), [105]);
    }
}
