//! What the processes share: the clock, and for each database who its relay is and whether it is wanted.
//!
//! Everything here is an atomic in shared memory, so a committing backend may touch it where it may not fail.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{SystemTime, UNIX_EPOCH};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, pg_shmem_init};

/// How many databases of one cluster can have the extension. Each uses a worker process, so `max_worker_processes` is
/// the practical limit, and about two hundred bytes here.
pub const MAX_DATABASES: usize = 1024;

/// How many databases the launcher checks at the same time, because worker processes are few.
pub const TRIALS: usize = 2;

/// The partitions of the log, see [`crate::relay::retention`].
pub const SLOTS: usize = 4;

/// No process.
const NOBODY: i32 = -1;

// SAFETY: no other library uses this name.
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

/// A check of a database, and its result.
struct Trial {
    oid: AtomicU32,
    found: AtomicU32,
}

/// The result of a [`Trial`]: none yet, no extension, the extension.
const UNKNOWN: u32 = 0;
/// See [`UNKNOWN`].
const MISSING: u32 = 1;
/// See [`UNKNOWN`].
const FOUND: u32 = 2;

/// An unknown time, see [`Database::used_at`].
pub const NEVER: i64 = i64::MIN;

/// A database that has the extension.
pub struct Database {
    oid: AtomicU32,
    state: AtomicU32,
    /// The relay's place in Postgres's array of processes: who to wake.
    relay: AtomicI32,
    /// The relay's process id, 0 while there is none.
    pub pid: AtomicI32,
    /// Something was committed that the relay has not looked at.
    pending: AtomicBool,
    /// The extension was dropped or created.
    recheck: AtomicBool,
    /// The relay is to leave the database for a moment.
    pub paused: AtomicBool,
    /// The partition of the log that takes new segments.
    pub slot: AtomicU32,
    /// Positions below this one can no longer be served.
    pub floor: AtomicU64,
    /// The last tick.
    pub tick: AtomicU64,
    /// For each partition, when the last tick with segments in it was cut; for the current one, also when it became
    /// current. In microseconds of elapsed time (see [`crate::relay::retention`]), or [`NEVER`].
    pub used_at: [AtomicI64; SLOTS],
    /// See `used_at`.
    pub current_since: AtomicI64,
    /// What was committed before the server started is cut off from what came later.
    pub divided: AtomicBool,
    /// Counters since the server started: ticks, events that travelled inside of their notifications, ticks announced
    /// by a hint, changes that made no valid topic.
    pub ticks: AtomicU64,
    /// See `ticks`.
    pub events: AtomicU64,
    /// See `ticks`.
    pub hints: AtomicU64,
    /// See `ticks`.
    pub skipped: AtomicU64,
}

/// Whether a database's relay should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// The extension is, or may be, there: the launcher starts a relay.
    Wanted = 1,
    /// A relay was started and is finding out.
    Starting = 2,
    /// The relay runs.
    Running = 3,
    /// The relay found no extension: the launcher frees the place.
    Absent = 4,
    /// The launcher is freeing the place.
    Leaving = 5,
}

// SAFETY: nothing but atomics, at the same address in all processes, none of them a pointer.
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
                slot: AtomicU32::new(0),
                floor: AtomicU64::new(0),
                tick: AtomicU64::new(0),
                used_at: std::array::from_fn(|_| AtomicI64::new(NEVER)),
                current_since: AtomicI64::new(NEVER),
                divided: AtomicBool::new(false),
                ticks: AtomicU64::new(0),
                events: AtomicU64::new(0),
                hints: AtomicU64::new(0),
                skipped: AtomicU64::new(0),
            }),
        }
    }
}

/// Asks Postgres for the memory; called from `_PG_init`.
pub fn init() {
    pg_shmem_init!(SHARED);
}

/// The server's clock, which may jump: microseconds since the Unix epoch.
pub fn clock() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

/// The next reading of the clock that stamps segments and numbers ticks: microseconds since the Unix epoch, but always
/// above the one before (a hybrid logical clock; Kulkarni et al., 2014).
pub fn next_stamp() -> u64 {
    let now = clock().unsigned_abs();
    let next = |last: u64| now.max(last + 1);
    let clock = &SHARED.get().clock;
    next(clock.fetch_update(SeqCst, SeqCst, |last| Some(next(last))).unwrap_or_default())
}

/// Keeps the clock above a value that is already stored.
pub fn raise_clock(stored: u64) {
    SHARED.get().clock.fetch_max(stored, SeqCst);
}

/// A segment is about to be written. All transactions that have written any since the server started are no older than
/// the oldest that runs while the first one writes: `oldest` gives that. A prepared one from before does not count, it
/// writes no more.
pub fn note_writer(oldest: impl FnOnce() -> u64) {
    let first = &SHARED.get().first_xid;
    if first.load(SeqCst) == 0 {
        // Whoever comes second changes nothing.
        let _ = first.compare_exchange(0, oldest(), SeqCst, SeqCst);
    }
}

/// Transactions from this on may have written segments since the server started (or was promoted), those below have
/// not; None while nobody has.
pub fn first_xid() -> Option<u64> {
    Some(SHARED.get().first_xid.load(SeqCst)).filter(|xid| *xid != 0)
}

/// Tells where the launcher is.
pub fn register_launcher() {
    SHARED.get().launcher.store(my_proc_number(), SeqCst);
}

/// The launcher leaves.
pub fn unregister_launcher() {
    SHARED.get().launcher.store(NOBODY, SeqCst);
}

/// Makes the launcher look around.
pub fn wake_launcher() {
    wake(SHARED.get().launcher.load(SeqCst));
}

/// All databases that are known, with their OIDs.
pub fn databases() -> impl Iterator<Item = (pg_sys::Oid, &'static Database)> {
    SHARED.get().databases.iter().filter_map(|db| match db.oid.load(SeqCst) {
        0 => None,
        oid => Some((pg_sys::Oid::from(oid), db)),
    })
}

/// The entry of one database, if it is known.
pub fn database(oid: pg_sys::Oid) -> Option<&'static Database> {
    databases().find(|(known, _)| *known == oid).map(|(_, db)| db)
}

/// The entry of the database that this backend is connected to, if it is known.
pub fn my_database() -> Option<&'static Database> {
    thread_local! {
        /// The place that was found last, because there are many places.
        static KNOWN: Cell<Option<&'static Database>> = const { Cell::new(None) };
    }
    // SAFETY: set once when the backend connects.
    let oid = unsafe { pg_sys::MyDatabaseId };
    let known = KNOWN.get().filter(|db| db.oid.load(SeqCst) == oid.to_u32());
    let found = known.or_else(|| database(oid));
    KNOWN.set(found);
    found
}

/// Whether no more databases can be served.
pub fn is_full() -> bool {
    databases().count() == MAX_DATABASES
}

/// Reports that the database has the extension, so that the launcher starts a relay there. False if there is no free
/// place. Allowed after commit: it takes no lock and allocates nothing.
pub fn want(oid: pg_sys::Oid) -> bool {
    loop {
        let Some(db) = claim(oid) else { return false };
        let state = db.state();
        // For the few instructions until it is freed.
        if state == State::Leaving {
            std::hint::spin_loop();
        } else if db.change_state(state, State::Wanted) && db.oid.load(SeqCst) == oid.to_u32() {
            return true;
        }
    }
}

/// Begins a check of a database.
pub fn begin_trial(n: usize, oid: u32) {
    let trial = &SHARED.get().trials[n];
    trial.found.store(UNKNOWN, SeqCst);
    trial.oid.store(oid, SeqCst);
}

/// Stores the result of a check.
pub fn tell_trial(oid: pg_sys::Oid, has_extension: bool) {
    for trial in SHARED.get().trials.iter().filter(|trial| trial.oid.load(SeqCst) == oid.to_u32()) {
        trial.found.store(if has_extension { FOUND } else { MISSING }, SeqCst);
    }
}

/// The result, if there is one.
pub fn end_trial(n: usize) -> Option<bool> {
    match SHARED.get().trials[n].found.load(SeqCst) {
        MISSING => Some(false),
        FOUND => Some(true),
        _ => None,
    }
}

/// The entry of one database, made if need be; None if [`MAX_DATABASES`] are known already.
pub fn claim(oid: pg_sys::Oid) -> Option<&'static Database> {
    loop {
        if let Some(db) = database(oid) {
            return Some(db);
        }
        let free = SHARED.get().databases.iter().find(|db| db.oid.load(SeqCst) == 0)?;
        // Whoever loses the race looks again, and finds the winner's entry if it is for the same database.
        let _ = free.oid.compare_exchange(0, oid.into(), SeqCst, SeqCst);
    }
}

impl Database {
    /// Frees the place of a database that has no extension or is gone; false if a relay is wanted there again.
    pub fn release(&self, state: State) -> bool {
        if !self.change_state(state, State::Leaving) {
            return false;
        }
        self.slot.store(0, SeqCst);
        self.divided.store(false, SeqCst);
        for number in [&self.floor, &self.tick, &self.ticks, &self.events, &self.hints, &self.skipped] {
            number.store(0, SeqCst);
        }
        for time in self.used_at.iter().chain([&self.current_since]) {
            time.store(NEVER, SeqCst);
        }
        // The order matters: a process that claims the place finds it in this state.
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

    /// Sets the state unless another process has changed it since; says whether it did.
    pub fn change_state(&self, from: State, to: State) -> bool {
        self.state.compare_exchange(from as u32, to as u32, SeqCst, SeqCst).is_ok()
    }

    /// This process is the relay from now on, unless there is one.
    pub fn register_relay(&self) -> bool {
        // SAFETY: set once when the process starts.
        let me = unsafe { pg_sys::MyProcPid };
        let alone = self.pid.compare_exchange(0, me, SeqCst, SeqCst).is_ok();
        if alone {
            self.relay.store(my_proc_number(), SeqCst);
        }
        alone
    }

    /// There is no relay from now on.
    pub fn unregister_relay(&self) {
        self.relay.store(NOBODY, SeqCst);
        self.pid.store(0, SeqCst);
    }

    /// The relay may come back.
    pub fn end_pause(&self) {
        self.change_state(State::Running, State::Wanted);
        self.paused.store(false, SeqCst);
        wake_launcher();
    }

    /// Tells the relay that something was committed. It is woken by the first of many only: until it has looked, the
    /// flag stays up.
    pub fn announce(&self) {
        if !self.pending.swap(true, SeqCst) {
            self.wake_relay();
        }
    }

    /// Takes the flag down; says whether it was up.
    pub fn take_pending(&self) -> bool {
        self.pending.swap(false, SeqCst)
    }

    /// Tells the relay to look whether the extension is still there, and still the same.
    pub fn recheck(&self) {
        self.recheck.store(true, SeqCst);
        self.wake_relay();
    }

    /// Takes that flag down; says whether it was up.
    pub fn take_recheck(&self) -> bool {
        self.recheck.swap(false, SeqCst)
    }

    /// Wakes the relay without claiming that there is something to read.
    pub fn wake_relay(&self) {
        wake(self.relay.load(SeqCst));
    }
}

/// Sets the latch of a process, if there is one. Allowed after commit: it takes no lock and allocates nothing.
fn wake(proc_number: i32) {
    if proc_number != NOBODY {
        // SAFETY: the number was stored by a live process about itself and is taken back before it exits, so it is in
        // range; should the place have a new owner, that one sees a latch set for nothing, which all must bear.
        unsafe { pg_sys::ProcSendSignal(proc_number) }
    }
}

fn my_proc_number() -> i32 {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: MyProc is set as long as the process is attached to shared memory.
    unsafe {
        (*pg_sys::MyProc).pgprocno
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: a plain variable of this process.
    unsafe {
        pg_sys::MyProcNumber
    }
}
