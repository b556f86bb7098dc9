//! The launcher: one background worker for the cluster that keeps one relay running in every database that has the
//! extension.
//!
//! Only a connection to a database can show whether it has the extension. CREATE EXTENSION reports this when it
//! commits. For databases without such a report (after a start of the server, or made from a template) a worker checks
//! once, a few databases at a time. After that, a database without the extension costs nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, DynamicBackgroundWorker};
use pgrx::prelude::*;

use crate::relay::own_settings;
use crate::relay::process::{attach_signal_handlers, installed, reload_settings, wait};
use crate::shared::{self, Database, State, TRIALS};

/// How often the launcher looks for new databases.
const RESCAN: Duration = Duration::from_secs(10);

/// How long to wait before a failed worker is started again.
const BACKOFF: Duration = Duration::from_secs(1);

/// So many failures in a row may be bad luck; each further one doubles the wait.
const BAD_LUCK: u32 = 10;

/// The longest wait.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// A relay that has run this long did not fail at its start.
const STEADY: Duration = Duration::from_secs(60);

/// Registers the launcher; called from `_PG_init`.
pub fn init() {
    // SAFETY: a plain flag of the process. While pg_upgrade is at work, nobody else may write, nor be connected.
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
    attach_signal_handlers();
    // Connected to no database: the shared catalogs are all it reads.
    BackgroundWorker::connect_worker_to_spi(None, None);
    own_settings::take();
    // SAFETY: the function has the right signature.
    unsafe { pg_sys::before_shmem_exit(Some(leave), pg_sys::Datum::from(0)) };
    shared::register_launcher();
    // Relays of an earlier launcher are found by their entries: they keep running, and tell this one when they end.
    let mut launcher = Launcher::default();
    loop {
        reload_settings();
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
    attach_signal_handlers();
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(oid), None);
    own_settings::take();
    shared::tell_trial(oid, BackgroundWorker::transaction(installed) != pg_sys::InvalidOid);
}

#[derive(Default)]
struct Launcher {
    /// By the OIDs of their databases.
    relays: HashMap<u32, Relay>,
    /// Databases that have been checked, or that have a place.
    known: HashSet<u32>,
    /// Databases to check.
    unknown: VecDeque<u32>,
    trials: [Option<(u32, DynamicBackgroundWorker)>; TRIALS],
    /// Databases whose check failed.
    failed: HashMap<u32, Failures>,
    /// Databases with the extension for which there is no place.
    unserved: HashSet<u32>,
}

#[derive(Default)]
struct Relay {
    worker: Option<DynamicBackgroundWorker>,
    started: Option<Instant>,
    failures: Failures,
    /// There was no worker process for it, and this has been logged.
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

    /// Starts the wanted relays, and frees the places of databases without the extension. True if no worker process was
    /// available.
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
                    // It was paused, or it failed; an earlier launcher may have started it. If that relay is only slow
                    // to start, the second one ends itself.
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

    /// Collects the results of the checks and starts others, which may wait until all relays have started.
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
                    // The next round starts its relay.
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

    /// How long there is nothing to do, unless the latch is set: workers set it when they end.
    fn rest(&self) -> Duration {
        let failures = self.relays.values().map(|relay| &relay.failures).chain(self.failed.values());
        let times = failures.filter_map(|failures| failures.not_before).filter(|time| *time > Instant::now());
        times.min().map_or(RESCAN, |time| time.saturating_duration_since(Instant::now())).min(RESCAN)
    }
}

impl Relay {
    fn has_ended(&mut self, was_sent_away: bool) {
        if was_sent_away {
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

/// Starts a worker for a database; this process is notified when it ends. `None` if no worker process is available.
fn start(name: &str, function: &str, oid: u32) -> Option<DynamicBackgroundWorker> {
    // SAFETY: set once when the process starts.
    let me = unsafe { pg_sys::MyProcPid };
    // "tidings relay 5" has the type "tidings relay".
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

/// The `datconnlimit` of a database that an interrupted DROP DATABASE has left (`DATCONNLIMIT_INVALID_DB`).
const INVALID: i32 = -2;

/// The databases that can have a relay: those that allow connections, are not templates, and are valid.
fn list_databases() -> Vec<u32> {
    let mut found = Vec::new();
    // SAFETY: inside a transaction; a plain scan of a shared catalog, closed again with its lock.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let (no_snapshot, no_keys) = (std::ptr::null_mut(), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, no_snapshot, 0, no_keys);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            if form.datallowconn && !form.datistemplate && form.datconnlimit != INVALID {
                found.push(form.oid.to_u32());
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found
}

#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: i32, _argument: pg_sys::Datum) {
    shared::unregister_launcher();
}
