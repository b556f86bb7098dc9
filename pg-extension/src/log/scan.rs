//! Reads rows of the extension's own tables through an index, mainly the new segments of the log. Like
//! [`crate::log::table`], this needs no plan and no executor.

use std::ops::ControlFlow;

use pgrx::prelude::*;
use tidings_wire::Snapshot;

use crate::log::layout::{LOG_PARTITIONS, NOT_NULL_COLUMNS, TICK_PARTITIONS, log, tick};
use crate::log::snapshot::{self, with_latest};
use crate::log::table::Table;
use crate::shared::SLOTS;

/// The partitions of the log, open and locked. None for a partition that does not exist.
pub type Log = [Option<Table>; SLOTS];

/// Opens all partitions of the log for reading. Called inside a transaction.
pub fn open_log() -> Log {
    std::array::from_fn(open_partition)
}

/// Opens one partition of the log for reading. Called inside a transaction.
pub fn open_partition(slot: usize) -> Option<Table> {
    Table::open(LOG_PARTITIONS[slot], pg_sys::AccessShareLock)
}

/// Visits the segments that the active snapshot sees and `seen` does not, partition by partition. `each` may end the
/// visit of a partition; that of the next one follows. It gets the number of the partition and the columns of the row.
pub fn new_segments(log: &Log, seen: &Snapshot, mut each: impl FnMut(usize, &[pg_sys::Datum]) -> ControlFlow<()>) {
    for (slot, partition) in log.iter().enumerate() {
        let Some(partition) = partition else { continue };
        let mut rows = Rows::unseen(partition, seen);
        while let Some(row) = rows.next() {
            if each(slot, row).is_break() {
                break;
            }
        }
    }
}

/// The committed start of what is retained, whatever the caller's snapshot is; 0 if there are no ticks. Called inside a
/// transaction.
pub fn oldest_position() -> u64 {
    let mut oldest: Option<(u64, u64)> = None;
    with_latest(|| {
        for partition in TICK_PARTITIONS.into_iter().filter_map(|name| Table::open(name, pg_sys::AccessShareLock)) {
            if let Some(row) = Rows::all(&partition, tick::NUMBER).next() {
                let (tick, previous) = (row[tick::NUMBER].value() as u64, row[tick::PREVIOUS].value() as u64);
                oldest = oldest.filter(|oldest| oldest.0 < tick).or(Some((tick, previous)));
            }
        }
    });
    oldest.map_or(0, |(_, previous)| previous)
}

/// The last tick that is committed now, whatever the caller's snapshot is; 0 if there is none. Called inside a
/// transaction.
pub fn newest_tick() -> u64 {
    with_latest(|| {
        let partitions = TICK_PARTITIONS.into_iter().filter_map(|name| Table::open(name, pg_sys::AccessShareLock));
        let last = |partition: Table| {
            let mut rows = Rows::backward(&partition, tick::NUMBER);
            rows.next().map_or(0, |row| row[tick::NUMBER].value() as u64)
        };
        partitions.map(last).max().unwrap_or(0)
    })
}

/// The last tick that the active snapshot sees, and the snapshot at its end. Called inside a transaction.
pub fn last_tick() -> Option<(u64, Snapshot)> {
    let partitions = TICK_PARTITIONS.into_iter().filter_map(|name| Table::open(name, pg_sys::AccessShareLock));
    let last = |partition: Table| {
        let mut rows = Rows::backward(&partition, tick::NUMBER);
        let row = rows.next()?;
        // SAFETY: the column is a `pg_snapshot` and not NULL.
        Some((row[tick::NUMBER].value() as u64, unsafe { snapshot::unpack(row[tick::UNTIL]) }))
    };
    partitions.filter_map(last).max_by_key(|(tick, _)| *tick)
}

/// The stamp of the segment with the highest transaction id that the active snapshot sees; 0 if there is none. Called
/// inside a transaction.
pub fn last_stamp() -> u64 {
    let last = |partition: &Table| {
        let mut rows = Rows::backward(partition, log::XID);
        rows.next().map(|row| (row[log::XID].value(), row[log::STAMP].value() as u64))
    };
    open_log().iter().flatten().filter_map(last).max().map_or(0, |(_, stamp)| stamp)
}

/// The rows of one of the extension's tables that the active snapshot sees, one by one in the order of an index. Used
/// inside one transaction.
pub struct Rows<'a> {
    table: &'a Table,
    direction: pg_sys::ScanDirection::Type,
    index: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    scan: pg_sys::IndexScanDesc,
    /// The key of the scan that follows this one.
    next: Option<pg_sys::ScanKeyData>,
}

impl<'a> Rows<'a> {
    /// The segments in a partition of the log that `seen` does not see, in the order of their transactions' ids.
    pub fn unseen(partition: &'a Table, seen: &Snapshot) -> Self {
        let (key, next) = keys_of_unseen(seen);
        Self::new(partition, log::XID, Some(key), next)
    }

    /// Starts again with the segments that another snapshot does not see. These are the rows of [`Rows::unseen`].
    pub fn restart_unseen(&mut self, seen: &Snapshot) {
        let (key, next) = keys_of_unseen(seen);
        self.restart(key);
        self.next = next;
    }

    /// The rows with at least this number in a `bigint` column, in its order.
    pub fn at_least(table: &'a Table, column: usize, number: i64) -> Self {
        Self::new(table, column, Some(at_least(number)), None)
    }

    /// The segments of a transaction in a partition of the log.
    pub fn of(partition: &'a Table, xid: u64) -> Self {
        Self::new(partition, log::XID, Some(equal(xid)), None)
    }

    /// All rows of a table, in the order of a column.
    pub fn all(table: &'a Table, column: usize) -> Self {
        Self::new(table, column, None, None)
    }

    /// All rows of a table, from the greatest value of a column to the least.
    pub fn backward(table: &'a Table, column: usize) -> Self {
        let mut rows = Self::new(table, column, None, None);
        rows.direction = pg_sys::ScanDirection::BackwardScanDirection;
        rows
    }

    fn new(
        table: &'a Table,
        column: usize,
        key: Option<pg_sys::ScanKeyData>,
        next: Option<pg_sys::ScanKeyData>,
    ) -> Self {
        let index = index_on(table, column);
        // SAFETY: the table is open, and the index belongs to it.
        unsafe {
            let slot = pg_sys::table_slot_create(table.relation(), std::ptr::null_mut());
            let direction = pg_sys::ScanDirection::ForwardScanDirection;
            Self { table, direction, index, slot, scan: begin_scan(table.relation(), index, key), next }
        }
    }

    /// The values of the next row. None of the table's own columns is NULL.
    pub fn next(&mut self) -> Option<&[pg_sys::Datum]> {
        // SAFETY: the scan is of this table and this index, and the slot has the table's row type. After
        // `slot_getsomeattrs_int` its arrays have an element for each column.
        unsafe {
            while !pg_sys::index_getnext_slot(self.scan, self.direction, self.slot) {
                let key = self.next.take()?;
                self.restart(key);
            }
            pg_sys::check_for_interrupts!();
            let columns = (*(*self.slot).tts_tupleDescriptor).natts;
            pg_sys::slot_getsomeattrs_int(self.slot, columns);
            let nulls = std::slice::from_raw_parts((*self.slot).tts_isnull, columns as usize);
            if nulls[..NOT_NULL_COLUMNS].contains(&true) {
                error!("tidings.{} has a segment with a NULL", self.table.name());
            }
            Some(std::slice::from_raw_parts((*self.slot).tts_values, columns as usize))
        }
    }
}

impl Rows<'_> {
    /// Starts again with another key. The scan began with a key.
    fn restart(&mut self, mut key: pg_sys::ScanKeyData) {
        // SAFETY: the scan is open and has room for one key, which is for the index's column. The key is copied.
        unsafe { pg_sys::index_rescan(self.scan, &mut key, 1, std::ptr::null_mut(), 0) }
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: all three were opened by `new`. After an error, the end of the transaction closes them.
            unsafe {
                pg_sys::index_endscan(self.scan);
                pg_sys::ExecDropSingleTupleTableSlot(self.slot);
                pg_sys::index_close(self.index, pg_sys::NoLock as pg_sys::LOCKMODE);
            }
        }
    }
}

/// Opens the B-tree on this column alone. A DBA may have created another index on it, which may return rows in another
/// order, or not all of them.
fn index_on(partition: &Table, column: usize) -> pg_sys::Relation {
    // SAFETY: the relation is open and locked, so its indexes exist. The list has `length` of them, and an index has at
    // least one column.
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
/// The table and the index are open, and there is an active snapshot. The key, if there is one, is for the index's
/// first column.
unsafe fn begin_scan(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    key: Option<pg_sys::ScanKeyData>,
) -> pg_sys::IndexScanDesc {
    let mut keys: Vec<_> = key.into_iter().collect();
    let count = keys.len() as i32;
    // SAFETY: the table, the index and the key belong together, as the caller promises. The keys are copied.
    unsafe {
        let snapshot = pg_sys::GetActiveSnapshot();
        #[cfg(feature = "pg18")]
        let scan = pg_sys::index_beginscan(table, index, snapshot, std::ptr::null_mut(), count, 0);
        #[cfg(not(feature = "pg18"))]
        let scan = pg_sys::index_beginscan(table, index, snapshot, count, 0);
        pg_sys::index_rescan(scan, keys.as_mut_ptr(), count, std::ptr::null_mut(), 0);
        scan
    }
}

/// The keys of the segments that a snapshot does not see, in sequence.
fn keys_of_unseen(seen: &Snapshot) -> (pg_sys::ScanKeyData, Option<pg_sys::ScanKeyData>) {
    let running: Vec<_> = seen.running.iter().map(|xid| pg_sys::Datum::from(*xid)).collect();
    // Transactions that were running then come first, because their ids are lower.
    match running.as_slice() {
        [] => (later(seen.xmax), None),
        running => (one_of(running), Some(later(seen.xmax))),
    }
}

/// A key for numbers from this one on.
fn at_least(number: i64) -> pg_sys::ScanKeyData {
    // SAFETY: the strategy and the function belong together, and the argument is a `bigint`.
    unsafe { key(0, pg_sys::BTGreaterEqualStrategyNumber, pg_sys::INT8OID, pg_sys::F_INT8GE, number.into()) }
}

/// A key for transactions from `xid` on.
fn later(xid: u64) -> pg_sys::ScanKeyData {
    // SAFETY: the strategy and the function belong together, and the argument is an `xid8`.
    unsafe { key(0, pg_sys::BTGreaterEqualStrategyNumber, pg_sys::XID8OID, pg_sys::F_XID8GE, xid.into()) }
}

/// A key for one transaction.
fn equal(xid: u64) -> pg_sys::ScanKeyData {
    // SAFETY: the strategy and the function belong together, and the argument is an `xid8`.
    unsafe { key(0, pg_sys::BTEqualStrategyNumber, pg_sys::XID8OID, pg_sys::F_XID8EQ, xid.into()) }
}

/// A key for the transactions of a list.
fn one_of(xids: &[pg_sys::Datum]) -> pg_sys::ScanKeyData {
    // SAFETY: copies the values, which have this type, length and alignment.
    let array = unsafe {
        let (values, alignment) = (xids.as_ptr().cast_mut(), pg_sys::TYPALIGN_DOUBLE as std::ffi::c_char);
        pg_sys::construct_array(values, xids.len() as i32, pg_sys::XID8OID, 8, true, alignment)
    };
    // SAFETY: the strategy and the function belong together, and the argument is an array of `xid8`, as the flag says.
    unsafe {
        key(pg_sys::SK_SEARCHARRAY, pg_sys::BTEqualStrategyNumber, pg_sys::XID8OID, pg_sys::F_XID8EQ, array.into())
    }
}

/// # Safety
/// The function is the one of this strategy in the operator class of this type; the argument is of the type, or an
/// array of it if the flags say so.
unsafe fn key(
    flags: u32,
    strategy: u32,
    of: pg_sys::Oid,
    function: u32,
    argument: pg_sys::Datum,
) -> pg_sys::ScanKeyData {
    let mut key = pg_sys::ScanKeyData::default();
    // SAFETY: strategy, function and argument belong together, as the caller promises.
    unsafe {
        pg_sys::ScanKeyEntryInitialize(
            &mut key,
            flags as i32,
            1,
            strategy as pg_sys::StrategyNumber,
            of,
            pg_sys::InvalidOid,
            function.into(),
            argument,
        );
    }
    key
}
