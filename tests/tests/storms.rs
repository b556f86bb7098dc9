//! Slow rules, and many clients that ask for them: how they affect other clients. Attacks by a rule's code are in
//! `attacks_by_rules`.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use serde_json::json;
use socket2::{Domain, Socket, Type};
use tidings_tests::process::Signal;
use tidings_tests::{Proxy, Session, http, until};

use crate::access::{Team, open, sign, status};
use crate::attacks::BOARD;

/// How many clients ask for slow topics at the same time.
const STORM: usize = 60;

/// A database with rules for topics `slow_…` that take longer than a rule may.
fn team() -> Team<'static> {
    let team = Team::new();
    team.db.session().run("SELECT tidings.allow('slow_{x}', 'SELECT FROM pg_sleep(30)')");
    team
}

/// Backends that run a rule of the storm.
fn sleepers(session: &mut Session, team: &Team<'_>) -> i64 {
    session.one(&format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = '{}' AND wait_event = 'PgSleep'",
        team.db.proxy_role()
    ))
}

/// Sends a request and returns the connection, without waiting for an answer.
fn send(proxy: &Proxy, path: &str, token: &str) -> TcpStream {
    let mut socket = TcpStream::connect(proxy.address()).expect("connect");
    let request = format!("GET {path} HTTP/1.1\r\nHost: tidings\r\nAuthorization: Bearer {token}\r\n\r\n");
    socket.write_all(request.as_bytes()).expect("send a request");
    socket
}

/// The token of one of many people.
fn token_of(team: &Team<'_>, n: usize) -> String {
    let mut claims = team.claims(1000);
    claims["n"] = json!(n);
    sign(&claims)
}

#[test]
fn a_check_whose_client_disconnects_is_not_asked() {
    let team = team();
    let proxy = team.proxy(&[]);
    let ada = team.token(1);
    let mut session = team.db.session();
    let storm: Vec<_> = (0..STORM).map(|n| send(&proxy, &format!("/events?topic=slow_{n}"), &team.token(2))).collect();
    until("all of them wait", || {
        sleepers(&mut session, &team) > 0 && proxy.metric("tidings_connections") >= STORM as f64
    });
    drop(storm);
    assert_eq!(status(&proxy, BOARD, &ada), 200);
    // None of them is left, long before the rules could have run one after the other.
    until("no rule is sleeping", || sleepers(&mut session, &team) == 0);
    until("it is counted", || {
        proxy.metrics()["tidings_auth_checks_ended_total{cause=\"gone\"}"] > STORM as f64 / 2.0
            && proxy.metric("tidings_auth_waiting") == 0.0
    });
    // Checks that already run are cancelled.
    let held = send(&proxy, "/events?topic=slow_last", &team.token(2));
    until("the rule runs", || sleepers(&mut session, &team) > 0);
    let gone = || proxy.metrics()["tidings_auth_checks_ended_total{cause=\"gone\"}"];
    let before = gone();
    drop(held);
    until("it is cancelled", || sleepers(&mut session, &team) == 0 && gone() > before);
}

/// Runs a storm of requests that wait for their answers, from this many people, and at the same time `body`, which gets
/// the number of answers so far. The proxy is gone at the end.
fn beside_storm(team: &Team<'_>, proxy: &Proxy, people: usize, body: impl FnOnce(&AtomicUsize)) {
    let (answered, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut session = team.db.session();
    std::thread::scope(|scope| {
        for n in 0..STORM {
            let bearer = format!("Bearer {}", token_of(team, n % people));
            let (answered, is_over) = (&answered, &is_over);
            scope.spawn(move || {
                for round in 0.. {
                    let topic = format!("/events?topic=slow_{n}_{round}");
                    let answer = http::open(proxy.address(), &topic, &[("Authorization", &bearer)]);
                    if is_over.load(Relaxed) {
                        return;
                    }
                    let status = answer.expect("an answer").head.status;
                    assert!([403, 503].contains(&status), "{status}");
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("all of them wait", || {
                sleepers(&mut session, team) > 0 && proxy.metric("tidings_connections") >= STORM as f64
            });
            body(&answered);
        }));
        is_over.store(true, Relaxed);
        proxy.signal(Signal::SIGKILL);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn another_user_is_answered_during_a_storm_of_slow_rules() {
    for people in [1, STORM] {
        let team = team();
        let proxy = team.proxy(&[]);
        let (ada, ben) = (team.token(1), team.token(2));
        beside_storm(&team, &proxy, people, |answered| {
            for _ in 0..3 {
                assert_eq!((status(&proxy, BOARD, &ada), status(&proxy, BOARD, &ben)), (200, 403));
            }
            let before = answered.load(Relaxed);
            assert!(before < STORM / 2, "the storm of {people} was answered first: {before} times");
        });
    }
}

#[test]
fn an_anonymous_client_does_not_wait_for_those_of_another_network() {
    let team = team();
    team.db.session().run("SELECT tidings.allow('open_{x}', 'SELECT')");
    let proxy = team.proxy(&["--anon-role", &team.guest]);
    let mut session = team.db.session();
    // All of them have the same claims. Each question is first slow in its own statement.
    let storm: Vec<_> = (0..STORM).map(|n| send_from_elsewhere(&proxy, &format!("/events?topic=slow_{n}"))).collect();
    until("a rule of the storm runs", || sleepers(&mut session, &team) > 0);
    let before = proxy.metric("tidings_auth_questions_total");
    assert_eq!(http::open(proxy.address(), "/events?topic=open_1", &[]).expect("an answer").head.status, 200);
    let between = proxy.metric("tidings_auth_questions_total") - before;
    assert!(between < STORM as f64 / 3.0, "{between} statements came before it");
    drop(storm);
}

/// Sends a request without a token from another address than the other requests come from.
fn send_from_elsewhere(proxy: &Proxy, path: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let elsewhere: SocketAddr = "127.0.0.2:0".parse().expect("an address");
    socket.bind(&elsewhere.into()).expect("another address of this machine");
    socket.connect(&proxy.address().into()).expect("connect");
    let mut socket = TcpStream::from(socket);
    socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: tidings\r\n\r\n").as_bytes()).expect("send a request");
    socket
}

#[test]
fn revoked_access_ends_the_stream_during_a_storm() {
    let team = team();
    let proxy = team.proxy(&["--reauthorize", "200ms"]);
    let mut his = open(&proxy, "boards_7", &team.token(2));
    beside_storm(&team, &proxy, STORM, |answered| {
        team.db.session().run("DELETE FROM members WHERE person = 2");
        assert_eq!(his.rest(), []);
        let before = answered.load(Relaxed);
        assert!(before < STORM / 2, "the storm was answered first: {before} times");
    });
}

#[test]
fn streams_whose_rules_become_slow_end_and_do_not_delay_others() {
    let team = Team::new();
    team.db.session().run(&format!(
        "CREATE TABLE slowness AS SELECT 0 AS seconds; GRANT SELECT ON slowness TO {};
         SELECT tidings.allow('turns_{{x}}', 'SELECT FROM slowness s, pg_sleep(s.seconds)')",
        team.member
    ));
    let proxy = team.proxy(&["--reauthorize", "200ms"]);
    let mut slow: Vec<_> = (0..12).map(|n| open(&proxy, &format!("turns_{n}"), &token_of(&team, n))).collect();
    let mut his = open(&proxy, "boards_7", &team.token(2));
    let mut hers = open(&proxy, "boards_7", &team.token(1));
    let mut session = team.db.session();
    session.run("UPDATE slowness SET seconds = 30");
    until("one of them is checked", || sleepers(&mut session, &team) > 0);
    session.run("DELETE FROM members WHERE person = 2");
    assert_eq!(his.rest(), []);
    let ended = proxy.metric("tidings_auth_ended_total");
    assert!(ended < slow.len() as f64 / 2.0, "{ended} ended first");
    for stream in &mut slow {
        assert_eq!(stream.rest(), []);
    }
    session.run("INSERT INTO board_items VALUES (1, 7, 'hers')");
    assert_eq!(crate::titles(&[hers.frame()]), ["hers"]);
}

#[test]
fn a_rule_that_ignores_its_cancellation_is_terminated() {
    let team = Team::new();
    team.db.session().run(
        "CREATE FUNCTION stay() RETURNS boolean LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM set_config('client_connection_check_interval', '0', false);
             LOOP
                 BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END;
             END LOOP;
         END $$;
         SELECT tidings.allow('stays', 'SELECT stay()')",
    );
    let proxy = team.proxy(&[]);
    let mut session = team.db.session();
    assert_eq!(status(&proxy, "/events?topic=stays", &team.token(1)), 503);
    assert_eq!(status(&proxy, BOARD, &team.token(1)), 200);
    until("no rule is sleeping", || sleepers(&mut session, &team) == 0);
    // Nor if nobody waits for it any more.
    let held = send(&proxy, "/events?topic=stays", &team.token(2));
    until("the rule runs", || sleepers(&mut session, &team) > 0);
    drop(held);
    until("no rule is sleeping", || sleepers(&mut session, &team) == 0);
    assert_eq!(status(&proxy, BOARD, &team.token(1)), 200);
}

#[test]
fn a_worker_that_cannot_connect_does_not_answer_for_one_that_can() {
    let team = Team::new();
    let gate = team.gate_role();
    let proxy = team.proxy_with_gate(&["--reauthorize", "200ms"]);
    // One for requests and one for open streams connect at the start. From then on there is no second one for requests.
    // (A third connection, which looks at the role's rights, has come and gone, or comes later.)
    let mut session = team.db.session();
    until("both are connected", || {
        session.one(&format!(
            "SELECT count(*) = 2 AND bool_and(state = 'idle' AND query = 'SELECT pg_catalog.pg_backend_pid()')
             FROM pg_stat_activity WHERE usename = '{gate}'"
        ))
    });
    session.run(&format!("ALTER ROLE {gate} CONNECTION LIMIT 2"));
    let ada = team.token(1);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (proxy, ada) = (&proxy, if n % 2 == 0 { ada.clone() } else { token_of(&team, n) });
            scope.spawn(move || {
                for _ in 0..20 {
                    match status(proxy, BOARD, &ada) {
                        // On a busy machine a check may run out of time. Then it is asked alone, which needs a third connection.
                        503 => assert!(proxy.metric("tidings_auth_checks_ended_total{cause=\"held_up_others\"}") > 0.0),
                        answer => assert_eq!(answer, if n % 2 == 0 { 200 } else { 403 }),
                    }
                }
            });
        }
    });
}
