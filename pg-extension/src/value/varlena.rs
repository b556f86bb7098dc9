//! The bytes of a value of variable length, wherever Postgres has it.

use pgrx::pg_sys;
use tidings_wire::varlena::extent;

/// The bytes of a value, unless it is compressed or lies elsewhere. Most don't, and then no function of Postgres needs
/// to be called, each of which costs a `sigsetjmp`.
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

/// How many bytes a value has, decompressed.
///
/// # Safety
/// The value is one of a type of variable length.
pub unsafe fn size(value: pg_sys::Datum) -> usize {
    // SAFETY: as the caller promises.
    unsafe { plain(value).map_or_else(|| pg_sys::toast_raw_datum_size(value) - pg_sys::VARHDRSZ, <[u8]>::len) }
}

/// The bytes of a value, fetched and decompressed if need be. Such a copy lies in the current memory context, which is
/// the trigger's.
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
