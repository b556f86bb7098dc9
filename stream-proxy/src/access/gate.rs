//! The gate: asks the database who may subscribe to what. New requests, checks of open streams, and those that streams
//! wait for have separate queues and workers, so nobody can keep a stream by keeping the proxy busy. The queues are in
//! `line`, the workers in `worker`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::access::check::{Alone, Asker, Question, Refusal, Unanswered, Verdict};
use crate::access::line::{Line, Pace};
use crate::access::worker::Worker;
use crate::metrics::{Gauge, Metrics};
use crate::upstream::database::Database;

/// The longest wait for an answer. When 10,000 clients arrive at once they wait a few seconds; beyond this limit a
/// client should come back later.
const WAIT: Duration = Duration::from_secs(20);

/// Connections for new requests: those that ask many questions together, and those that ask slow ones alone. A slow
/// rule blocks one of the latter.
const REQUEST_WORKERS: [(Pace, usize); 2] = [(Pace::Together, 2), (Pace::Alone, 2)];

/// The same for open streams.
const REVIEW_WORKERS: [(Pace, usize); 2] = [(Pace::Together, 1), (Pace::Alone, 1)];

/// The same for open streams that wait for the answer. They connect when there is something to ask.
const HELD_WORKERS: [(Pace, usize); 2] = [(Pace::Together, 2), (Pace::Alone, 1)];

/// Who asks for topics.
#[derive(Clone, Debug)]
pub struct Who {
    /// The claims, as JSON.
    pub claims: Arc<str>,
    /// Who takes turns: the same as the claims, or for an anonymous client the network of its address.
    pub identity: Arc<str>,
}

/// Asks the database, through its workers.
#[derive(Clone, Debug)]
pub struct Gate {
    requests: Arc<Line>,
    reviews: Arc<Line>,
    held: Arc<Line>,
    metrics: Arc<Metrics>,
    _workers: Arc<Workers>,
}

#[derive(Debug, Default)]
struct Workers(Vec<AbortHandle>);

impl Drop for Workers {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Gate {
    /// Starts the workers; they end when the gate is dropped. `logins` are the proxy's other roles.
    pub fn new(database: &Database, logins: &Arc<[String]>, metrics: &Arc<Metrics>) -> Self {
        let mut workers = Workers::default();
        let mut line = |sizes: [(Pace, usize); 2], may_be_eager: bool| {
            let line = Arc::new(Line::new(metrics.clone()));
            for (pace, count) in sizes {
                for n in 0..count {
                    let worker = Worker::new(line.clone(), pace, database.clone(), logins.clone(), metrics.clone());
                    let is_eager = may_be_eager && pace == Pace::Together && n == 0;
                    workers.0.push(tokio::spawn(worker.run(is_eager)).abort_handle());
                }
            }
            line
        };
        let (requests, reviews) = (line(REQUEST_WORKERS, true), line(REVIEW_WORKERS, true));
        let held = line(HELD_WORKERS, false);
        Self { requests, reviews, held, metrics: metrics.clone(), _workers: Arc::new(workers) }
    }

    /// The topics to which `who` may not subscribe. Dropping the future withdraws the question.
    pub async fn check(&self, who: &Who, topics: &[Arc<str>]) -> Verdict {
        self.ask(&self.requests, who, topics, None).await
    }

    /// The same for an open stream. `permit` is released when the question is answered, or is found to be slow.
    pub async fn check_again(&self, who: &Who, topics: &[Arc<str>], permit: OwnedSemaphorePermit) -> Verdict {
        self.ask(&self.reviews, who, topics, Some(permit)).await
    }

    /// The same for an open stream that waits for the answer. The question is asked after this call.
    pub async fn check_held(&self, who: &Who, topics: &[Arc<str>], permit: Option<OwnedSemaphorePermit>) -> Verdict {
        self.ask(&self.held, who, topics, permit).await
    }

    async fn ask(
        &self,
        line: &Line,
        Who { claims, identity }: &Who,
        topics: &[Arc<str>],
        permit: Option<OwnedSemaphorePermit>,
    ) -> Verdict {
        if has_nul(claims) {
            let reason: Arc<str> = "the claims contain a NUL, which the database does not accept".into();
            let refuse = |topic: &Arc<str>| Refusal { topic: topic.clone(), reason: reason.clone() };
            return Ok(topics.iter().map(refuse).collect());
        }
        let (reply, verdict) = oneshot::channel();
        let alone = Arc::new(OnceLock::new());
        let question = Question { claims: claims.clone(), topics: topics.into() };
        line.join(question, identity.clone(), Asker { reply, permit, alone: alone.clone() })?;
        let _waiting = Waiting::one(&self.metrics.checks_waiting);
        match timeout(WAIT, verdict).await {
            Ok(answered) => answered.unwrap_or(Err(Unanswered::ShuttingDown)),
            Err(_) => {
                self.metrics.checks_late.add(1);
                Err(match alone.get() {
                    Some(Alone::Slow) => Unanswered::Slow,
                    Some(Alone::Locked) => Unanswered::Locked,
                    Some(Alone::Broken) | None => Unanswered::Late,
                })
            }
        }
    }
}

/// Counts a waiting asker until it is dropped.
struct Waiting<'g>(&'g Gauge);

impl<'g> Waiting<'g> {
    fn one(gauge: &'g Gauge) -> Self {
        gauge.rise();
        Self(gauge)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fall();
    }
}

/// Whether a JSON text contains an escaped NUL.
fn has_nul(json: &str) -> bool {
    json.match_indices("\\u0000")
        .any(|(at, _)| json[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nul_in_the_claims_is_found() {
        let text = |value: &str| serde_json::json!({"a": value, value: 1}).to_string();
        for with in ["\0", "x\\\0", "\\\\\0"] {
            assert!(has_nul(&text(with)), "{with:?}");
        }
        for without in ["", "\\u0000", "u0000", "\\\\u0000", "\u{1}"] {
            assert!(!has_nul(&text(without)), "{without:?}");
        }
    }
}
