//! Who may subscribe to what. A request first becomes an identity, then its topics are checked for it; both before a
//! byte of a stream is sent. Open streams are checked again from time to time, and end with their token.

use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::Value;
use slab::Slab;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::access::check::{Refusal, Unanswered};
use crate::access::gate::{Gate, Who};
use crate::access::token::{Keys, Token};
use crate::addresses::network;
use crate::metrics::Metrics;
use crate::stream::subscriber::{End, Subscriber};

/// How often streams are looked through for tokens that have expired, and the key file for a change.
const SWEEP: Duration = Duration::from_secs(1);

/// Streams that are checked again at the same time; those with slow rules do not count.
const REVIEW_BATCH: u32 = 500;

/// How access is decided.
#[derive(Clone, Debug)]
pub enum Access {
    /// Every topic is open to everyone.
    Open,
    /// By tokens, and by the rules in the database.
    Guarded(Arc<Guard>),
}

/// Who a request comes from.
#[derive(Clone, Debug)]
pub enum Identity {
    /// Nobody in particular.
    Anyone,
    /// Whoever the claims name.
    Claims {
        /// The claims.
        who: Who,
        /// When they end.
        expires: Option<SystemTime>,
    },
}

/// Why a request is turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It has no token, and needs one.
    #[error("a token is needed")]
    NoToken,
    /// Its token is not accepted.
    #[error("the token is not valid")]
    BadToken,
    /// It may not subscribe to these topics.
    #[error("not allowed: {}", .0.join(", "))]
    Topics(Vec<String>),
    /// It could not be found out.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
}

impl Access {
    /// Who a request from `peer` comes from.
    pub fn identify(&self, token: Option<&str>, peer: IpAddr) -> Result<Identity, Denied> {
        match self {
            Self::Open => Ok(Identity::Anyone),
            Self::Guarded(guard) => guard.identify(token, peer),
        }
    }

    /// Whether `who` may subscribe to all of the topics.
    pub async fn authorize(&self, who: &Identity, topics: &[Arc<str>]) -> Result<(), Denied> {
        match (self, who) {
            (Self::Guarded(guard), Identity::Claims { who, .. }) => guard.authorize(who, topics).await,
            (Self::Guarded(_), Identity::Anyone) => Err(Denied::NoToken),
            (Self::Open, _) => Ok(()),
        }
    }

    /// Looks after the open streams, for ever.
    pub async fn run(&self, review: Duration) -> Infallible {
        match self {
            Self::Open => pending().await,
            Self::Guarded(guard) => guard.run(review).await,
        }
    }

    /// Keeps an eye on a stream as long as the answer is held.
    pub fn admit(&self, who: Identity, subscriber: &Arc<Subscriber>, topics: &[Arc<str>]) -> Option<Pass> {
        match (self, who) {
            (Self::Guarded(guard), Identity::Claims { who, expires }) => {
                let stream = Stream {
                    subscriber: subscriber.clone(),
                    who,
                    topics: topics.into(),
                    expires,
                    in_review: Arc::default(),
                };
                let key = guard.streams.lock().insert(stream);
                Some(Pass { guard: guard.clone(), key })
            }
            _ => None,
        }
    }
}

/// What decides by tokens and rules.
#[derive(Debug)]
pub struct Guard {
    keys: Arc<Keys>,
    /// The role of those who come without a token, or with one that names none.
    anonymous: Option<String>,
    gate: Gate,
    metrics: Arc<Metrics>,
    streams: Mutex<Slab<Stream>>,
}

/// An open stream and what it was opened with.
#[derive(Clone, Debug)]
struct Stream {
    subscriber: Arc<Subscriber>,
    who: Who,
    topics: Arc<[Arc<str>]>,
    expires: Option<SystemTime>,
    /// Whether it is being checked again.
    in_review: Arc<AtomicBool>,
}

/// A stream's entry at the guard, taken out when it is dropped.
#[derive(Debug)]
pub struct Pass {
    guard: Arc<Guard>,
    key: usize,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.guard.streams.lock().try_remove(self.key);
    }
}

impl Guard {
    /// A guard that asks `gate`.
    pub fn new(keys: Arc<Keys>, anonymous: Option<String>, gate: Gate, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { keys, anonymous, gate, metrics, streams: Mutex::default() })
    }

    /// A token that is there counts, good or bad; only who has none is anonymous.
    fn identify(&self, token: Option<&str>, peer: IpAddr) -> Result<Identity, Denied> {
        let Some(token) = token else {
            let Some(role) = &self.anonymous else {
                self.metrics.auth_no_token.add(1);
                return Err(Denied::NoToken);
            };
            let claims = serde_json::json!({ "role": role }).to_string().into();
            // All of them have these claims: by network, one of them does not make all others wait.
            let identity = network(peer).to_string().into();
            return Ok(Identity::Claims { who: Who { claims, identity }, expires: None });
        };
        match self.keys.verify(token) {
            Ok(Token { mut claims, expires }) => {
                if let (None, Some(role)) = (claims.get("role"), &self.anonymous) {
                    claims.insert("role".into(), Value::String(role.clone()));
                }
                let claims: Arc<str> = Value::Object(claims).to_string().into();
                Ok(Identity::Claims { who: Who { identity: claims.clone(), claims }, expires })
            }
            Err(error) => {
                self.metrics.auth_bad_token.add(1);
                tracing::info!(%error, "token refused");
                Err(Denied::BadToken)
            }
        }
    }

    async fn authorize(&self, who: &Who, topics: &[Arc<str>]) -> Result<(), Denied> {
        let refused = self.gate.check(who, topics).await.inspect_err(|error| {
            self.metrics.auth_unanswered.add(1);
            tracing::warn!(%error, "subscription not checked");
        })?;
        if refused.is_empty() {
            self.metrics.auth_allowed.add(1);
            return Ok(());
        }
        self.metrics.auth_denied.add(1);
        for Refusal { topic, reason } in &refused {
            // Escaped: a claim that a cast has put into it may hold a line break.
            tracing::info!(topic = %topic, reason = ?reason, "subscription refused");
        }
        Err(Denied::Topics(refused.into_iter().map(|refusal| refusal.topic.to_string()).collect()))
    }

    /// Ends streams whose tokens expire, checks all streams again once in `review`, and reads the keys again when their
    /// file changes. For ever.
    async fn run(self: &Arc<Self>, review: Duration) -> Infallible {
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
                // Not where streams are served: a file system may take its time to answer, or never do.
                let _ = spawn_blocking(move || keys.refresh()).await;
            }
        };
        tokio::select! {
            never = reviewing => never,
            never = sweeping => never,
            never = refreshing => never,
        }
    }

    fn end_expired(&self, now: SystemTime) {
        for (_, stream) in &*self.streams.lock() {
            if stream.expires.is_some_and(|expires| expires <= now) && stream.subscriber.close(End::Revoked) {
                self.metrics.auth_expired.add(1);
            }
        }
    }

    /// Checks all streams again, and ends those that are no longer allowed. While the database is unavailable they
    /// stay, because it sends nothing new either. Streams with slow rules are not waited for.
    async fn review(self: &Arc<Self>) {
        let start = Instant::now();
        // Channels have no rules.
        let has_rules = |stream: &&Stream| !stream.topics.is_empty();
        let streams: Vec<Stream> =
            self.streams.lock().iter().map(|(_, stream)| stream).filter(has_rules).cloned().collect();
        let count = streams.len();
        let places = Arc::new(Semaphore::new(REVIEW_BATCH as usize));
        for stream in streams {
            // The semaphore is never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            if stream.in_review.swap(true, Relaxed) {
                continue;
            }
            let guard = self.clone();
            tokio::spawn(async move {
                guard.review_one(&stream, place).await;
                stream.in_review.store(false, Relaxed);
            });
        }
        let _ = places.acquire_many(REVIEW_BATCH).await;
        tracing::debug!(streams = count, time = ?start.elapsed(), "streams checked again");
    }

    async fn review_one(&self, stream: &Stream, place: OwnedSemaphorePermit) {
        let refused = match self.gate.check_again(&stream.who, &stream.topics, place).await {
            Ok(refused) => refused,
            // Its own rules prevent the check. The client reconnects if it still has access.
            Err(error @ (Unanswered::Slow | Unanswered::Broken)) => {
                let refuse = |topic: &Arc<str>| Refusal { topic: topic.clone(), reason: error.to_string().into() };
                stream.topics.iter().map(refuse).collect()
            }
            Err(error) => {
                tracing::warn!(%error, "a subscription could not be checked again");
                return;
            }
        };
        if !refused.is_empty() && stream.subscriber.close(End::Revoked) {
            self.metrics.auth_revoked.add(1);
            for Refusal { topic, reason } in refused {
                tracing::info!(%topic, reason = ?reason, "subscription revoked");
            }
        }
    }
}
