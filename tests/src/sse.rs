//! The event-stream grammar of the HTML standard, and one connection that reads it.
//!
//! The parser dispatches exactly what a browser would. Beyond that it is strict: a field that the product never sends,
//! or a text that is not UTF-8, is an error, because that is how a payload that breaks out of its frame would look.

use std::io;
use std::net::SocketAddr;

use crate::http::{self, Head, Response, escape};
use crate::wait::DEADLINE;

/// One event as a browser would dispatch it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The `id` field of this frame itself.
    pub id: Option<String>,
    /// The event name; `message` if the frame names none.
    pub event: String,
    /// The data lines, joined by newlines.
    pub data: String,
}

impl Frame {
    /// The data as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The id; a frame without one fails the test.
    #[track_caller]
    pub fn id(&self) -> &str {
        self.id.as_deref().unwrap_or_else(|| panic!("a frame without an id: {self:?}"))
    }

    /// The place that the id gives, as tick and number.
    #[track_caller]
    pub fn place(&self) -> (u64, u32) {
        let position: tidings_wire::Position = self.id().parse().unwrap_or_else(|_| panic!("no position: {self:?}"));
        position.place()
    }
}

/// The parts of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An event.
    Frame(Frame),
    /// The event `position`, which contains only an id: the position of the stream. A browser stores the id, and calls
    /// no handler unless one is set for this event.
    Position(String),
    /// A comment line, without its colon.
    Comment(String),
    /// The reconnection time, in milliseconds.
    Retry(u64),
}

/// Takes bytes as they arrive and returns the items that are complete.
#[derive(Debug, Default)]
pub struct Parser {
    pending: Vec<u8>,
    scanned: usize,
    after_cr: bool,
    id: Option<String>,
    event: Option<String>,
    data: Option<String>,
    bare_ids: bool,
}

impl Parser {
    /// A parser that also accepts a position without data, as proxies before 0.2.0 sent it.
    pub fn of_releases() -> Self {
        Self { bare_ids: true, ..Self::default() }
    }

    /// Takes more bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8], items: &mut impl FnMut(Item)) -> Result<(), String> {
        self.pending.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(at) = self.pending[self.scanned..].iter().position(|b| matches!(b, b'\n' | b'\r')) {
            let end = self.scanned + at;
            self.scanned = end + 1;
            // A line feed right after a carriage return belongs to the same line break.
            let half = self.after_cr && self.pending[end] == b'\n' && start == end;
            self.after_cr = self.pending[end] == b'\r';
            if !half {
                let line = std::str::from_utf8(&self.pending[start..end]).map_err(|e| e.to_string())?.to_owned();
                self.line(&line, items)?;
            }
            start = end + 1;
        }
        self.pending.drain(..start);
        self.scanned = self.pending.len();
        Ok(())
    }

    fn line(&mut self, line: &str, items: &mut impl FnMut(Item)) -> Result<(), String> {
        if line.is_empty() {
            let (id, event, data) = (self.id.take(), self.event.take(), self.data.take());
            match (data, event, id) {
                (Some(data), Some(event), id) if event == "position" => match id {
                    Some(id) if data == "{}" => items(Item::Position(id)),
                    id => return Err(format!("no place: {id:?}, {data:?}")),
                },
                (Some(data), event, id) => {
                    items(Item::Frame(Frame { id, event: event.unwrap_or_else(|| "message".into()), data }))
                }
                (None, None, Some(id)) if self.bare_ids => items(Item::Position(id)),
                // An event without data: half of the browsers and libraries ignore its id.
                (None, None, Some(id)) => return Err(format!("an id without data: {id:?}")),
                (None, Some(event), _) => return Err(format!("an event without data: {event:?}")),
                (None, None, None) => {}
            }
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => items(Item::Comment(value.to_owned())),
            "data" => match &mut self.data {
                None => self.data = Some(value.to_owned()),
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
            },
            "id" if self.id.is_none() && !value.contains('\0') => self.id = Some(value.to_owned()),
            "event" if self.event.is_none() => self.event = Some(value.to_owned()),
            "retry" => items(Item::Retry(value.parse().map_err(|_| format!("no reconnection time: {line:?}"))?)),
            _ => return Err(format!("a line that no frame has: {line:?}")),
        }
        Ok(())
    }
}

/// A client's request.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The topics.
    pub topics: Vec<String>,
    /// Where to start, as the parameter `since`.
    pub since: Option<String>,
    /// Where to start, as the header `Last-Event-ID`, which takes precedence.
    pub last_event_id: Option<String>,
    /// The token, as `Authorization: Bearer`.
    pub token: Option<String>,
    /// The cookies.
    pub cookie: Option<String>,
    /// Whether the proxy may be one of an earlier release.
    pub of_releases: bool,
}

impl Request {
    /// Asks for a stream that starts now.
    pub fn live(topics: &[&str]) -> Self {
        Self { topics: topics.iter().map(|topic| (*topic).to_owned()).collect(), ..Self::default() }
    }

    /// Asks for the events after a position.
    pub fn since(topics: &[&str], since: &str) -> Self {
        Self { since: Some(since.to_owned()), ..Self::live(topics) }
    }

    /// Resumes after the last event that was seen.
    pub fn resume(topics: &[&str], last_event_id: &str) -> Self {
        Self { last_event_id: Some(last_event_id.to_owned()), ..Self::live(topics) }
    }

    /// The same with a token.
    pub fn by(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    fn path(&self) -> String {
        let mut path = String::from("/events");
        let topics = self.topics.iter().map(|topic| ("topic", topic));
        for (i, (name, value)) in topics.chain(self.since.iter().map(|since| ("since", since))).enumerate() {
            path.push_str(&format!("{}{name}={}", if i == 0 { '?' } else { '&' }, escape(value)));
        }
        path
    }
}

/// One connection to `/events`.
#[derive(Debug)]
pub struct Sse {
    response: Response,
    parser: Parser,
    items: std::collections::VecDeque<Item>,
    last_id: Option<String>,
}

impl Sse {
    /// Connects. A response other than 200 with an event stream is an error.
    pub fn connect(address: SocketAddr, request: &Request) -> io::Result<Self> {
        let mut headers = vec![("Accept", "text/event-stream"), ("Cache-Control", "no-cache")];
        if let Some(id) = &request.last_event_id {
            headers.push(("Last-Event-ID", id));
        }
        let bearer = request.token.as_ref().map(|token| format!("Bearer {token}"));
        if let Some(bearer) = &bearer {
            headers.push(("Authorization", bearer));
        }
        if let Some(cookie) = &request.cookie {
            headers.push(("Cookie", cookie));
        }
        let response = http::open(address, &request.path(), &headers)?;
        let kind = response.head.header("content-type").unwrap_or_default();
        if response.head.status != 200 || !kind.starts_with("text/event-stream") {
            return Err(io::Error::other(format!("{:?}", response.head)));
        }
        Ok(Self {
            response,
            parser: if request.of_releases { Parser::of_releases() } else { Parser::default() },
            items: Default::default(),
            last_id: request.last_event_id.clone(),
        })
    }

    /// Status and headers of the response.
    pub fn head(&self) -> &Head {
        &self.response.head
    }

    /// The id that a browser would reconnect with.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// Waits until the stream has sent its position, before any event.
    #[track_caller]
    pub fn wait_id(&mut self) {
        while self.last_id.is_none() {
            match self.item() {
                Some(Item::Frame(frame)) => panic!("an event before the place: {frame:?}"),
                Some(_) => {}
                None => panic!("the stream has ended"),
            }
        }
    }

    /// The next item; `None` when the stream has ended. Silence until the deadline fails the test.
    #[track_caller]
    pub fn item(&mut self) -> Option<Item> {
        let mut bytes = Vec::new();
        while self.items.is_empty() {
            bytes.clear();
            match self.response.read(&mut bytes) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    panic!("nothing came for {DEADLINE:?}; the last id was {:?}", self.last_id)
                }
                // The proxy was killed, or has disconnected this client.
                Err(_) => return None,
            }
            let items = &mut self.items;
            if let Err(error) = self.parser.feed(&bytes, &mut |item| items.push_back(item)) {
                panic!("no event stream: {error}");
            }
        }
        let item = self.items.pop_front();
        if let Some(Item::Position(id) | Item::Frame(Frame { id: Some(id), .. })) = &item {
            self.last_id = Some(id.clone());
        }
        item
    }

    /// The next event, without comments; `None` when the stream has ended.
    #[track_caller]
    pub fn frame_or_end(&mut self) -> Option<Frame> {
        let start = std::time::Instant::now();
        loop {
            match self.item()? {
                Item::Frame(frame) => return Some(frame),
                // Heartbeats alone must not keep a test alive that waits for an event.
                _ => assert!(
                    start.elapsed() < DEADLINE,
                    "only comments for {DEADLINE:?}; the last id was {:?}",
                    self.last_id
                ),
            }
        }
    }

    /// The next event.
    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        self.frame_or_end().expect("the stream has ended")
    }

    /// The next `n` events.
    #[track_caller]
    pub fn take(&mut self, n: usize) -> Vec<Frame> {
        (0..n).map(|_| self.frame()).collect()
    }

    /// The events before the first one whose data `is_end` accepts.
    #[track_caller]
    pub fn before(&mut self, is_end: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.frame();
            if is_end(&frame) {
                return frames;
            }
            frames.push(frame);
        }
    }

    /// Waits until the proxy ends the stream; returns the events before.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.frame_or_end()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(chunks: &[&str]) -> Result<Vec<Item>, String> {
        let (mut parser, mut items) = (Parser::default(), Vec::new());
        for chunk in chunks {
            parser.feed(chunk.as_bytes(), &mut |item| items.push(item))?;
        }
        Ok(items)
    }

    fn frame(id: &str, event: &str, data: &str) -> Item {
        Item::Frame(Frame { id: Some(id.into()), event: event.into(), data: data.into() })
    }

    #[test]
    fn every_split_of_the_bytes_gives_the_same_items() {
        for newline in ["\n", "\r\n", "\r"] {
            let text = ": hi\nretry: 5\n\nid: 1-1\nevent: changed\ndata: a\ndata:  b\ndata\n\nid:2-1\ndata: ü\n\nid: 3"
                .replace('\n', newline);
            let expected = [
                Item::Comment("hi".into()),
                Item::Retry(5),
                frame("1-1", "changed", "a\n b\n"),
                frame("2-1", "message", "ü"),
            ];
            assert_eq!(parse(&[&text]).unwrap(), expected);
            for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
                assert_eq!(parse(&[&text[..at], &text[at..]]).unwrap(), expected, "{newline:?} {at}");
            }
            let bytes: Vec<String> = text.chars().map(String::from).collect();
            assert_eq!(parse(&bytes.iter().map(String::as_str).collect::<Vec<_>>()).unwrap(), expected);
        }
    }

    #[test]
    fn a_place_is_an_item_of_its_own() {
        let text = "retry: 5\n: hi\nid: 7\nevent: position\ndata: {}\n\n";
        assert_eq!(parse(&[text]).unwrap(), [Item::Retry(5), Item::Comment("hi".into()), Item::Position("7".into())]);
        for text in ["id: 7\n\n", "event: position\ndata: {}\n\n", "id: 7\nevent: position\ndata: 1\n\n"] {
            assert!(parse(&[text]).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_broke_out_of_a_frame_is_noticed() {
        for text in ["data: a\nb\n\n", "id: 1\nid: 2\ndata: x\n\n", "event: x\n\n", "\"x\": 1}\n", "Data: x\n"] {
            assert!(parse(&[text]).is_err(), "{text:?}");
        }
    }
}
