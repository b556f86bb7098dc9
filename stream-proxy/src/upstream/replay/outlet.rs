//! Where the events of a page of the log go: to a client's queue, into a JSON answer, or to several clients that wait
//! for the same rows.

use std::future::Future;
use std::sync::Arc;

use tidings_wire::Position;
use tokio::task::yield_now;

use crate::metrics::Metrics;
use crate::stream::frame::{Frame, Joined};
use crate::stream::hub::Hub;
use crate::stream::place::Place;
use crate::stream::subscriber::Subscriber;
use crate::upstream::database::DatabaseError;
use crate::upstream::reads::{LogEvent, Page};

/// What a page should hold of the log, in bytes. A client that catches up has two: one that it is sent, and the next
/// one, which is read meanwhile.
const PAGE_BYTES: i32 = 512 * 1024;

/// How many bytes of events are joined to one frame: each frame costs a lock and a place in a list.
const FRAME_BYTES: usize = 32 * 1024;

/// How an outlet takes events.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many bytes of the log a page should have.
    pub page_bytes: i32,
    /// How many bytes of events are joined to one frame; 0 if each event is a frame.
    pub frame_bytes: usize,
    /// Whether the next page is read while the outlet takes the current one.
    pub reads_ahead: bool,
}

/// Where events from the log go, at their own pace.
pub trait Outlet: Sync {
    /// How it takes them.
    fn pace(&self) -> Pace {
        Pace { page_bytes: PAGE_BYTES, frame_bytes: FRAME_BYTES, reads_ahead: true }
    }

    /// Waits until there is room for more; false if nothing is wanted any more.
    fn room(&self) -> impl Future<Output = bool> + Send;

    /// Called before the first event: what comes from now on must wait for a check, if there was a recheck after the last
    /// one and up to `until`.
    fn hold_back(&self, _hub: &Hub, _topics: &[Arc<str>], _until: Place) {}

    /// Passes a frame on; false if nothing is wanted any more.
    fn feed(&self, frame: Frame) -> bool;

    /// Passes on events, with the number of the last one's topic.
    fn feed_events(&self, _topic: usize, frame: Frame) -> bool {
        self.feed(frame)
    }
}

impl Outlet for Subscriber {
    fn pace(&self) -> Pace {
        let frame_bytes = FRAME_BYTES.min(self.comfortable() / 2);
        Pace { page_bytes: PAGE_BYTES, frame_bytes, reads_ahead: true }
    }

    async fn room(&self) -> bool {
        Self::room(self).await
    }

    fn hold_back(&self, hub: &Hub, topics: &[Arc<str>], until: Place) {
        hub.hold_back(self, topics, until);
    }

    fn feed(&self, frame: Frame) -> bool {
        Self::feed(self, frame)
    }
}

/// Passes on the events of the page after `passed`, which is then the last of them. Returns how many there were, with
/// the rechecks; `None` if nothing is wanted any more.
pub async fn pass_on(
    page: &Page,
    topics: &[Arc<str>],
    passed: &mut Option<Position>,
    out: &impl Outlet,
    metrics: &Metrics,
) -> Result<Option<usize>, DatabaseError> {
    let after = passed.as_ref().map_or(Place { tick: 0, n: 0 }, Place::from);
    let frame_bytes = out.pace().frame_bytes;
    // With some room for the event that completes the frame.
    let joined = Joined::new(frame_bytes + frame_bytes / 8);
    let mut passing = Passing { topics, passed, out, metrics, joined, last: None };
    let mut count = 0;
    for part in page.parts() {
        for event in part?.events(after, topics) {
            let event = event?;
            count += 1;
            let is_open = match event.event.as_recheck() {
                Some(_) => passing.recheck(event).await,
                None => {
                    passing.join(event);
                    passing.joined.bytes() < frame_bytes || passing.flush().await
                }
            };
            if !is_open {
                return Ok(None);
            }
        }
    }
    Ok(passing.flush().await.then_some(count))
}

/// Events on their way from a page to an outlet.
struct Passing<'a, 'p, O> {
    topics: &'a [Arc<str>],
    /// The last event that the outlet has.
    passed: &'a mut Option<Position>,
    out: &'a O,
    metrics: &'a Metrics,
    /// The events that become the next frame.
    joined: Joined,
    /// The last of them.
    last: Option<LogEvent<'p>>,
}

impl<'p, O: Outlet> Passing<'_, 'p, O> {
    fn join(&mut self, event: LogEvent<'p>) {
        self.joined.add(&event, event.event.event, &event.event.payload);
        self.last = Some(event);
    }

    /// Passes on a recheck behind the events before it. False if nothing is wanted any more; the same below.
    async fn recheck(&mut self, recheck: LogEvent<'p>) -> bool {
        if !self.flush().await {
            return false;
        }
        *self.passed = Some(recheck.position());
        // About one of the topics, or perhaps about others: that costs one question at most.
        self.out.feed(Frame::recheck(recheck.place.tick, false))
    }

    /// Passes on the events as a frame, as soon as there is room.
    async fn flush(&mut self) -> bool {
        let Some(last) = self.last.take() else { return true };
        self.metrics.log_events.add(self.joined.count());
        let topic = self.topics.iter().position(|topic| **topic == *last.event.topic).unwrap_or_default();
        if !self.out.room().await || !self.out.feed_events(topic, self.joined.take()) {
            return false;
        }
        *self.passed = Some(last.position());
        // A page is thousands of events, and other clients' tasks need this thread too.
        yield_now().await;
        true
    }
}
