//! A queue of notifications, bounded in bytes, between the connection that receives them and the session that handles
//! them. Notifications that do not fit are dropped, but never silently: a mark in their place names the channel that
//! lost something.
//!
//! The connection is read however slow the session is, because a listener that does not read fills the server's
//! notification queue for every session of the cluster.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::task::coop::cooperative;
use tokio_postgres::Notification;

use crate::metrics::Metrics;

/// The most bytes of waiting notifications: some seconds of what Postgres can send, and no more memory than the history
/// uses by default.
pub const LIMIT: usize = 64 * 1024 * 1024;

/// What a notification takes in addition to its texts, in bytes: the headers of two strings and its slot in the queue.
const OVERHEAD: usize = 96;

/// Slots of the queue that are kept while nothing waits; slots beyond that, from a burst, are freed.
const KEPT: usize = 1024;

/// An entry of an inbox: the parts of a notification that matter for the bound.
pub trait Message {
    /// The channel.
    fn channel(&self) -> &str;
    /// The length of its texts.
    fn bytes(&self) -> usize;
}

impl Message for Notification {
    fn channel(&self) -> &str {
        Notification::channel(self)
    }

    fn bytes(&self) -> usize {
        self.channel().len() + self.payload().len()
    }
}

/// What the session receives.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<M> {
    /// A notification.
    Message(M),
    /// At least one notification of this channel was dropped at this point.
    Lost(String),
}

#[derive(Debug)]
struct State<M> {
    queue: VecDeque<Heard<M>>,
    bytes: usize,
    /// Channels whose last entry in the queue is the mark of a loss: later losses need no other mark.
    marked: HashSet<String>,
    /// The session's task, while it waits.
    reader: Option<Waker>,
    /// Whether the other side is gone.
    closed: bool,
}

impl<M> State<M> {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// The session's side.
#[derive(Debug)]
pub struct Inbox<M = Notification>(Arc<Mutex<State<M>>>);

/// The connection's side.
#[derive(Debug)]
pub struct Outlet<M = Notification> {
    state: Arc<Mutex<State<M>>>,
    limit: usize,
    metrics: Arc<Metrics>,
}

/// Makes an inbox for at most `limit` bytes, and the side that fills it.
pub fn inbox<M: Message>(limit: usize, metrics: Arc<Metrics>) -> (Outlet<M>, Inbox<M>) {
    let (queue, marked) = (VecDeque::new(), HashSet::new());
    let state = Arc::new(Mutex::new(State { queue, bytes: 0, marked, reader: None, closed: false }));
    (Outlet { state: state.clone(), limit, metrics }, Inbox(state))
}

impl<M: Message> Outlet<M> {
    /// Adds a notification, or the mark of its loss.
    pub fn push(&self, message: M) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let size = message.bytes() + OVERHEAD;
        if state.bytes + size <= self.limit {
            if !state.marked.is_empty() {
                state.marked.remove(message.channel());
            }
            state.bytes += size;
            state.queue.push_back(Heard::Message(message));
        } else {
            self.metrics.dropped.add(1);
            // At most one mark for each channel and each waiting notification, so the number of marks is bounded too.
            if state.marked.insert(message.channel().to_owned()) {
                state.queue.push_back(Heard::Lost(message.channel().to_owned()));
            }
        }
        state.wake();
    }
}

impl<M> Drop for Outlet<M> {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.wake();
    }
}

impl<M: Message> Inbox<M> {
    /// The next entry; `None` when the connection has closed and the queue is empty.
    pub async fn recv(&mut self) -> Option<Heard<M>> {
        // A burst must not keep the thread from other tasks, such as those that send these events to clients.
        cooperative(poll_fn(|cx| self.poll_recv(cx))).await
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.0.lock().queue.is_empty()
    }

    fn poll_recv(&mut self, cx: &Context<'_>) -> Poll<Option<Heard<M>>> {
        let mut state = self.0.lock();
        let Some(heard) = state.queue.pop_front() else {
            if state.closed {
                return Poll::Ready(None);
            }
            state.queue.shrink_to(KEPT);
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        match &heard {
            Heard::Message(message) => state.bytes -= message.bytes() + OVERHEAD,
            Heard::Lost(channel) => _ = state.marked.remove(channel),
        }
        Poll::Ready(Some(heard))
    }
}

impl<M> Drop for Inbox<M> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.queue = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Note(&'static str, usize);

    impl Message for Note {
        fn channel(&self) -> &str {
            self.0
        }

        fn bytes(&self) -> usize {
            self.1
        }
    }

    /// Room for two notes without texts.
    const ROOM: usize = 2 * OVERHEAD;

    fn note(channel: &'static str) -> Heard<Note> {
        Heard::Message(Note(channel, 0))
    }

    fn lost(channel: &str) -> Heard<Note> {
        Heard::Lost(channel.to_owned())
    }

    #[tokio::test]
    async fn a_dropped_notification_leaves_one_mark_for_its_channel_in_its_place() {
        let metrics = Arc::new(Metrics::default());
        let (outlet, mut inbox) = inbox(ROOM, metrics.clone());
        for channel in ["a", "b", "a", "a", "c", "b"] {
            outlet.push(Note(channel, 0));
        }
        assert_eq!(metrics.dropped.get(), 4);
        for heard in [note("a"), note("b"), lost("a"), lost("c"), lost("b")] {
            assert_eq!(inbox.recv().await, Some(heard));
        }
        outlet.push(Note("a", ROOM));
        outlet.push(Note("a", 0));
        drop(outlet);
        for heard in [Some(lost("a")), Some(note("a")), None] {
            assert_eq!(inbox.recv().await, heard);
        }
    }

    #[tokio::test]
    async fn a_loss_after_a_notification_that_fits_gets_a_new_mark() {
        let (outlet, mut inbox) = inbox(ROOM, Arc::default());
        for _ in 0..3 {
            outlet.push(Note("a", 0));
        }
        assert_eq!(inbox.recv().await, Some(note("a")));
        // The mark still waits; this notification comes after it.
        outlet.push(Note("a", 0));
        outlet.push(Note("a", 0));
        drop(outlet);
        for heard in [Some(note("a")), Some(lost("a")), Some(note("a")), Some(lost("a")), None] {
            assert_eq!(inbox.recv().await, heard);
        }
    }

    #[tokio::test]
    async fn a_waiting_task_is_woken_by_a_notification_and_by_the_end() {
        let (outlet, mut inbox) = inbox(ROOM, Arc::default());
        let waits = tokio::spawn(async move { (inbox.recv().await, inbox.recv().await) });
        tokio::task::yield_now().await;
        outlet.push(Note("a", 0));
        tokio::task::yield_now().await;
        drop(outlet);
        assert_eq!(waits.await.unwrap(), (Some(note("a")), None));
    }
}
