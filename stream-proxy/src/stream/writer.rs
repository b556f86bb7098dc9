//! The task of one client: it writes the frames that wait for a subscriber to its socket. It knows nothing about where
//! they come from.

use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::stream::batch::{Batch, WRITE_BATCH};
use crate::stream::socket::Socket;
use crate::stream::subscriber::{End, Subscriber};

/// How many bytes a client may send after its request. Nobody reads them.
const MAX_NOISE: u32 = 64 * 1024;

/// The task of one client: it writes what waits and notices when the client disconnects. It owns a `guard`, which
/// releases what the stream holds when the task ends. The connection is here while there is something to write;
/// otherwise it may be left at the subscriber, where others can write to it.
#[derive(Debug)]
pub struct Writer<IO, G> {
    io: Option<IO>,
    subscriber: Arc<Subscriber>,
    guard: G,
    /// Frames taken from the queue and not yet written.
    batch: Batch,
    noise: u32,
    /// Whether frames are written as chunks.
    chunked: bool,
    closing: bool,
}

/// A connection to a client.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Sized {
    /// Leaves the connection at its subscriber, where others can write chunks to it, or returns it.
    fn leave(self, _: &Subscriber) -> Option<Self> {
        Some(self)
    }

    /// Takes back a connection that was left.
    fn poll_back(_: &Subscriber, _: &Context<'_>) -> Poll<Self> {
        Poll::Pending
    }
}

impl Connection for Socket {
    fn leave(self, subscriber: &Subscriber) -> Option<Self> {
        subscriber.leave_socket(self);
        None
    }

    fn poll_back(subscriber: &Subscriber, cx: &Context<'_>) -> Poll<Self> {
        subscriber.poll_socket(cx)
    }
}

impl Connection for UnixStream {}

/// Counts what a stream writes.
pub trait CountBytes {
    /// That many bytes have been written.
    fn wrote(&self, bytes: usize);
}

impl<IO, G> Writer<IO, G> {
    /// The task that writes `subscriber`'s frames to `io`, as chunks if `chunked`.
    pub fn new(io: IO, subscriber: Arc<Subscriber>, guard: G, chunked: bool) -> Self {
        Self { io: Some(io), subscriber, guard, batch: Batch::default(), noise: 0, chunked, closing: false }
    }
}

impl<IO: Connection, G: CountBytes> Writer<IO, G> {
    /// Reads and drops what the client sends; ready when the client has disconnected.
    fn poll_gone(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [MaybeUninit::uninit(); 512];
        loop {
            let mut buffer = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.noise += buffer.filled().len() as u32,
                Poll::Ready(_) => return Poll::Ready(()),
            }
            if self.noise > MAX_NOISE {
                return Poll::Ready(());
            }
        }
    }

    /// Writes what it can from the batch, which is not empty.
    fn poll_write_batch(&self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(bytes) = self.batch.single(self.chunked) {
            return Pin::new(io).poll_write(cx, bytes);
        }
        let mut space = [IoSlice::new(&[]); WRITE_BATCH];
        Pin::new(io).poll_write_vectored(cx, self.batch.slices(self.chunked, &mut space))
    }

    /// Writes until nothing waits. Ready when the stream has ended; true if the connection should then be closed
    /// properly.
    fn poll_write(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<bool> {
        let mut written = 0;
        loop {
            if self.batch.is_empty() {
                match self.subscriber.poll_frames(cx, std::mem::take(&mut written)) {
                    Poll::Ready(Some(frames)) => {
                        self.batch = frames.into();
                        written += self.batch.advance(0, self.chunked);
                        continue;
                    }
                    Poll::Ready(None) => return Poll::Ready(self.subscriber.ended() == Some(End::Finished)),
                    Poll::Pending => {
                        // Frees the memory of the batch: an idle client keeps none.
                        self.batch = Batch::default();
                        return match Pin::new(io).poll_flush(cx) {
                            Poll::Ready(Err(_)) => Poll::Ready(false),
                            _ => Poll::Pending,
                        };
                    }
                }
            }
            match self.poll_write_batch(io, cx) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.guard.wrote(n);
                    written += self.batch.advance(n, self.chunked);
                }
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return self.subscriber.poll_blocked(cx, written).map(|()| false),
            }
        }
    }

    /// Serves the connection; ready when it ends.
    fn poll_with(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<()> {
        if self.poll_gone(io, cx).is_ready() {
            return Poll::Ready(());
        }
        if !self.closing {
            if !ready!(self.poll_write(io, cx)) {
                return Poll::Ready(());
            }
            self.closing = true;
        }
        Pin::new(io).poll_shutdown(cx).map(|_| ())
    }
}

impl<IO: Connection, G: CountBytes + Unpin> Future for Writer<IO, G> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut io = match this.io.take() {
            Some(io) => io,
            None => ready!(IO::poll_back(&this.subscriber, cx)),
        };
        // When the task ends, the connection is here, and closes.
        let polled = this.poll_with(&mut io, cx);
        if polled.is_pending() {
            let is_idle = this.batch.is_empty() && !this.closing;
            this.io = if is_idle && this.chunked { io.leave(&this.subscriber) } else { Some(io) };
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::frame::Frame;
    use tokio::io::AsyncReadExt;

    impl Connection for tokio::io::DuplexStream {}

    struct Uncounted;
    impl CountBytes for Uncounted {
        fn wrote(&self, _: usize) {}
    }

    fn frame(text: &str) -> Frame {
        Frame::raw(text.to_string())
    }

    /// Everything that a client gets of a finished stream, and whether nothing was left waiting.
    async fn written(chunked: bool) -> String {
        let (mut client, server) = tokio::io::duplex(7);
        let subscriber = Subscriber::new(1000);
        subscriber.prepend(frame("head\n\n"));
        let task = tokio::spawn(Writer::new(server, subscriber.clone(), Uncounted, chunked));
        for text in ["one", "two", "a longer three"] {
            subscriber.push(Frame::message(None, text));
        }
        subscriber.close(End::Finished);
        let mut all = String::new();
        client.read_to_string(&mut all).await.unwrap();
        task.await.unwrap();
        assert_eq!(subscriber.waiting(), 0);
        all
    }

    #[tokio::test]
    async fn a_finished_stream_is_written_to_its_end_and_closed() {
        assert_eq!(
            written(true).await,
            "head\n\nb\r\ndata: one\n\n\r\nb\r\ndata: two\n\n\r\n16\r\ndata: a longer three\n\n\r\n0\r\n\r\n"
        );
        assert_eq!(written(false).await, "head\n\ndata: one\n\ndata: two\n\ndata: a longer three\n\n");
    }

    #[tokio::test]
    async fn the_task_ends_when_the_client_disconnects() {
        let (client, server) = tokio::io::duplex(64);
        let task = tokio::spawn(Writer::new(server, Subscriber::new(1000), Uncounted, true));
        drop(client);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_blocked_task_ends_when_its_stream_is_ended() {
        let (_client, server) = tokio::io::duplex(1);
        let subscriber = Subscriber::new(1000);
        let task = tokio::spawn(Writer::new(server, subscriber.clone(), Uncounted, true));
        subscriber.push(frame("does not fit"));
        subscriber.close(End::Stalled);
        task.await.unwrap();
    }
}
