//! The segments of one tick: read from the log, put in order, and put into notifications.

use std::ops::Range;

use pgrx::prelude::*;
use tidings_wire::{Announcement, segment};

use crate::log::layout::log;
use crate::log::lenders;
use crate::log::order::{self, Head};
use crate::log::write::PREPARED;
use crate::subtransaction::attempt_all;

/// The most segments that are read for one tick. A larger tick is announced by a hint.
const MAX_SEGMENTS: usize = 500;

/// The segments of the tick that is being cut. They are added with an active snapshot that sees them.
#[derive(Default)]
pub struct Batch {
    segments: Vec<TickSegment>,
    /// Their data, one after the other.
    data: Vec<u8>,
    /// The tick has more segments or data than fit into notifications, so the data here is incomplete.
    is_large: bool,
}

/// A segment of the tick.
struct TickSegment {
    head: Head,
    /// The range of its bytes in the batch's data.
    data: Range<usize>,
}

impl Batch {
    /// The number of segments that were read.
    pub fn count(&self) -> usize {
        self.segments.len()
    }

    /// Whether the tick is too large for notifications.
    pub fn is_large(&self) -> bool {
        self.is_large
    }

    /// Whether one of the transactions was prepared. Not known if the tick is large.
    pub fn has_prepared(&self) -> bool {
        self.segments.iter().any(|segment| segment.head.ordinal == PREPARED as u64)
    }

    /// Removes the transactions that ended after a stamp, and returns them.
    pub fn hold_back(&mut self, horizon: u64) -> Vec<u64> {
        let late = self.segments.iter().filter(|segment| segment.head.stamp > horizon);
        let mut late: Vec<_> = late.map(|segment| segment.head.xid).collect();
        late.sort_unstable();
        late.dedup();
        self.segments.retain(|segment| late.binary_search(&segment.head.xid).is_err());
        late
    }

    /// Adds a row of the log. Once there are more than `max_bytes` of data in all, the data is not read any more.
    pub fn push(&mut self, slot: usize, xid: u64, row: &[pg_sys::Datum], max_bytes: usize) {
        let (stamp, ordinal) = (row[log::STAMP].value() as u64, row[log::ORDINAL].value() as u64);
        // SAFETY: the column is a `bytea` and not NULL.
        let size = unsafe { pg_sys::toast_raw_datum_size(row[log::DATA]) } - pg_sys::VARHDRSZ;
        self.add(Head { slot, xid, stamp, ordinal }, size, max_bytes, |batch| {
            // SAFETY: the column is a `bytea` and not NULL.
            unsafe { batch.read(row[log::DATA]) }
        });
    }

    /// Adds a segment that was not read from the log. The same holds for its data.
    pub fn push_bytes(&mut self, head: Head, data: &[u8], max_bytes: usize) {
        self.add(head, data.len(), max_bytes, |batch| lenders::append_complete(&mut batch.data, data));
    }

    fn add(&mut self, head: Head, size: usize, max_bytes: usize, read: impl FnOnce(&mut Self) -> Result<(), String>) {
        let start = self.data.len();
        self.is_large |= self.segments.len() >= MAX_SEGMENTS || start + size > max_bytes;
        let read = if self.is_large { Ok(()) } else { read(self) };
        // What a segment has borrowed counts like data of its own.
        self.is_large |= self.data.len() > max_bytes;
        let segment = TickSegment { head, data: start..self.data.len() };
        if let Err(error) = read {
            segment.warn(&error);
            self.is_large = true;
        }
        self.segments.push(segment);
    }

    /// Adds the data of a segment.
    ///
    /// # Safety
    /// `data` is a `bytea` and not NULL.
    unsafe fn read(&mut self, data: pg_sys::Datum) -> Result<(), String> {
        let stored = data.cast_mut_ptr::<pg_sys::varlena>();
        // SAFETY: a `bytea`, as the caller promises. A copy that Postgres made to decompress or fetch it is freed.
        unsafe {
            let is_plain = !pgrx::varatt_is_4b_c(stored) && !pgrx::varatt_is_1b_e(stored);
            let plain = match is_plain {
                true => stored,
                // A value that is stored out of line may be missing, and a compressed one may be corrupt.
                false => attempt_all(|| pg_sys::pg_detoast_datum_packed(stored))?,
            };
            let read = lenders::append_complete(&mut self.data, pgrx::varlena_to_byte_slice(plain));
            if plain != stored {
                pg_sys::pfree(plain.cast());
            }
            read
        }
    }

    /// Puts the events into an announcement, or makes it a hint. Returns the number of events.
    pub fn put_into(&self, announcement: &mut Announcement, max_bytes: usize) -> u64 {
        let (mut events, mut rendered) = (0, 0);
        for segment in &self.segments {
            for event in segment::events(&self.data[segment.data.clone()]) {
                match event {
                    Ok(event) => {
                        announcement.push(&event);
                        events += 1;
                        // Payloads are longer than their packed values, so their total needs a bound of its own.
                        rendered += event.payload.len();
                    }
                    // One corrupt row must not stop all others. A reader of the log gets the error.
                    Err(error) => {
                        segment.warn(&error.to_string());
                        announcement.make_hint();
                    }
                }
                if rendered > max_bytes {
                    announcement.make_hint();
                }
                if announcement.is_hint() {
                    return events;
                }
            }
        }
        events
    }

    /// Puts the segments in order.
    pub fn put_in_order(&mut self) {
        order::put_in_order(&mut self.segments);
    }

    /// The partitions that its segments are in.
    pub fn slots(&self) -> impl Iterator<Item = usize> {
        self.segments.iter().map(|segment| segment.head.slot)
    }

    /// Whether another batch has the same segments and announces them in the same way. Both have been put in order. If
    /// they are large, they may have been read to different ends.
    pub fn is_same(&self, other: &Self) -> bool {
        self.is_large == other.is_large && (self.is_large || self.parts().eq(other.parts()))
    }

    fn parts(&self) -> impl Iterator<Item = (Head, &[u8])> {
        self.segments.iter().map(|segment| (segment.head, &self.data[segment.data.clone()]))
    }

    /// Removes all segments but keeps the memory.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.data.clear();
        self.is_large = false;
    }
}

impl AsRef<Head> for TickSegment {
    fn as_ref(&self) -> &Head {
        &self.head
    }
}

impl AsMut<Head> for TickSegment {
    fn as_mut(&mut self) -> &mut Head {
        &mut self.head
    }
}

impl TickSegment {
    /// Logs that the row cannot be read, and where it is.
    fn warn(&self, error: &str) {
        let Head { slot, xid, stamp, .. } = self.head;
        warning!("tidings: the row of tidings.log_{slot} with xid {xid} and stamp {stamp} cannot be read: {error}");
    }
}
