//! The bytes of a value of variable length, as Postgres stores it (varatt.h). It need not be aligned.

use pgrx::pg_sys;

use crate::value::Stop;

const BIG_ENDIAN: bool = cfg!(target_endian = "big");

/// From where to where the bytes of a value lie, by its first byte and, if it is not a short one, its first four. None if it is
/// compressed or lies elsewhere.
fn extent(first: u8, word: impl FnOnce() -> u32) -> Option<(usize, usize)> {
    let is_short = if BIG_ENDIAN { first & 0x80 != 0 } else { first & 1 != 0 };
    if is_short {
        let end = usize::from(if BIG_ENDIAN { first & 0x7f } else { first >> 1 });
        // A length of zero says that the value lies elsewhere.
        return (end > 0).then_some((1, end));
    }
    let word = word();
    let (is_plain, end) = if BIG_ENDIAN { (word >> 30 == 0, word & 0x3fff_ffff) } else { (word & 3 == 0, word >> 2) };
    is_plain.then_some((4, end as usize))
}

/// The bytes of a value, unless it is compressed or lies elsewhere. Most don't, and then no function of Postgres needs to be called,
/// each of which costs a `sigsetjmp`.
///
/// # Safety
/// The value is one of a type of variable length and stays as it is for as long as the result is used.
pub unsafe fn plain<'a>(value: pg_sys::Datum) -> Option<&'a [u8]> {
    let start = value.cast_mut_ptr::<u8>().cast_const();
    // SAFETY: as the caller promises: the head is there, and as many bytes as it says.
    unsafe {
        let (from, to) = extent(*start, || start.cast::<u32>().read_unaligned())?;
        Some(std::slice::from_raw_parts(start.add(from), to.saturating_sub(from)))
    }
}

/// The bytes of a plain value that others follow, and where it ends.
pub fn split(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let word = || bytes.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
    let (from, to) = extent(*bytes.first()?, word)?;
    Some((bytes.get(from..to)?, to))
}

/// A number of four bytes among others.
pub fn word(bytes: &[u8], at: usize) -> Result<u32, Stop> {
    let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk()).ok_or(Stop::Unknown)?;
    Ok(u32::from_ne_bytes(*word))
}

/// How many bytes a value has, decompressed.
///
/// # Safety
/// The value is one of a type of variable length.
pub unsafe fn size(value: pg_sys::Datum) -> usize {
    // SAFETY: as the caller promises.
    unsafe { plain(value).map_or_else(|| pg_sys::toast_raw_datum_size(value) - pg_sys::VARHDRSZ, <[u8]>::len) }
}

/// The bytes of a value, fetched and decompressed if need be. Such a copy lies in the current memory context, which is the trigger's.
///
/// # Safety
/// As for [`plain`]; and the context is not emptied meanwhile.
pub unsafe fn fetched<'a>(value: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: as the caller promises.
    unsafe {
        let bytes =
            plain(value).or_else(|| plain(pg_sys::Datum::from(pg_sys::pg_detoast_datum_packed(value.cast_mut_ptr()))));
        bytes.unwrap_or_default()
    }
}
