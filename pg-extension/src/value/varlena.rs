//! The bytes of a value of variable length, wherever Postgres stores it.

use pgrx::pg_sys;
use tidings_wire::varlena::extent;

use super::column_value::ColumnValue;

/// The bytes of a value, unless it is compressed or stored out of line. Most values are plain, and then no function of
/// Postgres is called, each of which costs a `sigsetjmp`.
///
/// # Safety
/// The value is of a type of variable length.
pub unsafe fn plain<'row>(value: ColumnValue<'row>) -> Option<&'row [u8]> {
    let start = value.datum().cast_mut_ptr::<u8>().cast_const();
    // SAFETY: a value of variable length points to its header, which is followed by as many bytes as it says. They live
    // as long as the value.
    unsafe {
        let (from, to) = extent(*start, || start.cast::<u32>().read_unaligned())?;
        Some(std::slice::from_raw_parts(start.add(from), to.saturating_sub(from)))
    }
}

/// The number of bytes of a value, decompressed.
///
/// # Safety
/// The value is of a type of variable length.
pub unsafe fn size(value: ColumnValue<'_>) -> usize {
    // SAFETY: of variable length, as the caller promises; the function reads only the header.
    unsafe { plain(value).map_or_else(|| pg_sys::toast_raw_datum_size(value.datum()) - pg_sys::VARHDRSZ, <[u8]>::len) }
}

/// The bytes of a value, fetched and decompressed if necessary. Such a copy lies in the current memory context.
///
/// # Safety
/// The value is of a type of variable length, and the current memory context is not reset during the lifetime.
pub unsafe fn fetched<'row>(value: ColumnValue<'row>) -> &'row [u8] {
    // SAFETY: of variable length, as the caller promises; what Postgres returns is plain, and lives as long as the
    // memory context.
    unsafe {
        let fetch =
            || ColumnValue::new(pg_sys::Datum::from(pg_sys::pg_detoast_datum_packed(value.datum().cast_mut_ptr())));
        plain(value).or_else(|| plain(fetch())).unwrap_or_default()
    }
}
