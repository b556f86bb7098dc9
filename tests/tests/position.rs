//! Data that was read in one snapshot, and a stream that continues exactly from there.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use tidings_tests::follower::Habits;
use tidings_tests::ledger::{self, Ledger, TOPICS, Write};
use tidings_tests::process::{Signal, send};
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Follower, Session, SetAtTheEnd, shared, until};
use tidings_wire::{Position, Seen, Snapshot};

use crate::{all_until_now, boards, create_boards, titles};

#[test]
fn data_and_stream_together_equal_the_table() {
    const READERS: usize = 4;
    let db = shared().database();
    let ledger = Ledger::create(&db);
    let proxies = [db.proxy(&[]), db.proxy(&[])];
    let writers = ledger.start(12, crate::seed(), "");
    let done = AtomicBool::new(false);
    let readings = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (db, proxies, done) = (&db, &proxies, &done);
                scope.spawn(move || {
                    let mut session = db.session();
                    let mut readings = Vec::new();
                    while !done.load(Ordering::Relaxed) && readings.len() < 12 {
                        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
                        // The data first: the position must be that of the snapshot, not that of the call.
                        let known: Vec<String> =
                            session.all("SELECT write FROM truth", &[]).iter().map(|row| row.get(0)).collect();
                        session.run("SELECT pg_sleep(0.02)");
                        let position: String = session.one("SELECT tidings.position()");
                        session.run("COMMIT");
                        let n = reader + readings.len();
                        // Some clients open a stream at once, some are cut off and resume with the long ids.
                        let habits = Habits {
                            proxies: vec![proxies[n % 2].address(), proxies[(n + 1) % 2].address()],
                            leave_after: (n % 3 == 0).then_some(1 + n % 5),
                            patience: None,
                        };
                        let follower = Follower::start(habits, Request::since(&TOPICS, &position), ledger::is_end);
                        readings.push((known, position, follower));
                        session.run("SELECT pg_sleep(0.05)");
                    }
                    readings
                })
            })
            .collect();
        let over = SetAtTheEnd(&done);
        writers.wait_for(1500);
        drop(over);
        let readings: Vec<_> = readers.into_iter().flat_map(|reader| reader.join().expect("a reader")).collect();
        writers.finish();
        ledger.close();
        readings
    });
    assert!(readings.len() >= READERS * 2, "only {} readings", readings.len());
    let truth: HashSet<String> = ledger.truth().into_iter().map(|write| write.name).collect();
    for (known, position, follower) in readings {
        let streamed: Vec<Write> = follower.finish().iter().map(ledger::write_of).collect();
        let mut all: HashSet<&str> = known.iter().map(String::as_str).collect();
        for write in &streamed {
            assert!(all.insert(&write.name), "{write:?} came twice, with the position {position}");
        }
        let missing: Vec<&String> = truth.iter().filter(|name| !all.contains(name.as_str())).take(5).collect();
        assert!(missing.is_empty(), "missing with the position {position}: {missing:?}");
        assert_eq!(all.len(), truth.len(), "with the position {position}");
    }
}

#[test]
fn a_position_divides_a_tick_by_what_its_snapshot_saw() {
    let db = boards();
    let proxy = db.proxy(&[]);
    let (mut long, mut short) = (db.session(), db.session());
    // A transaction that is running when the snapshot is taken, and one that is committed before but gets its tick
    // after.
    db.stop_relay();
    long.run("BEGIN; INSERT INTO board_items VALUES (1, 5, 'running')");
    short.run("INSERT INTO board_items VALUES (2, 5, 'committed before')");
    let mut reader = db.session();
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    let seen: i64 = reader.one("SELECT count(*) FROM board_items");
    let position: String = reader.one("SELECT tidings.position()");
    reader.run("COMMIT");
    assert_eq!(seen, 1);
    short.run("INSERT INTO board_items VALUES (3, 5, 'committed after')");
    long.run("COMMIT");
    send(db.wait_relay(), Signal::SIGCONT);
    let mut sse = proxy.open(&Request::since(&["boards_5"], &position));
    let frames = all_until_now(&db, "boards_5", &mut sse);
    let mut got = titles(&frames);
    got.sort();
    assert_eq!(got, ["committed after", "running"]);
    // After the first of the two, the id still has what the snapshot saw.
    let mut resumed = proxy.open(&Request::resume(&["boards_5"], frames[0].id()));
    // The ids may differ in transactions of other databases, which a snapshot lists and which end in between.
    let again = resumed.frame();
    assert_eq!((again.place(), &again.data), (frames[1].place(), &frames[1].data));
}

#[test]
fn ids_after_a_snapshot_name_only_transactions_that_still_matter() {
    // A separate cluster, because a snapshot lists the transactions of other databases too.
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let proxy = db.proxy(&[]);
    let relay = db.stop_relay();
    // Of the twelve transactions that are running at the time of the snapshot, one commits before its tick, one later,
    // and the others never write.
    let mut running: Vec<_> = (0..12).map(|_| db.session()).collect();
    let xids: Vec<u64> = running
        .iter_mut()
        .map(|session| {
            session.run("BEGIN");
            session.one::<String>("SELECT pg_current_xact_id()::text").parse().expect("a transaction's number")
        })
        .collect();
    running[0].run("INSERT INTO board_items VALUES (1, 5, 'running')");
    running[1].run("INSERT INTO board_items VALUES (2, 5, 'late')");
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (3, 5, 'seen')");
    let position: String = session.one("SELECT tidings.position()");
    running[0].run("COMMIT");
    running[2..].iter_mut().for_each(|session| session.run("ROLLBACK"));
    session.run("INSERT INTO board_items VALUES (4, 5, 'after')");
    send(relay, Signal::SIGCONT);
    let mut sse = proxy.open(&Request::since(&["boards_5"], &position));
    let frames = sse.take(2);
    let mut got = titles(&frames);
    got.sort();
    assert_eq!(got, ["after", "running"]);
    for frame in &frames {
        let id: Position = frame.id().parse().expect("a position");
        let seen = id.seen.expect("the snapshot still divides the tick");
        assert_eq!(seen.count, Some(0), "nothing that it saw comes after the tick");
        let named = seen.snapshot.running;
        assert!(named.contains(&xids[0]) && named.contains(&xids[1]), "{named:?} of {xids:?}");
        assert!(xids[2..].iter().all(|xid| !named.contains(xid)), "{named:?} of {xids:?}");
    }
    let mut resumed = proxy.open(&Request::resume(&["boards_5"], frames[0].id()));
    assert_eq!(resumed.frame(), frames[1]);
    running[1].run("COMMIT");
    for sse in [&mut sse, &mut resumed] {
        assert_eq!(titles(&all_until_now(&db, "boards_5", sse)), ["late"]);
    }
}

#[test]
fn a_long_list_of_transactions_is_not_repeated_in_each_id() {
    let db = boards();
    let mut session = db.session();
    let start: String = session.one("SELECT tidings.locate('earliest')");
    for id in 0..3 {
        session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'n')"));
    }
    until("they are in ticks", || session.all("SELECT FROM tidings.changes('earliest')", &[]).len() == 3);
    // A made-up position: all transactions that there were ran at the same time, at a time that never comes.
    let next: u64 =
        session.one::<String>("SELECT pg_snapshot_xmax(pg_current_snapshot())::text").parse().expect("a number");
    let oldest = next.saturating_sub(2500).max(3);
    let list: Vec<String> = (oldest..next).map(|xid| xid.to_string()).collect();
    let since = format!("{start}:{}:{oldest}:{next}:{}", i64::MAX, list.join(","));
    assert!(since.len() > 2_000);
    let rows = session.all("SELECT position FROM tidings.changes($1, '{boards_5}')", &[&since]);
    let lengths: Vec<usize> = rows.iter().map(|row| row.get::<_, &str>(0).len()).collect();
    assert!(lengths.len() == 3 && lengths.iter().all(|length| *length < 300), "{lengths:?}");
    let proxy = db.proxy(&[]);
    let mut sse = proxy.open(&Request::since(&["boards_5"], &since));
    let frames = all_until_now(&db, "boards_5", &mut sse);
    assert!(frames.len() == 3 && frames.iter().all(|frame| frame.id().len() < 300), "{frames:?}");
}

#[test]
fn a_position_has_a_snapshot_only_where_it_makes_a_difference() {
    // With no other transactions: the position below claims to have seen all of them.
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    create_boards(&db);
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (1, 5, 'seen')");
    until("it is in a tick", || {
        let position: Position = session.one::<String>("SELECT tidings.position()").parse().expect("a position");
        let is_in_tick = session.one::<i64>("SELECT count(*) FROM tidings.events") == 1;
        position.seen.is_none() && is_in_tick
    });
    // Two transactions, each in a tick of its own.
    let xids = [2, 4].map(|id| {
        session.run(&format!("BEGIN; INSERT INTO board_items VALUES ({id}, 5, 'n'), ({}, 5, 'n')", id + 1));
        let xid: String = session.one("SELECT pg_current_xact_id()::text");
        session.run("COMMIT");
        let goal = i64::from(id + 1);
        until("it is in a tick", || session.one::<i64>("SELECT count(*) FROM tidings.events") >= goal);
        xid.parse::<u64>().expect("a number")
    });
    let stamp: i64 = session.one("SELECT max(stamp) FROM tidings.log");
    let last: i64 = session.one("SELECT max(tick) FROM tidings.tick");
    let first: i64 = session.one("SELECT (array_agg(tick ORDER BY tick DESC))[2] FROM tidings.tick");
    let before: i64 = session.one("SELECT (array_agg(tick ORDER BY tick DESC))[3] FROM tidings.tick");
    // A reader that has seen the second of them, but not the first.
    let running = xids[0];
    let position = Position {
        seen: Some(Box::new(Seen {
            stamp: stamp.unsigned_abs(),
            snapshot: Snapshot { xmin: running, xmax: xids[1] + 1, running: vec![running] },
            count: Some(2),
        })),
        ..Position::after_tick(before.unsigned_abs())
    };
    let proxy = db.proxy(&[]);
    let ids = |after: &str| -> Vec<String> {
        let mut sse = proxy.open(&Request::since(&["boards_5"], after));
        all_until_now(&db, "boards_5", &mut sse).iter().map(|frame| frame.id().to_owned()).collect()
    };
    let all = ids(&position.to_string());
    let seen = format!("{stamp}:{running}:{}:{running}", xids[1] + 1);
    assert_eq!(all, [format!("{first}-1:{seen}:2"), format!("{first}-2:{seen}:2")]);
    for (after, rest) in [(&all[0], 1..), (&all[1], 2..)] {
        assert_eq!(session.one::<String>(&format!("SELECT tidings.locate('{after}')")), *after);
        assert_eq!(ids(after), all[rest]);
    }
    // A page may end between the two.
    let page = |session: &mut Session, after: &str| -> (String, bool) {
        let row = session.all("SELECT reached, more FROM tidings.page($1, '{none}', 1, 1)", &[&after]).remove(0);
        (row.get(0), row.get(1))
    };
    let between = Position { tick: first.unsigned_abs(), ..position.clone() }.to_string();
    assert_eq!(page(&mut session, &position.to_string()), (between.clone(), true));
    assert_eq!(ids(&between), [""; 0]);
    assert_eq!(page(&mut session, &between).0, last.to_string());
    // In SQL, and for older proxies.
    let sql = "SELECT position, more FROM tidings.scan($1, '{none}', 100, 1, false)";
    let end = |session: &mut Session, after: &str| session.all(sql, &[&after]).remove(0).get::<_, String>(0);
    assert_eq!(end(&mut session, &position.to_string()), between);
    assert_eq!(end(&mut session, &between), last.to_string());
    // More than there is.
    let lost = |count| {
        let mut position = position.clone();
        position.seen.as_mut().expect("a snapshot").count = Some(count);
        position.to_string()
    };
    assert_eq!(session.one::<String>(&format!("SELECT tidings.locate('{}')", lost(2))), lost(2));
    assert_eq!(session.one::<String>(&format!("SELECT tidings.locate('{}')", lost(3))), before.to_string());
}

#[test]
fn a_position_in_an_untouched_database_misses_nothing() {
    let db = boards();
    let position: String = db.session().one("SELECT tidings.position()");
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'the very first')");
    let proxy = db.proxy(&[]);
    let mut sse = proxy.open(&Request::since(&["boards_5"], &position));
    assert_eq!(titles(&all_until_now(&db, "boards_5", &mut sse)), ["the very first"]);
}

#[test]
fn a_position_is_exact_for_data_of_the_same_statement() {
    const ROWS: i64 = 1000;
    let db = boards();
    let mut readings: Vec<(String, i64)> = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut session = db.session();
            for id in 1..=ROWS {
                session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'x')"));
            }
        });
        let mut session = db.session();
        // One transaction in which each statement has its own snapshot.
        session.run("BEGIN ISOLATION LEVEL READ COMMITTED");
        while !writer.is_finished() {
            let row = session.all("SELECT tidings.position(), (SELECT count(*) FROM board_items)", &[]).remove(0);
            readings.push((row.get(0), row.get(1)));
        }
    });
    let mut session = db.session();
    until("everything can be read", || {
        session.one::<i64>("SELECT count(*) FROM tidings.changes('earliest', NULL, 5000)") == ROWS
    });
    assert!(readings.iter().any(|(_, seen)| (1..ROWS).contains(seen)), "nothing was read meanwhile");
    // Some of them during the whole time.
    let step = readings.len() / 50 + 1;
    for (position, seen) in readings.into_iter().step_by(step) {
        let rows = session.all("SELECT count(*) FROM tidings.changes($1, NULL, 5000)", &[&position]);
        assert_eq!(rows[0].get::<_, i64>(0), ROWS - seen, "after {position}");
    }
}
