//! The snapshots of Postgres, with 64-bit transaction ids, as far as the log needs them.

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::prelude::*;
use tidings_wire::Snapshot;

use crate::foreign::infallible::{GetActiveSnapshot, GetTopFullTransactionIdIfAny, ReadNextFullTransactionId};
use crate::foreign::unguarded;

/// The active snapshot of this process.
pub fn active() -> Snapshot {
    // SAFETY: there is an active snapshot whenever a query or one of the functions here runs.
    let snapshot = unsafe { &*GetActiveSnapshot() };
    let next = next_xid();
    let full = |xid| full(xid, next);
    // In recovery Postgres cannot distinguish subtransactions from other transactions, and lists all running ones where
    // it normally lists subtransactions. If that list overflows, it lacks only subtransactions.
    let (running, count) = match snapshot.takenDuringRecovery {
        true => (snapshot.subxip, snapshot.subxcnt.unsigned_abs()),
        false => (snapshot.xip, snapshot.xcnt),
    };
    // SAFETY: each list has as many elements as its counter says.
    let mut running: Vec<_> = (0..count as usize).map(|i| full(unsafe { *running.add(i) })).collect();
    running.sort_unstable();
    // A transaction that is being prepared is there twice: as its session, and as prepared. With a synchronous standby
    // this takes as long as the standby's answer.
    running.dedup();
    Snapshot { xmin: full(snapshot.xmin), xmax: full(snapshot.xmax), running }
}

/// The id of the running transaction, which gets one if it has none. Called in a transaction that may write.
pub fn own_xid() -> u64 {
    // SAFETY: inside a transaction that may write. The first function only reads variables of this backend.
    unsafe {
        match GetTopFullTransactionIdIfAny().value {
            0 => pg_sys::GetTopFullTransactionId().value,
            known => known,
        }
    }
}

/// The 64-bit id of a transaction that has one of the last 2^32 ids before `next`, the id of the next transaction.
pub fn full(xid: pg_sys::TransactionId, next: u64) -> u64 {
    next.wrapping_sub(u64::from((next as u32).wrapping_sub(xid.into_inner())))
}

/// A snapshot that sees all transactions below `xmax` except those in a list.
pub fn without(xmax: u64, mut running: Vec<u64>) -> Snapshot {
    running.sort_unstable();
    running.dedup();
    Snapshot { xmin: running.first().copied().unwrap_or(xmax), xmax, running }
}

/// The same snapshot as if transactions from `limit` on had not started.
pub fn below(mut snapshot: Snapshot, limit: u64) -> Snapshot {
    if limit < snapshot.xmax {
        snapshot.running.retain(|xid| *xid < limit);
        snapshot = without(limit, snapshot.running);
    }
    snapshot
}

/// The same as a value of type `pg_snapshot`, which begins with a length word and the number of running transactions
/// (utils/adt/xid8funcs.c).
pub struct Packed(Vec<u64>);

impl Packed {
    /// Packs a snapshot, which is valid: both its ends exist, and all transactions between them are in order.
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut words = vec![(snapshot.running.len() as u64) << 32, snapshot.xmin, snapshot.xmax];
        words.extend(&snapshot.running);
        // SAFETY: the length word is there, and the `Vec<u64>` is aligned for it.
        unsafe { pgrx::set_varsize_4b(words.as_mut_ptr().cast(), size_of_val(&*words) as i32) };
        Self(words)
    }

    /// The value, which must not outlive the packed snapshot.
    pub fn datum(&self) -> pg_sys::Datum {
        pg_sys::Datum::from(self.0.as_ptr())
    }
}

/// A value of type `pg_snapshot`.
///
/// # Safety
/// The value is of that type and not NULL.
pub unsafe fn unpack(value: pg_sys::Datum) -> Snapshot {
    let stored = value.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: a `pg_snapshot`, as the caller promises. It has the words that `Packed` describes, where the first two
    // fields share the first word. A copy that Postgres made to decompress or fetch it is freed.
    unsafe {
        let plain = pg_sys::pg_detoast_datum_packed(stored);
        let (numbers, _) = pgrx::varlena_to_byte_slice(plain)[size_of::<u32>()..].as_chunks::<{ size_of::<u64>() }>();
        let snapshot = match *numbers {
            [xmin, xmax, ref running @ ..] => Snapshot {
                xmin: u64::from_ne_bytes(xmin),
                xmax: u64::from_ne_bytes(xmax),
                running: running.iter().map(|xid| u64::from_ne_bytes(*xid)).collect(),
            },
            _ => error!("a snapshot without its ends"),
        };
        if plain != stored {
            pg_sys::pfree(plain.cast());
        }
        snapshot
    }
}

/// The active snapshot as a reader's position: the reader's own transaction, whose changes it sees, counts as running.
pub fn of_reader() -> Snapshot {
    let mut snapshot = active();
    // SAFETY: called inside a transaction. This does not assign an id to it.
    let own = unsafe { GetTopFullTransactionIdIfAny() }.value;
    if own != 0 && snapshot.sees(own) {
        snapshot.running.push(own);
        snapshot = without(snapshot.xmax, snapshot.running);
    }
    snapshot
}

/// The oldest transaction that a snapshot does not see and that has a process. A prepared transaction has none, and
/// never writes again.
pub fn oldest_process(snapshot: &Snapshot) -> u64 {
    // SAFETY: searches the list of processes, under its own lock.
    let has_process = |xid: &&u64| unsafe { pg_sys::BackendXidGetPid((**xid as u32).into()) } != 0;
    snapshot.running.iter().find(has_process).copied().unwrap_or(snapshot.xmax)
}

/// The id of the next transaction; in recovery, the first id above all known transactions of the primary.
pub fn next_xid() -> u64 {
    // SAFETY: reads shared memory, under its own lock.
    unsafe { ReadNextFullTransactionId() }.value
}

/// Whether the active snapshot was taken in recovery. It then sees commits in the order in which the primary logged
/// them, which is not always the order in which they became visible on the primary.
pub fn is_of_recovery() -> bool {
    // SAFETY: there is an active snapshot whenever a query runs.
    unsafe { (*GetActiveSnapshot()).takenDuringRecovery }
}

/// Runs `body` with an active snapshot that sees everything committed until now. Called inside a transaction.
pub fn with_latest<R>(body: impl FnOnce() -> R) -> R {
    // SAFETY: inside a transaction. The snapshot is popped below or, after an error, at the end of the transaction.
    // The closure under the guard drops nothing, so an error may jump out of it.
    unsafe {
        pg_guard_ffi_boundary(|| unguarded::PushActiveSnapshot(unguarded::GetLatestSnapshot()));
        let result = body();
        pg_sys::PopActiveSnapshot();
        result
    }
}
