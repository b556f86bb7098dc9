//! The events of one transaction (or of one early flush) as the bytes of one log row.
//!
//! One version byte, then for each event: topic length (u16), event name length (u8), payload length (u32), all
//! little-endian, and the three texts in UTF-8. Nothing is escaped and nothing is compressed here: Postgres compresses
//! a large row by itself.
//!
//! The payloads of a watch have most of their text in common, its outline. A segment need not repeat it (from version 2 on). If bit
//! 30 of the payload length is set, the entry is no event: the payload is a byte with a number and an outline, which holds a
//! NUL wherever a value goes. If bit 31 is set, the payload is the number of an outline in front of it, and the values,
//! each ended by a NUL. Neither JSON nor a text of Postgres has one.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use crate::topic::MAX_NAME;

/// The first byte of every segment that is written.
pub const VERSION: u8 = 2;

/// The versions that can be read.
const READABLE: RangeInclusive<u8> = 1..=VERSION;

/// The bytes of an event beside its three texts.
pub const EVENT_HEADER: usize = 7;

/// The flag of an entry that is an outline.
const OUTLINE: u32 = 1 << 30;

/// The flag of an event whose payload fills an outline.
const FILLED: u32 = 1 << 31;

/// Outlines have numbers below this one: a byte that is a text of its own.
pub const OUTLINES: usize = 128;

/// The longest outline, in bytes. Who reads a segment makes this much of an event of a few bytes.
pub const MAX_OUTLINE: usize = 8 * 1024;

/// One event, borrowed from a segment or a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The topic it goes to.
    pub topic: &'a str,
    /// The event name: `changed` for a watch, `message` for a publication, unless named otherwise.
    pub event: &'a str,
    /// The payload, JSON or any text.
    pub payload: Cow<'a, str>,
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
    /// An outline is too long, or an event fills one that is not there or that asks for other values.
    #[error("segment with a payload that fits no outline")]
    Outline,
    /// A text is not UTF-8.
    #[error("segment with a text that is not UTF-8")]
    Utf8,
}

/// Appends one event to the bytes of a segment; whoever stores them puts [`VERSION`] in front.
///
/// The caller has checked topic and event name by [`crate::topic::check_name`]. A payload is shorter than 1 GiB, as
/// every Postgres value is.
pub fn append(segment: &mut Vec<u8>, event: &Event<'_>) {
    push(segment, event.topic, event.event, 0, None, &event.payload);
}

/// Appends an outline of at most [`MAX_OUTLINE`] bytes under a number below [`OUTLINES`], for the events after it. An older one of
/// that number is forgotten.
pub fn append_outline(segment: &mut Vec<u8>, number: u8, outline: &str) {
    debug_assert!(outline.len() <= MAX_OUTLINE);
    push(segment, "", "", OUTLINE, Some(number), outline);
}

/// As [`append`], for an event whose payload fills the outline of this number with the values, each ended by a NUL.
pub fn append_filled(segment: &mut Vec<u8>, topic: &str, event: &str, number: u8, values: &str) {
    push(segment, topic, event, FILLED, Some(number), values);
}

fn push(segment: &mut Vec<u8>, topic: &str, event: &str, flag: u32, number: Option<u8>, payload: &str) {
    let length = payload.len() + usize::from(number.is_some());
    debug_assert!(topic.len() <= MAX_NAME && event.len() <= MAX_NAME && length < OUTLINE as usize);
    debug_assert!(number.is_none_or(|number| usize::from(number) < OUTLINES));
    segment.reserve(EVENT_HEADER + topic.len() + event.len() + length);
    let [t0, t1] = (topic.len() as u16).to_le_bytes();
    let [p0, p1, p2, p3] = (length as u32 | flag).to_le_bytes();
    segment.extend_from_slice(&[t0, t1, event.len() as u8, p0, p1, p2, p3]);
    segment.extend_from_slice(topic.as_bytes());
    segment.extend_from_slice(event.as_bytes());
    segment.extend(number);
    segment.extend_from_slice(payload.as_bytes());
}

/// An outline with its values put in, if it asks for as many.
pub fn fill(outline: &str, values: &str) -> Option<String> {
    let count = |text: &str| text.bytes().filter(|byte| *byte == 0).count();
    if count(outline) != count(values) {
        return None;
    }
    let mut filled = String::with_capacity(outline.len() + values.len());
    // What follows the last value is empty, as it should be.
    for (text, value) in outline.split('\0').zip(values.split('\0')) {
        filled.push_str(text);
        filled.push_str(value);
    }
    Some(filled)
}

/// The events of a segment, in order. After an error there are no more.
pub fn events(segment: &[u8]) -> Events<'_> {
    let (rest, failed) = match segment.split_first() {
        Some((version, rest)) if READABLE.contains(version) => (rest, None),
        Some(_) => (&[][..], Some(SegmentError::Version)),
        None => (&[][..], Some(SegmentError::Short)),
    };
    Events { rest, failed, outlines: Vec::new() }
}

/// Iterator over the events of a segment.
#[derive(Debug)]
pub struct Events<'a> {
    rest: &'a [u8],
    failed: Option<SegmentError>,
    /// The outlines so far, by number.
    outlines: Vec<Option<&'a str>>,
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

    /// The next event; none if the entry is an outline.
    fn parse(&mut self) -> Result<Option<Event<'a>>, SegmentError> {
        let header = self.take(EVENT_HEADER)?;
        let topic = u16::from_le_bytes([header[0], header[1]]) as usize;
        let event = header[2] as usize;
        let payload = u32::from_le_bytes([header[3], header[4], header[5], header[6]]);
        let (topic, event) = (self.text(topic)?, self.text(event)?);
        let text = self.text((payload & !(OUTLINE | FILLED)) as usize)?;
        if payload & (OUTLINE | FILLED) == 0 {
            return Ok(Some(Event { topic, event, payload: Cow::Borrowed(text) }));
        }
        let (number, text) = text.split_at_checked(1).ok_or(SegmentError::Outline)?;
        let number = usize::from(number.as_bytes()[0]);
        if payload & OUTLINE != 0 {
            if text.len() > MAX_OUTLINE {
                return Err(SegmentError::Outline);
            }
            self.outlines.resize(self.outlines.len().max(number + 1), None);
            self.outlines[number] = Some(text);
            return Ok(None);
        }
        let outline = self.outlines.get(number).copied().flatten().ok_or(SegmentError::Outline)?;
        let payload = fill(outline, text).ok_or(SegmentError::Outline)?;
        Ok(Some(Event { topic, event, payload: Cow::Owned(payload) }))
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        while !self.rest.is_empty() {
            match self.parse() {
                Ok(None) => {}
                Ok(Some(event)) => return Some(Ok(event)),
                Err(error) => {
                    self.rest = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An event with a payload as it is, or an outline of these texts filled with these values.
    type Entry = (String, String, String, Option<(u8, Vec<(String, String)>)>);

    fn entry() -> impl Strategy<Value = Entry> {
        let holes = prop::collection::vec(("[^\0]{0,9}", "[^\0]{0,9}"), 0..5);
        ("\\PC{1,40}", "\\PC{1,9}", "(?s)[^\0]{0,300}", prop::option::of((0..4u8, holes)))
    }

    proptest! {
        #[test]
        fn events_come_out_as_they_went_in(entries in prop::collection::vec(entry(), 1..9)) {
            let mut segment = vec![VERSION];
            let mut sent = Vec::new();
            for (topic, event, payload, filled) in &entries {
                let Some((number, holes)) = filled else {
                    append(&mut segment, &Event { topic, event, payload: payload.into() });
                    sent.push((topic.as_str(), event.as_str(), payload.clone()));
                    continue;
                };
                let outline: String = holes.iter().map(|(text, _)| format!("{text}\0")).collect();
                let values: String = holes.iter().map(|(_, value)| format!("{value}\0")).collect();
                append_outline(&mut segment, *number, &(outline + payload));
                append_filled(&mut segment, topic, event, *number, &values);
                let whole: String = holes.iter().map(|(text, value)| format!("{text}{value}")).collect();
                sent.push((topic, event, whole + payload));
            }
            let back: Vec<_> = events(&segment).map(|e| e.unwrap()).map(|e| (e.topic, e.event, e.payload.into_owned())).collect();
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
        append(&mut segment, &Event { topic: "t", event: "e", payload: "{}".into() });
        for len in 0..segment.len() {
            let last = events(&segment[..len]).last();
            assert!(len == 1 || last == Some(Err(SegmentError::Short)), "{len}: {last:?}");
        }
        segment[0] = 9;
        assert_eq!(events(&segment).next(), Some(Err(SegmentError::Version)));
    }

    #[test]
    fn a_segment_of_the_first_version_can_be_read() {
        let segment = b"\x01\x01\x00\x01\x02\x00\x00\x00te{}";
        assert_eq!(events(segment).next(), Some(Ok(Event { topic: "t", event: "e", payload: "{}".into() })));
    }

    #[test]
    fn a_payload_that_fits_no_outline_is_an_error() {
        for (outline, number, values) in [("{\0}", 1, "1\0"), ("{\0}", 0, ""), ("{\0}", 0, "1\0\0"), ("{}", 0, "\0")] {
            let mut segment = vec![VERSION];
            append_outline(&mut segment, 0, outline);
            append_filled(&mut segment, "t", "e", number, values);
            append(&mut segment, &Event { topic: "t", event: "e", payload: "{}".into() });
            let events: Vec<_> = events(&segment).collect();
            assert_eq!(events, [Err(SegmentError::Outline)], "{outline:?} {number} {values:?}");
        }
    }

    #[test]
    fn an_outline_that_is_too_long_is_an_error() {
        let mut segment = vec![VERSION];
        push(&mut segment, "", "", OUTLINE, Some(0), &" ".repeat(MAX_OUTLINE + 1));
        append_filled(&mut segment, "t", "e", 0, "");
        assert_eq!(events(&segment).collect::<Vec<_>>(), [Err(SegmentError::Outline)]);
    }
}
