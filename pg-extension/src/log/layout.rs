//! The names and columns of the log's tables, as sql/extension/10_tables.sql creates them.

use std::ffi::CStr;

use crate::shared::SLOTS;

/// The names of the log's partitions.
pub const LOG_PARTITIONS: [&CStr; SLOTS] = [c"log_0", c"log_1", c"log_2", c"log_3"];

/// The names of the ticks' partitions.
pub const TICK_PARTITIONS: [&CStr; SLOTS] = [c"tick_0", c"tick_1", c"tick_2", c"tick_3"];

/// The columns of `tidings.log`, counted from 0.
pub mod log {
    /// The transaction that captured the events.
    pub const XID: usize = 1;
    /// When the segment was written.
    pub const STAMP: usize = 2;
    /// The segment's order in its transaction.
    pub const ORDINAL: usize = 3;
    /// The number of its events.
    pub const EVENTS: usize = 4;
    /// The segment's bytes.
    pub const DATA: usize = 5;
}

/// The columns of `tidings.tick`, counted from 0.
pub mod tick {
    /// The tick's number.
    pub const NUMBER: usize = 1;
    /// The previous tick's number.
    pub const PREVIOUS: usize = 2;
    /// The snapshot that ends the previous tick.
    pub const SINCE: usize = 3;
    /// The snapshot that ends the tick.
    pub const UNTIL: usize = 4;
    /// The partitions of the log that its segments are in, one bit for each, and [`super::EPOCH_MARK`].
    pub const USED: usize = 5;
}

/// The bit of `used` that marks the tick that seals the previous epoch: after it, a snapshot from before the server's
/// start is ignored. The SQL function `tidings.epoch_mark()` returns it too.
pub const EPOCH_MARK: i16 = 1 << 14;

/// The columns that both tables have and that are never NULL.
pub const NOT_NULL_COLUMNS: usize = 6;
