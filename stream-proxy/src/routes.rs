//! From a request to its answer. How an answer reaches the client is the server's business.

use std::sync::Arc;

use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

use crate::body::Body;
use crate::problem::Problem;
use crate::proxy::{Proxy, Subscription};
use crate::query::{Wanted, accepts_stream};

/// The methods of a stream's path.
const STREAM_METHODS: &str = "GET, HEAD, OPTIONS";

/// The methods of the other paths.
const PLAIN_METHODS: &str = "GET, HEAD";

/// What a request gets.
#[derive(Debug)]
pub enum Answer {
    /// A response that is there.
    Whole(Response<Body>),
    /// A stream, and the headers it starts with.
    Stream(HeaderMap, Subscription),
}

/// Answers a request.
pub async fn answer(proxy: &Arc<Proxy>, request: &Parts) -> Answer {
    let answer = match request.uri.path() {
        "/events" => events(proxy, request).await,
        "/healthz" => plain(request, || text("ok\n")),
        "/readyz" => plain(request, || match proxy.unready() {
            None => text("ready\n"),
            Some(reason) => Problem::Unavailable(reason.to_string()).response(),
        }),
        "/metrics" => plain(request, || text(proxy.metrics.render())),
        _ => Err(Problem::NotFound),
    };
    answer.unwrap_or_else(|problem| {
        let refused =
            if problem.status().is_server_error() { &proxy.metrics.refused_5xx } else { &proxy.metrics.refused_4xx };
        refused.add(1);
        Answer::Whole(problem.response())
    })
}

fn plain(request: &Parts, respond: impl FnOnce() -> Response<Body>) -> Result<Answer, Problem> {
    match request.method {
        Method::GET | Method::HEAD => Ok(Answer::Whole(respond())),
        _ => Err(Problem::MethodNotAllowed(PLAIN_METHODS)),
    }
}

fn text(text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::whole(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn events(proxy: &Arc<Proxy>, request: &Parts) -> Result<Answer, Problem> {
    match request.method {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => {
            let mut response = Response::new(Body::whole(""));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(STREAM_METHODS));
            return Ok(Answer::Whole(response));
        }
        _ => return Err(Problem::MethodNotAllowed(STREAM_METHODS)),
    }
    if !accepts_stream(&request.headers) {
        return Err(Problem::NotAcceptable);
    }
    let query = request.uri.query().unwrap_or("");
    let wanted = Wanted::parse(query, &request.headers, Vec::new(), proxy.cli.max_topics)?;
    let allowed = match proxy.access.identify(request) {
        Ok(who) => proxy.access.authorize(&who, &wanted.topics).await,
        Err(denied) => Err(denied),
    };
    if let Err(denied) = allowed {
        match denied {}
    }
    let headers = HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // nginx passes a stream on at once when told so.
        (hyper::header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ]);
    if request.method == Method::HEAD {
        let mut response = Response::new(Body::whole(""));
        *response.headers_mut() = headers;
        return Ok(Answer::Whole(response));
    }
    match proxy.subscribe(wanted) {
        Some(subscription) => Ok(Answer::Stream(headers, subscription)),
        None => Err(Problem::Unavailable("there are as many streams as there may be".into())),
    }
}
