//! The list of open streams, each with the right by which it was admitted.
//!
//! Not here: when a stream is checked again and why it ends (`by_token` and `application`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use slab::Slab;

use crate::access::rules::Locked;
use crate::stream::subscriber::Subscriber;

/// Open streams with rights of one kind.
#[derive(Debug)]
pub struct OpenStreams<R>(Mutex<Slab<Arc<OpenStream<R>>>>);

impl<R> Default for OpenStreams<R> {
    fn default() -> Self {
        Self(Mutex::default())
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
trait Remove: std::fmt::Debug + Send + Sync {
    fn remove(&self, key: usize);
}

impl<R: std::fmt::Debug + Send + Sync> Remove for OpenStreams<R> {
    fn remove(&self, key: usize) {
        self.0.lock().try_remove(key);
    }
}

impl<R: std::fmt::Debug + Send + Sync + 'static> OpenStreams<R> {
    /// Adds a stream. Dropping the result removes it.
    pub fn add(self: &Arc<Self>, subscriber: Arc<Subscriber>, topics: &[Arc<str>], right: R) -> Pass {
        let (locked, in_review) = (Locked::default(), AtomicBool::default());
        let stream = OpenStream { subscriber, topics: topics.into(), right, locked, in_review };
        let key = self.0.lock().insert(Arc::new(stream));
        Pass(Box::new((self.clone(), key)))
    }

    /// The streams that `is_wanted` chooses.
    pub fn select(&self, is_wanted: impl Fn(&OpenStream<R>) -> bool) -> Vec<Arc<OpenStream<R>>> {
        self.0.lock().iter().map(|(_, stream)| stream).filter(|stream| is_wanted(stream)).cloned().collect()
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
