//! The launcher: one background worker for the cluster that keeps one relay running in every database that has the
//! extension.
//!
//! Only a process that is connected to a database can see whether it has the extension. CREATE EXTENSION reports it at
//! the commit. Other databases (after a start of the server, or if they were created from a template) are checked once
//! by a worker, a few at a time. After that, a database without the extension costs nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, DynamicBackgroundWorker};
use pgrx::prelude::*;

use crate::relay::worker::{self, wait};
use crate::relay::worker_settings;
use crate::shared::{self, Database, State, TRIALS};
use crate::{catalog, errors, preload, transaction};

/// How often the launcher looks for new databases.
const RESCAN: Duration = Duration::from_secs(10);

/// How long to wait before a failed worker is started again.
const BACKOFF: Duration = Duration::from_secs(1);

/// The number of failures in a row that may be bad luck. Each further failure doubles the wait.
const BAD_LUCK: u32 = 10;

/// The longest wait.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// A relay that has run this long has not failed at its start.
const STEADY: Duration = Duration::from_secs(60);

/// Registers the launcher; called from `_PG_init`.
pub fn init() {
    // While pg_upgrade runs, no other process may write or be connected.
    // SAFETY: reads a variable of this process.
    if unsafe { pg_sys::IsBinaryUpgrade } {
        return;
    }
    BackgroundWorkerBuilder::new("tidings launcher")
        .set_library("tidings")
        .set_function("tidings_launcher_main")
        .enable_spi_access()
        .set_restart_time(Some(BACKOFF))
        .load();
}

/// The launcher's process.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn tidings_launcher_main(_argument: pg_sys::Datum) {
    worker::attach_signal_handlers();
    // It is connected to no database, because it reads only shared catalogs.
    BackgroundWorker::connect_worker_to_spi(None, None);
    worker_settings::apply();
    // SAFETY: the function has the signature that Postgres expects.
    unsafe { pg_sys::before_shmem_exit(Some(leave), pg_sys::Datum::from(0)) };
    shared::register_launcher();
    // Relays of an earlier launcher keep running. Their entries in shared memory show them, and they wake this launcher
    // when they end.
    let mut launcher = Launcher::default();
    loop {
        worker::reload_settings();
        launcher.look_for_databases();
        let is_short_of_workers = launcher.tend_relays();
        launcher.tend_trials(is_short_of_workers);
        wait(launcher.rest());
    }
}

/// Checks whether a database has the extension, and reports it.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn tidings_trial_main(database: pg_sys::Datum) {
    let oid = pg_sys::Oid::from(database.value() as u32);
    worker::attach_signal_handlers();
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(oid), None);
    worker_settings::apply();
    shared::report_trial(oid, BackgroundWorker::transaction(catalog::extension).is_some());
}

/// `tidings.installed()`: called at the end of the install script. Reports this database to the launcher at the commit.
#[pg_extern]
fn installed() {
    preload::require();
    // SAFETY: set once, when the backend connects.
    if shared::claim(unsafe { pg_sys::MyDatabaseId }).is_none() {
        errors::raise(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("{} databases of this server already have the extension tidings", shared::MAX_DATABASES),
            "This is the maximum. Drop the extension where it is not needed.",
        );
    }
    transaction::installed_after_commit();
}

#[derive(Default)]
struct Launcher {
    /// By the OIDs of their databases.
    relays: HashMap<u32, Relay>,
    /// Databases that have been checked, or that have an entry in shared memory.
    known: HashSet<u32>,
    /// Databases to check.
    unknown: VecDeque<u32>,
    trials: [Option<(u32, DynamicBackgroundWorker)>; TRIALS],
    /// Databases whose check failed.
    failed: HashMap<u32, Failures>,
    /// Databases with the extension for which there is no free entry.
    unserved: HashSet<u32>,
}

#[derive(Default)]
struct Relay {
    worker: Option<DynamicBackgroundWorker>,
    started: Option<Instant>,
    failures: Failures,
    /// It has been logged that there is no worker process for it.
    is_warned: bool,
}

/// How often something has failed, and when to try it again.
#[derive(Default)]
struct Failures {
    count: u32,
    not_before: Option<Instant>,
}

impl Failures {
    fn add(&mut self) {
        self.count += 1;
        let wait = BACKOFF * 2u32.saturating_pow(self.count.saturating_sub(BAD_LUCK).min(16));
        self.not_before = Some(Instant::now() + wait.min(MAX_BACKOFF));
    }

    fn is_over(&self) -> bool {
        self.not_before.is_none_or(|time| time <= Instant::now())
    }
}

impl Launcher {
    /// Finds new databases, and forgets dropped ones.
    fn look_for_databases(&mut self) {
        let present: HashSet<u32> = BackgroundWorker::transaction(list_databases).into_iter().collect();
        for (oid, db) in shared::databases() {
            if !present.contains(&oid.to_u32()) && db.pid.load(SeqCst) == 0 {
                db.release(db.state());
            } else {
                self.known.insert(oid.to_u32());
                self.unserved.remove(&oid.to_u32());
            }
        }
        self.relays.retain(|oid, _| present.contains(oid));
        self.known.retain(|oid| present.contains(oid));
        self.failed.retain(|oid, _| present.contains(oid));
        self.unserved.retain(|oid| present.contains(oid) && !shared::want((*oid).into()));
        let trying: Vec<u32> = self.trials.iter().flatten().map(|(oid, _)| *oid).collect();
        let mut unknown: Vec<u32> =
            present.difference(&self.known).copied().filter(|oid| !trying.contains(oid)).collect();
        unknown.retain(|oid| self.failed.get(oid).is_none_or(Failures::is_over));
        unknown.sort_unstable();
        self.unknown = unknown.into();
    }

    /// Starts the wanted relays, and frees the entries of databases without the extension. True if no worker process
    /// was available.
    fn tend_relays(&mut self) -> bool {
        let mut is_short_of_workers = false;
        for (oid, db) in shared::databases() {
            let relay = self.relays.entry(oid.to_u32()).or_default();
            let paused = db.paused.load(SeqCst);
            if relay.worker.as_ref().is_some_and(is_alive) || db.pid.load(SeqCst) != 0 {
                continue;
            }
            relay.worker = None;
            match db.state() {
                State::Running | State::Starting => {
                    // It was paused, or it failed. If an earlier launcher started it and it is only slow to start, then
                    // the second one ends by itself.
                    db.set_state(State::Wanted);
                    relay.has_ended(paused);
                }
                State::Absent if !paused => {
                    db.release(State::Absent);
                    continue;
                }
                _ => {}
            }
            if db.state() == State::Wanted && relay.failures.is_over() && !paused {
                is_short_of_workers |= !relay.start(oid, db);
            }
        }
        is_short_of_workers
    }

    /// Collects the results of the checks and starts others, unless relays still need worker processes.
    fn tend_trials(&mut self, is_short_of_workers: bool) {
        for n in 0..TRIALS {
            if let Some((_, worker)) = &self.trials[n] {
                if is_alive(worker) {
                    continue;
                }
                if let Some((oid, _)) = self.trials[n].take() {
                    self.end_trial(n, oid);
                }
            }
            if !is_short_of_workers && let Some(oid) = self.unknown.pop_front() {
                shared::begin_trial(n, oid);
                self.trials[n] =
                    start(&format!("tidings trial {oid}"), "tidings_trial_main", oid).map(|worker| (oid, worker));
            }
        }
    }

    fn end_trial(&mut self, n: usize, oid: u32) {
        match shared::end_trial(n) {
            Some(has_extension) => {
                self.known.insert(oid);
                self.failed.remove(&oid);
                if has_extension && shared::want(oid.into()) {
                    // The next round of the main loop starts its relay.
                    shared::wake_launcher();
                } else if has_extension && self.unserved.insert(oid) {
                    warning!(
                        "tidings: more than {} databases have the extension; {oid} gets no relay",
                        shared::MAX_DATABASES
                    );
                }
            }
            None => self.failed.entry(oid).or_default().add(),
        }
    }

    /// How long there is nothing to do, unless a worker sets the latch because it has ended.
    fn rest(&self) -> Duration {
        let failures = self.relays.values().map(|relay| &relay.failures).chain(self.failed.values());
        let times = failures.filter_map(|failures| failures.not_before).filter(|time| *time > Instant::now());
        times.min().map_or(RESCAN, |time| time.saturating_duration_since(Instant::now())).min(RESCAN)
    }
}

impl Relay {
    fn has_ended(&mut self, was_paused: bool) {
        if was_paused {
            self.failures = Failures::default();
            return;
        }
        if self.started.take().is_none_or(|time| time.elapsed() > STEADY) {
            self.failures.count = 0;
        }
        self.failures.add();
    }

    /// False if no worker process is available.
    fn start(&mut self, oid: pg_sys::Oid, db: &Database) -> bool {
        db.change_state(State::Wanted, State::Starting);
        self.worker = start(&format!("tidings relay {oid}"), "tidings_relay_main", oid.to_u32());
        let started = self.worker.is_some();
        if started {
            self.started = Some(Instant::now());
        } else {
            db.change_state(State::Starting, State::Wanted);
            self.failures.not_before = Some(Instant::now() + BACKOFF);
            if !self.is_warned {
                warning!(
                    "tidings: no worker process is free for the relay of database {oid}; raise max_worker_processes"
                );
            }
        }
        self.is_warned = !started;
        started
    }
}

/// Starts a worker for a database. This process is notified when it ends. `None` if no worker process is available.
fn start(name: &str, function: &str, oid: u32) -> Option<DynamicBackgroundWorker> {
    // SAFETY: set once, when the process starts.
    let me = unsafe { pg_sys::MyProcPid };
    // The type of "tidings relay 5" is "tidings relay".
    let kind = name.rsplit_once(' ').map_or(name, |(kind, _)| kind);
    let worker = BackgroundWorkerBuilder::new(name)
        .set_type(kind)
        .set_library("tidings")
        .set_function(function)
        .enable_spi_access()
        .set_argument(Some(pg_sys::Datum::from(oid)))
        .set_notify_pid(me)
        .load_dynamic();
    worker.ok()
}

/// Whether the worker runs or is about to.
fn is_alive(worker: &DynamicBackgroundWorker) -> bool {
    worker.pid().is_ok() || matches!(worker.pid(), Err(pgrx::bgworkers::BackgroundWorkerStatus::NotYetStarted))
}

/// The `datconnlimit` of a database that an interrupted DROP DATABASE left behind (`DATCONNLIMIT_INVALID_DB`).
const INVALID: i32 = -2;

/// The databases that can have a relay: those that allow connections, are not templates, and are valid.
fn list_databases() -> Vec<u32> {
    // SAFETY: inside a transaction; a row of pg_database begins with this struct.
    unsafe {
        catalog::collect(pg_sys::DatabaseRelationId, |tuple| {
            let database = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            let can_have_relay = database.datallowconn && !database.datistemplate && database.datconnlimit != INVALID;
            can_have_relay.then_some(database.oid.to_u32())
        })
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: i32, _argument: pg_sys::Datum) {
    shared::unregister_launcher();
}
