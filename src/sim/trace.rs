//! What happened, as a hash that two runs of one seed must share, and as text for who looks into one.

use std::fmt::Debug;

/// Bytes that are hashed at once: most of what hashing an instant alone costs is finding out that there is little to do.
const PENDING_BYTES: usize = 1024;

pub struct Trace {
    print: bool,
    hash: xxhash_rust::xxh3::Xxh3Default,
    pending: Vec<u8>,
}

impl Trace {
    pub fn new(print: bool) -> Trace {
        let hash = xxhash_rust::xxh3::Xxh3Default::new();
        Trace { print, hash, pending: Vec::with_capacity(PENDING_BYTES) }
    }

    /// An event of the loop: its instant is enough for the hash, since everything that chance decides moves instants.
    pub fn event(&mut self, at: u64, event: &impl Debug) {
        self.pending.extend_from_slice(&at.to_le_bytes());
        if self.pending.len() >= PENDING_BYTES {
            self.hash.update(&self.pending);
            self.pending.clear();
        }
        if self.print {
            let text = format!("{event:?}");
            let end = text.char_indices().map(|(index, _)| index).nth(240).unwrap_or(text.len());
            println!("{:>13.3} us  {}", at as f64 / 1000.0, &text[..end]);
        }
    }

    pub fn note(&mut self, at: u64, text: impl FnOnce() -> String) {
        if self.print {
            println!("{:>13.3} us    {}", at as f64 / 1000.0, text());
        }
    }

    pub fn hash(&self) -> u64 {
        let mut hash = self.hash.clone();
        hash.update(&self.pending);
        hash.digest()
    }
}
