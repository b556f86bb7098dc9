//! What every request shares, and what an open stream holds and gives back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::sync::watch;

use crate::auth::Access;
use crate::cli::Cli;
use crate::frame::Frame;
use crate::heartbeat::Wheel;
use crate::hub::{Hub, Joined, Place};
use crate::metrics::Metrics;
use crate::query::{Start, Wanted};
use crate::reads::Reads;
use crate::replay::Replay;
use crate::subscriber::{CountBytes, Subscriber};
use crate::upstream::Readiness;

/// The running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// The settings.
    pub cli: Cli,
    /// Who may subscribe.
    pub access: Access,
    /// Topics, subscribers, history.
    pub hub: Arc<Hub>,
    /// The read connection.
    pub reads: Arc<Reads>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// All streams, for heartbeats.
    pub wheel: Wheel,
    /// How the upstream is.
    pub upstream: watch::Receiver<Readiness>,
    /// Whether the proxy is on its way out.
    pub draining: AtomicBool,
}

/// An open stream's place in the proxy, given back when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    proxy: Arc<Proxy>,
    subscriber: Arc<Subscriber>,
}

impl Proxy {
    /// Why the proxy is not ready, if it is not.
    pub fn unready(&self) -> Option<Arc<str>> {
        if self.draining.load(Relaxed) {
            return Some("shutting down".into());
        }
        match &*self.upstream.borrow() {
            Readiness::Ready => None,
            Readiness::Waiting(reason) => Some(reason.clone()),
        }
    }

    /// Opens a stream; `None` if there are as many as there may be.
    pub fn subscribe(self: &Arc<Self>, wanted: Wanted) -> Option<Subscription> {
        let subscriber = Subscriber::new(self.cli.client_queue_bytes);
        let subscription = Subscription { proxy: self.clone(), subscriber: subscriber.clone() };
        if self.metrics.clients.rise() > self.cli.max_clients {
            self.metrics.over_clients.add(1);
            return None;
        }
        self.metrics.streams.add(1);
        let retry = self.cli.next_retry();
        let mut after = match wanted.start {
            Start::Live => {
                let hello = |place: Option<Place>| Frame::hello(retry, place.map(Place::position));
                self.hub.join(&subscriber, &wanted.topics, hello);
                self.wheel.add(subscriber);
                return Some(subscription);
            }
            Start::Earliest => None,
            Start::After(position) => Some(position),
        };
        subscriber.push(Frame::hello(retry, None));
        self.wheel.add(subscriber.clone());
        if let Some(position) = after.as_mut().filter(|position| position.seen.is_none()) {
            match self.hub.resume(&subscriber, &wanted.topics, (&*position).into()) {
                Joined::Live => {
                    self.metrics.resumed_memory.add(1);
                    return Some(subscription);
                }
                Joined::Behind(place) => *position = place.position(),
                Joined::TooOld | Joined::Ahead => {}
            }
        }
        let replay = Replay {
            hub: self.hub.clone(),
            reads: self.reads.clone(),
            metrics: self.metrics.clone(),
            subscriber,
            topics: wanted.topics,
        };
        tokio::spawn(replay.run(after));
        Some(subscription)
    }
}

impl Subscription {
    /// The stream's queue.
    pub fn subscriber(&self) -> Arc<Subscriber> {
        self.subscriber.clone()
    }
}

impl CountBytes for Subscription {
    fn wrote(&self, bytes: usize) {
        self.proxy.metrics.bytes_out.add(bytes as u64);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.proxy.hub.leave(&self.subscriber);
        self.proxy.metrics.clients.fall();
    }
}
