//! How a topic is made of named values: `boards_{board_id}`. `{{` and `}}` stand for literal braces.

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

/// One piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text that stands as it is.
    Text(String),
    /// The name of the value to put here.
    Hole(String),
}

/// Why a text is no template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// There is nothing in it.
    #[error("the template is empty")]
    Empty,
    /// A `{` without its `}`.
    #[error("a hole is not closed: write {{{{ for a literal brace")]
    Unclosed,
    /// A `}` without its `{`.
    #[error("a closing brace without an opening one: write }}}} for a literal brace")]
    Unopened,
    /// `{}`.
    #[error("a hole names nothing")]
    Nameless,
}

impl Template {
    /// Parses `text`.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
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

    /// The pieces, in order; two texts never stand side by side.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Takes `text` apart: the values of the holes, in order, or None if it does not have the form. A hole holds at
    /// least one character and ends where the text behind it occurs next; the last hole takes what is left.
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
            let first = rest.chars().next()?.len_utf8();
            let end = match pieces.get(i + 1) {
                None => rest.len(),
                Some(Piece::Hole(_)) => first,
                Some(Piece::Text(literal)) => first + rest[first..].find(literal.as_str())?,
            };
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
        let pieces = |t: &str| Template::parse(t).unwrap().pieces;
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
        ] {
            assert_eq!(Template::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_topic_is_taken_apart() {
        let matches = |template: &str, topic: &'static str| Template::parse(template).unwrap().matches(topic);
        assert_eq!(matches("news", "news"), Some(vec![]));
        assert_eq!(matches("news", "newsx"), None);
        assert_eq!(matches("boards_{id}", "boards_5"), Some(vec!["5"]));
        assert_eq!(matches("boards_{id}", "boards_"), None);
        assert_eq!(matches("boards_{id}", "xboards_5"), None);
        assert_eq!(matches("{a}_{b}", "x_y_z"), Some(vec!["x", "y_z"]));
        assert_eq!(matches("{a}_{b}", "__z"), Some(vec!["_", "z"]));
        assert_eq!(matches("{a}.html", "a.html.html"), Some(vec!["a.html"]));
        assert_eq!(matches("ab{x}ba", "aba"), None);
        assert_eq!(matches("{a}{b}", "üx"), Some(vec!["ü", "x"]));
        assert_eq!(matches("{a}{b}", "ü"), None);
    }

    proptest! {
        #[test]
        fn what_matches_is_what_was_put_in(a in "[a-c]{1,5}", b in "\\PC{1,5}") {
            let template = Template::parse("x_{a}-{b}_y").unwrap();
            let topic = format!("x_{a}-{b}_y");
            prop_assert_eq!(template.matches(&topic), Some(vec![a.as_str(), b.as_str()]));
        }

        #[test]
        fn no_topic_breaks_the_matcher(template in "[{}ab]{0,12}", topic in "[abü]{0,12}") {
            if let Ok(template) = Template::parse(&template) && let Some(values) = template.matches(&topic) {
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
