//! A topic template: text with holes for named values, as in `boards_{board_id}`. `{{` and `}}` are literal braces.
//!
//! Different values must make different topics: a subscriber to the topic of one row must not get the events of another
//! row whose values happen to make the same text. So there is text between any two holes, and no value contains the
//! text that separates it from the next one.

use crate::topic::MAX_NAME;

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

/// One piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Literal text.
    Text(String),
    /// The name of the value that goes here.
    Hole(String),
}

/// Why a text is not a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The text is empty.
    #[error("the template is empty")]
    Empty,
    /// A `{` without its `}`.
    #[error("a hole is not closed: write {{{{ for a literal brace")]
    Unclosed,
    /// A `}` without its `{`.
    #[error("a closing brace without an opening one: write }}}} for a literal brace")]
    Unopened,
    /// `{}`.
    #[error("a hole has no name")]
    Nameless,
    /// `{a}{b}`.
    #[error("no text separates two holes, so nothing marks the end of the first value")]
    Adjacent,
    /// No topic is as long as the text between the holes.
    #[error("its text beside the holes is longer than a topic: {MAX_NAME} bytes")]
    TooLong,
}

/// A value contains the text that separates it from the next one, or ends with the beginning of it, so other values
/// could make the same topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value contains the text that separates it from the next value")]
pub struct Ambiguous;

/// Checks a value, which is followed by the text that separates it from the next one.
pub fn check_separated(value_and_separator: &[u8], separator: &str) -> Result<(), Ambiguous> {
    let mut windows = value_and_separator.windows(separator.len().max(1));
    match windows.position(|window| window == separator.as_bytes()) {
        Some(at) if at + separator.len() == value_and_separator.len() => Ok(()),
        _ => Err(Ambiguous),
    }
}

impl Template {
    /// Parses `text`.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let template = Self::parse_any(text)?;
        template.check()?;
        Ok(template)
    }

    /// Whether a new watch or rule may have this template.
    pub fn check(&self) -> Result<(), TemplateError> {
        let length = |piece: &Piece| if let Piece::Text(text) = piece { text.len() } else { 0 };
        if self.has_adjacent_holes() {
            Err(TemplateError::Adjacent)
        } else if self.pieces.iter().map(length).sum::<usize>() > MAX_NAME {
            Err(TemplateError::TooLong)
        } else {
            Ok(())
        }
    }

    /// As [`Self::parse`], but allows what older versions accepted and what matches no topic.
    pub fn parse_any(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            literal.push_str(before);
            if from.starts_with("{{") || from.starts_with("}}") {
                literal.push_str(&from[..1]);
                rest = &from[2..];
                continue;
            }
            let inner = from.strip_prefix('{').ok_or(TemplateError::Unopened)?;
            let (name, after) = inner.split_once('}').ok_or(TemplateError::Unclosed)?;
            if name.is_empty() {
                return Err(TemplateError::Nameless);
            }
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Hole(name.to_owned()));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        if pieces.is_empty() {
            return Err(TemplateError::Empty);
        }
        Ok(Self { pieces })
    }

    /// The pieces in order. No two texts are adjacent.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Whether there is no text between some two holes.
    pub fn has_adjacent_holes(&self) -> bool {
        self.pieces.windows(2).any(|pair| matches!(pair, [Piece::Hole(_), Piece::Hole(_)]))
    }

    /// Whether the piece is text that separates two holes.
    pub fn is_separator(&self, index: usize) -> bool {
        matches!(self.pieces.get(index), Some(Piece::Text(_))) && index > 0 && index + 1 < self.pieces.len()
    }

    /// Puts the values into the holes.
    pub fn fill<'v>(&self, value: impl Fn(&str) -> &'v str) -> Result<String, Ambiguous> {
        let mut text = String::new();
        let mut value_at = 0;
        for (index, piece) in self.pieces.iter().enumerate() {
            match piece {
                Piece::Text(literal) => {
                    text.push_str(literal);
                    if self.is_separator(index) {
                        check_separated(&text.as_bytes()[value_at..], literal)?;
                    }
                }
                Piece::Hole(name) => {
                    value_at = text.len();
                    text.push_str(value(name));
                }
            }
        }
        Ok(text)
    }

    /// Parses a topic into the values of the holes, in order; `None` if no values make this topic. A value has at least
    /// one character and ends at the first occurrence of the text that follows its hole. The last hole gets the rest.
    pub fn matches<'t>(&self, text: &'t str) -> Option<Vec<&'t str>> {
        let (pieces, mut rest) = match self.pieces.split_last() {
            Some((Piece::Text(suffix), before)) if !before.is_empty() => (before, text.strip_suffix(suffix.as_str())?),
            _ => (&self.pieces[..], text),
        };
        let mut values = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            if let Piece::Text(literal) = piece {
                rest = rest.strip_prefix(literal.as_str())?;
                continue;
            }
            let end = match pieces.get(i + 1) {
                None => rest.len(),
                Some(Piece::Hole(_)) => return None,
                Some(Piece::Text(literal)) => rest.find(literal.as_str())?,
            };
            if end == 0 {
                return None;
            }
            let (value, after) = rest.split_at(end);
            values.push(value);
            rest = after;
        }
        rest.is_empty().then_some(values)
    }

    /// The names of the holes, in order.
    pub fn holes(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Hole(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    fn hole(name: &str) -> Piece {
        Piece::Hole(name.into())
    }

    #[test]
    fn holes_and_literal_braces() {
        let pieces = |t: &str| Template::parse_any(t).unwrap().pieces;
        assert_eq!(pieces("news"), [text("news")]);
        assert_eq!(pieces("boards_{board_id}"), [text("boards_"), hole("board_id")]);
        assert_eq!(pieces("{a}{b c}-{ü}"), [hole("a"), hole("b c"), text("-"), hole("ü")]);
        assert_eq!(pieces("{{x}}{{{y}}}"), [text("{x}{"), hole("y"), text("}")]);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for (text, error) in [
            ("", TemplateError::Empty),
            ("a{", TemplateError::Unclosed),
            ("{a", TemplateError::Unclosed),
            ("a}", TemplateError::Unopened),
            ("a{}b", TemplateError::Nameless),
            ("{{}", TemplateError::Unopened),
            ("{a}{b}", TemplateError::Adjacent),
            ("x{a}-{b}{c}", TemplateError::Adjacent),
        ] {
            assert_eq!(Template::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_template_longer_than_any_topic_is_refused() {
        let name = "n".repeat(63);
        let many = |holes: usize| vec![format!("{{{name}}}"); holes].join("-");
        for (text, result) in [
            ("x".repeat(MAX_NAME) + "{id}", Ok(())),
            ("x".repeat(MAX_NAME) + "{id}y", Err(TemplateError::TooLong)),
            (many(MAX_NAME + 1), Ok(())),
            (many(MAX_NAME + 2), Err(TemplateError::TooLong)),
        ] {
            assert_eq!(Template::parse(&text).map(|_| ()), result, "{text}");
            assert!(Template::parse_any(&text).is_ok());
        }
    }

    #[test]
    fn a_topic_is_taken_apart() {
        let matches = |template: &str, topic: &'static str| Template::parse_any(template).unwrap().matches(topic);
        assert_eq!(matches("news", "news"), Some(vec![]));
        assert_eq!(matches("news", "newsx"), None);
        assert_eq!(matches("boards_{id}", "boards_5"), Some(vec!["5"]));
        assert_eq!(matches("boards_{id}", "boards_"), None);
        assert_eq!(matches("boards_{id}", "xboards_5"), None);
        assert_eq!(matches("{a}_{b}", "x_y_z"), Some(vec!["x", "y_z"]));
        assert_eq!(matches("{a}_{b}", "__z"), None);
        assert_eq!(matches("{a}_{b}", "_z"), None);
        assert_eq!(matches("{a}.html", "a.html.html"), Some(vec!["a.html"]));
        assert_eq!(matches("ab{x}ba", "aba"), None);
        assert_eq!(matches("{a}{b}", "üx"), None);
    }

    #[test]
    fn no_value_moves_the_end_of_another() {
        let fill = |template: &str, a: &'static str, b: &'static str| {
            Template::parse(template).unwrap().fill(|name| if name == "a" { a } else { b })
        };
        assert_eq!(fill("chat_{a}_{b}", "acme", "corp_board").as_deref(), Ok("chat_acme_corp_board"));
        assert_eq!(fill("chat_{a}_{b}", "acme_corp", "board"), Err(Ambiguous));
        // Together with the first half of the separator.
        assert_eq!(fill("{a}__{b}", "x_", "y"), Err(Ambiguous));
        assert_eq!(fill("{a}__{b}", "x_y", "_z").as_deref(), Ok("x_y___z"));
        assert_eq!(fill("{a}.html", "a.html", "").as_deref(), Ok("a.html.html"));
        assert_eq!(fill("{a}_{b}_", "x", "y_").as_deref(), Ok("x_y__"));
    }

    proptest! {
        /// Templates of a few pieces, with values made of a few letters that also occur in the templates.
        #[test]
        fn different_values_make_different_topics(
            first in "[ab]{0,2}", separators in prop::collection::vec("[ab]{1,3}", 0..3), last in "[ab]{0,2}",
            values in prop::collection::vec("[abc]{0,4}", 3), others in prop::collection::vec("[abc]{0,4}", 3),
        ) {
            let mut text = format!("{first}{{0}}");
            for (i, separator) in separators.iter().enumerate() {
                text += &format!("{separator}{{{}}}", i + 1);
            }
            let template = Template::parse(&(text + &last)).unwrap();
            let count = separators.len() + 1;
            let fill = |values: &[String]| template.fill(|name| &values[name.parse::<usize>().unwrap()]);
            if let Ok(topic) = fill(&values) {
                let expected = values[..count].iter().map(String::as_str).collect::<Vec<_>>();
                let is_whole = expected.iter().all(|value| !value.is_empty());
                prop_assert_eq!(template.matches(&topic), is_whole.then_some(expected));
                if fill(&others).as_ref() == Ok(&topic) {
                    prop_assert_eq!(&values[..count], &others[..count]);
                }
            }
            // And in the other direction: the values that a topic is parsed into make the same topic.
            let topic = values.concat();
            if let Some(read) = template.matches(&topic) {
                let read: Vec<_> = read.into_iter().map(str::to_owned).collect();
                prop_assert_eq!(fill(&read), Ok(topic));
            }
        }

        #[test]
        fn a_topic_is_parsed_into_the_values_that_made_it(a in "[a-c]{1,5}", b in "\\PC{1,5}") {
            let template = Template::parse("x_{a}-{b}_y").unwrap();
            let topic = format!("x_{a}-{b}_y");
            prop_assert_eq!(template.matches(&topic), Some(vec![a.as_str(), b.as_str()]));
        }

        #[test]
        fn no_topic_breaks_the_matcher(template in "[{}ab]{0,12}", topic in "[abü]{0,12}") {
            if let Ok(template) = Template::parse_any(&template) && let Some(values) = template.matches(&topic) {
                prop_assert_eq!(values.len(), template.holes().count());
            }
        }

        #[test]
        fn no_text_breaks_the_parser(text in "[{}a-zü]{0,20}") {
            if let Ok(template) = Template::parse(&text) {
                let named = template.holes().all(|name| !name.is_empty() && !name.contains('}'));
                prop_assert!(named);
            }
        }
    }
}
