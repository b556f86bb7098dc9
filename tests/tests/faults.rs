//! Crashes: no committed event is missing or repeated, and clients never see what a crash undoes.

use tidings_tests::follower::Habits;
use tidings_tests::ledger::{self, Ledger, TOPICS};
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Follower, Frame};

use crate::{all_until_now, create_boards, titles};

/// Lets writers and clients work while `fault` strikes three times, and checks what the clients received.
fn survive(db: &Database<'_>, setup: &str, fault: impl Fn()) {
    let ledger = Ledger::create(db);
    let proxies = [db.proxy(&[]), db.proxy(&[])];
    let followers: Vec<Follower> = proxies
        .iter()
        .map(|proxy| Follower::start(Habits::faithful(proxy.address()), Request::live(&TOPICS), ledger::is_end))
        .collect();
    let writers = ledger.start(8, crate::seed(), setup);
    for _ in 0..3 {
        let seen = followers[0].seen();
        writers.wait_for(300);
        // Clients must be reading at that time, or a crash could not undo anything that they have seen.
        tidings_tests::until("the clients make progress", || followers[0].seen() > seen);
        fault();
    }
    writers.wait_for(300);
    writers.finish();
    ledger.close();
    let connections: Vec<usize> = followers.iter().map(Follower::connections).collect();
    let got: Vec<Vec<Frame>> = followers.into_iter().map(Follower::finish).collect();
    ledger.check(&got[0]);
    // A tick that a crash takes back has an id only where it was heard. Elsewhere its events come in the next tick.
    let events = |frames: &[Frame]| frames.iter().map(|frame| (frame.event.clone(), frame.data.clone())).collect();
    let [one, other]: [Vec<_>; 2] = [events(&got[0]), events(&got[1])];
    assert!(one == other, "the same for all");
    assert_eq!(connections, [1, 1], "clients stay connected while the database is away");
}

#[test]
fn a_killed_relay_loses_and_repeats_nothing() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    survive(&db, "", || db.kill_relay());
}

#[test]
fn a_killed_server_loses_and_repeats_nothing() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    survive(&db, "", || db.crash());
}

#[test]
fn clients_never_see_what_a_crash_undoes_even_with_asynchronous_commits() {
    // A slow WAL writer, so that a crash takes many commits from the writers.
    let cluster = Cluster::start(&[("wal_writer_delay", "2s"), ("wal_writer_flush_after", "0")]);
    let db = cluster.database();
    survive(&db, "SET synchronous_commit = off", || db.crash());
}

#[test]
fn a_restarted_server_loses_and_repeats_nothing() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    survive(&db, "", || db.restart());
}

#[test]
fn a_prepared_transaction_outlives_a_crash() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    db.session().run("BEGIN; INSERT INTO board_items VALUES (1, 5, 'prepared'); PREPARE TRANSACTION 'p'");
    db.session().run("INSERT INTO board_items VALUES (2, 5, 'before the crash')");
    assert_eq!(titles(&[sse.frame()]), ["before the crash"]);
    db.crash();
    db.session().run("INSERT INTO board_items VALUES (3, 5, 'after the crash')");
    assert_eq!(titles(&[sse.frame()]), ["after the crash"]);
    db.session().run("COMMIT PREPARED 'p'");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["prepared"]);
}

#[test]
fn a_prepared_transaction_hides_no_event_that_is_written_before_the_relay_is_back() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    db.session().run("BEGIN; INSERT INTO board_items VALUES (1, 5, 'prepared'); PREPARE TRANSACTION 'p'");
    db.session().run("INSERT INTO board_items VALUES (2, 5, 'sent')");
    assert_eq!(titles(&[sse.frame()]), ["sent"]);
    db.stop_relay();
    db.session().run("INSERT INTO board_items VALUES (3, 5, 'read by the page')");
    let position: String = db.session().one("SELECT tidings.position()");
    // Its locks survive the crash, so the next relay waits for it.
    db.session().run("BEGIN; LOCK TABLE tidings.tick; PREPARE TRANSACTION 'lock'");
    cluster.crash();
    db.session().run("INSERT INTO board_items VALUES (4, 5, 'after the crash')");
    db.session().run("COMMIT PREPARED 'lock'");
    assert_eq!(titles(&[sse.frame(), sse.frame()]), ["read by the page", "after the crash"]);
    let mut page = proxy.open(&Request::since(&["boards_5"], &position));
    assert_eq!(titles(&[page.frame()]), ["after the crash"]);
    db.session().run("COMMIT PREPARED 'p'");
    for sse in [&mut sse, &mut page] {
        assert_eq!(titles(&all_until_now(&db, "boards_5", sse)), ["prepared"]);
    }
}

#[test]
fn what_was_committed_right_before_a_crash_arrives_after_it() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    // The relay is stopped and announces nothing: when the server dies, only the log has the event.
    db.stop_relay();
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'unannounced')");
    cluster.crash();
    assert_eq!(titles(&[sse.frame()]), ["unannounced"]);
    assert_eq!(all_until_now(&db, "boards_5", &mut sse), []);
}

#[test]
fn what_a_page_read_right_before_a_crash_is_not_repeated() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    db.stop_relay();
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (1, 5, 'read')");
    let position: String = session.one("SELECT tidings.position()");
    session.run("INSERT INTO board_items VALUES (2, 5, 'written after that')");
    cluster.crash();
    db.session().run("INSERT INTO board_items VALUES (3, 5, 'written after the crash')");
    let proxy = db.proxy(&[]);
    let mut sse = proxy.open(&Request::since(&["boards_5"], &position));
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["written after that", "written after the crash"]);
    let sent = "SELECT payload::jsonb #>> '{record,title}' FROM tidings.changes($1, '{boards_5}') LIMIT 2";
    let sent: Vec<String> = db.session().all(sent, &[&position]).iter().map(|row| row.get(0)).collect();
    assert_eq!(sent, ["written after that", "written after the crash"]);
}

#[test]
fn a_relay_that_ends_early_after_a_crash_hides_nothing() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let mut session = db.session();
    // Its locks survive the crash, so the next relay waits with its first task.
    session.run("BEGIN; LOCK TABLE tidings.tick IN SHARE MODE; PREPARE TRANSACTION 'lock'");
    // What the page has read is lost, and other transactions get the same ids.
    let wal_writer: i32 = session.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");
    session.stop(wal_writer.unsigned_abs());
    session.run("SET synchronous_commit = off");
    for id in 0..40 {
        session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'lost')"));
    }
    let position: String = session.one("SELECT tidings.position()");
    cluster.crash();
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (40, 5, 'new')");
    let relay = db.wait_relay();
    tidings_tests::until("the relay waits", || {
        session.one(&format!("SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {relay} AND NOT granted)"))
    });
    session.run(&format!("SELECT pg_terminate_backend({relay})"));
    tidings_tests::until("another one has arrived", || db.relay().is_some_and(|pid| pid != relay));
    session.run("COMMIT PREPARED 'lock'");
    let sent = "SELECT payload::jsonb #>> '{record,title}' FROM tidings.changes($1, '{boards_5}')";
    tidings_tests::until("the new event has been sent", || {
        let sent: Vec<String> = session.all(sent, &[&position]).iter().map(|row| row.get(0)).collect();
        sent == ["new"]
    });
}

#[test]
fn a_proxy_waits_for_a_server_that_is_not_there_yet() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let url = cluster.url(db.name(), &db.proxy_role());
    cluster.stop();
    let proxy = tidings_tests::Proxy::start_at(tidings_tests::cluster::free_port(), &url, &[]);
    tidings_tests::until("it is up, but not ready", || {
        let status = |path| tidings_tests::http::get(proxy.address(), path).map(|(head, _)| head.status).ok();
        status("/healthz") == Some(200) && status("/readyz") == Some(503)
    });
    cluster.boot();
    proxy.wait_ready();
    let mut sse = proxy.live(&["boards_5"]);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'there')");
    assert_eq!(titles(&[sse.frame()]), ["there"]);
}
