//! Hot standbys: waiting for the replay of the next tick, and how far the replay is behind.
//!
//! Nothing can be notified on a standby, and Postgres offers no way to wait for its replay. But the process that
//! replays has loaded this library too. So it wraps the function that replays the end of a transaction, and wakes the
//! sessions that wait. Each then looks for the newest tick, and sleeps again if that is not the one it waits for.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use pgrx::datum::Interval;
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, PgMemoryContexts, pg_shmem_init};
use tidings_wire::position::END;

use crate::foreign::infallible::ConditionVariableBroadcast;
use crate::log::{lock, scan};
use crate::{errors, position, preload};

/// The longest wait that a caller can ask for.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest sleep: a promotion wakes nobody.
const SLEEP: Duration = Duration::from_millis(250);

/// The pause of a session that has spent its share of the time on looking: the primary commits all the time, but few of
/// its commits are ticks.
const PAUSE: Duration = Duration::from_millis(4);

/// At most one part in this many of the time is spent on looking.
const SHARE: u32 = 100;

/// How much time for looking may be saved up: enough for some twenty looks, so that nobody pauses after a few commits.
const SAVINGS: Duration = Duration::from_millis(1);

// SAFETY: no other library uses this name for its shared memory.
static REPLAY: PgAtomic<Replay> = unsafe { PgAtomic::new(c"tidings replay") };

/// What the process that replays tells the sessions that wait.
struct Replay {
    /// How many transactions have been replayed to their commit since the server started.
    commits: AtomicU64,
    /// Where sessions wait for the next one.
    waiting: UnsafeCell<pg_sys::ConditionVariable>,
}

// SAFETY: an atomic, and a condition variable of Postgres, which is made to be shared by processes, at the same address
// in all of them.
unsafe impl PGRXSharedMemory for Replay {}

impl Default for Replay {
    fn default() -> Self {
        let mut waiting = pg_sys::ConditionVariable::default();
        // SAFETY: initializes the struct, which nobody waits on yet, so that it may still be moved.
        unsafe { pg_sys::ConditionVariableInit(&mut waiting) };
        Self { commits: AtomicU64::new(0), waiting: UnsafeCell::new(waiting) }
    }
}

/// The function of Postgres that replays a record about a transaction.
static mut REPLAY_TRANSACTION: Option<unsafe extern "C-unwind" fn(*mut pg_sys::XLogReaderState)> = None;

/// Requests the memory, and observes the replay of transactions. Called from `_PG_init`.
pub fn init() {
    pg_shmem_init!(REPLAY);
    // SAFETY: called in the postmaster while it loads libraries, before there are other processes or threads; the
    // process that replays inherits the table. It has an entry for each built-in resource manager.
    unsafe {
        let table = (&raw mut pg_sys::RmgrTable).cast::<pg_sys::RmgrData>();
        let transactions = &mut *table.add(pg_sys::RmgrIds::RM_XACT_ID as usize);
        REPLAY_TRANSACTION = transactions.rm_redo;
        transactions.rm_redo = Some(replay_transaction);
    }
}

/// Replays a record about a transaction, and wakes the sessions that wait if it is a commit. It has no guard and no
/// values to drop, so that an error of the replay passes through it unchanged.
unsafe extern "C-unwind" fn replay_transaction(reader: *mut pg_sys::XLogReaderState) {
    // SAFETY: Postgres passes a reader with a decoded record, which is passed on as it came. The condition variable is
    // in shared memory, and this process has an entry among those that may set latches.
    unsafe {
        let kind = u32::from((*(*reader).record).header.xl_info) & pg_sys::XLOG_XACT_OPMASK;
        if let Some(replay) = REPLAY_TRANSACTION {
            replay(reader);
        }
        if kind == pg_sys::XLOG_XACT_COMMIT || kind == pg_sys::XLOG_XACT_COMMIT_PREPARED {
            let replay = REPLAY.get();
            replay.commits.fetch_add(1, SeqCst);
            ConditionVariableBroadcast(replay.waiting.get());
        }
    }
}

/// `CALL tidings.await_tick(after, wait)`, and the function `tidings.tick_is_there(after, wait)`: waits on a standby
/// until the log has a tick after this position, and says whether it has.
#[pg_extern]
fn await_tick(after: Option<&str>, wait: Option<Interval>, fcinfo: pg_sys::FunctionCallInfo) -> bool {
    preload::require();
    let (Some(after), Some(wait)) = (after.map(position::position_of), wait) else {
        errors::raise(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            "a position and a time to wait are needed",
            "Start from tidings.position().",
        )
    };
    // A position at the end of its tick waits for the next one.
    let wanted = if after.n == END { after.tick.saturating_add(1) } else { after.tick };
    let wait = Duration::from_micros(u64::try_from(wait.as_micros()).unwrap_or(0)).min(LONGEST);
    // SAFETY: Postgres passes the call that it makes. In CALL, its context says so.
    let is_procedure = unsafe {
        let context = (*fcinfo).context;
        let is_call = !context.is_null() && (*context).type_ == pg_sys::NodeTag::T_CallContext;
        if is_call && (*context.cast::<pg_sys::CallContext>()).atomic {
            needs_no_transaction();
        }
        is_call
    };
    if is_procedure {
        give_up_snapshots();
    }
    Waiter::new().wait(wanted, Instant::now() + wait, !is_procedure)
}

fn needs_no_transaction() -> ! {
    errors::raise(
        PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
        "tidings.await_tick() cannot run inside a transaction block or a function",
        "The transaction's snapshot would block the replay that the procedure waits for. Call it by itself.",
    )
}

/// Drops the snapshot of the CALL statement. A session that waits with a snapshot can block the replay.
fn give_up_snapshots() {
    // SAFETY: in a CALL outside of a transaction block, so the only snapshot is the one of the statement, which needs
    // none after the evaluation of its arguments. Postgres does the same when a procedure commits.
    unsafe {
        pg_sys::ForgetPortalSnapshots();
        pg_sys::InvalidateCatalogSnapshot();
        if pg_sys::HaveRegisteredOrActiveSnapshot() {
            needs_no_transaction();
        }
    }
}

/// A session that waits.
struct Waiter {
    replay: &'static Replay,
    /// How much time it may spend on looking.
    savings: Duration,
    /// When it last looked.
    looked: Instant,
}

impl Waiter {
    fn new() -> Self {
        Self { replay: REPLAY.get(), savings: SAVINGS, looked: Instant::now() }
    }

    /// Waits until there is a tick from `wanted` on; false if there is none at the deadline, or if this is no standby.
    /// With a `snapshot` of the caller, also when the replay stands still, because the snapshot may be in its way.
    fn wait(mut self, wanted: u64, deadline: Instant, snapshot: bool) -> bool {
        loop {
            let replayed_before = replayed();
            // Before the look, so that no commit is missed in between.
            let seen = self.replay.commits.load(SeqCst);
            if self.look() >= wanted {
                return true;
            }
            // SAFETY: reads shared memory.
            if Instant::now() >= deadline || !unsafe { pg_sys::RecoveryInProgress() } {
                return false;
            }
            if self.savings.is_zero() {
                pause();
            }
            let is_woken = self.sleep(seen, deadline);
            if snapshot && !is_woken && replayed() == replayed_before && bytes_behind() > 0 {
                return false;
            }
        }
    }

    /// The newest tick.
    fn look(&mut self) -> u64 {
        let start = Instant::now();
        self.savings = SAVINGS.min(self.savings + (start - self.looked) / SHARE);
        // SAFETY: inside a transaction. Nothing that is allocated in the context is used after the look. The snapshot
        // for look-ups in the catalogs is taken again when it is needed.
        let newest = unsafe {
            let newest = PgMemoryContexts::new("tidings.await_tick").switch_to(|_| lock::briefly(scan::newest_tick));
            pg_sys::InvalidateCatalogSnapshot();
            newest
        };
        self.looked = Instant::now();
        self.savings = self.savings.saturating_sub(self.looked - start);
        newest
    }

    /// Sleeps until a commit after `seen` is replayed; false after a while or at the deadline.
    fn sleep(&self, seen: u64, deadline: Instant) -> bool {
        let until = deadline.min(Instant::now() + SLEEP);
        let waiting = self.replay.waiting.get();
        let mut is_woken = true;
        // SAFETY: the condition variable is in shared memory. An error, such as a cancellation, ends the sleep at the
        // abort of the transaction.
        unsafe {
            pg_sys::ConditionVariablePrepareToSleep(waiting);
            while is_woken && self.replay.commits.load(SeqCst) == seen {
                let left = until.saturating_duration_since(Instant::now()).as_millis() as i64;
                let timed_out = pg_sys::ConditionVariableTimedSleep(waiting, left.max(1), pg_sys::PG_WAIT_EXTENSION);
                is_woken = !timed_out && Instant::now() < until;
            }
            pg_sys::ConditionVariableCancelSleep();
        }
        is_woken
    }
}

/// Waits a moment, whatever is replayed.
fn pause() {
    let events = (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32;
    // SAFETY: the process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events, PAUSE.as_millis() as i64, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pg_sys::check_for_interrupts!();
}

/// Up to where the log of the server has been replayed.
fn replayed() -> u64 {
    // SAFETY: reads shared memory; the argument, where the timeline is stored, may be null.
    unsafe { pg_sys::GetXLogReplayRecPtr(std::ptr::null_mut()) }
}

/// How many bytes have been received and not replayed.
fn bytes_behind() -> u64 {
    // SAFETY: reads shared memory; both arguments, where more is stored, may be null.
    let received = unsafe { pg_sys::GetWalRcvFlushRecPtr(std::ptr::null_mut(), std::ptr::null_mut()) };
    received.saturating_sub(replayed())
}

/// `tidings.standby()`: how far this standby's replay is; no row on a primary. Its times are of this server's clock
/// alone.
#[pg_extern]
#[allow(clippy::type_complexity)] // The columns of the SQL function.
fn standby()
-> TableIterator<'static, (name!(streams, bool), name!(replayed, i64), name!(behind_bytes, i64), name!(behind_ms, i64))>
{
    preload::require();
    // SAFETY: all three read shared memory.
    let (in_recovery, streams, delay) =
        unsafe { (pg_sys::RecoveryInProgress(), pg_sys::WalRcvStreaming(), pg_sys::GetReplicationApplyDelay()) };
    let row = in_recovery.then(|| {
        // Postgres says -1 before anything was received.
        (streams, replayed() as i64, bytes_behind() as i64, delay.max(0).into())
    });
    TableIterator::new(row)
}
