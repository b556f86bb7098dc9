//! A database with the extension, and sessions with it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use postgres::error::SqlState;
use postgres::types::FromSqlOwned;
use postgres::{Client, Row};

use crate::cluster::{Cluster, SUPERUSER, check_ring};
use crate::process::{Signal, is_stopped, send};
use crate::proxy::Proxy;
use crate::wait::{eventually, until};

/// A database for one test. Dropping the value drops the database.
#[derive(Debug)]
pub struct Database<'c> {
    cluster: &'c Cluster,
    name: String,
    kept: bool,
}

impl<'c> Database<'c> {
    pub(crate) fn create(cluster: &'c Cluster, options: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut session = cluster.session("postgres", SUPERUSER);
        session.run(&format!("CREATE DATABASE {name} TEMPLATE template0 {options}"));
        Self { cluster, name, kept: false }
    }

    /// A database that exists already and is kept: the same one on a promoted standby, for instance.
    pub fn existing(cluster: &'c Cluster, name: &str) -> Self {
        Self { cluster, name: name.to_owned(), kept: true }
    }

    /// The cluster that it is in.
    pub fn cluster(&self) -> &'c Cluster {
        self.cluster
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A session as the superuser.
    #[track_caller]
    pub fn session(&self) -> Session {
        self.session_as(SUPERUSER)
    }

    /// A session as `role`.
    #[track_caller]
    pub fn session_as(&self, role: &str) -> Session {
        self.cluster.session(&self.name, role)
    }

    /// Creates a role that may log in and nothing else. Roles belong to the cluster, so the name contains the
    /// database's.
    pub fn role(&self, word: &str) -> String {
        let role = format!("{}_{word}", self.name);
        self.session().run(&format!("CREATE ROLE {role} LOGIN"));
        role
    }

    /// The role that this database's proxies log in with. It has exactly the rights of `tidings.grant_proxy`.
    pub fn proxy_role(&self) -> String {
        let role = format!("{}_proxy", self.name);
        let mut session = self.session();
        if session.all("SELECT FROM pg_roles WHERE rolname = $1", &[&role]).is_empty() {
            session.run(&format!("CREATE ROLE {role} LOGIN; SELECT tidings.grant_proxy('{role}')"));
        }
        role
    }

    /// Starts a proxy of this database with `args` after the usual ones, and waits until it is ready.
    pub fn proxy(&self, args: &[&str]) -> Proxy {
        Proxy::start(&self.cluster.url(&self.name, &self.proxy_role()), args)
    }

    /// The process id of the relay, if one runs; `None` while the server recovers.
    pub fn relay(&self) -> Option<u32> {
        let mut client = self.cluster.config(&self.name, SUPERUSER).connect(postgres::NoTls).ok()?;
        let row = client.query_one("SELECT tidings.relay_pid()", &[]).ok()?;
        row.get::<_, Option<i32>>(0).and_then(|pid| u32::try_from(pid).ok())
    }

    /// Waits until the relay runs.
    pub fn wait_relay(&self) -> u32 {
        eventually("the relay runs", || self.relay())
    }

    /// Ends the relay by SIGKILL (Postgres then restarts all backends) and waits for its successor.
    pub fn kill_relay(&self) {
        let old = self.wait_relay();
        send(old, Signal::SIGKILL);
        until("a new relay runs", || self.relay().is_some_and(|pid| pid != old));
    }

    /// Stops the relay by SIGSTOP, and returns its process id: see [`Session::stop`].
    #[track_caller]
    pub fn stop_relay(&self) -> u32 {
        let relay = self.wait_relay();
        self.session().stop(relay);
        relay
    }

    /// Restarts the server properly and waits until the relay runs.
    pub fn restart(&self) {
        self.cluster.restart();
        self.wait_relay();
    }

    /// Lets the server crash, starts it again, and waits until the relay runs.
    pub fn crash(&self) {
        self.cluster.crash();
        self.wait_relay();
    }

    /// Waits until a standby has replayed everything that this database's server has done so far. A tick may be
    /// visible, and clients may have its events, a moment before it is flushed and sent: this commit flushes it.
    pub fn wait_standby(&self, standby: &Cluster) {
        let mut here = self.session();
        here.run("SET synchronous_commit = local; SELECT pg_logical_emit_message(true, 'tests', '')");
        let written: String = here.one("SELECT pg_current_wal_lsn()::text");
        let mut session = standby.session(&self.name, SUPERUSER);
        until("the standby has caught up", || session.one(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")));
    }

    /// Waits until the proxies' role has connections, and ends them.
    pub fn cut_proxies(&self) {
        let role = format!("{}_proxy", self.name);
        let mut session = self.session();
        until("connections of the proxies", || {
            session.one::<i64>(&format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{role}'"
            )) > 0
        });
    }

    /// Keeps the database when the value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the end of the server's log ---\n{}---", self.cluster.log_tail());
        }
        if self.kept {
            return;
        }
        // A failure here must not fail the test: a database that stays is removed with the cluster.
        if let Ok(mut client) = self.cluster.config("postgres", SUPERUSER).connect(postgres::NoTls) {
            let _ = client.batch_execute("SET statement_timeout = '20s'");
            let _ = client.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        }
        check_ring(&std::fs::read(self.cluster.log_file()).unwrap_or_default());
    }
}

/// A session that fails the test on an unexpected error, and names the statement.
pub struct Session(Client);

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

/// A parameter of a query.
pub type Param<'a> = &'a (dyn postgres::types::ToSql + Sync);

impl Session {
    /// A session of a client that the test has connected itself.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    /// The client, for anything that has no method here.
    pub fn client(&mut self) -> &mut Client {
        &mut self.0
    }

    /// Runs statements; several of them in one string are one transaction unless they say otherwise.
    #[track_caller]
    pub fn run(&mut self, sql: &str) {
        if let Err(error) = self.0.batch_execute(sql) {
            panic!("{}: {error:?}", shorten(sql));
        }
    }

    /// Runs statements that must fail; returns the error.
    #[track_caller]
    pub fn refused(&mut self, sql: &str) -> postgres::error::DbError {
        match self.0.batch_execute(sql) {
            Ok(()) => panic!("no error from {}", shorten(sql)),
            Err(error) => match error.as_db_error() {
                Some(error) => error.clone(),
                None => panic!("{}: {error:?}", shorten(sql)),
            },
        }
    }

    /// Runs statements that must fail because of missing rights.
    #[track_caller]
    pub fn forbidden(&mut self, sql: &str) {
        let error = self.refused(sql);
        assert_eq!(*error.code(), SqlState::INSUFFICIENT_PRIVILEGE, "{}: {error}", shorten(sql));
    }

    /// The only column of the only row.
    #[track_caller]
    pub fn one<T: FromSqlOwned>(&mut self, sql: &str) -> T {
        match self.0.query_one(sql, &[]).and_then(|row| row.try_get(0)) {
            Ok(value) => value,
            Err(error) => panic!("{}: {error:?}", shorten(sql)),
        }
    }

    /// All rows.
    #[track_caller]
    pub fn all(&mut self, sql: &str, params: &[Param<'_>]) -> Vec<Row> {
        match self.0.query(sql, params) {
            Ok(rows) => rows,
            Err(error) => panic!("{}: {error:?}", shorten(sql)),
        }
    }

    /// Runs one statement with parameters; returns the number of rows.
    #[track_caller]
    pub fn with(&mut self, sql: &str, params: &[Param<'_>]) -> u64 {
        match self.0.execute(sql, params) {
            Ok(count) => count,
            Err(error) => panic!("{}: {error:?}", shorten(sql)),
        }
    }

    /// `tidings.publish(topic, payload)`.
    #[track_caller]
    pub fn publish(&mut self, topic: &str, payload: &str) {
        self.with("SELECT tidings.publish($1, $2::text::jsonb)", &[&topic, &payload]);
    }

    /// The process id of its backend.
    #[track_caller]
    pub fn backend(&mut self) -> u32 {
        u32::try_from(self.one::<i32>("SELECT pg_backend_pid()")).expect("a process id")
    }

    /// Stops another process of the server by SIGSTOP, while it waits for something to do. Anywhere else it could have
    /// a lock that each commit of the server needs, and would keep it.
    #[track_caller]
    pub fn stop(&mut self, pid: u32) {
        let waits = format!(
            "SELECT EXISTS (SELECT FROM pg_stat_activity
                 WHERE pid = {pid} AND wait_event_type IN ('Activity', 'Client', 'Extension'))"
        );
        until("the process is stopped while it waits", || {
            if !self.one::<bool>(&waits) {
                return false;
            }
            send(pid, Signal::SIGSTOP);
            until("it has stopped", || is_stopped(pid));
            // If it has a lock that this question needs, too, there is no answer before it continues.
            let (answered, no_answer) = mpsc::channel::<()>();
            let in_vain = thread::spawn(move || {
                let is_silent = no_answer.recv_timeout(Duration::from_secs(5)) == Err(RecvTimeoutError::Timeout);
                if is_silent {
                    send(pid, Signal::SIGCONT);
                }
                is_silent
            });
            let is_waiting = self.one::<bool>(&waits);
            drop(answered);
            let is_waiting = !in_vain.join().expect("the watch over the answer") && is_waiting;
            if !is_waiting {
                send(pid, Signal::SIGCONT);
            }
            is_waiting
        });
    }
}

fn shorten(sql: &str) -> String {
    let short: String = sql.chars().take(300).collect();
    if short.len() < sql.len() { format!("{short}…") } else { short }
}
