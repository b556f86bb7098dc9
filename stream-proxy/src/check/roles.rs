//! The roles that the proxy has and takes, and a token that names one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::access::keys::Keys;
use crate::access::login;
use crate::access::rules::NO_RULE;
use crate::access::token::Token;
use crate::check::arguments::Arguments;
use crate::check::report::Report;
use crate::check::settings::Logins;
use crate::metrics::Metrics;
use crate::upstream::database::{DatabaseError, in_time};

/// A topic that no rule matches, so that the answer is about the role alone.
const NO_TOPIC: &str = "tidings_check";

/// Rules that take longer than this keep clients waiting. A rule is ended after two seconds.
const SLOW: Duration = Duration::from_millis(200);

/// The roles that the session may take, other than its own.
const MAY_TAKE: &str = "SELECT pg_catalog.string_agg(r.rolname, ', ' ORDER BY r.rolname), session_user::pg_catalog.text
    FROM pg_catalog.pg_roles r WHERE r.rolname OPERATOR(pg_catalog.<>) session_user
      AND pg_catalog.pg_has_role(session_user, r.oid, 'MEMBER')";

/// Looks at the logins, at the roles that they may take, at the anonymous role, and at the token.
pub async fn look(wanted: &Arguments, keys: &Keys, logins: &Logins, metrics: &Arc<Metrics>, report: &mut Report) {
    for database in [Some(&logins.proxy), logins.gate.as_ref()].into_iter().flatten() {
        match login::look(database, metrics).await {
            Ok(None) => {}
            Ok(Some(login)) => {
                let fix = "CREATE ROLE tidings_proxy LOGIN NOINHERIT PASSWORD '…'; SELECT tidings.grant_proxy('tidings_proxy');";
                report.wrong("login", login.to_string(), fix);
            }
            Err(error) => report.wrong("login", error.to_string(), "Correct --gate-url."),
        }
    }
    let gate = logins.gate.as_ref().unwrap_or(&logins.proxy);
    let asking = async {
        let (client, _) = gate.connect(metrics.clone()).await?;
        let rows = in_time(client.query_typed(MAY_TAKE, &[])).await?;
        let row = rows.first().ok_or(DatabaseError::Contract("no row about roles"))?;
        let (roles, login): (Option<String>, String) = (row.try_get(0)?, row.try_get(1)?);
        Ok::<_, DatabaseError>((client, roles, login))
    };
    let (client, roles, login) = match asking.await {
        Ok(known) => known,
        Err(error) => return report.wrong("roles", error.to_string(), "Correct --gate-url."),
    };
    match roles {
        Some(roles) => report.right("roles", format!("tokens may name the roles {roles}")),
        None => report.wrong(
            "roles",
            format!("{login:?} may take no role, so every token is refused"),
            format!("CREATE ROLE web_user NOLOGIN; GRANT web_user TO \"{login}\";"),
        ),
    }
    if let Some(role) = &wanted.cli.anon_role {
        let claims = json!({ "role": role });
        if let Some(()) = check_role("--anon-role", role, &claims, (&client, &login), report).await {
            report.right("anonymous", format!("requests without a token have the role {role}"));
        }
    }
    if let Some(file) = &wanted.token_file {
        token(wanted, file, keys, (&client, &login), report).await;
    }
}

/// Whether the login may take a role.
async fn check_role(
    what: &str,
    role: &str,
    claims: &Value,
    (client, login): (&Client, &str),
    report: &mut Report,
) -> Option<()> {
    let (detail, fix) = match ask(client, claims, &[NO_TOPIC.to_owned()]).await {
        Ok(answers) => match answers.first().and_then(|(_, refused)| refused.clone()) {
            Some(reason) if reason != NO_RULE => (
                format!("{what}: {reason}: {role}"),
                format!("CREATE ROLE \"{role}\" NOLOGIN; GRANT \"{role}\" TO \"{login}\";"),
            ),
            _ => return Some(()),
        },
        Err(error) => (error.to_string(), format!("SELECT tidings.grant_gate('\"{login}\"');")),
    };
    report.wrong("roles", detail, fix);
    None
}

/// For each topic, why the claims do not allow it.
async fn ask(
    client: &Client,
    claims: &Value,
    topics: &[String],
) -> Result<Vec<(String, Option<String>)>, DatabaseError> {
    let sql = "SELECT topic, reason FROM tidings.check_subscription($1::pg_catalog.text::pg_catalog.jsonb, $2::pg_catalog.text[])";
    let claims = claims.to_string();
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&claims, Type::TEXT), (&topics, Type::TEXT_ARRAY)];
    let rows = in_time(client.query_typed(sql, &parameters)).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

fn read(file: &Path) -> std::io::Result<String> {
    match file == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(file),
    }
}

/// Whether the token is valid, its role can be taken, and the topics are allowed.
async fn token(wanted: &Arguments, file: &Path, keys: &Keys, session: (&Client, &str), report: &mut Report) {
    let text = match read(file) {
        Ok(text) => text,
        Err(error) => {
            let detail = format!("--token-file {}: {error}", file.display());
            return report.wrong("token", detail, "The file has only the token.");
        }
    };
    let Token { mut claims, .. } = match Token::verify(text.trim(), keys) {
        Ok(token) => token,
        Err(error) => {
            let (reason, fix) = (format!("the token is refused: {error}"), error.remedy());
            return report.wrong("token", reason, fix);
        }
    };
    if let (None, Some(role)) = (claims.get("role"), &wanted.cli.anon_role) {
        claims.insert("role".into(), Value::String(role.clone()));
    }
    let role = claims.get("role").and_then(Value::as_str).unwrap_or("none").to_owned();
    let claims = Value::Object(claims);
    if check_role("the token", &role, &claims, session, report).await.is_none() {
        return;
    }
    report.right("token", format!("the token is valid, and its role is {role}"));
    let start = Instant::now();
    match ask(session.0, &claims, &wanted.topics).await {
        Ok(answers) => {
            let time = start.elapsed();
            if time > SLOW {
                let detail = format!(
                    "the rules of these topics took {} ms, and each new stream waits for its own",
                    time.as_millis()
                );
                report.hint(
                    "rule",
                    detail,
                    "Look at the plans of their queries: EXPLAIN ANALYZE, as the token's role.",
                );
            }
            for (topic, refused) in answers {
                match refused {
                    None => report.right("token", format!("it may subscribe to {topic:?}")),
                    Some(reason) => report.wrong(
                        "token",
                        format!("it may not subscribe to {topic:?}: {reason}"),
                        "Look at the rule's query, and at the policies of its tables for this role.",
                    ),
                }
            }
        }
        Err(error) => report.wrong("token", error.to_string(), "Look at the rule's query."),
    }
}
