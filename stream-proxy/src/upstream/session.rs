//! The live connection to Postgres, one for all clients: it is made again when it breaks, listens to the relay and to
//! the plain channels that clients want, and hands each notification on.
//!
//! Not here: how ticks are put in order and read from the log (`chain`).

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::Client;

use crate::metrics::Metrics;
use crate::stream::channels::Channels;
use crate::stream::hub::Hub;
use crate::upstream::chain::Chain;
use crate::upstream::database::{Database, DatabaseError, in_time};
use crate::upstream::dialect::Dialect;
use crate::upstream::follow::{Follower, StandbyLog, is_standby};
use crate::upstream::hearing::{DEAF_INTERVAL, Hearing};
use crate::upstream::inbox::{Heard, Inbox};
use crate::upstream::log::{self, ServerLog};
use crate::upstream::presence::AWAY;
use crate::upstream::standing::Standing;

/// How many notifications are handled, if that many wait, before more plain channels are opened and closed: both take a
/// few milliseconds.
const BETWEEN_TURNS: u32 = 250;

/// While the extension's SQL is older than the proxy, the proxy asks this often whether it has been updated.
const UPDATE_CHECK: Duration = Duration::from_secs(1);

/// The longest wait before connecting again.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Why the proxy is not ready although it is connected, and what to do about it.
const NO_RELAY: &str = "no relay runs in the database: SELECT relay_state FROM tidings.status and the server's log say why (often \
    max_worker_processes is too low)";

/// Whether the upstream is connected and caught up, and if not, why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The upstream is connected and caught up.
    Ready,
    /// It is not ready, for this reason.
    Waiting(Arc<str>),
}

/// Keeps a session with the database, forever.
#[derive(Debug)]
pub struct Upstream {
    database: Database,
    hub: Arc<Hub>,
    channels: Arc<Channels>,
    metrics: Arc<Metrics>,
    /// Whether notifications arrive.
    hearing: Hearing,
    standing: Arc<Standing>,
    /// How many bytes are published at once when the log is read: a part of what a subscriber's queue holds.
    batch_bytes: usize,
    readiness: watch::Sender<Readiness>,
    /// Attempts to connect since the upstream was last ready.
    attempts: u32,
}

/// What the upstream feeds.
#[derive(Debug)]
pub struct Followed {
    /// Gets the events.
    pub hub: Arc<Hub>,
    /// Get the notifications of plain channels.
    pub channels: Arc<Channels>,
    /// Gets to know what the server is.
    pub standing: Arc<Standing>,
}

/// The life of one connection.
struct Session<'a> {
    upstream: &'a mut Upstream,
    client: Arc<Client>,
    chain: Chain<ServerLog>,
    /// The plain channels that it listens to.
    listening: HashSet<Arc<str>>,
}

impl Upstream {
    /// An upstream that feeds these, and the receiver of its readiness. A subscriber may have `queue` bytes waiting.
    pub fn new(
        database: Database,
        Followed { hub, channels, standing }: Followed,
        metrics: Arc<Metrics>,
        queue: usize,
    ) -> (Self, watch::Receiver<Readiness>) {
        let (readiness, receiver) = watch::channel(Readiness::Waiting("connecting to the database".into()));
        let hearing = Hearing::new(database.clone(), metrics.clone());
        let batch_bytes = queue / 4;
        (Self { database, hub, channels, metrics, hearing, standing, batch_bytes, readiness, attempts: 0 }, receiver)
    }

    /// Follows the database forever, and connects again after every error.
    pub async fn run(mut self) -> Infallible {
        loop {
            let Err(error) = self.session().await;
            self.metrics.upstream_connected.set(0);
            self.metrics.reconnects.add(1);
            self.channels.closed();
            let wait = if matches!(error, DatabaseError::Leave) {
                self.database.leave();
                AWAY
            } else {
                // Full jitter, so that proxies that lost the same database do not all reconnect at the same time.
                let ceiling = MAX_BACKOFF.min(Duration::from_millis(100) * 2u32.saturating_pow(self.attempts.min(16)));
                ceiling.mul_f64(fastrand::f64())
            };
            tracing::warn!(%error, ?wait, "upstream lost");
            self.readiness.send_replace(Readiness::Waiting(error.to_string().into()));
            self.attempts += 1;
            sleep(wait).await;
        }
    }

    async fn session(&mut self) -> Result<Infallible, DatabaseError> {
        let (client, mut notifications) = self.database.connect_and_follow(self.metrics.clone()).await?;
        let client = Arc::new(client);
        let (is_standby, ()) =
            tokio::try_join!(is_standby(&client), log::look_at_version(&client, self.database.installed()))?;
        if is_standby {
            self.follow(&client).await?;
            tracing::info!("the standby was promoted");
        }
        self.standing.is_primary_now();
        self.metrics.standby.set(0);
        self.metrics.standby_lag.set(Duration::ZERO);
        self.metrics.standby_lag_bytes.set(0);
        let log = Arc::new(ServerLog::new(client.clone(), self.database.installed().clone()));
        let chain = Chain::new(log, self.hub.clone(), self.metrics.clone(), self.batch_bytes);
        let mut session = Session { upstream: self, client, chain, listening: HashSet::new() };
        session.start().await?;
        session.follow(&mut notifications).await
    }

    /// Follows a standby until it is promoted.
    async fn follow(&mut self, client: &Arc<Client>) -> Result<(), DatabaseError> {
        self.standing.is_standby_now(false);
        self.metrics.standby.set(1);
        if self.is_old() {
            return Err(DatabaseError::OldStandby);
        }
        if self.channels.enabled() {
            tracing::warn!("the server is a standby, where nobody can listen: plain channels are not served");
        }
        let log = Arc::new(StandbyLog::new(client.clone(), self.database.installed().clone(), self.metrics.clone()));
        let chain = Chain::new(log.clone(), self.hub.clone(), self.metrics.clone(), self.batch_bytes);
        let mut follower = Follower::new(log, chain, self.metrics.clone(), self.standing.clone());
        follower.start(|reason| self.reports(Readiness::Waiting(reason.into()))).await?;
        tracing::info!("upstream ready, at a standby");
        follower
            .run(|too_far| match too_far {
                None => {
                    self.attempts = 0;
                    self.reports(Readiness::Ready);
                }
                Some(reason) => self.reports(Readiness::Waiting(reason.into())),
            })
            .await
    }

    /// Whether the extension's SQL is older than the proxy.
    fn is_old(&self) -> bool {
        self.database.installed().dialect() == Dialect::Old
    }

    /// Reports that the upstream is connected, and whether it can be relied on.
    fn reports(&self, readiness: Readiness) {
        self.metrics.upstream_connected.set(1);
        self.readiness.send_if_modified(|known| {
            let is_new = *known != readiness;
            *known = readiness;
            is_new
        });
    }

    /// Reports that the upstream is connected and caught up. Without a relay, or without notifications, nothing new
    /// would arrive.
    fn connected(&mut self, has_relay: bool) {
        self.attempts = 0;
        self.metrics.upstream_connected.set(1);
        let reason = if has_relay { self.hearing.doubt() } else { Some(NO_RELAY) };
        self.readiness.send_replace(reason.map_or(Readiness::Ready, |reason| Readiness::Waiting(reason.into())));
    }
}

impl Session<'_> {
    /// Listens, and catches up with what the last connection did not receive.
    async fn start(&mut self) -> Result<(), DatabaseError> {
        match self.chain.listen().await {
            Ok(()) => {
                self.chain.start().await?;
                tracing::info!(tick = self.chain.place()?.tick, "upstream ready");
            }
            Err(error) if error.no_extension() && self.upstream.channels.enabled() => {
                self.look_at_encoding().await?;
                tracing::info!("upstream ready, without the extension: only channels are served");
            }
            Err(error) => return Err(error),
        }
        self.upstream.hearing.connected();
        self.upstream.connected(self.chain.has_relay());
        Ok(())
    }

    /// How long to wait for a notification before asking whether one was missed.
    fn quiet(&self) -> Duration {
        if self.upstream.hearing.is_deaf() { self.chain.quiet().min(DEAF_INTERVAL) } else { self.chain.quiet() }
    }

    /// Handles notifications as they arrive, and asks whether any was missed when none do.
    async fn follow(&mut self, notifications: &mut Inbox) -> Result<Infallible, DatabaseError> {
        let channels = self.upstream.channels.clone();
        let mut ask_at = Instant::now() + self.quiet();
        let mut had_relay = self.chain.has_relay();
        let mut handled = 0;
        let mut update_check = Instant::now() + UPDATE_CHECK;
        loop {
            while self.chain.take_channel_changed() {
                // The log has everything that was sent on the new channel before this session listened there.
                self.chain.catch_up().await?;
            }
            let is_turn = handled >= BETWEEN_TURNS || notifications.is_empty();
            handled = handled.saturating_add(1);
            tokio::select! {
                heard = notifications.recv() => match heard.ok_or(DatabaseError::Closed)? {
                    Heard::Lost(channel) if self.chain.channel() == Some(&channel) => self.chain.catch_up().await?,
                    Heard::Lost(channel) => channels.lost(&channel),
                    Heard::Message(notification) if self.chain.channel() != Some(notification.channel()) => {
                        channels.notified(notification.channel(), notification.payload());
                    }
                    Heard::Message(notification) => {
                        if self.chain.notified(notification.process_id(), notification.payload()).await? {
                            ask_at = Instant::now() + self.quiet();
                        } else {
                            ask_at = ask_at.min(self.chain.next_relay_check());
                        }
                    }
                },
                () = channels.changed(), if is_turn => {
                    self.tune().await?;
                    handled = 0;
                }
                () = self.upstream.hearing.tested() => {
                    self.upstream.connected(self.chain.has_relay());
                    ask_at = ask_at.min(Instant::now() + self.quiet());
                }
                () = sleep_until(update_check), if self.upstream.is_old() => {
                    self.chain.ask().await?;
                    update_check = Instant::now() + UPDATE_CHECK;
                }
                () = sleep_until(ask_at) => {
                    let has_missed = self.chain.check_for_missed().await?;
                    if has_missed || self.upstream.hearing.is_deaf() {
                        self.upstream.hearing.test();
                    }
                    ask_at = Instant::now() + self.quiet();
                }
            }
            if had_relay != self.chain.has_relay() {
                had_relay = self.chain.has_relay();
                tracing::info!(relay = had_relay, "the database's relay started or stopped");
                self.upstream.connected(had_relay);
            }
        }
    }

    /// Listens to the plain channels that have become wanted, and to unwanted ones no more: a bounded number, all in
    /// one message.
    async fn tune(&mut self) -> Result<(), DatabaseError> {
        let channels = self.upstream.channels.clone();
        let turn = join_all(channels.take_changes().into_iter().map(|name| self.tune_to(name))).await;
        for (name, is_wanted, result) in turn {
            match result {
                Ok(()) if is_wanted => {
                    channels.opened(&name);
                    self.listening.insert(name);
                }
                Ok(()) => _ = self.listening.remove(&name),
                Err(error) if error.blames_the_input() => {
                    tracing::warn!(channel = ?name, %error, "the database can't listen on this channel");
                    channels.refuse(&name);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Listens to a channel if it is wanted now; otherwise stops listening to it.
    async fn tune_to(&self, name: Arc<str>) -> (Arc<str>, bool, Result<(), DatabaseError>) {
        let is_wanted = self.upstream.channels.is_wanted(&name);
        let is_done = self.listening.contains(&name) == is_wanted || self.chain.channel() == Some(&name);
        let verb = if is_wanted { "LISTEN" } else { "UNLISTEN" };
        let statement = log::listen(verb, &name);
        let result = if is_done { Ok(()) } else { in_time(self.client.batch_execute(&statement)).await };
        (name, is_wanted, result)
    }

    /// Logs what the database's encoding means for channels. (The extension itself needs UTF8.)
    async fn look_at_encoding(&self) -> Result<(), DatabaseError> {
        let sql = "SELECT pg_catalog.current_setting('server_encoding')";
        let row = in_time(self.client.query_one(sql, &[])).await?;
        match row.try_get(0)? {
            "UTF8" => {}
            "SQL_ASCII" => tracing::warn!(
                "the database's encoding is SQL_ASCII, so the encoding of its texts is unknown: a notification that is not \
                 UTF-8 breaks the connection, and clients get event: reset"
            ),
            encoding => tracing::info!(encoding, "names of channels are limited to the database's encoding"),
        }
        Ok(())
    }
}
