//! The proxy with more of something else, one function for each part: watched tables, the retained log, and proxies on
//! one database.

use std::time::Instant;

use tidings_tests::{Database, until};

use super::crowd::{Ask, Crowd, stamp};
use super::{Pace, Scale, Server, Tidings, each, open, series};
use crate::report::{Report, Target};
use crate::schema::{Rows, Way};
use crate::{bulk, overhead};

/// Writers at once.
const WRITERS: u32 = 8;

/// Sessions that fill the log.
const FILLERS: usize = 4;

/// What a client that reconnects has missed.
const MISSED: usize = 1000;

/// The writers of one table, while the number of other watched tables grows.
pub fn watches(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let mut there = 0;
    let mut session = database.session();
    session.run("DROP SCHEMA IF EXISTS watched CASCADE; CREATE SCHEMA watched");
    for count in [1, 100, 1000] {
        for table in there + 1..count {
            session.run(&format!(
                "CREATE TABLE watched.t{table} (id bigint);
                 SELECT tidings.watch('watched.t{table}', topic => 'watched_{{id}}')"
            ));
        }
        there = count - 1;
        let load = overhead::run(database, Rows::Narrow, Way::Tidings, WRITERS, scale.seconds);
        let what = format!("TPS of inserts into one of the watched tables, {WRITERS} clients");
        report.compare(what, &format!("Tidings, {count} watched"), load.tps, "/s", Target::None);
    }
    session.run("DROP SCHEMA watched CASCADE");
}

/// A client that stays, and one that reconnects, while the number of retained rows grows. The log only grows, so all
/// rounds at one size come before the next size.
pub fn retained(database: &Database<'_>, scale: Scale, report: &mut Report) {
    // A new database starts with an empty log.
    let fresh = database.cluster().database();
    let mut there = 0;
    for count in [1000, 100_000, 10_000_000].map(|count| scale.of(count)) {
        let start = Instant::now();
        fill(&fresh, count - there, "'log_' || n % 1000");
        bulk::settle(&fresh);
        println!("  {} transactions more in {:.0?}", count - there, start.elapsed());
        there = count;
        let who = format!("Tidings, {count} rows retained");
        let log = |sql: &str| fresh.session().one::<i64>(sql) as f64;
        report.compare("rows in the log", &who, log("SELECT count(*) FROM tidings.log"), "", Target::None);
        report.compare("ticks", &who, log("SELECT count(*) FROM tidings.tick"), "", Target::None);
        let size = "SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('tidings.log')";
        report.compare("size of the log", &who, log(size) / 1024.0 / 1024.0, "MiB", Target::None);
        for _ in 0..scale.rounds {
            with_retained(&fresh, &who, scale, report);
        }
    }
}

fn with_retained(database: &Database<'_>, who: &str, scale: Scale, report: &mut Report) {
    let server = Tidings::start(database, &["--history-bytes", "1KiB"]);
    let position: String = database.session().one("SELECT tidings.position()");
    server.publisher()(&["back"; MISSED], &stamp(100));
    let ask = Ask { last_event_id: Some(position), ..Ask::live(server.path("back")) };
    let start = Instant::now();
    let crowd = open(&server, vec![ask]);
    until("the client has caught up", || crowd.arrivals() >= MISSED as u64);
    let took = start.elapsed().as_secs_f64() * 1000.0;
    report.compare(format!("a client catches up with {MISSED} events from the log"), who, took, "ms", Target::None);
    drop(crowd);
    let one = ["one".to_owned()];
    let crowd = open(&server, each(&server, &one));
    series(&server, &crowd, &one, 1, Pace::new(200.0, scale)).report(report, "write → client, 200 events/s", who);
}

/// Adds rows to the log as writers do, each in its own transaction, but without waiting for the disk. Their topic is an
/// expression of SQL.
pub fn fill(database: &Database<'_>, rows: usize, topic: &str) {
    std::thread::scope(|scope| {
        for writer in 0..FILLERS {
            scope.spawn(move || {
                let mut session = database.session();
                session.run("SET synchronous_commit = off");
                session.run(&format!(
                    "DO $$ BEGIN
                       FOR n IN 1 .. {} LOOP
                         PERFORM tidings.publish_text({topic}, 'an event that stays', 'changed');
                         COMMIT;
                       END LOOP;
                     END $$",
                    rows / FILLERS + usize::from(writer < rows % FILLERS)
                ));
            });
        }
    });
}

/// Several proxies that follow one database.
pub fn proxies(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let one = ["one".to_owned()];
    for count in [1, 2, 4] {
        let servers: Vec<_> = (0..count).map(|_| Tidings::start(database, &[])).collect();
        let crowds: Vec<_> = servers.iter().map(|server| open(server, each(server, &one))).collect();
        crowds.iter().for_each(Crowd::forget);
        let relay = database.wait_relay();
        let cpu = || tidings_tests::process::cpu_seconds(relay).expect("the relay runs");
        let before = cpu();
        let pace = Pace::new(500.0, scale);
        let run = series(&servers[0], &crowds[0], &one, 1, pace);
        until("every proxy has delivered", || crowds.iter().all(|crowd| crowd.arrivals() >= u64::from(pace.events)));
        let who = format!("Tidings, proxies: {count}");
        run.report(report, "write → client of one proxy, 500 events/s", &who);
        let cost = (cpu() - before) * 1e6 / f64::from(pace.events);
        report.compare("CPU of the relay for an event", &who, cost, "µs", Target::None);
    }
}
