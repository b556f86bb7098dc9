//! What survives a crash: places in the write-ahead log up to which it is flushed and, if commits wait for a
//! synchronous standby, received there.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use pgrx::prelude::*;

use crate::foreign::infallible::GetFlushRecPtr;
use crate::log::{endings, snapshot};
use crate::shared;

/// How often a waiting reader looks whether the standby has received what it reads. The queue in which commits wait for
/// that is not used here, because the end of such a wait looks the same as its cancellation.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The kinds of waiting for a standby (replication/syncrep.h): it has written, flushed or applied.
const KINDS: [pg_sys::SyncCommitLevel::Type; 3] = [
    pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_WRITE,
    pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_FLUSH,
    pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_APPLY,
];

/// The published level while no relay runs. A relay never publishes it, because it waits for the disk at least.
pub const UNKNOWN: u32 = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF;

/// This process's setting `synchronous_commit`.
pub fn level() -> u32 {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::synchronous_commit }.unsigned_abs()
}

/// What commits of this process wait for: its setting `synchronous_commit`, or the disk alone if there is no standby to
/// wait for.
pub fn effective_level() -> u32 {
    if has_synchronous_standbys() {
        level()
    } else {
        level().min(pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_LOCAL_FLUSH)
    }
}

/// Whether everything before a place is as safe as a commit with this setting of `synchronous_commit`.
pub fn is_durable(end: u64, level: u32) -> bool {
    is_flushed(end) && is_replicated(end, level)
}

/// Whether everything before a place is flushed.
pub fn is_flushed(end: u64) -> bool {
    // SAFETY: reads shared memory, under its own lock. The timeline is not requested.
    end <= unsafe { GetFlushRecPtr(std::ptr::null_mut()) }
}

/// Whether a synchronous standby has everything before a place, if commits at this level wait for one.
fn is_replicated(end: u64, level: u32) -> bool {
    let Some(kind) = KINDS.iter().position(|kind| *kind == level) else { return true };
    // SAFETY: reads a place in shared memory that only grows. Postgres writes it as a whole, so no half-written value
    // is read.
    !has_synchronous_standbys() || end <= unsafe { (&raw const (*pg_sys::WalSndCtl).lsn[kind]).read_volatile() }
}

/// Whether commits wait for standbys, as far as this process knows: it reads the setting again between statements.
fn has_synchronous_standbys() -> bool {
    // SAFETY: reads settings of this process.
    unsafe {
        let names = pg_sys::SyncRepStandbyNames;
        pg_sys::max_wal_senders > 0 && !names.is_null() && *names != 0
    }
}

/// Whether a standby or another receiver of the write-ahead log is connected. It gets only what is flushed.
pub fn has_receiver() -> bool {
    // SAFETY: Postgres has as many of these entries as the setting says. They live in shared memory. The process id of
    // an entry is 0 if the entry is free. Postgres writes it as a whole, so no half-written value is read.
    unsafe {
        let entries = (&raw const (*pg_sys::WalSndCtl).walsnds).cast::<pg_sys::WalSnd>();
        (0..pg_sys::max_wal_senders.unsigned_abs() as usize)
            .any(|i| (&raw const (*entries.add(i)).pid).read_volatile() != 0)
    }
}

/// Flushes everything before a place, if it is not flushed yet.
pub fn flush(end: u64) {
    // SAFETY: the place is the end of a record that a transaction of this server has written.
    unsafe { pg_sys::XLogFlush(end) }
}

/// Makes durable what the active snapshot sees of ticks and of transactions with events: a crash, or a failover to a
/// synchronous standby, must not take back what a reader is about to return. On a standby there is nothing to do: what
/// it has replayed was flushed by its source before it was sent.
pub fn secure_visible() {
    // SAFETY: reads shared memory.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return;
    }
    let Some(db) = shared::my_database() else { return };
    let seen = snapshot::active();
    // A transaction removes its note some microseconds after it becomes visible.
    while endings::has_unpublished(|xid| seen.sees(xid)) {
        wait();
    }
    let end = db.commit_end.load(SeqCst).max(db.tick_end.load(SeqCst));
    flush(end);
    // The relay's level also says when there is no standby to wait for any more. This process can't find that out
    // while it waits.
    let level = || Some(db.level.load(SeqCst)).filter(|level| *level != UNKNOWN).unwrap_or_else(effective_level);
    while !is_replicated(end, level()) {
        wait();
    }
}

/// Waits for a moment, unless the statement is cancelled.
fn wait() {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    pg_sys::check_for_interrupts!();
    // SAFETY: the latch belongs to this process.
    unsafe {
        let time = LOOK_AGAIN.as_millis() as i64;
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, time, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}
