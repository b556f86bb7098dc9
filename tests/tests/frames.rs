//! What a client receives for a change: the frames, and that nothing in a row can break out of them.

use std::io::Write;

use serde_json::{Value, json};
use tidings_tests::sse::Request;
use tidings_tests::{Item, shared};

use crate::{all_until_now, boards};

/// Texts that a writer may store to break out of a frame.
const HOSTILE: &[&str] = &[
    "a\nb",
    "\n\n",
    "x\n\ndata: forged\n\n",
    "\r\rid: 1-1\revent: forged\rdata: forged\r\r",
    "a\r\nevent: reset\r\ndata: forged\r\n\r\n",
    "data: not a line of its own",
    "id: 5-5",
    ":",
    ": comment\n: comment",
    "retry: 1",
    " leading and trailing ",
    "\ttab",
    "ends with newlines\n\n\n",
    "\u{feff}byte order mark",
    "Grüße, 你好, 🐘, \u{202e}right to left\u{202c}, e\u{301}",
    "\u{2028}line\u{2029}paragraph\u{85}next\u{b}\u{c}",
    "quotes \" ' ` and \\ and \\n and \\u0000",
    "{\"record\": null}",
    "</script><script>alert(1)</script>",
    "%0Adata: forged",
    "",
];

#[test]
fn a_stream_begins_at_once_with_the_documented_headers() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    assert_eq!(sse.head().header("content-type"), Some("text/event-stream"));
    assert_eq!(sse.head().header("cache-control"), Some("no-store, no-transform"));
    assert_eq!(sse.head().header("x-accel-buffering"), Some("no"));
    let (first, second) = (sse.item(), sse.item());
    assert!(matches!(first, Some(Item::Retry(1000..=3000))), "2 s, half more or less: {first:?}");
    assert!(matches!(second, Some(Item::Comment(_))), "{second:?}");
}

#[test]
fn insert_update_delete_copy_and_publish_arrive_as_documented() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    let mut expect = |event: &str, data: Value| {
        let frame = sse.frame();
        assert_eq!(frame.event, event);
        assert_eq!(frame.json(), data);
        assert!(frame.place().1 >= 1, "{frame:?}");
        frame.place()
    };
    let changed = |kind: &str, record: Value, old_record: Value| json!({"schema": "public", "table": "board_items", "type": kind, "record": record, "old_record": old_record});
    let first = json!({"id": 1, "board_id": 5, "title": "first"});
    let second = json!({"id": 1, "board_id": 5, "title": "second"});
    session.run("INSERT INTO board_items VALUES (1, 5, 'first')");
    let a = expect("changed", changed("INSERT", first, Value::Null));
    session.run("UPDATE board_items SET title = 'second' WHERE id = 1");
    let b = expect("changed", changed("UPDATE", second.clone(), json!({"title": "first"})));
    session.run("DELETE FROM board_items WHERE id = 1");
    let c = expect("changed", changed("DELETE", Value::Null, second));
    let mut copy = session.client().copy_in("COPY board_items FROM STDIN").expect("begin to copy");
    copy.write_all(b"2\t5\tcopied\n3\t6\tto another board\n4\t5\t\\N\n").expect("copy");
    copy.finish().expect("copy");
    let d = expect("changed", changed("INSERT", json!({"id": 2, "board_id": 5, "title": "copied"}), Value::Null));
    let e = expect("changed", changed("INSERT", json!({"id": 4, "board_id": 5, "title": null}), Value::Null));
    session.run(r#"SELECT tidings.publish('boards_5', '{"hello": "world"}')"#);
    let f = expect("message", json!({"hello": "world"}));
    session.run("SELECT tidings.publish('boards_5', '[1, 2]', event => 'numbers')");
    let g = expect("numbers", json!([1, 2]));
    assert!([a, b, c, d, e, f, g].is_sorted_by(|a, b| a < b), "ids rise");
    session.run("SELECT tidings.publish_text('boards_5', '<p>hello</p>', event => 'html')");
    let frame = sse.frame();
    assert_eq!((frame.event.as_str(), frame.data.as_str()), ("html", "<p>hello</p>"));
    session.run("SELECT tidings.publish_text('boards_5', 'plain')");
    let frame = sse.frame();
    assert_eq!((frame.event.as_str(), frame.data.as_str()), ("message", "plain"));
}

#[test]
fn values_are_exactly_as_to_jsonb_gives_them() {
    let db = shared().database();
    let mut session = db.session();
    session.run(
        r#"CREATE TYPE mood AS ENUM ('sad', 'ok "quoted"');
        CREATE TYPE pair AS (a int, b text);
        CREATE DOMAIN small AS int CHECK (VALUE < 10);
        CREATE TABLE zoo (
            id int, t text, v varchar(9), c char(5), n numeric, f8 float8, f4 float4, i8 bigint, flag boolean, d date,
            ts timestamp, tz timestamptz, iv interval, u uuid, b bytea, j json, jb jsonb, ints int[], texts text[],
            m mood, p pair, s small, r int4range, x xml, ip inet, bits bit(3), deep pair[], "Upper ""name""" text);
        SELECT tidings.watch('zoo', topic => 'zoo');
        CREATE TABLE expected (n serial, record jsonb);"#,
    );
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["zoo"]);
    let xml = if crate::has_xml(&mut session) { "'<a>b</a>'" } else { "NULL" };
    let rows = r#"INSERT INTO zoo VALUES
          (1, E'a"b\\c\n', 'ü', 'x', 1.500, 0.1, 'Infinity', 9223372036854775807, true, '2024-02-29', '2024-02-29 12:00:00.123456',
           '2024-02-29 12:00:00+02', '1 day 02:03:04.5', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '\xdeadbeef', '{"b": 1,  "a": [1, 2]}',
           '{"z": null, "a": "\u00fc"}', '{1,NULL,3}', '{"a,b",NULL,"c\"d"}', 'ok "quoted"', '(1,"x,y")', 5, '[1,10)', XML,
           '10.0.0.1/8', B'101', ARRAY['(1,a)', '(2,"b""c")']::pair[], 'odd name'),
          (2, NULL, NULL, NULL, 'NaN', '-Infinity', 'NaN', -1, false, 'infinity', '-infinity', 'infinity', '-1 mon', NULL, '', 'null',
           'null', '{}', '{{a,b},{c,d}}', NULL, NULL, NULL, 'empty', NULL, '::1', NULL, NULL, NULL),
          (3, '', '', '', 1e30, 1e300, 1e-30, 0, NULL, NULL, NULL, '1999-12-31 23:59:59.999999+00', NULL, NULL, NULL, '"text"', '12.50',
           '[0:1]={7,8}', NULL, NULL, '(,)', NULL, '(,5)', NULL, NULL, NULL, NULL, NULL);
        INSERT INTO expected (record) SELECT to_jsonb(zoo) FROM zoo ORDER BY id;"#;
    session.run(&rows.replace("XML", xml));
    for row in session.all("SELECT record::text FROM expected ORDER BY n", &[]) {
        let expected: Value = serde_json::from_str(row.get(0)).expect("JSON");
        assert_eq!(sse.frame().json()["record"], expected);
    }
}

#[test]
fn multi_line_and_unicode_texts_survive() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["texts"]);
    let mut session = db.session();
    for text in HOSTILE {
        session.with("SELECT tidings.publish_text('texts', $1, event => 'html')", &[text]);
    }
    for text in HOSTILE {
        let frame = sse.frame();
        // The grammar has only one kind of line end, so a browser returns each of them as a newline.
        assert_eq!(frame.data, text.replace("\r\n", "\n").replace('\r', "\n"), "{text:?}");
        assert_eq!(frame.event, "html");
    }
    assert_eq!(all_until_now(&db, "texts", &mut sse), []);
}

#[test]
fn nothing_in_a_row_can_forge_a_frame() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let (mut sse, mut log) = (proxy.live(&["boards_5"]), Vec::new());
    let mut session = db.session();
    session.run(r#"ALTER TABLE board_items ADD "id: 1-1 data: x" text"#);
    for (i, text) in HOSTILE.iter().enumerate() {
        let id = i as i64;
        session.with("INSERT INTO board_items VALUES ($1, 5, $2, $2)", &[&id, text]);
        session.with("UPDATE board_items SET title = title || '.' WHERE id = $1", &[&id]);
    }
    let record = |i: usize, title: &str| json!({"id": i, "board_id": 5, "title": title, "id: 1-1 data: x": HOSTILE[i]});
    for (i, text) in HOSTILE.iter().enumerate() {
        let (insert, update) = (sse.frame(), sse.frame());
        assert_eq!((insert.event.as_str(), update.event.as_str()), ("changed", "changed"));
        assert_eq!(insert.json()["record"], record(i, text));
        assert_eq!(update.json()["record"], record(i, &format!("{text}.")));
        assert_eq!(update.json()["old_record"], json!({"title": text}));
        log.extend([insert, update]);
    }
    assert_eq!(all_until_now(&db, "boards_5", &mut sse), []);
    // The same events from the log, which take another path.
    let mut again = proxy.open(&Request::since(&["boards_5"], "earliest"));
    assert_eq!(all_until_now(&db, "boards_5", &mut again)[..log.len()], log);
}

#[test]
fn no_topic_and_no_event_name_can_forge_a_frame() {
    let db = shared().database();
    let mut session = db.session();
    session.run("CREATE TABLE rooms (name text); SELECT tidings.watch('rooms', topic => 'room {name}')");
    let proxy = db.proxy(&[]);
    for text in HOSTILE.iter().filter(|text| text.chars().any(char::is_control)) {
        // The row is stored; a name that makes no valid topic makes no event.
        session.with("INSERT INTO rooms VALUES ($1)", &[text]);
        for sql in [
            "SELECT tidings.publish($1, '1')",
            "SELECT tidings.publish_text($1, 'x')",
            "SELECT tidings.publish('room x', '1', event => $1)",
            "SELECT tidings.publish_text('room x', 'x', event => $1)",
        ] {
            assert!(session.client().execute(sql, &[text]).is_err(), "{sql} took {text:?}");
        }
    }
    let clean: Vec<&str> = HOSTILE.iter().filter(|text| !text.chars().any(char::is_control)).copied().collect();
    for name in &clean {
        let topic = format!("room {name}");
        let mut sse = proxy.live(&[&topic]);
        session.with("INSERT INTO rooms VALUES ($1)", &[name]);
        assert_eq!(sse.frame().json()["record"], json!({"name": name}), "{topic:?}");
        if !name.is_empty() {
            session.with("SELECT tidings.publish_text($1, $2, event => $2)", &[&topic, name]);
            let frame = sse.frame();
            // Leading blanks belong to the name too, except for the one that the grammar removes.
            assert_eq!((frame.event.as_str(), frame.data.as_str()), (*name, *name));
        }
        assert_eq!(all_until_now(&db, &topic, &mut sse), []);
    }
    let mut all = proxy.open(&Request::since(&["room x"], "earliest"));
    assert_eq!(all_until_now(&db, "room x", &mut all), [], "only well-formed topics and names have events");
}

#[test]
fn a_client_gets_the_topics_it_asked_for_and_no_others() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let (mut one, mut two) = (proxy.live(&["boards_1"]), proxy.live(&["boards_1", "boards_2"]));
    let mut session = db.session();
    for board in [1, 2, 3, 10] {
        session.run(&format!("INSERT INTO board_items VALUES ({board}, {board}, 'board {board}')"));
    }
    assert_eq!(crate::titles(&all_until_now(&db, "boards_1", &mut one)), ["board 1"]);
    assert_eq!(crate::titles(&[two.frame(), two.frame()]), ["board 1", "board 2"]);
}

#[test]
fn a_null_in_a_topic_means_no_event() {
    let db = shared().database();
    let mut session = db.session();
    session.run("CREATE TABLE rooms (name text, n int); SELECT tidings.watch('rooms', topic => 'room_{name}')");
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["room_a", "room_", "room_null", "room_NULL"]);
    session.run("INSERT INTO rooms VALUES (NULL, 1), ('a', 2), (NULL, 3)");
    let frames = all_until_now(&db, "room_a", &mut sse);
    assert_eq!(frames.iter().map(|frame| frame.json()["record"]["n"].clone()).collect::<Vec<_>>(), [json!(2)]);
}
