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

/// Runs `body` in a subtransaction of its own. None if that ended with an error of this code, which nobody gets to see; any other error
/// passes.
pub fn attempt<R>(code: PgSqlErrorCode, body: impl FnOnce() -> R) -> Option<R> {
    let body = std::panic::AssertUnwindSafe(body);
    // SAFETY: inside a transaction. Memory context and resource owner are put back, as Postgres asks of whoever begins a
    // subtransaction; `body` allocates in the caller's context. Any other error ends the transaction and with it the subtransaction.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let result = PgTryBuilder::new(|| {
            let body = body;
            Some((body.0)())
        })
        .catch_when(code, |_| None)
        .execute();
        if result.is_some() {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}
