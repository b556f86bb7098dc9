//! When a relay starts and stops: from CREATE EXTENSION to DROP EXTENSION, one for each database.

use tidings_tests::process::{Signal, send};
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Proxy, shared, until};

use crate::{all_until_now, boards, create_boards, titles};

/// How many relays a database has. The extension need not exist. A relay that has just started may be missing for a
/// moment: Postgres shows a worker's type only once the postmaster has noted the worker's process.
fn relays(db: &tidings_tests::Database<'_>) -> i64 {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND backend_type ILIKE '%tidings%'",
        db.name()
    );
    db.cluster().session("postgres", "postgres").one(&sql)
}

#[test]
fn create_extension_starts_the_relay_and_drop_extension_ends_it() {
    let db = shared().empty_database();
    // A relay may just be checking the new database.
    until("no relay stays", || relays(&db) == 0);
    let mut session = db.session();
    session.run("BEGIN; CREATE EXTENSION tidings; ROLLBACK");
    session.run("CREATE EXTENSION tidings");
    db.wait_relay();
    until("one relay is shown", || relays(&db) == 1);
    session.run("DROP EXTENSION tidings");
    until("the relay is gone", || relays(&db) == 0);
    let left: i64 = session.one(
        "SELECT count(*) FROM pg_depend WHERE refobjid = (SELECT oid FROM pg_namespace WHERE nspname = 'tidings')",
    );
    assert_eq!(left, 0, "objects left in the schema");
}

#[test]
fn a_rolled_back_drop_leaves_the_relay_running() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    session.run("BEGIN; DROP EXTENSION tidings CASCADE; ROLLBACK");
    session.run("INSERT INTO board_items VALUES (1, 5, 'a')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["a"]);
    assert_eq!(relays(&db), 1);
}

#[test]
fn the_extension_can_be_created_again_in_the_same_session() {
    let db = shared().empty_database();
    let mut session = db.session();
    let mut channels = Vec::new();
    for round in 0..3 {
        session.run("CREATE EXTENSION tidings");
        db.wait_relay();
        session.run("CREATE TABLE board_items (id int, board_id int, title text); SELECT tidings.watch('board_items', topic => 'boards_{board_id}')");
        session.run(&format!("INSERT INTO board_items VALUES (1, 5, 'round {round}')"));
        // In the same session, whose caches know the old tables; the old grants are gone with them.
        let role = db.proxy_role();
        session.run(&format!("SELECT tidings.grant_proxy('{role}')"));
        let proxy = Proxy::start(&db.cluster().url(db.name(), &role), &[]);
        let mut sse = proxy.open(&Request::since(&["boards_5"], "earliest"));
        assert_eq!(titles(&[sse.frame()]), [format!("round {round}")]);
        session.run("INSERT INTO board_items VALUES (2, 5, 'live')");
        assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["live"]);
        channels.push(session.one::<String>("SELECT tidings.channel()"));
        session.run("DROP EXTENSION tidings CASCADE; DROP TABLE board_items");
    }
    assert!(channels[0] != channels[1] && channels[1] != channels[2], "each time a new channel: {channels:?}");
}

#[test]
fn a_database_can_be_dropped_while_its_relay_runs() {
    let mut db = shared().database();
    db.session().run("CREATE TABLE t (); SELECT tidings.publish('t', '1')");
    db.keep();
    let mut session = shared().session("postgres", "postgres");
    // Without FORCE: only the relay is connected.
    session.run(&format!("DROP DATABASE {}", db.name()));
    assert_eq!(relays(&db), 0);
}

#[test]
fn two_databases_have_two_relays_and_do_not_receive_each_others_events() {
    let (one, two) = (boards(), boards());
    let (first, second) = (one.wait_relay(), two.wait_relay());
    assert_ne!(first, second);
    let channel = |db: &tidings_tests::Database<'_>| db.session().one::<String>("SELECT tidings.channel()");
    assert_ne!(channel(&one), channel(&two));
    let proxies = [one.proxy(&[]), two.proxy(&[])];
    let (mut of_one, mut of_two) = (proxies[0].live(&["boards_5"]), proxies[1].live(&["boards_5"]));
    one.session().run("INSERT INTO board_items VALUES (1, 5, 'in one')");
    two.session().run("INSERT INTO board_items VALUES (1, 5, 'in two')");
    assert_eq!(titles(&all_until_now(&one, "boards_5", &mut of_one)), ["in one"]);
    assert_eq!(titles(&all_until_now(&two, "boards_5", &mut of_two)), ["in two"]);
}

#[test]
fn without_preloading_create_extension_says_what_to_set() {
    let cluster = Cluster::start(&[("shared_preload_libraries", "")]);
    let db = cluster.empty_database();
    let error = db.session().refused("CREATE EXTENSION tidings");
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains("shared_preload_libraries"), "{error}, hint: {hint}");
    let there: bool = db.session().one("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'tidings')");
    assert!(!there);
}

#[test]
fn without_preloading_writes_succeed_with_one_warning_a_session() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    db.session().run("ALTER SYSTEM RESET shared_preload_libraries");
    cluster.restart();
    let mut session = db.session();
    session
        .run("INSERT INTO board_items VALUES (1, 5, 'a'); UPDATE board_items SET title = 'b'; DELETE FROM board_items");
    let warnings =
        |cluster: &Cluster| cluster.log_tail().matches("changes of watched tables are not announced").count();
    assert_eq!(warnings(&cluster), 1);
    // Everything else says what to set, and nothing crashes.
    for sql in [
        "SELECT tidings.publish('boards_5', '1')",
        "SELECT tidings.position()",
        "SELECT * FROM tidings.status",
        "SELECT tidings.watch('board_items', topic => 'x')",
        "SELECT tidings.allow('boards_{id}', 'SELECT')",
        "SELECT * FROM tidings.changes('earliest')",
        "DROP EXTENSION tidings CASCADE; CREATE EXTENSION tidings",
    ] {
        let error = session.refused(sql);
        assert!(error.message().contains("shared_preload_libraries"), "{sql}: {error}");
    }
    session.run("ALTER SYSTEM SET shared_preload_libraries = 'tidings'");
    cluster.restart();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    db.session().run("INSERT INTO board_items VALUES (2, 5, 'announced')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["announced"]);
    // The order of removal: the extension, the setting, the library.
    db.session().run("DROP EXTENSION tidings CASCADE");
    db.session().run("ALTER SYSTEM RESET shared_preload_libraries");
    cluster.restart();
    db.session().run("INSERT INTO board_items VALUES (3, 5, 'written')");
}

#[test]
fn relays_start_by_themselves_with_the_server() {
    let cluster = Cluster::start(&[]);
    let (one, two) = (cluster.database(), cluster.database());
    let without = cluster.empty_database();
    create_boards(&one);
    cluster.restart();
    one.wait_relay();
    two.wait_relay();
    // A worker may just be checking whether the database has the extension.
    until("no relay stays", || relays(&without) == 0);
    let proxy = one.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    one.session().run("INSERT INTO board_items VALUES (1, 5, 'after the restart')");
    assert_eq!(titles(&[sse.frame()]), ["after the restart"]);
}

#[test]
fn a_terminated_relay_comes_back() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    for id in 1..=3 {
        let old = db.wait_relay();
        db.session().run(&format!("SELECT pg_terminate_backend({old}); INSERT INTO board_items VALUES ({id}, 5, 'n')"));
        until("a new relay runs", || db.relay().is_some_and(|pid| pid != old));
    }
    assert_eq!(all_until_now(&db, "boards_5", &mut sse).len(), 3);
}

#[test]
fn a_relay_that_ends_under_a_later_launcher_comes_back_too() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    let mut session = db.session();
    let workers = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'tidings launcher'";
    for _ in 0..2 {
        let old = db.wait_relay();
        let launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'tidings launcher'";
        let before: i32 = session.one(launcher);
        session.run(workers);
        until("a new launcher runs", || {
            session.all(launcher, &[]).first().is_some_and(|row| row.get::<_, i32>(0) != before)
        });
        session.run(&format!("SELECT pg_terminate_backend({old})"));
        until("a new relay runs", || db.relay().is_some_and(|pid| pid != old));
    }
    until("one relay is shown", || relays(&db) == 1);
}

#[test]
fn the_watches_are_read_from_the_triggers() {
    let db = boards();
    let mut session = db.session();
    let count = |session: &mut tidings_tests::Session| session.one::<i64>("SELECT count(*) FROM tidings.watches");
    assert_eq!(count(&mut session), 1);
    session.run(
        "CREATE TABLE hand_made (id int);
         CREATE TRIGGER tidings_default AFTER INSERT OR UPDATE OR DELETE ON hand_made
           FOR EACH ROW EXECUTE FUNCTION tidings.capture('topic=hand_{id}', 'event=made')",
    );
    assert_eq!(count(&mut session), 2);
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["hand_7", "boards_5"]);
    session.run("INSERT INTO hand_made VALUES (7)");
    assert_eq!(sse.frame().event, "made");
    assert!(session.one::<bool>("SELECT tidings.unwatch('board_items')"));
    assert!(!session.one::<bool>("SELECT tidings.unwatch('board_items')"));
    assert_eq!(count(&mut session), 1);
    session.run("INSERT INTO board_items VALUES (1, 5, 'unwatched')");
    assert_eq!(all_until_now(&db, "hand_7", &mut sse), []);
}

#[test]
fn a_wrong_watch_is_an_error_at_once() {
    let db = boards();
    let mut session = db.session();
    for sql in [
        "SELECT tidings.watch('board_items', topic => 'boards_{no_such_column}')",
        "SELECT tidings.watch('board_items', topic => 'boards_{board_id')",
        "SELECT tidings.watch('board_items', topic => '')",
        "SELECT tidings.watch('board_items', topic => 'x', event => '')",
        "SELECT tidings.watch('no_such_table', topic => 'x')",
    ] {
        session.refused(sql);
    }
    // The existing relay still works.
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    session.run("INSERT INTO board_items VALUES (1, 5, 'a')");
    assert_eq!(titles(&[sse.frame()]), ["a"]);
}

#[test]
fn the_status_shows_the_relay() {
    let db = boards();
    let pid = i32::try_from(db.wait_relay()).expect("a process id");
    let mut session = db.session();
    until("the relay is at work", || {
        let rows = session.all("SELECT relay_pid, relay_state FROM tidings.status", &[]);
        assert_eq!(rows.len(), 1);
        (rows[0].get::<_, Option<i32>>(0), rows[0].get::<_, &str>(1)) == (Some(pid), "running")
    });
}

#[test]
fn the_status_shows_a_segment_that_waits_for_its_tick() {
    let db = boards();
    let (mut early, mut session) = (db.session(), db.session());
    early.run("BEGIN; INSERT INTO board_items VALUES (1, 5, 'early')");
    session.run("INSERT INTO board_items VALUES (2, 5, 'in the last tick')");
    until("it is in a tick", || session.one("SELECT count(*) = 1 FROM tidings.events"));
    let relay = db.stop_relay();
    early.run("COMMIT");
    let waits: bool = session.one("SELECT waiting_since IS NOT NULL FROM tidings.status");
    send(relay, Signal::SIGCONT);
    assert!(waits);
}
