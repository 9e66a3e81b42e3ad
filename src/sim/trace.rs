//! What happened, as a hash that two runs of one seed must share, and as text for who looks into one.

use std::fmt::Debug;

pub struct Trace {
    print: bool,
    hash: xxhash_rust::xxh3::Xxh3Default,
}

impl Trace {
    pub fn new(print: bool) -> Trace {
        Trace { print, hash: xxhash_rust::xxh3::Xxh3Default::new() }
    }

    /// An event of the loop: its instant is enough for the hash, since everything that chance decides moves instants.
    pub fn event(&mut self, at: u64, event: &impl Debug) {
        self.hash.update(&at.to_le_bytes());
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
        self.hash.digest()
    }
}
