//! `/channels/NAME`: plain `LISTEN NAME` for many clients over the one connection. No history, no positions; who was
//! connected while the upstream was away is told so.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;

use crate::metrics::Metrics;
use crate::stream::frame::Frame;
use crate::stream::subscriber::{End, Pushed, Subscriber};

/// Postgres cuts longer names, and two names would become one.
const MAX_NAME: usize = 63;

/// The most refused names that are remembered. When there are more, all are dropped, and each is found out again.
const MAX_REFUSED: usize = 1024;

/// A pattern of channel names: `*` stands for any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Pattern {
    /// Whether `name` is of this pattern.
    pub fn matches(&self, name: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else { return self.0 == name };
        let Some(mut left) = name.strip_prefix(head) else { return false };
        let mut parts: Vec<_> = rest.split('*').collect();
        let tail = parts.pop().unwrap_or("");
        for part in parts {
            // The first place is as good as any: what follows has the more to choose from.
            let Some(at) = left.find(part) else { return false };
            left = &left[at + part.len()..];
        }
        left.ends_with(tail)
    }
}

/// Why a channel is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is of no `--channel` pattern.
    Outside,
    /// It is no name of a channel.
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
    /// Wakes the upstream when a channel is wanted for the first time or no more.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Channel {
    subscribers: Slab<Arc<Subscriber>>,
    /// Whether the upstream listens to it.
    open: bool,
}

impl Channels {
    /// Channels of these patterns.
    pub fn new(patterns: Vec<Pattern>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { patterns, metrics, inner: Mutex::default(), refused: Mutex::default(), changed: Notify::new() })
    }

    /// Whether there can be any.
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

    /// Takes a subscriber in. It is greeted as soon as the upstream listens: what is notified from then on arrives.
    pub fn join(&self, name: &Arc<str>, subscriber: &Arc<Subscriber>) {
        let mut inner = self.inner.lock();
        let channel = inner.entry(name.clone()).or_default();
        let seat = channel.subscribers.insert(subscriber.clone());
        if channel.open {
            subscriber.push(Frame::greeting());
        } else {
            self.changed.notify_one();
        }
        if subscriber.sit([(name.clone(), seat)].into(), false).is_err() {
            channel.subscribers.try_remove(seat);
        }
    }

    /// Takes a subscriber out.
    pub fn leave(&self, subscriber: &Subscriber) {
        let mut inner = self.inner.lock();
        for (name, seat) in subscriber.leave() {
            // After a refusal, the channel may be another one, and the seat somebody else's.
            if let Some(channel) = inner.get_mut(&name)
                && channel.subscribers.get(seat).is_some_and(|there| std::ptr::eq(&**there, subscriber))
            {
                channel.subscribers.remove(seat);
                if channel.subscribers.is_empty() {
                    inner.remove(&name);
                    self.changed.notify_one();
                }
            }
        }
    }

    /// Waits until other channels are wanted than before.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The channels that are wanted now.
    pub fn wanted(&self) -> BTreeSet<Arc<str>> {
        self.inner.lock().keys().cloned().collect()
    }

    /// Says that the upstream listens to a channel: those who wait for it are greeted.
    pub fn opened(&self, name: &str) {
        if let Some(channel) = self.inner.lock().get_mut(name)
            && !std::mem::replace(&mut channel.open, true)
        {
            self.send(channel, &Frame::greeting());
        }
    }

    /// Reports that the database can't listen on a channel: streams that wait for it end, and later requests are
    /// refused.
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

    /// Says that the upstream is gone: what is notified now is lost, so everyone is told to read their data again.
    pub fn closed(&self) {
        // The next connection may lead to another database.
        self.refused.lock().clear();
        for channel in self.inner.lock().values_mut() {
            if std::mem::take(&mut channel.open) {
                self.send(channel, &Frame::message(Some("reset"), r#"{"reason":"upstream"}"#));
            }
        }
    }

    /// Reports that notifications of a channel were dropped here: its clients get `event: reset`.
    pub fn lost(&self, name: &str) {
        if let Some(channel) = self.inner.lock().get(name) {
            tracing::debug!(channel = name, "notifications were dropped because too many were waiting");
            self.metrics.resets_channel.add(channel.subscribers.len() as u64);
            self.send(channel, &Frame::message(Some("reset"), r#"{"reason":"overflow"}"#));
        }
    }

    /// Hands on a notification.
    pub fn notified(&self, name: &str, payload: &str) {
        if let Some(channel) = self.inner.lock().get(name) {
            self.metrics.events_in.add(1);
            self.send(channel, &Frame::message(None, payload));
        }
    }

    fn send(&self, channel: &Channel, frame: &Frame) {
        for (_, subscriber) in &channel.subscribers {
            match subscriber.push(frame.clone()) {
                Pushed::Waiting(_) => self.metrics.events_out.add(1),
                Pushed::Overflow => self.metrics.evicted_overflow.add(1),
                Pushed::Ended => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    fn take(subscriber: &Subscriber) -> String {
        match subscriber.poll_frames(&Context::from_waker(Waker::noop()), 0) {
            Poll::Ready(Some(frames)) => {
                frames.iter().map(|f| String::from_utf8_lossy(f.bytes(false)).into_owned()).collect()
            }
            _ => String::new(),
        }
    }

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
        // Somebody came in before that was known, and the first one leaves only then.
        channels.join(&name, &second);
        channels.leave(&first);
        assert!(channels.wanted().contains(&name));
        channels.refuse(&name);
        assert_eq!(second.ended(), Some(End::Finished));
        channels.closed();
        assert_eq!(channels.check("a"), Ok(()));
    }

    #[test]
    fn a_channel_is_wanted_from_its_first_subscriber_to_its_last() {
        let channels = Channels::new(vec!["*".to_string().into()], Arc::default());
        let name: Arc<str> = "a".into();
        let (first, second) = (Subscriber::new(1000), Subscriber::new(1000));
        channels.join(&name, &first);
        assert_eq!(take(&first), "", "nobody listens yet");
        channels.opened("a");
        channels.join(&name, &second);
        channels.notified("a", "x\ny");
        assert_eq!(take(&first), ": tidings\n\ndata: x\ndata: y\n\n");
        assert_eq!(take(&second), ": tidings\n\ndata: x\ndata: y\n\n");
        channels.lost("a");
        channels.lost("b");
        assert_eq!(take(&first), "event: reset\ndata: {\"reason\":\"overflow\"}\n\n");
        channels.leave(&first);
        assert!(channels.wanted().contains(&name));
        channels.closed();
        assert!(take(&second).contains("event: reset\n"));
        channels.leave(&second);
        assert!(channels.wanted().is_empty());
    }
}
