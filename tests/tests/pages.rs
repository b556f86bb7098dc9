//! Pages that keep rows by `since=snapshot` beside writers at full speed: whenever one has caught up, it has exactly the
//! rows of the table.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, DEADLINE, Database, Frame, Proxy, Session, Sse, until};

use crate::snapshot::rows_of;

/// The lists that rows of the checker belong to.
const LISTS: i32 = 3;

/// A list of rows, by id, with what it says.
type Rows = BTreeMap<i64, String>;

/// Writers that insert, change, move and delete rows as fast as they can.
fn writers(db: &Database<'_>, stop: &Arc<AtomicBool>, seed: u64) -> Vec<std::thread::JoinHandle<()>> {
    println!("seed {seed}");
    let writer = |number: u64| {
        let (mut session, stop) = (db.session(), stop.clone());
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(31).wrapping_add(number));
        std::thread::spawn(move || {
            let mut next = number as i64 * 1_000_000_000;
            while !stop.load(Relaxed) {
                let mut sql = String::from("BEGIN;");
                for _ in 0..random.usize(1..4) {
                    next += 1;
                    let list = random.i32(0..LISTS);
                    // The writers' rows are their own, so that none waits for another in a circle.
                    let old = next - random.i64(1..60);
                    sql += &match random.u8(..10) {
                        0..=3 => format!("INSERT INTO items VALUES ({next}, {list}, 'v{next}');"),
                        4..=5 => format!("UPDATE items SET title = 'v{next}' WHERE id = {old};"),
                        6..=7 => format!("UPDATE items SET list = {list}, title = 'v{next}' WHERE id = {old};"),
                        _ => format!("DELETE FROM items WHERE id = {old};"),
                    };
                }
                // The table stays small, so that pages have caught up now and then.
                sql += &format!("DELETE FROM items WHERE id BETWEEN {} AND {};", next - 220, next - 200);
                session.run(&(sql + if random.u8(..10) == 0 { "ROLLBACK" } else { "COMMIT" }));
            }
        })
    };
    (1..=4).map(writer).collect()
}

/// Notes what the lists hold at a moment, and publishes the moment's number on all of them.
fn note_moment(session: &mut Session, number: usize) -> Vec<Rows> {
    session.run("BEGIN; LOCK TABLE items IN SHARE MODE");
    let mut lists = vec![Rows::new(); LISTS as usize];
    for row in session.all("SELECT id, list, title FROM items", &[]) {
        lists[row.get::<_, i32>(1) as usize].insert(row.get(0), row.get(2));
    }
    for list in 0..LISTS {
        session.publish(&format!("list_{list}"), &format!("{{\"moment\": {number}}}"));
    }
    session.run("COMMIT");
    lists
}

/// The rows that one page has of its lists.
#[derive(Debug, Default)]
struct Page {
    rows: BTreeMap<i64, (i64, String)>,
    /// Whether all rows are there.
    is_whole: bool,
}

impl Page {
    /// Applies an event. One that does not fit the rows that the page has shows a gap or a repeated event.
    #[track_caller]
    fn take(&mut self, frame: &Frame) {
        match frame.event.as_str() {
            "reset" => *self = Self::default(),
            "ready" => self.is_whole = true,
            _ => {
                let json = frame.json();
                let of = |record: &Value| {
                    let text = record["title"].as_str().unwrap_or_default().to_owned();
                    (record["id"].as_i64().unwrap_or_default(), (record["list"].as_i64().unwrap_or_default(), text))
                };
                let kind = json["type"].as_str().unwrap_or_default();
                if kind == "DELETE" {
                    let (id, _) = of(&json["old_record"]);
                    assert!(self.rows.remove(&id).is_some(), "a row that was not there is deleted: {frame:?}");
                    return;
                }
                let (id, row) = of(&json["record"]);
                let before = self.rows.insert(id, row);
                assert_eq!(before.is_some(), kind == "UPDATE", "{before:?}, {frame:?}");
                assert_eq!(self.is_whole, kind != "SNAPSHOT", "{frame:?}");
            }
        }
    }

    /// The rows of one list.
    fn list(&self, list: i32) -> Rows {
        let rows = self.rows.iter().filter(|(_, row)| row.0 == i64::from(list));
        rows.map(|(id, row)| (*id, row.1.clone())).collect()
    }
}

/// How a page of the checker behaves.
struct Visitor {
    proxies: Vec<std::net::SocketAddr>,
    lists: Vec<i32>,
    random: fastrand::Rng,
    moments: Arc<Mutex<Vec<Vec<Rows>>>>,
    checked: Arc<AtomicUsize>,
    snapshots: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    /// How long it sometimes stays away.
    away: Duration,
}

impl Visitor {
    /// Opens one stream after the other. At each moment that is published, its lists must equal those of the table
    /// then.
    fn run(mut self) {
        let topics: Vec<String> = self.lists.iter().map(|list| format!("list_{list}")).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let (mut page, mut id) = (Page::default(), None);
        while !self.stop.load(Relaxed) {
            let address = self.proxies[self.random.usize(..self.proxies.len())];
            let Ok(mut sse) = Sse::connect(address, &Request { last_event_id: id.clone(), ..rows_of(&topics) }) else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            // Often before the rows are complete, sometimes much later.
            let most = if self.random.bool() { self.random.usize(1..300) } else { self.random.usize(1..5000) };
            for _ in 0..most {
                let Some(frame) = sse.frame_or_end() else { break };
                if frame.event == "ready" {
                    self.snapshots.fetch_add(1, Relaxed);
                }
                match frame.json()["moment"].as_u64() {
                    Some(moment) => self.check(&page, moment as usize),
                    None => page.take(&frame),
                }
                if self.stop.load(Relaxed) {
                    return;
                }
            }
            id = sse.last_id().map(str::to_owned);
            drop(sse);
            if self.random.u8(..4) == 0 {
                // The page is loaded again.
                (page, id) = (Page::default(), None);
            }
            if self.random.u8(..10) == 0 {
                std::thread::sleep(self.away);
            }
        }
    }

    fn check(&self, page: &Page, moment: usize) {
        // Noted a moment after it is published.
        let start = std::time::Instant::now();
        let expected = loop {
            if let Some(lists) = self.moments.lock().unwrap_or_else(|error| error.into_inner()).get(moment) {
                break lists.clone();
            }
            assert!(start.elapsed() < DEADLINE, "moment {moment} is not noted");
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(page.is_whole, "an event before the end of the rows");
        for list in &self.lists {
            assert_eq!(page.list(*list), expected[*list as usize], "list {list} at moment {moment}");
        }
        self.checked.fetch_add(1, Relaxed);
    }
}

#[test]
fn every_page_has_exactly_the_tables_rows_whenever_it_has_caught_up() {
    const VISITORS: u64 = 8;
    let cluster = Cluster::start(&[("tidings.retention", "2s")]);
    let db = cluster.database();
    db.session().run(&format!(
        "CREATE TABLE items (id bigint PRIMARY KEY, list int NOT NULL, title text); CREATE INDEX ON items (list);
         INSERT INTO items SELECT -n, n % {LISTS}, 'old' FROM generate_series(1, 3000) n;
         SELECT tidings.watch('items', topic => 'list_{{list}}');
         GRANT SELECT ON items TO {}",
        db.proxy_role()
    ));
    // One of them has too little memory to serve any client from it.
    let proxies = [db.proxy(&["--retry", "50ms"]), db.proxy(&["--retry", "50ms", "--history-bytes", "10kB"])];
    let (stop, seed) = (Arc::new(AtomicBool::new(false)), crate::seed());
    let writers = writers(&db, &stop, seed);
    let (moments, checked, snapshots) = (Arc::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let visitors: Vec<_> = (0..VISITORS)
        .map(|n| {
            let visitor = Visitor {
                proxies: proxies.iter().map(Proxy::address).collect(),
                lists: if n % 2 == 0 { vec![n as i32 % LISTS] } else { (0..LISTS).collect() },
                random: fastrand::Rng::with_seed(seed.wrapping_mul(77).wrapping_add(n)),
                moments: Arc::clone(&moments),
                checked: checked.clone(),
                snapshots: snapshots.clone(),
                stop: stop.clone(),
                away: Duration::from_secs(4),
            };
            std::thread::spawn(move || visitor.run())
        })
        .collect();
    let mut session = db.session();
    let mut number = 0;
    // Each has its own time limit: on a busy machine, all of them together take long.
    let mut counts = (0, 0);
    while counts.0 <= 500 || counts.1 <= 50 {
        until("another page has been compared, or has its rows", || {
            let lists = note_moment(&mut session, number);
            moments.lock().expect("no visitor has failed").push(lists);
            number += 1;
            std::thread::sleep(Duration::from_millis(100));
            assert!(visitors.iter().all(|visitor| !visitor.is_finished()), "a visitor has failed");
            let before = std::mem::replace(&mut counts, (checked.load(Relaxed), snapshots.load(Relaxed)));
            counts != before
        });
    }
    stop.store(true, Relaxed);
    // They notice the end at the next event.
    let lists = note_moment(&mut session, number);
    moments.lock().expect("no visitor has failed").push(lists);
    for thread in writers.into_iter().chain(visitors) {
        thread.join().expect("all pages are right");
    }
    println!("{number} moments, {} comparisons, {} snapshots", checked.load(Relaxed), snapshots.load(Relaxed));
}
