//! One cut through the log: what has become visible since the last one, in order, as one tick (the idea of PgQ).

use std::ffi::{CStr, CString};
use std::ops::{ControlFlow, Range};
use std::sync::atomic::Ordering::Relaxed;

use pgrx::bgworkers::BackgroundWorker;
use pgrx::direct_function_call;
use pgrx::prelude::*;
use tidings_wire::{Announcement, MOVED, segment};

use crate::foreign::Async_Notify;
use crate::log::scan::{self, Rows};
use crate::log::snapshot::Snapshot;
use crate::log::table::Table;
use crate::log::write::{DATA, ORDINAL, PARTITIONS, STAMP, XID};
use crate::relay::{backlog, channel, pace, retention};
use crate::shared::{self, Database, NEVER, SLOTS};
use crate::{errors, settings};

/// The names of the ticks' partitions.
pub const TICKS: [&CStr; SLOTS] = [c"tick_0", c"tick_1", c"tick_2", c"tick_3"];

/// The columns of a tick, counted from 0.
const NUMBER: usize = 1;
/// See [`NUMBER`].
const PREVIOUS: usize = 2;

/// The bit of `used` that marks the tick after a restart of the server: after it, a snapshot from before the restart is
/// ignored. `tidings.changes` and `tidings.locate` know the number.
const END_OF_LIFE: i16 = 1 << 14;

/// Segments read for one tick at the most; a larger tick is announced by a hint, and read only so far.
const MAX_SEGMENTS: usize = 500;

/// Above this share of the notification queue only hints are sent, and above [`QUEUE_FULL`] nothing: someone listens
/// but does not read, and a full queue would fail other users' transactions.
const QUEUE_CROWDED: f64 = 0.1;

/// See [`QUEUE_CROWDED`].
const QUEUE_FULL: f64 = 0.8;

/// Cuts the ticks of one database, one after the other.
pub struct Ticker {
    db: &'static Database,
    channel: CString,
    /// The number of the last tick.
    pub last: u64,
    /// Everything that this snapshot sees is in a tick.
    seen: Snapshot,
    /// For each partition of the log the last tick that has segments in it; 0 if it is empty.
    pub last_used: [u64; SLOTS],
    /// How full the notification queue is, from 0 to 1.
    queue: f64,
    /// The last tick was not announced.
    unannounced: bool,
    /// A backlog remains after the last tick.
    is_behind: bool,
    /// The segments of the tick that is being cut; its memory is kept.
    batch: Batch,
}

/// The segments of one tick.
#[derive(Default)]
struct Batch {
    segments: Vec<Segment>,
    /// Their data, one behind the other.
    data: Vec<u8>,
    /// There are more segments, or more data, than fit into notifications: what is here is not all.
    large: bool,
}

struct Segment {
    /// The partition.
    slot: usize,
    xid: u64,
    stamp: u64,
    ordinal: u64,
    /// Where it lies in the batch's data.
    data: Range<usize>,
}

impl Ticker {
    /// Carries on where the last tick ended. Called inside a transaction.
    pub fn resume(db: &'static Database) -> spi::Result<Self> {
        let channel = channel::name();
        let last = Spi::get_three::<i64, String, i16>(
            "SELECT tick, until::pg_catalog.text, slot FROM tidings.tick ORDER BY tick DESC LIMIT 1",
        )?;
        let (Some(last), Some(until), Some(slot)) = last else {
            error!("tidings.tick is empty: drop and create the extension");
        };
        let seen: Snapshot = until.parse().unwrap_or_else(|_| error!("not a snapshot: {until}"));
        let last = last.unsigned_abs();
        shared::raise_clock(last);
        unseen(&open_log(), &seen, |_, row| {
            shared::raise_clock(row[STAMP].value() as u64);
            ControlFlow::Continue(())
        });
        db.slot.store(slot.unsigned_abs().into(), Relaxed);
        db.tick.store(last, Relaxed);
        let mut last_used = [0; SLOTS];
        for (slot, last_used) in last_used.iter_mut().enumerate() {
            let sql = "SELECT pg_catalog.max(tick) FROM tidings.tick WHERE (used OPERATOR(pg_catalog.&) $1) OPERATOR(pg_catalog.<>) 0";
            *last_used = Spi::get_one_with_args::<i64>(sql, &[(1i16 << slot).into()])?.unwrap_or(0).unsigned_abs();
            // A relay that is started again continues with the times of the one before.
            let _ = db.used_at[slot].compare_exchange(NEVER, retention::when(*last_used), Relaxed, Relaxed);
        }
        Ok(Self {
            db,
            channel,
            last,
            seen,
            last_used,
            queue: 0.0,
            unannounced: true,
            is_behind: false,
            batch: Batch::default(),
        })
    }

    /// Cuts a tick if there is something for it; says how many segments it has, or how many were read of a large one.
    pub fn cut(&mut self) -> usize {
        self.cut_below(|| u64::MAX)
    }

    /// Cuts what was committed before the server started, and behind it a tick without events.
    ///
    /// A crash or a failover may have lost transactions, whose numbers are then given to others. The snapshot of a
    /// position that saw the lost ones must not hide these. It is ignored from that empty tick on, which comes after
    /// all that it can have seen, and before all that it cannot.
    pub fn end_former_life(&mut self) {
        // Never below what is already in a tick: in a copy of a database, the first writer may be older than the log that
        // was copied.
        let told = self.seen.xmax;
        self.cut_below(|| shared::first_xid().map_or(u64::MAX, |first| first.max(told)));
        while self.is_behind {
            self.cut_below(|| shared::first_xid().map_or(u64::MAX, |first| first.max(told)));
        }
        self.cut_without_events(END_OF_LIFE);
    }

    /// Cuts a tick of the transactions below a limit, which is asked for when the tick's snapshot is there.
    fn cut_below(&mut self, limit: impl FnOnce() -> u64) -> usize {
        // The number comes before the snapshot: a tick numbered above some time sees all that was committed by then.
        let tick = shared::next_stamp();
        transaction(|| {
            // The locks come before the snapshot: an ALTER TABLE that rewrites a partition makes its rows its own, and
            // a snapshot from before its commit would see none of them.
            let log = open_log();
            with_latest_snapshot(|| self.cut_of(&log, tick, limit))
        })
    }

    /// The same, of the active snapshot.
    fn cut_of(&mut self, log: &Log, tick: u64, limit: impl FnOnce() -> u64) -> usize {
        let limit = limit();
        let mut snapshot = Snapshot::active().below(limit);
        self.read(log, tick, limit);
        let part = if self.batch.large { backlog::part(log, &self.seen, &snapshot) } else { None };
        self.is_behind = part.is_some();
        snapshot = part.unwrap_or(snapshot);
        let count = self.batch.segments.len();
        if count == 0 {
            self.seen = snapshot;
        } else {
            // The tick itself lies in the current partition, also if its segments are all in others.
            self.last_used[self.db.slot.load(Relaxed) as usize % SLOTS] = tick;
            self.insert(tick, &snapshot, 0);
            self.seen = snapshot;
            for (last_used, used_at) in self.last_used.iter().zip(&self.db.used_at) {
                if *last_used == tick {
                    used_at.store(retention::elapsed(), Relaxed);
                }
            }
            self.announce(tick);
            self.finish(tick);
        }
        count
    }

    /// Whether a backlog remains after the last tick: it is cut into many.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Cuts a tick without events, so that there is one in the current partition, or one behind all that is to go.
    pub fn cut_empty(&mut self) {
        self.cut_without_events(0);
    }

    fn cut_without_events(&mut self, mark: i16) {
        let tick = shared::next_stamp();
        transaction(|| {
            self.batch.clear();
            self.insert(tick, &self.seen, mark);
            self.announce(tick);
            self.finish(tick);
        });
    }

    /// Switches to the new channel if the name has changed.
    pub fn check_channel(&mut self) {
        transaction(|| {
            let name = channel::name();
            if name == self.channel {
                return;
            }
            if self.queue < QUEUE_FULL {
                let moved = CString::new(MOVED).unwrap_or_default();
                // SAFETY: inside a transaction; both strings are copied.
                unsafe { Async_Notify(self.channel.as_ptr(), moved.as_ptr()) };
            }
            self.channel = name;
            // A reader that switched earlier has missed what was still sent on the old channel.
            self.notify(Announcement::new(self.last, 0));
        });
    }

    /// Looks how full the notification queue is, and makes up for what could not be sent.
    pub fn check_queue(&mut self) {
        transaction(|| {
            // SAFETY: takes no argument and looks at shared memory.
            let usage = unsafe { direct_function_call::<f64>(pg_sys::pg_notification_queue_usage, &[]) };
            self.queue = usage.unwrap_or(0.0);
            if self.unannounced && self.queue < QUEUE_FULL {
                // Nobody has seen the predecessor either: whoever gets this hint reads the log from where it stands.
                self.notify(Announcement::new(self.last, 0));
            }
        });
    }

    /// Whether a partition holds segments that are in no tick yet. Sees what is committed now; called with the
    /// partition locked.
    pub fn has_unticked(&self, slot: usize) -> bool {
        let mut found = false;
        if let Some(partition) = open_partition(slot) {
            with_latest_snapshot(|| {
                scan::unseen(&partition, &self.seen, |_| {
                    found = true;
                    ControlFlow::Break(())
                });
            });
        }
        found
    }

    /// Reads the segments that are new, of transactions below `limit`, and marks their partitions as used by `tick`.
    fn read(&mut self, log: &Log, tick: u64, limit: u64) {
        let Self { batch, seen, last_used, .. } = self;
        batch.clear();
        let most = settings::notify_inline_limit();
        unseen(log, seen, |slot, row| {
            let xid = row[XID].value() as u64;
            if xid >= limit {
                return ControlFlow::Continue(());
            }
            last_used[slot] = tick;
            batch.push(slot, xid, row, most);
            // What does not fit is not read, but for one row of each partition that has any; and so many are counted,
            // be they ever so large, that a batch is known as one.
            let is_enough = batch.large && batch.segments.len() >= pace::BATCH;
            if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    }

    /// Inserts the row of a tick, which ends at a snapshot, into the current partition.
    fn insert(&self, tick: u64, until: &Snapshot, mark: i16) {
        let slot = self.db.slot.load(Relaxed) as usize % SLOTS;
        let used = (0..SLOTS).filter(|slot| self.last_used[*slot] == tick).fold(0i16, |used, slot| used | 1 << slot);
        let partition = Table::open(TICKS[slot], pg_sys::RowExclusiveLock);
        let partition = partition.unwrap_or_else(|| error!("tidings.tick_{slot} is gone"));
        // SAFETY: inside the relay's transaction; the values are of the types of the table's columns, in their order
        // (sql/extension/10_tables.sql), and none is NULL.
        unsafe {
            partition.insert([
                pg_sys::Datum::from(slot as i16),
                pg_sys::Datum::from(tick),
                pg_sys::Datum::from(self.last),
                self.seen.datum(),
                until.datum(),
                pg_sys::Datum::from(used | mark),
            ]);
        }
    }

    fn announce(&mut self, tick: u64) {
        let mut announcement = Announcement::new(tick, self.last);
        if self.batch.large || self.queue >= QUEUE_CROWDED {
            announcement.make_hint();
        } else {
            self.batch.put_in_order();
            let events = self.batch.put_into(&mut announcement, settings::notify_inline_limit());
            // One that is too large for a notification has made it a hint.
            if !announcement.is_hint() {
                self.db.events.fetch_add(events, Relaxed);
            }
        }
        self.notify(announcement);
    }

    fn notify(&mut self, announcement: Announcement) {
        self.unannounced = self.queue >= QUEUE_FULL;
        if self.unannounced {
            return;
        }
        if announcement.is_hint() {
            self.db.hints.fetch_add(1, Relaxed);
        }
        for part in announcement.finish() {
            // No text of the log has a NUL: Postgres's texts cannot.
            let part = CString::new(part).unwrap_or_else(|_| error!("tidings.log: a NUL in an event"));
            // SAFETY: inside a transaction; both strings are copied.
            unsafe { Async_Notify(self.channel.as_ptr(), part.as_ptr()) };
        }
    }

    fn finish(&mut self, tick: u64) {
        self.last = tick;
        self.db.tick.store(tick, Relaxed);
        self.db.ticks.fetch_add(1, Relaxed);
    }
}

impl Batch {
    /// Adds a row of the log. Data beyond `most` bytes in all is left where it is.
    fn push(&mut self, slot: usize, xid: u64, row: &[pg_sys::Datum], most: usize) {
        let start = self.data.len();
        let (stamp, ordinal) = (row[STAMP].value() as u64, row[ORDINAL].value() as u64);
        // SAFETY: the column is a `bytea` and not NULL.
        let size = unsafe { pg_sys::toast_raw_datum_size(row[DATA]) };
        self.large |= self.segments.len() >= MAX_SEGMENTS || start + size > most + pg_sys::VARHDRSZ;
        // SAFETY: as above.
        let read = if self.large { Ok(()) } else { unsafe { self.unpack(row[DATA]) } };
        let segment = Segment { slot, xid, stamp, ordinal, data: start..self.data.len() };
        if let Err(error) = read {
            segment.warn(&error);
            self.large = true;
        }
        self.segments.push(segment);
    }

    /// Adds the data of a segment.
    ///
    /// # Safety
    /// It is a `bytea` and not NULL.
    unsafe fn unpack(&mut self, data: pg_sys::Datum) -> Result<(), String> {
        let stored = data.cast_mut_ptr::<pg_sys::varlena>();
        // SAFETY: as the caller promises; what had to be unpacked is copied and given back.
        unsafe {
            let is_plain = !pgrx::varatt_is_4b_c(stored) && !pgrx::varatt_is_1b_e(stored);
            let plain = match is_plain {
                true => stored,
                // A value that is stored out of line may be gone, and a compressed one may be broken.
                false => errors::attempt_all(|| pg_sys::pg_detoast_datum_packed(stored))?,
            };
            self.data.extend_from_slice(pgrx::varlena_to_byte_slice(plain));
            if plain != stored {
                pg_sys::pfree(plain.cast());
            }
        }
        Ok(())
    }

    /// Puts the events into a notification, or makes it a hint; returns their number.
    fn put_into(&self, announcement: &mut Announcement, most: usize) -> u64 {
        let (mut events, mut told) = (0, 0);
        for segment in &self.segments {
            for event in segment::events(&self.data[segment.data.clone()]) {
                match event {
                    Ok(event) => {
                        announcement.push(&event);
                        events += 1;
                        // Packed values grow when they are filled in, so what is sent must be bounded too.
                        told += event.payload.len();
                    }
                    // One bad row must not stop all others. Those who read it get the error.
                    Err(error) => {
                        segment.warn(&error.to_string());
                        announcement.make_hint();
                    }
                }
                if told > most {
                    announcement.make_hint();
                }
                if announcement.is_hint() {
                    return events;
                }
            }
        }
        events
    }

    /// Transactions by their last stamp, each in its own order. `tidings.tick_segments` orders likewise.
    fn put_in_order(&mut self) {
        // Most transactions have one segment.
        self.segments.sort_unstable_by_key(|segment| segment.xid);
        for transaction in self.segments.chunk_by_mut(|a, b| a.xid == b.xid) {
            let last = transaction.iter().map(|segment| segment.stamp).max().unwrap_or(0);
            transaction.iter_mut().for_each(|segment| segment.stamp = last);
        }
        self.segments.sort_unstable_by_key(|segment| (segment.stamp, segment.ordinal));
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.data.clear();
        self.large = false;
    }
}

impl Segment {
    /// Logs that the row cannot be read, and where it is.
    fn warn(&self, error: &str) {
        let Self { slot, xid, stamp, .. } = self;
        warning!("tidings: the row of tidings.log_{slot} with xid {xid} and stamp {stamp} cannot be read: {error}");
    }
}

/// The partitions of the log, open and locked; None for one that is gone.
pub type Log = [Option<Table>; SLOTS];

fn open_log() -> Log {
    std::array::from_fn(open_partition)
}

fn open_partition(slot: usize) -> Option<Table> {
    Table::open(PARTITIONS[slot], pg_sys::AccessShareLock)
}

/// Goes through the segments that `seen` does not see, until told to stop with one partition: then come those of the
/// next.
fn unseen(log: &Log, seen: &Snapshot, mut each: impl FnMut(usize, &[pg_sys::Datum]) -> ControlFlow<()>) {
    for (slot, partition) in log.iter().enumerate() {
        if let Some(partition) = partition {
            scan::unseen(partition, seen, |row| each(slot, row));
        }
    }
}

/// The committed start of what is retained, whatever the caller's snapshot is; 0 if nothing is. Called inside a
/// transaction.
pub fn oldest_position() -> u64 {
    let mut oldest: Option<(u64, u64)> = None;
    with_latest_snapshot(|| {
        for partition in TICKS.into_iter().filter_map(|name| Table::open(name, pg_sys::AccessShareLock)) {
            if let Some(row) = Rows::all(&partition, NUMBER).next() {
                let (tick, previous) = (row[NUMBER].value() as u64, row[PREVIOUS].value() as u64);
                oldest = oldest.filter(|oldest| oldest.0 < tick).or(Some((tick, previous)));
            }
        }
    });
    oldest.map_or(0, |(_, previous)| previous)
}

/// Runs `body` with what is committed now as the active snapshot. Called inside a transaction.
pub fn with_latest_snapshot<R>(body: impl FnOnce() -> R) -> R {
    // SAFETY: inside a transaction; the snapshot is taken off again, by the end of the transaction if an error unwinds.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        let result = body();
        pg_sys::PopActiveSnapshot();
        result
    }
}

/// Runs `body` in a transaction of its own, with one snapshot for all it reads. An error ends the relay; the launcher
/// starts another.
fn transaction<R>(body: impl FnOnce() -> R) -> R {
    let body = std::panic::AssertUnwindSafe(body);
    BackgroundWorker::transaction(move || {
        let body = body;
        (body.0)()
    })
}
