//! The chain of ticks: every tick names the one before it. Each event is published to the hub once and in order: from a
//! notification if it continues the chain, otherwise from the log.
//!
//! Not here: the connection and plain channels (`session`).

mod arriving;

use std::sync::Arc;
use std::time::Duration;

use tidings_wire::{Event, LEAVE, MOVED, Part, Position, Recheck, segment};
use tokio::time::{Instant, sleep, timeout};

use crate::metrics::Metrics;
use crate::stream::frame::{Frame, Reset};
use crate::stream::hub::{Hub, Outgoing};
use crate::stream::place::Place;
use crate::upstream::chain::arriving::Arriving;
use crate::upstream::database::DatabaseError;
use crate::upstream::log::{Log, LogRow};

/// After this long without a notification the proxy asks whether it missed one.
const QUIET: Duration = Duration::from_secs(15);

/// A notification from a process other than the known relay makes the proxy ask who the relay is, but not more often
/// than this.
const RELAY_CHECK: Duration = Duration::from_millis(100);

/// While no relay runs, the proxy checks this often for one.
const RELAY_WAIT: Duration = Duration::from_millis(250);

/// How soon the proxy looks again for a tick that was cut and is not visible in the log yet.
const SOON: Duration = Duration::from_millis(50);

/// How often the proxy asks, after a crash, whether the relay has cut what was committed before.
const CUT_WAIT: Duration = Duration::from_millis(50);

/// The longest wait for that. Then the proxy connects again, maybe to another server.
const MAX_CUT_WAIT: Duration = Duration::from_secs(20);

/// The longest time that reading a large tick waits, after each batch, for the slowest subscriber that still keeps up.
const PACE: Duration = Duration::from_millis(20);

/// What has been published so far, and how to continue.
#[derive(Debug)]
pub struct Chain<L> {
    log: Arc<L>,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    /// How many bytes of events are published at once when the log is read.
    batch_bytes: usize,
    /// The relay's channel; `None` until it is known, and in a database without the extension.
    channel: Option<String>,
    /// Whether the channel has changed since the log was last read.
    channel_changed: bool,
    /// The relay's process.
    relay: Option<i32>,
    /// When the database was last asked about the relay.
    asked: Instant,
    /// The newest tick that is known to exist.
    newest: u64,
    /// How many bytes were published from the log since subscribers were last given time to take them.
    unpaced: usize,
    arriving: Arriving,
}

impl<L: Log> Chain<L> {
    /// A chain that continues at the hub's place. It publishes about `batch_bytes` at once when it reads the log.
    pub fn new(log: Arc<L>, hub: Arc<Hub>, metrics: Arc<Metrics>, batch_bytes: usize) -> Self {
        Self {
            log,
            hub,
            metrics,
            batch_bytes,
            channel: None,
            channel_changed: false,
            relay: None,
            asked: Instant::now(),
            newest: 0,
            unpaced: 0,
            arriving: Arriving::default(),
        }
    }

    /// The relay's channel; `None` in a database without the extension.
    pub fn channel(&self) -> Option<&str> {
        self.channel.as_deref()
    }

    /// Whether the relay's channel has changed since the last call.
    pub fn take_channel_changed(&mut self) -> bool {
        std::mem::take(&mut self.channel_changed)
    }

    /// Whether a relay makes ticks, in a database where one should.
    pub fn has_relay(&self) -> bool {
        self.channel.is_none() || self.relay.is_some()
    }

    /// How long to wait for a notification before asking whether one was missed.
    pub fn quiet(&self) -> Duration {
        // A tick is announced before it is visible, so it may have been announced before this connection listened.
        let is_behind = self.hub.place().is_some_and(|place| place.tick < self.newest);
        match self.has_relay() {
            true if is_behind => SOON,
            true => QUIET,
            false => RELAY_WAIT,
        }
    }

    /// When the database may be asked about the relay again.
    pub fn next_relay_check(&self) -> Instant {
        self.asked + RELAY_CHECK
    }

    /// Where the hub is.
    pub fn place(&self) -> Result<Place, DatabaseError> {
        self.hub.place().ok_or(DatabaseError::Contract("no place before the first tick"))
    }

    /// Listens on the relay's channel for the first time.
    pub async fn listen(&mut self) -> Result<(), DatabaseError> {
        let introduction = self.log.introduce().await?;
        if introduction.is_paused {
            return Err(DatabaseError::Leave);
        }
        (self.channel, self.relay) = (Some(introduction.channel), introduction.relay);
        Ok(())
    }

    /// Brings the hub to the present: a new hub starts there, another one gets what the last connection did not
    /// receive.
    pub async fn start(&mut self) -> Result<(), DatabaseError> {
        match self.hub.place() {
            Some(place) => self.check_place(place.position()).await?,
            None => {
                let last = self.ask().await?;
                self.hub.restart(last);
            }
        }
        self.catch_up().await
    }

    /// Continues from the present, because a standby has not replayed the hub's place in the time that it may be
    /// behind: every subscriber gets `event: reset`.
    pub async fn give_up_place(&mut self) -> Result<(), DatabaseError> {
        let last = self.ask().await?;
        tracing::warn!(tick = last, "the standby lacks ticks: subscribers get event: reset");
        self.hub.reset(last, Reset::Lost);
        Ok(())
    }

    /// Checks whether the log still has the hub's place. If its tick was lost, the hub continues after the events that
    /// it has published, if all of them survived. If not, or if the tick has expired, subscribers get `event: reset`.
    async fn check_place(&mut self, here: Position) -> Result<(), DatabaseError> {
        match self.log.locate(&here).await {
            Ok(Some(located)) if located == here => Ok(()),
            Ok(Some(located)) => {
                match self.survivors(located.tick, here.tick).await? {
                    Some(place) => {
                        tracing::info!(from = %here, to = %place.position(), "the log has lost ticks, but no events");
                        self.hub.continue_at(place);
                    }
                    None => {
                        tracing::warn!(from = %here, to = %located, "the log has lost ticks: subscribers get event: reset");
                        self.hub.reset(located.tick, Reset::Lost);
                    }
                }
                Ok(())
            }
            // Another server has shown it already.
            Ok(None) => Err(DatabaseError::Contract("a tick can't be located yet")),
            Err(DatabaseError::Expired) => self.reset().await,
            Err(error) => Err(error),
        }
    }

    /// The place in the log after everything that was published, if all ticks after `known` are lost, of which `last`
    /// is the last one, but none of their events. The relay cuts them again, in the same order and before any others:
    /// see docs/internals.md.
    async fn survivors(&self, known: u64, last: u64) -> Result<Option<Place>, DatabaseError> {
        let Some(published) = self.hub.published_after(known) else { return Ok(None) };
        let since = Instant::now();
        let left = loop {
            if let Some(left) = self.log.survivors(known, last).await? {
                break left;
            }
            if since.elapsed() > MAX_CUT_WAIT {
                return Err(DatabaseError::Contract("no relay cuts what was committed before the server started"));
            }
            sleep(CUT_WAIT).await;
        };
        // A tick that has a lower number than the lost one was cut by a clock that went back.
        Ok((left.events == published && left.reached.tick > last).then_some(left.reached))
    }

    /// Asks about the relay, its channel and the last tick in the log. Returns the tick.
    pub async fn ask(&mut self) -> Result<u64, DatabaseError> {
        let introduction = self.log.introduce().await?;
        if self.channel.as_ref().is_some_and(|known| *known != introduction.channel) {
            tracing::info!("the relay's channel has a new name");
            self.channel = Some(introduction.channel);
            self.channel_changed = true;
        }
        if introduction.is_paused {
            return Err(DatabaseError::Leave);
        }
        self.relay = introduction.relay;
        self.asked = Instant::now();
        self.newest = introduction.newest;
        Ok(introduction.last)
    }

    /// Checks, when no notification has arrived for a while, whether one was missed; then the log has been read.
    pub async fn check_for_missed(&mut self) -> Result<bool, DatabaseError> {
        match self.ask().await {
            Ok(last) if self.channel.is_some() && last > self.place()?.tick => {
                self.catch_up().await?;
                Ok(true)
            }
            Ok(_) if self.channel.is_none() => Err(DatabaseError::Contract("the extension has been created")),
            Ok(_) => Ok(false),
            Err(error) if error.no_extension() && self.channel.is_none() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Handles a notification on the relay's channel, sent by the backend `process`; false if it is not the relay's.
    pub async fn notified(&mut self, process: i32, payload: &str) -> Result<bool, DatabaseError> {
        if self.relay != Some(process) {
            if self.asked.elapsed() >= RELAY_CHECK {
                self.ask().await?;
            }
            if self.relay != Some(process) {
                self.metrics.forged.add(1);
                return Ok(false);
            }
        }
        if payload == LEAVE {
            return Err(DatabaseError::Leave);
        }
        if payload == MOVED {
            self.ask().await?;
            return Ok(true);
        }
        let place = self.place()?;
        match Part::parse(payload) {
            Ok(part) if Place::after_tick(part.tick) <= place => self.metrics.old.add(1),
            Ok(part) if self.arriving.is_next(&part, place) => {
                self.metrics.notifications.add(1);
                self.publish_part(&part, payload).await;
            }
            Ok(part) => {
                self.metrics.hints.add(1);
                self.newest = self.newest.max(part.tick);
                self.read_until(part.tick).await?;
            }
            Err(error) => {
                self.metrics.mangled.add(1);
                tracing::warn!(%error, "a notification can't be parsed: its tick is read from the log");
                self.catch_up().await?;
            }
        }
        Ok(true)
    }

    /// Publishes the next part of a tick with the parts that were held back, or holds it back.
    async fn publish_part(&mut self, part: &Part<'_>, payload: &str) {
        if let Some(held) = self.arriving.take(part, payload) {
            let held: Vec<Part<'_>> = held.iter().filter_map(|payload| Part::parse(payload).ok()).collect();
            // One by one, so that each is written before the next one needs room in the subscribers' queues.
            for part in held.iter().chain([part]) {
                self.hub.wait_for_room().await;
                let events = part.events.iter().map(|(n, event)| outgoing(part.tick, *n, event));
                self.hub.publish(part.tick, events.collect());
            }
        }
        self.arriving.wait_at(self.hub.place());
        match part.events.last() {
            _ if part.part < part.parts => {}
            Some((count, _)) if !part.is_durable => self.hub.complete_early(part.tick, *count),
            _ => self.hub.complete(part.tick),
        }
    }

    /// Continues from the present although events were missed: every subscriber gets `event: reset`.
    async fn reset(&mut self) -> Result<(), DatabaseError> {
        let last = self.ask().await?;
        tracing::warn!(tick = last, "events were missed: subscribers get event: reset");
        self.hub.reset(last, Reset::Expired);
        Ok(())
    }

    /// Publishes what the log has now and the hub does not.
    pub async fn catch_up(&mut self) -> Result<(), DatabaseError> {
        self.ask().await?;
        self.read_until(self.newest).await
    }

    /// Publishes what the log has up to this tick, and what else is in the same pages. Later ticks are left to their
    /// notifications: if the log always had something new, the proxy would never return to them.
    async fn read_until(&mut self, tick: u64) -> Result<(), DatabaseError> {
        loop {
            let before = self.place()?;
            match self.read_page(before).await {
                Ok(true) if self.place()? >= Place::after_tick(tick) => return Ok(()),
                Ok(true) if self.place()? > before => {}
                Ok(true) => return Err(DatabaseError::Contract("a page of the log that has nothing new")),
                Ok(false) => return Ok(()),
                Err(DatabaseError::Expired) => self.reset().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Publishes one page of the log; false if there was none.
    async fn read_page(&mut self, after: Place) -> Result<bool, DatabaseError> {
        let rows = self.log.read(after).await?;
        self.publish_rows(&rows, after).await?;
        Ok(!rows.is_empty())
    }

    /// Publishes the events of rows that were read after `after`.
    pub async fn publish_rows(&mut self, rows: &[LogRow], after: Place) -> Result<(), DatabaseError> {
        let mut batch = Batch::default();
        for row in rows {
            let tick = row.tick;
            for (event, n) in row.data.iter().flat_map(|data| segment::events(data)).zip(row.before + 1..) {
                let Ok(event) = event else {
                    tracing::error!(tick, n, "the log has a segment that this version can't read");
                    return Err(DatabaseError::Expired);
                };
                if (Place { tick, n }) > after {
                    batch.push(tick, outgoing(tick, n, &event));
                }
                if batch.bytes >= self.batch_bytes {
                    self.publish_batch(&mut batch).await;
                }
            }
            if row.is_last {
                self.publish_batch(&mut batch).await;
                self.hub.complete(tick);
            }
        }
        self.publish_batch(&mut batch).await;
        Ok(())
    }

    /// Publishes a batch of a tick, and gives subscribers that keep up the time to take it: a large tick is read faster
    /// than any client takes it, and a full queue ends a stream.
    async fn publish_batch(&mut self, batch: &mut Batch<'_>) {
        let Batch { tick, events, bytes } = std::mem::take(batch);
        self.unpaced += bytes;
        self.hub.publish(tick, events);
        if let Some((waiting, fullest)) = self.hub.wait_until_delivered().await
            && waiting > fullest.comfortable()
            && self.unpaced >= self.batch_bytes
        {
            // Many small ticks must not wait for a slow reader one by one.
            self.unpaced = 0;
            let _ = timeout(PACE, fullest.room()).await;
        }
    }
}

/// Events of one tick that are published at once.
#[derive(Default)]
struct Batch<'a> {
    tick: u64,
    events: Vec<Outgoing<'a>>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    fn push(&mut self, tick: u64, event: Outgoing<'a>) {
        self.tick = tick;
        self.bytes += event.frame.len();
        self.events.push(event);
    }
}

fn outgoing<'a>(tick: u64, n: u32, event: &Event<'a>) -> Outgoing<'a> {
    let frame = match event.as_recheck() {
        None => Frame::event(Position::at(tick, n), event.event, &event.payload),
        Some(recheck) => Frame::recheck(tick, matches!(recheck, Recheck::Matching(_))),
    };
    Outgoing { n, topic: event.topic, frame }
}

#[cfg(test)]
mod tests;
