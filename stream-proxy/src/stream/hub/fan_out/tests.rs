use crate::stream::due::GROUP;
use crate::stream::frame::Frame;
use crate::stream::subscriber::Subscriber;

use super::super::tests::{hub, publish, take, topics};

#[test]
fn a_subscriber_of_several_topics_waits_only_for_a_large_topic_of_its_own() {
    let hub = hub(100_000);
    hub.restart(1);
    let join = |names: &[&str]| {
        let subscriber = Subscriber::new(1000);
        hub.join(&subscriber, &topics(names), |_| Frame::raw("hello"));
        subscriber
    };
    let served = join(&["large", "mine"]);
    let large: Vec<_> = (0..3 * GROUP).map(|_| join(&["large"])).collect();
    let (stranger, late) = (join(&["small", "other"]), join(&["late", "large"]));
    publish(&hub, 2, &[("large", "l1")]);
    publish(&hub, 3, &[("small", "s1"), ("late", "x1"), ("mine", "m1")]);
    assert_eq!(take(&stranger), ["hello", "s1"], "it does not have the large topic");
    assert_eq!(take(&late), ["hello"]);
    assert_eq!(take(&served), ["hello"]);
    assert!(hub.serve_group());
    publish(&hub, 4, &[("small", "s2"), ("other", "o2"), ("late", "x2")]);
    assert_eq!(take(&stranger), ["s2", "o2"]);
    while hub.serve_group() {}
    assert_eq!(take(&served), ["l1", "m1"]);
    assert_eq!(take(&late), ["l1", "x1", "x2"]);
    publish(&hub, 5, &[("large", "l5")]);
    assert!(hub.serve_group());
    publish(&hub, 6, &[("mine", "m6")]);
    assert_eq!(take(&served), ["l5", "m6"], "it has been served, others have not");
    assert_eq!(take(&large[3 * GROUP - 1]), ["hello", "l1"]);
    while hub.serve_group() {}
}

#[test]
fn a_large_event_leaves_half_of_the_threads_to_small_topics_that_have_events_too() {
    let hub = hub(100_000);
    hub.restart(1);
    let join = |topic: &str| hub.join(&Subscriber::new(1000), &topics(&[topic]), |_| Frame::raw("hello"));
    (0..9 * GROUP).for_each(|_| join("large"));
    (0..9 * GROUP).for_each(|_| join("other"));
    join("small");
    let working = || {
        let inner = hub.inner.lock();
        inner.fan_outs - inner.resting
    };
    {
        let mut inner = hub.inner.lock();
        (inner.fan_outs, inner.resting) = (4, 4);
    }
    let rest = || hub.inner.lock().rest();
    let deliver = || {
        while hub.serve_group() {}
        while working() > 0 {
            assert!(rest());
        }
    };
    // Nobody else has events, so all of them work.
    publish(&hub, 2, &[("large", "l1")]);
    assert_eq!(working(), 1);
    for expected in [2, 3, 4, 4] {
        assert!(hub.serve_group());
        assert_eq!(working(), expected);
    }
    // Some step back when a small topic has an event.
    publish(&hub, 3, &[("small", "s1")]);
    assert_eq!([rest(), rest(), rest()], [true, true, false]);
    deliver();
    for tick in 4..6 {
        publish(&hub, tick, &[("large", "l2")]);
        for expected in [2, 2] {
            assert!(hub.serve_group());
            assert_eq!(working(), expected);
        }
        publish(&hub, tick + 10, &[("small", "s2")]);
        assert_eq!(working(), 2);
        deliver();
    }
    // Two large events keep all of them busy.
    publish(&hub, 20, &[("large", "l3"), ("other", "o3")]);
    (0..3).for_each(|_| assert!(hub.serve_group()));
    assert_eq!(working(), 4);
    deliver();
    // The small topic has had none for two large events.
    publish(&hub, 21, &[("large", "l4")]);
    deliver();
    publish(&hub, 22, &[("large", "l5")]);
    (0..3).for_each(|_| assert!(hub.serve_group()));
    assert_eq!(working(), 4);
    deliver();
}
