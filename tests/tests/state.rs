//! The current rows of a topic: `tidings.state()`, `tidings.snapshot()`, and the functions with which a proxy reads
//! rows.

use postgres::error::SqlState;
use tidings_tests::{Database, Session, shared};

use crate::access::Team;
use crate::boards;
use crate::log::{Log, with};

/// The events that the rows of topics make, as topic, event name and payload.
#[track_caller]
fn state(session: &mut Session, topics: &[&str]) -> Vec<(String, String, String)> {
    let rows = session.all("SELECT topic, event, payload FROM tidings.state($1)", &[&topics]);
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// The payloads of a topic's rows.
#[track_caller]
fn payloads(session: &mut Session, topic: &str) -> Vec<String> {
    state(session, &[topic]).into_iter().map(|(_, _, payload)| payload).collect()
}

/// A member of each record in these payloads, as text.
#[track_caller]
fn records(session: &mut Session, topic: &str, member: &str) -> Vec<String> {
    let json = |payload: String| serde_json::from_str::<serde_json::Value>(&payload).expect("JSON");
    payloads(session, topic).into_iter().map(|payload| json(payload)["record"][member].to_string()).collect()
}

/// The payload of an INSERT, as it must be for the same row in a snapshot.
fn as_snapshot(payload: &str) -> String {
    payload.replacen("\"type\":\"INSERT\"", "\"type\":\"SNAPSHOT\"", 1)
}

#[test]
fn a_topic_has_the_rows_whose_insert_would_be_its_event() {
    let (db, mut log) = with(
        "CREATE TYPE mood AS ENUM ('fine', 'bad'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
         CREATE TABLE t (big bigint, txt text, id uuid, day date, num numeric, chars char(5), real8 float8, yes bool,
             at timestamptz, mood mood, dom positive, var varchar(7), span interval, arr int[], bytes bytea, spot point,
             net inet, doc jsonb, raw json);
         DO $$ DECLARE c name; BEGIN
             FOR c IN SELECT attname FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 LOOP
                 PERFORM tidings.watch('t', topic => c || '_{' || c || '}', name => c::text);
             END LOOP;
         END $$",
    );
    let mut session = db.session();
    session.run(
        "INSERT INTO t VALUES
             (5, 'a b', '00000000-0000-0000-0000-0000000000aa', '2024-02-29', 1.0, 'ab', 0.1, true, '2024-02-29 12:00+02',
              'fine', 5, 'x', '1 day', '{1,2}', '\\x00ff', '(1,2)', '10.0.0.1', '{\"a\": 1}', '[1]'),
             (-5, 'A B', 'aa000000-0000-0000-0000-0000000000aa', '0044-03-15 BC', 1.00, 'ab ', '-0', false, 'infinity',
              'bad', 6, 'x ', '24:00:00', '{}', '', '(1,2)', '10.0.0.1/8', '{\"a\":1}', '[1 ]'),
             (9223372036854775807, '', NULL, 'infinity', 'NaN', '', 'NaN', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
              NULL, NULL, NULL, NULL),
             (5, 'ü_{}%', NULL, NULL, 100000000000000000000.5, NULL, 1e300, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
              NULL, NULL, NULL, NULL, NULL)",
    );
    let events = log.news();
    let mut topics: Vec<&str> = events.iter().map(|event| event.topic.as_str()).collect();
    topics.sort_unstable();
    topics.dedup();
    assert!(topics.len() > 40, "{topics:?}");
    for topic in topics {
        let expected: Vec<_> =
            events.iter().filter(|event| event.topic == topic).map(|event| as_snapshot(&event.payload)).collect();
        // A topic has one reading: an empty value at its end makes events, but nobody can name it as the last hole.
        let is_readable = !topic.ends_with('_');
        assert_eq!(payloads(&mut session, topic), if is_readable { expected } else { Vec::new() }, "{topic}");
    }
    // Other texts of the same values, values of other types, and no values at all.
    for topic in [
        "big_05",
        "big_ 5",
        "big_x",
        "big_5.0",
        "big_99999999999999999999",
        "num_1.000",
        "num_nan",
        "chars_ab",
        "day_20240229",
        "day_2024-13-01",
        "id_000000000000000000000000000000aa",
        "yes_true",
        "yes_yes",
        "mood_good",
        "dom_-1",
        "real8_.1",
        "txt_a b ",
        "txt_a_b",
        "at_2024-02-29",
        "span_P1D",
        "arr_{1, 2}",
        "net_10.0.0.1/32",
        "doc_{\"a\":1}",
        "big",
        "other",
    ] {
        assert_eq!(payloads(&mut session, topic), [""; 0], "{topic}");
    }
}

#[test]
fn what_several_values_could_make_is_compared_as_a_whole() {
    let (db, mut log) = with(
        "CREATE TABLE t (a text, b text, n int);
         SELECT tidings.watch('t', topic => '{a}_{b}'); SELECT tidings.watch('t', topic => 'n_{n}_{n}_end', name => 'n')",
    );
    let mut session = db.session();
    session.run("INSERT INTO t VALUES ('x', 'y_z', 1), ('x_y', 'z', 2), ('x', 'y', 3), (NULL, 'y', 4)");
    let events = log.news();
    for topic in ["x_y_z", "x_y", "n_1_1_end", "n_4_4_end"] {
        let expected: Vec<_> =
            events.iter().filter(|event| event.topic == topic).map(|event| as_snapshot(&event.payload)).collect();
        assert_eq!(expected.len(), 1, "{topic}");
        assert_eq!(payloads(&mut session, topic), expected, "{topic}");
    }
    assert_eq!(payloads(&mut session, "n_1_2_end"), [""; 0]);
    // The texts may be equal for the collation, and other topics all the same.
    if session
        .client()
        .batch_execute("CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        .is_ok()
    {
        session.run(
            "CREATE TABLE c (name text COLLATE nocase); SELECT tidings.watch('c', topic => 'c_{name}');
             INSERT INTO c VALUES ('Ada'), ('ADA')",
        );
        assert_eq!(records(&mut session, "c_Ada", "name"), ["\"Ada\""]);
    }
}

#[test]
fn condition_columns_and_payload_apply() {
    let db = shared().database();
    let mut session = db.session();
    session.run(
        "CREATE SCHEMA lib; CREATE FUNCTION lib.is_public(text) RETURNS boolean LANGUAGE sql AS $$ SELECT $1 <> 'secret' $$;
         CREATE TABLE \"Odd \"\"t\" (id int, \"the \"\"kind\" text, board int, \"new\" int);
         INSERT INTO \"Odd \"\"t\" VALUES (1, 'open', 5, 7), (2, 'secret', 5, 7), (3, 'open', 6, 7), (4, NULL, 5, 7);
         SELECT tidings.watch('\"Odd \"\"t\"', topic => 'b_{board}', event => 'item', columns => '{id}', name => 'a', operations => '{INSERT,UPDATE}',
                              condition => 'lib.is_public(new.\"the \"\"kind\") AND new.\"new\" = 7');
         SELECT tidings.watch('\"Odd \"\"t\"', topic => 'b_{board}', exclude => '{board,new}', name => 'b');
         SELECT tidings.watch('\"Odd \"\"t\"', topic => 'all', payload => '{\"$$x\": [\"$id\", \"$old.id\", \"$type\", \"$table\"]}', name => 'c');
         SELECT tidings.watch('\"Odd \"\"t\"', topic => 'all', operations => '{UPDATE,DELETE}', name => 'd');
         SELECT tidings.watch('\"Odd \"\"t\"', topic => 'all', operations => '{TRUNCATE}', name => 'e');
         SELECT tidings.watch('\"Odd \"\"t\"', topic => 'all', name => 'f'); ALTER TABLE \"Odd \"\"t\" DISABLE TRIGGER tidings_f",
    );
    // A function of the same name, earlier in the search path, must not be called by the condition.
    session.run(
        "CREATE FUNCTION public.is_public(text) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$; SET search_path = public, lib",
    );
    let head = r#"{"schema":"public","table":"Odd \"t","type":"SNAPSHOT","record":"#;
    let of = |record: &str| format!("{head}{record},\"old_record\":null}}");
    let event = |event: &str, payload: String| ("b_5".to_owned(), event.to_owned(), payload);
    assert_eq!(
        state(&mut session, &["b_5"]),
        [
            event("item", of(r#"{"id":1}"#)),
            event("changed", of(r#"{"id":1,"the \"kind":"open"}"#)),
            event("changed", of(r#"{"id":2,"the \"kind":"secret"}"#)),
            event("changed", of(r#"{"id":4,"the \"kind":null}"#)),
        ]
    );
    let all: Vec<_> = (1..=4).map(|id| format!(r#"{{"$$x":[{id},null,"SNAPSHOT","Odd \"t"]}}"#)).collect();
    assert_eq!(payloads(&mut session, "all"), all);
    // Each topic once, in the order in which they were asked for.
    let several = state(&mut session, &["all", "b_6", "all", "nothing"]);
    let topics: Vec<&str> = several.iter().map(|(topic, ..)| topic.as_str()).collect();
    assert_eq!(topics, ["all", "all", "all", "all", "b_6", "b_6"]);
    session.run(
        "UPDATE \"Odd \"\"t\" SET \"the \"\"kind\" = repeat('x', 5000) WHERE id = 3; SET tidings.max_payload = '4kB'",
    );
    let long = payloads(&mut session, "b_6");
    assert_eq!(long[0], of(r#"{"id":3}"#));
    assert_eq!(long[1], format!("{head}null,\"old_record\":null,\"truncated\":true}}"));
}

#[test]
fn partitions_have_their_rows_in_the_whole_and_heirs_have_none() {
    let (db, mut log) = with(
        "CREATE TABLE whole (id int, half int) PARTITION BY LIST (half);
         CREATE TABLE odd (half int, gone int, id int); ALTER TABLE odd DROP gone;
         ALTER TABLE whole ATTACH PARTITION odd FOR VALUES IN (1);
         CREATE TABLE part PARTITION OF whole FOR VALUES IN (0) PARTITION BY LIST (id);
         CREATE TABLE leaf PARTITION OF part DEFAULT;
         CREATE TABLE mother (id int); CREATE TABLE heir () INHERITS (mother);
         SELECT tidings.watch('whole', topic => 'whole'); SELECT tidings.watch('odd', topic => 'odd_{half}', name => 'own');
         SELECT tidings.watch('part', topic => 'part', name => 'own');
         SELECT tidings.watch('mother', topic => 'mother')",
    );
    let mut session = db.session();
    session.run("INSERT INTO whole VALUES (1, 0), (2, 1); INSERT INTO mother VALUES (3); INSERT INTO heir VALUES (4)");
    let events = log.news();
    for topic in ["whole", "odd_1", "part", "mother"] {
        // Compared as JSON, because an event of a partition has the columns in the order of the partition.
        let json = |payload: &str| serde_json::from_str::<serde_json::Value>(payload).expect("JSON");
        let expected: Vec<_> = events
            .iter()
            .filter(|event| event.topic == topic)
            .map(|event| json(&as_snapshot(&event.payload)))
            .collect();
        assert!(!expected.is_empty(), "{topic}");
        let mut got: Vec<_> = payloads(&mut session, topic).iter().map(|payload| json(payload)).collect();
        got.sort_by_key(|row| row["record"]["id"].as_i64());
        assert_eq!(got, expected, "{topic}");
    }
}

/// How many times this session has scanned a table since its last report to the statistics: all of it, and by an index.
fn scans(session: &mut Session, table: &str) -> (i64, i64) {
    let sql = "SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relid = $1::text::regclass";
    let row = &session.all(sql, &[&table])[0];
    (row.get(0), row.get(1))
}

#[test]
fn the_index_of_a_foreign_key_finds_the_rows_of_a_topic() {
    let db = shared().database();
    let mut session = db.session();
    session.run(
        "CREATE DOMAIN code AS varchar(20);
         CREATE TABLE items (id bigint PRIMARY KEY, board_id bigint, name varchar(20), code code, uid uuid);
         INSERT INTO items SELECT n, n / 10, 'n' || n / 10, 'c' || n / 10, md5((n / 10)::text)::uuid FROM generate_series(1, 20000) n;
         CREATE INDEX ON items (board_id); CREATE INDEX ON items USING hash (name); CREATE INDEX ON items (code); CREATE INDEX ON items (uid);
         SELECT tidings.watch('items', topic => 'b_{board_id}', name => 'b', operations => '{INSERT}', condition => 'new.id <> 0');
         SELECT tidings.watch('items', topic => 'n_{name}', name => 'n'); SELECT tidings.watch('items', topic => 'c_{code}', name => 'c');
         SELECT tidings.watch('items', topic => 'u_{uid}_x', name => 'u'); ANALYZE items",
    );
    let uid: String = session.one("SELECT 'u_' || uid || '_x' FROM items WHERE id = 70");
    for topic in ["b_7", "n_n7", "c_c7", &uid] {
        session.run("BEGIN");
        let (whole, by_index) = scans(&mut session, "items");
        assert_eq!(payloads(&mut session, topic).len(), 10, "{topic}");
        assert_eq!(scans(&mut session, "items"), (whole, by_index + 1), "{topic}");
        session.run("COMMIT");
    }
}

/// The notices that a statement gives.
fn notices(db: &Database<'_>, sql: &str) -> Vec<String> {
    let notices = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut config = db.cluster().config(db.name(), "postgres");
    let noted = notices.clone();
    config.notice_callback(move |notice| noted.lock().expect("a lock").push(notice.message().to_owned()));
    Session::new(config.connect(postgres::NoTls).expect("connect")).run(sql);
    std::mem::take(&mut *notices.lock().expect("a lock"))
}

#[test]
fn a_watch_without_an_index_for_its_topic_says_so() {
    let db = shared().database();
    db.session().run("CREATE TABLE items (id bigint PRIMARY KEY, board_id bigint, kind text)");
    let watch = |arguments: &str| notices(&db, &format!("SELECT tidings.watch('items', {arguments})"));
    let missing = watch("topic => 'b_{board_id}'");
    assert!(missing.len() == 1 && missing[0].contains("since=snapshot"), "{missing:?}");
    for without in [
        "topic => 'items'",
        "topic => 'i_{id}'",
        "topic => '{kind}_{id}'",
        "topic => 'b_{board_id}', operations => '{update,delete}'",
    ] {
        assert_eq!(watch(without), [""; 0], "{without}");
    }
    db.session().run("CREATE INDEX ON items (board_id) WHERE kind = 'x'");
    assert_eq!(watch("topic => 'b_{board_id}'").len(), 1, "a partial index does not count");
    db.session().run("CREATE INDEX ON items (board_id, id)");
    assert_eq!(watch("topic => 'b_{board_id}'"), [""; 0]);
}

#[test]
fn rows_are_read_with_the_rights_of_who_asks() {
    let db = shared().database();
    let app = db.role("app");
    let mut session = db.session();
    session.run(&format!(
        "CREATE TABLE items (id int, board_id int, secret text, owner text);
         INSERT INTO items VALUES (1, 5, 's', '{app}'), (2, 5, 's', 'other'), (3, 6, 's', '{app}');
         ALTER TABLE items ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON items FOR SELECT USING (owner = current_user);
         SELECT tidings.watch('items', topic => 'b_{{board_id}}', exclude => '{{secret,owner}}');
         SELECT tidings.grant_app('{app}')"
    ));
    let mut his = db.session_as(&app);
    his.forbidden("SELECT * FROM tidings.state('{b_5}')");
    assert_eq!(state(&mut his, &["other"]), [], "nothing to be read");
    // The columns that are captured and those of the topic and the policy, and no others.
    session.run(&format!("GRANT SELECT (id, board_id) ON items TO {app}"));
    assert_eq!(records(&mut his, "b_5", "id"), ["1"]);
    assert_eq!(records(&mut session, "b_5", "id"), ["1", "2"]);
    let other = db.role("other");
    db.session_as(&other).forbidden("SELECT * FROM tidings.state('{b_5}')");
}

#[test]
fn rows_and_position_of_one_statement_belong_together() {
    let db = boards();
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (1, 5, 'one')");
    let (mut log, mut writer) = (Log::from_here(&db), db.session());
    // Each statement of this session sees the same.
    session.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT");
    writer.run("INSERT INTO board_items VALUES (2, 5, 'two')");
    assert_eq!(log.news().len(), 1);
    let sql = "SELECT tidings.position(), array_agg((payload::json -> 'record' ->> 'id')::int) FROM tidings.state('{boards_5}')";
    let row = &session.all(sql, &[])[0];
    let (position, ids): (String, Vec<i32>) = (row.get(0), row.get(1));
    assert_eq!(ids, [1]);
    session.run("COMMIT");
    let after = "SELECT array_agg((payload::json -> 'record' ->> 'id')::int) FROM tidings.changes($1, '{boards_5}')";
    assert_eq!(session.all(after, &[&position])[0].get::<_, Vec<i32>>(0), [2]);
    // And in a transaction that has written.
    session.run("BEGIN; INSERT INTO board_items VALUES (3, 5, 'three')");
    assert_eq!(records(&mut session, "boards_5", "id"), ["1", "2", "3"]);
}

#[test]
fn a_query_replaces_the_rows_of_the_watches() {
    let db = boards();
    let mut session = db.session();
    session.run(
        "CREATE TABLE names (id bigint, name text); INSERT INTO names VALUES (1, 'Ada'), (2, 'Bob');
         INSERT INTO board_items VALUES (1, 5, 'one'), (2, 5, 'two'), (3, 6, 'three');
         SELECT tidings.snapshot('boards_{id}', 'SELECT i.title, n.name AS by, ARRAY[i.id] AS ids FROM board_items i LEFT JOIN names n USING (id)
                                                 WHERE i.board_id = {id}::bigint ORDER BY i.id DESC LIMIT 100 -- newest first')",
    );
    let event = |payload: &str| ("boards_5".to_owned(), "snapshot".to_owned(), payload.to_owned());
    let rows = [event(r#"{"title":"two","by":"Bob","ids":[2]}"#), event(r#"{"title":"one","by":"Ada","ids":[1]}"#)];
    assert_eq!(state(&mut session, &["boards_5"]), rows);
    // It runs with the path under which it was written, whatever the reader's path is.
    session.run("SET search_path = pg_temp");
    assert_eq!(state(&mut session, &["boards_5"]), rows);
    session.run("RESET search_path");
    let view: String =
        session.one("SELECT string_agg(topic || event, ' ') FROM tidings.snapshots WHERE query LIKE '%LIMIT 100%'");
    assert_eq!(view, "boards_{id}snapshot");
    // One JSON value is the event's data, as it is.
    session.run(
        "SELECT tidings.snapshot('boards_{id}', 'SELECT jsonb_build_object(''of'', {id}, ''text'', title) FROM board_items WHERE board_id::text = {id}', event => 'item')",
    );
    let row = ("boards_6".to_owned(), "item".to_owned(), r#"{"of": "6", "text": "three"}"#.to_owned());
    let (got, jsonb) =
        (state(&mut session, &["boards_6"]), |text: &str| serde_json::from_str::<serde_json::Value>(text).ok());
    assert_eq!((&got[0].0, &got[0].1, jsonb(&got[0].2)), (&row.0, &row.1, jsonb(&row.2)));
    // A value of the topic is a value, whatever is in it.
    assert_eq!(state(&mut session, &["boards_6' OR true --"]), []);
    assert!(session.one::<bool>("SELECT tidings.unsnapshot('boards_{id}')"));
    assert!(!session.one::<bool>("SELECT tidings.unsnapshot('boards_{id}')"));
    assert_eq!(records(&mut session, "boards_6", "title"), ["\"three\""]);
}

#[test]
fn a_query_that_can_not_work_is_refused_when_it_is_given() {
    let db = boards();
    let mut session = db.session();
    for (topic, query, event) in [
        ("boards_{id}", "SELECT FROM nothing", "snapshot"),
        ("boards_{id}", "SELECT {other}", "snapshot"),
        ("boards_{id}", "DELETE FROM board_items RETURNING id", "snapshot"),
        ("boards_{id}", "SELECT 1; SELECT 2", "snapshot"),
        ("boards_{id}", "SELECT 1", "reset"),
        ("boards_{id}", "SELECT 1", "a\nb"),
        ("boards_{id}{x}", "SELECT 1", "snapshot"),
        ("", "SELECT 1", "snapshot"),
        ("boards_{", "SELECT 1", "snapshot"),
    ] {
        let result = session.client().query("SELECT tidings.snapshot($1, $2, $3)", &[&topic, &query, &event]);
        assert!(result.is_err(), "{topic} {query} {event}");
    }
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.snapshots"), 0);
}

/// The payloads that a proxy of these claims would read.
pub fn read_as(session: &mut Session, claims: Option<&str>, topics: &[&str]) -> Result<Vec<String>, postgres::Error> {
    let client = session.client();
    client.batch_execute("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    client.execute("SELECT tidings.open_rows($1::text::jsonb, $2)", &[&claims, &topics])?;
    let mut payloads: Vec<String> = Vec::new();
    loop {
        let rows = client.query("SELECT payloads FROM tidings.fetch_rows(1000)", &[])?;
        if rows.is_empty() {
            break;
        }
        payloads.extend(rows.iter().flat_map(|row| row.get::<_, Vec<String>>(0)));
    }
    client.batch_execute("ROLLBACK")?;
    Ok(payloads)
}

#[test]
fn a_proxy_reads_as_the_subscriber_and_only_as_one() {
    let team = Team::new();
    team.db.session().run(&format!(
        "INSERT INTO board_items VALUES (1, 5, 'five'), (2, 6, 'six'), (3, 8, 'eight');
         ALTER TABLE board_items ENABLE ROW LEVEL SECURITY; GRANT SELECT ON board_items TO {}, {};
         CREATE POLICY visible ON board_items FOR SELECT USING (EXISTS (SELECT FROM boards b WHERE b.id = board_id))",
        team.member, team.guest
    ));
    let mut proxy = team.db.session_as(&team.db.proxy_role());
    let topics = ["boards_5", "boards_6", "boards_8"];
    let titles = |rows: Vec<String>| {
        let title =
            |row: &String| row.split("\"title\":\"").nth(1).and_then(|rest| rest.split('"').next().map(str::to_owned));
        rows.iter().filter_map(title).collect::<Vec<_>>()
    };
    let claims = |person| team.claims(person).to_string();
    assert_eq!(titles(read_as(&mut proxy, Some(&claims(1)), &topics).unwrap()), ["five", "eight"]);
    assert_eq!(titles(read_as(&mut proxy, Some(&claims(2)), &topics).unwrap()), ["six", "eight"]);
    let guest = format!("{{\"role\": \"{}\"}}", team.guest);
    assert_eq!(titles(read_as(&mut proxy, Some(&guest), &topics).unwrap()), ["eight"]);
    // The proxy's own role has no right to the table, and no claims may name it or a superuser.
    let own = format!("{{\"role\": \"{}\"}}", team.db.proxy_role());
    for claims in [None, Some("{}"), Some("{\"role\": \"postgres\"}"), Some("{\"role\": \"nobody\"}"), Some(&*own)] {
        let error = read_as(&mut proxy, claims, &topics).unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{claims:?}: {error}");
    }
    proxy.run("ROLLBACK");
    proxy.forbidden("SELECT tidings.open_rows_as(10::oid, NULL, '{boards_5}', 'public')");
    team.db.session_as(&team.member).forbidden("SELECT tidings.open_rows(NULL, '{boards_5}')");
}

#[test]
fn a_reading_is_fetched_in_portions_and_ends_with_its_transaction() {
    let db = boards();
    db.session().run(&format!(
        "INSERT INTO board_items SELECT n, 5, repeat('x', 100) FROM generate_series(1, 5000) n;
         GRANT SELECT ON board_items TO {}",
        db.proxy_role()
    ));
    let mut proxy = db.session_as(&db.proxy_role());
    proxy.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT tidings.open_rows(NULL, '{boards_5,boards_6}')");
    let portion = "SELECT count(*), sum(length(p)) FROM tidings.fetch_rows(50000), unnest(payloads) p";
    let (mut rows, mut portions) = (0, 0);
    loop {
        let row = &proxy.all(portion, &[])[0];
        let count: i64 = row.get(0);
        if count == 0 {
            break;
        }
        let bytes: i64 = row.get(1);
        assert!(bytes < 100_000, "{bytes} bytes in one portion");
        rows += count;
        portions += 1;
    }
    assert_eq!(rows, 5000);
    assert!(portions > 10);
    proxy.run("ROLLBACK; BEGIN; SELECT tidings.open_rows(NULL, '{boards_5}'); ROLLBACK");
    let error = proxy.refused("SELECT tidings.fetch_rows(1)");
    assert_eq!(*error.code(), SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
}

#[test]
fn a_policys_code_does_not_leave_the_subscribers_role() {
    let team = Team::new();
    let mallory = team.db.role("mallory");
    team.db.session().run(&format!(
        "CREATE SCHEMA art AUTHORIZATION {mallory}; GRANT USAGE ON SCHEMA art TO {member};
         SET ROLE {mallory};
         CREATE TABLE art.drawings (id bigint); INSERT INTO art.drawings SELECT generate_series(1, 500);
         GRANT SELECT ON art.drawings TO {member};
         CREATE FUNCTION art.spy() RETURNS boolean LANGUAGE sql AS 'SELECT true';
         ALTER TABLE art.drawings ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON art.drawings USING (art.spy());
         RESET ROLE; SELECT tidings.watch('art.drawings', topic => 'drawings')",
        member = team.member
    ));
    let (own, claims) = (team.db.proxy_role(), team.claims(1).to_string());
    let mut proxy = team.db.session_as(&own);
    let spy = |body: &str| {
        team.db.session_as(&mallory).run(&format!(
            "CREATE OR REPLACE FUNCTION art.spy() RETURNS boolean LANGUAGE plpgsql AS $spy$ BEGIN {body} RETURN true; END $spy$"
        ));
    };
    assert_eq!(read_as(&mut proxy, Some(&claims), &["drawings"]).unwrap().len(), 500);
    let read = "PERFORM FROM tidings.changes('earliest');";
    for change in [
        "PERFORM set_config('role', 'none', true);".to_owned(),
        format!("PERFORM set_config('role', '{own}', false);"),
        "RESET ROLE;".to_owned(),
        "RESET ALL;".to_owned(),
        "SET SESSION AUTHORIZATION DEFAULT;".to_owned(),
        "EXECUTE 'CLOSE ALL';".to_owned(),
        "EXECUTE 'LISTEN x';".to_owned(),
        String::new(),
    ] {
        spy(&format!("{change} {read}"));
        let error = read_as(&mut proxy, Some(&claims), &["drawings"]).unwrap_err();
        assert!(error.as_db_error().is_some(), "{change}: {error}");
        proxy.run("ROLLBACK");
        assert_eq!(proxy.one::<String>("SELECT current_user::text"), own, "{change}");
    }
    // What it sets is gone when the next portion is read, and when the reading is over.
    spy(
        "PERFORM set_config('my.mark', 'x', false), set_config('work_mem', '64kB', false), set_config('request.jwt.claims', '{}', false);",
    );
    assert_eq!(read_as(&mut proxy, Some(&claims), &["drawings"]).unwrap().len(), 500);
    let left: String = proxy.one("SELECT concat_ws(' ', current_setting('my.mark', true), current_setting('work_mem'), current_setting('request.jwt.claims', true))");
    assert!(!left.contains('x') && !left.contains("64kB") && !left.contains('{'), "{left}");
}
