//! Clients that move between proxies of the primary and of its standbys at any event, while writers write and the
//! standbys are treated badly: each gets every committed change once and in order.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use tidings_tests::clock::Clock;
use tidings_tests::cluster::Site;
use tidings_tests::follower::Habits;
use tidings_tests::ledger::{self, Ledger};
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Follower, Proxy, SetAtTheEnd, until};

use crate::access::ask;
use crate::read_node::{pause_replay, proxy_at, url_of};
use crate::{create_boards, seed, titles};

/// How far the standbys' clocks differ from the primary's, in seconds: ahead, and behind.
const OFFSETS: [i32; 2] = [1800, -1800];

/// A standby whose clock is wrong, if clocks can be changed on this machine.
fn standby_with_clock(of: &Cluster, offset: i32, settings: &[(&str, &str)]) -> (Cluster, Option<Clock>) {
    let clock = Clock::can_jump().then(|| Clock::at(offset));
    let env = clock.as_ref().map(Clock::environment).unwrap_or_default();
    (of.standby_at(Site { env, ..Site::default() }, settings), clock)
}

/// After how many events clients move on.
const RESTLESS: [usize; 4] = [1, 3, 17, 200];

/// Clients of the ledger that move from proxy to proxy, each after another number of events and in another order.
fn start_clients(proxies: &[&Proxy], start: &str, leave_after: [usize; 4]) -> Vec<Follower> {
    let addresses: Vec<_> = proxies.iter().map(|proxy| proxy.address()).collect();
    let client = |n: usize| {
        let mut proxies = addresses.clone();
        proxies.rotate_left(n % addresses.len());
        if n % 2 == 1 {
            proxies.reverse();
        }
        let habits = Habits { proxies, leave_after: Some(leave_after[n % 4]), patience: None };
        Follower::start(habits, Request::since(&ledger::TOPICS, start), ledger::is_end)
    };
    (0..8).map(client).collect()
}

#[test]
fn a_client_moves_between_the_primary_and_two_standbys_and_gets_each_change_once() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    let ledger = Ledger::create(&db);
    let (near, _clock) = standby_with_clock(&primary, OFFSETS[0], &[]);
    let (far, _other) = standby_with_clock(&near, OFFSETS[1], &[]);
    let role = ["--max-lag", "1m", "--retry", "20ms"];
    let proxies = [db.proxy(&role), proxy_at(&near, &db, &role), proxy_at(&far, &db, &role)];
    let start: String = db.session().one("SELECT tidings.position()");
    let clients = start_clients(&proxies.each_ref(), &start, RESTLESS);
    let writers = ledger.start(3, seed(), "");
    writers.wait_for(50);
    let mut sessions = [&near, &far].map(|standby| standby.session(db.name(), "postgres"));
    for turn in 0..6 {
        let session = &mut sessions[turn % 2];
        pause_replay(session);
        writers.wait_for(30);
        session.run("SELECT pg_wal_replay_resume()");
        writers.wait_for(30);
    }
    writers.finish();
    ledger.close();
    let truth = ledger.truth();
    for client in clients {
        ledger::check(&truth, &client.finish());
    }
    let resets: f64 = proxies.iter().map(|proxy| proxy.metric("tidings_resets_total")).sum();
    assert_eq!(resets, 0.0);
}

#[test]
fn a_standby_that_stays_behind_for_too_long_resets_the_clients_that_have_seen_more() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let (near, far) = (primary.standby(), primary.standby());
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", near.port(), far.port());
    let url = format!("postgres://{}@{hosts}/{}", db.proxy_role(), db.name());
    [&near, &far].into_iter().for_each(|standby| db.wait_standby(standby));
    let proxy = Proxy::start(&url, &["--max-lag", "1s"]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut there = far.session(db.name(), "postgres");
    pause_replay(&mut there);
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (1, 5, 'only at the first')");
    assert_eq!(titles(&[sse.frame()]), ["only at the first"]);
    near.kill();
    let reset = sse.frame();
    assert_eq!((reset.event.as_str(), reset.data.as_str()), ("reset", r#"{"reason":"lost"}"#));
    // What it lacked comes again once it is replayed, and the client goes on from its reset.
    there.run("SELECT pg_wal_replay_resume()");
    session.run("INSERT INTO board_items VALUES (2, 5, 'later')");
    assert_eq!(titles(&[sse.frame(), sse.frame()]), ["only at the first", "later"]);
    assert_eq!(proxy.metric("tidings_resets_total{reason=\"lost\"}"), 1.0);
}

#[test]
fn the_replay_that_cancels_readers_and_truncates_what_they_read_loses_nothing() {
    let primary = Cluster::start(&[("tidings.retention", "15s")]);
    let db = primary.database();
    let ledger = Ledger::create(&db);
    let standby = primary.standby_at(Site::default(), &[("max_standby_streaming_delay", "0")]);
    // So little memory that clients are served from the log.
    let flags = ["--history-bytes", "64KiB", "--retry", "20ms"];
    let proxies = [proxy_at(&standby, &db, &flags), proxy_at(&standby, &db, &flags)];
    let start: String = db.session().one("SELECT tidings.position()");
    // A client that moves after each event falls behind the retention.
    let clients = start_clients(&proxies.each_ref(), &start, [300, 500, 1000, 5000]);
    let writers = ledger.start(1, seed(), "");
    let mut session = db.session();
    let files = "SELECT sum(pg_relation_filenode(i.inhrelid)::bigint)::bigint
        FROM pg_inherits i WHERE i.inhparent = 'tidings.log'::regclass";
    let has_cancelled = || {
        let log = std::fs::read_to_string(standby.log_file()).expect("read the standby's log");
        log.contains("due to conflict with recovery")
    };
    session.run("CREATE TABLE churn AS SELECT 0 AS n");
    let before: i64 = session.one(files);
    // As autovacuum does now and then: its replay cancels every query with an older snapshot. A reader that is
    // cancelled all the time can't read, so the writers, whose events it must read, set the pace.
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = SetAtTheEnd(&is_over);
        // Most reads are too short to be cancelled. This one has the whole log to read, again and again.
        scope.spawn(|| {
            while !is_over.load(SeqCst) {
                let all = format!("/events?topic={}&since=earliest", ledger::TOPICS[0]);
                ask(&proxies[0], &all, &[("Accept", "application/json")]);
            }
        });
        until("a partition is truncated, and the replay has cancelled a reader", || {
            session.run("UPDATE churn SET n = n + 1");
            session.run("VACUUM churn");
            writers.wait_for(60);
            session.one::<i64>(files) != before && has_cancelled()
        });
    });
    writers.finish();
    ledger.close();
    let truth = ledger.truth();
    for client in clients {
        ledger::check(&truth, &client.finish());
    }
}

#[test]
fn a_promotion_under_load_is_not_noticed_by_the_clients_of_either_proxy() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    let ledger = Ledger::create(&db);
    let standby = primary.standby();
    // Nothing that was acknowledged is lost.
    let mut session = db.session();
    session.run("ALTER SYSTEM SET synchronous_standby_names = '*'");
    session.run("SELECT pg_reload_conf()");
    let there = url_of(&standby, &db);
    let both = format!(
        "postgres://{}@127.0.0.1:{},127.0.0.1:{}/{}?target_session_attrs=read-write",
        db.proxy_role(),
        primary.port(),
        standby.port(),
        db.name()
    );
    let proxies = [Proxy::start(&both, &["--retry", "20ms"]), Proxy::start(&there, &["--retry", "20ms"])];
    until("commits wait for the standby", || {
        session.one("SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')")
    });
    let start: String = session.one("SELECT tidings.position()");
    let clients = start_clients(&proxies.each_ref(), &start, RESTLESS);
    let writers = ledger.start(3, seed(), "");
    writers.wait_for(200);
    primary.kill();
    let mut promoted = standby.session(db.name(), "postgres");
    promoted.run("ALTER SYSTEM RESET synchronous_standby_names");
    promoted.run("SELECT pg_promote()");
    writers.finish();
    let after = Database::existing(&standby, db.name());
    let ledger = Ledger::of(&after);
    let writers = ledger.start(3, seed() + 1, "");
    writers.wait_for(200);
    writers.finish();
    ledger.close();
    let truth = ledger.truth();
    for client in clients {
        ledger::check(&truth, &client.finish());
    }
}
