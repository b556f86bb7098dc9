//! `tidings.export()`: what it returns recreates all watches, guards, rules and queries for snapshots.

use std::io::Write;
use std::process::Stdio;

use tidings_tests::{Database, Session, shared};

use crate::has_psql;
use crate::log::{Log, kinds, topics};
use crate::watch_options::{HOSTILE, ident};

/// Texts that a careless quotation would damage.
const QUERIES: &[&str] = &[
    "SELECT WHERE 'it''s' <> $$dollar 'quoted'$$ -- a comment",
    "SELECT\n\tWHERE E'back\\\\slash' <> '\\' AND {id} <> $q$ $1 $$ $q$",
    "SELECT WHERE '%I %s %%' <> 'Übergröße中👩🏽' /* '; DROP TABLE x; -- */",
];

/// Tables with hostile names, in schemas of which one has capitals in its name, and partitions of partitions.
fn tables(session: &mut Session) {
    session.run(
        "CREATE SCHEMA \"Odd Schema.\"\"x\"; CREATE SCHEMA tools;
         CREATE FUNCTION tools.\"Is Hot\"(int) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT $1 > 100';
         CREATE OPERATOR tools.=== (FUNCTION = int4eq, LEFTARG = int, RIGHTARG = int);
         CREATE TABLE plain (id int, board_id int, title text, hits int);
         CREATE TABLE parts (id int, board_id int) PARTITION BY RANGE (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY LIST (board_id);
         CREATE TABLE parts_1_5 PARTITION OF parts_1 FOR VALUES IN (5);
         CREATE TABLE \"Parts 2\" PARTITION OF parts FOR VALUES FROM (10) TO (20)",
    );
    for name in HOSTILE {
        session.run(&format!(
            "CREATE TABLE \"Odd Schema.\"\"x\".{0} (id int, {0} text); CREATE TABLE public.{0} (id int, {0} text)",
            ident(name)
        ));
    }
}

/// Watches of every kind, rules and queries.
fn watches(session: &mut Session) {
    for (n, name) in HOSTILE.iter().enumerate() {
        let watch = if name.len() > 46 { "long" } else { name };
        session.with(
            "SELECT tidings.watch(format('%I.%I', 'Odd Schema.\"x', $1::text)::regclass, topic => 'odd_' || $2::text || '_{id}',
                                  event => translate($1::text, E'\\n\\t', '  '), columns => ARRAY['id', $1::text],
                                  payload => jsonb_build_object($1::text, 'x' || $1::text), name => $3)",
            &[name, &n.to_string(), &watch],
        );
    }
    session.run(
        r#"SELECT tidings.watch('plain', topic => 'all', operations => '{INSERT,DELETE,TRUNCATE}', old_record => 'full', exclude => '{title,hits}');
           SET search_path = tools, public;
           SELECT tidings.watch('plain', topic => 'hot_{board_id}', name => 'hot', operations => '{INSERT,UPDATE}',
                                condition => '"Is Hot"(NEW.hits) AND NEW.title <> ''\''''" -- no comment'' AND NEW.id === 5 -- a comment');
           RESET search_path;
           SELECT tidings.watch('plain', topic => 'truncated', name => 'truncated', operations => '{TRUNCATE}');
           SELECT tidings.guard('plain', topic => 'boards_{board_id}', condition => 'OLD.hits IS DISTINCT FROM NEW.hits', operations => '{UPDATE}');
           SELECT tidings.guard('"a=b"', topic => 'it''s {id}', name => 'Odd "guard"');
           SELECT tidings.watch('parts', topic => 'parts_{board_id}'), tidings.watch('parts_1', topic => 'own', name => 'own');
           SELECT tidings.watch('public."select"', topic => 'off', name => 'off'), tidings.watch('public."a b"', topic => 'always', name => 'always');
           CREATE TRIGGER "By hand; é" AFTER INSERT OR UPDATE OF title ON plain FOR EACH ROW EXECUTE FUNCTION tidings.capture('topic=hand_{id}', 'column=id');
           CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON plain DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tidings.capture('topic=late');
           ALTER TABLE public."select" DISABLE TRIGGER tidings_off; ALTER TABLE public."a b" ENABLE ALWAYS TRIGGER tidings_always;
           ALTER TABLE parts ENABLE REPLICA TRIGGER tidings_default; ALTER TABLE "Parts 2" ENABLE TRIGGER tidings_default;
           ALTER TABLE parts_1 ENABLE ALWAYS TRIGGER tidings_default; ALTER TABLE parts_1_5 DISABLE TRIGGER tidings_own;
           CREATE TEMPORARY TABLE passing (id int); SELECT tidings.watch('passing', topic => 'passing');
           SELECT tidings.allow('plain_{id}', 'SELECT FROM plain WHERE id = {id}::int');
           INSERT INTO tidings.rule VALUES ('broken_{id', 'SELECT {', '"$user", nowhere');"#,
    );
    for (n, query) in QUERIES.iter().enumerate() {
        session
            .with("SELECT tidings.allow('it''s \"a\" \\ rule ' || $1::text || ' {id}', $2)", &[&n.to_string(), query]);
        let query = query.replacen("SELECT", "SELECT 1 AS one", 1);
        session
            .with("SELECT tidings.snapshot('rows ' || $1::text || ' {id}', $2, 'év''ent')", &[&n.to_string(), &query]);
    }
}

/// Everything that makes a difference.
const STATE: &str = "
    SELECT t.tgrelid::regclass::text, t.tgname::text, t.tgenabled::text, pg_get_triggerdef(t.oid)
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE t.tgfoid IN (SELECT oid FROM pg_proc WHERE pronamespace = 'tidings'::regnamespace) AND c.relpersistence = 'p'
    UNION ALL SELECT 'a rule', topic, using_query, search_path FROM tidings.rule
    UNION ALL SELECT 'a query', topic, query, event || search_path FROM tidings.snapshot_query
    ORDER BY 1, 2";

fn state(session: &mut Session) -> Vec<[String; 4]> {
    let rows = session.all(STATE, &[]);
    rows.iter().map(|row| [row.get(0), row.get(1), row.get(2), row.get(3)]).collect()
}

fn export(session: &mut Session) -> Vec<String> {
    session.all("SELECT tidings.export()", &[]).iter().map(|row| row.get(0)).collect()
}

/// Removes what is exported.
fn remove_all(session: &mut Session) {
    session.run(
        "DO $$ DECLARE t record; BEGIN
           FOR t IN SELECT tgname, tgrelid::regclass AS relation FROM pg_trigger
                    WHERE tgfoid = 'tidings.capture()'::regprocedure AND tgparentid = 0 LOOP
             EXECUTE format('DROP TRIGGER %I ON %s', t.tgname, t.relation);
           END LOOP;
         END $$;
         DELETE FROM tidings.rule; DELETE FROM tidings.snapshot_query",
    );
    assert_eq!(state(session), [[""; 4]; 0]);
}

#[test]
fn what_is_exported_recreates_everything() {
    let db = shared().database();
    let mut session = db.session();
    tables(&mut session);
    watches(&mut session);
    let (before, statements) = (state(&mut session), export(&mut session));
    assert!(before.len() > 30 && statements.len() > 30, "{} {}", before.len(), statements.len());
    assert!(!statements.iter().any(|statement| statement.contains("passing")), "a temporary table");
    remove_all(&mut session);
    // One by one, as a framework runs them, in a session with settings of its own.
    let mut other = db.session();
    other
        .run("SET search_path = tools, pg_temp; SET quote_all_identifiers = on; SET standard_conforming_strings = off");
    for statement in &statements {
        other.run(statement);
    }
    assert_eq!(state(&mut session), before);
    // Again, where everything exists already, or exists with another definition.
    session.run(
        "SELECT tidings.watch('plain', topic => 'other', name => 'hot'); UPDATE tidings.rule SET using_query = 'SELECT'; ALTER TABLE parts ENABLE TRIGGER ALL",
    );
    session.run(&statements.join("\n"));
    assert_eq!(state(&mut session), before);
    // The text is the same for every caller, so that it changes in a repository only if something has changed.
    other.run("SET standard_conforming_strings = off");
    assert_eq!(export(&mut other), statements);
}

#[test]
fn what_is_exported_makes_the_same_events() {
    let db = shared().database();
    let mut session = db.session();
    tables(&mut session);
    watches(&mut session);
    let write = |session: &mut Session| {
        session.run("INSERT INTO plain VALUES (5, 7, 'x', 101), (6, 7, 'x', 1); UPDATE plain SET title = 'y'");
        session.run(
            "TRUNCATE plain; INSERT INTO parts VALUES (1, 5), (11, 5); INSERT INTO \"select\" VALUES (1); INSERT INTO \"a b\" VALUES (1)",
        );
    };
    let mut log = Log::from_here(&db);
    write(&mut session);
    let events = log.news();
    assert!(topics(&events).contains(&"hot_7") && topics(&events).contains(&"hand_5"), "{events:?}");
    let statements = export(&mut session);
    remove_all(&mut session);
    session.run(&statements.join("\n"));
    write(&mut session);
    let again = log.news();
    assert_eq!(kinds(&again), kinds(&events));
    assert!(again.iter().zip(&events).all(|(again, event)| again.payload == event.payload));
}

/// Runs psql with this as its standard input, and returns what it prints.
fn psql(db: &Database<'_>, args: &[&str], input: &str) -> String {
    let mut command = db.cluster().tool("psql");
    command.args(["-X", "-v", "ON_ERROR_STOP=1", "-d", db.name()]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start psql");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("write to psql");
    let output = child.wait_with_output().expect("wait for psql");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn a_file_of_psql_carries_it_to_another_database() {
    if !has_psql() {
        return;
    }
    let (from, to) = (shared().database(), shared().database());
    let (mut source, mut target) = (from.session(), to.session());
    tables(&mut source);
    tables(&mut target);
    watches(&mut source);
    let file = psql(&from, &["-At", "-c", "SELECT tidings.export()"], "");
    psql(&to, &["-q", "-1"], &file);
    assert_eq!(state(&mut target), state(&mut source));
}

#[test]
fn a_manager_exports_and_loads_and_nobody_else() {
    let db = shared().database();
    let (manager, app, proxy) = (db.role("manager"), db.role("app"), db.proxy_role());
    db.session().run(&format!(
        "SELECT tidings.grant_manager('{manager}'), tidings.grant_app('{app}'); GRANT CREATE ON SCHEMA public TO {manager}"
    ));
    let mut session = db.session_as(&manager);
    session.run(
        "CREATE TABLE mine (id int); SELECT tidings.watch('mine', topic => 'mine_{id}');
         ALTER TABLE mine ENABLE ALWAYS TRIGGER tidings_default;
         SELECT tidings.allow('mine_{id}', 'SELECT'), tidings.snapshot('mine_{id}', 'SELECT 1 AS one')",
    );
    let before = state(&mut session);
    let statements = export(&mut session);
    assert_eq!(statements.len(), 4, "{statements:?}");
    session.run("SELECT tidings.unwatch('mine'), tidings.disallow('mine_{id}'), tidings.unsnapshot('mine_{id}')");
    session.run(&statements.join("\n"));
    assert_eq!(state(&mut session), before);
    for role in [&app, &proxy] {
        db.session_as(role).forbidden("SELECT tidings.export()");
    }
}

#[test]
fn a_superuser_who_exports_and_loads_runs_nothing_that_a_manager_wrote() {
    let db = shared().database();
    let manager = db.role("manager");
    db.session().run(&format!(
        "SELECT tidings.grant_manager('{manager}'); GRANT CREATE ON SCHEMA public TO {manager};
         CREATE TABLE caught (who text); GRANT INSERT ON caught TO PUBLIC;
         CREATE FUNCTION catch() RETURNS void LANGUAGE sql AS 'INSERT INTO public.caught VALUES (current_user)'"
    ));
    // A function that says IMMUTABLE is called when a query is planned.
    let function = |body: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION public.trap() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN {body} RETURN true; END $$"
        )
    };
    let mut session = db.session_as(&manager);
    session.run(&function(""));
    session.run(
        "CREATE TABLE mine (id int); SELECT tidings.watch('mine', topic => 'mine', condition => 'public.trap()');
         SELECT tidings.allow('mine', 'SELECT WHERE public.trap()'), tidings.snapshot('mine', 'SELECT public.trap()')",
    );
    session.run(&function("PERFORM public.catch();"));
    let mut superuser = db.session();
    let statements = export(&mut superuser);
    superuser.run(&statements.join("\n"));
    superuser.run("DELETE FROM tidings.rule; DELETE FROM tidings.snapshot_query; DROP TRIGGER tidings_default ON mine");
    superuser.run(&statements.join("\n"));
    assert_eq!(superuser.one::<i64>("SELECT count(*) FROM caught"), 0);
    // The trap works.
    superuser.run("SELECT tidings.allow('mine', 'SELECT WHERE public.trap()')");
    assert_eq!(superuser.one::<String>("SELECT who FROM caught LIMIT 1"), "postgres");
}
