//! `tidings.segments()`, which the proxy's live connection reads the log with, returns what a plain query finds.

use tidings_tests::process::{Signal, send};
use tidings_tests::{Cluster, Session, until};

use crate::create_boards;
use crate::retention::retain;

/// Everything after a tick, without `tidings.segments()`.
const BY_QUERY: &str = "
    SELECT t.tick, t.previous, coalesce(s.first, 0),
           row_number() OVER (PARTITION BY t.tick ORDER BY s.first DESC) = 1,
           CASE WHEN get_byte(s.data, 0) = 4 THEN tidings.complete(s.data) ELSE s.data END,
           coalesce(s.first + s.events, 0)
    FROM tidings.tick t LEFT JOIN LATERAL tidings.tick_segments(t.since, t.until) s ON true
    WHERE t.tick > $1 ORDER BY t.tick, s.first";

/// A segment, or a tick without events: the tick, the one before, the number of the events before, whether it is the
/// tick's last, and the data.
type Row = (i64, i64, i32, bool, Option<Vec<u8>>);

fn row(row: &postgres::Row) -> Row {
    (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))
}

fn read(session: &mut Session, after: &str, max_bytes: i32) -> Vec<Row> {
    let sql = "SELECT tick, previous, first, last, data FROM tidings.segments($1, $2)";
    session.all(sql, &[&after, &max_bytes]).iter().map(row).collect()
}

/// The first rows, up to the one with which there are this many bytes.
fn bounded(rows: impl Iterator<Item = Row>, max_bytes: usize) -> Vec<Row> {
    let mut size = 0;
    let mut is_full = false;
    let fits = |row: &Row| {
        let fits = !is_full;
        size += row.4.as_ref().map_or(0, Vec::len);
        is_full = size >= max_bytes;
        fits
    };
    rows.take_while(fits).collect()
}

#[test]
fn the_segments_after_any_place_are_those_of_the_ticks_in_order() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let mut session = db.session();
    let mut id = 0;
    // Two partitions of the log and of its ticks.
    let partitions =
        "SELECT count(DISTINCT l.tableoid) > 1 AND (SELECT count(DISTINCT t.tableoid) > 1 FROM tidings.tick t)
                      FROM tidings.log l";
    until("the log has rotated", || {
        retain(&mut session, "2s");
        until("the log has rotated", || {
            id += 1;
            session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'x')"));
            session.one::<bool>(partitions)
        });
        retain(&mut session, "1h");
        session.one(partitions)
    });
    let mut long = db.session();
    long.run("BEGIN; INSERT INTO board_items VALUES (-1, 5, 'long')");
    // One that borrows is completed.
    until("a segment borrows its outline", || {
        id += 1;
        session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'x')"));
        session.one::<i32>("SELECT get_byte(data, 0) FROM tidings.log ORDER BY stamp DESC LIMIT 1") == 4
    });
    // A tick of many segments: some of one transaction, some that are stored out of line.
    let relay = db.stop_relay();
    (0..5).for_each(|n| session.publish("boards_5", &n.to_string()));
    session.run(
        "SELECT tidings.publish_text('bulk', (SELECT string_agg(md5((random() * i * n)::text), '')
           FROM generate_series(1, 3000) n)) FROM generate_series(1, 12) i",
    );
    send(relay, Signal::SIGCONT);
    until("it is in ticks", || session.one("SELECT waiting_since IS NULL FROM tidings.status"));
    // Ticks have passed since it has written.
    long.run("COMMIT");
    session.publish("boards_5", "\"the end\"");
    until("it is in ticks", || session.one("SELECT waiting_since IS NULL FROM tidings.status"));
    let start: String = session.one("SELECT tidings.locate('earliest')");
    let all = session.all(BY_QUERY, &[&start.parse::<i64>().expect("a tick")]);
    let all: Vec<(Row, i32)> = all.iter().map(|found| (row(found), found.get(5))).collect();
    let is_empty = |(row, _): &&(Row, i32)| row.4.is_none();
    assert!(all.iter().filter(is_empty).count() > 0, "a tick without events, or this test proves less");
    assert!(all.iter().filter(|((.., is_last, _), _)| !is_last).count() > 5, "a tick of many segments");
    for max_bytes in [1, 100, 200_000, i32::MAX] {
        let rows = || all.iter().map(|(row, _)| row.clone());
        assert!(read(&mut session, &start, max_bytes) == bounded(rows(), max_bytes as usize));
        for ((tick, _, first, ..), end) in &all {
            let whole = all.iter().filter(|(row, _)| row.0 > *tick).map(|(row, _)| row.clone());
            assert!(read(&mut session, &tick.to_string(), max_bytes) == bounded(whole, max_bytes as usize));
            for n in [*first, first + 1, end - 1, *end].into_iter().filter(|n| *n > 0) {
                let is_after = |row: &Row, end: i32| row.0 > *tick || (row.0 == *tick && end > n);
                let rest = all.iter().filter(|(row, end)| is_after(row, *end)).map(|(row, _)| row.clone());
                let found = read(&mut session, &format!("{tick}-{n}"), max_bytes);
                assert!(found == bounded(rest, max_bytes as usize), "after {tick}-{n}, {max_bytes} bytes");
            }
        }
    }
}
