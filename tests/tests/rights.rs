//! Who may read: only roles with the grant.

use tidings_tests::{Session, shared};

use crate::{boards, titles};

/// What a role without rights may try to read or to do.
const ATTEMPTS: &[&str] = &[
    "SELECT * FROM tidings.log",
    "SELECT * FROM tidings.events",
    "SELECT * FROM tidings.watches",
    "SELECT * FROM tidings.status",
    "SELECT tidings.channel()",
    "SELECT tidings.relay_pid()",
    "SELECT tidings.position()",
    "SELECT * FROM tidings.changes('earliest')",
    "SELECT * FROM tidings.segments('earliest')",
    "SELECT tidings.publish('boards_5', '1')",
    "SELECT tidings.publish_text('boards_5', 'x')",
    "SELECT tidings.watch('board_items', topic => 'mine')",
    "SELECT tidings.unwatch('board_items')",
    "SELECT tidings.grant_proxy(current_user)",
    "COPY tidings.log TO STDOUT",
    "DELETE FROM tidings.log",
    "TRUNCATE tidings.log",
    "CREATE TABLE t (); CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION tidings.capture('topic=x')",
];

#[test]
fn events_of_a_writer_without_rights_arrive() {
    let db = boards();
    let writer = db.role("writer");
    db.session().run(&format!("GRANT INSERT, UPDATE, SELECT, DELETE ON board_items TO {writer}"));
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session_as(&writer);
    session.run("INSERT INTO board_items VALUES (1, 5, 'a'); UPDATE board_items SET title = 'b'");
    session.run("BEGIN; SAVEPOINT s; INSERT INTO board_items VALUES (2, 5, 'never'); ROLLBACK TO s; COMMIT");
    // More than one buffer, so that it is also written before the commit; with hostile settings.
    session.run("SET search_path = pg_temp; SET row_security = off; INSERT INTO public.board_items SELECT i, 6, repeat('x', 200) FROM generate_series(10, 30000) i");
    session.run(
        "SET default_transaction_read_only = off; SET search_path = public; INSERT INTO board_items VALUES (3, 5, 'c')",
    );
    assert_eq!(titles(&sse.take(3)), ["a", "b", "c"]);
    assert_eq!(session.one::<String>("SELECT current_user::text"), writer, "the flush gives the role back");
}

#[test]
fn an_owner_without_rights_can_alter_tables_as_before() {
    let db = boards();
    let owner = db.role("owner");
    db.session().run(&format!(
        "GRANT CREATE ON SCHEMA public TO {owner}; ALTER TABLE board_items OWNER TO {owner};
         ALTER TABLE board_items ADD COLUMN spare int"
    ));
    let mut session = db.session_as(&owner);
    session.run(
        "CREATE TABLE mine (a int); ALTER TABLE mine ADD COLUMN b int; ALTER TABLE mine RENAME b TO c; ALTER TABLE mine DROP COLUMN a",
    );
    session.run("ALTER TABLE board_items ALTER COLUMN spare TYPE text; ALTER TABLE board_items DROP COLUMN spare");
    assert_eq!(session.refused("ALTER TABLE board_items DROP COLUMN board_id").code().code(), "42703");
}

#[test]
fn ungranted_roles_read_nothing() {
    let db = boards();
    let (writer, stranger) = (db.role("writer"), db.role("stranger"));
    db.session().run(&format!(
        "GRANT ALL ON board_items TO {writer}; GRANT CREATE ON SCHEMA public TO {writer}, {stranger};
         INSERT INTO board_items VALUES (1, 5, 'secret')"
    ));
    for role in [&writer, &stranger] {
        let mut session = db.session_as(role);
        for attempt in ATTEMPTS {
            session.forbidden(attempt);
        }
        // And everything else in the schema.
        assert_eq!(open_to(&mut session), [""; 0], "open to {role}");
    }
}

/// Everything in the schema that the session has rights on, and the schema itself, in order.
pub fn open_to(session: &mut Session) -> Vec<String> {
    let open = session.all(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'tidings')
           AND CASE WHEN relkind IN ('r', 'p', 'v', 'm')
             THEN has_any_column_privilege(c.oid, 'SELECT, INSERT, UPDATE') OR has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
             WHEN relkind = 'S' THEN has_sequence_privilege(c.oid, 'SELECT, USAGE, UPDATE') ELSE false END
         UNION ALL
         SELECT p.oid::regprocedure::text FROM pg_proc p WHERE pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'tidings')
           AND has_function_privilege(p.oid, 'EXECUTE')
         UNION ALL SELECT nspname::text FROM pg_namespace WHERE nspname = 'tidings' AND has_schema_privilege(oid, 'USAGE, CREATE')",
        &[],
    );
    let mut open: Vec<String> = open.iter().map(|row| row.get(0)).collect();
    open.sort();
    open
}

/// Everything that has been notified to `listener` by now: a probe of this test comes after it in the queue.
pub fn heard(listener: &mut Session, db: &tidings_tests::Database<'_>) -> Vec<(String, String)> {
    use postgres::fallible_iterator::FallibleIterator;
    db.session().run("NOTIFY probe, 'probe'");
    let mut heard = Vec::new();
    tidings_tests::until("the probe is received", || {
        listener.run("SELECT 1");
        let mut notifications = listener.client().notifications();
        let mut iter = notifications.iter();
        while let Ok(Some(n)) = iter.next() {
            heard.push((n.channel().to_owned(), n.payload().to_owned()));
        }
        heard.iter().any(|(channel, _)| channel == "probe")
    });
    heard.retain(|(channel, _)| channel != "probe");
    heard
}

#[test]
fn a_guessed_channel_receives_nothing() {
    let db = boards();
    let other = shared().database();
    let stranger = db.role("stranger");
    let channel: String = db.session().one("SELECT tidings.channel()");
    let (oid, other_channel): (u32, String) = (
        db.session().one("SELECT oid FROM pg_database WHERE datname = current_database()"),
        other.session().one("SELECT tidings.channel()"),
    );
    assert_ne!(channel, other_channel, "each database has its own");
    let mut spy = db.session_as(&stranger);
    spy.run("LISTEN probe");
    let database = db.name();
    for guess in [
        "tidings".to_owned(),
        "TIDINGS".to_owned(),
        "tidings.log".to_owned(),
        "tidings_log".to_owned(),
        "tidings_events".to_owned(),
        "events".to_owned(),
        "boards_5".to_owned(),
        "board_items".to_owned(),
        "changed".to_owned(),
        "*".to_owned(),
        "%".to_owned(),
        database.to_owned(),
        format!("tidings_{database}"),
        format!("tidings.{database}"),
        format!("tidings_{oid}"),
        oid.to_string(),
        other_channel.clone(),
    ] {
        assert_ne!(guess, channel, "the channel can be guessed");
        spy.run(&format!("LISTEN \"{guess}\""));
    }
    let mut granted = db.session();
    granted.run(&format!("LISTEN probe; LISTEN \"{channel}\""));
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'secret')");
    assert_eq!(titles(&[sse.frame()]), ["secret"]);
    assert_eq!(heard(&mut spy, &db), []);
    // A role that knows the channel does receive it, so it means something that the spy receives nothing.
    let sent = heard(&mut granted, &db);
    assert!(sent.iter().any(|(name, payload)| *name == channel && payload.contains("secret")), "{sent:?}");
    // 128 random bits have at least 22 characters.
    assert!(channel.len() >= 22, "{channel} is too short to be unguessable");
    let shown: i64 = spy.one(&format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{channel}%' AND pid <> pg_backend_pid()"
    ));
    assert_eq!(shown, 0, "the activity view tells the channel");
}

#[test]
fn the_proxy_role_reads_what_it_needs_and_writes_nothing() {
    let db = boards();
    let role = db.proxy_role();
    let mut session = db.session_as(&role);
    session.run("SELECT tidings.channel(), tidings.relay_pid(), tidings.position(), tidings.locate('earliest')");
    session
        .run("SELECT * FROM tidings.changes('earliest'); SELECT * FROM tidings.segments(tidings.locate('earliest'))");
    session.run("SELECT tidings.report('p', ARRAY['boards_5'], ARRAY[1])");
    for attempt in [
        "SELECT * FROM board_items",
        "INSERT INTO board_items VALUES (1, 5, 'x')",
        "DELETE FROM tidings.log",
        "INSERT INTO tidings.log DEFAULT VALUES",
        "TRUNCATE tidings.log",
        "SELECT tidings.watch('board_items', topic => 'mine')",
        "SELECT tidings.grant_proxy('postgres')",
        "CREATE TABLE tidings.mine ()",
    ] {
        session.forbidden(attempt);
    }
}

#[test]
fn an_application_and_a_manager_have_exactly_the_rights_they_need() {
    let db = boards();
    let (app, manager) = (db.role("app"), db.role("manager"));
    db.session().run(&format!(
        "SELECT tidings.grant_app('{app}'), tidings.grant_manager('{manager}'); GRANT CREATE ON SCHEMA public TO {manager}"
    ));
    let applications = [
        "\"position\"()",
        "publish(text,jsonb,text)",
        "publish_text(text,text,text)",
        "recheck(text)",
        "state(text[])",
    ];
    let managers = [
        "allow(text,text)",
        "bind_holes(text,text)",
        "capture()",
        "check_snapshot(text,text)",
        "\"check\"(text[])",
        "check_watch(regclass,text)",
        "disallow(text)",
        "export()",
        "exported_triggers()",
        "flushed_first()",
        "guard(regclass,text,text[],text,text)",
        "holes(text)",
        "keep_rule(text,text,name[])",
        "keep_snapshot(text,text,text,name[])",
        "note_missing_index(regclass,text,text[])",
        "open_topics",
        "others_who_create(name[])",
        "plan_rule(text,text)",
        "query_path(text,text,text,name[])",
        "relay()",
        "ring()",
        "rule",
        "rules",
        "snapshot(text,text,text)",
        "snapshot_query",
        "snapshots",
        "status",
        "unsnapshot(text)",
        "unwatch(regclass,text)",
        "watch(regclass,text,text,jsonb,text[],text[],text[],text,text,text)",
        "watch_statements(regclass,text,text,jsonb,text[],text[],text[],text,text,text)",
        "watches",
    ];
    for (role, objects) in [(&app, &applications[..]), (&manager, &[&applications[..], &managers].concat())] {
        let mut granted: Vec<String> = objects.iter().map(|object| format!("tidings.{object}")).collect();
        granted.push("tidings".into());
        granted.sort();
        assert_eq!(open_to(&mut db.session_as(role)), granted);
    }
    let mut log = crate::log::Log::from_here(&db);
    let mut session = db.session_as(&app);
    session.run("SELECT tidings.publish('a', '1'), tidings.publish_text('b', 'x'), tidings.position()");
    session.forbidden("SELECT tidings.watch('board_items', topic => 'a')");
    session.forbidden("SELECT * FROM tidings.changes('earliest')");
    let mut session = db.session_as(&manager);
    session.run(
        "CREATE TABLE mine (id int);
         SELECT tidings.watch('mine', topic => 'mine_{id}'), tidings.watch('mine', topic => 'mine');
         INSERT INTO mine VALUES (1); SELECT tidings.unwatch('mine');
         SELECT tidings.allow('mine', 'SELECT FROM mine'), tidings.allow('mine', 'SELECT'), tidings.allow('x', 'SELECT');
         SELECT tidings.disallow('x'), tidings.publish('c', '2')",
    );
    for view in ["open_topics", "rules", "status", "watches"] {
        session.run(&format!("SELECT * FROM tidings.{view}"));
    }
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.rules"), 1);
    session.forbidden("SELECT tidings.watch('board_items', topic => 'a')");
    session.forbidden("SELECT * FROM tidings.events");
    session.forbidden("SELECT tidings.channel()");
    assert_eq!(log.news().iter().map(|event| event.topic.as_str()).collect::<Vec<_>>(), ["a", "b", "mine", "c"]);
}

#[test]
fn only_the_relays_notifications_are_accepted() {
    let db = boards();
    let stranger = db.role("stranger");
    let channel: String = db.session().one("SELECT tidings.channel()");
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    // A role that got hold of the channel, and sends what looks like a tick.
    let forged = "1 9000000000000000 1 1 1\n1 8 7 8\nboards_5changed\"forged\"";
    let mut session = db.session_as(&stranger);
    session.run(&format!("NOTIFY \"{channel}\", E'{}'", forged.replace('\n', "\\n")));
    session.run(&format!("NOTIFY \"{channel}\", 'no tick at all'"));
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'real')");
    assert_eq!(titles(&crate::all_until_now(&db, "boards_5", &mut sse)), ["real"]);
}
