//! Attacks by the code of a rule: the function of a policy, or an operator in a schema where others may create objects.
//! The attacker owns a table that a rule queries, and nothing else. Attacks from outside are in `attacks` and
//! `attacks_on_rules`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use postgres::NoTls;
use postgres::error::DbError;
use tidings_tests::{Session, SetAtTheEnd, until};

use crate::access::{Team, open, status};
use crate::attacks::still_serves;

/// Creates the role `mallory` and a table of hers with a policy that calls her function `spy()`. A rule queries the
/// table.
fn spied_on(team: &Team<'_>) -> String {
    let mallory = team.db.role("mallory");
    team.db.session().run(&format!(
        "CREATE SCHEMA art AUTHORIZATION {mallory}; GRANT USAGE ON SCHEMA art TO {member};
         SET ROLE {mallory};
         CREATE TABLE art.drawings (id bigint); INSERT INTO art.drawings VALUES (1); GRANT SELECT ON art.drawings TO {member};
         CREATE FUNCTION art.spy() RETURNS boolean LANGUAGE sql AS 'SELECT true';
         ALTER TABLE art.drawings ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON art.drawings USING (art.spy());
         RESET ROLE;
         SELECT tidings.allow('drawings_{{id}}', 'SELECT FROM art.drawings WHERE id = {{id}}::bigint')",
        member = team.member
    ));
    mallory
}

/// Sets the body of `spy()`, in PL/pgSQL. It allows access if it runs to its end.
fn spy(team: &Team<'_>, mallory: &str, body: &str, options: &str) {
    team.db.session_as(mallory).run(&format!(
        "CREATE OR REPLACE FUNCTION art.spy() RETURNS boolean LANGUAGE plpgsql {options} AS $spy$
         BEGIN {body} RETURN true; END $spy$"
    ));
}

const DRAWINGS: &str = "/events?topic=drawings_1";

#[test]
fn a_rules_code_does_not_become_the_proxys_role() {
    let team = Team::new();
    let mallory = spied_on(&team);
    let proxy = team.proxy(&[]);
    team.db.session().run("INSERT INTO board_items VALUES (1, 6, 'a secret of others')");
    assert_eq!(status(&proxy, DRAWINGS, &team.token(1)), 200, "nothing is tried yet");
    let read = "IF NOT EXISTS (SELECT FROM tidings.changes('earliest') WHERE payload LIKE '%a secret of others%') THEN
                    RAISE 'nothing is to be read here'; END IF;";
    let own = team.db.proxy_role();
    for change in [
        "PERFORM set_config('role', 'none', true);".to_owned(),
        "PERFORM set_config('role', 'none', false);".to_owned(),
        format!("PERFORM set_config('role', '{own}', true);"),
        "SET LOCAL ROLE NONE;".to_owned(),
        "RESET ROLE;".to_owned(),
        "RESET ALL;".to_owned(),
        "SET SESSION AUTHORIZATION DEFAULT;".to_owned(),
        format!("PERFORM set_config('session_authorization', '{own}', true);"),
    ] {
        spy(&team, &mallory, &format!("{change} {read}"), "");
        assert_eq!(status(&proxy, DRAWINGS, &team.token(1)), 403, "{change}");
        // Nor does it if the error is caught.
        spy(&team, &mallory, &format!("BEGIN {change} EXCEPTION WHEN OTHERS THEN NULL; END; {read}"), "");
        assert_eq!(status(&proxy, DRAWINGS, &team.token(1)), 403, "{change}");
    }
    spy(&team, &mallory, "RETURN true;", "");
    team.db.session().run(&format!(
        "GRANT {own} TO {mallory}; SET ROLE {mallory}; ALTER FUNCTION art.spy() SET role = 'none'; RESET ROLE; REVOKE {own} FROM {mallory}"
    ));
    assert_eq!(status(&proxy, DRAWINGS, &team.token(1)), 403, "by a setting of the function");
    still_serves(&team, &proxy);
}

/// What a rule does to the session, and a query that finds a row if the effect is still visible.
const TRACES: &[(&str, &str)] = &[
    ("SELECT pg_advisory_lock(4711)", "SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"),
    (
        "SELECT pg_advisory_lock_shared(1, 2)",
        "SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    (
        "SELECT pg_advisory_xact_lock(4711)",
        "SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    ("SELECT set_config('my.mark', 'x', false)", "SELECT WHERE current_setting('my.mark', true) = 'x'"),
    ("SELECT set_config('work_mem', '65kB', false)", "SELECT WHERE current_setting('work_mem') = '65kB'"),
    ("SELECT run('PREPARE mark AS SELECT 1')", "SELECT FROM pg_prepared_statements WHERE name = 'mark'"),
    ("SELECT run('DECLARE mark CURSOR WITH HOLD FOR SELECT 1')", "SELECT FROM pg_cursors WHERE name = 'mark'"),
    ("SELECT run('DECLARE mark CURSOR FOR SELECT 1')", "SELECT FROM pg_cursors WHERE name = 'mark'"),
    ("SELECT run('LISTEN mark')", "SELECT FROM pg_listening_channels()"),
    ("SELECT run('CREATE TEMP TABLE mark ()')", "SELECT FROM pg_class WHERE relname = 'mark'"),
    ("SELECT run('CREATE TABLE public.mark ()')", "SELECT FROM pg_class WHERE relname = 'mark'"),
    ("SELECT lo_create(4711)", "SELECT FROM pg_largeobject_metadata WHERE oid = 4711"),
    ("SELECT nextval('public.numbers')", "SELECT WHERE (SELECT is_called FROM public.numbers)"),
];

#[test]
fn what_a_rules_code_leaves_in_the_session_does_not_affect_other_topics_or_questions() {
    let team = Team::new();
    let member = &team.member;
    team.db.session().run(&format!(
        "CREATE SEQUENCE public.numbers; GRANT ALL ON SEQUENCE public.numbers TO {member}; GRANT CREATE ON SCHEMA public TO {member};
         CREATE FUNCTION run(statement text) RETURNS void LANGUAGE plpgsql
         AS 'BEGIN EXECUTE statement; EXCEPTION WHEN OTHERS THEN NULL; END'"
    ));
    for (act, seen) in TRACES {
        // Each with its own connections.
        let proxy = team.proxy(&["--max-topics", "8"]);
        team.db.session().with("SELECT tidings.allow('act', $1), tidings.allow('seen', $2)", &[act, seen]);
        for path in ["/events?topic=act&topic=seen", "/events?topic=seen&topic=act", "/events?topic=seen"] {
            for _ in 0..2 {
                assert_eq!(status(&proxy, path, &team.token(1)), 403, "{act}: {path}");
            }
        }
        still_serves(&team, &proxy);
    }
}

#[test]
fn a_rules_code_cannot_notify() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    let mut listener = team.db.session();
    listener.run("LISTEN mark; LISTEN probe");
    team.db.session().run("SELECT tidings.allow('act', 'SELECT pg_notify(''mark'', ''from a rule'')')");
    assert_eq!(status(&proxy, "/events?topic=act", &team.token(1)), 200);
    team.db.session().run("NOTIFY probe");
    let mut heard: Vec<String> = Vec::new();
    until("the probe is received", || {
        use postgres::fallible_iterator::FallibleIterator;
        listener.run("SELECT 1");
        let mut notifications = listener.client().notifications();
        let mut waiting = notifications.iter();
        while let Ok(Some(notification)) = waiting.next() {
            heard.push(notification.channel().to_owned());
        }
        heard.iter().any(|channel| channel == "probe")
    });
    assert_eq!(heard, ["probe"]);
}

/// How a rule's code can end its session: an error that is fatal, with a code that blames the server.
const ENDS_THE_SESSION: &[&str] = &[
    "PERFORM set_config('exit_on_error', 'on', true); RAISE 'x' USING ERRCODE = '57P01';",
    "PERFORM set_config('exit_on_error', 'on', true); RAISE 'x' USING ERRCODE = 'XX000';",
];

#[test]
fn a_rule_that_ends_its_session_does_not_prevent_reviews_of_other_streams() {
    for end in ENDS_THE_SESSION {
        let team = Team::new();
        let mallory = spied_on(&team);
        let proxy = team.proxy(&["--reauthorize", "200ms"]);
        let mut hers: Vec<_> = (0..8).map(|n| open(&proxy, "drawings_1", &team.token(100 + n))).collect();
        let mut his = open(&proxy, "boards_7", &team.token(2));
        let mut adas = open(&proxy, "boards_7", &team.token(1));
        spy(&team, &mallory, end, "");
        team.db.session().run("DELETE FROM members WHERE person = 2");
        assert_eq!(his.rest(), [], "{end}");
        for stream in &mut hers {
            assert_eq!(stream.rest(), [], "{end}");
        }
        team.db.session().run("INSERT INTO board_items VALUES (1, 7, 'still hers')");
        assert_eq!(crate::titles(&[adas.frame()]), ["still hers"]);
    }
}

#[test]
fn a_rule_that_ends_its_session_affects_only_its_own_clients() {
    let team = Team::new();
    let mallory = spied_on(&team);
    let proxy = team.proxy(&[]);
    for end in ENDS_THE_SESSION {
        spy(&team, &mallory, end, "");
        std::thread::scope(|scope| {
            for n in 0..6 {
                let (proxy, team) = (&proxy, &team);
                scope.spawn(move || {
                    let drawings = format!("{DRAWINGS}&topic=drawings_1{n}");
                    assert!([403, 503].contains(&status(proxy, &drawings, &team.token(100 + n))));
                });
            }
            for _ in 0..6 {
                still_serves(&team, &proxy);
            }
        });
    }
}

#[test]
fn another_roles_operator_does_not_replace_one_in_a_rule() {
    let team = Team::new();
    let mallory = team.db.role("mallory");
    team.db.session().run(&format!(
        "CREATE TABLE public.rooms (name varchar(20)); INSERT INTO public.rooms VALUES ('hall'); GRANT SELECT ON public.rooms TO {};
         GRANT CREATE ON SCHEMA public TO {mallory};
         SELECT tidings.allow('rooms_{{name}}', 'SELECT FROM public.rooms WHERE name = {{name}}')",
        team.member
    ));
    let proxy = team.proxy(&[]);
    let rooms = |name: &str| status(&proxy, &format!("/events?topic=rooms_{name}"), &team.token(1));
    assert_eq!((rooms("hall"), rooms("vault")), (200, 403));
    // It matches better than any of Postgres's own operators.
    team.db.session_as(&mallory).run(
        "CREATE FUNCTION public.yes(varchar, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
         CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = text, FUNCTION = public.yes)",
    );
    assert_eq!((rooms("hall"), rooms("vault")), (200, 403));
}

/// A session that records its notices.
fn listened_to(team: &Team<'_>, role: &str) -> (Session, Arc<Mutex<Vec<DbError>>>) {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let mut config = team.db.cluster().config(team.db.name(), role);
    let kept = notices.clone();
    config.notice_callback(move |notice| kept.lock().expect("the notices").push(notice));
    (Session::new(config.connect(NoTls).expect("connect")), notices)
}

#[test]
fn a_rule_whose_names_can_be_shadowed_gives_a_warning() {
    let team = Team::new();
    let (maker, mallory) = (team.db.role("maker"), team.db.role("mallory"));
    team.db.session().run(&format!(
        "CREATE SCHEMA open; CREATE SCHEMA closed; CREATE TABLE closed.rooms (id bigint); GRANT USAGE ON SCHEMA open, closed TO {maker};
         GRANT USAGE, CREATE ON SCHEMA open TO {mallory}; GRANT SELECT ON closed.rooms TO {maker};
         SELECT tidings.grant_manager('{maker}')"
    ));
    let path = |team: &Team<'_>| {
        team.db.session().one::<String>("SELECT search_path FROM tidings.rule WHERE topic = 'rooms_{id}'")
    };
    let (mut session, notices) = listened_to(&team, &maker);
    let mut sent = |path: &str, table: &str| {
        session.run(&format!(
            "SET search_path = {path}; SELECT tidings.allow('rooms_{{id}}', 'SELECT FROM {table} WHERE id = {{id}}::bigint')"
        ));
        std::mem::take(&mut *notices.lock().expect("the notices"))
    };
    // With its schema given, nothing can be shadowed any more.
    assert_eq!(sent("open, closed", "closed.rooms").len(), 0);
    assert_eq!(path(&team), "pg_catalog, pg_temp");
    let notices = sent("open, \"$user\", closed", "rooms");
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].message().contains("open") && !notices[0].message().contains("closed"), "{notices:?}");
    assert!(notices[0].hint().is_some_and(|hint| hint.contains("schema")), "{notices:?}");
    assert_eq!(path(&team), "open, closed, pg_temp");
    // If nobody else may create objects, there is no warning. Rights of PUBLIC count.
    assert_eq!(sent("closed", "rooms").len(), 0);
    team.db.session().run("GRANT CREATE ON SCHEMA closed TO PUBLIC");
    assert_eq!(sent("closed", "rooms").len(), 1);
}

#[test]
fn a_rule_that_reads_the_claims_gives_no_warning() {
    let team = Team::new();
    team.db.session().run(
        "INSERT INTO members VALUES (9, 9);
         SELECT tidings.allow('member', 'SELECT FROM members
             WHERE board_id = 5 AND person = (current_setting(''request.jwt.claims'')::json ->> ''sub'')::bigint')",
    );
    let proxy = team.proxy(&[]);
    assert_eq!(status(&proxy, "/events?topic=member", &team.token(1)), 200);
    assert_eq!(status(&proxy, "/events?topic=member", &team.token(2)), 403);
    // No trace of it stays in the session that created the rule.
    let mut session = team.db.session();
    session.run("BEGIN; SET LOCAL request.jwt.claims = 'mine'; SELECT tidings.allow('x', 'SELECT')");
    assert_eq!(session.one::<String>("SELECT current_setting('request.jwt.claims')"), "mine");
}

#[test]
fn a_role_that_is_dropped_during_a_check_admits_nobody() {
    const ROUNDS: usize = 1500;
    let team = Team::new();
    let (gate, racer) = (team.db.role("gate"), format!("{}_racer", team.db.name()));
    team.db
        .session()
        .run(&format!("SELECT tidings.grant_gate('{gate}'), tidings.allow('never', 'SELECT WHERE false')"));
    let is_over = AtomicBool::new(false);
    let let_in = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut session = team.db.session_as(&gate);
                    let claims = format!(r#"{{"role": "{racer}"}}"#);
                    let mut let_in = 0;
                    while !is_over.load(Relaxed) {
                        // An error that the role does not exist any more is fine too.
                        let asked =
                            "SELECT count(*) FROM tidings.check_subscription($1::text::jsonb, '{never}') WHERE allowed";
                        let answer = session.client().query_one(asked, &[&claims]);
                        let_in += answer.map_or(0, |row| row.get::<_, i64>(0));
                    }
                    let_in
                })
            })
            .collect();
        let over = SetAtTheEnd(&is_over);
        let mut session = team.db.session();
        for _ in 0..ROUNDS {
            session.run(&format!("CREATE ROLE {racer}"));
            session.run(&format!("GRANT {racer} TO {gate}"));
            session.run(&format!("DROP ROLE {racer}"));
        }
        drop(over);
        asking.into_iter().map(|asking| asking.join().expect("one that asks")).sum::<i64>()
    });
    assert_eq!(let_in, 0);
}

#[test]
fn a_broken_rule_written_by_hand_does_not_affect_other_topics() {
    let team = Team::new();
    let maker = team.db.role("maker");
    team.db.session().run(&format!("SELECT tidings.grant_manager('{maker}')"));
    let mut his = team.db.session_as(&maker);
    for broken in [
        "'notes_{id', 'SELECT'",
        "'}', 'SELECT'",
        "'', 'SELECT'",
        "'boards_{id}{x}', 'SELECT {'",
        "'{x}', 'SELECT {'",
        "'boards_{x}', 'SELECT {y}'",
    ] {
        his.run(&format!("INSERT INTO tidings.rule VALUES ({broken}, 'pg_catalog')"));
    }
    let proxy = team.proxy(&[]);
    still_serves(&team, &proxy);
}

#[test]
fn a_missing_argument_does_not_allow_anything() {
    let team = Team::new();
    let mut session = team.db.session();
    let role = format!("'{}'::regrole", team.member);
    let right = [&*role, "'{}'", "'SELECT'", "'{}'", "'pg_catalog'"];
    assert_eq!(session.one::<Option<String>>(&format!("SELECT tidings.ask_rule({})", right.join(", "))), None);
    for n in 0..right.len() {
        let mut arguments = right;
        arguments[n] = "NULL";
        let asked = format!("SELECT tidings.ask_rule({})", arguments.join(", "));
        assert!(session.client().query(&asked, &[]).is_err(), "{asked}");
    }
}
