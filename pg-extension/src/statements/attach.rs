//! ATTACH PARTITION where both tables have a watch of the same name. Without this check Postgres would only report that
//! a trigger already exists.

use std::ffi::{CStr, CString};

use pgrx::prelude::*;

use crate::capture::watch;
use crate::errors;

/// Refuses a statement that attaches a table with its own watch if the partitioned table has a watch of the same name.
///
/// # Safety
/// `node` is a statement.
pub unsafe fn check(node: *mut pg_sys::Node) {
    // SAFETY: a node's tag says which struct it is; the commands of ALTER TABLE are a list of them.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_AlterTableStmt {
            return;
        }
        let alter = &*node.cast::<pg_sys::AlterTableStmt>();
        let Some(commands) = alter.cmds.as_ref() else { return };
        for i in 0..commands.length as usize {
            let command = &*(*commands.elements.add(i)).ptr_value.cast::<pg_sys::AlterTableCmd>();
            if command.subtype == pg_sys::AlterTableType::AT_AttachPartition && !alter.relation.is_null() {
                let part = (*command.def.cast::<pg_sys::PartitionCmd>()).name;
                check_attached(find(alter.relation), find(part));
            }
        }
    }
}

/// # Safety
/// `name` is the name of a table, as it was parsed.
unsafe fn find(name: *mut pg_sys::RangeVar) -> pg_sys::Oid {
    let (lock, flags) = (pg_sys::NoLock as i32, pg_sys::RVROption::RVR_MISSING_OK);
    // SAFETY: as the caller promises; a look-up inside a transaction.
    unsafe { pg_sys::RangeVarGetRelidExtended(name, lock, flags, None, std::ptr::null_mut()) }
}

fn check_attached(whole: pg_sys::Oid, part: pg_sys::Oid) {
    // A user without the rights gets Postgres's own error.
    if [whole, part].iter().any(|table| *table == pg_sys::InvalidOid || !is_own(*table)) {
        return;
    }
    let of_whole = names(whole);
    if let Some(name) = names(part).into_iter().find(|name| of_whole.contains(name)) {
        let name = name.to_string_lossy().into_owned();
        errors::raise(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!(
                "both tables have a watch \"{}\", and a partition inherits the watches of its partitioned table",
                name.strip_prefix("tidings_").unwrap_or(&name)
            ),
            "Remove the watch of the table to attach: SELECT tidings.unwatch('…'). Or give it another name if its changes should make two events.",
        );
    }
}

/// The names of the triggers that a partition would inherit.
fn names(table: pg_sys::Oid) -> Vec<CString> {
    let mut names = Vec::new();
    watch::for_each(table, |trigger| {
        if trigger.tgtype.unsigned_abs() as u32 & pg_sys::TRIGGER_TYPE_ROW != 0 {
            // SAFETY: a trigger's name is a C string.
            names.push(unsafe { CStr::from_ptr(trigger.tgname) }.to_owned());
        }
    });
    names
}

fn is_own(table: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in the system caches, inside a transaction.
    unsafe {
        #[cfg(feature = "pg15")]
        let owner = pg_sys::pg_class_ownercheck(table, pg_sys::GetUserId());
        #[cfg(not(feature = "pg15"))]
        let owner = pg_sys::object_ownercheck(pg_sys::RelationRelationId, table, pg_sys::GetUserId());
        owner
    }
}
