//! A checker: several writers grant and revoke rights at random beside other changes, while proxies, sessions and the
//! relay are killed. No open stream gets an event between a revocation and the next grant, and nobody misses another.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use tidings_tests::application::{Application, Asked, Reply};
use tidings_tests::cluster::SUPERUSER;
use tidings_tests::process::Signal::SIGKILL;
use tidings_tests::process::send;
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Proxy, Sse, until};

const BOARDS: [i64; 2] = [1, 2];
const PEOPLE: [&str; 4] = ["ada", "ben", "cyd", "dan"];

/// Their rights are never touched.
const SAFE: &str = "ada";

/// Transactions of each writer.
const TRANSACTIONS: usize = 250;

/// The time between two attempts to connect, to a proxy or a database that is away.
const PAUSE: Duration = Duration::from_millis(20);

const SETUP: &str = "
CREATE TABLE items (id bigint PRIMARY KEY, board bigint NOT NULL);
CREATE TABLE members (board bigint, person text, number bigint, PRIMARY KEY (board, person));
INSERT INTO members SELECT b, p, 0 FROM unnest(ARRAY[1, 2]) b, unnest(ARRAY['ada', 'ben', 'cyd', 'dan']) p;
SELECT tidings.watch('items', topic => 'boards_{board}');
SELECT tidings.watch('members', topic => 'audit', operations => '{INSERT,DELETE}');
SELECT tidings.guard('members', topic => 'boards_{board}');
";

/// A board and a person.
type Pair = (i64, &'static str);

/// What happened, as the writers and the clients saw it.
#[derive(Default)]
struct Record {
    /// When the grant with a number was about to be written.
    grants: Mutex<HashMap<i64, Instant>>,
    /// The number of the next row.
    next: AtomicI64,
    /// When each client got each event. A client that must read its data again begins anew.
    received: Mutex<HashMap<Pair, Vec<(i64, Instant)>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that is made again until it works.
fn connect(db: &Database<'_>) -> Client {
    tidings_tests::eventually("the database can be reached", || {
        db.cluster().config(db.name(), SUPERUSER).connect(NoTls).ok()
    })
}

/// Runs a transaction until it succeeds. Each of its statements may be repeated.
fn run(db: &Database<'_>, client: &mut Client, sql: &str) {
    while let Err(error) = client.batch_execute(sql) {
        assert!(error.as_db_error().is_none_or(|error| error.code().code().starts_with("57")), "{sql}: {error:?}");
        thread::sleep(PAUSE);
        *client = connect(db);
    }
}

/// The application's own rule, from the database. While that is away there is no answer.
fn application(db: &Database<'_>) -> Application {
    let (config, pool) = (db.cluster().config(db.name(), SUPERUSER), Mutex::new(Vec::<Client>::new()));
    let ask = move |asked: &Asked| -> Option<bool> {
        let person = asked.header("cookie").strip_prefix("session=")?.to_owned();
        let board: i64 = asked.target.rsplit_once("boards_")?.1.parse().ok()?;
        let pooled = lock(&pool).pop();
        let mut client = pooled.or_else(|| config.connect(NoTls).ok())?;
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

/// Grants and revokes the rights of some pairs, and adds events to all boards.
fn write(db: &Database<'_>, record: &Record, own: &[Pair], mut random: fastrand::Rng) {
    let mut client = connect(db);
    let mut revoked: Vec<Option<usize>> = vec![None; own.len()];
    for turn in 0..TRANSACTIONS {
        let mut statements = Vec::new();
        for _ in 0..random.usize(1..5) {
            let which = random.usize(..own.len());
            let (board, person) = own[which];
            let number = record.next.fetch_add(1, SeqCst);
            match revoked[which] {
                // It stays revoked long enough for a client to get what it must not.
                Some(since) if turn > since + 5 && random.u8(..3) == 0 => {
                    lock(&record.grants).insert(number, Instant::now());
                    statements.push(format!(
                        "INSERT INTO members VALUES ({board}, '{person}', {number}) ON CONFLICT DO NOTHING"
                    ));
                    revoked[which] = None;
                }
                None if random.u8(..6) == 0 => {
                    statements.push(format!("DELETE FROM members WHERE board = {board} AND person = '{person}'"));
                    revoked[which] = Some(turn);
                }
                _ => {
                    let board = BOARDS[random.usize(..BOARDS.len())];
                    statements.push(format!("INSERT INTO items VALUES ({number}, {board}) ON CONFLICT DO NOTHING"));
                }
            }
        }
        run(db, &mut client, &format!("BEGIN; {}; COMMIT", statements.join("; ")));
    }
    for (board, person) in own {
        let number = record.next.fetch_add(1, SeqCst);
        lock(&record.grants).insert(number, Instant::now());
        run(
            db,
            &mut client,
            &format!("INSERT INTO members VALUES ({board}, '{person}', {number}) ON CONFLICT DO NOTHING"),
        );
    }
}

/// Follows a board as a browser does, until its last event.
fn follow(record: &Record, proxies: [SocketAddr; 2], pair: Pair) {
    let (board, person) = pair;
    let topic = format!("boards_{board}");
    let (mut last, mut visits) = (None, 0);
    loop {
        let request = Request {
            cookie: Some(format!("session={person}")),
            last_event_id: last.clone(),
            ..Request::since(&[&topic], "earliest")
        };
        visits += 1;
        let Ok(mut stream) = Sse::connect(proxies[visits % 2], &request) else {
            thread::sleep(PAUSE);
            continue;
        };
        while let Some(frame) = stream.frame_or_end() {
            let now = Instant::now();
            match frame.event.as_str() {
                "changed" => {
                    let id = frame.json()["record"]["id"].as_i64().expect("an id");
                    if id < 0 {
                        return;
                    }
                    lock(&record.received).entry(pair).or_default().push((id, now));
                }
                "unauthorized" => break,
                other => panic!("{other}: {frame:?}"),
            }
        }
        last = stream.last_id().map(str::to_owned);
        thread::sleep(PAUSE);
    }
}

/// What the log says: for each board its events in order, and for each pair the events between a revocation and the
/// grant with a number.
type History = (HashMap<i64, Vec<i64>>, HashMap<Pair, Vec<(i64, i64)>>);

fn history(db: &Database<'_>) -> History {
    let rows = connect(db)
        .query("SELECT topic, payload FROM tidings.changes('earliest', NULL, 1000000)", &[])
        .expect("read the log");
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
fn check(record: &Record, (events, forbidden): &History) -> usize {
    let (grants, received) = (lock(&record.grants), lock(&record.received));
    for pair in BOARDS.iter().flat_map(|board| PEOPLE.iter().map(move |person| (*board, *person))) {
        let got: Vec<i64> = received[&pair].iter().map(|(id, _)| *id).collect();
        assert!(got == events[&pair.0], "{pair:?} missed something, or got it twice or in another order");
        let times: HashMap<i64, Instant> = received[&pair].iter().copied().collect();
        for (id, grant) in forbidden.get(&pair).into_iter().flatten() {
            assert!(times[id] >= grants[grant], "{pair:?} got {id} between a revocation and the grant {grant}");
        }
    }
    assert!(!forbidden.contains_key(&(BOARDS[0], SAFE)));
    forbidden.values().map(Vec::len).sum()
}

/// Lets writers and clients work while `fault` strikes, and checks what the clients received.
fn survive(fault: impl Fn(&Database<'_>, &mut [Proxy; 2], usize) + Sync) {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    db.session().run(SETUP);
    let application = application(&db);
    let url = application.url("/may");
    let start = || db.proxy(&["--auth-url", &url, "--reauthorize", "1h", "--retry", "100ms"]);
    let mut proxies = [start(), start()];
    let addresses = [proxies[0].address(), proxies[1].address()];
    let record = Record { next: AtomicI64::new(1), ..Record::default() };
    let own: Vec<Vec<Pair>> = PEOPLE[1..].iter().map(|person| BOARDS.map(|board| (board, *person)).into()).collect();
    let mut random = fastrand::Rng::with_seed(crate::seed());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (board, person) in BOARDS.iter().flat_map(|board| PEOPLE.map(|person| (*board, person))) {
            let record = &record;
            scope.spawn(move || follow(record, addresses, (board, person)));
        }
        let writers: Vec<_> = own
            .iter()
            .map(|own| {
                let (db, record, random) = (&db, &record, random.fork());
                scope.spawn(move || write(db, record, own, random))
            })
            .collect();
        let (striking, over) = (&mut proxies, &is_over);
        let (db, fault) = (&db, &fault);
        let striker = scope.spawn(move || {
            for round in 0.. {
                if over.load(SeqCst) {
                    return;
                }
                fault(db, striking, round);
            }
        });
        writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
        is_over.store(true, SeqCst);
        striker.join().expect("the faults");
        let mut client = connect(db);
        run(db, &mut client, "INSERT INTO items VALUES (-1, 1), (-2, 2) ON CONFLICT DO NOTHING");
    });
    let behind = check(&record, &history(&db));
    assert!(behind > 100, "only {behind} events were behind a revocation: this says little");
}

#[test]
fn nothing_between_a_revocation_and_the_next_grant_reaches_an_open_stream() {
    survive(|_, _, _| thread::sleep(PAUSE));
}

#[test]
fn nothing_reaches_it_while_proxies_their_sessions_and_the_relay_are_killed() {
    survive(|db, proxies, round| {
        match round % 4 {
            0 => {
                let proxy = &mut proxies[round / 4 % 2];
                proxy.kill();
                proxy.restart();
            }
            1 => kill_sessions(db),
            2 => thread::sleep(20 * PAUSE),
            _ if round % 8 == 3 => kill_relay(db),
            _ => thread::sleep(20 * PAUSE),
        }
        thread::sleep(10 * PAUSE);
    });
}

/// Terminates the proxies' sessions.
fn kill_sessions(db: &Database<'_>) {
    let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}_proxy'", db.name());
    run(db, &mut connect(db), &sql);
}

/// Ends the relay by SIGKILL, upon which Postgres restarts all sessions, and waits for its successor.
fn kill_relay(db: &Database<'_>) {
    let Some(old) = db.relay() else { return };
    send(old, SIGKILL);
    until("a new relay runs", || db.relay().is_some_and(|pid| pid != old));
}
