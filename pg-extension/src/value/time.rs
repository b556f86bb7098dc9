//! Dates and times, packed as Postgres stores them; an instant together with the offset of the session's time zone from
//! UTC at that time.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::ptr::null_mut;

use pgrx::prelude::*;
use tidings_wire::{PackError, value};

use super::column_value::ColumnValue;

/// The seconds from 1970-01-01 to 2000-01-01, the epoch of Postgres.
const EPOCH: i64 = 10_957 * 86_400;

/// Microseconds in a second.
const MICROS: i64 = 1_000_000;

/// Packs a value of one of the types `date`, `time`, `timestamp` and `timestamptz`.
pub fn pack(out: &mut Vec<u8>, type_oid: pg_sys::Oid, value: ColumnValue<'_>) {
    let value = value.datum();
    let number = value.value() as i64;
    let packed = match type_oid {
        pg_sys::DATEOID => value::pack_date(out, value.value() as i32),
        pg_sys::TIMEOID => value::pack_time(out, number),
        pg_sys::TIMESTAMPOID => value::pack_timestamp(out, number),
        _ => {
            offset(number).ok_or(PackError::Unsupported).and_then(|offset| value::pack_timestamptz(out, number, offset))
        }
    };
    if packed.is_err() {
        value::pack_text(out, &written_by_postgres(type_oid, value));
    }
}

fn written_by_postgres(type_oid: pg_sys::Oid, value: pg_sys::Datum) -> Vec<u8> {
    let mut buffer = [0 as c_char; pg_sys::MAXDATELEN as usize + 1];
    // SAFETY: the buffer has the size that the function requires; the value is of the type, and is passed by value.
    unsafe {
        pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), value, type_oid, std::ptr::null());
        CStr::from_ptr(buffer.as_ptr()).to_bytes().to_vec()
    }
}

/// A span of time in which a zone has the same offset.
#[derive(Clone, Copy)]
struct Period {
    zone: *mut pg_sys::pg_tz,
    /// In microseconds since 2000, like the values.
    from: i64,
    /// The first microsecond after the period.
    until: i64,
    /// In seconds, positive to the east of Greenwich.
    offset: i32,
}

/// The offset of the session's time zone at a time, given in microseconds since 2000. It is probably the same for the
/// next row.
#[inline]
fn offset(micros: i64) -> Option<i32> {
    thread_local! {
        static LAST: Cell<Period> = const { Cell::new(Period { zone: null_mut(), from: 0, until: 0, offset: 0 }) };
    }
    // SAFETY: reads a variable of this backend; Postgres never frees a zone.
    let zone = unsafe { pg_sys::session_timezone };
    let last = LAST.get();
    if last.zone == zone && (last.from..last.until).contains(&micros) {
        return Some(last.offset);
    }
    let period = period(micros.div_euclid(MICROS) + EPOCH, zone)?;
    LAST.set(period);
    Some(period.offset)
}

/// How far back a period is extended, in seconds: rows may come in descending order of time.
const BACK: i64 = 30 * 86_400;

fn period(time: i64, zone: *mut pg_sys::pg_tz) -> Option<Period> {
    let earlier = time.checked_sub(BACK)?;
    let from = if next_change(earlier, zone)? > time { earlier } else { time };
    // SAFETY: the zone is the session's. The result lies in a static buffer and is read at once.
    let offset = unsafe { pg_sys::pg_localtime(&time, zone).as_ref()?.tm_gmtoff };
    let micros = |seconds: i64| seconds.saturating_sub(EPOCH).saturating_mul(MICROS);
    let [from, until] = [from, next_change(time, zone)?].map(micros);
    Some(Period { zone, from, until, offset: i32::try_from(offset).ok()? })
}

/// The next time at which the offset of a zone may change.
fn next_change(time: i64, zone: *mut pg_sys::pg_tz) -> Option<i64> {
    let ask = |time: i64| {
        let (mut until, [mut before, mut after], [mut is_summer, mut will_be]) = (0, [0, 0], [0, 0]);
        // SAFETY: the zone is the session's; the function writes to these local variables only.
        let found = unsafe {
            pg_sys::pg_next_dst_boundary(&time, &mut before, &mut is_summer, &mut until, &mut after, &mut will_be, zone)
        };
        (found, until)
    };
    match ask(time) {
        (1, until) => Some(until),
        // At the exact second of the last change in its table, Postgres finds no further change. One second later it
        // computes the next one from the rule.
        (0, _) if ask(time.checked_add(1)?).0 != 0 => Some(time + 1),
        (0, _) => Some(i64::MAX),
        _ => None,
    }
}
