//! Newtypes for everything that is counted, so that a block index cannot be passed for a byte offset.

use std::fmt;

use super::VOLUMES_MAX;

/// Bytes in a block: the grain of cache, capture, pointer table, bitmaps and wire.
pub const BLOCK_BYTES: usize = 4096;

/// A block index inside one volume (not bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

impl Lba {
    pub fn plus(self, blocks: u64) -> Lba {
        Lba(self.0.checked_add(blocks).expect("Lba beyond u64: range was checked at admission"))
    }
}

/// A volume's position in its group's list; both sites list the same volumes in the same order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u16);

/// A block of the differential volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u64);

impl Slot {
    /// No slot: nothing is captured.
    pub const NONE: Slot = Slot(u64::MAX);

    pub fn plus(self, slots: u64) -> Slot {
        Slot(
            self.0.checked_add(slots).expect("Slot beyond u64: a run of slots was checked when it was given"),
        )
    }
}

impl Default for Slot {
    fn default() -> Slot {
        Slot::NONE
    }
}

/// Some volumes of a group: bit n is its nth volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VolumeSet(pub u32);

impl VolumeSet {
    /// The first `count` volumes.
    pub fn first(count: usize) -> VolumeSet {
        VolumeSet((0..count).fold(0, |set, volume| set | 1 << volume))
    }

    pub fn contains(self, volume: VolumeId) -> bool {
        self.0.checked_shr(u32::from(volume.0)).is_some_and(|rest| rest & 1 == 1)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every volume of this set is also in `other`.
    pub fn is_within(self, other: VolumeSet) -> bool {
        self.0 & !other.0 == 0
    }
}

/// How many blocks of each volume its hosts see, in the group's order; 0 behind the last volume. They only ever become more, so that of
/// two sites' the larger one of each volume is right for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeSizes([u64; VOLUMES_MAX]);

impl VolumeSizes {
    /// Panics if there are more than [`VOLUMES_MAX`].
    pub fn of(blocks: impl Iterator<Item = u64>) -> VolumeSizes {
        let mut sizes = VolumeSizes::default();
        blocks.enumerate().for_each(|(volume, blocks)| sizes.0[volume] = blocks);
        sizes
    }

    /// Of a volume that does not exist: 0.
    pub fn get(&self, volume: VolumeId) -> u64 {
        self.0.get(usize::from(volume.0)).copied().unwrap_or(0)
    }

    /// The same, with as many blocks of this volume at least. Panics if there can be no such volume.
    pub fn extended(mut self, volume: VolumeId, blocks: u64) -> VolumeSizes {
        let place = &mut self.0[usize::from(volume.0)];
        *place = blocks.max(*place);
        self
    }

    /// Of each volume the larger of both.
    pub fn joined(self, other: VolumeSizes) -> VolumeSizes {
        VolumeSizes(std::array::from_fn(|volume| self.0[volume].max(other.0[volume])))
    }

    /// Whether no volume is larger by `other`.
    pub fn cover(&self, other: &VolumeSizes) -> bool {
        self.joined(*other) == *self
    }

    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().copied()
    }
}

/// The place of an update in its group's stream: dense, from 1. Zero means "before the first update".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpdateNumber(pub u64);

impl UpdateNumber {
    pub const NONE: UpdateNumber = UpdateNumber(0);

    pub fn next(self) -> UpdateNumber {
        UpdateNumber(self.0.checked_add(1).expect("update numbers exhausted"))
    }

    /// The number before this one; `NONE` has none before it and stays.
    pub fn previous(self) -> UpdateNumber {
        UpdateNumber(self.0.saturating_sub(1))
    }
}

impl fmt::Display for UpdateNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A timeline of the stream. The high 48 bits count openings in one history, the low 16 name the site that opened it,
/// so two sites that both open the next generation while cut off never share an id. Zero means "none opened yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    pub const NONE: Generation = Generation(0);

    /// The generation that `site` opens after this one.
    pub fn opened_by(self, site: SiteId) -> Generation {
        Generation((((self.0 >> 16) + 1) << 16) | u64::from(site.0))
    }

    /// The generation that `site` begins with when it adopts contents, this many milliseconds after 1970: another one each time, and from
    /// every other site's.
    pub fn of_adoption(site: SiteId, at_ms: u64) -> Generation {
        Generation(at_ms.max(1) << 16 | u64::from(site.0))
    }

    /// The site that opened it.
    pub fn opener(self) -> SiteId {
        SiteId((self.0 & 0xffff) as u16)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// A site's number in the configuration of its group; unique among the group's sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub u16);

/// Identifies a consistency group on every site: the xxh3-128 of its configured name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GroupId(pub u128);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Nanoseconds on a monotonic clock whose zero is the process's start (or the simulation's).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    pub const fn from_micros(micros: u64) -> Nanos {
        Nanos(micros * 1_000)
    }
    pub const fn from_millis(millis: u64) -> Nanos {
        Nanos(millis * 1_000_000)
    }
    pub fn plus(self, span: Nanos) -> Nanos {
        Nanos(self.0.saturating_add(span.0))
    }
    /// The span since `earlier`, zero if that is later: stamps of two cores may differ by a few nanoseconds.
    pub fn since(self, earlier: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }
}
