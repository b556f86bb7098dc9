//! A standby after its primary is lost: reads, events, positions and clients.

use std::net::SocketAddr;

use tidings_tests::follower::Habits;
use tidings_tests::sse::Request;
use tidings_tests::{Cable, Cluster, Follower, Proxy, Session, until};
use tidings_wire::Position;

use crate::log::Log;
use crate::lost::{cut_off, fail_over, is_reset};
use crate::upgrade::furnish;

#[test]
fn a_standby_serves_reads_and_everything_after_its_promotion() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    furnish(&db);
    let standby = primary.standby();
    let mut log = Log::from_here(&db);
    let start: String = db.session().one("SELECT tidings.position()");
    db.session().run("INSERT INTO items VALUES (2, 5, 'before the failover')");
    let last = log.only().position;
    db.wait_standby(&standby);
    let mut session = standby.session(db.name(), "postgres");
    // The standby is read-only: the log can be read, there is no relay, and its absence is no error.
    assert_eq!(session.all("SELECT FROM tidings.changes($1, '{b5}')", &[&start]).len(), 1);
    assert_eq!(session.all("SELECT FROM tidings.status WHERE relay_pid IS NULL", &[]).len(), 1);
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.watches"), 4);
    primary.kill();
    session.run("SELECT pg_promote()");
    let relay_runs = |session: &mut Session| session.one::<bool>("SELECT tidings.relay_pid() IS NOT NULL");
    until("the promoted server has a relay", || relay_runs(&mut session));
    session.run("INSERT INTO items VALUES (3, 5, 'after the failover')");
    let events = tidings_tests::eventually("the event is in a tick", || {
        let rows = session.all("SELECT position, payload FROM tidings.changes($1, '{b5}')", &[&last]);
        (!rows.is_empty()).then_some(rows)
    });
    assert_eq!(events.len(), 1);
    assert!(events[0].get::<_, String>(1).contains("\"id\":3"));
    let number = |position: &str| position.split('-').next().and_then(|tick| tick.parse::<u64>().ok());
    assert!(number(events[0].get(0)) > number(&last), "positions keep rising");
}

#[test]
fn a_position_of_a_lost_primary_hides_nothing_of_the_new_one() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    furnish(&db);
    let standby = primary.standby();
    db.wait_standby(&standby);
    cut_off(&standby);
    // So the standby has the position's tick, although what the snapshot saw is lost.
    db.stop_relay();
    let mut here = db.session();
    for id in 2..30 {
        here.run(&format!("INSERT INTO items VALUES ({id}, 5, 'lost')"));
    }
    let (xid, start): (String, String) = {
        let row = &here.all("SELECT pg_snapshot_xmax(pg_current_snapshot())::text, tidings.position()", &[])[0];
        (row.get(0), row.get(1))
    };
    let url = standby.url(db.name(), &db.proxy_role());
    let mut there = fail_over(&primary, &standby, &db);
    there.run("INSERT INTO items VALUES (100, 5, 'kept')");
    assert!(
        there.one::<bool>(&format!("SELECT xmin::text::xid8 < '{xid}'::xid8 FROM items WHERE id = 100")),
        "a number given twice"
    );
    let proxy = Proxy::start(&url, &[]);
    is_reset(&proxy.open(&Request::since(&["b5"], &start)).frame());
    let rows = there.all("SELECT payload FROM tidings.changes($1, '{b5}')", &[&start]);
    assert_eq!(rows.len(), 1);
    // A release before 0.2.0 would not have counted what was seen.
    let mut old: Position = start.parse().expect("a position");
    old.seen.as_mut().expect("a snapshot").count = None;
    let mut stream = proxy.open(&Request::since(&["b5"], &old.to_string()));
    assert_eq!(stream.frame().json()["record"]["id"], 100);
}

#[test]
fn a_position_that_saw_what_a_failover_lost_gets_a_reset_and_others_do_not() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    furnish(&db);
    let standby = primary.standby();
    let mut here = db.session();
    db.stop_relay();
    // One whose number the standby knows, although it will never get the commit.
    let mut lost = db.session();
    lost.run("BEGIN; INSERT INTO items VALUES (3, 5, 'lost')");
    here.run("INSERT INTO items VALUES (4, 5, 'kept')");
    let position = |session: &mut Session| session.one::<String>("SELECT tidings.position()");
    let kept = position(&mut here);
    db.wait_standby(&standby);
    cut_off(&standby);
    let mut there = standby.session(db.name(), "postgres");
    let parsed = |position: &str| position.parse::<Position>().expect("a position");
    let seen = |position: &str| parsed(position).seen.expect("a snapshot").count;
    assert_eq!(seen(&kept), Some(1));
    let (on_standby, on_primary) = (parsed(&position(&mut there)), parsed(&kept));
    assert_eq!(on_standby.place(), on_primary.place());
    let of = |position: &Position| position.seen.as_ref().map(|seen| (seen.stamp, seen.count));
    assert_eq!(of(&on_standby), of(&on_primary), "the same on both servers");
    lost.run("COMMIT");
    let gone = position(&mut here);
    assert_eq!(seen(&gone), Some(2));
    // The id of an event in the last tick, of a client that has seen the rest with that position.
    let within = Position { n: 1, ..parsed(&gone) }.to_string();
    assert!(within.ends_with(":2"), "{within}");

    let url = standby.url(db.name(), &db.proxy_role());
    let mut there = fail_over(&primary, &standby, &db);
    there.run("INSERT INTO items VALUES (5, 5, 'new')");
    let proxy = Proxy::start(&url, &[]);
    for lost in [&gone, &within] {
        is_reset(&proxy.open(&Request::since(&["b5"], lost)).frame());
    }
    for kept in [&kept, &on_standby.to_string()] {
        let mut stream = proxy.open(&Request::since(&["b5"], kept));
        assert_eq!(stream.frame().json()["record"]["id"], 5, "neither a reset nor a repetition");
    }
}

#[test]
fn a_client_continues_across_a_failover() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    furnish(&db);
    let standby = primary.standby();
    // The proxy and its client find the new server at the old address.
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let cable = Cable::to(local(primary.port()));
    let url = format!("postgres://{}@{}/{}", db.proxy_role(), cable.address(), db.name());
    let proxy = Proxy::start(&url, &[]);
    proxy.wait_ready();
    let start: String = db.session().one("SELECT tidings.position()");
    let follower = Follower::start(Habits::faithful(proxy.address()), Request::since(&["b5"], &start), |frame| {
        frame.data.contains("\"id\":100,")
    });
    let mut session = db.session();
    for id in 2..50 {
        session.run(&format!("INSERT INTO items VALUES ({id}, 5, 'n')"));
    }
    until("the client has seen it all", || follower.seen() == 48);
    db.wait_standby(&standby);
    primary.kill();
    let mut session = standby.session(db.name(), "postgres");
    session.run("SELECT pg_promote()");
    until("the server takes writes", || !session.one::<bool>("SELECT pg_is_in_recovery()"));
    for id in 50..=100 {
        session.run(&format!("INSERT INTO items VALUES ({id}, 5, 'n')"));
    }
    cable.cut();
    cable.join(local(standby.port()));
    let ids: Vec<i64> = follower.finish().iter().filter_map(|frame| frame.json()["record"]["id"].as_i64()).collect();
    assert_eq!(ids, (2..100).collect::<Vec<_>>(), "each once, in order, up to the mark");
}
