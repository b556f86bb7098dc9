//! Teamboard, the demonstration: its schema and people in a database, its backend, and a teammate who is always moving
//! notes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header};
use postgres::{Client, NoTls};

use crate::database::Database;
use crate::http;
use crate::process::{Process, Signal, fresh_path};

/// The schema, its watches and rules, and some people. It also creates the extension and the roles below.
const SCHEMA: &str = include_str!("../../sql/examples/teamboard.sql");

/// The role that its backend logs in with.
pub const BACKEND_ROLE: &str = "teamboard_backend";

/// The role that its proxy logs in with.
pub const PROXY_ROLE: &str = "teamboard_proxy";

/// The role of everyone who has signed in.
const ROLE: &str = "teamboard_member";

/// The cookie with a person's token.
pub const COOKIE: &str = "teamboard_token";

/// The path of a board's stream, as the page uses it, for `--route`.
pub const ROUTE: &str = "/api/boards/{id}/events=boards_{id}";

/// Creates it in an empty database, and waits until the relay runs.
pub fn create(database: &Database<'_>) {
    database.session().run(SCHEMA);
    database.wait_relay();
}

/// The backend's binary: `TEAMBOARD`, or what `make build` made.
pub fn binary() -> PathBuf {
    std::env::var_os("TEAMBOARD")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/teamboard"))
}

/// Writes a new secret for signing tokens into the temporary folder; returns its path.
pub fn secret() -> PathBuf {
    let path = fresh_path("secret");
    let secret: String = std::iter::repeat_with(fastrand::alphanumeric).take(48).collect();
    std::fs::write(&path, secret).expect("write the secret");
    path
}

/// A token for a person. It does not expire.
pub fn token(secret: &Path, person: i64) -> String {
    let key = EncodingKey::from_secret(&std::fs::read(secret).expect("read the secret"));
    let claims = serde_json::json!({ "role": ROLE, "sub": person.to_string() });
    jsonwebtoken::encode(&Header::default(), &claims, &key).expect("sign a token")
}

/// A running backend. Dropping it ends it.
#[derive(Debug)]
pub struct Backend {
    _process: Process,
    address: SocketAddr,
}

impl Backend {
    /// Starts a backend whose page reads its streams from `events_url`, and waits until it answers.
    #[track_caller]
    pub fn start(port: u16, database_url: &str, secret: &Path, events_url: &str) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let path = fresh_path("teamboard.log");
        let mut command = Command::new(binary());
        command.args(["--database-url", database_url, "--listen", &address.to_string(), "--events-url", events_url]);
        command.arg("--jwt-secret-file").arg(secret);
        let process = Process::start(&mut command, Signal::SIGKILL, &path);
        process.wait_until_up("the backend answers", &path, || {
            http::get(address, "/api/config").is_ok_and(|(head, _)| head.status == 200).then_some(())
        });
        Self { _process: process, address }
    }

    /// The URL of its page.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The person that [`work`] plays, and the board that the person works on, as in the schema.
pub const TEAMMATE: (&str, i64, i64) = ("Robin", 5, 5);

/// Moves notes, as a person would by drag and drop, for as long as this process runs: if the database is away, from
/// when it is back, maybe at another host of the URL.
pub fn work(url: &str) {
    loop {
        if let Ok(mut client) = Client::connect(url, NoTls)
            && sign_in(&mut client).is_ok()
        {
            while drag(&mut client).is_ok() {
                std::thread::sleep(THINKING.mul_f64(0.5 + fastrand::f64()));
            }
        }
        std::thread::sleep(THINKING);
    }
}

/// Acts as the teammate from now on.
fn sign_in(client: &mut Client) -> Result<(), postgres::Error> {
    let claims = format!("{{\"sub\": \"{}\"}}", TEAMMATE.1);
    client.batch_execute(&format!("SET ROLE {ROLE}; SELECT set_config('request.jwt.claims', '{claims}', false)"))
}

/// Moves a note.
fn drag(client: &mut Client) -> Result<(), postgres::Error> {
    let pick = "SELECT id::text, x, y FROM board_items WHERE board_id = $1 ORDER BY random() LIMIT 1";
    let Some(note) = client.query_opt(pick, &[&TEAMMATE.2])? else { return Ok(()) };
    let (id, x, y): (String, i32, i32) = (note.get(0), note.get(1), note.get(2));
    let near = |at: i32, most: i32| (at + fastrand::i32(-REACH..=REACH)).clamp(10, most);
    let to = (near(x, 640), near(y, 400));
    for step in 1..=STEPS {
        let at = |from: i32, to: i32| from + (to - from) * step / STEPS;
        let sql = "UPDATE board_items SET x = $2, y = $3 WHERE id = $1::text::uuid";
        client.execute(sql, &[&id, &at(x, to.0), &at(y, to.1)])?;
        std::thread::sleep(STEP_TIME);
    }
    Ok(())
}

/// How far one movement goes at most in each direction, in pixels.
const REACH: i32 = 140;

/// The steps of one movement, each an UPDATE, and the time between them: what a browser sends during a drag.
const STEPS: i32 = 12;
const STEP_TIME: Duration = Duration::from_millis(60);

/// How long the teammate looks at the board between two movements.
const THINKING: Duration = Duration::from_secs(3);
