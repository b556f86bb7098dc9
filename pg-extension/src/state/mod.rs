//! The current rows of a topic, as events: a stream with `since=snapshot` starts with them, and `tidings.state()`
//! returns them.
//!
//! [`source`] finds out which rows these are: those of the watches whose topic matches, or of the DBA's own query.
//! [`reading`] reads them, a few at a time. The proxy opens a reading as the subscriber, and fetches rows at its
//! client's pace; `tidings.state()` reads all rows at once, as its caller.

mod reading;
mod source;

use std::cell::RefCell;

use pgrx::prelude::*;
use tidings_wire::Template;
use tidings_wire::topic::{check_event, check_name};

use crate::subscriber::c_string;
use crate::{errors, preload};
use reading::{Part, Reading, Subscriber};

thread_local! {
    /// The reading that this session has open.
    static OPEN: RefCell<Option<Reading>> = const { RefCell::new(None) };
}

/// `tidings.open_rows_as(role, claims, topics, search_path)`: opens a reading, which replaces an open one. Only the
/// extension's owner may call it, because it does not check the role. Its caller rolls the transaction back.
#[pg_extern]
fn open_rows_as(role: pg_sys::Oid, claims: Option<&str>, topics: Vec<Option<String>>, search_path: &str) {
    preload::require();
    OPEN.take();
    let subscriber = Subscriber { role, claims: claims.map(c_string), search_path: c_string(search_path) };
    let reading = Reading::open(&distinct(topics), Some(subscriber));
    OPEN.set(Some(reading));
}

/// `tidings.fetch_rows(max_bytes)`: the next rows of the open reading, until their payloads have this many bytes; no
/// rows at the end.
#[pg_extern]
fn fetch_rows(
    max_bytes: i32,
) -> TableIterator<'static, (name!(topic, String), name!(event, String), name!(payloads, Vec<String>))> {
    preload::require();
    let Some(mut reading) = OPEN.take() else {
        errors::raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "no rows are open",
            "Call tidings.open_rows() in the same transaction first.",
        )
    };
    let parts = reading.fetch(max_bytes.max(1) as usize);
    OPEN.set(Some(reading));
    TableIterator::new(parts.into_iter().map(|Part { topic, event, payloads }| (topic, event, payloads)))
}

/// `tidings.state(topics)`: the rows of the topics, as events, read as the caller.
#[pg_extern]
fn state(
    topics: Vec<Option<String>>,
) -> TableIterator<'static, (name!(topic, String), name!(event, String), name!(payload, String))> {
    /// Rows are fetched in portions of this many bytes. Postgres collects them, above `work_mem` in a file.
    const PORTION: usize = 256 * 1024;
    preload::require();
    let mut reading = Reading::open(&distinct(topics), None);
    let portions = std::iter::from_fn(move || Some(reading.fetch(PORTION)).filter(|parts| !parts.is_empty()));
    let events = portions.flatten().flat_map(|Part { topic, event, payloads }| {
        payloads.into_iter().map(move |payload| (topic.clone(), event.clone(), payload))
    });
    TableIterator::new(events)
}

/// The topics of a list, each once.
fn distinct(topics: Vec<Option<String>>) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for topic in topics.into_iter().flatten() {
        if !distinct.contains(&topic) {
            distinct.push(topic);
        }
    }
    distinct
}

/// `tidings.check_snapshot(topic, event)`: raises an error if the event name of a query, or its topic, is not valid.
#[pg_extern]
fn check_snapshot(topic: &str, event: &str) {
    preload::require();
    let bad = |message: String, hint| errors::raise(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint);
    if let Err(error) = check_event(event) {
        bad(format!("bad event name \"{event}\": {error}"), errors::BAD_EVENT_HINT);
    }
    let hint =
        "A topic is 1 to 255 bytes without control characters, such as boards_{id}; {{ and }} are literal braces.";
    if let Err(error) = check_name(topic) {
        bad(format!("bad topic \"{topic}\": {error}"), hint);
    }
    if let Err(error) = Template::parse(topic) {
        bad(format!("bad topic \"{topic}\": {error}"), hint);
    }
}

/// `tidings.holes(template)`: the names of a template's holes, in order; none if the text is not a template.
#[pg_extern]
fn holes(template: &str) -> Vec<String> {
    preload::require();
    let Ok(template) = Template::parse_any(template) else { return Vec::new() };
    template.holes().map(str::to_owned).collect()
}
