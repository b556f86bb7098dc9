//! One JSON answer with the events that a stream would send, for networks that hold streams back. If there are no
//! events yet, the answer waits for the next one, at most for the heartbeat interval.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tidings_wire::Position;
use tokio::time::{Instant, timeout_at};

use crate::access::auth::Identity;
use crate::proxy::{NotNow, Proxy, StartAt, StreamRequest, Subscription};
use crate::stream::frame::{Frame, Reset};
use crate::stream::hub::{Collected, Hub};
use crate::stream::place::Place;
use crate::stream::subscriber::Subscriber;
use crate::upstream::replay::TopicLog;
use crate::upstream::replay::outlet::{Outlet, Pace};

/// The result of a request for JSON.
#[derive(Debug)]
pub enum Polled {
    /// The answer.
    Answer(Value),
    /// An answer that is sent as the rows are read.
    Rows(Subscription),
}

/// What comes after a position.
enum Found {
    /// These events, each with the number of its topic, up to this position.
    Events(Vec<(usize, Frame)>, Position),
    /// The position can't be served.
    Reset(Reset),
}

/// Collects events from the log, up to a number of bytes.
struct Collector {
    subscriber: Arc<Subscriber>,
    limit: usize,
    found: Mutex<(usize, Vec<(usize, Frame)>)>,
}

impl Outlet for Collector {
    fn pace(&self) -> Pace {
        // The rest of the last page is read again for the next answer.
        Pace { page_bytes: i32::try_from(self.limit / 4).unwrap_or(i32::MAX), frame_bytes: 0, reads_ahead: false }
    }

    fn room(&self) -> impl Future<Output = bool> + Send {
        std::future::ready(self.found.lock().0 < self.limit)
    }

    fn hold_back(&self, hub: &Hub, topics: &[Arc<str>], until: Place) {
        hub.hold_back(&self.subscriber, topics, until);
    }

    fn feed(&self, frame: Frame) -> bool {
        // Because of a recheck, the answer waits until the right has been checked. It has no place for other frames.
        frame.as_recheck().is_none() || self.subscriber.feed(frame)
    }

    fn feed_events(&self, topic: usize, frame: Frame) -> bool {
        let (bytes, events) = &mut *self.found.lock();
        *bytes += frame.len();
        events.push((topic, frame));
        true
    }
}

impl Proxy {
    /// Answers a request for JSON with the events after its position, as soon as there are any.
    pub async fn poll(self: &Arc<Self>, wanted: StreamRequest, who: Identity, peer: IpAddr) -> Result<Polled, NotNow> {
        let deadline = Instant::now() + self.cli.heartbeat;
        self.must_have_rows(&wanted)?;
        let mut subscription = self.open(peer)?;
        let reader = who.reader(peer);
        subscription.admit(who, &wanted.topics);
        let log = self.log_of(&wanted.topics);
        let after = match wanted.start {
            StartAt::Rows => return Ok(Polled::Rows(self.send_rows(subscription, log, reader))),
            StartAt::Live => return Ok(Polled::Answer(answer(&[], Vec::new(), self.present(deadline).await?, None))),
            StartAt::Earliest => None,
            StartAt::After(position) => Some(position),
        };
        let (subscriber, mut draining) = (subscription.subscriber(), self.draining.subscribe());
        subscriber.only_notice();
        let finding = async {
            let found = self.find(&subscriber, &log, after, deadline).await;
            // If there was a recheck, the answer waits until the right has been checked again.
            subscriber.settled().await;
            found
        };
        let found = tokio::select! {
            found = finding => found,
            // The client can ask another proxy.
            _ = draining.wait_for(|draining| *draining) => return Err(NotNow::Draining),
        };
        if subscriber.ended().is_some() {
            // For whatever reason: then nothing is held back any more, although the right has not been confirmed.
            return Err(NotNow::Revoked);
        }
        Ok(match found {
            Found::Events(events, position) => {
                self.metrics.events_out.add(events.len() as u64);
                Polled::Answer(answer(&log.topics, events, position, None))
            }
            Found::Reset(why) => {
                self.hub.count_resets(why, 1);
                if wanted.wants_rows {
                    return Ok(Polled::Rows(self.send_rows(subscription, log, reader)));
                }
                Polled::Answer(answer(&[], Vec::new(), self.present(deadline).await?, Some(why)))
            }
        })
    }

    /// The events after a position, as soon as there are any, and at the deadline at the latest.
    async fn find(
        &self,
        subscriber: &Arc<Subscriber>,
        log: &TopicLog,
        mut after: Option<Position>,
        deadline: Instant,
    ) -> Found {
        let limit = subscriber.comfortable();
        let mut has_waited = false;
        loop {
            // Subscribed before the check, so that no tick is missed between the check and the wait.
            let mut ticks = self.hub.ticks();
            let place = after.as_ref().filter(|position| position.seen.is_none()).map(Place::from);
            match place.map(|place| self.hub.collect(&log.topics, place, limit, subscriber, !has_waited)) {
                Some(Collected::Events(mut events, reached)) if has_waited || !events.is_empty() => {
                    let rechecks = events.extract_if(.., |(_, frame)| frame.as_recheck().is_some());
                    rechecks.for_each(|(_, frame)| _ = subscriber.feed(frame));
                    if has_waited || !events.is_empty() {
                        return Found::Events(events, reached.position());
                    }
                    after = Some(reached.position());
                    continue;
                }
                Some(Collected::Events(_, reached)) => {
                    let _ = timeout_at(deadline, subscriber.noticed()).await;
                    (has_waited, after) = (true, Some(reached.position()));
                    continue;
                }
                Some(Collected::Ahead) if Instant::now() < deadline => {
                    let _ = timeout_at(deadline, ticks.changed()).await;
                    continue;
                }
                _ => {}
            }
            let collector = Collector { subscriber: subscriber.clone(), limit, found: Mutex::default() };
            let reading = log.pass_on(after.clone(), &collector);
            let read = timeout_at(deadline, reading).await;
            let events = std::mem::take(&mut collector.found.lock().1);
            match (read, after) {
                (Ok((Some(position), _)), _) if !events.is_empty() => return Found::Events(events, position),
                (Ok((_, Some(why))), _) => return Found::Reset(why),
                (Ok((reached, None)), _) if Instant::now() < deadline => after = reached,
                (Ok((Some(position), None)), _) | (Err(_), Some(position)) => {
                    return Found::Events(Vec::new(), position);
                }
                // The database has not even said where the log begins.
                (Ok((None, None)) | Err(_), None) | (Ok((None, None)), Some(_)) => return Found::Reset(Reset::Expired),
            }
        }
    }

    /// The hub's position, as soon as it has one.
    async fn present(&self, deadline: Instant) -> Result<Position, NotNow> {
        let mut ticks = self.hub.ticks();
        if self.hub.place().is_none() {
            let _ = timeout_at(deadline, ticks.wait_for(Option::is_some)).await;
        }
        self.hub.place().map(Place::position).ok_or(NotNow::NotReady)
    }
}

/// The answer. The client asks again with its position.
fn answer(topics: &[Arc<str>], events: Vec<(usize, Frame)>, position: Position, reset: Option<Reset>) -> Value {
    let event = |(topic, frame): (usize, Frame)| {
        let (id, event, data) = frame.fields();
        json!({ "id": id, "event": event, "data": data, "topic": topics.get(topic).map(|topic| &**topic) })
    };
    let events: Vec<Value> = events.into_iter().map(event).collect();
    let mut answer = json!({ "position": position.to_string(), "events": events });
    if let Some(why) = reset {
        answer["reset"] = json!({ "reason": why.name() });
    }
    answer
}
