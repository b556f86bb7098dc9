//! One run: starts everything, lets the faults strike, and judges what came of it.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidings_tests::balancer::{Balancer, nobody};
use tidings_tests::{Proxy, http, ledger, until};

use crate::check::{Fate, Law, Verdict};
use crate::clients::{Clients, Doors, Life};
use crate::gate::Gate;
use crate::homes::Homes;
use crate::members::{Club, Members};
use crate::network::{Filter, Wire};
use crate::pages::Pages;
use crate::plan::{Plan, Standby};
use crate::reference::{Log, Observer};
use crate::report::Report;
use crate::sabotage::Sabotage;
use crate::server::{DATABASE, PROXY_ROLE, Ports, Server};
use crate::sizes::Sizes;
use crate::soak::Soak;
use crate::strike::Stage;
use crate::why;
use crate::window::{Windows, missing};
use crate::writers::{self, Note, Writers};

/// Commits that were acknowledged this shortly before the loss of an asynchronous primary may be lost with it: the
/// longest lag that a plan draws, and some time for a busy machine.
const LAG: Duration = Duration::from_secs(5);

/// Commits with `synchronous_commit = off` that were acknowledged this shortly before a crash may be lost: Postgres
/// promises three times `wal_writer_delay`.
const UNFLUSHED: Duration = Duration::from_millis(600);

/// How long a round of a soak lasts.
const ROUND: Duration = Duration::from_secs(180);

/// How many faults are listed for each client.
const LISTED: usize = 5;

/// What a run consists of.
struct Parts {
    server: Arc<Server>,
    wire: Arc<Wire>,
    /// First those that are open to everyone, one at the far standby, and then those of the club.
    proxies: Vec<Mutex<Proxy>>,
    /// How many are open to everyone.
    open: usize,
    /// The numbers of those that prefer a standby.
    at_standby: Vec<usize>,
    _club: Option<Club>,
    balancer: Balancer,
    doors: Doors,
    /// Before everything that commits, or reads the log.
    gate: Arc<Gate>,
}

/// Who uses it.
struct Crowd {
    observer: Observer,
    clients: Clients,
    pages: Pages,
    members: Option<Members>,
    writers: Writers,
}

/// Everything that was recorded.
struct Records {
    notes: Vec<Note>,
    lives: Vec<Life>,
    log: Log,
}

/// Runs a plan; returns what went wrong.
pub fn run(
    plan: &Plan,
    ports: Ports,
    filter: Option<&Filter>,
    sabotage: Option<Sabotage>,
    report: &Report,
) -> Vec<String> {
    let parts = Parts::start(plan, ports, sabotage);
    let sizes = Sizes::take(&parts.server, &parts.proxies);
    let judged = if plan.is_soak { soak(plan, &parts, report) } else { strike(plan, &parts, filter, report) };
    parts.keep_logs(report);
    match judged {
        Ok(mut faults) => {
            drop(parts.balancer);
            faults.extend(sizes.compare(&parts.server, &parts.proxies, plan.world.history, report));
            faults
        }
        Err(faults) => faults,
    }
}

/// A run with faults. An error ends it before its records can be judged.
fn strike(plan: &Plan, parts: &Parts, filter: Option<&Filter>, report: &Report) -> Result<Vec<String>, Vec<String>> {
    let crowd = Crowd::start(plan, parts);
    crowd.writers.wait_for(50);
    let stage = Stage {
        server: &parts.server,
        proxies: &parts.proxies,
        open: parts.open,
        homes: &parts.doors.homes,
        at_standby: &parts.at_standby,
        standby: plan.world.standby,
        network: Mutex::default(),
        windows: Windows::default(),
        acknowledged: Mutex::default(),
        numbers: AtomicU64::new(0),
        filter,
        wire: &parts.wire,
        writers: &crowd.writers,
        gate: &parts.gate,
        report,
    };
    let mut faults = strike_all(&stage, plan);
    report.say("all is healed");
    if faults.is_empty() {
        faults.extend(settle(parts));
    }
    if faults.is_empty() {
        faults.extend(missing(&parts.server, &stage.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)));
    }
    let windows = stage.windows;
    let records = crowd.finish(plan, parts, faults, report)?;
    let faults = judge(plan, parts, records, report);
    report_windows(&windows, report);
    Ok(faults)
}

/// A long run without faults, in rounds: at the end of each, everything is compared, and the next one has tables,
/// topics and clients of its own. So the records and the tables have the same size after a minute and after an hour,
/// and only what is watched for growth goes on.
fn soak(plan: &Plan, parts: &Parts, report: &Report) -> Result<Vec<String>, Vec<String>> {
    let soak = Soak::start(&parts.server, &parts.proxies, plan.time);
    let end = Instant::now() + plan.time;
    let mut faults = Vec::new();
    for plan in (0..).map(|number| plan.round(number)) {
        writers::prepare(&parts.server, &plan.world.topics);
        let crowd = Crowd::start(&plan, parts);
        std::thread::sleep(ROUND.min(end.saturating_duration_since(Instant::now())));
        faults = crowd
            .finish(&plan, parts, Vec::new(), report)
            .map_or_else(|faults| faults, |records| judge(&plan, parts, records, report));
        if !faults.is_empty() || Instant::now() >= end {
            break;
        }
    }
    let grown = soak.finish(report);
    if faults.is_empty() { Ok(grown) } else { Err([faults, grown].concat()) }
}

/// A proxy, also if a lane that held it has failed.
pub fn locked(proxy: &Mutex<Proxy>) -> MutexGuard<'_, Proxy> {
    proxy.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Parts {
    fn start(plan: &Plan, ports: Ports, sabotage: Option<Sabotage>) -> Self {
        let world = &plan.world;
        let server = Arc::new(Server::start(world, plan.time.as_secs_f64() / 60.0, ports));
        writers::prepare(&server, &world.topics);
        sabotage.iter().for_each(|sabotage| sabotage.commit(&server));
        let club = world.has_members.then(|| Club::found(&server));
        let [a, b, far] = ports;
        let (wire, wired) = Wire::start([a, b]);
        let url = |[a, b]: [u16; 2]| {
            format!("postgres://{PROXY_ROLE}@127.0.0.1:{a},127.0.0.1:{b}/{DATABASE}?target_session_attrs=read-write")
        };
        // The first proxy prefers the standby. After a failover it stays where it is, at the new primary, until its
        // connection breaks: then it prefers the server at the same port, a standby again or not.
        let mut sources = vec![url([a, b]); world.proxies];
        sources[world.proxies - 1] = url(wired);
        let mut at_standby = Vec::new();
        if world.standby.is_some() {
            sources[0] = format!("postgres://{PROXY_ROLE}@127.0.0.1:{b},127.0.0.1:{a}/{DATABASE}");
            at_standby.push(0);
        }
        if world.has_far_standby {
            at_standby.push(sources.len());
            sources.push(format!("postgres://{PROXY_ROLE}@127.0.0.1:{far}/{DATABASE}"));
        }
        let open = sources.len();
        let flags = ["--history-bytes", world.history, "--client-queue-bytes", world.queue];
        let flags = [&flags[..], &["--heartbeat", world.heartbeat, "--retry", "100ms", "--drain", "1s"]].concat();
        let start = |source: &str, more: &[String]| {
            let more: Vec<&str> = more.iter().map(String::as_str).collect();
            Mutex::new(Proxy::start(source, &[&flags[..], &more].concat()))
        };
        let mut proxies: Vec<_> = sources.iter().map(|source| start(source, &[])).collect();
        let more = club.iter().flat_map(Club::flags);
        proxies.extend(more.map(|more| start(&url([a, b]), &more)));
        let direct: Vec<SocketAddr> = proxies.iter().map(|proxy| locked(proxy).address()).collect();
        let homes = Arc::new(Homes::new(&direct));
        // There are at least two proxies.
        let balancer = Balancer::haproxy([direct[0], direct[1]], nobody());
        until("the balancer passes requests on", || {
            http::get(balancer.address(), "/events").is_ok_and(|(head, _)| head.status == 400)
        });
        let doors = Doors { direct, balanced: balancer.address(), homes };
        Self { server, wire, proxies, open, at_standby, _club: club, balancer, doors, gate: Arc::default() }
    }

    fn keep_logs(&self, report: &Report) {
        self.server.keep_logs(report);
        self.proxies.iter().for_each(|proxy| report.keep("proxy", locked(proxy).log_file()));
        report.keep("haproxy", self.balancer.log_file());
    }
}

impl Crowd {
    fn start(plan: &Plan, parts: &Parts) -> Self {
        let Parts { server, open, doors, gate, .. } = parts;
        let (everyone, club) = doors.direct.split_at(*open);
        let doors = Doors { direct: everyone.to_vec(), ..doors.clone() };
        Self {
            observer: Observer::start(server, gate, plan.world.topics.clone()),
            clients: Clients::start(server, plan, &doors),
            pages: Pages::start(server, plan, everyone),
            members: (!club.is_empty()).then(|| Members::start(server, plan, gate, club)),
            writers: Writers::start(server, plan, gate),
        }
    }

    /// Stops the writers, and waits until all clients have everything. If the run has failed already, nobody is waited
    /// for, because that would only hide it.
    fn finish(
        self,
        plan: &Plan,
        parts: &Parts,
        mut faults: Vec<String>,
        report: &Report,
    ) -> Result<Records, Vec<String>> {
        let server = &parts.server;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.writers.counts;
        report.say(format_args!(
            "{} transactions committed, {} prepared, {} without room, {} connections lost",
            count(&counts.committed),
            count(&counts.prepared),
            count(&counts.no_room),
            count(&counts.lost)
        ));
        let (notes, refusals) = self.writers.finish();
        faults.extend(refusals);
        if !faults.is_empty() {
            return Err(faults);
        }
        writers::end_all_prepared(server);
        if let Some(members) = self.members {
            match members.finish() {
                Ok(events) => report.say(format_args!("{events} events had to wait for a member's next grant")),
                Err(fault) => faults.push(format!("the members: {fault}")),
            }
        }
        self.clients.close();
        let end = writers::close(server, plan.world.topics.clone());
        self.clients.end_at(end);
        self.pages.end_at(end);
        let lives = self.clients.finish();
        let (snapshots, faults_of_pages) = self.pages.finish(server);
        report.say(format_args!("the pages were sent their rows {snapshots} times"));
        faults.extend(faults_of_pages);
        report.say(format_args!(
            "all clients have finished; the observer was at most {:?} behind",
            self.observer.worst()
        ));
        match self.observer.finish() {
            Ok(log) if faults.is_empty() => Ok(Records { notes, lives, log }),
            Ok(_) => Err(faults),
            Err(error) => Err([faults, vec![error]].concat()),
        }
    }
}

/// Compares the writers' notes, the database, the log and the clients, each with the one before.
fn judge(plan: &Plan, parts: &Parts, records: Records, report: &Report) -> Vec<String> {
    let (world, server) = (&plan.world, &parts.server);
    let Records { notes, lives, log } = records;
    let truth = writers::truth(server);
    let losses = if world.standby == Some(Standby::Asynchronous) { server.failovers() } else { Vec::new() };
    let crashes = server.crashes();
    let mut times: Vec<_> = losses.iter().map(|failover| earlier(failover.at, LAG)..=failover.at).collect();
    if !world.synchronous_commit {
        let times_of_crashes = crashes.iter().map(|crash| &crash.time);
        times.extend(times_of_crashes.map(|time| earlier(*time.start(), UNFLUSHED)..=*time.end()));
    }
    let (doubts, gone) = writers::doubt(&notes, &truth, &times);
    let mut faults: Vec<String> = doubts.into_iter().take(LISTED).collect();
    let shown = log.known.iter().map(|known| known.write.clone()).filter(|write| write.name != writers::END);
    let shown: Vec<_> = shown.collect();
    faults.extend(ledger::compare(&truth, &shown).iter().map(|fault| format!("the log: {fault:?}")));
    let fate = Fate {
        losses: losses.iter().map(|failover| failover.tick).collect(),
        crashes: crashes.iter().map(|crash| crash.ticks.clone()).collect(),
        retention: world.retention.map(|seconds| seconds * 1_000_000),
        forgets: world.history.ends_with("KiB"),
        clock_jumps: world.clock,
    };
    let law = Law::new(log, fate, &lives);
    for crash in &crashes {
        let lost = law.lost_by(&crash.ticks);
        if lost > 0 {
            report.say(format_args!("{:?} took back {lost} announced ticks that clients had seen", crash.fault));
        }
    }
    let mut totals = Verdict::default();
    for life in &lives {
        let verdict = law.judge(life);
        totals.add(&verdict);
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
    faults
}

/// Says how many of the crashes that should do so have hit the window between announcement and flush.
fn report_windows(windows: &Windows, report: &Report) {
    let counts = windows.counts();
    for (fault, tries, hits) in &counts {
        report.say(format_args!("{fault}: {hits} of {tries} hit between announcement and flush"));
    }
    if counts.iter().all(|(_, _, hits)| *hits == 0) {
        report.say("NO crash hit between announcement and flush: this run says nothing about it");
    }
}

fn earlier(time: Instant, by: Duration) -> Instant {
    time.checked_sub(by).unwrap_or(time)
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
fn settle(parts: &Parts) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| {
        parts.server.recover();
        parts.proxies.iter().for_each(|proxy| locked(proxy).wait_ready());
    }))
    .err()
    .map(|panic| why(&*panic))
}
