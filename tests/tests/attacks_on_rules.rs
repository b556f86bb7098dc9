//! What an attacker may try with topics and roles, and what rules must not be able to do. Attempts with tokens are in
//! `attacks`.

use std::collections::BTreeSet;

use serde_json::json;
use tidings_tests::http::escape;

use crate::access::{MARK, Team, ask, open, sign, status};
use crate::all_until_now;
use crate::attacks::{BOARD, bearer, still_serves};

#[test]
fn a_token_cannot_name_a_role_that_is_not_for_subscribers() {
    let team = Team::new();
    let proxy = team.proxy(&["--anon-role", &team.guest]);
    let (own, stranger) = (team.db.proxy_role(), team.db.role("stranger"));
    // A proxy that is a member of such a role by mistake admits nobody at all: see `login_role`.
    let root = team.db.role("root");
    team.db.session().run(&format!(
        "ALTER ROLE {root} SUPERUSER; GRANT SELECT ON boards TO {own}, {stranger}; ALTER TABLE boards DISABLE ROW LEVEL SECURITY"
    ));
    let upper = team.member.to_uppercase();
    let quoted = format!("\"{}\"", team.member);
    let spaced = format!("{} ", team.member);
    let long = format!("{}{}", team.member, "x".repeat(64));
    for role in [
        "postgres",
        "pg_read_all_data",
        "pg_write_all_data",
        "pg_execute_server_program",
        "pg_signal_backend",
        "none",
        "NONE",
        "public",
        "current_user",
        "session_user",
        "default",
        "",
        &own,
        &root,
        &stranger,
        &upper,
        &quoted,
        &spaced,
        &long,
    ] {
        let claims = json!({"role": role, "sub": "1"});
        assert_eq!(status(&proxy, BOARD, &sign(&claims)), 403, "{role}");
    }
    for role in [json!(null), json!(1), json!([team.member]), json!({"role": team.member}), json!(true)] {
        assert_eq!(status(&proxy, BOARD, &sign(&json!({"role": role, "sub": "1"}))), 403, "{role}");
    }
    assert_eq!(status(&proxy, BOARD, &team.token(1)), 200);
    // Nor is the anonymous role a way in.
    let proxy = team.proxy(&["--anon-role", "postgres"]);
    assert_eq!(ask(&proxy, BOARD, &[]).0.status, 403);
    assert_eq!(status(&proxy, BOARD, &sign(&json!({"sub": "1"}))), 403);
}

#[test]
fn what_a_rule_does_to_the_session_is_undone_after_it() {
    let team = Team::new();
    let proxy = team.proxy(&["--max-topics", "8"]);
    let ada = team.claims(1).to_string();
    for (topic, query) in [
        ("role", "SELECT set_config('role', 'none', false)".to_owned()),
        (
            "claims",
            format!(
                "SELECT set_config('request.jwt.claims', $q${}$q$, false)",
                ada.replace('{', "{{").replace('}', "}}")
            ),
        ),
        ("path", "SELECT set_config('search_path', 'pg_temp', false)".into()),
        ("write", "SELECT set_config('transaction_read_only', 'off', false)".into()),
        ("time", "SELECT set_config('statement_timeout', '0', false)".into()),
        ("security", "SELECT set_config('row_security', 'off', false)".into()),
        ("fails", "SELECT 1 / (SELECT 0 FROM (SELECT set_config('role', 'none', false)) s)".into()),
    ] {
        team.db.session().with("SELECT tidings.allow($1, $2)", &[&topic, &query]);
        // For the same question, and for the next one on the same connection.
        for path in [format!("/events?topic={topic}&topic=boards_5"), format!("/events?topic=boards_5&topic={topic}")] {
            assert_eq!(status(&proxy, &path, &team.token(2)), 403, "{path}");
        }
        for _ in 0..4 {
            still_serves(&team, &proxy);
        }
    }
    // A rule can read but not write.
    team.db.session().run(&format!(
        "CREATE TABLE seen (); GRANT INSERT, SELECT ON seen TO {};
         CREATE FUNCTION note() RETURNS boolean LANGUAGE sql AS 'INSERT INTO seen DEFAULT VALUES RETURNING true';
         SELECT tidings.allow('noted', 'SELECT note()')",
        team.member
    ));
    assert_eq!(status(&proxy, "/events?topic=noted", &team.token(1)), 403);
    // A rule that raises the error that the check itself raises has failed, like with any other error.
    team.db.session().run(
        "CREATE FUNCTION yes() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'yes' USING ERRCODE = 'TI010'; END $$;
         SELECT tidings.allow('yes', 'SELECT yes()')",
    );
    assert_eq!(status(&proxy, "/events?topic=yes", &team.token(1)), 403);
    // A rule that takes too long denies access.
    team.db.session().run("SELECT tidings.allow('slow', 'SELECT pg_sleep(600)')");
    assert_eq!(status(&proxy, "/events?topic=slow", &team.token(1)), 403);
    still_serves(&team, &proxy);
}

#[test]
fn similar_topics_are_different_topics() {
    let team = Team::new();
    let proxy = team.proxy(&["--route", "/api/boards/{id}/events=boards_{id}"]);
    let ben = team.token(2);
    for topic in [
        "boards_５",
        "bоards_5",
        "BOARDS_5",
        "boards_5\u{200B}",
        "boards_\u{660}5",
        "boards_5 OR true",
        "boards_5'::text OR '1'='1",
        "boards_5);SELECT pg_sleep(9)--",
        "boards_{id}",
        "boards_$1",
        "boards_5/",
        "boards_6/../boards_5",
        "boards_05",
        "boards_ 5",
        "boards_5 ",
        "boards_+5",
        "boards_0x5",
        "boards_5.0",
        "boards_NaN",
        "boards_99999999999999999999",
        "boards_abc",
        "boards_",
        "boards_*",
        "*",
        "tidings",
    ] {
        let path = format!("/events?topic={}", escape(topic));
        assert_eq!(status(&proxy, &path, &ben), 403, "{topic}");
        // It is refused also together with a topic that is his own.
        assert_eq!(status(&proxy, &format!("{path}&topic=boards_6"), &ben), 403, "{topic}");
    }
    for topic in [
        "boards_5%00",
        "%00boards_6",
        "boards_%C0%B5",
        "boards_%E0%80%B5",
        "boards_%ED%A0%80",
        "boards_6%0A",
        "boards_6%7F",
        "",
    ] {
        assert_eq!(status(&proxy, &format!("/events?topic={topic}"), &ben), 400, "{topic}");
    }
    for path in [
        "/api/boards/5%2F../events",
        "/api/boards/6%2F..%2F5/events",
        "/api/boards/6/../5/events",
        "/api/boards/%35/events",
        "/api/boards/5%00/events",
        "/api/boards/%C0%B5/events",
        "/api/boards/6/events?topic=boards_5",
        "/api/boards//events",
        "//events?topic=boards_5",
        "/events/?topic=boards_5",
        "/events%3Ftopic=boards_5",
        "/EVENTS?topic=boards_5",
    ] {
        let answer = status(&proxy, path, &ben);
        assert!([400, 403, 404].contains(&answer), "{path}: {answer}");
    }
    still_serves(&team, &proxy);
}

#[test]
fn a_forbidden_board_looks_like_one_that_does_not_exist() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    let ben = bearer(&team.token(2));
    let mut bodies = BTreeSet::new();
    // A board that is not his, one that does not exist, an id that is not a number, and a topic without a rule.
    for topic in ["boards_5", "boards_999", "boards_abc", "secrets_1"] {
        let (head, body) = ask(&proxy, &format!("/events?topic={topic}"), &[("Authorization", &ben)]);
        let names = ["content-type", "cache-control", "content-length", "retry-after", "www-authenticate"];
        let headers = names.map(|name| match (name, head.header(name)) {
            // The topic is in the body.
            ("content-length", Some(length)) => {
                Some((length.parse::<usize>().expect("a length") - topic.len()).to_string())
            }
            (_, value) => value.map(str::to_owned),
        });
        bodies.insert((head.status, headers, body.replace(topic, "TOPIC")));
    }
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert!(bodies.iter().all(|(status, ..)| *status == 403));
    // The reason is in the log.
    let log = proxy.log();
    for reason in ["its rule finds no row", "invalid input syntax for type bigint", "no rule matches"] {
        assert!(log.contains(reason), "{reason}: {log}");
    }
}

#[test]
fn a_hole_of_a_template_is_only_a_value() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    team.db.session().run(
        "SELECT tidings.allow('named_{name}', 'SELECT WHERE {name} = ''mine'''),
                tidings.allow('two_{a}_{b}', 'SELECT WHERE {a} = ''x'' AND {b} = ''y''')",
    );
    let token = team.token(1);
    let answer = |topic: &str| status(&proxy, &format!("/events?topic={}", escape(topic)), &token);
    assert_eq!((answer("named_mine"), answer("two_x_y")), (200, 200));
    for topic in [
        "named_' OR '1'='1",
        "named_mine' --",
        "named_$1",
        "named_{name}",
        "named_mine ",
        "named_MINE",
        "named_mine_",
        "named_mıne",
        "named_m%69ne",
        "two_x_y_y",
        "two_x_x_y",
        "two_xy",
        "two__y",
        "two_x_y' OR '1'='1",
        "two_%_%",
    ] {
        assert_eq!(answer(topic), 403, "{topic}");
    }
}

#[test]
fn no_values_make_the_topic_of_other_values() {
    let team = Team::new();
    let mut session = team.db.session();
    session.run(
        "CREATE TABLE chat (tenant text, room text, says text);
         SELECT tidings.watch('chat', topic => 'chat_{tenant}_{room}');
         SELECT tidings.allow('chat_{tenant}_{room}',
             'SELECT WHERE {tenant} = current_setting(''request.jwt.claims'', true)::json ->> ''email''')",
    );
    // A member of the tenant `mark-0f3a9c` tries to read room `board` of the tenant `mark-0f3a9c_corp`.
    let proxy = team.proxy(&["--route", "/chat/{tenant}/{room}=chat_{tenant}_{room}"]);
    let topic = format!("chat_{MARK}_corp_board");
    let mut sse = open(&proxy, &topic, &team.token(1));
    session.run(&format!("INSERT INTO chat VALUES ('{MARK}_corp', 'board', 'not for you')"));
    session.run(&format!("INSERT INTO chat VALUES ('{MARK}', 'corp_board', 'for you')"));
    let said: Vec<_> =
        all_until_now(&team.db, &topic, &mut sse).iter().map(|frame| frame.json()["record"]["says"].clone()).collect();
    assert_eq!(said, ["for you"]);
    assert_eq!(status(&proxy, &format!("/chat/{MARK}_corp/board"), &team.token(1)), 400);
    // If the end of a value can't be recognized, there is no rule.
    let long = "{x}-".repeat(30_000);
    for refused in ["chat_{tenant}{room}", "{a}{b}-{c}", &long] {
        let error = session.refused(&format!("SELECT tidings.allow('{refused}', 'SELECT')"));
        assert_eq!(error.code().code(), "22023", "{error}");
    }
}
