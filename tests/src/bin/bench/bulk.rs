//! One statement that changes many rows: its time, the memory that it takes, and what it writes to the log and the WAL.

use std::io::{Read, Write};
use std::time::Instant;

use tidings_tests::process::MemoryWatch;
use tidings_tests::{Database, Session};

use crate::report::{Report, Target};
use crate::schema::{self, Rows, Way};
use crate::{Effort, overhead};

const MIB: f64 = 1024.0 * 1024.0;

/// The compared ways. pg_notify is left out, because it would need a larger queue for 200,000 notifications.
const WAYS: [Way; 3] = [Way::None, Way::Tidings, Way::Log];

/// What one statement took.
#[derive(Clone, Copy, Debug)]
struct Cost {
    seconds: f64,
    wal: f64,
    log: f64,
    backend: f64,
    relay: f64,
}

/// Measures the UPDATE and the COPY, of narrow and of wide rows.
pub fn measure(database: &Database<'_>, effort: Effort, report: &mut Report) {
    for rows in Rows::ALL {
        update(database, rows, effort, report);
        copy(database, rows, effort, report);
    }
}

fn update(database: &Database<'_>, rows: Rows, effort: Effort, report: &mut Report) {
    let what = format!("UPDATE of {} {}", updated(rows), rows.name());
    println!("==> {what}");
    let costs = rounds(database, rows, effort.rounds * 3, |session, table| fill(session, rows, table), run_update);
    for costs in &costs {
        tell(report, &what, costs);
        let extra = |of: usize| costs[of].wal - costs[0].wal;
        report.add(format!("{what}, log: Tidings"), costs[1].log / MIB, "MiB", Target::None);
        report.add(format!("{what}, log: one row an event"), costs[2].log / MIB, "MiB", Target::None);
        report.add(format!("{what}, log ÷ one row an event"), costs[1].log / costs[2].log, "", Target::AtMost(0.2));
        report.add(format!("{what}, WAL beyond its own: Tidings"), extra(1) / MIB, "MiB", Target::None);
        report.add(format!("{what}, WAL beyond its own: one row an event"), extra(2) / MIB, "MiB", Target::None);
        report.add(format!("{what}, extra WAL ÷ one row an event"), extra(1) / extra(2), "", Target::AtMost(0.2));
    }
}

/// Rows that the UPDATE changes.
pub fn updated(rows: Rows) -> u32 {
    if rows == Rows::Narrow { 200_000 } else { 100_000 }
}

/// Rows that are copied.
pub fn copied(rows: Rows) -> u32 {
    if rows == Rows::Narrow { 1_000_000 } else { 200_000 }
}

/// Puts the rows into an empty table that the UPDATE changes, without a trigger.
pub fn fill(session: &mut Session, rows: Rows, table: &str) {
    let generate = match rows {
        // Titles that compress no better than natural text.
        Rows::Narrow => "i % 100, 'Item number ' || i || ' ' || md5(i::text), 0",
        Rows::Wide => rows.expressions(),
    };
    session.run(&format!(
        "ALTER TABLE {table} DISABLE TRIGGER USER;
         INSERT INTO {table} ({}) SELECT {generate} FROM generate_series(1, {}) i;
         ALTER TABLE {table} ENABLE TRIGGER USER; ANALYZE {table}",
        rows.columns(),
        updated(rows)
    ));
}

/// Changes every row.
pub fn run_update(session: &mut Session, table: &str) {
    session.run(&format!("UPDATE {table} SET position = position + 1"));
}

/// What is copied.
pub fn data(session: &mut Session, rows: Rows) -> Vec<u8> {
    let (expressions, count) = (rows.expressions(), copied(rows));
    let generate = format!("COPY (SELECT {expressions} FROM generate_series(1, {count}) i) TO STDOUT");
    let mut data = Vec::new();
    let mut reader = session.client().copy_out(&generate).expect("begin to generate");
    reader.read_to_end(&mut data).expect("generate");
    data
}

/// Copies it into a table.
pub fn run_copy(session: &mut Session, rows: Rows, table: &str, data: &[u8]) {
    let sql = format!("COPY {table} ({}) FROM STDIN", rows.columns());
    let mut writer = session.client().copy_in(&sql).expect("begin to copy");
    writer.write_all(data).expect("copy");
    writer.finish().expect("copy");
}

fn copy(database: &Database<'_>, rows: Rows, effort: Effort, report: &mut Report) {
    let what = format!("COPY of {} {}", copied(rows), rows.name());
    println!("==> {what}");
    let data = data(&mut database.session(), rows);
    let costs =
        rounds(database, rows, effort.rounds * 2, |_, _| (), |session, table| run_copy(session, rows, table, &data));
    for costs in &costs {
        tell(report, &what, costs);
    }
}

fn tell(report: &mut Report, what: &str, costs: &[Cost; 3]) {
    for (way, cost) in WAYS.iter().zip(costs) {
        report.add(format!("{what}, {}", way.name()), cost.seconds, "s", Target::None);
    }
    report.add(format!("{what}, Tidings ÷ no trigger"), costs[1].seconds / costs[0].seconds, "", Target::AtMost(1.25));
    report.add(format!("{what}, log table ÷ no trigger"), costs[2].seconds / costs[0].seconds, "", Target::None);
    report.add(format!("{what}, memory of the backend, no trigger"), costs[0].backend / MIB, "MiB", Target::None);
    report.add(format!("{what}, memory of the backend, Tidings"), costs[1].backend / MIB, "MiB", Target::None);
    report.add(format!("{what}, memory of the relay"), costs[1].relay / MIB, "MiB", Target::None);
}

/// Alternates the ways; returns what each took in every round.
fn rounds(
    database: &Database<'_>,
    rows: Rows,
    rounds: usize,
    prepare: impl Fn(&mut Session, &str),
    work: impl Fn(&mut Session, &str),
) -> Vec<[Cost; 3]> {
    let round = || {
        WAYS.map(|way| {
            let table = rows.table(way);
            schema::empty(database, rows, way);
            let mut session = database.session();
            prepare(&mut session, &table);
            settle(database);
            // Full-page images depend on the checkpoint, not on the way, so every round begins with one.
            session.run("CHECKPOINT");
            let (wal, log) = (overhead::wal(&mut session), log(&mut session, way));
            let watch = MemoryWatch::start(&[session.backend(), database.wait_relay()]);
            let start = Instant::now();
            work(&mut session, &table);
            let seconds = start.elapsed().as_secs_f64();
            settle(database);
            let peaks = watch.finish();
            let bytes = |n: u64| n as f64;
            Cost {
                seconds,
                wal: overhead::wal(&mut session) - wal,
                log: self::log(&mut session, way) - log,
                backend: bytes(peaks[0]),
                relay: bytes(peaks[1]),
            }
        })
    };
    (0..rounds).map(|_| round()).collect()
}

/// Waits until the relay has announced everything that is committed.
pub fn settle(database: &Database<'_>) {
    let mut session = database.session();
    let last = |session: &mut Session| session.one::<i64>("SELECT coalesce(max(tick), 0) FROM tidings.tick");
    let before = last(&mut session);
    session.publish("settled", "true");
    tidings_tests::until("the relay has caught up", || last(&mut session) > before);
}

/// The size of what the way writes in addition to the table.
fn log(session: &mut Session, way: Way) -> f64 {
    let size = match way {
        Way::Log => "SELECT pg_total_relation_size('change_log')::bigint",
        _ => "SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('tidings.log')",
    };
    session.one::<i64>(size) as f64
}
