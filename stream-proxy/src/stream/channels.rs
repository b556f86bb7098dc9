//! `/channels/NAME`: plain `LISTEN NAME` for many clients over one connection. There is no history and no position. If
//! the upstream connection breaks, or notifications are dropped, clients get `event: reset`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;

use crate::metrics::Metrics;
use crate::stream::frame::Frame;
use crate::stream::subscriber::{End, Subscriber};
use crate::stream::tally::Tally;

/// Postgres truncates longer names, so two names could become one.
const MAX_NAME: usize = 63;

/// How many refused names are remembered. Beyond that all are forgotten, and each is refused by the database again.
const MAX_REFUSED: usize = 1024;

/// The most channels that the upstream starts or stops listening to at a time, which takes a few milliseconds. Then it
/// handles the notifications that have arrived, so that events do not wait while thousands of channels open.
const TURN: usize = 32;

/// A pattern of channel names: `*` stands for any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Pattern {
    /// Whether `name` matches this pattern.
    pub fn matches(&self, name: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else { return self.0 == name };
        let Some(mut left) = name.strip_prefix(head) else { return false };
        let mut parts: Vec<_> = rest.split('*').collect();
        let tail = parts.pop().unwrap_or("");
        for part in parts {
            // The first match is the best: it leaves the most text for the rest of the pattern.
            let Some(at) = left.find(part) else { return false };
            left = &left[at + part.len()..];
        }
        left.ends_with(tail)
    }
}

/// Why a channel is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No `--channel` pattern matches it.
    Outside,
    /// It is not the name of a channel.
    BadName,
    /// The database can't listen to it.
    NotInDatabase,
}

/// Channels and their subscribers.
#[derive(Debug)]
pub struct Channels {
    patterns: Vec<Pattern>,
    metrics: Arc<Metrics>,
    inner: Mutex<HashMap<Arc<str>, Channel>>,
    /// Names that the upstream's current database can't listen on.
    refused: Mutex<HashSet<Arc<str>>>,
    /// Channels that got their first subscriber or lost their last since the upstream took their names.
    changes: Mutex<Changes>,
    /// Wakes the upstream when there are any.
    changed: Notify,
}

/// A queue of names, each of which is in it only once, so that no channel is delayed by others that open and close
/// again and again.
#[derive(Debug, Default)]
struct Changes {
    order: VecDeque<Arc<str>>,
    members: HashSet<Arc<str>>,
}

impl Changes {
    fn add(&mut self, name: &Arc<str>) {
        if self.members.insert(name.clone()) {
            self.order.push_back(name.clone());
        }
    }

    /// The next names, at most as many as are handled at a time.
    fn take(&mut self) -> Vec<Arc<str>> {
        let turn: Vec<_> = self.order.drain(..self.order.len().min(TURN)).collect();
        turn.iter().for_each(|name| _ = self.members.remove(name));
        if self.order.is_empty() {
            // A flood of names leaves no memory allocated.
            *self = Self::default();
        }
        turn
    }
}

#[derive(Debug, Default)]
struct Channel {
    subscribers: Slab<Arc<Subscriber>>,
    /// Whether the upstream listens to it.
    open: bool,
}

impl Channels {
    /// Channels with names that match these patterns.
    pub fn new(patterns: Vec<Pattern>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            patterns,
            metrics,
            inner: Mutex::default(),
            refused: Mutex::default(),
            changes: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Whether any channel can be served.
    pub fn enabled(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// Checks a name that a client asks for.
    pub fn check(&self, name: &str) -> Result<(), Refused> {
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(Refused::BadName);
        }
        if !self.patterns.iter().any(|pattern| pattern.matches(name)) {
            return Err(Refused::Outside);
        }
        if self.refused.lock().contains(name) { Err(Refused::NotInDatabase) } else { Ok(()) }
    }

    /// Adds a subscriber. It is greeted as soon as the upstream listens; notifications from then on arrive.
    pub fn join(&self, name: &Arc<str>, subscriber: &Arc<Subscriber>) {
        let mut inner = self.inner.lock();
        let channel = inner.entry(name.clone()).or_default();
        let seat = channel.subscribers.insert(subscriber.clone());
        if channel.open {
            subscriber.push(Frame::greeting());
        } else {
            self.change(name);
        }
        if subscriber.sit([(name.clone(), seat)].into(), false).is_err() {
            channel.subscribers.try_remove(seat);
        }
    }

    /// Removes a subscriber.
    pub fn leave(&self, subscriber: &Subscriber) {
        let mut inner = self.inner.lock();
        for (name, seat) in subscriber.leave() {
            // After a refusal, another channel may have this name, and another subscriber this seat.
            if let Some(channel) = inner.get_mut(&name)
                && channel.subscribers.get(seat).is_some_and(|there| std::ptr::eq(&**there, subscriber))
            {
                channel.subscribers.remove(seat);
                if channel.subscribers.is_empty() {
                    inner.remove(&name);
                    self.change(&name);
                }
            }
        }
    }

    /// Waits until the wanted channels have changed.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn change(&self, name: &Arc<str>) {
        self.changes.lock().add(name);
        self.changed.notify_one();
    }

    /// The next channels that may have become wanted or unwanted, a bounded number. If there are more,
    /// [`Self::changed`] is ready again.
    pub fn take_changes(&self) -> Vec<Arc<str>> {
        let mut changes = self.changes.lock();
        let turn = changes.take();
        if !changes.order.is_empty() {
            self.changed.notify_one();
        }
        turn
    }

    /// Whether the channel has a subscriber now.
    pub fn is_wanted(&self, name: &str) -> bool {
        self.inner.lock().contains_key(name)
    }

    /// Notes that the upstream listens to a channel, and greets the subscribers that wait for it.
    pub fn opened(&self, name: &str) {
        if let Some(channel) = self.inner.lock().get_mut(name)
            && !std::mem::replace(&mut channel.open, true)
        {
            self.send(channel, &Frame::greeting());
        }
    }

    /// Notes that the database can't listen on a channel: streams that wait for it end, and later requests are refused.
    pub fn refuse(&self, name: &Arc<str>) {
        let mut refused = self.refused.lock();
        if refused.len() >= MAX_REFUSED {
            refused.clear();
        }
        refused.insert(name.clone());
        drop(refused);
        if let Some(channel) = self.inner.lock().remove(name) {
            for (_, subscriber) in &channel.subscribers {
                subscriber.close(End::Finished);
            }
        }
    }

    /// Notes that the upstream connection broke. Notifications are lost now, so clients get `event: reset`, and the
    /// next connection has to listen to all channels again.
    pub fn closed(&self) {
        // The next connection may lead to another database.
        self.refused.lock().clear();
        for (name, channel) in self.inner.lock().iter_mut() {
            self.change(name);
            if std::mem::take(&mut channel.open) {
                self.send(channel, &Frame::message(Some("reset"), r#"{"reason":"upstream"}"#));
            }
        }
    }

    /// Notes that notifications of a channel were dropped here: its clients get `event: reset`.
    pub fn lost(&self, name: &str) {
        if let Some(channel) = self.inner.lock().get(name) {
            tracing::debug!(channel = name, "notifications were dropped because too many were waiting");
            self.metrics.resets_channel.add(channel.subscribers.len() as u64);
            self.send(channel, &Frame::message(Some("reset"), r#"{"reason":"overflow"}"#));
        }
    }

    /// Sends a notification to the channel's subscribers.
    pub fn notified(&self, name: &str, payload: &str) {
        if let Some(channel) = self.inner.lock().get(name) {
            self.metrics.events_in.add(1);
            self.send(channel, &Frame::message(None, payload));
        }
    }

    fn send(&self, channel: &Channel, frame: &Frame) {
        let mut tally = Tally::default();
        for (_, subscriber) in &channel.subscribers {
            tally.push(subscriber, frame);
        }
        tally.count(&self.metrics);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Waker};

    #[test]
    fn patterns_match_whole_names() {
        let matches = |pattern: &str, name| Pattern(pattern.into()).matches(name);
        for (pattern, name) in
            [("a", "a"), ("boards_*", "boards_5"), ("*", "x"), ("*_x_*", "a_x_b"), ("a*a", "aa"), ("a*b*c", "axbxbc")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("a", "ab"), ("boards_*", "board_5"), ("a*a", "a"), ("*x", "xy"), ("a*b*c", "acb"), ("", "a")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn names_outside_the_patterns_or_too_long_are_refused() {
        let channels = Channels::new(vec!["boards_*".to_string().into()], Arc::default());
        assert_eq!(channels.check("boards_5"), Ok(()));
        assert_eq!(channels.check("users_5"), Err(Refused::Outside));
        for bad in ["", "boards_\n", &format!("boards_{}", "x".repeat(60))] {
            assert_eq!(channels.check(bad), Err(Refused::BadName));
        }
    }

    #[test]
    fn a_refused_channel_ends_its_streams_and_no_others() {
        let channels = Channels::new(vec!["*".to_string().into()], Arc::default());
        let name: Arc<str> = "a".into();
        let (first, second) = (Subscriber::new(1000), Subscriber::new(1000));
        channels.join(&name, &first);
        channels.refuse(&name);
        assert_eq!((first.ended(), channels.check("a")), (Some(End::Finished), Err(Refused::NotInDatabase)));
        // The second subscriber joined before the refusal was known, and the first one leaves only afterwards.
        channels.join(&name, &second);
        channels.leave(&first);
        assert!(channels.is_wanted("a"));
        channels.refuse(&name);
        assert_eq!(second.ended(), Some(End::Finished));
        channels.closed();
        assert_eq!(channels.check("a"), Ok(()));
    }

    /// The names that the upstream gets next, and whether there are more.
    fn turn(channels: &Channels) -> (Vec<String>, bool) {
        let names = channels.take_changes().iter().map(|name| name.to_string()).collect();
        let mut changed = std::pin::pin!(channels.changed());
        (names, changed.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready())
    }

    #[test]
    fn thousands_of_channels_open_a_few_at_a_time_and_none_is_delayed_by_others_that_reopen() {
        let channels = Channels::new(vec!["*".to_string().into()], Arc::default());
        let names: Vec<Arc<str>> = (0..10 * TURN).map(|n| n.to_string().into()).collect();
        let first = Subscriber::new(1000);
        channels.join(&names[0], &first);
        for name in &names[1..] {
            channels.join(name, &Subscriber::new(1000));
        }
        // The first subscriber leaves and joins again all the time, and its channel is in the queue only once.
        for _ in 0..3 * TURN {
            channels.leave(&first);
            channels.join(&names[0], &first);
        }
        for expected in names.chunks(TURN) {
            let is_last = expected.last() == names.last();
            assert_eq!(turn(&channels), (expected.iter().map(|name| name.to_string()).collect(), !is_last));
        }
        assert_eq!(turn(&channels), (Vec::new(), false));
        // The next connection gets all of them again, once each.
        channels.closed();
        channels.closed();
        let again: HashSet<String> = (0..10).flat_map(|_| turn(&channels).0).collect();
        assert_eq!((again.len(), turn(&channels)), (names.len(), (Vec::new(), false)));
    }

    #[test]
    fn a_channel_is_wanted_from_its_first_subscriber_to_its_last() {
        let channels = Channels::new(vec!["*".to_string().into()], Arc::default());
        let name: Arc<str> = "a".into();
        let (first, second) = (Subscriber::new(1000), Subscriber::new(1000));
        channels.join(&name, &first);
        assert_eq!(first.take().concat(), "", "nobody listens yet");
        channels.opened("a");
        channels.join(&name, &second);
        channels.notified("a", "x\ny");
        assert_eq!(first.take().concat(), ": tidings\n\ndata: x\ndata: y\n\n");
        assert_eq!(second.take().concat(), ": tidings\n\ndata: x\ndata: y\n\n");
        channels.lost("a");
        channels.lost("b");
        assert_eq!(first.take().concat(), "event: reset\ndata: {\"reason\":\"overflow\"}\n\n");
        channels.leave(&first);
        assert!(channels.is_wanted("a"));
        channels.closed();
        assert!(second.take().concat().contains("event: reset\n"));
        channels.leave(&second);
        assert!(!channels.is_wanted("a"));
    }
}
