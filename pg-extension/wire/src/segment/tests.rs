//! What is written to a segment is read from it again, and hostile bytes are refused.

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
        events.next_wanted(|topic| topic == "a").map(|event| event.map(|event| event.map(|e| e.payload.into_owned())))
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
        assert!(matches!(events[..], [Err(SegmentError::Outline | SegmentError::Value)]), "{outline:?}: {events:?}");
    }
}

#[test]
fn an_outline_that_is_too_long_is_an_error() {
    let mut segment = vec![VERSION];
    append_outline(&mut segment, 0, "e", &" ".repeat(MAX_OUTLINE + 1));
    assert_eq!(events(&segment).collect::<Vec<_>>(), [Err(SegmentError::Outline)]);
}
