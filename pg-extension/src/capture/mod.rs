//! From a changed row to bytes in the transaction's buffer, in the writer's own backend.
//!
//! [`trigger`] is where a change comes in. [`watch`] is the compiled watch that says what becomes of it, and [`watches`]
//! the cache of those; [`columns`] and [`payload`] pack its values, [`command`] finds its place in the order, and
//! [`encoder`] and [`buffer`] hold the events until the commit. How one value is packed is [`crate::value`]; how
//! segments become rows is [`mod@crate::log`].

pub mod buffer;
pub mod columns;
pub mod command;
pub mod encoder;
pub mod payload;
pub mod trigger;
pub mod watch;
pub mod watches;
