//! A way between the proxy and Postgres that hides notifications is noticed and named, and nothing else is mistaken for
//! one.

use tidings_tests::cluster::free_port;
use tidings_tests::pool::Pool;
use tidings_tests::{Proxy, http, until};

use crate::{all_until_now, boards, skipped, titles};

/// What `/readyz` says, and its status.
fn readiness(proxy: &Proxy) -> (u16, String) {
    http::get(proxy.address(), "/readyz").map_or((0, String::new()), |(head, body)| (head.status, body))
}

#[test]
fn a_pool_that_hides_notifications_makes_the_proxy_not_ready_until_they_arrive_again() {
    let db = boards();
    let Some(mut pool) = Pool::start(&db, "transaction") else {
        return skipped("a pool: PgBouncer is not installed");
    };
    let proxy = Proxy::start_at(free_port(), &pool.url(), &[]);
    until("it says what hides notifications, and what to do", || {
        let (status, body) = readiness(&proxy);
        status == 503 && body.contains("pool in transaction mode") && body.contains("pool_mode = session")
    });
    assert_eq!(proxy.metric("tidings_upstream_deaf"), 1.0);
    let said = || proxy.log().matches("no notification arrives: something between the proxy and Postgres").count();
    assert_eq!(said(), 1);
    // Events come late, but they come.
    let mut sse = proxy.live(&["boards_5"]);
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'late')");
    assert_eq!(titles(&[sse.frame()]), ["late"]);
    assert_eq!(readiness(&proxy).0, 503);
    pool.restart("session");
    proxy.wait_ready();
    assert!(proxy.log().contains("notifications arrive again"));
    assert_eq!((said(), proxy.metric("tidings_upstream_deaf") as u32), (1, 0));
    db.session().run("INSERT INTO board_items VALUES (2, 5, 'at once')");
    assert_eq!(titles(&[sse.frame()]), ["at once"]);
}

#[test]
fn a_pool_that_begins_to_hide_notifications_is_noticed() {
    let db = boards();
    let Some(mut pool) = Pool::start(&db, "session") else {
        return skipped("a pool: PgBouncer is not installed");
    };
    let proxy = Proxy::start(&pool.url(), &[]);
    pool.restart("transaction");
    let mut n = 0;
    until("events that come late lead to a test, which fails", || {
        n += 1;
        db.session().run(&format!("INSERT INTO board_items VALUES ({n}, 5, 'late')"));
        readiness(&proxy).1.contains("pool in transaction mode")
    });
}

#[test]
fn connections_that_break_under_load_are_not_taken_for_a_pool() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    for round in 0..5 {
        session.run(&format!(
            "DO $$ BEGIN FOR i IN 1..200 LOOP INSERT INTO board_items VALUES ({round} * 1000 + i, 5, 'x'); COMMIT; END LOOP; END $$"
        ));
        db.cut_proxies();
        proxy.wait_ready();
    }
    let events = all_until_now(&db, "boards_5", &mut sse);
    assert_eq!(events.iter().filter(|frame| frame.event == "changed").count(), 1000);
    assert!(!proxy.log().contains("hides notifications"), "{}", proxy.log());
    assert_eq!(proxy.metric("tidings_upstream_deaf"), 0.0);
}
