//! Dates and times, packed: what Postgres stores, and of an instant how far the session's clocks were ahead of
//! Greenwich then.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::ptr::null_mut;

use pgrx::prelude::*;
use tidings_wire::value::{self, Stop};

/// The seconds from 1970-01-01 to 2000-01-01, from where Postgres counts.
const EPOCH: i64 = 10_957 * 86_400;

/// Packs a value of one of the types `date`, `time`, `timestamp` and `timestamptz`.
pub fn pack(out: &mut Vec<u8>, type_oid: pg_sys::Oid, value: pg_sys::Datum) {
    let number = value.value() as i64;
    let packed = match type_oid {
        pg_sys::DATEOID => value::pack_date(out, value.value() as i32),
        pg_sys::TIMEOID => value::pack_time(out, number),
        pg_sys::TIMESTAMPOID => value::pack_timestamp(out, number),
        _ => offset(number.div_euclid(1_000_000) + EPOCH)
            .ok_or(Stop::Unknown)
            .and_then(|offset| value::pack_timestamptz(out, number, offset)),
    };
    if packed.is_err() {
        value::pack_text(out, &written_by_postgres(type_oid, value));
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

/// The time in which a zone has the same offset.
#[derive(Clone, Copy)]
struct Period {
    zone: *mut pg_sys::pg_tz,
    from: i64,
    until: i64,
    /// In seconds, to the east of Greenwich.
    offset: i32,
}

/// The offset of the session's time zone at a time, in seconds since 1970. The next row's is most likely the same.
fn offset(time: i64) -> Option<i32> {
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
    Some(Period { zone, from, until: next_change(time, zone)?, offset: i32::try_from(offset).ok()? })
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
        // At the very second of the last change in its table, Postgres knows of none to come; a second later it reckons
        // on.
        (0, _) if ask(time.checked_add(1)?).0 != 0 => Some(time + 1),
        (0, _) => Some(i64::MAX),
        _ => None,
    }
}
