//! What a replay promises, against a log that is played by the test.

use super::*;
use crate::stream::hub::Outgoing;
use parking_lot::Mutex;
use std::collections::VecDeque;
use tidings_wire::{Event, PagePart, segment};

/// The result of asking for the position to continue from.
type Located = Result<(Option<Position>, u64), DatabaseError>;

/// What the log answers, in order.
#[derive(Debug, Default)]
struct FakeLog {
    /// The result of each question for the position to continue from.
    located: Mutex<VecDeque<Located>>,
    /// The result of each read, and what it is read after.
    pages: Mutex<VecDeque<Result<Page, DatabaseError>>>,
    asked: Mutex<Vec<String>>,
    /// A tick that the hub publishes while the last page is being read.
    published_meanwhile: Mutex<Option<(Arc<Hub>, u64)>>,
    /// The patience of a standby.
    patience: Option<Duration>,
}

impl ClientLog for FakeLog {
    async fn locate(&self, after: &str) -> Result<(Option<Position>, u64), DatabaseError> {
        self.asked.lock().push(format!("locate {after}"));
        self.located.lock().pop_front().expect("an answer to locate")
    }

    fn standby_patience(&self) -> Option<Duration> {
        self.patience
    }

    async fn page(&self, after: &Position, topics: &[Arc<str>], _: i32) -> Result<Page, DatabaseError> {
        assert_eq!(topics, ["a".into()]);
        self.asked.lock().push(format!("page {after}"));
        let next = self.pages.lock().pop_front();
        // After the last answer, the server is slow.
        let Some(page) = next else { return std::future::pending().await };
        if self.pages.lock().is_empty()
            && let Some((hub, tick)) = self.published_meanwhile.lock().take()
        {
            publish(&hub, tick);
        }
        page
    }
}

/// A page with these events.
fn page(events: &[(u64, u32)], reached: Position, more: bool) -> Result<Page, DatabaseError> {
    let mut segments = Vec::new();
    for (tick, n) in events {
        let mut segment = vec![segment::VERSION];
        segment::append(&mut segment, &Event { topic: "a", event: "changed", payload: "from the log".into() });
        let part = PagePart { tick: *tick, before: n - 1, with_snapshot: false, segment: &segment };
        tidings_wire::page::append(&mut segments, part);
    }
    Ok(Page { segments, seen: None, reached, more })
}

fn publish(hub: &Hub, tick: u64) {
    let frame = Frame::event(Position::at(tick, 1), "changed", "live");
    hub.publish(tick, vec![Outgoing { n: 1, topic: "a", frame }]);
    hub.complete(tick);
}

/// A replay of topic `a` by a hub that has no history, at the end of tick 10.
fn replay(log: FakeLog) -> (Replay<FakeLog>, Arc<Hub>, Arc<Subscriber>, Arc<Metrics>) {
    let (metrics, subscriber) = (Arc::new(Metrics::default()), Subscriber::new(1_000_000));
    let hub = Hub::new(100_000, metrics.clone());
    hub.restart(10);
    let log =
        TopicLog { hub: hub.clone(), reads: Arc::new(log), metrics: metrics.clone(), topics: ["a".into()].into() };
    let replay = Replay { log, subscriber: subscriber.clone() };
    (replay, hub, subscriber, metrics)
}

/// The ids and names of what the subscriber has been sent.
fn received(subscriber: &Subscriber) -> Vec<String> {
    let field = |text: &str, name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
    // A frame may have several events.
    let blocks = subscriber.take().concat();
    let ids = blocks.split("\n\n").filter_map(|block| Some(field(block, "id: ")? + " " + &field(block, "event: ")?));
    ids.collect()
}

fn after_tick(tick: u64) -> Position {
    Position::after_tick(tick)
}

#[tokio::test]
async fn a_replay_joins_the_live_stream_without_a_gap() {
    let log = FakeLog {
        located: Mutex::new([Ok((Some(after_tick(5)), 10))].into()),
        pages: Mutex::new(
            [page(&[(6, 1), (7, 1)], Position::at(7, 1), true), page(&[(9, 2)], after_tick(10), false)].into(),
        ),
        ..FakeLog::default()
    };
    let (replay, hub, subscriber, metrics) = replay(log);
    let log = replay.log.reads.clone();
    *log.published_meanwhile.lock() = Some((hub.clone(), 11));
    replay.run(Some(after_tick(5))).await;
    publish(&hub, 12);
    assert_eq!(
        received(&subscriber),
        ["6-1 changed", "7-1 changed", "9-2 changed", "11-1 changed", "11 position", "12-1 changed"]
    );
    assert_eq!(*log.asked.lock(), ["locate 5", "page 5", "page 7-1"]);
    assert_eq!((metrics.resumed_log.get(), metrics.log_events.get(), metrics.replaying.get()), (1, 3, 0));
}

#[tokio::test]
async fn an_event_that_the_log_and_memory_have_is_sent_once() {
    let log = FakeLog {
        located: Mutex::new([Ok((Some(after_tick(5)), 11))].into()),
        pages: Mutex::new([page(&[(6, 1), (11, 1)], after_tick(11), false)].into()),
        ..FakeLog::default()
    };
    let (replay, hub, subscriber, _) = replay(log);
    publish(&hub, 11);
    replay.run(Some(after_tick(5))).await;
    publish(&hub, 12);
    assert_eq!(received(&subscriber), ["6-1 changed", "11-1 changed", "11 position", "12-1 changed"]);
}

#[tokio::test]
async fn a_reader_of_the_log_is_where_the_log_ended_and_not_at_the_hubs_place() {
    let log = FakeLog {
        located: Mutex::new([Ok((Some(after_tick(5)), 8))].into()),
        // A crash has lost the hub's tick 10. Its events come in tick 11, which the hub will pass over.
        pages: Mutex::new([page(&[(6, 1)], after_tick(8), false), page(&[(11, 1)], after_tick(11), false)].into()),
        ..FakeLog::default()
    };
    let (replay, hub, subscriber, _) = replay(log);
    let log = replay.log.reads.clone();
    *log.published_meanwhile.lock() = Some((hub.clone(), 11));
    replay.run(Some(after_tick(5))).await;
    publish(&hub, 12);
    assert_eq!(received(&subscriber), ["6-1 changed", "11-1 changed", "11 position", "12-1 changed"]);
}

#[tokio::test]
async fn an_expired_position_becomes_a_reset_at_the_present() {
    let log = FakeLog { located: Mutex::new([Err(DatabaseError::Expired)].into()), ..FakeLog::default() };
    let (replay, hub, subscriber, metrics) = replay(log);
    replay.run(Some(after_tick(5))).await;
    publish(&hub, 11);
    assert_eq!(received(&subscriber), ["10 reset", "11-1 changed"]);
    assert_eq!(metrics.resets_expired.get(), 1);
}

#[tokio::test]
async fn a_position_that_expires_during_the_replay_becomes_a_reset() {
    let log = FakeLog {
        located: Mutex::new([Ok((Some(after_tick(5)), 10))].into()),
        pages: Mutex::new([page(&[(6, 1)], Position::at(6, 1), true), Err(DatabaseError::Expired)].into()),
        ..FakeLog::default()
    };
    let (replay, _hub, subscriber, _) = replay(log);
    replay.run(Some(after_tick(5))).await;
    assert_eq!(received(&subscriber), ["6-1 changed", "10 reset"]);
}

#[tokio::test]
async fn a_position_whose_tick_was_lost_becomes_a_reset() {
    let log = FakeLog { located: Mutex::new([Ok((Some(after_tick(4)), 10))].into()), ..FakeLog::default() };
    let (replay, _hub, subscriber, metrics) = replay(log);
    replay.run(Some(after_tick(5))).await;
    assert_eq!(received(&subscriber), ["10 reset"]);
    assert_eq!(metrics.resets_lost.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_is_tried_again_from_where_the_client_is() {
    let log = FakeLog {
        located: Mutex::new([Ok((Some(after_tick(5)), 10)), Ok((Some(Position::at(6, 1)), 10))].into()),
        pages: Mutex::new(
            [
                page(&[(6, 1)], Position::at(6, 1), true),
                Err(DatabaseError::Closed),
                page(&[(8, 1)], after_tick(10), false),
            ]
            .into(),
        ),
        ..FakeLog::default()
    };
    let (replay, _hub, subscriber, _) = replay(log);
    let log = replay.log.reads.clone();
    replay.run(Some(after_tick(5))).await;
    assert_eq!(received(&subscriber), ["6-1 changed", "8-1 changed", "10 position"]);
    assert_eq!(*log.asked.lock(), ["locate 5", "page 5", "page 6-1", "locate 6-1", "page 6-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_position_that_no_server_reaches_ends_the_stream() {
    let log = FakeLog {
        located: Mutex::new(std::iter::repeat_with(|| Ok((None, 10))).take(100).collect()),
        ..FakeLog::default()
    };
    let (replay, _hub, subscriber, _) = replay(log);
    let start = Instant::now();
    replay.run(Some(after_tick(99))).await;
    assert_eq!(subscriber.ended(), Some(End::Finished));
    assert!(start.elapsed() >= TOO_EARLY);
}

/// A log at a standby with this patience, which gives the same answer whenever it is asked for a position.
fn standby_log(patience: Duration, located: impl FnMut() -> Located) -> FakeLog {
    let located = Mutex::new(std::iter::repeat_with(located).take(100).collect());
    FakeLog { located, patience: Some(patience), ..FakeLog::default() }
}

#[tokio::test(start_paused = true)]
async fn a_position_that_a_standby_has_is_not_lost_however_late_the_hub_is() {
    let patience = Duration::from_secs(30);
    let answers: [fn() -> Located; 2] = [|| Ok((Some(after_tick(12)), 12)), || Err(DatabaseError::Closed)];
    for answer in answers {
        let (replay, hub, subscriber, metrics) = replay(standby_log(patience, answer));
        let run = tokio::spawn(replay.run(Some(after_tick(12))));
        // The hub's connection is broken meanwhile, or it still publishes a large tick.
        sleep(patience + patience / 2).await;
        publish(&hub, 12);
        run.await.unwrap();
        assert_eq!((received(&subscriber), metrics.resets_lost.get()), (vec!["12 position".to_owned()], 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_position_that_a_standby_does_not_get_in_time_is_lost() {
    let patience = Duration::from_secs(30);
    let (replay, _hub, subscriber, _) = replay(standby_log(patience, || Ok((None, 10))));
    let start = Instant::now();
    replay.run(Some(after_tick(12))).await;
    assert_eq!(received(&subscriber), ["10 reset"]);
    assert!(start.elapsed() >= patience);
}

#[tokio::test(start_paused = true)]
async fn a_replay_waits_until_the_hub_has_what_the_log_had() {
    let log = FakeLog {
        located: Mutex::new([Ok((Some(after_tick(5)), 12))].into()),
        pages: Mutex::new([page(&[(6, 1), (12, 1)], after_tick(12), false)].into()),
        ..FakeLog::default()
    };
    let (replay, hub, subscriber, _) = replay(log);
    let log = replay.log.reads.clone();
    let run = tokio::spawn(replay.run(Some(after_tick(5))));
    while log.asked.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*log.asked.lock(), ["locate 5"], "the page is read only when the hub is at tick 12");
    publish(&hub, 11);
    publish(&hub, 12);
    run.await.unwrap();
    publish(&hub, 13);
    assert_eq!(received(&subscriber), ["6-1 changed", "12-1 changed", "12 position", "13-1 changed"]);
}

#[tokio::test(start_paused = true)]
async fn one_page_is_read_ahead_of_a_client_and_no_more() {
    let pages = (6..20).map(|tick| page(&[(tick, 1), (tick, 2)], Position::at(tick, 2), true));
    let log = FakeLog {
        located: Mutex::new([Ok((Some(after_tick(5)), 10))].into()),
        pages: Mutex::new(pages.collect()),
        ..FakeLog::default()
    };
    let (mut replay, _hub, _, metrics) = replay(log);
    // Each event is a frame, and one of them leaves no room.
    let subscriber = Subscriber::new(1);
    replay.subscriber = subscriber.clone();
    let log = replay.log.reads.clone();
    let run = tokio::spawn(replay.run(Some(after_tick(5))));
    let settle = || sleep(Duration::from_secs(1));
    settle().await;
    assert_eq!(*log.asked.lock(), ["locate 5", "page 5", "page 6-2"]);
    assert_eq!(received(&subscriber), ["6-1 changed"]);
    settle().await;
    assert_eq!(received(&subscriber), ["6-2 changed"]);
    settle().await;
    assert_eq!(received(&subscriber), ["7-1 changed"]);
    assert_eq!(*log.asked.lock(), ["locate 5", "page 5", "page 6-2", "page 7-2"]);
    // It leaves in the middle of a page.
    subscriber.close(End::Gone);
    run.await.unwrap();
    assert_eq!((log.asked.lock().len(), metrics.replaying.get()), (4, 0));
}

#[tokio::test]
async fn who_leaves_does_not_wait_for_the_page_that_is_read_ahead() {
    let log = FakeLog {
        located: Mutex::new([Ok((Some(after_tick(5)), 10))].into()),
        pages: Mutex::new([page(&[(6, 1), (6, 2)], Position::at(6, 2), true)].into()),
        ..FakeLog::default()
    };
    let (mut replay, ..) = replay(log);
    let subscriber = Subscriber::new(1);
    replay.subscriber = subscriber.clone();
    let log = replay.log.reads.clone();
    let run = tokio::spawn(replay.run(Some(after_tick(5))));
    while log.asked.lock().len() < 3 {
        tokio::task::yield_now().await;
    }
    subscriber.close(End::Gone);
    run.await.unwrap();
}
