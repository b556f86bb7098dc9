//! Runs a subscription rule's query as the subscriber. Whatever its code does to the session is undone before another
//! rule runs. Which rules are asked, and for whom, is SQL: `sql/extension/60_access.sql`.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;

use crate::{errors, preload};

/// `tidings.ask_rule(role, claims, query, holes, search_path)`: why the rule denies access to the role, or NULL if it
/// allows access. Only the extension's owner may call it, because it does not check the role. An argument that
/// is NULL is an error.
#[pg_extern]
fn ask_rule(
    role: pg_sys::Oid,
    claims: &str,
    query: &str,
    holes: Vec<Option<String>>,
    search_path: &str,
) -> Option<String> {
    preload::require();
    let [claims, query, search_path] = [claims, query, search_path].map(c_string);
    let holes = holes.into_datum().unwrap_or_else(|| error!("the values of a topic's holes are no array"));
    let settings =
        [(c"transaction_read_only", c"on"), (c"request.jwt.claims", &*claims), (c"search_path", &*search_path)];
    let result = undone(|| {
        // SAFETY: in a subtransaction of its own, whose end puts the settings and the user back; `holes` is a text[].
        unsafe {
            for (name, value) in settings {
                set_locally(name, value);
            }
            become_subscriber(role);
            finds_row(&query, holes)
        }
    });
    match result {
        Ok(true) => None,
        Ok(false) => Some("its rule finds no row".into()),
        // The time for the whole question is over, or someone cancelled it: this rule must not swallow that.
        Err(error) if report(&error).sql_error_code() == PgSqlErrorCode::ERRCODE_QUERY_CANCELED => error.rethrow(),
        Err(error) => Some(format!("its rule fails: {}", report(&error).message())),
    }
}

fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_else(|_| {
        errors::raise(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "a text with a NUL",
            "A text in Postgres can't contain a NUL.",
        )
    })
}

fn report(error: &CaughtError) -> &pg_sys::panic::ErrorReportWithLevel {
    match error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
        CaughtError::RustPanic { ereport, .. } => ereport,
    }
}

/// Runs `body` in a subtransaction that is always rolled back, and releases session-level locks, which a rollback
/// keeps. Rules are refused statements that would leave more behind: PREPARE, LISTEN, a cursor WITH HOLD, a temporary
/// table.
fn undone<R>(body: impl FnOnce() -> R) -> Result<R, Box<CaughtError>> {
    let body = std::panic::AssertUnwindSafe(body);
    // SAFETY: inside a transaction. Memory context and resource owner are put back, as Postgres asks of whoever begins
    // a subtransaction; so are user and security context, which the rollback has put back before, should it ever not
    // have. The result of `body` has no memory of Postgres.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        let (user, security) = current_user();
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let result = PgTryBuilder::new(|| {
            let body = body;
            Ok((body.0)())
        })
        .catch_others(|error| Err(Box::new(error)))
        .catch_rust_panic(|error| Err(Box::new(error)))
        .execute();
        pg_sys::RollbackAndReleaseCurrentSubTransaction();
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        pg_sys::SetUserIdAndSecContext(user, security);
        pg_sys::LockReleaseSession(pg_sys::USER_LOCKMETHOD as pg_sys::LOCKMETHODID);
        result
    }
}

fn current_user() -> (pg_sys::Oid, i32) {
    let (mut user, mut security) = (pg_sys::InvalidOid, 0);
    // SAFETY: two plain variables of the backend are copied.
    unsafe { pg_sys::GetUserIdAndSecContext(&mut user, &mut security) };
    (user, security)
}

/// Until the end of the subtransaction, code runs as the role and can't leave it: SET ROLE, SET SESSION AUTHORIZATION
/// and everything that outlives a transaction are refused, as in Postgres's maintenance commands.
///
/// # Safety
/// Inside a subtransaction, whose end puts the user back.
unsafe fn become_subscriber(role: pg_sys::Oid) {
    let (_, security) = current_user();
    let locked = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
    // SAFETY: as the caller promises.
    unsafe { pg_sys::SetUserIdAndSecContext(role, security | locked as i32) }
}

/// Sets what anyone may set, until the end of the subtransaction.
///
/// # Safety
/// Inside a subtransaction.
unsafe fn set_locally(name: &CStr, value: &CStr) {
    // SAFETY: as the caller promises; Postgres copies both texts, and raises an error if the value will not do.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}

/// Whether a query, whose `$1` is a text[], finds a row. The first row is really computed: inside EXISTS, Postgres
/// would not evaluate what the query selects, so a function that denies access by raising an error would never be
/// called.
///
/// # Safety
/// Inside a subtransaction that is rolled back, which closes the cursor; `holes` is a text[].
unsafe fn finds_row(query: &CStr, holes: pg_sys::Datum) -> bool {
    let (mut types, mut values) = ([pg_sys::TEXTARRAYOID], [holes]);
    // SAFETY: as the caller promises; one type and one value for one parameter. A cursor takes a single query, and no
    // statement.
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
        let is_found = pg_sys::SPI_processed > 0;
        pg_sys::SPI_finish();
        is_found
    }
}
