//! The subscribers of one topic, and an event's way to all of them, a few at a time.

use std::sync::Arc;

use slab::Slab;

use crate::metrics::Metrics;
use crate::stream::frame::Frame;
use crate::stream::subscriber::{Pushed, Subscriber};

/// How many subscribers are served in one go. Each of them wakes a task that writes, some 10 µs each, and whoever comes
/// next waits behind those. tokio looks for news of sockets after 61 tasks, or sooner when none is left: with fewer
/// than that in one go, it has looked before the next.
pub const CHUNK: usize = 32;

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
    /// The number of the last event that had been published when it came: it gets those after.
    since: u64,
}

/// What became of the frames that were queued.
#[derive(Debug, Default)]
pub struct Tally {
    sent: u64,
    overflows: u64,
    /// The subscriber that has the most waiting, and how much.
    pub fullest: Option<(usize, Arc<Subscriber>)>,
}

impl Audience {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Whether some of them have other topics too, so that their events must not overtake those of other topics.
    pub fn is_shared(&self) -> bool {
        self.shared > 0
    }

    /// Takes a subscriber in, for events after number `since`; `shared` if it has other topics too.
    pub fn seat(&mut self, subscriber: Arc<Subscriber>, since: u64, shared: bool) -> usize {
        self.shared += usize::from(shared);
        self.seats.insert(Listener { subscriber, since })
    }

    /// Takes it out.
    pub fn unseat(&mut self, seat: usize, shared: bool) {
        if self.seats.try_remove(seat).is_some() {
            self.shared -= usize::from(shared);
        }
    }

    /// All of them.
    pub fn subscribers(&self) -> impl Iterator<Item = &Arc<Subscriber>> {
        self.seats.iter().map(|(_, listener)| &listener.subscriber)
    }

    /// Queues events, each with its number, to those from seat `first` on, at most a chunk of them; gives the seat to
    /// go on with.
    pub fn send(&self, events: &[(u64, Frame)], first: usize, tally: &mut Tally) -> Option<usize> {
        let all = self.seats.capacity();
        let end = all.min(first + CHUNK);
        // Few seats of a large hall are asked one by one: that is what goes on in the middle, and when many have left.
        for listener in (first..end).filter_map(|seat| self.seats.get(seat)) {
            for (_, frame) in events.iter().filter(|(event, _)| listener.since < *event) {
                tally.push(&listener.subscriber, frame);
            }
        }
        (end < all).then_some(end)
    }
}

impl Tally {
    /// Queues a frame to one subscriber.
    pub fn push(&mut self, subscriber: &Arc<Subscriber>, frame: &Frame) {
        match subscriber.push(frame.clone()) {
            Pushed::Waiting(bytes) => {
                self.sent += 1;
                if self.fullest.as_ref().is_none_or(|(most, _)| bytes > *most) {
                    self.fullest = Some((bytes, subscriber.clone()));
                }
            }
            Pushed::Overflow => self.overflows += 1,
            Pushed::Ended => {}
        }
    }

    /// Adds it to the metrics.
    pub fn count(&self, metrics: &Metrics) {
        metrics.events_out.add(self.sent);
        metrics.evicted_overflow.add(self.overflows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_goes_round_in_chunks_and_passes_over_newcomers() {
        let mut audience = Audience::default();
        let early: Vec<_> = (0..3 * CHUNK).map(|_| Subscriber::new(1000)).collect();
        let seats: Vec<_> = early.iter().map(|subscriber| audience.seat(subscriber.clone(), 0, false)).collect();
        let mut tally = Tally::default();
        let events = [(1, Frame::raw("x"))];
        let mut next = audience.send(&events, 0, &mut tally);
        assert_eq!((next, tally.sent), (Some(CHUNK), CHUNK as u64));
        // Somebody leaves who has not been served, and somebody who came later sits there.
        audience.unseat(seats[CHUNK + 5], false);
        let late = audience.seat(Subscriber::new(1000), 1, true);
        assert_eq!(late, seats[CHUNK + 5]);
        while let Some(first) = next {
            next = audience.send(&events, first, &mut tally);
        }
        assert_eq!(tally.sent, early.len() as u64 - 1);
        assert!(audience.is_shared());
        audience.unseat(late, true);
        assert!(!audience.is_shared());
    }
}
