//! Crashes within the window between the announcement of a tick and its flush.
//!
//! The writers pause, and Postgres's WAL writer is stopped, so that nothing flushes the tick. Then some transactions
//! commit at the same time. As soon as a client of each proxy has their events, the server is killed. Whether the crash
//! hit the window shows afterwards: then the tick is not in the log.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::scope;
use std::time::{Duration, Instant};

use tidings_tests::process::{Signal, send};
use tidings_tests::sse::Request;
use tidings_tests::{Frame, Item, Proxy, Sse, until};

use crate::plan::{Alive, Fault, Standby};
use crate::server::Server;
use crate::strike::Stage;
use crate::writers::{end_all_prepared, topic, write_one};

/// At most so many transactions commit at the same time.
const MOST: u64 = 4;

/// How often events are announced until one tick is not flushed meanwhile: a page that is loaded flushes it, or a proxy
/// that reports its topics.
const ATTEMPTS: u32 = 10;

/// The time between two looks at the proxies.
const PAUSE: Duration = Duration::from_millis(20);

/// How long clients may wait for the events. A proxy may be slow on a busy machine.
const HEARING: Duration = Duration::from_secs(10);

/// How often such crashes were caused, and how often they hit the window.
#[derive(Debug, Default)]
pub struct Windows(Mutex<BTreeMap<String, (u32, u32)>>);

impl Windows {
    fn note(&self, fault: Fault, hit: bool) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (tries, hits) = counts.entry(format!("{fault:?}")).or_default();
        *tries += 1;
        *hits += u32::from(hit);
    }

    /// Each kind of crash, how often it was tried, and how often it hit.
    pub fn counts(&self) -> Vec<(String, u32, u32)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(fault, (tries, hits))| (fault.clone(), *tries, *hits)).collect()
    }
}

impl Stage<'_> {
    /// Kills the server, and some proxies, right after clients have been shown some events. Then starts all of them
    /// again, or promotes the standby.
    pub fn crash_in_window(&self, fault: Fault, alive: Alive, hold: Duration) {
        // All proxies are up and the network is whole.
        let _calm = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        let mut proxies: Vec<_> =
            self.proxies.iter().map(|proxy| proxy.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        let hears: Vec<usize> = (0..self.open).filter(|i| !self.at_standby.contains(i)).collect();
        hears.iter().for_each(|i| proxies[*i].wait_ready());
        let promotes = matches!(fault, Fault::PromoteInWindow(_));
        if promotes {
            self.server.wait_standby();
        }
        let closed = self.gate.close();
        let kept = self.acknowledged().len();
        end_all_prepared(self.server);
        self.warm_up();
        self.wait_for_replays(&hears, &proxies);
        let receiver = if promotes { self.cut_off_standby() } else { None };
        let mut announced = self.announce(&hears, &proxies);
        for _ in 0..ATTEMPTS {
            if self.is_unflushed() {
                break;
            }
            announced = self.announce(&hears, &proxies);
        }
        if receiver.is_some() {
            // They will be lost.
            self.acknowledged().truncate(kept);
        }
        let dies = match alive {
            Alive::All => Vec::new(),
            Alive::One(one) => {
                let one = if hears.contains(&one) { one } else { hears[0] };
                hears.iter().copied().filter(|i| *i != one).collect()
            }
            Alive::Nobody => hears,
        };
        dies.iter().for_each(|i| self.homes.leave(*i));
        if promotes {
            scope(|threads| {
                let failover = threads.spawn(|| self.server.lose_primary(receiver, self.report));
                dies.iter().for_each(|i| proxies[*i].kill());
                failover.join().expect("the failover");
            });
        } else {
            self.server.primary().kill();
            dies.iter().for_each(|i| proxies[*i].kill());
            std::thread::sleep(hold);
            self.server.primary().boot();
        }
        dies.iter().for_each(|i| {
            proxies[*i].start_again();
            self.homes.enter(*i);
        });
        self.server.recover();
        let hit = announced.as_ref().is_some_and(|last| self.is_lost(last));
        self.windows.note(fault, hit);
        self.report.say(format_args!(
            "{fault:?} {}: {}",
            if hit { "hit the window" } else { "missed the window" },
            announced.map_or("not every proxy announced the events".to_owned(), |last| last.data
                + " with the id "
                + &last.id.unwrap_or_default())
        ));
        drop(closed);
    }

    /// Cuts off an asynchronous standby: it has a last write, but not its tick. So some of the events that clients will
    /// have seen since the last common tick are left, and some are lost.
    fn cut_off_standby(&self) -> Option<u32> {
        if self.standby != Some(Standby::Asynchronous) {
            return None;
        }
        self.stop_wal_writer();
        self.write(format!("x{}l.1.1", self.number()));
        self.server.wait_received();
        self.server.cut_off_standby()
    }

    /// Waits until no client reads the log, which flushes it; but not for long, because some read slowly.
    fn wait_for_replays(&self, hears: &[usize], proxies: &[impl Deref<Target = Proxy>]) {
        let deadline = Instant::now() + HEARING;
        let replays = || hears.iter().any(|i| proxies[*i].metric("tidings_replays") > 0.0);
        while replays() && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until the relay announces ticks before they are flushed, which the first ones after its start are not.
    fn warm_up(&self) {
        let early = "SELECT ticks - (SELECT sum(value::bigint) FROM jsonb_each_text(flushed_first))::bigint FROM tidings.status";
        let count = || -> Option<i64> { Some(self.server.connect()?.query_one(early, &[]).ok()?.get(0)) };
        let before = tidings_tests::eventually("the status", count);
        let number = self.number();
        let mut round = 0;
        until("a tick is announced early", || {
            round += 1;
            self.write(format!("x{number}w{round}.1.1"));
            count().is_some_and(|now| now > before)
        });
    }

    /// Commits some transactions, and waits until these proxies have shown all of them. Returns the event with the last
    /// place.
    fn announce(&self, hears: &[usize], proxies: &[impl Deref<Target = Proxy>]) -> Option<Frame> {
        let number = self.number();
        let names: Vec<String> = (0..1 + number % MOST).map(|i| format!("x{number}c{i}.1.1")).collect();
        let addresses: Vec<SocketAddr> = hears.iter().map(|i| proxies[*i].address()).collect();
        let mut streams: Vec<Sse> =
            addresses.iter().filter_map(|address| Sse::connect(*address, &Request::live(&[&topic(0)])).ok()).collect();
        streams.iter_mut().for_each(Sse::wait_id);
        self.stop_wal_writer();
        let deadline = Instant::now() + HEARING;
        let frames: Vec<Option<Frame>> = scope(|threads| {
            let names = &names;
            for name in names {
                threads.spawn(move || self.write(name.clone()));
            }
            let hear = |sse| threads.spawn(move || hear(sse, names, deadline));
            let hearing: Vec<_> = streams.iter_mut().map(hear).collect();
            hearing.into_iter().map(|thread| thread.join().expect("a client")).collect()
        });
        if frames.len() < hears.len() {
            return None;
        }
        frames.into_iter().collect::<Option<Vec<_>>>()?.into_iter().max_by_key(Frame::place)
    }

    /// Commits a write, which is durable once it has.
    fn write(&self, name: String) {
        if write_one(self.server, 0, &name) {
            self.acknowledged().push(name);
        }
    }

    fn acknowledged(&self) -> MutexGuard<'_, Vec<String>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no other crash has.
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether something in the write-ahead log is not flushed.
    fn is_unflushed(&self) -> bool {
        let sql = "SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()";
        self.server.connect().and_then(|mut client| client.query_one(sql, &[]).ok()).is_some_and(|row| row.get(0))
    }

    /// Stops the process that would flush a tick within a fifth of a second. It ends with the server.
    fn stop_wal_writer(&self) {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'";
        let row = self.server.connect().and_then(|mut client| client.query_opt(sql, &[]).ok().flatten());
        if let Some(pid) = row.and_then(|row| u32::try_from(row.get::<_, i32>(0)).ok()) {
            send(pid, Signal::SIGSTOP);
        }
    }

    /// Whether the log does not have the tick of an event.
    fn is_lost(&self, frame: &Frame) -> bool {
        let sql = format!("SELECT NOT EXISTS (SELECT FROM tidings.tick WHERE tick = {})", frame.place().0);
        self.server.database(|database| database.session().one(&sql))
    }
}

/// Waits until a stream has all of these writes; returns the last one.
fn hear(sse: &mut Sse, names: &[String], deadline: Instant) -> Option<Frame> {
    let mut missing = names.to_vec();
    while Instant::now() < deadline {
        if let Item::Frame(frame) = sse.item()? {
            missing.retain(|name| !frame.data.contains(&format!("\"{name}\"")));
            if missing.is_empty() {
                return Some(frame);
            }
        }
    }
    None
}

/// A server that is up has every write that was acknowledged.
pub fn missing(server: &Server, acknowledged: &[String]) -> Vec<String> {
    let sql = "SELECT name FROM unnest($1::text[]) name WHERE NOT EXISTS (SELECT FROM truth WHERE write = name)";
    let rows = server.database(|database| database.session().all(sql, &[&acknowledged]));
    rows.iter().map(|row| format!("the acknowledged write {} is lost", row.get::<_, String>(0))).collect()
}
