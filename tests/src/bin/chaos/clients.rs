//! Clients that connect and disconnect, each with its own habits. They record everything that they receive; `check`
//! compares it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use tidings_tests::sse::Request;
use tidings_tests::{DEADLINE, Item, Sse};
use tidings_wire::Position;

use crate::homes::{Home, Homes};
use crate::plan::Plan;
use crate::reference::{Place, place, print};
use crate::server::Server;
use crate::writers::{END, topic};

/// The time between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// Where a client starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the next event.
    #[default]
    Live,
    /// At the first event that is retained.
    Earliest,
    /// After the snapshot in which it read the data.
    Snapshot,
}

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Its name in reports.
    pub name: String,
    /// The proxies that it connects to, one after the other.
    pub addresses: Vec<SocketAddr>,
    /// The numbers of its topics.
    pub topics: Vec<usize>,
    /// Where it starts.
    pub start: Start,
    /// After at most this many events it disconnects, and reconnects with the id of its last event.
    pub leaves: Option<usize>,
    /// The longest time that it then waits.
    pub away: Duration,
    /// After at most this many events it stops reading for up to this long.
    pub pauses: Option<(usize, Duration)>,
    /// After at most this long it starts again without an id.
    pub lives: Option<Duration>,
}

/// What a client received, in order.
#[derive(Clone, Copy, Debug)]
pub enum Got {
    /// It has connected.
    Connected(Visit),
    /// An event.
    Event(Place, u64),
    /// The position of the stream.
    Id(Place),
    /// A reset: its place, when it arrived, in microseconds since the Unix epoch, and why.
    Reset(Place, u64, Reset),
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The process that serves it, unless that is unknown: behind a balancer, for example.
    pub home: Option<Home>,
    /// It asked for events after a position that contains a snapshot.
    pub is_long: bool,
}

/// Why a client got a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Events after its place had expired.
    Expired,
    /// What it may have seen was lost.
    Lost,
}

/// One life of a client: from its start without an id to its end.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// The client's name.
    pub name: String,
    /// Its topics.
    pub topics: Vec<usize>,
    /// Where it started.
    pub start: Start,
    /// The names of the writes in its snapshot.
    pub seen: HashSet<String>,
    /// The last tick of that snapshot.
    pub snapshot: u64,
    /// What it received.
    pub got: Vec<Got>,
    /// The tick of its last reset.
    pub reset_to: u64,
    /// Whether it continued to the last event, or was reset to a later place.
    pub complete: bool,
    /// Something that must not happen.
    pub fault: Option<String>,
}

/// Where clients connect to.
#[derive(Clone, Debug)]
pub struct Doors {
    /// The proxies.
    pub direct: Vec<SocketAddr>,
    /// The load balancer in front of some of them.
    pub balanced: SocketAddr,
    /// Which process serves whom.
    pub homes: Arc<Homes>,
}

/// Running clients.
#[derive(Debug)]
pub struct Clients {
    threads: Vec<JoinHandle<Vec<Life>>>,
    closing: Arc<AtomicBool>,
    end: Arc<AtomicU64>,
}

impl Clients {
    /// Starts some of every kind.
    pub fn start(server: &Arc<Server>, plan: &Plan, doors: &Doors) -> Self {
        let closing = Arc::new(AtomicBool::new(false));
        let end = Arc::new(AtomicU64::new(u64::MAX));
        let threads = all_habits(plan, doors).into_iter().enumerate().map(|(number, habits)| {
            let client = Client {
                server: server.clone(),
                homes: doors.homes.clone(),
                habits,
                random: plan.random(1000 + number as u64),
                closing: closing.clone(),
                end: end.clone(),
                visits: number,
            };
            std::thread::spawn(move || client.run())
        });
        Self { threads: threads.collect(), closing, end }
    }

    /// From now on they stay until the last event.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Sets the tick of the last events: a client that is reset to that tick or a later one has skipped them.
    pub fn end_at(&self, tick: u64) {
        self.end.store(tick, Ordering::Relaxed);
    }

    /// Waits until all have the last event; returns their lives.
    pub fn finish(self) -> Vec<Life> {
        self.threads
            .into_iter()
            .flat_map(|thread| {
                thread.join().unwrap_or_else(|panic| {
                    let why = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a client panicked".to_owned());
                    vec![Life { fault: Some(why), ..Life::default() }]
                })
            })
            .collect()
    }
}

fn all_habits(plan: &Plan, doors: &Doors) -> Vec<Habits> {
    let direct = &doors.direct;
    let mut random = plan.random(999);
    let everything: Vec<usize> = plan.world.topics.clone().collect();
    let balanced: Vec<SocketAddr> = [doors.balanced].iter().chain(direct).copied().collect();
    let quiet = |name: &str, addresses: &[SocketAddr], topics: &[usize]| Habits {
        name: name.to_owned(),
        addresses: addresses.to_vec(),
        topics: topics.to_vec(),
        start: Start::Live,
        leaves: None,
        away: Duration::ZERO,
        pauses: None,
        lives: None,
    };
    let some = |random: &mut Rng| {
        let mut topics = everything.clone();
        random.shuffle(&mut topics);
        topics.truncate(random.usize(1..=everything.len()));
        topics
    };
    let mut all = Vec::new();
    for (i, address) in direct.iter().enumerate() {
        all.push(quiet(&format!("faithful to {i}"), &[*address], &everything));
    }
    all.push(quiet("balanced", &balanced[..1], &everything));
    for i in 0..2 {
        let topics = some(&mut random);
        all.push(Habits { leaves: Some(60), ..quiet(&format!("hopping {i}"), &balanced, &topics) });
        let topics = some(&mut random);
        let pauses = Some((200, Duration::from_secs(5)));
        all.push(Habits { pauses, ..quiet(&format!("slow {i}"), &direct[i % direct.len()..], &topics) });
        let away = Duration::from_secs(if plan.world.retention.is_some() { 75 } else { 15 });
        let topics = some(&mut random);
        all.push(Habits { leaves: Some(300), away, ..quiet(&format!("sleeping {i}"), &balanced, &topics) });
        let lives = Some(Duration::from_secs(4));
        let topics = some(&mut random);
        all.push(Habits { lives, ..quiet(&format!("fleeting {i}"), &balanced, &topics) });
    }
    let lives = Some(Duration::from_secs(20));
    all.push(Habits { lives, start: Start::Snapshot, ..quiet("from a snapshot", &balanced, &everything) });
    let lives = Some(Duration::from_secs(40));
    all.push(Habits { lives, start: Start::Earliest, ..quiet("from the beginning", &balanced, &some(&mut random)) });
    all
}

struct Client {
    server: Arc<Server>,
    homes: Arc<Homes>,
    habits: Habits,
    random: Rng,
    closing: Arc<AtomicBool>,
    /// The tick of the last events, once they are published.
    end: Arc<AtomicU64>,
    visits: usize,
}

/// How a visit ended.
enum Parting {
    /// The last event has arrived.
    End,
    /// The life is over.
    Over,
    /// The client or the proxy closed the connection.
    Again,
}

impl Client {
    fn run(mut self) -> Vec<Life> {
        let mut lives = Vec::new();
        loop {
            let life = self.live();
            let last = life.complete || life.fault.is_some();
            lives.push(life);
            if last || self.closing() {
                return lives;
            }
        }
    }

    fn closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    fn live(&mut self) -> Life {
        let names: Vec<String> = self.habits.topics.iter().map(|lane| topic(*lane)).collect();
        let mut request = Request::live(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let Habits { name, topics, start, .. } = self.habits.clone();
        let mut life = Life { name, topics, start, ..Life::default() };
        match life.start {
            Start::Live => {}
            Start::Earliest => request.since = Some("earliest".to_owned()),
            Start::Snapshot => {
                let Some((position, seen)) = self.snapshot() else {
                    life.start = Start::Live;
                    std::thread::sleep(PAUSE);
                    return life;
                };
                life.snapshot = position.parse::<Position>().expect("a position of tidings.position()").tick;
                (request.since, life.seen) = (Some(position), seen);
            }
        }
        let dies = self.habits.lives.map(|most| Instant::now() + most.mul_f64(0.1 + 0.9 * self.random.f64()));
        let mut progress = Instant::now();
        loop {
            let address = self.habits.addresses[self.visits % self.habits.addresses.len()];
            let before = self.homes.at(address);
            match Sse::connect(address, &request) {
                Ok(sse) => {
                    let home = before.filter(|home| self.homes.at(address) == Some(*home));
                    let asked = request.last_event_id.as_ref().or(request.since.as_ref());
                    let is_long = asked.is_some_and(|position| position.contains(':'));
                    life.got.push(Got::Connected(Visit { home, is_long }));
                    self.visits += 1;
                    match self.visit(sse, &mut request, &mut life, dies, &mut progress) {
                        Parting::End => life.complete = true,
                        Parting::Over => {}
                        Parting::Again => {
                            std::thread::sleep(PAUSE);
                            continue;
                        }
                    }
                    return life;
                }
                Err(_) => {
                    // A proxy that is down for long is skipped if there are others.
                    self.visits += usize::from(self.random.u8(..4) == 0);
                    if progress.elapsed() > DEADLINE {
                        life.fault = Some(format!("no stream and no event for {DEADLINE:?}"));
                    }
                    if life.fault.is_some() || dies.is_some_and(|at| at < Instant::now()) && !self.closing() {
                        return life;
                    }
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn visit(
        &mut self,
        mut sse: Sse,
        request: &mut Request,
        life: &mut Life,
        dies: Option<Instant>,
        progress: &mut Instant,
    ) -> Parting {
        let leaves = self.habits.leaves.map(|most| self.random.usize(1..=most));
        let mut pauses = self.habits.pauses.map(|(most, _)| self.random.usize(1..=most));
        let mut events = 0;
        while let Some(item) = sse.item() {
            request.last_event_id = sse.last_id().map(str::to_owned);
            match item {
                Item::Retry(_) | Item::Comment(_) => {}
                Item::Position(id) => life.got.extend(place(&id).map(Got::Id)),
                Item::Frame(frame) => {
                    let Some(at) = frame.id.as_deref().and_then(place) else {
                        life.fault = Some(format!("an event without a position: {frame:?}"));
                        return Parting::Over;
                    };
                    *progress = Instant::now();
                    if frame.event == "reset" {
                        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                        let why = match frame.data.as_str() {
                            r#"{"reason":"expired"}"# => Reset::Expired,
                            r#"{"reason":"lost"}"# => Reset::Lost,
                            other => {
                                life.fault = Some(format!("a reset for no known reason: {other}"));
                                return Parting::Over;
                            }
                        };
                        life.got.push(Got::Reset(at, now.as_micros() as u64, why));
                        life.reset_to = at.0;
                        continue;
                    }
                    life.got.push(Got::Event(at, print(&frame.event, &frame.data)));
                    events += 1;
                    if frame.data.contains(&format!("{{\"write\": \"{END}\"}}")) {
                        return Parting::End;
                    }
                }
            }
            let closing = self.closing();
            let end = self.end.load(Ordering::Relaxed);
            if life.reset_to >= end {
                return Parting::End;
            }
            if closing && progress.elapsed() > DEADLINE {
                life.fault = Some(format!("no event for {DEADLINE:?}"));
                return Parting::Over;
            }
            if !closing {
                if dies.is_some_and(|at| at < Instant::now()) {
                    return Parting::Over;
                }
                if leaves.is_some_and(|n| events >= n) {
                    drop(sse);
                    let away = self.habits.away.mul_f64(self.random.f64());
                    self.sleep(away);
                    *progress = Instant::now();
                    return Parting::Again;
                }
                if let (Some(n), Some((most, pause))) = (pauses, self.habits.pauses)
                    && events >= n
                {
                    pauses = Some(events + self.random.usize(1..=most));
                    let pause = pause.mul_f64(self.random.f64());
                    self.sleep(pause);
                }
            }
        }
        Parting::Again
    }

    /// Sleeps, unless the run is about to end.
    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.closing() {
            std::thread::sleep(PAUSE.min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// The data, and the position to continue from, as a page would read them.
    fn snapshot(&self) -> Option<(String, HashSet<String>)> {
        let mut client = self.server.connect()?;
        let mut reader = client.build_transaction();
        reader = reader.isolation_level(postgres::IsolationLevel::RepeatableRead).read_only(true);
        let mut reader = reader.start().ok()?;
        let seen = reader.query("SELECT write FROM truth", &[]).ok()?.iter().map(|row| row.get(0)).collect();
        let position = reader.query_one("SELECT tidings.position()", &[]).ok()?.get(0);
        reader.commit().ok()?;
        Some((position, seen))
    }
}
