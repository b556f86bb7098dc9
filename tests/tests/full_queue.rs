//! A session that listens but does not read: the notification queue of the server fills, and other users' NOTIFY would
//! fail. What the relay does then.

use tidings_tests::{Cluster, Database, Session, until};

use crate::early::{HELD, flushed_first, has_tick, insert, stop_wal_writer, wait_for_ticks, warm_up};
use crate::{create_boards, kept_boards, titles};

/// A session that listens and does not read, and so many notifications to it that the queue counts as full to this
/// percentage, if a page counts as one percent.
fn fill_queue(db: &Database<'_>, percent: u32) -> Session {
    let (mut listener, mut session) = (db.session(), db.session());
    listener.run("LISTEN crowd");
    listener.run("BEGIN; SELECT 1");
    session
        .run(&format!("SELECT pg_notify('crowd', i || repeat('x', 7900)) FROM generate_series(1, {}) i", percent + 10));
    let usage: f64 = session.one("SELECT pg_notification_queue_usage() * 10000");
    assert!(usage * 100.0 >= f64::from(percent), "the queue counts as full to {usage}");
    listener
}

/// A page of the notification queue is a millionth of it. It counts as a hundredth.
const SMALL_QUEUE: (&str, &str) = ("tidings.queue_factor", "10000");

#[test]
fn while_the_notification_queue_is_crowded_ticks_are_flushed_first_and_read_from_the_log() {
    let cluster = Cluster::start(&[HELD, &[SMALL_QUEUE]].concat());
    let db = kept_boards(&cluster);
    let proxy = db.proxy(&["--retry", "100ms"]);
    let mut live = proxy.live(&["boards_5"]);
    warm_up(&db);
    let crowd = fill_queue(&db, 20);
    let mut session = db.session();
    let before = flushed_first(&mut session, "queue");
    until("the relay has noticed it", || {
        session.publish("nobody", "1");
        flushed_first(&mut session, "queue") > before
    });
    wait_for_ticks(&mut session);
    stop_wal_writer(&cluster);
    let before: (i64, i64) = (flushed_first(&mut session, "queue"), session.one("SELECT hints FROM tidings.relay()"));
    insert(&mut session, 1);
    let frame = live.frame();
    assert_eq!(titles(std::slice::from_ref(&frame)), ["n1"]);
    let after = (flushed_first(&mut session, "queue"), session.one::<i64>("SELECT hints FROM tidings.relay()"));
    assert_eq!(after, (before.0 + 1, before.1 + 1), "announced by a hint");
    db.crash();
    assert!(has_tick(&db, &frame), "a hint was announced before its tick was flushed");
    drop(crowd);
    insert(&mut db.session(), 2);
    assert_eq!(titles(&[live.frame()]), ["n2"]);
}

#[test]
fn while_the_notification_queue_is_full_nothing_is_announced_and_then_everything_is() {
    let cluster = Cluster::start(&[SMALL_QUEUE]);
    let db = cluster.database();
    create_boards(&db);
    let proxy = db.proxy(&[]);
    let mut live = proxy.live(&["boards_5"]);
    warm_up(&db);
    let crowd = fill_queue(&db, 90);
    let mut session = db.session();
    // The relay has noticed it when a tick was flushed first because of the queue, and not even a hint was sent.
    let counts = |session: &mut Session| -> (i64, i64, i64) {
        let row = session.all("SELECT ticks, hints FROM tidings.relay()", &[]).remove(0);
        (row.get(0), row.get(1), flushed_first(session, "queue"))
    };
    let mut id = 0;
    until("the relay announces nothing", || {
        let (ticks, hints, first) = counts(&mut session);
        session.publish("nobody", "1");
        until("it is in a tick", || counts(&mut session).0 > ticks);
        let after = counts(&mut session);
        after.1 == hints && after.2 > first
    });
    let (_, hints, before) = counts(&mut session);
    for _ in 0..3 {
        insert(&mut session, id);
        id += 1;
    }
    until("they are in ticks", || {
        session.one::<i64>("SELECT count(*) FROM tidings.events WHERE topic = 'boards_5'") == i64::from(id)
    });
    let (_, after, first) = counts(&mut session);
    assert_eq!(after, hints, "not even a hint");
    assert!(first > before, "their ticks were flushed first");
    drop(crowd);
    // Although nobody commits, and before the proxy looks by itself.
    until("the last tick is announced", || session.one::<i64>("SELECT hints FROM tidings.relay()") == hints + 1);
    assert_eq!(titles(&live.take(3)), ["n0", "n1", "n2"]);
    // Writers noticed nothing, and events are sent inside of notifications again.
    until("ticks are announced early again", || {
        let before = flushed_first(&mut session, "queue");
        insert(&mut session, id);
        id += 1;
        live.frame();
        flushed_first(&mut session, "queue") == before
    });
}
