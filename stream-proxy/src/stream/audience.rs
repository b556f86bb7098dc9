//! The subscribers of one topic. An event is queued to them in groups, so that other work is done in between.

use std::sync::Arc;

use slab::Slab;

use crate::stream::due::GROUP;
use crate::stream::frame::Frame;
use crate::stream::subscriber::Subscriber;
use crate::stream::tally::Tally;

/// The subscribers of one topic.
#[derive(Debug, Default)]
pub struct Audience {
    seats: Slab<Listener>,
    /// How many of them have other topics too.
    shared: usize,
}

#[derive(Debug)]
struct Listener {
    subscriber: Arc<Subscriber>,
    /// The number of the last event that had been published when it joined: it gets those after it.
    since: u64,
}

impl Audience {
    /// The number of subscribers.
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether there are no subscribers.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Whether there is more than one group from seat `first` on.
    pub fn has_many(&self, first: usize) -> bool {
        self.seats.capacity() > first + GROUP
    }

    /// Whether some subscribers have other topics too, so that their events must not overtake those of other topics.
    pub fn is_shared(&self) -> bool {
        self.shared > 0
    }

    /// Whether a subscriber has a seat, in this topic or another, for which `matches` is true.
    pub fn any_has_seat(&self, matches: impl Fn(&str, usize) -> bool) -> bool {
        self.subscribers().any(|subscriber| subscriber.has_seat(&matches))
    }

    /// Adds a subscriber, for events after number `since`; `shared` if it has other topics too. Returns its seat.
    pub fn seat(&mut self, subscriber: Arc<Subscriber>, since: u64, shared: bool) -> usize {
        self.shared += usize::from(shared);
        self.seats.insert(Listener { subscriber, since })
    }

    /// Removes the subscriber in a seat.
    pub fn unseat(&mut self, seat: usize, shared: bool) {
        if self.seats.try_remove(seat).is_some() {
            self.shared -= usize::from(shared);
        }
    }

    /// All subscribers.
    pub fn subscribers(&self) -> impl Iterator<Item = &Arc<Subscriber>> {
        self.seats.iter().map(|(_, listener)| &listener.subscriber)
    }

    /// Queues events, each with its number, to the group of subscribers from seat `first` on. Returns the seat from
    /// which to continue, if there are more.
    pub fn send(&self, events: &[(u64, Frame)], first: usize, tally: &mut Tally) -> Option<usize> {
        let all = self.seats.capacity();
        let end = all.min(first + GROUP);
        // Seat by seat, because iterating over a slab begins at its first seat, and empty seats are cheap to skip.
        for listener in (first..end).filter_map(|seat| self.seats.get(seat)) {
            for (_, frame) in events.iter().filter(|(event, _)| listener.since < *event) {
                tally.push(&listener.subscriber, frame);
            }
        }
        (end < all).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_sent_group_by_group_and_skips_later_subscribers() {
        let mut audience = Audience::default();
        let early: Vec<_> = (0..3 * GROUP).map(|_| Subscriber::new(1000)).collect();
        let seats: Vec<_> = early.iter().map(|subscriber| audience.seat(subscriber.clone(), 0, false)).collect();
        let mut tally = Tally::default();
        let events = [(1, Frame::raw("x"))];
        let mut next = audience.send(&events, 0, &mut tally);
        assert_eq!((next, tally.sent), (Some(GROUP), GROUP as u64));
        // A subscriber leaves before it is served, and a later one takes its seat.
        audience.unseat(seats[GROUP + 5], false);
        let late = audience.seat(Subscriber::new(1000), 1, true);
        assert_eq!(late, seats[GROUP + 5]);
        while let Some(first) = next {
            next = audience.send(&events, first, &mut tally);
        }
        assert_eq!(tally.sent, early.len() as u64 - 1);
        assert!(audience.is_shared());
        audience.unseat(late, true);
        assert!(!audience.is_shared());
    }
}
