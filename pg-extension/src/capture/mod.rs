//! From a changed row to bytes in the transaction's buffer, in the writer's own backend.
//!
//! [`trigger`] is where a [`change`] comes in. The compiled [`watch`] says what becomes of it; [`watches`] caches
//! these. [`columns`] and [`payload`] pack its values, [`command`] finds its place in the order, with the hooks of
//! [`executor`]; [`encoder`] and [`runs`] encode it, and [`buffer`] writes the events into the log. How one value is
//! packed is [`crate::value`]; how segments become rows is [`mod@crate::log`].

pub mod buffer;
pub mod change;
pub mod columns;
pub mod command;
pub mod encoder;
pub mod executor;
pub mod payload;
pub mod runs;
pub mod trigger;
pub mod watch;
pub mod watches;
