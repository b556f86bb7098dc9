//! Where a backlog is cut: everything that was committed while the relay was down becomes ticks of bounded size. So the
//! cost of reading from a position depends only on how much is read, however long the relay was down.
//!
//! A tick may take any visible transactions, but with each one also all those whose last stamp is lower, because events
//! are ordered by tick and then by stamp. Ids are nearly in the order of stamps, and the log can be read in order of
//! ids. So a tick takes a window of the transactions with the lowest ids, without those whose last stamp is higher than
//! that of some transaction after the window. To know the lowest stamp after the window, it is enough to read a few
//! more transactions, the margin. A transaction after the margin has a higher last stamp than some transaction in the
//! margin. Otherwise all transactions of the margin would have been running at the same time, because its id was
//! assigned last; and the margin has more transactions than the server has processes.

use std::ops::Range;

use pgrx::prelude::*;
use tidings_wire::Snapshot;

use crate::log::layout::log;
use crate::log::scan::{Log, Rows};
use crate::log::snapshot;

/// The most segments of a tick, not counting those of its last transaction. A reader sorts a whole tick for each page,
/// which takes about ten milliseconds at this size.
pub const MAX_SEGMENTS: usize = 10_000;

/// The most bytes of a tick before compression, not counting those of its last transaction.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The window and the margin: transactions in the order of their ids.
#[derive(Default)]
struct Window {
    transactions: Vec<Transaction>,
    /// Where the margin begins.
    end: usize,
    /// The segments and bytes of the transactions before the margin.
    segments: usize,
    bytes: usize,
}

struct Transaction {
    xid: u64,
    last_stamp: u64,
}

/// The snapshot that ends the next tick, if one tick is too small for everything that `now` sees and `seen` does not.
/// `now` is the active snapshot or the part of it below a limit.
pub fn part(log: &Log, seen: &Snapshot, now: &Snapshot) -> Option<Snapshot> {
    // A transaction has one process until its last stamp.
    // SAFETY: a variable that is set before any process starts.
    let processes = unsafe { pg_sys::MaxBackends }.unsigned_abs() as usize;
    let mut window = Window::default();
    let mut segments = SegmentHeads::new(log, seen);
    while let Some(segment) = segments.next().filter(|segment| segment.xid < now.xmax) {
        if window.is_new(segment.xid) {
            // All segments of the margin's transactions have been read, now also those of its last one.
            if window.margin().len() > processes {
                if let Some(until) = window.cut(seen, now) {
                    return Some(until);
                }
                // All transactions of the window must wait for transactions of the margin, maybe for many ticks. So
                // they do not count for the size of this tick.
                window.end = window.transactions.len();
                (window.segments, window.bytes) = (0, 0);
            }
            let is_full = window.segments >= MAX_SEGMENTS || window.bytes >= MAX_BYTES;
            window.begin(segment.xid, is_full);
        }
        window.add(&segment);
    }
    if window.margin().is_empty() { None } else { window.cut(seen, now) }
}

impl Window {
    fn is_new(&self, xid: u64) -> bool {
        self.transactions.last().is_none_or(|last| last.xid != xid)
    }

    fn margin(&self) -> Range<usize> {
        self.end..self.transactions.len()
    }

    fn begin(&mut self, xid: u64, is_margin: bool) {
        self.transactions.push(Transaction { xid, last_stamp: 0 });
        // Once a transaction belongs to the margin, all later ones do.
        if !is_margin && self.margin().len() == 1 {
            self.end += 1;
        }
    }

    fn add(&mut self, segment: &SegmentHead) {
        if self.margin().is_empty() {
            self.segments += 1;
            self.bytes += segment.bytes;
        }
        if let Some(last) = self.transactions.last_mut() {
            last.last_stamp = last.last_stamp.max(segment.stamp);
        }
    }

    /// The snapshot that sees those transactions of the window that need not wait for the margin. `None` if all must
    /// wait.
    fn cut(&self, seen: &Snapshot, now: &Snapshot) -> Option<Snapshot> {
        let (window, margin) = self.transactions.split_at(self.end);
        let lowest = margin.iter().map(|transaction| transaction.last_stamp).min()?;
        let waiting: Vec<u64> =
            window.iter().filter(|transaction| transaction.last_stamp > lowest).map(|waiting| waiting.xid).collect();
        if waiting.len() == window.len() {
            return None;
        }
        let first_left = margin.first()?.xid;
        // Transactions that were running at the last tick may fill the window alone. What was seen then stays seen.
        let xmax = first_left.max(seen.xmax);
        let stragglers = seen.running.iter().copied().filter(|xid| *xid >= first_left);
        let running = now.running.iter().copied().filter(|xid| *xid < xmax).chain(waiting).chain(stragglers);
        Some(snapshot::without(xmax, running.collect()))
    }
}

/// What a segment shows about its transaction, without the events.
struct SegmentHead {
    xid: u64,
    stamp: u64,
    bytes: usize,
}

/// The segments of all partitions that a snapshot does not see, in the order of their transactions' ids.
struct SegmentHeads<'a> {
    /// The rest of each partition, and its next segment.
    partitions: Vec<(Rows<'a>, Option<SegmentHead>)>,
}

impl<'a> SegmentHeads<'a> {
    fn new(log: &'a Log, seen: &Snapshot) -> Self {
        let mut partitions: Vec<_> =
            log.iter().flatten().map(|partition| (Rows::unseen(partition, seen), None)).collect();
        for (rows, next) in &mut partitions {
            *next = read(rows);
        }
        Self { partitions }
    }

    fn next(&mut self) -> Option<SegmentHead> {
        let lowest = self.partitions.iter_mut().filter(|(_, next)| next.is_some());
        let (rows, next) = lowest.min_by_key(|(_, next)| next.as_ref().map(|segment| segment.xid))?;
        std::mem::replace(next, read(rows))
    }
}

fn read(rows: &mut Rows<'_>) -> Option<SegmentHead> {
    let row = rows.next()?;
    Some(SegmentHead {
        xid: row[log::XID].value() as u64,
        stamp: row[log::STAMP].value() as u64,
        // SAFETY: the column is a `bytea` and not NULL.
        bytes: unsafe { pg_sys::toast_raw_datum_size(row[log::DATA]) },
    })
}
