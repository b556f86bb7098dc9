//! A column's value, as Postgres has it, packed for the log: [`writer`] decides by the type; the other files each know
//! one family of types. [`user_code`] guards the casts and output functions of users that packing may call.
//!
//! What the packed bytes mean, and how they become JSON again, is the crate `tidings_wire`.

pub mod array;
pub mod float;
pub mod time;
pub mod user_code;
pub mod varlena;
pub mod writer;
