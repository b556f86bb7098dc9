//! Attacks by the code that a role of migrations writes, which runs when others read rows: queries for snapshots,
//! conditions of watches, policies and casts. It has the rights of who reads, but reads no events, acts for nobody else
//! and writes nothing.

use postgres::error::SqlState;
use tidings_tests::{shared, until};

use crate::access::Team;
use crate::managers::manager;
use crate::state::read_as;

/// Ways in which code of a manager comes into the reading of rows that a stream starts with, with `mine.spy()` for the
/// code, which returns a text. All are for the topic `mine`.
const WAYS_INTO_ROWS: &[(&str, &str)] = &[
    ("a query", "SELECT tidings.snapshot('mine', 'SELECT mine.spy() AS text')"),
    ("a condition", "SELECT tidings.watch('mine.items', topic => 'mine', condition => 'mine.spy() IS NOT NULL')"),
    (
        "a policy",
        "SELECT tidings.watch('mine.items', topic => 'mine'); ALTER TABLE mine.items ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON mine.items USING (mine.spy() IS NOT NULL)",
    ),
    (
        "a cast in the payload",
        "CREATE TYPE mine.mood AS ENUM ('good'); ALTER TABLE mine.items ADD COLUMN mood mine.mood DEFAULT 'good';
         CREATE FUNCTION mine.to_json(mine.mood) RETURNS json LANGUAGE sql AS 'SELECT to_json(mine.spy())';
         CREATE CAST (mine.mood AS json) WITH FUNCTION mine.to_json(mine.mood);
         SELECT tidings.watch('mine.items', topic => 'mine')",
    ),
];

#[test]
fn code_of_a_manager_reads_no_events_and_acts_for_nobody_with_the_rights_of_the_proxy() {
    let team = Team::new();
    let (manager, own) = (manager(&team.db), team.db.proxy_role());
    team.db.session().run(&format!(
        "INSERT INTO board_items VALUES (1, 5, 'a secret'); GRANT SELECT ON board_items TO {member};
         SELECT tidings.allow('oracle', 'SELECT')",
        member = team.member
    ));
    let claims = team.claims(1).to_string();
    let bodies = [
        "SELECT string_agg(payload, '') FROM tidings.changes('earliest')".to_owned(),
        "SELECT string_agg(payload, '') FROM tidings.scan('earliest', NULL, 100, 100000, true)".to_owned(),
        "SELECT string_agg(encode(data, 'escape'), '') FROM tidings.segments(tidings.locate('earliest'))".to_owned(),
        "SELECT encode(segments, 'escape') FROM tidings.page(tidings.locate('earliest'), '{boards_5}', 100000, 100000)"
            .to_owned(),
        "SELECT tidings.channel()".to_owned(),
        "SELECT tidings.listen()".to_owned(),
        format!("SELECT tidings.authorize('{claims}', '{{boards_5}}')::text"),
        format!("SELECT reason FROM tidings.check_subscription('{claims}', '{{oracle}}')"),
        format!("SELECT tidings.open_rows('{claims}', '{{boards_5}}')::text"),
    ];
    let mut proxy = team.db.session_as(&own);
    for (way, sql) in WAYS_INTO_ROWS {
        let mut session = team.db.session_as(&manager);
        session.run(&format!(
            "CREATE TABLE mine.items (id int); INSERT INTO mine.items VALUES (1); GRANT SELECT ON mine.items TO PUBLIC;
             CREATE FUNCTION mine.spy() RETURNS text LANGUAGE sql AS 'SELECT ''harmless'''; {sql}"
        ));
        let rows = read_as(&mut proxy, None, &["mine"]).expect("rows");
        assert_eq!(rows.len(), 1, "{way}");
        for body in &bodies {
            session.run(&format!(
                "CREATE OR REPLACE FUNCTION mine.spy() RETURNS text LANGUAGE plpgsql AS $spy$ BEGIN RETURN ({body}); END $spy$"
            ));
            match read_as(&mut proxy, None, &["mine"]) {
                Err(error) => {
                    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{way}: {body}: {error}")
                }
                // A cast that fails loses its value, and nothing else.
                Ok(rows) => assert!(rows[0].contains("\"mood\":\"good\""), "{way}: {body}: {rows:?}"),
            }
            // The session is as before: it may read events.
            proxy.run("ROLLBACK");
            assert!(proxy.one::<i64>("SELECT count(*) FROM tidings.changes('earliest')") > 0);
            assert!(proxy.one::<String>("SELECT tidings.channel()").starts_with("tidings_"));
        }
        session.run("DROP SCHEMA mine CASCADE; SELECT tidings.unsnapshot('mine'); DELETE FROM tidings.rule WHERE topic = 'mine'");
        team.db
            .session()
            .run(&format!("CREATE SCHEMA mine AUTHORIZATION {manager}; GRANT USAGE ON SCHEMA mine TO PUBLIC"));
    }
}

#[test]
fn code_of_a_manager_learns_no_more_in_a_parallel_worker() {
    let db = shared().database();
    let (manager, own) = (manager(&db), db.proxy_role());
    let channel: String = db.session().one("SELECT tidings.channel()");
    // Only workers ask for the name.
    db.session_as(&manager).run(
        "CREATE TABLE mine.many (id int) WITH (parallel_workers = 2);
         INSERT INTO mine.many SELECT generate_series(1, 1000);
         GRANT SELECT ON mine.many TO PUBLIC;
         CREATE FUNCTION mine.leak(int, leader int) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS
             'BEGIN RETURN CASE WHEN pg_backend_pid() = leader THEN ''leader'' ELSE tidings.channel() END; END';
         CREATE FUNCTION mine.spy() RETURNS SETOF text LANGUAGE plpgsql
             SET parallel_setup_cost = 0 SET parallel_tuple_cost = 0 SET min_parallel_table_scan_size = 0
             SET max_parallel_workers_per_gather = 2 SET parallel_leader_participation = off
         AS $$ DECLARE me int := pg_backend_pid(); BEGIN
             RETURN QUERY SELECT max(mine.leak(id, me)) FROM mine.many;
         END $$;
         SELECT tidings.snapshot('mine', 'SELECT * FROM mine.spy() AS text')",
    );
    let mut reader = db.session_as(&own);
    until("a worker has been refused", || match read_as(&mut reader, None, &["mine"]) {
        Err(error) => {
            assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{error}");
            true
        }
        Ok(rows) => {
            assert!(!rows.concat().contains(&channel), "{rows:?}");
            false
        }
    });
}

#[test]
fn code_of_a_manager_cannot_put_its_own_rows_into_the_other_cursors_of_a_reading() {
    let db = shared().database();
    let manager = manager(&db);
    let mut session = db.session_as(&manager);
    session.run(
        "CREATE FUNCTION mine.swap(columns text) RETURNS text LANGUAGE plpgsql AS $$
         DECLARE each text; cursor refcursor;
         BEGIN
             FOR each IN SELECT name FROM pg_cursors
                 UNION SELECT format('<unnamed portal %s>', n) FROM generate_series(1, 200) n LOOP
                 BEGIN
                     cursor := each; CLOSE cursor; OPEN cursor FOR EXECUTE 'SELECT ' || columns;
                 EXCEPTION WHEN OTHERS THEN NULL;  -- It does not exist, or is running.
                 END;
             END LOOP;
             RETURN 'swapped';
         END $$;
         SELECT tidings.snapshot('two', 'SELECT ''two'' AS text')",
    );
    // A number where a text is expected, more columns than are expected, and rows that fit.
    let many = (1..=1600).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    for columns in ["4096::bigint", &many, "'forged'"] {
        session.run(&format!("SELECT tidings.snapshot('one', $$ SELECT mine.swap($_${columns}$_$) AS text $$)"));
        let rows = session.all("SELECT payload FROM tidings.state('{one,two}')", &[]);
        let payloads: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(payloads, ["{\"text\":\"swapped\"}", "{\"text\":\"two\"}"], "{}", &columns[..8]);
    }
}

#[test]
fn code_of_a_manager_that_learns_a_cursors_name_while_it_is_opened_cannot_replace_it() {
    let db = shared().database();
    let manager = manager(&db);
    let mut session = db.session_as(&manager);
    // Postgres calls a stable function to find out which partitions to read, while it opens the cursor, which is in
    // pg_cursors then. The function keeps the name in that of a cursor of its own.
    session.run(
        "CREATE TABLE mine.parts (text text) PARTITION BY LIST (text);
         CREATE TABLE mine.part_1 PARTITION OF mine.parts FOR VALUES IN ('one');
         CREATE TABLE mine.part_2 PARTITION OF mine.parts FOR VALUES IN ('two');
         INSERT INTO mine.parts VALUES ('one'), ('two');
         CREATE FUNCTION mine.learn() RETURNS text LANGUAGE plpgsql STABLE AS $$
         DECLARE each text; cursor refcursor;
         BEGIN
             FOR each IN SELECT name FROM pg_cursors WHERE name LIKE 'tidings %' LOOP
                 cursor := 'learned ' || each; OPEN cursor FOR SELECT 1;
             END LOOP;
             RETURN 'two';
         END $$;
         CREATE FUNCTION mine.swap() RETURNS text LANGUAGE plpgsql AS $$
         DECLARE each text; cursor refcursor;
         BEGIN
             FOR each IN SELECT substr(name, 9) FROM pg_cursors WHERE name LIKE 'learned %' LOOP
                 cursor := each; CLOSE cursor; OPEN cursor FOR SELECT 'forged';
             END LOOP;
             RETURN 'swapped';
         END $$;
         SELECT tidings.snapshot('one', 'SELECT mine.swap() AS text');
         SELECT tidings.snapshot('two', 'SELECT text FROM mine.parts WHERE text = mine.learn()')",
    );
    let error = session.refused("SELECT payload FROM tidings.state('{one,two}')");
    assert_eq!(error.code(), &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "{error}");
}

/// A value of each type that a function of the proxy takes.
fn argument(type_name: &str, claims: &str) -> String {
    match type_name {
        "text" => "'earliest'".into(),
        "text[]" => "'{boards_5}'".into(),
        "integer" => "1000000".into(),
        "integer[]" => "'{1}'".into(),
        "bigint" => "1".into(),
        "boolean" => "true".into(),
        "interval" => "'0 s'".into(),
        "jsonb" => format!("'{claims}'"),
        "uuid" => "gen_random_uuid()".into(),
        other => panic!("a function of the proxy takes a {other}: give an example of it here"),
    }
}

#[test]
fn no_function_of_the_proxy_tells_code_of_a_manager_what_only_the_proxy_may_know() {
    let team = Team::new();
    let (manager, own) = (manager(&team.db), team.db.proxy_role());
    team.db.session().run(&format!(
        "INSERT INTO board_items VALUES (1, 5, 'a secret'); GRANT SELECT ON board_items TO {}",
        team.member
    ));
    let (claims, channel) = (team.claims(1).to_string(), team.db.session().one::<String>("SELECT tidings.channel()"));
    let mut session = team.db.session_as(&manager);
    session.run(
        "CREATE FUNCTION mine.spy() RETURNS text LANGUAGE sql AS 'SELECT NULL::text'; SELECT tidings.snapshot('mine', 'SELECT mine.spy() AS text')",
    );
    let functions = team.db.session().all(
        "SELECT f::oid::regproc::text, ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (t, n) ORDER BY n)
         FROM unnest(tidings.proxy_functions()) f JOIN pg_proc p ON p.oid = f",
        &[],
    );
    assert!(functions.len() > 10, "{functions:?}");
    let mut proxy = team.db.session_as(&own);
    for function in functions {
        let (name, types): (String, Vec<String>) = (function.get(0), function.get(1));
        let arguments: Vec<String> = types.iter().map(|type_name| argument(type_name, &claims)).collect();
        let call = format!("SELECT string_agg(f::text, ' ') FROM {name}({}) f", arguments.join(", "));
        session.run(&format!(
            "CREATE OR REPLACE FUNCTION mine.spy() RETURNS text LANGUAGE plpgsql AS $spy$ BEGIN RETURN ({call}); END $spy$"
        ));
        let result = read_as(&mut proxy, None, &["mine"]);
        proxy.run("ROLLBACK");
        match result {
            Err(error) => assert!(error.as_db_error().is_some(), "{call}: {error}"),
            Ok(rows) => {
                let text = rows.concat();
                let hex_of_a_secret = "6120736563726574";
                for told in ["a secret", hex_of_a_secret, &channel] {
                    assert!(!text.contains(told), "{call}: {text}");
                }
                assert!(!name.contains("check_subscription") && !name.contains("authorize"), "{call}: {text}");
            }
        }
    }
}

#[test]
fn code_of_a_manager_writes_nothing_with_the_rights_of_the_reader() {
    let db = shared().database();
    let (manager, app) = (manager(&db), db.role("app"));
    db.session().run(&format!(
        "SELECT tidings.grant_app('{app}'); CREATE TABLE accounts (balance int); INSERT INTO accounts VALUES (100);
         GRANT ALL ON accounts TO {app}; CREATE SEQUENCE numbers; GRANT ALL ON numbers TO {app}"
    ));
    for (way, sql) in WAYS_INTO_ROWS.iter().filter(|(way, _)| !way.contains("cast")) {
        let mut session = db.session_as(&manager);
        session.run(&format!(
            "CREATE TABLE mine.items (id int); INSERT INTO mine.items VALUES (1); GRANT SELECT ON mine.items TO PUBLIC;
             CREATE FUNCTION mine.spy() RETURNS text LANGUAGE sql AS 'SELECT ''harmless'''; {sql}"
        ));
        let mut his = db.session_as(&app);
        assert_eq!(his.all("SELECT * FROM tidings.state('{mine}')", &[]).len(), 1, "{way}");
        for body in [
            "UPDATE public.accounts SET balance = 0",
            "PERFORM nextval('public.numbers')",
            "PERFORM set_config('transaction_read_only', 'off', true); UPDATE public.accounts SET balance = 0",
            "EXECUTE 'GRANT ALL ON public.accounts TO PUBLIC'",
            "EXECUTE 'SET SESSION AUTHORIZATION DEFAULT'",
            "EXECUTE 'RESET ROLE'",
            "EXECUTE 'LISTEN x'",
            "PERFORM tidings.publish('everyone', '1')",
        ] {
            session.run(&format!(
                "CREATE OR REPLACE FUNCTION mine.spy() RETURNS text LANGUAGE plpgsql AS $spy$ BEGIN {body}; RETURN 'x'; END $spy$"
            ));
            let error = his.refused("SELECT * FROM tidings.state('{mine}')");
            let expected = ["25006", "42501", "25001"];
            assert!(expected.contains(&error.code().code()), "{way}: {body}: {error}");
        }
        // Afterwards the session may write as before.
        his.run("BEGIN; UPDATE public.accounts SET balance = 100; COMMIT");
        session.run("DROP SCHEMA mine CASCADE; SELECT tidings.unsnapshot('mine')");
        db.session().run(&format!("CREATE SCHEMA mine AUTHORIZATION {manager}; GRANT USAGE ON SCHEMA mine TO PUBLIC"));
    }
    assert_eq!(db.session().one::<i64>("SELECT count(*) FROM tidings.events WHERE topic = 'everyone'"), 0);
}
