//! The options of a watch. What it refuses is in `watch_refusals`.

use serde_json::{Value, json};
use tidings_tests::{Database, shared};

use crate::log::{Event, Log, kinds, topics};

/// Names that Postgres allows and that contain everything that could confuse SQL, JSON or a template.
pub const HOSTILE: &[&str] = &[
    "a b",
    "it's \"quoted\"",
    "back\\slash",
    "$1; DROP TABLE x; --",
    "select",
    "{\"json\": [1]}",
    "Übergröße中👩🏽",
    "%I %s %%",
    " ",
    "a=b",
    "old.a",
    "line\nfeed\ttab",
    "n234567890123456789012345678901234567890123456789012345678901é",
];

pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub fn items() -> (Database<'static>, Log) {
    let db = shared().database();
    db.session()
        .run("CREATE TABLE items (id int PRIMARY KEY, board_id int, title text, secret text, hits int DEFAULT 0)");
    let log = Log::from_here(&db);
    (db, log)
}

fn records(events: &[Event]) -> Vec<Value> {
    events.iter().map(|event| event.json()["record"].clone()).collect()
}

#[test]
fn no_watch_prevents_the_listing_of_others() {
    let (db, _) = items();
    let mut session = db.session();
    session.run("SET statement_timeout = '30s'");
    let odd = r"\000 \\000 \134 é中 \ {{x}}";
    session.with("SELECT tidings.watch('items', topic => $1::text, payload => to_jsonb($1::text))", &[&odd]);
    session.run(
        "SELECT tidings.watch('items', topic => 'news', name => 'long', payload => to_jsonb(repeat('x', 300000)))",
    );
    let rows = session.all("SELECT topic, payload::jsonb #>> '{}' FROM tidings.watches ORDER BY name", &[]);
    let listed: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(listed, [(odd.into(), odd.into()), ("news".into(), "x".repeat(300_000))]);
}

#[test]
fn only_chosen_columns_are_sent_and_make_events() {
    let (db, mut log) = items();
    let mut session = db.session();
    session.run("SELECT tidings.watch('items', topic => 'b{board_id}', columns => '{title,id}')");
    session.run("INSERT INTO items VALUES (1, 5, 'a', 'hush')");
    assert_eq!(records(&log.news()), [json!({"id": 1, "title": "a"})]);
    session.run("UPDATE items SET secret = 'hush hush', hits = 1");
    assert_eq!(log.news().len(), 0, "no captured column has changed");
    session.run("UPDATE items SET title = 'b', secret = NULL");
    let update = log.only().json();
    assert_eq!((&update["record"], &update["old_record"]), (&json!({"id": 1, "title": "b"}), &json!({"title": "a"})));
    // The topic's column counts even if it is not captured.
    session.run("UPDATE items SET board_id = 6; DELETE FROM items");
    let events = log.news();
    assert_eq!(kinds(&events), ["DELETE b5", "INSERT b6", "DELETE b6"]);
    assert!(events.iter().all(|event| !event.payload.contains("secret") && !event.payload.contains("board_id")));
}

#[test]
fn excluded_columns_are_not_sent_and_make_no_event() {
    let (db, mut log) = items();
    let mut session = db.session();
    session.run("SELECT tidings.watch('items', topic => 'b{board_id}', exclude => '{secret,hits}')");
    session.run(
        "INSERT INTO items VALUES (1, 5, 'a', 'hush'); UPDATE items SET secret = 'x', hits = 7; DELETE FROM items",
    );
    let events = log.news();
    assert_eq!(kinds(&events), ["INSERT b5", "DELETE b5"]);
    let row = json!({"id": 1, "board_id": 5, "title": "a"});
    assert_eq!((&events[0].json()["record"], &events[1].json()["old_record"]), (&row, &row));
    // A column that is added later is not excluded.
    session.run("ALTER TABLE items ADD COLUMN added text DEFAULT 'new'; INSERT INTO items VALUES (2, 5)");
    assert_eq!(log.only().json()["record"], json!({"id": 2, "board_id": 5, "title": null, "added": "new"}));
}

#[test]
fn a_payload_shape_is_filled_from_the_row() {
    let (db, mut log) = items();
    let mut session = db.session();
    let shape = json!({
        "change": {"board_item": "$id"}, "list": ["$title", "$old.title", {"deep": "$hits"}], "$id": "a key stays",
        "what": "$type", "where": ["$schema", "$table"], "now": "$record", "before": "$old_record",
        "dollar": "$$id", "two": "$$$", "text": "costs $5 \"x\" \\ \n", "none": null, "flag": true, "empty": [{}, []],
        "number": 12345678901234567890.0123456789_f64, "missing": "$secret"
    });
    session.with(
        "SELECT tidings.watch('items', topic => 'b{board_id}', payload => jsonb_set($1::text::jsonb, '{number}', '1.500000000000000000000000001'))",
        &[&shape.to_string()],
    );
    session.run("INSERT INTO items VALUES (1, 5, 'a \"b\"', NULL, 3); UPDATE items SET title = 'c'; DELETE FROM items");
    let events = log.news();
    let full = |title: &str| json!({"id": 1, "board_id": 5, "title": title, "secret": null, "hits": 3});
    let expect = |kind: &str, title: Value, old_title: Value, now: Value, before: Value| {
        json!({
            "change": {"board_item": 1}, "list": [title, old_title, {"deep": 3}], "$id": "a key stays",
            "what": kind, "where": ["public", "items"], "now": now, "before": before,
            "dollar": "$id", "two": "$$", "text": "costs $5 \"x\" \\ \n", "none": null, "flag": true, "empty": [{}, []],
            "number": 1.5, "missing": null
        })
    };
    let got: Vec<Value> = events.iter().map(Event::json).collect();
    assert_eq!(got[0], expect("INSERT", "a \"b\"".into(), Value::Null, full("a \"b\""), Value::Null));
    assert_eq!(got[1], expect("UPDATE", "c".into(), "a \"b\"".into(), full("c"), json!({"title": "a \"b\""})));
    assert_eq!(got[2], expect("DELETE", "c".into(), "c".into(), Value::Null, full("c")));
    assert!(
        events[0].payload.contains("1.500000000000000000000000001"),
        "numbers keep their digits: {}",
        events[0].payload
    );
}

#[test]
fn a_payload_may_be_any_json_value() {
    let (db, mut log) = items();
    let mut session = db.session();
    for (payload, sent) in
        [("\"$id\"", "1"), ("[]", "[]"), ("null", "null"), ("7", "7"), ("\"$title\"", "\"t\""), ("\"$$\"", "\"$\"")]
    {
        session.with("SELECT tidings.watch('items', topic => 't', payload => $1::text::jsonb)", &[&payload]);
        session.run(
            "INSERT INTO items VALUES (1, 5, 't'); BEGIN; SET LOCAL tidings.capture = off; DELETE FROM items; COMMIT",
        );
        assert_eq!(log.only().payload, sent, "{payload}");
    }
}

#[test]
fn only_chosen_operations_make_events() {
    let (db, mut log) = items();
    let mut session = db.session();
    for (operations, expected) in [
        ("{insert}", &["INSERT t"][..]),
        ("{UPDATE}", &["UPDATE t"]),
        ("{DELETE,Delete}", &["DELETE t"]),
        ("{DELETE,INSERT}", &["INSERT t", "DELETE t"]),
        ("{TRUNCATE}", &["TRUNCATE t"]),
        ("{TRUNCATE,UPDATE}", &["UPDATE t", "TRUNCATE t"]),
    ] {
        session.run(&format!("SELECT tidings.watch('items', topic => 't', operations => '{operations}')"));
        session.run(
            "INSERT INTO items VALUES (1, 5, 'a'); UPDATE items SET title = 'b'; DELETE FROM items; TRUNCATE items",
        );
        assert_eq!(kinds(&log.news()), expected, "{operations}");
        assert!(session.one::<bool>("SELECT tidings.unwatch('items')"));
    }
    assert_eq!(session.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'items'::regclass"), 0);
}

#[test]
fn a_condition_looks_at_old_and_new() {
    let (db, mut log) = items();
    let mut session = db.session();
    session.run(
        "CREATE SCHEMA app; CREATE FUNCTION app.popular(int) RETURNS boolean LANGUAGE sql RETURN $1 > 10;
         SET search_path = app, public;
         SELECT tidings.watch('items', topic => 'now', name => 'now', operations => '{INSERT,UPDATE}',
                              condition => 'popular(NEW.hits) -- a comment, and ''quotes'', and (brackets)'),
                tidings.watch('items', topic => 'rise', name => 'rise', operations => '{UPDATE}',
                              condition => 'NEW.hits > OLD.hits OR (OLD.*) IS NOT DISTINCT FROM (NEW.*)'),
                tidings.watch('items', topic => 'gone', name => 'gone', operations => '{DELETE}', condition => 'OLD.title ~ ''^a''');
         RESET search_path;
         INSERT INTO items VALUES (1, 5, 'abc', NULL, 10), (2, 5, 'xyz', NULL, 11);
         UPDATE items SET hits = hits + 1; UPDATE items SET hits = NULL; DELETE FROM items;",
    );
    let events = log.news();
    let of = |topic: &str| events.iter().filter(|event| event.topic == topic).count();
    assert_eq!((of("now"), of("rise"), of("gone")), (3, 2, 1), "{events:?}");
    let condition: String = session.one("SELECT condition FROM tidings.watches WHERE name = 'now'");
    assert!(condition.contains("popular(new.hits)"), "{condition}");
}

#[test]
fn old_record_adds_the_chosen_part_of_the_old_row() {
    let (db, mut log) = items();
    let mut session = db.session();
    session.run(
        "SELECT tidings.watch('items', topic => o, name => o, old_record => o) FROM unnest('{changed,full,none}'::text[]) o;
         INSERT INTO items VALUES (1, 5, 'a'); UPDATE items SET title = 'b', hits = 1; UPDATE items SET board_id = NULL; DELETE FROM items",
    );
    let events = log.news();
    let old = |topic: &str| -> Vec<Value> {
        events.iter().filter(|event| event.topic == topic).map(|event| event.json()["old_record"].clone()).collect()
    };
    let row = |title: &str, board: Value, hits: i32| json!({"id": 1, "board_id": board, "title": title, "secret": null, "hits": hits});
    let last = row("b", Value::Null, 1);
    assert_eq!(old("changed"), [Value::Null, json!({"title": "a", "hits": 0}), json!({"board_id": 5}), last.clone()]);
    assert_eq!(old("full"), [Value::Null, row("a", 5.into(), 0), row("b", 5.into(), 1), last.clone()]);
    // A DELETE without the old row would contain nothing at all.
    assert_eq!(old("none"), [Value::Null, Value::Null, Value::Null, last]);
}

#[test]
fn several_watches_on_one_table_each_send_their_events() {
    let (db, mut log) = items();
    let mut session = db.session();
    session.run(
        "SELECT tidings.watch('items', topic => 'boards_{board_id}'),
                tidings.watch('items', topic => 'all', name => 'all', columns => '{id}', event => 'item'),
                tidings.watch('items', topic => 'a{id}b{board_id}c', name => 'a \"name\" with ''quotes'' é', payload => '\"$title\"');
         INSERT INTO items VALUES (1, 5, 'x')",
    );
    let mut events = log.news();
    events.sort_by(|a, b| a.topic.cmp(&b.topic));
    assert_eq!(topics(&events), ["a1b5c", "all", "boards_5"]);
    let names: Vec<&str> = events.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(names, ["changed", "item", "changed"]);
    assert_eq!((events[0].payload.as_str(), &events[1].json()["record"]), ("\"x\"", &json!({"id": 1})));
    assert!(session.one::<bool>("SELECT tidings.unwatch('items', 'a \"name\" with ''quotes'' é')"));
    assert!(!session.one::<bool>("SELECT tidings.unwatch('items', 'a \"name\" with ''quotes'' é')"));
    session.run("INSERT INTO items VALUES (2, 5, 'x'); SELECT tidings.unwatch('items', name) FROM tidings.watches; INSERT INTO items VALUES (3, 5, 'x')");
    assert_eq!(log.news().len(), 2);
}

#[test]
fn truncate_is_sent_to_a_topic_without_columns() {
    let (db, mut log) = items();
    let mut session = db.session();
    session.run("SELECT tidings.watch('items', topic => '{{all}}', operations => '{INSERT,TRUNCATE}', event => 'e')");
    session.run("INSERT INTO items VALUES (1, 5, 'a'); TRUNCATE items; TRUNCATE items RESTART IDENTITY CASCADE");
    let events = log.news();
    assert_eq!(kinds(&events), ["INSERT {all}", "TRUNCATE {all}", "TRUNCATE {all}"], "also of an empty table");
    assert_eq!(
        events[1].json(),
        json!({"schema": "public", "table": "items", "type": "TRUNCATE", "record": null, "old_record": null})
    );
    assert_eq!(events[1].event, "e");
    let error = session
        .refused("SELECT tidings.watch('items', topic => 'b{board_id}', operations => '{TRUNCATE}', name => 'no')");
    assert_eq!(error.code().code(), "22023");
    // One watch, whatever triggers it consists of, and it is dropped as one.
    assert!(session.one::<bool>("SELECT tidings.unwatch('items')"));
    session.run("INSERT INTO items VALUES (1, 5, 'a'); TRUNCATE items");
    assert_eq!(log.news().len(), 0);
}

#[test]
fn a_watch_of_the_same_name_replaces_the_one_before() {
    let (db, mut log) = items();
    let mut session = db.session();
    session.run("SELECT tidings.watch('items', topic => 'before', operations => '{INSERT,UPDATE,TRUNCATE}')");
    session.run("SELECT tidings.watch('items', topic => 'after', operations => '{INSERT}')");
    session.run("INSERT INTO items VALUES (1, 5, 'a'); UPDATE items SET title = 'b'; TRUNCATE items");
    assert_eq!(kinds(&log.news()), ["INSERT after"]);
    // No watch can have a name that would replace another one's triggers.
    session.run("SELECT tidings.watch('items', topic => 'x', name => 'x', operations => '{TRUNCATE}')");
    let error = session.refused("SELECT tidings.watch('items', topic => 'y', name => 'x_truncate')");
    assert_eq!(error.code().code(), "22023");
}

#[test]
fn the_view_shows_all_options_of_a_watch() {
    let (db, _) = items();
    let mut session = db.session();
    session.run(
        "SELECT tidings.watch('items', topic => 'it''s {id} é{{', event => 'e=1', payload => '{\"a\": \"$id\"}', columns => '{id,title}',
                operations => '{DELETE,INSERT}', condition => NULL, old_record => 'full', name => 'odd \"name\"'),
                tidings.watch('items', topic => 't', exclude => '{secret}', operations => '{INSERT,TRUNCATE}');
         ALTER TABLE items DISABLE TRIGGER tidings_default",
    );
    let watch = |session: &mut tidings_tests::Session, name: &str| -> Value {
        let rows = session.all("SELECT to_jsonb(w)::text FROM tidings.watches w WHERE name = $1", &[&name]);
        assert_eq!(rows.len(), 1, "one row for {name}");
        serde_json::from_str(rows[0].get(0)).expect("JSON")
    };
    assert_eq!(
        watch(&mut session, "odd \"name\""),
        json!({"relation": "items", "name": "odd \"name\"", "topic": "it's {id} é{{", "event": "e=1", "payload": "{\"a\": \"$id\"}",
               "columns": ["id", "title"], "exclude": null, "operations": ["INSERT", "DELETE"], "condition": null,
               "old_record": "full", "enabled": true, "is_guard": false})
    );
    let default = watch(&mut session, "default");
    assert_eq!(default["operations"], json!(["INSERT", "TRUNCATE"]));
    assert_eq!(default["exclude"], json!(["secret"]));
    assert_eq!(default["enabled"], json!(false));
    // The options in the view create the same watch again.
    session.run(
        "CREATE TABLE copy (LIKE items);
         SELECT tidings.watch('copy', topic, event, payload::jsonb, columns, exclude, operations, condition, old_record, name) FROM tidings.watches;",
    );
    let differ: i64 = session.one(
        "SELECT count(*) FROM (SELECT to_jsonb(w) - 'relation' - 'enabled' FROM tidings.watches w WHERE relation = 'items'::regclass
         EXCEPT SELECT to_jsonb(w) - 'relation' - 'enabled' FROM tidings.watches w WHERE relation = 'copy'::regclass) d",
    );
    assert_eq!(differ, 0);
}

#[test]
fn names_may_be_anything_that_postgres_allows() {
    let db = shared().database();
    let mut log = Log::from_here(&db);
    let mut session = db.session();
    for (i, name) in HOSTILE.iter().enumerate() {
        let (schema, table) = (ident(name), format!("{}.{}", ident(name), ident(name)));
        session
            .run(&format!("CREATE SCHEMA {schema}; CREATE TABLE {table} ({} text, plain int DEFAULT 1)", ident(name)));
        // As the relation, as the only column, in the payload, as the watch's own name, and as the topic and the event.
        let watch: String = name.chars().take(10).collect();
        let literal = name.chars().filter(|c| !c.is_control()).collect::<String>();
        let escaped = literal.replace('{', "{{").replace('}', "}}");
        // Two kinds of names mean something else in a payload: the whole record is used instead.
        let special = name.starts_with('$') || name.starts_with("old.");
        let payload = json!({ *name: if special { "fixed".to_owned() } else { format!("${name}") }, "all": "$record" })
            .to_string();
        session.with(
            "SELECT tidings.watch($1::text::regclass, topic => $2, event => $3, columns => ARRAY[$4], payload => $5::text::jsonb, name => $6)",
            &[&table, &format!("{escaped}-{i}"), &literal, name, &payload, &watch],
        );
        let no_braces = !name.contains(['{', '}']);
        if no_braces {
            session.with(
                "SELECT tidings.watch($1::text::regclass, topic => $2, name => 'in the topic')",
                &[&table, &format!("c-{{{name}}}")],
            );
        }
        session.run(&format!("INSERT INTO {table} VALUES ('v'); UPDATE {table} SET plain = 2"));
        let mut events = log.news();
        if no_braces {
            let (ours, other): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| event.topic == "c-v");
            assert_eq!(ours.len(), 2, "{name:?}");
            assert_eq!(
                ours[0].json(),
                json!({"schema": name, "table": name, "type": "INSERT", "record": {*name: "v", "plain": 1}, "old_record": null})
            );
            events = other;
        }
        assert_eq!(events.len(), 1, "{name:?}: {events:?}");
        assert_eq!(
            (events[0].topic.as_str(), events[0].event.as_str()),
            (format!("{literal}-{i}").as_str(), literal.as_str())
        );
        assert_eq!(events[0].json(), json!({*name: if special { "fixed" } else { "v" }, "all": {*name: "v"}}));
        let listed: i64 = session.all(
            "SELECT count(*) FROM tidings.watches WHERE relation = $1::text::regclass AND name = $2 AND columns = ARRAY[$3] AND event = $4",
            &[&table, &watch, name, &literal],
        )[0]
        .get(0);
        assert_eq!(listed, 1, "{name:?}");
        let dropped: bool = session.all("SELECT tidings.unwatch($1::text::regclass, $2)", &[&table, &watch])[0].get(0);
        assert!(dropped, "{name:?}");
        session.run(&format!("DROP SCHEMA {schema} CASCADE"));
    }
}
