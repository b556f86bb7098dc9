//! The real proxy binary.

use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use crate::cluster::free_port;
use crate::http;
use crate::process::{Process, Signal, fresh_path, tail};
use crate::sse::{Request, Sse};
use crate::wait::until;

/// The flags that restrict access; without one of them the proxy is open to everyone.
const KEY_FLAGS: &[&str] = &["--jwt-secret-file", "--jwks-file", "--jwks-url", "--auth-url"];

/// A running proxy. Dropping it ends it.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    address: SocketAddr,
    database_url: String,
    args: Vec<String>,
    log: PathBuf,
    verbose: bool,
    binary: PathBuf,
}

impl Proxy {
    /// Starts a proxy and waits until it is ready. It is open to everyone unless `args`, which come after the usual
    /// ones, name a key file.
    #[track_caller]
    pub fn start(database_url: &str, args: &[&str]) -> Self {
        let proxy = Self::start_at(free_port(), database_url, args);
        proxy.wait_ready();
        proxy
    }

    /// The same with all log levels, for tests that no token is logged.
    #[track_caller]
    pub fn start_verbose(database_url: &str, args: &[&str]) -> Self {
        let proxy = Self::launch(free_port(), database_url, args, true);
        proxy.wait_ready();
        proxy
    }

    /// The same as [`Self::start`] at a given port, without waiting.
    pub fn start_at(port: u16, database_url: &str, args: &[&str]) -> Self {
        Self::launch(port, database_url, args, false)
    }

    /// Starts another binary, that of a release for instance, and waits until it is ready.
    #[track_caller]
    pub fn start_binary(binary: &Path, database_url: &str, args: &[&str]) -> Self {
        let proxy = Self::launch_binary(binary.to_owned(), free_port(), database_url, args, false);
        proxy.wait_ready();
        proxy
    }

    /// Ends it by SIGTERM, starts the binary of this version at the same address, and waits until that is ready.
    #[track_caller]
    pub fn upgrade(&mut self) {
        assert!(self.terminate().success(), "{}", self.log_tail());
        self.binary = binary();
        self.restart();
    }

    fn launch(port: u16, database_url: &str, args: &[&str], verbose: bool) -> Self {
        Self::launch_binary(binary(), port, database_url, args, verbose)
    }

    fn launch_binary(binary: PathBuf, port: u16, database_url: &str, args: &[&str], verbose: bool) -> Self {
        let log = fresh_path("proxy.log");
        File::create(&log).expect("create the proxy's log");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let process = spawn(&binary, database_url, address, &args, &log, verbose);
        Self { process, address, database_url: database_url.to_owned(), args, log, verbose, binary }
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until it reports that it is connected and caught up.
    #[track_caller]
    pub fn wait_ready(&self) {
        self.process.wait_until_up("the proxy is ready", &self.log, || {
            let (head, _) = http::get(self.address, "/readyz").ok()?;
            (head.status == 200).then_some(())
        });
    }

    /// Opens a stream; any other response fails the test.
    #[track_caller]
    pub fn open(&self, request: &Request) -> Sse {
        Sse::connect(self.address, request).unwrap_or_else(|error| panic!("{request:?}: {error}\n{}", self.log_tail()))
    }

    /// Opens a stream that starts now.
    #[track_caller]
    pub fn live(&self, topics: &[&str]) -> Sse {
        self.open(&Request::live(topics))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        self.process.end(Signal::SIGKILL);
    }

    /// Ends it by SIGTERM and waits for its end.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.end(Signal::SIGTERM)
    }

    /// Starts it again at the same address after it has ended, and waits until it is ready.
    #[track_caller]
    pub fn restart(&mut self) {
        self.start_again();
        self.wait_ready();
    }

    /// The same without waiting.
    pub fn start_again(&mut self) {
        self.process = spawn(&self.binary, &self.database_url, self.address, &self.args, &self.log, self.verbose);
    }

    /// Its metrics: each sample under its name, labels included.
    #[track_caller]
    pub fn metrics(&self) -> HashMap<String, f64> {
        let (head, body) = http::get(self.address, "/metrics").expect("scrape the metrics");
        assert_eq!(head.status, 200);
        let samples = body.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        samples
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
                (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line:?}")))
            })
            .collect()
    }

    /// The sum of a metric over all its labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        let of_name = |key: &str| key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
        let values: Vec<f64> = metrics.iter().filter(|(key, _)| of_name(key)).map(|(_, value)| *value).collect();
        assert!(!values.is_empty(), "no metric {name} among {:?}", metrics.keys());
        values.iter().sum()
    }

    /// Waits until it serves exactly `n` streams.
    #[track_caller]
    pub fn wait_clients(&self, n: usize) {
        until(&format!("the proxy serves {n} clients"), || self.metric("tidings_clients") as usize == n);
    }

    /// The log file.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// The whole log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("read the proxy's log")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the proxy's log ---\n{}---", self.log_tail());
        }
    }
}

/// The proxy's binary: `TIDINGS_PROXY`, or what `make build` made.
pub fn binary() -> PathBuf {
    std::env::var_os("TIDINGS_PROXY")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/tidings-proxy"))
}

fn spawn(
    binary: &Path,
    database_url: &str,
    address: SocketAddr,
    args: &[String],
    log: &Path,
    verbose: bool,
) -> Process {
    let mut command = Command::new(binary);
    command.args(["--database-url", database_url, "--listen", &address.to_string()]).args(args);
    if !args.iter().any(|arg| KEY_FLAGS.contains(&arg.as_str())) {
        command.arg("--open");
    }
    if verbose {
        command.env("RUST_LOG", "debug");
    }
    Process::start(&mut command, Signal::SIGKILL, log)
}
