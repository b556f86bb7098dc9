//! The order in which clients see what was committed.

use std::sync::{Arc, Barrier};

use serde_json::json;
use tidings_tests::process::{Signal, send};
use tidings_tests::shared;

use crate::{all_until_now, boards, titles};

#[test]
fn a_transaction_that_writes_first_and_commits_last_is_delivered_once() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let (mut early, mut others) = (db.session(), db.session());
    early.run("BEGIN; INSERT INTO board_items VALUES (0, 5, 'early')");
    for i in 1..=1000 {
        others.run(&format!("INSERT INTO board_items VALUES ({i}, 5, 'other {i}')"));
    }
    let first = sse.take(1000);
    assert_eq!(titles(&first), (1..=1000).map(|i| format!("other {i}")).collect::<Vec<_>>());
    early.run("COMMIT");
    others.run("INSERT INTO board_items VALUES (1001, 5, 'later')");
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["early", "later"]);
    // And in the log too.
    let count: i64 =
        others.one("SELECT count(*) FROM tidings.changes('earliest', NULL, 5000) WHERE payload LIKE '%early%'");
    assert_eq!(count, 1);
}

#[test]
fn updates_of_one_row_by_16_writers_arrive_in_commit_order() {
    const WRITERS: usize = 16;
    const EACH: usize = 60;
    let db = shared().database();
    db.session().run(
        "CREATE TABLE counters (id int PRIMARY KEY, n int NOT NULL); INSERT INTO counters VALUES (1, 0);
         SELECT tidings.watch('counters', topic => 'counter');",
    );
    let proxy = db.proxy(&[]);
    let (mut one, mut two) = (proxy.live(&["counter"]), proxy.live(&["counter"]));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let mut session = db.session();
            scope.spawn(move || {
                for i in 0..EACH {
                    // Half of the transactions have their transaction id long before they get the row.
                    let early = if (writer + i) % 2 == 0 { "SELECT pg_current_xact_id();" } else { "" };
                    session.run(&format!("BEGIN; {early} UPDATE counters SET n = n + 1; COMMIT"));
                }
            });
        }
    });
    let frames = all_until_now(&db, "counter", &mut one);
    let values: Vec<_> = frames.iter().map(|frame| frame.json()["record"]["n"].clone()).collect();
    assert_eq!(values, (1..=WRITERS * EACH).map(|n| json!(n)).collect::<Vec<_>>());
    assert_eq!(two.take(frames.len()), frames);
}

#[test]
fn a_transaction_comes_after_all_that_it_waited_for() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let (mut waiter, mut holder) = (db.session(), db.session());
    holder.run("INSERT INTO board_items VALUES (1, 5, 'new')");
    assert_eq!(titles(&[sse.frame()]), ["new"]);
    // The relay is stopped, so it finds both transactions in one tick; the one that waited has the lower id.
    let relay = db.stop_relay();
    waiter.run("BEGIN; SELECT pg_current_xact_id()");
    holder.run("BEGIN; UPDATE board_items SET title = 'holder' WHERE id = 1");
    let pid = waiter.backend();
    let waiting =
        std::thread::spawn(move || waiter.run("UPDATE board_items SET title = 'waiter' WHERE id = 1; COMMIT"));
    let mut look = db.session();
    tidings_tests::until("the waiter waits", || {
        look.one(&format!("SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {pid} AND NOT granted)"))
    });
    holder.run("COMMIT");
    waiting.join().expect("the waiter");
    send(relay, Signal::SIGCONT);
    let frames = sse.take(2);
    assert_eq!(titles(&frames), ["holder", "waiter"]);
    assert_eq!(frames[0].place().0, frames[1].place().0, "in one tick, or this test proves nothing");
}

#[test]
fn the_events_of_one_transaction_come_together() {
    const WRITERS: usize = 8;
    const EACH: usize = 20;
    const ROWS: usize = 10;
    let db = shared().database();
    db.session()
        .run("CREATE TABLE notes (writer int, round int, n int); SELECT tidings.watch('notes', topic => 'notes_{n}')");
    let topics: Vec<String> = (0..ROWS).map(|n| format!("notes_{n}")).collect();
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&topics.iter().map(String::as_str).collect::<Vec<_>>());
    let barrier = Arc::new(Barrier::new(WRITERS));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (mut session, barrier) = (db.session(), barrier.clone());
            scope.spawn(move || {
                barrier.wait();
                for round in 0..EACH {
                    session.run("BEGIN");
                    for n in 0..ROWS {
                        // One round trip for every row, so that the writers interleave.
                        session.run(&format!("INSERT INTO notes VALUES ({writer}, {round}, {n})"));
                    }
                    session.run("COMMIT");
                }
            });
        }
    });
    let frames = all_until_now(&db, "notes_0", &mut sse);
    assert_eq!(frames.len(), WRITERS * EACH * ROWS);
    for transaction in frames.chunks(ROWS) {
        let first = transaction[0].json()["record"].clone();
        for (n, frame) in transaction.iter().enumerate() {
            let expected = json!({"writer": first["writer"], "round": first["round"], "n": n});
            assert_eq!(frame.json()["record"], expected);
            assert_eq!(frame.place().0, transaction[0].place().0, "one tick");
        }
    }
}
