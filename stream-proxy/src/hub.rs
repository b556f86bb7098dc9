//! The hub: who is subscribed to which topic, and the recent history of every topic, in memory. It knows no HTTP and no
//! database.
//!
//! Everything happens in one total order under one short lock, which is never held over I/O: that is what makes it
//! exact to subscribe and to take the missed events from memory in one step. An event costs what its own topic's
//! subscribers cost.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use slab::Slab;
use tidings_wire::Position;
use tidings_wire::position::END;
use tokio::sync::watch;

use crate::frame::Frame;
use crate::metrics::Metrics;
use crate::subscriber::{Pushed, Seat, Subscriber};

/// What an event in history takes beside its frame and topic, in bytes: its entries in two queues and in the map.
const EVENT_OVERHEAD: usize = 200;

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
    /// The place is older than memory.
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
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    topics: HashMap<Arc<str>, Entry>,
    /// The topics of all events in history, oldest first.
    order: VecDeque<Arc<str>>,
    /// Bytes of history.
    bytes: usize,
    /// Topics whose subscribers have come or gone since this was last asked.
    changed: HashSet<Arc<str>>,
    /// Up to where events have been published; `None` until the upstream has told where the log stands.
    place: Option<Place>,
    /// All events behind this place are in history.
    floor: Option<Place>,
}

#[derive(Debug, Default)]
struct Entry {
    subscribers: Slab<Arc<Subscriber>>,
    history: VecDeque<(Place, Frame)>,
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.subscribers.is_empty() && self.history.is_empty()
    }
}

impl Hub {
    /// A hub that keeps `budget` bytes of history.
    pub fn new(budget: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { budget, metrics, tick: watch::Sender::new(None), inner: Mutex::default() })
    }

    /// Up to where events have been published.
    pub fn place(&self) -> Option<Place> {
        self.inner.lock().place
    }

    /// The last complete tick, and each one after it.
    pub fn ticks(&self) -> watch::Receiver<Option<u64>> {
        self.tick.subscribe()
    }

    /// Publishes events of `tick`, in order. Answers with the subscriber that has the most waiting, and how much.
    pub fn publish(&self, tick: u64, events: Vec<Outgoing<'_>>) -> Option<(usize, Arc<Subscriber>)> {
        let mut fullest: Option<(usize, Arc<Subscriber>)> = None;
        let (mut sent, mut overflows) = (0, 0);
        let received = events.len() as u64;
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        for Outgoing { n, topic, frame } in events {
            let place = Place { tick, n };
            inner.place = Some(place);
            if let Some(entry) = inner.topics.get(topic) {
                for (_, subscriber) in &entry.subscribers {
                    match subscriber.push(frame.clone()) {
                        Pushed::Waiting(bytes) => {
                            sent += 1;
                            if fullest.as_ref().is_none_or(|(most, _)| bytes > *most) {
                                fullest = Some((bytes, subscriber.clone()));
                            }
                        }
                        Pushed::Overflow => overflows += 1,
                        Pushed::Ended => {}
                    }
                }
            }
            inner.keep(place, topic, frame);
            inner.evict(self.budget);
        }
        self.metrics.history_bytes.set(inner.bytes as u64);
        self.metrics.topics.set(inner.topics.len() as u64);
        drop(guard);
        self.metrics.events_in.add(received);
        self.metrics.events_out.add(sent);
        self.metrics.evicted_overflow.add(overflows);
        fullest
    }

    /// Says that `tick` is complete.
    pub fn finish(&self, tick: u64) {
        self.inner.lock().place = Some(Place::after_tick(tick));
        self.tick.send_replace(Some(tick));
        self.metrics.ticks.add(1);
    }

    /// Goes on from the end of `tick`, forgetting history: at the start, and when the log has lost ticks.
    pub fn restart(&self, tick: u64) {
        self.inner.lock().restart(tick);
        self.metrics.history_bytes.set(0);
        self.tick.send_replace(Some(tick));
    }

    /// The same, where events may have been missed: every subscriber is told to read its data again.
    pub fn reset(&self, tick: u64) {
        let mut inner = self.inner.lock();
        inner.restart(tick);
        let frame = Frame::reset(Position::after_tick(tick));
        // A subscriber of several topics is told once.
        let mut told = HashSet::new();
        for entry in inner.topics.values() {
            for (_, subscriber) in &entry.subscribers {
                if told.insert(Arc::as_ptr(subscriber)) {
                    match subscriber.push(frame.clone()) {
                        Pushed::Waiting(_) => self.metrics.resets.add(1),
                        Pushed::Overflow => self.metrics.evicted_overflow.add(1),
                        Pushed::Ended => {}
                    }
                }
            }
        }
        drop(inner);
        self.metrics.history_bytes.set(0);
        self.tick.send_replace(Some(tick));
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

    /// Queues what lies behind `after` and makes the subscriber live, in one step, if memory reaches back that far and if
    /// it is no more than is comfortable for the subscriber.
    pub fn resume(&self, subscriber: &Arc<Subscriber>, topics: &[Arc<str>], after: Place) -> Joined {
        let mut inner = self.inner.lock();
        match (inner.floor, inner.place) {
            (Some(floor), Some(place)) if after <= place => {
                if after < floor {
                    return Joined::TooOld;
                }
            }
            _ => return Joined::Ahead,
        }
        let (missed, reached) = inner.missed(topics, after, subscriber.comfortable());
        for frame in missed {
            subscriber.feed(frame);
        }
        if let Some(reached) = reached {
            return Joined::Behind(reached);
        }
        inner.seat(subscriber, topics);
        self.metrics.topics.set(inner.topics.len() as u64);
        Joined::Live
    }

    /// Takes the subscriber out.
    pub fn leave(&self, subscriber: &Subscriber) {
        let mut inner = self.inner.lock();
        let seats = subscriber.leave();
        inner.unseat(seats);
        self.metrics.topics.set(inner.topics.len() as u64);
    }

    /// How many subscribers the topics have whose subscribers have come or gone since the last call, or all topics.
    pub fn watched(&self, all: bool) -> Vec<(Arc<str>, usize)> {
        let mut inner = self.inner.lock();
        let changed = std::mem::take(&mut inner.changed);
        let count = |topic: &Arc<str>| inner.topics.get(topic).map_or(0, |entry| entry.subscribers.len());
        if all {
            let counts = inner.topics.keys().map(|topic| (topic.clone(), count(topic)));
            return counts.filter(|(_, subscribers)| *subscribers > 0).collect();
        }
        changed.into_iter().map(|topic| (topic.clone(), count(&topic))).collect()
    }

    /// Runs `visit` with the hub's place while nothing is published.
    pub fn hold<T>(&self, visit: impl FnOnce(Option<Place>) -> T) -> T {
        let inner = self.inner.lock();
        visit(inner.place)
    }
}

impl Inner {
    fn restart(&mut self, tick: u64) {
        self.place = Some(Place::after_tick(tick));
        self.floor = self.place;
        self.order.clear();
        self.bytes = 0;
        self.topics.retain(|_, entry| {
            entry.history = VecDeque::new();
            !entry.is_idle()
        });
    }

    fn keep(&mut self, place: Place, topic: &str, frame: Frame) {
        self.bytes += cost(topic, &frame);
        let key = match self.topics.get_key_value(topic) {
            Some((key, _)) => key.clone(),
            None => topic.into(),
        };
        self.topics.entry(key.clone()).or_default().history.push_back((place, frame));
        self.order.push_back(key);
    }

    /// Forgets the oldest events until history fits.
    fn evict(&mut self, budget: usize) {
        while self.bytes > budget
            && let Some(topic) = self.order.pop_front()
        {
            let Some(entry) = self.topics.get_mut(&topic) else { continue };
            if let Some((place, frame)) = entry.history.pop_front() {
                self.bytes -= cost(&topic, &frame);
                self.floor = Some(place);
            }
            if entry.is_idle() {
                self.topics.remove(&topic);
            } else if entry.history.is_empty() {
                entry.history = VecDeque::new();
            }
        }
    }

    /// The frames behind `after`, in order, up to about `limit` bytes, and the place reached if that is not all.
    fn missed(&self, topics: &[Arc<str>], after: Place, limit: usize) -> (Vec<Frame>, Option<Place>) {
        let mut sources: Vec<_> = topics
            .iter()
            .filter_map(|topic| self.topics.get(topic))
            .map(|entry| {
                let start = entry.history.partition_point(|(place, _)| *place <= after);
                entry.history.range(start..)
            })
            .collect();
        let (mut frames, mut bytes, mut reached) = (Vec::new(), 0, after);
        while let Some(source) =
            sources.iter_mut().filter(|s| s.len() > 0).min_by_key(|s| (**s).clone().next().map(|(place, _)| *place))
        {
            if bytes >= limit && !frames.is_empty() {
                return (frames, Some(reached));
            }
            if let Some((place, frame)) = source.next() {
                bytes += frame.len();
                reached = *place;
                frames.push(frame.clone());
            }
        }
        (frames, None)
    }

    fn seat(&mut self, subscriber: &Arc<Subscriber>, topics: &[Arc<str>]) {
        let seats: Box<[Seat]> = topics
            .iter()
            .map(|topic| {
                let key = self.topics.get_key_value(topic).map_or(topic, |(key, _)| key).clone();
                self.changed.insert(key.clone());
                let seat = self.topics.entry(key.clone()).or_default().subscribers.insert(subscriber.clone());
                (key, seat)
            })
            .collect();
        if let Err(seats) = subscriber.sit(seats, true) {
            self.unseat(seats);
        }
    }

    fn unseat(&mut self, seats: Box<[Seat]>) {
        for (topic, seat) in seats {
            if let Some(entry) = self.topics.get_mut(&topic) {
                entry.subscribers.try_remove(seat);
                if entry.is_idle() {
                    self.topics.remove(&topic);
                }
                self.changed.insert(topic);
            }
        }
    }
}

fn cost(topic: &str, frame: &Frame) -> usize {
    EVENT_OVERHEAD + topic.len() + frame.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::task::{Context, Poll, Waker};

    fn hub(budget: usize) -> Arc<Hub> {
        Hub::new(budget, Arc::default())
    }

    fn topics(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn publish(hub: &Hub, tick: u64, events: &[(&str, &str)]) {
        let events = events.iter().enumerate().map(|(i, (topic, text))| Outgoing {
            n: i as u32 + 1,
            topic,
            frame: Frame::raw(text.to_string()),
        });
        hub.publish(tick, events.collect());
        hub.finish(tick);
    }

    /// What waits for a subscriber, taken out.
    fn take(subscriber: &Subscriber) -> Vec<String> {
        match subscriber.poll_frames(&Context::from_waker(Waker::noop()), 0) {
            Poll::Ready(Some(frames)) => {
                let texts: Vec<_> = frames.iter().map(|f| String::from_utf8_lossy(f.bytes()).into_owned()).collect();
                let bytes = texts.iter().map(String::len).sum();
                let _ = subscriber.poll_blocked(&Context::from_waker(Waker::noop()), bytes);
                texts
            }
            _ => Vec::new(),
        }
    }

    fn at(tick: u64, n: u32) -> Place {
        Place { tick, n }
    }

    #[test]
    fn an_event_goes_to_its_topics_subscribers_only() {
        let hub = hub(10_000);
        hub.restart(1);
        let (a, both) = (Subscriber::new(1000), Subscriber::new(1000));
        hub.join(&a, &topics(&["a"]), |place| Frame::raw(format!("{}", place.unwrap().tick)));
        hub.join(&both, &topics(&["a", "b"]), |_| Frame::raw("hello"));
        publish(&hub, 2, &[("a", "a1"), ("b", "b1"), ("c", "c1")]);
        assert_eq!(take(&a), ["1", "a1"]);
        assert_eq!(take(&both), ["hello", "a1", "b1"]);
    }

    #[test]
    fn who_leaves_gets_nothing_more_and_leaves_nothing_behind() {
        let hub = hub(0);
        hub.restart(1);
        let subscribers: Vec<_> = (0..3).map(|_| Subscriber::new(1000)).collect();
        for subscriber in &subscribers {
            hub.join(subscriber, &topics(&["a", "b"]), |_| Frame::raw("hello"));
        }
        hub.leave(&subscribers[1]);
        publish(&hub, 2, &[("a", "a1")]);
        assert_eq!(take(&subscribers[0]), ["hello", "a1"]);
        assert!(take(&subscribers[1]).is_empty());
        hub.leave(&subscribers[0]);
        hub.leave(&subscribers[2]);
        assert_eq!(hub.inner.lock().topics.len(), 0);
    }

    #[test]
    fn a_stream_that_ended_before_it_was_live_takes_no_seat() {
        let hub = hub(1000);
        hub.restart(1);
        let gone = Subscriber::new(1000);
        hub.leave(&gone);
        assert_eq!(hub.resume(&gone, &topics(&["a"]), at(1, END)), Joined::Live);
        assert_eq!(hub.inner.lock().topics.len(), 0);
    }

    #[test]
    fn memory_serves_what_it_holds_and_says_so_when_it_does_not() {
        let hub = hub(3 * (EVENT_OVERHEAD + 1 + 2));
        let late = Subscriber::new(1000);
        assert_eq!(hub.resume(&late, &topics(&["a"]), at(1, END)), Joined::Ahead, "nothing is known yet");
        hub.restart(1);
        publish(&hub, 2, &[("a", "a1"), ("b", "b1")]);
        assert_eq!(hub.resume(&late, &topics(&["a"]), at(0, END)), Joined::TooOld);
        assert_eq!(hub.resume(&late, &topics(&["a"]), at(3, 1)), Joined::Ahead);
        publish(&hub, 3, &[("a", "a2"), ("a", "a3")]);
        assert_eq!(hub.resume(&late, &topics(&["a"]), at(1, END)), Joined::TooOld, "a1 has been evicted");
        assert_eq!(hub.resume(&late, &topics(&["a", "b"]), at(2, 1)), Joined::Live);
        assert_eq!(take(&late), ["b1", "a2", "a3"]);
    }

    #[test]
    fn more_than_is_comfortable_comes_in_pieces() {
        let hub = hub(100_000);
        hub.restart(1);
        publish(&hub, 2, &[("a", "111"), ("b", "222"), ("a", "333"), ("a", "444"), ("b", "555")]);
        let subscriber = Subscriber::new(24);
        let names = topics(&["a", "b"]);
        assert_eq!(hub.resume(&subscriber, &names, at(1, END)), Joined::Behind(at(2, 2)));
        assert_eq!(take(&subscriber), ["111", "222"]);
        assert_eq!(hub.resume(&subscriber, &names, at(2, 2)), Joined::Behind(at(2, 4)));
        assert_eq!(take(&subscriber), ["333", "444"]);
        assert_eq!(hub.resume(&subscriber, &names, at(2, 4)), Joined::Live);
        assert_eq!(take(&subscriber), ["555"]);
    }

    #[test]
    fn comings_and_goings_are_told_once_and_all_on_request() {
        let hub = hub(1000);
        hub.restart(1);
        let (one, two) = (Subscriber::new(1000), Subscriber::new(1000));
        hub.join(&one, &topics(&["a"]), |_| Frame::raw("hello"));
        hub.join(&two, &topics(&["a"]), |_| Frame::raw("hello"));
        assert_eq!(hub.watched(false), [("a".into(), 2)]);
        assert_eq!(hub.watched(false), []);
        hub.leave(&one);
        publish(&hub, 2, &[("b", "b1")]);
        assert_eq!(hub.watched(true), [("a".into(), 1)]);
        hub.leave(&two);
        assert_eq!(hub.watched(false), [("a".into(), 0)]);
    }

    #[test]
    fn a_reset_tells_each_subscriber_once_and_forgets_history() {
        let hub = hub(100_000);
        hub.restart(1);
        let subscriber = Subscriber::new(1000);
        hub.join(&subscriber, &topics(&["a", "b"]), |_| Frame::raw("hello"));
        publish(&hub, 2, &[("a", "a1")]);
        hub.reset(9);
        publish(&hub, 10, &[("b", "b1")]);
        let reset = "id: 9\nevent: reset\ndata: {\"reason\":\"expired\"}\n\n";
        assert_eq!(take(&subscriber), ["hello", "a1", reset, "b1"]);
        assert_eq!(hub.resume(&Subscriber::new(9), &topics(&["a"]), at(2, 1)), Joined::TooOld);
    }

    proptest! {
        /// Whatever the budget and wherever a client resumes, it gets exactly the events behind its place, or is
        /// told that memory can't say.
        #[test]
        fn a_resumed_client_gets_exactly_the_rest(
            ticks in prop::collection::vec(prop::collection::vec(0usize..4, 0..5), 1..12),
            budget in 0usize..4_000,
            from in (0u64..12, 0u32..5),
            limit in 1usize..60,
        ) {
            let names = ["a", "b", "c", "d"];
            let hub = hub(budget);
            hub.restart(0);
            let mut all = Vec::new();
            for (i, tick) in ticks.iter().enumerate() {
                let tick_no = i as u64 + 1;
                let events: Vec<_> = tick.iter().enumerate()
                    .map(|(n, topic)| (names[*topic], format!("{tick_no}-{}", n + 1))).collect();
                let events: Vec<_> = events.iter().map(|(topic, text)| (*topic, text.as_str())).collect();
                publish(&hub, tick_no, &events);
                all.extend(events.iter().enumerate()
                    .map(|(n, (topic, text))| (at(tick_no, n as u32 + 1), topic.to_string(), text.to_string())));
            }
            let subscriber = Subscriber::new(limit);
            let mine = topics(&["a", "c"]);
            let (mut after, mut got) = (at(from.0, from.1), Vec::new());
            let expected: Vec<_> = all.iter()
                .filter(|(place, topic, _)| *place > after && (topic == "a" || topic == "c"))
                .map(|(_, _, text)| text.clone()).collect();
            loop {
                let joined = hub.resume(&subscriber, &mine, after);
                got.extend(take(&subscriber));
                match joined {
                    Joined::Behind(place) => { prop_assert!(place > after); after = place; }
                    Joined::Live => { prop_assert_eq!(got, expected); break; }
                    Joined::TooOld => { prop_assert!(got.is_empty()); break; }
                    Joined::Ahead => { prop_assert!(after > hub.place().unwrap()); break; }
                }
            }
            prop_assert!(hub.inner.lock().bytes <= budget);
        }
    }
}
