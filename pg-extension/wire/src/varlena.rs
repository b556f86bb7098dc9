//! The bytes of a value of variable length, as Postgres stores it on a little-endian machine (varatt.h). The value need
//! not be aligned.

use crate::error::ReadError;

/// The range of a value's bytes behind its header. `first` is its first byte; `word`, its first four bytes, is read
/// only if the header is a long one. None if the value is compressed or stored out of line.
pub fn extent(first: u8, word: impl FnOnce() -> u32) -> Option<(usize, usize)> {
    if first & 1 != 0 {
        let end = usize::from(first >> 1);
        // A length of zero means that the value is stored out of line.
        return (end > 0).then_some((1, end));
    }
    let word = word();
    (word & 3 == 0).then_some((4, (word >> 2) as usize))
}

/// The bytes of the first value of several, and where it ends. None if it is compressed or stored out of line.
pub fn split(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (from, to) = extent(*bytes.first()?, || word(bytes, 0).unwrap_or(0))?;
    Some((bytes.get(from..to)?, to))
}

/// The four bytes at an offset, as a number.
pub fn word(bytes: &[u8], at: usize) -> Result<u32, ReadError> {
    let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk()).ok_or(ReadError::Corrupt)?;
    Ok(u32::from_le_bytes(*word))
}
