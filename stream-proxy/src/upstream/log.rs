//! What the live connection asks the log. It is a trait so that a test can play the log without a database.

use std::future::Future;
use std::sync::Arc;

use tidings_wire::Position;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use crate::stream::place::Place;
use crate::upstream::database::{DatabaseError, in_time};
use crate::upstream::dialect::{Dialect, Installed, VERSION};

/// How many bytes of the log one read returns.
pub const PAGE_BYTES: i32 = 1024 * 1024;

/// Reads the next page of the log: after a position, and about as many bytes as the second parameter says.
pub const READ: &str = "SELECT tick, first, last, data FROM tidings.segments($1, $2)";

/// The relay, its channel, and the end of the log.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// The relay's channel. The session listens on it from now on.
    pub channel: String,
    /// The relay's process, while a relay runs.
    pub relay: Option<i32>,
    /// Whether a statement needs the database without other sessions.
    pub is_paused: bool,
    /// The last tick in the log.
    pub last: u64,
    /// The last tick that the relay has cut: the last one in the log, or a later one that nobody can read yet.
    pub newest: u64,
}

/// A row of the log: events of one tick that follow one another.
#[derive(Clone, Debug)]
pub struct LogRow {
    /// The tick.
    pub tick: u64,
    /// How many events of the tick come before these.
    pub before: u32,
    /// Whether these are the tick's last events.
    pub is_last: bool,
    /// The events, encoded as a segment; `None` for a tick without events.
    pub data: Option<Vec<u8>>,
}

/// What a crash left of the events that a proxy has published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survivors {
    /// How many events there are.
    pub events: u64,
    /// The place of the last of them in the log: the end of its tick, if no other event follows in that tick.
    pub reached: Place,
}

/// The log, and the relay that writes its ticks.
pub trait Log {
    /// Listens on the relay's channel, and returns what the database says about itself.
    fn introduce(&self) -> impl Future<Output = Result<Introduction, DatabaseError>> + Send;

    /// The position from which to continue after `at`, as `tidings.locate` returns it.
    fn locate(&self, at: &Position) -> impl Future<Output = Result<Option<Position>, DatabaseError>> + Send;

    /// The events after the end of tick `known` that are not newer than tick `horizon`, which is lost. `None` while
    /// some of them are in no tick again.
    fn survivors(
        &self,
        known: u64,
        horizon: u64,
    ) -> impl Future<Output = Result<Option<Survivors>, DatabaseError>> + Send;

    /// The next rows after `after`; none if nothing follows.
    fn read(&self, after: Place) -> impl Future<Output = Result<Vec<LogRow>, DatabaseError>> + Send;
}

/// The log of the server at the other end of a connection.
#[derive(Debug)]
pub struct ServerLog {
    client: Arc<Client>,
    installed: Installed,
}

impl ServerLog {
    /// The log over this connection.
    pub fn new(client: Arc<Client>, installed: Installed) -> Self {
        Self { client, installed }
    }

    /// Whether the extension's SQL is older than the proxy. Then it may be updated at any time.
    fn is_old(&self) -> bool {
        self.installed.dialect() == Dialect::Old
    }
}

impl Log for ServerLog {
    async fn introduce(&self) -> Result<Introduction, DatabaseError> {
        if self.is_old() {
            look_at_version(&self.client, &self.installed).await?;
        }
        let row = in_time(self.client.query_one(self.installed.dialect().introduction(), &[])).await?;
        let channel: String = row.try_get(0)?;
        if !row.try_get::<_, bool>(4)? {
            in_time(self.client.batch_execute(&listen("LISTEN", &channel))).await?;
        }
        let last = parse_position(row.try_get(2)?)?.tick;
        let is_paused = row.try_get::<_, &str>(3)? == "paused";
        let cut = row.try_get::<_, Option<i64>>(5)?.and_then(|tick| u64::try_from(tick).ok());
        let newest = cut.map_or(last, |cut| cut.max(last));
        Ok(Introduction { channel, relay: row.try_get(1)?, is_paused, last, newest })
    }

    async fn locate(&self, at: &Position) -> Result<Option<Position>, DatabaseError> {
        let sql = "SELECT tidings.locate($1::pg_catalog.text)";
        let row = in_time(self.client.query_one(sql, &[&at.to_string()])).await?;
        row.try_get::<_, Option<&str>>(0)?.map(parse_position).transpose()
    }

    async fn survivors(&self, known: u64, horizon: u64) -> Result<Option<Survivors>, DatabaseError> {
        if self.is_old() {
            // Every tick was durable before it was announced, so nothing is cut again.
            return Ok(Some(Survivors { events: 0, reached: Place::after_tick(known) }));
        }
        let sql = "SELECT events, reached FROM tidings.survivors($1::pg_catalog.int8, $2::pg_catalog.int8)";
        let number = |tick: u64| i64::try_from(tick).map_err(|_| DatabaseError::Contract("an invalid tick"));
        let row = in_time(self.client.query_one(sql, &[&number(known)?, &number(horizon)?])).await?;
        let Some(events) = row.try_get::<_, Option<i64>>(0)? else { return Ok(None) };
        let events = u64::try_from(events).map_err(|_| DatabaseError::Contract("an invalid number of events"))?;
        Ok(Some(Survivors { events, reached: Place::from(&parse_position(row.try_get(1)?)?) }))
    }

    async fn read(&self, after: Place) -> Result<Vec<LogRow>, DatabaseError> {
        let text = after.position().to_string();
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&text, Type::TEXT), (&PAGE_BYTES, Type::INT4)];
        log_rows(&in_time(self.client.query_typed(READ, &parameters)).await?)
    }
}

/// Finds out which SQL the extension has.
pub async fn look_at_version(client: &Client, installed: &Installed) -> Result<(), DatabaseError> {
    let rows = in_time(client.query_typed(VERSION, &[])).await?;
    installed.note(rows.first().map(|row| row.try_get(0)).transpose()?);
    Ok(())
}

/// The statement that listens to a channel, or no longer does.
pub fn listen(verb: &str, channel: &str) -> String {
    format!("{verb} \"{}\"", channel.replace('"', "\"\""))
}

/// The rows of a page.
pub fn log_rows(rows: &[Row]) -> Result<Vec<LogRow>, DatabaseError> {
    let read = |row: &Row| {
        Ok(LogRow {
            tick: u64::try_from(row.try_get::<_, i64>("tick")?)
                .map_err(|_| DatabaseError::Contract("an invalid tick"))?,
            // NULL in a tick without events.
            before: u32::try_from(row.try_get::<_, Option<i32>>("first")?.unwrap_or(0))
                .map_err(|_| DatabaseError::Contract("an invalid number of events"))?,
            is_last: row.try_get("last")?,
            data: row.try_get("data")?,
        })
    };
    rows.iter().map(read).collect()
}

/// A position in an answer of the extension.
pub fn parse_position(text: &str) -> Result<Position, DatabaseError> {
    text.parse().map_err(|_| DatabaseError::Contract("an invalid position"))
}
