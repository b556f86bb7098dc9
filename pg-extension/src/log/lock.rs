//! Locks on tables of the extension, and how long to wait for one.

use std::ffi::CStr;

use pgrx::prelude::*;

use crate::errors::attempt;

/// The mode that TRUNCATE needs.
const MODE: pg_sys::LOCKMODE = pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE;

/// Another lock timeout for the session, until dropped.
pub struct Timeout(i32);

impl Timeout {
    /// Sets it, in milliseconds; 0 is none.
    pub fn set(milliseconds: i32) -> Self {
        // SAFETY: a plain variable of this backend; `drop` puts it back, also when an error unwinds.
        unsafe {
            let before = Self(pg_sys::LockTimeout);
            pg_sys::LockTimeout = milliseconds;
            before
        }
    }
}

impl Drop for Timeout {
    fn drop(&mut self) {
        // SAFETY: as in `set`.
        unsafe { pg_sys::LockTimeout = self.0 }
    }
}

/// The table of this name in schema `tidings`, if it is there.
pub fn table(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: look-ups in the system caches, inside a transaction.
    let table = unsafe {
        let namespace = pg_sys::get_namespace_oid(c"tidings".as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), namespace)
    };
    (table != pg_sys::InvalidOid).then_some(table)
}

/// Locks a table for the rest of the transaction as TRUNCATE does, if that is to be had at once.
pub fn at_once(table: pg_sys::Oid) -> bool {
    // SAFETY: inside a transaction, which releases the lock at its end.
    unsafe { pg_sys::ConditionalLockRelationOid(table, MODE) }
}

/// The same, if it is to be had within some milliseconds. Those who come meanwhile stand behind.
pub fn within(milliseconds: i32, table: pg_sys::Oid) -> bool {
    let _timeout = Timeout::set(milliseconds);
    // SAFETY: inside a transaction, which releases the lock at its end.
    attempt(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, || unsafe { pg_sys::LockRelationOid(table, MODE) }).is_some()
}
