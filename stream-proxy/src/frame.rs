//! How an event looks on the wire of a Server-Sent Events stream, and nothing about who gets it.
//!
//! A frame is encoded once and shared by reference among all who get it.

use std::fmt::{Display, Write};
use std::time::Duration;

use bytes::Bytes;
use tidings_wire::Position;

/// Bytes that are written to a stream as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Bytes);

impl Frame {
    /// One event. Line ends of any kind in the payload become lines of their own, so no content can forge a field.
    pub fn event(id: impl Display, name: &str, payload: &str) -> Self {
        let mut text = String::with_capacity(payload.len() + name.len() + 64);
        // Writing to a String can't fail.
        let _ = writeln!(text, "id: {id}");
        push_name(&mut text, name);
        push_data(&mut text, payload);
        Self(text.into())
    }

    /// Something that has no position: it leaves a client's last event id as it is.
    pub fn message(name: Option<&str>, payload: &str) -> Self {
        let mut text = String::with_capacity(payload.len() + 32);
        if let Some(name) = name {
            push_name(&mut text, name);
        }
        push_data(&mut text, payload);
        Self(text.into())
    }

    /// The first bytes of a stream: how long to wait before reconnecting and, for a stream that starts now, where that
    /// is: a client that is cut off before its first event then resumes from here.
    pub fn hello(retry: Duration, at: Option<Position>) -> Self {
        let id = at.map(|at| format!("id: {at}\n")).unwrap_or_default();
        Self(format!("retry: {}\n{id}: tidings\n\n", retry.as_millis()).into())
    }

    /// The comment that says: the stream is on from here.
    pub fn greeting() -> Self {
        Self(Bytes::from_static(b": tidings\n\n"))
    }

    /// Tells a client how long to wait before it comes back.
    pub fn retry(retry: Duration) -> Self {
        Self(format!("retry: {}\n\n", retry.as_millis()).into())
    }

    /// Tells a client that its position can't be served: it reads its data again and goes on from `at`.
    pub fn reset(at: Position) -> Self {
        Self::event(at, "reset", r#"{"reason":"expired"}"#)
    }

    /// Keeps an idle connection alive. With `at`, it also moves the client's last event id forward, so that it
    /// resumes from memory however quiet its topics are: by the standard, an id without data is no event.
    pub fn heartbeat(at: Option<Position>) -> Self {
        match at {
            Some(at) => Self(format!(":\nid: {at}\n\n").into()),
            None => Self(Bytes::from_static(b":\n\n")),
        }
    }

    /// Bytes that are no frame of a stream but go out in the same way: a response's head.
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The length in bytes, never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes to write.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The bytes to write, without another reference to them.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

fn push_name(text: &mut String, name: &str) {
    text.push_str("event: ");
    // Names have no control characters by contract; a stream must not depend on it.
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
        std::str::from_utf8(frame.bytes()).unwrap()
    }

    /// What a client by the standard makes of a frame: its id, event name and data.
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
    fn heartbeats_and_greetings_are_no_events() {
        let at = || Some(Position::after_tick(7));
        assert_eq!(text(&Frame::heartbeat(None)), ":\n\n");
        assert_eq!(text(&Frame::heartbeat(at())), ":\nid: 7\n\n");
        assert_eq!(text(&Frame::hello(Duration::from_secs(2), at())), "retry: 2000\nid: 7\n: tidings\n\n");
        assert_eq!(text(&Frame::hello(Duration::from_secs(2), None)), "retry: 2000\n: tidings\n\n");
        for frame in [Frame::heartbeat(at()), Frame::hello(Duration::ZERO, at()), Frame::retry(Duration::ZERO)] {
            assert!(read(text(&frame)).is_empty());
        }
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
