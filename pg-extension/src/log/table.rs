//! The extension's own tables, written and read by the calls that Postgres makes for its catalogs: no plan, no
//! executor, no look at the caller's rights or at `default_transaction_read_only`.

use std::cell::RefCell;
use std::ffi::CStr;

use pgrx::prelude::*;

use crate::errors;
use crate::log::lock;

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
            // SAFETY: inside a transaction.
            let relation = unsafe { pg_sys::try_table_open(table, mode as pg_sys::LOCKMODE) };
            if !relation.is_null() {
                return Some(Self(relation));
            }
            // Another session has dropped it. Whoever waits for a lock hears of that, so the next look-up is right.
            forget(table);
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

    /// Inserts a row and its index entries. A column that somebody has added stays empty, also after it was dropped
    /// again.
    ///
    /// # Safety
    /// The table was opened for it, in a transaction that may write; the values are of the types of the first columns,
    /// and there are no fewer columns.
    pub unsafe fn insert<const N: usize>(&self, values: [pg_sys::Datum; N]) {
        // SAFETY: as the caller promises; the arrays have an element for each column.
        unsafe {
            let descriptor = (*self.0).rd_att;
            let columns = (*descriptor).natts as usize;
            let tuple = if columns == N {
                pg_sys::heap_form_tuple(descriptor, values.as_ptr().cast_mut(), [false; N].as_mut_ptr())
            } else {
                let mut values = values.to_vec();
                values.resize(columns, pg_sys::Datum::null());
                let mut nulls: Vec<bool> = (0..columns).map(|column| column >= N).collect();
                pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr())
            };
            self.insert_tuple(tuple);
            pg_sys::heap_freetuple(tuple);
        }
    }

    /// # Safety
    /// As for `insert`; the tuple is one of the table's form.
    unsafe fn insert_tuple(&self, tuple: pg_sys::HeapTuple) {
        // SAFETY: the arrays of the index state have `ri_NumIndices` elements, and the two are kept in step. All of
        // them are there again when it is closed.
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

impl Drop for Table {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by `open`. The lock is kept until the end of the transaction.
            unsafe { pg_sys::table_close(self.0, pg_sys::NoLock as pg_sys::LOCKMODE) }
        }
    }
}
