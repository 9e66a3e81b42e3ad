//! Floor 1: codecs. Bytes from disks, peers and hosts become typed values here or are refused with a reason; nothing
//! past this floor sees an unchecked length, version or checksum.

pub mod nbd;
pub mod update;
pub mod wire;
