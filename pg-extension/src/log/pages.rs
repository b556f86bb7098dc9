//! Reads the log for clients: the segments after a position, tick by tick and in order, without a plan or the executor.
//! The SQL functions `tidings.segments` and `tidings.scan` (sql/extension/40_read.sql, 42_changes.sql) read the same
//! with SQL.

use std::borrow::Cow;

use pgrx::prelude::*;
use tidings_wire::{PagePart, Position, Seen, Snapshot, page};

use crate::log::layout::{EPOCH_MARK, TICK_PARTITIONS, log, tick};
use crate::log::order::{Head, put_in_order};
use crate::log::scan::{Log, Rows, open_log};
use crate::log::snapshot;
use crate::log::table::Table;
use crate::shared::SLOTS;

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

/// A tick of the log.
struct Tick {
    number: u64,
    since: Snapshot,
    until: Snapshot,
    used: i16,
}

/// The ticks from a number on, in order.
struct Ticks<'a> {
    /// The rest of each partition, and its next tick.
    partitions: Vec<(Rows<'a>, Option<Tick>)>,
}

/// A segment of the tick that is being read.
struct TickSegment {
    head: Head,
    events: u32,
    /// Where its data is.
    data: StoredAt,
    /// The length of its data when it is read.
    size: usize,
}

/// The segments of one tick after another.
struct TickReader<'a> {
    partitions: [Option<Rows<'a>>; SLOTS],
    log: &'a Log,
    segments: Vec<TickSegment>,
    data: StoredValues,
}

/// Values of type `bytea` as they are stored: short, compressed, or a pointer to where the bytes are. Each begins at a
/// new word, as Postgres expects.
#[derive(Default)]
struct StoredValues(Vec<u64>);

/// The first word of a stored value.
#[derive(Clone, Copy)]
struct StoredAt(usize);

/// Reads the segments after a position. `wanted` gets each one as it is stored, and returns the whole of it if it is
/// wanted. Called inside a transaction, with an active snapshot.
pub fn read(
    after: Position,
    limits: Limits,
    mut wanted: impl for<'s> FnMut(&'s [u8]) -> Option<Cow<'s, [u8]>>,
) -> Page {
    let ticks = TICK_PARTITIONS.map(|name| Table::open(name, pg_sys::AccessShareLock));
    let log = open_log();
    let mut reader = TickReader::new(&log);
    let Position { tick: first_tick, n: first_n, mut seen } = after;
    // The last segment may exceed the limit.
    let segments = Vec::with_capacity(limits.bytes.min(MAX_RESERVED) * 3 / 2);
    let mut page = Page { segments, seen: None, reached: Position::at(first_tick, first_n), more: false };
    let (mut room, mut has_read) = (limits.cost, false);
    let from = first_tick + u64::from(first_n == tidings_wire::position::END);
    let mut ticks = Ticks::new(&ticks, from);
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
            reader.data.with(segment.data, |data| {
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

impl<'a> Ticks<'a> {
    fn new(tables: &'a [Option<Table>], from: u64) -> Self {
        let partitions = tables.iter().flatten().map(|table| {
            let mut rows = Rows::at_least(table, tick::NUMBER, from as i64);
            let next = Tick::of(rows.next());
            (rows, next)
        });
        Self { partitions: partitions.collect() }
    }

    fn next(&mut self) -> Option<Tick> {
        let rest = self.partitions.iter_mut().filter(|(_, next)| next.is_some());
        let (rows, next) = rest.min_by_key(|(_, next)| next.as_ref().map(|tick| tick.number))?;
        std::mem::replace(next, Tick::of(rows.next()))
    }
}

impl Tick {
    fn of(row: Option<&[pg_sys::Datum]>) -> Option<Self> {
        let row = row?;
        // SAFETY: both columns are of type `pg_snapshot` and not NULL.
        let (since, until) = unsafe { (snapshot::unpack(row[tick::SINCE]), snapshot::unpack(row[tick::UNTIL])) };
        Some(Self { number: row[tick::NUMBER].value() as u64, since, until, used: row[tick::USED].value() as i16 })
    }

    /// What a reader of the tick's segments has seen. Of the transactions that were running when it began, only those
    /// that have ended since are read: a large one must not be read again for each tick that it outlasts.
    fn seen(&self) -> Snapshot {
        let ended = self.since.running.iter().copied().filter(|xid| self.until.sees(*xid));
        Snapshot { running: ended.collect(), ..self.since }
    }
}

impl<'a> TickReader<'a> {
    fn new(log: &'a Log) -> Self {
        Self { partitions: Default::default(), log, segments: Vec::new(), data: StoredValues::default() }
    }

    /// Reads the segments of a tick and puts them in order.
    fn read(&mut self, tick: &Tick) {
        let log = self.log;
        let Self { partitions, segments, data, .. } = self;
        segments.clear();
        data.0.clear();
        let seen = tick.seen();
        for (slot, (rows, partition)) in partitions.iter_mut().zip(log.iter()).enumerate() {
            let Some(partition) = partition.as_ref().filter(|_| tick.used & (1 << slot) != 0) else { continue };
            let rows = match rows {
                Some(rows) => {
                    rows.restart_unseen(&seen);
                    rows
                }
                None => rows.insert(Rows::unseen(partition, &seen)),
            };
            while let Some(row) = rows.next() {
                let xid = row[log::XID].value() as u64;
                if xid >= tick.until.xmax {
                    break;
                }
                if tick.until.sees(xid) {
                    // SAFETY: the row is of a partition of the log.
                    segments.push(unsafe { TickSegment::of(slot, row, data) });
                }
            }
        }
        put_in_order(segments);
    }

    /// Moves the position of a snapshot on to this tick: its count is that of the events after the tick.
    fn pass(&self, seen: &mut Seen) {
        let passed = self.segments.iter().filter(|segment| seen.has(segment.head.xid, segment.head.stamp));
        let passed = passed.map(|segment| segment.events).fold(0, u32::saturating_add);
        seen.count = seen.count.map(|count| count.saturating_sub(passed));
    }
}

impl TickSegment {
    /// # Safety
    /// The row is of the partition of the log with this number.
    unsafe fn of(slot: usize, row: &[pg_sys::Datum], stored: &mut StoredValues) -> Self {
        let [xid, stamp, ordinal] = [log::XID, log::STAMP, log::ORDINAL].map(|column| row[column].value() as u64);
        // SAFETY: the column is a `bytea` and not NULL.
        let (data, size) = unsafe { (stored.push(row[log::DATA]), pg_sys::toast_raw_datum_size(row[log::DATA])) };
        let head = Head { slot, xid, stamp, ordinal };
        Self { head, events: row[log::EVENTS].value() as u32, data, size: size - pg_sys::VARHDRSZ }
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

impl StoredValues {
    /// Adds a copy.
    ///
    /// # Safety
    /// The value is a `bytea` from a row, and not NULL.
    unsafe fn push(&mut self, value: pg_sys::Datum) -> StoredAt {
        let (stored, start) = (value.cast_mut_ptr::<u8>(), self.0.len());
        // SAFETY: the value has as many bytes as its own header says, and the new words have room for them.
        unsafe {
            let size = pgrx::varsize_any(stored.cast());
            self.0.resize(start + size.div_ceil(size_of::<u64>()), 0);
            std::ptr::copy_nonoverlapping(stored, self.0[start..].as_mut_ptr().cast(), size);
        }
        StoredAt(start)
    }

    /// Reads a value that was added.
    fn with<R>(&self, at: StoredAt, read: impl FnOnce(&[u8]) -> R) -> R {
        let stored = self.0[at.0..].as_ptr().cast_mut().cast::<pg_sys::varlena>();
        // SAFETY: a complete copy of a `bytea`. If it refers to bytes elsewhere, these are there as long as the snapshot
        // that saw the row is active and the table is locked, which is until after the page. What Postgres makes to
        // decompress or fetch it is freed. Postgres does not write to the value itself.
        unsafe {
            let plain = pg_sys::pg_detoast_datum_packed(stored);
            let result = read(pgrx::varlena_to_byte_slice(plain));
            if plain != stored {
                pg_sys::pfree(plain.cast());
            }
            result
        }
    }
}
