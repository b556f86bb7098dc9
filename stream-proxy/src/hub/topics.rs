//! All topics: each one's audience and recent history. History of all together is bounded in bytes; the oldest events go first.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::audience::Audience;
use crate::frame::Frame;
use crate::subscriber::{Seat, Subscriber};

use super::Place;

/// What an event in history takes beside its frame and topic, in bytes: its entries in two queues and in the map.
pub const EVENT_OVERHEAD: usize = 200;

/// The topics that have subscribers or history.
#[derive(Debug, Default)]
pub struct Topics {
    entries: HashMap<Arc<str>, Entry>,
    /// The topics of all events in history, oldest first.
    order: VecDeque<Arc<str>>,
    /// Bytes of history.
    bytes: usize,
    /// All events behind this place are in history.
    floor: Option<Place>,
    /// The ticks from the floor's on, rising. Nearly all of them have events, so there are no more of them than of events in history.
    ticks: VecDeque<u64>,
    /// Topics whose subscribers have come or gone since this was last asked.
    changed: HashSet<Arc<str>>,
}

#[derive(Debug, Default)]
struct Entry {
    audience: Audience,
    history: VecDeque<(Place, Frame)>,
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.audience.is_empty() && self.history.is_empty()
    }
}

impl Topics {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of history.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether all events behind `place`, which is one of this log, are in history.
    pub fn reaches(&self, place: Place) -> bool {
        self.floor.is_some_and(|floor| floor <= place) && self.ticks.binary_search(&place.tick).is_ok()
    }

    /// Notes a tick, the last one until the next is noted.
    pub fn pass(&mut self, tick: u64) {
        if self.ticks.back().is_none_or(|last| *last < tick) {
            self.ticks.push_back(tick);
        }
    }

    /// The subscribers of a topic.
    pub fn audience(&self, topic: &str) -> Option<&Audience> {
        self.entries.get(topic).map(|entry| &entry.audience)
    }

    /// The subscribers of all topics; one of several topics comes several times.
    pub fn subscribers(&self) -> impl Iterator<Item = &Arc<Subscriber>> {
        self.entries.values().flat_map(|entry| entry.audience.subscribers())
    }

    /// How many subscribers the topics have whose subscribers have come or gone since the last call, or all topics.
    pub fn watched(&mut self, all: bool) -> Vec<(Arc<str>, usize)> {
        let changed = std::mem::take(&mut self.changed);
        if all {
            let counts = self.entries.iter().map(|(topic, entry)| (topic.clone(), entry.audience.len()));
            return counts.filter(|(_, subscribers)| *subscribers > 0).collect();
        }
        let count = |topic: &str| self.audience(topic).map_or(0, Audience::len);
        changed.into_iter().map(|topic| (topic.clone(), count(&topic))).collect()
    }

    /// Forgets history: it begins anew behind `place`.
    pub fn forget(&mut self, place: Place) {
        self.floor = Some(place);
        self.ticks.clear();
        self.pass(place.tick);
        self.order.clear();
        self.bytes = 0;
        self.entries.retain(|_, entry| {
            entry.history = VecDeque::new();
            !entry.is_idle()
        });
    }

    /// Takes an event into history; gives the map's own copy of its topic.
    pub fn keep(&mut self, place: Place, topic: &str, frame: Frame) -> Arc<str> {
        self.bytes += cost(topic, &frame);
        self.pass(place.tick);
        let key = match self.entries.get_key_value(topic) {
            Some((key, _)) => key.clone(),
            None => topic.into(),
        };
        self.entries.entry(key.clone()).or_default().history.push_back((place, frame));
        self.order.push_back(key.clone());
        key
    }

    /// Forgets the oldest events until history fits.
    pub fn evict(&mut self, budget: usize) {
        while self.bytes > budget
            && let Some(topic) = self.order.pop_front()
        {
            let Some(entry) = self.entries.get_mut(&topic) else { continue };
            if let Some((place, frame)) = entry.history.pop_front() {
                self.bytes -= cost(&topic, &frame);
                self.floor = Some(place);
                while self.ticks.front().is_some_and(|tick| *tick < place.tick) {
                    self.ticks.pop_front();
                }
            }
            if entry.is_idle() {
                self.entries.remove(&topic);
            } else if entry.history.is_empty() {
                entry.history = VecDeque::new();
            }
        }
    }

    /// The frames behind `after`, in order, up to about `limit` bytes, and the place reached if that is not all.
    pub fn missed(&self, topics: &[Arc<str>], after: Place, limit: usize) -> (Vec<Frame>, Option<Place>) {
        let mut sources: Vec<_> = topics
            .iter()
            .filter_map(|topic| self.entries.get(topic))
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

    /// Gives the subscriber a seat at each of `topics`, for events after number `since`.
    pub fn seat(&mut self, subscriber: &Arc<Subscriber>, topics: &[Arc<str>], since: u64) -> Box<[Seat]> {
        let shared = topics.len() > 1;
        topics
            .iter()
            .map(|topic| {
                let key = self.entries.get_key_value(topic).map_or(topic, |(key, _)| key).clone();
                self.changed.insert(key.clone());
                let entry = self.entries.entry(key.clone()).or_default();
                let seat = entry.audience.seat(subscriber.clone(), since, shared);
                (key, seat)
            })
            .collect()
    }

    /// Takes seats back.
    pub fn unseat(&mut self, seats: Box<[Seat]>) {
        let shared = seats.len() > 1;
        for (topic, seat) in seats {
            if let Some(entry) = self.entries.get_mut(&topic) {
                entry.audience.unseat(seat, shared);
                if entry.is_idle() {
                    self.entries.remove(&topic);
                }
                self.changed.insert(topic);
            }
        }
    }
}

fn cost(topic: &str, frame: &Frame) -> usize {
    EVENT_OVERHEAD + topic.len() + frame.len()
}
