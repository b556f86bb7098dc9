//! Plain SQL as the person who sends the request: each request is a transaction with the role and the claims of its
//! token.

use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, IsolationLevel, NoTls};

use crate::session::Claims;

/// Connections at the same time. A statement here takes a millisecond, so this serves thousands of requests a second.
const CONNECTIONS: usize = 8;

/// A database, and the connections to it that are free.
pub struct Database {
    config: Config,
    idle: Mutex<Vec<Client>>,
    permits: Arc<Semaphore>,
}

/// A statement with its parameters, all of type text, that returns one JSON text or no row.
pub struct Statement<'a> {
    /// The statement.
    pub sql: &'a str,
    /// Its parameters.
    pub params: &'a [&'a str],
    /// Whether it only reads: then everything that it reads is from one snapshot.
    pub reads: bool,
}

impl Database {
    /// A database by its URL; connects at the first request.
    pub fn new(url: &str) -> Result<Self, tokio_postgres::Error> {
        let mut config: Config = url.parse()?;
        config.application_name("teamboard");
        Ok(Self { config, idle: Mutex::default(), permits: Arc::new(Semaphore::new(CONNECTIONS)) })
    }

    /// Runs a statement as `who`, or as the backend itself; returns its result once it is committed.
    pub async fn ask(
        &self,
        who: Option<&Claims>,
        statement: &Statement<'_>,
    ) -> Result<Option<String>, tokio_postgres::Error> {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let mut client = self.connection().await?;
        let answer = transact(&mut client, who, statement).await;
        if !client.is_closed() {
            self.idle.lock().await.push(client);
        }
        answer
    }

    async fn connection(&self) -> Result<Client, tokio_postgres::Error> {
        loop {
            match self.idle.lock().await.pop() {
                Some(client) if client.is_closed() => {}
                Some(client) => return Ok(client),
                None => break,
            }
        }
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("teamboard: database connection: {error}");
            }
        });
        Ok(client)
    }
}

async fn transact(
    client: &mut Client,
    who: Option<&Claims>,
    statement: &Statement<'_>,
) -> Result<Option<String>, tokio_postgres::Error> {
    let level = if statement.reads { IsolationLevel::RepeatableRead } else { IsolationLevel::ReadCommitted };
    let transaction = client.build_transaction().isolation_level(level).read_only(statement.reads).start().await?;
    if let Some(claims) = who {
        let json = serde_json::json!({ "role": claims.role, "sub": claims.sub }).to_string();
        // The claims before the role, because afterwards the session has the other role's rights.
        let set = "SELECT set_config('request.jwt.claims', $1, true), set_config('role', $2, true)";
        transaction.query_typed(set, &[(&json, Type::TEXT), (&claims.role, Type::TEXT)]).await?;
    }
    let params: Vec<(&(dyn ToSql + Sync), Type)> =
        statement.params.iter().map(|param| (param as &(dyn ToSql + Sync), Type::TEXT)).collect();
    let rows = transaction.query_typed(statement.sql, &params).await?;
    let answer = rows.first().map(|row| row.try_get(0)).transpose()?.flatten();
    transaction.commit().await?;
    Ok(answer)
}
