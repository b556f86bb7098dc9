//! Takes the locks for the removal of the extension. DROP … CASCADE locks the log first, then the watched tables one by
//! one. A writer locks a watched table first, and the log at its commit. So they would deadlock, and the writer would
//! fail. To prevent this, all of these tables are locked before the statement, the watched ones first.
//!
//! Writers lock tables in any order, so even this could deadlock. Therefore a round of locking is always shorter than
//! the time that a writer waits before it checks for a deadlock (`deadlock_timeout`): a round that is not finished by
//! then releases everything and starts again.

use std::time::{Duration, Instant};

use pgrx::prelude::*;

use crate::log::lock;
use crate::statements::node::{elements, strings};
use crate::subtransaction::attempt;
use crate::{catalog, errors};

/// The mode in which DROP locks tables.
const MODE: pg_sys::LOCKMODE = pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE;

/// In one round of this many, the wait for the first table is longer than `deadlock_timeout`, because such a wait
/// cancels an autovacuum that blocks it.
const PATIENT: u32 = 8;

/// Takes the locks that the statement needs, if it removes the extension.
///
/// # Safety
/// `node` is a statement, about to be run.
pub unsafe fn make_way(node: *mut pg_sys::Node) {
    // SAFETY: a statement, as the caller promises. Look-ups need a transaction that has not failed: in one that has,
    // only statements that end it are run, and these are neither kind.
    unsafe {
        // This check comes first, because the catalogs cannot be read before a ROLLBACK.
        if !matches!((*node).type_, pg_sys::NodeTag::T_DropStmt | pg_sys::NodeTag::T_DropOwnedStmt) {
            return;
        }
        let (Some(extension), Some(schema)) = (catalog::extension(), catalog::schema()) else { return };
        if !removes(node, extension) || !owns(catalog::current_user(), extension) {
            return;
        }
        let watched = watched_tables(schema);
        if !cascades(node) && !watched.is_empty() {
            // Postgres will refuse the statement.
            return;
        }
        lock_all(&watched, &own_tables(schema));
    }
}

/// Whether a statement removes the extension.
///
/// # Safety
/// `node` is a statement.
unsafe fn removes(node: *mut pg_sys::Node, extension: pg_sys::Oid) -> bool {
    // SAFETY: a statement, as the caller promises, whose tag says which struct it is. Extensions and schemas are named
    // by a string each, roles by a RoleSpec.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropStmt => {
                let drop = &*node.cast::<pg_sys::DropStmt>();
                matches!(drop.removeType, pg_sys::ObjectType::OBJECT_EXTENSION | pg_sys::ObjectType::OBJECT_SCHEMA)
                    && strings(drop.objects).any(|name| name == c"tidings")
            }
            pg_sys::NodeTag::T_DropOwnedStmt => elements((*node.cast::<pg_sys::DropOwnedStmt>()).roles)
                .any(|role| owns(pg_sys::get_rolespec_oid(role.cast(), true), extension)),
            _ => false,
        }
    }
}

/// Whether a DROP has CASCADE.
///
/// # Safety
/// `node` is a DropStmt or a DropOwnedStmt.
unsafe fn cascades(node: *mut pg_sys::Node) -> bool {
    // SAFETY: one of these two, as the caller promises, and its tag says which.
    let behavior = unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropStmt => (*node.cast::<pg_sys::DropStmt>()).behavior,
            _ => (*node.cast::<pg_sys::DropOwnedStmt>()).behavior,
        }
    };
    behavior == pg_sys::DropBehavior::DROP_CASCADE
}

/// Whether a role has the rights of the extension's owner.
fn owns(role: pg_sys::Oid, extension: pg_sys::Oid) -> bool {
    role != pg_sys::InvalidOid && catalog::is_owner(role, pg_sys::ExtensionRelationId, extension)
}

/// The tables that have a trigger of the extension, in the order of their OIDs.
fn watched_tables(schema: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: inside a transaction; a row of pg_trigger begins with this struct. A look-up in the system caches.
    let tables = unsafe {
        catalog::collect(pg_sys::TriggerRelationId, |tuple| {
            let trigger = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_trigger>();
            (pg_sys::get_func_namespace(trigger.tgfoid) == schema).then_some(trigger.tgrelid)
        })
    };
    in_order(tables)
}

/// The extension's own tables and views, in the order of their OIDs. Indexes are left out, because they are used only
/// together with their tables.
fn own_tables(schema: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: inside a transaction; a row of pg_class begins with this struct.
    let tables = unsafe {
        catalog::collect(pg_sys::RelationRelationId, |tuple| {
            let relation = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            let kind = u8::try_from(relation.relkind).unwrap_or_default();
            (relation.relnamespace == schema && [b'r', b'p', b'v', b'm', b'S'].contains(&kind)).then_some(relation.oid)
        })
    };
    in_order(tables)
}

/// The same OIDs in order, each once.
fn in_order(mut oids: Vec<pg_sys::Oid>) -> Vec<pg_sys::Oid> {
    oids.sort_unstable_by_key(|oid| oid.to_u32());
    oids.dedup();
    oids
}

/// Locks all of these tables, the watched ones first, for the rest of the transaction.
fn lock_all(watched: &[pg_sys::Oid], own: &[pg_sys::Oid]) {
    // SAFETY: reads variables of this backend.
    let (limit, deadlock) = unsafe { (pg_sys::LockTimeout, milliseconds(pg_sys::DeadlockTimeout)) };
    let start = Instant::now();
    let mut tables: Vec<_> = watched.iter().chain(own).copied().collect();
    for round in 1.. {
        if round % PATIENT == 0 {
            // The lock is released in any case: sessions that wait behind it have already waited too long.
            let _ = try_all(&tables[..1.min(tables.len())], deadlock * 2, Duration::ZERO);
        }
        let Err(refused) = try_all(&tables, deadlock / 4, deadlock / 2) else { return };
        // The next round begins with the table that could not be locked, and waits for it while nothing else is locked.
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

/// One round: waits for the first table, then for all others together. Either all of them are locked at the end, or
/// none, and the result is the index of the one that could not be locked. If there is no time for the others, the first
/// one is released too.
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
            // SAFETY: inside a subtransaction. If it fails it releases the lock, otherwise its parent gets the lock.
            unsafe { pg_sys::LockRelationOid(*table, MODE) };
        }
        if others.is_zero() {
            errors::raise(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, "released", "");
        }
    })
    .ok_or(n)
}

fn milliseconds(count: i32) -> Duration {
    Duration::from_millis(u64::from(count.unsigned_abs()))
}
