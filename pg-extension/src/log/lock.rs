//! Locks on tables of the extension, and how long to wait for one.

use pgrx::prelude::*;

use crate::subtransaction::attempt;

/// The mode that TRUNCATE needs.
const MODE: pg_sys::LOCKMODE = pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE;

/// Another `lock_timeout` for this session, until it is dropped.
pub struct Timeout(i32);

impl Timeout {
    /// Sets the timeout in milliseconds; 0 means none.
    pub fn set(milliseconds: i32) -> Self {
        // SAFETY: a variable of this backend. `drop` restores it, also when an error unwinds.
        unsafe {
            let before = Self(pg_sys::LockTimeout);
            pg_sys::LockTimeout = milliseconds;
            before
        }
    }
}

impl Drop for Timeout {
    fn drop(&mut self) {
        // SAFETY: a variable of this backend, which gets the value that it had before `set`.
        unsafe { pg_sys::LockTimeout = self.0 }
    }
}

/// Runs `body` and then releases the locks that it took, which would otherwise be held until the end of the
/// transaction. Its result refers to no table.
pub fn briefly<R>(body: impl FnOnce() -> R) -> R {
    // SAFETY: inside a transaction. What `body` takes belongs to a resource owner of its own. If `body` fails, the
    // abort of the transaction releases it with its parent. Otherwise it is released here, in the order that Postgres
    // asks for, as if it had failed: then locks are released and not passed on to the parent.
    unsafe {
        let outer = pg_sys::CurrentResourceOwner;
        let own = pg_sys::ResourceOwnerCreate(outer, c"tidings".as_ptr());
        pg_sys::CurrentResourceOwner = own;
        let result = body();
        pg_sys::CurrentResourceOwner = outer;
        use pg_sys::ResourceReleasePhase::{
            RESOURCE_RELEASE_AFTER_LOCKS, RESOURCE_RELEASE_BEFORE_LOCKS, RESOURCE_RELEASE_LOCKS,
        };
        for phase in [RESOURCE_RELEASE_BEFORE_LOCKS, RESOURCE_RELEASE_LOCKS, RESOURCE_RELEASE_AFTER_LOCKS] {
            pg_sys::ResourceOwnerRelease(own, phase, false, false);
        }
        pg_sys::ResourceOwnerDelete(own);
        result
    }
}

/// Locks a table as TRUNCATE does, for the rest of the transaction, if that is possible without waiting.
pub fn at_once(table: pg_sys::Oid) -> bool {
    // SAFETY: inside a transaction, which releases the lock at its end.
    unsafe { pg_sys::ConditionalLockRelationOid(table, MODE) }
}

/// Locks a table as TRUNCATE does, for the rest of the transaction, if that is possible within some milliseconds. Other
/// sessions that need the table meanwhile wait behind this one.
pub fn within(milliseconds: i32, table: pg_sys::Oid) -> bool {
    let _timeout = Timeout::set(milliseconds);
    // SAFETY: inside a transaction, which releases the lock at its end.
    attempt(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, || unsafe { pg_sys::LockRelationOid(table, MODE) }).is_some()
}
