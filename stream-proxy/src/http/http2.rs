//! One connection over HTTP/2: its streams, and when it ends.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Sleep, timeout};

use crate::http::body::Body;
use crate::http::caller::{BoxError, Caller, MAX_HEADERS};
use crate::http::routes::{Outcome, respond};
use crate::proxy::Proxy;
use crate::stream::socket::patience;
use crate::stream::subscriber::Subscriber;

/// The bytes that HTTP/2 counts for each header beyond its text.
const HTTP2_OVERHEAD: usize = 32;

/// The most streams of one HTTP/2 connection at the same time.
const HTTP2_STREAMS: u32 = 128;

/// Serves a connection until it has been idle for too long, or the proxy drains and its last stream has ended.
pub async fn serve<IO>(io: IO, caller: Caller, proxy: &Arc<Proxy>) -> Result<(), BoxError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let proxy = proxy.clone();
        // In a box, which is freed after the answer. Otherwise a stream's task would keep these 50 KB until it ends.
        Box::pin(async move {
            let (parts, _) = request.into_parts();
            Ok::<_, Infallible>(match respond(&proxy, &parts, caller.peer, caller.reserved).await {
                Outcome::Response(response) => {
                    let served = Served::Whole(Mutex::new(Box::pin(caller.patience(&response))));
                    let _ = CURRENT.try_with(|current| current.set(served));
                    response
                }
                Outcome::Stream(headers, subscription) => {
                    // This always runs in a task that `Streams` started.
                    let _ = CURRENT.try_with(|current| current.set(Served::Stream(subscription.subscriber())));
                    let mut response = Response::new(Body::stream(subscription));
                    *response.headers_mut() = headers;
                    response
                }
            })
        })
    });
    let (streams, mut count) = watch::channel(0);
    // `respond` enforces the exact limit.
    let head = proxy.cli.max_header_bytes.saturating_add(MAX_HEADERS * HTTP2_OVERHEAD);
    let mut connection = pin!(
        http2::Builder::new(Streams(streams))
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS)
            .max_header_list_size(u32::try_from(head).unwrap_or(u32::MAX))
            .max_send_buf_size(64 * 1024)
            .keep_alive_interval(proxy.cli.heartbeat)
            // Over a slow connection a ping's answer may take long, because it waits for everything that was sent
            // before.
            .keep_alive_timeout(patience(proxy.cli.heartbeat))
            .serve_connection(TokioIo::new(io), service)
    );
    // A connection without a stream gets a GOAWAY, and then the same time again to close. When the proxy shuts down,
    // every connection gets a GOAWAY: its streams continue until their turn comes, and new streams go over another
    // connection to another proxy.
    let (mut draining, mut notified, mut idled) = (proxy.draining.subscribe(), false, 0);
    while idled < 2 {
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            () = idle(&mut count, caller.time) => idled += 1,
            // The sender lives as long as the proxy.
            _ = draining.wait_for(|draining| *draining), if !notified => notified = true,
        }
        connection.as_mut().graceful_shutdown();
    }
    Ok(())
}

/// Waits until there has been no stream for `patience`.
async fn idle(streams: &mut watch::Receiver<usize>, patience: Duration) {
    loop {
        // The sender lives as long as the connection, which is polled in the same task.
        let _ = streams.wait_for(|count| *count == 0).await;
        if timeout(patience, streams.wait_for(|count| *count > 0)).await.is_err() {
            return;
        }
    }
}

/// What a task serves over HTTP/2, once it is known.
type Current = Arc<OnceLock<Served>>;

/// What ends a task although hyper waits for its client.
#[derive(Debug)]
enum Served {
    /// The end of the stream.
    Stream(Arc<Subscriber>),
    /// The end of the time for a whole response.
    Whole(Mutex<Pin<Box<Sleep>>>),
}

impl Served {
    fn poll_blocked(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Stream(subscriber) => subscriber.poll_blocked(cx, 0),
            Self::Whole(patience) => patience.lock().as_mut().poll(cx),
        }
    }
}

tokio::task_local! {
    static CURRENT: Current;
}

/// Runs each stream of an HTTP/2 connection as a task. hyper may wait forever for a client to read more. So the task
/// also checks whether its stream has been ended, or its client has had enough time for a whole response. Then it
/// stops, which resets the stream and releases what it holds.
#[derive(Clone, Debug)]
struct Streams(watch::Sender<usize>);

/// A stream of a connection; dropping it subtracts it from the count.
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
                Poll::Pending => current.get().map_or(Poll::Pending, |served| served.poll_blocked(cx)),
            })
            .await;
        });
    }
}
