//! One segment into `tidings.log`, whoever the writer is.
//!
//! The row goes into its partition and the index by the calls that Postgres makes for its own catalogs: no plan, no
//! executor, no look at the writer's rights or at `default_transaction_read_only`.

use std::ffi::{CStr, c_char};
use std::sync::atomic::Ordering::Relaxed;

use pgrx::prelude::*;
use tidings_wire::segment;

use crate::foreign::toast_compress_datum;
use crate::shared::{self, SLOTS};
use crate::{errors, lock};

/// A run of events that goes into one row.
pub struct Segment<'a> {
    /// How many events of its transaction were captured before it.
    pub ordinal: i64,
    /// How many events it holds.
    pub events: i32,
    /// The events, encoded, without the version byte. It and the length that Postgres wants are put in front here, in place:
    /// memory for a copy of a large segment would be new to the process each time.
    pub bytes: &'a mut Vec<u8>,
}

/// From this size on a segment is compressed before it becomes a row, as Postgres would do it then; what makes the row
/// copies it as a whole.
const COMPRESS: usize = 8 * 1024;

/// The index of the column for the events.
const DATA: usize = 5;

/// The ways of storage that take no compression (`TYPSTORAGE_PLAIN`, `TYPSTORAGE_EXTERNAL`): a DBA may have chosen one.
const PLAIN: c_char = b'p' as c_char;
/// See [`PLAIN`].
const EXTERNAL: c_char = b'e' as c_char;

/// The names of the partitions.
pub const PARTITIONS: [&CStr; SLOTS] = [c"log_0", c"log_1", c"log_2", c"log_3"];

/// Writes one segment.
///
/// Raises what any write may raise (disk full, out of memory); the transaction is then aborted like by any other write.
/// Does nothing if the extension was dropped in this transaction: with it went the watches.
pub fn write(segment: Segment<'_>) {
    let slot = shared::my_database().map_or(0, |db| db.slot.load(Relaxed)) as usize % SLOTS;
    let Some(partition) = lock::table(PARTITIONS[slot]) else { return };
    // The only lock in the way is the relay's, for the moment in which it empties an old partition, and that is no reason to
    // fail a user's transaction.
    let _no_timeout = lock::Timeout::set(0);
    // SAFETY: inside a transaction that may write; the values are of the types of the table's columns, in their order
    // (sql/extension/10_log.sql), and none is NULL. The lock is kept until the end of the transaction.
    unsafe {
        let relation = pg_sys::table_open(partition, pg_sys::RowExclusiveLock as i32);
        let xid = pg_sys::GetTopFullTransactionId().value;
        shared::note_writer(|| oldest_running(xid));
        // The stamp is later than anything this transaction has waited for.
        let mut values = vec![
            pg_sys::Datum::from(slot as i16),
            pg_sys::Datum::from(xid),
            pg_sys::Datum::from(shared::next_stamp()),
            pg_sys::Datum::from(segment.ordinal),
            pg_sys::Datum::from(segment.events),
            bytea(segment.bytes),
        ];
        let columns = pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att);
        let compressed = match columns.get(DATA) {
            Some(data)
                if segment.bytes.len() >= COMPRESS && data.attstorage != PLAIN && data.attstorage != EXTERNAL =>
            {
                toast_compress_datum(values[DATA], data.attcompression)
            }
            _ => pg_sys::Datum::null(),
        };
        if !compressed.is_null() {
            values[DATA] = compressed;
        }
        // A column that somebody has added stays empty, also after it was dropped again.
        let mut nulls = vec![false; values.len()];
        values.resize(columns.len().max(values.len()), pg_sys::Datum::null());
        nulls.resize(values.len(), true);
        let tuple = pg_sys::heap_form_tuple((*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        insert(relation, tuple);
        pg_sys::heap_freetuple(tuple);
        if !compressed.is_null() {
            pg_sys::pfree(compressed.cast_mut_ptr());
        }
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
    }
}

/// The oldest transaction that runs, prepared ones left out; no younger than this one, whose id is given.
///
/// # Safety
/// Called with an active snapshot.
unsafe fn oldest_running(this: u64) -> u64 {
    // SAFETY: `xip` has `xcnt` elements. What has ended since the snapshot was taken has no process either, and has noted
    // itself if it wrote.
    unsafe {
        let snapshot = &*pg_sys::GetActiveSnapshot();
        let running = (0..snapshot.xcnt as usize).map(|i| *snapshot.xip.add(i));
        let running = running.filter(|xid| pg_sys::BackendXidGetPid(*xid) != 0);
        let all = running.chain([snapshot.xmax]).map(pg_sys::TransactionId::into_inner);
        // They have 32 bits of an id that has 64, and lie around this one.
        all.map(|xid| this.wrapping_add_signed(i64::from(xid.wrapping_sub(this as u32) as i32))).fold(this, u64::min)
    }
}

/// Inserts a row and its index entries.
///
/// # Safety
/// The relation is open and locked, and the tuple is one of its form.
unsafe fn insert(relation: pg_sys::Relation, tuple: pg_sys::HeapTuple) {
    // SAFETY: as the caller promises; the arrays of the index state have `ri_NumIndices` elements, and the two are kept in
    // step. All of them are there again when it is closed.
    unsafe {
        let indexes = pg_sys::CatalogOpenIndexes(relation);
        let all = (*indexes).ri_NumIndices;
        let mut ready = 0;
        for i in 0..all as usize {
            let info = &**(*indexes).ri_IndexRelationInfo.add(i);
            if !info.ii_Expressions.is_null() || !info.ii_Predicate.is_null() {
                errors::raise(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    "tidings.log has an index with an expression or a predicate",
                    "Drop the index: the log has all it needs.",
                );
            }
            // One that REINDEX CONCURRENTLY has only begun takes no entries; catalogs have no such indexes.
            if info.ii_ReadyForInserts {
                std::ptr::swap((*indexes).ri_IndexRelationInfo.add(i), (*indexes).ri_IndexRelationInfo.add(ready));
                std::ptr::swap((*indexes).ri_IndexRelationDescs.add(i), (*indexes).ri_IndexRelationDescs.add(ready));
                ready += 1;
            }
        }
        (*indexes).ri_NumIndices = ready as i32;
        pg_sys::CatalogTupleInsertWithInfo(relation, tuple, indexes);
        (*indexes).ri_NumIndices = all;
        pg_sys::CatalogCloseIndexes(indexes);
    }
}

/// Makes the bytes of a segment a `bytea`, in place.
fn bytea(bytes: &mut Vec<u8>) -> pg_sys::Datum {
    let head = [0, 0, 0, 0, segment::VERSION];
    bytes.splice(0..0, head);
    // SAFETY: the length's four bytes are there. A `Vec<u8>` promises no alignment, but Rust's allocator here is malloc (nobody
    // sets another), which aligns every block for any type.
    unsafe { pgrx::set_varsize_4b(bytes.as_mut_ptr().cast::<pg_sys::varlena>(), bytes.len() as i32) };
    pg_sys::Datum::from(bytes.as_ptr())
}
