//! Dates and times, in ISO 8601 whatever `DateStyle` says.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

use pgrx::prelude::*;

/// Writes the dates or times of one column.
#[derive(Default)]
pub struct Time {
    /// The last one that was written: the next row's is most likely of the same second.
    last: Cell<Option<Second>>,
}

/// A second, or a day, and its text.
struct Second {
    /// The value, without a fraction of its second.
    value: i64,
    /// The session's time zone, by which the text was made.
    zone: *mut pg_sys::pg_tz,
    text: Vec<u8>,
    /// Where in the text a fraction belongs.
    end: usize,
}

impl Time {
    /// Writes a value of one of the types `date`, `timestamp` and `timestamptz`, as `to_jsonb` does.
    pub fn write(&self, out: &mut Vec<u8>, type_oid: pg_sys::Oid, value: pg_sys::Datum) {
        // SAFETY: a plain variable of this backend; Postgres never frees a zone.
        let zone = unsafe { pg_sys::session_timezone };
        let value = value.value() as i64;
        // The ends of the range stand for infinity.
        let is_timestamp = type_oid != pg_sys::DATEOID && ![i64::MIN, i64::MAX].contains(&value);
        let fraction = if is_timestamp { value.rem_euclid(1_000_000) } else { 0 };
        let whole = value - fraction;
        let last = self.last.take().filter(|last| last.value == whole && last.zone == zone);
        let last = last.unwrap_or_else(|| Second::new(type_oid, whole, zone));
        let (seconds, rest) = last.text.split_at(last.end);
        out.extend_from_slice(seconds);
        if fraction > 0 {
            let mut digits = *b".000000";
            let mut rest = fraction;
            for digit in digits[1..].iter_mut().rev() {
                *digit += (rest % 10) as u8;
                rest /= 10;
            }
            let length = digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
            out.extend_from_slice(&digits[..length]);
        }
        out.extend_from_slice(rest);
        self.last.set(Some(last));
    }
}

impl Second {
    fn new(type_oid: pg_sys::Oid, value: i64, zone: *mut pg_sys::pg_tz) -> Self {
        let mut buffer = [0 as c_char; pg_sys::MAXDATELEN as usize + 1];
        // SAFETY: the buffer has the size that the function asks for; the value is of the type.
        let text = unsafe {
            let value = pg_sys::Datum::from(value);
            pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), value, type_oid, std::ptr::null());
            CStr::from_ptr(buffer.as_ptr()).to_bytes().to_vec()
        };
        // Behind the seconds come the zone and the era; a date has no seconds, nor has infinity.
        let time = text.iter().position(|byte| *byte == b'T');
        let end = time.map_or(text.len(), |time| time + "Thh:mm:ss".len());
        Self { value, zone, text, end }
    }
}
