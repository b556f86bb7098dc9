//! Why a value can't be packed, and why packed bytes can't be read.

/// A value, or a payload, would take more JSON than its limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Why a value was not packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackError {
    /// Its JSON would be longer than the limit.
    TooLong,
    /// The packed form can't hold this value, or its stored bytes are not understood: Postgres must render it.
    Unsupported,
}

/// Why bytes were not rendered as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The JSON would be longer than the limit.
    TooLong,
    /// The bytes are not in the expected format, or nest deeper than this code follows.
    Corrupt,
}

impl From<TooLong> for PackError {
    fn from(_: TooLong) -> Self {
        Self::TooLong
    }
}

impl From<TooLong> for ReadError {
    fn from(_: TooLong) -> Self {
        Self::TooLong
    }
}

/// A writer that can't read the bytes that Postgres stores leaves the value to Postgres.
impl From<ReadError> for PackError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::TooLong => Self::TooLong,
            ReadError::Corrupt => Self::Unsupported,
        }
    }
}
