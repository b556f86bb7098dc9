//! Access by the application's own rule: the proxy asks the application over HTTP, with the client's cookies. A
//! [`question`] is the request to the application, an [`answer`] its response, and a [`visit`] what is known about a
//! stream that the application has admitted.
//!
//! An answer that is neither yes nor no admits nobody, and ends no stream until `--auth-grace` has passed.

pub mod answer;
pub mod question;
pub mod visit;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use url::Url;

use crate::access::application::answer::{Answer, Yes};
use crate::access::application::question::{Pending, Question, Verdict};
use crate::access::application::visit::{Timing, Visit, Visitor};
use crate::access::by_token::known;
use crate::access::check::Unanswered;
use crate::access::denied::Denied;
use crate::access::fetch::{FetchError, Fetcher};
use crate::access::open_streams::{Held, OpenStream, OpenStreams, Pass};
use crate::access::recheck::{Ask, Rechecks, groups};
use crate::access::rules::{Revoked, Rules};
use crate::metrics::Metrics;
use crate::stream::frame::{Frame, Unauthorized};
use crate::stream::subscriber::Subscriber;

/// The longest answer, in bytes: some claims, and the topics of one stream.
pub const MOST: usize = 64 * 1024;

/// Questions for new streams that are asked at the same time. An application server has about as many threads or
/// fewer, and queues the rest.
const REQUESTS: usize = 32;

/// The same for open streams. They have their own, so nobody can keep a stream by keeping the application busy.
const REVIEWS: usize = 8;

/// Questions that may be waiting; beyond that a client should come back later.
const MOST_WAITING: usize = 20_000;

/// The longest wait for an answer, with the time in the queue.
const WAIT: Duration = Duration::from_secs(20);

/// How often to look for streams about which the application must be asked again.
const SWEEP: Duration = Duration::from_secs(1);

/// The same for open streams that wait for the answer.
const HELD: usize = 32;

/// How many streams with claims have their rules checked at the same time.
const REVIEW_BATCH: usize = 500;

/// Decides by the application's answers.
#[derive(Debug)]
pub struct Application {
    url: Url,
    fetcher: Fetcher,
    timing: Timing,
    /// The role of claims that name none.
    anonymous: Option<String>,
    /// The database's rules, for clients whose claims the application has stated.
    rules: Rules,
    metrics: Arc<Metrics>,
    pending: Pending,
    requests: Arc<Semaphore>,
    reviews: Arc<Semaphore>,
    held: Arc<Semaphore>,
    rule_reviews: Arc<Semaphore>,
    rechecks: Rechecks,
    open: Arc<OpenStreams<Visit>>,
    /// Whether the last question for an open stream had no answer.
    is_failing: AtomicBool,
}

impl Application {
    /// An application that answers at `url`.
    pub fn new(
        url: Url,
        fetcher: Fetcher,
        timing: Timing,
        anonymous: Option<String>,
        rules: Rules,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            url,
            fetcher,
            timing,
            anonymous,
            rules,
            rechecks: Rechecks::new(timing.retry, metrics.clone()),
            metrics,
            pending: Pending::default(),
            requests: Arc::new(Semaphore::new(REQUESTS)),
            reviews: Arc::new(Semaphore::new(REVIEWS)),
            held: Arc::new(Semaphore::new(HELD)),
            rule_reviews: Arc::new(Semaphore::new(REVIEW_BATCH)),
            open: Arc::default(),
            is_failing: AtomicBool::new(false),
        }
    }

    /// Asks whether the visitor may subscribe, and removes the topics that are not allowed.
    pub async fn authorize(&self, visitor: &mut Visitor, topics: &mut Vec<Arc<str>>) -> Result<(), Denied> {
        let yes = self.admits(visitor, "topic", topics).await?;
        let asked = topics.len();
        topics.retain(|topic| yes.allows(topic));
        if topics.len() < asked {
            let Visitor { headers, seen, .. } = &visitor;
            visitor.question = Some(Question::new(&self.url, "topic", topics, headers, seen.recheck)?);
        }
        match &visitor.who {
            Some(who) => self.rules.authorize(who, topics).await,
            None => {
                self.metrics.auth_allowed.add(1);
                Ok(())
            }
        }
    }

    /// Asks whether the visitor may listen to a channel.
    pub async fn authorize_channel(&self, visitor: &mut Visitor, name: &str) -> Result<(), Denied> {
        let names = [name.into()];
        self.admits(visitor, "channel", &names).await?;
        let [name] = names;
        visitor.channel = Some(name);
        self.metrics.auth_allowed.add(1);
        Ok(())
    }

    /// Asks about the names; fails unless the application allows some of them. Notes in the visitor what it says about
    /// it.
    async fn admits(&self, visitor: &mut Visitor, kind: &str, names: &[Arc<str>]) -> Result<Yes, Denied> {
        let question = Question::new(&self.url, kind, names, &visitor.headers, visitor.seen.recheck)?;
        let verdict = if self.pending.count() >= MOST_WAITING {
            Err(Unanswered::Full)
        } else {
            timeout(WAIT, self.ask(&question, &self.requests)).await.unwrap_or(Err(Unanswered::Late))
        };
        let refuse = |error: Denied, said: &dyn std::fmt::Display| {
            self.metrics.auth_denied.add(1);
            for name in names {
                tracing::info!(topic = %name, reason = %said, "subscription refused by the application");
            }
            Err(error)
        };
        match verdict {
            Ok(Answer::Yes(yes)) if names.iter().any(|name| yes.allows(name)) => {
                visitor.question = Some(question);
                visitor.who = yes.claims.clone().map(|claims| known(claims, self.anonymous.as_deref()));
                visitor.expires_in = yes.expires_in;
                Ok(yes)
            }
            Ok(Answer::Yes(_)) => refuse(Denied::all(names), &"not among its topics"),
            Ok(Answer::No(status)) if status == hyper::StatusCode::UNAUTHORIZED => refuse(Denied::Unknown, &status),
            Ok(Answer::No(status)) => refuse(Denied::all(names), &status),
            Err(error) => {
                self.metrics.auth_unanswered.add(1);
                tracing::warn!(%error, "subscription not checked");
                Err(error.into())
            }
        }
    }

    /// Asks a question, when it is its turn in the `line`.
    async fn ask(&self, question: &Question, line: &Arc<Semaphore>) -> Verdict {
        let asking = self.pending.join(question, || {
            let (fetcher, metrics) = (self.fetcher.clone(), self.metrics.clone());
            let (question, line) = (question.clone(), line.clone());
            async move {
                metrics.application_waiting.rise();
                let _waiting = Waiting(metrics.clone());
                // The semaphore is never closed.
                let Ok(_turn) = line.acquire_owned().await else { return Err(Unanswered::ShuttingDown) };
                // In a box: a question that waits for its turn needs no room for an exchange over HTTP.
                Box::pin(fetch(&fetcher, &question, &metrics)).await
            }
        });
        asking.await
    }

    /// Registers a stream. Dropping the result removes it.
    pub fn admit(&self, mut visitor: Visitor, subscriber: &Arc<Subscriber>, topics: &[Arc<str>]) -> Option<Pass> {
        let question = visitor.question.take()?;
        let checked = visitor.seen.tick;
        let visit = Visit::begin(question, visitor, self.timing.reauthorize);
        Some(self.open.add(subscriber.clone(), topics, visit, checked))
    }

    /// Asks again for open streams: when it is time, and when they hold something back. Runs forever.
    pub async fn run(self: &Arc<Self>) -> Infallible {
        tokio::select! {
            never = self.review_all() => never,
            never = self.recheck() => never,
        }
    }

    async fn recheck(self: &Arc<Self>) -> Infallible {
        loop {
            for group in groups(self.open.held().await, |stream| stream.right.question.clone()) {
                let since = group.iter().map(|held| held.tick).max().unwrap_or_default();
                let question = Question { since, ..group[0].stream.right.question.clone() };
                let held = HeldByApplication { application: self.clone(), question, group };
                tokio::spawn(async move { held.application.rechecks.settle(&held.group, &held).await });
            }
        }
    }

    async fn review_all(self: &Arc<Self>) -> Infallible {
        let mut sweep = interval(self.timing.reauthorize.clamp(Duration::from_millis(10), SWEEP));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            sweep.tick().await;
            let now = Instant::now();
            for stream in self.open.select(|stream| stream.right.is_due(now)) {
                if stream.begin_review() {
                    let application = self.clone();
                    tokio::spawn(async move {
                        application.review(&stream).await;
                        stream.end_review();
                    });
                }
            }
        }
    }

    async fn review(&self, stream: &OpenStream<Visit>) {
        let visit = &stream.right;
        let asking = timeout_at(visit.ask(self.timing), self.verdict(stream, &visit.question, &self.reviews));
        let yes = match asking.await.unwrap_or(Err(Unanswered::Late)) {
            Ok(Ok(yes)) => yes,
            Ok(Err(revoked)) => return self.revoke(stream, &revoked),
            Err(error) => return self.not_answered(stream, &error),
        };
        let who = yes.claims.map(|claims| known(claims, self.anonymous.as_deref()));
        if let (Some(who), None) = (&who, &visit.channel) {
            // The semaphore is never closed.
            let Ok(permit) = self.rule_reviews.clone().acquire_owned().await else { return };
            let revoked = self.rules.check_again(who, &stream.topics, &stream.locked, permit).await;
            if let Some(revoked) = revoked {
                return self.revoke(stream, &revoked);
            }
        }
        if self.is_failing.swap(false, Relaxed) {
            tracing::info!("open streams are checked again");
        }
        visit.confirm(yes.expires_in, self.timing.reauthorize);
    }

    /// What the application says about an open stream: yes, or what it revokes.
    async fn verdict(
        &self,
        stream: &OpenStream<Visit>,
        question: &Question,
        line: &Arc<Semaphore>,
    ) -> Result<Result<Yes, Revoked>, Unanswered> {
        let names = || stream.topics.iter().chain(&stream.right.channel);
        Ok(match self.ask(question, line).await? {
            Answer::Yes(yes) if names().all(|name| yes.allows(name)) => Ok(yes),
            Answer::Yes(_) => Err(Revoked::all(names(), "not among the topics of the application's answer")),
            Answer::No(status) => Err(Revoked::all(names(), &format!("the application answered {status}"))),
        })
    }

    /// Ends a stream whose access was revoked.
    fn revoke(&self, stream: &OpenStream<Visit>, revoked: &Revoked) {
        if stream.subscriber.dismiss(Frame::unauthorized(Unauthorized::Revoked)) {
            revoked.report(&self.metrics);
        }
    }

    /// The application gave no clear answer about an open stream. After the grace it ends, and its client reconnects.
    fn not_answered(&self, stream: &OpenStream<Visit>, error: &Unanswered) {
        // Once, and not for each of thousands of streams.
        if self.is_failing.swap(true, Relaxed) {
            tracing::debug!(%error, "a subscription could not be checked again");
        } else {
            tracing::warn!(%error, grace = ?self.timing.grace, "open streams can't be checked again");
        }
        if stream.right.postpone(self.timing) {
            let retry = self.timing.retry.mul_f64(0.5 + fastrand::f64());
            if stream.subscriber.dismiss(Frame::retry(retry)) {
                self.metrics.auth_grace_over.add(1);
                tracing::warn!(topics = ?stream.topics, "a stream ended because the application gave no answer");
            }
        }
    }
}

/// Streams with the same question that hold something back.
struct HeldByApplication {
    application: Arc<Application>,
    question: Question,
    group: Vec<Held<Visit>>,
}

impl Ask for HeldByApplication {
    async fn ask(&self) -> Result<Option<Revoked>, Unanswered> {
        let Self { application, question, group } = self;
        let stream = &*group[0].stream;
        let yes = match application.verdict(stream, question, &application.held).await? {
            Ok(yes) => yes,
            Err(revoked) => return Ok(Some(revoked)),
        };
        if let (Some(claims), None) = (yes.claims, &stream.right.channel) {
            let who = known(claims, application.anonymous.as_deref());
            if let Some(revoked) = application.rules.check_held(&who, &stream.topics, None).await? {
                return Ok(Some(revoked));
            }
        }
        let reauthorize = application.timing.reauthorize;
        group.iter().for_each(|held| held.stream.right.confirm(yes.expires_in, reauthorize));
        Ok(None)
    }
}

/// Sends the question, and reads the answer.
async fn fetch(fetcher: &Fetcher, question: &Question, metrics: &Metrics) -> Verdict {
    let unanswered = |counter: &crate::metrics::Counter, error: &dyn std::fmt::Display| {
        counter.add(1);
        Err(Unanswered::Application(error.to_string().into()))
    };
    match fetcher.get(&question.target, &question.headers).await {
        Ok(fetched) => match Answer::read(fetched.status, &fetched.body) {
            Ok(answer) => {
                let counter = match answer {
                    Answer::Yes(_) => &metrics.application_yes,
                    Answer::No(_) => &metrics.application_no,
                };
                counter.add(1);
                tracing::debug!(status = %fetched.status, "the application answered");
                Ok(answer)
            }
            Err(error) => unanswered(&metrics.application_unclear, &error),
        },
        Err(error @ FetchError::Late(_)) => unanswered(&metrics.application_late, &error),
        Err(error @ FetchError::Unreachable(_)) => unanswered(&metrics.application_unreachable, &error),
        Err(error @ (FetchError::TooLong(_) | FetchError::Request(_))) => {
            unanswered(&metrics.application_unclear, &error)
        }
    }
}

/// Counts a question until it is answered or withdrawn.
struct Waiting(Arc<Metrics>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.application_waiting.fall();
    }
}
