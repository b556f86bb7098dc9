//! Asks the database about access. A worker with its own connection takes questions from a queue and sends the answers
//! to those who wait. The more questions have gathered, the fewer statements each costs. A slow question delays the
//! others only once, for one short time limit.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::Type;

use crate::access::check::{Alone, Check, Question, Unanswered};
use crate::access::line::{Connected, Line, Pace};
use crate::access::statement::{Answers, failed, sql};
use crate::metrics::Metrics;
use crate::upstream::database::{Database, DatabaseError, in_time};
use crate::upstream::dialect::Dialect;
use crate::upstream::one_server::Server;

/// The most questions in one statement.
const BATCH: usize = 100;

/// The longest time that one statement with several questions may take in the server: a fixed part, and a part for each
/// question. A question with ordinary rules takes less than a millisecond. The question that is running when the time
/// is over is asked alone later.
const TOGETHER_LIMIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(4));

/// The longest time that the rules of one question may run in the server.
const RULE_LIMIT: Duration = Duration::from_secs(2);

/// The longest time that a rule may wait for a lock: together with other questions, and alone. After that the answer is
/// "not now" instead of "no", so these limits are well below those of the statements. Most locks are held for less than
/// the first one.
const LOCK_LIMITS: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(1));

/// How much longer to wait than the server's own limit: for the network, and for rules that can't be cancelled.
const GRACE: Duration = Duration::from_secs(1);

/// How long to wait before the next attempt to connect while another worker can ask.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// After this many connections that broke during one question, its rules are considered the cause.
const BREAKS: u8 = 3;

/// How often the server checks, in milliseconds, whether its client still waits for a statement.
const LOOK_FOR_CLIENT: &str = "SET client_connection_check_interval = 1000";

/// A worker.
#[derive(Debug)]
pub struct Worker {
    /// The queue of questions.
    line: Arc<Line>,
    pace: Pace,
    database: Database,
    /// The proxy's other logins.
    logins: Arc<[String]>,
    metrics: Arc<Metrics>,
    sql: String,
    connection: Option<Connection>,
    /// How many questions to ask together: fewer after the limit was reached.
    most: usize,
    /// The backend that did not stop its statement and must be terminated, if any.
    stuck: Option<i32>,
    /// Whether it could not connect the last time, and left the askers to another worker.
    has_left: bool,
}

#[derive(Debug)]
struct Connection {
    client: Client,
    server: Server,
    backend: i32,
    /// The server's current statement limit.
    limit: Duration,
    /// The SQL for which it was set up.
    dialect: Dialect,
    _connected: Connected,
}

/// How a statement ended.
enum Ended {
    /// With all answers, or at the question that caused the error.
    Read(Result<(), DatabaseError>),
    /// All askers have left.
    Abandoned(Result<(), DatabaseError>),
}

impl Worker {
    /// A worker of a queue. `logins` are the proxy's roles other than the one that this database is asked with.
    pub fn new(line: Arc<Line>, pace: Pace, database: Database, logins: Arc<[String]>, metrics: Arc<Metrics>) -> Self {
        let most = if pace == Pace::Together { BATCH } else { 1 };
        Self { line, pace, database, logins, metrics, sql: sql(), connection: None, most, stuck: None, has_left: false }
    }

    /// Works forever. An eager worker connects before there is anything to ask.
    pub async fn run(mut self, is_eager: bool) -> Infallible {
        if is_eager {
            // If it fails, the next asker gets the error.
            let _ = self.connect().await;
        }
        loop {
            self.line.wait(self.pace).await;
            if !self.is_connected() {
                // Connecting may take long, and another worker must not sleep in the meantime.
                self.line.wake(self.pace);
            }
            if let Err(error) = self.connect().await {
                self.cannot_ask(&error).await;
                continue;
            }
            self.has_left = false;
            let checks = self.line.take(self.pace, self.most);
            if !checks.is_empty() {
                self.ask(checks).await;
            }
        }
    }

    /// Without a connection: leaves the askers to a worker that has one or is making one, or else sends them the error.
    /// It leaves them only once to a worker that is making one: otherwise workers that can't connect would leave them
    /// to one another forever.
    async fn cannot_ask(&mut self, error: &DatabaseError) {
        let has_left = self.has_left;
        self.has_left = self.line.has_connection(self.pace) || !has_left && self.line.is_connecting(self.pace);
        if self.has_left {
            return sleep(RETRY_AFTER).await;
        }
        let checks = self.line.take(self.pace, usize::MAX);
        let identities: Vec<_> = checks.iter().map(Check::identity).collect();
        for check in checks {
            check.answer(&Err(Unanswered::Database(error.to_string().into())));
        }
        self.line.settle(self.pace, &identities, Vec::new(), None);
    }

    /// How long a statement with this many questions may take.
    fn limit(&self, questions: usize) -> Duration {
        match self.pace {
            // In steps, so that the limit is set again only when it differs much.
            Pace::Together => TOGETHER_LIMIT.0 + TOGETHER_LIMIT.1 * questions.next_power_of_two() as u32,
            Pace::Alone => RULE_LIMIT,
        }
    }

    /// How long a rule may wait for a lock.
    fn lock_limit(&self) -> Duration {
        match self.pace {
            Pace::Together => LOCK_LIMITS.0,
            Pace::Alone => LOCK_LIMITS.1,
        }
    }

    async fn ask(&mut self, mut checks: Vec<Check>) {
        let asked: Vec<Question> = checks.iter().map(|check| check.question.clone()).collect();
        let identities: Vec<_> = checks.iter().map(Check::identity).collect();
        let mut answers = Answers::to(&asked);
        let start = Instant::now();
        let ended = self.run_statement(&mut checks, &mut answers).await;
        if let Ended::Read(Err(DatabaseError::Timeout)) | Ended::Abandoned(Err(DatabaseError::Timeout)) = &ended {
            self.stuck = self.connection.take().map(|connection| connection.backend);
        }
        let (again, alone) = match ended {
            Ended::Abandoned(_) => {
                self.metrics.checks_gone.add(checks.len() as u64);
                (Vec::new(), None)
            }
            Ended::Read(result) => self.conclude(checks, answers, result.err()),
        };
        let is_quick = self.connection.is_some() && start.elapsed() < TOGETHER_LIMIT.0 / 2;
        if self.pace == Pace::Alone && again.is_empty() && is_quick {
            asked.iter().for_each(|question| self.line.acquit(question));
        }
        self.line.settle(self.pace, &identities, again, alone);
        if self.stuck.is_some() {
            // This ends the backend. If it fails, the next connection tries again.
            let _ = self.connect().await;
        }
    }

    async fn run_statement(&mut self, checks: &mut [Check], answers: &mut Answers<'_>) -> Ended {
        let limit = self.limit(checks.len());
        let Some(connection) = &mut self.connection else { return Ended::Read(Err(DatabaseError::Closed)) };
        let is_same = std::mem::replace(&mut connection.limit, limit) == limit;
        let client = &connection.client;
        self.metrics.checks.add(1);
        let setting = async {
            if !is_same {
                client.batch_execute(&set_limit(limit)).await?;
            }
            Ok(())
        };
        // Both are sent together, so setting the limit costs no round trip.
        let asking = async {
            let (set, read) = join(setting, answers.read(client, &self.sql, &self.logins)).await;
            set.and(read)
        };
        let mut reading = pin!(timeout(limit + GRACE, asking));
        let abandoned = join_all(checks.iter_mut().map(Check::abandoned));
        let flat = |read: Result<Result<(), DatabaseError>, _>| read.unwrap_or(Err(DatabaseError::Timeout));
        tokio::select! {
            biased;
            read = &mut reading => Ended::Read(flat(read)),
            _ = abandoned => {
                let _ = timeout(GRACE, self.database.cancel(client)).await;
                // The connection takes no other statement before this one has ended, because the cancellation could hit
                // the other one.
                Ended::Abandoned(flat(reading.await))
            }
        }
    }

    /// Sends the known answers. Returns the questions to ask again, and the one to ask alone.
    fn conclude(
        &mut self,
        checks: Vec<Check>,
        answers: Answers<'_>,
        error: Option<DatabaseError>,
    ) -> (Vec<Check>, Option<(Check, Alone)>) {
        let mut rest = Vec::new();
        let count = checks.len();
        for ((n, check), refusals) in checks.into_iter().enumerate().zip(answers.refusals) {
            if answers.counts[n] == check.question.topics.len() {
                check.answer(&Ok(refusals));
            } else {
                rest.push(check);
            }
        }
        if rest.is_empty() {
            self.most = if self.pace == Pace::Together { BATCH.min(self.most * 2) } else { 1 };
            return (rest, None);
        }
        let error = error.unwrap_or(DatabaseError::Contract("a topic without an answer"));
        let is_broken = has_broken(&error);
        if is_broken {
            self.connection = None;
        }
        if let Some(why) = delay(&error) {
            return self.delayed_by(rest, count, why, &error);
        }
        match failed(&rest[0].question, &error) {
            Ok(refused) => {
                rest.remove(0).answer(&Ok(refused));
                (rest, None)
            }
            Err(_) if is_broken => self.broken_by(rest),
            Err(unanswered) => (self.try_again(rest, &unanswered), None),
        }
    }

    /// The first of the questions took too long, or waited too long for a lock. It is asked alone from now on; if it
    /// was asked alone, it is answered.
    fn delayed_by(
        &mut self,
        mut rest: Vec<Check>,
        count: usize,
        why: Alone,
        error: &DatabaseError,
    ) -> (Vec<Check>, Option<(Check, Alone)>) {
        let first = rest.remove(0);
        if self.pace == Pace::Together {
            self.metrics.checks_slow.add(1);
            if why == Alone::Slow {
                self.most = (count - rest.len() - 1).max(1);
            }
            return (rest, Some((first, why)));
        }
        let verdict = match (why, error) {
            (Alone::Locked, _) => Err(Unanswered::Locked),
            (_, DatabaseError::Timeout) => Err(Unanswered::Slow),
            _ => failed(&first.question, error),
        };
        let counter = if why == Alone::Locked { &self.metrics.checks_locked } else { &self.metrics.checks_over };
        counter.add(1);
        first.answer(&verdict);
        (rest, None)
    }

    /// The connection broke. The cause may be the server, or the code of a rule: it can make its own error end the
    /// session. So the question that was running is asked alone from now on, where it can't make others fail. A
    /// question during which connections keep breaking has no answer.
    fn broken_by(&self, mut rest: Vec<Check>) -> (Vec<Check>, Option<(Check, Alone)>) {
        let mut first = rest.remove(0);
        first.breaks += 1;
        if self.pace == Pace::Together {
            return (rest, Some((first, Alone::Broken)));
        }
        if first.breaks < BREAKS {
            return (vec![first], None);
        }
        self.metrics.checks_over.add(1);
        first.answer(&Err(Unanswered::Broken));
        (rest, None)
    }

    /// The server failed: each question gets a second attempt, but not a third.
    fn try_again(&mut self, checks: Vec<Check>, unanswered: &Unanswered) -> Vec<Check> {
        self.connection = None;
        let mut again = Vec::new();
        for mut check in checks {
            check.breaks += 1;
            if check.breaks > 1 {
                check.answer(&Err(unanswered.clone()));
            } else {
                again.push(check);
            }
        }
        again
    }

    fn is_connected(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| {
            !connection.client.is_closed()
                && self.database.is_followed(connection.server)
                && connection.dialect == self.database.installed().dialect()
        })
    }

    async fn connect(&mut self) -> Result<(), DatabaseError> {
        if self.is_connected() {
            return Ok(());
        }
        self.connection = None;
        let _connecting = self.line.connecting(self.pace);
        let (client, server) = self.database.connect_to_followed(self.metrics.clone()).await?;
        let (limit, dialect) = (self.limit(1), self.database.installed().dialect());
        let settings = format!(
            "{}; SET lock_timeout = {}; SET default_transaction_read_only = on",
            set_limit(limit),
            dialect.lock_limit(self.lock_limit()).as_millis()
        );
        in_time(client.batch_execute(&settings)).await?;
        if let Err(error) = in_time(client.batch_execute(LOOK_FOR_CLIENT)).await {
            // Not every system supports this.
            tracing::debug!(%error, "the server does not check whether its clients are still connected");
        }
        let rows = in_time(client.query_typed("SELECT pg_catalog.pg_backend_pid()", &[])).await?;
        let backend = rows.first().ok_or(DatabaseError::Contract("no row about the backend"))?.try_get(0)?;
        if let Some(stuck) = self.stuck.take() {
            tracing::warn!(backend = stuck, "a rule did not stop when it was cancelled: its session is terminated");
            let end = "SELECT pg_catalog.pg_terminate_backend($1)";
            in_time(client.query_typed(end, &[(&stuck, Type::INT4)])).await?;
        }
        self.connection =
            Some(Connection { client, server, backend, limit, dialect, _connected: self.line.connected(self.pace) });
        Ok(())
    }
}

fn set_limit(limit: Duration) -> String {
    format!("SET statement_timeout = {}", limit.as_millis())
}

/// Why a question must be asked alone after this error, if it must.
fn delay(error: &DatabaseError) -> Option<Alone> {
    match error.cause() {
        DatabaseError::Timeout => Some(Alone::Slow),
        DatabaseError::Postgres(error) => match error.code()? {
            code if *code == SqlState::QUERY_CANCELED => Some(Alone::Slow),
            code if *code == SqlState::LOCK_NOT_AVAILABLE => Some(Alone::Locked),
            _ => None,
        },
        _ => None,
    }
}

/// Whether an error ended the connection.
fn has_broken(error: &DatabaseError) -> bool {
    match error.cause() {
        DatabaseError::Closed => true,
        DatabaseError::Postgres(error) => error
            .as_db_error()
            .is_none_or(|error| matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic))),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::check::{Asker, Question};
    use tokio::sync::oneshot;

    #[tokio::test(start_paused = true)]
    async fn askers_are_left_once_to_a_worker_that_is_connecting() {
        let line = Arc::new(Line::new(Arc::default()));
        let database = Database::parse("postgres://gate@127.0.0.1/app", None).unwrap();
        let mut worker = Worker::new(line.clone(), Pace::Together, database, [].into(), Arc::default());
        let (reply, mut answer) = oneshot::channel();
        let question = Question { claims: "{}".into(), topics: [Arc::from("boards_5")].into() };
        line.join(question, "ada".into(), Asker { reply, permit: None, alone: Arc::default() }).unwrap();
        let _connecting = line.connecting(Pace::Together);
        worker.cannot_ask(&DatabaseError::Closed).await;
        assert!(answer.try_recv().is_err(), "the other worker may get a connection");
        worker.cannot_ask(&DatabaseError::Closed).await;
        assert!(matches!(answer.try_recv(), Ok(Err(Unanswered::Database(_)))));
    }
}
