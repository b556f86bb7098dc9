//! What the relay removes, and when.
//!
//! The log and the ticks have [`SLOTS`] partitions each, which are used in turn. When the current one has been used for
//! a third of the retention time and the next one is empty, the next one becomes current. A partition is emptied by
//! TRUNCATE when the last tick that has segments in it is older than the retention time. A transaction that wrote to it
//! and is still open holds a lock on it, and then emptying it is tried again later. Nothing here waits for a lock
//! longer than [`PATIENCE`].
//!
//! This uses elapsed time, not clock time: the numbers of ticks come from a clock that may jump ahead. After a start of
//! the server, the numbers are the only source for the age of existing ticks.

use std::sync::atomic::Ordering::SeqCst;

use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::log::layout::{LOG_PARTITIONS, TICK_PARTITIONS};
use crate::log::lock;
use crate::relay::elapsed;
use crate::relay::tick::Ticker;
use crate::shared::{self, Database, NEVER, SLOTS};
use crate::{catalog, settings};

/// How many milliseconds the relay waits for the readers of an old partition. That is longer than an ordinary reader
/// takes. New readers, and events that are not announced meanwhile, should not have to wait longer.
const PATIENCE: i32 = 500;

/// An adjustment of the clock by more than this between two checks, in microseconds, is logged as a jump.
const JUMP: i64 = 10_000_000;

/// The state of one database's partitions.
pub struct Retention {
    db: &'static Database,
    /// The last readings of the server's clock and of elapsed time.
    clocks: (i64, i64),
    /// For each partition, the transactions that blocked the last attempt to empty it.
    blockers: [Vec<String>; SLOTS],
}

impl Retention {
    /// Starts with the existing partitions.
    pub fn new(db: &'static Database) -> Self {
        let slot = db.current_slot();
        if db.current_since.load(SeqCst) == NEVER {
            let since = BackgroundWorker::transaction(|| {
                // When a partition becomes current, its first tick is cut.
                let sql = "SELECT pg_catalog.min(tick) FROM tidings.tick WHERE slot OPERATOR(pg_catalog.=) $1";
                Spi::get_one_with_args::<i64>(sql, &[(slot as i16).into()])
            });
            let since = since.unwrap_or_else(|error| error!("the relay cannot read its tables: {error}"));
            db.current_since
                .store(since.map_or_else(elapsed::now, |tick| elapsed::of_tick(tick.unsigned_abs())), SeqCst);
        }
        Self { db, clocks: (shared::clock(), elapsed::now()), blockers: Default::default() }
    }

    /// Does the work that is due.
    pub fn tend(&mut self, ticker: &mut Ticker) {
        self.look_at_clocks();
        let retention = settings::retention().as_micros() as i64;
        let now = elapsed::now();
        let current = self.db.current_slot();
        for slot in (0..SLOTS).filter(|slot| *slot != current) {
            let last_used = ticker.last_used[slot];
            if last_used != 0 && self.db.used_at[slot].load(SeqCst) < now - retention {
                if ticker.last <= last_used {
                    // The last tick is never removed: the next one continues from it.
                    ticker.cut_empty();
                }
                self.empty(ticker, slot, last_used);
            }
        }
        let next = (current + 1) % SLOTS;
        let due = self.db.current_since.load(SeqCst) < now - retention / (SLOTS as i64 - 1);
        if due && ticker.last_used[current] != 0 && ticker.last_used[next] == 0 {
            self.db.set_current_slot(next);
            self.db.current_since.store(now, SeqCst);
            ticker.cut_empty();
        }
    }

    /// Logs, once, if the server's clock has jumped since the last check.
    fn look_at_clocks(&mut self) {
        let (before, clocks) = (self.clocks, (shared::clock(), elapsed::now()));
        self.clocks = clocks;
        let jump = (clocks.0 - before.0) - (clocks.1 - before.1);
        if jump.abs() > JUMP {
            let (seconds, to) = (jump.abs() / 1_000_000, if jump > 0 { "forward" } else { "back" });
            log!("tidings: the server's clock has jumped {to} by {seconds} s");
        }
    }

    /// Empties a partition whose segments are all in ticks up to `floor`, unless a session is using it.
    fn empty(&mut self, ticker: &mut Ticker, slot: usize, floor: u64) {
        let done = BackgroundWorker::transaction(std::panic::AssertUnwindSafe(|| {
            Spi::connect_mut(|client| {
                if !self.lock(client, slot)? || ticker.has_unticked(slot) {
                    return Ok::<_, spi::Error>(false);
                }
                // Readers check the floor after they have read, so a reader that found the partition empty sees it.
                self.db.floor.fetch_max(floor, SeqCst);
                client.update(format!("TRUNCATE tidings.log_{slot}, tidings.tick_{slot}").as_str(), None, &[])?;
                client.update(
                    "DELETE FROM tidings.tick WHERE tick OPERATOR(pg_catalog.<=) $1",
                    None,
                    &[(floor as i64).into()],
                )?;
                Ok(true)
            })
            .unwrap_or_else(|error| error!("cannot empty tidings.log_{slot}: {error}"))
        }));
        if done {
            ticker.last_used[slot] = 0;
        }
    }

    /// Takes the locks that TRUNCATE needs. False if that is not possible now.
    ///
    /// Short readers may follow each other so closely that the locks are never free. So if all transactions that
    /// blocked the last attempt have ended, the present ones will end soon too, and it is worth waiting for them. This
    /// waits only for the ticks, and holds no other lock meanwhile, so that it can't deadlock: every reader of the log
    /// has locked the ticks before, and has ended once their lock is granted.
    fn lock(&mut self, client: &SpiClient<'_>, slot: usize) -> spi::Result<bool> {
        let (Some(ticks), Some(log)) = (catalog::table(TICK_PARTITIONS[slot]), catalog::table(LOG_PARTITIONS[slot]))
        else {
            return Ok(false);
        };
        let before = std::mem::take(&mut self.blockers[slot]);
        if lock::at_once(ticks) {
            return Ok(lock::at_once(log));
        }
        let sql = "SELECT DISTINCT l.virtualtransaction FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d
            ON d.oid OPERATOR(pg_catalog.=) l.database
            WHERE (l.relation OPERATOR(pg_catalog.=) $1 OR l.relation OPERATOR(pg_catalog.=) $2)
              AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()";
        let rows = client.select(sql, None, &[ticks.into(), log.into()])?;
        self.blockers[slot] = rows.filter_map(|row| row.get(1).transpose()).collect::<spi::Result<_>>()?;
        let others = !before.is_empty() && !self.blockers[slot].iter().any(|holder| before.contains(holder));
        Ok(others && lock::within(PATIENCE, ticks) && lock::at_once(log))
    }
}
