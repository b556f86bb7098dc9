//! A writer never fails because of a watch, whatever its settings, its rights and its values.

use serde_json::json;
use tidings_tests::{shared, until};

use crate::log::{Log, kinds, with};

const ITEMS: &str = "CREATE TABLE items (id int PRIMARY KEY, board_id int, title text);
                     SELECT tidings.watch('items', topic => 'b{board_id}')";

#[test]
fn a_payload_that_is_too_long_is_sent_without_its_record_and_marked() {
    let (db, mut log) = with(
        "CREATE TABLE items (id int PRIMARY KEY, board_id int, title text); SELECT tidings.watch('items', topic => 'b{board_id}'),
         tidings.watch('items', topic => 'shaped', name => 'shaped', payload => '{\"id\": \"$id\", \"title\": \"$title\"}'),
         tidings.watch('items', topic => 'short', name => 'short', payload => '{\"id\": \"$id\"}')",
    );
    let mut session = db.session();
    session.run("SET tidings.max_payload = '10kB'; INSERT INTO items VALUES (1, 5, repeat('x', 10 * 1024)), (2, 5, repeat('x', 9 * 1024))");
    let events = log.news();
    let of = |topic: &str| events.iter().filter(|event| event.topic == topic).collect::<Vec<_>>();
    assert_eq!(
        of("b5")[0].json(),
        json!({"schema": "public", "table": "items", "type": "INSERT", "record": null, "old_record": null, "truncated": true})
    );
    assert_eq!(of("b5")[1].json()["record"]["id"], 2);
    assert_eq!(of("shaped")[0].json(), json!({"truncated": true}));
    assert_eq!(of("short")[0].json(), json!({"id": 1}), "the long column is not in it");
    session.run("UPDATE items SET title = title || 'y'; DELETE FROM items");
    let events = log.news();
    let marked = |topic: &str| {
        let of = events.iter().filter(|event| event.topic == topic).map(|event| event.json()["truncated"] == true);
        of.collect::<Vec<_>>()
    };
    assert_eq!(marked("b5"), [true, true, true, false], "old and new together are too long, too: {events:?}");
}

#[test]
fn a_value_that_no_client_could_read_does_not_stop_the_write() {
    let (db, mut log) =
        with("CREATE TABLE big (id int, data bytea, title text); SELECT tidings.watch('big', topic => 'big')");
    // As hexadecimal digits it would be longer than anything that Postgres can have in one value.
    db.session().run(
        "ALTER TABLE big ALTER COLUMN data SET STORAGE EXTENDED;
         INSERT INTO big SELECT 1, decode(repeat('00', 268435455 / 2), 'hex') || decode(repeat('00', 268435455 / 2), 'hex') || decode(repeat('00', 268435455 / 2), 'hex')
                                   || decode(repeat('00', 268435455 / 2), 'hex') || decode(repeat('00', 268435455 / 2), 'hex')",
    );
    assert_eq!(log.only().json()["truncated"], true);
}

#[test]
fn a_value_that_becomes_longer_than_postgres_allows_is_left_out() {
    let (db, mut log) =
        with("CREATE TYPE pair AS (t text); CREATE TABLE t (p pair, j jsonb); SELECT tidings.watch('t', topic => 't')");
    // As JSON each character takes six.
    let value = "repeat(E'\\x01', 180000000)";
    db.session().run(&format!(
        "SET tidings.max_payload = '256MB'; INSERT INTO t (p) VALUES (ROW({value})); INSERT INTO t (j) VALUES (jsonb_build_array({value}))"
    ));
    let sent: Vec<_> = log.news().iter().map(|event| event.json()["truncated"].clone()).collect();
    assert_eq!(sent, [true, true]);
}

#[test]
fn small_values_with_a_text_that_is_too_long_fail_no_write() {
    let (db, mut log) = with(
        "CREATE TYPE pair AS (n numeric[], j jsonb);
         CREATE TABLE t (id int, n numeric[], p pair, topic numeric[]); SELECT tidings.watch('t', topic => '{topic}')",
    );
    // Ten bytes each, and 131,072 digits.
    let numbers = "array_fill(1e131071::numeric, ARRAY[100, 100])";
    let mut session = db.session();
    session.run(&format!(
        "BEGIN;
         INSERT INTO t VALUES (1, '{{1}}', NULL, '{{7}}');
         SAVEPOINT s;
         INSERT INTO t VALUES (2, '{{2}}', NULL, '{{7}}');
         INSERT INTO t VALUES (3, {numbers}, NULL, '{{7}}');
         INSERT INTO t VALUES (4, NULL, ({numbers}, NULL), '{{7}}');
         INSERT INTO t VALUES (5, NULL, NULL, {numbers});
         RELEASE s;
         INSERT INTO t VALUES (6, array_fill(2::numeric, ARRAY[100, 100]), NULL, '{{7}}');
         COMMIT"
    ));
    let sent = |event: &crate::log::Event| {
        let payload = event.json();
        (payload["record"]["id"].as_i64(), payload["truncated"] == true)
    };
    let sent: Vec<_> = log.news().iter().map(sent).collect();
    let left_out = (None, true);
    assert_eq!(sent, [(Some(1), false), (Some(2), false), left_out, left_out, (Some(6), false)]);
}

#[test]
fn json_that_jsonb_cannot_represent_is_sent_as_it_was_typed() {
    let (db, mut log) = with("CREATE TABLE t (id int, j json, js json[]); SELECT tidings.watch('t', topic => 't')");
    let mut session = db.session();
    for (text, expected) in [
        (r#"{"a": "\u0000"}"#, r#""a":"\u0000""#),
        (r#"["\ud800", "x\uDC00y"]"#, r"\ud800"),
        ("[1e999999]", "[1e+999999]"),
        (r#"{"a": 1, "b": "\u0000", "a": 2}"#, r"\u0000"),
    ] {
        session.with("INSERT INTO t VALUES (1, $1::text::json)", &[&text]);
        let event = log.only();
        assert!(event.payload.contains(expected), "{text}: {}", event.payload);
    }
    // Inside of arrays and composites too.
    session.with("INSERT INTO t VALUES (1, NULL, ARRAY[$1::text::json, NULL])", &[&r#"{"a": "\u0000"}"#]);
    assert!(log.only().payload.contains(r"\u0000"));
}

#[test]
fn an_invalid_topic_is_skipped_with_a_warning() {
    let (db, mut log) = with("CREATE TABLE t (name text); SELECT tidings.watch('t', topic => 't{name}')");
    let mut session = db.session();
    let skipped = "SELECT skipped FROM tidings.status";
    let before: i64 = session.one(skipped);
    session
        .run("INSERT INTO t VALUES (E'line\\nfeed'), (repeat('x', 255)), ('fits'), (E'\\u007f'), (repeat('x', 254))");
    let events = log.news();
    assert_eq!(events.iter().map(|event| event.topic.len()).collect::<Vec<_>>(), [5, 255]);
    assert_eq!(session.one::<i64>(skipped) - before, 3);
}

#[test]
fn a_value_without_a_text_makes_no_topic_and_no_error() {
    let (db, mut log) =
        with("CREATE TABLE t (id int, b bytea); SELECT tidings.watch('t', topic => 'b{b}', columns => '{id}')");
    // Four characters for each byte are more than a text may have.
    db.session().run("SET bytea_output = escape; INSERT INTO t VALUES (1, convert_to(repeat(E'\\x01', 270000000), 'UTF8')), (2, 'y')");
    assert_eq!(log.only().topic, "by");
}

#[test]
fn a_lock_timeout_does_not_apply_to_the_log() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    let mut holder = db.session();
    // As the relay does while it empties a partition.
    holder.run("BEGIN; LOCK TABLE tidings.log IN ACCESS EXCLUSIVE MODE");
    let pid = session.backend();
    let writer = std::thread::spawn(move || {
        session.run("SET lock_timeout = '1ms'; BEGIN; INSERT INTO items VALUES (1, 5); COMMIT")
    });
    let mut observer = db.session();
    until("the writer waits at its commit", || {
        observer.one::<bool>(&format!("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = {pid}"))
    });
    // Far longer than its lock timeout.
    observer.run("SELECT pg_sleep(0.1)");
    holder.run("COMMIT");
    writer.join().expect("the writer");
    assert_eq!(kinds(&log.news()), ["INSERT b5"]);
}

#[test]
fn a_statement_timeout_applies_to_the_log_as_to_any_write() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    let mut holder = db.session();
    holder.run("BEGIN; LOCK TABLE tidings.log IN ACCESS EXCLUSIVE MODE");
    // So many rows that the log is written before the commit. (Postgres has no timeout for a commit.)
    session.run("SET statement_timeout = '300ms'");
    let error = session.refused("INSERT INTO items SELECT i, 5, repeat('x', 1000) FROM generate_series(1, 1000) i");
    assert_eq!(error.code().code(), "57014");
    holder.run("COMMIT");
    session.run("RESET statement_timeout");
    session.run("INSERT INTO items VALUES (2, 5)");
    assert_eq!(log.only().json()["record"]["id"], 2);
    assert_eq!(session.one::<i64>("SELECT count(*) FROM items"), 1);
}

#[test]
fn a_read_only_transaction_may_write_its_temporary_tables() {
    let (db, mut log) = with("");
    let mut session = db.session();
    session.run(
        "CREATE TEMPORARY TABLE mine (id int); SELECT tidings.watch('mine', topic => 'mine {id}');
         BEGIN READ ONLY; INSERT INTO mine VALUES (1); COMMIT; SET default_transaction_read_only = on; INSERT INTO mine VALUES (2)",
    );
    assert_eq!(kinds(&log.news()), ["INSERT mine 1", "INSERT mine 2"]);
    assert_eq!(
        session.refused("CREATE TABLE t ()").code().code(),
        "25006",
        "the transaction is as read-only as before"
    );
    assert_eq!(session.refused("SELECT tidings.publish('x', '1')").code().code(), "25006");
}

#[test]
fn replication_roles_fire_the_triggers_that_they_should() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    session.run("SET session_replication_role = replica; INSERT INTO items VALUES (1, 5)");
    assert_eq!(log.news().len(), 0);
    session.run("ALTER TABLE items ENABLE ALWAYS TRIGGER tidings_default; INSERT INTO items VALUES (2, 5)");
    assert_eq!(log.only().json()["record"]["id"], 2);
    session.run("ALTER TABLE items ENABLE REPLICA TRIGGER tidings_default; INSERT INTO items VALUES (3, 5)");
    assert_eq!(log.only().json()["record"]["id"], 3);
    session.run("RESET session_replication_role; INSERT INTO items VALUES (4, 5); ALTER TABLE items DISABLE TRIGGER ALL; INSERT INTO items VALUES (5, 5)");
    assert_eq!(log.news().len(), 0);
}

#[test]
fn capture_can_be_switched_off_with_the_right_to_do_so() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    session.run("BEGIN; SET LOCAL tidings.capture = off; INSERT INTO items VALUES (1, 5); COMMIT; INSERT INTO items VALUES (2, 5)");
    assert_eq!(log.only().json()["record"]["id"], 2);
    let role = db.role("writer");
    db.session_as(&role).forbidden("SET tidings.capture = off");
    session.run(&format!("GRANT SET ON PARAMETER tidings.capture TO {role}; GRANT INSERT ON items TO {role}"));
    db.session_as(&role).run("SET tidings.capture = off; INSERT INTO items VALUES (3, 5)");
    assert_eq!(log.news().len(), 0);
}

#[test]
fn a_misspelt_setting_is_an_error() {
    let (db, _) = with(ITEMS);
    assert_eq!(db.session().refused("SET tidings.captur = off").code().code(), "42602");
}

#[test]
fn row_level_security_hides_no_change_from_the_watch() {
    let (db, mut log) = with(ITEMS);
    let role = db.role("tenant");
    db.session().run(&format!(
        "ALTER TABLE items ENABLE ROW LEVEL SECURITY; ALTER TABLE items FORCE ROW LEVEL SECURITY;
         GRANT SELECT, INSERT, UPDATE (title, board_id), DELETE ON items TO {role};
         CREATE POLICY see ON items FOR SELECT TO {role} USING (board_id = 5);
         CREATE POLICY write ON items FOR INSERT TO {role} WITH CHECK (true);
         CREATE POLICY change ON items FOR UPDATE TO {role} USING (board_id = 5) WITH CHECK (true)"
    ));
    let mut tenant = db.session_as(&role);
    tenant.run("INSERT INTO items VALUES (1, 6, 'unseen'), (2, 5, 'seen'); UPDATE items SET title = 'x'");
    assert_eq!(kinds(&log.news()), ["INSERT b6", "INSERT b5", "UPDATE b5"]);
}

#[test]
fn set_role_and_security_definer_make_no_difference() {
    let (db, mut log) = with(ITEMS);
    let (weak, owner) = (db.role("weak"), db.role("owner"));
    let mut session = db.session();
    session.run(&format!(
        "GRANT INSERT ON items TO {owner}; GRANT {owner} TO {weak};
         CREATE FUNCTION add(id int) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
           INSERT INTO items VALUES (id, 5); RETURN current_user;
         END $$;
         ALTER FUNCTION add(int) OWNER TO {owner}"
    ));
    let mut caller = db.session_as(&weak);
    caller.run("BEGIN; SELECT add(1)");
    assert_eq!(caller.one::<String>("SELECT add(2)"), owner);
    assert_eq!(caller.one::<String>("SELECT current_user::text"), weak);
    caller.run("COMMIT");
    caller.run(&format!("SET ROLE {owner}; INSERT INTO items VALUES (3, 5); BEGIN; INSERT INTO items VALUES (4, 5); SET ROLE NONE; COMMIT"));
    assert_eq!(caller.one::<String>("SELECT current_user::text"), weak);
    session.run(&format!("BEGIN; SET LOCAL SESSION AUTHORIZATION {owner}; INSERT INTO items VALUES (5, 5); COMMIT"));
    assert_eq!(log.news().len(), 5);
    assert_eq!(session.one::<String>("SELECT current_user::text"), "postgres");
}

#[test]
fn a_hostile_search_path_has_no_effect() {
    let (db, mut log) = with(
        "CREATE TABLE parts (id int, board_id int, at timestamptz, tags text[]) PARTITION BY LIST (id);
         CREATE TABLE one PARTITION OF parts FOR VALUES IN (1);
         SELECT tidings.watch('parts', topic => 'b{board_id}'),
                tidings.watch('parts', topic => 'shaped', name => 'shaped', payload => '{\"r\": \"$record\", \"t\": \"$table\"}')",
    );
    let role = db.role("attacker");
    // Everything that could be called by an unqualified name, with the types that are looked up most.
    let mut evil = format!(
        "GRANT INSERT, UPDATE, DELETE ON parts TO {role}; CREATE SCHEMA evil AUTHORIZATION {role}; GRANT {role} TO postgres; SET ROLE {role};"
    );
    for (left, right) in [
        ("oid", "oid"),
        ("text", "text"),
        ("name", "name"),
        ("int2", "int2"),
        ("int4", "int4"),
        ("int8", "int8"),
        ("xid8", "xid8"),
        ("\"char\"", "\"char\""),
    ] {
        let function = format!("evil.trap_{}", left.trim_matches('"'));
        evil.push_str(&format!(
            "CREATE FUNCTION {function}({left}, {right}) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped as %', current_user; END $$;"
        ));
        for operator in ["=", "<>", ">=", "<"] {
            evil.push_str(&format!(
                "CREATE OPERATOR evil.{operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = {function});"
            ));
        }
    }
    for (name, arguments) in [
        ("to_jsonb", "anyelement"),
        ("format", "text, text"),
        ("now", ""),
        ("pg_current_xact_id", ""),
        ("unnest", "text[]"),
    ] {
        evil.push_str(&format!(
            "CREATE FUNCTION evil.{name}({arguments}) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped as %', current_user; END $$;"
        ));
    }
    evil.push_str("CREATE TABLE evil.log (x int); CREATE TABLE evil.log_0 (x int); CREATE DOMAIN evil.bytea AS text; CREATE DOMAIN evil.text AS int; RESET ROLE");
    db.session().run(&evil);
    let mut attacker = db.session_as(&role);
    attacker.run(
        "SET search_path = evil, pg_catalog, public;
         INSERT INTO public.parts VALUES (1, 5, pg_catalog.now(), '{a,b}'); UPDATE public.parts SET board_id = 6; DELETE FROM public.parts;
         INSERT INTO public.parts SELECT 1, 7 FROM pg_catalog.generate_series(1, 10000)",
    );
    let events = log.news();
    assert_eq!(events.iter().filter(|event| event.topic == "b7").count(), 10_000);
    assert!(events.iter().filter(|event| event.topic.starts_with('b')).all(|event| event.json()["table"] == "parts"));
    assert!(events.iter().filter(|event| event.topic == "shaped").all(|event| event.json()["t"] == "parts"));
}

#[test]
fn parallel_plans_feed_watched_tables() {
    let (db, mut log) = with(
        "CREATE TABLE source AS SELECT i AS id, 5 AS board_id, md5(i::text) AS title FROM generate_series(1, 30000) i; ANALYZE source;
         CREATE TABLE items (id int, board_id int, title text); SELECT tidings.watch('items', topic => 'b{board_id}')",
    );
    let mut session = db.session();
    session.run("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2");
    session
        .run("INSERT INTO items SELECT * FROM source WHERE title > '8'; CREATE TABLE copied AS SELECT * FROM source");
    let plan = session.all("EXPLAIN SELECT * FROM source WHERE title > '8'", &[]);
    assert!(plan.iter().any(|row| row.get::<_, String>(0).contains("Parallel")), "not parallel");
    let count: i64 = session.one("SELECT count(*) FROM items");
    assert_eq!(i64::try_from(log.news().len()), Ok(count));
}

#[test]
fn maintenance_makes_no_events() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    session.run("INSERT INTO items SELECT i, 5, 'x' FROM generate_series(1, 1000) i");
    assert_eq!(log.news().len(), 1000);
    for sql in [
        "VACUUM FULL items",
        "VACUUM (FREEZE, ANALYZE) items",
        "CLUSTER items USING items_pkey",
        "REINDEX TABLE items",
        "ALTER TABLE items ALTER COLUMN id TYPE bigint",
        "ALTER TABLE items ADD COLUMN v float DEFAULT random()",
        "ANALYZE",
    ] {
        session.run(sql);
    }
    assert_eq!(log.news().len(), 0);
    session.run("UPDATE items SET title = 'y' WHERE id = 1");
    assert_eq!(log.only().json()["record"]["id"], 1);
}

#[test]
fn a_publisher_commits_while_another_session_drops_the_extension() {
    let (db, _) = with("CREATE TABLE rows (id int)");
    let mut session = db.session();
    session.publish("a", "1");
    session.run("BEGIN; INSERT INTO rows VALUES (1); SELECT tidings.publish('a', '2')");
    db.session().run("DROP EXTENSION tidings");
    session.run("COMMIT");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM rows"), 1);
}

#[test]
fn replicated_changes_are_sent_where_the_trigger_is_enabled_always() {
    let (publisher, subscriber) = (shared().database(), shared().database());
    let tables =
        "CREATE TABLE items (id int PRIMARY KEY, board_id int, title text); CREATE TABLE quiet (id int PRIMARY KEY)";
    let slot = format!("{}_slot", publisher.name());
    publisher.session().run(&format!("{tables}; CREATE PUBLICATION all_of_it FOR TABLE items, quiet"));
    // In one cluster the slot must exist before the subscription, or each waits for the other.
    publisher.session().run(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    let mut session = subscriber.session();
    session.run(tables);
    session.run(
        "SELECT tidings.watch('items', topic => 'b{board_id}'), tidings.watch('quiet', topic => 'quiet');
         ALTER TABLE items ENABLE ALWAYS TRIGGER tidings_default",
    );
    let mut log = Log::from_here(&subscriber);
    session.run(&format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host={} port={} dbname={} user=postgres' PUBLICATION all_of_it
           WITH (create_slot = false, slot_name = '{slot}', copy_data = false)",
        publisher.cluster().socket_dir().display(),
        publisher.cluster().port(),
        publisher.name(),
    ));
    publisher.session().run(
        "BEGIN; INSERT INTO quiet VALUES (1); INSERT INTO items VALUES (1, 5, 'a'), (2, 5, 'b'); UPDATE items SET title = 'c' WHERE id = 1;
         UPDATE items SET board_id = 6 WHERE id = 2; DELETE FROM items WHERE id = 1; COMMIT; INSERT INTO items VALUES (3, 5)",
    );
    until("the rows have arrived", || session.one::<i64>("SELECT count(*) FROM items WHERE id = 3") == 1);
    let events = log.news();
    let ticks: Vec<&str> = events.iter().map(|event| event.position.split('-').next().unwrap_or_default()).collect();
    session.run("ALTER SUBSCRIPTION s DISABLE; ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s");
    let mut drop = publisher.session();
    until("the slot is free", || {
        drop.client().batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).is_ok()
    });
    assert_eq!(
        kinds(&events),
        ["INSERT b5", "INSERT b5", "UPDATE b5", "DELETE b5", "INSERT b6", "DELETE b5", "INSERT b5"]
    );
    assert!(ticks[..6].iter().all(|tick| *tick == ticks[0]), "the publisher's transaction is one here, too: {ticks:?}");
}

#[test]
fn a_payload_that_asks_for_whole_rows_again_and_again_takes_no_memory_for_them() {
    let (db, mut log) = with("SELECT");
    let mut session = db.session();
    let columns: Vec<_> = (0..1600).map(|i| format!("c{i} int")).collect();
    session.run(&format!("CREATE TABLE wide ({})", columns.join(", ")));
    // With a value for each column in each place it would take 20 GB to compile.
    session.run(
        "SELECT tidings.watch('wide', topic => 'w', payload => (SELECT jsonb_agg('$record'::text) FROM generate_series(1, 10000)))",
    );
    session.run("INSERT INTO wide DEFAULT VALUES");
    assert_eq!(log.only().json(), json!({"truncated": true}));
}
