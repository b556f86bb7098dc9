//! The requests of the page. Each is one SQL statement, and the database decides what it may read and change.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, SET_COOKIE};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use tokio_postgres::error::SqlState;

use crate::assets;
use crate::database::{Database, Statement};
use crate::session::{self, Claims, Keys};

/// The longest request body.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What the requests need.
pub struct App {
    /// The database.
    pub database: Database,
    /// Signs people in.
    pub keys: Keys,
    /// The address from which the page reads its streams.
    pub events_url: String,
}

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("there is nothing here for you")]
    NotFound,
    #[error("sign in first")]
    SignedOut,
    #[error("send JSON, with Content-Type: application/json")]
    NotJson,
    #[error("no tokens can be made: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
    #[error("{}", .0.as_db_error().map_or("the database does not answer", |error| error.message()))]
    Database(#[from] tokio_postgres::Error),
}

impl Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::SignedOut => StatusCode::UNAUTHORIZED,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Token(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Database(error) => match error.code() {
                Some(&SqlState::INSUFFICIENT_PRIVILEGE) => StatusCode::FORBIDDEN,
                Some(&SqlState::UNIQUE_VIOLATION) => StatusCode::CONFLICT,
                // Data exceptions and violated constraints: the request is invalid.
                Some(code) if ["22", "23"].iter().any(|class| code.code().starts_with(class)) => {
                    StatusCode::BAD_REQUEST
                }
                _ => StatusCode::SERVICE_UNAVAILABLE,
            },
        }
    }
}

/// Answers a request.
pub async fn answer(app: &App, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let Some(path) = path.strip_prefix("/api/") else {
        return Ok(assets::answer(&path, &app.events_url));
    };
    let answer = api(app, path, request).await.unwrap_or_else(|error| {
        let status = error.status();
        if status.is_server_error() {
            eprintln!("teamboard: {path}: {error:?}");
        }
        let mut response = json(serde_json::json!({ "error": error.to_string() }).to_string());
        *response.status_mut() = status;
        response
    });
    Ok(answer)
}

async fn api(app: &App, path: &str, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Error> {
    let (head, body) = request.into_parts();
    let read = head.method == Method::GET;
    // A form of another site can't send this type, and other requests from there need a preflight, so nobody can forge
    // requests.
    if !read && !is_json(&head.headers) {
        return Err(Error::NotJson);
    }
    let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => String::from_utf8(body.to_bytes().into()).map_err(|_| Error::NotJson)?,
        Err(_) => return Err(Error::NotJson),
    };
    let path: Vec<&str> = path.split('/').collect();
    match (&head.method, path.as_slice()) {
        (&Method::GET, ["config"]) => {
            let sql = "SELECT json_agg(p ORDER BY p.id)::text FROM people p";
            let people = app.database.ask(None, &Statement { sql, params: &[], reads: true }).await?;
            let people: serde_json::Value =
                people.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            let me = app.keys.signed_in(&head.headers).and_then(|claims| claims.sub.parse::<i64>().ok());
            Ok(json(serde_json::json!({ "events": app.events_url, "people": people, "me": me }).to_string()))
        }
        (&Method::POST, ["session"]) => {
            let sql = "SELECT to_json(p.id)::text FROM people p WHERE p.id = ($1::json ->> 'person')::bigint";
            let statement = Statement { sql, params: &[&body], reads: true };
            let person = app.database.ask(None, &statement).await?.ok_or(Error::NotFound)?;
            Ok(with_cookie(json("{}".into()), &app.keys.sign_in(&person)?))
        }
        (&Method::DELETE, ["session"]) => Ok(with_cookie(json("{}".into()), &session::sign_out())),
        (method, path) => {
            let who = app.keys.signed_in(&head.headers).ok_or(Error::SignedOut)?;
            let answer = run(app, &who, method, path, &body).await;
            answer?.map(json).ok_or(Error::NotFound)
        }
    }
}

/// The possible requests, and their SQL.
async fn run(app: &App, who: &Claims, method: &Method, path: &[&str], body: &str) -> Result<Option<String>, Error> {
    let (sql, params): (&str, &[&str]) = match (method.as_str(), path) {
        ("POST", ["boards"]) => {
            ("INSERT INTO boards (title) VALUES ($1::json ->> 'title') RETURNING to_json(boards)::text", &[body])
        }
        ("GET", ["boards", id]) => ("SELECT to_json(b)::text FROM boards b WHERE b.id = $1::bigint", &[id]),
        ("PATCH", ["boards", id]) => (
            "UPDATE boards SET title = $2::json ->> 'title' WHERE id = $1::bigint RETURNING to_json(boards)::text",
            &[id, body],
        ),
        ("DELETE", ["boards", id]) => ("DELETE FROM boards WHERE id = $1::bigint RETURNING '{}'", &[id]),
        ("GET", ["boards", id, "present"]) => (
            "SELECT (SELECT coalesce(json_agg(DISTINCT p.person_id), '[]') FROM present p WHERE p.board_id = b.id)::text
             FROM boards b WHERE b.id = $1::bigint",
            &[id],
        ),
        ("POST", ["boards", id, "members"]) => (
            "INSERT INTO board_members (board_id, person_id) VALUES ($1::bigint, ($2::json ->> 'person')::bigint)
             RETURNING to_json(board_members)::text",
            &[id, body],
        ),
        ("DELETE", ["boards", id, "members", person]) => (
            "DELETE FROM board_members WHERE board_id = $1::bigint AND person_id = $2::bigint RETURNING '{}'",
            &[id, person],
        ),
        ("POST", ["boards", id, "notes"]) => (
            "INSERT INTO board_items (id, board_id, body, colour, x, y)
             SELECT n.id, $1::bigint, n.body, n.colour, n.x, n.y
             FROM json_to_record($2::json) AS n (id uuid, body text, colour text, x integer, y integer)
             RETURNING to_json(board_items)::text",
            &[id, body],
        ),
        ("GET", ["notes", id]) => ("SELECT to_json(i)::text FROM board_items i WHERE i.id = $1::uuid", &[id]),
        ("PATCH", ["notes", id]) => (
            "UPDATE board_items i SET body = coalesce(n.body, i.body), colour = coalesce(n.colour, i.colour),
                                      x = coalesce(n.x, i.x), y = coalesce(n.y, i.y)
             FROM json_to_record($2::json) AS n (body text, colour text, x integer, y integer)
             WHERE i.id = $1::uuid RETURNING to_json(i)::text",
            &[id, body],
        ),
        ("DELETE", ["notes", id]) => ("DELETE FROM board_items WHERE id = $1::uuid RETURNING '{}'", &[id]),
        _ => return Err(Error::NotFound),
    };
    Ok(app.database.ask(Some(who), &Statement { sql, params, reads: method == Method::GET }).await?)
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}

fn json(text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn with_cookie(mut response: Response<Full<Bytes>>, cookie: &str) -> Response<Full<Bytes>> {
    let cookie = HeaderValue::from_str(cookie).expect("a token and a person's id are ASCII");
    response.headers_mut().insert(SET_COOKIE, cookie);
    response
}
