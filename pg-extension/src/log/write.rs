//! One segment into `tidings.log`, whoever the writer is.

use std::ffi::{CStr, c_char};
use std::sync::atomic::Ordering::Relaxed;

use pgrx::prelude::*;
use tidings_wire::segment;

use crate::foreign::toast_compress_datum;
use crate::log::lock;
use crate::log::snapshot::Snapshot;
use crate::log::table::Table;
use crate::shared::{self, SLOTS};

/// A run of events that goes into one row.
pub struct Segment<'a> {
    /// The order of a transaction's segments.
    pub ordinal: i64,
    /// How many events it holds.
    pub events: i32,
    /// The events, encoded, without the version byte. It and the length that Postgres wants are put in front here, in
    /// place: memory for a copy of a large segment would be new to the process each time.
    pub bytes: &'a mut Vec<u8>,
}

/// From this size on a segment is compressed before it becomes a row, as Postgres would do it then; what makes the row
/// copies it as a whole.
const COMPRESS: usize = 8 * 1024;

/// The columns of a segment, counted from 0.
pub const XID: usize = 1;
/// See [`XID`].
pub const STAMP: usize = 2;
/// See [`XID`].
pub const ORDINAL: usize = 3;
/// See [`XID`].
pub const DATA: usize = 5;

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
    // The only lock in the way is the relay's, for the moment in which it empties an old partition, and that is no
    // reason to fail a user's transaction.
    let _no_timeout = lock::Timeout::set(0);
    let Some(partition) = Table::open(PARTITIONS[slot], pg_sys::RowExclusiveLock) else { return };
    let data = bytea(segment.bytes);
    // SAFETY: inside a transaction that may write; the values are of the types of the table's columns, in their order
    // (sql/extension/10_tables.sql), and none is NULL.
    unsafe {
        let xid = pg_sys::GetTopFullTransactionId().value;
        // What else has written since the server started has a process, or has noted itself.
        shared::note_writer(|| Snapshot::active().oldest_process().min(xid));
        let compressed = if segment.bytes.len() < COMPRESS { None } else { compress(&partition, data) };
        partition.insert([
            pg_sys::Datum::from(slot as i16),
            pg_sys::Datum::from(xid),
            // Later than anything this transaction has waited for.
            pg_sys::Datum::from(shared::next_stamp()),
            pg_sys::Datum::from(segment.ordinal),
            pg_sys::Datum::from(segment.events),
            compressed.unwrap_or(data),
        ]);
        if let Some(compressed) = compressed {
            pg_sys::pfree(compressed.cast_mut_ptr());
        }
    }
}

/// The compressed copy of a `bytea`, if it is shorter and the DBA has not chosen otherwise.
fn compress(partition: &Table, data: pg_sys::Datum) -> Option<pg_sys::Datum> {
    let columns = partition.columns();
    let column = columns.get(DATA).filter(|column| ![PLAIN, EXTERNAL].contains(&column.attstorage))?;
    // SAFETY: it is a `bytea`, and the method is one that Postgres has let the column have.
    let compressed = unsafe { toast_compress_datum(data, column.attcompression) };
    (!compressed.is_null()).then_some(compressed)
}

/// Makes the bytes of a segment a `bytea`, in place.
fn bytea(bytes: &mut Vec<u8>) -> pg_sys::Datum {
    let head = [0, 0, 0, 0, segment::VERSION];
    bytes.splice(0..0, head);
    // SAFETY: the length's four bytes are there. A `Vec<u8>` promises no alignment, but Rust's allocator here is malloc
    // (nobody sets another), which aligns every block for any type.
    unsafe { pgrx::set_varsize_4b(bytes.as_mut_ptr().cast::<pg_sys::varlena>(), bytes.len() as i32) };
    pg_sys::Datum::from(bytes.as_ptr())
}
