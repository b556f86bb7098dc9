//! The upstream: one connection that listens to the relay, for all clients. It follows the chain of ticks, reads from
//! the log what notifications leave out or what was missed, and hands everything to the hub in order.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tidings_wire::{Event, MOVED, Part, Position, segment};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::{Client, Notification};

use crate::metrics::Metrics;
use crate::stream::channels::Channels;
use crate::stream::frame::{Frame, Reset};
use crate::stream::hub::{Hub, Outgoing, Place};
use crate::upstream::database::{Database, DatabaseError, answer};
use crate::upstream::inbox::{Heard, Inbox};

/// After this long without a notification the proxy asks whether it missed one.
const QUIET: Duration = Duration::from_secs(15);

/// A notification of another process than the known relay makes the proxy ask who the relay is, but not more often than
/// this.
const RELAY_CHECK: Duration = Duration::from_millis(100);

/// While no relay runs, the proxy checks this often for one.
const RELAY_WAIT: Duration = Duration::from_millis(250);

/// What one read of the log brings, in bytes.
const PAGE_BYTES: i32 = 1024 * 1024;

/// The longest the reading of a large tick waits, after each chunk, for the slowest subscriber that still keeps up.
const PACE: Duration = Duration::from_millis(20);

/// The longest wait before connecting again.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Whether the upstream is connected and caught up, and if not, why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It is.
    Ready,
    /// It is not.
    Waiting(Arc<str>),
}

/// The upstream and what it needs.
#[derive(Debug)]
pub struct Upstream {
    database: Database,
    hub: Arc<Hub>,
    channels: Arc<Channels>,
    metrics: Arc<Metrics>,
    /// The most bytes published at once when the log is read: what a subscriber's queue takes with ease.
    chunk: usize,
    readiness: watch::Sender<Readiness>,
    /// Attempts to connect since the upstream was last ready.
    attempts: u32,
}

/// One connection's life.
struct Session<'a> {
    upstream: &'a mut Upstream,
    client: Client,
    /// Plain channels that are listened to.
    listening: BTreeSet<Arc<str>>,
    /// The relay's channel; `None` in a database without the extension.
    channel: Option<String>,
    /// The channel has changed since the log was last read.
    moved: bool,
    relay: Option<i32>,
    asked: Instant,
    /// The tick that is arriving in parts, and the part that comes next.
    arriving: (u64, u32),
}

impl Upstream {
    /// An upstream that feeds `hub` and `channels`, and the receiver that tells how it is. A subscriber may have
    /// `queue` bytes waiting.
    pub fn new(
        database: Database,
        hub: Arc<Hub>,
        channels: Arc<Channels>,
        metrics: Arc<Metrics>,
        queue: usize,
    ) -> (Self, watch::Receiver<Readiness>) {
        let (readiness, receiver) = watch::channel(Readiness::Waiting("connecting to the database".into()));
        (Self { database, hub, channels, metrics, chunk: queue / 4, readiness, attempts: 0 }, receiver)
    }

    /// Follows the database for ever; whatever breaks is tried again.
    pub async fn run(mut self) -> Infallible {
        loop {
            let Err(error) = self.session().await;
            self.metrics.upstream_connected.set(0);
            self.metrics.reconnects.add(1);
            self.channels.closed();
            // Full jitter: many proxies that lost the same database don't come back in step.
            let ceiling = MAX_BACKOFF.min(Duration::from_millis(100) * 2u32.saturating_pow(self.attempts.min(16)));
            let wait = ceiling.mul_f64(fastrand::f64());
            tracing::warn!(%error, ?wait, "upstream lost");
            self.readiness.send_replace(Readiness::Waiting(error.to_string().into()));
            self.attempts += 1;
            sleep(wait).await;
        }
    }

    async fn session(&mut self) -> Result<Infallible, DatabaseError> {
        let (client, mut notifications) = self.database.connect(self.metrics.clone()).await?;
        let mut session = Session {
            upstream: self,
            client,
            listening: BTreeSet::new(),
            channel: None,
            moved: false,
            relay: None,
            asked: Instant::now(),
            arriving: (0, 0),
        };
        session.start().await?;
        session.follow(&mut notifications).await
    }

    /// Reports that the upstream is connected and caught up. Without a relay, nothing new would arrive.
    fn connected(&mut self, relay: bool) {
        self.attempts = 0;
        self.metrics.upstream_connected.set(1);
        let readiness =
            if relay { Readiness::Ready } else { Readiness::Waiting("no relay runs in the database".into()) };
        self.readiness.send_replace(readiness);
    }
}

impl Session<'_> {
    fn place(&self) -> Result<Place, DatabaseError> {
        self.upstream.hub.place().ok_or(DatabaseError::Contract("no place before the first tick"))
    }

    /// Listens, and catches up with what the last connection did not hear.
    async fn start(&mut self) -> Result<(), DatabaseError> {
        self.tune().await?;
        match introduce(&self.client).await {
            Ok((channel, relay, _)) => {
                (self.channel, self.relay) = (Some(channel), relay);
                self.settle().await?;
                self.catch_up().await?;
                tracing::info!(tick = self.place()?.tick, "upstream ready");
            }
            Err(error) if error.no_extension() && self.upstream.channels.enabled() => {
                self.look_at_encoding().await?;
                tracing::info!("upstream ready, without the extension: only channels are served");
            }
            Err(error) => return Err(error),
        }
        self.upstream.connected(self.has_relay());
        Ok(())
    }

    /// Whether a relay makes ticks, in a database where one should.
    fn has_relay(&self) -> bool {
        self.channel.is_none() || self.relay.is_some()
    }

    /// How long to wait for news before asking for it.
    fn quiet(&self) -> Duration {
        if self.has_relay() { QUIET } else { RELAY_WAIT }
    }

    /// Takes notifications as they come, and asks when none come.
    async fn follow(&mut self, notifications: &mut Inbox) -> Result<Infallible, DatabaseError> {
        let channels = self.upstream.channels.clone();
        let mut ask_at = Instant::now() + self.quiet();
        let mut had_relay = self.has_relay();
        loop {
            tokio::select! {
                heard = notifications.recv() => match heard.ok_or(DatabaseError::Closed)? {
                    Heard::Lost(channel) if self.channel.as_ref() == Some(&channel) => self.catch_up().await?,
                    Heard::Lost(channel) => channels.lost(&channel),
                    Heard::Message(notification) if self.channel.as_deref() != Some(notification.channel()) => {
                        channels.notified(notification.channel(), notification.payload());
                    }
                    Heard::Message(notification) if self.notified(&notification).await? => {
                        ask_at = Instant::now() + self.quiet();
                    }
                    Heard::Message(_) => ask_at = ask_at.min(self.asked + RELAY_CHECK),
                },
                () = channels.changed() => self.tune().await?,
                () = sleep_until(ask_at) => {
                    self.look().await?;
                    ask_at = Instant::now() + self.quiet();
                }
            }
            if had_relay != self.has_relay() {
                had_relay = self.has_relay();
                tracing::info!(relay = had_relay, "the database's relay started or stopped");
                self.upstream.connected(had_relay);
            }
            if std::mem::take(&mut self.moved) {
                // The log has everything that was sent there before this session listened.
                self.catch_up().await?;
            }
        }
    }

    /// Listens to the plain channels that are wanted, and to no others.
    async fn tune(&mut self) -> Result<(), DatabaseError> {
        let mut wanted = self.upstream.channels.wanted();
        for name in wanted.clone() {
            if !self.listening.contains(&name) && self.channel.as_deref() != Some(&name) {
                match self.listen("LISTEN", &name).await {
                    Err(error) if error.blames_the_input() => {
                        tracing::warn!(channel = ?name, %error, "the database can't listen on this channel");
                        self.upstream.channels.refuse(&name);
                        wanted.remove(&name);
                        continue;
                    }
                    listens => listens?,
                }
            }
            self.upstream.channels.opened(&name);
        }
        let listening = std::mem::replace(&mut self.listening, wanted);
        for name in listening.difference(&self.listening) {
            if self.channel.as_deref() != Some(name) {
                self.listen("UNLISTEN", name).await?;
            }
        }
        Ok(())
    }

    async fn listen(&self, verb: &str, channel: &str) -> Result<(), DatabaseError> {
        answer(self.client.batch_execute(&format!("{verb} \"{}\"", channel.replace('"', "\"\"")))).await
    }

    /// Logs what the database's encoding means for channels. (The extension itself needs UTF8.)
    async fn look_at_encoding(&self) -> Result<(), DatabaseError> {
        let sql = "SELECT pg_catalog.current_setting('server_encoding')";
        let row = answer(self.client.query_one(sql, &[])).await?;
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

    /// Looks, when it has been quiet, whether something was missed.
    async fn look(&mut self) -> Result<(), DatabaseError> {
        match self.ask().await {
            Ok(last) if self.channel.is_some() && last > self.place()?.tick => self.catch_up().await,
            Ok(_) if self.channel.is_none() => Err(DatabaseError::Contract("the extension is there now")),
            Ok(_) => Ok(()),
            Err(error) if error.no_extension() && self.channel.is_none() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks how things are: the relay may have changed, a notification may have been missed. Answers the log's last
    /// tick.
    async fn ask(&mut self) -> Result<u64, DatabaseError> {
        let (channel, relay, position) = introduce(&self.client).await?;
        if self.channel.as_ref().is_some_and(|known| *known != channel) {
            tracing::info!("the relay's channel has a new name");
            self.channel = Some(channel);
            self.moved = true;
        }
        self.relay = relay;
        self.asked = Instant::now();
        Ok(position.tick)
    }

    /// Handles one notification; false if it is not the relay's.
    async fn notified(&mut self, notification: &Notification) -> Result<bool, DatabaseError> {
        if self.relay != Some(notification.process_id()) {
            if self.asked.elapsed() >= RELAY_CHECK {
                self.ask().await?;
            }
            if self.relay != Some(notification.process_id()) {
                self.upstream.metrics.forged.add(1);
                return Ok(false);
            }
        }
        if notification.payload() == MOVED {
            self.ask().await?;
            return Ok(true);
        }
        let place = self.place()?;
        let metrics = &self.upstream.metrics;
        match Part::parse(notification.payload()) {
            Ok(part) if Place::after_tick(part.tick) <= place => metrics.old.add(1),
            Ok(part) if self.is_next(&part, place) => {
                metrics.notifications.add(1);
                self.publish_part(&part).await;
            }
            Ok(_) => {
                metrics.hints.add(1);
                self.catch_up().await?;
            }
            Err(error) => {
                metrics.mangled.add(1);
                tracing::warn!(%error, "mangled notification");
                self.catch_up().await?;
            }
        }
        Ok(true)
    }

    /// Whether nothing lies between what has been published and this part.
    fn is_next(&self, part: &Part<'_>, place: Place) -> bool {
        let first = if part.part == 1 {
            if Place::after_tick(part.previous) != place {
                return false;
            }
            1
        } else if self.arriving == (part.tick, part.part) && place.tick == part.tick {
            place.n + 1
        } else {
            return false;
        };
        !part.is_hint() && part.events.iter().zip(first..).all(|((n, _), expected)| *n == expected)
    }

    async fn publish_part(&mut self, part: &Part<'_>) {
        self.upstream.hub.room().await;
        let events = part.events.iter().map(|(n, event)| outgoing(part.tick, *n, event));
        self.upstream.hub.publish(part.tick, events.collect());
        self.arriving = (part.tick, part.part + 1);
        if part.part == part.parts {
            self.upstream.hub.finish(part.tick);
        }
    }

    /// Finds where to go on: at the present at first, later where the last connection ended.
    async fn settle(&mut self) -> Result<(), DatabaseError> {
        let Some(place) = self.upstream.hub.place() else {
            let last = self.ask().await?;
            self.upstream.hub.restart(last);
            return Ok(());
        };
        let here = place.position();
        let text = here.to_string();
        let located = answer(self.client.query_one("SELECT tidings.locate($1::pg_catalog.text)", &[&text])).await;
        match located.and_then(|row| Ok(row.try_get::<_, Option<String>>(0)?)) {
            Ok(Some(located)) => {
                let located = position(&located)?;
                if located != here {
                    tracing::warn!(from = %here, to = %located, "the log has lost ticks: subscribers get event: reset");
                    self.upstream.hub.reset(located.tick, Reset::Lost);
                }
                Ok(())
            }
            Ok(None) => Err(DatabaseError::Contract("a tick can't be located")),
            Err(DatabaseError::Expired) => self.reset().await,
            Err(error) => Err(error),
        }
    }

    /// Goes on from the present although events were missed, and tells every subscriber.
    async fn reset(&mut self) -> Result<(), DatabaseError> {
        let last = self.ask().await?;
        tracing::warn!(tick = last, "events were missed: subscribers get event: reset");
        self.upstream.hub.reset(last, Reset::Expired);
        Ok(())
    }

    /// Publishes what the log has and the hub has not.
    async fn catch_up(&mut self) -> Result<(), DatabaseError> {
        loop {
            let before = self.place()?;
            match self.read_page(before).await {
                Ok(true) if self.place()? > before => {}
                Ok(true) => return Err(DatabaseError::Contract("a page of the log that holds nothing new")),
                Ok(false) => return Ok(()),
                Err(DatabaseError::Expired) => self.reset().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Publishes one page of the log; false if there was none.
    async fn read_page(&mut self, after: Place) -> Result<bool, DatabaseError> {
        let sql = "SELECT tick, first, last, data FROM tidings.segments($1::pg_catalog.text, $2::pg_catalog.int4)";
        let rows = answer(self.client.query(sql, &[&after.position().to_string(), &PAGE_BYTES])).await?;
        let mut chunk = Chunk::default();
        for row in &rows {
            let tick =
                u64::try_from(row.try_get::<_, i64>("tick")?).map_err(|_| DatabaseError::Contract("a bad tick"))?;
            if let Some(data) = row.try_get::<_, Option<&[u8]>>("data")? {
                let before = u32::try_from(row.try_get::<_, i32>("first")?)
                    .map_err(|_| DatabaseError::Contract("a bad number of events"))?;
                for (event, n) in segment::events(data).zip(before + 1..) {
                    let Ok(event) = event else {
                        tracing::error!(tick, n, "the log has a segment that this version can't read");
                        return Err(DatabaseError::Expired);
                    };
                    if (Place { tick, n }) > after {
                        chunk.push(tick, outgoing(tick, n, &event));
                    }
                    if chunk.bytes >= self.upstream.chunk {
                        self.publish_chunk(&mut chunk).await;
                    }
                }
            }
            if row.try_get("last")? {
                self.publish_chunk(&mut chunk).await;
                self.upstream.hub.finish(tick);
            }
        }
        self.publish_chunk(&mut chunk).await;
        Ok(!rows.is_empty())
    }

    /// Publishes a chunk of a tick. Subscribers that keep up are given the time for it: a large tick is read faster
    /// than any client takes it, and a full queue ends a stream.
    async fn publish_chunk(&mut self, chunk: &mut Chunk<'_>) {
        let Chunk { tick, events, .. } = std::mem::take(chunk);
        self.upstream.hub.publish(tick, events);
        if let Some((waiting, fullest)) = self.upstream.hub.settled().await
            && waiting > fullest.comfortable()
        {
            let _ = timeout(PACE, fullest.room()).await;
        }
    }
}

/// Events of one tick that are published at once.
#[derive(Default)]
struct Chunk<'a> {
    tick: u64,
    events: Vec<Outgoing<'a>>,
    bytes: usize,
}

impl<'a> Chunk<'a> {
    fn push(&mut self, tick: u64, event: Outgoing<'a>) {
        self.tick = tick;
        self.bytes += event.frame.len();
        self.events.push(event);
    }
}

/// Listens on the relay's channel, without its name in a statement, because anyone who saw the name could listen too.
/// Returns the channel, the relay's process and the current position.
async fn introduce(client: &Client) -> Result<(String, Option<i32>, Position), DatabaseError> {
    let sql = "SELECT tidings.listen(), tidings.relay_pid(), tidings.position()";
    let row = answer(client.query_one(sql, &[])).await?;
    Ok((row.try_get(0)?, row.try_get(1)?, position(row.try_get(2)?)?))
}

fn outgoing<'a>(tick: u64, n: u32, event: &Event<'a>) -> Outgoing<'a> {
    Outgoing { n, topic: event.topic, frame: Frame::event(Position::at(tick, n), event.event, &event.payload) }
}

fn position(text: &str) -> Result<Position, DatabaseError> {
    text.parse().map_err(|_| DatabaseError::Contract("a position that is none"))
}
