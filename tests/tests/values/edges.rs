//! The limits of what the extension writes itself, compared with Postgres.

use std::fmt::Write;

use tidings_tests::{Session, shared};

use super::members;
use crate::log::Log;

/// Inserts the values that a query returns, one row each, and compares their events with `to_jsonb`.
fn compare(session: &mut Session, log: &mut Log, of: &str, values: &str) {
    session.run("DROP TABLE IF EXISTS edges");
    session.run(&format!("CREATE TABLE edges (n bigserial, v {of}, many {of}[])"));
    session.run("SELECT tidings.watch('edges', topic => 'edges')");
    sent_as_it_is(
        session,
        log,
        &format!("INSERT INTO edges (v, many) SELECT v, ARRAY[v, NULL, v] FROM ({values}) q (v)"),
    );
}

fn sent_as_it_is(session: &mut Session, log: &mut Log, insert: &str) {
    let rows = session.all(&format!("{insert} RETURNING to_jsonb(edges)::text"), &[]);
    let expected: Vec<Option<String>> = rows.iter().map(|row| row.get(0)).collect();
    let sent = members(session, &log.news(), "record");
    assert!(!expected.is_empty(), "{insert}");
    for (sent, expected) in sent.iter().zip(&expected) {
        assert_eq!(sent, expected, "{insert}");
    }
    assert_eq!(sent.len(), expected.len(), "{insert}");
}

/// Text literals as values of a type.
fn literals(of: &str, values: &[&str]) -> String {
    let values: Vec<_> = values.iter().map(|value| format!("('{value}'::{of})")).collect();
    format!("VALUES {}", values.join(", "))
}

#[test]
fn numerics_are_sent_to_the_last_digit() {
    let db = shared().database();
    let (mut session, mut log) = (db.session(), Log::from_here(&db));
    let values = "0 -0.0 0.000 1 -1 10 9999 10000 10001 99999999 100000000 100000001 1e20 12345678901234567890.123456789
        0.1 0.01 0.0001 0.00001 0.00010000 1e-20 -1e-20 1.50 1.5000 1.50000 120000 1200.0034 1e63 1e64 1e65 1e256 1e260 -1e-255 1e-260
        1e131071 -1e-16383 1e-1000 NaN Infinity -Infinity";
    let values: Vec<_> = values.split_whitespace().collect();
    compare(&mut session, &mut log, "numeric", &literals("numeric", &values));
    compare(&mut session, &mut log, "numeric(10,3)", "SELECT i / 7.0 FROM generate_series(-50, 50) i");
    let groups = "SELECT trunc(7654321098.7654321098::numeric * 10 ^ (i / 12)::numeric, i % 12) * (-1) ^ i FROM generate_series(0, 287) i";
    compare(&mut session, &mut log, "numeric", groups);
}

#[test]
fn floats_are_sent_in_their_shortest_form() {
    let db = shared().database();
    let (mut session, mut log) = (db.session(), Log::from_here(&db));
    for digits in ["1", "3", "0", "-15"] {
        session.run(&format!("SET extra_float_digits = {digits}"));
        let values = ["0", "-0", "1", "0.1", "1e15", "1e16", "-1e-5", "123456.789", "NaN", "Infinity", "-Infinity"];
        compare(&mut session, &mut log, "float4", &literals("float4", &values));
        compare(&mut session, &mut log, "float8", &literals("float8", &values));
        let values = ["1.7976931348623157e308", "-5e-324", "2.2250738585072014e-308", "-0.00099999999999999999"];
        compare(&mut session, &mut log, "float8", &literals("float8", &values));
        compare(&mut session, &mut log, "float4", &literals("float4", &["3.4028235e38", "1e-45", "-9.99999999e29"]));
    }
}

#[test]
fn documents_are_sent_with_everything_nested_in_them() {
    let db = shared().database();
    let (mut session, mut log) = (db.session(), Log::from_here(&db));
    let values = [
        "{}",
        "[]",
        "null",
        "true",
        "false",
        "0",
        "-1.500",
        "1e100",
        "\"\"",
        "\"a \\\" \\\\ \\n \\u0001 é\"",
        "[[]]",
        "[{}]",
        "{\"\": {}}",
        "[null, true, false, 1, \"x\", [2.50], {\"k\": -3}]",
        "{\"a\": 1, \"bb\": 2, \"ccc\": 3, \"dddd\": {\"e\": [1, \"f\", 1e20]}}",
        "{\"key \\\"\\t\": \"v\", \"é\": null}",
    ];
    compare(&mut session, &mut log, "jsonb", &literals("jsonb", &values));
    // Every 32nd entry holds an offset; the rest hold lengths.
    let arrays =
        "SELECT jsonb_agg(to_jsonb(repeat('x', j % 5)) || to_jsonb(j) || jsonb_build_object('j', j::numeric / 8))
        FROM generate_series(1, 70) i, generate_series(1, i) j GROUP BY i";
    compare(&mut session, &mut log, "jsonb", arrays);
    let objects = "SELECT jsonb_object_agg('key ' || j, CASE j % 3 WHEN 0 THEN to_jsonb(j) WHEN 1 THEN to_jsonb('t' || j) ELSE '[1]' END)
        FROM generate_series(1, 70) i, generate_series(1, i) j GROUP BY i";
    compare(&mut session, &mut log, "jsonb", objects);
    let deep = "SELECT (repeat('[1, {\"a\": ', i) || '0' || repeat('}]', i))::jsonb FROM generate_series(25, 40) i";
    compare(&mut session, &mut log, "jsonb", deep);
    // Compressed, and moved out of line.
    let long = "SELECT jsonb_build_object('text', repeat('long \"', i), 'n', i) FROM generate_series(1, 9001, 1500) i";
    compare(&mut session, &mut log, "jsonb", long);
    session.run("DROP TABLE edges; CREATE TABLE edges (v jsonb)");
    session.run("ALTER TABLE edges ALTER v SET STORAGE EXTERNAL; SELECT tidings.watch('edges', topic => 'edges')");
    sent_as_it_is(&mut session, &mut log, &format!("INSERT INTO edges {long}"));
}

#[test]
fn times_are_sent_up_to_the_edges_of_their_range() {
    let db = shared().database();
    let (mut session, mut log) = (db.session(), Log::from_here(&db));
    session.run("SET DateStyle = 'SQL, DMY'");
    let values = ["00:00:00", "24:00:00", "23:59:59.999999", "00:00:00.000001", "12:34:56.7", "01:02:03.120"];
    compare(&mut session, &mut log, "time", &literals("time", &values));
    let edges = [
        "4713-01-01 BC",
        "0001-12-31 BC",
        "0001-01-01",
        "0001-01-02",
        "9999-12-31",
        "10000-01-01",
        "infinity",
        "-infinity",
    ];
    compare(&mut session, &mut log, "date", &literals("date", &edges));
    compare(&mut session, &mut log, "date", "SELECT date '1895-12-30' + i FROM generate_series(0, 800) i");
    compare(&mut session, &mut log, "date", "SELECT date '0001-01-01' + i * 1009 FROM generate_series(0, 3700) i");
    compare(&mut session, &mut log, "timestamp", &literals("timestamp", &edges));
    let last = [
        "9999-12-31 23:59:59.999999",
        "1969-12-31 23:59:59.5",
        "2000-02-29 00:00:00.000010",
        "294276-12-31 23:59:59.999999",
    ];
    compare(&mut session, &mut log, "timestamp", &literals("timestamp", &last));
}

#[test]
fn intervals_are_sent_with_all_their_signs() {
    let db = shared().database();
    let (mut session, mut log) = (db.session(), Log::from_here(&db));
    for style in ["postgres", "postgres_verbose", "sql_standard", "iso_8601"] {
        session.run(&format!("SET IntervalStyle = {style}"));
        let values = "SELECT make_interval(months => m, days => d) + s * interval '1 second'
            FROM unnest(ARRAY[0, 1, -1, 11, 12, -12, 13, -25]) m, unnest(ARRAY[0, 1, -1, 40]) d,
                unnest(ARRAY[0, 1, -1, 0.5, -0.000001, 3661.25, -360000, 1e9]) s";
        compare(&mut session, &mut log, "interval", values);
        let edges = [
            "178000000 years",
            "-178000000 years",
            "2147483647 days",
            "2562047788:00:54.775807",
            "-2562047788:00:54.775807",
        ];
        compare(&mut session, &mut log, "interval", &literals("interval", &edges));
        if session.one::<i32>("SELECT current_setting('server_version_num')::int") >= 170_000 {
            compare(&mut session, &mut log, "interval", &literals("interval", &["infinity", "-infinity"]));
        }
    }
}

#[test]
fn arrays_are_sent_whatever_their_bounds_and_elements() {
    let db = shared().database();
    let (mut session, mut log) = (db.session(), Log::from_here(&db));
    session.run(
        "CREATE DOMAIN amount AS numeric(8,2) CHECK (value > -100); CREATE TYPE mood AS ENUM ('happy', 'so \"so\"')",
    );
    session.run("DROP TABLE IF EXISTS edges; CREATE TABLE edges (v text, words text[], ints int[], bits bool[], amounts amount[],
        uuids uuid[], moods mood[], docs jsonb[], small int2[], wide int8[], spans interval[], chars char(3)[], at timestamptz[])");
    session.run("SELECT tidings.watch('edges', topic => 'edges')");
    let mut insert = "INSERT INTO edges VALUES".to_owned();
    for (i, bound) in ["", "[5:7]=", "[-1:1]="].iter().enumerate() {
        let at = ["2024-03-31 00:59:59Z", "1800-01-01 00:00:00Z", "infinity"][i];
        write!(
            insert,
            "{} ('x', '{bound}{{a,NULL,\"b \\\"\"}}', '{bound}{{1,-2,NULL}}', '{bound}{{t,f,t}}', '{bound}{{1.5,NULL,99}}',
             '{bound}{{{uuid},NULL,{uuid}}}', '{bound}{{happy,NULL,\"so \\\"so\\\"\"}}', '{bound}{{1,NULL,\"{{\\\"a\\\": [1.5]}}\"}}',
             '{bound}{{NULL,NULL,3}}', '{bound}{{1,NULL,-9223372036854775808}}', '{bound}{{1 day,NULL,-1 sec}}', '{bound}{{a,NULL,\"\"}}',
             '{bound}{{NULL,{at},2024-07-01 12:00Z}}')",
            if i == 0 { "" } else { "," },
            uuid = "00112233-4455-6677-8899-aabbccddeeff"
        )
        .expect("a string grows");
    }
    sent_as_it_is(&mut session, &mut log, &insert);
    let several = "INSERT INTO edges (words, ints, amounts) VALUES ('{}', '{}', '{}'), ('{{a,b},{c,NULL}}', '{{1},{2}}', '{{{1}}}'), ('{NULL}', '{NULL}', '{NULL}')";
    sent_as_it_is(&mut session, &mut log, several);
    // As they come from tables, with short headers, and long enough to be compressed.
    let many = "INSERT INTO edges (v, words, ints, amounts, docs) SELECT repeat('-', i),
        (SELECT array_agg(CASE WHEN j % 9 > 0 THEN repeat(j::text, j % 4) END) FROM generate_series(1, i) j),
        (SELECT array_agg(j * j) FROM generate_series(1, i) j), (SELECT array_agg(j / 3.0) FROM generate_series(1, i) j),
        (SELECT array_agg(jsonb_build_object('j', j)) FROM generate_series(1, i) j)
        FROM unnest(ARRAY[1, 2, 3, 7, 8, 9, 16, 17, 40, 400]) i";
    sent_as_it_is(&mut session, &mut log, many);
    sent_as_it_is(&mut session, &mut log, "INSERT INTO edges SELECT * FROM edges");
}

#[test]
fn instants_are_sent_in_every_zone_at_before_and_after_each_change() {
    let db = shared().database();
    let (mut session, mut log) = (db.session(), Log::from_here(&db));
    // Searched in steps of two months, then to the second by halving. Postgres has a table of the changes up to the
    // years 2700 to 3000, depending on the zone, and computes later ones.
    session.run(
        "CREATE FUNCTION changes(zone text) RETURNS SETOF timestamptz LANGUAGE plpgsql AS $$
         DECLARE low bigint; high bigint; middle bigint; t bigint;
         BEGIN
             FOR t IN SELECT * FROM generate_series(-5000000000, 5000000000, 5400000)
                 UNION SELECT * FROM generate_series(23000000000, 33200000000, 5400000) LOOP
                 low := t; high := t + 5400000;
                 IF to_timestamp(low) AT TIME ZONE zone - to_timestamp(high) AT TIME ZONE zone
                     = to_timestamp(low) AT TIME ZONE 'UTC' - to_timestamp(high) AT TIME ZONE 'UTC' THEN CONTINUE; END IF;
                 WHILE high - low > 1 LOOP
                     middle := (low + high) / 2;
                     IF to_timestamp(low) AT TIME ZONE zone - to_timestamp(middle) AT TIME ZONE zone
                         = to_timestamp(low) AT TIME ZONE 'UTC' - to_timestamp(middle) AT TIME ZONE 'UTC'
                     THEN low := middle; ELSE high := middle; END IF;
                 END LOOP;
                 RETURN NEXT to_timestamp(high);
             END LOOP;
         END $$",
    );
    let zones = [
        "UTC",
        "Europe/Berlin",
        "America/St_Johns",
        "Asia/Kathmandu",
        "Africa/Monrovia",
        "Africa/Casablanca",
        "Australia/Lord_Howe",
        "Pacific/Apia",
        "America/Caracas",
        "Antarctica/Troll",
        "Asia/Manila",
        "Europe/Dublin",
        "EST5EDT",
        "<+13>-13",
        "FOO+3:30BAR,M3.2.0,M11.1.0",
    ];
    session.run("CREATE TABLE edges (at timestamptz); SELECT tidings.watch('edges', topic => 'edges')");
    for zone in zones {
        session.run(&format!(
            "TRUNCATE edges; SET TimeZone = '{zone}'; DROP TABLE IF EXISTS instants;
             CREATE TEMP TABLE instants AS
                 SELECT change + step * interval '1 microsecond' AS at FROM changes('{zone}') change,
                     unnest(ARRAY[-1000000, -1, 0, 1, 1000000, 1000001]) step
                 UNION ALL SELECT timestamptz '0001-01-03Z' + i * interval '4001 days 07:11:13' FROM generate_series(0, 900) i
                 UNION ALL SELECT unnest(ARRAY['-infinity', 'infinity', '4713-01-01 BC', '0001-01-01Z', '9999-12-31 23:59:59.999999Z',
                     '10000-01-01Z', '294276-12-31Z', '2037-12-31Z', '2038-01-19 03:14:08Z', '2437-07-01Z', '2438-01-01Z']::timestamptz[])"
        ));
        for order in ["at", "at DESC", "hashtext(at::text)"] {
            let insert = format!("INSERT INTO edges SELECT at FROM instants ORDER BY {order}");
            sent_as_it_is(&mut session, &mut log, &insert);
        }
    }
}
