//! How this library raises errors: each has an SQLSTATE, and a hint that says what to do.

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use tidings_wire::template::TemplateError;
use tidings_wire::topic::TopicError;

/// Raises an error.
pub fn raise(code: PgSqlErrorCode, message: impl Into<String>, hint: &str) -> ! {
    ErrorReport::new(code, message.into(), "tidings").set_hint(hint).report(PgLogLevel::ERROR);
    unreachable!("reporting an error does not return")
}

/// Sends a warning.
pub fn warn(message: &'static str, detail: &str) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message, "tidings")
        .set_detail(detail)
        .report(PgLogLevel::WARNING);
}

/// The hint about valid topics.
pub const BAD_TOPIC_HINT: &str = "A topic is 1 to 255 bytes without control characters.";

/// The hint about valid event names.
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
    #[error("column \"{0}\" is a virtual generated column, so a trigger does not see its value")]
    Virtual(String),
    #[error("columns and exclude cannot be given together")]
    ColumnsAndExclude,
    #[error("no column is left to capture")]
    NoColumns,
    #[error("column \"{0}\" is named twice")]
    RepeatedColumn(String),
    #[error("the payload is not JSON: {0}")]
    Payload(String),
    #[error("unknown value \"{0}\" of old_record")]
    OldRecord(String),
    #[error("a watch of TRUNCATE cannot have columns in its topic")]
    TruncateTopic,
    #[error("a guard has only a topic")]
    Guard,
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
            Self::Trigger => "Use tidings.watch(), or copy a trigger that it has created.",
            Self::Argument(_) => {
                "The arguments are topic=, event=, payload=, old_record=, column=, exclude= and guard=."
            }
            Self::Repeated(_) => "Only column= and exclude= may be repeated.",
            Self::NoTopic | Self::Template(..) | Self::Topic(..) => {
                "A topic is 1 to 255 bytes; {column} stands for a column's value, and {{ and }} for braces."
            }
            Self::Event(..) => BAD_EVENT_HINT,
            Self::Own => "Each event would cause another one. Watch a table of your own.",
            Self::Column(_) => {
                "Name a column that the table has. To rename or drop a column that a watch names, remove the watch first and create it again afterwards."
            }
            Self::Virtual(_) => "Make the generated column STORED, or leave it out.",
            Self::ColumnsAndExclude => "Give either the columns to capture or the columns to leave out.",
            Self::NoColumns => "Capture at least one column.",
            Self::RepeatedColumn(_) => "Name each column once.",
            Self::Payload(_) => "Give a JSON value; strings such as \"$column\" stand for values of the row.",
            Self::OldRecord(_) => "old_record is changed, full or none.",
            Self::Guard => {
                "The arguments of a guard are topic= and guard=true: its events have no name and no payload."
            }
            Self::TruncateTopic => {
                "Create a separate watch for TRUNCATE, with another name and a topic without braces."
            }
        }
    }

    /// Raises the error.
    pub fn raise(&self) -> ! {
        raise(self.code(), self.to_string(), self.hint())
    }
}
