//! One reading that several streams share: a window of frames, each of which is kept until all streams have taken it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;
use tidings_wire::Position;
use tokio::time::timeout;

use crate::stream::frame::Frame;
use crate::upstream::replay::outlet::Outlet;

/// The most bytes that are kept for streams that are behind, not counting the frame that is being added.
const WINDOW: usize = 256 * 1024;

/// How long the others wait for streams that are a whole window behind and take nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a reading ended for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything up to this position has been passed on.
    Complete(Position),
    /// The stream was too slow for the others.
    Behind,
    /// The database could not be asked.
    Away,
    /// The rows can't be read.
    Refused,
}

/// What a stream takes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// A frame.
    Frame(Frame),
    /// The end.
    End(Outcome),
}

/// A reading and the streams that it serves.
#[derive(Debug, Default)]
pub struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The frames that some streams have not taken yet.
    window: VecDeque<Kept>,
    /// How many frames were in the window before these.
    gone: usize,
    /// Bytes in the window.
    bytes: usize,
    seats: Slab<Seat>,
    /// How many of the seats are served.
    served: usize,
    end: Option<Outcome>,
    /// The reader, when it waits for room or for the last stream to leave.
    reader: Option<Waker>,
}

#[derive(Debug)]
struct Kept {
    frame: Frame,
    /// How many streams have not taken it yet.
    left: usize,
}

#[derive(Debug)]
struct Seat {
    /// The number of the frame to take next; `None` for a stream that is too far behind.
    next: Option<usize>,
    waker: Option<Waker>,
}

/// A stream's place at a reading, given up when it is dropped.
#[derive(Debug)]
pub struct Member {
    shared: Arc<Shared>,
    seat: usize,
}

impl State {
    /// Notes that one stream fewer takes the frames from `next` on.
    fn pass_over(&mut self, next: usize) {
        for kept in self.window.iter_mut().skip(next - self.gone) {
            kept.left -= 1;
        }
        self.shrink();
    }

    /// Drops the frames that all streams have taken.
    fn shrink(&mut self) {
        while self.window.front().is_some_and(|kept| kept.left == 0) {
            if let Some(kept) = self.window.pop_front() {
                self.bytes -= kept.frame.len();
                self.gone += 1;
            }
        }
        self.wake_reader();
    }

    fn wake_reader(&mut self) {
        if (self.bytes < WINDOW || self.served == 0)
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
    }

    fn wake_seats(&mut self) {
        for (_, seat) in &mut self.seats {
            if let Some(waker) = seat.waker.take() {
                waker.wake();
            }
        }
    }

    /// Gives up the streams that have not taken the first frame, unless no stream has.
    fn leave_behind(&mut self) {
        let first = self.gone;
        let behind: Vec<usize> =
            self.seats.iter().filter(|(_, seat)| seat.next == Some(first)).map(|(key, _)| key).collect();
        if behind.len() == self.served {
            return;
        }
        for key in behind {
            let seat = &mut self.seats[key];
            seat.next = None;
            if let Some(waker) = seat.waker.take() {
                waker.wake();
            }
            self.served -= 1;
            self.pass_over(first);
        }
    }
}

impl Shared {
    /// Whether no stream is served.
    pub fn is_empty(&self) -> bool {
        self.0.lock().served == 0
    }

    /// Adds a frame, however full the window is.
    pub fn push(&self, frame: Frame) {
        let mut state = self.0.lock();
        if state.served > 0 {
            state.bytes += frame.len();
            let left = state.served;
            state.window.push_back(Kept { frame, left });
            state.wake_seats();
        }
    }

    /// Ends the reading.
    pub fn end(&self, outcome: Outcome) {
        let mut state = self.0.lock();
        state.end = Some(outcome);
        state.wake_seats();
    }

    /// Waits until there is room in the window; false if no stream is left. Streams that are too far behind for too
    /// long are given up, if others wait for them.
    pub async fn room_for_one(&self) -> bool {
        loop {
            let room = poll_fn(|cx| self.poll_room(cx));
            match timeout(PATIENCE, room).await {
                Ok(room) => return room,
                Err(_) => self.0.lock().leave_behind(),
            }
        }
    }

    /// Waits until no stream is left. For the task of the reading, like [`Self::room_for_one`].
    pub async fn deserted(&self) {
        poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.served == 0 {
                return Poll::Ready(());
            }
            state.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn poll_room(&self, cx: &Context<'_>) -> Poll<bool> {
        let mut state = self.0.lock();
        if state.served == 0 {
            return Poll::Ready(false);
        }
        if state.bytes < WINDOW {
            return Poll::Ready(true);
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Outlet for Shared {
    async fn room(&self) -> bool {
        self.room_for_one().await
    }

    fn feed(&self, frame: Frame) -> bool {
        self.push(frame);
        !self.is_empty()
    }
}

impl Member {
    /// Takes a seat at a reading that has not begun.
    pub fn of(shared: &Arc<Shared>) -> Self {
        let mut state = shared.0.lock();
        state.served += 1;
        let seat = state.seats.insert(Seat { next: Some(0), waker: None });
        drop(state);
        Self { shared: shared.clone(), seat }
    }

    /// What comes next.
    pub async fn next(&mut self) -> Taken {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&self, cx: &Context<'_>) -> Poll<Taken> {
        let mut guard = self.shared.0.lock();
        let state = &mut *guard;
        let Some(next) = state.seats[self.seat].next else { return Poll::Ready(Taken::End(Outcome::Behind)) };
        if let Some(kept) = state.window.get_mut(next - state.gone) {
            let frame = kept.frame.clone();
            kept.left -= 1;
            state.seats[self.seat].next = Some(next + 1);
            state.shrink();
            return Poll::Ready(Taken::Frame(frame));
        }
        if let Some(end) = &state.end {
            return Poll::Ready(Taken::End(end.clone()));
        }
        state.seats[self.seat].waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.shared.0.lock();
        if let Some(Seat { next: Some(next), .. }) = state.seats.try_remove(self.seat) {
            state.served -= 1;
            state.pass_over(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: usize) -> Frame {
        Frame::raw(vec![b'x'; bytes])
    }

    #[tokio::test]
    async fn all_members_get_all_frames_and_the_end() {
        let shared = Arc::new(Shared::default());
        let mut members = [Member::of(&shared), Member::of(&shared)];
        shared.push(frame(1));
        assert_eq!(members[0].next().await, Taken::Frame(frame(1)));
        shared.push(frame(2));
        shared.end(Outcome::Refused);
        for member in &mut members[1..] {
            assert_eq!(member.next().await, Taken::Frame(frame(1)));
        }
        for member in &mut members {
            assert_eq!(member.next().await, Taken::Frame(frame(2)));
            assert_eq!(member.next().await, Taken::End(Outcome::Refused));
        }
        assert_eq!(shared.0.lock().bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_a_window_behind_is_left_behind_and_the_others_go_on() {
        let shared = Arc::new(Shared::default());
        let (mut quick, mut slow) = (Member::of(&shared), Member::of(&shared));
        shared.push(frame(WINDOW));
        shared.push(frame(1));
        assert_eq!(quick.next().await, Taken::Frame(frame(WINDOW)));
        assert!(shared.room_for_one().await);
        assert_eq!(slow.next().await, Taken::End(Outcome::Behind));
        assert_eq!(quick.next().await, Taken::Frame(frame(1)));
        assert_eq!(shared.0.lock().bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_member_has_all_the_time_and_its_leaving_is_noticed() {
        let shared = Arc::new(Shared::default());
        let member = Member::of(&shared);
        shared.push(frame(WINDOW));
        assert!(timeout(10 * PATIENCE, shared.room_for_one()).await.is_err());
        drop(member);
        assert!(!shared.room_for_one().await);
        assert!(shared.is_empty());
    }

    #[tokio::test]
    async fn the_bytes_of_who_leaves_are_given_back() {
        let shared = Arc::new(Shared::default());
        let (mut one, other) = (Member::of(&shared), Member::of(&shared));
        shared.push(frame(1));
        shared.push(frame(2));
        assert_eq!(one.next().await, Taken::Frame(frame(1)));
        drop(other);
        assert_eq!(shared.0.lock().bytes, 2);
        assert_eq!(one.next().await, Taken::Frame(frame(2)));
        assert_eq!(shared.0.lock().bytes, 0);
    }
}
