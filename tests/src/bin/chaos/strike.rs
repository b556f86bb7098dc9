//! The faults themselves: how each one strikes and how it ends.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postgres::NoTls;
use tidings_tests::cluster::SUPERUSER;
use tidings_tests::process::{Signal, kill, send};
use tidings_tests::{Proxy, eventually};

use crate::gate::Gate;
use crate::homes::Homes;
use crate::network::{Filter, Wire};
use crate::plan::{Fault, Standby, Step};
use crate::report::Report;
use crate::server::{Crash, DATABASE, PROXY_ROLE, Server};
use crate::window::Windows;
use crate::writers::Writers;

/// Commits that the writers must complete after each fault of the database, before the next one.
const PROGRESS: u64 = 30;

/// Notifications of one transaction when the queue is filled, each of one page.
const CROWD: u32 = 4000;

/// The longest time that a disk stays full until a writer has noticed.
const FULL: Duration = Duration::from_secs(20);

/// Everything that can be broken.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The database.
    pub server: &'a Server,
    /// The proxies.
    pub proxies: &'a [Mutex<Proxy>],
    /// How many of them, from the first, are open to everyone.
    pub open: usize,
    /// Which process of each proxy runs.
    pub homes: &'a Homes,
    /// The numbers of those that prefer a standby.
    pub at_standby: &'a [usize],
    /// How the standby follows.
    pub standby: Option<Standby>,
    /// Held while the network is broken.
    pub network: Mutex<()>,
    /// What became of the crashes that should hit the window between announcement and flush.
    pub windows: Windows,
    /// The writes of those crashes that were acknowledged.
    pub acknowledged: Mutex<Vec<String>>,
    /// The number of the next of those crashes.
    pub numbers: AtomicU64,
    /// The network's filter, if there is a separate network.
    pub filter: Option<&'a Filter>,
    /// The connection between the last proxy and the database.
    pub wire: &'a Arc<Wire>,
    /// The writers.
    pub writers: &'a Writers,
    /// Where the writers, and readers of the log, can be held.
    pub gate: &'a Gate,
    /// Where faults are noted.
    pub report: &'a Report,
}

impl Stage<'_> {
    /// Goes through a lane, until its end or until `over` returns true.
    pub fn play(&self, lane: &[Step], over: impl Fn() -> bool) {
        for step in lane {
            std::thread::sleep(step.after);
            if over() {
                return;
            }
            self.report.say(format_args!("{:?} for {:.1?}", step.fault, step.hold));
            self.strike(step.fault, step.hold);
            self.report.say(format_args!("{:?} is over", step.fault));
        }
    }

    /// Lets one fault strike, and ends it.
    fn strike(&self, fault: Fault, hold: Duration) {
        match fault {
            Fault::KillProxy(_) | Fault::TerminateProxy(_) | Fault::FreezeProxy(_) => self.break_proxy(fault, hold),
            Fault::Cut
            | Fault::Loss(_)
            | Fault::Narrow(_)
            | Fault::Refuse
            | Fault::Delay(_)
            | Fault::Stall
            | Fault::HangUp
            | Fault::TerminateListeners => {
                let _broken = self.network.lock().unwrap_or_else(PoisonError::into_inner);
                self.break_network(fault, hold);
            }
            _ => {
                let (begin, tick, checkpointer) = (Instant::now(), self.server.last_tick(), self.checkpointer());
                match fault {
                    Fault::CrashInWindow(alive) | Fault::PromoteInWindow(alive) => {
                        self.crash_in_window(fault, alive, hold)
                    }
                    _ => self.break_database(fault, hold),
                }
                self.server.recover();
                let back = self.server.last_tick();
                let crashed = match fault {
                    Fault::KillRelay
                    | Fault::KillListener
                    | Fault::KillServer
                    | Fault::KillPostmaster
                    | Fault::CrashInWindow(_) => true,
                    Fault::Failover | Fault::PromoteInWindow(_) => self.standby == Some(Standby::Synchronous),
                    // Without room for WAL Postgres may shut down, and start again.
                    Fault::FillDisk => self.checkpointer() != checkpointer,
                    _ => false,
                };
                self.writers.wait_for(PROGRESS);
                if crashed {
                    // What was taken back lies before the first tick that was made since.
                    let since = || Some(self.server.last_tick()).filter(|last| *last > back);
                    let ticks = tick..=eventually("a tick after the crash", since);
                    self.server.note_crash(Crash { fault, time: begin..=Instant::now(), ticks });
                }
            }
        }
    }

    fn break_proxy(&self, fault: Fault, hold: Duration) {
        match fault {
            Fault::KillProxy(i) => {
                let mut proxy = self.proxy(i);
                self.homes.leave(i);
                proxy.kill();
                std::thread::sleep(hold);
                proxy.start_again();
                self.homes.enter(i);
            }
            Fault::TerminateProxy(i) => {
                let mut proxy = self.proxy(i);
                self.homes.leave(i);
                let status = proxy.terminate();
                assert!(status.success(), "a terminated proxy: {status}");
                proxy.start_again();
                self.homes.enter(i);
            }
            Fault::FreezeProxy(i) => {
                let proxy = self.proxy(i);
                proxy.signal(Signal::SIGSTOP);
                std::thread::sleep(hold);
                proxy.signal(Signal::SIGCONT);
            }
            _ => unreachable!("not a proxy's"),
        }
    }

    fn break_network(&self, fault: Fault, hold: Duration) {
        let wait = || std::thread::sleep(hold);
        let filter = || self.filter.expect("a network of our own");
        match fault {
            Fault::Cut | Fault::Loss(_) | Fault::Refuse => {
                match fault {
                    Fault::Cut => filter().cut(),
                    Fault::Loss(percent) => filter().lose(percent),
                    _ => filter().refuse(),
                }
                wait();
                filter().heal();
            }
            Fault::Narrow(kilobytes) => {
                filter().narrow(Some(kilobytes));
                wait();
                filter().narrow(None);
            }
            Fault::Delay(milliseconds) => {
                self.wire.delay(Duration::from_millis(milliseconds.into()));
                wait();
                self.wire.delay(Duration::ZERO);
            }
            Fault::Stall => {
                self.wire.stall(true);
                wait();
                self.wire.stall(false);
            }
            Fault::HangUp => self.wire.hang_up(),
            Fault::TerminateListeners => self.terminate(&format!("usename = '{PROXY_ROLE}'")),
            _ => unreachable!("not the network's"),
        }
    }

    fn break_database(&self, fault: Fault, hold: Duration) {
        let primary = self.server.primary();
        let wait = || std::thread::sleep(hold);
        let relay = || self.server.database(|database| database.wait_relay());
        match fault {
            Fault::TerminateRelay => self.terminate("backend_type = 'tidings relay'"),
            Fault::KillRelay => kill(relay()),
            Fault::FreezeRelay => {
                let relay = relay();
                send(relay, Signal::SIGSTOP);
                wait();
                send(relay, Signal::SIGCONT);
            }
            Fault::KillListener => {
                let pid =
                    format!("SELECT pid FROM pg_stat_activity WHERE usename = '{PROXY_ROLE}' ORDER BY pid LIMIT 1");
                let pid = self.server.connect().and_then(|mut client| client.query_opt(&pid, &[]).ok().flatten());
                if let Some(row) = pid {
                    kill(u32::try_from(row.get::<_, i32>(0)).expect("a process id"));
                }
            }
            Fault::KillServer => {
                primary.kill();
                wait();
                primary.boot();
            }
            Fault::KillPostmaster => {
                primary.kill_postmaster();
                primary.boot();
            }
            Fault::FreezePostmaster => {
                send(primary.pid(), Signal::SIGSTOP);
                wait();
                send(primary.pid(), Signal::SIGCONT);
            }
            Fault::RestartServer => {
                primary.stop();
                primary.boot();
            }
            Fault::TerminateAll => {
                self.terminate("backend_type IN ('client backend', 'tidings relay', 'tidings launcher')")
            }
            Fault::CrowdQueue(percent) => self.crowd_queue(percent, hold),
            Fault::FillDisk => {
                let before = self.no_room();
                self.server.fill_disk();
                let start = Instant::now();
                while start.elapsed() < hold || (self.no_room() == before && start.elapsed() < FULL) {
                    std::thread::sleep(Duration::from_millis(50));
                }
                self.server.free_disk();
                self.report.say(format_args!("{} times no room for a writer", self.no_room() - before));
            }
            Fault::JumpClock(seconds) => self.server.set_clock(seconds),
            Fault::Failover => {
                drop(primary);
                self.server.fail_over(hold.min(Duration::from_secs(1)), self.report);
            }
            Fault::CrashStandby { far } => {
                drop(primary);
                self.server.crash_standby(far);
            }
            Fault::PauseReplay { far } => {
                drop(primary);
                self.server.pause_replay(far, hold);
            }
            _ => unreachable!("not the database's"),
        }
    }

    fn proxy(&self, i: usize) -> MutexGuard<'_, Proxy> {
        self.proxies[i].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process id of the checkpointer, which changes with each start of the server and after each crash.
    fn checkpointer(&self) -> Option<i32> {
        let pid = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
        let row = self.server.connect().and_then(|mut client| client.query_opt(pid, &[]).ok().flatten());
        row.map(|row| row.get(0))
    }

    fn no_room(&self) -> u64 {
        self.writers.counts.no_room.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Terminates backends, if the server can be asked to.
    fn terminate(&self, which: &str) {
        let sql = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND {which}"
        );
        let count = self.server.connect().and_then(|mut client| client.query_one(&sql, &[]).ok());
        self.report.say(format_args!("{:?} terminated", count.map(|row| row.get::<_, i64>(0))));
    }

    /// A session listens in a transaction that does not end, so that the queue keeps everything.
    fn crowd_queue(&self, percent: u8, hold: Duration) {
        let connect = || self.server.primary().config(DATABASE, SUPERUSER).connect(NoTls);
        let (mut listener, mut notifier) = (connect().expect("a listener"), connect().expect("a notifier"));
        listener.batch_execute("LISTEN crowd").expect("listen");
        listener.batch_execute("BEGIN; SELECT 1").expect("a transaction that stays");
        let fill = format!("SELECT pg_notify('crowd', i || repeat('x', 7900)) FROM generate_series(1, {CROWD}) i");
        let usage = eventually("the queue is crowded", || {
            notifier.batch_execute(&fill).expect("notify");
            let usage: f64 = notifier.query_one("SELECT pg_notification_queue_usage()", &[]).ok()?.get(0);
            (usage * 100.0 >= f64::from(percent)).then_some(usage)
        });
        self.report.say(format_args!("the notification queue is full to {:.0} %", usage * 100.0));
        std::thread::sleep(hold);
        drop(listener);
    }
}
