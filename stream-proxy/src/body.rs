//! Response bodies: a text that is there, or a stream over HTTP/2. (Over HTTP/1.1 a stream takes the socket, see `server`.)

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame as HttpFrame, SizeHint};

use crate::frame::Frame;
use crate::proxy::Subscription;
use crate::stream::CountBytes;
use crate::subscriber::Subscriber;

/// The body of a response.
#[derive(Debug)]
pub enum Body {
    /// A text, sent whole.
    Whole(Option<Bytes>),
    /// The frames of a subscriber as they come.
    Stream(Box<StreamBody>),
}

/// A stream that hyper writes.
#[derive(Debug)]
pub struct StreamBody {
    subscriber: Arc<Subscriber>,
    subscription: Subscription,
    /// Bytes of the queue that were given to hyper since the queue was last asked.
    written: usize,
}

impl Body {
    /// A text.
    pub fn whole(text: impl Into<Bytes>) -> Self {
        Self::Whole(Some(text.into()))
    }

    /// A stream.
    pub fn stream(subscription: Subscription) -> Self {
        Self::Stream(Box::new(StreamBody { subscriber: subscription.subscriber(), subscription, written: 0 }))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<HttpFrame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            Self::Whole(text) => text.take().filter(|text| !text.is_empty()),
            Self::Stream(stream) => loop {
                let written = std::mem::take(&mut stream.written);
                let frames = match stream.subscriber.poll_frames(cx, written) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => break None,
                    Poll::Ready(Some(frames)) => frames,
                };
                stream.written = frames.iter().map(Frame::len).sum();
                let mut bodies: Vec<_> = frames.into_iter().map(Frame::into_body).collect();
                let bytes = match bodies.len() {
                    1 => bodies.swap_remove(0),
                    _ => Bytes::from(bodies.concat()),
                };
                if !bytes.is_empty() {
                    stream.subscription.wrote(bytes.len());
                    break Some(bytes);
                }
            },
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
