//! Errors as clients see them: `application/problem+json` with the status chosen here and nowhere else.

use bytes::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

use crate::access::denied::Denied;
use crate::http::body::Body;

/// Why a request gets an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The query or a header can't be understood.
    #[error("{0}")]
    BadRequest(String),
    /// The request needs a valid token.
    #[error("{0}")]
    Unauthorized(String),
    /// The client is not allowed to subscribe.
    #[error("{0}")]
    Forbidden(String),
    /// There is nothing at this path.
    #[error("there is nothing at this path")]
    NotFound,
    /// The path has no such method.
    #[error("this path allows only {0}")]
    MethodNotAllowed(&'static str),
    /// The client accepts neither event streams nor, for topics, JSON.
    #[error("this path sends text/event-stream (for topics also application/json), which the request does not accept")]
    NotAcceptable,
    /// The request's head is longer than `--max-header-bytes`.
    #[error("the request's head is too long")]
    HeadTooLarge,
    /// A stream can't be opened now.
    #[error("{0}")]
    Unavailable(String),
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let detail = denied.to_string();
        match denied {
            Denied::NoToken | Denied::BadToken | Denied::Expired | Denied::Unknown => Self::Unauthorized(detail),
            Denied::Topics(_) => Self::Forbidden(detail),
            // The details are in the log.
            Denied::Unanswered(_) => Self::Unavailable("access can't be checked now".into()),
        }
    }
}

impl Problem {
    /// The status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::MethodNotAllowed(methods) => Some((ALLOW, HeaderValue::from_static(methods))),
            Self::Unauthorized(_) => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Self::Unavailable(_) => Some((RETRY_AFTER, HeaderValue::from_static("2"))),
            _ => None,
        }
    }

    /// The response.
    pub fn response(&self) -> Response<Body> {
        let status = self.status();
        let text = serde_json::json!({
            "type": "about:blank",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": self.to_string(),
        });
        let mut response = Response::new(Body::whole(Bytes::from(format!("{text}\n"))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.extend(self.header());
        response
    }
}
