//! Heartbeats for all streams from one task. Streams are spread over slots, and one slot is visited at a time, so that
//! the work is spread over the interval and no stream needs a timer. A visit also ends streams that are too old.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use crate::metrics::Metrics;
use crate::stream::due::Due;
use crate::stream::frame::Frame;
use crate::stream::hub::Hub;
use crate::stream::place::Place;
use crate::stream::subscriber::{Pulse, Subscriber};

/// Slots of the wheel. Of 10,000 streams, 20 are in each: their heartbeats take some 0.2 ms, so they hardly delay an
/// event, and by default there are only 26 visits a second.
const SLOTS: usize = 512;

/// The shortest time between two visits. If the interval is too short for it, a visit is to several slots.
const MIN_PAUSE: Duration = Duration::from_millis(1);

/// All open streams, in slots.
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Mutex<Slot>>,
    /// Age at which streams end, if there is a limit.
    max_age: Option<Duration>,
    start: Instant,
    /// The streams that still have to end, once the proxy shuts down; new streams are added here too.
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
    /// A wheel that ends streams at this age, or up to a quarter earlier, so that they don't all end together.
    pub fn new(max_age: Option<Duration>) -> Self {
        let slots = (0..SLOTS).map(|_| Mutex::default()).collect();
        Self { slots, max_age, start: Instant::now(), leaving: Mutex::default() }
    }

    /// Adds a stream. It is removed after it has ended.
    pub fn add(&self, stream: Arc<Subscriber>) {
        let until = match self.max_age {
            Some(age) => (self.start.elapsed() + age.mul_f64(1.0 - fastrand::f64() / 4.0)).as_secs() as u32,
            None => u32::MAX,
        };
        self.slots[fastrand::usize(..SLOTS)].lock().riders.push(Rider { stream: stream.clone(), until });
        // Added after the slot: the slots are searched under this lock, so that every stream is in at least one of the
        // two.
        if let Some(leaving) = &mut *self.leaving.lock() {
            leaving.push(stream);
        }
    }

    /// Visits every stream once an interval, forever. A stream that is too old ends, and its client should reconnect
    /// after `retry()`.
    pub async fn run(&self, hub: &Hub, metrics: &Metrics, interval: Duration, retry: impl Fn() -> Duration) {
        let most_visits = (interval.as_nanos() / MIN_PAUSE.as_nanos()).clamp(1, SLOTS as u128) as usize;
        let together = SLOTS.div_ceil(most_visits);
        let mut clock = tokio::time::interval((interval / SLOTS.div_ceil(together) as u32).max(MIN_PAUSE));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for slots in self.slots.chunks(together).cycle() {
            clock.tick().await;
            for slot in slots {
                let mut due = slot.lock().visit(hub, metrics, self.start.elapsed().as_secs() as u32, &retry);
                while due.flush(metrics) {
                    yield_now().await;
                }
            }
        }
    }

    /// Ends all streams, spread evenly over `time`. Each client gets the wait `retry()`. Until then a stream stays on
    /// the wheel.
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
            stream.finish(retry());
            // The remaining time is shared by the remaining streams.
            if left > 1 {
                let now = Instant::now();
                sleep_until(now + end.saturating_duration_since(now) / left).await;
            }
        }
    }

    /// A random one of the streams that still have to end, and how many there are.
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

impl Slot {
    /// Queues heartbeats. Returns the streams whose heartbeats have to be written.
    fn visit(&mut self, hub: &Hub, metrics: &Metrics, now: u32, retry: &impl Fn() -> Duration) -> Due {
        let mut due = Due::default();
        let plain = Frame::heartbeat();
        // Under the hub's lock, so that the position is not older than an event that is queued at the same time.
        hub.hold(|place| {
            let at_place = match place {
                Some(place) if self.place != Some(place) => Frame::position(place.position()),
                _ => plain.clone(),
            };
            self.place = place.or(self.place);
            self.riders.retain(|Rider { stream, until }| match stream.beat(&plain, &at_place) {
                pulse @ (Pulse::Alive | Pulse::Due) => {
                    if pulse == Pulse::Due {
                        due.add(stream.clone());
                    }
                    if now >= *until && stream.ended().is_none() {
                        metrics.aged.add(1);
                        stream.finish(retry());
                    }
                    true
                }
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
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::subscriber::End;
    use std::task::{Context, Poll, Waker};

    #[tokio::test(start_paused = true)]
    async fn each_stream_gets_one_heartbeat_an_interval_and_the_place_when_it_moved() {
        let (wheel, metrics) = (Wheel::new(None), Arc::new(Metrics::default()));
        let hub = Hub::new(1000, metrics.clone());
        hub.restart(7);
        let (live, replaying) = (Subscriber::new(1000), Subscriber::new(1000));
        hub.join(&live, &["a".into()], |_| Frame::raw("hello"));
        live.take().concat();
        wheel.add(live.clone());
        wheel.add(replaying.clone());
        let run = wheel.run(&hub, &metrics, Duration::from_secs(20), || Duration::ZERO);
        tokio::pin!(run);
        let mut seen = Vec::new();
        // The first check comes before the end of the interval, so that no check happens at the moment when a slot is
        // visited.
        for time in [19_980, 20_000, 20_000].map(Duration::from_millis) {
            assert!(tokio::time::timeout(time, &mut run).await.is_err());
            seen.push((live.take().concat(), replaying.take().concat()));
        }
        let beat = |text: &str| (text.to_string(), ":\n\n".to_string());
        let place = "id: 7\nevent: position\ndata: {}\n\n";
        assert_eq!(seen, [beat(place), beat(":\n\n"), beat(":\n\n")]);
        assert_eq!(metrics.evicted_stalled.get(), 0);
    }

    /// Streams that read nothing, after a wheel has turned for this time.
    async fn turned(count: usize, interval: Duration, time: Duration) -> Vec<Arc<Subscriber>> {
        let (wheel, metrics) = (Wheel::new(None), Arc::new(Metrics::default()));
        let hub = Hub::new(1000, metrics.clone());
        let streams: Vec<_> = (0..count).map(|_| Subscriber::new(1000)).collect();
        streams.iter().for_each(|stream| wheel.add(stream.clone()));
        let run = wheel.run(&hub, &metrics, interval, || Duration::ZERO);
        let _ = tokio::time::timeout(time, run).await;
        streams
    }

    #[tokio::test(start_paused = true)]
    async fn few_streams_get_their_heartbeats_at_the_same_time() {
        let streams = turned(10_000, Duration::from_secs(15), Duration::from_millis(20)).await;
        let beats = streams.iter().filter(|stream| !stream.take().is_empty()).count();
        assert!((1..100).contains(&beats), "{beats}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_interval_is_kept() {
        let streams = turned(1000, Duration::from_millis(50), Duration::from_millis(75)).await;
        // All were visited once, and half of them a second time, when they had not read their first heartbeat.
        let (stalled, others): (Vec<_>, Vec<_>) = streams.iter().partition(|stream| stream.ended().is_some());
        assert!((400..600).contains(&stalled.len()), "{}", stalled.len());
        assert!(others.iter().all(|stream| !stream.take().is_empty()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_ends_of_all_streams_are_spread_and_each_gets_its_last_frames() {
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
    async fn a_stream_that_is_added_during_the_end_is_ended_too() {
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
            assert!(stream.take().concat().ends_with("retry: 1500\n\n"));
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
        // Neither client read anything, and this was also noticed for the one whose turn to end had not come.
        assert!(streams.iter().all(|stream| stream.ended() == Some(End::Stalled)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_client_reads_nothing_for_an_interval_is_ended() {
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
            stream.take().concat();
        }
        assert!((75..=130).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        assert_eq!((stream.ended(), metrics.aged.get()), (Some(End::Finished), 1));
    }
}
