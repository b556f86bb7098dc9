//! A client that catches up from the log, where the next page is read while it gets one.

use std::io::{Read, Write};
use std::net::TcpStream;

use tidings_tests::process::{MemoryWatch, memory};
use tidings_tests::sse::Request;
use tidings_tests::{Database, Proxy, until};

/// Transactions in the log, and the events of each.
const TRANSACTIONS: usize = 40;
const EACH: usize = 10;

/// Clients that read nothing.
const STALLED: usize = 20;

/// What a client that catches up may take of the proxy's memory: two pages of the log, which end with a whole segment,
/// and the frames that wait for it.
const BOUND: u64 = 3 << 20;

/// Fills the log with events of about 96 KB that don't compress, 38 MB in all. Each begins with its number.
fn fill(db: &Database<'_>) {
    let mut session = db.session();
    for i in 0..TRANSACTIONS {
        session.run(&format!(
            "SELECT tidings.publish_text('bulk', (i + {i} * {EACH}) || ' ' || (SELECT string_agg(md5((random() * i * n)::text), '')
               FROM generate_series(1, 3000) n)) FROM generate_series(0, {EACH} - 1) i"
        ));
    }
    until("all of it is in ticks", || {
        session.all("SELECT FROM tidings.changes('earliest')", &[]).len() == TRANSACTIONS * EACH
    });
}

/// The numbers of the next events.
fn numbers(sse: &mut tidings_tests::Sse, count: usize) -> Vec<usize> {
    let number = |frame: &tidings_tests::Frame| frame.data.split(' ').next().and_then(|number| number.parse().ok());
    sse.take(count).iter().map(|frame| number(frame).expect("a number")).collect()
}

/// A client that asks for everything and reads only the beginning of the answer.
fn stalled(proxy: &Proxy) -> TcpStream {
    let mut socket = TcpStream::connect(proxy.address()).expect("connect");
    write!(socket, "GET /events?topic=bulk&since=earliest HTTP/1.1\r\nHost: tidings\r\n\r\n").expect("ask");
    let mut head = [0; 12];
    socket.read_exact(&mut head).expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200");
    socket
}

#[test]
fn clients_that_do_not_read_take_little_memory_and_delay_nobody() {
    let db = tidings_tests::shared().database();
    fill(&db);
    let proxy = db.proxy(&["--history-bytes", "0"]);
    let before = memory(proxy.pid(), "RssAnon").expect("the proxy runs");
    let watch = MemoryWatch::start(&[proxy.pid()]);
    let stalled: Vec<_> = (0..STALLED).map(|_| stalled(&proxy)).collect();
    let mut sse = proxy.open(&Request::since(&["bulk"], "earliest"));
    assert_eq!(numbers(&mut sse, TRANSACTIONS * EACH), (0..TRANSACTIONS * EACH).collect::<Vec<_>>());
    // All of them have two pages by now.
    until("the stalled ones wait", || proxy.metric("tidings_replays") >= STALLED as f64);
    let peak = watch.finish()[0] - before;
    assert!(peak < (STALLED as u64 + 1) * BOUND + (8 << 20), "{} MiB", peak >> 20);
    drop(stalled);
    until("they are gone", || proxy.metric("tidings_replays") == 0.0);
}

#[test]
fn a_client_that_catches_up_gets_each_event_once_although_the_database_cuts_it_off() {
    let db = tidings_tests::shared().database();
    fill(&db);
    let proxy = db.proxy(&["--history-bytes", "0"]);
    let mut sse = proxy.open(&Request::since(&["bulk"], "earliest"));
    let mut got = Vec::new();
    for _ in 0..4 {
        got.extend(numbers(&mut sse, TRANSACTIONS * EACH / 5));
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1";
        let cut: i64 = db.session().all(cut, &[&db.proxy_role()])[0].get(0);
        assert!(cut > 0, "the proxy has connections");
    }
    got.extend(numbers(&mut sse, TRANSACTIONS * EACH / 5));
    assert_eq!(got, (0..TRANSACTIONS * EACH).collect::<Vec<_>>());
}
