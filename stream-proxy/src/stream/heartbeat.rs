//! Heartbeats for all streams from one task: the streams sit in slots, one slot is visited at a time, so that an
//! interval's work is spread over the interval and no stream needs a timer. A stream's greatest age is looked at in
//! passing.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use crate::metrics::Metrics;
use crate::stream::frame::Frame;
use crate::stream::hub::{Hub, Place};
use crate::stream::subscriber::{End, Pulse, Subscriber};

/// Slots of the wheel: enough for a smooth load, few enough to cost nothing when idle.
const SLOTS: usize = 64;

/// All open streams, in slots.
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Mutex<Slot>>,
    /// Age at which a stream is ended, if at all.
    max_age: Option<Duration>,
    start: Instant,
    /// Streams to end, once the proxy shuts down; later streams are added here.
    leaving: Mutex<Option<Vec<Arc<Subscriber>>>>,
}

/// A stream on the wheel.
#[derive(Debug)]
struct Rider {
    stream: Arc<Subscriber>,
    /// When it is too old, in seconds after the start of the wheel.
    until: u32,
}

#[derive(Debug, Default)]
struct Slot {
    riders: Vec<Rider>,
    /// The hub's place at the last visit.
    place: Option<Place>,
}

impl Wheel {
    /// A wheel that ends streams of that age, or up to a quarter earlier, so that they don't all end together.
    pub fn new(max_age: Option<Duration>) -> Self {
        let slots = (0..SLOTS).map(|_| Mutex::default()).collect();
        Self { slots, max_age, start: Instant::now(), leaving: Mutex::default() }
    }

    /// Takes a stream in; it leaves by itself after it has ended.
    pub fn add(&self, stream: Arc<Subscriber>) {
        let until = match self.max_age {
            Some(age) => (self.start.elapsed() + age.mul_f64(1.0 - fastrand::f64() / 4.0)).as_secs() as u32,
            None => u32::MAX,
        };
        self.slots[fastrand::usize(..SLOTS)].lock().riders.push(Rider { stream: stream.clone(), until });
        // After the other one, so that no stream is in neither: the slots are searched under this lock.
        if let Some(leaving) = &mut *self.leaving.lock() {
            leaving.push(stream);
        }
    }

    /// Visits every stream once an interval, for ever. One that is ended is told to come back after `retry()`.
    pub async fn run(&self, hub: &Hub, metrics: &Metrics, interval: Duration, retry: impl Fn() -> Duration) {
        let mut clock = tokio::time::interval((interval / SLOTS as u32).max(Duration::from_millis(1)));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for slot in self.slots.iter().cycle() {
            clock.tick().await;
            slot.lock().visit(hub, metrics, self.start.elapsed().as_secs() as u32, &retry);
        }
    }

    /// Ends all streams, spread evenly over `time`; each gets the wait `retry()`. Until its turn comes, a stream stays
    /// on the wheel.
    pub async fn finish(&self, time: Duration, retry: impl Fn() -> Duration) {
        let end = Instant::now() + time;
        {
            let mut leaving = self.leaving.lock();
            let leaving = leaving.get_or_insert_default();
            for slot in &self.slots {
                leaving.extend(slot.lock().riders.iter().map(|rider| rider.stream.clone()));
            }
        }
        while let Some((stream, left)) = self.next_to_leave() {
            finish(&stream, retry());
            // The remaining streams have the remaining time.
            if left > 1 {
                let now = Instant::now();
                sleep_until(now + end.saturating_duration_since(now) / left).await;
            }
        }
    }

    /// Any one of the streams that still have to end, and how many there are.
    fn next_to_leave(&self) -> Option<(Arc<Subscriber>, u32)> {
        let mut leaving = self.leaving.lock();
        let leaving = leaving.as_mut()?;
        while !leaving.is_empty() {
            let left = u32::try_from(leaving.len()).unwrap_or(u32::MAX);
            let stream = leaving.swap_remove(fastrand::usize(..leaving.len()));
            if stream.ended().is_none() {
                return Some((stream, left));
            }
        }
        None
    }
}

/// Ends a stream in good order.
fn finish(stream: &Subscriber, retry: Duration) {
    // However much is waiting: this frame must not be the one that exceeds the limit.
    stream.feed(Frame::retry(retry));
    stream.close(End::Finished);
}

impl Slot {
    fn visit(&mut self, hub: &Hub, metrics: &Metrics, now: u32, retry: &impl Fn() -> Duration) {
        let plain = Frame::heartbeat();
        // Under the hub's lock: the id must not fall behind an event that is queued at the same time.
        hub.hold(|place| {
            let at_place = match place {
                Some(place) if self.place != Some(place) => Frame::position(place.position()),
                _ => plain.clone(),
            };
            self.place = place.or(self.place);
            self.riders.retain(|Rider { stream, until }| match stream.beat(&plain, &at_place) {
                Pulse::Alive if now >= *until && stream.ended().is_none() => {
                    metrics.aged.add(1);
                    finish(stream, retry());
                    true
                }
                Pulse::Alive => true,
                Pulse::Ended => false,
                Pulse::Stalled => {
                    metrics.evicted_stalled.add(1);
                    false
                }
            });
        });
        if self.riders.len() < self.riders.capacity() / 4 {
            self.riders.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    /// What waits, marked as written.
    fn take(subscriber: &Subscriber) -> String {
        let cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(frames)) = subscriber.poll_frames(&cx, 0) else { return String::new() };
        let text: String = frames.iter().map(|f| String::from_utf8_lossy(f.bytes(false)).into_owned()).collect();
        let _ = subscriber.poll_blocked(&cx, frames.iter().map(Frame::len).sum());
        text
    }

    #[tokio::test(start_paused = true)]
    async fn each_stream_gets_one_heartbeat_an_interval_and_the_place_when_it_moved() {
        let (wheel, metrics) = (Wheel::new(None), Arc::new(Metrics::default()));
        let hub = Hub::new(1000, metrics.clone());
        hub.restart(7);
        let (live, replaying) = (Subscriber::new(1000), Subscriber::new(1000));
        hub.join(&live, &["a".into()], |_| Frame::raw("hello"));
        take(&live);
        wheel.add(live.clone());
        wheel.add(replaying.clone());
        let run = wheel.run(&hub, &metrics, Duration::from_secs(20), || Duration::ZERO);
        tokio::pin!(run);
        let mut seen = Vec::new();
        // The first look comes before the interval is over, so none falls on the moment in which a slot is visited.
        for time in [19_900, 20_000, 20_000].map(Duration::from_millis) {
            assert!(tokio::time::timeout(time, &mut run).await.is_err());
            seen.push((take(&live), take(&replaying)));
        }
        let beat = |text: &str| (text.to_string(), ":\n\n".to_string());
        let place = "id: 7\nevent: position\ndata: {}\n\n";
        assert_eq!(seen, [beat(place), beat(":\n\n"), beat(":\n\n")]);
        assert_eq!(metrics.evicted_stalled.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_all_streams_is_spread_and_none_ends_without_a_goodbye() {
        let wheel = Wheel::new(None);
        let streams: Vec<_> = (0..100).map(|_| Subscriber::new(1000)).collect();
        streams.iter().for_each(|stream| wheel.add(stream.clone()));
        let finish = wheel.finish(Duration::from_secs(5), || Duration::from_millis(1500));
        tokio::pin!(finish);
        assert!(tokio::time::timeout(Duration::from_millis(2520), &mut finish).await.is_err());
        assert_eq!(streams.iter().filter(|stream| stream.ended().is_some()).count(), 51);
        finish.await;
        for stream in &streams {
            let waits = stream.poll_frames(&Context::from_waker(Waker::noop()), 0);
            assert_eq!(waits, Poll::Ready(Some([Frame::retry(Duration::from_millis(1500)), Frame::end()].into())));
            assert_eq!(stream.ended(), Some(End::Finished));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_while_streams_are_ended_is_ended_with_them() {
        let (wheel, streams): (_, Vec<_>) = (Wheel::new(None), (0..3).map(|_| Subscriber::new(10)).collect());
        streams[0].push(Frame::raw("this is more than may wait"));
        wheel.add(streams[0].clone());
        wheel.add(streams[1].clone());
        let finish = wheel.finish(Duration::from_secs(5), || Duration::from_millis(1500));
        tokio::pin!(finish);
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut finish).await.is_err());
        wheel.add(streams[2].clone());
        finish.await;
        assert!(wheel.start.elapsed() <= Duration::from_secs(5));
        for stream in &streams {
            assert!(take(stream).ends_with("retry: 1500\n\n"));
            assert_eq!(stream.ended(), Some(End::Finished));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wheel_turns_while_streams_are_ended() {
        let (wheel, metrics) = (Wheel::new(None), Arc::new(Metrics::default()));
        let hub = Hub::new(1000, metrics.clone());
        let streams = [Subscriber::new(1000), Subscriber::new(1000)];
        streams.iter().for_each(|stream| wheel.add(stream.clone()));
        let run = wheel.run(&hub, &metrics, Duration::from_secs(2), || Duration::ZERO);
        let finish = wheel.finish(Duration::from_secs(100), || Duration::ZERO);
        let both = async { tokio::join!(run, finish) };
        assert!(tokio::time::timeout(Duration::from_secs(30), both).await.is_err());
        // Neither took anything, and this was also noticed for the one whose turn had not come.
        assert!(streams.iter().all(|stream| stream.ended() == Some(End::Stalled)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_takes_nothing_for_an_interval_is_ended() {
        let (wheel, metrics) = (Wheel::new(None), Arc::new(Metrics::default()));
        let hub = Hub::new(1000, metrics.clone());
        let stream = Subscriber::new(1000);
        wheel.add(stream.clone());
        let run = wheel.run(&hub, &metrics, Duration::from_secs(20), || Duration::ZERO);
        let _ = tokio::time::timeout(Duration::from_secs(45), run).await;
        assert_eq!((stream.ended(), metrics.evicted_stalled.get()), (Some(End::Stalled), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_ended_when_it_is_too_old() {
        let (wheel, metrics) = (Wheel::new(Some(Duration::from_secs(100))), Arc::new(Metrics::default()));
        let hub = Hub::new(1000, metrics.clone());
        let stream = Subscriber::new(1000);
        wheel.add(stream.clone());
        let run = wheel.run(&hub, &metrics, Duration::from_secs(20), || Duration::ZERO);
        tokio::pin!(run);
        let begun = Instant::now();
        while stream.ended().is_none() {
            assert!(tokio::time::timeout(Duration::from_secs(10), &mut run).await.is_err());
            take(&stream);
        }
        assert!((75..=130).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        assert_eq!((stream.ended(), metrics.aged.get()), (Some(End::Finished), 1));
    }
}
