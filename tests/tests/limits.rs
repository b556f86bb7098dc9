//! Each limit takes effect where it should, is counted, and affects nobody else.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use tidings_tests::follower::Habits;
use tidings_tests::process::{Signal, send};
use tidings_tests::sse::Request;
use tidings_tests::{DEADLINE, Database, Follower, Item, Proxy, Sse, eventually, http, until};

use crate::{all_until_now, boards, titles};

const STREAM: &str = "/events?topic=boards_5";

/// Open streams continue, an EventSource gets a long time to reconnect, and others get 503.
#[track_caller]
fn is_full(db: &Database<'_>, proxy: &Proxy, stays: &mut Sse, limit: &str) {
    let mut turned_away = proxy.live(&["boards_5"]);
    // `--retry` is 1 s: 15 times that, varied by up to half.
    let Some(Item::Retry(wait)) = turned_away.item() else { panic!("a time to wait comes first") };
    assert!((7_500..=22_500).contains(&wait), "{wait}");
    assert_eq!(turned_away.item(), None, "and the end");
    let (head, body) = http::get(proxy.address(), STREAM).expect("an answer");
    assert_eq!(head.status, 503, "{body}");
    assert!(head.header("retry-after").is_some());
    assert_eq!(proxy.metrics()[&format!("tidings_over_limit_total{{limit=\"{limit}\"}}")], 2.0);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'for those who are in')");
    assert_eq!(titles(&all_until_now(db, "boards_5", stays)), ["for those who are in"]);
}

#[test]
fn the_number_of_streams_is_limited() {
    let db = boards();
    let proxy = db.proxy(&["--max-clients", "3", "--retry", "1s"]);
    let mut streams: Vec<Sse> = (0..3).map(|_| proxy.live(&["boards_5"])).collect();
    proxy.wait_clients(3);
    is_full(&db, &proxy, &mut streams[0], "clients");
    drop(streams.pop());
    proxy.wait_clients(2);
    assert!(matches!(proxy.live(&["boards_5"]).item(), Some(Item::Retry(500..=1500))), "there is room again");
}

#[test]
fn the_number_of_streams_of_one_address_is_limited() {
    let db = boards();
    let proxy = db.proxy(&["--max-clients-per-address", "2", "--retry", "1s"]);
    let mut streams: Vec<Sse> = (0..2).map(|_| proxy.live(&["boards_5"])).collect();
    is_full(&db, &proxy, &mut streams[0], "clients_per_address");
    // Another address is not limited by this.
    let mut command = Command::new("curl");
    command.args(["--silent", "--interface", "127.0.0.77", "--head", &format!("http://{}{STREAM}", proxy.address())]);
    let output = command.output().expect("run curl");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("HTTP/1.1 200"));
    drop(streams.pop());
    proxy.wait_clients(1);
    assert!(matches!(proxy.live(&["boards_5"]).item(), Some(Item::Retry(500..=1500))), "there is room again");
}

#[test]
fn a_client_that_takes_too_long_for_its_request_is_disconnected() {
    let db = boards();
    let proxy = db.proxy(&["--header-timeout", "300ms"]);
    let mut stays = proxy.live(&["boards_5"]);
    for beginning in ["", "G", "PR", "GET /events?topic=boards_5 HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let mut socket = TcpStream::connect(proxy.address()).expect("connect");
        socket.write_all(beginning.as_bytes()).expect("begin");
        socket.set_read_timeout(Some(DEADLINE)).expect("set a limit");
        let mut answer = String::new();
        match socket.read_to_string(&mut answer) {
            Ok(_) => {}
            // What it had sent was not even read.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    until("none of them is left", || proxy.metric("tidings_connections") <= 1.0);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'a')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut stays)), ["a"]);
}

#[test]
fn a_full_proxy_still_answers_health_checks() {
    let db = boards();
    let proxy = db.proxy(&["--max-clients", "1", "--header-timeout", "1h"]);
    let mut stays = proxy.live(&["boards_5"]);
    proxy.wait_clients(1);
    // Connections without requests: as many as are allowed, and a few more.
    let crowd: Vec<TcpStream> =
        (0..1025).map(|_| TcpStream::connect(proxy.address()).expect("a connection in the kernel's queue")).collect();
    let ask = |path, headers: &[_]| http::open(proxy.address(), path, headers).and_then(http::Response::whole);
    let (head, _) =
        eventually("it is full, and says so", || ask("/metrics", &[]).ok().filter(|(head, _)| head.status == 503));
    assert!(head.header("retry-after").is_some());
    // More than fit into the reserve for health checks.
    let _flood: Vec<TcpStream> =
        (0..64).map(|_| TcpStream::connect(proxy.address()).expect("a connection in the kernel's queue")).collect();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(path, &[]).expect("an answer").0.status, 200, "{path}");
    }
    // That status would make an EventSource give up for good.
    let (head, body) = ask(STREAM, &[("Accept", "text/event-stream")]).expect("an answer");
    assert_eq!(head.status, 200);
    assert!(body.starts_with("retry: "), "{body}");
    assert_eq!(ask(STREAM, &[]).expect("an answer").0.status, 503);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'a')");
    assert_eq!(titles(&[stays.frame()]), ["a"]);
    drop(crowd);
    until("there is room again", || ask("/metrics", &[]).is_ok_and(|(head, _)| head.status == 200));
}

#[test]
fn without_file_descriptors_no_open_stream_is_dropped() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut stays = proxy.live(&["boards_5"]);
    let used = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).expect("its descriptors").count();
    let limit = format!("--nofile={}", used + 10);
    let status = Command::new("prlimit").args(["--pid", &proxy.pid().to_string(), &limit]).status();
    assert!(status.expect("run prlimit").success());
    // The kernel still accepts them; the proxy can't.
    let crowd: Vec<TcpStream> =
        (0..30).map(|_| TcpStream::connect(proxy.address()).expect("a connection in the kernel's queue")).collect();
    // Its metrics can't be requested now. Open streams continue.
    for id in 1..=20 {
        db.session().run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'served')"));
        assert_eq!(titles(&[stays.frame()]), ["served"]);
    }
    drop(crowd);
    until("it accepts new clients again", || http::get(proxy.address(), "/healthz").is_ok());
    assert!(proxy.metric("tidings_accept_errors_total") > 0.0, "they were more than it could take");
    let mut newcomer = proxy.live(&["boards_5"]);
    db.session().run("INSERT INTO board_items VALUES (0, 5, 'for both')");
    assert_eq!(titles(&[stays.frame(), newcomer.frame()]), ["for both", "for both"]);
}

#[test]
fn a_stream_that_is_too_old_ends_properly_and_its_client_misses_nothing() {
    let db = boards();
    let proxy = db.proxy(&["--max-stream-age", "1s", "--heartbeat", "200ms", "--retry", "100ms"]);
    let is_end = |frame: &tidings_tests::Frame| frame.json()["record"]["title"] == "the last";
    let follower = Follower::start(Habits::faithful(proxy.address()), Request::live(&["boards_5"]), is_end);
    let mut session = db.session();
    let mut id = 0;
    until("its stream has ended three times", || {
        id += 1;
        session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'n')"));
        follower.connections() > 3
    });
    session.run(&format!("INSERT INTO board_items VALUES ({}, 5, 'the last')", id + 1));
    assert!(proxy.metric("tidings_aged_total") >= 3.0);
    let ids: Vec<_> = follower.finish().iter().map(|frame| frame.json()["record"]["id"].as_u64()).collect();
    assert_eq!(ids, (1..=id).map(Some).collect::<Vec<_>>());
}

#[test]
fn clients_that_reconnect_at_once_are_served_from_memory() {
    const CLIENTS: usize = 300;
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut first = proxy.live(&["boards_5"]);
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (0, 5, 'seen by all')");
    let last = first.frame().id().to_owned();
    for id in 1..=50 {
        session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'missed')"));
    }
    first.take(50);
    // The log must not be needed: it can't be read.
    let role = db.proxy_role();
    session.run(&format!(
        "REVOKE EXECUTE ON FUNCTION tidings.changes(text, text[], int), tidings.locate(text) FROM {role}"
    ));
    let open = || proxy.open(&Request::resume(&["boards_5"], &last));
    let mut streams: Vec<Sse> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a stream")).collect()
    });
    for sse in &mut streams {
        assert_eq!(sse.take(50).len(), 50);
    }
    let metrics = proxy.metrics();
    assert_eq!(metrics["tidings_resumes_total{source=\"memory\"}"], CLIENTS as f64);
    assert_eq!(metrics["tidings_resumes_total{source=\"log\"}"], 0.0);
    assert_eq!(metrics["tidings_log_events_total"], 0.0);
}

#[test]
fn a_slow_page_of_the_log_does_not_delay_short_queries() {
    let db = boards();
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'n')");
    until("it is in a tick", || db.session().one("SELECT EXISTS (SELECT FROM tidings.changes('earliest'))"));
    let proxy = db.proxy(&["--history-bytes", "0"]);
    let earliest = || proxy.open(&Request::since(&["boards_5"], "earliest"));
    assert_eq!(titles(&[earliest().frame()]), ["n"]);
    let mut session = db.session();
    let reader: i32 = session.one(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT%tidings.page(%' AND pid <> pg_backend_pid()",
    );
    session.stop(reader.unsigned_abs());
    let mut slow = earliest();
    until("the page is being read", || proxy.metric("tidings_replays") == 1.0);
    let _other = proxy.live(&["another"]);
    until("the topics have been reported", || {
        session.one("SELECT EXISTS (SELECT FROM tidings.open_topics WHERE topic = 'another')")
    });
    send(reader.unsigned_abs(), Signal::SIGCONT);
    assert_eq!(titles(&[slow.frame()]), ["n"]);
}

#[test]
fn a_position_that_waits_for_a_lock_delays_no_short_query_and_is_not_given_up() {
    let db = boards();
    let proxy = db.proxy(&["--history-bytes", "0"]);
    let (mut session, mut running, mut lock) = (db.session(), db.session(), db.session());
    // It has seen the later of two transactions, but not the earlier one, and neither is in a tick yet.
    db.stop_relay();
    running.run("BEGIN; INSERT INTO board_items VALUES (1, 5, 'running')");
    session.run("INSERT INTO board_items VALUES (2, 5, 'seen')");
    let position: String = session.one("SELECT tidings.position()");
    assert!(position.contains(':'), "{position}");
    running.run("COMMIT");
    send(db.wait_relay(), Signal::SIGCONT);
    until("both are in ticks", || session.one::<i64>("SELECT count(*) FROM tidings.events") == 2);
    lock.run("BEGIN; LOCK TABLE tidings.log");
    let mut slow = proxy.open(&Request::since(&["boards_5"], &position));
    let waiting = "SELECT coalesce(max(pid || ' ' || query_start), '') FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE 'SELECT tidings.locate(%' AND wait_event_type = 'Lock'";
    let one =
        eventually("it is being located", || Some(session.one::<String>(waiting)).filter(|query| !query.is_empty()));
    let _other = proxy.live(&["another"]);
    until("the topics have been reported", || {
        session.one("SELECT EXISTS (SELECT FROM tidings.open_topics WHERE topic = 'another')")
    });
    assert_eq!(session.one::<String>(waiting), one, "the same query still waits");
    // The query is cancelled in the end, and the proxy finds out that it is not the position that takes so long.
    until("the log makes others wait, too", || {
        session.one(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                 AND query = 'SELECT tidings.position()' AND wait_event_type = 'Lock'
                 AND clock_timestamp() > query_start + interval '2 s')",
        )
    });
    lock.run("ROLLBACK");
    assert_eq!(titles(&[slow.frame()]), ["running"]);
}

#[test]
fn two_positions_that_take_too_long_are_both_given_up() {
    let db = boards();
    db.session().run(
        "CREATE OR REPLACE FUNCTION tidings.locate(after text) RETURNS text LANGUAGE plpgsql AS
         $$ BEGIN IF after LIKE '%:%' THEN PERFORM pg_sleep(3600); END IF; RETURN after; END $$",
    );
    let proxy = db.proxy(&[]);
    let mut streams = ["1:1:3:3:", "2:2:3:3:"].map(|place| proxy.open(&Request::since(&["boards_5"], place)));
    for stream in &mut streams {
        assert_eq!(stream.frame().event, "reset");
    }
}

#[test]
fn a_client_that_reads_the_log_slowly_delays_nobody() {
    const ROWS: i64 = 20_000;
    let db = boards();
    db.session()
        .run(&format!("INSERT INTO board_items SELECT i, 5, repeat('.', 1000) FROM generate_series(1, {ROWS}) i"));
    // Nothing is in memory, and as many clients read the log as may at once, none of which reads more than the kernel
    // does.
    let proxy = db.proxy(&["--history-bytes", "0", "--max-replays", "2", "--heartbeat", "1h"]);
    let slow: Vec<Sse> = (0..4).map(|_| proxy.open(&Request::since(&["boards_5"], "earliest"))).collect();
    until("they are being served", || proxy.metric("tidings_replays") == 4.0);
    let mut live = proxy.live(&["boards_5"]);
    let mut quick = proxy.open(&Request::since(&["boards_5"], "earliest"));
    for id in 1..=20 {
        db.session().run(&format!("INSERT INTO board_items VALUES (-{id}, 5, 'live')"));
        assert_eq!(titles(&[live.frame()]), ["live"]);
    }
    assert_eq!(proxy.metric("tidings_replays"), 5.0, "the slow ones are still at it");
    assert_eq!(quick.take(ROWS as usize).len(), ROWS as usize);
    assert_eq!(titles(&quick.take(20)), ["live"; 20]);
    // They get all of it when they read.
    for mut sse in slow {
        assert_eq!(sse.take(ROWS as usize + 20).len(), ROWS as usize + 20);
    }
}
