//! How a subscriber's queue is emptied. The task that has taken the socket writes the frames: the client's own task, or
//! one that has just queued a frame. The socket rests in the subscriber while nothing is left to write. No lock is held
//! over a write.

use super::*;

use crate::stream::batch::Batch;

impl State {
    /// Notes that `written` bytes have been written.
    fn account(&mut self, written: usize, comfortable: usize) {
        if written > 0 {
            self.moving = true;
            self.bytes -= written;
            if self.bytes <= comfortable {
                self.wake_feeder();
            }
        }
    }
}

impl Subscriber {
    /// Gives the writer all frames that wait; `None` when the stream has ended. The writer has written `written` bytes
    /// since the last call.
    pub fn poll_frames(&self, cx: &Context<'_>, written: usize) -> Poll<Option<VecDeque<Frame>>> {
        let mut state = self.state.lock();
        state.account(written, self.comfortable());
        match state.end {
            Some(End::Finished) if !state.frames.is_empty() => {}
            Some(_) => return Poll::Ready(None),
            None if state.frames.is_empty() => {
                state.wait(cx);
                return Poll::Pending;
            }
            None => {}
        }
        Poll::Ready(Some(std::mem::take(&mut state.frames)))
    }

    /// Notes that the writer has written `written` bytes and can't write more for now. Ready when the stream has ended
    /// and need not be written further.
    pub fn poll_blocked(&self, cx: &Context<'_>, written: usize) -> Poll<()> {
        let mut state = self.state.lock();
        state.account(written, self.comfortable());
        match state.end {
            None | Some(End::Finished) => {
                state.wait(cx);
                Poll::Pending
            }
            Some(_) => Poll::Ready(()),
        }
    }

    /// Leaves the socket here, so that [`Self::flush`] can write to it. The writer has written everything that it took.
    pub fn leave_socket(&self, socket: Socket) {
        self.state.lock().socket = Some(socket);
    }

    /// Takes the socket back for the client's task, which is woken if another task has it now.
    pub fn poll_socket(&self, cx: &Context<'_>) -> Poll<Socket> {
        let mut state = self.state.lock();
        match state.socket.take() {
            Some(socket) => Poll::Ready(socket),
            None => {
                state.is_wanted = true;
                state.wait(cx);
                Poll::Pending
            }
        }
    }

    /// Writes what waits, if nobody else does, and as much as the socket takes at once; the client's task writes the
    /// rest. A caller that got true from [`Self::offer`], or [`Pulse::Due`], must call this or
    /// [`Self::leave_to_task`]. Returns how many bytes have been written.
    pub fn flush(&self) -> usize {
        let Some((mut socket, mut batch)) = self.take_due() else { return 0 };
        // After an error the client's task tries again, gets an error too, and ends the stream.
        let written = socket.try_write(&batch).unwrap_or(0);
        let counted = batch.advance(written, true);
        self.return_due(socket, batch, counted);
        written
    }

    /// Takes the socket, and what is to be written to it.
    fn take_due(&self) -> Option<(Socket, Batch)> {
        let mut state = self.state.lock();
        state.is_due = false;
        // At the end of a stream, its task has been woken and writes the rest.
        if state.end.is_some() || state.frames.is_empty() {
            return None;
        }
        // If the client's task has the socket, it looks for frames before it leaves the socket here again.
        let socket = state.socket.take()?;
        Some((socket, std::mem::take(&mut state.frames).into()))
    }

    /// Puts back the socket and what it did not take. Meanwhile more may have been queued, or the stream have ended.
    fn return_due(&self, socket: Socket, rest: Batch, written: usize) {
        let mut state = self.state.lock();
        state.account(written, self.comfortable());
        if !rest.is_empty() && matches!(state.end, None | Some(End::Finished)) {
            let mut queued = std::mem::replace(&mut state.frames, rest.into_rest());
            state.frames.append(&mut queued);
        }
        state.socket = Some(socket);
        let is_wanted = std::mem::take(&mut state.is_wanted);
        if is_wanted || !state.frames.is_empty() || state.end.is_some() {
            state.wake_writer();
        }
    }

    /// Leaves to the client's task what [`Self::flush`] would have written.
    pub fn leave_to_task(&self) {
        let mut state = self.state.lock();
        state.is_due = false;
        state.wake_writer();
    }
}

#[cfg(test)]
pub mod tests;
