//! Streams that start with the current rows: `since=snapshot`.

use std::time::Duration;

use serde_json::json;
use tidings_tests::process::{Signal, memory, send};
use tidings_tests::sse::Request;
use tidings_tests::{Database, Frame, Item, Proxy, Sse, until};

use crate::access::{Team, ask};
use crate::{all_until_now, boards, titles};

/// A request for the rows and the changes after them.
pub fn rows_of(topics: &[&str]) -> Request {
    Request::since(topics, "snapshot")
}

/// Checks that the next frame is the one at which a page forgets what it has.
#[track_caller]
fn forgets(sse: &mut Sse) {
    let frame = sse.frame();
    // With this id a client starts over. No other id comes before all rows have been sent.
    let id = Some("snapshot".into());
    assert_eq!(frame, Frame { id, event: "reset".into(), data: "{\"reason\":\"snapshot\"}".into() });
}

/// The rows, and the frame that ends them.
#[track_caller]
fn snapshot(sse: &mut Sse) -> (Vec<Frame>, Frame) {
    let mut rows = Vec::new();
    loop {
        let frame = sse.frame();
        if frame.event == "ready" {
            return (rows, frame);
        }
        assert_eq!(frame.id, None, "{frame:?}");
        rows.push(frame);
    }
}

/// Lets the proxies of a database read the boards' items.
fn readable(db: &Database<'_>) {
    db.session().run(&format!("GRANT SELECT ON board_items TO {}", db.proxy_role()));
}

#[test]
fn a_stream_starts_with_the_rows_and_goes_on_with_the_changes() {
    let db = boards();
    readable(&db);
    let proxy = db.proxy(&[]);
    let mut session = db.session();
    session
        .run("INSERT INTO board_items VALUES (1, 5, 'one'), (2, 6, 'two'), (3, 5, 'line\nbreak'), (4, 7, 'another')");
    let mut sse = proxy.open(&rows_of(&["boards_5", "boards_6"]));
    forgets(&mut sse);
    let (rows, ready) = snapshot(&mut sse);
    assert_eq!(titles(&rows), ["one", "line\nbreak", "two"]);
    assert!(rows.iter().all(|row| row.event == "changed" && row.json()["type"] == "SNAPSHOT"), "{rows:?}");
    assert_eq!(ready.json(), json!({"topics": ["boards_5", "boards_6"]}));
    let position: String = session.one(&format!("SELECT count(*)::text FROM tidings.changes('{}')", ready.id()));
    assert_eq!(position, "0", "nothing lies behind it");
    session.run("UPDATE board_items SET title = 'new' WHERE id = 1");
    let changed = sse.frame();
    assert_eq!(
        (titles(std::slice::from_ref(&changed)), changed.json()["type"].as_str()),
        (vec!["new".to_owned()], Some("UPDATE"))
    );
    // A client that comes back with an id gets what it missed, and no rows.
    session.run("INSERT INTO board_items VALUES (5, 6, 'missed')");
    assert_eq!(titles(&[sse.frame()]), ["missed"]);
    for id in [ready.id(), changed.id()] {
        let again = Request { last_event_id: Some(id.to_owned()), ..rows_of(&["boards_5", "boards_6"]) };
        let missed = titles(&all_until_now(&db, "boards_5", &mut proxy.open(&again)));
        assert_eq!(missed.last().map(String::as_str), Some("missed"));
        assert!(missed.len() <= 2, "{missed:?}");
    }
    // A topic that no watch makes has no rows.
    let mut nothing = proxy.open(&rows_of(&["other"]));
    forgets(&mut nothing);
    assert_eq!(snapshot(&mut nothing).0, []);
    assert_eq!(proxy.metric("tidings_snapshots_total{result=\"complete\"}"), 2.0);
    assert_eq!(proxy.metric("tidings_snapshot_rows_total"), 3.0);
}

#[test]
fn an_id_that_is_no_longer_good_gets_the_rows_again() {
    let db = boards();
    readable(&db);
    let proxy = db.proxy(&[]);
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (1, 5, 'one')");
    let mut sse = proxy.open(&rows_of(&["boards_5"]));
    forgets(&mut sse);
    let tick: u64 = snapshot(&mut sse).1.place().0;
    // Older than what is retained, and a tick that there never was.
    for id in ["1-1".to_owned(), format!("{}-1", tick - 1)] {
        let again = Request { last_event_id: Some(id), ..rows_of(&["boards_5"]) };
        let mut sse = proxy.open(&again);
        forgets(&mut sse);
        assert_eq!(titles(&snapshot(&mut sse).0), ["one"]);
        // Without `since=snapshot`, such a client gets the reason and no rows.
        let bare = Request { since: None, ..again };
        assert_eq!(proxy.open(&bare).frame().event, "reset");
    }
    assert!(proxy.metric("tidings_resets_total") >= 4.0);
}

#[test]
fn who_was_cut_off_among_the_rows_begins_with_them_again_wherever_it_comes_back() {
    let db = tidings_tests::shared().database();
    many_and_few(&db);
    let (proxy, other) = (db.proxy(&[]), db.proxy(&[]));
    // The other proxy knows this place, and would continue from there.
    let mut elsewhere = other.live(&["many"]);
    elsewhere.wait_id();
    let known = elsewhere.last_id().map(str::to_owned);
    for id in [None, Some("1-1".to_owned())] {
        let mut sse = proxy.open(&Request { last_event_id: id, ..rows_of(&["many"]) });
        forgets(&mut sse);
        sse.take(10);
        let id = sse.last_id().map(str::to_owned);
        assert_ne!(id, known);
        let mut again = other.open(&Request { last_event_id: id, ..rows_of(&["many"]) });
        forgets(&mut again);
        assert_eq!(snapshot(&mut again).0.len(), 100_000);
    }
}

#[test]
fn rows_are_those_that_the_subscriber_may_see() {
    let team = Team::new();
    team.db.session().run(&format!(
        "INSERT INTO board_items VALUES (1, 7, 'of one'), (2, 7, 'of two'), (3, 8, 'of all');
         ALTER TABLE board_items ENABLE ROW LEVEL SECURITY; GRANT SELECT ON board_items TO {member}, {guest};
         CREATE FUNCTION person() RETURNS text LANGUAGE sql AS $$ SELECT current_setting('request.jwt.claims')::json ->> 'sub' $$;
         CREATE FUNCTION is_visible(i board_items) RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN RETURN i.board_id = 8 OR i.title = CASE person() WHEN '1' THEN 'of one' ELSE 'of two' END; END $$;
         CREATE POLICY visible ON board_items FOR SELECT USING (is_visible(board_items))",
        member = team.member,
        guest = team.guest
    ));
    let check = |proxy: &Proxy| {
        for (person, title) in [(1, "of one"), (2, "of two")] {
            let mut sse = proxy.open(&rows_of(&["boards_7"]).by(&team.token(person)));
            forgets(&mut sse);
            assert_eq!(titles(&snapshot(&mut sse).0), [title]);
        }
        let mut guest = proxy.open(&rows_of(&["boards_8"]));
        forgets(&mut guest);
        assert_eq!(titles(&snapshot(&mut guest).0), ["of all"]);
        let bearer = format!("Bearer {}", team.token(1));
        let denied = ask(proxy, "/events?topic=boards_6&since=snapshot", &[("Authorization", &bearer)]);
        assert_eq!(denied.0.status, 403);
    };
    check(&team.proxy(&["--anon-role", &team.guest]));
    // With two logins, the one that may take the subscribers' roles does the reading.
    team.gate_role();
    check(&team.proxy_with_gate(&["--anon-role", &team.guest]));
}

#[test]
fn what_can_not_be_read_ends_the_stream_without_an_end_of_rows() {
    let db = boards();
    db.session().run(
        "INSERT INTO board_items VALUES (1, 5, 'one'), (2, 5, 'two');
         SELECT tidings.snapshot('broken_{x}', 'SELECT n, 1 / (500 - n) FROM generate_series(1, 1000) n')",
    );
    let proxy = db.proxy(&["--retry", "100ms"]);
    // The proxy's own role has no right to the table.
    let mut sse = proxy.open(&rows_of(&["boards_5"]));
    let mut waits = Vec::new();
    while let Some(item) = sse.item() {
        match item {
            Item::Retry(wait) => waits.push(wait),
            Item::Comment(_) => {}
            item => panic!("{item:?}"),
        }
    }
    assert!(waits.len() == 2 && waits[1] > 2 * waits[0], "a long wait before the next attempt: {waits:?} ms");
    // A query that fails in the middle of its rows.
    let mut sse = proxy.open(&rows_of(&["broken_1"]));
    let frames = sse.rest();
    assert!(frames.iter().all(|frame| frame.event != "ready"), "{frames:?}");
    assert_eq!(sse.last_id(), Some("snapshot"));
    assert_eq!(proxy.metric("tidings_snapshots_total{result=\"failed\"}"), 2.0);
    // Its connection serves the next reading.
    readable(&db);
    let mut sse = proxy.open(&rows_of(&["boards_5"]));
    forgets(&mut sse);
    assert_eq!(titles(&snapshot(&mut sse).0), ["one", "two"]);
}

/// A table with more rows than all buffers on the way can hold, on topic `many`, and one with a few, on topic `few`.
fn many_and_few(db: &Database<'_>) {
    db.session().run(&format!(
        "CREATE TABLE many (id int, text text); INSERT INTO many SELECT n, repeat('x', 500) FROM generate_series(1, 100000) n;
         CREATE TABLE few (id int); INSERT INTO few VALUES (1), (2), (3);
         SELECT tidings.watch('many', topic => 'many'), tidings.watch('few', topic => 'few');
         GRANT SELECT ON many, few TO {}",
        db.proxy_role()
    ));
}

#[test]
fn a_slow_client_has_its_own_pace_and_takes_bounded_memory() {
    let db = tidings_tests::shared().database();
    many_and_few(&db);
    let proxy = db.proxy(&["--heartbeat", "1h"]);
    let before = memory(proxy.pid(), "VmRSS").unwrap();
    let mut sse = proxy.open(&rows_of(&["many"]));
    until("the reading has come as far as it can", || {
        let rows = proxy.metric("tidings_snapshot_rows_total");
        std::thread::sleep(Duration::from_millis(200));
        rows > 0.0 && rows == proxy.metric("tidings_snapshot_rows_total")
    });
    assert_eq!(proxy.metric("tidings_snapshots"), 1.0, "it waits for its client");
    // The kernel's buffers don't count as the proxy's memory.
    let grown = memory(proxy.pid(), "VmHWM").unwrap().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes for one slow client");
    // Others are served meanwhile.
    let mut quick = proxy.open(&rows_of(&["few"]));
    forgets(&mut quick);
    assert_eq!(snapshot(&mut quick).0.len(), 3);
    forgets(&mut sse);
    let (rows, _) = snapshot(&mut sse);
    assert_eq!(rows.len(), 100_000);
    assert!(rows.iter().zip(1..).all(|(row, id)| row.json()["record"]["id"] == id));
    assert_eq!(proxy.metric("tidings_snapshots"), 0.0);
}

#[test]
fn a_reading_that_takes_too_long_is_given_up() {
    let db = tidings_tests::shared().database();
    many_and_few(&db);
    db.session().run("SELECT tidings.snapshot('sleeps', 'SELECT pg_sleep(1000)')");
    let proxy = db.proxy(&["--snapshot-timeout", "1s", "--heartbeat", "1h"]);
    let (mut slow, mut sleeps) = (proxy.open(&rows_of(&["many"])), proxy.open(&rows_of(&["sleeps"])));
    until("both are given up", || proxy.metric("tidings_snapshots_total{result=\"too_long\"}") == 2.0);
    for sse in [&mut slow, &mut sleeps] {
        assert!(sse.rest().iter().all(|frame| frame.event != "ready"));
    }
    let mut session = db.session();
    let role = db.proxy_role();
    until("no transaction is left", || {
        session.one::<i64>(&format!(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}' AND xact_start IS NOT NULL"
        )) == 0
    });
}

/// A stream that is not read, over a connection whose buffers hold little.
#[track_caller]
fn unread(proxy: &Proxy, topic: &str) -> std::net::TcpStream {
    unread_from([127, 0, 0, 1], proxy, topic)
}

/// The same from an address of this machine.
#[track_caller]
fn unread_from(source: [u8; 4], proxy: &Proxy, topic: &str) -> std::net::TcpStream {
    use std::io::Write;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.bind(&std::net::SocketAddr::from((source, 0)).into()).expect("bind to the address");
    socket.connect(&proxy.address().into()).expect("connect");
    let mut socket = std::net::TcpStream::from(socket);
    let request = format!("GET /events?topic={topic}&since=snapshot HTTP/1.1\r\nHost: x\r\n\r\n");
    socket.write_all(request.as_bytes()).expect("send a request");
    socket
}

#[test]
fn those_who_wait_for_the_same_share_one_reading() {
    const CLIENTS: usize = 60;
    let db = tidings_tests::shared().database();
    many_and_few(&db);
    let proxy = db.proxy(&["--max-snapshots", "1", "--heartbeat", "1h"]);
    let first = unread(&proxy, "many");
    until("the only place is taken", || proxy.metric("tidings_snapshots") == 1.0);
    let mut clients: Vec<Sse> = (0..CLIENTS).map(|_| proxy.open(&rows_of(&["few"]))).collect();
    let mut others: Vec<Sse> = (0..2).map(|_| proxy.open(&rows_of(&["few", "other"]))).collect();
    until("all of them wait", || proxy.metric("tidings_snapshots_shared_total") == CLIENTS as f64);
    assert_eq!(proxy.metric("tidings_snapshots_waiting"), 2.0);
    drop(first);
    for sse in clients.iter_mut().chain(&mut others) {
        forgets(sse);
        assert_eq!(snapshot(sse).0.len(), 3);
    }
    assert_eq!(
        proxy.metric("tidings_snapshots_total{result=\"complete\"}"),
        2.0,
        "without the one that was broken off"
    );
    // All of them are live, from memory: the log was asked once for each reading, and had nothing.
    db.session().run("INSERT INTO few VALUES (4)");
    for sse in clients.iter_mut().chain(&mut others) {
        assert_eq!(sse.frame().json()["record"]["id"], 4);
    }
    assert_eq!(proxy.metric("tidings_resumes_total{source=\"log\"}"), 0.0);
}

#[test]
fn nothing_is_read_for_who_has_left() {
    let db = tidings_tests::shared().database();
    many_and_few(&db);
    db.session().run("SELECT tidings.snapshot('sleeps_{n}', 'SELECT pg_sleep(1000) WHERE {n} IS NOT NULL')");
    let proxy = db.proxy(&["--max-snapshots", "1", "--snapshot-timeout", "1h", "--heartbeat", "1h"]);
    let mut reads = proxy.open(&rows_of(&["sleeps_1"]));
    // From then on it waits for the first rows.
    forgets(&mut reads);
    let waits = proxy.open(&rows_of(&["sleeps_2"]));
    until("it waits", || proxy.metric("tidings_snapshots_waiting") == 1.0);
    // The statement of the one is cancelled, and that of the other never begins.
    drop((reads, waits));
    let mut sse = proxy.open(&rows_of(&["few"]));
    forgets(&mut sse);
    assert_eq!(snapshot(&mut sse).0.len(), 3);
}

#[test]
fn a_reading_that_waits_for_ticks_ends_when_its_clients_have_left() {
    let team = Team::new();
    let db = &team.db;
    let login = db.proxy_role();
    let proxy = team.proxy(&["--anon-role", &team.guest, "--snapshot-timeout", "1h", "--heartbeat", "1h"]);
    let mut session = db.session();
    session.run(&format!("GRANT SELECT ON board_items TO {}", team.guest));
    let of_proxy = format!("FROM pg_stat_activity WHERE usename = '{login}'");
    // The connection that listens has also read the log once.
    let listens = format!("SELECT pid {of_proxy} AND query LIKE '%tidings.segments%'");
    let listens = session.one::<i32>(&listens).unsigned_abs();
    session.stop(listens);
    // The rows include what the proxy does not hear of.
    session.run("INSERT INTO board_items VALUES (1, 8, 'unheard')");
    let sse = proxy.open(&rows_of(&["boards_8"]));
    let reads = format!("SELECT {of_proxy} AND xact_start IS NOT NULL");
    until("it reads", || !session.all(&reads, &[]).is_empty());
    // It can't listen again and hear of it that way.
    session.run(&format!("ALTER ROLE {login} NOLOGIN"));
    drop(sse);
    until("its transaction is over", || session.all(&reads, &[]).is_empty());
    assert_eq!(proxy.metric("tidings_upstream_connected"), 1.0);
    send(listens, Signal::SIGCONT);
}

#[test]
fn who_is_slower_than_the_others_of_a_reading_begins_anew_alone() {
    let db = tidings_tests::shared().database();
    many_and_few(&db);
    let proxy = db.proxy(&["--max-snapshots", "1", "--heartbeat", "1h"]);
    let first = unread(&proxy, "many");
    until("the only place is taken", || proxy.metric("tidings_snapshots") == 1.0);
    let mut slow = proxy.open(&rows_of(&["many"]));
    let mut quick: Vec<Sse> = (0..3).map(|_| proxy.open(&rows_of(&["many"]))).collect();
    until("they wait together", || proxy.metric("tidings_snapshots_shared_total") == 3.0);
    drop(first);
    let quick: Vec<_> = quick
        .drain(..)
        .map(|mut sse| {
            std::thread::spawn(move || {
                forgets(&mut sse);
                snapshot(&mut sse).0.len()
            })
        })
        .collect();
    for thread in quick {
        assert_eq!(thread.join().expect("a client"), 100_000);
    }
    // It had rows, which it has to forget.
    let mut resets = 0;
    let mut rows = 0;
    loop {
        let frame = slow.frame();
        match frame.event.as_str() {
            "reset" => (resets, rows) = (resets + 1, 0),
            "ready" => break,
            _ => rows += 1,
        }
    }
    assert_eq!((resets, rows), (2, 100_000));
    assert_eq!(proxy.metric("tidings_snapshots_behind_total"), 1.0);
}

#[test]
fn slow_clients_of_one_identity_leave_places_to_others() {
    let db = tidings_tests::shared().database();
    many_and_few(&db);
    // Nothing frees a place until the end of the test.
    let proxy = db.proxy(&["--max-snapshots", "4", "--snapshot-timeout", "1h", "--heartbeat", "1h"]);
    let slow = |more: &str| unread_from([127, 0, 0, 2], &proxy, &format!("many&topic={more}"));
    let _slow = ["a", "b", "c", "d", "e"].map(slow);
    until("one identity has half of the places", || {
        proxy.metric("tidings_snapshots") == 2.0 && proxy.metric("tidings_snapshots_waiting") == 3.0
    });
    // What it waits for itself, it does not delay for others.
    let _same = unread_from([127, 0, 0, 2], &proxy, "few");
    until("it waits for more", || proxy.metric("tidings_snapshots_waiting") == 4.0);
    let mut other = proxy.open(&rows_of(&["few"]));
    forgets(&mut other);
    assert_eq!(snapshot(&mut other).0.len(), 3);
    assert_eq!(proxy.metric("tidings_snapshots_shared_total"), 1.0);
    until("only the slow ones are left", || {
        proxy.metric("tidings_snapshots") == 2.0 && proxy.metric("tidings_snapshots_waiting") == 3.0
    });
}
