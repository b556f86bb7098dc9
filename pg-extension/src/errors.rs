//! How an error leaves this library: with its SQLSTATE, and a hint that says what to do.

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::prelude::*;
use tidings_wire::template::TemplateError;
use tidings_wire::topic::TopicError;

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

/// Runs `body` in a subtransaction of its own. None if that ended with an error of this code, which nobody gets to see;
/// any other error passes.
pub fn attempt<R>(code: PgSqlErrorCode, body: impl FnOnce() -> R) -> Option<R> {
    attempt_unless(|other| other != code, body).ok()
}

/// The same, but catches all errors except those whose code must pass. Returns the code of the error.
pub fn attempt_unless<R>(
    passes: impl Fn(PgSqlErrorCode) -> bool,
    body: impl FnOnce() -> R,
) -> Result<R, PgSqlErrorCode> {
    in_subtransaction(body).map_err(|error| match &*error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) if !passes(report.sql_error_code()) => {
            report.sql_error_code()
        }
        _ => error.rethrow(),
    })
}

/// The same with any error, which is returned as its message.
pub fn attempt_all<R>(body: impl FnOnce() -> R) -> Result<R, String> {
    in_subtransaction(body).map_err(|error| {
        let (CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. }) = &*error;
        report.message().to_owned()
    })
}

/// Runs `body` in a subtransaction, which is rolled back if it fails. Called inside a transaction.
fn in_subtransaction<R>(body: impl FnOnce() -> R) -> Result<R, Box<CaughtError>> {
    let body = std::panic::AssertUnwindSafe(body);
    // SAFETY: inside a transaction. Memory context and resource owner are put back, as Postgres asks of whoever begins
    // a subtransaction; `body` allocates in the caller's context. The subtransaction ends here in any case: one that an
    // error leaves open would look to Postgres like a savepoint, and the session would wait for a ROLLBACK.
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
        if result.is_ok() {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}

/// What an event name may be.
pub const BAD_EVENT_HINT: &str = "An event name is 1 to 255 bytes without control characters, and not error, open, reset, ready, position or unauthorized.";

/// What is wrong with a watch.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error(
        "tidings.capture() must be called by a trigger: AFTER … FOR EACH ROW, or AFTER TRUNCATE … FOR EACH STATEMENT"
    )]
    Trigger,
    #[error("unknown argument \"{0}\" of tidings.capture()")]
    Argument(String),
    #[error("argument \"{0}\" of tidings.capture() is given twice")]
    Repeated(&'static str),
    #[error("tidings.capture() needs an argument topic=…")]
    NoTopic,
    #[error("bad topic \"{0}\": {1}")]
    Template(String, TemplateError),
    #[error("bad topic \"{0}\": {1}")]
    Topic(String, TopicError),
    #[error("bad event name \"{0}\": {1}")]
    Event(String, TopicError),
    #[error("column \"{0}\" of the watched table does not exist")]
    Column(String),
    #[error("column \"{0}\" is generated when it is read: a trigger sees no value of it")]
    Virtual(String),
    #[error("columns and exclude cannot be given together")]
    ColumnsAndExclude,
    #[error("no column is left to capture")]
    NoColumns,
    #[error("column \"{0}\" is to be captured twice")]
    RepeatedColumn(String),
    #[error("the payload is not JSON: {0}")]
    Payload(String),
    #[error("old_record is \"{0}\"")]
    OldRecord(String),
    #[error("a watch of TRUNCATE cannot have columns in its topic")]
    TruncateTopic,
    #[error("the tables of tidings itself cannot be watched")]
    Own,
}

impl WatchError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            Self::Trigger => PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
            Self::Column(_) => PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            Self::Virtual(_) => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            Self::Own => PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            _ => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Trigger => "Use tidings.watch(), or copy a trigger that it made.",
            Self::Argument(_) => "The arguments are topic=, event=, payload=, old_record=, column= and exclude=.",
            Self::Repeated(_) => "Only column= and exclude= may be repeated.",
            Self::NoTopic | Self::Template(..) | Self::Topic(..) => {
                "A topic is 1 to 255 bytes; {column} stands for a column's value, {{ and }} for braces."
            }
            Self::Event(..) => BAD_EVENT_HINT,
            Self::Own => "Each event would make another one. Watch a table of your own.",
            Self::Column(_) => {
                "Name a column that the table has. To rename or drop a column that a watch names, remove the watch first and create it again."
            }
            Self::Virtual(_) => "Make the column STORED, or leave it out.",
            Self::ColumnsAndExclude => "Name the columns to capture, or those to leave out.",
            Self::NoColumns => "Capture at least one column.",
            Self::RepeatedColumn(_) => "Name each column once.",
            Self::Payload(_) => "Give a JSON value; strings such as \"$column\" stand for values of the row.",
            Self::OldRecord(_) => "It is one of changed, full and none.",
            Self::TruncateTopic => "Give the watch of TRUNCATE a name of its own and a topic without braces.",
        }
    }

    /// Raises the error.
    pub fn raise(&self) -> ! {
        raise(self.code(), self.to_string(), self.hint())
    }
}
