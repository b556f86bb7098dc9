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
//! topic and no kind. Nothing is compressed here: Postgres compresses large values by itself.

use std::borrow::Cow;

use crate::limit::{Limit, SPARSEST};
use crate::outline::{fill, lengthen};
use crate::row::Row;
use crate::topic::MAX_NAME;

/// The first byte of every segment that is written.
pub const VERSION: u8 = 3;

/// An earlier version, which can still be read.
const FIRST_VERSION: u8 = 1;

/// The bytes of a plain event without its three texts.
const EVENT_HEADER: usize = 7;

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
    text: String,
    /// The number of values that fill it.
    values: usize,
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
        let text = lengthen(short).filter(|_| number < OUTLINES).ok_or(SegmentError::Outline)?;
        let values = text.bytes().filter(|byte| *byte == 0).count();
        self.outlines.resize(self.outlines.len().max(number + 1), None);
        self.outlines[number] = Some(DeclaredOutline { event, text, values, previous: Row::default() });
        Ok(())
    }

    fn filled(&mut self, number: usize, wanted: impl Fn(&str) -> bool) -> Result<Entry<'a>, SegmentError> {
        let [topic] = self.array()?;
        let topic = self.text(topic.into())?;
        let outline = self.outlines.get_mut(number).and_then(Option::as_mut).ok_or(SegmentError::Outline)?;
        self.spare.read_after(&outline.previous, outline.values, &mut self.rest).ok_or(SegmentError::Value)?;
        let most = TOO_MUCH_GROWTH * (self.length - self.rest.len());
        // A row that equals the previous one takes one byte for each value in the segment, but must be copied.
        self.unpacked += self.spare.size();
        if self.unpacked > SPARSEST * most {
            return Err(SegmentError::Value);
        }
        let entry = if wanted(topic) {
            let limit = Limit::new(most.saturating_sub(self.rendered));
            let payload = fill(&outline.text, &self.spare, limit).map_err(|_| SegmentError::Value)?;
            self.rendered += payload.len();
            Entry::Event(Event { topic, event: outline.event, payload: Cow::Owned(payload) })
        } else {
            Entry::Unwanted
        };
        if self.spare.size() > MAX_PREVIOUS {
            outline.previous.clear();
        } else {
            std::mem::swap(&mut outline.previous, &mut self.spare);
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
mod tests {
    use super::*;
    use crate::limit::WIDEST;
    use crate::outline::{MAX_OUTLINE, shorten};
    use crate::value::{pack_integer, pack_json, pack_text};
    use proptest::prelude::*;

    /// A value that can be packed, with its JSON.
    #[derive(Clone, Debug)]
    enum Value {
        Null,
        Integer(i64),
        Text(String),
        Json(i32),
    }

    impl Value {
        fn pack(&self, out: &mut Vec<u8>) -> Result<(), ()> {
            match self {
                Self::Null => {}
                Self::Integer(number) => pack_integer(out, *number),
                Self::Text(text) => pack_text(out, text.as_bytes()),
                Self::Json(number) => pack_json(out, format!("[{number}]").as_bytes()),
            }
            Ok(())
        }

        fn json(&self) -> String {
            match self {
                Self::Null => "null".into(),
                Self::Integer(number) => number.to_string(),
                Self::Text(text) => crate::string::quoted(text),
                Self::Json(number) => format!("[{number}]"),
            }
        }
    }

    fn row(values: &[Value]) -> Row {
        let mut row = Row::default();
        values.iter().for_each(|value| row.push(|out| value.pack(out)).unwrap());
        row
    }

    /// A plain event, or an outline of these texts filled with these rows of values.
    type Entry = (String, String, String, Option<(u8, Vec<String>, Vec<Vec<Value>>)>);

    fn entry() -> impl Strategy<Value = Entry> {
        let value = || {
            prop_oneof![
                Just(Value::Null),
                any::<i64>().prop_map(Value::Integer),
                "(?s)[^\0]{0,20}".prop_map(Value::Text),
                any::<i32>().prop_map(Value::Json),
                (60_000..70_000usize).prop_map(|length| Value::Text("x".repeat(length))),
            ]
        };
        let filled = prop::collection::vec("[^\x00-\x1f]{0,9}", 0..5).prop_flat_map(move |texts| {
            let row = prop::collection::vec(value(), texts.len());
            (0..4u8, Just(texts), prop::collection::vec(row, 1..4))
        });
        ("\\PC{1,40}", "\\PC{1,9}", "[^\x00-\x1f]{0,300}", prop::option::of(filled))
    }

    #[test]
    fn unwanted_rows_are_bounded_like_wanted_ones() {
        let mut segment = vec![VERSION];
        append_outline(&mut segment, 0, "e", "\0");
        let (long, none) = (row(&[Value::Text("x".repeat(MAX_PREVIOUS - 1))]), Row::default());
        append_filled(&mut segment, 0, "t", &long, &none);
        assert_eq!(events(&segment).next_wanted(|_| false), Some(Ok(None)));
        for _ in 0..1000 {
            append_filled(&mut segment, 0, "t", &long, &long);
        }
        let mut all = events(&segment);
        let passed = std::iter::from_fn(|| all.next_wanted(|_| false)).take_while(Result::is_ok).count();
        assert!((TOO_MUCH_GROWTH..SPARSEST * TOO_MUCH_GROWTH + 9).contains(&passed), "{passed}");
    }

    proptest! {
        #[test]
        fn events_come_out_as_they_went_in(entries in prop::collection::vec(entry(), 1..9)) {
            let mut segment = vec![VERSION];
            let mut sent = Vec::new();
            for (topic, event, payload, filled) in &entries {
                let Some((number, texts, rows)) = filled else {
                    append(&mut segment, &Event { topic, event, payload: payload.into() });
                    sent.push((topic.as_str(), event.as_str(), payload.clone()));
                    continue;
                };
                let outline: String = texts.iter().map(|text| format!("{text}\0")).collect();
                append_outline(&mut segment, *number, event, &shorten(&(outline + payload)));
                let mut previous = Row::default();
                for values in rows {
                    let row = row(values);
                    append_filled(&mut segment, *number, topic, &row, &previous);
                    previous = if row.size() > MAX_PREVIOUS { Row::default() } else { row };
                    let whole: String = texts.iter().zip(values).map(|(text, value)| format!("{text}{}", value.json())).collect();
                    sent.push((topic, event, whole + payload));
                }
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

        #[test]
        fn no_values_break_the_decoder(bytes in prop::collection::vec(0..20u8, 0..100)) {
            let mut segment = vec![VERSION];
            append_outline(&mut segment, 0, "e", "\0\0\0");
            segment.extend_from_slice(b"\0\x02\x01t");
            segment.extend_from_slice(&bytes);
            // The payload has three values; each byte is part of one of them.
            let longest = |event: Result<Event<'_>, _>| event.map_or(0, |event| event.payload.len());
            prop_assert!(events(&segment).next().map_or(0, longest) <= WIDEST * bytes.len() + 3 * "null".len());
        }
    }

    fn filled(outline: &str, number: u8, values: &[Value]) -> Vec<u8> {
        let mut segment = vec![VERSION];
        append_outline(&mut segment, 0, "e", outline);
        append_filled(&mut segment, number, "t", &row(values), &Row::default());
        segment
    }

    #[test]
    fn a_segment_cut_short_ends_with_an_error() {
        let mut segment = filled("{\0}", 0, &[Value::Integer(1)]);
        append(&mut segment, &Event { topic: "t", event: "e", payload: "{}".into() });
        let whole: Vec<_> = events(&segment).collect();
        assert!(whole.len() == 2 && whole.iter().all(Result::is_ok), "{whole:?}");
        for len in 0..segment.len() {
            let cut: Vec<_> = events(&segment[..len]).collect();
            let end = cut.last().and_then(|last| last.clone().err());
            // A cut where an entry ends leaves a valid segment: after the version byte, the outline and the first
            // event.
            let error = matches!(end, Some(SegmentError::Short | SegmentError::Value));
            assert!(error || [1, 10, 17].contains(&len), "{len}: {cut:?}");
        }
        segment[0] = 9;
        assert_eq!(events(&segment).next(), Some(Err(SegmentError::Version)));
    }

    #[test]
    fn a_segment_of_the_first_version_can_be_read() {
        let segment = b"\x01\x01\x00\x01\x02\x00\x00\x00te{}";
        assert_eq!(events(segment).next(), Some(Ok(Event { topic: "t", event: "e", payload: "{}".into() })));
        let long = [&b"\x01\x02\x01\x01\x02\x00\x00\x00"[..], &[b't'; 0x102], b"e{}"].concat();
        let topic = "t".repeat(0x102);
        assert_eq!(events(&long).next(), Some(Ok(Event { topic: &topic, event: "e", payload: "{}".into() })));
    }

    #[test]
    fn an_unwanted_event_is_passed_over_but_the_next_one_may_refer_to_it() {
        let mut segment = vec![VERSION];
        append_outline(&mut segment, 0, "e", "\0");
        let rows = [1, 2, 3].map(|number| row(&[Value::Integer(1000 + number)]));
        append_filled(&mut segment, 0, "a", &rows[0], &Row::default());
        append_filled(&mut segment, 0, "b", &rows[1], &rows[0]);
        append(&mut segment, &Event { topic: "b", event: "e", payload: "{}".into() });
        append_filled(&mut segment, 0, "a", &rows[2], &rows[1]);
        let mut events = events(&segment);
        let mut next = || {
            events
                .next_wanted(|topic| topic == "a")
                .map(|event| event.map(|event| event.map(|e| e.payload.into_owned())))
        };
        let payloads: Vec<_> = std::iter::from_fn(&mut next).collect();
        assert_eq!(payloads, [Ok(Some("1001".to_owned())), Ok(None), Ok(None), Ok(Some("1003".to_owned()))]);
    }

    #[test]
    fn a_few_bytes_never_expand_to_endless_payloads() {
        let mut segment = vec![VERSION];
        append_outline(&mut segment, 0, "e", "\0");
        let row = row(&[Value::Text("\u{1}".repeat(65_000))]);
        append_filled(&mut segment, 0, "t", &row, &Row::default());
        for _ in 0..10_000 {
            append_filled(&mut segment, 0, "t", &row, &row);
        }
        let mut rendered = 0;
        let last =
            events(&segment).inspect(|event| rendered += event.as_ref().map_or(0, |event| event.payload.len())).last();
        assert_eq!(last, Some(Err(SegmentError::Value)));
        assert!(rendered > 65_000 && rendered <= TOO_MUCH_GROWTH * segment.len(), "{rendered} of {}", segment.len());
    }

    #[test]
    fn an_entry_of_an_unknown_kind_is_an_error() {
        let mut segment = vec![VERSION];
        append(&mut segment, &Event { topic: "t", event: "e", payload: "{}".into() });
        segment[2] = 4;
        assert_eq!(events(&segment).collect::<Vec<_>>(), [Err(SegmentError::Kind)]);
    }

    #[test]
    fn a_recheck_has_its_place_among_the_events() {
        let mut segment = vec![VERSION];
        append_recheck(&mut segment, Recheck::Topic("a"));
        append(&mut segment, &Event { topic: "a", event: "e", payload: "*".into() });
        append_recheck(&mut segment, Recheck::Matching("{all}"));
        append_recheck(&mut segment, Recheck::Topic("b"));
        let found: Vec<_> = events(&segment).map(|event| event.unwrap().as_recheck()).collect();
        let [first, matching, last] = [Recheck::Topic("a"), Recheck::Matching("{all}"), Recheck::Topic("b")].map(Some);
        assert_eq!(found, [first, None, matching, last]);
        // Of those that are not wanted, only the one that may be about any topic is read.
        let mut events = events(&segment);
        let wanted = std::iter::from_fn(|| events.next_wanted(|_| false)).map(|event| event.unwrap().is_some());
        assert_eq!(wanted.collect::<Vec<_>>(), [false, false, true, false]);
    }

    #[test]
    fn a_row_that_fits_no_outline_is_an_error() {
        let one = Value::Integer(1);
        for (outline, number, values) in [("{\0}", 1, &[one.clone()][..]), ("{\0}", 0, &[]), ("{\0\0}", 0, &[one])] {
            let events: Vec<_> = events(&filled(outline, number, values)).map(|event| event.map(|_| ())).collect();
            assert!(
                matches!(events[..], [Err(SegmentError::Outline | SegmentError::Value)]),
                "{outline:?}: {events:?}"
            );
        }
    }

    #[test]
    fn an_outline_that_is_too_long_is_an_error() {
        let mut segment = vec![VERSION];
        append_outline(&mut segment, 0, "e", &" ".repeat(MAX_OUTLINE + 1));
        assert_eq!(events(&segment).collect::<Vec<_>>(), [Err(SegmentError::Outline)]);
    }
}
