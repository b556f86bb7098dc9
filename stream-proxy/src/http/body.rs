//! Response bodies: a complete text, or a stream over HTTP/2. (Over HTTP/1.1 a stream takes over the socket, see
//! `http1`.)

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame as HttpFrame, SizeHint};

use crate::proxy::Subscription;
use crate::stream::frame::Frame;
use crate::stream::subscriber::Subscriber;
use crate::stream::writer::CountBytes;

/// The most bytes that hyper is given at once. It asks for more only when it has passed on what it had, so this is how
/// finely a slow client's progress is visible: a client that takes this much between two heartbeats is alive.
const PIECE: usize = 8 * 1024;

/// The body of a response.
#[derive(Debug)]
pub enum Body {
    /// A complete text.
    Whole(Option<Bytes>),
    /// The frames of a subscriber, as they are queued.
    Stream(Box<StreamBody>),
}

/// A stream that hyper writes.
#[derive(Debug)]
pub struct StreamBody {
    subscriber: Arc<Subscriber>,
    subscription: Subscription,
    pieces: Pieces,
}

/// Frames taken from the queue and cut into pieces. All subscribers share the bytes of a large frame until the last
/// byte is sent.
#[derive(Debug, Default)]
struct Pieces {
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that have already been sent.
    offset: usize,
    /// The size of the last piece as the queue counts it: a frame counts with its chunk's head and tail.
    counted: usize,
}

impl Pieces {
    /// The next piece; empty if there is none.
    fn next(&mut self) -> Bytes {
        self.advance(0);
        let Some(first) = self.frames.front() else { return Bytes::new() };
        let left = first.bytes(false).len() - self.offset;
        if left < PIECE && self.frames.len() > 1 {
            return self.gather();
        }
        let piece = first.clone().into_body().slice(self.offset..self.offset + left.min(PIECE));
        self.advance(piece.len());
        piece
    }

    /// Joins several small frames into one piece, because a copy costs less than sending each one separately.
    fn gather(&mut self) -> Bytes {
        let mut piece = BytesMut::with_capacity(PIECE);
        while let Some(first) = self.frames.front()
            && piece.len() < PIECE
        {
            let left = &first.bytes(false)[self.offset..];
            let part = &left[..left.len().min(PIECE - piece.len())];
            piece.extend_from_slice(part);
            let taken = part.len();
            self.advance(taken);
        }
        piece.freeze()
    }

    /// Removes `taken` bytes from the frames, and frames without bytes to send.
    fn advance(&mut self, taken: usize) {
        self.offset += taken;
        self.counted += taken;
        while let Some(first) = self.frames.front()
            && first.bytes(false).len() <= self.offset
        {
            let length = first.bytes(false).len();
            self.counted += first.len() - length;
            self.offset -= length;
            self.frames.pop_front();
        }
    }
}

impl Body {
    /// A text; an empty one means no body.
    pub fn whole(text: impl Into<Bytes>) -> Self {
        Self::Whole(Some(text.into()).filter(|text: &Bytes| !text.is_empty()))
    }

    /// A stream.
    pub fn stream(subscription: Subscription) -> Self {
        let (subscriber, pieces) = (subscription.subscriber(), Pieces::default());
        Self::Stream(Box::new(StreamBody { subscriber, subscription, pieces }))
    }
}

impl StreamBody {
    /// The next piece; `None` when the stream has ended. When hyper asks for it, it has sent the last one.
    fn poll_piece(&mut self, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let counted = std::mem::take(&mut self.pieces.counted);
            if self.pieces.frames.is_empty() {
                // Frees the memory of the last frames: an idle client keeps none.
                self.pieces = Pieces::default();
                match ready!(self.subscriber.poll_frames(cx, counted)) {
                    Some(frames) => self.pieces.frames = frames,
                    None => return Poll::Ready(None),
                }
            } else if self.subscriber.poll_blocked(cx, counted).is_ready() {
                return Poll::Ready(None);
            }
            let piece = self.pieces.next();
            if !piece.is_empty() {
                self.subscription.wrote(piece.len());
                return Poll::Ready(Some(piece));
            }
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<HttpFrame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            Self::Whole(text) => text.take(),
            Self::Stream(stream) => ready!(stream.poll_piece(cx)),
        };
        Poll::Ready(bytes.map(|bytes| Ok(HttpFrame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pieces, and their size in the queue.
    fn cut(frames: &[Frame]) -> (Vec<Bytes>, usize) {
        let mut pieces = Pieces { frames: frames.to_vec().into(), ..Pieces::default() };
        let all: Vec<_> = std::iter::from_fn(|| Some(pieces.next()).filter(|piece| !piece.is_empty())).collect();
        assert!(pieces.frames.is_empty() && all.iter().all(|piece| piece.len() <= PIECE));
        (all, pieces.counted)
    }

    #[test]
    fn large_frames_are_shared_and_small_ones_are_joined() {
        let small = || Frame::message(None, "small");
        let large = Frame::message(None, &"x".repeat(3 * PIECE));
        let frames = [small(), small(), large.clone(), small(), Frame::end()];
        let (pieces, counted) = cut(&frames);
        assert_eq!(counted, frames.iter().map(Frame::len).sum::<usize>());
        assert_eq!(pieces.concat(), frames.map(|frame| frame.bytes(false).to_vec()).concat());
        // The first piece also holds the beginning of the large frame, and the last one its end.
        assert_eq!(pieces.len(), 4);
        let of_large = |piece: &&Bytes| large.bytes(false).as_ptr_range().contains(&piece.as_ptr());
        assert_eq!(pieces.iter().filter(of_large).count(), 2);
    }

    #[test]
    fn a_single_frame_is_not_copied_and_the_end_has_no_bytes() {
        let frame = Frame::message(None, "alone");
        let (pieces, counted) = cut(std::slice::from_ref(&frame));
        assert_eq!((pieces.len(), pieces[0].as_ptr(), counted), (1, frame.bytes(false).as_ptr(), frame.len()));
        assert_eq!(cut(&[Frame::end()]), (Vec::new(), Frame::end().len()));
    }
}
