//! Counts what became of the frames that were queued to subscribers.

use std::sync::Arc;

use crate::metrics::Metrics;
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
