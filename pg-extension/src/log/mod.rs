//! The log as tables of the database. [`mod@write`] inserts a segment, and [`scan`] reads the segments that a
//! [`snapshot`] does not see. Both go through [`table`], without a plan or the executor. [`layout`] has the names and
//! columns of the tables; [`lock`] takes locks without waiting for long. What was written last is also in shared
//! memory, in the [`ring`]. [`ticks`] reads ticks with their segments in [`mod@order`], for [`pages`] (clients that
//! catch up) and [`segments`] (the proxy's live connection). A segment may lack what another one has: see [`lenders`].
//!
//! What is in a segment is decided by [`crate::capture`]; when segments become ticks, and when they are removed, by
//! [`crate::relay`].

pub mod durability;
pub mod endings;
pub mod layout;
pub mod lenders;
pub mod lock;
pub mod order;
pub mod pages;
pub mod ring;
pub mod scan;
pub mod segments;
pub mod snapshot;
pub mod table;
pub mod ticks;
pub mod write;
