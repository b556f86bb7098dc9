//! Which websites' pages may read a stream: those of `--cors-origin`, with credentials; no others.

use hyper::HeaderMap;
use hyper::header::{self, HeaderValue, ORIGIN};

/// The headers that a page may send in addition to those that are always allowed.
const HEADERS: &str = "authorization, last-event-id, cache-control";

/// The response header that a page may read in addition to those that are always allowed: when to come back.
const EXPOSED: &str = "retry-after";

/// How long a browser may remember the response, in seconds.
const MAX_AGE: &str = "600";

/// Adds the headers that let the page read the response, if the page's origin is listed.
pub fn allow(origins: &[String], request: &HeaderMap, answer: &mut HeaderMap) {
    if origins.is_empty() {
        return;
    }
    // Also if the origin is not listed: a cache must not give one origin's response to another origin.
    answer.append(header::VARY, HeaderValue::from_static("origin"));
    let Some(origin) = request.get(ORIGIN) else { return };
    if origins.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin.as_bytes())) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
}

/// Adds the answers to a preflight request.
pub fn preflight(answer: &mut HeaderMap) {
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET"));
    answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS));
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listed_origin_is_allowed() {
        let origins = ["https://app.example.org".to_string()];
        let allowed = |origin: &'static str| {
            let request = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
            let mut answer = HeaderMap::new();
            allow(&origins, &request, &mut answer);
            assert_eq!(answer[header::VARY], "origin");
            answer.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN)
        };
        assert!(allowed("https://app.example.org"));
        for other in ["https://app.example.org.evil.net", "http://app.example.org", "https://example.org", "null", "*"]
        {
            assert!(!allowed(other), "{other}");
        }
    }
}
