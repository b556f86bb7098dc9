//! A client's socket: its options in the kernel, and how long the kernel waits for the client.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::stream::batch::{Batch, SHORT_BATCH, WRITE_BATCH};

/// How many unsent bytes the kernel holds for one client: a slow client's data should wait in its queue, where it is
/// counted. The socket takes more when half of it has left, so this is also how finely a slow client's progress is
/// visible.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 16 * 1024;

/// The shortest time for which the kernel waits for a client. The data of a slow client must have a chance to leave.
const MIN_PATIENCE: Duration = Duration::from_secs(60);

/// How long the kernel, or an HTTP/2 ping, waits for a client that may be gone.
pub fn patience(heartbeat: Duration) -> Duration {
    (heartbeat * 2).max(MIN_PATIENCE)
}

/// A client's socket. While the socket accepts data, the kernel ends the connection if the client acknowledges nothing
/// for too long. This detects clients that vanished while heartbeats still fit into the socket. The same limit would
/// cut off a client that reads steadily but slowly, because Linux counts the time in which the client's window is too
/// small for the next segment. So the limit is lifted while the socket is full; then the heartbeats decide, by whether
/// any data leaves.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    /// The kernel's limit, in seconds.
    patience: u32,
    /// When the socket was last full, by [`now`], while the limit is lifted; else 0.
    full: u32,
}

/// Seconds since the first call, plus one. It is a small type because every client's socket has such a time.
fn now() -> u32 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u32::try_from(START.elapsed().as_secs()).unwrap_or(u32::MAX).saturating_add(1)
}

impl Socket {
    /// Takes over an accepted connection.
    pub fn new(stream: TcpStream, heartbeat: Duration) -> Self {
        let patience = u32::try_from(patience(heartbeat).as_secs()).unwrap_or(u32::MAX);
        let socket = Self { stream, patience, full: 0 };
        let interval = heartbeat.max(Duration::from_secs(3));
        let keepalive = TcpKeepalive::new().with_time(interval).with_interval(interval / 3).with_retries(3);
        // Each option separately: one that this system does not support must not prevent the others.
        note("TCP_NODELAY", socket.stream.set_nodelay(true));
        note("SO_KEEPALIVE", SockRef::from(&socket.stream).set_tcp_keepalive(&keepalive));
        #[cfg(target_os = "linux")]
        note("TCP_NOTSENT_LOWAT", SockRef::from(&socket.stream).set_tcp_notsent_lowat(UNSENT));
        socket.limit(true);
        socket
    }

    /// Sets or lifts the kernel's limit.
    fn limit(&self, on: bool) {
        let limit = on.then(|| Duration::from_secs(self.patience.into()));
        #[cfg(target_os = "linux")]
        note("TCP_USER_TIMEOUT", SockRef::from(&self.stream).set_tcp_user_timeout(limit));
        #[cfg(not(target_os = "linux"))]
        let _ = limit;
    }

    /// Writes as much as the socket takes at once. Returns how many bytes: 0 if it is full.
    pub fn try_write(&mut self, batch: &Batch) -> io::Result<usize> {
        let result = if let Some(bytes) = batch.single(true) {
            self.stream.try_write(bytes)
        } else if batch.len() <= SHORT_BATCH {
            let mut space = [IoSlice::new(&[]); SHORT_BATCH];
            self.stream.try_write_vectored(batch.slices(true, &mut space))
        } else {
            let mut space = [IoSlice::new(&[]); WRITE_BATCH];
            self.stream.try_write_vectored(batch.slices(true, &mut space))
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let _ = self.wrote::<()>(Poll::Pending);
                Ok(0)
            }
            result => {
                let _ = self.wrote(Poll::Ready(()));
                result
            }
        }
    }

    /// Waits until it can be written to.
    #[cfg(test)]
    pub async fn writable(&self) {
        self.stream.writable().await.unwrap();
    }

    /// Notes whether a write found the socket full.
    fn wrote<T>(&mut self, result: Poll<T>) -> Poll<T> {
        if result.is_pending() {
            if std::mem::replace(&mut self.full, now()) == 0 {
                self.limit(false);
            }
        } else if self.full > 0 && now() - self.full >= self.patience {
            self.full = 0;
            self.limit(true);
        }
        result
    }
}

fn note(option: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(option, %error, "socket option");
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
