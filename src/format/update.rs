//! An update's descriptor: the same 64 bytes in a journal batch header and in a wire frame.

use crate::base::{
    Generation, Lba, NUMBER_MAX, Slot, UPDATE_BLOCKS_MAX, UpdateNumber, VOLUMES_MAX, VolumeId,
    ZERO_BLOCKS_MAX,
};
use crate::format::bytes::{nonzero_in, put, u16_at, u32_at, u64_at};

/// Bytes of an encoded descriptor.
pub const DESCRIPTOR_BYTES: usize = 64;

/// What an update does. The codes of kinds that later versions add are refused as unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum UpdateKind {
    /// `count` blocks of payload at `lba`.
    Write = 1,
    /// `count` blocks at `lba` read as zeros from here on; no payload.
    Zero = 2,
    /// A snapshot of everything before this number, which names it; the payload is its [record](crate::format::snapshot).
    SnapshotCreate = 3,
    /// The snapshot whose number is in `lba` is no longer kept.
    SnapshotDelete = 4,
    /// A site became or resumed primary: the generation field is the one that starts at this number.
    GenerationOpen = 7,
    /// From here on the primary acknowledges alone.
    SoloBegin = 8,
    /// The peer is back: from here on acknowledgements need it again.
    SoloEnd = 9,
    /// Journal only: this site dropped every update after `number`, which is not a new number but the last one kept.
    Cut = 10,
    /// The snapshot whose number is in `lba` is not deleted to make room from here on.
    SnapshotProtect = 11,
    /// It may be again.
    SnapshotUnprotect = 12,
    /// The primary steps down: nobody is primary until a site opens a generation.
    StepDown = 13,
    /// The primary hands over: its peer opens the next generation.
    HandOver = 14,
    /// The primary of one side of a split brain gives way: what it has after the last update that both have is to go, for the site
    /// whose history has the generation that `lba` names. It is a secondary from here on.
    GiveWay = 15,
    /// Staging log only: what `count` slots of the differential volume hold, from the one in `lba` on.
    Slots = 16,
    /// Staging log only: the page of [snapshot tables](crate::format::tables) whose index is in `lba`.
    Tables = 17,
    /// `count` blocks of payload at `lba`, in which the sites differed: what one of them had is to be what both have had all along, so
    /// nothing is captured.
    Rewrite = 18,
}

impl UpdateKind {
    fn from_code(code: u8) -> Option<UpdateKind> {
        match code {
            1 => Some(UpdateKind::Write),
            2 => Some(UpdateKind::Zero),
            3 => Some(UpdateKind::SnapshotCreate),
            4 => Some(UpdateKind::SnapshotDelete),
            7 => Some(UpdateKind::GenerationOpen),
            8 => Some(UpdateKind::SoloBegin),
            9 => Some(UpdateKind::SoloEnd),
            10 => Some(UpdateKind::Cut),
            11 => Some(UpdateKind::SnapshotProtect),
            12 => Some(UpdateKind::SnapshotUnprotect),
            13 => Some(UpdateKind::StepDown),
            14 => Some(UpdateKind::HandOver),
            15 => Some(UpdateKind::GiveWay),
            16 => Some(UpdateKind::Slots),
            17 => Some(UpdateKind::Tables),
            18 => Some(UpdateKind::Rewrite),
            _ => None,
        }
    }

    /// Whether it says in `lba` which snapshot it is about.
    pub const fn names_snapshot(self) -> bool {
        matches!(
            self,
            UpdateKind::SnapshotDelete | UpdateKind::SnapshotProtect | UpdateKind::SnapshotUnprotect
        )
    }

    /// Whether it is of what snapshots keep, copied for a staging log, and no update of any stream.
    pub const fn staged_only(self) -> bool {
        matches!(self, UpdateKind::Slots | UpdateKind::Tables)
    }

    /// Whether it ends its generation: only the opening of another one follows.
    pub const fn leaves(self) -> bool {
        matches!(self, UpdateKind::StepDown | UpdateKind::HandOver | UpdateKind::GiveWay)
    }

    /// The fewest and the most blocks an update of this kind has.
    const fn count_bounds(self) -> (u32, u32) {
        match self {
            UpdateKind::Write | UpdateKind::Rewrite => (1, UPDATE_BLOCKS_MAX as u32),
            UpdateKind::Zero => (1, ZERO_BLOCKS_MAX as u32),
            UpdateKind::SnapshotCreate | UpdateKind::Tables => (1, 1),
            UpdateKind::Slots => (1, UPDATE_BLOCKS_MAX as u32),
            _ => (0, 0),
        }
    }
}

/// An update without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    pub number: UpdateNumber,
    pub generation: Generation,
    /// The first block; of a kind that names a snapshot, its number; of a `GiveWay`, the generation; of slots, the first one; of tables,
    /// the page.
    pub lba: Lba,
    /// Blocks of the volume, or of payload; 0 for kinds that have neither.
    pub count: u32,
    /// Where the differential volume keeps what the blocks held before: `count` slots from here, one a block, for the newest
    /// snapshot of the volume. `NONE` if no snapshot needs any of them.
    pub slot: Slot,
    /// [`crate::base::sum_of_sums`] of the payload's block sums; 0 without payload.
    pub sum: u32,
    pub volume: VolumeId,
    pub kind: UpdateKind,
}

/// Why bytes are not an update's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    #[error("update kind {found}, expected 1 to 4, 7 to 18")]
    Kind { found: u8 },
    #[error("update number 0 in a {kind:?}, expected 1 or higher")]
    Number { kind: UpdateKind },
    #[error("update with the number or generation {found}, expected at most {NUMBER_MAX}")]
    TooHigh { found: u64 },
    #[error("{kind:?} {number} of {found} blocks, expected {min} to {max}")]
    Count { kind: UpdateKind, number: UpdateNumber, min: u32, max: u32, found: u32 },
    #[error("{number} covers {count} blocks from {lba}, expected its end below 2^64", lba = lba.0)]
    Range { number: UpdateNumber, lba: Lba, count: u32 },
    #[error("{number} captures {count} blocks, expected at most {UPDATE_BLOCKS_MAX}")]
    Captured { number: UpdateNumber, count: u32 },
    #[error("{number} captures {count} blocks from slot {slot}, expected its end below 2^64", slot = slot.0)]
    Slots { number: UpdateNumber, slot: Slot, count: u32 },
    #[error("{number} deletes snapshot {found}, expected one of 1 to below its own number")]
    Snapshot { number: UpdateNumber, found: u64 },
    #[error("{number} gives way to generation 0, expected one that was opened")]
    GivesWay { number: UpdateNumber },
    #[error("{number} is for volume {found}, expected below {VOLUMES_MAX}")]
    Volume { number: UpdateNumber, found: u16 },
    #[error("{kind:?} {number} has {field} {found}, expected 0")]
    NotZero { kind: UpdateKind, number: UpdateNumber, field: &'static str, found: u64 },
    #[error("reserved byte {offset} of a descriptor is {found:#04x}, expected 0")]
    Reserved { offset: usize, found: u8 },
}

impl Update {
    /// Fills arrays that are to hold updates. Not a valid update: its number is zero.
    pub const EMPTY: Update = Update {
        number: UpdateNumber::NONE,
        generation: Generation::NONE,
        lba: Lba(0),
        count: 0,
        slot: Slot::NONE,
        sum: 0,
        volume: VolumeId(0),
        kind: UpdateKind::GenerationOpen,
    };

    /// Whether the fields agree with the kind and its bounds. A volume's own size is the group's to check.
    pub fn check(&self) -> Result<(), DescriptorError> {
        let Update { number, kind, lba, count, .. } = *self;
        // A cut may keep nothing at all.
        if number == UpdateNumber::NONE && kind != UpdateKind::Cut {
            return Err(DescriptorError::Number { kind });
        }
        let (min, max) = kind.count_bounds();
        if count < min || count > max {
            return Err(DescriptorError::Count { kind, number, min, max, found: count });
        }
        if lba.0.checked_add(u64::from(count)).is_none() {
            return Err(DescriptorError::Range { number, lba, count });
        }
        if usize::from(self.volume.0) >= VOLUMES_MAX {
            return Err(DescriptorError::Volume { number, found: self.volume.0 });
        }
        let not_zero = |field, found| Err(DescriptorError::NotZero { kind, number, field, found });
        if self.payload_blocks() == 0 && self.sum != 0 {
            return not_zero("payload sum", u64::from(self.sum));
        }
        if kind.names_snapshot() && !(1..number.0).contains(&lba.0) {
            return Err(DescriptorError::Snapshot { number, found: lba.0 });
        }
        if kind == UpdateKind::GiveWay && lba.0 == 0 {
            return Err(DescriptorError::GivesWay { number });
        }
        let names = kind.names_snapshot() || kind.staged_only() || kind == UpdateKind::GiveWay;
        if !self.touches_blocks() && !names && lba.0 != 0 {
            return not_zero("block", lba.0);
        }
        if self.captures() {
            if !self.touches_blocks() || kind == UpdateKind::Rewrite {
                return not_zero("slot", self.slot.0);
            }
            if count as usize > UPDATE_BLOCKS_MAX {
                return Err(DescriptorError::Captured { number, count });
            }
            // The last value names no slot.
            if self.slot.0.checked_add(u64::from(count)).is_none() {
                return Err(DescriptorError::Slots { number, slot: self.slot, count });
            }
        }
        if !self.touches_blocks() && self.volume.0 != 0 {
            return not_zero("volume", u64::from(self.volume.0));
        }
        Ok(())
    }

    /// Payload blocks that travel with the update.
    pub fn payload_blocks(&self) -> usize {
        match self.kind {
            UpdateKind::Write
            | UpdateKind::SnapshotCreate
            | UpdateKind::Slots
            | UpdateKind::Tables
            | UpdateKind::Rewrite => self.count as usize,
            _ => 0,
        }
    }

    /// Whether its blocks' old content is kept for a snapshot.
    pub fn captures(&self) -> bool {
        self.slot != Slot::NONE
    }

    /// Pages that the update may hold back: its payload, and what its blocks held before if a snapshot needs it.
    pub fn held_blocks(&self) -> usize {
        self.payload_blocks() + if self.captures() { self.count as usize } else { 0 }
    }

    /// Whether the update changes blocks of a volume.
    pub fn touches_blocks(&self) -> bool {
        matches!(self.kind, UpdateKind::Write | UpdateKind::Zero | UpdateKind::Rewrite)
    }
}

impl Default for Update {
    fn default() -> Update {
        Update::EMPTY
    }
}

const NUMBER: usize = 0;
const GENERATION: usize = 8;
const LBA: usize = 16;
const COUNT: usize = 24;
const SUM: usize = 28;
const VOLUME: usize = 32;
const KIND: usize = 34;
const RESERVED_A: usize = 35;
const SLOT: usize = 40;
const RESERVED_B: usize = 48;

/// Panics if the update breaks its own bounds ([`Update::check`]): nothing later could be trusted to read it.
pub fn encode_descriptor(update: &Update, out: &mut [u8; DESCRIPTOR_BYTES]) {
    if let Err(error) = update.check() {
        panic!("an update that no site would accept was about to be written: {error}");
    }
    put(out, NUMBER, &update.number.0.to_le_bytes());
    put(out, GENERATION, &update.generation.0.to_le_bytes());
    put(out, LBA, &update.lba.0.to_le_bytes());
    put(out, COUNT, &update.count.to_le_bytes());
    put(out, SUM, &update.sum.to_le_bytes());
    put(out, VOLUME, &update.volume.0.to_le_bytes());
    out[KIND] = update.kind as u8;
    out[RESERVED_A..].fill(0);
    // Zero means no slot, so that what captures nothing is zeros here.
    put(out, SLOT, &update.slot.0.wrapping_add(1).to_le_bytes());
}

/// The update in a descriptor, with every field within its bounds. Descriptors carry no checksum of their own: the batch
/// header's or the frame's covers them.
pub fn decode_descriptor(bytes: &[u8; DESCRIPTOR_BYTES]) -> Result<Update, DescriptorError> {
    let kind = UpdateKind::from_code(bytes[KIND]).ok_or(DescriptorError::Kind { found: bytes[KIND] })?;
    for (from, to) in [(RESERVED_A, SLOT), (RESERVED_B, DESCRIPTOR_BYTES)] {
        if let Some(offset) = nonzero_in(bytes, from, to) {
            return Err(DescriptorError::Reserved { offset, found: bytes[offset] });
        }
    }
    let update = Update {
        number: UpdateNumber(u64_at(bytes, NUMBER)),
        generation: Generation(u64_at(bytes, GENERATION)),
        lba: Lba(u64_at(bytes, LBA)),
        count: u32_at(bytes, COUNT),
        slot: Slot(u64_at(bytes, SLOT).wrapping_sub(1)),
        sum: u32_at(bytes, SUM),
        volume: VolumeId(u16_at(bytes, VOLUME)),
        kind,
    };
    for found in [update.number.0, update.generation.0] {
        if found > NUMBER_MAX {
            return Err(DescriptorError::TooHigh { found });
        }
    }
    update.check()?;
    Ok(update)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_update() -> impl Strategy<Value = Update> {
        let kind = prop_oneof![
            4 => Just(UpdateKind::Write),
            2 => Just(UpdateKind::Zero),
            1 => Just(UpdateKind::SnapshotCreate),
            1 => Just(UpdateKind::SnapshotDelete),
            1 => Just(UpdateKind::SnapshotProtect),
            1 => Just(UpdateKind::SnapshotUnprotect),
            1 => Just(UpdateKind::GenerationOpen),
            1 => Just(UpdateKind::SoloBegin),
            1 => Just(UpdateKind::SoloEnd),
            1 => Just(UpdateKind::StepDown),
            1 => Just(UpdateKind::HandOver),
            1 => Just(UpdateKind::GiveWay),
            1 => Just(UpdateKind::Slots),
            1 => Just(UpdateKind::Tables),
            1 => Just(UpdateKind::Rewrite),
            1 => Just(UpdateKind::Cut),
        ];
        let numbers = (2..=NUMBER_MAX, 0..=NUMBER_MAX, any::<u64>(), any::<Option<u64>>());
        (kind, numbers, any::<u32>(), any::<u32>(), 0..VOLUMES_MAX as u16).prop_map(
            |(kind, (number, generation, lba, slot), count, sum, volume)| {
                let (min, max) = kind.count_bounds();
                let count = min + count % (max - min + 1);
                let lba = match kind {
                    UpdateKind::Write
                    | UpdateKind::Zero
                    | UpdateKind::Slots
                    | UpdateKind::Tables
                    | UpdateKind::Rewrite => lba.min(u64::MAX - u64::from(count)),
                    kind if kind.names_snapshot() => 1 + lba % (number - 1),
                    UpdateKind::GiveWay => lba.max(1),
                    _ => 0,
                };
                let update = Update {
                    number: UpdateNumber(number),
                    generation: Generation(generation),
                    lba: Lba(lba),
                    count,
                    slot: Slot::NONE,
                    sum: 0,
                    volume: VolumeId(0),
                    kind,
                };
                let captures = update.touches_blocks() && kind != UpdateKind::Rewrite;
                let slot = slot.filter(|_| captures && count as usize <= UPDATE_BLOCKS_MAX);
                Update {
                    slot: slot.map_or(Slot::NONE, |slot| Slot(slot.min(u64::MAX - u64::from(count)))),
                    sum: if update.payload_blocks() > 0 { sum } else { 0 },
                    volume: VolumeId(if update.touches_blocks() { volume } else { 0 }),
                    ..update
                }
            },
        )
    }

    const WRITE: Update = Update {
        number: UpdateNumber(7),
        generation: Generation(1 << 16),
        lba: Lba(100),
        count: 3,
        slot: Slot::NONE,
        sum: 0xdead_beef,
        volume: VolumeId(1),
        kind: UpdateKind::Write,
    };

    fn encoded(update: &Update) -> [u8; DESCRIPTOR_BYTES] {
        let mut bytes = [0xaa; DESCRIPTOR_BYTES];
        encode_descriptor(update, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn encoding_comes_back(update in any_update()) {
            prop_assert_eq!(decode_descriptor(&encoded(&update)), Ok(update));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(seed in any_update(), at in 0..DESCRIPTOR_BYTES, byte in any::<u8>()) {
            let mut bytes = encoded(&seed);
            bytes[at] = byte;
            if let Ok(update) = decode_descriptor(&bytes) {
                prop_assert_eq!(encoded(&update), bytes);
            }
        }
    }

    #[test]
    fn each_bound_is_checked() {
        let refused = |offset: usize, field: &[u8]| {
            let mut bytes = encoded(&WRITE);
            put(&mut bytes, offset, field);
            decode_descriptor(&bytes).expect_err("the field is out of bounds")
        };
        for kind in [0u8, 5, 6, 19, 255] {
            assert_eq!(refused(KIND, &[kind]), DescriptorError::Kind { found: kind });
        }
        assert!(matches!(refused(NUMBER, &[0; 8]), DescriptorError::Number { .. }));
        let gives_way = Update { number: UpdateNumber(7), kind: UpdateKind::GiveWay, ..Update::EMPTY };
        assert_eq!(gives_way.check(), Err(DescriptorError::GivesWay { number: UpdateNumber(7) }));
        assert!(matches!(refused(COUNT, &0u32.to_le_bytes()), DescriptorError::Count { found: 0, .. }));
        let beyond = UPDATE_BLOCKS_MAX as u32 + 1;
        assert!(matches!(refused(COUNT, &beyond.to_le_bytes()), DescriptorError::Count { max: 32, .. }));
        assert!(matches!(refused(LBA, &(u64::MAX - 2).to_le_bytes()), DescriptorError::Range { .. }));
        let volume = VOLUMES_MAX as u16;
        assert!(matches!(refused(VOLUME, &volume.to_le_bytes()), DescriptorError::Volume { found: 32, .. }));
        for offset in (RESERVED_A..SLOT).chain(RESERVED_B..DESCRIPTOR_BYTES) {
            assert_eq!(refused(offset, &[1]), DescriptorError::Reserved { offset, found: 1 });
        }
        for kind in [UpdateKind::GenerationOpen, UpdateKind::SoloBegin, UpdateKind::SoloEnd, UpdateKind::Cut]
        {
            assert!(matches!(refused(KIND, &[kind as u8]), DescriptorError::Count { max: 0, found: 3, .. }));
        }
        assert!(matches!(refused(KIND, &[2]), DescriptorError::NotZero { field: "payload sum", .. }));
        let beyond = u64::MAX - 1;
        assert!(matches!(refused(SLOT, &beyond.to_le_bytes()), DescriptorError::Slots { count: 3, .. }));
    }

    #[test]
    fn what_snapshots_need_is_checked() {
        let refused = |update: Update, offset: usize, field: &[u8]| {
            let mut bytes = encoded(&update);
            put(&mut bytes, offset, field);
            decode_descriptor(&bytes).expect_err("the field is out of bounds")
        };
        let delete = Update { number: UpdateNumber(7), kind: UpdateKind::SnapshotDelete, ..Update::EMPTY };
        let delete = Update { lba: Lba(6), ..delete };
        for kind in [UpdateKind::SnapshotDelete, UpdateKind::SnapshotProtect, UpdateKind::SnapshotUnprotect] {
            for snapshot in [0u64, 7, u64::MAX] {
                let error = refused(Update { kind, ..delete }, LBA, &snapshot.to_le_bytes());
                assert_eq!(error, DescriptorError::Snapshot { number: UpdateNumber(7), found: snapshot });
            }
        }
        let slot = refused(delete, SLOT, &5u64.to_le_bytes());
        assert!(matches!(slot, DescriptorError::NotZero { field: "slot", found: 4, .. }));
        let rewrite = refused(Update { kind: UpdateKind::Rewrite, ..WRITE }, SLOT, &5u64.to_le_bytes());
        assert!(matches!(rewrite, DescriptorError::NotZero { field: "slot", found: 4, .. }));
        let zero = Update { kind: UpdateKind::Zero, sum: 0, count: 33, ..WRITE };
        let captured = refused(zero, SLOT, &5u64.to_le_bytes());
        assert_eq!(captured, DescriptorError::Captured { number: WRITE.number, count: 33 });
        let create =
            Update { kind: UpdateKind::SnapshotCreate, count: 1, lba: Lba(0), volume: VolumeId(0), ..WRITE };
        assert!(matches!(
            refused(create, COUNT, &[0]),
            DescriptorError::Count { min: 1, max: 1, found: 0, .. }
        ));
        assert!(matches!(refused(create, VOLUME, &[1]), DescriptorError::NotZero { field: "volume", .. }));
    }

    #[test]
    fn the_last_block_of_the_address_space_can_be_named() {
        let last = Update { lba: Lba(u64::MAX - 3), ..WRITE };
        assert_eq!(decode_descriptor(&encoded(&last)), Ok(last));
    }

    #[test]
    fn a_cut_may_keep_nothing() {
        let cut = Update { kind: UpdateKind::Cut, ..Update::EMPTY };
        assert_eq!(decode_descriptor(&encoded(&cut)), Ok(cut));
    }

    #[test]
    #[should_panic(expected = "no site would accept")]
    fn an_invalid_update_is_not_written() {
        encoded(&Update { count: 0, ..WRITE });
    }
}
