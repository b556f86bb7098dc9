//! A page with a list that stays current: the rows, then the changes. Compared are the ways to get it: one stream with
//! `since=snapshot`, a query beside a stream, and a backend in Node that sends the rows before the events.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::Instant;

use memchr::memmem::{find, rfind};
use tidings_tests::http::{self, Response};
use tidings_tests::{DEADLINE, Database, Proxy};

use super::node::Node;
use super::{Scale, Server};
use crate::median;
use crate::report::{Report, Target};
use crate::schema::Rows;

/// Rows of the long list, and of the short one.
const LONG: usize = 10_000;
const SHORT: usize = 100;

/// Pages of each way in a round.
const PAGES: usize = 10;

/// Clients that ask for the short list at once.
const CLIENTS: usize = 10_000;

/// Threads that ask, and read the responses.
const THREADS: usize = 8;

/// The end of the rows.
const READY: &[u8] = b"\nevent: ready\n";

/// A way to get a list that stays current.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Tidings,
    Query,
    Node,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Tidings => "Tidings",
            Self::Query => "psql and a bare stream",
            Self::Node => "Node, better-sse",
        }
    }
}

/// Measures one page, then many clients at once.
pub fn measure(database: &Database<'_>, scale: Scale, report: &mut Report) {
    database.session().run(&format!(
        "CREATE TABLE list_items ({});
         INSERT INTO list_items (board_id, title, position)
             SELECT 1, 'Item number ' || i, i FROM generate_series(1, {LONG}) i;
         INSERT INTO list_items (board_id, title, position)
             SELECT 2, 'Item number ' || i, i FROM generate_series(1, {SHORT}) i;
         CREATE INDEX ON list_items (board_id); ANALYZE list_items;
         SELECT tidings.watch('list_items', topic => 'list_{{board_id}}');
         GRANT SELECT ON list_items TO {}",
        Rows::Narrow.definition(),
        database.proxy_role()
    ));
    let proxy = database.proxy(&[]);
    pages(database, &proxy, scale, report);
    storm(&proxy, scale, report);
    database.session().run("DROP TABLE list_items");
}

/// One page at a time, by each way.
fn pages(database: &Database<'_>, proxy: &Proxy, scale: Scale, report: &mut Report) {
    let node = Node::start(database, false).map_err(|why| report.leave_out(Way::Node.name(), &why)).ok();
    if let Some(version) = node.as_ref().and_then(Server::version) {
        report.version(&version);
    }
    let page = |way| match (way, &node) {
        (Way::Tidings, _) => Some(by_stream(database, proxy)),
        (Way::Query, _) => Some(by_query(database, proxy)),
        (Way::Node, Some(node)) => Some(by_node(node)),
        (Way::Node, None) => None,
    };
    let mut order = [Way::Tidings, Way::Query, Way::Node];
    // The machine varies more than what is measured, so the ways alternate often.
    for _ in 0..scale.rounds * 3 {
        let mut times = [Way::Tidings, Way::Query, Way::Node].map(|way| (way, Vec::new()));
        for _ in 0..PAGES {
            for way in order {
                let Some((_, times)) = times.iter_mut().find(|(other, _)| *other == way) else { continue };
                times.extend(page(way));
            }
            order.rotate_left(1);
        }
        let [ours, query, node] = times.map(|(way, mut times)| {
            let time = (!times.is_empty()).then(|| median(&mut times))?;
            report.compare(format!("a page of {LONG} rows, then live"), way.name(), time, "ms", Target::None);
            Some(time)
        });
        let mut ratio = |name: &str, other: Option<f64>, target| {
            if let (Some(ours), Some(other)) = (ours, other) {
                report.add(format!("Tidings ÷ {name}, {LONG} rows"), ours / other, "", target);
            }
        };
        ratio("psql and a bare stream", query, Target::AtMost(1.5));
        ratio("Node", node, Target::None);
    }
}

/// One stream with `since=snapshot`, until it is ready; in milliseconds.
fn by_stream(database: &Database<'_>, proxy: &Proxy) -> f64 {
    let start = Instant::now();
    let mut stream = Stream::open(proxy.address(), "/events?topic=list_1&since=snapshot");
    stream.read_until(READY);
    let time = milliseconds(start);
    assert_eq!(stream.count(b"SNAPSHOT"), LONG, "rows");
    change(database);
    stream.read_until(b"UPDATE");
    time
}

/// A stream, and the rows by psql.
fn by_query(database: &Database<'_>, proxy: &Proxy) -> f64 {
    let mut psql = database.cluster().tool("psql");
    let query = "SELECT to_json(i) FROM list_items i WHERE board_id = 1";
    psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", query, database.name()]);
    let start = Instant::now();
    let mut stream = Stream::open(proxy.address(), "/events?topic=list_1");
    stream.read_until(b"id:");
    let output = psql.output().expect("run psql");
    let time = milliseconds(start);
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), LONG, "rows");
    change(database);
    stream.read_until(b"UPDATE");
    time
}

/// The backend's stream, which starts with an event that contains all rows.
fn by_node(node: &Node<'_>) -> f64 {
    let start = Instant::now();
    let mut stream = Stream::open(node.address(), "/page?board=1");
    stream.read_until(b"created_at");
    stream.read_until(b"\n\n");
    let time = milliseconds(start);
    assert_eq!(stream.count(b"created_at"), LONG, "rows");
    node.publisher()(&["list_1"], "is live");
    stream.read_until(b"is live");
    time
}

/// Changes one row of the long list.
fn change(database: &Database<'_>) {
    database.session().run("UPDATE list_items SET position = position + 1 WHERE id = 1");
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// A stream whose events are only searched for a text, so that no parser is measured.
struct Stream {
    response: Response,
    body: Vec<u8>,
    /// What has been searched already.
    seen: usize,
}

impl Stream {
    fn open(address: SocketAddr, path: &str) -> Self {
        let response = http::open(address, path, &[("Accept", "text/event-stream")]).expect("open a stream");
        assert_eq!(response.head.status, 200, "{:?}", response.head);
        Self { response, body: Vec::new(), seen: 0 }
    }

    /// Reads until this text has come, after the one that was waited for before.
    fn read_until(&mut self, text: &[u8]) {
        loop {
            if let Some(at) = find(&self.body[self.seen..], text) {
                self.seen += at + text.len();
                return;
            }
            self.seen = self.seen.max((self.body.len() + 1).saturating_sub(text.len()));
            assert!(self.response.read(&mut self.body).expect("read a stream"), "the stream has ended");
        }
    }

    fn count(&self, text: &[u8]) -> usize {
        memchr::memmem::find_iter(&self.body, text).count()
    }
}

/// Many clients ask for the short list at once.
fn storm(proxy: &Proxy, scale: Scale, report: &mut Report) {
    let clients = scale.of(CLIENTS);
    for _ in 0..scale.rounds {
        let before = proxy.metric("tidings_snapshots_total{result=\"complete\"}");
        let time = enter(proxy.address(), clients);
        let readings = proxy.metric("tidings_snapshots_total{result=\"complete\"}") - before;
        report.add(format!("{clients} clients at once, {SHORT} rows each: all have them"), time, "s", Target::None);
        report.add("… readings of the database for them", readings, "", Target::None);
        // All have disconnected before the next ones connect.
        proxy.wait_clients(0);
    }
}

/// Connects for each client, sends all requests when everyone is connected, and reads until all have their rows;
/// returns the seconds since the first request.
fn enter(address: SocketAddr, clients: usize) -> f64 {
    let connected = Barrier::new(THREADS + 1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..THREADS)
            .map(|part| {
                let (connected, size) = (&connected, (clients + part) / THREADS);
                scope.spawn(move || ask(address, size, connected))
            })
            .collect();
        connected.wait();
        let start = Instant::now();
        // Nobody disconnects before all have their rows.
        let _in: Vec<Vec<TcpStream>> =
            parts.into_iter().map(|part| part.join().expect("a part of the clients")).collect();
        start.elapsed().as_secs_f64()
    })
}

fn ask(address: SocketAddr, clients: usize, connected: &Barrier) -> Vec<TcpStream> {
    let mut sockets: Vec<TcpStream> =
        (0..clients).map(|_| TcpStream::connect(address).expect("connect to the proxy")).collect();
    connected.wait();
    for socket in &mut sockets {
        socket.set_read_timeout(Some(DEADLINE)).expect("set a time limit");
        let request = b"GET /events?topic=list_2&since=snapshot HTTP/1.1\r\nHost: bench\r\n\r\n";
        socket.write_all(request).expect("ask");
    }
    let mut buffer = vec![0; 64 * 1024];
    for socket in &mut sockets {
        let mut body = Vec::new();
        while rfind(&body, READY).is_none() {
            let read = socket.read(&mut buffer).expect("read a stream");
            assert!(read > 0, "the stream has ended: {}", String::from_utf8_lossy(&body));
            body.extend_from_slice(&buffer[..read]);
        }
    }
    sockets
}
