//! Statements that need a database without other sessions work beside open proxies, as `rails db:drop` and test suites
//! use them: a proxy leaves the database for the moment, and comes back by itself.

use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Proxy, Sse, http, shared, until};

use crate::access::{Team, sign};
use crate::log::Log;
use crate::{all_until_now, boards, create_boards, titles};

/// The reason why the proxy is not ready, or "ready".
fn readiness(proxy: &Proxy) -> String {
    http::get(proxy.address(), "/readyz").map(|(_, body)| body).unwrap_or_default()
}

/// Inserts a board's item, which must come next.
#[track_caller]
fn next(db: &Database<'_>, sse: &mut Sse, id: i32) {
    db.session().run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'n{id}')"));
    assert_eq!(titles(&[sse.frame()]), [format!("n{id}")]);
}

#[test]
fn a_database_is_dropped_beside_an_open_proxy_which_continues_when_it_is_created_again() {
    let db = boards();
    let owner = db.role("owner");
    shared()
        .session("postgres", "postgres")
        .run(&format!("ALTER ROLE {owner} CREATEDB; ALTER DATABASE {} OWNER TO {owner}", db.name()));
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    next(&db, &mut sse, 1);
    // Without FORCE, and without rights on the proxy's sessions: these it ends itself.
    let mut session = shared().session("postgres", &owner);
    session.run(&format!("DROP DATABASE {}", db.name()));
    until("it says why it is not ready", || readiness(&proxy).contains("does not exist"));
    session.run(&format!("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8'", db.name()));
    until("it says what is missing", || readiness(&proxy).contains("CREATE EXTENSION tidings"));
    db.session().run(&format!("CREATE EXTENSION tidings; SELECT tidings.grant_proxy('{}')", db.proxy_role()));
    create_boards(&db);
    proxy.wait_ready();
    assert_eq!(sse.frame().event, "reset");
    next(&db, &mut sse, 2);
}

#[test]
fn all_connections_of_a_proxy_with_rules_leave_and_a_copy_of_the_database_interrupts_no_stream() {
    let team = Team::new();
    let gate = team.gate_role();
    team.db.session().run(&format!("GRANT SELECT ON board_items TO {}", team.member));
    let gate_url = team.db.cluster().url(team.db.name(), &gate);
    let proxy = team.proxy(&["--gate-url", &gate_url, "--reauthorize", "1s"]);
    let token = sign(&serde_json::json!({ "role": team.member, "sub": "1", "exp": 4_000_000_000u64 }));
    let mut sse = proxy.open(&Request::since(&["boards_5"], "snapshot").by(&token));
    until("the rows have come", || sse.frame().event == "ready");
    let mut admin = shared().session("postgres", "postgres");
    for round in 0..3 {
        let copy = format!("{}_copy_{round}", team.db.name());
        // A statement that fails although the proxy has left leaves nothing behind.
        admin.refused(&format!("CREATE DATABASE postgres TEMPLATE {}", team.db.name()));
        admin.run(&format!("CREATE DATABASE {copy} TEMPLATE {}", team.db.name()));
        admin.run(&format!("DROP DATABASE {copy}"));
        team.db.wait_relay();
        next(&team.db, &mut sse, round);
    }
    assert!(all_until_now(&team.db, "boards_5", &mut sse).is_empty());
    proxy.wait_ready();
    assert!(proxy.log().contains("the proxy has left it for a moment"));
}

#[test]
fn databases_that_are_renamed_in_one_transaction_all_get_their_relays_back() {
    let databases = [boards(), boards()];
    for db in &databases {
        db.wait_relay();
    }
    let rename = |from: &str, to: &str| {
        let statement = |db: &Database<'_>| format!("ALTER DATABASE {0}{from} RENAME TO {0}{to};", db.name());
        databases.iter().map(statement).collect::<String>()
    };
    // Statements that are sent together are one transaction.
    let mut admin = shared().session("postgres", "postgres");
    admin.run(&format!("{}{}", rename("", "_old"), rename("_old", "")));
    for db in &databases {
        db.wait_relay();
    }
}

#[test]
fn a_role_that_may_not_drop_the_database_does_not_disturb_its_proxies() {
    let db = boards();
    let stranger = db.role("stranger");
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    shared().session("postgres", &stranger).forbidden(&format!("DROP DATABASE {}", db.name()));
    next(&db, &mut sse, 1);
    assert_eq!(proxy.metric("tidings_upstream_reconnects_total"), 0.0);
}

#[test]
fn every_new_database_has_the_extension_if_template1_has_it() {
    let cluster = Cluster::start(&[]);
    cluster.session("template1", "postgres").run("CREATE EXTENSION tidings");
    let mut admin = cluster.session("postgres", "postgres");
    // As test suites do, by a role that is nothing but allowed to create databases.
    admin.run("CREATE ROLE tester LOGIN CREATEDB");
    let mut tester = cluster.session("postgres", "tester");
    let mut works = |name: &str, template: &str| {
        tester.run(&format!("CREATE DATABASE {name} {template}"));
        let db = Database::existing(&cluster, name);
        db.wait_relay();
        let mut log = Log::from_here(&db);
        db.session().publish("t", "1");
        assert_eq!(log.news().len(), 1);
        db
    };
    let first = works("app_test", "");
    works("app_test_1", "");
    // Somebody else's database, if it is marked as a template, also while a relay runs in it.
    admin.run("ALTER DATABASE app_test OWNER TO postgres");
    cluster.session("postgres", "tester").forbidden("CREATE DATABASE app_test_2 TEMPLATE app_test");
    first.wait_relay();
    admin.run("ALTER DATABASE app_test IS_TEMPLATE true");
    works("app_test_2", "TEMPLATE app_test");
    for name in ["app_test_1", "app_test_2"] {
        cluster.session("postgres", "tester").run(&format!("DROP DATABASE {name}"));
    }
    admin.run("ALTER DATABASE app_test IS_TEMPLATE false");
}
