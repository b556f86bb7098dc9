//! Writers that record what they did: each of their transactions is noted as committed, rolled back, or, if the answer
//! to the COMMIT was lost, unknown.
//!
//! Each write adds a row to the table `truth` in its transaction, as in the ledger of the tests. So the table shows the
//! outcome of the unknown ones, and the notes show whether the table itself is right.
//!
//! A few transactions are prepared and finished some seconds later, whatever strikes in between. The name of each says
//! how it is to be finished, so after a crash, or on another primary, the database alone shows what is left to do.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use postgres::Client;
use postgres::error::SqlState;
use tidings_tests::eventually;
use tidings_tests::ledger::Write;

use crate::gate::Gate;
use crate::plan::Plan;
use crate::reference::place;
use crate::server::Server;

/// How many rows the writers update in competition.
const ITEMS: usize = 24;

/// The name of the last event of each topic.
pub const END: &str = "end";

/// The longest pause between two transactions of a writer: the run should test faults, not load.
const PAUSE: f64 = 0.06;

/// How many of 256 transactions are prepared.
const PREPARED: u8 = 3;

/// Before how many of 256 transactions a writer finishes those that it has prepared: some seconds after they were.
const ENDED: u8 = 2;

/// With this many prepared, a writer finishes them before it prepares another. All writers together stay below the
/// server's `max_prepared_transactions`, even if a PREPARE without an answer was not counted.
const MOST_PREPARED: u32 = 8;

/// The outcome of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The COMMIT was acknowledged, or the PREPARE of a transaction that is to be committed: only the loss of its
    /// primary can undo it.
    Committed,
    /// It failed before, or was rolled back, or is to be rolled back once prepared.
    GivenUp,
    /// The COMMIT or the PREPARE was sent, and no answer arrived.
    Unknown,
}

/// A recorded transaction.
#[derive(Clone, Debug)]
pub struct Note {
    /// `<writer>.<number>`
    pub transaction: String,
    /// Its writes, without those of savepoints that were rolled back.
    pub writes: usize,
    /// Its outcome.
    pub outcome: Outcome,
    /// When the outcome was known.
    pub at: Instant,
}

/// The topic with this number.
pub fn topic(lane: usize) -> String {
    format!("lane_{lane}")
}

/// Creates the tables, in place of those that there are, and watches them.
pub fn prepare(server: &Server, topics: &Range<usize>) {
    let (first, count) = (topics.start, topics.len());
    server.database(|database| {
        database.session().run(&format!(
            "DROP TABLE IF EXISTS item, note, truth;
             CREATE TABLE item (id int PRIMARY KEY, lane int NOT NULL, version bigint NOT NULL, write text)
             WITH (fillfactor = 50);
             INSERT INTO item SELECT i, {first} + i % {count}, 0 FROM generate_series(1, {ITEMS}) i;
             CREATE TABLE note (lane int NOT NULL, write text NOT NULL, filler text);
             CREATE TABLE truth (write text PRIMARY KEY, item int, version bigint);
             SELECT tidings.watch('item', topic => 'lane_{{lane}}');
             SELECT tidings.watch('note', topic => 'lane_{{lane}}');"
        ));
    });
}

/// Publishes the last event of each topic, all in one transaction; returns its tick.
pub fn close(server: &Server, topics: Range<usize>) -> u64 {
    let publish = |lane| format!("SELECT tidings.publish('{}', '{{\"write\": \"{END}\"}}')", topic(lane));
    let all: Vec<String> = topics.map(publish).collect();
    server.database(|database| {
        let mut session = database.session();
        let before: String = session.one("SELECT tidings.position()");
        session.run(&all.join(";"));
        eventually("the last events are in a tick", || {
            let rows = session.all("SELECT position FROM tidings.changes($1)", &[&before]);
            rows.last().and_then(|row| place(row.get(0))).map(|(tick, _)| tick)
        })
    })
}

/// Publishes one event and waits for its commit; returns whether it was acknowledged. `name` is that of the write.
pub fn write_one(server: &Server, lane: usize, name: &str) -> bool {
    let sql = format!(
        "SELECT tidings.publish('{}', '{{\"write\": \"{name}\"}}'); INSERT INTO truth VALUES ('{name}')",
        topic(lane)
    );
    server.connect().is_some_and(|mut client| client.batch_execute(&sql).is_ok())
}

/// Finishes the transactions that are still prepared when no writer writes.
pub fn end_all_prepared(server: &Server) {
    tidings_tests::until("nothing is prepared any more", || {
        server.connect().is_some_and(|mut client| end_prepared(&mut client, "%").is_ok())
    });
}

/// Finishes the prepared transactions with such names, each as its name says.
fn end_prepared(client: &mut Client, names: &str) -> Result<(), postgres::Error> {
    let ends = "SELECT format('%s PREPARED %L', split_part(gid, ' ', 2), gid) FROM pg_prepared_xacts WHERE gid LIKE $1";
    client.query(ends, &[&names])?.iter().try_for_each(|row| client.batch_execute(row.get(0)))
}

/// The committed writes, as the database knows them.
pub fn truth(server: &Server) -> Vec<Write> {
    server.database(|database| {
        let rows = database.session().all("SELECT write, item, version FROM truth", &[]);
        rows.iter()
            .map(|row| Write {
                name: row.get(0),
                version: row.get::<_, Option<i32>>(1).map(|item| (item, row.get::<_, i64>(2))),
            })
            .collect()
    })
}

/// What is wrong with the table according to the writers' notes. Commits acknowledged within one of the `losses` may be
/// gone.
pub fn doubt(notes: &[Note], truth: &[Write], losses: &[RangeInclusive<Instant>]) -> (Vec<String>, usize) {
    let mut found: HashMap<&str, usize> = HashMap::new();
    for write in truth {
        *found.entry(write.transaction()).or_default() += 1;
    }
    let (mut faults, mut lost) = (Vec::new(), 0);
    for note in notes {
        let there = found.get(note.transaction.as_str()).copied().unwrap_or(0);
        let right = match note.outcome {
            Outcome::Committed => there == note.writes,
            Outcome::GivenUp => there == 0,
            Outcome::Unknown => there == 0 || there == note.writes,
        };
        if right {
            continue;
        }
        if note.outcome == Outcome::Committed && there == 0 && losses.iter().any(|loss| loss.contains(&note.at)) {
            lost += 1;
        } else {
            faults.push(format!("transaction {note:?} has {there} writes in the database"));
        }
    }
    (faults, lost)
}

/// What the writers have done and what went wrong.
#[derive(Debug, Default)]
pub struct Counts {
    /// Transactions committed.
    pub committed: AtomicU64,
    /// Transactions prepared.
    pub prepared: AtomicU64,
    /// Errors because the disk was full.
    pub no_room: AtomicU64,
    /// Connections lost.
    pub lost: AtomicU64,
}

/// Running writers.
#[derive(Debug)]
pub struct Writers {
    threads: Vec<JoinHandle<Vec<Note>>>,
    stop: Arc<AtomicBool>,
    /// What they have done.
    pub counts: Arc<Counts>,
    refusals: Arc<Mutex<Vec<String>>>,
}

impl Writers {
    /// Starts the writers of the plan.
    pub fn start(server: &Arc<Server>, plan: &Plan, gate: &Arc<Gate>) -> Self {
        let (stop, counts, refusals) = (Arc::new(AtomicBool::new(false)), Arc::<Counts>::default(), Arc::default());
        let threads = (0..plan.world.writers).map(|number| {
            let mut writer = Writer {
                server: server.clone(),
                random: plan.random(number as u64),
                name: format!("w{number}"),
                topics: plan.world.topics.clone(),
                prepares: plan.world.prepares,
                gate: gate.clone(),
                durable: plan.world.synchronous_commit || plan.world.standby.is_some(),
                transaction: 0,
                prepared: 0,
                counts: counts.clone(),
                refusals: Arc::clone(&refusals),
                notes: Vec::new(),
            };
            let stop = stop.clone();
            std::thread::spawn(move || {
                writer.work(&stop);
                writer.notes
            })
        });
        Self { threads: threads.collect(), stop, counts, refusals }
    }

    /// Waits until at least `n` more transactions are committed.
    pub fn wait_for(&self, n: u64) {
        let goal = self.counts.committed.load(Ordering::Relaxed) + n;
        tidings_tests::until("the writers get on", || self.counts.committed.load(Ordering::Relaxed) >= goal);
    }

    /// Stops them; returns their notes, and the errors that should not have occurred.
    pub fn finish(self) -> (Vec<Note>, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let notes = self.threads.into_iter().flat_map(|thread| thread.join().expect("a writer")).collect();
        let refusals = std::mem::take(&mut *self.refusals.lock().unwrap_or_else(PoisonError::into_inner));
        (notes, refusals)
    }
}

struct Writer {
    server: Arc<Server>,
    random: Rng,
    name: String,
    topics: Range<usize>,
    prepares: bool,
    durable: bool,
    gate: Arc<Gate>,
    transaction: u64,
    /// How many transactions it has begun to prepare since it last finished them.
    prepared: u32,
    counts: Arc<Counts>,
    refusals: Arc<Mutex<Vec<String>>>,
    notes: Vec<Note>,
}

impl Writer {
    fn work(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let Some(mut client) = self.server.connect() else {
                std::thread::sleep(Duration::from_millis(30));
                continue;
            };
            let setup = if self.durable { "" } else { "SET synchronous_commit = off" };
            if client.batch_execute(setup).is_err() {
                continue;
            }
            while !stop.load(Ordering::Relaxed) && !client.is_closed() {
                if self.gate.enter() {
                    self.work_once(&mut client);
                    self.gate.leave();
                }
                std::thread::sleep(Duration::from_secs_f64(self.random.f64() * PAUSE));
            }
            if client.is_closed() {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// One transaction, and its note.
    fn work_once(&mut self, client: &mut Client) {
        if self.prepares && (self.random.u8(..) < ENDED || self.prepared >= MOST_PREPARED) {
            self.end_prepared(client);
        }
        self.transaction += 1;
        let prepares = self.prepares && self.random.u8(..) < PREPARED;
        let mut work = Work { number: 0, kept: 0, prepares, sent_commit: false };
        let outcome = match self.transact(client, &mut work) {
            Ok(true) => Outcome::Committed,
            Ok(false) => Outcome::GivenUp,
            Err(error) => self.judge(client, &error, work.sent_commit),
        };
        if outcome == Outcome::Committed {
            self.counts.committed.fetch_add(1, Ordering::Relaxed);
        }
        self.notes.push(Note { transaction: self.transaction(), writes: work.kept, outcome, at: Instant::now() });
    }

    /// `<writer>.<number>` of the current transaction.
    fn transaction(&self) -> String {
        format!("{}.{}", self.name, self.transaction)
    }

    /// Finishes those that this writer has prepared, if the database can be asked to.
    fn end_prepared(&mut self, client: &mut Client) {
        // The backend of a lost connection may be about to do it, or have done it.
        const TAKEN: [SqlState; 2] = [SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, SqlState::UNDEFINED_OBJECT];
        match end_prepared(client, &format!("{}.%", self.name)) {
            Ok(()) => self.prepared = 0,
            Err(error) if error.code().is_some_and(|code| TAKEN.contains(code)) => {}
            Err(error) => _ = self.judge(client, &error, false),
        }
    }

    /// What an error means for the transaction. Errors that no fault explains are recorded.
    fn judge(&self, client: &mut Client, error: &postgres::Error, sent_commit: bool) -> Outcome {
        const EXCUSED: [SqlState; 9] = [
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::DISK_FULL,
            SqlState::IO_ERROR,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            SqlState::TOO_MANY_CONNECTIONS,
        ];
        if error.code() == Some(&SqlState::DISK_FULL) {
            self.counts.no_room.fetch_add(1, Ordering::Relaxed);
        }
        if error.code().is_some_and(|code| !EXCUSED.contains(code)) {
            self.refusals
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(format!("a writer was refused: {error:?}"));
        }
        // After an ERROR the transaction has been aborted; if the connection was cut or the server shut down, the
        // outcome is unknown.
        let aborted = error.as_db_error().is_some_and(|error| error.severity() == "ERROR");
        let _ = client.batch_execute("ROLLBACK");
        if sent_commit && !aborted { Outcome::Unknown } else { Outcome::GivenUp }
    }

    /// One random transaction; false if it was rolled back on purpose, or is to be.
    fn transact(&mut self, client: &mut Client, work: &mut Work) -> Result<bool, postgres::Error> {
        client.batch_execute("BEGIN")?;
        for _ in 0..self.random.usize(1..=4) {
            if self.random.u8(..) < 50 {
                let before = work.kept;
                client.batch_execute("SAVEPOINT s")?;
                self.write(client, work)?;
                if self.random.bool() {
                    self.write(client, work)?;
                }
                if self.random.bool() {
                    client.batch_execute("ROLLBACK TO s")?;
                    work.kept = before;
                } else {
                    client.batch_execute("RELEASE s")?;
                }
            } else {
                self.write(client, work)?;
            }
            if self.random.u8(..) < 25 {
                client.batch_execute(&format!("SELECT pg_sleep({})", self.random.f64() * 0.03))?;
            }
        }
        if work.prepares {
            work.sent_commit = self.random.u8(..) >= 64;
            let end = if work.sent_commit { "COMMIT" } else { "ROLLBACK" };
            self.prepared += 1;
            client.batch_execute(&format!("PREPARE TRANSACTION '{} {end}'", self.transaction()))?;
            self.counts.prepared.fetch_add(1, Ordering::Relaxed);
            return Ok(work.sent_commit);
        }
        if self.random.u8(..) < 30 {
            client.batch_execute("ROLLBACK")?;
            return Ok(false);
        }
        work.sent_commit = true;
        client.batch_execute("COMMIT")?;
        Ok(true)
    }

    fn write(&mut self, client: &mut Client, work: &mut Work) -> Result<(), postgres::Error> {
        let prefix = format!("{}.", self.transaction());
        let lane = self.random.usize(self.topics.clone());
        // A prepared transaction must not lock the contended rows, because all other writers would wait for its end.
        let (rows, size) = match self.random.u16(..if work.prepares { 550 } else { 1000 }) {
            // Too much for one segment, for one notification, for a notification at all.
            0 => (self.random.usize(2_000..6_000), 40),
            1..=12 => (self.random.usize(100..400), 50),
            13..=40 => (1, self.random.usize(7_000..30_000)),
            41..=399 => (1, 0),
            400..=549 => {
                let name = format!("{prefix}{}", work.next(1));
                return client.batch_execute(&format!(
                    "SELECT tidings.publish('{}', '{{\"write\": \"{name}\"}}'); INSERT INTO truth VALUES ('{name}')",
                    topic(lane)
                ));
            }
            _ => {
                let (name, item) = (format!("{prefix}{}", work.next(1)), self.random.usize(1..=ITEMS));
                return client.batch_execute(&format!(
                    "WITH updated AS (UPDATE item SET version = version + 1, write = '{name}' WHERE id = {item} RETURNING version)
                     INSERT INTO truth SELECT '{name}', {item}, version FROM updated"
                ));
            }
        };
        let first = work.next(rows);
        client.batch_execute(&format!(
            "WITH written AS (INSERT INTO note SELECT {lane}, '{prefix}' || i, repeat('n', {size})
               FROM generate_series({first}, {first} + {rows} - 1) i RETURNING write)
             INSERT INTO truth SELECT write FROM written"
        ))
    }
}

/// The record of one transaction.
struct Work {
    number: usize,
    kept: usize,
    prepares: bool,
    /// Or a PREPARE that a COMMIT is to follow.
    sent_commit: bool,
}

impl Work {
    /// The number of the next write, or of the first of several.
    fn next(&mut self, rows: usize) -> usize {
        let first = self.number + 1;
        self.number += rows;
        self.kept += rows;
        first
    }
}
