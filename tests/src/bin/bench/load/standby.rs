//! A proxy at a hot standby on the same machine, beside one at the primary: how much later an event arrives, and what
//! the primary's writers gain when its clients are elsewhere.

use tidings_tests::cluster::Site;
use tidings_tests::{Cluster, Database, Proxy};

use super::{HALL, Pace, Scale, Server, Tidings, open, same, series};
use crate::overhead;
use crate::report::{Report, Target};
use crate::schema::{Rows, Way};

/// Clients of one topic while the writers write.
const CLIENTS: usize = 10_000;

/// Events to each of them in a second.
const RATE: f64 = 10.0;

/// Writers at the same time.
const WRITERS: u32 = 8;

/// Settings of the standby: as durable as the primary.
const SETTINGS: &[(&str, &str)] =
    &[("fsync", "on"), ("hot_standby_feedback", "on"), ("autovacuum", "off"), ("max_wal_size", "16GB")];

/// Measures latency, then the writers.
pub fn measure(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let role = database.proxy_role();
    let standby = database.cluster().standby_at(Site::default(), SETTINGS);
    database.wait_standby(&standby);
    let url = standby.url(database.name(), &role);
    for _ in 0..scale.rounds {
        let here = Tidings::start(database, &[]);
        let there = Tidings { proxy: Proxy::start(&url, &[]), database };
        let quantiles = [("the primary", &here), ("a standby", &there)].map(|(who, server)| {
            let crowd = open(server, same(server, HALL, 1));
            // Slow enough that everything is idle at each event.
            let times = series(server, &crowd, &[HALL.to_owned()], 1, Pace::new(50.0, scale));
            times.report(report, "write → client", &format!("proxy at {who}"));
            times.times.quantile(0.5)
        });
        report.add(
            "write → client, p50, a standby ÷ the primary",
            quantiles[1] / quantiles[0],
            "",
            Target::AtMost(2.0),
        );
        writers(database, [&here, &there], &standby, scale, report);
    }
}

/// The writers' transactions beside many clients, which one proxy serves and then the other.
fn writers(database: &Database<'_>, servers: [&Tidings<'_>; 2], standby: &Cluster, scale: Scale, report: &mut Report) {
    let clients = scale.of(CLIENTS);
    let tps = ["the primary", "a standby"].map(|who| {
        let server = servers[usize::from(who == "a standby")];
        let crowd = open(server, same(server, HALL, clients));
        let pace = Pace { rate: RATE, events: (RATE * f64::from(scale.seconds)) as u32, size: 100 };
        let load = std::thread::scope(|scope| {
            let mut publish = server.publisher();
            scope.spawn(move || pace.run(|_| publish(&[HALL], &super::stamp(pace.size))));
            overhead::run(database, Rows::Narrow, Way::Tidings, WRITERS, scale.seconds)
        });
        drop(crowd);
        // What one way has left to replay must not burden the other.
        database.wait_standby(standby);
        report.compare(format!("TPS, {WRITERS} writers beside {clients} clients"), who, load.tps, "/s", Target::None);
        load.tps
    });
    report.add(
        format!("TPS, clients at a standby ÷ at the primary, {clients} clients"),
        tps[1] / tps[0],
        "",
        Target::None,
    );
}
