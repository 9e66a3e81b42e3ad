//! What [`Extend`](super::Control::Extend) and its answer say.

use super::WireError;
use crate::base::VolumeId;
use crate::format::bytes::{nonzero_in, put, u16_at, u32_at, u64_at};

const ERRNO: usize = 4;
const BLOCKS: usize = 8;

pub(super) fn put_extended(body: &mut [u8], volume: VolumeId, blocks: u64, errno: i32) {
    body.fill(0);
    put(body, 0, &volume.0.to_le_bytes());
    put(body, ERRNO, &errno.to_le_bytes());
    put(body, BLOCKS, &blocks.to_le_bytes());
}

/// The volume, its blocks, and the error number: 0 in what is no answer.
pub(super) fn extended_at(body: &[u8], answers: bool) -> Result<(VolumeId, u64, i32), WireError> {
    let frame = if answers { "Extended" } else { "Extend" };
    if let Some(offset) = nonzero_in(body, 2, if answers { ERRNO } else { BLOCKS }) {
        return Err(WireError::Reserved { frame, offset, found: body[offset] });
    }
    let found = u32_at(body, ERRNO);
    let Ok(errno) = i32::try_from(found) else {
        let (field, expected) = ("Extended's error number", "0 or more");
        return Err(WireError::Field { field, expected, found: u64::from(found) });
    };
    Ok((VolumeId(u16_at(body, 0)), u64_at(body, BLOCKS), errno))
}
