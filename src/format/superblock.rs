//! The superblock: where replay starts. Two slots, written alternately, so that a torn write leaves the other one.

use crate::base::{
    BLOCK_BYTES, Generation, GroupId, HISTORY_MAX, SiteId, UpdateNumber, VOLUMES_MAX, VolumeSizes,
};
use crate::format::bytes::{array_at, crc_around, nonzero_in, put, u16_at, u32_at, u64_at, u128_at};
use crate::format::history::{HISTORY_ENTRY_BYTES, History, HistoryError};
use crate::format::journal::Digest;
use crate::format::wire::Role;

/// Slots, at journal blocks 0 and 1. A superblock goes to slot `sequence % SUPERBLOCK_SLOTS`.
pub const SUPERBLOCK_SLOTS: u64 = 2;

/// The first block of the ring of batches; it ends where the journal ends.
pub const RING_FIRST_BLOCK: u64 = SUPERBLOCK_SLOTS;

/// The first eight bytes of a superblock.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"LSTPSUPR";
pub const SUPERBLOCK_VERSION: u16 = 2;
/// Of a superblock that says of a volume that hosts see less than is laid out: a lockstep that does not know of that would show all of it.
pub const SUPERBLOCK_VERSION_WITH_ROOM: u16 = 3;

/// Where a batch is, or will be, in the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalPosition {
    /// The batch's header block, counted from the start of the journal.
    pub block: u64,
    /// The batch's sequence.
    pub sequence: u64,
    /// Digest of the batch before it.
    pub previous: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub group: GroupId,
    pub site: SiteId,
    /// Counts superblocks written; the higher of the two slots is in force.
    pub sequence: u64,
    /// The journal's size, superblock slots included.
    pub journal_blocks: u64,
    /// Blocks of each volume, in the group's order; zero beyond `volume_count`.
    pub volumes: [u64; VOLUMES_MAX],
    pub volume_count: usize,
    /// What hosts see of them: the rest is room that they are extended into.
    pub sizes: VolumeSizes,
    /// Everything up to here is durable in the volumes.
    pub checkpoint: UpdateNumber,
    /// The generation of the update at `checkpoint`.
    pub checkpoint_generation: Generation,
    /// The first batch that replay reads.
    pub position: JournalPosition,
    pub known_durable: UpdateNumber,
    pub settled: UpdateNumber,
    /// Whether this site acknowledged alone when this was written.
    pub solo: bool,
    /// What this site was when this was written, by what was durable in its journal.
    pub role: Role,
    /// How the primary of the checkpoint's generation left it, if it did: with the update at `checkpoint`.
    pub left: Option<Left>,
    /// This site's third, if that took over and its generation is not in this site's history. A lockstep that does not know of this refuses
    /// such a superblock: it would serve hosts beside the third.
    pub heir: Option<Heir>,
    pub history: History,
}

/// A third that took over from the pair whose third it was, as one of the pair has met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heir {
    /// The one that it opened.
    pub generation: Generation,
    /// The last update that both have; it is settled, so no site of the pair ever drops it.
    pub common: UpdateNumber,
    /// The site's own, if it was primary and stood down for the third: it serves nobody before it has opened another one.
    pub stood_down_in: Option<Generation>,
}

/// How a primary ends its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nobody is primary until somebody is promoted.
    SteppedDown,
    /// Its peer opens the next one.
    HandedOver,
    /// What it has that a site with this generation in its history has not is to go.
    GaveWay(Generation),
}

impl Left {
    fn code(self) -> u8 {
        match self {
            Left::SteppedDown => 1,
            Left::HandedOver => 2,
            Left::GaveWay(_) => 3,
        }
    }
}

/// Why a block is not a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    #[error("superblock magic {found:02x?}, expected {SUPERBLOCK_MAGIC:02x?}")]
    Magic { found: [u8; 8] },
    #[error("superblock version {found}, expected {SUPERBLOCK_VERSION} or {SUPERBLOCK_VERSION_WITH_ROOM}")]
    Version { found: u16 },
    #[error("superblock crc {found:#010x}, expected {expected:#010x}")]
    Crc { expected: u32, found: u32 },
    #[error("superblock's solo flag is {found}, expected 0 or 1")]
    Solo { found: u8 },
    #[error("superblock's role is {found}, expected 1, 2 or 3")]
    Role { found: u8 },
    #[error("superblock says that its generation was left in way {found}, expected 0 to 3")]
    Left { found: u8 },
    #[error("superblock says that its site gave way to generation {found}, expected {expected}")]
    GaveWay { expected: &'static str, found: u64 },
    #[error("superblock says how its site stands to a third that took over, and not which that is")]
    NoHeir,
    #[error("superblock lists {found} volumes, expected at most {VOLUMES_MAX}")]
    VolumeCount { found: usize },
    #[error("superblock's volume {index} has 0 blocks, expected 1 or more")]
    VolumeEmpty { index: usize },
    #[error("superblock's volume {index} of {blocks} blocks has room of {found}, expected less")]
    Room { index: usize, blocks: u64, found: u64 },
    #[error("superblock version {SUPERBLOCK_VERSION_WITH_ROOM}, and no volume has room")]
    NoRoom,
    #[error("superblock's batch position is block {found}, expected {RING_FIRST_BLOCK} to below {end}")]
    Position { end: u64, found: u64 },
    #[error("superblock has {lower_name} {lower}, expected at most its {upper_name} {upper}")]
    Order { lower_name: &'static str, lower: UpdateNumber, upper_name: &'static str, upper: UpdateNumber },
    #[error("superblock: {0}")]
    History(#[from] HistoryError),
    #[error("reserved byte {offset} of a superblock is {found:#04x}, expected 0")]
    Reserved { offset: usize, found: u8 },
}

/// Why a journal has no superblock to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    #[error("neither superblock slot is valid: the first: {first}; the second: {second}")]
    NoneValid { first: SlotError, second: SlotError },
    #[error(
        "the superblock slots disagree on {field}: {first} and {second}; the journal was formatted over another, \
         and not to the end"
    )]
    Disagree { field: &'static str, first: u128, second: u128 },
}

const VERSION: usize = 8;
const SITE: usize = 10;
const SOLO: usize = 12;
const VOLUME_COUNT: usize = 13;
const HISTORY_COUNT: usize = 14;
const ROLE: usize = 15;
const GROUP: usize = 16;
const SEQUENCE: usize = 32;
const JOURNAL_BLOCKS: usize = 40;
const CHECKPOINT: usize = 48;
const CHECKPOINT_GENERATION: usize = 56;
const POSITION_BLOCK: usize = 64;
const POSITION_SEQUENCE: usize = 72;
const POSITION_PREVIOUS: usize = 80;
const KNOWN_DURABLE: usize = 88;
const SETTLED: usize = 96;
const LEFT: usize = 104;
const RESERVED_A: usize = 105;
const GAVE_WAY_TO: usize = 112;
const HEIR: usize = 120;
const HEIR_COMMON: usize = 128;
const STOOD_DOWN_IN: usize = 136;
const RESERVED_B: usize = 144;
const CRC: usize = 252;
const VOLUMES: usize = 256;
const HISTORY: usize = VOLUMES + 8 * VOLUMES_MAX;
/// Blocks of each volume that hosts do not see: zeros before version 3.
const ROOM: usize = HISTORY + HISTORY_ENTRY_BYTES * HISTORY_MAX;
const RESERVED_C: usize = ROOM + 8 * VOLUMES_MAX;

const _: () = assert!(RESERVED_C <= BLOCK_BYTES);

impl Superblock {
    /// A site that holds nothing yet; `sequence` picks its slot. At most `VOLUMES_MAX` volumes, none of them empty.
    pub fn formatted(
        group: GroupId,
        site: SiteId,
        role: Role,
        sequence: u64,
        journal_blocks: u64,
        volume_blocks: &[u64],
    ) -> Superblock {
        let mut volumes = [0; VOLUMES_MAX];
        volumes[..volume_blocks.len()].copy_from_slice(volume_blocks);
        Superblock {
            group,
            site,
            sequence,
            journal_blocks,
            volumes,
            volume_count: volume_blocks.len(),
            sizes: VolumeSizes::of(volume_blocks.iter().copied()),
            checkpoint: UpdateNumber::NONE,
            checkpoint_generation: Generation::NONE,
            position: JournalPosition { block: RING_FIRST_BLOCK, sequence: 1, previous: Digest::NONE },
            known_durable: UpdateNumber::NONE,
            settled: UpdateNumber::NONE,
            solo: false,
            role,
            left: None,
            heir: None,
            history: History::EMPTY,
        }
    }

    /// The same of a site whose volumes hold contents from before: its stream begins with the opening of this generation, which nobody else
    /// has, and which stands for them. With a peer it is alone, so that it serves them, until the peer has been copied all of it.
    pub fn adopting(mut self, generation: Generation, alone: bool) -> Superblock {
        let first = UpdateNumber(1);
        (self.checkpoint, self.known_durable, self.settled) = (first, first, first);
        self.checkpoint_generation = generation;
        self.history.push(generation, first);
        (self.role, self.solo) = (Role::Primary, alone);
        self
    }

    /// Blocks of each volume that hosts do not see.
    fn room(&self) -> impl Iterator<Item = u64> + '_ {
        self.volume_blocks().iter().zip(self.sizes.iter()).map(|(blocks, size)| blocks.saturating_sub(size))
    }

    /// The slot this superblock is written to: a block of the journal.
    pub fn slot(&self) -> u64 {
        self.sequence % SUPERBLOCK_SLOTS
    }

    /// Blocks of each volume, in the group's order.
    pub fn volume_blocks(&self) -> &[u64] {
        &self.volumes[..self.volume_count]
    }

    fn check(&self) -> Result<(), SlotError> {
        if self.volume_count > VOLUMES_MAX {
            return Err(SlotError::VolumeCount { found: self.volume_count });
        }
        if let Some(index) = self.volume_blocks().iter().position(|&blocks| blocks == 0) {
            return Err(SlotError::VolumeEmpty { index });
        }
        for (index, (&blocks, found)) in self.volume_blocks().iter().zip(self.room()).enumerate() {
            if found >= blocks {
                return Err(SlotError::Room { index, blocks, found });
            }
        }
        if !(RING_FIRST_BLOCK..self.journal_blocks).contains(&self.position.block) {
            return Err(SlotError::Position { end: self.journal_blocks, found: self.position.block });
        }
        // INV-4: only what is settled reaches a volume, and only what is durable here can be settled.
        for (lower_name, lower, upper_name, upper) in [
            ("checkpoint", self.checkpoint, "settled number", self.settled),
            ("settled number", self.settled, "known durable number", self.known_durable),
        ] {
            if lower > upper {
                return Err(SlotError::Order { lower_name, lower, upper_name, upper });
            }
        }
        Ok(())
    }

    /// Panics if the superblock contradicts itself, since a site that starts from it would refuse it.
    pub fn encode(&self, out: &mut [u8; BLOCK_BYTES]) {
        if let Err(error) = self.check() {
            panic!("a superblock that no start would accept was about to be written: {error}");
        }
        out.fill(0);
        put(out, 0, &SUPERBLOCK_MAGIC);
        let version = match self.room().all(|blocks| blocks == 0) {
            true => SUPERBLOCK_VERSION,
            false => SUPERBLOCK_VERSION_WITH_ROOM,
        };
        put(out, VERSION, &version.to_le_bytes());
        put(out, SITE, &self.site.0.to_le_bytes());
        out[SOLO] = u8::from(self.solo);
        out[VOLUME_COUNT] = self.volume_count as u8;
        out[HISTORY_COUNT] = self.history.len() as u8;
        out[ROLE] = self.role as u8;
        out[LEFT] = self.left.map_or(0, Left::code);
        if let Some(Left::GaveWay(generation)) = self.left {
            put(out, GAVE_WAY_TO, &generation.0.to_le_bytes());
        }
        if let Some(Heir { generation, common, stood_down_in }) = self.heir {
            put(out, HEIR, &generation.0.to_le_bytes());
            put(out, HEIR_COMMON, &common.0.to_le_bytes());
            put(out, STOOD_DOWN_IN, &stood_down_in.unwrap_or(Generation::NONE).0.to_le_bytes());
        }
        put(out, GROUP, &self.group.0.to_le_bytes());
        put(out, SEQUENCE, &self.sequence.to_le_bytes());
        put(out, JOURNAL_BLOCKS, &self.journal_blocks.to_le_bytes());
        put(out, CHECKPOINT, &self.checkpoint.0.to_le_bytes());
        put(out, CHECKPOINT_GENERATION, &self.checkpoint_generation.0.to_le_bytes());
        put(out, POSITION_BLOCK, &self.position.block.to_le_bytes());
        put(out, POSITION_SEQUENCE, &self.position.sequence.to_le_bytes());
        put(out, POSITION_PREVIOUS, &self.position.previous.0.to_le_bytes());
        put(out, KNOWN_DURABLE, &self.known_durable.0.to_le_bytes());
        put(out, SETTLED, &self.settled.0.to_le_bytes());
        for (index, blocks) in self.volume_blocks().iter().enumerate() {
            put(out, VOLUMES + 8 * index, &blocks.to_le_bytes());
        }
        self.history.encode(&mut out[HISTORY..ROOM]);
        for (index, blocks) in self.room().enumerate() {
            put(out, ROOM + 8 * index, &blocks.to_le_bytes());
        }
        let crc = crc_around(out, CRC);
        put(out, CRC, &crc.to_le_bytes());
    }

    pub fn decode(bytes: &[u8; BLOCK_BYTES]) -> Result<Superblock, SlotError> {
        let magic = array_at(bytes, 0);
        if magic != SUPERBLOCK_MAGIC {
            return Err(SlotError::Magic { found: magic });
        }
        let version = u16_at(bytes, VERSION);
        if !(SUPERBLOCK_VERSION..=SUPERBLOCK_VERSION_WITH_ROOM).contains(&version) {
            return Err(SlotError::Version { found: version });
        }
        let (expected, found) = (crc_around(bytes, CRC), u32_at(bytes, CRC));
        if expected != found {
            return Err(SlotError::Crc { expected, found });
        }
        let solo = match bytes[SOLO] {
            0 => false,
            1 => true,
            found => return Err(SlotError::Solo { found }),
        };
        let role = Role::from_code(bytes[ROLE]).ok_or(SlotError::Role { found: bytes[ROLE] })?;
        let gave_way_to = u64_at(bytes, GAVE_WAY_TO);
        let left = match bytes[LEFT] {
            0 => None,
            1 => Some(Left::SteppedDown),
            2 => Some(Left::HandedOver),
            3 if gave_way_to == 0 => {
                return Err(SlotError::GaveWay { expected: "one that was opened", found: gave_way_to });
            }
            3 => Some(Left::GaveWay(Generation(gave_way_to))),
            found => return Err(SlotError::Left { found }),
        };
        if gave_way_to != 0 && !matches!(left, Some(Left::GaveWay(_))) {
            return Err(SlotError::GaveWay { expected: "0", found: gave_way_to });
        }
        let named =
            |at: usize| Some(Generation(u64_at(bytes, at))).filter(|named| *named != Generation::NONE);
        let (heir, stood_down_in) = (named(HEIR), named(STOOD_DOWN_IN));
        let common = UpdateNumber(u64_at(bytes, HEIR_COMMON));
        let heir = heir.map(|generation| Heir { generation, common, stood_down_in });
        if heir.is_none() && (common > UpdateNumber::NONE || stood_down_in.is_some()) {
            return Err(SlotError::NoHeir);
        }
        let volume_count = usize::from(bytes[VOLUME_COUNT]);
        if volume_count > VOLUMES_MAX {
            return Err(SlotError::VolumeCount { found: volume_count });
        }
        let generations = usize::from(bytes[HISTORY_COUNT]);
        let history_end = HISTORY + generations.min(HISTORY_MAX) * HISTORY_ENTRY_BYTES;
        let history = History::decode(&bytes[HISTORY..history_end], generations)?;
        for (from, to) in [
            (RESERVED_A, GAVE_WAY_TO),
            (RESERVED_B, CRC),
            (VOLUMES + 8 * volume_count, HISTORY),
            (history_end, ROOM),
            (
                if version < SUPERBLOCK_VERSION_WITH_ROOM { ROOM } else { ROOM + 8 * volume_count },
                BLOCK_BYTES,
            ),
        ] {
            if let Some(offset) = nonzero_in(bytes, from, to) {
                return Err(SlotError::Reserved { offset, found: bytes[offset] });
            }
        }
        for index in 0..volume_count {
            let (blocks, found) = (u64_at(bytes, VOLUMES + 8 * index), u64_at(bytes, ROOM + 8 * index));
            if found > 0 && found >= blocks {
                return Err(SlotError::Room { index, blocks, found });
            }
        }
        let sizes = (0..volume_count)
            .map(|index| u64_at(bytes, VOLUMES + 8 * index) - u64_at(bytes, ROOM + 8 * index));
        let superblock = Superblock {
            group: GroupId(u128_at(bytes, GROUP)),
            site: SiteId(u16_at(bytes, SITE)),
            sequence: u64_at(bytes, SEQUENCE),
            journal_blocks: u64_at(bytes, JOURNAL_BLOCKS),
            volumes: std::array::from_fn(|index| u64_at(bytes, VOLUMES + 8 * index)),
            volume_count,
            sizes: VolumeSizes::of(sizes),
            checkpoint: UpdateNumber(u64_at(bytes, CHECKPOINT)),
            checkpoint_generation: Generation(u64_at(bytes, CHECKPOINT_GENERATION)),
            position: JournalPosition {
                block: u64_at(bytes, POSITION_BLOCK),
                sequence: u64_at(bytes, POSITION_SEQUENCE),
                previous: Digest(u64_at(bytes, POSITION_PREVIOUS)),
            },
            known_durable: UpdateNumber(u64_at(bytes, KNOWN_DURABLE)),
            settled: UpdateNumber(u64_at(bytes, SETTLED)),
            solo,
            role,
            left,
            heir,
            history,
        };
        if version == SUPERBLOCK_VERSION_WITH_ROOM && superblock.room().all(|blocks| blocks == 0) {
            return Err(SlotError::NoRoom);
        }
        superblock.check()?;
        Ok(superblock)
    }
}

/// The superblock in force, of the two slots' decodings: the valid one with the higher sequence.
pub fn newest_of(
    first: Result<Superblock, SlotError>,
    second: Result<Superblock, SlotError>,
) -> Result<Superblock, SuperblockError> {
    newest_if(first, second, |first, second| {
        let (first, second) = (first.journal_blocks, second.journal_blocks);
        [("the journal's blocks", u128::from(first), u128::from(second))]
    })
}

/// The same of a journal whose size may have been changed in one of the slots only.
pub fn newest_of_any_size(
    first: Result<Superblock, SlotError>,
    second: Result<Superblock, SlotError>,
) -> Result<Superblock, SuperblockError> {
    newest_if(first, second, |_, _| [])
}

/// Both must agree on what no life of a site changes, and on these fields.
fn newest_if<const N: usize>(
    first: Result<Superblock, SlotError>,
    second: Result<Superblock, SlotError>,
    others: impl Fn(&Superblock, &Superblock) -> [(&'static str, u128, u128); N],
) -> Result<Superblock, SuperblockError> {
    let (first, second) = match (first, second) {
        (Ok(first), Ok(second)) => (first, second),
        (Ok(valid), Err(_)) | (Err(_), Ok(valid)) => return Ok(valid),
        (Err(first), Err(second)) => return Err(SuperblockError::NoneValid { first, second }),
    };
    let whose = [
        ("the group", first.group.0, second.group.0),
        ("the site", u128::from(first.site.0), u128::from(second.site.0)),
    ];
    for (field, first, second) in whose.into_iter().chain(others(&first, &second)) {
        if first != second {
            return Err(SuperblockError::Disagree { field, first, second });
        }
    }
    Ok(if second.sequence > first.sequence { second } else { first })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::history::tests::any_history;
    use proptest::prelude::*;

    fn any_superblock() -> impl Strategy<Value = Superblock> {
        let volumes = prop::collection::vec(1..=u64::MAX, 0..=VOLUMES_MAX);
        let ring = (any::<u64>(), 3..=u64::MAX);
        (any::<(u128, u16, u64, [u64; 3], [bool; 4])>(), volumes, ring, any::<[u64; 3]>(), any_history())
            .prop_map(
                |(
                    (group, site, sequence, position, [solo, primary, leaves, hands_over]),
                    sizes,
                    (block, journal_blocks),
                    mut numbers,
                    history,
                )| {
                    numbers.sort_unstable();
                    let mut volumes = [0; VOLUMES_MAX];
                    volumes[..sizes.len()].copy_from_slice(&sizes);
                    let shown = |(place, &blocks): (usize, &u64)| match group >> place & 1 {
                        0 => blocks,
                        _ => blocks.div_ceil(3),
                    };
                    Superblock {
                        sizes: VolumeSizes::of(sizes.iter().enumerate().map(shown)),
                        group: GroupId(group),
                        site: SiteId(site),
                        sequence,
                        journal_blocks,
                        volumes,
                        volume_count: sizes.len(),
                        checkpoint: UpdateNumber(numbers[0]),
                        checkpoint_generation: Generation(position[0]),
                        position: JournalPosition {
                            block: RING_FIRST_BLOCK + block % (journal_blocks - RING_FIRST_BLOCK),
                            sequence: position[1],
                            previous: Digest(position[2]),
                        },
                        settled: UpdateNumber(numbers[1]),
                        known_durable: UpdateNumber(numbers[2]),
                        solo,
                        role: if primary { Role::Primary } else { Role::Secondary },
                        left: leaves.then_some(match (hands_over, position[0] % 2) {
                            (true, _) => Left::HandedOver,
                            (false, 0) => Left::SteppedDown,
                            (false, _) => Left::GaveWay(Generation(position[0])),
                        }),
                        heir: (position[1] % 2 > 0).then_some(Heir {
                            generation: Generation(position[1]),
                            common: UpdateNumber(numbers[1]),
                            stood_down_in: Some(Generation(position[2])).filter(|it| it.0 % 2 > 0),
                        }),
                        history,
                    }
                },
            )
    }

    fn encoded(superblock: &Superblock) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0xaa; BLOCK_BYTES];
        superblock.encode(&mut bytes);
        bytes
    }

    fn with_crc(mut bytes: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
        let crc = crc_around(&bytes, CRC);
        put(&mut bytes, CRC, &crc.to_le_bytes());
        bytes
    }

    fn small(sequence: u64) -> Superblock {
        let mut volumes = [0; VOLUMES_MAX];
        volumes[..2].copy_from_slice(&[1000, 2000]);
        let mut history = History::EMPTY;
        history.push(Generation(1 << 16), UpdateNumber(1));
        Superblock {
            group: GroupId(11),
            site: SiteId(1),
            sequence,
            journal_blocks: 4096,
            volumes,
            volume_count: 2,
            sizes: VolumeSizes::of([1000, 2000].into_iter()),
            checkpoint: UpdateNumber(5),
            checkpoint_generation: Generation(1 << 16),
            position: JournalPosition { block: 40, sequence: 6, previous: Digest(99) },
            known_durable: UpdateNumber(9),
            settled: UpdateNumber(7),
            solo: false,
            role: Role::Primary,
            left: None,
            heir: None,
            history,
        }
    }

    proptest! {
        #[test]
        fn encoding_comes_back(superblock in any_superblock()) {
            prop_assert_eq!(Superblock::decode(&encoded(&superblock)), Ok(superblock));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(
            superblock in any_superblock(),
            changes in prop::collection::vec((SITE..BLOCK_BYTES, any::<u8>()), 1..4),
        ) {
            let mut bytes = encoded(&superblock);
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            let bytes = with_crc(bytes);
            if let Ok(decoded) = Superblock::decode(&bytes) {
                prop_assert_eq!(encoded(&decoded), bytes);
            }
        }

        #[test]
        fn arbitrary_fields_never_panic(tail in prop::collection::vec(any::<u8>(), BLOCK_BYTES - SITE)) {
            let mut bytes = encoded(&small(1));
            put(&mut bytes, SITE, &tail);
            let _ = Superblock::decode(&bytes);
            let _ = Superblock::decode(&with_crc(bytes));
        }
    }

    #[test]
    fn room_is_what_hosts_do_not_see_and_has_a_version_of_its_own() {
        let roomy = Superblock { sizes: VolumeSizes::of([1000, 500].into_iter()), ..small(1) };
        let bytes = encoded(&roomy);
        assert_eq!((bytes[VERSION], u64_at(&bytes, ROOM), u64_at(&bytes, ROOM + 8)), (3, 0, 1500));
        assert_eq!(encoded(&small(1))[VERSION], 2, "what has none is what it was before");
        let refused = |at: usize, field: &[u8]| {
            let mut bytes = encoded(&roomy);
            put(&mut bytes, at, field);
            Superblock::decode(&with_crc(bytes)).expect_err("the field is out of bounds")
        };
        let whole = 1000u64.to_le_bytes();
        assert_eq!(refused(ROOM, &whole), SlotError::Room { index: 0, blocks: 1000, found: 1000 });
        assert_eq!(refused(VERSION, &[2]), SlotError::Reserved { offset: ROOM + 8, found: 0xdc });
        assert!(matches!(refused(ROOM + 16, &[1]), SlotError::Reserved { .. }));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let bytes = encoded(&small(1));
        assert!(Superblock::decode(&bytes).is_ok());
        for bit in 0..BLOCK_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&flipped).is_err(), "bit {bit} of a superblock");
        }
    }

    #[test]
    fn fields_are_checked_though_the_crc_is_right() {
        let refused = |at: usize, field: &[u8]| {
            let mut bytes = encoded(&small(1));
            put(&mut bytes, at, field);
            Superblock::decode(&with_crc(bytes)).expect_err("the field is out of bounds")
        };
        assert_eq!(refused(VERSION, &[1]), SlotError::Version { found: 1 });
        assert_eq!(refused(VERSION, &[4]), SlotError::Version { found: 4 });
        assert_eq!(refused(VERSION, &[3]), SlotError::NoRoom);
        assert_eq!(refused(ROOM, &[1]), SlotError::Reserved { offset: ROOM, found: 1 });
        assert_eq!(refused(SOLO, &[2]), SlotError::Solo { found: 2 });
        assert_eq!(refused(ROLE, &[0]), SlotError::Role { found: 0 });
        assert_eq!(refused(VOLUME_COUNT, &[33]), SlotError::VolumeCount { found: 33 });
        assert_eq!(refused(VOLUME_COUNT, &[3]), SlotError::VolumeEmpty { index: 2 });
        assert!(matches!(refused(VOLUME_COUNT, &[1]), SlotError::Reserved { .. }));
        assert_eq!(refused(HISTORY_COUNT, &[65]), SlotError::History(HistoryError::TooLong { found: 65 }));
        assert!(matches!(refused(HISTORY_COUNT, &[2]), SlotError::History(HistoryError::Generation { .. })));
        assert_eq!(refused(POSITION_BLOCK, &[1]), SlotError::Position { end: 4096, found: 1 });
        assert_eq!(refused(JOURNAL_BLOCKS, &[40, 0]), SlotError::Position { end: 40, found: 40 });
        assert!(matches!(refused(CHECKPOINT, &[8]), SlotError::Order { lower_name: "checkpoint", .. }));
        assert!(matches!(refused(SETTLED, &[10]), SlotError::Order { lower_name: "settled number", .. }));
        assert_eq!(refused(4095, &[1]), SlotError::Reserved { offset: 4095, found: 1 });
        assert_eq!(refused(LEFT, &[4]), SlotError::Left { found: 4 });
        assert!(matches!(refused(LEFT, &[3]), SlotError::GaveWay { found: 0, .. }));
        assert!(matches!(refused(GAVE_WAY_TO, &[9]), SlotError::GaveWay { expected: "0", found: 9 }));
    }

    #[test]
    fn the_newer_valid_slot_is_in_force() {
        let invalid = || Superblock::decode(&[0; BLOCK_BYTES]);
        let error = invalid().expect_err("a block of zeros");
        assert_eq!(newest_of(Ok(small(4)), Ok(small(5))), Ok(small(5)));
        assert_eq!(newest_of(Ok(small(6)), Ok(small(5))), Ok(small(6)));
        assert_eq!(newest_of(invalid(), Ok(small(5))), Ok(small(5)));
        assert_eq!(newest_of(Ok(small(4)), invalid()), Ok(small(4)));
        assert_eq!(
            newest_of(invalid(), invalid()),
            Err(SuperblockError::NoneValid { first: error, second: error })
        );
        let other = Superblock { group: GroupId(12), ..small(9) };
        assert_eq!(
            newest_of(Ok(small(4)), Ok(other)),
            Err(SuperblockError::Disagree { field: "the group", first: 11, second: 12 })
        );
    }

    #[test]
    #[should_panic(expected = "no start would accept")]
    fn a_checkpoint_beyond_settled_is_not_written() {
        encoded(&Superblock { checkpoint: UpdateNumber(8), ..small(1) });
    }
}
