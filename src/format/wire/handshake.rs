//! The two frames that begin or refuse a connection. Their bodies fit a page.

use crate::base::{
    BLOCK_BYTES, Generation, GroupId, HISTORY_MAX, NAME_BYTES_MAX, NUMBER_MAX, Nanos, SiteId, UpdateNumber,
    VOLUMES_MAX, VolumeSizes,
};
use crate::format::bytes::{nonzero_in, put, u16_at, u32_at, u64_at, u128_at};
use crate::format::history::{HISTORY_ENTRY_BYTES, History};
use crate::format::text::Text;
use crate::format::wire::{AckLevel, DifferentialBy, FRAME_BODY_BYTES_MAX, Role, WireError};

pub type VolumeName = Text<NAME_BYTES_MAX>;

/// A volume as both sites must have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HelloVolume {
    pub name: VolumeName,
    /// Blocks that are laid out for it.
    pub blocks: u64,
    /// Those behind what hosts see, which it can be extended into.
    pub room: u64,
}

/// The first frame in both directions: what a site is, and how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Protocol versions the sender speaks, both ends included.
    pub protocol_min: u16,
    pub protocol_max: u16,
    pub group: GroupId,
    pub site: SiteId,
    pub role: Role,
    pub ack: AckLevel,
    pub block_bytes: u32,
    /// In the group's order; default beyond `volume_count`.
    pub volumes: [HelloVolume; VOLUMES_MAX],
    pub volume_count: usize,
    pub history: History,
    /// The newest update the sender holds, in memory at least, and the generation it belongs to.
    pub last: UpdateNumber,
    pub last_generation: Generation,
    pub durable: UpdateNumber,
    pub settled: UpdateNumber,
    pub checkpoint: UpdateNumber,
    /// What the sender's journal has room for after `last`, headers included: admission reserves space against the smaller
    /// site's (INV-12).
    pub journal_free_blocks: u64,
    /// Payload blocks of unsettled updates that the sender can hold beside what it receives into: the peer sends no more
    /// ahead of what it has told to be settled (INV-12).
    pub window_blocks: u64,
    /// Blocks of the sender's differential volume: one site gives the slots, so both have the same.
    pub differential_blocks: u64,
    /// Updates up to here the sender may have acknowledged alone; what is after it, with its peer or not at all.
    pub alone_upto: UpdateNumber,
    /// The sender has a mark for every block and slot that an update after this one changed; `u64::MAX` if not.
    pub marks_after: UpdateNumber,
    /// What the sender has that a site with this generation in its history has not is to go; `NONE` if it gives way to nobody.
    pub gives_way_to: Generation,
    /// How the sender expects old blocks to travel, or sends them.
    pub differential: DifferentialBy,
    /// Whether the sender acknowledged alone, and its peer has not caught up since.
    pub solo: bool,
    /// Whether the sender serves hosts.
    pub serving: bool,
    /// Whether it acknowledges without its peer, or is about to.
    pub alone: bool,
    /// Whether losing its peer makes its hosts wait, rather than letting it go on alone.
    pub suspends: bool,
    /// For how long an acknowledgement of the sender's, as a secondary, is a promise not to take over unasked. Whole microseconds.
    pub read_lease: Nanos,
}

const PROTOCOL_MIN: usize = 0;
const PROTOCOL_MAX: usize = 2;
const SITE: usize = 4;
const ROLE: usize = 6;
const ACK: usize = 7;
const BLOCK_SIZE: usize = 8;
const SOLO: usize = 12;
const SERVING: usize = 13;
const VOLUME_COUNT: usize = 14;
const HISTORY_COUNT: usize = 15;
const GROUP: usize = 16;
const LAST: usize = 32;
const LAST_GENERATION: usize = 40;
const DURABLE: usize = 48;
const SETTLED: usize = 56;
const CHECKPOINT: usize = 64;
const JOURNAL_FREE_BLOCKS: usize = 72;
const WINDOW_BLOCKS: usize = 80;
const DIFFERENTIAL_BLOCKS: usize = 88;
const ALONE_UPTO: usize = 96;
const DIFFERENTIAL: usize = 104;
const ALONE: usize = 105;
const SUSPENDS: usize = 106;
const RESERVED: usize = 107;
const READ_LEASE: usize = 108;
const MARKS_AFTER: usize = 112;
const GIVES_WAY_TO: usize = 120;
const VOLUMES: usize = 128;

/// Of one volume's entry: blocks, length of the name, room (7 bytes; zeros before protocol 19), name.
const VOLUME_BYTES: usize = 16 + NAME_BYTES_MAX;
const NAME_LENGTH: usize = 8;
const ROOM: usize = NAME_LENGTH + 1;
const NAME: usize = 16;

/// Bytes of the longest encoded hello.
pub const HELLO_BYTES_MAX: usize = VOLUMES + VOLUMES_MAX * VOLUME_BYTES + HISTORY_MAX * HISTORY_ENTRY_BYTES;

const _: () = assert!(HELLO_BYTES_MAX <= FRAME_BODY_BYTES_MAX);

impl Hello {
    /// The volumes in the group's order.
    pub fn volumes(&self) -> &[HelloVolume] {
        &self.volumes[..self.volume_count]
    }

    /// What the sender's hosts see of each.
    pub fn sizes(&self) -> VolumeSizes {
        VolumeSizes::of(self.volumes().iter().map(|volume| volume.blocks - volume.room))
    }

    /// Writes the body of a hello frame and returns its length, at most [`HELLO_BYTES_MAX`].
    ///
    /// Panics if `volume_count` is above [`VOLUMES_MAX`], or a volume has more room than 7 bytes say.
    pub fn encode(&self, out: &mut [u8; BLOCK_BYTES]) -> usize {
        let history_at = VOLUMES + self.volumes().len() * VOLUME_BYTES;
        let length = history_at + self.history.encoded_bytes();
        out[..length].fill(0);
        put(out, PROTOCOL_MIN, &self.protocol_min.to_le_bytes());
        put(out, PROTOCOL_MAX, &self.protocol_max.to_le_bytes());
        put(out, SITE, &self.site.0.to_le_bytes());
        out[ROLE] = self.role as u8;
        out[ACK] = self.ack as u8;
        put(out, BLOCK_SIZE, &self.block_bytes.to_le_bytes());
        out[SOLO] = u8::from(self.solo);
        out[SERVING] = u8::from(self.serving);
        out[VOLUME_COUNT] = self.volume_count as u8;
        out[HISTORY_COUNT] = self.history.len() as u8;
        put(out, GROUP, &self.group.0.to_le_bytes());
        put(out, LAST, &self.last.0.to_le_bytes());
        put(out, LAST_GENERATION, &self.last_generation.0.to_le_bytes());
        put(out, DURABLE, &self.durable.0.to_le_bytes());
        put(out, SETTLED, &self.settled.0.to_le_bytes());
        put(out, CHECKPOINT, &self.checkpoint.0.to_le_bytes());
        put(out, JOURNAL_FREE_BLOCKS, &self.journal_free_blocks.to_le_bytes());
        put(out, WINDOW_BLOCKS, &self.window_blocks.to_le_bytes());
        put(out, DIFFERENTIAL_BLOCKS, &self.differential_blocks.to_le_bytes());
        put(out, ALONE_UPTO, &self.alone_upto.0.to_le_bytes());
        out[DIFFERENTIAL] = self.differential as u8;
        out[ALONE] = u8::from(self.alone);
        out[SUSPENDS] = u8::from(self.suspends);
        let read_lease_us = u32::try_from(self.read_lease.0 / 1000).unwrap_or(u32::MAX);
        put(out, READ_LEASE, &read_lease_us.to_le_bytes());
        put(out, MARKS_AFTER, &self.marks_after.0.to_le_bytes());
        put(out, GIVES_WAY_TO, &self.gives_way_to.0.to_le_bytes());
        for (volume, entry) in self.volumes().iter().zip(out[VOLUMES..].chunks_exact_mut(VOLUME_BYTES)) {
            put(entry, 0, &volume.blocks.to_le_bytes());
            entry[NAME_LENGTH] = volume.name.len() as u8;
            let room = volume.room.to_le_bytes();
            assert!(room[NAME - ROOM] == 0, "a volume with room of {} blocks", volume.room);
            put(entry, ROOM, &room[..NAME - ROOM]);
            put(entry, NAME, volume.name.as_bytes());
        }
        self.history.encode(&mut out[history_at..length]);
        length
    }

    /// The hello in a frame's body. Whether it agrees with this site's own configuration is the group's to judge.
    pub fn decode(bytes: &[u8]) -> Result<Hello, WireError> {
        if bytes.len() < VOLUMES {
            return Err(WireError::Length { frame: "Hello", expected: VOLUMES, found: bytes.len() });
        }
        let volume_count = usize::from(bytes[VOLUME_COUNT]);
        if volume_count > VOLUMES_MAX {
            return field("Hello's volume count", "at most 32", volume_count as u64);
        }
        let generations = usize::from(bytes[HISTORY_COUNT]);
        let history_at = VOLUMES + volume_count * VOLUME_BYTES;
        let expected = history_at + generations * HISTORY_ENTRY_BYTES;
        if bytes.len() != expected {
            return Err(WireError::Length { frame: "Hello", expected, found: bytes.len() });
        }
        let Some(role) = Role::from_code(bytes[ROLE]) else {
            return field("Hello's role", "1, 2 or 3", u64::from(bytes[ROLE]));
        };
        let ack = match bytes[ACK] {
            1 => AckLevel::Received,
            2 => AckLevel::Journaled,
            3 => AckLevel::Durable,
            4 => AckLevel::Applied,
            found => return field("Hello's acknowledgement level", "1 to 4", u64::from(found)),
        };
        let differential = match bytes[DIFFERENTIAL] {
            1 => DifferentialBy::Reference,
            2 => DifferentialBy::Value,
            found => return field("Hello's differential data", "1 or 2", u64::from(found)),
        };
        if let Some(offset) = nonzero_in(bytes, RESERVED, READ_LEASE) {
            return Err(WireError::Reserved { frame: "Hello", offset, found: bytes[offset] });
        }
        let mut volumes = [HelloVolume::default(); VOLUMES_MAX];
        for (index, entry) in bytes[VOLUMES..history_at].chunks_exact(VOLUME_BYTES).enumerate() {
            volumes[index] = decode_volume(entry, VOLUMES + index * VOLUME_BYTES)?;
        }
        let hello = Hello {
            protocol_min: u16_at(bytes, PROTOCOL_MIN),
            protocol_max: u16_at(bytes, PROTOCOL_MAX),
            group: GroupId(u128_at(bytes, GROUP)),
            site: SiteId(u16_at(bytes, SITE)),
            role,
            ack,
            block_bytes: u32_at(bytes, BLOCK_SIZE),
            volumes,
            volume_count,
            history: History::decode(&bytes[history_at..], generations)?,
            last: UpdateNumber(u64_at(bytes, LAST)),
            last_generation: Generation(u64_at(bytes, LAST_GENERATION)),
            durable: UpdateNumber(u64_at(bytes, DURABLE)),
            settled: UpdateNumber(u64_at(bytes, SETTLED)),
            checkpoint: UpdateNumber(u64_at(bytes, CHECKPOINT)),
            journal_free_blocks: u64_at(bytes, JOURNAL_FREE_BLOCKS),
            window_blocks: u64_at(bytes, WINDOW_BLOCKS),
            differential_blocks: u64_at(bytes, DIFFERENTIAL_BLOCKS),
            alone_upto: UpdateNumber(u64_at(bytes, ALONE_UPTO)),
            differential,
            marks_after: UpdateNumber(u64_at(bytes, MARKS_AFTER)),
            gives_way_to: Generation(u64_at(bytes, GIVES_WAY_TO)),
            solo: flag("Hello's solo flag", bytes[SOLO])?,
            serving: flag("Hello's serving flag", bytes[SERVING])?,
            alone: flag("Hello's flag of being alone", bytes[ALONE])?,
            suspends: flag("Hello's policy flag", bytes[SUSPENDS])?,
            read_lease: Nanos::from_micros(u64::from(u32_at(bytes, READ_LEASE))),
        };
        hello.check_order()?;
        Ok(hello)
    }

    fn check_order(&self) -> Result<(), WireError> {
        let (min, max) = (u64::from(self.protocol_min), u64::from(self.protocol_max));
        for (lower_name, lower, upper_name, upper) in [
            ("lowest protocol version", min, "highest", max),
            ("checkpoint", self.checkpoint.0, "settled number", self.settled.0),
            ("settled number", self.settled.0, "durable number", self.durable.0),
            ("durable number", self.durable.0, "last number", self.last.0),
            ("number up to which it was alone", self.alone_upto.0, "last number", self.last.0),
            ("last number", self.last.0, "most that there can be", NUMBER_MAX),
            ("generation", self.last_generation.0, "most that there can be", NUMBER_MAX),
            ("generation that it gives way to", self.gives_way_to.0, "most that there can be", NUMBER_MAX),
        ] {
            if lower > upper {
                return Err(WireError::Order { lower_name, lower, upper_name, upper });
            }
        }
        Ok(())
    }
}

fn decode_volume(entry: &[u8], entry_at: usize) -> Result<HelloVolume, WireError> {
    let length = usize::from(entry[NAME_LENGTH]);
    if length == 0 || length > NAME_BYTES_MAX {
        return field("the length of a volume's name in Hello", "1 to 64", length as u64);
    }
    if let Some(offset) = nonzero_in(entry, NAME + length, VOLUME_BYTES) {
        return Err(WireError::Reserved { frame: "Hello", offset: entry_at + offset, found: entry[offset] });
    }
    let name = Text::decode(&entry[NAME..NAME + length])
        .map_err(|error| WireError::Text { field: "a volume's name in Hello", error })?;
    let blocks = u64_at(entry, 0);
    if blocks == 0 {
        return field("a volume's blocks in Hello", "1 or more", 0);
    }
    let room = u64_at(entry, NAME_LENGTH) >> 8;
    if room >= blocks {
        return field("a volume's room in Hello", "less than its blocks", room);
    }
    Ok(HelloVolume { name, blocks, room })
}

fn flag(name: &'static str, byte: u8) -> Result<bool, WireError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => field(name, "0 or 1", u64::from(found)),
    }
}

fn field<T>(field: &'static str, expected: &'static str, found: u64) -> Result<T, WireError> {
    Err(WireError::Field { field, expected, found })
}

/// Why a peer was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RefusalCode {
    Version = 1,
    Group = 2,
    Role = 3,
    Volumes = 4,
    AckLevel = 5,
    SplitBrain = 6,
    ResyncRequired = 7,
    Protocol = 8,
    /// The sender's snapshot tables are damaged, so it cannot lend them.
    Tables = 9,
    Differential = 10,
}

/// Bytes of a refusal's text.
pub const REFUSAL_TEXT_BYTES_MAX: usize = 512;

/// The last frame before the sender closes: the reason, for programs and for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: RefusalCode,
    /// What both sites have, and what to do.
    pub text: Text<REFUSAL_TEXT_BYTES_MAX>,
}

const TEXT_LENGTH: usize = 2;
const TEXT: usize = 4;

impl Refusal {
    /// Writes the body of a refusal frame and returns its length.
    pub fn encode(&self, out: &mut [u8; BLOCK_BYTES]) -> usize {
        out[0] = self.code as u8;
        out[1] = 0;
        put(out, TEXT_LENGTH, &(self.text.len() as u16).to_le_bytes());
        put(out, TEXT, self.text.as_bytes());
        TEXT + self.text.len()
    }

    pub fn decode(bytes: &[u8]) -> Result<Refusal, WireError> {
        if bytes.len() < TEXT {
            return Err(WireError::Length { frame: "Refusal", expected: TEXT, found: bytes.len() });
        }
        let code = match bytes[0] {
            1 => RefusalCode::Version,
            2 => RefusalCode::Group,
            3 => RefusalCode::Role,
            4 => RefusalCode::Volumes,
            5 => RefusalCode::AckLevel,
            6 => RefusalCode::SplitBrain,
            7 => RefusalCode::ResyncRequired,
            8 => RefusalCode::Protocol,
            9 => RefusalCode::Tables,
            10 => RefusalCode::Differential,
            found => return field("Refusal's code", "1 to 10", u64::from(found)),
        };
        if bytes[1] != 0 {
            return Err(WireError::Reserved { frame: "Refusal", offset: 1, found: bytes[1] });
        }
        let expected = TEXT + usize::from(u16_at(bytes, TEXT_LENGTH));
        if bytes.len() != expected {
            return Err(WireError::Length { frame: "Refusal", expected, found: bytes.len() });
        }
        let text = Text::decode(&bytes[TEXT..])
            .map_err(|error| WireError::Text { field: "Refusal's text", error })?;
        Ok(Refusal { code, text })
    }
}
