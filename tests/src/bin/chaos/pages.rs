//! Pages that keep rows: each starts its streams with `since=snapshot`, at one proxy after the other, and at the end has
//! exactly the rows of the tables.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tidings_tests::sse::Request;
use tidings_tests::{DEADLINE, Frame, Item, Sse};

use crate::plan::Plan;
use crate::reference::place;
use crate::server::{PROXY_ROLE, Server};
use crate::writers::{END, topic};

/// How many there are.
const PAGES: usize = 4;

/// The time between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// The rows of a page: an item with its version, a note with nothing.
type Rows = BTreeMap<String, i64>;

/// Running pages.
#[derive(Debug)]
pub struct Pages {
    threads: Vec<JoinHandle<Result<Page, String>>>,
    end: Arc<AtomicU64>,
}

/// What a page has.
#[derive(Debug, Default)]
struct Page {
    lane: usize,
    rows: Rows,
    is_whole: bool,
    snapshots: usize,
}

impl Pages {
    /// Starts them.
    pub fn start(server: &Server, plan: &Plan, addresses: &[SocketAddr]) -> Self {
        server.database(|database| {
            database.session().run(&format!("GRANT SELECT ON item, note TO {PROXY_ROLE}"));
        });
        let end = Arc::new(AtomicU64::new(u64::MAX));
        let threads = (0..PAGES).map(|number| {
            let (mut random, end) = (plan.random(2000 + number as u64), end.clone());
            let topics = &plan.world.topics;
            let (lane, addresses) = (topics.start + number % topics.len(), addresses.to_vec());
            std::thread::spawn(move || {
                let mut page = Page { lane, ..Page::default() };
                page.live(&addresses, &mut random, &end).map(|()| page)
            })
        });
        Self { threads: threads.collect(), end }
    }

    /// The last events are in this tick.
    pub fn end_at(&self, tick: u64) {
        self.end.store(tick, Ordering::Relaxed);
    }

    /// Waits for them; returns how often they were sent the rows, and what is wrong.
    pub fn finish(self, server: &Server) -> (usize, Vec<String>) {
        let (mut snapshots, mut faults) = (0, Vec::new());
        for thread in self.threads {
            match thread.join().unwrap_or_else(|panic| Err(super::why(&*panic))) {
                Ok(page) => {
                    snapshots += page.snapshots;
                    faults.extend(page.compare(server));
                }
                Err(fault) => faults.push(format!("a page: {fault}")),
            }
        }
        (snapshots, faults)
    }
}

impl Page {
    /// Goes from stream to stream until it has everything.
    fn live(&mut self, addresses: &[SocketAddr], random: &mut Rng, end: &AtomicU64) -> Result<(), String> {
        let mut request = Request::since(&[&topic(self.lane)], "snapshot");
        let mut progress = Instant::now();
        loop {
            let address = addresses[random.usize(..addresses.len())];
            if let Ok(mut sse) = Sse::connect(address, &request) {
                let mut has_all_of = 0;
                // Often before all rows are there; but there may be more of them than this.
                let most = if random.bool() { random.usize(1..1000) } else { usize::MAX };
                for _ in 0..most {
                    let Some(item) = sse.item() else { break };
                    let mut is_last = false;
                    match &item {
                        Item::Frame(frame) => {
                            progress = Instant::now();
                            self.take(frame).map_err(|fault| format!("{fault}: {frame:?}"))?;
                            is_last = frame.data.contains(&format!("{{\"write\": \"{END}\"}}"));
                            if frame.event == "ready" {
                                has_all_of = frame.id.as_deref().and_then(place).map_or(0, |(tick, _)| tick);
                            }
                        }
                        Item::Position(id) => has_all_of = place(id).map_or(0, |(tick, _)| tick),
                        Item::Comment(_) | Item::Retry(_) => {}
                    }
                    // The last event may have come before the rows, or in them.
                    if self.is_whole && (is_last || has_all_of >= end.load(Ordering::Relaxed)) {
                        return Ok(());
                    }
                }
                request.last_event_id = sse.last_id().map(str::to_owned);
                if random.u8(..3) == 0 {
                    // It is loaded again.
                    request.last_event_id = None;
                    *self = Self { lane: self.lane, snapshots: self.snapshots, ..Self::default() };
                }
            }
            if progress.elapsed() > 2 * DEADLINE {
                return Err(format!("no event for {:?}", 2 * DEADLINE));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Takes an event; one that does not fit to the rows is a gap or a double.
    fn take(&mut self, frame: &Frame) -> Result<(), String> {
        match frame.event.as_str() {
            "reset" => *self = Self { lane: self.lane, snapshots: self.snapshots, ..Self::default() },
            "ready" => (self.is_whole, self.snapshots) = (true, self.snapshots + 1),
            "changed" => {
                let json: serde_json::Value = serde_json::from_str(&frame.data).map_err(|error| error.to_string())?;
                let (record, kind) = (&json["record"], json["type"].as_str().unwrap_or_default());
                if self.is_whole == (kind == "SNAPSHOT") {
                    return Err("a row and a change in the wrong order".into());
                }
                let (key, version) = match record["id"].as_i64() {
                    Some(id) => (format!("item {id}"), record["version"].as_i64().unwrap_or_default()),
                    None => (format!("note {}", record["write"].as_str().unwrap_or_default()), 0),
                };
                let before = self.rows.insert(key, version);
                let fits = match kind {
                    "UPDATE" => before.is_some_and(|before| before + 1 == version),
                    _ => before.is_none(),
                };
                if !fits {
                    return Err(format!("there was {before:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What differs from the tables.
    fn compare(&self, server: &Server) -> Option<String> {
        let sql = format!(
            "SELECT 'item ' || id, version FROM item WHERE lane = {0}
             UNION ALL SELECT 'note ' || write, 0 FROM note WHERE lane = {0}",
            self.lane
        );
        let rows = server.database(|database| database.session().all(&sql, &[]));
        let there: HashMap<String, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let missing = there.iter().find(|(key, version)| self.rows.get(*key) != Some(version));
        let surplus = self.rows.keys().find(|key| !there.contains_key(*key));
        (missing.is_some() || surplus.is_some() || there.len() != rows.len()).then(|| {
            format!(
                "a page of {} has {} of {} rows; missing is {missing:?}, surplus is {surplus:?}",
                topic(self.lane),
                self.rows.len(),
                there.len()
            )
        })
    }
}
