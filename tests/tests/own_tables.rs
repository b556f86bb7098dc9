//! What a DBA may do to the tables of Tidings, and what a full disk does.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;

use tidings_tests::process::{MemoryWatch, Signal, send};
use tidings_tests::{Cluster, Session, until};

use crate::log::{Log, with};

const ITEMS: &str = "CREATE TABLE items (id int PRIMARY KEY, board_id int, title text);
                     SELECT tidings.watch('items', topic => 'b{board_id}')";

#[test]
fn an_added_column_of_the_log_stays_empty() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    session.run("ALTER TABLE tidings.log ADD COLUMN note text, ADD COLUMN more text; INSERT INTO items VALUES (1, 5)");
    assert_eq!(log.news().len(), 1);
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.log WHERE note IS NOT NULL OR more IS NOT NULL"), 0);
    session.run("ALTER TABLE tidings.log DROP COLUMN note, DROP COLUMN more; INSERT INTO items VALUES (2, 5)");
    assert_eq!(log.news().len(), 1);
}

#[test]
fn an_index_that_our_tables_cannot_have_is_refused() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    for sql in [
        "CREATE INDEX ON tidings.log ((events + 1))",
        "CREATE INDEX ON tidings.log_0 (stamp) WHERE events > 1",
        "CREATE INDEX CONCURRENTLY ON tidings.tick_1 (lower(seen::text))",
        "SET search_path = tidings; CREATE UNIQUE INDEX ON tick (tick, slot, (tick + 1))",
    ] {
        let error = session.refused(sql);
        assert_eq!((error.code().code(), error.hint()), ("0A000", Some("Index plain columns, for all rows.")), "{sql}");
    }
    session.run("CREATE INDEX ON public.items ((id + 1)) WHERE id > 1; CREATE INDEX ON items (lower(title)); INSERT INTO items VALUES (1, 5)");
    assert_eq!(log.news().len(), 1);
}

#[test]
fn an_index_that_prevents_writes_to_the_log_is_named_in_the_error() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    let insert = "INSERT INTO items SELECT count(*), 5 FROM items";
    session.run(insert);
    assert_eq!(log.news().len(), 1);
    let slot: i16 = session.one("SELECT slot FROM tidings.log LIMIT 1");
    session.run(&format!(
        "ALTER TABLE tidings.log_{slot} ADD CONSTRAINT extra EXCLUDE USING btree (stamp WITH =) WHERE (events > 1)"
    ));
    let error = session.refused(insert);
    assert_eq!((error.code().code(), error.hint()), ("55000", Some("Drop the index: the table has all it needs.")));
    session.run(&format!("ALTER TABLE tidings.log_{slot} DROP CONSTRAINT extra; {insert}"));
    assert_eq!(log.news().len(), 1);
}

#[test]
fn an_added_index_of_the_log_hides_nothing() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    // A hash index finds only equal keys. It is older than ours once that has been recreated.
    session.run("CREATE INDEX mine ON tidings.log USING hash (xid)");
    session.run("REINDEX INDEX CONCURRENTLY tidings.log_0_xid_idx");
    for id in 1..=3 {
        session.run(&format!("INSERT INTO items VALUES ({id}, 5)"));
        assert_eq!(log.news().len(), 1);
    }
}

#[test]
fn every_index_of_the_log_gets_every_row() {
    let (db, mut log) = with(ITEMS);
    let (mut writer, mut dba, mut whole) = (db.session(), db.session(), db.session());
    dba.run("SET enable_seqscan = off");
    whole.run("SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off");
    // The writer's session has cached the log's indexes since its last row.
    for (step, sql) in [
        "SELECT",
        "CREATE INDEX mine ON tidings.log (stamp)",
        "REINDEX TABLE tidings.log",
        "DROP INDEX tidings.mine",
        "CREATE UNIQUE INDEX mine ON tidings.log (slot, stamp)",
        "CREATE INDEX late ON tidings.log USING brin (stamp)",
        "DROP INDEX tidings.mine, tidings.late",
        "REINDEX INDEX CONCURRENTLY tidings.log_0_xid_idx",
        "ALTER INDEX tidings.log_0_xid_idx SET (fillfactor = 50)",
        "CREATE INDEX CONCURRENTLY mine ON tidings.log_0 (stamp)",
    ]
    .into_iter()
    .enumerate()
    {
        dba.run(sql);
        for id in [2 * step, 2 * step + 1] {
            writer.run(&format!("INSERT INTO items VALUES ({id}, 5)"));
        }
        assert_eq!(log.news().len(), 2, "after {sql}");
        let count = |session: &mut Session, key: &str| -> i64 {
            session.one(&format!("SELECT count(*) FROM tidings.log_0 WHERE {key}"))
        };
        let rows = count(&mut whole, "true");
        assert!(rows > 2 * step as i64, "all of it is in log_0, or this test proves nothing");
        assert_eq!([count(&mut dba, "xid >= '0'"), count(&mut dba, "stamp >= 0")], [rows; 2], "after {sql}");
    }
}

#[test]
fn a_log_that_is_rewritten_while_the_relay_waits_for_it_loses_nothing() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    let relay = db.stop_relay();
    session.run("INSERT INTO items VALUES (1, 5)");
    let mut dba = db.session();
    dba.run("BEGIN; ALTER TABLE tidings.log ADD COLUMN at timestamptz DEFAULT clock_timestamp()");
    send(relay, Signal::SIGCONT);
    until("the relay waits", || {
        session.one(&format!("SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {relay} AND NOT granted)"))
    });
    dba.run("COMMIT");
    assert_eq!(log.news().len(), 1);
}

#[test]
fn a_null_written_into_the_log_stops_the_relay_but_not_the_server() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    let mut log = Log::from_here(&db);
    let mut session = db.session();
    session.run("ALTER TABLE tidings.log ALTER COLUMN data DROP NOT NULL");
    session.run("INSERT INTO tidings.log VALUES (0, pg_current_xact_id(), tidings.stamp(), 0, 1, NULL)");
    until("the relay says so", || {
        session.publish("a", "1");
        cluster.log_tail().contains("has a segment with a NULL")
    });
    session.run("DELETE FROM tidings.log WHERE data IS NULL");
    assert_ne!(log.news().len(), 0);
}

#[test]
fn thousands_of_savepoints_leave_a_writer_s_memory_flat() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    let pid = session.backend();
    // Each block is a savepoint; the first is rolled back at its end, with everything in it.
    let sql = "DO $$ BEGIN
         BEGIN
           FOR i IN 1..2000 LOOP
             BEGIN INSERT INTO items VALUES (i, 5, repeat('never', 400)); EXCEPTION WHEN unique_violation THEN NULL; END;
           END LOOP;
           RAISE division_by_zero;
         EXCEPTION WHEN division_by_zero THEN NULL;
         END;
         INSERT INTO items VALUES (0, 5, 'in the outer one');
         FOR i IN 1..20000 LOOP
           BEGIN INSERT INTO items VALUES (i, 5, repeat('x', 2000)); EXCEPTION WHEN unique_violation THEN NULL; END;
           IF i % 100 = 0 THEN
             BEGIN INSERT INTO items VALUES (i + 100000, 5, 'never'); RAISE unique_violation; EXCEPTION WHEN unique_violation THEN NULL; END;
           END IF;
         END LOOP;
         INSERT INTO items VALUES (20001, 5, 'in the outer one');
       END $$";
    let watch = MemoryWatch::start(&[pid]);
    session.run(sql);
    let peak = watch.finish()[0];
    // The events have 40 MB.
    assert!(peak < 35_000_000, "{peak} bytes");
    let ids: Vec<i64> = log.news().iter().filter_map(|event| event.json()["record"]["id"].as_i64()).collect();
    assert!(ids.iter().copied().eq(0..=20_001), "{} events", ids.len());
}

/// Limits how large a file a backend may write, which looks like a full disk to it.
fn limit_files(session: &mut Session, size: &str) {
    let pid = session.backend().to_string();
    // The limits of a process are changed by its own account.
    let owner = std::fs::metadata(format!("/proc/{pid}")).expect("the backend runs");
    let mut command = std::process::Command::new("prlimit");
    command.uid(owner.uid()).gid(owner.gid()).args(["--pid", &pid, &format!("--fsize={size}")]);
    let status = command.status();
    assert!(status.expect("run prlimit").success());
}

#[test]
fn a_full_disk_aborts_the_transaction_and_sends_nothing_of_it() {
    // WAL segments exist already, so they are written within the limit.
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    let mut session = db.session();
    session.run(
        "CREATE TABLE items (id int PRIMARY KEY, board_id int);
         DO $$ BEGIN FOR i IN 0..3 LOOP
           EXECUTE format('ALTER TABLE tidings.log_%s ALTER COLUMN data SET STORAGE EXTERNAL', i); -- uncompressed
         END LOOP; END $$",
    );
    session.with(
        "SELECT tidings.watch('items', topic => 'b{board_id}', payload => to_jsonb($1::text || '$'))",
        &[&"x".repeat(10_000)],
    );
    let mut log = Log::from_here(&db);
    session.run("INSERT INTO items VALUES (0, 5)");
    assert_eq!(log.news().len(), 1);
    limit_files(&mut session, "33554432:33554432");
    session.run("BEGIN; INSERT INTO items VALUES (-1, 5)");
    // Early flushes succeed until the disk is full.
    let error = session.refused("INSERT INTO items SELECT i, 5 FROM generate_series(1, 10000) i");
    assert!(error.message().contains("File too large"), "{error}");
    session.run("ROLLBACK");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM items"), 1);
    assert_eq!(log.news().len(), 0);
    // At the commit too; and a small one still fits.
    let error = session.refused("BEGIN; INSERT INTO items SELECT i, 5 FROM generate_series(1, 20) i; SELECT tidings.publish_text('big', repeat('x', 8000000)), tidings.publish_text('big', repeat('y', 8000000)), tidings.publish_text('big', repeat('y', 8000000)), tidings.publish_text('big', repeat('y', 8000000)), tidings.publish_text('big', repeat('y', 8000000)); COMMIT");
    assert!(error.message().contains("File too large"), "{error}");
    session.run("ROLLBACK");
    assert_eq!(log.news().len(), 0);
    let mut other = db.session();
    other.run("INSERT INTO items VALUES (7, 5)");
    assert_eq!(log.news().len(), 1);
}
