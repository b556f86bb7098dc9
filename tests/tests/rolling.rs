//! Rolling upgrades from the last release, with its real proxy and its real library, while events flow: the database
//! first, or the proxies first.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidings_tests::cluster::{Installation, Site, free_port};
use tidings_tests::follower::Habits;
use tidings_tests::ledger::{self, Ledger, TOPICS, Writers};
use tidings_tests::release::Release;
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Follower, Proxy, until};

use crate::access::ask;
use crate::upgrade::{check_watches, furnish};
use crate::{seed, skipped};

/// The SQL that a database of the last release may have.
const SQL: [&str; 2] = ["0.1.0", "0.1.1"];

/// How many events a client must receive, and how many transactions writers must commit, between two steps.
const BETWEEN_STEPS: usize = 20;

/// So little memory that every client that comes back reads the log.
const FORGETFUL: [&str; 2] = ["--history-bytes", "1"];

/// What `pg_config` says about the installation with these programs.
fn pg_config(bin: &Path, flag: &str) -> String {
    let output = Command::new(bin.join("pg_config")).arg(flag).output().expect("run pg_config");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The extension's library in an installation.
fn library(bin: &Path) -> PathBuf {
    Path::new(&pg_config(bin, "--pkglibdir")).join("tidings.so")
}

/// Replaces the library as a package does: a running server keeps the file that it has mapped.
fn install(new: &Path, bin: &Path) {
    let file = library(bin);
    fs::remove_file(&file).expect("remove the library");
    fs::copy(new, &file).expect("install the library");
}

/// Whether a process has mapped the file that is now at this path, and not one that was there before.
fn has_mapped(pid: u32, file: &Path) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("what the process has mapped");
    maps.lines().any(|line| line.ends_with(file.to_str().expect("a path of text")))
}

/// A server with the library of the last release.
struct Server {
    release: Release,
    bin: PathBuf,
    cluster: Cluster,
}

impl Server {
    fn start() -> Option<Self> {
        let version = pg_config(&Installation::get().bin, "--version");
        let major = version.split([' ', '.']).find_map(|word| word.parse().ok()).expect("a version");
        let Some(release) = Release::last(major) else {
            skipped("the upgrade with the binaries of the last release, which `make released` builds");
            return None;
        };
        let bin = Installation::get().copy();
        install(&release.library, &bin);
        let cluster = Cluster::start_at(Site { bin: Some(bin.clone()), ..Site::default() }, &[]);
        Some(Self { release, bin, cluster })
    }

    /// A database with the SQL of a release.
    fn database(&self, sql: &str) -> Database<'_> {
        let db = self.cluster.empty_database();
        db.session().run(&format!("CREATE EXTENSION tidings VERSION '{sql}'"));
        db.wait_relay();
        furnish(&db);
        db
    }

    fn url(&self, db: &Database<'_>) -> String {
        self.cluster.url(db.name(), &db.proxy_role())
    }

    /// Two proxies of the last release.
    fn proxies(&self, db: &Database<'_>) -> [Proxy; 2] {
        [0, 1].map(|_| Proxy::start_binary(&self.release.proxy, &self.url(db), &[]))
    }

    /// Installs the files of this version. The running server keeps the old library.
    fn install(&self) {
        install(&library(&Installation::get().bin), &self.bin);
        assert!(!has_mapped(self.cluster.pid(), &library(&self.bin)));
    }

    /// Restarts the server, which then has the new library.
    fn restart(&self) {
        self.cluster.restart();
        assert!(has_mapped(self.cluster.pid(), &library(&self.bin)));
    }
}

/// Writers, and clients that must receive everything that they commit. The first two clients stay with one proxy.
struct Load<'l> {
    ledger: &'l Ledger<'l>,
    writers: Writers,
    clients: Vec<Follower>,
}

impl<'l> Load<'l> {
    fn start(ledger: &'l Ledger<'l>, proxies: &[Proxy; 2]) -> Self {
        let request = Request { of_releases: true, ..Request::live(&TOPICS) };
        let addresses = proxies.each_ref().map(Proxy::address);
        let traveller = Habits { leave_after: Some(30), proxies: addresses.to_vec(), patience: None };
        let habits = [Habits::faithful(addresses[0]), Habits::faithful(addresses[1]), traveller];
        let clients = habits.map(|habits| Follower::start(habits, request.clone(), ledger::is_end)).into();
        Self { ledger, writers: ledger.start(2, seed(), ""), clients }
    }

    /// Waits until each client has received more events, and writers have committed more.
    #[track_caller]
    fn flows(&self, step: &str) {
        println!("{step}");
        self.writers.wait_for(BETWEEN_STEPS as u64);
        for (number, client) in self.clients.iter().enumerate() {
            let goal = client.seen() + BETWEEN_STEPS;
            until(&format!("client {number} receives events after: {step}"), || client.seen() >= goal);
        }
    }

    /// How many streams the clients have opened that stay with one proxy.
    fn connections(&self) -> [usize; 2] {
        [0, 1].map(|client| self.clients[client].connections())
    }

    /// Ends the writers, and checks what each client has received.
    fn finish(self) {
        self.writers.finish();
        self.ledger.close();
        for client in self.clients {
            self.ledger.check(&client.finish());
        }
    }
}

/// A client that goes to the next proxy after each event gets every event once, and in order.
#[track_caller]
fn wander(db: &Database<'_>, proxies: &[SocketAddr]) {
    let request = Request { of_releases: true, ..Request::live(&["wander"]) };
    let habits = Habits { leave_after: Some(1), proxies: proxies.to_vec(), patience: None };
    let client = Follower::start(habits, request, |frame| frame.data == "0");
    let mut session = db.session();
    let numbers: Vec<String> = (1..=30).map(|n| n.to_string()).collect();
    for (n, number) in numbers.iter().enumerate() {
        // Some events find it connected, and some between two proxies.
        until("it has nearly caught up", || client.seen() + 2 >= n);
        session.publish("wander", number);
    }
    session.publish("wander", "0");
    let seen: Vec<String> = client.finish().into_iter().map(|frame| frame.data).collect();
    assert_eq!(seen, numbers);
}

#[test]
fn clients_miss_nothing_while_the_library_the_sql_and_the_proxies_of_the_last_release_are_upgraded() {
    SQL.into_iter().for_each(database_first);
}

fn database_first(sql: &str) {
    let Some(server) = Server::start() else { return };
    let db = server.database(sql);
    let (ledger, mut proxies) = (Ledger::create(&db), server.proxies(&db));
    let load = Load::start(&ledger, &proxies);
    load.flows("everything is of the release");

    // The files first. A new library needs a restart, and until then the server has the old one.
    server.install();
    load.flows("the new files are there, the server has the old library");
    // Without the restart the update is refused, and changes nothing.
    db.session().refused("ALTER EXTENSION tidings UPDATE");
    load.flows("an update came before the restart");

    let before = load.connections();
    server.restart();
    load.flows("the server has the new library, and the old SQL");
    db.session().run("ALTER EXTENSION tidings UPDATE");
    load.flows("the SQL is new, the proxies are old");
    // Clients who stay with one proxy were never disconnected.
    assert_eq!(before, load.connections(), "streams ended");

    for proxy in &mut proxies {
        proxy.upgrade();
        load.flows("a proxy is new");
    }
    db.session().run("SELECT tidings.rotate_channel()");
    load.flows("the channel has another name");
    load.finish();
    check_watches(&db);
}

#[test]
fn clients_miss_nothing_while_the_proxies_come_first_then_the_library_and_then_the_sql() {
    SQL.into_iter().for_each(proxies_first);
}

fn proxies_first(sql: &str) {
    let Some(server) = Server::start() else { return };
    let db = server.database(sql);
    let (ledger, mut proxies) = (Ledger::create(&db), server.proxies(&db));
    let forgetful = Proxy::start(&server.url(&db), &FORGETFUL);
    let load = Load::start(&ledger, &proxies);
    load.flows("everything is of the release, but one proxy without clients");

    let [address, other] = proxies.each_ref().map(Proxy::address);
    let all = [address, forgetful.address(), other, address, other];
    wander(&db, &all);
    proxies[0].upgrade();
    load.flows("a proxy is new");
    wander(&db, &all);
    proxies[1].upgrade();
    load.flows("the proxies are new");
    wander(&db, &all);
    let relay = db.wait_relay();
    db.session().run("SELECT pg_terminate_backend(tidings.relay_pid())");
    until("another relay runs", || db.relay().is_some_and(|pid| pid != relay));
    db.cut_proxies();
    load.flows("the relay was replaced, and the proxies have connected again");
    server.cluster.crash();
    load.flows("the server has crashed");

    let before = load.connections();
    server.install();
    server.restart();
    load.flows("the server has the new library, and the old SQL");
    for proxy in &proxies {
        proxy.wait_ready();
        assert_eq!(ask(proxy, "/events?topic=x&since=snapshot", &[]).0.status, 503);
    }
    wander(&db, &all);
    db.session().run("ALTER EXTENSION tidings UPDATE");
    load.flows("the SQL is new");
    for proxy in &proxies {
        let has_rows = || ask(proxy, "/events?topic=x&since=snapshot", &[]).0.status == 200;
        until("the proxy uses the new SQL", has_rows);
    }
    db.session().run("SELECT tidings.rotate_channel()");
    load.flows("the channel has another name");
    wander(&db, &all);
    assert_eq!(before, load.connections(), "streams ended");
    load.finish();
    check_watches(&db);
}

#[test]
fn a_proxy_that_is_started_between_all_steps_is_ready_at_each_of_them() {
    let Some(server) = Server::start() else { return };
    let db = server.database("0.1.1");
    let url = server.url(&db);
    let proxy = Proxy::start_at(free_port(), &url, &[]);
    proxy.wait_ready();
    server.install();
    Proxy::start(&url, &[]);
    server.restart();
    proxy.wait_ready();
    Proxy::start(&url, &[]);
    db.session().run("ALTER EXTENSION tidings UPDATE");
    Proxy::start(&url, &[]);
    proxy.wait_ready();
}
