//! How much of a resync may be on its way, so that hosts do not notice.

use crate::base::*;

/// Updates with copied blocks on their way that the peer has not staged: 16 MiB.
pub const PIECES_MAX: usize = 128;

/// Blocks on their way: at first, and at least. A piece as large as there are, so that scattered blocks, each a piece of its own, have
/// more than a round trip each.
const BLOCKS_BEGIN: usize = 8 * UPDATE_BLOCKS_MAX;
const BLOCKS_MIN: usize = UPDATE_BLOCKS_MAX;
pub(super) const BLOCKS_MAX: usize = PIECES_MAX * UPDATE_BLOCKS_MAX;

/// To a third, which may be far away behind little bandwidth: what is on its way before a heartbeat's answer is not to take that long.
pub(super) const THIRD_BLOCKS_MAX: usize = BLOCKS_MAX / 4;

/// How often the pace is looked at.
const PACE_EVERY: Nanos = Nanos::from_millis(100);

/// Looks for which nothing is paused after a pause during which hosts were as late as before it: what is slow is not the copy, and the copy
/// has to end.
const INNOCENT_LOOKS: u32 = 10;

#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    blocks: usize,
    most: usize,
    looked_at: Nanos,
    writes: u32,
    late: u32,
    /// Even the least was too much: nothing more until the next look.
    paused: bool,
    /// Looks to come before there may be another pause.
    innocent: u32,
}

impl Pace {
    pub fn new(most: usize) -> Pace {
        Pace {
            blocks: BLOCKS_BEGIN,
            most,
            looked_at: Nanos(0),
            writes: 0,
            late: 0,
            paused: false,
            innocent: 0,
        }
    }

    /// A host's write was answered, perhaps later than it may be.
    pub fn note_write(&mut self, late: bool) {
        self.writes += 1;
        self.late += u32::from(late);
    }

    /// Whether one more piece may be on its way beside so many, which have so many blocks. If hosts wait for it, nothing is gained by less
    /// than the most.
    pub fn allows(&self, pieces: usize, blocks: usize, awaited: bool) -> bool {
        let most = if awaited { self.most } else { self.blocks };
        (awaited || !self.paused) && pieces < PIECES_MAX && blocks < most
    }

    pub fn looks_at(&self) -> Nanos {
        self.looked_at.plus(PACE_EVERY)
    }

    /// Looks whether hosts were slowed down since the last look. A copy is paused for every other look at most.
    pub fn keep(&mut self, now: Nanos) {
        if now.since(self.looked_at) < PACE_EVERY {
            return;
        }
        let over = u64::from(self.late) * 100 > u64::from(self.writes);
        self.innocent = match self.paused && over {
            true => INNOCENT_LOOKS,
            false => self.innocent.saturating_sub(1),
        };
        let was_paused = std::mem::take(&mut self.paused);
        match over {
            true if self.blocks > BLOCKS_MIN => self.blocks = (self.blocks / 2).max(BLOCKS_MIN),
            true => self.paused = !was_paused && self.innocent == 0,
            // That hosts do well in a pause says nothing of more.
            false if was_paused => {}
            false => self.blocks = (self.blocks + BLOCKS_MIN + self.blocks / 4).min(self.most),
        }
        (self.looked_at, self.writes, self.late) = (now, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at the pace so often; how often it was paused. Of 100 writes between two looks so many are late.
    fn paused_of(pace: &mut Pace, looks: u64, late: impl Fn(&Pace) -> u32) -> u64 {
        let mut paused = 0;
        for look in 1..=looks {
            let late = late(pace);
            (0..100).for_each(|write| pace.note_write(write < late));
            pace.keep(pace.looked_at.plus(PACE_EVERY));
            paused += u64::from(!pace.allows(0, 0, false));
            assert!(
                pace.paused || pace.allows(PIECES_MAX - 1, BLOCKS_MIN - 1, false),
                "look {look}: {pace:?}"
            );
            assert!(!pace.allows(PIECES_MAX, 0, false) && !pace.allows(0, BLOCKS_MAX, false));
            assert!(!pace.allows(PIECES_MAX, 0, true) && !pace.allows(0, BLOCKS_MAX, true));
            assert!(pace.allows(PIECES_MAX - 1, BLOCKS_MAX - 1, true));
        }
        paused
    }

    #[test]
    fn hosts_that_are_not_late_let_it_grow_to_its_bound() {
        let mut pace = Pace::new(BLOCKS_MAX);
        assert_eq!(paused_of(&mut pace, 30, |_| 1), 0);
        assert!(pace.allows(0, BLOCKS_MAX - 1, false));
    }

    #[test]
    fn a_copy_that_slows_hosts_down_whenever_it_goes_on_is_paused_every_other_time() {
        let mut pace = Pace::new(BLOCKS_MAX);
        let paused = paused_of(&mut pace, 1000, |pace| if pace.paused { 0 } else { 2 });
        assert!((450..=500).contains(&paused), "{paused}");
    }

    #[test]
    fn hosts_that_are_late_whatever_it_does_hardly_pause_it() {
        let paused = paused_of(&mut Pace::new(BLOCKS_MAX), 1000, |_| 100);
        assert!((80..=100).contains(&paused), "{paused}");
    }
}
