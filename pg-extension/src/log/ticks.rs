//! The ticks of the log and their segments, in order, without a plan or the executor. [`super::pages`] and
//! [`super::segments`] read them.

use pgrx::prelude::*;
use tidings_wire::{Seen, Snapshot};

use crate::log::layout::{TICK_PARTITIONS, log, tick};
use crate::log::order::{Head, put_in_order};
use crate::log::scan::{Log, Rows};
use crate::log::snapshot;
use crate::log::table::Table;
use crate::shared::SLOTS;

/// The tables of the ticks, open and locked.
pub type TickTables = [Option<Table>; TICK_PARTITIONS.len()];

/// Opens the tables of the ticks for reading. Called inside a transaction.
pub fn open_ticks() -> TickTables {
    TICK_PARTITIONS.map(|name| Table::open(name, pg_sys::AccessShareLock))
}

/// A tick of the log.
pub struct Tick {
    /// Its number.
    pub number: u64,
    /// The number of the one before it.
    pub previous: u64,
    /// The tick has the segments that this snapshot does not see and `until` does.
    pub since: Snapshot,
    /// See `since`.
    pub until: Snapshot,
    /// A bit for each partition of the log that has segments of it, and the mark of a sealed epoch.
    pub used: i16,
}

/// The ticks from a number on, in order.
pub struct Ticks<'a> {
    /// The rest of each partition, and its next tick.
    partitions: Vec<(Rows<'a>, Option<Tick>)>,
}

/// A segment of the tick that is being read.
pub struct TickSegment {
    /// What decides its place in the tick.
    pub head: Head,
    /// How many events it has.
    pub events: u32,
    /// Where its data is.
    data: StoredAt,
    /// The length of its data when it is read.
    pub size: usize,
}

/// The segments of one tick after another.
pub struct TickReader<'a> {
    partitions: [Option<Rows<'a>>; SLOTS],
    log: &'a Log,
    /// The segments of the tick that was read last, in order.
    pub segments: Vec<TickSegment>,
    data: StoredValues,
}

/// Values of type `bytea` as they are stored: short, compressed, or a pointer to where the bytes are. Each begins at a
/// new word, as Postgres expects.
#[derive(Default)]
struct StoredValues(Vec<u64>);

/// The first word of a stored value.
#[derive(Clone, Copy)]
struct StoredAt(usize);

impl<'a> Ticks<'a> {
    /// The ticks from this number on.
    pub fn new(tables: &'a TickTables, from: u64) -> Self {
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        let partitions = tables.iter().flatten().map(|table| {
            let mut rows = Rows::at_least(table, tick::NUMBER, from);
            let next = Tick::of(rows.next());
            (rows, next)
        });
        Self { partitions: partitions.collect() }
    }

    /// The next one.
    pub fn next(&mut self) -> Option<Tick> {
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
        let [number, previous] = [tick::NUMBER, tick::PREVIOUS].map(|column| row[column].value() as u64);
        Some(Self { number, previous, since, until, used: row[tick::USED].value() as i16 })
    }

    /// What a reader of the tick's segments has seen. Of the transactions that were running when it began, only those
    /// that have ended since are read: a large one must not be read again for each tick that it outlasts.
    fn seen(&self) -> Snapshot {
        let ended = self.since.running.iter().copied().filter(|xid| self.until.sees(*xid));
        Snapshot { running: ended.collect(), ..self.since }
    }
}

impl<'a> TickReader<'a> {
    /// A reader of this log. Used inside one transaction, with one active snapshot.
    pub fn new(log: &'a Log) -> Self {
        Self { partitions: Default::default(), log, segments: Vec::new(), data: StoredValues::default() }
    }

    /// Reads the segments of a tick and puts them in order.
    pub fn read(&mut self, tick: &Tick) {
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
    pub fn pass(&self, seen: &mut Seen) {
        let passed = self.segments.iter().filter(|segment| seen.has(segment.head.xid, segment.head.stamp));
        let passed = passed.map(|segment| segment.events).fold(0, u32::saturating_add);
        seen.count = seen.count.map(|count| count.saturating_sub(passed));
    }

    /// Reads the data of one of the segments, as it is stored.
    pub fn with_data<R>(&self, segment: &TickSegment, read: impl FnOnce(&[u8]) -> R) -> R {
        self.data.with(segment.data, read)
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
        // SAFETY: a complete copy of a `bytea`. If it refers to bytes elsewhere, these exist as long as the snapshot
        // that saw the row is active and the table is locked, which is longer than a reader is used. What Postgres
        // makes to decompress or fetch it is freed. Postgres does not write to the value itself.
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
