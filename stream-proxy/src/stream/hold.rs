//! What a stream must not send yet: everything after a recheck, until its right has been checked again.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::Arc;

use crate::stream::frame::Frame;

/// Checks the right to a stream again.
pub trait Guardian: Debug + Send + Sync {
    /// The stream with this key holds something back. After the check, it is released or dismissed.
    fn ask_again(&self, key: usize);
}

/// The frames that a stream holds back, and who checks its right.
#[derive(Debug)]
pub struct Hold {
    guardian: Arc<dyn Guardian>,
    /// The stream's key there.
    key: usize,
    /// The right was last checked when everything up to the end of this tick was visible.
    checked: u64,
    /// The tick of the newest recheck so far.
    newest: u64,
    /// The tick of the recheck that is before the frames; `None` while nothing is held back.
    first: Option<u64>,
    /// What comes after it: frames, and the rechecks between them.
    frames: VecDeque<Frame>,
    /// The bytes of the frames.
    bytes: usize,
}

impl Hold {
    /// Nothing is held back yet. The right was checked when everything up to the end of tick `checked` was visible.
    pub fn new(guardian: Arc<dyn Guardian>, key: usize, checked: u64) -> Self {
        Self { guardian, key, checked, newest: 0, first: None, frames: VecDeque::new(), bytes: 0 }
    }

    /// Whether anything is held back, or will be.
    pub fn is_holding(&self) -> bool {
        self.first.is_some()
    }

    /// Rechecks up to this tick need no further one.
    pub fn covered(&self) -> u64 {
        self.checked.max(self.newest)
    }

    /// The bytes that are held back.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds back what comes from now on, until the right has been checked when tick `tick` was visible. All of a
    /// tick's transactions are committed when it is announced, so one check is enough for all of its rechecks.
    pub fn recheck(&mut self, tick: u64) {
        if tick <= self.covered() {
            return;
        }
        self.newest = tick;
        if self.first.is_none() {
            self.first = Some(tick);
            return self.guardian.ask_again(self.key);
        }
        // Between two frames, only the newest recheck matters.
        if self.frames.back().is_some_and(|last| last.as_recheck().is_some()) {
            self.frames.pop_back();
        }
        self.frames.push_back(Frame::recheck(tick, false));
    }

    /// Holds back what comes from now on, whatever has been checked: ticks were lost, and new ones may have lower
    /// numbers.
    pub fn distrust(&mut self, tick: u64) {
        (self.checked, self.newest) = (0, 0);
        self.recheck(tick);
    }

    /// Holds a frame back.
    pub fn add(&mut self, frame: Frame) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Notes that the right was confirmed when everything up to tick `checked` was visible. Returns the frames that may
    /// be sent now.
    pub fn release(&mut self, checked: u64) -> VecDeque<Frame> {
        self.checked = self.checked.max(checked);
        let mut released = VecDeque::new();
        if self.first.is_none_or(|first| first > checked) {
            return released;
        }
        self.first = None;
        while let Some(frame) = self.frames.pop_front() {
            match frame.as_recheck() {
                Some(tick) if tick > checked => {
                    self.first = Some(tick);
                    self.guardian.ask_again(self.key);
                    return released;
                }
                Some(_) => {}
                None => {
                    self.bytes -= frame.len();
                    released.push_back(frame);
                }
            }
        }
        self.frames = VecDeque::new();
        released
    }

    /// Drops what is held back, because the stream ends. Returns the number of its bytes.
    pub fn discard(&mut self) -> usize {
        (self.first, self.frames) = (None, VecDeque::new());
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Debug, Default)]
    struct Questions(Mutex<Vec<usize>>);

    impl Guardian for Questions {
        fn ask_again(&self, key: usize) {
            self.0.lock().push(key);
        }
    }

    fn hold(checked: u64) -> (Hold, Arc<Questions>) {
        let questions = Arc::<Questions>::default();
        (Hold::new(questions.clone(), 7, checked), questions)
    }

    fn frame(text: &str) -> Frame {
        Frame::message(None, text)
    }

    #[test]
    fn what_is_behind_a_recheck_waits_for_the_answer_to_a_later_question() {
        let (mut hold, questions) = hold(10);
        hold.recheck(10);
        assert!(!hold.is_holding(), "the right was checked after this one");
        hold.recheck(11);
        hold.add(frame("a"));
        hold.recheck(12);
        hold.recheck(13);
        hold.add(frame("b"));
        assert_eq!((questions.0.lock().len(), hold.covered(), hold.bytes()), (1, 13, 2 * frame("a").len()));
        assert_eq!(hold.release(10), [], "an answer to an earlier question");
        assert_eq!(hold.release(12), [frame("a")]);
        assert_eq!((questions.0.lock().len(), hold.is_holding()), (2, true), "it must be asked again");
        assert_eq!(hold.release(13), [frame("b")]);
        assert_eq!((questions.0.lock().len(), hold.is_holding(), hold.bytes()), (2, false, 0));
    }

    #[test]
    fn many_rechecks_cost_one_question_and_no_memory() {
        let (mut hold, questions) = hold(0);
        for tick in 1..1000 {
            hold.recheck(tick);
            hold.recheck(tick);
        }
        assert_eq!((questions.0.lock().clone(), hold.frames.len()), (vec![7], 1));
        assert_eq!((hold.release(999), hold.is_holding()), (VecDeque::new(), false));
        assert_eq!(questions.0.lock().len(), 1);
    }
}
