//! The list of open streams, each with the right by which it was admitted.
//!
//! Not here: when a stream is checked again and why it ends (`by_token`, `application` and `recheck`).

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;

use crate::access::rules::Locked;
use crate::stream::hold::Guardian;
use crate::stream::subscriber::Subscriber;

/// Open streams with rights of one kind.
#[derive(Debug)]
pub struct OpenStreams<R> {
    streams: Mutex<Slab<Arc<OpenStream<R>>>>,
    /// The keys of streams that have begun to hold something back.
    held: Mutex<Vec<usize>>,
    /// Notified when there are more of them.
    wake: Notify,
}

impl<R> Default for OpenStreams<R> {
    fn default() -> Self {
        Self { streams: Mutex::default(), held: Mutex::default(), wake: Notify::new() }
    }
}

/// An open stream and what it was opened with.
#[derive(Debug)]
pub struct OpenStream<R> {
    /// The stream.
    pub subscriber: Arc<Subscriber>,
    /// Its topics; none for a channel.
    pub topics: Box<[Arc<str>]>,
    /// The right by which it was admitted.
    pub right: R,
    /// Whether its rules wait for a lock.
    pub locked: Locked,
    /// Whether it is being checked again.
    in_review: AtomicBool,
}

/// A stream that holds something back until its right has been checked.
#[derive(Debug)]
pub struct Held<R> {
    /// The stream.
    pub stream: Arc<OpenStream<R>>,
    /// The tick that must be visible to the check.
    pub tick: u64,
}

/// A stream's entry; dropping it removes the entry.
// In a box, because every stream has room for one, even if access is open.
#[derive(Debug)]
pub struct Pass(Box<(Arc<dyn Remove>, usize)>);

impl Drop for Pass {
    fn drop(&mut self) {
        let (open, key) = &*self.0;
        open.remove(*key);
    }
}

/// Where an entry can be removed from.
trait Remove: Debug + Send + Sync {
    fn remove(&self, key: usize);
}

impl<R: Debug + Send + Sync> Remove for OpenStreams<R> {
    fn remove(&self, key: usize) {
        self.streams.lock().try_remove(key);
    }
}

impl<R: Debug + Send + Sync> Guardian for OpenStreams<R> {
    fn ask_again(&self, key: usize) {
        self.held.lock().push(key);
        self.wake.notify_one();
    }
}

impl<R: Debug + Send + Sync + 'static> OpenStreams<R> {
    /// Adds a stream whose right was checked when tick `checked` was visible. Dropping the result removes it.
    pub fn add(self: &Arc<Self>, subscriber: Arc<Subscriber>, topics: &[Arc<str>], right: R, checked: u64) -> Pass {
        let (locked, in_review) = (Locked::default(), AtomicBool::default());
        let stream = OpenStream { subscriber: subscriber.clone(), topics: topics.into(), right, locked, in_review };
        let key = self.streams.lock().insert(Arc::new(stream));
        subscriber.guard(self.clone(), key, checked);
        Pass(Box::new((self.clone(), key)))
    }

    /// The streams that `is_wanted` chooses.
    pub fn select(&self, is_wanted: impl Fn(&OpenStream<R>) -> bool) -> Vec<Arc<OpenStream<R>>> {
        self.streams.lock().iter().map(|(_, stream)| stream).filter(|stream| is_wanted(stream)).cloned().collect()
    }

    /// Waits for streams that hold something back, and returns each of them once.
    pub async fn held(&self) -> Vec<Held<R>> {
        loop {
            let held = self.take_held();
            if !held.is_empty() {
                return held;
            }
            self.wake.notified().await;
        }
    }

    fn take_held(&self) -> Vec<Held<R>> {
        let mut keys = std::mem::take(&mut *self.held.lock());
        keys.sort_unstable();
        keys.dedup();
        let streams = self.streams.lock();
        let held = keys.iter().filter_map(|key| {
            // A stream that has ended may have left its key to another one.
            let stream = streams.get(*key)?.clone();
            Some(Held { tick: stream.subscriber.held()?, stream })
        });
        held.collect()
    }
}

impl<R> OpenStream<R> {
    /// Begins a review; false if one is under way.
    pub fn begin_review(&self) -> bool {
        !self.in_review.swap(true, Relaxed)
    }

    /// Ends a review.
    pub fn end_review(&self) {
        self.in_review.store(false, Relaxed);
    }
}
