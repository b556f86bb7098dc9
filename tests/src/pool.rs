//! PgBouncer in front of a database.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::free_port;
use crate::database::Database;
use crate::process::{Process, Signal, fresh_path};
use crate::wait::until;

/// Where Debian has it.
const BINARY: &str = "/usr/sbin/pgbouncer";

/// A running pool. Dropping it ends it.
#[derive(Debug)]
pub struct Pool {
    process: Process,
    port: u16,
    config: PathBuf,
    log: PathBuf,
    /// The entry of its database.
    target: String,
    name: String,
}

impl Pool {
    /// Starts a pool in this mode, `transaction` or `session`, whose sessions have the proxy's role; `None` if
    /// PgBouncer is not installed.
    #[track_caller]
    pub fn start(db: &Database<'_>, mode: &str) -> Option<Self> {
        if !Path::new(BINARY).exists() {
            return None;
        }
        let (port, config, log) = (free_port(), fresh_path("pgbouncer.ini"), fresh_path("pgbouncer.log"));
        let name = db.name().to_owned();
        let target = format!("{name} = host=127.0.0.1 port={} user={}", db.cluster().port(), db.proxy_role());
        let process = launch(&config, &log, port, &target, mode);
        Some(Self { process, port, config, log, target, name })
    }

    /// Starts it again in another mode, at the same address.
    #[track_caller]
    pub fn restart(&mut self, mode: &str) {
        self.process.end(Signal::SIGKILL);
        self.process = launch(&self.config, &self.log, self.port, &self.target, mode);
    }

    /// Where a client connects.
    pub fn url(&self) -> String {
        format!("postgres://me@127.0.0.1:{}/{}", self.port, self.name)
    }
}

#[track_caller]
fn launch(config: &Path, log: &Path, port: u16, target: &str, mode: &str) -> Process {
    let settings = format!(
        "[databases]\n{target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
         auth_type = any\npool_mode = {mode}\n"
    );
    std::fs::write(config, settings).expect("a file");
    let process = Process::start(Command::new(BINARY).args(["-q", "-u", "postgres"]).arg(config), Signal::SIGKILL, log);
    until("the pool listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    process
}
