//! The end of a transaction or subtransaction: the callbacks that Postgres calls, and what is to be done after a
//! commit.
//!
//! The callbacks let [`buffer`] write its events, let every part that keeps state for a transaction forget it, and wake
//! the relay. Parts that need something done after a commit call the functions here; nothing in the folders for the way
//! of a change depends on this file, except what runs as a statement of its own.

use std::cell::Cell;
use std::ffi::c_void;

use pgrx::prelude::*;

use crate::capture::{buffer, command, watch};
use crate::log::{endings, lenders};
use crate::shared::{self, Database, State};
use crate::warnings;

/// What is to be done once the transaction has committed.
#[derive(Clone, Copy)]
struct AfterCommit {
    /// The relay checks whether the extension still exists.
    recheck: bool,
    /// The launcher looks for new databases.
    look_for_databases: bool,
    /// This database has the extension from now on.
    installed: bool,
}

impl AfterCommit {
    const NOTHING: Self = Self { recheck: false, look_for_databases: false, installed: false };
}

thread_local! {
    static AFTER_COMMIT: Cell<AfterCommit> = const { Cell::new(AfterCommit::NOTHING) };
    /// The databases whose relays are kept out until this transaction ends. ALTER DATABASE … RENAME may run in a
    /// transaction block, so there can be several.
    static PAUSED: Cell<Vec<&'static Database>> = const { Cell::new(Vec::new()) };
}

/// Registers the callbacks. Called from `_PG_init`, inherited by every backend.
pub fn init() {
    // SAFETY: both functions have the signatures that Postgres expects, live as long as the process, and are guarded,
    // so that no panic unwinds into Postgres.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction), std::ptr::null_mut());
    }
}

/// Makes the relay check whether the extension still exists, once this transaction has committed.
pub fn recheck_after_commit() {
    AFTER_COMMIT.set(AfterCommit { recheck: true, ..AFTER_COMMIT.get() });
}

/// Makes the launcher look for new databases, once this transaction has committed.
pub fn look_for_databases_after_commit() {
    AFTER_COMMIT.set(AfterCommit { look_for_databases: true, ..AFTER_COMMIT.get() });
}

/// Reports that this database has the extension, once this transaction has committed.
pub fn installed_after_commit() {
    AFTER_COMMIT.set(AfterCommit { installed: true, ..AFTER_COMMIT.get() });
}

/// Ends the pause of a database's relay when this transaction ends, whether it commits or not.
pub fn end_pause_at_end(db: &'static Database) {
    let mut paused = PAUSED.take();
    paused.push(db);
    PAUSED.set(paused);
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => {
            buffer::write_all(event == XACT_EVENT_PRE_COMMIT);
            watch::forget_altered();
        }
        XACT_EVENT_COMMIT => {
            endings::publish();
            lenders::commit();
            wake(buffer::has_written(), AFTER_COMMIT.get());
            forget();
        }
        XACT_EVENT_PREPARE | XACT_EVENT_ABORT => {
            // The relay may have left later transactions for the next tick because of this one.
            if endings::remove()
                && let Some(db) = shared::my_database().filter(|db| db.state() != State::Absent)
            {
                db.announce();
            }
            forget();
        }
        _ => {}
    }
}

/// Forgets everything that was kept for the transaction.
fn forget() {
    buffer::reset();
    command::reset();
    lenders::reset();
    // An aborted statement may have left some.
    watch::forget_altered();
    warnings::reset();
    AFTER_COMMIT.set(AfterCommit::NOTHING);
    PAUSED.take().into_iter().for_each(Database::end_pause);
}

/// Wakes the relay and the launcher after a commit. An error here would bring the whole server down, so this uses only
/// atomics and latches.
fn wake(has_written: bool, todo: AfterCommit) {
    if !(has_written || todo.recheck || todo.look_for_databases || todo.installed) {
        return;
    }
    // SAFETY: set once, when the backend connects.
    let database = unsafe { pg_sys::MyDatabaseId };
    if todo.installed {
        if shared::want(database)
            && let Some(db) = shared::my_database()
        {
            db.recheck();
        }
    } else if let Some(db) = shared::my_database().filter(|db| db.state() != State::Absent) {
        if has_written {
            db.announce();
        }
        if todo.recheck {
            db.recheck();
        }
    } else if has_written && shared::want(database) {
        // The database has a log, although the launcher may not know it yet.
        shared::wake_launcher();
    }
    if todo.installed || todo.look_for_databases {
        shared::wake_launcher();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_subtransaction(
    event: pg_sys::SubXactEvent::Type,
    subxid: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _arg: *mut c_void,
) {
    use pg_sys::SubXactEvent::*;
    match event {
        SUBXACT_EVENT_PRE_COMMIT_SUB => buffer::write_released(subxid),
        SUBXACT_EVENT_COMMIT_SUB => buffer::commit_subtransaction(subxid, parent),
        SUBXACT_EVENT_ABORT_SUB => {
            command::abort_subtransaction(subxid);
            buffer::abort_subtransaction(subxid);
        }
        _ => {}
    }
}
