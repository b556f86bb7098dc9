//! The table of client libraries in docs/http.md: what each library does with a real proxy, and its version. With
//! `TIDINGS_WRITE_TABLE=1`, the test writes the table; otherwise it compares.

use std::path::Path;
use std::process::Command;

use tidings_tests::page::page;
use tidings_tests::{Cable, Database, Frame, Proxy};

use crate::access::Team;
use crate::clients::{Client, NAMES, awkward_texts, folder};

/// A client library.
#[derive(Clone, Copy, Debug)]
struct Library {
    /// What it is called in the table.
    shown: &'static str,
    /// Its package, as the file of versions names it.
    package: &'static str,
    /// Its language.
    language: Language,
    /// Who opens the stream again after its end.
    reconnects: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Node,
    /// A script of `tests/clients`, and whether it has several packages.
    Python(&'static str, bool),
}

const ITSELF: &str = "itself";
const USER: &str = "your code";

const fn node(shown: &'static str, package: &'static str, reconnects: &'static str) -> Library {
    Library { shown, package, language: Language::Node, reconnects }
}

const fn python(package: &'static str, script: &'static str, is_shared: bool, reconnects: &'static str) -> Library {
    Library { shown: package, package, language: Language::Python(script, is_shared), reconnects }
}

const LIBRARIES: [Library; 12] = [
    node("eventsource", "eventsource", ITSELF),
    node("eventsource, of 2022", "eventsource-2", ITSELF),
    node("event-source-polyfill", "event-source-polyfill", ITSELF),
    node("reconnecting-eventsource", "reconnecting-eventsource", ITSELF),
    node("extended-eventsource", "extended-eventsource", ITSELF),
    node("launchdarkly-eventsource", "launchdarkly-eventsource", ITSELF),
    node("eventsource-client", "eventsource-client", ITSELF),
    node("@microsoft/fetch-event-source", "@microsoft/fetch-event-source", "itself, if `onclose` throws"),
    python("httpx-sse", "httpx_sse_client.py", false, USER),
    python("sseclient-py", "sseclient_py_client.py", false, USER),
    python("launchdarkly-eventsource", "python_clients.py", true, ITSELF),
    python("aiohttp-sse-client2", "python_clients.py", true, "after a proper end only"),
];

impl Library {
    /// A client of it that prints events with these names.
    fn command(&self, url: &str, names: &[&str]) -> Command {
        match self.language {
            Language::Node => crate::clients::npm(self.package, url, names),
            Language::Python(script, is_shared) => {
                let mut command = Command::new(folder().join("venv/bin/python"));
                command.arg(folder().join(script));
                if is_shared {
                    command.arg(self.package);
                }
                command.arg(url);
                command
            }
        }
    }

    /// Its version, as the files say that fix it.
    fn version(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(folder().join(name)).expect("a file of versions");
        if self.language == Language::Node {
            let locked: serde_json::Value = serde_json::from_str(&read("package-lock.json")).expect("JSON");
            let version = &locked["packages"][format!("node_modules/{}", self.package)]["version"];
            return version.as_str().unwrap_or_else(|| panic!("no version of {}", self.package)).to_owned();
        }
        let prefix = format!("{}==", self.package);
        let requirements = read("requirements.txt");
        let version = requirements.lines().find_map(|line| line.strip_prefix(&prefix));
        version.unwrap_or_else(|| panic!("no version of {}", self.package)).to_owned()
    }

    fn language(&self) -> &'static str {
        if self.language == Language::Node { "JavaScript" } else { "Python" }
    }
}

/// What a library does, as it was seen.
#[derive(Debug, Default)]
struct Seen {
    is_exact: bool,
    resumes: bool,
    keeps_position: bool,
    obeys_retry: bool,
    sends_token: bool,
}

/// The events that are listened to.
fn names() -> Vec<&'static str> {
    [&NAMES[..], &["position"]].concat()
}

/// Waits until it has a stream again, whatever it says before.
fn wait_reopened(client: &Client) {
    while client.line()["open"] != true {}
}

/// The next event that is more than a position.
fn event(client: &Client) -> Frame {
    std::iter::repeat_with(|| client.frame()).find(|frame| frame.event != "position").expect("an event")
}

/// A client behind its own cable, which has its stream.
fn behind_cable(library: &Library, proxy: &Proxy) -> (Client, Cable) {
    let cable = Cable::to(proxy.address());
    let client = Client::start(library.command(&format!("http://{}/events?topic=exam", cable.address()), &names()));
    client.wait_open();
    (client, cable)
}

/// Cuts off all clients before their first event, publishes one, and lets them return.
fn keeps_position(db: &Database<'_>, proxy: &Proxy, clients: &[(Client, Cable)], seen: &mut [Seen]) {
    proxy.wait_clients(clients.len());
    // The position comes with the first bytes of a stream. Those that show it have read it.
    for (client, _) in clients {
        assert_eq!(client.frame().event, "position");
    }
    clients.iter().for_each(|(_, cable)| cable.cut());
    proxy.wait_clients(0);
    db.session().publish("exam", "\"missed\"");
    clients.iter().for_each(|(_, cable)| cable.join(proxy.address()));
    clients.iter().for_each(|(client, _)| wait_reopened(client));
    proxy.wait_clients(clients.len());
    db.session().publish("exam", "\"live\"");
    for ((client, _), seen) in clients.iter().zip(seen) {
        let first = event(client);
        seen.keeps_position = first.data == "\"missed\"";
        if seen.keeps_position {
            assert_eq!(event(client).data, "\"live\"");
        }
    }
}

/// Publishes texts, restarts the proxy, and publishes again, some of it while there is no proxy.
fn is_exact_and_resumes(db: &Database<'_>, proxy: &mut Proxy, clients: &[(Client, Cable)], seen: &mut [Seen]) {
    let mut session = db.session();
    let mut reference = proxy.live(&["exam"]);
    for (i, text) in awkward_texts().iter().enumerate() {
        session.with("SELECT tidings.publish_text('exam', $1, $2)", &[text, &NAMES[i % 4]]);
    }
    let expected = reference.take(awkward_texts().len());
    for ((client, _), seen) in clients.iter().zip(&mut *seen) {
        let got: Vec<Frame> = expected.iter().map(|_| event(client)).collect();
        seen.is_exact = got == expected;
    }
    drop(reference);
    assert!(proxy.terminate().success());
    session.publish("exam", "\"away\"");
    proxy.restart();
    clients.iter().for_each(|(client, _)| wait_reopened(client));
    session.publish("exam", "\"back\"");
    for ((client, _), seen) in clients.iter().zip(seen) {
        seen.resumes = event(client).data == "\"away\"" && event(client).data == "\"back\"";
    }
}

/// Whether a client that was told to return soon has done so three times before one that was told to return late did it
/// once. A client that does as it likes takes three times as long.
fn obeys_retry(library: &Library, soon: &Proxy, late: &Proxy) -> bool {
    let ((quick, quick_cable), (slow, slow_cable)) = (behind_cable(library, soon), behind_cable(library, late));
    // Both have read what comes first, `retry` included.
    assert_eq!([quick.frame().event, slow.frame().event], ["position"; 2]);
    slow_cable.cut();
    slow_cable.join(late.address());
    for _ in 0..3 {
        quick_cable.cut();
        quick_cable.join(soon.address());
        wait_reopened(&quick);
        // Its position, or events that it has missed, come behind `retry`.
        quick.line();
    }
    !slow.has_line()
}

fn exam() -> Vec<Seen> {
    let team = Team::new();
    let retry = ["--drain", "100ms", "--retry"];
    let mut proxy = team.db.proxy(&[&retry[..], &["100ms"]].concat());
    let late = team.db.proxy(&[&retry[..], &["20s"]].concat());
    let mut seen: Vec<Seen> = LIBRARIES.iter().map(|_| Seen::default()).collect();
    let clients: Vec<_> = LIBRARIES.iter().map(|library| behind_cable(library, &proxy)).collect();
    keeps_position(&team.db, &proxy, &clients, &mut seen);
    is_exact_and_resumes(&team.db, &mut proxy, &clients, &mut seen);
    drop(clients);
    std::thread::scope(|scope| {
        for (library, seen) in LIBRARIES.iter().zip(&mut seen) {
            let (proxy, late) = (&proxy, &late);
            scope.spawn(move || seen.obeys_retry = obeys_retry(library, proxy, late));
        }
    });
    let closed = team.proxy(&[]);
    for (library, seen) in LIBRARIES.iter().zip(&mut seen) {
        let mut command = library.command(&format!("http://{}/events?topic=boards_5", closed.address()), &names());
        command.env("TOKEN", team.token(1));
        let client = Client::start(command);
        seen.sends_token = client.line()["open"].as_bool().expect("a stream comes first, or none");
    }
    seen
}

fn table(seen: &[Seen]) -> String {
    let mut table = String::from(
        "| library | language | version | reconnects | events exact | resumes \
         | keeps a position without events | obeys `retry` | sends a token |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (library, seen) in LIBRARIES.iter().zip(seen) {
        let word = |yes| if yes { "yes" } else { "no" };
        let facts = [seen.is_exact, seen.resumes, seen.keeps_position, seen.obeys_retry, seen.sends_token].map(word);
        table += &format!(
            "| {} | {} | {} | {} | {} |\n",
            library.shown,
            library.language(),
            library.version(),
            library.reconnects,
            facts.join(" | ")
        );
    }
    table
}

#[test]
fn the_table_of_client_libraries_says_what_they_do() {
    let table = table(&exam());
    let text = page("http.md");
    let (start, end) = ("<!-- client libraries: made by `make test-clients` -->\n", "<!-- end -->");
    let from = text.find(start).expect("the mark in docs/http.md") + start.len();
    let to = from + text[from..].find(end).expect("the mark's end in docs/http.md");
    if std::env::var_os("TIDINGS_WRITE_TABLE").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/http.md");
        std::fs::write(path, [&text[..from], &table, &text[to..]].concat()).expect("write the page");
        return;
    }
    assert_eq!(text[from..to], table, "`make test-clients` writes the table");
}
