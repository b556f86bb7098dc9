//! `make bench`: what Tidings costs and how fast it is, with a target beside each figure.
//!
//! All rounds of one comparison run in one cluster and alternate, so that other load on the machine affects all of
//! them; the figure is the median. Unlike in the tests, the cluster writes to the disk (`fsync = on`). The figures go
//! to `docs/benchmarks.md`.
//!
//! `--long` takes more and longer rounds. `--small` takes a hundredth of the clients and few rounds, to try the
//! program: its figures go to `target/bench`. Naming parts (`overhead`, `decoding`, `latency`, `bulk`, `rendering`,
//! `access`, and those of `load`) runs only those. `--render` measures nothing, and writes the page from the stored
//! figures. `--compare A B` shows what differs between two summaries.

mod access;
mod bulk;
mod chart;
mod decoding;
mod guards;
mod latency;
mod load;
mod machine;
mod opening;
mod overhead;
mod page;
mod rendering;
mod report;
mod schema;
mod summary;

use tidings_tests::{Cluster, Database};

use page::Page;
use report::Report;

/// Settings of the measured cluster: durable, and nothing that affects only some of the rounds.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("wal_level", "replica"),
    ("deadlock_timeout", "1s"),
    ("autovacuum", "off"),
    ("checkpoint_timeout", "1h"),
    ("max_wal_size", "16GB"),
    ("log_min_messages", "warning"),
    ("tidings.verify_ring", "off"),
];

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Rounds of each comparison.
    rounds: usize,
    /// Seconds of one round of writing.
    seconds: u32,
    /// Events of one latency measurement.
    samples: usize,
}

impl Effort {
    /// More rounds: if the machine itself varies more than what is measured, the compared ways must alternate often.
    /// The rounds are not shorter, because the first second of a new session has its own cost: it touches each page of
    /// the shared buffers for the first time, and a way that writes twice as many pages pays twice for that.
    fn more_rounds(self) -> usize {
        self.rounds * 3
    }
}

/// The parts that are not in [`load`].
const PARTS: &[&str] = &["overhead", "decoding", "latency", "bulk", "rendering", "access", "guards"];

/// All parts, in the order of the page.
fn all_parts() -> Vec<&'static str> {
    PARTS.iter().chain(load::PARTS).copied().collect()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--render"] => print!("{}", Page::new(all_parts(), false).render()),
        ["--compare", a, b] => print!("{}", summary::compare(&read(a), &read(b))),
        _ => measure(&args),
    }
}

/// A summary.
fn read(path: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn measure(args: &[String]) {
    let (options, parts): (Vec<&str>, Vec<&str>) =
        args.iter().map(String::as_str).partition(|arg| arg.starts_with("--"));
    let known = all_parts();
    let unknown = parts.iter().find(|part| !known.contains(part));
    if let Some(unknown) = unknown.or(options.iter().find(|option| !["--long", "--small"].contains(option))) {
        eprintln!(
            "unknown: {unknown}; there are {}, and the options --long, --small, --render and --compare",
            known.join(", ")
        );
        std::process::exit(2);
    }
    let wanted = |part: &&str| parts.is_empty() || parts.contains(part);
    let small = options.contains(&"--small");
    let effort = if small {
        Effort { rounds: 2, seconds: 2, samples: 60 }
    } else if options.contains(&"--long") {
        Effort { rounds: 7, seconds: 10, samples: 3000 }
    } else {
        Effort { rounds: 3, seconds: 3, samples: 900 }
    };
    let scale = load::Scale {
        divisor: if small { 100 } else { 1 },
        seconds: if small { 2 } else { effort.seconds + 2 },
        rounds: effort.rounds,
    };
    more_files();

    let cluster = Cluster::start(SETTINGS);
    let database = cluster.database();
    schema::create(&database);
    let mut report = Report::new(Page::new(known.clone(), small), &options);
    let mut targets = String::new();
    for part in known.into_iter().filter(|part| wanted(part)) {
        match part {
            "overhead" => overhead::measure(&database, effort, &mut report),
            "decoding" => decoding::measure(&database, effort, &mut report),
            "latency" => latency::measure(&database, effort, &mut report),
            "bulk" => bulk::measure(&database, effort, &mut report),
            "rendering" => rendering::measure(&database, effort, &mut report),
            "access" => access::measure(&database, effort, &mut report),
            "guards" => guards::measure(&database, effort, &mut report),
            _ => load::measure(part, &database, scale, &mut report),
        }
        targets = report.finish(part, &database);
    }
    println!("\n{targets}");
}

/// Raises the limit of file descriptors as far as this process may: each stream takes one here and one in the server.
fn more_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raise the limit of open files");
}

/// Makes every commit of the cluster take a millisecond more, as on a slow disk, or no longer.
fn slow_commit(database: &Database<'_>, slow: bool) {
    let mut session = database.session();
    let (delay, siblings) = if slow { (1000, 0) } else { (0, 5) };
    session.run(&format!("ALTER SYSTEM SET commit_delay = {delay}"));
    session.run(&format!("ALTER SYSTEM SET commit_siblings = {siblings}"));
    session.run("SELECT pg_reload_conf()");
    let delay = delay.to_string();
    tidings_tests::until("the setting is in force", || {
        database.session().one::<String>("SELECT setting FROM pg_settings WHERE name = 'commit_delay'") == delay
    });
}

/// The median.
fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which the given share of the values lies.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}
