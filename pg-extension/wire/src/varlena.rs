//! The bytes of a value of variable length, as Postgres stores it on a little-endian machine (varatt.h). It need not be
//! aligned.

use crate::value::Stop;

/// From where to where the bytes of a value lie, by its first byte and, if it is not a short one, its first four. None
/// if it is compressed or lies elsewhere.
pub fn extent(first: u8, word: impl FnOnce() -> u32) -> Option<(usize, usize)> {
    if first & 1 != 0 {
        let end = usize::from(first >> 1);
        // A length of zero says that the value lies elsewhere.
        return (end > 0).then_some((1, end));
    }
    let word = word();
    (word & 3 == 0).then_some((4, (word >> 2) as usize))
}

/// The bytes of a plain value that others follow, and where it ends.
pub fn split(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (from, to) = extent(*bytes.first()?, || word(bytes, 0).unwrap_or(0))?;
    Some((bytes.get(from..to)?, to))
}

/// A number of four bytes among others.
pub fn word(bytes: &[u8], at: usize) -> Result<u32, Stop> {
    let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk()).ok_or(Stop::Unknown)?;
    Ok(u32::from_le_bytes(*word))
}
