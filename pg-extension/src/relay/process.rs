//! The relay: the background worker, one for each database with the extension, that cuts ticks and notifies.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;

use crate::foreign::signal::{SignalHandlerForConfigReload, die};
use crate::relay::own_settings;
use crate::relay::pace::Pace;
use crate::relay::retention::Retention;
use crate::relay::tick::Ticker;
use crate::shared::{self, Database, State};

/// How often the relay looks at the notification queue and the partitions, and for commits that nobody told it of
/// (those that a prepared transaction makes during recovery, for example).
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// The relay's process. The argument is the database.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn tidings_relay_main(database: pg_sys::Datum) {
    let oid = pg_sys::Oid::from(database.value() as u32);
    attach_signal_handlers();
    let Some(db) = shared::database(oid) else { return };
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(oid), None);
    own_settings::take();
    own_settings::be_oneself();
    if !db.register_relay() {
        return;
    }
    // SAFETY: the function has the right signature; the argument is a place in shared memory, which outlives the
    // process.
    unsafe { pg_sys::before_shmem_exit(Some(leave), pg_sys::Datum::from(std::ptr::from_ref(db) as usize)) };

    let extension = BackgroundWorker::transaction(installed);
    if extension == pg_sys::InvalidOid {
        db.change_state(State::Starting, State::Absent);
        return;
    }
    db.change_state(State::Starting, State::Running);
    let ticker = BackgroundWorker::transaction(|| Ticker::resume(db));
    let mut ticker = ticker.unwrap_or_else(|error| error!("the relay cannot read its tables: {error}"));
    // A relay that ends before it is through with this leaves it to the next one.
    if !db.divided.load(SeqCst) {
        ticker.end_former_life();
        db.divided.store(true, SeqCst);
    }
    log!("tidings: relay started after tick {}", ticker.last);
    run(db, extension, ticker);
    log!("tidings: relay ended");
}

fn run(db: &'static Database, extension: pg_sys::Oid, mut ticker: Ticker) {
    let mut retention = Retention::new(db);
    let mut pace = Pace::new();
    let mut housekeeping = Instant::now();
    loop {
        reload_settings();
        if db.paused.load(SeqCst) {
            return;
        }
        let due = housekeeping <= Instant::now();
        let woken = db.take_pending();
        if db.take_recheck() || due {
            if BackgroundWorker::transaction(installed) != extension {
                db.change_state(State::Running, State::Absent);
                return;
            }
            ticker.check_channel();
        }
        if due {
            ticker.check_queue();
            retention.tend(&mut ticker);
            // SAFETY: outside of a transaction, as the function wants it.
            unsafe { pg_sys::pgstat_report_stat(false) };
            housekeeping = Instant::now() + HOUSEKEEPING;
        }
        if due || woken || ticker.is_behind() {
            pace.begin();
            let segments = ticker.cut();
            std::thread::sleep(pace.end(segments));
        } else {
            wait(housekeeping.saturating_duration_since(Instant::now()));
        }
    }
}

/// The extension's OID, or none. Called inside a transaction.
pub fn installed() -> pg_sys::Oid {
    // SAFETY: a look-up in the catalog, inside a transaction.
    unsafe { pg_sys::get_extension_oid(c"tidings".as_ptr(), true) }
}

/// Waits until someone sets the latch, at most `timeout`.
pub fn wait(timeout: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: the latch is this process's own.
    unsafe {
        // A millisecond more, so that what is due by the clock is due when this returns.
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, timeout.as_millis() as i64 + 1, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pg_sys::check_for_interrupts!();
}

/// SIGTERM ends the worker at the next point where that is safe, also while it waits for a lock; SIGHUP reads the
/// configuration again.
pub fn attach_signal_handlers() {
    // SAFETY: both handlers are Postgres's own, made for this.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        {
            pg_sys::pqsignal(pg_sys::SIGTERM as i32, Some(die));
            pg_sys::pqsignal(pg_sys::SIGHUP as i32, Some(SignalHandlerForConfigReload));
        }
        #[cfg(feature = "pg18")]
        {
            pg_sys::pqsignal_be(pg_sys::SIGTERM as i32, Some(die));
            pg_sys::pqsignal_be(pg_sys::SIGHUP as i32, Some(SignalHandlerForConfigReload));
        }
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Reads the configuration again if SIGHUP asked for it.
pub fn reload_settings() {
    // SAFETY: a flag of this process, set by its signal handler; the configuration is read outside of transactions.
    unsafe {
        if (&raw const pg_sys::ConfigReloadPending).read_volatile() != 0 {
            (&raw mut pg_sys::ConfigReloadPending).write_volatile(0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: i32, db: pg_sys::Datum) {
    // SAFETY: the argument that `tidings_relay_main` registered.
    let db = unsafe { &*db.cast_mut_ptr::<Database>() };
    db.unregister_relay();
    shared::wake_launcher();
}
