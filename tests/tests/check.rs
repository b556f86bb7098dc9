//! `tidings-proxy check` names each mistake of an installation, and what mends it. So do the proxy's own messages.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use postgres::Row;
use serde_json::{Value, json};
use tidings_tests::clock::Clock;
use tidings_tests::cluster::{Site, free_port};
use tidings_tests::pool::Pool;
use tidings_tests::process::fresh_path;
use tidings_tests::{Cluster, Proxy, Session, proxy, shared, until};

use crate::access::{Team, sign};
use crate::boards;

/// What a check has found.
struct Found {
    ok: bool,
    findings: Vec<Value>,
}

impl Found {
    /// The findings about one thing.
    fn about(&self, item: &str) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["item"] == item).collect()
    }

    /// There is exactly one thing to mend: its message contains `detail`, and its fix contains `fix`.
    #[track_caller]
    fn only_wrong(&self, item: &str, detail: &str, fix: &str) {
        let wrong: Vec<&Value> = self.findings.iter().filter(|finding| finding["ok"] == false).collect();
        assert!(!self.ok && wrong.len() == 1 && wrong[0]["item"] == item, "{:#?}", self.findings);
        for (member, text) in [("detail", detail), ("fix", fix)] {
            assert!(wrong[0][member].as_str().is_some_and(|there| there.contains(text)), "{text}: {:#?}", wrong[0]);
        }
    }
}

/// Runs a check with these flags and a free address.
#[track_caller]
fn check(url: &str, args: &[&str]) -> Found {
    let listen = format!("127.0.0.1:{}", free_port());
    let output = Command::new(proxy::binary())
        .args(["check", "--json", "--database-url", url, "--listen", &listen])
        .args(args)
        .output()
        .expect("run the check");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let report: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(report["ok"] == true, output.status.success(), "{report:#}");
    let findings = report["findings"].as_array().expect("findings").clone();
    Found { ok: output.status.success(), findings }
}

#[test]
fn where_all_is_right_an_event_makes_the_whole_way() {
    let db = boards();
    let url = db.cluster().url(db.name(), &db.proxy_role());
    let found = check(&url, &["--open", "boards_5"]);
    assert!(found.ok, "{:#?}", found.findings);
    for item in
        ["address", "database", "pool", "extension", "preload", "version", "relay", "proxy", "topic", "notify", "event"]
    {
        assert!(found.about(item).iter().any(|finding| finding["ok"] == true), "{item}: {:#?}", found.findings);
    }
    // For people to read, and with the proxy's variables.
    let output = Command::new(proxy::binary())
        .arg("check")
        .env("TIDINGS_OPEN", "true")
        .env("TIDINGS_DATABASE_URL", &url)
        .env("TIDINGS_LISTEN", format!("127.0.0.1:{}", free_port()))
        .output()
        .expect("run the check");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("✓ event") && text.ends_with("all is right\n"), "{text}");
    // The check left nothing that others see.
    assert_eq!(db.session().one::<i64>("SELECT count(*) FROM tidings.open_topics"), 0);
}

#[test]
fn each_mistake_in_the_database_is_named_with_what_mends_it() {
    let db = boards();
    let (role, other) = (db.proxy_role(), db.role("other"));
    let url = db.cluster().url(db.name(), &role);
    check(&url, &["--open", "board_5"]).only_wrong(
        "topic",
        "\"boards_{board_id}\" (public.board_items)",
        "Subscribe to one",
    );
    check(&db.cluster().url(db.name(), &other), &["--open"]).only_wrong("rights", &other, "tidings.grant_proxy(");
    check(&db.cluster().url("nowhere", &role), &["--open"]).only_wrong("database", "nowhere", "Correct the database");
    check("postgres://me@127.0.0.1:1/x", &["--open"]).only_wrong("database", "127.0.0.1:1", "listen_addresses");
    check("postgres://me@127.0.0.1:1/x?schema=y", &["--open"]).only_wrong("database", "schema", "postgres://");
    let empty = shared().empty_database();
    check(&shared().url(empty.name(), &role), &["--open"]).only_wrong(
        "extension",
        "is it the right database?",
        "CREATE EXTENSION tidings",
    );
    // A role that got its rights before a new function came.
    db.session().run(&format!("REVOKE EXECUTE ON FUNCTION tidings.fetch_rows(integer) FROM {role}"));
    check(&url, &["--open"]).only_wrong("proxy", "tidings.fetch_rows(integer)", "tidings.grant_proxy(");
}

#[test]
fn an_extension_that_is_to_be_updated_is_named_and_nothing_else_is_wrong() {
    let db = shared().empty_database();
    db.session().run("CREATE EXTENSION tidings VERSION '0.1.1'");
    db.wait_relay();
    let url = shared().url(db.name(), &db.proxy_role());
    let found = check(&url, &["--open"]);
    assert!(found.ok, "{:#?}", found.findings);
    let about = found.about("extension");
    assert!(about.len() == 1 && about[0]["ok"].is_null(), "{about:#?}");
    let says = |member: &str, words: &str| about[0][member].as_str().is_some_and(|text| text.contains(words));
    assert!(says("detail", "the extension is 0.1.1") && says("detail", "since=snapshot"), "{about:#?}");
    assert!(says("fix", "ALTER EXTENSION tidings UPDATE"), "{about:#?}");
    for item in ["notify", "stream"] {
        assert!(found.about(item).iter().any(|finding| finding["ok"] == true), "{item}: {:#?}", found.findings);
    }
    // What is wrong there is still found.
    let stranger = check(&shared().url(db.name(), &db.role("stranger")), &["--open"]);
    stranger.only_wrong("event", "permission denied", "tidings.status");
}

#[test]
fn a_library_that_is_not_preloaded_and_a_relay_that_does_not_run_are_named() {
    let cluster = Cluster::start(&[("max_worker_processes", "2")]);
    let db = cluster.empty_database();
    db.session().run("CREATE EXTENSION tidings");
    let url = cluster.url(db.name(), &db.proxy_role());
    let found = check(&url, &["--open"]);
    found.only_wrong("relay", "no relay runs", "max_worker_processes = 10");
    db.session().run("ALTER SYSTEM SET shared_preload_libraries = 'plpgsql'");
    cluster.restart();
    let found = check(&url, &["--open"]);
    found.only_wrong("preload", "not preloaded", "shared_preload_libraries = 'plpgsql', 'tidings'");
}

#[test]
fn a_pool_in_transaction_mode_is_named() {
    let db = boards();
    let Some(pool) = Pool::start(&db, "transaction") else {
        return crate::skipped("a pool: PgBouncer is not installed");
    };
    check(&pool.url(), &["--open"]).only_wrong("pool", "PgBouncer", "pool_mode = session");
}

#[test]
fn mistakes_of_access_are_named() {
    let team = Team::new();
    let url = team.db.cluster().url(team.db.name(), &team.db.proxy_role());
    let secret = team.secret.to_str().expect("a path of text").to_owned();
    let guarded = ["--jwt-secret-file", &secret];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    let token = |role: &str, age: u64| {
        let file = fresh_path("token");
        std::fs::write(&file, sign(&json!({ "role": role, "sub": "1", "exp": now + 600 - age }))).expect("a file");
        file.to_str().expect("a path of text").to_owned()
    };
    let with = |args: &[&str]| check(&url, &[&guarded[..], args].concat());

    check(&url, &[]).only_wrong("access", "nothing says who may subscribe", "--jwt-secret-file");
    let good = token(&team.member, 0);
    let found = with(&["--anon-role", &team.guest, "--token-file", &good, "boards_5"]);
    assert!(found.ok && found.about("token").len() == 2, "{:#?}", found.findings);
    with(&["--token-file", &good, "boards_6"]).only_wrong("token", "may not subscribe to \"boards_6\"", "policies");
    with(&["--token-file", &token(&team.member, 6000)]).only_wrong("token", "expired", "renew it");
    with(&["--token-file", &token("nobody_knows", 0)]).only_wrong("roles", "no such role", "CREATE ROLE");
    with(&["--anon-role", "nobody_knows"]).only_wrong("roles", "no such role", "GRANT");
    let other = fresh_path("secret");
    std::fs::write(&other, "another secret that has more than 32 bytes").expect("a file");
    let other = other.to_str().expect("a path of text").to_owned();
    check(&url, &["--jwt-secret-file", &other, "--token-file", &good]).only_wrong("token", "ignature", "sign it with");
    check(&url, &["--jwt-secret-file", "/nowhere"]).only_wrong("access", "/nowhere", "openssl rand");

    // Rules: none for a watch is a hint, none for a topic that is asked for is wrong.
    let mut dba = team.db.session();
    dba.run("CREATE TABLE notes (id int); SELECT tidings.watch('notes', topic => 'notes_{id}'); SELECT tidings.allow('chats_{id}', 'SELECT')");
    let found = with(&[]);
    let hints: Vec<_> = found.about("rule").iter().map(|rule| rule["detail"].to_string()).collect();
    assert!(found.ok && hints.len() == 2, "{hints:?}");
    assert!(hints[0].contains("notes_{id}") && hints[1].contains("chats_{id}"), "{hints:?}");
    with(&["notes_1"]).only_wrong("access", "no rule matches the topic \"notes_1\"", "tidings.allow('notes_1'");
    // A rule that is slow for this token.
    dba.run("SELECT tidings.allow('slow_{id}', 'SELECT pg_sleep(0.3)')");
    let found = with(&["--token-file", &good, "slow_1"]);
    let took = |rule: &&Value| rule["detail"].as_str()?.split_once("took ")?.1.split(' ').next()?.parse::<u64>().ok();
    assert!(found.about("rule").iter().filter_map(took).any(|time| time >= 300), "{:#?}", found.findings);
    dba.run("DELETE FROM tidings.rule");
    with(&[]).only_wrong("access", "there is no rule", "tidings.allow(");
}

#[test]
fn an_address_in_use_is_named_by_the_check_and_by_the_proxy() {
    let db = boards();
    let url = db.cluster().url(db.name(), &db.proxy_role());
    let running = db.proxy(&[]);
    let at = |address: SocketAddr| {
        let output = Command::new(proxy::binary())
            .args(["check", "--json", "--open", "--database-url", &url, "--listen", &address.to_string()])
            .output()
            .expect("run the check");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["findings"][1].clone()
    };
    let found = at(running.address());
    assert!(found["ok"] == true && found["detail"].as_str().is_some_and(|text| text.contains("is ready")), "{found}");
    let port = free_port();
    let taken = TcpListener::bind(("127.0.0.1", port)).expect("a port");
    let address = taken.local_addr().expect("its address");
    let found = at(address);
    assert!(found["ok"] == false && found["fix"].as_str().is_some_and(|fix| fix.contains("ss -ltnp")), "{found}");
    let proxy = Proxy::start_at(port, &url, &[]);
    until("the proxy names the address", || proxy.log().contains(&format!("--listen {address}: another program")));
}

#[test]
fn the_log_names_the_host_that_can_not_be_reached_and_the_rights_that_are_missing() {
    let proxy = Proxy::start_at(free_port(), "postgres://me@127.0.0.1:1/x", &[]);
    until("the log names the host", || proxy.log().contains("can't connect to Postgres at 127.0.0.1:1:"));
    let db = boards();
    let role = db.role("without_rights");
    let proxy = Proxy::start_at(free_port(), &db.cluster().url(db.name(), &role), &[]);
    until("the log names what is missing", || proxy.log().contains("tidings.grant_proxy("));
}

#[test]
fn a_dba_sees_the_same_in_sql_and_a_manager_may_look() {
    let db = boards();
    let (proxy, manager) = (db.proxy_role(), db.role("manager"));
    db.session().run(&format!("SELECT tidings.grant_manager('{manager}')"));
    for role in ["postgres", &proxy, &manager] {
        let mut session = db.session_as(role);
        let wrong: i64 = session.one("SELECT count(*) FROM tidings.check('{boards_5}') WHERE ok = false");
        assert_eq!(wrong, 0, "{role}");
        assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.check('{x}') WHERE item = 'topic' AND NOT ok"), 1);
    }
    db.session_as(&db.role("stranger")).forbidden("SELECT * FROM tidings.check()");
    db.session_as(&manager).forbidden("SELECT tidings.probe(gen_random_uuid())");
}

#[test]
fn the_log_has_a_line_for_each_request_that_is_refused() {
    let team = Team::new();
    let secret = team.secret.to_str().expect("a path of text");
    let proxy = team.db.proxy(&["--jwt-secret-file", secret]);
    let path = "/events?topic=boards_6";
    assert_eq!(crate::access::ask(&proxy, path, &[]).0.status, 401);
    until("the log says why", || proxy.log().contains("request refused") && proxy.log().contains("a token is needed"));
    let token = sign(&json!({ "role": team.member, "sub": "1", "exp": 4_000_000_000u64 }));
    assert_eq!(crate::access::status(&proxy, path, &token), 403);
    until("the log says why", || proxy.log().contains("not allowed: boards_6"));
    assert!(!proxy.log().contains(&token), "the token is not in the log");
}

#[test]
fn a_topic_with_a_colon_instead_of_braces_gives_a_notice() {
    let db = boards();
    let (notices, counted) = std::sync::mpsc::channel();
    let mut config = db.cluster().config(db.name(), "postgres");
    config.notice_callback(move |notice| _ = notices.send(notice.message().to_owned()));
    let mut client = config.connect(postgres::NoTls).expect("connect");
    client.batch_execute("SELECT tidings.watch('board_items', 'boards_:board_id')").expect("watch");
    let said: Vec<String> = counted.try_iter().collect();
    assert!(said.iter().any(|notice| notice.contains("\"boards_:board_id\" names no column")), "{said:?}");
    client.batch_execute("SELECT tidings.watch('board_items', 'urn:boards:{board_id}')").expect("watch");
    client.batch_execute("SELECT tidings.watch('board_items', 'boards', name => 'all')").expect("watch");
    let said: Vec<String> = counted.try_iter().filter(|notice| notice.contains("names no column")).collect();
    assert!(said.is_empty(), "{said:?}");
}

#[test]
fn a_rule_that_reads_a_large_table_from_end_to_end_is_named() {
    let team = Team::new();
    let mut dba = team.db.session();
    dba.run(&format!(
        "CREATE TABLE owners (id uuid, name text); GRANT SELECT ON owners TO {member};
         INSERT INTO owners SELECT gen_random_uuid(), 'o' || i FROM generate_series(1, 20000) i; ANALYZE owners;
         CREATE FUNCTION who_plans(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'planned by %', current_user; RETURN $1; END $$;
         GRANT EXECUTE ON FUNCTION who_plans(text) TO {member};
         SELECT tidings.allow('owners_{{id}}', 'SELECT FROM owners WHERE id = {{id}}::uuid AND name <> who_plans(''x'')')",
        member = team.member
    ));
    let plans = |session: &mut Session| {
        let rows = session.all("SELECT ok, detail, fix FROM tidings.check() WHERE item = 'plan'", &[]);
        let text = |row: &Row, n: usize| row.get::<_, Option<String>>(n).unwrap_or_default();
        rows.iter().map(|row| (row.get(0), text(row, 1), text(row, 2))).collect::<Vec<(Option<bool>, _, _)>>()
    };
    let found = plans(&mut dba);
    assert!(found.len() == 1 && found[0].0.is_none(), "{found:?}");
    assert!(found[0].1.contains("\"owners_{id}\" reads all 20000 rows of public.owners"), "{found:?}");
    assert!(found[0].2.contains("Create an index") && found[0].2.contains("owners.id ="), "{found:?}");
    dba.run("CREATE INDEX ON owners (id)");
    let found = plans(&mut dba);
    assert!(found.len() == 1 && found[0].0 == Some(true) && found[0].1.starts_with("2 of 2 rules"), "{found:?}");
    // Planning runs code of the author of the rule, so it never has the rights of the extension's owner.
    let (notices, heard) = std::sync::mpsc::channel();
    let mut config = team.db.cluster().config(team.db.name(), "postgres");
    config.notice_callback(move |notice| _ = notices.send(notice.message().to_owned()));
    plans(&mut Session::new(config.connect(postgres::NoTls).expect("connect")));
    let said: Vec<String> = heard.try_iter().filter(|said| said.contains("planned")).collect();
    let subscribers = [&team.member, &team.guest].map(|role| format!("planned by {role}"));
    assert!(!said.is_empty() && said.iter().all(|said| subscribers.contains(said)), "{said:?}");
}

#[test]
fn what_the_check_cannot_see_it_says() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    let mut dba = db.session();
    let mut detail = |item: &str| {
        let rows = dba.all("SELECT detail || ' ' || coalesce(fix, '') FROM tidings.check() WHERE item = $1", &[&item]);
        rows.first().map(|row| row.get::<_, String>(0)).unwrap_or_default()
    };
    let log = detail("log");
    assert!(log.contains("events stay up to 01:30:00") && log.contains("compare with df"), "{log}");
    assert_eq!(detail("standby"), "");
    let role = db.proxy_role();
    let standby = cluster.standby();
    db.wait_standby(&standby);
    // The base backup alone may have had everything.
    let connected =
        "SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = 'walreceiver' AND state = 'streaming'";
    let mut primary = db.session();
    until("the standby is connected", || primary.one(connected));
    let found = check(&standby.url(db.name(), &role), &["--open"]);
    assert!(found.ok, "{:#?}", found.findings);
    let said = &found.about("standby")[0]["detail"];
    assert!(said.as_str().is_some_and(|said| said.contains("connected to its primary")), "{said}");
    let said = detail("standby");
    assert!(said.contains("standbys connected: 1;") && said.contains("--database-url of the standby"), "{said}");
    // What that shows there.
    standby.session("postgres", "postgres").run("ALTER SYSTEM SET shared_preload_libraries = 'plpgsql'");
    standby.restart();
    let found = check(&standby.url(db.name(), &role), &["--open"]);
    found.only_wrong("preload", "not preloaded", "shared_preload_libraries = 'plpgsql', 'tidings'");
}

#[test]
fn a_server_whose_clock_differs_is_named() {
    if !Clock::can_jump() {
        return crate::skipped("a wrong clock: libfaketime is not installed");
    }
    let clock = Clock::at(-3600);
    let cluster = Cluster::start_at(Site { env: clock.environment(), ..Site::default() }, &[]);
    let db = cluster.database();
    let found = check(&cluster.url(db.name(), &db.proxy_role()), &["--open"]);
    let said: Vec<String> = found.about("clock").iter().map(|clock| clock["detail"].to_string()).collect();
    assert!(found.ok && said.iter().any(|detail| detail.contains("s behind this machine's")), "{said:?}");
}
