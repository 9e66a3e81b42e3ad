//! Little-endian fields at fixed offsets. An offset outside the array is a defect of the codec, hence a panic.

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice was cut to N bytes")
}

pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// Where the first nonzero byte of `bytes[from..to]` is, counted from the start of `bytes`.
pub(crate) fn nonzero_in(bytes: &[u8], from: usize, to: usize) -> Option<usize> {
    let field = &bytes[from..to];
    // Almost always all of it is zero, and that much is found out many bytes at a time.
    if field.iter().fold(0, |seen, byte| seen | byte) == 0 {
        return None;
    }
    field.iter().position(|&byte| byte != 0).map(|at| from + at)
}

/// The crc32c of `bytes` as if the four bytes at `at` were zero: they hold the result.
pub(crate) fn crc_around(bytes: &[u8], at: usize) -> u32 {
    let crc = crc32c::crc32c(&bytes[..at]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[at + 4..])
}
