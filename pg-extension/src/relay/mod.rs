//! From the log to notifications, in the background workers.
//!
//! [`launcher`] keeps one relay [`process`] running for each database that has the extension. The relay cuts the log
//! into ticks ([`tick`]), as often as [`pace`] allows, and announces them on its [`channel`]: [`early`], before they
//! are flushed, if it can. [`batch`] has the segments of one tick, [`fresh`] those that the relay need not look for in
//! the log, and [`backlog`] cuts what was committed while no relay ran.
//!
//! [`retention`] empties old partitions, by [`elapsed`] time. [`worker`] and [`worker_settings`] are what all
//! background workers share.

pub mod backlog;
pub mod batch;
pub mod channel;
pub mod early;
pub mod elapsed;
pub mod fresh;
pub mod launcher;
pub mod pace;
pub mod process;
pub mod retention;
pub mod tick;
pub mod worker;
pub mod worker_settings;
