//! How long an event is held back behind a change of rights, if the right of each of many subscribers of its topic must
//! be checked again: by a rule in the database, and by an application.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::Instant;

use tidings_tests::application::{Application, Reply};
use tidings_tests::process::fresh_path;
use tidings_tests::{Database, Proxy, Session};

use crate::access::{CLIENTS, SECRET, THREADS, descriptors, enter, token};
use crate::report::{Report, Target};
use crate::{Effort, median};

const TOPIC: &str = "guarded";

/// Measures clients that all differ, all of one topic.
pub fn measure(database: &Database<'_>, effort: Effort, report: &mut Report) {
    let clients = CLIENTS.min(descriptors().saturating_sub(500));
    let (role, login) = (database.role("guarded_member"), database.proxy_role());
    database.session().run(&format!(
        "CREATE TABLE guarded_member (person bigint PRIMARY KEY);
         INSERT INTO guarded_member SELECT generate_series(0, {clients}); ANALYZE guarded_member;
         GRANT SELECT ON guarded_member TO {role};
         SELECT tidings.allow('{TOPIC}', $$SELECT FROM guarded_member
             WHERE person = (current_setting('request.jwt.claims', true)::json ->> 'sub')::bigint$$);
         ALTER ROLE {login} NOINHERIT; GRANT {role} TO {login}"
    ));
    println!("==> guards, {clients} clients of one topic");
    let secret = fresh_path("secret");
    fs::write(&secret, SECRET).expect("write the secret");
    let by_rules = database.proxy(&["--jwt-secret-file", secret.to_str().expect("a path of text")]);
    let application = Application::start(|_| Reply::status(204));
    let by_application = database.proxy(&["--auth-url", &application.url("/may")]);
    let asks: Vec<_> = (0..clients).map(|person| (TOPIC.to_owned(), token(&role, person))).collect();
    for (who, proxy, counter) in [
        ("asked by rules", &by_rules, "tidings_auth_questions_total"),
        ("asked by an application", &by_application, "tidings_application_answers_total"),
    ] {
        let mut streams = open(proxy, &asks);
        proxy.wait_clients(clients);
        let mut session = database.session();
        let (mut plain, mut held, mut questions) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            plain.push(deliver(&mut session, &mut streams, ""));
            let before = proxy.metric(counter);
            held.push(deliver(&mut session, &mut streams, "SELECT tidings.recheck('guarded');"));
            questions.push(proxy.metric(counter) - before);
        }
        report.add(format!("commit until all {clients} have an event, {who}"), median(&mut plain), "s", Target::None);
        let what = format!("the same behind a change of rights, {who}");
        report.add(what, median(&mut held), "s", Target::None);
        report.add(format!("questions, {who}"), median(&mut questions), "", Target::None);
        drop(streams);
        proxy.wait_clients(0);
    }
}

/// Opens a stream for each.
fn open(proxy: &Proxy, asks: &[(String, String)]) -> Vec<Vec<TcpStream>> {
    let (address, size) = (proxy.address(), asks.len().div_ceil(THREADS));
    let connected = Barrier::new(asks.len().div_ceil(size));
    std::thread::scope(|scope| {
        let parts: Vec<_> = asks.chunks(size).map(|part| scope.spawn(|| enter(address, part, &connected))).collect();
        parts.into_iter().map(|part| part.join().expect("a part of the clients")).collect()
    })
}

/// Commits an event behind what `first` does. Returns the seconds until all clients have it.
fn deliver(session: &mut Session, streams: &mut [Vec<TcpStream>], first: &str) -> f64 {
    let start = Instant::now();
    session.run(&format!("BEGIN; {first} SELECT tidings.publish('{TOPIC}', '\"the event\"'); COMMIT"));
    std::thread::scope(|scope| {
        for stream in
            streams.iter_mut().map(|part| scope.spawn(|| part.iter_mut().for_each(read_event))).collect::<Vec<_>>()
        {
            stream.join().expect("a part of the clients");
        }
    });
    start.elapsed().as_secs_f64()
}

/// Reads up to the event.
fn read_event(stream: &mut TcpStream) {
    let (mut seen, mut block) = (Vec::new(), [0; 512]);
    while !seen.windows(b"the event".len()).any(|window| window == b"the event") {
        let length = stream.read(&mut block).expect("an event");
        assert!(length > 0, "the stream has ended: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&block[..length]);
    }
}
