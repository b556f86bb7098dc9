//! What any background worker does: it handles signals, reads the configuration again, and waits for its latch. A
//! backend that must wait for a worker waits the same way.

use std::time::Duration;

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::prelude::*;

use crate::foreign::signal::{SignalHandlerForConfigReload, die};
use crate::foreign::unguarded;

/// Makes SIGTERM end the worker at the next point where that is safe, also while it waits for a lock, and SIGHUP read
/// the configuration again.
pub fn attach_signal_handlers() {
    // SAFETY: both handlers are functions of Postgres that are made for this.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        {
            pg_sys::pqsignal(pg_sys::SIGTERM as i32, Some(die));
            pg_sys::pqsignal(pg_sys::SIGHUP as i32, Some(SignalHandlerForConfigReload));
        }
        #[cfg(feature = "pg18")]
        {
            pg_sys::pqsignal_be(pg_sys::SIGTERM as i32, Some(die));
            pg_sys::pqsignal_be(pg_sys::SIGHUP as i32, Some(SignalHandlerForConfigReload));
        }
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Reads the configuration again if a SIGHUP has arrived, and returns whether it has. Called outside of a transaction.
pub fn reload_settings() -> bool {
    // SAFETY: the flag belongs to this process and is set by its signal handler, hence the volatile accesses. Postgres
    // wants the configuration to be read outside of a transaction.
    unsafe {
        let is_pending = (&raw const pg_sys::ConfigReloadPending).read_volatile() != 0;
        if is_pending {
            (&raw mut pg_sys::ConfigReloadPending).write_volatile(0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
        is_pending
    }
}

/// Waits until another process sets this one's latch, for at most `timeout`.
pub fn wait(timeout: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // One millisecond more, so that work that is due at the end of `timeout` is due when this returns.
    let milliseconds = timeout.as_millis() as i64 + 1;
    // SAFETY: the latch belongs to this process. The closure under the guard drops nothing, so an error may jump out of
    // it.
    unsafe {
        pg_guard_ffi_boundary(|| {
            unguarded::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, pg_sys::PG_WAIT_EXTENSION);
            unguarded::ResetLatch(pg_sys::MyLatch);
        });
    }
    pg_sys::check_for_interrupts!();
}
