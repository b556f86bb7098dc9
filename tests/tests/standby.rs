//! Positions on a hot standby: a stream of the primary continues from what was read there, each change once.

use tidings_tests::clock::Clock;
use tidings_tests::cluster::Site;
use tidings_tests::process::{Signal, send};
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Session, eventually, until};

use crate::read_node::proxy_at;
use crate::{all_until_now, create_boards, kept_boards, skipped, titles};

/// The payload of the event that comes after all others.
const MARK: &str = "the last of all";

/// How far the standby's clock differs from the primary's, in seconds.
const OFFSET: i32 = 3600;

/// The titles that a snapshot of this server sees, and its position. The data comes first: the position must be that of
/// the snapshot, not that of the call.
fn read(session: &mut Session) -> (Vec<String>, String) {
    session.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    let rows = session.all("SELECT title FROM board_items", &[]);
    let position = session.one("SELECT tidings.position()");
    session.run("COMMIT");
    (rows.iter().map(|row| row.get(0)).collect(), position)
}

/// What was read, together with what the stream sent, is each of these titles once.
#[track_caller]
fn each_once(read: &[String], streamed: &[String], all: &[&str]) {
    let mut got: Vec<&str> = read.iter().chain(streamed).map(String::as_str).collect();
    got.sort_unstable();
    let mut all = all.to_vec();
    all.sort_unstable();
    assert_eq!(got, all, "{read:?} was read, {streamed:?} was streamed");
}

fn continue_relay(db: &Database<'_>) {
    send(db.relay().expect("a relay"), Signal::SIGCONT);
}

/// Reads on a standby whose clock differs this much from the primary's, while transactions are open there: some that
/// end afterwards, some with savepoints, one that is prepared; and some are committed but in no tick yet.
fn read_beside_open_transactions(offset: i32) {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let clock = Clock::at(offset);
    let site = Site { env: clock.environment(), ..Site::default() };
    let standby = primary.standby_at(site, &[]);
    let proxies = [db.proxy(&[]), proxy_at(&standby, &db, &[])];
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (1, 5, 'in a tick')");
    until("it is in a tick", || session.one::<i64>("SELECT count(*) FROM tidings.events") == 1);
    db.stop_relay();
    let (mut open, mut nested, mut many, mut prepared) = (db.session(), db.session(), db.session(), db.session());
    open.run("BEGIN; INSERT INTO board_items VALUES (2, 5, 'open')");
    nested.run("BEGIN; SAVEPOINT a; INSERT INTO board_items VALUES (3, 5, 'in a savepoint')");
    // More savepoints than a server lists for one transaction.
    many.run("BEGIN");
    for id in 100..200 {
        many.run(&format!("SAVEPOINT s; INSERT INTO board_items VALUES ({id}, 6, 'many')"));
    }
    many.run("INSERT INTO board_items VALUES (4, 5, 'behind many savepoints')");
    prepared.run("BEGIN; INSERT INTO board_items VALUES (5, 5, 'prepared'); PREPARE TRANSACTION 'p'");
    session.run("INSERT INTO board_items VALUES (6, 5, 'committed before')");
    db.wait_standby(&standby);
    let mut there = standby.session(db.name(), "postgres");
    // The same is read on both servers; their snapshots list the open transactions in different places.
    let readings = [read(&mut there), read(&mut session)];
    session.run("INSERT INTO board_items VALUES (7, 5, 'committed after')");
    for transaction in [&mut open, &mut nested, &mut many] {
        transaction.run("COMMIT");
    }
    continue_relay(&db);
    session.run("COMMIT PREPARED 'p'");
    session.run("INSERT INTO board_items VALUES (8, 5, 'the last')");
    let all = [
        "in a tick",
        "open",
        "in a savepoint",
        "behind many savepoints",
        "prepared",
        "committed before",
        "committed after",
        "the last",
    ];
    let mut streams: Vec<_> = readings
        .iter()
        .flat_map(|(seen, position)| proxies.iter().map(move |proxy| (seen, proxy, position)))
        .map(|(seen, proxy, position)| (seen, proxy.open(&Request::since(&["boards_5"], position))))
        .collect();
    db.session().publish("boards_5", &format!("\"{MARK}\""));
    for (seen, sse) in &mut streams {
        each_once(seen, &titles(&sse.before(|frame| frame.data.contains(MARK))), &all);
    }
    // The same for a reader in SQL, on both servers.
    db.wait_standby(&standby);
    for session in [&mut session, &mut there] {
        for (seen, position) in &readings {
            let streamed = "SELECT payload::jsonb #>> '{record,title}' FROM tidings.changes($1, '{boards_5}')
                WHERE payload LIKE '{%'";
            let streamed: Vec<String> = session.all(streamed, &[position]).iter().map(|row| row.get(0)).collect();
            each_once(seen, &streamed, &all);
        }
    }
}

#[test]
fn a_position_of_a_standby_whose_clock_is_ahead_misses_and_repeats_nothing() {
    if !Clock::can_jump() {
        return skipped("a clock that is wrong: there is no libfaketime");
    }
    read_beside_open_transactions(OFFSET);
}

#[test]
fn a_position_of_a_standby_whose_clock_is_behind_misses_and_repeats_nothing() {
    if !Clock::can_jump() {
        return skipped("a clock that is wrong: there is no libfaketime");
    }
    read_beside_open_transactions(-OFFSET);
}

#[test]
fn what_a_standby_shows_before_its_primary_is_not_repeated() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let standby = primary.standby();
    let proxy = db.proxy(&[]);
    let mut session = db.session();
    // The commit waits for a standby that never connects, and in the meantime the existing one replays it.
    session.run("SET synchronous_commit = local");
    session.run("ALTER SYSTEM SET synchronous_standby_names = 'another'");
    session.run("SELECT pg_reload_conf()");
    let mut there = standby.session(db.name(), "postgres");
    let mut all = Vec::new();
    // Commits wait once all processes have read the setting.
    let waiting = eventually("a commit waits", || {
        let id = all.len() + 1;
        all.push(format!("shown there first, {id}"));
        let mut writer = db.session();
        let insert = format!("INSERT INTO board_items VALUES ({id}, 5, 'shown there first, {id}')");
        let waiting = std::thread::spawn(move || writer.run(&insert));
        let shown = format!("SELECT EXISTS (SELECT FROM board_items WHERE id = {id})");
        until("the standby shows it", || there.one(&shown));
        let is_shown_here: bool = session.one(&shown);
        (!is_shown_here).then_some(waiting)
    });
    let (seen, position) = read(&mut there);
    assert_eq!(seen.len(), all.len());
    let mut sse = proxy.open(&Request::since(&["boards_5"], &position));
    // Ticks are cut in the meantime, after the position.
    session.run("INSERT INTO board_items VALUES (0, 5, 'beside it')");
    all.push("beside it".to_owned());
    session.run("ALTER SYSTEM RESET synchronous_standby_names");
    session.run("SELECT pg_reload_conf()");
    waiting.join().expect("the writer");
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    each_once(&seen, &titles(&all_until_now(&db, "boards_5", &mut sse)), &all);
}

#[test]
fn a_reader_that_waits_for_a_standby_goes_on_when_there_is_none_to_wait_for() {
    let cluster = Cluster::start(&[]);
    // If the test fails, a DROP DATABASE would wait for the standby, too.
    let db = kept_boards(&cluster);
    let mut session = db.session();
    session.run("SET synchronous_commit = local");
    session.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    session.run("SELECT pg_reload_conf()");
    until("the setting is there", || session.one::<String>("SHOW synchronous_standby_names") == "nobody");
    let mut id = 0;
    let reader = eventually("a reader waits", || {
        id += 1;
        session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'not replicated')"));
        let mut reader = db.session();
        // The wait ends with an error if nothing else ends it.
        reader.run("SET statement_timeout = '30s'");
        let pid: i32 = reader.one("SELECT pg_backend_pid()");
        let reader = std::thread::spawn(move || reader.one::<Option<String>>("SELECT tidings.position()"));
        let waits = format!(
            "SELECT EXISTS (SELECT FROM pg_stat_activity
                 WHERE pid = {pid} AND state = 'active' AND wait_event = 'Extension')"
        );
        until("it waits or is done", || reader.is_finished() || session.one(&waits));
        (!reader.is_finished()).then_some(reader)
    });
    session.run("ALTER SYSTEM RESET synchronous_standby_names");
    session.run("SELECT pg_reload_conf()");
    assert!(reader.join().expect("the reader").is_some());
}

/// Names a standby that does not exist, and waits until a reader waits for it. `session` itself does not.
fn a_reader_waits_for_nobody(db: &Database<'_>, session: &mut Session) {
    session.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    session.run("SELECT pg_reload_conf()");
    let mut reader = db.session();
    reader.run("SET statement_timeout = '1s'");
    let mut id = 0;
    until("a reader waits", || {
        id += 1;
        session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'not replicated')"));
        reader.client().batch_execute("SELECT tidings.position()").is_err()
    });
    session.run("ALTER SYSTEM RESET synchronous_standby_names");
    session.run("SELECT pg_reload_conf()");
}

#[test]
fn a_reader_waits_for_a_standby_that_was_named_while_no_relay_ran() {
    let cluster = Cluster::start(&[]);
    let db = kept_boards(&cluster);
    let mut session = db.session();
    session.run("SET synchronous_commit = local");
    let launcher: i32 = session.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'tidings launcher'");
    // A stopped launcher starts no relay.
    session.stop(launcher.unsigned_abs());
    session.run("SELECT pg_terminate_backend(tidings.relay_pid())");
    until("no relay runs", || session.one("SELECT tidings.relay_pid() IS NULL"));
    a_reader_waits_for_nobody(&db, &mut session);
    send(launcher.unsigned_abs(), Signal::SIGCONT);
}

#[test]
fn readers_wait_for_a_standby_although_the_server_once_had_asynchronous_commits() {
    let cluster = Cluster::start(&[("synchronous_commit", "off")]);
    // If the test fails, a DROP DATABASE would wait for the standby, too.
    let db = kept_boards(&cluster);
    let mut session = db.session();
    session.run("SET synchronous_commit = local");
    session.run("ALTER SYSTEM SET synchronous_commit = on");
    a_reader_waits_for_nobody(&db, &mut session);
}

#[test]
fn a_standby_waits_with_a_position_that_it_has_not_reached() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let standby = primary.standby();
    db.wait_standby(&standby);
    let mut there = standby.session(db.name(), "postgres");
    there.run("SELECT pg_wal_replay_pause()");
    until("replay has paused", || there.one("SELECT pg_get_wal_replay_pause_state() = 'paused'"));
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (1, 5, 'not replayed')");
    until("it is in a tick", || session.one::<i64>("SELECT count(*) FROM tidings.events") == 1);
    let event: String = session.one("SELECT position FROM tidings.events");
    let position: String = session.one("SELECT tidings.position()");
    for place in [&event, &position] {
        let located: Option<String> = there.all("SELECT tidings.locate($1)", &[place])[0].get(0);
        assert_eq!(located, None, "{place}");
    }
    there.run("SELECT pg_wal_replay_resume()");
    for place in [&event, &position] {
        until("the position is there", || {
            let located: Option<String> = there.all("SELECT tidings.locate($1)", &[place])[0].get(0);
            located.as_ref() == Some(place)
        });
    }
}

#[test]
fn an_old_snapshot_of_a_standby_gets_an_error_instead_of_a_gap() {
    let primary = Cluster::start(&[("tidings.retention", "1s")]);
    let db = primary.database();
    create_boards(&db);
    let standby =
        primary.standby_at(Site::default(), &[("hot_standby_feedback", "on"), ("max_standby_streaming_delay", "-1")]);
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (1, 5, 'too old')");
    let position: String = session.one("SELECT oldest_position::text FROM tidings.status");
    db.wait_standby(&standby);
    let mut there = standby.session(db.name(), "postgres");
    there.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM board_items");
    let mut other = standby.session(db.name(), "postgres");
    let mut id = 1;
    until("it has expired there", || {
        id += 1;
        session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'younger')"));
        other.client().query("SELECT FROM tidings.changes($1)", &[&position]).is_err()
    });
    assert_eq!(there.refused(&format!("SELECT FROM tidings.changes('{position}')")).code().code(), "TI001");
}
