//! How many clients a second are admitted when all connect at once, each with its own token, and row-level security
//! decides; and whether clients that read the log in the meantime are delayed.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::Instant;

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use tidings_tests::process::fresh_path;
use tidings_tests::sse::Request;
use tidings_tests::{DEADLINE, Database, Proxy};

use crate::report::{Report, Target};
use crate::{Effort, median};

/// Clients that connect at once; fewer if a process may not have that many sockets.
pub const CLIENTS: usize = 10_000;

/// Threads that connect, and read the responses.
pub const THREADS: usize = 8;

/// Members of a board.
const TEAM: usize = 10;

/// The topic whose log is read in the meantime, and its events.
const LOGGED: &str = "access_logged";
const EVENTS: usize = 50_000;

pub const SECRET: &str = "a secret of the bench, 32 bytes or more";

/// Measures clients that all differ, and clients that all ask the same.
pub fn measure(database: &Database<'_>, effort: Effort, report: &mut Report) {
    let clients = CLIENTS.min(descriptors().saturating_sub(500));
    let role = prepare(database, clients);
    let secret = fresh_path("secret");
    fs::write(&secret, SECRET).expect("write the secret");
    let proxy = database.proxy(&["--jwt-secret-file", secret.to_str().expect("a path of text")]);
    let asks = |person: usize| {
        let topic = format!("access_{}", person / TEAM);
        (topic, token(&role, person))
    };
    let reader = token(&role, 0);

    println!("==> access, {clients} clients at once");
    let quiet = replay_rate(&proxy, &reader);
    report.add("events/s read from the log by one client, nobody else there", quiet, "", Target::None);
    let everyone: Vec<_> = (0..clients).map(asks).collect();
    let the_same: Vec<_> = (0..clients).map(|_| asks(0)).collect();
    for (who, asks) in [("tokens that all differ", &everyone), ("one token for all", &the_same)] {
        let (mut rates, mut questions, mut replays) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let before = proxy.metric("tidings_auth_questions_total");
            let (rate, replay) = storm(&proxy, asks, &reader);
            rates.push(rate);
            replays.push(replay);
            questions.push(proxy.metric("tidings_auth_questions_total") - before);
            // All have disconnected before the next ones connect.
            proxy.wait_clients(0);
        }
        report.add(format!("authorizations/s, {who}"), median(&mut rates), "", Target::None);
        let share = median(&mut questions) / clients as f64;
        report.add(format!("database queries ÷ clients, {who}"), share, "", Target::None);
        let replay = median(&mut replays);
        report.add(format!("events/s read from the log meanwhile, {who}"), replay, "", Target::None);
    }
}

/// Boards with a team each, the policy that shows a board to its team, and a log to read; returns the subscribers'
/// role.
fn prepare(database: &Database<'_>, people: usize) -> String {
    let (role, proxy) = (database.role("access_member"), database.proxy_role());
    database.session().run(&format!(
        "CREATE TABLE access_board (id bigint PRIMARY KEY);
         CREATE TABLE access_member (board_id bigint, person bigint, PRIMARY KEY (board_id, person));
         INSERT INTO access_board SELECT generate_series(0, {people} / {TEAM});
         INSERT INTO access_member SELECT i / {TEAM}, i FROM generate_series(0, {people}) i;
         ALTER TABLE access_board ENABLE ROW LEVEL SECURITY;
         GRANT SELECT ON access_board, access_member TO {role};
         CREATE POLICY members_see ON access_board USING (EXISTS (
             SELECT FROM access_member m WHERE m.board_id = access_board.id
                AND m.person = (current_setting('request.jwt.claims', true)::json ->> 'sub')::bigint));
         ANALYZE access_board, access_member;
         SELECT tidings.allow('access_{{id}}', 'SELECT FROM access_board WHERE id = {{id}}::bigint');
         SELECT tidings.allow('{LOGGED}', 'SELECT');
         ALTER ROLE {proxy} NOINHERIT; GRANT {role} TO {proxy}"
    ));
    database.session().run(&format!(
        "SELECT tidings.publish('{LOGGED}', to_jsonb(repeat('x', 100))) FROM generate_series(1, {EVENTS})"
    ));
    role
}

/// A token of a person.
pub fn token(role: &str, person: usize) -> String {
    let claims = json!({"role": role, "sub": person.to_string()});
    encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("sign")
}

/// All clients ask at once, and each waits for its response. Returns the responses per second, and the events per
/// second that one more client has read from the log during that time.
fn storm(proxy: &Proxy, asks: &[(String, String)], reader: &str) -> (f64, f64) {
    let address = proxy.address();
    // Admitted before the others, and replaying while they ask.
    let mut log = proxy.open(&Request::since(&[LOGGED], "earliest").by(reader));
    log.frame();
    // The connections exist before the first request, so that connecting is not measured.
    let connected = Barrier::new(asks.len().div_ceil(asks.len().div_ceil(THREADS)) + 1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = asks
            .chunks(asks.len().div_ceil(THREADS))
            .map(|part| scope.spawn(|| enter(address, part, &connected)))
            .collect();
        connected.wait();
        let start = Instant::now();
        let replay = scope.spawn(move || {
            log.take(EVENTS - 1);
            EVENTS as f64 / start.elapsed().as_secs_f64()
        });
        // Nobody disconnects before all are admitted.
        let _in: Vec<Vec<TcpStream>> =
            parts.into_iter().map(|part| part.join().expect("a part of the clients")).collect();
        let rate = asks.len() as f64 / start.elapsed().as_secs_f64();
        (rate, replay.join().expect("the reader of the log"))
    })
}

/// One client that reads the log; its events per second.
fn replay_rate(proxy: &Proxy, reader: &str) -> f64 {
    let mut log = proxy.open(&Request::since(&[LOGGED], "earliest").by(reader));
    log.frame();
    let start = Instant::now();
    log.take(EVENTS - 1);
    EVENTS as f64 / start.elapsed().as_secs_f64()
}

/// Connects for each, sends all requests when everyone is connected, and only then reads the responses: all of them
/// must be streams.
pub fn enter(address: SocketAddr, asks: &[(String, String)], connected: &Barrier) -> Vec<TcpStream> {
    let mut sockets: Vec<TcpStream> =
        asks.iter().map(|_| TcpStream::connect(address).expect("connect to the proxy")).collect();
    connected.wait();
    for (socket, (topic, token)) in sockets.iter_mut().zip(asks) {
        socket.set_read_timeout(Some(DEADLINE)).expect("set a time limit");
        let request =
            format!("GET /events?topic={topic} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n");
        socket.write_all(request.as_bytes()).expect("ask");
    }
    for socket in &mut sockets {
        let mut status = [0; 12];
        socket.read_exact(&mut status).expect("an answer");
        assert_eq!(&status, b"HTTP/1.1 200", "{}", String::from_utf8_lossy(&status));
    }
    sockets
}

/// How many files a process may have open.
pub fn descriptors() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    usize::try_from(limit).unwrap_or(usize::MAX)
}
