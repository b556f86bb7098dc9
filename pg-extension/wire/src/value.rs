//! One value of a row, packed: a byte that tells its kind, and behind it what Postgres stores, or nearly. Whoever reads it makes JSON
//! of it, the same as `to_jsonb` gives; whoever writes it is in a hurry.
//!
//! | kind | | what follows |
//! |---:|---|---|
//! | | NULL | has no byte at all |
//! | 1, 2 | false, true | nothing |
//! | 3 | integer | two's complement, no more bytes than it takes |
//! | 4 | numeric | the stored bytes, without their length |
//! | 5 | text | the text |
//! | 6 | uuid | its 16 bytes |
//! | 7 | date | days since 2000-01-01, as four bytes |
//! | 8 | time | microseconds since midnight, as eight bytes |
//! | 9 | timestamp | microseconds since 2000-01-01, as eight bytes |
//! | 10 | timestamptz | seconds that the session's clocks were ahead of Greenwich, as three bytes, then as a timestamp |
//! | 11 | interval | months and days as four bytes each, microseconds as eight |
//! | 12 | jsonb | the stored bytes, without their length |
//! | 13 | list | each element, its length in front |
//! | 14 | members | each key as it stands in JSON with its colon and each value, their lengths in front |
//! | 15 | json | JSON as it is |
//!
//! Numbers have their highest byte first, for then values that are near have their first bytes in common (see [`crate::row`]); only
//! what Postgres stores as a whole is little-endian. A length is seven bits a byte, the lowest ones first; a set highest bit says
//! that more follow.

use crate::interval::{self, Interval};
use crate::{jsonb, numeric, string, time};

/// Why a value was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It would be too long.
    TooLong,
    /// These bytes say nothing to us.
    Unknown,
}

/// A byte of a packed value makes at most so many bytes of JSON, and a NULL, which has none, four.
pub const WIDEST: usize = 6;

/// A byte of a value's JSON takes at most so many when it is packed.
pub const SPARSEST: usize = 4;

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
    // All of them and then off with some: a copy of a known length is one store.
    out.extend_from_slice(&[INTEGER, a, b, c, d, e, f, g, h]);
    out.truncate(out.len() - surplus as usize);
}

/// Packs a `numeric`, from its stored bytes, unless its text is far longer than they are.
pub fn pack_numeric(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Stop> {
    if is_too_wide(bytes)? {
        return Err(Stop::TooLong);
    }
    tagged(out, NUMERIC, bytes);
    Ok(())
}

/// Whether the text of a `numeric` is longer than [`WIDEST`] allows.
pub(crate) fn is_too_wide(bytes: &[u8]) -> Result<bool, Stop> {
    Ok(numeric::length(bytes)? > WIDEST * bytes.len())
}

/// Packs a text.
pub fn pack_text(out: &mut Vec<u8>, text: &[u8]) {
    tagged(out, TEXT, text);
}

/// Packs JSON, as it is.
pub fn pack_json(out: &mut Vec<u8>, json: &[u8]) {
    tagged(out, JSON, json);
}

/// Packs the JSON that `write` writes.
pub fn pack_json_with<E>(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
    out.push(JSON);
    write(out)
}

/// Packs a `uuid`.
pub fn pack_uuid(out: &mut Vec<u8>, bytes: &[u8; 16]) {
    tagged(out, UUID, bytes);
}

/// Packs a day, given as the days since 2000-01-01. Like the next three, none whose year has not four digits.
pub fn pack_date(out: &mut Vec<u8>, days: i32) -> Result<(), Stop> {
    known(time::is_date(days.into()))?;
    let [a, b, c, d] = days.to_be_bytes();
    out.extend_from_slice(&[DATE, a, b, c, d]);
    Ok(())
}

/// Packs a time of day, in microseconds.
pub fn pack_time(out: &mut Vec<u8>, micros: i64) -> Result<(), Stop> {
    known(time::is_time(micros))?;
    pack_long(out, TIME, micros);
    Ok(())
}

/// Packs a time, in microseconds since 2000-01-01.
pub fn pack_timestamp(out: &mut Vec<u8>, micros: i64) -> Result<(), Stop> {
    known(time::is_timestamp(micros))?;
    pack_long(out, TIMESTAMP, micros);
    Ok(())
}

/// Packs an instant, in microseconds since 2000-01-01 in Greenwich, to be told as the time where clocks are so many
/// seconds ahead.
pub fn pack_timestamptz(out: &mut Vec<u8>, micros: i64, offset: i32) -> Result<(), Stop> {
    known(time::is_offset(offset) && time::local(micros, offset).is_some_and(time::is_timestamp))?;
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

/// Packs a `jsonb`, from its stored bytes, unless only Postgres can write it, or its text is far longer than they are,
/// or far shorter.
pub fn pack_jsonb(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Stop> {
    jsonb::check_packable(bytes)?;
    tagged(out, JSONB, bytes);
    Ok(())
}

/// Begins a list, to which [`pack_part`] adds the elements.
pub fn pack_list(out: &mut Vec<u8>) {
    out.push(LIST);
}

/// Begins an object, to which [`pack_part`] adds the keys, as they stand in JSON with their colons, and the values, in
/// turn.
pub fn pack_members(out: &mut Vec<u8>) {
    out.push(MEMBERS);
}

/// Adds what `pack` packs to a list or an object.
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

fn known(is_known: bool) -> Result<(), Stop> {
    if is_known { Ok(()) } else { Err(Stop::Unknown) }
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

/// Writes a length.
pub(crate) fn write_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// Takes a length off the front.
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

/// Takes a part of a list or an object off the front.
fn part<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Stop> {
    let length = read_length(bytes).ok_or(Stop::Unknown)?;
    let (part, rest) = bytes.split_at_checked(length).ok_or(Stop::Unknown)?;
    *bytes = rest;
    Ok(part)
}

/// Writes a packed value as JSON, which is at most [`WIDEST`] times as long. Fails on bytes that no function here has
/// packed.
pub fn write(out: &mut Vec<u8>, value: &[u8]) -> Result<(), Stop> {
    write_nested(out, value, 0)
}

/// Lists in members are the deepest that there is.
const DEEPEST: usize = 2;

fn write_nested(out: &mut Vec<u8>, value: &[u8], depth: usize) -> Result<(), Stop> {
    let Some((tag, bytes)) = value.split_first() else {
        out.extend_from_slice(b"null");
        return Ok(());
    };
    let most = out.len() + WIDEST * value.len();
    match *tag {
        FALSE if bytes.is_empty() => out.extend_from_slice(b"false"),
        TRUE if bytes.is_empty() => out.extend_from_slice(b"true"),
        INTEGER => out.extend_from_slice(itoa::Buffer::new().format(integer(bytes)?).as_bytes()),
        NUMERIC if is_too_wide(bytes)? => return Err(Stop::TooLong),
        NUMERIC => numeric::write(out, bytes, usize::MAX)?,
        TEXT => string::write(out, bytes),
        JSONB => jsonb::write(out, bytes, most)?,
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
            write_quoted(out, tag, bytes).ok_or(Stop::Unknown)?;
            out.push(b'"');
        }
    }
    Ok(())
}

/// Writes a value that is a string without anything to escape.
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

fn integer(bytes: &[u8]) -> Result<i64, Stop> {
    let mut word = [0; 8];
    word.get_mut(..bytes.len()).filter(|word| !word.is_empty()).ok_or(Stop::Unknown)?.copy_from_slice(bytes);
    Ok(i64::from_be_bytes(word) >> (64 - 8 * bytes.len()))
}

fn long(bytes: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(bytes.try_into().ok()?))
}

/// Writes a `uuid` as text.
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
