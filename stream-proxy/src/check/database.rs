//! The way to the database, the extension in it, and what the database says about itself.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::check::report::{Report, Verdict};
use crate::metrics::Metrics;
use crate::upstream::database::{Database, DatabaseError, in_time};
use crate::upstream::dialect::{Dialect, OLD_STANDBY, VERSION};
use crate::upstream::hearing;
use crate::upstream::inbox::Inbox;

/// How long a notification may take.
const NOTIFICATION_TIME: Duration = Duration::from_secs(5);

/// How far the clocks of two machines may be apart, in milliseconds: about as long as a token's leeway.
const CLOCKS_APART: i64 = 10_000;

/// Two sessions, one that listens and one that speaks, and who they are.
#[derive(Debug)]
pub struct Connections {
    /// Listens.
    pub listener: Client,
    inbox: Inbox,
    /// Speaks.
    pub speaker: Client,
    /// The role that they have logged in with.
    pub role: String,
    /// The database that they are in.
    name: String,
    /// Whether the server is a standby, where nothing can be written or notified.
    pub is_standby: bool,
}

/// The first value of a statement's first row. It is sent as simple text, which works through every pool.
async fn ask(client: &Client, sql: &str) -> Result<String, DatabaseError> {
    let messages = in_time(client.simple_query(sql)).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(row.unwrap_or_default())
}

/// Reports an error that nothing here expects.
fn failed(report: &mut Report, item: &str, error: &DatabaseError) {
    report.wrong(item, error.to_string(), "The server's log may say more.");
}

/// Connects twice.
pub async fn connect(database: &Database, metrics: &Arc<Metrics>, report: &mut Report) -> Option<Connections> {
    let reaching = async {
        let (listener, inbox) = database.connect(metrics.clone()).await?;
        let (speaker, _) = database.connect(metrics.clone()).await?;
        let role = ask(&listener, "SELECT session_user").await?;
        let name = ask(&listener, "SELECT pg_catalog.current_database()").await?;
        let is_standby = ask(&listener, "SELECT pg_catalog.pg_is_in_recovery()").await? == "t";
        Ok::<_, DatabaseError>(Connections { listener, inbox, speaker, role, name, is_standby })
    };
    match reaching.await {
        Ok(connections) => {
            let Connections { name, role, is_standby, .. } = &connections;
            let kind = if *is_standby { ", a standby" } else { "" };
            report.right("database", format!("reached {}{kind}, database {name:?}, as {role:?}", database.place()));
            Some(connections)
        }
        Err(error) => {
            report.wrong("database", error.to_string(), way_to_connect(&error));
            None
        }
    }
}

/// What to do about a connection that can't be made.
fn way_to_connect(error: &DatabaseError) -> &'static str {
    match error.code() {
        Some(code) if *code == SqlState::INVALID_PASSWORD => {
            "Give the password in --database-password-file, PGPASSWORD or ~/.pgpass; set it with ALTER ROLE … PASSWORD."
        }
        Some(code) if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "Create the role (CREATE ROLE tidings_proxy LOGIN PASSWORD '…';), and let it in with a line in pg_hba.conf."
        }
        Some(code) if *code == SqlState::UNDEFINED_DATABASE => "Correct the database's name in --database-url.",
        Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => "Raise max_connections, or the role's limit.",
        Some(_) => "The server's log may say more.",
        None => {
            "Is the server running, does its listen_addresses include this host, is the port open, and does sslmode fit? \
             Try: psql 'the URL'"
        }
    }
}

/// Whether the sessions are the server's own, not lent by a pool for each transaction.
pub async fn pool(connections: &Connections, report: &mut Report) -> Option<()> {
    let Connections { listener, speaker, .. } = connections;
    let asking = async {
        let pid = "SELECT pg_catalog.pg_backend_pid()";
        let before = ask(listener, pid).await?;
        in_time(speaker.batch_execute("BEGIN")).await?;
        let (other, after) = (ask(speaker, pid).await?, ask(listener, pid).await?);
        in_time(speaker.batch_execute("ROLLBACK")).await?;
        // Two sessions of the server have two processes, and each keeps its own.
        Ok::<_, DatabaseError>(before == other || before != after)
    };
    match asking.await {
        Ok(false) => {
            report.right("pool", "no pool lends the sessions by transaction");
            Some(())
        }
        Ok(true) => {
            report.wrong(
                "pool",
                "a pool in transaction mode (such as PgBouncer) lies between: it hides notifications, so no event arrives",
                "Connect to Postgres directly, or to a pool with pool_mode = session.",
            );
            None
        }
        Err(error) => {
            failed(report, "pool", &error);
            None
        }
    }
}

/// The first two numbers of a version.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether the database has the extension, in a version that fits. Returns what its SQL is.
pub async fn extension(connections: &Connections, report: &mut Report) -> Option<Dialect> {
    let there =
        "SELECT default_version FROM pg_catalog.pg_available_extensions WHERE name OPERATOR(pg_catalog.=) 'tidings'";
    let asking = async { Ok((ask(&connections.speaker, VERSION).await?, ask(&connections.speaker, there).await?)) };
    let (created, available) = asking.await.inspect_err(|error| failed(report, "extension", error)).ok()?;
    let own = env!("CARGO_PKG_VERSION");
    if created.is_empty() {
        let detail =
            format!("the database {:?} has no extension tidings (is it the right database?)", connections.name);
        let fix = match available.is_empty() {
            true => "Install the package postgresql-NN-tidings on the server, then CREATE EXTENSION tidings;",
            false => "As a superuser in this database: CREATE EXTENSION tidings;",
        };
        report.wrong("extension", detail, fix);
        return None;
    }
    let update = "Install this version of the extension, restart the server, and in this database: ALTER EXTENSION tidings UPDATE;";
    let detail = format!("the extension is {created}, the proxy {own}");
    let dialect = Dialect::of(Some(&created));
    match version(&created).cmp(&version(own)) {
        std::cmp::Ordering::Equal => report.right("extension", detail),
        std::cmp::Ordering::Less if dialect == Dialect::Old && connections.is_standby => {
            report.wrong("extension", format!("{detail}: {OLD_STANDBY}"), update);
            return None;
        }
        std::cmp::Ordering::Less if dialect == Dialect::Old => {
            let still = "streams, catch-up and rules work as before; since=snapshot, guards and the protection of 0.2.0 do not yet";
            report.hint("extension", format!("{detail}: {still}"), update);
        }
        std::cmp::Ordering::Less => report.wrong("extension", detail, update),
        std::cmp::Ordering::Greater => report.hint("extension", detail, format!("Install tidings-proxy {created}.")),
    }
    Some(dialect)
}

/// What the database says about itself. Rules matter only if access is guarded.
pub async fn inside(connections: &Connections, is_guarded: bool, topics: &[String], report: &mut Report) -> Option<()> {
    let sql = "SELECT item, ok, detail, fix FROM tidings.check($1::pg_catalog.text[])";
    let rows = match in_time(connections.speaker.query_typed(sql, &[(&topics, Type::TEXT_ARRAY)])).await {
        Ok(rows) => rows,
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let role = &connections.role;
            let detail = format!("the role {role:?} has not the rights of a proxy");
            let literal = format!("\"{}\"", role.replace('"', "\"\"")).replace('\'', "''");
            report.wrong("rights", detail, format!("As a superuser: SELECT tidings.grant_proxy('{literal}');"));
            return None;
        }
        Err(error) => {
            failed(report, "database", &error);
            return None;
        }
    };
    let mut can_continue = true;
    for row in rows {
        let read = || {
            let fix: Option<String> = row.try_get(3)?;
            Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, fix))
        };
        let Ok((item, ok, detail, fix)): Result<(String, Option<bool>, String, _), _> = read() else { continue };
        let verdict = match (ok, item.as_str()) {
            (Some(true), _) => Verdict::Right,
            (None, "access" | "rule" | "plan") if !is_guarded => continue,
            (None, "access") | (Some(false), _) => Verdict::Wrong,
            (None, _) => Verdict::Hint,
        };
        can_continue &= !(verdict == Verdict::Wrong && ["preload", "relay"].contains(&item.as_str()));
        report.add(verdict, &item, &detail, fix.as_deref());
    }
    can_continue.then_some(())
}

/// Whether the clock of this machine, by which tokens expire, is that of the server, which often is the application's.
pub async fn clock(connections: &Connections, report: &mut Report) -> Option<()> {
    let sql = "SELECT (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000)::pg_catalog.int8";
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as i64);
    let before = now();
    let there: i64 = ask(&connections.speaker, sql).await.ok()?.parse().ok()?;
    // The server's time is from between the two readings here, so the time of the query counts as no difference.
    let apart = if there < before { there - before } else { (there - now()).max(0) };
    if apart.abs() > CLOCKS_APART {
        let detail = format!(
            "the server's clock is {} s {} this machine's, by which tokens expire",
            apart.abs() / 1000,
            match apart {
                ..0 => "behind",
                _ => "ahead of",
            }
        );
        report.hint(
            "clock",
            detail,
            "Let both machines take their time from the same source (timedatectl set-ntp true).",
        );
    }
    Some(())
}

/// Whether a notification of one session reaches another.
pub async fn notifications(connections: &mut Connections, report: &mut Report) -> Option<()> {
    let Connections { listener, speaker, inbox, .. } = connections;
    match hearing::hears(&hearing::channel(), (listener, inbox), speaker, NOTIFICATION_TIME).await {
        Ok(true) => {
            report.right("notify", "a notification of one session reaches another");
            return Some(());
        }
        Ok(false) => {}
        Err(error) => {
            failed(report, "notify", &error);
            return None;
        }
    }
    report.wrong(
        "notify",
        "a notification of one session did not reach another",
        "Something between the proxy and Postgres hides notifications: connect directly. Or the queue is full: look for \
         old transactions in pg_stat_activity.",
    );
    None
}
