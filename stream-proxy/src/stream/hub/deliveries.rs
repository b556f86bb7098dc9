//! Published events that are still being queued to their subscribers, group by group.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::stream::due::GROUP;
use crate::stream::frame::Frame;
use crate::stream::tally::Tally;

use super::topics::Topics;

/// While there are more deliveries than this, an event of subscribers with several topics waits for all of them: to
/// find out whether it has to would take longer.
const MAX_COMPARED: usize = 16;

/// The deliveries under way, in order.
#[derive(Debug, Default)]
pub struct Deliveries {
    queue: VecDeque<Delivery>,
    /// Whether events of small topics were sent at once: between the starts of the last two deliveries, and since the
    /// start of the last one.
    has_small: [bool; 2],
}

/// Events of one topic, each with its number. A subscriber is queued all of them at once, so that it writes them at
/// once.
#[derive(Debug)]
struct Delivery {
    topic: Arc<str>,
    events: Vec<(u64, Frame)>,
    /// The seat from which to continue.
    next: usize,
    /// Ticks that are complete when this delivery is.
    ticks: Vec<u64>,
}

impl Deliveries {
    /// Whether every event has been queued to all its subscribers.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many events are being delivered.
    pub fn events(&self) -> usize {
        self.queue.iter().map(|delivery| delivery.events.len()).sum()
    }

    /// How many of `all` threads should work on the deliveries: half of them, if there is only one delivery and small
    /// topics have events too, because the same processors serve those events, and often the database. Otherwise all of
    /// them, because a write costs less while all processors are busy: it need not wake a reader on the same machine.
    /// One, if only one group is left.
    pub fn threads(&self, topics: &Topics, all: usize) -> usize {
        let has_many =
            |first: &Delivery| topics.audience(&first.topic).is_some_and(|audience| audience.has_many(first.next));
        let leaves_room = self.has_small.contains(&true);
        match self.queue.front() {
            None => 0,
            Some(_) if self.queue.len() > 1 => all,
            Some(first) if !has_many(first) => 1,
            Some(_) if leaves_room => (all / 2).max(1),
            Some(_) => all,
        }
    }

    /// Whether the subscriber in this seat of a topic has yet to be queued events of that topic.
    fn is_behind(&self, topic: &str, seat: usize) -> bool {
        self.queue.iter().any(|delivery| *delivery.topic == *topic && delivery.next <= seat)
    }

    /// Notes that `tick` is complete when the deliveries so far are. False if none is under way.
    pub fn note_end_of(&mut self, tick: u64) -> bool {
        self.queue.back_mut().map(|last| last.ticks.push(tick)).is_some()
    }

    /// Queues an event to its topic's subscribers at once, or starts a delivery. A large topic always gets a delivery,
    /// and none of its subscribers is served before small topics of the same tick are. An event of a small topic waits
    /// only for deliveries of the same topic, and for those of other topics that one of its subscribers still expects.
    pub fn send(&mut self, topics: &Topics, topic: Arc<str>, event: (u64, Frame), tally: &mut Tally) {
        let Some(audience) = topics.audience(&topic) else { return };
        let must_wait = || {
            let is_behind = |topic: &str, seat| self.is_behind(topic, seat);
            self.queue.iter().any(|other| other.topic == topic)
                || (!self.is_empty()
                    && audience.is_shared()
                    && (self.queue.len() > MAX_COMPARED || audience.any_has_seat(is_behind)))
        };
        let event = [event];
        let next = if audience.len() > GROUP || must_wait() { Some(0) } else { audience.send(&event, 0, tally) };
        let Some(next) = next else {
            self.has_small[1] |= !audience.is_empty();
            return;
        };
        match self.queue.back_mut() {
            // No subscriber has got the events of that delivery yet, and no event lies between them and this one.
            Some(last) if last.topic == topic && last.next == 0 => last.events.extend(event),
            _ => {
                self.has_small = [self.has_small[1], false];
                self.queue.push_back(Delivery { topic, events: event.into(), next, ticks: Vec::new() });
            }
        }
    }

    /// Serves the next group of subscribers. If it was the last group of a delivery, returns the ticks that are
    /// complete now.
    pub fn serve_group(&mut self, topics: &Topics, tally: &mut Tally) -> Option<Vec<u64>> {
        let delivery = self.queue.front_mut()?;
        let audience = topics.audience(&delivery.topic);
        match audience.and_then(|audience| audience.send(&delivery.events, delivery.next, tally)) {
            Some(next) => {
                delivery.next = next;
                None
            }
            None => self.queue.pop_front().map(|delivery| delivery.ticks),
        }
    }
}
