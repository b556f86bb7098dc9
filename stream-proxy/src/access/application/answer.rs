//! The application's answer to a question. Only a clear yes admits a client.

use std::collections::HashSet;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Map, Value};

/// The longest validity that an answer can state, in seconds: ten years.
const LONGEST: f64 = 3600.0 * 24.0 * 3650.0;

/// What the application says.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Refused: with 401, 403 or 404.
    No(StatusCode),
    /// Allowed.
    Yes(Yes),
}

/// Details of a yes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Yes {
    /// The only topics that are allowed. Without this member, all requested topics are.
    pub topics: Option<HashSet<String>>,
    /// Claims for the rules in the database, and for snapshots.
    pub claims: Option<Map<String, Value>>,
    /// How long the answer is valid.
    pub expires_in: Option<Duration>,
}

/// Why an answer is neither yes nor no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// Another status.
    #[error("answered {0}")]
    Status(StatusCode),
    /// A login page, for instance.
    #[error("answered {0} with a body that is not a JSON object")]
    NotJson(StatusCode),
    /// A part of the body is invalid. The text is one of ours, not part of the answer.
    #[error("answered with {0}")]
    Member(&'static str),
}

impl Answer {
    /// Reads an answer.
    pub fn read(status: StatusCode, body: &[u8]) -> Result<Self, Unclear> {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Ok(Self::No(status)),
            _ if !status.is_success() => Err(Unclear::Status(status)),
            _ if body.trim_ascii().is_empty() => Ok(Self::Yes(Yes::default())),
            _ => match serde_json::from_slice(body) {
                Ok(Value::Object(members)) => Yes::of(members).map(Self::Yes).map_err(Unclear::Member),
                _ => Err(Unclear::NotJson(status)),
            },
        }
    }
}

impl Yes {
    /// Reads a yes. An unknown member is an error, because it could be a misspelt restriction.
    fn of(members: Map<String, Value>) -> Result<Self, &'static str> {
        let mut yes = Self::default();
        for (name, value) in members {
            match (name.as_str(), value) {
                ("topics" | "claims" | "expires_in", Value::Null) => {}
                ("topics", Value::Array(topics)) => {
                    let names = topics.into_iter().map(|topic| match topic {
                        Value::String(name) => Ok(name),
                        _ => Err("a topic that is not a text"),
                    });
                    yes.topics = Some(names.collect::<Result<_, _>>()?);
                }
                ("claims", Value::Object(claims)) => yes.claims = Some(claims),
                ("expires_in", Value::Number(seconds)) => {
                    let seconds = seconds.as_f64().filter(|seconds| *seconds >= 0.0);
                    let seconds = seconds.ok_or("expires_in that is not a time")?;
                    yes.expires_in = Some(Duration::from_secs_f64(seconds.min(LONGEST)));
                }
                ("topics", _) => return Err("topics that are not a list"),
                ("claims", _) => return Err("claims that are not an object"),
                ("expires_in", _) => return Err("expires_in that is not a number"),
                _ => return Err("a member other than topics, claims and expires_in"),
            }
        }
        Ok(yes)
    }

    /// Whether a topic, or a channel, is allowed.
    pub fn allows(&self, name: &str) -> bool {
        self.topics.as_ref().is_none_or(|topics| topics.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(status: u16, body: &str) -> Result<Answer, Unclear> {
        Answer::read(StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn a_success_lets_in_and_three_statuses_refuse() {
        for status in [200, 201, 204] {
            for body in ["", " \n", "{}", r#"{"topics": null, "claims": null, "expires_in": null}"#] {
                assert_eq!(read(status, body), Ok(Answer::Yes(Yes::default())), "{status} {body:?}");
            }
        }
        for status in [401, 403, 404] {
            assert_eq!(read(status, "<html>"), Ok(Answer::No(StatusCode::from_u16(status).unwrap())));
        }
        for status in [100, 302, 304, 400, 402, 410, 429, 500, 503] {
            assert!(matches!(read(status, ""), Err(Unclear::Status(_))), "{status}");
        }
    }

    #[test]
    fn a_body_narrows_and_describes() {
        let body = json!({"topics": ["a", "b"], "claims": {"sub": 5}, "expires_in": 1.5});
        let Ok(Answer::Yes(yes)) = read(200, &body.to_string()) else { panic!("not a yes") };
        assert_eq!((yes.allows("a"), yes.allows("c")), (true, false));
        assert_eq!((&yes.claims.unwrap()["sub"], yes.expires_in), (&json!(5), Some(Duration::from_millis(1500))));
    }

    #[test]
    fn whatever_is_unclear_is_not_a_yes() {
        for body in [
            "ok",
            "<!DOCTYPE html><title>Sign in</title>",
            "{",
            "true",
            "null",
            "[]",
            "{} {}",
            r#"{"topics": "a"}"#,
            r#"{"topics": {"a": true}}"#,
            r#"{"topics": [5]}"#,
            r#"{"claims": "role"}"#,
            r#"{"claims": [1]}"#,
            r#"{"expires_in": "300"}"#,
            r#"{"expires_in": -1}"#,
            r#"{"expires_in": {}}"#,
            r#"{"topic": ["a"]}"#,
            r#"{"allowed": false}"#,
        ] {
            assert!(read(200, body).is_err(), "{body}");
        }
        assert!(read(200, r#"{"expires_in": 1e300}"#).is_ok());
    }

    proptest! {
        #[test]
        fn no_answer_breaks_the_parser(status in 200u16..600, body in "\\PC{0,60}|[\\{\\}\\[\\]:,\"a-z0-9]{0,60}") {
            let _ = read(status, &body);
        }
    }
}
