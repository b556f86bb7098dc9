//! What Postgres has and pgrx does not declare. The rest comes from `pgrx::pg_sys`.

use std::ffi::{c_char, c_int};

use pgrx::prelude::*;

#[pg_guard]
unsafe extern "C-unwind" {
    /// Whether two datums of one type have the same image, compressed or moved out of line or not (utils/datum.h).
    pub fn datum_image_eq(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: c_int) -> bool;

    #[allow(non_snake_case)]
    /// Queues a notification for the end of the transaction (commands/async.h).
    pub fn Async_Notify(channel: *const c_char, payload: *const c_char);
}

/// Signal handlers, as they are: one must not go through pgrx's guard.
pub mod signal {
    unsafe extern "C-unwind" {
        /// Ends the process at the next point where that is safe (tcop/tcopprot.h).
        pub fn die(signal: std::ffi::c_int);
        /// Asks for the configuration to be read again (postmaster/interrupt.h).
        pub fn SignalHandlerForConfigReload(signal: std::ffi::c_int);
    }
}
