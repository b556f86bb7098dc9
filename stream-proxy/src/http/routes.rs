//! From a request to its response or its stream. `http1` and `http2` send these to the client.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Body as _;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, VARY,
};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use tidings_wire::Topic;

use crate::access::auth::Identity;
use crate::access::credentials::Credentials;
use crate::access::denied::Denied;
use crate::http::bearer::find_token;
use crate::http::body::Body;
use crate::http::cors;
use crate::http::overview;
use crate::http::problem::Problem;
use crate::http::query::{self, accepts_stream, asks_for_json, names_stream, only_token};
use crate::poll::Polled;
use crate::proxy::{NotNow, Proxy, StreamRequest, Subscription};
use crate::stream::channels::Refused;
use crate::stream::frame::{Frame, Unauthorized};

/// The methods of a stream's path.
const STREAM_METHODS: &str = "GET, HEAD, OPTIONS";

/// The methods of the other paths.
const PLAIN_METHODS: &str = "GET, HEAD";

/// The result of a request.
#[derive(Debug)]
pub enum Outcome {
    /// A complete response.
    Response(Response<Body>),
    /// A stream, and the headers it starts with.
    Stream(HeaderMap, Subscription),
}

/// What a path names.
enum Target<'a> {
    Health,
    Ready,
    Metrics,
    /// The page with the topics, and the data behind it.
    Page,
    Topics,
    /// A stream of topics, and the topic that the path names, if any.
    Events(Option<Topic>),
    /// A stream of a channel, its name still encoded.
    Channel(&'a str),
}

/// Answers a request from `peer`. Over a `reserved` connection, it answers only health checks.
pub async fn respond(proxy: &Arc<Proxy>, request: &Parts, peer: IpAddr, reserved: bool) -> Outcome {
    // Without the query, which may contain a token.
    tracing::debug!(method = %request.method, path = request.uri.path(), %peer, "request");
    let fits = head_bytes(request) <= proxy.cli.max_header_bytes;
    let target = if fits { target(proxy, request.uri.path()) } else { Err(Problem::HeadTooLarge) };
    let outcome = match target {
        Ok(Target::Health) => plain(request, || text("ok\n")),
        Ok(Target::Ready) => plain(request, || match proxy.unready() {
            None => text("ready\n"),
            Some(reason) => Problem::Unavailable(reason.to_string()).response(),
        }),
        Ok(_) if reserved => not_now(request, proxy, NotNow::OverLimit),
        Ok(Target::Metrics) => plain(request, || text(proxy.metrics.render())),
        Ok(Target::Page) => plain(request, overview::page),
        Ok(Target::Topics) => plain(request, || overview::topics(proxy)),
        Ok(Target::Events(topic)) => stream(proxy, request, peer, topic).await,
        Ok(Target::Channel(name)) => channel(proxy, request, peer, name).await,
        Err(problem) => Err(problem),
    };
    let mut outcome = outcome.unwrap_or_else(|problem| {
        if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&problem.status()) {
            // In escaped form, because it may quote the request.
            let reason = problem.to_string();
            tracing::info!(status = problem.status().as_u16(), path = request.uri.path(), %peer, ?reason, "request refused");
        }
        let metrics = &proxy.metrics;
        if problem.status().is_server_error() { &metrics.refused_5xx } else { &metrics.refused_4xx }.add(1);
        Outcome::Response(problem.response())
    });
    let headers = match &mut outcome {
        Outcome::Response(response) => response.headers_mut(),
        Outcome::Stream(headers, _) => headers,
    };
    cors::allow(&proxy.cli.cors_origin, &request.headers, headers);
    match outcome {
        Outcome::Response(response) if request.method == Method::HEAD => Outcome::Response(without_body(response)),
        outcome => outcome,
    }
}

/// The length of a request's head, as HTTP/1.1 writes it. hyper reads in larger steps and HTTP/2 counts differently, so
/// neither enforces a limit exactly.
fn head_bytes(request: &Parts) -> usize {
    let target = request.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let line = request.method.as_str().len() + target + " / HTTP/1.1\r\n".len() - 1;
    // HTTP/2 has the host in a separate field.
    let host = request.uri.authority().map_or(0, |host| "host: \r\n".len() + host.as_str().len());
    let headers = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    line + host + headers.sum::<usize>() + "\r\n".len()
}

/// The response to a HEAD request: only the head, with the length of the text. A stream has no length.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = response.body().size_hint().exact().filter(|length| *length > 0) {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response.map(|_| Body::whole(""))
}

fn target<'a>(proxy: &Proxy, path: &'a str) -> Result<Target<'a>, Problem> {
    match path {
        "/events" => return Ok(Target::Events(None)),
        "/healthz" => return Ok(Target::Health),
        "/readyz" => return Ok(Target::Ready),
        "/metrics" => return Ok(Target::Metrics),
        _ => {}
    }
    if let Some(name) = path.strip_prefix("/channels/")
        && proxy.channels.enabled()
    {
        return Ok(Target::Channel(name));
    }
    if let Some(topic) = proxy.cli.route.iter().find_map(|route| route.topic(path)) {
        let topic = topic.map_err(|error| Problem::BadRequest(error.to_string()))?;
        return Ok(Target::Events(Some(topic)));
    }
    match path {
        "/" if proxy.cli.open => Ok(Target::Page),
        "/topics" if proxy.cli.open => Ok(Target::Topics),
        _ => Err(Problem::NotFound),
    }
}

fn plain(request: &Parts, respond: impl FnOnce() -> Response<Body>) -> Result<Outcome, Problem> {
    match request.method {
        Method::GET | Method::HEAD => Ok(Outcome::Response(respond())),
        _ => Err(Problem::MethodNotAllowed(PLAIN_METHODS)),
    }
}

fn text(text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::whole(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn stream(proxy: &Arc<Proxy>, request: &Parts, peer: IpAddr, topic: Option<Topic>) -> Result<Outcome, Problem> {
    let is_json = asks_for_json(&request.headers);
    if let Some(outcome) = before_stream(request, is_json)? {
        return Ok(outcome);
    }
    if proxy.is_draining() {
        // Checked before the database is asked, because this response does not depend on access.
        return start_stream(request, proxy, || Err(NotNow::Draining));
    }
    let query = request.uri.query().unwrap_or("");
    let mut wanted = query::parse(query, &request.headers, topic, proxy.cli.max_topics)?;
    let admitted = async {
        let mut who = identify(proxy, request, peer).await?;
        proxy.access.authorize(&mut who, &mut wanted.topics).await?;
        Ok(who)
    };
    match admitted.await {
        Ok(who) if is_json => json(proxy, request, wanted, who, peer).await,
        Ok(who) => {
            if tracing::enabled!(tracing::Level::DEBUG) {
                tracing::debug!(who = who.describe(), topics = ?wanted.topics, start = ?wanted.start, %peer, "stream");
            }
            start_stream(request, proxy, || proxy.subscribe(wanted, who, peer))
        }
        Err(denied) => turn_away(request, proxy, denied),
    }
}

/// One answer in JSON, with the rows as they are read or with the events after a position.
async fn json(
    proxy: &Arc<Proxy>,
    request: &Parts,
    wanted: StreamRequest,
    who: Identity,
    peer: IpAddr,
) -> Result<Outcome, Problem> {
    let headers = HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
        (VARY, HeaderValue::from_static("Accept")),
    ]);
    let whole = |text: String| {
        let mut response = Response::new(Body::whole(text));
        *response.headers_mut() = headers.clone();
        Outcome::Response(response)
    };
    if request.method == Method::HEAD {
        return Ok(whole(String::new()));
    }
    match proxy.poll(wanted, who, peer).await {
        Ok(Polled::Answer(answer)) => Ok(whole(answer.to_string())),
        Ok(Polled::Rows(subscription)) => Ok(Outcome::Stream(headers, subscription)),
        Err(reason) => not_now(request, proxy, reason),
    }
}

async fn channel(proxy: &Arc<Proxy>, request: &Parts, peer: IpAddr, name: &str) -> Result<Outcome, Problem> {
    if let Some(outcome) = before_stream(request, false)? {
        return Ok(outcome);
    }
    only_token(request.uri.query().unwrap_or(""))?;
    let bad = |detail: &str| Problem::BadRequest(detail.into());
    let name = percent_decode_str(name).decode_utf8().map_err(|_| bad("the channel's name is not UTF-8"))?;
    proxy.channels.check(&name).map_err(|refused| match refused {
        Refused::Outside => Problem::Forbidden(format!("channel {name:?} is not served")),
        Refused::BadName => bad("a channel's name has 1 to 63 bytes and no control characters"),
        Refused::NotInDatabase => bad("the channel's name has characters that the database's encoding lacks"),
    })?;
    // Channels have no rules: every client with a valid token, or with the anonymous role, may listen to those that the
    // patterns name. Only an application decides about each.
    let admitted = async {
        let mut who = identify(proxy, request, peer).await?;
        proxy.access.authorize_channel(&mut who, &name).await?;
        Ok(who)
    };
    match admitted.await {
        Ok(who) => start_stream(request, proxy, || proxy.listen(&name, who, peer)),
        Err(denied) => turn_away(request, proxy, denied),
    }
}

async fn identify(proxy: &Proxy, request: &Parts, peer: IpAddr) -> Result<Identity, Denied> {
    let query = request.uri.query().unwrap_or("");
    let host = request.headers.get(HOST).and_then(|host| host.to_str().ok());
    let credentials = Credentials {
        token: find_token(&request.headers, query, proxy.cli.token_cookie.as_deref()),
        headers: &request.headers,
        // Over HTTP/2 the host is part of the URL.
        host: request.uri.authority().map(|authority| authority.as_str()).or(host),
        peer,
        secure: proxy.cli.tls_cert.is_some(),
        seen: proxy.hub.seen(),
    };
    proxy.access.identify(credentials).await
}

/// Responses that need no stream: to OPTIONS, to other methods, and to clients that accept neither a stream nor JSON.
fn before_stream(request: &Parts, is_json: bool) -> Result<Option<Outcome>, Problem> {
    match request.method {
        Method::GET | Method::HEAD if is_json || accepts_stream(&request.headers) => Ok(None),
        Method::GET | Method::HEAD => Err(Problem::NotAcceptable),
        Method::OPTIONS => {
            let mut response = Response::new(Body::whole(""));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(STREAM_METHODS));
            cors::preflight(response.headers_mut());
            Ok(Some(Outcome::Response(response)))
        }
        _ => Err(Problem::MethodNotAllowed(STREAM_METHODS)),
    }
}

fn start_stream(
    request: &Parts,
    proxy: &Proxy,
    open: impl FnOnce() -> Result<Subscription, NotNow>,
) -> Result<Outcome, Problem> {
    if request.method == Method::HEAD {
        return Ok(Outcome::Response(ended_stream("")));
    }
    match open() {
        Ok(subscription) => Ok(Outcome::Stream(stream_headers(), subscription)),
        Err(reason) => not_now(request, proxy, reason),
    }
}

/// The response to a client that is turned away. An EventSource gives up permanently on any status except 200. So one
/// whose token has expired, or whose right can't be checked now, gets a stream that says when to come back: by then its
/// page may have a new token, or the database or the application an answer.
fn turn_away(request: &Parts, proxy: &Proxy, denied: Denied) -> Result<Outcome, Problem> {
    let is_temporary = matches!(denied, Denied::Expired | Denied::Unanswered(_));
    if !is_temporary || request.method != Method::GET || !names_stream(&request.headers) {
        return Err(denied.into());
    }
    let retry = Frame::retry(proxy.cli.long_retry()).into_body();
    let mut frames = retry.to_vec();
    if denied == Denied::Expired {
        frames.extend(Frame::unauthorized(Unauthorized::Expired).into_body());
    }
    Ok(Outcome::Response(ended_stream(frames)))
}

/// The response when no stream can be opened now. An EventSource gives up permanently on any status except 200, so it
/// gets a stream that says when to reconnect: much later, or soon if another proxy can take it.
fn not_now(request: &Parts, proxy: &Proxy, reason: NotNow) -> Result<Outcome, Problem> {
    if request.method != Method::GET || !names_stream(&request.headers) {
        return Err(Problem::Unavailable(reason.to_string()));
    }
    let retry = match reason {
        NotNow::OverLimit | NotNow::Standby | NotNow::OldSql => proxy.cli.long_retry(),
        NotNow::Draining | NotNow::NotReady | NotNow::Revoked => proxy.cli.next_retry(),
    };
    Ok(Outcome::Response(ended_stream(Frame::retry(retry).into_body())))
}

/// A stream that sends this text and ends.
fn ended_stream(text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::whole(text));
    *response.headers_mut() = stream_headers();
    response
}

fn stream_headers() -> HeaderMap {
    HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        // A transformation, such as compression, would delay the stream.
        (CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
        // With this header nginx forwards a stream at once.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ])
}
