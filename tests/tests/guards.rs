//! A right that is taken away ends at its place in the order: guards, `tidings.recheck()`, and what the proxy does
//! where their events stand. What of them gets into the log is tested in `guard_capture`.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;
use tidings_tests::application::{Application, Asked, Reply};
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Frame, Item, Proxy, Session, Sse, http, until};

use crate::access::Team;
use crate::read_node::{pause_replay, proxy_at};
use crate::{all_until_now, boards, titles};

/// Long enough that no stream is checked again for another reason.
const RARELY: [&str; 2] = ["--reauthorize", "1h"];

/// Boards with members, guarded by an application of its own: members may subscribe.
pub fn guarded() -> (Database<'static>, Application) {
    let db = boards();
    db.session().run(
        "CREATE TABLE members (board_id bigint, person text, PRIMARY KEY (board_id, person));
         INSERT INTO members SELECT b, p FROM generate_series(5, 7) b, unnest(ARRAY['ada', 'ben']) p;
         SELECT tidings.guard('members', topic => 'boards_{board_id}')",
    );
    let session = Mutex::new(db.session());
    let application = Application::start(move |asked| answer(&mut session.lock().expect("a session"), asked));
    (db, application)
}

/// The application's own rule.
fn answer(session: &mut Session, asked: &Asked) -> Reply {
    let person = asked.header("cookie").strip_prefix("session=").unwrap_or_default().to_owned();
    let topics = asked.target.split_once('?').map_or("", |(_, query)| query).split('&');
    let boards: Vec<i64> = topics.filter_map(|pair| pair.strip_prefix("topic=boards_")?.parse().ok()).collect();
    let sql = "SELECT FROM members WHERE person = $1 AND board_id = ANY ($2)";
    let is_member = session.all(sql, &[&person, &boards]).len() == boards.len();
    Reply::status(if is_member { 204 } else { 403 })
}

pub fn proxy(db: &Database<'_>, application: &Application, args: &[&str]) -> Proxy {
    db.proxy(&[&["--auth-url", &application.url("/may")], &RARELY[..], args].concat())
}

fn by(person: &str, request: Request) -> Request {
    Request { cookie: Some(format!("session={person}")), ..request }
}

fn open(proxy: &Proxy, topics: &[&str], person: &str) -> Sse {
    let mut stream = proxy.open(&by(person, Request::live(topics)));
    stream.wait_id();
    stream
}

/// From now on, a change of a membership makes proxies ask again about its board.
fn guard_members(session: &mut Session) {
    session.run("SELECT tidings.guard('members', topic => 'boards_{board_id}')");
}

/// Opens a stream of a member of the team, with that person's token.
fn enter(proxy: &Proxy, team: &Team<'_>, topics: &[&str], person: i64) -> Sse {
    let mut stream = proxy.open(&Request::live(topics).by(&team.token(person)));
    stream.wait_id();
    stream
}

/// The arguments of a proxy that accepts the team's tokens, and that checks open streams again only after events.
fn by_token<'a>(team: &'a Team<'_>) -> [&'a str; 4] {
    ["--jwt-secret-file", team.secret.to_str().expect("a path of text"), RARELY[0], RARELY[1]]
}

fn add(session: &mut Session, id: i64, board: i64, title: &str) {
    session.run(&format!("INSERT INTO board_items VALUES ({id}, {board}, '{title}')"));
}

/// What an open stream gets when its right is taken away.
fn revoked() -> Frame {
    Frame { id: None, event: "unauthorized".into(), data: r#"{"reason":"revoked"}"#.into() }
}

fn rechecks(proxy: &Proxy, result: &str) -> f64 {
    proxy.metrics()[&format!("tidings_rechecks_total{{result=\"{result}\"}}")]
}

/// Waits until so many streams are counted that went on, that lost their right, and about which nobody answered. A
/// client may notice a moment before its stream is counted.
#[track_caller]
fn wait_rechecks(proxy: &Proxy, expected: [f64; 3]) {
    let counts = || ["allowed", "refused", "unanswered"].map(|result| rechecks(proxy, result));
    until(&format!("{expected:?} rechecks are counted"), || counts() == expected);
}

#[test]
fn a_member_who_is_removed_gets_nothing_that_is_committed_afterwards() {
    let (db, application) = guarded();
    let proxies = [proxy(&db, &application, &[]), proxy(&db, &application, &[])];
    let mut session = db.session();
    for (n, proxy) in proxies.iter().enumerate() {
        let (mut his, mut hers) = (open(proxy, &["boards_5"], "ben"), open(proxy, &["boards_5"], "ada"));
        let id = 10 * n as i64;
        add(&mut session, id, 5, "both");
        session.run(&format!(
            "BEGIN; INSERT INTO board_items VALUES ({id} + 1, 5, 'before it');
             DELETE FROM members WHERE board_id = 5 AND person = 'ben';
             INSERT INTO board_items VALUES ({id} + 2, 5, 'in the same transaction'); COMMIT;
             INSERT INTO board_items VALUES ({id} + 3, 5, 'in the next one')"
        ));
        let all = hers.take(4);
        assert_eq!(titles(&all), ["both", "before it", "in the same transaction", "in the next one"]);
        assert_eq!(his.rest(), [&all[..2], &[revoked()]].concat());
        session.run("INSERT INTO members VALUES (5, 'ben')");
        wait_rechecks(proxy, [1.0, 1.0, 0.0]);
    }
    // A client that is let in again gets what was missed, by the right at that time.
    let mut again = proxies[0].open(&by("ben", Request::since(&["boards_5"], "earliest")));
    assert_eq!(again.take(8).len(), 8);
}

#[test]
fn the_rules_in_the_database_are_asked_too() {
    let team = Team::new();
    let proxy = team.proxy(&RARELY);
    let mut session = team.db.session();
    guard_members(&mut session);
    let mut his = enter(&proxy, &team, &["boards_5", "boards_7"], 1);
    let mut hers = enter(&proxy, &team, &["boards_7"], 2);
    let mut elsewhere = enter(&proxy, &team, &["boards_5"], 1);
    session.run(
        "BEGIN; DELETE FROM members WHERE board_id = 7 AND person = 1; INSERT INTO board_items VALUES (1, 7, 'hers'); COMMIT;
         INSERT INTO board_items VALUES (2, 5, 'his still')",
    );
    assert_eq!(his.rest(), [revoked()], "a stream that may have only one of its topics ends");
    assert_eq!(titles(&hers.take(1)), ["hers"]);
    assert_eq!(titles(&elsewhere.take(1)), ["his still"]);
    // Nobody is asked about other topics.
    wait_rechecks(&proxy, [1.0, 1.0, 0.0]);
    until("the log says so", || proxy.log().contains("access ended at the event of a guard"));
}

#[test]
fn what_is_behind_the_event_waits_for_the_answer_and_the_client_gets_signs_of_life() {
    let (db, application) = guarded();
    let proxy = proxy(&db, &application, &["--heartbeat", "1s", "--auth-timeout", "60s"]);
    let (mut held, mut other) = (open(&proxy, &["boards_5"], "ada"), open(&proxy, &["boards_6"], "ada"));
    let (go, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (wait, noted) = (go.clone(), asked.clone());
    application.answer(move |_| {
        noted.store(true, SeqCst);
        until("the test goes on", || wait.load(SeqCst));
        Reply::status(204)
    });
    let mut session = db.session();
    session.run("SELECT tidings.recheck('boards_5')");
    until("it is asked", || asked.load(SeqCst));
    let event: i64 = session.one("SELECT max(tick) FROM tidings.tick");
    add(&mut session, 1, 5, "behind it");
    add(&mut session, 2, 6, "elsewhere");
    assert_eq!(titles(&other.take(1)), ["elsewhere"], "nobody else waits");
    for _ in 0..3 {
        match held.item() {
            Some(Item::Comment(text)) => assert_eq!(text, "", "a heartbeat"),
            // The place before the event, if a tick came between the opening of the stream and the event.
            Some(Item::Position(place)) => {
                let tick: i64 = place.split('-').next().and_then(|tick| tick.parse().ok()).expect("a tick");
                assert!(tick < event, "a place beyond the event: {place}, {event}");
            }
            other => panic!("not a heartbeat: {other:?}"),
        }
    }
    go.store(true, SeqCst);
    assert_eq!(titles(&held.take(1)), ["behind it"]);
}

#[test]
fn a_stream_about_which_nobody_answers_ends_and_its_client_comes_back() {
    let (db, application) = guarded();
    let proxy = proxy(&db, &application, &[]);
    let mut stream = open(&proxy, &["boards_5"], "ada");
    application.go_down();
    let mut session = db.session();
    session
        .run("BEGIN; SELECT tidings.recheck('boards_5'); INSERT INTO board_items VALUES (1, 5, 'behind it'); COMMIT");
    let mut last = None;
    while let Some(item) = stream.item() {
        assert!(!matches!(item, Item::Frame(_)), "{item:?}");
        last = Some(item);
    }
    assert!(matches!(last, Some(Item::Retry(_))), "{last:?}");
    wait_rechecks(&proxy, [0.0, 0.0, 1.0]);
    application.come_up();
    let id = stream.last_id().expect("an id").to_owned();
    let mut again = proxy.open(&by("ada", Request::resume(&["boards_5"], &id)));
    assert_eq!(titles(&again.take(1)), ["behind it"], "it has missed nothing");
}

/// A proxy whose application says yes, and gives the answer only after `meanwhile` has run.
#[track_caller]
fn yes_before(proxy: &Proxy, application: &Application, request: Request, meanwhile: impl FnOnce()) -> Sse {
    let (go, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (wait, noted) = (go.clone(), asked.clone());
    application.answer(move |_| {
        let is_first = !noted.swap(true, SeqCst);
        until("the test goes on", || wait.load(SeqCst));
        Reply::status(if is_first { 204 } else { 403 })
    });
    thread::scope(|scope| {
        let opening = scope.spawn(|| proxy.open(&request));
        until("it is asked", || asked.load(SeqCst));
        meanwhile();
        go.store(true, SeqCst);
        opening.join().expect("a stream")
    })
}

#[test]
fn an_answer_from_before_the_event_opens_no_stream_behind_it() {
    for history in ["64MiB", "1"] {
        let (db, application) = guarded();
        let proxy = proxy(&db, &application, &["--auth-timeout", "60s", "--history-bytes", history]);
        let mut session = db.session();
        session.run(&format!("GRANT SELECT ON board_items TO {}", db.proxy_role()));
        add(&mut session, 1, 5, "before");
        let start: String = session.one("SELECT tidings.position()");
        let mut witness = open(&proxy, &["news"], "nobody");
        let starts = [
            Request::live(&["boards_5"]),
            Request::since(&["boards_5"], &start),
            Request::since(&["boards_5", "boards_6"], "earliest"),
            Request::since(&["boards_5"], "snapshot"),
        ];
        for (n, request) in starts.into_iter().enumerate() {
            let shown = format!("{request:?}, history {history}");
            let mut stream = yes_before(&proxy, &application, by("ben", request), || {
                session.run(&format!(
                    "BEGIN; SELECT tidings.recheck('boards_5'); INSERT INTO board_items VALUES ({n} + 10, 5, 'a secret'); COMMIT;
                     SELECT tidings.publish('news', '{n}')"
                ));
                assert_eq!(witness.frame().data, n.to_string(), "the proxy has published it");
            });
            add(&mut session, 20 + n as i64, 5, "a secret");
            let frames = stream.rest();
            assert_eq!(frames.last(), Some(&revoked()), "{shown}");
            let leaks: Vec<_> = frames.iter().filter(|frame| frame.event == "changed" && newer(frame, n)).collect();
            assert!(leaks.is_empty(), "{shown}: {leaks:?}");
        }
    }
}

/// Whether the event is of this round or a later one.
fn newer(frame: &Frame, round: usize) -> bool {
    frame.json()["record"]["id"].as_u64().is_some_and(|id| id == 10 + round as u64 || id == 20 + round as u64)
}

#[test]
fn a_replay_from_the_log_stops_at_the_event() {
    let (db, application) = guarded();
    let proxy = proxy(&db, &application, &["--history-bytes", "1", "--client-queue-bytes", "64KiB"]);
    let mut session = db.session();
    let start: String = session.one("SELECT tidings.position()");
    // More than fits into the buffers between the proxy and a client that does not read.
    let row = "repeat('x', 20000)";
    session.run(&format!("INSERT INTO board_items SELECT n, 5, {row} FROM generate_series(1, 1000) n"));
    let mut stream = proxy.open(&by("ben", Request::since(&["boards_5"], &start)));
    assert_eq!(stream.frame().json()["record"]["id"], 1);
    session.run(
        "BEGIN; DELETE FROM members WHERE person = 'ben'; INSERT INTO board_items VALUES (0, 5, 'a secret'); COMMIT",
    );
    let frames = stream.rest();
    assert_eq!(frames.last(), Some(&revoked()));
    assert!(!frames.iter().any(|frame| frame.data.contains("a secret")));
    // Someone who has the right gets everything.
    let mut hers = proxy.open(&by("ada", Request::since(&["boards_5"], &start)));
    assert_eq!(hers.take(1001)[1000].json()["record"]["title"], "a secret");
}

/// Asks for the next events as JSON.
fn poll(proxy: &Proxy, since: &str, person: &str) -> thread::JoinHandle<(http::Head, String)> {
    let path = format!("/events?topic=boards_5&since={}", http::escape(since));
    let (address, cookie) = (proxy.address(), format!("session={person}"));
    thread::spawn(move || {
        let headers = [("Cookie", cookie.as_str()), ("Accept", "application/json"), ("Connection", "close")];
        http::open(address, &path, &headers).and_then(http::Response::whole).expect("an answer")
    })
}

#[test]
fn a_json_answer_waits_until_the_right_has_been_checked() {
    let (db, application) = guarded();
    let proxy = proxy(&db, &application, &[]);
    let now = || db.session().one::<String>("SELECT tidings.position()");
    let (hers, his) = (poll(&proxy, &now(), "ada"), poll(&proxy, &now(), "ben"));
    proxy.wait_clients(2);
    db.session().run(
        "BEGIN; DELETE FROM members WHERE person = 'ben'; INSERT INTO board_items VALUES (1, 5, 'a secret'); COMMIT",
    );
    let (head, body) = his.join().expect("a client");
    assert!(head.status == 503 && !body.contains("a secret"), "{body}");
    let (head, body) = hers.join().expect("a client");
    assert!(head.status == 200 && body.contains("a secret"), "{body}");
    let (head, body) = poll(&proxy, &now(), "ben").join().expect("a client");
    assert_eq!(head.status, 403, "{body}");
}

#[test]
fn a_json_answer_waits_for_the_check_however_much_comes_meanwhile() {
    let (db, application) = guarded();
    let proxy = proxy(&db, &application, &["--client-queue-bytes", "64KiB", "--auth-timeout", "60s"]);
    let mut witness = open(&proxy, &["news"], "nobody");
    let mut session = db.session();
    session.run("SELECT tidings.publish('news', '0')");
    let id = witness.frame().id().to_owned();
    let polls = [poll(&proxy, &id, "ada"), poll(&proxy, &id, "ben")];
    proxy.wait_clients(3);
    until("they wait for an event", || proxy.metric("tidings_topics") == 2.0);
    let (go, count) = (Arc::new(AtomicBool::new(false)), application.count());
    let wait = go.clone();
    application.answer(move |asked| {
        until("the test goes on", || wait.load(SeqCst));
        Reply::status(if asked.header("cookie").contains("ben") { 403 } else { 204 })
    });
    session.run("BEGIN; SELECT tidings.recheck('boards_5'); INSERT INTO board_items VALUES (1, 5, 'a secret'); COMMIT");
    until("both are asked about", || application.count() == count + 2);
    for n in 0..20 {
        session.run(&format!("INSERT INTO board_items VALUES ({n} + 10, 5, repeat('x', 20000))"));
    }
    session.run("SELECT tidings.publish('news', '1')");
    assert_eq!(witness.frame().data, "1", "the proxy has published it");
    go.store(true, SeqCst);
    let [hers, his] = polls.map(|poll| poll.join().expect("a client"));
    assert!(his.0.status == 503 && !his.1.contains("a secret"), "{}", his.1);
    assert!(hers.0.status == 200 && hers.1.contains("a secret"), "{}", hers.1);
}

#[test]
fn a_hundred_thousand_changes_are_one_question() {
    let (db, application) = guarded();
    let proxy = proxy(&db, &application, &[]);
    let mut stream = open(&proxy, &["boards_5"], "ada");
    let mut session = db.session();
    session.run("INSERT INTO members SELECT 5, 'person ' || n FROM generate_series(1, 100000) n");
    let before = application.count();
    session.run("BEGIN; DELETE FROM members WHERE person LIKE 'person %'; INSERT INTO board_items VALUES (1, 5, 'after'); COMMIT");
    assert_eq!(titles(&stream.take(1)), ["after"]);
    assert_eq!(application.count() - before, 1);
}

#[test]
fn streams_with_the_same_question_share_it() {
    let (db, application) = guarded();
    let proxy = proxy(&db, &application, &["--auth-timeout", "60s"]);
    let mut streams: Vec<_> = (0..40).map(|n| open(&proxy, &["boards_5"], ["ada", "ben"][n % 2])).collect();
    let before = application.count();
    // No answer comes before all of them have got the event.
    let go = Arc::new(AtomicBool::new(false));
    let wait = go.clone();
    application.answer(move |_| {
        until("the test goes on", || wait.load(SeqCst));
        Reply::status(204)
    });
    let ticks = || proxy.metric("tidings_fanout_delay_seconds_count");
    let (served, mut session) = (ticks(), db.session());
    session.run("BEGIN; SELECT tidings.recheck('boards_5'); INSERT INTO board_items VALUES (1, 5, 'after'); COMMIT");
    until("all have got the event", || ticks() > served && application.count() >= before + 2);
    go.store(true, SeqCst);
    for stream in &mut streams {
        assert_eq!(titles(&stream.take(1)), ["after"]);
    }
    // The streams of a large topic are served in groups, and each group may ask.
    assert!((2..=4).contains(&(application.count() - before)), "{}", application.count() - before);
    wait_rechecks(&proxy, [40.0, 0.0, 0.0]);
}

#[test]
fn truncate_asks_about_every_topic_of_the_template_and_no_other() {
    let (db, application) = guarded();
    let proxy = proxy(&db, &application, &[]);
    let mut session = db.session();
    let mut streams: Vec<_> = ["boards_5", "boards_6"].map(|topic| open(&proxy, &[topic], "ben")).into();
    let mut news = open(&proxy, &["news"], "ben");
    session.run(
        "BEGIN; TRUNCATE members; INSERT INTO board_items VALUES (1, 5, 'a secret'), (2, 6, 'a secret'); COMMIT;
         SELECT tidings.publish('news', '1')",
    );
    streams.iter_mut().for_each(|stream| assert_eq!(stream.rest(), [revoked()]));
    assert_eq!((news.frame().data.as_str(), rechecks(&proxy, "allowed")), ("1", 0.0));
}

#[test]
fn where_access_is_open_nobody_is_asked() {
    let (db, _application) = guarded();
    let proxy = db.proxy(&[]);
    let mut stream = proxy.live(&["boards_5"]);
    db.session().run("DELETE FROM members; TRUNCATE members; INSERT INTO board_items VALUES (1, 5, 'open')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut stream)), ["open"]);
}

#[test]
fn claims_in_the_answer_are_judged_again_at_the_event() {
    let team = Team::new();
    let claims = team.claims(1);
    let application = Application::start(move |_| Reply::json(&json!({ "claims": claims })));
    let proxy = proxy(&team.db, &application, &[]);
    let mut session = team.db.session();
    guard_members(&mut session);
    let mut stream = open(&proxy, &["boards_5"], "ada");
    session
        .run("BEGIN; DELETE FROM members WHERE person = 1; INSERT INTO board_items VALUES (1, 5, 'a secret'); COMMIT");
    assert_eq!(stream.rest(), [revoked()]);
}

#[test]
fn a_proxy_at_a_standby_asks_the_standby_when_it_shows_the_change() {
    let primary = Cluster::start(&[]);
    let team = Team::within(&primary);
    let mut session = team.db.session();
    guard_members(&mut session);
    let standby = primary.standby();
    let proxy = proxy_at(&standby, &team.db, &by_token(&team));
    let [mut his, mut hers] = [1, 2].map(|person| enter(&proxy, &team, &["boards_7"], person));
    session.run(
        "BEGIN; DELETE FROM members WHERE board_id = 7 AND person = 1; INSERT INTO board_items VALUES (1, 7, 'hers'); COMMIT;
         INSERT INTO board_items VALUES (2, 7, 'hers, too')",
    );
    assert_eq!(titles(&hers.take(2)), ["hers", "hers, too"]);
    assert_eq!(his.rest(), [revoked()]);
}

#[test]
fn of_two_servers_the_one_that_the_proxy_follows_is_asked() {
    let primary = Cluster::start(&[]);
    let team = Team::within(&primary);
    let mut session = team.db.session();
    guard_members(&mut session);
    let (standby, role) = (primary.standby(), team.db.proxy_role());
    team.db.wait_standby(&standby);
    standby.stop();
    // While the first one is away, the proxy follows the second one.
    let ports = format!("{},{}", standby.port(), primary.port());
    let url = format!("host=127.0.0.1,127.0.0.1 port={ports} user={role} dbname={}", team.db.name());
    let proxy = Proxy::start(&url, &by_token(&team));
    let mut his = enter(&proxy, &team, &["boards_7"], 1);
    standby.boot();
    let mut there = standby.session(team.db.name(), "postgres");
    pause_replay(&mut there);
    session.run(
        "BEGIN; DELETE FROM members WHERE board_id = 7 AND person = 1;
         INSERT INTO board_items VALUES (1, 7, 'a secret'); COMMIT",
    );
    assert_eq!(his.rest(), [revoked()]);
    // Subscribers who may still read go on, and the standby is not needed for it.
    let mut hers = enter(&proxy, &team, &["boards_7"], 2);
    session.run("SELECT tidings.recheck('boards_7'); INSERT INTO board_items VALUES (2, 7, 'next')");
    assert_eq!(titles(&[hers.frame()]), ["next"]);
}

#[test]
fn a_position_that_the_standby_has_yet_to_reach_is_no_way_around_the_event() {
    let primary = Cluster::start(&[]);
    let team = Team::within(&primary);
    let mut session = team.db.session();
    guard_members(&mut session);
    let standby = primary.standby();
    let proxy = proxy_at(&standby, &team.db, &by_token(&team));
    drop(enter(&proxy, &team, &["boards_7"], 1));
    proxy.wait_clients(0);
    let mut there = standby.session(team.db.name(), "postgres");
    pause_replay(&mut there);
    session.run("DELETE FROM members WHERE board_id = 7 AND person = 1");
    let ahead: String = session.one("SELECT tidings.position()");
    session.run("INSERT INTO board_items VALUES (1, 7, 'a secret')");
    // The standby does not know yet that he has lost the right.
    let mut his = proxy.open(&Request::since(&["boards_7"], &ahead).by(&team.token(1)));
    let (address, token) = (proxy.address(), team.token(1));
    let answer = thread::spawn(move || {
        let path = format!("/events?topic=boards_7&since={}", http::escape(&ahead));
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("Accept", "application/json"), ("Connection", "close")];
        http::open(address, &path, &headers).and_then(http::Response::whole).expect("an answer")
    });
    proxy.wait_clients(2);
    there.run("SELECT pg_wal_replay_resume()");
    assert_eq!(his.rest(), [revoked()]);
    let (head, body) = answer.join().expect("a client");
    assert!(head.status == 503 && !body.contains("a secret"), "{body}");
}

#[test]
fn an_upstream_that_was_away_misses_no_revocation() {
    let (db, application) = guarded();
    let proxy = proxy(&db, &application, &[]);
    let (mut his, mut hers) = (open(&proxy, &["boards_5"], "ben"), open(&proxy, &["boards_5"], "ada"));
    let mut session = db.session();
    for n in 0..5 {
        db.cut_proxies();
        add(&mut session, n, 5, "while it was away");
    }
    db.cut_proxies();
    session.run(
        "BEGIN; DELETE FROM members WHERE person = 'ben'; INSERT INTO board_items VALUES (9, 5, 'a secret'); COMMIT",
    );
    let frames = his.rest();
    assert_eq!(frames.last(), Some(&revoked()));
    assert!(!frames.iter().any(|frame| frame.data.contains("a secret")));
    assert_eq!(hers.take(6).len(), 6);
}
