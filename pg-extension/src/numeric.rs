//! Numbers of the types `numeric`, `real` and `double precision` as JSON: the text that Postgres gives them, from the bytes that it
//! stores (utils/adt/numeric.c).

use std::ffi::c_char;

use pgrx::pg_sys;

use crate::foreign::infallible::{double_to_shortest_decimal_bufn, float_to_shortest_decimal_bufn};
use crate::value::Stop;

/// A digit of a `numeric` is a number below this one.
const BASE_DIGITS: usize = 4;

const SIGN: u16 = 0xc000;
const SHORT: u16 = 0x8000;
const NEGATIVE: u16 = 0x4000;

/// Writes a `numeric`. What JSON has no number for is a string.
pub fn write(out: &mut Vec<u8>, bytes: &[u8], most: usize) -> Result<(), Stop> {
    let (header, rest) = bytes.split_first_chunk().ok_or(Stop::Unknown)?;
    let header = u16::from_ne_bytes(*header);
    let (negative, scale, weight, digits) = match header & SIGN {
        SIGN => {
            let text: &[u8] = match header {
                0xc000 => b"\"NaN\"",
                0xd000 => b"\"Infinity\"",
                0xf000 => b"\"-Infinity\"",
                _ => return Err(Stop::Unknown),
            };
            out.extend_from_slice(text);
            return Ok(());
        }
        SHORT => {
            // The weight has seven bits, the first of which is its sign.
            let weight = i32::from(header & 0x3f) - i32::from(header & 0x40);
            (header & 0x2000 != 0, usize::from(header >> 7 & 0x3f), weight, rest)
        }
        sign => {
            let (weight, digits) = rest.split_first_chunk().ok_or(Stop::Unknown)?;
            (sign == NEGATIVE, usize::from(header & !SIGN), i32::from(i16::from_ne_bytes(*weight)), digits)
        }
    };
    let digit = |place: i32| {
        let pair = usize::try_from(place).ok().and_then(|place| digits.get(2 * place..2 * place + 2));
        pair.map_or(0, |pair| u16::from_ne_bytes([pair[0], pair[1]]))
    };
    let length = BASE_DIGITS * usize::try_from(weight + 1).unwrap_or(0) + scale;
    if out.len() + length > most.saturating_add(BASE_DIGITS) {
        return Err(Stop::TooLong);
    }
    if negative {
        out.push(b'-');
    }
    let first = if weight < 0 { 0 } else { digit(0) };
    out.extend_from_slice(itoa::Buffer::new().format(first).as_bytes());
    for place in 1..=weight {
        out.extend_from_slice(&four(digit(place)));
    }
    if scale > 0 {
        out.push(b'.');
        let end = out.len() + scale;
        let mut place = weight + 1;
        while out.len() < end {
            out.extend_from_slice(&four(digit(place)));
            place += 1;
        }
        out.truncate(end);
    }
    Ok(())
}

fn four(digit: u16) -> [u8; BASE_DIGITS] {
    [digit / 1000, digit / 100 % 10, digit / 10 % 10, digit % 10].map(|digit| b'0' + digit as u8)
}

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
        crate::string::write(out, text);
    }
}
