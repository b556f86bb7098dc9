//! Failovers and restores that lose what clients have seen: clients that may have seen it get a reset, and no others.

use tidings_tests::clock::Clock;
use tidings_tests::cluster::Site;
use tidings_tests::follower::Habits;
use tidings_tests::process::{Signal, send};
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Follower, Frame, Proxy, Session, until};

use crate::early::{HELD, has_tick, stop_wal_writer, warm_up};
use crate::{all_until_now, boards, create_boards, kept_boards, skipped, titles};

/// A proxy that uses whichever of two servers accepts writes.
pub fn proxy_of(primary: &Cluster, standby: &Cluster, db: &Database<'_>) -> Proxy {
    let (here, there) = (primary.port(), standby.port());
    let (role, name) = (db.proxy_role(), db.name());
    let url = format!("postgres://{role}@127.0.0.1:{here},127.0.0.1:{there}/{name}?target_session_attrs=read-write");
    Proxy::start(&url, &["--retry", "100ms"])
}

/// From now on the standby receives nothing from the primary.
pub fn cut_off(standby: &Cluster) {
    let mut session = standby.session("postgres", "postgres");
    session.run("ALTER SYSTEM SET primary_conninfo = ''");
    session.run("SELECT pg_reload_conf()");
    until("nothing is replicated any more", || session.all("SELECT FROM pg_stat_wal_receiver", &[]).is_empty());
}

/// Kills the primary and promotes the standby; returns a session there.
pub fn fail_over(primary: &Cluster, standby: &Cluster, db: &Database<'_>) -> Session {
    primary.kill();
    let mut session = standby.session(db.name(), "postgres");
    session.run("SELECT pg_promote()");
    until("the new primary has a relay", || session.one("SELECT tidings.relay_pid() IS NOT NULL"));
    session
}

#[track_caller]
pub fn is_reset(frame: &Frame) {
    assert_eq!((frame.event.as_str(), frame.data.as_str()), ("reset", "{\"reason\":\"lost\"}"));
}

fn insert(session: &mut Session, id: i32, title: &str) {
    session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, '{title}')"));
}

#[test]
fn a_client_that_may_have_seen_what_a_failover_lost_gets_a_reset() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let standby = primary.standby();
    let proxy = proxy_of(&primary, &standby, &db);
    let mut live = proxy.live(&["boards_5"]);
    insert(&mut db.session(), 1, "kept");
    let kept = live.frame();
    db.wait_standby(&standby);
    cut_off(&standby);
    insert(&mut db.session(), 2, "lost");
    let lost = live.frame();
    assert_eq!(titles(std::slice::from_ref(&lost)), ["lost"]);

    let mut there = fail_over(&primary, &standby, &db);
    is_reset(&live.frame());
    insert(&mut there, 3, "new");
    assert_eq!(titles(&[live.frame()]), ["new"]);
    // Its position is now between ticks of the new primary, in the proxy's memory.
    let mut back = proxy.open(&Request::resume(&["boards_5"], lost.id()));
    is_reset(&back.frame());
    insert(&mut there, 4, "newer");
    assert_eq!(titles(&[back.frame(), live.frame()]), ["newer", "newer"]);
    // A proxy without that memory asks the log.
    let url = standby.url(db.name(), &db_role(&db));
    let elsewhere = Proxy::start(&url, &[]);
    is_reset(&elsewhere.open(&Request::resume(&["boards_5"], lost.id())).frame());
    // A client that has seen none of the lost events misses nothing and gets no reset.
    let mut faithful = proxy.open(&Request::resume(&["boards_5"], kept.id()));
    assert_eq!(titles(&[faithful.frame(), faithful.frame()]), ["new", "newer"]);
    let metrics = proxy.metrics();
    assert_eq!(
        (metrics["tidings_resets_total{reason=\"lost\"}"], metrics["tidings_resets_total{reason=\"expired\"}"]),
        (2.0, 0.0)
    );
}

#[test]
fn who_began_with_the_rows_gets_them_again_after_a_failover_that_lost_some() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    db.session().run(&format!("GRANT SELECT ON board_items TO {}", db.proxy_role()));
    let standby = primary.standby();
    let proxy = proxy_of(&primary, &standby, &db);
    let from_rows = Request::since(&["boards_5"], "snapshot");
    let mut live = proxy.open(&from_rows);
    assert_eq!((live.frame().event, live.frame().event), ("reset".into(), "ready".into()));
    insert(&mut db.session(), 1, "kept");
    live.frame();
    db.wait_standby(&standby);
    cut_off(&standby);
    insert(&mut db.session(), 2, "lost");
    let lost = live.frame();

    let mut there = fail_over(&primary, &standby, &db);
    assert_eq!(live.rest().iter().map(|frame| frame.id()).collect::<Vec<_>>(), ["snapshot"], "and the stream ends");
    insert(&mut there, 3, "new");
    for id in ["snapshot", lost.id()] {
        let mut back = proxy.open(&Request { last_event_id: Some(id.to_owned()), ..from_rows.clone() });
        assert_eq!(back.frame().id(), "snapshot");
        assert_eq!(titles(&back.before(|frame| frame.event == "ready")), ["kept", "new"]);
    }
}

/// The role of the proxies, where the primary is gone.
fn db_role(db: &Database<'_>) -> String {
    format!("{}_proxy", db.name())
}

/// The events of a client that stays, and of one that reconnects after each event, while `fault` strikes between two
/// writes.
fn nobody_is_told(primary: &Cluster, proxy: &Proxy, db: &Database<'_>, fault: impl FnOnce() -> Session) {
    let stays = Habits::faithful(proxy.address());
    let hops = Habits { leave_after: Some(1), ..stays.clone() };
    let is_end = |frame: &Frame| frame.data.contains("\"end\"");
    let followers = [stays, hops].map(|habits| Follower::start(habits, Request::live(&["boards_5"]), is_end));
    let mut session = primary.session(db.name(), "postgres");
    for id in 0..20 {
        insert(&mut session, id, "before");
    }
    until("they have seen something", || followers.iter().all(|follower| follower.seen() >= 5));
    let mut session = fault();
    for id in 20..40 {
        insert(&mut session, id, "after");
    }
    insert(&mut session, 40, "end");
    let expected: Vec<i64> = (0..40).collect();
    for frames in followers.map(Follower::finish) {
        let ids: Vec<i64> = frames
            .iter()
            .map(|frame| frame.json()["record"]["id"].as_i64().unwrap_or_else(|| panic!("{frame:?}")))
            .collect();
        assert_eq!(ids, expected, "each once, and no reset");
    }
    assert_eq!(proxy.metric("tidings_resets_total"), 0.0);
}

#[test]
fn a_failover_to_a_synchronous_standby_resets_no_client() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let standby = primary.standby();
    let mut session = db.session();
    session.run("ALTER SYSTEM SET synchronous_standby_names = '*'");
    session.run("SELECT pg_reload_conf()");
    until("the standby is synchronous", || {
        session.one("SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')")
    });
    let proxy = proxy_of(&primary, &standby, &db);
    nobody_is_told(&primary, &proxy, &db, || {
        let mut there = fail_over(&primary, &standby, &db);
        // Its primary has no standby.
        there.run("ALTER SYSTEM RESET synchronous_standby_names");
        there.run("SELECT pg_reload_conf()");
        there
    });
}

#[test]
fn a_crash_and_a_restart_of_the_relay_reset_no_client() {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let proxy = db.proxy(&["--retry", "100ms"]);
    nobody_is_told(&cluster, &proxy, &db, || {
        db.crash();
        db.kill_relay();
        db.session()
    });
}

#[test]
fn a_tick_that_is_not_in_the_log_counts_as_lost() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut live = proxy.live(&["boards_5"]);
    // Each in a tick of its own.
    let frames: Vec<Frame> = (0..3)
        .map(|id| {
            insert(&mut db.session(), id, "n");
            live.frame()
        })
        .collect();
    let (first, last) = (frames[0].place().0, frames[2].place().0);
    // Between two ticks; and ahead of them all, as after the restore of an older backup.
    for tick in [first + 1, last + 1_000_000_000_000] {
        for place in [format!("{tick}"), format!("{tick}-1"), format!("{tick}:{tick}:3:3:")] {
            let mut sse = proxy.open(&Request::resume(&["boards_5"], &place));
            is_reset(&sse.frame());
            assert_eq!(all_until_now(&db, "boards_5", &mut sse), []);
        }
    }
    // A proxy that knows none of them asks the log.
    let late = db.proxy(&[]);
    is_reset(&late.open(&Request::resume(&["boards_5"], &format!("{}-1", first + 1))).frame());
    // SQL continues from the tick before.
    let rows =
        db.session().all("SELECT position FROM tidings.changes($1, '{boards_5}', 2)", &[&format!("{}-7", first + 1)]);
    let positions: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(positions, [frames[1].id(), frames[2].id()]);
}

/// Lets a crash take back the tick of row `id`, which `live` has got; None if the tick was flushed in time. The clock is
/// read many times between the row's stamp and the tick.
fn take_back(db: &Database<'_>, proxy: &Proxy, live: &mut tidings_tests::Sse, id: i32) -> Option<Frame> {
    warm_up(db);
    stop_wal_writer(db.cluster());
    let mut session = db.session();
    let relay = db.stop_relay();
    insert(&mut session, id, "seen");
    for _ in 0..30 {
        session.one::<i64>("SELECT tidings.stamp()");
    }
    send(relay, Signal::SIGCONT);
    let seen = live.frame();
    // It comes back when there are new ticks.
    proxy.signal(Signal::SIGSTOP);
    db.crash();
    (!has_tick(db, &seen)).then_some(seen)
}

#[test]
fn the_number_of_a_lost_tick_is_not_given_again_although_the_clock_went_back() {
    if !Clock::can_jump() {
        return skipped("a clock that goes back, without libfaketime");
    }
    let clock = Clock::at(0);
    let cluster = Cluster::start_at(Site { env: clock.environment(), ..Site::default() }, HELD);
    let db = kept_boards(&cluster);
    let proxy = db.proxy(&["--retry", "100ms"]);
    let mut live = proxy.live(&["boards_5"]);
    // Workers of PostgreSQL 15 see the real clock, but the sessions' stamps go ahead of it.
    clock.set(3600);
    warm_up(&db);
    clock.set(0);
    for id in (0..2000).step_by(100) {
        let lost = take_back(&db, &proxy, &mut live, id);
        let mut session = db.session();
        let last = id + 20;
        (id + 1..=last).for_each(|id| insert(&mut session, id, "new"));
        if let Some(lost) = &lost {
            let sql = format!("SELECT max(tick) > {} FROM tidings.tick", lost.place().0);
            until("there are ticks after it", || session.one(&sql));
        }
        proxy.signal(Signal::SIGCONT);
        assert_eq!(titles(&live.take(20)), ["new"; 20], "neither a reset nor a gap");
        if lost.is_some() {
            return;
        }
    }
    panic!("no crash has lost a tick");
}
