//! Floor 1: codecs. Bytes from disks, peers and hosts become typed values here or are refused with a reason; nothing
//! past this floor sees an unchecked length, version or checksum. What Lockstep defines is little-endian, with its tables
//! of offsets in `docs/FORMATS.md`; NBD is big-endian.

mod bytes;
pub mod digests;
pub mod history;
pub mod journal;
pub mod metadata;
pub mod nbd;
pub mod runs;
pub mod snapshot;
pub mod staging;
pub mod superblock;
pub mod tables;
pub mod text;
pub mod update;
pub mod wire;
