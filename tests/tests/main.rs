//! The tests that need a real cluster and a real proxy, by subject.

mod access;
mod application;
mod attacks;
mod attacks_by_managers;
mod attacks_by_rules;
mod attacks_on_rules;
mod await_tick;
mod backlog;
mod balancer;
mod catch_up;
mod channels;
mod check;
mod chunks;
mod client_table;
mod clients;
mod delivery;
mod documentation;
mod drain;
mod dropping;
mod early;
mod export;
mod failover;
mod faults;
mod foreign_objects;
mod frames;
mod full_queue;
mod guard_capture;
mod guard_order;
mod guards;
mod hearing;
mod hostile_settings;
mod http2;
mod installation;
mod json;
mod key_set;
mod key_url;
mod leaving;
mod lenders;
mod limits;
mod locked_rules;
mod log;
mod login_role;
mod lost;
mod managers;
mod many_databases;
mod mistakes;
mod old_sql;
mod open_topics;
mod oracle;
mod order;
mod order_in_transaction;
mod outlines;
mod overview;
mod own_folder;
mod own_tables;
mod packages;
mod pages;
mod partitions;
mod pending;
mod places;
mod position;
mod pruning;
mod read_node;
mod read_node_document;
mod read_node_moves;
mod relay_channel;
mod relay_life;
mod resume;
mod retention;
mod rights;
mod ring;
mod rolling;
mod scan;
mod security_document;
mod segments;
mod semantics;
mod size;
mod snapshot;
mod standby;
mod state;
mod storms;
mod surface;
mod tls;
mod towards_postgres;
mod transactions;
mod upgrade;
mod user_code;
mod values;
mod watch_options;
mod watch_refusals;
mod writers_never_fail;

use std::io::Write;

use tidings_tests::cluster::Installation;
use tidings_tests::{Cluster, Database, Frame, Session, Sse, shared};

/// A new database with the table `board_items`, watched on `boards_{board_id}`.
fn boards() -> Database<'static> {
    let db = shared().database();
    create_boards(&db);
    db
}

/// The same in another cluster, where the database is not dropped at the end.
fn kept_boards(cluster: &Cluster) -> Database<'_> {
    let mut db = cluster.database();
    db.keep();
    create_boards(&db);
    db
}

fn create_boards(db: &Database<'_>) {
    db.session().run(
        "CREATE TABLE board_items (id bigint PRIMARY KEY, board_id bigint NOT NULL, title text);
         SELECT tidings.watch('board_items', topic => 'boards_{board_id}')",
    );
}

/// Publishes an event that comes after all others, and returns those before it: everything that has arrived, and
/// everything that will.
#[track_caller]
fn all_until_now(db: &Database<'_>, topic: &str, sse: &mut Sse) -> Vec<Frame> {
    const MARK: &str = "nothing comes after this mark";
    db.session().publish(topic, &format!("\"{MARK}\""));
    sse.before(|frame| frame.data.contains(MARK))
}

/// The titles of the rows in the events, in order.
#[track_caller]
fn titles(frames: &[Frame]) -> Vec<String> {
    let title = |frame: &Frame| frame.json()["record"]["title"].as_str().map(str::to_owned);
    frames.iter().map(|frame| title(frame).unwrap_or_else(|| panic!("no title: {frame:?}"))).collect()
}

/// Reports what a test leaves out because this Postgres can't do it. It goes directly to standard error, because
/// libtest hides what a test prints unless it fails.
fn skipped(what: &str) {
    // libtest names a test's thread after the test.
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED in {test}: {what}");
}

/// Whether this Postgres was built with XML; if not, reports that the test leaves it out.
fn has_xml(session: &mut Session) -> bool {
    let has_xml = session.client().simple_query("SELECT '<a/>'::xml").is_ok();
    if !has_xml {
        skipped("values of type xml, which this Postgres was built without");
    }
    has_xml
}

/// Whether the programs of this Postgres run. The psql of one wheel crashes when it starts, and pg_upgrade calls it.
fn has_psql() -> bool {
    let runs = Installation::get().has_psql();
    if !runs {
        skipped("what needs psql, which does not run in this installation");
    }
    runs
}

/// The seed of a random test: `TIDINGS_SEED` to repeat a test, otherwise a new one. The writers print it.
fn seed() -> u64 {
    std::env::var("TIDINGS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..1_000_000))
}
