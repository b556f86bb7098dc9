//! Ticks that are announced before they are flushed: what a crash within that moment may change, and when a tick is
//! flushed first instead.
//!
//! `tidings.hold_flush` keeps the moment open: the relay does not flush what it has announced, until something else
//! does.

use std::thread;

use tidings_tests::process::{Signal, send};
use tidings_tests::sse::{Request, Sse};
use tidings_tests::{Cluster, Database, Frame, Proxy, Session, until};

use crate::lost::{fail_over, is_reset, proxy_of};
use crate::{all_until_now, create_boards, kept_boards, titles};

/// How often a crash is tried until one has lost a tick: now and then something else flushes it in time.
const ATTEMPTS: i32 = 20;

/// The settings of a server on which nothing but a commit flushes an announced tick.
pub const HELD: &[(&str, &str)] = &[("tidings.hold_flush", "on"), ("autovacuum", "off"), ("wal_writer_delay", "10s")];

pub fn insert(session: &mut Session, id: i32) {
    session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'n{id}')"));
}

/// How many ticks were flushed before they were announced, for this reason.
pub fn flushed_first(session: &mut Session, reason: &str) -> i64 {
    session.one(&format!("SELECT (flushed_first ->> '{reason}')::bigint FROM tidings.status"))
}

/// Waits until ticks are announced before they are flushed, which the first ones of a relay are not. Afterwards no
/// event waits for its tick, which would count with those of the test.
pub fn warm_up(db: &Database<'_>) {
    let mut session = db.session();
    let total =
        "SELECT ticks - (SELECT sum(value::bigint) FROM jsonb_each_text(flushed_first))::bigint FROM tidings.status";
    let before: i64 = session.one(total);
    until("a tick is announced early", || {
        session.publish("nobody", "1");
        session.one::<i64>(total) > before + 2
    });
    wait_for_ticks(&mut session);
}

/// Waits until everything that is committed is in a tick, which is counted before it is visible.
pub fn wait_for_ticks(session: &mut Session) {
    until("everything is in a tick", || session.one("SELECT waiting_since IS NULL FROM tidings.status"));
}

/// Whether the log has the tick of an event.
pub fn has_tick(db: &Database<'_>, frame: &Frame) -> bool {
    db.session().one(&format!("SELECT EXISTS (SELECT FROM tidings.tick WHERE tick = {})", frame.place().0))
}

/// Stops the process that flushes asynchronous commits. Returns its id.
pub fn stop_wal_writer(cluster: &Cluster) -> u32 {
    let mut session = cluster.session("postgres", "postgres");
    let pid: i32 = session.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");
    session.stop(pid.unsigned_abs());
    pid.unsigned_abs()
}

/// Inserts a row, crashes as soon as all of `live` have its event, and starts again. Returns the event, and the number
/// of the next row.
fn lose_a_tick(db: &Database<'_>, live: &mut [Sse], mut id: i32) -> (Frame, i32) {
    for _ in 0..ATTEMPTS {
        warm_up(db);
        stop_wal_writer(db.cluster());
        let mut session = db.session();
        insert(&mut session, id);
        let frames: Vec<Frame> = live.iter_mut().map(Sse::frame).collect();
        db.crash();
        for frame in &frames {
            assert_eq!((titles(std::slice::from_ref(frame)), frame.id()), (vec![format!("n{id}")], frames[0].id()));
        }
        let frame = frames[0].clone();
        id += 1;
        if !has_tick(db, &frame) {
            return (frame, id);
        }
    }
    panic!("no crash has lost a tick");
}

/// Proxies of the same database.
fn proxies<const N: usize>(db: &Database<'_>) -> [Proxy; N] {
    std::array::from_fn(|_| db.proxy(&["--retry", "100ms"]))
}

#[test]
fn a_crash_that_loses_an_announced_tick_resets_and_repeats_nothing_at_proxies_that_heard_it() {
    let cluster = Cluster::start(HELD);
    let db = kept_boards(&cluster);
    let proxies = proxies::<2>(&db);
    let mut streams = [proxies[0].live(&["boards_5"]), proxies[1].live(&["boards_5"])];
    let mut id = 0;
    for _ in 0..3 {
        let (lost, next) = lose_a_tick(&db, &mut streams, id);
        insert(&mut db.session(), next);
        for sse in &mut streams {
            assert_eq!(titles(&[sse.frame()]), [format!("n{next}")], "neither a reset nor a repetition");
        }
        // The id of the lost tick is known at both proxies.
        for proxy in &proxies {
            let mut back = proxy.open(&Request::resume(&["boards_5"], lost.id()));
            assert_eq!(titles(&[back.frame()]), [format!("n{next}")]);
        }
        id = next + 1;
    }
    for proxy in &proxies {
        assert_eq!(proxy.metric("tidings_resets_total"), 0.0);
    }
    // Every event once, in one order, in the log too.
    let mut all = proxies[0].open(&Request::since(&["boards_5"], "earliest"));
    let titles = titles(&all_until_now(&db, "boards_5", &mut all));
    assert_eq!(titles, (0..id).map(|id| format!("n{id}")).collect::<Vec<_>>());
}

#[test]
fn the_id_of_a_lost_tick_is_unknown_only_where_nobody_heard_it() {
    let cluster = Cluster::start(HELD);
    let db = kept_boards(&cluster);
    let mut proxies = proxies::<2>(&db);
    let mut live = proxies[0].live(&["boards_5"]);
    insert(&mut db.session(), 0);
    let kept = live.frame();
    proxies[1].kill();
    let (lost, next) = lose_a_tick(&db, std::slice::from_mut(&mut live), 1);
    proxies[1].restart();
    let back = Request::resume(&["boards_5"], lost.id());
    is_reset(&proxies[1].open(&back).frame());
    let mut heard = proxies[0].open(&back);
    insert(&mut db.session(), next);
    assert_eq!(titles(&[heard.frame(), live.frame()]), [format!("n{next}"), format!("n{next}")]);

    // When nobody is left who heard it, its id is unknown everywhere; other ids are not.
    proxies[0].kill();
    proxies[0].restart();
    is_reset(&proxies[0].open(&back).frame());
    for proxy in &proxies {
        let mut all = proxy.open(&Request::resume(&["boards_5"], kept.id()));
        let titles = titles(&all_until_now(&db, "boards_5", &mut all));
        assert_eq!(titles, (1..=next).map(|id| format!("n{id}")).collect::<Vec<_>>());
    }
}

/// A server whose commits wait for a standby.
fn synchronous(primary: &Cluster) -> Cluster {
    let standby = primary.standby();
    let mut session = primary.session("postgres", "postgres");
    session.run("ALTER SYSTEM SET synchronous_standby_names = '*'");
    session.run("SELECT pg_reload_conf()");
    until("the standby is synchronous", || {
        session.one("SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')")
    });
    standby
}

/// Lets a promoted standby commit without a standby of its own.
fn alone(session: &mut Session) {
    session.run("ALTER SYSTEM RESET synchronous_standby_names");
    session.run("SELECT pg_reload_conf()");
}

#[test]
fn a_synchronous_standby_that_lacks_an_announced_tick_resets_nobody() {
    let primary = Cluster::start(HELD);
    let db = kept_boards(&primary);
    let standby = synchronous(&primary);
    let proxy = proxy_of(&primary, &standby, &db);
    let mut live = proxy.live(&["boards_5"]);
    warm_up(&db);
    stop_wal_writer(&primary);
    // The standby receives only what is flushed.
    insert(&mut db.session(), 1);
    let lost = live.frame();
    assert_eq!(titles(std::slice::from_ref(&lost)), ["n1"]);
    let mut there = fail_over(&primary, &standby, &db);
    alone(&mut there);
    let is_lost: bool =
        there.one(&format!("SELECT NOT EXISTS (SELECT FROM tidings.tick WHERE tick = {})", lost.place().0));
    assert!(is_lost, "the standby has the tick");
    insert(&mut there, 2);
    assert_eq!(titles(&[live.frame()]), ["n2"], "neither a reset nor a repetition");
    let mut back = proxy.open(&Request::resume(&["boards_5"], lost.id()));
    assert_eq!(titles(&[back.frame()]), ["n2"]);
}

#[test]
fn what_an_asynchronous_writer_commits_is_flushed_before_anyone_sees_it() {
    let cluster = Cluster::start(HELD);
    let db = kept_boards(&cluster);
    let proxy = db.proxy(&["--retry", "100ms"]);
    let mut live = proxy.live(&["boards_5"]);
    warm_up(&db);
    stop_wal_writer(&cluster);
    let mut session = db.session();
    let before = flushed_first(&mut session, "asynchronous");
    session.run("SET synchronous_commit = off");
    insert(&mut session, 1);
    assert_eq!(titles(&[live.frame()]), ["n1"]);
    assert_eq!(flushed_first(&mut session, "asynchronous"), before + 1);
    db.crash();
    assert_eq!(db.session().one::<i64>("SELECT count(*) FROM board_items"), 1, "the row that a client has seen");
    insert(&mut db.session(), 2);
    assert_eq!(titles(&[live.frame()]), ["n2"]);
}

#[test]
fn what_did_not_wait_for_the_synchronous_standby_is_not_shown_before_the_standby_has_it() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let standby = synchronous(&primary);
    let proxy = proxy_of(&primary, &standby, &db);
    let mut live = proxy.live(&["boards_5"]);
    warm_up(&db);
    let mut session = db.session();
    let receiver: i32 = standby.session("postgres", "postgres").one("SELECT pid FROM pg_stat_wal_receiver");
    send(receiver.unsigned_abs(), Signal::SIGSTOP);
    session.run("SET synchronous_commit = local");
    insert(&mut session, 1);
    until("the relay waits for the standby", || {
        session.one("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'tidings relay' AND datname = current_database() AND wait_event = 'SyncRep')")
    });
    assert_eq!(flushed_first(&mut session, "asynchronous"), 1);
    primary.kill();
    let mut witness = standby.session("postgres", "postgres");
    send(receiver.unsigned_abs(), Signal::SIGKILL);
    until("the standby restarts its sessions", || witness.client().batch_execute("SELECT").is_err());
    standby.wait_ready();
    let mut there = standby.session(db.name(), "postgres");
    there.run("SELECT pg_promote()");
    until("the new primary has a relay", || there.one("SELECT tidings.relay_pid() IS NOT NULL"));
    alone(&mut there);
    assert_eq!(there.one::<i64>("SELECT count(*) FROM board_items"), 0, "the standby never got it");
    insert(&mut there, 2);
    assert_eq!(titles(&[live.frame()]), ["n2"], "and no client saw it");
    assert_eq!(proxy.metric("tidings_resets_total"), 0.0);
}

#[test]
fn ticks_are_flushed_first_while_a_transaction_is_prepared_and_when_it_is_committed() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    warm_up(&db);
    let mut session = db.session();
    let before = flushed_first(&mut session, "prepared");
    session.run("BEGIN; INSERT INTO board_items VALUES (1, 5, 'n1'); PREPARE TRANSACTION 'one'");
    insert(&mut session, 2);
    until("it is in a tick", || session.one("SELECT count(*) = 1 FROM tidings.events WHERE topic = 'boards_5'"));
    assert_eq!(flushed_first(&mut session, "prepared"), before + 1);
    // Also after a restart.
    drop(session);
    cluster.restart();
    warm_up_while_prepared(&db);
    let mut session = db.session();
    let before = flushed_first(&mut session, "prepared");
    session.run("COMMIT PREPARED 'one'");
    until("it is in a tick", || session.one("SELECT count(*) = 2 FROM tidings.events WHERE topic = 'boards_5'"));
    assert_eq!(flushed_first(&mut session, "prepared"), before + 1);
    warm_up(&db);
}

/// Waits until the relay has cut its first tick.
fn warm_up_while_prepared(db: &Database<'_>) {
    db.wait_relay();
    let mut session = db.session();
    until("the relay has cut a tick", || {
        session.publish("nobody", "1");
        flushed_first(&mut session, "prepared") > 0
    });
    wait_for_ticks(&mut session);
}

#[test]
fn a_large_tick_is_flushed_first_because_proxies_read_it_from_the_log() {
    let db = tidings_tests::shared().database();
    create_boards(&db);
    warm_up(&db);
    let mut session = db.session();
    let before = flushed_first(&mut session, "hint");
    session.run("INSERT INTO board_items SELECT 1, 5, repeat('x', 100000)");
    until("it is counted", || flushed_first(&mut session, "hint") == before + 1);
}

#[test]
fn a_transaction_that_waits_for_an_earlier_one_is_flushed_first_and_keeps_its_place() {
    // A session that waits for a standby here waits forever. The relay does not.
    let cluster =
        Cluster::start(&[HELD, &[("synchronous_standby_names", "nobody"), ("synchronous_commit", "local")]].concat());
    let db = kept_boards(&cluster);
    let proxy = db.proxy(&["--retry", "100ms"]);
    let mut live = proxy.live(&["boards_5"]);
    warm_up(&db);
    stop_wal_writer(&cluster);
    let mut session = db.session();
    let before = flushed_first(&mut session, "order");
    let mut slow = db.session();
    slow.run("SET synchronous_commit = on");
    let slow = thread::spawn(move || {
        // Ends with the server.
        let _ = slow.client().batch_execute("INSERT INTO board_items VALUES (1, 5, 'n1')");
    });
    until("the first one waits", || {
        session.one("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')")
    });
    insert(&mut session, 2);
    assert_eq!(titles(&[live.frame()]), ["n2"]);
    assert_eq!(flushed_first(&mut session, "order"), before + 1);
    // The first one is committed, although nobody saw it.
    db.crash();
    let _ = slow.join();
    assert_eq!(titles(&[live.frame()]), ["n1"], "behind the second one, which came before");
    let mut all = proxy.open(&Request::since(&["boards_5"], "earliest"));
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut all)), ["n2", "n1"], "the same order for all");
    assert_eq!(proxy.metric("tidings_resets_total"), 0.0);
}

#[test]
fn a_position_and_what_is_read_from_the_log_survive_a_crash() {
    let cluster = Cluster::start(HELD);
    let db = kept_boards(&cluster);
    warm_up(&db);
    stop_wal_writer(&cluster);
    let mut session = db.session();
    let start: String = session.one("SELECT tidings.position()");
    session.run("SET synchronous_commit = off");
    // The relay flushes nothing meanwhile.
    db.stop_relay();
    insert(&mut session, 1);
    let row = session.all("SELECT tidings.position(), (SELECT count(*) FROM board_items)", &[]).remove(0);
    let (position, seen): (String, i64) = (row.get(0), row.get(1));
    db.crash();
    let mut session = db.session();
    assert_eq!(session.one::<i64>("SELECT count(*) FROM board_items"), seen, "rows that were read with the position");
    let proxy = db.proxy(&[]);
    let mut sse = proxy.open(&Request::since(&["boards_5"], &position));
    assert_eq!(all_until_now(&db, "boards_5", &mut sse), []);

    // An announced tick, read from the log.
    warm_up(&db);
    stop_wal_writer(&cluster);
    session.run("SET synchronous_commit = on");
    insert(&mut session, 2);
    let mut last = start.clone();
    until("it can be read", || {
        let rows = session.all("SELECT position, payload FROM tidings.changes($1, '{boards_5}')", &[&start]);
        let row = rows.last().filter(|row| row.get::<_, &str>(1).contains("n2"));
        row.is_some_and(|row| {
            last = row.get(0);
            true
        })
    });
    db.crash();
    let mut session = db.session();
    let after = session.all("SELECT payload FROM tidings.changes($1, '{boards_5}')", &[&last]);
    assert!(after.is_empty(), "read twice: {after:?}");
    let mut sse = proxy.open(&Request::resume(&["boards_5"], &last));
    insert(&mut session, 3);
    assert_eq!(titles(&[sse.frame()]), ["n3"]);
}

#[test]
fn a_transaction_that_was_written_early_gets_the_stamp_of_its_end() {
    let db = tidings_tests::shared().database();
    create_boards(&db);
    let mut session = db.session();
    // All of its events are written before the commit: the buffer is empty then.
    session.run("BEGIN; SAVEPOINT a; INSERT INTO board_items SELECT 1, 5, repeat('x', 300000); RELEASE a");
    let written: i64 = session.one("SELECT count(*) FROM tidings.log WHERE xid = pg_current_xact_id()");
    assert_eq!(written, 1, "written early");
    let between: i64 = session.one("SELECT tidings.stamp()");
    session.run("COMMIT");
    assert!(session.one::<bool>(&format!("SELECT max(stamp) > {between} FROM tidings.log")));
    let proxy = db.proxy(&[]);
    let mut sse = proxy.open(&Request::since(&["boards_5"], "earliest"));
    assert_eq!(all_until_now(&db, "boards_5", &mut sse).len(), 1);
}

#[test]
fn an_announced_tick_is_flushed_soon_although_nobody_commits() {
    let cluster = Cluster::start(&[("autovacuum", "off")]);
    let db = cluster.database();
    create_boards(&db);
    let mut session = db.session();
    warm_up(&db);
    let wal_writer = stop_wal_writer(&cluster);
    // Without a proxy, whose reports are commits too. Now and then something else writes after the tick and is not
    // flushed.
    let mut id = 0;
    until("a tick is flushed", || {
        let ticks: i64 = session.one("SELECT ticks FROM tidings.relay()");
        insert(&mut session, id);
        id += 1;
        until("it is announced", || session.one::<i64>("SELECT ticks FROM tidings.relay()") > ticks);
        let end: String = session.one("SELECT pg_current_wal_insert_lsn()::text");
        let is_flushed = format!("SELECT pg_current_wal_flush_lsn() >= '{end}'");
        (0..200).any(|_| session.one(&is_flushed))
    });
    send(wal_writer, Signal::SIGCONT);
}
