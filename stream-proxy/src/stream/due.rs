//! Subscribers for which frames have been queued without waking their tasks: the task that queued them writes them.
//!
//! To wake a task, another thread for it, and let it poll costs a fifth of what the write itself costs.

use std::sync::Arc;

use crate::metrics::Metrics;
use crate::stream::subscriber::Subscriber;

/// How many subscribers are served at a time, before other work is done. A write takes some 6 µs.
pub const GROUP: usize = 32;

/// Subscribers that [`Subscriber::offer`] was called for. [`Self::flush`] must not be called under a lock. Without it,
/// the tasks are woken after all.
#[derive(Debug, Default)]
pub struct Due(Vec<Arc<Subscriber>>);

impl Due {
    /// Adds a subscriber.
    pub fn add(&mut self, subscriber: Arc<Subscriber>) {
        if self.0.is_empty() {
            self.0.reserve(GROUP);
        }
        self.0.push(subscriber);
    }

    /// Whether a group is complete.
    pub fn is_full(&self) -> bool {
        self.0.len() >= GROUP
    }

    /// Writes the frames of a group of subscribers. True if there are more.
    pub fn flush(&mut self, metrics: &Metrics) -> bool {
        let rest = self.0.len().saturating_sub(GROUP);
        let written: usize = self.0.drain(rest..).map(|subscriber| subscriber.flush()).sum();
        if written > 0 {
            metrics.bytes_out.add(written as u64);
        }
        rest > 0
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        self.0.iter().for_each(|subscriber| subscriber.leave_to_task());
    }
}
