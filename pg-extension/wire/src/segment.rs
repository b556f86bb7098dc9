//! The events of one transaction (or of one early flush) as the bytes of one log row.
//!
//! A segment is a version byte, then entries. Each entry begins with a head of two bytes: a number and a kind. Lengths
//! in this table are little-endian, texts are UTF-8.
//!
//! | kind | number | what follows |
//! |---|---|---|
//! | 0, a plain event | the length of its topic | the length of its name (u8) and of its payload (u32), and the three texts |
//! | 1, an outline | its own | the length of an event's name (u8) and of the outline (u16), and both texts |
//! | 2, an event that fills an outline | the outline's | the length of its topic (u8), the topic, and the values |
//! | 3, a recheck | the length of its topic | 0 if it is about this topic, 1 if the text is a template (u8), and the text |
//!
//! The payloads of a watch have most of their text in common: the outline ([`crate::outline`]). The values are packed
//! ([`crate::value`]) and written as the difference from those of the previous event, the last one that filled the same
//! outline ([`crate::row`]). There is no previous event for the first one after the outline, nor after an event whose
//! values take more than [`MAX_PREVIOUS`] bytes. Version 1 has only plain events, with two bytes for the length of a
//! topic and no kind. Version 4 is a segment without its first entry, which is an outline: see [`crate::lender`]. Nothing
//! is compressed here: Postgres compresses large values by itself.

use std::borrow::Cow;

use crate::limit::{Limit, SPARSEST};
use crate::outline::{Lengthened, fill, lengthen_again};
use crate::row::Row;
use crate::topic::MAX_NAME;

/// The first byte of every segment that is written.
pub const VERSION: u8 = 3;

/// An earlier version, which can still be read.
const FIRST_VERSION: u8 = 1;

/// The bytes of a plain event without its three texts.
const EVENT_HEADER: usize = 7;

/// The bytes of an outline without its two texts.
pub const OUTLINE_HEADER: usize = 5;

const PLAIN: u8 = 0;
const OUTLINE: u8 = 1;
const FILLED: u8 = 2;
const RECHECK: u8 = 3;

/// All numbers of outlines are below this one.
pub const OUTLINES: usize = 128;

/// The most bytes of packed values that the next event can refer to. Writers and readers keep this much for each
/// outline, and must agree on it.
pub const MAX_PREVIOUS: usize = 64 * 1024;

/// The payloads of a segment are together at most this many times as long as the segment. The writer ensures it,
/// however much the events have in common.
pub const MAX_GROWTH: usize = 16;

/// Where a reader gives up. It trusts no writer, but reads whatever a writer may have written.
const TOO_MUCH_GROWTH: usize = 2 * MAX_GROWTH;

/// One event, borrowed from a segment or a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The topic it goes to.
    pub topic: &'a str,
    /// The event name: `changed` for a watch, `message` for a publication, unless named otherwise.
    pub event: &'a str,
    /// The payload: JSON from a watch, any text from `publish_text`.
    pub payload: Cow<'a, str>,
}

/// The payload of a recheck of all topics that match a template. The payload of other rechecks is empty.
const MATCHING: &str = "*";

/// A place in the order of all events: the right of some topics' subscribers must be checked again before they get what
/// comes after it. It is encoded as an event without a name, which no other event can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recheck<'a> {
    /// The subscribers of one topic.
    Topic(&'a str),
    /// The subscribers of all topics that match this template.
    Matching(&'a str),
}

impl<'a> Event<'a> {
    /// A recheck as an event.
    pub fn recheck(recheck: Recheck<'a>) -> Self {
        let (topic, payload) = match recheck {
            Recheck::Topic(topic) => (topic, ""),
            Recheck::Matching(template) => (template, MATCHING),
        };
        Self { topic, event: "", payload: payload.into() }
    }

    /// The recheck that this event is, if it is one. No client gets it.
    pub fn as_recheck(&self) -> Option<Recheck<'a>> {
        match (self.event, &*self.payload) {
            ("", MATCHING) => Some(Recheck::Matching(self.topic)),
            ("", _) => Some(Recheck::Topic(self.topic)),
            _ => None,
        }
    }
}

/// The bytes are not a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The first byte names a format this build doesn't know.
    #[error("segment of unknown version")]
    Version,
    /// A length points beyond the end.
    #[error("segment cut short")]
    Short,
    /// An entry is of a kind that this build doesn't know.
    #[error("segment with an entry of unknown kind")]
    Kind,
    /// It borrows its first entry from a segment that has none to lend, or that is gone.
    #[error("segment that borrows its outline from one that has none")]
    Lender,
    /// An outline is too long, or an event fills one that is not there.
    #[error("segment with a payload that fits no outline")]
    Outline,
    /// A value can't be read, or the payloads are far longer than the segment.
    #[error("segment with a value that cannot be read")]
    Value,
    /// A text is not UTF-8.
    #[error("segment with a text that is not UTF-8")]
    Utf8,
}

/// Appends a plain event to the entries of a segment. The caller puts [`VERSION`] in front before it stores them.
///
/// The caller has checked the topic and the event name with [`crate::topic::check_name`]. The payload is shorter than 1
/// GiB, as every value in Postgres is.
pub fn append(segment: &mut Vec<u8>, event: &Event<'_>) {
    let Event { topic, event, payload } = event;
    debug_assert!(topic.len() <= MAX_NAME && event.len() <= MAX_NAME);
    segment.reserve(EVENT_HEADER + topic.len() + event.len() + payload.len());
    let [p0, p1, p2, p3] = (payload.len() as u32).to_le_bytes();
    segment.extend_from_slice(&[topic.len() as u8, PLAIN, event.len() as u8, p0, p1, p2, p3]);
    for text in [topic, event, payload.as_ref()] {
        segment.extend_from_slice(text.as_bytes());
    }
}

/// Appends an outline in its stored form, under a number below [`OUTLINES`]. `event` is the name of the events that
/// will fill it. It replaces an earlier outline of the same number.
pub fn append_outline(segment: &mut Vec<u8>, number: u8, event: &str, outline: &str) {
    debug_assert!(event.len() <= MAX_NAME && usize::from(number) < OUTLINES && u16::try_from(outline.len()).is_ok());
    let [o0, o1] = (outline.len() as u16).to_le_bytes();
    segment.extend_from_slice(&[number, OUTLINE, event.len() as u8, o0, o1]);
    segment.extend_from_slice(event.as_bytes());
    segment.extend_from_slice(outline.as_bytes());
}

/// The length of the two texts of an outline, if the entries begin with one.
pub fn outline_length(entries: &[u8]) -> Option<usize> {
    match entries.first_chunk() {
        Some(&[_, OUTLINE, event, o0, o1]) => Some(usize::from(event) + usize::from(u16::from_le_bytes([o0, o1]))),
        _ => None,
    }
}

/// Appends an event whose payload is the outline of this number filled with the values of a row. `previous` has the
/// values of the previous event of that outline; it is empty if the outline has just been appended.
pub fn append_filled(segment: &mut Vec<u8>, number: u8, topic: &str, row: &Row, previous: &Row) {
    debug_assert!(topic.len() <= MAX_NAME && previous.size() <= MAX_PREVIOUS);
    segment.extend_from_slice(&[number, FILLED, topic.len() as u8]);
    segment.extend_from_slice(topic.as_bytes());
    row.write_after(previous, segment);
}

/// Appends a recheck. The caller has checked its text with [`crate::topic::check_name`].
pub fn append_recheck(segment: &mut Vec<u8>, recheck: Recheck<'_>) {
    let (text, is_template) = match recheck {
        Recheck::Topic(topic) => (topic, 0),
        Recheck::Matching(template) => (template, 1),
    };
    debug_assert!(text.len() <= MAX_NAME);
    segment.extend_from_slice(&[text.len() as u8, RECHECK, is_template]);
    segment.extend_from_slice(text.as_bytes());
}

/// The events of a segment, in order. After an error there are no more.
pub fn events(segment: &[u8]) -> Events<'_> {
    let (version, rest, failed) = match segment.split_first() {
        Some((version @ &(FIRST_VERSION | VERSION), rest)) => (*version, rest, None),
        Some((version, _)) => (*version, &[][..], Some(SegmentError::Version)),
        None => (VERSION, &[][..], Some(SegmentError::Short)),
    };
    Events {
        version,
        rest,
        length: rest.len(),
        rendered: 0,
        unpacked: 0,
        failed,
        outlines: Vec::new(),
        spare: Row::default(),
    }
}

/// Iterator over the events of a segment.
#[derive(Debug)]
pub struct Events<'a> {
    version: u8,
    rest: &'a [u8],
    /// The bytes of all entries.
    length: usize,
    /// The bytes of the payloads that were rendered so far.
    rendered: usize,
    /// The bytes of the rows that were unpacked so far, also for events that were passed over.
    unpacked: usize,
    failed: Option<SegmentError>,
    /// The outlines so far, by number.
    outlines: Vec<Option<DeclaredOutline<'a>>>,
    /// Memory for the next row.
    spare: Row,
}

/// An entry, parsed.
enum Entry<'a> {
    Outline,
    /// An event that the caller does not want; its payload was not rendered.
    Unwanted,
    Event(Event<'a>),
}

/// An outline that the segment has declared, for the events after it.
#[derive(Clone, Debug)]
struct DeclaredOutline<'a> {
    event: &'a str,
    outline: Lengthened,
    /// The values of the previous event that filled it.
    previous: Row,
}

impl<'a> Events<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], SegmentError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(SegmentError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SegmentError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(SegmentError::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    fn text(&mut self, len: usize) -> Result<&'a str, SegmentError> {
        std::str::from_utf8(self.take(len)?).map_err(|_| SegmentError::Utf8)
    }

    /// As [`Iterator::next`], but returns `Some(Ok(None))` for an event whose topic is not wanted, without rendering
    /// its payload.
    pub fn next_wanted(&mut self, wanted: impl Fn(&str) -> bool) -> Option<Result<Option<Event<'a>>, SegmentError>> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        while !self.rest.is_empty() {
            match self.parse(&wanted) {
                Ok(Entry::Outline) => {}
                Ok(Entry::Event(event)) => return Some(Ok(Some(event))),
                Ok(Entry::Unwanted) => return Some(Ok(None)),
                Err(error) => {
                    self.rest = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    }

    fn parse(&mut self, wanted: impl Fn(&str) -> bool) -> Result<Entry<'a>, SegmentError> {
        let [number, kind] = self.array()?;
        match kind {
            OUTLINE if self.version > FIRST_VERSION => self.outline(number.into()).map(|()| Entry::Outline),
            FILLED if self.version > FIRST_VERSION => self.filled(number.into(), wanted),
            RECHECK if self.version > FIRST_VERSION => self.recheck(number.into(), wanted),
            high if high == PLAIN || self.version == FIRST_VERSION => {
                let event = self.plain([number, high])?;
                Ok(if wanted(event.topic) { Entry::Event(event) } else { Entry::Unwanted })
            }
            _ => Err(SegmentError::Kind),
        }
    }

    fn plain(&mut self, topic: [u8; 2]) -> Result<Event<'a>, SegmentError> {
        let ([event], payload) = (self.array()?, self.array()?);
        let (topic, event) = (self.text(u16::from_le_bytes(topic).into())?, self.text(event.into())?);
        let payload = self.text(u32::from_le_bytes(payload) as usize)?;
        Ok(Event { topic, event, payload: Cow::Borrowed(payload) })
    }

    /// A recheck of the topics that match a template is wanted whatever the topics are.
    fn recheck(&mut self, length: usize, wanted: impl Fn(&str) -> bool) -> Result<Entry<'a>, SegmentError> {
        let [is_template] = self.array()?;
        let text = self.text(length)?;
        Ok(match is_template {
            0 if !wanted(text) => Entry::Unwanted,
            0 => Entry::Event(Event::recheck(Recheck::Topic(text))),
            _ => Entry::Event(Event::recheck(Recheck::Matching(text))),
        })
    }

    fn outline(&mut self, number: usize) -> Result<(), SegmentError> {
        let ([event], length) = (self.array()?, self.array()?);
        let (event, short) = (self.text(event.into())?, self.text(u16::from_le_bytes(length).into())?);
        let outline = lengthen_again(short).filter(|_| number < OUTLINES).ok_or(SegmentError::Outline)?;
        self.outlines.resize(self.outlines.len().max(number + 1), None);
        self.outlines[number] = Some(DeclaredOutline { event, outline, previous: Row::default() });
        Ok(())
    }

    fn filled(&mut self, number: usize, wanted: impl Fn(&str) -> bool) -> Result<Entry<'a>, SegmentError> {
        let [topic] = self.array()?;
        let topic = self.text(topic.into())?;
        let declared = self.outlines.get_mut(number).and_then(Option::as_mut).ok_or(SegmentError::Outline)?;
        self.spare
            .read_after(&declared.previous, declared.outline.values, &mut self.rest)
            .ok_or(SegmentError::Value)?;
        let most = TOO_MUCH_GROWTH * (self.length - self.rest.len());
        // A row that equals the previous one takes one byte for each value in the segment, but must be copied.
        self.unpacked += self.spare.size();
        if self.unpacked > SPARSEST * most {
            return Err(SegmentError::Value);
        }
        let entry = if wanted(topic) {
            let limit = Limit::new(most.saturating_sub(self.rendered));
            let payload = fill(&declared.outline.text, &self.spare, limit).map_err(|_| SegmentError::Value)?;
            self.rendered += payload.len();
            Entry::Event(Event { topic, event: declared.event, payload: Cow::Owned(payload) })
        } else {
            Entry::Unwanted
        };
        if self.spare.size() > MAX_PREVIOUS {
            declared.previous.clear();
        } else {
            std::mem::swap(&mut declared.previous, &mut self.spare);
        }
        Ok(entry)
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Every event is wanted, so none is passed over.
        self.next_wanted(|_| true).and_then(Result::transpose)
    }
}

#[cfg(test)]
mod tests;
