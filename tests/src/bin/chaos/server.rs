//! The database of a run: the current primary, its standby, the disk that they are on and the clock that they use.

use std::fs;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use postgres::{Client, Config, NoTls};
use tidings_tests::clock::Clock;
use tidings_tests::cluster::{SUPERUSER, Site};
use tidings_tests::process::{Signal, fresh_path, kill, send};
use tidings_tests::{Cluster, Database, until};

use crate::network::run;
use crate::plan::{Standby, World};
use crate::report::Report;

/// The database's name.
pub const DATABASE: &str = "chaos";

/// The role of the proxies.
pub const PROXY_ROLE: &str = "chaos_proxy";

/// The size of the small disk in addition to what a run of some minutes writes, in megabytes.
const DISK: u64 = 500;

/// How much of a full disk stays free: less than a new WAL file of 16 MB, but more than nothing.
const LEFT: u64 = 3 << 20;

/// A failover that has happened.
#[derive(Clone, Copy, Debug)]
pub struct Failover {
    /// When the old primary was lost, in microseconds since the Unix epoch, like the numbers of ticks.
    pub tick: u64,
    /// The same time, on the clock of this process.
    pub at: Instant,
}

/// The database.
#[derive(Debug)]
pub struct Server {
    primary: Mutex<Arc<Cluster>>,
    standby: Mutex<Option<Cluster>>,
    mode: Option<Standby>,
    ports: [u16; 2],
    settings: Vec<(String, String)>,
    disk: Option<Disk>,
    clock: Option<Clock>,
    failovers: Mutex<Vec<Failover>>,
    /// From before the server crashed until it was back.
    crashes: Mutex<Vec<RangeInclusive<Instant>>>,
    /// Incremented when a failover begins and when it ends; even numbers mean that none is running.
    era: AtomicU64,
}

impl Server {
    /// Starts what the plan asks for, with the database in it.
    pub fn start(world: &World, minutes: f64, ports: [u16; 2]) -> Self {
        let mut settings: Vec<(&str, String)> = vec![
            ("wal_keep_size", "1GB".to_owned()),
            ("wal_retrieve_retry_interval", "200ms".to_owned()),
            ("log_min_duration_statement", "2s".to_owned()),
            ("log_connections", "off".to_owned()),
            ("max_prepared_transactions", "200".to_owned()),
        ];
        if world.small_disk {
            settings.retain(|(name, _)| *name != "wal_keep_size");
            settings.extend([("max_wal_size", "128MB".to_owned()), ("min_wal_size", "32MB".to_owned())]);
        }
        if let Some(retention) = world.retention {
            settings.push(("tidings.retention", format!("{retention}s")));
        }
        let settings: Vec<(String, String)> =
            settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let disk = world.small_disk.then(|| Disk::mount(DISK + (minutes * 150.0) as u64));
        let clock = world.clock.then(|| Clock::at(0));
        let mut server = Self {
            primary: Mutex::new(Arc::new(Cluster::start_at(
                Site {
                    dir: disk.as_ref().map(|disk| disk.dir.clone()),
                    port: Some(ports[0]),
                    env: environment(clock.as_ref()),
                    bin: None,
                },
                &borrowed(&settings),
            ))),
            standby: Mutex::default(),
            mode: world.standby,
            ports,
            settings,
            disk,
            clock,
            failovers: Mutex::default(),
            crashes: Mutex::default(),
            era: AtomicU64::new(0),
        };
        let primary = server.primary();
        primary.session("postgres", SUPERUSER).run(&format!("CREATE DATABASE {DATABASE}"));
        let mut session = primary.session(DATABASE, SUPERUSER);
        session.run(&format!(
            "CREATE EXTENSION tidings; CREATE ROLE {PROXY_ROLE} LOGIN; SELECT tidings.grant_proxy('{PROXY_ROLE}')"
        ));
        server.database(|database| database.wait_relay());
        server.follow(ports[1]);
        server
    }

    /// The current primary.
    pub fn primary(&self) -> Arc<Cluster> {
        self.primary.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls `f` with the database on the current primary.
    pub fn database<T>(&self, act: impl FnOnce(&Database<'_>) -> T) -> T {
        let primary = self.primary();
        act(&Database::existing(&primary, DATABASE))
    }

    /// How to connect to the current primary as the superuser.
    pub fn config(&self) -> Config {
        self.primary().config(DATABASE, SUPERUSER)
    }

    /// A connection, if one can be made.
    pub fn connect(&self) -> Option<Client> {
        self.config().connect(NoTls).ok()
    }

    /// How often a failover has begun or ended.
    pub fn era(&self) -> u64 {
        self.era.load(Ordering::SeqCst)
    }

    /// The failovers so far.
    pub fn failovers(&self) -> Vec<Failover> {
        self.failovers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a crash.
    pub fn note_crash(&self, time: RangeInclusive<Instant>) {
        self.crashes.lock().unwrap_or_else(PoisonError::into_inner).push(time);
    }

    /// The crashes so far.
    pub fn crashes(&self) -> Vec<RangeInclusive<Instant>> {
        self.crashes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the server is up and its relay runs, and starts the server if it has ended by itself.
    pub fn recover(&self) {
        self.primary().revive();
        self.database(|database| database.wait_relay());
    }

    /// Starts a standby at this port, if the plan has one.
    fn follow(&mut self, port: u16) {
        *self.standby.lock().unwrap_or_else(PoisonError::into_inner) = self.new_standby(port);
    }

    fn new_standby(&self, port: u16) -> Option<Cluster> {
        let mode = self.mode?;
        let primary = self.primary();
        let site = Site { dir: None, port: Some(port), env: environment(self.clock.as_ref()), bin: None };
        let standby = primary.standby_at(site, &borrowed(&self.settings));
        let mut session = primary.session("postgres", SUPERUSER);
        if mode == Standby::Synchronous {
            session.run("ALTER SYSTEM SET synchronous_standby_names = '*'");
            session.run("SELECT pg_reload_conf()");
        }
        drop(session);
        self.wait_standby();
        Some(standby)
    }

    /// Waits until the standby has nearly everything that the primary has.
    fn wait_standby(&self) {
        let state = if self.mode == Some(Standby::Synchronous) { "sync" } else { "async" };
        let close = format!(
            "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = '{state}'
               AND pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) < 4 * 1024 * 1024)"
        );
        until("the standby follows", || {
            let row = self.connect().and_then(|mut client| client.query_one(&close, &[]).ok());
            row.is_some_and(|row| row.get(0))
        });
    }

    /// Kills the primary, promotes the standby, and starts a new standby for it. An asynchronous standby receives
    /// nothing of what the primary does during `lag`.
    pub fn fail_over(&self, lag: Duration, report: &Report) {
        self.wait_standby();
        let standby = self.standby.lock().unwrap_or_else(PoisonError::into_inner).take().expect("a standby");
        let old = self.primary();
        if self.mode == Some(Standby::Asynchronous) {
            let receiver: i32 = standby.session("postgres", SUPERUSER).one("SELECT pid FROM pg_stat_wal_receiver");
            let receiver = u32::try_from(receiver).expect("a process id");
            send(receiver, Signal::SIGSTOP);
            std::thread::sleep(lag);
            old.kill();
            // What is in its socket is lost with it. Killing it also restarts the standby's other processes.
            kill(receiver);
        } else {
            old.kill();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        let failover = Failover { tick: now.as_micros() as u64, at: Instant::now() };
        self.failovers.lock().unwrap_or_else(PoisonError::into_inner).push(failover);
        self.era.fetch_add(1, Ordering::SeqCst);
        report.keep("server", &old.log_file());
        standby.wait_ready();
        standby.session("postgres", SUPERUSER).run("SELECT pg_promote()");
        let port = if standby.port() == self.ports[0] { self.ports[1] } else { self.ports[0] };
        *self.primary.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(standby);
        self.era.fetch_add(1, Ordering::SeqCst);
        self.database(|database| database.wait_relay());
        let next = self.new_standby(port);
        *self.standby.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// Fills the disk almost completely.
    pub fn fill_disk(&self) {
        self.disk.as_ref().expect("a small disk").fill();
    }

    /// Frees the disk again.
    pub fn free_disk(&self) {
        self.disk.as_ref().expect("a small disk").free();
    }

    /// Sets the clock this many seconds apart from the real one.
    pub fn set_clock(&self, offset: i32) {
        self.clock.as_ref().expect("a clock").set(offset);
    }

    /// Keeps the logs of all servers.
    pub fn keep_logs(&self, report: &Report) {
        report.keep("server", &self.primary().log_file());
        if let Some(standby) = &*self.standby.lock().unwrap_or_else(PoisonError::into_inner) {
            report.keep("standby", &standby.log_file());
        }
    }
}

fn borrowed(settings: &[(String, String)]) -> Vec<(&str, &str)> {
    settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn environment(clock: Option<&Clock>) -> Vec<(String, String)> {
    clock.map(Clock::environment).unwrap_or_default()
}

/// A file system in memory.
#[derive(Debug)]
struct Disk {
    dir: PathBuf,
}

impl Disk {
    fn mount(megabytes: u64) -> Self {
        let dir = fresh_path("disk");
        fs::create_dir(&dir).expect("create the disk's folder");
        let size = format!("size={megabytes}m");
        run("mount", &["-t", "tmpfs", "-o", &size, "tidings-chaos", &dir.display().to_string()]);
        Self { dir }
    }

    fn ballast(&self) -> String {
        self.dir.join("ballast").display().to_string()
    }

    fn fill(&self) {
        let output = Command::new("df").args(["--output=avail", "-B1"]).arg(&self.dir).output().expect("run df");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let free: u64 = text.split_whitespace().last().and_then(|n| n.parse().ok()).expect("the free space");
        if free > LEFT {
            run("fallocate", &["-l", &(free - LEFT).to_string(), &self.ballast()]);
        }
    }

    fn free(&self) {
        let _ = fs::remove_file(self.ballast());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.dir).status();
        let _ = fs::remove_dir(&self.dir);
    }
}
