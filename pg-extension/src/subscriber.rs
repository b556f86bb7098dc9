//! Code of users that runs as a subscriber: whose rights it has, and what it can't do to the session.

use std::cell::Cell;
use std::ffi::{CStr, CString};

use pgrx::prelude::*;

use crate::{errors, preload};

thread_local! {
    /// How many levels deep code of users runs as a subscriber.
    static LEVELS: Cell<u32> = const { Cell::new(0) };
}

/// While it lives, code of users runs as a subscriber. Without claims, that is the proxy's own role, which may read
/// every event and check access for all others: so the functions that do this refuse to run.
pub struct Confined(());

impl Confined {
    /// From now on.
    pub fn begin() -> Self {
        LEVELS.set(LEVELS.get() + 1);
        Self(())
    }
}

impl Drop for Confined {
    /// Also after an error, which unwinds.
    fn drop(&mut self) {
        LEVELS.set(LEVELS.get() - 1);
    }
}

/// `tidings.refuse_subscriber()`: raises an error in code that runs as a subscriber.
#[pg_extern]
pub fn refuse_subscriber() {
    preload::require();
    // A parallel worker does not know what its leader runs. Who asks this is not parallel safe, so only code that is
    // marked falsely as that asks it in a worker.
    // SAFETY: reads a variable of this process.
    let is_worker = unsafe { pg_sys::ParallelWorkerNumber } >= 0;
    if LEVELS.get() > 0 || is_worker {
        errors::raise(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "code that runs as a subscriber may not read events, nor act for other subscribers",
            "Rules, queries for snapshots, policies and conditions run as the subscriber. Let them read tables only.",
        );
    }
}

/// A text as Postgres's own functions take it.
pub fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_else(|_| {
        errors::raise(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "a text with a NUL",
            "A text in Postgres can't contain a NUL.",
        )
    })
}

/// The current user and the security context.
pub fn current_user() -> (pg_sys::Oid, i32) {
    let (mut user, mut security) = (pg_sys::InvalidOid, 0);
    // SAFETY: two plain variables of the backend are copied.
    unsafe { pg_sys::GetUserIdAndSecContext(&mut user, &mut security) };
    (user, security)
}

/// From now on, code runs as the role and can't leave it: SET ROLE, SET SESSION AUTHORIZATION and everything that
/// outlives a transaction are refused, as in Postgres's maintenance commands.
///
/// # Safety
/// Inside a transaction. The caller puts the user back, or ends the subtransaction, which does.
pub unsafe fn become_subscriber(role: pg_sys::Oid) {
    let (_, security) = current_user();
    let locked = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
    // SAFETY: sets two plain variables of the backend, which the caller puts back.
    unsafe { pg_sys::SetUserIdAndSecContext(role, security | locked as i32) }
}

/// Sets what anyone may set, until the end of the subtransaction or of the current level of settings.
///
/// # Safety
/// Inside a transaction, and inside a subtransaction or level of settings that the caller ends.
pub unsafe fn set_locally(name: &CStr, value: &CStr) {
    // SAFETY: as the caller promises; Postgres copies both texts, and raises an error if the value will not do.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}

/// Runs `body` as another user, who may do in it what they may do anywhere.
pub fn as_user<R>(user: pg_sys::Oid, body: impl FnOnce() -> R) -> R {
    let (before, security) = current_user();
    let local = pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
    // SAFETY: two plain variables of the backend, put back below; the abort of the transaction puts them back after an
    // error.
    unsafe { pg_sys::SetUserIdAndSecContext(user, security | local) };
    let result = body();
    // SAFETY: as above, with what was there before.
    unsafe { pg_sys::SetUserIdAndSecContext(before, security) };
    result
}
