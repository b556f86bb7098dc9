//! Dump and restore, drop, copy, failover and upgrade of databases that have watches.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde_json::json;
use tidings_tests::follower::Habits;
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Follower, Proxy, Session, shared, until};

use crate::has_psql;
use crate::log::{Log, kinds};

/// What a DBA has in a database: watches of all kinds, grants, and a log that is not empty.
fn furnish(db: &Database<'_>) {
    let role = db.proxy_role();
    db.session().run(&format!(
        "CREATE SCHEMA \"odd \"\"schema\"\"\"; CREATE TABLE \"odd \"\"schema\"\"\".\"it's\" (id int PRIMARY KEY, \"a b\" text);
         CREATE TABLE items (id int PRIMARY KEY, board_id int, title text);
         CREATE TABLE parts (id int) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parts FOR VALUES IN (1);
         SELECT tidings.watch('\"odd \"\"schema\"\"\".\"it''s\"', topic => 'odd {{a b}}', payload => '{{\"$\": \"$a b\", \"q\": \"it''s\"}}', name => 'wa tch'),
                tidings.watch('items', topic => 'b{{board_id}}', operations => '{{INSERT,UPDATE}}', condition => 'NEW.id > 0', exclude => '{{title}}'),
                tidings.watch('items', topic => 'all', name => 'all', operations => '{{DELETE,TRUNCATE}}', old_record => 'none'),
                tidings.watch('parts', topic => 'parts');
         ALTER TABLE items ENABLE ALWAYS TRIGGER tidings_all;
         GRANT USAGE ON SCHEMA tidings TO {role}; GRANT EXECUTE ON FUNCTION tidings.publish(text, jsonb, text) TO {role};
         INSERT INTO items VALUES (1, 5, 'a'); INSERT INTO parts VALUES (1)"
    ));
}

/// Everything about the watches and the rights.
fn inventory(session: &mut Session) -> BTreeSet<String> {
    let rows = session.all(
        "SELECT line FROM (
             SELECT pg_get_triggerdef(t.oid) || ' ' || tgenabled::text AS line FROM pg_trigger t WHERE tgfoid = 'tidings.capture()'::regprocedure
             UNION ALL SELECT to_jsonb(w)::text FROM tidings.watches w
             UNION ALL SELECT p.oid::regprocedure || ' ' || coalesce(p.proacl, acldefault('f', p.proowner))::text FROM pg_proc p WHERE pronamespace = 'tidings'::regnamespace
             UNION ALL SELECT c.oid::regclass || ' ' || coalesce(c.relacl, acldefault('r', c.relowner))::text FROM pg_class c WHERE relnamespace = 'tidings'::regnamespace
             UNION ALL SELECT 'schema ' || coalesce(nspacl, acldefault('n', nspowner))::text FROM pg_namespace WHERE nspname = 'tidings') l",
        &[],
    );
    rows.iter().map(|row| row.get(0)).collect()
}

#[track_caller]
fn same_inventory(session: &mut Session, before: &BTreeSet<String>) {
    let after = inventory(session);
    let differ: Vec<_> = after.symmetric_difference(before).collect();
    assert!(differ.is_empty(), "not in both: {differ:#?}");
}

/// The watches of `furnish` are at work.
fn check_watches(db: &Database<'_>) {
    let mut log = Log::from_here(db);
    db.session().run(
        "INSERT INTO \"odd \"\"schema\"\"\".\"it's\" VALUES (7, 'x'); INSERT INTO items VALUES (10, 5, 'new'), (-10, 5, 'unseen');
         DELETE FROM items WHERE id = 10; DELETE FROM parts; INSERT INTO parts VALUES (1)",
    );
    let mut events = log.news();
    let odd = events.remove(0);
    assert_eq!((odd.topic.as_str(), odd.json()), ("odd x", json!({"$": "x", "q": "it's"})));
    assert_eq!(kinds(&events), ["INSERT b5", "DELETE all", "DELETE parts", "INSERT parts"]);
}

/// What the extension consists of, as the catalogs describe it.
pub fn description(session: &mut Session) -> BTreeSet<String> {
    let rows = session.all(
        "SELECT pg_describe_object(d.classid, d.objid, 0) || ': ' || concat_ws(' ',
             CASE d.classid
                 WHEN 'pg_proc'::regclass THEN pg_get_functiondef(d.objid)
                 WHEN 'pg_class'::regclass THEN coalesce(pg_get_viewdef(d.objid), (
                     SELECT string_agg(format('%s %s %s %s', attname, format_type(atttypid, atttypmod), attnotnull, col_description(attrelid, attnum)), ', ' ORDER BY attnum)
                     FROM pg_attribute WHERE attrelid = d.objid AND attnum > 0 AND NOT attisdropped))
             END,
             (SELECT string_agg(attname || ' ' || col_description(attrelid, attnum), ', ' ORDER BY attnum) FROM pg_attribute
              WHERE d.classid = 'pg_class'::regclass AND attrelid = d.objid AND attnum > 0),
             (SELECT string_agg(indexdef, ', ' ORDER BY indexdef) FROM pg_indexes
              WHERE d.classid = 'pg_class'::regclass AND format('%I.%I', schemaname, tablename)::regclass = d.objid),
             obj_description(d.objid, d.classid::regclass::name))
         FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid AND d.refclassid = 'pg_extension'::regclass
         WHERE e.extname = 'tidings' AND d.deptype = 'e' AND d.classid <> 'pg_type'::regclass",
        &[],
    );
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn the_schema_keeps_its_name_as_long_as_the_extension_is_there() {
    let db = shared().database();
    let mut session = db.session();
    let refused = session.refused("ALTER SCHEMA tidings RENAME TO elsewhere");
    assert_eq!(refused.code().code(), "0A000");
    assert!(refused.hint().is_some());
    session.run("CREATE SCHEMA other; ALTER SCHEMA other RENAME TO another");
    session
        .run("DROP EXTENSION tidings; CREATE SCHEMA IF NOT EXISTS tidings; ALTER SCHEMA tidings RENAME TO elsewhere");
}

#[test]
fn an_update_from_any_release_keeps_everything_and_ends_where_a_new_installation_begins() {
    for version in ["0.1.0", "0.1.1"] {
        update_from(version);
    }
}

fn update_from(version: &str) {
    let cluster = shared();
    let (db, fresh) = (cluster.empty_database(), cluster.database());
    db.session().run(&format!("CREATE EXTENSION tidings VERSION '{version}'"));
    db.wait_relay();
    furnish(&db);
    let mut session = db.session();
    session.run("SELECT tidings.allow('b{id}', 'SELECT WHERE {id} = ''5''')");
    let position: String = session.one("SELECT tidings.position()");
    session.run("INSERT INTO items VALUES (2, 5, 'before')");
    let before = inventory(&mut session);
    session.run("ALTER EXTENSION tidings UPDATE");
    session.run("INSERT INTO items VALUES (3, 5, 'after')");
    let after = inventory(&mut session);
    // Proxies no longer need a right to read the rules.
    let lost: Vec<_> = before.difference(&after).filter(|what| !what.starts_with("tidings.rules_for(")).collect();
    assert!(lost.is_empty(), "lost: {lost:#?}");
    let version = "SELECT extversion FROM pg_extension WHERE extname = 'tidings'";
    assert_eq!(session.one::<String>(version), fresh.session().one::<String>(version));
    let (updated, new) = (description(&mut session), description(&mut fresh.session()));
    let differ: Vec<_> = updated.symmetric_difference(&new).collect();
    assert!(differ.is_empty(), "not in both: {differ:#?}");
    // Who comes back with a position from before misses nothing. The proxy is one of the new version, as its role has
    // the rights for it.
    let proxy = db.proxy(&[]);
    let mut sse = proxy.open(&Request::since(&["b5"], &position));
    assert_eq!([2, 3].map(|_| sse.frame().json()["record"]["id"].as_i64()), [Some(2), Some(3)]);
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.rules"), 1);
    check_watches(&db);
}

#[test]
fn a_dumped_and_restored_database_has_working_watches() {
    let source = Cluster::start(&[]);
    let db = source.database();
    furnish(&db);
    let before = inventory(&mut db.session());
    let position: String = db.session().one("SELECT tidings.position()");
    let proxy = db.proxy_role();
    let file = source.socket_dir().join("dump");
    let plain = has_psql().then_some(("plain", "psql"));
    for (format, restore) in [("custom", "pg_restore")].into_iter().chain(plain) {
        let output =
            source.tool("pg_dump").args(["-F", format, "-f"]).arg(&file).arg(db.name()).output().expect("run pg_dump");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let target = Cluster::start(&[]);
        let copy = target.empty_database();
        target.session("postgres", "postgres").run(&format!("CREATE ROLE {proxy} LOGIN"));
        let mut command = target.tool(restore);
        match restore {
            "psql" => command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&file).args(["-d", copy.name()]),
            _ => command.args(["--exit-on-error", "-d", copy.name()]).arg(&file),
        };
        let output = command.output().expect("run the restore");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        copy.wait_relay();
        let mut session = copy.session();
        same_inventory(&mut session, &before);
        assert_eq!(session.one::<i64>("SELECT count(*) FROM items"), 1);
        assert_eq!(
            session.one::<i64>("SELECT count(*) FROM tidings.events"),
            0,
            "rows that are restored are no changes"
        );
        assert_ne!(
            session.one::<String>("SELECT tidings.channel()"),
            db.session().one::<String>("SELECT tidings.channel()"),
            "each database has a channel of its own"
        );
        // A position of the old database is older than anything here.
        assert_eq!(session.refused(&format!("SELECT * FROM tidings.changes('{position}')")).code().code(), "TI001");
        check_watches(&copy);
        let proxy = Proxy::start(&target.url(copy.name(), &proxy), &[]);
        let mut sse = proxy.open(&Request::since(&["b5"], &position));
        assert_eq!(sse.frame().event, "reset", "its rights are there, and a client from before is told");
    }
}

#[test]
fn drop_extension_refuses_while_watches_depend_on_it() {
    let db = shared().database();
    furnish(&db);
    let mut session = db.session();
    let error = session.refused("DROP EXTENSION tidings");
    assert_eq!(error.code().code(), "2BP01");
    assert!(
        error.detail().is_some_and(|detail| detail.contains("trigger tidings_default on table items")),
        "{error:?}"
    );
    check_watches(&db);
    session.run("DROP EXTENSION tidings CASCADE");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"), 0);
    session.run("INSERT INTO items VALUES (2, 5, 'unwatched')");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM items"), 3);
}

#[test]
fn dropping_in_the_transaction_that_wrote_loses_the_events_and_not_the_rows() {
    let db = shared().database();
    furnish(&db);
    let mut session = db.session();
    session.run("BEGIN; INSERT INTO items VALUES (2, 5, 'kept'); DROP EXTENSION tidings CASCADE; COMMIT");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM items"), 2);
}

#[test]
fn a_writer_that_waits_for_a_drop_of_the_extension_commits() {
    let db = shared().database();
    furnish(&db);
    db.session().run("CREATE TABLE done (writer text)");
    let (mut writer, mut dba) = (db.session(), db.session());
    // The writer has known the log since then.
    writer.publish("b5", "1");
    for end in ["ROLLBACK", "COMMIT"] {
        let mut log = (end == "ROLLBACK").then(|| Log::from_here(&db));
        dba.run("BEGIN; DROP EXTENSION tidings CASCADE");
        let pid = writer.backend();
        let waiting = std::thread::spawn(move || {
            writer.run("INSERT INTO done VALUES ('x'); SELECT tidings.publish('b5', '2')");
            writer
        });
        until("the writer waits", || {
            dba.one(&format!("SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {pid} AND NOT granted)"))
        });
        dba.run(end);
        writer = waiting.join().expect("the writer");
        if let Some(log) = &mut log {
            assert_eq!(log.news().len(), 1);
        }
    }
    assert_eq!(dba.one::<i64>("SELECT count(*) FROM done"), 2);
    // The new one's tables have the names of the old ones.
    dba.run("CREATE EXTENSION tidings");
    db.wait_relay();
    let mut log = Log::from_here(&db);
    writer.publish("b5", "3");
    assert_eq!(log.news().len(), 1);
}

/// Writes into some of four tables, in any order, until it is told to stop.
fn write_for_ever(mut session: Session, written: &AtomicU32, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        session.run("BEGIN");
        for _ in 0..fastrand::u32(1..4) {
            // A large one is logged at once; that writer holds the log when it comes to its next table.
            let size = if fastrand::u32(..8) == 0 { 300_000 } else { 10 };
            session.run(&format!("INSERT INTO load_{} VALUES (5, repeat('x', {size}))", fastrand::u32(1..5)));
        }
        session.run("COMMIT");
        written.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn no_writer_fails_while_the_extension_is_dropped() {
    let db = shared().database();
    // The removal gives way before a writer looks for a deadlock. On a busy machine it could not do so within the 20 ms
    // that the other tests have: this is what Postgres has by itself.
    db.session().run(&format!("ALTER DATABASE {} SET deadlock_timeout = '1s'", db.name()));
    let mut dba = db.session();
    for n in 1..5 {
        dba.run(&format!("CREATE TABLE load_{n} (id int, text text)"));
    }
    let (written, stop) = ([const { AtomicU32::new(0) }; 6], AtomicBool::new(false));
    std::thread::scope(|scope| {
        let start = |written| {
            let (session, stop) = (db.session(), &stop);
            scope.spawn(move || write_for_ever(session, written, stop))
        };
        let writers: Vec<_> = written.iter().map(start).collect();
        let all_go_on = || {
            let counts = || written.iter().map(|written| written.load(Ordering::Relaxed));
            let before: Vec<u32> = counts().collect();
            let mut failed = false;
            until("all writers go on, or one has failed", || {
                failed = writers.iter().any(|writer| writer.is_finished());
                failed || counts().zip(&before).all(|(now, before)| now > before + 5)
            });
            !failed
        };
        let removals = [
            "DROP EXTENSION tidings CASCADE",
            "DROP SCHEMA tidings CASCADE",
            "DROP EXTENSION IF EXISTS tidings CASCADE",
        ];
        let fine = removals.iter().all(|removal| {
            for n in 1..5 {
                dba.run(&format!("SELECT tidings.watch('load_{n}', topic => 'load_{{id}}')"));
            }
            let before = all_go_on();
            let removed = dba.client().batch_execute(removal);
            let after = all_go_on() && removed.is_ok();
            before && after && dba.client().batch_execute("CREATE EXTENSION tidings").is_ok()
        });
        stop.store(true, Ordering::Relaxed);
        assert!(fine, "a writer has failed, or the removal");
    });
    assert_eq!(dba.one::<i64>("SELECT count(*) FROM tidings.watches"), 0);
}

#[test]
fn a_watched_table_can_be_dropped() {
    let db = shared().database();
    furnish(&db);
    let mut log = Log::from_here(&db);
    let mut session = db.session();
    session.run("BEGIN; INSERT INTO items VALUES (2, 5, 'last words'); DROP TABLE items; COMMIT; DROP TABLE parts");
    assert_eq!(kinds(&log.news()), ["INSERT b5"]);
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.watches"), 1);
    session.run("DROP SCHEMA \"odd \"\"schema\"\"\" CASCADE; DROP EXTENSION tidings");
}

#[test]
fn a_database_made_from_a_template_has_a_relay_and_watches_of_its_own() {
    let db = shared().database();
    furnish(&db);
    let relay = db.wait_relay();
    // Nobody but the relay is connected: it makes way.
    let mut admin = shared().session("postgres", "postgres");
    let copy = shared().empty_database();
    admin.run(&format!("DROP DATABASE {}", copy.name()));
    until("everybody has left", || {
        admin.client().batch_execute(&format!("CREATE DATABASE {} TEMPLATE {}", copy.name(), db.name())).is_ok()
    });
    assert_ne!(copy.wait_relay(), db.wait_relay());
    assert_ne!(db.wait_relay(), relay, "it came back");
    check_watches(&copy);
    check_watches(&db);
    let mut log = Log::from_here(&db);
    copy.session().run("INSERT INTO items VALUES (3, 5, 'in the copy')");
    assert_eq!(log.news().len(), 0);
}

#[test]
fn a_database_made_from_a_template_does_not_tell_its_events_again() {
    let db = shared().database();
    furnish(&db);
    let mut log = Log::from_here(&db);
    db.session().run("INSERT INTO items VALUES (4, 5, 'told')");
    assert_eq!(log.news().len(), 1);
    let told = "SELECT count(*) FROM tidings.events";
    let before: i64 = db.session().one(told);
    drop(log);
    let mut admin = shared().session("postgres", "postgres");
    let copy = shared().empty_database();
    admin.run(&format!("DROP DATABASE {}", copy.name()));
    until("everybody has left", || {
        admin.client().batch_execute(&format!("CREATE DATABASE {} TEMPLATE {}", copy.name(), db.name())).is_ok()
    });
    copy.wait_relay();
    let mut log = Log::from_here(&copy);
    copy.session().run("INSERT INTO items VALUES (5, 5, 'in the copy')");
    assert_eq!(kinds(&log.news()), ["INSERT b5"]);
    assert_eq!(copy.session().one::<i64>(told) - before, 2, "the insert and the mark behind it");
}

#[test]
fn watches_can_be_installed_by_an_owner_who_was_granted_as_much() {
    let db = shared().database();
    let role = db.role("migrator");
    db.session().run(&format!(
        "GRANT USAGE ON SCHEMA tidings TO {role}; GRANT CREATE ON SCHEMA public TO {role};
         GRANT EXECUTE ON FUNCTION tidings.watch, tidings.unwatch, tidings.watch_statements, tidings.check_watch, tidings.capture TO {role}"
    ));
    let mut log = Log::from_here(&db);
    let mut session = db.session_as(&role);
    session.run(
        "CREATE TABLE mine (id int); SELECT tidings.watch('mine', topic => 'mine'), tidings.watch('mine', topic => 'mine');
         INSERT INTO mine VALUES (1); SELECT tidings.unwatch('mine')",
    );
    assert_eq!(log.news().len(), 1);
    db.session().run("CREATE TABLE theirs (id int)");
    session.forbidden("SELECT tidings.watch('theirs', topic => 'x')");
}

/// Waits until a standby has replayed all that its primary has written.
pub fn catch_up(primary: &Database<'_>, standby: &Cluster) {
    let written: String = primary.session().one("SELECT pg_current_wal_lsn()::text");
    let mut session = standby.session(primary.name(), "postgres");
    until("the standby has caught up", || session.one(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")));
}

#[test]
fn a_standby_serves_reads_and_after_its_promotion_everything() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    furnish(&db);
    let standby = primary.standby();
    let mut log = Log::from_here(&db);
    let start: String = db.session().one("SELECT tidings.position()");
    db.session().run("INSERT INTO items VALUES (2, 5, 'before the failover')");
    let last = log.only().position;
    catch_up(&db, &standby);
    let mut session = standby.session(db.name(), "postgres");
    // Read-only, the log can be read; there is no relay, and no error for want of one.
    assert_eq!(session.all("SELECT FROM tidings.changes($1, '{b5}')", &[&start]).len(), 1);
    assert_eq!(session.all("SELECT FROM tidings.status WHERE relay_pid IS NULL", &[]).len(), 1);
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.watches"), 4);
    primary.kill();
    session.run("SELECT pg_promote()");
    let relay_runs = |session: &mut Session| session.one::<bool>("SELECT tidings.relay_pid() IS NOT NULL");
    until("the promoted server has a relay", || relay_runs(&mut session));
    session.run("INSERT INTO items VALUES (3, 5, 'after the failover')");
    let events = tidings_tests::eventually("the event is in a tick", || {
        let rows = session.all("SELECT position, payload FROM tidings.changes($1, '{b5}')", &[&last]);
        (!rows.is_empty()).then_some(rows)
    });
    assert_eq!(events.len(), 1);
    assert!(events[0].get::<_, String>(1).contains("\"id\":3"));
    let number = |position: &str| position.split('-').next().and_then(|tick| tick.parse::<u64>().ok());
    assert!(number(events[0].get(0)) > number(&last), "positions keep rising");
}

#[test]
fn a_position_of_a_lost_primary_hides_nothing_of_the_new_one() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    furnish(&db);
    let standby = primary.standby();
    catch_up(&db, &standby);
    let mut there = standby.session(db.name(), "postgres");
    there.run("ALTER SYSTEM SET primary_conninfo = ''");
    there.run("SELECT pg_reload_conf()");
    until("nothing is replicated any more", || there.all("SELECT FROM pg_stat_wal_receiver", &[]).is_empty());
    // So that the position's tick is one that the standby has: what its snapshot saw is lost all the same.
    tidings_tests::process::send(db.wait_relay(), tidings_tests::process::Signal::SIGSTOP);
    let mut here = db.session();
    for id in 2..30 {
        here.run(&format!("INSERT INTO items VALUES ({id}, 5, 'lost')"));
    }
    let (xid, start): (String, String) = {
        let row = &here.all("SELECT pg_snapshot_xmax(pg_current_snapshot())::text, tidings.position()", &[])[0];
        (row.get(0), row.get(1))
    };
    let url = standby.url(db.name(), &db.proxy_role());
    primary.kill();
    there.run("SELECT pg_promote()");
    until("the new primary has a relay", || there.one("SELECT tidings.relay_pid() IS NOT NULL"));
    there.run("INSERT INTO items VALUES (100, 5, 'kept')");
    assert!(
        there.one::<bool>(&format!("SELECT xmin::text::xid8 < '{xid}'::xid8 FROM items WHERE id = 100")),
        "a number given twice"
    );
    let proxy = Proxy::start(&url, &[]);
    let mut stream = proxy.open(&Request::since(&["b5"], &start));
    assert_eq!(stream.frame().json()["record"]["id"], 100);
    let rows = there.all("SELECT payload FROM tidings.changes($1, '{b5}')", &[&start]);
    assert_eq!(rows.len(), 1);
}

#[test]
fn a_client_carries_on_across_a_failover() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    furnish(&db);
    let standby = primary.standby();
    // The proxy and its client find the new server where the old one was.
    let front = Forward::to(primary.port());
    let url = format!("postgres://{}@127.0.0.1:{}/{}", db.proxy_role(), front.port, db.name());
    let proxy = Proxy::start(&url, &[]);
    proxy.wait_ready();
    let start: String = db.session().one("SELECT tidings.position()");
    let follower = Follower::start(Habits::faithful(proxy.address()), Request::since(&["b5"], &start), |frame| {
        frame.data.contains("\"id\":100,")
    });
    let mut session = db.session();
    for id in 2..50 {
        session.run(&format!("INSERT INTO items VALUES ({id}, 5, 'n')"));
    }
    until("the client has seen it all", || follower.seen() == 48);
    catch_up(&db, &standby);
    primary.kill();
    let mut session = standby.session(db.name(), "postgres");
    session.run("SELECT pg_promote()");
    until("the server takes writes", || !session.one::<bool>("SELECT pg_is_in_recovery()"));
    for id in 50..=100 {
        session.run(&format!("INSERT INTO items VALUES ({id}, 5, 'n')"));
    }
    front.switch(standby.port());
    let ids: Vec<i64> = follower.finish().iter().filter_map(|frame| frame.json()["record"]["id"].as_i64()).collect();
    assert_eq!(ids, (2..100).collect::<Vec<_>>(), "each once, in order, up to the mark");
}

/// A port that leads to a server, and later to another.
struct Forward {
    port: u16,
    target: std::sync::Arc<std::sync::atomic::AtomicU16>,
}

impl Forward {
    fn to(port: u16) -> Self {
        use std::net::{Shutdown, TcpListener, TcpStream};
        use std::sync::atomic::{AtomicU16, Ordering};
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let here = listener.local_addr().expect("an address").port();
        let target = std::sync::Arc::new(AtomicU16::new(port));
        let to = target.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to.load(Ordering::Relaxed))) else { continue };
                for (from, into) in [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))] {
                    let (Ok(mut from), Ok(mut into)) = (from, into) else { continue };
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut into);
                        let _ = into.shutdown(Shutdown::Both);
                        let _ = from.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { port: here, target }
    }

    fn switch(&self, port: u16) {
        self.target.store(port, Ordering::Relaxed);
    }
}

#[test]
fn pg_upgrade_keeps_watches_events_and_positions() {
    if !has_psql() {
        return;
    }
    let old = Cluster::start(&[]);
    let (name, role, position, inventory_before) = {
        let mut db = old.database();
        furnish(&db);
        let mut log = Log::from_here(&db);
        db.session().run("INSERT INTO items VALUES (2, 5, 'before the upgrade')");
        let position = log.only().position;
        db.session().run("INSERT INTO items VALUES (3, 5, 'seen by nobody yet')");
        log.news();
        db.keep();
        (db.name().to_owned(), db.proxy_role(), position, inventory(&mut db.session()))
    };
    let new = old.upgrade();
    let mut session = new.session(&name, "postgres");
    until("the relay runs", || session.one("SELECT tidings.relay_pid() IS NOT NULL"));
    same_inventory(&mut session, &inventory_before);
    session.run("INSERT INTO items VALUES (4, 5, 'after the upgrade')");
    let ids = tidings_tests::eventually("the event is in a tick", || {
        let rows = session
            .all("SELECT (payload::jsonb #>> '{record,id}')::int FROM tidings.changes($1, '{b5}')", &[&position]);
        let ids: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        ids.contains(&4).then_some(ids)
    });
    assert_eq!(ids, [3, 4]);
    let proxy = Proxy::start(&new.url(&name, &role), &[]);
    let mut sse = proxy.open(&Request::resume(&["b5"], &position));
    assert_eq!(
        [sse.frame().json()["record"]["id"].clone(), sse.frame().json()["record"]["id"].clone()],
        [json!(3), json!(4)]
    );
}
