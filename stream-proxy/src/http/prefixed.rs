//! A socket whose first bytes are read to detect the protocol, and then read again by the server.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// The start of an HTTP/2 connection; no HTTP/1 method begins this way.
const HTTP2_START: [u8; 3] = *b"PRI";

/// A socket and the first of its bytes.
#[derive(Debug)]
pub struct Prefixed<IO> {
    io: IO,
    prefix: [u8; HTTP2_START.len()],
    /// How many first bytes there are, and how many have been read again.
    filled: u8,
    taken: u8,
}

impl<IO> Prefixed<IO> {
    /// A socket from which nothing has been read.
    pub fn new(io: IO) -> Self {
        Self { io, prefix: HTTP2_START, filled: 0, taken: 0 }
    }

    /// Returns the socket. First bytes that have not been read again are lost.
    pub fn into_inner(self) -> IO {
        self.io
    }
}

impl<IO: AsyncRead + Unpin> Prefixed<IO> {
    /// Waits for as many first bytes as are needed to detect HTTP/2.
    pub async fn speaks_http2(&mut self) -> io::Result<bool> {
        loop {
            let filled = usize::from(self.filled);
            if self.prefix[..filled] != HTTP2_START[..filled] {
                return Ok(false);
            }
            if filled == HTTP2_START.len() {
                return Ok(true);
            }
            match self.io.read(&mut self.prefix[filled..]).await? {
                0 => return Ok(false),
                n => self.filled += n as u8,
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefixed<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = &self.prefix[usize::from(self.taken)..usize::from(self.filled)];
        if left.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let n = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..n]);
        self.taken += n as u8;
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefixed<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn bytes_that_were_read_for_detection_are_not_lost() {
        for (text, is_http2) in [
            ("PRI * HTTP/2.0\r\n", true),
            ("PRI", true),
            ("PR", false),
            ("PUT / HTTP/1.1\r\n", false),
            ("GET / HTTP/1.1\r\n", false),
            ("P", false),
            ("", false),
        ] {
            let (mut client, server) = tokio::io::duplex(64);
            let mut server = Prefixed::new(server);
            let send = async {
                for byte in text.as_bytes() {
                    client.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
                drop(client);
            };
            let (is, ()) = tokio::join!(server.speaks_http2(), send);
            assert_eq!(is.unwrap(), is_http2, "{text:?}");
            let mut all = String::new();
            server.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, text);
        }
    }

    #[tokio::test]
    async fn a_client_that_pauses_in_the_first_bytes_is_waited_for_without_polling() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Prefixed::new(server);
        client.write_all(b"P").await.unwrap();
        let mut polls = 0;
        let mut speaks = Box::pin(server.speaks_http2());
        let wait = std::future::poll_fn(|cx| {
            polls += 1;
            speaks.as_mut().poll(cx)
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(100), wait).await.is_err());
        assert!(polls <= 2, "{polls}");
    }
}
