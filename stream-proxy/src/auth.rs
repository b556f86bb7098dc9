//! Who may subscribe to what. A request first becomes an identity, then its topics are checked for it; both before a byte
//! of a stream is sent.

use std::sync::Arc;

use hyper::http::request::Parts;

/// How access is decided.
#[derive(Clone, Debug)]
pub enum Access {
    /// Every topic is open to everyone.
    Open,
}

/// Who a request comes from.
#[derive(Clone, Debug)]
pub enum Identity {
    /// Nobody in particular.
    Anyone,
}

/// Why a request is turned away. Open access turns nobody away.
#[derive(Clone, Copy, Debug)]
pub enum Denied {}

impl Access {
    /// Who the request comes from.
    pub fn identify(&self, _request: &Parts) -> Result<Identity, Denied> {
        match self {
            Self::Open => Ok(Identity::Anyone),
        }
    }

    /// Whether `who` may subscribe to all of the topics.
    pub async fn authorize(&self, who: &Identity, _topics: &[Arc<str>]) -> Result<(), Denied> {
        match (self, who) {
            (Self::Open, Identity::Anyone) => Ok(()),
        }
    }
}
