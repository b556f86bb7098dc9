//! Dates and times as `to_jsonb` renders them: in ISO 8601, whatever `DateStyle` is. Only years of four digits are
//! supported: no infinities, and no years before Christ.

use std::cell::Cell;
use std::ops::RangeInclusive;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// The days from 1970-01-01 to 2000-01-01, the epoch of Postgres.
const EPOCH: i64 = 10_957;

/// The days from 0000-03-01 to 1970-01-01.
const ORIGIN: i64 = 719_468;

/// The days whose year has four digits, counted from 0000-03-01.
const FOUR_DIGITS: RangeInclusive<i64> = 306..=3_652_364;

/// Whether the year of a day, given as the days since 2000-01-01, has four digits.
pub fn is_date(days: i64) -> bool {
    FOUR_DIGITS.contains(&(days + EPOCH + ORIGIN))
}

/// Whether the year of a time, given as the microseconds since 2000-01-01, has four digits.
pub fn is_timestamp(micros: i64) -> bool {
    is_date(micros.div_euclid(DAY))
}

/// Whether a number of microseconds is a time of day. 24:00:00 is one.
pub fn is_time(micros: i64) -> bool {
    (0..=DAY).contains(&micros)
}

/// Whether a number of seconds can be an offset from UTC: always less than a day.
pub fn is_offset(seconds: i32) -> bool {
    seconds.unsigned_abs() < 86_400
}

/// Appends a day, given as the days since 2000-01-01. None if its year does not have four digits.
pub fn write_date(out: &mut Vec<u8>, days: i64) -> Option<()> {
    thread_local! {
        /// The last day, with its text: the next row probably has the same.
        static LAST: Cell<(i64, [u8; 10])> = const { Cell::new((i64::MIN, [0; 10])) };
    }
    let (mut day, mut text) = LAST.get();
    if day != days {
        if !is_date(days) {
            return None;
        }
        (day, text) = (days, date((days + EPOCH + ORIGIN) as u32));
        LAST.set((day, text));
    }
    out.extend_from_slice(&text);
    Some(())
}

/// The text of a day, given as the days since 0000-03-01.
fn date(days: u32) -> [u8; 10] {
    // The calendar repeats after 400 years, or 146,097 days. Years begin in March here, so that a leap day is the last
    // day of a year (after Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms").
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

/// Appends a time of day, given in microseconds.
pub fn write_time(out: &mut Vec<u8>, time: i64) {
    let (seconds, micros) = ((time / SECOND) as u32, (time % SECOND) as u32);
    let ([a, b], [c, d], [e, f]) = (two(seconds / 3600), two(seconds / 60 % 60), two(seconds % 60));
    out.extend_from_slice(&[a, b, b':', c, d, b':', e, f]);
    write_fraction(out, micros);
}

/// Appends the microseconds of a second as a fraction, without trailing zeros.
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

/// Appends a timestamp, given as the microseconds since 2000-01-01.
pub fn write_timestamp(out: &mut Vec<u8>, micros: i64) -> Option<()> {
    write_date(out, micros.div_euclid(DAY))?;
    out.push(b'T');
    write_time(out, micros.rem_euclid(DAY));
    Some(())
}

/// The local time of an instant at an offset from UTC in seconds. None if it overflows.
pub fn local(micros: i64, offset: i32) -> Option<i64> {
    micros.checked_add(i64::from(offset) * SECOND)
}

/// Appends an instant as the local time at an offset from UTC in seconds, followed by the offset.
pub fn write_timestamptz(out: &mut Vec<u8>, micros: i64, offset: i32) -> Option<()> {
    if !is_offset(offset) {
        return None;
    }
    write_timestamp(out, local(micros, offset)?)?;
    let (sign, offset) = (if offset < 0 { b'-' } else { b'+' }, offset.unsigned_abs());
    let ([a, b], [c, d]) = (two(offset / 3600), two(offset / 60 % 60));
    out.extend_from_slice(&[sign, a, b, b':', c, d]);
    if offset % 60 != 0 {
        let [e, f] = two(offset % 60);
        out.extend_from_slice(&[b':', e, f]);
    }
    Some(())
}
