//! The hub: who is subscribed to which topic, and the recent history of every topic, in memory. It knows no HTTP and no
//! database.
//!
//! Everything happens in one total order under one short lock, which is never held over I/O: that is what makes it
//! exact to subscribe and to take the missed events from memory in one step. An event costs what its own topic's
//! subscribers cost.
//!
//! A topic of thousands is served a chunk at a time, and others go on in between. Its event counts as published at
//! once: who comes meanwhile finds it in history and is passed over. Events of other topics may overtake it, but not on
//! the way to a subscriber that has several topics: those wait in line.

mod topics;

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use parking_lot::Mutex;
use tidings_wire::Position;
use tidings_wire::position::END;
use tokio::sync::{Notify, watch};
use tokio::task::yield_now;

use crate::metrics::Metrics;
use crate::stream::audience::{CHUNK, Tally};
use crate::stream::frame::{Frame, Reset};
use crate::stream::subscriber::{Pushed, Subscriber};

use topics::Topics;

/// Events that may wait for the rest of their subscribers; beyond it the upstream waits too.
const MAX_FILLING: usize = 64;

/// A place in the total order of events: a tick, and how many of its events lie at or before the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The tick.
    pub tick: u64,
    /// The number within the tick, [`END`] behind its last event.
    pub n: u32,
}

impl Place {
    /// The place behind the last event of `tick`.
    pub fn after_tick(tick: u64) -> Self {
        Self { tick, n: END }
    }

    /// The same as a position.
    pub fn position(self) -> Position {
        Position::at(self.tick, self.n)
    }
}

impl From<&Position> for Place {
    fn from(position: &Position) -> Self {
        Self { tick: position.tick, n: position.n }
    }
}

/// An event on its way to the subscribers.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Its number within the tick.
    pub n: u32,
    /// Its topic.
    pub topic: &'a str,
    /// What the subscribers get.
    pub frame: Frame,
}

/// What became of a wish to subscribe and to get what was missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// All that was missed is queued, and the subscriber is live.
    Live,
    /// More was missed than fits at once: the subscriber has been queued what lies up to here, and is not yet live.
    Behind(Place),
    /// Memory does not have everything after the position, or never had its tick.
    TooOld,
    /// The hub has not come as far as the place yet.
    Ahead,
}

/// Topics, their subscribers and their history.
#[derive(Debug)]
pub struct Hub {
    /// The most bytes of history.
    budget: usize,
    metrics: Arc<Metrics>,
    /// The last tick that is complete here, for those who wait for one.
    tick: watch::Sender<Option<u64>>,
    /// Wakes [`Hub::fan_out`].
    filling: Notify,
    /// Wakes who waits for it.
    filled: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    topics: Topics,
    /// Up to where events have been published; `None` until the upstream has told where the log stands.
    place: Option<Place>,
    /// How many events have been published, which is the last one's number.
    count: u64,
    /// Published events that some of their subscribers have yet to be queued, in order.
    filling: VecDeque<Fill>,
    /// The subscriber with the most waiting of those served since events were last published.
    fullest: Option<(usize, Arc<Subscriber>)>,
}

/// Events of one topic on their way round, with their numbers: a subscriber is queued all of them at once, and writes
/// them at once.
#[derive(Debug)]
struct Fill {
    topic: Arc<str>,
    events: Vec<(u64, Frame)>,
    /// The seat to go on with.
    next: usize,
    /// Ticks that are complete when this is done.
    ticks: Vec<u64>,
}

impl Hub {
    /// A hub that keeps `budget` bytes of history.
    pub fn new(budget: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            budget,
            metrics,
            tick: watch::Sender::new(None),
            filling: Notify::new(),
            filled: Notify::new(),
            inner: Mutex::default(),
        })
    }

    /// Up to where events have been published.
    pub fn place(&self) -> Option<Place> {
        self.inner.lock().place
    }

    /// The last complete tick, and each one after it.
    pub fn ticks(&self) -> watch::Receiver<Option<u64>> {
        self.tick.subscribe()
    }

    /// Publishes events of `tick`, in order. The subscribers of large topics are queued theirs by [`Self::fan_out`].
    pub fn publish(&self, tick: u64, events: Vec<Outgoing<'_>>) {
        let mut tally = Tally::default();
        let received = events.len() as u64;
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        for Outgoing { n, topic, frame } in events {
            let place = Place { tick, n };
            inner.place = Some(place);
            inner.count += 1;
            let topic = inner.topics.keep(place, topic, frame.clone());
            inner.send(topic, frame, &mut tally);
            inner.topics.evict(self.budget);
        }
        self.metrics.history_bytes.set(inner.topics.bytes() as u64);
        self.metrics.topics.set(inner.topics.len() as u64);
        tally.count(&self.metrics);
        inner.fullest = tally.fullest;
        let filling = !inner.filling.is_empty();
        drop(guard);
        self.metrics.events_in.add(received);
        if filling {
            self.filling.notify_one();
        }
    }

    /// Serves those subscribers of large topics that [`Self::publish`] left out, for ever.
    pub async fn fan_out(&self) -> Infallible {
        loop {
            self.filling.notified().await;
            while self.fill() {
                // Behind the tasks that were woken, and behind what the sockets have brought meanwhile.
                yield_now().await;
            }
        }
    }

    /// Serves the next chunk; true if more is left.
    fn fill(&self) -> bool {
        let mut tally = Tally::default();
        let mut inner = self.inner.lock();
        let done = inner.fill(&mut tally);
        tally.count(&self.metrics);
        let fuller = tally.fullest.filter(|(bytes, _)| inner.fullest.as_ref().is_none_or(|(most, _)| bytes > most));
        inner.fullest = fuller.or(inner.fullest.take());
        let more = !inner.filling.is_empty();
        drop(inner);
        if let Some(ticks) = done {
            ticks.iter().for_each(|tick| self.metrics.fanned_out(*tick));
            self.filled.notify_waiters();
        }
        more
    }

    /// Waits until no more than a bounded number of events is on its way round.
    pub async fn room(&self) {
        self.waits_for(MAX_FILLING).await;
    }

    /// Waits until every event has been queued to all its subscribers. Answers with the one of them that has the most
    /// waiting, and how much, of those served since events were last published.
    pub async fn settled(&self) -> Option<(usize, Arc<Subscriber>)> {
        self.waits_for(0).await;
        self.inner.lock().fullest.take()
    }

    async fn waits_for(&self, most: usize) {
        loop {
            // Before the look, so that no news slips in between.
            let filled = self.filled.notified();
            let filling: usize = self.inner.lock().filling.iter().map(|fill| fill.events.len()).sum();
            if filling <= most {
                return;
            }
            filled.await;
        }
    }

    /// Says that `tick` is complete.
    pub fn finish(&self, tick: u64) {
        let mut inner = self.inner.lock();
        inner.place = Some(Place::after_tick(tick));
        inner.topics.pass(tick);
        match inner.filling.back_mut() {
            Some(fill) => fill.ticks.push(tick),
            None => self.metrics.fanned_out(tick),
        }
        drop(inner);
        self.tick.send_replace(Some(tick));
        self.metrics.ticks.add(1);
    }

    /// Begins at the end of `tick`, without history. Subscribers that came before now learn the position.
    pub fn restart(&self, tick: u64) {
        let mut inner = self.inner.lock();
        if inner.place.is_none() {
            self.push_to_all(&inner, &Frame::position(Position::after_tick(tick)));
        }
        inner.restart(tick);
        self.metrics.topics.set(inner.topics.len() as u64);
        drop(inner);
        self.metrics.history_bytes.set(0);
        self.tick.send_replace(Some(tick));
    }

    /// Continues from the end of `tick` and drops history, because events were missed or lost: every subscriber gets
    /// `event: reset`.
    pub fn reset(&self, tick: u64, why: Reset) {
        let mut tally = Tally::default();
        let mut inner = self.inner.lock();
        // Nothing must come behind the reset that lies before it.
        while !inner.filling.is_empty() {
            inner.fill(&mut tally);
        }
        tally.count(&self.metrics);
        inner.restart(tick);
        self.metrics.topics.set(inner.topics.len() as u64);
        let reset = self.push_to_all(&inner, &Frame::reset(Position::after_tick(tick), why));
        self.count_resets(why, reset);
        drop(inner);
        self.filled.notify_waiters();
        self.metrics.history_bytes.set(0);
        self.tick.send_replace(Some(tick));
    }

    /// Queues a frame to every subscriber, once for each subscriber however many topics it has; returns how many have
    /// it waiting.
    fn push_to_all(&self, inner: &Inner, frame: &Frame) -> u64 {
        let mut seen = HashSet::new();
        let mut waiting = 0;
        for subscriber in inner.topics.subscribers().filter(|subscriber| seen.insert(Arc::as_ptr(subscriber))) {
            match subscriber.push(frame.clone()) {
                Pushed::Waiting(_) => waiting += 1,
                Pushed::Overflow => self.metrics.evicted_overflow.add(1),
                Pushed::Ended => {}
            }
        }
        waiting
    }

    /// Makes the subscriber live from now on. `greeting` is queued ahead; it gets the place where the stream starts.
    pub fn join(
        &self,
        subscriber: &Arc<Subscriber>,
        topics: &[Arc<str>],
        greeting: impl FnOnce(Option<Place>) -> Frame,
    ) {
        let mut inner = self.inner.lock();
        subscriber.feed(greeting(inner.place));
        inner.seat(subscriber, topics);
        self.metrics.topics.set(inner.topics.len() as u64);
    }

    /// Sends the subscriber `event: reset` and makes it live from now on.
    pub fn join_with_reset(&self, subscriber: &Arc<Subscriber>, topics: &[Arc<str>], why: Reset) {
        self.join(subscriber, topics, |place| Frame::reset(place.unwrap_or(Place::after_tick(0)).position(), why));
        self.count_resets(why, 1);
    }

    fn count_resets(&self, why: Reset, count: u64) {
        match why {
            Reset::Expired => self.metrics.resets_expired.add(count),
            Reset::Lost => self.metrics.resets_lost.add(count),
        }
    }

    /// Queues the events after `after` and makes the subscriber live, in one step, if memory reaches back that far and
    /// the amount suits the subscriber. The subscriber then gets the current position too: its own may be old although
    /// it missed nothing, and would fall out of retention.
    pub fn resume(&self, subscriber: &Arc<Subscriber>, topics: &[Arc<str>], after: Place) -> Joined {
        let mut inner = self.inner.lock();
        if inner.place.is_none_or(|place| after > place) {
            return Joined::Ahead;
        }
        // If a tick is not among the known ones but lies between them, a failover lost it, and others were cut since.
        if !inner.topics.reaches(after) {
            return Joined::TooOld;
        }
        let (missed, reached) = inner.topics.missed(topics, after, subscriber.comfortable());
        for frame in missed {
            subscriber.feed(frame);
        }
        if let Some(reached) = reached {
            return Joined::Behind(reached);
        }
        if let Some(place) = inner.place.filter(|place| *place != after) {
            subscriber.feed(Frame::position(place.position()));
        }
        inner.seat(subscriber, topics);
        self.metrics.topics.set(inner.topics.len() as u64);
        Joined::Live
    }

    /// Takes the subscriber out.
    pub fn leave(&self, subscriber: &Subscriber) {
        let mut inner = self.inner.lock();
        let seats = subscriber.leave();
        inner.topics.unseat(seats);
        self.metrics.topics.set(inner.topics.len() as u64);
    }

    /// How many subscribers the topics have whose subscribers have come or gone since the last call, or all topics.
    pub fn watched(&self, all: bool) -> Vec<(Arc<str>, usize)> {
        self.inner.lock().topics.watched(all)
    }

    /// Runs `visit` while nothing is published, with the hub's place if every live subscriber has been queued all up to
    /// it.
    pub fn hold<T>(&self, visit: impl FnOnce(Option<Place>) -> T) -> T {
        let inner = self.inner.lock();
        visit(inner.place.filter(|_| inner.filling.is_empty()))
    }
}

impl Inner {
    fn restart(&mut self, tick: u64) {
        let place = Place::after_tick(tick);
        self.place = Some(place);
        self.topics.forget(place);
    }

    /// Queues the event that was published last to its topic's subscribers, or puts it in line. Those of a large topic
    /// are for later, all of them: small topics of the same tick come first.
    fn send(&mut self, topic: Arc<str>, frame: Frame, tally: &mut Tally) {
        let Some(audience) = self.topics.audience(&topic) else { return };
        let behind_others =
            !self.filling.is_empty() && (audience.is_shared() || self.filling.iter().any(|fill| fill.topic == topic));
        let event = [(self.count, frame)];
        let next = if behind_others || audience.len() > CHUNK { Some(0) } else { audience.send(&event, 0, tally) };
        let Some(next) = next else { return };
        match self.filling.back_mut() {
            // Nobody has got that yet, and nothing stands between the two.
            Some(last) if last.topic == topic && last.next == 0 => last.events.extend(event),
            _ => self.filling.push_back(Fill { topic, events: event.into(), next, ticks: Vec::new() }),
        }
    }

    /// Goes on with the first events that are on their way round, by a chunk of their subscribers. Answers, when that
    /// was the last chunk, with the ticks that are complete now.
    fn fill(&mut self, tally: &mut Tally) -> Option<Vec<u64>> {
        let fill = self.filling.front_mut()?;
        let audience = self.topics.audience(&fill.topic);
        match audience.and_then(|audience| audience.send(&fill.events, fill.next, tally)) {
            Some(next) => {
                fill.next = next;
                None
            }
            None => self.filling.pop_front().map(|fill| fill.ticks),
        }
    }

    /// Enters the subscriber, for events from now on.
    fn seat(&mut self, subscriber: &Arc<Subscriber>, topics: &[Arc<str>]) {
        let seats = self.topics.seat(subscriber, topics, self.count);
        if let Err(seats) = subscriber.sit(seats, true) {
            self.topics.unseat(seats);
        }
    }
}

#[cfg(test)]
mod tests;
