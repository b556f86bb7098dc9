//! What logical decoding costs writers: wal2json in the server, `pg_recvlogical` as its consumer, no trigger.
//!
//! It needs `wal_level = logical`, which all writers pay for, so it has a separate cluster; the other comparisons use
//! the usual one.

use std::process::Stdio;
use std::time::Instant;

use tidings_tests::process::{Process, Signal};
use tidings_tests::{Cluster, Database, Session, until};

use crate::machine::debian_version;
use crate::overhead;
use crate::report::{Report, Target};
use crate::schema::{self, Rows, Way};
use crate::{Effort, SETTINGS, bulk};

const SLOT: &str = "bench";
const NAME: &str = "wal2json, pg_recvlogical";

/// Measures one-row inserts without a trigger, with a watch, and with a consumer of the log; then statements of many
/// rows.
pub fn measure(database: &Database<'_>, effort: Effort, report: &mut Report) {
    let cluster = Cluster::start(&[SETTINGS, &[("wal_level", "logical")]].concat());
    let logical = cluster.database();
    schema::create(&logical);
    trust_plugin(&logical);
    let create = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'wal2json')");
    if let Err(error) = logical.session().client().query(&create, &[]) {
        let why = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
        return report.leave_out("wal2json", &why);
    }
    logical.session().run(&format!("SELECT pg_drop_replication_slot('{SLOT}')"));
    if let Some(version) = debian_version("postgresql-15-wal2json") {
        report.version(&format!("wal2json {version}"));
    }
    let run =
        |database: &Database<'_>, way, clients| overhead::run(database, Rows::Narrow, way, clients, effort.seconds);
    for clients in [1, 8, 32] {
        println!("==> logical decoding, {clients} clients");
        for round in 0..effort.rounds {
            let mut tps = [0.0; 3];
            for turn in 0..tps.len() {
                let turn = (turn + round) % tps.len();
                let (name, load) = match turn {
                    0 => ("no trigger", run(database, Way::None, clients)),
                    1 => ("Tidings", run(database, Way::Tidings, clients)),
                    _ => {
                        let consumer = Consumer::start(&logical);
                        let load = run(&logical, Way::None, clients);
                        let lag = consumer.catch_up();
                        report.add(
                            format!("wal2json, {clients} clients: behind after the last commit"),
                            lag,
                            "s",
                            Target::None,
                        );
                        (NAME, load)
                    }
                };
                report.compare(format!("TPS, {clients} clients"), name, load.tps, "/s", Target::None);
                report.compare(format!("WAL of an insert, {clients} clients"), name, load.wal, "bytes", Target::None);
                tps[turn] = load.tps;
            }
            report.add(format!("Tidings ÷ no trigger, {clients} clients"), tps[1] / tps[0], "", Target::None);
            report.add(format!("wal2json ÷ no trigger, {clients} clients"), tps[2] / tps[0], "", Target::None);
        }
    }
    let rows = Rows::Narrow;
    many(
        &logical,
        &format!("UPDATE of {} rows", bulk::updated(rows)),
        effort,
        report,
        |session, table| bulk::fill(session, rows, table),
        bulk::run_update,
    );
    let data = bulk::data(&mut logical.session(), rows);
    many(
        &logical,
        &format!("COPY of {} rows", bulk::copied(rows)),
        effort,
        report,
        |_, _| (),
        |session, table| bulk::run_copy(session, rows, table, &data),
    );
}

/// One statement that changes many rows, without a consumer and with one; both with `wal_level = logical`.
fn many(
    database: &Database<'_>,
    what: &str,
    effort: Effort,
    report: &mut Report,
    prepare: impl Fn(&mut Session, &str),
    work: impl Fn(&mut Session, &str),
) {
    println!("==> {what}, logical decoding");
    let table = Rows::Narrow.table(Way::None);
    for round in 0..effort.rounds {
        let mut seconds = [0.0; 2];
        for turn in 0..seconds.len() {
            let turn = (turn + round) % seconds.len();
            schema::empty(database, Rows::Narrow, Way::None);
            let mut session = database.session();
            prepare(&mut session, &table);
            session.run("CHECKPOINT");
            // It begins after what was prepared.
            let consumer = (turn == 1).then(|| Consumer::start(database));
            let start = Instant::now();
            work(&mut session, &table);
            seconds[turn] = start.elapsed().as_secs_f64();
            if let Some(consumer) = consumer {
                report.add(
                    format!("{what}, wal2json: behind after the commit"),
                    consumer.catch_up(),
                    "s",
                    Target::None,
                );
            }
        }
        report.add(format!("{what}, wal_level = logical, no consumer"), seconds[0], "s", Target::None);
        report.add(format!("{what}, {NAME}"), seconds[1], "s", Target::None);
        report.add(format!("{what}, wal2json ÷ no consumer"), seconds[1] / seconds[0], "", Target::None);
    }
}

/// Newer minor versions load an output plugin of other authors only with this setting; older ones don't know it.
fn trust_plugin(database: &Database<'_>) {
    const NAMED: &str =
        "SELECT coalesce(bool_and(setting ~ 'wal2json'), true) FROM pg_settings WHERE name = 'output_plugin_libraries'";
    if !database.session().one::<bool>(NAMED) {
        database.session().run("ALTER SYSTEM SET output_plugin_libraries = pgoutput, wal2json");
        database.session().run("SELECT pg_reload_conf()");
        until("the setting is in force", || database.session().one(NAMED));
    }
}

/// A running `pg_recvlogical` that drops what it reads.
struct Consumer<'a> {
    database: &'a Database<'a>,
    process: Process,
}

impl<'a> Consumer<'a> {
    fn start(database: &'a Database<'a>) -> Self {
        let mut session = database.session();
        session.run(&format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'wal2json')"));
        let mut command = database.cluster().tool("pg_recvlogical");
        command.args(["--start", "--slot", SLOT, "--dbname", database.name(), "--file", "/dev/null"]);
        // It reports its position at every interval; a second is the shortest.
        command.args(["--option", "format-version=2", "--fsync-interval", "0", "--status-interval", "1"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::spawn(&mut command, Signal::SIGTERM).expect("start pg_recvlogical");
        until("the consumer reads", || {
            session.one("SELECT count(*) > 0 FROM pg_replication_slots WHERE slot_name = 'bench' AND active")
        });
        Self { database, process }
    }

    /// Waits until the consumer has been sent everything, and ends it; returns how many seconds that took.
    fn catch_up(self) -> f64 {
        let mut session = self.database.session();
        let end: String = session.one("SELECT pg_current_wal_insert_lsn()::text");
        let start = Instant::now();
        let sent = format!("SELECT coalesce(bool_or(sent_lsn >= '{end}'), false) FROM pg_stat_replication");
        until("the consumer has caught up", || session.one::<bool>(&sent));
        let lag = start.elapsed().as_secs_f64();
        drop(self.process);
        until("the slot is free", || session.one("SELECT count(*) = 0 FROM pg_replication_slots WHERE active"));
        session.run(&format!("SELECT pg_drop_replication_slot('{SLOT}')"));
        lag
    }
}
