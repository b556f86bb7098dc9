//! What a row version says about the commands that made and changed it.

use pgrx::pg_sys;

use crate::foreign::infallible::{HeapTupleHeaderGetCmax, HeapTupleHeaderGetCmin, TransactionIdIsCurrentTransactionId};

/// A row version: the table's OID, the block, and the line in the block.
pub type Version = (u32, u16, u16, u16);

/// Whether the current transaction made a row version.
///
/// # Safety
/// The tuple is alive.
pub unsafe fn is_own(tuple: pg_sys::HeapTuple) -> bool {
    // SAFETY: the tuple is alive, as the caller promises, and of a heap table, so it has the fields of the heap.
    unsafe {
        let header = (*tuple).t_data;
        let is_frozen = u32::from((*header).t_infomask) & pg_sys::HEAP_XMIN_FROZEN == pg_sys::HEAP_XMIN_FROZEN;
        !is_frozen && TransactionIdIsCurrentTransactionId((*header).t_choice.t_heap.t_xmin)
    }
}

/// The command of the current transaction that has updated or deleted a row version.
///
/// # Safety
/// The tuple is alive.
pub unsafe fn changed_by(tuple: pg_sys::HeapTuple) -> Option<pg_sys::CommandId> {
    // SAFETY: the tuple is alive, as the caller promises, and of a heap table, so it has the fields of the heap. If it
    // has many lockers, the function looks up which of them has changed it.
    unsafe {
        let header = (*tuple).t_data;
        let is = |flags| u32::from((*header).t_infomask) & flags != 0;
        if is(pg_sys::HEAP_XMAX_INVALID | pg_sys::HEAP_XMAX_LOCK_ONLY) {
            return None;
        }
        let by = if is(pg_sys::HEAP_XMAX_IS_MULTI) {
            pg_sys::HeapTupleGetUpdateXid(header)
        } else {
            (*header).t_choice.t_heap.t_xmax
        };
        TransactionIdIsCurrentTransactionId(by).then(|| HeapTupleHeaderGetCmax(header))
    }
}

/// The command of the current transaction that has written a table's row in `pg_class` last, for example to give it a
/// new file.
pub fn last_written(table: pg_sys::Oid) -> Option<pg_sys::CommandId> {
    // SAFETY: called inside a transaction. A row from the cache is a whole row of a heap table, and alive until it is
    // released. It has a valid command if this transaction made it.
    unsafe {
        let row = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, table.into());
        if row.is_null() {
            return None;
        }
        let written = is_own(row).then(|| HeapTupleHeaderGetCmin((*row).t_data));
        pg_sys::ReleaseSysCache(row);
        written
    }
}

/// The identity of a row version.
///
/// # Safety
/// The tuple is alive.
pub unsafe fn version(tuple: pg_sys::HeapTuple) -> Version {
    // SAFETY: the tuple is alive, as the caller promises.
    let pg_sys::HeapTupleData { t_self, t_tableOid, .. } = unsafe { *tuple };
    (t_tableOid.to_u32(), t_self.ip_blkid.bi_hi, t_self.ip_blkid.bi_lo, t_self.ip_posid)
}
