//! docs/security.md as a reader would follow it: each block of SQL and of shell is run as it is, and the output must be
//! what the document shows. Only the address of the database and the port of the proxy differ.

use serde_json::Value;
use tidings_tests::cluster::free_port;
use tidings_tests::page::{Terminal, blocks, page, read};
use tidings_tests::process::fresh_path;
use tidings_tests::{Cluster, Database, until};

/// Runs SQL; a statement with its answer in a comment after it must return that answer.
fn run_sql(db: &Database<'_>, text: &str) {
    let mut session = db.session();
    for line in text.lines().filter(|line| line.contains("; ") && line.contains("-- {")) {
        let (statement, answer) = line.split_once("--").expect("a comment");
        let statement = statement.trim().trim_end_matches(';');
        assert_eq!(session.one::<String>(&format!("SELECT ({statement})::text")), answer.trim(), "{statement}");
    }
    session.run(text);
}

#[test]
fn the_example_in_the_security_page_works() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    let port = free_port();
    let page = page("security.md").replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"));
    let page = page.replace("@localhost/app", &format!("@127.0.0.1:{}/{}", cluster.port(), db.name()));

    let mut terminal = Terminal::new();
    // As by default, only sooner.
    terminal.environment.push(("TIDINGS_REAUTHORIZE".into(), "200ms".into()));
    let (stream_output, answer) = (fresh_path("stream"), fresh_path("answer"));
    let (mut proxy, mut stream) = (None, None);
    let mut seen = Vec::new();
    for (language, text) in blocks(&page) {
        match language {
            "sql" => run_sql(&db, text),
            "sh" if text.starts_with("tidings-proxy") => {
                proxy = Some(terminal.serve(text, port, "/readyz", 200));
            }
            "sh" if text.contains("() {") => terminal.prelude.push_str(text),
            "sh" if text.starts_with("curl -N") => {
                stream = Some(terminal.start(text, &stream_output));
                until("the stream has begun", || read(&stream_output).contains(": tidings"));
            }
            "sh" => terminal.run(text, &answer),
            "json" => {
                let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|e| panic!("{e}: {text}"));
                let last = read(&answer);
                assert_eq!(json(last.lines().last().unwrap_or_default()), json(text));
            }
            "" => until(&format!("the stream brings {text}"), || read(&stream_output).contains(text)),
            other => panic!("a block of {other:?}"),
        }
        seen.push(language);
    }
    assert!(seen.len() > 12 && proxy.is_some(), "{seen:?}");
    let mut stream = stream.expect("a stream");
    until("the stream of someone who is no longer a member has ended", || stream.exited().is_some());
}
