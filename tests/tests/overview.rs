//! The page of a proxy with `--open`, and the data behind it. What it looks like is tested in browsers.

use serde_json::Value;
use tidings_tests::{Proxy, http, until};

use crate::access::Team;
use crate::boards;

fn topics(proxy: &Proxy) -> Value {
    let (head, body) = http::get(proxy.address(), "/topics").expect("ask");
    assert_eq!((head.status, head.header("content-type")), (200, Some("application/json")));
    serde_json::from_str(&body).expect("JSON")
}

#[test]
fn an_open_proxy_has_a_page_and_shows_open_and_recent_topics() {
    let db = boards();
    let proxy = db.proxy(&["--route", "/topics/{id}=boards_{id}"]);
    let (head, body) = http::get(proxy.address(), "/").expect("ask");
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = head.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    assert!(body.starts_with("<!doctype html>"), "{body}");
    assert_eq!(topics(&proxy)["topics"].as_array().map(Vec::len), Some(0));
    let mut sse = proxy.live(&["boards_5", "quiet"]);
    db.session().run("INSERT INTO board_items SELECT i, 5, 'x' FROM generate_series(1, 3) i");
    sse.take(3);
    let mut shown = topics(&proxy);
    let list = shown["topics"].as_array_mut().expect("a list");
    list.sort_by_key(|topic| topic["topic"].to_string());
    let seconds = list[0]["seconds_ago"].take();
    assert!(seconds.as_u64().is_some_and(|seconds| seconds < 3600), "{seconds}");
    assert_eq!(list[0], serde_json::json!({"topic": "boards_5", "subscribers": 1, "kept": 3, "seconds_ago": null}));
    assert_eq!(list[1], serde_json::json!({"topic": "quiet", "subscribers": 1, "kept": 0, "seconds_ago": null}));
    assert_eq!((&shown["clients"], &shown["events"], &shown["more"]), (&1.into(), &3.into(), &false.into()));
    assert_eq!(shown["unready"], Value::Null);
    // It stays small, whatever there is.
    db.session().run("INSERT INTO board_items SELECT i, i, 'x' FROM generate_series(1001, 2000) i");
    until("all have arrived", || topics(&proxy)["events"] == 1003);
    let shown = topics(&proxy);
    assert!(shown["topics"].as_array().is_some_and(|list| list.len() <= 200) && shown["more"] == true, "{shown}");
    assert_eq!(http::send(proxy.address(), "POST", "/topics", &[]).expect("ask").head.status, 405);
}

#[test]
fn a_proxy_that_is_not_open_shows_no_topics() {
    let team = Team::new();
    let proxy = team.proxy(&["--anon-role", &team.guest]);
    for path in ["/", "/topics"] {
        let (head, body) = http::get(proxy.address(), path).expect("ask");
        assert_eq!((head.status, head.header("content-type")), (404, Some("application/problem+json")), "{body}");
    }
}
