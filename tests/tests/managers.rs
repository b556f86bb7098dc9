//! What the roles of an application and of its migrations can do without being superusers, and above all what they
//! can't: `tidings.grant_app(role)` and `tidings.grant_manager(role)`. Attacks by code that they write are in
//! `attacks_by_managers`.

use std::fs;

use postgres::error::SqlState;
use tidings_tests::sse::Request;
use tidings_tests::{Database, Session, shared};

use crate::access::sign;
use crate::rights::{heard, open_to};
use crate::{all_until_now, boards, titles};

/// Creates a role with the rights of migrations, and a schema `mine` of its own in which others may use everything.
pub fn manager(db: &Database<'_>) -> String {
    let role = db.role("manager");
    db.session().run(&format!(
        "SELECT tidings.grant_manager('{role}'); GRANT CREATE ON SCHEMA public TO {role};
         CREATE SCHEMA mine AUTHORIZATION {role}; GRANT USAGE ON SCHEMA mine TO PUBLIC"
    ));
    role
}

#[test]
fn a_migration_without_a_superuser_sets_up_tables_watches_guards_rules_and_snapshots() {
    let db = shared().database();
    let (manager, member, proxy_role) = (manager(&db), db.role("member"), db.proxy_role());
    db.session().run(&format!("ALTER ROLE {proxy_role} NOINHERIT; GRANT {member} TO {proxy_role}"));
    let mut migration = db.session_as(&manager);
    migration.run(&format!(
        "BEGIN;
         CREATE TABLE boards (id bigint PRIMARY KEY, title text);
         CREATE TABLE board_items (id bigint PRIMARY KEY, board_id bigint REFERENCES boards, title text, secret text);
         CREATE INDEX ON board_items (board_id);
         CREATE TABLE members (board_id bigint REFERENCES boards, role name);
         GRANT SELECT ON boards, board_items, members TO {member};
         SELECT tidings.guard('members', topic => 'boards_{{board_id}}');
         SELECT tidings.watch('board_items', topic => 'boards_{{board_id}}', exclude => '{{secret}}', condition => 'NEW.title <> ''draft''', operations => '{{INSERT,UPDATE}}');
         SELECT tidings.allow('boards_{{id}}', 'SELECT FROM public.members WHERE board_id = {{id}}::bigint AND role = current_user');
         SELECT tidings.snapshot('titles_{{id}}', 'SELECT i.title FROM public.board_items i WHERE i.board_id = {{id}}::bigint');
         SELECT tidings.allow('titles_{{id}}', 'SELECT FROM public.boards WHERE id = {{id}}::bigint');
         INSERT INTO boards VALUES (5, 'Garden party'); INSERT INTO board_items VALUES (1, 5, 'Lanterns'), (2, 5, 'draft');
         INSERT INTO members VALUES (5, '{member}');
         COMMIT"
    ));
    let secret = tidings_tests::process::fresh_path("secret");
    fs::write(&secret, crate::access::SECRET).expect("write the secret");
    let proxy = db.proxy(&["--jwt-secret-file", secret.to_str().expect("a path"), "--reauthorize", "1h"]);
    let token = sign(&serde_json::json!({"role": member}));
    let mut sse = proxy.open(&Request::since(&["boards_5"], "snapshot").by(&token));
    let rows = sse.before(|frame| frame.event == "ready");
    assert_eq!(titles(&rows[1..]), ["Lanterns"]);
    migration.run("INSERT INTO board_items VALUES (3, 5, 'Music'), (4, 5, 'draft')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["Music"]);
    migration.run(
        "DELETE FROM members; SELECT tidings.recheck('boards_5'); INSERT INTO board_items VALUES (5, 5, 'Speech')",
    );
    let rest = sse.rest();
    assert!(rest.last().is_some_and(|frame| frame.event == "unauthorized"), "{rest:?}");
    assert!(!rest.iter().any(|frame| frame.data.contains("Speech")), "{rest:?}");
    let mut sse = proxy.open(&Request::since(&["titles_5"], "snapshot").by(&token));
    assert_eq!(sse.before(|frame| frame.event == "ready").len(), 1 + 5);
    // And the way back.
    migration.run(
        "SELECT tidings.unsnapshot('titles_{id}'), tidings.disallow('titles_{id}'), tidings.disallow('boards_{id}'), tidings.unwatch('board_items'), tidings.unwatch('members', 'guard');
         DROP TABLE board_items, members, boards",
    );
    assert_eq!(migration.one::<i64>("SELECT count(*) FROM tidings.export()"), 0);
}

/// What a role of migrations may try with what belongs to others.
const OF_OTHERS: &[&str] = &[
    // Tables of others.
    "SELECT tidings.watch('board_items', topic => 'mine_{id}')",
    "SELECT tidings.watch('board_items', topic => 'boards_{board_id}')",
    "SELECT tidings.watch('board_items', topic => 'mine', name => 'mine', operations => '{TRUNCATE}')",
    "SELECT tidings.unwatch('board_items')",
    "SELECT tidings.guard('board_items', topic => 'boards_{board_id}')",
    "SELECT tidings.guard('board_items', topic => 'boards_{board_id}', name => 'default')",
    "CREATE TRIGGER guarded AFTER DELETE ON board_items FOR EACH ROW EXECUTE FUNCTION tidings.capture('topic=boards_{board_id}', 'guard=true')",
    "CREATE TRIGGER mine AFTER INSERT ON board_items FOR EACH ROW EXECUTE FUNCTION tidings.capture('topic=mine')",
    "CREATE OR REPLACE TRIGGER tidings_default AFTER INSERT ON board_items FOR EACH ROW EXECUTE FUNCTION tidings.capture('topic=mine')",
    "ALTER TABLE board_items DISABLE TRIGGER tidings_default",
    "ALTER TRIGGER tidings_default ON board_items RENAME TO other",
    "SELECT tidings.allow('x', 'SELECT FROM board_items')",
    "SELECT tidings.snapshot('x', 'SELECT * FROM board_items')",
    "SELECT * FROM tidings.state('{boards_5}')",
    // Events, and the channel on which they are sent.
    "SELECT * FROM tidings.log",
    "SELECT * FROM tidings.log_0",
    "SELECT * FROM tidings.tick",
    "SELECT * FROM tidings.events",
    "SELECT * FROM tidings.pending()",
    "SELECT * FROM tidings.changes('earliest')",
    "SELECT * FROM tidings.segments('earliest')",
    "SELECT * FROM tidings.scan('earliest', NULL, 10, 10, true)",
    "SELECT * FROM tidings.page('0', '{boards_5}', 10, 10)",
    "SELECT * FROM tidings.read_page('0', '{boards_5}', 10, 10)",
    "SELECT * FROM tidings.unwritten()",
    "SELECT tidings.channel()",
    "SELECT tidings.listen()",
    "SELECT * FROM tidings.secret",
    "SELECT tidings.rotate_channel()",
    "COPY tidings.log TO STDOUT",
    // Other people's rights.
    "SELECT tidings.authorize('{\"role\": \"postgres\"}', '{boards_5}')",
    "SELECT * FROM tidings.check_subscription('{}', '{boards_5}')",
    "SELECT tidings.ask_rule(10::oid, '{}', 'SELECT', '{}', '')",
    "SELECT tidings.open_rows(NULL, '{boards_5}')",
    "SELECT tidings.open_rows_as(10::oid, NULL, '{boards_5}', '')",
    "SELECT * FROM tidings.fetch_rows(1)",
    "SELECT tidings.report('proxy', '{boards_5}', '{1}')",
    "SELECT tidings.grant_proxy(current_user::regrole)",
    "SELECT tidings.grant_gate(current_user::regrole)",
    "SELECT tidings.grant_app(current_user::regrole)",
    "SELECT tidings.grant_manager(current_user::regrole)",
    "SELECT tidings.grant_functions(current_user::regrole, '{tidings.channel()}')",
    // The extension's own objects.
    "INSERT INTO tidings.log SELECT * FROM tidings.log",
    "DELETE FROM tidings.log",
    "TRUNCATE tidings.log",
    "TRUNCATE tidings.rule",
    "UPDATE tidings.tick SET tick = 0",
    "UPDATE tidings.secret SET channel = 'known'",
    "DELETE FROM tidings.proxy",
    "INSERT INTO tidings.open_topic VALUES ('p', 't', 1)",
    "DO 'BEGIN LOCK TABLE tidings.log; END'",
    "ALTER TABLE tidings.rule ADD COLUMN mine int",
    "ALTER TABLE tidings.rule ENABLE ROW LEVEL SECURITY",
    "CREATE INDEX ON tidings.rule (topic)",
    "CREATE TRIGGER mine BEFORE INSERT ON tidings.rule FOR EACH ROW EXECUTE FUNCTION mine.trigger()",
    "CREATE RULE mine AS ON INSERT TO tidings.rule DO ALSO NOTHING",
    "CREATE POLICY mine ON tidings.rule USING (mine.spy())",
    "CREATE TABLE tidings.mine ()",
    "CREATE FUNCTION tidings.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION tidings.refuse_subscriber() RETURNS void LANGUAGE sql AS ''",
    "ALTER FUNCTION tidings.channel() SECURITY INVOKER",
    "ALTER FUNCTION tidings.allow(text, text) SET search_path = mine",
    "COMMENT ON TABLE tidings.rule IS 'mine'",
    "ALTER EXTENSION tidings ADD TABLE mine.items",
    "ALTER EXTENSION tidings UPDATE",
    "DROP EXTENSION tidings CASCADE",
    "DROP FUNCTION tidings.capture() CASCADE",
    // Settings of the whole server.
    "SET tidings.capture = off",
    "SET tidings.max_payload = '256MB'",
    "ALTER SYSTEM SET tidings.retention = '1s'",
];

#[test]
fn a_role_of_migrations_changes_and_reads_nothing_of_others() {
    let db = boards();
    let manager = manager(&db);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'secret')");
    let mut session = db.session_as(&manager);
    session.run(
        "CREATE TABLE mine.items (id int);
         CREATE FUNCTION mine.spy() RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true';
         CREATE FUNCTION mine.trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    );
    let before = open_to(&mut session);
    let mut attempts = db.session_as(&manager);
    let is_possible = |attempt: &&&str| *attempts.refused(attempt).code() != SqlState::INSUFFICIENT_PRIVILEGE;
    assert_eq!(OF_OTHERS.iter().filter(is_possible).collect::<Vec<_>>(), [&""; 0]);
    assert_eq!(open_to(&mut session), before);
    // Postgres only warns of a GRANT without the right to grant.
    session.run("GRANT SELECT ON tidings.rule TO PUBLIC; GRANT EXECUTE ON FUNCTION tidings.publish(text, jsonb, text) TO PUBLIC");
    assert_eq!(open_to(&mut db.session_as(&db.role("stranger"))), [""; 0]);
    // The names of views and functions say what they show: no title of a row is in any of them.
    for view in ["watches", "rules", "snapshots", "status", "open_topics", "check('{boards_5}')"] {
        let text: String = session.one(&format!("SELECT coalesce(string_agg(v::text, ''), '') FROM tidings.{view} v"));
        assert!(!text.contains("secret"), "{view}: {text}");
    }
}

#[test]
fn the_right_to_create_triggers_is_enough_for_a_watch_of_ones_own_and_for_no_other() {
    let db = boards();
    let manager = manager(&db);
    db.session().run(&format!("GRANT TRIGGER ON board_items TO {manager}"));
    let mut session = db.session_as(&manager);
    session.run("SELECT tidings.watch('board_items', topic => 'titles', name => 'mine')");
    for attempt in [
        "SELECT tidings.unwatch('board_items', 'mine')",
        "SELECT tidings.unwatch('board_items')",
        "SELECT tidings.watch('board_items', topic => 'x')",
        "SELECT tidings.watch('board_items', topic => 'x', name => 'mine')",
    ] {
        session.forbidden(attempt);
    }
    assert!(db.session().one::<bool>("SELECT tidings.unwatch('board_items', 'mine')"));
}

#[test]
fn an_application_only_publishes_and_reads_rows() {
    let db = boards();
    let app = db.role("app");
    db.session().run(&format!("SELECT tidings.grant_app('{app}'); GRANT CREATE ON SCHEMA public TO {app}"));
    let mut session = db.session_as(&app);
    session.run("CREATE TABLE items (id int)");
    session.run("SELECT tidings.publish('x', '1'), tidings.publish_text('x', 'y'), tidings.position()");
    for attempt in [
        "SELECT tidings.watch('items', topic => 'x')",
        "CREATE TRIGGER x AFTER INSERT ON items FOR EACH ROW EXECUTE FUNCTION tidings.capture('topic=x')",
        "SELECT tidings.unwatch('items')",
        "SELECT tidings.guard('items', topic => 'x')",
        "SELECT tidings.allow('x', 'SELECT')",
        "SELECT tidings.disallow('x')",
        "SELECT tidings.snapshot('x', 'SELECT 1 AS one')",
        "SELECT tidings.export()",
        "SELECT * FROM tidings.watches",
        "SELECT * FROM tidings.rules",
        "SELECT * FROM tidings.status",
        "SELECT * FROM tidings.check('{x}')",
        "SELECT * FROM tidings.changes('earliest')",
        "SELECT tidings.channel()",
        "SELECT tidings.listen()",
        "INSERT INTO tidings.rule VALUES ('x', 'SELECT', '')",
        "SELECT tidings.grant_manager(current_user::regrole)",
    ] {
        session.forbidden(attempt);
    }
}

#[test]
fn names_in_the_path_of_a_manager_do_not_raise_its_rights() {
    let db = boards();
    let manager = manager(&db);
    let channel: String = db.session().one("SELECT tidings.channel()");
    let mut session = db.session_as(&manager);
    // What the functions with the owner's rights call, in a schema that comes first.
    session.run(
        "CREATE TABLE mine.items (id int);
         CREATE FUNCTION mine.caught() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
             IF current_user <> session_user THEN EXECUTE format('ALTER ROLE %I SUPERUSER', session_user); END IF; RETURN true; END $$;
         CREATE FUNCTION mine.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS 'SELECT mine.caught()::text';
         CREATE FUNCTION mine.eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT mine.caught()';
         CREATE OPERATOR mine.= (FUNCTION = mine.eq, LEFTARG = text, RIGHTARG = text);
         CREATE FUNCTION mine.array_to_string(text[], text) RETURNS text LANGUAGE sql AS 'SELECT mine.caught()::text';
         CREATE FUNCTION mine.has_function_privilege(oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT mine.caught()';
         CREATE TABLE mine.pg_trigger (tgname text); CREATE TABLE mine.watches (topic text); CREATE TABLE mine.rule (topic text);
         SET search_path = mine, pg_catalog, public",
    );
    session.run(
        "SELECT tidings.watch('mine.items', topic => 'items'), tidings.allow('items', 'SELECT WHERE ''a''::text = ''b''::text');
         SELECT tidings.snapshot('items', 'SELECT 1 AS one'), tidings.publish('items', '1');
         SELECT * FROM tidings.check('{items}'); SELECT tidings.export(); SELECT * FROM tidings.watches; SELECT * FROM tidings.status;
         INSERT INTO mine.items VALUES (1)",
    );
    session.run("SELECT tidings.unwatch('mine.items'), tidings.disallow('items'), tidings.unsnapshot('items')");
    assert!(!db.session().one::<bool>(&format!("SELECT rolsuper FROM pg_roles WHERE rolname = '{manager}'")));
    // Nor has any of it shown the channel.
    session.run("RESET search_path; LISTEN probe");
    assert_eq!(heard(&mut session, &db), []);
    let shown: i64 = session.one(&format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{channel}%' AND pid <> pg_backend_pid()"
    ));
    assert_eq!(shown, 0);
}

#[test]
fn the_rules_of_an_application_belong_to_all_its_managers() {
    let db = shared().database();
    let (one, other) = (db.role("one"), db.role("other"));
    db.session().run(&format!("SELECT tidings.grant_manager('{one}'), tidings.grant_manager('{other}')"));
    let mut hers: Session = db.session_as(&one);
    hers.run("SELECT tidings.allow('news', 'SELECT'), tidings.snapshot('news', 'SELECT 1 AS one')");
    let mut his = db.session_as(&other);
    his.run("SELECT tidings.allow('news', 'SELECT WHERE false')");
    assert!(his.one::<bool>("SELECT tidings.disallow('news') AND tidings.unsnapshot('news')"));
    assert_eq!(hers.one::<i64>("SELECT count(*) FROM tidings.rules"), 0);
}
