//! The launcher: one background worker for the cluster that keeps one relay running in every database that has the
//! extension.
//!
//! Whether a database has it can only be seen from inside, so a new database gets a relay on trial: that one leaves
//! again, with [`State::Absent`], if there is no extension. CREATE EXTENSION sets [`State::Wanted`] when it commits.

use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, DynamicBackgroundWorker};
use pgrx::prelude::*;

use crate::own_settings;
use crate::relay::{attach_signal_handlers, reload_settings, wait};
use crate::shared::{self, State};

/// How often the launcher looks for databases that nobody told it of (restored or renamed ones).
const RESCAN: Duration = Duration::from_secs(10);

/// How long a relay that failed is left alone.
const BACKOFF: Duration = Duration::from_secs(1);

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
    let mut relays: HashMap<u32, Relay> = HashMap::new();
    loop {
        reload_settings();
        look_for_databases();
        for (oid, db) in shared::databases() {
            let relay = relays.entry(oid.to_u32()).or_default();
            let paused = db.paused.load(SeqCst);
            let alive =
                relay.worker.as_ref().is_some_and(|w| w.pid().is_ok() || is_starting(w)) || db.pid.load(SeqCst) != 0;
            if alive {
                continue;
            }
            relay.worker = None;
            if matches!(db.state(), State::Running | State::Starting) {
                // It was sent away for a moment, or it failed, maybe one that an earlier launcher had started. Should that one
                // only be slow to start, the second one to come leaves again.
                db.set_state(State::Wanted);
                relay.not_before = (!paused).then(|| Instant::now() + BACKOFF);
            }
            let rested = relay.not_before.is_none_or(|time| time <= Instant::now());
            if db.state() == State::Wanted && rested && !paused {
                relay.start(oid, db);
            }
        }
        let soonest = relays.values().filter_map(|r| r.not_before).filter(|time| *time > Instant::now()).min();
        wait(soonest.map_or(RESCAN, |time| time.saturating_duration_since(Instant::now())).min(RESCAN));
    }
}

#[derive(Default)]
struct Relay {
    worker: Option<DynamicBackgroundWorker>,
    /// When it may be started again.
    not_before: Option<Instant>,
}

impl Relay {
    fn start(&mut self, oid: pg_sys::Oid, db: &shared::Database) {
        db.change_state(State::Wanted, State::Starting);
        // SAFETY: set once when the process starts.
        let me = unsafe { pg_sys::MyProcPid };
        let worker = BackgroundWorkerBuilder::new(&format!("tidings relay {oid}"))
            .set_type("tidings relay")
            .set_library("tidings")
            .set_function("tidings_relay_main")
            .enable_spi_access()
            .set_argument(Some(pg_sys::Datum::from(oid.to_u32())))
            .set_notify_pid(me)
            .load_dynamic();
        self.worker = worker.ok();
        if self.worker.is_none() {
            db.change_state(State::Starting, State::Wanted);
            self.not_before = Some(Instant::now() + RESCAN);
            warning!("tidings: no worker process is free for the relay of database {oid}; raise max_worker_processes");
        }
    }
}

fn is_starting(worker: &DynamicBackgroundWorker) -> bool {
    matches!(worker.pid(), Err(pgrx::bgworkers::BackgroundWorkerStatus::NotYetStarted))
}

/// Makes an entry for each database that is new and drops those of databases that are gone.
fn look_for_databases() {
    let present = BackgroundWorker::transaction(list_databases);
    for (oid, db) in shared::databases() {
        if !present.contains(&oid) && db.pid.load(SeqCst) == 0 {
            db.release();
        }
    }
    for oid in present {
        if shared::database(oid).is_some() {
            continue;
        }
        match shared::claim(oid) {
            // One that CREATE EXTENSION has claimed in the meantime is wanted already.
            Some(db) => db.set_state(State::Wanted),
            None => warning!("tidings: more than {} databases; {oid} gets no relay", shared::MAX_DATABASES),
        }
    }
}

/// The databases that a relay can be in: those that allow connections and are no templates.
fn list_databases() -> Vec<pg_sys::Oid> {
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
            if form.datallowconn && !form.datistemplate {
                found.push(form.oid);
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
