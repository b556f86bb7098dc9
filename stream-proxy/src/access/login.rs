//! The roles that the proxy logs in with, and the power that they must not have. A rule's code can't leave its
//! subscriber's role. If it ever finds a way, it must not be able to become a superuser.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::types::Type;

use crate::metrics::Metrics;
use crate::upstream::database::{Database, DatabaseError, in_time};

/// How long to wait before the next attempt to check.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why access is refused to everyone, for the log.
pub const TOO_POWERFUL: &str =
    "a database role of the proxy is a superuser or can become one: use a role with tidings.grant_proxy()";

/// A login of the proxy that can become a role that it must not have.
#[derive(Debug, thiserror::Error)]
#[error("the proxy's database role {login} {is} {role}, which is a superuser or can become one: give the proxy its own role with \
         tidings.grant_proxy(), and make it a member only of the roles that tokens name", is = if login == role { "is" } else { "can become" })]
pub struct TooPowerful {
    login: String,
    role: String,
}

/// A query without its parentheses that finds the roles `r` that are superusers, or can make themselves superuser, and
/// that a login `l` of the proxy is a member of, directly or through other roles. A role can make itself superuser
/// through files and programs of the server, or (before PostgreSQL 16) by granting itself these rights. `others` is a
/// text[] of the proxy's other logins.
pub fn too_powerful(others: &str) -> String {
    format!(
        "SELECT FROM pg_catalog.pg_roles l JOIN pg_catalog.pg_roles r ON pg_catalog.pg_has_role(l.oid, r.oid, 'MEMBER')
         WHERE (l.rolname OPERATOR(pg_catalog.=) session_user OR l.rolname::pg_catalog.text OPERATOR(pg_catalog.=) ANY ({others}))
           AND (r.rolsuper
                OR r.rolcreaterole AND pg_catalog.current_setting('server_version_num')::pg_catalog.int4 OPERATOR(pg_catalog.<) 160000
                OR r.rolname OPERATOR(pg_catalog.=) ANY ('{{pg_execute_server_program,pg_write_server_files,pg_read_server_files}}'))"
    )
}

/// A query for the first of them: the names of `l` and `r`.
fn first_too_powerful() -> String {
    let query = too_powerful("$1");
    format!(
        "SELECT l.rolname::pg_catalog.text, r.rolname::pg_catalog.text {} ORDER BY r.rolsuper DESC, 1, 2 LIMIT 1",
        query.trim_start_matches("SELECT ")
    )
}

/// The roles whose rights the login inherits. The proxy does not need rights beyond those of `tidings.grant_proxy()`,
/// but someone who steals its password could use them.
const OWN_RIGHTS: &str = "SELECT l.rolname::pg_catalog.text, pg_catalog.string_agg(r.rolname, ', ' ORDER BY r.rolname)
    FROM pg_catalog.pg_roles l JOIN pg_catalog.pg_roles r
        ON r.oid OPERATOR(pg_catalog.<>) l.oid AND pg_catalog.pg_has_role(l.oid, r.oid, 'USAGE')
    WHERE l.rolname OPERATOR(pg_catalog.=) session_user
    GROUP BY l.rolname";

/// The proxy's logins, to be checked once.
#[derive(Debug)]
pub struct Logins {
    /// The database of each login.
    pub databases: [Option<Database>; 2],
    /// For the connections' metrics.
    pub metrics: Arc<Metrics>,
}

impl Logins {
    /// Checks the rights of each login as soon as its database can be reached. Warns of unneeded rights, and returns
    /// the first login that is too powerful. After that, each access check includes this one.
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

/// The first role that is too powerful among those that the login has or can become. Warns of rights that it does not
/// need.
pub async fn look(database: &Database, metrics: &Arc<Metrics>) -> Result<Option<TooPowerful>, DatabaseError> {
    let (client, _) = database.connect(metrics.clone()).await?;
    let others: [&str; 0] = [];
    let rows = in_time(client.query_typed(&first_too_powerful(), &[(&&others[..], Type::TEXT_ARRAY)])).await?;
    if let Some(row) = rows.first() {
        return Ok(Some(TooPowerful { login: row.try_get(0)?, role: row.try_get(1)? }));
    }
    for row in in_time(client.query_typed(OWN_RIGHTS, &[])).await? {
        let (login, roles): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        tracing::warn!(
            login,
            roles,
            "the proxy's database role inherits the rights of these roles: make it NOINHERIT, or grant them WITH INHERIT FALSE"
        );
    }
    Ok(None)
}
