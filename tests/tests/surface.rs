//! The proxy's responses over HTTP, as docs/http.md describes them.

use std::io::{Read, Write};
use std::net::TcpStream;

use tidings_tests::http::{self, Head};
use tidings_tests::process::{self, Signal};
use tidings_tests::{Cluster, DEADLINE, Proxy, eventually, until};

use crate::{all_until_now, boards};

const STREAM: &str = "/events?topic=boards_5";
/// Method, target and headers of a request, and the status of its response.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], u16);

const ORIGIN: &str = "https://app.example.org";

#[track_caller]
fn ask(proxy: &Proxy, method: &str, path: &str, headers: &[(&str, &str)]) -> (Head, String) {
    let response = http::send(proxy.address(), method, path, headers).and_then(http::Response::whole);
    response.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

#[test]
fn every_error_is_a_problem_document_that_says_what_is_wrong() {
    let db = boards();
    let proxy = db.proxy(&["--max-topics", "2"]);
    let long = format!("{STREAM}&topic={}", "x".repeat(256));
    let cases: &[Case<'_>] = &[
        ("GET", "/events", &[], 400),
        ("GET", "/events?topic=", &[], 400),
        ("GET", "/events?topic=a%0Ab", &[], 400),
        ("GET", "/events?topic=%FF", &[], 400),
        ("GET", &long, &[], 400),
        ("GET", "/events?topic=a&topic=b&topic=c", &[], 400),
        ("GET", "/events?topic=a&since=yesterday", &[], 400),
        ("GET", "/events?topic=a&since=1&since=2", &[], 400),
        ("GET", "/events?topic=a&last_event_id=x", &[], 400),
        ("GET", "/events?topic=a&lastEventId=x", &[], 400),
        ("GET", "/events?topic=a&lastEventID=1&lastEventID=2", &[], 400),
        ("GET", "/events?topic=a&token=x&token=y", &[], 400),
        ("GET", "/events?topic=a&topics=b", &[], 400),
        ("GET", STREAM, &[("Last-Event-ID", "x")], 400),
        ("GET", STREAM, &[("Last-Event-ID", "\u{fc}")], 400),
        ("GET", "/nothing", &[], 404),
        ("GET", "/event", &[], 404),
        ("GET", "/events/", &[], 404),
        ("GET", "/channels/a", &[], 404),
        ("POST", STREAM, &[("Content-Length", "0")], 405),
        ("DELETE", STREAM, &[], 405),
        ("PUT", "/metrics", &[("Content-Length", "0")], 405),
        ("OPTIONS", "/healthz", &[], 405),
        ("GET", STREAM, &[("Accept", "text/html")], 406),
        ("GET", STREAM, &[("Accept", "text/event-stream;q=0, application/json;q=0")], 406),
        ("GET", STREAM, &[("Accept", "text/event-stream;q=0, */*")], 406),
    ];
    for (method, path, headers, status) in cases {
        let (head, body) = ask(&proxy, method, path, headers);
        assert_eq!(head.status, *status, "{method} {path} {headers:?}: {body}");
        assert_eq!(head.header("content-type"), Some("application/problem+json"), "{method} {path}");
        let problem: serde_json::Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
        assert_eq!(problem["status"], *status, "{body}");
        for member in ["type", "title", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {body}");
        }
        assert_eq!(head.header("allow").is_some(), *status == 405, "{method} {path}");
    }
    assert_eq!(proxy.metric("tidings_requests_refused_total") as usize, cases.len());
    assert_eq!(proxy.metric("tidings_streams_total"), 0.0);
}

#[test]
fn head_answers_like_get_without_a_body_and_opens_no_stream() {
    let db = boards();
    let proxy = db.proxy(&[]);
    for (path, kind) in [
        (STREAM, "text/event-stream"),
        ("/healthz", "text/plain; charset=utf-8"),
        ("/metrics", "text/plain; charset=utf-8"),
        ("/nowhere", "application/problem+json"),
    ] {
        let (head, body) = ask(&proxy, "HEAD", path, &[]);
        assert_eq!((head.header("content-type"), body.as_str()), (Some(kind), ""), "{path}");
    }
    assert_eq!(proxy.metric("tidings_streams_total"), 0.0);
}

#[test]
fn only_a_listed_website_may_read_also_with_credentials() {
    let db = boards();
    let proxy = db.proxy(&["--cors-origin", ORIGIN, "--cors-origin", "http://localhost:3000"]);
    let preflight = |origin| {
        let headers = [("Origin", origin), ("Access-Control-Request-Method", "GET")];
        ask(&proxy, "OPTIONS", STREAM, &headers).0
    };
    for origin in [ORIGIN, "http://localhost:3000"] {
        let mut streams = vec![preflight(origin)];
        assert_eq!(streams[0].status, 204);
        assert_eq!(streams[0].header("allow"), Some("GET, HEAD, OPTIONS"));
        let open = http::open(proxy.address(), STREAM, &[("Origin", origin)]).expect("a stream");
        streams.push(open.head);
        // A page must be able to read errors too.
        streams.push(ask(&proxy, "GET", "/events", &[("Origin", origin)]).0);
        for head in streams {
            assert_eq!(head.header("access-control-allow-origin"), Some(origin));
            assert_eq!(head.header("access-control-allow-credentials"), Some("true"));
            assert_eq!(head.header("access-control-expose-headers"), Some("retry-after"));
            assert!(head.header("vary").is_some_and(|vary| vary.to_ascii_lowercase().contains("origin")));
        }
    }
    for origin in ["https://evil.example.org", "null", "https://app.example.org.evil.org", "http://app.example.org"] {
        for head in
            [preflight(origin), http::open(proxy.address(), STREAM, &[("Origin", origin)]).expect("a stream").head]
        {
            assert_eq!(head.header("access-control-allow-origin"), None, "{origin}");
            assert_eq!(head.header("access-control-allow-credentials"), None, "{origin}");
        }
    }
}

#[test]
fn the_metrics_add_up() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut streams = [proxy.live(&["boards_5"]), proxy.live(&["boards_5"]), proxy.live(&["boards_6"])];
    proxy.wait_clients(3);
    let before = proxy.metrics();
    db.session().run("INSERT INTO board_items SELECT i, 5, 'x' FROM generate_series(1, 10) i");
    for sse in &mut streams[..2] {
        assert_eq!(all_until_now(&db, "boards_5", sse).len(), 10);
    }
    // The mark of each check is an event for both clients. The first one may share the tick of the rows. A client may
    // have an event a moment before it is counted.
    let after = eventually("all is counted", || {
        let after = proxy.metrics();
        let rise = |name: &str| after[name] - before[name];
        let counted = rise("tidings_events_received_total") == 12.0 && rise("tidings_events_sent_total") == 24.0;
        let ticks = rise("tidings_ticks_total");
        (counted && ticks >= 2.0 && rise("tidings_fanout_delay_seconds_count") == ticks).then_some(after)
    });
    let rise = |name: &str| after[name] - before[name];
    assert!(rise("tidings_sent_bytes_total") > 22.0 * 100.0);
    assert_eq!(after["tidings_clients"], 3.0);
    assert!(after["tidings_history_bytes"] > before["tidings_history_bytes"]);
    assert_eq!(after["tidings_upstream_connected"], 1.0);
}

/// Sends bytes and reads the response until its end, or until nothing more arrives.
fn talk(proxy: &Proxy, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(proxy.address()).expect("connect");
    socket.set_read_timeout(Some(DEADLINE)).expect("set a limit");
    // The server may close the connection in the middle.
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    answer
}

#[test]
fn no_bytes_affect_the_proxy_or_its_other_clients() {
    let db = boards();
    let proxy = db.proxy(&["--max-header-bytes", "8KiB", "--header-timeout", "2s"]);
    let mut stays = proxy.live(&["boards_5"]);
    let seed = crate::seed();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let good = b"GET /events?topic=boards_5&since=1-1 HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 5-1\r\nCookie: a=b; c=d\r\nAccept: text/event-stream\r\n\r\n";
    let http2 =
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x08\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01x\x40";
    for _ in 0..400 {
        let mut bytes = if random.bool() { good.to_vec() } else { http2.to_vec() };
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len());
            match random.u8(..4) {
                0 => bytes[at] = random.u8(..),
                1 => bytes.truncate(at.max(1)),
                2 => bytes.insert(at, random.u8(..)),
                _ => {
                    let length = random.usize(..40);
                    let some: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
                    bytes.splice(at..at, some);
                }
            }
        }
        talk(&proxy, &bytes);
    }
    // Too much of everything.
    let filler = "x".repeat(200_000);
    for request in [
        format!("GET /events?topic={filler} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET {STREAM} HTTP/1.1\r\nHost: x\r\nX: {filler}\r\n\r\n"),
        format!("GET {STREAM} HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(1000)),
        format!("{filler} / HTTP/1.1\r\n\r\n"),
    ] {
        let answer = talk(&proxy, request.as_bytes());
        let status = String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned();
        assert!(status.is_empty() || status.starts_with('4'), "{status}");
    }
    proxy.wait_clients(1);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'unhurt')");
    assert_eq!(all_until_now(&db, "boards_5", &mut stays).len(), 1);
    let log = proxy.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn it_is_not_ready_while_no_relay_runs() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    crate::create_boards(&db);
    let proxy = db.proxy(&[]);
    let mut session = db.session();
    let launcher = session.one::<i32>("SELECT pid FROM pg_stat_activity WHERE backend_type = 'tidings launcher'");
    // A stopped launcher starts no relay.
    session.stop(launcher.unsigned_abs());
    session.run("SELECT pg_terminate_backend(tidings.relay_pid())");
    let reason = eventually("the proxy notices", || {
        let (head, body) = ask(&proxy, "GET", "/readyz", &[]);
        (head.status == 503).then_some(body)
    });
    assert!(reason.contains("no relay runs"), "{reason}");
    assert_eq!(ask(&proxy, "GET", "/healthz", &[]).0.status, 200);
    let mut sse = proxy.live(&["boards_5"]);
    process::send(launcher.unsigned_abs(), Signal::SIGCONT);
    until("it is ready again", || ask(&proxy, "GET", "/readyz", &[]).0.status == 200);
    session.run("INSERT INTO board_items VALUES (1, 5, 'a')");
    assert_eq!(crate::titles(&[sse.frame()]), ["a"]);
}
