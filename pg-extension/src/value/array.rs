//! An array, packed element by element: `to_json` would look up the element's type again for each array. The layout is
//! that of utils/array.h.

use pgrx::pg_sys;
use tidings_wire::varlena::{self, word};
use tidings_wire::{Limit, PackError, value};

use super::column_value::ColumnValue;
use super::writer::{Writer, check_packed};

/// How the elements of an array are stored and packed.
pub struct Elements {
    by_value: bool,
    length: i16,
    align: usize,
    writer: Writer,
}

/// The bytes of an array's length word. Offsets in an array count from before it, the bytes here begin after it.
const LENGTH_WORD: usize = 4;

/// The strictest alignment of any type.
const MAX_ALIGN: usize = 8;

impl Elements {
    /// The elements of a type, if it is an array type. `context` outlives the result.
    pub fn of(base: pg_sys::Oid, context: pg_sys::MemoryContext) -> Option<Self> {
        let (mut length, mut by_value, mut align) = (0, false, 0);
        // SAFETY: look-ups in the system caches, inside a transaction; the results are written to local variables.
        let type_oid = unsafe {
            let type_oid = pg_sys::get_element_type(base);
            if type_oid == pg_sys::InvalidOid {
                return None;
            }
            pg_sys::get_typlenbyvalalign(type_oid, &mut length, &mut by_value, &mut align);
            // The elements are C strings, which only a type that a user created can have.
            if length < -1 {
                return None;
            }
            type_oid
        };
        let align = match align as u8 {
            pg_sys::TYPALIGN_SHORT => 2,
            pg_sys::TYPALIGN_INT => 4,
            pg_sys::TYPALIGN_DOUBLE => 8,
            _ => 1,
        };
        Some(Self { by_value, length, align, writer: Writer::new(type_oid, by_value, length, context) })
    }

    /// Packs an array of one dimension, or an empty one, from its bytes.
    ///
    /// # Safety
    /// The bytes are those of an array of this type, without the length word.
    pub unsafe fn pack(&self, out: &mut Vec<u8>, bytes: &[u8], limit: Limit) -> Result<(), PackError> {
        // Elements are aligned relative to the length word.
        let is_aligned = bytes.as_ptr().align_offset(MAX_ALIGN) == MAX_ALIGN - LENGTH_WORD;
        if is_aligned || self.writer.needs_no_alignment() {
            // SAFETY: an array of this type, as the caller promises, at an address that suits its elements.
            return unsafe { self.pack_elements(out, bytes, limit) };
        }
        let mut copy: Vec<u8> = Vec::with_capacity(bytes.len() + 2 * MAX_ALIGN);
        copy.resize(copy.as_ptr().align_offset(MAX_ALIGN) + LENGTH_WORD, 0);
        let start = copy.len();
        copy.extend_from_slice(bytes);
        // SAFETY: a copy of an array of this type, whose length word would be aligned.
        unsafe { self.pack_elements(out, &copy[start..], limit) }
    }

    /// # Safety
    /// As for [`Self::pack`], and the elements are aligned if their type needs it.
    unsafe fn pack_elements(&self, out: &mut Vec<u8>, bytes: &[u8], limit: Limit) -> Result<(), PackError> {
        // The header: the number of dimensions, where the values begin if there is a bitmap of NULLs (otherwise 0), and
        // the element type; then the length and the lower bound of each dimension.
        let (dimensions, values_at) = (word(bytes, 0)?, word(bytes, 4)? as usize);
        if dimensions > 1 {
            return Err(PackError::Unsupported);
        }
        let before = out.len();
        value::pack_list(out);
        if dimensions == 0 {
            return Ok(());
        }
        let count = word(bytes, 12)? as usize;
        let nulls = bytes.get(20..).filter(|_| values_at > 0);
        let mut at = if values_at > 0 { values_at } else { LENGTH_WORD + 20 };
        for i in 0..count {
            let is_null = match nulls {
                Some(bitmap) => bitmap.get(i / 8).ok_or(PackError::Unsupported)? >> (i % 8) & 1 == 0,
                None => false,
            };
            value::pack_part(out, |out| -> Result<(), PackError> {
                if is_null {
                    return Ok(());
                }
                at = at.next_multiple_of(self.align);
                let start = at.checked_sub(LENGTH_WORD).ok_or(PackError::Unsupported)?;
                // SAFETY: at this offset of the array begins an element, aligned as its type needs it.
                let (element, length) = unsafe { self.element(bytes.get(start..).ok_or(PackError::Unsupported)?)? };
                at += length;
                Ok(self.writer.pack_element(out, element, limit)?)
            })?;
            check_packed(out.len() - before, limit)?;
        }
        Ok(())
    }

    /// The element at the start of the bytes, and the number of bytes that it takes.
    ///
    /// # Safety
    /// An element begins there.
    unsafe fn element<'a>(&self, bytes: &'a [u8]) -> Result<(ColumnValue<'a>, usize), PackError> {
        let (datum, length) = match usize::try_from(self.length) {
            Err(_) => {
                let (_, length) = varlena::split(bytes).ok_or(PackError::Unsupported)?;
                (pg_sys::Datum::from(bytes.as_ptr()), length)
            }
            Ok(length) => {
                let element = bytes.get(..length).ok_or(PackError::Unsupported)?;
                let datum = if self.by_value { by_value(element)? } else { pg_sys::Datum::from(element.as_ptr()) };
                (datum, length)
            }
        };
        // SAFETY: an element begins there, as the caller promises, so this is a value of the writer's type. It is not
        // NULL, lies within the bytes, and lives as long as they do.
        Ok((unsafe { ColumnValue::new(datum) }, length))
    }
}

/// The datum of a value that is passed by value.
fn by_value(bytes: &[u8]) -> Result<pg_sys::Datum, PackError> {
    let value = match *bytes {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_ne_bytes([a, b])),
        [a, b, c, d] => u64::from(u32::from_ne_bytes([a, b, c, d])),
        _ => u64::from_ne_bytes(bytes.try_into().map_err(|_| PackError::Unsupported)?),
    };
    Ok(pg_sys::Datum::from(value))
}
