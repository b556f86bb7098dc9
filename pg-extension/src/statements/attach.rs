//! ATTACH PARTITION where both tables have a watch of the same name. Without this check, Postgres would only report
//! that a trigger already exists.

use std::ffi::{CStr, CString};

use pgrx::prelude::*;

use crate::capture::watch;
use crate::statements::node::{elements, table};
use crate::{catalog, errors};

/// Refuses to attach a table as a partition if it and the partitioned table both have a watch of the same name.
///
/// # Safety
/// `node` is a statement.
pub unsafe fn check(node: *mut pg_sys::Node) {
    // SAFETY: a statement, as the caller promises, whose tag says which struct it is. The list in an ALTER TABLE
    // consists of its commands, and ATTACH PARTITION has the name of a table.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_AlterTableStmt {
            return;
        }
        let alter = &*node.cast::<pg_sys::AlterTableStmt>();
        for command in elements(alter.cmds).map(|command| &*command.cast::<pg_sys::AlterTableCmd>()) {
            if command.subtype == pg_sys::AlterTableType::AT_AttachPartition && !alter.relation.is_null() {
                let partition = (*command.def.cast::<pg_sys::PartitionCmd>()).name;
                check_attached(table(alter.relation), table(partition));
            }
        }
    }
}

fn check_attached(partitioned: pg_sys::Oid, partition: pg_sys::Oid) {
    // A role without the rights gets the error of Postgres.
    let is_own = |table| catalog::is_owner(catalog::current_user(), pg_sys::RelationRelationId, table);
    if [partitioned, partition].iter().any(|table| *table == pg_sys::InvalidOid || !is_own(*table)) {
        return;
    }
    let inherited = names(partitioned);
    if let Some(name) = names(partition).into_iter().find(|name| inherited.contains(name)) {
        let name = name.to_string_lossy().into_owned();
        errors::raise(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!(
                "both tables have a watch \"{}\", and a partition inherits the watches of its partitioned table",
                name.strip_prefix("tidings_").unwrap_or(&name)
            ),
            "Remove the watch of the table to attach: SELECT tidings.unwatch('…'). Or give it another name if each of its changes should cause two events.",
        );
    }
}

/// The names of the triggers of a table's watches that a partition would inherit.
fn names(table: pg_sys::Oid) -> Vec<CString> {
    let mut names = Vec::new();
    watch::for_each(table, |trigger| {
        if trigger.tgtype.unsigned_abs() as u32 & pg_sys::TRIGGER_TYPE_ROW != 0 {
            // SAFETY: the trigger is one of the table's, and its name is a C string.
            names.push(unsafe { CStr::from_ptr(trigger.tgname) }.to_owned());
        }
    });
    names
}
