//! Reads the current rows of topics, as the subscriber. Each reading is one transaction, so that rows and position
//! belong together, on a connection of its own, because it takes as long as its client does.
//!
//! Not here: which streams share a reading (`snapshots`), and reads of the log (`reads`).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidings_wire::Position;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use crate::metrics::Metrics;
use crate::upstream::database::{Database, DatabaseError, in_time};

/// The bytes of a portion. The next portion is fetched while one is written, so a small one is enough.
const PORTION: i32 = 64 * 1024;

/// How long to wait for a cancellation, and for the end of a transaction.
const GRACE: Duration = Duration::from_secs(1);

/// How many times a reading may begin, if a replaced watch or a standby's replay makes it fail.
const ATTEMPTS: usize = 3;

/// Gives everything back, including advisory locks of the session, which a rollback keeps.
const END: &str = "ROLLBACK; SELECT pg_catalog.pg_advisory_unlock_all()";

/// Opens readings, and keeps their connections.
#[derive(Debug)]
pub struct Readings {
    database: Database,
    metrics: Arc<Metrics>,
    /// How long a statement may run, and how long a transaction may wait for its next statement.
    limit: Duration,
    /// Connections without a transaction.
    idle: Mutex<Vec<Client>>,
}

/// An open reading. If it is dropped before its end, its connection is closed.
#[derive(Debug)]
pub struct Reading<'r> {
    readings: &'r Readings,
    client: Client,
    /// The position of its rows: the changes after it are not in them.
    pub position: Position,
}

/// Some of the rows.
#[derive(Debug)]
pub struct Rows {
    /// Their topic.
    pub topic: String,
    /// The name of their events.
    pub event: String,
    /// The payload of each event.
    pub payloads: Vec<String>,
}

impl Readings {
    /// Reads from `database`, for no longer than `limit`.
    pub fn new(database: Database, limit: Duration, metrics: Arc<Metrics>) -> Self {
        Self { database, metrics, limit, idle: Mutex::default() }
    }

    /// Opens a reading of the topics' rows, as the role of the claims; without claims, as the proxy's own role.
    pub async fn open(&self, claims: Option<&str>, topics: &[Arc<str>]) -> Result<Reading<'_>, DatabaseError> {
        let mut attempt = 1;
        loop {
            // The lock is not held during the waits below.
            let known = self.idle.lock().pop();
            let is_known = known.is_some();
            let client = match known {
                Some(client) => client,
                None => self.connect().await?,
            };
            match begin(&client, claims, topics).await {
                Ok(position) => return Ok(Reading { readings: self, client, position }),
                // The connection broke while nobody used it.
                Err(_) if is_known && client.is_closed() => {}
                Err(error) if attempt < ATTEMPTS && is_in_the_way(&error) => {
                    attempt += 1;
                    self.give_back(client).await;
                }
                Err(error) => {
                    self.give_back(client).await;
                    return Err(error);
                }
            }
        }
    }

    async fn connect(&self) -> Result<Client, DatabaseError> {
        let (client, _) = self.database.connect(self.metrics.clone()).await?;
        // A proxy that vanished must not hold vacuum back forever. The server's limits come after the proxy's own, so
        // that their errors are not taken for those of a query, or of a broken connection.
        let limit = (self.limit + GRACE).as_millis();
        let settings = format!("SET statement_timeout = {limit}; SET idle_in_transaction_session_timeout = {limit}");
        in_time(client.batch_execute(&settings)).await?;
        Ok(client)
    }

    /// Ends the transaction and keeps the connection, unless it is broken.
    async fn give_back(&self, client: Client) {
        if matches!(timeout(GRACE, client.batch_execute(END)).await, Ok(Ok(()))) {
            self.idle.lock().push(client);
        }
    }
}

/// Begins the transaction and opens its cursors; one round trip.
async fn begin(client: &Client, claims: Option<&str>, topics: &[Arc<str>]) -> Result<Position, DatabaseError> {
    let topics: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    let begin = async {
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        Ok::<_, tokio_postgres::Error>(())
    };
    let open = "SELECT tidings.open_rows($1::pg_catalog.text::pg_catalog.jsonb, $2::pg_catalog.text[])";
    let asking = async {
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&claims, Type::TEXT), (&topics, Type::TEXT_ARRAY)];
        let (begun, position, opened) = tokio::join!(
            begin,
            client.query_typed("SELECT tidings.position()", &[]),
            client.query_typed(open, &parameters)
        );
        begun?;
        let position = position?;
        opened?;
        Ok(position)
    };
    let rows = in_time(asking).await?;
    let row = rows.first().ok_or(DatabaseError::Contract("no row from position"))?;
    row.try_get::<_, &str>(0)?.parse().map_err(|_| DatabaseError::Contract("an invalid position"))
}

/// Whether the error was caused by something temporary, so that another attempt may succeed.
fn is_in_the_way(error: &DatabaseError) -> bool {
    matches!(error, DatabaseError::Postgres(error) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE))
}

impl Reading<'_> {
    /// The next rows; none at the end.
    pub async fn next(&mut self) -> Result<Vec<Rows>, DatabaseError> {
        let sql = "SELECT topic, event, payloads FROM tidings.fetch_rows($1)";
        let rows = self.client.query_typed(sql, &[(&PORTION, Type::INT4)]).await?;
        let rows = rows
            .iter()
            .map(|row| Ok(Rows { topic: row.try_get(0)?, event: row.try_get(1)?, payloads: row.try_get(2)? }));
        rows.collect()
    }

    /// Ends the transaction.
    pub async fn close(self) {
        self.readings.give_back(self.client).await;
    }

    /// Ends a reading that takes too long, whatever its statement does.
    pub async fn cancel(self) {
        let Self { readings, client, .. } = self;
        let _ = timeout(GRACE, readings.database.cancel(&client)).await;
        // Not used again: the cancellation could hit the next statement.
    }
}
