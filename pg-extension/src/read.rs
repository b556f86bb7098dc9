//! The SQL functions that read the log, decode segments, read the clock, and show what the relay does.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;

use pgrx::PgMemoryContexts;
use pgrx::prelude::*;
use tidings_wire::position::END;
use tidings_wire::{Event, Position, segment};

use crate::log::{durability, lenders, pages, scan, segments, snapshot};
use crate::position::position_of;
use crate::relay::early::Reason;
use crate::subscriber::refuse_subscriber;
use crate::{errors, preload, shared};

/// `tidings.decode(data, topics)`: the events of a segment that have one of these topics, with their numbers in the
/// segment, from 1. A NULL list means all topics. Rechecks are left out.
#[pg_extern]
#[allow(clippy::type_complexity)] // The columns of the SQL function.
fn decode<'a>(
    data: &'a [u8],
    topics: Option<Vec<Option<String>>>,
) -> TableIterator<
    'a,
    (name!(n, i32), name!(topic, &'a str), name!(event, Option<&'a str>), name!(payload, Option<String>)),
> {
    TableIterator::new(decoded(data, topics).filter(|(_, event)| event.as_recheck().is_none()).map(columns))
}

/// `tidings.decode_all(data, topics)`: the same with the rechecks, which have neither a name nor a payload. Those that
/// may be about any topic are never left out.
#[pg_extern]
#[allow(clippy::type_complexity)] // The columns of the SQL function.
fn decode_all<'a>(
    data: &'a [u8],
    topics: Option<Vec<Option<String>>>,
) -> TableIterator<
    'a,
    (name!(n, i32), name!(topic, &'a str), name!(event, Option<&'a str>), name!(payload, Option<String>)),
> {
    TableIterator::new(decoded(data, topics).map(columns))
}

/// An event as the columns of a row.
fn columns((n, event): (i32, Event<'_>)) -> (i32, &str, Option<&str>, Option<String>) {
    match event.as_recheck() {
        Some(_) => (n, event.topic, None, None),
        None => (n, event.topic, Some(event.event), Some(event.payload.into_owned())),
    }
}

/// The events of a segment that have one of these topics. It decodes one event at a time. Postgres collects them, above
/// `work_mem` in a file.
fn decoded<'a>(data: &'a [u8], topics: Option<Vec<Option<String>>>) -> impl Iterator<Item = (i32, Event<'a>)> {
    preload::require();
    let data = match completed(data) {
        Cow::Borrowed(data) => data,
        // SAFETY: the memory context is that of the whole call, as for the argument: it lives until the last event.
        Cow::Owned(data) => unsafe { &*PgMemoryContexts::CurrentMemoryContext.leak_and_drop_on_delete(data) },
    };
    let wanted = topics.map(|topics| topics.into_iter().flatten().collect::<HashSet<_>>());
    let is_wanted = move |topic: &str| wanted.as_ref().is_none_or(|wanted| wanted.contains(topic));
    let mut events = segment::events(data);
    std::iter::from_fn(move || events.next_wanted(&is_wanted)).zip(1..).filter_map(|(event, n)| {
        pgrx::check_for_interrupts!();
        Some((n, event.unwrap_or_else(|error| unreadable(&error.to_string()))?))
    })
}

/// `tidings.complete(data)`: the whole of a segment, with what it has borrowed from another one.
#[pg_extern]
fn complete(data: &[u8]) -> Vec<u8> {
    preload::require();
    completed(data).into_owned()
}

fn completed(data: &[u8]) -> Cow<'_, [u8]> {
    lenders::complete(data).unwrap_or_else(|error| unreadable(&error))
}

fn unreadable(error: &str) -> ! {
    errors::raise(
        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        format!("a row of tidings.log cannot be read: {error}"),
        "Find it with SELECT tableoid::regclass, xid, stamp FROM tidings.log WHERE NOT tidings.is_readable(data).",
    )
}

/// `tidings.read_page(after, topics, max_bytes, max_cost)`: the segments after a position that have an event of one of
/// these topics, or a recheck that may be about one, in the form of `tidings_wire::page`; what ids of these events
/// contain after the event's number; the position up to which the log has been read; and whether it has more.
#[pg_extern]
#[allow(clippy::type_complexity)] // The columns of the SQL function.
fn read_page(
    after: &str,
    topics: Vec<Option<String>>,
    max_bytes: i32,
    max_cost: i32,
) -> TableIterator<
    'static,
    (name!(segments, Vec<u8>), name!(seen, Option<String>), name!(reached, String), name!(more, bool)),
> {
    preload::require();
    let after = position_of(after);
    let topics: HashSet<String> = topics.into_iter().flatten().collect();
    let limits = pages::Limits { bytes: usize::try_from(max_bytes).unwrap_or(0), cost: max_cost.into() };
    let page = pages::read(after, limits, |segment| Some(completed(segment)).filter(|whole| has_any(whole, &topics)));
    let seen = page.seen.map(|seen| seen.to_string());
    TableIterator::once((page.segments, seen, page.reached.to_string(), page.more))
}

/// `tidings.segments(after, max_bytes)`: the segments after a position, in order, and the ticks without events.
/// Everything that it returns is durable.
#[pg_extern]
#[allow(clippy::type_complexity)] // The columns of the SQL function.
fn segments(
    after: &str,
    max_bytes: i32,
) -> TableIterator<
    'static,
    (name!(tick, i64), name!(previous, i64), name!(first, i32), name!(last, bool), name!(data, Option<Vec<u8>>)),
> {
    preload::require();
    refuse_subscriber();
    let after = position_of(after);
    let rows = segments::read(after.tick, after.n, usize::try_from(max_bytes).unwrap_or(0), completed);
    // Checked after the log has been read, because events may be removed meanwhile.
    check_retained(&after);
    durability::secure_visible();
    TableIterator::new(rows.into_iter().map(|row| {
        let [tick, previous] = [row.tick, row.previous].map(|tick| tick as i64);
        (tick, previous, row.first as i32, row.is_last, row.data)
    }))
}

/// Raises an error unless all events after a position are retained.
fn check_retained(after: &Position) {
    let oldest = (floor() as u64).max(scan::oldest_position());
    if after.tick < oldest || (after.tick == oldest && after.n < END) {
        // The SQL function raises the error.
        let after = [(after.tick as i64).into(), i64::from(after.n).into()];
        Spi::run_with_args("SELECT tidings.check_retained($1, $2)", &after)
            .unwrap_or_else(|error| error!("check_retained: {error}"));
    }
}

/// Whether a segment has an event of one of these topics, or a recheck that may be about one. What comes after it is
/// not looked at.
fn has_any(segment: &[u8], topics: &HashSet<String>) -> bool {
    let mut events = segment::events(segment);
    while let Some(event) = events.next_wanted(|topic| topics.contains(topic)) {
        pgrx::check_for_interrupts!();
        if event.unwrap_or_else(|error| unreadable(&error.to_string())).is_some() {
            return true;
        }
    }
    false
}

/// `tidings.stamp()`: the next reading of the clock.
#[pg_extern]
fn stamp() -> i64 {
    preload::require();
    shared::next_stamp() as i64
}

/// `tidings.make_durable()`: waits until the ticks and the events that the caller's snapshot sees are durable.
#[pg_extern]
fn make_durable() {
    preload::require();
    durability::secure_visible();
}

/// `tidings.flushed_first()`: how many ticks were flushed before they were announced since the server started, by the
/// reason, as JSON.
#[pg_extern]
fn flushed_first() -> String {
    preload::require();
    let count = |reason: Reason| shared::my_database().map_or(0, |db| db.flushed_first[reason as usize].load(SeqCst));
    let counts: Vec<_> =
        Reason::ALL.into_iter().map(|reason| format!("\"{}\": {}", reason.name(), count(reason))).collect();
    format!("{{{}}}", counts.join(", "))
}

/// `tidings.floor()`: positions below this one have lost events, even if an old snapshot still sees them.
#[pg_extern]
fn floor() -> i64 {
    preload::require();
    let floor = shared::my_database().map_or(0, |db| db.floor.load(SeqCst));
    // In recovery there is no relay, so what the primary removes is found in the tables.
    let replayed = if snapshot::is_of_recovery() { scan::oldest_position() } else { 0 };
    floor.max(replayed) as i64
}

/// `tidings.library_version()`: the version of the library that this session uses. It may differ from the extension's
/// between an upgrade of the package, the restart, and `ALTER EXTENSION`.
#[pg_extern]
fn library_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// `tidings.relay()`: the relay's process and its counters since the server started.
#[pg_extern]
#[allow(clippy::type_complexity)] // The columns of the SQL function.
fn relay() -> TableIterator<
    'static,
    (
        name!(pid, Option<i32>),
        name!(state, String),
        name!(tick, Option<i64>),
        name!(ticks, i64),
        name!(events, i64),
        name!(hints, i64),
        name!(skipped, i64),
    ),
> {
    preload::require();
    let Some(db) = shared::my_database() else {
        // SAFETY: reads shared memory.
        let state = match unsafe { pg_sys::RecoveryInProgress() } {
            true => "standby",
            false if shared::is_full() => "no place",
            false => "unknown",
        };
        return TableIterator::once((None, state.into(), None, 0, 0, 0, 0));
    };
    let pid = Some(db.pid.load(SeqCst)).filter(|pid| *pid != 0);
    let tick = Some(db.tick.load(SeqCst) as i64).filter(|tick| *tick != 0);
    let [ticks, events, hints, skipped] =
        [&db.ticks, &db.events, &db.hints, &db.skipped].map(|counter| counter.load(SeqCst) as i64);
    let state = match db.paused.load(SeqCst) {
        true => "paused".into(),
        false => format!("{:?}", db.state()).to_lowercase(),
    };
    TableIterator::once((pid, state, tick, ticks, events, hints, skipped))
}

/// `tidings.ring()`: how many ticks were cut from the ring, and how often it was too small, since the server started.
#[pg_extern]
fn ring() -> TableIterator<'static, (name!(ticks, i64), name!(overflows, i64))> {
    preload::require();
    let counters = shared::my_database()
        .map_or([0; 2], |db| [&db.ring_ticks, &db.ring_overflows].map(|counter| counter.load(SeqCst) as i64));
    TableIterator::once((counters[0], counters[1]))
}
