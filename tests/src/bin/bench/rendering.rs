//! What it takes to turn a row into JSON: the record of an event compared with `to_jsonb(row)::text`.
//!
//! Rows are inserted in transactions that are rolled back and too small for an early flush, so no event is ever
//! written. Each figure is the difference between two tables that differ only in the rendering, divided by the rows:
//! - Tidings, the writer's part: a watch whose payload is the record, less a watch whose payload is a constant;
//! - Tidings, the reader's part: `tidings.decode` of a segment of the one, less that of a segment of the other;
//! - in a trigger: a plpgsql trigger that evaluates `to_jsonb(NEW)::text` and does nothing with it, less one that does
//!   nothing;
//! - in a query: `octet_length(to_jsonb(row)::text)` of rows in a table, less `count(row)`.

use std::time::Instant;

use tidings_tests::{Database, Session};

use crate::Effort;
use crate::report::{Report, Target};
use crate::schema::Rows;

/// Rows of one transaction, few enough that none of their events are written before the commit.
const BATCH: u32 = 200;

/// Transactions of one round.
const BATCHES: u32 = 250;

/// The tables, each with what its trigger does.
const TABLES: [(&str, &str); 4] = [
    ("render_record", "SELECT tidings.watch('render_record', topic => 'boards_{board_id}', payload => '\"$record\"')"),
    ("render_constant", "SELECT tidings.watch('render_constant', topic => 'boards_{board_id}', payload => '0')"),
    (
        "render_jsonb",
        "CREATE FUNCTION render_jsonb() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM to_jsonb(NEW)::text; RETURN NULL; END $$;
         CREATE TRIGGER render AFTER INSERT ON render_jsonb FOR EACH ROW EXECUTE FUNCTION render_jsonb()",
    ),
    (
        "render_nothing",
        "CREATE FUNCTION render_nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER render AFTER INSERT ON render_nothing FOR EACH ROW EXECUTE FUNCTION render_nothing()",
    ),
];

/// The statements of the last comparison.
const QUERIES: [&str; 2] = ["sum(octet_length(to_jsonb(r)::text))", "count(r)"];

/// Measures narrow and wide rows.
pub fn measure(database: &Database<'_>, effort: Effort, report: &mut Report) {
    let mut session = database.session();
    let log = "SELECT sum(pg_relation_size(relid))::bigint FROM pg_partition_tree('tidings.log')";
    for rows in Rows::ALL {
        println!("==> rendering of {}", rows.name());
        session.run(&format!(
            "CREATE TABLE render_source ({}); INSERT INTO render_source ({}) SELECT {} FROM generate_series(1, {BATCH}) i; ANALYZE render_source",
            rows.definition(), rows.columns(), rows.expressions()
        ));
        for (table, trigger) in TABLES {
            session.run(&format!("CREATE TABLE {table} (LIKE render_source); {trigger}"));
        }
        session.run("CREATE TABLE render_segment (way text, data bytea)");
        for table in [TABLES[0].0, TABLES[1].0] {
            session.run(&format!("INSERT INTO {table} SELECT * FROM render_source"));
            session.run(&format!(
                "INSERT INTO render_segment SELECT '{table}', data FROM tidings.log WHERE events = {BATCH} ORDER BY stamp DESC LIMIT 1"
            ));
        }
        let written: i64 = session.one(log);
        let name = rows.name();
        for _ in 0..effort.rounds * 3 {
            let [record, constant, jsonb, nothing] = TABLES.map(|(table, _)| insert(&mut session, table));
            let [query, count] = QUERIES.map(|query| {
                time(&mut session, &format!("SELECT {query} FROM generate_series(1, {BATCHES}), render_source r"))
            });
            let [read, skipped] = [TABLES[0].0, TABLES[1].0].map(|table| {
                // It depends on `i`, or would be evaluated once for all rows.
                let decoded = "render_segment s, tidings.decode(CASE WHEN i > 0 THEN s.data END, NULL) d";
                let sum = "SELECT sum(octet_length(d.payload))";
                time(
                    &mut session,
                    &format!("{sum} FROM generate_series(1, {BATCHES}) i, {decoded} WHERE s.way = '{table}'"),
                )
            });
            let (writer, reader) = (record - constant, read - skipped);
            let (ours, trigger, query) = (writer + reader, jsonb - nothing, query - count);
            report.add(format!("rendering of {name}: Tidings, the writer's part"), writer, "µs", Target::None);
            report.add(format!("rendering of {name}: Tidings, the reader's part"), reader, "µs", Target::None);
            report.add(format!("rendering of {name}: to_jsonb(NEW)::text in a trigger"), trigger, "µs", Target::None);
            report.add(format!("rendering of {name}: to_jsonb(row)::text in a query"), query, "µs", Target::None);
            report.add(format!("rendering of {name}: Tidings ÷ in a trigger"), ours / trigger, "", Target::AtMost(1.0));
            report.add(format!("rendering of {name}: Tidings ÷ in a query"), ours / query, "", Target::AtMost(1.0));
        }
        for (table, _) in TABLES {
            session.run(&format!("DROP TABLE {table}; DROP FUNCTION IF EXISTS {table}()"));
        }
        session.run("DROP TABLE render_source, render_segment");
        assert_eq!(session.one::<i64>(log), written, "segments were written");
    }
}

/// Inserts and rolls back; returns the microseconds of a row.
fn insert(session: &mut Session, table: &str) -> f64 {
    session.run(&format!("TRUNCATE {table}"));
    time(
        session,
        &format!(
            "DO $$ BEGIN
               FOR batch IN 1..{BATCHES} LOOP
                 INSERT INTO {table} SELECT * FROM render_source;
                 ROLLBACK;
               END LOOP;
             END $$"
        ),
    )
}

fn time(session: &mut Session, sql: &str) -> f64 {
    let start = Instant::now();
    session.run(sql);
    start.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH * BATCHES)
}
