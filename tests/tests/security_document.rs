//! docs/security.md as a reader would follow it: each block of SQL and of shell is run as it is, and the output must be
//! what the document shows. Only the address of the database and the port of the proxy differ.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tidings_tests::cluster::free_port;
use tidings_tests::process::{Process, Signal, fresh_path};
use tidings_tests::{Cluster, Database, eventually, proxy, until};

/// The blocks of a page between fences, each with the language that the fence names.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    page.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').expect("a fence and a text")).collect()
}

/// A terminal in its own folder, in which the proxy is a command.
struct Terminal {
    folder: PathBuf,
    /// The functions that have been defined.
    prelude: String,
}

impl Terminal {
    fn command(&self, text: &str, output: &Path) -> Command {
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", &format!("{}\n{text}", self.prelude)]).current_dir(&self.folder);
        let commands = proxy::binary().canonicalize().expect("the proxy's binary");
        let path = std::env::var("PATH").expect("a PATH");
        command.env("PATH", format!("{}:{path}", commands.parent().expect("a folder").display()));
        // As by default, only sooner.
        command.env("TIDINGS_REAUTHORIZE", "200ms");
        let output = File::create(output).expect("create the output");
        command.stdin(Stdio::null()).stderr(output.try_clone().expect("share the output")).stdout(output);
        command
    }

    /// Starts a command that runs until it is ended.
    fn start(&self, text: &str, output: &Path) -> Process {
        Process::spawn(&mut self.command(&format!("exec {text}"), output), Signal::SIGKILL).expect("start bash")
    }

    /// Runs a command that ends by itself.
    fn run(&self, text: &str, output: &Path) {
        let status = self.command(text, output).status().expect("run bash");
        assert!(status.success(), "{text}\n{}", read(output));
    }
}

fn read(output: &Path) -> String {
    fs::read_to_string(output).expect("read an output")
}

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
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let page = fs::read_to_string(&page).expect("read docs/security.md");
    let page = page.replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"));
    let page = page.replace("@localhost/app", &format!("@127.0.0.1:{}/{}", cluster.port(), db.name()));

    let mut terminal = Terminal { folder: fresh_path("terminal"), prelude: String::new() };
    fs::create_dir(&terminal.folder).expect("create a folder");
    let (stream_output, answer) = (fresh_path("stream"), fresh_path("answer"));
    let (mut proxy, mut stream) = (None, None);
    let mut seen = Vec::new();
    for (language, text) in blocks(&page) {
        match language {
            "sql" => run_sql(&db, text),
            "sh" if text.starts_with("tidings-proxy") => {
                let log = fresh_path("proxy.log");
                let mut process = terminal.start(text, &log);
                eventually("the proxy is ready", || {
                    assert!(process.exited().is_none(), "{}", read(&log));
                    let answer = tidings_tests::http::get(([127, 0, 0, 1], port).into(), "/readyz");
                    answer.is_ok_and(|(head, _)| head.status == 200).then_some(())
                });
                proxy = Some(process);
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
    until("the stream of who is no member any more has ended", || stream.exited().is_some());
}
