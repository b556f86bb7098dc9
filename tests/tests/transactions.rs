//! What is committed is sent; what is not committed is not.

use std::thread;

use tidings_tests::sse::Request;
use tidings_tests::{Cluster, eventually, shared, until};

use crate::{all_until_now, boards, create_boards, titles};

#[test]
fn a_rolled_back_transaction_sends_nothing() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    session.run(
        "BEGIN; INSERT INTO board_items VALUES (1, 5, 'never'); SELECT tidings.publish('boards_5', '1'); ROLLBACK",
    );
    session.refused("INSERT INTO board_items VALUES (1, 5, 'never'); SELECT 1 / 0");
    session.refused("INSERT INTO board_items VALUES (1, 5, 'never'), (1, 5, 'a duplicate')");
    let mut leaver = db.session();
    leaver.run("BEGIN; INSERT INTO board_items VALUES (1, 5, 'never')");
    drop(leaver);
    session.run("INSERT INTO board_items VALUES (2, 5, 'after')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["after"]);
}

#[test]
fn a_rolled_back_savepoint_sends_nothing() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let insert = |id: i32, title: &str| format!("INSERT INTO board_items VALUES ({id}, 5, '{title}');");
    db.session().run(&format!(
        "BEGIN; {} SAVEPOINT a; {} SAVEPOINT b; {} RELEASE b; {} SAVEPOINT c; {} ROLLBACK TO c; {} RELEASE a; {}
         SAVEPOINT d; {} SAVEPOINT e; {} RELEASE e; ROLLBACK TO d; {} SAVEPOINT f; {} COMMIT",
        insert(1, "before"),
        insert(2, "in a"),
        insert(3, "in b"),
        insert(4, "in a again"),
        insert(5, "never: c"),
        insert(6, "in c after its rollback"),
        insert(7, "after a"),
        insert(8, "never: d"),
        insert(9, "never: e, released into d"),
        insert(10, "in d after its rollback"),
        insert(11, "in f, left open"),
    ));
    assert_eq!(
        titles(&all_until_now(&db, "boards_5", &mut sse)),
        [
            "before",
            "in a",
            "in b",
            "in a again",
            "in c after its rollback",
            "after a",
            "in d after its rollback",
            "in f, left open"
        ]
    );
}

#[test]
fn a_caught_exception_sends_nothing_of_its_block() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    db.session().run(
        "DO $$ BEGIN
           INSERT INTO board_items VALUES (1, 5, 'before');
           BEGIN
             INSERT INTO board_items VALUES (2, 5, 'never');
             PERFORM 1 / 0;
           EXCEPTION WHEN division_by_zero THEN
             INSERT INTO board_items VALUES (2, 5, 'in the handler');
           END;
         END $$",
    );
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["before", "in the handler"]);
}

#[test]
fn a_large_rolled_back_savepoint_sends_nothing_and_loses_nothing_else() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    // Large enough that the buffer is written to the log before the rollback, in the savepoint and outside of it.
    db.session().run(
        "BEGIN;
         INSERT INTO board_items SELECT i, 6, repeat('x', 100) FROM generate_series(1, 50000) i;
         INSERT INTO board_items VALUES (0, 5, 'before');
         SAVEPOINT s;
         INSERT INTO board_items SELECT i, 5, repeat('never', 20) FROM generate_series(100001, 150000) i;
         SAVEPOINT t;
         INSERT INTO board_items SELECT i, 5, repeat('never', 20) FROM generate_series(200001, 250000) i;
         RELEASE t;
         ROLLBACK TO s;
         INSERT INTO board_items VALUES (-1, 5, 'after');
         COMMIT",
    );
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["before", "after"]);
    let count: i64 = db.session().one("SELECT count(*) FROM tidings.events WHERE topic = 'boards_6'");
    assert_eq!(count, 50_000);
}

#[test]
fn a_prepared_transaction_sends_only_when_it_is_committed() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    let gid = |word: &str| format!("{}_{word}", db.name());
    session
        .run(&format!("BEGIN; INSERT INTO board_items VALUES (1, 5, 'kept'); PREPARE TRANSACTION '{}'", gid("kept")));
    session
        .run(&format!("BEGIN; INSERT INTO board_items VALUES (2, 5, 'never'); PREPARE TRANSACTION '{}'", gid("never")));
    session.run("INSERT INTO board_items VALUES (3, 5, 'meanwhile')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["meanwhile"]);
    // From a session other than the one that wrote, and without any other commit that could wake the relay.
    let mut other = db.session();
    other.run(&format!("ROLLBACK PREPARED '{}'", gid("never")));
    other.run(&format!("COMMIT PREPARED '{}'", gid("kept")));
    assert_eq!(titles(&[sse.frame()]), ["kept"]);
    assert_eq!(all_until_now(&db, "boards_5", &mut sse), []);
}

/// While it waits for a synchronous standby, it is in the list of running transactions twice.
#[test]
fn a_tick_that_is_made_while_a_transaction_is_being_prepared_is_a_tick_like_others() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    session.run("SET synchronous_commit = local; CREATE TABLE unwatched ()");
    session.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    session.run("SELECT pg_reload_conf()");
    until("the setting is there", || session.one::<String>("SHOW synchronous_standby_names") == "nobody");
    let waits =
        |pid: u32| format!("SELECT coalesce(wait_event, '') = 'SyncRep' FROM pg_stat_activity WHERE pid = {pid}");
    let relay = db.wait_relay();
    let relay_waits = waits(relay);
    // Sessions wait once the checkpointer, too, has read the setting.
    let prepares = eventually("a session that prepares a transaction waits", || {
        let mut prepares = db.session();
        prepares.run("BEGIN; INSERT INTO unwatched DEFAULT VALUES");
        let it_waits = waits(prepares.backend());
        let prepares = thread::spawn(move || prepares.run("PREPARE TRANSACTION 'slow'"));
        until("it waits or is done", || prepares.is_finished() || session.one(&it_waits));
        if prepares.is_finished() {
            prepares.join().expect("it is prepared");
            session.run("ROLLBACK PREPARED 'slow'");
            return None;
        }
        Some(prepares)
    });
    session.run("INSERT INTO board_items VALUES (2, 5, 'beside it')");
    until("the relay waits", || session.one(&relay_waits));
    session.run("ALTER SYSTEM RESET synchronous_standby_names");
    session.run("SELECT pg_reload_conf()");
    prepares.join().expect("it is prepared");
    let mut seen = vec![sse.frame()];
    // The next relay begins with that tick.
    session.run(&format!("SELECT pg_terminate_backend({relay})"));
    session.run("INSERT INTO board_items VALUES (3, 5, 'after it')");
    seen.push(sse.frame());
    assert_eq!(titles(&seen), ["beside it", "after it"]);
    let again = db.proxy(&[]).open(&Request::since(&["boards_5"], "earliest")).frame();
    assert_eq!(again, seen[0]);
    session.run("ROLLBACK PREPARED 'slow'");
    assert_eq!(proxy.metric("tidings_upstream_reconnects_total"), 0.0);
}

#[test]
fn a_failed_prepare_sends_nothing() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    // A transaction with a temporary table can't be prepared.
    session.refused(
        "BEGIN; CREATE TEMPORARY TABLE t (); INSERT INTO board_items VALUES (1, 5, 'never'); PREPARE TRANSACTION 'refused'",
    );
    session.run("ROLLBACK");
    session.run("INSERT INTO board_items VALUES (2, 5, 'after')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["after"]);
}

#[test]
fn a_procedure_sends_after_each_of_its_commits() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut gate = db.session();
    gate.run("SELECT pg_advisory_lock(1)");
    let mut session = db.session();
    session.run(
        "CREATE PROCEDURE work() LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO board_items VALUES (1, 5, 'first');
           COMMIT;
           PERFORM pg_advisory_lock(1);
           INSERT INTO board_items VALUES (2, 5, 'never');
           ROLLBACK;
           INSERT INTO board_items VALUES (3, 5, 'second');
           COMMIT;
         END $$",
    );
    let work = thread::spawn(move || session.run("CALL work()"));
    assert_eq!(titles(&[sse.frame()]), ["first"], "while the procedure is still at work");
    gate.run("SELECT pg_advisory_unlock(1)");
    work.join().expect("the procedure");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["second"]);
}

#[test]
fn what_a_deferred_constraint_trigger_writes_is_sent() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    session.run(
        "CREATE FUNCTION echo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO board_items VALUES (-NEW.id, 5, 'echo of ' || NEW.title);
           RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER echo AFTER INSERT ON board_items DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW WHEN (NEW.id > 0) EXECUTE FUNCTION echo();",
    );
    session
        .run("BEGIN; INSERT INTO board_items VALUES (1, 5, 'a'); INSERT INTO board_items VALUES (2, 5, 'b'); COMMIT");
    let frames = all_until_now(&db, "boards_5", &mut sse);
    assert_eq!(titles(&frames), ["a", "b", "echo of a", "echo of b"]);
    assert!(frames.iter().all(|frame| frame.place().0 == frames[0].place().0), "one transaction, one tick");
    session.run("INSERT INTO board_items VALUES (3, 5, 'c')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["c", "echo of c"]);
}

#[test]
fn what_other_triggers_and_cascades_write_is_sent() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["lists", "cards"]);
    let mut session = db.session();
    session.run(
        "CREATE TABLE lists (id int PRIMARY KEY);
         CREATE TABLE cards (id int PRIMARY KEY, list_id int REFERENCES lists ON DELETE CASCADE);
         SELECT tidings.watch('lists', topic => 'lists'), tidings.watch('cards', topic => 'cards');
         INSERT INTO lists VALUES (1); INSERT INTO cards VALUES (1, 1), (2, 1);
         DELETE FROM lists;",
    );
    let frames = all_until_now(&db, "lists", &mut sse);
    let kinds: Vec<String> = frames
        .iter()
        .map(|f| f.json())
        .map(|j| format!("{} {}", j["type"].as_str().unwrap_or(""), j["table"].as_str().unwrap_or("")))
        .collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "DELETE cards").count(), 2, "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| *kind == "DELETE lists").count(), 1, "{kinds:?}");
    assert_eq!(kinds.len(), 6);
}

#[test]
fn two_transactions_of_one_session_do_not_mix() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    session.run("BEGIN; INSERT INTO board_items VALUES (1, 5, 'a'); COMMIT AND CHAIN; INSERT INTO board_items VALUES (2, 5, 'b'); ROLLBACK AND CHAIN; INSERT INTO board_items VALUES (3, 5, 'c'); COMMIT");
    session.run("BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO board_items VALUES (4, 5, 'd'); COMMIT");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["a", "c", "d"]);
}

#[test]
fn the_rollback_of_a_failed_alter_table_locks_nothing() {
    let db = shared().database();
    let mut session = db.session();
    session.run("CREATE TABLE t (a text); INSERT INTO t VALUES ('x'), (NULL)");
    for alter in ["ALTER TABLE t ALTER a SET NOT NULL", "ALTER TABLE t ALTER a TYPE int USING a::int"] {
        session.run("BEGIN; SAVEPOINT s");
        // It fails when it reads the rows, after it has altered the column in the catalog.
        session.refused(alter);
        session.run("ROLLBACK TO s");
        let locks: i64 =
            session.one("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 't'::regclass");
        // Without the check in `check_altered`, this ends in a PANIC: 'lock reference ... is not owned by resource
        // owner', and then 'cannot abort transaction ..., it was already committed'.
        session.run("COMMIT");
        assert_eq!(locks, 0, "{alter}");
    }
}

#[test]
fn no_catalog_is_read_where_a_transaction_begins_and_ends() {
    const ROUNDS: usize = 300;
    let db = shared().database();
    let mut session = db.session();
    // All statistics of this session are counted when it has ended; the relay reports its own once a second.
    let read = "SELECT sum(idx_scan + seq_scan)::bigint FROM pg_stat_sys_tables WHERE relname = 'pg_extension'";
    let before: i64 = session.one(read);
    for _ in 0..ROUNDS {
        session.run("BEGIN");
        session.refused("SELECT 1 / 0");
        session.run("ROLLBACK");
    }
    session.run("SELECT pg_stat_force_next_flush()");
    session.run("SELECT pg_stat_clear_snapshot()");
    let after: i64 = session.one(read);
    assert!(after - before < ROUNDS as i64, "looked there {} times", after - before);
}
