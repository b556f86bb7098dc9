//! Fresh segments are handed over in shared memory. Whatever happens to them there, each tick has what the log has.
//!
//! In every cluster of these tests the relay compares the two for each tick, unless a test turns that off.

use std::time::{Duration, Instant};

use tidings_tests::process::{Signal, send};
use tidings_tests::{Cluster, Database, Session, until};

use crate::log::Log;
use crate::{boards, create_boards, seed, titles};

/// The payloads of events.
fn payloads(log: &mut Log) -> Vec<String> {
    log.news().into_iter().map(|event| event.payload).collect()
}

/// The two counters of `tidings.ring()`.
fn counters(session: &mut Session) -> (i64, i64) {
    (session.one("SELECT ring_ticks FROM tidings.status"), session.one("SELECT ring_overflows FROM tidings.status"))
}

/// Runs `body` while the relay is stopped.
fn without_relay(db: &Database<'_>, body: impl FnOnce()) {
    let relay = db.stop_relay();
    body();
    send(relay, Signal::SIGCONT);
}

#[test]
fn an_ordinary_tick_needs_no_look_at_the_log() {
    let cluster = Cluster::start(&[("tidings.verify_ring", "off")]);
    let db = cluster.database();
    let mut session = db.session();
    let scans = "SELECT coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_all_indexes
                 WHERE schemaname = 'tidings' AND relname LIKE 'log%'";
    let ticks = "SELECT ticks FROM tidings.ring()";
    let (ticks_before, scans_before): (i64, i64) = (session.one(ticks), session.one(scans));
    until("enough ticks", || {
        session.publish("a", "1");
        session.one::<i64>(ticks) - ticks_before >= 300
    });
    // Once a second the relay looks at the four partitions in any case, and reports its statistics.
    until("the relay has reported", || session.one::<i64>(scans) > scans_before);
    let scans: i64 = session.one::<i64>(scans) - scans_before;
    assert!(scans < 4 * 300, "{scans} scans of the log");
    assert_eq!(counters(&mut session).1, 0);
}

#[test]
fn what_does_not_fit_into_the_ring_comes_from_the_log() {
    let cluster = Cluster::start(&[("tidings.ring_size", "4kB")]);
    let db = cluster.database();
    let mut log = Log::from_here(&db);
    let mut session = db.session();
    without_relay(&db, || {
        for i in 0..200 {
            session.publish("a", &format!("\"{i} {}\"", "x".repeat(i)));
        }
    });
    assert_eq!(log.news().len(), 200);
    // Noticed by the next tick that is cut from the ring: once a second the relay reads the log in any case.
    until("it was too much for the ring", || {
        session.publish("b", "1");
        counters(&mut session).1 > 0
    });
    log.news();
    // A transaction that was running when entries were lost may have lost one of its own.
    let mut long = db.session();
    long.run("BEGIN; SELECT pg_current_xact_id(); SELECT tidings.publish('a', '\"long\"')");
    without_relay(&db, || (0..100).for_each(|i| session.publish("a", &i.to_string())));
    assert_eq!(log.news().len(), 100);
    long.run("COMMIT");
    assert_eq!(payloads(&mut log), ["\"long\""]);
}

#[test]
fn without_a_ring_everything_comes_from_the_log() {
    let cluster = Cluster::start(&[("tidings.ring_size", "0")]);
    let db = cluster.database();
    let mut log = Log::from_here(&db);
    let mut session = db.session();
    for i in 0..20 {
        session.publish("a", &i.to_string());
    }
    assert_eq!(log.news().len(), 20);
    assert_eq!(counters(&mut session), (0, 0));
}

#[test]
fn a_ring_that_is_written_round_and_round_loses_nothing() {
    let seed = seed();
    println!("TIDINGS_SEED={seed}");
    let cluster = Cluster::start(&[("tidings.ring_size", "16kB")]);
    let db = cluster.database();
    let mut log = Log::from_here(&db);
    let writer = |n: u64| {
        let mut session = db.session();
        let mut random = fastrand::Rng::with_seed(seed + n);
        let end = Instant::now() + Duration::from_secs(4);
        let mut written = Vec::new();
        while Instant::now() < end {
            // Some are longer than a sixteenth of the ring.
            let payload = format!("\"{n} {} {}\"", written.len(), "y".repeat(random.usize(..1400)));
            session.publish("a", &payload);
            written.push(payload);
        }
        written
    };
    let written: Vec<Vec<String>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4).map(|n| scope.spawn(move || writer(n))).collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    });
    let sent = payloads(&mut log);
    for (n, written) in written.iter().enumerate() {
        let of_writer = sent.iter().filter(|payload| payload.starts_with(&format!("\"{n} ")));
        assert!(of_writer.eq(written), "the events of writer {n}");
    }
    assert!(counters(&mut db.session()).0 > 0, "the ring was not used");
}

#[test]
fn one_database_never_hides_anothers_segments() {
    let cluster = Cluster::start(&[("tidings.ring_size", "16kB")]);
    let (quiet, busy) = (cluster.database(), cluster.database());
    let (mut log, mut other_log) = (Log::from_here(&quiet), Log::from_here(&busy));
    let (mut session, mut other) = (quiet.session(), busy.session());
    without_relay(&quiet, || {
        session.publish("a", "\"before\"");
        for i in 0..300 {
            other.publish("a", &i.to_string());
        }
        session.publish("a", "\"after\"");
    });
    assert_eq!(payloads(&mut log), ["\"before\"", "\"after\""]);
    assert_eq!(other_log.news().len(), 300);
    // Noticed by the next tick that is cut from the ring: a relay that was stopped may first read the log.
    until("the other database has filled the ring", || {
        session.publish("a", "\"later\"");
        counters(&mut session).1 > 0
    });
}

/// Inserts rows of a KiB each. They are random, so that they have nothing in common.
fn insert_rows(from: i32, kib: i32) -> String {
    format!(
        "INSERT INTO board_items
         SELECT {from} + i, 6, (SELECT string_agg(md5(random()::text || i || j), '') FROM generate_series(1, 32) j)
         FROM generate_series(1, {kib}) i;"
    )
}

#[test]
fn early_segments_of_rolled_back_savepoints_are_not_sent() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    // Above 256 KiB, the segments of a savepoint are written early.
    db.session().run(&format!(
        "BEGIN; INSERT INTO board_items VALUES (1, 5, 'first');
         SAVEPOINT a; INSERT INTO board_items VALUES (2, 5, 'never'); {} ROLLBACK TO a; RELEASE a;
         SAVEPOINT b; INSERT INTO board_items VALUES (3, 5, 'second'); {} RELEASE b;
         INSERT INTO board_items VALUES (4, 5, 'last'); COMMIT",
        insert_rows(1000, 300),
        insert_rows(2000, 300),
    ));
    let frames = crate::all_until_now(&db, "boards_5", &mut sse);
    assert_eq!(titles(&frames), ["first", "second", "last"]);
    // When b is released, there is too much in memory, so it is written, although it is small enough for the ring.
    // Then it is rolled back, together with all the rest that was too much.
    db.session().run(&format!(
        "BEGIN; INSERT INTO board_items VALUES (5, 5, 'first');
         SAVEPOINT a; {} SAVEPOINT b; INSERT INTO board_items VALUES (6, 5, 'never'); {} RELEASE b; ROLLBACK TO a;
         INSERT INTO board_items VALUES (7, 5, 'last'); COMMIT",
        insert_rows(3000, 248),
        insert_rows(4000, 6),
    ));
    let frames = crate::all_until_now(&db, "boards_5", &mut sse);
    assert_eq!(titles(&frames), ["first", "last"]);
}

#[test]
fn a_prepared_transaction_is_sent_when_it_commits() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    let mut log = Log::from_here(&db);
    let mut session = db.session();
    for name in ["kept", "dropped"] {
        session.run(&format!(
            "BEGIN; SELECT tidings.publish('a', '\"{name}\"'); PREPARE TRANSACTION '{name}';
             SELECT tidings.publish('a', '1')"
        ));
    }
    assert_eq!(payloads(&mut log), ["1", "1"]);
    session.run("ROLLBACK PREPARED 'dropped'");
    session.run("COMMIT PREPARED 'kept'");
    assert_eq!(payloads(&mut log), ["\"kept\""]);
}

/// Postgres checks serializable transactions once more after they have written their events. Here a prepared one is
/// between two others: it has read what the last one writes, and has written what the first one has read.
#[test]
fn a_commit_that_fails_at_the_very_end_sends_nothing() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    let mut log = Log::from_here(&db);
    let (mut reader, mut pivot, mut writer) = (db.session(), db.session(), db.session());
    reader.run("CREATE TABLE a (n int); INSERT INTO a VALUES (0); CREATE TABLE b (n int); INSERT INTO b VALUES (0)");
    reader.run("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT n FROM a");
    pivot.run("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT n FROM b; UPDATE a SET n = 1; PREPARE TRANSACTION 'pivot'");
    writer.run("BEGIN ISOLATION LEVEL SERIALIZABLE; UPDATE b SET n = 1; SELECT tidings.publish('a', '\"never\"')");
    let failed = writer.refused("COMMIT");
    assert!(failed.detail().is_some_and(|detail| detail.contains("commit attempt")), "{failed:?}");
    writer.publish("a", "1");
    assert_eq!(payloads(&mut log), ["1"]);
    reader.run("ROLLBACK");
    pivot.run("ROLLBACK PREPARED 'pivot'");
}

#[test]
fn a_relay_that_ends_leaves_its_segments_to_the_next_one() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let mut log = Log::from_here(&db);
    let mut session = db.session();
    let publish = |session: &mut Session, round: i32| {
        for i in 0..5 {
            session.publish("a", &format!("{}", round * 10 + i));
        }
    };
    // It ends by itself, before it has cut the tick.
    let relay = db.stop_relay();
    publish(&mut session, 0);
    send(relay, Signal::SIGTERM);
    send(relay, Signal::SIGCONT);
    until("another relay runs", || db.relay().is_some_and(|pid| pid != relay));
    publish(&mut session, 1);
    assert_eq!(log.news().len(), 10);
    // It is killed, and Postgres starts all of its processes anew, with an empty ring.
    let relay = db.stop_relay();
    publish(&mut session, 2);
    send(relay, Signal::SIGKILL);
    until("another relay runs", || db.relay().is_some_and(|pid| pid != relay));
    let mut session = db.session();
    publish(&mut session, 3);
    let mut log = log.reconnect(&db);
    assert_eq!(log.news().len(), 10);
}

#[test]
fn a_new_extension_gets_nothing_of_the_old_one() {
    for verify in ["on", "off"] {
        let cluster = Cluster::start(&[("tidings.verify_ring", verify)]);
        let db = cluster.database();
        let (mut session, mut dba) = (db.session(), db.session());
        let relay = db.stop_relay();
        session.publish("a", "\"of the old one\"");
        dba.run("BEGIN; DROP EXTENSION tidings CASCADE; CREATE EXTENSION tidings");
        send(relay, Signal::SIGCONT);
        until("the relay waits for the tables", || {
            session.one(&format!("SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {relay} AND NOT granted)"))
        });
        dba.run("COMMIT");
        until("another relay runs", || db.relay().is_some_and(|pid| pid != relay));
        session.publish("a", "\"of the new one\"");
        let all = "SELECT payload FROM tidings.changes('earliest')";
        until("the new one's event is there", || !session.all(all, &[]).is_empty());
        assert_eq!(session.one::<String>(all), "\"of the new one\"");
    }
}
