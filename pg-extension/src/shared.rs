//! Shared memory: the clock, and an entry for each database with the extension, which shows its relay and whether that
//! should run.
//!
//! All of it is atomics, so that a backend can use it after its commit, where it must not fail.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{SystemTime, UNIX_EPOCH};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, pg_shmem_init};

/// The most databases of one cluster that can have the extension. Each takes a worker process, so
/// `max_worker_processes` is the practical limit, and about two hundred bytes here.
pub const MAX_DATABASES: usize = 1024;

/// How many databases the launcher checks at the same time. It is few because worker processes are.
pub const TRIALS: usize = 2;

/// The number of partitions of the log; see [`crate::relay::retention`].
pub const SLOTS: usize = 4;

/// The number of reasons why ticks are flushed before they are announced; see [`crate::relay::early`].
pub const REASONS: usize = 6;

/// No process.
const NOBODY: i32 = -1;

// SAFETY: no other library uses this name for its shared memory.
static SHARED: PgAtomic<Shared> = unsafe { PgAtomic::new(c"tidings") };

/// The shared memory.
pub struct Shared {
    clock: AtomicU64,
    /// See [`first_xid`].
    first_xid: AtomicU64,
    launcher: AtomicI32,
    trials: [Trial; TRIALS],
    databases: [Database; MAX_DATABASES],
}

/// A check whether a database has the extension, and its result.
struct Trial {
    oid: AtomicU32,
    found: AtomicU32,
}

/// The result of a [`Trial`]: not known yet.
const UNKNOWN: u32 = 0;
/// The result of a [`Trial`]: the database does not have the extension.
const MISSING: u32 = 1;
/// The result of a [`Trial`]: the database has the extension.
const FOUND: u32 = 2;

/// An unknown time; see [`Database::used_at`].
pub const NEVER: i64 = i64::MIN;

/// The entry of a database that has the extension.
pub struct Database {
    oid: AtomicU32,
    state: AtomicU32,
    /// The relay's number in Postgres's array of processes, by which it is woken.
    relay: AtomicI32,
    /// The relay's process id; 0 while there is no relay.
    pub pid: AtomicI32,
    /// Events were committed since the relay last cut a tick.
    pending: AtomicBool,
    /// The extension was dropped or created.
    recheck: AtomicBool,
    /// The relay must leave the database for a while.
    pub paused: AtomicBool,
    /// See [`Database::current_slot`].
    slot: AtomicUsize,
    /// Positions below this one have lost events to the retention.
    pub floor: AtomicU64,
    /// The number of the last tick.
    pub tick: AtomicU64,
    /// For each partition, when the last tick with segments in it was cut: in microseconds of elapsed time (see
    /// [`crate::relay::elapsed`]), or [`NEVER`].
    pub used_at: [AtomicI64; SLOTS],
    /// When the current partition became current, likewise.
    pub current_since: AtomicI64,
    /// The relay has cut the tick that seals the epoch before the server's start.
    pub epoch_sealed: AtomicBool,
    /// Where the write-ahead log must be flushed up to, so that no transaction with events is lost that is visible and
    /// has no note any more: see [`crate::log::endings`].
    pub commit_end: AtomicU64,
    /// The same for the last tick that was announced before it was flushed.
    pub tick_end: AtomicU64,
    /// What the relay's commits wait for: see [`crate::log::durability::effective_level`].
    pub level: AtomicU32,
    /// The extension's SQL can read segments that borrow their outline: see [`crate::log::lenders`].
    pub can_borrow: AtomicBool,
    /// The number of ticks since the server started.
    pub ticks: AtomicU64,
    /// The number of events that were inside of notifications since the server started.
    pub events: AtomicU64,
    /// The number of ticks that were announced by a hint since the server started.
    pub hints: AtomicU64,
    /// The number of ticks since the server started that were flushed before they were announced, by the reason.
    pub flushed_first: [AtomicU64; REASONS],
    /// The number of changes without a valid topic since the server started.
    pub skipped: AtomicU64,
    /// The number of ticks that were cut without a look at the log since the server started.
    pub ring_ticks: AtomicU64,
    /// How often the relay has lost fresh segments since the server started: see [`crate::relay::fresh`].
    pub ring_overflows: AtomicU64,
}

/// Whether a database's relay should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// The database has, or may have, the extension: the launcher starts a relay.
    Wanted = 1,
    /// A relay was started and checks whether the database has the extension.
    Starting = 2,
    /// The relay runs.
    Running = 3,
    /// The relay found no extension: the launcher frees the entry.
    Absent = 4,
    /// The launcher is freeing the entry.
    Leaving = 5,
}

// SAFETY: it consists of atomics only, none of which is a pointer, and it is at the same address in all processes.
unsafe impl PGRXSharedMemory for Shared {}

impl Default for Shared {
    fn default() -> Self {
        Self {
            clock: AtomicU64::new(0),
            first_xid: AtomicU64::new(0),
            launcher: AtomicI32::new(NOBODY),
            trials: std::array::from_fn(|_| Trial { oid: AtomicU32::new(0), found: AtomicU32::new(UNKNOWN) }),
            databases: std::array::from_fn(|_| Database {
                oid: AtomicU32::new(0),
                state: AtomicU32::new(State::Absent as u32),
                relay: AtomicI32::new(NOBODY),
                pid: AtomicI32::new(0),
                pending: AtomicBool::new(false),
                recheck: AtomicBool::new(false),
                paused: AtomicBool::new(false),
                slot: AtomicUsize::new(0),
                floor: AtomicU64::new(0),
                tick: AtomicU64::new(0),
                used_at: std::array::from_fn(|_| AtomicI64::new(NEVER)),
                current_since: AtomicI64::new(NEVER),
                epoch_sealed: AtomicBool::new(false),
                commit_end: AtomicU64::new(0),
                tick_end: AtomicU64::new(0),
                level: AtomicU32::new(0),
                can_borrow: AtomicBool::new(false),
                ticks: AtomicU64::new(0),
                events: AtomicU64::new(0),
                hints: AtomicU64::new(0),
                flushed_first: std::array::from_fn(|_| AtomicU64::new(0)),
                skipped: AtomicU64::new(0),
                ring_ticks: AtomicU64::new(0),
                ring_overflows: AtomicU64::new(0),
            }),
        }
    }
}

/// Requests the memory from Postgres. Called from `_PG_init`.
pub fn init() {
    pg_shmem_init!(SHARED);
}

/// The server's clock, which may jump, in microseconds since the Unix epoch.
pub fn clock() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

/// The next reading of the clock for stamps of segments and numbers of ticks: microseconds since the Unix epoch, but
/// always greater than the last reading (a hybrid logical clock; Kulkarni et al., 2014).
pub fn next_stamp() -> u64 {
    let now = clock().unsigned_abs();
    let next = |last: u64| now.max(last + 1);
    let clock = &SHARED.get().clock;
    next(clock.fetch_update(SeqCst, SeqCst, |last| Some(next(last))).unwrap_or_default())
}

/// Makes later readings of the clock greater than a value that the log contains.
pub fn raise_clock(stored: u64) {
    SHARED.get().clock.fetch_max(stored, SeqCst);
}

/// Notes that a segment is about to be written. Every transaction that writes segments after the server's start is at
/// least as new as the oldest one that has a process while the first of them writes: `oldest` returns that one. A
/// prepared transaction from before the start has no process, and never writes again.
pub fn note_writer(oldest: impl FnOnce() -> u64) {
    let first = &SHARED.get().first_xid;
    if first.load(SeqCst) == 0 {
        // If two processes do this at the same time, the second one changes nothing.
        let _ = first.compare_exchange(0, oldest(), SeqCst, SeqCst);
    }
}

/// Transactions below this one have written no segments since the server started or was promoted. None while no
/// transaction has.
pub fn first_xid() -> Option<u64> {
    Some(SHARED.get().first_xid.load(SeqCst)).filter(|xid| *xid != 0)
}

/// Makes this process the launcher.
pub fn register_launcher() {
    SHARED.get().launcher.store(my_proc_number(), SeqCst);
}

/// Notes that there is no launcher any more.
pub fn unregister_launcher() {
    SHARED.get().launcher.store(NOBODY, SeqCst);
}

/// Makes the launcher look for databases and ended workers.
pub fn wake_launcher() {
    wake(SHARED.get().launcher.load(SeqCst));
}

/// The entries of all databases, with their OIDs.
pub fn databases() -> impl Iterator<Item = (pg_sys::Oid, &'static Database)> {
    SHARED.get().databases.iter().filter_map(|db| match db.oid.load(SeqCst) {
        0 => None,
        oid => Some((pg_sys::Oid::from(oid), db)),
    })
}

/// The entry of a database, if it has one.
pub fn database(oid: pg_sys::Oid) -> Option<&'static Database> {
    databases().find(|(known, _)| *known == oid).map(|(_, db)| db)
}

/// The entry of the database that this backend is connected to, if it has one.
pub fn my_database() -> Option<&'static Database> {
    thread_local! {
        /// The entry that was found last, because a search goes through many entries.
        static KNOWN: Cell<Option<&'static Database>> = const { Cell::new(None) };
    }
    // SAFETY: set once, when the backend connects.
    let oid = unsafe { pg_sys::MyDatabaseId };
    let known = KNOWN.get().filter(|db| db.oid.load(SeqCst) == oid.to_u32());
    let found = known.or_else(|| database(oid));
    KNOWN.set(found);
    found
}

/// Whether all entries are in use.
pub fn is_full() -> bool {
    databases().count() == MAX_DATABASES
}

/// Reports that the database has the extension, so that the launcher starts a relay there. False if there is no free
/// entry. Allowed after a commit, because it takes no lock and allocates nothing.
pub fn want(oid: pg_sys::Oid) -> bool {
    loop {
        let Some(db) = claim(oid) else { return false };
        let state = db.state();
        // The entry is free again after a few instructions of the launcher.
        if state == State::Leaving {
            std::hint::spin_loop();
        } else if db.change_state(state, State::Wanted) && db.oid.load(SeqCst) == oid.to_u32() {
            return true;
        }
    }
}

/// Begins check number `n`, of a database.
pub fn begin_trial(n: usize, oid: u32) {
    let trial = &SHARED.get().trials[n];
    trial.found.store(UNKNOWN, SeqCst);
    trial.oid.store(oid, SeqCst);
}

/// Stores the result of the check of a database.
pub fn report_trial(oid: pg_sys::Oid, has_extension: bool) {
    for trial in SHARED.get().trials.iter().filter(|trial| trial.oid.load(SeqCst) == oid.to_u32()) {
        trial.found.store(if has_extension { FOUND } else { MISSING }, SeqCst);
    }
}

/// The result of check number `n`, if there is one.
pub fn end_trial(n: usize) -> Option<bool> {
    match SHARED.get().trials[n].found.load(SeqCst) {
        MISSING => Some(false),
        FOUND => Some(true),
        _ => None,
    }
}

/// The entry of a database, which is created if it has none. None if all [`MAX_DATABASES`] entries are in use.
pub fn claim(oid: pg_sys::Oid) -> Option<&'static Database> {
    loop {
        if let Some(db) = database(oid) {
            return Some(db);
        }
        let free = SHARED.get().databases.iter().find(|db| db.oid.load(SeqCst) == 0)?;
        // A process that loses this race looks again. If the winner has claimed it for the same database, it finds
        // that.
        let _ = free.oid.compare_exchange(0, oid.into(), SeqCst, SeqCst);
    }
}

impl Database {
    /// The partition of the log that takes new segments: below [`SLOTS`].
    pub fn current_slot(&self) -> usize {
        self.slot.load(SeqCst) % SLOTS
    }

    /// Makes a partition of the log the current one.
    pub fn set_current_slot(&self, slot: usize) {
        self.slot.store(slot, SeqCst);
    }

    /// Frees the entry of a database that does not have the extension, or no longer exists. False if its state is not
    /// `state` any more, because a relay is wanted again.
    pub fn release(&self, state: State) -> bool {
        if !self.change_state(state, State::Leaving) {
            return false;
        }
        self.slot.store(0, SeqCst);
        self.epoch_sealed.store(false, SeqCst);
        self.can_borrow.store(false, SeqCst);
        let counters = [&self.ticks, &self.events, &self.hints, &self.skipped, &self.ring_ticks, &self.ring_overflows];
        let places = [&self.floor, &self.tick, &self.commit_end, &self.tick_end];
        for number in counters.into_iter().chain(places).chain(&self.flushed_first) {
            number.store(0, SeqCst);
        }
        for time in self.used_at.iter().chain([&self.current_since]) {
            time.store(NEVER, SeqCst);
        }
        // The state comes last: another process may claim the entry as soon as it has no database, and then waits for
        // this state.
        self.oid.store(0, SeqCst);
        self.set_state(State::Absent);
        true
    }

    /// Whether the relay should run.
    pub fn state(&self) -> State {
        match self.state.load(SeqCst) {
            1 => State::Wanted,
            2 => State::Starting,
            3 => State::Running,
            5 => State::Leaving,
            _ => State::Absent,
        }
    }

    /// Sets the state, whatever it was.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u32, SeqCst);
    }

    /// Changes the state if it still is `from`. False if another process has changed it.
    pub fn change_state(&self, from: State, to: State) -> bool {
        self.state.compare_exchange(from as u32, to as u32, SeqCst, SeqCst).is_ok()
    }

    /// Makes this process the database's relay. False if there is one already.
    pub fn register_relay(&self) -> bool {
        // SAFETY: set once, when the process starts.
        let me = unsafe { pg_sys::MyProcPid };
        let alone = self.pid.compare_exchange(0, me, SeqCst, SeqCst).is_ok();
        if alone {
            self.relay.store(my_proc_number(), SeqCst);
        }
        alone
    }

    /// Notes that the database has no relay any more.
    pub fn unregister_relay(&self) {
        self.relay.store(NOBODY, SeqCst);
        self.pid.store(0, SeqCst);
    }

    /// Lets the relay return after a pause.
    pub fn end_pause(&self) {
        self.change_state(State::Running, State::Wanted);
        self.paused.store(false, SeqCst);
        wake_launcher();
    }

    /// Notifies the relay of a commit with events. Only the first of several commits wakes it: the flag stays set until
    /// the relay takes it.
    pub fn announce(&self) {
        if !self.pending.swap(true, SeqCst) {
            self.wake_relay();
        }
    }

    /// Clears the flag that [`Self::announce`] sets, and returns whether it was set.
    pub fn take_pending(&self) -> bool {
        self.pending.swap(false, SeqCst)
    }

    /// Makes the relay check whether the extension still exists and is still the same one.
    pub fn recheck(&self) {
        self.recheck.store(true, SeqCst);
        self.wake_relay();
    }

    /// Clears the flag that [`Self::recheck`] sets, and returns whether it was set.
    pub fn take_recheck(&self) -> bool {
        self.recheck.swap(false, SeqCst)
    }

    /// Wakes the relay although there may be no new events.
    pub fn wake_relay(&self) {
        wake(self.relay.load(SeqCst));
    }
}

/// Sets the latch of a process, if there is one. Allowed after a commit, because it takes no lock and allocates
/// nothing.
fn wake(proc_number: i32) {
    if proc_number != NOBODY {
        // SAFETY: a live process stored its own number, and removes it before it exits, so the number is in range. If
        // another process has the number by now, its latch is set for no reason, which every process must tolerate.
        unsafe { pg_sys::ProcSendSignal(proc_number) }
    }
}

/// The number of this process in Postgres's array of processes.
pub fn my_proc_number() -> i32 {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: `MyProc` is set while the process is attached to shared memory.
    unsafe {
        (*pg_sys::MyProc).pgprocno
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: reads a variable of this process.
    unsafe {
        pg_sys::MyProcNumber
    }
}
