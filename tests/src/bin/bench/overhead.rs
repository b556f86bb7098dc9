//! What a watch costs the writers: transactions per second of one-row inserts.

use std::process::Command;

use tidings_tests::Database;
use tidings_tests::cluster::{Installation, SUPERUSER};
use tidings_tests::process::fresh_path;

use crate::report::{Report, Target};
use crate::schema::{self, Rows, Way};
use crate::{Effort, median, slow_commit};

/// Measures all ways with 1, 8 and 32 clients, with the disk's own commit and with a slow one. Wide rows only with the disk's own:
/// what a slow commit hides, it hides of them too.
pub fn measure(database: &Database<'_>, effort: Effort, report: &mut Report) {
    for (rows, slow) in [(Rows::Narrow, false), (Rows::Narrow, true), (Rows::Wide, false)] {
        slow_commit(database, slow);
        for clients in [1, 8, 32] {
            let commits = if slow { "commits of 1 ms more" } else { "the disk's own commits" };
            println!("==> inserts of single {}, {clients} clients, {commits}", rows.name());
            let mut tps = [const { Vec::new() }; 4];
            for round in 0..effort.rounds {
                // The order turns, so nobody always comes first.
                for i in 0..Way::ALL.len() {
                    let i = (i + round) % Way::ALL.len();
                    schema::empty(database, rows, Way::ALL[i]);
                    tps[i].push(run(database, rows, Way::ALL[i], clients, effort.seconds));
                }
            }
            let tps = tps.map(|mut values| median(&mut values));
            let label = match (rows, slow) {
                (Rows::Narrow, false) => "",
                (Rows::Narrow, true) => ", slow commit",
                (Rows::Wide, _) => ", wide rows",
            };
            for (way, tps_of_way) in Way::ALL.iter().zip(tps) {
                report.add(format!("TPS, {}, {clients} clients{label}", way.name()), tps_of_way, "/s", Target::None);
            }
            let target = if slow { Target::None } else { Target::AtLeast(0.8) };
            report.add(format!("Tidings ÷ no trigger, {clients} clients{label}"), tps[1] / tps[0], "", target);
            let target = match (rows, clients, slow) {
                (Rows::Narrow, 32, false) => Target::AtLeast(3.0),
                (Rows::Narrow, 32, true) => Target::AtLeast(15.0),
                _ => Target::None,
            };
            report.add(format!("Tidings ÷ pg_notify, {clients} clients{label}"), tps[1] / tps[2], "", target);
            report.add(format!("log table ÷ no trigger, {clients} clients{label}"), tps[3] / tps[0], "", Target::None);
        }
    }
    slow_commit(database, false);
}

/// One round of pgbench; gives its transactions per second.
fn run(database: &Database<'_>, rows: Rows, way: Way, clients: u32, seconds: u32) -> f64 {
    let output = pgbench(database, rows, way, 1000)
        .args(["-c", &clients.to_string(), "-T", &seconds.to_string()])
        .output()
        .expect("run pgbench");
    let text = String::from_utf8_lossy(&output.stdout);
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.unwrap_or_else(|| panic!("pgbench: {text}\n{}", String::from_utf8_lossy(&output.stderr)))
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
