//! Teamboard in a real browser. This file provides a cluster with Teamboard. The tests themselves, and the proxy and
//! the backend that they start and stop, are in `tests/browser` and run in node.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tidings_tests::cluster::{Cluster, Installation, SUPERUSER};
use tidings_tests::process::{Process, Signal, fresh_path};
use tidings_tests::{proxy, teamboard};

/// How long all of them together may take, in case a browser hangs.
const LIMIT: Duration = Duration::from_secs(1800);

#[test]
fn teamboard_in_a_browser() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cluster = Cluster::start(&[]);
    let database = cluster.empty_database();
    teamboard::create(&database);
    let (work, artifacts) = (fresh_path("teamboard"), folder.join("artifacts"));
    for path in [&work, &artifacts] {
        std::fs::create_dir_all(path).expect("create a folder");
    }
    let url = |role| cluster.url(database.name(), role);
    let mut command = Command::new("node");
    command.args(["--test-reporter=spec", "teamboard.test.mjs"]).current_dir(folder.join("browser"));
    command.env("TEAMBOARD_SUPERUSER_URL", url(SUPERUSER));
    command.env("TEAMBOARD_BACKEND_URL", url(teamboard::BACKEND_ROLE));
    command.env("TEAMBOARD_PROXY_URL", url(teamboard::PROXY_ROLE));
    command.env("TEAMBOARD_BACKEND", teamboard::binary());
    command.env("TEAMBOARD_PROXY", proxy::binary());
    command.env("TEAMBOARD_PSQL", Installation::get().bin.join("psql"));
    // Debian installs them where an ordinary account's PATH does not look.
    for (variable, program) in [("TEAMBOARD_NGINX", "nginx"), ("TEAMBOARD_HAPROXY", "haproxy")] {
        command.env(variable, Path::new("/usr/sbin").join(program));
    }
    command.env("TEAMBOARD_WORK", &work);
    command.env("TEAMBOARD_ARTIFACTS", &artifacts);
    command.env("TEAMBOARD_ROUTE", teamboard::ROUTE);
    command.env("TEAMBOARD_COOKIE", teamboard::COOKIE);
    // When it is terminated, it ends the browser, the proxy and the backend.
    let mut node = Process::spawn(&mut command, Signal::SIGTERM).expect("start node");
    let start = Instant::now();
    let status = loop {
        match node.exited() {
            Some(status) => break status,
            None if start.elapsed() > LIMIT => panic!("the browser tests hang"),
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    assert!(status.success(), "the browser tests failed; what the pages showed is in {}", artifacts.display());
}
