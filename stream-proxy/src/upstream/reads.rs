//! Reads of the log for single clients, over separate connections. The upstream's own reads use the upstream's
//! connection, so no client's replay delays live events.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tidings_wire::Position;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use crate::metrics::Metrics;
use crate::stream::frame::Frame;
use crate::upstream::database::{Database, DatabaseError, in_time};
use crate::upstream::follow::is_conflict;
use crate::upstream::log::parse_position;
use crate::upstream::standing::Standing;

/// How long after a failed attempt to connect the next ones fail at once.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How many bytes of the log one page covers at most: about 20 ms of reading in the server.
const SCAN_BYTES: i32 = 8 * 1024 * 1024;

/// How many times a query is sent, if a standby's replay cancels it.
const ATTEMPTS: usize = 3;

/// An event read from the log.
#[derive(Debug)]
pub struct LogEvent {
    /// Its position. It includes what the reader's snapshot saw, as long as that matters.
    pub position: Position,
    /// The number of its topic among those that were asked for.
    pub topic: usize,
    /// What the client gets, or a recheck.
    pub frame: Frame,
}

/// A page of the log.
#[derive(Debug)]
pub struct Page {
    /// The requested events.
    pub events: Vec<LogEvent>,
    /// The end of the page.
    pub reached: Position,
    /// Whether the log has more.
    pub more: bool,
}

/// What a replay asks the log. It is a trait so that a test can play the log without a database.
pub trait ClientLog {
    /// The position from which to continue for a client that comes with `after`, `None` if it is too early to say; and
    /// the last tick that the log had then.
    fn locate(&self, after: &str) -> impl Future<Output = Result<(Option<Position>, u64), DatabaseError>> + Send;

    /// How long a standby may take to replay what a client has from another server; `None` at a primary.
    fn standby_patience(&self) -> Option<Duration> {
        None
    }

    /// Whether the server is a standby that is further behind than it may be.
    fn is_behind(&self) -> bool {
        false
    }

    /// The events of `topics` in the next part of the log after `after`, at most `max_rows`.
    fn page(
        &self,
        after: &Position,
        topics: &[Arc<str>],
        max_rows: i32,
    ) -> impl Future<Output = Result<Page, DatabaseError>> + Send;
}

/// Reads for clients. Pages of the log use one connection and short queries another, so a slow page does not delay a
/// short query.
#[derive(Debug)]
pub struct Reads {
    short: Link,
    pages: Link,
    /// For reports, if they go to another server.
    reports: Option<Link>,
    standing: Arc<Standing>,
    /// Limits how many pages are read at the same time.
    permits: Semaphore,
}

/// A connection that is made when it is needed.
#[derive(Debug)]
struct Link {
    database: Database,
    metrics: Arc<Metrics>,
    slot: Mutex<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    client: Option<Arc<Client>>,
    failed: Option<Instant>,
}

impl Link {
    fn new(database: Database, metrics: Arc<Metrics>) -> Self {
        Self { database, metrics, slot: Mutex::default() }
    }

    async fn client(&self) -> Result<Arc<Client>, DatabaseError> {
        let mut slot = self.slot.lock().await;
        if let Some(client) = slot.client.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        if slot.failed.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return Err(DatabaseError::Closed);
        }
        match self.database.connect(self.metrics.clone()).await {
            Ok((client, _)) => {
                let client = Arc::new(client);
                *slot = Slot { client: Some(client.clone()), failed: None };
                Ok(client)
            }
            Err(error) => {
                *slot = Slot { client: None, failed: Some(Instant::now()) };
                Err(error)
            }
        }
    }

    /// A connection that gave no answer is not used again.
    async fn forget(&self, client: &Arc<Client>) {
        let mut slot = self.slot.lock().await;
        if slot.client.as_ref().is_some_and(|current| Arc::ptr_eq(current, client)) {
            slot.client = None;
        }
    }

    async fn query(&self, sql: &str, parameters: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>, DatabaseError> {
        let mut attempt = 1;
        loop {
            let client = self.client().await?;
            match in_time(client.query_typed(sql, parameters)).await {
                Err(error) if attempt < ATTEMPTS && is_conflict(&error) => {
                    self.metrics.standby_conflicts.add(1);
                    attempt += 1;
                }
                Err(DatabaseError::Timeout) => {
                    self.forget(&client).await;
                    return Err(DatabaseError::Timeout);
                }
                result => return result,
            }
        }
    }
}

impl Reads {
    /// Reads from `database`, with at most `parallel` pages of the log at the same time. Reports go to `reports`, if it
    /// is given.
    pub fn new(
        database: Database,
        reports: Option<Database>,
        standing: Arc<Standing>,
        parallel: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        let link = |database: Database| Link::new(database, metrics.clone());
        let (short, pages, reports) = (link(database.clone()), link(database), reports.map(link));
        Self { short, pages, reports, standing, permits: Semaphore::new(parallel) }
    }

    /// Whether there is a server that takes reports: a standby takes none.
    pub fn takes_reports(&self) -> bool {
        self.reports.is_some() || !self.standing.is_standby()
    }

    /// Reports how many subscribers each topic has at proxy `name`, and renews the lease on everything that it reported
    /// before.
    pub async fn report(&self, name: &str, topics: &[(Arc<str>, usize)], lease: Duration) -> Result<(), DatabaseError> {
        let names: Vec<&str> = topics.iter().map(|(topic, _)| &**topic).collect();
        let counts: Vec<i32> = topics.iter().map(|(_, n)| i32::try_from(*n).unwrap_or(i32::MAX)).collect();
        let lease = format!("{} seconds", lease.as_secs());
        let sql = "SELECT tidings.report(
            $1::pg_catalog.text, $2::pg_catalog.text[], $3::pg_catalog.int4[], $4::pg_catalog.interval)";
        let parameters: [(&(dyn ToSql + Sync), Type); 4] =
            [(&name, Type::TEXT), (&names, Type::TEXT_ARRAY), (&counts, Type::INT4_ARRAY), (&lease, Type::TEXT)];
        self.reports.as_ref().unwrap_or(&self.short).query(sql, &parameters).await.map(|_| ())
    }
}

impl ClientLog for Reads {
    async fn locate(&self, after: &str) -> Result<(Option<Position>, u64), DatabaseError> {
        let rows = self.short.query("SELECT tidings.locate($1::pg_catalog.text)", &[(&after, Type::TEXT)]).await?;
        let row = rows.first().ok_or(DatabaseError::Contract("no row from locate"))?;
        let located = row.try_get::<_, Option<&str>>(0)?.map(parse_position).transpose()?;
        // A separate query: in one statement, the position's snapshot would be older than the ticks that `locate` saw.
        let rows = self.short.query("SELECT tidings.position()", &[]).await?;
        let row = rows.first().ok_or(DatabaseError::Contract("no row from position"))?;
        Ok((located, parse_position(row.try_get(0)?)?.tick))
    }

    fn standby_patience(&self) -> Option<Duration> {
        self.standing.is_standby().then(|| self.standing.max_lag())
    }

    fn is_behind(&self) -> bool {
        self.standing.is_behind()
    }

    async fn page(&self, after: &Position, topics: &[Arc<str>], max_rows: i32) -> Result<Page, DatabaseError> {
        let (after, topics) = (after.to_string(), topics.iter().map(|topic| &**topic).collect::<Vec<_>>());
        // The semaphore is never closed. Clients that need more than one page take turns.
        let permit = self.permits.acquire().await.map_err(|_| DatabaseError::Closed)?;
        let sql = "SELECT position, topic, event, payload, more FROM tidings.scan(
            $1::pg_catalog.text, $2::pg_catalog.text[], $3::pg_catalog.int4, $4::pg_catalog.int4, false)";
        let parameters: [(&(dyn ToSql + Sync), Type); 4] =
            [(&after, Type::TEXT), (&topics, Type::TEXT_ARRAY), (&max_rows, Type::INT4), (&SCAN_BYTES, Type::INT4)];
        let rows = self.pages.query(sql, &parameters).await?;
        drop(permit);
        let mut events: Vec<LogEvent> = Vec::with_capacity(rows.len());
        for row in &rows {
            let id: Option<&str> = row.try_get(0)?;
            match (row.try_get::<_, Option<&str>>(1)?, id, events.last()) {
                (Some(topic), Some(id), _) => {
                    let position = parse_position(id)?;
                    let topic = topics.iter().position(|wanted| *wanted == topic).unwrap_or_default();
                    let frame = match row.try_get::<_, Option<&str>>(2)? {
                        Some(event) => Frame::event(id, event, row.try_get(3)?),
                        // About one of the topics, or perhaps about others: that costs one question at most.
                        None => Frame::recheck(position.tick, false),
                    };
                    events.push(LogEvent { position, topic, frame });
                }
                (None, Some(id), _) => {
                    return Ok(Page { events, reached: parse_position(id)?, more: row.try_get(4)? });
                }
                // The page has `max_rows` events, so it ends at the last of them.
                (None, None, Some(LogEvent { position, .. })) => {
                    return Ok(Page { reached: position.clone(), events, more: row.try_get(4)? });
                }
                _ => break,
            }
        }
        Err(DatabaseError::Contract("a page of the log without an end"))
    }
}
