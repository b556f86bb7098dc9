//! Who may subscribe: tokens, rules, and streams that end when access does. Sets of keys are in `key_set`, the
//! login role is in `login_role`, attacks are in `attacks` and `attacks_on_rules`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tidings_tests::http::{self, Head};
use tidings_tests::process::{Signal, fresh_path};
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Frame, Item, Proxy, Sse, shared, until};

use crate::{all_until_now, has_psql, titles};

/// The secret of tokens, without the newline that its file ends with.
pub const SECRET: &str = "a secret for tests that has more than 32 bytes";

/// A text in every good token that no log may contain.
pub const MARK: &str = "mark-0f3a9c";

/// A database with boards and their members. Row-level security decides who sees a board: person 1 boards 5 and 7,
/// person 2 boards 6 and 7. Everyone sees board 8.
pub struct Team<'c> {
    pub db: Database<'c>,
    /// The role of people who have signed in.
    pub member: String,
    /// The role of people who have not.
    pub guest: String,
    /// The file with the secret.
    pub secret: PathBuf,
}

impl Team<'static> {
    pub fn new() -> Self {
        Self::within(shared())
    }
}

impl<'c> Team<'c> {
    pub fn within(cluster: &'c Cluster) -> Self {
        Self::of(cluster.database())
    }

    /// The same in a database that has the extension.
    pub fn of(db: Database<'c>) -> Self {
        let (member, guest, proxy) = (db.role("member"), db.role("guest"), db.proxy_role());
        let person = "(nullif(current_setting('request.jwt.claims', true), '')::json ->> 'sub')::bigint";
        db.session().run(&format!(
            "CREATE TABLE boards (id bigint PRIMARY KEY, public boolean DEFAULT false);
             CREATE TABLE members (board_id bigint, person bigint);
             CREATE TABLE board_items (id bigint PRIMARY KEY, board_id bigint, title text);
             INSERT INTO boards VALUES (5, false), (6, false), (7, false), (8, true);
             INSERT INTO members VALUES (5, 1), (7, 1), (6, 2), (7, 2);
             ALTER TABLE boards ENABLE ROW LEVEL SECURITY;
             GRANT SELECT ON boards, members TO {member}; GRANT SELECT ON boards TO {guest};
             CREATE POLICY members_see ON boards FOR SELECT TO {member}
                 USING (public OR EXISTS (SELECT FROM members m WHERE m.board_id = boards.id AND m.person = {person}));
             CREATE POLICY guests_see ON boards FOR SELECT TO {guest} USING (public);
             SELECT tidings.watch('board_items', topic => 'boards_{{board_id}}');
             SELECT tidings.allow('boards_{{id}}', 'SELECT FROM boards WHERE id = {{id}}::bigint');
             ALTER ROLE {proxy} NOINHERIT; GRANT {member}, {guest} TO {proxy}"
        ));
        let secret = fresh_path("secret");
        fs::write(&secret, format!("{SECRET}\n")).expect("write the secret");
        Self { db, member, guest, secret }
    }

    /// Starts a proxy that uses the secret.
    pub fn proxy(&self, args: &[&str]) -> Proxy {
        let secret = self.secret.to_str().expect("a path of text");
        Proxy::start_verbose(&self.proxy_url(), &[&["--jwt-secret-file", secret], args].concat())
    }

    /// The database's URL for a proxy.
    pub fn proxy_url(&self) -> String {
        self.db.cluster().url(self.db.name(), &self.db.proxy_role())
    }

    /// A role that checks access if it is not the role that the proxy listens with. The latter then can't become the
    /// subscribers' roles.
    pub fn gate_role(&self) -> String {
        let (gate, proxy) = (self.db.role("gate"), self.db.proxy_role());
        self.db.session().run(&format!(
            "ALTER ROLE {gate} NOINHERIT; SELECT tidings.grant_gate('{gate}');
             REVOKE {member}, {guest} FROM {proxy}; GRANT {member}, {guest} TO {gate}",
            member = self.member,
            guest = self.guest
        ));
        gate
    }

    /// Starts a proxy with two logins, as in [`Self::gate_role`].
    pub fn proxy_with_gate(&self, args: &[&str]) -> Proxy {
        let url = self.db.cluster().url(self.db.name(), &format!("{}_gate", self.db.name()));
        self.proxy(&[&["--gate-url", &url], args].concat())
    }

    /// The claims of a person.
    pub fn claims(&self, person: i64) -> Value {
        json!({"role": self.member, "sub": person.to_string(), "email": MARK})
    }

    /// A person's token, which is valid for an hour.
    pub fn token(&self, person: i64) -> String {
        self.token_until(person, now() + 3600.0)
    }

    fn token_until(&self, person: i64, exp: f64) -> String {
        let mut claims = self.claims(person);
        claims["exp"] = json!(exp);
        sign(&claims)
    }
}

/// A token of these claims, signed with the secret.
pub fn sign(claims: &Value) -> String {
    sign_with(claims, SECRET)
}

/// A token signed with this secret.
pub fn sign_with(claims: &Value, secret: &str) -> String {
    encode(&Header::default(), claims, &EncodingKey::from_secret(secret.as_bytes())).expect("sign")
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is right").as_secs_f64()
}

/// The response to a request; the body is empty if it is a stream.
#[track_caller]
pub fn ask(proxy: &Proxy, path: &str, headers: &[(&str, &str)]) -> (Head, String) {
    let mut response = http::open(proxy.address(), path, headers).expect("ask the proxy");
    let mut body = Vec::new();
    if response.head.status != 200 {
        while response.read(&mut body).expect("read the answer") {}
    }
    (response.head, String::from_utf8(body).expect("an answer of text"))
}

/// The status of a stream with a token.
#[track_caller]
pub fn status(proxy: &Proxy, path: &str, token: &str) -> u16 {
    ask(proxy, path, &[("Authorization", &format!("Bearer {token}"))]).0.status
}

/// The log contains no part of a token, and no claim that came only from a token.
#[track_caller]
pub fn silent_about(proxy: &Proxy, tokens: &[&str]) {
    let log = proxy.log();
    assert!(log.contains("DEBUG"), "a log that tells all: {log}");
    assert!(!log.contains(MARK), "a claim in the log:\n{log}");
    for part in tokens.iter().flat_map(|token| token.split('.')).filter(|part| part.len() > 8) {
        assert!(!log.contains(part), "{part} in the log:\n{log}");
    }
}

/// Opens a stream with a token.
#[track_caller]
pub fn open(proxy: &Proxy, topic: &str, token: &str) -> Sse {
    proxy.open(&Request::live(&[topic]).by(token))
}

#[test]
fn only_those_who_may_see_a_board_get_its_stream() {
    let team = Team::new();
    let proxy = team.proxy(&["--route", "/api/boards/{id}/events=boards_{id}"]);
    let (ada, ben) = (team.token(1), team.token(2));
    let mut stream = open(&proxy, "boards_5", &ada);
    team.db.session().run("INSERT INTO board_items VALUES (1, 5, 'a'), (2, 6, 'not hers')");
    assert_eq!(titles(&all_until_now(&team.db, "boards_5", &mut stream)), ["a"]);
    for path in ["/events?topic=boards_5", "/api/boards/5/events", "/api/boards/7/events?topic=boards_5"] {
        assert_eq!(status(&proxy, path, &ada), 200, "{path}");
        assert_eq!(status(&proxy, path, &ben), 403, "{path}");
    }
    // One forbidden topic is enough for a refusal, and only that topic is named.
    let (head, body) =
        ask(&proxy, "/events?topic=boards_7&topic=boards_5", &[("Authorization", &format!("Bearer {ben}"))]);
    assert_eq!((head.status, head.header("content-type")), (403, Some("application/problem+json")));
    let problem: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(problem["detail"], "not allowed: boards_5");
    silent_about(&proxy, &[&ada, &ben]);
    // At the debug level, the log says who has which stream.
    let who = format!("role \\\"{}\\\", sub \\\"1\\\"", team.member);
    assert!(proxy.log().contains(&who) && proxy.log().contains("topics=[\"boards_5\"]"), "{who}: {}", proxy.log());
}

#[test]
fn a_client_without_a_token_has_the_anonymous_role_or_is_refused() {
    let team = Team::new();
    let strict = team.proxy(&[]);
    let (head, body) = ask(&strict, "/events?topic=boards_8", &[]);
    assert_eq!((head.status, head.header("www-authenticate")), (401, Some("Bearer")));
    assert!(body.contains("a token is needed"), "{body}");
    let proxy = team.proxy(&["--anon-role", &team.guest]);
    assert_eq!(ask(&proxy, "/events?topic=boards_8", &[]).0.status, 200);
    assert_eq!(ask(&proxy, "/events?topic=boards_5", &[]).0.status, 403);
    // A token that names no role has the anonymous role; a token that names a role has that role.
    let mut claims = team.claims(1);
    assert_eq!(status(&proxy, "/events?topic=boards_5", &sign(&claims)), 200);
    claims.as_object_mut().expect("an object").remove("role");
    assert_eq!(status(&proxy, "/events?topic=boards_5", &sign(&claims)), 403);
    assert_eq!(status(&proxy, "/events?topic=boards_8", &sign(&claims)), 200);
    assert_eq!(status(&strict, "/events?topic=boards_8", &sign(&claims)), 403);
}

#[test]
fn a_bad_token_never_falls_back_to_anonymous_nor_to_another_place() {
    let team = Team::new();
    let proxy = team.proxy(&["--anon-role", &team.guest, "--token-cookie", "sid"]);
    let (good, expired) = (team.token(1), team.token_until(1, now() - 60.0));
    let mut early = team.claims(1);
    early["nbf"] = json!(now() + 60.0);
    let early = sign(&early);
    let forged = encode(&Header::default(), &team.claims(1), &EncodingKey::from_secret(&[b'x'; 40])).expect("sign");
    for bad in ["", "x", "a.b.c", &expired, &early, &forged] {
        let bearer = format!("Bearer {bad}");
        let cookie = format!("sid={bad}");
        for headers in [
            &[("Authorization", &*bearer)][..],
            &[("Cookie", &*cookie)],
            &[("Authorization", &*bearer), ("Cookie", &*format!("sid={good}"))],
        ] {
            let (head, body) = ask(&proxy, "/events?topic=boards_8", headers);
            assert_eq!(head.status, 401, "{headers:?}");
            assert!(body.contains("the token is not valid"), "which says no more than that: {body}");
        }
        assert_eq!(ask(&proxy, &format!("/events?topic=boards_8&token={bad}"), &[]).0.status, 401, "{bad}");
    }
    let basic = ask(&proxy, "/events?topic=boards_8", &[("Authorization", "Basic YTpi")]);
    assert_eq!(basic.0.status, 401, "another scheme");
    silent_about(&proxy, &[&good, &expired, &early, &forged]);
}

#[test]
fn an_eventsource_with_an_expired_token_gets_an_event_and_comes_back_with_its_last_id() {
    let team = Team::new();
    let proxy = team.proxy(&["--retry", "100ms"]);
    let mut stream = open(&proxy, "boards_5", &team.token(1));
    team.db.session().run("INSERT INTO board_items VALUES (1, 5, 'before')");
    assert_eq!(titles(&[stream.frame()]), ["before"]);
    let again = Request { last_event_id: stream.last_id().map(str::to_owned), ..Request::live(&["boards_5"]) };
    drop(stream);
    team.db.session().run("INSERT INTO board_items VALUES (2, 5, 'meanwhile')");
    let mut ended = proxy.open(&again.clone().by(&team.token_until(1, now() - 60.0)));
    let (retry, told) = (ended.item(), ended.item());
    assert!(matches!(retry, Some(Item::Retry(750..2250))), "long, and different for each: {retry:?}");
    let expired = Frame { id: None, event: "unauthorized".into(), data: r#"{"reason":"expired"}"#.into() };
    assert_eq!((told, ended.item()), (Some(Item::Frame(expired)), None));
    assert_eq!(proxy.metrics()["tidings_auth_total{result=\"expired_token\"}"], 1.0);
    let mut renewed = proxy.open(&again.clone().by(&team.token(1)));
    assert_eq!(titles(&all_until_now(&team.db, "boards_5", &mut renewed)), ["meanwhile"]);
    // An expired token with a wrong signature is no better than any other bad one.
    let mut claims = team.claims(1);
    claims["exp"] = json!(now() - 60.0);
    let forged = encode(&Header::default(), &claims, &EncodingKey::from_secret(&[b'x'; 40])).expect("sign");
    assert!(Sse::connect(proxy.address(), &again.by(&forged)).is_err());
}

#[test]
fn topics_in_a_token_need_one_rule_and_no_rights() {
    let team = Team::new();
    let page = include_str!("../../docs/security.md");
    let rule = page.lines().find(|line| line.starts_with("SELECT tidings.allow(") && line.contains("'topics'"));
    team.db.session().run("SELECT tidings.disallow('boards_{id}')");
    team.db.session().run(rule.expect("the rule of the document"));
    let proxy = team.proxy(&[]);
    let token = |topics: Value| sign(&json!({"role": team.guest, "topics": topics}));
    let status = |topic: &str, topics| status(&proxy, &format!("/events?topic={topic}"), &token(topics));
    assert_eq!(status("boards_5", json!(["boards_4", "boards_5"])), 200);
    assert_eq!(status("boards_5", json!("boards_5")), 200);
    for none in [json!([]), json!(["boards_50", "boards_", "5"]), json!(null), json!(5), json!([["boards_5"]])] {
        assert_eq!(status("boards_5", none.clone()), 403, "{none}");
    }
    assert_eq!(status("news", json!(["news"])), 403, "no rule matches");
}

#[test]
fn a_token_comes_by_header_cookie_or_query() {
    let team = Team::new();
    let proxy = team.proxy(&["--token-cookie", "sid"]);
    let token = team.token(1);
    let cookie = format!("a=b; sid={token}; c=d");
    let answer = |path: &str, headers: &[(&str, &str)]| ask(&proxy, path, headers).0.status;
    assert_eq!(status(&proxy, "/events?topic=boards_5", &token), 200);
    assert_eq!(answer("/events?topic=boards_5", &[("Cookie", &cookie)]), 200);
    assert_eq!(answer("/events?topic=boards_5", &[("Cookie", &cookie.replace("sid", "other"))]), 401);
    assert_eq!(answer(&format!("/events?topic=boards_5&token={token}"), &[]), 200);
    silent_about(&proxy, &[&token]);
}

#[test]
fn audience_and_issuer_are_required() {
    let team = Team::new();
    let proxy = team.proxy(&["--jwt-audience", "app", "--jwt-issuer", "login"]);
    let with = |aud: Value, iss: Value| {
        let mut claims = team.claims(1);
        claims["aud"] = aud;
        claims["iss"] = iss;
        status(&proxy, "/events?topic=boards_5", &sign(&claims))
    };
    assert_eq!(with(json!("app"), json!("login")), 200);
    assert_eq!(with(json!(["other", "app"]), json!("login")), 200);
    assert_eq!(with(json!("other"), json!("login")), 401);
    assert_eq!(with(json!("app"), json!("other")), 401);
    assert_eq!(status(&proxy, "/events?topic=boards_5", &team.token(1)), 401, "neither");
}

#[test]
fn a_stream_ends_when_its_token_expires() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    let mut lasting = open(&proxy, "boards_5", &team.token(1));
    // Within the ten seconds by which clocks may differ.
    let mut stream = open(&proxy, "boards_5", &team.token_until(1, now() - 4.0));
    team.db.session().run("INSERT INTO board_items VALUES (1, 5, 'before')");
    assert_eq!(titles(&stream.rest()), ["before"]);
    assert_eq!(titles(&all_until_now(&team.db, "boards_5", &mut lasting)), ["before"]);
    assert_eq!(proxy.metric("tidings_auth_ended_total"), 1.0);
    proxy.wait_clients(1);
}

#[test]
fn a_key_file_that_cannot_be_read_stops_nothing_else() {
    let team = Team::new();
    let mut proxy = team.proxy(&[]);
    let mut stream = open(&proxy, "boards_5", &team.token_until(1, now() - 5.0));
    // Opening it blocks until there is a writer, as with a file server that is down.
    fs::remove_file(&team.secret).expect("remove the secret");
    assert!(Command::new("mkfifo").arg(&team.secret).status().expect("run mkfifo").success());
    proxy.signal(Signal::SIGHUP);
    assert_eq!(titles(&stream.rest()), [""; 0]);
    let mut lasting = open(&proxy, "boards_5", &team.token(1));
    team.db.session().run("INSERT INTO board_items VALUES (1, 5, 'after')");
    assert_eq!(titles(&all_until_now(&team.db, "boards_5", &mut lasting)), ["after"]);
    assert!(proxy.terminate().success());
}

#[test]
fn revoked_access_ends_the_stream() {
    let team = Team::new();
    let proxy = team.proxy(&["--reauthorize", "200ms"]);
    let (ada, ben) = (team.token(1), team.token(2));
    let (mut hers, mut his) = (open(&proxy, "boards_7", &ada), open(&proxy, "boards_7", &ben));
    team.db.session().run("DELETE FROM members WHERE person = 2");
    assert_eq!(his.rest(), []);
    assert_eq!(status(&proxy, "/events?topic=boards_7", &ben), 403);
    team.db.session().run("INSERT INTO board_items VALUES (1, 7, 'without him')");
    assert_eq!(titles(&all_until_now(&team.db, "boards_7", &mut hers)), ["without him"]);
    // The same happens when the rule is dropped.
    team.db.session().run("SELECT tidings.disallow('boards_{id}')");
    assert_eq!(hers.rest(), []);
    assert_eq!(proxy.metric("tidings_auth_ended_total"), 2.0);
}

#[test]
fn replay_is_authorized_like_live() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    team.db.session().run("INSERT INTO board_items VALUES (1, 5, 'old'), (2, 6, 'not hers')");
    let (ada, ben) = (team.token(1), team.token(2));
    let mut replay = proxy.open(&Request::since(&["boards_5"], "earliest").by(&ada));
    assert_eq!(titles(&[replay.frame()]), ["old"]);
    for from in ["since=earliest", "last_event_id=earliest", "since=1-1"] {
        assert_eq!(status(&proxy, &format!("/events?topic=boards_5&{from}"), &ben), 403, "{from}");
        assert_eq!(ask(&proxy, &format!("/events?topic=boards_5&{from}"), &[]).0.status, 401, "{from}");
    }
    let headers = [("Authorization", &*format!("Bearer {ben}")), ("Last-Event-ID", replay.last_id().expect("an id"))];
    assert_eq!(ask(&proxy, "/events?topic=boards_5", &headers).0.status, 403);
}

#[test]
fn while_the_database_cannot_be_asked_nobody_is_admitted_or_denied() {
    let cluster = Cluster::start(&[]);
    let team = Team::within(&cluster);
    let proxy = team.proxy(&["--reauthorize", "200ms"]);
    let token = team.token(1);
    let mut stream = open(&proxy, "boards_5", &token);
    cluster.stop();
    until("the proxy says so", || status(&proxy, "/events?topic=boards_5", &token) == 503);
    let (head, body) = ask(&proxy, "/events?topic=boards_5", &[("Authorization", &format!("Bearer {token}"))]);
    assert!(head.header("retry-after").is_some());
    assert!(!body.contains("connect"), "the reason must not be sent: {body}");
    assert_eq!(status(&proxy, "/events?topic=boards_5", "x"), 401, "a bad token needs no database");
    cluster.boot();
    team.db.wait_relay();
    until("it asks again", || status(&proxy, "/events?topic=boards_5", &token) == 200);
    proxy.wait_ready();
    team.db.session().run("INSERT INTO board_items VALUES (1, 5, 'after')");
    assert_eq!(titles(&[stream.frame()]), ["after"], "who was in stays in");
}

#[test]
fn rules_and_queries_for_rows_survive_dump_and_restore() {
    if !has_psql() {
        return;
    }
    let team = Team::new();
    let cluster = team.db.cluster();
    team.db.session().run("SELECT tidings.allow('b_{x}', 'SELECT WHERE {x} = $q$it''s \\ {{}}$q$')");
    team.db.session().run("SELECT tidings.snapshot('b_{x}', 'SELECT {x} AS it, ''\\'' AS b', event => 'é')");
    let rules = "SELECT string_agg(j, ' ' ORDER BY j) FROM (SELECT to_json(r)::text AS j FROM tidings.rule r
                 UNION ALL SELECT to_json(s)::text FROM tidings.snapshot_query s) AS both_of_them";
    let before: String = team.db.session().one(rules);
    let file = fresh_path("dump");
    let dump = cluster.tool("pg_dump").arg(team.db.name()).output().expect("run pg_dump");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    fs::write(&file, dump.stdout).expect("keep the dump");
    let copy = cluster.empty_database();
    let mut restore = cluster.tool("psql");
    restore.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", copy.name(), "-f"]).arg(&file);
    let restored = restore.output().expect("run psql");
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    copy.wait_relay();
    assert_eq!(copy.session().one::<String>(rules), before);
    let denied = format!("SELECT tidings.authorize('{}', '{{boards_5,boards_6}}')", team.claims(1));
    let as_proxy = |db: &Database<'_>| db.session_as(&team.db.proxy_role()).one::<Vec<String>>(&denied);
    assert_eq!(as_proxy(&team.db), ["boards_6"]);
    copy.session().run(&format!("SELECT tidings.grant_proxy('{}')", team.db.proxy_role()));
    assert_eq!(as_proxy(&copy), ["boards_6"]);
}

#[test]
fn a_channel_needs_a_token() {
    let team = Team::new();
    let proxy = team.proxy(&["--channel", "boards_*"]);
    assert_eq!(ask(&proxy, "/channels/boards_5", &[]).0.status, 401);
    assert_eq!(status(&proxy, "/channels/boards_5", "x"), 401);
    assert_eq!(status(&proxy, "/channels/boards_5", &team.token(2)), 200);
    assert_eq!(status(&proxy, "/channels/other", &team.token(2)), 403);
}

#[test]
fn an_open_proxy_says_so_loudly() {
    let db = shared().database();
    assert!(db.proxy(&[]).log().contains("EVERYONE MAY SUBSCRIBE TO EVERY TOPIC"));
}
