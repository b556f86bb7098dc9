//! The topic templates of subscription rules. The rules themselves are SQL: `sql/extension/60_access.sql`.

use pgrx::prelude::*;
use tidings_wire::template::{Piece, Template, TemplateError};

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
    bind(template, query).unwrap_or_else(|error| {
        errors::raise(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            error.to_string(),
            "A rule is a topic such as boards_{id} and a query such as SELECT FROM boards WHERE id = {id}::bigint; {{ and }} are literal braces.",
        )
    })
}

/// `tidings.can_bind(template, query)`: whether `bind_holes` succeeds. If not, a rule that somebody inserted into the
/// table allows nothing, instead of making the other rules that match fail.
#[pg_extern]
fn can_bind(template: &str, query: &str) -> bool {
    preload::require();
    bind(template, query).is_ok()
}

/// Why a rule is invalid.
#[derive(Debug, thiserror::Error)]
enum BadRule {
    #[error("bad rule: {0}")]
    Topic(TemplateError),
    #[error("bad query of a rule: {0}")]
    Query(TemplateError),
    #[error("the query uses {{{0}}}, which the topic does not have")]
    Unknown(String),
}

fn bind(template: &str, query: &str) -> Result<String, BadRule> {
    let template = Template::parse(template).map_err(BadRule::Topic)?;
    let query = Template::parse_any(query).map_err(BadRule::Query)?;
    let bind = |piece: &Piece| match piece {
        Piece::Text(text) => Ok(text.clone()),
        Piece::Hole(name) => match template.holes().position(|hole| hole == name) {
            Some(index) => Ok(format!("($1[{}])", index + 1)),
            None => Err(BadRule::Unknown(name.clone())),
        },
    };
    query.pieces().iter().map(bind).collect()
}
