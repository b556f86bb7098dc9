//! The families of types that JSON distinguishes, after `json_categorize_type` in Postgres.

use pgrx::prelude::*;

use super::user_code;

/// How the values of a type are packed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Real,
    Double,
    Numeric,
    Text,
    Uuid,
    Jsonb,
    /// Dates and times, in ISO 8601 whatever `DateStyle` is.
    Time(pg_sys::Oid),
    Interval,
    /// The text that the output function returns, as a string.
    Quoted,
    /// As `Quoted`, for a type whose text is at least as long as its stored value.
    Bytes,
    Json,
    /// What `to_json` returns.
    Composed,
}

impl Kind {
    /// The kind of a type of Postgres, if it is known without a catalog look-up.
    pub fn known(type_oid: pg_sys::Oid) -> Option<Self> {
        Some(match type_oid {
            pg_sys::BOOLOID => Self::Bool,
            pg_sys::INT2OID => Self::Int2,
            pg_sys::INT4OID => Self::Int4,
            pg_sys::INT8OID => Self::Int8,
            pg_sys::FLOAT4OID => Self::Real,
            pg_sys::FLOAT8OID => Self::Double,
            pg_sys::NUMERICOID => Self::Numeric,
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Self::Text,
            pg_sys::UUIDOID => Self::Uuid,
            pg_sys::JSONBOID => Self::Jsonb,
            pg_sys::DATEOID | pg_sys::TIMEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => Self::Time(type_oid),
            pg_sys::INTERVALOID => Self::Interval,
            pg_sys::JSONOID => Self::Json,
            pg_sys::BYTEAOID | pg_sys::XMLOID => Self::Bytes,
            _ => return None,
        })
    }

    /// The kind of a type that is not a domain.
    pub fn of(base: pg_sys::Oid) -> Self {
        Self::known(base).unwrap_or_else(|| if is_composed(base) { Self::Composed } else { Self::Quoted })
    }
}

/// Whether `to_jsonb` treats a type specially: arrays, rows, and types for which a user has created a cast to `json`.
fn is_composed(base: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in the system caches, inside a transaction.
    unsafe {
        pg_sys::get_element_type(base) != pg_sys::InvalidOid
            || pg_sys::type_is_rowtype(base)
            || user_code::has_cast_to_json(base)
    }
}
