//! Why a request is turned away.

use crate::access::check::Unanswered;

/// Why a request is turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It has no token, and needs one.
    #[error("a token is needed: as Authorization: Bearer, as ?token= or in the proxy's cookie")]
    NoToken,
    /// Its token is not accepted.
    #[error("the token is not valid")]
    BadToken,
    /// Its token has expired, and was valid otherwise. Only an EventSource learns the difference, because its page can
    /// renew the token.
    #[error("the token is not valid")]
    Expired,
    /// The application does not know the client.
    #[error("the application does not know this client")]
    Unknown,
    /// It may not subscribe to these topics.
    #[error("not allowed: {}", .0.join(", "))]
    Topics(Vec<String>),
    /// The database or the application did not say whether it may.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
}

impl Denied {
    /// All of these topics are refused.
    pub fn all(topics: &[std::sync::Arc<str>]) -> Self {
        Self::Topics(topics.iter().map(|topic| topic.to_string()).collect())
    }
}
