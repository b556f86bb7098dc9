//! How a stream is framed in transit, and the effect on intermediaries between the proxy and a client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use tidings_tests::sse::Parser;
use tidings_tests::{DEADLINE, Item, http};

use crate::boards;
use crate::clients::{Client, folder};

/// Head and body of a stream over this version of HTTP that got an event and heartbeats, and ended properly.
fn life(version: &str) -> (String, Vec<u8>) {
    let db = boards();
    let mut proxy = db.proxy(&["--heartbeat", "100ms", "--drain", "100ms"]);
    let mut socket = TcpStream::connect(proxy.address()).expect("connect");
    socket.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let request = format!("GET /events?topic=boards_5 {version}\r\nHost: x\r\n\r\n");
    socket.write_all(request.as_bytes()).expect("ask");
    let mut witness = proxy.live(&["boards_5"]);
    proxy.wait_clients(2);
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (1, 5, repeat('ü', 30000))");
    witness.frame();
    let mut comments = 0;
    while comments < 3 {
        comments += usize::from(matches!(witness.item(), Some(Item::Comment(_))));
    }
    assert!(proxy.terminate().success());
    let mut all = Vec::new();
    socket.read_to_end(&mut all).expect("the end of the connection");
    let end = all.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head");
    let body = all.split_off(end + 4);
    (String::from_utf8(all).expect("a head").to_ascii_lowercase(), body)
}

/// The content of the chunks of a body, which must consist of chunks, ending with the last one.
fn chunks(mut body: &[u8]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    loop {
        let line = body.windows(2).position(|bytes| bytes == b"\r\n").expect("the head of a chunk");
        let digits = std::str::from_utf8(&body[..line]).expect("digits");
        let length = usize::from_str_radix(digits, 16).expect("digits");
        assert_eq!(digits, format!("{length:x}"));
        let (chunk, rest) = body[line + 2..].split_at(length);
        body = rest.strip_prefix(b"\r\n").expect("the end of a chunk");
        if length == 0 {
            assert!(body.is_empty(), "something after the last chunk: {body:?}");
            return chunks;
        }
        chunks.push(chunk.to_vec());
    }
}

/// The items of a stream.
fn items(body: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    Parser::default().feed(body, &mut |item| items.push(item)).expect("an event stream");
    items
}

/// Whether the stream has everything that `life` sends.
fn assert_whole(items: &[Item]) {
    // The two comments are its name and its heartbeat.
    use Item::{Comment, Position, Retry};
    assert!(matches!(items, [Retry(_), Comment(_), Comment(_), Position(_), .., Retry(_)]), "{items:?}");
    let events = items.iter().filter(|item| matches!(item, Item::Frame(frame) if frame.data.len() > 60_000));
    assert_eq!(events.count(), 1);
}

#[test]
fn a_stream_over_http_1_1_is_chunked_to_its_end() {
    let (head, body) = life("HTTP/1.1");
    assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
    assert!(!head.contains("content-length"), "{head}");
    let chunks = chunks(&body);
    assert_whole(&items(&chunks.concat()));
    for chunk in chunks {
        // A reader that looks at single chunks sees complete blocks.
        assert!(chunk.ends_with(b"\n\n"), "{:?}", String::from_utf8_lossy(&chunk));
    }
}

#[test]
fn a_stream_over_http_1_0_has_no_chunks() {
    let (head, body) = life("HTTP/1.0");
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert_whole(&items(&body));
}

#[test]
fn events_come_through_a_web_server_that_compresses() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut command = Command::new("node");
    command.arg(folder().join("compression.mjs")).args(["127.0.0.1", &proxy.address().port().to_string()]);
    let server = Client::start(command);
    let port = server.line()["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let path = "/events?topic=boards_5";
    // It does compress other responses.
    let plain = http::open(address, "/metrics", &[("Accept-Encoding", "gzip")]).expect("an answer");
    assert_eq!(plain.head.header("content-encoding"), Some("gzip"));
    let mut response = http::open(address, path, &[("Accept-Encoding", "gzip")]).expect("an answer");
    assert_eq!(response.head.header("content-encoding"), None);
    let mut body = Vec::new();
    for n in 1..=5 {
        db.session().run(&format!("INSERT INTO board_items VALUES ({n}, 5, 'event {n}')"));
        while !String::from_utf8_lossy(&body).contains(&format!("event {n}")) {
            assert!(response.read(&mut body).expect("more"), "the end");
        }
    }
}

#[test]
fn python_requests_returns_each_event_as_it_arrives() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let url = format!("http://{}/events?topic=boards_5", proxy.address());
    for (way, first) in [("lines", 10), ("content", 20)] {
        let mut command = Command::new(folder().join("venv/bin/python"));
        command.arg(folder().join("requests_client.py")).args([way, &url]);
        let client = Client::start(command);
        assert_eq!(client.line(), "{}", "the place");
        // The next event is written only after the one before has arrived.
        for n in first..first + 5 {
            db.session().run(&format!("INSERT INTO board_items VALUES ({n}, 5, 'event {n}')"));
            assert!(client.line().to_string().contains(&format!("event {n}")));
        }
    }
}
