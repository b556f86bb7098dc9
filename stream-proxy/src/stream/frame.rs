//! How an event is encoded in a Server-Sent Events stream. Not here: who gets it.
//!
//! A frame is encoded once, and all subscribers share its bytes.

use std::fmt::{Display, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings_wire::Position;

/// Room before a body for the head of its chunk: nine digits, more than any payload needs, and a line break.
const HEAD_ROOM: &str = "000000000\r\n";

/// The start of a stream before the rows that are there: a value of `since`, and the id of the reset before the rows.
pub const SNAPSHOT: &str = "snapshot";

/// The `head` of a frame that is never written: a recheck.
const RECHECK: u8 = u8::MAX;

/// The `head` of a recheck of all topics that match a template.
const RECHECK_MATCHING: u8 = u8::MAX - 1;

/// The end of a chunk.
const TAIL: &str = "\r\n";

/// Bytes that are written to a stream unchanged. Over HTTP/1.1 a stream is chunked, so a frame is one chunk. Where the
/// protocol has its own framing, the content is sent without the chunk's head and tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    bytes: Bytes,
    /// The length of the chunk's head; 0 for bytes that are not a chunk, and one of two numbers for a recheck.
    head: u8,
}

/// Why a client has to read its data again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Events after its position have expired.
    Expired,
    /// A failover or a restore lost changes that the client may have seen.
    Lost,
}

impl Reset {
    /// Its name in the reset's data.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Lost => "lost",
        }
    }
}

/// Why a stream ends, or does not begin: the reason in `event: unauthorized`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthorized {
    /// The token has expired. A page that has renewed it continues from its last id.
    Expired,
    /// Access was revoked.
    Revoked,
}

impl Frame {
    /// One event. Every line break in the payload starts a new `data` line, so no content can forge a field.
    pub fn event(id: impl Display, name: &str, payload: &str) -> Self {
        Self::chunked(payload.len() + name.len() + 64, |text| push_event(text, id, name, payload))
    }

    /// A message without a position: a client's last event id does not change.
    pub fn message(name: Option<&str>, payload: &str) -> Self {
        Self::chunked(payload.len() + 32, |text| {
            if let Some(name) = name {
                push_name(text, name);
            }
            push_data(text, payload);
        })
    }

    /// Rows, each as an event without a position: a client that is cut off among them starts over.
    pub fn rows<'r>(rows: impl Iterator<Item = (&'r str, &'r str)>) -> Self {
        Self::chunked(64 * 1024, |text| {
            for (name, payload) in rows {
                push_name(text, name);
                push_data(text, payload);
            }
        })
    }

    /// Tells a client to forget its rows, because those that are there now follow. From here on its last event id is
    /// `snapshot`: a client that is cut off before it has all rows starts over. With the id that it had before, another
    /// proxy might serve it only what came since.
    pub fn forget() -> Self {
        Self::event(SNAPSHOT, "reset", r#"{"reason":"snapshot"}"#)
    }

    /// Says that all rows of the topics have been sent, and that the stream continues after `at`.
    pub fn ready(at: &Position, topics: &[Arc<str>]) -> Self {
        let topics: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
        Self::event(at, "ready", &serde_json::json!({ "topics": topics }).to_string())
    }

    /// The first bytes of a stream: how long to wait before reconnecting, how often to expect a sign of life, and, for
    /// a stream that starts now, its position. A client that is cut off before its first event resumes from there.
    pub fn hello(retry: Duration, heartbeat: Duration, at: Option<Position>) -> Self {
        Self::chunked(112, |text| {
            let (retry, heartbeat) = (retry.as_millis(), heartbeat.as_millis());
            let _ = writeln!(text, "retry: {retry}\n: tidings\n: heartbeat={heartbeat}");
            match at {
                Some(at) => push_position(text, at),
                None => text.push('\n'),
            }
        })
    }

    /// A part of a text that is sent in the place of a stream.
    pub fn text(text: &str) -> Self {
        Self::chunked(text.len(), |out| out.push_str(text))
    }

    /// White space between two such parts: a sign of life.
    pub fn padding() -> Self {
        Self { bytes: Bytes::from_static(b"1\r\n\n\r\n"), head: 3 }
    }

    /// The id, the name and the data of an event that is one of ours, as an EventSource would read them.
    pub fn fields(&self) -> (String, String, String) {
        let (mut id, mut event, mut data) = (String::new(), String::new(), Vec::new());
        let text = String::from_utf8_lossy(self.bytes(false));
        for (field, value) in text.lines().filter_map(|line| line.split_once(": ")) {
            match field {
                "id" => id = value.to_owned(),
                "event" => event = value.to_owned(),
                "data" => data.push(value),
                _ => {}
            }
        }
        (id, event, data.join("\n"))
    }

    /// The comment that marks the beginning of a channel's stream.
    pub fn greeting() -> Self {
        Self { bytes: Bytes::from_static(b"b\r\n: tidings\n\n\r\n"), head: 3 }
    }

    /// How long a client should wait before it reconnects.
    pub fn retry(retry: Duration) -> Self {
        Self::chunked(24, |text| {
            let _ = write!(text, "retry: {}\n\n", retry.as_millis());
        })
    }

    /// Says that the client's position can't be served: the client should read its data again and continue from `at`.
    pub fn reset(at: Position, why: Reset) -> Self {
        Self::event(at, "reset", &format!("{{\"reason\":\"{}\"}}", why.name()))
    }

    /// Tells the page that its access has ended. Its last event id stays.
    pub fn unauthorized(why: Unauthorized) -> Self {
        let reason = match why {
            Unauthorized::Expired => r#"{"reason":"expired"}"#,
            Unauthorized::Revoked => r#"{"reason":"revoked"}"#,
        };
        Self::message(Some("unauthorized"), reason)
    }

    /// Advances a client's last event id, so that it can resume from memory even if its topics are quiet. It is an
    /// event because browsers and libraries drop an id without data, although the standard says otherwise. Only a
    /// handler for this event name would see it.
    pub fn position(at: Position) -> Self {
        Self::chunked(64, |text| push_position(text, at))
    }

    /// Keeps an idle connection alive.
    pub fn heartbeat() -> Self {
        Self { bytes: Bytes::from_static(b"3\r\n:\n\n\r\n"), head: 3 }
    }

    /// The end of a stream: the last chunk, which is empty.
    pub fn end() -> Self {
        Self { bytes: Bytes::from_static(b"0\r\n\r\n"), head: 3 }
    }

    /// Bytes that are not a frame but are written in the same way: the head of a response.
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), head: 0 }
    }

    /// Not to be written: in tick `tick`, the right to the topic may have been taken away. What comes after this must
    /// wait until it has been checked again. `is_matching` if the topic is a template.
    pub fn recheck(tick: u64, is_matching: bool) -> Self {
        let head = if is_matching { RECHECK_MATCHING } else { RECHECK };
        Self { bytes: Bytes::copy_from_slice(&tick.to_le_bytes()), head }
    }

    /// The tick, if this is a recheck.
    pub fn as_recheck(&self) -> Option<u64> {
        let is_recheck = self.head >= RECHECK_MATCHING;
        self.bytes.first_chunk().filter(|_| is_recheck).map(|tick| u64::from_le_bytes(*tick))
    }

    /// Whether this is a recheck of all topics that match a template.
    pub fn is_matching(&self) -> bool {
        self.head == RECHECK_MATCHING
    }

    /// What is left of a chunk of which `written` bytes have been written.
    pub fn rest(&self, written: usize) -> Self {
        Self { bytes: self.bytes.slice(written..), head: 0 }
    }

    /// Whether a stream would be broken without these bytes: the head of a response, or what is left of a chunk.
    pub fn is_raw(&self) -> bool {
        self.head == 0
    }

    /// A frame of what `write` writes, about `capacity` bytes.
    fn chunked(capacity: usize, write: impl FnOnce(&mut String)) -> Self {
        let mut text = begin_chunk(capacity);
        write(&mut text);
        Self::of_chunk(text)
    }

    /// A frame of a text that [`begin_chunk`] has begun.
    fn of_chunk(mut text: String) -> Self {
        let digits = format!("{:x}", text.len() - HEAD_ROOM.len());
        text.push_str(TAIL);
        let line_end = HEAD_ROOM.len() - TAIL.len();
        let start = line_end.saturating_sub(digits.len());
        text.replace_range(start..line_end, &digits);
        Self { bytes: Bytes::from(text).slice(start..), head: (digits.len() + TAIL.len()) as u8 }
    }

    /// The length in bytes, with the chunk's head and tail: its size in queues and in history. Never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The frame as written: as a chunk, or without the chunk's head and tail.
    pub fn bytes(&self, chunked: bool) -> &[u8] {
        if chunked { &self.bytes } else { &self.bytes[self.body()] }
    }

    /// The content of the chunk, which keeps no other reference to the frame. Empty at the end of a stream.
    pub fn into_body(self) -> Bytes {
        self.bytes.slice(self.body())
    }

    fn body(&self) -> Range<usize> {
        match self.head {
            0 => 0..self.bytes.len(),
            RECHECK | RECHECK_MATCHING => 0..0,
            head => head.into()..self.bytes.len() - TAIL.len(),
        }
    }
}

/// Events that become one frame.
#[derive(Debug)]
pub struct Joined {
    text: String,
    /// How many there are.
    count: u64,
    /// About how many bytes they will have.
    capacity: usize,
}

impl Joined {
    /// None yet.
    pub fn new(capacity: usize) -> Self {
        Self { text: String::new(), count: 0, capacity }
    }

    /// Adds an event.
    pub fn add(&mut self, id: impl Display, name: &str, payload: &str) {
        if self.count == 0 {
            self.text = begin_chunk(self.capacity);
        }
        self.count += 1;
        push_event(&mut self.text, id, name, payload);
    }

    /// How many events there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The bytes so far.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// The events as a frame; there is at least one. Then there are none.
    pub fn take(&mut self) -> Frame {
        self.count = 0;
        let mut text = std::mem::take(&mut self.text);
        if text.capacity() > 2 * text.len() {
            // It counts with its length where it waits, so it must not take much more memory.
            text.shrink_to(text.len() + TAIL.len());
        }
        Frame::of_chunk(text)
    }
}

/// A text of about `capacity` bytes with room for the head of its chunk.
fn begin_chunk(capacity: usize) -> String {
    let mut text = String::with_capacity(HEAD_ROOM.len() + capacity + TAIL.len());
    text.push_str(HEAD_ROOM);
    text
}

fn push_event(text: &mut String, id: impl Display, name: &str, payload: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "id: {id}");
    push_name(text, name);
    push_data(text, payload);
}

/// An event that only updates the client's last event id.
fn push_position(text: &mut String, at: Position) {
    let _ = write!(text, "id: {at}\nevent: position\ndata: {{}}\n\n");
}

fn push_name(text: &mut String, name: &str) {
    text.push_str("event: ");
    // Names contain no control characters by contract, but a stream must not depend on it.
    text.extend(name.chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }));
    text.push('\n');
}

fn push_data(text: &mut String, payload: &str) {
    let mut rest = payload;
    loop {
        text.push_str("data: ");
        let Some(end) = memchr::memchr2(b'\n', b'\r', rest.as_bytes()) else { break };
        text.push_str(&rest[..end]);
        text.push('\n');
        rest = rest[end..].strip_prefix("\r\n").unwrap_or(&rest[end + 1..]);
    }
    text.push_str(rest);
    text.push_str("\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(frame: &Frame) -> &str {
        std::str::from_utf8(frame.bytes(false)).unwrap()
    }

    /// What a standard client reads from a frame: its id, event name and data.
    fn read(frame: &str) -> Vec<(String, String, String)> {
        let (mut id, mut name, mut data, mut seen) = (String::new(), String::new(), String::new(), Vec::new());
        for line in frame.replace("\r\n", "\n").replace('\r', "\n").split_terminator('\n') {
            match line.split_once(':').map(|(field, value)| (field, value.strip_prefix(' ').unwrap_or(value))) {
                Some(("id", value)) => id = value.into(),
                Some(("event", value)) => name = value.into(),
                Some(("data", value)) => {
                    data.push_str(value);
                    data.push('\n');
                }
                None if line.is_empty() && !data.is_empty() => {
                    data.pop();
                    seen.push((id.clone(), std::mem::take(&mut name), std::mem::take(&mut data)));
                }
                _ => {}
            }
        }
        seen
    }

    #[test]
    fn an_event_has_id_name_and_one_data_line_for_each_line() {
        let frame = Frame::event("5-1", "changed", "{\"a\": 1}\nb\r\nc\rd");
        assert_eq!(text(&frame), "id: 5-1\nevent: changed\ndata: {\"a\": 1}\ndata: b\ndata: c\ndata: d\n\n");
        assert_eq!(text(&Frame::event("5-1", "e", "")), "id: 5-1\nevent: e\ndata: \n\n");
        assert_eq!(text(&Frame::event("5-1", "e", "\n")), "id: 5-1\nevent: e\ndata: \ndata: \n\n");
    }

    #[test]
    fn positions_are_events_and_other_frames_without_data_are_not() {
        let at = || Position::after_tick(7);
        let hello = |at| Frame::hello(Duration::from_secs(2), Duration::from_secs(20), at);
        assert_eq!(text(&Frame::heartbeat()), ":\n\n");
        assert_eq!(text(&Frame::position(at())), "id: 7\nevent: position\ndata: {}\n\n");
        assert_eq!(
            text(&hello(Some(at()))),
            "retry: 2000\n: tidings\n: heartbeat=20000\nid: 7\nevent: position\ndata: {}\n\n"
        );
        assert_eq!(text(&hello(None)), "retry: 2000\n: tidings\n: heartbeat=20000\n\n");
        assert_eq!(text(&Frame::greeting()), ": tidings\n\n");
        assert_eq!(text(&Frame::end()), "");
        for frame in [Frame::heartbeat(), hello(None), Frame::retry(Duration::ZERO), Frame::greeting()] {
            assert!(read(text(&frame)).is_empty());
        }
        for frame in [Frame::position(at()), hello(Some(at()))] {
            assert_eq!(read(text(&frame)), [("7".to_string(), "position".to_string(), "{}".to_string())]);
        }
    }

    #[test]
    fn a_frame_is_one_chunk_with_its_content() {
        let frames = [
            Frame::heartbeat(),
            Frame::greeting(),
            Frame::end(),
            Frame::retry(Duration::from_secs(2)),
            Frame::position(Position::after_tick(7)),
            Frame::message(None, "x"),
            Frame::event("5-1", "e", &"ü".repeat(100_000)),
        ];
        let mut joined = Joined::new(10);
        joined.add("5-1", "e", "one");
        joined.add("5-2", "e", "two\nlines");
        assert_eq!(joined.count(), 2);
        let both = joined.take();
        assert_eq!(text(&both), "id: 5-1\nevent: e\ndata: one\n\nid: 5-2\nevent: e\ndata: two\ndata: lines\n\n");
        for frame in frames.into_iter().chain([both]) {
            let (chunk, body) = (frame.bytes(true).to_vec(), frame.bytes(false).to_vec());
            assert_eq!(chunk, [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat());
            assert_eq!((frame.len(), frame.into_body()), (chunk.len(), body.into()));
        }
        let head = Frame::raw("HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(head.bytes(true), head.bytes(false));
    }

    proptest! {
        #[test]
        fn no_content_forges_a_field(
            name in "(e|\n|\r|:|id: 9){1,6}",
            payload in "(a|ü|\n|\r|\r\n|data: |id: 9|event: x|:| ){0,12}",
        ) {
            let frame = Frame::event("5-1", &name, &payload);
            let data = payload.replace("\r\n", "\n").replace('\r', "\n");
            let name = name.replace(['\n', '\r'], " ");
            prop_assert_eq!(read(text(&frame)), vec![("5-1".to_string(), name, data)]);
        }
    }
}
