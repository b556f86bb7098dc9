//! Who may subscribe to what. A request first gets an identity, then its topics are checked, both before any byte of a
//! stream is sent.

use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::access::application::Application;
use crate::access::application::visit::Visitor;
use crate::access::by_token::{ByToken, Holder};
use crate::access::credentials::Credentials;
use crate::access::denied::Denied;
use crate::access::open_streams::Pass;
use crate::addresses::network;
use crate::stream::subscriber::Subscriber;

/// How access is decided.
#[derive(Clone, Debug)]
pub enum Access {
    /// Every topic is open to everyone.
    Open,
    /// By tokens, and by the rules in the database.
    ByToken(Arc<ByToken>),
    /// By the application.
    Application(Arc<Application>),
}

/// Who a request comes from.
#[derive(Clone, Debug)]
pub enum Identity {
    /// Anyone: access is open.
    Anyone,
    /// The identity that claims name.
    Holder(Holder),
    /// A client that only the application can identify, by the headers of the request.
    Visitor(Box<Visitor>),
}

/// Who reads rows.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The claims, as JSON. Without claims, the proxy's own role reads.
    pub claims: Option<Arc<str>>,
    /// Who takes turns: the same as the claims, or for a client without claims of its own the network of its address.
    pub identity: Arc<str>,
}

impl Identity {
    /// The role and the subject, for the log. Other claims may be confidential.
    pub fn describe(&self) -> String {
        let who = match self {
            Self::Anyone => return "anyone".into(),
            Self::Holder(holder) => Some(&holder.who),
            Self::Visitor(visitor) => visitor.who.as_ref(),
        };
        let claims: serde_json::Value = who.and_then(|who| serde_json::from_str(&who.claims).ok()).unwrap_or_default();
        let claim = |name: &str| claims.get(name).map_or("-".into(), ToString::to_string);
        format!("role {}, sub {}", claim("role"), claim("sub"))
    }

    /// Who reads the rows that a stream starts with.
    pub fn reader(&self, peer: IpAddr) -> Reader {
        let who = match self {
            Self::Anyone => None,
            Self::Holder(holder) => Some(&holder.who),
            Self::Visitor(visitor) => visitor.who.as_ref(),
        };
        match who {
            Some(who) => Reader { claims: Some(who.claims.clone()), identity: who.identity.clone() },
            None => Reader { claims: None, identity: network(peer).to_string().into() },
        }
    }
}

impl Access {
    /// Who a request comes from.
    pub async fn identify(&self, credentials: Credentials<'_>) -> Result<Identity, Denied> {
        match self {
            Self::Open => Ok(Identity::Anyone),
            Self::ByToken(tokens) => {
                let (peer, checked) = (credentials.peer, credentials.seen.tick);
                let holder = tokens.identify(credentials.token, peer).await?;
                Ok(Identity::Holder(Holder { checked, ..holder }))
            }
            Self::Application(_) => Ok(Identity::Visitor(Box::new(Visitor::new(&credentials)))),
        }
    }

    /// Checks that `who` may subscribe to the topics. The application may allow only some of them; the others are
    /// removed.
    pub async fn authorize(&self, who: &mut Identity, topics: &mut Vec<Arc<str>>) -> Result<(), Denied> {
        match (self, who) {
            (Self::Open, _) => Ok(()),
            (Self::ByToken(tokens), Identity::Holder(holder)) => tokens.authorize(holder, topics).await,
            (Self::Application(application), Identity::Visitor(visitor)) => {
                application.authorize(visitor, topics).await
            }
            _ => Err(Denied::NoToken),
        }
    }

    /// Checks that `who` may listen to a channel. There are no rules for channels; only the application is asked.
    pub async fn authorize_channel(&self, who: &mut Identity, name: &str) -> Result<(), Denied> {
        match (self, who) {
            (Self::Application(application), Identity::Visitor(visitor)) => {
                application.authorize_channel(visitor, name).await
            }
            _ => Ok(()),
        }
    }

    /// Looks after the open streams, forever.
    pub async fn run(&self, review: Duration) -> Infallible {
        match self {
            Self::Open => pending().await,
            Self::ByToken(tokens) => tokens.run(review).await,
            Self::Application(application) => application.run().await,
        }
    }

    /// Registers a stream, so that it ends when its right does. Dropping the result removes it.
    pub fn admit(&self, who: Identity, subscriber: &Arc<Subscriber>, topics: &[Arc<str>]) -> Option<Pass> {
        match (self, who) {
            (Self::ByToken(tokens), Identity::Holder(holder)) => Some(tokens.admit(holder, subscriber, topics)),
            (Self::Application(application), Identity::Visitor(visitor)) => {
                application.admit(*visitor, subscriber, topics)
            }
            _ => None,
        }
    }
}
