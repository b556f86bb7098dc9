//! What the running transaction has captured, for tests that never commit.

use tidings_tests::{Database, Session, shared, until};

use crate::{all_until_now, boards};

/// Topic, event name and payload of what is pending.
fn pending(session: &mut Session) -> Vec<(String, String, String)> {
    let rows = session.all("SELECT topic, event, payload FROM tidings.pending()", &[]);
    rows.into_iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// The events of the database's log, likewise.
fn committed(db: &Database<'_>) -> Vec<(String, String, String)> {
    let rows = db.session().all("SELECT topic, event, payload FROM tidings.events", &[]);
    rows.into_iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[test]
fn a_transaction_sees_what_it_has_captured_and_nobody_else_does() {
    let db = boards();
    let (mut session, mut other) = (db.session(), db.session());
    assert_eq!(pending(&mut session), []);
    session.run(
        "BEGIN;
         INSERT INTO board_items VALUES (1, 5, 'kept'); SELECT tidings.publish('news', '1');
         SAVEPOINT a; INSERT INTO board_items VALUES (2, 5, 'taken back'); ROLLBACK TO a;
         SAVEPOINT b; UPDATE board_items SET title = 'changed' WHERE id = 1; RELEASE b;
         SAVEPOINT c; DELETE FROM board_items WHERE id = 1",
    );
    let seen = pending(&mut session);
    let topics: Vec<_> = seen.iter().map(|(topic, event, _)| (topic.as_str(), event.as_str())).collect();
    let board = ("boards_5", "changed");
    assert_eq!(topics, [board, ("news", "message"), board, board]);
    assert!(seen[2].2.contains("\"title\":\"changed\"") && !seen.iter().any(|(.., payload)| payload.contains("taken")));
    assert_eq!(seen, pending(&mut session), "it can be asked again");
    assert_eq!(pending(&mut other), []);
    session.run("COMMIT");
    assert_eq!(pending(&mut session), []);
    until("it is in a tick", || session.one("SELECT waiting_since IS NULL FROM tidings.status"));
    assert_eq!(committed(&db), seen, "what is committed is what was pending");
}

#[test]
fn events_that_were_written_early_are_pending_too_and_a_rollback_sends_nothing() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut stream = proxy.live(&["boards_5"]);
    let mut session = db.session();
    session.run(
        "BEGIN; SAVEPOINT a;
         INSERT INTO board_items SELECT n, 5, repeat('x', 50) FROM generate_series(1, 20000) n;
         RELEASE a; INSERT INTO board_items VALUES (0, 5, 'last')",
    );
    let written: i64 = session.one("SELECT count(*) FROM tidings.log WHERE xid = pg_current_xact_id()");
    assert!(written > 0, "some were written early");
    let seen = pending(&mut session);
    assert_eq!(seen.len(), 20_001);
    let id = |payload: &str| serde_json::from_str::<serde_json::Value>(payload).expect("JSON")["record"]["id"].clone();
    assert!(seen.iter().zip((1..=20_000).chain([0])).all(|((.., payload), n)| id(payload) == n), "in order");
    session.run("ROLLBACK");
    assert_eq!((pending(&mut session), all_until_now(&db, "boards_5", &mut stream)), (vec![], vec![]));
}

#[test]
fn only_a_role_to_which_it_is_granted_may_ask() {
    let db = shared().database();
    let (app, other) = (db.role("app"), db.role("other"));
    db.session().run(&format!(
        "SELECT tidings.grant_app('{app}'), tidings.grant_app('{other}'); GRANT EXECUTE ON FUNCTION tidings.pending() TO {app}"
    ));
    let mut session = db.session_as(&app);
    session.run("BEGIN; SELECT tidings.publish('news', '1')");
    assert_eq!(pending(&mut session), [("news".into(), "message".into(), "1".into())]);
    assert!(db.session_as(&other).client().simple_query("SELECT * FROM tidings.pending()").is_err());
}
