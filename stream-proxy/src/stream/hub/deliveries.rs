//! Published events that are still being queued to their subscribers, group by group.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::stream::due::GROUP;
use crate::stream::frame::Frame;
use crate::stream::tally::Tally;

use super::topics::Topics;

/// The deliveries under way, in order.
#[derive(Debug, Default)]
pub struct Deliveries(VecDeque<Delivery>);

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
        self.0.is_empty()
    }

    /// How many events are being delivered.
    pub fn events(&self) -> usize {
        self.0.iter().map(|delivery| delivery.events.len()).sum()
    }

    /// Whether more than one group of subscribers is left.
    pub fn are_many(&self, topics: &Topics) -> bool {
        let left =
            |first: &Delivery| topics.audience(&first.topic).is_some_and(|audience| audience.has_many(first.next));
        self.0.len() > 1 || self.0.front().is_some_and(left)
    }

    /// Notes that `tick` is complete when the deliveries so far are. False if none is under way.
    pub fn note_end_of(&mut self, tick: u64) -> bool {
        self.0.back_mut().map(|last| last.ticks.push(tick)).is_some()
    }

    /// Queues an event to its topic's subscribers at once, or starts a delivery. A large topic always gets a delivery,
    /// and none of its subscribers is served before small topics of the same tick are.
    pub fn send(&mut self, topics: &Topics, topic: Arc<str>, event: (u64, Frame), tally: &mut Tally) {
        let Some(audience) = topics.audience(&topic) else { return };
        let must_wait = !self.is_empty() && (audience.is_shared() || self.0.iter().any(|other| other.topic == topic));
        let event = [event];
        let next = if must_wait || audience.len() > GROUP { Some(0) } else { audience.send(&event, 0, tally) };
        let Some(next) = next else { return };
        match self.0.back_mut() {
            // No subscriber has got the events of that delivery yet, and no event lies between them and this one.
            Some(last) if last.topic == topic && last.next == 0 => last.events.extend(event),
            _ => self.0.push_back(Delivery { topic, events: event.into(), next, ticks: Vec::new() }),
        }
    }

    /// Serves the next group of subscribers. If it was the last group of a delivery, returns the ticks that are
    /// complete now.
    pub fn serve_group(&mut self, topics: &Topics, tally: &mut Tally) -> Option<Vec<u64>> {
        let delivery = self.0.front_mut()?;
        let audience = topics.audience(&delivery.topic);
        match audience.and_then(|audience| audience.send(&delivery.events, delivery.next, tally)) {
            Some(next) => {
                delivery.next = next;
                None
            }
            None => self.0.pop_front().map(|delivery| delivery.ticks),
        }
    }
}
