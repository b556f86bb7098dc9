//! Access by tokens, and by the rules in the database. A stream ends when its token expires, or when the rules, which
//! are checked again from time to time, no longer allow it.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::access::check::Unanswered;
use crate::access::denied::Denied;
use crate::access::gate::Who;
use crate::access::keys::Keys;
use crate::access::open_streams::{OpenStream, OpenStreams, Pass};
use crate::access::recheck::{Ask, Rechecks, groups};
use crate::access::rules::{Revoked, Rules};
use crate::access::token::{Token, TokenError};
use crate::addresses::network;
use crate::metrics::Metrics;
use crate::stream::subscriber::{End, Subscriber};

/// How often to look for tokens that have expired, and for a change of the key file.
const SWEEP: Duration = Duration::from_secs(1);

/// How many streams are checked again at the same time, without those that have slow rules.
const REVIEW_BATCH: u32 = 500;

/// Decides by tokens and rules.
#[derive(Debug)]
pub struct ByToken {
    keys: Arc<Keys>,
    /// The role of clients without a token, or with a token that names none.
    anonymous: Option<String>,
    rules: Rules,
    metrics: Arc<Metrics>,
    rechecks: Rechecks,
    /// The streams that it has admitted.
    open: Arc<OpenStreams<Holder>>,
}

/// Who holds a token, or is anonymous.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The claims.
    pub who: Who,
    /// When the token expires.
    pub expires: Option<SystemTime>,
    /// The newest tick that was visible when the right was checked.
    pub checked: u64,
}

impl ByToken {
    /// Verifies tokens with `keys`, then asks the `rules`. A client whose stream ends because of a missing answer comes
    /// back after about `retry`.
    pub fn new(
        keys: Arc<Keys>,
        anonymous: Option<String>,
        rules: Rules,
        retry: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let rechecks = Rechecks::new(retry, metrics.clone());
        Self { keys, anonymous, rules, metrics, rechecks, open: Arc::default() }
    }

    /// Identifies a client. A token counts even if it is bad: only a client without one is anonymous.
    pub async fn identify(&self, token: Option<Cow<'_, str>>, peer: IpAddr) -> Result<Holder, Denied> {
        let Some(token) = token else {
            let Some(role) = &self.anonymous else {
                self.metrics.auth_no_token.add(1);
                return Err(Denied::NoToken);
            };
            let claims = serde_json::json!({ "role": role }).to_string().into();
            // All anonymous clients have the same claims. They take turns by network, so that one of them does not make
            // all others wait.
            let identity = network(peer).to_string().into();
            return Ok(Holder { who: Who { claims, identity }, expires: None, checked: 0 });
        };
        match self.verify(&token).await {
            Err(_) if self.keys.is_empty() => {
                self.metrics.auth_unanswered.add(1);
                Err(Unanswered::Keys.into())
            }
            Ok(Token { claims, expires }) => {
                Ok(Holder { who: known(claims, self.anonymous.as_deref()), expires, checked: 0 })
            }
            Err(error) => {
                tracing::info!(%error, remedy = error.remedy(), "token refused");
                if error == TokenError::Expired {
                    self.metrics.auth_expired_token.add(1);
                    return Err(Denied::Expired);
                }
                self.metrics.auth_bad_token.add(1);
                Err(Denied::BadToken)
            }
        }
    }

    /// Verifies a token. If it names a key that is not known, the keys are fetched again.
    async fn verify(&self, token: &str) -> Result<Token, TokenError> {
        match Token::verify(token, &self.keys) {
            Err(TokenError::NoKey) => {
                self.keys.fetch(&self.metrics).await;
                Token::verify(token, &self.keys)
            }
            verified => verified,
        }
    }

    /// Whether the holder may subscribe to all of the topics.
    pub async fn authorize(&self, holder: &Holder, topics: &[Arc<str>]) -> Result<(), Denied> {
        self.rules.authorize(&holder.who, topics).await
    }

    /// Registers a stream. Dropping the result removes it.
    pub fn admit(&self, holder: Holder, subscriber: &Arc<Subscriber>, topics: &[Arc<str>]) -> Pass {
        let checked = holder.checked;
        self.open.add(subscriber.clone(), topics, holder, checked)
    }

    /// Ends streams whose tokens expire, checks all streams again once in `review`, and reads the keys again when their
    /// file changes. Runs forever.
    pub async fn run(&self, review: Duration) -> Infallible {
        let reviewing = async {
            loop {
                sleep(review).await;
                self.review().await;
            }
        };
        let sweeping = async {
            let mut sweep = interval(SWEEP);
            sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                sweep.tick().await;
                self.end_expired(SystemTime::now());
            }
        };
        let refreshing = async {
            loop {
                sleep(SWEEP).await;
                let keys = self.keys.clone();
                // Not in a thread that serves streams, because a file system may take long to answer, or never do.
                let _ = spawn_blocking(move || keys.refresh()).await;
            }
        };
        tokio::select! {
            never = reviewing => never,
            never = sweeping => never,
            never = refreshing => never,
            never = self.recheck() => never,
            never = self.keys.keep_fresh(&self.metrics) => never,
        }
    }

    /// Ends the streams whose tokens have expired.
    fn end_expired(&self, now: SystemTime) {
        for stream in self.open.select(|stream| stream.right.expires.is_some_and(|expires| expires <= now)) {
            if stream.subscriber.close(End::Revoked) {
                self.metrics.auth_expired.add(1);
            }
        }
    }

    /// Checks all streams again, and ends those that are no longer allowed. Does not wait for streams with slow rules.
    async fn review(&self) {
        let start = Instant::now();
        // Channels have no rules.
        let streams = self.open.select(|stream| !stream.topics.is_empty());
        let count = streams.len();
        let permits = Arc::new(Semaphore::new(REVIEW_BATCH as usize));
        for stream in streams {
            // The semaphore is never closed.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            if !stream.begin_review() {
                continue;
            }
            let (rules, metrics) = (self.rules.clone(), self.metrics.clone());
            tokio::spawn(async move {
                let OpenStream { subscriber, topics, right, locked, .. } = &*stream;
                let revoked = rules.check_again(&right.who, topics, locked, permit).await;
                if let Some(revoked) = revoked.filter(|_| subscriber.close(End::Revoked)) {
                    revoked.report(&metrics);
                }
                stream.end_review();
            });
        }
        let _ = permits.acquire_many(REVIEW_BATCH).await;
        tracing::debug!(streams = count, time = ?start.elapsed(), "streams checked again");
    }
}

impl ByToken {
    /// Checks the streams again that hold something back. Runs forever.
    async fn recheck(&self) -> Infallible {
        let permits = Arc::new(Semaphore::new(REVIEW_BATCH as usize));
        loop {
            let held = self.open.held().await;
            for group in groups(held, |stream| (stream.right.who.claims.clone(), stream.topics.clone())) {
                // The semaphore is never closed.
                let permit = Mutex::new(permits.clone().acquire_owned().await.ok());
                let held = HeldByRules { rules: self.rules.clone(), stream: group[0].stream.clone(), permit };
                let rechecks = self.rechecks.clone();
                tokio::spawn(async move { rechecks.settle(&group, &held).await });
            }
        }
    }
}

/// Streams with the same claims and topics that hold something back.
struct HeldByRules {
    rules: Rules,
    /// One of these streams. They all have the same claims and topics.
    stream: Arc<OpenStream<Holder>>,
    /// For the first attempt to get an answer. Later attempts run without it.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Ask for HeldByRules {
    async fn ask(&self) -> Result<Option<Revoked>, Unanswered> {
        let permit = self.permit.lock().take();
        self.rules.check_held(&self.stream.right.who, &self.stream.topics, permit).await
    }
}

/// The identity that claims name. Claims without a role have the anonymous one, if there is one.
pub fn known(mut claims: Map<String, Value>, anonymous: Option<&str>) -> Who {
    if let (None, Some(role)) = (claims.get("role"), anonymous) {
        claims.insert("role".into(), Value::String(role.to_owned()));
    }
    let claims: Arc<str> = Value::Object(claims).to_string().into();
    Who { identity: claims.clone(), claims }
}
