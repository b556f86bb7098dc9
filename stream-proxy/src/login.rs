//! The roles that the proxy logs in with, and what they must not be able to do. A rule's code can't leave its
//! subscriber's role; should it ever find a way, it must not come to be a superuser.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::types::Type;

use crate::database::{Database, DatabaseError, answer};
use crate::metrics::Metrics;

/// How long to wait before another attempt to look.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why nobody is let in, for the log.
pub const TOO_POWERFUL: &str =
    "a database role of the proxy is a superuser or can become one: use a role with tidings.grant_proxy()";

/// A role of the proxy that can become what it must not be.
#[derive(Debug, thiserror::Error)]
#[error("the proxy's database role {login} {is} {role}, which is a superuser or as good as one: give the proxy its own role with \
         tidings.grant_proxy(), and make it a member only of the roles that tokens name", is = if login == role { "is" } else { "can become" })]
pub struct TooPowerful {
    login: String,
    role: String,
}

/// A query without its parentheses that finds the roles `r` that a login `l` of the proxy is a member of, through
/// whatever others, and that are superusers or can make themselves one: by files and programs of the server, or (before
/// PostgreSQL 16) by granting themselves that. `others` is a text[] of the proxy's logins beside the one that asks.
pub fn too_powerful(others: &str) -> String {
    format!(
        "SELECT FROM pg_catalog.pg_roles l JOIN pg_catalog.pg_roles r ON pg_catalog.pg_has_role(l.oid, r.oid, 'MEMBER')
         WHERE (l.rolname OPERATOR(pg_catalog.=) session_user OR l.rolname::pg_catalog.text OPERATOR(pg_catalog.=) ANY ({others}))
           AND (r.rolsuper
                OR r.rolcreaterole AND pg_catalog.current_setting('server_version_num')::pg_catalog.int4 OPERATOR(pg_catalog.<) 160000
                OR r.rolname OPERATOR(pg_catalog.=) ANY ('{{pg_execute_server_program,pg_write_server_files,pg_read_server_files}}'))"
    )
}

/// The first of them, as the names of `l` and `r`.
fn first_too_powerful() -> String {
    let query = too_powerful("$1");
    format!(
        "SELECT l.rolname::pg_catalog.text, r.rolname::pg_catalog.text {} ORDER BY r.rolsuper DESC, 1, 2 LIMIT 1",
        query.trim_start_matches("SELECT ")
    )
}

/// The roles whose rights the login has without taking them. Rights of its own, beside those of
/// `tidings.grant_proxy()`, are of no use to the proxy and of much to whoever gets hold of its password.
const OWN_RIGHTS: &str = "SELECT l.rolname::pg_catalog.text, pg_catalog.string_agg(r.rolname, ', ' ORDER BY r.rolname)
    FROM pg_catalog.pg_roles l JOIN pg_catalog.pg_roles r
        ON r.oid OPERATOR(pg_catalog.<>) l.oid AND pg_catalog.pg_has_role(l.oid, r.oid, 'USAGE')
    WHERE l.rolname OPERATOR(pg_catalog.=) session_user
    GROUP BY l.rolname";

/// The proxy's logins, to be looked at once.
#[derive(Debug)]
pub struct Logins {
    /// Where each of them logs in.
    pub databases: [Option<Database>; 2],
    /// For the connections.
    pub metrics: Arc<Metrics>,
}

impl Logins {
    /// Looks at the rights of each login as soon as its database can be asked: warns of those that are not needed, and
    /// gives back the first login that must not be. Later on that is looked at with each question about access.
    pub async fn examine(self) -> TooPowerful {
        for database in self.databases.iter().flatten() {
            loop {
                match look(database, &self.metrics).await {
                    Ok(None) => break,
                    Ok(Some(login)) => return login,
                    Err(error) => {
                        tracing::debug!(%error, "the rights of the proxy's role can't be checked yet");
                        sleep(RETRY_AFTER).await;
                    }
                }
            }
        }
        pending().await
    }
}

async fn look(database: &Database, metrics: &Arc<Metrics>) -> Result<Option<TooPowerful>, DatabaseError> {
    let (client, _) = database.connect(metrics.clone()).await?;
    let others: [&str; 0] = [];
    let rows = answer(client.query_typed(&first_too_powerful(), &[(&&others[..], Type::TEXT_ARRAY)])).await?;
    if let Some(row) = rows.first() {
        return Ok(Some(TooPowerful { login: row.try_get(0)?, role: row.try_get(1)? }));
    }
    for row in answer(client.query_typed(OWN_RIGHTS, &[])).await? {
        let (login, roles): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        tracing::warn!(
            login,
            roles,
            "the proxy's database role inherits the rights of these roles: make it NOINHERIT, or grant them WITH INHERIT FALSE"
        );
    }
    Ok(None)
}
