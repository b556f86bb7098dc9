//! One subscriber: the queue of frames that wait for it, bounded in bytes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::stream::frame::Frame;
use crate::stream::hold::{Guardian, Hold};
use crate::stream::socket::Socket;

mod room;
pub mod writing;

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client is gone, or its connection broke.
    Gone,
    /// More bytes were waiting than the limit allows.
    Overflow,
    /// The client read nothing for a whole heartbeat interval, although frames were waiting.
    Stalled,
    /// The client's access has ended.
    Revoked,
    /// The proxy ends the stream after everything that waits has been sent.
    Finished,
}

/// A topic or channel of a subscriber, and the subscriber's place there.
pub type Seat = (Arc<str>, usize);

/// A subscriber's queue, shared by the hub, which fills it, and the client's task, which empties it.
#[derive(Debug)]
pub struct Subscriber {
    /// The most bytes that may wait, unless a single frame is larger.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Frame>,
    /// Bytes that wait here, are held back, or that the writer has taken but not written.
    bytes: usize,
    /// What most subscribers do not need; `None` until it is needed.
    rare: Option<Box<Rare>>,
    end: Option<End>,
    /// Whether the writer has written anything since the last heartbeat.
    moving: bool,
    /// Whether every event of its topics up to the hub's place has been queued.
    live: bool,
    /// Whether it gets one JSON text instead of a stream.
    is_json: bool,
    /// Whether it only has to know that something has come, because its events are taken from elsewhere.
    only_notices: bool,
    /// Whether it gets the rows again, instead of a bare reset, when it has to read its data again.
    wants_rows: bool,
    /// Its seats in the hub or at a channel; empty until it has some.
    seats: Box<[Seat]>,
    /// The client's socket, while nobody writes to it; `None` if only the client's task can write.
    socket: Option<Socket>,
    /// Whether somebody has queued frames and will call [`Subscriber::flush`].
    is_due: bool,
    /// Whether the client's task waits for the socket.
    is_wanted: bool,
    /// The client's task, when it waits for frames.
    writer: Option<Waker>,
}

/// Apart from the rest, so that an idle client takes less memory.
#[derive(Debug, Default)]
struct Rare {
    /// What is held back until the right has been checked again; `None` if nobody needs a right.
    hold: Option<Hold>,
    /// The task that waits for room, such as a replay.
    feeder: Option<Waker>,
}

impl State {
    fn hold(&self) -> Option<&Hold> {
        self.rare.as_ref()?.hold.as_ref()
    }

    fn hold_mut(&mut self) -> Option<&mut Hold> {
        self.rare.as_mut()?.hold.as_mut()
    }

    /// Whether something is held back.
    fn is_holding(&self) -> bool {
        self.hold().is_some_and(Hold::is_holding)
    }

    fn wake_feeder(&mut self) {
        if let Some(feeder) = self.rare.as_mut().and_then(|rare| rare.feeder.take()) {
            feeder.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Queues a frame behind all others, also behind those that are held back. True if it is held back.
    fn add(&mut self, frame: Frame) -> bool {
        self.bytes += frame.len();
        match self.hold_mut() {
            Some(hold) if hold.is_holding() => {
                hold.add(frame);
                true
            }
            _ => {
                self.frames.push_back(frame);
                false
            }
        }
    }

    /// Queues a frame before those that are held back.
    fn send(&mut self, frame: Frame) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
        self.wake_writer();
    }

    /// Has somebody write what was queued: who queued it, if it will flush and the socket is here, or the client's task.
    /// Returns whether a flush is due.
    fn announce(&mut self, will_flush: bool) -> bool {
        if self.is_due && self.socket.is_some() {
            // Whoever will flush writes this, too.
            return false;
        }
        // What waits already without being due is left to the task.
        self.is_due = will_flush && self.socket.is_some() && self.frames.len() == 1;
        if !self.is_due {
            self.wake_writer();
        }
        self.is_due
    }

    /// Holds back what comes from now on, if the frame is a recheck; false if it is another frame.
    fn recheck(&mut self, frame: &Frame) -> bool {
        let Some(tick) = frame.as_recheck() else { return false };
        if let Some(hold) = self.hold_mut() {
            hold.recheck(tick);
        }
        true
    }

    /// The bytes that are held back.
    fn held_bytes(&self) -> usize {
        self.hold().map_or(0, Hold::bytes)
    }

    fn discard_held(&mut self) {
        self.bytes -= self.hold_mut().map_or(0, Hold::discard);
    }

    fn close(&mut self, end: End) -> bool {
        if self.end.is_some() {
            return false;
        }
        self.discard_held();
        if end == End::Finished {
            self.send(Frame::end());
        }
        self.cut(end);
        true
    }

    fn cut(&mut self, end: End) {
        self.end = Some(end);
        if end != End::Finished {
            self.frames = VecDeque::new();
        }
        self.wake_writer();
        self.wake_feeder();
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker())) {
            self.writer = Some(cx.waker().clone());
        }
    }
}

/// What became of a frame that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits. This many bytes wait now, with it.
    Waiting(usize),
    /// It is not sent: a recheck, or a frame of which only the coming counts.
    Noted,
    /// It exceeded the limit: the stream ends now.
    Overflow,
    /// The stream had ended before.
    Ended,
}

/// What a heartbeat found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// The client reads what it is sent.
    Alive,
    /// The same, and the heartbeat has to be flushed.
    Due,
    /// The client read nothing for a whole interval: the stream ends now.
    Stalled,
    /// The stream had ended before.
    Ended,
}

impl Subscriber {
    /// A subscriber that may have `limit` bytes waiting.
    pub fn new(limit: usize) -> Arc<Self> {
        // Its first interval has just begun.
        Arc::new(Self { limit, state: Mutex::new(State { moving: true, ..State::default() }) })
    }

    /// Makes the subscriber get one JSON text instead of a stream.
    pub fn send_json(&self) {
        self.state.lock().is_json = true;
    }

    /// From now on, an event is only a notice for [`Self::noticed`], also while something is held back. So nothing
    /// gathers here while an answer waits.
    pub fn only_notice(&self) {
        self.state.lock().only_notices = true;
    }

    /// Ends the stream properly, and asks the client to come back after this time. An incomplete JSON text is cut off.
    pub fn finish(&self, retry: Duration) {
        self.conclude(Frame::retry(retry), End::Gone);
    }

    /// Ends the stream after everything that waits, with a last frame instead of what is held back; false if it had
    /// ended before. An answer in JSON has no place for that frame, so it is cut off with `or_cut`.
    pub fn conclude(&self, last: Frame, or_cut: End) -> bool {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return false;
        }
        if state.is_json {
            return state.close(or_cut);
        }
        // Regardless of the limit: this frame must not be the one that exceeds it.
        state.send(last);
        state.close(End::Finished)
    }

    /// Waits until something is queued, or the stream has ended.
    pub async fn noticed(&self) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.end.is_some() || !state.frames.is_empty() {
                return Poll::Ready(());
            }
            state.wait(cx);
            Poll::Pending
        })
        .await
    }

    /// Makes the subscriber get the rows again, instead of a bare reset, when it has to read its data again.
    pub fn want_rows(&self) {
        self.state.lock().wants_rows = true;
    }

    /// Whether the subscriber gets the rows again, instead of a bare reset.
    pub fn wants_rows(&self) -> bool {
        self.state.lock().wants_rows
    }

    /// Queues a frame. If it exceeds the limit, the stream ends, and the client reconnects with the last id that it
    /// got.
    pub fn push(&self, frame: Frame) -> Pushed {
        self.queue(frame, false).0
    }

    /// The same for a caller that can write. If true is returned, no task is woken, and the caller has to call
    /// [`Self::flush`] as soon as it holds no lock.
    pub fn offer(&self, frame: Frame) -> (Pushed, bool) {
        self.queue(frame, true)
    }

    fn queue(&self, frame: Frame, will_flush: bool) -> (Pushed, bool) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return (Pushed::Ended, false);
        }
        if state.recheck(&frame) {
            return (Pushed::Noted, false);
        }
        if state.only_notices {
            if state.frames.is_empty() {
                state.send(frame);
            }
            return (Pushed::Noted, false);
        }
        if state.bytes > 0 && state.bytes + frame.len() > self.limit {
            state.close(End::Overflow);
            return (Pushed::Overflow, false);
        }
        let is_due = !state.add(frame) && state.announce(will_flush);
        (Pushed::Waiting(state.bytes), is_due)
    }

    /// Queues a frame regardless of the limit: for a replay, which waits for [`Self::room`] before. False if the stream
    /// has ended.
    pub fn feed(&self, frame: Frame) -> bool {
        let mut state = self.state.lock();
        let open = state.end.is_none();
        if open && !state.recheck(&frame) && !state.add(frame) {
            state.wake_writer();
        }
        open
    }

    /// Queues bytes before all others.
    pub fn prepend(&self, frame: Frame) {
        let mut state = self.state.lock();
        state.bytes += frame.len();
        state.frames.push_front(frame);
    }

    /// Makes `guardian` responsible for the right to the stream, which has the `key` there. The right was checked when
    /// everything up to the end of tick `checked` was visible.
    pub fn guard(&self, guardian: Arc<dyn Guardian>, key: usize, checked: u64) {
        self.state.lock().rare.get_or_insert_default().hold = Some(Hold::new(guardian, key, checked));
    }

    /// Rechecks up to this tick need no further one; `None` if nobody needs a right to the stream.
    pub fn covered(&self) -> Option<u64> {
        self.state.lock().hold().map(Hold::covered)
    }

    /// The newest recheck behind which something is held back.
    pub fn held(&self) -> Option<u64> {
        self.state.lock().hold().filter(|hold| hold.is_holding()).map(Hold::covered)
    }

    /// Sends what was held back: the right was confirmed when everything up to the end of tick `checked` was visible.
    pub fn release(&self, checked: u64) {
        let mut state = self.state.lock();
        if let Some(hold) = state.hold_mut() {
            let mut released = hold.release(checked);
            state.frames.append(&mut released);
            state.wake_writer();
        }
    }

    /// Holds back what comes from now on, whatever has been checked, because ticks were lost. A stream whose right is
    /// being checked ends, because the answer may be about the lost ticks.
    pub fn distrust(&self, tick: u64) {
        let mut state = self.state.lock();
        match state.hold_mut() {
            Some(hold) if hold.is_holding() && hold.covered() != tick => _ = state.close(End::Gone),
            Some(hold) if !hold.is_holding() => hold.distrust(tick),
            _ => {}
        }
    }

    /// Waits until nothing is held back, or the stream has ended. For a stream without a writer.
    pub async fn settled(&self) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.end.is_some() || !state.is_holding() {
                return Poll::Ready(());
            }
            state.wait(cx);
            Poll::Pending
        })
        .await
    }

    /// Ends the stream; false if it had ended before. Unless the end is [`End::Finished`], frames that wait are
    /// dropped.
    pub fn close(&self, end: End) -> bool {
        self.state.lock().close(end)
    }

    /// Ends the stream with a last frame, instead of those that wait; false if it had ended before. What the writer has
    /// already taken is still written, so that no frame is torn.
    pub fn dismiss(&self, last: Frame) -> bool {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return false;
        }
        if state.is_json {
            // A JSON answer has no place for this, so it is cut off, and the client asks again.
            return state.close(End::Revoked);
        }
        state.discard_held();
        let dropped: usize = state.frames.iter().map(Frame::len).sum();
        // The response's head stays, if it still waits, and so does the rest of a frame.
        state.frames.retain(Frame::is_raw);
        state.bytes -= dropped - state.frames.iter().map(Frame::len).sum::<usize>();
        state.send(last);
        state.close(End::Finished)
    }

    /// Why the stream ended, if it did.
    pub fn ended(&self) -> Option<End> {
        self.state.lock().end
    }

    /// What waits, frame by frame as text, and marks it as written.
    #[cfg(test)]
    pub fn take(&self) -> Vec<String> {
        let cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(frames)) = self.poll_frames(&cx, 0) else { return Vec::new() };
        let _ = self.poll_blocked(&cx, frames.iter().map(Frame::len).sum());
        frames.iter().map(|frame| String::from_utf8_lossy(frame.bytes(false)).into_owned()).collect()
    }

    /// Bytes that wait here or in the writer.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.state.lock().bytes
    }

    /// Sets the seats of the subscriber, or returns them if the stream has ended in the meantime. `live` says whether
    /// it has every event up to the hub's place from now on.
    pub fn sit(&self, seats: Box<[Seat]>, live: bool) -> Result<(), Box<[Seat]>> {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return Err(seats);
        }
        state.live = live;
        state.seats = seats;
        Ok(())
    }

    /// Whether it has a seat for which `matches` is true.
    pub fn has_seat(&self, matches: impl Fn(&str, usize) -> bool) -> bool {
        self.state.lock().seats.iter().any(|(topic, seat)| matches(topic, *seat))
    }

    /// Ends the stream if it has not ended, and returns its seats.
    pub fn leave(&self) -> Box<[Seat]> {
        let mut state = self.state.lock();
        state.close(End::Gone);
        std::mem::take(&mut state.seats)
    }

    /// Sends a heartbeat if nothing waits: `at_place` to a live subscriber, else `plain`. The caller can write.
    pub fn beat(&self, plain: &Frame, at_place: &Frame) -> Pulse {
        let mut state = self.state.lock();
        match state.end {
            // Its last bytes are still being sent.
            Some(End::Finished) if state.bytes > 0 => {}
            Some(_) => return Pulse::Ended,
            None => {}
        }
        let moving = std::mem::take(&mut state.moving);
        // The client is not waited for while everything is held back; its place is then before what it has not got.
        if state.bytes == state.held_bytes() {
            let padding = Frame::padding();
            let is_holding = state.is_holding();
            let frame = match (state.is_json, state.live && !is_holding) {
                (true, _) => &padding,
                (false, true) => at_place,
                (false, false) => plain,
            };
            state.bytes += frame.len();
            state.frames.push_back(frame.clone());
            if state.announce(true) {
                return Pulse::Due;
            }
        } else if !moving {
            state.cut(End::Stalled);
            return Pulse::Stalled;
        }
        Pulse::Alive
    }
}

#[cfg(test)]
pub mod tests;
