//! What a watch costs the writers: transactions per second of one-row inserts, and the WAL of each.

use std::process::Command;

use tidings_tests::cluster::{Installation, SUPERUSER};
use tidings_tests::process::fresh_path;
use tidings_tests::{Database, Session};

use crate::report::{Report, Target};
use crate::schema::{self, Rows, Way};
use crate::{Effort, slow_commit};

/// What is measured, and how many clients write at once. Wide rows only with the disk's own commits, because a slow
/// commit hides the same costs for them too.
const SERIES: [(Rows, bool, &[u32]); 3] =
    [(Rows::Narrow, false, &[1, 8, 32, 64]), (Rows::Narrow, true, &[1, 8, 32]), (Rows::Wide, false, &[1, 8, 32])];

/// Measures all ways, with the disk's own commit and with a slow one.
pub fn measure(database: &Database<'_>, effort: Effort, report: &mut Report) {
    for (rows, slow, counts) in SERIES {
        slow_commit(database, slow);
        for &clients in counts {
            let commits = if slow { "commits of 1 ms more" } else { "the disk's own commits" };
            println!("==> inserts of single {}, {clients} clients, {commits}", rows.name());
            let label = match (rows, slow) {
                (Rows::Narrow, false) => "",
                (Rows::Narrow, true) => ", slow commit",
                (Rows::Wide, _) => ", wide rows",
            };
            let rounds = if slow { effort.rounds } else { effort.more_rounds() };
            for round in 0..rounds {
                let mut tps = [0.0; Way::ALL.len()];
                // The order rotates, so that no way always comes first.
                for i in 0..tps.len() {
                    let i = (i + round) % tps.len();
                    let (way, of) = (Way::ALL[i].name(), format!("{clients} clients{label}"));
                    let load = run(database, rows, Way::ALL[i], clients, effort.seconds);
                    report.compare(format!("TPS, {of}"), way, load.tps, "/s", Target::None);
                    report.compare(format!("WAL of an insert, {of}"), way, load.wal, "bytes", Target::None);
                    tps[i] = load.tps;
                }
                let target = match (rows, clients, slow) {
                    (Rows::Narrow, ..=32, false) => Target::AtLeast(0.9),
                    (Rows::Wide, ..=32, false) => Target::AtLeast(0.85),
                    _ => Target::None,
                };
                report.add(format!("Tidings ÷ no trigger, {clients} clients{label}"), tps[1] / tps[0], "", target);
                let target = match (rows, clients, slow) {
                    (Rows::Narrow, 32, false) => Target::AtLeast(4.5),
                    (Rows::Narrow, 32, true) => Target::AtLeast(26.0),
                    _ => Target::None,
                };
                report.add(format!("Tidings ÷ pg_notify, {clients} clients{label}"), tps[1] / tps[2], "", target);
                let ratio = tps[3] / tps[0];
                report.add(format!("log table ÷ no trigger, {clients} clients{label}"), ratio, "", Target::None);
            }
        }
    }
    slow_commit(database, false);
}

/// The result of one round of writing.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Transactions per second.
    pub tps: f64,
    /// Bytes of WAL for each of them.
    pub wal: f64,
}

/// One round of pgbench into the emptied table of a way.
pub fn run(database: &Database<'_>, rows: Rows, way: Way, clients: u32, seconds: u32) -> Load {
    schema::empty(database, rows, way);
    let mut session = database.session();
    // Full-page images depend on the checkpoint, not on the way, so every round begins with one.
    session.run("CHECKPOINT");
    let before = wal(&mut session);
    let output = pgbench(database, rows, way, 1000)
        .args(["-c", &clients.to_string(), "-T", &seconds.to_string()])
        .output()
        .expect("run pgbench");
    let written = wal(&mut session) - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = |name: &str| {
        let figure = text.lines().find_map(|line| line.strip_prefix(name)?.split(' ').next()?.parse::<f64>().ok());
        figure.unwrap_or_else(|| panic!("pgbench: {text}\n{}", String::from_utf8_lossy(&output.stderr)))
    };
    let transactions = figure("number of transactions actually processed: ");
    Load { tps: figure("tps = "), wal: written / transactions }
}

/// Bytes of WAL written so far.
pub fn wal(session: &mut Session) -> f64 {
    session.one::<i64>("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint") as f64
}

/// A pgbench that inserts rows into the table of a way, on the boards 1 to `boards`.
pub fn pgbench(database: &Database<'_>, rows: Rows, way: Way, boards: u32) -> Command {
    let script = fresh_path("pgbench.sql");
    let statement = format!(
        "\\set board random(1, {boards})\nINSERT INTO {} ({}) VALUES ({});\n",
        rows.table(way),
        rows.columns(),
        rows.literals()
    );
    std::fs::write(&script, statement).expect("write pgbench's script");
    let cluster = database.cluster();
    let mut command = Command::new(Installation::get().bin.join("pgbench"));
    command.args(["-n", "-M", "prepared", "-j", "2", "-U", SUPERUSER, "-h"]).arg(cluster.socket_dir());
    command.args(["-p", &cluster.port().to_string(), "-f"]).arg(script).arg(database.name());
    command
}
