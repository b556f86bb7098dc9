//! Takes locks for the removal of the extension. DROP … CASCADE locks the log first and then the watched tables one by
//! one. A writer locks a watched table first, and the log at its commit. So they would deadlock, and the writer would
//! fail. To prevent this, all of these tables are locked before the statement, the watched ones first.
//!
//! Writers lock tables in any order, so even this could deadlock. Therefore no round of locking lasts as long as a
//! writer waits before it looks for a deadlock (`deadlock_timeout`): a round that is not finished by then releases
//! everything and starts again.

use std::time::{Duration, Instant};

use pgrx::prelude::*;

use crate::errors::{self, attempt};
use crate::log::lock;

/// The mode in which DROP locks tables.
const MODE: pg_sys::LOCKMODE = pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE;

/// In one of so many rounds, the wait for the first table is longer than `deadlock_timeout`, because such a wait ends
/// an autovacuum that blocks it.
const PATIENT: u32 = 8;

/// Takes the locks that the statement needs, if it removes the extension.
///
/// # Safety
/// `node` is a statement, about to be run.
pub unsafe fn make_way(node: *mut pg_sys::Node) {
    // SAFETY: as the caller promises. Only statements that end a failed transaction run inside one, so the look-ups are inside one that
    // has not failed.
    unsafe {
        // First, for the catalogs can't be read where it is a ROLLBACK, and need not be for a BEGIN.
        if !matches!((*node).type_, pg_sys::NodeTag::T_DropStmt | pg_sys::NodeTag::T_DropOwnedStmt) {
            return;
        }
        let extension = pg_sys::get_extension_oid(c"tidings".as_ptr(), true);
        if extension == pg_sys::InvalidOid || !removes(node, extension) || !owns(pg_sys::GetUserId(), extension) {
            return;
        }
        let schema = pg_sys::get_namespace_oid(c"tidings".as_ptr(), true);
        let watched = watched(schema);
        if !cascades(node) && !watched.is_empty() {
            // Postgres will refuse the statement.
            return;
        }
        lock_all(&watched, &own(schema));
    }
}

/// Whether a statement removes the extension.
///
/// # Safety
/// `node` is a statement.
unsafe fn removes(node: *mut pg_sys::Node, extension: pg_sys::Oid) -> bool {
    // SAFETY: a node's tag says which struct it is. The objects of these two kinds have plain names, the roles are
    // RoleSpecs.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropStmt => {
                let drop = &*node.cast::<pg_sys::DropStmt>();
                matches!(drop.removeType, pg_sys::ObjectType::OBJECT_EXTENSION | pg_sys::ObjectType::OBJECT_SCHEMA)
                    && elements(drop.objects)
                        .any(|object| std::ffi::CStr::from_ptr((*object.cast::<pg_sys::String>()).sval) == c"tidings")
            }
            pg_sys::NodeTag::T_DropOwnedStmt => elements((*node.cast::<pg_sys::DropOwnedStmt>()).roles)
                .any(|role| owns(pg_sys::get_rolespec_oid(role.cast(), true), extension)),
            _ => false,
        }
    }
}

/// # Safety
/// `node` is a statement that removes something.
unsafe fn cascades(node: *mut pg_sys::Node) -> bool {
    // SAFETY: a node's tag says which struct it is.
    let behavior = unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropStmt => (*node.cast::<pg_sys::DropStmt>()).behavior,
            _ => (*node.cast::<pg_sys::DropOwnedStmt>()).behavior,
        }
    };
    behavior == pg_sys::DropBehavior::DROP_CASCADE
}

/// # Safety
/// `list` is a list of pointers, or null, and outlives the iterator.
unsafe fn elements(list: *mut pg_sys::List) -> impl Iterator<Item = *mut std::ffi::c_void> {
    // SAFETY: as the caller promises; no index is beyond the list's length.
    unsafe {
        let length = list.as_ref().map_or(0, |list| list.length as usize);
        (0..length).map(move |i| (*(*list).elements.add(i)).ptr_value)
    }
}

/// Whether a role has the rights of the extension's owner.
fn owns(role: pg_sys::Oid, extension: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in the system caches, inside a transaction.
    unsafe {
        #[cfg(feature = "pg15")]
        let owner = pg_sys::pg_extension_ownercheck(extension, role);
        #[cfg(not(feature = "pg15"))]
        let owner = pg_sys::object_ownercheck(pg_sys::ExtensionRelationId, extension, role);
        role != pg_sys::InvalidOid && owner
    }
}

/// The tables that have a trigger of the extension.
fn watched(schema: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: a row of pg_trigger begins with this struct; a look-up inside a transaction.
    collect(pg_sys::TriggerRelationId, |tuple| unsafe {
        let trigger = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_trigger>();
        (pg_sys::get_func_namespace(trigger.tgfoid) == schema).then_some(trigger.tgrelid)
    })
}

/// The extension's own tables and views. Indexes are left out, because nobody uses them without the table.
fn own(schema: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: a row of pg_class begins with this struct.
    collect(pg_sys::RelationRelationId, |tuple| unsafe {
        let relation = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
        let kind = u8::try_from(relation.relkind).unwrap_or_default();
        (relation.relnamespace == schema && [b'r', b'p', b'v', b'm', b'S'].contains(&kind)).then_some(relation.oid)
    })
}

/// What the rows of a catalog return, in order, each once.
fn collect(catalog: pg_sys::Oid, of_row: impl Fn(pg_sys::HeapTuple) -> Option<pg_sys::Oid>) -> Vec<pg_sys::Oid> {
    let mut found = Vec::new();
    // SAFETY: inside a transaction; a plain scan of a catalog, closed again with its lock.
    unsafe {
        let relation = pg_sys::table_open(catalog, pg_sys::AccessShareLock as i32);
        let (no_snapshot, no_keys) = (std::ptr::null_mut(), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, no_snapshot, 0, no_keys);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            found.extend(of_row(tuple));
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found.sort_unstable_by_key(|oid| oid.to_u32());
    found.dedup();
    found
}

/// Locks all of these tables, the watched ones first, for the rest of the transaction.
fn lock_all(watched: &[pg_sys::Oid], own: &[pg_sys::Oid]) {
    // SAFETY: plain variables of this backend.
    let (limit, deadlock) = unsafe { (pg_sys::LockTimeout, milliseconds(pg_sys::DeadlockTimeout)) };
    let start = Instant::now();
    let mut tables: Vec<_> = watched.iter().chain(own).copied().collect();
    for round in 1.. {
        if round % PATIENT == 0 {
            // The lock is released in either case: those who wait behind it have waited too long for a round.
            let _ = try_all(&tables[..1.min(tables.len())], deadlock * 2, Duration::ZERO);
        }
        let Err(refused) = try_all(&tables, deadlock / 4, deadlock / 2) else { return };
        // Waits first for the table that could not be locked, while nothing else is held.
        tables[..=refused].rotate_right(1);
        if limit > 0 && start.elapsed() > milliseconds(limit) {
            errors::raise(
                PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
                "canceling statement due to lock timeout",
                "Watched tables are in use. Remove the watches one by one with tidings.unwatch().",
            );
        }
    }
}

/// One round: waits for the first table, then for all others together. Then holds all of them, or none, and returns the
/// index of the one that could not be locked. Without time for the others, the first one is released too.
fn try_all(tables: &[pg_sys::Oid], first: Duration, others: Duration) -> Result<(), usize> {
    let mut n = 0;
    let mut end = Instant::now() + first;
    attempt(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, || {
        for (i, table) in tables.iter().enumerate() {
            n = i;
            if i == 1 {
                end = Instant::now() + others;
            }
            let left = end.saturating_duration_since(Instant::now()).as_millis().max(1);
            let _timeout = lock::Timeout::set(i32::try_from(left).unwrap_or(i32::MAX));
            // SAFETY: inside a subtransaction, which gives the lock back if it fails and leaves it to its parent if it
            // does not.
            unsafe { pg_sys::LockRelationOid(*table, MODE) };
        }
        if others.is_zero() {
            errors::raise(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, "given back", "");
        }
    })
    .ok_or(n)
}

fn milliseconds(count: i32) -> Duration {
    Duration::from_millis(u64::from(count.unsigned_abs()))
}
