//! Reads the log for clients: the segments after a position that are wanted. The SQL function `tidings.scan`
//! (sql/extension/42_changes.sql) reads the same with SQL.

use std::borrow::Cow;

use tidings_wire::{PagePart, Position, Seen, page};

use crate::log::layout::EPOCH_MARK;
use crate::log::scan::open_log;
use crate::log::ticks::{TickReader, Ticks, open_ticks};

/// The cost of reading a tick, in addition to its segments, as a number of bytes.
const TICK_COST: i64 = 16 * 1024;

/// The cost of reading a segment, in addition to its bytes.
const SEGMENT_COST: i64 = 512;

/// The memory that a page takes at once, for its segments; a larger one grows.
const MAX_RESERVED: usize = 1024 * 1024;

/// How much of the log to read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A page that has this many bytes of segments is complete.
    pub bytes: usize,
    /// A reading that has cost as much as this many bytes is complete.
    pub cost: i64,
}

/// Segments of the log after a position.
pub struct Page {
    /// Those that were wanted, encoded as `tidings_wire::page`.
    pub segments: Vec<u8>,
    /// What the ids of those with a snapshot contain of it.
    pub seen: Option<Box<Seen>>,
    /// Everything up to here has been read.
    pub reached: Position,
    /// Whether the log has more.
    pub more: bool,
}

/// Reads the segments after a position. `wanted` gets each one as it is stored, and returns the whole of it if it is
/// wanted. Called inside a transaction, with an active snapshot.
pub fn read(
    after: Position,
    limits: Limits,
    mut wanted: impl for<'s> FnMut(&'s [u8]) -> Option<Cow<'s, [u8]>>,
) -> Page {
    let tables = open_ticks();
    let log = open_log();
    let mut reader = TickReader::new(&log);
    let Position { tick: first_tick, n: first_n, mut seen } = after;
    // The last segment may exceed the limit.
    let segments = Vec::with_capacity(limits.bytes.min(MAX_RESERVED) * 3 / 2);
    let mut page = Page { segments, seen: None, reached: Position::at(first_tick, first_n), more: false };
    let (mut room, mut has_read) = (limits.cost, false);
    let from = first_tick + u64::from(first_n == tidings_wire::position::END);
    let mut ticks = Ticks::new(&tables, from);
    'ticks: while let Some(tick) = ticks.next() {
        // All ids of a page have the same count.
        let is_counted = page.seen.as_ref().is_some_and(|seen| seen.count.is_some());
        page.more = room <= 0 || page.segments.len() >= limits.bytes || is_counted;
        if page.more {
            break;
        }
        // A reader with a snapshot knows some of the events of each tick, until the first tick that begins with
        // everything that the snapshot saw.
        let is_later = tick.number > first_tick;
        let is_over = |seen: &Seen| tick.since.covers(&seen.snapshot) || (is_later && seen.count == Some(0));
        seen = seen.filter(|seen| !is_over(seen));
        room -= TICK_COST;
        let mut before = 0;
        reader.read(&tick);
        if let Some(seen) = seen.as_mut().filter(|_| is_later) {
            reader.pass(seen);
        }
        for segment in &reader.segments {
            let (start, end) = (before, before + segment.events);
            before = end;
            if tick.number == first_tick && end <= first_n {
                continue;
            }
            // At least one segment is read, so that every page makes progress.
            if has_read && (room <= 0 || page.segments.len() >= limits.bytes) {
                page.reached = Position::at(tick.number, start);
                page.more = true;
                break 'ticks;
            }
            has_read = true;
            room -= SEGMENT_COST;
            if seen.as_ref().is_some_and(|seen| seen.has(segment.head.xid, segment.head.stamp)) {
                continue;
            }
            room -= segment.size as i64;
            reader.with_data(segment, |data| {
                if let Some(whole) = wanted(data) {
                    let with_snapshot = seen.is_some();
                    let part = PagePart { tick: tick.number, before: start, with_snapshot, segment: &whole };
                    page::append(&mut page.segments, part);
                    if page.seen.is_none() {
                        page.seen = seen.clone();
                    }
                }
            });
        }
        // Nothing that was seen comes later. Without a count, that is known after a restart of the server
        // (seal_previous_epoch in relay/tick.rs), when transactions may have the ids of lost ones.
        seen = seen.filter(|seen| match seen.count {
            Some(count) => count > 0,
            None => tick.used & EPOCH_MARK == 0 || tick.number <= seen.stamp,
        });
        page.reached = Position::after_tick(tick.number);
    }
    page.reached.seen = seen;
    page
}
