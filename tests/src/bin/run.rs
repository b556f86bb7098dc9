//! `make run`: a throw-away cluster with Teamboard, a proxy, and Teamboard's backend. Ctrl-C ends and removes
//! everything.

use std::net::TcpListener;

use nix::sys::signal::{SigSet, Signal};
use tidings_tests::cluster::{Cluster, Installation, free_port};
use tidings_tests::process::fresh_path;
use tidings_tests::proxy::Proxy;
use tidings_tests::sse::Request;
use tidings_tests::teamboard::{self, Backend, TEAMMATE};

/// The ports of the page and the proxy, unless they are in use.
const PAGE_PORT: u16 = 8000;
const PROXY_PORT: u16 = 8080;

/// How soon a stream ends after its access is revoked: short, because somebody is watching.
const REAUTHORIZE: &str = "2s";

/// Switches off the teammate who moves notes.
const ALONE: &str = "--alone";

fn main() {
    let alone = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == ALONE => true,
        _ => panic!("the only argument is {ALONE}: no teammate who moves notes about"),
    };
    // Blocked here, the signals are waited for at the end of this function, which then cleans up.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().expect("block the signals");

    println!("==> starting a cluster");
    let cluster = Cluster::start(&[("tidings.verify_ring", "off")]);
    let mut database = cluster.empty_database();
    teamboard::create(&database);
    println!("==> starting a proxy and Teamboard");
    let (port, page) = (port(PROXY_PORT), port(PAGE_PORT));
    let (events, origin) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{page}"));
    let url = |role| cluster.url(database.name(), role);
    let secret = teamboard::secret();
    let key = secret.to_str().expect("a path of text");
    let keys = ["--jwt-secret-file", key, "--token-cookie", teamboard::COOKIE, "--reauthorize", REAUTHORIZE];
    let site = ["--route", teamboard::ROUTE, "--cors-origin", &origin];
    let proxy = Proxy::start_at(port, &url(teamboard::PROXY_ROLE), &[&keys[..], &site].concat());
    proxy.wait_ready();
    let backend = Backend::start(page, &url(teamboard::BACKEND_ROLE), &secret, &events);
    let (name, person, board) = TEAMMATE;
    let _present = (!alone).then(|| {
        let session = database.session();
        std::thread::spawn(|| teamboard::work(session));
        proxy.open(&Request::live(&[&format!("here_{board}_{person}")]).by(&teamboard::token(&secret, person)))
    });

    println!(
        "
Teamboard is at {site}/boards/{board}: sign in as Ada, and in another window as Ben.{teammate}

The board's stream, as the page reads it: sign in as Ada (1), and read; somebody else (4, who is no member) gets a 403.

  curl -s -c {cookies} --json '{{\"person\": 1}}' {site}/api/session
  curl -N -b {cookies} '{events}/api/boards/{board}/events'

Write a row by hand, and see it on the page:

  {psql} -h {socket} -p {pg_port} -U postgres {database} -c \"INSERT INTO board_items (board_id, body, x, y) VALUES ({board}, 'hello', 300, 300)\"

Ctrl-C ends it and removes everything.",
        site = backend.url(),
        teammate = if alone { String::new() } else { format!("\n{name} is there already and moves notes about; `make run ARGS={ALONE}` leaves you alone.") },
        psql = Installation::get().bin.join("psql").display(),
        socket = cluster.socket_dir().display(),
        pg_port = cluster.port(),
        database = database.name(),
        cookies = fresh_path("cookies").display(),
    );
    let signal = signals.wait().expect("wait for a signal");
    println!("\n==> {signal}: cleaning up");
    database.keep(); // it goes with the cluster
}

/// This port, or a free one if it is in use.
fn port(wanted: u16) -> u16 {
    TcpListener::bind(("127.0.0.1", wanted)).map_or_else(|_| free_port(), |_| wanted)
}
