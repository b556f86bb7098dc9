//! What the relay removes from the log, and what it must keep.

use std::collections::{BTreeSet, VecDeque};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tidings_tests::clock::Clock;
use tidings_tests::cluster::Site;
use tidings_tests::process::{Process, Signal, fresh_path};
use tidings_tests::{Cluster, Database, Session, eventually, until};

use crate::log::Log;
use crate::skipped;

/// In seconds.
const WEEK: i32 = 7 * 24 * 3600;

/// The retention time in a test that waits until it has passed.
const SHORT: &[(&str, &str)] = &[("tidings.retention", "2s")];

fn events_table(db: &Database<'_>) {
    db.session().run("CREATE TABLE items (id int, title text); SELECT tidings.watch('items', topic => 'items')");
}

/// The start of the log, in microseconds.
fn oldest(session: &mut Session) -> i64 {
    session.one("SELECT oldest_position FROM tidings.status")
}

/// Whether the log still has what comes after a position; `Err` if it has expired.
fn read(session: &mut Session, position: &str) -> Result<usize, String> {
    match session.client().query("SELECT FROM tidings.changes($1, NULL, 100)", &[&position]) {
        Ok(rows) => Ok(rows.len()),
        Err(error) => Err(error.code().map_or("no code", |code| code.code()).to_owned()),
    }
}

/// Sets the retention time of a running cluster.
pub fn retain(session: &mut Session, time: &str) {
    session.run(&format!("ALTER SYSTEM SET tidings.retention = '{time}'"));
    session.run("SELECT pg_reload_conf()");
    until("the setting is in force", || {
        session.one::<bool>(&format!("SELECT retention = '{time}' FROM tidings.status"))
    });
}

#[test]
fn events_expire_after_the_retention_time_and_never_before() {
    let cluster = Cluster::start(SHORT);
    let db = cluster.database();
    events_table(&db);
    let mut session = db.session();
    let mut kept: VecDeque<(Instant, String)> = VecDeque::new();
    let (mut id, mut starts) = (0, BTreeSet::new());
    until("the log has rotated several times", || {
        id += 1;
        // Noted before the event exists, so the event is younger than the note.
        kept.push_back((Instant::now(), session.one("SELECT tidings.position()")));
        session.run(&format!("INSERT INTO items VALUES ({id}, repeat('x', 1000))"));
        // The oldest events expire first. An expired position stays expired, and always gives the error.
        while let Some((noted, position)) = kept.front() {
            let Err(code) = read(&mut session, position) else { break };
            assert_eq!(code, "TI001");
            assert!(noted.elapsed() > Duration::from_secs(2), "given up after {:?}", noted.elapsed());
            starts.insert(oldest(&mut session));
            kept.pop_front();
        }
        starts.len() > 3
    });
    // The rest expires without anybody writing, except for the last tick.
    until("the log is empty", || session.one::<i64>("SELECT count(*) FROM tidings.log") == 0);
    let position: String = session.one("SELECT tidings.position()");
    assert_eq!(read(&mut session, &position), Ok(0));
    assert_eq!(read(&mut session, "earliest"), Ok(0));
    assert!(session.one::<i64>("SELECT count(*) FROM tidings.tick") < 10);
    session.run("INSERT INTO items VALUES (0)");
    until("it continues", || read(&mut session, &position) == Ok(1));
}

#[test]
fn the_log_stays_bounded_under_load() {
    // What each write adds.
    const BYTES: usize = 100 * 50 * 32;
    // One and a half times the retention time, and the time between two checks of the partitions.
    const WINDOW: Duration = Duration::from_secs(5);
    let cluster = Cluster::start(SHORT);
    let db = cluster.database();
    events_table(&db);
    let mut session = db.session();
    // Random texts, because compressed ones would prove little.
    let write = "INSERT INTO items SELECT i, (SELECT string_agg(md5((random() * i * j)::text), '') FROM generate_series(1, 50) j) FROM generate_series(1, 100) i";
    let (mut written, mut most) = (0, 0);
    // A machine with other work is not always equally fast: what counts is the most that was written within that time.
    let (mut recent, mut busiest) = (VecDeque::new(), 0);
    let mut rotations = BTreeSet::new();
    until("the log has been used up three times", || {
        session.run(write);
        written += BYTES;
        recent.push_back(Instant::now());
        while recent.front().is_some_and(|at| at.elapsed() > WINDOW) {
            recent.pop_front();
        }
        busiest = busiest.max(recent.len() * BYTES);
        most = session.one::<i64>("SELECT log_bytes FROM tidings.status").max(most);
        rotations.insert(oldest(&mut session));
        rotations.len() > 8 && (most as f64) < written as f64 / 2.0
    });
    assert!(most as f64 <= busiest as f64 * 1.5, "{most} bytes, with {busiest} written within {WINDOW:?}");
}

#[test]
fn a_transaction_older_than_the_retention_time_loses_nothing() {
    let cluster = Cluster::start(&[("tidings.retention", "1s")]);
    let db = cluster.database();
    events_table(&db);
    let mut log = Log::from_here(&db);
    let (mut old, mut prepared, mut session) = (db.session(), db.session(), db.session());
    // One has written to the log early, one has its events only in memory, one is prepared.
    old.run("BEGIN; INSERT INTO items SELECT i, repeat('x', 1000) FROM generate_series(1, 2000) i");
    let mut idle = db.session();
    idle.run("BEGIN; INSERT INTO items VALUES (5000)");
    prepared.run("BEGIN; INSERT INTO items SELECT 3000 + i, repeat('x', 1000) FROM generate_series(1, 1000) i; PREPARE TRANSACTION 'old'");
    let begun: i64 = session.one("SELECT tidings.stamp()");
    until("the retention time has passed several times", || {
        session.run("INSERT INTO items VALUES (0)");
        session.one::<i64>("SELECT last_tick FROM tidings.status") > begun + 5_000_000
    });
    let held = oldest(&mut session);
    log.skip_to_now();
    // What is committed now is young, but a busy machine may take longer than a second to read it.
    retain(&mut session, "1h");
    old.run("INSERT INTO items VALUES (2001); COMMIT");
    idle.run("COMMIT");
    session.run("COMMIT PREPARED 'old'");
    let ids: Vec<i64> = log.news().iter().filter_map(|event| event.json()["record"]["id"].as_i64()).collect();
    assert_eq!(ids.len(), 2001 + 1 + 1000);
    // In one tick they come in the order of their stamps, and the prepared one got its stamp when it was prepared.
    let first = ids.iter().position(|id| *id == 1).expect("the first row");
    assert_eq!(ids[first..first + 2001], (1..=2001).collect::<Vec<i64>>());
    // And then all of it expires.
    retain(&mut session, "1s");
    until("the start of the log moves on", || oldest(&mut session) > held);
    until("the log is empty", || session.one::<i64>("SELECT count(*) FROM tidings.log") == 0);
}

#[test]
fn a_reader_that_holds_a_lock_stops_neither_writers_nor_the_rotation_for_good() {
    let cluster = Cluster::start(SHORT);
    let db = cluster.database();
    events_table(&db);
    let (mut reader, mut session) = (db.session(), db.session());
    session.run("INSERT INTO items VALUES (0)");
    // The reader's snapshot must see it, and it sees only what is in a tick.
    until("the event is in a tick", || session.one::<i64>("SELECT count(*) FROM tidings.events") == 1);
    let first = oldest(&mut session);
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM tidings.events");
    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    until("the retention time has passed twice", || {
        let before = Instant::now();
        session.run("INSERT INTO items VALUES (1)");
        slowest = slowest.max(before.elapsed());
        // Nor are new readers delayed behind a waiting TRUNCATE.
        read(&mut session, "earliest").expect("readable");
        assert_eq!(oldest(&mut session), first, "thrown away under a reader");
        start.elapsed() > Duration::from_secs(6)
    });
    assert!(slowest < Duration::from_secs(2), "a writer waited {slowest:?}");
    let seen: i64 = reader.one("SELECT count(*) FROM tidings.events");
    reader.run("COMMIT");
    assert!(seen >= 1);
    until("what is too old goes", || oldest(&mut session) > first);
}

#[test]
fn readers_who_follow_each_other_without_a_pause_do_not_stop_the_rotation() {
    let cluster = Cluster::start(SHORT);
    let db = cluster.database();
    events_table(&db);
    let mut session = db.session();
    session.run("INSERT INTO items VALUES (0)");
    let script = fresh_path("read.sql");
    std::fs::write(&script, "SELECT count(*) FROM tidings.changes('earliest');\n").expect("write the script");
    // So many that some are always reading.
    let mut readers = cluster.tool("pgbench");
    readers.args(["-n", "-c", "6", "-j", "2", "-T", "3600", "-f"]).arg(script).arg(db.name());
    readers.stdout(Stdio::null()).stderr(Stdio::null());
    let mut readers = Process::spawn(&mut readers, Signal::SIGKILL).expect("start pgbench");
    let mut starts = BTreeSet::from([oldest(&mut session)]);
    until("the log has rotated several times", || {
        session.run("INSERT INTO items VALUES (1)");
        starts.insert(oldest(&mut session));
        starts.len() > 4
    });
    assert!(readers.exited().is_none(), "they read all the time");
    let reading = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%earliest%' AND pid <> pg_backend_pid()";
    assert_eq!(session.one::<i64>(reading), 6);
}

#[test]
fn a_partition_with_only_the_tick_of_retained_events_is_kept() {
    let cluster = Cluster::start(&[("tidings.retention", "1s"), ("max_prepared_transactions", "1")]);
    let db = cluster.database();
    events_table(&db);
    let mut session = db.session();
    let slot = "SELECT slot FROM tidings.tick ORDER BY tick DESC LIMIT 1";
    let first: i16 = session.one(slot);
    session.run("BEGIN; INSERT INTO items VALUES (1); PREPARE TRANSACTION 'old'");
    session.run("INSERT INTO items VALUES (2)");
    until("another partition is the current one", || session.one::<i16>(slot) != first);
    // Nothing is rotated any more.
    retain(&mut session, "1h");
    let second: i16 = session.one(slot);
    session.run("INSERT INTO items VALUES (3)");
    until("its event is in a tick", || {
        session.one::<i64>("SELECT count(*) FROM tidings.events WHERE payload LIKE '%\"id\":3,%'") == 1
    });
    let used: i64 = session.one("SELECT last_tick FROM tidings.status");
    // The partitions are checked once a second, and the two ticks must be further apart than that.
    until("some time has passed", || session.one::<i64>("SELECT tidings.stamp()") > used + 2_500_000);
    let position: String = session.one("SELECT tidings.position()");
    let noted = Instant::now();
    session.run("COMMIT PREPARED 'old'");
    until("its event is in a tick", || read(&mut session, &position) == Ok(1));
    assert_eq!(session.one::<i16>(slot), second, "the tick is in the partition of the one before");
    retain(&mut session, "4s");
    until("the event goes", || match read(&mut session, &position) {
        Err(code) => code == "TI001",
        Ok(events) => {
            assert_eq!(events, 1);
            false
        }
    });
    assert!(noted.elapsed() > Duration::from_secs(4), "given up after {:?}", noted.elapsed());
}

#[test]
fn an_old_snapshot_gets_an_error_instead_of_a_gap() {
    let cluster = Cluster::start(SHORT);
    let db = cluster.database();
    events_table(&db);
    let (mut reader, mut session) = (db.session(), db.session());
    let position: String = session.one("SELECT tidings.position()");
    session.run("INSERT INTO items VALUES (1)");
    until("it is in a tick", || read(&mut session, &position) == Ok(1));
    // The snapshot exists, but no lock on the log yet.
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM items");
    until("it has expired", || {
        session.run("INSERT INTO items VALUES (2)");
        read(&mut session, &position) == Err("TI001".to_owned())
    });
    assert_eq!(read(&mut reader, &position), Err("TI001".to_owned()));
}

#[test]
fn rotation_continues_across_restarts_that_are_more_frequent_than_the_retention_time() {
    let cluster = Cluster::start(&[("tidings.retention", "4s")]);
    let db = cluster.database();
    events_table(&db);
    let mut session = db.session();
    session.run("INSERT INTO items VALUES (0)");
    let first = oldest(&mut session);
    let mut restarts = 0;
    until("what is too old goes", || {
        let old = db.wait_relay();
        session.run(&format!("SELECT pg_terminate_backend({old})"));
        eventually("a new relay runs", || db.relay().filter(|pid| *pid != old));
        // It has looked at the partitions before it cuts a tick.
        session.run("INSERT INTO items VALUES (1)");
        until("it has cut a tick", || session.one("SELECT waiting_since IS NULL FROM tidings.status"));
        restarts += 1;
        oldest(&mut session) > first
    });
    assert!(restarts > 1, "it never restarted within the retention time");
}

#[test]
fn a_publication_of_all_tables_does_not_stop_the_relay() {
    let cluster = Cluster::start(SHORT);
    let db = cluster.database();
    events_table(&db);
    let mut session = db.session();
    session.run("CREATE PUBLICATION everything FOR ALL TABLES");
    let relay = db.wait_relay();
    let mut rotations = BTreeSet::new();
    until("the log has rotated", || {
        session.run("INSERT INTO items VALUES (1)");
        rotations.insert(oldest(&mut session));
        rotations.len() > 4
    });
    assert_eq!(db.wait_relay(), relay, "the relay failed and came back");
}

#[test]
fn the_status_shows_sizes_and_the_oldest_position() {
    let cluster = Cluster::start(&[("tidings.retention", "90min")]);
    let db = cluster.database();
    events_table(&db);
    let mut session = db.session();
    let bytes = "SELECT log_bytes FROM tidings.status";
    let before: i64 = session.one(bytes);
    let mut log = Log::from_here(&db);
    session.run("INSERT INTO items SELECT i, md5(i::text) FROM generate_series(1, 20000) i");
    assert_eq!(log.news().len(), 20_000);
    assert!(session.one::<i64>(bytes) > before + 100_000);
    assert_eq!(session.one::<String>("SELECT retention::text FROM tidings.status"), "01:30:00");
    let oldest = oldest(&mut session).to_string();
    assert_eq!(read(&mut session, &oldest), Ok(100));
    let older = (oldest.parse::<i64>().expect("a number") - 1).to_string();
    assert_eq!(read(&mut session, &older), Err("TI001".to_owned()));
}

#[test]
fn a_client_whose_position_has_expired_is_reset_and_then_live() {
    use tidings_tests::sse::Request;
    let cluster = Cluster::start(&[("tidings.retention", "1s")]);
    let db = cluster.database();
    events_table(&db);
    let mut session = db.session();
    let position: String = session.one("SELECT tidings.position()");
    until("it has expired", || {
        session.run("INSERT INTO items VALUES (2)");
        read(&mut session, &position) == Err("TI001".to_owned())
    });
    // A proxy that starts now has nothing in memory.
    let proxy = db.proxy(&[]);
    let mut sse = proxy.open(&Request::since(&["items"], &position));
    assert_eq!(sse.frame().event, "reset");
    session.run("INSERT INTO items VALUES (3)");
    until("the stream continues", || sse.frame().json()["record"]["id"] == 3);
}

#[test]
fn a_clock_that_was_ahead_does_not_stop_the_rotation() {
    if !Clock::can_jump() {
        return skipped("a clock that jumps: there is no libfaketime");
    }
    let clock = Clock::at(0);
    let cluster = Cluster::start_at(Site { env: clock.environment(), ..Site::default() }, SHORT);
    let db = cluster.database();
    events_table(&db);
    let mut session = db.session();
    clock.set(WEEK);
    until("ticks are of next week", || {
        session.run("INSERT INTO items VALUES (1)");
        session.one("SELECT last_tick_at > clock_timestamp() - interval '1 hour' FROM tidings.status")
    });
    clock.set(0);
    let mut starts = BTreeSet::new();
    until("the log has rotated several times", || {
        session.run("INSERT INTO items VALUES (2)");
        starts.insert(oldest(&mut session));
        starts.len() > 4
    });
    let ahead = "SELECT clock_ahead > interval '6 days' FROM tidings.status";
    assert!(session.one::<bool>(ahead), "the status explains the numbers");
}

#[test]
fn a_clock_that_jumps_ahead_expires_nothing() {
    if !Clock::can_jump() {
        return skipped("a clock that jumps: there is no libfaketime");
    }
    let clock = Clock::at(0);
    let cluster = Cluster::start_at(Site { env: clock.environment(), ..Site::default() }, &[]);
    let db = cluster.database();
    events_table(&db);
    let mut session = db.session();
    if session.one::<i32>("SELECT current_setting('server_version_num')::int") < 160_000 {
        // The postmaster forks them inside a system call that libfaketime does not intercept, and so everything that
        // they do later.
        return skipped("a relay whose clock jumps: workers of PostgreSQL 15 see the real one");
    }
    let position: String = session.one("SELECT tidings.position()");
    let mut log = Log::from_here(&db);
    session.run("INSERT INTO items VALUES (1)");
    assert_eq!(log.news().len(), 1);
    // The relay logs each jump, and then checks the partitions.
    for jump in 1..=4 {
        clock.set(WEEK + jump * 3600);
        until("the relay has seen the jump", || {
            let log = std::fs::read_to_string(cluster.log_file()).expect("the server's log");
            log.matches("the server's clock has jumped forward").count() >= usize::try_from(jump).expect("a number")
        });
        session.run("INSERT INTO items VALUES (2)");
        assert_eq!(log.news().len(), 1);
    }
    assert!(read(&mut session, &position).is_ok_and(|events| events >= 4), "everything is there");
}
