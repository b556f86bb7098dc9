//! The statement that asks the database about access: its text, its rows, and which of its errors deny access.

use std::pin::pin;
use std::sync::Arc;

use futures_util::TryStreamExt;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use crate::access::check::{Question, Refusal, Unanswered, Verdict};
use crate::access::login;
use crate::upstream::database::DatabaseError;

/// One question in each row: the claims, and the topics as a JSON array. Result rows come in the order of the
/// questions, so the first question without its rows is the one at which the statement ended.
pub fn sql() -> String {
    format!(
        "SELECT (r.n OPERATOR(pg_catalog.-) 1)::pg_catalog.int4, c.topic, c.allowed, c.reason, EXISTS ({})
         FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) WITH ORDINALITY AS r (claims, topics, n)
         CROSS JOIN LATERAL tidings.check_subscription(r.claims::pg_catalog.jsonb,
             ARRAY(SELECT pg_catalog.jsonb_array_elements_text(r.topics::pg_catalog.jsonb))) AS c",
        login::too_powerful("$3")
    )
}

/// The answers so far.
pub struct Answers<'q> {
    questions: &'q [Question],
    /// The refusals of each question.
    pub refusals: Vec<Vec<Refusal>>,
    /// How many topics of each question have an answer.
    pub counts: Vec<usize>,
}

impl<'q> Answers<'q> {
    /// No answers yet, to these questions.
    pub fn to(questions: &'q [Question]) -> Self {
        Self { questions, refusals: vec![Vec::new(); questions.len()], counts: vec![0; questions.len()] }
    }

    /// Asks, and takes the answers as they arrive: if the statement fails, the answers so far still count.
    pub async fn read(&mut self, client: &Client, sql: &str, logins: &[String]) -> Result<(), DatabaseError> {
        let claims: Vec<&str> = self.questions.iter().map(|question| &*question.claims).collect();
        let topics = |question: &Question| {
            serde_json::json!(question.topics.iter().map(|topic| &**topic).collect::<Vec<_>>()).to_string()
        };
        let topics: Vec<String> = self.questions.iter().map(topics).collect();
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&claims, Type::TEXT_ARRAY), (&topics, Type::TEXT_ARRAY), (&logins, Type::TEXT_ARRAY)];
        let mut rows = pin!(client.query_typed_raw(sql, parameters).await?);
        while let Some(row) = rows.try_next().await? {
            self.add(&row)?;
        }
        Ok(())
    }

    fn add(&mut self, row: &Row) -> Result<(), DatabaseError> {
        let n = usize::try_from(row.try_get::<_, i32>(0)?).unwrap_or(usize::MAX);
        let too_powerful: bool = row.try_get(4)?;
        let (Some(refused), Some(count)) = (self.refusals.get_mut(n), self.counts.get_mut(n)) else {
            return Err(DatabaseError::Contract("an answer that was not asked for"));
        };
        *count += 1;
        if too_powerful || !row.try_get::<_, bool>(2)? {
            let reason = if too_powerful { Some(login::TOO_POWERFUL) } else { row.try_get(3)? };
            let topic = row.try_get::<_, &str>(1)?.into();
            refused.push(Refusal { topic, reason: reason.unwrap_or_default().into() });
        }
        Ok(())
    }
}

/// Access is denied if the rules fail with an error, including a timeout. It is not denied if the server can't take the
/// question.
pub fn failed(question: &Question, error: &DatabaseError) -> Verdict {
    match error {
        DatabaseError::Postgres(postgres) if postgres.code().is_some_and(blames_the_rule) && !error.no_extension() => {
            let reason: Arc<str> = error.to_string().into();
            let refuse = |topic: &Arc<str>| Refusal { topic: topic.clone(), reason: reason.clone() };
            Ok(question.topics.iter().map(refuse).collect())
        }
        _ => Err(Unanswered::Database(error.to_string().into())),
    }
}

/// Whether the question caused an error, rather than a server that shuts down, is full, or can't be reached.
fn blames_the_rule(code: &SqlState) -> bool {
    let code = code.code();
    !(code.starts_with("57P") || ["08", "53", "58", "XX"].iter().any(|class| code.starts_with(class)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_shuts_down_revokes_no_access() {
        for code in ["57P01", "57P03", "53300", "08006", "58030"] {
            assert!(!blames_the_rule(&SqlState::from_code(code)), "{code}");
        }
        for code in ["57014", "22P02", "42501", "42P01"] {
            assert!(blames_the_rule(&SqlState::from_code(code)), "{code}");
        }
    }
}
