//! The mistakes of a newcomer. Each is made for real, and a message names it and says what to do: in the answer of
//! `tidings-proxy check`, in the proxy's log, on `/readyz` or in the answer to a request.

use std::net::TcpListener;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use tidings_tests::cluster::free_port;
use tidings_tests::pool::Pool;
use tidings_tests::process::fresh_path;
use tidings_tests::{Cluster, Database, Proxy, http, proxy, shared, until};

use crate::access::{Team, sign};
use crate::{boards, skipped};

/// Where the message is.
enum Says {
    /// Here.
    Text(String),
    /// In a proxy's log, soon.
    Log(Box<Proxy>),
    /// In the answer of a proxy's `/readyz`, soon.
    Ready(Box<Proxy>),
}

impl Says {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Log(proxy) => proxy.log(),
            Self::Ready(proxy) => http::get(proxy.address(), "/readyz").map(|(_, body)| body).unwrap_or_default(),
        }
    }

    /// Fails unless the message has all of these words.
    #[track_caller]
    fn must_have(&self, mistake: &str, words: &[&str]) {
        match self {
            Self::Text(text) => assert!(words.iter().all(|word| text.contains(word)), "{mistake}: {words:?}\n{text}"),
            _ => {
                until(&format!("{mistake}: {words:?} is said"), || words.iter().all(|word| self.text().contains(word)))
            }
        }
    }
}

/// What `tidings-proxy check` says.
fn check(url: &str, args: &[&str]) -> Says {
    let listen = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(proxy::binary());
    let output = command.args(["check", "--database-url", url, "--listen", &listen]).args(args).output();
    Says::Text(String::from_utf8(output.expect("run the check").stdout).expect("UTF-8"))
}

/// A proxy that need not become ready.
fn start(url: &str, args: &[&str]) -> Box<Proxy> {
    Box::new(Proxy::start_at(free_port(), url, args))
}

/// What a proxy logs about a request that it refuses.
fn refused(team: &Team<'_>, path: &str, token: Option<&str>, status: u16) -> Says {
    let proxy = Box::new(team.proxy(&[]));
    let got = match token {
        Some(token) => crate::access::status(&proxy, path, token),
        None => crate::access::ask(&proxy, path, &[]).0.status,
    };
    assert_eq!(got, status, "{path}");
    Says::Log(proxy)
}

fn url(db: &Database<'_>) -> String {
    db.cluster().url(db.name(), &db.proxy_role())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs()
}

#[test]
fn each_mistake_in_the_database_is_named_by_a_message_that_says_what_to_do() {
    let db = boards();
    let (stranger, empty) = (db.role("stranger"), shared().empty_database());
    let elsewhere = shared().url(empty.name(), &db.proxy_role());
    let nowhere = shared().url("nowhere", &db.proxy_role());
    let as_stranger = shared().url(db.name(), &stranger);
    let no_grant = [&*stranger, "SELECT tidings.grant_proxy("];
    let mistakes: Vec<(&str, Says, &[&str])> = vec![
        (
            "no extension, checked",
            check(&elsewhere, &["--open"]),
            &["no extension tidings", "CREATE EXTENSION tidings"],
        ),
        (
            "no extension",
            Says::Ready(start(&elsewhere, &[])),
            &["CREATE EXTENSION tidings", "name another one in the URL"],
        ),
        ("wrong database, checked", check(&nowhere, &["--open"]), &["\"nowhere\"", "Correct the database's name"]),
        ("wrong database", Says::Ready(start(&nowhere, &[])), &["nowhere", "correct the database's name in the URL"]),
        ("no grant, checked", check(&as_stranger, &["--open"]), &no_grant),
        ("no grant", Says::Ready(start(&as_stranger, &[])), &["permission denied", "SELECT tidings.grant_proxy("]),
        (
            "topic typo",
            check(&url(&db), &["--open", "bords_5"]),
            &["\"boards_{board_id}\"", "Subscribe to one of these"],
        ),
        ("table not watched", check(&url(&db), &["--open", "notes_5"]), &["no watch makes", "SELECT tidings.watch("]),
    ];
    for (mistake, says, words) in mistakes {
        says.must_have(mistake, words);
    }
}

#[test]
fn each_mistake_of_the_server_is_named_by_a_message_that_says_what_to_do() {
    let cluster = Cluster::start(&[("max_worker_processes", "2")]);
    let db = cluster.empty_database();
    db.session().run("CREATE EXTENSION tidings");
    check(&url(&db), &["--open"]).must_have("no relay, checked", &["no relay runs", "max_worker_processes = 10"]);
    Says::Ready(start(&url(&db), &[])).must_have("no relay", &["no relay runs", "relay_state", "max_worker_processes"]);
    db.session().run("ALTER SYSTEM SET shared_preload_libraries = 'plpgsql'");
    cluster.restart();
    let remedy = "ALTER SYSTEM SET shared_preload_libraries = 'plpgsql', 'tidings'";
    check(&url(&db), &["--open"]).must_have("not preloaded, checked", &["not preloaded", remedy, "restart"]);
    let words = &["not loaded by shared_preload_libraries", "Add tidings to shared_preload_libraries", "restart"];
    Says::Ready(start(&url(&db), &[])).must_have("not preloaded", words);
}

#[test]
fn each_mistake_on_the_way_is_named_by_a_message_that_says_what_to_do() {
    let db = boards();
    match Pool::start(&db, "transaction") {
        Some(pool) => {
            check(&pool.url(), &["--open"]).must_have("a pool, checked", &["transaction mode", "pool_mode = session"]);
            Says::Ready(start(&pool.url(), &[])).must_have("a pool", &["transaction mode", "pool_mode = session"]);
        }
        None => skipped("a pool: PgBouncer is not installed"),
    }
    let taken = TcpListener::bind(("127.0.0.1", free_port())).expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let proxy = Box::new(Proxy::start_at(port, &url(&db), &[]));
    Says::Log(proxy).must_have("port in use", &["another program listens", &format!("ss -ltnp 'sport = :{port}'")]);
    // The standby has what the primary has, and the primary's extension is older than the proxy.
    let cluster = Cluster::start(&[]);
    let old = cluster.empty_database();
    old.session().run("CREATE EXTENSION tidings VERSION '0.1.1'; CREATE ROLE old_proxy LOGIN; SELECT tidings.grant_proxy('old_proxy')");
    let standby = cluster.standby();
    old.wait_standby(&standby);
    let url = standby.url(old.name(), "old_proxy");
    let words = ["is a standby", "ALTER EXTENSION tidings UPDATE"];
    check(&url, &["--open"]).must_have("an old standby, checked", &[&words[..], &["✗ extension"]].concat());
    Says::Ready(start(&url, &[])).must_have("an old standby", &words);
    // At the primary it works, as far as the old extension does.
    let url = cluster.url(old.name(), "old_proxy");
    let words = ["! extension", "since=snapshot", "ALTER EXTENSION tidings UPDATE"];
    check(&url, &["--open"]).must_have("an old extension, checked", &words);
    let proxy = Proxy::start(&url, &[]);
    let (_, problem) = crate::access::ask(&proxy, "/events?topic=x&since=snapshot", &[]);
    Says::Text(problem).must_have("an old extension, asked for rows", &words[1..]);
    Says::Log(Box::new(proxy)).must_have("an old extension", &words[1..]);
}

#[test]
fn each_mistake_of_access_is_named_by_a_message_that_says_what_to_do() {
    let team = Team::new();
    let secret = team.secret.to_str().expect("a path of text");
    let claims = |age: u64| json!({ "role": team.member, "sub": "1", "exp": now() + 600 - age });
    let (good, expired) = (sign(&claims(0)), sign(&claims(6000)));
    let forged = crate::access::sign_with(&claims(0), "another secret that has more than 32 bytes");
    let file = |token: &str| {
        let path = fresh_path("token");
        std::fs::write(&path, token).expect("a file");
        path.to_str().expect("a path of text").to_owned()
    };
    let with = |args: &[&str]| check(&url(&team.db), &[&["--jwt-secret-file", secret], args].concat());
    let (boards_5, boards_6, other) = ("/events?topic=boards_5", "/events?topic=boards_6", "/events?topic=chats_1");
    let mistakes: Vec<(&str, Says, &[&str])> = vec![
        (
            "wrong secret",
            refused(&team, boards_5, Some(&forged), 401),
            &["token refused", "with the key that the proxy has"],
        ),
        (
            "wrong secret, checked",
            with(&["--token-file", &file(&forged)]),
            &["refused", "with the key that the proxy has"],
        ),
        ("expired token", refused(&team, boards_5, Some(&expired), 401), &["token refused", "expired", "renew it"]),
        ("expired token, checked", with(&["--token-file", &file(&expired)]), &["expired", "renew it"]),
        ("no token", refused(&team, boards_5, None, 401), &["a token is needed", "Authorization: Bearer", "cookie"]),
        ("no rule", refused(&team, other, Some(&good), 403), &["no rule matches", "tidings.allow()"]),
        (
            "no rule, checked",
            with(&["chats_1"]),
            &["no rule matches the topic \"chats_1\"", "SELECT tidings.allow('chats_1'"],
        ),
        ("no row", refused(&team, boards_6, Some(&good), 403), &["finds no row", "look at the rule's query"]),
        ("no cookie over http", with(&["--token-cookie", "__Host-token"]), &["only over https://", "--tls-cert"]),
    ];
    for (mistake, says, words) in mistakes {
        says.must_have(mistake, words);
    }
    let Says::Text(text) = with(&["--token-cookie", "token"]) else { return };
    assert!(!text.contains("only over https://"), "{text}");
}
