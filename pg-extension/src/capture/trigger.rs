//! The trigger function, and `publish`: where events come from.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::borrow::Cow;
use std::cell::Cell;

use pgrx::prelude::*;
use tidings_wire::Row;
use tidings_wire::segment::Event;
use tidings_wire::topic::{TopicError, check_event, check_name};

use crate::capture::command::Rank;
use crate::capture::encoder::Captured;
use crate::capture::payload::{Change, Operation, Tuple};
use crate::capture::watch::Watch;
use crate::capture::{buffer, watches};
use crate::errors::WatchError;
use crate::foreign::infallible::heap_deform_tuple;
use crate::{errors, preload, settings};

thread_local! {
    /// Memory for one row's events, kept from row to row. A nested trigger finds it lent out and uses its own.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

#[derive(Default)]
struct Scratch {
    tuples: [Tuple; 2],
    packed: Packed,
}

/// An event as it goes into the buffer.
#[derive(Default)]
struct Packed {
    topic: Vec<u8>,
    row: Row,
}

/// Memory for packed values kept from row to row.
const KEEP: usize = 64 * 1024;

/// Tells Postgres how `tidings_capture` is called.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_tidings_capture() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// The trigger function `tidings.capture()`.
///
/// # Safety
/// Called by Postgres only, as the SQL declares it.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn tidings_capture(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: Postgres calls with a valid fcinfo; the context is a TriggerData if `called_as_trigger` says so.
    let data = unsafe {
        if !pgrx::trigger_support::called_as_trigger(fcinfo) {
            WatchError::Trigger.raise();
        }
        &*(*fcinfo).context.cast::<pg_sys::TriggerData>()
    };
    if !preload::is_there() {
        preload::warn_once();
    } else if settings::capture() {
        capture(data);
    }
    pg_sys::Datum::from(0)
}

fn capture(data: &pg_sys::TriggerData) {
    let watch = watches::of(data);
    // Packing may run SQL (a type's output function may), so nothing is borrowed meanwhile.
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let Scratch { tuples: [old, new], packed } = &mut *scratch;
    // SAFETY: the tuples are those that the operation has; they live as long as the trigger runs.
    let deform = |into: &mut Tuple, tuple| unsafe { deform(into, tuple, data.tg_relation, watch.columns.count()) };
    // SAFETY: Postgres gives a trigger function its trigger.
    let is_deferrable = unsafe { (*data.tg_trigger).tgdeferrable };
    let rank = |new, old| {
        // A trigger that fires at the commit has its changes in order, but behind all others.
        // SAFETY: as above.
        if is_deferrable { Rank::now() } else { unsafe { Rank::of_row(data.tg_relation, new, old) } }
    };
    match data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
        pg_sys::TRIGGER_EVENT_INSERT => {
            deform(new, data.tg_trigtuple);
            emit(&watch, Operation::Insert, rank(Some(data.tg_trigtuple), None), Some(new), None, packed);
        }
        pg_sys::TRIGGER_EVENT_DELETE => {
            deform(old, data.tg_trigtuple);
            emit(&watch, Operation::Delete, rank(None, Some(data.tg_trigtuple)), None, Some(old), packed);
        }
        pg_sys::TRIGGER_EVENT_UPDATE => {
            deform(old, data.tg_trigtuple);
            deform(new, data.tg_newtuple);
            let rank = rank(Some(data.tg_newtuple), Some(data.tg_trigtuple));
            if moves(&watch, old, new) {
                emit(&watch, Operation::Delete, rank, None, Some(old), packed);
                emit(&watch, Operation::Insert, rank, Some(new), None, packed);
            } else if watch.columns.changed(old, new) {
                emit(&watch, Operation::Update, rank, Some(new), Some(old), packed);
            }
        }
        _ => emit(&watch, Operation::Truncate, Rank::of_truncate(), None, None, packed),
    }
    packed.row.clear();
    packed.row.shrink_to(KEEP);
    SCRATCH.set(Some(scratch));
}

/// Whether an UPDATE moves the row to another topic. Different values may have the same text.
fn moves(watch: &Watch, old: &Tuple, new: &Tuple) -> bool {
    if watch.same_topic(old, new) {
        return false;
    }
    let [from, to] = [old, new].map(|row| {
        let mut topic = Vec::new();
        watch.write_topic(&mut topic, Some(row)).is_ok_and(|written| written).then_some(topic)
    });
    from != to
}

/// Takes a row apart.
///
/// # Safety
/// `tuple` is a row of `relation`, which has `count` attributes.
unsafe fn deform(into: &mut Tuple, tuple: pg_sys::HeapTuple, relation: pg_sys::Relation, count: usize) {
    into.values.resize(count, pg_sys::Datum::null());
    into.nulls.resize(count, true);
    // SAFETY: as the caller promises.
    unsafe { prefetch_before((*tuple).t_data.cast(), (*tuple).t_len as usize) };
    // SAFETY: as the caller promises, and both vectors have room for `count`.
    unsafe { heap_deform_tuple(tuple, (*relation).rd_att, into.values.as_mut_ptr(), into.nulls.as_mut_ptr()) };
}

/// Asks for the memory before a row. A page is filled from its end, so the next row of a bulk change lies there, and no
/// cache has it any more: all rows were written before the first trigger runs. An UPDATE of wide rows waited for it a
/// tenth of its time.
#[cfg(target_arch = "x86_64")]
fn prefetch_before(start: *const u8, length: usize) {
    const LINE: usize = 64;
    for distance in (0..length + 2 * LINE).step_by(LINE) {
        // SAFETY: a hint, of which nothing comes if the memory is not there.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_sub(distance).cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch_before(_start: *const u8, _length: usize) {}

/// Packs one event and appends it to the transaction's buffer.
fn emit(
    watch: &Watch,
    operation: Operation,
    rank: Rank,
    new: Option<&Tuple>,
    old: Option<&Tuple>,
    packed: &mut Packed,
) {
    let Packed { topic, row } = packed;
    topic.clear();
    row.clear();
    let written = watch.write_topic(topic, new.or(old));
    if matches!(written, Ok(false)) {
        return;
    }
    let topic = text(topic);
    let problem =
        written.map_or_else(|error| Some(error.to_string()), |_| check_name(&topic).err().map(|e| e.to_string()));
    if let Some(problem) = problem {
        buffer::warn_skipped(&format!("The topic that the watch makes is not valid: {problem}."));
        return;
    }
    let mut outline = watch.outline(operation);
    if outline.pack(row, &watch.columns, &Change { new, old }, settings::max_payload()).is_err() {
        // This one has no values.
        row.clear();
        outline = watch.truncated(operation);
    }
    buffer::append_captured(Captured { topic: &topic, event: &watch.event, rank, outline, row });
}

/// What was written, as the text that it is in a UTF-8 database unless a type's output function is broken. Looked at as
/// a whole first: `from_utf8_lossy` alone goes byte by byte.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// `tidings.publish_text(topic, data, event)`, and under it `tidings.publish`.
#[pg_extern]
fn publish_text(topic: &str, data: &str, event: &str) {
    preload::require();
    // SAFETY: raises an error or does nothing.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"tidings.publish()".as_ptr()) };
    let bad = |what: &str, error: TopicError, hint| {
        errors::raise(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, format!("bad {what}: {error}"), hint)
    };
    if let Err(error) = check_name(topic) {
        bad("topic", error, "A topic is 1 to 255 bytes without control characters.");
    }
    if let Err(error) = check_event(event) {
        bad("event name", error, errors::BAD_EVENT_HINT);
    }
    if data.len() > settings::max_payload() {
        errors::raise(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("the payload has {} bytes, more than tidings.max_payload", data.len()),
            "Publish a reference to the data instead.",
        );
    }
    buffer::append(&Event { topic, event, payload: data.into() });
}
