//! What the relay throws away, and when.
//!
//! Log and ticks have [`SLOTS`] partitions each, used in turn. When the current one has been used for a third of the
//! retention time, and the next one is empty, the next one becomes current. A partition is emptied by TRUNCATE when the
//! last tick that has segments in it is older than the retention time; a transaction that wrote to it and is still open
//! holds a lock on it, and then it waits. Nothing here ever waits for a lock.

use std::ffi::CString;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use pgrx::bgworkers::BackgroundWorker;
use pgrx::prelude::*;

use crate::settings;
use crate::shared::{self, Database, SLOTS};
use crate::tick::Ticker;

/// Keeps the partitions of one database.
pub struct Retention {
    db: &'static Database,
    /// When the current partition became the current one.
    since: u64,
}

impl Retention {
    /// Starts with what is there.
    pub fn new(db: &'static Database) -> Self {
        let since = BackgroundWorker::transaction(|| {
            // A partition becomes the current one with a tick of its own.
            let sql = "SELECT min(tick) FROM tidings.tick WHERE slot = $1";
            Spi::get_one_with_args::<i64>(sql, &[(db.slot.load(Relaxed) as i16).into()])
        });
        let since = since.unwrap_or_else(|error| error!("the relay cannot read its tables: {error}"));
        Self { db, since: since.map_or_else(shared::next_stamp, i64::unsigned_abs) }
    }

    /// Does what is due. Times are those of the ticks' clock, in microseconds.
    pub fn tend(&mut self, ticker: &mut Ticker) {
        let retention = settings::retention().as_micros() as u64;
        let now = shared::next_stamp();
        let current = self.db.slot.load(Relaxed) as usize % SLOTS;
        for slot in (0..SLOTS).filter(|slot| *slot != current) {
            let last_used = ticker.last_used[slot];
            if last_used != 0 && last_used + retention < now {
                if ticker.last <= last_used {
                    // The last tick is never thrown away: the next one starts from it.
                    ticker.cut_empty();
                }
                self.empty(ticker, slot, last_used);
            }
        }
        let next = (current + 1) % SLOTS;
        let due = now > self.since + retention / (SLOTS as u64 - 1);
        if due && ticker.last_used[current] != 0 && ticker.last_used[next] == 0 {
            self.db.slot.store(next as u32, SeqCst);
            self.since = now;
            ticker.cut_empty();
        }
    }

    /// Empties a partition whose segments are all in ticks up to `floor`, unless someone is using it.
    fn empty(&self, ticker: &mut Ticker, slot: usize, floor: u64) {
        let done = BackgroundWorker::transaction(std::panic::AssertUnwindSafe(|| {
            Spi::connect_mut(|client| {
                if !(try_lock(&format!("log_{slot}")) && try_lock(&format!("tick_{slot}")))
                    || ticker.has_unticked(client, slot)?
                {
                    return Ok::<_, spi::Error>(false);
                }
                // Readers look at this after they have read: whoever finds the partition empty finds this raised.
                self.db.floor.fetch_max(floor, SeqCst);
                client.update(format!("TRUNCATE tidings.log_{slot}, tidings.tick_{slot}").as_str(), None, &[])?;
                client.update("DELETE FROM tidings.tick WHERE tick <= $1", None, &[(floor as i64).into()])?;
                Ok(true)
            })
            .unwrap_or_else(|error| error!("cannot empty tidings.log_{slot}: {error}"))
        }));
        if done {
            ticker.last_used[slot] = 0;
        }
    }
}

/// Takes the lock that TRUNCATE needs if it is to be had at once.
fn try_lock(table: &str) -> bool {
    let Ok(name) = CString::new(table) else { return false };
    // SAFETY: inside a transaction, which releases the lock at its end.
    unsafe {
        let namespace = pg_sys::get_namespace_oid(c"tidings".as_ptr(), true);
        let relation = pg_sys::get_relname_relid(name.as_ptr(), namespace);
        relation != pg_sys::InvalidOid
            && pg_sys::ConditionalLockRelationOid(relation, pg_sys::AccessExclusiveLock as i32)
    }
}
