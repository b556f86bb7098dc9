//! The extension's own tables, written and read by the calls that Postgres makes for its catalogs: no plan, no executor, no
//! look at the caller's rights or at `default_transaction_read_only`.

use std::cell::RefCell;
use std::ffi::CStr;
use std::ops::ControlFlow;

use pgrx::prelude::*;

use crate::log::{DATA, XID};
use crate::snapshot::Snapshot;
use crate::{errors, lock};

/// A table, or a partition, open and locked until the end of the transaction.
pub struct Table(pg_sys::Relation);

thread_local! {
    /// The tables that this process has opened, until Postgres says that they have changed.
    static KNOWN: RefCell<Vec<(&'static CStr, pg_sys::Oid)>> = const { RefCell::new(Vec::new()) };
}

/// A table has changed, or is gone; all may have, if it is none.
pub fn forget(table: pg_sys::Oid) {
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

    fn name(&self) -> &str {
        // SAFETY: the relation is open.
        unsafe { name_data_to_str(&(*(*self.0).rd_rel).relname) }
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
                        "Drop the index: the log has all it needs.",
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

    /// Goes through the rows of a partition of `tidings.log` that `seen` does not see and the active snapshot does, until told
    /// to stop. The values are those of the columns; none of the first ones, up to the data, is NULL.
    pub fn unseen(&self, seen: &Snapshot, mut each: impl FnMut(&[pg_sys::Datum]) -> ControlFlow<()>) {
        let running: Vec<_> = seen.running.iter().map(|xid| pg_sys::Datum::from(*xid)).collect();
        // SAFETY: the partition is open; an xid8 is passed by value, as 64 bits. What is opened here is closed here, or by the
        // end of the transaction if an error unwinds.
        unsafe {
            let index = self.index_on_xid();
            let slot = pg_sys::table_slot_create(self.0, std::ptr::null_mut());
            let ended = self.scan(index, slot, later(seen.xmax), &mut each);
            if !running.is_empty() && ended.is_continue() {
                let _ = self.scan(index, slot, one_of(&running), &mut each);
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
    }

    /// The B-tree on transactions alone, open. A DBA's index may be on them as well, but of a kind that finds other rows or fewer.
    fn index_on_xid(&self) -> pg_sys::Relation {
        // SAFETY: the relation is open and locked, so its indexes are there; the list has `length` of them, and an index has
        // at least one column.
        unsafe {
            let indexes = pg_sys::RelationGetIndexList(self.0);
            let length = indexes.as_ref().map_or(0, |list| list.length);
            for i in 0..length as usize {
                let index = (*(*indexes).elements.add(i)).oid_value;
                let index = pg_sys::index_open(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
                let form = &*(*index).rd_index;
                let is_btree = (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID;
                let on_xid = form.indnatts == 1 && *form.indkey.values.as_ptr() == XID as i16 + 1;
                if form.indisvalid && is_btree && on_xid && pg_sys::RelationGetIndexPredicate(index).is_null() {
                    return index;
                }
                pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
            }
        }
        error!("tidings.{} has no valid index on xid", self.name())
    }

    /// # Safety
    /// The index is one of the table's, the slot is of its form, and the key is for the index's first column.
    unsafe fn scan(
        &self,
        index: pg_sys::Relation,
        slot: *mut pg_sys::TupleTableSlot,
        mut key: pg_sys::ScanKeyData,
        each: &mut impl FnMut(&[pg_sys::Datum]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        // SAFETY: as the caller promises; a row has a value for each column once all are taken apart.
        unsafe {
            let scan = begin_scan(self.0, index);
            pg_sys::index_rescan(scan, &mut key, 1, std::ptr::null_mut(), 0);
            let mut ended = ControlFlow::Continue(());
            while ended.is_continue()
                && pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot)
            {
                pg_sys::check_for_interrupts!();
                let columns = (*(*slot).tts_tupleDescriptor).natts;
                pg_sys::slot_getsomeattrs_int(slot, columns);
                if std::slice::from_raw_parts((*slot).tts_isnull, columns as usize)[..=DATA].contains(&true) {
                    error!("tidings.{} has a segment with a NULL", self.name());
                }
                ended = each(std::slice::from_raw_parts((*slot).tts_values, columns as usize));
            }
            pg_sys::index_endscan(scan);
            ended
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

/// # Safety
/// Both are open, and there is an active snapshot.
unsafe fn begin_scan(table: pg_sys::Relation, index: pg_sys::Relation) -> pg_sys::IndexScanDesc {
    // SAFETY: as the caller promises.
    unsafe {
        let snapshot = pg_sys::GetActiveSnapshot();
        #[cfg(feature = "pg18")]
        return pg_sys::index_beginscan(table, index, snapshot, std::ptr::null_mut(), 1, 0);
        #[cfg(not(feature = "pg18"))]
        return pg_sys::index_beginscan(table, index, snapshot, 1, 0);
    }
}

/// A key for transactions from `xid` on.
fn later(xid: u64) -> pg_sys::ScanKeyData {
    key(0, pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_XID8GE, pg_sys::Datum::from(xid))
}

/// A key for the transactions of a list.
fn one_of(xids: &[pg_sys::Datum]) -> pg_sys::ScanKeyData {
    // SAFETY: copies the values, which are of that type, length and alignment.
    let array = unsafe {
        let (values, alignment) = (xids.as_ptr().cast_mut(), pg_sys::TYPALIGN_DOUBLE as std::ffi::c_char);
        pg_sys::construct_array(values, xids.len() as i32, pg_sys::XID8OID, 8, true, alignment)
    };
    key(pg_sys::SK_SEARCHARRAY, pg_sys::BTEqualStrategyNumber, pg_sys::F_XID8EQ, pg_sys::Datum::from(array))
}

fn key(flags: u32, strategy: u32, function: u32, argument: pg_sys::Datum) -> pg_sys::ScanKeyData {
    let mut key = pg_sys::ScanKeyData::default();
    // SAFETY: the function is the one of this strategy in the index's operator class, for values of its own type.
    unsafe {
        pg_sys::ScanKeyEntryInitialize(
            &mut key,
            flags as i32,
            1,
            strategy as pg_sys::StrategyNumber,
            pg_sys::XID8OID,
            pg_sys::InvalidOid,
            function.into(),
            argument,
        );
    }
    key
}
