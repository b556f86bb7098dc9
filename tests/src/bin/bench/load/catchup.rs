//! One client reads the log from its beginning. The proxy has no history, so all events come from the log.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use memchr::memmem::Finder;
use tidings_tests::process::{Signal, cpu_seconds, send};
use tidings_tests::{DEADLINE, Database};

use super::{Scale, Server, Tidings, more};
use crate::bulk::settle;
use crate::median;
use crate::report::{Report, Target};
use crate::schema::Rows;

/// Events of one transaction.
const EVENTS: usize = 500_000;

/// Transactions with an event each, which all are committed while the relay is stopped: its ticks then have thousands
/// of them. The largest backlog is about what a busy database writes in an hour.
const BACKLOGS: [usize; 3] = [50_000, 500_000, 5_000_000];

/// Transactions that each have a tick of their own.
const TICKS: usize = 5_000;

/// Events of one transaction that a client got in a second from 0.1.1, on two cores of an AMD EPYC.
const RATE_OF_0_1_1: f64 = 272_000.0;

/// The last line of each event before its data.
const EVENT: &[u8] = b"\nevent: changed\n";

/// Measures each kind of log, in a database of its own.
pub fn measure(database: &Database<'_>, scale: Scale, report: &mut Report) {
    let rate = kind(database, "events of one transaction", scale, report, |fresh| {
        let events = scale.of(EVENTS);
        fresh.session().run(&format!(
            "SELECT tidings.publish('t', to_jsonb(repeat('x', 100)), 'changed') FROM generate_series(1, {events})"
        ));
        events
    });
    report.add("events/s from the log, one transaction ÷ 0.1.1", rate / RATE_OF_0_1_1, "", Target::AtLeast(2.0));
    kind(database, "rows of one transaction", scale, report, |fresh| {
        let events = scale.of(EVENTS);
        fresh.session().run(&format!(
            "CREATE TABLE list_items ({});
             SELECT tidings.watch('list_items', topic => 't');
             INSERT INTO list_items (board_id, title, position)
                 SELECT 1, 'Item number ' || i, i FROM generate_series(1, {events}) i",
            Rows::Narrow.definition()
        ));
        events
    });
    let rates = BACKLOGS.map(|size| {
        let size = scale.of(size);
        kind(database, &format!("a backlog of {size} transactions"), scale, report, |fresh| {
            let relay = fresh.wait_relay();
            send(relay, Signal::SIGSTOP);
            more::fill(fresh, size, "'t'");
            send(relay, Signal::SIGCONT);
            size
        })
    });
    let linear = rates[rates.len() - 1] / rates[0];
    report.add("events/s, the largest backlog ÷ the smallest", linear, "", Target::AtLeast(0.8));
    kind(database, "ticks of one event", scale, report, |fresh| {
        let ticks = scale.of(TICKS);
        fresh.session().run(&format!(
            "DO $$ BEGIN
               FOR n IN 1 .. {ticks} LOOP
                 PERFORM tidings.publish_text('t', 'an event that stays', 'changed');
                 COMMIT;
                 PERFORM pg_sleep(0.002);
               END LOOP;
             END $$"
        ));
        ticks
    });
}

/// Fills a new database, and reads it in each round. Returns the events per second.
fn kind(
    database: &Database<'_>,
    what: &str,
    scale: Scale,
    report: &mut Report,
    fill: impl FnOnce(&Database<'_>) -> usize,
) -> f64 {
    let fresh = database.cluster().database();
    let start = Instant::now();
    let events = fill(&fresh);
    settle(&fresh);
    println!("  {what}: {events} events in {:.0?}", start.elapsed());
    let mut rates = Vec::new();
    for _ in 0..scale.rounds {
        let server = Tidings::start(&fresh, &["--history-bytes", "0"]);
        let pid = server.pids()[0];
        let cpu = || cpu_seconds(pid).expect("the proxy runs");
        let (before, start) = (cpu(), Instant::now());
        let bytes = read(&server, events);
        let seconds = start.elapsed().as_secs_f64();
        rates.push(events as f64 / seconds);
        report.compare("events from the log to one client", what, events as f64 / seconds, "/s", Target::None);
        report.compare("bytes of its stream", what, bytes as f64 / seconds / 1e6, "MB/s", Target::None);
        let cost = (cpu() - before) * 1e6 / events as f64;
        report.compare("CPU of the proxy for an event", what, cost, "µs", Target::None);
    }
    median(&mut rates)
}

/// Reads the stream of a topic from the beginning of the log until this many events have come. Returns the bytes. It
/// only counts them, because a client that does more would be what is measured.
fn read(server: &Tidings<'_>, events: usize) -> usize {
    let mut socket = TcpStream::connect(server.address()).expect("connect to the proxy");
    socket.set_read_timeout(Some(DEADLINE)).expect("set a time limit");
    let path = server.path("t");
    write!(socket, "GET {path}&since=earliest HTTP/1.1\r\nHost: bench\r\n\r\n").expect("ask");
    let (finder, mut space) = (Finder::new(EVENT), vec![0; 1 << 20]);
    // Bytes at the beginning of the space that may be the beginning of a line.
    let (mut kept, mut seen, mut bytes) = (0, 0, 0);
    while seen < events {
        let got = socket.read(&mut space[kept..]).expect("the stream goes on");
        assert!(got > 0, "the stream ended after {seen} of {events} events");
        bytes += got;
        let filled = kept + got;
        seen += finder.find_iter(&space[..filled]).count();
        kept = filled.min(EVENT.len() - 1);
        space.copy_within(filled - kept..filled, 0);
    }
    bytes
}
