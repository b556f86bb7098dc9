//! One connection over HTTP/1.1. hyper parses the request; for a stream the socket is then taken back from hyper, so an
//! idle client costs only a queue and a small task.

use std::convert::Infallible;
use std::fmt::Write;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::SystemTime;

use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::http::caller::{BoxError, Caller, MAX_HEADERS};
use crate::http::prefixed::Prefixed;
use crate::http::routes::{Outcome, respond};
use crate::proxy::{Proxy, Subscription};
use crate::stream::frame::Frame;
use crate::stream::writer::{Connection, Writer};

/// Serves one request; then the connection closes or becomes a stream. No client has several requests in a row.
pub async fn serve<IO>(io: Prefixed<IO>, caller: Caller, proxy: &Arc<Proxy>) -> Result<(), BoxError>
where
    IO: Connection + Send + 'static,
{
    let taken: Mutex<Option<(Version, HeaderMap, Subscription)>> = Mutex::new(None);
    let service = service_fn(|request: Request<Incoming>| {
        Box::pin(async {
            let (parts, _) = request.into_parts();
            match respond(proxy, &parts, caller.peer, caller.reserved).await {
                // No response is larger than the kernel's buffer, so this never waits for the client.
                Outcome::Response(response) => Ok::<_, Infallible>(response),
                Outcome::Stream(headers, subscription) => {
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
    // Anything that the client sent after its request is ignored.
    let mut io = connection.into_parts().io.into_inner().into_inner();
    match stream {
        Some((version, headers, subscription)) => {
            let chunked = version >= Version::HTTP_11;
            let subscriber = subscription.subscriber();
            subscriber.prepend(head(&headers, chunked));
            tokio::spawn(Writer::new(io, subscriber, subscription, chunked));
        }
        None => timeout(caller.time, io.shutdown()).await??,
    }
    Ok(())
}

/// The head of a stream's response. In HTTP/1.0 only the end of the connection ends a body. Caches and libraries delay
/// such a body, but forward a chunked one at once.
fn head(headers: &HeaderMap, chunked: bool) -> Frame {
    let date = httpdate::fmt_http_date(SystemTime::now());
    let mut text = format!("HTTP/1.1 200 OK\r\ndate: {date}\r\nconnection: close\r\n");
    if chunked {
        text.push_str("transfer-encoding: chunked\r\n");
    }
    for (name, value) in headers {
        let name: &HeaderName = name;
        // Writing to a String can't fail. The header values are always ASCII.
        let _ = write!(text, "{name}: {}\r\n", value.to_str().unwrap_or_default());
    }
    text.push_str("\r\n");
    Frame::raw(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::socket::Socket;

    #[test]
    fn the_task_of_an_idle_client_is_small() {
        // tokio allocates tasks in steps of 128 bytes; with more than this, every client costs another step.
        assert!(size_of::<Writer<Socket, Subscription>>() <= 152, "{}", size_of::<Writer<Socket, Subscription>>());
    }
}
