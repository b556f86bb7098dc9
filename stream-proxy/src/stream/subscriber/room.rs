//! Waiting until a subscriber has room for more.

use std::future::poll_fn;
use std::task::Poll;

use super::Subscriber;

impl Subscriber {
    /// How many bytes a replay should have waiting at most, so that live events still have room.
    pub fn comfortable(&self) -> usize {
        self.limit / 4
    }

    /// Waits until no more than [`Self::comfortable`] bytes are waiting; false if the stream has ended. Only one task
    /// may wait at a time.
    pub async fn room(&self) -> bool {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.end.is_some() {
                return Poll::Ready(false);
            }
            if state.bytes <= self.comfortable() {
                return Poll::Ready(true);
            }
            state.rare.get_or_insert_default().feeder = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits until the stream has ended. For the task that otherwise waits for [`Self::room`].
    pub async fn over(&self) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.end.is_some() {
                return Poll::Ready(());
            }
            state.rare.get_or_insert_default().feeder = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}
