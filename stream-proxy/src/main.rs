//! Reads the command line and handles signals; everything else is in the library.

#![forbid(unsafe_code)]

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, error::ErrorKind};
use tidings_proxy::Setup;
use tidings_proxy::access::keys::Keys;
use tidings_proxy::check::arguments::Arguments;
use tidings_proxy::cli::{Cli, LogFormat};
use tidings_proxy::http::tls::Tls;
use tidings_proxy::judge::{Judge, judge};
use tidings_proxy::upstream::database::Database;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tracing_subscriber::EnvFilter;

/// Connections that may wait to be accepted; the system's own limit (`net.core.somaxconn`) counts too.
const BACKLOG: u32 = 65_535;

fn main() -> ExitCode {
    if let Some(printed) = tidings_proxy::documents::print() {
        if let Ok(true) = printed {
            return ExitCode::SUCCESS;
        }
        eprintln!("usage: tidings-proxy print conf|man|bash|zsh|fish");
        return ExitCode::FAILURE;
    }
    if let Some(wanted) = Arguments::read() {
        return check(wanted);
    }
    let cli = Cli::read();
    log_to_stderr(cli.log_format, "info");
    let refuse = |message: String| -> ! { Cli::command().error(ErrorKind::ValueValidation, message).exit() };
    let judge = judge(&cli).unwrap_or_else(|error| refuse(error));
    let connect_to = |what: &str, url: &str, password_file: &Option<PathBuf>| {
        let mut database = Database::parse(url, cli.database_ca.as_deref())
            .unwrap_or_else(|error| refuse(format!("--{what}-url: {error}")));
        if let Some(file) = password_file {
            database = database
                .with_password_file(file.clone())
                .unwrap_or_else(|error| refuse(format!("--{what}-password-file: {error}")));
        }
        if let Some(host) = database.sends_password_in_plain_text() {
            tracing::warn!(
                host,
                "the connection to Postgres is in plain text, so others can read the password and all events: set sslmode=verify-full"
            );
        }
        database
    };
    let database = connect_to("database", &cli.database_url, &cli.database_password_file);
    let gate = cli.gate_url.as_ref().map(|url| connect_to("gate", url, &cli.gate_password_file));
    let reports = cli.report_url.as_ref().map(|url| connect_to("report", url, &cli.report_password_file));
    let tls = match (&cli.tls_cert, &cli.tls_key) {
        (Some(certificate), Some(key)) => {
            let tls = Tls::load(certificate, key)
                .unwrap_or_else(|error| refuse(format!("--tls-cert and --tls-key: {error}")));
            Some(Arc::new(tls))
        }
        _ => None,
    };
    if let Judge::Nobody = judge {
        tracing::warn!("--open: EVERYONE MAY SUBSCRIBE TO EVERY TOPIC; this is for development");
    }
    match run(serve(cli, database, gate, reports, tls, judge)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            ExitCode::FAILURE
        }
    }
}

/// `tidings-proxy check`. What its parts would log is in its findings, so nothing is logged unless RUST_LOG asks for
/// it.
fn check(wanted: Arguments) -> ExitCode {
    log_to_stderr(wanted.cli.log_format, "off");
    let mut is_right = false;
    let checking = async {
        is_right = tidings_proxy::check::run(wanted).await;
        Ok(())
    };
    match run(checking) {
        Ok(()) if is_right => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Runs the proxy. At the end, does not wait for a file that is still being read.
fn run(serving: impl Future<Output = Result<(), Box<dyn Error>>>) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serving);
    runtime.shutdown_background();
    served
}

async fn serve(
    cli: Cli,
    database: Database,
    gate: Option<Database>,
    reports: Option<Database>,
    tls: Option<Arc<Tls>>,
    judge: Judge,
) -> Result<(), Box<dyn Error>> {
    let listener = listen(cli.listen).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "--listen {}: another program listens on this address (find it with: ss -ltnp 'sport = :{}')",
            cli.listen,
            cli.listen.port()
        ),
        _ => format!("--listen {}: {error}", cli.listen),
    })?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn({
        let keys = match &judge {
            Judge::Tokens(keys) => Some(keys.clone()),
            _ => None,
        };
        let (tls, databases) = (tls.clone(), [Some(database.clone()), gate.clone(), reports.clone()]);
        async move {
            while hangup.recv().await.is_some() {
                let (tls, keys, databases) = (tls.clone(), keys.clone(), databases.clone());
                let _ = spawn_blocking(move || read_files_again(tls.as_deref(), keys.as_deref(), &databases)).await;
            }
        }
    });
    tidings_proxy::run(Setup { cli, judge, database, gate, reports, tls, listener }, shutdown).await?;
    Ok(())
}

fn read_files_again(tls: Option<&Tls>, keys: Option<&Keys>, databases: &[Option<Database>]) {
    match keys.map(Keys::reload) {
        Some(Ok(())) => tracing::info!("keys of tokens read again"),
        Some(Err(error)) => tracing::error!(%error, "the new keys are not usable: the old ones stay in use"),
        None => {}
    }
    match tls.map(Tls::reload) {
        Some(Ok(())) => tracing::info!("certificate and key read again"),
        Some(Err(error)) => {
            tracing::error!(%error, "the new certificate and key are not usable: the old ones stay in use")
        }
        None => {}
    }
    for reloaded in databases.iter().flatten().filter_map(Database::reload) {
        match reloaded {
            Ok(()) => tracing::info!("the certificates for Postgres were read again"),
            Err(error) => {
                tracing::error!(%error, "the new certificates for Postgres are not usable: the old ones stay in use")
            }
        }
    }
}

/// Listens for connections, with room for many that arrive at once: if the queue is full, a client's kernel tries again
/// only after one second, then three, then seven.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn log_to_stderr(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => log.json().init(),
    }
}
