//! The hub: who is subscribed to which topic, and the recent history of every topic, in memory. It knows no HTTP and no
//! database.
//!
//! Everything happens in one total order under one short lock, which is never held over I/O. So subscribing and taking
//! the missed events from memory is one exact step. An event costs only what its own topic's subscribers cost.
//!
//! A topic of thousands is served one group of subscribers at a time, with other work in between. Its event counts as
//! published at once: a subscriber that joins meanwhile finds the event in history and is skipped. Events of other
//! topics may overtake it, but not if one of their subscribers also has the large topic and has not been served yet:
//! then they wait.
//!
//! A recheck is kept and queued like an event of its topic. A subscriber whose right was checked before the recheck
//! meets it, however it gets there.

mod deliveries;
mod fan_out;
mod heard;
mod rechecks;
mod topics;

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tidings_wire::Position;
use tokio::sync::{Notify, Semaphore, watch};

use crate::metrics::Metrics;
use crate::stream::frame::{Frame, Reset};
use crate::stream::place::Place;
use crate::stream::subscriber::{End, Subscriber};
use crate::stream::tally::Tally;

use deliveries::Deliveries;
use heard::Heard;
use rechecks::Rechecks;
pub use rechecks::Seen;
pub use topics::Glance;
use topics::Topics;

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

/// The result of [`Hub::resume`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// All that was missed is queued, and the subscriber is live.
    Live,
    /// More was missed than fits at once: the subscriber has been queued the events up to here, and is not yet live.
    Partly(Place),
    /// Memory does not have everything after the position, or never had its tick.
    TooOld,
    /// The hub has not reached the place yet.
    Ahead,
}

/// What memory has after a place.
#[derive(Debug)]
pub enum Collected {
    /// These events, each with the number of its topic, up to this place.
    Events(Vec<(usize, Frame)>, Place),
    /// Memory does not have all events after the place, or does not know its tick.
    TooOld,
    /// The hub has not reached the place yet.
    Ahead,
}

/// Topics, their subscribers and their history.
#[derive(Debug)]
pub struct Hub {
    /// The most bytes of history.
    budget: usize,
    metrics: Arc<Metrics>,
    /// The last tick that is complete here.
    tick: watch::Sender<Option<u64>>,
    /// A permit for each [`Hub::fan_out`] that has been called to serve deliveries.
    to_deliver: Semaphore,
    /// Wakes the tasks that wait for deliveries to end.
    delivered: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    topics: Topics,
    /// Up to where events have been published; `None` until the upstream has found the end of the log.
    place: Option<Place>,
    heard: Heard,
    /// How many events have been published, which is the last one's number.
    count: u64,
    deliveries: Deliveries,
    /// How many [`Hub::fan_out`] there are.
    fan_outs: usize,
    /// How many of them wait until they are called.
    resting: usize,
    rechecks: Rechecks,
    /// The subscriber with the most bytes waiting, of those served since events were last published.
    fullest: Option<(usize, Arc<Subscriber>)>,
}

impl Hub {
    /// A hub that keeps `budget` bytes of history.
    pub fn new(budget: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            budget,
            metrics,
            tick: watch::Sender::new(None),
            to_deliver: Semaphore::new(0),
            delivered: Notify::new(),
            inner: Mutex::default(),
        })
    }

    /// Up to where events have been published.
    pub fn place(&self) -> Option<Place> {
        self.inner.lock().place
    }

    /// What has been published, for a right that is about to be checked.
    pub fn seen(&self) -> Seen {
        let inner = self.inner.lock();
        inner.rechecks.seen(inner.place)
    }

    /// The last complete tick, and each one after it.
    pub fn ticks(&self) -> watch::Receiver<Option<u64>> {
        self.tick.subscribe()
    }

    /// Publishes events of `tick`, in order. [`Self::fan_out`] queues those of large topics to their subscribers.
    /// Writes to one group of subscribers; the tasks of the others are woken, so that the upstream does not wait for
    /// them.
    pub fn publish(&self, tick: u64, events: Vec<Outgoing<'_>>) {
        let mut tally = Tally::of_writer();
        let received = events.iter().filter(|event| event.frame.as_recheck().is_none()).count() as u64;
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        for Outgoing { n, topic, frame } in events {
            let place = Place { tick, n };
            inner.place = Some(place);
            inner.count += 1;
            if frame.as_recheck().is_some() && frame.is_matching() {
                // Events that come before it must be queued before it.
                inner.deliver_all(&mut tally).iter().for_each(|tick| self.metrics.fanned_out(*tick));
                inner.rechecks.note_of_many(tick, topic, &mut inner.topics, &mut tally);
                continue;
            }
            if frame.as_recheck().is_some() && !inner.rechecks.note(tick, topic, &mut inner.topics) {
                continue;
            }
            let topic = inner.topics.keep(place, topic, frame.clone());
            inner.deliveries.send(&inner.topics, topic, (inner.count, frame), &mut tally);
            inner.topics.evict(self.budget);
        }
        self.metrics.history_bytes.set(inner.topics.bytes() as u64);
        self.metrics.topics.set(inner.topics.len() as u64);
        tally.count(&self.metrics);
        inner.fullest = tally.fullest;
        let call = inner.call();
        drop(guard);
        self.metrics.events_in.add(received);
        if call {
            self.to_deliver.add_permits(1);
        }
        self.flush(tally.due);
    }

    /// Notes that all events of `tick`, which is durable, have been published.
    pub fn complete(&self, tick: u64) {
        self.end(tick, None);
    }

    /// The same of a tick with this number of events that was announced before it was flushed: a crash may lose it.
    pub fn complete_early(&self, tick: u64, events: u32) {
        self.end(tick, Some(events));
    }

    fn end(&self, tick: u64, events: Option<u32>) {
        let mut inner = self.inner.lock();
        inner.place = Some(Place::after_tick(tick));
        inner.heard.note(tick, events);
        inner.topics.note_tick(tick);
        inner.topics.evict(self.budget);
        if !inner.deliveries.note_end_of(tick) {
            self.metrics.fanned_out(tick);
        }
        drop(inner);
        self.tick.send_replace(Some(tick));
        self.metrics.ticks.add(1);
    }

    /// After a crash that lost all ticks after `known`: how many events were published after it. `None` if some of
    /// these ticks were not heard to their end, or can't have been lost in a crash that keeps what was flushed.
    pub fn published_after(&self, known: u64) -> Option<u64> {
        let inner = self.inner.lock();
        inner.place.filter(|place| *place == Place::after_tick(place.tick))?;
        inner.heard.events_after(known)
    }

    /// Continues at a place of the log, because everything up to there was published as part of ticks that are lost.
    pub fn continue_at(&self, place: Place) {
        let is_whole = place == Place::after_tick(place.tick);
        let mut inner = self.inner.lock();
        inner.place = Some(place);
        inner.topics.note_gap(place);
        if is_whole {
            inner.heard.note(place.tick, None);
        }
        drop(inner);
        if is_whole {
            self.tick.send_replace(Some(place.tick));
        }
    }

    /// Starts at the end of `tick`, without history. Subscribers that joined before get the position now.
    pub fn restart(&self, tick: u64) {
        let mut inner = self.inner.lock();
        if inner.place.is_none() {
            self.push_to_all(&inner, &Frame::position(Position::after_tick(tick)));
            // What happened between the check of their right and this tick is not known.
            self.push_to_all(&inner, &Frame::recheck(tick, false));
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
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        // Events that come before the reset must be queued before it.
        inner.deliver_all(&mut tally);
        tally.count(&self.metrics);
        inner.restart(tick);
        self.metrics.topics.set(inner.topics.len() as u64);
        for subscriber in inner.topics.subscribers().filter(|subscriber| subscriber.wants_rows()) {
            // It reconnects, and starts with the rows.
            subscriber.conclude(Frame::forget(), End::Gone);
        }
        // There may have been rechecks among the events.
        inner.topics.subscribers().for_each(|subscriber| subscriber.distrust(tick));
        let sent = self.push_to_all(inner, &Frame::reset(Position::after_tick(tick), why));
        self.count_resets(why, sent);
        drop(guard);
        self.delivered.notify_waiters();
        self.metrics.history_bytes.set(0);
        self.tick.send_replace(Some(tick));
    }

    /// Queues a frame that is not an event to every subscriber, once even if it has several topics. Returns how many
    /// subscribers have it waiting.
    fn push_to_all(&self, inner: &Inner, frame: &Frame) -> u64 {
        let mut seen = HashSet::new();
        let mut tally = Tally::default();
        for subscriber in inner.topics.subscribers().filter(|subscriber| seen.insert(Arc::as_ptr(subscriber))) {
            tally.push(subscriber, frame);
        }
        tally.count_evictions(&self.metrics);
        tally.sent
    }

    /// Makes the subscriber live from now on, after it is queued the frame that `greeting` makes of the place where the
    /// stream starts.
    pub fn join(
        &self,
        subscriber: &Arc<Subscriber>,
        topics: &[Arc<str>],
        greeting: impl FnOnce(Option<Place>) -> Frame,
    ) {
        let mut inner = self.inner.lock();
        subscriber.feed(greeting(inner.place));
        if let Some(place) = inner.place {
            inner.hold_back(subscriber, topics, place);
        }
        inner.seat(subscriber, topics);
        self.metrics.topics.set(inner.topics.len() as u64);
    }

    /// Sends the subscriber `event: reset` and makes it live from now on.
    pub fn join_with_reset(&self, subscriber: &Arc<Subscriber>, topics: &[Arc<str>], why: Reset) {
        self.join(subscriber, topics, |place| Frame::reset(place.unwrap_or(Place::after_tick(0)).position(), why));
        self.count_resets(why, 1);
    }

    /// Counts resets.
    pub fn count_resets(&self, why: Reset, count: u64) {
        match why {
            Reset::Expired => self.metrics.resets_expired.add(count),
            Reset::Lost => self.metrics.resets_lost.add(count),
        }
    }

    /// Queues the events after `after` and makes the subscriber live, in one step, if memory reaches back that far and
    /// the subscriber has room for them. The subscriber then also gets the current position: its own may be old
    /// although it missed nothing, and would expire; and it shows the client that it has caught up.
    pub fn resume(&self, subscriber: &Arc<Subscriber>, topics: &[Arc<str>], after: Place) -> Joined {
        let mut inner = self.inner.lock();
        if inner.place.is_none_or(|place| after > place) {
            return Joined::Ahead;
        }
        // A tick that lies between known ticks but is not one of them was lost in a failover, and other ticks replaced
        // it.
        if !inner.topics.covers(after) {
            return Joined::TooOld;
        }
        inner.hold_back(subscriber, topics, after);
        let (missed, reached) = inner.topics.missed(topics, after, subscriber.comfortable());
        for (_, frame) in missed {
            subscriber.feed(frame);
        }
        if let Some(reached) = reached {
            return Joined::Partly(reached);
        }
        if let Some(place) = inner.place {
            subscriber.feed(Frame::position(place.position()));
        }
        inner.seat(subscriber, topics);
        self.metrics.topics.set(inner.topics.len() as u64);
        Joined::Live
    }

    /// Makes the subscriber hold back everything until its right has been checked again, if there was a recheck after
    /// the last check and up to `until`.
    pub fn hold_back(&self, subscriber: &Subscriber, topics: &[Arc<str>], until: Place) {
        self.inner.lock().hold_back(subscriber, topics, until);
    }

    /// The events after `after`, up to about `limit` bytes, if memory reaches back that far. In the same step, the
    /// subscriber begins to hold back if it must, and, if there are no events, joins if it `may_join`. So it misses
    /// neither a recheck nor the next event.
    pub fn collect(
        &self,
        topics: &[Arc<str>],
        after: Place,
        limit: usize,
        subscriber: &Arc<Subscriber>,
        may_join: bool,
    ) -> Collected {
        let mut inner = self.inner.lock();
        let Some(place) = inner.place.filter(|place| after <= *place) else { return Collected::Ahead };
        if !inner.topics.covers(after) {
            return Collected::TooOld;
        }
        inner.hold_back(subscriber, topics, after);
        let (events, reached) = inner.topics.missed(topics, after, limit);
        if events.is_empty() && may_join {
            inner.seat(subscriber, topics);
            self.metrics.topics.set(inner.topics.len() as u64);
        }
        Collected::Events(events, reached.unwrap_or(place))
    }

    /// Removes the subscriber.
    pub fn leave(&self, subscriber: &Subscriber) {
        let mut inner = self.inner.lock();
        let seats = subscriber.leave();
        inner.topics.unseat(seats);
        self.metrics.topics.set(inner.topics.len() as u64);
    }

    /// The number of subscribers of each topic whose number may have changed since the last call, even if it has none
    /// any more; with `all`, also of each other topic that has any.
    pub fn subscriber_counts(&self, all: bool) -> Vec<(Arc<str>, usize)> {
        self.inner.lock().topics.subscriber_counts(all)
    }

    /// Up to `most` topics that have subscribers or recent events. True if there are more.
    pub fn glance(&self, most: usize) -> (Vec<Glance>, bool) {
        self.inner.lock().topics.glance(most)
    }

    /// Runs `visit` while nothing is published. It gets the hub's place if every live subscriber has been queued all
    /// events up to there.
    pub fn hold<T>(&self, visit: impl FnOnce(Option<Place>) -> T) -> T {
        let inner = self.inner.lock();
        visit(inner.place.filter(|_| inner.deliveries.is_empty()))
    }
}

impl Inner {
    fn restart(&mut self, tick: u64) {
        let place = Place::after_tick(tick);
        self.place = Some(place);
        self.rechecks.restart(tick);
        self.heard.restart(tick);
        self.topics.forget(place);
    }

    /// Serves all deliveries under way. Returns the ticks that are complete now.
    fn deliver_all(&mut self, tally: &mut Tally) -> Vec<u64> {
        let mut completed = Vec::new();
        while !self.deliveries.is_empty() {
            completed.extend(self.deliveries.serve_group(&self.topics, tally).into_iter().flatten());
        }
        completed
    }

    /// See [`Hub::hold_back`].
    fn hold_back(&self, subscriber: &Subscriber, topics: &[Arc<str>], until: Place) {
        if let Some(place) = self.place {
            self.rechecks.hold_back(subscriber, topics, &self.topics, place, until);
        }
    }

    /// Adds the subscriber to its topics, for events from now on.
    fn seat(&mut self, subscriber: &Arc<Subscriber>, topics: &[Arc<str>]) {
        let seats = self.topics.seat(subscriber, topics, self.count);
        if let Err(seats) = subscriber.sit(seats, true) {
            self.topics.unseat(seats);
        }
    }
}

#[cfg(test)]
mod tests;
