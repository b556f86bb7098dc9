//! Counts what became of the frames that were queued to subscribers.

use std::sync::Arc;

use crate::metrics::Metrics;
use crate::stream::due::Due;
use crate::stream::frame::Frame;
use crate::stream::subscriber::{Pushed, Subscriber};

/// What became of the frames that were queued.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many are waiting now.
    pub sent: u64,
    /// How many exceeded a limit and ended their stream.
    overflows: u64,
    /// The subscriber that has the most waiting, and how many bytes.
    pub fullest: Option<(usize, Arc<Subscriber>)>,
    /// Those that have to be flushed, at most one group; `None` if the clients' tasks write everything.
    pub due: Option<Due>,
}

impl Tally {
    /// The tally of a caller that writes, to the first group of subscribers.
    pub fn of_writer() -> Self {
        Self { due: Some(Due::default()), ..Self::default() }
    }

    /// Queues a frame to one subscriber.
    pub fn push(&mut self, subscriber: &Arc<Subscriber>, frame: &Frame) {
        let pushed = match &mut self.due {
            Some(due) if !due.is_full() => {
                let (pushed, is_due) = subscriber.offer(frame.clone());
                if is_due {
                    due.add(subscriber.clone());
                }
                pushed
            }
            _ => subscriber.push(frame.clone()),
        };
        match pushed {
            Pushed::Waiting(bytes) => {
                self.sent += 1;
                if self.fullest.as_ref().is_none_or(|(most, _)| bytes > *most) {
                    self.fullest = Some((bytes, subscriber.clone()));
                }
            }
            Pushed::Overflow => self.overflows += 1,
            Pushed::Noted | Pushed::Ended => {}
        }
    }

    /// Adds the frames to the metrics, as events.
    pub fn count(&self, metrics: &Metrics) {
        metrics.events_out.add(self.sent);
        self.count_evictions(metrics);
    }

    /// Adds only the ended streams to the metrics: for frames that are not events.
    pub fn count_evictions(&self, metrics: &Metrics) {
        metrics.evicted_overflow.add(self.overflows);
    }
}
