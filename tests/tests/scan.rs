//! Catching up from the log, one page at a time, and what a hostile log can do to its readers.

use tidings_tests::process::MemoryWatch;
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Item, Session, until};
use tidings_wire::{Position, page, segment};

const MIB: i32 = 1024 * 1024;

/// Forty transactions of about a megabyte on one topic, with a few events of another topic between them.
fn rare_among_many(db: &Database<'_>) {
    let mut session = db.session();
    for i in 0..40 {
        if i % 13 == 0 {
            session.publish("rare", &i.to_string());
        }
        session.run(
            "SELECT tidings.publish_text('bulk', (SELECT string_agg(md5((random() * i * n)::text), '')
               FROM generate_series(1, 3000) n)) FROM generate_series(1, 10) i",
        );
    }
    session.publish("rare", "40");
    until("all of it is in ticks", || session.all("SELECT FROM tidings.changes('earliest', '{rare}')", &[]).len() == 5);
}

/// The events of a topic with their positions, from all pages in sequence, and the ends of the pages.
fn walk(session: &mut Session, topic: &str, max_rows: i32, max_bytes: i32) -> (Vec<(String, String)>, Vec<String>) {
    let (mut events, mut ends) = (Vec::new(), Vec::new());
    let mut at: String = session.one("SELECT tidings.locate('earliest')");
    loop {
        let sql = "SELECT position, payload, topic IS NULL, more FROM tidings.scan($1, ARRAY[$2], $3, $4, false)";
        let mut rows = session.all(sql, &[&at, &topic, &max_rows, &max_bytes]);
        let end = rows.pop().expect("an end");
        assert!(end.get::<_, bool>(2) && rows.iter().all(|row| !row.get::<_, bool>(2)), "the end comes last");
        assert!(rows.len() <= max_rows as usize);
        events.extend(rows.iter().map(|row| (row.get(0), row.get(1))));
        // The page has `max_rows` events, so the next one starts after the last of them.
        at = end.get::<_, Option<String>>(0).unwrap_or_else(|| rows.last().expect("rows").get(0));
        ends.push(at.clone());
        if !end.get::<_, bool>(3) {
            return (events, ends);
        }
    }
}

/// The places and payloads of the events after a position, from all pages in sequence.
fn walk_pages(session: &mut Session, start: &str, topics: &[&str], limits: (i32, i32)) -> Vec<((u64, u32), String)> {
    let (mut events, mut at) = (Vec::new(), start.to_owned());
    loop {
        let sql = "SELECT segments, seen, reached, more FROM tidings.page($1, $2, $3, $4)";
        let row = &session.all(sql, &[&at, &topics, &limits.0, &limits.1])[0];
        let (segments, seen): (Vec<u8>, Option<&str>) = (row.get(0), row.get(1));
        let after: Position = at.parse().expect("a position");
        for part in page::parts(&segments) {
            let part = part.expect("a part");
            assert!(!part.with_snapshot || seen.is_some());
            for (event, i) in segment::events(part.segment).zip(1..) {
                let (event, place) = (event.expect("an event"), (part.tick, part.before + i));
                if place > after.place() && topics.contains(&event.topic) && event.as_recheck().is_none() {
                    events.push((place, event.payload.into_owned()));
                }
            }
        }
        let reached: String = row.get(2);
        let place = reached.parse::<Position>().expect("a position").place();
        assert!(place >= after.place() && events.last().is_none_or(|last| last.0 <= place), "{at} to {reached}");
        if !row.get::<_, bool>(3) {
            return events;
        }
        assert!(place > after.place(), "a page that leads nowhere");
        at = reached;
    }
}

#[test]
fn pages_have_what_changes_returns_from_every_position() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    let [mut session, mut long, mut prepared] = [(); 3].map(|()| db.session());
    let mut positions = vec![session.one::<String>("SELECT tidings.locate('earliest')")];
    long.run("BEGIN; SELECT tidings.publish('a', '0')");
    prepared.run("BEGIN; SELECT tidings.publish('b', '0'); PREPARE TRANSACTION 'p'");
    for i in 0..30 {
        session.publish(["a", "b", "c"][i % 3], &i.to_string());
        if i % 5 == 0 {
            positions.push(session.one("SELECT tidings.position()"));
            // Written early: a transaction of several segments, which ends later.
            long.run(
                "SELECT tidings.publish_text(CASE WHEN i % 7 = 0 THEN 'a' ELSE 'bulk' END, (SELECT string_agg(md5((random() * i * n)::text), '')
                   FROM generate_series(1, 3000) n)) FROM generate_series(1, 8) i",
            );
        }
        if i == 12 {
            long.run("COMMIT; BEGIN; SELECT tidings.publish('b', '1')");
        }
        if i == 20 {
            prepared.run("COMMIT PREPARED 'p'");
        }
    }
    long.run("COMMIT");
    session.publish("a", "\"the last\"");
    until("all of it is in ticks", || session.all("SELECT FROM tidings.changes('earliest')", &[]).len() == 30 + 48 + 4);
    let ids = session.all("SELECT position FROM tidings.changes('earliest')", &[]);
    positions.extend(ids.iter().step_by(3).map(|row| row.get(0)));
    for start in &positions {
        for topics in [&["a"][..], &["c", "b"], &["a", "b", "c", "bulk"], &["none"]] {
            let sql = "SELECT position, payload FROM tidings.changes($1, $2, 1000000)";
            let place = |text: &str| text.parse::<Position>().expect("a position").place();
            let rows = session.all(sql, &[start, &topics]);
            let expected: Vec<_> = rows.iter().map(|row| (place(row.get(0)), row.get(1))).collect();
            for limits in [(MIB, 8 * MIB), (1, 8 * MIB), (MIB, 1)] {
                let found = walk_pages(&mut session, start, topics, limits);
                assert_eq!(found, expected, "{topics:?} from {start}, {limits:?}");
            }
        }
    }
}

#[test]
fn a_position_after_many_ticks_reads_none_of_them() {
    const TICKS: i64 = 5000;
    let db = tidings_tests::shared().database();
    let mut session = db.session();
    session.publish("t", "1");
    until("it is in a tick", || session.all("SELECT FROM tidings.changes('earliest')", &[]).len() == 1);
    let last: i64 = session.one("SELECT max(tick) FROM tidings.tick");
    // The log rows as the relay marks them, for this transaction only.
    session.run(&format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ;
         INSERT INTO tidings.tick SELECT t.slot, t.tick + i, t.tick + i - 1, t.until, t.until, 0
         FROM (SELECT * FROM tidings.tick WHERE tick = {last}) t, generate_series(1, {TICKS}) i"
    ));
    let after = format!("{}-1", last + TICKS);
    let snapshot: String = session.one("SELECT pg_current_snapshot()::text");
    let read: String = "SELECT sum(idx_tup_fetch)::bigint FROM pg_stat_xact_all_tables
                        WHERE schemaname = 'tidings' AND relname LIKE 'tick%'"
        .into();
    for sql in [
        format!("SELECT FROM tidings.scan('{after}', NULL, 100, 1000, false)"),
        format!("SELECT FROM tidings.scan('{after}:{last}:{snapshot}', NULL, 100, 1000, false)"),
        format!("SELECT FROM tidings.page('{after}', '{{t}}', 100, 1000)"),
        format!("SELECT FROM tidings.page('{after}:{last}:{snapshot}', '{{t}}', 100, 1000)"),
        format!("SELECT FROM tidings.changes('{after}')"),
        format!("SELECT FROM tidings.segments('{after}')"),
        format!("SELECT tidings.locate('{after}')"),
        "SELECT tidings.position()".to_owned(),
    ] {
        let before: i64 = session.one(&read);
        session.run(&sql);
        let after: i64 = session.one(&read);
        assert!(after - before < 50, "{sql} reads {} ticks", after - before);
    }
}

#[test]
fn a_long_transaction_is_not_read_again_for_each_tick() {
    const TICKS: usize = 20;
    let db = tidings_tests::shared().database();
    let (mut session, mut long) = (db.session(), db.session());
    long.run(
        "BEGIN; SELECT tidings.publish_text('bulk', (SELECT string_agg(md5((random() * i * n)::text), '')
           FROM generate_series(1, 10000) n)) FROM generate_series(1, 50) i",
    );
    for i in 1..=TICKS {
        session.publish("small", &i.to_string());
        until("a separate tick", || session.all("SELECT FROM tidings.changes('earliest', '{small}')", &[]).len() == i);
    }
    long.run("COMMIT");
    until("everything is in a tick", || {
        session.all("SELECT FROM tidings.changes('earliest')", &[]).len() == 50 + TICKS
    });
    let segments: i64 = session.one("SELECT count(*) FROM tidings.log");
    assert!(segments >= 40 + TICKS as i64, "written early, or this test proves nothing");
    for sql in [
        "SELECT FROM tidings.changes('earliest')",
        "SELECT FROM tidings.scan('earliest', NULL, 1000, 100000000, false)",
        "SELECT FROM tidings.page(tidings.locate('earliest'), '{bulk}', 100000000, 100000000)",
    ] {
        session.run("BEGIN");
        let read = "SELECT sum(idx_tup_fetch)::bigint FROM pg_stat_xact_all_tables
                    WHERE schemaname = 'tidings' AND relname LIKE 'log%'";
        let before: i64 = session.one(read);
        session.run(sql);
        let read = session.one::<i64>(read) - before;
        session.run("COMMIT");
        // The scan also reads the sizes of segments, including those that began in an earlier tick.
        assert!(read <= 4 * segments, "{sql} reads {read} of {segments} segments");
    }
}

#[test]
fn a_rare_topic_in_a_large_log_is_read_in_bounded_pages() {
    let cluster = Cluster::start(&[("track_functions", "all")]);
    let db = cluster.database();
    rare_among_many(&db);
    let mut session = db.session();
    let all = |session: &mut Session, topic: &str| -> Vec<(String, String)> {
        let rows = session.all("SELECT position, payload FROM tidings.changes('earliest', ARRAY[$1])", &[&topic]);
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    for topic in ["rare", "bulk"] {
        let expected = all(&mut session, topic);
        for (rows, bytes) in [(1000, 4 * MIB), (1000, 1), (1, 64 * MIB), (3, MIB)] {
            let (events, ends) = walk(&mut session, topic, rows, bytes);
            assert_eq!(events, expected, "{topic}, {rows} rows, {bytes} bytes");
            let places: Vec<_> = ends.iter().map(|end| end.parse::<Position>().expect("a position").place()).collect();
            assert!(places.is_sorted(), "{places:?}");
        }
    }
    // No call decodes much more than its limit: at most the limit and the segment that it had begun.
    let (_, ends) = walk(&mut session, "rare", 1000, 4 * MIB);
    let mut before = String::from("earliest");
    for end in ends {
        let place = end.parse::<Position>().expect("a position").place();
        let rows = session.all("SELECT position, length(payload) FROM tidings.changes($1, '{bulk}')", &[&before]);
        let read: i32 = rows
            .iter()
            .filter(|row| row.get::<_, &str>(0).parse::<Position>().expect("a position").place() <= place)
            .map(|row| row.get::<_, i32>(1))
            .sum();
        assert!(read <= 6 * MIB, "{read} bytes up to {end}");
        before = end;
    }

    let calls = |session: &mut Session| -> i64 {
        session.one("SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_user_functions WHERE funcname = 'page'")
    };
    session.run("SELECT pg_stat_force_next_flush()");
    let before = calls(&mut session);
    let proxy = db.proxy(&["--history-bytes", "0"]);
    let mut sse = proxy.open(&Request::since(&["rare"], "earliest"));
    let (mut seen, mut places) = (Vec::new(), 0);
    while seen.len() < 5 {
        match sse.item().expect("the stream continues") {
            Item::Frame(frame) => seen.push(frame.data),
            Item::Position(_) => places += 1,
            _ => {}
        }
    }
    assert_eq!(seen, ["0", "13", "26", "39", "40"]);
    assert!(places > 0, "a client that is cut off in between continues from where it was");
    until("it took several calls", || calls(&mut session) >= before + 4);
}

#[test]
fn a_segment_that_expands_a_lot_is_not_held_in_memory() {
    let cluster = Cluster::start(&[("work_mem", "4MB")]);
    let db = cluster.database();
    let mut session = db.session();
    let watch = MemoryWatch::start(&[session.backend()]);
    // Four bytes for each event, with the longest possible name: two million of them.
    let name = "65".repeat(255);
    let count: i64 = session.one(&format!(
        "SELECT count(*) FROM tidings.decode(pg_catalog.decode('03' || '0001ff0200' || '{name}' || '7b7d' || repeat('00020161', 2000000), 'hex'), NULL)"
    ));
    assert_eq!(count, 2_000_000);
    let peak = watch.finish()[0];
    assert!(peak < 120 << 20, "{} MiB", peak >> 20);
}
