//! Values in an event are what `to_jsonb` makes of the row, whatever the type and the session's settings; and a row that
//! is there says what the event of its INSERT said.
//!
//! The property test draws tables over all families of types, and rows with unusual values, and compares with Postgres.
//! `PROPTEST_CASES` sets how many; a failure prints the table after it has been shrunk.

mod bases;
mod edges;
mod types;

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tidings_tests::{Session, shared};

use crate::log::{Event, Log};
use types::{Type, any_type, identifier, literal};

fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table, its rows twice (as inserted and as updated), and the session's settings.
#[derive(Clone, Debug)]
struct Case {
    names: Vec<String>,
    types: Vec<Type>,
    rows: Vec<Vec<Option<String>>>,
    settings: Vec<String>,
}

fn case(has_xml: bool) -> BoxedStrategy<Case> {
    let column = (identifier(), any_type(has_xml));
    let columns = prop::collection::vec(column, 1..8).prop_map(|mut columns| {
        let mut seen = BTreeSet::from(["n".to_owned()]);
        columns.retain(|(name, _)| seen.insert(name.clone()));
        columns.into_iter().unzip::<_, _, Vec<_>, Vec<_>>()
    });
    let pick = |name: &'static str, values: &'static [&'static str]| {
        prop::sample::select(values).prop_map(move |value| format!("SET LOCAL {name} = {value}"))
    };
    let settings = (
        pick("DateStyle", &["'ISO, MDY'", "'ISO, DMY'", "'SQL, DMY'", "'SQL, MDY'", "'Postgres, DMY'", "German"]),
        pick(
            "TimeZone",
            &["'UTC'", "'Europe/Berlin'", "'America/St_Johns'", "'Asia/Kathmandu'", "'<+13>-13'", "'Africa/Monrovia'"],
        ),
        pick("IntervalStyle", &["postgres", "postgres_verbose", "sql_standard", "iso_8601"]),
        pick("extra_float_digits", &["1", "0", "-15", "3"]),
        pick("bytea_output", &["hex", "escape"]),
        pick("xmloption", &["content"]),
        pick("standard_conforming_strings", &["on", "off"]),
    );
    let settings = settings.prop_map(|(a, b, c, d, e, f, g)| vec![a, b, c, d, e, f, g]);
    (columns, settings)
        .prop_flat_map(|((names, types), settings)| {
            let row: Vec<_> = types.iter().map(Type::nullable).collect();
            (Just(names), Just(types), prop::collection::vec(row, 2..5), Just(settings))
        })
        .prop_map(|(names, types, rows, settings)| Case { names, types, rows, settings })
        .boxed()
}

/// What Postgres says of each step of a case, and what the rows say once they are there.
type Steps = (Vec<(String, Option<String>, Option<String>)>, Vec<String>);

/// Writes the rows, reads them, updates each to the next one's values, and deletes them.
fn write(session: &mut Session, case: &Case) -> Steps {
    let mut ddl = Vec::new();
    let types: Vec<_> = case.types.iter().map(|of| of.create(&mut ddl)).collect();
    let columns: Vec<_> = case.names.iter().zip(&types).map(|(name, of)| format!("{} {of}", ident(name))).collect();
    ddl.push(format!("CREATE TABLE v.t (n int, {})", columns.join(", ")));
    // An earlier case may have failed in the middle.
    session.run("ROLLBACK");
    session.run(&format!(
        "BEGIN; DROP SCHEMA IF EXISTS v CASCADE; CREATE SCHEMA v; SET LOCAL search_path = v, pg_catalog; {};
         SELECT tidings.watch('v.t', topic => 'full', old_record => 'full');
         SELECT tidings.watch('v.t', topic => 'changed', name => 'changed')",
        ddl.join(";\n")
    ));
    session.run(&case.settings.join(";"));
    let mut steps = Vec::new();
    let value = |value: &Option<String>| value.as_deref().map_or("NULL".to_owned(), literal);
    for (n, row) in case.rows.iter().enumerate() {
        let values: Vec<_> = row.iter().map(value).collect();
        let new =
            session.one(&format!("INSERT INTO t VALUES ({n}, {}) RETURNING to_jsonb(t.*)::text", values.join(", ")));
        steps.push(("INSERT".to_owned(), Some(new), None));
    }
    let rows = session.all("SELECT payload FROM tidings.state('{full}')", &[]);
    let there = rows.iter().map(|row| row.get(0)).collect();
    for n in 0..case.rows.len() {
        let row = &case.rows[(n + 1) % case.rows.len()];
        let set: Vec<_> =
            case.names.iter().zip(row).map(|(name, v)| format!("{} = {}", ident(name), value(v))).collect();
        let old: String = session.one(&format!("SELECT to_jsonb(t.*)::text FROM t WHERE n = {n}"));
        session.run("CREATE TEMPORARY TABLE before ON COMMIT DROP AS SELECT ROW(t.*)::v.t AS t FROM t");
        let new: String =
            session.one(&format!("UPDATE t SET {} WHERE n = {n} RETURNING to_jsonb(t.*)::text", set.join(", ")));
        let changed: bool =
            session.one(&format!("SELECT before.t *<> t.* FROM before, t WHERE (before.t).n = {n} AND t.n = {n}"));
        session.run("DROP TABLE before");
        if changed {
            steps.push(("UPDATE".to_owned(), Some(new), Some(old)));
        }
    }
    for n in 0..case.rows.len() {
        let old = session.one(&format!("DELETE FROM t WHERE n = {n} RETURNING to_jsonb(t.*)::text"));
        steps.push(("DELETE".to_owned(), None, Some(old)));
    }
    session.run("COMMIT");
    (steps, there)
}

/// A member of each payload as Postgres's `jsonb` has it, by one query for all of them.
fn members<'a>(session: &mut Session, events: impl IntoIterator<Item = &'a Event>, name: &str) -> Vec<Option<String>> {
    let payloads: Vec<&str> = events.into_iter().map(|event| event.payload.as_str()).collect();
    let sql = "SELECT nullif(payload::jsonb -> $2, 'null')::text
                 FROM unnest($1::text[]) WITH ORDINALITY AS payloads (payload, n) ORDER BY n";
    session.all(sql, &[&payloads, &name]).iter().map(|row| row.get(0)).collect()
}

fn check(session: &mut Session, log: &RefCell<Log>, case: &Case) -> Result<(), TestCaseError> {
    let (steps, there) = write(session, case);
    let events = log.borrow_mut().news();
    let (full, changed): (Vec<_>, Vec<_>) = events.iter().partition(|event| event.topic == "full");
    prop_assert_eq!(full.len(), steps.len());
    prop_assert_eq!(changed.len(), steps.len());
    let as_snapshot = |event: &&Event| event.payload.replacen("\"type\":\"INSERT\"", "\"type\":\"SNAPSHOT\"", 1);
    prop_assert_eq!(full[..there.len()].iter().map(as_snapshot).collect::<Vec<_>>(), there);
    let mut of = |events: &[&Event], name: &str| members(session, events.iter().copied(), name);
    let sent = [of(&full, "type"), of(&full, "record"), of(&full, "old_record")];
    let [changed, changed_old] = [of(&changed, "record"), of(&changed, "old_record")];
    for (i, (operation, new, old)) in steps.iter().enumerate() {
        prop_assert_eq!(&sent[0][i], &Some(format!("\"{operation}\"")));
        prop_assert_eq!(&sent[1][i], new);
        prop_assert_eq!(&sent[2][i], old);
        prop_assert_eq!(&changed[i], new);
        if let (Some(new), Some(old)) = (new, old) {
            let sent = changed_old[i].clone().unwrap_or_default();
            let rows = session.all(
                "SELECT $1::text::jsonb <@ $2::text::jsonb, -- what is sent is the old row's
                        NOT EXISTS (SELECT FROM jsonb_each($2::text::jsonb) o JOIN jsonb_each($3::text::jsonb) n USING (key)
                                    WHERE o.value IS DISTINCT FROM n.value AND NOT $1::text::jsonb ? key), -- and what differs is sent
                        NOT $1::text::jsonb ? 'n'",
                &[&sent, old, new],
            );
            let verdict: [bool; 3] = [rows[0].get(0), rows[0].get(1), rows[0].get(2)];
            prop_assert_eq!(verdict, [true; 3], "sent {} of {} that became {}", sent, old, new);
        }
    }
    Ok(())
}

#[test]
fn values_equal_to_jsonb_for_any_table_row_and_setting() {
    let db = shared().database();
    let session = RefCell::new(db.session());
    let has_xml = crate::has_xml(&mut session.borrow_mut());
    let log = RefCell::new(Log::from_here(&db));
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(150);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&case(has_xml), |case| check(&mut session.borrow_mut(), &log, &case));
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn times_of_the_same_second_keep_their_fractions_and_zones() {
    let db = shared().database();
    let mut session = db.session();
    let mut log = Log::from_here(&db);
    session.run("CREATE TABLE times (zoned timestamptz, plain timestamp, day date)");
    session.run("SELECT tidings.watch('times', topic => 'times')");
    for zone in ["UTC", "Asia/Kathmandu", "Europe/Amsterdam", "America/St_Johns"] {
        session.run(&format!("TRUNCATE times; SET TimeZone = '{zone}'"));
        let sql = "INSERT INTO times
             SELECT v::timestamptz, v::timestamp, v::timestamp::date FROM unnest(ARRAY[
                 '2024-02-29 23:59:59', '2024-02-29 23:59:59.5', '2024-02-29 23:59:59.999999', '2024-02-29 23:59:59.000001',
                 '2024-02-29 23:59:59.10', '2024-03-01 00:00:00', '1899-12-31 23:59:59.25', '1899-12-31 23:59:59.250001',
                 '2000-01-01 00:00:00', '1999-12-31 23:59:59.999999', '1999-12-31 23:59:59', '0044-03-15 12:00:00.5 BC',
                 '0044-03-15 12:00:00.75 BC', '4714-11-25 00:00:00.000001 BC', '-infinity', 'infinity', '294276-12-30 23:59:59.999999',
                 '20240-10-27 00:30:00.125', '2024-10-27 00:30:00.125', '2024-10-27 01:30:00.125']) v
             RETURNING to_jsonb(times)::text";
        let expected: Vec<Option<String>> = session.all(sql, &[]).iter().map(|row| row.get(0)).collect();
        let sent = members(&mut session, &log.news(), "record");
        assert_eq!(sent, expected, "{zone}");
    }
}
