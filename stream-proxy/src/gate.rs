//! The gate: asks the database who may subscribe to what. Requests that come together are asked together, and the same
//! question is asked once; a worker with a connection of its own takes what has gathered meanwhile, so the more come, the
//! fewer questions each costs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use crate::database::{Database, DatabaseError, answer};
use crate::metrics::Metrics;

/// Connections that ask. A rule that takes long holds up one of them only.
const WORKERS: usize = 2;

/// Checks that are asked together at most.
const BATCH: usize = 100;

/// Checks that may wait; more come from clients that are told to come back later.
const WAITING: usize = 20_000;

/// The longest that the rules of one question may run, in the server.
const RULE_TIMEOUT: Duration = Duration::from_secs(2);

/// One check for each row: the claims, the topics as a JSON array.
const SQL: &str = "SELECT (r.n OPERATOR(pg_catalog.-) 1)::pg_catalog.int4, c.topic, c.allowed, c.reason,
        pg_catalog.current_setting('is_superuser') OPERATOR(pg_catalog.=) 'on'
    FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]))
        WITH ORDINALITY AS r (claims, topics, n)
    CROSS JOIN LATERAL tidings.check_subscription(
        r.claims::pg_catalog.jsonb, ARRAY(SELECT pg_catalog.jsonb_array_elements_text(r.topics::pg_catalog.jsonb))) AS c";

/// Whether the login role is a superuser, and the roles whose rights it has without taking them. Rights of its own, beside those
/// of `tidings.grant_proxy()`, are of no use to the proxy and of much to whoever gets hold of its password.
const OWN_RIGHTS: &str = "SELECT pg_catalog.current_setting('is_superuser') OPERATOR(pg_catalog.=) 'on', ARRAY(
    SELECT r.rolname::pg_catalog.text FROM pg_catalog.pg_roles r
    WHERE r.rolname OPERATOR(pg_catalog.<>) session_user AND pg_catalog.pg_has_role(session_user, r.oid, 'USAGE') ORDER BY 1)";

const SHUTTING_DOWN: &str = "the proxy is shutting down";

/// Why not, for the log.
pub const SUPERUSER: &str = "the proxy's database role is a superuser: give it one with tidings.grant_proxy()";

/// A topic that the claims may not subscribe to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The topic.
    pub topic: Arc<str>,
    /// Why not: for the log, not for the client.
    pub reason: Arc<str>,
}

/// The database's answer: what is refused, nothing if all is allowed.
pub type Verdict = Result<Vec<Refusal>, Unanswered>;

/// The database could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("access can't be checked: {0}")]
pub struct Unanswered(Arc<str>);

/// Claims, as JSON, and topics.
type Question = (Arc<str>, Vec<Arc<str>>);

#[derive(Debug)]
struct Check {
    question: Question,
    reply: oneshot::Sender<Verdict>,
}

/// The way to the database.
#[derive(Clone, Debug)]
pub struct Gate {
    queue: mpsc::Sender<Check>,
}

impl Gate {
    /// Starts the workers; they end when the gate is dropped.
    pub fn new(database: Database, metrics: Arc<Metrics>) -> Self {
        let (queue, checks) = mpsc::channel(WAITING);
        let checks = Arc::new(Mutex::new(checks));
        for n in 0..WORKERS {
            let worker = Worker { database: database.clone(), metrics: metrics.clone(), client: None, first: n == 0 };
            tokio::spawn(worker.run(checks.clone()));
        }
        Self { queue }
    }

    /// Which of the topics the claims may not subscribe to; not answered if too many wait already.
    pub async fn check(&self, claims: Arc<str>, topics: Vec<Arc<str>>) -> Verdict {
        let room = self.queue.try_reserve().map_err(|_| Unanswered("too many requests are waiting".into()))?;
        hand_in(room, claims, topics).await
    }

    /// The same for a stream that is open: it waits for its turn however many others there are, so that nobody keeps a stream by
    /// keeping the proxy busy.
    pub async fn check_again(&self, claims: Arc<str>, topics: Vec<Arc<str>>) -> Verdict {
        let room = self.queue.reserve().await.map_err(|_| Unanswered(SHUTTING_DOWN.into()))?;
        hand_in(room, claims, topics).await
    }
}

async fn hand_in(room: mpsc::Permit<'_, Check>, claims: Arc<str>, topics: Vec<Arc<str>>) -> Verdict {
    if has_nul(&claims) {
        // Asked together with others, it would spoil the question for all of them.
        let reason: Arc<str> = "the claims hold a NUL, which the database cannot take".into();
        return Ok(topics.into_iter().map(|topic| Refusal { topic, reason: reason.clone() }).collect());
    }
    let (reply, verdict) = oneshot::channel();
    room.send(Check { question: (claims, topics), reply });
    verdict.await.unwrap_or_else(|_| Err(Unanswered(SHUTTING_DOWN.into())))
}

/// Whether a text of JSON has an escaped NUL in it.
fn has_nul(json: &str) -> bool {
    json.match_indices("\\u0000")
        .any(|(at, _)| json[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0)
}

struct Worker {
    database: Database,
    metrics: Arc<Metrics>,
    client: Option<Client>,
    /// The first one connects at once, and looks what rights the login role has.
    first: bool,
}

impl Worker {
    async fn run(mut self, checks: Arc<Mutex<mpsc::Receiver<Check>>>) {
        if self.first {
            // If it fails, whoever comes first is told.
            let _ = self.connect().await;
        }
        loop {
            let mut batch = Vec::new();
            if checks.lock().await.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            let mut askers: HashMap<Question, Vec<oneshot::Sender<Verdict>>> = HashMap::new();
            for check in batch {
                askers.entry(check.question).or_default().push(check.reply);
            }
            let (questions, replies): (Vec<_>, Vec<_>) = askers.into_iter().unzip();
            let verdicts = self.verdicts(&questions).await;
            for (replies, verdict) in replies.into_iter().zip(verdicts) {
                for reply in replies {
                    // Whoever has gone away meanwhile needs no answer.
                    let _ = reply.send(verdict.clone());
                }
            }
        }
    }

    async fn verdicts(&mut self, questions: &[Question]) -> Vec<Verdict> {
        match self.ask(questions).await {
            Ok(refusals) => refusals.into_iter().map(Ok).collect(),
            // One that can't be answered spoils it for all: each by itself, then.
            Err(DatabaseError::Postgres(error)) if questions.len() > 1 && error.as_db_error().is_some() => {
                let mut verdicts = Vec::with_capacity(questions.len());
                for question in questions {
                    verdicts.push(self.verdict(question).await);
                }
                verdicts
            }
            Err(error) => questions.iter().map(|question| failed(question, &error)).collect(),
        }
    }

    async fn verdict(&mut self, question: &Question) -> Verdict {
        match self.ask(std::slice::from_ref(question)).await {
            Ok(mut refusals) => Ok(refusals.pop().unwrap_or_default()),
            Err(error) => failed(question, &error),
        }
    }

    /// What is refused, for each question.
    async fn ask(&mut self, questions: &[Question]) -> Result<Vec<Vec<Refusal>>, DatabaseError> {
        let claims: Vec<&str> = questions.iter().map(|(claims, _)| &**claims).collect();
        let topics: Vec<String> = questions
            .iter()
            .map(|(_, topics)| serde_json::json!(topics.iter().map(|topic| &**topic).collect::<Vec<_>>()).to_string())
            .collect();
        self.metrics.checks.add(1);
        let client = self.connect().await?;
        let rows = answer(client.query_typed(SQL, &[(&claims, Type::TEXT_ARRAY), (&topics, Type::TEXT_ARRAY)])).await;
        if matches!(rows, Err(DatabaseError::Timeout | DatabaseError::Closed)) {
            self.client = None;
        }
        let mut refusals = vec![Vec::new(); questions.len()];
        let mut answered = vec![0; questions.len()];
        for row in rows? {
            let n = usize::try_from(row.try_get::<_, i32>(0)?).unwrap_or(usize::MAX);
            let superuser: bool = row.try_get(4)?;
            let (Some(refused), Some(count)) = (refusals.get_mut(n), answered.get_mut(n)) else {
                return Err(DatabaseError::Contract("an answer that was not asked for"));
            };
            *count += 1;
            if superuser || !row.try_get::<_, bool>(2)? {
                let reason = if superuser { Some(SUPERUSER) } else { row.try_get(3)? };
                let topic = row.try_get::<_, &str>(1)?.into();
                refused.push(Refusal { topic, reason: reason.unwrap_or_default().into() });
            }
        }
        let complete = questions.iter().zip(answered).all(|((_, topics), count)| count == topics.len());
        if complete { Ok(refusals) } else { Err(DatabaseError::Contract("a topic without an answer")) }
    }

    async fn connect(&mut self) -> Result<&Client, DatabaseError> {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            let (client, _) = self.database.connect(self.metrics.clone()).await?;
            let settings =
                format!("SET statement_timeout = {}; SET default_transaction_read_only = on", RULE_TIMEOUT.as_millis());
            answer(client.batch_execute(&settings)).await?;
            if self.first {
                warn_of_rights(&client).await?;
            }
            self.client = Some(client);
        }
        self.client.as_ref().ok_or(DatabaseError::Closed)
    }
}

/// Says in the log what the login role has and should not have.
async fn warn_of_rights(client: &Client) -> Result<(), DatabaseError> {
    let rows = answer(client.query_typed(OWN_RIGHTS, &[])).await?;
    let row = rows.first().ok_or(DatabaseError::Contract("no row about rights"))?;
    let (superuser, roles): (bool, Vec<&str>) = (row.try_get(0)?, row.try_get(1)?);
    if superuser {
        tracing::error!("nobody is let in: {SUPERUSER}");
    } else if !roles.is_empty() {
        let roles = roles.join(", ");
        tracing::warn!(
            roles,
            "the proxy's database role has the rights of these roles by itself: make it NOINHERIT, or grant them WITH INHERIT FALSE"
        );
    }
    Ok(())
}

/// A question that the rules answer with an error is refused (a timeout means no); one that the server cannot take is not.
fn failed((_, topics): &Question, error: &DatabaseError) -> Verdict {
    match error {
        DatabaseError::Postgres(postgres) if postgres.code().is_some_and(blames_the_rule) && !error.no_extension() => {
            let reason: Arc<str> = error.to_string().into();
            Ok(topics.iter().map(|topic| Refusal { topic: topic.clone(), reason: reason.clone() }).collect())
        }
        _ => Err(Unanswered(error.to_string().into())),
    }
}

/// Whether an error comes of the question, and not of a server that shuts down, is full, or is out of reach.
fn blames_the_rule(code: &SqlState) -> bool {
    let code = code.code();
    !(code.starts_with("57P") || ["08", "53", "58", "XX"].iter().any(|class| code.starts_with(class)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_checked_again_waits_where_others_are_sent_away() {
        let (queue, mut checks) = mpsc::channel(1);
        let gate = Gate { queue };
        let ask = |gate: Gate, again| async move {
            let (claims, topics) = ("{}".into(), vec!["t".into()]);
            if again { gate.check_again(claims, topics).await } else { gate.check(claims, topics).await }
        };
        let first = tokio::spawn(ask(gate.clone(), false));
        while gate.queue.capacity() > 0 {
            tokio::task::yield_now().await;
        }
        let again = tokio::spawn(ask(gate.clone(), true));
        tokio::task::yield_now().await;
        assert!(ask(gate.clone(), false).await.is_err());
        for _ in 0..2 {
            let check = checks.recv().await.unwrap();
            check.reply.send(Ok(Vec::new())).unwrap();
        }
        assert_eq!((first.await.unwrap(), again.await.unwrap()), (Ok(Vec::new()), Ok(Vec::new())));
    }

    #[test]
    fn a_nul_in_the_claims_is_found_and_nothing_else_is_taken_for_one() {
        let text = |value: &str| serde_json::json!({"a": value, value: 1}).to_string();
        for with in ["\0", "x\\\0", "\\\\\0"] {
            assert!(has_nul(&text(with)), "{with:?}");
        }
        for without in ["", "\\u0000", "u0000", "\\\\u0000", "\u{1}"] {
            assert!(!has_nul(&text(without)), "{without:?}");
        }
    }

    #[test]
    fn a_server_that_shuts_down_takes_nobodys_right_away() {
        for code in ["57P01", "57P03", "53300", "08006", "58030"] {
            assert!(!blames_the_rule(&SqlState::from_code(code)), "{code}");
        }
        for code in ["57014", "22P02", "42501", "42P01"] {
            assert!(blames_the_rule(&SqlState::from_code(code)), "{code}");
        }
    }
}
