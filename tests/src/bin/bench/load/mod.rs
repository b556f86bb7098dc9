//! The proxy under load: thousands of streams from one reader, and a real database.
//!
//! CPU and memory are those of the proxy alone, from `/proc`. A time starts when the writer puts it into the event,
//! before its transaction begins, and ends when the client reads it.

mod against;
mod catchup;
mod crowd;
mod histogram;
mod more;
mod nchan;
mod node;
mod pushpin;
mod rails;
mod rivals;
mod scenes;
mod secure;
mod snapshot;
mod standby;
mod ticks;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tidings_tests::process::{cpu_seconds, memory};
use tidings_tests::{Database, Proxy, until};

use crate::report::{Report, Target};
use crowd::{Ask, Crowd, stamp};
use histogram::Histogram;

/// The parts, by name.
pub const PARTS: &[&str] = &[
    "clients",
    "snapshot",
    "idle",
    "secure",
    "fanout",
    "stalled",
    "storm",
    "growth",
    "watches",
    "retained",
    "proxies",
    "quiet",
    "ticks",
    "neighbours",
    "standby",
    "catchup",
];

/// The topic with thousands of subscribers.
const HALL: &str = "hall";

/// Measures one part.
pub fn measure(part: &str, database: &Database<'_>, scale: Scale, report: &mut Report) {
    println!("==> {part}");
    let alone = match part {
        "clients" => return against::clients(database, scale, report),
        "snapshot" => return snapshot::measure(database, scale, report),
        "standby" => return standby::measure(database, scale, report),
        "catchup" => return catchup::measure(database, scale, report),
        "secure" => return secure::measure(database, scale, report),
        "idle" => return against::idle(database, scale, report),
        "fanout" => return against::fanout(database, scale, report),
        "stalled" => scenes::stalled,
        "storm" => scenes::storm,
        "growth" => scenes::growth,
        "retained" => return more::retained(database, scale, report),
        "watches" => more::watches,
        "proxies" => more::proxies,
        "quiet" => scenes::quiet,
        "ticks" => ticks::measure,
        "neighbours" => scenes::neighbours,
        _ => panic!("no such part: {part}"),
    };
    for _ in 0..scale.rounds {
        alone(database, scale, report);
    }
}

/// The size of the load.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Every number of clients and topics is divided by this.
    pub divisor: usize,
    /// Seconds of one series.
    pub seconds: u32,
    /// Rounds of each comparison.
    pub rounds: usize,
}

impl Scale {
    fn of(self, n: usize) -> usize {
        (n / self.divisor).max(1)
    }
}

/// Publishes a text to some topics at once.
type Publish<'a> = Box<dyn FnMut(&[&str], &str) + Send + 'a>;

/// A server of streams: ours or another.
trait Server {
    /// Its name and version, unless the report has them.
    fn version(&self) -> Option<String> {
        None
    }
    /// The address that it listens on.
    fn address(&self) -> SocketAddr;
    /// The processes that serve.
    fn pids(&self) -> Vec<u32>;
    /// The path of a topic's stream.
    fn path(&self, topic: &str) -> String;
    /// How many streams may wait for an answer at the same time.
    fn at_once(&self) -> usize {
        200
    }
    /// Publishes a text to a topic and waits until that is done; may be called from a separate thread.
    fn publisher(&self) -> Publish<'_>;
}

/// The proxy, and the database whose events it serves.
struct Tidings<'a> {
    proxy: Proxy,
    database: &'a Database<'a>,
}

impl<'a> Tidings<'a> {
    fn start(database: &'a Database<'a>, args: &[&str]) -> Self {
        Self { proxy: database.proxy(args), database }
    }
}

impl Server for Tidings<'_> {
    fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.proxy.pid()]
    }

    fn path(&self, topic: &str) -> String {
        format!("/events?topic={topic}")
    }

    fn publisher(&self) -> Publish<'_> {
        let mut session = self.database.session();
        // All topics of one call are in one transaction.
        let sql = "SELECT tidings.publish_text(topic, $2) FROM unnest($1::text[]) topic";
        let statement = session.client().prepare(sql).expect("prepare");
        Box::new(move |topics, text| _ = session.client().execute(&statement, &[&topics, &text]).expect("publish"))
    }
}

/// The cost and the results of a series of events.
struct Series {
    /// The server's CPU time in seconds.
    cpu: f64,
    /// Events that have arrived at clients.
    arrivals: u64,
    /// How long they took.
    times: Histogram,
}

impl Series {
    fn deliveries_per_cpu_second(&self) -> f64 {
        self.arrivals as f64 / self.cpu
    }

    fn report(&self, report: &mut Report, label: &str, who: &str) {
        self.report_with([Target::None; 2], report, label, who);
    }

    /// With the targets of the median and of the 99th percentile.
    fn report_with(&self, targets: [Target; 2], report: &mut Report, label: &str, who: &str) {
        report.compare(format!("{label}, p50"), who, self.times.quantile(0.5), "ms", targets[0]);
        report.compare(format!("{label}, p99"), who, self.times.quantile(0.99), "ms", targets[1]);
    }
}

/// A schedule of events.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// How many.
    events: u32,
    /// In each second.
    rate: f64,
    /// Bytes of each.
    size: usize,
}

impl Pace {
    fn new(rate: f64, scale: Scale) -> Self {
        Self { events: (rate * f64::from(scale.seconds)) as u32, rate, size: 100 }
    }

    /// Calls `send` with each event's number when it is due.
    fn run(self, mut send: impl FnMut(u32)) {
        let start = Instant::now();
        for n in 0..self.events {
            let due = start + Duration::from_secs_f64(f64::from(n) / self.rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            send(n);
        }
    }
}

/// Publishes to `topics` in turn, and waits until each event has reached the `listeners` that every topic has in
/// `crowd`.
fn series(server: &dyn Server, crowd: &Crowd, topics: &[String], listeners: usize, pace: Pace) -> Series {
    let mut publish = server.publisher();
    crowd.forget();
    let before = cpu(server);
    pace.run(|n| publish(&[&topics[n as usize % topics.len()]], &stamp(pace.size)));
    let goal = u64::from(pace.events) * listeners as u64;
    until("every event has arrived", || crowd.arrivals() >= goal);
    Series { cpu: cpu(server) - before, arrivals: crowd.arrivals(), times: crowd.times() }
}

fn cpu(server: &dyn Server) -> f64 {
    server.pids().into_iter().map(|pid| cpu_seconds(pid).expect("the server runs")).sum()
}

fn resident(server: &dyn Server) -> f64 {
    server.pids().into_iter().map(|pid| memory(pid, "VmRSS").expect("the server runs") as f64).sum()
}

/// This many clients of one topic.
fn same(server: &dyn Server, topic: &str, n: usize) -> Vec<Ask> {
    vec![Ask::live(server.path(topic)); n]
}

/// Opens a stream for each of `asks`, as many at the same time as the server allows, and waits until all are open.
fn open(server: &dyn Server, asks: Vec<Ask>) -> Crowd {
    Crowd::open(server.address(), asks, server.at_once())
}

/// A client for each topic.
fn each(server: &dyn Server, topics: &[String]) -> Vec<Ask> {
    topics.iter().map(|topic| Ask::live(server.path(topic))).collect()
}

fn names(word: &str, n: usize) -> Vec<String> {
    (0..n).map(|i| format!("{word}{i}")).collect()
}
