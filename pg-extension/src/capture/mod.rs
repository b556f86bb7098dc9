//! From a changed row to bytes in the transaction's buffer, in the writer's own backend.
//!
//! A [`change`] comes in at the [`trigger`]. The compiled [`watch`] says what event it makes, if any; [`watches`]
//! caches compiled watches. [`columns`] and [`payload`] pack the change's values. [`command`] finds its [`rank`] in the
//! order of the transaction, with the hooks of [`executor`], the [`mod@version`] and the [`mod@key`] of a row.
//! [`encoder`] and [`runs`] encode the event, and [`buffer`] keeps the events until they become segments of the log.
//!
//! Not here: how one value is packed ([`crate::value`]), and how a segment becomes a row ([`mod@crate::log`]).

pub mod buffer;
pub mod change;
pub mod columns;
pub mod command;
pub mod encoder;
pub mod executor;
pub mod key;
pub mod payload;
pub mod rank;
pub mod runs;
pub mod trigger;
pub mod version;
pub mod watch;
pub mod watches;
