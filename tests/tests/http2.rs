//! Streams over HTTP/2: many on one connection, and each ends by itself.

use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use tidings_tests::process::memory;
use tidings_tests::sse::{Item, Parser};
use tidings_tests::{DEADLINE, Frame, Proxy, until};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use crate::boards;

/// A client that has one connection.
struct Client {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
    authority: String,
}

/// One of its streams.
struct Stream {
    body: RecvStream,
    parser: Parser,
    frames: std::collections::VecDeque<Frame>,
}

impl Client {
    fn connect(proxy: &Proxy) -> Self {
        Self::with_window(proxy, 64 * 1024)
    }

    /// A client whose streams take that many bytes ahead of their reader.
    fn with_window(proxy: &Proxy, window: u32) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("tokio");
        let requests = runtime.block_on(async {
            let socket = TcpStream::connect(proxy.address()).await.expect("connect");
            // Streams stand in one another's way only by their own windows, not by the connection's.
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(window).initial_connection_window_size(1 << 30);
            let (requests, connection) = builder.handshake(socket).await.expect("speak HTTP/2");
            tokio::spawn(connection);
            requests
        });
        Self { runtime, requests, authority: proxy.address().to_string() }
    }

    fn open(&mut self, topic: &str) -> Stream {
        self.open_query(&format!("topic={topic}"))
    }

    fn open_query(&mut self, query: &str) -> Stream {
        let uri = format!("http://{}/events?{query}", self.authority);
        let request = http::Request::get(uri).body(()).expect("a request");
        let requests = self.requests.clone();
        self.runtime.block_on(async {
            let mut requests = requests.ready().await.expect("room for a stream");
            let (response, _) = requests.send_request(request, true).expect("ask");
            let response = response.await.expect("an answer");
            assert_eq!(response.status(), 200);
            Stream { body: response.into_body(), parser: Parser::default(), frames: Default::default() }
        })
    }

    /// Reads what comes next, and gives it back to the window. `None` at the end, whatever its kind.
    fn read(&self, stream: &mut Stream, pace: f64) -> Option<()> {
        let data = self.runtime.block_on(async { timeout(DEADLINE, stream.body.data()).await });
        let bytes = data.expect("something comes")?.ok()?;
        self.runtime.block_on(async { sleep(Duration::from_secs_f64(bytes.len() as f64 / pace)).await });
        let _ = stream.body.flow_control().release_capacity(bytes.len());
        let frames = &mut stream.frames;
        let mut take = |item| {
            if let Item::Frame(frame) = item {
                frames.push_back(frame)
            }
        };
        stream.parser.feed(&bytes, &mut take).expect("an event stream");
        Some(())
    }

    /// The next event. `None` at the end, whatever its kind.
    fn frame(&self, stream: &mut Stream) -> Option<Frame> {
        self.frame_at(stream, f64::INFINITY)
    }

    /// The same at a pace, in bytes a second.
    fn frame_at(&self, stream: &mut Stream, pace: f64) -> Option<Frame> {
        while stream.frames.is_empty() {
            self.read(stream, pace)?;
        }
        stream.frames.pop_front()
    }
}

fn clients(proxy: &Proxy) -> usize {
    proxy.metric("tidings_clients") as usize
}

#[test]
fn a_stream_that_its_client_cancels_is_gone_at_once_and_its_connection_goes_on() {
    let db = boards();
    // No heartbeat comes to help.
    let proxy = db.proxy(&["--heartbeat", "1h"]);
    let mut client = Client::connect(&proxy);
    let mut streams: Vec<Stream> = (0..20).map(|i| client.open(&format!("boards_{i}"))).collect();
    proxy.wait_clients(20);
    for left in (1..20).rev() {
        drop(streams.pop());
        proxy.wait_clients(left);
    }
    db.session().run("INSERT INTO board_items VALUES (1, 0, 'still there')");
    let frame = client.frame(&mut streams[0]).expect("an event");
    assert_eq!(frame.json()["record"]["title"], "still there");
    assert_eq!(proxy.metric("tidings_topics") as usize, 1, "the hub has let go of the others");
}

/// Lets one stream of a connection take nothing until the proxy gives it up; the other one misses nothing.
fn give_up(args: &[&str], cause: &str) {
    let db = boards();
    let proxy = db.proxy(args);
    let mut client = Client::connect(&proxy);
    let (mut reads, mut sleeps) = (client.open("boards_5"), client.open("boards_5"));
    proxy.wait_clients(2);
    let mut session = db.session();
    let mut sent = 0;
    until("the one that takes nothing is given up", || {
        sent += 1;
        session.run(&format!("INSERT INTO board_items VALUES ({sent}, 5, repeat('.', 50000))"));
        assert_eq!(client.frame(&mut reads).expect("it goes on").json()["record"]["id"], sent);
        clients(&proxy) == 1
    });
    assert_eq!(proxy.metrics()[&format!("tidings_evictions_total{{cause=\"{cause}\"}}")], 1.0);
    // What its window held is all that it gets.
    let mut got = 0;
    while client.frame(&mut sleeps).is_some() {
        got += 1;
    }
    assert!(got < sent, "{got} of {sent}");
    session.run("INSERT INTO board_items VALUES (0, 5, 'on the same connection')");
    assert_eq!(client.frame(&mut reads).expect("it goes on").json()["record"]["id"], 0);
    let mut again = client.open("boards_5");
    proxy.wait_clients(2);
    session.run("INSERT INTO board_items VALUES (-1, 5, 'and a new stream')");
    assert_eq!(client.frame(&mut again).expect("it goes on").json()["record"]["id"], -1);
}

#[test]
fn a_stream_whose_queue_is_full_is_reset_though_its_client_takes_nothing() {
    give_up(&["--heartbeat", "1h", "--client-queue-bytes", "256KiB"], "queue");
}

#[test]
fn a_stream_that_takes_nothing_for_a_heartbeat_is_reset_though_its_client_takes_nothing() {
    give_up(&["--heartbeat", "300ms", "--client-queue-bytes", "1GiB"], "heartbeat");
}

#[test]
fn a_slow_but_steady_reader_over_http2_gets_a_large_event_over_many_heartbeats() {
    let db = boards();
    let proxy = db.proxy(&["--heartbeat", "1s"]);
    let mut client = Client::with_window(&proxy, 8 * 1024);
    let mut stream = client.open("boards_5");
    proxy.wait_clients(1);
    db.session().run("INSERT INTO board_items VALUES (1, 5, repeat('.', 200000))");
    let mut title = || client.frame_at(&mut stream, 15_000.0).expect("it goes on").json()["record"]["title"].clone();
    assert_eq!(title().as_str().map(str::len), Some(200_000));
    db.session().run("INSERT INTO board_items VALUES (2, 5, 'on the same stream')");
    assert_eq!(title(), "on the same stream");
    assert_eq!(proxy.metric("tidings_evictions_total"), 0.0);
}

#[test]
fn streams_that_read_nothing_share_a_large_event_that_waits_for_them() {
    const STREAMS: usize = 60;
    let db = boards();
    let proxy = db.proxy(&["--heartbeat", "1h", "--client-queue-bytes", "16MiB"]);
    let mut client = Client::connect(&proxy);
    let mut reads = client.open("boards_5");
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'first')");
    let first = client.frame(&mut reads).expect("an event").id().to_owned();
    db.session().run("INSERT INTO board_items VALUES (2, 5, repeat('.', 8000000)), (3, 5, 'third')");
    for id in [2, 3] {
        assert_eq!(client.frame(&mut reads).expect("an event").json()["record"]["id"], id);
    }
    let before = memory(proxy.pid(), "RssAnon").expect("a running proxy");
    let mut asleep: Vec<Stream> =
        (0..STREAMS).map(|_| client.open_query(&format!("topic=boards_5&since={first}"))).collect();
    for stream in &mut asleep {
        // What comes first, and then nothing is taken any more.
        client.read(stream, f64::INFINITY).expect("a stream");
    }
    let grown = memory(proxy.pid(), "RssAnon").expect("a running proxy").saturating_sub(before);
    assert!(grown < 40 << 20, "{grown} bytes for {STREAMS} streams");
    // It is there, whole, for whoever wakes up.
    for id in [2, 3] {
        assert_eq!(client.frame(&mut asleep[7]).expect("an event").json()["record"]["id"], id);
    }
}
