//! Whether the library was loaded by `shared_preload_libraries`. If not, there is no shared memory and no relay, so
//! nothing can be captured. Then a write to a watched table succeeds, with one warning per session, and every other
//! function raises an error that says what to set.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pgrx::prelude::*;

use crate::errors;

static PRELOADED: AtomicBool = AtomicBool::new(false);

const HINT: &str = "Add tidings to shared_preload_libraries in postgresql.conf and restart the server.";

/// Notes that the library was preloaded. Called in the postmaster, inherited by every backend.
pub fn note() {
    PRELOADED.store(true, Relaxed);
}

/// Whether the library was preloaded.
pub fn is_there() -> bool {
    PRELOADED.load(Relaxed)
}

/// Raises an error unless the library was preloaded.
pub fn require() {
    if !is_there() {
        errors::raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "tidings is not loaded by shared_preload_libraries",
            HINT,
        );
    }
}

/// Warns, once per session, that changes are not captured.
pub fn warn_once() {
    thread_local!(static WARNED: Cell<bool> = const { Cell::new(false) });
    if !WARNED.replace(true) {
        errors::warn("tidings is not loaded: changes of watched tables are not announced", HINT);
    }
}
