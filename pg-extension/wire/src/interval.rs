//! An `interval` in Postgres's default style: `1 year 2 mons -3 days +04:05:06.789`.

use crate::time::{two, write_fraction};

/// An interval as Postgres stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Whole months.
    pub months: i32,
    /// Whole days.
    pub days: i32,
    /// The rest, in microseconds.
    pub micros: i64,
}

/// Appends the text of an interval.
pub fn write(out: &mut Vec<u8>, interval: Interval) {
    let Interval { months, days, micros: time } = interval;
    let (mut is_first, mut was_negative) = (true, false);
    for (number, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if number == 0 {
            continue;
        }
        if !is_first {
            out.push(b' ');
        }
        if was_negative && number > 0 {
            out.push(b'+');
        }
        out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        out.push(b' ');
        out.extend_from_slice(unit.as_bytes());
        if number != 1 {
            out.push(b's');
        }
        (is_first, was_negative) = (false, number < 0);
    }
    if time != 0 || is_first {
        if !is_first {
            out.push(b' ');
        }
        if time < 0 {
            out.push(b'-');
        } else if was_negative {
            out.push(b'+');
        }
        let (seconds, micros) = ((time / 1_000_000).unsigned_abs(), (time % 1_000_000).unsigned_abs() as u32);
        let (hours, seconds) = (seconds / 3600, (seconds % 3600) as u32);
        if hours < 10 {
            out.push(b'0');
        }
        out.extend_from_slice(itoa::Buffer::new().format(hours).as_bytes());
        let ([a, b], [c, d]) = (two(seconds / 60), two(seconds % 60));
        out.extend_from_slice(&[b':', a, b, b':', c, d]);
        write_fraction(out, micros);
    }
}
