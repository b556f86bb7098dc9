//! A proxy of this version at a database whose SQL is still that of 0.1: it serves what 0.1 had, refuses what came
//! later, and takes it up as soon as the SQL is updated. The library is that of this version; `rolling` has the old
//! one.

use tidings_tests::process::{self, Signal};
use tidings_tests::sse::Request;
use tidings_tests::{Database, Proxy, Session, http, shared, until};

use crate::access::{Team, ask, open, status};
use crate::{all_until_now, create_boards, titles};

/// Each release before 0.2.0.
const RELEASES: [&str; 2] = ["0.1.0", "0.1.1"];

/// So little memory that every client that comes back reads the log.
const FORGETFUL: [&str; 2] = ["--history-bytes", "1"];

/// A database with the SQL of a release.
fn database(version: &str) -> Database<'static> {
    let db = shared().empty_database();
    db.session().run(&format!("CREATE EXTENSION tidings VERSION '{version}'"));
    db.wait_relay();
    db
}

fn update(db: &Database<'_>) {
    db.session().run("ALTER EXTENSION tidings UPDATE");
}

/// Inserts rows of board 5, each in its own transaction.
fn insert(session: &mut Session, ids: std::ops::RangeInclusive<i64>) {
    for id in ids {
        session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, '{id}')"));
    }
}

fn numbers(ids: std::ops::RangeInclusive<i64>) -> Vec<String> {
    ids.map(|id| id.to_string()).collect()
}

#[test]
fn live_events_and_every_way_to_catch_up_work_before_the_update() {
    for version in RELEASES {
        let db = database(version);
        create_boards(&db);
        let mut session = db.session();
        let (proxy, forgetful) = (db.proxy(&[]), db.proxy(&FORGETFUL));
        let mut live = proxy.live(&["boards_5"]);
        live.wait_id();
        // More than one page: the second one begins in the middle of a transaction.
        session.run("INSERT INTO board_items SELECT i, 5, i FROM generate_series(1, 300) i");
        insert(&mut session, 301..=310);
        session.run("INSERT INTO board_items SELECT i, 6, i || repeat('.', 20000) FROM generate_series(1001, 1060) i");
        let events = live.take(310);
        assert_eq!(titles(&events), numbers(1..=310), "{version}");
        for proxy in [&proxy, &forgetful] {
            for n in [0, 48, 49, 50, 248, 249, 250, 251, 298, 299, 308] {
                let mut resumed = proxy.open(&Request::resume(&["boards_5"], events[n].id()));
                assert_eq!(resumed.take(309 - n), events[n + 1..], "{version}, after event {n}");
            }
            let mut all = proxy.open(&Request::since(&["boards_5"], "earliest"));
            assert_eq!(all.take(310), events, "{version}");
            // Pages that end because of their bytes.
            let mut large = proxy.open(&Request::since(&["boards_6"], "earliest"));
            let ids = large.take(60).iter().map(|frame| frame.json()["record"]["id"].as_i64()).collect::<Vec<_>>();
            assert_eq!(ids, (1001..=1060).map(Some).collect::<Vec<_>>(), "{version}");
        }
        // A client that has caught up is live.
        let mut resumed = forgetful.open(&Request::resume(&["boards_5"], events[300].id()));
        assert_eq!(resumed.take(9), events[301..]);
        insert(&mut session, 311..=311);
        assert_eq!(titles(&all_until_now(&db, "boards_5", &mut resumed)), ["311"], "{version}");
        let path = format!("/events?topic=boards_5&since={}", events[307].id());
        let mut answer = http::open(forgetful.address(), &path, &[("Accept", "application/json")]).expect("ask");
        let mut body = Vec::new();
        while answer.read(&mut body).expect("read the answer") {}
        let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(json["events"][0]["id"].as_str(), events[308].id.as_deref(), "{version}: {json}");
        until("the open topics are reported", || {
            session.one::<i64>("SELECT count(*) FROM tidings.open_topics WHERE topic = 'boards_5'") == 1
        });
    }
}

#[test]
fn a_position_of_an_old_snapshot_loses_no_transaction_that_was_running() {
    for version in RELEASES {
        let db = database(version);
        create_boards(&db);
        let (mut slow, mut session) = (db.session(), db.session());
        let proxies = [db.proxy(&[]), db.proxy(&FORGETFUL)];
        slow.run("BEGIN; INSERT INTO board_items VALUES (1, 5, 'running')");
        session.run("INSERT INTO board_items VALUES (2, 5, 'seen')");
        let position: String = session.one("SELECT tidings.position()");
        session.run("INSERT INTO board_items VALUES (3, 5, 'later')");
        slow.run("COMMIT");
        for proxy in &proxies {
            let mut stream = proxy.open(&Request::since(&["boards_5"], &position));
            assert_eq!(titles(&stream.take(2)), ["later", "running"], "{version}");
        }
    }
}

/// What a request for rows gets from a client that is no EventSource.
fn rows(proxy: &Proxy, accept: &str) -> (u16, String) {
    let (head, body) = ask(proxy, "/events?topic=boards_5&since=snapshot", &[("Accept", accept)]);
    (head.status, body)
}

#[test]
fn what_needs_the_update_is_refused_until_then_and_the_log_says_so_once() {
    let db = database("0.1.1");
    create_boards(&db);
    let proxy = db.proxy(&[]);
    let mut stream = proxy.live(&["boards_5"]);
    stream.wait_id();
    for accept in ["*/*", "application/json"] {
        let (status, body) = rows(&proxy, accept);
        assert!(status == 503 && body.contains("ALTER EXTENSION tidings UPDATE"), "{accept}: {status} {body}");
    }
    // An EventSource would give up after a 503. It is asked to come back instead.
    let mut refused = proxy.open(&Request::since(&["boards_5"], "snapshot"));
    assert_eq!(refused.rest(), []);
    db.cut_proxies();
    insert(&mut db.session(), 1..=1);
    assert_eq!(titles(&[stream.frame()]), ["1"]);
    proxy.wait_ready();
    let is_warning = |line: &&str| line.contains("WARN") && line.contains("older than this proxy");
    let warnings = || proxy.log().lines().filter(is_warning).count();
    assert_eq!(warnings(), 1, "{}", proxy.log());
    update(&db);
    until("rows are served", || rows(&proxy, "*/*").0 == 200);
    db.session().run(&format!("GRANT SELECT ON board_items TO {}", db.proxy_role()));
    let mut with_rows = proxy.open(&Request::since(&["boards_5"], "snapshot"));
    assert_eq!(titles(&[with_rows.frame(), with_rows.frame()][1..]), ["1"]);
    insert(&mut db.session(), 2..=2);
    assert_eq!(titles(&[stream.frame()]), ["2"]);
    assert_eq!(warnings(), 1);
}

#[test]
fn a_page_that_is_read_after_the_update_and_before_it_is_noticed_resets_nobody() {
    until("the page is read before the update is noticed", read_a_page_right_after_the_update);
}

/// False if the proxy had noticed the update already.
fn read_a_page_right_after_the_update() -> bool {
    let db = database("0.1.1");
    create_boards(&db);
    let mut session = db.session();
    let proxy = db.proxy(&FORGETFUL);
    let mut live = proxy.live(&["boards_5"]);
    insert(&mut session, 1..=3);
    let first = live.take(3)[0].clone();
    // An event that is in no tick yet: the current SQL counts it in each position.
    let relay = db.stop_relay();
    insert(&mut session, 4..=4);
    update(&db);
    assert!(session.one::<String>("SELECT tidings.position()").contains('-'));
    let mut resumed = proxy.open(&Request::resume(&["boards_5"], first.id()));
    assert_eq!(titles(&resumed.take(2)), numbers(2..=3));
    let has_noticed = proxy.log().contains("the extension's SQL was updated");
    process::send(relay, Signal::SIGCONT);
    assert_eq!(titles(&resumed.take(1)), numbers(4..=4));
    !has_noticed
}

#[test]
fn an_update_is_noticed_however_many_events_there_are() {
    let db = database("0.1.1");
    create_boards(&db);
    let proxy = db.proxy(&[]);
    update(&db);
    let mut session = db.session();
    // Without a pause, so the proxy never asks because it is quiet.
    until("rows are served", || {
        session.publish("noise", "1");
        rows(&proxy, "*/*").0 == 200
    });
    session.run("SELECT tidings.rotate_channel()");
    let mut stream = proxy.live(&["boards_5"]);
    insert(&mut session, 1..=1);
    assert_eq!(titles(&[stream.frame()]), ["1"]);
}

#[test]
fn rules_decide_before_the_update() {
    for version in RELEASES {
        let team = Team::of(database(version));
        let proxy = team.proxy(&["--reauthorize", "200ms"]);
        let (ada, ben) = (team.token(1), team.token(2));
        let boards = "/events?topic=boards_5";
        assert_eq!((status(&proxy, boards, &ada), status(&proxy, boards, &ben)), (200, 403), "{version}");
        assert_eq!(status(&proxy, "/events?topic=nothing_5", &ada), 403, "{version}");
        assert_eq!(ask(&proxy, boards, &[]).0.status, 401, "{version}");
        let mut his = open(&proxy, "boards_7", &ben);
        team.db.session().run("DELETE FROM members WHERE person = 2");
        assert_eq!(his.rest(), [], "{version}");
    }
}

#[test]
fn a_short_lock_on_what_a_rule_reads_denies_nobody_before_the_update() {
    let team = Team::of(database("0.1.1"));
    let proxy = team.proxy(&[]);
    let mut lock = team.db.session();
    lock.run("BEGIN; LOCK TABLE boards IN ACCESS EXCLUSIVE MODE");
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| status(&proxy, "/events?topic=boards_5", &team.token(1)));
        // Its rules have waited too long for others that are asked together with it, so it is asked alone.
        let is_alone = || proxy.metrics()["tidings_auth_checks_ended_total{cause=\"held_up_others\"}"] >= 1.0;
        until("the question is asked alone", is_alone);
        lock.run("ROLLBACK");
        assert_eq!(asked.join().expect("an answer"), 200);
    });
}

#[test]
fn a_guard_that_comes_with_the_update_holds_for_clients_that_are_catching_up() {
    let team = Team::of(database("0.1.1"));
    let proxy = team.proxy(&["--reauthorize", "1h", "--history-bytes", "1", "--client-queue-bytes", "64KiB"]);
    let mut session = team.db.session();
    // Far more than the client takes before it reads, so most pages are read after the update.
    session.run("INSERT INTO board_items SELECT i, 7, repeat('x', 10000) FROM generate_series(1, 2000) i");
    let request = Request::since(&["boards_7"], "earliest").by(&team.token(2));
    let mut his = proxy.open(&request);
    his.frame();
    update(&team.db);
    session.run("SELECT tidings.guard('members', topic => 'boards_{board_id}')");
    session.run(
        "BEGIN; DELETE FROM members WHERE person = 2; INSERT INTO board_items VALUES (2001, 7, 'a secret'); COMMIT;
         INSERT INTO board_items VALUES (2002, 7, 'another')",
    );
    let rest = his.rest();
    assert!(rest.iter().all(|frame| !frame.data.contains("a secret") && !frame.data.contains("another")));
    assert!(rest.len() >= 1999, "{}", rest.len());
}
