//! Clients that vanish are pruned without effect on the others.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tidings_tests::process::{Process, Signal};
use tidings_tests::sse::{Parser, Request};
use tidings_tests::{Frame, Item, Proxy, http, until};

use crate::{all_until_now, boards, titles};

#[test]
fn closed_sockets_are_pruned_without_effect_on_the_others() {
    let db = boards();
    // No heartbeat helps: the end of the socket is enough.
    let proxy = db.proxy(&["--heartbeat", "1h"]);
    let mut stays = proxy.live(&["boards_5"]);
    let leaves: Vec<_> = (0..20).map(|_| proxy.live(&["boards_5"])).collect();
    proxy.wait_clients(21);
    drop(leaves);
    proxy.wait_clients(1);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'for who stayed')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut stays)), ["for who stayed"]);
}

/// A client with an open stream in its own process.
fn client_process(address: std::net::SocketAddr) -> Process {
    let script = format!(
        "exec 3<>/dev/tcp/{}/{}; printf 'GET /events?topic=boards_5 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3; exec cat <&3",
        address.ip(),
        address.port()
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null());
    Process::spawn(&mut command, Signal::SIGKILL).expect("start a client")
}

#[test]
fn a_killed_client_is_pruned() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut stays = proxy.live(&["boards_5"]);
    let client = client_process(proxy.address());
    proxy.wait_clients(2);
    client.signal(Signal::SIGKILL);
    proxy.wait_clients(1);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'a')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut stays)), ["a"]);
}

#[test]
fn a_frozen_client_is_pruned_without_effect_on_the_others() {
    let db = boards();
    // It is not noticed by its queue: nothing that is sent here fills it. The other one has time enough.
    let proxy = db.proxy(&["--heartbeat", "500ms", "--client-queue-bytes", "1GiB"]);
    let mut stays = proxy.live(&["boards_5"]);
    let client = client_process(proxy.address());
    proxy.wait_clients(2);
    client.signal(Signal::SIGSTOP);
    // Its socket accepts what the kernel buffers, and then nothing more.
    let mut session = db.session();
    let mut sent = 0;
    until("the frozen client is pruned", || {
        for _ in 0..20 {
            sent += 1;
            session.run(&format!("INSERT INTO board_items VALUES ({sent}, 5, '{sent}' || repeat('.', 100000))"));
            assert_eq!(stays.frame().json()["record"]["id"], sent);
        }
        proxy.metric("tidings_clients") as usize == 1
    });
    assert!(proxy.metric("tidings_evictions_total") >= 1.0);
    assert_eq!(all_until_now(&db, "boards_5", &mut stays), []);
}

#[test]
fn a_client_that_was_frozen_for_a_while_resumes_without_loss() {
    let db = boards();
    let proxy = db.proxy(&["--heartbeat", "100ms"]);
    let mut sleeper = proxy.live(&["boards_5"]);
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (1, 5, 'before')");
    assert_eq!(titles(&[sleeper.frame()]), ["before"]);
    let mut id = 1;
    until("the sleeper is pruned", || {
        for _ in 0..20 {
            id += 1;
            session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, repeat('.', 100000))"));
        }
        proxy.metric("tidings_clients") as usize == 0
    });
    // When it wakes up it gets what its socket still holds, then the rest.
    let mut got = sleeper.rest();
    while got.len() < id - 1 {
        let last = sleeper.last_id().expect("an id").to_owned();
        sleeper = proxy.open(&Request::resume(&["boards_5"], &last));
        while got.len() < id - 1 {
            let Some(frame) = sleeper.frame_or_end() else { break };
            got.push(frame);
        }
    }
    let ids: Vec<_> = got.iter().map(|frame| frame.json()["record"]["id"].as_u64()).collect();
    assert_eq!(ids, (2..=id as u64).map(Some).collect::<Vec<_>>());
}

#[test]
fn idle_clients_get_a_comment_at_every_heartbeat_and_stay() {
    let db = boards();
    let proxy = db.proxy(&["--heartbeat", "50ms"]);
    let mut idle = proxy.live(&["boards_5"]);
    let mut comments = 0;
    while comments < 10 {
        match idle.item().expect("the stream continues") {
            Item::Comment(_) => comments += 1,
            Item::Retry(_) | Item::Position(_) => {}
            Item::Frame(frame) => panic!("nothing was written: {frame:?}"),
        }
    }
    assert_eq!(proxy.metric("tidings_clients") as usize, 1);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'a')");
    assert_eq!(titles(&[idle.frame()]), ["a"]);
}

/// A stream over a connection that buffers almost nothing for its reader, and what has arrived.
struct Narrow {
    response: http::Response,
    parser: Parser,
    frames: Vec<Frame>,
}

impl Narrow {
    fn open(proxy: &Proxy, topic: &str) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(8192).expect("a small buffer");
        socket.connect(&proxy.address().into()).expect("connect");
        let path = format!("/events?topic={topic}");
        let mut response = http::send_over(TcpStream::from(socket), "GET", &path, &[]).expect("an answer");
        assert_eq!(response.head.status, 200);
        response.read_in_steps(1500);
        Self { response, parser: Parser::default(), frames: Vec::new() }
    }

    /// Reads at a limited rate, in bytes a second, until `n` events have arrived.
    fn read(&mut self, pace: usize, n: usize) {
        while self.frames.len() < n {
            let mut bytes = Vec::new();
            assert!(self.response.read(&mut bytes).expect("more"), "the stream has ended");
            let frames = &mut self.frames;
            let mut take = |item| match item {
                Item::Frame(frame) if frame.event == "changed" => frames.push(frame),
                _ => {}
            };
            self.parser.feed(&bytes, &mut take).expect("an event stream");
            std::thread::sleep(Duration::from_secs_f64(bytes.len() as f64 / pace as f64));
        }
    }
}

#[test]
fn a_slow_but_steady_reader_gets_a_large_event_over_many_heartbeats() {
    let db = boards();
    let proxy = db.proxy(&["--heartbeat", "3s"]);
    let mut narrow = Narrow::open(&proxy, "boards_5");
    proxy.wait_clients(1);
    db.session().run("INSERT INTO board_items VALUES (1, 5, repeat('.', 300000))");
    narrow.read(30_000, 1);
    db.session().run("INSERT INTO board_items VALUES (2, 5, 'on the same stream')");
    narrow.read(30_000, 2);
    assert_eq!(narrow.frames[0].json()["record"]["title"].as_str().map(str::len), Some(300_000));
    assert_eq!(titles(&narrow.frames[1..]), ["on the same stream"]);
    assert_eq!(proxy.metric("tidings_evictions_total"), 0.0);
}
