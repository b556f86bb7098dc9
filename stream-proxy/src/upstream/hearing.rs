//! Whether notifications reach the proxy. A pool that lends its sessions by transaction, such as PgBouncer in
//! transaction mode, accepts LISTEN and then drops every notification: the proxy is connected, and its clients get
//! nothing.
//!
//! The test opens two more connections and sends a notification from one to the other. It runs when the proxy has
//! connected, and again whenever events turn out to have been missed.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::metrics::Metrics;
use crate::upstream::database::{Database, DatabaseError, in_time};
use crate::upstream::inbox::{Heard, Inbox};

/// How long the notification of a test may take. It needs a few milliseconds, but a server that has just started, or
/// that many proxies connect to at once, must not be taken for a pool.
const NOTIFICATION_TIME: Duration = Duration::from_secs(10);

/// While notifications are hidden, the proxy reads the log this often: its clients get events late, but they get them.
pub const DEAF_INTERVAL: Duration = Duration::from_secs(2);

/// Why the proxy is not ready, and what to do about it.
const HIDDEN: &str = "something between the proxy and Postgres hides notifications, probably a pool in transaction mode (such as \
    PgBouncer): connect to Postgres directly, or to a pool with pool_mode = session";

/// Why the proxy is not ready while the first test runs.
const TESTING: &str = "finding out whether notifications arrive";

/// What is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// No test has had a result yet.
    Unknown,
    /// Notifications arrive.
    Hears,
    /// They don't.
    Deaf,
}

/// What is known about the way of notifications, and the test that is running.
#[derive(Debug)]
pub struct Hearing {
    database: Database,
    metrics: Arc<Metrics>,
    /// The channel of the tests. There is one for all tests: a session of a pool keeps its LISTEN.
    channel: String,
    verdict: Verdict,
    test: Option<JoinHandle<Result<bool, DatabaseError>>>,
}

impl Hearing {
    /// Nothing is known yet about the way to this database.
    pub fn new(database: Database, metrics: Arc<Metrics>) -> Self {
        Self { database, metrics, channel: channel(), verdict: Verdict::Unknown, test: None }
    }

    /// Starts a test for a new connection. What an older test finds says nothing about it.
    pub fn connected(&mut self) {
        if let Some(older) = self.test.take() {
            older.abort();
        }
        self.test();
    }

    /// Starts a test, unless one is running: no notification came for a while although there were events, or it is time
    /// to see whether they arrive again.
    pub fn test(&mut self) {
        if self.test.is_none() {
            let (database, metrics, channel) = (self.database.clone(), self.metrics.clone(), self.channel.clone());
            self.test = Some(tokio::spawn(async move {
                let (listener, mut inbox) = database.connect(metrics.clone()).await?;
                let (speaker, _) = database.connect(metrics).await?;
                hears(&channel, (&listener, &mut inbox), &speaker, NOTIFICATION_TIME).await
            }));
        }
    }

    /// Waits for the end of the running test, forever if there is none. It may be cancelled and called again.
    pub async fn tested(&mut self) {
        let Some(test) = &mut self.test else { return std::future::pending().await };
        let result = test.await;
        self.test = None;
        let verdict = match result {
            Ok(Ok(true)) => Verdict::Hears,
            Ok(Ok(false)) => Verdict::Deaf,
            // There may be too few connections, for example. What the last test has found still holds.
            Ok(Err(error)) => return tracing::debug!(%error, "can't find out whether notifications arrive"),
            Err(_) => return,
        };
        match (self.verdict, verdict) {
            (Verdict::Deaf, Verdict::Hears) => tracing::info!("notifications arrive again"),
            (Verdict::Unknown | Verdict::Hears, Verdict::Deaf) => tracing::error!("no notification arrives: {HIDDEN}"),
            _ => {}
        }
        self.verdict = verdict;
        self.metrics.deaf.set((verdict == Verdict::Deaf).into());
    }

    /// Whether notifications don't arrive.
    pub fn is_deaf(&self) -> bool {
        self.verdict == Verdict::Deaf
    }

    /// Why the proxy is not ready, if that is the reason.
    pub fn doubt(&self) -> Option<&'static str> {
        match self.verdict {
            Verdict::Deaf => Some(HIDDEN),
            Verdict::Unknown if self.test.is_some() => Some(TESTING),
            _ => None,
        }
    }
}

/// A channel whose name nobody else knows.
pub fn channel() -> String {
    format!("tidings_check_{:032x}", fastrand::u128(..))
}

/// Whether a notification of one session reaches another one within `time`. An error says that it could not be sent.
pub async fn hears(
    channel: &str,
    (listener, inbox): (&Client, &mut Inbox),
    speaker: &Client,
    time: Duration,
) -> Result<bool, DatabaseError> {
    in_time(listener.batch_execute(&format!("LISTEN {channel}"))).await?;
    in_time(speaker.batch_execute(&format!("NOTIFY {channel}"))).await?;
    let arrives = async {
        while let Some(heard) = inbox.recv().await {
            if matches!(&heard, Heard::Message(notification) if notification.channel() == channel) {
                return Ok(true);
            }
        }
        Err(DatabaseError::Closed)
    };
    timeout(time, arrives).await.unwrap_or(Ok(false))
}
