//! Streams over HTTP/2: many on one connection, and each ends separately.

use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::response::Parts;
use tidings_tests::process::memory;
use tidings_tests::sse::{Item, Parser};
use tidings_tests::{DEADLINE, Frame, Proxy, until};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::boards;

/// A client that has one connection.
struct Client {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
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

    /// A client whose streams accept this many bytes ahead of their reader.
    fn with_window(proxy: &Proxy, window: u32) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("tokio");
        let (requests, connection) = runtime.block_on(async {
            let socket = TcpStream::connect(proxy.address()).await.expect("connect");
            // Streams can delay one another only by their own windows, not by the connection's.
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(window).initial_connection_window_size(1 << 30);
            let (requests, connection) = builder.handshake(socket).await.expect("speak HTTP/2");
            let connection = tokio::spawn(async move {
                let _ = connection.await;
            });
            (requests, connection)
        });
        Self { runtime, requests, connection, authority: proxy.address().to_string() }
    }

    /// Sends a request; returns the head and the whole body of the response.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<(Parts, Vec<u8>), h2::Error> {
        let uri = format!("http://{}{path}", self.authority);
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let requests = self.requests.clone();
        self.runtime.block_on(async {
            let (response, _) = requests.ready().await?.send_request(request, true)?;
            let (head, mut body) = response.await?.into_parts();
            let mut all = Vec::new();
            while let Some(bytes) = body.data().await {
                all.extend_from_slice(&bytes?);
            }
            Ok((head, all))
        })
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

    /// Reads what arrives next, and releases its part of the window. `None` at the end, for any reason.
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

    /// The next event. `None` at the end, for any reason.
    fn frame(&self, stream: &mut Stream) -> Option<Frame> {
        self.frame_at(stream, f64::INFINITY)
    }

    /// The same at a limited rate, in bytes a second.
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
fn a_stream_that_its_client_cancels_ends_at_once_and_its_connection_continues() {
    let db = boards();
    // No heartbeat helps.
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

/// Lets the client read nothing from one stream of a connection until the proxy ends it; the other stream misses
/// nothing.
fn give_up(args: &[&str], cause: &str) {
    let db = boards();
    let proxy = db.proxy(args);
    let mut client = Client::connect(&proxy);
    let (mut reads, mut sleeps) = (client.open("boards_5"), client.open("boards_5"));
    proxy.wait_clients(2);
    let mut session = db.session();
    let mut sent = 0;
    until("the stream whose client reads nothing is ended", || {
        sent += 1;
        session.run(&format!("INSERT INTO board_items VALUES ({sent}, 5, repeat('.', 50000))"));
        assert_eq!(client.frame(&mut reads).expect("it continues").json()["record"]["id"], sent);
        clients(&proxy) == 1
    });
    assert_eq!(proxy.metrics()[&format!("tidings_evictions_total{{cause=\"{cause}\"}}")], 1.0);
    // It gets only what its window held.
    let mut got = 0;
    while client.frame(&mut sleeps).is_some() {
        got += 1;
    }
    assert!(got < sent, "{got} of {sent}");
    session.run("INSERT INTO board_items VALUES (0, 5, 'on the same connection')");
    assert_eq!(client.frame(&mut reads).expect("it continues").json()["record"]["id"], 0);
    let mut again = client.open("boards_5");
    proxy.wait_clients(2);
    session.run("INSERT INTO board_items VALUES (-1, 5, 'and a new stream')");
    assert_eq!(client.frame(&mut again).expect("it continues").json()["record"]["id"], -1);
}

#[test]
fn a_stream_whose_queue_is_full_is_reset_even_if_its_client_reads_nothing() {
    give_up(&["--heartbeat", "1h", "--client-queue-bytes", "256KiB"], "queue");
}

#[test]
fn a_stream_whose_client_reads_nothing_for_a_heartbeat_is_reset() {
    give_up(&["--heartbeat", "1s", "--client-queue-bytes", "1GiB"], "heartbeat");
}

#[test]
fn a_slow_but_steady_reader_over_http2_gets_a_large_event_over_many_heartbeats() {
    let db = boards();
    // Much longer than it takes for a piece, also on a busy machine.
    let proxy = db.proxy(&["--heartbeat", "3s"]);
    let mut client = Client::with_window(&proxy, 8 * 1024);
    let mut stream = client.open("boards_5");
    proxy.wait_clients(1);
    db.session().run("INSERT INTO board_items VALUES (1, 5, repeat('.', 200000))");
    let mut title = || client.frame_at(&mut stream, 15_000.0).expect("it continues").json()["record"]["title"].clone();
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
        // Its client reads the beginning, and then nothing more.
        client.read(stream, f64::INFINITY).expect("a stream");
    }
    let grown = memory(proxy.pid(), "RssAnon").expect("a running proxy").saturating_sub(before);
    assert!(grown < 40 << 20, "{grown} bytes for {STREAMS} streams");
    // A client that wakes up finds the whole event.
    for id in [2, 3] {
        assert_eq!(client.frame(&mut asleep[7]).expect("an event").json()["record"]["id"], id);
    }
}

#[test]
fn a_connection_without_a_stream_is_closed_and_one_with_a_stream_is_not() {
    let db = boards();
    let proxy = db.proxy(&["--header-timeout", "1s"]);
    let mut busy = Client::connect(&proxy);
    let mut stream = busy.open("boards_5");
    let idle = Client::connect(&proxy);
    until("the one that asks for nothing is closed", || idle.connection.is_finished());
    // It may ask again and again, but must not stay without asking.
    let asks = Client::connect(&proxy);
    assert_eq!(asks.ask("GET", "/healthz", &[]).expect("an answer").0.status, 200);
    until("the one that has its answer is closed", || asks.connection.is_finished());
    assert!(!busy.connection.is_finished());
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'still there')");
    assert_eq!(busy.frame(&mut stream).expect("an event").json()["record"]["title"], "still there");
    drop(stream);
    until("the last stream's end is the connection's", || busy.connection.is_finished());
    until("none of them is left", || proxy.metric("tidings_connections") <= 1.0);
}

#[test]
fn a_client_that_takes_no_answer_does_not_keep_its_connection() {
    let db = boards();
    let proxy = db.proxy(&["--header-timeout", "1s"]);
    // Its streams have no room for a body.
    let client = Client::with_window(&proxy, 0);
    let uri = format!("http://{}/nothing", client.authority);
    let request = http::Request::get(uri).body(()).expect("a request");
    let requests = client.requests.clone();
    let answer = client.runtime.block_on(async {
        let mut requests = requests.ready().await.expect("room for a stream");
        let (response, _) = requests.send_request(request, true).expect("ask");
        response.await.expect("an answer")
    });
    assert_eq!(answer.status(), 404);
    until("it is closed", || client.connection.is_finished());
    drop(answer);
}

#[test]
fn connections_without_a_stream_count_for_their_address() {
    let db = boards();
    let proxy = db.proxy(&["--max-clients-per-address", "2", "--header-timeout", "1h"]);
    let crowd: Vec<Client> = (0..18).map(|_| Client::connect(&proxy)).collect();
    until("they are all there", || crowd.iter().all(|client| client.requests.current_max_send_streams() < 1000));
    let (head, _) = Client::connect(&proxy).ask("GET", "/events?topic=boards_5", &[]).expect("an answer");
    assert_eq!(head.status, 503);
    assert_eq!(Client::connect(&proxy).ask("GET", "/healthz", &[]).expect("an answer").0.status, 200);
    drop(crowd);
    let mut client = Client::connect(&proxy);
    until("there is room again", || {
        client = Client::connect(&proxy);
        client.ask("GET", "/metrics", &[]).is_ok_and(|(head, _)| head.status == 200)
    });
    client.open("boards_5");
}

#[test]
fn head_gives_the_length_of_a_text_and_none_of_a_stream() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let client = Client::connect(&proxy);
    let length = |method, path| {
        let (head, body) = client.ask(method, path, &[]).expect("an answer");
        let length = head.headers.get("content-length").map(|value| value.to_str().expect("digits").to_owned());
        (head.status.as_u16(), length, body.len())
    };
    assert_eq!(length("HEAD", "/events?topic=boards_5"), (200, None, 0));
    assert_eq!(length("GET", "/healthz"), (200, Some("3".into()), 3));
    assert_eq!(length("HEAD", "/healthz"), (200, Some("3".into()), 0));
    let (status, length, body) = length("HEAD", "/nowhere");
    assert_eq!((status, body), (404, 0));
    assert!(length.is_some_and(|length| length != "0"));
}

/// A header that makes the head of a request exactly this long, as HTTP/1.1 writes it.
fn padding(authority: &str, total: usize) -> String {
    let rest = format!("GET /healthz HTTP/1.1\r\nhost: {authority}\r\nx-padding: \r\n\r\n").len();
    "x".repeat(total - rest)
}

#[test]
fn the_flag_limits_the_length_of_a_head_exactly() {
    let db = boards();
    let proxy = db.proxy(&["--max-header-bytes", "8KiB"]);
    let authority = proxy.address().to_string();
    for (length, status) in [(8_192, 200), (8_193, 431), (9_000, 431), (12_000, 431)] {
        let padding = padding(&authority, length);
        let over_2 = Client::connect(&proxy).ask("GET", "/healthz", &[("x-padding", &padding)]).expect("an answer");
        assert_eq!(over_2.0.status, status, "{length} bytes over HTTP/2");
        // Written in one piece, so that it is read in one piece.
        let over_1 =
            tidings_tests::http::open(proxy.address(), "/healthz", &[("X-Padding", &padding)]).expect("an answer");
        assert_eq!(over_1.head.status, status, "{length} bytes over HTTP/1.1");
    }
}

#[test]
fn a_limit_of_many_gibibytes_does_not_overflow() {
    let db = boards();
    let proxy = db.proxy(&["--max-header-bytes", "4GiB"]);
    let padding = "x".repeat(15_000);
    let (head, _) = Client::connect(&proxy).ask("GET", "/healthz", &[("x-padding", &padding)]).expect("an answer");
    assert_eq!(head.status, 200);
}

#[test]
fn a_stream_that_is_idle_takes_little_memory() {
    const STREAMS: usize = 100;
    let db = boards();
    let proxy = db.proxy(&["--heartbeat", "1h"]);
    let mut client = Client::connect(&proxy);
    let _first = client.open("boards_5");
    let before = memory(proxy.pid(), "RssAnon").expect("a running proxy");
    let _streams: Vec<Stream> = (0..STREAMS).map(|_| client.open("boards_5")).collect();
    let grown = memory(proxy.pid(), "RssAnon").expect("a running proxy").saturating_sub(before);
    let each = grown / STREAMS as u64;
    assert!(each < 24 << 10, "{each} bytes for each stream");
}
