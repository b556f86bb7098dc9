//! `make run`: a throw-away cluster with a sample table, and a proxy. Ctrl-C ends both and leaves nothing behind.

use nix::sys::signal::{SigSet, Signal};
use tidings_tests::cluster::{Cluster, Installation, free_port};
use tidings_tests::proxy::Proxy;

/// Where the proxy listens unless somebody else does.
const PORT: u16 = 8080;

fn main() {
    // Blocked, they wait for the end of this function, where everything is put away.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().expect("block the signals");

    println!("==> starting a cluster");
    let cluster = Cluster::start(&[]);
    let mut database = cluster.database();
    database.session().run(
        "CREATE TABLE board_items (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, board_id bigint NOT NULL, title text);
         SELECT tidings.watch('board_items', topic => 'boards_{board_id}')",
    );
    println!("==> starting a proxy");
    let port = match std::net::TcpListener::bind(("127.0.0.1", PORT)) {
        Ok(_) => PORT,
        Err(_) => free_port(),
    };
    let url = cluster.url(database.name(), &database.proxy_role());
    let proxy = Proxy::start_at(port, &url, &[]);
    proxy.wait_ready();

    println!(
        "
Open the stream in one terminal, or http://127.0.0.1:{port}/events?topic=boards_5 in a browser:

  curl -N 'http://127.0.0.1:{port}/events?topic=boards_5'

Write a row in another, and see it arrive:

  {psql} -h {socket} -p {pg_port} -U postgres {name} -c \"INSERT INTO board_items (board_id, title) VALUES (5, 'hello')\"

Ctrl-C ends it and removes everything.",
        psql = Installation::get().bin.join("psql").display(),
        socket = cluster.socket_dir().display(),
        pg_port = cluster.port(),
        name = database.name(),
    );
    let signal = signals.wait().expect("wait for a signal");
    println!("\n==> {signal}: cleaning up");
    database.keep(); // it goes with the cluster
}
