//! One value of a row, packed: a byte for its kind, then nearly the bytes that Postgres stores. Packing is cheap,
//! because it happens in the writer's transaction. The reader renders the value as the JSON that `to_jsonb` returns.
//!
//! | kind | | what follows |
//! |---:|---|---|
//! | | NULL | no bytes at all, not even for the kind |
//! | 1, 2 | false, true | nothing |
//! | 3 | integer | two's complement, in as few bytes as possible |
//! | 4 | numeric | the stored bytes, without their length |
//! | 5 | text | the text |
//! | 6 | uuid | its 16 bytes |
//! | 7 | date | days since 2000-01-01, as four bytes |
//! | 8 | time | microseconds since midnight, as eight bytes |
//! | 9 | timestamp | microseconds since 2000-01-01, as eight bytes |
//! | 10 | timestamptz | the offset of the session's time zone from UTC in seconds, as three bytes, then as a timestamp |
//! | 11 | interval | months and days as four bytes each, microseconds as eight |
//! | 12 | jsonb | the stored bytes, without their length |
//! | 13 | list | each element, preceded by its length |
//! | 14 | members | each key (in JSON, with its colon) and each value, preceded by their lengths |
//! | 15 | json | JSON |
//!
//! Numbers are big-endian, so that numbers close to each other have their first bytes in common (see [`crate::row`]).
//! Only the stored bytes of `numeric` and `jsonb` are little-endian. A length is a LEB128 varint: seven bits in each
//! byte, the lowest ones first; the highest bit is set if more bytes follow.

use crate::error::{PackError, ReadError};
use crate::interval::{self, Interval};
use crate::limit::{Limit, WIDEST};
use crate::{jsonb, numeric, string, time};

const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INTEGER: u8 = 3;
const NUMERIC: u8 = 4;
const TEXT: u8 = 5;
const UUID: u8 = 6;
const DATE: u8 = 7;
const TIME: u8 = 8;
const TIMESTAMP: u8 = 9;
const TIMESTAMPTZ: u8 = 10;
const INTERVAL: u8 = 11;
const JSONB: u8 = 12;
const LIST: u8 = 13;
const MEMBERS: u8 = 14;
const JSON: u8 = 15;

/// Packs a boolean.
pub fn pack_bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { TRUE } else { FALSE });
}

/// Packs an integer.
pub fn pack_integer(out: &mut Vec<u8>, value: i64) {
    let bits = 65 - (value ^ value >> 63).leading_zeros();
    let surplus = 8 - bits.div_ceil(8);
    let [a, b, c, d, e, f, g, h] = (value << (8 * surplus)).to_be_bytes();
    // Appends all bytes and then drops some: a copy of constant length is a single store.
    out.extend_from_slice(&[INTEGER, a, b, c, d, e, f, g, h]);
    out.truncate(out.len() - surplus as usize);
}

/// Packs a `numeric` from its stored bytes. Fails if its text is more than [`WIDEST`] times as long.
pub fn pack_numeric(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), PackError> {
    if is_too_wide(bytes)? {
        return Err(PackError::TooLong);
    }
    tagged(out, NUMERIC, bytes);
    Ok(())
}

/// Whether the text of a `numeric` is longer than [`WIDEST`] allows.
fn is_too_wide(bytes: &[u8]) -> Result<bool, ReadError> {
    Ok(numeric::length(bytes)? > WIDEST * bytes.len())
}

/// Packs a text.
pub fn pack_text(out: &mut Vec<u8>, text: &[u8]) {
    tagged(out, TEXT, text);
}

/// Packs a text that is JSON.
pub fn pack_json(out: &mut Vec<u8>, json: &[u8]) {
    tagged(out, JSON, json);
}

/// Packs the JSON that `write` appends.
pub fn pack_json_with<E>(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
    out.push(JSON);
    write(out)
}

/// Packs a `uuid`.
pub fn pack_uuid(out: &mut Vec<u8>, bytes: &[u8; 16]) {
    tagged(out, UUID, bytes);
}

/// Packs a day, given as the days since 2000-01-01. Years of other than four digits are unsupported, also in the next
/// three functions.
pub fn pack_date(out: &mut Vec<u8>, days: i32) -> Result<(), PackError> {
    supported(time::is_date(days.into()))?;
    let [a, b, c, d] = days.to_be_bytes();
    out.extend_from_slice(&[DATE, a, b, c, d]);
    Ok(())
}

/// Packs a time of day, in microseconds.
pub fn pack_time(out: &mut Vec<u8>, micros: i64) -> Result<(), PackError> {
    supported(time::is_time(micros))?;
    pack_long(out, TIME, micros);
    Ok(())
}

/// Packs a timestamp, in microseconds since 2000-01-01.
pub fn pack_timestamp(out: &mut Vec<u8>, micros: i64) -> Result<(), PackError> {
    supported(time::is_timestamp(micros))?;
    pack_long(out, TIMESTAMP, micros);
    Ok(())
}

/// Packs an instant, in microseconds since 2000-01-01 UTC, to be rendered as the local time at an offset from UTC, in
/// seconds.
pub fn pack_timestamptz(out: &mut Vec<u8>, micros: i64, offset: i32) -> Result<(), PackError> {
    supported(time::is_offset(offset) && time::local(micros, offset).is_some_and(time::is_timestamp))?;
    let [_, a, b, c] = offset.to_be_bytes();
    let [d, e, f, g, h, i, j, k] = micros.to_be_bytes();
    out.extend_from_slice(&[TIMESTAMPTZ, a, b, c, d, e, f, g, h, i, j, k]);
    Ok(())
}

/// Packs an interval.
pub fn pack_interval(out: &mut Vec<u8>, interval: Interval) {
    out.push(INTERVAL);
    out.extend_from_slice(&interval.months.to_be_bytes());
    out.extend_from_slice(&interval.days.to_be_bytes());
    out.extend_from_slice(&interval.micros.to_be_bytes());
}

/// Packs a `jsonb` from its stored bytes. Fails if only Postgres can render it, or if its text is far longer or shorter
/// than the stored bytes.
pub fn pack_jsonb(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), PackError> {
    jsonb::check_packable(bytes)?;
    tagged(out, JSONB, bytes);
    Ok(())
}

/// Begins a list; [`pack_part`] adds each element.
pub fn pack_list(out: &mut Vec<u8>) {
    out.push(LIST);
}

/// Begins an object; [`pack_part`] adds each key (in JSON, with its colon) and then its value.
pub fn pack_members(out: &mut Vec<u8>) {
    out.push(MEMBERS);
}

/// Adds a part that `pack` appends to a list or an object.
pub fn pack_part<E>(out: &mut Vec<u8>, pack: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
    let before = out.len();
    out.push(0);
    pack(out)?;
    let length = out.len() - before - 1;
    if let Ok(length @ 0..0x80) = u8::try_from(length) {
        out[before] = length;
    } else {
        let mut head = Vec::new();
        write_length(&mut head, length);
        out.splice(before..before + 1, head);
    }
    Ok(())
}

fn supported(is_supported: bool) -> Result<(), PackError> {
    if is_supported { Ok(()) } else { Err(PackError::Unsupported) }
}

fn tagged(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.reserve(1 + bytes.len());
    out.push(tag);
    out.extend_from_slice(bytes);
}

fn pack_long(out: &mut Vec<u8>, tag: u8, value: i64) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    out.extend_from_slice(&[tag, a, b, c, d, e, f, g, h]);
}

/// Appends a length.
pub(crate) fn write_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// Reads a length from the front of the bytes, which are shortened by it.
pub(crate) fn read_length(bytes: &mut &[u8]) -> Option<usize> {
    let (mut length, mut shift) = (0usize, 0);
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        // No value is longer than 1 GiB.
        if shift > 28 {
            return None;
        }
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(length);
        }
        shift += 7;
    }
}

/// Reads a part of a list or an object from the front of the bytes, which are shortened by it.
fn part<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], ReadError> {
    let length = read_length(bytes).ok_or(ReadError::Corrupt)?;
    let (part, rest) = bytes.split_at_checked(length).ok_or(ReadError::Corrupt)?;
    *bytes = rest;
    Ok(part)
}

/// Appends a packed value as JSON, which is at most [`WIDEST`] times as long. Fails on bytes that were not packed by
/// the functions of this module.
pub fn write(out: &mut Vec<u8>, value: &[u8]) -> Result<(), ReadError> {
    write_nested(out, value, 0)
}

/// The deepest nesting that a writer makes: a list in an object.
const DEEPEST: usize = 2;

fn write_nested(out: &mut Vec<u8>, value: &[u8], depth: usize) -> Result<(), ReadError> {
    let Some((tag, bytes)) = value.split_first() else {
        out.extend_from_slice(b"null");
        return Ok(());
    };
    let end = Limit::new(WIDEST * value.len()).after(out);
    match *tag {
        FALSE if bytes.is_empty() => out.extend_from_slice(b"false"),
        TRUE if bytes.is_empty() => out.extend_from_slice(b"true"),
        INTEGER => out.extend_from_slice(itoa::Buffer::new().format(integer(bytes)?).as_bytes()),
        NUMERIC if is_too_wide(bytes)? => return Err(ReadError::TooLong),
        NUMERIC => numeric::write(out, bytes, Limit::NONE.after(out))?,
        TEXT => string::write(out, bytes),
        JSONB => jsonb::write(out, bytes, end)?,
        JSON => out.extend_from_slice(bytes),
        LIST if depth < DEEPEST => {
            let mut rest = bytes;
            out.push(b'[');
            while !rest.is_empty() {
                if rest.len() < bytes.len() {
                    out.push(b',');
                }
                write_nested(out, part(&mut rest)?, depth + 1)?;
            }
            out.push(b']');
        }
        MEMBERS if depth < DEEPEST => {
            let mut rest = bytes;
            out.push(b'{');
            while !rest.is_empty() {
                if rest.len() < bytes.len() {
                    out.push(b',');
                }
                out.extend_from_slice(part(&mut rest)?);
                write_nested(out, part(&mut rest)?, depth + 1)?;
            }
            out.push(b'}');
        }
        tag => {
            out.push(b'"');
            write_quoted(out, tag, bytes).ok_or(ReadError::Corrupt)?;
            out.push(b'"');
        }
    }
    Ok(())
}

/// Appends the text of a value that is a string in JSON and has no characters to escape.
fn write_quoted(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) -> Option<()> {
    match tag {
        UUID => write_uuid(out, bytes.try_into().ok()?),
        DATE => time::write_date(out, i32::from_be_bytes(bytes.try_into().ok()?).into())?,
        TIME => {
            let micros = long(bytes).filter(|micros| time::is_time(*micros))?;
            time::write_time(out, micros);
        }
        TIMESTAMP => time::write_timestamp(out, long(bytes)?)?,
        TIMESTAMPTZ => {
            let ([a, b, c], instant) = bytes.split_first_chunk()?;
            let offset = i32::from_be_bytes([*a, *b, *c, 0]) >> 8;
            time::write_timestamptz(out, long(instant)?, offset)?;
        }
        INTERVAL => {
            let (months, rest) = bytes.split_first_chunk()?;
            let (days, micros) = rest.split_first_chunk()?;
            let (months, days) = (i32::from_be_bytes(*months), i32::from_be_bytes(*days));
            interval::write(out, Interval { months, days, micros: long(micros)? });
        }
        _ => return None,
    }
    Some(())
}

fn integer(bytes: &[u8]) -> Result<i64, ReadError> {
    let mut word = [0; 8];
    word.get_mut(..bytes.len()).filter(|word| !word.is_empty()).ok_or(ReadError::Corrupt)?.copy_from_slice(bytes);
    Ok(i64::from_be_bytes(word) >> (64 - 8 * bytes.len()))
}

fn long(bytes: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(bytes.try_into().ok()?))
}

/// Appends a `uuid` as text.
pub fn write_uuid(out: &mut Vec<u8>, bytes: &[u8; 16]) {
    for (i, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&i) {
            out.push(b'-');
        }
        out.extend_from_slice(&[string::HEX[usize::from(byte >> 4)], string::HEX[usize::from(byte & 15)]]);
    }
}

#[cfg(test)]
mod tests;
