//! How much is logged of single blocks: a disk that is bad all over would fill the log at the rate of its hosts' reads.

use std::time::{Duration, Instant};

use crate::core::outbox::Event;

/// Sentences about single blocks in a second: enough to see which disk and where, and nothing a reactor feels.
const BLOCKS_A_SECOND_MAX: u32 = 100;

const WINDOW: Duration = Duration::from_secs(1);

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    It,
    /// It, and that there may be more which are not logged.
    TheLast,
    Nothing,
}

/// Counts the sentences of the current second.
#[derive(Debug)]
pub struct Patience {
    began: Instant,
    said: u32,
}

impl Patience {
    pub fn new(now: Instant) -> Patience {
        Patience { began: now, said: 0 }
    }

    /// `now` is asked for only of events that are counted.
    pub fn judge(&mut self, event: &Event, now: impl FnOnce() -> Instant) -> Say {
        if !of_one_block(event) {
            return Say::It;
        }
        let now = now();
        if now.saturating_duration_since(self.began) >= WINDOW {
            *self = Patience::new(now);
        }
        self.said = self.said.saturating_add(1);
        match self.said.cmp(&BLOCKS_A_SECOND_MAX) {
            std::cmp::Ordering::Less => Say::It,
            std::cmp::Ordering::Equal => Say::TheLast,
            std::cmp::Ordering::Greater => Say::Nothing,
        }
    }
}

fn of_one_block(event: &Event) -> bool {
    matches!(
        event,
        Event::ReadAgain { .. }
            | Event::ReadFailed { .. }
            | Event::BlockUnreadable { .. }
            | Event::ChecksumMismatch { .. }
            | Event::BlockRepaired { .. }
            | Event::BlockNotRepaired { .. }
            | Event::SnapshotMismatch { .. }
            | Event::SnapshotRepaired { .. }
            | Event::SnapshotNotRepaired { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Lba, VolumeId};

    #[test]
    fn a_bad_disk_says_so_a_hundred_times_a_second_and_does_not_drown_the_rest() {
        let began = Instant::now();
        let mut patience = Patience::new(began);
        let bad = |lba| Event::ChecksumMismatch { volume: VolumeId(0), lba: Lba(lba) };
        let mut said = Vec::new();
        for at_ms in 0..2_000 {
            for lba in 0..10 {
                said.push(patience.judge(&bad(lba), || began + Duration::from_millis(at_ms)));
            }
            let other = patience.judge(&Event::PeerInSync, || unreachable!("it is not counted"));
            assert_eq!(other, Say::It);
        }
        let count = |what| said.iter().filter(|say| **say == what).count();
        assert_eq!((count(Say::It), count(Say::TheLast), count(Say::Nothing)), (198, 2, 19_800));
    }
}
