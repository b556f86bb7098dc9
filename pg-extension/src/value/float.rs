//! Numbers of the types `real` and `double precision` as JSON: the text that Postgres prints for them.

use std::ffi::c_char;

use pgrx::pg_sys;
use tidings_wire::{PackError, string};

use crate::foreign::infallible::{double_to_shortest_decimal_bufn, float_to_shortest_decimal_bufn};

/// Appends a `double precision`, unless the session asks for other digits than the shortest exact ones.
pub fn write_double(out: &mut Vec<u8>, value: f64) -> Result<(), PackError> {
    // SAFETY: the buffer has room for the longest text of a double.
    shortest(out, |buffer| unsafe { double_to_shortest_decimal_bufn(value, buffer) })
}

/// Appends a `real`, unless the session asks for other digits than the shortest exact ones.
pub fn write_real(out: &mut Vec<u8>, value: f32) -> Result<(), PackError> {
    // SAFETY: the buffer has room for the longest text of a double, and that of a real is shorter.
    shortest(out, |buffer| unsafe { float_to_shortest_decimal_bufn(value, buffer) })
}

fn shortest(out: &mut Vec<u8>, write: impl FnOnce(*mut c_char) -> i32) -> Result<(), PackError> {
    // SAFETY: reads a variable of this backend.
    if unsafe { pg_sys::extra_float_digits } <= 0 {
        return Err(PackError::Unsupported);
    }
    // DOUBLE_SHORTEST_DECIMAL_LEN is 25 (common/shortest_dec.h).
    let mut buffer = [0u8; 32];
    let length = write(buffer.as_mut_ptr().cast()).unsigned_abs() as usize;
    number(out, buffer.get(..length).ok_or(PackError::Unsupported)?);
    Ok(())
}

/// Appends the text of a number. NaN and the infinities, which JSON does not have, become strings.
pub fn number(out: &mut Vec<u8>, text: &[u8]) {
    if text.last().is_some_and(u8::is_ascii_digit) {
        out.extend_from_slice(text);
    } else {
        string::write(out, text);
    }
}
