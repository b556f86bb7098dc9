//! Every object has a comment, every public object is in the reference, and nothing is granted to PUBLIC.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use tidings_tests::cluster::SUPERUSER;
use tidings_tests::process::{Process, Signal};
use tidings_tests::{Cluster, Database, Proxy, Session, shared, until};

/// The public objects: those with a section in docs/sql.md.
const PUBLIC: &[&str] = &[
    "watch",
    "unwatch",
    "watches",
    "guard",
    "recheck",
    "capture",
    "publish",
    "publish_text",
    "pending",
    "position",
    "state",
    "snapshot",
    "unsnapshot",
    "snapshots",
    "changes",
    "events",
    "channel",
    "allow",
    "disallow",
    "rules",
    "authorize",
    "open_topics",
    "status",
    "check",
    "export",
    "standby",
    "grant_proxy",
    "grant_app",
    "grant_manager",
];

fn reference() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sql.md");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn names(session: &mut Session, sql: &str) -> Vec<String> {
    session.all(sql, &[]).iter().map(|row| row.get(0)).collect()
}

/// The objects of the extension, one row each: class, OID, column, and a readable name.
const OBJECTS: &str = "
    SELECT d.classid, d.objid, 0 AS objsubid, pg_describe_object(d.classid, d.objid, 0) AS name
    FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid AND d.refclassid = 'pg_extension'::regclass
    WHERE e.extname = 'tidings' AND d.deptype = 'e' AND d.classid <> 'pg_type'::regclass
    UNION ALL
    SELECT 'pg_class'::regclass, i.indexrelid, 0, pg_describe_object('pg_class'::regclass, i.indexrelid, 0)
    FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_class c ON c.oid = i.indexrelid
    WHERE t.relnamespace = 'tidings'::regnamespace AND NOT t.relispartition AND NOT i.indisprimary
    UNION ALL
    SELECT 'pg_class'::regclass, a.attrelid, a.attnum, pg_describe_object('pg_class'::regclass, a.attrelid, a.attnum)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = 'tidings'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped";

#[test]
fn every_object_has_a_comment() {
    let db = shared().database();
    let mut session = db.session();
    let bare = names(
        &mut session,
        &format!(
            "SELECT name FROM ({OBJECTS}) o
             WHERE NOT EXISTS (SELECT FROM pg_description d WHERE (d.classoid, d.objoid, d.objsubid) = (o.classid, o.objid, o.objsubid))
             ORDER BY 1"
        ),
    );
    assert!(bare.is_empty(), "without a comment:\n{}", bare.join("\n"));
    let count: i64 = session.one(&format!("SELECT count(*) FROM ({OBJECTS}) o"));
    assert!(count > 60, "only {count} objects were looked at");
    // Every object of the schema belongs to the extension, so that DROP EXTENSION drops it.
    let strays = names(
        &mut session,
        "SELECT c.relname::text FROM pg_class c WHERE relnamespace = 'tidings'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')
           AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')",
    );
    assert!(strays.is_empty(), "{strays:?}");
}

#[test]
fn every_public_object_is_in_the_reference() {
    let db = shared().database();
    let mut session = db.session();
    let reference = reference();
    let there = names(
        &mut session,
        "SELECT proname::text FROM pg_proc WHERE pronamespace = 'tidings'::regnamespace
         UNION SELECT relname::text FROM pg_class WHERE relnamespace = 'tidings'::regnamespace AND relkind = 'v'",
    );
    for name in PUBLIC {
        assert!(there.iter().any(|there| there == name), "tidings.{name} does not exist");
        let headings = [format!("### {name}("), format!("### {name}\n")];
        assert!(headings.iter().any(|heading| reference.contains(heading)), "docs/sql.md has no section for {name}");
    }
    // All views are public, with every column.
    let columns = session.all(
        "SELECT c.relname::text, a.attname::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         WHERE c.relnamespace = 'tidings'::regnamespace AND c.relkind = 'v' AND a.attnum > 0",
        &[],
    );
    for row in columns {
        let (view, column): (String, String) = (row.get(0), row.get(1));
        let section = reference.split("\n### ").find(|section| section.starts_with(&format!("{view}\n")));
        let section = section.unwrap_or_else(|| panic!("docs/sql.md has no section for {view}"));
        assert!(section.contains(&format!("`{column}`")), "docs/sql.md: {view} does not mention {column}");
    }
    // So are the arguments of functions, and the settings with their defaults.
    for row in session.all(
        "SELECT p.proname::text, unnest(p.proargnames[1:p.pronargs]) FROM pg_proc p WHERE pronamespace = 'tidings'::regnamespace AND proname = ANY ($1)",
        &[&PUBLIC],
    ) {
        let (function, argument): (String, String) = (row.get(0), row.get(1));
        let section = reference.split("\n### ").find(|section| section.starts_with(&format!("{function}(")));
        let section = section.unwrap_or_else(|| panic!("docs/sql.md has no section for {function}"));
        assert!(section.contains(&argument), "docs/sql.md: {function} does not mention {argument}");
    }
    let settings =
        session.all("SELECT name, current_setting(name), context FROM pg_settings WHERE name LIKE 'tidings.%'", &[]);
    assert!(settings.len() >= 4);
    for row in settings {
        let (name, default): (String, String) = (row.get(0), row.get(1));
        let line = reference.lines().find(|line| line.starts_with(&format!("| `{name}`")));
        let line = line.unwrap_or_else(|| panic!("docs/sql.md does not mention {name}"));
        assert!(
            line.contains(&format!("`{default}`")),
            "docs/sql.md: {name} is {default} by default, not as in {line}"
        );
    }
    // And everything else that is called by its full name there exists.
    for word in reference
        .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'))
        .filter_map(|word| word.strip_prefix("tidings."))
    {
        let word = word.split('.').next().unwrap_or_default();
        if word.is_empty() {
            continue; // tidings.*
        }
        let known: bool = session.all(
            "SELECT EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'tidings'::regnamespace AND proname = $1)
                 OR EXISTS (SELECT FROM pg_class WHERE relnamespace = 'tidings'::regnamespace AND relname = $1)
                 OR EXISTS (SELECT FROM pg_settings WHERE name = 'tidings.' || $1)",
            &[&word],
        )[0]
        .get(0);
        assert!(known, "docs/sql.md speaks of tidings.{word}, which is not there");
    }
}

#[test]
fn the_examples_of_the_reference_run() {
    let db = shared().database();
    let role = db.role("proxy");
    let mut session = db.session();
    session.run(
        "CREATE TABLE boards (id bigint PRIMARY KEY, owner text);
         CREATE TABLE board_items (id bigint PRIMARY KEY, board_id bigint REFERENCES boards, title text, hits int DEFAULT 0, secret text)",
    );
    let reference = reference();
    let mut count = 0;
    for block in reference.split("```sql\n").skip(1) {
        let sql = block.split("```").next().unwrap_or_default().replace("tidings_proxy", &role);
        // Settings of the whole server can't be tried in a session.
        if sql.contains("ALTER SYSTEM") {
            continue;
        }
        // One by one, each after those before it.
        session.run(&sql);
        count += 1;
    }
    assert!(count >= 15, "only {count} examples");
}

#[test]
fn the_examples_of_the_page_about_development_run() {
    let cluster = Cluster::start(&[]);
    let db = cluster.empty_database();
    let mut session = db.session();
    let page = document("development.md");
    let blocks: Vec<&str> = page.split("```sql\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    assert!(blocks.len() >= 4, "{blocks:?}");
    for block in blocks {
        for statement in block.lines().filter(|line| !line.trim().is_empty()) {
            session.run(statement);
        }
    }
    assert_eq!(session.one::<i64>("SELECT count(*) FROM notes"), 1);
    // The settings name what is there already, and are possible.
    cluster.restart();
    db.wait_relay();
}

#[test]
fn nothing_is_granted_to_public() {
    let db = shared().database();
    let granted = names(
        &mut db.session(),
        "SELECT what || ' ' || privilege_type FROM (
             SELECT 'schema' AS what, (aclexplode(coalesce(nspacl, acldefault('n', nspowner)))).* FROM pg_namespace WHERE nspname = 'tidings'
             UNION ALL
             SELECT oid::regprocedure::text, (aclexplode(coalesce(proacl, acldefault('f', proowner)))).* FROM pg_proc WHERE pronamespace = 'tidings'::regnamespace
             UNION ALL
             SELECT oid::regclass::text, (aclexplode(coalesce(relacl, acldefault('r', relowner)))).* FROM pg_class
             WHERE relnamespace = 'tidings'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')
             UNION ALL
             SELECT a.attrelid::regclass || '.' || attname, (aclexplode(attacl)).* FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
             WHERE relnamespace = 'tidings'::regnamespace
         ) acl WHERE grantee = 0 ORDER BY 1",
    );
    assert!(granted.is_empty(), "granted to PUBLIC: {granted:?}");
}

#[test]
fn default_privileges_grant_nothing_of_ours() {
    let db = shared().empty_database();
    let role = db.role("stranger");
    let mut session = db.session();
    session.run(
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC; ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO PUBLIC;
         ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC; CREATE EXTENSION tidings",
    );
    db.wait_relay();
    let mut stranger = db.session_as(&role);
    for attempt in [
        "SELECT * FROM tidings.log",
        "SELECT tidings.channel()",
        "SELECT tidings.publish('x', '1')",
        "SELECT channel FROM tidings.secret",
    ] {
        stranger.forbidden(attempt);
    }
}

#[test]
fn grant_proxy_grants_the_same_however_often() {
    let db = shared().database();
    let mut session = db.session();
    let role = format!("{}_\"odd' role\"", db.name());
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    session.run(&format!("CREATE ROLE {quoted} LOGIN"));
    let acl = "SELECT string_agg(oid::regprocedure || ' ' || proacl::text, ',' ORDER BY oid) FROM pg_proc WHERE pronamespace = 'tidings'::regnamespace";
    let mut granted = Vec::new();
    for _ in 0..2 {
        session.with("SELECT tidings.grant_proxy(quote_ident($1)::regrole)", &[&role]);
        granted.push(session.one::<String>(acl));
    }
    assert_eq!(granted[0], granted[1]);
    session.run(&format!("DROP OWNED BY {quoted}; DROP ROLE {quoted}"));
}

/// What Debian's clusters start with, except for the socket: there we are the superuser by another name.
const DEBIAN_HBA: &str = "local all all trust
host all all 127.0.0.1/32 scram-sha-256
host all all ::1/128 scram-sha-256
";

#[test]
fn the_first_example_of_the_readme_works_with_debian_s_password_rules() {
    let readme = document("../README.md");
    let (_, example) = readme.split_once("## A first example").expect("an example");
    let block = |kind: &str| {
        let (_, rest) = example.split_once(&format!("```{kind}\n")).expect("a block");
        rest.split("```").next().expect("its end").to_owned()
    };
    let cluster = Cluster::start(&[]);
    fs::write(cluster.socket_dir().join("data/pg_hba.conf"), DEBIAN_HBA).expect("write the rules");
    let db = Database::existing(&cluster, "app");
    let mut superuser = cluster.session("postgres", SUPERUSER);
    superuser.run("SELECT pg_reload_conf()");
    superuser.run("CREATE DATABASE app");
    let mut session = db.session();
    session.run(&block("sql"));
    db.wait_relay();
    let command = block("sh");
    let url = command.split('\'').nth(1).expect("a URL");
    assert!(
        command.starts_with("tidings-proxy --database-url '") && command.trim_end().ends_with(" --open"),
        "{command}"
    );
    let proxy = Proxy::start(&url.replace("@localhost/", &format!("@localhost:{}/", cluster.port())), &[]);
    let mut sse = proxy.live(&["boards_5"]);
    let (_, rest) = example.split_once("Now write a row:").expect("a write");
    session.run(rest.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a statement"));
    let frame = sse.frame();
    assert_eq!(frame.event, "changed");
    assert!(rest.contains(&format!("data: {}\n", frame.data)), "the README does not show {}", frame.data);
    let (_, list) = readme.split_once("### A list that stays exact").expect("an example with rows");
    session.run(list.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a statement"));
    assert!(list.contains("topic=boards_5&since=snapshot"), "{list}");
    let mut sse = proxy.open(&tidings_tests::sse::Request::since(&["boards_5"], "snapshot"));
    let events: Vec<String> = sse.take(3).into_iter().map(|frame| frame.event).collect();
    assert_eq!(events, ["reset", "changed", "ready"]);
}

#[test]
fn a_large_integer_in_a_text_column_keeps_its_digits() {
    let db = shared().database();
    let mut session = db.session();
    session.run(
        r#"CREATE TABLE items (id bigint, id_text text GENERATED ALWAYS AS (id::text) STORED);
           SELECT tidings.watch('items', topic => 'all');
           SELECT tidings.watch('items', topic => 'own', name => 'own', payload => '{"id": "$id_text"}')"#,
    );
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["all", "own"]);
    session.run("INSERT INTO items VALUES (9007199254740993)");
    let frames = sse.take(2).iter().map(tidings_tests::Frame::json).collect::<Vec<_>>();
    assert!(frames.iter().any(|json| json["record"]["id_text"] == "9007199254740993"), "{frames:?}");
    assert!(frames.iter().any(|json| json["id"] == "9007199254740993"), "{frames:?}");
}

#[test]
fn pg_dump_holds_no_lock_on_the_log() {
    let db = shared().database();
    let mut session = db.session();
    // More than a pipe holds, so that the dump stops when nobody reads it.
    session.run("CREATE TABLE items AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)");
    let mut command = db.cluster().tool("pg_dump");
    command.arg(db.name()).stdout(Stdio::piped());
    let mut dump = Process::spawn(&mut command, Signal::SIGKILL).expect("run pg_dump");
    let output = dump.stdout().expect("its output");
    let of_it = "application_name = 'pg_dump' AND datname = current_database()";
    until("it copies", || {
        session.one(&format!(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE {of_it} AND query LIKE 'COPY public.items%')"
        ))
    });
    let locked = names(
        &mut session,
        &format!(
            "SELECT c.relname::text FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
             WHERE pid IN (SELECT pid FROM pg_stat_activity WHERE {of_it}) AND c.relnamespace = 'tidings'::regnamespace"
        ),
    );
    drop(output);
    assert!(!locked.iter().any(|name| name.starts_with("log") || name.starts_with("tick")), "{locked:?}");
}

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The words of a text that begin with `prefix`, each once.
fn words<'a>(text: &'a str, prefix: &str) -> std::collections::BTreeSet<&'a str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
        .filter(|word| word.starts_with(prefix) && word.len() > prefix.len())
        .collect()
}

#[test]
fn every_metric_is_on_the_dashboard_and_no_other() {
    let db = shared().database();
    let metrics = db.proxy(&[]).metrics();
    let dashboard: serde_json::Value = serde_json::from_str(&document("grafana.json")).expect("JSON");
    let queries: Vec<&str> = dashboard["panels"]
        .as_array()
        .expect("panels")
        .iter()
        .flat_map(|panel| panel["targets"].as_array().expect("queries"))
        .map(|target| target["expr"].as_str().expect("a query"))
        .collect();
    let text = queries.join("\n");
    let shown = words(&text, "tidings_");
    let there: std::collections::BTreeSet<&str> =
        metrics.keys().map(|name| name.split('{').next().unwrap_or_default()).collect();
    for name in &shown {
        assert!(there.contains(name), "the dashboard shows {name}, which is not there");
    }
    for name in there.iter().filter(|name| !name.ends_with("_sum") && !name.ends_with("_count")) {
        assert!(shown.contains(name), "the dashboard does not show {name}");
    }
    // The alarms, with the labels that they use.
    let operations = document("operations.md");
    for name in words(&operations, "tidings_").into_iter().filter(|name| *name != "tidings_proxy") {
        assert!(there.contains(name), "docs/operations.md speaks of {name}, which is not there");
    }
    for label in operations.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
        let Some((label, value)) = label.split_once('=') else { continue };
        for value in value.trim_matches(['~', '"']).split('|') {
            let label = format!("{label}=\"{value}\"");
            assert!(metrics.keys().any(|key| key.contains(&label)), "docs/operations.md speaks of {label}");
        }
    }
}

#[test]
fn every_flag_is_in_the_reference_and_no_other() {
    let help =
        std::process::Command::new(tidings_tests::proxy::binary()).arg("--help").output().expect("run the proxy");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let there = words(&help, "--");
    let http = document("http.md");
    let sent = words(&http, "--");
    for flag in there.iter().filter(|flag| !["--help", "--version"].contains(flag)) {
        assert!(sent.contains(flag), "docs/http.md does not mention {flag}");
    }
    for name in ["http.md", "operations.md", "development.md", "tidings-proxy.service", "haproxy.cfg", "nginx.conf"] {
        let text = document(name);
        for flag in words(&text, "--").into_iter().filter(|flag| flag.trim_matches('-').len() > 1) {
            assert!(there.contains(flag), "docs/{name} speaks of {flag}, which is not there");
        }
        for variable in words(&text, "TIDINGS_") {
            assert!(help.contains(variable), "docs/{name} speaks of {variable}, which is not there");
        }
    }
}
