//! The settings that the background workers depend on. A worker sets them as soon as it is connected, before its first
//! transaction. They override `postgresql.conf` and the settings of the database and of the bootstrap superuser's role.

use std::ffi::CStr;

use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;

use crate::log::durability;

const SETTINGS: &[(&CStr, &CStr)] = &[
    // An expected error, which is caught, must not end the process.
    (c"exit_on_error", c"off"),
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"row_security", c"on"),
    (c"session_replication_role", c"origin"),
    (c"transform_null_equals", c"off"),
    (c"standard_conforming_strings", c"on"),
    // A transaction of the relay reads committed data, writes, and does not wait for other transactions.
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"default_transaction_deferrable", c"off"),
    // A tick may take as long as it needs.
    (c"statement_timeout", c"0"),
    (c"lock_timeout", c"0"),
    (c"idle_in_transaction_session_timeout", c"0"),
    (c"idle_session_timeout", c"0"),
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    (c"transaction_timeout", c"0"),
    (c"temp_file_limit", c"-1"),
    // The log is never analyzed, and a plan that was made while it was empty must be good for a full one.
    (c"enable_seqscan", c"off"),
    (c"enable_bitmapscan", c"off"),
    (c"enable_indexscan", c"on"),
    (c"enable_indexonlyscan", c"on"),
    (c"enable_nestloop", c"on"),
    (c"enable_sort", c"on"),
    (c"enable_hashagg", c"on"),
    (c"enable_partition_pruning", c"on"),
    (c"max_parallel_workers_per_gather", c"0"),
    (c"plan_cache_mode", c"force_generic_plan"),
    (c"jit", c"off"),
];

/// Applies the settings. Called outside of a transaction, as soon as the worker is connected.
pub fn apply() {
    for (name, value) in SETTINGS {
        set(name, value);
    }
    keep_durable();
    set(c"role", c"none");
}

/// Makes commits wait for the disk at least, whatever the configuration says: clients must never see a change that a
/// crash later undoes. Called again after each reading of the configuration.
pub fn keep_durable() {
    // What an earlier call has set would override the configuration that has been read since.
    reset(c"synchronous_commit");
    if durability::level() == pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF {
        set(c"synchronous_commit", c"local");
    }
}

/// Makes a worker the bootstrap superuser again, as it was when it connected, before the database's settings took
/// effect.
pub fn become_bootstrap_superuser() {
    // SAFETY: reads a variable of this process.
    let is_other = || unsafe { pg_sys::GetSessionUserId() } != pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID);
    if is_other() {
        BackgroundWorker::transaction(|| {
            // SAFETY: a catalog look-up inside a transaction. The role always exists, and its name is a C string.
            let name = unsafe {
                CStr::from_ptr(pg_sys::GetUserNameFromId(pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID), false))
            };
            set(c"session_authorization", name);
            set(c"role", c"none");
        });
    }
}

fn set(name: &CStr, value: &CStr) {
    change(name, value.as_ptr());
}

/// Gives a setting the value that the configuration has for it.
fn reset(name: &CStr) {
    change(name, std::ptr::null());
}

fn change(name: &CStr, value: *const std::ffi::c_char) {
    // SAFETY: both are C strings and are copied; null stands for the configuration's value.
    unsafe {
        pg_sys::SetConfigOption(name.as_ptr(), value, pg_sys::GucContext::PGC_SUSET, pg_sys::GucSource::PGC_S_SESSION);
    }
}
