//! One cut through the log: what has become visible since the last one, in order, as one tick (the idea of PgQ).

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::Ordering::Relaxed;

use pgrx::bgworkers::BackgroundWorker;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient};
use tidings_wire::{Announcement, segment};

use crate::foreign::Async_Notify;
use crate::settings;
use crate::shared::{self, Database, SLOTS};

/// Segments read for one tick at the most; a larger tick is announced by a hint and not read at all.
const MAX_SEGMENTS: usize = 500;

/// Above this share of the notification queue only hints are sent, and above [`QUEUE_FULL`] nothing: someone listens
/// but does not read, and a full queue would fail other users' transactions.
const QUEUE_CROWDED: f64 = 0.1;

/// See [`QUEUE_CROWDED`].
const QUEUE_FULL: f64 = 0.8;

/// Which transactions a snapshot sees, as far as a tick needs it.
#[derive(Clone, Debug)]
struct Snapshot {
    /// As `pg_snapshot` writes it.
    text: String,
    /// Transactions from this on had not started.
    xmax: u64,
    /// Those that were running, as `xid8[]` writes it.
    running: String,
}

impl Snapshot {
    fn parse(text: String) -> Self {
        let mut fields = text.splitn(3, ':').skip(1);
        let xmax = fields.next().and_then(|xmax| xmax.parse().ok());
        let xmax = xmax.unwrap_or_else(|| error!("not a snapshot: {text}"));
        let running = format!("{{{}}}", fields.next().unwrap_or_default());
        Self { text, xmax, running }
    }

    /// The same as if transactions from `limit` on had not started.
    fn below(self, limit: u64) -> Self {
        if limit >= self.xmax {
            return self;
        }
        let running = self.running.trim_matches(['{', '}']).split(',');
        let running: Vec<_> = running.filter(|xid| xid.parse().is_ok_and(|xid: u64| xid < limit)).collect();
        let xmin = running.first().map_or_else(|| limit.to_string(), ToString::to_string);
        Self::parse(format!("{xmin}:{limit}:{}", running.join(",")))
    }
}

/// Cuts the ticks of one database, one after the other.
pub struct Ticker {
    db: &'static Database,
    channel: CString,
    /// The number of the last tick.
    pub last: u64,
    /// Everything that this snapshot sees is in a tick.
    seen: Snapshot,
    /// For each partition of the log the last tick that has segments in it; 0 if it is empty.
    pub last_used: [u64; SLOTS],
    /// How full the notification queue is, from 0 to 1.
    queue: f64,
    /// The last tick was not announced.
    unannounced: bool,
    plans: Option<Plans>,
}

struct Plans {
    snapshot: OwnedPreparedStatement,
    read: OwnedPreparedStatement,
    insert: OwnedPreparedStatement,
}

/// A segment as the relay reads it; `data` is left out if it is large.
struct Segment {
    xid: u64,
    stamp: i64,
    ordinal: i64,
    data: Option<Vec<u8>>,
}

impl Ticker {
    /// Carries on where the last tick ended. Called inside a transaction.
    pub fn resume(db: &'static Database) -> spi::Result<Self> {
        let channel = Spi::get_one::<String>("SELECT tidings.channel()")?.unwrap_or_default();
        let channel = CString::new(channel).unwrap_or_default();
        let last = Spi::get_three::<i64, String, i16>(
            "SELECT tick, until::text, slot FROM tidings.tick ORDER BY tick DESC LIMIT 1",
        )?;
        let (Some(last), Some(until), Some(slot)) = last else {
            error!("tidings.tick is empty: drop and create the extension");
        };
        let seen = Snapshot::parse(until);
        let newest = Spi::connect(|client| {
            let sql = "SELECT max(stamp) FROM tidings.log WHERE xid >= $1 OR xid = ANY ($2::xid8[])";
            client.select(sql, Some(1), &seen.arguments())?.first().get_one::<i64>()
        })?;
        let last = last.unsigned_abs();
        shared::raise_clock(last.max(newest.unwrap_or(0).unsigned_abs()));
        db.slot.store(slot.unsigned_abs().into(), Relaxed);
        db.tick.store(last, Relaxed);
        let mut last_used = [0; SLOTS];
        for (slot, last_used) in last_used.iter_mut().enumerate() {
            let sql = "SELECT max(tick) FROM tidings.tick WHERE used & (1 << $1) <> 0";
            *last_used = Spi::get_one_with_args::<i64>(sql, &[(slot as i32).into()])?.unwrap_or(0).unsigned_abs();
        }
        Ok(Self { db, channel, last, seen, last_used, queue: 0.0, unannounced: true, plans: None })
    }

    /// Cuts a tick if there is something for it; says how many segments it has.
    pub fn cut(&mut self) -> usize {
        self.cut_below(|| u64::MAX)
    }

    /// Cuts what was committed before the server started, and behind it a tick without events.
    ///
    /// A crash or a failover may have lost transactions, whose numbers are then given to others; a position's snapshot that saw the
    /// lost ones must not hide those. Its meaning ends with the first tick cut after it: that is this one, behind all that
    /// it can have seen, and in front of all that it cannot.
    pub fn end_former_life(&mut self) {
        self.cut_below(|| shared::first_xid().unwrap_or(u64::MAX));
        self.cut_empty();
    }

    /// Cuts a tick of the transactions below a limit, which is asked for when the tick's snapshot is there.
    fn cut_below(&mut self, limit: impl FnOnce() -> u64) -> usize {
        // The number comes before the snapshot: a tick numbered above some time sees all that was committed by then.
        let tick = shared::next_stamp();
        self.in_transaction(|ticker, client| {
            let snapshot = {
                let plan = &ticker.plans(client)?.snapshot;
                client.select(plan, Some(1), &[])?.first().get_one::<String>()?.unwrap_or_default()
            };
            let limit = limit();
            let snapshot = Snapshot::parse(snapshot).below(limit);
            let mut segments = ticker.read(client, tick)?;
            if segments.len() <= MAX_SEGMENTS {
                segments.retain(|segment| segment.xid < limit);
            }
            let count = segments.len();
            if count > 0 {
                // The tick itself lies in the current partition, also if its segments are all in others.
                ticker.last_used[ticker.db.slot.load(Relaxed) as usize % SLOTS] = tick;
                let since = std::mem::replace(&mut ticker.seen, snapshot.clone());
                ticker.insert(client, tick, &since, &snapshot)?;
                ticker.announce(tick, segments);
                ticker.finish(tick);
            } else {
                ticker.seen = snapshot;
            }
            Ok(count)
        })
    }

    /// Cuts a tick without events, so that there is one in the current partition, or one behind all that is to go.
    pub fn cut_empty(&mut self) {
        let tick = shared::next_stamp();
        self.in_transaction(|ticker, client| {
            let seen = ticker.seen.clone();
            ticker.insert(client, tick, &seen, &seen)?;
            ticker.announce(tick, Vec::new());
            ticker.finish(tick);
            Ok(())
        });
    }

    /// Looks how full the notification queue is, and makes up for what could not be sent.
    pub fn check_queue(&mut self) {
        self.in_transaction(|ticker, client| {
            let usage =
                client.select("SELECT pg_notification_queue_usage()", Some(1), &[])?.first().get_one::<f64>()?;
            ticker.queue = usage.unwrap_or(0.0);
            if ticker.unannounced && ticker.queue < QUEUE_FULL {
                // Nobody has seen the predecessor either: whoever gets this hint reads the log from where it stands.
                ticker.notify(Announcement::new(ticker.last, 0));
            }
            Ok(())
        });
    }

    /// Whether a partition holds segments that are in no tick yet. Sees what is committed now; called with the partition locked.
    pub fn has_unticked(&self, client: &mut SpiClient<'_>, slot: usize) -> spi::Result<bool> {
        let sql = format!("SELECT EXISTS (SELECT FROM tidings.log_{slot} WHERE xid >= $1 OR xid = ANY ($2::xid8[]))");
        let found = client.update(sql.as_str(), Some(1), &self.seen.arguments())?.first().get_one::<bool>()?;
        Ok(found.unwrap_or(true))
    }

    /// Runs `body` in a transaction of its own, with one snapshot for all it reads. An error ends the relay; the
    /// launcher starts another.
    fn in_transaction<R>(&mut self, body: impl FnOnce(&mut Self, &mut SpiClient<'_>) -> spi::Result<R>) -> R {
        let body = std::panic::AssertUnwindSafe(|| Spi::connect_mut(|client| body(self, client)));
        BackgroundWorker::transaction(move || {
            let body = body;
            (body.0)().unwrap_or_else(|error| error!("the relay cannot read or write its tables: {error}"))
        })
    }

    fn plans(&mut self, client: &SpiClient<'_>) -> spi::Result<&Plans> {
        if self.plans.is_none() {
            let oids = |types: &[pg_sys::Oid]| types.iter().copied().map(PgOid::from).collect::<Vec<_>>();
            // Large data is not fetched: `octet_length` reads the length only.
            const COLUMNS: &str = "slot, xid, stamp, ordinal, CASE WHEN octet_length(data) <= $3 THEN data END";
            let read = format!(
                "SELECT {COLUMNS} FROM tidings.log WHERE xid >= $1
                 UNION ALL SELECT {COLUMNS} FROM tidings.log WHERE xid = ANY ($2::xid8[])"
            );
            let insert = "INSERT INTO tidings.tick (tick, previous, since, until, slot, used)
                 VALUES ($1, $2, $3::pg_snapshot, $4::pg_snapshot, $5, $6)";
            self.plans = Some(Plans {
                snapshot: client.prepare("SELECT pg_current_snapshot()::text", &[])?.keep(),
                read: client.prepare(&*read, &oids(&[pg_sys::XID8OID, pg_sys::TEXTOID, pg_sys::INT4OID]))?.keep(),
                insert: client
                    .prepare_mut(
                        insert,
                        &oids(&[
                            pg_sys::INT8OID,
                            pg_sys::INT8OID,
                            pg_sys::TEXTOID,
                            pg_sys::TEXTOID,
                            pg_sys::INT2OID,
                            pg_sys::INT2OID,
                        ]),
                    )?
                    .keep(),
            });
        }
        self.plans.as_ref().ok_or(spi::Error::NoTupleTable)
    }

    /// The segments that are new, at most one more than [`MAX_SEGMENTS`], and marks their partitions as used by `tick`.
    fn read(&mut self, client: &SpiClient<'_>, tick: u64) -> spi::Result<Vec<Segment>> {
        let seen = self.seen.clone();
        let mut arguments = seen.arguments();
        arguments.push((settings::notify_inline_limit() as i32).into());
        let rows = client.select(&self.plans(client)?.read, Some(MAX_SEGMENTS as i64 + 1), &arguments)?;
        let mut segments = Vec::with_capacity(rows.len());
        for row in rows {
            let slot = row.get::<i16>(1)?.unwrap_or(0).unsigned_abs();
            self.last_used[usize::from(slot) % SLOTS] = tick;
            segments.push(Segment {
                xid: row.get_datum_by_ordinal(2)?.value_as_u64(),
                stamp: row.get(3)?.unwrap_or(0),
                ordinal: row.get(4)?.unwrap_or(0),
                data: row.get(5)?,
            });
        }
        if segments.len() > MAX_SEGMENTS {
            self.mark_used(client, tick)?;
        }
        Ok(segments)
    }

    /// Marks the partitions of a tick that was not read to its end.
    fn mark_used(&mut self, client: &SpiClient<'_>, tick: u64) -> spi::Result<()> {
        for (slot, last_used) in self.last_used.iter_mut().enumerate() {
            let sql = format!(
                "SELECT EXISTS (SELECT FROM tidings.log_{slot} WHERE xid >= $1)
                     OR EXISTS (SELECT FROM tidings.log_{slot} WHERE xid = ANY ($2::xid8[]))"
            );
            if client.select(sql.as_str(), Some(1), &self.seen.arguments())?.first().get_one::<bool>()? != Some(false) {
                *last_used = tick;
            }
        }
        Ok(())
    }

    fn insert(&mut self, client: &mut SpiClient<'_>, tick: u64, since: &Snapshot, until: &Snapshot) -> spi::Result<()> {
        let slot = self.db.slot.load(Relaxed) as i16;
        let used = (0..SLOTS).filter(|slot| self.last_used[*slot] == tick).fold(0i16, |used, slot| used | 1 << slot);
        let arguments = [
            (tick as i64).into(),
            (self.last as i64).into(),
            since.text.as_str().into(),
            until.text.as_str().into(),
            slot.into(),
            used.into(),
        ];
        let plan = &self.plans(client)?.insert;
        client.update(plan, None, &arguments)?;
        Ok(())
    }

    fn announce(&mut self, tick: u64, segments: Vec<Segment>) {
        let mut announcement = Announcement::new(tick, self.last);
        let size: usize = segments.iter().map(|s| s.data.as_ref().map_or(0, Vec::len)).sum();
        let whole = segments.len() <= MAX_SEGMENTS && segments.iter().all(|s| s.data.is_some());
        if whole && size <= settings::notify_inline_limit() && self.queue < QUEUE_CROWDED {
            let mut events = 0;
            for segment in in_order(segments) {
                for event in segment::events(segment.data.as_deref().unwrap_or_default()) {
                    announcement.push(&event.unwrap_or_else(|error| error!("tidings.log: {error}")));
                    events += 1;
                }
            }
            // One that is too large for a notification has made it a hint.
            if !announcement.is_hint() {
                self.db.events.fetch_add(events, Relaxed);
            }
        } else {
            announcement.make_hint();
        }
        self.notify(announcement);
    }

    fn notify(&mut self, announcement: Announcement) {
        self.unannounced = self.queue >= QUEUE_FULL;
        if self.unannounced {
            return;
        }
        if announcement.is_hint() {
            self.db.hints.fetch_add(1, Relaxed);
        }
        for part in announcement.finish() {
            // No text of the log has a NUL: Postgres's texts cannot.
            let part = CString::new(part).unwrap_or_else(|_| error!("tidings.log: a NUL in an event"));
            // SAFETY: inside a transaction; both strings are copied.
            unsafe { Async_Notify(self.channel.as_ptr(), part.as_ptr()) };
        }
    }

    fn finish(&mut self, tick: u64) {
        self.last = tick;
        self.db.tick.store(tick, Relaxed);
        self.db.ticks.fetch_add(1, Relaxed);
    }
}

impl Snapshot {
    /// `$1` and `$2` of a query for what the snapshot does not see.
    fn arguments(&self) -> Vec<DatumWithOid<'_>> {
        vec![xid8(self.xmax), self.running.as_str().into()]
    }
}

/// A transaction's full id as an argument of a query.
fn xid8<'a>(xid: u64) -> DatumWithOid<'a> {
    // SAFETY: an xid8 is passed by value, as 64 bits; so is an int8.
    unsafe { DatumWithOid::new(xid as i64, pg_sys::XID8OID) }
}

/// The order of a tick: transactions by their last stamp, each in its own order. `tidings.tick_segments` orders likewise.
fn in_order(mut segments: Vec<Segment>) -> Vec<Segment> {
    let mut last = HashMap::new();
    for segment in &segments {
        let stamp = last.entry(segment.xid).or_insert(segment.stamp);
        *stamp = segment.stamp.max(*stamp);
    }
    segments.sort_by_key(|segment| (last[&segment.xid], segment.ordinal));
    segments
}

/// Reads a column that pgrx has no Rust type for.
trait ValueAsU64 {
    fn value_as_u64(&self) -> u64;
}

impl ValueAsU64 for spi::SpiHeapTupleDataEntry<'_> {
    fn value_as_u64(&self) -> u64 {
        self.value::<pgrx::datum::AnyElement>().ok().flatten().map_or(0, |any| any.datum().value() as u64)
    }
}
