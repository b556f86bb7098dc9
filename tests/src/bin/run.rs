//! `make run`: a throw-away cluster with Teamboard in it, a proxy, and Teamboard's backend. Ctrl-C ends all and leaves nothing behind.

use std::net::TcpListener;

use nix::sys::signal::{SigSet, Signal};
use tidings_tests::cluster::{Cluster, Installation, free_port};
use tidings_tests::proxy::Proxy;
use tidings_tests::teamboard::{self, Backend, TEAMMATE};

/// Where the page and the proxy listen unless somebody else does.
const PAGE_PORT: u16 = 8000;
const PROXY_PORT: u16 = 8080;

/// Switches the teammate off who moves notes about.
const ALONE: &str = "--alone";

fn main() {
    let alone = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == ALONE => true,
        _ => panic!("the only argument is {ALONE}: no teammate who moves notes about"),
    };
    // Blocked, they wait for the end of this function, where everything is put away.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().expect("block the signals");

    println!("==> starting a cluster");
    let cluster = Cluster::start(&[]);
    let mut database = cluster.empty_database();
    teamboard::create(&database);
    println!("==> starting a proxy and Teamboard");
    let (port, page) = (port(PROXY_PORT), port(PAGE_PORT));
    let (events, origin) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{page}"));
    let url = |role| cluster.url(database.name(), role);
    let args = ["--route", teamboard::ROUTE, "--cors-origin", &origin];
    let proxy = Proxy::start_at(port, &url(teamboard::PROXY_ROLE), &args);
    proxy.wait_ready();
    let secret = teamboard::secret();
    let backend = Backend::start(page, &url(teamboard::BACKEND_ROLE), &secret, &events);
    let (name, person, board) = TEAMMATE;
    let _present = (!alone).then(|| {
        let session = database.session();
        std::thread::spawn(|| teamboard::work(session));
        proxy.live(&[&format!("here_{board}_{person}")])
    });

    println!(
        "
Teamboard is at {site}/boards/{board}: sign in as Ada, and in another window as Ben.{teammate}

The board's stream, as the page reads it:

  curl -N '{events}/api/boards/{board}/events'

Write a row by hand, and see it on the page:

  {psql} -h {socket} -p {pg_port} -U postgres {database} -c \"INSERT INTO board_items (board_id, body, x, y) VALUES ({board}, 'hello', 300, 300)\"

Ctrl-C ends it and removes everything.",
        site = backend.url(),
        teammate = if alone { String::new() } else { format!("\n{name} is there already and moves notes about; `make run ARGS={ALONE}` leaves you alone.") },
        psql = Installation::get().bin.join("psql").display(),
        socket = cluster.socket_dir().display(),
        pg_port = cluster.port(),
        database = database.name(),
    );
    let signal = signals.wait().expect("wait for a signal");
    println!("\n==> {signal}: cleaning up");
    database.keep(); // it goes with the cluster
}

/// The port, or a free one if somebody listens there.
fn port(wanted: u16) -> u16 {
    TcpListener::bind(("127.0.0.1", wanted)).map_or_else(|_| free_port(), |_| wanted)
}
