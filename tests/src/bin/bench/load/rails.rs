//! The article's own design with Rails, puma and Redis from Debian, for comparison; see `tests/rivals/rails`.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use tidings_tests::cluster::{SUPERUSER, free_port};
use tidings_tests::process::{Process, Signal};
use tidings_tests::{Database, eventually};

use super::{Publish, Server};
use crate::machine::debian_version;

/// Where its program is.
const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/rivals/rails");

/// What it needs in addition to Ruby.
const PACKAGES: [&str; 5] = ["ruby-rails", "puma", "redis-server", "ruby-redis", "ruby-pg"];

/// The most streams: each takes a thread and a connection, and the cluster has 200 connections.
pub const MOST: usize = 150;

/// A running puma, and its Redis.
pub struct Rails<'a> {
    puma: Process,
    _redis: Process,
    address: SocketAddr,
    database: &'a Database<'a>,
}

impl<'a> Rails<'a> {
    /// Starts both, if they are installed.
    pub fn start(database: &'a Database<'a>) -> Result<Self, String> {
        if let Some(missing) = PACKAGES.iter().find(|package| debian_version(package).is_none()) {
            return Err(format!("{missing} is not installed"));
        }
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (redis_port, address) = (free_port(), local(free_port()));
        let mut command = Command::new("redis-server");
        command.args(["--port", &redis_port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let redis = Process::spawn(&mut command, Signal::SIGTERM).map_err(|error| format!("redis: {error}"))?;
        eventually("redis listens", || TcpStream::connect(local(redis_port)).ok());
        let mut command = Command::new("puma");
        command.current_dir(Path::new(DIR)).args(["--quiet", "--threads", &format!("0:{MOST}")]);
        command.args(["--bind", &format!("tcp://{address}"), "config.ru"]).env("RAILS_ENV", "production");
        command.env("REDIS_URL", format!("redis://127.0.0.1:{redis_port}"));
        command.env("DATABASE_URL", database.cluster().url(database.name(), SUPERUSER));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // Otherwise it would wait for the end of its streams.
        let puma = Process::spawn(&mut command, Signal::SIGKILL).map_err(|error| format!("puma: {error}"))?;
        eventually("puma listens", || TcpStream::connect(address).ok());
        Ok(Self { puma, _redis: redis, address, database })
    }
}

impl Server for Rails<'_> {
    fn version(&self) -> Option<String> {
        let [rails, puma, redis, ..] = PACKAGES.map(debian_version);
        Some(format!("Rails {} with puma {} and Redis {}", rails?, puma?, redis?))
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.puma.pid()]
    }

    fn path(&self, topic: &str) -> String {
        format!("/events?topic={topic}")
    }

    fn publisher(&self) -> Publish<'_> {
        let mut session = self.database.session();
        let sql = "SELECT pg_notify(topic, $2) FROM unnest($1::text[]) topic";
        let statement = session.client().prepare(sql).expect("prepare");
        Box::new(move |topics, text| _ = session.client().execute(&statement, &[&topics, &text]).expect("publish"))
    }
}
