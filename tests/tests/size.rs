//! Large rows, large transactions, slow readers: memory stays bounded, and writers are not affected.

use tidings_tests::follower::Habits;
use tidings_tests::ledger::{self, Ledger, TOPICS};
use tidings_tests::process::{MemoryWatch, Signal};
use tidings_tests::sse::{Request, Sse};
use tidings_tests::{Cluster, Follower, shared};

use crate::{all_until_now, boards, titles};

const MIB: u64 = 1024 * 1024;

#[test]
fn a_row_of_a_megabyte_arrives() {
    let db = boards();
    let proxy = db.proxy(&["--client-queue-bytes", "8MiB"]);
    let mut sse = proxy.live(&["boards_5"]);
    db.session().run(
        "INSERT INTO board_items SELECT 1, 5, string_agg(md5(i::text), E'\\n') FROM generate_series(1, 32768) i;
         UPDATE board_items SET title = title || '!';
         INSERT INTO board_items VALUES (2, 5, 'small')",
    );
    let title: String = db.session().one("SELECT title FROM board_items WHERE id = 1");
    assert!(title.len() > 1024 * 1024);
    let frames = all_until_now(&db, "boards_5", &mut sse);
    assert_eq!(titles(&frames), [&title[..title.len() - 1], &title, "small"]);
    assert_eq!(frames[1].json()["old_record"]["title"], title[..title.len() - 1]);
}

#[test]
fn a_row_of_a_megabyte_reaches_a_client_with_the_usual_queue() {
    let db = boards();
    let proxy = db.proxy(&[]);
    // The row alone is more than may wait for a client; a client that reads still gets it, by resuming if necessary.
    let follower = Follower::start(Habits::faithful(proxy.address()), Request::live(&["boards_5"]), |frame| {
        frame.data == "\"end\""
    });
    db.session()
        .run("INSERT INTO board_items SELECT 1, 5, string_agg(md5(i::text), '') FROM generate_series(1, 65536) i");
    db.session().publish("boards_5", "\"end\"");
    let frames = follower.finish();
    assert_eq!(titles(&frames)[0].len(), 2 * 1024 * 1024);
    assert_eq!(frames.len(), 1);
}

#[test]
fn a_transaction_of_a_million_rows_arrives_in_bounded_memory() {
    const ROWS: usize = 1_000_000;
    let db = shared().database();
    let mut session = db.session();
    session.run("CREATE TABLE big (id int, filler text); SELECT tidings.watch('big', topic => 'big')");
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["big"]);
    let watch = MemoryWatch::start(&[session.backend(), db.wait_relay(), proxy.pid()]);
    let mut reading = db.session();
    let before: i64 =
        reading.one("SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('tidings.log')");
    session.run(&format!("INSERT INTO big SELECT i, 'row number ' || i FROM generate_series(1, {ROWS}) i"));
    // A client that falls behind is disconnected and resumes, as a browser would.
    let (mut expected, mut tick, mut visits) = (1, 0, 1);
    while expected <= ROWS {
        let Some(frame) = sse.frame_or_end() else {
            let last = sse.last_id().map(str::to_owned);
            let request = last.map_or(Request::since(&["big"], "earliest"), |id| Request::resume(&["big"], &id));
            sse = proxy.open(&request);
            visits += 1;
            continue;
        };
        let place = frame.place();
        assert_eq!(place.1 as usize, expected, "{frame:?}");
        assert!(tick == 0 || tick == place.0, "one transaction, one tick");
        tick = place.0;
        let record = &frame.json()["record"];
        assert_eq!(record["id"].as_u64(), Some(expected as u64));
        expected += 1;
    }
    let peaks = watch.finish();
    let log: i64 =
        reading.one("SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('tidings.log')");
    let [backend, relay, served] = [0, 1, 2].map(|i| peaks[i] / MIB);
    println!(
        "backend {backend} MiB, relay {relay} MiB, proxy {served} MiB of anonymous memory; {visits} connections; log {} MiB",
        (log - before) / 1024 / 1024
    );
    // The rows are some 150 MiB as payloads. The backend and the relay have a buffer of a few MiB in addition to what
    // every backend needs; the proxy has its history of 64 MiB and the pages that it reads.
    assert!(backend < 64, "the backend took {backend} MiB");
    assert!(relay < 64, "the relay took {relay} MiB");
    assert!(served < 160, "the proxy took {served} MiB");
}

#[test]
fn a_stopped_proxy_never_blocks_or_fails_a_writer() {
    // Ticks are sent whole, however many transactions they have: hints would be too small to fill a socket.
    let cluster = Cluster::start(&[("tidings.notify_inline_limit", "480kB")]);
    let db = cluster.database();
    let ledger = Ledger::create(&db);
    let proxy = db.proxy(&[]);
    let follower = Follower::start(Habits::faithful(proxy.address()), Request::live(&TOPICS), ledger::is_end);
    let other = db.proxy(&[]);
    let watching = Follower::start(Habits::faithful(other.address()), Request::live(&TOPICS), ledger::is_end);
    proxy.signal(Signal::SIGSTOP);
    // More than the sockets between the server and the proxy hold: its backend is stuck in a write.
    let mut session = db.session();
    session.run("CREATE TABLE bulk (n int, filler text); SELECT tidings.watch('bulk', topic => 'bulk'); SET statement_timeout = '60s'");
    let stuck =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND datname = current_database()";
    let mut n = 0;
    tidings_tests::until("the stopped proxy's backend is stuck", || {
        for _ in 0..100 {
            n += 1;
            session
                .run(&format!("INSERT INTO bulk SELECT {n}, repeat(md5(i::text), 100) FROM generate_series(1, 2) i"));
        }
        session.one::<i64>(stuck) >= 1
    });
    let writers = ledger.start(16, crate::seed(), "SET statement_timeout = '60s'");
    writers.wait_for(1000);
    writers.finish();
    ledger.close();
    ledger.check(&watching.finish());
    assert!(session.one::<i64>(stuck) >= 1, "still stuck, without effect on others");
    proxy.signal(Signal::SIGCONT);
    ledger.check(&follower.finish());
}

#[test]
fn a_client_that_reads_slowly_misses_nothing_and_delays_nobody() {
    let db = boards();
    let proxy = db.proxy(&["--client-queue-bytes", "64KiB"]);
    let mut slow = proxy.live(&["boards_5"]);
    let mut quick = proxy.live(&["boards_5"]);
    let mut session = db.session();
    session.run("INSERT INTO board_items VALUES (0, 5, 'first')");
    assert_eq!(titles(&[slow.frame()]), ["first"]);
    assert_eq!(titles(&[quick.frame()]), ["first"]);
    // One event after the other, so that a client that reads never falls behind; the slow one reads nothing in the
    // meantime.
    let mut id = 0;
    tidings_tests::until("the slow client is disconnected", || {
        for _ in 0..50 {
            id += 1;
            session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, '{id}' || repeat('.', 20000))"));
            let frame = quick.frame();
            assert_eq!(frame.json()["record"]["id"], id);
        }
        proxy.metric("tidings_evictions_total") > 0.0
    });
    let mut got = slow.rest();
    let last = slow.last_id().expect("it got the first one").to_owned();
    slow = resume_until(&proxy, &last, &mut got, id as usize);
    assert_eq!(
        got.iter().map(|frame| frame.json()["record"]["id"].as_i64()).collect::<Vec<_>>(),
        (1..=id).map(Some).collect::<Vec<_>>()
    );
    drop(slow);
}

/// Resumes, as often as needed, until there are `n` events.
fn resume_until(proxy: &tidings_tests::Proxy, last: &str, got: &mut Vec<tidings_tests::Frame>, n: usize) -> Sse {
    let mut last = last.to_owned();
    loop {
        let mut sse = proxy.open(&Request::resume(&["boards_5"], &last));
        while got.len() < n {
            let Some(frame) = sse.frame_or_end() else { break };
            last = frame.id().to_owned();
            got.push(frame);
        }
        if got.len() >= n {
            return sse;
        }
    }
}

#[test]
fn topics_of_one_event_each_stay_within_the_memory_for_history() {
    const EVENTS: i64 = 200_000;
    const BUDGET: u64 = 16 * MIB;
    let db = shared().database();
    let proxy = db.proxy(&["--history-bytes", "16MiB"]);
    let memory = || tidings_tests::process::memory(proxy.pid(), "RssAnon").expect("the proxy runs");
    let before = memory();
    let mut session = db.session();
    for batch in 0..20 {
        let (first, last) = (batch * EVENTS / 20, (batch + 1) * EVENTS / 20 - 1);
        session.run(&format!(
            "SELECT tidings.publish('a_topic_of_its_own_' || i, '1') FROM generate_series({first}, {last}) i"
        ));
    }
    tidings_tests::until("all have arrived", || proxy.metric("tidings_events_received_total") >= EVENTS as f64);
    let (grown, topics) = (memory().saturating_sub(before), proxy.metric("tidings_topics"));
    assert!(topics > 10_000.0, "{topics} topics");
    // In addition to what is left from reading the log: pages of a mebibyte and what was made of them.
    assert!(grown < BUDGET * 13 / 10 + 12 * MIB, "{} MiB for {topics} topics", grown / MIB);
}
