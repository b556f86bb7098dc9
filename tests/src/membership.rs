//! Boards with members whose rights are granted and revoked at random, beside other changes, and a check of what clients
//! received: no open stream gets an event between a revocation and the next grant, and nobody misses another event.
//!
//! A guard announces the revocations. Who may read a board is up to the application that a proxy asks, or to a rule for
//! the claims of a token.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;

use crate::application::{Application, Asked, Reply};
use crate::sse::{Request, Sse};
use crate::wait::eventually;

/// The boards.
pub const BOARDS: [i64; 2] = [1, 2];

/// The people.
pub const PEOPLE: [&str; 4] = ["ada", "ben", "cyd", "dan"];

/// Her rights are never touched.
const SAFE: &str = "ada";

/// The time between two attempts to connect, to a proxy or a database that is away.
pub const PAUSE: Duration = Duration::from_millis(20);

/// The tables, their watches and their guard.
pub const SETUP: &str = "
CREATE TABLE items (id bigint PRIMARY KEY, board bigint NOT NULL);
CREATE TABLE members (board bigint, person text, number bigint, PRIMARY KEY (board, person));
INSERT INTO members SELECT b, p, 0 FROM unnest(ARRAY[1, 2]) b, unnest(ARRAY['ada', 'ben', 'cyd', 'dan']) p;
SELECT tidings.watch('items', topic => 'boards_{board}');
SELECT tidings.watch('members', topic => 'audit', operations => '{INSERT,DELETE}');
SELECT tidings.guard('members', topic => 'boards_{board}');
";

/// A board and a person.
pub type Pair = (i64, &'static str);

/// All pairs.
pub fn pairs() -> impl Iterator<Item = Pair> {
    BOARDS.iter().flat_map(|board| PEOPLE.map(|person| (*board, person)))
}

/// The pairs whose rights each writer grants and revokes. Nobody else does.
pub fn shares() -> Vec<Vec<Pair>> {
    PEOPLE.iter().filter(|person| **person != SAFE).map(|person| BOARDS.map(|board| (board, *person)).into()).collect()
}

/// A connection to the database, if one can be made.
pub type Connect = Arc<dyn Fn() -> Option<Client> + Send + Sync>;

/// The application's own rule, from the database. While that is away there is no answer.
pub fn application(connect: Connect) -> Application {
    let pool = Mutex::new(Vec::<Client>::new());
    let ask = move |asked: &Asked| -> Option<bool> {
        let person = asked.header("cookie").strip_prefix("session=")?.to_owned();
        let board: i64 = asked.target.rsplit_once("boards_")?.1.parse().ok()?;
        let pooled = lock(&pool).pop();
        let mut client = pooled.or_else(|| connect())?;
        let sql = "SELECT EXISTS (SELECT FROM members WHERE board = $1 AND person = $2)";
        let is_member = client.query_one(sql, &[&board, &person]).ok()?.get(0);
        lock(&pool).push(client);
        Some(is_member)
    };
    Application::start(move |asked| match ask(asked) {
        Some(true) => Reply::status(204),
        Some(false) => Reply::status(403),
        None => Reply::status(503),
    })
}

/// What happened, as the writers and the clients saw it.
pub struct Membership {
    connect: Connect,
    /// When the grant with a number was about to be written.
    grants: Mutex<HashMap<i64, Instant>>,
    /// The number of the next row.
    next: AtomicI64,
    received: Mutex<HashMap<Pair, Received>>,
}

/// What a client received.
#[derive(Default)]
struct Received {
    /// In order. After a reset it reads everything again.
    events: Vec<i64>,
    /// When it got each event for the first time.
    times: HashMap<i64, Instant>,
}

/// What the log says: for each board its events in order, and for each pair the events between a revocation and the
/// grant with a number.
type History = (HashMap<i64, Vec<i64>>, HashMap<Pair, Vec<(i64, i64)>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Membership {
    /// Nothing has happened yet. The database has the tables of [`SETUP`].
    pub fn new(connect: Connect) -> Self {
        Self { connect, grants: Mutex::default(), next: AtomicI64::new(1), received: Mutex::default() }
    }

    /// A connection that is made again until it works.
    pub fn session(&self) -> Client {
        eventually("the database can be reached", || (self.connect)())
    }

    /// Runs a transaction until it succeeds. Each of its statements may be repeated.
    pub fn run(&self, client: &mut Client, sql: &str) {
        while let Err(error) = client.batch_execute(sql) {
            // A shutdown, and what goes with a full disk.
            let is_expected = |code: &str| ["57", "53", "58"].contains(&&code[..2]);
            assert!(error.as_db_error().is_none_or(|error| is_expected(error.code().code())), "{sql}: {error:?}");
            thread::sleep(PAUSE);
            *client = self.session();
        }
    }

    /// Grants and revokes the rights of some pairs, and adds events to all boards, as long as `goes_on` allows the next
    /// transaction. At the end all have their rights.
    pub fn write(&self, own: &[Pair], mut random: fastrand::Rng, goes_on: impl Fn(usize) -> bool) {
        let mut client = self.session();
        let mut revoked: Vec<Option<usize>> = vec![None; own.len()];
        for turn in (0..).take_while(|turn| goes_on(*turn)) {
            let statements: Vec<String> = (0..random.usize(1..5))
                .map(|_| {
                    let which = random.usize(..own.len());
                    self.statement(own[which], turn, &mut revoked[which], &mut random)
                })
                .collect();
            self.run(&mut client, &format!("BEGIN; {}; COMMIT", statements.join("; ")));
        }
        for pair in own {
            let grant = self.grant(*pair);
            self.run(&mut client, &grant);
        }
    }

    /// One statement: a grant, a revocation or another event. `revoked` says since when the pair has no rights.
    fn statement(&self, pair: Pair, turn: usize, revoked: &mut Option<usize>, random: &mut fastrand::Rng) -> String {
        match *revoked {
            // It stays revoked long enough for a client to get what it must not.
            Some(since) if turn > since + 5 && random.u8(..3) == 0 => {
                *revoked = None;
                self.grant(pair)
            }
            None if random.u8(..6) == 0 => {
                *revoked = Some(turn);
                format!("DELETE FROM members WHERE board = {} AND person = '{}'", pair.0, pair.1)
            }
            _ => {
                let (number, board) = (self.next.fetch_add(1, SeqCst), BOARDS[random.usize(..BOARDS.len())]);
                format!("INSERT INTO items VALUES ({number}, {board}) ON CONFLICT DO NOTHING")
            }
        }
    }

    fn grant(&self, (board, person): Pair) -> String {
        let number = self.next.fetch_add(1, SeqCst);
        lock(&self.grants).insert(number, Instant::now());
        format!("INSERT INTO members VALUES ({board}, '{person}', {number}) ON CONFLICT DO NOTHING")
    }

    /// Writes the last event of each board. Call it when all writers have finished.
    pub fn close(&self) {
        self.run(&mut self.session(), "INSERT INTO items VALUES (-1, 1), (-2, 2) ON CONFLICT DO NOTHING");
    }

    /// Follows a board as a browser does, at one proxy after the other, until its last event or until `gives_up`.
    /// `request` has the client's cookie and token. A reset is an error unless it `may_reset`.
    pub fn follow(
        &self,
        proxies: &[SocketAddr],
        pair: Pair,
        request: &Request,
        may_reset: bool,
        gives_up: &AtomicBool,
    ) {
        let topic = format!("boards_{}", pair.0);
        let (mut last, mut visits) = (None, 0);
        while !gives_up.load(SeqCst) {
            let asks = Request { last_event_id: last.clone(), ..request.clone() };
            let asks = Request { topics: vec![topic.clone()], since: Some("earliest".to_owned()), ..asks };
            visits += 1;
            let Ok(mut stream) = Sse::connect(proxies[visits % proxies.len()], &asks) else {
                thread::sleep(PAUSE);
                continue;
            };
            let mut is_reset = false;
            while let Some(frame) = stream.frame_or_end() {
                let now = Instant::now();
                match frame.event.as_str() {
                    "changed" => {
                        let id = frame.json()["record"]["id"].as_i64().expect("an id");
                        if id < 0 {
                            return;
                        }
                        let mut received = lock(&self.received);
                        let received = received.entry(pair).or_default();
                        received.events.push(id);
                        received.times.entry(id).or_insert(now);
                    }
                    "unauthorized" => break,
                    "reset" if may_reset => {
                        lock(&self.received).entry(pair).or_default().events.clear();
                        is_reset = true;
                        break;
                    }
                    other => panic!("{other}: {frame:?}"),
                }
            }
            last = stream.last_id().map(str::to_owned).filter(|_| !is_reset);
            thread::sleep(PAUSE);
        }
    }

    fn history(&self) -> History {
        let sql = "SELECT topic, payload FROM tidings.changes('earliest', '{boards_1,boards_2,audit}', 1000000)";
        let rows = eventually("the log can be read", || self.session().query(sql, &[]).ok());
        let (mut events, mut forbidden) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        let mut open: HashMap<Pair, Vec<i64>> = HashMap::new();
        for row in rows {
            let payload: serde_json::Value = serde_json::from_str(row.get(1)).expect("JSON");
            let number = |record: &str, key: &str| payload[record][key].as_i64().expect("a number");
            if row.get::<_, &str>(0) != "audit" {
                let (id, board) = (number("record", "id"), number("record", "board"));
                if id > 0 {
                    events.entry(board).or_default().push(id);
                    open.iter_mut().filter(|((of, _), _)| *of == board).for_each(|(_, behind)| behind.push(id));
                }
                continue;
            }
            let record = if payload["type"] == "DELETE" { "old_record" } else { "record" };
            let name = payload[record]["person"].as_str().expect("a name");
            let person = PEOPLE.iter().find(|known| **known == name).expect("a person");
            let pair = (number(record, "board"), *person);
            if payload["type"] == "DELETE" {
                open.insert(pair, Vec::new());
            } else if let Some(behind) = open.remove(&pair) {
                let grant = number("record", "number");
                forbidden.entry(pair).or_default().extend(behind.into_iter().map(|id| (id, grant)));
            }
        }
        assert!(open.is_empty(), "everyone has been let in again");
        (events, forbidden)
    }

    /// Compares what the clients received with the log. Returns how many events some client had to wait for.
    pub fn check(&self) -> Result<usize, String> {
        let (events, forbidden) = self.history();
        let (grants, received) = (lock(&self.grants), lock(&self.received));
        let (nothing, no_events) = (Received::default(), Vec::new());
        for pair in pairs() {
            let got = received.get(&pair).unwrap_or(&nothing);
            if &got.events != events.get(&pair.0).unwrap_or(&no_events) {
                return Err(format!("{pair:?} missed something, or got it twice or in another order"));
            }
            for (id, grant) in forbidden.get(&pair).into_iter().flatten() {
                if got.times[id] < grants[grant] {
                    return Err(format!("{pair:?} got {id} between a revocation and the grant {grant}"));
                }
            }
        }
        assert!(forbidden.keys().all(|(_, person)| *person != SAFE));
        Ok(forbidden.values().map(Vec::len).sum())
    }
}
