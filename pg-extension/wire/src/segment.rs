//! The events of one transaction (or of one early flush) as the bytes of one log row.
//!
//! One version byte, then for each event: topic length (u16), event name length (u8), payload length (u32), all
//! little-endian, and the three texts in UTF-8. Nothing is escaped and nothing is compressed here: Postgres compresses
//! a large row by itself.

use crate::topic::MAX_NAME;

/// The first byte of every segment.
pub const VERSION: u8 = 1;

/// The bytes of an event beside its three texts.
pub const EVENT_HEADER: usize = 7;

/// One event, borrowed from a segment or a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The topic it goes to.
    pub topic: &'a str,
    /// The event name: `changed` for a watch, `message` for a publication, unless named otherwise.
    pub event: &'a str,
    /// The payload, JSON or any text.
    pub payload: &'a str,
}

/// The bytes are no segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The first byte names a format this build doesn't know.
    #[error("segment of unknown version")]
    Version,
    /// A length points beyond the end.
    #[error("segment cut short")]
    Short,
    /// A text is not UTF-8.
    #[error("segment with a text that is not UTF-8")]
    Utf8,
}

/// Appends one event to the bytes of a segment; whoever stores them puts [`VERSION`] in front.
///
/// The caller has checked topic and event name by [`crate::topic::check_name`]. A payload is shorter than 4 GiB, as
/// every Postgres value is.
pub fn append(segment: &mut Vec<u8>, event: &Event<'_>) {
    debug_assert!(event.topic.len() <= MAX_NAME && event.event.len() <= MAX_NAME);
    segment.reserve(EVENT_HEADER + event.topic.len() + event.event.len() + event.payload.len());
    segment.extend_from_slice(&(event.topic.len() as u16).to_le_bytes());
    segment.push(event.event.len() as u8);
    segment.extend_from_slice(&(event.payload.len() as u32).to_le_bytes());
    for text in [event.topic, event.event, event.payload] {
        segment.extend_from_slice(text.as_bytes());
    }
}

/// The events of a segment, in order. After an error there are no more.
pub fn events(segment: &[u8]) -> Events<'_> {
    match segment.split_first() {
        Some((&VERSION, rest)) => Events { rest, failed: None },
        Some(_) => Events { rest: &[], failed: Some(SegmentError::Version) },
        None => Events { rest: &[], failed: Some(SegmentError::Short) },
    }
}

/// Iterator over the events of a segment.
#[derive(Debug)]
pub struct Events<'a> {
    rest: &'a [u8],
    failed: Option<SegmentError>,
}

impl<'a> Events<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], SegmentError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(SegmentError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    fn text(&mut self, len: usize) -> Result<&'a str, SegmentError> {
        std::str::from_utf8(self.take(len)?).map_err(|_| SegmentError::Utf8)
    }

    fn parse(&mut self) -> Result<Event<'a>, SegmentError> {
        let header = self.take(EVENT_HEADER)?;
        let topic = u16::from_le_bytes([header[0], header[1]]) as usize;
        let event = header[2] as usize;
        let payload = u32::from_le_bytes([header[3], header[4], header[5], header[6]]) as usize;
        Ok(Event { topic: self.text(topic)?, event: self.text(event)?, payload: self.text(payload)? })
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        if self.rest.is_empty() {
            return None;
        }
        let event = self.parse();
        if event.is_err() {
            self.rest = &[];
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn events_come_out_as_they_went_in(texts in prop::collection::vec(("\\PC{1,40}", "\\PC{1,9}", "(?s).{0,300}"), 1..9)) {
            let mut segment = vec![VERSION];
            for (topic, event, payload) in &texts {
                append(&mut segment, &Event { topic, event, payload });
            }
            let back: Vec<_> = events(&segment).map(|e| e.unwrap()).map(|e| (e.topic, e.event, e.payload)).collect();
            let sent: Vec<_> = texts.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str())).collect();
            prop_assert_eq!(back, sent);
        }

        #[test]
        fn no_bytes_break_the_decoder(mut bytes in prop::collection::vec(any::<u8>(), 0..200), real in any::<bool>()) {
            if real && !bytes.is_empty() {
                bytes[0] = VERSION;
            }
            prop_assert!(events(&bytes).count() <= bytes.len().max(1));
        }
    }

    #[test]
    fn a_segment_cut_short_ends_with_an_error() {
        let mut segment = vec![VERSION];
        append(&mut segment, &Event { topic: "t", event: "e", payload: "{}" });
        for len in 0..segment.len() {
            let last = events(&segment[..len]).last();
            assert!(len == 1 || last == Some(Err(SegmentError::Short)), "{len}: {last:?}");
        }
        segment[0] = 9;
        assert_eq!(events(&segment).next(), Some(Err(SegmentError::Version)));
    }
}
