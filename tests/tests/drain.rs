//! The shutdown of a proxy: streams end one after another, and until then each keeps every guarantee.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use tidings_tests::process::Signal;
use tidings_tests::sse::Request;
use tidings_tests::{DEADLINE, Item, Proxy, Sse, until};

use crate::access::{Team, sign};
use crate::boards;

/// Sends SIGTERM and waits until the proxy accepts no new connection.
#[track_caller]
fn begin(proxy: &Proxy) {
    proxy.signal(Signal::SIGTERM);
    until("the proxy accepts no connection", || TcpStream::connect(proxy.address()).is_err());
}

/// The rest of a stream.
#[track_caller]
fn rest(mut stream: Sse) -> Vec<Item> {
    std::iter::from_fn(|| stream.item()).collect()
}

/// Whether the proxy sent the client a time to reconnect before it ended the stream.
fn said_goodbye(items: &[Item]) -> bool {
    matches!(items.last(), Some(Item::Retry(_)))
}

#[test]
fn heartbeats_continue_until_a_stream_ends() {
    let db = boards();
    let proxy = db.proxy(&["--heartbeat", "50ms", "--drain", "10s"]);
    let streams = [proxy.live(&["boards_5"]), proxy.live(&["boards_5"])];
    proxy.wait_clients(2);
    begin(&proxy);
    db.session().publish("boards_5", "\"while they leave\"");
    let counts = streams.map(|stream| {
        let items = rest(stream);
        assert!(said_goodbye(&items), "{items:?}");
        let live = items.iter().skip_while(|item| !matches!(item, Item::Frame(frame) if frame.data.contains("leave")));
        live.filter(|item| matches!(item, Item::Comment(_) | Item::Position(_))).count()
    });
    // One ended at once, the other one five seconds later.
    assert!(counts.iter().any(|count| *count >= 5), "{counts:?}");
}

/// Opens streams that then lose their access; returns how many end without a time to reconnect.
fn taken_away(args: &[&str], token: impl Fn(&Team<'_>) -> String, take_away: impl Fn(&Team<'_>)) -> usize {
    let team = Team::new();
    let proxy = team.proxy(&[&["--drain", "200s"], args].concat());
    let request = Request::live(&["boards_5"]).by(&token(&team));
    let streams: Vec<Sse> = (0..4).map(|_| proxy.open(&request)).collect();
    proxy.wait_clients(4);
    begin(&proxy);
    take_away(&team);
    streams.into_iter().map(rest).filter(|items| !said_goodbye(items)).count()
}

// In the first fifty seconds only one of the streams ends by the drain.

#[test]
fn a_token_that_expires_while_the_proxy_drains_ends_its_streams() {
    let token = |team: &Team<'_>| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is right").as_secs();
        let mut claims = team.claims(1);
        claims["exp"] = json!(now + 10);
        sign(&claims)
    };
    assert!(taken_away(&[], token, |_| ()) >= 3);
}

#[test]
fn access_that_is_revoked_while_the_proxy_drains_ends_the_streams() {
    let take_away = |team: &Team<'_>| team.db.session().run("DELETE FROM members WHERE board_id = 5");
    assert!(taken_away(&["--reauthorize", "200ms"], |team| team.token(1), take_away) >= 3);
}

#[test]
fn a_request_that_arrives_at_sigterm_gets_a_time_to_reconnect() {
    let db = boards();
    let proxy = db.proxy(&["--drain", "60s"]);
    // Two streams: the second one ends much later, so the proxy stays up.
    let _streams = [proxy.live(&["boards_5"]), proxy.live(&["boards_5"])];
    let mut requests = ["text/event-stream", "*/*"].map(|accept| {
        let mut socket = TcpStream::connect(proxy.address()).expect("connect");
        write!(socket, "GET /events?topic=boards_5 HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n").expect("begin to ask");
        socket
    });
    until("the requests have arrived", || proxy.metric("tidings_connections") >= 3.0);
    begin(&proxy);
    let [stream, other] = requests.each_mut().map(|socket| {
        socket.write_all(b"\r\n").expect("finish to ask");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        answer
    });
    // An error would make an EventSource give up permanently.
    assert!(
        stream.starts_with("HTTP/1.1 200 ") && stream.ends_with("\n\n") && stream.contains("\nretry: "),
        "{stream}"
    );
    assert!(other.starts_with("HTTP/1.1 503 ") && other.contains("\r\nretry-after: "), "{other}");
}

/// A client of HTTP/2 that does nothing by itself: it answers no ping and ignores GOAWAY.
struct Raw {
    socket: TcpStream,
    streams: u32,
}

/// The kinds of frames that this test needs.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;

/// The last frame of a stream.
const END_STREAM: u8 = 1;

impl Raw {
    fn connect(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).expect("connect");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("speak HTTP/2");
        Self { socket, streams: 0 }
    }

    /// Requests `/events`; returns the stream's number.
    fn ask(&mut self, accept: &str) -> u32 {
        let id = 2 * self.streams + 1;
        self.streams += 1;
        // GET and http by their numbers in the static table; authority, path and accept as literals.
        let mut block = vec![0x82, 0x86];
        for (head, value) in [(&[0x01][..], "x"), (&[0x04], "/events?topic=boards_5"), (&[0x0F, 0x04], accept)] {
            block.extend_from_slice(head);
            block.push(value.len() as u8);
            block.extend_from_slice(value.as_bytes());
        }
        let mut frame = vec![0, 0, block.len() as u8, HEADERS, 0x05];
        frame.extend_from_slice(&id.to_be_bytes());
        frame.extend_from_slice(&block);
        self.socket.write_all(&frame).expect("ask");
        id
    }

    /// The next frame: kind, flags, stream and payload.
    fn frame(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let mut head = [0; 9];
        self.socket.read_exact(&mut head).expect("a frame");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.socket.read_exact(&mut payload).expect("its payload");
        (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
    }

    /// The complete body of a response.
    fn body(&mut self, id: u32) -> String {
        let mut body = Vec::new();
        loop {
            let (kind, flags, stream, payload) = self.frame();
            assert!(kind != 3 || stream != id, "the stream was reset");
            if kind == DATA && stream == id {
                body.extend(payload);
            }
            if (kind == DATA || kind == HEADERS) && stream == id && flags & END_STREAM != 0 {
                return String::from_utf8(body).expect("a text");
            }
        }
    }
}

#[test]
fn an_http2_connection_gets_a_goaway_and_its_streams_get_their_last_frames() {
    let db = boards();
    let mut proxy = db.proxy(&["--drain", "10s", "--heartbeat", "1h"]);
    let mut client = Raw::connect(proxy.address());
    let streams = [(); 3].map(|()| client.ask("text/event-stream"));
    proxy.wait_clients(3);
    begin(&proxy);
    while client.frame().0 != GOAWAY {}
    // A client that sends a request during the drain gets a time to reconnect, because an error would stop an
    // EventSource for good.
    let late = client.ask("text/event-stream");
    let body = client.body(late);
    assert!(body.starts_with("retry: ") && !body.contains("tidings"), "{body:?}");
    let late = client.ask("*/*");
    let problem: serde_json::Value = serde_json::from_str(&client.body(late)).expect("JSON");
    assert_eq!((&problem["status"], &problem["detail"]), (&json!(503), &json!("shutting down")));
    // One ended at once; it may have been skipped in the meantime.
    let mut left: Vec<u32> = streams.to_vec();
    let mut last: Vec<u8> = Vec::new();
    while left.len() > 1 {
        let (kind, flags, stream, payload) = client.frame();
        if kind == DATA && left.contains(&stream) && !payload.is_empty() {
            last = payload;
        }
        if kind == DATA && flags & END_STREAM != 0 {
            assert!(last.starts_with(b"retry: "), "{:?}", String::from_utf8_lossy(&last));
            left.retain(|open| *open != stream);
        }
    }
    assert!(proxy.terminate().success());
}
