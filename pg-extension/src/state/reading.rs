//! A reading of rows has a cursor for each source. All cursors are opened at the start, so that a missing right makes
//! it fail before the first row. They are fetched one after the other, so that only a portion of the rows is in memory.
//!
//! Not here: which rows a topic has ([`crate::state::source`]).

use std::collections::VecDeque;
use std::ffi::{CStr, CString};

use pgrx::prelude::*;
use tidings_wire::{Limit, Row};

use crate::capture::change::{Change, Tuple};
use crate::errors;
use crate::foreign::infallible::heap_deform_tuple;
use crate::settings;
use crate::state::source::{Found, Shape, Source};
use crate::subscriber::{Confined, become_subscriber, c_string, current_user, set_locally};

/// Who reads.
pub struct Subscriber {
    /// The role that reads, which the code of policies and views can't leave.
    pub role: pg_sys::Oid,
    /// The value of `request.jwt.claims`, if the reader has claims.
    pub claims: Option<CString>,
    /// The `search_path` under which names are looked up.
    pub search_path: CString,
}

/// An open reading.
pub struct Reading {
    /// Who reads. If there is none, the current user reads, with the session's settings.
    subscriber: Option<Subscriber>,
    /// The sources that may have more rows.
    sources: VecDeque<Open>,
    /// When its transaction began: a reading ends with its transaction.
    transaction: pg_sys::TimestampTz,
}

/// A source and its cursor.
struct Open {
    source: Source,
    shape: Shape,
    /// The cursor's name, which code of users can't guess.
    cursor: CString,
    /// The types of its columns.
    types: Vec<pg_sys::Oid>,
}

/// Rows of one source, rendered.
pub struct Part {
    /// Their topic.
    pub topic: String,
    /// The name of their events.
    pub event: String,
    /// The payload of each event.
    pub payloads: Vec<String>,
}

/// The most rows that are fetched at once, whatever their size.
const MOST_ROWS: usize = 200;

/// How many bytes a row counts in addition to its own.
const ROW: usize = 64;

impl Reading {
    /// Opens the sources of the topics.
    pub fn open(topics: &[String], subscriber: Option<Subscriber>) -> Self {
        let mut found = Found::of(topics);
        let queries = std::mem::take(&mut found.queries);
        let templates = found.templates();
        // SAFETY: a plain variable of the backend.
        let transaction = unsafe { pg_sys::GetCurrentTransactionStartTimestamp() };
        let mut reading = Self { subscriber, sources: VecDeque::new(), transaction };
        let mut queries = queries.into_iter().peekable();
        for topic in topics {
            if queries.peek().is_some_and(|query| query.topic == *topic) {
                while let Some(query) = queries.next_if(|query| query.topic == *topic) {
                    let source = Source::of_query(query);
                    let search_path = source.search_path.clone();
                    let open = reading.run(search_path.as_deref(), || Open::new(source));
                    reading.sources.push_back(open);
                }
                continue;
            }
            for matching in templates.matching(topic) {
                let open = reading.run(None, || Source::of_watch(topic, matching).map(Open::new));
                reading.sources.extend(open);
            }
        }
        reading
    }

    /// The next rows, until they have `most` bytes; none at the end.
    pub fn fetch(&mut self, most: usize) -> Vec<Part> {
        // SAFETY: a plain variable of the backend.
        if self.transaction != unsafe { pg_sys::GetCurrentTransactionStartTimestamp() } {
            ended();
        }
        let (mut parts, mut room) = (Vec::new(), most as isize);
        while (room > 0 || parts.is_empty())
            && let Some(mut open) = self.sources.pop_front()
        {
            let mut payloads = Vec::new();
            let search_path = open.source.search_path.take();
            let most = room.max(1) as usize;
            let (taken, is_at_end) = self.run(search_path.as_deref(), || open.fetch(most, &mut payloads));
            room -= taken as isize;
            open.source.search_path = search_path;
            if !payloads.is_empty() {
                let Source { topic, event, .. } = &open.source;
                parts.push(Part { topic: topic.clone(), event: event.clone(), payloads });
            }
            if !is_at_end {
                self.sources.push_front(open);
            }
        }
        parts
    }

    /// Runs `body` as the subscriber, read-only, and then undoes whatever it has set. After an error, the abort of the
    /// transaction undoes it.
    fn run<R>(&self, search_path: Option<&CStr>, body: impl FnOnce() -> R) -> R {
        let (user, security) = current_user();
        let subscriber = self.subscriber.as_ref();
        let _confined = Confined::begin();
        // SAFETY: inside a transaction; the level of settings and the user are put back below. The settings are as
        // their owners may set them.
        unsafe {
            let level = pg_sys::NewGUCNestLevel();
            if let Some(path) = search_path.or(subscriber.map(|subscriber| &*subscriber.search_path)) {
                set_locally(c"search_path", path);
            }
            if let Some(claims) = subscriber.and_then(|subscriber| subscriber.claims.as_ref()) {
                set_locally(c"request.jwt.claims", claims);
            }
            // Conditions and queries of other roles must not write with the rights of who calls tidings.state().
            set_locally(c"transaction_read_only", c"on");
            become_subscriber(subscriber.map_or(user, |subscriber| subscriber.role));
            let result = body();
            pg_sys::AtEOXact_GUC(false, level);
            pg_sys::SetUserIdAndSecContext(user, security);
            result
        }
    }
}

impl Open {
    fn new(mut source: Source) -> Self {
        let Source { sql, types, values, shape, .. } = &mut source;
        let cursor = fresh_name();
        // SAFETY: there are as many types as values, and the values live until the cursor has copied them. A cursor
        // refuses anything but a single query. It sees what the running statement sees.
        let (types, of_query) = unsafe {
            pg_sys::SPI_connect();
            let portal = pg_sys::SPI_cursor_open_with_args(
                cursor.as_ptr(),
                sql.as_ptr(),
                types.len() as i32,
                types.as_mut_ptr(),
                values.as_mut_ptr(),
                std::ptr::null(),
                true,
                0,
            );
            // From now on, `pg_cursors` does not show it.
            (*portal).visible = false;
            let descriptor = pgrx::PgTupleDesc::from_pg_unchecked((*portal).tupDesc);
            let of_query = shape.is_none().then(|| Shape::of_query(&descriptor));
            let types = types_of(&descriptor);
            drop(descriptor);
            pg_sys::SPI_finish();
            (types, of_query)
        };
        values.clear();
        let shape = shape.take().or(of_query).expect("one of the two is there");
        Self { source, shape, cursor, types }
    }

    /// The cursor. It is looked up again whenever code of users may have run, because that can close any cursor, and
    /// open another one of the same name, with other columns. Such a cursor is visible, unlike ours. The name alone is
    /// not enough: a function that Postgres calls while it opens the cursor can read it in `pg_cursors`.
    fn portal(&self) -> pg_sys::Portal {
        // SAFETY: inside a transaction; an open cursor has a descriptor, or null.
        unsafe {
            let portal = pg_sys::SPI_cursor_find(self.cursor.as_ptr());
            if portal.is_null() || (*portal).visible || (*portal).tupDesc.is_null() {
                ended();
            }
            if types_of(&pgrx::PgTupleDesc::from_pg_unchecked((*portal).tupDesc)) != self.types {
                ended();
            }
            portal
        }
    }

    /// Fetches rows until they have `most` bytes. Returns how many bytes they have, and whether they were the last.
    fn fetch(&mut self, most: usize, payloads: &mut Vec<String>) -> (usize, bool) {
        // SAFETY: inside the transaction that opened the cursor, if the cursor still exists. What is allocated for a
        // row lies in a context that is emptied after the row, and is deleted with SPI's context.
        unsafe {
            pg_sys::SPI_connect();
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"tidings row".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            let (mut taken, mut count) = (0, 1);
            let is_at_end = loop {
                pg_sys::SPI_cursor_fetch(self.portal(), true, count as std::ffi::c_long);
                let (table, rows) = (pg_sys::SPI_tuptable, pg_sys::SPI_processed as usize);
                let before = pg_sys::MemoryContextSwitchTo(context);
                let mut size = 0;
                for n in 0..rows {
                    size += ROW + self.render(*(*table).vals.add(n), (*table).tupdesc, payloads);
                    pg_sys::MemoryContextReset(context);
                }
                pg_sys::MemoryContextSwitchTo(before);
                pg_sys::SPI_freetuptable(table);
                taken += size;
                if rows < count {
                    pg_sys::SPI_cursor_close(self.portal());
                    break true;
                }
                if taken >= most {
                    break false;
                }
                // As many rows as should fit, by the average size of the last ones.
                count = ((most - taken) * rows / size).clamp(1, MOST_ROWS);
            };
            pg_sys::SPI_finish();
            (taken, is_at_end)
        }
    }

    /// Renders a row, if it belongs to the topic. Returns its size.
    ///
    /// # Safety
    /// The row is one of the cursor's, and has this descriptor.
    unsafe fn render(
        &self,
        row: pg_sys::HeapTuple,
        descriptor: pg_sys::TupleDesc,
        payloads: &mut Vec<String>,
    ) -> usize {
        let shape = &self.shape;
        let (columns, count) = (shape.columns(), shape.places.len());
        let mut read = (vec![pg_sys::Datum::null(); count], vec![true; count]);
        // SAFETY: as the caller promises; a row of the query has as many columns as it selects.
        let stored = unsafe {
            heap_deform_tuple(row, descriptor, read.0.as_mut_ptr(), read.1.as_mut_ptr());
            (*row).t_len as usize
        };
        let mut values = vec![pg_sys::Datum::null(); columns.count()];
        let mut nulls = vec![true; columns.count()];
        for (n, place) in shape.places.iter().enumerate() {
            (values[*place], nulls[*place]) = (read.0[n], read.1[n]);
        }
        // SAFETY: each value is that of its column, and lies in the row, which is alive as long as this function runs.
        let tuple = unsafe { Tuple::of(values, nulls) };
        if let Some(watch) = shape.watch() {
            let mut topic = Vec::new();
            let is_written = watch.write_topic(&mut topic, Some(&tuple)).unwrap_or(false);
            if !is_written || topic != self.source.topic.as_bytes() {
                return stored;
            }
        }
        let change = Change::Insert { new: &tuple };
        let mut values = Row::default();
        let plan = match shape.plan.pack(&mut values, columns, &change, Limit::new(settings::max_payload())) {
            Ok(()) => &shape.plan,
            Err(_) => {
                values.clear();
                &shape.truncated_plan
            }
        };
        let payload = plan.fill(&values);
        let size = stored.max(payload.len());
        payloads.push(payload);
        size
    }
}

/// A name for a cursor.
fn fresh_name() -> CString {
    let mut bytes = [0; 16];
    // SAFETY: fills an array of this length.
    if !unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) } {
        error!("could not generate random numbers");
    }
    c_string(&format!("tidings {:032x}", u128::from_ne_bytes(bytes)))
}

/// The types of a row's columns.
fn types_of(descriptor: &pgrx::PgTupleDesc<'_>) -> Vec<pg_sys::Oid> {
    (0..descriptor.len()).map(|i| descriptor.get(i).map_or(pg_sys::InvalidOid, |column| column.atttypid)).collect()
}

/// The reading's transaction, or one of its cursors, is gone.
fn ended() -> ! {
    errors::raise(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "no rows are open",
        "Call tidings.open_rows() in the same transaction first.",
    )
}
