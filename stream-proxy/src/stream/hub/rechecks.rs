//! Which rechecks the hub has published, and which of them a subscriber has yet to meet.

use std::sync::Arc;

use tidings_wire::Template;

use crate::stream::frame::Frame;
use crate::stream::place::Place;
use crate::stream::subscriber::Subscriber;
use crate::stream::tally::Tally;

use super::topics::Topics;

/// What the hub had published when a right was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The newest tick, of which at least some events had been published. All of its transactions are committed.
    pub tick: u64,
    /// The tick of the newest recheck.
    pub recheck: u64,
}

/// The newest rechecks. Those of single topics are also in the topics' history.
#[derive(Debug, Default)]
pub struct Rechecks {
    /// The tick of the newest one.
    newest: u64,
    /// The tick of the newest one that is in no topic's history, because it is about many topics or all.
    of_many: u64,
}

impl Rechecks {
    /// What has been published up to `place`.
    pub fn seen(&self, place: Option<Place>) -> Seen {
        Seen { tick: place.map_or(0, |place| place.tick), recheck: self.newest }
    }

    /// Begins at the end of `tick`. What rechecks there were before is unknown.
    pub fn restart(&mut self, tick: u64) {
        (self.newest, self.of_many) = (tick, tick);
    }

    /// Notes a recheck of one topic; false if it is superfluous.
    pub fn note(&mut self, tick: u64, topic: &str, topics: &mut Topics) -> bool {
        self.newest = tick;
        !topics.has_just(topic, tick)
    }

    /// Notes a recheck of all topics that match a template, and passes it on to their subscribers.
    pub fn note_of_many(&mut self, tick: u64, template: &str, topics: &mut Topics, tally: &mut Tally) {
        (self.newest, self.of_many) = (tick, tick);
        topics.note_tick(tick);
        let frame = Frame::recheck(tick, true);
        match Template::parse_any(template) {
            Ok(template) => topics.subscribers_matching(&template).for_each(|one| tally.push(one, &frame)),
            Err(_) => topics.subscribers().for_each(|one| tally.push(one, &frame)),
        }
    }

    /// Makes a subscriber hold back everything until its right has been checked again, if there was a recheck of its
    /// topics `names` after the last check and up to `until`, or if that is unknown. The hub is at `place`.
    pub fn hold_back(&self, subscriber: &Subscriber, names: &[Arc<str>], topics: &Topics, place: Place, until: Place) {
        let Some(covered) = subscriber.covered() else { return };
        if covered > place.tick {
            // The right was checked before a reset, from which ticks may have lower numbers.
            return subscriber.distrust(place.tick);
        }
        if self.newest <= covered {
            return;
        }
        let since = Place::after_tick(covered);
        let is_unknown = self.of_many > covered || !topics.covers(since);
        if is_unknown || topics.has_recheck(names, since, until) {
            subscriber.feed(Frame::recheck(place.tick, false));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::hold::Guardian;
    use crate::stream::hub::{Hub, Joined, Outgoing};
    use parking_lot::Mutex;

    #[derive(Debug, Default)]
    struct Questions(Mutex<usize>);

    impl Guardian for Questions {
        fn ask_again(&self, _: usize) {
            *self.0.lock() += 1;
        }
    }

    /// A hub at the end of tick 10, and a guardian that counts its questions.
    fn hub() -> (Arc<Hub>, Arc<Questions>) {
        let hub = Hub::new(10_000, Arc::default());
        hub.restart(10);
        (hub, Arc::default())
    }

    /// A subscriber whose right was checked in tick `checked`.
    fn subscriber(questions: &Arc<Questions>, checked: u64) -> Arc<Subscriber> {
        let subscriber = Subscriber::new(10_000);
        subscriber.guard(questions.clone(), 0, checked);
        subscriber
    }

    fn topics(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    /// Publishes a tick: an event for each text, and a recheck of each topic without one.
    fn publish(hub: &Hub, tick: u64, events: &[(&str, &str)]) {
        let outgoing = events.iter().zip(1..).map(|((topic, text), n)| {
            let frame = match *text {
                "" => Frame::recheck(tick, topic.contains('{')),
                text => Frame::raw(text.to_owned()),
            };
            Outgoing { n, topic, frame }
        });
        hub.publish(tick, outgoing.collect());
        hub.complete(tick);
    }

    fn texts(subscriber: &Subscriber) -> Vec<String> {
        subscriber.take().into_iter().filter(|text| text.len() < 9).collect()
    }

    #[test]
    fn a_live_subscriber_holds_what_is_behind_a_recheck_of_its_topic() {
        let (hub, questions) = hub();
        let (one, other) = (subscriber(&questions, 10), subscriber(&questions, 10));
        hub.join(&one, &topics(&["a"]), |_| Frame::raw("hello"));
        hub.join(&other, &topics(&["b"]), |_| Frame::raw("hello"));
        publish(&hub, 11, &[("a", "1"), ("b", "1"), ("a", ""), ("a", ""), ("a", "2"), ("b", "2")]);
        assert_eq!(
            (texts(&one), texts(&other)),
            (vec!["hello".into(), "1".into()], vec!["hello".into(), "1".into(), "2".into()])
        );
        assert_eq!((one.held(), other.held(), *questions.0.lock()), (Some(11), None, 1));
        one.release(11);
        assert_eq!((texts(&one), one.held()), (vec!["2".to_string()], None));
    }

    #[test]
    fn whoever_joins_behind_a_recheck_with_an_earlier_right_holds_everything_back() {
        let (hub, questions) = hub();
        publish(&hub, 11, &[("a", "1")]);
        publish(&hub, 12, &[("a", "")]);
        publish(&hub, 13, &[("a", "2"), ("b", "2")]);
        let resume = |checked, after: u64, names: &[&str]| {
            let subscriber = subscriber(&questions, checked);
            assert_eq!(hub.resume(&subscriber, &topics(names), Place::after_tick(after)), Joined::Live);
            (texts(&subscriber), subscriber.held())
        };
        let none = Vec::<String>::new();
        assert_eq!(resume(11, 10, &["a"]), (vec!["1".into()], Some(12)), "up to its place");
        assert_eq!(resume(11, 12, &["a"]), (none.clone(), Some(13)), "also if it claims to have seen it");
        assert_eq!(resume(12, 10, &["a"]).1, None, "the right was checked after it");
        assert_eq!(resume(11, 10, &["b"]).1, None, "another topic");
        let live = subscriber(&questions, 11);
        hub.join(&live, &topics(&["a", "b"]), |_| Frame::raw("hello"));
        assert_eq!((texts(&live), live.held()), (vec!["hello".to_string()], Some(13)));
    }

    #[test]
    fn a_recheck_of_many_topics_reaches_those_that_match() {
        let (hub, questions) = hub();
        let (one, other) = (subscriber(&questions, 10), subscriber(&questions, 10));
        hub.join(&one, &topics(&["boards_1"]), |_| Frame::raw("hello"));
        hub.join(&other, &topics(&["news"]), |_| Frame::raw("hello"));
        publish(&hub, 11, &[("boards_{id}", "")]);
        assert_eq!((one.held(), other.held()), (Some(11), None));
        // It is in no topic's history, so everyone with an earlier right is asked.
        let late = subscriber(&questions, 10);
        hub.join(&late, &topics(&["boards_2"]), |_| Frame::raw("hello"));
        assert_eq!(late.held(), Some(11));
    }

    #[test]
    fn after_a_reset_nobodys_right_is_known() {
        let (hub, questions) = hub();
        let (idle, asked) = (subscriber(&questions, 10), subscriber(&questions, 10));
        hub.join(&idle, &topics(&["a"]), |_| Frame::raw("hello"));
        hub.join(&asked, &topics(&["b"]), |_| Frame::raw("hello"));
        publish(&hub, 20, &[("b", "")]);
        // Ticks were lost, and the new ones have lower numbers.
        hub.reset(15, crate::stream::frame::Reset::Lost);
        assert_eq!((idle.held(), idle.ended()), (Some(15), None));
        assert!(asked.ended().is_some(), "the answer may be about the lost tick");
        let late = subscriber(&questions, 20);
        hub.join(&late, &topics(&["a"]), |_| Frame::raw("hello"));
        assert_eq!(late.held(), Some(15));
    }

    #[test]
    fn a_subscriber_that_started_with_the_rows_forgets_them_after_a_reset_whatever_it_holds_back() {
        let (hub, questions) = hub();
        let (idle, asked) = (subscriber(&questions, 10), subscriber(&questions, 10));
        for (subscriber, topic) in [(&idle, "a"), (&asked, "b")] {
            subscriber.want_rows();
            hub.join(subscriber, &topics(&[topic]), |_| Frame::raw("hello"));
        }
        publish(&hub, 20, &[("b", ""), ("b", "2")]);
        hub.reset(15, crate::stream::frame::Reset::Lost);
        let forget = String::from_utf8_lossy(Frame::forget().bytes(false)).into_owned();
        for subscriber in [idle, asked] {
            assert_eq!(subscriber.take(), ["hello", &forget, ""]);
        }
    }

    #[test]
    fn an_answer_waits_if_there_was_a_recheck_of_many_topics() {
        let (hub, questions) = hub();
        let poll = subscriber(&questions, 10);
        publish(&hub, 11, &[("boards_{id}", ""), ("boards_1", "1")]);
        let found = hub.collect(&topics(&["boards_1"]), Place::after_tick(10), 100, &poll, true);
        assert!(matches!(found, crate::stream::hub::Collected::Events(events, _) if events.len() == 1));
        assert_eq!(poll.held(), Some(11));
    }

    #[test]
    fn rechecks_of_a_topic_take_one_place_in_history() {
        let (hub, questions) = hub();
        for tick in 11..1000 {
            publish(&hub, tick, &[("a", ""), ("a", ""), ("a", "")]);
        }
        let subscriber = subscriber(&questions, 11);
        assert_eq!(hub.resume(&subscriber, &topics(&["a"]), Place::after_tick(11)), Joined::Live);
        assert_eq!((subscriber.held(), *questions.0.lock()), (Some(999), 1));
    }
}
