//! How much of a resync may be on its way, so that hosts do not notice.

use crate::base::*;

/// Updates with copied blocks on their way that the peer has not staged: 16 MiB.
pub const PIECES_MAX: usize = 128;

/// How often the pace is looked at, and with how many pieces on their way it begins.
const PACE_EVERY: Nanos = Nanos::from_millis(100);
const PACE_BEGINS: usize = 8;

#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pieces: usize,
    looked_at: Nanos,
    writes: u32,
    late: u32,
    /// Even one was too much: nothing more until the next look.
    paused: bool,
}

impl Pace {
    pub fn new() -> Pace {
        Pace { pieces: PACE_BEGINS, looked_at: Nanos(0), writes: 0, late: 0, paused: false }
    }

    /// A host's write was answered, perhaps later than it may be.
    pub fn note_write(&mut self, late: bool) {
        self.writes += 1;
        self.late += u32::from(late);
    }

    /// Whether one more piece may be on its way beside so many.
    pub fn allows(&self, under_way: usize) -> bool {
        !self.paused && under_way < self.pieces
    }

    pub fn looks_at(&self) -> Nanos {
        self.looked_at.plus(PACE_EVERY)
    }

    /// Looks whether hosts were slowed down since the last look.
    pub fn keep(&mut self, now: Nanos) {
        if now.since(self.looked_at) < PACE_EVERY {
            return;
        }
        let over = u64::from(self.late) * 100 > u64::from(self.writes);
        self.paused = over && self.pieces == 1 && !self.paused;
        self.pieces = match over {
            true => (self.pieces / 2).max(1),
            false => (self.pieces + 1 + self.pieces / 4).min(PIECES_MAX),
        };
        (self.looked_at, self.writes, self.late) = (now, 0, 0);
    }
}
