//! The name a client subscribes to.

use std::fmt;

/// The longest topic and the longest event name, in bytes.
pub const MAX_NAME: usize = 255;

/// A topic: 1 to [`MAX_NAME`] bytes of UTF-8 without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Box<str>);

/// Why a text is no topic (or no event name: the same rule holds for both).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The text has no bytes.
    #[error("it is empty")]
    Empty,
    /// The text is longer than [`MAX_NAME`] bytes.
    #[error("it is longer than {MAX_NAME} bytes")]
    TooLong,
    /// The text has a control character: one could break out of a line of the stream.
    #[error("it contains a control character")]
    Control,
    /// The text is one of [`RESERVED_EVENTS`].
    #[error("a stream or an EventSource uses this name for its own events")]
    Reserved,
}

/// Names that a user's event must not have: an EventSource dispatches `error` and `open` itself, the proxy sends the
/// others.
pub const RESERVED_EVENTS: [&str; 6] = ["error", "open", "reset", "ready", "position", "unauthorized"];

/// Checks a topic or an event name without keeping it.
pub fn check_name(text: &str) -> Result<(), TopicError> {
    match text.len() {
        0 => Err(TopicError::Empty),
        n if n > MAX_NAME => Err(TopicError::TooLong),
        // Most are ASCII, and then it is enough to look at the bytes, all at once.
        _ if text.bytes().fold(true, |all, byte| all & (b' '..=b'~').contains(&byte)) => Ok(()),
        _ if text.chars().any(char::is_control) => Err(TopicError::Control),
        _ => Ok(()),
    }
}

/// Checks the name of a user's event.
pub fn check_event(text: &str) -> Result<(), TopicError> {
    if RESERVED_EVENTS.contains(&text) {
        return Err(TopicError::Reserved);
    }
    check_name(text)
}

impl Topic {
    /// Takes `text` as a topic.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        check_name(text).map(|()| Self(text.into()))
    }

    /// The topic's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_one_to_255_bytes_without_control_characters() {
        assert_eq!(Topic::new(""), Err(TopicError::Empty));
        assert_eq!(Topic::new(&"x".repeat(256)), Err(TopicError::TooLong));
        assert_eq!(Topic::new(&"ü".repeat(128)), Err(TopicError::TooLong));
        for bad in ["a\nb", "a\rb", "\0", "a\tb", "\u{7f}", "\u{85}"] {
            assert_eq!(Topic::new(bad), Err(TopicError::Control), "{bad:?}");
        }
        for good in ["boards_5", "x", " ", "Größe: 5 \"m\"", &"x".repeat(255)] {
            assert_eq!(Topic::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn an_event_name_is_no_name_that_a_stream_has_for_itself() {
        for name in RESERVED_EVENTS {
            assert_eq!(check_event(name), Err(TopicError::Reserved));
            assert!(Topic::new(name).is_ok());
        }
        assert_eq!(check_event(""), Err(TopicError::Empty));
        for good in ["changed", "message", "Error", "reset ", "positions"] {
            assert_eq!(check_event(good), Ok(()), "{good}");
        }
    }
}
