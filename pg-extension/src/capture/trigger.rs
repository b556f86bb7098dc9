//! The trigger function, and `publish`: where events come from.

use std::borrow::Cow;
use std::cell::Cell;
use std::ffi::CStr;

use pgrx::prelude::*;
use tidings_wire::segment::{Event, Recheck};
use tidings_wire::topic::{TopicError, check_event, check_name};
use tidings_wire::{Limit, Row};

use crate::capture::change::{Change, Tuple};
use crate::capture::encoder::Captured;
use crate::capture::rank::{Places, Rank};
use crate::capture::watch::{NoTopic, Watch};
use crate::capture::{buffer, watches};
use crate::errors::WatchError;
use crate::value::writer::NoText;
use crate::{errors, preload, settings, warnings};

thread_local! {
    /// Memory for the events of one row, kept from row to row. A nested trigger finds it taken and uses its own.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

#[derive(Default)]
struct Scratch {
    old: Tuple,
    new: Tuple,
    packed: Packed,
}

/// An event as it goes into the buffer.
#[derive(Default)]
struct Packed {
    topic: Vec<u8>,
    row: Row,
}

/// A template that every topic matches.
const ANY: &str = "{any}";

/// The most memory for packed values that is kept from row to row, in bytes.
const KEPT_VALUES: usize = 64 * 1024;

/// The calling convention of `tidings_capture`, which Postgres asks for.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_tidings_capture() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// The trigger function `tidings.capture()`.
///
/// # Safety
/// Called only by Postgres, as the SQL declares the function.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn tidings_capture(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: Postgres passes a valid fcinfo. Its context is a TriggerData if `called_as_trigger` says so.
    let data = unsafe {
        if !pgrx::trigger_support::called_as_trigger(fcinfo) {
            WatchError::Trigger.raise();
        }
        &*(*fcinfo).context.cast::<pg_sys::TriggerData>()
    };
    if !preload::is_there() {
        preload::warn_once();
        return pg_sys::Datum::from(0);
    }
    // SAFETY: Postgres is calling the trigger function with this data.
    if settings::capture() || unsafe { is_guard(data) } {
        // SAFETY: Postgres is calling the trigger function with this data.
        unsafe { capture(data) };
    }
    pg_sys::Datum::from(0)
}

/// Whether the trigger is a guard's. Guards also work in a session that captures nothing: it may load data in bulk, but
/// what it takes away must not stay readable.
///
/// # Safety
/// Postgres is calling a trigger function with this data.
unsafe fn is_guard(data: &pg_sys::TriggerData) -> bool {
    // SAFETY: the data of a call has a valid trigger, which has `tgnargs` arguments, all of them C strings.
    unsafe {
        let trigger = &*data.tg_trigger;
        (0..trigger.tgnargs as usize).any(|i| CStr::from_ptr(*trigger.tgargs.add(i)) == c"guard=true")
    }
}

/// Captures the change for which the trigger is called.
///
/// # Safety
/// Postgres is calling a trigger function with this data: the trigger, the relation and the rows that the event has are
/// valid until the function returns.
unsafe fn capture(data: &pg_sys::TriggerData) {
    // SAFETY: Postgres is calling a trigger function with this data, as the caller promises.
    let watch = unsafe { watches::of(data) };
    // Packing may run SQL (the output function of a type may), so nothing is borrowed meanwhile.
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let Scratch { old, new, packed } = &mut *scratch;
    let take_apart = |into: &mut Tuple, row| {
        // SAFETY: a row that the event has is valid until the trigger function returns, and is one of the relation that
        // the watch belongs to. The next call of the function takes the next row apart before it uses the memory.
        unsafe { into.take_apart(row, data.tg_relation, watch.columns.count()) }
    };
    // SAFETY: the trigger is valid, as the caller promises.
    let pg_sys::Trigger { tgdeferrable: is_deferrable, tgtype, .. } = unsafe { *data.tg_trigger };
    let places = |new, old| {
        // A deferred trigger fires at the commit: its changes are in order, but after all others.
        if is_deferrable {
            return Places::from(Rank::now());
        }
        // SAFETY: these are the rows of the event, and the relation is the trigger's, as the caller promises.
        unsafe { Rank::of_row(data.tg_relation, new, old) }
    };
    match data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
        pg_sys::TRIGGER_EVENT_INSERT => {
            take_apart(new, data.tg_trigtuple);
            emit(&watch, Change::Insert { new }, places(Some(data.tg_trigtuple), None).new, packed);
        }
        pg_sys::TRIGGER_EVENT_DELETE => {
            take_apart(old, data.tg_trigtuple);
            emit(&watch, Change::Delete { old }, places(None, Some(data.tg_trigtuple)).old, packed);
        }
        pg_sys::TRIGGER_EVENT_UPDATE => {
            take_apart(old, data.tg_trigtuple);
            take_apart(new, data.tg_newtuple);
            let places = places(Some(data.tg_newtuple), Some(data.tg_trigtuple));
            let is_changed = watch.columns.changed(old, new);
            let is_divided = is_changed && places.old != places.new && has_inserts_and_deletes(tgtype);
            if changes_topic(&watch, old, new) || is_divided {
                emit(&watch, Change::Delete { old }, places.old, packed);
                emit(&watch, Change::Insert { new }, places.new, packed);
            } else if is_changed {
                emit(&watch, Change::Update { old, new }, places.new, packed);
            }
        }
        // SAFETY: the relation is the trigger's, as the caller promises.
        _ => emit(&watch, Change::Truncate, unsafe { Rank::of_truncate(data.tg_relation) }, packed),
    }
    packed.row.clear();
    packed.row.shrink_to(KEPT_VALUES);
    SCRATCH.set(Some(scratch));
}

/// Whether a trigger fires for INSERT and DELETE. A watch of UPDATE alone does not say which rows exist, so its updates
/// are not divided.
fn has_inserts_and_deletes(tgtype: i16) -> bool {
    let both = pg_sys::TRIGGER_TYPE_INSERT | pg_sys::TRIGGER_TYPE_DELETE;
    u32::from(tgtype.unsigned_abs()) & both == both
}

/// Whether an UPDATE moves the row to another topic. Different values may have the same text.
fn changes_topic(watch: &Watch, old: &Tuple, new: &Tuple) -> bool {
    if watch.same_topic(old, new) {
        return false;
    }
    let [from, to] = [old, new].map(|row| {
        let mut topic = Vec::new();
        watch.write_topic(&mut topic, Some(row)).is_ok_and(|written| written).then_some(topic)
    });
    from != to
}

/// Packs one event and appends it to the transaction's buffer.
fn emit(watch: &Watch, change: Change<'_>, rank: Rank, packed: &mut Packed) {
    let Packed { topic, row } = packed;
    topic.clear();
    row.clear();
    if watch.is_guard && matches!(change, Change::Truncate) {
        return recheck_all(&watch.template, rank);
    }
    let written = watch.write_topic(topic, change.new_row().or(change.old_row()));
    match &written {
        Ok(false) => return,
        Err(NoTopic::Text(NoText::Fails)) if watch.is_guard => return recheck_all(&watch.template, rank),
        Err(NoTopic::Refused(_)) if watch.is_guard => return recheck_all(ANY, rank),
        // Nobody can subscribe to the topic of any other error.
        _ => {}
    }
    let topic = text(topic);
    let problem =
        written.map_or_else(|error| Some(error.to_string()), |_| check_name(&topic).err().map(|e| e.to_string()));
    if let Some(problem) = problem {
        warnings::event_skipped(&format!("The topic of the watch is not valid for this row: {problem}."));
        return;
    }
    if watch.is_guard {
        return buffer::append_recheck(Recheck::Topic(&topic), rank, true);
    }
    let mut plan = watch.plan(change.operation());
    if plan.pack(row, &watch.columns, &change, Limit::new(settings::max_payload())).is_err() {
        // The payload that is sent instead has no values.
        row.clear();
        plan = watch.truncated_plan(change.operation());
    }
    buffer::append_captured(Captured { topic: &topic, event: &watch.event, rank, plan, row });
}

/// A recheck of all topics that match the template, because nobody can tell which of them it is about.
fn recheck_all(template: &str, rank: Rank) {
    // A template may be longer than a topic.
    let template = if check_name(template).is_ok() { template } else { ANY };
    buffer::append_recheck(Recheck::Matching(template), rank, true);
}

/// Bytes as text. In a UTF-8 database they are UTF-8 unless the output function of a type is broken. `from_utf8` checks
/// them all at once; `from_utf8_lossy` alone would go byte by byte. Most texts are ASCII, which is checked even faster.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    if bytes.is_ascii() {
        // SAFETY: ASCII is UTF-8.
        return Cow::Borrowed(unsafe { std::str::from_utf8_unchecked(bytes) });
    }
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// `tidings.publish_text(topic, data, event)`, which `tidings.publish` calls.
#[pg_extern]
fn publish_text(topic: &str, data: &str, event: &str) {
    preload::require();
    // SAFETY: raises an error or does nothing; the name is a C string.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"tidings.publish()".as_ptr()) };
    let bad = |what: &str, error: TopicError, hint| {
        errors::raise(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, format!("bad {what}: {error}"), hint)
    };
    if let Err(error) = check_name(topic) {
        bad("topic", error, errors::BAD_TOPIC_HINT);
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

/// `tidings.recheck(topic)`.
#[pg_extern]
fn recheck(topic: &str) {
    preload::require();
    // SAFETY: raises an error or does nothing; the name is a C string.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"tidings.recheck()".as_ptr()) };
    if let Err(error) = check_name(topic) {
        errors::raise(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("bad topic: {error}"),
            errors::BAD_TOPIC_HINT,
        );
    }
    buffer::append_recheck(Recheck::Topic(topic), Rank::now(), false);
}

/// `tidings.unwritten()`: the segments that the transaction would write now. They stay in the buffer.
#[pg_extern]
fn unwritten() -> TableIterator<'static, (name!(ordinal, i64), name!(data, Vec<u8>))> {
    preload::require();
    TableIterator::new(buffer::copies())
}
