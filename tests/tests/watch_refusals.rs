//! What a watch refuses, with which code and hint.

use tidings_tests::{shared, until};

use crate::log::kinds;
use crate::watch_options::items;

/// What `tidings.watch` must refuse, and the SQLSTATE.
const WRONG: &[(&str, &str)] = &[
    ("topic => 'b{board}'", "42703"),
    ("topic => 'b{ID}'", "42703"),
    ("topic => 'b{xmin}'", "42703"),
    ("topic => 'b{board_id'", "22023"),
    ("topic => 'b}'", "22023"),
    ("topic => 'b{}'", "22023"),
    ("topic => ''", "22023"),
    ("topic => E'a\\nb'", "22023"),
    ("topic => repeat('x', 256)", "22023"),
    ("topic => NULL", "22004"),
    ("topic => '{id}{title}'", "22023"),
    ("topic => 'x{id}' || repeat('y', 255)", "22023"),
    ("topic => repeat('{id}-', 30000)", "22023"),
    ("topic => 'x', event => ''", "22023"),
    ("topic => 'x', event => E'a\\tb'", "22023"),
    ("topic => 'x', event => repeat('x', 256)", "22023"),
    ("topic => 'x', event => NULL", "22004"),
    ("topic => 'x', payload => '{\"a\": \"$nope\"}'", "42703"),
    ("topic => 'x', payload => '[\"$old.nope\"]'", "42703"),
    ("topic => 'x', payload => '\"$\"'", "42703"),
    ("topic => 'x', columns => '{id,nope}'", "42703"),
    ("topic => 'x', columns => '{NULL}'", "22004"),
    ("topic => 'x', columns => '{}'", "22023"),
    ("topic => 'x', columns => '{{id,title}}'", "22023"),
    ("topic => 'x', columns => '{id,id}'", "22023"),
    ("topic => 'x', exclude => '{nope}'", "42703"),
    ("topic => 'x', exclude => '{id,NULL}'", "22004"),
    ("topic => 'x', exclude => '{{id},{title}}'", "22023"),
    ("topic => 'x', exclude => '{id,board_id,title,secret,hits}'", "22023"),
    ("topic => 'x', columns => '{id}', exclude => '{title}'", "22023"),
    ("topic => 'x', operations => '{}'", "22023"),
    ("topic => 'x', operations => '{{INSERT},{UPDATE}}'", "22023"),
    ("topic => 'x', operations => '{INSERT,SELECT}'", "22023"),
    ("topic => 'x', operations => '{INSERT,NULL}'", "22023"),
    ("topic => 'x', operations => NULL", "22004"),
    ("topic => 'x{id}', operations => '{TRUNCATE}'", "22023"),
    ("topic => 'x', operations => '{TRUNCATE}', condition => 'true'", "22023"),
    ("topic => 'x', condition => 'NEW.nope'", "42703"),
    ("topic => 'x', condition => 'NEW.id = 1'", "42P17"), // a DELETE has no NEW
    ("topic => 'x', condition => 'OLD.id = 1'", "42P17"), // an INSERT has no OLD
    ("topic => 'x', condition => '1'", "42804"),
    ("topic => 'x', condition => ''", "42601"),
    ("topic => 'x', condition => '(true'", "42601"),
    ("topic => 'x', condition => 'true) OR (false'", "42601"),
    ("topic => 'x', condition => 'true) EXECUTE FUNCTION mine() --'", "42601"),
    ("topic => 'x', condition => 'EXISTS (SELECT FROM items)'", "0A000"),
    ("topic => 'x', old_record => 'FULL'", "22023"),
    ("topic => 'x', old_record => NULL", "22004"),
    ("topic => 'x', name => ''", "22023"),
    ("topic => 'x', name => repeat('x', 47)", "22023"),
    ("topic => 'x', name => NULL", "22004"),
];

#[test]
fn every_invalid_option_is_refused_at_once_with_a_code_and_a_hint() {
    let (db, mut log) = items();
    let mut session = db.session();
    session.run("CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'");
    session.run("SELECT tidings.watch('items', topic => 'still {id}')");
    let mut faults = Vec::new();
    let triggers = "SELECT string_agg(pg_get_triggerdef(oid), ';' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = 'items'::regclass";
    let before: String = session.one(triggers);
    for (arguments, code) in WRONG {
        match session.client().batch_execute(&format!("SELECT tidings.watch('items', {arguments})")) {
            Ok(()) => {
                faults.push(format!("{arguments}: accepted"));
                session.run("SELECT tidings.unwatch('items', name) FROM tidings.watches; SELECT tidings.watch('items', topic => 'still {id}')");
            }
            Err(error) => {
                let error = error.as_db_error().expect("an error of the server");
                // Postgres's own errors about a condition need no hint from us.
                let ours = error.code().code().starts_with("22");
                if error.code().code() != *code || (ours && error.hint().is_none_or(str::is_empty)) {
                    faults.push(format!(
                        "{arguments}: {} {}, hint {:?}, not {code}",
                        error.code().code(),
                        error.message(),
                        error.hint()
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(session.one::<String>(triggers), before, "what was there is as it was");
    session.run("INSERT INTO items VALUES (1)");
    assert_eq!(log.only().topic, "still 1");
}

#[test]
fn only_tables_can_be_watched() {
    let (db, _) = items();
    let mut session = db.session();
    session.run("CREATE VIEW view AS SELECT * FROM items; CREATE MATERIALIZED VIEW mat AS SELECT * FROM items; CREATE SEQUENCE seq; CREATE INDEX ind ON items (title)");
    for relation in ["view", "mat", "seq", "ind", "tidings.tick", "tidings.log", "tidings.log_0"] {
        let error = session.refused(&format!("SELECT tidings.watch('{relation}', topic => 'x')"));
        assert_eq!(error.code().code(), "42809", "{relation}: {error}");
    }
    assert_eq!(session.refused("SELECT tidings.watch(NULL, topic => 'x')").code().code(), "22004");
    assert_eq!(session.refused("SELECT tidings.watch('nope', topic => 'x')").code().code(), "42P01");
    assert_eq!(session.refused("SELECT tidings.watch('pg_class', topic => 'x')").code().code(), "42501");
}

#[test]
fn a_hand_written_trigger_is_checked_at_its_first_firing() {
    let (db, mut log) = items();
    let mut session = db.session();
    for (when, arguments, code) in [
        ("AFTER INSERT ON items FOR EACH ROW", "", "22023"),
        ("AFTER INSERT ON items FOR EACH ROW", "'b{board_id}'", "22023"),
        ("AFTER INSERT ON items FOR EACH ROW", "'topic=b{nope}'", "42703"),
        ("AFTER INSERT ON items FOR EACH ROW", "'topic=b{'", "22023"),
        ("AFTER INSERT ON items FOR EACH ROW", "'topic=a', 'topic=b'", "22023"),
        ("AFTER INSERT ON items FOR EACH ROW", "'topic=a', 'colour=red'", "22023"),
        ("AFTER INSERT ON items FOR EACH ROW", "'topic=a', 'event='", "22023"),
        ("AFTER INSERT ON items FOR EACH ROW", "'topic=a', 'payload={'", "22023"),
        ("AFTER INSERT ON items FOR EACH ROW", "'topic=a', 'payload=\"$nope\"'", "42703"),
        ("AFTER INSERT ON items FOR EACH ROW", "'topic=a', 'column=nope'", "42703"),
        ("AFTER INSERT ON items FOR EACH ROW", "'topic=a', 'column=id', 'exclude=id'", "22023"),
        ("AFTER INSERT ON items FOR EACH ROW", "'topic=a', 'old_record=some'", "22023"),
        ("BEFORE INSERT ON items FOR EACH ROW", "'topic=a'", "39P01"),
        ("AFTER INSERT ON items FOR EACH STATEMENT", "'topic=a'", "39P01"),
        ("BEFORE INSERT ON items FOR EACH STATEMENT", "'topic=a'", "39P01"),
    ] {
        session.run(&format!("CREATE TRIGGER hand {when} EXECUTE FUNCTION tidings.capture({arguments})"));
        for _ in 0..2 {
            let error = session.refused("INSERT INTO items VALUES (1, 5)");
            assert_eq!(error.code().code(), code, "{when} {arguments}: {error}");
            assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{when} {arguments}: no hint with {error}");
        }
        session.run("DROP TRIGGER hand ON items");
    }
    session.run("CREATE TRIGGER hand AFTER TRUNCATE ON items FOR EACH STATEMENT EXECUTE FUNCTION tidings.capture('topic=b{id}')");
    assert_eq!(session.refused("TRUNCATE items").code().code(), "22023");
    session.run("DROP TRIGGER hand ON items");
    assert_eq!(session.refused("SELECT tidings.capture()").code().code(), "39P01");
    session.run(
        "CREATE TRIGGER whatever AFTER INSERT OR UPDATE OF title OR DELETE ON items FOR EACH ROW WHEN (pg_trigger_depth() = 0)
           EXECUTE FUNCTION tidings.capture('topic=boards_{board_id}', 'event=changed', 'exclude=secret', 'exclude=hits', 'old_record=none');
         INSERT INTO items VALUES (1, 5, 'a'); UPDATE items SET board_id = 6; UPDATE items SET title = 'b'; DELETE FROM items",
    );
    // UPDATE OF title: the move isn't seen, as the trigger says.
    assert_eq!(kinds(&log.news()), ["INSERT boards_5", "UPDATE boards_6", "DELETE boards_6"]);
}

#[test]
fn an_event_cannot_have_a_name_that_streams_use_themselves() {
    let db = shared().database();
    let mut session = db.session();
    session.run("CREATE TABLE items (id int)");
    for name in ["error", "open", "reset", "ready", "position", "unauthorized"] {
        for sql in [
            format!("SELECT tidings.watch('items', topic => 'a', event => '{name}')"),
            format!(
                "CREATE TRIGGER by_hand AFTER INSERT ON items FOR EACH ROW
                 EXECUTE FUNCTION tidings.capture('topic=a', 'event={name}')"
            ),
            format!(
                "SET search_path = tidings, public; CREATE TRIGGER by_hand AFTER INSERT ON items FOR EACH ROW
                 EXECUTE FUNCTION capture('topic=a', 'event={name}')"
            ),
            format!("SELECT tidings.publish('a', '1', event => '{name}')"),
            format!("SELECT tidings.publish_text('a', 'x', event => '{name}')"),
        ] {
            let error = session.refused(&sql);
            assert_eq!(error.code().code(), "22023", "{sql}");
            assert!(
                error.message().starts_with("bad event name") && error.message().contains("its own events"),
                "{error}"
            );
            assert!(error.hint().is_some_and(|hint| hint.contains(name)), "{error}");
        }
    }
    // As a topic it affects nobody else.
    session.run("SELECT tidings.publish('reset', '1', event => 'Reset')");
    // A topic that an earlier version allowed fails no writer.
    session.run(
        "SELECT tidings.watch('items', topic => 'a', event => 'resex');
         UPDATE pg_trigger SET tgargs = decode(replace(encode(tgargs, 'hex'), encode('resex', 'hex'), encode('reset', 'hex')), 'hex')
         WHERE tgrelid = 'items'::regclass",
    );
    let mut writer = db.session();
    writer.run("INSERT INTO items VALUES (1)");
    until("its event is there", || {
        writer.one::<i64>("SELECT count(*) FROM tidings.events WHERE topic = 'a' AND event = 'reset'") == 1
    });
}
