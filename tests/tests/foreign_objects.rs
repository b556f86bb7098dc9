//! Tidings never calls objects of other roles: no function, operator or type, in any schema and with any `search_path`
//! of the session.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Session, shared, until};

use crate::access::{SECRET, sign};

/// Words before a parenthesis that are not functions, and types that are words of the grammar.
const GRAMMAR: &[&str] = &[
    "materialized",
    "over",
    "all",
    "and",
    "any",
    "array",
    "as",
    "by",
    "coalesce",
    "exists",
    "from",
    "greatest",
    "join",
    "lateral",
    "least",
    "not",
    "nullif",
    "on",
    "operator",
    "or",
    "r",
    "row",
    "select",
    "then",
    "values",
    "when",
    "where",
];

/// Names of types that are looked up like those of functions.
const TYPES: &[&str] =
    &["bytea", "int2", "int4", "int8", "jsonb", "pg_snapshot", "regclass", "text", "timestamptz", "xid8"];

/// Words that stand for an operator, which is also looked up in the path.
const OPERATORS: &[&str] = &["between", "ilike", "in", "like", "natural", "using", "similar"];

/// The files with this ending in a folder and its subfolders.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let mut texts = Vec::new();
    let mut folders = vec![path];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                texts.push(fs::read_to_string(path).expect("a file"));
            }
        }
    }
    texts
}

/// The string literals of a Rust source, without its tests and comments.
fn literals(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: Vec<&str> = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    // A quote as a character does not begin a string.
    let code = code.join("\n").replace("'\"'", "").replace("'\\\"'", "");
    let mut literals = Vec::new();
    let mut rest = code.as_str();
    while let Some(start) = rest.find('"') {
        let is_raw = rest[..start].ends_with("r#");
        rest = &rest[start + 1..];
        let mut literal = String::new();
        if is_raw {
            let end = rest.find("\"#").unwrap_or(rest.len());
            literal.push_str(&rest[..end]);
            rest = rest.get(end + 2..).unwrap_or_default();
        } else {
            let mut chars = rest.char_indices();
            let mut end = rest.len();
            while let Some((at, char)) = chars.next() {
                match char {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    // Escaped characters do not occur in SQL.
                    '\\' => drop(chars.next()),
                    _ => literal.push(char),
                }
            }
            rest = &rest[end..];
        }
        literals.push(literal);
    }
    literals
}

/// Whether a text is an SQL statement rather than a word of a sentence.
fn is_statement(text: &str) -> bool {
    let words = ["SELECT ", "WITH ", "INSERT ", "UPDATE ", "DELETE ", "TRUNCATE ", "SET ", "CALL ", "DO "];
    words.iter().any(|word| text.trim_start().starts_with(word))
}

/// The names in a statement, or in the body of a function, that are looked up in the session's path.
fn looked_up(statement: &str) -> Vec<String> {
    let lines: Vec<&str> = statement.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    // Strings are every other piece between quotes. `:=` and `FOREACH … IN ARRAY` are not SQL.
    let text: String = lines
        .join(" ")
        .split('\'')
        .step_by(2)
        .collect::<Vec<_>>()
        .join("''")
        .replace(":=", " ")
        .replace(" IN ARRAY ", " ");
    let mut faults = Vec::new();
    let mut rest = String::new();
    let mut pieces = text.split("OPERATOR(pg_catalog.");
    rest.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        rest.push_str(piece.split_once(')').map_or("", |(_, after)| after));
    }
    let chars: Vec<char> = rest.chars().collect();
    let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let mut at = 0;
    while at < chars.len() {
        if chars[at].is_ascii_alphabetic() || chars[at] == '_' {
            let start = at;
            while at < chars.len() && is_word(chars[at]) {
                at += 1;
            }
            let word = chars[start..at].iter().collect::<String>();
            let lower = word.to_lowercase();
            let is_qualified = start > 0 && chars[start - 1] == '.';
            let is_cast = start > 1 && chars[start - 1] == ':' && chars[start - 2] == ':';
            let next = chars[at..].iter().find(|char| **char != ' ');
            let is_called = next == Some(&'(') && !GRAMMAR.contains(&lower.as_str());
            let names_a_type = TYPES.contains(&lower.as_str()) && next != Some(&'.');
            if !is_qualified
                && (is_called
                    || names_a_type
                    || OPERATORS.contains(&lower.as_str())
                    || (is_cast && lower != "pg_catalog"))
            {
                faults.push(word);
            }
        } else {
            let before = chars[..at].iter().rev().find(|char| **char != ' ');
            let is_star = chars[at] == '*' && !before.is_some_and(|char| char.is_ascii_digit() || *char == ')');
            if "=<>|&+/~%^-@#!?*".contains(chars[at]) && !is_star {
                faults.push(chars[at..].iter().take(12).collect());
            }
            at += 1;
        }
    }
    // An assignment looks up no operator.
    if rest.trim_start().starts_with("SET ") {
        faults.retain(|fault| !fault.starts_with('='));
    } else if rest.trim_start().starts_with("UPDATE ") {
        let assignment = faults.iter().position(|fault| fault.starts_with('='));
        assignment.map(|at| faults.remove(at));
    }
    faults
}

#[test]
fn the_search_for_unqualified_names_finds_them() {
    for (statement, expected) in [
        ("SELECT unnest($1::pg_catalog.text[])", &["unnest"][..]),
        ("SELECT a = 1 FROM tidings.log", &["= 1 FROM tid"]),
        ("SELECT pg_catalog.count(*) FROM t WHERE x IN (1)", &["IN"]),
        ("SELECT x::text, y::pg_catalog.int4, ROW(1), '= a(' -- b(", &["text"]),
        ("SELECT a * 2, t.*, * FROM t JOIN u USING (x)", &["USING"]),
        ("UPDATE t SET a = 'x' OPERATOR(pg_catalog.||) pg_catalog.f(a)", &[]),
    ] {
        assert_eq!(looked_up(statement), expected, "{statement}");
    }
    assert_eq!(literals("f(\"a\\\"b\", '\"', r#\"c \"d\"#); // \"e\"\n \"f\""), ["ab", "c \"d", "e", "f"]);
}

#[test]
fn none_of_our_statements_looks_up_a_name_in_the_sessions_path() {
    let mut count = 0;
    for source in ["stream-proxy/src", "pg-extension/src"].iter().flat_map(|folder| files(folder, "rs")) {
        for statement in literals(&source).iter().filter(|literal| is_statement(literal)) {
            count += 1;
            assert_eq!(looked_up(statement), [""; 0], "{statement}");
        }
    }
    assert!(count > 10, "{count} statements");
    // Nor does a function of the extension: its path is fixed, except for those that ask what a name means to the
    // caller, and for one that the planner expands in place.
    let db = shared().database();
    let mut session = db.session();
    let open = session.all(
        "SELECT p.proname::text, p.prosrc FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
         WHERE p.pronamespace = 'tidings'::regnamespace AND l.lanname IN ('sql', 'plpgsql') AND p.prosqlbody IS NULL
           AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(p.proconfig, '{}')) ORDER BY 1",
        &[],
    );
    assert_eq!(
        open.iter().map(|row| row.get(0)).collect::<Vec<String>>(),
        ["allow", "guard", "segments_between", "snapshot", "watch"]
    );
    for row in open {
        let body: String = row.get(1);
        assert_eq!(looked_up(&body), [""; 0], "{body}");
    }
}

/// Creates, in a schema, every object that a name or an operator of ours could mean if it were looked up there. Each
/// writes into the server's log when it is called. `$1` are the words of our SQL.
const TRAPS: &str = include_str!("traps.sql");

/// All words of our SQL.
fn words() -> Vec<String> {
    let sources = ["stream-proxy/src", "pg-extension/src"].iter().flat_map(|folder| files(folder, "rs"));
    let statements = sources.flat_map(|source| literals(&source)).filter(|literal| is_statement(literal));
    let texts = statements.chain(files("sql/extension", "sql")).chain(files("sql/upgrade", "sql"));
    let words: BTreeSet<String> = texts
        .flat_map(|text| {
            let words = text.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'));
            words.map(str::to_lowercase).collect::<Vec<_>>()
        })
        .collect();
    words.into_iter().collect()
}

/// Creates the traps of `TRAPS` in a schema.
fn set_traps(session: &mut Session, schema: &str) {
    session.run("SET search_path = pg_catalog");
    session.with(
        "SELECT set_config('trap.schema', $1, false), set_config('trap.words', $2::text[]::text, false)",
        &[&schema, &words()],
    );
    session.run(TRAPS);
    let made =
        format!("SELECT count(*) FROM pg_proc WHERE pronamespace = '{schema}'::regnamespace AND prosrc ~ 'TRAPPED'");
    let made: i64 = session.one(&made);
    assert!(made > 1000, "{made} traps in {schema}");
}

#[test]
fn no_object_of_another_role_is_called() {
    // Partitions are emptied as well.
    let cluster = Cluster::start(&[("tidings.retention", "1")]);
    for release in [None, Some("0.1.0"), Some("0.1.1")] {
        let db = cluster.empty_database();
        let (evil, proxy, member, manager) = (db.role("evil"), db.role("proxy"), db.role("member"), db.role("manager"));
        // The attackers own the database, so they can change its settings. A session that knows this sets its own path.
        let mut dba = db.session();
        dba.run(&format!("ALTER DATABASE {} OWNER TO {evil}; GRANT CREATE ON SCHEMA public TO {evil}", db.name()));
        let mut theirs = db.session_as(&evil);
        theirs.run("CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC");
        for schema in ["evil", "public"] {
            set_traps(&mut theirs, schema);
        }
        theirs.run(&format!("ALTER DATABASE {} SET search_path = evil, public, pg_catalog", db.name()));
        let log = || fs::read_to_string(cluster.log_file()).expect("the server's log");
        let trapped = || log().matches("TRAPPED").count();
        // The traps work.
        let before = trapped();
        db.session().run("SELECT unnest(ARRAY['a']), 1 = 1, 'a' || 1");
        assert!(trapped() >= before + 3);
        let before = trapped();
        let mut dba = db.session();
        match release {
            None => dba.run("CREATE EXTENSION tidings; GRANT CREATE, USAGE ON SCHEMA tidings TO PUBLIC"),
            Some(release) => dba.run(&format!(
                "CREATE EXTENSION tidings VERSION '{release}'; GRANT CREATE, USAGE ON SCHEMA tidings TO PUBLIC"
            )),
        }
        set_traps(&mut theirs, "tidings");
        if release.is_some() {
            dba.run("ALTER EXTENSION tidings UPDATE; GRANT USAGE ON SCHEMA tidings TO PUBLIC");
        }
        let url = cluster.url(db.name(), &proxy);
        dba.run(&format!(
            "SELECT tidings.grant_proxy('{proxy}'::pg_catalog.regrole), tidings.grant_manager('{manager}'::pg_catalog.regrole);
             CREATE TABLE public.items (id int, board_id int, title pg_catalog.text) PARTITION BY LIST (board_id);
             CREATE TABLE public.items_5 PARTITION OF public.items FOR VALUES IN (5);
             ALTER TABLE public.items OWNER TO {manager}; ALTER TABLE public.items_5 OWNER TO {manager};
             ALTER ROLE {proxy} NOINHERIT; GRANT {member} TO {proxy}"
        ));
        let text = |text: &str| format!("'{text}'::pg_catalog.text");
        let watch = format!(
            "tidings.watch('public.items'::pg_catalog.regclass, {}, {}, NULL::pg_catalog.jsonb, NULL::pg_catalog.text[],
                 '{{title}}'::pg_catalog.text[], '{{INSERT,DELETE}}'::pg_catalog.text[], NULL::pg_catalog.text, {}, {})",
            text("boards_{board_id}"),
            text("changed"),
            text("changed"),
            text("default")
        );
        let mut session = db.session_as(&manager);
        session.run(&format!(
            "SELECT {watch}; SELECT {watch};
             SELECT tidings.allow({}, {}); SELECT tidings.allow({}, {}); SELECT tidings.disallow({})",
            text("boards_{id}"),
            text("SELECT WHERE {id} OPERATOR(pg_catalog.=) ''5''"),
            text("x"),
            text("SELECT"),
            text("x"),
        ));
        session.run(&format!("SELECT tidings.export(); SELECT * FROM tidings.check(ARRAY[{}])", text("boards_5")));
        let secret = tidings_tests::process::fresh_path("secret");
        fs::write(&secret, SECRET).expect("write the secret");
        let proxy = tidings_tests::Proxy::start(&url, &["--jwt-secret-file", secret.to_str().expect("a path")]);
        let token = sign(&serde_json::json!({"role": member}));
        let mut sse = proxy.open(&Request::live(&["boards_5"]).by(&token));
        for id in 1..=3 {
            session.run(&format!("INSERT INTO public.items VALUES ({id}, 5, 'x'); DELETE FROM public.items"));
        }
        session.run(&format!(
            "SELECT tidings.publish({0}, '1'::pg_catalog.jsonb, {0}), tidings.publish_text({0}, {0}, {0})",
            text("boards_5")
        ));
        let frames = sse.take(8);
        let mut again = proxy.open(&Request::since(&["boards_5"], frames[0].id()).by(&token));
        assert_eq!(again.take(7), frames[1..]);
        let mut dba = db.session();
        for view in ["events", "open_topics", "rules", "status", "watches"] {
            dba.run(&format!("SELECT * FROM tidings.{view}"));
        }
        dba.run(
            "SELECT * FROM tidings.changes('earliest'::pg_catalog.text, NULL::pg_catalog.text[], 10::pg_catalog.int4)",
        );
        dba.run(&format!(
            "SELECT * FROM tidings.segments(tidings.locate({}), 10::pg_catalog.int4); SELECT tidings.rotate_channel();
             SELECT tidings.authorize(pg_catalog.jsonb_build_object('role', {}), ARRAY[{}])",
            text("earliest"),
            text(&member),
            text("boards_5")
        ));
        let mut look = cluster.session(db.name(), "postgres");
        look.run("SET search_path = pg_catalog");
        until("the topic is reported", || look.one("SELECT count(*) > 0 FROM tidings.open_topics"));
        until("the log is emptied", || look.one("SELECT NOT EXISTS (SELECT FROM tidings.log)"));
        session.run(&format!("SELECT tidings.unwatch('public.items'::pg_catalog.regclass, {})", text("default")));
        dba.run("DROP EXTENSION tidings CASCADE");
        let called: BTreeSet<String> =
            log().split("TRAPPED").skip(before + 1).filter_map(|rest| rest.lines().next()).map(str::to_owned).collect();
        assert!(called.is_empty(), "called after {release:?}: {called:#?}");
    }
}
