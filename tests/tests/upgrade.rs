//! What a DBA does to a database that has watches: updates, dumps, copies and pg_upgrade.

use std::collections::BTreeSet;

use serde_json::json;
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Proxy, Session, shared, until};

use crate::has_psql;
use crate::log::{Log, kinds};

/// What a DBA may have in a database: watches of all kinds, grants, and a log that is not empty.
pub fn furnish(db: &Database<'_>) {
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
             UNION ALL SELECT (to_jsonb(w) - 'is_guard')::text FROM tidings.watches w
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

/// The watches of `furnish` work.
pub fn check_watches(db: &Database<'_>) {
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

/// The parts of the extension, as the catalogs describe them.
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
fn the_schema_keeps_its_name_while_the_extension_exists() {
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
fn an_update_from_any_release_keeps_everything_and_equals_a_new_installation() {
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
    // The functions of that version cannot complete a segment that borrows its outline.
    (20..25).for_each(|id| session.run(&format!("INSERT INTO items VALUES ({id}, 6, 'another board')")));
    let borrowing = "SELECT EXISTS (SELECT FROM tidings.log WHERE get_byte(data, 0) > 3)";
    assert!(!session.one::<bool>(borrowing));
    let before = inventory(&mut session);
    session.run("ALTER EXTENSION tidings UPDATE");
    until("segments borrow their outlines", || {
        session.run("INSERT INTO items VALUES (30, 6, 'another board'); DELETE FROM items WHERE id = 30");
        session.one(borrowing)
    });
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
    // A client that reconnects with an old position misses nothing. The proxy is one of the new version, and its role
    // has the rights for it.
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
            "each database has its own channel"
        );
        // A position of the old database is older than anything here.
        assert_eq!(session.refused(&format!("SELECT * FROM tidings.changes('{position}')")).code().code(), "TI001");
        check_watches(&copy);
        let proxy = Proxy::start(&target.url(copy.name(), &proxy), &[]);
        let mut sse = proxy.open(&Request::since(&["b5"], &position));
        assert_eq!(sse.frame().event, "reset", "its rights exist, and a client with an old position gets a reset");
    }
}

#[test]
fn a_database_created_from_a_template_has_its_own_relay_and_watches() {
    let db = shared().database();
    furnish(&db);
    let relay = db.wait_relay();
    // Only the relay is connected, and it disconnects.
    let mut admin = shared().session("postgres", "postgres");
    let copy = shared().empty_database();
    admin.run(&format!("DROP DATABASE {}", copy.name()));
    until("all clients have disconnected", || {
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
fn a_database_created_from_a_template_does_not_repeat_its_events() {
    let db = shared().database();
    furnish(&db);
    let mut log = Log::from_here(&db);
    db.session().run("INSERT INTO items VALUES (4, 5, 'sent')");
    assert_eq!(log.news().len(), 1);
    let sent = "SELECT count(*) FROM tidings.events";
    let before: i64 = db.session().one(sent);
    drop(log);
    let mut admin = shared().session("postgres", "postgres");
    let copy = shared().empty_database();
    admin.run(&format!("DROP DATABASE {}", copy.name()));
    until("all clients have disconnected", || {
        admin.client().batch_execute(&format!("CREATE DATABASE {} TEMPLATE {}", copy.name(), db.name())).is_ok()
    });
    copy.wait_relay();
    let mut log = Log::from_here(&copy);
    copy.session().run("INSERT INTO items VALUES (5, 5, 'in the copy')");
    assert_eq!(kinds(&log.news()), ["INSERT b5"]);
    assert_eq!(copy.session().one::<i64>(sent) - before, 2, "the insert and the mark after it");
}

#[test]
fn an_owner_with_the_grant_can_create_watches() {
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
