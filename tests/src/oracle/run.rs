//! One run of a plan.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use fastrand::Rng;

use super::clients::Client;
use super::judge;
use super::schema::Schema;
use super::sessions::Writers;
use super::{Fault, History, Plan, Sabotage};
use crate::{Cluster, Database, Proxy, Session};

/// How many sessions write.
const WRITERS: usize = 3;

/// The most clients.
const CLIENTS: usize = 6;

/// How many of ten steps are those of a client.
const CLIENT_STEPS: u8 = 3;

/// The parts of a plan that have generators of their own; a step's number is added to the last.
const SCHEMA: u64 = 0;
const END: u64 = 1;
const STEP: u64 = 2;

/// A database and proxies for many runs. Each run has a schema of its own.
pub struct World<'c> {
    db: Database<'c>,
    proxies: [Proxy; 2],
    session: Session,
}

impl<'c> World<'c> {
    /// A new database, a proxy with the usual history, and one that must read almost everything from the log.
    pub fn new(cluster: &'c Cluster) -> Self {
        let db = cluster.database();
        let mut session = db.session();
        session.run(include_str!("oracle.sql"));
        session.run(&format!("GRANT USAGE ON SCHEMA oracle TO {}", db.proxy_role()));
        let proxies = [db.proxy(&["--drain", "0s"]), db.proxy(&["--drain", "0s", "--history-bytes", "1KiB"])];
        Self { db, proxies, session }
    }
}

/// A run in progress.
struct Run<'w, 'c> {
    world: &'w mut World<'c>,
    plan: &'w Plan,
    name: String,
    schema: Schema,
    writers: Writers,
    clients: Vec<Client>,
    marks: usize,
    /// The position before anything was written.
    beginning: String,
}

/// Runs a plan; `history` has what it did, also if it fails.
pub fn run(world: &mut World<'_>, plan: &Plan, history: &mut History) -> Result<(), Fault> {
    // Names of prepared transactions are those of the whole cluster, and several worlds may be in one.
    static RUNS: AtomicUsize = AtomicUsize::new(1);
    let name = format!("run{}", RUNS.fetch_add(1, Ordering::Relaxed));
    let schema = Schema::draw(&mut plan.random(SCHEMA), &format!("{name}_"));
    let result = catch_unwind(AssertUnwindSafe(|| {
        prepare(world, &name, &schema, history);
        let writers = Writers::start(&world.db, &name, WRITERS);
        let (name, schema) = (name.clone(), schema.clone());
        let beginning = world.session.one("SELECT tidings.position()");
        let mut run = Run { world: &mut *world, plan, name, schema, writers, clients: Vec::new(), marks: 0, beginning };
        run.play(history)
    }))
    .unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(Fault(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()))
    });
    clean(world, &name);
    // Another run of the plan has another name.
    history.lines.iter_mut().for_each(|line| *line = line.replace(&name, "run"));
    result
}

fn prepare(world: &mut World<'_>, name: &str, schema: &Schema, history: &mut History) {
    history.setup(&format!("CREATE SCHEMA {name}"));
    history.setup(&format!("SET search_path = {name}"));
    schema.statements.iter().for_each(|sql| history.setup(sql));
    let role = world.db.proxy_role();
    world.session.run(&format!(
        "CREATE SCHEMA {name}; SET search_path = {name}; SET client_min_messages = error; {};
         GRANT USAGE ON SCHEMA {name} TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO {role}",
        schema.statements.join(";\n")
    ));
}

/// Leaves nothing of a run in the database.
fn clean(world: &mut World<'_>, name: &str) {
    let prepared = format!("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE '{name} %'");
    for row in world.session.all(&prepared, &[]) {
        world.session.run(&format!("ROLLBACK PREPARED '{}'", row.get::<_, &str>(0)));
    }
    world.session.run(&format!("DELETE FROM oracle.held; DROP SCHEMA IF EXISTS {name} CASCADE"));
}

impl Run<'_, '_> {
    fn play(&mut self, history: &mut History) -> Result<(), Fault> {
        for step in 0..self.plan.steps {
            let mut random = self.plan.random(STEP + step as u64);
            if self.plan.without.contains(&step) {
                continue;
            }
            // Some clients are there from the beginning.
            if step < 2 || random.u8(..10) < CLIENT_STEPS {
                self.client_step(&mut random, history)?;
            } else {
                self.writers.step(&mut random, &mut self.schema.tables, history)?;
            }
        }
        self.writers.finish(&mut self.plan.random(END), history)?;
        for n in 0..self.clients.len() {
            self.read(n, usize::MAX, 0, history)?;
        }
        let tables = &self.schema.tables;
        for client in &self.clients {
            judge::compare(&mut self.world.session, client, tables).map_err(|Fault(fault)| {
                Fault(format!("client {} of topics {:?}: {fault}", client.name, client.topics))
            })?;
        }
        Ok(())
    }

    fn client_step(&mut self, random: &mut Rng, history: &mut History) -> Result<(), Fault> {
        if self.clients.len() < 2 || self.clients.len() < CLIENTS && random.u8(..5) == 0 {
            return self.start_client(random, history);
        }
        let (n, proxy) = (random.usize(..self.clients.len()), random.usize(..2));
        if !self.clients[n].is_connected() {
            return self.connect(n, proxy, history);
        }
        match random.u8(..6) {
            0 => self.disconnect(n, history),
            1 | 2 => {
                let most = random.usize(..12);
                self.read(n, most, proxy, history)?;
                self.disconnect(n, history)
            }
            _ => self.read(n, usize::MAX, proxy, history),
        }
    }

    fn connect(&mut self, n: usize, proxy: usize, history: &mut History) -> Result<(), Fault> {
        let client = &mut self.clients[n];
        history.note(&format!("client {} connects to proxy {proxy}", client.name));
        client.connect(self.world.proxies[proxy].address())
    }

    fn disconnect(&mut self, n: usize, history: &mut History) -> Result<(), Fault> {
        let client = &mut self.clients[n];
        history.note(&format!("client {} disconnects", client.name));
        client.disconnect();
        if self.plan.sabotage == Some(Sabotage::Resumption) && !client.has_snapshot() {
            let position = self.world.session.one("SELECT tidings.position()");
            self.clients[n].forget(position);
        }
        Ok(())
    }

    /// Lets a client read what has been committed so far, or a part of it.
    fn read(&mut self, n: usize, most: usize, proxy: usize, history: &mut History) -> Result<(), Fault> {
        if !self.clients[n].is_connected() {
            self.connect(n, proxy, history)?;
        }
        let (client, tables) = (&mut self.clients[n], &self.schema.tables);
        history.note(&format!("client {} reads at most {most} events", client.name));
        // A snapshot is taken some time after its client has come. So it may contain a mark of now, which then never
        // comes.
        let left = client.read(None, most, tables)?;
        self.marks += 1;
        let mark = format!("\"mark {}\"", self.marks);
        self.world.session.publish(&client.name, &mark);
        client.read(Some(&mark), left, tables).map(|_| ())
    }

    fn start_client(&mut self, random: &mut Rng, history: &mut History) -> Result<(), Fault> {
        let name = format!("{}_client{}", self.name, self.clients.len());
        let topics = self.draw_topics(random);
        if topics.is_empty() {
            return Ok(());
        }
        let (tables, sabotage) = (&self.schema.tables, self.plan.sabotage);
        let client = if random.bool() {
            history.note(&format!("client {name} of {topics:?} starts with a snapshot"));
            Client::of_snapshot(name, topics, sabotage)
        } else {
            history.note(&format!("client {name} of {topics:?} starts with rows and their position"));
            judge::read(&mut self.world.session, name, topics, tables, &self.beginning, sabotage)?
        };
        self.clients.push(client);
        // Or later.
        if random.bool() { self.connect(self.clients.len() - 1, random.usize(..2), history) } else { Ok(()) }
    }

    /// One to four topics of watches.
    fn draw_topics(&mut self, random: &mut Rng) -> Vec<String> {
        let mut topics = Vec::new();
        for _ in 0..random.usize(1..=4) {
            let table = &self.schema.tables[random.usize(..self.schema.tables.len())];
            let watch = &table.watches[random.usize(..table.watches.len())];
            let sample = watch.sample(random, table);
            topics.extend(self.world.session.one::<Option<String>>(&sample));
        }
        topics.sort_unstable();
        topics.dedup();
        topics
    }
}
