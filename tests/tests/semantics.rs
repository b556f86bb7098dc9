//! Which statement makes which events.

use serde_json::{Value, json};
use tidings_tests::shared;

use crate::log::{Event, Log, kinds, with};

const BOARDS: &str = "CREATE TABLE items (id int PRIMARY KEY, board_id int, title text);
                      SELECT tidings.watch('items', topic => 'b{board_id}')";

fn titles(events: &[Event]) -> Vec<String> {
    let title = |event: &Event| {
        let json = event.json();
        let row = if json["record"].is_null() { &json["old_record"] } else { &json["record"] };
        format!("{} {} {}", event.kind(), event.topic, row["title"].as_str().unwrap_or("-"))
    };
    events.iter().map(title).collect()
}

#[test]
fn an_update_that_changes_nothing_makes_no_event() {
    let (db, mut log) = with(BOARDS);
    let mut session = db.session();
    session.run("INSERT INTO items VALUES (1, 5, repeat('long ', 5000)), (2, 5, NULL), (3, 5, '1')");
    assert_eq!(log.news().len(), 3);
    session.run(
        "UPDATE items SET title = title; UPDATE items SET board_id = 5; UPDATE items SET title = repeat('long ', 5000) WHERE id = 1;
         UPDATE items SET id = id + 0, title = title || ''",
    );
    assert_eq!(log.news().len(), 0);
    session.run("UPDATE items SET title = title || 'x'");
    assert_eq!(kinds(&log.news()), ["UPDATE b5", "UPDATE b5"], "NULL stays NULL");
}

#[test]
fn a_row_that_moves_to_another_topic_leaves_the_old_one() {
    let (db, mut log) = with(BOARDS);
    let mut session = db.session();
    session.run("INSERT INTO items VALUES (1, 5, 'a'); UPDATE items SET board_id = 6, title = 'b'");
    let events = log.news();
    assert_eq!(titles(&events), ["INSERT b5 a", "DELETE b5 a", "INSERT b6 b"]);
    // Each event has the whole row, also with the previous values that an UPDATE would leave out.
    assert_eq!(events[1].json()["old_record"], json!({"id": 1, "board_id": 5, "title": "a"}));
    assert_eq!(events[1].json()["record"], Value::Null);
    assert_eq!(events[2].json()["record"], json!({"id": 1, "board_id": 6, "title": "b"}));
    assert_eq!(events[2].json()["old_record"], Value::Null);
}

#[test]
fn a_topic_has_one_reading() {
    let (db, mut log) = with("CREATE TABLE t (a text, b text); SELECT tidings.watch('t', topic => '{a}__{b}')");
    let mut session = db.session();
    let skipped = "SELECT skipped FROM tidings.status";
    let before: i64 = session.one(skipped);
    // The first value ends where its separator begins, and the last one may contain anything.
    session.run("INSERT INTO t VALUES ('1__2', '3'), ('1_', '2__3'), ('1', '2__3')");
    assert_eq!(kinds(&log.news()), ["INSERT 1__2__3"]);
    assert_eq!(session.one::<i64>(skipped) - before, 2);
    // A row that goes to no topic, and comes from none.
    session.run("UPDATE t SET b = '4' WHERE a = '1__2'; UPDATE t SET a = '1__2' WHERE a = '1'; UPDATE t SET a = '1' WHERE b = '4'");
    assert_eq!(kinds(&log.news()), ["DELETE 1__2__3", "INSERT 1__4"]);
    // One of two watches may make a topic of the row.
    session.run("SELECT tidings.watch('t', topic => '{b}/{a}', name => 'other'); INSERT INTO t VALUES ('x__y', 'z')");
    assert_eq!(kinds(&log.news()), ["INSERT z/x__y"]);
}

#[test]
fn a_watch_of_an_older_version_with_adjacent_holes_makes_no_events_and_no_errors() {
    let (db, mut log) = with(
        "CREATE TABLE t (a text, b text);
         CREATE TRIGGER tidings_default AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW
             EXECUTE FUNCTION tidings.capture('topic=x{a}{b}')",
    );
    let mut session = db.session();
    let skipped = "SELECT skipped FROM tidings.status";
    let before: i64 = session.one(skipped);
    session.run("INSERT INTO t VALUES ('1', '2'); UPDATE t SET a = '3'; ALTER TABLE t ADD c int; DELETE FROM t");
    assert_eq!(log.news().len(), 0);
    assert_eq!(session.one::<i64>(skipped) - before, 3);
    // A rule of that kind allows nothing, and does not affect others.
    let matches =
        "SELECT tidings.match_topic('{a}{b}', 'xy') IS NULL AND tidings.match_topic('{a}-{b}', 'x-y') = '{x,y}'";
    assert!(session.one::<bool>(matches));
}

#[test]
fn a_null_in_the_topic_means_no_event() {
    let (db, mut log) = with(BOARDS);
    let mut session = db.session();
    session.run("INSERT INTO items VALUES (1, NULL, 'a'); UPDATE items SET title = 'b'; DELETE FROM items");
    assert_eq!(log.news().len(), 0);
    session.run(
        "INSERT INTO items VALUES (1, NULL, 'a'); UPDATE items SET board_id = 5; UPDATE items SET board_id = NULL; UPDATE items SET board_id = 6;
         DELETE FROM items",
    );
    assert_eq!(kinds(&log.news()), ["INSERT b5", "DELETE b5", "INSERT b6", "DELETE b6"]);
}

#[test]
fn merge_and_upsert_send_what_they_did() {
    let (db, mut log) = with(BOARDS);
    let mut session = db.session();
    session.run("INSERT INTO items VALUES (1, 5, 'a'), (2, 5, 'b'), (3, 5, 'c')");
    log.news();
    session.run(
        "MERGE INTO items USING (VALUES (1, 'a2'), (2, NULL), (3, 'c'), (4, 'd')) AS s (id, title) ON items.id = s.id
         WHEN MATCHED AND s.title IS NULL THEN DELETE
         WHEN MATCHED THEN UPDATE SET title = s.title
         WHEN NOT MATCHED THEN INSERT VALUES (s.id, 6, s.title)",
    );
    let mut merged = titles(&log.news());
    merged.sort();
    assert_eq!(merged, ["DELETE b5 b", "INSERT b6 d", "UPDATE b5 a2"], "3 was set to what it was");
    session.run(
        "INSERT INTO items VALUES (1, 5, 'never') ON CONFLICT DO NOTHING;
         INSERT INTO items VALUES (1, 9, 'a3'), (5, 5, 'e') ON CONFLICT (id) DO UPDATE SET title = excluded.title;
         INSERT INTO items VALUES (1, 5, 'never') ON CONFLICT (id) DO UPDATE SET title = 'never' WHERE items.id > 100;
         WITH gone AS (DELETE FROM items WHERE id = 5 RETURNING *) INSERT INTO items SELECT 50, board_id, title FROM gone",
    );
    assert_eq!(titles(&log.news()), ["UPDATE b5 a3", "INSERT b5 e", "DELETE b5 e", "INSERT b5 e"]);
}

#[test]
fn foreign_key_actions_send_every_row_they_touch() {
    let (db, mut log) = with(
        "CREATE TABLE boards (id int PRIMARY KEY);
         CREATE TABLE cards (id int PRIMARY KEY, board_id int REFERENCES boards ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TABLE notes (id int PRIMARY KEY, card_id int DEFAULT 0 REFERENCES cards ON DELETE SET NULL);
         SELECT tidings.watch('cards', topic => 'board {board_id}'), tidings.watch('notes', topic => 'notes')",
    );
    let mut session = db.session();
    session.run("INSERT INTO boards VALUES (1), (2); INSERT INTO cards VALUES (10, 1), (11, 2); INSERT INTO notes VALUES (100, 10)");
    log.news();
    session.run("UPDATE boards SET id = 7 WHERE id = 1");
    assert_eq!(kinds(&log.news()), ["DELETE board 1", "INSERT board 7"]);
    session.run("DELETE FROM boards WHERE id = 7");
    let events = log.news();
    let mut sent = kinds(&events);
    sent.sort();
    assert_eq!(sent, ["DELETE board 7", "UPDATE notes"]);
    let note = events.iter().find(|event| event.topic == "notes").expect("the note").json();
    assert_eq!((&note["record"]["card_id"], &note["old_record"]), (&Value::Null, &json!({"card_id": 10})));
}

#[test]
fn events_of_partitions_name_the_watched_table() {
    let (db, mut log) = with(
        "CREATE TABLE parts (id int, board_id int, title text) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (10);
         CREATE TABLE high PARTITION OF parts FOR VALUES FROM (10) TO (100) PARTITION BY LIST (board_id);
         CREATE TABLE high_five PARTITION OF high FOR VALUES IN (5);
         SELECT tidings.watch('parts', topic => 'b{board_id}');
         -- Attached later, with its columns in another order and one that was dropped.
         CREATE TABLE other (gone int, title text, board_id int, id int); ALTER TABLE other DROP COLUMN gone;
         INSERT INTO other VALUES ('before', 5, 100);
         ALTER TABLE parts ATTACH PARTITION other FOR VALUES FROM (100) TO (200);
         CREATE TABLE later PARTITION OF high FOR VALUES IN (6)",
    );
    let mut session = db.session();
    session.run(
        "INSERT INTO parts VALUES (1, 5, 'through the root'), (10, 5, 'below'), (11, 6, 'later'), (101, 5, 'other');
         INSERT INTO low VALUES (2, 5, 'straight'); INSERT INTO other (id, board_id, title) VALUES (102, 5, 'straight')",
    );
    let events = log.news();
    assert_eq!(kinds(&events), ["INSERT b5", "INSERT b5", "INSERT b6", "INSERT b5", "INSERT b5", "INSERT b5"]);
    assert_eq!(events[3].json()["record"], json!({"id": 101, "board_id": 5, "title": "other"}));
    assert!(
        events.iter().all(|event| event.json()["table"] == "parts" && event.json()["schema"] == "public"),
        "{events:?}"
    );
    session.run("UPDATE parts SET id = 12 WHERE id = 1; UPDATE parts SET board_id = 6 WHERE id = 10; UPDATE parts SET title = 'x' WHERE id = 101");
    assert_eq!(
        titles(&log.news()),
        [
            "DELETE b5 through the root",
            "INSERT b5 through the root",
            "DELETE b5 below",
            "INSERT b6 below",
            "UPDATE b5 x"
        ]
    );
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.watches"), 1);
    session.run("ALTER TABLE parts RENAME TO renamed; INSERT INTO renamed VALUES (3, 5, 'r')");
    assert_eq!(log.only().json()["table"], "renamed");
    session.run("ALTER TABLE renamed DETACH PARTITION low; INSERT INTO low VALUES (4, 5, 'no longer watched')");
    assert_eq!(log.news().len(), 0);
    session.run("SELECT tidings.unwatch('renamed'); INSERT INTO renamed VALUES (11, 5, 'no more')");
    assert_eq!(log.news().len(), 0);
}

#[test]
fn a_partition_can_be_watched_alone() {
    let (db, mut log) = with(
        "CREATE TABLE parts (id int) PARTITION BY LIST (id); CREATE TABLE one PARTITION OF parts FOR VALUES IN (1);
         CREATE TABLE two PARTITION OF parts FOR VALUES IN (2); SELECT tidings.watch('one', topic => 'one')",
    );
    db.session().run("INSERT INTO parts VALUES (1), (2)");
    assert_eq!(log.only().json()["table"], "one");
}

#[test]
fn inherited_tables_are_watched_one_by_one() {
    let (db, mut log) = with(
        "CREATE TABLE parent (id int); CREATE TABLE child (extra text) INHERITS (parent);
         SELECT tidings.watch('parent', topic => 'parent')",
    );
    let mut session = db.session();
    session.run("INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 'x'); UPDATE parent SET id = id + 10");
    assert_eq!(kinds(&log.news()), ["INSERT parent", "UPDATE parent"], "as Postgres's own triggers do");
    session.run("SELECT tidings.watch('child', topic => 'child'); UPDATE parent SET id = id + 10");
    let mut events = log.news();
    events.sort_by(|a, b| a.topic.cmp(&b.topic));
    assert_eq!(kinds(&events), ["UPDATE child", "UPDATE parent"]);
    assert_eq!(events[0].json()["record"], json!({"id": 22, "extra": "x"}));
}

#[test]
fn generated_and_identity_columns_are_sent_as_stored() {
    let (db, mut log) = with(
        "CREATE TABLE things (id int GENERATED ALWAYS AS IDENTITY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, at date DEFAULT '2024-05-01');
         SELECT tidings.watch('things', topic => 't{twice}')",
    );
    db.session().run("INSERT INTO things (a) VALUES (4); UPDATE things SET a = 5");
    let events = log.news();
    assert_eq!(kinds(&events), ["INSERT t8", "DELETE t8", "INSERT t10"]);
    assert_eq!(events[0].json()["record"], json!({"id": 1, "a": 4, "twice": 8, "at": "2024-05-01"}));
}

#[test]
fn virtual_generated_columns_are_left_out_and_cannot_be_named() {
    let db = shared().database();
    let mut session = db.session();
    if session.one::<i32>("SELECT current_setting('server_version_num')::int") < 180_000 {
        crate::skipped("columns that are generated when they are read, which PostgreSQL has from 18 on");
        return;
    }
    session.run(
        "CREATE TABLE things (id int, a int, twice int GENERATED ALWAYS AS (a * 2) VIRTUAL, last text);
         SELECT tidings.watch('things', topic => 't{a}')",
    );
    let mut log = Log::from_here(&db);
    session.run("INSERT INTO things VALUES (1, 4, DEFAULT, 'z'); UPDATE things SET last = 'y'");
    let events = log.news();
    assert_eq!(events[0].json()["record"], json!({"id": 1, "a": 4, "last": "z"}));
    assert_eq!(events[1].json()["old_record"], json!({"last": "z"}));
    for watch in
        ["topic => 't{twice}'", "topic => 't', columns => '{twice}'", "topic => 't', payload => '[\"$twice\"]'"]
    {
        let error = session.refused(&format!("SELECT tidings.watch('things', {watch}, name => 'other')"));
        assert_eq!(error.code().code(), "0A000", "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("STORED")), "{error}");
    }
}

#[test]
fn a_before_trigger_has_the_last_word_on_the_row() {
    let (db, mut log) = with(BOARDS);
    let mut session = db.session();
    session.run(
        "CREATE FUNCTION twist() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.title = 'skip' THEN RETURN NULL; END IF;
           NEW.title := upper(NEW.title); RETURN NEW;
         END $$;
         CREATE TRIGGER twist BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION twist();
         INSERT INTO items VALUES (1, 5, 'a'), (2, 5, 'skip'); UPDATE items SET title = 'a'; UPDATE items SET title = 'skip'",
    );
    assert_eq!(titles(&log.news()), ["INSERT b5 A"]);
}

#[test]
fn columns_may_be_added_dropped_and_changed_while_a_session_writes() {
    let (db, mut log) = with(
        "CREATE TABLE items (gone int, id int PRIMARY KEY, board_id int, title text); ALTER TABLE items DROP COLUMN gone;
         SELECT tidings.watch('items', topic => 'b{board_id}')",
    );
    let (mut session, mut ddl) = (db.session(), db.session());
    // The same prepared statement during all changes: its session has compiled the watch before each of them.
    let insert = session.client().prepare("INSERT INTO items (id, board_id) VALUES ($1, 5)").expect("prepare");
    let mut record = |id: i32| {
        session.client().execute(&insert, &[&id]).expect("insert");
        log.only().json()["record"].clone()
    };
    assert_eq!(record(1), json!({"id": 1, "board_id": 5, "title": null}));
    ddl.run("ALTER TABLE items ADD COLUMN added int[] DEFAULT '{1,2}'");
    assert_eq!(record(2), json!({"id": 2, "board_id": 5, "title": null, "added": [1, 2]}));
    ddl.run(
        "ALTER TABLE items ALTER COLUMN added TYPE text USING 'text', ALTER COLUMN added SET DEFAULT 'was an array'",
    );
    assert_eq!(record(3), json!({"id": 3, "board_id": 5, "title": null, "added": "was an array"}));
    ddl.run("ALTER TABLE items DROP COLUMN title");
    assert_eq!(record(4), json!({"id": 4, "board_id": 5, "added": "was an array"}));
    ddl.run("ALTER TABLE items RENAME COLUMN added TO \"re\"\"named\"; ALTER TABLE items ADD COLUMN title text DEFAULT 'again'");
    assert_eq!(record(5), json!({"id": 5, "board_id": 5, "re\"named": "was an array", "title": "again"}));
    // Old rows, whose missing columns are only in the catalog.
    ddl.run("UPDATE items SET board_id = 6 WHERE id = 1");
    let events = log.news();
    assert_eq!(kinds(&events), ["DELETE b5", "INSERT b6"]);
    assert_eq!(events[1].json()["record"], json!({"id": 1, "board_id": 6, "re\"named": "text", "title": "again"}));
}

#[test]
fn a_table_and_its_schema_may_be_renamed_while_a_session_writes() {
    let (db, mut log) = with("CREATE SCHEMA s; CREATE TABLE s.t (id int); SELECT tidings.watch('s.t', topic => 't')");
    let (mut session, mut ddl) = (db.session(), db.session());
    let mut name = |table: &str| {
        session.run(&format!("INSERT INTO {table} VALUES (1)"));
        let json = log.only().json();
        format!("{}.{}", json["schema"].as_str().unwrap_or(""), json["table"].as_str().unwrap_or(""))
    };
    assert_eq!(name("s.t"), "s.t");
    ddl.run("ALTER TABLE s.t RENAME TO t2");
    assert_eq!(name("s.t2"), "s.t2");
    ddl.run("ALTER SCHEMA s RENAME TO s2");
    assert_eq!(name("s2.t2"), "s2.t2");
    ddl.run("ALTER TABLE s2.t2 SET SCHEMA public");
    assert_eq!(name("public.t2"), "public.t2");
    ddl.run("DROP TABLE public.t2; CREATE TABLE t2 (id int)");
    ddl.run("INSERT INTO t2 VALUES (1)");
    assert_eq!(log.news().len(), 0);
    assert_eq!(ddl.one::<i64>("SELECT count(*) FROM tidings.watches"), 0);
}

#[test]
fn types_may_change_while_a_session_writes() {
    let (db, mut log) = with(
        "CREATE TYPE mood AS ENUM ('sad'); CREATE TYPE pair AS (a int); CREATE TABLE t (m mood, p pair, ps pair[]);
         SELECT tidings.watch('t', topic => 'mood {m}')",
    );
    let (mut session, mut ddl) = (db.session(), db.session());
    session.run("INSERT INTO t VALUES ('sad', ROW(1), '{(1)}')");
    assert_eq!(log.only().topic, "mood sad");
    ddl.run("ALTER TYPE mood ADD VALUE 'ok'; ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'; ALTER TYPE pair ADD ATTRIBUTE b text");
    session.run(
        "INSERT INTO t VALUES ('ok', ROW(1, 'x'), ARRAY[ROW(1, 'y')::pair]); UPDATE t SET m = 'blue' WHERE m = 'ok'",
    );
    let events = log.news();
    assert_eq!(kinds(&events), ["INSERT mood ok", "DELETE mood ok", "INSERT mood blue"]);
    assert_eq!(events[0].json()["record"], json!({"m": "ok", "p": {"a": 1, "b": "x"}, "ps": [{"a": 1, "b": "y"}]}));
    // A row from before the attribute was added.
    ddl.run("UPDATE t SET m = 'ok' WHERE m = 'blue' AND (p).b IS NULL");
    assert_eq!(log.news()[0].json()["old_record"]["p"], json!({"a": 1, "b": null}));
}

#[test]
fn a_column_that_a_watch_names_cannot_be_dropped_or_renamed() {
    let (db, mut log) = with(
        "CREATE TYPE mood AS ENUM ('sad'); CREATE SCHEMA s; CREATE DOMAIN s.board AS int; CREATE TYPE pair AS (id int, board int);
         CREATE TABLE moods (m mood); CREATE TABLE boards (b s.board, m mood); CREATE TABLE pairs OF pair;
         SELECT tidings.watch('moods', topic => 'mood {m}'), tidings.watch('boards', topic => 'board', columns => '{b}'),
                tidings.watch('pairs', topic => 'pair {board}')",
    );
    let mut session = db.session();
    for statement in [
        "DROP TYPE mood CASCADE",
        "DROP SCHEMA s CASCADE",
        "DROP DOMAIN s.board CASCADE",
        "ALTER TYPE pair DROP ATTRIBUTE board CASCADE",
        "ALTER TYPE pair RENAME ATTRIBUTE board TO plank CASCADE",
        "DO $$ BEGIN ALTER TABLE pairs NOT OF; ALTER TABLE pairs RENAME board TO plank; END $$",
    ] {
        assert_eq!(session.refused(statement).code().code(), "42703", "{statement}");
    }
    session.run("INSERT INTO moods VALUES ('sad'); INSERT INTO boards VALUES (1); INSERT INTO pairs VALUES (1, 2)");
    assert_eq!(kinds(&log.news()), ["INSERT mood sad", "INSERT board", "INSERT pair 2"]);
    // Columns that no watch names may be dropped, and so may the whole table.
    session.run("BEGIN; DROP TABLE moods; DROP TYPE mood CASCADE; ROLLBACK");
    session.run("DROP TABLE moods; DROP TYPE mood CASCADE; ALTER TYPE pair DROP ATTRIBUTE id CASCADE");
    session.run("INSERT INTO boards VALUES (2); INSERT INTO pairs VALUES (3)");
    assert_eq!(kinds(&log.news()), ["INSERT board", "INSERT pair 3"]);
}

#[test]
fn a_cast_to_json_is_used_as_soon_as_it_exists() {
    let (db, mut log) = with(
        "CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE t (m mood); SELECT tidings.watch('t', topic => 't');
         CREATE FUNCTION to_json(mood) RETURNS json LANGUAGE sql STRICT RETURN json_build_object('mood', $1::text)",
    );
    let (mut session, mut ddl) = (db.session(), db.session());
    let mut sent = || {
        session.run("INSERT INTO t VALUES ('sad')");
        assert_eq!(
            log.only().json()["record"].to_string(),
            session.one::<String>("SELECT to_jsonb(t)::text FROM t LIMIT 1").replace(": ", ":")
        );
        session.one::<String>("SELECT to_jsonb(t)::text FROM t LIMIT 1")
    };
    assert_eq!(sent(), r#"{"m": "sad"}"#);
    ddl.run("CREATE CAST (mood AS json) WITH FUNCTION to_json(mood)");
    assert_eq!(sent(), r#"{"m": {"mood": "sad"}}"#);
    ddl.run("DROP CAST (mood AS json)");
    assert_eq!(sent(), r#"{"m": "sad"}"#);
}

#[test]
fn a_topic_does_not_depend_on_how_a_session_writes_dates() {
    let (db, mut log) =
        with("CREATE TABLE t (d date, n numeric, flag boolean); SELECT tidings.watch('t', topic => '{d}/{n}/{flag}')");
    let mut session = db.session();
    for style in ["ISO, MDY", "German", "SQL, DMY", "Postgres, MDY"] {
        session.run(&format!("SET DateStyle = '{style}'; INSERT INTO t VALUES (make_date(2024, 12, 31), 1.50, true)"));
        assert_eq!(log.only().topic, "2024-12-31/1.50/t", "{style}");
    }
}

#[test]
fn a_table_without_columns_can_be_watched() {
    let (db, mut log) = with("CREATE TABLE t (); SELECT tidings.watch('t', topic => 't')");
    db.session().run("INSERT INTO t DEFAULT VALUES; DELETE FROM t");
    let events = log.news();
    assert_eq!(kinds(&events), ["INSERT t", "DELETE t"]);
    assert_eq!(events[0].json()["record"], json!({}));
}
