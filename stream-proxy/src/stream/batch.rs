//! Frames that are being written to a connection, and how far.

use std::collections::VecDeque;
use std::io::IoSlice;

use crate::stream::frame::Frame;

/// The most frames in one write.
pub const WRITE_BATCH: usize = 256;

/// So many frames need only a short list, which costs less to prepare.
pub const SHORT_BATCH: usize = 8;

/// Frames taken from a queue and not yet written.
#[derive(Debug, Default)]
pub struct Batch {
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that have already been written.
    offset: usize,
}

impl From<VecDeque<Frame>> for Batch {
    fn from(frames: VecDeque<Frame>) -> Self {
        Self { frames, offset: 0 }
    }
}

impl Batch {
    /// Whether everything has been written.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// The bytes to write, if there is only one frame. One `send` costs the kernel less than a list with one buffer,
    /// and this is the usual case.
    pub fn single(&self, chunked: bool) -> Option<&[u8]> {
        match self.frames.as_slices() {
            ([frame], []) => Some(&frame.bytes(chunked)[self.offset..]),
            _ => None,
        }
    }

    /// The bytes to write in one step, as many as there is space for.
    pub fn slices<'s, 'b: 's>(&'b self, chunked: bool, space: &'s mut [IoSlice<'b>]) -> &'s [IoSlice<'b>] {
        let mut count = 0;
        for (slice, frame) in space.iter_mut().zip(&self.frames) {
            *slice = IoSlice::new(&frame.bytes(chunked)[if count == 0 { self.offset } else { 0 }..]);
            count += 1;
        }
        &space[..count]
    }

    /// Removes `written` bytes, and frames without bytes to write. Returns the size of these bytes in the queue, where
    /// a frame counts with its chunk's head and tail.
    pub fn advance(&mut self, written: usize, chunked: bool) -> usize {
        let (mut done, mut counted) = (self.offset + written, written);
        while let Some(first) = self.frames.front() {
            let length = first.bytes(chunked).len();
            if length > done {
                break;
            }
            counted += first.len() - length;
            done -= length;
            self.frames.pop_front();
        }
        self.offset = done;
        counted
    }

    /// What has not been written, of a batch that is written as chunks.
    pub fn into_rest(mut self) -> VecDeque<Frame> {
        if self.offset > 0
            && let Some(first) = self.frames.front_mut()
        {
            *first = first.rest(self.offset);
        }
        self.frames
    }
}
