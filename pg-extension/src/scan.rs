//! What is new in a partition of `tidings.log`, found by its index: no plan, no executor, as in [`crate::table`].

use std::ops::ControlFlow;

use pgrx::prelude::*;

use crate::log::{DATA, XID};
use crate::snapshot::Snapshot;
use crate::table::Table;

/// Goes through the rows of a partition of `tidings.log` that `seen` does not see and the active snapshot does, until told
/// to stop. The values are those of the columns; none of the first ones, up to the data, is NULL.
pub fn unseen(partition: &Table, seen: &Snapshot, mut each: impl FnMut(&[pg_sys::Datum]) -> ControlFlow<()>) {
    let running: Vec<_> = seen.running.iter().map(|xid| pg_sys::Datum::from(*xid)).collect();
    // SAFETY: the partition is open; an xid8 is passed by value, as 64 bits. What is opened here is closed here, or by the
    // end of the transaction if an error unwinds.
    unsafe {
        let index = index_on(partition, XID);
        let slot = pg_sys::table_slot_create(partition.relation(), std::ptr::null_mut());
        let ended = scan(partition, index, slot, Some(later(seen.xmax)), &mut each);
        if !running.is_empty() && ended.is_continue() {
            let _ = scan(partition, index, slot, Some(one_of(&running)), &mut each);
        }
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
    }
}

/// Gives the row of a table of ours that is the first by a column, if the active snapshot sees any.
pub fn first(table: &Table, column: usize, each: impl FnOnce(&[pg_sys::Datum])) {
    let mut each = Some(each);
    // SAFETY: the table is open; without a key the whole index is gone through. What is opened here is closed here, or by the end of the
    // transaction if an error unwinds.
    unsafe {
        let index = index_on(table, column);
        let slot = pg_sys::table_slot_create(table.relation(), std::ptr::null_mut());
        let _ = scan(table, index, slot, None, &mut |row: &[pg_sys::Datum]| {
            if let Some(each) = each.take() {
                each(row);
            }
            ControlFlow::Break(())
        });
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
    }
}

/// The B-tree on a column alone, open. A DBA's index may be on it as well, but of a kind that finds other rows or fewer.
fn index_on(partition: &Table, column: usize) -> pg_sys::Relation {
    // SAFETY: the relation is open and locked, so its indexes are there; the list has `length` of them, and an index has
    // at least one column.
    unsafe {
        let indexes = pg_sys::RelationGetIndexList(partition.relation());
        let length = indexes.as_ref().map_or(0, |list| list.length);
        for i in 0..length as usize {
            let index = (*(*indexes).elements.add(i)).oid_value;
            let index = pg_sys::index_open(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            let form = &*(*index).rd_index;
            let is_btree = (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID;
            let on_column = form.indnatts == 1 && *form.indkey.values.as_ptr() == column as i16 + 1;
            if form.indisvalid && is_btree && on_column && pg_sys::RelationGetIndexPredicate(index).is_null() {
                return index;
            }
            pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
    }
    error!("tidings.{} has no valid index on its column {}", partition.name(), column + 1)
}

/// # Safety
/// The index is one of the table's, the slot is of its form, and the key, if there is one, is for the index's first column.
unsafe fn scan(
    partition: &Table,
    index: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    key: Option<pg_sys::ScanKeyData>,
    each: &mut impl FnMut(&[pg_sys::Datum]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    // SAFETY: as the caller promises; a row has a value for each column once all are taken apart.
    unsafe {
        let mut keys: Vec<_> = key.into_iter().collect();
        let count = keys.len() as i32;
        let scan = begin_scan(partition.relation(), index, count);
        pg_sys::index_rescan(scan, keys.as_mut_ptr(), count, std::ptr::null_mut(), 0);
        let mut ended = ControlFlow::Continue(());
        while ended.is_continue() && pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot)
        {
            pg_sys::check_for_interrupts!();
            let columns = (*(*slot).tts_tupleDescriptor).natts;
            pg_sys::slot_getsomeattrs_int(slot, columns);
            // Log and ticks have as many columns of ours.
            if std::slice::from_raw_parts((*slot).tts_isnull, columns as usize)[..=DATA].contains(&true) {
                error!("tidings.{} has a row with a NULL", partition.name());
            }
            ended = each(std::slice::from_raw_parts((*slot).tts_values, columns as usize));
        }
        pg_sys::index_endscan(scan);
        ended
    }
}

/// # Safety
/// Both are open, and there is an active snapshot.
unsafe fn begin_scan(table: pg_sys::Relation, index: pg_sys::Relation, keys: i32) -> pg_sys::IndexScanDesc {
    // SAFETY: as the caller promises.
    unsafe {
        let snapshot = pg_sys::GetActiveSnapshot();
        #[cfg(feature = "pg18")]
        return pg_sys::index_beginscan(table, index, snapshot, std::ptr::null_mut(), keys, 0);
        #[cfg(not(feature = "pg18"))]
        return pg_sys::index_beginscan(table, index, snapshot, keys, 0);
    }
}

/// A key for transactions from `xid` on.
fn later(xid: u64) -> pg_sys::ScanKeyData {
    // SAFETY: these three belong together.
    unsafe { key(0, pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_XID8GE, pg_sys::Datum::from(xid)) }
}

/// A key for the transactions of a list.
fn one_of(xids: &[pg_sys::Datum]) -> pg_sys::ScanKeyData {
    // SAFETY: copies the values, which are of that type, length and alignment.
    let array = unsafe {
        let (values, alignment) = (xids.as_ptr().cast_mut(), pg_sys::TYPALIGN_DOUBLE as std::ffi::c_char);
        pg_sys::construct_array(values, xids.len() as i32, pg_sys::XID8OID, 8, true, alignment)
    };
    // SAFETY: these belong together.
    unsafe { key(pg_sys::SK_SEARCHARRAY, pg_sys::BTEqualStrategyNumber, pg_sys::F_XID8EQ, array.into()) }
}

/// # Safety
/// The function is the one of this strategy in the index's operator class, for values of its own type; the argument is one, or an array
/// of them if the flags say so.
unsafe fn key(flags: u32, strategy: u32, function: u32, argument: pg_sys::Datum) -> pg_sys::ScanKeyData {
    let mut key = pg_sys::ScanKeyData::default();
    // SAFETY: as the caller promises.
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
