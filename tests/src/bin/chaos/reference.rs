//! The reference for all clients: the log in its order, read by SQL during the run. At the end it is compared with the
//! writers' table.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postgres::Client;
use tidings_tests::Frame;
use tidings_tests::ledger::{Write, write_of};
use tidings_wire::Position;

use crate::server::Server;
use crate::writers::END;

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
    thread: JoinHandle<Result<Vec<Known>, String>>,
    closed: Arc<AtomicBool>,
    /// The longest time between two reads, in milliseconds: how far the observer was behind at most.
    worst: Arc<AtomicU64>,
}

impl Observer {
    /// Starts to read, from the beginning.
    pub fn start(server: &Arc<Server>) -> Self {
        let closed = Arc::new(AtomicBool::new(false));
        let worst = Arc::<AtomicU64>::default();
        let mut reader = Reader {
            server: server.clone(),
            known: Vec::new(),
            era: 0,
            after: "earliest".to_owned(),
            read: Instant::now(),
            worst: worst.clone(),
        };
        let stop = closed.clone();
        let thread = std::thread::spawn(move || reader.run(&stop).map(|()| reader.known));
        Self { thread, closed, worst }
    }

    /// The longest time so far between two reads that reached the end of the log.
    pub fn worst(&self) -> Duration {
        Duration::from_millis(self.worst.load(Ordering::Relaxed))
    }

    /// Continues until the last event, which has been published; returns all events.
    pub fn finish(self) -> Result<Vec<Known>, String> {
        self.closed.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err("the observer panicked".to_owned()))
    }
}

struct Reader {
    server: Arc<Server>,
    known: Vec<Known>,
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
            let last_look = closed.load(Ordering::Relaxed);
            let last_tick: i64 = client.query_one("SELECT max(tick) FROM tidings.tick", &[])?.get(0);
            let rows = client.query(
                "SELECT position, topic, event, payload FROM tidings.changes($1, NULL, $2)",
                &[&self.after, &PAGE],
            )?;
            if self.server.era() != era {
                return Ok(false);
            }
            for row in &rows {
                self.take(row.get(0), row.get(1), row.get(2), row.get(3));
            }
            if rows.len() < PAGE as usize {
                if place(&self.after).is_none_or(|(tick, _)| tick < last_tick as u64) {
                    self.after = last_tick.to_string();
                }
                self.worst.fetch_max(self.read.elapsed().as_millis() as u64, Ordering::Relaxed);
                self.read = Instant::now();
                if last_look && self.known.last().is_some_and(|known| known.write.name == END) {
                    return Ok(true);
                }
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn take(&mut self, position: String, topic: &str, event: &str, payload: String) {
        let topic = topic.strip_prefix("lane_").and_then(|lane| lane.parse().ok());
        let frame = Frame { id: None, event: event.to_owned(), data: payload };
        let (write, print) = (write_of(&frame), print(event, &frame.data));
        let place = place(&position).expect("a position");
        self.known.push(Known { place, topic: topic.expect("a topic of this run"), print, write });
        self.after = position;
    }

    /// After a failover: drops the events of ticks that the new primary does not have.
    fn forget_lost(&mut self, client: &mut Client) -> Result<(), postgres::Error> {
        let Some(last) = self.known.last() else { return Ok(()) };
        let from = last.place.0.saturating_sub(BACK);
        let rows = client.query("SELECT tick FROM tidings.tick WHERE tick >= $1", &[&(from as i64)])?;
        let there: HashSet<u64> = rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect();
        let oldest = there.iter().copied().min().unwrap_or(u64::MAX);
        self.known.retain(|known| known.place.0 < from.max(oldest) || there.contains(&known.place.0));
        if let Some((tick, n)) = self.known.last().map(|known| known.place) {
            self.after = format!("{tick}-{n}");
        }
        Ok(())
    }
}
