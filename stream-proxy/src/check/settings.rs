//! The settings that can be looked at without a database: keys, certificate, address and connection strings.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::check::report::Report;
use crate::cli::Cli;
use crate::http::tls::Tls;
use crate::judge::{Judge, judge};
use crate::metrics::Metrics;
use crate::upstream::database::Database;

/// How long a program at the address may take to say what it is.
const ANSWER_TIME: Duration = Duration::from_secs(3);

/// The most that is read of its answer.
const ANSWER_BYTES: u64 = 4096;

/// The proxy's logins.
#[derive(Debug)]
pub struct Logins {
    /// That of `--database-url`.
    pub proxy: Database,
    /// That of `--gate-url`.
    pub gate: Option<Database>,
}

/// How access is decided.
pub async fn access(cli: &Cli, metrics: &Metrics, report: &mut Report) -> Judge {
    match judge(cli) {
        Ok(Judge::Nobody) if cli.open => report.hint(
            "access",
            "--open: everyone may subscribe to every topic, which is for development",
            "For production: --jwt-secret-file or --jwks-file, with the keys that the application signs tokens with.",
        ),
        Ok(Judge::Nobody) => report.wrong(
            "access",
            "nothing says who may subscribe, and the proxy does not start like that",
            "Give --jwt-secret-file FILE or --jwks-file FILE; or, for development, --open.",
        ),
        Ok(Judge::Tokens(keys)) => {
            if keys.is_empty() {
                keys.fetch(metrics).await;
            }
            match keys.is_empty() {
                false => report.right("access", format!("keys for tokens: {}", keys.current().len())),
                true => report.wrong(
                    "access",
                    "the keys at --jwks-url can't be fetched, or there are none",
                    "Try the URL with curl from this machine; --auth-ca names a private authority.",
                ),
            }
            return Judge::Tokens(keys);
        }
        Ok(judge) => {
            report.right("access", "the application decides who may subscribe (--auth-url)");
            return judge;
        }
        Err(error) => report.wrong(
            "access",
            error,
            "Make a secret with: openssl rand -hex 32 > FILE; the application signs with the same one.",
        ),
    }
    Judge::Nobody
}

/// The cookie with the token: browsers send some only over TLS.
pub fn cookie(cli: &Cli, report: &mut Report) {
    let is_secure =
        |name: &&String| ["__host-", "__secure-"].iter().any(|prefix| name.to_lowercase().starts_with(prefix));
    if let (Some(name), None) = (cli.token_cookie.as_ref().filter(is_secure), &cli.tls_cert) {
        report.hint(
            "cookie",
            format!("browsers send the cookie {name:?} only over https://, and this proxy serves http://"),
            "Put a load balancer with TLS in front, or give --tls-cert and --tls-key; for development, use a cookie without this prefix.",
        );
    }
}

/// The certificate for clients, if there is one.
pub fn certificate(cli: &Cli, report: &mut Report) {
    let (Some(certificate), Some(key)) = (&cli.tls_cert, &cli.tls_key) else { return };
    match Tls::load(certificate, key) {
        Ok(_) => report.right("certificate", format!("{}", certificate.display())),
        Err(error) => report.wrong(
            "certificate",
            format!("--tls-cert and --tls-key: {error}"),
            "Give the chain and its key in PEM, readable for the proxy's account.",
        ),
    }
}

/// The address to listen on: free, or in use by a proxy that is ready.
pub async fn address(cli: &Cli, report: &mut Report) {
    let address = cli.listen;
    let error = match TcpListener::bind(address).await {
        Ok(_) => return report.right("address", format!("{address} is free")),
        Err(error) => error,
    };
    if error.kind() != ErrorKind::AddrInUse {
        let fix = "Give --listen an address of this machine, and a port above 1023 or the right to lower ones.";
        return report.wrong("address", format!("can't listen on {address}: {error}"), fix);
    }
    match timeout(ANSWER_TIME, ask_whether_ready(address)).await {
        Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") && answer.ends_with("ready\n") => {
            report.right("address", format!("a proxy listens on {address} already, and is ready"));
        }
        Ok(Ok(answer)) if answer.contains("application/problem+json") => {
            let problem = answer.split("\"detail\":\"").nth(1).and_then(|rest| rest.split('"').next());
            report.hint(
                "address",
                format!("a proxy listens on {address} already, and is not ready: {}", problem.unwrap_or("no reason")),
                "What follows says why.",
            );
        }
        _ => report.wrong(
            "address",
            format!("the address {address} is in use by another program"),
            format!(
                "Find it with: ss -ltnp 'sport = :{}'; end it, or give the proxy another --listen.",
                address.port()
            ),
        ),
    }
}

async fn ask_whether_ready(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The connection strings.
pub fn databases(cli: &Cli, report: &mut Report) -> Option<Logins> {
    let proxy = parse("database", &cli.database_url, cli, cli.database_password_file.as_deref(), report)?;
    let gate = match &cli.gate_url {
        Some(url) => Some(parse("gate", url, cli, cli.gate_password_file.as_deref(), report)?),
        None => None,
    };
    Some(Logins { proxy, gate })
}

fn parse(what: &str, url: &str, cli: &Cli, password: Option<&Path>, report: &mut Report) -> Option<Database> {
    let example = "postgres://tidings_proxy@db.example.org/app?sslmode=verify-full";
    let parsed = Database::parse(url, cli.database_ca.as_deref())
        .inspect_err(|error| report.wrong("database", format!("--{what}-url: {error}"), format!("As in {example}")))
        .ok()?;
    let database = match password {
        None => parsed,
        Some(file) => parsed
            .with_password_file(file.to_owned())
            .inspect_err(|error| {
                let fix = "The file has only the password, and only the proxy's account may read it.";
                report.wrong("database", format!("--{what}-password-file: {error}"), fix);
            })
            .ok()?,
    };
    if let Some(host) = database.sends_password_in_plain_text() {
        let detail = format!("the connection to {host} is in plain text: others can read the password and all events");
        report.hint("database", detail, "Add sslmode=verify-full to the URL.");
    }
    Some(database)
}
