//! One JSON answer with the events that a stream would send: `Accept: application/json`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};
use tidings_tests::http::{self, Head};
use tidings_tests::sse::Request;
use tidings_tests::{Proxy, Session, SetAtTheEnd, until};

use crate::access::Team;
use crate::boards;

/// The answer to a request for JSON.
#[track_caller]
fn ask(proxy: &Proxy, path: &str, headers: &[(&str, &str)]) -> (Head, Value) {
    let headers = [&[("Accept", "application/json")], headers].concat();
    let answer = http::send(proxy.address(), "GET", path, &headers).and_then(http::Response::whole);
    let (head, body) = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
    let json = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error} in {body:?}"));
    (head, json)
}

/// The answer with the events after a position.
#[track_caller]
fn after(proxy: &Proxy, topics: &str, position: &str) -> Value {
    ask(proxy, &format!("/events?{topics}&since={}", http::escape(position)), &[]).1
}

/// The titles in the events, each with its topic.
#[track_caller]
fn titles(answer: &Value) -> Vec<(String, String)> {
    let events = answer["events"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let title = |event: &Value| {
        let data: Value = serde_json::from_str(event["data"].as_str().expect("data")).expect("data in JSON");
        let topic = event["topic"].as_str().expect("a topic").to_owned();
        (topic, data["record"]["title"].as_str().unwrap_or_default().to_owned())
    };
    events.iter().map(title).collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(topic, title)| (topic.to_string(), title.to_string())).collect()
}

fn insert(session: &mut Session, id: i32, board: i32, title: &str) {
    session.run(&format!("INSERT INTO board_items VALUES ({id}, {board}, '{title}')"));
}

const BOTH: &str = "topic=boards_5&topic=boards_6";

#[test]
fn an_answer_has_what_lies_after_a_position_and_waits_for_it() {
    let db = boards();
    let (proxy, other) = (db.proxy(&["--heartbeat", "1h"]), db.proxy(&["--heartbeat", "1h", "--history-bytes", "1"]));
    let mut session = db.session();
    let (head, start) = ask(&proxy, &format!("/events?{BOTH}"), &[]);
    assert_eq!((head.status, head.header("content-type")), (200, Some("application/json")));
    assert_eq!((&start["events"], start.get("reset")), (&json!([]), None));
    let start = start["position"].as_str().expect("a position").to_owned();
    // A client waits, at a proxy that has the events in memory and at one that reads the log.
    let waiting: Vec<_> = [proxy.address(), other.address()]
        .into_iter()
        .map(|address| {
            let path = format!("/events?{BOTH}&since={start}");
            std::thread::spawn(move || {
                http::send(address, "GET", &path, &[("Accept", "application/json")])
                    .and_then(http::Response::whole)
                    .expect("an answer")
                    .1
            })
        })
        .collect();
    until("both wait", || [&proxy, &other].iter().all(|proxy| proxy.metric("tidings_topics") >= 2.0));
    insert(&mut session, 1, 6, "line\nbreak");
    for thread in waiting {
        let answer: Value = serde_json::from_str(&thread.join().expect("an answer")).expect("JSON");
        assert_eq!(titles(&answer), pairs(&[("boards_6", "line\nbreak")]));
        assert_eq!(answer["events"][0]["event"], "changed");
    }
    insert(&mut session, 2, 5, "two");
    insert(&mut session, 3, 7, "of another topic");
    insert(&mut session, 4, 6, "four");
    session.publish("boards_5", "null");
    let position: String = session.one("SELECT tidings.position()");
    insert(&mut session, 5, 6, "five");
    for proxy in [&proxy, &other] {
        // Whatever the number of answers, together they have each event once.
        let (mut from, mut all) = (start.clone(), Vec::new());
        while all.last() != Some(&("boards_6".to_owned(), "five".to_owned())) {
            let answer = after(proxy, BOTH, &from);
            all.extend(titles(&answer));
            from = answer["position"].as_str().expect("a position").to_owned();
        }
        let expected = [
            ("boards_6", "line\nbreak"),
            ("boards_5", "two"),
            ("boards_6", "four"),
            ("boards_5", ""),
            ("boards_6", "five"),
        ];
        assert_eq!(all, pairs(&expected));
        // An event's own id, and a snapshot's position.
        let first = after(proxy, BOTH, &start)["events"][0]["id"].as_str().expect("an id").to_owned();
        assert_eq!(titles(&after(proxy, BOTH, &first))[0], ("boards_5".into(), "two".into()));
        assert_eq!(titles(&after(proxy, BOTH, &position)), pairs(&[("boards_6", "five")]));
        // A stream continues where an answer ended.
        let mut sse = proxy.open(&Request::since(&["boards_5", "boards_6"], &first));
        assert_eq!(crate::titles(&[sse.frame()]), ["two"]);
    }
}

#[test]
fn an_answer_comes_at_the_latest_after_the_heartbeat_interval() {
    let db = boards();
    let proxy = db.proxy(&["--heartbeat", "300ms"]);
    let start = ask(&proxy, "/events?topic=boards_5", &[]).1["position"].as_str().expect("a position").to_owned();
    let answer = after(&proxy, "topic=boards_5", &start);
    assert_eq!(answer["events"], json!([]));
    // The position moves on although the topic is quiet.
    insert(&mut db.session(), 1, 6, "elsewhere");
    until("the position moves", || after(&proxy, "topic=boards_5", &start)["position"] != json!(start));
    assert_eq!(proxy.metric("tidings_clients"), 0.0, "nothing is left of them");
}

#[test]
fn a_position_that_can_not_be_served_is_told() {
    let db = boards();
    db.session().run(&format!("GRANT SELECT ON board_items TO {}", db.proxy_role()));
    let proxy = db.proxy(&[]);
    insert(&mut db.session(), 1, 5, "one");
    let answer = after(&proxy, "topic=boards_5", "1-1");
    assert_eq!((&answer["reset"], &answer["events"]), (&json!({"reason": "expired"}), &json!([])));
    let position = answer["position"].as_str().expect("a position").to_owned();
    // With the rows, if they are wanted.
    for request in ["since=snapshot", "since=snapshot&last_event_id=1-1", "since=1-1&last_event_id=snapshot"] {
        let answer = ask(&proxy, &format!("/events?{BOTH}&{request}"), &[]).1;
        assert_eq!(answer["reset"], json!({"reason": "snapshot"}), "{request}");
        assert_eq!(titles(&answer), pairs(&[("boards_5", "one")]));
        assert!(answer["position"].as_str().is_some_and(|at| at >= position.as_str()), "{answer}");
    }
    assert_eq!(ask(&proxy, "/events?topic=other&since=snapshot", &[]).1["events"], json!([]));
}

#[test]
fn rules_and_limits_apply() {
    let team = Team::new();
    team.db.session().run(&format!("GRANT SELECT ON board_items TO {}", team.member));
    insert(&mut team.db.session(), 1, 5, "five");
    let proxy = team.proxy(&["--max-clients", "2", "--heartbeat", "1h"]);
    let bearer = format!("Bearer {}", team.token(1));
    let token = ("Authorization", bearer.as_str());
    assert_eq!(
        titles(&ask(&proxy, "/events?topic=boards_5&since=snapshot", &[token]).1),
        pairs(&[("boards_5", "five")])
    );
    assert_eq!(ask(&proxy, "/events?topic=boards_6&since=snapshot", &[token]).0.status, 403);
    assert_eq!(ask(&proxy, "/events?topic=boards_5", &[]).0.status, 401);
    assert_eq!(ask(&proxy, "/events", &[token]).0.status, 400);
    let streams: Vec<_> = (0..2).map(|_| proxy.open(&Request::live(&["boards_5"]).by(&team.token(1)))).collect();
    proxy.wait_clients(2);
    let (head, _) = ask(&proxy, "/events?topic=boards_5", &[token]);
    assert_eq!((head.status, head.header("retry-after").is_some()), (503, true));
    drop(streams);
}

#[test]
fn rows_that_can_not_be_read_to_their_end_make_no_whole_answer() {
    let db = boards();
    db.session()
        .run("SELECT tidings.snapshot('broken', 'SELECT n, 1 / (50000 - n) FROM generate_series(1, 100000) n')");
    let proxy = db.proxy(&[]);
    let answer =
        http::send(proxy.address(), "GET", "/events?topic=broken&since=snapshot", &[("Accept", "application/json")])
            .and_then(http::Response::whole);
    assert!(answer.is_err() || answer.is_ok_and(|(_, body)| serde_json::from_str::<Value>(&body).is_err()));
}

/// The row that comes after all others.
const LAST: i32 = 999_999;

/// Asks again and again from the position of the last answer, beginning with `from`, until the last row has come or
/// until `gives_up`. Returns the rows before it.
fn follow(mut from: String, proxies: &[std::net::SocketAddr], gives_up: &AtomicBool) -> Vec<i64> {
    let (mut ids, mut visits) = (Vec::<i64>::new(), 0);
    while !gives_up.load(Relaxed) && ids.pop_if(|id| *id == i64::from(LAST)).is_none() {
        let address = proxies[visits % proxies.len()];
        visits += 1;
        let path = format!("/events?{BOTH}&since={}", http::escape(&from));
        let (_, body) = http::send(address, "GET", &path, &[("Accept", "application/json")])
            .and_then(http::Response::whole)
            .expect("an answer");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(answer.get("reset"), None);
        let events = answer["events"].as_array().expect("a list");
        ids.extend(events.iter().map(|event| {
            let data: Value = serde_json::from_str(event["data"].as_str().expect("data")).expect("JSON");
            data["record"]["id"].as_i64().expect("an id")
        }));
        from = answer["position"].as_str().expect("a position").to_owned();
    }
    ids
}

#[test]
fn nothing_is_missed_or_doubled_beside_writers_at_full_speed() {
    let db = boards();
    let proxies = [db.proxy(&["--heartbeat", "500ms"]), db.proxy(&["--heartbeat", "500ms", "--history-bytes", "5kB"])];
    let addresses: Vec<_> = proxies.iter().map(Proxy::address).collect();
    let (gives_up, from) = (AtomicBool::new(false), db.session().one("SELECT tidings.position()"));
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| follow(from, &addresses, &gives_up));
        let _over = SetAtTheEnd(&gives_up);
        let writers: Vec<_> = (0..4)
            .map(|n| {
                let mut session = db.session();
                scope.spawn(move || {
                    for i in 0..1500 {
                        insert(&mut session, n * 10_000 + i, 5 + i % 3, "x");
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
        insert(&mut db.session(), LAST, 5, "the last");
        until("the last row has come", || follower.is_finished());
        let ids = follower.join().expect("a follower");
        assert_eq!(ids.len(), 4 * 1000);
        // All, each once, in the order of each writer.
        for n in 0..4 {
            let own: Vec<i64> = ids.iter().copied().filter(|id| id / 10_000 == n).collect();
            let all: Vec<i64> = (0..1500).filter(|i| i % 3 != 2).map(|i| n * 10_000 + i).collect();
            assert_eq!(own, all, "writer {n}");
        }
    });
}
