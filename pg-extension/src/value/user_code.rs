//! Code of users that runs while a value is packed: casts to `json`, and the output functions of types that users have
//! created.
//!
//! It runs with the writer's rights, in the writer's transaction. It may fail, return NULL, or return invalid JSON.
//! That affects only how the value is sent, never the write.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::function::output_function;
use crate::subtransaction::attempt_unless;

/// `INTERNALlanguageId` (catalog/pg_language.dat): the language of functions that are part of Postgres.
const INTERNAL: u32 = 12;

/// Whether rendering a value of the type, which is not a domain, calls code that is not part of Postgres.
pub fn is_needed_for(base: pg_sys::Oid) -> bool {
    if base.to_u32() < pg_sys::FirstNormalObjectId {
        return false;
    }
    // SAFETY: look-ups in the system caches, inside a transaction.
    unsafe {
        let part = match pg_sys::get_typtype(base) as u8 {
            _ if has_cast_to_json(base) => return true,
            pg_sys::TYPTYPE_ENUM => return false,
            // Its columns may have any types, and their types may change later.
            pg_sys::TYPTYPE_COMPOSITE => return true,
            pg_sys::TYPTYPE_RANGE => pg_sys::get_range_subtype(base),
            pg_sys::TYPTYPE_MULTIRANGE => pg_sys::get_multirange_range(base),
            _ => pg_sys::get_element_type(base),
        };
        if part == pg_sys::InvalidOid { !has_internal_output(base) } else { is_needed_for(pg_sys::getBaseType(part)) }
    }
}

/// Whether the type, which is not a domain, has a cast to `json`. `to_jsonb` uses such casts for types that are not
/// part of Postgres.
pub fn has_cast_to_json(base: pg_sys::Oid) -> bool {
    let mut cast = pg_sys::InvalidOid;
    base.to_u32() >= pg_sys::FirstNormalObjectId
        // SAFETY: a look-up in the system caches, inside a transaction.
        && unsafe {
            pg_sys::find_coercion_pathway(
                pg_sys::JSONOID,
                base,
                pg_sys::CoercionContext::COERCION_EXPLICIT,
                &mut cast,
            )
        } == pg_sys::CoercionPathType::COERCION_PATH_FUNC
}

/// Whether the output function of a type is part of Postgres, as that of `citext` is.
fn has_internal_output(type_oid: pg_sys::Oid) -> bool {
    let output = output_function(type_oid);
    // SAFETY: a look-up in the system caches, inside a transaction. A tuple of `pg_proc` has the form of its struct; it
    // is released after the last use.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::PROCOID as i32, output.into());
        if tuple.is_null() {
            return false;
        }
        let language = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_proc>()).prolang;
        pg_sys::ReleaseSysCache(tuple);
        language.to_u32() == INTERNAL
    }
}

/// Runs `body` in a subtransaction and returns the code of its error. Errors that must end the whole transaction or
/// session are raised again.
pub fn run<R>(body: impl FnOnce() -> R) -> Result<R, PgSqlErrorCode> {
    attempt_unless(is_for_the_writer, body)
}

/// Whether the user's code did not cause an error: a deadlock or serialization failure, out of memory, a cancel or a
/// shutdown.
fn is_for_the_writer(code: PgSqlErrorCode) -> bool {
    /// The bits of an SQLSTATE that hold its class (`ERRCODE_TO_CATEGORY`).
    const CLASS: isize = (1 << 12) - 1;
    let class = |code: PgSqlErrorCode| code as isize & CLASS;
    [
        PgSqlErrorCode::ERRCODE_TRANSACTION_ROLLBACK,
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
        PgSqlErrorCode::ERRCODE_OPERATOR_INTERVENTION,
        PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
    ]
    .into_iter()
    .any(|passes| class(passes) == class(code))
}

/// Raises an error unless Postgres accepts a text as JSON.
pub fn check_json(text: &[u8]) {
    let text = [text, b"\0"].concat();
    // SAFETY: the text ends with a NUL, and `json_in` needs no type modifier.
    unsafe {
        pg_sys::OidInputFunctionCall(pg_sys::F_JSON_IN.into(), text.as_ptr().cast_mut().cast(), pg_sys::InvalidOid, -1)
    };
}
