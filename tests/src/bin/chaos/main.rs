//! `make chaos`: writers whose commits are recorded, clients that connect and disconnect, and faults drawn from a seed.
//! At the end every client must have received exactly what was committed, and pages that keep rows must have those of
//! the tables.
//!
//! `--seed N` repeats a run, `--seeds K` runs K seeds starting with it, and `--minutes M` sets how long faults strike
//! in each.

mod check;
mod clients;
mod network;
mod pages;
mod plan;
mod reference;
mod report;
mod server;
mod strike;
mod writers;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidings_tests::balancer::{Balancer, nobody};
use tidings_tests::cluster::free_port;
use tidings_tests::process::{memory, open_files};
use tidings_tests::{Proxy, eventually, http, ledger, until};

use check::Law;
use clients::Clients;
use network::{Filter, Wire};
use pages::Pages;
use plan::{Means, Plan, Standby};
use reference::Observer;
use report::Report;
use server::{DATABASE, PROXY_ROLE, Server};
use strike::Stage;
use writers::Writers;

/// Commits that were acknowledged this shortly before the loss of an asynchronous primary may be lost with it: the
/// longest lag that a plan draws, and some time for a busy machine.
const LAG: Duration = Duration::from_secs(5);

/// Commits with `synchronous_commit = off` that were acknowledged this shortly before a crash may be lost: Postgres
/// promises three times `wal_writer_delay`.
const UNFLUSHED: Duration = Duration::from_millis(600);

/// How many faults are listed for each client.
const LISTED: usize = 5;

/// How many more files a process may have open at the end than at the beginning. Postgres keeps files open that it has
/// used once (the partitions of the log with their indexes, the catalogs): some hundred files, where a leak would be
/// one for each of thousands of ticks. A proxy keeps its second connection, and those over which it has read rows.
const MORE_FILES: [(&str, usize); 2] = [("proxy", 8), ("relay", 120)];

/// The memory, in addition to the history, that a process may have at the end: what an allocator does not return, of
/// the 1 MiB pages that are read from the log and of queues that were full.
const MORE_MEMORY: u64 = 48 << 20;

struct Options {
    seed: u64,
    seeds: u64,
    minutes: f64,
}

fn options() -> Result<Options, String> {
    let mut options = Options { seed: fastrand::u64(..1_000_000), seeds: 1, minutes: 3.0 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg, args.next()),
        };
        let value = value.ok_or_else(|| format!("{name} needs a value"))?;
        let bad = |_| format!("{name}: {value} is no number");
        match name.as_str() {
            "--seed" => options.seed = value.parse().map_err(bad)?,
            "--seeds" => options.seeds = value.parse().map_err(bad)?,
            "--minutes" => options.minutes = value.parse().map_err(|_| format!("{value} is no number"))?,
            _ => return Err(format!("unknown option {name}; there are --seed, --seeds and --minutes")),
        }
    }
    Ok(options)
}

fn main() {
    let options = options().unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2);
    });
    let means = Means { namespaces: network::enter(), clock: tidings_tests::clock::Clock::can_jump() };
    if !means.namespaces {
        println!("without root: no faults of the network but those of the relay, and no full disk");
    }
    if !means.clock {
        println!("without libfaketime: the clock does not jump");
    }
    let mut failed = Vec::new();
    for seed in options.seed..options.seed + options.seeds {
        let plan = Plan::draw(seed, Duration::from_secs_f64(options.minutes * 60.0), means);
        let report = Report::open(seed);
        println!("==> seed {seed}; everything is kept in {}", report.dir().display());
        report.write("plan", &plan.to_string());
        println!("{:?}", plan.world);
        // A seed that failed may leave its servers running.
        let ports = [free_port(), free_port()];
        let filter = means.namespaces.then(|| Filter::new(ports));
        let faults = catch_unwind(AssertUnwindSafe(|| run(&plan, ports, filter.as_ref(), &report)))
            .unwrap_or_else(|panic| vec![why(&*panic)]);
        if let Some(filter) = &filter {
            filter.heal();
        }
        if faults.is_empty() {
            report.say("passed");
        } else {
            report.write("faults", &faults.join("\n"));
            println!("\n{}\nwhat happened:\n{}", plan, report.history());
            println!("==> seed {seed} FAILED:\n{}", faults.join("\n"));
            println!("again: make chaos ARGS='--seed {seed} --minutes {}'", options.minutes);
            println!("logs: {}", report.dir().display());
            failed.push(seed);
        }
    }
    println!(
        "==> {} of {} seeds passed, {} minutes each",
        options.seeds - failed.len() as u64,
        options.seeds,
        options.minutes
    );
    if !failed.is_empty() {
        println!("failed: {failed:?}");
        std::process::exit(1);
    }
}

fn why(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

/// Runs a plan; returns what went wrong.
fn run(plan: &Plan, ports: [u16; 2], filter: Option<&Filter>, report: &Report) -> Vec<String> {
    let world = &plan.world;
    let server = Arc::new(Server::start(world, plan.time.as_secs_f64() / 60.0, ports));
    writers::prepare(&server, world.topics);
    let (wire, wired) = Wire::start(ports);
    let url = |[a, b]: [u16; 2]| {
        format!("postgres://{PROXY_ROLE}@127.0.0.1:{a},127.0.0.1:{b}/{DATABASE}?target_session_attrs=read-write")
    };
    let args = ["--history-bytes", world.history, "--client-queue-bytes", world.queue, "--heartbeat", world.heartbeat];
    let args = [&args[..], &["--retry", "100ms", "--drain", "1s"]].concat();
    // The first proxy prefers the standby. After a failover it stays where it is, at the new primary, until its
    // connection breaks: then it prefers the server at the same port, a standby again or not.
    let [a, b] = ports;
    let at_standby = format!("postgres://{PROXY_ROLE}@127.0.0.1:{b},127.0.0.1:{a}/{DATABASE}");
    let source = |i: usize| match i {
        0 if world.standby.is_some() => at_standby.clone(),
        i if i + 1 == world.proxies => url(wired),
        _ => url(ports),
    };
    let proxies: Vec<Mutex<Proxy>> = (0..world.proxies).map(|i| Mutex::new(Proxy::start(&source(i), &args))).collect();
    let addresses: Vec<SocketAddr> = proxies.iter().map(|proxy| locked(proxy).address()).collect();
    let sizes = Sizes::take(&server, &proxies);
    // The plan has two proxies.
    let balancer = Balancer::haproxy([addresses[0], addresses[1]], nobody());
    until("the balancer passes requests on", || {
        http::get(balancer.address(), "/events").is_ok_and(|(head, _)| head.status == 400)
    });

    let observer = Observer::start(&server);
    let clients = Clients::start(&server, plan, &addresses, Some(balancer.address()));
    let pages = Pages::start(&server, plan, &addresses);
    let writers = Writers::start(&server, plan);
    writers.wait_for(50);
    let stage = Stage { server: &server, proxies: &proxies, filter, wire: &wire, writers: &writers, report };
    let mut faults = strike_all(&stage, plan);

    report.say("all is healed");
    if faults.is_empty() {
        faults.extend(settle(&server, &proxies));
    }
    let committed = writers.counts.committed.load(Ordering::Relaxed);
    let (prepared, no_room, lost) = (&writers.counts.prepared, &writers.counts.no_room, &writers.counts.lost);
    report.say(format_args!(
        "{committed} transactions committed, {} prepared, {} without room, {} connections lost",
        prepared.load(Ordering::Relaxed),
        no_room.load(Ordering::Relaxed),
        lost.load(Ordering::Relaxed)
    ));
    let (notes, refusals) = writers.finish();
    faults.extend(refusals);
    if !faults.is_empty() {
        // The run has failed already; waiting for the clients would only hide it.
        keep_logs(&server, &proxies, &balancer, report);
        return faults;
    }
    writers::end_all_prepared(&server);
    clients.close();
    let end = writers::close(&server, world.topics);
    clients.end_at(end);
    pages.end_at(end);
    let lives = clients.finish();
    let (snapshots, faults_of_pages) = pages.finish(&server);
    report.say(format_args!("the pages were sent their rows {snapshots} times"));
    faults.extend(faults_of_pages);
    report.say(format_args!("all clients have finished; the observer was at most {:?} behind", observer.worst()));
    let known = observer.finish();
    let known = match known {
        Ok(known) => known,
        Err(error) => {
            keep_logs(&server, &proxies, &balancer, report);
            return vec![error];
        }
    };

    // The writers' notes, the database, the log and the clients, each compared with the one before.
    let truth = writers::truth(&server);
    let losses = if world.standby == Some(Standby::Asynchronous) { server.failovers() } else { Vec::new() };
    let mut times: Vec<_> = losses.iter().map(|failover| earlier(failover.at, LAG)..=failover.at).collect();
    if !world.synchronous_commit {
        times.extend(server.crashes().into_iter().map(|crash| earlier(*crash.start(), UNFLUSHED)..=*crash.end()));
    }
    let (doubts, gone) = writers::doubt(&notes, &truth, &times);
    faults.extend(doubts.into_iter().take(LISTED));
    let shown: Vec<_> =
        known.iter().map(|known| known.write.clone()).filter(|write| write.name != writers::END).collect();
    faults.extend(ledger::compare(&truth, &shown).iter().map(|fault| format!("the log: {fault:?}")));
    let law = Law::new(known, losses.iter().map(|failover| failover.tick).collect(), world.retention);
    let mut totals = check::Verdict::default();
    for life in &lives {
        let verdict = law.judge(life);
        totals.events += verdict.events;
        totals.lost_ticks += verdict.lost_ticks;
        totals.connections += verdict.connections;
        totals.resets += verdict.resets;
        if !verdict.faults.is_empty() {
            report.write(&format!("client-{}", life.name.replace(' ', "-")), &format!("{life:#?}"));
        }
        faults.extend(verdict.faults.iter().take(LISTED).map(|fault| format!("client {}: {fault}", life.name)));
    }
    report.say(format_args!(
        "{} events in the log ({} writes, {gone} transactions lost by crashes and failovers); {} lives of clients, {} connections, {} events, {} of lost ticks, {} resets",
        law.events(),
        truth.len(),
        lives.len(),
        totals.connections,
        totals.events,
        totals.lost_ticks,
        totals.resets
    ));
    keep_logs(&server, &proxies, &balancer, report);
    drop(balancer);
    faults.extend(sizes.compare(&server, &proxies, world.history, report));
    faults
}

fn earlier(time: Instant, by: Duration) -> Instant {
    time.checked_sub(by).unwrap_or(time)
}

fn locked(proxy: &Mutex<Proxy>) -> std::sync::MutexGuard<'_, Proxy> {
    proxy.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the lanes at the same time until all have ended, or one has failed.
fn strike_all(stage: &Stage<'_>, plan: &Plan) -> Vec<String> {
    let broken = AtomicBool::new(false);
    let end = Instant::now() + plan.time;
    std::thread::scope(|scope| {
        let lanes: Vec<_> = plan
            .lanes
            .iter()
            .map(|lane| {
                let over = || broken.load(Ordering::Relaxed) || Instant::now() > end;
                let broken = &broken;
                scope.spawn(move || {
                    let played = catch_unwind(AssertUnwindSafe(|| stage.play(lane, over)));
                    played.map_err(|panic| {
                        broken.store(true, Ordering::Relaxed);
                        stage.report.say(format_args!("broken: {}", why(&*panic)));
                        why(&*panic)
                    })
                })
            })
            .collect();
        lanes.into_iter().filter_map(|lane| lane.join().expect("a lane").err()).collect()
    })
}

/// Waits until every part is up again.
fn settle(server: &Server, proxies: &[Mutex<Proxy>]) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| {
        server.recover();
        proxies.iter().for_each(|proxy| locked(proxy).wait_ready());
    }))
    .err()
    .map(|panic| why(&*panic))
}

fn keep_logs(server: &Server, proxies: &[Mutex<Proxy>], balancer: &Balancer, report: &Report) {
    server.keep_logs(report);
    proxies.iter().for_each(|proxy| report.keep("proxy", locked(proxy).log_file()));
    report.keep("haproxy", balancer.log_file());
}

/// Open files and bytes of memory of the proxies and the relay.
#[derive(Debug)]
struct Sizes {
    proxy: (usize, u64),
    relay: (usize, u64),
}

impl Sizes {
    fn of(pid: u32) -> Option<(usize, u64)> {
        Some((open_files(pid)?, memory(pid, "RssAnon")?))
    }

    /// The figures of the beginning. All proxies are alike.
    fn take(server: &Server, proxies: &[Mutex<Proxy>]) -> Self {
        let relay = || server.database(|database| Self::of(database.wait_relay()));
        let proxy = eventually("the size of a proxy", || Self::of(locked(&proxies[0]).pid()));
        Self { proxy, relay: eventually("the size of the relay", relay) }
    }

    /// What has grown that should not have grown.
    fn compare(&self, server: &Server, proxies: &[Mutex<Proxy>], history: &str, report: &Report) -> Vec<String> {
        let history: u64 = match history.strip_suffix("MiB") {
            Some(n) => n.parse::<u64>().map(|n| n << 20).unwrap_or(0),
            None => history.strip_suffix("KiB").and_then(|n| n.parse::<u64>().ok()).map_or(0, |n| n << 10),
        };
        let mut faults = Vec::new();
        let mut compare = |name: &str, before: (usize, u64), now: (usize, u64), memory: u64, files: usize| {
            report.say(format_args!(
                "{name}: files {} -> {}, memory {} -> {} KiB",
                before.0,
                now.0,
                before.1 >> 10,
                now.1 >> 10
            ));
            if now.0 > before.0 + files || now.1 > before.1 + memory {
                faults
                    .push(format!("{name} has grown: {before:?} files and bytes in the beginning, {now:?} in the end"));
            }
        };
        for (i, proxy) in proxies.iter().enumerate() {
            let proxy = locked(proxy);
            proxy.wait_clients(0);
            until("no replay is running any more", || proxy.metric("tidings_replays") == 0.0);
            let [(_, more), _] = MORE_FILES;
            // The last connections may still be closing.
            until("the proxy has closed what it had open", || {
                open_files(proxy.pid()).is_some_and(|files| files <= self.proxy.0 + more)
            });
            let now = Self::of(proxy.pid()).expect("a proxy");
            compare(&format!("proxy {i}"), self.proxy, now, history + MORE_MEMORY, more);
        }
        let relay = server.database(|database| Self::of(database.wait_relay())).expect("a relay");
        let [_, (_, more)] = MORE_FILES;
        compare("relay", self.relay, relay, MORE_MEMORY, more);
        faults
    }
}
