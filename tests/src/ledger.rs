//! Many writers whose committed writes are all recorded, and a check of what clients received.
//!
//! Each write (an update of a contended row, an insert, a publication) adds a row to the table `truth` in the same
//! transaction. So after any rollback, savepoint or crash in the middle of a commit, the table contains exactly the
//! committed writes, and the check compares them with the events.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use postgres::{Client, Config, NoTls};

use crate::cluster::SUPERUSER;
use crate::database::Database;
use crate::sse::Frame;

/// The topics of the ledger's events; a client that is checked must subscribe to both.
pub const TOPICS: [&str; 2] = ["ledger_even", "ledger_odd"];

/// How many rows the writers update in competition.
const ITEMS: i32 = 20;

/// The event that comes after all others, published by [`Ledger::close`].
const END: &str = "the end of the ledger";

/// The tables of the ledger in one database.
#[derive(Debug)]
pub struct Ledger<'d> {
    database: &'d Database<'d>,
}

/// A committed write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Unique: `<writer>.<transaction>.<number within it>`.
    pub name: String,
    /// If it was an update: the row, and the version that it was given.
    pub version: Option<(i32, i64)>,
}

impl Write {
    /// The id of the transaction.
    pub fn transaction(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(transaction, _)| transaction)
    }

    /// Its number within the transaction.
    pub fn number(&self) -> u64 {
        self.name.rsplit_once('.').and_then(|(_, n)| n.parse().ok()).unwrap_or(0)
    }
}

impl<'d> Ledger<'d> {
    /// Creates the tables and watches them.
    pub fn create(database: &'d Database<'d>) -> Self {
        database.session().run(&format!(
            "CREATE TABLE item (id int PRIMARY KEY, lane text NOT NULL, version bigint NOT NULL, write text);
             INSERT INTO item SELECT i, CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END, 0 FROM generate_series(1, {ITEMS}) i;
             CREATE TABLE note (lane text NOT NULL, write text NOT NULL, filler text);
             CREATE TABLE truth (write text PRIMARY KEY, item int, version bigint);
             SELECT tidings.watch('item', topic => 'ledger_{{lane}}');
             SELECT tidings.watch('note', topic => 'ledger_{{lane}}');"
        ));
        Self { database }
    }

    /// The tables that exist in a database already: on a promoted standby, for instance.
    pub fn of(database: &'d Database<'d>) -> Self {
        Self { database }
    }

    /// Starts writers. They continue until they are stopped, and reconnect when the server is back.
    pub fn start(&self, writers: usize, seed: u64, setup: &str) -> Writers {
        // Shown if the test fails.
        println!("{writers} writers, seed {seed}");
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let config = self.database.cluster().config(self.database.name(), SUPERUSER);
        let threads = (0..writers).map(|number| {
            let mut writer = Writer {
                config: config.clone(),
                setup: setup.to_owned(),
                random: fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(number as u64)),
                prefix: format!("w{seed}x{number}"),
                transaction: 0,
                counts: counts.clone(),
            };
            let stop = stop.clone();
            std::thread::spawn(move || writer.work(&stop))
        });
        Writers { threads: threads.collect(), stop, counts }
    }

    /// Publishes the last event; call it when all writers have finished.
    pub fn close(&self) {
        self.database.session().publish(TOPICS[0], &format!("{{\"end\": \"{END}\"}}"));
    }

    /// Every committed write.
    #[track_caller]
    pub fn truth(&self) -> Vec<Write> {
        let rows = self.database.session().all("SELECT write, item, version FROM truth", &[]);
        rows.iter()
            .map(|row| Write {
                name: row.get(0),
                version: row.get::<_, Option<i32>>(1).map(|item| (item, row.get::<_, i64>(2))),
            })
            .collect()
    }

    /// Fails the test unless `frames` are exactly the committed writes, in a correct order.
    #[track_caller]
    pub fn check(&self, frames: &[Frame]) {
        check(&self.truth(), frames);
    }
}

/// Whether this is the event of [`Ledger::close`].
pub fn is_end(frame: &Frame) -> bool {
    frame.data.contains(END)
}

/// The write that an event of the ledger describes.
#[track_caller]
pub fn write_of(frame: &Frame) -> Write {
    let json = frame.json();
    let of = |record: &serde_json::Value| Write {
        name: record["write"].as_str().unwrap_or_else(|| panic!("no event of the ledger: {frame:?}")).to_owned(),
        version: record["version"].as_i64().map(|version| {
            let id = record["id"].as_i64().and_then(|id| i32::try_from(id).ok());
            (id.unwrap_or_else(|| panic!("no row: {frame:?}")), version)
        }),
    };
    match frame.event.as_str() {
        "changed" => of(&json["record"]),
        "message" => of(&json),
        _ => panic!("no event of the ledger: {frame:?}"),
    }
}

/// Fails the test unless `frames` are exactly the writes of `truth`, in a correct order.
#[track_caller]
pub fn check(truth: &[Write], frames: &[Frame]) {
    let faults = judge(truth, frames);
    assert!(faults.is_empty(), "{} writes, {} events, and these faults: {faults:#?}", truth.len(), frames.len());
}

/// What is wrong with a client's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Committed, but never received.
    Missing(Write),
    /// Received, but never committed.
    Vanished(Write),
    /// Received again.
    Doubled(Write),
    /// A version of a row that does not follow the version received before.
    OutOfOrder(Write),
    /// A write of a transaction that does not directly follow the transaction's write before it.
    Scattered(Write),
    /// An event whose id is not after the id of the event before.
    Id(String),
}

/// How many faults of each kind are listed.
const LISTED: usize = 5;

/// Compares what a client received with what was committed.
pub fn judge(truth: &[Write], frames: &[Frame]) -> Vec<Fault> {
    let shown: Vec<Write> = frames.iter().map(write_of).collect();
    let mut faults = compare(truth, &shown);
    let places: Vec<_> = frames.iter().map(Frame::place).collect();
    let back = places.windows(2).zip(&frames[1.min(frames.len())..]).filter(|(pair, _)| pair[0] >= pair[1]);
    faults.extend(back.take(LISTED).map(|(_, frame)| Fault::Id(frame.id().to_owned())));
    faults
}

/// Compares the received writes, in their order, with the committed ones.
pub fn compare(truth: &[Write], shown: &[Write]) -> Vec<Fault> {
    let committed: HashSet<&Write> = truth.iter().collect();
    let names: HashSet<&Write> = shown.iter().collect();
    let mut faults: Vec<Fault> = Vec::new();
    faults.extend(truth.iter().filter(|write| !names.contains(write)).take(LISTED).cloned().map(Fault::Missing));
    faults.extend(shown.iter().filter(|write| !committed.contains(write)).take(LISTED).cloned().map(Fault::Vanished));
    let mut seen = HashSet::new();
    faults.extend(shown.iter().filter(|write| !seen.insert(*write)).take(LISTED).cloned().map(Fault::Doubled));
    let mut versions: HashMap<i32, i64> = HashMap::new();
    let jumps = shown.iter().filter(|write| {
        write.version.is_some_and(|(item, version)| versions.insert(item, version).unwrap_or(0) + 1 != version)
    });
    faults.extend(jumps.take(LISTED).cloned().map(Fault::OutOfOrder));
    let mut transactions: HashSet<&str> = HashSet::new();
    let mut last: Option<&Write> = None;
    let mut scattered = Vec::new();
    for write in shown {
        let goes_on = last.is_some_and(|last| last.transaction() == write.transaction());
        let rises = last.is_some_and(|last| last.number() < write.number());
        if (goes_on && !rises) || (!goes_on && !transactions.insert(write.transaction())) {
            scattered.push(Fault::Scattered(write.clone()));
        }
        last = Some(write);
    }
    faults.extend(scattered.into_iter().take(LISTED));
    faults
}

/// What the writers have done.
#[derive(Debug, Default)]
pub struct Counts {
    committed: AtomicU64,
    given_up: AtomicU64,
    lost: AtomicU64,
}

/// Running writers.
#[derive(Debug)]
pub struct Writers {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

impl Writers {
    /// Transactions committed so far.
    pub fn committed(&self) -> u64 {
        self.counts.committed.load(Ordering::Relaxed)
    }

    /// Waits until at least `n` more transactions are committed.
    #[track_caller]
    pub fn wait_for(&self, n: u64) {
        let goal = self.committed() + n;
        crate::wait::until("the writers get on", || self.committed() >= goal);
    }

    /// Stops them and waits until the last has finished; returns the number of commits.
    #[track_caller]
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let (committed, given_up, lost) =
            (count(&self.counts.committed), count(&self.counts.given_up), count(&self.counts.lost));
        println!("{committed} transactions committed, {given_up} rolled back, {lost} connections lost");
        committed
    }
}

struct Writer {
    config: Config,
    setup: String,
    random: fastrand::Rng,
    prefix: String,
    transaction: u64,
    counts: Arc<Counts>,
}

impl Writer {
    fn work(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let Ok(mut client) = self.config.connect(NoTls) else {
                std::thread::sleep(std::time::Duration::from_millis(20));
                continue;
            };
            if client.batch_execute(&self.setup).is_err() {
                continue;
            }
            while !stop.load(Ordering::Relaxed) && !client.is_closed() {
                self.transaction += 1;
                match self.transact(&mut client) {
                    Ok(true) => _ = self.counts.committed.fetch_add(1, Ordering::Relaxed),
                    Ok(false) => _ = self.counts.given_up.fetch_add(1, Ordering::Relaxed),
                    Err(error) => self.excuse(&mut client, &error),
                }
            }
            if client.is_closed() {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Deadlocks and a server that goes away are expected; any other error is the product's fault.
    fn excuse(&mut self, client: &mut Client, error: &postgres::Error) {
        use postgres::error::SqlState;
        let codes = [
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
        ];
        assert!(error.code().is_none_or(|code| codes.contains(code)), "a writer was refused: {error:?}");
        self.counts.given_up.fetch_add(1, Ordering::Relaxed);
        let _ = client.batch_execute("ROLLBACK");
    }

    /// One random transaction; false if it was rolled back on purpose.
    fn transact(&mut self, client: &mut Client) -> Result<bool, postgres::Error> {
        let mut number = 0;
        client.batch_execute("BEGIN")?;
        for _ in 0..self.random.usize(1..=5) {
            if self.random.u8(..) < 50 {
                client.batch_execute("SAVEPOINT s")?;
                self.write(client, &mut number)?;
                if self.random.bool() {
                    self.write(client, &mut number)?;
                }
                client.batch_execute(if self.random.bool() { "ROLLBACK TO s" } else { "RELEASE s" })?;
            } else {
                self.write(client, &mut number)?;
            }
            if self.random.u8(..) < 25 {
                let sleep = format!("SELECT pg_sleep({})", self.random.f64() * 0.02);
                client.batch_execute(&sleep)?;
            }
        }
        let commits = self.random.u8(..) >= 40;
        client.batch_execute(if commits { "COMMIT" } else { "ROLLBACK" })?;
        Ok(commits)
    }

    fn write(&mut self, client: &mut Client, number: &mut u64) -> Result<(), postgres::Error> {
        let mut name = || {
            *number += 1;
            format!("{}.{}.{number}", self.prefix, self.transaction)
        };
        let lane = if self.random.bool() { "even" } else { "odd" };
        match self.random.u8(..) {
            0..=2 => {
                // Too much for one notification: many rows.
                for _ in 0..300 {
                    let name = name();
                    client.batch_execute(&format!(
                        "INSERT INTO note VALUES ('{lane}', '{name}', repeat('n', 50)); INSERT INTO truth VALUES ('{name}')"
                    ))?;
                }
                Ok(())
            }
            3..=9 => {
                // Too much for any notification: one large row.
                let (name, size) = (name(), self.random.u32(7_000..30_000));
                client.batch_execute(&format!(
                    "INSERT INTO note VALUES ('{lane}', '{name}', repeat('N', {size})); INSERT INTO truth VALUES ('{name}')"
                ))
            }
            10..=99 => {
                let name = name();
                client.batch_execute(&format!(
                    "INSERT INTO note VALUES ('{lane}', '{name}', NULL); INSERT INTO truth VALUES ('{name}')"
                ))
            }
            100..=139 => {
                let name = name();
                client.batch_execute(&format!(
                    "SELECT tidings.publish('ledger_{lane}', '{{\"write\": \"{name}\"}}'); INSERT INTO truth VALUES ('{name}')"
                ))
            }
            _ => {
                let (name, item) = (name(), self.random.i32(1..=ITEMS));
                client.batch_execute(&format!(
                    "WITH updated AS (UPDATE item SET version = version + 1, write = '{name}' WHERE id = {item} RETURNING version)
                     INSERT INTO truth SELECT '{name}', {item}, version FROM updated"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(place: &str, write: &Write) -> Frame {
        let (event, data) = match write.version {
            None => ("message", serde_json::json!({"write": write.name})),
            Some((id, version)) => {
                ("changed", serde_json::json!({"record": {"write": write.name, "id": id, "version": version}}))
            }
        };
        Frame { id: Some(place.into()), event: event.into(), data: data.to_string() }
    }

    fn sample() -> (Vec<Write>, Vec<Frame>) {
        let write = |name: &str, version| Write { name: name.into(), version };
        let truth = vec![
            write("a.1.1", None),
            write("a.1.2", Some((1, 1))),
            write("b.1.1", Some((1, 2))),
            write("b.1.4", None),
        ];
        let frames = truth.iter().zip(["5-1", "5-2", "5-3", "6-1"]).map(|(w, place)| frame(place, w)).collect();
        (truth, frames)
    }

    #[test]
    fn what_is_right_has_no_fault() {
        let (truth, frames) = sample();
        assert_eq!(judge(&truth, &frames), []);
    }

    #[test]
    fn each_kind_of_fault_is_found() {
        let (truth, frames) = sample();
        let mut missing = frames.clone();
        missing.remove(3);
        assert_eq!(judge(&truth, &missing), [Fault::Missing(truth[3].clone())]);
        assert_eq!(judge(&truth[..3], &frames), [Fault::Vanished(truth[3].clone())]);
        let mut doubled = frames.clone();
        doubled.push(frame("7-1", &truth[0]));
        let faults = judge(&truth, &doubled);
        assert!(faults.contains(&Fault::Doubled(truth[0].clone())), "{faults:?}");
        let swap = |i: usize, j: usize| {
            let mut swapped = frames.clone();
            swapped.swap(i, j);
            let (a, b) = (swapped[i].id.take(), swapped[j].id.take());
            (swapped[i].id, swapped[j].id) = (b, a);
            judge(&truth, &swapped)
        };
        let faults = swap(1, 2);
        assert!(faults.contains(&Fault::OutOfOrder(truth[2].clone())), "{faults:?}");
        assert!(faults.contains(&Fault::Scattered(truth[1].clone())), "{faults:?}");
        assert_eq!(swap(0, 1), [Fault::Scattered(truth[0].clone())]);
        let mut ids = frames;
        ids[3].id = Some("5-3".into());
        assert_eq!(judge(&truth, &ids), [Fault::Id("5-3".into())]);
    }
}
