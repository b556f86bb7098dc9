//! Connections to Postgres: how they are made, and what can go wrong with them. `connection_string` says where the
//! database is; `log` and `reads` have the queries.

use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::ClientConfig;

use crate::certificates::TlsError;
use crate::metrics::Metrics;
use crate::upstream::connection_string::{Roots, Security, Target};
use crate::upstream::dialect::{Installed, OLD_STANDBY};
use crate::upstream::inbox::{self, Inbox, inbox};
use crate::upstream::one_server::{Followed, Server};
use crate::upstream::parameters::BadUrl;

use crate::upstream::password::{PasswordError, Passwords};
use crate::upstream::presence::{Presence, Seat};
use crate::upstream::settings;
use crate::upstream::tls;

/// The longest wait for an answer: a connection that gives none is broken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the database did not give what the proxy asked for.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The position is older than what is retained.
    #[error("the position is older than what is retained")]
    Expired,
    /// The log does not have the tick of the position.
    #[error("the tick of the position was lost")]
    Lost,
    /// Postgres, or the connection to it, reports an error.
    #[error("{}", describe(.0))]
    Postgres(#[source] tokio_postgres::Error),
    /// A connection can't be made.
    #[error("can't connect to Postgres at {to}: {why}")]
    Connect {
        /// The hosts.
        to: String,
        /// Why not.
        why: Box<DatabaseError>,
    },
    /// Only other servers than the one that the proxy follows can be reached.
    #[error("the server that the proxy follows can't be reached, only another one")]
    OtherServer,
    /// No answer came in time.
    #[error("no answer from the database")]
    Timeout,
    /// The connection closed.
    #[error("the connection to the database closed")]
    Closed,
    /// A statement needs the database without other sessions.
    #[error("the database is being dropped, renamed or copied: the proxy has left it for a moment")]
    Leave,
    /// The password can't be read.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// Certificates or keys towards Postgres can't be used.
    #[error("{0}")]
    Tls(String),
    /// The server is a standby with SQL that can't be followed there.
    #[error("{OLD_STANDBY}")]
    OldStandby,
    /// The extension's answer does not fit its version.
    #[error("unexpected answer from the extension: {0}")]
    Contract(&'static str),
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code() {
            Some(code) if code.code() == "TI001" => Self::Expired,
            Some(code) if code.code() == "TI002" => Self::Lost,
            // Readers can't get a row that can't be read. They get an error, instead of waiting for it.
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
    /// The error itself, also if it came while connecting.
    pub fn cause(&self) -> &Self {
        match self {
            Self::Connect { why, .. } => why,
            error => error,
        }
    }

    /// The SQLSTATE, if Postgres has sent one.
    pub fn code(&self) -> Option<&SqlState> {
        match self.cause() {
            Self::Postgres(error) => error.code(),
            _ => None,
        }
    }

    /// Whether the database will never accept the input: a value out of range, too long, or with characters that its
    /// encoding lacks. Only the client that sent the value is affected.
    pub fn blames_the_input(&self) -> bool {
        let class = |code: &SqlState| ["22", "54"].iter().any(|class| code.code().starts_with(class));
        self.code().is_some_and(class)
    }

    /// Whether a query, or the rights of who runs it, are to blame: it will fail again. Otherwise the server or the way
    /// to it is, for the moment.
    pub fn blames_the_query(&self) -> bool {
        let passing =
            |code: &SqlState| ["08", "40", "53", "57", "58", "XX"].iter().any(|class| code.code().starts_with(class));
        match self.cause() {
            Self::Postgres(error) => {
                error.code().is_some_and(|code| *code == SqlState::QUERY_CANCELED || !passing(code))
            }
            Self::Contract(_) => true,
            _ => false,
        }
    }

    /// Whether the database has no extension.
    pub fn no_extension(&self) -> bool {
        self.code() == Some(&SqlState::INVALID_SCHEMA_NAME)
    }
}

/// An error in words for an operator. Postgres never puts the password into its messages.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) if *db.code() == SqlState::INVALID_SCHEMA_NAME => {
            format!("{} (run CREATE EXTENSION tidings in this database, or name another one in the URL)", db.message())
        }
        Some(db) if *db.code() == SqlState::UNDEFINED_FUNCTION => {
            format!("{} (is the extension older than this proxy? ALTER EXTENSION tidings UPDATE)", db.message())
        }
        Some(db) if *db.code() == SqlState::UNDEFINED_DATABASE => {
            format!("{} (correct the database's name in the URL, or create it)", db.message())
        }
        Some(db) if *db.code() == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE && db.hint().is_some() => {
            format!("{} ({})", db.message(), db.hint().unwrap_or_default())
        }
        Some(db) if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE && db.message().contains(" tidings") => {
            format!("{} (does its role lack SELECT tidings.grant_proxy('…')?)", db.message())
        }
        Some(db) if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE && db.message().contains("for function") => {
            format!("{} (did its role get its rights before an upgrade? SELECT tidings.grant_proxy('…'))", db.message())
        }
        Some(db) if pooled(db.code()) => {
            format!("{} (is there a pool in transaction mode on the way? connect to Postgres directly)", db.message())
        }
        Some(db) => db.message().to_string(),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// Whether an error comes from a pool that lends its sessions by transaction: a prepared statement belongs to one
/// session, so it is missing in the next one, or exists there already.
fn pooled(code: &SqlState) -> bool {
    [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT].contains(code)
}

/// Where the database is, and the certificates for it. Clones share the certificates, so all of them see new ones.
#[derive(Clone, Debug)]
pub struct Database {
    target: Arc<Target>,
    passwords: Passwords,
    /// The authorities to trust unless the connection string names others.
    authorities: Option<PathBuf>,
    tls: Arc<RwLock<Option<ClientConfig>>>,
    presence: Presence,
    followed: Followed,
    installed: Installed,
}

impl Database {
    /// Parses a URL or a connection string. If it asks for TLS, the authorities to trust are those that the string
    /// names, otherwise those in the file `authorities`, otherwise the system's.
    pub fn parse(text: &str, authorities: Option<&Path>) -> Result<Self, BadUrl> {
        let target = Target::parse(text)?;
        let passwords = Passwords::new(target.passfile.clone(), |name| std::env::var(name).ok());
        let authorities = authorities.map(Path::to_owned);
        let (target, tls) = (Arc::new(target), Arc::default());
        let (presence, followed, installed) = (Presence::default(), Followed::default(), Installed::default());
        let database = Self { target, passwords, authorities, tls, presence, followed, installed };
        database.read_certificates()?;
        Ok(database)
    }

    /// Takes the password from a file, which is read at each connection.
    pub fn with_password_file(mut self, file: PathBuf) -> Result<Self, PasswordError> {
        self.passwords.file = Some(file);
        self.passwords.fill(&self.target.config)?;
        Ok(self)
    }

    /// Reads certificates again, for new connections, and checks that there is a password. `None` if there are no such
    /// files; on an error the old certificates stay in use.
    pub fn reload(&self) -> Option<Result<(), DatabaseError>> {
        if self.target.security.is_none() && self.passwords.file.is_none() {
            return None;
        }
        let read = self.read_certificates().map_err(|error| DatabaseError::Tls(error.to_string()));
        Some(read.and_then(|()| Ok(self.passwords.fill(&self.target.config).map(|_| ())?)))
    }

    fn read_certificates(&self) -> Result<(), TlsError> {
        if let Some(Security { check_name, roots, identity }) = &self.target.security {
            let roots = match roots {
                Roots::Default => self.authorities.as_deref(),
                Roots::System => None,
                Roots::File(file) => Some(&**file),
            };
            let identity = identity.as_ref().map(|(certificate, key)| (&**certificate, &**key));
            *self.tls.write() = Some(tls::client(roots, *check_name, identity)?);
        }
        Ok(())
    }

    /// The host to which the password would be sent over a network in plain text. SCRAM does not send the password
    /// itself, but the server chooses the method, and everything after the login can be read and changed on the way.
    pub fn sends_password_in_plain_text(&self) -> Option<String> {
        let host = self.target.plain_text_host()?;
        let config = self.passwords.fill(&self.target.config).ok()?;
        config.get_password().is_some().then_some(host)
    }

    /// Connects, and first sets what later statements depend on. Notifications go to the inbox, which closes with the
    /// connection.
    pub async fn connect(&self, metrics: Arc<Metrics>) -> Result<(Client, Inbox), DatabaseError> {
        let connected = self.try_to_connect(&self.target.config, metrics).await;
        connected.map_err(|why| self.names_place(why))
    }

    /// Connects for the upstream, which follows the server from now on.
    pub async fn connect_and_follow(&self, metrics: Arc<Metrics>) -> Result<(Client, Inbox), DatabaseError> {
        let (client, inbox) = self.connect(metrics).await?;
        self.followed.set(server_of(&client).await?);
        Ok((client, inbox))
    }

    /// The SQL of the extension, as the upstream knows it.
    pub fn installed(&self) -> &Installed {
        &self.installed
    }

    /// Connects to the server that the upstream follows. Before the upstream has one, to any. Tries one host after the
    /// other, and once more when the upstream follows one of the servers that were reached.
    pub async fn connect_to_followed(&self, metrics: Arc<Metrics>) -> Result<(Client, Server), DatabaseError> {
        let (mut others, mut failed) = (Vec::new(), DatabaseError::Closed);
        for is_last in [false, true] {
            for host in &self.target.alone {
                match self.connect_to(host, metrics.clone()).await {
                    Ok((client, server)) if self.followed.is(server) => return Ok((client, server)),
                    Ok((_, server)) => others.push(server),
                    Err(error) => failed = error,
                }
            }
            if others.is_empty() || is_last {
                break;
            }
            self.followed.becomes_one_of(&others).await;
        }
        Err(self.names_place(if others.is_empty() { failed } else { DatabaseError::OtherServer }))
    }

    async fn connect_to(&self, host: &Config, metrics: Arc<Metrics>) -> Result<(Client, Server), DatabaseError> {
        let (client, _) = self.try_to_connect(host, metrics).await?;
        let server = server_of(&client).await?;
        Ok((client, server))
    }

    /// Whether access may be checked at this server.
    pub fn is_followed(&self, server: Server) -> bool {
        self.followed.is(server)
    }

    fn names_place(&self, why: DatabaseError) -> DatabaseError {
        DatabaseError::Connect { to: self.place(), why: Box::new(why) }
    }

    /// The same database with another login: its connections leave it together with the others, and lead to the same
    /// server.
    pub fn beside(mut self, other: &Self) -> Self {
        self.presence = other.presence.clone();
        self.followed = other.followed.clone();
        self.installed = other.installed.clone();
        self
    }

    /// Closes all connections, and makes no new ones for a moment.
    pub fn leave(&self) {
        self.presence.leave();
    }

    async fn try_to_connect(&self, config: &Config, metrics: Arc<Metrics>) -> Result<(Client, Inbox), DatabaseError> {
        if self.presence.is_away() {
            return Err(DatabaseError::Leave);
        }
        let seat = self.presence.seat();
        let config =
            timeout(CONNECT_TIMEOUT, self.filled(config.clone())).await.unwrap_or(Err(DatabaseError::Timeout))?;
        let tls = self.tls.read().clone();
        let connecting = async {
            match tls {
                Some(tls) => {
                    let (client, connection) = config.connect(MakeRustlsConnect::new(tls)).await?;
                    Ok((client, settings_for(&connection), drive(connection, seat, metrics)))
                }
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    Ok((client, settings_for(&connection), drive(connection, seat, metrics)))
                }
            }
        };
        let (client, settings, notifications) =
            timeout(CONNECT_TIMEOUT, in_time(connecting)).await.unwrap_or(Err(DatabaseError::Timeout))?;
        in_time(client.batch_execute(&settings)).await?;
        Ok((client, notifications))
    }

    /// The configuration with the current password. The file is not read in a thread that serves streams.
    async fn filled(&self, config: Config) -> Result<Config, DatabaseError> {
        let passwords = self.passwords.clone();
        let filled = spawn_blocking(move || passwords.fill(&config)).await;
        Ok(filled.map_err(|_| DatabaseError::Closed)??)
    }

    /// The hosts with their ports.
    pub fn place(&self) -> String {
        self.target.place()
    }

    /// The role in the connection string, if it names one.
    pub fn login(&self) -> Option<&str> {
        self.target.config.get_user()
    }

    /// Asks the server to cancel the client's statement.
    pub async fn cancel(&self, client: &Client) -> Result<(), DatabaseError> {
        let (token, tls) = (client.cancel_token(), self.tls.read().clone());
        match tls {
            Some(tls) => token.cancel_query(MakeRustlsConnect::new(tls)).await?,
            None => token.cancel_query(NoTls).await?,
        }
        Ok(())
    }
}

/// The server at the other end of a connection.
async fn server_of(client: &Client) -> Result<Server, DatabaseError> {
    let rows = in_time(client.query_typed(Server::STARTED, &[])).await?;
    let row = rows.first().ok_or(DatabaseError::Contract("no row about the server"))?;
    Ok(Server::started_at(row.try_get(0)?))
}

fn settings_for<S: AsyncRead + AsyncWrite + Unpin>(connection: &Connection<Socket, S>) -> String {
    settings::statements(connection.parameter("server_version"))
}

/// Drives a connection in its own task, until it breaks, its client is dropped, or it has to leave the database.
fn drive<S>(mut connection: Connection<Socket, S>, mut seat: Seat, metrics: Arc<Metrics>) -> Inbox
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (outlet, inbox) = inbox(inbox::LIMIT, metrics);
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = poll_fn(|cx| connection.poll_message(cx)) => message,
                () = seat.left() => return,
            };
            match message {
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

/// Waits for an answer, but not longer than `ANSWER_TIMEOUT`.
pub async fn in_time<T>(question: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, DatabaseError> {
    timeout(ANSWER_TIMEOUT, question).await.map_err(|_| DatabaseError::Timeout)?.map_err(DatabaseError::from)
}
