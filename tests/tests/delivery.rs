//! Exactly the committed events, each once and in the same order for all clients, whatever happens to the connections.

use tidings_tests::follower::Habits;
use tidings_tests::ledger::{self, Ledger, TOPICS};
use tidings_tests::sse::Request;
use tidings_tests::{Follower, shared, until};

#[test]
fn sixteen_random_writers_reach_every_client_exactly() {
    let db = shared().database();
    let ledger = Ledger::create(&db);
    let proxy = db.proxy(&[]);
    let follow = || Follower::start(Habits::faithful(proxy.address()), Request::live(&TOPICS), ledger::is_end);
    let followers = [follow(), follow(), follow()];
    let writers = ledger.start(16, crate::seed(), "");
    writers.wait_for(2000);
    writers.finish();
    ledger.close();
    let got = followers.map(Follower::finish);
    ledger.check(&got[0]);
    assert!(got.iter().all(|frames| *frames == got[0]), "the same for all");
}

#[test]
fn a_listen_connection_that_breaks_again_and_again_loses_and_repeats_nothing() {
    let db = shared().database();
    let ledger = Ledger::create(&db);
    let proxy = db.proxy(&[]);
    let follow = || Follower::start(Habits::faithful(proxy.address()), Request::live(&TOPICS), ledger::is_end);
    let followers = [follow(), follow(), follow()];
    let writers = ledger.start(16, crate::seed(), "");
    for _ in 0..30 {
        writers.wait_for(100);
        proxy.wait_ready();
        db.cut_proxies();
    }
    writers.finish();
    ledger.close();
    assert!(proxy.metric("tidings_upstream_reconnects_total") >= 20.0, "the cuts were felt");
    let connections: usize = followers.iter().map(Follower::connections).sum();
    let got = followers.map(Follower::finish);
    ledger.check(&got[0]);
    assert!(got.iter().all(|frames| *frames == got[0]), "the same for all");
    assert_eq!(connections, 3, "clients stay connected while the upstream is away");
}

#[test]
fn two_proxies_give_the_same_ids_and_the_same_order() {
    let db = shared().database();
    let ledger = Ledger::create(&db);
    let proxies = [db.proxy(&[]), db.proxy(&[])];
    let [one, two] = [&proxies[0], &proxies[1]]
        .map(|proxy| Follower::start(Habits::faithful(proxy.address()), Request::live(&TOPICS), ledger::is_end));
    // And a third client that moves from one to the other.
    let wander = Habits {
        proxies: proxies.iter().map(|proxy| proxy.address()).collect(),
        leave_after: Some(37),
        patience: None,
    };
    let wanderer = Follower::start(wander, Request::live(&TOPICS), ledger::is_end);
    let writers = ledger.start(8, crate::seed(), "");
    writers.wait_for(1500);
    writers.finish();
    ledger.close();
    // It may still be far behind the writers.
    until("it has moved often", || wanderer.connections() > 20);
    let (one, two, wandered) = (one.finish(), two.finish(), wanderer.finish());
    ledger.check(&one);
    assert!(one == two, "the same ids and the same order");
    assert!(one == wandered, "also for a client who moves between them");
}
