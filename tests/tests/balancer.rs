//! Two proxies behind a load balancer, with the configurations of `docs/`: no client notices that one is restarted.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use tidings_tests::application::{Application, Reply};
use tidings_tests::balancer::{Balancer, nobody};
use tidings_tests::follower::Habits;
use tidings_tests::ledger::{self, Ledger, TOPICS};
use tidings_tests::process::{Process, Signal};
use tidings_tests::sse::Request;
use tidings_tests::{Database, Follower, Proxy, Sse, eventually, http, shared, until};

use crate::{boards, titles};

type Start = fn([SocketAddr; 2], SocketAddr) -> Balancer;

/// Each of them, by name.
const BALANCERS: [(&str, Start); 2] = [("HAProxy", Balancer::haproxy), ("nginx", Balancer::nginx)];

fn two_proxies(db: &Database<'_>, args: &[&str]) -> [Proxy; 2] {
    [db.proxy(args), db.proxy(args)]
}

/// Restarts both proxies, one after the other, twice, while writers write and clients read through the load balancer.
fn rolling_restart(start: Start) {
    const CLIENTS: usize = 12;
    let db = shared().database();
    let ledger = Ledger::create(&db);
    let mut proxies = two_proxies(&db, &["--drain", "500ms"]);
    let balancer = start([proxies[0].address(), proxies[1].address()], nobody());
    let follow = || Follower::start(Habits::faithful(balancer.address()), Request::live(&TOPICS), ledger::is_end);
    let followers: Vec<Follower> = (0..CLIENTS).map(|_| follow()).collect();
    let writers = ledger.start(4, crate::seed(), "");
    for turn in 0..4 {
        let proxy = &mut proxies[turn % 2];
        writers.wait_for(100);
        assert!(proxy.metric("tidings_clients") > 0.0, "the load is shared");
        assert!(proxy.terminate().success());
        writers.wait_for(100);
        proxy.restart();
        // The next proxy is restarted only when the load balancer sends clients to this one again.
        until("it gets clients again", || {
            let _probe = Sse::connect(balancer.address(), &Request::live(&["probe"]));
            proxy.metric("tidings_streams_total") > 0.0
        });
        // New clients even out the load.
        drop((0..CLIENTS).map(|_| Sse::connect(balancer.address(), &Request::live(&["probe"]))).collect::<Vec<_>>());
    }
    writers.wait_for(100);
    writers.finish();
    ledger.close();
    for follower in followers {
        assert!(follower.connections() > 1, "it was never cut off");
        // With any response other than a stream, a browser would give up for good.
        assert_eq!(follower.refusals(), 0, "attempts that got no stream");
        ledger.check(&follower.finish());
    }
}

#[test]
fn a_rolling_restart_behind_haproxy_loses_and_repeats_nothing() {
    rolling_restart(Balancer::haproxy);
}

#[test]
fn a_rolling_restart_behind_nginx_loses_and_repeats_nothing() {
    rolling_restart(Balancer::nginx);
}

#[test]
fn events_come_through_unbuffered() {
    let db = boards();
    let proxies = two_proxies(&db, &[]);
    let mut session = db.session();
    for (i, (name, start)) in BALANCERS.into_iter().enumerate() {
        let balancer = start([proxies[0].address(), proxies[1].address()], nobody());
        let mut sse = Sse::connect(balancer.address(), &Request::live(&["boards_5"])).expect(name);
        // The next event is written only when the one before has arrived.
        for n in 1..=20 {
            session.run(&format!("INSERT INTO board_items VALUES ({}, 5, '{name} {n}')", i * 100 + n));
            assert_eq!(titles(&[sse.frame()]), [format!("{name} {n}")]);
        }
    }
}

#[test]
fn a_client_can_not_make_up_its_host_and_protocol() {
    let db = boards();
    let application = Application::start(|_| Reply::status(204));
    let proxies = two_proxies(&db, &["--auth-url", &application.url("/may")]);
    let made_up =
        [("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Host", "other.example"), ("X-Forwarded-Proto", "https")];
    for (n, (name, start)) in BALANCERS.into_iter().enumerate() {
        let balancer = start([proxies[0].address(), proxies[1].address()], nobody());
        let answer = http::open(balancer.address(), "/events?topic=boards_5", &made_up).expect(name);
        assert_eq!(answer.head.status, 200, "{name}");
        let asked = &application.asked()[n];
        let header = |word| asked.header(&format!("x-forwarded-{word}")).replace(' ', "");
        assert_eq!((header("host").split(':').next(), header("proto").as_str()), (Some("127.0.0.1"), "http"), "{name}");
        // The last ones are true: the address of the client, and that of the load balancer.
        assert_eq!(header("for"), "203.0.113.9,127.0.0.1,127.0.0.1", "{name}");
    }
}

#[test]
fn events_come_through_a_cache() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let varnish = Balancer::varnish(proxy.address());
    // Two requests with the same URL: a cache would like to answer both with one response.
    let open = || Sse::connect(varnish.address(), &Request::live(&["boards_5"])).expect("a stream");
    let mut clients = [open(), open()];
    for n in 1..=5 {
        db.session().run(&format!("INSERT INTO board_items VALUES ({n}, 5, 'event {n}')"));
        for sse in &mut clients {
            assert_eq!(titles(&[sse.frame()]), [format!("event {n}")]);
        }
    }
}

#[test]
fn events_come_through_over_http2() {
    let db = boards();
    let proxies = two_proxies(&db, &[]);
    for (i, (name, start)) in BALANCERS.into_iter().enumerate() {
        let balancer = start([proxies[0].address(), proxies[1].address()], nobody());
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--no-buffer",
            "--http2-prior-knowledge",
            "--write-out",
            "version %{http_version}\n",
        ]);
        command.arg(format!("http://{}/events?topic=boards_5", balancer.http2()));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut curl = Process::spawn(&mut command, Signal::SIGKILL).expect("start curl");
        let mut lines = BufReader::new(curl.stdout().expect("its output")).lines().map(|line| line.expect("a line"));
        assert!(lines.any(|line| line == ": tidings"), "{name}: no stream");
        for n in 1..=5 {
            let title = format!("{name} {n}");
            db.session().run(&format!("INSERT INTO board_items VALUES ({}, 5, '{title}')", i * 100 + n));
            let event = lines.find(|line| line.starts_with("data: {\"schema\""));
            assert!(event.as_ref().is_some_and(|event| event.contains(&title)), "{name}: {event:?}");
        }
        until("a proxy serves it", || proxies.iter().any(|proxy| proxy.metric("tidings_clients") > 0.0));
        drop(balancer);
        assert_eq!(lines.last().as_deref(), Some("version 2"), "{name}");
        until("the proxies notice", || proxies.iter().all(|proxy| proxy.metric("tidings_clients") == 0.0));
    }
}

#[test]
fn the_stream_and_the_page_come_from_the_same_origin() {
    let db = boards();
    let proxies = two_proxies(&db, &["--route", "/api/boards/{id}/events=boards_{id}"]);
    // Any web application would do; this one answers /healthz and has no pages.
    let web = db.proxy(&[]);
    for (i, (name, start)) in BALANCERS.into_iter().enumerate() {
        let balancer = start([proxies[0].address(), proxies[1].address()], web.address());
        let (head, body) = eventually("the application is there", || {
            http::get(balancer.address(), "/healthz").ok().filter(|(head, _)| head.status != 503)
        });
        assert_eq!((head.status, body.as_str()), (200, "ok\n"), "{name}");
        let before = web.metric("tidings_streams_total");
        let mut response = http::open(balancer.address(), "/api/boards/5/events", &[("Accept", "text/event-stream")])
            .expect("an answer");
        assert_eq!(response.head.status, 200, "{name}");
        db.session().run(&format!("INSERT INTO board_items VALUES ({i}, 5, 'by its route')"));
        let mut body = Vec::new();
        while !String::from_utf8_lossy(&body).contains("by its route") {
            assert!(response.read(&mut body).expect("more"), "{name}");
        }
        assert_eq!(web.metric("tidings_streams_total"), before, "{name}: streams are the proxies'");
    }
}

#[test]
fn without_a_proxy_a_browser_gets_a_time_to_reconnect() {
    let db = boards();
    let mut proxies = two_proxies(&db, &[]);
    let balancers =
        BALANCERS.map(|(name, start)| (name, start([proxies[0].address(), proxies[1].address()], nobody())));
    for proxy in &mut proxies {
        proxy.kill();
    }
    for (name, balancer) in &balancers {
        let body = eventually("the load balancer knows", || {
            let mut response =
                http::open(balancer.address(), "/events?topic=a", &[("Accept", "text/event-stream")]).ok()?;
            let kind = response.head.header("content-type")?.to_owned();
            let mut body = Vec::new();
            while response.read(&mut body).ok()? {}
            (response.head.status == 200 && kind == "text/event-stream").then_some(body)
        });
        assert_eq!(String::from_utf8_lossy(&body), "retry: 5000\n\n", "{name}");
    }
    for proxy in &mut proxies {
        proxy.restart();
    }
    for (name, balancer) in &balancers {
        let mut sse = eventually("streams again", || {
            let mut sse = Sse::connect(balancer.address(), &Request::live(&["boards_5"])).ok()?;
            // The response with the time to reconnect has no comment.
            matches!(sse.item()?, tidings_tests::Item::Retry(ms) if ms != 5000).then_some(sse)
        });
        db.session().publish("boards_5", &format!("\"{name}\""));
        assert_eq!(sse.frame().data, format!("\"{name}\""));
    }
}
