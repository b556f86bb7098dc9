//! `make run`: a throw-away cluster with Teamboard, a proxy, and Teamboard's backend. Ctrl-C ends and removes
//! everything.

use std::net::TcpListener;

use nix::sys::signal::{SigSet, Signal};
use tidings_tests::cluster::{Cluster, Installation, SUPERUSER, free_port};
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

/// Serves the streams from a hot standby.
const STANDBY: &str = "--standby";

/// The end of a URL for those who write: of several hosts, only the primary serves them.
const WRITES: &str = "?target_session_attrs=read-write";

fn main() {
    let flags: Vec<String> = std::env::args().skip(1).collect();
    assert!(
        flags.iter().all(|flag| flag == ALONE || flag == STANDBY),
        "the only arguments are {ALONE}, for no teammate who moves notes about, and {STANDBY}, for streams from a hot standby"
    );
    let [alone, at_standby] = [ALONE, STANDBY].map(|known| flags.iter().any(|flag| flag == known));
    // Blocked here, the signals are waited for at the end of this function, which then cleans up.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().expect("block the signals");

    println!("==> starting a cluster");
    let cluster = Cluster::start(&[("tidings.verify_ring", "off")]);
    let mut database = cluster.empty_database();
    teamboard::create(&database);
    let standby = at_standby.then(|| {
        println!("==> starting a standby");
        let standby = cluster.standby();
        database.wait_standby(&standby);
        standby
    });
    println!("==> starting a proxy and Teamboard");
    let (port, page) = (port(PROXY_PORT), port(PAGE_PORT));
    let (events, origin) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{page}"));
    // With a standby, both hosts: each client finds the server that it needs, also after a promotion. The proxy goes to
    // the primary if the standby is killed.
    let url = |role: &str, asks: &str| match &standby {
        Some(standby) => {
            format!(
                "postgres://{role}@127.0.0.1:{},127.0.0.1:{}/{}{asks}",
                standby.port(),
                cluster.port(),
                database.name()
            )
        }
        None => cluster.url(database.name(), role),
    };
    let secret = teamboard::secret();
    let key = secret.to_str().expect("a path of text");
    let keys = ["--jwt-secret-file", key, "--token-cookie", teamboard::COOKIE, "--reauthorize", REAUTHORIZE];
    let site = ["--route", teamboard::ROUTE, "--cors-origin", &origin];
    let proxy = Proxy::start_at(port, &url(teamboard::PROXY_ROLE, ""), &[&keys[..], &site].concat());
    proxy.wait_ready();
    let backend = Backend::start(page, &url(teamboard::BACKEND_ROLE, WRITES), &secret, &events);
    let (name, person, board) = TEAMMATE;
    let _present = (!alone).then(|| {
        let url = url(SUPERUSER, WRITES);
        std::thread::spawn(move || teamboard::work(&url));
        proxy.open(&Request::live(&[&format!("here_{board}_{person}")]).by(&teamboard::token(&secret, person)))
    });

    println!(
        "
Teamboard is at {site}/boards/{board}: sign in as Ada, and in another window as Ben.{teammate}

The board's stream, as the page reads it: sign in as Ada (1), and read; somebody else (4, who is no member) gets a 403.

  curl -s -c {cookies} --json '{{\"person\": 1}}' {site}/api/session
  curl -N -b {cookies} '{events}/api/boards/{board}/events'

Write a row by hand, and see it on the page:

  {psql} '{writes}' -c \"INSERT INTO board_items (board_id, body, x, y) VALUES ({board}, 'hello', 300, 300)\"

{more}Ctrl-C ends it and removes everything.",
        site = backend.url(),
        teammate = if alone {
            String::new()
        } else {
            format!("\n{name} is there already and moves notes about; `make run ARGS={ALONE}` leaves you alone.")
        },
        psql = Installation::get().bin.join("psql").display(),
        writes = url(SUPERUSER, WRITES),
        cookies = fresh_path("cookies").display(),
        more = standby.as_ref().map(|standby| advice(standby, cluster.pid())).unwrap_or_default(),
    );
    let signal = signals.wait().expect("wait for a signal");
    println!("\n==> {signal}: cleaning up");
    database.keep(); // it goes with the cluster
}

/// What to try with a standby.
fn advice(standby: &Cluster, primary: u32) -> String {
    format!(
        "The streams come from a hot standby, process {}. Kill the primary and promote the standby: the streams continue, and
so do the page, the teammate and the command above:

  kill -9 {primary}; {} -h {} -p {} -U postgres -c 'SELECT pg_promote()'

",
        standby.pid(),
        Installation::get().bin.join("psql").display(),
        standby.socket_dir().display(),
        standby.port(),
    )
}

/// This port, or a free one if it is in use.
fn port(wanted: u16) -> u16 {
    TcpListener::bind(("127.0.0.1", wanted)).map_or_else(|_| free_port(), |_| wanted)
}
