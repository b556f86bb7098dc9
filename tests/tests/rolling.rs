//! A rolling upgrade from the last release, with its real proxy and its real library, while events flow.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidings_tests::cluster::{Installation, Site};
use tidings_tests::follower::Habits;
use tidings_tests::ledger::{self, Ledger, TOPICS, Writers};
use tidings_tests::release::Release;
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Follower, Proxy, http, until};

use crate::upgrade::{check_watches, furnish};
use crate::{seed, skipped};

/// How many events a client must receive, and how many transactions writers must commit, between two steps.
const BETWEEN_STEPS: usize = 20;

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

/// Waits until each client has received more events, and writers have committed more.
#[track_caller]
fn flows(step: &str, writers: &Writers, clients: &[Follower]) {
    println!("{step}");
    writers.wait_for(BETWEEN_STEPS as u64);
    for (number, client) in clients.iter().enumerate() {
        let goal = client.seen() + BETWEEN_STEPS;
        until(&format!("client {number} receives events after: {step}"), || client.seen() >= goal);
    }
}

#[test]
fn clients_miss_nothing_while_the_library_the_sql_and_the_proxies_of_the_last_release_are_upgraded() {
    for sql in ["0.1.0", "0.1.1"] {
        roll_from(sql);
    }
}

fn roll_from(sql: &str) {
    let original = &Installation::get().bin;
    let major = pg_config(original, "--version");
    let major = major.split([' ', '.']).find_map(|word| word.parse().ok()).expect("a version");
    let Some(release) = Release::last(major) else {
        return skipped("the upgrade with the binaries of the last release, which `make released` builds");
    };
    let bin = Installation::get().copy();
    install(&release.library, &bin);
    let cluster = Cluster::start_at(Site { bin: Some(bin.clone()), ..Site::default() }, &[]);
    let db = cluster.empty_database();
    db.session().run(&format!("CREATE EXTENSION tidings VERSION '{sql}'"));
    db.wait_relay();
    furnish(&db);
    let ledger = Ledger::create(&db);
    let url = cluster.url(db.name(), &db.proxy_role());
    let mut proxies = [0, 1].map(|_| Proxy::start_binary(&release.proxy, &url, &[]));
    let request = Request { of_releases: true, ..Request::live(&TOPICS) };
    let addresses = proxies.each_ref().map(Proxy::address);
    let traveller = Habits { leave_after: Some(30), proxies: addresses.to_vec(), patience: None };
    let habits = [Habits::faithful(addresses[0]), Habits::faithful(addresses[1]), traveller];
    let clients = habits.map(|habits| Follower::start(habits, request.clone(), ledger::is_end));
    let writers = ledger.start(2, seed(), "");
    flows("everything is of the release", &writers, &clients);

    // The files first. A new library needs a restart, and until then the server has the old one.
    install(&library(original), &bin);
    assert!(!has_mapped(cluster.pid(), &library(&bin)));
    flows("the new files are there, the server has the old library", &writers, &clients);
    // Without the restart the update is refused, and changes nothing.
    db.session().refused("ALTER EXTENSION tidings UPDATE");
    // A new proxy that comes too early waits, and says for what.
    let early = Proxy::start_at(tidings_tests::cluster::free_port(), &url, &[]);
    let waits = || {
        http::get(early.address(), "/readyz")
            .is_ok_and(|(head, body)| head.status == 503 && body.contains("ALTER EXTENSION tidings UPDATE"))
    };
    until("the new proxy says what it waits for", waits);
    flows("an update came before the restart, and a new proxy before the update", &writers, &clients);

    let before: Vec<usize> = clients.iter().map(Follower::connections).collect();
    cluster.restart();
    assert!(has_mapped(cluster.pid(), &library(&bin)));
    flows("the server has the new library, and the old SQL", &writers, &clients);
    until("the new proxy still waits", waits);
    db.session().run("ALTER EXTENSION tidings UPDATE");
    flows("the SQL is new, the proxies are old", &writers, &clients);
    early.wait_ready();
    // Clients who stay with one proxy were never disconnected.
    let after: Vec<usize> = clients.iter().map(Follower::connections).collect();
    assert_eq!(before[..2], after[..2], "streams ended");

    for proxy in &mut proxies {
        proxy.upgrade();
        flows("a proxy is new", &writers, &clients);
    }
    db.session().run("SELECT tidings.rotate_channel()");
    flows("the channel has another name", &writers, &clients);
    writers.finish();
    ledger.close();
    for client in clients {
        ledger.check(&client.finish());
    }
    check_watches(&db);
}
