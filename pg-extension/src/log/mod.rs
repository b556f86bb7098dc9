//! The log as tables of the database: [`mod@write`] inserts a segment, [`scan`] reads segments that a [`snapshot`] does
//! not see, both through [`table`], without a plan or the executor; [`lock`] takes locks that do not wait for long.
//!
//! What is in a segment is [`crate::capture`]; when segments become ticks, and when they go, is [`crate::relay`].

pub mod lock;
pub mod scan;
pub mod snapshot;
pub mod table;
pub mod write;
