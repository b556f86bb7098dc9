//! The topic templates of subscription rules. The rules themselves are SQL: `sql/extension/60_access.sql`.

use pgrx::prelude::*;
use tidings_wire::template::{Piece, Template};

use crate::{errors, preload};

/// `tidings.match_topic(template, topic)`: the values of the holes in order, or NULL. An invalid template matches no
/// topic and raises no error: a bad rule that somebody inserted into the table must not make the other rules fail.
#[pg_extern]
fn match_topic(template: &str, topic: &str) -> Option<Vec<String>> {
    preload::require();
    let values = Template::parse_any(template).ok()?.matches(topic)?.into_iter().map(str::to_owned).collect();
    Some(values)
}

/// `tidings.bind_holes(template, query)`: the query with each `{hole}` replaced by the element of the array `$1` that
/// has its value. So the text of a topic never becomes part of a query.
#[pg_extern]
fn bind_holes(template: &str, query: &str) -> String {
    preload::require();
    let (template, query) = (parse(template), parse_any(query));
    let bind = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Hole(name) => match template.holes().position(|hole| hole == name) {
            Some(index) => format!("($1[{}])", index + 1),
            None => refuse(&format!("the query uses {{{name}}}, which the topic does not have")),
        },
    };
    query.pieces().iter().map(bind).collect()
}

fn parse(text: &str) -> Template {
    Template::parse(text).unwrap_or_else(|error| refuse(&format!("bad rule \"{text}\": {error}")))
}

/// Parses the query of a rule, in which holes may be adjacent.
fn parse_any(text: &str) -> Template {
    Template::parse_any(text).unwrap_or_else(|error| refuse(&format!("bad rule \"{text}\": {error}")))
}

fn refuse(message: &str) -> ! {
    errors::raise(
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        message,
        "A rule is a topic such as boards_{id} and a query such as SELECT FROM boards WHERE id = {id}::bigint; {{ and }} are literal braces.",
    )
}
