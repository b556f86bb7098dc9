//! Servers with many databases, of which only few have the extension.

use tidings_tests::cluster::free_port;
use tidings_tests::{Cluster, Database, Proxy, Session, http, until};

use crate::log::Log;

/// More than a table of fixed size should have to hold, and as many as a test can create.
const MANY: usize = 70;

/// A server with few worker processes and many databases that existed before it started.
fn crowded() -> (Cluster, Vec<String>) {
    let cluster = Cluster::start(&[("max_worker_processes", "8")]);
    let mut session = cluster.session("postgres", "postgres");
    let names: Vec<String> = (1..=MANY).map(|n| format!("crowd_{n}")).collect();
    for name in &names {
        session.run(&format!("CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy"));
    }
    cluster.restart();
    (cluster, names)
}

fn works(db: &Database<'_>) {
    let mut log = Log::from_here(db);
    db.session().publish("t", "1");
    assert_eq!(log.news().len(), 1);
}

fn workers(session: &mut Session, kind: &str) -> i64 {
    session.one(&format!("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'tidings {kind}'"))
}

#[test]
fn databases_without_the_extension_take_no_relay_from_those_that_have_it() {
    let (cluster, names) = crowded();
    let mut session = cluster.session("postgres", "postgres");
    let served: Vec<Database<'_>> = [0, MANY - 1].map(|n| Database::existing(&cluster, &names[n])).into();
    for db in &served {
        db.session().run("CREATE EXTENSION tidings");
        db.wait_relay();
        works(db);
    }
    until("no worker is connected to the others any more", || workers(&mut session, "trial") == 0);
    assert_eq!(workers(&mut session, "relay"), 2);
    // When the server starts, they are found among all others.
    cluster.restart();
    for db in &served {
        db.wait_relay();
        works(db);
    }
}

#[test]
fn a_relays_slot_is_released_and_used_again() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    let mut session = db.session();
    for _ in 0..3 {
        session.run("DROP EXTENSION tidings");
        until("the relay has left", || workers(&mut session, "relay") == 0);
        session.run("CREATE EXTENSION tidings");
        db.wait_relay();
        works(&db);
    }
}

#[test]
fn an_extension_created_by_a_prepared_transaction_gets_its_relay() {
    let cluster = Cluster::start(&[]);
    let db = cluster.empty_database();
    let mut session = db.session();
    session.run("BEGIN; CREATE EXTENSION tidings; PREPARE TRANSACTION 'installation'");
    until("no launcher is connected any more", || workers(&mut session, "trial") == 0);
    session.run("COMMIT PREPARED 'installation'");
    db.wait_relay();
    works(&db);
}

#[test]
fn an_invalid_database_is_left_alone() {
    let cluster = Cluster::start(&[]);
    let mut session = cluster.session("postgres", "postgres");
    session.run("CREATE DATABASE broken");
    // The state that an interrupted DROP DATABASE leaves.
    session.run("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'broken'");
    cluster.stop();
    // Until now a process may have been about to connect, from before the database became invalid.
    let before = server_log(&cluster).len();
    cluster.boot();
    // It was created before this one, and databases are visited in that order.
    let db = cluster.database();
    works(&db);
    let mut session = db.session();
    until("no launcher is connected any more", || workers(&mut session, "trial") == 0);
    let log = server_log(&cluster).split_off(before);
    assert!(!log.contains("invalid database"), "{log}");
}

fn server_log(cluster: &Cluster) -> String {
    std::fs::read_to_string(cluster.log_file()).expect("the server's log")
}

#[test]
fn a_database_can_be_moved_to_another_tablespace() {
    let cluster = Cluster::start(&[("allow_in_place_tablespaces", "on")]);
    let db = cluster.database();
    let mut admin = cluster.session("postgres", "postgres");
    admin.run("CREATE TABLESPACE elsewhere LOCATION ''");
    // Only the relay is connected, and it disconnects.
    admin.run(&format!("ALTER DATABASE {} SET TABLESPACE elsewhere", db.name()));
    db.wait_relay();
    works(&db);
}

#[test]
fn a_proxy_whose_database_has_no_relay_is_not_ready_and_says_why() {
    // The launcher and Postgres's own workers use all of them.
    let cluster = Cluster::start(&[("max_worker_processes", "2")]);
    let db = cluster.empty_database();
    db.session().run("CREATE EXTENSION tidings");
    let proxy = Proxy::start_at(free_port(), &cluster.url(db.name(), &db.proxy_role()), &[]);
    until("it says that no relay runs", || {
        http::get(proxy.address(), "/readyz")
            .is_ok_and(|(head, body)| head.status == 503 && body.contains("no relay runs"))
    });
    db.session().run("ALTER SYSTEM SET max_worker_processes = 8");
    db.restart();
    proxy.wait_ready();
}
