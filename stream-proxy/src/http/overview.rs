//! What a developer looks at first, only with `--open`: a page with the open and recent topics and their events, and
//! the data behind it. With `--open` everyone may read everything anyway; otherwise topics may be confidential, and
//! neither exists.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hyper::Response;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::http::body::Body;
use crate::proxy::Proxy;
use crate::stream::hub::Glance;

/// The page: one file, which loads nothing from anywhere.
const PAGE: &str = include_str!("overview.html");

/// The most topics that are shown.
const MOST: usize = 200;

/// What the page may do: run its own script and style, and ask this proxy. Topics and payloads come from outside, and
/// even if one of them were taken for markup, it could do nothing.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    )
});

/// The hash of what the page has in this element, as a policy names it.
fn hash(element: &str) -> String {
    let (start, end) = (format!("<{element}>"), format!("</{element}>"));
    let content =
        PAGE.split_once(&start).and_then(|(_, rest)| rest.split_once(&end)).map_or("", |(content, _)| content);
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(content)))
}

/// `GET /`: the page.
pub fn page() -> Response<Body> {
    let mut response = answer(PAGE, "text/html; charset=utf-8");
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// `GET /topics`: the open and recent topics.
pub fn topics(proxy: &Proxy) -> Response<Body> {
    let (topics, more) = proxy.hub.glance(MOST);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64);
    let show = |topic: &Glance| {
        // A tick is a time in microseconds. The clocks of the machines may differ.
        let seconds = topic.last.map(|tick| now.saturating_sub(tick) / 1_000_000);
        json!({ "topic": &*topic.topic, "subscribers": topic.subscribers, "kept": topic.kept, "seconds_ago": seconds })
    };
    let text = json!({
        "unready": proxy.unready().as_deref(),
        "clients": proxy.metrics.clients.get(),
        "events": proxy.metrics.events_in.get(),
        "topics": topics.iter().map(show).collect::<Vec<_>>(),
        "more": more,
    });
    answer(format!("{text}\n"), "application/json")
}

fn answer(text: impl Into<Bytes>, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::whole(text));
    response.headers_mut().extend(HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ]));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_and_has_one_script_and_one_style() {
        assert_eq!((PAGE.matches("<script").count(), PAGE.matches("<style").count()), (1, 1));
        for outside in
            ["http:", "https:", "src=", "innerHTML", "insertAdjacent", "document.write", " style=", " onclick"]
        {
            assert!(!PAGE.contains(outside), "{outside}");
        }
        assert!(POLICY.starts_with("default-src 'none'; script-src 'sha256-"));
        // The hash of an empty text: the element was not found.
        assert!(!POLICY.contains("47DEQpj8HBSa"));
    }
}
