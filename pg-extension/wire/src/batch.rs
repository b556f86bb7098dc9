//! One tick as the text of a few notifications.
//!
//! A notification is one part of a tick: a header line `<version> <tick> <previous> <part> <parts>`, then for each
//! event a line `<n> <topic length> <event length> <payload length>` and the three texts. Lengths are in bytes. A
//! header with zero parts is a hint: the tick exists, and its events must be read from the log. `previous` is the
//! number of the previous tick, so a reader that has not seen that tick knows that it has missed something. An event
//! without a name is a [`Recheck`](crate::Recheck).
//!
//! Version 1 is a tick that was durable when it was announced. Version 2 is one that may be lost in a crash, although
//! its events are durable. A reader that knows only version 1 reads such a tick from the log.

use crate::segment::Event;
use crate::topic::check_name;

/// The longest payload that Postgres accepts in a notification, in bytes.
pub const MAX_PART: usize = 7999;

/// The text of the last notification on a channel whose name was changed.
pub const MOVED: &str = "moved";

/// The payload that asks listeners to leave the database for a moment, because a statement needs it without other
/// sessions. A proxy that does not know it reads the log instead.
pub const LEAVE: &str = "leave";

/// The version of an announcement of a tick that is durable.
const DURABLE: u64 = 1;

/// The version of an announcement of a tick that may be lost, although its events are durable.
const EARLY: u64 = 2;

/// The space that is reserved for the header line of a part.
const HEADER_ROOM: usize = 64;

/// The most digits of a `u64`.
const DIGITS: usize = 20;

/// The most parts of one tick. A larger tick becomes a hint.
pub const MAX_PARTS: u32 = 64;

/// Collects a tick's events into the texts of its notifications.
#[derive(Debug)]
pub struct Announcement {
    tick: u64,
    previous: u64,
    bodies: Vec<String>,
    /// The buffer for the line before each event.
    head: String,
    count: u32,
    fits: bool,
    version: u64,
}

impl Announcement {
    /// Starts the announcement of `tick`; `previous` is the tick before it.
    pub fn new(tick: u64, previous: u64) -> Self {
        let (bodies, head) = (Vec::new(), String::with_capacity(HEADER_ROOM));
        Self { tick, previous, bodies, head, count: 0, fits: true, version: DURABLE }
    }

    /// Adds the next event. If it doesn't fit, the announcement becomes a hint.
    pub fn push(&mut self, event: &Event<'_>) {
        self.count += 1;
        if !self.fits {
            return;
        }
        let (topic, name, payload) = (event.topic, event.event, event.payload.as_ref());
        let mut head = std::mem::take(&mut self.head);
        head.clear();
        push_numbers(&mut head, [self.count.into(), topic.len() as u64, name.len() as u64, payload.len() as u64]);
        let size = head.len() + topic.len() + name.len() + payload.len();
        let room = MAX_PART - HEADER_ROOM;
        if size > room {
            return self.make_hint();
        }
        if self.bodies.last().is_none_or(|body| body.len() + size > room) {
            if self.bodies.len() == MAX_PARTS as usize {
                return self.make_hint();
            }
            self.bodies.push(String::with_capacity(room.min(size * 4)));
        }
        if let Some(body) = self.bodies.last_mut() {
            for text in [&head, topic, name, payload] {
                body.push_str(text);
            }
        }
        self.head = head;
    }

    /// Announces a tick that may be lost in a crash, although its events are durable. A hint can't do that.
    pub fn make_early(&mut self) {
        self.version = EARLY;
    }

    /// Makes the announcement a hint.
    pub fn make_hint(&mut self) {
        self.fits = false;
        self.bodies = Vec::new();
    }

    /// Whether the announcement is a hint.
    pub fn is_hint(&self) -> bool {
        self.bodies.is_empty()
    }

    /// The notifications in the order in which they are to be sent: at least one, each at most [`MAX_PART`] bytes long.
    pub fn finish(mut self) -> Vec<String> {
        let parts = self.bodies.len();
        if parts == 0 {
            return vec![format!("{DURABLE} {} {} 0 0\n", self.tick, self.previous)];
        }
        for (i, body) in self.bodies.iter_mut().enumerate() {
            let mut header = String::with_capacity(HEADER_ROOM);
            push_numbers(&mut header, [self.version, self.tick, self.previous, i as u64 + 1, parts as u64]);
            body.insert_str(0, &header);
        }
        self.bodies
    }
}

/// Adds a line of numbers. The relay adds two for each tick, so this is faster than the standard library's formatting.
fn push_numbers<const N: usize>(text: &mut String, numbers: [u64; N]) {
    // From the end, because division finds the last digit first.
    let mut space = [[0; DIGITS + 1]; N];
    let line = space.as_flattened_mut();
    let mut start = line.len();
    let mut put = |byte| {
        start -= 1;
        line[start] = byte;
    };
    let mut end = b'\n';
    for mut rest in numbers.into_iter().rev() {
        put(end);
        end = b' ';
        loop {
            put(b'0' + (rest % 10) as u8);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
    }
    text.push_str(std::str::from_utf8(&line[start..]).unwrap_or_default());
}

/// A parsed notification.
#[derive(Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// The tick.
    pub tick: u64,
    /// The previous tick; 0 if there is none.
    pub previous: u64,
    /// The number of this part, from 1; 0 in a hint.
    pub part: u32,
    /// The number of parts of the tick; 0 in a hint.
    pub parts: u32,
    /// The tick was durable when it was announced.
    pub is_durable: bool,
    /// The events with their numbers within the tick, in ascending order from 1.
    pub events: Vec<(u32, Event<'a>)>,
}

/// The text is not a notification of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The header line is malformed.
    #[error("malformed header")]
    Header,
    /// The header names a format this build doesn't know.
    #[error("unknown version")]
    Version,
    /// An event is malformed or cut short.
    #[error("malformed event")]
    Event,
}

impl<'a> Part<'a> {
    /// Parses the payload of a notification.
    pub fn parse(text: &'a str) -> Result<Self, BatchError> {
        let (header, mut rest) = text.split_once('\n').ok_or(BatchError::Header)?;
        let [version, tick, previous, part, parts] = numbers(header).ok_or(BatchError::Header)?;
        if version != DURABLE && version != EARLY {
            return Err(BatchError::Version);
        }
        let is_durable = version == DURABLE;
        let (part, parts) = match (u32::try_from(part), u32::try_from(parts)) {
            (Ok(part), Ok(parts)) if parts <= MAX_PARTS && part <= parts && (part > 0) == (parts > 0) => (part, parts),
            _ => return Err(BatchError::Header),
        };
        if previous >= tick || (parts == 0) != rest.is_empty() || (parts == 0 && !is_durable) {
            return Err(BatchError::Header);
        }
        let mut events: Vec<(u32, Event<'a>)> = Vec::new();
        while !rest.is_empty() {
            let (n, event, after) = event(rest).ok_or(BatchError::Event)?;
            if n <= events.last().map_or(0, |last| last.0) {
                return Err(BatchError::Event);
            }
            events.push((n, event));
            rest = after;
        }
        Ok(Self { tick, previous, part, parts, is_durable, events })
    }

    /// Whether this is a hint: the events must be read from the log.
    pub fn is_hint(&self) -> bool {
        self.parts == 0
    }
}

fn event(text: &str) -> Option<(u32, Event<'_>, &str)> {
    let (head, rest) = text.split_once('\n')?;
    let [n, topic, event, payload] = numbers(head)?;
    let (topic, rest) = rest.split_at_checked(usize::try_from(topic).ok()?)?;
    let (event, rest) = rest.split_at_checked(usize::try_from(event).ok()?)?;
    let (payload, rest) = rest.split_at_checked(usize::try_from(payload).ok()?)?;
    let event = Event { topic, event, payload: payload.into() };
    check_name(topic).ok()?;
    if event.as_recheck().is_none() {
        check_name(event.event).ok()?;
    }
    Some((u32::try_from(n).ok()?, event, rest))
}

/// Exactly `N` numbers, separated by one blank each.
fn numbers<const N: usize>(line: &str) -> Option<[u64; N]> {
    let mut out = [0; N];
    let mut fields = line.split(' ');
    for slot in &mut out {
        let field = fields.next().filter(|f| !f.is_empty() && f.bytes().all(|b| b.is_ascii_digit()))?;
        *slot = field.parse::<i64>().ok()?.unsigned_abs();
    }
    fields.next().is_none().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Recheck;
    use proptest::prelude::*;

    fn announce(events: &[(String, String, String)]) -> Vec<String> {
        let mut announcement = Announcement::new(20, 10);
        for (topic, event, payload) in events {
            announcement.push(&Event { topic, event, payload: payload.into() });
        }
        announcement.finish()
    }

    proptest! {
        #[test]
        fn parts_hold_the_tick(events in prop::collection::vec(("\\PC{1,40}", "[a-z]{1,9}", "(?s).{0,900}"), 1..40)) {
            let texts = announce(&events);
            let mut back = Vec::new();
            for (i, text) in texts.iter().enumerate() {
                prop_assert!(text.len() <= MAX_PART);
                let part = Part::parse(text).unwrap();
                prop_assert_eq!((part.tick, part.previous, part.part, part.parts), (20, 10, i as u32 + 1, texts.len() as u32));
                back.extend(part.events);
            }
            prop_assert!(back.iter().enumerate().all(|(i, (n, _))| *n == i as u32 + 1));
            let back: Vec<_> = back.iter().map(|(_, e)| (e.topic.into(), e.event.into(), e.payload.to_string())).collect();
            prop_assert_eq!(back, events);
        }

        #[test]
        fn no_text_breaks_the_parser(text in "(?s).{0,80}", head in "1 [0-9]{1,3} [0-9]{1,2} [0-9] [0-9]\n([0-9] [0-9] [0-9] [0-9]\n)?") {
            let _ = Part::parse(&text);
            let _ = Part::parse(&format!("{head}{text}"));
        }

        #[test]
        fn a_mangled_part_is_refused_or_still_whole(at in 0usize..60, byte in any::<u8>()) {
            let text = announce(&[("topic".into(), "changed".into(), "{\"a\": \"ü\"}".into())]).remove(0);
            let mut bytes = text.into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(text) = String::from_utf8(bytes) && let Ok(part) = Part::parse(&text) {
                let is_named = |e: &Event<'_>| e.as_recheck().is_some() || check_name(e.event).is_ok();
                prop_assert!(part.events.iter().all(|(n, e)| *n > 0 && check_name(e.topic).is_ok() && is_named(e)));
            }
        }
    }

    #[test]
    fn a_recheck_arrives_as_one() {
        let rechecks = [Recheck::Topic("boards_5"), Recheck::Matching("boards_{id}")];
        let mut announcement = Announcement::new(20, 10);
        rechecks.iter().for_each(|recheck| announcement.push(&Event::recheck(*recheck)));
        let texts = announcement.finish();
        let events = Part::parse(&texts[0]).unwrap().events;
        assert_eq!(events.iter().filter_map(|(_, event)| event.as_recheck()).collect::<Vec<_>>(), rechecks);
    }

    #[test]
    fn what_does_not_fit_becomes_a_hint() {
        let large = announce(&[("t".into(), "e".into(), "x".repeat(MAX_PART))]);
        let many = announce(&vec![("t".into(), "e".into(), "x".repeat(5000)); MAX_PARTS as usize + 1]);
        for texts in [large, many, announce(&[])] {
            assert_eq!(texts, ["1 20 10 0 0\n"]);
            assert!(Part::parse(&texts[0]).unwrap().is_hint());
        }
    }

    #[test]
    fn a_tick_that_may_be_lost_says_so() {
        let event = Event { topic: "t", event: "e", payload: "1".into() };
        for is_durable in [true, false] {
            let mut announcement = Announcement::new(20, 10);
            announcement.push(&event);
            if !is_durable {
                announcement.make_early();
            }
            let texts = announcement.finish();
            assert_eq!(texts[0].starts_with("1 20 10 1 1\n"), is_durable, "what older proxies can read");
            assert_eq!(Part::parse(&texts[0]).unwrap().is_durable, is_durable);
        }
    }

    #[test]
    fn a_header_must_make_sense() {
        for text in [
            "",
            "1 20 10 0 0",
            "1 20 10 1 1\n",
            "1 20 20 0 0\n",
            "1 20 10 2 1\n1 1 1 0\nte",
            "1 20 10 1 65\n1 1 1 0\nte",
        ] {
            assert_eq!(Part::parse(text), Err(BatchError::Header), "{text:?}");
        }
        assert_eq!(Part::parse("3 20 10 0 0\n"), Err(BatchError::Version));
        assert_eq!(Part::parse("2 20 10 0 0\n"), Err(BatchError::Header), "a hint of a tick that may be lost");
        for text in ["1 1 1\nte", "1 1 1 5\nte", "0 1 1 0\nte", "1 1 1 0\n\u{1}e", "1 1 1 0\nte1 1 1 0\nte"] {
            assert_eq!(Part::parse(&format!("1 20 10 1 1\n{text}")), Err(BatchError::Event), "{text:?}");
        }
    }
}
