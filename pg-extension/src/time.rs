//! Dates and times as `to_jsonb` writes them: in ISO 8601, whatever `DateStyle` says.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::ops::RangeInclusive;
use std::ptr::null_mut;

use pgrx::prelude::*;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// The days from 1970-01-01 to 2000-01-01, from where Postgres counts.
const EPOCH: i64 = 10_957;

/// Writes a value of one of the types `date`, `time`, `timestamp` and `timestamptz`.
pub fn write(out: &mut Vec<u8>, type_oid: pg_sys::Oid, value: pg_sys::Datum) {
    let (before, number) = (out.len(), value.value() as i64);
    let written = match type_oid {
        pg_sys::DATEOID => write_date(out, i64::from(value.value() as i32)),
        pg_sys::TIMEOID => {
            write_time(out, number);
            Some(())
        }
        pg_sys::TIMESTAMPOID => write_timestamp(out, number),
        _ => write_timestamptz(out, number),
    };
    if written.is_none() {
        out.truncate(before);
        out.extend_from_slice(&written_by_postgres(type_oid, value));
    }
}

fn written_by_postgres(type_oid: pg_sys::Oid, value: pg_sys::Datum) -> Vec<u8> {
    let mut buffer = [0 as c_char; pg_sys::MAXDATELEN as usize + 1];
    // SAFETY: the buffer has the size that the function asks for; the value is of the type.
    unsafe {
        pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), value, type_oid, std::ptr::null());
        CStr::from_ptr(buffer.as_ptr()).to_bytes().to_vec()
    }
}

/// The days from 0000-03-01 to 1970-01-01, and the first and the last day whose year has four digits, counted from there too.
const ORIGIN: i64 = 719_468;
const FOUR_DIGITS: RangeInclusive<i64> = 306..=3_652_364;

/// Writes a day, given as the days since 2000-01-01, if its year has four digits: neither the infinities have, nor what is before
/// Christ.
fn write_date(out: &mut Vec<u8>, days: i64) -> Option<()> {
    thread_local! {
        /// The last day that was written: the next row's is most likely the same.
        static LAST: Cell<(i64, [u8; 10])> = const { Cell::new((i64::MIN, [0; 10])) };
    }
    let (mut day, mut text) = LAST.get();
    if day != days {
        let since = days + EPOCH + ORIGIN;
        if !FOUR_DIGITS.contains(&since) {
            return None;
        }
        (day, text) = (days, date(since as u32));
        LAST.set((day, text));
    }
    out.extend_from_slice(&text);
    Some(())
}

/// The text of a day, given as the days since 0000-03-01.
fn date(days: u32) -> [u8; 10] {
    // The calendar repeats after 400 years, or 146,097 days. Years are counted from March on, so that the odd day is the last one of a
    // year (after Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms").
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = 400 * era + year + later;
    let ([a, b], [c, d], [e, f], [g, h]) = (two(year / 100), two(year % 100), two(month), two(day));
    [a, b, c, d, b'-', e, f, b'-', g, h]
}

/// Writes a time of day, given in microseconds.
fn write_time(out: &mut Vec<u8>, time: i64) {
    let (seconds, micros) = ((time / SECOND) as u32, (time % SECOND) as u32);
    let ([a, b], [c, d], [e, f]) = (two(seconds / 3600), two(seconds / 60 % 60), two(seconds % 60));
    out.extend_from_slice(&[a, b, b':', c, d, b':', e, f]);
    write_fraction(out, micros);
}

/// Writes the microseconds of a second behind it, as few digits as tell them.
pub fn write_fraction(out: &mut Vec<u8>, micros: u32) {
    if micros == 0 {
        return;
    }
    let ([a, b], [c, d], [e, f]) = (two(micros / 10_000), two(micros / 100 % 100), two(micros % 100));
    let digits = [b'.', a, b, c, d, e, f];
    let length = digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
    out.extend_from_slice(&digits[..length]);
}

/// The two digits of a number below 100.
pub fn two(number: u32) -> [u8; 2] {
    [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]
}

fn write_timestamp(out: &mut Vec<u8>, micros: i64) -> Option<()> {
    write_date(out, micros.div_euclid(DAY))?;
    out.push(b'T');
    write_time(out, micros.rem_euclid(DAY));
    Some(())
}

fn write_timestamptz(out: &mut Vec<u8>, micros: i64) -> Option<()> {
    let offset = offset(micros.div_euclid(SECOND).checked_add(EPOCH * 86_400)?)?;
    write_timestamp(out, micros.checked_add(offset * SECOND)?)?;
    let (sign, offset) = (if offset < 0 { b'-' } else { b'+' }, offset.unsigned_abs() as u32);
    let ([a, b], [c, d]) = (two(offset / 3600), two(offset / 60 % 60));
    out.extend_from_slice(&[sign, a, b, b':', c, d]);
    if offset % 60 != 0 {
        let [e, f] = two(offset % 60);
        out.extend_from_slice(&[b':', e, f]);
    }
    Some(())
}

/// The time in which a zone has the same offset.
#[derive(Clone, Copy)]
struct Period {
    zone: *mut pg_sys::pg_tz,
    from: i64,
    until: i64,
    /// In seconds, to the east of Greenwich.
    offset: i64,
}

/// The offset of the session's time zone at a time, in seconds since 1970. The next row's is most likely the same.
fn offset(time: i64) -> Option<i64> {
    thread_local! {
        static LAST: Cell<Period> = const { Cell::new(Period { zone: null_mut(), from: 0, until: 0, offset: 0 }) };
    }
    // SAFETY: a plain variable of this backend; Postgres never frees a zone.
    let zone = unsafe { pg_sys::session_timezone };
    let last = LAST.get();
    let period = if last.zone == zone && (last.from..last.until).contains(&time) { last } else { period(time, zone)? };
    LAST.set(period);
    Some(period.offset)
}

/// How long before a time is looked for the same offset, in seconds: rows may come in falling order.
const BACK: i64 = 30 * 86_400;

fn period(time: i64, zone: *mut pg_sys::pg_tz) -> Option<Period> {
    let earlier = time.checked_sub(BACK)?;
    let from = if next_change(earlier, zone)? > time { earlier } else { time };
    // SAFETY: the zone is the session's; the answer is the function's own and read at once.
    let offset = unsafe { pg_sys::pg_localtime(&time, zone).as_ref()?.tm_gmtoff };
    Some(Period { zone, from, until: next_change(time, zone)?, offset })
}

/// When the offset of a zone may next be another one.
fn next_change(time: i64, zone: *mut pg_sys::pg_tz) -> Option<i64> {
    let ask = |time: i64| {
        let (mut until, [mut before, mut after], [mut is_summer, mut will_be]) = (0, [0, 0], [0, 0]);
        // SAFETY: the zone is the session's; the function writes to the variables given to it.
        let found = unsafe {
            pg_sys::pg_next_dst_boundary(&time, &mut before, &mut is_summer, &mut until, &mut after, &mut will_be, zone)
        };
        (found, until)
    };
    match ask(time) {
        (1, until) => Some(until),
        // At the very second of the last change in its table, Postgres knows of none to come; a second later it reckons on.
        (0, _) if ask(time.checked_add(1)?).0 != 0 => Some(time + 1),
        (0, _) => Some(i64::MAX),
        _ => None,
    }
}
