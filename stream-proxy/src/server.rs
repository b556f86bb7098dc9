//! Sockets: accepting them, finding out what they speak, and the end of all of them. Over HTTP/1.1 hyper parses the request
//! and is then left behind: a stream's socket is taken back, so an idle client costs a queue and a small task.

use std::convert::Infallible;
use std::fmt::Write;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName};
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::body::Body;
use crate::frame::Frame;
use crate::proxy::{Proxy, Subscription};
use crate::routes::{Answer, answer};
use crate::socket::{Socket, patience};
use crate::stream::Stream;
use crate::subscriber::Subscriber;

/// How long to wait when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections without an HTTP/1.1 stream may be as many as streams, and this many more.
const SPARE_CONNECTIONS: u64 = 1024;

/// How many headers a request may have.
const MAX_HEADERS: usize = 64;

/// How a connection over HTTP/2 starts: no method of HTTP/1 does.
const HTTP2_START: &[u8] = b"PRI";

/// Streams of one HTTP/2 connection at the same time.
const HTTP2_STREAMS: u32 = 128;

/// Accepts connections for ever.
pub async fn serve(listener: &TcpListener, proxy: &Arc<Proxy>) -> Infallible {
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                failing = false;
                if proxy.metrics.connections.rise() > proxy.cli.max_clients.saturating_add(SPARE_CONNECTIONS) {
                    proxy.metrics.over_connections.add(1);
                    proxy.metrics.connections.fall();
                    continue;
                }
                let proxy = proxy.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, peer.ip(), &proxy).await {
                        tracing::debug!(%peer, %error, "connection");
                    }
                    proxy.metrics.connections.fall();
                });
            }
            Err(error) => {
                proxy.metrics.accept_errors.add(1);
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "nobody can be accepted for now");
                }
                // Without file descriptors the next attempt fails as well; those who are connected are served on.
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connection(stream: TcpStream, peer: IpAddr, proxy: &Arc<Proxy>) -> Result<(), BoxError> {
    let (header_timeout, heartbeat) = (proxy.cli.header_timeout, proxy.cli.heartbeat);
    match &proxy.tls {
        Some(tls) => match timeout(header_timeout, tls.accept(Socket::new(stream, heartbeat))).await?? {
            (stream, true) => http2(stream, peer, proxy).await,
            (stream, false) => http1(stream, peer, proxy).await,
        },
        None => match timeout(header_timeout, speaks_http2(&stream)).await?? {
            true => http2(Socket::new(stream, heartbeat), peer, proxy).await,
            false => http1(Socket::new(stream, heartbeat), peer, proxy).await,
        },
    }
}

/// Looks at the first bytes without taking them.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut start = [0; HTTP2_START.len()];
    loop {
        let n = stream.peek(&mut start).await?;
        if n == HTTP2_START.len() || n == 0 || start[..n] != HTTP2_START[..n] {
            return Ok(start == HTTP2_START);
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn http2<IO>(io: IO, peer: IpAddr, proxy: &Arc<Proxy>) -> Result<(), BoxError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let proxy = proxy.clone();
        async move {
            let (parts, _) = request.into_parts();
            Ok::<_, Infallible>(match answer(&proxy, &parts, peer).await {
                Answer::Whole(response) => response,
                Answer::Stream(headers, subscription) => {
                    // The task is always one that `Streams` started.
                    let _ = CURRENT.try_with(|current| current.set(subscription.subscriber()));
                    let mut response = Response::new(Body::stream(subscription));
                    *response.headers_mut() = headers;
                    response
                }
            })
        }
    });
    let connection = http2::Builder::new(Streams)
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(proxy.cli.max_header_bytes as u32)
        .max_send_buf_size(64 * 1024)
        .keep_alive_interval(proxy.cli.heartbeat)
        // An answer may be long in coming over a slow connection: it stands behind all that is on its way.
        .keep_alive_timeout(patience(proxy.cli.heartbeat))
        .serve_connection(TokioIo::new(io), service);
    let (mut connection, mut draining) = (pin!(connection), proxy.draining.subscribe());
    tokio::select! {
        result = &mut connection => return Ok(result?),
        // The sender lives as long as the proxy.
        _ = draining.wait_for(|draining| *draining) => connection.as_mut().graceful_shutdown(),
    }
    // Its streams go on until their turn comes; new ones find another connection, to another proxy.
    connection.await?;
    Ok(())
}

/// The subscriber whose stream a task over HTTP/2 serves, once it has one.
type Current = Arc<OnceLock<Arc<Subscriber>>>;

tokio::task_local! {
    static CURRENT: Current;
}

/// Runs the streams of HTTP/2 connections, each as a task. Where hyper waits for a client to take more, for ever if need be,
/// the task also looks whether its stream has been ended: then it stops, which resets the stream and gives everything back.
#[derive(Clone, Debug)]
struct Streams;

impl<F: Future + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(async move {
            let current = Current::default();
            let mut stream = pin!(CURRENT.scope(current.clone(), stream));
            poll_fn(|cx| match stream.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => current.get().map_or(Poll::Pending, |subscriber| subscriber.poll_blocked(cx, 0)),
            })
            .await;
        });
    }
}

/// One request, then the connection closes or becomes a stream: there is nothing that a client would ask in a row.
async fn http1<IO>(io: IO, peer: IpAddr, proxy: &Arc<Proxy>) -> Result<(), BoxError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let taken: Mutex<Option<(Version, HeaderMap, Subscription)>> = Mutex::new(None);
    let service = service_fn(|request: Request<Incoming>| {
        Box::pin(async {
            let (parts, _) = request.into_parts();
            match answer(proxy, &parts, peer).await {
                Answer::Whole(response) => Ok::<_, Infallible>(response),
                Answer::Stream(headers, subscription) => {
                    *taken.lock() = Some((parts.version, headers, subscription));
                    pending().await
                }
            }
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(proxy.cli.header_timeout)
        .max_buf_size(proxy.cli.max_header_bytes)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service);
    let stream = poll_fn(|cx| {
        let polled = connection.poll_without_shutdown(cx);
        match taken.lock().take() {
            Some(stream) => Poll::Ready(Ok(Some(stream))),
            None => polled.map_ok(|()| None),
        }
    })
    .await?;
    // What the client may have sent behind its request is of no interest.
    let mut io = connection.into_parts().io.into_inner();
    match stream {
        Some((version, headers, subscription)) => {
            let chunked = version >= Version::HTTP_11;
            let subscriber = subscription.subscriber();
            subscriber.prepend(head(&headers, chunked));
            tokio::spawn(Stream::new(io, subscriber, subscription, chunked));
        }
        None => io.shutdown().await?,
    }
    Ok(())
}

/// The head of a stream's response. A body that ends with its connection is all that HTTP/1.0 knows; caches and libraries
/// hold one back that they pass on chunk by chunk.
fn head(headers: &HeaderMap, chunked: bool) -> Frame {
    let date = httpdate::fmt_http_date(SystemTime::now());
    let mut text = format!("HTTP/1.1 200 OK\r\ndate: {date}\r\nconnection: close\r\n");
    if chunked {
        text.push_str("transfer-encoding: chunked\r\n");
    }
    for (name, value) in headers {
        let name: &HeaderName = name;
        // Writing to a String can't fail. Values of ours are ASCII.
        let _ = write!(text, "{name}: {}\r\n", value.to_str().unwrap_or_default());
    }
    text.push_str("\r\n");
    Frame::raw(text)
}
