//! The relay: the background worker that cuts ticks and announces them, one for each database with the extension.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;

use crate::catalog;
use crate::log::durability;
use crate::relay::pace::Pace;
use crate::relay::retention::Retention;
use crate::relay::tick::Ticker;
use crate::relay::{channel, worker, worker_settings};
use crate::shared::{self, Database, State};

/// How often the relay checks the notification queue, the partitions, and the log for commits that it was not woken for
/// (those of prepared transactions during recovery, for example).
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// The relay's process. The argument is the OID of its database.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn tidings_relay_main(database: pg_sys::Datum) {
    let oid = pg_sys::Oid::from(database.value() as u32);
    worker::attach_signal_handlers();
    let Some(db) = shared::database(oid) else { return };
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(oid), None);
    worker_settings::apply();
    worker_settings::become_bootstrap_superuser();
    if !db.register_relay() {
        return;
    }
    // Before the first ticks, which take long if there is a large backlog.
    db.level.store(durability::effective_level(), SeqCst);
    // SAFETY: the function has the signature that Postgres expects. Its argument points into shared memory, which
    // outlives the process.
    unsafe { pg_sys::before_shmem_exit(Some(leave), pg_sys::Datum::from(std::ptr::from_ref(db) as usize)) };

    let Some(extension) = BackgroundWorker::transaction(catalog::extension) else {
        db.change_state(State::Starting, State::Absent);
        return;
    };
    db.change_state(State::Starting, State::Running);
    let ticker = BackgroundWorker::transaction(|| Ticker::resume(db));
    let mut ticker = ticker.unwrap_or_else(|error| error!("the relay cannot read its tables: {error}"));
    // If this relay ends before it has done this, the next one does it.
    if !db.epoch_sealed.load(SeqCst) {
        ticker.seal_previous_epoch();
        db.epoch_sealed.store(true, SeqCst);
    }
    log!("tidings: relay started after tick {}", ticker.last);
    run(db, extension, &mut ticker);
    ticker.unflushed.flush();
    log!("tidings: relay ended");
}

fn run(db: &'static Database, extension: pg_sys::Oid, ticker: &mut Ticker) {
    let mut retention = Retention::new(db);
    let mut pace = Pace::new();
    let mut housekeeping = Instant::now();
    loop {
        if worker::reload_settings() {
            worker_settings::keep_durable();
            db.level.store(durability::effective_level(), SeqCst);
        }
        ticker.unflushed.flush_if_due();
        if db.paused.load(SeqCst) {
            BackgroundWorker::transaction(channel::ask_to_leave);
            return;
        }
        let due = housekeeping <= Instant::now();
        let woken = db.take_pending();
        if db.take_recheck() || due {
            if BackgroundWorker::transaction(catalog::extension) != Some(extension) {
                db.change_state(State::Running, State::Absent);
                return;
            }
            ticker.check_channel();
        }
        if due {
            ticker.check_version();
            ticker.check_queue();
            retention.tend(ticker);
            // SAFETY: called outside of a transaction, as the function requires.
            unsafe { pg_sys::pgstat_report_stat(false) };
            housekeeping = Instant::now() + HOUSEKEEPING;
        }
        let start = Instant::now();
        let wait = housekeeping.saturating_duration_since(start).min(ticker.wait());
        if due || woken || wait.is_zero() {
            let segments = if due { ticker.cut_from_log() } else { ticker.cut() };
            rest(pace.end(segments, start));
        } else {
            worker::wait(wait.min(ticker.unflushed.wait()));
        }
    }
}

/// Rests between two ticks, for a few milliseconds. Commits that set the latch meanwhile must not end the rest, because
/// it is what makes ticks fewer and larger under load.
#[allow(clippy::disallowed_methods)] // The one rest that the latch must not end.
fn rest(time: Duration) {
    std::thread::sleep(time);
}

#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: i32, db: pg_sys::Datum) {
    // SAFETY: `tidings_relay_main` registered this function with a pointer to the database's entry in shared memory.
    let db = unsafe { &*db.cast_mut_ptr::<Database>() };
    // Nobody reads the configuration for the readers until the next relay does.
    db.level.store(durability::UNKNOWN, SeqCst);
    db.unregister_relay();
    shared::wake_launcher();
}
