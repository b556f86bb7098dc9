//! Announcing a tick early, before its row is flushed: a client then waits for the flush of the writer's commit only.
//!
//! What is announced must survive a crash, and after a crash that loses the row the relay must cut the same events
//! again, in the same order and before all others. So the number of an early tick is a stamp, and the tick has exactly
//! the transactions that ended after the previous tick and up to this stamp, each as durable as a commit of the relay.
//! Later transactions that are visible already wait for the next tick, but not for long. In all other cases the tick is
//! flushed first. See docs/internals.md and docs/model.md.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::prelude::*;
use tidings_wire::Snapshot;

use crate::foreign::max_prepared_xacts;
use crate::log::{durability, endings, snapshot};
use crate::relay::batch::Batch;
use crate::settings;
use crate::shared::{self, Database, REASONS};

/// How long a transaction waits for one that ends with a lower stamp but is not visible yet. The wait of that one is
/// for a disk or a standby, and usually shorter. Flushing the tick takes as long as such a wait.
const PATIENCE: Duration = Duration::from_millis(20);

/// Why a tick is flushed before it is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// One of its transactions is not as durable as a commit of the relay, because it did not wait for that.
    Asynchronous,
    /// One of its transactions was prepared, or another one is prepared and may end before the tick is cut again.
    Prepared,
    /// One of its transactions has waited for [`PATIENCE`].
    Order,
    /// It does not fit into notifications: it is read from the log.
    Hint,
    /// The notification queue is too full for it: it is read from the log.
    Queue,
    /// It has what was committed while no relay ran.
    Backlog,
}

impl Reason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; REASONS] =
        [Self::Asynchronous, Self::Prepared, Self::Order, Self::Hint, Self::Queue, Self::Backlog];

    /// Its name in `tidings.status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Asynchronous => "asynchronous",
            Self::Prepared => "prepared",
            Self::Order => "order",
            Self::Hint => "hint",
            Self::Queue => "queue",
            Self::Backlog => "backlog",
        }
    }
}

/// How long an early tick may wait for the flush of a writer's commit before the relay flushes it. Until then a crash
/// may lose the tick, but no event: see [`Unflushed`].
const FLUSH_WITHIN: Duration = Duration::from_millis(5);

/// What the relay notes before it takes the snapshot of a tick.
#[derive(Clone, Copy)]
pub struct Look {
    /// A reading of the clock: the number of the tick if it is flushed first.
    pub number: u64,
    /// The snapshot will see every transaction that ever ends with a stamp up to this one, except prepared ones. The
    /// number of the tick if it is announced early.
    horizon: u64,
}

impl Look {
    /// Finds out which transactions are about to end. The order of the two steps matters: see [`endings`].
    pub fn take() -> Self {
        let number = shared::next_stamp();
        Self { number, horizon: number.min(endings::lowest()) }
    }
}

/// How a tick is announced.
pub enum Way {
    /// Early, with this number.
    Early(u64),
    /// After it is flushed, for a reason.
    Flushed(Reason),
}

/// Decides how ticks are announced.
pub struct Early {
    db: &'static Database,
    /// Whether the SQL functions that read the log make durable what they return. Those before 0.2.0 do not.
    has_durable_reads: bool,
    /// No tick was cut since the relay started. Until then, some transactions may have ended without a note in this
    /// database's shared memory.
    is_first: bool,
    /// The transactions that wait for the next tick, and since when.
    held: Vec<(u64, Instant)>,
}

impl Early {
    /// The first tick will be flushed first.
    pub fn new(db: &'static Database) -> Self {
        db.can_borrow.store(false, SeqCst);
        Self { db, has_durable_reads: false, is_first: true, held: Vec::new() }
    }

    /// Checks whether this version of the extension's SQL can have early ticks. Called inside a transaction.
    pub fn check_version(&mut self) {
        if !self.has_durable_reads {
            let sql = "SELECT pg_catalog.to_regprocedure('tidings.make_durable()') IS NOT NULL";
            let find = || Spi::connect(|client| client.select(sql, Some(1), &[])?.first().get_one::<bool>());
            self.has_durable_reads = snapshot::with_latest(find).ok().flatten().unwrap_or(false);
            // The function that completes segments came with the same version.
            self.db.can_borrow.store(self.has_durable_reads, SeqCst);
        }
    }

    /// Decides how to announce the tick that has the segments of a batch and ends with `until`, after the tick `last`.
    /// If some transactions must wait for the next tick, removes them from both. `obstacle` is a reason to flush it
    /// first that the caller knows already.
    pub fn choose(
        &mut self,
        obstacle: Option<Reason>,
        look: Look,
        last: u64,
        batch: &mut Batch,
        until: &mut Snapshot,
    ) -> Way {
        let held = std::mem::take(&mut self.held);
        if let Some(reason) = obstacle.or_else(|| self.obstacle(batch, until, &held)) {
            return Way::Flushed(reason);
        }
        // Up to the last tick's number, a transaction may be visible that was not when that tick was flushed first.
        let horizon = if look.horizon > last { look.horizon } else { 0 };
        let waiting = batch.hold_back(horizon);
        if !waiting.is_empty() {
            let since = |xid: &u64| held.iter().find(|(held, _)| held == xid).map_or_else(Instant::now, |(_, at)| *at);
            self.held = waiting.iter().map(|xid| (*xid, since(xid))).collect();
            // As if they were still running.
            let running = std::mem::take(&mut until.running);
            *until = snapshot::without(until.xmax, running.into_iter().chain(waiting).collect());
        }
        Way::Early(horizon)
    }

    /// Why the tick must be flushed first, if it must.
    fn obstacle(&mut self, batch: &Batch, until: &Snapshot, held: &[(u64, Instant)]) -> Option<Reason> {
        let is_durable = || durability::is_durable(self.db.commit_end.load(SeqCst), durability::level());
        if std::mem::take(&mut self.is_first) || !self.has_durable_reads {
            Some(Reason::Backlog)
        } else if batch.is_large() {
            Some(Reason::Hint)
        } else if batch.has_prepared() || has_prepared(until) {
            Some(Reason::Prepared)
        } else if !is_durable() {
            Some(Reason::Asynchronous)
        } else {
            held.iter().any(|(_, since)| since.elapsed() >= PATIENCE).then_some(Reason::Order)
        }
    }

    /// How long until a transaction has waited long enough for its tick to be flushed first.
    pub fn wait(&self) -> Option<Duration> {
        self.held.iter().map(|(_, since)| PATIENCE.saturating_sub(since.elapsed())).min()
    }
}

/// Lets the running transaction commit without waiting for the disk. Call [`end_commit`] after it.
pub fn commit_early() {
    endings::begin_tick();
    // SAFETY: a variable of this process. `end_commit` restores it.
    unsafe { pg_sys::synchronous_commit = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32 };
}

/// Lets the next transactions commit as before. `level` is the setting before [`commit_early`].
pub fn end_commit(level: u32) {
    // SAFETY: a variable of this process, which gets the value that it had.
    unsafe { pg_sys::synchronous_commit = level as i32 };
}

/// The early ticks that may not be flushed yet. Beside other writers, the next commit flushes them, at no cost for
/// the relay. Otherwise the relay does, after [`FLUSH_WITHIN`]; at once if there is a standby, where a tick arrives
/// only after its flush.
#[derive(Default)]
pub struct Unflushed {
    oldest: Option<Mark>,
    newest: Option<Mark>,
}

/// The end of an early tick in the write-ahead log, and when it was announced.
#[derive(Clone, Copy)]
struct Mark {
    end: u64,
    at: Instant,
}

impl Unflushed {
    /// Notes that a tick was announced early. It ends at this place of the write-ahead log.
    pub fn note(&mut self, end: u64) {
        self.newest = Some(Mark { end, at: Instant::now() });
        self.oldest = self.oldest.or(self.newest);
        if durability::has_receiver() {
            self.flush();
        }
    }

    /// How long until a tick must be flushed.
    pub fn wait(&self) -> Duration {
        self.oldest.map_or(Duration::MAX, |oldest| FLUSH_WITHIN.saturating_sub(oldest.at.elapsed()))
    }

    /// Flushes the ticks if that is due and nobody has done so.
    pub fn flush_if_due(&mut self) {
        while let Some(oldest) = self.oldest.filter(|oldest| oldest.at.elapsed() >= FLUSH_WITHIN) {
            if !durability::is_flushed(oldest.end) {
                return self.flush();
            }
            self.oldest = self.newest.filter(|newest| newest.end > oldest.end);
        }
    }

    /// Flushes the ticks.
    pub fn flush(&mut self) {
        self.oldest = None;
        if let Some(newest) = self.newest.take().filter(|_| !settings::hold_flush()) {
            durability::flush(newest.end);
        }
    }
}

/// Whether a snapshot lists a prepared transaction of this database as running. Called after the look: a transaction
/// that has no note any more because it is prepared is found here.
fn has_prepared(now: &Snapshot) -> bool {
    let next = snapshot::next_xid();
    // SAFETY: Postgres has as many of these entries as the setting says. They live in shared memory. Entries that are
    // not in use may have old numbers, which no snapshot lists as running.
    unsafe {
        (0..max_prepared_xacts.unsigned_abs() as usize).any(|i| {
            let entry = pg_sys::PreparedXactProcs.add(i);
            let xid = (&raw const (*entry).xid).read_volatile();
            let database = (&raw const (*entry).databaseId).read_volatile();
            database == pg_sys::MyDatabaseId && now.running.contains(&snapshot::full(xid, next))
        })
    }
}
