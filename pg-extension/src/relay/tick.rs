//! Cuts ticks. A tick is everything that has become visible since the last one, in order (the idea of PgQ).

use std::ffi::{CStr, CString};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use pgrx::direct_function_call;
use pgrx::prelude::*;
use tidings_wire::{Announcement, MOVED, Snapshot};

use crate::catalog;
use crate::foreign::Async_Notify;
use crate::foreign::infallible::SetCurrentStatementStartTimestamp;
use crate::log::durability;
use crate::log::layout::{EPOCH_MARK, TICK_PARTITIONS, log};
use crate::log::scan::{Log, Rows, new_segments, open_log, open_partition};
use crate::log::snapshot::{self, Packed, with_latest};
use crate::log::table::Table;
use crate::relay::batch::Batch;
use crate::relay::early::{self, Early, Look, Reason, Unflushed, Way};
use crate::relay::fresh::FreshSegments;
use crate::relay::{backlog, channel, elapsed, pace};
use crate::settings;
use crate::shared::{self, Database, NEVER, SLOTS};

/// Above this share of the notification queue only hints are sent, and above [`QUEUE_FULL`] nothing: some session
/// listens but does not read, and a full queue would make other users' transactions fail.
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
    /// The tables of the ticks.
    tables: [Option<pg_sys::Oid>; SLOTS],
    /// For each partition of the log, the last tick that has segments in it; 0 if the partition is empty.
    pub last_used: [u64; SLOTS],
    /// How full the notification queue is, from 0 to 1.
    queue: f64,
    /// The last tick was not announced.
    unannounced: bool,
    /// A backlog remains after the last tick.
    has_backlog: bool,
    /// The segments that were handed over in shared memory and are in no tick yet.
    fresh: FreshSegments,
    /// The segments of the tick that is being cut. Its memory is reused.
    batch: Batch,
    /// How ticks are announced.
    early: Early,
    /// The tick is announced before it is flushed.
    is_early: bool,
    /// The early ticks that may not be flushed yet.
    pub unflushed: Unflushed,
}

/// How far the clock of a server that has just started is raised above everything that the log contains, in
/// microseconds. A crash may have taken back ticks that were announced; their numbers, which clients have, must not be
/// given again, not even if the server's clock has gone back. Announced ticks are flushed after some milliseconds, and
/// in that time there are at most some thousand readings.
const LOST_READINGS: u64 = 100_000;

impl Ticker {
    /// Continues after the last tick. Called inside a transaction.
    pub fn resume(db: &'static Database) -> spi::Result<Self> {
        let channel = channel::name();
        let last = Spi::get_three::<i64, String, i16>(
            "SELECT tick, until::pg_catalog.text, slot FROM tidings.tick ORDER BY tick DESC LIMIT 1",
        )?;
        let (Some(last), Some(until), Some(slot)) = last else {
            error!("tidings.tick is empty: drop and create the extension");
        };
        let seen: Snapshot = until.parse().unwrap_or_else(|error| error!("{error}: {until}"));
        let last = last.unsigned_abs();
        let mut stored = last;
        new_segments(&open_log(), &seen, |_, row| {
            stored = stored.max(row[log::STAMP].value() as u64);
            ControlFlow::Continue(())
        });
        if !db.epoch_sealed.load(SeqCst) {
            stored += LOST_READINGS;
        }
        shared::raise_clock(stored);
        db.set_current_slot(slot.unsigned_abs().into());
        db.tick.store(last, SeqCst);
        let mut last_used = [0; SLOTS];
        for (slot, last_used) in last_used.iter_mut().enumerate() {
            let sql = "SELECT pg_catalog.max(tick) FROM tidings.tick WHERE (used OPERATOR(pg_catalog.&) $1) OPERATOR(pg_catalog.<>) 0";
            *last_used = Spi::get_one_with_args::<i64>(sql, &[(1i16 << slot).into()])?.unwrap_or(0).unsigned_abs();
            // If a relay ran before this one since the server started, its exact times are still there.
            let _ = db.used_at[slot].compare_exchange(NEVER, elapsed::of_tick(*last_used), SeqCst, SeqCst);
        }
        Ok(Self {
            db,
            channel,
            last,
            seen,
            tables: TICK_PARTITIONS.map(catalog::table),
            last_used,
            queue: 0.0,
            unannounced: true,
            has_backlog: false,
            fresh: FreshSegments::new(db),
            batch: Batch::default(),
            early: Early::new(db),
            is_early: false,
            unflushed: Unflushed::default(),
        })
    }

    /// Cuts a tick if there is anything for it. Returns the number of its segments, or for a large tick how many were
    /// read.
    pub fn cut(&mut self) -> usize {
        let look = Look::take();
        self.in_transaction(|ticker| {
            let to_verify = settings::verify_ring().then(open_log);
            let count = with_latest(|| ticker.cut_fresh(to_verify.as_ref(), look));
            count.unwrap_or_else(|| ticker.cut_logged(None, look, || u64::MAX))
        })
    }

    /// The same without a look at the fresh segments. So also segments are found that no writer has handed over.
    pub fn cut_from_log(&mut self) -> usize {
        self.cut_below(None, || u64::MAX)
    }

    /// Cuts everything that was committed before the server started, then a tick without events that is marked.
    ///
    /// A crash or a failover may have lost transactions, whose ids are then given to others. A position whose snapshot
    /// saw the lost ones must not hide these others. So the snapshot is ignored from the marked tick on, which comes
    /// after everything that the snapshot can have seen, and before everything that it cannot.
    pub fn seal_previous_epoch(&mut self) {
        // Never below what is already in a tick: in a copy of a database, the first writer may be older than the copied
        // log.
        let in_ticks = self.seen.xmax;
        let limit = || shared::first_xid().map_or(u64::MAX, |first| first.max(in_ticks));
        self.cut_below(Some(Reason::Backlog), limit);
        while self.has_backlog {
            self.cut_below(Some(Reason::Backlog), limit);
        }
        self.cut_without_events(EPOCH_MARK);
    }

    /// Cuts a tick of the transactions below a limit, and flushes it first if there is a reason. `limit` is called once
    /// the tick's snapshot has been taken.
    fn cut_below(&mut self, reason: Option<Reason>, limit: impl FnOnce() -> u64) -> usize {
        // The look comes before the snapshot, so a tick with a number above some time sees everything committed by
        // then.
        let look = Look::take();
        self.in_transaction(|ticker| ticker.cut_logged(reason, look, limit))
    }

    /// Cuts a tick of the fresh segments that the active snapshot sees. None if some of them must be read from the log.
    fn cut_fresh(&mut self, to_verify: Option<&Log>, look: Look) -> Option<usize> {
        let Self { fresh, batch, seen, .. } = self;
        let until = snapshot::active();
        // After the snapshot was taken, so that everything that it sees has been handed over.
        fresh.collect();
        batch.clear();
        if !fresh.put_into(batch, seen, &until, settings::notify_inline_limit()) {
            return None;
        }
        if let Some(log) = to_verify {
            self.partition()?;
            self.verify(log, look);
        }
        self.has_backlog = false;
        let count = self.close(None, look, until)?;
        self.db.ring_ticks.fetch_add(u64::from(count > 0), SeqCst);
        Some(count)
    }

    /// Raises an error unless the log has exactly the segments that were handed over.
    fn verify(&mut self, log: &Log, look: Look) {
        let mut fresh = std::mem::take(&mut self.batch);
        self.read(log, u64::MAX);
        fresh.put_in_order();
        self.batch.put_in_order();
        if !fresh.is_same(&self.batch) {
            error!("tidings: the ring and the log differ in tick {}", look.number);
        }
        self.batch = fresh;
    }

    /// Cuts a tick of the segments in the log whose transactions are below a limit, and flushes it first if there is a
    /// reason.
    fn cut_logged(&mut self, reason: Option<Reason>, look: Look, limit: impl FnOnce() -> u64) -> usize {
        // The locks come before the snapshot. An ALTER TABLE that rewrites a partition makes all rows look new, and
        // a snapshot from before its commit would see none of them.
        let log = open_log();
        with_latest(|| {
            let limit = limit();
            let until = snapshot::below(snapshot::active(), limit);
            self.read(&log, limit);
            let part = if self.batch.is_large() { backlog::part(&log, &self.seen, &until) } else { None };
            self.has_backlog = part.is_some();
            self.close(reason, look, part.unwrap_or(until)).unwrap_or_else(no_tables)
        })
    }

    /// Makes the batch a tick, unless it is empty. Returns the number of its segments, or None if this relay's ticks
    /// have no table.
    fn close(&mut self, reason: Option<Reason>, look: Look, mut until: Snapshot) -> Option<usize> {
        let obstacle = if self.has_backlog {
            Some(Reason::Backlog)
        } else {
            reason.or((self.queue >= QUEUE_CROWDED).then_some(Reason::Queue))
        };
        let way = self.early.choose(obstacle, look, self.last, &mut self.batch, &mut until);
        let count = self.batch.count();
        if count > 0 {
            let tick = match way {
                Way::Early(number) => number,
                Way::Flushed(_) => look.number,
            };
            // The row of the tick is in the current partition, even if all of its segments are in others.
            for used in self.batch.slots().chain([self.db.current_slot()]) {
                self.last_used[used] = tick;
            }
            self.insert(tick, &until, 0)?;
            for (last_used, used_at) in self.last_used.iter().zip(&self.db.used_at) {
                if *last_used == tick {
                    used_at.store(elapsed::now(), SeqCst);
                }
            }
            self.announce(tick, way);
            self.finish(tick);
        }
        self.fresh.forget(&until);
        self.seen = until;
        Some(count)
    }

    /// Runs `body` in a transaction, which does not wait for the disk if `body` announces a tick early.
    fn in_transaction<R>(&mut self, body: impl FnOnce(&mut Self) -> R) -> R {
        let level = durability::level();
        let result = transaction(|| body(self));
        if std::mem::take(&mut self.is_early) {
            early::end_commit(level);
            self.unflushed.note(self.db.tick_end.load(SeqCst));
        }
        result
    }

    /// How long to wait for a commit before the next tick is cut: not at all if a backlog remains after the last tick.
    pub fn wait(&self) -> Duration {
        if self.has_backlog { Duration::ZERO } else { self.early.wait().unwrap_or(Duration::MAX) }
    }

    /// Checks which version the extension has in this database: see [`Early::check_version`].
    pub fn check_version(&mut self) {
        transaction(|| self.early.check_version());
    }

    /// Cuts a tick without events, so that the current partition has a tick, or that the last tick is in no partition
    /// that is to be emptied.
    pub fn cut_empty(&mut self) {
        self.cut_without_events(0);
    }

    fn cut_without_events(&mut self, mark: i16) {
        let tick = shared::next_stamp();
        transaction(|| {
            self.batch.clear();
            with_latest(|| self.insert(tick, &self.seen, mark)).unwrap_or_else(no_tables);
            self.notify(Announcement::new(tick, self.last));
            self.finish(tick);
        });
    }

    /// Switches to the new channel if its name has changed.
    pub fn check_channel(&mut self) {
        transaction(|| {
            let name = channel::name();
            if name == self.channel {
                return;
            }
            if self.queue < QUEUE_FULL {
                let moved = CString::new(MOVED).unwrap_or_default();
                // SAFETY: inside a transaction; both are C strings and are copied.
                unsafe { Async_Notify(self.channel.as_ptr(), moved.as_ptr()) };
            }
            self.channel = name;
            // A reader that switched earlier has missed what was still sent on the old channel.
            self.notify(Announcement::new(self.last, 0));
        });
    }

    /// Checks how full the notification queue is, and announces the last tick if that was not possible before.
    pub fn check_queue(&mut self) {
        transaction(|| {
            // SAFETY: the function takes no argument and reads shared memory.
            let usage = unsafe { direct_function_call::<f64>(pg_sys::pg_notification_queue_usage, &[]) };
            self.queue = usage.unwrap_or(0.0) * settings::queue_factor();
            if self.unannounced && self.queue < QUEUE_FULL {
                // Earlier ticks may not have been announced either. A reader of this hint reads the log from its own
                // place.
                self.notify(Announcement::new(self.last, 0));
            }
        });
    }

    /// Whether a partition has segments that are in no tick yet. Sees everything committed until now. Called with the
    /// partition locked.
    pub fn has_unticked(&self, slot: usize) -> bool {
        let Some(partition) = open_partition(slot) else { return false };
        with_latest(|| Rows::unseen(&partition, &self.seen).next().is_some())
    }

    /// Reads the new segments of transactions below `limit` from the log.
    fn read(&mut self, log: &Log, limit: u64) {
        let Self { batch, seen, .. } = self;
        batch.clear();
        let max_bytes = settings::notify_inline_limit();
        new_segments(log, seen, |slot, row| {
            let xid = row[log::XID].value() as u64;
            if xid >= limit {
                return ControlFlow::Continue(());
            }
            batch.push(slot, xid, row, max_bytes);
            // The rest of a large tick is not read, except for one row of each partition that has any. But a few
            // segments are counted even if they are large, so that the pace recognizes that writers are busy.
            let is_enough = batch.is_large() && batch.count() >= pace::BUSY_TICK;
            if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    }

    /// The current partition of the ticks, open for writing. None if it does not exist, or if the extension was dropped
    /// and created again: then the next check ends this relay.
    fn partition(&self) -> Option<(usize, Table)> {
        let slot = self.db.current_slot();
        let table = Table::open(TICK_PARTITIONS[slot], pg_sys::RowExclusiveLock)?;
        (self.tables[slot] == Some(table.oid())).then_some((slot, table))
    }

    /// Inserts the row of a tick into the current partition. None if there is none.
    fn insert(&self, tick: u64, until: &Snapshot, mark: i16) -> Option<()> {
        let (slot, partition) = self.partition()?;
        let used = (0..SLOTS).filter(|slot| self.last_used[*slot] == tick).fold(0i16, |used, slot| used | 1 << slot);
        let (since, until) = (Packed::new(&self.seen), Packed::new(until));
        // SAFETY: inside the relay's transaction. The values have the types of the table's columns, in their order
        // (sql/extension/10_tables.sql), and none is NULL.
        unsafe {
            partition.insert([
                pg_sys::Datum::from(slot as i16),
                pg_sys::Datum::from(tick),
                pg_sys::Datum::from(self.last),
                since.datum(),
                until.datum(),
                pg_sys::Datum::from(used | mark),
            ]);
        }
        Some(())
    }

    fn announce(&mut self, tick: u64, way: Way) {
        let mut announcement = Announcement::new(tick, self.last);
        let mut reason = match way {
            Way::Early(_) => None,
            Way::Flushed(reason) => Some(reason),
        };
        if self.batch.is_large() || self.queue >= QUEUE_CROWDED {
            announcement.make_hint();
        } else {
            self.batch.put_in_order();
            let events = self.batch.put_into(&mut announcement, settings::notify_inline_limit());
            // An event that is too large for a notification makes the announcement a hint.
            if announcement.is_hint() {
                reason = reason.or(Some(Reason::Hint));
            } else {
                self.db.events.fetch_add(events, SeqCst);
            }
        }
        match reason {
            Some(reason) => {
                self.db.flushed_first[reason as usize].fetch_add(1, SeqCst);
            }
            None => {
                announcement.make_early();
                early::commit_early();
                self.is_early = true;
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
            self.db.hints.fetch_add(1, SeqCst);
        }
        for mut part in announcement.finish() {
            part.push('\0');
            // Texts in Postgres contain no NUL, so those in the log don't either.
            let part = CStr::from_bytes_with_nul(part.as_bytes());
            let part = part.unwrap_or_else(|_| error!("tidings.log: a NUL in an event"));
            // SAFETY: inside a transaction; both are C strings and are copied.
            unsafe { Async_Notify(self.channel.as_ptr(), part.as_ptr()) };
        }
    }

    fn finish(&mut self, tick: u64) {
        self.last = tick;
        self.db.tick.store(tick, SeqCst);
        self.db.ticks.fetch_add(1, SeqCst);
    }
}

fn no_tables<T>() -> T {
    error!("the tables of this relay's ticks do not exist")
}

/// Runs `body` in a transaction of its own. An error ends the relay, and the launcher starts another one. Unlike
/// pgrx's function, this takes no snapshot that `body` may not need.
fn transaction<R>(body: impl FnOnce() -> R) -> R {
    // SAFETY: the relay is connected to its database and outside of a transaction. An error unwinds past the end of
    // the transaction to the process's own end, which aborts it.
    unsafe {
        SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        let result = body();
        pg_sys::CommitTransactionCommand();
        result
    }
}
