//! A proxy at a hot standby: it means the same there as at the primary, it knows how far it is behind, and it goes on
//! after a promotion.

use serde_json::json;
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Item, Proxy, Session, Sse, http, until};

use crate::access::{Team, open, status};
use crate::channels::Channel;
use crate::snapshot::rows_of;
use crate::{all_until_now, create_boards, titles};

/// A proxy at a standby of this database's server, once the standby knows the proxy's role.
#[track_caller]
pub fn proxy_at(standby: &Cluster, db: &Database<'_>, args: &[&str]) -> Proxy {
    let url = url_of(standby, db);
    Proxy::start(&url, args)
}

/// The URL for a proxy at a standby.
#[track_caller]
pub fn url_of(standby: &Cluster, db: &Database<'_>) -> String {
    let role = db.proxy_role();
    db.wait_standby(standby);
    standby.url(db.name(), &role)
}

fn insert(session: &mut Session, id: i32, title: &str) {
    session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, '{title}')"));
}

/// Stops the replay of a standby.
#[track_caller]
pub fn pause_replay(session: &mut Session) {
    session.run("SELECT pg_wal_replay_pause()");
    until("replay has paused", || session.one("SELECT pg_get_wal_replay_pause_state() = 'paused'"));
}

/// The answer to `/readyz`.
fn readiness(proxy: &Proxy) -> (u16, String) {
    let (head, body) = http::get(proxy.address(), "/readyz").expect("ask whether it is ready");
    (head.status, body)
}

#[track_caller]
fn is_reset(sse: &mut Sse, reason: &str) {
    let frame = sse.frame();
    assert_eq!((frame.event.as_str(), frame.json()), ("reset", json!({ "reason": reason })));
}

#[test]
fn a_proxy_at_a_standby_serves_what_one_at_the_primary_serves() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let mut session = db.session();
    insert(&mut session, 1, "early");
    let start: String = session.one("SELECT tidings.position()");
    insert(&mut session, 2, "before the proxies");
    let standby = primary.standby();
    let proxies = [db.proxy(&[]), proxy_at(&standby, &db, &[])];
    let mut live = proxies.each_ref().map(|proxy| proxy.live(&["boards_5"]));
    for id in 3..20 {
        insert(&mut session, id, &format!("live {id}"));
    }
    // A large transaction, which is read in many pages, and one of messages without a watch.
    session.run("INSERT INTO board_items SELECT i, 6, repeat('x', 500) FROM generate_series(1000, 20000) i");
    session.run("SELECT tidings.publish_text('boards_5', 'plain')");
    let [here, there] = live.each_mut().map(|sse| all_until_now(&db, "boards_5", sse));
    assert_eq!(here.len(), 18);
    assert_eq!(here, there, "the same events with the same ids");
    for proxy in &proxies {
        for since in ["earliest", &start, here[3].id()] {
            let rows = session.all("SELECT payload FROM tidings.changes($1, '{boards_5}')", &[&since]);
            let all: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            let mut sse = proxy.open(&Request::since(&["boards_5"], since));
            assert_eq!(sse.take(all.len()).iter().map(|frame| frame.data.clone()).collect::<Vec<_>>(), all);
        }
        let mut sse = proxy.open(&Request::since(&["boards_5"], "1"));
        is_reset(&mut sse, "expired");
        // More than memory has, so it is read from the log, in pages.
        let mut large = proxy.open(&Request::since(&["boards_6"], &start));
        assert_eq!(large.take(19_001).len(), 19_001);
    }
    let metrics = proxies[1].metrics();
    assert_eq!((metrics["tidings_standby"], metrics["tidings_upstream_connected"]), (1.0, 1.0));
    assert_eq!(proxies[0].metric("tidings_standby"), 0.0);
}

#[test]
fn rows_come_from_the_standby_beside_transactions_that_are_open_on_the_primary() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    db.session().run(&format!("GRANT SELECT ON board_items TO {}", db.proxy_role()));
    let standby = primary.standby();
    let proxy = proxy_at(&standby, &db, &[]);
    let (mut session, mut open, mut prepared) = (db.session(), db.session(), db.session());
    insert(&mut session, 1, "there");
    open.run("BEGIN; INSERT INTO board_items VALUES (2, 5, 'open')");
    prepared.run("BEGIN; INSERT INTO board_items VALUES (3, 5, 'prepared'); PREPARE TRANSACTION 'p'");
    insert(&mut session, 4, "there too");
    db.wait_standby(&standby);
    let mut sse = proxy.open(&rows_of(&["boards_5"]));
    assert_eq!(sse.frame().event, "reset");
    assert_eq!(titles(&sse.before(|frame| frame.event == "ready")), ["there", "there too"]);
    session.run("UPDATE board_items SET title = 'changed' WHERE id = 4");
    open.run("COMMIT");
    prepared.run("COMMIT PREPARED 'p'");
    let mut changes = titles(&all_until_now(&db, "boards_5", &mut sse));
    changes.sort_unstable();
    assert_eq!(changes, ["changed", "open", "prepared"]);
    // The same rows in SQL there.
    let mut there = standby.session(db.name(), "postgres");
    db.wait_standby(&standby);
    assert_eq!(there.one::<i64>("SELECT count(*) FROM tidings.state('{boards_5}')"), 4);
}

#[test]
fn rules_decide_at_a_standby_and_a_revoked_right_ends_the_stream_there() {
    let primary = Cluster::start(&[]);
    let team = Team::within(&primary);
    let standby = primary.standby();
    let secret = team.secret.to_str().expect("a path of text");
    let proxy = proxy_at(&standby, &team.db, &["--jwt-secret-file", secret, "--reauthorize", "200ms"]);
    let ada = team.token(1);
    let mut sse = open(&proxy, "boards_5", &ada);
    assert_eq!(status(&proxy, "/events?topic=boards_6", &ada), 403);
    insert(&mut team.db.session(), 1, "for members");
    assert_eq!(titles(&[sse.frame()]), ["for members"]);
    team.db.session().run("DELETE FROM members WHERE person = 1");
    assert_eq!(sse.rest(), []);
}

#[test]
fn an_id_that_the_standby_has_not_replayed_is_waited_for() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    db.session().run(&format!("GRANT SELECT ON board_items TO {}", db.proxy_role()));
    let standby = primary.standby();
    let (here, there) = (db.proxy(&[]), proxy_at(&standby, &db, &["--heartbeat", "1s"]));
    let (mut session, mut standby_session) = (db.session(), standby.session(db.name(), "postgres"));
    let mut live = here.live(&["boards_5"]);
    pause_replay(&mut standby_session);
    insert(&mut session, 1, "seen at the primary");
    let seen = live.frame();
    let position: String = session.one("SELECT tidings.position()");
    let mut rows = here.open(&rows_of(&["boards_5"]));
    rows.before(|frame| frame.event == "ready");
    let ready = rows.last_id().expect("an id").to_owned();
    insert(&mut session, 2, "missed");
    let mut waiting: Vec<Sse> =
        [seen.id(), &position, &ready].map(|id| there.open(&Request::resume(&["boards_5"], id))).into();
    // Heartbeats go on meanwhile.
    for sse in &mut waiting {
        let mut comments = 0;
        while comments < 3 {
            match sse.item().expect("the stream goes on") {
                Item::Frame(frame) => panic!("too early: {frame:?}"),
                _ => comments += 1,
            }
        }
    }
    standby_session.run("SELECT pg_wal_replay_resume()");
    for sse in &mut waiting {
        assert_eq!(titles(&all_until_now(&db, "boards_5", sse)), ["missed"]);
    }
    assert_eq!(there.metric("tidings_resets_total"), 0.0);
}

#[test]
fn an_id_that_never_comes_is_lost_once_the_standby_is_not_behind() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let standby = primary.standby();
    let proxy = proxy_at(&standby, &db, &["--max-lag", "1s"]);
    // A tick of a time that has not come, as a timeline that is gone may have had.
    let mut sse = proxy.open(&Request::resume(&["boards_5"], "9000000000000000-1"));
    is_reset(&mut sse, "lost");
    insert(&mut db.session(), 1, "new");
    assert_eq!(titles(&[sse.frame()]), ["new"]);
}

#[test]
fn a_standby_that_is_too_far_behind_is_not_ready_and_is_again_when_it_has_caught_up() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let standby = primary.standby();
    let proxy = proxy_at(&standby, &db, &["--max-lag", "1s", "--heartbeat", "1s"]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut there = standby.session(db.name(), "postgres");
    pause_replay(&mut there);
    insert(&mut db.session(), 1, "late");
    until("it is not ready", || {
        let (status, body) = readiness(&proxy);
        status == 503 && body.contains("behind") && body.contains("--max-lag is 1 s")
    });
    assert!(proxy.metric("tidings_standby_lag_seconds") >= 1.0);
    assert!(proxy.metric("tidings_standby_lag_bytes") > 0.0);
    there.run("SELECT pg_wal_replay_resume()");
    proxy.wait_ready();
    assert_eq!(titles(&[sse.frame()]), ["late"]);
    until("the lag is over", || proxy.metric("tidings_standby_lag_bytes") == 0.0);
    // A standby without a connection does not know how far it is behind.
    there.run("ALTER SYSTEM SET primary_conninfo = ''");
    there.run("SELECT pg_reload_conf()");
    until("it is not ready", || {
        let (status, body) = readiness(&proxy);
        status == 503 && body.contains("not connected to its primary")
    });
}

#[test]
fn a_promotion_changes_nothing_for_clients() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let standby = primary.standby();
    let both = format!(
        "postgres://{}@127.0.0.1:{},127.0.0.1:{}/{}?target_session_attrs=read-write",
        db.proxy_role(),
        primary.port(),
        standby.port(),
        db.name()
    );
    let proxies = [Proxy::start(&both, &[]), proxy_at(&standby, &db, &[])];
    let mut live = proxies.each_ref().map(|proxy| proxy.live(&["boards_5"]));
    insert(&mut db.session(), 1, "before");
    let seen = live.each_mut().map(Sse::frame);
    assert_eq!(seen[0], seen[1]);
    db.wait_standby(&standby);
    primary.kill();
    let mut session = standby.session(db.name(), "postgres");
    session.run("SELECT pg_promote()");
    insert(&mut session, 2, "after");
    let after = live.each_mut().map(Sse::frame);
    assert_eq!(titles(&after), ["after", "after"]);
    assert_eq!(after[0], after[1]);
    for proxy in &proxies {
        // It may send the first event of the new primary a moment before it learns that it is at one.
        until("it is at a primary", || proxy.metric("tidings_standby") == 0.0);
        proxy.wait_ready();
        assert_eq!(proxy.metrics()["tidings_resets_total{reason=\"lost\"}"], 0.0);
    }
    // It listens now.
    insert(&mut session, 3, "announced");
    assert_eq!(titles(&live.each_mut().map(Sse::frame)), ["announced", "announced"]);
    until("a notification", || {
        session.publish("other", "1");
        proxies[1].metrics()["tidings_notifications_total{result=\"published\"}"] > 0.0
    });
    assert_eq!(proxies[1].metric("tidings_upstream_reconnects_total"), 0.0, "the connection stays");
}

#[test]
fn a_proxy_whose_standby_is_lost_continues_at_another_server_and_no_client_notices() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let (near, far) = (primary.standby(), primary.standby());
    let role = db.proxy_role();
    db.wait_standby(&near);
    let hosts: Vec<String> = [&near, &far, &primary].map(|server| format!("127.0.0.1:{}", server.port())).into();
    let proxy = Proxy::start(&format!("postgres://{role}@{}/{}", hosts.join(","), db.name()), &[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    insert(&mut session, 1, "at the first");
    let mut seen = vec![sse.frame()];
    // The second one is behind what the proxy has sent.
    let mut there = far.session(db.name(), "postgres");
    pause_replay(&mut there);
    insert(&mut session, 2, "not at the second yet");
    seen.push(sse.frame());
    near.kill();
    until("it waits for the second", || readiness(&proxy).1.contains("has not replayed yet what this proxy has sent"));
    insert(&mut session, 3, "meanwhile");
    there.run("SELECT pg_wal_replay_resume()");
    seen.push(sse.frame());
    drop(there);
    far.kill();
    insert(&mut session, 4, "at the primary");
    seen.push(sse.frame());
    assert_eq!(titles(&seen), ["at the first", "not at the second yet", "meanwhile", "at the primary"]);
    assert_eq!((proxy.metric("tidings_standby"), proxy.metric("tidings_resets_total")), (0.0, 0.0));
}

#[test]
fn a_proxy_from_a_lost_timeline_resets_the_clients_that_have_seen_what_is_lost() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    // The second standby follows the first one, which becomes the primary and lacks an event.
    let first = primary.standby();
    let second = first.standby();
    let role = db.proxy_role();
    db.wait_standby(&second);
    let hosts = |attrs: &str, ports: &[u16]| {
        let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("postgres://{role}@{}/{}?{attrs}", hosts.join(","), db.name())
    };
    let proxy = Proxy::start(&hosts("", &[primary.port(), second.port()]), &["--max-lag", "5s"]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut session = db.session();
    insert(&mut session, 1, "kept");
    let kept = sse.frame();
    db.wait_standby(&second);
    let mut there = first.session(db.name(), "postgres");
    there.run("ALTER SYSTEM SET primary_conninfo = ''");
    there.run("SELECT pg_reload_conf()");
    until("nothing is replicated any more", || there.all("SELECT FROM pg_stat_wal_receiver", &[]).is_empty());
    insert(&mut session, 2, "lost");
    assert_eq!(titles(&[sse.frame()]), ["lost"]);
    primary.kill();
    there.run("SELECT pg_promote()");
    until("it has a relay", || there.one("SELECT tidings.relay_pid() IS NOT NULL"));
    insert(&mut there, 3, "new");
    is_reset(&mut sse, "lost");
    // It may have come after the reset, or before.
    let mut again = proxy.open(&Request::resume(&["boards_5"], kept.id()));
    assert_eq!(titles(&[again.frame()]), ["new"]);
    insert(&mut there, 4, "newer");
    assert_eq!(
        titles(&sse.before(|frame| frame.data.contains("newer"))).iter().filter(|title| *title != "new").count(),
        0
    );
    assert_eq!(titles(&[again.frame()]), ["newer"]);
}

#[test]
fn open_topics_are_reported_to_the_primary_if_it_is_named_and_nowhere_otherwise() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    create_boards(&db);
    let standby = primary.standby();
    let url = primary.url(db.name(), &db.proxy_role());
    let (silent, speaks) = (proxy_at(&standby, &db, &[]), proxy_at(&standby, &db, &["--report-url", &url]));
    let streams = [silent.live(&["boards_5"]), speaks.live(&["boards_6"])];
    let mut session = db.session();
    until("one is reported", || {
        session.one::<i64>("SELECT count(*) FROM tidings.open_topics WHERE topic = 'boards_6'") == 1
    });
    assert_eq!(session.one::<i64>("SELECT count(*) FROM tidings.open_topics"), 1);
    assert_eq!(silent.metric("tidings_report_errors_total"), 0.0);
    drop(streams);
    until("it is closed", || session.one::<i64>("SELECT count(*) FROM tidings.open_topics") == 0);
}

#[test]
fn plain_channels_are_refused_at_a_standby_and_served_after_its_promotion() {
    let primary = Cluster::start(&[]);
    let db = primary.database();
    let standby = primary.standby();
    let proxy = proxy_at(&standby, &db, &["--channel", "*"]);
    let (head, body) = http::get(proxy.address(), "/channels/news").expect("ask for a channel");
    assert!(head.status == 503 && body.contains("a standby, where nobody can listen"), "{head:?} {body}");
    primary.kill();
    let mut session = standby.session(db.name(), "postgres");
    session.run("SELECT pg_promote()");
    until("the proxy listens", || proxy.metric("tidings_standby") == 0.0);
    let mut channel = Channel::open(&proxy, "news");
    session.run("NOTIFY news, 'hello'");
    assert_eq!(channel.frame().data, "hello");
}
