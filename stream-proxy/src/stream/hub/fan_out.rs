//! The tasks that serve the subscribers of large topics, one group at a time.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::task::yield_now;

use crate::stream::due::Due;
use crate::stream::subscriber::Subscriber;
use crate::stream::tally::Tally;

use super::{Hub, Inner};

/// Events that may be under way to their subscribers; beyond this the upstream waits too.
const MAX_UNDELIVERED: usize = 64;

impl Hub {
    /// Queues events to the subscribers that [`Self::publish`] left out, and writes them, forever. There is one such
    /// task for each thread: each calls the next one if there is enough to do.
    pub async fn fan_out(&self) -> Infallible {
        self.inner.lock().fan_outs += 1;
        loop {
            if !self.inner.lock().rest() {
                self.serve_group();
                // After what has arrived at the sockets meanwhile.
                yield_now().await;
            } else if let Ok(permit) = self.to_deliver.acquire().await {
                permit.forget();
            }
        }
    }

    /// Serves the next group of subscribers; true if there are more.
    pub(super) fn serve_group(&self) -> bool {
        let mut tally = Tally::of_writer();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let completed = inner.deliveries.serve_group(&inner.topics, &mut tally);
        tally.count(&self.metrics);
        let fuller = tally.fullest.filter(|(bytes, _)| inner.fullest.as_ref().is_none_or(|(most, _)| bytes > most));
        inner.fullest = fuller.or(inner.fullest.take());
        let more = !inner.deliveries.is_empty();
        let call = inner.call();
        drop(guard);
        if call {
            self.to_deliver.add_permits(1);
        }
        self.flush(tally.due);
        if let Some(ticks) = completed {
            ticks.iter().for_each(|tick| self.metrics.fanned_out(*tick));
            self.delivered.notify_waiters();
        }
        more
    }

    /// Writes what has been queued to a group of subscribers. Called without the lock.
    pub(super) fn flush(&self, due: Option<Due>) {
        if let Some(mut due) = due {
            due.flush(&self.metrics);
        }
    }

    /// Waits until only a bounded number of events is under way to subscribers.
    pub async fn wait_for_room(&self) {
        self.wait_for_at_most(MAX_UNDELIVERED).await;
    }

    /// Waits until every event has been queued to all its subscribers. Returns the subscriber with the most bytes
    /// waiting, and how many, of those served since events were last published.
    pub async fn wait_until_delivered(&self) -> Option<(usize, Arc<Subscriber>)> {
        self.wait_for_at_most(0).await;
        self.inner.lock().fullest.take()
    }

    async fn wait_for_at_most(&self, events: usize) {
        loop {
            // Created before the check, so that no wake-up is missed in between.
            let delivered = self.delivered.notified();
            if self.inner.lock().deliveries.events() <= events {
                return;
            }
            delivered.await;
        }
    }
}

impl Inner {
    /// Calls a [`Hub::fan_out`] that rests, if more of them should work. If it returns true, the caller adds a permit.
    pub(super) fn call(&mut self) -> bool {
        let is_called = self.resting > 0 && self.working() < self.wanted();
        self.resting -= usize::from(is_called);
        is_called
    }

    /// Lets a [`Hub::fan_out`] rest, if more of them work than should; false if it should go on.
    pub(super) fn rest(&mut self) -> bool {
        let is_done = self.working() > self.wanted();
        self.resting += usize::from(is_done);
        is_done
    }

    /// How many [`Hub::fan_out`] work.
    fn working(&self) -> usize {
        self.fan_outs - self.resting
    }

    /// How many of them should.
    fn wanted(&self) -> usize {
        self.deliveries.threads(&self.topics, self.fan_outs)
    }
}

#[cfg(test)]
mod tests;
