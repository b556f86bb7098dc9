//! Clients by other authors against a real proxy: they see what the standard says, and resume after a restart.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use tidings_tests::follower::Habits;
use tidings_tests::process::{Process, Signal};
use tidings_tests::sse::{Item, Parser, Request};
use tidings_tests::{DEADLINE, Database, Follower, Frame, Proxy, Session};

use crate::boards;

const TOPICS: [&str; 2] = ["boards_5", "Übersicht & mehr"];

/// Names of events, for clients that must know them.
pub const NAMES: [&str; 4] = ["message", "changed", "html", "très long nom: d'événement"];

/// The data of the last event.
const END: &str = "nothing comes after this";

pub fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    assert!(
        folder.join("node_modules").exists() && folder.join("venv").exists(),
        "`make clients` installs the clients"
    );
    folder
}

fn url(proxy: &Proxy) -> String {
    let topics = TOPICS.map(|topic| format!("topic={}", tidings_tests::http::escape(topic)));
    format!("http://{}/events?{}", proxy.address(), topics.join("&"))
}

/// Texts that a careless server or client would damage.
pub fn awkward_texts() -> Vec<String> {
    let texts = [
        "plain",
        "two\nlines",
        "all\r\nkinds\rof\n\nline\n\r\nends\n",
        " a blank ahead, and behind ",
        ": no comment",
        "data: no field\nid: 9\nevent: x\nretry: 1",
        "Zażółć gęślą jaźń, 漢字, 🎈👩‍👩‍👧, e\u{301}, \u{202e}from the right",
        "separators that are no line ends: \u{2028}\u{2029}\u{85}\u{b}\u{c}\u{1e}",
        "\u{feff}no mark",
    ];
    let mut texts: Vec<String> = texts.map(str::to_owned).into();
    // More than any buffer in between.
    texts.push("ü".repeat(100_000));
    texts.push("line\n".repeat(5_000));
    texts
}

fn publish(session: &mut Session, first_row: i32) {
    for (i, text) in awkward_texts().iter().enumerate() {
        let (topic, name) = (TOPICS[i % 2], NAMES[i % 4]);
        session.with("SELECT tidings.publish_text($1, $2, $3)", &[&topic, text, &name]);
    }
    session.run(&format!("INSERT INTO board_items VALUES ({first_row}, 5, 'une ligne d''une table')"));
}

/// A client in its own process, which prints one line of JSON for each event.
pub struct Client {
    _process: Process,
    lines: Receiver<serde_json::Value>,
}

impl Client {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process =
            Process::spawn(&mut command, Signal::SIGKILL).unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let output = process.stdout().expect("its output");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let line = line.expect("a line");
                let json = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if sender.send(json).is_err() {
                    return;
                }
            }
        });
        Self { _process: process, lines }
    }

    #[track_caller]
    pub fn line(&self) -> serde_json::Value {
        self.lines.recv_timeout(DEADLINE).expect("the client says something")
    }

    /// Whether it has said something that was not read yet.
    pub fn has_line(&self) -> bool {
        // Nothing else reads the lines.
        self.lines.try_recv().is_ok()
    }

    /// Waits until it has a stream.
    #[track_caller]
    pub fn wait_open(&self) {
        assert!(self.line()["open"].as_bool().expect("a stream comes first"));
    }

    /// The next event.
    #[track_caller]
    pub fn frame(&self) -> Frame {
        let text = |json: &serde_json::Value| json.as_str().unwrap_or_else(|| panic!("no text: {json}")).to_owned();
        loop {
            let line = self.line();
            if line["open"].is_null() {
                return Frame { id: Some(text(&line["id"])), event: text(&line["event"]), data: text(&line["data"]) };
            }
        }
    }
}

fn is_end(frame: &Frame) -> bool {
    frame.data == END
}

/// What our own strict client reads from the same stream.
fn reference(proxy: &Proxy) -> Follower {
    Follower::start(Habits::faithful(proxy.address()), Request::live(&TOPICS), is_end)
}

/// Sends events before, during and after a restart of the proxy, and compares what `command`'s client received with
/// what it should have received.
fn resumes_where_it_was(db: &Database<'_>, proxy: &mut Proxy, command: Command) {
    let reference = reference(proxy);
    let client = Client::start(command);
    client.wait_open();
    let mut session = db.session();
    publish(&mut session, 1);
    let mut got = Vec::new();
    while got.is_empty() {
        got.extend(Some(client.frame()).filter(|frame| frame.event != "position"));
    }
    assert!(proxy.terminate().success());
    publish(&mut session, 2);
    proxy.restart();
    publish(&mut session, 3);
    session.with("SELECT tidings.publish_text($1, $2)", &[&TOPICS[0], &END]);
    while !got.last().is_some_and(is_end) {
        got.extend(Some(client.frame()).filter(|frame| frame.event != "position"));
    }
    got.pop();
    let expected = reference.finish();
    assert_eq!(expected.len(), 3 * (awkward_texts().len() + 1));
    for (got, expected) in got.iter().zip(&expected) {
        assert_eq!(got, expected);
    }
    assert_eq!(got.len(), expected.len());
}

fn database_and_proxy() -> (Database<'static>, Proxy) {
    let db = boards();
    let proxy = db.proxy(&["--retry", "100ms", "--drain", "100ms"]);
    (db, proxy)
}

fn python(script: &str, proxy: &Proxy) -> Command {
    let folder = folder();
    let mut command = Command::new(folder.join("venv/bin/python"));
    command.arg(folder.join(script)).arg(url(proxy));
    command
}

/// A client based on one of npm's packages, which reconnects by itself. It prints events with these names.
pub fn npm(package: &str, url: &str, names: &[&str]) -> Command {
    let mut command = Command::new("node");
    command.arg(folder().join("eventsource.mjs")).args([package, url]).args(names);
    command
}

#[test]
fn the_npm_package_eventsource_resumes() {
    for package in ["eventsource", "eventsource-2"] {
        let (db, mut proxy) = database_and_proxy();
        let command = npm(package, &url(&proxy), &NAMES);
        resumes_where_it_was(&db, &mut proxy, command);
    }
}

#[test]
fn the_python_package_httpx_sse_resumes() {
    let (db, mut proxy) = database_and_proxy();
    let command = python("httpx_sse_client.py", &proxy);
    resumes_where_it_was(&db, &mut proxy, command);
}

#[test]
fn the_python_package_sseclient_py_resumes() {
    let (db, mut proxy) = database_and_proxy();
    let command = python("sseclient_py_client.py", &proxy);
    resumes_where_it_was(&db, &mut proxy, command);
}

/// What curl prints until `is_last` accepts an event.
fn curl(proxy: &Proxy, last_id: Option<&str>, begun: impl FnOnce(), is_last: impl Fn(&[Frame]) -> bool) -> Vec<Frame> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--no-buffer"]).arg(url(proxy));
    if let Some(id) = last_id {
        command.args(["--header", &format!("Last-Event-ID: {id}")]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::spawn(&mut command, Signal::SIGKILL).expect("start curl");
    let mut output = process.stdout().expect("its output");
    let (mut parser, mut frames, mut begun) = (Parser::default(), Vec::new(), Some(begun));
    let mut space = vec![0; 64 * 1024];
    while !is_last(&frames) {
        let n = output.read(&mut space).expect("its output");
        assert!(n > 0, "curl has ended: {:?}", process.wait());
        if let Some(begun) = begun.take() {
            begun();
        }
        let take = &mut |item| {
            if let Item::Frame(frame) = item {
                frames.push(frame)
            }
        };
        parser.feed(&space[..n], take).expect("an event stream");
    }
    frames
}

#[test]
fn curl_prints_an_event_stream_and_resumes_after_an_id() {
    let (db, mut proxy) = database_and_proxy();
    let reference = reference(&proxy);
    let mut session = db.session();
    let mut got = curl(&proxy, None, || publish(&mut session, 1), |frames| frames.len() >= 5);
    assert!(proxy.terminate().success());
    publish(&mut session, 2);
    session.with("SELECT tidings.publish_text($1, $2)", &[&TOPICS[0], &END]);
    proxy.restart();
    let last = got.last().expect("an event").id().to_owned();
    got.extend(curl(&proxy, Some(&last), || (), |frames| frames.last().is_some_and(is_end)));
    got.pop();
    assert_eq!(got, reference.finish());
}
