//! Inserts one segment into `tidings.log`, even if the writer has no rights on that table.

use std::ffi::c_char;
use std::sync::atomic::Ordering::SeqCst;

use pgrx::prelude::*;
use tidings_wire::lender::Lender;
use tidings_wire::segment;

use crate::foreign::toast_compress_datum;
use crate::log::layout::{LOG_PARTITIONS, log};
use crate::log::lenders::{self, FirstOutline};
use crate::log::lock;
use crate::log::ring::{self, Entry};
use crate::log::snapshot::{self, oldest_process};
use crate::log::table::Table;
use crate::shared;

/// A segment to be written.
pub struct NewSegment<'a> {
    /// The segment's order in its transaction.
    pub ordinal: i64,
    /// The number of events.
    pub events: i32,
    /// Whether it becomes visible together with the transaction in any case, and soon: it is written right before the
    /// commit, outside of any subtransaction.
    pub is_final: bool,
    /// The outline that it begins with, if it is also the only segment of its transaction.
    pub outline: Option<FirstOutline>,
    /// The encoded events, without the version byte. What a row has before them is inserted in front, in place: a copy of a large segment would need memory that is new to the process each time.
    pub entries: &'a mut Vec<u8>,
}

/// The ordinal of the last segment of a prepared transaction, which has no events.
pub const PREPARED: i64 = i64::MAX;

/// The ordinal of a segment without events that only says when its transaction ended.
pub const ENDED: i64 = i64::MAX - 1;

/// Segments of at least this size are compressed before they become a row. Postgres would compress them too, but only
/// after it has copied the whole row.
const COMPRESS: usize = 8 * 1024;

/// Storage modes without compression (`TYPSTORAGE_PLAIN`, `TYPSTORAGE_EXTERNAL`), which a DBA may have chosen.
const UNCOMPRESSED: [c_char; 2] = [b'p' as c_char, b'e' as c_char];

/// Writes one segment.
///
/// Raises what any write may raise (disk full, out of memory), and the transaction is aborted as by any other write.
/// Does nothing if the extension was dropped in this transaction, because its watches were dropped too.
pub fn write_segment(segment: NewSegment<'_>) {
    let db = shared::my_database();
    let slot = db.map_or(0, shared::Database::current_slot);
    // The only conflicting lock is the relay's, for the moment in which it empties an old partition. A user's
    // transaction must not fail because of it.
    let _no_timeout = lock::Timeout::set(0);
    let Some(partition) = Table::open(LOG_PARTITIONS[slot], pg_sys::RowExclusiveLock) else { return };
    let outline = segment.outline.filter(|_| segment.entries.len() <= lenders::MAX_SEGMENT);
    let lender = outline.and_then(|outline| lenders::find(outline.number, partition.file()));
    // The SQL functions before 0.2.0 cannot read such segments.
    let lender = lender.filter(|_| db.is_some_and(|db| db.can_borrow.load(SeqCst)));
    let lent = outline.map_or(0, |outline| outline.length);
    let data = match lender {
        Some(lender) => bytea(segment.entries, lent, &lender.prefix()),
        None => bytea(segment.entries, 0, &[segment::VERSION]),
    };
    // SAFETY: inside a transaction that may write. The values have the types of the table's columns, in their order
    // (sql/extension/10_tables.sql), and none is NULL.
    unsafe {
        let xid = snapshot::own_xid();
        // Any other transaction that has written since the server started has a process now, or has been noted.
        shared::note_writer(|| oldest_process(&snapshot::active()).min(xid));
        // This is later than the stamp of every transaction that this one has waited for.
        let stamp = shared::next_stamp();
        let compressed = if segment.entries.len() < COMPRESS { None } else { compress(&partition, data) };
        partition.insert([
            pg_sys::Datum::from(slot as i16),
            pg_sys::Datum::from(xid),
            pg_sys::Datum::from(stamp),
            pg_sys::Datum::from(segment.ordinal),
            pg_sys::Datum::from(segment.events),
            compressed.unwrap_or(data),
        ]);
        if let Some(outline) = outline.filter(|_| lender.is_none()) {
            lenders::offer(outline.number, partition.file(), Lender { slot: slot as u8, xid });
        }
        if let Some(compressed) = compressed {
            pg_sys::pfree(compressed.cast_mut_ptr());
        }
        ring::put(&Entry {
            database: pg_sys::MyDatabaseId,
            xid,
            slot,
            stamp,
            ordinal: segment.ordinal as u64,
            data: segment.is_final.then(|| &segment.entries[pg_sys::VARHDRSZ..]),
        });
    }
}

/// A compressed copy of a `bytea`, if it is shorter and the DBA has not disabled compression.
///
/// # Safety
/// `data` is a `bytea`.
unsafe fn compress(partition: &Table, data: pg_sys::Datum) -> Option<pg_sys::Datum> {
    let columns = partition.columns();
    let column = columns.get(log::DATA).filter(|column| !UNCOMPRESSED.contains(&column.attstorage))?;
    // SAFETY: a `bytea`, as the caller promises, and Postgres has checked the column's compression method.
    let compressed = unsafe { toast_compress_datum(data, column.attcompression) };
    (!compressed.is_null()).then_some(compressed)
}

/// Turns the entries of a segment into a `bytea`, in place. `head` replaces the first bytes of the entries: those that
/// are lent.
fn bytea(entries: &mut Vec<u8>, lent: usize, head: &[u8]) -> pg_sys::Datum {
    let (start, own) = (pg_sys::VARHDRSZ + head.len(), entries.len() - lent);
    entries.resize(entries.len().max(start + own), 0);
    entries.copy_within(lent..lent + own, start);
    entries.truncate(start + own);
    entries[pg_sys::VARHDRSZ..start].copy_from_slice(head);
    // SAFETY: the four bytes of the length word are there. A `Vec<u8>` promises no alignment, but Rust's allocator here
    // is malloc (no other one is set), which aligns every block for any type.
    unsafe { pgrx::set_varsize_4b(entries.as_mut_ptr().cast::<pg_sys::varlena>(), entries.len() as i32) };
    pg_sys::Datum::from(entries.as_ptr())
}
