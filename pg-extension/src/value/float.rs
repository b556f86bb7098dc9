//! Numbers of the types `real` and `double precision` as JSON: the text that Postgres gives them.

use std::ffi::c_char;

use pgrx::pg_sys;
use tidings_wire::string;
use tidings_wire::value::Stop;

use crate::foreign::infallible::{double_to_shortest_decimal_bufn, float_to_shortest_decimal_bufn};

/// Writes a `double precision`, unless the session wants other digits than the shortest that make it.
pub fn write_double(out: &mut Vec<u8>, value: f64) -> Result<(), Stop> {
    // SAFETY: the buffer has room for the longest one.
    shortest(out, |buffer| unsafe { double_to_shortest_decimal_bufn(value, buffer) })
}

/// Writes a `real`, as above.
pub fn write_real(out: &mut Vec<u8>, value: f32) -> Result<(), Stop> {
    // SAFETY: as above.
    shortest(out, |buffer| unsafe { float_to_shortest_decimal_bufn(value, buffer) })
}

fn shortest(out: &mut Vec<u8>, write: impl FnOnce(*mut c_char) -> i32) -> Result<(), Stop> {
    // SAFETY: a plain variable of this backend.
    if unsafe { pg_sys::extra_float_digits } <= 0 {
        return Err(Stop::Unknown);
    }
    // DOUBLE_SHORTEST_DECIMAL_LEN is 25 (common/shortest_dec.h).
    let mut buffer = [0u8; 32];
    let length = write(buffer.as_mut_ptr().cast()).unsigned_abs() as usize;
    number(out, buffer.get(..length).ok_or(Stop::Unknown)?);
    Ok(())
}

/// Writes the text of a number, as a string if it is one of the words that JSON has no number for.
pub fn number(out: &mut Vec<u8>, text: &[u8]) {
    if text.last().is_some_and(u8::is_ascii_digit) {
        out.extend_from_slice(text);
    } else {
        string::write(out, text);
    }
}
