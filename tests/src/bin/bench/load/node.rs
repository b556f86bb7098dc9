//! A common setup with Node, for comparison: `pg` listens, `better-sse` writes the streams; see `tests/rivals/node`.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use tidings_tests::cluster::{SUPERUSER, free_port};
use tidings_tests::process::{Process, Signal};
use tidings_tests::{Database, eventually};

use super::{Publish, Server};

/// Where its program and its packages are.
const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/rivals/node");

/// A running Node.
pub struct Node<'a> {
    process: Process,
    address: SocketAddr,
    database: &'a Database<'a>,
    stores: bool,
}

impl<'a> Node<'a> {
    /// Starts it, if its packages are installed. With `stores`, its writer also stores each event in a table, in the
    /// same transaction. Postgres does not flush a transaction that only notifies.
    pub fn start(database: &'a Database<'a>, stores: bool) -> Result<Self, String> {
        if !Path::new(DIR).join("node_modules/better-sse").exists() {
            return Err("its packages are not installed (npm ci)".to_owned());
        }
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = Command::new("node");
        command.current_dir(DIR).args(["server.mjs", &port.to_string()]).env("NODE_ENV", "production");
        command.env("DATABASE_URL", database.cluster().url(database.name(), SUPERUSER));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = Process::spawn(&mut command, Signal::SIGKILL).map_err(|error| format!("node: {error}"))?;
        // It accepts clients as soon as it listens to the database.
        eventually("node listens", || TcpStream::connect(address).ok());
        Ok(Self { process, address, database, stores })
    }
}

impl Server for Node<'_> {
    fn version(&self) -> Option<String> {
        let output = Command::new("node").arg("--version").output().ok()?;
        let of = |package: &str| {
            let text = std::fs::read_to_string(format!("{DIR}/node_modules/{package}/package.json")).ok()?;
            let package: serde_json::Value = serde_json::from_str(&text).ok()?;
            Some(package["version"].as_str()?.to_owned())
        };
        let node = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Some(format!("Node {node} with pg {} and better-sse {}", of("pg")?, of("better-sse")?))
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.process.pid()]
    }

    fn path(&self, topic: &str) -> String {
        format!("/events?topic={topic}")
    }

    fn publisher(&self) -> Publish<'_> {
        let mut session = self.database.session();
        // All events of one call are in one transaction. Postgres sends equal notifications of a transaction only once,
        // so each has a number.
        let notify = "SELECT pg_notify('events', json_build_object('topic', topic, 'data', $2::text, 'n', n)::text)
                        FROM unnest($1::text[]) WITH ORDINALITY AS topics (topic, n)";
        let store = "WITH stored AS
            (INSERT INTO events_of_node (topic, data) SELECT topic, $2::text FROM unnest($1::text[]) topic)";
        if self.stores {
            session.run(
                "CREATE TABLE IF NOT EXISTS
                     events_of_node (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic text, data text)",
            );
        }
        let sql = if self.stores { format!("{store} {notify}") } else { notify.to_owned() };
        let statement = session.client().prepare(&sql).expect("prepare");
        Box::new(move |topics, text| _ = session.client().execute(&statement, &[&topics, &text]).expect("publish"))
    }
}
