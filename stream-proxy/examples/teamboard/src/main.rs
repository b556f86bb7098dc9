//! Teamboard: a whiteboard that a team shares. It serves one page, signs people in and runs plain SQL as the person who
//! sends the request, so the database's row-level security decides. It knows nothing about Tidings: the page reads its
//! streams from the address in `--events-url`, and `sql/examples/teamboard.sql` is all that produces them.

#![forbid(unsafe_code)]

mod api;
mod assets;
mod database;
mod session;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::api::App;
use crate::database::Database;
use crate::session::Keys;

/// A whiteboard that a team shares: the demonstration of Tidings.
#[derive(Debug, Parser)]
#[command(name = "teamboard", version, about, max_term_width = 110)]
struct Cli {
    /// Where the database is
    #[arg(long, env = "TEAMBOARD_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: String,

    /// Address to listen on
    #[arg(long, env = "TEAMBOARD_LISTEN", default_value = "127.0.0.1:8000", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,

    /// The secret that signs tokens, at least 32 bytes; the proxy reads the same file
    #[arg(long, env = "TEAMBOARD_JWT_SECRET_FILE", value_name = "FILE")]
    jwt_secret_file: PathBuf,

    /// Address from which the page reads its streams, as in http://127.0.0.1:8080; default: the page's own address
    #[arg(long, env = "TEAMBOARD_EVENTS_URL", default_value = "", value_name = "URL")]
    events_url: String,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("teamboard: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(cli: Cli) -> Result<(), Box<dyn std::error::Error>> {
    let keys = Keys::read(&cli.jwt_secret_file)?;
    let app = Arc::new(App { database: Database::new(&cli.database_url)?, keys, events_url: cli.events_url });
    let listener = TcpListener::bind(cli.listen).await?;
    println!("teamboard: listening on http://{}", listener.local_addr()?);
    tokio::select! {
        never = accept(&listener, &app) => match never {},
        interrupt = tokio::signal::ctrl_c() => Ok(interrupt?),
    }
}

/// How long to wait when there are no file descriptors left.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

async fn accept(listener: &TcpListener, app: &Arc<App>) -> std::convert::Infallible {
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            // Most likely there are no file descriptors left. Open connections continue.
            Err(error) => {
                eprintln!("teamboard: accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let app = app.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| api::answer(&app, request));
            // A browser that has disconnected is not worth a warning.
            let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}
