//! Clients whose rights are granted and revoked: `tidings_tests::membership` on the database of a run. One proxy has a
//! rule for the claims of their tokens, the other one asks an application.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use tidings_tests::DEADLINE;
use tidings_tests::application::Application;
use tidings_tests::membership::{Connect, Membership, SETUP, application, pairs, shares};
use tidings_tests::process::fresh_path;
use tidings_tests::sse::Request;

use crate::gate::Gate;
use crate::plan::Plan;
use crate::server::{PROXY_ROLE, Server};

/// The role of people who have a token.
const ROLE: &str = "chaos_member";

/// The secret of the tokens.
const SECRET: &str = "a secret for chaos that has more than 32 bytes";

/// The time between two transactions of a writer.
const PAUSE: Duration = Duration::from_millis(40);

/// The tables, the rule, and what the proxies need for it.
pub struct Club {
    secret: PathBuf,
    application: Application,
}

fn connect(server: &Arc<Server>) -> Connect {
    let server = server.clone();
    Arc::new(move || server.connect())
}

impl Club {
    /// Creates the tables, and starts the application.
    pub fn found(server: &Arc<Server>) -> Self {
        server.database(|database| {
            database.session().run(&format!(
                "{SETUP} CREATE ROLE {ROLE}; GRANT SELECT ON members TO {ROLE}; GRANT {ROLE} TO {PROXY_ROLE};
                 SELECT tidings.allow('boards_{{board}}', $$SELECT FROM public.members WHERE board = {{board}}::bigint
                   AND person = current_setting('request.jwt.claims')::json ->> 'sub'$$)"
            ));
        });
        let secret = fresh_path("secret");
        fs::write(&secret, SECRET).expect("write the secret");
        Self { secret, application: application(connect(server)) }
    }

    /// The flags of the two proxies.
    pub fn flags(&self) -> [Vec<String>; 2] {
        let secret = self.secret.display().to_string();
        [vec!["--jwt-secret-file".to_owned(), secret], vec!["--auth-url".to_owned(), self.application.url("/may")]]
            .map(|flags| [flags, vec!["--reauthorize".to_owned(), "1h".to_owned()]].concat())
    }
}

/// What a person shows: the one proxy reads the token, the other one passes on the cookie.
fn request(person: &str) -> Request {
    let claims = json!({"role": ROLE, "sub": person, "exp": 4_000_000_000_u64});
    let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("sign");
    Request { cookie: Some(format!("session={person}")), ..Request::default().by(&token) }
}

/// Running writers and clients.
pub struct Members {
    membership: Arc<Membership>,
    writers: Vec<JoinHandle<()>>,
    clients: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    gives_up: Arc<AtomicBool>,
}

impl Members {
    /// Starts them. The clients go to and fro between the proxies.
    pub fn start(server: &Arc<Server>, plan: &Plan, gate: &Arc<Gate>, proxies: &[SocketAddr]) -> Self {
        let membership = Arc::new(Membership::new(connect(server)));
        let (stop, gives_up) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let writers = shares().into_iter().enumerate().map(|(number, own)| {
            let (membership, stop, random) = (membership.clone(), stop.clone(), plan.random(3000 + number as u64));
            let gate = gate.clone();
            std::thread::spawn(move || {
                membership.write(&own, random, |turn| {
                    if turn > 0 {
                        gate.leave();
                    }
                    loop {
                        std::thread::sleep(PAUSE);
                        if stop.load(Ordering::Relaxed) {
                            return false;
                        }
                        if gate.enter() {
                            return true;
                        }
                    }
                });
            })
        });
        let writers = writers.collect();
        let clients = pairs().map(|pair| {
            let (membership, gives_up, proxies) = (membership.clone(), gives_up.clone(), proxies.to_vec());
            // A crash may have taken back the tick of its id, and the proxies that heard it may be gone.
            std::thread::spawn(move || membership.follow(&proxies, pair, &request(pair.1), true, &gives_up))
        });
        let clients = clients.collect();
        Self { membership, writers, clients, stop, gives_up }
    }

    /// Stops the writers, and waits until the clients have everything. Returns how many events some client had to wait
    /// for, and what is wrong.
    pub fn finish(self) -> Result<usize, String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut ends = Vec::new();
        ends.extend(self.writers.into_iter().map(JoinHandle::join));
        self.membership.close();
        let start = Instant::now();
        while start.elapsed() < DEADLINE && self.clients.iter().any(|client| !client.is_finished()) {
            std::thread::sleep(PAUSE);
        }
        self.gives_up.store(true, Ordering::SeqCst);
        ends.extend(self.clients.into_iter().map(JoinHandle::join));
        match ends.into_iter().find_map(Result::err) {
            Some(panic) => Err(super::why(&*panic)),
            None => self.membership.check(),
        }
    }
}
