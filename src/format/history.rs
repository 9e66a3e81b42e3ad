//! A history: which generation opened at which number. Positions of two sites are compared by it (INV-7).

use crate::base::{Generation, HISTORY_MAX, NUMBER_MAX, UpdateNumber};
use crate::format::bytes::{put, u64_at};

/// Bytes of one encoded entry: generation, then first number.
pub const HISTORY_ENTRY_BYTES: usize = 16;

/// Generations and the number each begins at, oldest first; at most [`HISTORY_MAX`], the newest are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// Zero beyond `length`.
    entries: [(Generation, UpdateNumber); HISTORY_MAX],
    length: u8,
}

/// Why bytes are not a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    #[error("history of {found} generations, expected at most {HISTORY_MAX}")]
    TooLong { found: usize },
    #[error("history of {found} bytes, expected {expected}")]
    Length { expected: usize, found: usize },
    #[error("history entry {index} has generation {found}, expected one after {after}")]
    Generation { index: usize, after: Generation, found: Generation },
    #[error("history entry {index} begins at {found}, expected {at_least} or later")]
    First { index: usize, at_least: UpdateNumber, found: UpdateNumber },
    #[error("history with the number {found}, expected at most {NUMBER_MAX}")]
    TooHigh { found: u64 },
}

impl History {
    pub const EMPTY: History =
        History { entries: [(Generation::NONE, UpdateNumber::NONE); HISTORY_MAX], length: 0 };

    /// `generation` begins at `first`. When full, the oldest entry is dropped.
    ///
    /// Panics unless the generation is newer than all before it and begins no earlier than they do.
    #[track_caller]
    pub fn push(&mut self, generation: Generation, first: UpdateNumber) {
        if let Err(error) = self.check_next(generation, first) {
            panic!("a history never goes back: {error}");
        }
        if self.len() == HISTORY_MAX {
            self.entries.rotate_left(1);
            self.length -= 1;
        }
        self.entries[self.len()] = (generation, first);
        self.length += 1;
    }

    fn check_next(&self, generation: Generation, first: UpdateNumber) -> Result<(), HistoryError> {
        let (newest, begins) = self.last().unwrap_or((Generation::NONE, UpdateNumber(1)));
        if generation <= newest {
            return Err(HistoryError::Generation { index: self.len(), after: newest, found: generation });
        }
        if first < begins {
            return Err(HistoryError::First { index: self.len(), at_least: begins, found: first });
        }
        Ok(())
    }

    pub fn iter(
        &self,
    ) -> impl DoubleEndedIterator<Item = (Generation, UpdateNumber)> + ExactSizeIterator + '_ {
        self.entries[..self.len()].iter().copied()
    }

    /// The newest generation and its first number.
    pub fn last(&self) -> Option<(Generation, UpdateNumber)> {
        self.iter().next_back()
    }

    pub fn len(&self) -> usize {
        usize::from(self.length)
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The stream was cut after `number`: generations that begin later never happened here.
    pub fn truncate_after(&mut self, number: UpdateNumber) {
        while self.last().is_some_and(|(_, first)| first > number) {
            self.length -= 1;
            self.entries[self.len()] = (Generation::NONE, UpdateNumber::NONE);
        }
    }

    /// Bytes that [`History::encode`] writes.
    pub fn encoded_bytes(&self) -> usize {
        self.len() * HISTORY_ENTRY_BYTES
    }

    /// Writes the entries to the front of `out`, oldest first, and returns how many bytes that took. The caller keeps
    /// their count. Panics if `out` is shorter than [`History::encoded_bytes`].
    pub fn encode(&self, out: &mut [u8]) -> usize {
        for (index, (generation, first)) in self.iter().enumerate() {
            put(out, index * HISTORY_ENTRY_BYTES, &generation.0.to_le_bytes());
            put(out, index * HISTORY_ENTRY_BYTES + 8, &first.0.to_le_bytes());
        }
        self.encoded_bytes()
    }

    /// The history of `entries` entries that fill `bytes`.
    pub fn decode(bytes: &[u8], entries: usize) -> Result<History, HistoryError> {
        if entries > HISTORY_MAX {
            return Err(HistoryError::TooLong { found: entries });
        }
        if bytes.len() != entries * HISTORY_ENTRY_BYTES {
            return Err(HistoryError::Length { expected: entries * HISTORY_ENTRY_BYTES, found: bytes.len() });
        }
        let mut history = History::EMPTY;
        for entry in bytes.chunks_exact(HISTORY_ENTRY_BYTES) {
            let (generation, first) = (Generation(u64_at(entry, 0)), UpdateNumber(u64_at(entry, 8)));
            if let Some(found) = [generation.0, first.0].into_iter().find(|&number| number > NUMBER_MAX) {
                return Err(HistoryError::TooHigh { found });
            }
            history.check_next(generation, first)?;
            history.push(generation, first);
        }
        Ok(history)
    }
}

impl Default for History {
    fn default() -> History {
        History::EMPTY
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Histories as they grow: each opening is newer, and begins at or after the one before.
    pub(crate) fn any_history() -> impl Strategy<Value = History> {
        prop::collection::vec((1u64..1 << 40, 0u64..1 << 40), 0..HISTORY_MAX + 8).prop_map(|steps| {
            let mut history = History::EMPTY;
            let (mut generation, mut first) = (0, 1);
            for (newer, later) in steps {
                generation += newer;
                first += later;
                history.push(Generation(generation), UpdateNumber(first));
            }
            history
        })
    }

    proptest! {
        #[test]
        fn encoding_comes_back(history in any_history()) {
            let mut bytes = [0; HISTORY_MAX * HISTORY_ENTRY_BYTES];
            let length = history.encode(&mut bytes);
            prop_assert_eq!(History::decode(&bytes[..length], history.len()), Ok(history));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..1100), entries in 0usize..80) {
            let _ = History::decode(&bytes, entries);
        }

        #[test]
        fn truncation_keeps_exactly_what_begins_by_then(history in any_history(), number in 0u64..1 << 46) {
            let mut cut = history;
            cut.truncate_after(UpdateNumber(number));
            let kept: Vec<_> = history.iter().filter(|(_, first)| first.0 <= number).collect();
            prop_assert_eq!(cut.iter().collect::<Vec<_>>(), kept);
        }
    }

    #[test]
    fn a_full_history_drops_its_oldest() {
        let mut history = History::EMPTY;
        for opening in 1..=HISTORY_MAX as u64 + 3 {
            history.push(Generation(opening), UpdateNumber(opening));
        }
        assert_eq!(history.len(), HISTORY_MAX);
        assert_eq!(history.iter().next(), Some((Generation(4), UpdateNumber(4))));
        assert_eq!(
            history.last(),
            Some((Generation(HISTORY_MAX as u64 + 3), UpdateNumber(HISTORY_MAX as u64 + 3)))
        );
    }

    #[test]
    fn a_history_that_goes_back_is_refused() {
        let entry = |generation: u64, first: u64| [generation.to_le_bytes(), first.to_le_bytes()].concat();
        let decode = |entries: &[Vec<u8>]| History::decode(&entries.concat(), entries.len());
        assert!(decode(&[entry(1, 1), entry(2, 1)]).is_ok());
        assert!(matches!(
            decode(&[entry(2, 1), entry(2, 5)]),
            Err(HistoryError::Generation { index: 1, .. })
        ));
        assert!(matches!(decode(&[entry(1, 5), entry(2, 4)]), Err(HistoryError::First { index: 1, .. })));
        assert!(matches!(decode(&[entry(0, 5)]), Err(HistoryError::Generation { index: 0, .. })));
        assert!(matches!(decode(&[entry(1, 0)]), Err(HistoryError::First { index: 0, .. })));
        assert!(matches!(
            History::decode(&[0; 17], 1),
            Err(HistoryError::Length { expected: 16, found: 17 })
        ));
        assert!(matches!(History::decode(&[], 65), Err(HistoryError::TooLong { found: 65 })));
    }

    #[test]
    #[should_panic(expected = "never goes back")]
    fn pushing_an_older_generation_panics() {
        let mut history = History::EMPTY;
        history.push(Generation(2), UpdateNumber(1));
        history.push(Generation(1), UpdateNumber(2));
    }
}
