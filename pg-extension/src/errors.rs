//! How an error leaves this library: with its SQLSTATE, and a hint that says what to do.

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// Raises an error.
pub fn raise(code: PgSqlErrorCode, message: impl Into<String>, hint: &str) -> ! {
    ErrorReport::new(code, message.into(), "tidings").set_hint(hint).report(PgLogLevel::ERROR);
    unreachable!("an error does not return")
}

/// Sends a warning.
pub fn warn(message: &'static str, detail: &str) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message, "tidings")
        .set_detail(detail)
        .report(PgLogLevel::WARNING);
}
