//! Code that runs in a subtransaction of its own, so that its error does not abort the whole transaction.

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::{CaughtError, ErrorReportWithLevel};
use pgrx::prelude::*;

/// When the subtransaction is rolled back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RollBack {
    OnError,
    Always,
}

/// Runs `body` in a subtransaction. Returns None if it failed with an error of this code, which is not reported. Any
/// other error is raised again.
pub fn attempt<R>(code: PgSqlErrorCode, body: impl FnOnce() -> R) -> Option<R> {
    attempt_unless(|other| other != code, body).ok()
}

/// Runs `body` in a subtransaction and returns the code of its error. Errors whose code `passes` are raised again, and
/// so are Rust panics.
pub fn attempt_unless<R>(
    passes: impl Fn(PgSqlErrorCode) -> bool,
    body: impl FnOnce() -> R,
) -> Result<R, PgSqlErrorCode> {
    run(RollBack::OnError, body).map_err(|error| match &*error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) if !passes(report.sql_error_code()) => {
            report.sql_error_code()
        }
        _ => error.rethrow(),
    })
}

/// Runs `body` in a subtransaction and returns the message of any error.
pub fn attempt_all<R>(body: impl FnOnce() -> R) -> Result<R, String> {
    run(RollBack::OnError, body).map_err(|error| report(&error).message().to_owned())
}

/// Runs `body` in a subtransaction that is always rolled back. Nothing that `body` returns may refer to memory of
/// Postgres.
pub fn undone<R>(body: impl FnOnce() -> R) -> Result<R, Box<CaughtError>> {
    run(RollBack::Always, body)
}

/// The code and the message of an error.
pub fn report(error: &CaughtError) -> &ErrorReportWithLevel {
    match error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
        CaughtError::RustPanic { ereport, .. } => ereport,
    }
}

fn run<R>(roll_back: RollBack, body: impl FnOnce() -> R) -> Result<R, Box<CaughtError>> {
    let body = std::panic::AssertUnwindSafe(body);
    // SAFETY: called inside a transaction. Code that begins an internal subtransaction must restore the memory context
    // and the resource owner, which happens below; `body` allocates in the caller's context. The subtransaction ends
    // here in any case: Postgres would take one that an error left open for a savepoint, and the session would wait for
    // a ROLLBACK.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let result = PgTryBuilder::new(|| {
            let body = body;
            Ok((body.0)())
        })
        .catch_others(|error| Err(Box::new(error)))
        .catch_rust_panic(|error| Err(Box::new(error)))
        .execute();
        if result.is_ok() && roll_back == RollBack::OnError {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}
