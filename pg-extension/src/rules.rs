//! Runs the query of a subscription rule as the subscriber. Everything that its code does to the session is undone
//! before the next rule runs. Which rules run, and for which role, is decided in SQL: `sql/extension/60_access.sql`.

use std::ffi::CStr;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;

use crate::preload;
use crate::subscriber::{Confined, become_subscriber, c_string, current_user, set_locally};
use crate::subtransaction::{report, undone};

/// Errors after which a rule has neither allowed nor denied access, so the whole statement fails: it timed out or was
/// cancelled, or a lock could not be taken in time.
const NO_ANSWER: [PgSqlErrorCode; 2] =
    [PgSqlErrorCode::ERRCODE_QUERY_CANCELED, PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE];

/// `tidings.ask_rule(role, claims, query, holes, search_path)`: why the rule denies access to the role, or NULL if it
/// allows access. Only the extension's owner may call it, because it does not check the role. A NULL argument is an
/// error.
#[pg_extern]
fn ask_rule(
    role: pg_sys::Oid,
    claims: &str,
    query: &str,
    holes: Vec<Option<String>>,
    search_path: &str,
) -> Option<String> {
    match as_subscriber(role, claims, search_path, query, holes, |_| ()) {
        Ok(Some(())) => None,
        Ok(None) => Some("its rule finds no row".into()),
        Err(error) if NO_ANSWER.contains(&report(&error).sql_error_code()) => error.rethrow(),
        Err(error) => Some(format!("its rule fails: {}", report(&error).message())),
    }
}

/// `tidings.explain_rule(role, query, holes, search_path)`: how Postgres would run the rule for the role and these
/// values, as JSON; NULL if it can't be planned with them. Only the extension's owner may call it. Planning runs code
/// of users too, so it is done as the subscriber.
#[pg_extern]
fn explain_rule(role: pg_sys::Oid, query: &str, holes: Vec<Option<String>>, search_path: &str) -> Option<String> {
    let query = format!("EXPLAIN (FORMAT JSON, VERBOSE) {query}");
    let text = |row: Row| row.text();
    match as_subscriber(role, "{}", search_path, &query, holes, text) {
        Ok(plan) => plan.flatten(),
        Err(error) if NO_ANSWER.contains(&report(&error).sql_error_code()) => error.rethrow(),
        Err(_) => None,
    }
}

/// What `read` makes of the first row that a query finds for a role; `None` if it finds no row.
fn as_subscriber<R>(
    role: pg_sys::Oid,
    claims: &str,
    search_path: &str,
    query: &str,
    holes: Vec<Option<String>>,
    read: impl FnOnce(Row) -> R,
) -> Result<Option<R>, Box<CaughtError>> {
    preload::require();
    let [claims, query, search_path] = [claims, query, search_path].map(c_string);
    let holes = holes.into_datum().unwrap_or_else(|| error!("the values of a topic's holes are no array"));
    let settings =
        [(c"transaction_read_only", c"on"), (c"request.jwt.claims", &*claims), (c"search_path", &*search_path)];
    isolated(|| {
        let _confined = Confined::begin();
        // SAFETY: in a subtransaction, whose end restores the settings and the user. `holes` is a text[].
        unsafe {
            for (name, value) in settings {
                set_locally(name, value);
            }
            become_subscriber(role);
            first_row(&query, holes, read)
        }
    })
}

/// Runs `body` in a subtransaction that is always rolled back, and releases session-level locks, which a rollback
/// keeps. Statements that would leave anything else behind are refused: PREPARE, LISTEN, a cursor WITH HOLD, a
/// temporary table.
fn isolated<R>(body: impl FnOnce() -> R) -> Result<R, Box<CaughtError>> {
    let (user, security) = current_user();
    let result = undone(body);
    // The rollback has restored the user already. Setting it again guards against a way around that.
    // SAFETY: the user and the security context are those of before; only locks of this session are released.
    unsafe {
        pg_sys::SetUserIdAndSecContext(user, security);
        pg_sys::LockReleaseSession(pg_sys::USER_LOCKMETHOD as pg_sys::LOCKMETHODID);
    }
    result
}

/// What `read` makes of the first row of a query whose `$1` is a text[]. The row is really computed: inside EXISTS,
/// Postgres would not evaluate the expressions that the query selects, and a function that denies access by raising an
/// error would never be called.
///
/// # Safety
/// Inside a subtransaction that is rolled back, which closes the cursor. `holes` is a text[].
unsafe fn first_row<R>(query: &CStr, holes: pg_sys::Datum, read: impl FnOnce(Row) -> R) -> Option<R> {
    let (mut types, mut values) = ([pg_sys::TEXTARRAYOID], [holes]);
    // SAFETY: there is one type and one value for the one parameter, which is a text[], as the caller promises. A
    // cursor accepts only a single query. A row that was found is in SPI's table until SPI_finish.
    unsafe {
        pg_sys::SPI_connect();
        let no_nulls = std::ptr::null();
        let cursor = pg_sys::SPI_cursor_open_with_args(
            std::ptr::null(),
            query.as_ptr(),
            1,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            no_nulls,
            false,
            0,
        );
        pg_sys::SPI_cursor_fetch(cursor, true, 1);
        let found = (pg_sys::SPI_processed > 0).then(|| read(Row { table: pg_sys::SPI_tuptable }));
        pg_sys::SPI_finish();
        found
    }
}

/// The row that SPI has just fetched.
struct Row {
    table: *mut pg_sys::SPITupleTable,
}

impl Row {
    /// Its first column.
    fn text(self) -> Option<String> {
        // SAFETY: only `first_row` makes a row, and passes it on while SPI keeps its table. The text is a C string, or
        // null if the value is; it is copied.
        unsafe {
            let text = pg_sys::SPI_getvalue(*(*self.table).vals, (*self.table).tupdesc, 1);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }
}
