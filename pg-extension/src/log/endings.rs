//! The transactions that are about to end: shared memory with a note of each backend whose transaction takes its last
//! stamp, or has taken it and is not known to be visible yet.
//!
//! The relay needs the notes because stamps become visible in another order than they were taken: the *horizon* is the
//! stamp up to which nothing is missing any more. A transaction takes its last stamp after its note, and removes the
//! note once it is visible and has said up to where the write-ahead log must be flushed to keep it. So if the relay
//! takes a reading of the clock, then looks at the notes, and then takes a snapshot, the snapshot sees every
//! transaction that ever ends with a stamp up to that reading and below all notes; except prepared ones.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use pgrx::prelude::*;

use crate::foreign::infallible::GetTopFullTransactionIdIfAny;
use crate::log::snapshot;
use crate::shared;
use crate::shared_memory::Piece;

/// The notes, by the backend's number in Postgres's array of processes.
pub static NOTES: Piece = Piece::new(c"tidings_endings", || backends() * size_of::<Note>());

/// In place of a note's stamp: the backend's transaction is not about to end.
const NONE: u64 = 0;

/// In place of the stamp of the relay, which announces events and has none.
const OF_RELAY: u64 = u64::MAX;

/// The note of one backend. All zero while its transaction is not about to end.
#[repr(C)]
struct Note {
    database: AtomicU32,
    /// The transaction.
    xid: AtomicU64,
    /// A reading of the clock from before the transaction's last stamp. Written last, and first to be removed.
    stamp: AtomicU64,
}

thread_local! {
    /// This backend's transaction has a note.
    static IS_NOTED: Cell<bool> = const { Cell::new(false) };
}

/// How many backends there can be. Every process that can run a transaction has a lower number than this.
fn backends() -> usize {
    // SAFETY: Postgres sets the variable before it calls the hooks.
    unsafe { pg_sys::MaxBackends }.unsigned_abs() as usize
}

fn notes() -> &'static [Note] {
    // SAFETY: a note consists of atomics, and nobody else uses this memory.
    unsafe { NOTES.values() }
}

/// The note of this backend.
fn mine() -> Option<&'static Note> {
    notes().get(usize::try_from(shared::my_proc_number()).ok()?)
}

/// Notes that this backend's transaction is about to take its last stamp. Called inside a transaction, before that.
pub fn begin() {
    if !IS_NOTED.get() {
        note(shared::next_stamp());
    }
}

/// Notes that the relay's transaction is about to become visible, although it may not be flushed then.
pub fn begin_tick() {
    note(OF_RELAY);
}

fn note(stamp: u64) {
    let mine = mine().unwrap_or_else(|| error!("the backend has no place in the shared memory of tidings"));
    let xid = snapshot::own_xid();
    // SAFETY: set once, when the process connects.
    let database = unsafe { pg_sys::MyDatabaseId };
    mine.database.store(database.to_u32(), SeqCst);
    mine.xid.store(xid, SeqCst);
    mine.stamp.store(stamp, SeqCst);
    IS_NOTED.set(true);
}

/// The transaction is visible: says up to where the write-ahead log must be flushed to keep it, and then removes its
/// note. Allowed after a commit, because it uses only atomics.
pub fn publish() {
    if !IS_NOTED.get() {
        return;
    }
    if let (Some(db), Some(mine)) = (shared::my_database(), mine()) {
        let end = match mine.stamp.load(SeqCst) {
            OF_RELAY => &db.tick_end,
            _ => &db.commit_end,
        };
        // SAFETY: reads a variable of this backend, which the commit has set.
        end.fetch_max(unsafe { pg_sys::XactLastCommitEnd }, SeqCst);
    }
    remove();
}

/// Removes the note, if there is one: the transaction has ended. Allowed at the end of a transaction, because it uses
/// only atomics. False if there was none.
pub fn remove() -> bool {
    let was_noted = IS_NOTED.replace(false);
    if let Some(mine) = mine().filter(|_| was_noted) {
        mine.stamp.store(NONE, SeqCst);
    }
    was_noted
}

/// The lowest stamp of the notes of this database's transactions: each of them ends with a higher one. [`u64::MAX`] if
/// there are none.
pub fn lowest() -> u64 {
    of_this_database().map(|(stamp, _)| stamp).min().unwrap_or(u64::MAX)
}

/// Whether a transaction of another backend is visible that has not said yet what must be flushed to keep it. `sees`
/// tells what is visible.
pub fn has_unpublished(sees: impl Fn(u64) -> bool) -> bool {
    // SAFETY: called inside a transaction. This does not assign an id to it.
    let own = unsafe { GetTopFullTransactionIdIfAny() }.value;
    of_this_database().any(|(_, xid)| xid != own && sees(xid))
}

/// The stamps and transactions of the notes in this database.
fn of_this_database() -> impl Iterator<Item = (u64, u64)> {
    // SAFETY: set once, when the process connects.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    notes().iter().filter_map(move |note| {
        let stamp = note.stamp.load(SeqCst);
        let is_here = stamp != NONE && note.database.load(SeqCst) == database;
        is_here.then(|| (stamp, note.xid.load(SeqCst)))
    })
}
