//! What a client sends: target, query, `Last-Event-ID`, `Accept`, cookies, separated by line feeds.

#![no_main]

use http::header::{ACCEPT, AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderValue, Uri};
use libfuzzer_sys::fuzz_target;
use tidings_proxy::http::bearer::find_token;
use tidings_proxy::http::query::{self, LAST_EVENT_ID, accepts_stream, names_stream, only_token};
use tidings_proxy::route::Route;
use tidings_proxy::stream::channels::Pattern;
use tidings_wire::Topic;

const MAX_TOPICS: usize = 8;

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let target = lines.next().unwrap_or_default();
    let mut headers = HeaderMap::new();
    for (name, value) in [LAST_EVENT_ID, ACCEPT, COOKIE, AUTHORIZATION].into_iter().zip(lines.by_ref()) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    let Ok(uri) = Uri::try_from(target) else { return };
    let query = uri.query().unwrap_or_default();
    let _ = find_token(&headers, query, Some("token"));
    let _ = only_token(query);
    assert!(accepts_stream(&headers) || !names_stream(&headers));
    let route: Route = "/api/boards/{id}/events=boards_{id}".parse().expect("a route");
    let given = match route.topic(uri.path()) {
        Some(Ok(topic)) => Some(topic),
        _ => None,
    };
    let _ = Pattern::from("a*b*".to_owned()).matches(uri.path());
    if let Ok(wanted) = query::parse(query, &headers, given, MAX_TOPICS) {
        assert!((1..=MAX_TOPICS).contains(&wanted.topics.len()));
        assert!(wanted.topics.iter().all(|topic| Topic::new(topic).is_ok()));
    }
});
