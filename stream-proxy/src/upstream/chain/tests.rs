//! What the chain promises, against a log that is played by the test.

use super::*;
use crate::stream::hub::Joined;
use crate::stream::subscriber::Subscriber;
use crate::upstream::log::{Introduction, LogRow, Survivors};
use parking_lot::Mutex;
use std::collections::VecDeque;
use tidings_wire::Announcement;

/// The process of the relay.
const RELAY: i32 = 7;

/// The log, and what it answers.
#[derive(Debug)]
struct FakeLog {
    rows: Mutex<Vec<LogRow>>,
    channel: Mutex<&'static str>,
    relay: Mutex<Option<i32>>,
    /// The tick that `locate` returns instead of the one that it is asked for.
    located: Mutex<Option<u64>>,
    /// Ticks before this one have expired.
    oldest: Mutex<u64>,
    /// The answers of `survivors`, in order.
    survivors: Mutex<VecDeque<Option<Survivors>>>,
    /// A tick that the relay has cut and nobody can read yet.
    invisible: Mutex<u64>,
    /// Whether another tick is there after each read.
    grows: Mutex<bool>,
    /// How often the log has been read.
    reads: Mutex<usize>,
}

impl Log for FakeLog {
    async fn introduce(&self) -> Result<Introduction, DatabaseError> {
        let last = self.rows.lock().last().map_or(0, |row| row.tick);
        let (channel, relay) = (self.channel.lock().to_string(), *self.relay.lock());
        let newest = last.max(*self.invisible.lock());
        Ok(Introduction { channel, relay, is_paused: false, last, newest })
    }

    async fn locate(&self, at: &Position) -> Result<Option<Position>, DatabaseError> {
        if at.tick < *self.oldest.lock() {
            return Err(DatabaseError::Expired);
        }
        Ok(Some(self.located.lock().map_or(at.clone(), Position::after_tick)))
    }

    async fn survivors(&self, _: u64, _: u64) -> Result<Option<Survivors>, DatabaseError> {
        Ok(self.survivors.lock().pop_front().expect("an answer to survivors"))
    }

    async fn read(&self, after: Place) -> Result<Vec<LogRow>, DatabaseError> {
        *self.reads.lock() += 1;
        assert!(*self.reads.lock() < 100, "the log is read without an end");
        if after.tick < *self.oldest.lock() {
            return Err(DatabaseError::Expired);
        }
        // One tick a page.
        let mut rows = self.rows.lock();
        if *self.grows.lock() {
            let tick = rows.last().map_or(1, |row| row.tick + 1);
            rows.push(LogRow { tick, before: 0, is_last: true, data: None });
        }
        let next = rows.iter().find(|row| Place::after_tick(row.tick) > after).map(|row| row.tick);
        Ok(rows.iter().filter(|row| Some(row.tick) == next).cloned().collect())
    }
}

/// Some topic's event with this payload.
fn event(payload: &str) -> Event<'_> {
    Event { topic: "a", event: "changed", payload: payload.into() }
}

/// A chain, its log, and a subscriber of the topic.
struct Scene {
    chain: Chain<FakeLog>,
    log: Arc<FakeLog>,
    metrics: Arc<Metrics>,
    subscriber: Arc<Subscriber>,
}

impl Scene {
    /// A chain that has started at tick 1, which is the last one in the log.
    async fn new() -> Self {
        let (metrics, subscriber) = (Arc::new(Metrics::default()), Subscriber::new(1_000_000));
        let hub = Hub::new(10_000, metrics.clone());
        hub.join(&subscriber, &["a".into()], |_| Frame::raw("hello"));
        let log = Arc::new(FakeLog {
            rows: Mutex::default(),
            channel: Mutex::new("first"),
            relay: Mutex::new(Some(RELAY)),
            located: Mutex::default(),
            oldest: Mutex::default(),
            survivors: Mutex::default(),
            invisible: Mutex::default(),
            grows: Mutex::default(),
            reads: Mutex::default(),
        });
        let scene = Self { chain: Chain::new(log.clone(), hub, metrics.clone(), 1000), log, metrics, subscriber };
        scene.write(1, &[]);
        scene.connect().await
    }

    /// The same after another connection.
    async fn connect(mut self) -> Self {
        let Chain { hub, metrics, .. } = &self.chain;
        self.chain = Chain::new(self.log.clone(), hub.clone(), metrics.clone(), 1000);
        self.chain.listen().await.unwrap();
        self.chain.start().await.unwrap();
        self
    }

    /// Writes a tick to the log.
    fn write(&self, tick: u64, payloads: &[&str]) {
        let data = (!payloads.is_empty()).then(|| {
            let mut data = vec![segment::VERSION];
            payloads.iter().for_each(|payload| segment::append(&mut data, &event(payload)));
            data
        });
        self.log.rows.lock().push(LogRow { tick, before: 0, is_last: true, data });
    }

    /// The notifications of a tick that is also in the log.
    fn announce(&self, tick: u64, previous: u64, payloads: &[&str]) -> Vec<String> {
        self.write(tick, payloads);
        let mut announcement = Announcement::new(tick, previous);
        payloads.iter().for_each(|payload| announcement.push(&event(payload)));
        announcement.finish()
    }

    /// The notifications of a tick that a crash may lose.
    fn announce_early(&self, tick: u64, previous: u64, payloads: &[&str]) -> Vec<String> {
        let parts = self.announce(tick, previous, payloads);
        parts.into_iter().map(|part| part.replacen("1 ", "2 ", 1)).collect()
    }

    /// A crash loses the last tick.
    fn lose(&self) {
        let mut rows = self.log.rows.lock();
        rows.pop();
        *self.log.located.lock() = rows.last().map(|row| row.tick);
    }

    /// The relay cuts ticks again, and then `survivors` gives these answers.
    fn cut_again(&self, ticks: &[(u64, &[&str])], answers: &[Option<(u64, Place)>]) {
        ticks.iter().for_each(|(tick, payloads)| self.write(*tick, payloads));
        let answers = answers.iter().map(|answer| answer.map(|(events, reached)| Survivors { events, reached }));
        self.log.survivors.lock().extend(answers);
    }

    async fn notify(&mut self, payloads: &[String]) {
        for payload in payloads {
            assert!(self.chain.notified(RELAY, payload).await.unwrap());
        }
    }

    /// The ids and names of the events that the subscriber has been sent since the last call.
    fn received(&self) -> Vec<String> {
        let field = |text: &str, name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
        let frames = self.subscriber.take();
        frames.iter().filter_map(|text| Some(field(text, "id: ")? + " " + &field(text, "event: ")?)).collect()
    }

    /// How often the log has been read since the last call.
    fn reads(&self) -> usize {
        std::mem::take(&mut *self.log.reads.lock())
    }
}

#[tokio::test]
async fn notifications_that_continue_the_chain_need_no_read_of_the_log() {
    let mut scene = Scene::new().await;
    scene.reads();
    let (first, second) = (scene.announce(2, 1, &["x", "y"]), scene.announce(3, 2, &["z"]));
    scene.notify(&first).await;
    scene.notify(&second).await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed", "2-2 changed", "3-1 changed"]);
    assert_eq!((scene.reads(), scene.metrics.notifications.get()), (0, 2));
}

#[tokio::test]
async fn a_gap_in_the_chain_is_filled_from_the_log() {
    let mut scene = Scene::new().await;
    scene.announce(2, 1, &["x"]);
    let third = scene.announce(3, 2, &["y"]);
    scene.reads();
    scene.notify(&third).await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed", "3-1 changed"]);
    assert_eq!((scene.reads(), scene.metrics.hints.get()), (2, 1));
}

#[tokio::test]
async fn a_hint_makes_the_proxy_read_the_log() {
    let mut scene = Scene::new().await;
    scene.write(2, &["x"]);
    let mut hint = Announcement::new(2, 1);
    hint.make_hint();
    scene.notify(&hint.finish()).await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed"]);
}

#[tokio::test]
async fn a_part_out_of_order_makes_the_proxy_read_the_log() {
    let mut scene = Scene::new().await;
    let long = "x".repeat(5000);
    let parts = scene.announce(2, 1, &[&long, &long, &long]);
    assert_eq!(parts.len(), 3);
    scene.reads();
    scene.notify(&parts[..1]).await;
    assert_eq!((scene.received(), scene.reads()), (vec!["1 position".into(), "2-1 changed".into()], 0));
    scene.notify(&parts[2..]).await;
    assert_eq!(scene.received(), ["2-2 changed", "2-3 changed"]);
    // The part that was missing comes late.
    scene.notify(&parts[1..2]).await;
    assert!(scene.received().is_empty());
    assert_eq!(scene.metrics.old.get(), 1);
}

#[tokio::test]
async fn an_old_notification_is_dropped() {
    let mut scene = Scene::new().await;
    let second = scene.announce(2, 1, &["x"]);
    scene.notify(&second).await;
    scene.reads();
    scene.notify(&second).await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed"]);
    assert_eq!((scene.reads(), scene.metrics.old.get()), (0, 1));
}

#[tokio::test]
async fn a_notification_that_cannot_be_parsed_makes_the_proxy_read_the_log() {
    let mut scene = Scene::new().await;
    scene.write(2, &["x"]);
    scene.notify(&["1 2 nonsense".into()]).await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed"]);
    assert_eq!(scene.metrics.mangled.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_notification_of_another_process_is_not_published_until_that_process_is_the_relay() {
    let mut scene = Scene::new().await;
    let second = scene.announce(2, 1, &["x"]);
    assert!(!scene.chain.notified(RELAY + 1, &second[0]).await.unwrap());
    assert_eq!((scene.received(), scene.metrics.forged.get()), (vec!["1 position".into()], 1));
    *scene.log.relay.lock() = Some(RELAY + 1);
    tokio::time::advance(RELAY_CHECK).await;
    assert!(scene.chain.notified(RELAY + 1, &second[0]).await.unwrap());
    assert_eq!(scene.received(), ["2-1 changed"]);
}

#[tokio::test]
async fn a_notification_that_was_missed_is_found_when_it_is_quiet() {
    let mut scene = Scene::new().await;
    scene.write(2, &["x"]);
    scene.chain.check_for_missed().await.unwrap();
    assert_eq!(scene.received(), ["1 position", "2-1 changed"]);
    scene.reads();
    scene.chain.check_for_missed().await.unwrap();
    assert_eq!(scene.reads(), 0);
}

#[tokio::test]
async fn a_log_that_always_has_something_new_is_left_for_the_notifications() {
    let mut scene = Scene::new().await;
    *scene.log.grows.lock() = true;
    scene.announce(2, 1, &["x"]);
    let third = scene.announce(3, 2, &["y"]);
    scene.notify(&third).await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed", "3-1 changed"]);
    scene.chain.check_for_missed().await.unwrap();
    let mut scene = scene.connect().await;
    *scene.log.grows.lock() = false;
    scene.chain.catch_up().await.unwrap();
    let last = scene.chain.place().unwrap().tick;
    let next = scene.announce(last + 1, last, &["z"]);
    scene.reads();
    scene.notify(&next).await;
    assert_eq!((scene.received(), scene.reads()), (vec![format!("{}-1 changed", last + 1)], 0));
}

#[tokio::test]
async fn a_tick_that_was_announced_before_the_connection_and_is_not_visible_yet_is_looked_for_soon() {
    let scene = Scene::new().await;
    *scene.log.invisible.lock() = 2;
    let mut scene = scene.connect().await;
    assert_eq!(scene.chain.quiet(), SOON);
    scene.write(2, &["x"]);
    scene.chain.check_for_missed().await.unwrap();
    assert_eq!((scene.received(), scene.chain.quiet()), (vec!["1 position".into(), "2-1 changed".into()], QUIET));
}

#[tokio::test]
async fn a_channel_that_has_moved_is_followed() {
    let mut scene = Scene::new().await;
    scene.notify(&[MOVED.into()]).await;
    assert!(!scene.chain.take_channel_changed());
    *scene.log.channel.lock() = "second";
    scene.notify(&[MOVED.into()]).await;
    assert_eq!(scene.chain.channel(), Some("second"));
    assert!(scene.chain.take_channel_changed() && !scene.chain.take_channel_changed());
}

#[tokio::test]
async fn a_connection_continues_where_the_last_one_ended() {
    let mut scene = Scene::new().await;
    let second = scene.announce(2, 1, &["x"]);
    scene.notify(&second).await;
    scene.write(3, &["y", "z"]);
    let scene = scene.connect().await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed", "3-1 changed", "3-2 changed"]);
}

#[tokio::test]
async fn a_lost_tick_resets_every_subscriber() {
    let mut scene = Scene::new().await;
    let second = scene.announce(2, 1, &["x"]);
    scene.notify(&second).await;
    // A failover lost it, and the new primary has cut another tick.
    scene.log.rows.lock().pop();
    scene.write(3, &["y"]);
    *scene.log.located.lock() = Some(1);
    let scene = scene.connect().await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed", "1 reset", "3-1 changed"]);
    assert_eq!(scene.metrics.resets_lost.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_tick_whose_events_survived_resets_nobody_and_repeats_nothing() {
    let mut scene = Scene::new().await;
    let second = scene.announce_early(2, 1, &["x", "y"]);
    scene.notify(&second).await;
    scene.lose();
    // At first, the new relay has not cut them yet.
    scene.cut_again(&[(3, &["x", "y", "z"]), (4, &[])], &[None, Some((2, Place { tick: 3, n: 2 }))]);
    let scene = scene.connect().await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed", "2-2 changed", "3-3 changed"]);
    let hub = &scene.chain.hub;
    // Memory has the first two events in the lost tick only.
    let topics: [Arc<str>; 1] = ["a".into()];
    let resume = |tick, n| hub.resume(&Subscriber::new(1_000_000), &topics, Place { tick, n });
    assert_eq!((resume(2, 1), resume(3, 1), resume(3, 2)), (Joined::Live, Joined::TooOld, Joined::Live));
    assert_eq!(scene.metrics.resets_lost.get(), 0);
}

#[tokio::test]
async fn a_lost_tick_whose_events_are_lost_too_resets_every_subscriber() {
    let mut scene = Scene::new().await;
    let second = scene.announce_early(2, 1, &["x", "y"]);
    scene.notify(&second).await;
    scene.lose();
    scene.cut_again(&[(3, &["x"])], &[Some((1, Place::after_tick(3)))]);
    let scene = scene.connect().await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed", "2-2 changed", "1 reset", "3-1 changed"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_tick_whose_announcement_a_crash_cut_short_resets_nobody_and_repeats_nothing() {
    let mut scene = Scene::new().await;
    let long = "x".repeat(5000);
    let parts = scene.announce_early(2, 1, &[&long, &long, &long]);
    scene.notify(&parts[..2]).await;
    assert_eq!(scene.received(), ["1 position"], "nothing is shown before the whole tick has arrived");
    scene.lose();
    scene.cut_again(&[(3, &[&long, &long, &long])], &[Some((0, Place::after_tick(1)))]);
    let scene = scene.connect().await;
    assert_eq!(scene.received(), ["3-1 changed", "3-2 changed", "3-3 changed"]);
    assert_eq!(scene.metrics.resets_lost.get(), 0);
}

#[tokio::test]
async fn a_tick_that_a_crash_may_lose_is_published_with_its_last_part() {
    let mut scene = Scene::new().await;
    let long = "x".repeat(5000);
    let parts = scene.announce_early(2, 1, &[&long, &long, &long]);
    scene.reads();
    scene.notify(&parts).await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed", "2-2 changed", "2-3 changed"]);
    let third = scene.announce_early(3, 2, &[&long, &long]);
    scene.notify(&third[..1]).await;
    assert_eq!((scene.received(), scene.reads()), (vec![], 0));
    // A part is missing. What was held back comes from the log, once.
    let fourth = scene.announce_early(4, 3, &["y"]);
    scene.notify(&fourth).await;
    assert_eq!(scene.received(), ["3-1 changed", "3-2 changed", "4-1 changed"]);
    assert!(scene.reads() > 0);
    scene.notify(&third[1..]).await;
    assert!(scene.received().is_empty());
}

#[tokio::test]
async fn two_crashes_in_a_row_lose_nothing_and_repeat_nothing() {
    let mut scene = Scene::new().await;
    let second = scene.announce_early(2, 1, &["x"]);
    scene.notify(&second).await;
    scene.lose();
    scene.cut_again(&[(3, &["x"])], &[Some((1, Place::after_tick(3)))]);
    let mut scene = scene.connect().await;
    *scene.log.located.lock() = None;
    let fourth = scene.announce_early(4, 3, &["y"]);
    scene.notify(&fourth).await;
    scene.lose();
    scene.cut_again(&[(5, &["y"]), (6, &["z"])], &[Some((1, Place::after_tick(5)))]);
    let scene = scene.connect().await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed", "4-1 changed", "6-1 changed"]);
}

#[tokio::test]
async fn a_tick_that_was_durable_and_is_lost_resets_every_subscriber() {
    let mut scene = Scene::new().await;
    let (second, third) = (scene.announce(2, 1, &["x"]), scene.announce_early(3, 2, &["y"]));
    scene.notify(&second).await;
    scene.notify(&third).await;
    // A failover lost both. Nobody asks what survived, because the order may be another one.
    scene.lose();
    scene.lose();
    scene.write(4, &["x", "y"]);
    let scene = scene.connect().await;
    assert_eq!(scene.received(), ["1 position", "2-1 changed", "3-1 changed", "1 reset", "4-1 changed", "4-2 changed"]);
}

#[tokio::test]
async fn events_that_have_expired_reset_every_subscriber() {
    let scene = Scene::new().await;
    for tick in 2..5 {
        scene.write(tick, &["x"]);
    }
    *scene.log.oldest.lock() = 3;
    let scene = scene.connect().await;
    assert_eq!(scene.received(), ["1 position", "4 reset"]);
    assert_eq!(scene.metrics.resets_expired.get(), 1);
}

#[tokio::test]
async fn a_segment_that_cannot_be_read_resets_every_subscriber() {
    let mut scene = Scene::new().await;
    let data = Some(vec![u8::MAX]);
    scene.log.rows.lock().push(LogRow { tick: 2, before: 0, is_last: true, data });
    scene.chain.catch_up().await.unwrap();
    assert_eq!(scene.received(), ["1 position", "2 reset"]);
}

#[tokio::test]
async fn a_tick_in_several_rows_is_published_in_batches_and_in_order() {
    let mut scene = Scene::new().await;
    let long = "x".repeat(600);
    scene.write(2, &[&long, &long, &long]);
    scene.write(2, &[&long]);
    if let [.., first, second] = scene.log.rows.lock().as_mut_slice() {
        (first.is_last, second.before) = (false, 3);
    }
    scene.chain.catch_up().await.unwrap();
    assert_eq!(scene.received(), ["1 position", "2-1 changed", "2-2 changed", "2-3 changed", "2-4 changed"]);
    assert_eq!(scene.metrics.ticks.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_does_not_delay_each_of_many_small_ticks() {
    let mut scene = Scene::new().await;
    let large = scene.announce(2, 1, &[&"x".repeat(5000)]);
    scene.notify(&large).await;
    let slow = Subscriber::new(30_000);
    scene.chain.hub.join(&slow, &["a".into()], |_| Frame::raw("x".repeat(10_000)));
    (3..=52).for_each(|tick| scene.write(tick, &["y"]));
    let start = Instant::now();
    scene.chain.catch_up().await.unwrap();
    assert_eq!(scene.chain.place().unwrap(), Place::after_tick(52));
    assert!(slow.ended().is_none());
    assert!(start.elapsed() <= PACE * 10, "50 ticks took {:?}", start.elapsed());
}
