//! Resuming after the last event that was seen.

use tidings_tests::follower::Habits;
use tidings_tests::http;
use tidings_tests::ledger::{self, Ledger, TOPICS};
use tidings_tests::sse::Request;
use tidings_tests::{Database, Follower, Frame, Proxy, Sse, shared, until};

use crate::{all_until_now, boards, titles};

/// Transactions of different sizes and what a client received of them: small ones, one that takes several
/// notifications, and one that is read from the log.
fn history(db: &Database<'_>, proxy: &Proxy) -> Vec<Frame> {
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    let mut id = 0;
    for (rows, size) in [(1, 10), (3, 10), (1, 20_000), (2, 10), (12, 3000), (1, 10), (5, 9_000)] {
        session.run(&format!(
            "INSERT INTO board_items SELECT i, 5, i || repeat('.', {size}) FROM generate_series({id}, {id} + {rows} - 1) i"
        ));
        id += rows;
    }
    let frames = all_until_now(db, "boards_5", &mut sse);
    assert_eq!(frames.len(), id);
    frames
}

#[test]
fn a_client_may_move_between_two_proxies_at_any_event() {
    let db = boards();
    let proxies = [db.proxy(&[]), db.proxy(&[])];
    let frames = history(&db, &proxies[0]);
    // The third proxy can only read them from the log.
    let late = db.proxy(&[]);
    for (i, frame) in frames.iter().enumerate() {
        for proxy in [&proxies[0], &proxies[1], &late] {
            let mut sse = proxy.open(&Request::resume(&["boards_5"], frame.id()));
            let rest = sse.take(frames.len() - i); // the mark of `history` is the last one
            assert_eq!(rest[..frames.len() - i - 1], frames[i + 1..], "after event {i}");
        }
    }
}

#[test]
fn a_resumed_stream_becomes_live_without_gap_or_repetition() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let frames = history(&db, &proxy);
    let mut sse = proxy.open(&Request::resume(&["boards_5"], frames[4].id()));
    assert_eq!(sse.take(frames.len() - 5), frames[5..]);
    sse.frame(); // the mark of `history`
    db.session().run("INSERT INTO board_items VALUES (1000, 5, 'live')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["live"]);
}

#[test]
fn the_header_wins_over_the_parameters() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let frames = history(&db, &proxy);
    let mut request = Request::since(&["boards_5"], frames[0].id());
    assert_eq!(proxy.open(&request).frame(), frames[1]);
    request.last_event_id = Some(frames[5].id().to_owned());
    assert_eq!(proxy.open(&request).frame(), frames[6]);
    let mut earliest = proxy.open(&Request::since(&["boards_5"], "earliest"));
    assert_eq!(earliest.take(frames.len()), frames);
    let path = format!("/events?topic=boards_5&last_event_id={}", frames[3].id());
    let mut response = http::open(proxy.address(), &path, &[]).expect("open a stream");
    let mut body = Vec::new();
    let id = format!("id: {}\n", frames[4].id());
    while !String::from_utf8_lossy(&body).contains("\n\nid:") && !String::from_utf8_lossy(&body).contains(&id) {
        assert!(response.read(&mut body).expect("read the stream"), "the stream ended");
    }
    let text = String::from_utf8_lossy(&body);
    assert!(text.contains(&id) && !text.contains(&format!("id: {}\n", frames[3].id())), "{text}");
}

#[test]
fn an_invalid_position_is_refused() {
    let db = boards();
    let proxy = db.proxy(&[]);
    for since in ["x", "-1", "5-", "5-1-1", "1:2", "9999999999999999999-1", "5-1%0Aid:%20x", "Earliest"] {
        let (head, body) = http::get(proxy.address(), &format!("/events?topic=t&since={since}")).expect("ask");
        assert_eq!(head.status, 400, "{since:?}: {body}");
        assert_eq!(head.header("content-type"), Some("application/problem+json"), "{since:?}");
    }
}

/// Positions that no proxy sent: each gets a final answer, and nothing loops because of it.
#[test]
fn a_made_up_position_delays_nobody() {
    let db = boards();
    let proxy = db.proxy(&["--max-replays", "1"]);
    let mut stays = proxy.live(&["boards_5"]);
    stays.wait_id();
    let now = stays.last_id().expect("an id").to_owned();
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'after the positions')");
    assert_eq!(titles(&[stays.frame()]), ["after the positions"]);
    let most = i64::MAX;
    let many: Vec<String> = (1000..5000).map(|xid| xid.to_string()).collect();
    let many = many.join(",");
    let mut streams = Vec::new();
    for since in [
        "99999999999999999999-1".to_owned(),
        format!("{most}-4294967295"),
        format!("{most}:{most}:{most}:{most}:"),
        "0:0:0:0:".to_owned(),
        format!("{now}:{most}:0:0:"),
        format!("{now}:{most}:0:{most}:1,2,3"),
        format!("{now}:{most}:1:4294967296:"),
        format!("{now}:{most}:4294967296:4294967297:"),
        format!("{now}:{most}:1:{most}:"),
        format!("{now}:1:{most}:{most}:"),
        format!("{now}:{most}:9:3:"),
        format!("{now}:{most}:3:9:5,5"),
        format!("{now}:{most}:1000:5000:{many}"),
        format!("{}:{most}:1000:5000:{many}", "0".repeat(40)),
        format!("{now}:{most}:1000:5000:\u{0}"),
    ] {
        match Sse::connect(proxy.address(), &Request::since(&["boards_5"], &since)) {
            Ok(stream) => streams.push(stream),
            Err(error) => assert!(error.to_string().contains("status: 400"), "{since}: {error}"),
        }
    }
    assert!(streams.len() >= 5, "{}", streams.len());
    until("no replay is running any more", || proxy.metric("tidings_replays") == 0.0);
    db.session().publish("boards_5", "\"for all who are there\"");
    for stream in [&mut stays].into_iter().chain(&mut streams) {
        // The stream for a position that no server will ever reach has ended.
        let frames = std::iter::from_fn(|| stream.frame_or_end());
        for frame in frames.take_while(|frame| !frame.data.contains("for all")) {
            assert!(["changed", "reset"].contains(&&*frame.event), "{frame:?}");
        }
    }
    assert_eq!(proxy.metric("tidings_upstream_reconnects_total"), 0.0);
}

#[test]
fn a_killed_proxy_loses_and_repeats_nothing_for_clients_that_resume() {
    let db = shared().database();
    let ledger = Ledger::create(&db);
    let mut proxy = db.proxy(&[]);
    let follow = || Follower::start(Habits::faithful(proxy.address()), Request::live(&TOPICS), ledger::is_end);
    let followers = [follow(), follow()];
    // A client that has no id yet when the proxy dies starts again where its first request started.
    let since = Request::since(&TOPICS, &db.session().one::<String>("SELECT tidings.position()"));
    let third = Follower::start(Habits::faithful(proxy.address()), since, ledger::is_end);
    let writers = ledger.start(8, crate::seed(), "");
    for _ in 0..6 {
        writers.wait_for(200);
        proxy.kill();
        writers.wait_for(50);
        proxy.restart();
    }
    writers.finish();
    ledger.close();
    let moves: Vec<usize> = followers.iter().map(Follower::connections).collect();
    let got = followers.map(Follower::finish);
    ledger.check(&got[0]);
    assert!(got[1] == got[0], "the same for all");
    // A position taken before the first write gives ids of another form for a while, but the same events.
    let third = third.finish();
    assert!(third.iter().map(Frame::place).eq(got[0].iter().map(Frame::place)), "the same places");
    assert!(third.iter().map(|f| &f.data).eq(got[0].iter().map(|f| &f.data)), "the same events");
    assert!(moves.iter().all(|n| *n > 3), "they resumed only {moves:?} times");
}

#[test]
fn a_drained_proxy_ends_its_streams_and_exits_with_success() {
    let db = boards();
    let mut proxy = db.proxy(&["--drain", "200ms"]);
    let mut streams: Vec<_> = (0..5).map(|_| proxy.live(&["boards_5"])).collect();
    proxy.wait_clients(5);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'seen')");
    for sse in &mut streams {
        assert_eq!(titles(&[sse.frame()]), ["seen"]);
    }
    let status = proxy.terminate();
    assert!(status.success(), "{status}\n{}", proxy.log_tail());
    for sse in &mut streams {
        assert_eq!(sse.rest(), []);
    }
}

#[test]
fn a_proxy_without_an_access_mode_refuses_to_start() {
    let db = boards();
    let url = db.cluster().url(db.name(), &db.proxy_role());
    let output = std::process::Command::new(tidings_tests::proxy::binary())
        .args(["--database-url", &url, "--listen", "127.0.0.1:0"])
        .env_remove("TIDINGS_OPEN")
        .output()
        .expect("start the proxy");
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("--open"), "it says what to do: {message}");
}
