//! What the payloads of a watch have in common: their text, with a NUL wherever a value goes. Neither JSON nor a text
//! of Postgres has one.

use crate::row::Row;
use crate::value::{self, Stop};

/// The longest outline, in bytes, spelled out. Who reads a segment makes this much of an event of a few bytes.
pub const MAX_OUTLINE: usize = 8 * 1024;

/// Frequent pieces of outlines, stored as one byte each, their place from 1 on: JSON has no control characters. Neither
/// order nor text changes once it is released: logs refer to them.
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

/// An outline as it is stored: short, for a transaction of one row has it in the log beside its one event.
pub fn shorten(outline: &str) -> String {
    (1u8..)
        .zip(PHRASES)
        .fold(outline.to_owned(), |text, (code, phrase)| text.replace(phrase, &char::from(code).to_string()))
}

/// The outline that was stored, spelled out, unless it is too long.
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

/// An outline with its values put in, if it asks for as many and all of them can be read. Gives up behind the value
/// that makes it longer than `most` bytes.
pub fn fill(outline: &str, row: &Row, most: usize) -> Result<String, Stop> {
    let mut filled = Vec::with_capacity((outline.len() + row.size() + row.size() / 2).min(most));
    let mut texts = outline.split('\0').map(str::as_bytes);
    filled.extend_from_slice(texts.next().unwrap_or_default());
    for packed in row.values() {
        value::write(&mut filled, packed)?;
        filled.extend_from_slice(texts.next().ok_or(Stop::Unknown)?);
        if filled.len() > most {
            return Err(Stop::TooLong);
        }
    }
    if texts.next().is_some() {
        return Err(Stop::Unknown);
    }
    // A text in a UTF-8 database is UTF-8 unless a type's own function is broken.
    let lossy = |error: std::string::FromUtf8Error| String::from_utf8_lossy(error.as_bytes()).into_owned();
    Ok(String::from_utf8(filled).unwrap_or_else(lossy))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_most_watches_send_is_short() {
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
    fn a_few_bytes_make_no_long_outline() {
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
        fn no_text_breaks_it(short in "(?s).{0,40}") {
            prop_assert!(lengthen(&short).is_some_and(|text| text.len() <= 50 * short.len()));
        }
    }

    #[test]
    fn a_row_that_does_not_fit_fills_nothing() {
        let mut row = Row::default();
        let fill = |outline, row: &Row, most| fill(outline, row, most);
        assert_eq!((fill("{\0}", &row, 9), fill("{}", &row, 9)), (Err(Stop::Unknown), Ok("{}".into())));
        let packed: Result<(), ()> = row.push(|_| Ok(()));
        assert_eq!(
            (packed, fill("{}", &row, 9), fill("{\0}", &row, 6)),
            (Ok(()), Err(Stop::Unknown), Ok("{null}".into()))
        );
        assert_eq!(fill("{\0}", &row, 5), Err(Stop::TooLong));
    }

    #[test]
    fn a_text_that_is_not_utf8_is_told_as_well_as_it_can_be() {
        let mut row = Row::default();
        let packed: Result<(), ()> = row.push(|out| {
            value::pack_text(out, b"a\xffb");
            Ok(())
        });
        assert_eq!((packed, fill("\0", &row, 9)), (Ok(()), Ok("\"a\u{fffd}b\"".into())));
    }
}
