//! Rows of one transaction whose log stores only once what their payloads have in common: their events are complete.

use serde_json::{Value, json};
use tidings_tests::Session;
use tidings_tests::process::MemoryWatch;

use crate::log::{Event, with};

const ITEMS: &str = "CREATE TABLE items (id int PRIMARY KEY, board_id int, title text, done boolean DEFAULT false);
                     SELECT tidings.watch('items', topic => 'b{board_id}')";

/// The `id` of the rows in the events, each of which has all columns.
#[track_caller]
fn ids(events: &[Event]) -> Vec<i64> {
    let id = |event: &Event| {
        let row = &event.json()["record"];
        let id = row["id"].as_i64().unwrap_or_else(|| panic!("no row: {event:?}"));
        let whole = json!({"id": id, "board_id": id % 3, "title": format!("row {id}"), "done": false});
        assert_eq!(row, &whole);
        assert_eq!(event.topic, format!("b{}", id % 3));
        id
    };
    events.iter().map(id).collect()
}

fn insert(ids: std::ops::RangeInclusive<i64>) -> String {
    let (first, last) = (ids.start(), ids.end());
    format!("INSERT INTO items SELECT i, i % 3, 'row ' || i FROM generate_series({first}, {last}) i;")
}

/// The bytes of the log's segments.
fn logged(session: &mut Session) -> i64 {
    session.one("SELECT sum(octet_length(data))::bigint FROM tidings.log")
}

#[test]
fn savepoints_do_not_mix_their_rows() {
    let (db, mut log) = with(ITEMS);
    // The outline first is in a subtransaction that is rolled back, then in one that is released, then in their parent.
    db.session().run(&format!(
        "BEGIN; {} SAVEPOINT a; {} ROLLBACK TO a; {} SAVEPOINT b; {} RELEASE b; {} SAVEPOINT c; {} ROLLBACK TO c; {} COMMIT",
        insert(1..=1),
        insert(2..=5),
        insert(6..=9),
        insert(10..=13),
        insert(14..=17),
        insert(18..=21),
        insert(22..=25),
    ));
    let committed: Vec<_> = (1..=1).chain(6..=17).chain(22..=25).collect();
    assert_eq!(ids(&log.news()), committed);
}

#[test]
fn each_segment_of_a_large_transaction_can_be_read_alone() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    session.run(&format!(
        "BEGIN; {} SAVEPOINT a; {} ROLLBACK TO a; {} COMMIT",
        insert(1..=30_000),
        insert(30_001..=60_000),
        insert(60_001..=90_000)
    ));
    let committed: Vec<_> = (1..=30_000).chain(60_001..=90_000).collect();
    assert_eq!(ids(&log.news()), committed);
    assert!(session.one::<i64>("SELECT count(*) FROM tidings.log") > 2);
}

#[test]
fn the_log_stores_once_what_rows_have_in_common() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    session.run(&insert(1..=1000));
    let sent: usize = log.news().iter().map(|event| event.payload.len()).sum();
    let logged = logged(&mut session);
    assert!(logged < sent as i64 / 2, "{logged} bytes for {sent}");
}

#[test]
fn each_operation_and_each_watch_has_its_own_form() {
    let (db, mut log) = with(ITEMS);
    let mut session = db.session();
    session.run(r#"SELECT tidings.watch('items', topic => 'all', name => 'other', payload => '["$type", "$id", {"was": "$old.title"}]', old_record => 'full')"#);
    session.run(&format!("BEGIN; {} UPDATE items SET title = title || '!'; DELETE FROM items; COMMIT", insert(1..=3)));
    let events = log.news();
    let of = |all: bool| {
        events.iter().filter(move |event| (event.topic == "all") == all).map(Event::json).collect::<Vec<_>>()
    };
    let own: Vec<_> = of(true);
    let mut expected = Vec::new();
    for id in 1..=3 {
        expected.push(json!(["INSERT", id, {"was": null}]));
    }
    for id in 1..=3 {
        expected.push(json!(["UPDATE", id, {"was": format!("row {id}")}]));
    }
    for id in 1..=3 {
        expected.push(json!(["DELETE", id, {"was": format!("row {id}!")}]));
    }
    assert_eq!(own, expected);
    let of_type = |kind: &str| of(false).into_iter().filter(|json| json["type"] == kind).collect::<Vec<_>>();
    for (id, json) in (1..=3).zip(of_type("UPDATE")) {
        assert_eq!(json["record"]["title"], format!("row {id}!"));
        assert_eq!(json["old_record"], json!({"title": format!("row {id}")}));
    }
    for (id, json) in (1..=3).zip(of_type("DELETE")) {
        assert_eq!(json["record"], Value::Null);
        let row = json!({"id": id, "board_id": id % 3, "title": format!("row {id}!"), "done": false});
        assert_eq!(json["old_record"], row);
    }
}

#[test]
fn a_value_whose_output_runs_sql_may_send_its_own_events() {
    let (db, mut log) = with(
        "CREATE TYPE mood AS ENUM ('calm', 'wild');
         CREATE TABLE noted (id int, note text);
         CREATE FUNCTION tell(mood) RETURNS json LANGUAGE plpgsql AS $$
         BEGIN
           BEGIN
             INSERT INTO noted VALUES (1, $1), (2, $1);
           EXCEPTION WHEN division_by_zero THEN
             NULL;
           END;
           RETURN to_json('so ' || $1::text);
         END $$;
         CREATE CAST (mood AS json) WITH FUNCTION tell(mood);
         CREATE TABLE people (id int, mood mood, name text);
         SELECT tidings.watch('noted', topic => 'noted');
         SELECT tidings.watch('people', topic => 'people')",
    );
    db.session().run("INSERT INTO people VALUES (1, 'calm', 'Ada'), (2, 'wild', 'Bob'), (3, 'calm', 'Cid')");
    let events = log.news();
    let of = |topic: &str| {
        let events = events.iter().filter(|event| event.topic == topic);
        events.map(|event| event.json()["record"].clone()).collect::<Vec<_>>()
    };
    let people = [(1, "calm", "Ada"), (2, "wild", "Bob"), (3, "calm", "Cid")];
    assert_eq!(
        of("people"),
        people.map(|(id, mood, name)| json!({"id": id, "mood": format!("so {mood}"), "name": name}))
    );
    let noted = people.map(|(_, mood, _)| [1, 2].map(|id| json!({"id": id, "note": mood}))).concat();
    assert_eq!(of("noted"), noted);
}

#[test]
fn watches_beyond_the_outlines_of_a_segment_are_sent_without_outline() {
    let (db, mut log) = with("CREATE TABLE items (id int)");
    let mut session = db.session();
    session.run("SELECT tidings.watch('items', topic => 't' || i, name => 'w' || i, payload => ('[\"$id\", ' || i || ']')::jsonb) FROM generate_series(1, 140) i");
    session.run("INSERT INTO items VALUES (1), (2), (3)");
    let mut sent: Vec<_> = log.news().into_iter().map(|event| (event.topic, event.payload)).collect();
    sent.sort();
    let mut expected: Vec<_> =
        (1..=140).flat_map(|i| (1..=3).map(move |id| (format!("t{i}"), format!("[{id},{i}]")))).collect();
    expected.sort();
    assert_eq!(sent, expected);
}

#[test]
fn a_long_outline_is_not_kept() {
    let (db, mut log) = with("CREATE TABLE items (id int)");
    let mut session = db.session();
    let text = "long ".repeat(2_000);
    session.with(
        "SELECT tidings.watch('items', topic => 't', payload => jsonb_build_object('text', $1::text, 'id', '$id'))",
        &[&text],
    );
    session.run("INSERT INTO items VALUES (1), (2), (3)");
    let events = log.news();
    assert_eq!(events.len(), 3);
    for (id, event) in (1..).zip(&events) {
        assert_eq!(event.json(), json!({"text": text, "id": id}));
    }
    // Nobody can make a reader expand a few bytes of the log without limit.
    assert!(logged(&mut session) > 3 * text.len() as i64);
}

#[test]
fn a_payload_is_measured_when_its_outline_is_filled() {
    let (db, mut log) = with("CREATE TABLE items (id int, title text); SELECT tidings.watch('items', topic => 't')");
    let empty = r#"{"schema":"public","table":"items","type":"INSERT","record":{"id":1,"title":""},"old_record":null}"#;
    let most = 4096 - empty.len();
    db.session().run(&format!(
        "SET tidings.max_payload = '4kB';
         INSERT INTO items SELECT 1, repeat('x', {most} + n) FROM unnest(ARRAY[1, 0, 0, 1, 0]) n"
    ));
    let events = log.news();
    let truncated: Vec<_> = events.iter().map(|event| event.json()["truncated"] == true).collect();
    assert_eq!(truncated, [true, false, false, true, false]);
    assert_eq!(events[2].payload.len(), 4096);
}

#[test]
fn a_segment_grows_only_within_bounds_when_it_is_read() {
    let (db, mut log) = with(
        "CREATE TABLE short (id int);
         SELECT tidings.watch('short', topic => 's', payload => jsonb_build_object('text', repeat('z', 8000), 'id', '$id'))",
    );
    let mut session = db.session();
    session.run("BEGIN; INSERT INTO short SELECT generate_series(1, 500); SAVEPOINT a; INSERT INTO short SELECT generate_series(501, 2000); COMMIT");
    let events = log.news();
    for (id, event) in (1..).zip(&events) {
        assert_eq!(event.json(), json!({"text": "z".repeat(8000), "id": id}));
    }
    assert_eq!(events.len(), 2000);
    let sent: usize = events.iter().map(|event| event.payload.len()).sum();
    let logged = logged(&mut session);
    assert!(logged < sent as i64 / 8 && logged > sent as i64 / 20, "{logged} bytes for {sent}");
}

#[test]
fn rows_that_are_too_large_to_refer_to_come_between_others() {
    let (db, mut log) = with(
        "CREATE TABLE mixed (id int, text text); SELECT tidings.watch('mixed', topic => 'm', old_record => 'full')",
    );
    // Around the limit, after a row above it or below it; all of them begin with the same text.
    let lengths = "SELECT i, repeat('abcdefgh', 8190) || repeat('x', i % 40) FROM generate_series(1, 200) i";
    db.session().run(&format!(
        "BEGIN; INSERT INTO mixed {lengths}; SAVEPOINT a; UPDATE mixed SET text = text || '!'; ROLLBACK TO a;
         INSERT INTO mixed SELECT 200 + i, repeat('y', i * 1000) FROM generate_series(1, 100) i; COMMIT"
    ));
    let events = log.news();
    assert_eq!(events.len(), 300);
    for (id, event) in (1..).zip(&events) {
        let text =
            if id <= 200 { "abcdefgh".repeat(8190) + &"x".repeat(id % 40) } else { "y".repeat((id - 200) * 1000) };
        assert!(event.json()["record"] == json!({"id": id, "text": text}), "row {id}");
    }
}

#[test]
fn a_segment_with_a_repeated_text_grows_only_within_bounds_when_it_is_read() {
    let (db, mut log) = with("CREATE TABLE same (id int, text text); SELECT tidings.watch('same', topic => 's')");
    let mut session = db.session();
    session.run("INSERT INTO same SELECT i, repeat('abcdefgh', 6000) FROM generate_series(1, 1000) i");
    let events = log.news();
    for (id, event) in (1..).zip(&events) {
        assert!(event.json()["record"] == json!({"id": id, "text": "abcdefgh".repeat(6000)}), "row {id}");
    }
    assert_eq!(events.len(), 1000);
    let sent: usize = events.iter().map(|event| event.payload.len()).sum();
    let logged = logged(&mut session);
    assert!(logged < sent as i64 / 2 && logged > sent as i64 / 20, "{logged} bytes for {sent}");
}

#[test]
fn a_tick_whose_events_are_longer_than_its_log_is_announced_by_a_hint() {
    let (db, mut log) = with("CREATE TABLE dates (id int, day date); SELECT tidings.watch('dates', topic => 'd')");
    let mut session = db.session();
    let hints = |session: &mut Session| session.one::<i64>("SELECT hints FROM tidings.status");
    // A relay that has just started announces its first tick by a hint, too.
    assert_eq!(log.news().len(), 0);
    let before = hints(&mut session);
    // Some 30 kB of the log, and 1,500 events of 100 bytes.
    session.run("INSERT INTO dates SELECT i, current_date + i FROM generate_series(1, 1500) i");
    assert_eq!(log.news().len(), 1500);
    let (logged, limit) = (logged(&mut session), 64 * 1024);
    assert!(logged < limit, "{logged} bytes");
    assert_eq!(hints(&mut session), before + 1);
}

#[test]
fn an_update_of_many_long_columns_keeps_the_limit_of_a_payload() {
    let columns: Vec<_> = (0..60).map(|i| format!("c{i} text")).collect();
    let (db, mut log) = with(&format!(
        "CREATE TABLE many (id int, {}); SELECT tidings.watch('many', topic => 'm', payload => '[\"$id\", \"$old_record\"]')",
        columns.join(", ")
    ));
    let mut session = db.session();
    let set = |text: &str| (0..60).map(|i| format!("c{i} = {text}")).collect::<Vec<_>>().join(", ");
    session.run(&format!(
        "SET tidings.capture = off; INSERT INTO many (id) VALUES (1); UPDATE many SET {}; SET tidings.capture = on;
         SET tidings.max_payload = '4MB'",
        set("repeat('abc', 1000000)")
    ));
    let watch = MemoryWatch::start(&[session.backend()]);
    session.run(&format!("UPDATE many SET {}", set("NULL")));
    let peak = watch.finish()[0] / 1024 / 1024;
    assert_eq!(log.only().payload, r#"{"truncated":true}"#);
    // The old row has 180 MB; two of its columns are already more than a payload may have.
    assert!(peak < 100, "the backend took {peak} MiB");
}

#[test]
fn a_backend_frees_the_memory_of_a_payload_that_was_too_long() {
    let (db, mut log) =
        with("CREATE TABLE large (id int, a text, b text); SELECT tidings.watch('large', topic => 'l')");
    let mut session = db.session();
    session.run("SET tidings.max_payload = '64MB'; INSERT INTO large VALUES (1, 'a', 'b')");
    let backend = session.backend();
    let memory = || tidings_tests::process::memory(backend, "RssAnon").expect("it runs") / 1024 / 1024;
    let before = memory();
    session.run("INSERT INTO large SELECT 2, repeat('x', 40000000), repeat('y', 40000000); INSERT INTO large VALUES (3, 'c', 'd')");
    let after = memory();
    let truncated: Vec<_> = log.news().iter().map(|event| event.json()["truncated"] == true).collect();
    assert_eq!(truncated, [false, true, false]);
    assert!(after < before + 60, "{before} MiB before, {after} MiB after");
}
