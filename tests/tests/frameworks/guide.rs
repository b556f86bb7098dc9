//! Follows a page: each block of code becomes the file that its first line names, or is run as it is, and what comes
//! out must be what the page shows. Only addresses and ports differ.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tidings_tests::cluster::{SUPERUSER, free_port};
use tidings_tests::page::{Terminal, blocks, page, read};
use tidings_tests::process::{Process, fresh_path};
use tidings_tests::{Cluster, Proxy, Session, http, until};

/// A page, and what has been made of it so far.
pub struct Guide {
    pub cluster: Cluster,
    pub terminal: Terminal,
    /// The ports of the application and of the page's proxy.
    pub application: u16,
    pub proxy: u16,
    page: String,
    database: &'static str,
    /// The path at which Ben signs in.
    sign_in: &'static str,
    servers: Vec<Process>,
}

impl Guide {
    /// A page on which the application has this port and this database.
    pub fn new(name: &str, port: u16, database: &'static str, sign_in: &'static str) -> Self {
        let cluster = Cluster::start(&[]);
        let (application, proxy) = (free_port(), free_port());
        // The page's own port first: the digits of another one may contain it.
        let text = page(name)
            .replace(&port.to_string(), &application.to_string())
            .replace("127.0.0.1:8080", &format!("127.0.0.1:{proxy}"))
            .replace("@localhost/", &format!("@127.0.0.1:{}/", cluster.port()));
        let mut guide = Self {
            terminal: Terminal::new(),
            application,
            proxy,
            page: text,
            database,
            sign_in,
            servers: Vec::new(),
            cluster,
        };
        guide.environment("PGPORT", &guide.cluster.port().to_string());
        guide.environment("LANG", "C.UTF-8");
        guide
    }

    /// Sets a variable of the environment of all commands.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.terminal.environment.push((name.to_owned(), value.to_owned()));
    }

    /// A file of the application.
    pub fn path(&self, name: &str) -> PathBuf {
        self.terminal.folder.join(name)
    }

    /// A session in the application's database, as the superuser.
    pub fn session(&self) -> Session {
        self.cluster.session(self.database, SUPERUSER)
    }

    /// Runs commands that end by themselves.
    #[track_caller]
    pub fn shell(&self, text: &str) {
        self.terminal.run(text, &fresh_path("output"));
    }

    /// Starts a proxy of the same application, with `args`.
    pub fn another_proxy(&self, args: &[&str]) -> Proxy {
        let url = self.cluster.url(self.database, "tidings_proxy");
        let may = format!("http://127.0.0.1:{}/may_stream", self.application);
        Proxy::start(&url, &[&["--auth-url", &may], args].concat())
    }

    /// Signs a person in, and returns the cookie.
    #[track_caller]
    pub fn sign_in(&self, name: &str) -> String {
        let path = self.sign_in.replace("Ben", name);
        let (head, body) = http::get(([127, 0, 0, 1], self.application).into(), &path).expect("sign in");
        let cookies = head.header("set-cookie").unwrap_or_else(|| panic!("{path}: {} {body}", head.status));
        cookies.split(';').next().expect("a cookie").to_owned()
    }

    /// Follows the page from its beginning to its end, except for the blocks that `instead` handles.
    #[track_caller]
    pub fn follow(&mut self, instead: impl Fn(&mut Self, &str) -> bool) {
        let page = std::mem::take(&mut self.page);
        let (answer, stream) = (fresh_path("answer"), fresh_path("stream"));
        let mut opened = 0;
        for (language, text) in blocks(&page) {
            if instead(self, text) {
                continue;
            }
            match (language, file_of(text)) {
                ("" | "json", _) => {}
                (_, Some(file)) => {
                    self.write(file, text);
                    continue;
                }
                ("sql", None) => self.sql(text),
                ("sh", None) if text.starts_with("curl -N") => {
                    self.servers.push(self.terminal.start(text, &stream));
                    until("the stream has begun", || read(&stream).contains(": tidings"));
                    opened += 1;
                }
                ("sh", None) => self.commands(text, &answer),
                (other, None) => panic!("a block of {other:?} without a file:\n{text}"),
            }
            match language {
                "json" => {
                    let json =
                        |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|e| panic!("{e}: {text}"));
                    let last = read(&answer);
                    assert_eq!(json(last.lines().last().unwrap_or_default()), json(text));
                }
                "" => until(&format!("the stream brings {text}"), || read(&stream).contains(text)),
                _ => {}
            }
        }
        assert_eq!(opened, 1, "the page opens a stream");
    }

    fn commands(&mut self, text: &str, answer: &Path) {
        let is_server = ["bin/rails server", "node server", "python3 manage.py runserver"];
        if text.starts_with("tidings-proxy") {
            self.servers.push(self.terminal.serve(text, self.proxy, "/readyz", 200));
        } else if is_server.iter().any(|command| text.starts_with(command)) {
            self.servers.push(self.terminal.serve(text, self.application, "/may_stream?topic=boards_1", 401));
        } else if text.starts_with("export") {
            self.terminal.prelude.push_str(text);
        } else {
            self.terminal.run(text, answer);
        }
        // A terminal stays where it has gone.
        if let Some(folder) = text.lines().find_map(|line| line.strip_prefix("cd ")) {
            self.terminal.folder.push(folder);
        }
    }

    /// Runs SQL as the superuser, in the application's database as soon as there is one.
    fn sql(&self, text: &str) {
        let exists = format!("SELECT EXISTS (SELECT FROM pg_database WHERE datname = '{}')", self.database);
        let database = match text.lines().next() {
            Some("-- in template1") => "template1",
            _ if self.cluster.session("postgres", SUPERUSER).one(&exists) => self.database,
            _ => "postgres",
        };
        self.cluster.session(database, SUPERUSER).run(text);
    }

    /// Writes a file. "in config.py" means: at its end.
    fn write(&self, file: &str, text: &str) {
        let (file, before) = match file.strip_prefix("in ") {
            Some(file) => (file, fs::read_to_string(self.path(file)).expect("a file to add to")),
            None => (file, String::new()),
        };
        let path = self.path(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("create a folder");
        fs::write(&path, before + text).expect("write a file");
    }
}

/// The file that the first line of a block names in a comment.
fn file_of(text: &str) -> Option<&str> {
    let line = text.lines().next()?;
    let start = ["# ", "// ", "-- ", "<%# ", "<!-- "].iter().find_map(|start| line.strip_prefix(start))?;
    let name = start.trim_end_matches(" %>").trim_end_matches(" -->");
    let is_file =
        name.trim_start_matches("in ").chars().all(|char| char.is_ascii_alphanumeric() || "_/.".contains(char));
    (is_file && name.contains('.')).then_some(name)
}
