//! An outline: the text that the payloads of a watch have in common, with a NUL in the place of each value. Neither
//! JSON nor any text in Postgres contains a NUL.

use std::cell::RefCell;
use std::sync::Arc;

use crate::error::ReadError;
use crate::limit::Limit;
use crate::row::Row;
use crate::value;

/// The longest outline in bytes, expanded. A reader of a segment makes a payload of this length from an event of a few
/// bytes.
pub const MAX_OUTLINE: usize = 8 * 1024;

/// Frequent pieces of outlines. Each is stored as one byte, its index counted from 1: JSON contains no control
/// characters. Neither their order nor their text may change after a release, because logs refer to them.
const PHRASES: [&str; 8] = [
    "{\"schema\":\"",
    "\",\"table\":\"",
    "\",\"type\":\"INSERT\",\"record\":{\"",
    "\",\"type\":\"UPDATE\",\"record\":{\"",
    "\",\"type\":\"DELETE\",\"record\":null,\"old_record\":{\"",
    "\":\0},\"old_record\":null}",
    "\":\0},\"old_record\":\0}",
    "\":\0,\"",
];

/// An outline in its stored form. It is short, because a transaction of one row stores it beside its single event.
pub fn shorten(outline: &str) -> String {
    (1u8..)
        .zip(PHRASES)
        .fold(outline.to_owned(), |text, (code, phrase)| text.replace(phrase, &char::from(code).to_string()))
}

/// The outline from its stored form. None if it is longer than [`MAX_OUTLINE`].
pub fn lengthen(short: &str) -> Option<String> {
    let mut text = String::with_capacity(4 * short.len());
    for character in short.chars() {
        match (character as usize).checked_sub(1).and_then(|place| PHRASES.get(place)) {
            Some(phrase) => text.push_str(phrase),
            None => text.push(character),
        }
    }
    (text.len() <= MAX_OUTLINE).then_some(text)
}

/// An outline with its abbreviations expanded, as a reader uses it.
#[derive(Clone, Debug)]
pub struct Lengthened {
    /// Its text, with a NUL in the place of each value.
    pub text: Arc<str>,
    /// The number of values.
    pub values: usize,
}

/// Like [`lengthen`], but this thread's last result is kept: in a tick of many transactions, most segments have the
/// same outline.
pub fn lengthen_again(short: &str) -> Option<Lengthened> {
    thread_local!(static LAST: RefCell<Option<(Box<str>, Lengthened)>> = const { RefCell::new(None) });
    LAST.with_borrow_mut(|last| {
        if let Some((known, lengthened)) = last
            && **known == *short
        {
            return Some(lengthened.clone());
        }
        let text = lengthen(short)?;
        let values = text.bytes().filter(|byte| *byte == 0).count();
        let lengthened = Lengthened { text: text.into(), values };
        *last = Some((short.into(), lengthened.clone()));
        Some(lengthened)
    })
}

/// Puts the values of a row into an outline. Fails if their number differs from that of the outline's places, if a
/// value is corrupt, or if the payload exceeds the limit.
pub fn fill(outline: &str, row: &Row, limit: Limit) -> Result<String, ReadError> {
    let mut filled = Vec::with_capacity((outline.len() + row.size() + row.size() / 2).min(limit.bytes()));
    let mut texts = outline.as_bytes().split(|byte| *byte == 0);
    filled.extend_from_slice(texts.next().unwrap_or_default());
    for packed in row.values() {
        value::write(&mut filled, packed)?;
        filled.extend_from_slice(texts.next().ok_or(ReadError::Corrupt)?);
        limit.check(filled.len())?;
    }
    if texts.next().is_some() {
        return Err(ReadError::Corrupt);
    }
    // Text in a UTF-8 database is UTF-8 unless the output function of a type is broken.
    let lossy = |error: std::string::FromUtf8Error| String::from_utf8_lossy(error.as_bytes()).into_owned();
    Ok(String::from_utf8(filled).unwrap_or_else(lossy))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_outline_of_a_default_payload_is_stored_short() {
        let insert = "{\"schema\":\"public\",\"table\":\"items\",\"type\":\"INSERT\",\"record\":{\"id\":\0,\"title\":\0},\"old_record\":null}";
        assert_eq!(shorten(insert), "\x01public\x02items\x03id\x08title\x06");
        for operation in
            ["\"INSERT\",\"record\":{\"a\":\0}", "\"UPDATE\",\"record\":{\"a\":\0}", "\"DELETE\",\"record\":null"]
        {
            for old in ["null}", "\0}", "{\"a\":\0}}"] {
                let outline = format!("{{\"schema\":\"s\",\"table\":\"t\",\"type\":{operation},\"old_record\":{old}");
                assert_eq!(lengthen(&shorten(&outline)).as_deref(), Some(&*outline));
            }
        }
    }

    #[test]
    fn a_few_bytes_never_expand_to_a_long_outline() {
        assert_eq!(lengthen(&"\x05".repeat(MAX_OUTLINE / 8)), None);
        assert!(lengthen(&"x".repeat(MAX_OUTLINE)).is_some());
    }

    proptest! {
        #[test]
        fn an_outline_comes_out_as_it_went_in(parts in prop::collection::vec((0..PHRASES.len(), "[^\x01-\x1f]{0,3}"), 0..20)) {
            let outline: String = parts.iter().map(|(phrase, text)| PHRASES[*phrase].to_owned() + text).collect();
            prop_assert_eq!(lengthen(&shorten(&outline)), Some(outline));
        }

        #[test]
        fn an_outline_comes_out_the_same_again(shorts in prop::collection::vec("[\x00-\x08a]{0,3}", 1..20)) {
            for short in &shorts {
                let again = lengthen_again(short).unwrap();
                prop_assert_eq!(again.text.to_string(), lengthen(short).unwrap());
                prop_assert_eq!(again.values, again.text.matches('\0').count());
            }
        }

        #[test]
        fn no_text_breaks_it(short in "(?s).{0,40}") {
            prop_assert!(lengthen(&short).is_some_and(|text| text.len() <= 50 * short.len()));
        }
    }

    #[test]
    fn a_row_that_does_not_fit_fills_nothing() {
        let mut row = Row::default();
        let fill = |outline, row: &Row, most| fill(outline, row, Limit::new(most));
        assert_eq!((fill("{\0}", &row, 9), fill("{}", &row, 9)), (Err(ReadError::Corrupt), Ok("{}".into())));
        let packed: Result<(), ()> = row.push(|_| Ok(()));
        assert_eq!(
            (packed, fill("{}", &row, 9), fill("{\0}", &row, 6)),
            (Ok(()), Err(ReadError::Corrupt), Ok("{null}".into()))
        );
        assert_eq!(fill("{\0}", &row, 5), Err(ReadError::TooLong));
    }

    #[test]
    fn a_text_that_is_not_utf8_gets_replacement_characters() {
        let mut row = Row::default();
        let packed: Result<(), ()> = row.push(|out| {
            value::pack_text(out, b"a\xffb");
            Ok(())
        });
        assert_eq!((packed, fill("\0", &row, Limit::new(9))), (Ok(()), Ok("\"a\u{fffd}b\"".into())));
    }
}
