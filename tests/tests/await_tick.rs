//! Waiting on a hot standby for the next tick, in SQL: what wakes a wait, and that it is in nobody's way.

use std::thread::JoinHandle;

use postgres::error::SqlState;
use tidings_tests::cluster::Site;
use tidings_tests::{Cluster, Database, Session, eventually, until};

use crate::{boards, create_boards};

/// A cluster with watched boards, and a standby of it.
fn pair(settings: &[(&str, &str)]) -> (Cluster, Cluster, String) {
    let primary = Cluster::start(&[]);
    let mut db = primary.database();
    create_boards(&db);
    db.keep();
    let name = db.name().to_owned();
    let standby = primary.standby_at(Site::default(), settings);
    db.wait_standby(&standby);
    drop(db);
    (primary, standby, name)
}

/// A wait of a session of its own, for an hour.
struct Wait {
    pid: i32,
    thread: JoinHandle<Result<(), postgres::Error>>,
}

impl Wait {
    /// Starts to wait for what comes after a position, and returns once the session sleeps, or its wait has ended.
    #[track_caller]
    fn start(standby: &Cluster, database: &str, after: &str, setup: &str) -> Self {
        let mut session = standby.session(database, "postgres");
        session.run(setup);
        let pid: i32 = session.one("SELECT pg_backend_pid()");
        let call = format!("CALL tidings.await_tick('{after}', '1 hour')");
        let thread = std::thread::spawn(move || session.client().batch_execute(&call));
        let mut other = standby.session(database, "postgres");
        let sleeps =
            format!("SELECT wait_event = 'Extension' FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'");
        until("the session waits", || {
            thread.is_finished()
                || other.all(&sleeps, &[]).first().is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true))
        });
        Self { pid, thread }
    }

    /// The result of the wait, which ends.
    #[track_caller]
    fn end(self) -> Result<(), postgres::Error> {
        until("the wait ends", || self.thread.is_finished());
        self.thread.join().expect("the waiting thread")
    }

    /// The code of the error with which it ends; none if its connection has closed before the error arrived.
    #[track_caller]
    fn error(self) -> Option<SqlState> {
        self.end().expect_err("an error").code().cloned()
    }
}

fn insert(session: &mut Session, id: i32) {
    session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'n')"));
}

#[test]
fn the_replay_of_a_tick_wakes_every_session_that_waits_for_it() {
    let (primary, standby, name) = pair(&[]);
    let mut writer = primary.session(&name, "postgres");
    let mut there = [standby.session(&name, "postgres"), standby.session(&name, "postgres")];
    let mut after: String = writer.one("SELECT tidings.position()");
    // If the sessions only looked four times a second, this would take longer than a test may.
    let start = std::time::Instant::now();
    for id in 0..500 {
        insert(&mut writer, id);
        for session in &mut there {
            session.run(&format!("CALL tidings.await_tick('{after}', '1 hour')"));
        }
        let rows = there[0].all("SELECT max(tick) FROM tidings.segments($1)", &[&after]);
        after = rows[0].get::<_, i64>(0).to_string();
        assert!(start.elapsed() < tidings_tests::wait::DEADLINE, "only {id} ticks");
    }
}

#[test]
fn a_wait_holds_no_snapshot_and_no_lock_so_the_replay_goes_on() {
    let (primary, standby, name) = pair(&[("max_standby_streaming_delay", "-1")]);
    let db = Database::existing(&primary, &name);
    let mut writer = db.session();
    insert(&mut writer, 1);
    let position: String = eventually("a tick", || {
        let row = writer.one::<Option<String>>("SELECT max(position) FROM tidings.events");
        row.map(|_| writer.one("SELECT tidings.position()"))
    });
    db.wait_standby(&standby);
    let wait = Wait::start(&standby, &name, &position, "");
    let mut other = standby.session(&name, "postgres");
    let holds = format!(
        "SELECT backend_xmin::text, (SELECT count(*) FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'relation')
         FROM pg_stat_activity a WHERE pid = {}",
        wait.pid
    );
    let row = &other.all(&holds, &[])[0];
    assert_eq!((row.get::<_, Option<String>>(0), row.get::<_, i64>(1)), (None, 0));
    // Replay of both would wait forever for a session with a snapshot or with a lock on the log.
    writer.run("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i");
    writer.run("DELETE FROM t");
    writer.run("VACUUM t");
    writer.run("BEGIN; LOCK TABLE tidings.tick, tidings.log, tidings.tick_0; COMMIT");
    db.wait_standby(&standby);
    insert(&mut writer, 2);
    wait.end().expect("the tick");
}

#[test]
fn a_wait_ends_at_a_cancellation_a_timeout_a_promotion_and_a_shutdown() {
    let (primary, standby, name) = pair(&[]);
    let after: String = primary.session(&name, "postgres").one("SELECT tidings.position()");
    let mut other = standby.session(&name, "postgres");
    let wait = Wait::start(&standby, &name, &after, "");
    other.run(&format!("SELECT pg_cancel_backend({})", wait.pid));
    assert_eq!(wait.error(), Some(SqlState::QUERY_CANCELED));
    let wait = Wait::start(&standby, &name, &after, "SET statement_timeout = '1s'");
    assert_eq!(wait.error(), Some(SqlState::QUERY_CANCELED));
    let wait = Wait::start(&standby, &name, &after, "");
    other.run(&format!("SELECT pg_terminate_backend({})", wait.pid));
    assert!(wait.error().is_none_or(|code| code == SqlState::ADMIN_SHUTDOWN));
    let wait = Wait::start(&standby, &name, &after, "");
    other.run("SELECT pg_promote()");
    wait.end().expect("no error at the promotion");
    // A primary notifies, so there is nothing to wait for.
    other.run(&format!("CALL tidings.await_tick('{after}', '1 hour')"));
    assert_eq!(other.all("SELECT FROM tidings.standby()", &[]).len(), 0);
    let second = other_standby(&standby);
    let after: String = eventually("the promoted server's relay has sealed what was before", || {
        let sealed = "SELECT EXISTS (SELECT FROM tidings.tick WHERE used & tidings.epoch_mark() <> 0)";
        other.one::<bool>(sealed).then(|| other.one("SELECT tidings.position()"))
    });
    Database::existing(&standby, &name).wait_standby(&second);
    let wait = Wait::start(&second, &name, &after, "");
    second.stop();
    assert!(wait.error().is_none_or(|code| code == SqlState::ADMIN_SHUTDOWN));
}

/// A standby of a server that was a standby itself.
fn other_standby(server: &Cluster) -> Cluster {
    let standby = server.standby();
    let mut session = standby.session("postgres", "postgres");
    until("it streams", || session.one("SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')"));
    standby
}

#[test]
fn a_wait_in_a_transaction_is_refused_because_its_snapshot_would_block_the_replay() {
    let db = boards();
    let mut session = db.session();
    let after: String = session.one("SELECT tidings.position()");
    let call = format!("CALL tidings.await_tick('{after}', '1s')");
    session.run("BEGIN");
    assert_eq!(session.refused(&call).code(), &SqlState::ACTIVE_SQL_TRANSACTION);
    session.run("ROLLBACK");
    session.run(&format!("CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN {call}; END $$"));
    assert_eq!(session.refused("SELECT f()").code(), &SqlState::ACTIVE_SQL_TRANSACTION);
    // A DO block and a procedure outside of a transaction can commit, and so they can wait.
    session.run(&format!("DO $$ BEGIN {call}; PERFORM 1; END $$"));
    assert_eq!(session.refused("CALL tidings.await_tick(NULL, '1s')").code(), &SqlState::NULL_VALUE_NOT_ALLOWED);
    assert_eq!(session.refused("CALL tidings.await_tick('x', '1s')").code(), &SqlState::INVALID_PARAMETER_VALUE);
}

#[test]
fn follow_returns_what_segments_returns_as_soon_as_it_is_replayed() {
    let (primary, standby, name) = pair(&[]);
    let db = Database::existing(&primary, &name);
    let mut writer = db.session();
    let after: String = writer.one("SELECT tidings.position()");
    let follow = "SELECT tick, previous, first, last, data FROM tidings.follow($1, '1 hour', 1000000)";
    let mut there = standby.session(&name, "postgres");
    let waiting = std::thread::spawn({
        let after = after.clone();
        move || {
            let rows = there.all(follow, &[&after]);
            let segments = there.all(&follow.replace("follow($1, '1 hour',", "segments($1,"), &[&after]);
            let cells = |rows: &[postgres::Row]| {
                let cell = |row: &postgres::Row| (row.get::<_, i64>(0), row.get::<_, i32>(2), row.get::<_, Vec<u8>>(4));
                rows.iter().map(cell).collect::<Vec<_>>()
            };
            (cells(&rows), cells(&segments))
        }
    });
    insert(&mut writer, 1);
    until("the rows are there", || waiting.is_finished());
    let (rows, segments) = waiting.join().expect("the reader");
    assert_eq!((rows.len(), &rows), (1, &segments));
    // Its snapshot blocks the replay, so it does not wait for what comes after that.
    let mut there = standby.session(&name, "postgres");
    there.run("SELECT pg_wal_replay_pause()");
    until("replay has paused", || there.one("SELECT pg_get_wal_replay_pause_state() = 'paused'"));
    insert(&mut writer, 2);
    let position = format!("{}", rows[0].0);
    until("it returns without the tick", || there.all(follow, &[&position]).is_empty());
}
