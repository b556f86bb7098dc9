//! Look-ups in the system catalogs: the extension itself, its schema and its tables, the owner of an object, and a scan
//! of a whole catalog. They use no SQL, so that neither the caller's rights nor its `search_path` matter.

use std::ffi::CStr;

use pgrx::prelude::*;

/// The extension, if it is installed in this database. Called inside a transaction.
pub fn extension() -> Option<pg_sys::Oid> {
    // SAFETY: a catalog look-up inside a transaction; the name is a C string.
    some(unsafe { pg_sys::get_extension_oid(c"tidings".as_ptr(), true) })
}

/// The schema `tidings`, if it exists. Called inside a transaction.
pub fn schema() -> Option<pg_sys::Oid> {
    // SAFETY: a catalog look-up inside a transaction; the name is a C string.
    some(unsafe { pg_sys::get_namespace_oid(c"tidings".as_ptr(), true) })
}

/// The table with this name in schema `tidings`, if it exists. Called inside a transaction.
pub fn table(name: &CStr) -> Option<pg_sys::Oid> {
    let schema = schema()?;
    // SAFETY: a catalog look-up inside a transaction; the name is a C string.
    some(unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema) })
}

/// Whether a role has the rights of an object's owner. The object is a table, a database or an extension, as its
/// catalog (`class`) says. Called inside a transaction.
pub fn is_owner(role: pg_sys::Oid, class: pg_sys::Oid, object: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups inside a transaction, for an object of the catalog that `class` names.
    unsafe {
        #[cfg(feature = "pg15")]
        let is_owner = match class {
            pg_sys::RelationRelationId => pg_sys::pg_class_ownercheck(object, role),
            pg_sys::DatabaseRelationId => pg_sys::pg_database_ownercheck(object, role),
            pg_sys::ExtensionRelationId => pg_sys::pg_extension_ownercheck(object, role),
            _ => false,
        };
        #[cfg(not(feature = "pg15"))]
        let is_owner = pg_sys::object_ownercheck(class, object, role);
        is_owner
    }
}

/// Whether a database is marked as a template, which every role with CREATEDB may copy. Called inside a transaction.
pub fn is_template(database: pg_sys::Oid) -> bool {
    let cache = pg_sys::SysCacheIdentifier::DATABASEOID as i32;
    // SAFETY: a look-up in the system caches inside a transaction. A row of pg_database begins with this struct, and it
    // is read before it is released.
    unsafe {
        let row = pg_sys::SearchSysCache1(cache, database.into());
        if row.is_null() {
            return false;
        }
        let is_template = (*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_database>()).datistemplate;
        pg_sys::ReleaseSysCache(row);
        is_template
    }
}

/// Whether a role may create databases. Called inside a transaction.
///
/// Postgres 15 has a function for this only since a late minor version, and a library that calls it is not loaded by
/// earlier ones: the tests of the packages have such a server.
pub fn may_create_databases(role: pg_sys::Oid) -> bool {
    let cache = pg_sys::SysCacheIdentifier::AUTHOID as i32;
    // SAFETY: look-ups in the system caches inside a transaction. A row of pg_authid begins with this struct, and it is
    // read before it is released.
    unsafe {
        if pg_sys::superuser_arg(role) {
            return true;
        }
        let row = pg_sys::SearchSysCache1(cache, role.into());
        if row.is_null() {
            return false;
        }
        let may_create = (*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_authid>()).rolcreatedb;
        pg_sys::ReleaseSysCache(row);
        may_create
    }
}

/// The current user, whose rights count.
pub fn current_user() -> pg_sys::Oid {
    // SAFETY: reads a variable of this backend.
    unsafe { pg_sys::GetUserId() }
}

/// The values that `of_row` returns for the rows of a catalog.
///
/// # Safety
/// Called inside a transaction; `of_row` may read a row as the struct of that catalog.
pub unsafe fn collect<T>(catalog: pg_sys::Oid, of_row: impl Fn(pg_sys::HeapTuple) -> Option<T>) -> Vec<T> {
    let mut found = Vec::new();
    // SAFETY: inside a transaction, as the caller promises. The scan is closed below; after an error, the end of the
    // transaction closes it.
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
    found
}

/// Postgres returns `InvalidOid` for an object that does not exist.
fn some(oid: pg_sys::Oid) -> Option<pg_sys::Oid> {
    (oid != pg_sys::InvalidOid).then_some(oid)
}
