//! The name that a client subscribes to.

use std::fmt;

/// The longest topic and the longest event name, in bytes.
pub const MAX_NAME: usize = 255;

/// A topic: 1 to [`MAX_NAME`] bytes of UTF-8 without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Box<str>);

/// Why a text is not a topic, or not an event name: the same rules apply to both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The text has no bytes.
    #[error("it is empty")]
    Empty,
    /// The text is longer than [`MAX_NAME`] bytes.
    #[error("it is longer than {MAX_NAME} bytes")]
    TooLong,
    /// The text contains a control character, which could end a line of the stream.
    #[error("it contains a control character")]
    Control,
    /// The text is one of [`RESERVED_EVENTS`].
    #[error("a stream or an EventSource uses this name for its own events")]
    Reserved,
}

/// Names that are not allowed for the events of users: an EventSource dispatches `error` and `open` itself, and the
/// proxy sends the others.
pub const RESERVED_EVENTS: [&str; 6] = ["error", "open", "reset", "ready", "position", "unauthorized"];

/// Checks a topic or an event name.
pub fn check_name(text: &str) -> Result<(), TopicError> {
    match text.len() {
        0 => Err(TopicError::Empty),
        n if n > MAX_NAME => Err(TopicError::TooLong),
        // Most names are printable ASCII. This loop has no early exit, so that the compiler can vectorize it.
        _ if text.bytes().fold(true, |all, byte| all & (b' '..=b'~').contains(&byte)) => Ok(()),
        _ if text.chars().any(char::is_control) => Err(TopicError::Control),
        _ => Ok(()),
    }
}

/// Checks the name of an event of a user.
pub fn check_event(text: &str) -> Result<(), TopicError> {
    if RESERVED_EVENTS.contains(&text) {
        return Err(TopicError::Reserved);
    }
    check_name(text)
}

impl Topic {
    /// The topic with this text.
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
    fn an_event_name_that_a_stream_uses_itself_is_reserved() {
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
