//! A throw-away Postgres cluster with the extension preloaded, on a free port and in a temporary folder.
//!
//! `initdb` runs once for each process, and a cluster is a copy of the result. If the tests run as root, the server
//! runs as the account `postgres`, because it refuses to run as root; otherwise as the caller.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::unistd::{Gid, Uid, User};
use postgres::{Client, Config, NoTls};

use crate::database::{Database, Session};
use crate::process::{Process, Signal, children, fresh_path, send, tail};
use crate::wait::{eventually, until};

/// The superuser of every cluster.
pub const SUPERUSER: &str = "postgres";

/// The settings of every cluster; a cluster's own settings override them.
const SETTINGS: &[(&str, &str)] = &[
    ("shared_preload_libraries", "tidings"),
    ("wal_level", "logical"),
    ("max_prepared_transactions", "32"),
    ("max_worker_processes", "64"), // one relay for each database, and tests run at the same time
    ("max_connections", "200"),
    ("shared_buffers", "256MB"),
    ("max_wal_size", "4GB"),
    ("fsync", "off"), // a killed process loses nothing that it wrote; only a lost machine would
    ("deadlock_timeout", "20ms"), // random writers lock one another out: don't let them stand there
    ("log_line_prefix", "%m [%p] %b %d "),
    ("log_min_messages", "info"),
    ("log_checkpoints", "off"),
    ("tidings.verify_ring", "on"), // a difference fails the test when its database or cluster is dropped
];

/// What the relay logs if it found another tick in shared memory than in the log.
const DIFFERENCE: &str = "the ring and the log differ";

/// The Postgres installation that `PG_CONFIG` names.
#[derive(Debug)]
pub struct Installation {
    /// Where `postgres`, `initdb`, `psql` and `pgbench` are.
    pub bin: PathBuf,
    /// The account that the server runs as, if it is not the caller.
    account: Option<(Uid, Gid)>,
}

impl Installation {
    /// The installation that this process uses.
    pub fn get() -> &'static Self {
        static INSTALLATION: OnceLock<Installation> = OnceLock::new();
        INSTALLATION.get_or_init(|| {
            let pg_config =
                std::env::var("PG_CONFIG").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin/pg_config".to_owned());
            let output = Command::new(&pg_config).arg("--bindir").output();
            let output = output.unwrap_or_else(|error| panic!("{pg_config} doesn't run ({error}); try `make install`"));
            let bin = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
            let account = Uid::effective().is_root().then(|| {
                let user = |name| User::from_name(name).ok().flatten();
                let user = user("postgres").or_else(|| user("nobody")).expect("an account to run the server as");
                (user.uid, user.gid)
            });
            Self { bin, account }
        })
    }

    /// A copy of the server's files in a new temporary folder, whose library a test can replace; returns its `bin`.
    ///
    /// Postgres finds its other folders from where its programs are, so a copy that keeps their places runs anywhere.
    pub fn copy(&self) -> PathBuf {
        let root = fresh_path("installation");
        let of = |flag: &str| {
            let output = Command::new(self.bin.join("pg_config")).arg(flag).output().expect("run pg_config");
            PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
        };
        let home = self.bin.parent().expect("the folder of the installation").to_owned();
        let mut others = ["--pkglibdir", "--sharedir"].map(of).to_vec();
        // A wheel has the libraries of its programs in a folder of their own, two levels above.
        let above = home.ancestors().nth(2).and_then(|folder| fs::read_dir(folder).ok());
        let libraries = above.into_iter().flatten().flatten().map(|entry| entry.path());
        others.extend(libraries.filter(|path| path.extension().is_some_and(|extension| extension == "libs")));
        for folder in others.iter().filter(|folder| !folder.starts_with(&home)).chain([&home]) {
            let to = inside(&root, folder);
            fs::create_dir_all(to.parent().expect("a folder above")).expect("create a folder");
            copy(folder, &to);
        }
        inside(&root, &self.bin)
    }

    /// Whether its psql runs. That of one wheel crashes when it starts.
    pub fn has_psql(&self) -> bool {
        let output = Command::new(self.bin.join("psql")).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    }

    /// A command of the installation, to be run as the server's account.
    fn command(&self, name: &str) -> Command {
        self.command_in(&self.bin, name)
    }

    fn command_in(&self, bin: &Path, name: &str) -> Command {
        let mut command = Command::new(bin.join(name));
        if let Some((uid, gid)) = self.account {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn give(&self, path: &Path) {
        if let Some((uid, gid)) = self.account {
            chown(path, Some(uid.as_raw()), Some(gid.as_raw())).expect("hand the folder to the server's account");
        }
    }
}

/// Gives a file to the account that servers run as, and makes it readable only for that account: a server's key, for
/// instance.
pub fn give_to_server(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("close the file to others");
    Installation::get().give(file);
}

/// Where a cluster is and how its server is started. The default chooses everything freely.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// The folder, empty or new.
    pub dir: Option<PathBuf>,
    /// The port.
    pub port: Option<u16>,
    /// Environment variables of the server.
    pub env: Vec<(String, String)>,
    /// Where the server's program is, if not in the installation that `PG_CONFIG` names: see [`Installation::copy`].
    pub bin: Option<PathBuf>,
}

impl Site {
    /// A cluster without files and processes at this site.
    fn claim(self, word: &str) -> Cluster {
        let dir = self.dir.unwrap_or_else(|| fresh_path(word));
        fs::create_dir_all(&dir).expect("create the cluster's folder");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("open the cluster's folder");
        Installation::get().give(&dir);
        let bin = self.bin.unwrap_or_else(|| Installation::get().bin.clone());
        Cluster { dir, bin, port: self.port.unwrap_or_else(free_port), env: self.env, postmaster: Mutex::new(None) }
    }
}

/// A running cluster. Dropping it ends the server and removes all files.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    bin: PathBuf,
    port: u16,
    env: Vec<(String, String)>,
    postmaster: Mutex<Option<Process>>,
}

impl Cluster {
    /// Starts a separate cluster, for a test that breaks it or needs its own settings.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_at(Site::default(), settings)
    }

    /// The same at a given site.
    pub fn start_at(site: Site, settings: &[(&str, &str)]) -> Self {
        let cluster = site.claim("pg");
        copy(template(), &cluster.dir.join("data"));
        cluster.configure(settings);
        cluster.boot();
        cluster
    }

    /// Its port, on 127.0.0.1 and for its socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its socket.
    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// The process id of its postmaster.
    pub fn pid(&self) -> u32 {
        self.postmaster().as_ref().expect("the cluster is stopped").pid()
    }

    fn postmaster(&self) -> MutexGuard<'_, Option<Process>> {
        self.postmaster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn configure(&self, settings: &[(&str, &str)]) {
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\n",
            self.port,
            self.dir.display()
        );
        for (name, value) in SETTINGS.iter().chain(settings) {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        let path = self.dir.join("data/postgresql.auto.conf");
        fs::write(&path, text).expect("write the cluster's settings");
        Installation::get().give(&path);
    }

    /// Starts the server of a stopped cluster and waits until it takes connections.
    pub fn boot(&self) {
        // After a kill -9 the old backends may still hold the shared memory: then the server refuses to start.
        eventually("the server has started", || {
            let mut command = Installation::get().command_in(&self.bin, "postgres");
            command.arg("-D").arg(self.dir.join("data")).envs(self.env.iter().cloned());
            let mut server = Process::start(&mut command, Signal::SIGQUIT, &self.log_file());
            let up = eventually("the server takes connections or ends", || {
                if server.exited().is_some() { Some(false) } else { self.answers().then_some(true) }
            });
            if up {
                *self.postmaster() = Some(server);
            } else {
                let log = self.log_tail();
                assert!(log.contains("pre-existing shared memory"), "the server doesn't start:\n{log}");
            }
            up.then_some(())
        });
    }

    fn answers(&self) -> bool {
        self.config("postgres", SUPERUSER)
            .connect(NoTls)
            .is_ok_and(|mut client| client.simple_query("SELECT 1").is_ok())
    }

    /// Waits until the server takes connections (again).
    pub fn wait_ready(&self) {
        until("the server takes connections", || self.answers());
    }

    /// Stops the server properly, with SIGINT.
    pub fn stop(&self) {
        self.end(Signal::SIGINT);
    }

    /// Ends the postmaster and then every other process of the server by SIGKILL, so that none of them writes anything
    /// more.
    pub fn kill(&self) {
        let mut server = self.postmaster().take().expect("the cluster is stopped");
        // Stopped first, so that it can't start another process between the listing of its children and its end.
        server.signal(Signal::SIGSTOP);
        let others = children(server.pid());
        server.signal(Signal::SIGKILL);
        for pid in others {
            send(pid, Signal::SIGKILL);
        }
        server.wait();
    }

    /// Stops the server properly and starts it again.
    pub fn restart(&self) {
        self.stop();
        self.boot();
    }

    /// Ends the server as a crash would and starts it again.
    pub fn crash(&self) {
        self.kill();
        self.boot();
    }

    /// Ends only the postmaster, by SIGKILL. The other processes notice and exit.
    pub fn kill_postmaster(&self) {
        self.end(Signal::SIGKILL);
    }

    fn end(&self, signal: Signal) {
        self.postmaster().take().expect("the cluster is stopped").end(signal);
    }

    /// Starts the server again if it has ended by itself, and waits until it takes connections.
    pub fn revive(&self) {
        eventually("the server takes connections or ends", || {
            let ended = self.postmaster().as_mut().is_none_or(|server| server.exited().is_some());
            if ended {
                self.boot();
            }
            self.answers().then_some(())
        });
    }

    /// Connection settings for a database and a role, over the socket.
    pub fn config(&self, database: &str, role: &str) -> Config {
        let mut config = Config::new();
        config.host_path(&self.dir).port(self.port).dbname(database).user(role);
        config.connect_timeout(std::time::Duration::from_secs(30));
        config
    }

    /// A connection URL for a database and a role, over TCP.
    pub fn url(&self, database: &str, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port)
    }

    /// A session as `role`.
    #[track_caller]
    pub fn session(&self, database: &str, role: &str) -> Session {
        let client: Result<Client, _> = self.config(database, role).connect(NoTls);
        Session::new(client.unwrap_or_else(|error| panic!("connect to {database} as {role}: {error:?}")))
    }

    /// A fresh database with the extension, whose relay runs.
    pub fn database(&self) -> Database<'_> {
        let database = self.empty_database();
        database.session().run("CREATE EXTENSION tidings");
        database.wait_relay();
        database
    }

    /// A fresh database without the extension.
    pub fn empty_database(&self) -> Database<'_> {
        self.database_of("ENCODING 'UTF8' LOCALE 'C.UTF-8'")
    }

    /// The same with these options of CREATE DATABASE.
    pub fn database_of(&self, options: &str) -> Database<'_> {
        Database::create(self, options)
    }

    /// A program of the installation (`pg_dump`, …) that finds this server, run as the server's account.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Installation::get().command(name);
        command.env("PGHOST", &self.dir).env("PGPORT", self.port.to_string()).env("PGUSER", SUPERUSER);
        command
    }

    /// Starts a hot standby of this cluster.
    pub fn standby(&self) -> Self {
        self.standby_at(Site::default(), &[])
    }

    /// The same at a given site, with additional settings.
    pub fn standby_at(&self, site: Site, settings: &[(&str, &str)]) -> Self {
        let standby = site.claim("standby");
        let data = standby.dir.join("data");
        run(self.tool("pg_basebackup").args(["--checkpoint=fast", "--no-sync", "-D"]).arg(&data));
        let signal = data.join("standby.signal");
        File::create(&signal).expect("mark the standby");
        Installation::get().give(&signal);
        standby.configure(&[settings, &[("primary_conninfo", &self.conninfo())]].concat());
        standby.boot();
        standby
    }

    /// Makes this standby follow another server of the same origin.
    #[track_caller]
    pub fn follow(&self, source: &Self) {
        let mut session = self.session("postgres", SUPERUSER);
        session.run(&format!("ALTER SYSTEM SET primary_conninfo = '{}'", source.conninfo()));
        session.run("SELECT pg_reload_conf()");
    }

    /// How a standby connects to this server.
    fn conninfo(&self) -> String {
        format!("host={} port={} user={SUPERUSER}", self.dir.display(), self.port)
    }

    /// A cluster that `pg_upgrade` creates from this one, which ends.
    pub fn upgrade(self) -> Self {
        let installation = Installation::get();
        let new = Site::default().claim("pg");
        copy(template(), &new.dir.join("data"));
        new.configure(&[]);
        self.stop();
        let mut command = installation.command("pg_upgrade");
        command.current_dir(&new.dir).args(["--no-sync", "-U", SUPERUSER]);
        command.arg("-b").arg(&installation.bin).arg("-d").arg(self.dir.join("data"));
        command.arg("-B").arg(&installation.bin).arg("-D").arg(new.dir.join("data"));
        command.arg("-p").arg(free_port().to_string()).arg("-P").arg(free_port().to_string());
        run(&mut command);
        new.boot();
        new
    }

    /// The server's log file.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        tail(&self.log_file())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the server's log ---\n{}---", self.log_tail());
        }
        drop(self.postmaster().take());
        let log = fs::read(self.log_file()).unwrap_or_default();
        let _ = fs::remove_dir_all(&self.dir);
        check_ring(&log);
    }
}

/// Panics if, according to a server's log, a tick that the relay read from shared memory was not what the log has.
pub(crate) fn check_ring(log: &[u8]) {
    let log = String::from_utf8_lossy(log);
    let differs = log.lines().find(|line| line.contains(DIFFERENCE));
    assert!(differs.is_none() || std::thread::panicking(), "{}", differs.unwrap_or_default());
}

/// The cluster that tests share if they don't break it. It ends with the process.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::start(&[]))
}

/// The ports of clusters and proxies: below the range that Linux uses for outgoing connections, so that none of those
/// can take one.
const PORTS: std::ops::Range<u32> = 16_384..32_768;

/// A port that nobody listens on, and that this process has not returned before.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Two test processes at the same time start at different ports.
    let start = std::process::id().wrapping_mul(997);
    loop {
        let n = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        let port = u16::try_from(PORTS.start + n).expect("a port");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The result of `initdb`, which runs once for each process.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let installation = Installation::get();
        let home = fresh_path("template");
        fs::create_dir(&home).expect("create the template's folder");
        installation.give(&home);
        let data = home.join("data");
        let output = installation
            .command("initdb")
            .args(["--no-sync", "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-D"])
            .arg(&data)
            .output()
            .expect("run initdb");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        data
    })
}

/// Where an absolute path is if another folder takes the place of `/`.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Runs a program that must succeed.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
}

/// Copies a folder with owners and modes.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("run cp");
    assert!(status.success(), "copy the template");
}
