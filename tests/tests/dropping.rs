//! Dropping what is in use: the extension, and watched tables.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tidings_tests::{Session, SetAtTheEnd, shared, until};

use crate::log::{Log, kinds};
use crate::upgrade::{check_watches, furnish};

#[test]
fn drop_extension_refuses_while_watches_depend_on_it() {
    let db = shared().database();
    furnish(&db);
    let mut session = db.session();
    let error = session.refused("DROP EXTENSION tidings");
    assert_eq!(error.code().code(), "2BP01");
    assert!(
        error.detail().is_some_and(|detail| detail.contains("trigger tidings_default on table items")),
        "{error:?}"
    );
    check_watches(&db);
    session.run("DROP EXTENSION tidings CASCADE");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"), 0);
    session.run("INSERT INTO items VALUES (2, 5, 'unwatched')");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM items"), 3);
}

#[test]
fn dropping_the_extension_after_a_write_loses_the_events_but_not_the_rows() {
    let db = shared().database();
    furnish(&db);
    let mut session = db.session();
    session.run("BEGIN; INSERT INTO items VALUES (2, 5, 'kept'); DROP EXTENSION tidings CASCADE; COMMIT");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM items"), 2);
}

#[test]
fn a_writer_that_waits_for_a_drop_of_the_extension_commits() {
    let db = shared().database();
    furnish(&db);
    db.session().run("CREATE TABLE done (writer text)");
    let (mut writer, mut dba) = (db.session(), db.session());
    // From here on the writer's session has the log's tables in its cache.
    writer.publish("b5", "1");
    for end in ["ROLLBACK", "COMMIT"] {
        let mut log = (end == "ROLLBACK").then(|| Log::from_here(&db));
        dba.run("BEGIN; DROP EXTENSION tidings CASCADE");
        let pid = writer.backend();
        let waiting = std::thread::spawn(move || {
            writer.run("INSERT INTO done VALUES ('x'); SELECT tidings.publish('b5', '2')");
            writer
        });
        until("the writer waits", || {
            dba.one(&format!("SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {pid} AND NOT granted)"))
        });
        dba.run(end);
        writer = waiting.join().expect("the writer");
        if let Some(log) = &mut log {
            assert_eq!(log.news().len(), 1);
        }
    }
    assert_eq!(dba.one::<i64>("SELECT count(*) FROM done"), 2);
    // The new tables have the names of the old ones.
    dba.run("CREATE EXTENSION tidings");
    db.wait_relay();
    let mut log = Log::from_here(&db);
    writer.publish("b5", "3");
    assert_eq!(log.news().len(), 1);
}

/// Writes to some of four tables, in any order, until it is stopped.
fn write_for_ever(mut session: Session, written: &AtomicU32, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        session.run("BEGIN");
        for _ in 0..fastrand::u32(1..4) {
            // A large transaction is written to the log at once, so this writer holds a lock on the log when it comes
            // to its next table.
            let size = if fastrand::u32(..8) == 0 { 300_000 } else { 10 };
            session.run(&format!("INSERT INTO load_{} VALUES (5, repeat('x', {size}))", fastrand::u32(1..5)));
        }
        session.run("COMMIT");
        written.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn no_writer_fails_while_the_extension_is_dropped() {
    let db = shared().database();
    // The removal retries before a writer checks for a deadlock. On a busy machine it could not do so within the 20 ms
    // of the other tests, so this is Postgres's default.
    db.session().run(&format!("ALTER DATABASE {} SET deadlock_timeout = '1s'", db.name()));
    let mut dba = db.session();
    for n in 1..5 {
        dba.run(&format!("CREATE TABLE load_{n} (id int, text text)"));
    }
    let (written, stop) = ([const { AtomicU32::new(0) }; 6], AtomicBool::new(false));
    std::thread::scope(|scope| {
        let start = |written| {
            let (session, stop) = (db.session(), &stop);
            scope.spawn(move || write_for_ever(session, written, stop))
        };
        let writers: Vec<_> = written.iter().map(start).collect();
        let _over = SetAtTheEnd(&stop);
        let all_go_on = || {
            let counts = || written.iter().map(|written| written.load(Ordering::Relaxed));
            let before: Vec<u32> = counts().collect();
            let mut failed = false;
            until("all writers continue, or one has failed", || {
                failed = writers.iter().any(|writer| writer.is_finished());
                failed || counts().zip(&before).all(|(now, before)| now > before + 5)
            });
            !failed
        };
        let removals = [
            "DROP EXTENSION tidings CASCADE",
            "DROP SCHEMA tidings CASCADE",
            "DROP EXTENSION IF EXISTS tidings CASCADE",
        ];
        let fine = removals.iter().all(|removal| {
            for n in 1..5 {
                dba.run(&format!("SELECT tidings.watch('load_{n}', topic => 'load_{{id}}')"));
            }
            let before = all_go_on();
            let removed = dba.client().batch_execute(removal);
            let after = all_go_on() && removed.is_ok();
            before && after && dba.client().batch_execute("CREATE EXTENSION tidings").is_ok()
        });
        assert!(fine, "a writer has failed, or the removal");
    });
    assert_eq!(dba.one::<i64>("SELECT count(*) FROM tidings.watches"), 0);
}

#[test]
fn a_watched_table_can_be_dropped() {
    let db = shared().database();
    furnish(&db);
    let mut log = Log::from_here(&db);
    let mut session = db.session();
    session.run("BEGIN; INSERT INTO items VALUES (2, 5, 'last words'); DROP TABLE items; COMMIT; DROP TABLE parts");
    assert_eq!(kinds(&log.news()), ["INSERT b5"]);
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.watches"), 1);
    session.run("DROP SCHEMA \"odd \"\"schema\"\"\" CASCADE; DROP EXTENSION tidings");
}
