//! Connections to Postgres: how they are made, and what can go wrong with them. What is asked is in `upstream` and `reads`.

use std::future::{Future, poll_fn};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::ClientConfig;

use crate::inbox::{self, Inbox, inbox};
use crate::metrics::Metrics;
use crate::settings;
use crate::tls::{TlsError, trust};

/// The longest to wait for an answer: a connection that gives none is broken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the proxy could not get from the database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The position is older than what is retained.
    #[error("the position is older than what is retained")]
    Expired,
    /// The position is one of a tick that the log does not have.
    #[error("the position is one of a tick that was lost")]
    Lost,
    /// Postgres, or the way to it, says no.
    #[error("{}", describe(.0))]
    Postgres(#[source] tokio_postgres::Error),
    /// No answer came in time.
    #[error("no answer from the database")]
    Timeout,
    /// The connection closed.
    #[error("the connection to the database closed")]
    Closed,
    /// The database answered what an extension of this version does not.
    #[error("unexpected answer from the extension: {0}")]
    Contract(&'static str),
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code() {
            Some(code) if code.code() == "TI001" => Self::Expired,
            Some(code) if code.code() == "TI002" => Self::Lost,
            // A row that can't be read is gone for its readers. They are told so, instead of being let wait for it.
            Some(code) if *code == SqlState::DATA_CORRUPTED => {
                tracing::error!(error = describe(&error), "the log has a row that can't be read");
                Self::Expired
            }
            _ if error.is_closed() => Self::Closed,
            _ => Self::Postgres(error),
        }
    }
}

impl DatabaseError {
    /// Whether the database has no extension.
    pub fn no_extension(&self) -> bool {
        matches!(self, Self::Postgres(error) if error.code() == Some(&SqlState::INVALID_SCHEMA_NAME))
    }
}

/// An error in words for an operator. Messages of Postgres never contain the password.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) if [SqlState::INVALID_SCHEMA_NAME, SqlState::UNDEFINED_FUNCTION].contains(db.code()) => {
            format!("{} (is the extension tidings created in this database, and of this version?)", db.message())
        }
        Some(db) => db.message().to_string(),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// Where the database is.
#[derive(Clone, Debug)]
pub struct Database {
    config: Config,
    /// Whom to trust, if the connection is to be over TLS.
    tls: Option<ClientConfig>,
}

/// The text says nothing about where the database is. It is not repeated: there may be a password in it.
#[derive(Debug, thiserror::Error)]
pub enum BadUrl {
    /// It doesn't parse.
    #[error("neither a URL (postgresql://user@host/database) nor a connection string (host=… dbname=…)")]
    Syntax,
    /// It asks for TLS, and there is nobody to trust.
    #[error("with sslmode=require, but {0}")]
    Tls(#[from] TlsError),
}

impl Database {
    /// Takes a URL or a connection string of keys and values. With `sslmode=require` the connection is over TLS, to a server
    /// that the authorities in the file `ca` vouch for, or else those of the system.
    pub fn parse(text: &str, ca: Option<&Path>) -> Result<Self, BadUrl> {
        let mut config: Config = text.parse().map_err(|_| BadUrl::Syntax)?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(BadUrl::Syntax);
        }
        let tls = if config.get_ssl_mode() == SslMode::Require { Some(trust(ca)?) } else { None };
        if config.get_application_name().is_none() {
            config.application_name("tidings-proxy");
        }
        // A dead peer is noticed within some 30 seconds instead of hours.
        config
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(Duration::from_secs(30));
        }
        Ok(Self { config, tls })
    }

    /// Connects, and sets what the statements to come depend on before there is any. Notifications come through the inbox, which
    /// closes when the connection does.
    pub async fn connect(&self, metrics: Arc<Metrics>) -> Result<(Client, Inbox), DatabaseError> {
        let connecting = async {
            match self.tls.clone() {
                Some(tls) => {
                    let (client, connection) = self.config.connect(MakeRustlsConnect::new(tls)).await?;
                    Ok((client, settings_for(&connection), drive(connection, metrics)))
                }
                None => {
                    let (client, connection) = self.config.connect(NoTls).await?;
                    Ok((client, settings_for(&connection), drive(connection, metrics)))
                }
            }
        };
        let (client, settings, notifications) =
            timeout(CONNECT_TIMEOUT, answer(connecting)).await.unwrap_or(Err(DatabaseError::Timeout))?;
        answer(client.batch_execute(&settings)).await?;
        Ok((client, notifications))
    }
}

fn settings_for<S: AsyncRead + AsyncWrite + Unpin>(connection: &Connection<Socket, S>) -> String {
    settings::statements(connection.parameter("server_version"))
}

/// Keeps a connection going in a task of its own, until it breaks or its client is dropped.
fn drive<S>(mut connection: Connection<Socket, S>, metrics: Arc<Metrics>) -> Inbox
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (outlet, inbox) = inbox(inbox::LIMIT, metrics);
    tokio::spawn(async move {
        loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(notification))) => outlet.push(notification),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::debug!(error = describe(&error), "database connection broke");
                    return;
                }
                None => return,
            }
        }
    });
    inbox
}

/// Waits for an answer, but not for ever.
pub async fn answer<T>(question: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, DatabaseError> {
    timeout(ANSWER_TIMEOUT, question).await.map_err(|_| DatabaseError::Timeout)?.map_err(DatabaseError::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_connection_strings_are_taken_and_nothing_of_a_bad_one_is_repeated() {
        for good in [
            "postgresql://u:p@localhost:5433/db",
            "host=/run/postgresql user=u dbname=db",
            "postgres://u@/db?host=/tmp",
        ] {
            assert!(Database::parse(good, None).is_ok(), "{good}");
        }
        for bad in ["", "postgresql://u:secret@host:port/db", "secret", "mysql://u:secret@h/db", "dbname=secret"] {
            let error = Database::parse(bad, None).unwrap_err();
            assert!(matches!(error, BadUrl::Syntax), "{bad}");
            assert!(!error.to_string().contains("secret"));
        }
        let nobody = Some(Path::new("/nonexistent"));
        assert!(matches!(Database::parse("host=h sslmode=require", nobody), Err(BadUrl::Tls(_))));
    }
}
