//! Reads of the log for single clients, over separate connections. The upstream's own reads use the upstream's
//! connection, so no client's replay delays live events.

use std::fmt::{self, Display};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tidings_wire::{Event, PagePart, Position, Seen, SegmentError, page, segment};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use crate::metrics::Metrics;
use crate::stream::place::Place;
use crate::upstream::database::{Database, DatabaseError, in_time};
use crate::upstream::dialect::{Dialect, Installed};
use crate::upstream::follow::is_conflict;
use crate::upstream::log::parse_position;
use crate::upstream::standing::Standing;

/// How long after a failed attempt to connect the next ones fail at once.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How much one page may cost the server, in bytes of the log that it reads: about 10 ms. A page of a topic with few
/// events ends here.
const PAGE_COST: i32 = 8 * 1024 * 1024;

/// How long the log takes at most to answer a short question, unless it waits for something.
const PROMPT: Duration = Duration::from_secs(1);

/// How many times a query is sent, if a standby's replay cancels it.
const ATTEMPTS: usize = 3;

/// A page of the log.
#[derive(Debug)]
pub struct Page {
    /// Segments that have some of the requested events, encoded as `tidings_wire::page`.
    pub segments: Vec<u8>,
    /// What the reader's snapshot saw, as far as that still matters.
    pub seen: Option<Box<Seen>>,
    /// The end of the page.
    pub reached: Position,
    /// Whether the log has more.
    pub more: bool,
}

/// A segment of a page.
#[derive(Clone, Copy, Debug)]
pub struct LogPart<'p> {
    part: PagePart<'p>,
    /// What the ids of its events include of the reader's snapshot.
    seen: Option<&'p Seen>,
}

/// An event of a page.
#[derive(Debug)]
pub struct LogEvent<'p> {
    /// Its tick and its number there.
    pub place: Place,
    /// What its id includes of the reader's snapshot.
    seen: Option<&'p Seen>,
    /// The event, which may be a recheck.
    pub event: Event<'p>,
}

impl LogEvent<'_> {
    /// Its position. It includes what the reader's snapshot saw, as long as that matters.
    pub fn position(&self) -> Position {
        Position { seen: self.seen.cloned().map(Box::new), ..Position::at(self.place.tick, self.place.n) }
    }
}

/// The position, as text.
impl Display for LogEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seen {
            None => write!(f, "{}-{}", self.place.tick, self.place.n),
            Some(_) => self.position().fmt(f),
        }
    }
}

impl Page {
    /// The page in an answer of this dialect to a question about what comes after `after`.
    fn read(dialect: Dialect, rows: &[Row], after: &Position) -> Result<Self, DatabaseError> {
        match dialect {
            Dialect::Current => Self::of_segments(rows),
            Dialect::Old => Self::of_events(rows, after),
        }
    }

    /// A page that the server has made.
    fn of_segments(rows: &[Row]) -> Result<Self, DatabaseError> {
        let row = rows.first().ok_or(DatabaseError::Contract("no row from page"))?;
        let seen = row.try_get::<_, Option<&str>>(1)?.map(|seen| seen.parse().map(Box::new)).transpose();
        Ok(Self {
            segments: row.try_get(0)?,
            seen: seen.map_err(|_| DatabaseError::Contract("an invalid snapshot"))?,
            reached: parse_position(row.try_get(2)?)?,
            more: row.try_get(3)?,
        })
    }

    /// A page of events, each of which becomes a segment of its own, and a last row that says where they end. The old
    /// SQL repeats the reader's snapshot as it is.
    fn of_events(rows: &[Row], after: &Position) -> Result<Self, DatabaseError> {
        let (end, rows) = rows.split_last().ok_or(DatabaseError::Contract("a page of the log without an end"))?;
        let (mut segments, mut last) = (Vec::new(), None);
        for row in rows {
            let position = parse_position(row.try_get(0)?)?;
            let payload = row.try_get::<_, &str>(3)?.into();
            let mut data = vec![segment::VERSION];
            segment::append(&mut data, &Event { topic: row.try_get(1)?, event: row.try_get(2)?, payload });
            let (before, with_snapshot) = (position.n.saturating_sub(1), position.seen.is_some());
            page::append(&mut segments, PagePart { tick: position.tick, before, with_snapshot, segment: &data });
            last = Some(position);
        }
        let reached = end.try_get::<_, Option<&str>>(0)?.map(parse_position).transpose()?;
        let reached = reached.or(last).ok_or(DatabaseError::Contract("a page of the log without an end"))?;
        Ok(Self { segments, seen: after.seen.clone(), reached, more: end.try_get(4)? })
    }

    /// Its segments. After an error there are no more.
    pub fn parts(&self) -> impl Iterator<Item = Result<LogPart<'_>, DatabaseError>> {
        page::parts(&self.segments).map(|part| {
            let part = part.map_err(|_| DatabaseError::Contract("a page of the log that is cut short"))?;
            Ok(LogPart { part, seen: self.seen.as_deref().filter(|_| part.with_snapshot) })
        })
    }
}

impl<'p> LogPart<'p> {
    /// The events after `after` that have one of these topics, and the rechecks that may be about one. After an error
    /// there are no more.
    pub fn events(
        self,
        after: Place,
        topics: &[Arc<str>],
    ) -> impl Iterator<Item = Result<LogEvent<'p>, DatabaseError>> {
        let Self { part, seen } = self;
        let mut events = segment::events(part.segment);
        let numbers = part.before.saturating_add(1)..;
        let found =
            std::iter::from_fn(move || events.next_wanted(|topic| topics.iter().any(|wanted| **wanted == *topic)));
        found.zip(numbers).filter_map(move |(event, n)| {
            let place = Place { tick: part.tick, n };
            match event {
                Ok(event) => event.filter(|_| place > after).map(|event| Ok(LogEvent { place, seen, event })),
                Err(error) => Some(Err(unreadable(place, &error))),
            }
        })
    }
}

/// A client can't get what can't be read. It is told, instead of waiting for it.
fn unreadable(place: Place, error: &SegmentError) -> DatabaseError {
    tracing::error!(tick = place.tick, n = place.n, %error, "the log has a segment that can't be read");
    DatabaseError::Expired
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

    /// The next page of the log after `after` for these topics, with about `bytes` of segments.
    fn page(
        &self,
        after: &Position,
        topics: &[Arc<str>],
        bytes: i32,
    ) -> impl Future<Output = Result<Page, DatabaseError>> + Send;
}

/// Reads for clients. Short queries have a connection of their own, so neither a slow page of the log nor a position
/// that takes long to locate delays them.
#[derive(Debug)]
pub struct Reads {
    short: Link,
    pages: Link,
    /// For positions with a snapshot. To locate one takes as long as the log is that it claims to have seen, and a
    /// client may have invented it.
    snapshots: Link,
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
    /// How many connections it has made.
    made: AtomicUsize,
}

#[derive(Debug, Default)]
struct Slot {
    client: Option<Arc<Client>>,
    failed: Option<Instant>,
}

impl Link {
    fn new(database: Database, metrics: Arc<Metrics>) -> Self {
        Self { database, metrics, slot: Mutex::default(), made: AtomicUsize::new(0) }
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
                self.made.fetch_add(1, Relaxed);
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
        let (short, pages, snapshots) = (link(database.clone()), link(database.clone()), link(database));
        Self { short, pages, snapshots, reports: reports.map(link), standing, permits: Semaphore::new(parallel) }
    }

    /// The SQL of the extension.
    pub fn installed(&self) -> &Installed {
        self.pages.database.installed()
    }

    /// Asks what has to be asked after a page that was read with older SQL. Returns the dialect after the page.
    async fn after_page(&self, question: &str, after: &str) -> Result<Dialect, DatabaseError> {
        let rows = self.pages.query(question, &[(&after, Type::TEXT)]).await?;
        let row = rows.first().ok_or(DatabaseError::Contract("no row about the page"))?;
        match row.try_get::<_, Option<bool>>(0)? {
            Some(true) => Ok(Dialect::of(row.try_get(1)?)),
            Some(false) => Err(DatabaseError::Lost),
            None => Err(DatabaseError::Contract("a position can't be located any more")),
        }
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
        self.report_link().query(sql, &parameters).await.map(|_| ())
    }

    /// How many connections for reports were made so far.
    pub fn report_connections(&self) -> usize {
        self.report_link().made.load(Relaxed)
    }

    fn report_link(&self) -> &Link {
        self.reports.as_ref().unwrap_or(&self.short)
    }
}

impl ClientLog for Reads {
    async fn locate(&self, after: &str) -> Result<(Option<Position>, u64), DatabaseError> {
        let has_snapshot = after.contains(':');
        let link = if has_snapshot { &self.snapshots } else { &self.short };
        let rows = match link.query("SELECT tidings.locate($1::pg_catalog.text)", &[(&after, Type::TEXT)]).await {
            Err(error) if has_snapshot && error.code() == Some(&SqlState::QUERY_CANCELED) => {
                // A position that took too long takes too long again, unless it waited for a lock or a standby. Then
                // this query waits, too. It uses another connection, because on this one it would queue behind other
                // clients' positions. The time that it takes to connect does not count.
                self.pages.client().await?;
                let start = Instant::now();
                self.pages.query("SELECT tidings.position()", &[]).await?;
                return Err(if start.elapsed() < PROMPT { DatabaseError::Expired } else { error });
            }
            located => located?,
        };
        let row = rows.first().ok_or(DatabaseError::Contract("no row from locate"))?;
        let located = row.try_get::<_, Option<&str>>(0)?.map(parse_position).transpose()?;
        // A separate query: in one statement, the position's snapshot would be older than the ticks that `locate` saw.
        // Over the same connection, because another may lead to another server.
        let rows = link.query("SELECT tidings.position()", &[]).await?;
        let row = rows.first().ok_or(DatabaseError::Contract("no row from position"))?;
        Ok((located, parse_position(row.try_get(0)?)?.tick))
    }

    fn standby_patience(&self) -> Option<Duration> {
        self.standing.is_standby().then(|| self.standing.max_lag())
    }

    fn is_behind(&self) -> bool {
        self.standing.is_behind()
    }

    async fn page(&self, after: &Position, topics: &[Arc<str>], bytes: i32) -> Result<Page, DatabaseError> {
        let (text, topics) = (after.to_string(), topics.iter().map(|topic| &**topic).collect::<Vec<_>>());
        // The semaphore is never closed. Clients that need more than one page take turns.
        let permit = self.permits.acquire().await.map_err(|_| DatabaseError::Closed)?;
        let parameters: [(&(dyn ToSql + Sync), Type); 4] =
            [(&text, Type::TEXT), (&topics, Type::TEXT_ARRAY), (&bytes, Type::INT4), (&PAGE_COST, Type::INT4)];
        let mut dialect = self.installed().dialect();
        let rows = loop {
            let rows = self.pages.query(dialect.page(), &parameters).await?;
            let Some(question) = dialect.after_page() else { break rows };
            let now = self.after_page(question, &text).await?;
            if now == dialect {
                break rows;
            }
            // The SQL was updated meanwhile, so the page may lack something.
            dialect = now;
        };
        drop(permit);
        Page::read(dialect, &rows, after)
    }
}
