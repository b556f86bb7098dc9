//! The database of a run: the current primary, its standbys, the disk that they are on and the clock that they use.

use std::fs;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use postgres::{Client, Config, NoTls};
use tidings_tests::clock::Clock;
use tidings_tests::cluster::{SUPERUSER, Site};
use tidings_tests::process::{Signal, fresh_path, kill, send};
use tidings_tests::{Cluster, Database, eventually, until};

use crate::network::run;
use crate::plan::{Fault, Standby, World};
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

/// A crash, or a failover to a synchronous standby: it may have taken back ticks that were announced, but no events.
#[derive(Clone, Debug)]
pub struct Crash {
    /// The fault that caused it.
    pub fault: Fault,
    /// From before the fault until the server was back.
    pub time: RangeInclusive<Instant>,
    /// The last tick before the fault and the last one when the server was back.
    pub ticks: RangeInclusive<u64>,
}

/// The ports of the database: the primary's and its standby's, which take turns, and that of the far standby.
pub type Ports = [u16; 3];

/// The database.
#[derive(Debug)]
pub struct Server {
    primary: Mutex<Arc<Cluster>>,
    standby: Mutex<Option<Cluster>>,
    /// A standby of the standby.
    far: Option<Cluster>,
    mode: Option<Standby>,
    ports: Ports,
    settings: Vec<(String, String)>,
    disk: Option<Disk>,
    clock: Option<Clock>,
    failovers: Mutex<Vec<Failover>>,
    crashes: Mutex<Vec<Crash>>,
    /// Incremented when a failover begins and when it ends; even numbers mean that none is running.
    era: AtomicU64,
}

impl Server {
    /// Starts what the plan asks for, with the database in it.
    pub fn start(world: &World, minutes: f64, ports: Ports) -> Self {
        let settings = settings(world);
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
            far: None,
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
        let standby = server.new_standby(ports[1]);
        server.far = standby.as_ref().filter(|_| world.has_far_standby).map(|standby| {
            let far = Site { dir: None, port: Some(ports[2]), env: Vec::new(), bin: None };
            standby.standby_at(far, &borrowed(&server.settings))
        });
        *server.standby() = standby;
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

    fn standby(&self) -> MutexGuard<'_, Option<Cluster>> {
        self.standby.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last tick of the log. It may not be flushed yet.
    pub fn last_tick(&self) -> u64 {
        let sql = "SELECT max(tick) FROM tidings.tick";
        let tick: i64 = eventually("the last tick", || Some(self.connect()?.query_one(sql, &[]).ok()?.get(0)));
        tick.unsigned_abs()
    }

    /// Notes a crash.
    pub fn note_crash(&self, crash: Crash) {
        self.crashes.lock().unwrap_or_else(PoisonError::into_inner).push(crash);
    }

    /// The crashes so far.
    pub fn crashes(&self) -> Vec<Crash> {
        self.crashes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the server is up and its relay runs, and starts the server if it has ended by itself.
    pub fn recover(&self) {
        self.primary().revive();
        self.database(|database| database.wait_relay());
    }

    /// Starts a standby at this port, if the plan has one.
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
    pub fn wait_standby(&self) {
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
        let standby = self.standby().take().expect("a standby");
        let old = self.primary();
        let receiver = (self.mode == Some(Standby::Asynchronous)).then(|| freeze_receiver(&standby));
        if receiver.is_some() {
            std::thread::sleep(lag);
        }
        old.kill();
        receiver.into_iter().for_each(kill);
        self.promote(standby, &old, report);
    }

    /// Waits until the standby has everything that the primary has flushed.
    pub fn wait_received(&self) {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE flush_lsn >= pg_current_wal_flush_lsn())";
        until("the standby has received everything", || {
            let row = self.connect().and_then(|mut client| client.query_one(sql, &[]).ok());
            row.is_some_and(|row| row.get(0))
        });
    }

    /// From now on an asynchronous standby receives nothing. Returns the process to be killed after the primary.
    pub fn cut_off_standby(&self) -> Option<u32> {
        let standby = self.standby();
        standby.as_ref().filter(|_| self.mode == Some(Standby::Asynchronous)).map(freeze_receiver)
    }

    /// Kills the primary at once and promotes the standby, which has been waited for, and maybe cut off.
    pub fn lose_primary(&self, receiver: Option<u32>, report: &Report) {
        let standby = self.standby().take().expect("a standby");
        let old = self.primary();
        old.kill();
        receiver.into_iter().for_each(kill);
        self.promote(standby, &old, report);
    }

    fn promote(&self, standby: Cluster, old: &Cluster, report: &Report) {
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
        // The far standby follows the promoted one until the new standby is there.
        let next = self.new_standby(port);
        if let (Some(far), Some(next)) = (&self.far, &next) {
            // The new one has no WAL from before its base backup, so the far one must have received that first.
            let written: String =
                self.primary().session("postgres", SUPERUSER).one("SELECT pg_current_wal_lsn()::text");
            let received = "greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())";
            let mut session = far.session("postgres", SUPERUSER);
            until("the far standby follows the new primary", || {
                session.one(&format!("SELECT {received} >= '{written}'"))
            });
            far.follow(next);
        }
        *self.standby() = next;
    }

    /// Lets a standby crash, or the far one, and starts it again.
    pub fn crash_standby(&self, is_far: bool) {
        match &self.far {
            Some(far) if is_far => far.crash(),
            _ => self.standby().as_ref().expect("a standby").crash(),
        }
    }

    /// Stops the replay of a standby, or of the far one, for a while.
    pub fn pause_replay(&self, is_far: bool, time: Duration) {
        let near = self.standby();
        let standby = self.far.as_ref().filter(|_| is_far).or(near.as_ref()).expect("a standby");
        let mut session = standby.session("postgres", SUPERUSER);
        session.run("SELECT pg_wal_replay_pause()");
        std::thread::sleep(time);
        session.run("SELECT pg_wal_replay_resume()");
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
        self.standby().iter().for_each(|standby| report.keep("standby", &standby.log_file()));
        self.far.iter().for_each(|far| report.keep("far-standby", &far.log_file()));
    }
}

/// Stops the process of a standby that receives the write-ahead log. What is in its socket is lost if it is killed after
/// the primary; this also restarts the standby's other processes.
fn freeze_receiver(standby: &Cluster) -> u32 {
    let receiver: i32 = standby.session("postgres", SUPERUSER).one("SELECT pid FROM pg_stat_wal_receiver");
    let receiver = u32::try_from(receiver).expect("a process id");
    send(receiver, Signal::SIGSTOP);
    receiver
}

/// The settings of all servers.
fn settings(world: &World) -> Vec<(String, String)> {
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
    if world.holds_flush {
        // An announced tick stays unflushed until something else is committed.
        settings.push(("tidings.hold_flush", "on".to_owned()));
    }
    if let Some(retention) = world.retention {
        settings.push(("tidings.retention", format!("{retention}s")));
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
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

    /// Leaves little free. It tries again if something else took room meanwhile.
    fn fill(&self) {
        until("the disk is full", || {
            self.free();
            let output = Command::new("df").args(["--output=avail", "-B1"]).arg(&self.dir).output().expect("run df");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let free: u64 = text.split_whitespace().last().and_then(|n| n.parse().ok()).expect("the free space");
            let size = free.saturating_sub(LEFT).max(1).to_string();
            let status = Command::new("fallocate").args(["-l", &size, &self.ballast()]).status();
            status.expect("run fallocate").success()
        });
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
