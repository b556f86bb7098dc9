//! One statement that changes many rows: its time, the memory it takes, and what it leaves in the log and the WAL.

use std::io::Write;
use std::time::Instant;

use tidings_tests::process::MemoryWatch;
use tidings_tests::{Database, Session};

use crate::report::{Report, Target};
use crate::schema::{self, Way};
use crate::{Effort, median, overhead};

/// Rows of the UPDATE.
const UPDATED: u32 = 200_000;

/// Rows of the COPY.
const COPIED: u32 = 1_000_000;

const MIB: f64 = 1024.0 * 1024.0;

/// The compared ways: pg_notify is left out, it would need a queue of its own for 200,000 notifications.
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

/// Measures the UPDATE and the COPY.
pub fn measure(database: &Database<'_>, effort: Effort, report: &mut Report) {
    println!("==> UPDATE of {UPDATED} rows");
    let update = rounds(
        database,
        effort.rounds,
        |session, way| {
            session.run(&format!(
            "TRUNCATE {0}; ALTER TABLE {0} DISABLE TRIGGER USER;
             INSERT INTO {0} (board_id, title) SELECT i % 100, 'Item number ' || i || ' ' || md5(i::text) FROM generate_series(1, {UPDATED}) i;
             ALTER TABLE {0} ENABLE TRIGGER USER; ANALYZE {0}",
            way.table()
        ));
        },
        |session, way| session.run(&format!("UPDATE {} SET position = position + 1", way.table())),
    );
    tell(report, &format!("UPDATE of {UPDATED} rows"), &update);
    let extra = |of: usize, figure: fn(&Cost) -> f64| figure(&update[of]) - figure(&update[0]);
    report.add("log of the UPDATE: Tidings", update[1].log / MIB, "MiB", Target::None);
    report.add("log of the UPDATE: one row an event", update[2].log / MIB, "MiB", Target::None);
    report.add("log ÷ one row an event", update[1].log / update[2].log, "", Target::AtMost(0.2));
    report.add("WAL of the UPDATE beyond its own: Tidings", extra(1, |cost| cost.wal) / MIB, "MiB", Target::None);
    report.add(
        "WAL of the UPDATE beyond its own: one row an event",
        extra(2, |cost| cost.wal) / MIB,
        "MiB",
        Target::None,
    );
    report.add(
        "extra WAL ÷ one row an event",
        extra(1, |cost| cost.wal) / extra(2, |cost| cost.wal),
        "",
        Target::AtMost(0.2),
    );

    println!("==> COPY of {COPIED} rows");
    let mut data = Vec::new();
    for i in 0..COPIED {
        writeln!(data, "{}\tItem number {i}\t{}", i % 1000, i % 17).expect("write to memory");
    }
    let copy = rounds(
        database,
        effort.rounds.min(3),
        |session, way| session.run(&format!("TRUNCATE {}", way.table())),
        |session, way| {
            let sql = format!("COPY {} (board_id, title, position) FROM STDIN", way.table());
            let mut writer = session.client().copy_in(&sql).expect("begin to copy");
            writer.write_all(&data).expect("copy");
            writer.finish().expect("copy");
        },
    );
    tell(report, &format!("COPY of {COPIED} rows"), &copy);
}

fn tell(report: &mut Report, what: &str, costs: &[Cost; 3]) {
    for (way, cost) in WAYS.iter().zip(costs) {
        report.add(format!("{what}, {}", way.name()), cost.seconds, "s", Target::None);
    }
    report.add(format!("{what}, Tidings ÷ no trigger"), costs[1].seconds / costs[0].seconds, "", Target::AtMost(1.5));
    report.add(format!("{what}, log table ÷ no trigger"), costs[2].seconds / costs[0].seconds, "", Target::None);
    report.add(format!("{what}, memory of the backend, no trigger"), costs[0].backend / MIB, "MiB", Target::None);
    report.add(format!("{what}, memory of the backend, Tidings"), costs[1].backend / MIB, "MiB", Target::None);
    report.add(format!("{what}, memory of the relay"), costs[1].relay / MIB, "MiB", Target::None);
}

/// Alternates the ways; gives the median of each figure.
fn rounds(
    database: &Database<'_>,
    rounds: usize,
    prepare: impl Fn(&mut Session, Way),
    work: impl Fn(&mut Session, Way),
) -> [Cost; 3] {
    let mut costs = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for (way, costs) in WAYS.into_iter().zip(&mut costs) {
            schema::empty(database, way);
            let mut session = database.session();
            prepare(&mut session, way);
            settle(database);
            // Full-page images belong to the checkpoint, not to the way: every round begins with the same.
            session.run("CHECKPOINT");
            let (wal, log) = (overhead::wal(&mut session), log(&mut session, way));
            let watch = MemoryWatch::start(&[session.backend(), database.wait_relay()]);
            let start = Instant::now();
            work(&mut session, way);
            let seconds = start.elapsed().as_secs_f64();
            settle(database);
            let peaks = watch.finish();
            let bytes = |n: u64| n as f64;
            costs.push(Cost {
                seconds,
                wal: overhead::wal(&mut session) - wal,
                log: self::log(&mut session, way) - log,
                backend: bytes(peaks[0]),
                relay: bytes(peaks[1]),
            });
        }
    }
    costs.map(|costs| {
        let of = |figure: fn(&Cost) -> f64| median(&mut costs.iter().map(figure).collect::<Vec<_>>());
        Cost {
            seconds: of(|cost| cost.seconds),
            wal: of(|cost| cost.wal),
            log: of(|cost| cost.log),
            backend: of(|cost| cost.backend),
            relay: of(|cost| cost.relay),
        }
    })
}

/// Waits until the relay has announced all that is committed.
fn settle(database: &Database<'_>) {
    let mut session = database.session();
    let last = |session: &mut Session| session.one::<i64>("SELECT coalesce(max(tick), 0) FROM tidings.tick");
    let before = last(&mut session);
    session.publish("settled", "true");
    tidings_tests::until("the relay has caught up", || last(&mut session) > before);
}

/// The size of what the way writes beside the table.
fn log(session: &mut Session, way: Way) -> f64 {
    let size = match way {
        Way::Log => "SELECT pg_total_relation_size('change_log')::bigint",
        _ => "SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('tidings.log')",
    };
    session.one::<i64>(size) as f64
}
