//! An array, packed element by element: `to_json` would look up anew, for each array, how they are written. The layout
//! is that of utils/array.h.

use pgrx::pg_sys;
use tidings_wire::value::{self, Stop};
use tidings_wire::varlena::{self, word};

use crate::value::writer::{TooLong, Writer, check_packed};

/// How the elements of an array are stored and packed.
pub struct Elements {
    by_value: bool,
    length: i16,
    align: usize,
    writer: Writer,
}

/// The length of a value of variable length, which the values before this one do not count.
const LENGTH_WORD: usize = 4;

/// No type asks for more.
const MAX_ALIGN: usize = 8;

impl Elements {
    /// The elements of a type, if it is one of arrays. `context` outlives the result.
    pub fn of(base: pg_sys::Oid, context: pg_sys::MemoryContext) -> Option<Self> {
        let (mut length, mut by_value, mut align) = (0, false, 0);
        // SAFETY: plain look-ups in the system caches, inside a transaction.
        let type_oid = unsafe {
            let type_oid = pg_sys::get_element_type(base);
            if type_oid == pg_sys::InvalidOid {
                return None;
            }
            pg_sys::get_typlenbyvalalign(type_oid, &mut length, &mut by_value, &mut align);
            // C strings: somebody may have made such a type.
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

    /// Packs an array of one dimension, or of none, from its bytes. Gives up as [`Writer::pack`] does.
    pub fn pack(&self, out: &mut Vec<u8>, bytes: &[u8], most: usize) -> Result<(), Stop> {
        // Alignment counts from the length on.
        let is_aligned = bytes.as_ptr().align_offset(MAX_ALIGN) == MAX_ALIGN - LENGTH_WORD;
        if is_aligned || self.writer.needs_no_alignment() {
            return self.pack_elements(out, bytes, most);
        }
        let mut copy: Vec<u8> = Vec::with_capacity(bytes.len() + 2 * MAX_ALIGN);
        copy.resize(copy.as_ptr().align_offset(MAX_ALIGN) + LENGTH_WORD, 0);
        let start = copy.len();
        copy.extend_from_slice(bytes);
        self.pack_elements(out, &copy[start..], most)
    }

    fn pack_elements(&self, out: &mut Vec<u8>, bytes: &[u8], most: usize) -> Result<(), Stop> {
        // Dimensions, where the values begin if there is a bitmap of NULLs, and the type; then the length of each
        // dimension, and its lower bound.
        let (dimensions, values_at) = (word(bytes, 0)?, word(bytes, 4)? as usize);
        if dimensions > 1 {
            return Err(Stop::Unknown);
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
                Some(bitmap) => bitmap.get(i / 8).ok_or(Stop::Unknown)? >> (i % 8) & 1 == 0,
                None => false,
            };
            value::pack_part(out, |out| {
                if is_null {
                    return Ok(());
                }
                at = at.next_multiple_of(self.align);
                let start = at.checked_sub(LENGTH_WORD).ok_or(Stop::Unknown)?;
                let (element, length) = self.element(bytes.get(start..).ok_or(Stop::Unknown)?)?;
                at += length;
                self.writer.pack_element(out, element, most).map_err(|TooLong| Stop::TooLong)
            })?;
            check_packed(out.len() - before, most).map_err(|TooLong| Stop::TooLong)?;
        }
        Ok(())
    }

    /// The element at the start of the bytes, and how many of them it has.
    fn element(&self, bytes: &[u8]) -> Result<(pg_sys::Datum, usize), Stop> {
        let Ok(length) = usize::try_from(self.length) else {
            let (_, length) = varlena::split(bytes).ok_or(Stop::Unknown)?;
            return Ok((pg_sys::Datum::from(bytes.as_ptr()), length));
        };
        let element = bytes.get(..length).ok_or(Stop::Unknown)?;
        if !self.by_value {
            return Ok((pg_sys::Datum::from(element.as_ptr()), length));
        }
        let value = match *element {
            [a] => u64::from(a),
            [a, b] => u64::from(u16::from_ne_bytes([a, b])),
            [a, b, c, d] => u64::from(u32::from_ne_bytes([a, b, c, d])),
            _ => u64::from_ne_bytes(element.try_into().map_err(|_| Stop::Unknown)?),
        };
        Ok((pg_sys::Datum::from(value), length))
    }
}
