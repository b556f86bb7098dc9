//! Casts and output functions of users, in a writer: they may lose a value, never a write.

use serde_json::{Value, json};
use tidings_tests::Session;

use crate::log::{Event, Log, with};
use crate::skipped;

fn records(events: &[Event]) -> Vec<Value> {
    events.iter().map(|event| event.json()["record"].clone()).collect()
}

/// Runs a write that must succeed, and returns its only event.
#[track_caller]
fn written(session: &mut Session, log: &mut Log, sql: &str) -> Event {
    session.run(sql);
    log.only()
}

const MOODS: &str = "
CREATE TYPE mood AS ENUM ('good', 'nothing', 'bad', 'writes');
CREATE TABLE noted (mood text);
CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    IF $1 = 'nothing' THEN RETURN NULL; END IF;
    IF $1 = 'bad' THEN RAISE EXCEPTION 'no JSON for this'; END IF;
    IF $1 = 'writes' THEN INSERT INTO noted VALUES ($1::text); END IF;
    RETURN json_build_object('mood', $1::text);
END $$;
CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
CREATE TABLE t (id int, mood mood, many mood[], grid mood[], pair pair);
SELECT tidings.watch('t', topic => 'moods');
SELECT tidings.watch('noted', topic => 'noted');
";

#[test]
fn a_cast_that_fails_or_returns_null_loses_its_value_but_not_the_write() {
    let (db, mut log) = with(&MOODS.replace("CREATE TABLE t", "CREATE TYPE pair AS (a mood, b int); CREATE TABLE t"));
    let mut session = db.session();
    session.run(
        "INSERT INTO t VALUES
             (1, 'good', '{good}', '{{good},{good}}', '(good,1)'),
             (2, 'nothing', '{good,nothing}', '{{nothing},{good}}', '(nothing,1)'),
             (3, 'bad', '{bad,good,NULL}', '{{bad},{good}}', '(bad,1)'),
             (4, NULL, NULL, NULL, NULL)",
    );
    let good = json!({"mood": "good"});
    assert_eq!(
        records(&log.news()),
        [
            json!({"id": 1, "mood": good, "many": [good], "grid": [[good], [good]], "pair": {"a": good, "b": 1}}),
            json!({"id": 2, "mood": "nothing", "many": [good, "nothing"], "grid": "{{nothing},{good}}", "pair": "(nothing,1)"}),
            json!({"id": 3, "mood": "bad", "many": ["bad", good, null], "grid": "{{bad},{good}}", "pair": "(bad,1)"}),
            json!({"id": 4, "mood": null, "many": null, "grid": null, "pair": null}),
        ]
    );
    // What it writes is stored and captured.
    session.run("INSERT INTO t VALUES (5, 'writes')");
    let topics: Vec<String> = log.news().iter().map(|event| event.topic.clone()).collect();
    assert_eq!(topics.iter().filter(|topic| *topic == "noted").count(), 1, "{topics:?}");
    assert_eq!(topics.len(), 2, "{topics:?}");
    // Updates and deletes too, in a transaction with savepoints.
    session.run("BEGIN; SAVEPOINT a; UPDATE t SET mood = 'bad' WHERE id = 1; SAVEPOINT b; DELETE FROM t WHERE id = 3; ROLLBACK TO b; DELETE FROM t WHERE id = 2; COMMIT");
    assert_eq!(log.news().iter().map(Event::kind).collect::<Vec<_>>(), ["UPDATE", "DELETE"]);
}

#[test]
fn an_error_that_must_end_the_writer_is_not_caught_around_a_cast() {
    let (db, mut log) = with(
        "CREATE TYPE slow AS ENUM ('a');
         CREATE FUNCTION slow_json(slow) RETURNS json LANGUAGE plpgsql AS $$
         BEGIN
             IF current_setting('t.how') = 'sleep' THEN PERFORM pg_sleep(600); END IF;
             RAISE EXCEPTION 'as asked' USING ERRCODE = current_setting('t.how');
         END $$;
         CREATE CAST (slow AS json) WITH FUNCTION slow_json(slow);
         CREATE TABLE t (slow slow);
         SELECT tidings.watch('t', topic => 't');",
    );
    let mut session = db.session();
    for (how, code) in
        [("40001", "40001"), ("40P01", "40P01"), ("53200", "53200"), ("57014", "57014"), ("sleep", "57014")]
    {
        let error =
            session.refused(&format!("SET t.how = '{how}'; SET statement_timeout = '1s'; INSERT INTO t VALUES ('a')"));
        assert_eq!(error.code().code(), code, "{how}: {error}");
    }
    session.run("SET statement_timeout = 0; SET t.how = '22012'; INSERT INTO t VALUES ('a')");
    assert_eq!(log.only().json()["record"], json!({"slow": "a"}));
}

#[test]
fn geometries_of_postgis_never_fail_a_write() {
    let (db, mut log) = with("");
    let mut session = db.session();
    if session.client().batch_execute("CREATE EXTENSION postgis").is_err() {
        skipped("geometries of PostGIS, which this Postgres does not have");
        return;
    }
    session.run(
        "CREATE TABLE places (id int, at geometry, also geometry[]); SELECT tidings.watch('places', topic => 'places')",
    );
    log.skip_to_now();
    let insert = |id: i32, text: &str| format!("INSERT INTO places VALUES ({id}, '{text}', ARRAY['{text}'::geometry])");
    let point = json!({"type": "Point", "coordinates": [1, 2]});
    let event = written(&mut session, &mut log, &insert(1, "POINT(1 2)"));
    assert_eq!(event.json()["record"], json!({"id": 1, "at": point, "also": [point]}));
    // A geometry that GeoJSON does not have, and one whose GeoJSON is not JSON: they are sent as their text, which
    // Postgres can read again.
    for text in ["CIRCULARSTRING(0 0,1 1,1 0)", "POINT(NaN NaN)"] {
        let event = written(&mut session, &mut log, &insert(2, text));
        let at = event.json()["record"]["at"].as_str().expect("a text").to_owned();
        assert_eq!(at, session.one::<String>(&format!("SELECT '{text}'::geometry::text")));
        assert_eq!(event.json()["record"]["also"][0], json!(at));
        session.run("UPDATE places SET at = ST_Translate(at, 1, 1); DELETE FROM places WHERE id = 2");
        log.news();
    }
    // A role that may not read the table that PostGIS reads.
    let role = db.role("surveyor");
    session.run(&format!(
        "REVOKE SELECT ON spatial_ref_sys FROM PUBLIC; GRANT SELECT, INSERT, DELETE ON places TO {role}; DELETE FROM places"
    ));
    log.news();
    let mut surveyor = db.session_as(&role);
    let event = written(&mut surveyor, &mut log, &insert(3, "SRID=4326;POINT(1 2)"));
    assert!(event.json()["record"]["at"].is_string() || event.json()["record"]["at"].is_object(), "{event:?}");
    surveyor.run("DELETE FROM places");
    assert_eq!(log.only().kind(), "DELETE");
}
