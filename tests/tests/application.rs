//! The application's own rule: who it lets in, what it may say, and what happens while it says nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;
use tidings_tests::application::{Application, Reply};
use tidings_tests::proxy::binary;
use tidings_tests::sse::Request;
use tidings_tests::{DEADLINE, Database, Frame, Item, Proxy, Session, Sse, http, until};

use crate::access::{Team, ask};
use crate::towards_postgres::Authority;
use crate::{all_until_now, boards, titles};

/// Ada has the boards 5 and 7, and everyone knows her by her cookie.
fn teamboard() -> Application {
    Application::start(|asked| match asked.header("cookie") {
        "session=ada" if !asked.asks_for("topic=boards_6") => Reply::status(204),
        "session=ada" => Reply::status(403),
        "session=gone" => Reply::status(404),
        _ => Reply::status(401),
    })
}

/// Starts a proxy that asks the application.
fn proxy(db: &Database<'_>, application: &Application, args: &[&str]) -> Proxy {
    let url = application.url("/may?key=own");
    db.proxy(&[&["--auth-url", &url], args].concat())
}

const ADA: (&str, &str) = ("Cookie", "session=ada");
const EVENTS: &str = "/events?topic=boards_5";

/// Opens a stream with a cookie.
fn open(proxy: &Proxy, topic: &str, cookie: &str) -> Sse {
    proxy.open(&Request { cookie: Some(cookie.to_owned()), ..Request::live(&[topic]) })
}

fn add(session: &mut Session, id: i64, board: i64, title: &str) {
    session.run(&format!("INSERT INTO board_items VALUES ({id}, {board}, '{title}')"));
}

/// How often each answer came.
fn answers(proxy: &Proxy, answer: &str) -> f64 {
    proxy.metrics()[&format!("tidings_application_answers_total{{answer=\"{answer}\"}}")]
}

#[test]
fn the_application_decides_by_its_own_cookie() {
    let (db, application) = (boards(), teamboard());
    let proxy = proxy(&db, &application, &["--route", "/api/boards/{id}/events=boards_{id}"]);
    let mut stream = open(&proxy, "boards_5", "session=ada");
    add(&mut db.session(), 1, 5, "hers");
    add(&mut db.session(), 2, 6, "not hers");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut stream)), ["hers"]);
    let status = |path: &str, headers: &[(&str, &str)]| ask(&proxy, path, headers).0.status;
    assert_eq!(status("/api/boards/7/events", &[ADA]), 200);
    assert_eq!(status("/events?topic=boards_5&topic=boards_7", &[ADA]), 200);
    assert_eq!(status("/events?topic=boards_5&topic=boards_6", &[ADA]), 403);
    assert_eq!(status(EVENTS, &[("Cookie", "session=gone")]), 403);
    assert_eq!(status(EVENTS, &[]), 401);
    let asked = application.asked();
    assert_eq!(asked[0].target, "/may?key=own&topic=boards_5");
    assert_eq!(asked[2].target, "/may?key=own&topic=boards_5&topic=boards_7");
    assert_eq!((answers(&proxy, "yes"), answers(&proxy, "no")), (3.0, 3.0));
    assert_eq!(application.connections(), 1, "the connection is kept");
}

#[test]
fn the_application_is_shown_only_what_it_needs() {
    let (db, application) = (boards(), teamboard());
    let url = application.url("/may");
    let address = db.cluster().url(db.name(), &db.proxy_role());
    let proxy = Proxy::start_verbose(&address, &["--auth-url", &url]);
    let headers = [
        ("Cookie", "session=ada"),
        ("Authorization", "Bearer secret-of-ada"),
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-User", "admin"),
        ("Last-Event-ID", "1-1"),
        ("Connection", "close, X-Forwarded-Port"),
        ("X-Forwarded-Port", "443"),
        ("TE", "trailers"),
    ];
    ask(&proxy, EVENTS, &headers);
    ask(&proxy, "/events?topic=boards_5&token=secret-of-ben", &[]);
    let asked = application.asked();
    let mut names = asked[0].header_names();
    names.sort_unstable();
    let expected = ["accept", "authorization", "cookie", "host", "user-agent"];
    assert_eq!(names, [&expected[..], &["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]].concat());
    assert_eq!(asked[0].header("x-forwarded-for"), "203.0.113.9, 127.0.0.1");
    assert_eq!(asked[0].header("x-forwarded-host"), proxy.address().to_string());
    assert_eq!(asked[1].header("authorization"), "Bearer secret-of-ben", "as an EventSource sends it");
    let log = proxy.log();
    assert!(log.contains("DEBUG") && !log.contains("secret-of") && !log.contains("session=ada"), "{log}");
}

#[test]
fn an_answer_may_leave_fewer_topics_and_never_more() {
    let (db, application) = (boards(), teamboard());
    let proxy = proxy(&db, &application, &["--reauthorize", "200ms"]);
    application.answer(|_| Reply::json(&json!({"topics": ["boards_5", "boards_9", "secret"]})));
    let mut stream = proxy.live(&["boards_5", "boards_6"]);
    for (id, board) in [(1, 5), (2, 6), (3, 9), (4, 5)] {
        add(&mut db.session(), id, board, &format!("on {board}"));
    }
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut stream)), ["on 5", "on 5"]);
    let (head, body) = ask(&proxy, "/events?topic=boards_6&topic=boards_7", &[]);
    assert_eq!(head.status, 403);
    assert!(body.contains("not allowed: boards_6, boards_7"), "{body}");
    // What is no longer among the topics ends the stream.
    application.answer(|_| Reply::json(&json!({"topics": ["boards_6"]})));
    assert_eq!(stream.rest(), [revoked()]);
}

/// What an open stream gets when its right is taken away.
fn revoked() -> Frame {
    Frame { id: None, event: "unauthorized".into(), data: r#"{"reason":"revoked"}"#.into() }
}

#[test]
fn whatever_is_not_a_yes_lets_nobody_in() {
    let (db, application) = (boards(), teamboard());
    // Only for silence, because on a busy machine another answer may take longer than that.
    let hasty = proxy(&db, &application, &["--auth-timeout", "300ms"]);
    let patient = proxy(&db, &application, &[]);
    let elsewhere = format!("Location: {}\r\n", application.url("/login"));
    let hostile: Vec<(&str, Reply)> = vec![
        ("unclear", Reply::Flood(10 * 1024 * 1024)),
        ("unclear", Reply::With(302, elsewhere.clone(), String::new())),
        ("unclear", Reply::With(307, elsewhere, String::new())),
        ("unclear", Reply::status(500)),
        ("unclear", Reply::status(429)),
        ("unclear", Reply::Text(200, "<html>Sign in".into())),
        ("unclear", Reply::Text(200, "{\"topics\":".into())),
        ("unclear", Reply::json(&json!({"topics": "boards_5"}))),
        ("unclear", Reply::json(&json!({"claims": ["role"]}))),
        ("unclear", Reply::json(&json!({"expires_in": "soon"}))),
        ("unclear", Reply::json(&json!({"allowed": false}))),
        ("late", Reply::Silence),
        ("unreachable", Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec())),
        ("unreachable", Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{}".to_vec())),
        ("unreachable", Reply::Raw(Vec::new())),
    ];
    for (answer, reply) in hostile {
        let proxy = if matches!(reply, Reply::Silence) { &hasty } else { &patient };
        let before = answers(proxy, answer);
        let shown = format!("{reply:.80?}");
        application
            .answer(move |asked| if asked.target.starts_with("/may") { reply.clone() } else { Reply::status(200) });
        let (head, body) = ask(proxy, EVENTS, &[ADA]);
        assert_eq!(head.status, 503, "{shown}");
        assert!(head.header("retry-after").is_some() && body.contains("can't be checked now"), "{body}");
        assert_eq!(answers(proxy, answer), before + 1.0, "{shown}");
    }
    application.go_down();
    assert_eq!(ask(&patient, EVENTS, &[ADA]).0.status, 503);
    assert!(!application.asked().iter().any(|asked| asked.target.starts_with("/login")), "a redirect was followed");
    // An EventSource would give up after any status except 200, so it is told when to come back.
    let mut told = patient.live(&["boards_5"]);
    assert!(matches!(told.item(), Some(Item::Retry(1000..))));
    assert_eq!(told.rest(), []);
    application.come_up();
    application.answer(|_| Reply::status(200));
    assert_eq!(ask(&patient, EVENTS, &[ADA]).0.status, 200, "the proxy has survived");
}

#[test]
fn a_request_that_meets_the_end_of_an_idle_connection_is_sent_again() {
    let (db, application) = (boards(), teamboard());
    let proxy = proxy(&db, &application, &[]);
    for _ in 0..5 {
        assert_eq!(ask(&proxy, EVENTS, &[ADA]).0.status, 200);
        application.cut();
    }
}

#[test]
fn the_same_question_is_asked_once_at_a_time() {
    let (db, application) = (boards(), teamboard());
    let proxy = proxy(&db, &application, &["--auth-timeout", "60s"]);
    let go = Arc::new(AtomicBool::new(false));
    let wait = go.clone();
    application.answer(move |_| {
        until("all are waiting", || wait.load(Ordering::Relaxed));
        Reply::status(204)
    });
    // All of them have sent their requests before the proxy is asked how many connections it has.
    let clients: Vec<TcpStream> = (0..20)
        .map(|n| {
            let mut socket = TcpStream::connect(proxy.address()).expect("connect");
            let request = format!("GET {EVENTS} HTTP/1.1\r\nHost: x\r\nCookie: session={}\r\n\r\n", n % 2);
            socket.write_all(request.as_bytes()).expect("send a request");
            socket
        })
        .collect();
    until("all are waiting", || proxy.metric("tidings_connections") as usize == 21 && application.count() == 2);
    go.store(true, Ordering::Relaxed);
    for mut client in clients {
        client.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut status = [0; 12];
        client.read_exact(&mut status).expect("an answer");
        assert_eq!(&status, b"HTTP/1.1 200");
    }
    assert_eq!(application.count(), 2);
    // The answer is not kept: the next client is asked for.
    assert_eq!(ask(&proxy, EVENTS, &[("Cookie", "session=0")]).0.status, 200);
    assert_eq!(application.count(), 3);
}

#[test]
fn a_refusal_ends_an_open_stream() {
    let (db, application) = (boards(), teamboard());
    let proxy = proxy(&db, &application, &["--reauthorize", "200ms"]);
    application.answer(|_| Reply::status(204));
    let (mut hers, mut his) = (open(&proxy, "boards_5", "session=ada"), open(&proxy, "boards_5", "session=ben"));
    application.answer(|asked| Reply::status(if asked.header("cookie") == "session=ben" { 403 } else { 204 }));
    assert_eq!(his.rest(), [revoked()]);
    add(&mut db.session(), 1, 5, "without him");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut hers)), ["without him"]);
    assert_eq!(proxy.metric("tidings_auth_ended_total"), 1.0);
}

#[test]
fn an_answer_is_asked_for_again_when_it_expires() {
    let (db, application) = (boards(), teamboard());
    let proxy = proxy(&db, &application, &["--reauthorize", "1h"]);
    application.answer(|_| Reply::json(&json!({"expires_in": 1})));
    let mut stream = open(&proxy, "boards_5", "session=ada");
    until("it is asked again", || application.count() >= 2);
    application.answer(|_| Reply::status(401));
    assert_eq!(stream.rest(), [revoked()]);
}

#[test]
fn streams_outlive_an_application_that_is_down_until_the_grace_is_over() {
    let (db, application) = (boards(), teamboard());
    let patient = proxy(&db, &application, &["--reauthorize", "200ms", "--auth-grace", "1h"]);
    let strict = proxy(&db, &application, &["--reauthorize", "200ms", "--auth-grace", "1s"]);
    let (mut stays, mut ends) = (open(&patient, "boards_5", "session=ada"), open(&strict, "boards_5", "session=ada"));
    application.go_down();
    until("it is noticed", || answers(&patient, "unreachable") >= 2.0);
    add(&mut db.session(), 1, 5, "meanwhile");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut stays)), ["meanwhile"]);
    let mut last = None;
    while let Some(item) = ends.item() {
        last = Some(item);
    }
    assert!(matches!(last, Some(Item::Retry(_))), "the client is told to come back: {last:?}");
    assert_eq!(strict.metrics()["tidings_auth_ended_total{cause=\"unanswered\"}"], 1.0);
    application.come_up();
    let yes = answers(&patient, "yes");
    until("it is asked again", || answers(&patient, "yes") > yes);
    add(&mut db.session(), 2, 5, "after");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut stays)), ["after"]);
}

#[test]
fn no_stream_outlives_the_grace_because_its_question_waits_for_a_turn() {
    let (db, application) = (boards(), teamboard());
    application.answer(|_| Reply::status(204));
    // Eight questions are asked at a time, and none of them is answered.
    let times = ["--reauthorize", "500ms", "--auth-timeout", "1s", "--auth-grace", "1s"];
    let proxy = proxy(&db, &application, &times);
    let _streams: Vec<Sse> = (0..80).map(|n| open(&proxy, "boards_5", &format!("session={n}"))).collect();
    proxy.wait_clients(80);
    application.answer(|_| Reply::Silence);
    application.cut();
    let before = application.count();
    until("all of them have ended", || proxy.metric("tidings_clients") == 0.0);
    assert_eq!(proxy.metrics()["tidings_auth_ended_total{cause=\"unanswered\"}"], 80.0);
    // If each question waited for its turn, each stream would have been asked about before its end.
    let asked = application.count() - before;
    assert!(asked < 80, "{asked}");
}

#[test]
fn claims_in_the_answer_are_judged_by_the_rules() {
    let team = Team::new();
    let application = teamboard();
    let claims = team.claims(1);
    application.answer(move |_| Reply::json(&json!({ "claims": claims })));
    let proxy = proxy(&team.db, &application, &["--reauthorize", "200ms"]);
    let status = |path: &str| ask(&proxy, path, &[ADA]).0.status;
    assert_eq!(status(EVENTS), 200);
    assert_eq!(status("/events?topic=boards_6"), 403, "the application allows it, but row-level security does not");
    let mut stream = open(&proxy, "boards_5", "session=ada");
    team.db.session().run("DELETE FROM members WHERE person = 1");
    assert_eq!(stream.rest(), [revoked()]);
}

#[test]
fn the_application_decides_about_channels_too() {
    let (db, application) = (boards(), teamboard());
    application.answer(|asked| Reply::status(if asked.asks_for("channel=boards_5") { 204 } else { 403 }));
    let proxy = proxy(&db, &application, &["--channel", "boards_*", "--reauthorize", "200ms"]);
    assert_eq!(ask(&proxy, "/channels/boards_6", &[ADA]).0.status, 403);
    let mut response = http::open(proxy.address(), "/channels/boards_5", &[ADA]).expect("a channel");
    assert_eq!(response.head.status, 200);
    application.answer(|_| Reply::status(403));
    let mut body = Vec::new();
    while response.read(&mut body).expect("read the channel") {}
    let body = String::from_utf8(body).expect("text");
    assert!(body.ends_with("event: unauthorized\ndata: {\"reason\":\"revoked\"}\n\n"), "{body}");
}

#[test]
fn https_is_verified() {
    let db = boards();
    let authority = Authority::new();
    let (certificate, key) = authority.vouch("localhost");
    let [certificate, key, roots] =
        [&certificate, &key, &authority.certificate].map(|path| path.to_str().expect("a path of text"));
    // Another proxy is in the place of the application: its answer is text, so it is seen that it was understood.
    let port = tidings_tests::cluster::free_port();
    let address = db.cluster().url(db.name(), &db.proxy_role());
    let server = Proxy::start_at(port, &address, &["--tls-cert", certificate, "--tls-key", key]);
    let url = |host: &str| format!("https://{host}:{}/healthz", server.address().port());
    let answer = |url: &str, args: &[&str]| {
        let proxy = db.proxy(&[&["--auth-url", url], args].concat());
        assert_eq!(ask(&proxy, EVENTS, &[ADA]).0.status, 503);
        (answers(&proxy, "unclear"), answers(&proxy, "unreachable"))
    };
    let trusting = ["--auth-ca", roots];
    until("the server runs", || answer(&url("localhost"), &trusting) == (1.0, 0.0));
    assert_eq!(answer(&url("localhost"), &[]), (0.0, 1.0), "an authority that the system does not trust");
    assert_eq!(answer(&url("127.0.0.1"), &trusting), (0.0, 1.0), "another name");
}

#[test]
fn only_one_way_of_access_is_accepted() {
    let run = |args: &[&str]| {
        let output = Command::new(binary()).args(["--database-url", "x"]).args(args).output().expect("run the proxy");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let url = ["--auth-url", "http://localhost:1/"];
    for other in [&["--open"][..], &["--jwt-secret-file", "x"], &["--jwks-file", "x"]] {
        let (code, error) = run(&[&url[..], other].concat());
        assert!(code == Some(2) && error.contains("cannot be used with"), "{error}");
    }
    for bad in ["ftp://x/", "http://user:hunter2@x/", "may", "http://x/#y"] {
        let (code, error) = run(&["--auth-url", bad]);
        assert!(code == Some(2) && error.contains("--auth-url") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_json_answer_that_waits_holds_nothing_from_after_a_revocation() {
    let (db, application) = (boards(), teamboard());
    let proxy = proxy(&db, &application, &["--reauthorize", "200ms"]);
    let position: String = db.session().one("SELECT tidings.position()");
    let address = proxy.address();
    let asking = thread::spawn(move || {
        let path = format!("/events?topic=boards_5&since={}", http::escape(&position));
        let headers = [ADA, ("Accept", "application/json"), ("Connection", "close")];
        http::open(address, &path, &headers).and_then(http::Response::whole).expect("an answer")
    });
    proxy.wait_clients(1);
    application.answer(|_| Reply::status(403));
    until("it is revoked", || proxy.metric("tidings_auth_ended_total") >= 1.0);
    add(&mut db.session(), 1, 5, "a secret");
    let (head, body) = asking.join().expect("the client");
    assert_eq!(head.status, 503, "{body}");
    assert!(!body.contains("a secret"), "{body}");
}
