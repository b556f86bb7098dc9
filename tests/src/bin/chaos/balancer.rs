//! HAProxy in front of the proxies, with the settings that docs/haproxy.cfg recommends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tidings_tests::cluster::free_port;
use tidings_tests::process::{Process, Signal, fresh_path};
use tidings_tests::{http, until};

/// A running HAProxy.
#[derive(Debug)]
pub struct Balancer {
    _process: Process,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its log.
    pub log: PathBuf,
}

impl Balancer {
    /// Starts it, and waits until it passes requests on.
    pub fn start(proxies: &[SocketAddr]) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/haproxy.cfg");
        let template = std::fs::read_to_string(template).expect("read docs/haproxy.cfg");
        let mut text = replace(&template, "bind :80\n", &format!("bind {address}\n"));
        // It has two proxies.
        for (i, (proxy, port)) in proxies.iter().zip(["127.0.0.1:8080", "127.0.0.1:8081"]).enumerate() {
            text = replace(&text, &format!("server proxy{} {port}\n", i + 1), &format!("server proxy{i} {proxy}\n"));
        }
        let (config, log) = (fresh_path("haproxy.cfg"), fresh_path("haproxy.log"));
        std::fs::write(&config, text).expect("write the balancer's settings");
        let output = std::fs::File::create(&log).expect("create the balancer's log");
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&config).stdin(Stdio::null());
        command.stdout(output.try_clone().expect("share the log")).stderr(output);
        let process = Process::spawn(&mut command, Signal::SIGKILL).expect("start haproxy; `make chaos` installs it");
        until("the balancer passes requests on", || {
            http::get(address, "/events").is_ok_and(|(head, _)| head.status == 400)
        });
        Self { _process: process, address, log }
    }
}

fn replace(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "docs/haproxy.cfg has no {from:?}");
    text.replace(from, to)
}
