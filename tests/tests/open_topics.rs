//! `tidings.open_topics`: SQL can ask which topics have subscribers.

use std::collections::BTreeMap;

use tidings_tests::{Cluster, Database, Sse, shared, until};

/// Topics with their subscribers and proxies, as SQL sees them.
fn open(db: &Database<'_>) -> BTreeMap<String, (i64, i64)> {
    let rows = db
        .session()
        .all("SELECT topic, subscribers::bigint, cardinality(proxies)::bigint FROM tidings.open_topics", &[]);
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
}

#[track_caller]
fn wait_open(db: &Database<'_>, expected: &[(&str, (i64, i64))]) {
    let expected: BTreeMap<String, (i64, i64)> =
        expected.iter().map(|(topic, counts)| ((*topic).to_owned(), *counts)).collect();
    let mut seen = BTreeMap::new();
    until(&format!("open topics are {expected:?}"), || {
        seen = open(db);
        seen == expected
    });
}

#[test]
fn no_topic_prevents_the_report_of_others() {
    let db = shared().database();
    let proxy = db.proxy(&[]);
    let long = "\u{10FFFF}".repeat(63);
    let odd = ["\u{FFFF}", "\u{E000}\u{200B}", "e\u{301}", "\u{e9}", "'; --", "{\"a\",NULL}", "\\", "NULL", &long];
    let streams = odd.map(|topic| proxy.live(&[topic, "boards_5"]));
    let all: Vec<_> = odd.map(|topic| (topic, (1, 1))).into_iter().chain([("boards_5", (9, 1))]).collect();
    wait_open(&db, &all);
    drop(streams);
    wait_open(&db, &[]);
    assert_eq!(proxy.metric("tidings_report_errors_total"), 0.0);
}

#[test]
fn a_topic_is_open_from_the_first_subscriber_at_any_proxy_to_the_last() {
    let db = shared().database();
    let proxies = [db.proxy(&[]), db.proxy(&[])];
    assert_eq!(open(&db), BTreeMap::new());
    let one = proxies[0].live(&["boards_5", "news"]);
    let two = proxies[0].live(&["boards_5"]);
    let three = proxies[1].live(&["boards_5"]);
    wait_open(&db, &[("boards_5", (3, 2)), ("news", (1, 1))]);
    drop(one);
    wait_open(&db, &[("boards_5", (2, 2))]);
    drop(three);
    wait_open(&db, &[("boards_5", (1, 1))]);
    drop(two);
    wait_open(&db, &[]);
}

#[test]
fn topics_are_open_again_after_a_crash_of_the_server() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    let proxy = db.proxy(&[]);
    let _stream = proxy.live(&["boards_5"]);
    wait_open(&db, &[("boards_5", (1, 1))]);
    db.crash();
    wait_open(&db, &[("boards_5", (1, 1))]);
}

#[test]
fn a_drained_proxy_closes_its_topics_and_the_lease_of_a_dead_one_expires() {
    let db = shared().database();
    let mut proxies = [db.proxy(&["--drain", "100ms"]), db.proxy(&[]), db.proxy(&[])];
    let _streams: Vec<Sse> = proxies.iter().map(|proxy| proxy.live(&["boards_5"])).collect();
    wait_open(&db, &[("boards_5", (3, 3))]);
    assert!(proxies[0].terminate().success());
    assert_eq!(open(&db)["boards_5"], (2, 2), "reported before it ended");
    proxies[1].kill();
    wait_open(&db, &[("boards_5", (1, 1))]);
}

#[test]
fn no_reported_number_hides_the_topics_of_other_proxies() {
    let db = shared().database();
    let mut session = db.session();
    session.run("SELECT tidings.report(proxy, '{boards_5}', '{2147483647}') FROM unnest(ARRAY['a', 'b']) proxy");
    session.run("SELECT tidings.report('c', '{news}', '{1}')");
    wait_open(&db, &[("boards_5", (2_147_483_647, 2)), ("news", (1, 1))]);
}

#[test]
fn changes_of_subscribers_cost_a_bounded_number_of_reports() {
    let db = shared().database();
    let proxy = db.proxy(&[]);
    let _stays = proxy.live(&["busy"]);
    wait_open(&db, &[("busy", (1, 1))]);
    let statements = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    let mut session = db.session();
    let before: i64 = session.one(statements);
    for _ in 0..1000 {
        drop(proxy.live(&["busy", "other"]));
    }
    proxy.wait_clients(1);
    wait_open(&db, &[("busy", (1, 1))]);
    session.run("SELECT pg_stat_clear_snapshot()");
    let commits = session.one::<i64>(statements) - before;
    // A thousand clients connected and disconnected; this test's own queries are among the commits.
    assert!(commits < 300, "{commits} transactions");
}
