//! The task of one client: it writes the frames that wait for a subscriber to its socket. It knows nothing about where
//! they come from.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::frame::Frame;
use crate::stream::subscriber::{End, Subscriber};

/// The most frames in one write.
const WRITE_BATCH: usize = 256;

/// How many bytes a client may send after its request. Nobody reads them.
const MAX_NOISE: u32 = 64 * 1024;

/// The task of one client: it writes what waits and notices when the client disconnects. It owns the socket and a
/// `guard`, which releases what the stream holds when the task ends.
#[derive(Debug)]
pub struct Writer<IO, G> {
    io: IO,
    subscriber: Arc<Subscriber>,
    guard: G,
    /// Frames taken from the queue and not yet written.
    batch: VecDeque<Frame>,
    /// Bytes of the first frame that have already been written.
    offset: usize,
    noise: u32,
    /// Whether frames are written as chunks.
    chunked: bool,
    closing: bool,
}

/// Counts what a stream writes.
pub trait CountBytes {
    /// That many bytes have been written.
    fn wrote(&self, bytes: usize);
}

impl<IO, G> Writer<IO, G> {
    /// The task that writes `subscriber`'s frames to `io`, as chunks if `chunked`.
    pub fn new(io: IO, subscriber: Arc<Subscriber>, guard: G, chunked: bool) -> Self {
        Self { io, subscriber, guard, batch: VecDeque::new(), offset: 0, noise: 0, chunked, closing: false }
    }

    /// Removes `written` bytes from the batch, and frames without bytes to write. Returns the size of these bytes in
    /// the queue, where a frame counts with its chunk's head and tail.
    fn advance(&mut self, written: usize) -> usize {
        let (mut done, mut counted) = (self.offset + written, written);
        while let Some(first) = self.batch.front() {
            let length = first.bytes(self.chunked).len();
            if length > done {
                break;
            }
            counted += first.len() - length;
            done -= length;
            self.batch.pop_front();
        }
        self.offset = done;
        counted
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, G: CountBytes> Writer<IO, G> {
    /// Reads and drops what the client sends; ready when the client has disconnected.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [MaybeUninit::uninit(); 512];
        loop {
            let mut buffer = ReadBuf::uninit(&mut space);
            match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
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
    fn poll_write_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let io = Pin::new(&mut self.io);
        if let ([frame], []) = self.batch.as_slices() {
            // One `send` costs the kernel less than a list with one buffer, and this is the usual case.
            return io.poll_write(cx, &frame.bytes(self.chunked)[self.offset..]);
        }
        let mut slices = [IoSlice::new(&[]); WRITE_BATCH];
        let mut count = 0;
        for (slice, frame) in slices.iter_mut().zip(&self.batch) {
            *slice = IoSlice::new(&frame.bytes(self.chunked)[if count == 0 { self.offset } else { 0 }..]);
            count += 1;
        }
        io.poll_write_vectored(cx, &slices[..count])
    }

    /// Writes until nothing waits. Ready when the stream has ended; true if the connection should then be closed
    /// properly.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut written = 0;
        loop {
            if self.batch.is_empty() {
                match self.subscriber.poll_frames(cx, std::mem::take(&mut written)) {
                    Poll::Ready(Some(batch)) => {
                        self.batch = batch;
                        written += self.advance(0);
                        continue;
                    }
                    Poll::Ready(None) => return Poll::Ready(self.subscriber.ended() == Some(End::Finished)),
                    Poll::Pending => {
                        // Frees the memory of the batch: an idle client keeps none.
                        self.batch = VecDeque::new();
                        return match Pin::new(&mut self.io).poll_flush(cx) {
                            Poll::Ready(Err(_)) => Poll::Ready(false),
                            _ => Poll::Pending,
                        };
                    }
                }
            }
            match self.poll_write_batch(cx) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.guard.wrote(n);
                    written += self.advance(n);
                }
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return self.subscriber.poll_blocked(cx, written).map(|()| false),
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, G: CountBytes + Unpin> Future for Writer<IO, G> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.poll_gone(cx).is_ready() {
            return Poll::Ready(());
        }
        if !this.closing {
            match this.poll_write(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(false) => return Poll::Ready(()),
                Poll::Ready(true) => this.closing = true,
            }
        }
        Pin::new(&mut this.io).poll_shutdown(cx).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

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
