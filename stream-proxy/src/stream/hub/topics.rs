//! All topics: each one's audience and recent history. The history of all topics together is bounded in bytes; the
//! oldest events are dropped first.

use std::collections::{HashMap, HashSet, VecDeque};
use std::iter::{Chain, Peekable};
use std::slice;
use std::sync::Arc;

use tidings_wire::Template;

use crate::stream::audience::Audience;
use crate::stream::frame::Frame;
use crate::stream::place::Place;
use crate::stream::subscriber::{Seat, Subscriber};

/// What an event in history takes in addition to the bytes of its frame: the overhead of the allocator and of the
/// frame's shared owner, and its entries in its topic's queue, in the order of all events and in the list of ticks, in
/// vectors that may be half empty.
pub const EVENT_OVERHEAD: usize = 200;

/// What a topic in history takes in addition to its name and its events: its entry in the map, which may be slightly
/// more than half empty, and the allocator's overhead for the name.
pub const TOPIC_OVERHEAD: usize = 200;

/// So many ticks are remembered in any case: half a megabyte. A tick may leave nothing in history, because a recheck
/// takes the place of an older one.
pub const FEW_TICKS: usize = 64 * 1024;

/// The topics that have subscribers or history.
#[derive(Debug, Default)]
pub struct Topics {
    entries: HashMap<Arc<str>, Entry>,
    /// The topics of all events in history, oldest first.
    order: VecDeque<Arc<str>>,
    /// Bytes of history.
    bytes: usize,
    /// All events after this place are in history.
    floor: Option<Place>,
    /// The ticks from the floor on, in rising order: no more than events of the least size fit into history, or
    /// [`FEW_TICKS`].
    ticks: VecDeque<u64>,
    /// Places of ticks whose events up to there are in history as events of ticks that were lost. There is one for each
    /// crash that lost a tick.
    gaps: VecDeque<Place>,
    /// Topics whose number of subscribers may have changed since it was last asked for.
    changed: HashSet<Arc<str>>,
}

/// Kept small, because there may be very many topics with one event and no subscriber: the audience is created for the
/// first subscriber.
#[derive(Debug, Default)]
struct Entry {
    audience: Option<Box<Audience>>,
    history: History,
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.audience.is_none() && self.history.is_empty()
    }

    fn subscribers(&self) -> usize {
        self.audience.as_ref().map_or(0, |audience| audience.len())
    }
}

/// The most topics that are looked at for a glance, so that the hub's lock is held for a moment only.
const LOOK: usize = 10_000;

/// A topic at a glance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glance {
    /// Its name.
    pub topic: Arc<str>,
    /// How many streams it has.
    pub subscribers: usize,
    /// How many events of it are in history.
    pub kept: usize,
    /// The tick of the last of them.
    pub last: Option<u64>,
}

/// An event in history.
type Kept = (Place, Frame);

/// The events of a topic, oldest first. Many topics have only one, which needs no queue.
#[derive(Debug, Default)]
enum History {
    #[default]
    None,
    One(Kept),
    Many(VecDeque<Kept>),
}

impl History {
    fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(events) => events.len(),
        }
    }

    fn last(&self) -> Option<&Kept> {
        match self {
            Self::None => None,
            Self::One(event) => Some(event),
            Self::Many(events) => events.back(),
        }
    }

    fn push(&mut self, event: Kept) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(event),
            Self::One(first) => Self::Many([first, event].into()),
            Self::Many(mut events) => {
                events.push_back(event);
                Self::Many(events)
            }
        }
    }

    fn last_mut(&mut self) -> Option<&mut Kept> {
        match self {
            Self::None => None,
            Self::One(event) => Some(event),
            Self::Many(events) => events.back_mut(),
        }
    }

    fn pop(&mut self) -> Option<Kept> {
        match self {
            Self::Many(events) => {
                let oldest = events.pop_front();
                if events.is_empty() {
                    *self = Self::None;
                }
                oldest
            }
            _ => match std::mem::take(self) {
                Self::One(event) => Some(event),
                _ => None,
            },
        }
    }

    /// The events after a place.
    fn after(&self, place: Place) -> Chain<slice::Iter<'_, Kept>, slice::Iter<'_, Kept>> {
        let (older, newer) = match self {
            Self::None => (&[][..], &[][..]),
            Self::One(event) => (slice::from_ref(event), &[][..]),
            Self::Many(events) => events.as_slices(),
        };
        let skipped = |events: &'_ [Kept]| events.partition_point(|(at, _)| *at <= place);
        older[skipped(older)..].iter().chain(newer[skipped(newer)..].iter())
    }
}

impl Topics {
    /// The number of topics.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of history.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether history has all events after `place`, and `place` is in a tick that was heard.
    pub fn covers(&self, place: Place) -> bool {
        let is_in_gap = |gap: &Place| gap.tick == place.tick && place.n < gap.n;
        self.floor.is_some_and(|floor| floor <= place)
            && self.ticks.binary_search(&place.tick).is_ok()
            && !self.gaps.iter().any(is_in_gap)
    }

    /// Notes that the events of a tick up to `place` are in history as events of ticks that were lost.
    pub fn note_gap(&mut self, place: Place) {
        self.note_tick(place.tick);
        self.gaps.push_back(place);
    }

    /// Notes the newest tick.
    pub fn note_tick(&mut self, tick: u64) {
        if self.ticks.back().is_none_or(|last| *last < tick) {
            self.ticks.push_back(tick);
        }
    }

    /// The subscribers of a topic.
    pub fn audience(&self, topic: &str) -> Option<&Audience> {
        self.entries.get(topic).and_then(|entry| entry.audience.as_deref())
    }

    /// The subscribers of all topics; a subscriber of several topics comes several times.
    pub fn subscribers(&self) -> impl Iterator<Item = &Arc<Subscriber>> {
        self.entries.values().filter_map(|entry| entry.audience.as_ref()).flat_map(|audience| audience.subscribers())
    }

    /// The subscribers of the topics that match a template.
    pub fn subscribers_matching(&self, template: &Template) -> impl Iterator<Item = &Arc<Subscriber>> {
        let matching = self.entries.iter().filter(|(topic, _)| template.matches(topic).is_some());
        matching.filter_map(|(_, entry)| entry.audience.as_ref()).flat_map(|audience| audience.subscribers())
    }

    /// The number of subscribers of each topic whose number may have changed since the last call, even if it has none
    /// any more; with `all`, also of each other topic that has any.
    pub fn subscriber_counts(&mut self, all: bool) -> Vec<(Arc<str>, usize)> {
        let changed = std::mem::take(&mut self.changed);
        let count = |topic: &str| self.audience(topic).map_or(0, Audience::len);
        let mut counts: Vec<_> = changed.iter().map(|topic| (topic.clone(), count(topic))).collect();
        if all {
            let others = self.entries.iter().filter(|(topic, _)| !changed.contains(*topic));
            let others = others.map(|(topic, entry)| (topic.clone(), entry.subscribers()));
            counts.extend(others.filter(|(_, subscribers)| *subscribers > 0));
        }
        counts
    }

    /// Up to `most` topics: those with the newest events, and as many that have subscribers. True if there are more.
    pub fn glance(&self, most: usize) -> (Vec<Glance>, bool) {
        let mut names: HashSet<&Arc<str>> = HashSet::new();
        let recent = self.order.iter().rev().take(LOOK);
        let open = self.entries.iter().take(LOOK).filter(|(_, entry)| entry.subscribers() > 0).map(|(topic, _)| topic);
        for topic in recent {
            if names.len() >= most / 2 {
                break;
            }
            names.insert(topic);
        }
        for topic in open {
            if names.len() >= most {
                break;
            }
            names.insert(topic);
        }
        let more = names.len() < self.entries.len();
        let glance = |topic: &Arc<str>| {
            let entry = self.entries.get(topic)?;
            let (subscribers, kept) = (entry.subscribers(), entry.history.len());
            let last = entry.history.last().map(|(place, _)| place.tick);
            Some(Glance { topic: topic.clone(), subscribers, kept, last })
        };
        (names.into_iter().filter_map(glance).collect(), more)
    }

    /// Drops history: it starts again after `place`.
    pub fn forget(&mut self, place: Place) {
        self.floor = Some(place);
        self.ticks.clear();
        self.gaps.clear();
        self.note_tick(place.tick);
        self.order.clear();
        self.bytes = 0;
        self.entries.retain(|_, entry| {
            entry.history = History::None;
            !entry.is_idle()
        });
    }

    /// Whether a recheck is superfluous, because the topic's newest event is one of the same tick.
    pub fn has_just(&mut self, topic: &str, recheck: u64) -> bool {
        let newest = self.entries.get_mut(topic).and_then(|entry| entry.history.last_mut());
        newest.is_some_and(|(_, frame)| frame.as_recheck() == Some(recheck))
    }

    /// Whether there is a recheck of one of the topics after `since`, up to and including `until`.
    pub fn has_recheck(&self, topics: &[Arc<str>], since: Place, until: Place) -> bool {
        topics.iter().filter_map(|topic| self.entries.get(topic)).any(|entry| {
            let mut events = entry.history.after(since).take_while(|(place, _)| *place <= until);
            events.any(|(_, frame)| frame.as_recheck().is_some())
        })
    }

    /// Adds an event to history. Returns the map's own copy of its topic.
    pub fn keep(&mut self, place: Place, topic: &str, frame: Frame) -> Arc<str> {
        self.note_tick(place.tick);
        if frame.as_recheck().is_some()
            && let Some((key, _)) = self.entries.get_key_value(topic)
            && let key = key.clone()
            && let Some(newest) = self.entries.get_mut(topic).and_then(|entry| entry.history.last_mut())
            && newest.1.as_recheck().is_some()
        {
            // Nothing is between them, so the newer recheck takes the place of the older one.
            *newest = (place, frame);
            return key;
        }
        self.bytes += cost(&frame);
        let key = match self.entries.get_key_value(topic) {
            Some((key, _)) => key.clone(),
            None => topic.into(),
        };
        let history = &mut self.entries.entry(key.clone()).or_default().history;
        if history.is_empty() {
            self.bytes += TOPIC_OVERHEAD + topic.len();
        }
        history.push((place, frame));
        self.order.push_back(key.clone());
        key
    }

    /// Drops the oldest events until history fits, and the oldest ticks if there are too many without events.
    pub fn evict(&mut self, budget: usize) {
        while self.ticks.len() > FEW_TICKS.max(budget / EVENT_OVERHEAD)
            && let Some(tick) = self.ticks.pop_front()
        {
            self.floor = self.floor.max(Some(Place::after_tick(tick)));
        }
        while self.bytes > budget
            && let Some(topic) = self.order.pop_front()
        {
            let Some(entry) = self.entries.get_mut(&topic) else { continue };
            if let Some((place, frame)) = entry.history.pop() {
                self.bytes -= cost(&frame);
                // A recheck may have taken the place of an older one, and be newer than what is left.
                self.floor = self.floor.max(Some(place));
                while self.ticks.front().is_some_and(|tick| *tick < place.tick) {
                    self.ticks.pop_front();
                }
                while self.gaps.front().is_some_and(|gap| gap.tick < place.tick) {
                    self.gaps.pop_front();
                }
            }
            if entry.history.is_empty() {
                self.bytes -= TOPIC_OVERHEAD + topic.len();
                if entry.is_idle() {
                    self.entries.remove(&topic);
                }
            }
        }
    }

    /// The frames after `after`, in order, each with the number of its topic among `topics`, up to about `limit` bytes.
    /// If there are more, also the place that was reached.
    pub fn missed(&self, topics: &[Arc<str>], after: Place, limit: usize) -> (Vec<(usize, Frame)>, Option<Place>) {
        let entries = topics.iter().enumerate().filter_map(|(n, topic)| Some((n, self.entries.get(topic)?)));
        let mut sources: Vec<_> = entries.map(|(n, entry)| (n, entry.history.after(after).peekable())).collect();
        let (mut frames, mut bytes, mut reached) = (Vec::new(), 0, after);
        let next = |source: &mut Peekable<_>| source.peek().map(|(place, _): &&Kept| *place);
        while let Some((_, (topic, source))) = sources
            .iter_mut()
            .filter_map(|(n, source)| Some((next(source)?, (*n, source))))
            .min_by_key(|(place, _)| *place)
        {
            if bytes >= limit && !frames.is_empty() {
                return (frames, Some(reached));
            }
            if let Some((place, frame)) = source.next() {
                bytes += frame.len();
                reached = *place;
                frames.push((topic, frame.clone()));
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
                let seat = entry.audience.get_or_insert_default().seat(subscriber.clone(), since, shared);
                (key, seat)
            })
            .collect()
    }

    /// Frees seats.
    pub fn unseat(&mut self, seats: Box<[Seat]>) {
        let shared = seats.len() > 1;
        for (topic, seat) in seats {
            if let Some(entry) = self.entries.get_mut(&topic) {
                if let Some(audience) = &mut entry.audience {
                    audience.unseat(seat, shared);
                    if audience.is_empty() {
                        entry.audience = None;
                    }
                }
                if entry.is_idle() {
                    self.entries.remove(&topic);
                }
                self.changed.insert(topic);
            }
        }
    }
}

fn cost(frame: &Frame) -> usize {
    EVENT_OVERHEAD + frame.len()
}
