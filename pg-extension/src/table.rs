//! The extension's own tables, written and read by the calls that Postgres makes for its catalogs: no plan, no executor, no
//! look at the caller's rights or at `default_transaction_read_only`.

use std::cell::RefCell;
use std::ffi::CStr;

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::prelude::*;

use crate::foreign::unguarded;
use crate::{errors, lock};

/// The lock of whoever writes rows.
const ROW_EXCLUSIVE: pg_sys::LOCKMODE = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;

/// A table, or a partition, open and locked until the end of the transaction.
pub struct Table(pg_sys::Relation);

thread_local! {
    /// The tables that this process has opened, until Postgres says that they have changed.
    static KNOWN: RefCell<Vec<(&'static CStr, pg_sys::Oid)>> = const { RefCell::new(Vec::new()) };
}

/// Registers the callback by which Postgres says so; called from `_PG_init`.
pub fn init() {
    // SAFETY: the function has the right signature and lives as long as the process.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0)) };
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, table: pg_sys::Oid) {
    forget(table);
}

/// A table has changed, or is gone; all may have, if it is none.
fn forget(table: pg_sys::Oid) {
    KNOWN.with_borrow_mut(|known| known.retain(|(_, oid)| table != pg_sys::InvalidOid && *oid != table));
}

impl Table {
    /// Opens a table of schema `tidings`, if it is there.
    pub fn open(name: &'static CStr, mode: u32) -> Option<Self> {
        loop {
            let known = KNOWN.with_borrow(|known| known.iter().find(|known| known.0 == name).map(|known| known.1));
            let table = match known {
                Some(table) => table,
                None => {
                    let table = lock::table(name)?;
                    KNOWN.with_borrow_mut(|known| known.push((name, table)));
                    table
                }
            };
            // SAFETY: inside a transaction. Nothing is left to Rust that an error would have to clean up.
            let relation = unsafe { pg_guard_ffi_boundary(|| lock_and_open(name, table, mode as pg_sys::LOCKMODE)) };
            if let Some(relation) = relation {
                return Some(Self(relation));
            }
        }
    }

    /// Its name, without that of the schema.
    pub fn name(&self) -> &str {
        // SAFETY: the relation is open.
        unsafe { name_data_to_str(&(*(*self.0).rd_rel).relname) }
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

    /// Inserts a row and its index entries. A column that somebody has added stays empty, also after it was dropped again.
    ///
    /// # Safety
    /// The table was opened for it, in a transaction that may write; the values are of the types of the first columns, and there are no
    /// fewer columns.
    pub unsafe fn insert<const N: usize>(&self, values: [pg_sys::Datum; N]) {
        // SAFETY: as the caller promises; the arrays have an element for each column. What is called under the one guard leaves nothing to
        // Rust that an error would have to clean up.
        unsafe {
            let columns = (*(*self.0).rd_att).natts as usize;
            if columns == N && pg_guard_ffi_boundary(|| insert_with_plain_index(self.0, values)) {
                return;
            }
            let mut values = values.to_vec();
            values.resize(columns, pg_sys::Datum::null());
            let mut nulls: Vec<bool> = (0..columns).map(|column| column >= N).collect();
            let tuple = pg_sys::heap_form_tuple((*self.0).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            self.insert_tuple(tuple);
            pg_sys::heap_freetuple(tuple);
        }
    }

    /// # Safety
    /// As for `insert`; the tuple is one of the table's form.
    unsafe fn insert_tuple(&self, tuple: pg_sys::HeapTuple) {
        // SAFETY: the arrays of the index state have `ri_NumIndices` elements, and the two are kept in step. All of them are
        // there again when it is closed.
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
                // One that REINDEX CONCURRENTLY has only begun takes no entries; catalogs have no such indexes.
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

/// Locks a table and opens it, unless it turns out to be gone.
///
/// # Safety
/// Called inside a transaction, under a guard.
unsafe fn lock_and_open(name: &'static CStr, table: pg_sys::Oid, mode: pg_sys::LOCKMODE) -> Option<pg_sys::Relation> {
    // SAFETY: as the caller promises; it is locked when it is opened.
    unsafe {
        unguarded::LockRelationOid(table, mode);
        // Whoever gets a lock has heard of all that others have done to the table.
        if KNOWN.with_borrow(|known| known.contains(&(name, table))) {
            return Some(unguarded::table_open(table, pg_sys::NoLock as pg_sys::LOCKMODE));
        }
        unguarded::UnlockRelationOid(table, mode);
        None
    }
}

/// Inserts a row of values that are all there, if the table is as it was made: with one index, a plain one on one column. Says whether it
/// has. The state that Postgres makes for any kind of index costs as much as the entry itself.
///
/// # Safety
/// As for [`Table::insert`]; the table has `N` columns. Called under a guard.
unsafe fn insert_with_plain_index<const N: usize>(table: pg_sys::Relation, mut values: [pg_sys::Datum; N]) -> bool {
    // SAFETY: as the caller promises. The list is the table's while nothing is asked of Postgres; an index has a row in `pg_index`.
    unsafe {
        let indexes = (*table).rd_indexlist;
        if !(*table).rd_indexvalid || indexes.is_null() || (*indexes).length != 1 {
            return false;
        }
        let index = unguarded::index_open((*(*indexes).elements).oid_value, ROW_EXCLUSIVE);
        let column = plain_column(index).filter(|column| *column < N);
        if let Some(column) = column {
            let tuple = unguarded::heap_form_tuple((*table).rd_att, values.as_mut_ptr(), [false; N].as_mut_ptr());
            unguarded::simple_heap_insert(table, tuple);
            let mut info = pg_sys::IndexInfo { type_: pg_sys::NodeTag::T_IndexInfo, ..Default::default() };
            unguarded::index_insert(
                index,
                &mut values[column],
                &mut false,
                &mut (*tuple).t_self,
                table,
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO,
                false,
                &mut info,
            );
            unguarded::heap_freetuple(tuple);
        }
        unguarded::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        column.is_some()
    }
}

/// The column, from 0, that an index is on, if it is a B-tree of every row's value of that column and nothing else.
///
/// # Safety
/// The index is open. Called under a guard.
unsafe fn plain_column(index: pg_sys::Relation) -> Option<usize> {
    // SAFETY: as the caller promises; an index has at least one column.
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
            // SAFETY: opened by `open`. The lock is kept until the end of the transaction.
            unsafe { pg_sys::table_close(self.0, pg_sys::NoLock as pg_sys::LOCKMODE) }
        }
    }
}
