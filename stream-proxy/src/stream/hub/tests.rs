//! What the hub promises.

use super::topics::{EVENT_OVERHEAD, FEW_TICKS, TOPIC_OVERHEAD};
use super::*;
use crate::stream::due::GROUP;
use crate::stream::subscriber::writing::tests::{Uncounted, Wakes, connect, read, wait};
use crate::stream::writer::Writer;
use proptest::prelude::*;
use std::task::{Context, Poll, Waker};
use tidings_wire::position::END;

pub(super) fn hub(budget: usize) -> Arc<Hub> {
    Hub::new(budget, Arc::default())
}

pub(super) fn topics(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

pub(super) fn publish(hub: &Hub, tick: u64, events: &[(&str, &str)]) {
    let events = events.iter().enumerate().map(|(i, (topic, text))| Outgoing {
        n: i as u32 + 1,
        topic,
        frame: Frame::raw(text.to_string()),
    });
    hub.publish(tick, events.collect());
    hub.complete(tick);
}

/// What waits for a subscriber, without events that only send a position, which another test covers.
pub(super) fn take(subscriber: &Subscriber) -> Vec<String> {
    subscriber.take().into_iter().filter(|text| !text.contains("event: position\n")).collect()
}

fn at(tick: u64, n: u32) -> Place {
    Place { tick, n }
}

/// The waiting events of a subscriber that only send a position.
fn places(subscriber: &Subscriber) -> Vec<Frame> {
    match subscriber.poll_frames(&Context::from_waker(Waker::noop()), 0) {
        Poll::Ready(Some(frames)) => {
            frames.into_iter().filter(|frame| frame.bytes(false).starts_with(b"id: ")).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn a_subscriber_that_started_with_the_rows_starts_over_after_a_reset() {
    let hub = hub(10_000);
    hub.restart(1);
    let subscriber = Subscriber::new(1000);
    subscriber.want_rows();
    hub.join(&subscriber, &topics(&["a", "b"]), |_| Frame::raw("hello"));
    hub.reset(9, Reset::Lost);
    assert_eq!(subscriber.ended(), Some(End::Finished));
    let forget = "id: snapshot\nevent: reset\ndata: {\"reason\":\"snapshot\"}\n\n";
    assert_eq!(take(&subscriber), ["hello", forget, ""]);
}

#[test]
fn a_subscriber_that_resumes_gets_the_current_position() {
    let hub = hub(10_000);
    let (early, late) = (Subscriber::new(1000), Subscriber::new(1000));
    hub.join(&early, &topics(&["a", "b"]), |_| Frame::raw("hello"));
    hub.restart(1);
    assert_eq!(places(&early), [Frame::position(Position::after_tick(1))]);
    publish(&hub, 2, &[("b", "b1")]);
    assert_eq!(hub.resume(&late, &topics(&["a"]), Place::after_tick(1)), Joined::Live);
    assert_eq!(places(&late), [Frame::position(Position::after_tick(2))]);
    let there = Subscriber::new(1000);
    assert_eq!(hub.resume(&there, &topics(&["a"]), Place::after_tick(2)), Joined::Live);
    assert_eq!(places(&there), [Frame::position(Position::after_tick(2))], "it shows that nothing was missed");
}

#[test]
fn ticks_that_leave_nothing_in_history_take_bounded_memory() {
    let hub = hub(10_000);
    hub.restart(1);
    let last = FEW_TICKS as u64 + 10;
    for tick in 2..=last {
        hub.publish(tick, vec![Outgoing { n: 1, topic: "a", frame: Frame::recheck(tick, false) }]);
        hub.complete(tick);
    }
    let resume = |tick| hub.resume(&Subscriber::new(1000), &topics(&["b"]), Place::after_tick(tick));
    assert_eq!([1, 10, 11, last].map(resume), [Joined::TooOld, Joined::TooOld, Joined::Live, Joined::Live]);
}

#[test]
fn an_event_goes_to_its_topics_subscribers_only() {
    let hub = hub(10_000);
    hub.restart(1);
    let (a, both) = (Subscriber::new(1000), Subscriber::new(1000));
    hub.join(&a, &topics(&["a"]), |place| Frame::raw(format!("{}", place.unwrap().tick)));
    hub.join(&both, &topics(&["a", "b"]), |_| Frame::raw("hello"));
    publish(&hub, 2, &[("a", "a1"), ("b", "b1"), ("c", "c1")]);
    assert_eq!(take(&a), ["1", "a1"]);
    assert_eq!(take(&both), ["hello", "a1", "b1"]);
}

#[test]
fn a_subscriber_that_leaves_gets_nothing_more_and_its_topics_are_removed() {
    let hub = hub(0);
    hub.restart(1);
    let subscribers: Vec<_> = (0..3).map(|_| Subscriber::new(1000)).collect();
    for subscriber in &subscribers {
        hub.join(subscriber, &topics(&["a", "b"]), |_| Frame::raw("hello"));
    }
    hub.leave(&subscribers[1]);
    publish(&hub, 2, &[("a", "a1")]);
    assert_eq!(take(&subscribers[0]), ["hello", "a1"]);
    assert!(take(&subscribers[1]).is_empty());
    hub.leave(&subscribers[0]);
    hub.leave(&subscribers[2]);
    assert_eq!(hub.inner.lock().topics.len(), 0);
}

#[test]
fn a_stream_that_ended_before_it_was_live_takes_no_seat() {
    let hub = hub(1000);
    hub.restart(1);
    let gone = Subscriber::new(1000);
    hub.leave(&gone);
    assert_eq!(hub.resume(&gone, &topics(&["a"]), at(1, END)), Joined::Live);
    assert_eq!(hub.inner.lock().topics.len(), 0);
}

#[test]
fn memory_serves_what_it_has_and_says_when_it_does_not() {
    // Three events of two topics.
    let hub = hub(3 * (EVENT_OVERHEAD + 2) + 2 * (TOPIC_OVERHEAD + 1));
    let late = Subscriber::new(1000);
    assert_eq!(hub.resume(&late, &topics(&["a"]), at(1, END)), Joined::Ahead, "nothing is known yet");
    hub.restart(1);
    publish(&hub, 2, &[("a", "a1"), ("b", "b1")]);
    assert_eq!(hub.resume(&late, &topics(&["a"]), at(0, END)), Joined::TooOld);
    assert_eq!(hub.resume(&late, &topics(&["a"]), at(3, 1)), Joined::Ahead);
    publish(&hub, 3, &[("a", "a2"), ("a", "a3")]);
    assert_eq!(hub.resume(&late, &topics(&["a"]), at(1, END)), Joined::TooOld, "a1 has been evicted");
    assert_eq!(hub.resume(&late, &topics(&["a", "b"]), at(2, 1)), Joined::Live);
    assert_eq!(take(&late), ["b1", "a2", "a3"]);
}

#[test]
fn a_place_in_an_unknown_tick_is_not_served_from_memory() {
    let hub = hub(4 * (EVENT_OVERHEAD + TOPIC_OVERHEAD));
    hub.restart(10);
    for tick in [20, 40, 60] {
        publish(&hub, tick, &[("a", "a1"), ("b", "b1")]);
    }
    let resume = |tick| hub.resume(&Subscriber::new(1000), &topics(&["a"]), at(tick, END));
    assert_eq!([20, 40, 60].map(resume), [Joined::Live; 3]);
    assert_eq!([10, 30, 50, 59].map(resume), [Joined::TooOld; 4], "evicted, or of ticks that others lost");
    assert_eq!(resume(61), Joined::Ahead);
    hub.reset(40, Reset::Lost);
    publish(&hub, 70, &[("a", "a1")]);
    assert_eq!([40, 70].map(resume), [Joined::Live; 2]);
    assert_eq!(resume(60), Joined::TooOld, "lost, and others were cut since");
}

#[test]
fn topics_of_one_event_count_with_their_overhead() {
    let hub = hub(100 * (EVENT_OVERHEAD + TOPIC_OVERHEAD));
    hub.restart(1);
    for tick in 2..1000 {
        publish(&hub, tick, &[(&format!("topic_{tick}"), "x"), ("common", "y")]);
    }
    let inner = hub.inner.lock();
    let (topics, bytes) = (inner.topics.len(), inner.topics.bytes());
    assert!((30..100).contains(&topics), "{topics} topics");
    assert!(bytes <= hub.budget && bytes > hub.budget / 2, "{bytes} bytes");
    drop(inner);
    hub.reset(1000, Reset::Expired);
    assert_eq!(hub.inner.lock().topics.bytes(), 0);
}

#[test]
fn what_exceeds_a_subscribers_room_comes_in_parts() {
    let hub = hub(100_000);
    hub.restart(1);
    publish(&hub, 2, &[("a", "111"), ("b", "222"), ("a", "333"), ("a", "444"), ("b", "555")]);
    let subscriber = Subscriber::new(24);
    let names = topics(&["a", "b"]);
    assert_eq!(hub.resume(&subscriber, &names, at(1, END)), Joined::Partly(at(2, 2)));
    assert_eq!(take(&subscriber), ["111", "222"]);
    assert_eq!(hub.resume(&subscriber, &names, at(2, 2)), Joined::Partly(at(2, 4)));
    assert_eq!(take(&subscriber), ["333", "444"]);
    assert_eq!(hub.resume(&subscriber, &names, at(2, 4)), Joined::Live);
    assert_eq!(take(&subscriber), ["555"]);
}

#[test]
fn changed_counts_are_listed_once_and_all_counts_on_request() {
    let hub = hub(1000);
    hub.restart(1);
    let (one, two) = (Subscriber::new(1000), Subscriber::new(1000));
    hub.join(&one, &topics(&["a"]), |_| Frame::raw("hello"));
    hub.join(&two, &topics(&["a"]), |_| Frame::raw("hello"));
    assert_eq!(hub.subscriber_counts(false), [("a".into(), 2)]);
    assert_eq!(hub.subscriber_counts(false), []);
    hub.leave(&one);
    publish(&hub, 2, &[("b", "b1")]);
    assert_eq!(hub.subscriber_counts(true), [("a".into(), 1)]);
    hub.leave(&two);
    assert_eq!(hub.subscriber_counts(false), [("a".into(), 0)]);
}

#[test]
fn a_reset_reaches_each_subscriber_once_and_drops_history() {
    let hub = hub(100_000);
    hub.restart(1);
    let subscriber = Subscriber::new(1000);
    hub.join(&subscriber, &topics(&["a", "b"]), |_| Frame::raw("hello"));
    publish(&hub, 2, &[("a", "a1")]);
    hub.reset(9, Reset::Expired);
    publish(&hub, 10, &[("b", "b1")]);
    let reset = "id: 9\nevent: reset\ndata: {\"reason\":\"expired\"}\n\n";
    assert_eq!(take(&subscriber), ["hello", "a1", reset, "b1"]);
    assert_eq!(hub.resume(&Subscriber::new(9), &topics(&["a"]), at(2, 1)), Joined::TooOld);
}

#[test]
fn a_small_topic_overtakes_a_large_one_but_not_for_a_subscriber_of_both() {
    let hub = hub(100_000);
    hub.restart(1);
    let large: Vec<_> = (0..3 * GROUP).map(|_| Subscriber::new(1000)).collect();
    large.iter().for_each(|subscriber| hub.join(subscriber, &topics(&["large"]), |_| Frame::raw("hello")));
    let (small, both) = (Subscriber::new(1000), Subscriber::new(1000));
    hub.join(&small, &topics(&["small"]), |_| Frame::raw("hello"));
    publish(&hub, 2, &[("large", "l1"), ("small", "s1")]);
    assert_eq!(take(&small), ["hello", "s1"]);
    assert_eq!(take(&large[3 * GROUP - 1]), ["hello"]);
    assert_eq!(hub.hold(|place| place), None, "no position is sent before all subscribers have the events up to it");
    while hub.serve_group() {}
    assert_eq!(take(&large[3 * GROUP - 1]), ["l1"]);
    assert_eq!(hub.hold(|place| place), Some(Place::after_tick(2)));
    hub.join(&both, &topics(&["large", "small"]), |_| Frame::raw("hello"));
    publish(&hub, 3, &[("large", "l2"), ("small", "s2")]);
    assert_eq!(take(&both), ["hello"]);
    while hub.serve_group() {}
    assert_eq!(take(&both), ["l2", "s2"]);
}

#[test]
fn events_that_are_published_together_reach_each_subscriber_together() {
    let hub = hub(100_000);
    hub.restart(1);
    let large: Vec<_> = (0..3 * GROUP).map(|_| Subscriber::new(1000)).collect();
    large.iter().for_each(|subscriber| hub.join(subscriber, &topics(&["large"]), |_| Frame::raw("hello")));
    publish(&hub, 2, &[("large", "l1"), ("large", "l2")]);
    publish(&hub, 3, &[("large", "l3")]);
    assert!(hub.serve_group());
    assert_eq!(take(&large[0]), ["hello", "l1", "l2", "l3"]);
    // After the events that are already being delivered.
    publish(&hub, 4, &[("large", "l4")]);
    while hub.serve_group() {}
    assert_eq!(take(&large[0]), ["l4"]);
    assert_eq!(take(&large[3 * GROUP - 1]), ["hello", "l1", "l2", "l3", "l4"]);
}

#[test]
fn no_event_before_a_reset_is_delivered_after_it() {
    let hub = hub(100_000);
    hub.restart(1);
    let large: Vec<_> = (0..3 * GROUP).map(|_| Subscriber::new(1000)).collect();
    large.iter().for_each(|subscriber| hub.join(subscriber, &topics(&["large"]), |_| Frame::raw("hello")));
    publish(&hub, 2, &[("large", "l1")]);
    hub.reset(9, Reset::Expired);
    for subscriber in &large {
        let got = take(subscriber);
        assert!(got.len() == 3 && got[1] == "l1" && got[2].contains("reset"), "{got:?}");
    }
    assert!(!hub.serve_group());
}

#[tokio::test]
async fn publish_writes_to_one_group_and_wakes_the_tasks_of_the_others() {
    let (hub, wakes) = (hub(100_000), Arc::<Wakes>::default());
    hub.restart(1);
    let names: Vec<String> = (0..GROUP + 5).map(|n| n.to_string()).collect();
    let mut present = Vec::new();
    for name in &names {
        let (client, socket) = connect().await;
        let subscriber = Subscriber::new(1000);
        hub.join(&subscriber, &topics(&[name]), |_| Frame::raw("hello"));
        subscriber.take();
        wait(&subscriber, &wakes);
        subscriber.leave_socket(socket);
        present.push((client, subscriber));
    }
    let events: Vec<_> = names.iter().flat_map(|name| [(name.as_str(), "x"), (name.as_str(), "y")]).collect();
    publish(&hub, 2, &events);
    assert_eq!((wakes.count(), hub.metrics.bytes_out.get()), (5, 2 * GROUP as u64));
    for (client, subscriber) in &mut present[..GROUP] {
        assert_eq!((read(client, 2).await.as_str(), subscriber.waiting()), ("xy", 0), "written at once");
    }
    for (_, subscriber) in &present[GROUP..] {
        assert_eq!(take(subscriber), ["x", "y"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_tasks_serve_a_large_topic_and_each_client_gets_all_in_order() {
    const EVENTS: u64 = 100;
    let hub = hub(100_000);
    hub.restart(1);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let hub = hub.clone();
        tasks.spawn(async move { hub.fan_out().await });
    }
    let (mut clients, mut expected) = (Vec::new(), String::new());
    for _ in 0..4 * GROUP {
        let (client, socket) = connect().await;
        let subscriber = Subscriber::new(1_000_000);
        hub.join(&subscriber, &topics(&["large"]), |_| Frame::raw("hello"));
        tokio::spawn(Writer::new(socket, subscriber, Uncounted, true));
        clients.push(client);
    }
    for n in 0..EVENTS {
        expected += &format!("{n};");
        publish(&hub, 2 + n, &[("large", &format!("{n};"))]);
        if n % 3 == 0 {
            hub.wait_until_delivered().await;
        }
    }
    for client in &mut clients {
        assert_eq!(read(client, "hello".len() + expected.len()).await, format!("hello{expected}"));
    }
    hub.wait_until_delivered().await;
    while hub.inner.lock().resting < 3 {
        tokio::task::yield_now().await;
    }
}

/// A subscriber, the index of its topics, and how many events had been published when it joined.
type Present = (Arc<Subscriber>, usize, usize);

/// What happens to a hub with a large topic.
#[derive(Clone, Debug)]
enum Step {
    Publish(&'static str),
    Fill,
    Join(usize),
    Resume(usize, usize),
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop_oneof![Just("large"), Just("small"), Just("other")].prop_map(Step::Publish),
        3 => Just(Step::Fill),
        1 => (0usize..4).prop_map(Step::Join),
        1 => (0usize..4, any::<usize>()).prop_map(|(topics, from)| Step::Resume(topics, from)),
        1 => any::<usize>().prop_map(Step::Leave),
    ]
}

proptest! {
    /// However publishing, delivering, joining and leaving mix, each subscriber gets the events of its topics after its
    /// place, each once and in order.
    #[test]
    fn a_large_topic_is_delivered_exactly(steps in prop::collection::vec(step(), 1..60)) {
        let kinds = [topics(&["large"]), topics(&["small"]), topics(&["small", "large"]), topics(&["other", "small"])];
        let hub = hub(1_000_000);
        hub.restart(0);
        let (mut events, mut present): (Vec<&str>, Vec<Present>) = Default::default();
        let come = |kind: usize, from: Option<usize>, events: &[&str], present: &mut Vec<Present>| {
            let subscriber = Subscriber::new(1_000_000);
            match from {
                None => hub.join(&subscriber, &kinds[kind], |_| Frame::raw("hello")),
                Some(from) => {
                    subscriber.feed(Frame::raw("hello"));
                    let joined = hub.resume(&subscriber, &kinds[kind], Place::after_tick(from as u64));
                    assert_eq!(joined, Joined::Live);
                }
            }
            present.push((subscriber, kind, from.unwrap_or(events.len())));
        };
        for i in 0..2 * GROUP + 20 {
            come([0, 0, 0, 0, 0, 0, 1, 2, 3][i % 9], None, &events, &mut present);
        }
        for step in steps {
            match step {
                Step::Publish(topic) => {
                    events.push(topic);
                    publish(&hub, events.len() as u64, &[(topic, &events.len().to_string())]);
                }
                Step::Fill => _ = hub.serve_group(),
                Step::Join(kind) => come(kind, None, &events, &mut present),
                Step::Resume(kind, from) => come(kind, Some(from % (events.len() + 1)), &events, &mut present),
                Step::Leave(which) => {
                    let (gone, ..) = present.swap_remove(which % present.len());
                    hub.leave(&gone);
                }
            }
        }
        while hub.serve_group() {}
        for (subscriber, kind, from) in &present {
            let mine = |topic: &str| kinds[*kind].iter().any(|known| **known == *topic);
            let behind = events.iter().enumerate().skip(*from).filter(|(_, topic)| mine(topic));
            let mut expected: Vec<String> = vec!["hello".into()];
            expected.extend(behind.map(|(i, _)| (i + 1).to_string()));
            prop_assert_eq!(take(subscriber), expected);
        }
    }

    /// Whatever the budget and wherever a client resumes, it gets exactly the events after its place, or learns that
    /// memory does not have them.
    #[test]
    fn a_resumed_client_gets_exactly_the_rest(
        ticks in prop::collection::vec(prop::collection::vec(0usize..4, 0..5), 1..12),
        budget in 0usize..4_000,
        from in (0u64..12, 0u32..5),
        limit in 1usize..60,
    ) {
        let names = ["a", "b", "c", "d"];
        let hub = hub(budget);
        hub.restart(0);
        let mut all = Vec::new();
        for (i, tick) in ticks.iter().enumerate() {
            let tick_no = i as u64 + 1;
            let events: Vec<_> = tick.iter().enumerate()
                .map(|(n, topic)| (names[*topic], format!("{tick_no}-{}", n + 1))).collect();
            let events: Vec<_> = events.iter().map(|(topic, text)| (*topic, text.as_str())).collect();
            publish(&hub, tick_no, &events);
            all.extend(events.iter().enumerate()
                .map(|(n, (topic, text))| (at(tick_no, n as u32 + 1), topic.to_string(), text.to_string())));
        }
        let subscriber = Subscriber::new(limit);
        let mine = topics(&["a", "c"]);
        let (mut after, mut got) = (at(from.0, from.1), Vec::new());
        let expected: Vec<_> = all.iter()
            .filter(|(place, topic, _)| *place > after && (topic == "a" || topic == "c"))
            .map(|(_, _, text)| text.clone()).collect();
        loop {
            let joined = hub.resume(&subscriber, &mine, after);
            got.extend(take(&subscriber));
            match joined {
                Joined::Partly(place) => { prop_assert!(place > after); after = place; }
                Joined::Live => { prop_assert_eq!(got, expected); break; }
                Joined::TooOld => { prop_assert!(got.is_empty()); break; }
                Joined::Ahead => { prop_assert!(after > hub.place().unwrap()); break; }
            }
        }
        prop_assert!(hub.inner.lock().topics.bytes() <= budget);
    }
}
