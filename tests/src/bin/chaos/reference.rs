//! The reference for all clients: the log in its order, read by SQL during the run. At the end it is compared with the
//! writers' table.

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postgres::Client;
use tidings_tests::Frame;
use tidings_tests::ledger::{Write, write_of};
use tidings_wire::Position;

use crate::gate::Gate;
use crate::server::Server;
use crate::writers::{END, topic};

/// How many events are read at once.
const PAGE: i32 = 5000;

/// The time between two reads of the log.
const PAUSE: Duration = Duration::from_millis(60);

/// The most that a failover can lose, in microseconds.
const BACK: u64 = 300_000_000;

/// A place in the order of events.
pub type Place = (u64, u32);

/// An event of the log.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its position.
    pub place: Place,
    /// The number of its topic.
    pub topic: usize,
    /// Its payload.
    pub print: u64,
    /// The write that it describes.
    pub write: Write,
}

/// The log.
#[derive(Debug, Default)]
pub struct Log {
    /// Its events, in order.
    pub known: Vec<Known>,
    /// Its ticks, with or without events.
    pub ticks: BTreeSet<u64>,
}

/// The payload in short.
pub fn print(event: &str, data: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (event, data).hash(&mut hasher);
    hasher.finish()
}

/// The place that a position gives.
pub fn place(position: &str) -> Option<Place> {
    position.parse::<Position>().ok().map(|position| position.place())
}

/// Reads the log from a thread.
#[derive(Debug)]
pub struct Observer {
    thread: JoinHandle<Result<Log, String>>,
    closed: Arc<AtomicBool>,
    /// The longest time between two reads, in milliseconds: how far the observer was behind at most.
    worst: Arc<AtomicU64>,
}

impl Observer {
    /// Starts to read the events of these topics, from the beginning.
    pub fn start(server: &Arc<Server>, gate: &Arc<Gate>, topics: Range<usize>) -> Self {
        let closed = Arc::new(AtomicBool::new(false));
        let worst = Arc::<AtomicU64>::default();
        let mut reader = Reader {
            server: server.clone(),
            gate: gate.clone(),
            topics: topics.map(topic).collect(),
            log: Log::default(),
            era: 0,
            after: "earliest".to_owned(),
            read: Instant::now(),
            worst: worst.clone(),
        };
        let stop = closed.clone();
        let thread = std::thread::spawn(move || reader.run(&stop).map(|()| reader.log));
        Self { thread, closed, worst }
    }

    /// The longest time so far between two reads that reached the end of the log.
    pub fn worst(&self) -> Duration {
        Duration::from_millis(self.worst.load(Ordering::Relaxed))
    }

    /// Continues until the last event, which has been published; returns everything.
    pub fn finish(self) -> Result<Log, String> {
        self.closed.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err("the observer panicked".to_owned()))
    }
}

/// What was read.
enum Page {
    /// There is more.
    Part,
    /// The end of what is there.
    Last,
    /// The last event.
    End,
    /// Nothing that counts: another primary has taken over.
    Stale,
}

struct Reader {
    server: Arc<Server>,
    gate: Arc<Gate>,
    topics: Vec<String>,
    log: Log,
    era: u64,
    /// Everything before this has been read. It advances with the log even if the log has no events, because a position
    /// that does not move expires one day.
    after: String,
    /// When the end of the log was last reached.
    read: Instant,
    worst: Arc<AtomicU64>,
}

impl Reader {
    fn run(&mut self, closed: &AtomicBool) -> Result<(), String> {
        let mut patience = 0;
        loop {
            // Taken before the read: everything that exists now will be read.
            let last_look = closed.load(Ordering::Relaxed);
            let more = match self.server.connect().map(|mut client| self.follow(&mut client, closed)) {
                Some(Ok(true)) => return Ok(()),
                Some(Err(error)) if error.code().is_some_and(|code| code.code() == "TI001") => {
                    let behind = self.read.elapsed();
                    return Err(format!(
                        "the log gave up {} before the observer read it, {behind:?} behind",
                        self.after
                    ));
                }
                _ => !last_look,
            };
            patience = if more { 0 } else { patience + 1 };
            if patience > 1000 {
                return Err("the observer can't read the end of the log".to_owned());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Reads until the connection breaks, another primary takes over, or the end is reached; true if it was reached.
    fn follow(&mut self, client: &mut Client, closed: &AtomicBool) -> Result<bool, postgres::Error> {
        let era = self.server.era();
        if era % 2 == 1 {
            return Ok(false);
        }
        if era != self.era {
            self.forget_lost(client)?;
            self.era = era;
        }
        loop {
            if !self.gate.enter() {
                std::thread::sleep(PAUSE);
                continue;
            }
            let page = self.page(client, era, closed);
            self.gate.leave();
            match page? {
                Page::Part => {}
                Page::Last => std::thread::sleep(PAUSE),
                Page::Stale => return Ok(false),
                Page::End => return Ok(true),
            }
        }
    }

    /// Reads one page.
    fn page(&mut self, client: &mut Client, era: u64, closed: &AtomicBool) -> Result<Page, postgres::Error> {
        let last_look = closed.load(Ordering::Relaxed);
        let read = self.log.ticks.last().map_or(0, |tick| *tick as i64);
        let ticks = client.query("SELECT tick FROM tidings.tick WHERE tick > $1", &[&read])?;
        // This makes the ticks that were read before durable.
        let rows = client.query(
            "SELECT position, topic, event, payload FROM tidings.changes($1, $2, $3)",
            &[&self.after, &self.topics, &PAGE],
        )?;
        if self.server.era() != era {
            return Ok(Page::Stale);
        }
        self.log.ticks.extend(ticks.iter().map(|row| row.get::<_, i64>(0) as u64));
        let last_tick = self.log.ticks.last().copied().unwrap_or(0);
        for row in &rows {
            self.take(row.get(0), row.get(1), row.get(2), row.get(3));
        }
        if rows.len() == PAGE as usize {
            return Ok(Page::Part);
        }
        if place(&self.after).is_none_or(|(tick, _)| tick < last_tick) {
            self.after = last_tick.to_string();
        }
        self.worst.fetch_max(self.read.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.read = Instant::now();
        let has_end = last_look && self.log.known.last().is_some_and(|known| known.write.name == END);
        Ok(if has_end { Page::End } else { Page::Last })
    }

    fn take(&mut self, position: String, topic: &str, event: &str, payload: String) {
        let topic = topic.strip_prefix("lane_").and_then(|lane| lane.parse().ok());
        let frame = Frame { id: None, event: event.to_owned(), data: payload };
        let (write, print) = (write_of(&frame), print(event, &frame.data));
        let place = place(&position).expect("a position");
        self.log.known.push(Known { place, topic: topic.expect("a topic of this run"), print, write });
        self.after = position;
    }

    /// After a failover: drops the events of ticks that the new primary does not have.
    fn forget_lost(&mut self, client: &mut Client) -> Result<(), postgres::Error> {
        let Some(last) = self.log.known.last() else { return Ok(()) };
        let from = last.place.0.saturating_sub(BACK);
        let rows = client.query("SELECT tick FROM tidings.tick WHERE tick >= $1", &[&(from as i64)])?;
        let there: HashSet<u64> = rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect();
        let oldest = there.iter().copied().min().unwrap_or(u64::MAX);
        self.log.ticks.retain(|tick| *tick < from.max(oldest) || there.contains(tick));
        self.log.known.retain(|known| known.place.0 < from.max(oldest) || there.contains(&known.place.0));
        if let Some((tick, n)) = self.log.known.last().map(|known| known.place) {
            self.after = format!("{tick}-{n}");
        }
        Ok(())
    }
}
