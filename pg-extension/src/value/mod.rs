//! How a column's value is packed for the log, and rendered as text for a topic.
//!
//! A [`column_value`] is a value that may be trusted. [`writer`] packs it by the [`kind`] of its type; [`mod@array`],
//! [`float`] and [`time`] each know a family of types, [`varlena`] the storage of long values. [`function`] calls
//! output functions of Postgres, and [`user_code`] guards the casts and output functions that users have defined.
//!
//! What the packed bytes mean, and how they become JSON, is in the crate `tidings_wire`.

pub mod array;
pub mod column_value;
pub mod float;
pub mod function;
pub mod kind;
pub mod time;
pub mod user_code;
pub mod varlena;
pub mod writer;
