//! Following a hot standby, where nothing can be notified: a procedure on the server waits until the next tick has been
//! replayed, and then the tick is read from the log. After a promotion the session continues as on any primary.
//!
//! Not here: how ticks are put in order (`chain`), and the session with a primary (`session`).

use std::sync::Arc;
use std::time::Duration;

use tidings_wire::Position;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use crate::metrics::Metrics;
use crate::stream::place::Place;
use crate::upstream::chain::Chain;
use crate::upstream::database::{DatabaseError, in_time};
use crate::upstream::dialect::Installed;
use crate::upstream::log::{
    Introduction, Log, LogRow, PAGE_BYTES, READ, ServerLog, Survivors, log_rows, parse_position,
};
use crate::upstream::standing::Standing;

/// How long one call waits on the server for a tick. After a call that has waited in vain, the proxy asks how far the
/// standby is behind.
const WAIT: &str = "1 second";

/// While ticks keep coming, the proxy asks only this often, because each question delays the next tick.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// The pause before a read that the replay has cancelled is tried again.
const AFTER_CONFLICT: Duration = Duration::from_millis(10);

/// How many times in a row a read may be cancelled by the replay. More than that means that
/// `max_standby_streaming_delay` leaves no time to read.
const MAX_CONFLICTS: u32 = 100;

/// Whether the server of a connection is a standby.
pub async fn is_standby(client: &Client) -> Result<bool, DatabaseError> {
    let row = in_time(client.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[])).await?;
    Ok(row.try_get(0)?)
}

/// The log as a standby has it.
#[derive(Debug)]
pub struct StandbyLog {
    log: ServerLog,
    client: Arc<Client>,
    metrics: Arc<Metrics>,
    /// Reads the log. It is prepared once, because it runs for each tick.
    reading: OnceCell<Statement>,
}

/// How far a standby has replayed, by its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Whether it is connected to its primary, or to another standby.
    pub streams: bool,
    /// Up to where it has replayed.
    pub replayed: i64,
    /// What it has received and not replayed, in bytes.
    pub bytes: u64,
    /// Since when it has been replaying what it received.
    pub delay: Duration,
}

impl StandbyLog {
    /// The log of the server that this client is connected to.
    pub fn new(client: Arc<Client>, installed: Installed, metrics: Arc<Metrics>) -> Self {
        Self { log: ServerLog::new(client.clone(), installed), client, metrics, reading: OnceCell::new() }
    }

    /// The next rows after `after`, as soon as there are any; none after a while. One round trip.
    async fn next(&self, after: Place) -> Result<Vec<LogRow>, DatabaseError> {
        self.past_conflicts(|| self.try_next(after)).await
    }

    /// How far the standby has replayed; `None` if it is no longer a standby.
    async fn replay(&self) -> Result<Option<Replay>, DatabaseError> {
        self.past_conflicts(|| replay(&self.client)).await
    }

    /// Repeats a read that the replay has cancelled.
    async fn past_conflicts<T, F>(&self, read: impl Fn() -> F) -> Result<T, DatabaseError>
    where
        F: Future<Output = Result<T, DatabaseError>>,
    {
        let mut conflicts = 0;
        loop {
            match read().await {
                Err(error) if is_conflict(&error) && conflicts < MAX_CONFLICTS => {
                    conflicts += 1;
                    self.metrics.standby_conflicts.add(1);
                    sleep(AFTER_CONFLICT).await;
                }
                result => return result,
            }
        }
    }

    async fn try_next(&self, after: Place) -> Result<Vec<LogRow>, DatabaseError> {
        let prepare = || in_time(self.client.prepare_typed(READ, &[Type::TEXT, Type::INT4]));
        let reading = self.reading.get_or_try_init(prepare).await?;
        let text = after.position().to_string();
        // The wait holds no snapshot: the statement after it has one of its own.
        let waiting = "CALL tidings.await_tick($1, $2::pg_catalog.text::pg_catalog.interval)";
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&text, Type::TEXT), (&WAIT, Type::TEXT)];
        let page: [&(dyn ToSql + Sync); 2] = [&text, &PAGE_BYTES];
        let asking = async {
            tokio::join!(
                in_time(self.client.query_typed(waiting, &parameters)),
                in_time(self.client.query(reading, &page))
            )
        };
        let (waited, rows) = asking.await;
        waited?;
        log_rows(&rows?)
    }
}

/// How far a standby has replayed; `None` at a primary.
pub async fn replay(client: &Client) -> Result<Option<Replay>, DatabaseError> {
    let sql = "SELECT streams, replayed, behind_bytes, behind_ms FROM tidings.standby()";
    let rows = in_time(client.query_typed(sql, &[])).await?;
    let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
    let read = |row: &Row| {
        Ok(Replay {
            streams: row.try_get(0)?,
            replayed: row.try_get(1)?,
            bytes: unsigned(row.try_get(2)?),
            delay: Duration::from_millis(unsigned(row.try_get(3)?)),
        })
    };
    rows.first().map(read).transpose()
}

/// Whether the replay has cancelled a query that blocked it.
pub fn is_conflict(error: &DatabaseError) -> bool {
    error
        .code()
        .is_some_and(|code| [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code))
}

impl Log for StandbyLog {
    async fn introduce(&self) -> Result<Introduction, DatabaseError> {
        let row = in_time(self.client.query_one("SELECT tidings.position()", &[])).await?;
        let last = parse_position(row.try_get(0)?)?.tick;
        Ok(Introduction { channel: String::new(), relay: None, is_paused: false, last, newest: last })
    }

    async fn locate(&self, at: &Position) -> Result<Option<Position>, DatabaseError> {
        self.log.locate(at).await
    }

    async fn survivors(&self, known: u64, horizon: u64) -> Result<Option<Survivors>, DatabaseError> {
        self.log.survivors(known, horizon).await
    }

    async fn read(&self, after: Place) -> Result<Vec<LogRow>, DatabaseError> {
        self.log.read(after).await
    }
}

/// How far a standby is behind, by the clock of the proxy.
#[derive(Debug)]
struct Lag {
    /// When the standby was last connected to its source, or replayed something without a connection.
    alive: Instant,
    replayed: i64,
}

impl Lag {
    fn new() -> Self {
        Self { alive: Instant::now(), replayed: 0 }
    }

    /// By how long the events that clients get may be out of date. A standby without a connection does not know what it
    /// lacks, so the time since it lost the connection counts.
    fn note(&mut self, replay: &Replay) -> Duration {
        if replay.streams || replay.replayed != self.replayed {
            (self.alive, self.replayed) = (Instant::now(), replay.replayed);
        }
        replay.delay.max(self.alive.elapsed())
    }
}

/// Follows one standby over one connection.
#[derive(Debug)]
pub struct Follower {
    log: Arc<StandbyLog>,
    chain: Chain<StandbyLog>,
    metrics: Arc<Metrics>,
    standing: Arc<Standing>,
    lag: Lag,
    /// When the standby was last asked how far it is behind; `None` if it must be asked now.
    asked: Option<Instant>,
}

impl Follower {
    /// A follower that continues at the place of the chain's hub.
    pub fn new(log: Arc<StandbyLog>, chain: Chain<StandbyLog>, metrics: Arc<Metrics>, standing: Arc<Standing>) -> Self {
        Self { log, chain, metrics, standing, lag: Lag::new(), asked: None }
    }

    /// Brings the hub to the present. A standby may not have replayed yet what the proxy has heard from another server:
    /// this waits for it, but not longer than the standby may be behind. Meanwhile `waiting` gets the reason.
    pub async fn start(&mut self, mut waiting: impl FnMut(String)) -> Result<(), DatabaseError> {
        let deadline = Instant::now() + self.standing.max_lag();
        while let Ok(place) = self.chain.place()
            && self.is_ahead(place).await?
        {
            if Instant::now() >= deadline {
                self.chain.give_up_place().await?;
                break;
            }
            waiting("the standby has not replayed yet what this proxy has sent".into());
            let last = self.log.introduce().await?.last;
            self.log.next(Place::after_tick(last)).await?;
        }
        self.chain.start().await
    }

    /// Whether the standby has not replayed this place.
    async fn is_ahead(&self, place: Place) -> Result<bool, DatabaseError> {
        match self.log.locate(&place.position()).await {
            Ok(located) => Ok(located.is_none()),
            // The chain says what that means for its clients.
            Err(DatabaseError::Expired) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Publishes each tick as soon as it is replayed, until the standby is promoted. About every second, `report` gets
    /// the reason why the standby can't be relied on, if there is one.
    pub async fn run(&mut self, mut report: impl FnMut(Option<String>)) -> Result<(), DatabaseError> {
        loop {
            if self.asked.is_none_or(|asked| asked.elapsed() >= ASK_AFTER) {
                let Some(replay) = self.log.replay().await? else { return Ok(()) };
                self.asked = Some(Instant::now());
                report(self.too_far_behind(&replay));
            }
            match self.step().await {
                Ok(()) => {}
                // Its clients get a reset.
                Err(DatabaseError::Expired) => self.chain.catch_up().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Publishes what is replayed next.
    async fn step(&mut self) -> Result<(), DatabaseError> {
        let place = self.chain.place()?;
        let rows = self.log.next(place).await?;
        if rows.is_empty() {
            // The replay stands still, or the server is no longer a standby.
            self.asked = None;
        }
        self.chain.publish_rows(&rows, place).await?;
        Ok(())
    }

    /// Notes how far the standby is behind. If it is too far, says so.
    fn too_far_behind(&mut self, replay: &Replay) -> Option<String> {
        let lag = self.lag.note(replay);
        self.metrics.standby_lag.set(lag);
        self.metrics.standby_lag_bytes.set(replay.bytes);
        let limit = self.standing.max_lag();
        let is_behind = lag > limit;
        if is_behind != self.standing.is_behind() {
            tracing::warn!(
                ?lag,
                bytes = replay.bytes,
                connected = replay.streams,
                is_behind,
                "the standby fell behind or caught up"
            );
        }
        self.standing.is_standby_now(is_behind);
        is_behind.then(|| {
            let reason = if replay.streams { "" } else { ", and not connected to its primary" };
            format!("the standby is {} s behind{reason} (--max-lag is {} s)", lag.as_secs(), limit.as_secs_f64())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(streams: bool, replayed: i64, delay: u64) -> Replay {
        Replay { streams, replayed, bytes: 0, delay: Duration::from_secs(delay) }
    }

    #[tokio::test(start_paused = true)]
    async fn the_lag_is_the_delay_of_the_replay_or_the_time_without_a_connection() {
        let mut lag = Lag::new();
        assert_eq!(lag.note(&replay(true, 1, 0)), Duration::ZERO);
        assert_eq!(lag.note(&replay(true, 1, 7)), Duration::from_secs(7));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(lag.note(&replay(false, 1, 0)), Duration::from_secs(5));
        // It may also get its log from an archive.
        assert_eq!(lag.note(&replay(false, 2, 0)), Duration::ZERO);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(lag.note(&replay(false, 2, 0)), Duration::from_secs(3));
        assert_eq!(lag.note(&replay(true, 2, 0)), Duration::ZERO);
    }
}
