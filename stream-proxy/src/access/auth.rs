//! Who may subscribe to what. A request first gets an identity, then its topics are checked, both before any byte of a
//! stream is sent.

use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::access::check::{Refusal, Unanswered};
use crate::access::gate::{Gate, Who};
use crate::access::keys::Keys;
use crate::access::open_streams::{OpenStreams, Pass};
use crate::access::token::Token;
use crate::addresses::network;
use crate::metrics::Metrics;
use crate::stream::subscriber::Subscriber;

/// How often to look for tokens that have expired, and for a change of the key file.
const SWEEP: Duration = Duration::from_secs(1);

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
    /// Anyone: access is open.
    Anyone,
    /// The identity that the claims name.
    Claims {
        /// The claims.
        who: Who,
        /// When the token expires.
        expires: Option<SystemTime>,
    },
}

impl Identity {
    /// The claims, as JSON.
    pub fn claims(&self) -> Option<Arc<str>> {
        match self {
            Self::Anyone => None,
            Self::Claims { who, .. } => Some(who.claims.clone()),
        }
    }
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
    /// The database did not say whether it may.
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

    /// Looks after the open streams, forever.
    pub async fn run(&self, review: Duration) -> Infallible {
        match self {
            Self::Open => pending().await,
            Self::Guarded(guard) => guard.run(review).await,
        }
    }

    /// Registers a stream, so that it ends when its token expires or its access is revoked. Dropping the result removes
    /// it.
    pub fn admit(&self, who: Identity, subscriber: &Arc<Subscriber>, topics: &[Arc<str>]) -> Option<Pass> {
        match (self, who) {
            (Self::Guarded(guard), Identity::Claims { who, expires }) => {
                Some(guard.open.add(subscriber.clone(), who, topics, expires))
            }
            _ => None,
        }
    }
}

/// Decides by tokens and rules.
#[derive(Debug)]
pub struct Guard {
    keys: Arc<Keys>,
    /// The role of clients without a token, or with a token that names none.
    anonymous: Option<String>,
    gate: Gate,
    metrics: Arc<Metrics>,
    /// The streams that it has admitted.
    open: Arc<OpenStreams>,
}

impl Guard {
    /// A guard that asks `gate`.
    pub fn new(keys: Arc<Keys>, anonymous: Option<String>, gate: Gate, metrics: Arc<Metrics>) -> Arc<Self> {
        let open = OpenStreams::new(gate.clone(), metrics.clone());
        Arc::new(Self { keys, anonymous, gate, metrics, open })
    }

    /// If there is a token, it counts, good or bad; only a client without one is anonymous.
    fn identify(&self, token: Option<&str>, peer: IpAddr) -> Result<Identity, Denied> {
        let Some(token) = token else {
            let Some(role) = &self.anonymous else {
                self.metrics.auth_no_token.add(1);
                return Err(Denied::NoToken);
            };
            let claims = serde_json::json!({ "role": role }).to_string().into();
            // All anonymous clients have the same claims. They take turns by network, so that one of them does not make
            // all others wait.
            let identity = network(peer).to_string().into();
            return Ok(Identity::Claims { who: Who { claims, identity }, expires: None });
        };
        match Token::verify(token, &self.keys) {
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
            // In escaped form: a reason may contain a claim that a cast has put there, with a line break.
            tracing::info!(topic = %topic, reason = ?reason, "subscription refused");
        }
        Err(Denied::Topics(refused.into_iter().map(|refusal| refusal.topic.to_string()).collect()))
    }

    /// Ends streams whose tokens expire, checks all streams again once in `review`, and reads the keys again when their
    /// file changes. Runs forever.
    async fn run(&self, review: Duration) -> Infallible {
        let reviewing = async {
            loop {
                sleep(review).await;
                self.open.review().await;
            }
        };
        let sweeping = async {
            let mut sweep = interval(SWEEP);
            sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                sweep.tick().await;
                self.open.end_expired(SystemTime::now());
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
        }
    }
}
