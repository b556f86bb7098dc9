//! Everything that was committed while the relay was down becomes ticks of bounded size, in the right order, and
//! complete.

use tidings_tests::process::{Signal, send};
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Session, until};

use crate::log::Log;
use crate::{create_boards, skipped, titles};

/// The most segments of a tick, and what its last transaction may add.
const BOUND: i64 = 10_000;

/// Writers that all wait for each other's row; each gets its transaction id before it waits.
const WRITERS: usize = 4;

/// The transactions of each writer.
const EACH: usize = 6_000;

/// The number of segments of the largest tick.
fn largest_tick(session: &mut Session) -> i64 {
    session.one(
        "SELECT max(n) FROM (SELECT count(*) AS n FROM tidings.tick t CROSS JOIN LATERAL tidings.tick_segments(t.since, t.until)
                             GROUP BY t.tick) ticks",
    )
}

/// Commits while the relay is stopped: counts of one row.
fn write_backlog(db: &Database<'_>, each: usize) {
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            let mut session = db.session();
            scope.spawn(move || {
                session.run(&format!(
                    "DO $$ BEGIN
                         FOR i IN 1..{each} LOOP
                             PERFORM pg_current_xact_id();
                             UPDATE counter SET n = n + 1;
                             COMMIT;
                         END LOOP;
                     END $$"
                ));
            });
        }
    });
}

fn create_counter(db: &Database<'_>) {
    db.session().run(
        "CREATE TABLE counter (n int) WITH (fillfactor = 10); INSERT INTO counter VALUES (0);
         SELECT tidings.watch('counter', topic => 'counter')",
    );
}

#[test]
fn a_backlog_is_sent_in_order_in_ticks_of_bounded_size() {
    // With few processes, the margin that a cut must consider is small.
    let cluster = Cluster::start(&[("max_connections", "40"), ("max_worker_processes", "8")]);
    let db = cluster.database();
    create_counter(&db);
    create_boards(&db);
    let mut log = Log::from_here(&db);
    let proxy = db.proxy(&[]);
    let mut session = db.session();
    // One transaction runs the whole time with an old id and waits for the row at the end; one is prepared and stays
    // for a long time.
    let (mut old, mut prepared) = (db.session(), db.session());
    old.run("BEGIN; INSERT INTO board_items VALUES (1, 5, 'old')");
    prepared.run("BEGIN; INSERT INTO board_items VALUES (2, 5, 'prepared'); PREPARE TRANSACTION 'p'");
    let relay = db.stop_relay();
    write_backlog(&db, EACH / 2);
    let position: String = session.one("SELECT tidings.position()");
    write_backlog(&db, EACH / 2);
    old.run("UPDATE counter SET n = n + 1; COMMIT");
    session.run("INSERT INTO board_items VALUES (3, 5, 'the last')");
    send(relay, Signal::SIGCONT);
    let last = i64::try_from(WRITERS * EACH + 1).expect("a number");
    let count = |event: &crate::log::Event| event.json()["record"]["n"].as_i64();
    let counts: Vec<i64> = log.news().iter().filter_map(count).collect();
    assert_eq!(counts.len() as i64, last);
    assert!(counts.is_sorted(), "the row's changes are in the order of their commits");
    let largest = largest_tick(&mut session);
    assert!(largest <= BOUND + 1, "{largest} segments in a tick");
    assert!(largest > BOUND / 2, "a backlog makes no more ticks than it must: {largest}");
    // From the middle of the backlog: what the snapshot saw is in several ticks.
    let rest = session.all(
        "SELECT (payload::jsonb #>> '{record,n}')::bigint FROM tidings.changes($1, '{counter}', 1000000)",
        &[&position],
    );
    let rest: Vec<i64> = rest.iter().map(|row| row.get(0)).collect();
    assert_eq!(rest, (last / 2 + 1..=last).collect::<Vec<_>>());
    let mut sse = proxy.open(&Request::since(&["boards_5"], &position));
    assert_eq!(titles(&[sse.frame(), sse.frame()]), ["old", "the last"]);
    session.run("COMMIT PREPARED 'p'");
    assert_eq!(titles(&[sse.frame()]), ["prepared"]);
}

#[test]
fn a_long_transaction_does_not_make_the_ticks_of_a_backlog_smaller() {
    let cluster = Cluster::start(&[("max_connections", "40"), ("max_worker_processes", "8")]);
    let db = cluster.database();
    create_counter(&db);
    let (mut session, mut long) = (db.session(), db.session());
    db.stop_relay();
    // Alone it would fill three ticks.
    long.run(
        "BEGIN; SELECT tidings.publish_text('bulk', (SELECT string_agg(md5((random() * i * n)::text), '')
           FROM generate_series(1, 10000) n)) FROM generate_series(1, 150) i",
    );
    write_backlog(&db, EACH / 2);
    long.run("SELECT tidings.publish('bulk', '1'); COMMIT");
    let before: i64 = session.one("SELECT ticks FROM tidings.status");
    send(db.wait_relay(), Signal::SIGCONT);
    until("it is in ticks", || session.one::<bool>("SELECT waiting_since IS NULL FROM tidings.status"));
    let ticks = session.one::<i64>("SELECT ticks FROM tidings.status") - before;
    let all = i64::try_from(WRITERS * EACH / 2).expect("a number");
    assert!(ticks <= all / BOUND + 5, "{ticks} ticks of {all} transactions");
}

#[test]
fn a_page_of_a_backlog_reads_only_its_own_segments() {
    let cluster = Cluster::start(&[("max_connections", "40"), ("max_worker_processes", "8")]);
    let db = cluster.database();
    create_counter(&db);
    let mut session = db.session();
    let start: String = session.one("SELECT tidings.position()");
    let relay = db.stop_relay();
    write_backlog(&db, EACH);
    send(relay, Signal::SIGCONT);
    let all = i64::try_from(WRITERS * EACH).expect("a number");
    until("it is in ticks", || session.one::<bool>("SELECT waiting_since IS NULL FROM tidings.status"));
    let middle: String = session
        .one(&format!("SELECT position FROM tidings.changes('{start}', NULL, 1000000) OFFSET {} LIMIT 1", all / 2));
    let rows = "SELECT sum(idx_tup_fetch + seq_tup_read)::bigint FROM pg_stat_xact_all_tables
                WHERE schemaname = 'tidings' AND relname LIKE 'log%'";
    for (place, what) in [(&start, "the start"), (&middle, "the middle")] {
        for read in ["tidings.segments($1, 10000)", "tidings.changes($1, NULL, 10)"] {
            // A session's counts cover everything that it has done except what it has already reported.
            let mut session = db.session();
            session.run("BEGIN");
            assert!(!session.all(&format!("SELECT FROM {read}"), &[place]).is_empty());
            let rows: i64 = session.one(rows);
            assert!(rows <= 2 * (BOUND + 10), "{read} from {what} has read {rows} of {all} rows");
        }
    }
}

/// Makes the newest segment undecodable.
fn spoil(session: &mut Session) {
    session.run("UPDATE tidings.log SET data = '\\x03ffffff' WHERE xid = (SELECT max(xid) FROM tidings.log)");
}

/// Removes the out-of-line data of the newest segment.
fn tear_off(session: &mut Session) {
    let toast: String = session.one(
        "SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 'tidings.log_0'::regclass AND relkind = 'r'",
    );
    session.run("CREATE EXTENSION pg_surgery");
    let row: String = session.one(&format!("SELECT ctid::text FROM {toast} ORDER BY chunk_id DESC LIMIT 1"));
    session.run(&format!("SELECT heap_force_kill('{toast}', ARRAY['{row}'::tid])"));
}

#[test]
fn a_segment_that_cannot_be_read_affects_only_its_own_events() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    let relay = db.wait_relay();
    let mut ways: Vec<fn(&mut Session)> = vec![spoil];
    if session.one("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_surgery')") {
        ways.push(tear_off);
    } else {
        skipped("values out of line that are gone: there is no pg_surgery");
    }
    for (id, make_unreadable) in (1..).zip(ways) {
        session.stop(relay);
        // Random, so that it can't be compressed into the row, and too large for the ring.
        session.run(&format!(
            "INSERT INTO board_items SELECT {id}, 5, string_agg(md5(random()::text), '') FROM generate_series(1, 300)"
        ));
        let xid: String = session.one("SELECT max(xid::text::bigint)::text FROM tidings.log");
        make_unreadable(&mut session);
        send(relay, Signal::SIGCONT);
        assert_eq!(sse.frame().event, "reset", "the client learns that something is missing");
        session.run(&format!("INSERT INTO board_items VALUES ({}, 5, 'after it')", id + 10));
        assert_eq!(titles(&[sse.frame()]), ["after it"]);
        // A reader in SQL gets an error that says how to find the row.
        let refused = session.refused("SELECT FROM tidings.changes('earliest')");
        assert_eq!(refused.code().code(), "XX001", "{refused}");
        let found: i64 = session.one(&format!(
            "SELECT count(*) FROM tidings.log WHERE NOT tidings.is_readable(data) AND xid = '{xid}'::xid8"
        ));
        assert_eq!(found, 1);
        let server = std::fs::read_to_string(cluster.log_file()).expect("the server's log");
        assert!(server.contains(&format!("the row of tidings.log_0 with xid {xid} and stamp ")), "xid {xid}\n{server}");
    }
    assert_eq!(db.wait_relay(), relay, "the relay has not failed");
}
