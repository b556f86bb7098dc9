//! The trigger function, and `publish`: where events come from.

use std::cell::Cell;

use pgrx::prelude::*;
use tidings_wire::segment::Event;
use tidings_wire::topic::check_name;

use crate::payload::{Change, Operation, Row};
use crate::watch::{self, Watch, WatchError};
use crate::{buffer, errors, settings};

thread_local! {
    /// Memory for one event, kept from row to row. A nested trigger finds it lent out and uses its own.
    static SCRATCH: Cell<Scratch> = const { Cell::new(Scratch { topic: Vec::new(), payload: Vec::new() }) };
}

#[derive(Default)]
struct Scratch {
    topic: Vec<u8>,
    payload: Vec<u8>,
}

/// Payload memory kept from row to row.
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
    if settings::capture() {
        capture(data);
    }
    pg_sys::Datum::from(0)
}

fn capture(data: &pg_sys::TriggerData) {
    let watch = watch::of(data);
    // SAFETY: the tuples are those that the operation has; they live as long as the trigger runs.
    let row = |tuple| unsafe { deform(tuple, data.tg_relation, watch.columns.count()) };
    match data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
        pg_sys::TRIGGER_EVENT_INSERT => emit(&watch, Operation::Insert, Some(&row(data.tg_trigtuple)), None),
        pg_sys::TRIGGER_EVENT_DELETE => emit(&watch, Operation::Delete, None, Some(&row(data.tg_trigtuple))),
        pg_sys::TRIGGER_EVENT_UPDATE => {
            let (old, new) = (row(data.tg_trigtuple), row(data.tg_newtuple));
            if !watch.same_topic(&old, &new) {
                emit(&watch, Operation::Delete, None, Some(&old));
                emit(&watch, Operation::Insert, Some(&new), None);
            } else if watch.columns.changed(&old, &new) {
                emit(&watch, Operation::Update, Some(&new), Some(&old));
            }
        }
        _ => emit(&watch, Operation::Truncate, None, None),
    }
}

/// Takes a row apart.
///
/// # Safety
/// `tuple` is a row of `relation`, which has `count` attributes.
unsafe fn deform(tuple: pg_sys::HeapTuple, relation: pg_sys::Relation, count: usize) -> Row {
    let mut row = Row { values: vec![pg_sys::Datum::from(0); count], nulls: vec![true; count] };
    // SAFETY: as the caller promises, and both vectors have room for `count`.
    unsafe { pg_sys::heap_deform_tuple(tuple, (*relation).rd_att, row.values.as_mut_ptr(), row.nulls.as_mut_ptr()) };
    row
}

/// Renders one event and appends it to the transaction's buffer.
fn emit(watch: &Watch, operation: Operation, new: Option<&Row>, old: Option<&Row>) {
    let mut scratch = SCRATCH.take();
    scratch.topic.clear();
    scratch.payload.clear();
    // Writing may run SQL (a type's output function may), so nothing is borrowed meanwhile.
    if watch.write_topic(&mut scratch.topic, new.or(old)) {
        let topic = String::from_utf8_lossy(&scratch.topic);
        match check_name(&topic) {
            Err(error) => buffer::warn_skipped(&format!("The topic that its watch makes cannot be used: {error}.")),
            Ok(()) => {
                let change = Change { operation, new, old, most: settings::max_payload() };
                if watch.shape.write(&mut scratch.payload, &watch.columns, watch.old_record, &change).is_err() {
                    scratch.payload.clear();
                    watch.shape.write_truncated(&mut scratch.payload, operation);
                }
                let payload = String::from_utf8_lossy(&scratch.payload);
                buffer::append(&Event { topic: &topic, event: &watch.event, payload: &payload });
            }
        }
    }
    scratch.payload.shrink_to(KEEP);
    SCRATCH.set(scratch);
}

/// `tidings.publish_text(topic, data, event)`, and under it `tidings.publish`.
#[pg_extern]
fn publish_text(topic: &str, data: &str, event: &str) {
    // SAFETY: raises an error or does nothing.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"tidings.publish()".as_ptr()) };
    for (what, name) in [("topic", topic), ("event name", event)] {
        if let Err(error) = check_name(name) {
            errors::raise(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("bad {what}: {error}"),
                "Topics and event names are 1 to 255 bytes without control characters.",
            );
        }
    }
    if data.len() > settings::max_payload() {
        errors::raise(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("the payload has {} bytes, more than tidings.max_payload", data.len()),
            "Publish a reference to the data instead.",
        );
    }
    buffer::append(&Event { topic, event, payload: data });
}
