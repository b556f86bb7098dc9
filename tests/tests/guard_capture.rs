//! What a guard and `tidings.recheck()` write to the log, who may use them, and what is refused.

use tidings_tests::{Database, Session, shared};

use crate::boards;

/// The events of guards in the log, in the order of their transactions: topics, or templates with a star.
fn rechecks(session: &mut Session) -> Vec<String> {
    let sql = "SELECT d.topic FROM tidings.log l, tidings.decode_all(l.data, NULL) d WHERE d.event IS NULL ORDER BY l.stamp, d.n";
    session.all(sql, &[]).into_iter().map(|row| row.get(0)).collect()
}

/// What a statement adds to them.
#[track_caller]
fn adds(session: &mut Session, sql: &str) -> Vec<String> {
    let before = rechecks(session).len();
    session.run(sql);
    rechecks(session).split_off(before)
}

/// A guarded table of members.
fn members() -> Database<'static> {
    let db = boards();
    db.session().run(
        "CREATE TABLE members (id int PRIMARY KEY, board_id text, role text);
         INSERT INTO members VALUES (1, '5', 'admin'), (2, NULL, 'guest'), (3, '7', 'guest');
         SELECT tidings.guard('members', topic => 'boards_{board_id}')",
    );
    db
}

#[test]
fn changes_of_a_guarded_table_ask_about_the_topics_of_the_row() {
    let db = members();
    let mut session = db.session();
    let none: [&str; 0] = [];
    assert_eq!(adds(&mut session, "INSERT INTO members VALUES (4, '8', 'guest')"), none, "it takes no right away");
    assert_eq!(adds(&mut session, "UPDATE members SET role = 'guest' WHERE id = 1"), ["boards_5"]);
    assert_eq!(adds(&mut session, "UPDATE members SET role = 'guest' WHERE id = 1"), none, "it changes nothing");
    assert_eq!(adds(&mut session, "UPDATE members SET board_id = '6' WHERE id = 1"), ["boards_5", "boards_6"]);
    assert_eq!(adds(&mut session, "UPDATE members SET board_id = NULL WHERE id = 1"), ["boards_6"]);
    assert_eq!(adds(&mut session, "UPDATE members SET board_id = '5' WHERE id = 1"), ["boards_5"]);
    assert_eq!(adds(&mut session, "DELETE FROM members WHERE id < 3"), ["boards_5"], "a NULL is in no topic");
    assert_eq!(adds(&mut session, "TRUNCATE members"), ["boards_{board_id}"]);
    assert_eq!(adds(&mut session, "SELECT tidings.recheck('any topic'), tidings.recheck(NULL)"), ["any topic"]);
    session.run("SELECT tidings.guard('members', 'boards_{board_id}', operations => '{insert}', condition => 'NEW.role = ''guest''')");
    let inserts =
        "INSERT INTO members VALUES (1, '5', 'guest'), (2, '6', 'admin'); DELETE FROM members; TRUNCATE members";
    assert_eq!(adds(&mut session, inserts), ["boards_5"]);
    let was_removed: bool = session.one("SELECT tidings.unwatch('members', 'guard')");
    assert!(was_removed);
    assert_eq!(adds(&mut session, inserts), none);
}

#[test]
fn a_guard_also_works_in_a_session_that_captures_nothing_and_follows_savepoints() {
    let db = members();
    let mut session = db.session();
    let sql = "BEGIN; SET LOCAL tidings.capture = off; SELECT tidings.publish('news', '1');
               DELETE FROM members WHERE id = 1; INSERT INTO board_items VALUES (1, 5, 'not captured');
               SAVEPOINT a; DELETE FROM members WHERE id = 3; ROLLBACK TO a; COMMIT";
    assert_eq!(adds(&mut session, sql), ["boards_5"]);
    let sql = "SELECT d.topic FROM tidings.log l, tidings.decode(l.data, NULL) d";
    let topics: Vec<String> = session.all(sql, &[]).into_iter().map(|row| row.get(0)).collect();
    assert_eq!(topics, ["news"]);
}

#[test]
fn the_events_of_guards_are_in_no_list_of_events() {
    let db = members();
    let mut session = db.session();
    let start: String = session.one("SELECT tidings.position()");
    session.run(
        "BEGIN; INSERT INTO board_items VALUES (1, 5, 'a'); DELETE FROM members WHERE id = 1; INSERT INTO board_items VALUES (2, 5, 'b')",
    );
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.pending()"), 2);
    session.run("COMMIT");
    tidings_tests::until("it is in the log", || session.one::<i64>("SELECT count(*) FROM tidings.events") == 2);
    let list = |session: &mut Session, rows: i32| -> Vec<String> {
        let sql = "SELECT position FROM tidings.changes($1, ARRAY['boards_5'], $2)";
        session.all(sql, &[&start, &rows]).into_iter().map(|row| row.get::<_, String>(0)).collect()
    };
    let positions = list(&mut session, 10);
    assert_eq!(positions.len(), 2);
    // Their numbers say that there is something in between.
    assert!(positions[0].contains("-1") && positions[1].contains("-3"), "{positions:?}");
    assert_eq!(list(&mut session, 1), positions[..1]);
    let names: i64 = session.one("SELECT count(*) FROM tidings.scan('earliest', ARRAY['boards_5'], 10, 100000, false) WHERE event IS NULL AND topic IS NOT NULL");
    assert_eq!(names, 1, "proxies see it");
}

#[test]
fn hostile_values_in_a_guards_topic_hide_nothing() {
    let db = members();
    let mut session = db.session();
    session.run(
        "CREATE TABLE shares (id int PRIMARY KEY, team text, board text);
         SELECT tidings.guard('shares', topic => 'x_{team}_{board}');
         INSERT INTO shares VALUES (1, 'a_b', 'c'), (2, E'\\n', 'c'), (3, repeat('x', 300), 'c'), (4, '*', ''), (5, '{all}', 'c')",
    );
    let found = adds(&mut session, "DELETE FROM shares");
    // Others can be no topic of a stream. A topic that has two readings is asked about all the same.
    assert_eq!(found, ["x_a_b_c", "x_*_", "x_{all}_c"]);
}

#[test]
fn a_trigger_by_hand_may_be_a_guard_and_a_wrong_one_is_refused() {
    let db = members();
    let mut session = db.session();
    let create = |arguments: &str| {
        format!(
            "CREATE TRIGGER tidings_own AFTER DELETE ON members FOR EACH ROW EXECUTE FUNCTION tidings.capture({arguments})"
        )
    };
    session.run(&create("'topic=teams_{id}', 'guard=true'"));
    assert_eq!(adds(&mut session, "DELETE FROM members WHERE id = 1"), ["boards_5", "teams_1"]);
    for wrong in [
        "'topic=a', 'guard=false'",
        "'topic=a', 'guard=true', 'event=x'",
        "'topic=a', 'guard=true', 'column=id'",
        "'guard=true'",
    ] {
        session.run("DROP TRIGGER tidings_own ON members");
        session.run(&create(wrong));
        session.refused("DELETE FROM members WHERE id = 3");
        session.refused("SELECT tidings.check_watch('members', 'own')");
    }
    session.run("DROP TRIGGER tidings_own ON members");
    // One that tidings.guard() would refuse, because its topics have several readings, asks about everything.
    session.run(&create("'topic={id}{board_id}', 'guard=true'"));
    assert_eq!(adds(&mut session, "DELETE FROM members WHERE id = 3"), ["boards_7", "{any}"]);
    for (sql, what) in [
        ("SELECT tidings.guard('members', 'boards_{none}')", "does not exist"),
        ("SELECT tidings.guard('members', '{id}{board_id}')", "bad topic"),
        ("SELECT tidings.guard('members', 'a', operations => '{MERGE}')", "invalid operations"),
        ("SELECT tidings.guard('members', NULL)", "may be NULL"),
        ("SELECT tidings.guard('tidings.rule', 'a')", "tidings itself"),
        ("SELECT tidings.guard('members', 'a', condition => 'nonsense')", "nonsense"),
        ("SELECT tidings.recheck('')", "bad topic"),
        ("SELECT tidings.recheck(E'a\\nb')", "bad topic"),
        ("BEGIN READ ONLY; SELECT tidings.recheck('a')", "read-only"),
    ] {
        let error = session.refused(sql);
        assert!(error.message().contains(what), "{sql}: {}", error.message());
        let _ = session.client().batch_execute("ROLLBACK");
    }
}

#[test]
fn guards_are_shown_as_guards_and_start_no_snapshot() {
    let db = members();
    let mut session = db.session();
    session.run("SELECT tidings.guard('members', 'boards_{board_id}', '{INSERT,DELETE}', 'true', 'both')");
    let rows = session.all(
        "SELECT w.name, w.topic, w.event, w.old_record, w.operations, w.condition, w.is_guard
         FROM tidings.watches w ORDER BY w.relation::text, w.name",
        &[],
    );
    type Shown = (String, String, Option<String>, Option<String>, Vec<String>, Option<String>, bool);
    let shown: Vec<Shown> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4), row.get(5), row.get(6)))
        .collect();
    let topic = || "boards_{board_id}".to_owned();
    let list = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    let changed = || Some("changed".to_owned());
    assert_eq!(
        shown,
        [
            ("default".into(), topic(), changed(), changed(), list(&["INSERT", "UPDATE", "DELETE"]), None, false),
            // The condition is about a row, and the view has it once.
            ("both".into(), topic(), None, None, list(&["INSERT", "DELETE", "TRUNCATE"]), Some("true".into()), true),
            ("guard".into(), topic(), None, None, list(&["UPDATE", "DELETE", "TRUNCATE"]), None, true),
        ]
    );
    let state: i64 = session.one("SELECT count(*) FROM tidings.state(ARRAY['boards_5'])");
    assert_eq!(state, 0, "a member is no row of the topic");
    session.run("SELECT tidings.allow('news', 'SELECT')");
    let hints: Vec<String> = session
        .all("SELECT detail FROM tidings.check() WHERE item = 'guard'", &[])
        .into_iter()
        .map(|row| row.get(0))
        .collect();
    assert!(hints.len() == 2 && hints[0].contains("no rule fits the topic"), "{hints:?}");
    session.run("SELECT tidings.allow('boards_{id}', 'SELECT')");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.check() WHERE item = 'guard'"), 0);
}

#[test]
fn an_application_may_recheck_and_a_manager_may_guard_its_own_tables() {
    let db = shared().database();
    let (app, manager) = (db.role("app"), db.role("manager"));
    let mut session = db.session();
    session.run(&format!(
        "CREATE TABLE members (board_id int); CREATE SCHEMA own AUTHORIZATION {manager};
         SELECT tidings.grant_app('{app}'), tidings.grant_manager('{manager}')"
    ));
    let mut app = db.session_as(&app);
    app.run("SELECT tidings.recheck('boards_5')");
    app.forbidden("SELECT tidings.guard('members', 'boards_{board_id}')");
    let mut manager = db.session_as(&manager);
    manager.run("CREATE TABLE own.members (board_id int); SELECT tidings.guard('own.members', 'boards_{board_id}')");
    manager.forbidden("SELECT tidings.guard('members', 'boards_{board_id}')");
    manager.run("INSERT INTO own.members VALUES (5); DELETE FROM own.members; SELECT tidings.recheck('boards_6')");
    assert_eq!(rechecks(&mut session), ["boards_5", "boards_5", "boards_6"]);
}
