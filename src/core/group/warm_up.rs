//! Warming up: a cache that holds all of its volumes reads them at start. Destage then writes across clean blocks, and a snapshot finds
//! what is overwritten in memory, from the first minute on, and not only once the hosts happen to have read everything.

use super::host::DESTAGE_SLOTS;
use super::storage::VolumeIo;
use super::{Group, Phase, Turn};
use crate::base::*;

/// Pause between two reads while operations are inside: 128 KiB each, they take the disk less than a tenth of the time.
const PAUSE: Nanos = Nanos::from_millis(2);

/// Blocks that one turn looks at for one that is not cached, so that a warm cache costs no turn much.
const LOOKS_A_TURN: u64 = 1024;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WarmUp {
    /// The next block to look at.
    At {
        volume: u16,
        lba: u64,
        reading: bool,
        /// When to go on.
        due_at: Nanos,
    },
    Done,
}

impl WarmUp {
    pub const fn new(wanted: bool) -> WarmUp {
        match wanted {
            true => WarmUp::At { volume: 0, lba: 0, reading: false, due_at: Nanos(0) },
            false => WarmUp::Done,
        }
    }
}

impl Group {
    /// Whether the volumes fit beside everything that must stay free or be free to be written.
    pub(super) fn cache_holds_volumes(&self) -> bool {
        let blocks: u64 = self.extending.in_force().iter().sum();
        let (kept_free, _) = self.eviction_goal();
        let staged = self.staging_target * self.config.receivers();
        blocks + (kept_free + staged) as u64 <= self.pages.total() as u64
    }

    pub(super) fn warming_up(&self) -> bool {
        self.warm_up != WarmUp::Done
    }

    /// When the next read is due, if anything is left to read.
    pub(super) fn warm_up_deadline(&self) -> Option<Nanos> {
        match self.warm_up {
            WarmUp::At { reading: false, due_at, .. } if matches!(self.phase, Phase::Running) => Some(due_at),
            _ => None,
        }
    }

    /// Reads on, one I/O at a time, out of everybody's way.
    pub(super) fn warm_up_turn(&mut self, turn: &mut Turn<impl Memory>) {
        let WarmUp::At { mut volume, mut lba, reading: false, due_at } = self.warm_up else { return };
        if self.stopping || !self.cache_holds_volumes() {
            self.warm_up = WarmUp::Done;
            return;
        }
        // What the volumes hold means something once the sums are loaded and the journal is replayed.
        if !matches!(self.phase, Phase::Running) || turn.now < due_at {
            return;
        }
        let mut looks = LOOKS_A_TURN;
        while looks > 0 {
            if usize::from(volume) == self.config.volumes.len() {
                self.warm_up = WarmUp::Done;
                return;
            }
            let size = self.extending.in_force().get(VolumeId(volume));
            if lba == size {
                (volume, lba) = (volume + 1, 0);
                continue;
            }
            let end = size.min(lba + VOLUME_IO_BLOCKS_MAX as u64);
            let lacks = |lba: &u64| self.cache.peek(VolumeId(volume), Lba(*lba)).is_none();
            let count = (lba..end).take_while(lacks).count();
            if count == 0 {
                (lba, looks) = (lba + 1, looks - 1);
                continue;
            }
            if self.room_to_warm(count) {
                let io = VolumeIo::WarmUp { volume: VolumeId(volume), lba: Lba(lba), count: count as u32 };
                self.fetch_blocks(turn, VolumeId(volume), Lba(lba), count as u32, io);
                let lba = lba + count as u64;
                self.warm_up = WarmUp::At { volume, lba, reading: true, due_at: turn.now };
            } else {
                self.warm_up = WarmUp::At { volume, lba, reading: false, due_at: turn.now.plus(PAUSE) };
            }
            return;
        }
        self.warm_up = WarmUp::At { volume, lba, reading: false, due_at: turn.now };
    }

    fn room_to_warm(&self, blocks: usize) -> bool {
        let (pages, entries) = self.eviction_goal();
        self.pages.free() >= pages + blocks
            && self.cache.free_entries() >= entries + blocks
            && self.volume_slots.len() > DESTAGE_SLOTS
    }

    /// A read ended. What could not be read stays out of the cache: who wants it will hear why.
    pub(super) fn warmed(
        &mut self,
        turn: &mut Turn<impl Memory>,
        slot: SlotId,
        (volume, lba, count): (VolumeId, Lba, u32),
        read: bool,
    ) {
        for index in 0..count {
            self.enter_fetched(turn, slot, volume, lba, index, read);
        }
        self.counters.warmed_blocks += u64::from(count);
        let pause = if self.ops_live > 0 { PAUSE } else { Nanos(0) };
        if let WarmUp::At { reading, due_at, .. } = &mut self.warm_up {
            (*reading, *due_at) = (false, turn.now.plus(pause));
        }
    }
}
