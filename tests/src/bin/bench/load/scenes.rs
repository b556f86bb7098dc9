//! What is measured of the proxy alone, one function for each part.

use std::time::Instant;

use tidings_tests::process::MemoryWatch;
use tidings_tests::{Database, until};

use super::crowd::{Ask, Crowd, stamp};
use super::{HALL, Pace, Scale, Series, Server, Tidings, each, names, open, same, series};
use crate::report::{Report, Target};

fn micros(run: &Series) -> f64 {
    run.cpu * 1e6 / run.arrivals as f64
}

/// A tenth of the clients read nothing: the effect on the others and on memory.
pub fn stalled(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let clients = scale.of(10_000);
    let tenth = clients / 10;
    let mut p99 = Vec::new();
    for stall in [false, true] {
        // Long heartbeats: the stalled clients stay until their queues are full.
        let server = Tidings::start(database, &["--heartbeat", "1h"]);
        let mut asks = same(&server, HALL, tenth);
        asks.iter_mut().for_each(|ask| ask.stalled = stall);
        let sleepers = open(&server, asks);
        let crowd = open(&server, same(&server, HALL, clients - tenth));
        let peak = MemoryWatch::start(&server.pids());
        let pace = Pace { size: 4096, ..Pace::new(10.0, scale) };
        let run = series(&server, &crowd, &[HALL.to_owned()], clients - tenth, pace);
        let label = if stall { "a tenth reads nothing" } else { "all read" };
        run.report(report, &format!("{} of {clients} clients, 10 events/s of 4 KiB", clients - tenth), label);
        let peak = peak.finish()[0] as f64 / 1024.0 / 1024.0;
        report.compare("proxy's memory at most", label, peak, "MiB", Target::None);
        let evicted = server.proxy.metric("tidings_evictions_total");
        report.compare("clients given up", label, evicted, "", Target::None);
        assert_eq!(crowd.closed(), 0, "who reads is never given up");
        drop(sleepers);
        p99.push(run.times.quantile(0.99));
    }
    report.add("p99 of the rest, with ÷ without a stalled tenth", p99[1] / p99[0], "", Target::None);
}

/// Thousands reconnect at once with the id of their last event.
pub fn storm(database: &Database<'_>, scale: Scale, report: &mut Report) {
    const MISSED: usize = 20;
    let clients = scale.of(10_000);
    let server = Tidings::start(database, &[]);
    let topics = names("storm", clients / 10);
    let position: String = database.session().one("SELECT tidings.position()");
    let mut publish = server.publisher();
    let all: Vec<&str> = topics.iter().map(String::as_str).collect();
    let received = server.proxy.metric("tidings_events_received_total") as usize;
    for _ in 0..MISSED {
        publish(&all, &stamp(100));
    }
    until("the proxy has them", || {
        server.proxy.metric("tidings_events_received_total") as usize == received + MISSED * topics.len()
    });
    // A position as in an event: that of a client that had everything up to the tick before the last one.
    let tick = position.split(':').next().unwrap_or_default().to_owned();
    let asks = (0..clients)
        .map(|i| Ask { last_event_id: Some(tick.clone()), ..Ask::live(server.path(&topics[i % topics.len()])) });
    let start = Instant::now();
    let crowd = Crowd::start(server.address(), asks.collect(), 1000);
    let goal = (MISSED * clients) as u64;
    until("all have caught up", || crowd.arrivals() >= goal);
    report.add(
        format!("{clients} clients resume, {MISSED} events each: all caught up"),
        start.elapsed().as_secs_f64(),
        "s",
        // Rounds with 0.1.1 took 0.54 to 0.68 s.
        Target::AtMost(0.7),
    );
    assert_eq!(crowd.arrivals(), goal);
    let metrics = server.proxy.metrics();
    let by = |source: &str| metrics[&format!("tidings_resumes_total{{source=\"{source}\"}}")];
    report.add("… served from memory", by("memory"), "clients", Target::AtLeast(clients as f64));
    report.add("… served from the log", by("log") + metrics["tidings_log_events_total"], "", Target::AtMost(0.0));
}

/// What an event costs, for any number of subscribed topics.
pub fn growth(database: &Database<'_>, scale: Scale, report: &mut Report) {
    /// As many names as fit into a request of 64 KiB.
    const TOPICS_OF_A_STREAM: usize = 4000;
    /// Events per second: enough that the relay gathers them into ticks in every round. Near 1,000 it does so in some
    /// rounds, and in others it cuts a tick for each event, which costs twice as much and has nothing to do with
    /// topics.
    const RATE: u32 = 2000;
    const SERIES: usize = 5;
    let mut costs = Vec::new();
    for count in [1, 1000, scale.of(1_000_000)] {
        let server = Tidings::start(database, &["--max-topics", "5000", "--max-header-bytes", "128KiB"]);
        let topics: Vec<String> = (0..count).map(|i| format!("t{i:x}")).collect();
        let asks = topics.chunks(TOPICS_OF_A_STREAM).map(|chunk| Ask::live(server.path(&chunk.join("&topic="))));
        let _background = open(&server, asks.collect());
        let one = ["one".to_owned()];
        let crowd = open(&server, each(&server, &one));
        // The report of open topics is not measured here.
        let open = "SELECT count(DISTINCT topic) FROM tidings.open_topics";
        until("the topics are reported", || database.session().one::<i64>(open) as usize >= count);
        let who = format!("{count} topics followed");
        // Another process may have taken one of the processors during a series.
        let mut cost = [0; SERIES].map(|_| {
            let run = series(&server, &crowd, &one, 1, Pace::new(RATE.into(), scale));
            report.compare("CPU of an event", &who, micros(&run), "µs", Target::None);
            run.report(report, &format!("{RATE} events/s"), &who);
            micros(&run)
        });
        cost.sort_by(f64::total_cmp);
        costs.push(cost[SERIES / 2]);
    }
    report.add("CPU of an event, most topics ÷ one", costs[2] / costs[0], "", Target::AtMost(1.5));
}

/// One client among thousands that are idle.
pub fn quiet(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let clients = scale.of(10_000);
    let server = Tidings::start(database, &[]);
    let _idle = open(&server, each(&server, &names("quiet", clients)));
    let one = ["one".to_owned()];
    let crowd = open(&server, each(&server, &one));
    let run = series(&server, &crowd, &one, 1, Pace::new(100.0, scale));
    let label = format!("100 events/s to one, {clients} idle beside it");
    report.add(format!("p50, {label}"), run.times.quantile(0.5), "ms", Target::None);
    report.add(format!("p99, {label}"), run.times.quantile(0.99), "ms", Target::AtMost(5.0));
}

/// A small topic beside one with thousands of subscribers.
pub fn neighbours(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let clients = scale.of(9_000);
    let server = Tidings::start(database, &[]);
    let hall = open(&server, same(&server, HALL, clients));
    let small = ["small".to_owned()];
    let crowd = open(&server, each(&server, &small));
    for rate in [0.0, 5.0] {
        hall.forget();
        let run = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut publish = server.publisher();
                let pace = Pace::new(rate, scale);
                pace.run(|_| publish(&[HALL], &stamp(pace.size)));
            });
            series(&server, &crowd, &small, 1, Pace::new(100.0, scale))
        });
        let beside = if rate > 0.0 { format!("{rate} events/s to {clients}") } else { "nothing".to_owned() };
        run.report(report, "a topic of one", &format!("beside {beside}"));
        if rate > 0.0 {
            let label = format!("a topic of one beside {beside}: p99");
            report.add(label, run.times.quantile(0.99), "ms", Target::AtMost(5.0));
            let times = hall.times();
            report.add(format!("p99 of the {clients}"), times.quantile(0.99), "ms", Target::None);
        }
    }
}
