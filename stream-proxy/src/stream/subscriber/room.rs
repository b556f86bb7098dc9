//! Waiting until a subscriber has room for more.

use std::future::poll_fn;
use std::task::Poll;

use super::{State, Subscriber};

impl Subscriber {
    /// How many bytes a replay should have waiting at most, so that live events still have room.
    pub fn comfortable(&self) -> usize {
        self.limit / 4
    }

    /// Waits until no more than [`Self::comfortable`] bytes are waiting; false if the stream has ended. Only one task
    /// may wait at a time.
    pub async fn room(&self) -> bool {
        self.feeder_until(|state| match state.end {
            Some(_) => Some(false),
            None => (state.bytes <= self.comfortable()).then_some(true),
        })
        .await
    }

    /// Waits until the stream has ended. For the task that otherwise waits for [`Self::room`].
    pub async fn over(&self) {
        self.feeder_until(|state| state.end.map(|_| ())).await;
    }

    /// Waits until `ready` gives something. The feeder is woken when bytes were written, and at the end.
    async fn feeder_until<T>(&self, ready: impl Fn(&State) -> Option<T>) -> T {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if let Some(result) = ready(&state) {
                return Poll::Ready(result);
            }
            state.rare.get_or_insert_default().feeder = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}
