//! The extension's own tables, opened and written with the functions that Postgres uses for its catalogs: without a
//! plan, the executor, or a check of the caller's rights and of `default_transaction_read_only`.

use std::cell::RefCell;
use std::ffi::CStr;

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::prelude::*;

use crate::catalog;
use crate::errors;
use crate::foreign::unguarded;

/// A table or partition that is open, and locked until the end of the transaction.
pub struct Table(pg_sys::Relation);

/// The file of a table, which TRUNCATE replaces: the OID of the table and the number of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File(pg_sys::Oid, pg_sys::Oid);

thread_local! {
    /// The tables that this process has opened, until Postgres reports a change of theirs.
    static KNOWN: RefCell<Vec<(&'static CStr, pg_sys::Oid)>> = const { RefCell::new(Vec::new()) };
}

/// Registers the callback for such reports. Called from `_PG_init`.
pub fn init() {
    // SAFETY: the function has the signature that Postgres expects, and lives as long as the process.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0)) };
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, table: pg_sys::Oid) {
    forget(table);
}

/// Forgets a table that has changed or is gone; all tables if it is `InvalidOid`.
fn forget(table: pg_sys::Oid) {
    KNOWN.with_borrow_mut(|known| known.retain(|(_, oid)| table != pg_sys::InvalidOid && *oid != table));
}

impl Table {
    /// Opens a table of schema `tidings`, if it exists.
    pub fn open(name: &'static CStr, mode: u32) -> Option<Self> {
        loop {
            let known = KNOWN.with_borrow(|known| known.iter().find(|known| known.0 == name).map(|known| known.1));
            let table = match known {
                Some(table) => table,
                None => {
                    let table = catalog::table(name)?;
                    KNOWN.with_borrow_mut(|known| known.push((name, table)));
                    table
                }
            };
            let mode = mode as pg_sys::LOCKMODE;
            // SAFETY: inside a transaction, which holds the lock until its end. Nothing is left to Rust that an error
            // would have to clean up.
            let relation = unsafe {
                pg_guard_ffi_boundary(|| {
                    unguarded::LockRelationOid(table, mode);
                    // Whoever gets a lock has processed all reports of changes that were made under a stronger lock.
                    if KNOWN.with_borrow(|known| known.contains(&(name, table))) {
                        return unguarded::table_open(table, pg_sys::NoLock as pg_sys::LOCKMODE);
                    }
                    // Another session has dropped it, so the next look-up is correct.
                    unguarded::UnlockRelationOid(table, mode);
                    std::ptr::null_mut()
                })
            };
            if !relation.is_null() {
                return Some(Self(relation));
            }
        }
    }

    /// Its name, without the schema.
    pub fn name(&self) -> &str {
        // SAFETY: the relation is open.
        unsafe { name_data_to_str(&(*(*self.0).rd_rel).relname) }
    }

    /// Its OID, which changes only if the table is dropped and created again.
    pub fn oid(&self) -> pg_sys::Oid {
        // SAFETY: the relation is open.
        unsafe { (*self.0).rd_id }
    }

    /// Its file.
    pub fn file(&self) -> File {
        // SAFETY: the relation is open.
        #[cfg(feature = "pg15")]
        let number = unsafe { (*self.0).rd_node.relNode };
        // SAFETY: the relation is open.
        #[cfg(not(feature = "pg15"))]
        let number = unsafe { (*self.0).rd_locator.relNumber };
        File(self.oid(), number)
    }

    /// Its owner.
    pub fn owner(&self) -> pg_sys::Oid {
        // SAFETY: the relation is open.
        unsafe { (*(*self.0).rd_rel).relowner }
    }

    /// The open relation.
    pub fn relation(&self) -> pg_sys::Relation {
        self.0
    }

    /// Its columns.
    pub fn columns(&self) -> pgrx::PgTupleDesc<'_> {
        // SAFETY: the relation is open.
        unsafe { pgrx::PgTupleDesc::from_pg_unchecked((*self.0).rd_att) }
    }

    /// Inserts a row and its index entries. Columns that somebody has added, also dropped ones, become NULL.
    ///
    /// # Safety
    /// The table was opened with a lock for writing, in a transaction that may write. The values are of the types of
    /// the first columns, and the table has at least that many columns.
    pub unsafe fn insert<const N: usize>(&self, values: [pg_sys::Datum; N]) {
        // SAFETY: the values fit the columns, as the caller promises; the arrays have an element for each column.
        unsafe {
            let descriptor = (*self.0).rd_att;
            let columns = (*descriptor).natts as usize;
            // What is called under this guard leaves nothing to Rust that an error would have to clean up.
            if columns == N && pg_guard_ffi_boundary(|| insert_with_plain_index(self.0, values)) {
                return;
            }
            let mut values = values.to_vec();
            values.resize(columns, pg_sys::Datum::null());
            let mut nulls: Vec<bool> = (0..columns).map(|column| column >= N).collect();
            let tuple = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            self.insert_tuple(tuple);
            pg_sys::heap_freetuple(tuple);
        }
    }

    /// # Safety
    /// The table was opened with a lock for writing, in a transaction that may write, and the tuple has its row type.
    unsafe fn insert_tuple(&self, tuple: pg_sys::HeapTuple) {
        // SAFETY: the arrays of the index state have `ri_NumIndices` elements. Both are reordered in the same way, and
        // the full number is restored before the state is closed.
        unsafe {
            let indexes = pg_sys::CatalogOpenIndexes(self.0);
            let all = (*indexes).ri_NumIndices;
            let mut ready = 0;
            for i in 0..all as usize {
                let info = &**(*indexes).ri_IndexRelationInfo.add(i);
                if !info.ii_Expressions.is_null() || !info.ii_Predicate.is_null() {
                    errors::raise(
                        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                        format!("tidings.{} has an index with an expression or a predicate", self.name()),
                        "Drop the index: the table has all it needs.",
                    );
                }
                // An index that REINDEX CONCURRENTLY has only begun takes no entries. The function for catalogs does
                // not know such indexes.
                if info.ii_ReadyForInserts {
                    std::ptr::swap((*indexes).ri_IndexRelationInfo.add(i), (*indexes).ri_IndexRelationInfo.add(ready));
                    std::ptr::swap(
                        (*indexes).ri_IndexRelationDescs.add(i),
                        (*indexes).ri_IndexRelationDescs.add(ready),
                    );
                    ready += 1;
                }
            }
            (*indexes).ri_NumIndices = ready as i32;
            pg_sys::CatalogTupleInsertWithInfo(self.0, tuple, indexes);
            (*indexes).ri_NumIndices = all;
            pg_sys::CatalogCloseIndexes(indexes);
        }
    }
}

/// Inserts a row if the table has one index, a plain one on one column, as the extension's tables have. Otherwise does
/// nothing and returns false. The state that Postgres makes for any kind of index costs as much as the entry itself.
///
/// # Safety
/// As for [`Table::insert`]. The table has `N` columns. Called under a guard.
unsafe fn insert_with_plain_index<const N: usize>(table: pg_sys::Relation, mut values: [pg_sys::Datum; N]) -> bool {
    // SAFETY: the table is open and locked and the values fit its columns, as the caller promises. Nothing that is
    // called before the list of indexes has been read can change it. An index has a row in `pg_index`.
    unsafe {
        let indexes = (*table).rd_indexlist;
        if !(*table).rd_indexvalid || indexes.is_null() || (*indexes).length != 1 {
            return false;
        }
        let mode = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
        let index = unguarded::index_open((*(*indexes).elements).oid_value, mode);
        let column = plain_column(index).filter(|column| *column < N);
        if let Some(column) = column {
            let tuple = unguarded::heap_form_tuple((*table).rd_att, values.as_mut_ptr(), [false; N].as_mut_ptr());
            unguarded::simple_heap_insert(table, tuple);
            // A B-tree looks at nothing in it for a plain entry.
            let mut info = pg_sys::IndexInfo { type_: pg_sys::NodeTag::T_IndexInfo, ..Default::default() };
            let unique = pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO;
            let (value, place) = (&raw mut values[column], &raw mut (*tuple).t_self);
            unguarded::index_insert(index, value, &mut false, place, table, unique, false, &mut info);
            unguarded::heap_freetuple(tuple);
        }
        unguarded::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        column.is_some()
    }
}

/// The column, counted from 0, that an index is on, if it is a B-tree that has each row's value of this column, and
/// nothing else.
///
/// # Safety
/// The index is open. Called under a guard.
unsafe fn plain_column(index: pg_sys::Relation) -> Option<usize> {
    // SAFETY: the index is open, as the caller promises, and has at least one column.
    unsafe {
        let form = &*(*index).rd_index;
        let is_btree = (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID;
        let is_plain = is_btree && form.indnatts == 1 && form.indisready && !form.indisunique;
        // Number 0 is an expression.
        let column = usize::try_from(*form.indkey.values.as_ptr() - 1).ok();
        column.filter(|_| is_plain && unguarded::RelationGetIndexPredicate(index).is_null())
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the relation was opened by `open`. The lock is kept until the end of the transaction.
            unsafe { pg_sys::table_close(self.0, pg_sys::NoLock as pg_sys::LOCKMODE) }
        }
    }
}
