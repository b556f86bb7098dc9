//! Streams that were admitted: each ends when its token expires or when its rules, which are checked again from time to
//! time, no longer allow it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::SystemTime;

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::access::check::{Refusal, Unanswered, Verdict};
use crate::access::gate::{Gate, Who};
use crate::metrics::Metrics;
use crate::stream::subscriber::{End, Subscriber};

/// How many streams are checked again at the same time, without those that have slow rules.
const REVIEW_BATCH: u32 = 500;

/// After this many checks in a row that found its rules waiting for a lock, a stream ends. A migration should not end
/// streams, but a rule's code can claim to wait for a lock, and must not keep a stream open forever that way.
const MAX_LOCKED: u32 = 5;

/// The streams that were opened with a token or by an anonymous visitor.
#[derive(Debug)]
pub struct OpenStreams {
    gate: Gate,
    metrics: Arc<Metrics>,
    streams: Mutex<Slab<OpenStream>>,
}

/// An open stream and what it was opened with.
#[derive(Clone, Debug)]
struct OpenStream {
    subscriber: Arc<Subscriber>,
    who: Who,
    topics: Arc<[Arc<str>]>,
    expires: Option<SystemTime>,
    review: Arc<Review>,
}

/// The checks of an open stream.
#[derive(Debug, Default)]
struct Review {
    /// Whether it is being checked now.
    is_running: AtomicBool,
    /// How many checks in a row found its rules waiting for a lock.
    locked: AtomicU32,
}

impl Review {
    /// Notes the result of a check. Returns whether too many in a row found a lock.
    fn is_stuck(&self, answer: &Verdict) -> bool {
        match answer {
            Ok(_) => self.locked.store(0, Relaxed),
            Err(Unanswered::Locked) => return self.locked.fetch_add(1, Relaxed) + 1 >= MAX_LOCKED,
            Err(_) => {}
        }
        false
    }
}

/// A stream's entry; dropping it removes the entry.
#[derive(Debug)]
pub struct Pass {
    open: Arc<OpenStreams>,
    key: usize,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.open.streams.lock().try_remove(self.key);
    }
}

impl OpenStreams {
    /// No streams yet; their rules are checked by `gate`.
    pub fn new(gate: Gate, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { gate, metrics, streams: Mutex::default() })
    }

    /// Adds a stream. Dropping the result removes it.
    pub fn add(
        self: &Arc<Self>,
        subscriber: Arc<Subscriber>,
        who: Who,
        topics: &[Arc<str>],
        expires: Option<SystemTime>,
    ) -> Pass {
        let stream = OpenStream { subscriber, who, topics: topics.into(), expires, review: Arc::default() };
        let key = self.streams.lock().insert(stream);
        Pass { open: self.clone(), key }
    }

    /// Ends the streams whose tokens have expired.
    pub fn end_expired(&self, now: SystemTime) {
        for (_, stream) in &*self.streams.lock() {
            if stream.expires.is_some_and(|expires| expires <= now) && stream.subscriber.close(End::Revoked) {
                self.metrics.auth_expired.add(1);
            }
        }
    }

    /// Checks all streams again, and ends those that are no longer allowed. While the database is unavailable all of
    /// them stay, because no new events arrive either. Does not wait for streams with slow rules.
    pub async fn review(self: &Arc<Self>) {
        let start = Instant::now();
        // Channels have no rules.
        let has_rules = |stream: &&OpenStream| !stream.topics.is_empty();
        let streams: Vec<OpenStream> =
            self.streams.lock().iter().map(|(_, stream)| stream).filter(has_rules).cloned().collect();
        let count = streams.len();
        let permits = Arc::new(Semaphore::new(REVIEW_BATCH as usize));
        for stream in streams {
            // The semaphore is never closed.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            if stream.review.is_running.swap(true, Relaxed) {
                continue;
            }
            let open = self.clone();
            tokio::spawn(async move {
                open.review_one(&stream, permit).await;
                stream.review.is_running.store(false, Relaxed);
            });
        }
        let _ = permits.acquire_many(REVIEW_BATCH).await;
        tracing::debug!(streams = count, time = ?start.elapsed(), "streams checked again");
    }

    async fn review_one(&self, stream: &OpenStream, permit: OwnedSemaphorePermit) {
        let answer = self.gate.check_again(&stream.who, &stream.topics, permit).await;
        let is_stuck = stream.review.is_stuck(&answer);
        let (refused, counter) = match answer {
            Ok(refused) => (refused, &self.metrics.auth_revoked),
            // Its own rules prevent the check. The client reconnects, and is admitted if it still has access.
            Err(error @ (Unanswered::Slow | Unanswered::Broken)) => {
                (refuse(&stream.topics, &error), &self.metrics.auth_revoked)
            }
            Err(error) if is_stuck => (refuse(&stream.topics, &error), &self.metrics.auth_locked),
            Err(error) => {
                tracing::warn!(%error, "a subscription could not be checked again");
                return;
            }
        };
        if !refused.is_empty() && stream.subscriber.close(End::Revoked) {
            counter.add(1);
            for Refusal { topic, reason } in refused {
                tracing::info!(%topic, reason = ?reason, "subscription revoked");
            }
        }
    }
}

/// All of the topics, because there is no answer.
fn refuse(topics: &[Arc<str>], error: &Unanswered) -> Vec<Refusal> {
    let reason: Arc<str> = error.to_string().into();
    topics.iter().map(|topic| Refusal { topic: topic.clone(), reason: reason.clone() }).collect()
}
