//! Statements that are refused, because writers or readers of the log would fail after them.

use std::ffi::CStr;

use pgrx::prelude::*;
use tidings_wire::topic::{TopicError, check_event};

use crate::catalog;
use crate::errors::{self, WatchError};
use crate::statements::node::{elements, strings, table};

/// Raises an error if a statement must not run.
///
/// # Safety
/// `node` is a statement.
pub unsafe fn check(node: *mut pg_sys::Node) {
    // SAFETY: a statement, as the caller promises.
    let (renames_schema, bad_event_name, bad_index) =
        unsafe { (renames_our_schema(node), bad_event_name(node), indexes_our_table_by_more_than_columns(node)) };
    if renames_schema {
        errors::raise(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "the schema of the extension tidings cannot be renamed",
            "Tables and functions of the extension are found by the schema's name.",
        );
    }
    if let Some(error) = bad_event_name {
        error.raise();
    }
    if bad_index {
        errors::raise(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "an index of tidings' own tables cannot have an expression or a predicate",
            "Index plain columns, for all rows.",
        );
    }
}

/// Whether a statement renames the extension's schema. Writers would no longer find the log.
///
/// # Safety
/// `node` is a statement.
unsafe fn renames_our_schema(node: *mut pg_sys::Node) -> bool {
    // SAFETY: a statement, as the caller promises, whose tag says which struct it is. The rename of a schema has its
    // name.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_RenameStmt {
            return false;
        }
        let rename = &*node.cast::<pg_sys::RenameStmt>();
        rename.renameType == pg_sys::ObjectType::OBJECT_SCHEMA
            && CStr::from_ptr(rename.subname) == c"tidings"
            && catalog::extension().is_some()
    }
}

/// Whether a statement creates an index on one of the extension's tables that [`crate::log::table`] could not maintain.
///
/// # Safety
/// `node` is a statement.
unsafe fn indexes_our_table_by_more_than_columns(node: *mut pg_sys::Node) -> bool {
    // SAFETY: a statement, as the caller promises, whose tag says which struct it is. A parsed index has a table and a
    // list of columns. Look-ups inside a transaction.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_IndexStmt {
            return false;
        }
        let index = &*node.cast::<pg_sys::IndexStmt>();
        let has_expression =
            elements(index.indexParams).any(|column| !(*column.cast::<pg_sys::IndexElem>()).expr.is_null());
        if index.whereClause.is_null() && !has_expression {
            return false;
        }
        let schema = pg_sys::get_rel_namespace(table(index.relation));
        catalog::schema() == Some(schema)
    }
}

/// The error for the event name of a watch that a statement creates, if streams reserve that name. It is refused only
/// here, not when the trigger fires, because a name that an earlier version allowed must not make every write fail.
///
/// # Safety
/// `node` is a statement.
unsafe fn bad_event_name(node: *mut pg_sys::Node) -> Option<WatchError> {
    // SAFETY: a statement, as the caller promises, whose tag says which struct it is. The name of a trigger's function
    // and its arguments are lists of strings. Look-ups inside a transaction.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_CreateTrigStmt {
            return None;
        }
        let trigger = &*node.cast::<pg_sys::CreateTrigStmt>();
        if strings(trigger.funcname).last() != Some(c"capture") {
            return None;
        }
        // A name without a schema may be our function too: that depends on the session's search_path.
        let function = pg_sys::LookupFuncName(trigger.funcname, 0, std::ptr::null(), true);
        if function == pg_sys::InvalidOid || Some(pg_sys::get_func_namespace(function)) != catalog::schema() {
            return None;
        }
        let name = strings(trigger.args).find_map(|argument| argument.to_str().ok()?.strip_prefix("event="))?;
        let error = check_event(name).err().filter(|error| *error == TopicError::Reserved)?;
        Some(WatchError::Event(name.into(), error))
    }
}
