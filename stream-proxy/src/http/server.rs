//! Sockets: accepting them, finding out what they speak, and the end of all of them. Over HTTP/1.1 hyper parses the
//! request and is then left behind: a stream's socket is taken back, so an idle client costs a queue and a small task.

use std::convert::Infallible;
use std::fmt::Write;
use std::future::{Future, pending, poll_fn};
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
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::http::body::Body;
use crate::http::crowd::{Admitted, Crowd};
use crate::http::prefixed::Prefixed;
use crate::http::routes::{Answer, answer};
use crate::http::socket::{Socket, patience};
use crate::http::tls::Tls;
use crate::proxy::{Proxy, Subscription};
use crate::stream::frame::Frame;
use crate::stream::subscriber::Subscriber;
use crate::stream::writer::Stream;

/// How long to wait when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many headers a request may have.
const MAX_HEADERS: usize = 64;

/// The bytes that HTTP/2 counts for each header beyond its text.
const HTTP2_OVERHEAD: usize = 32;

/// Streams of one HTTP/2 connection at the same time.
const HTTP2_STREAMS: u32 = 128;

/// The proxy and what its listener needs.
#[derive(Debug)]
pub struct Server {
    /// The proxy that serves the requests.
    pub proxy: Arc<Proxy>,
    /// Certificate and key, if clients speak TLS.
    pub tls: Option<Arc<Tls>>,
    /// Connections that have no HTTP/1.1 stream.
    pub crowd: Crowd,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Server {
    /// Accepts connections for ever.
    pub async fn serve(self: &Arc<Self>, listener: &TcpListener) -> Infallible {
        let mut failing = false;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    failing = false;
                    let Some(admitted) = self.crowd.admit(peer.ip()) else { continue };
                    let server = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = connection(stream, peer.ip(), &admitted, &server).await {
                            tracing::debug!(%peer, %error, "connection failed");
                        }
                    });
                }
                Err(error) => {
                    self.proxy.metrics.accept_errors.add(1);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "connections can't be accepted for now");
                    }
                    // Without file descriptors the next attempt fails as well. Open streams continue.
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: IpAddr, admitted: &Admitted, server: &Server) -> Result<(), BoxError> {
    let proxy = &server.proxy;
    let time = admitted.patience(proxy.cli.header_timeout);
    let caller = Caller { peer, time, reserved: admitted.is_reserved() };
    let stream = Socket::new(stream, proxy.cli.heartbeat);
    match &server.tls {
        Some(tls) => match timeout(time, tls.accept(stream)).await?? {
            (stream, true) => http2(stream, caller, proxy).await,
            (stream, false) => http1(Prefixed::new(stream), caller, proxy).await,
        },
        None => {
            let mut stream = Prefixed::new(stream);
            match timeout(time, stream.speaks_http2()).await?? {
                true => http2(stream, caller, proxy).await,
                false => http1(stream, caller, proxy).await,
            }
        }
    }
}

/// A connected client.
#[derive(Clone, Copy)]
struct Caller {
    peer: IpAddr,
    /// How long it may take for its request.
    time: Duration,
    /// Whether it may only request health checks.
    reserved: bool,
}

async fn http2<IO>(io: IO, caller: Caller, proxy: &Arc<Proxy>) -> Result<(), BoxError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let proxy = proxy.clone();
        async move {
            let (parts, _) = request.into_parts();
            Ok::<_, Infallible>(match answer(&proxy, &parts, caller.peer, caller.reserved).await {
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
    let (streams, mut count) = watch::channel(0);
    // `answer` enforces the exact limit.
    let head = proxy.cli.max_header_bytes.saturating_add(MAX_HEADERS * HTTP2_OVERHEAD);
    let mut connection = pin!(
        http2::Builder::new(Streams(streams))
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS)
            .max_header_list_size(u32::try_from(head).unwrap_or(u32::MAX))
            .max_send_buf_size(64 * 1024)
            .keep_alive_interval(proxy.cli.heartbeat)
            // Over a slow connection a response may take long, because it waits behind everything that was sent before.
            .keep_alive_timeout(patience(proxy.cli.heartbeat))
            .serve_connection(TokioIo::new(io), service)
    );
    // A connection without a stream gets a GOAWAY, and may take as long again. When the proxy shuts down, every
    // connection gets one: its streams continue until their turn comes, and new streams use another connection, to
    // another proxy.
    let (mut draining, mut told, mut idled) = (proxy.draining.subscribe(), false, 0);
    while idled < 2 {
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            () = idle(&mut count, caller.time) => idled += 1,
            // The sender lives as long as the proxy.
            _ = draining.wait_for(|draining| *draining), if !told => told = true,
        }
        connection.as_mut().graceful_shutdown();
    }
    Ok(())
}

/// Waits until there has been no stream for that long.
async fn idle(streams: &mut watch::Receiver<usize>, patience: Duration) {
    loop {
        // The sender lives as long as the connection, which is polled beside this.
        let _ = streams.wait_for(|count| *count == 0).await;
        if timeout(patience, streams.wait_for(|count| *count > 0)).await.is_err() {
            return;
        }
    }
}

/// The subscriber whose stream a task over HTTP/2 serves, once it has one.
type Current = Arc<OnceLock<Arc<Subscriber>>>;

tokio::task_local! {
    static CURRENT: Current;
}

/// Runs the streams of HTTP/2 connections, each as a task. Where hyper waits for a client to take more, for ever if
/// need be, the task also looks whether its stream has been ended: then it stops, which resets the stream and gives
/// everything back.
#[derive(Clone, Debug)]
struct Streams(watch::Sender<usize>);

/// A stream of a connection, counted until dropped.
struct Counted(watch::Sender<usize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl<F: Future + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.send_modify(|count| *count += 1);
        let counted = Counted(self.0.clone());
        tokio::spawn(async move {
            let _counted = counted;
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
async fn http1<IO>(io: Prefixed<IO>, caller: Caller, proxy: &Arc<Proxy>) -> Result<(), BoxError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let taken: Mutex<Option<(Version, HeaderMap, Subscription)>> = Mutex::new(None);
    let service = service_fn(|request: Request<Incoming>| {
        Box::pin(async {
            let (parts, _) = request.into_parts();
            match answer(proxy, &parts, caller.peer, caller.reserved).await {
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
        .header_read_timeout(caller.time)
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
    let mut io = connection.into_parts().io.into_inner().into_inner();
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

/// The head of a stream's response. HTTP/1.0 knows only a body that ends with its connection. Caches and libraries
/// delay such a body, but forward a chunked one at once.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_of_an_idle_client_is_small() {
        // tokio allocates tasks in steps of 128 bytes; with more than this, every client costs another step.
        assert!(size_of::<Stream<Socket, Subscription>>() <= 152, "{}", size_of::<Stream<Socket, Subscription>>());
    }
}
