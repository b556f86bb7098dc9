//! The fresh segments: those that writers have left in the ring ([`crate::log::ring`]) and that are in no tick yet.
//! With them a tick is cut without a look at the log, unless something is missing here.

use std::sync::atomic::Ordering::SeqCst;

use pgrx::prelude::*;
use tidings_wire::Snapshot;

use crate::log::order::Head;
use crate::log::ring::Reader;
use crate::log::snapshot::next_xid;
use crate::relay::backlog;
use crate::relay::batch::Batch;
use crate::settings;
use crate::shared::Database;

/// The most bytes of segments that wait here for the end of their transactions. A transaction ends soon after it has
/// written its last segment, unless it waits for a slow disk or standby.
const MAX_WAITING: usize = 4 * 1024 * 1024;

/// The memory that an entry takes beside its data, as it counts for [`MAX_WAITING`].
const ENTRY: usize = size_of::<Fresh>();

/// The fresh segments of one database.
pub struct FreshSegments {
    db: &'static Database,
    database: pg_sys::Oid,
    reader: Reader,
    /// The segments that no tick contains yet, in the order in which they were written.
    waiting: Vec<Fresh>,
    /// What they count for [`MAX_WAITING`].
    bytes: usize,
    /// Of the transactions from this one on, every segment is in a tick, in `waiting` or in the ring.
    complete_from: u64,
}

/// A segment that no tick contains yet.
struct Fresh {
    head: Head,
    /// None if it must be read from the log.
    data: Option<Box<[u8]>>,
}

impl FreshSegments {
    /// Starts with nothing: what is in the ring already is read from the log.
    pub fn new(db: &'static Database) -> Self {
        // SAFETY: set once, when the process connects.
        let database = unsafe { pg_sys::MyDatabaseId };
        let reader = Reader::at_end();
        // Whatever was in the ring before is of a transaction with a lower id.
        Self { db, database, reader, waiting: Vec::new(), bytes: 0, complete_from: next_xid() }
    }

    /// Takes what writers have added to the ring. Everything that a snapshot sees is there if the snapshot was taken
    /// before.
    pub fn collect(&mut self) {
        let Self { database, reader, waiting, bytes, .. } = self;
        let Some(entries) = reader.read() else {
            return self.lose();
        };
        for entry in entries.filter(|entry| entry.database == *database) {
            let head = Head { slot: entry.slot, xid: entry.xid, stamp: entry.stamp, ordinal: entry.ordinal };
            // Once is enough for a transaction that writes many large segments.
            let is_known = |last: &Fresh| entry.data.is_none() && last.data.is_none() && last.head.xid == entry.xid;
            if !waiting.last().is_some_and(is_known) {
                let fresh = Fresh { head, data: entry.data.map(Box::from) };
                *bytes += fresh.size();
                waiting.push(fresh);
            }
        }
        if self.bytes > MAX_WAITING {
            self.lose();
        }
    }

    /// Some entries are lost. Those that are not belong to transactions that have an id now.
    fn lose(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
        self.complete_from = next_xid();
        if settings::ring_size() > 0 {
            self.db.ring_overflows.fetch_add(1, SeqCst);
        }
    }

    /// Adds the segments to a tick that `now` sees and `seen` does not. False if they must be read from the log; then
    /// the batch may have some of them.
    pub fn put_into(&self, batch: &mut Batch, seen: &Snapshot, now: &Snapshot, max_bytes: usize) -> bool {
        if !self.has_all(seen, now) {
            return false;
        }
        let mut bytes = 0;
        for Fresh { head, data } in &self.waiting {
            if !now.sees(head.xid) || seen.sees(head.xid) || !has_committed(head.xid) {
                continue;
            }
            let Some(data) = data else { return false };
            bytes += data.len();
            batch.push_bytes(*head, data, max_bytes);
        }
        // A larger tick is cut into several, which needs the order of the log.
        batch.count() <= backlog::MAX_SEGMENTS && bytes <= backlog::MAX_BYTES
    }

    /// Whether no transaction that `now` sees and `seen` does not is older than what is complete here.
    fn has_all(&self, seen: &Snapshot, now: &Snapshot) -> bool {
        let mut old = seen.running.iter().take_while(|xid| **xid < self.complete_from);
        seen.xmax >= self.complete_from && !old.any(|xid| now.sees(*xid))
    }

    /// Forgets the segments of transactions that a snapshot sees, because they are in ticks or were rolled back.
    pub fn forget(&mut self, seen: &Snapshot) {
        let bytes = &mut self.bytes;
        self.waiting.retain(|fresh| {
            let stays = !seen.sees(fresh.head.xid);
            *bytes -= if stays { 0 } else { fresh.size() };
            stays
        });
    }
}

impl Fresh {
    fn size(&self) -> usize {
        ENTRY + self.data.as_ref().map_or(0, |data| data.len())
    }
}

/// Whether a transaction that has ended has committed.
fn has_committed(xid: u64) -> bool {
    // SAFETY: the transaction had a segment in the ring, so its id is recent and its state is known.
    unsafe { pg_sys::TransactionIdDidCommit((xid as u32).into()) }
}
