//! From the log to notifications, in the background workers.
//!
//! [`launcher`] keeps one [`process`] running for each database with the extension. It cuts the log into ticks
//! ([`tick`]; [`backlog`] after a pause), as often as [`pace`] allows, and announces them on its [`channel`];
//! [`retention`] empties old partitions. [`own_settings`] are the settings that all workers depend on.

pub mod backlog;
pub mod channel;
pub mod launcher;
pub mod own_settings;
pub mod pace;
pub mod process;
pub mod retention;
pub mod tick;
