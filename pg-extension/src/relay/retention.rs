//! What the relay throws away, and when.
//!
//! Log and ticks have [`SLOTS`] partitions each, used in turn. When the current one has been used for a third of the
//! retention time, and the next one is empty, the next one becomes current. A partition is emptied by TRUNCATE when the
//! last tick that has segments in it is older than the retention time; a transaction that wrote to it and is still open
//! holds a lock on it, and then that waits. Nothing here waits for a lock longer than [`PATIENCE`].
//!
//! It uses elapsed time, not clock time: the numbers of ticks come from a clock that may jump, but never go back. After
//! a start of the server, the numbers are the only source for the age of existing ticks.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use std::time::Duration;

use nix::time::ClockId;
use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::log::lock;
use crate::log::write::PARTITIONS;
use crate::relay::tick::{TICKS, Ticker};
use crate::settings;
use crate::shared::{self, Database, NEVER, SLOTS};

/// How many milliseconds the relay stands in line behind the readers of an old partition. More than an ordinary reader
/// takes; longer than that neither those behind nor the events that are not announced meanwhile should have to wait.
const PATIENCE: i32 = 500;

/// A clock that was adjusted by so many microseconds between two checks has jumped.
const JUMP: i64 = 10_000_000;

/// Elapsed microseconds of this machine, which no clock adjustment changes.
pub fn elapsed() -> i64 {
    ClockId::CLOCK_MONOTONIC.now().map_or(0, |time| Duration::from(time).as_micros() as i64)
}

/// Converts a tick's number into the elapsed time when it was cut: the best guess after a start of the server. A number
/// in the future counts as now.
pub fn when(tick: u64) -> i64 {
    elapsed() - (shared::clock() - tick as i64).max(0)
}

/// Keeps the partitions of one database.
pub struct Retention {
    db: &'static Database,
    /// The last readings of the server's clock and of elapsed time.
    clocks: (i64, i64),
    /// For each partition, which transactions were in the way when it was last to be emptied.
    in_the_way: [Vec<String>; SLOTS],
}

impl Retention {
    /// Starts with what is there.
    pub fn new(db: &'static Database) -> Self {
        let slot = db.slot.load(Relaxed);
        if db.current_since.load(Relaxed) == NEVER {
            let since = BackgroundWorker::transaction(|| {
                // A partition becomes current with a separate tick.
                let sql = "SELECT pg_catalog.min(tick) FROM tidings.tick WHERE slot OPERATOR(pg_catalog.=) $1";
                Spi::get_one_with_args::<i64>(sql, &[(slot as i16).into()])
            });
            let since = since.unwrap_or_else(|error| error!("the relay cannot read its tables: {error}"));
            db.current_since.store(since.map_or_else(elapsed, |tick| when(tick.unsigned_abs())), Relaxed);
        }
        Self { db, clocks: (shared::clock(), elapsed()), in_the_way: Default::default() }
    }

    /// Does the work that is due.
    pub fn tend(&mut self, ticker: &mut Ticker) {
        self.look_at_clocks();
        let retention = settings::retention().as_micros() as i64;
        let now = elapsed();
        let current = self.db.slot.load(Relaxed) as usize % SLOTS;
        for slot in (0..SLOTS).filter(|slot| *slot != current) {
            let last_used = ticker.last_used[slot];
            if last_used != 0 && self.db.used_at[slot].load(Relaxed) < now - retention {
                if ticker.last <= last_used {
                    // The last tick is never thrown away: the next one starts from it.
                    ticker.cut_empty();
                }
                self.empty(ticker, slot, last_used);
            }
        }
        let next = (current + 1) % SLOTS;
        let due = self.db.current_since.load(Relaxed) < now - retention / (SLOTS as i64 - 1);
        if due && ticker.last_used[current] != 0 && ticker.last_used[next] == 0 {
            self.db.slot.store(next as u32, SeqCst);
            self.db.current_since.store(now, Relaxed);
            ticker.cut_empty();
        }
    }

    /// Logs, once, if the server's clock has jumped since the last check.
    fn look_at_clocks(&mut self) {
        let (before, clocks) = (self.clocks, (shared::clock(), elapsed()));
        self.clocks = clocks;
        let jump = (clocks.0 - before.0) - (clocks.1 - before.1);
        if jump.abs() > JUMP {
            let (seconds, to) = (jump.abs() / 1_000_000, if jump > 0 { "forward" } else { "back" });
            log!("tidings: the server's clock has jumped {to} by {seconds} s");
        }
    }

    /// Empties a partition whose segments are all in ticks up to `floor`, unless someone is using it.
    fn empty(&mut self, ticker: &mut Ticker, slot: usize, floor: u64) {
        let done = BackgroundWorker::transaction(std::panic::AssertUnwindSafe(|| {
            Spi::connect_mut(|client| {
                if !self.lock(client, slot)? || ticker.has_unticked(slot) {
                    return Ok::<_, spi::Error>(false);
                }
                // Readers look at this after they have read: whoever finds the partition empty finds this raised.
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

    /// Takes the locks that TRUNCATE needs.
    ///
    /// Short readers may follow each other so closely that the locks are never to be had at once. So once nobody is in
    /// the way who was so the last time, it is worth standing in line: all of them end soon. Only for the ticks, and
    /// while nothing else is held, so that nobody can wait in a circle: every reader of the log has come by there and
    /// is gone once the lock is had.
    fn lock(&mut self, client: &SpiClient<'_>, slot: usize) -> spi::Result<bool> {
        let (Some(ticks), Some(log)) = (lock::table(TICKS[slot]), lock::table(PARTITIONS[slot])) else {
            return Ok(false);
        };
        let before = std::mem::take(&mut self.in_the_way[slot]);
        if lock::at_once(ticks) {
            return Ok(lock::at_once(log));
        }
        let sql = "SELECT DISTINCT l.virtualtransaction FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d
            ON d.oid OPERATOR(pg_catalog.=) l.database
            WHERE (l.relation OPERATOR(pg_catalog.=) $1 OR l.relation OPERATOR(pg_catalog.=) $2)
              AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()";
        let rows = client.select(sql, None, &[ticks.into(), log.into()])?;
        self.in_the_way[slot] = rows.filter_map(|row| row.get(1).transpose()).collect::<spi::Result<_>>()?;
        let others = !before.is_empty() && !self.in_the_way[slot].iter().any(|holder| before.contains(holder));
        Ok(others && lock::within(PATIENCE, ticks) && lock::at_once(log))
    }
}
