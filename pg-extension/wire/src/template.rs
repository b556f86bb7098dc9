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

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "[{}a-zü]{0,20}") {
            if let Ok(template) = Template::parse(&text) {
                let named = template.holes().all(|name| !name.is_empty() && !name.contains('}'));
                prop_assert!(named);
            }
        }
    }
}
